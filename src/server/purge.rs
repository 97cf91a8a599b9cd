//! Purging at the admin port.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use super::asked::{self, NoOrder};
use crate::cache::{PurgeError, Purged};
use crate::net::{Chain, from_json_object};
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
    #[error(transparent)]
    NoOrder(#[from] NoOrder),
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
        Ok(report) => asked::json(StatusCode::OK, serde_json::to_vec(&report)),
        Err(refusal) => asked::refusal(refusal.status(), &Chain(&refusal).to_string()),
    }
}

async fn purge(proxy: &Arc<Proxy>, request: Request<Incoming>) -> Result<PurgeReport, Refusal> {
    let body = asked::order(request).await?;
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
    let asked: Asked = from_json_object(body).ok_or(Refusal::Body)?;
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

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoOrder(no_order) => no_order.status(),
            Self::Body | Self::Reference { .. } => StatusCode::BAD_REQUEST,
            Self::Incomplete { source, .. } => match source {
                PurgeError::HandedOver => StatusCode::SERVICE_UNAVAILABLE,
                PurgeError::Disk(_) | PurgeError::Lost(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }
}

/// How much of a malformed reference is shown.
const REFERENCE_SHOWN_MAX: usize = 300;

/// Reads the body of any request without panicking; what is accepted is an object, and reads the same when it is rendered.
/// Whether it is.
pub fn fuzz_purge_order(input: &[u8]) -> bool {
    match references(input) {
        Ok(references) => {
            assert!(
                input.trim_ascii().starts_with(b"{"),
                "an order is an object"
            );
            let texts: Vec<String> = references.iter().map(ToString::to_string).collect();
            let body = serde_json::json!({ "reference": texts }).to_string();
            assert_eq!(self::references(body.as_bytes()).ok(), Some(references));
            true
        }
        Err(refusal) => {
            let message = Chain(&refusal).to_string();
            let is_short = message.len() <= REFERENCE_SHOWN_MAX * MESSAGE_GROWTH;
            assert!(!message.contains(char::is_control) && is_short, "one line");
            false
        }
    }
}

/// A character that is shown may be written as `\u{10ffff}`.
const MESSAGE_GROWTH: usize = 16;

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
            r#"["a.io/b"]"#,
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
}
