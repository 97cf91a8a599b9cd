//! HTTP/2 over TLS: what holds for a connection holds for each of its streams.

use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpSocket;
use tokio::task::{JoinHandle, yield_now};

use crate::harness::{
    APP, At, Authority, Binary, Blob, FakeRegistry, Fault, KIB, MIB, NAME, ProxyBuilder, TestProxy,
    get, within,
};

/// A connection of HTTP/2.
struct Client {
    sender: SendRequest<Empty<Bytes>>,
    serving: JoinHandle<hyper::Result<()>>,
}

impl Client {
    /// Connects; what is not read of a stream is at most `window`.
    async fn open(authority: &Authority, address: SocketAddr, window: u32) -> Self {
        let tls = authority.client().offering(&["h2"]);
        let stream = tls.try_open(address).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(8 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let serving = tokio::spawn(connection);
        Self { sender, serving }
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        range: Option<&str>,
    ) -> Response<Incoming> {
        self.try_send(method, path, range).await.unwrap()
    }

    async fn try_send(
        &mut self,
        method: Method,
        path: &str,
        range: Option<&str>,
    ) -> hyper::Result<Response<Incoming>> {
        let uri = format!("https://{NAME}{path}");
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        let request = request.body(Empty::new()).unwrap();
        within("a response", self.sender.send_request(request)).await
    }
}

/// All of a body that comes, and whether it ended well.
async fn read(mut body: Incoming) -> (Bytes, bool) {
    let mut bytes = BytesMut::new();
    loop {
        match within("a frame", body.frame()).await {
            Some(Ok(frame)) => bytes.extend(frame.into_data().unwrap_or_default()),
            Some(Err(_)) => return (bytes.freeze(), false),
            None => return (bytes.freeze(), true),
        }
    }
}

fn path(blob: &Blob) -> String {
    format!("/v2/{APP}/blobs/{}", blob.digest())
}

async fn scene() -> (FakeRegistry, Authority, ProxyBuilder) {
    let upstream = FakeRegistry::start().await;
    let authority = Authority::new();
    let identity = authority.vouch(&[NAME]);
    let builder = TestProxy::in_front_of(&upstream);
    let certificate = builder.write("tls.crt", &identity.certificate_pem);
    let key = builder.write("tls.key", &identity.key_pem);
    let builder = builder
        .set("tls.certificate", certificate)
        .set("tls.key", key)
        .set("tls.http2", true);
    (upstream, authority, builder)
}

const WINDOW: u32 = 1 << 20;

#[tokio::test]
async fn pulls_over_http2_are_like_any_other() {
    let (upstream, authority, builder) = scene().await;
    let proxy = builder.start().await;
    let blob = Blob::random(3 * MIB + 17);
    upstream.serve_blob(APP, &blob);
    let mut client = Client::open(&authority, proxy.registry, WINDOW).await;
    for _ in 0..2 {
        let response = client.send(Method::GET, &path(&blob), None).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-length"], blob.len().to_string());
        let (bytes, is_whole) = read(response.into_body()).await;
        assert!(bytes == blob.bytes() && is_whole);
    }
    let range = Some("bytes=1048570-2097160");
    let response = client.send(Method::GET, &path(&blob), range).await;
    assert_eq!(response.status(), 206);
    let (bytes, is_whole) = read(response.into_body()).await;
    assert!(bytes == blob.bytes()[1_048_570..=2_097_160] && is_whole);
    let response = client.send(Method::HEAD, &path(&blob), None).await;
    assert_eq!(response.headers()["content-length"], blob.len().to_string());
    assert_eq!(read(response.into_body()).await, (Bytes::new(), true));
    let response = client.send(Method::GET, "/v2/", None).await;
    assert_eq!(read(response.into_body()).await, ("{}".into(), true));
    let response = client.send(Method::POST, &path(&blob), None).await;
    assert_eq!(response.status(), 405);

    let labels = [("end", "complete")];
    proxy
        .wait_for_metric("layerhold_responses_total", &labels, |it| it == 6.0)
        .await;
    let sent = proxy
        .metric("layerhold_response_bytes_total", &[("endpoint", "blob")])
        .await;
    let part = 2_097_161 - 1_048_570;
    assert!(sent >= (blob.len() * 2 + part) as f64, "{sent}");
    // Others speak HTTP/1.1 there.
    let mut plain = authority.client().open(proxy.registry).await;
    plain
        .write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    plain.head("GET").await.whole().await.is(200, b"{}");
}

#[tokio::test]
async fn a_host_that_is_not_the_authority_is_refused() {
    let (_upstream, authority, builder) = scene().await;
    let proxy = builder.start().await;
    let mut client = Client::open(&authority, proxy.registry, WINDOW).await;
    for (host, status) in [(NAME, 200), ("other.example", 400)] {
        let request = Request::get(format!("https://{NAME}/v2/")).header("Host", host);
        let request = request.body(Empty::new()).unwrap();
        let response = client.sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "{host}");
    }
}

#[tokio::test]
async fn invariant_06_wrong_bytes_reset_their_stream_and_no_other() {
    let (upstream, authority, builder) = scene().await;
    let proxy = builder.start().await;
    let (wrong, right) = (Blob::random(2 * MIB), Blob::random(2 * MIB));
    upstream.serve_blob(APP, &wrong);
    upstream.serve_blob(APP, &right);
    upstream.once(get(wrong.digest()), Fault::Corrupt(MIB));
    let gate = upstream.hold(get(right.digest()), At::Byte(MIB));
    let mut client = Client::open(&authority, proxy.registry, 4 * WINDOW).await;
    let other = client.send(Method::GET, &path(&right), None).await;
    let response = client.send(Method::GET, &path(&wrong), None).await;
    assert_eq!(response.status(), 200);
    let (bytes, is_whole) = read(response.into_body()).await;
    assert!(bytes.len() < wrong.len() && !is_whole);
    gate.open();
    let (bytes, is_whole) = read(other.into_body()).await;
    assert!(bytes == right.bytes() && is_whole);
    let ended = |end| [("end", end)];
    let name = "layerhold_responses_total";
    proxy
        .wait_for_metric(name, &ended("complete"), |it| it == 1.0)
        .await;
    assert_eq!(proxy.metric(name, &ended("failed")).await, 1.0);
}

#[tokio::test]
async fn invariant_10_a_stream_that_nobody_reads_is_reset_and_no_other() {
    let (upstream, authority, builder) = scene().await;
    let proxy = builder.set("timeouts.write_idle", "500ms").start().await;
    // One that is larger than what may be under way, and one that is all under way.
    let (large, small) = (Blob::random(4 * MIB), Blob::random(200 * KIB));
    for blob in [&large, &small] {
        upstream.serve_blob(APP, blob);
        let mut client = Client::open(&authority, proxy.registry, 4 * WINDOW).await;
        let response = client.send(Method::GET, &path(blob), None).await;
        assert!(read(response.into_body()).await.0 == blob.bytes());
    }
    let mut client = Client::open(&authority, proxy.registry, 65_535).await;
    let stuck = [
        client.send(Method::GET, &path(&large), None).await,
        client.send(Method::GET, &path(&small), None).await,
    ];
    let labels = [("end", "abandoned")];
    proxy
        .wait_for_metric("layerhold_responses_total", &labels, |it| it == 2.0)
        .await;
    let response = client.send(Method::GET, "/v2/", None).await;
    assert_eq!(read(response.into_body()).await, ("{}".into(), true));
    for response in stuck {
        let (bytes, is_whole) = read(response.into_body()).await;
        assert!(bytes.len() <= 65_535 && !is_whole);
    }
}

#[tokio::test]
async fn a_stream_that_its_client_gives_up_is_abandoned() {
    let (upstream, authority, builder) = scene().await;
    let proxy = builder.start().await;
    let blob = Blob::random(200 * KIB);
    upstream.serve_blob(APP, &blob);
    let mut client = Client::open(&authority, proxy.registry, 65_535).await;
    let response = client.send(Method::GET, &path(&blob), None).await;
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap();
    assert!(first.is_data());
    // All of it is with the library by now, and the client never takes it.
    drop(body);
    let labels = [("end", "abandoned")];
    proxy
        .wait_for_metric("layerhold_responses_total", &labels, |it| it == 1.0)
        .await;
    let sent = proxy.metric("layerhold_response_bytes_total", &[]).await;
    assert!(sent < blob.len() as f64, "{sent}");
}

#[tokio::test]
async fn invariant_10_an_idle_connection_is_closed() {
    let (_upstream, authority, builder) = scene().await;
    let proxy = builder.set("timeouts.header_read", "300ms").start().await;
    let mut client = Client::open(&authority, proxy.registry, WINDOW).await;
    let response = client.send(Method::GET, "/v2/", None).await;
    assert_eq!(read(response.into_body()).await, ("{}".into(), true));
    within("the end", client.serving).await.unwrap().unwrap();
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 0.0)
        .await;
}

#[tokio::test]
async fn invariant_10_requests_beyond_the_limit_wait_their_turn() {
    let (upstream, authority, builder) = scene().await;
    let proxy = builder.set("limits.connections", 2).start().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));
    let mut client = Client::open(&authority, proxy.registry, 4 * WINDOW).await;
    let mut pulls = Vec::new();
    for _ in 0..2 {
        pulls.push(client.send(Method::GET, &path(&blob), None).await);
    }
    let mut waiting = client.sender.clone();
    let request = Request::get(format!("https://{NAME}/v2/")).body(Empty::new());
    let third = tokio::spawn(async move { waiting.send_request(request.unwrap()).await });
    gate.reached().await;
    // It would long have its answer by then.
    for _ in 0..20 {
        assert_eq!(proxy.metric("layerhold_requests_total", &[]).await, 2.0);
    }
    assert!(!third.is_finished());
    gate.open();
    for response in pulls {
        assert!(read(response.into_body()).await.0 == blob.bytes());
    }
    assert_eq!(third.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn invariant_12_streams_in_progress_end_before_we_do() {
    let (upstream, authority, builder) = scene().await;
    let binary = Binary::start(&builder).await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));
    let mut client = Client::open(&authority, binary.registry, 4 * WINDOW).await;
    let response = client.send(Method::GET, &path(&blob), None).await;
    gate.reached().await;
    binary.terminate();
    binary.wait_for_log(|it| it["message"] == "draining").await;
    gate.open();
    let (bytes, is_whole) = read(response.into_body()).await;
    assert!(bytes == blob.bytes() && is_whole);
    assert_eq!(binary.exited().await.code(), Some(0));
    within("the end", client.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_makes_room_for_another_gets_the_rest_of_its_answers() {
    let (_upstream, authority, builder) = scene().await;
    let proxy = builder.set("limits.connections_per_source", 1);
    let proxy = proxy.start().await;
    // What the kernel has no room for stays with us.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let tcp = socket.connect(proxy.registry).await.unwrap();
    let from = tcp.local_addr().unwrap();
    let tls = authority.client().offering(&["h2"]);
    let mut client = tls.over(tcp).await.unwrap();
    client.write_all(PREFACE).await.unwrap();
    client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    // An answer without a body is handed over at once.
    let method = [&[0x02, 4][..], b"HEAD"].concat();
    let head = [&method[..], &[0x87, 0x04, 4], b"/v2/", &[0x01, 13]].concat();
    let head = [&head, NAME.as_bytes()].concat();
    let (mut asked, mut waiting) = (0_u32, 0);
    loop {
        for _ in 0..50 {
            let ask = frame(1, END_STREAM | END_HEADERS, 2 * asked + 1, &head);
            client.write_all(&ask).await.unwrap();
            asked += 1;
        }
        client.flush().await.unwrap();
        let complete = [("end", "complete")];
        proxy
            .wait_for_metric("layerhold_responses_total", &complete, |it| {
                it == f64::from(asked)
            })
            .await;
        let waited = std::mem::replace(&mut waiting, waiting_bytes(proxy.registry, from));
        if waiting > 64 * KIB && waiting == waited {
            break;
        }
    }
    let mut other = Client::open(&authority, proxy.registry, WINDOW).await;
    let response = other.send(Method::GET, "/v2/", None).await;
    assert_eq!(response.status(), 200);
    let answered = |heard: &[u8]| frames(heard).iter().filter(|(kind, _)| *kind == 1).count();
    let (mut heard, asked) = (BytesMut::new(), usize::try_from(asked).unwrap());
    while answered(&heard) < asked {
        let read = within("the rest", client.read_buf(&mut heard)).await;
        let answers = answered(&heard);
        assert!(read.unwrap() > 0, "{answers} answers of {asked}");
    }
}

#[tokio::test]
async fn invariant_12_who_takes_its_time_over_making_room_is_broken_off_with_the_drain() {
    let (_upstream, authority, builder) = scene().await;
    let builder = builder.set("limits.connections_per_source", 1);
    let proxy = builder.set("timeouts.drain", "300ms").start().await;
    let tls = authority.client().offering(&["h2"]);
    let mut client = tls.try_open(proxy.registry).await.unwrap();
    let head = [&[0x82, 0x87, 0x04, 4][..], b"/v2/", &[0x01, 13]].concat();
    let head = [&head, NAME.as_bytes()].concat();
    let ask = frame(1, END_STREAM | END_HEADERS, 1, &head);
    let said = [PREFACE, &frame(4, 0, 0, &[]), &ask].concat();
    client.write_all(&said).await.unwrap();
    client.flush().await.unwrap();
    let complete = [("end", "complete")];
    proxy
        .wait_for_metric("layerhold_responses_total", &complete, |it| it == 1.0)
        .await;
    let mut other = Client::open(&authority, proxy.registry, WINDOW).await;
    let response = other.send(Method::GET, "/v2/", None).await;
    assert_eq!(response.status(), 200);
    let mut heard = BytesMut::new();
    while !frames(&heard).iter().any(|(kind, _)| *kind == GOAWAY) {
        let read = within("a farewell", client.read_buf(&mut heard)).await;
        assert!(read.unwrap() > 0);
    }
    proxy.shut_down();
    // It never says that it has heard.
    let ended = loop {
        if let Err(error) = within("the end", client.read_buf(&mut heard)).await {
            break error;
        }
    };
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    proxy.stopped().await;
}

#[tokio::test]
async fn invariant_12_a_client_that_says_what_it_takes_gets_all_of_it() {
    let (upstream, authority, builder) = scene().await;
    let proxy = builder.start().await;
    let blob = Blob::random(64 * KIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(32 * KIB));
    // What it does not read stays with us.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let tcp = socket.connect(proxy.registry).await.unwrap();
    let tls = authority.client().offering(&["h2"]);
    let mut client = tls.over(tcp).await.unwrap();
    let more = 1_u32 << 20;
    let window = [&[0, 4][..], &more.to_be_bytes()].concat();
    let path = path(&blob);
    let head = [
        &[0x82, 0x87, 0x04, u8::try_from(path.len()).unwrap()][..],
        path.as_bytes(),
        &[0x01, 13],
        NAME.as_bytes(),
    ]
    .concat();
    let said = [
        PREFACE,
        &frame(4, 0, 0, &window),
        &frame(8, 0, 0, &more.to_be_bytes()),
        &frame(1, END_STREAM | END_HEADERS, 1, &head),
    ]
    .concat();
    client.write_all(&said).await.unwrap();
    client.flush().await.unwrap();
    gate.reached().await;
    proxy.shut_down();
    let mut heard = BytesMut::new();
    // It is asked whether it has heard that nothing more is to be asked, and says so.
    let ping = loop {
        within("frames", client.read_buf(&mut heard)).await.unwrap();
        if let Some((_, payload)) = frames(&heard).into_iter().find(|(kind, _)| *kind == 6) {
            break payload.to_vec();
        }
    };
    client.write_all(&frame(6, 1, 0, &ping)).await.unwrap();
    client.flush().await.unwrap();
    gate.open();
    // All of it is with the kernel; the admin port is there as long as somebody is heard out.
    let labels = [("end", "complete")];
    proxy
        .wait_for_metric("layerhold_responses_total", &labels, |it| it == 1.0)
        .await;
    for _ in 0..1000 {
        let taken = frame(8, 0, 0, &1_u32.to_be_bytes());
        // Whether it is heard is seen in the end.
        let _ = client.write_all(&taken).await;
        yield_now().await;
    }
    while within("the end", client.read_buf(&mut heard))
        .await
        .unwrap()
        > 0
    {}
    let frames = frames(&heard);
    let data = frames.iter().filter(|(kind, _)| *kind == 0);
    let bytes: Vec<u8> = data.flat_map(|(_, payload)| *payload).copied().collect();
    assert!(bytes == *blob.bytes(), "{} bytes", bytes.len());
    drop(client);
    proxy.stopped().await;
}

#[tokio::test]
async fn invariant_10_heads_and_resets_without_measure_end_the_connection() {
    let (_upstream, authority, builder) = scene().await;
    let proxy = builder.start().await;
    // GET https://cache.example/v2/ by the static table (RFC 7541, appendix A).
    let head = [
        &[0x82, 0x87, 0x04, 4][..],
        b"/v2/",
        &[0x01, 13],
        NAME.as_bytes(),
    ]
    .concat();
    let resets = (0..5000_u32).flat_map(|n| {
        let stream = 2 * n + 1;
        let reset = frame(3, 0, stream, &8_u32.to_be_bytes());
        [frame(1, END_STREAM | END_HEADERS, stream, &head), reset].concat()
    });
    // A field that never ends, of a name that is never indexed.
    let field = [&[0x10, 1][..], b"x", &[100], &[b'a'; 100]].concat();
    let begun = frame(1, END_STREAM, 1, &head);
    let more = std::iter::repeat_n(frame(9, 0, 1, &field.repeat(150)), 1000);
    let continuations = [begun].into_iter().chain(more).flatten();
    let floods: [Vec<u8>; 2] = [resets.collect(), continuations.collect()];
    for flood in floods {
        let tls = authority.client().offering(&["h2"]);
        let mut connection = tls.open(proxy.registry).await;
        let preface = [PREFACE, &frame(4, 0, 0, b"")].concat();
        connection.write(&preface).await.unwrap();
        // It may be closed before all of it is taken.
        let _ = connection.write(&flood).await;
        let said = connection.rest().await;
        let goaway = frames(&said).into_iter().find(|(kind, _)| *kind == 7);
        let (_, payload) = goaway.expect("it is told to go away");
        // The last stream, and ENHANCE_YOUR_CALM (RFC 9113 §7).
        assert_eq!(payload.get(4..8), Some(&[0, 0, 0, 11][..]));
    }
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 0.0)
        .await;

    let mut other = Client::open(&authority, proxy.registry, WINDOW).await;
    let uri = format!("https://{NAME}/v2/");
    let request = Request::get(&uri).header("X-A", "a".repeat(40 * KIB));
    let answer = other
        .sender
        .send_request(request.body(Empty::new()).unwrap());
    assert_eq!(within("an answer", answer).await.unwrap().status(), 431);
    let response = other.send(Method::GET, "/v2/", None).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn invariant_10_settings_and_pings_without_measure_cost_nothing_that_stays() {
    let (upstream, authority, builder) = scene().await;
    let binary = Binary::start(&builder.set("timeouts.write_idle", "1s")).await;
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    let mut other = Client::open(&authority, binary.registry, WINDOW).await;
    let mut is_served = async || {
        let response = other.send(Method::GET, &path(&blob), None).await;
        let (bytes, is_whole) = read(response.into_body()).await;
        assert!(is_whole && bytes == *blob.bytes());
    };
    is_served().await;
    let before = binary.peak_memory();
    let ping = frame(6, 0, 0, &[7; 8]);
    // The size of the table that heads are packed with.
    let settings = frame(4, 0, 0, &[0, 1, 0, 0, 16, 0]);
    let hello = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for (kind, one) in [(6, ping), (4, settings)] {
        let some = one.repeat(1000);
        // Each is acknowledged, and the other one is served meanwhile.
        let tls = authority.client().offering(&["h2"]);
        let client = tls.try_open(binary.registry).await.unwrap();
        let (mut hears, mut says) = split(client);
        let saying = async {
            says.write_all(&hello).await.unwrap();
            for _ in 0..FLOOD / 1000 {
                says.write_all(&some).await.unwrap();
                says.flush().await.unwrap();
            }
        };
        let hearing = async {
            let (mut heard, mut acknowledged) = (BytesMut::new(), 0);
            while acknowledged < FLOOD {
                within("a frame", hears.read_buf(&mut heard)).await.unwrap();
                let new = frames(&heard);
                acknowledged += new.iter().filter(|it| it.0 == kind).count();
                let len = new.iter().map(|(_, payload)| 9 + payload.len()).sum();
                heard.advance(len);
            }
        };
        tokio::join!(saying, hearing, is_served());
        // Who does not take what acknowledges them is not heard any more, and cut off when that was too long.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let tcp = socket.connect(binary.registry).await.unwrap();
        let mut client = tls.over(tcp).await.unwrap();
        client.write_all(&hello).await.unwrap();
        let mut said = 0;
        while client.write_all(&some).await.is_ok() {
            said += some.len();
            assert!(said < 64 * MIB, "all of it is heard");
        }
        is_served().await;
    }
    let more = binary.peak_memory().saturating_sub(before);
    assert!(more < 8 * MIB, "{} KiB more", more / KIB);
}

/// Frames of one kind that a client sends.
const FLOOD: usize = 100_000;
/// How a client begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The kind of the frame that says that nothing more is answered (RFC 9113 §6.8).
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Bytes that wait in the kernel to be sent from one address to another (`/proc/net/tcp`, `tx_queue`).
fn waiting_bytes(from: SocketAddr, to: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ports = [from, to].map(|it| format!(":{:04X}", it.port()));
    let mut rows = table
        .lines()
        .map(|it| it.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|it| it[1].ends_with(&ports[0]) && it[2].ends_with(&ports[1]));
    let (queue, _) = row.unwrap()[4].split_once(':').unwrap();
    usize::from_str_radix(queue, 16).unwrap()
}

/// A frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// The kinds and payloads of frames.
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            break;
        };
        frames.push((head[3], payload));
        bytes = rest;
    }
    frames
}
