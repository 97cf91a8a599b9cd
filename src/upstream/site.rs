//! Asking one place of a registry: the registry itself or a mirror of it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LINK};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::body::{Body, Places};
use super::config::SiteConfig;
use super::credential::Credential;
use super::error::{Error, Fault};
use super::metrics::Metrics;
use super::sender::{Question, Reply, Sender};
use super::transport::TransportError;
use crate::net::ContentRange;
use crate::oci::{
    Algorithm, DOCKER_CONTENT_DIGEST, Digest, Endpoint, MediaType, OCI_FILTERS_APPLIED, Reference,
    RepositoryName, declared_media_type,
};

/// One place of a registry.
#[derive(Debug)]
pub(super) struct Site {
    sender: Sender,
    /// What stands before the names of repositories there.
    prefix: Option<RepositoryName>,
    idle_timeout: Duration,
    parallel_ranges: usize,
    /// How long a place, and then an answer, is waited for where there is somebody else to ask.
    patience: Option<Duration>,
    /// Requests in flight, bodies included.
    places: Arc<Semaphore>,
    /// The part of them that may be blobs, which take long: heads and manifests always find a place.
    blob_places: Arc<Semaphore>,
    /// The part of them that may be waiting for what becomes of callers who have no token yet: some registries keep those waiting
    /// who show a wrong password, and anybody can show one.
    stranger_places: Arc<Semaphore>,
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

/// A manifest as it was received: the bytes are those of the digest, and of the type.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The body.
    pub bytes: Bytes,
    /// The digest that was asked for or announced; where there was neither, the body's.
    pub digest: Digest,
    /// The type, by `Content-Type` and by the body itself.
    pub media_type: MediaType,
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

/// What is known of a blob without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobHead {
    /// The size, when the registry says it.
    pub size: Option<u64>,
}

/// The answer to a GET of a blob, from some offset on.
#[derive(Debug)]
pub(super) struct BlobAnswer {
    /// Where the body begins: the offset that was asked for, or before it; 0 when the registry ignored the range.
    pub(super) begins_at: u64,
    /// Which part the body is, when the registry says that it is one.
    pub(super) range: Option<Range<u64>>,
    /// The size of the whole blob, when the registry says it.
    pub(super) size: Option<u64>,
    /// The strong `ETag`, where there is one: what `If-Range` may name (RFC 9110 §13.1.5).
    pub(super) validator: Option<HeaderValue>,
    pub(super) body: Body,
}

impl Site {
    /// A client for one place, which metrics and logs call `name`; `patience` is for a mirror. Nothing is dialled.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub(super) fn new(
        name: &str,
        config: SiteConfig,
        patience: Option<Duration>,
        metrics: Metrics,
    ) -> Result<Self, TransportError> {
        let requests_max = config.requests_max;
        Ok(Self {
            idle_timeout: config.idle_timeout,
            parallel_ranges: config.parallel_ranges,
            patience,
            prefix: config.prefix.clone(),
            places: Arc::new(Semaphore::new(requests_max)),
            blob_places: Arc::new(Semaphore::new(
                requests_max
                    .saturating_sub((requests_max / 4).max(1))
                    .max(1),
            )),
            stranger_places: Arc::new(Semaphore::new((requests_max / 2).max(1))),
            sender: Sender::new(name, config, patience.is_some(), metrics.clone())?,
            metrics,
        })
    }

    /// The same place, asked as this caller, by tokens that are used for so long at most.
    pub(super) fn as_caller(&self, caller: Option<Credential>, tokens_for: Duration) -> Self {
        Self {
            sender: self.sender.as_caller(caller, tokens_for),
            prefix: self.prefix.clone(),
            idle_timeout: self.idle_timeout,
            parallel_ranges: self.parallel_ranges,
            patience: self.patience,
            places: Arc::clone(&self.places),
            blob_places: Arc::clone(&self.blob_places),
            stranger_places: Arc::clone(&self.stranger_places),
            metrics: self.metrics.clone(),
        }
    }

    /// Asks to be let in, to a repository or as such. Cancel-safe.
    pub(super) async fn log_in(
        &self,
        name: Option<&RepositoryName>,
    ) -> Result<Option<Duration>, Error> {
        let _stranger = self.stranger_place(name).await?;
        let _place = self.place(&self.places).await?;
        self.sender.log_in(name).await
    }

    /// Asks whether there is such a manifest, or one under such a tag, until there is no doubt. Cancel-safe.
    pub(super) async fn vouch_for_manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        bytes_max: u64,
    ) -> Result<(), Error> {
        let head = self.head_manifest(name, reference).await?;
        // Anything else may be somebody's page to log in at.
        if !head.media_type.is_some_and(|it| it.is_manifest()) {
            self.manifest(name, reference, bytes_max).await?;
        }
        Ok(())
    }

    /// When the token was asked for by which a repository is asked now.
    pub(super) fn token_since(&self, name: &RepositoryName) -> Option<Instant> {
        self.sender.token_since(name)
    }

    /// The configured name.
    pub(super) fn name(&self) -> &str {
        self.sender.name()
    }

    /// Where it is, for logs.
    pub(super) fn host(&self) -> &str {
        self.sender.host()
    }

    /// Asks for the head of a manifest. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer.
    pub(super) async fn head_manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, Error> {
        let endpoint = self.there(Endpoint::Manifest {
            name: name.clone(),
            reference: reference.clone(),
        })?;
        let (mut reply, _place) = self.ask(&Question::new(Method::HEAD, &endpoint)).await?;
        // Some registries let GET through and HEAD not: then a GET decides, whose body is dropped.
        if matches!(
            reply.response.status(),
            StatusCode::UNAUTHORIZED | StatusCode::METHOD_NOT_ALLOWED
        ) {
            reply = self
                .answered(&Question::new(Method::GET, &endpoint))
                .await?;
        }
        self.manifest_head(reply.successful()?.response.headers())
    }

    /// Asks for a manifest of at most `bytes_max` bytes. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer, or it is too large, or its bytes are not those of the digest.
    pub(super) async fn manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        bytes_max: u64,
    ) -> Result<Manifest, Error> {
        let endpoint = self.there(Endpoint::Manifest {
            name: name.clone(),
            reference: reference.clone(),
        })?;
        let (reply, place) = self.ask(&Question::new(Method::GET, &endpoint)).await?;
        let reply = reply.successful()?;
        let headers = reply.response.headers();
        self.check_no_page(headers)?;
        let head = self.manifest_head(headers)?;
        if head.size.is_some_and(|size| size > bytes_max) {
            return Err(self.invalid(Fault::TooLarge));
        }
        let (_, body) = self.body(reply, place, None)?;
        let bytes = self.collected(body, bytes_max).await?;
        let verified = verified(bytes, &head, reference);
        verified.map_err(|fault| self.invalid(fault))
    }

    /// Asks for a list of tags or referrers, with this query. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer, or it is too large.
    pub(super) async fn listing(
        &self,
        endpoint: &Endpoint,
        query: &str,
        bytes_max: u64,
    ) -> Result<Listing, Error> {
        let endpoint = self.there(endpoint.clone())?;
        let question = Question {
            query,
            ..Question::new(Method::GET, &endpoint)
        };
        let (reply, place) = self.ask(&question).await?;
        let reply = reply.successful()?;
        let headers = reply.response.headers();
        let media_type = text(headers, &CONTENT_TYPE).and_then(|it| MediaType::parse(it).ok());
        let filters_applied = text(headers, &OCI_FILTERS_APPLIED).map(str::to_owned);
        let next = headers.get_all(LINK).iter().find_map(next_query);
        let (_, body) = self.body(reply, place, None)?;
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
    pub(super) async fn head_blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        size_wanted: bool,
    ) -> Result<BlobHead, Error> {
        let endpoint = self.there(Endpoint::Blob {
            name: name.clone(),
            digest: *digest,
        })?;
        let question = Question {
            follows: false,
            ..Question::new(Method::HEAD, &endpoint)
        };
        let (reply, place) = self.ask(&question).await?;
        let status = reply.response.status();
        let refused = matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::METHOD_NOT_ALLOWED
        );
        let is_encoded = !is_plain(coding(reply.response.headers()));
        let size = plain_length(reply.response.headers());
        if status.is_success() {
            self.check_blob_head(reply.response.headers(), digest)?;
        }
        // Of something encoded, a part says no more about the size than the whole.
        if status.is_success() && (size.is_some() || is_encoded || !size_wanted) {
            return Ok(BlobHead { size });
        }
        if status.is_redirection() && !size_wanted {
            return Ok(BlobHead { size: None });
        }
        if !(status.is_success() || status.is_redirection() || refused) {
            return Err(reply.failure());
        }
        drop((reply, place));
        let first_byte = self.blob(name, digest, Some((0, Some(1))), None);
        let size = match first_byte.await {
            Ok(answer) => answer.size,
            // Only what is empty has no first byte (RFC 9110 §15.5.17).
            Err(Error::Status { status, .. }) if status == StatusCode::RANGE_NOT_SATISFIABLE => {
                Some(0)
            }
            Err(error) => return Err(error),
        };
        Ok(BlobHead { size })
    }

    /// Asks for a blob, or a part of it: from an offset, up to an exclusive end if one is given. With a validator of a former
    /// answer, a part of anything else is not wanted, but the whole.
    pub(super) async fn blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        part: Option<(u64, Option<u64>)>,
        if_range: Option<HeaderValue>,
    ) -> Result<BlobAnswer, Error> {
        let place = self.place(&self.blob_places).await?;
        self.blob_from(place, (name, digest), part, if_range).await
    }

    /// How many parts of a blob are asked for at once.
    pub(super) fn parallel_ranges(&self) -> usize {
        self.parallel_ranges
    }

    /// A place for a part of a blob, unless all are taken: who asks so stands in nobody's way.
    pub(super) fn place_now(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.blob_places).try_acquire_owned().ok()
    }

    /// That all places are taken.
    pub(super) fn busy(&self) -> Error {
        let host = self.host().to_owned();
        Error::Busy { host }
    }

    /// Asks for a part of a blob, in a place that is held already.
    pub(super) async fn blob_part(
        &self,
        place: OwnedSemaphorePermit,
        name: &RepositoryName,
        digest: &Digest,
        part: &Range<u64>,
    ) -> Result<BlobAnswer, Error> {
        let part = Some((part.start, Some(part.end)));
        self.blob_from(place, (name, digest), part, None).await
    }

    async fn blob_from(
        &self,
        blob_place: OwnedSemaphorePermit,
        (name, digest): (&RepositoryName, &Digest),
        part: Option<(u64, Option<u64>)>,
        if_range: Option<HeaderValue>,
    ) -> Result<BlobAnswer, Error> {
        let endpoint = self.there(Endpoint::Blob {
            name: name.clone(),
            digest: *digest,
        })?;
        let range = part.map(|(from, until)| match until {
            Some(until) => format!("bytes={from}-{}", until.saturating_sub(1)),
            None => format!("bytes={from}-"),
        });
        let question = Question {
            range,
            if_range,
            ..Question::new(Method::GET, &endpoint)
        };
        let (reply, place) = self.ask(&question).await?;
        let reply = reply.successful()?;
        let response = &reply.response;
        self.check_blob_head(response.headers(), digest)?;
        let (begins_at, range, size) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let content_range =
                text(response.headers(), &CONTENT_RANGE).and_then(ContentRange::parse);
            let Some(content_range) = content_range else {
                return Err(self.invalid(Fault::Range));
            };
            let (from, _) = part.unwrap_or_default();
            // One that begins before it has what was asked for, too. A part that nobody asked for is a beginning of the
            // whole, as long as it is known where that ends.
            let is_endless = part.is_none() && content_range.size.is_none();
            let begins_at = content_range.range.start;
            if is_endless || begins_at > from || content_range.range.end <= from {
                return Err(self.invalid(Fault::Range));
            }
            (begins_at, Some(content_range.range), content_range.size)
        } else {
            (0, None, response.body().size_hint().exact())
        };
        let validator = response.headers().get(ETAG).filter(|it| is_strong(it));
        let validator = validator.cloned();
        let (is_encoded, body) = self.body(reply, place, Some(blob_place))?;
        // A part of something encoded is no part of the blob, and its size is not the blob's.
        if is_encoded && range.is_some() {
            return Err(self.invalid(Fault::Encoding));
        }
        let size = size.filter(|_| !is_encoded);
        Ok(BlobAnswer {
            begins_at,
            range,
            size,
            validator,
            body,
        })
    }

    pub(super) fn retried(&self, error: &Error) {
        self.metrics.retried(self.name(), error.retry_reason());
    }

    pub(super) fn short(&self) -> Error {
        let host = self.host().to_owned();
        Error::Short { host }
    }

    pub(super) fn invalid(&self, fault: Fault) -> Error {
        Error::Invalid {
            host: self.host().to_owned(),
            fault,
        }
    }

    /// What an endpoint of the registry is here.
    fn there(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        match &self.prefix {
            None => Ok(endpoint),
            Some(prefix) => endpoint
                .under(prefix)
                .ok_or_else(|| self.invalid(Fault::Name)),
        }
    }

    /// Asks from a place among the requests in flight.
    async fn ask(&self, question: &Question<'_>) -> Result<(Reply, OwnedSemaphorePermit), Error> {
        // Whoever is let in is none any more when the answer is there.
        let _stranger = self.stranger_place(question.endpoint.name()).await?;
        let place = self.place(&self.places).await?;
        Ok((self.answered(question).await?, place))
    }

    /// A place for a caller who has no token for this repository; `None` for everybody else, who needs none.
    async fn stranger_place(
        &self,
        name: Option<&RepositoryName>,
    ) -> Result<Option<OwnedSemaphorePermit>, Error> {
        match self.sender.is_stranger(name) {
            true => self.place(&self.stranger_places).await.map(Some),
            false => Ok(None),
        }
    }

    async fn place(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
        let waiting = Arc::clone(places).acquire_owned();
        let place = match self.patience {
            None => waiting.await,
            Some(patience) => match timeout(patience, waiting).await {
                Ok(place) => place,
                Err(_) => return Err(self.busy()),
            },
        };
        // The semaphore is never closed.
        place.map_err(|_| self.busy())
    }

    /// The head of an answer, within the time there is.
    async fn answered(&self, question: &Question<'_>) -> Result<Reply, Error> {
        let asking = self.sender.ask(question);
        let Some(patience) = self.patience else {
            return asking.await;
        };
        timeout(patience, asking)
            .await
            .unwrap_or_else(|_| Err(self.silent(patience)))
    }

    fn silent(&self, waited: Duration) -> Error {
        let host = self.host().to_owned();
        Error::Silent { host, waited }
    }

    fn manifest_head(&self, headers: &HeaderMap) -> Result<ManifestHead, Error> {
        Ok(ManifestHead {
            digest: self.digest_header(headers)?,
            media_type: text(headers, &CONTENT_TYPE).and_then(|it| MediaType::parse(it).ok()),
            size: plain_length(headers),
        })
    }

    /// What a head says of a blob must not contradict its digest, nor be a web page.
    fn check_blob_head(&self, headers: &HeaderMap, digest: &Digest) -> Result<(), Error> {
        let announced = self.digest_header(headers)?;
        // Another algorithm may name the same bytes.
        if announced.is_some_and(|it| it.algorithm() == digest.algorithm() && it != *digest) {
            return Err(self.invalid(Fault::Digest));
        }
        self.check_no_page(headers)
    }

    /// A web page says nothing about the content: somebody stands before the registry.
    fn check_no_page(&self, headers: &HeaderMap) -> Result<(), Error> {
        let media_type = text(headers, &CONTENT_TYPE).unwrap_or_default();
        if media_type.to_ascii_lowercase().starts_with("text/html") {
            return Err(self.invalid(Fault::MediaType));
        }
        Ok(())
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
        reply: Reply,
        request_place: OwnedSemaphorePermit,
        blob_place: Option<OwnedSemaphorePermit>,
    ) -> Result<(bool, Body), Error> {
        let Reply {
            response, heard_of, ..
        } = reply;
        let coding = coding(response.headers());
        let (is_plain, is_gzip) = (is_plain(coding), coding.eq_ignore_ascii_case("gzip"));
        if !is_plain && !is_gzip {
            return Err(self.invalid(Fault::Encoding));
        }
        let places = Places {
            _request: request_place,
            _blob: blob_place,
        };
        let received = self.metrics.bytes_from(self.name());
        let body = Body::new(
            response.into_body(),
            self.host(),
            self.idle_timeout,
            (received, heard_of),
            places,
        );
        Ok((is_gzip, if is_gzip { body.decoded() } else { body }))
    }

    /// A whole body of at most `bytes_max` bytes.
    async fn collected(&self, body: Body, bytes_max: u64) -> Result<Bytes, Error> {
        // What is small has no excuse for taking longer than a large body may be silent.
        let patience = self.patience.unwrap_or(self.idle_timeout);
        let patience = patience.min(self.idle_timeout);
        let collected = timeout(patience, self.collect(body, bytes_max)).await;
        collected.unwrap_or_else(|_| Err(self.silent(patience)))
    }

    async fn collect(&self, mut body: Body, bytes_max: u64) -> Result<Bytes, Error> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.next().await? {
            if (bytes.len() + chunk.len()) as u64 > bytes_max {
                return Err(self.invalid(Fault::TooLarge));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

/// A manifest that is what was asked for, and what its head says it is.
fn verified(bytes: Bytes, head: &ManifestHead, reference: &Reference) -> Result<Manifest, Fault> {
    let digest = match reference {
        Reference::Digest(asked) => {
            // The registry may name the same bytes by another algorithm (distribution-spec, pulling manifests).
            let contradicts = |it: Digest| it.algorithm() == asked.algorithm() && it != *asked;
            if head.digest.is_some_and(contradicts) {
                return Err(Fault::Digest);
            }
            *asked
        }
        Reference::Tag(_) => head
            .digest
            .unwrap_or_else(|| Digest::of(Algorithm::Sha256, &bytes)),
    };
    if Digest::of(digest.algorithm(), &bytes) != digest {
        return Err(Fault::Digest);
    }
    let media_type = media_type_of(&bytes, head.media_type.as_ref())?;
    Ok(Manifest {
        bytes,
        digest,
        media_type,
    })
}

/// The type of a manifest: upstream's word, which must be the body's own where the body says one.
///
/// # Errors
///
/// When they differ, or it is no manifest's type, or of docker's schema 1.
pub fn media_type_of(bytes: &[u8], announced: Option<&MediaType>) -> Result<MediaType, Fault> {
    let declared = declared_media_type(bytes).map_err(|_| Fault::Manifest)?;
    let announced = announced.filter(|it| it.as_str() != GENERIC_JSON);
    if announced
        .into_iter()
        .chain(&declared)
        .any(MediaType::is_schema1)
    {
        return Err(Fault::Schema1);
    }
    match (announced, declared) {
        (Some(announced), Some(declared)) if *announced != declared => Err(Fault::MediaType),
        (Some(announced), _) if announced.is_manifest() => Ok(announced.clone()),
        (None, Some(declared)) if declared.is_manifest() => Ok(declared),
        (Some(_) | None, _) => Err(Fault::MediaType),
    }
}

/// What servers of static files call any JSON: no word at all.
const GENERIC_JSON: &str = "application/json";

/// The query of the `<…?query>; rel="next"` among the links of a field (RFC 8288 §3). Its host and path are not looked at.
fn next_query(field: &HeaderValue) -> Option<String> {
    // Titles are for people to read.
    let text = String::from_utf8_lossy(field.as_bytes());
    let mut rest = text.as_ref();
    while let Some((_, after)) = rest.split_once('<') {
        let (target, after) = after.split_once('>')?;
        let (parameters, following) = split_unquoted(after, ',');
        rest = following;
        if is_next(parameters) {
            return target.split_once('?').map(|(_, query)| query.to_owned());
        }
    }
    None
}

/// Whether a link's first `rel`, which alone counts, names `next` among its relations (RFC 8288 §3.3).
fn is_next(mut parameters: &str) -> bool {
    while !parameters.is_empty() {
        let (parameter, following) = split_unquoted(parameters, ';');
        parameters = following;
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name.trim().eq_ignore_ascii_case("rel") {
            let value = value.trim().trim_matches('"').replace('\\', "");
            let mut relations = value.split_ascii_whitespace();
            return relations.any(|it| it.eq_ignore_ascii_case("next"));
        }
    }
    false
}

/// What is before the first separator that stands in no quoted string (RFC 9110 §5.6.4), and what is behind it.
fn split_unquoted(text: &str, separator: char) -> (&str, &str) {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let found = text.char_indices().find(|(_, character)| {
        let is_end = *character == separator && !is_quoted;
        is_quoted ^= *character == '"' && !is_escaped;
        is_escaped = *character == '\\' && is_quoted && !is_escaped;
        is_end
    });
    match found {
        Some((at, _)) => (&text[..at], &text[at + separator.len_utf8()..]),
        None => (text, ""),
    }
}

/// The length of the content itself; that of something encoded says nothing of it.
fn plain_length(headers: &HeaderMap) -> Option<u64> {
    let length = text(headers, &CONTENT_LENGTH).filter(|_| is_plain(coding(headers)));
    length?.parse().ok()
}

/// Whether an entity tag is strong (RFC 9110 §8.8.3); one that is none is not.
fn is_strong(etag: &HeaderValue) -> bool {
    matches!(etag.as_bytes(), [b'"', .., b'"'])
}

fn coding(headers: &HeaderMap) -> &str {
    let coding = text(headers, &CONTENT_ENCODING).map(str::trim);
    coding.filter(|it| !it.is_empty()).unwrap_or("identity")
}

fn is_plain(coding: &str) -> bool {
    coding.eq_ignore_ascii_case("identity")
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Reads anything without panicking: a field of links. The query of the next page, which is a target's, if any is found.
pub fn fuzz_link(input: &[u8]) -> Option<String> {
    let query = next_query(&HeaderValue::from_bytes(input).ok()?)?;
    let text = String::from_utf8_lossy(input);
    assert!(text.contains(&format!("?{query}>")), "a target has it");
    assert!(!query.contains('>'), "a target ends");
    Some(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_where_the_link_of_that_name_leads() {
        for (field, expected) in [
            (
                r#"</v2/a/tags/list?last=1&n=2>; rel="next""#,
                Some("last=1&n=2"),
            ),
            ("<?n=1>;REL=NEXT", Some("n=1")),
            (
                r#"</a?b>; rel="prev", </c?d,e>; rel="last next""#,
                Some("d,e"),
            ),
            // Separators in quotes separate nothing, and what looks like a link there is none.
            (r#"</a?b>; title="x, y; \"z\""; rel=next"#, Some("b")),
            (r#"</a?b>; title=", <c?d>; rel=next"; rel=prev"#, None),
            ("</a?b>; title=\"Seite f\u{fc}nf\"; rel=next", Some("b")),
            ("</a?b>; rel=prev; rel=next", None),
            ("</a>; rel=next", None),
            ("</a?b>", None),
            ("</a?b; rel=next", None),
            ("", None),
        ] {
            let value = HeaderValue::from_bytes(field.as_bytes()).unwrap();
            assert_eq!(next_query(&value).as_deref(), expected, "{field}");
        }
    }
}
