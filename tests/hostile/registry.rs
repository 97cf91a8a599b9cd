//! A registry that sends what it should not: what of it reaches clients, and what the log says.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::exchange::{Delivery, Exchange, Expected};
use crate::harness::{Binary, FakeRegistry, TestProxy};
use crate::log::Log;
use crate::process::turn;
use crate::{choices, number, seed, throw};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_registry_says_is_in_no_header_and_no_line_of_the_log_that_it_was_not_meant_for() {
    let _turn = turn().await;
    let (seed, requests) = (seed(), number("HOSTILE_REQUESTS").unwrap_or(6000) / 6);
    println!("HOSTILE_SEED={seed}, {requests} requests");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(answer_badly(listener, seed));
    let registry = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&registry)
        .upstream("url", format!("http://{address}"))
        .set("freshness.retry_after", "1ms")
        .set("freshness.negative_for", "0s")
        .set("timeouts.answer", "3s")
        .set("log_level", "debug");
    let binary = Binary::start(&builder).await;
    let mut random = choices(seed);
    let exchanges = (0..requests).map(|n| {
        let digest = format!("sha256:{:064x}", random.random::<u128>());
        let targets = [
            format!("manifests/v{n}"),
            format!("manifests/{digest}"),
            format!("blobs/{digest}"),
            "tags/list".to_owned(),
            format!("referrers/{digest}"),
        ];
        let target = targets.choose(&mut random).unwrap();
        let request = format!(
            "GET /v2/team/app{n}/{target} HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n\r\n"
        );
        Exchange {
            shape: "a registry that misbehaves",
            bytes: request.into_bytes(),
            delivery: Delivery::AtOnce,
            expected: vec![Expected {
                is_head: false,
                statuses: &[200, 401, 403, 404, 502, 503, 504],
            }],
            may_be_silent: true,
        }
    });
    let exchanges: Vec<_> = exchanges.collect();
    let seen = throw(binary.registry, exchanges.into_iter()).await;
    let log = Log::of(&binary).await;
    log.is_sane(&seen);
    log.has_none_of(&["hunter2", "X-Amz-Signature"]);
    let distinct: BTreeSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len());
}

/// Answers whatever it is asked with something that is wrong, and closes.
async fn answer_badly(listener: TcpListener, seed: u64) {
    let mut random = choices(seed);
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = ANSWERS.choose(&mut random).unwrap();
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                    return;
                }
            }
            // Whoever asked may be gone.
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        });
    }
}

const ANSWERS: &[&[u8]] = &[
    b"HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"http://evil.example/\xc2\x9b31m\xe2\x80\xaeforged\",service=\"\xff\"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"http://user:hunter2@127.0.0.1:1/t?X-Amz-Signature=hunter2\"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"{\\\"message\\\":\\\"forged\\\"}\"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 No\r\nLocation: http://user:hunter2@127.0.0.1:1/\xe2\x80\xae?X-Amz-Signature=hunter2\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 No\r\nLocation: http://xn--\xc2\x9b31m.example/?X-Amz-Signature=hunter2\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 No\r\nLocation: //[::1%25eth0]:99999/?X-Amz-Signature=hunter2\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html; \xc2\x9b31m\xe2\x80\xae\r\nContent-Length: 11\r\n\r\n\x1b[31mforged",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nDocker-Content-Digest: sha256:\xe2\x80\xae\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nX-Injected: y\r\nSet-Cookie: a=b\r\nOCI-Filters-Applied: \xff\x9b\r\nContent-Length: 61\r\n\r\n{\"schemaVersion\":2,\"mediaType\":\"\xc2\x9b31m\xe2\x80\xae\\nforged\",\"layers\":[]}  ",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLink: </v2/x?a=\xe2\x80\xae\"<>>; rel=next\r\nSet-Cookie: a=b\r\nContent-Length: 30\r\n\r\n{\"name\":\"\\u009b\",\"tags\":[\"v\"]}",
    b"HTTP/1.1 404 \xe2\x80\xaeforged\r\nContent-Type: application/json\r\nContent-Length: 68\r\n\r\n{\"errors\":[{\"code\":\"\\u001b[31m\",\"message\":\"a\\r\\n{\\\"message\\\":\\\"forged\\\"}\"}]}",
    b"HTTP/1.1 429 No\r\nRetry-After: \xe2\x80\xae-1\r\nRateLimit-Limit: \xff;w=x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 500 No\r\nContent-Length: 15\r\n\r\n\n{\"message\":\"forged\"}",
    b"HTTP/1.1 206 No\r\nContent-Range: bytes 5-1/\xff\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    b"HTTP/1.1 999 \x1b[31m\r\n\r\n",
    b"\x1b[31mforged\r\n\r\n",
    b"",
];
