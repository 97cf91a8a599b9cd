//! Everything has a limit, and reaching it costs only whoever reached it.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::harness::{
    APP, At, Blob, Connection, End, FakeRegistry, KIB, MIB, TestProxy, get, pair,
};

/// Long after the short timeouts of these tests, long before the default ones.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let (upstream, proxy) = pair().await;
    for head in [
        format!("GET /v2/{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(MIB)),
        format!(
            "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-A: {}\r\n\r\n",
            "a".repeat(MIB)
        ),
        format!(
            "GET /v2/ HTTP/1.1\r\nHost: x\r\n{}\r\n",
            "X-A: b\r\n".repeat(10_000)
        ),
    ] {
        let mut connection = Connection::open(proxy.registry).await;
        // The proxy may close before it has taken everything.
        let _ = connection.write(head.as_bytes()).await;
        if let Ok(answer) = connection.try_head("GET").await {
            let status = answer.head.status;
            assert!(matches!(status, 400 | 414 | 431), "{status}");
        }
    }
    proxy.get("/v2/").whole().await.is(200, b"{}");
    assert!(upstream.log().is_empty());
}

#[tokio::test]
async fn invariant_10_a_client_that_dawdles_over_its_head_is_dropped() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.header_read", "300ms")
        .start()
        .await;
    let began = Instant::now();
    let mut connection = Connection::open(proxy.registry).await;
    connection
        .write(b"GET /v2/ HTTP/1.1\r\nHost")
        .await
        .unwrap();
    if let Ok(answer) = connection.try_head("GET").await {
        assert_eq!(answer.head.status, 408);
    }
    assert!(began.elapsed() < SOON);
}

#[tokio::test]
async fn invariant_10_a_client_that_takes_nothing_is_dropped() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.write_idle", "300ms")
        .start()
        .await;
    let blob = Blob::random(32 * MIB);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;

    let began = Instant::now();
    let mut slow = proxy.blob(APP, blob.digest()).send().await;
    slow.read(KIB).await;
    let both = |metrics: f64| metrics >= 1.0;
    let ends = async {
        loop {
            for end in ["abandoned", "failed"] {
                let labels = [("end", end)];
                if both(proxy.metric("layerhold_responses_total", &labels).await) {
                    return;
                }
            }
        }
    };
    crate::harness::within("the response to end", ends).await;
    assert!(began.elapsed() < SOON);
    assert_ne!(slow.whole().await.end, End::Complete);
}

#[tokio::test]
async fn invariant_10_connections_beyond_the_limit_wait_their_turn() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("limits.connections", 2)
        .start()
        .await;
    let ping = proxy.get("/v2/");
    let (_, first) = ping.send().await.whole_and_connection().await;
    let (_, _second) = ping.send().await.whole_and_connection().await;
    let third = ping.dispatch().await;
    assert!(proxy.metric("layerhold_connections", &[]).await <= 3.0);
    drop(first);
    third.head("GET").await.whole().await.is(200, b"{}");
}

#[tokio::test]
async fn invariant_10_fills_beyond_the_limit_wait_their_turn() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("limits.fills", 1)
        .start()
        .await;
    let blobs = [Blob::random(2 * MIB), Blob::random(2 * MIB)];
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    let gate = upstream.hold(get(blobs[0].digest()), At::Byte(MIB));
    let first = proxy.blob(APP, blobs[0].digest()).send().await;
    gate.reached().await;
    let second = proxy.blob(APP, blobs[1].digest()).dispatch().await;
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it >= 2.0)
        .await;
    for _ in 0..3 {
        proxy.get("/v2/").whole().await.is(200, b"{}");
    }
    assert!(proxy.metric("layerhold_fills", &[]).await <= 1.0);
    gate.open();
    first.is(&blobs[0]).await;
    second.head("GET").await.is(&blobs[1]).await;
}

#[tokio::test]
async fn invariant_10_an_upstream_is_asked_no_more_at_once_than_allowed() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("limits.requests_per_upstream", 3)
        .start()
        .await;
    let blobs: Vec<Blob> = (0..20).map(|_| Blob::random(200 * KIB)).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    join_all(blobs.iter().map(|blob| proxy.pull_blob(APP, blob))).await;
    assert!(upstream.busiest() <= 3, "{}", upstream.busiest());
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(300 * KIB);
    upstream.serve_blob(APP, &blob);
    let request = proxy.blob(APP, blob.digest());
    let mut connection = Connection::open(proxy.registry).await;
    for _ in 0..5 {
        let answer = request.send_on(connection).await;
        let (whole, back) = answer.whole_and_connection().await;
        whole.is(200, blob.bytes());
        connection = back;
    }
    assert_eq!(proxy.metric("layerhold_connections", &[]).await, 1.0);
}
