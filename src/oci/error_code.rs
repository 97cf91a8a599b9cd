//! Errors as registries say them (distribution-spec, "Error Codes").

use serde::Serialize;

/// A code of the distribution spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// code-1
    BlobUnknown,
    /// code-4
    DigestInvalid,
    /// code-7
    ManifestUnknown,
    /// code-8
    NameInvalid,
    /// code-9
    NameUnknown,
    /// code-11
    Unauthorized,
    /// code-12
    Denied,
    /// code-13
    Unsupported,
    /// code-14
    TooManyRequests,
}

impl ErrorCode {
    /// As it stands in a body.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
        }
    }

    /// The fixed sentence that goes with it.
    pub const fn message(self) -> &'static str {
        match self {
            Self::BlobUnknown => "the upstream registry has no such blob in this repository",
            Self::DigestInvalid => "the digest is malformed or its algorithm is not supported",
            Self::ManifestUnknown => {
                "the upstream registry has no such manifest in this repository"
            }
            Self::NameInvalid => "the repository name, tag or namespace is malformed",
            Self::NameUnknown => "no such repository, or no upstream registry for this namespace",
            Self::Unauthorized => "the upstream registry asks for credentials",
            Self::Denied => "the upstream registry denies access",
            Self::Unsupported => "this is a pull-through cache: only pulling is supported",
            Self::TooManyRequests => "too many requests, try again later",
        }
    }
}

/// An error body with one error in it. Where the spec has no code for a cause there is none.
pub fn error_body(code: Option<ErrorCode>, message: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        errors: [Entry<'a>; 1],
    }
    #[derive(Serialize)]
    struct Entry<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<&'static str>,
        message: &'a str,
    }

    let entry = Entry {
        code: code.map(ErrorCode::as_str),
        message,
    };
    // Texts always serialize.
    serde_json::to_vec(&Body { errors: [entry] }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_form_of_the_spec() {
        let body = error_body(Some(ErrorCode::BlobUnknown), "a \"b\"");
        let expected = r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"a \"b\""}]}"#;
        assert_eq!(String::from_utf8(body).unwrap(), expected);
        assert_eq!(error_body(None, "x"), br#"{"errors":[{"message":"x"}]}"#);
    }
}
