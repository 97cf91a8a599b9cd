//! Around the cache: when there is no room or the disk is broken, each reader goes on from upstream by itself. Capped in
//! number, and still hashed: the last bytes are withheld until the digest is found right.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

use super::error::{Error, StreamError, Subject};
use super::refusals::Refusals;
use super::seen::Seen;
use crate::cache::{Handover, Moment};
use crate::oci::{Digest, Digester};
use crate::upstream::{self, Source, Sources, Transfer};

/// The way around the cache for one blob, not taken yet.
#[derive(Debug)]
pub(super) struct Detour {
    digest: Digest,
    seen: Seen,
    source: Source,
    places: Arc<Semaphore>,
    /// The place that is held already, to the end of all that is read.
    place: Option<OwnedSemaphorePermit>,
    refusals: Refusals,
    asked: Moment,
}

/// A reader's own transfer.
#[derive(Debug)]
pub(super) struct Bypass {
    transfer: Transfer,
    digest: Digest,
    /// The running digest; `None` for a part that ends before the last byte, which nothing can verify.
    digester: Option<Box<Digester>>,
    /// The offset of the next byte that is given out.
    position: u64,
    /// Where the transfer ends, exclusive; `None` is the end of the blob.
    until: Option<u64>,
    size: Option<u64>,
    /// What may go out, and behind it what is withheld until the next bytes or the verified end.
    ready: VecDeque<Bytes>,
    held: Option<Bytes>,
    ended: bool,
    /// Whether some of what the digest is over is of a former process of ours.
    is_resumed: bool,
    /// Whether wrong bytes are not held against the registry: they were a mirror's fault, which is not asked again soon, or
    /// nobody knows whose.
    excused: bool,
}

impl Detour {
    pub(super) fn new(
        digest: Digest,
        seen: Seen,
        source: Source,
        places: Arc<Semaphore>,
        refusals: Refusals,
    ) -> Self {
        let asked = refusals.now();
        Self {
            digest,
            seen,
            source,
            places,
            place: None,
            refusals,
            asked,
        }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Holds a place for going this way; whether there was one.
    pub(super) fn hold(&mut self) -> bool {
        if self.place.is_none() {
            self.place = Arc::clone(&self.places).try_acquire_owned().ok();
        }
        self.place.is_some()
    }

    /// What came this way was wrong: the source is refused for a while, unless it is excused.
    pub(super) fn found_wrong(&self, is_excused: bool) {
        let expected = self.digest;
        warn!(
            namespace = %self.seen.repository.namespace,
            repository = %self.seen.repository.name,
            digest = %expected,
            "wrong bytes on the way around the cache"
        );
        if is_excused {
            return;
        }
        let error = Error::Mismatch { expected };
        let key = (self.seen.clone(), expected, Subject::Blob);
        self.refusals.remember(&key, &error, self.asked);
    }

    /// Goes on from `position` towards `until`, after the cache handed over what it had staged.
    pub(super) async fn take(
        &mut self,
        handover: Handover,
        position: u64,
        until: Option<u64>,
        size: Option<u64>,
    ) -> Result<Bypass, StreamError> {
        if !self.hold() {
            return Err(StreamError::Busy);
        }
        debug!(digest = %self.digest, position, "bypass");
        // Without the last byte there is nothing to verify, and no need to fetch what nobody wants.
        let part = until.filter(|until| size.is_some_and(|size| *until < size));
        let from = if part.is_some() {
            position
        } else {
            handover.staged
        };
        let transfer = Transfer::open(Sources::new(self.source.clone()), self.digest, from, part)
            .await
            .map_err(|error| StreamError::Bypass(Arc::new(error)))?;
        Ok(Bypass {
            transfer,
            digest: self.digest,
            digester: part.is_none().then_some(handover.digester),
            position: from.min(position),
            until,
            size,
            ready: VecDeque::new(),
            held: None,
            ended: false,
            is_resumed: handover.is_resumed,
            excused: false,
        })
    }
}

impl Bypass {
    /// Whether this part comes by, where it is now or later.
    pub(super) fn covers(&self, part: &Range<u64>) -> bool {
        self.position <= part.start && self.until.is_some_and(|until| part.end <= until)
    }

    /// The size of the blob, when it is known.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next bytes from `offset` on, at most `max` of them; `None` is the end, verified where the last byte was wanted.
    /// What was passed by does not come again. Cancel-safe.
    pub(super) async fn read_at(
        &mut self,
        offset: u64,
        max: u64,
    ) -> Result<Option<Bytes>, StreamError> {
        loop {
            while let Some(mut bytes) = self.ready.pop_front() {
                let unwanted = usize::try_from(offset.saturating_sub(self.position));
                let unwanted = unwanted.unwrap_or(usize::MAX).min(bytes.len());
                bytes.advance(unwanted);
                let wanted = usize::try_from(max).unwrap_or(usize::MAX).min(bytes.len());
                let rest = bytes.split_off(wanted);
                if !rest.is_empty() {
                    self.ready.push_front(rest);
                }
                self.position += (unwanted + wanted) as u64;
                if !bytes.is_empty() {
                    return Ok(Some(bytes));
                }
            }
            if self.ended {
                return Ok(None);
            }
            let received = self.transfer.next().await.map_err(broken)?;
            match received {
                Some(bytes) => self.receive(bytes),
                None => self.end()?,
            }
        }
    }

    /// Whether wrong bytes are not held against the registry.
    pub(super) fn is_excused(&self) -> bool {
        self.excused
    }

    fn receive(&mut self, mut bytes: Bytes) {
        if let Some(digester) = &mut self.digester {
            digester.update(&bytes);
        }
        if bytes.is_empty() {
            return;
        }
        if self.digester.is_none() {
            self.ready.push_back(bytes);
            return;
        }
        let last = bytes.split_off(bytes.len() - 1);
        self.ready.extend(self.held.replace(last));
        if !bytes.is_empty() {
            self.ready.push_back(bytes);
        }
    }

    fn end(&mut self) -> Result<(), StreamError> {
        self.ended = true;
        if let Some(digester) = self.digester.take()
            && digester.finish() != self.digest
        {
            self.excused = self.is_resumed || self.transfer.blame_mirrors();
            return Err(StreamError::Mismatch {
                expected: self.digest,
            });
        }
        self.ready.extend(self.held.take());
        Ok(())
    }
}

fn broken(error: upstream::Error) -> StreamError {
    StreamError::Bypass(Arc::new(error))
}
