//! Everything has a limit, and reaching it costs only whoever reached it.

use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::time::Instant;

use crate::harness::binary::field;
use crate::harness::proxy::sum;
use crate::harness::{
    APP, At, Binary, Blob, Connection, End, FakeRegistry, Image, KIB, MIB, TestProxy, get, pair,
    poll,
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
async fn an_idle_connection_ends_in_order_and_is_no_failure() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream)
        .set("log_level", "debug")
        .set("timeouts.header_read", "300ms");
    let binary = Binary::start(&builder).await;
    let ping = binary.get("/v2/");
    let (_, idle) = ping.send().await.whole_and_connection().await;
    let fresh = Connection::open(binary.registry).await;
    for connection in [idle, fresh] {
        // Not a byte, and no reset.
        assert_eq!(connection.end().await, End::Cut);
    }
    let is_told = |message: &str| {
        let message = message.to_owned();
        move |line: &Value| field(line, "message").is_some_and(|it| *it == *message)
    };
    binary.wait_for_log(is_told("idle connection closed")).await;
    assert!(!binary.log().iter().any(is_told("connection ended")));
    let metrics = binary.metrics().await;
    let ended = |end| sum(&metrics, "layerhold_responses_total", &[("end", end)]);
    assert_eq!((ended("failed"), ended("abandoned")), (0.0, 0.0));
    assert_eq!(sum(&metrics, "layerhold_requests_total", &[]), 1.0);

    // Whoever dawdles over a head is told apart.
    let mut dawdling = Connection::open(binary.registry).await;
    dawdling.write(b"GET /v2/ HTTP/1.1").await.unwrap();
    assert!(dawdling.closed().await);
    binary.wait_for_log(is_told("connection ended")).await;
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
    poll("the response to end", async || {
        let metrics = proxy.metrics().await;
        let ended = |end| sum(&metrics, "layerhold_responses_total", &[("end", end)]);
        (ended("abandoned") + ended("failed") >= 1.0).then_some(())
    })
    .await;
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
async fn connections_are_no_more_than_there_are_descriptors_for() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    let binary = Binary::start_with_open_files(&builder, 128).await;
    let limit = "layerhold_connections_limit";
    assert_eq!(binary.metric(limit, &[]).await, 64.0);
    let said = "the limit of open files allows fewer connections than are configured";
    let line = binary
        .wait_for_log(|line| field(line, "message").is_some_and(|it| *it == said))
        .await;
    assert_eq!(field(&line, "level").unwrap(), "WARN");
    let numbers = ["configured", "connections", "open_files"].map(|it| field(&line, it).unwrap());
    assert_eq!(numbers, [16_384, 64, 128]);

    drop(binary);
    let enough = Binary::start(&builder.set("limits.connections", 10)).await;
    assert_eq!(enough.metric(limit, &[]).await, 10.0);
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
    assert_eq!(upstream.count(&get(blobs[1].digest())), 0);
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
async fn pitfall_49_memory_is_a_matter_of_streams_and_not_of_bytes() {
    let upstream = FakeRegistry::start().await;
    let binary = Binary::start(&TestProxy::in_front_of(&upstream)).await;
    let blob = Blob::random(128 * MIB);
    upstream.serve_blob(APP, &blob);
    let request = binary.blob(APP, blob.digest());
    let streams = 9;
    // One of them takes nothing until the others are done.
    let slow = request.send().await;
    join_all((1..streams).map(|_| async { request.send().await.is(&blob).await })).await;
    slow.is(&blob).await;
    let peak = binary.peak_memory();
    let allowed = 64 * MIB + streams * 256 * KIB;
    assert!(peak < allowed, "{} MiB", peak / MIB);
}

#[tokio::test]
async fn no_words_of_a_client_bring_the_proxy_down() {
    let (upstream, proxy) = pair().await;
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let words: &[&[u8]] = &[
        b"GET ",
        b"HEAD ",
        b"/v2/",
        b"team/app",
        b"/manifests/",
        b"/blobs/",
        b"sha256:",
        b"%2f",
        b"..",
        b"?ns=",
        b"&",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b"\r\n",
        b"\n",
        b"Host: ",
        b"Range: ",
        b"bytes=",
        b"18446744073709551616-",
        b"-",
        b"If-None-Match: ",
        b"\"",
        b"W/",
        b"*",
        b",",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"\0",
        b"\xff\xfe",
        b"tags/list",
    ];
    for _ in 0..400 {
        let mut request = b"GET /v2/".to_vec();
        for _ in 0..random.random_range(0..12) {
            request.extend(words[random.random_range(0..words.len())]);
        }
        request.extend(b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut connection = Connection::open(proxy.registry).await;
        // It may be refused before it is taken.
        let _ = connection.write(&request).await;
        connection.finish().await;
        if let Ok(answer) = connection.try_head("GET").await {
            let status = answer.head.status;
            let text = String::from_utf8_lossy(&request);
            assert_ne!(status, 500, "{text:?}");
        }
    }
    proxy.get("/v2/").whole().await.is(200, b"{}");
    for seen in upstream.log() {
        assert!(!seen.path.contains(".."), "{seen:?}");
    }
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

#[tokio::test]
async fn a_manifest_does_not_wait_behind_slow_fills() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("limits.fills", 1)
        .start()
        .await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));
    let slow = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    let images = [Image::random(&[KIB]), Image::random(&[KIB])];
    upstream.serve_image(APP, "v1", &images[0]);
    upstream.serve_image(APP, "v2", &images[1]);
    proxy.pull_manifest(APP, "v1").await;
    proxy.pull_manifest(APP, images[1].manifest.digest()).await;
    gate.open();
    slow.is(&blob).await;
}

#[tokio::test]
async fn asking_for_repositories_that_are_not_there_forgets_none_that_is() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("cache.repositories_max", 2)
        .start()
        .await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let layer = &image.layers[0];
    proxy.wait_for_hit(APP, layer).await;
    for n in 0..5 {
        let missing = proxy.manifest(&format!("nobody/app{n}"), "v1");
        assert_eq!(missing.whole().await.head.status, 404);
        let missing = proxy.blob(&format!("nobody/app{n}"), image.manifest.digest());
        assert_eq!(missing.whole().await.head.status, 404);
    }
    upstream.quiet().await;
    // Still granted: nobody has to prove anything.
    let before = upstream.log().len();
    let hit = proxy.pull_blob(APP, layer).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
    assert_eq!(upstream.log().len(), before);
}
