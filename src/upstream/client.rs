//! Asking one registry.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE,
    RETRY_AFTER, USER_AGENT,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use prometheus::IntCounter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::config::Config;
use super::error::{Error, Fault};
use super::metrics::Metrics;
use super::transport::{self, Transport, TransportError};
use crate::net::ContentRange;
use crate::oci::{
    DOCKER_CONTENT_DIGEST, Digest, Endpoint, MANIFEST_ACCEPT, MediaType, Reference, RepositoryName,
};

/// One remote registry.
#[derive(Debug)]
pub struct Upstream {
    /// The configured name, for metrics and logs.
    name: String,
    host: String,
    config: Config,
    transport: Transport,
    /// Requests in flight, bodies included.
    places: Arc<Semaphore>,
    /// The part of them that may be blobs, which take long: heads and manifests always find a place.
    blob_places: Arc<Semaphore>,
    metrics: Metrics,
}

/// What a HEAD of a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// `Docker-Content-Digest`, when the registry sends it.
    pub digest: Option<Digest>,
    /// `Content-Type`.
    pub media_type: Option<MediaType>,
    /// `Content-Length`.
    pub size: Option<u64>,
}

/// A manifest as it was received; nothing about it is checked but its length.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The body.
    pub bytes: Bytes,
    /// What came with it.
    pub head: ManifestHead,
}

/// What is known of a blob without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobHead {
    /// The size, when the registry says it.
    pub size: Option<u64>,
}

/// A response body in progress. Dropped, the transfer is given up.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    host: String,
    idle_timeout: Duration,
    received: IntCounter,
    _place: OwnedSemaphorePermit,
    blob_place: Option<OwnedSemaphorePermit>,
}

/// The answer to a GET of a blob, from some offset on.
#[derive(Debug)]
pub(super) struct BlobAnswer {
    /// Where the body begins: the offset that was asked for, or 0 when the registry ignored the range.
    pub(super) begins_at: u64,
    /// The size of the whole blob, when the registry says it.
    pub(super) size: Option<u64>,
    pub(super) body: Body,
}

impl Upstream {
    /// A client for the registry that clients call `name`. Nothing is dialled.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(name: &str, config: Config, metrics: Metrics) -> Result<Self, TransportError> {
        Ok(Self {
            name: name.to_owned(),
            host: config
                .url
                .authority()
                .map(ToString::to_string)
                .unwrap_or_default(),
            transport: transport::client(&config)?,
            places: Arc::new(Semaphore::new(config.requests_max)),
            blob_places: Arc::new(Semaphore::new(
                (config.requests_max - config.requests_max / 4).max(1),
            )),
            config,
            metrics,
        })
    }

    /// The configured name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, for logs.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Asks for the head of a manifest. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer.
    pub async fn head_manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, Error> {
        let endpoint = Endpoint::Manifest {
            name: name.clone(),
            reference: reference.clone(),
        };
        let response = self.ask(&Method::HEAD, &endpoint, None).await?;
        let (response, _place) = self.successful(response)?;
        self.manifest_head(response.headers())
    }

    /// Asks for a manifest of at most `bytes_max` bytes. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer, or it is too large.
    pub async fn manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        bytes_max: u64,
    ) -> Result<Manifest, Error> {
        let endpoint = Endpoint::Manifest {
            name: name.clone(),
            reference: reference.clone(),
        };
        let response = self.ask(&Method::GET, &endpoint, None).await?;
        let (response, place) = self.successful(response)?;
        let head = self.manifest_head(response.headers())?;
        if head.size.is_some_and(|size| size > bytes_max) {
            return Err(self.invalid(Fault::TooLarge));
        }
        self.refuse_encoding(response.headers())?;
        let mut body = self.body(response.into_body(), place);
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.next().await? {
            if (bytes.len() + chunk.len()) as u64 > bytes_max {
                return Err(self.invalid(Fault::TooLarge));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Manifest {
            bytes: bytes.freeze(),
            head,
        })
    }

    /// Asks whether there is such a blob, and for its size. A registry that answers HEAD by a redirect (which is signed
    /// for GET), or refuses HEAD though it lets GET through, is asked for the first byte instead when that decides
    /// anything. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer.
    pub async fn head_blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        size_wanted: bool,
    ) -> Result<BlobHead, Error> {
        let endpoint = Endpoint::Blob {
            name: name.clone(),
            digest: *digest,
        };
        let (response, place) = self.ask(&Method::HEAD, &endpoint, None).await?;
        let status = response.status();
        let refused = matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::METHOD_NOT_ALLOWED
        );
        let size = content_length(response.headers());
        if status.is_success() && (size.is_some() || !size_wanted) {
            return Ok(BlobHead { size });
        }
        if status.is_redirection() && !size_wanted {
            return Ok(BlobHead { size: None });
        }
        if !(status.is_success() || status.is_redirection() || refused) {
            return Err(self.failed(&response));
        }
        drop((response, place));
        let answer = self.blob(name, digest, Some((0, Some(1)))).await?;
        Ok(BlobHead { size: answer.size })
    }

    /// Asks for a blob, or a part of it: from an offset, up to an exclusive end if one is given.
    pub(super) async fn blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        part: Option<(u64, Option<u64>)>,
    ) -> Result<BlobAnswer, Error> {
        let endpoint = Endpoint::Blob {
            name: name.clone(),
            digest: *digest,
        };
        let range = part.map(|(from, until)| match until {
            Some(until) => format!("bytes={from}-{}", until.saturating_sub(1)),
            None => format!("bytes={from}-"),
        });
        // The semaphore is never closed.
        let blob_place = Arc::clone(&self.blob_places).acquire_owned().await.ok();
        let response = self.ask(&Method::GET, &endpoint, range.as_deref()).await?;
        let (response, place) = self.successful(response)?;
        self.refuse_encoding(response.headers())?;
        let (begins_at, size) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let content_range =
                text(response.headers(), &CONTENT_RANGE).and_then(ContentRange::parse);
            let (Some(content_range), Some((from, _))) = (content_range, part) else {
                return Err(self.invalid(Fault::Range));
            };
            if content_range.range.start != from {
                return Err(self.invalid(Fault::Range));
            }
            (from, content_range.size)
        } else {
            (0, response.body().size_hint().exact())
        };
        let mut body = self.body(response.into_body(), place);
        body.blob_place = blob_place;
        Ok(BlobAnswer {
            begins_at,
            size,
            body,
        })
    }

    pub(super) fn retried(&self, error: &Error) {
        self.metrics.retried(&self.name, error.retry_reason());
    }

    pub(super) fn invalid(&self, fault: Fault) -> Error {
        Error::Invalid {
            host: self.host.clone(),
            fault,
        }
    }

    /// Sends one request and waits for the head of its response.
    async fn ask(
        &self,
        method: &Method,
        endpoint: &Endpoint,
        range: Option<&str>,
    ) -> Result<(Response<Incoming>, OwnedSemaphorePermit), Error> {
        // The semaphore is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| self.silent(Duration::ZERO))?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = self.uri(endpoint);
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, AGENT);
        // A digest is over the bytes as they are.
        headers.insert(ACCEPT_ENCODING, http::HeaderValue::from_static("identity"));
        if matches!(endpoint, Endpoint::Manifest { .. }) {
            headers.insert(ACCEPT, http::HeaderValue::from_static(MANIFEST_ACCEPT));
        }
        if let Some(range) = range.and_then(|it| http::HeaderValue::from_str(it).ok()) {
            headers.insert(RANGE, range);
        }
        let began = Instant::now();
        let patience = self.config.connect_timeout + self.config.first_byte_timeout;
        let answered = timeout(patience, self.transport.request(request)).await;
        let response = match answered {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(Error::Unreachable {
                host: self.host.clone(),
                source,
            }),
            Err(_) => Err(self.silent(patience)),
        };
        let status = response.as_ref().ok().map(Response::status);
        self.metrics
            .answered(&self.name, endpoint.label(), status, began.elapsed());
        Ok((response?, place))
    }

    fn uri(&self, endpoint: &Endpoint) -> Uri {
        let mut parts = self.config.url.clone().into_parts();
        // An endpoint renders only characters that a path may have.
        parts.path_and_query = endpoint.path().parse().ok();
        Uri::from_parts(parts).unwrap_or_default()
    }

    fn successful(
        &self,
        (response, place): (Response<Incoming>, OwnedSemaphorePermit),
    ) -> Result<(Response<Incoming>, OwnedSemaphorePermit), Error> {
        if matches!(
            response.status(),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT
        ) {
            Ok((response, place))
        } else {
            Err(self.failed(&response))
        }
    }

    fn failed(&self, response: &Response<Incoming>) -> Error {
        let host = self.host.clone();
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Error::Gone { host },
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Error::Refused { host, status }
            }
            status => {
                let seconds = text(response.headers(), &RETRY_AFTER).and_then(|it| it.parse().ok());
                let retry_after = seconds.map(Duration::from_secs);
                Error::Status {
                    host,
                    status,
                    retry_after,
                }
            }
        }
    }

    fn manifest_head(&self, headers: &HeaderMap) -> Result<ManifestHead, Error> {
        let digest = match headers.get(DOCKER_CONTENT_DIGEST) {
            Some(value) => {
                let parsed = value.to_str().ok().and_then(|it| Digest::parse(it).ok());
                Some(parsed.ok_or_else(|| self.invalid(Fault::DigestHeader))?)
            }
            None => None,
        };
        Ok(ManifestHead {
            digest,
            media_type: text(headers, &CONTENT_TYPE).and_then(|it| MediaType::parse(it).ok()),
            size: content_length(headers),
        })
    }

    fn refuse_encoding(&self, headers: &HeaderMap) -> Result<(), Error> {
        match text(headers, &CONTENT_ENCODING) {
            None => Ok(()),
            Some(coding) if coding.eq_ignore_ascii_case("identity") => Ok(()),
            Some(_) => Err(self.invalid(Fault::Encoding)),
        }
    }

    fn body(&self, incoming: Incoming, place: OwnedSemaphorePermit) -> Body {
        Body {
            incoming,
            host: self.host.clone(),
            idle_timeout: self.config.idle_timeout,
            received: self.metrics.bytes_from(&self.name),
            _place: place,
            blob_place: None,
        }
    }

    fn silent(&self, waited: Duration) -> Error {
        Error::Silent {
            host: self.host.clone(),
            waited,
        }
    }
}

impl Body {
    /// The next bytes; `None` is an end that the connection vouches for. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the connection broke, or was silent for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = timeout(self.idle_timeout, self.incoming.frame()).await;
            let frame = match frame {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(source))) => {
                    return Err(Error::Cut {
                        host: self.host.clone(),
                        source,
                    });
                }
                Ok(None) => return Ok(None),
                Err(_) => {
                    let waited = self.idle_timeout;
                    return Err(Error::Silent {
                        host: self.host.clone(),
                        waited,
                    });
                }
            };
            if let Ok(bytes) = frame.into_data() {
                self.received.inc_by(bytes.len() as u64);
                return Ok(Some(bytes));
            }
        }
    }
}

/// How we introduce ourselves.
const AGENT: http::HeaderValue =
    http::HeaderValue::from_static(concat!("layerhold/", env!("CARGO_PKG_VERSION")));

fn text<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.parse().ok()
}
