//! What is kept is checked against what it promises: damage is found, and not served again and again.

use std::fs;
use std::path::Path;

use crate::harness::{APP, Blob, FakeRegistry, KIB, MIB, TestProxy, get, pair};

/// Damages a published file as a disk does: its size stays.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn pitfall_01_a_byte_that_flipped_behind_our_back_is_found_by_the_scrub() {
    let (upstream, proxy) = pair().await;
    let (blob, other) = (Blob::random(3 * MIB + 1), Blob::random(KIB));
    for blob in [&blob, &other] {
        upstream.serve_blob(APP, blob);
        proxy.wait_for_hit(APP, blob).await;
    }
    let file = proxy.published(blob.digest());
    proxy.shut_down();
    let builder = proxy.stopped().await;
    flip(&file);
    let proxy = builder.set("cache.scrub_rate", "16MiB").start().await;
    let found = |it| it == 1.0;
    proxy
        .wait_for_metric("layerhold_quarantined_total", &[], found)
        .await;
    proxy.pull_blob(APP, &blob).await;
    proxy.pull_blob(APP, &other).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
    assert_eq!(upstream.count(&get(other.digest())), 1);
    let ended = |it| it > 1_600_000_000.0;
    proxy
        .wait_for_metric("layerhold_scrub_ended_seconds", &[], ended)
        .await;
    let scrubbed = proxy.metric("layerhold_scrubbed_bytes_total", &[]).await;
    assert!(scrubbed >= 1024.0, "{scrubbed}");
    // What is damaged is out of the way only until the next start.
    let proxy = proxy.restart().await;
    proxy.wait_for_empty_staging().await;
    proxy.wait_for_hit(APP, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
}

#[tokio::test]
async fn pitfall_21_what_is_evicted_while_it_is_checked_is_no_damage() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("cache.size", "5MiB");
    let proxy = builder.clone().start().await;
    let (blob, other) = (Blob::random(3 * MIB), Blob::random(3 * MIB));
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob(APP, &other);
    proxy.wait_for_hit(APP, &blob).await;
    proxy.shut_down();
    proxy.stopped().await;
    let proxy = builder.set("cache.scrub_rate", "1MiB").start().await;
    let begun = |it| it > 0.0;
    proxy
        .wait_for_metric("layerhold_scrubbed_bytes_total", &[], begun)
        .await;
    proxy.pull_blob(APP, &other).await;
    let evicted = |it| it == 1.0;
    proxy
        .wait_for_metric("layerhold_evictions_total", &[], evicted)
        .await;
    proxy
        .wait_for_metric("layerhold_scrub_ended_seconds", &[], begun)
        .await;
    let quarantined = proxy.metric("layerhold_quarantined_total", &[]).await;
    assert_eq!(quarantined, 0.0);
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
}
