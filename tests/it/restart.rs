//! A restart loses nothing that was published.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use crate::harness::proxy::ONE;
use crate::harness::{
    APP, Binary, Blob, FakeRegistry, Image, KIB, MIB, ProxyBuilder, TestProxy, get, head, pair,
};

#[tokio::test]
async fn pitfall_46_what_was_pulled_is_served_after_a_start_without_any_upstream() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[3 * MIB, KIB]);
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        proxy.wait_for_hit(APP, blob).await;
    }
    upstream.stop().await;
    let before = upstream.log().len();

    let proxy = proxy.restart().await;
    for blob in image.blobs() {
        let hit = proxy.pull_blob(APP, blob).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
    }
    let hit = proxy.pull_manifest(APP, image.manifest.digest()).await;
    assert_eq!(hit.head.cache_status(), "layerhold; hit");
    assert_eq!(
        hit.head.header("content-type"),
        Some(image.manifest.media_type())
    );
    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.bytes, image.manifest.bytes());
    assert_eq!(
        stale.head.cache_status(),
        "layerhold; fwd=stale; detail=upstream-unavailable"
    );
    assert_eq!(upstream.log().len(), before);
}

#[tokio::test]
async fn a_tag_that_moved_before_the_restart_is_where_it_was_last_stored() {
    let (upstream, proxy) = pair().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    proxy.pull_manifest(APP, "v1").await;
    let moved = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &moved);
    proxy.pull_manifest(APP, "v1").await;
    proxy.wait_for_fills("published", 2.0).await;
    upstream.stop().await;
    let proxy = proxy.restart().await;
    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.bytes, moved.manifest.bytes());
}

#[tokio::test]
async fn after_a_restart_a_tag_is_checked_and_not_fetched() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, "v1").await;
    proxy.wait_for_fills("published", 1.0).await;
    let proxy = proxy.restart().await;
    let again = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(again.bytes, image.manifest.bytes());
    assert_eq!(upstream.count(&get("/manifests/")), 1);
}

#[tokio::test]
async fn what_lies_in_staging_is_removed_and_never_served() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    proxy.shut_down();
    let builder = proxy.stopped().await;
    let staging = builder.dir().join("staging");
    fs::write(staging.join("12345-6"), &blob.bytes()[..1000]).unwrap();

    let proxy = builder.start().await;
    proxy.pull_blob(APP, &blob).await;
    proxy.wait_for_fills("published", 1.0).await;
    proxy.wait_for_empty_staging().await;
}

#[tokio::test]
async fn an_unfinished_name_below_blobs_is_never_served() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    let file = proxy.published(blob.digest());
    proxy.shut_down();
    let builder = proxy.stopped().await;
    // Names that a crash of somebody else's tool could leave.
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    for name in [".tmp".to_owned(), "x".repeat(64), "README".to_owned()] {
        fs::write(file.with_file_name(name), "junk").unwrap();
    }
    let proxy = builder.start().await;
    proxy.wait_for_hit(APP, &blob).await;
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_refused() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    fs::create_dir_all(builder.dir()).unwrap();
    let theirs = builder.dir().join("thesis.txt");
    fs::write(&theirs, "years of work").unwrap();
    builder.clone().refused().await;
    assert_eq!(fs::read(theirs).unwrap(), b"years of work");
}

#[tokio::test]
async fn a_newer_layout_is_refused() {
    let (_upstream, proxy) = pair().await;
    proxy.shut_down();
    let builder = proxy.stopped().await;
    fs::write(builder.dir().join("VERSION"), "99\n").unwrap();
    builder.refused().await;
}

#[tokio::test]
async fn a_second_instance_on_the_same_directory_is_refused() {
    let (_upstream, proxy) = pair().await;
    let began = tokio::time::Instant::now();
    let (status, said) = Binary::refused(proxy.builder()).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("cache"), "{said}");
    assert!(began.elapsed().as_secs() < 10);
}

#[tokio::test]
async fn an_empty_version_is_a_first_start() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    fs::create_dir_all(builder.dir()).unwrap();
    fs::write(builder.dir().join("VERSION"), "").unwrap();
    let proxy = builder.start().await;
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
}

#[tokio::test]
async fn a_grant_that_was_torn_in_its_type_is_none() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    let digest = image.manifest.digest();
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, digest).await;
    let stored = |it| it == 1.0;
    proxy
        .wait_for_metric("layerhold_cache_blobs", &[], stored)
        .await;
    proxy.shut_down();
    let builder = proxy.stopped().await;
    let file = builder.dir().join("upstreams").join(ONE);
    let file = file.join(APP).join("_granted");
    assert!(fs::read_to_string(&file).unwrap().contains(digest));
    let torn = format!("manifest {digest} application/vnd.oci.image.ma");
    fs::write(&file, torn).unwrap();
    let proxy = builder.start().await;
    let pulled = proxy.pull_manifest(APP, digest).await;
    let media_type = pulled.head.header("content-type");
    assert_eq!(media_type, Some(image.manifest.media_type()));
    assert_eq!(upstream.count(&head(digest)), 1);
}

#[tokio::test]
async fn a_manifest_that_was_damaged_between_two_runs_is_not_served() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    let digest = image.manifest.digest();
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, digest).await;
    let stored = |it| it == 1.0;
    proxy
        .wait_for_metric("layerhold_cache_blobs", &[], stored)
        .await;
    let file = proxy.published(digest);
    proxy.shut_down();
    let builder = proxy.stopped().await;
    let mut bytes = fs::read(&file).unwrap();
    bytes[9] ^= 1;
    fs::write(&file, bytes).unwrap();
    let proxy = builder.start().await;
    let pulled = proxy.pull_manifest(APP, digest).await;
    assert_eq!(pulled.bytes, image.manifest.bytes());
    assert_eq!(upstream.count(&get(digest)), 2);
    let quarantined = proxy.metric("layerhold_quarantined_total", &[]).await;
    assert_eq!(quarantined, 1.0);
}

#[tokio::test]
async fn a_blob_that_was_emptied_between_two_runs_is_a_miss() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    let file = proxy.published(blob.digest());
    proxy.shut_down();
    let builder = proxy.stopped().await;
    fs::write(&file, "").unwrap();
    let proxy = builder.start().await;
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
}

const YEAR: i64 = 365 * 24 * 60 * 60;

/// Has a tag's record say that it was checked so many seconds later than it was: as if the clock had stood that far ahead
/// then, or stood that far back now.
fn shift_check(builder: &ProxyBuilder, tag: &str, seconds: i64) {
    let dir = builder.dir().join("upstreams").join(ONE).join(APP);
    let file = dir.join("_tags").join(tag);
    let text = fs::read_to_string(&file).unwrap();
    let (rest, stamp) = text.trim_end().rsplit_once(' ').unwrap();
    let stamp: i64 = stamp.parse().unwrap();
    fs::write(&file, format!("{rest} {}\n", stamp + seconds)).unwrap();
}

/// An upstream whose tag was pulled and checked at a time that is off by so much, and a proxy that starts after that.
async fn checked_at_another_time(seconds: i64) -> (FakeRegistry, ProxyBuilder, Image) {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.fresh_for", "30d")
        .set("freshness.usable_for", "60d")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, "v1").await;
    let stored = |it| it == 1.0;
    proxy
        .wait_for_metric("layerhold_cache_blobs", &[], stored)
        .await;
    proxy.shut_down();
    let builder = proxy.stopped().await;
    shift_check(&builder, "v1", seconds);
    (upstream, builder, image)
}

#[tokio::test]
async fn pitfall_19_a_clock_that_was_off_by_a_year_pins_no_tag() {
    for seconds in [YEAR, -YEAR, 60] {
        let (upstream, builder, _) = checked_at_another_time(seconds).await;
        let moved = Image::random(&[KIB]);
        upstream.serve_image(APP, "v1", &moved);
        let proxy = builder.start().await;
        let pulled = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(pulled.bytes, moved.manifest.bytes(), "{seconds}");
        // From then on it is as fresh as any, also after another start.
        let asked = upstream.log().len();
        proxy.pull_manifest(APP, "v1").await;
        let stored = |it| it == 2.0;
        proxy
            .wait_for_metric("layerhold_cache_blobs", &[], stored)
            .await;
        let proxy = proxy.restart().await;
        let again = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(again.head.cache_status(), "layerhold; hit", "{seconds}");
        assert_eq!(upstream.log().len(), asked, "{seconds}");
    }
}

#[tokio::test]
async fn pitfall_19_a_tag_that_was_checked_in_the_future_bridges_an_outage() {
    let (upstream, builder, image) = checked_at_another_time(YEAR).await;
    upstream.stop().await;
    let proxy = builder.start().await;
    for _ in 0..2 {
        let stale = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(stale.bytes, image.manifest.bytes());
        let status = "layerhold; fwd=stale; detail=upstream-unavailable";
        assert_eq!(stale.head.cache_status(), status);
    }
}

#[tokio::test]
async fn pitfall_19_times_of_use_that_are_off_by_a_year_throw_nothing_away() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("cache.size", "40MiB");
    let proxy = builder.start().await;
    let blobs: Vec<Blob> = (0..6).map(|_| Blob::random(6 * MIB)).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
        proxy.wait_for_hit(APP, blob).await;
    }
    proxy.shut_down();
    let files: Vec<_> = blobs
        .iter()
        .map(|it| proxy.published(it.digest()))
        .collect();
    let builder = proxy.stopped().await;
    let year = Duration::from_secs(YEAR.unsigned_abs());
    for (n, file) in files.iter().enumerate() {
        let now = file.metadata().unwrap().modified().unwrap();
        let off = match n {
            0..2 => now + year,
            2..4 => now - year,
            _ => SystemTime::UNIX_EPOCH - year,
        };
        let file = File::options().write(true).open(file).unwrap();
        file.set_modified(off).unwrap();
    }
    let proxy = builder.start().await;
    for blob in &blobs {
        let hit = proxy.pull_blob(APP, blob).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
    }
    // Nor does anything stay for ever: what was used since outlives what has only a late time.
    for blob in &blobs[2..] {
        proxy.pull_blob(APP, blob).await;
    }
    let more: Vec<Blob> = (0..2).map(|_| Blob::random(6 * MIB)).collect();
    for blob in &more {
        upstream.serve_blob(APP, blob);
        proxy.wait_for_hit(APP, blob).await;
    }
    let asked = upstream.log().len();
    for blob in &blobs[2..] {
        let hit = proxy.pull_blob(APP, blob).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
    }
    assert_eq!(upstream.log().len(), asked);
}
