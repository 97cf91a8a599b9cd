//! Stopping is part of running.

use tokio::net::TcpSocket;

use crate::harness::proxy::Front;
use crate::harness::{
    APP, At, Binary, Blob, Connection, End, FakeRegistry, KIB, MIB, TestProxy, get, pair, poll,
};

/// Waits until a proxy says that it is about to leave.
async fn unready(front: &Front) {
    poll("readiness to fail", async || {
        let ready = front.admin("/readyz").await;
        (ready.head.status == 503).then_some(())
    })
    .await;
}

#[tokio::test]
async fn invariant_12_pitfall_50_a_response_under_way_ends_before_the_proxy_does() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let mut answer = proxy.blob(APP, blob.digest()).send().await;
    answer.read(MIB).await;
    gate.reached().await;

    proxy.shut_down();
    // Readiness fails first, and can still be asked for.
    unready(&proxy).await;
    assert_eq!(proxy.admin("/livez").await.head.status, 200);
    gate.open();
    answer.continues(&blob, MIB).await;
    proxy.stopped().await;
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.drain", "1h")
        .start()
        .await;
    let (_, idle) = proxy.get("/v2/").send().await.whole_and_connection().await;
    let fresh = Connection::open(proxy.registry).await;
    proxy.shut_down();
    assert!(idle.closed().await);
    assert!(fresh.closed().await);
    let address = proxy.registry;
    proxy.stopped().await;
    assert!(Connection::try_open(address).await.is_err());
}

#[tokio::test]
async fn invariant_12_the_drain_has_a_deadline() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.drain", "300ms")
        .start()
        .await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let answer = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;

    proxy.shut_down();
    proxy.stopped().await;
    let whole = answer.whole().await;
    assert_ne!(whole.end, End::Complete);
    assert!(blob.bytes().starts_with(&whole.bytes));
}

#[tokio::test]
async fn invariant_12_a_successor_starts_while_its_predecessor_drains() {
    let (upstream, proxy) = pair().await;
    upstream.allow_concurrent_transfers();
    let blob = Blob::random(8 * MIB);
    let kept = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob(APP, &kept);
    proxy.wait_for_hit(APP, &kept).await;
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let mut answer = proxy.blob(APP, blob.digest()).send().await;
    answer.read(MIB).await;
    gate.reached().await;

    proxy.shut_down();
    unready(&proxy).await;
    let successor = proxy.builder().clone().start().await;
    successor.pull_blob(APP, &kept).await;
    let second = successor.blob(APP, blob.digest()).send().await;
    gate.open();
    answer.continues(&blob, MIB).await;
    second.is(&blob).await;
    proxy.stopped().await;
    successor.wait_for_hit(APP, &blob).await;
    assert_eq!(upstream.count(&get(kept.digest())), 1);
}

#[tokio::test]
async fn a_proxy_with_nothing_to_do_stops_at_once() {
    let (_upstream, proxy) = pair().await;
    let began = tokio::time::Instant::now();
    proxy.shut_down();
    proxy.stopped().await;
    assert!(began.elapsed().as_secs() < 5);
}

#[tokio::test]
async fn sigterm_drains_and_exits_with_zero() {
    let upstream = FakeRegistry::start().await;
    let binary = Binary::start(&TestProxy::in_front_of(&upstream)).await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let mut answer = binary.blob(APP, blob.digest()).send().await;
    answer.read(MIB).await;
    gate.reached().await;

    binary.terminate();
    unready(&binary).await;
    gate.open();
    answer.continues(&blob, MIB).await;
    assert_eq!(binary.exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_drain_that_reaches_its_deadline_was_still_asked_for() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("timeouts.drain", "300ms");
    let binary = Binary::start(&builder).await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let answer = binary.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    binary.terminate();
    assert_eq!(binary.exited().await.code(), Some(0));
    assert_ne!(answer.whole().await.end, End::Complete);
}

#[tokio::test]
async fn a_second_sigterm_stops_at_once() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("timeouts.drain", "1h");
    let binary = Binary::start(&builder).await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let answer = binary.blob(APP, blob.digest()).send().await;
    gate.reached().await;

    binary.terminate();
    unready(&binary).await;
    binary.terminate();
    assert!(!binary.exited().await.success());
    assert_ne!(answer.whole().await.end, End::Complete);
}

/// Requests, one behind the other, more than are read before they are answered.
fn pipelined(first: &str) -> Vec<u8> {
    let more = "GET /v2/ HTTP/1.1\r\nHost: cache\r\n\r\n".repeat(1000);
    format!("GET {first} HTTP/1.1\r\nHost: cache\r\n\r\n{more}").into()
}

#[tokio::test]
async fn invariant_12_what_is_asked_behind_the_last_answer_takes_nothing_of_it_away() {
    let (upstream, proxy) = pair().await;
    let [blob, other] = [(); 2].map(|()| Blob::random(4 * MIB));
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob(APP, &other);
    let gate = upstream.hold(get(blob.digest()), At::Byte(2 * MIB));
    // As long as this is under way, so is everything.
    let others_gate = upstream.hold(get(other.digest()), At::Byte(2 * MIB));
    let others = proxy.blob(APP, other.digest()).send().await;
    // What it does not read waits on the other side.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 << 10).unwrap();
    let mut connection = Connection::over(socket.connect(proxy.registry).await.unwrap());
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    connection.write(&pipelined(&target)).await.unwrap();
    let mut answer = connection.head("GET").await;
    gate.reached().await;
    proxy.shut_down();
    unready(&proxy).await;
    gate.open();
    let (mut read, complete) = (0, [("end", "complete")]);
    while proxy.metric("layerhold_responses_total", &complete).await < 1.0 {
        read += answer.read(16 * KIB).await.len();
    }
    assert!(read < blob.len());
    let (whole, connection) = answer.whole_and_connection().await;
    assert_eq!(whole.end, End::Complete);
    assert!(whole.bytes == blob.bytes()[read..]);
    // In order (RFC 9112 §9.6), and no other request is answered.
    assert_eq!(connection.end().await, End::Cut);
    others_gate.open();
    others.is(&other).await;
    proxy.stopped().await;
}

#[tokio::test]
async fn invariant_12_the_last_answer_says_that_it_is_the_last() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Head);
    let mut connection = Connection::open(proxy.registry).await;
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    connection.write(&pipelined(&target)).await.unwrap();
    gate.reached().await;
    proxy.shut_down();
    unready(&proxy).await;
    gate.open();
    let answer = connection.head("GET").await;
    assert_eq!(answer.head.header("connection"), Some("close"));
    let (whole, connection) = answer.whole_and_connection().await;
    whole.is(200, blob.bytes());
    assert_eq!(connection.end().await, End::Cut);
    proxy.stopped().await;
}
