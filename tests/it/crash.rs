//! The real binary, killed at any moment and started again.

use std::fs;
use std::path::Path;

use futures_util::future::join_all;

use crate::harness::blob::sha256;
use crate::harness::proxy::{published, staging};
use crate::harness::{
    APP, At, Binary, Blob, End, FakeRegistry, Image, KIB, MIB, TestProxy, get, poll,
};

/// Every published file is what its name says.
fn assert_published_is_right(dir: &Path) {
    for shard in fs::read_dir(dir.join("blobs/sha256")).into_iter().flatten() {
        for file in fs::read_dir(shard.unwrap().path()).unwrap() {
            let file = file.unwrap();
            let digest = sha256(&fs::read(file.path()).unwrap());
            let name = format!("sha256:{}", file.file_name().to_str().unwrap());
            assert_eq!(digest, name);
        }
    }
}

#[tokio::test]
async fn invariant_02_pitfall_02_a_kill_in_the_middle_of_fills_leaves_nothing_short() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    let blobs: Vec<Blob> = (1..=4).map(|n| Blob::random(n * MIB)).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    let binary = Binary::start(&builder).await;
    let gates: Vec<_> = (0..blobs.len())
        .map(|n| {
            // The last one is held one byte before its end.
            let at = [0, MIB, 2 * MIB, blobs[n].len() - 1][n];
            upstream.hold(get(blobs[n].digest()), At::Byte(at))
        })
        .collect();
    let request = |blob: &Blob| binary.blob(APP, blob.digest());
    let answers = join_all(
        blobs
            .iter()
            .map(|blob| async move { request(blob).send().await }),
    )
    .await;
    for gate in &gates {
        gate.reached().await;
    }
    binary.kill().await;
    for (answer, blob) in answers.into_iter().zip(&blobs) {
        let whole = answer.whole().await;
        assert_ne!(whole.end, End::Complete);
        assert!(whole.bytes.len() < blob.len());
    }
    assert_published_is_right(&builder.dir());
    drop(gates);
    upstream.quiet().await;

    let binary = Binary::start(&builder).await;
    for blob in &blobs {
        binary.pull_blob(APP, blob).await;
    }
    binary.wait_for_fills("published", 4.0).await;
    for blob in &blobs {
        let hit = binary.pull_blob(APP, blob).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
        assert!(published(&builder.dir(), blob.digest()).exists());
    }
    assert_published_is_right(&builder.dir());
    assert!(staging(&builder.dir()).is_empty());
}

#[tokio::test]
async fn a_kill_right_after_an_image_was_pulled_loses_at_most_a_little_work() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    let image = Image::random(&[2 * MIB, 300 * KIB, 1]);
    upstream.serve_image(APP, "v1", &image);
    let binary = Binary::start(&builder).await;
    binary.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        binary.wait_for_hit(APP, blob).await;
    }
    binary.kill().await;
    assert_published_is_right(&builder.dir());

    upstream.stop().await;
    let binary = Binary::start(&builder).await;
    let stale = binary.pull_manifest(APP, "v1").await;
    assert_eq!(stale.bytes, image.manifest.bytes());
    for blob in image.blobs() {
        binary.pull_blob(APP, blob).await;
    }
}

#[tokio::test]
async fn kills_at_random_moments_never_leave_anything_wrong() {
    let upstream = FakeRegistry::start().await;
    upstream.allow_concurrent_transfers();
    let builder = TestProxy::in_front_of(&upstream).set("cache.size", "20MiB");
    let blobs: Vec<Blob> = (0..30).map(|n| Blob::random(n * 100 * KIB + 1)).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    for round in 0..4 {
        let binary = Binary::start(&builder).await;
        let done = upstream.log().len() + 3 + round * 4;
        let requests: Vec<_> = blobs
            .iter()
            .map(|it| binary.blob(APP, it.digest()))
            .collect();
        let pulls: Vec<_> = requests
            .into_iter()
            .map(|request| tokio::spawn(async move { request.dispatch().await }))
            .collect();
        upstream.wait_for(&get(""), done).await;
        binary.kill().await;
        for pull in pulls {
            // Whoever could not connect any more, or was cut off, is not what this is about.
            let _ = pull.await;
        }
        assert_published_is_right(&builder.dir());
    }
    let binary = Binary::start(&builder).await;
    for blob in &blobs {
        binary.pull_blob(APP, blob).await;
    }
    let limit = 20.0 * 1024.0 * 1024.0;
    let used = binary
        .metric("layerhold_cache_bytes", &[("state", "used")])
        .await;
    assert!(used <= limit, "{used}");
}

#[tokio::test]
async fn invariant_09_pitfall_43_a_disk_that_breaks_in_the_middle_costs_no_client_its_pull() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    let binary = Binary::start_with_file_limit(&builder, 2048).await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    // Held in the middle, so that what comes after the failure comes while clients read.
    upstream.allow_concurrent_transfers();
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));
    let request = binary.blob(APP, blob.digest());
    let answers = join_all((0..3).map(|_| request.send())).await;
    gate.reached().await;
    gate.open();
    join_all(answers.into_iter().map(|answer| answer.is(&blob))).await;

    let failed = |it| it >= 1.0;
    binary
        .wait_for_metric("layerhold_disk_errors_total", &[], failed)
        .await;
    assert_eq!(binary.admin("/readyz").await.head.status, 200);
    assert!(!published(&builder.dir(), blob.digest()).exists());
    poll("an empty staging directory", async || {
        staging(&builder.dir()).is_empty().then_some(())
    })
    .await;
    // What fits is kept as ever.
    let small = Blob::random(KIB);
    upstream.serve_blob(APP, &small);
    binary.wait_for_hit(APP, &small).await;
}
