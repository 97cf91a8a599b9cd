//! Who is asking: the log names the client, and not the balancer in front, where the balancer may be believed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::binary::field;
use crate::harness::{Binary, Connection, FakeRegistry, Head, ProxyBuilder, TestProxy, within};

/// A balancer that is believed.
const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Somebody else.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

/// Long after the short timeouts of these tests, long before the default ones.
const SOON: Duration = Duration::from_secs(10);

/// A proxy that believes the balancer, and others that these tests do not connect from.
async fn builder() -> (FakeRegistry, ProxyBuilder) {
    let upstream = FakeRegistry::start().await;
    let trusted = vec!["127.0.0.2", "10.0.0.0/8", "fd00::/8"];
    let builder = TestProxy::in_front_of(&upstream).set("trusted_proxies", trusted);
    (upstream, builder)
}

/// The same, where the balancer's connections begin with a PROXY header.
async fn builder_with_headers() -> (FakeRegistry, ProxyBuilder) {
    let (upstream, builder) = builder().await;
    (upstream, builder.set("proxy_protocol", true))
}

/// A PROXY header of version 2 from these bytes of command and family, and what follows its length.
fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    let fixed = [0x20 | command, family];
    [b"\r\n\r\n\0\r\nQUIT\n", &fixed[..], &len, rest].concat()
}

/// A PROXY header for a connection from `source` to an address of its family.
fn header_for(source: &str, tlvs: &[u8]) -> Vec<u8> {
    let source: SocketAddr = source.parse().unwrap();
    let ports = [source.port().to_be_bytes(), 443_u16.to_be_bytes()].concat();
    match source.ip() {
        IpAddr::V4(ip) => {
            let rest = [&ip.octets()[..], &[192, 0, 2, 80], &ports, tlvs];
            header(1, 0x11, &rest.concat())
        }
        IpAddr::V6(ip) => {
            let rest = [&ip.octets()[..], &[0xfd; 16], &ports, tlvs];
            header(1, 0x21, &rest.concat())
        }
    }
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
async fn no_proxy_header_is_read_unless_configured() {
    let (_upstream, builder) = builder().await;
    let proxy = builder.start().await;
    let mut connection = Connection::open_from(BALANCER, proxy.registry).await;
    let header = header_for("203.0.113.9:4321", b"");
    let all = [&header[..], ping(&[]).as_bytes()].concat();
    connection.write(&all).await.unwrap();
    assert_eq!(connection.head("GET").await.head.status, 400);
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

/// Opens a connection from an address, sends these bytes and a ping, and tells client and peer as the log has them.
async fn seen_after(
    binary: &Binary,
    source: IpAddr,
    bytes: &[u8],
    lines: &[&str],
) -> (String, String) {
    let mut connection = Connection::open_from(source, binary.registry).await;
    let all = [bytes, ping(lines).as_bytes()].concat();
    connection.write(&all).await.unwrap();
    let whole = connection.head("GET").await.whole().await;
    let (client, peer) = logged(binary, whole.is(200, b"{}")).await;
    (client, peer.to_string())
}

#[tokio::test]
async fn a_proxy_header_says_whose_connection_it_is() {
    let (_upstream, builder) = builder_with_headers().await;
    let binary = Binary::start(&builder).await;
    // A checksum that is wrong, somebody's own, and padding: none is looked at.
    let tlvs = b"\x03\x00\x04\xde\xad\xbe\xef\xea\x00\x02\x01x\x04\x00\x03\0\0\0";
    for (bytes, client, peer) in [
        (
            header_for("203.0.113.9:4321", b""),
            "203.0.113.9",
            "203.0.113.9:4321",
        ),
        (
            header_for("203.0.113.9:4321", tlvs),
            "203.0.113.9",
            "203.0.113.9:4321",
        ),
        (
            header_for("[2001:db8::9]:4321", b""),
            "2001:db8::9",
            "[2001:db8::9]:4321",
        ),
        (
            header_for("[2001:db8::9]:4321", tlvs),
            "2001:db8::9",
            "[2001:db8::9]:4321",
        ),
        (
            header_for("[::ffff:203.0.113.9]:4321", b""),
            "203.0.113.9",
            "203.0.113.9:4321",
        ),
        // The balancer asks for itself, or for somebody that it cannot name.
        (header(0, 0x00, b""), "127.0.0.2", "127.0.0.2:"),
        (header(0, 0x11, &[9; 12]), "127.0.0.2", "127.0.0.2:"),
        (header(1, 0x00, tlvs), "127.0.0.2", "127.0.0.2:"),
    ] {
        let seen = seen_after(&binary, BALANCER, &bytes, &[]).await;
        assert_eq!(seen.0, client, "{bytes:02x?}");
        assert!(seen.1.starts_with(peer), "{seen:?}");
    }
}

#[tokio::test]
async fn a_proxy_header_may_come_byte_by_byte() {
    let (_upstream, builder) = builder_with_headers().await;
    let binary = Binary::start(&builder).await;
    let mut connection = Connection::open_from(BALANCER, binary.registry).await;
    let all = header_for("203.0.113.9:4321", &[4, 0, 2, 0, 0]);
    for byte in all.iter().chain(ping(&[]).as_bytes()) {
        connection.write(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let whole = connection.head("GET").await.whole().await;
    let (client, _) = logged(&binary, whole.is(200, b"{}")).await;
    assert_eq!(client, "203.0.113.9");
}

#[tokio::test]
async fn a_connection_is_whose_it_is_for_all_its_requests() {
    let (_upstream, builder) = builder_with_headers().await;
    let binary = Binary::start(&builder).await;
    let mut connection = Connection::open_from(BALANCER, binary.registry).await;
    let header = header_for("203.0.113.9:4321", b"");
    connection.write(&header).await.unwrap();
    for _ in 0..3 {
        connection.write(ping(&[]).as_bytes()).await.unwrap();
        let (whole, back) = connection.head("GET").await.whole_and_connection().await;
        let (client, peer) = logged(&binary, whole.is(200, b"{}")).await;
        assert_eq!((client.as_str(), peer.port()), ("203.0.113.9", 4321));
        connection = back;
    }
    // A second header is nothing that a request begins with.
    connection.write(&header).await.unwrap();
    assert_eq!(connection.head("GET").await.head.status, 400);
}

#[tokio::test]
async fn a_forwarded_header_counts_where_the_client_of_the_connection_is_trusted() {
    let (_upstream, builder) = builder_with_headers().await;
    let binary = Binary::start(&builder).await;
    let lines = ["X-Forwarded-For: 198.51.100.4"];
    for (bytes, client) in [
        (header_for("203.0.113.9:4321", b""), "203.0.113.9"),
        // A balancer of requests behind one of connections.
        (header_for("10.0.0.1:4321", b""), "198.51.100.4"),
        (header(0, 0x00, b""), "198.51.100.4"),
    ] {
        let seen = seen_after(&binary, BALANCER, &bytes, &lines).await;
        assert_eq!(seen.0, client, "{bytes:02x?}");
    }
}

#[tokio::test]
async fn a_strangers_proxy_header_is_a_bad_request() {
    let (_upstream, builder) = builder_with_headers().await;
    let binary = Binary::start(&builder).await;
    assert_eq!(seen_after(&binary, STRANGER, b"", &[]).await.0, "127.0.0.3");
    let mut connection = Connection::open_from(STRANGER, binary.registry).await;
    let all = [
        &header_for("203.0.113.9:4321", b"")[..],
        ping(&[]).as_bytes(),
    ]
    .concat();
    connection.write(&all).await.unwrap();
    let refused = connection.head("GET").await;
    assert_eq!(refused.head.status, 400);
    // Nor is one read at the admin port, which needs none.
    let mut connection = Connection::open_from(BALANCER, binary.admin).await;
    connection.write(&all).await.unwrap();
    assert_eq!(connection.head("GET").await.head.status, 400);
    let mut connection = Connection::open_from(BALANCER, binary.admin).await;
    connection.write(ping(&[]).as_bytes()).await.unwrap();
    assert_eq!(connection.head("GET").await.head.status, 404);
}

#[tokio::test]
async fn a_balancer_without_a_proper_header_gets_no_answer() {
    let (upstream, builder) = builder_with_headers().await;
    let binary = Binary::start(&builder).await;
    let v4 = header_for("203.0.113.9:4321", b"");
    let endless = [&v4[..14], &[0xff, 0xff]].concat();
    for bytes in [
        ping(&[]).into_bytes(),
        b"PROXY TCP4 203.0.113.9 192.0.2.80 4321 443\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        header(2, 0x11, &v4[16..]),
        header(1, 0x12, &v4[16..]),
        header(1, 0x31, &[0; 216]),
        header(1, 0x11, &v4[16..20]),
        // Refused at once, for nobody sends what would have to be waited for.
        endless,
    ] {
        let mut connection = Connection::open_from(BALANCER, binary.registry).await;
        // It may be closed before everything is written.
        let _ = connection.write(&bytes).await;
        assert!(connection.closed().await, "{bytes:02x?}");
    }
    // Cut within the header, and not begun: how balancers look whether a port is open.
    for bytes in [&v4[..20], b""] {
        let mut connection = Connection::open_from(BALANCER, binary.registry).await;
        connection.write(bytes).await.unwrap();
        connection.finish().await;
        assert!(connection.closed().await);
    }
    let refusals = |line: &serde_json::Value| {
        let message = field(line, "message").and_then(|it| it.as_str());
        message == Some("connection from a trusted proxy refused")
    };
    let line = binary.wait_for_log(refusals).await;
    assert_eq!(line["level"], "WARN");
    assert_eq!(field(&line, "error").unwrap(), "no PROXY header");
    // Many at once are one line.
    assert_eq!(binary.log().iter().filter(|it| refusals(it)).count(), 1);
    assert!(upstream.log().is_empty());
    assert_eq!(binary.outcome("none").await, 0.0);
}

#[tokio::test]
async fn looking_whether_the_port_is_open_is_nothing_to_warn_of() {
    let (_upstream, builder) = builder_with_headers().await;
    let binary = Binary::start(&builder.set("log_level", "debug")).await;
    let mut connection = Connection::open_from(BALANCER, binary.registry).await;
    connection.finish().await;
    assert!(connection.closed().await);
    let line = binary
        .wait_for_log(|line| {
            let error = field(line, "error").and_then(|it| it.as_str());
            error == Some("closed before its first byte")
        })
        .await;
    assert_eq!(line["level"], "DEBUG");
}

#[tokio::test]
async fn invariant_10_a_balancer_that_dawdles_over_its_header_is_dropped() {
    let (_upstream, builder) = builder_with_headers().await;
    let proxy = builder.set("timeouts.header_read", "300ms").start().await;
    let began = Instant::now();
    for bytes in [&b""[..], b"\r\n", &header_for("203.0.113.9:1", b"")[..20]] {
        let mut connection = Connection::open_from(BALANCER, proxy.registry).await;
        connection.write(bytes).await.unwrap();
        assert!(connection.closed().await);
    }
    assert!(began.elapsed() < SOON);
}

#[tokio::test]
async fn a_header_that_does_not_come_holds_up_nobody_else() {
    let (_upstream, builder) = builder_with_headers().await;
    let builder = builder.set("limits.connections", 2);
    let proxy = builder.set("timeouts.header_read", "1h").start().await;
    let silent = Connection::open_from(BALANCER, proxy.registry).await;
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 1.0)
        .await;
    let (whole, open) = proxy.get("/v2/").send().await.whole_and_connection().await;
    whole.is(200, b"{}");
    // It has a place, so that there is none for a third until it is gone.
    let third = proxy.get("/v2/").dispatch().await;
    assert_eq!(proxy.metric("layerhold_connections", &[]).await, 2.0);
    drop(silent);
    third.head("GET").await.whole().await.is(200, b"{}");
    drop(open);
}

#[tokio::test]
async fn a_header_that_does_not_come_does_not_keep_the_process() {
    let (_upstream, builder) = builder_with_headers().await;
    let proxy = builder.set("timeouts.header_read", "1h").start().await;
    let silent = Connection::open_from(BALANCER, proxy.registry).await;
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 1.0)
        .await;
    proxy.shut_down();
    assert!(within("the end of the connection", silent.closed()).await);
    proxy.stopped().await;
}
