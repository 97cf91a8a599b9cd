//! The registry port is sent what is not quite HTTP.
//!
//! Whatever comes is answered or hung up on; nothing panics, no head has a line that was not meant, upstream sees nothing
//! but endpoints of the spec and nothing of a client's own headers, and the next good request is answered.

use std::sync::Arc;

use regex::Regex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{APP, FakeRegistry, Image, KIB, TestProxy, within};
use crate::mutate::Mutator;
use crate::targets::{Target, endpoint_pattern};
use crate::{length, seed};

/// Requests as clients and others send them. `Host` is not looked at, but has to be there.
const REQUESTS: Target = Target {
    name: "registry_port",
    run: |_| false,
    seeds: &[
        b"GET /v2/ HTTP/1.1\r\nHost: cache:5000\r\n\r\n",
        b"GET /v2/team/app/manifests/v1?ns=one.example HTTP/1.1\r\nHost: cache\r\nAccept: application/vnd.oci.image.index.v1+json, */*\r\nAuthorization: Bearer smuggled\r\nX-Smuggled: 1\r\n\r\n",
        b"HEAD /v2/one.example/team/app/manifests/v1 HTTP/1.1\r\nHost: cache\r\nIf-None-Match: \"sha256:ab\"\r\nX-Smuggled: 1\r\n\r\n",
        b"GET /v2/team/app/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 HTTP/1.1\r\nHost: cache\r\nRange: bytes=0-,5-9\r\nIf-Range: \"x\"\r\n\r\n",
        b"GET /v2/team/app/tags/list?n=1&last=a%00b&ns=one.example HTTP/1.1\r\nHost: cache\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
        b"GET /v2/team/app/referrers/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855?artifactType=a%2Fb HTTP/1.0\r\n\r\n",
        b"POST /v2/team/app/blobs/uploads/ HTTP/1.1\r\nHost: cache\r\nContent-Length: 5\r\n\r\nhello",
        b"PUT /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: cache\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET http://evil.example/v2/ HTTP/1.1\r\nHost: cache\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        b"GET /v2/../../etc/passwd HTTP/1.1\r\nHost: cache\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    ],
    words: &[
        b"\r\n", b"\n", b"\r", b" ", b":", b"/", b"?", b"&", b"%2f", b"%00", b"..", b"#", b"@", b"GET ", b"HEAD ",
        b"/v2/", b"manifests", b"blobs", b"tags/list", b"ns=", b"ns=169.254.169.254", b"HTTP/1.1", b"HTTP/1.0",
        b"HTTP/9.9", b"Host: a\r\n", b"Content-Length: 5\r\n", b"Content-Length: +5\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: x\r\n", b"Range: bytes=", b"Connection: close\r\n", b"\0", b"\xff", b"\t", b"sha256:", b"Smuggled",
    ],
};

/// Comes behind whatever was sent: where that was a whole request, this is the next; else it is more of it.
const LAST: &[u8] = b"\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n\r\n";
/// Connections at once.
const AT_ONCE: usize = 32;
/// More than any answer here has.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_port() {
    let upstream = FakeRegistry::start().await;
    upstream.allow_concurrent_transfers();
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let proxy = TestProxy::in_front_of(&upstream)
        // Whoever does not go on is hung up on.
        .set("timeouts.header_read", "300ms")
        .set("freshness.fresh_for", "1h")
        .start()
        .await;
    let seed = seed();
    println!("FUZZ_SEED={seed}, {:?} of {}", length(), REQUESTS.name);
    let mut inputs = Mutator::new(&REQUESTS, seed);
    let line = Regex::new(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\x20-\x7e]*$").unwrap();
    let line = Arc::new(line);
    let (began, mut runs) = (Instant::now(), 0_u64);
    let mut asking = JoinSet::new();
    while began.elapsed() < length() {
        let input = inputs.next();
        let (line, address) = (Arc::clone(&line), proxy.registry);
        asking.spawn(async move {
            let asked = async {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let mut answer = Vec::new();
                let (mut from, mut to) = stream.split();
                let sending = async {
                    // Refused before it is read, perhaps.
                    let _ = to.write_all(&input).await;
                    let _ = to.write_all(LAST).await;
                };
                let reading = async {
                    let _ = (&mut from)
                        .take(ANSWER_BYTES_MAX)
                        .read_to_end(&mut answer)
                        .await;
                };
                tokio::join!(sending, reading);
                answer
            };
            let shown = input.escape_ascii().to_string();
            let answer = within(&format!("the end of b\"{shown}\""), asked).await;
            check(&answer, &line).unwrap_or_else(|wrong| panic!("{wrong} to b\"{shown}\""));
        });
        runs += 1;
        if asking.len() >= AT_ONCE {
            asking.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(ended) = asking.join_next().await {
        ended.unwrap();
    }
    println!("{runs} inputs");
    let endpoint = endpoint_pattern();
    for seen in upstream.log() {
        let path = &seen.path;
        assert!(endpoint.is_match(path), "upstream was asked for {path:?}");
        let query = seen.query.as_deref().unwrap_or_default();
        assert!(query.bytes().all(|it| it.is_ascii_graphic()), "{query:?}");
        let ours = ["x-smuggled", "authorization", "x-forwarded-for"];
        for name in ours {
            assert_eq!(seen.header(name), None, "{name} went on");
        }
    }
    proxy.pull_manifest(APP, "v1").await;
    for layer in &image.layers {
        proxy.pull_blob(APP, layer).await;
    }
    let status = [("status", "500")];
    let failed = proxy.metric("layerhold_requests_total", &status).await;
    assert_eq!(failed, 0.0, "a request's code panicked");
}

/// Whether this is nothing, or begins with an answer that has a status of ours and a head that is one.
fn check(answer: &[u8], line: &Regex) -> Result<(), String> {
    if answer.is_empty() {
        return Ok(());
    }
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n");
    let head = end.map(|end| String::from_utf8_lossy(&answer[..end]).into_owned());
    let Some(head) = head else {
        return Err(format!("no head: {:?}", answer.escape_ascii().to_string()));
    };
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.").and_then(|it| it.get(2..5));
    let known = [
        "100", "200", "206", "304", "400", "404", "405", "408", "413", "414", "416", "431",
    ];
    match status {
        Some(status) if known.contains(&status) => {}
        _ => return Err(format!("{first:?}")),
    }
    match lines.find(|it| !line.is_match(it)) {
        None => Ok(()),
        Some(wrong) => Err(format!("the line {wrong:?}")),
    }
}
