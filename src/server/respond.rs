//! Answers and errors as responses. Every header is set here.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, HeaderValue, LINK, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, Response, StatusCode, Version};
use tokio::time::Instant;

use super::access::{Challenge, Issued, Refusal};
use super::body::ResponseBody;
use super::multipart::{Multipart, RANGES_MAX, part_of};
use crate::net::{ContentRange, RangeSet, Resolved, if_range_allows, none_match, unsatisfied};
use crate::oci::{
    DOCKER_CONTENT_DIGEST, DOCKER_DISTRIBUTION_API_VERSION, ErrorCode, MediaType,
    OCI_FILTERS_APPLIED, error_body,
};
use crate::proxy::{Answer, Body, Content, Error, Listing, Method, Outcome, RequestFault};

/// What of a request shapes the response to content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) method: Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) version: Version,
    /// When the head must go out.
    pub(super) deadline: Instant,
}

/// Makes the response to a pull of what is in memory, for a bench; gives how many fields its head has.
pub fn bench_response(content: Content, headers: &HeaderMap) -> usize {
    let wanted = Wanted {
        method: Method::Get,
        headers,
        version: Version::HTTP_11,
        deadline: Instant::now(),
    };
    let response = answer_in_memory(Answer::Content(content), wanted);
    response.headers().len()
}

/// The answer to a HEAD: everything but the body, whose length is still said (RFC 9110 §9.3.2).
pub(super) fn without_body(response: Response<ResponseBody>) -> Response<ResponseBody> {
    let (mut head, body) = response.into_parts();
    if let Some(length) = http_body::Body::size_hint(&body).exact()
        && length > 0
        && !head.headers.contains_key(CONTENT_LENGTH)
    {
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(head, ResponseBody::empty())
}

/// What part of the content goes out.
enum Part {
    Nothing(StatusCode),
    Whole,
    Range(Range<u64>),
    Several(Multipart),
}

/// The response to a pull.
pub(super) async fn answer(
    answer: Answer,
    wanted: Wanted<'_>,
) -> Result<Response<ResponseBody>, Error> {
    match answer {
        Answer::Content(content) => self::content(content, wanted).await,
        answer @ (Answer::Pong | Answer::Listing(_)) => Ok(answer_in_memory(answer, wanted)),
    }
}

/// The response to a pull whose content, if it has any, is in memory.
pub(super) fn answer_in_memory(answer: Answer, wanted: Wanted<'_>) -> Response<ResponseBody> {
    match answer {
        Answer::Pong => pong(),
        Answer::Listing(listing) => self::listing(listing, wanted.method),
        Answer::Content(content) => {
            let etag = content.digest.quoted();
            let part = part(wanted, &etag, &content);
            of_part(content, etag, part)
        }
    }
}

/// The response to a pull that has no content. Fixed sentences and the operator's own rules only: hosts, paths and causes are
/// for the log.
pub(super) fn error(error: &Error, namespace: Option<&str>) -> Response<ResponseBody> {
    let code = error.code();
    let (fixed, told) = (
        code.map_or(UPSTREAM_FAILED, ErrorCode::message),
        error.told(),
    );
    let body = error_body(code, told.as_deref().unwrap_or(fixed));
    let mut response = Response::new(ResponseBody::memory(body.into()));
    *response.status_mut() = error.status();
    let headers = response.headers_mut();
    registry_headers(headers);
    headers.insert(CONTENT_TYPE, JSON);
    if let Some(after) = error.retry_after() {
        set(headers, RETRY_AFTER, &seconds(after));
    }
    if matches!(error, Error::Request(RequestFault::Method)) {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    // What comes behind a write is its body, which nobody wants; and behind a request that can be read in two ways, who
    // knows.
    if let Error::Request(RequestFault::Method | RequestFault::Host(_) | RequestFault::Framing(_)) =
        error
    {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if error.status() == StatusCode::UNAUTHORIZED {
        // Ours, never upstream's own: what that names is no place to send a client's credentials.
        let challenge = format!("Basic realm=\"{}\"", namespace.unwrap_or("layerhold"));
        headers.extend(
            HeaderValue::from_str(&challenge)
                .ok()
                .map(|it| (WWW_AUTHENTICATE, it)),
        );
    }
    response
}

/// The response to who may not, or has not shown that they may.
pub(super) fn refusal(refusal: &Refusal) -> Response<ResponseBody> {
    let body = error_body(Some(refusal.code()), &refusal.message());
    let mut response = Response::new(ResponseBody::memory(body.into()));
    *response.status_mut() = refusal.status();
    let headers = response.headers_mut();
    registry_headers(headers);
    headers.insert(CONTENT_TYPE, JSON);
    if let Some(challenge) = refusal.challenge() {
        set(headers, WWW_AUTHENTICATE, &challenge.to_string());
    }
    if let Some(after) = refusal.retry_after() {
        set(headers, RETRY_AFTER, &seconds(after));
    }
    if *refusal == Refusal::Method {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        // What comes behind it is its body, which nobody wants.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What somebody has to show who was refused.
pub(super) fn challenge(response: &mut Response<ResponseBody>, challenge: &Challenge) {
    let value = HeaderValue::from_str(&challenge.to_string()).ok();
    if let Some(value) = value {
        response.headers_mut().insert(WWW_AUTHENTICATE, value);
    }
}

/// The response that hands out a token. Nobody on the way keeps it.
pub(super) fn token(issued: &Issued) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::memory(issued.body().into()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The response when a request's code panicked.
pub(super) fn panicked() -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::memory(
        error_body(None, "the proxy failed").into(),
    ));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn pong() -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::memory("{}".into()));
    registry_headers(response.headers_mut());
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn listing(listing: Listing, method: Method) -> Response<ResponseBody> {
    let Listing {
        bytes,
        media_type,
        link,
        filters_applied,
        outcome,
    } = listing;
    let length = bytes.len();
    let body = match method {
        Method::Get => ResponseBody::memory(bytes),
        Method::Head => ResponseBody::empty(),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    registry_headers(headers);
    set(headers, CACHE_STATUS, outcome.cache_status());
    let media_type = media_type
        .as_ref()
        .map_or("application/json", MediaType::as_str);
    set(headers, CONTENT_TYPE, media_type);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(link) = link {
        set(headers, LINK, &link);
    }
    if let Some(filters) = filters_applied {
        set(headers, OCI_FILTERS_APPLIED, &filters);
    }
    response
}

async fn content(
    mut content: Content,
    wanted: Wanted<'_>,
) -> Result<Response<ResponseBody>, Error> {
    if let (Body::Stream(stream), None, Version::HTTP_10) =
        (&mut content.body, content.size, wanted.version)
    {
        // No length and no chunks: a connection that just ends would be the only end, so it must be the right one.
        content.size = Some(stream.verified().await?);
    }
    let etag = content.digest.quoted();
    let part = part(wanted, &etag, &content);
    if content.outcome == Outcome::Bypass {
        content.body = begun(content.body, &part, wanted.deadline).await?;
    }
    Ok(of_part(content, etag, part))
}

/// The response with this part of content.
fn of_part(content: Content, etag: String, part: Part) -> Response<ResponseBody> {
    let Content {
        digest: _,
        media_type,
        size,
        outcome,
        body,
    } = content;
    let mut response = Response::new(ResponseBody::empty());
    let headers = response.headers_mut();
    headers.reserve(HEADERS);
    registry_headers(headers);
    let etag = Bytes::from(etag);
    let digest = etag.slice(1..etag.len() - 1);
    set_shared(headers, DOCKER_CONTENT_DIGEST, digest);
    set_shared(headers, ETAG, etag);
    let cache_status = HeaderValue::from_static(outcome.cache_status());
    headers.insert(CACHE_STATUS, cache_status);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let (status, length) = match &part {
        Part::Nothing(StatusCode::RANGE_NOT_SATISFIABLE) => {
            set(
                headers,
                CONTENT_RANGE,
                &unsatisfied(size.unwrap_or_default()),
            );
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(0))
        }
        Part::Nothing(status) => (*status, None),
        Part::Whole => {
            headers.extend(content_type(media_type.as_ref()));
            (StatusCode::OK, size)
        }
        Part::Range(range) => {
            headers.extend(content_type(media_type.as_ref()));
            let content_range = ContentRange {
                range: range.clone(),
                size,
            };
            set(headers, CONTENT_RANGE, &content_range.to_string());
            (StatusCode::PARTIAL_CONTENT, Some(range.end - range.start))
        }
        // Here it is the parts that say where they are (RFC 9110 §15.3.7.2).
        Part::Several(multipart) => {
            set(headers, CONTENT_TYPE, &multipart.content_type());
            (StatusCode::PARTIAL_CONTENT, Some(multipart.length()))
        }
    };
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    *response.status_mut() = status;
    *response.body_mut() = cut(body, part, length);
    response
}

/// What goes out of content with this entity tag: RFC 9110 §13.2.2, steps 3 and 5.
fn part(wanted: Wanted<'_>, etag: &str, content: &Content) -> Part {
    if none_match(wanted.headers, etag) {
        return Part::Nothing(StatusCode::NOT_MODIFIED);
    }
    let (Method::Get, Some(ranges), Some(size)) =
        (wanted.method, ranges(wanted.headers), content.size)
    else {
        return Part::Whole;
    };
    if !if_range_allows(wanted.headers, etag) {
        return Part::Whole;
    }
    match ranges.resolve(size) {
        Resolved::Part(range) => Part::Range(range),
        Resolved::Parts(ranges) => {
            let media_type = content.media_type.as_ref();
            let media_type = media_type.map_or(OCTET_STREAM, MediaType::as_str);
            Part::Several(Multipart::new(ranges, size, media_type))
        }
        Resolved::Whole => Part::Whole,
        Resolved::Unsatisfiable => Part::Nothing(StatusCode::RANGE_NOT_SATISFIABLE),
    }
}

/// Whether more ranges are asked for than are ever answered.
pub(super) fn asks_too_many_ranges(headers: &HeaderMap) -> bool {
    ranges(headers).is_some_and(|it| it.count() > RANGES_MAX)
}

fn ranges(headers: &HeaderMap) -> Option<RangeSet> {
    RangeSet::parse(headers.get(RANGE)?.to_str().ok()?)
}

/// What goes around the cache begins before its head promises anything: what upstream says of it can then be answered.
async fn begun(body: Body, part: &Part, deadline: Instant) -> Result<Body, Error> {
    let mut stream = match (body, part) {
        (Body::Stream(stream), Part::Whole) => *stream,
        (Body::Stream(stream), Part::Range(range)) => stream.part(range.start, range.end),
        (Body::Stream(stream), Part::Several(multipart)) => stream.parts(multipart.parts()),
        (body, _) => return Ok(body),
    };
    stream.begin(deadline).await?;
    Ok(Body::Stream(Box::new(stream)))
}

fn cut(body: Body, part: Part, length: Option<u64>) -> ResponseBody {
    match (body, part) {
        (Body::None, _) | (_, Part::Nothing(_)) => ResponseBody::empty(),
        (Body::Memory(bytes), Part::Whole) => ResponseBody::memory(bytes),
        (Body::Memory(bytes), Part::Range(range)) => ResponseBody::memory(part_of(&bytes, &range)),
        (Body::Memory(bytes), Part::Several(multipart)) => multipart.of_memory(bytes),
        (Body::Stream(stream), Part::Whole) => ResponseBody::content(*stream, length),
        (Body::Stream(stream), Part::Range(range)) => {
            ResponseBody::content(stream.part(range.start, range.end), length)
        }
        (Body::Stream(stream), Part::Several(multipart)) => multipart.of_stream(*stream),
    }
}

/// How long to wait, in whole seconds: a part of one is one more, and none would be at once.
fn seconds(after: Duration) -> String {
    after.as_millis().div_ceil(1000).max(1).to_string()
}

/// By which clients know a registry, on every answer.
fn registry_headers(headers: &mut HeaderMap) {
    headers.insert(
        DOCKER_DISTRIBUTION_API_VERSION,
        HeaderValue::from_static("registry/2.0"),
    );
}

/// What the bytes are; of manifests that we ask for without a copy.
fn content_type(media_type: Option<&MediaType>) -> Option<(HeaderName, HeaderValue)> {
    let value = match media_type {
        None => HeaderValue::from_static(OCTET_STREAM),
        Some(media_type) => match media_type.as_manifest() {
            Some(manifest) => HeaderValue::from_static(manifest),
            None => HeaderValue::from_str(media_type.as_str()).ok()?,
        },
    };
    Some((CONTENT_TYPE, value))
}

/// As [`set`] does, without a copy.
fn set_shared(headers: &mut HeaderMap, name: HeaderName, text: Bytes) {
    let value = HeaderValue::from_maybe_shared(text).ok();
    headers.extend(value.map(|value| (name, value)));
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    // Everything rendered here is of visible characters.
    headers.extend(HeaderValue::from_str(text).ok().map(|value| (name, value)));
}

/// As many as a response with content has, and those that are added to it on its way.
const HEADERS: usize = 10;
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTET_STREAM: &str = "application/octet-stream";
const UPSTREAM_FAILED: &str = "the upstream registry could not be asked";
