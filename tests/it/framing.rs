//! What two parsers in a row may read differently is refused, and what comes behind it is no request.

use crate::harness::binary::field;
use crate::harness::{APP, Binary, Connection, FakeRegistry, Image, KIB, TestProxy, pair};

/// Comes behind each head: whole requests, so that a connection which goes on answers them.
const NEXT: &str = "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn pitfall_39_what_ends_somewhere_else_to_somebody_is_refused_and_ends_the_connection() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let target = format!("/v2/{APP}/manifests/v1");
    for rest in [
        "Content-Length: 4\r\n\r\n",
        "Content-Length: 64\r\n\r\n",
        "Content-Length: 64\r\nContent-Length: 64\r\n\r\n",
        "Content-Length: 64\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 64\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0\r\nX: y\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "X: y\n\r\n",
        "X: y\r\n\n",
        "X: y\n\n",
        "X: y\nContent-Length: 0\r\n\r\n",
    ] {
        for method in ["GET", "HEAD"] {
            let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{rest}{NEXT}");
            let mut connection = Connection::open(proxy.registry).await;
            connection.write(head.as_bytes()).await.unwrap();
            let answer = connection.head(method).await;
            assert_eq!(answer.head.header("connection"), Some("close"), "{rest:?}");
            let (whole, connection) = answer.whole_and_connection().await;
            assert_eq!(whole.head.status, 400, "{method} {rest:?}");
            if method == "GET" {
                assert_eq!(whole.code().as_deref(), Some("UNSUPPORTED"), "{rest:?}");
            }
            assert!(connection.closed().await, "{method} {rest:?}");
        }
    }
    assert!(upstream.log().is_empty());
    // What says that it has no body is as good as what says nothing.
    let request = proxy.get(target).header("Content-Length", "0");
    request.whole().await.is(200, image.manifest.bytes());
}

#[tokio::test]
async fn pitfall_37_a_target_that_is_a_whole_uri_is_checked_as_a_host_is() {
    let upstream = FakeRegistry::start().await;
    let other = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .and("two.example", &other)
        .upstream("hosts", vec!["two.cache.example"])
        .start()
        .await;
    let [image, others] = [Image::random(&[KIB]), Image::random(&[KIB])];
    upstream.serve_image(APP, "v1", &image);
    other.serve_image(APP, "v1", &others);
    for (authority, status) in [
        ("http://two.cache.example", 200),
        ("https://two.cache.example:443", 200),
        ("http://user@two.cache.example", 400),
        ("http://two.cache.example@evil.example", 400),
        ("http://two.cache.example:99999", 400),
        ("http://:80", 400),
        ("ftp://two.cache.example", 400),
    ] {
        let path = format!("/v2/{APP}/manifests/v1");
        let head = format!("GET {authority}{path} HTTP/1.1\r\nHost: one.cache.example\r\n\r\n");
        let mut connection = Connection::open(proxy.registry).await;
        connection.write(head.as_bytes()).await.unwrap();
        let (whole, connection) = connection.head("GET").await.whole_and_connection().await;
        assert_eq!(whole.head.status, status, "{authority}");
        match status {
            200 => assert_eq!(whole.bytes, others.manifest.bytes(), "{authority}"),
            _ => assert!(connection.closed().await, "{authority}"),
        }
    }
    assert!(upstream.log().is_empty());
}

#[tokio::test]
async fn pitfall_39_a_path_cannot_speak_to_whoever_reads_the_log() {
    let upstream = FakeRegistry::start().await;
    let binary = Binary::start(&TestProxy::in_front_of(&upstream)).await;
    // A terminal's control sequence in one character (C1), and one that turns a line around.
    let head = "GET /v2/\u{9b}31m\u{202e}\u{2028}/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut connection = Connection::open(binary.registry).await;
    connection.write(head.as_bytes()).await.unwrap();
    let whole = connection.head("GET").await.whole().await;
    assert_eq!(whole.head.status, 400);
    let is_of_request = |line: &serde_json::Value| field(line, "status").is_some();
    let line = binary.wait_for_log(is_of_request).await;
    let path = field(&line, "path").and_then(serde_json::Value::as_str);
    let escaped = "/v2/%C2%9B31m%E2%80%AE%E2%80%A8/manifests/v1";
    assert_eq!(path, Some(escaped));
}
