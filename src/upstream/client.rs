//! Asking one registry.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK,
    RANGE, RETRY_AFTER, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::body::{Body, Places};
use super::config::Config;
use super::error::{Error, Fault};
use super::metrics::Metrics;
use super::transport::{self, Transport, TransportError};
use crate::net::ContentRange;
use crate::oci::{
    DOCKER_CONTENT_DIGEST, Digest, Endpoint, MANIFEST_ACCEPT, MediaType, OCI_FILTERS_APPLIED,
    Reference, RepositoryName,
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
    /// Until when the registry asked not to be asked.
    rest_until: Mutex<Option<Instant>>,
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

/// A list of tags or referrers as it was received.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The body.
    pub bytes: Bytes,
    /// `Content-Type`.
    pub media_type: Option<MediaType>,
    /// The query of the next page, from `Link`.
    pub next: Option<String>,
    /// `OCI-Filters-Applied`.
    pub filters_applied: Option<String>,
}

/// What of a request is not in its endpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Asked<'a> {
    range: Option<&'a str>,
    /// Rendered.
    query: &'a str,
}

/// What is known of a blob without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobHead {
    /// The size, when the registry says it.
    pub size: Option<u64>,
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
            rest_until: Mutex::new(None),
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
        let response = self.ask(&Method::HEAD, &endpoint, Asked::default()).await?;
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
        let response = self.ask(&Method::GET, &endpoint, Asked::default()).await?;
        let (response, place) = self.successful(response)?;
        let head = self.manifest_head(response.headers())?;
        if head.size.is_some_and(|size| size > bytes_max) {
            return Err(self.invalid(Fault::TooLarge));
        }
        let (_, body) = self.body(response, place, None)?;
        let bytes = self.collected(body, bytes_max).await?;
        Ok(Manifest { bytes, head })
    }

    /// Asks for a list of tags or referrers, with this query. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer, or it is too large.
    pub async fn listing(
        &self,
        endpoint: &Endpoint,
        query: &str,
        bytes_max: u64,
    ) -> Result<Listing, Error> {
        let asked = Asked {
            query,
            ..Asked::default()
        };
        let response = self.ask(&Method::GET, endpoint, asked).await?;
        let (response, place) = self.successful(response)?;
        let headers = response.headers();
        let media_type = text(headers, &CONTENT_TYPE).and_then(|it| MediaType::parse(it).ok());
        let filters_applied = text(headers, &OCI_FILTERS_APPLIED).map(str::to_owned);
        let next = headers.get_all(LINK).iter().find_map(next_query);
        let (_, body) = self.body(response, place, None)?;
        Ok(Listing {
            bytes: self.collected(body, bytes_max).await?,
            media_type,
            next,
            filters_applied,
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
        let (response, place) = self.ask(&Method::HEAD, &endpoint, Asked::default()).await?;
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
        let asked = Asked {
            range: range.as_deref(),
            ..Asked::default()
        };
        let response = self.ask(&Method::GET, &endpoint, asked).await?;
        let (response, place) = self.successful(response)?;
        let announced = self.digest_header(response.headers())?;
        // Another algorithm may name the same bytes.
        if announced.is_some_and(|it| it.algorithm() == digest.algorithm() && it != *digest) {
            return Err(self.invalid(Fault::Digest));
        }
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
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        let (is_encoded, body) = self.body(response, place, blob_place)?;
        // A part of something encoded is no part of the blob, and its size is not the blob's.
        if is_encoded && is_part {
            return Err(self.invalid(Fault::Encoding));
        }
        let size = size.filter(|_| !is_encoded);
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

    /// Sends one request and waits for the head of its response. A connection that breaks before that is tried once more:
    /// a pooled one may have been closed under us.
    async fn ask(
        &self,
        method: &Method,
        endpoint: &Endpoint,
        asked: Asked<'_>,
    ) -> Result<(Response<Incoming>, OwnedSemaphorePermit), Error> {
        // The semaphore is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| self.silent(Duration::ZERO))?;
        let error = match self.ask_once(method, endpoint, asked).await {
            Ok(response) => return Ok((response, place)),
            Err(error) => error,
        };
        let broke = matches!(&error, Error::Unreachable { source, .. } if !source.is_connect());
        if !broke {
            return Err(error);
        }
        self.retried(&error);
        tokio::time::sleep(RETRY_PAUSE.mul_f64(rand::random_range(0.5..1.0))).await;
        let response = self.ask_once(method, endpoint, asked).await?;
        Ok((response, place))
    }

    async fn ask_once(
        &self,
        method: &Method,
        endpoint: &Endpoint,
        asked: Asked<'_>,
    ) -> Result<Response<Incoming>, Error> {
        self.check_rest()?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = self.uri(endpoint, asked.query);
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, AGENT);
        // A digest is over the bytes as they are.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if matches!(endpoint, Endpoint::Manifest { .. }) {
            headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_ACCEPT));
        }
        if let Some(range) = asked.range.and_then(|it| HeaderValue::from_str(it).ok()) {
            headers.insert(RANGE, range);
        }
        let began = Instant::now();
        let patience = self.config.connect_timeout + self.config.first_byte_timeout;
        let response = match timeout(patience, self.transport.request(request)).await {
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
        if let Ok(response) = &response {
            self.note_limits(response);
        }
        response
    }

    /// What the answer says of how much more we may ask.
    fn note_limits(&self, response: &Response<Incoming>) {
        // `76;w=21600`: so many within so many seconds (Docker Hub, "Pull rate limit").
        let remaining = text(response.headers(), &RATELIMIT_REMAINING)
            .and_then(|it| it.split(';').next()?.trim().parse().ok());
        if let Some(remaining) = remaining {
            self.metrics.quota(&self.name, remaining);
        }
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            let told = retry_after(response.headers()).unwrap_or(REST_DEFAULT);
            *self.rest_until.lock() = Some(Instant::now() + told.min(REST_MAX));
        }
    }

    /// A registry that asked for a pause gets it: until then we answer ourselves what it answered.
    fn check_rest(&self) -> Result<(), Error> {
        let until = *self.rest_until.lock();
        let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
        match rest.filter(|rest| !rest.is_zero()) {
            None => Ok(()),
            Some(rest) => Err(Error::Status {
                host: self.host.clone(),
                status: StatusCode::TOO_MANY_REQUESTS,
                retry_after: Some(rest),
            }),
        }
    }

    fn uri(&self, endpoint: &Endpoint, query: &str) -> Uri {
        let mut parts = self.config.url.clone().into_parts();
        // An endpoint renders only characters that a path may have, and a query comes rendered.
        let (path, mark) = (endpoint.path(), if query.is_empty() { "" } else { "?" });
        parts.path_and_query = format!("{path}{mark}{query}").parse().ok();
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
                let retry_after = retry_after(response.headers());
                Error::Status {
                    host,
                    status,
                    retry_after,
                }
            }
        }
    }

    fn manifest_head(&self, headers: &HeaderMap) -> Result<ManifestHead, Error> {
        Ok(ManifestHead {
            digest: self.digest_header(headers)?,
            media_type: text(headers, &CONTENT_TYPE).and_then(|it| MediaType::parse(it).ok()),
            size: content_length(headers).filter(|_| text(headers, &CONTENT_ENCODING).is_none()),
        })
    }

    fn digest_header(&self, headers: &HeaderMap) -> Result<Option<Digest>, Error> {
        let Some(value) = headers.get(DOCKER_CONTENT_DIGEST) else {
            return Ok(None);
        };
        let parsed = value.to_str().ok().and_then(|it| Digest::parse(it).ok());
        parsed
            .map(Some)
            .ok_or_else(|| self.invalid(Fault::DigestHeader))
    }

    /// The body, taken out of a content coding that we did not ask for, and whether there was one.
    fn body(
        &self,
        response: Response<Incoming>,
        request_place: OwnedSemaphorePermit,
        blob_place: Option<OwnedSemaphorePermit>,
    ) -> Result<(bool, Body), Error> {
        let coding = text(response.headers(), &CONTENT_ENCODING).unwrap_or("identity");
        let (is_plain, is_gzip) = (
            coding.eq_ignore_ascii_case("identity"),
            coding.eq_ignore_ascii_case("gzip"),
        );
        if !is_plain && !is_gzip {
            return Err(self.invalid(Fault::Encoding));
        }
        let places = Places {
            _request: request_place,
            _blob: blob_place,
        };
        let received = self.metrics.bytes_from(&self.name);
        let body = Body::new(
            response.into_body(),
            &self.host,
            self.config.idle_timeout,
            received,
            places,
        );
        Ok((is_gzip, if is_gzip { body.decoded() } else { body }))
    }

    /// A whole body of at most `bytes_max` bytes.
    async fn collected(&self, mut body: Body, bytes_max: u64) -> Result<Bytes, Error> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.next().await? {
            if (bytes.len() + chunk.len()) as u64 > bytes_max {
                return Err(self.invalid(Fault::TooLarge));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    fn silent(&self, waited: Duration) -> Error {
        Error::Silent {
            host: self.host.clone(),
            waited,
        }
    }
}

/// How we introduce ourselves.
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("layerhold/", env!("CARGO_PKG_VERSION")));

const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
/// The pause before the one retry of a request whose connection broke; half of it is left to chance.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The rest that a registry gets which says 429 and not for how long, and the longest that it gets.
const REST_DEFAULT: Duration = Duration::from_secs(5);
const REST_MAX: Duration = Duration::from_secs(300);
const NEXT_BYTES_MAX: usize = 2048;

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A number of seconds; nobody in the field sends the other form, a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, &RETRY_AFTER)?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The query of `<…?query>; rel="next"` (RFC 8288 §3). Its host and path are not looked at.
fn next_query(link: &HeaderValue) -> Option<String> {
    let (target, parameters) = link.to_str().ok()?.strip_prefix('<')?.split_once('>')?;
    let (_, query) = target.split_once('?')?;
    let is_next = parameters.contains("rel=\"next\"") || parameters.contains("rel=next");
    (is_next && query.len() <= NEXT_BYTES_MAX).then(|| query.to_owned())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.parse().ok()
}
