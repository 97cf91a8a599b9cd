//! Purging at the admin port.
//!
//! A browser that an operator has open can reach this port, too, and any web page can make it send a form. So a purge is
//! JSON by its `Content-Type`, which no page can send to another origin without asking first (Fetch, "CORS-safelisted
//! request-header"), and whatever carries an `Origin` is refused.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::cache::{PurgeError, Purged};
use crate::net::Chain;
use crate::oci::{FullReference, InvalidFullReference};
use crate::proxy::Proxy;

/// What was purged, in the order in which it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeReport {
    /// One for each reference.
    pub purged: Vec<PurgedReference>,
}

/// What became of one reference. All counts are zero when nothing of it was stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgedReference {
    /// Its full name, as it is stored: with `library/` where that belongs.
    pub reference: String,
    /// `tag`, `repository` or `digest`.
    pub kind: String,
    /// Tags forgotten.
    pub tags: u64,
    /// Digests that the repository has to be proven to hold again.
    pub grants: u64,
    /// Blobs removed, manifests included.
    pub blobs: u64,
    /// Bytes of all of these on disk; of a blob that is being read, until its last reader is done.
    pub bytes: u64,
}

/// Why a purge is refused, or not complete.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("only POST")]
    Method,
    #[error("requests from web pages are refused")]
    Origin,
    #[error("the Content-Type must be application/json")]
    ContentType,
    #[error("the body is larger than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the body does not come")]
    Silent,
    #[error(
        r#"the body is not {{"reference": "registry/repository:tag"}}, with one reference or a list of them"#
    )]
    Body,
    #[error("{reference:?}")]
    Reference {
        reference: String,
        #[source]
        source: InvalidFullReference,
    },
    #[error("{reference} could not be purged")]
    Incomplete {
        reference: FullReference,
        #[source]
        source: PurgeError,
    },
}

/// The body of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    reference: OneOrMany,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Answers one request.
pub(super) async fn answer(
    proxy: &Arc<Proxy>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    match purge(proxy, request).await {
        Ok(report) => json(StatusCode::OK, serde_json::to_vec(&report)),
        Err(refusal) => {
            let message = serde_json::json!({ "message": Chain(&refusal).to_string() });
            let mut response = json(refusal.status(), serde_json::to_vec(&message));
            if matches!(refusal, Refusal::Method) {
                let allowed = HeaderValue::from_static("POST");
                response.headers_mut().insert(ALLOW, allowed);
            }
            response
        }
    }
}

async fn purge(proxy: &Arc<Proxy>, request: Request<Incoming>) -> Result<PurgeReport, Refusal> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return Err(Refusal::Method);
    }
    if head.headers.contains_key(ORIGIN) {
        return Err(Refusal::Origin);
    }
    if !is_json(&head.headers) {
        return Err(Refusal::ContentType);
    }
    let body = timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let body = match body {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Refusal::TooLarge),
        Ok(Err(_)) => return Err(Refusal::Body),
        Err(_) => return Err(Refusal::Silent),
    };
    let mut report = PurgeReport { purged: Vec::new() };
    for reference in references(&body)? {
        let (purge, purged) = proxy
            .purge(&reference)
            .await
            .map_err(|source| Refusal::Incomplete { reference, source })?;
        let Purged {
            tags,
            grants,
            blobs,
            bytes,
        } = purged;
        report.purged.push(PurgedReference {
            reference: purge.to_string(),
            kind: purge.kind().to_owned(),
            tags,
            grants,
            blobs,
            bytes,
        });
    }
    Ok(report)
}

/// All references of a body, or none when one of them is wrong.
fn references(body: &[u8]) -> Result<Vec<FullReference>, Refusal> {
    let asked: Asked = serde_json::from_slice(body).map_err(|_| Refusal::Body)?;
    let texts = match asked.reference {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    let parsed = texts.iter().map(|text| {
        FullReference::parse(text).map_err(|source| {
            let reference = text.chars().take(REFERENCE_SHOWN_MAX).collect();
            Refusal::Reference { reference, source }
        })
    });
    parsed.collect()
}

/// `application/json`, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let essence = media_type.and_then(|it| it.split(';').next());
    essence.is_some_and(|it| it.trim().eq_ignore_ascii_case("application/json"))
}

fn json(status: StatusCode, body: serde_json::Result<Vec<u8>>) -> Response<Full<Bytes>> {
    // Numbers and strings can always be written.
    let mut body = body.unwrap_or_default();
    body.push(b'\n');
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Silent => StatusCode::REQUEST_TIMEOUT,
            Self::Body | Self::Reference { .. } => StatusCode::BAD_REQUEST,
            Self::Incomplete { source, .. } => match source {
                PurgeError::HandedOver => StatusCode::SERVICE_UNAVAILABLE,
                PurgeError::Disk(_) | PurgeError::Lost(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }
}

/// Some hundred references.
const BODY_BYTES_MAX: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a malformed reference is shown.
const REFERENCE_SHOWN_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_one_reference_or_a_list_of_them() {
        let read = |body: &str| {
            let references = references(body.as_bytes()).map_err(|it| Chain(&it).to_string())?;
            let texts: Vec<String> = references.iter().map(ToString::to_string).collect();
            Ok::<_, String>(texts.join(" "))
        };
        assert_eq!(read(r#"{"reference": "a.io/b:1"}"#).unwrap(), "a.io/b:1");
        let several = r#"{"reference": ["a.io/b", "a.io/c:2"]}"#;
        assert_eq!(read(several).unwrap(), "a.io/b a.io/c:2");
        assert_eq!(read(r#"{"reference": []}"#).unwrap(), "");
        for body in [
            "",
            "[]",
            "{}",
            r#"{"reference": 1}"#,
            r#"{"reference": "a.io/b", "force": true}"#,
        ] {
            let refusal = read(body).unwrap_err();
            assert!(refusal.starts_with("the body is not"), "{body}: {refusal}");
        }
        let refusal = read(r#"{"reference": ["a.io/b", "debian"]}"#).unwrap_err();
        assert!(
            refusal.starts_with(r#""debian": not of the form"#),
            "{refusal}"
        );
    }

    #[test]
    fn only_json_is_json() {
        let is = |text: &'static str| {
            let value = HeaderValue::from_static(text);
            is_json(&HeaderMap::from_iter([(CONTENT_TYPE, value)]))
        };
        assert!(is("application/json") && is("Application/JSON ; charset=utf-8"));
        assert!(
            !is("text/plain") && !is("application/jsonp") && !is("text/plain; application/json")
        );
        assert!(!is_json(&HeaderMap::new()));
    }
}
