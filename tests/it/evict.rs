//! The budget holds, and what goes is what was used least.

use std::fs::File;
use std::path::Path;
use std::slice::from_ref;
use std::time::{Duration, SystemTime};

use crate::harness::proxy::{published, sum};
use crate::harness::script::Turns;
use crate::harness::{
    APP, At, Binary, Blob, End, FakeRegistry, Fault, Image, KIB, MIB, ProxyBuilder, TestProxy, get,
    lose, poll,
};

const LIMIT: usize = 40 * MIB;

/// An upstream and a proxy that keeps [`LIMIT`] bytes.
async fn scene() -> (FakeRegistry, TestProxy) {
    let upstream = FakeRegistry::start().await;
    let proxy = bounded(&upstream).start().await;
    (upstream, proxy)
}

fn bounded(upstream: &FakeRegistry) -> ProxyBuilder {
    TestProxy::in_front_of(upstream).set("cache.size", "40MiB")
}

/// Blobs of this many MiB, served.
fn blobs(upstream: &FakeRegistry, mib: usize, n: usize) -> Vec<Blob> {
    let blobs: Vec<Blob> = (0..n).map(|_| Blob::random(mib * MIB)).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    blobs
}

/// Used and reserved bytes at one moment; never more than the limit.
async fn assert_within_budget(proxy: &TestProxy) -> f64 {
    let metrics = proxy.metrics().await;
    let bytes = |state| sum(&metrics, "layerhold_cache_bytes", &[("state", state)]);
    let (used, reserved, limit) = (bytes("used"), bytes("reserved"), bytes("limit"));
    assert_eq!(limit, 40.0 * 1024.0 * 1024.0);
    assert!(used + reserved <= limit, "{used} + {reserved} > {limit}");
    used
}

#[tokio::test]
async fn invariant_07_the_budget_holds_whatever_is_pulled() {
    let (upstream, proxy) = scene().await;
    for blob in blobs(&upstream, 6, 20) {
        proxy.wait_for_hit(APP, &blob).await;
        assert_within_budget(&proxy).await;
    }
    assert!(proxy.metric("layerhold_evictions_total", &[]).await >= 14.0);
    let evicted = proxy.metric("layerhold_evicted_bytes_total", &[]).await;
    assert!(evicted >= 14.0 * 6.0 * 1024.0 * 1024.0, "{evicted}");
    let stored = proxy.metric("layerhold_cache_blobs", &[]).await;
    assert!(
        (5.0..=6.0).contains(&stored),
        "{stored} blobs of 6 MiB in 40"
    );
}

#[tokio::test]
async fn what_is_remembered_of_a_blob_that_fills_the_budget_does_not_exceed_it() {
    let (upstream, proxy) = scene().await;
    let [whole] = blobs(&upstream, 40, 1).try_into().unwrap();
    // Its grant has no room beside it: one of the two goes.
    proxy.pull_blob(APP, &whole).await;
    proxy.wait_for_fills("published", 1.0).await;
    assert_within_budget(&proxy).await;
}

#[tokio::test]
async fn who_reads_on_after_a_fill_has_ended_still_holds_its_place() {
    let (upstream, proxy) = scene().await;
    let blobs = blobs(&upstream, 16, 3);
    let mut readers = Vec::new();
    for blob in &blobs[..2] {
        let mut reader = proxy.blob(APP, blob.digest()).send().await;
        reader.read(KIB).await;
        readers.push(reader);
    }
    proxy.wait_for_fills("published", 2.0).await;
    // Nothing that is being read is evicted for it.
    let third = proxy.blob(APP, blobs[2].digest()).send().await;
    assert_eq!(third.head.cache_status(), "layerhold; fwd=bypass");
    third.is(&blobs[2]).await;
    assert_eq!(proxy.metric("layerhold_evictions_total", &[]).await, 0.0);
    for (reader, blob) in readers.into_iter().zip(&blobs) {
        reader.continues(blob, KIB).await;
    }
}

#[tokio::test]
async fn pitfall_22_a_hit_renews() {
    let (upstream, proxy) = scene().await;
    let blobs = blobs(&upstream, 12, 4);
    for blob in &blobs[..3] {
        proxy.wait_for_hit(APP, blob).await;
    }
    proxy.pull_blob(APP, &blobs[0]).await;
    proxy.wait_for_hit(APP, &blobs[3]).await;

    // The second was used least.
    proxy.pull_blob(APP, &blobs[0]).await;
    proxy.pull_blob(APP, &blobs[2]).await;
    for blob in [&blobs[0], &blobs[2], &blobs[3]] {
        assert_eq!(upstream.count(&get(blob.digest())), 1);
    }
    proxy.pull_blob(APP, &blobs[1]).await;
    assert_eq!(upstream.count(&get(blobs[1].digest())), 2);
}

#[tokio::test]
async fn pitfall_21_a_shared_layer_that_was_evicted_can_be_pulled_by_all_who_share_it() {
    let (upstream, proxy) = scene().await;
    let shared = Blob::random(12 * MIB);
    let repositories = ["team/one", "team/two", "team/three"];
    for repository in repositories {
        upstream.serve_blob(repository, &shared);
        proxy.wait_for_hit(repository, &shared).await;
    }
    for blob in blobs(&upstream, 12, 4) {
        proxy.wait_for_hit(APP, &blob).await;
    }
    for repository in repositories {
        proxy.pull_blob(repository, &shared).await;
    }
    assert_eq!(upstream.count(&get(shared.digest())), 2);
}

#[tokio::test]
async fn pitfall_22_what_is_being_read_stays_while_there_is_something_else() {
    let (upstream, proxy) = scene().await;
    let blobs = blobs(&upstream, 24, 1);
    proxy.wait_for_hit(APP, &blobs[0]).await;
    let mut reader = proxy.blob(APP, blobs[0].digest()).send().await;
    reader.read(KIB).await;

    for blob in self::blobs(&upstream, 6, 6) {
        proxy.wait_for_hit(APP, &blob).await;
        assert_within_budget(&proxy).await;
    }
    reader.continues(&blobs[0], KIB).await;
    proxy.pull_blob(APP, &blobs[0]).await;
    assert_eq!(upstream.count(&get(blobs[0].digest())), 1);
}

#[tokio::test]
async fn pitfall_22_what_is_being_read_is_read_to_its_end_even_if_it_has_to_go() {
    let (upstream, proxy) = scene().await;
    let blobs = blobs(&upstream, 24, 2);
    proxy.wait_for_hit(APP, &blobs[0]).await;
    let mut reader = proxy.blob(APP, blobs[0].digest()).send().await;
    reader.read(KIB).await;

    // Unlinked or not, the bytes count until the reader is done: there is no room for more.
    let around = proxy.pull_blob(APP, &blobs[1]).await;
    assert_eq!(around.cache_status(), "layerhold; fwd=bypass");
    assert_within_budget(&proxy).await;
    reader.continues(&blobs[0], KIB).await;
    proxy.wait_for_hit(APP, &blobs[1]).await;
    assert_within_budget(&proxy).await;
}

#[tokio::test]
async fn invariant_07_room_is_reserved_before_bytes_come() {
    let (upstream, proxy) = scene().await;
    let blobs = blobs(&upstream, 24, 2);
    let gate = upstream.hold(get("/blobs/"), At::Byte(MIB));
    let first = proxy.blob(APP, blobs[0].digest()).send().await;
    gate.reached().await;
    let reserved = proxy
        .metric("layerhold_cache_bytes", &[("state", "reserved")])
        .await;
    assert!(reserved >= 24.0 * 1024.0 * 1024.0, "{reserved}");

    // Nothing can be evicted for the second: it goes around.
    let second = proxy.blob(APP, blobs[1].digest()).send().await;
    assert_eq!(second.head.cache_status(), "layerhold; fwd=bypass");
    assert_within_budget(&proxy).await;
    gate.open();
    tokio::join!(first.is(&blobs[0]), second.is(&blobs[1]));
    proxy.wait_for_fills("published", 1.0).await;
    assert_within_budget(&proxy).await;
}

#[tokio::test]
async fn invariant_07_room_for_what_has_no_length_is_reserved_in_steps() {
    let (upstream, proxy) = scene().await;
    let old = blobs(&upstream, 10, 3);
    for blob in &old {
        proxy.wait_for_hit(APP, blob).await;
    }
    let blob = Blob::random(30 * MIB);
    upstream.serve_blob(APP, &blob);
    upstream.always(get(blob.digest()), Fault::NoLength);
    let gate = upstream.hold(get(blob.digest()), At::Byte(25 * MIB));
    let pull = proxy.blob(APP, blob.digest()).send().await;
    let seen = async {
        gate.reached().await;
        assert_within_budget(&proxy).await;
        gate.open();
    };
    tokio::join!(pull.is(&blob), seen);
    proxy.wait_for_hit(APP, &blob).await;
    assert_within_budget(&proxy).await;
}

#[tokio::test]
async fn pitfall_43_what_has_no_room_goes_around_the_cache() {
    let (upstream, proxy) = scene().await;
    let large = Blob::random(LIMIT + 1);
    upstream.serve_blob(APP, &large);
    let small = blobs(&upstream, 6, 1);
    proxy.wait_for_hit(APP, &small[0]).await;
    for _ in 0..2 {
        let head = proxy.pull_blob(APP, &large).await;
        assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
    }
    assert_within_budget(&proxy).await;
    // What could never fit has driven nothing out.
    proxy.pull_blob(APP, &small[0]).await;
    assert_eq!(upstream.count(&get(small[0].digest())), 1);
    assert_eq!(proxy.outcome("bypass").await, 2.0);
}

#[tokio::test]
async fn pitfall_43_what_has_no_length_and_no_room_comes_whole() {
    let (upstream, proxy) = scene().await;
    let large = Blob::random(LIMIT + 3 * MIB);
    upstream.serve_blob(APP, &large);
    upstream.always(get(large.digest()), Fault::NoLength);
    let answer = proxy.blob(APP, large.digest()).send().await;
    answer.is(&large).await;
    assert_within_budget(&proxy).await;
}

#[tokio::test]
async fn pitfall_43_what_is_encoded_and_has_no_room_comes_whole() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("cache.size", "5MiB");
    let proxy = builder.start().await;
    let large = Blob::random(6 * MIB);
    upstream.serve_blob(APP, &large);
    upstream.allow_concurrent_transfers();
    upstream.always(get(large.digest()), Fault::Gzip);
    let answer = proxy.blob(APP, large.digest()).send().await;
    answer.is(&large).await;
}

/// What upstream says when a pull goes around the cache, and what the client is told.
#[tokio::test]
async fn pitfall_42_what_fails_on_the_way_around_the_cache_is_answered_by_its_cause() {
    for (fault, status, code) in [
        (Fault::RateLimit(60), 503, Some("TOOMANYREQUESTS")),
        (Fault::Status(404), 404, Some("BLOB_UNKNOWN")),
        (Fault::Status(403), 403, Some("DENIED")),
        (Fault::Status(500), 502, None),
        (Fault::Refuse, 502, None),
        (Fault::Silence, 504, None),
    ] {
        for range in [None, Some("bytes=5-9"), Some("bytes=7-")] {
            let upstream = FakeRegistry::start().await;
            let proxy = bounded(&upstream)
                .set("timeouts.first_byte", "200ms")
                .start()
                .await;
            let large = Blob::random(LIMIT + 1);
            upstream.serve_blob(APP, &large);
            upstream.allow_concurrent_transfers();
            // The first is the fill's, which finds no room.
            upstream.always(get(large.digest()), fault);
            upstream.script(get(large.digest()), Turns::first(1), Fault::NoRange);
            let request = proxy.blob(APP, large.digest());
            let request = range
                .iter()
                .fold(request, |it, range| it.header("Range", *range));
            let whole = request.whole().await;
            assert_eq!(whole.head.status, status, "{fault:?}: {}", whole.text());
            assert_eq!(whole.code().as_deref(), code, "{fault:?}");
            let says_when = whole.head.header("retry-after").is_some();
            assert_eq!(says_when, status == 503, "{fault:?}: {:?}", whole.head);
            let outcome = if status < 500 { "refused" } else { "failed" };
            assert_eq!(proxy.outcome(outcome).await, 1.0, "{fault:?}");
        }
    }
}

#[tokio::test]
async fn pitfall_41_a_pause_that_ends_soon_is_waited_for_around_the_cache_too() {
    for range in [
        None,
        Some("bytes=5-9"),
        Some("bytes=7-"),
        Some("bytes=5-9,90-99"),
    ] {
        let upstream = FakeRegistry::start().await;
        let proxy = bounded(&upstream).start().await;
        let large = Blob::random(LIMIT + 1);
        upstream.serve_blob(APP, &large);
        upstream.allow_concurrent_transfers();
        // The first is the fill's, which finds no room.
        upstream.script(get(large.digest()), Turns::nth(2), Fault::RateLimit(1));
        let request = proxy.blob(APP, large.digest());
        let request = range
            .iter()
            .fold(request, |it, range| it.header("Range", *range));
        let whole = request.whole().await;
        let expected = if range.is_some() { 206 } else { 200 };
        assert_eq!(whole.head.status, expected, "{range:?}: {}", whole.text());
        assert_eq!(whole.end, End::Complete, "{range:?}");
    }
}

#[tokio::test]
async fn invariant_10_a_way_around_the_cache_that_opens_late_is_a_504_in_time() {
    let upstream = FakeRegistry::start().await;
    let proxy = bounded(&upstream)
        .set("timeouts.answer", "1s")
        .start()
        .await;
    let large = Blob::random(LIMIT + 1);
    upstream.serve_blob(APP, &large);
    upstream.allow_concurrent_transfers();
    upstream.script(get(large.digest()), Turns::nth(2), Fault::Silence);
    let whole = proxy.blob(APP, large.digest()).whole().await;
    assert_eq!(whole.head.status, 504, "{}", whole.text());
}

#[tokio::test]
async fn pitfall_43_a_disk_without_free_space_is_gone_around() {
    let upstream = FakeRegistry::start().await;
    let proxy = bounded(&upstream)
        .set("cache.free_space_min", "1000TiB")
        .start()
        .await;
    let blobs = blobs(&upstream, 1, 1);
    for _ in 0..2 {
        let head = proxy.pull_blob(APP, &blobs[0]).await;
        assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
    }
}

#[tokio::test]
async fn pitfall_23_index_and_files_agree_after_a_restart() {
    let (upstream, proxy) = scene().await;
    let blobs = blobs(&upstream, 6, 8);
    for blob in &blobs {
        proxy.wait_for_hit(APP, blob).await;
    }
    let used = assert_within_budget(&proxy).await;
    let proxy = proxy.restart().await;
    let same = |now: f64| (now - used).abs() < 64.0 * 1024.0;
    let used = [("state", "used")];
    proxy
        .wait_for_metric("layerhold_cache_bytes", &used, same)
        .await;

    // The last ones are here, the first ones went, and the order of use survived.
    for blob in &blobs[4..] {
        proxy.pull_blob(APP, blob).await;
        assert_eq!(upstream.count(&get(blob.digest())), 1);
    }
    proxy.pull_blob(APP, &blobs[0]).await;
    assert_eq!(upstream.count(&get(blobs[0].digest())), 2);
}

#[tokio::test]
async fn pitfall_23_a_missing_file_is_a_miss_and_frees_its_bytes() {
    let (upstream, proxy) = scene().await;
    let blobs = blobs(&upstream, 12, 3);
    for blob in &blobs {
        proxy.wait_for_hit(APP, blob).await;
    }
    let builder = {
        proxy.shut_down();
        let file = proxy.published(blobs[1].digest());
        let builder = proxy.stopped().await;
        lose(&file);
        builder
    };
    let proxy = builder.start().await;
    for blob in &blobs {
        let whole = proxy.blob(APP, blob.digest()).whole().await;
        assert_eq!(whole.end, End::Complete);
        whole.is(200, blob.bytes());
    }
    assert_eq!(upstream.count(&get(blobs[1].digest())), 2);
    assert_eq!(upstream.count(&get("/blobs/")), 4);
    assert_within_budget(&proxy).await;
}

/// Pulls blobs that are not here, one after the other, and waits until they are: each is used once.
async fn pull_once(proxy: &TestProxy, blobs: &[Blob]) {
    for blob in blobs {
        let before = proxy
            .metric("layerhold_fills_total", &[("end", "published")])
            .await;
        let head = proxy.pull_blob(APP, blob).await;
        assert_eq!(head.cache_status(), "layerhold; fwd=miss; stored");
        proxy.wait_for_fills("published", before + 1.0).await;
    }
}

/// Of these, only one is gone. It is pulled last, since that evicts.
async fn assert_missing(upstream: &FakeRegistry, proxy: &TestProxy, here: &[&Blob], gone: &Blob) {
    for blob in here {
        let head = proxy.pull_blob(APP, blob).await;
        assert_eq!(head.cache_status(), "layerhold; hit");
    }
    let before = upstream.count(&get(gone.digest()));
    proxy.pull_blob(APP, gone).await;
    assert_eq!(upstream.count(&get(gone.digest())), before + 1);
}

#[tokio::test]
async fn a_manifest_is_not_evicted_to_make_room_for_layers() {
    let (upstream, proxy) = scene().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let [manifest, config] = [&image.manifest.as_blob(), &image.config];
    proxy.pull_manifest(APP, manifest.digest()).await;
    proxy.wait_for_hit(APP, config).await;
    // Each time more than there is room for, and nobody asks for the image; a restart forgets what is in memory.
    pull_once(&proxy, &blobs(&upstream, 6, 10)).await;
    let proxy = proxy.restart().await;
    pull_once(&proxy, &blobs(&upstream, 6, 10)).await;
    let proxy = proxy.restart().await;
    assert!(proxy.published(manifest.digest()).exists());
    let hit = proxy.pull_manifest(APP, manifest.digest()).await;
    assert_eq!(hit.head.cache_status(), "layerhold; hit");
    let hit = proxy.pull_blob(APP, config).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
    assert_within_budget(&proxy).await;
}

#[tokio::test]
async fn small_content_that_nobody_asks_for_any_more_makes_room() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("cache.size", "4MiB");
    let proxy = builder.start().await;
    let small: Vec<Blob> = (0..100).map(|_| Blob::random(50 * KIB)).collect();
    for blob in &small {
        upstream.serve_blob(APP, blob);
    }
    pull_once(&proxy, &small).await;
    // Up to the share of what is small, layers take over.
    let layers = blobs(&upstream, 1, 3);
    pull_once(&proxy, &layers).await;
    for layer in &layers {
        let hit = proxy.pull_blob(APP, layer).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
    }
    // And the newest of what is small is still here.
    let newest = proxy.pull_blob(APP, &small[99]).await;
    assert_eq!(newest.cache_status(), "layerhold; hit");
}

#[tokio::test]
async fn what_was_used_again_outlives_a_flood() {
    let (upstream, proxy) = scene().await;
    let [again] = blobs(&upstream, 12, 1).try_into().unwrap();
    proxy.wait_for_hit(APP, &again).await;
    pull_once(&proxy, &blobs(&upstream, 6, 12)).await;
    let hit = proxy.pull_blob(APP, &again).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
}

#[tokio::test]
async fn pitfall_22_the_order_of_use_survives_a_restart() {
    let (upstream, proxy) = scene().await;
    let [a, b, c, d] = blobs(&upstream, 12, 4).try_into().unwrap();
    pull_once(&proxy, &[a.clone(), b.clone(), c.clone()]).await;
    proxy.pull_blob(APP, &a).await;
    let proxy = proxy.restart().await;
    pull_once(&proxy, from_ref(&d)).await;
    assert_missing(&upstream, &proxy, &[&a, &c, &d], &b).await;
}

#[tokio::test]
async fn pitfall_22_the_order_of_use_survives_a_kill() {
    let (upstream, proxy) = scene().await;
    let [a, b, c, d] = blobs(&upstream, 12, 4).try_into().unwrap();
    pull_once(&proxy, &[a.clone(), b.clone(), c.clone()]).await;
    proxy.shut_down();
    let builder = proxy.stopped().await;

    let binary = Binary::start(&builder).await;
    binary.pull_blob(APP, &a).await;
    let [old, new] = [&c, &a].map(|blob| published(&builder.dir(), blob.digest()));
    poll("the use to be written down", async || {
        (modified(&new) > modified(&old)).then_some(())
    })
    .await;
    binary.kill().await;

    let proxy = builder.start().await;
    pull_once(&proxy, from_ref(&d)).await;
    assert_missing(&upstream, &proxy, &[&a, &c, &d], &b).await;
}

#[tokio::test]
async fn pitfall_22_a_clock_that_was_set_back_changes_no_order() {
    let (upstream, proxy) = scene().await;
    let [a, b, c, d, e] = blobs(&upstream, 12, 5).try_into().unwrap();
    pull_once(&proxy, &[a.clone(), b.clone(), c.clone()]).await;
    proxy.shut_down();
    let builder = proxy.stopped().await;
    // As a clock leaves them that was years ahead.
    let ahead = Duration::from_secs(10 * 365 * 24 * 3600);
    let ahead = modified(&published(&builder.dir(), a.digest())) + ahead;
    for (blob, seconds) in [(&b, 1), (&c, 2), (&a, 3)] {
        let file = File::open(published(&builder.dir(), blob.digest())).unwrap();
        file.set_modified(ahead + Duration::from_secs(seconds))
            .unwrap();
    }
    let proxy = builder.start().await;
    pull_once(&proxy, from_ref(&d)).await;
    assert!(!proxy.published(b.digest()).exists());

    // What came since is newer, though the clock says otherwise.
    let proxy = proxy.restart().await;
    pull_once(&proxy, from_ref(&e)).await;
    assert_missing(&upstream, &proxy, &[&a, &d, &e], &c).await;
}

fn modified(file: &Path) -> SystemTime {
    file.metadata().unwrap().modified().unwrap()
}
