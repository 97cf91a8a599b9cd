//! The host that a request is for.

use std::net::Ipv6Addr;

use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Uri, Version};

/// A request that does not say for which host it is, or says so twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Host is missing, there twice, or no host")]
pub struct InvalidHost;

/// The host that a request names in its target or else in its `Host` field; `None` where it need not name one and does
/// not.
///
/// # Errors
///
/// When `Host` is missing from a request of HTTP/1.1, comes twice, holds what is no host, or in HTTP/2 is another one: whoever answers such a
/// request, rather than refuse it, may not mean the host that somebody on the way did (RFC 9112 §3.2).
pub fn requested_host<'a>(
    version: Version,
    target: &'a Uri,
    headers: &'a HeaderMap,
) -> Result<Option<&'a str>, InvalidHost> {
    let mut fields = headers.get_all(HOST).iter();
    let host = match (fields.next(), fields.next()) {
        (None, _) if version == Version::HTTP_11 => return Err(InvalidHost),
        (None, _) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| InvalidHost)?),
        (Some(_), Some(_)) => return Err(InvalidHost),
    };
    if host.is_some_and(|host| !is_host(host)) {
        return Err(InvalidHost);
    }
    // What is not HTTP is not for us, and what names user information would show a stranger's host to whoever reads it fast.
    let scheme = target.scheme();
    if scheme.is_some_and(|it| *it != Scheme::HTTP && *it != Scheme::HTTPS) {
        return Err(InvalidHost);
    }
    let named = target.authority().map(Authority::as_str);
    if named.is_some_and(|named| !is_host(named)) {
        return Err(InvalidHost);
    }
    // The two that HTTP/2 has for it must agree (RFC 9113 §8.3.1).
    if version == Version::HTTP_2
        && let (Some(host), Some(named)) = (host, named)
        && !named.eq_ignore_ascii_case(host)
    {
        return Err(InvalidHost);
    }
    // A target that is a whole URI makes the field's value void, not its absence (RFC 9112 §3.2.2).
    Ok(named.or(host))
}

/// A host with or without a port; or nothing, which is what a client says that has no host to name.
fn is_host(text: &str) -> bool {
    if text.is_empty() || is_plain_host(text) {
        return true;
    }
    let Ok(authority) = text.parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let bracketed = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let is_name = match bracketed {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains(['[', ']']),
    };
    let port = text.strip_prefix(host);
    let is_port = port.is_some_and(|port| {
        let digits = port.strip_prefix(':').unwrap_or(port);
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number && (digits.is_empty() || digits.parse::<u16>().is_ok())
    });
    // User information, if any, is what does not begin with the host.
    is_name && is_port
}

/// Whether it is a name or an address of letters, digits, dots, hyphens and underscores, perhaps with a port: as nearly all are,
/// and seen at a glance.
fn is_plain_host(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() | matches!(byte, b'.' | b'-' | b'_');
    // Parsing would take a sign.
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    !host.is_empty() && host.bytes().all(is_plain) && is_number && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn host(
        version: Version,
        target: &str,
        fields: &[&[u8]],
    ) -> Result<Option<String>, InvalidHost> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(HOST, HeaderValue::from_bytes(field).unwrap());
        }
        let target = target.parse().unwrap();
        let host = requested_host(version, &target, &headers)?;
        Ok(host.map(str::to_owned))
    }

    #[test]
    fn a_request_names_one_host() {
        for (target, field, expected) in [
            ("/v2/", "cache.example", "cache.example"),
            ("/v2/", "Cache.Example:5000", "Cache.Example:5000"),
            ("/v2/", "my_cache:5000", "my_cache:5000"),
            ("/v2/", "192.0.2.1:5000", "192.0.2.1:5000"),
            ("/v2/", "[2001:db8::1]:5000", "[2001:db8::1]:5000"),
            ("/v2/", "", ""),
            ("/v2/", "cache.example:", "cache.example:"),
            ("http://a.example:5000/v2/", "b.example", "a.example:5000"),
            ("https://a.example/v2/", "a.example", "a.example"),
            ("http://[::1]:5000", "a.example", "[::1]:5000"),
        ] {
            for version in [Version::HTTP_10, Version::HTTP_11] {
                let host = host(version, target, &[field.as_bytes()]);
                assert_eq!(host, Ok(Some(expected.to_owned())), "{target} {field}");
            }
        }
        assert_eq!(host(Version::HTTP_10, "/v2/", &[]), Ok(None));
    }

    #[test]
    fn a_request_that_names_none_or_two_is_refused() {
        let two: &[&[u8]] = &[b"a.example", b"a.example"];
        for fields in [
            two,
            &[b"a.example, b.example"],
            &[b"a.example b.example"],
            &[b"a.example/v2"],
            &[b"user@a.example"],
            &[b"http://a.example"],
            &[b"a.example@b.example"],
            &[b"a.example:80:90"],
            &[b"a.example:65536"],
            &[b"a.example:+80"],
            &[b"a.example:x"],
            &[b":80"],
            &[b"[a.example]"],
            &[b"[::1"],
            &[b"[::1]x:80"],
            &[b"a%2eexample"],
            &[b"\xc3\xbc.example"],
            &[b"\xff"],
        ] {
            for version in [Version::HTTP_10, Version::HTTP_11] {
                assert_eq!(
                    host(version, "/v2/", fields),
                    Err(InvalidHost),
                    "{fields:02x?}"
                );
            }
        }
        for target in [
            "http://user@a.example/v2/",
            "http://user:pass@a.example/v2/",
            "http://a.example:65536/v2/",
            "ftp://a.example/v2/",
            "ws://a.example/v2/",
            "user@a.example:80",
        ] {
            let host = host(Version::HTTP_11, target, &[b"a.example"]);
            assert_eq!(host, Err(InvalidHost), "{target}");
        }
        for target in ["/v2/", "http://a.example/v2/"] {
            assert_eq!(host(Version::HTTP_11, target, &[]), Err(InvalidHost));
        }
    }
}
