//! Conditional requests (RFC 9110 §13), for content whose entity tag is strong.

use http::HeaderMap;
use http::header::{IF_NONE_MATCH, IF_RANGE};

/// Whether the client has what it asks for: then the answer is 304 (RFC 9110 §13.1.2). `etag` is quoted.
pub fn none_match(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|it| it.to_str().ok())
        .any(|text| {
            // A tag may have commas in it, so a star between two of them need not stand for all.
            text.trim() == "*"
                || text.split(',').map(str::trim).any(|tag| {
                    // The comparison is a weak one: the prefix does not matter.
                    tag.strip_prefix("W/").unwrap_or(tag) == etag
                })
        })
}

/// Whether a `Range` counts: without `If-Range` always, with it only when it names this very content. A date never does,
/// since content under a digest has none (RFC 9110 §13.1.5). `etag` is quoted.
pub fn if_range_allows(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get(IF_RANGE)
        .is_none_or(|value| value.as_bytes() == etag.as_bytes())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_the_client_has_is_recognized() {
        let cases = [
            (r#""a""#, true),
            (r#"W/"a""#, true),
            (r#""b", "a""#, true),
            ("*", true),
            (" * ", true),
            (r#"",*,""#, false),
            (r#""b,", "a""#, true),
            (r#""b""#, false),
            ("a", false),
            ("", false),
        ];
        for (text, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, HeaderValue::from_static(text));
            assert_eq!(none_match(&headers, r#""a""#), expected, "{text}");
        }
        assert!(!none_match(&HeaderMap::new(), r#""a""#));
    }

    #[test]
    fn a_range_counts_for_this_content_alone() {
        let cases = [
            (r#""a""#, true),
            (r#"W/"a""#, false),
            (r#""b""#, false),
            ("Mon, 23 Nov 2026 00:00:00 GMT", false),
        ];
        for (text, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(IF_RANGE, HeaderValue::from_static(text));
            assert_eq!(if_range_allows(&headers, r#""a""#), expected, "{text}");
        }
        assert!(if_range_allows(&HeaderMap::new(), r#""a""#));
    }
}
