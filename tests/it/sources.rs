//! One source cannot have what is there for all.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::future::join_all;

use crate::harness::binary::field;
use crate::harness::{
    APP, At, Binary, Blob, Connection, End, FakeRegistry, Image, KIB, MIB, TestProxy, Whole, get,
};

const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));

/// Sends a request on a connection that stays open, and reads the answer.
async fn ask(mut connection: Connection, target: &str, lines: &str) -> (Whole, Connection) {
    let head = format!("GET {target} HTTP/1.1\r\nHost: cache\r\n{lines}\r\n");
    connection.write(head.as_bytes()).await.unwrap();
    connection.head("GET").await.whole_and_connection().await
}

#[tokio::test]
async fn invariant_10_a_source_that_wants_more_connections_gives_up_those_that_wait_longest() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("limits.connections_per_source", 3)
        .start()
        .await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    // One is served, one is within its head, one is idle.
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let mut served = Connection::open_from(ONE, proxy.registry).await;
    let head = format!(
        "GET /v2/{APP}/blobs/{} HTTP/1.1\r\nHost: x\r\n\r\n",
        blob.digest()
    );
    served.write(head.as_bytes()).await.unwrap();
    gate.reached().await;
    let mut dawdling = Connection::open_from(ONE, proxy.registry).await;
    dawdling.write(b"GET /v2/ HTTP/1.1\r\nHo").await.unwrap();
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 2.0)
        .await;
    let idle = Connection::open_from(ONE, proxy.registry).await;
    let (_, idle) = ask(idle, "/v2/", "").await;
    let others = Connection::open_from(OTHER, proxy.registry).await;
    let (_, others) = ask(others, "/v2/", "").await;

    let fourth = Connection::open_from(ONE, proxy.registry).await;
    let (answer, fourth) = ask(fourth, "/v2/", "").await;
    answer.is(200, b"{}");
    assert!(dawdling.closed().await);
    let fifth = Connection::open_from(ONE, proxy.registry).await;
    let (answer, fifth) = ask(fifth, "/v2/", "").await;
    answer.is(200, b"{}");
    // In order, and without a byte.
    assert_eq!(idle.end().await, End::Cut);
    for waiting in [fourth, fifth, others] {
        ask(waiting, "/v2/", "").await.0.is(200, b"{}");
    }
    gate.open();
    served.head("GET").await.is(&blob).await;
    let refused = [("reason", "connections_per_source")];
    let refused = proxy.metric("layerhold_refusals_total", &refused).await;
    assert_eq!(refused, 0.0);
}

#[tokio::test]
async fn invariant_10_a_source_whose_connections_are_all_in_use_gets_no_more() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("limits.connections_per_source", 2);
    let binary = Binary::start(&builder).await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let head = format!(
        "GET /v2/{APP}/blobs/{} HTTP/1.1\r\nHost: x\r\n\r\n",
        blob.digest()
    );
    let mut pulls = Vec::new();
    for _ in 0..2 {
        let mut pull = Connection::open_from(ONE, binary.registry).await;
        pull.write(head.as_bytes()).await.unwrap();
        pulls.push(pull.head("GET").await);
    }
    let third = Connection::open_from(ONE, binary.registry).await;
    assert!(third.closed().await);
    let told = binary
        .wait_for_log(|line| field(line, "limit").is_some_and(|it| it == 2))
        .await;
    assert_eq!(field(&told, "source").unwrap(), "127.0.0.3");
    let refused = [("reason", "connections_per_source")];
    let refused = binary.metric("layerhold_refusals_total", &refused).await;
    assert_eq!(refused, 1.0);
    let other = Connection::open_from(OTHER, binary.registry).await;
    ask(other, "/v2/", "").await.0.is(200, b"{}");
    gate.open();
    for pull in pulls {
        pull.is(&blob).await;
    }
}

#[tokio::test]
async fn a_balancer_may_have_as_many_connections_as_it_likes() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("trusted_proxies", vec!["127.0.0.2"])
        .set("limits.connections_per_source", 1)
        .start()
        .await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let connection = Connection::open_from(BALANCER, proxy.registry).await;
        open.push(ask(connection, "/v2/", "").await.1);
    }
    for connection in open {
        ask(connection, "/v2/", "").await.0.is(200, b"{}");
    }
}

#[tokio::test]
async fn pitfall_41_a_source_that_asks_too_often_waits_and_is_then_told_to_go_elsewhere() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.fresh_for", "1h")
        .set("limits.requests_per_source", "20/h")
        .set("trusted_proxies", vec!["127.0.0.2"])
        .start()
        .await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let target = format!("/v2/{APP}/manifests/v1");
    let mut connection = Connection::open_from(ONE, proxy.registry).await;
    for _ in 0..20 {
        let (whole, next) = ask(connection, &target, "").await;
        whole.is(200, image.manifest.bytes());
        connection = next;
    }
    let asked = upstream.log().len();
    let (whole, connection) = ask(connection, &target, "").await;
    assert_eq!(whole.head.status, 503);
    assert_eq!(whole.code().as_deref(), Some("TOOMANYREQUESTS"));
    let after: u64 = whole.head.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=180).contains(&after), "{after}");
    assert_eq!(upstream.log().len(), asked);
    // The connection is as good as before, the ping is free, and others have their own.
    let (whole, _) = ask(connection, "/v2/", "").await;
    whole.is(200, b"{}");
    let other = Connection::open_from(OTHER, proxy.registry).await;
    let (whole, _) = ask(other, &target, "").await;
    whole.is(200, image.manifest.bytes());
    // A balancer's clients are told apart, and are the same whoever asks for them; the balancer itself is nobody.
    for (lines, status) in [
        ("X-Forwarded-For: 127.0.0.3\r\n", 503),
        ("X-Forwarded-For: 203.0.113.9\r\n", 200),
        ("", 200),
    ] {
        let balancer = Connection::open_from(BALANCER, proxy.registry).await;
        let (whole, _) = ask(balancer, &target, lines).await;
        assert_eq!(whole.head.status, status, "{lines}");
    }
    let refused = [("reason", "requests_per_source")];
    let refused = proxy.metric("layerhold_refusals_total", &refused).await;
    assert_eq!(refused, 2.0);
}

#[tokio::test]
async fn a_request_that_comes_a_little_early_waits_for_its_turn() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.fresh_for", "1h")
        .set("limits.requests_per_source", "5/s")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let request = proxy.manifest(APP, "v1");
    let pulls = (0..20).map(|_| request.whole());
    for whole in join_all(pulls).await {
        whole.is(200, image.manifest.bytes());
    }
}
