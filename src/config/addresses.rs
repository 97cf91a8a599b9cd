//! Addresses of registries and their likes, as they are given.

use http::Uri;
use http::uri::Authority;

use super::error::Error;
use super::given::Given;

/// A registry's root.
pub(super) fn read_url(given: &Given) -> Result<Uri, Error> {
    let uri = read_address(given, URL)?;
    match uri.path() {
        "" | "/" => Ok(uri),
        _ => Err(given.wrong(URL)),
    }
}

/// An http or https address without user, query and fragment.
pub(super) fn read_address(given: &Given, wanted: &'static str) -> Result<Uri, Error> {
    let text = given.str(wanted)?;
    let wrong = || given.wrong(wanted);
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let authority = uri.authority().map_or("", Authority::as_str);
    let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let bare = uri.query().is_none();
    // The parser drops a fragment without a word.
    if scheme && bare && is_authority(authority) && !text.contains('#') {
        Ok(uri)
    } else {
        Err(wrong())
    }
}

/// Whether `text` is a host, perhaps with a port, and nothing else.
pub(super) fn is_authority(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let name = host
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let address = host
        .strip_prefix('[')
        .and_then(|it| it.strip_suffix(']'))
        .is_some_and(|it| it.parse::<std::net::Ipv6Addr>().is_ok());
    let port = match text.strip_prefix(host) {
        Some("") => true,
        Some(_) => authority.port_u16().is_some_and(|port| port != 0),
        None => false,
    };
    !host.is_empty() && (name || address) && port
}

/// What a registry's root looks like.
pub(super) const URL: &str = "a registry's root such as `https://ghcr.io`: http or https, a host, perhaps a port, and no user, path or query";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for text in [
            "a",
            "a.b",
            "A.b:5000",
            "127.0.0.1",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:5000",
            "a_b.c",
        ] {
            assert!(is_authority(text), "{text}");
        }
        for text in [
            "", ":1", "a:", "a:0", "a:65536", "a:b", "u@a", "u:p@a:1", "a/b", "a b", "::1", "[a]",
            "[::1", "a%41",
        ] {
            assert!(!is_authority(text), "{text}");
        }
    }
}
