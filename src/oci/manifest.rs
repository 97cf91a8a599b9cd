//! The little that must be known of a manifest's inside.

use std::borrow::Cow;

use serde::Deserialize;

use super::media_type::MediaType;

/// Bytes that are no manifest.
#[derive(Debug, thiserror::Error)]
#[error("the body is no manifest")]
pub struct InvalidManifest(#[source] Option<serde_json::Error>);

/// What the body says of its own type: a manifest without `mediaType` is fine, since the OCI image spec has it as a
/// SHOULD.
///
/// # Errors
///
/// When the body is not a JSON object, or its type is no media type.
pub fn declared_media_type(bytes: &[u8]) -> Result<Option<MediaType>, InvalidManifest> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head<'a> {
        #[serde(borrow, default)]
        media_type: Option<Cow<'a, str>>,
        #[serde(default)]
        schema_version: Option<u64>,
    }

    // A sequence would do for a struct of one field.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(InvalidManifest(None));
    }
    let head: Head<'_> =
        serde_json::from_slice(bytes).map_err(|error| InvalidManifest(Some(error)))?;
    // Whatever it is labelled: the digest of docker's schema 1 is not that of its bytes.
    if head.schema_version == Some(1) {
        return Err(InvalidManifest(None));
    }
    let parsed = head.media_type.map(|text| MediaType::parse(&text));
    parsed.transpose().map_err(|_| InvalidManifest(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_read_where_there_is_one() {
        let declared = |text: &str| declared_media_type(text.as_bytes());
        let index = "application/vnd.oci.image.index.v1+json";
        let found = declared(&format!(r#" {{"schemaVersion":2,"mediaType":"{index}"}}"#)).unwrap();
        assert_eq!(found.unwrap().as_str(), index);
        assert_eq!(declared(r#"{"schemaVersion":2}"#).unwrap(), None);
        for bad in [
            "",
            "[]",
            r#"["a/b"]"#,
            "<html>",
            r#"{"mediaType":3}"#,
            r#"{"mediaType":"x"}"#,
            "{",
            r#"{"schemaVersion":1}"#,
        ] {
            assert!(declared(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_stack_overflow() {
        let deep = format!(r#"{{"a":{}}}"#, "[".repeat(100_000));
        assert!(declared_media_type(deep.as_bytes()).is_err());
    }
}
