//! Media types, and which of them are manifests.

use std::fmt;
use std::sync::Arc;

/// A media type without parameters, in lower case (RFC 9110 §8.3.1).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MediaType(Arc<str>);

/// A text that is no media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the media type is malformed")]
pub struct InvalidMediaType;

impl MediaType {
    /// Parses a `Content-Type`, whose parameters do not matter here.
    ///
    /// # Errors
    ///
    /// When it is not two tokens with a slash between them.
    pub fn parse(text: &str) -> Result<Self, InvalidMediaType> {
        let text = text.split(';').next().unwrap_or_default().trim();
        let (kind, subtype) = text.split_once('/').ok_or(InvalidMediaType)?;
        let valid = text.len() <= BYTES_MAX && is_token(kind) && is_token(subtype);
        if valid {
            Ok(Self(text.to_ascii_lowercase().into()))
        } else {
            Err(InvalidMediaType)
        }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is one of the manifests that we ask for.
    pub fn is_manifest(&self) -> bool {
        self.as_manifest().is_some()
    }

    /// The same type, written down in the program, where this is one of the manifests that we ask for.
    pub fn as_manifest(&self) -> Option<&'static str> {
        MANIFESTS.into_iter().find(|it| *it == self.as_str())
    }

    /// Whether this is docker's schema 1, whose digest is not that of its bytes.
    pub fn is_schema1(&self) -> bool {
        self.0
            .starts_with("application/vnd.docker.distribution.manifest.v1+")
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const MANIFESTS: [&str; 5] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.artifact.manifest.v1+json",
];

/// The one `Accept` with which manifests are asked for. Registries convert or deny what a client does not accept, and what
/// is stored must not hang on who asked first.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json";

const BYTES_MAX: usize = 255;

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_do_not_matter() {
        let parsed = MediaType::parse(" Application/JSON; charset=utf-8").unwrap();
        assert_eq!(parsed.as_str(), "application/json");
        for bad in ["", "a", "a/", "/b", "a b/c", "a/b/c"] {
            assert_eq!(MediaType::parse(bad), Err(InvalidMediaType), "{bad:?}");
        }
    }

    #[test]
    fn every_manifest_is_asked_for() {
        assert_eq!(MANIFEST_ACCEPT, MANIFESTS.join(", "));
        assert!(
            MANIFESTS
                .iter()
                .all(|it| MediaType::parse(it).unwrap().is_manifest())
        );
        let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(MediaType::parse(schema1).unwrap().is_schema1());
        assert!(!MANIFEST_ACCEPT.contains("v1+prettyjws"));
    }
}
