//! Who is asked, who asks, and where to.

use http::header::{HOST as HOST_FIELD, HeaderMap, HeaderValue};
use http::{Uri, Version};
use layerhold::net::{
    Network, ProxyHeader, fuzz_forwarded, fuzz_network, fuzz_proxy_header, requested_host,
};

use super::{Target, text};

pub(super) const HOST: Target = Target {
    name: "host",
    run: host,
    seeds: &[
        b"/v2/\ncache.example:5000",
        b"/v2/\n[2001:db8::1]:5000",
        b"http://a.example:5000/v2/\nb.example",
        b"/v2/\na.example\na.example",
        b"/v2/\nuser@a.example",
        b"/v2/\na.example, b.example",
        b"/v2/\n",
        b"/v2/",
    ],
    words: &[
        b"\n",
        b":",
        b"@",
        b"[",
        b"]",
        b"a.example",
        b"http://",
        b"/",
        b"::1",
        b"%",
        b",",
        b" ",
        b"65536",
        b"\xff",
    ],
};

fn host(input: &[u8]) -> bool {
    let mut lines = input.split(|byte| *byte == b'\n');
    let target = lines.next().and_then(|it| Uri::try_from(it).ok());
    let Some(target) = target else {
        return false;
    };
    let mut headers = HeaderMap::new();
    for line in lines {
        let Ok(value) = HeaderValue::from_bytes(line) else {
            return false;
        };
        headers.append(HOST_FIELD, value);
    }
    let old = requested_host(Version::HTTP_10, &target, &headers);
    let new = requested_host(Version::HTTP_11, &target, &headers);
    let count = headers.len();
    assert!(count <= 1 || (old.is_err() && new.is_err()), "one host");
    assert!(count > 0 || new.is_err(), "HTTP/1.1 has to say it");
    assert!(count == 0 || old == new);
    let Ok(Some(host)) = new else {
        return false;
    };
    let is_host = |it: char| it.is_ascii_graphic() && !"/?#@\\\"<>".contains(it);
    assert!(host.chars().all(is_host), "{host:?}");
    // What is behind the last colon outside of brackets is a port.
    let port = host
        .rsplit_once(']')
        .map_or(host, |it| it.1)
        .split_once(':');
    let is_port = |it: &str| it.is_empty() || it.parse::<u16>().is_ok();
    assert!(port.is_none_or(|(_, port)| is_port(port)), "{host:?}");
    true
}

pub(super) const FORWARDED: Target = Target {
    name: "forwarded",
    run: |input| {
        fuzz_forwarded(input);
        input.contains(&b'.')
    },
    seeds: &[
        b"203.0.113.9, 10.0.0.2",
        b"1.1.1.1, 203.0.113.9:8080\n10.0.0.2",
        b"[2001:db8::9]:443, 10.0.0.2",
        b"::ffff:10.0.0.2",
        b"unknown, 10.0.0.2",
        b"203.0.113.9,,10.0.0.2",
    ],
    words: &[
        b",",
        b"\n",
        b" ",
        b"10.0.0.2",
        b"203.0.113.9",
        b"2001:db8::9",
        b"[",
        b"]",
        b":80",
        b"::ffff:",
        b"unknown",
        b"\xff",
        b"%eth0",
    ],
};

pub(super) const PROXY_HEADER: Target = Target {
    name: "proxy_header",
    run: |input| {
        fuzz_proxy_header(input);
        matches!(ProxyHeader::parse(input), Ok(ProxyHeader::Whole { .. }))
    },
    seeds: &[
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\xc0\0\x02\x50\xc8\xf2\x01\xbb",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x80\xc8\xf2\x01\xbb",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\xcb\0\x71\x09\xc0\0\x02\x50\xc8\xf2\x01\xbb\x03\0\x04\xde\xad\xbe\xef",
        b"PROXY TCP4 203.0.113.9 192.0.2.80 51442 443\r\n",
        b"GET / HTTP/1.1\r\n",
    ],
    words: &[b"\r\n\r\n\0\r\nQUIT\n", b"\x21", b"\x20", b"\x11", b"\0\x0c", b"\xff\xff", b"\x10\0"],
};

pub(super) const NETWORK: Target = Target {
    name: "network",
    run: |input| {
        fuzz_network(input);
        text(input).is_some_and(|it| Network::parse(it).is_ok())
    },
    seeds: &[
        b"10.0.0.0/8",
        b"192.0.2.7",
        b"fd00::/8",
        b"::ffff:10.0.0.0/104",
        b"0.0.0.0/0",
        b"::/0",
        b"10.1.2.3/8",
        b"010.0.0.0/8",
        b"::1%lo",
    ],
    words: &[
        b"/",
        b".",
        b":",
        b"::",
        b"0",
        b"32",
        b"128",
        b"ffff",
        b"10.0.0.0",
        b"%",
        b"+",
        b"-",
    ],
};

pub(super) const REALM: Target = Target {
    name: "realm",
    run: layerhold::upstream::fuzz_realm,
    seeds: &[
        b"https://registry-1.docker.io\nhttps://x.example\nhttps://auth.docker.io/token",
        b"https://registry.gitlab.com\n\nhttps://gitlab.com/jwt/auth",
        b"http://127.0.0.1:5000\n\nhttp://127.0.0.1:5001/token",
        b"http://[::1]:5000\n\nhttp://[::1]:5001/token",
        b"https://a.b\nhttps://auth.example:444\nhttps://AUTH.example:444/token",
        b"https://ghcr.io\n\nhttps://ghcr.io@evil.example/token",
        b"https://a.co.uk\n\nhttps://b.co.uk/token",
        b"https://ghcr.io\n\nhttp://ghcr.io/token",
    ],
    words: HOSTS,
};

const HOSTS: &[&[u8]] = &[
    b"https://",
    b"http://",
    b"//",
    b"/",
    b"\n",
    b"@",
    b":",
    b":443",
    b":65536",
    b".",
    b"..",
    b"?",
    b"#",
    b"[::1]",
    b"127.0.0.1",
    b"ghcr.io",
    b"docker.io",
    b"co.uk",
    b"[",
    b"]",
    b"%2f",
    b"\\",
    b"localhost",
    b"0x7f.1",
];

pub(super) const REDIRECT: Target = Target {
    name: "redirect",
    run: layerhold::upstream::fuzz_redirect,
    seeds: &[
        b"https://a.example/v2/x/blobs/sha256:1?q=1\nhttps://cdn.example/b?sig=1&X-Amz-Date=1",
        b"https://a.example/v2/x/blobs/sha256:1\n/other",
        b"https://a.example/v2/x/blobs/sha256:1\n//cdn.example/b",
        b"https://a.example/v2/x/blobs/sha256:1\nc?to=https://b.example/../",
        b"https://a.example/v2/x/blobs/sha256:1\n../../../c#part",
        b"https://a.example/v2/x/blobs/sha256:1\n?signed",
        b"http://a.example:5000/v2/\nHTTP://b.example/",
        b"https://a.example/v2/\nhttp://b.example/",
        b"https://a.example/v2/\nhttps://u:p@b.example/",
        b"https://a.example/v2/\nfile:///etc/passwd",
        b"https://[::1]:5000/v2/\nhttps://[fe80::1]/b",
    ],
    words: HOSTS,
};

pub(super) const NO_PROXY: Target = Target {
    name: "no_proxy",
    run: layerhold::upstream::fuzz_no_proxy,
    seeds: &[
        b"localhost,127.0.0.1,.example.com\nhttps://a.example.com/",
        b"*\nhttp://a/",
        b"10.0.0.0/8,::1\nhttp://[::1]:5000/",
        b"*.example.com , example.org\nhttps://example.org",
    ],
    words: &[
        b",",
        b"*",
        b".",
        b"\n",
        b"/8",
        b"/33",
        b"[",
        b"]",
        b"::1",
        b"10.0.0.0",
        b"example.com",
        b"http://",
    ],
};

pub(super) const TUNNEL_ANSWER: Target = Target {
    name: "tunnel_answer",
    run: layerhold::upstream::fuzz_tunnel_answer,
    seeds: &[
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.0 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ],
    words: &[b"HTTP/1.1 ", b"200", b"HTTP/", b" ", b"099", b"\r\n"],
};
