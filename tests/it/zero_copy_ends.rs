//! However a large hit ends that goes from its file to the socket by itself: what the client sees, and what is counted.

use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr};

use tokio::time::Duration;

use crate::harness::proxy::{Front, sum};
use crate::harness::{
    APP, Answer, Binary, Blob, Connection, End, FakeRegistry, KIB, MIB, ProxyBuilder, TestProxy,
    poll,
};

/// A proxy that has a blob of this length, and what it has counted so far.
async fn warm(
    builder: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
    len: usize,
) -> (FakeRegistry, TestProxy, Blob, Counted) {
    let upstream = FakeRegistry::start().await;
    let proxy = builder(TestProxy::in_front_of(&upstream)).start().await;
    let blob = Blob::random(len);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    // Nothing of the pulls so far is counted later.
    poll("the pulls to be counted", async || {
        let counted = Counted::by(&proxy).await;
        let bytes = counted.bytes >= 2.0 * len as f64;
        (bytes && counted.abandoned + counted.failed == 0.0).then_some(())
    })
    .await;
    let before = Counted::by(&proxy).await;
    (upstream, proxy, blob, before)
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Counted {
    complete: f64,
    abandoned: f64,
    failed: f64,
    /// Of blobs, that went out.
    bytes: f64,
}

impl Counted {
    async fn by(front: &Front) -> Self {
        let text = front.metrics().await;
        let ended = |end| sum(&text, "layerhold_responses_total", &[("end", end)]);
        Self {
            complete: ended("complete"),
            abandoned: ended("abandoned"),
            failed: ended("failed"),
            bytes: sum(
                &text,
                "layerhold_response_bytes_total",
                &[("endpoint", "blob")],
            ),
        }
    }

    /// Waits until this many more have ended in each way, and gives the bytes that went out meanwhile.
    async fn then(self, front: &Front, complete: f64, abandoned: f64, failed: f64) -> f64 {
        let wanted = [complete, abandoned, failed];
        poll("responses to be counted", async || {
            let now = Self::by(front).await;
            let more = [
                now.complete - self.complete,
                now.abandoned - self.abandoned,
                now.failed - self.failed,
            ];
            let all: f64 = more.iter().sum();
            if all < wanted.iter().sum() {
                return None;
            }
            assert_eq!(more, wanted);
            Some(now.bytes - self.bytes)
        })
        .await
    }
}

fn head_of(blob: &Blob, lines: &str) -> String {
    let digest = blob.digest();
    format!("GET /v2/{APP}/blobs/{digest} HTTP/1.1\r\nHost: x\r\n{lines}\r\n")
}

/// A client that has begun to read, and has not taken what the kernel holds for it.
async fn begun(proxy: &TestProxy, blob: &Blob) -> Answer {
    let mut reader = proxy.blob(APP, blob.digest()).send().await;
    reader.read(KIB).await;
    reader
}

#[tokio::test]
async fn a_failure_just_before_the_end_is_one() {
    let (upstream, proxy, blob, before) = warm(|it| it, 64 * MIB).await;
    let reader = begun(&proxy, &blob).await;
    upstream.stop().await;
    // Less than the head had.
    let kept = blob.len() - 20;
    let file = proxy.published(blob.digest());
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(kept as u64).unwrap();
    let whole = reader.whole().await;
    assert_ne!(whole.end, End::Complete);
    let bytes = before.then(&proxy, 0.0, 0.0, 1.0).await;
    assert_eq!(bytes, kept as f64);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_or_resets_is_counted_once() {
    let (_upstream, proxy, blob, before) = warm(|it| it, 64 * MIB).await;
    let mut reader = begun(&proxy, &blob).await;
    reader.read(4 * MIB).await;
    // What was not read makes this a reset.
    drop(reader);
    let bytes = before.then(&proxy, 0.0, 1.0, 0.0).await;
    let len = blob.len() as f64;
    assert!(bytes > 4.0 * 1024.0 * 1024.0 && bytes < len, "{bytes}");
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 0.0)
        .await;
}

#[tokio::test]
async fn a_client_that_says_no_more_is_served_as_before() {
    let (_upstream, proxy, blob, before) = warm(|it| it, 64 * MIB).await;
    let mut client = Connection::open(proxy.registry).await;
    client.write(head_of(&blob, "").as_bytes()).await.unwrap();
    client.finish().await;
    let seen = client.try_head("GET").await;
    let Ok(answer) = seen else {
        before.then(&proxy, 0.0, 1.0, 0.0).await;
        return;
    };
    let whole = answer.whole().await;
    // To us its end is that of the connection. But no end is taken for that of the body.
    assert!(blob.bytes().starts_with(&whole.bytes));
    let is_whole = whole.bytes.len() == blob.len();
    assert_eq!(whole.end == End::Complete, is_whole);
    let (complete, abandoned) = if is_whole { (1.0, 0.0) } else { (0.0, 1.0) };
    before.then(&proxy, complete, abandoned, 0.0).await;
}

#[tokio::test]
async fn hundreds_of_files_go_over_one_connection() {
    let (_upstream, proxy, blob, before) = warm(|it| it, 3 * MIB + 1).await;
    let parts = [(0, MIB), (1, MIB + 1), (77, 2 * MIB), (5, 6), (9, MIB + 8)];
    let mut connection = Connection::open(proxy.registry).await;
    let (mut rounds, mut bytes) = (0, 0);
    while rounds < 40 {
        let mut text = String::new();
        for (start, end) in parts {
            text += &head_of(&blob, &format!("Range: bytes={start}-{}\r\n", end - 1));
        }
        connection.write(text.as_bytes()).await.unwrap();
        for (start, end) in parts {
            let (part, back) = connection.head("GET").await.whole_and_connection().await;
            part.is(206, &blob.bytes()[start..end]);
            connection = back;
            bytes += end - start;
        }
        rounds += 1;
    }
    let sent = before.then(&proxy, 200.0, 0.0, 0.0).await;
    assert_eq!(sent, bytes as f64);
}

#[tokio::test]
async fn answers_without_a_body_go_behind_a_file() {
    let (_upstream, proxy, blob, before) = warm(|it| it, 20 * MIB).await;
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    let same = format!("If-None-Match: \"{}\"\r\n", blob.digest());
    let beyond = format!("Range: bytes={}-\r\n", blob.len());
    let last = format!("Range: bytes={}-\r\n", blob.len() - 1);
    let mut text = head_of(&blob, "");
    text += &format!("HEAD {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    for lines in [&same, &beyond, &last, &String::new()] {
        text += &head_of(&blob, lines);
    }
    let mut connection = Connection::open(proxy.registry).await;
    connection.write(text.as_bytes()).await.unwrap();
    let whole = blob.bytes();
    let last = &whole[whole.len() - 1..];
    let expected: [(&str, u16, Option<&[u8]>); 6] = [
        ("GET", 200, Some(whole)),
        ("HEAD", 200, Some(b"")),
        ("GET", 304, Some(b"")),
        ("GET", 416, None),
        ("GET", 206, Some(last)),
        ("GET", 200, Some(whole)),
    ];
    for (method, status, bytes) in expected {
        let mut answer = connection.head(method).await;
        assert_eq!(answer.head.status, status);
        match bytes {
            Some(bytes) => {
                assert!(answer.read(bytes.len()).await == bytes);
                connection = answer.into_connection();
            }
            None => connection = answer.whole_and_connection().await.1,
        }
    }
    before.then(&proxy, 6.0, 0.0, 0.0).await;
}

#[tokio::test]
async fn words_of_other_protocols_change_nothing() {
    let (_upstream, proxy, blob, before) = warm(|it| it, 20 * MIB).await;
    let lines = [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        "TE: trailers\r\n",
        "Connection: close, Upgrade\r\nUpgrade: websocket\r\n",
    ];
    let mut connection = Connection::open(proxy.registry).await;
    for lines in lines {
        let text = head_of(&blob, lines);
        connection.write(text.as_bytes()).await.unwrap();
        let (whole, back) = connection.head("GET").await.whole_and_connection().await;
        whole.is(200, blob.bytes());
        connection = back;
    }
    assert!(connection.closed().await);
    let bytes = before.then(&proxy, 4.0, 0.0, 0.0).await;
    assert_eq!(bytes, 4.0 * blob.len() as f64);
}

#[tokio::test]
async fn invariant_12_a_file_under_way_is_sent_to_its_end_before_the_proxy_stops() {
    for lines in ["", "Connection: close\r\n"] {
        let upstream = FakeRegistry::start().await;
        let binary = Binary::start(&TestProxy::in_front_of(&upstream)).await;
        let blob = Blob::random(64 * MIB);
        upstream.serve_blob(APP, &blob);
        binary.wait_for_hit(APP, &blob).await;
        let mut client = Connection::open(binary.registry).await;
        let text = head_of(&blob, lines);
        client.write(text.as_bytes()).await.unwrap();
        let mut reader = client.head("GET").await;
        reader.read(KIB).await;
        binary.terminate();
        poll("readiness to fail", async || {
            let ready = binary.admin("/readyz").await;
            (ready.head.status == 503).then_some(())
        })
        .await;
        reader.continues(&blob, KIB).await;
        assert_eq!(binary.exited().await.code(), Some(0));
    }
}

#[tokio::test]
async fn invariant_12_a_file_that_outlasts_the_drain_is_broken_off() {
    let (_upstream, proxy, blob, _) = warm(|it| it.set("timeouts.drain", "300ms"), 64 * MIB).await;
    let reader = begun(&proxy, &blob).await;
    proxy.shut_down();
    proxy.stopped().await;
    let whole = reader.whole().await;
    assert_eq!(whole.end, End::Reset);
    assert!(blob.bytes()[KIB..].starts_with(&whole.bytes));
}

#[tokio::test]
async fn invariant_10_a_client_that_takes_nothing_of_a_file_is_reset() {
    let patience = |it: ProxyBuilder| it.set("timeouts.write_idle", "300ms");
    let (_upstream, proxy, blob, before) = warm(patience, 64 * MIB).await;
    let reader = begun(&proxy, &blob).await;
    let bytes = before.then(&proxy, 0.0, 1.0, 0.0).await;
    let whole = reader.whole().await;
    assert_eq!(whole.end, End::Reset);
    assert!((whole.bytes.len() + KIB) as f64 <= bytes);
}

#[tokio::test]
async fn a_client_that_takes_some_now_and_then_gets_the_whole_file() {
    let patience = |it: ProxyBuilder| it.set("timeouts.write_idle", "1s");
    let (_upstream, proxy, blob, before) = warm(patience, 16 * MIB).await;
    let mut reader = begun(&proxy, &blob).await;
    let mut taken = KIB;
    // Longer in all than it may take nothing.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        taken += reader.read(MIB).await.len();
    }
    reader.continues(&blob, taken).await;
    before.then(&proxy, 1.0, 0.0, 0.0).await;
}

#[tokio::test]
async fn a_connection_that_sends_a_file_makes_no_room_and_does_when_it_is_sent() {
    let few = |it: ProxyBuilder| it.set("limits.connections_per_source", 1);
    let (_upstream, proxy, blob, before) = warm(few, 64 * MIB).await;
    let one = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
    let mut first = Connection::open_from(one, proxy.registry).await;
    first.write(head_of(&blob, "").as_bytes()).await.unwrap();
    let mut first = first.head("GET").await;
    first.read(KIB).await;
    let second = Connection::open_from(one, proxy.registry).await;
    assert!(second.closed().await);
    let (whole, first) = first.whole_and_connection().await;
    assert_eq!(whole.end, End::Complete);
    assert!(whole.bytes == blob.bytes()[KIB..]);
    before.then(&proxy, 1.0, 0.0, 0.0).await;
    // It is idle now.
    let mut third = Connection::open_from(one, proxy.registry).await;
    third.write(head_of(&blob, "").as_bytes()).await.unwrap();
    third.head("GET").await.is(&blob).await;
    assert!(first.closed().await);
}
