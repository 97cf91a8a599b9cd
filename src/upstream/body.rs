//! A response body in progress.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::write::GzDecoder;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prometheus::IntCounter;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::error::{Error, Fault};
use super::rest::Host;

/// A response body in progress. Dropped, the transfer is given up.
#[derive(Debug)]
pub(super) struct Body {
    incoming: Incoming,
    decoding: Option<Box<Decoding>>,
    host: String,
    idle_timeout: Duration,
    received: IntCounter,
    /// Who hears that it goes on.
    heard_of: Option<Arc<Host>>,
    _places: Places,
}

/// The places among the requests in flight that a body holds.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) _request: OwnedSemaphorePermit,
    pub(super) _blob: Option<OwnedSemaphorePermit>,
}

/// The undoing of a content coding that nobody asked for.
#[derive(Debug)]
struct Decoding {
    decoder: GzDecoder<Vec<u8>>,
    /// What came and is not decoded yet.
    encoded: Bytes,
    ended: bool,
}

impl Body {
    pub(super) fn new(
        incoming: Incoming,
        host: &str,
        idle_timeout: Duration,
        (received, heard_of): (IntCounter, Option<Arc<Host>>),
        places: Places,
    ) -> Self {
        Self {
            incoming,
            decoding: None,
            host: host.to_owned(),
            idle_timeout,
            received,
            heard_of,
            _places: places,
        }
    }

    /// The same, taken out of its gzip coding.
    pub(super) fn decoded(mut self) -> Self {
        self.decoding = Some(Box::new(Decoding {
            decoder: GzDecoder::new(Vec::new()),
            encoded: Bytes::new(),
            ended: false,
        }));
        self
    }

    /// The next bytes; `None` is an end that the connection vouches for. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the connection broke, was silent for too long, or the coding is damaged.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(decoding) = &mut self.decoding {
                let decoded = decoding.next().map_err(|_| Error::Invalid {
                    host: self.host.clone(),
                    fault: Fault::Encoding,
                })?;
                if decoded.is_some() || decoding.ended {
                    return Ok(decoded);
                }
            }
            let received = self.receive().await?;
            match (&mut self.decoding, received) {
                (None, received) => return Ok(received),
                (Some(decoding), Some(bytes)) => decoding.encoded = bytes,
                (Some(decoding), None) => decoding.ended = true,
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = match timeout(self.idle_timeout, self.incoming.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(source))) => {
                    let (host, source) = (self.host.clone(), Arc::new(source));
                    return Err(Error::Cut { host, source });
                }
                Ok(None) => return Ok(None),
                Err(_) => {
                    let (host, waited) = (self.host.clone(), self.idle_timeout);
                    return Err(Error::Silent { host, waited });
                }
            };
            if let Ok(bytes) = frame.into_data() {
                self.received.inc_by(bytes.len() as u64);
                if let Some(host) = &self.heard_of {
                    host.answered();
                }
                return Ok(Some(bytes));
            }
        }
    }
}

impl Decoding {
    /// Decodes some more of what came; `None` when more must come, or this was the end.
    fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        while !self.encoded.is_empty() {
            // In small steps, because a small part may hold a thousand times its size.
            let step = self.encoded.split_to(self.encoded.len().min(STEP_BYTES));
            self.decoder.write_all(&step)?;
            if !self.decoder.get_ref().is_empty() {
                return Ok(Some(std::mem::take(self.decoder.get_mut()).into()));
            }
        }
        if !self.ended {
            return Ok(None);
        }
        self.decoder.try_finish()?;
        let rest = std::mem::take(self.decoder.get_mut());
        Ok(Some(rest).filter(|it| !it.is_empty()).map(Bytes::from))
    }
}

const STEP_BYTES: usize = 1 << 10;

/// Decodes anything without panicking, in steps that are bounded, and to the same whatever pieces it comes in. Whether it
/// was gzip.
pub fn fuzz_gzip(input: &[u8]) -> bool {
    let decoded = |piece: usize| -> std::io::Result<Vec<u8>> {
        let mut decoding = Decoding {
            decoder: GzDecoder::new(Vec::new()),
            encoded: Bytes::new(),
            ended: false,
        };
        let mut decoded = Vec::new();
        for piece in input.chunks(piece) {
            decoding.encoded = Bytes::copy_from_slice(piece);
            while let Some(bytes) = decoding.next()? {
                assert!(bytes.len() <= STEP_BYTES * RATIO_MAX, "a step is bounded");
                decoded.extend_from_slice(&bytes);
            }
        }
        decoding.ended = true;
        decoded.extend_from_slice(&decoding.next()?.unwrap_or_default());
        Ok(decoded)
    };
    let whole = decoded(input.len().max(1));
    let pieces = decoded(7);
    assert_eq!(whole.as_ref().ok(), pieces.as_ref().ok());
    whole.is_ok()
}

/// What deflate makes of one byte, at most (RFC 1951: 258 bytes by two bits), rounded up.
const RATIO_MAX: usize = 1100;
