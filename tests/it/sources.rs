//! One source cannot have what is there for all.

use std::net::{IpAddr, Ipv4Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
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

/// A proxy that knows two users by their passwords.
async fn guarded(upstream: &FakeRegistry, key: &str, value: &str) -> TestProxy {
    let builder = TestProxy::in_front_of(upstream)
        .set("freshness.fresh_for", "1h")
        .set(key, value);
    let line = |name: &str| {
        let hash = bcrypt::hash(format!("{name}-password"), 4).unwrap();
        format!("{name}:{hash}\n")
    };
    let file = builder.write("htpasswd", &[line("ann"), line("bob")].concat());
    builder.set("access.htpasswd_file", file).start().await
}

/// The header line of somebody who shows a password.
fn shown(name: &str, password: &str) -> String {
    let pair = STANDARD.encode(format!("{name}:{password}"));
    format!("Authorization: Basic {pair}\r\n")
}

#[tokio::test]
async fn who_has_shown_who_it_is_has_a_limit_of_its_own_wherever_it_comes_from() {
    let upstream = FakeRegistry::start().await;
    let proxy = guarded(&upstream, "limits.requests_per_identity", "3/h").await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let target = format!("/v2/{APP}/manifests/v1");
    let pull = async |from, name: &str| {
        let connection = Connection::open_from(from, proxy.registry).await;
        let lines = shown(name, &format!("{name}-password"));
        ask(connection, &target, &lines).await.0
    };
    for from in [ONE, OTHER, ONE] {
        let whole = pull(from, "ann").await;
        whole.is(200, image.manifest.bytes());
    }
    let whole = pull(OTHER, "ann").await;
    assert_eq!(whole.head.status, 503);
    assert_eq!(whole.code().as_deref(), Some("TOOMANYREQUESTS"));
    assert!(whole.head.header("retry-after").is_some());
    pull(OTHER, "bob").await.is(200, image.manifest.bytes());
    let refused = [("reason", "requests_per_identity")];
    let refused = proxy.metric("layerhold_refusals_total", &refused).await;
    assert_eq!(refused, 1.0);
}

#[tokio::test]
async fn who_guesses_passwords_is_not_listened_to_for_a_while() {
    let upstream = FakeRegistry::start().await;
    let proxy = guarded(&upstream, "freshness.usable_for", "7d").await;
    let login = async |from, name: &str, password: &str| {
        let connection = Connection::open_from(from, proxy.registry).await;
        ask(connection, "/v2/", &shown(name, password)).await.0
    };
    login(ONE, "ann", "ann-password").await.is(200, b"{}");
    let mut guesses = 0;
    let refused = loop {
        let whole = login(ONE, "bob", &format!("guess {guesses}")).await;
        if whole.head.status != 401 {
            break whole;
        }
        guesses += 1;
        assert!(guesses < 600, "there is no limit");
    };
    assert_eq!(refused.head.status, 503);
    assert_eq!(refused.code().as_deref(), Some("TOOMANYREQUESTS"));
    // Not at once.
    assert_eq!(refused.head.header("retry-after"), Some("1"));
    assert!(guesses >= 60, "{guesses}");
    // Who was there before is, and so is everybody else.
    login(ONE, "ann", "ann-password").await.is(200, b"{}");
    login(OTHER, "bob", "bob-password").await.is(200, b"{}");
    let refused = [("reason", "failed_authentications")];
    let refused = proxy.metric("layerhold_refusals_total", &refused).await;
    assert_eq!(refused, 1.0);
}

#[tokio::test]
async fn a_write_ends_its_connection_whoever_refuses_it() {
    let upstream = FakeRegistry::start().await;
    let proxy = guarded(&upstream, "freshness.usable_for", "7d").await;
    let target = format!("/v2/{APP}/manifests/v1");
    for (lines, status) in [
        (String::new(), 401),
        (shown("ann", "guess"), 401),
        (shown("ann", "ann-password"), 405),
    ] {
        let mut connection = Connection::open_from(ONE, proxy.registry).await;
        let next = "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
        let length = next.len();
        let head = format!(
            "PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{lines}\r\n{next}{next}"
        );
        connection.write(head.as_bytes()).await.unwrap();
        let (whole, connection) = connection.head("PUT").await.whole_and_connection().await;
        assert_eq!(whole.head.status, status);
        assert_eq!(whole.head.header("connection"), Some("close"));
        assert!(connection.closed().await);
    }
    assert!(upstream.log().is_empty());
}
