//! Who is who: an upstream names token servers and redirect targets, and each is another party until proven the same.

use std::net::{IpAddr, SocketAddr};

use http::Uri;
use http::uri::{Authority, Scheme};

use super::error::Fault;

/// Whether two addresses are of one party to the letter: the same scheme, host and port.
pub(super) fn is_same(a: &Uri, b: &Uri) -> bool {
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// A token server that may be asked on behalf of an upstream, by what makes it one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Realm {
    /// It is the upstream itself.
    Own,
    /// The operator listed it.
    Listed,
    /// It is of the upstream's domain.
    Named,
}

impl Realm {
    /// Whether a token server may be asked on behalf of an upstream, and learn our credentials: it is the upstream itself,
    /// or listed to the letter of scheme, host and port, or lies in the upstream's registrable domain (by the public-suffix
    /// list), or on the same host at any port where the upstream has no such domain. An https upstream has no http token
    /// server, listed or not. (CVE-2026-33540, CVE-2020-15157: clients that asked whom they were told to.)
    pub(super) fn of(upstream: &Uri, listed: &[Uri], realm: &Uri) -> Option<Self> {
        let scheme_kept = match realm.scheme().map(Scheme::as_str) {
            Some("https") => true,
            Some("http") => upstream.scheme() != Some(&Scheme::HTTPS),
            _ => false,
        };
        if !scheme_kept || !is_place(realm) {
            None
        } else if is_same(upstream, realm) {
            Some(Self::Own)
        } else if listed.iter().any(|it| is_same(it, realm)) {
            Some(Self::Listed)
        } else {
            is_of_domain(upstream, realm).then_some(Self::Named)
        }
    }
}

/// Whether this has a host, perhaps a port, and nothing else before its path. A port that is none would be taken for the
/// usual one, and a host that is neither an address nor a name for whatever somebody on the way makes of it.
fn is_place(uri: &Uri) -> bool {
    let authority = uri.authority().map_or("", Authority::as_str);
    let host = uri.host().unwrap_or_default();
    let has_port = match authority.strip_prefix(host) {
        Some("") => true,
        Some(_) => uri.port_u16().is_some(),
        None => false,
    };
    let is_host = match host.strip_prefix('[') {
        Some(_) => literal(host).is_some(),
        None => is_name(host),
    };
    is_host && has_port
}

/// Whether this is a name, or an IPv4 address, in the characters that hosts have (RFC 952, RFC 1123 §2.1, and the underscore
/// of many private networks); a dot may end it.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        let is_of_hosts = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_');
        !label.is_empty() && label.bytes().all(is_of_hosts)
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    host.split('.').all(is_label)
}

/// Whether two addresses are of one host, or of one registrable domain.
fn is_of_domain(upstream: &Uri, other: &Uri) -> bool {
    let (Some(own), Some(theirs)) = (upstream.host(), other.host()) else {
        return false;
    };
    let (own, theirs) = (own.to_ascii_lowercase(), theirs.to_ascii_lowercase());
    own == theirs || registrable(&own).is_some_and(|domain| registrable(&theirs) == Some(domain))
}

/// Where a redirect leads: an absolute `Location`, or one relative to what was asked (RFC 9110 §10.2.2). https is never
/// left for http.
///
/// # Errors
///
/// When it leads nowhere, or must not be followed.
pub(super) fn redirect_target(asked: &Uri, location: &str) -> Result<Uri, Fault> {
    let (scheme, authority) = (asked.scheme_str().unwrap_or_default(), asked.authority());
    let authority = authority.map(Authority::as_str).unwrap_or_default();
    // The fragment is for nobody on this way.
    let location = location.split('#').next().unwrap_or_default();
    let absolute = if has_scheme(location) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else {
        let (path, query) = location.split_at(location.find('?').unwrap_or(location.len()));
        let path = if path.starts_with('/') {
            without_dots(path)
        } else if path.is_empty() && !query.is_empty() {
            asked.path().to_owned()
        } else {
            let (folder, _) = asked.path().rsplit_once('/').unwrap_or_default();
            without_dots(&format!("{folder}/{path}"))
        };
        format!("{scheme}://{authority}{path}{query}")
    };
    let target: Uri = absolute.parse().map_err(|_| Fault::Redirect)?;
    let known_scheme = match target.scheme_str() {
        Some("https") => true,
        Some("http") => scheme != "https",
        _ => false,
    };
    if known_scheme && is_place(&target) {
        Ok(target)
    } else {
        Err(Fault::Redirect)
    }
}

/// Whether this begins with a scheme (RFC 3986 §3.1); a colon further on is a path's or a query's own.
fn has_scheme(location: &str) -> bool {
    location.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|it: char| it.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|it| it.is_ascii_alphanumeric() || "+-.".contains(it))
    })
}

/// A path with its `.` and `..` followed (RFC 3986 §5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => {
                kept.push(other);
                continue;
            }
        }
        // What ends in a dot is a folder.
        if segments.peek().is_none() {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

/// The address that a host is written as, when it is one.
pub(super) fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

/// The same with an address in the place of its host, and of its port where it names none.
pub(super) fn with_address(uri: &Uri, address: SocketAddr) -> Uri {
    let mut parts = uri.clone().into_parts();
    let port = if address.port() == 0 || uri.port().is_some() {
        port(uri)
    } else {
        address.port()
    };
    let authority = SocketAddr::new(address.ip(), port).to_string();
    parts.authority = authority.parse().ok();
    Uri::from_parts(parts).unwrap_or_default()
}

/// The port that is meant.
pub(super) fn port(uri: &Uri) -> u16 {
    let default = if uri.scheme() == Some(&Scheme::HTTPS) {
        443
    } else {
        80
    };
    uri.port_u16().unwrap_or(default)
}

/// The domain that somebody registered; none for addresses, for names of one label, for public suffixes themselves, and where
/// the registries of one domain are different customers'.
fn registrable(host: &str) -> Option<&str> {
    if literal(host).is_some() {
        return None;
    }
    let domain = psl::domain(host.strip_suffix('.').unwrap_or(host).as_bytes())?;
    // A suffix that nobody listed is one that nobody vouches for, such as a private network's own.
    domain.suffix().is_known().then_some(())?;
    let domain = str::from_utf8(domain.as_bytes()).ok()?;
    (!SHARED_DOMAINS.contains(&domain)).then_some(domain)
}

/// Domains below which a cloud gives names to its customers, and which the public-suffix list does not have as such for the
/// names of registries. Those registries are their own token servers.
const SHARED_DOMAINS: [&str; 5] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "azurecr.io",
    "azurecr.cn",
    "azurecr.us",
];

/// Follows anything without panicking: a line is what was asked, and the rest the `Location` of its answer. What is
/// followed leads to http or https, never down, to a host and a port and to nobody's name, and to the same place when it is
/// written whole. Whether it is followed.
pub fn fuzz_redirect(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let (asked, location) = text.split_once('\n').unwrap_or(("", &text));
    let Some(asked) = parsed(asked) else {
        return false;
    };
    let Ok(target) = redirect_target(&asked, location) else {
        return false;
    };
    let schemes = (asked.scheme_str(), target.scheme_str());
    assert!(
        matches!(schemes, (_, Some("https")) | (Some("http"), Some("http"))),
        "a redirect never leads down"
    );
    assert!(is_place(&target), "it leads to a host and a port");
    let whole = target.to_string();
    assert_eq!(redirect_target(&asked, &whole), Ok(target.clone()));
    let is_relative = !location.contains("//") && !location.contains(':');
    assert!(
        !is_relative || is_same(&asked, &target),
        "whoever names no host names its own"
    );
    true
}

/// Judges anything without panicking: lines are an upstream, a token server that is listed, and the realm that the upstream
/// names. A realm that may be asked is a host and a port, not in clear where the upstream is not, and nobody by an address
/// that is not the upstream's own or listed. Whether it may be asked.
pub fn fuzz_realm(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.split('\n').map(parsed);
    let (Some(Some(upstream)), Some(listed)) = (lines.next(), lines.next()) else {
        return false;
    };
    let realm = lines.next().flatten().filter(|it| it.host().is_some());
    let listed: Vec<Uri> = listed.into_iter().collect();
    let judged = realm.and_then(|it| Some((Realm::of(&upstream, &listed, &it)?, it)));
    let Some((judged, realm)) = judged else {
        return false;
    };
    assert!(is_place(&realm), "a realm is a host and a port");
    assert!(
        realm.scheme() == Some(&Scheme::HTTPS) || upstream.scheme() == Some(&Scheme::HTTP),
        "credentials do not go out in clear"
    );
    let hosts = [&upstream, &realm].map(|it| it.host().unwrap_or_default().to_ascii_lowercase());
    let [own, theirs] = &hosts;
    let is_number = literal(theirs).is_some();
    match judged {
        Realm::Own => assert!(own == theirs && port(&upstream) == port(&realm)),
        Realm::Listed => assert!(listed.iter().any(|it| is_same(it, &realm))),
        Realm::Named => assert!(own == theirs || (!is_number && own.contains('.'))),
    }
    true
}

fn parsed(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_known && is_place(&uri)).then_some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn token_servers_are_of_the_upstreams_own_domain() {
        for (upstream, realm, expected) in [
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
                true,
            ),
            (
                "https://registry.gitlab.com",
                "https://gitlab.com/jwt/auth",
                true,
            ),
            ("https://ghcr.io", "https://ghcr.io/token", true),
            ("https://ghcr.io", "https://GHCR.io/token", true),
            (
                "https://public.ecr.aws",
                "https://public.ecr.aws/token/",
                true,
            ),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true),
            ("http://registry:5000", "https://registry/token", true),
            ("http://[::1]:5000", "http://[::1]:5001/token", true),
            // The attacks.
            (
                "https://registry-1.docker.io",
                "https://evil.example/token",
                false,
            ),
            (
                "https://registry-1.docker.io",
                "http://auth.docker.io/token",
                false,
            ),
            ("https://a.co.uk", "https://b.co.uk/token", false),
            ("https://co.uk", "https://b.co.uk/token", false),
            ("https://a.github.io", "https://b.github.io/token", false),
            (
                "https://registry.a.internal",
                "https://evil.b.internal/token",
                false,
            ),
            (
                "http://127.0.0.1:5000",
                "http://127.0.0.2:5001/token",
                false,
            ),
            (
                "http://127.0.0.1:5000",
                "http://localhost:5001/token",
                false,
            ),
            (
                "https://docker.io.evil.example",
                "https://auth.docker.io/token",
                false,
            ),
            ("https://ghcr.io", "https://user@ghcr.io/token", false),
            (
                "https://ghcr.io",
                "https://ghcr.io@evil.example/token",
                false,
            ),
            ("https://ghcr.io", "ftp://ghcr.io/token", false),
            ("https://ghcr.io", "/token", false),
            ("https://ghcr.io", "https://ghcr.io:99999/token", false),
            ("https://ghcr.io", "https://ghcr.io:/token", false),
        ] {
            let realm_uri = realm.parse::<Uri>().ok();
            let found = realm_uri.and_then(|it| Realm::of(&uri(upstream), &[], &it));
            assert_eq!(found.is_some(), expected, "{upstream} names {realm}");
        }
    }

    #[test]
    fn pitfall_31_what_only_looks_like_the_registrys_own_domain_is_another_party() {
        for (upstream, realm, expected) in [
            ("https://ghcr.io", "https://ghcr.io:443/token", true),
            ("https://ghcr.io", "https://auth.ghcr.io:8443/token", true),
            // One dot at the end is of the same name, and whatever else looks like it is not.
            ("https://ghcr.io", "https://ghcr.io./token", true),
            ("https://ghcr.io", "https://ghcr.io../token", false),
            ("https://ghcr.io", "https://a..ghcr.io/token", false),
            ("https://ghcr.io", "https://.ghcr.io/token", false),
            ("https://ghcr.io", "https://evil.example./token", false),
            (
                "https://ghcr.io",
                "https://ghcr.io.evil.example/token",
                false,
            ),
            ("https://ghcr.io", "https://evilghcr.io/token", false),
            ("https://ghcr.io", "https://xn--ghr-6dd.io/token", false),
            (
                "https://ghcr.io",
                "https://evil%2eexample%2f.ghcr.io/token",
                false,
            ),
            (
                "https://ghcr.io",
                "https://evil.example&.ghcr.io/token",
                false,
            ),
            (
                "https://ghcr.io",
                "https://evil.example;.ghcr.io/token",
                false,
            ),
            ("https://ghcr.io", "https://[fe80::1%25lo]/token", false),
            ("https://ghcr.io", "https://[v1.ghcr.io]/token", false),
            // A name below a domain whose names are different customers'.
            (
                "https://good.azurecr.io",
                "https://good.azurecr.io/oauth2/token",
                true,
            ),
            (
                "https://good.azurecr.io",
                "https://evil.azurecr.io/oauth2/token",
                false,
            ),
            (
                "https://1.dkr.ecr.eu-west-1.amazonaws.com",
                "https://2.dkr.ecr.eu-west-1.amazonaws.com/token",
                false,
            ),
            (
                "https://1.dkr.ecr.eu-west-1.amazonaws.com",
                "https://search-x.eu-west-1.es.amazonaws.com/token",
                false,
            ),
            (
                "https://1.dkr.ecr.eu-west-1.amazonaws.com",
                "https://x.s3.amazonaws.com/token",
                false,
            ),
        ] {
            let realm_uri = realm.parse::<Uri>().ok();
            let found = realm_uri.and_then(|it| Realm::of(&uri(upstream), &[], &it));
            assert_eq!(found.is_some(), expected, "{upstream} names {realm}");
        }
    }

    #[test]
    fn pitfall_31_an_address_is_another_party_than_a_name_whatever_that_means() {
        for (upstream, realm) in [
            ("https://ghcr.io", "https://140.82.121.33/token"),
            ("https://ghcr.io", "https://10.0.0.1/token"),
            ("https://ghcr.io", "https://[::1]/token"),
            ("https://registry", "https://10.0.0.1/token"),
            ("https://registry", "https://evil/token"),
            ("https://10.0.0.1", "https://1.0.0.1/token"),
            ("https://192.0.2.1", "https://registry/token"),
        ] {
            let found = Realm::of(&uri(upstream), &[], &uri(realm));
            assert_eq!(found, None, "{upstream} names {realm}");
        }
    }

    #[test]
    fn pitfall_31_what_is_no_address_at_all_names_nobody() {
        for realm in [
            r"https://ghcr.io\@evil.example/token",
            r"https://evil.example\.ghcr.io/token",
            "https://ghcr.io\t.evil.example/token",
            "https://ghcr.io /token",
            "https://gh\u{441}r.io/token",
            "https://ghcr.io\u{3002}evil.example/token",
            "https:ghcr.io/token",
            "https:///ghcr.io/token",
            "//ghcr.io/token",
            "ghcr.io/token",
            "",
        ] {
            let parsed = realm.parse::<Uri>().ok();
            let found = parsed.and_then(|it| Realm::of(&uri("https://ghcr.io"), &[], &it));
            assert_eq!(found, None, "{realm}");
        }
        // What is behind a fragment's mark is nobody's host, and is not sent.
        let realm = uri("https://ghcr.io/token#@evil.example/");
        assert_eq!(realm.to_string(), "https://ghcr.io/token");
        assert_eq!(
            uri("https://ghcr.io#@evil.example/").host(),
            Some("ghcr.io")
        );
    }

    #[test]
    fn a_listed_token_server_is_one_to_the_letter() {
        let listed = ["https://auth.example:444", "http://auth.example"].map(uri);
        let upstream = "https://a.b";
        for (realm, expected) in [
            ("https://auth.example:444/x/token?y", Some(Realm::Listed)),
            ("https://AUTH.example:444/token", Some(Realm::Listed)),
            ("https://auth.example/token", None),
            ("https://x.auth.example:444/token", None),
            ("https://u@auth.example:444/token", None),
            // Never in clear what goes to the upstream itself in secret.
            ("http://auth.example/token", None),
            ("http://auth.example:444/token", None),
        ] {
            let found = Realm::of(&uri(upstream), &listed, &uri(realm));
            assert_eq!(found, expected, "{realm}");
        }
        let plain = uri("http://a.b");
        let realm = uri("http://auth.example/token");
        assert_eq!(Realm::of(&plain, &listed, &realm), Some(Realm::Listed));
        let own = uri("https://a.b:443/token");
        assert_eq!(Realm::of(&uri(upstream), &listed, &own), Some(Realm::Own));
    }

    #[test]
    fn redirects_lead_where_they_say_and_never_down() {
        let asked = uri("https://a.example/v2/x/blobs/sha256:1?q=1");
        for (location, expected) in [
            (
                "https://cdn.example/b?sig=1",
                Some("https://cdn.example/b?sig=1"),
            ),
            ("/other", Some("https://a.example/other")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("c?d", Some("https://a.example/v2/x/blobs/c?d")),
            (
                "c?to=https://b.example/../",
                Some("https://a.example/v2/x/blobs/c?to=https://b.example/../"),
            ),
            ("/c/../d:1//e/./?f", Some("https://a.example/d:1//e/?f")),
            ("../../../../c", Some("https://a.example/c")),
            ("..", Some("https://a.example/v2/x/")),
            (
                "?signed",
                Some("https://a.example/v2/x/blobs/sha256:1?signed"),
            ),
            ("file:/etc/passwd", None),
            ("HTTP://cdn.example/b", None),
            ("cdn.example:443/b", None),
            ("https:", None),
            ("https:/b", None),
            ("https://cdn.example/b#part", Some("https://cdn.example/b")),
            ("http://cdn.example/b", None),
            ("file:///etc/passwd", None),
            ("https://u:p@cdn.example/", None),
            ("https://", None),
            ("https://:", None),
            ("https://:443/b", None),
            ("https://cdn.example:/b", None),
            ("https://cdn.example:99999/b", None),
            ("https://cdn.example%2eevil/b", None),
            ("https://[fe80::1%25lo]/b", None),
            ("https://[::1]x/b", None),
            (r"https:\\cdn.example/b", None),
            (r"https://a.example\@cdn.example/b", None),
            (
                "https://my_bucket.cdn.example./b",
                Some("https://my_bucket.cdn.example./b"),
            ),
            ("", Some("https://a.example/v2/x/blobs/")),
        ] {
            let found = redirect_target(&asked, location)
                .ok()
                .map(|it| it.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        }
        let plain = uri("http://a.example/v2/");
        assert!(redirect_target(&plain, "https://b.example/").is_ok());
        assert!(redirect_target(&plain, "http://b.example/").is_ok());
    }

    #[test]
    fn a_party_is_its_scheme_host_and_port() {
        let a = uri("https://a.example/x");
        assert!(is_same(&a, &uri("https://A.example:443/y")));
        for other in [
            "http://a.example/x",
            "https://a.example:444/x",
            "https://b.a.example/x",
        ] {
            assert!(!is_same(&a, &uri(other)), "{other}");
        }
    }
}
