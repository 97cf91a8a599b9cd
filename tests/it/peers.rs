//! Who is asking: the log names the client, and not the balancer in front, where the balancer may be believed.

use std::net::{IpAddr, SocketAddr};

use crate::harness::binary::field;
use crate::harness::{Binary, Connection, FakeRegistry, Head, ProxyBuilder, TestProxy};

/// A balancer that is believed.
const BALANCER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

/// Somebody else.
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 3));

/// A proxy that believes the balancer, and others that these tests do not connect from.
async fn builder() -> (FakeRegistry, ProxyBuilder) {
    let upstream = FakeRegistry::start().await;
    let trusted = vec!["127.0.0.2", "10.0.0.0/8", "fd00::/8"];
    let builder = TestProxy::in_front_of(&upstream).set("trusted_proxies", trusted);
    (upstream, builder)
}

/// A ping with these further header lines.
fn ping(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("GET /v2/ HTTP/1.1\r\nHost: cache.example\r\n{lines}\r\n")
}

/// Whom the log names as the client of an answered request, and what as the other end of its connection.
async fn logged(binary: &Binary, head: &Head) -> (String, SocketAddr) {
    let id = head.header("x-request-id").unwrap();
    let is_of_it = |line: &serde_json::Value| {
        let is = |name, value| field(line, name).and_then(|it| it.as_str()) == Some(value);
        is("message", "request") && is("request", id)
    };
    let line = binary.wait_for_log(is_of_it).await;
    let text = |name| field(&line, name).unwrap().as_str().unwrap();
    (text("client").to_owned(), text("peer").parse().unwrap())
}

/// Sends one request from an address and tells whom the log names as its client.
async fn client(binary: &Binary, source: IpAddr, lines: &[&str]) -> String {
    let mut connection = Connection::open_from(source, binary.registry).await;
    connection.write(ping(lines).as_bytes()).await.unwrap();
    let whole = connection.head("GET").await.whole().await;
    let (client, peer) = logged(binary, whole.is(200, b"{}")).await;
    assert_eq!(peer.ip(), source);
    client
}

#[tokio::test]
async fn the_log_names_the_client_and_not_the_balancer() {
    let (_upstream, builder) = builder().await;
    let binary = Binary::start(&builder).await;
    for (lines, expected) in [
        (&["X-Forwarded-For: 203.0.113.9"][..], "203.0.113.9"),
        (&["x-forwarded-for: [2001:db8::9]:4321"], "2001:db8::9"),
        // What the client itself wrote before the balancer added its address.
        (&["X-Forwarded-For: 1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        (&["X-Forwarded-For: 10.0.0.1, 203.0.113.9"], "203.0.113.9"),
        (
            &["X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 203.0.113.9"],
            "203.0.113.9",
        ),
        (&["X-Forwarded-For: \u{fc}, 203.0.113.9"], "203.0.113.9"),
        // A second balancer behind the first.
        (
            &["X-Forwarded-For: 1.1.1.1, 203.0.113.9, 10.0.0.1"],
            "203.0.113.9",
        ),
        (
            &["X-Forwarded-For: 203.0.113.9, unknown, 10.0.0.1"],
            "10.0.0.1",
        ),
        (&["X-Forwarded-For: nobody"], "127.0.0.2"),
        (&["Forwarded: for=203.0.113.9"], "127.0.0.2"),
        (&[], "127.0.0.2"),
    ] {
        let seen = client(&binary, BALANCER, lines).await;
        assert_eq!(seen, expected, "{lines:?}");
    }
}

#[tokio::test]
async fn a_stranger_cannot_say_for_whom_it_asks() {
    let (_upstream, builder) = builder().await;
    let binary = Binary::start(&builder).await;
    for line in [
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-For: 127.0.0.2",
        "X-A: b",
    ] {
        assert_eq!(
            client(&binary, STRANGER, &[line]).await,
            "127.0.0.3",
            "{line}"
        );
    }
}

#[tokio::test]
async fn nobody_is_believed_unless_configured() {
    let upstream = FakeRegistry::start().await;
    let binary = Binary::start(&TestProxy::in_front_of(&upstream)).await;
    let lines = ["X-Forwarded-For: 203.0.113.9"];
    assert_eq!(client(&binary, BALANCER, &lines).await, "127.0.0.2");
}

#[tokio::test]
async fn each_request_of_a_connection_has_its_own_client() {
    let (_upstream, builder) = builder().await;
    let binary = Binary::start(&builder).await;
    let mut connection = Connection::open_from(BALANCER, binary.registry).await;
    for expected in ["203.0.113.1", "203.0.113.2", "127.0.0.2"] {
        let line = format!("X-Forwarded-For: {expected}");
        connection.write(ping(&[&line]).as_bytes()).await.unwrap();
        let (whole, back) = connection.head("GET").await.whole_and_connection().await;
        let (client, _) = logged(&binary, whole.is(200, b"{}")).await;
        assert_eq!(client, expected);
        connection = back;
    }
}

#[tokio::test]
async fn a_peer_whose_ipv4_address_is_carried_by_ipv6_is_known_by_the_former() {
    let (_upstream, builder) = builder().await;
    if std::net::TcpListener::bind("[::]:0").is_err() {
        println!("no IPv6 on this machine");
        return;
    }
    let binary = Binary::start(&builder.set("listen", "[::]:0")).await;
    let address = SocketAddr::new(BALANCER, binary.registry.port());
    let mut connection = Connection::open_from(BALANCER, address).await;
    let request = ping(&["X-Forwarded-For: ::ffff:203.0.113.9"]);
    connection.write(request.as_bytes()).await.unwrap();
    let whole = connection.head("GET").await.whole().await;
    let (client, peer) = logged(&binary, whole.is(200, b"{}")).await;
    assert_eq!((client.as_str(), peer.ip()), ("203.0.113.9", BALANCER));
}
