//! Large hits go from their file to the socket by themselves, and nobody can tell but by the clock.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use futures_util::future::join_all;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{Advice, fadvise};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::SockRef;
use tokio::net::TcpStream;

use layerhold::cache::{Area, Operation};

use crate::harness::registry::Gate;
use crate::harness::{
    APP, Answer, At, Binary, Blob, Connection, End, FakeRegistry, Fault, KIB, MIB, TestProxy, get,
    pair,
};

/// What the kernel sent from files.
const BY_KERNEL: &str = "layerhold_response_sendfile_bytes_total";
/// What a client has read of what is arriving.
const BEGUN: usize = 80 * KIB;

/// A proxy that has a blob of this length.
async fn warm(len: usize) -> (FakeRegistry, TestProxy, Blob) {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(len);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    (upstream, proxy, blob)
}

/// Shortens a file behind the proxy's back.
fn shorten(proxy: &TestProxy, blob: &Blob, len: usize) {
    let file = proxy.published(blob.digest());
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(len as u64).unwrap();
}

/// A part of a blob that begins anywhere and has any order of magnitude.
fn any_part(random: &mut SmallRng, blob: &Blob) -> (usize, usize) {
    let longest = 1 << random.random_range(0..24);
    let start = random.random_range(0..blob.len());
    let len = random.random_range(1..=longest);
    (start, blob.len().min(start + len))
}

#[tokio::test]
async fn the_kernel_sends_a_large_hit() {
    let (_upstream, proxy, blob) = warm(8 * MIB + 123).await;
    let before = proxy.metric(BY_KERNEL, &[]).await;
    proxy.pull_blob(APP, &blob).await;
    // Now and then the page cache says that it lacks what it has.
    let most = before + 6.0 * 1024.0 * 1024.0;
    proxy.wait_for_metric(BY_KERNEL, &[], |it| it >= most).await;
}

/// The proxy's end of a client's connection; it is of this process.
fn other_end(of: SocketAddr) -> OwnedFd {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let fds = fds.filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok());
    let mut copies = fds.filter_map(|fd| pidfd_getfd(&own, fd, PidfdGetfdFlags::empty()).ok());
    let is_it = |fd: &OwnedFd| {
        let peer = SockRef::from(fd).peer_addr();
        peer.is_ok_and(|it| it.as_socket() == Some(of))
    };
    copies.find(is_it).unwrap()
}

#[tokio::test]
async fn nothing_is_held_back_behind_a_large_hit() {
    let (_upstream, proxy, blob) = warm(2 * MIB + 17).await;
    let client = TcpStream::connect(proxy.registry).await.unwrap();
    let address = client.local_addr().unwrap();
    let mut connection = Connection::over(client);
    for _ in 0..2 {
        let answer = proxy.blob(APP, blob.digest()).send_on(connection).await;
        let (whole, back) = answer.whole_and_connection().await;
        whole.is(200, blob.bytes());
        assert!(!SockRef::from(&other_end(address)).tcp_cork().unwrap());
        connection = back;
    }
}

#[tokio::test]
async fn small_hits_and_small_parts_of_what_arrives_are_not_affected() {
    let (upstream, proxy, _) = warm(MIB - 1).await;
    let large = Blob::random(3 * MIB);
    upstream.serve_blob(APP, &large);
    let part = proxy.blob(APP, large.digest()).range("bytes=7-1000006");
    part.whole().await.is(206, &large.bytes()[7..1_000_007]);
    proxy.wait_for_fills("published", 2.0).await;
    part.whole().await.is(206, &large.bytes()[7..1_000_007]);
    assert_eq!(proxy.metric(BY_KERNEL, &[]).await, 0.0);
}

#[tokio::test]
async fn every_byte_of_any_part_is_right_for_many_clients_at_once() {
    let (_upstream, proxy, blob) = warm(20 * MIB + 77).await;
    pull_parts(&proxy, &blob).await;
}

#[tokio::test]
async fn every_byte_of_any_part_is_right_while_it_arrives() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(20 * MIB + 77);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(9 * MIB + 1));
    let arriving = async {
        gate.reached().await;
        gate.open();
    };
    tokio::join!(pull_parts(&proxy, &blob), arriving);
}

/// Many clients that ask for any parts of a blob.
async fn pull_parts(proxy: &TestProxy, blob: &Blob) {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let client = async |n: u64| {
        let mut random = SmallRng::seed_from_u64(seed + n);
        let mut connection = Connection::open(proxy.registry).await;
        for _ in 0..24 {
            let (start, end) = any_part(&mut random, blob);
            let request = proxy.blob(APP, blob.digest());
            let request = request.range(&format!("bytes={start}-{}", end - 1));
            let mut answer = request.send_on(connection).await;
            if random.random_ratio(1, 8) {
                // Leaves in the middle.
                answer.piece().await.unwrap();
                connection = Connection::open(proxy.registry).await;
                continue;
            }
            let (whole, back) = answer.whole_and_connection().await;
            whole.is(206, &blob.bytes()[start..end]);
            connection = back;
        }
    };
    join_all((0..8).map(client)).await;
    assert!(proxy.metric(BY_KERNEL, &[]).await > 0.0);
    // Nobody is left behind.
    for left in ["layerhold_connections", "layerhold_followers"] {
        proxy.wait_for_metric(left, &[], |it| it == 0.0).await;
    }
}

/// A blob of which so much has arrived, and clients that are in the middle of that.
async fn arriving(arrived: usize) -> (FakeRegistry, TestProxy, Blob, Gate, Vec<Answer>) {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(24 * MIB + 7);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(arrived));
    let request = proxy.blob(APP, blob.digest());
    let mut readers = join_all((0..4).map(|_| request.send())).await;
    for reader in &mut readers {
        assert_eq!(reader.read(BEGUN).await, blob.bytes()[..BEGUN]);
    }
    gate.reached().await;
    (upstream, proxy, blob, gate, readers)
}

#[tokio::test]
async fn the_kernel_sends_what_somebody_is_behind_of_a_fill() {
    let (upstream, proxy, blob, gate, mut readers) = arriving(16 * MIB + 1).await;
    for reader in &mut readers {
        let more = reader.read(12 * MIB).await;
        assert!(more == blob.bytes()[BEGUN..BEGUN + 12 * MIB]);
    }
    // All but what was recent when there was room for it.
    let most = 8.0 * 1024.0 * 1024.0;
    proxy.wait_for_metric(BY_KERNEL, &[], |it| it >= most).await;
    // All that came is to be had, though no more comes.
    for reader in &mut readers {
        let from = BEGUN + 12 * MIB;
        let more = reader.read(16 * MIB + 1 - from).await;
        assert!(more == blob.bytes()[from..16 * MIB + 1]);
    }
    gate.open();
    let rest = readers.into_iter();
    join_all(rest.map(|it| it.continues(&blob, 16 * MIB + 1))).await;
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn invariant_06_the_kernel_does_not_send_the_last_byte_of_what_is_wrong() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(24 * MIB + 7);
    upstream.serve_blob(APP, &blob);
    let last = blob.len() - 1;
    upstream.always(get(blob.digest()), Fault::Corrupt(last));
    let gate = upstream.hold(get(blob.digest()), At::Byte(last));
    let request = proxy.blob(APP, blob.digest());
    let readers = join_all((0..4).map(|_| request.send())).await;
    let ends = async {
        gate.reached().await;
        gate.open();
    };
    let (spoiled, ()) = tokio::join!(join_all(readers.into_iter().map(Answer::whole)), ends);
    for whole in spoiled {
        assert!(whole.bytes.len() <= last);
        assert!(blob.bytes().starts_with(&whole.bytes));
        assert_eq!(whole.end, End::Reset);
    }
    assert!(proxy.metric(BY_KERNEL, &[]).await > 0.0);
}

#[tokio::test]
async fn a_fill_that_fails_breaks_off_whoever_the_kernel_sends_it_to() {
    let (upstream, proxy, blob, gate, readers) = arriving(16 * MIB + 1).await;
    upstream.stop().await;
    gate.open();
    for whole in join_all(readers.into_iter().map(Answer::whole)).await {
        assert_ne!(whole.end, End::Complete);
        let end = BEGUN + whole.bytes.len();
        assert!(end <= 16 * MIB + 1 && whole.bytes == blob.bytes()[BEGUN..end]);
    }
    assert!(proxy.metric(BY_KERNEL, &[]).await > 0.0);
    let failed = [("end", "failed")];
    proxy
        .wait_for_metric("layerhold_responses_total", &failed, |it| it == 4.0)
        .await;
}

#[tokio::test]
async fn what_the_disk_takes_no_more_of_goes_around_it_in_mid_body() {
    let (upstream, proxy, blob, gate, readers) = arriving(12 * MIB).await;
    upstream.allow_concurrent_transfers();
    const ENOSPC: i32 = 28;
    let faults = proxy.faults();
    faults.fail(Operation::Write, Area::Staging, ENOSPC, 2);
    gate.open();
    join_all(readers.into_iter().map(|it| it.continues(&blob, BEGUN))).await;
    assert!(faults.struck() > 0);
    assert!(proxy.metric(BY_KERNEL, &[]).await > 0.0);
}

#[tokio::test]
async fn requests_behind_each_other_are_answered_in_order() {
    let (_upstream, proxy, blob) = warm(6 * MIB + 5).await;
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    let parts = [
        (0, 5 * MIB),
        (17, 18),
        (MIB, 3 * MIB),
        (5, 6 * MIB),
        (99, 5000),
        (0, 6 * MIB + 5),
    ];
    let mut text = String::new();
    for (start, end) in parts {
        let last = end - 1;
        text += &format!("GET {target} HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{last}\r\n\r\n");
        text += &format!("HEAD {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        text += "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
    }
    let mut connection = Connection::open(proxy.registry).await;
    connection.write(text.as_bytes()).await.unwrap();
    for (start, end) in parts {
        let answer = connection.head("GET").await;
        let (part, back) = answer.whole_and_connection().await;
        part.is(206, &blob.bytes()[start..end]);
        let (head, back) = back.head("HEAD").await.whole_and_connection().await;
        assert_eq!(head.is(200, b"").content_length(), Some(blob.len()));
        let (ping, back) = back.head("GET").await.whole_and_connection().await;
        ping.is(200, b"{}");
        connection = back;
    }
}

#[tokio::test]
async fn an_http_1_0_client_and_one_that_names_the_version_get_theirs() {
    let (_upstream, proxy, blob) = warm(3 * MIB).await;
    let mut old = Connection::open(proxy.registry).await;
    let text = format!("GET /v2/{APP}/blobs/{} HTTP/1.0\r\n\r\n", blob.digest());
    old.write(text.as_bytes()).await.unwrap();
    old.head("GET").await.is(&blob).await;
    let part = proxy.blob(APP, blob.digest()).range("bytes=1000-");
    let same = part.clone();
    let same = same.header("If-Range", format!("\"{}\"", blob.digest()));
    same.whole().await.is(206, &blob.bytes()[1000..]);
    let other = part.header("If-Range", "\"other\"");
    other.whole().await.is(200, blob.bytes());
}

#[tokio::test]
async fn what_the_page_cache_lost_comes_too() {
    let (_upstream, proxy, blob) = warm(9 * MIB).await;
    let file = File::open(proxy.published(blob.digest())).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    proxy.pull_blob(APP, &blob).await;
    // Every other stretch of it.
    for at in (0..9).step_by(2) {
        let len = std::num::NonZeroU64::new(700 << 10);
        fadvise(&file, at << 20, len, Advice::DontNeed).unwrap();
    }
    proxy.pull_blob(APP, &blob).await;
}

#[tokio::test]
async fn a_blob_is_sent_to_its_end_though_it_is_purged_and_others_need_the_room() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("cache.size", "90MiB")
        .start()
        .await;
    let blobs: Vec<Blob> = (0..4).map(|_| Blob::random(40 * MIB)).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    let mut readers = Vec::new();
    for blob in &blobs[..2] {
        proxy.wait_for_hit(APP, blob).await;
        let mut reader = proxy.blob(APP, blob.digest()).send().await;
        reader.read(KIB).await;
        readers.push((reader, blob));
    }
    let (tags, _, purged) = proxy.purge(blobs[0].digest()).await;
    assert_eq!((tags, purged), (0, 1));
    // Neither the one nor the other made room.
    let third = proxy.blob(APP, blobs[2].digest()).send().await;
    assert_eq!(third.head.cache_status(), "layerhold; fwd=bypass");
    third.is(&blobs[2]).await;
    for (reader, blob) in readers {
        reader.continues(blob, KIB).await;
    }
    // Now there is, of the purged one at least.
    proxy.wait_for_hit(APP, &blobs[3]).await;
}

#[tokio::test]
async fn a_file_that_is_cut_short_while_it_is_sent_is_made_good_by_upstream() {
    let (upstream, proxy, blob) = warm(64 * MIB).await;
    let mut reader = proxy.blob(APP, blob.digest()).send().await;
    reader.read(KIB).await;
    shorten(&proxy, &blob, 32 * MIB);
    reader.continues(&blob, KIB).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
    // It is set aside, and fetched anew by whoever comes next.
    let quarantined = "layerhold_quarantined_total";
    assert_eq!(proxy.metric(quarantined, &[]).await, 1.0);
    proxy.wait_for_hit(APP, &blob).await;
}

#[tokio::test]
async fn a_file_that_is_cut_short_and_cannot_be_made_good_breaks_the_connection() {
    let (upstream, proxy, blob) = warm(64 * MIB).await;
    let mut reader = proxy.blob(APP, blob.digest()).send().await;
    let begin = reader.read(KIB).await;
    upstream.stop().await;
    shorten(&proxy, &blob, 32 * MIB);
    let whole = reader.whole().await;
    assert_ne!(whole.end, End::Complete);
    let came = begin.len() + whole.bytes.len();
    assert!(came <= 32 * MIB, "{came}");
    assert!(whole.bytes == blob.bytes()[KIB..came]);
    // Ours is the blame, and nobody else's connection.
    let failed = [("end", "failed")];
    proxy
        .wait_for_metric("layerhold_responses_total", &failed, |it| it == 1.0)
        .await;
    proxy.get("/v2/").whole().await.is(200, b"{}");
}

#[tokio::test]
async fn pitfall_49_slow_readers_of_a_large_hit_cost_no_memory() {
    let upstream = FakeRegistry::start().await;
    let binary = Binary::start(&TestProxy::in_front_of(&upstream)).await;
    let blob = Blob::random(256 * MIB);
    upstream.serve_blob(APP, &blob);
    binary.wait_for_hit(APP, &blob).await;
    let before = binary.peak_memory();
    let request = binary.blob(APP, blob.digest());
    let mut slow = Vec::new();
    for _ in 0..32 {
        let mut reader = request.send().await;
        reader.read(MIB).await;
        slow.push(reader);
    }
    for mut reader in slow.drain(4..) {
        reader.read(MIB).await;
    }
    join_all(slow.into_iter().map(|it| it.continues(&blob, MIB))).await;
    let more = binary.peak_memory() - before;
    assert!(more < 16 * MIB, "{} MiB", more / MIB);
    assert!(binary.metric(BY_KERNEL, &[]).await > 0.0);
}
