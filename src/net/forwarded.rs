//! `X-Forwarded-For`: for whom a proxy says that it asks; and `X-Forwarded-Proto`: how it was asked.
//!
//! Each proxy appends the address of its own peer, so the list is read from the right, and only as far as whoever wrote
//! an entry is trusted; what stands left of that, anybody may have written. RFC 7239's `Forwarded` is not read for
//! addresses: the balancers in the field send this one, and two headers that may disagree are one too many.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

use super::networks::Networks;

/// The address that a request is made for: `peer`, or, where that is trusted, whom it and the trusted ones before it say
/// they speak for. That is the rightmost address that is not trusted itself; the leftmost one where all are. An entry
/// that is no address, such as `unknown`, ends the list: the entry right of it counts, or `peer`.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> IpAddr {
    let mut client = peer.to_canonical();
    if !trusted.contains(client) {
        return client;
    }
    // Several lines are one list (RFC 9110 §5.3). They are split before they are looked at: what is wrong further left,
    // where a client may have put it, must not hide what a proxy has appended.
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    for entry in entries.take(ENTRIES_MAX) {
        let Some(address) = parse_entry(entry) else {
            break;
        };
        client = address;
        if !trusted.contains(client) {
            break;
        }
    }
    client
}

/// Whether a proxy says that its client speaks TLS: by `X-Forwarded-Proto`, or by the `proto` of `Forwarded` (RFC 7239 §5.4) where
/// there is none. Of several proxies the first counts, which is the one that the client speaks to. Ask only where the proxy is
/// trusted; nothing but the addresses that we call ourselves by rests on it.
pub fn is_forwarded_https(headers: &HeaderMap) -> bool {
    let first = |name: &HeaderName| {
        let line = headers.get(name)?.to_str().ok()?;
        line.split(',').next().map(str::trim)
    };
    if let Some(proto) = first(&X_FORWARDED_PROTO) {
        return proto.eq_ignore_ascii_case("https");
    }
    let pairs = first(&FORWARDED).into_iter().flat_map(|it| it.split(';'));
    let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
    pairs.any(|(name, value)| {
        name.trim().eq_ignore_ascii_case("proto")
            && value.trim().trim_matches('"').eq_ignore_ascii_case("https")
    })
}

/// An address, or one with a port as some balancers send it; IPv6 may have brackets, and needs them before a port.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry.trim_ascii()).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| bracketed().map(IpAddr::V6))
        .or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(address.to_canonical())
}

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// More proxies than anybody stands in a row.
const ENTRIES_MAX: usize = 32;

/// Reads anything without panicking; the client is then the peer, or somebody whose address is in the list.
pub fn fuzz_forwarded(input: &[u8]) {
    let trusted: Networks = super::Network::parse("10.0.0.0/8").into_iter().collect();
    let peer = IpAddr::from([10, 0, 0, 1]);
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let value = http::HeaderValue::from_bytes(line);
        headers.extend(value.ok().map(|value| (X_FORWARDED_FOR, value)));
    }
    let client = client_address(peer, &headers, &trusted);
    let mut entries = input.split(|byte| matches!(*byte, b',' | b'\n'));
    assert!(
        client == peer || entries.any(|it| parse_entry(it) == Some(client)),
        "nobody is made up"
    );
    assert_eq!(
        parse_entry(client.to_string().as_bytes()),
        Some(client),
        "an address renders as it was parsed"
    );
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rand::rngs::SmallRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::net::Network;

    /// The client of a request with these header lines, where a few networks are trusted.
    fn client(peer: &str, lines: &[&[u8]]) -> String {
        let trusted = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"];
        let trusted: Networks = trusted
            .map(|it| Network::parse(it).unwrap())
            .into_iter()
            .collect();
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
        }
        client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_not_trusted_is_the_client() {
        for (peer, lines, expected) in [
            ("10.0.0.1", &[][..], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            // From anybody else it is only what somebody says.
            ("198.51.100.1", &["203.0.113.9"], "198.51.100.1"),
            ("192.0.2.8", &["203.0.113.9"], "192.0.2.8"),
            // A client may begin the list itself.
            ("10.0.0.1", &["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["10.9.9.9, 203.0.113.9"], "203.0.113.9"),
            (
                "10.0.0.1",
                &["1.1.1.1, 203.0.113.9, 10.0.0.2,192.0.2.7"],
                "203.0.113.9",
            ),
            // All are ours: whoever is furthest away asked.
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // Several lines are one list.
            (
                "10.0.0.1",
                &["1.1.1.1", "203.0.113.9", "10.0.0.2"],
                "203.0.113.9",
            ),
            (
                "10.0.0.1",
                &["1.1.1.1, 203.0.113.9", "fd00::2"],
                "203.0.113.9",
            ),
            // What is no address ends the list.
            ("10.0.0.1", &["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["203.0.113.9, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9,"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9", ""], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["unknown, 203.0.113.9"], "203.0.113.9"),
            // IPv4 in the clothes of IPv6.
            ("::ffff:10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("::ffff:198.51.100.1", &["203.0.113.9"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9"),
            ("10.0.0.1", &["::ffff:203.0.113.9"], "203.0.113.9"),
            ("fd00::1", &["2001:db8::9"], "2001:db8::9"),
        ] {
            let bytes: Vec<&[u8]> = lines.iter().map(|it| it.as_bytes()).collect();
            assert_eq!(client(peer, &bytes), expected, "{lines:?} from {peer}");
        }
    }

    #[test]
    fn entries_may_have_ports_and_brackets() {
        for (entry, expected) in [
            ("203.0.113.9", "203.0.113.9"),
            ("203.0.113.9:8080", "203.0.113.9"),
            ("\t203.0.113.9 ", "203.0.113.9"),
            ("2001:DB8::9", "2001:db8::9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("[2001:db8::9]:443", "2001:db8::9"),
            ("[::ffff:203.0.113.9]:443", "203.0.113.9"),
        ] {
            assert_eq!(client("10.0.0.1", &[entry.as_bytes()]), expected, "{entry}");
        }
        for bad in [
            "203.0.113.9:",
            "203.0.113.9:99999",
            "203.0.113.9:x",
            "203.0.113.09",
            "203.0.113",
            "[203.0.113.9]",
            "[2001:db8::9",
            "2001:db8::9]",
            "[2001:db8::9]:",
            "[]",
            "[[2001:db8::9]]",
            "\"203.0.113.9\"",
            "_hidden",
            "203.0.113.9 10.0.0.2",
            "for=203.0.113.9",
        ] {
            assert_eq!(client("10.0.0.1", &[bad.as_bytes()]), "10.0.0.1", "{bad}");
        }
    }

    #[test]
    fn what_a_client_writes_cannot_hide_what_a_proxy_appends() {
        let before: &[&[u8]] = &[
            b"\xff\xfe",
            b"\xc3\xbc, 1.1.1.1",
            b",,,,",
            b"\"",
            b"[",
            b"a=\"b, c\"",
        ];
        for text in before {
            let line = [text, &b", 203.0.113.9"[..]].concat();
            assert_eq!(client("10.0.0.1", &[&line]), "203.0.113.9", "{line:?}");
            assert_eq!(client("10.0.0.1", &[text, b"203.0.113.9"]), "203.0.113.9");
        }
    }

    #[test]
    fn a_proxy_says_how_it_was_asked() {
        for (lines, expected) in [
            (&[][..], false),
            (&[("x-forwarded-proto", "https")], true),
            (&[("x-forwarded-proto", "HTTPS , http")], true),
            (&[("x-forwarded-proto", "http, https")], false),
            (&[("x-forwarded-proto", "")], false),
            (&[("forwarded", "for=192.0.2.1;proto=https")], true),
            (&[("forwarded", "For=a; Proto=\"https\", proto=http")], true),
            (&[("forwarded", "for=a, proto=https")], false),
            (&[("forwarded", "xproto=https")], false),
            (
                &[("x-forwarded-proto", "http"), ("forwarded", "proto=https")],
                false,
            ),
        ] {
            let header = |(name, value): &(&'static str, &'static str)| {
                let name = HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            };
            let headers: HeaderMap = lines.iter().map(header).collect();
            assert_eq!(is_forwarded_https(&headers), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_list_without_end_is_not_read_to_its_end() {
        let hops = |n: usize| format!("203.0.113.9{}", ", 10.0.0.2".repeat(n));
        let line = hops(ENTRIES_MAX - 1);
        assert_eq!(client("10.0.0.1", &[line.as_bytes()]), "203.0.113.9");
        let line = hops(ENTRIES_MAX);
        assert_eq!(client("10.0.0.1", &[line.as_bytes()]), "10.0.0.2");
    }

    #[test]
    fn no_list_makes_a_client_up() {
        let words: [&[u8]; 15] = [
            b"10.0.0.2",
            b"203.0.113.9",
            b"2001:db8::9",
            b"::ffff:",
            b"[",
            b"]",
            b":80",
            b",",
            b", ",
            b"\n",
            b" ",
            b"unknown",
            b"\xff",
            b"\"",
            b"1",
        ];
        let mut random = SmallRng::seed_from_u64(17);
        for _ in 0..50_000 {
            let count = random.random_range(0..12);
            let text: Vec<u8> = (0..count)
                .filter_map(|_| words.choose(&mut random))
                .flat_map(|it| it.iter().copied())
                .collect();
            fuzz_forwarded(&text);
        }
    }
}
