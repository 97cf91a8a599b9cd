//! Fields of requests and responses.

use std::time::SystemTime;

use http::header::{HeaderMap, HeaderValue, IF_NONE_MATCH, IF_RANGE};
use layerhold::net::{
    ContentRange, RangeSet, Resolved, fuzz_range, fuzz_retry_after, if_range_allows, none_match,
    retry_after,
};
use regex::Regex;

use super::{Pattern, Target, text, whole};

pub(super) const RANGE: Target = Target {
    name: "range",
    run: range,
    seeds: &[
        b"bytes=0-",
        b"bytes=0-0",
        b"bytes=100-199",
        b"bytes=-500",
        b"BYTES = 5-9",
        b"bytes=0-1,3-4",
        b"bytes=0-9, 5-14 ,-1,",
        b"bytes=0-,0-,0-",
        b"bytes=18446744073709551615-",
        b"bytes=-0",
        b"bytes=9-5",
        b"items=0-1",
    ],
    words: &[
        b"bytes",
        b"=",
        b"-",
        b",",
        b" ",
        b"\t",
        b"0",
        b"+",
        b"18446744073709551616",
    ],
};

fn range(input: &[u8]) -> bool {
    static FIELD: Pattern = Pattern::new(|| whole(r"(?s)\s*(?i-u:bytes)\s*=(.*)"));
    static RANGE: Pattern = Pattern::new(|| whole("([0-9]*)-([0-9]*)"));
    fuzz_range(input);
    let Some(text) = text(input) else {
        return false;
    };
    // First and last of each as the RFC has them, or nothing where one of them is no range.
    let words = FIELD.captures(text).and_then(|field| {
        let ranges = field.get(1)?.as_str().split(',').map(str::trim);
        let ranges = ranges.filter(|it| !it.is_empty()).map(|range| {
            let words = RANGE.captures(range)?;
            match (number(&words[1]), number(&words[2])) {
                (None, None) => None,
                (Some(first), Some(last)) if first > last => None,
                words => Some(words),
            }
        });
        let ranges: Vec<_> = ranges.collect::<Option<_>>()?;
        (!ranges.is_empty()).then_some(ranges)
    });
    let parsed = RangeSet::parse(text);
    assert_eq!(parsed.is_some(), words.is_some(), "ranges of the RFC");
    let (Some(parsed), Some(words)) = (parsed, words) else {
        return false;
    };
    assert_eq!(parsed.count(), words.len());
    for size in [1, 2, 10, 1000, u64::MAX - 1, u64::MAX] {
        let parts = words.iter().filter_map(|words| match *words {
            (None, last) => Some(size - last.unwrap_or(0).min(size)..size),
            (Some(first), _) if first >= size => None,
            (Some(first), last) => Some(first..last.unwrap_or(u64::MAX).min(size - 1) + 1),
        });
        let parts: Vec<_> = parts.filter(|it| !it.is_empty()).collect();
        let resolved = parsed.resolve(size);
        let bytes: u128 = parts.iter().map(|it| u128::from(it.end - it.start)).sum();
        match resolved {
            Resolved::Unsatisfiable => assert!(parts.is_empty(), "of {size}"),
            Resolved::Part(part) => assert_eq!(parts, [part], "of {size}"),
            Resolved::Parts(several) => assert_eq!(several, parts, "of {size}"),
            // Too much of it.
            Resolved::Whole => assert!(
                parts.len() > 2 || bytes > u128::from(size),
                "{parts:?} of {size}"
            ),
        }
    }
    assert_eq!(parsed.resolve(0), Resolved::Whole);
    true
}

pub(super) const CONTENT_RANGE: Target = Target {
    name: "content_range",
    run: content_range,
    seeds: &[
        b"bytes 0-9/10",
        b"bytes 5-5/*",
        b"bytes */10",
        b"bytes 0-18446744073709551614/18446744073709551615",
        b"bytes 9-5/10",
        b"items 0-1/2",
    ],
    words: &[b"bytes ", b"/", b"-", b"*", b" ", b"0", b"10", b"+"],
};

fn content_range(input: &[u8]) -> bool {
    static PATTERN: Pattern =
        Pattern::new(|| whole(r"\s*(?i-u:bytes) \s*([0-9]+)-([0-9]+)/(\*|[0-9]+)\s*"));
    let Some(text) = text(input) else {
        return false;
    };
    let expected = PATTERN.captures(text).and_then(|it| {
        let (first, last, size) = (number(&it[1])?, number(&it[2])?, number(&it[3]));
        let valid = first <= last && last < size.unwrap_or(u64::MAX);
        let range = first..last.checked_add(1)?;
        valid.then_some(ContentRange { range, size })
    });
    let parsed = ContentRange::parse(text);
    assert_eq!(parsed, expected);
    if let Some(range) = &parsed {
        assert_eq!(
            ContentRange::parse(&range.to_string()).as_ref(),
            Some(range)
        );
    }
    parsed.is_some()
}

/// A number; the largest for what is larger, nothing for `*` and for no digits.
fn number(digits: &str) -> Option<u64> {
    let is_number = digits.starts_with(|it: char| it.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

pub(super) const CONDITIONAL: Target = Target {
    name: "conditional",
    run: conditional,
    seeds: &[
        br#""sha256:ab""#,
        br#"W/"sha256:ab""#,
        br#""x", W/"sha256:ab", "y""#,
        b"*",
        br#""a,b", "sha256:ab""#,
        br#""sha256:ab"#,
        b"Mon, 23 Nov 2026 00:00:00 GMT",
    ],
    words: &[
        b"\"",
        b"W/",
        b",",
        b"*",
        b" ",
        b"\"sha256:ab\"",
        b"sha256:ab",
        b"\n",
    ],
};

fn conditional(input: &[u8]) -> bool {
    const ETAG: &str = r#""sha256:ab""#;
    static LIST: Pattern = Pattern::new(|| {
        let tag = r#"(?:W/)?"[\x21\x23-\x7e]*""#;
        whole(&format!(r"[ \t]*(?:\*|{tag}(?:[ \t]*,[ \t]*{tag})*)[ \t]*"))
    });
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return false;
    };
    let headers = HeaderMap::from_iter([(IF_NONE_MATCH, value.clone()), (IF_RANGE, value.clone())]);
    let matches = none_match(&headers, ETAG);
    if let Some(list) = value.to_str().ok().filter(|it| LIST.is_match(it)) {
        let mut tags = list.split('"').skip(1).step_by(2);
        let is_named = list.trim() == "*" || tags.any(|it| format!("\"{it}\"") == ETAG);
        assert_eq!(matches, is_named, "the tags of a list, and no others");
    }
    let is_same = input == ETAG.as_bytes();
    assert_eq!(if_range_allows(&headers, ETAG), is_same);
    matches
}

pub(super) const RETRY_AFTER: Target = Target {
    name: "retry_after",
    run: |input| {
        fuzz_retry_after(input);
        let value = HeaderValue::from_bytes(input).ok();
        value.is_some_and(|it| retry_after(&it, SystemTime::UNIX_EPOCH).is_some())
    },
    seeds: &[
        b"0",
        b"120",
        b"18446744073709551616",
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-94 08:49:37 GMT",
        b"Sun Nov  6 08:49:37 1994",
        b"Fri, 31 Dec 9999 23:59:59 GMT",
        b"Thu, 01 Jan 1970 00:00:00 GMT",
        b"-1",
        b"1.5",
    ],
    words: &[
        b"Sun, ",
        b"Sunday, ",
        b"Sun ",
        b"Nov",
        b"Feb",
        b"29",
        b"1994",
        b"9999",
        b"1970",
        b" GMT",
        b":",
        b"-",
        b"60",
        b" ",
        b"\xff",
    ],
};

pub(super) const AUTHORIZATION: Target = Target {
    name: "authorization",
    run: layerhold::server::fuzz_authorization,
    seeds: &[
        b"Basic YW5uOmh1c2g=",
        b"basic   em/DqzpodXNo",
        b"Basic YW5uOmE6Yg==",
        b"Basic OmFubg==",
        b"Basic YW5uOmh1c2g",
        b"Bearer 9f86d081884c7d659a2feaa0c55ad015",
        b"BEARER abc.def-ghi_jkl~m+n/o==",
        b"Bearer a b",
        b"Digest username=\"ann\"",
        b"Basic",
    ],
    words: &[
        b"Basic ", b"Bearer ", b" ", b"=", b"==", b"Og==", b"AA==", b"Cg==", b"/w==", b"\t", b",",
        b"\xff",
    ],
};

pub(super) const TOKEN_REQUEST: Target = Target {
    name: "token_request",
    run: layerhold::server::fuzz_token_request,
    seeds: &[
        b"",
        b"service=cache.example%3A5000&scope=repository%3Alibrary%2Fdebian%3Apull",
        b"account=ann&client_id=docker&offline_token=true&service=ghcr.io",
        b"scope=repository:a/b:pull&scope=repository:c:pull,push",
        b"scope=repository:a:pull%20repository:b:pull",
        b"service=a&service=b",
        b"scope=%00%0d%0a&service=%ff",
    ],
    words: &[
        b"scope=",
        b"service=",
        b"account=",
        b"&",
        b"=",
        b"%",
        b"%20",
        b"%0a",
        b"%26",
        b"+",
        b"repository:",
        b":pull",
        b"\xff",
    ],
};

pub(super) const CHALLENGE: Target = Target {
    name: "challenge",
    run: layerhold::upstream::fuzz_challenge,
    seeds: &[
        br#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#,
        br#"bearer realm = "https://ghcr.io/token" , service = "ghcr.io""#,
        br#"Basic realm="a, b", BEARER Realm="https://auth.example/token",service=reg , Negotiate"#,
        b"Negotiate oRQwEqADCgEA/x+y==, Bearer realm=r",
        b"Negotiate\nBasic realm=\"x\"",
        br#"Bearer realm="https://a.example/\"x\"""#,
        br#"Bearer realm="x"#,
        b"Basic realm=\"Zugriff f\xc3\xbcr alle\"",
        b"Bearer realm=https://a.example/token",
    ],
    words: &[
        b"Bearer", b"Basic", b"Negotiate", b" ", b",", b"=", b"==", b"\"", b"\\", b"realm", b"\t",
        b"https://a/b", b"abc==", b"\n", b"\xff",
    ],
};

pub(super) const LINK: Target = Target {
    name: "link",
    run: link,
    seeds: &[
        br#"</v2/library/debian/tags/list?last=12&n=100>; rel="next""#,
        br#"<https://quay.io/v2/a/tags/list?next_page=gAAAA%3D%3D&n=50>; rel="next""#,
        b"<?n=1>;rel=next",
        br#"</a?b>; rel="prev first", </c?d>; title="x, y"; rel="NEXT last""#,
        br#"</a?b>; title="c, <d?e>; rel=next"; rel=prev"#,
        b"</a?b>",
        b"</a?b>; rel",
    ],
    words: &[
        b"<",
        b">",
        b"?",
        b";",
        b",",
        b"rel=",
        b"\"next\"",
        b"next",
        b"title=",
        b"\"",
        b"\\",
        b" ",
        b"\n",
        b"&",
        b"last=",
    ],
};

/// One field. Where it is of the form that RFC 8288 has, what is found is what the form says.
fn link(input: &[u8]) -> bool {
    const TOKEN: &str = "[a-z0-9!#$%&'*+.^_`|~-]+";
    static LINK: Pattern = Pattern::new(|| {
        let value = format!(r#"(?:{TOKEN}|"(?:[^"\\]|\\.)*")"#);
        let parameter = format!(r"[ \t]*;[ \t]*{TOKEN}(?:[ \t]*=[ \t]*{value})?");
        Regex::new(&format!(
            r"(?i)^[ \t,]*<([^<>]*)>((?:{parameter})*)[ \t]*(?:,|$)"
        ))
        .unwrap()
    });
    static REL: Pattern = Pattern::new(|| {
        let other = format!(r#"(?:{TOKEN}|"(?:[^"\\]|\\.)*")"#);
        let others = format!(r"(?:[ \t]*;[ \t]*{TOKEN}(?:[ \t]*=[ \t]*{other})?)");
        Regex::new(&format!(
            r#"(?i)^{others}*?[ \t]*;[ \t]*rel(?:[ \t]*=[ \t]*(?:({TOKEN})|"((?:[^"\\]|\\.)*)"))?[ \t]*(?:;|$)"#
        ))
        .unwrap()
    });
    let found = layerhold::upstream::fuzz_link(input);
    let text = String::from_utf8_lossy(input);
    let mut rest = text.as_ref();
    let mut expected = None;
    while !rest.is_empty() {
        let Some(link) = LINK.captures(rest) else {
            // Not of the form.
            return found.is_some();
        };
        let rel = REL.captures(&link[2]);
        let relations = rel.and_then(|it| Some(it.get(1).or(it.get(2))?.as_str().to_owned()));
        let relations = relations.unwrap_or_default().replace('\\', "");
        let is_next = |it: &str| it.eq_ignore_ascii_case("next");
        if relations.split_ascii_whitespace().any(is_next) && expected.is_none() {
            expected = Some(link[1].split_once('?').map(|(_, query)| query.to_owned()));
        }
        rest = &rest[link[0].len()..];
    }
    if HeaderValue::from_bytes(input).is_ok() {
        assert_eq!(found, expected.flatten(), "the next of the links");
    }
    found.is_some()
}
