//! What a restart of ours interrupts goes on from its staged bytes: nothing of them is fetched again, shown to anybody
//! before upstream has vouched for it, or believed unhashed.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use layerhold::cache::{Area, Operation};

use crate::harness::blob::sha256;
use crate::harness::proxy::{Front, TWO, staging};
use crate::harness::registry::Gate;
use crate::harness::{
    APP, At, Binary, Blob, End, FakeRegistry, Fault, Image, KIB, MIB, ProxyBuilder, TestProxy, get,
    lose, pair, poll,
};

const LEN: usize = 8 * MIB + 77;
const USED: [(&str, &str); 1] = [("state", "used")];
const RESERVED: [(&str, &str); 1] = [("state", "reserved")];

/// The marks in a directory: of which digest there are how many bytes.
fn marks(dir: &Path) -> Vec<(String, usize)> {
    let staged = staging(dir).into_iter();
    let marks = staged.filter(|it| it.extension().is_some_and(|it| it == "mark"));
    let read = marks.filter_map(|it| {
        let text = fs::read_to_string(it).ok()?;
        let mut words = text.split(' ');
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    });
    read.collect()
}

/// Waits until this much of a blob is marked, and says how much is.
async fn marked(dir: &Path, blob: &Blob, least: usize) -> usize {
    poll("a mark", async || {
        let marks = marks(dir).into_iter();
        let of = marks.filter(|(digest, length)| digest == blob.digest() && *length >= least);
        of.map(|(_, length)| length).max()
    })
    .await
}

/// What a process leaves that is interrupted: these first bytes of a blob of this digest and size.
fn leave(dir: &Path, digest: &str, bytes: &[u8], size: Option<usize>) {
    let staging = dir.join("staging");
    fs::create_dir_all(&staging).unwrap();
    let size = size.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let mark = format!("{digest} {} {} {size}\n", bytes.len(), sha256(bytes));
    fs::write(staging.join("0123456789abcdef-7"), bytes).unwrap();
    fs::write(staging.join("0123456789abcdef-7.mark"), mark).unwrap();
}

/// A registry with one blob, and a directory in which this much of it was left, with nobody who runs on it.
async fn left(length: usize) -> (FakeRegistry, ProxyBuilder, Blob) {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(LEN);
    upstream.serve_blob(APP, &blob);
    proxy.shut_down();
    let builder = proxy.stopped().await;
    leave(
        &builder.dir(),
        blob.digest(),
        &blob.bytes()[..length],
        Some(LEN),
    );
    (upstream, builder, blob)
}

/// How many remainders ended in this way.
async fn ended(front: &Front, end: &str) -> f64 {
    front
        .metric("layerhold_remainders_total", &[("end", end)])
        .await
}

/// Checks that the last request for the blob was for what is behind the first `length` bytes, and brought just that.
fn assert_only_the_rest_was_asked_for(upstream: &FakeRegistry, blob: &Blob, length: usize) {
    let asked = upstream.seen(&get(blob.digest()));
    let last = asked.last().unwrap();
    let range = format!("bytes={length}-");
    assert_eq!(last.header("range"), Some(range.as_str()));
    assert_eq!((last.status, last.sent), (206, blob.len() - length));
}

/// Begins a pull and holds it in the middle.
async fn interrupted(upstream: &FakeRegistry, front: &Front, blob: &Blob) -> Gate {
    let gate = upstream.hold(get(blob.digest()), At::Byte(5 * MIB));
    let answer = front.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    drop(answer);
    gate
}

#[tokio::test]
async fn pitfall_02_a_fill_that_was_killed_goes_on_from_its_staged_bytes() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    let blob = Blob::random(LEN);
    upstream.serve_blob(APP, &blob);
    let binary = Binary::start(&builder).await;
    let gate = upstream.hold(get(blob.digest()), At::Byte(5 * MIB));
    let answer = binary.blob(APP, blob.digest()).send().await;
    let length = marked(&builder.dir(), &blob, 4 * MIB).await;
    binary.kill().await;
    assert_ne!(answer.whole().await.end, End::Complete);
    drop(gate);
    upstream.quiet().await;

    let binary = Binary::start(&builder).await;
    let used = binary.metric("layerhold_cache_bytes", &USED).await;
    assert_eq!(used, length as f64, "it counts");
    binary.pull_blob(APP, &blob).await;
    assert_only_the_rest_was_asked_for(&upstream, &blob, length);
    let resumed = binary.metric("layerhold_resumed_bytes_total", &[]).await;
    assert_eq!(
        (resumed, ended(&binary, "resumed").await),
        (length as f64, 1.0)
    );
    binary.wait_for_fills("published", 1.0).await;
    binary.wait_for_hit(APP, &blob).await;
    assert!(staging(&builder.dir()).is_empty());
    let used = binary.metric("layerhold_cache_bytes", &USED).await;
    assert!((LEN as f64..LEN as f64 + 1000.0).contains(&used), "{used}");
    assert_eq!(binary.metric("layerhold_cache_bytes", &RESERVED).await, 0.0);
}

#[tokio::test]
async fn invariant_12_pitfall_50_a_stop_leaves_what_is_staged_to_the_next_start() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("timeouts.drain", "300ms");
    let blob = Blob::random(LEN).named_by_sha512();
    let other = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob(APP, &other);
    let mut length = 0;
    // An interruption after the other: each goes on from where the one before ended.
    for (n, at) in [3 * MIB, 5 * MIB, 7 * MIB].into_iter().enumerate() {
        let binary = Binary::start(&builder).await;
        let gate = upstream.hold(get(blob.digest()), At::Byte(at));
        let answer = binary.blob(APP, blob.digest()).send().await;
        gate.reached().await;
        // All that came is there to be left.
        poll("the bytes", async || {
            let staged = staging(&builder.dir()).into_iter();
            let sizes = staged.map(|it| it.metadata().map_or(0, |it| it.len()));
            (sizes.max() == Some(at as u64)).then_some(())
        })
        .await;
        binary.terminate();
        assert_eq!(binary.exited().await.code(), Some(0));
        assert_ne!(answer.whole().await.end, End::Complete);
        assert_eq!(marks(&builder.dir()), [(blob.digest().to_owned(), at)]);
        assert_eq!(staging(&builder.dir()).len(), 2);
        upstream.quiet().await;
        let asked = upstream.seen(&get(blob.digest()));
        assert_eq!((asked.len(), asked[n].sent), (n + 1, at - length));
        length = at;
    }
    let proxy = builder.start().await;
    proxy.wait_for_hit(APP, &other).await;
    proxy.pull_blob(APP, &blob).await;
    assert_only_the_rest_was_asked_for(&upstream, &blob, length);
    assert_eq!(upstream.sent(&get(blob.digest())), LEN);
    proxy.wait_for_hit(APP, &blob).await;
    proxy.wait_for_empty_staging().await;
}

#[tokio::test]
async fn followers_and_ranges_read_a_resumed_fill_as_any() {
    let (upstream, builder, blob) = left(4 * MIB).await;
    let proxy = builder.start().await;
    let gate = upstream.hold(get(blob.digest()), At::Byte(6 * MIB));
    let mut first = proxy.blob(APP, blob.digest()).send().await;
    assert_eq!(first.head.content_length(), Some(LEN));
    first.read(5 * MIB).await;
    gate.reached().await;
    let request = proxy.blob(APP, blob.digest());
    for (range, part) in [
        ("bytes=0-0", 0..1),
        ("bytes=4194303-4194304", 4 * MIB - 1..4 * MIB + 1),
        ("bytes=100-5242879", 100..5 * MIB),
    ] {
        let whole = request.clone().range(range).whole().await;
        whole.is(206, &blob.bytes()[part]);
    }
    let second = request.send().await;
    gate.open();
    first.continues(&blob, 5 * MIB).await;
    second.is(&blob).await;
    assert_only_the_rest_was_asked_for(&upstream, &blob, 4 * MIB);
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn invariant_13_nothing_is_shown_of_what_is_staged_before_upstream_has_vouched() {
    let (upstream, builder, blob) = left(4 * MIB).await;
    let other = FakeRegistry::start().await;
    let proxy = builder
        .and(TWO, &other)
        .set("freshness.negative_for", "0s")
        .set("timeouts.answer", "5s")
        .start()
        .await;
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    let elsewhere = [
        format!("/v2/other/app/blobs/{}", blob.digest()),
        format!("{target}?ns={TWO}"),
    ];
    for target in &elsewhere {
        for request in [
            proxy.get(target),
            proxy.head(target),
            proxy.get(target).range("bytes=0-0"),
        ] {
            let whole = request.whole().await;
            assert_eq!(whole.head.status, 404, "{request:?}");
            assert_ne!(whole.head.content_length(), Some(LEN));
        }
    }
    // Nobody can say.
    upstream.stop().await;
    let whole = proxy.get(&target).whole().await;
    assert_eq!(whole.head.status, 502, "{}", whole.text());
    upstream.restart();
    // And nobody has lost it for asking.
    proxy.pull_blob(APP, &blob).await;
    assert_only_the_rest_was_asked_for(&upstream, &blob, 4 * MIB);
    for target in &elsewhere {
        assert_eq!(proxy.get(target).whole().await.head.status, 404);
    }
}

#[tokio::test]
async fn pitfall_28_a_registry_without_ranges_has_what_is_left_passed_over() {
    for fault in [
        Fault::NoRange,
        Fault::WrongRange,
        Fault::LateRange,
        Fault::Gzip,
    ] {
        let (upstream, builder, blob) = left(4 * MIB).await;
        upstream.always(get(blob.digest()), fault);
        let proxy = builder.start().await;
        proxy.pull_blob(APP, &blob).await;
        proxy.wait_for_hit(APP, &blob).await;
        assert_eq!(ended(&proxy, "resumed").await, 1.0, "{fault:?}");
    }
}

#[tokio::test]
async fn what_is_left_is_no_reason_for_a_failure_where_a_registry_fails_at_ranges() {
    for status in [400, 416, 500, 501] {
        let (upstream, builder, blob) = left(4 * MIB).await;
        upstream.once(get(blob.digest()), Fault::Status(status));
        let proxy = builder.start().await;
        proxy.pull_blob(APP, &blob).await;
        let asked = upstream.seen(&get(blob.digest()));
        let ranges: Vec<_> = asked.iter().map(|it| it.header("range")).collect();
        assert_eq!(ranges, [Some("bytes=4194304-"), None], "{status}");
        proxy.wait_for_hit(APP, &blob).await;
        proxy.wait_for_empty_staging().await;
    }
}

#[tokio::test]
async fn pitfall_02_what_a_power_failure_made_of_it_is_found_and_begun_anew() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 3] = [
        |bytes| bytes[MIB] ^= 1,
        |bytes| bytes[3 * MIB..].fill(0),
        |bytes| *bytes.last_mut().unwrap() ^= 0x80,
    ];
    for damage in damages {
        let (upstream, builder, blob) = left(4 * MIB).await;
        let file = builder.dir().join("staging/0123456789abcdef-7");
        let mut bytes = fs::read(&file).unwrap();
        damage(&mut bytes);
        fs::write(&file, bytes).unwrap();
        let proxy = builder.start().await;
        proxy.pull_blob(APP, &blob).await;
        proxy.wait_for_hit(APP, &blob).await;
        assert_eq!(ended(&proxy, "damaged").await, 1.0);
        let last = upstream.seen(&get(blob.digest())).pop().unwrap();
        assert_eq!((last.header("range"), last.sent), (None, LEN));
        proxy.wait_for_empty_staging().await;
        let used = proxy.metric("layerhold_cache_bytes", &USED).await;
        assert!((LEN as f64..LEN as f64 + 1000.0).contains(&used), "{used}");
    }
}

#[tokio::test]
async fn what_is_left_and_torn_or_strange_is_removed_at_the_start() {
    type Change = fn(&Path);
    fn mark(dir: &Path) -> std::path::PathBuf {
        dir.join("staging/0123456789abcdef-7.mark")
    }
    fn rewrite(dir: &Path, change: fn(String) -> String) {
        let text = fs::read_to_string(mark(dir)).unwrap();
        fs::write(mark(dir), change(text)).unwrap();
    }
    let changes: [Change; 10] = [
        |dir| fs::write(mark(dir), "").unwrap(),
        |dir| fs::write(mark(dir), [0; 200]).unwrap(),
        |dir| rewrite(dir, |it| it[..it.len() - 9].to_owned()),
        |dir| rewrite(dir, |it| it.replace(" 4194304 ", " 4194305 ")),
        |dir| rewrite(dir, |it| it.replace(" 4194304 ", " 0 ")),
        |dir| rewrite(dir, |it| it.replace(" 8388685\n", " 4194304\n")),
        |dir| rewrite(dir, |it| it + &" ".repeat(9000)),
        |dir| lose(&mark(dir)),
        |dir| lose(&mark(dir).with_extension("")),
        |dir| {
            let file = File::open(mark(dir).with_extension("")).unwrap();
            let now = file.metadata().unwrap().modified().unwrap();
            let two_days = Duration::from_secs(48 * 3600);
            file.set_modified(now - two_days).unwrap();
        },
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let (upstream, builder, blob) = left(4 * MIB).await;
        change(&builder.dir());
        let proxy = builder.start().await;
        assert!(staging(&proxy.builder().dir()).is_empty(), "{n}");
        proxy.pull_blob(APP, &blob).await;
        assert_eq!(upstream.sent(&get(blob.digest())), LEN, "{n}");
    }
}

#[tokio::test]
async fn of_two_remainders_of_a_blob_the_longer_one_is_kept_without_what_is_not_marked() {
    let (upstream, builder, blob) = left(4 * MIB).await;
    leave(
        &builder.dir(),
        blob.digest(),
        &blob.bytes()[..MIB],
        Some(LEN),
    );
    let staged = builder.dir().join("staging");
    for extension in ["", ".mark"] {
        let [shorter, other] = ["0123456789abcdef-7", "fedcba9876543210-1"]
            .map(|it| staged.join(format!("{it}{extension}")));
        fs::copy(shorter, other).unwrap();
    }
    leave(
        &builder.dir(),
        blob.digest(),
        &blob.bytes()[..4 * MIB],
        Some(LEN),
    );
    let longer = staged.join("0123456789abcdef-7");
    let more = [&blob.bytes()[..4 * MIB], &[7; 12345]].concat();
    fs::write(&longer, more).unwrap();
    let proxy = builder.start().await;
    assert_eq!(staging(&proxy.builder().dir()).len(), 2);
    assert_eq!(fs::metadata(&longer).unwrap().len(), 4 * MIB as u64);
    proxy.pull_blob(APP, &blob).await;
    assert_only_the_rest_was_asked_for(&upstream, &blob, 4 * MIB);
}

#[tokio::test]
async fn pitfall_01_wrong_staged_bytes_are_not_held_against_upstream() {
    let (registry, mirror) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let builder = TestProxy::in_front_of(&registry).mirror(&mirror, "");
    let blob = Blob::random(LEN);
    registry.serve_blob(APP, &blob);
    mirror.serve_blob(APP, &blob);
    // Some source has lied to the former process: these are its bytes, and wrong.
    let mut wrong = blob.bytes()[..4 * MIB].to_vec();
    wrong[MIB] ^= 1;
    leave(&builder.dir(), blob.digest(), &wrong, Some(LEN));
    fs::write(builder.dir().join("VERSION"), "1\n").unwrap();
    let proxy = builder.start().await;
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_ne!(whole.end, End::Complete);
    assert_only_the_rest_was_asked_for(&mirror, &blob, 4 * MIB);
    proxy.wait_for_fills("mismatch", 1.0).await;
    proxy.wait_for_empty_staging().await;
    assert!(!proxy.published(blob.digest()).exists());

    proxy.pull_blob(APP, &blob).await;
    let asked = mirror.seen(&get(blob.digest()));
    assert_eq!((asked.len(), asked[1].header("range")), (2, None));
    assert_eq!(registry.connections(), 0, "nobody is blamed");
}

#[tokio::test]
async fn a_source_that_lies_about_the_whole_is_refused_as_ever_after_a_resume_was_tried() {
    let (upstream, builder, blob) = left(4 * MIB).await;
    upstream.always(get(blob.digest()), Fault::Corrupt(3 * MIB));
    let proxy = builder.start().await;
    for asked in [1, 2, 2] {
        let whole = proxy.blob(APP, blob.digest()).whole().await;
        assert!(whole.end != End::Complete || whole.head.status == 502);
        let settled = |it| it == 0.0;
        proxy.wait_for_metric("layerhold_fills", &[], settled).await;
        assert_eq!(upstream.count(&get(blob.digest())), asked);
    }
}

#[tokio::test]
async fn another_size_than_was_announced_is_begun_anew_and_nobody_notices() {
    // What is asked for is behind the end, or something is there and was not to be.
    for (length, size) in [
        (LEN, None),
        (LEN + 5, None),
        (LEN + 5, Some(LEN + 9)),
        (MIB, Some(LEN + 9)),
    ] {
        let (upstream, builder, blob) = left(1).await;
        let mut longer = blob.bytes().to_vec();
        longer.resize(LEN + 5, 1);
        leave(&builder.dir(), blob.digest(), &longer[..length], size);
        let mirror = FakeRegistry::start().await;
        mirror.serve_blob(APP, &blob);
        let proxy = builder.mirror(&mirror, "").start().await;
        proxy.pull_blob(APP, &blob).await;
        proxy.wait_for_hit(APP, &blob).await;
        assert!(mirror.sent(&get(blob.digest())) >= LEN, "{length}");
        assert_eq!(ended(&proxy, "dropped").await, 1.0, "{length}");
        proxy.wait_for_empty_staging().await;
        // It is not put to rest for what was not its fault.
        let other = Blob::random(KIB);
        mirror.serve_blob(APP, &other);
        proxy.pull_blob(APP, &other).await;
        drop(upstream);
    }
}

#[tokio::test]
async fn invariant_07_what_is_left_counts_and_makes_room() {
    let (upstream, builder, blob) = left(4 * MIB).await;
    let builder = builder.set("cache.size", "10MiB");
    let proxy = builder.start().await;
    let used = proxy.metric("layerhold_cache_bytes", &USED).await;
    assert_eq!(used, 4.0 * 1024.0 * 1024.0);
    // One that has room besides, and one that has not.
    let (small, large) = (Blob::random(5 * MIB), Blob::random(9 * MIB));
    for (other, left) in [(&small, 2), (&large, 0)] {
        upstream.serve_blob(APP, other);
        proxy.wait_for_hit(APP, other).await;
        assert_eq!(staging(&proxy.builder().dir()).len(), left);
        let used = proxy.metric("layerhold_cache_bytes", &USED).await;
        assert!(used <= 10.0 * 1024.0 * 1024.0, "{used}");
    }
    assert_eq!(ended(&proxy, "dropped").await, 1.0);
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.sent(&get(blob.digest())), LEN);
}

#[tokio::test]
async fn invariant_07_what_is_left_and_cannot_be_removed_makes_no_room() {
    let (upstream, builder, blob) = left(4 * MIB).await;
    let proxy = builder.set("cache.size", "10MiB").start().await;
    let large = Blob::random(9 * MIB);
    upstream.serve_blob(APP, &large);
    proxy.faults().fail(Operation::Remove, Area::Staging, 5, 0);
    let head = proxy.pull_blob(APP, &large).await;
    assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
    let used = proxy.metric("layerhold_cache_bytes", &USED).await;
    assert_eq!(used, (4 * MIB) as f64, "it is still there");
    assert_eq!(ended(&proxy, "dropped").await, 0.0);

    proxy.faults().heal();
    proxy.wait_for_hit(APP, &large).await;
    assert_eq!(ended(&proxy, "dropped").await, 1.0);
    assert!(marks(&proxy.builder().dir()).is_empty());
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.sent(&get(blob.digest())), LEN);
}

#[tokio::test]
async fn what_is_left_makes_room_for_a_blob_of_unknown_size() {
    let (upstream, builder, _blob) = left(4 * MIB).await;
    let proxy = builder.set("cache.size", "10MiB").start().await;
    let large = Blob::random(9 * MIB);
    upstream.serve_blob(APP, &large);
    upstream.always(get(large.digest()), Fault::NoLength);
    proxy.pull_blob(APP, &large).await;
    proxy.wait_for_fills("published", 1.0).await;
    assert_eq!(ended(&proxy, "dropped").await, 1.0);
    proxy.wait_for_empty_staging().await;
}

#[tokio::test]
async fn what_is_left_in_a_directory_that_is_removed_counts_no_more() {
    let (upstream, builder, blob) = left(4 * MIB).await;
    let proxy = builder.start().await;
    fs::remove_dir_all(proxy.builder().dir()).unwrap();
    let free = |it| it == 0.0;
    proxy
        .wait_for_metric("layerhold_cache_bytes", &USED, free)
        .await;
    proxy.pull_blob(APP, &blob).await;
    let asked = upstream.seen(&get(blob.digest()));
    assert_eq!((asked.len(), asked[0].header("range")), (1, None));
}

#[tokio::test]
async fn invariant_07_a_smaller_budget_than_what_is_left_has_no_room_for_it() {
    let (_upstream, builder, _blob) = left(4 * MIB).await;
    let builder = builder
        .set("cache.size", "2MiB")
        .set("limits.manifest_bytes", "64KiB");
    let proxy = builder.start().await;
    proxy.wait_for_empty_staging().await;
    let free = |it| it == 0.0;
    proxy
        .wait_for_metric("layerhold_cache_bytes", &USED, free)
        .await;
}

#[tokio::test]
async fn a_blob_that_has_no_room_any_more_goes_around_the_cache() {
    let (_upstream, builder, blob) = left(4 * MIB).await;
    let builder = builder
        .set("cache.size", "6MiB")
        .set("limits.manifest_bytes", "64KiB");
    let proxy = builder.start().await;
    let head = proxy.pull_blob(APP, &blob).await;
    assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
    proxy.wait_for_empty_staging().await;
}

#[tokio::test]
async fn a_purge_removes_what_is_left() {
    let (upstream, builder, blob) = left(4 * MIB).await;
    let proxy = builder.start().await;
    proxy.purge(blob.digest()).await;
    assert!(staging(&proxy.builder().dir()).is_empty());
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.sent(&get(blob.digest())), LEN);
}

#[tokio::test]
async fn what_is_left_is_nothing_wrong() {
    let (upstream, builder, blob) = left(4 * MIB).await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    let file = builder.file();
    let offline = [
        "verify",
        "--json",
        "--repair",
        "--config",
        file.to_str().unwrap(),
    ];
    let (code, said, error) = Binary::command(&offline).await;
    assert_eq!(code, Some(0), "{said}{error}");
    let binary = Binary::start(&builder).await;
    binary.pull_manifest(APP, "v1").await;
    for it in image.blobs() {
        binary.wait_for_hit(APP, it).await;
    }
    let admin = binary.admin.to_string();
    let (code, said, error) = Binary::command(&["verify", "--json", "--admin", &admin]).await;
    assert_eq!(code, Some(0), "{said}{error}");
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["wrong"], 0, "{report}");
    assert_eq!(
        report["accounted_bytes"], report["stored_bytes"],
        "{report}"
    );
    binary.pull_blob(APP, &blob).await;
    assert_only_the_rest_was_asked_for(&upstream, &blob, 4 * MIB);
}

#[tokio::test]
async fn invariant_12_a_successor_goes_on_while_its_predecessor_drains() {
    let (upstream, proxy) = pair().await;
    upstream.allow_concurrent_transfers();
    let blob = Blob::random(LEN);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(5 * MIB));
    let mut answer = proxy.blob(APP, blob.digest()).send().await;
    answer.read(MIB).await;
    gate.reached().await;
    let length = marked(&proxy.builder().dir(), &blob, 4 * MIB).await;

    proxy.shut_down();
    let successor = proxy.builder().clone().start().await;
    let (_, left) = marks(&proxy.builder().dir()).pop().unwrap();
    assert!((length..=5 * MIB).contains(&left), "{left}");
    let second = successor.blob(APP, blob.digest()).send().await;
    let third = successor.blob(APP, blob.digest()).send().await;
    gate.open();
    // The one goes on behind what it had written, the other in the file itself.
    answer.continues(&blob, MIB).await;
    second.is(&blob).await;
    third.is(&blob).await;
    proxy.stopped().await;
    assert_only_the_rest_was_asked_for(&upstream, &blob, left);
    assert_eq!(upstream.count(&get(blob.digest())), 2);
    successor.wait_for_hit(APP, &blob).await;
    successor.wait_for_empty_staging().await;
}

#[tokio::test]
async fn invariant_12_what_nobody_reads_is_not_fetched_while_a_proxy_drains() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream).start().await;
    // More than sockets hold.
    let (blob, other) = (Blob::random(32 * MIB), Blob::random(LEN));
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob(APP, &other);
    // Somebody is still being served, so that there is a drain.
    let slow = upstream.hold(get(other.digest()), At::Byte(MIB));
    let served = proxy.blob(APP, other.digest()).send().await;
    slow.reached().await;
    let gate = interrupted(&upstream, &proxy, &blob).await;
    marked(&proxy.builder().dir(), &blob, 4 * MIB).await;
    let left = |it| it == 1.0;
    proxy
        .wait_for_metric("layerhold_followers", &[], left)
        .await;
    let builder = proxy.builder().clone();
    proxy.shut_down();
    let successor = builder.start().await;
    gate.open();
    proxy.wait_for_fills_at_least("abandoned", 1.0).await;
    slow.open();
    served.is(&other).await;
    proxy.stopped().await;
    let (length, sent) = {
        let marks = marks(&successor.builder().dir());
        let of = marks.iter().find(|(digest, _)| digest == blob.digest());
        (of.unwrap().1, upstream.sent(&get(blob.digest())))
    };
    assert!(sent < blob.len(), "{sent}");
    successor.pull_blob(APP, &blob).await;
    assert_only_the_rest_was_asked_for(&upstream, &blob, length);
}
