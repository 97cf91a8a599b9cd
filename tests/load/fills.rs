//! Much that comes in at once.

use futures_util::future::join_all;

use crate::harness::proxy::staging;
use crate::harness::{APP, At, Binary, Blob, FakeRegistry, Image, KIB, MIB, TestProxy, get};
use crate::process::{Usage, eventually, is_as_before, turn};

#[tokio::test]
async fn pitfall_49_as_many_fills_as_are_allowed_cost_what_is_documented() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set(
        "limits.requests_per_upstream",
        i64::try_from(2 * FILLS).unwrap(),
    );
    let binary = Binary::start(&builder).await;
    let warm = Blob::random(MIB);
    upstream.serve_blob(APP, &warm);
    binary.wait_for_hit(APP, &warm).await;
    let before = Usage::of(&binary);

    let blobs: Vec<Blob> = (0..FILLS).map(|_| Blob::random(12 * MIB)).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    // All of them are in the middle at once.
    let gate = upstream.hold(get("/blobs/"), At::Byte(8 * MIB));
    let requests = blobs.iter().map(|it| binary.blob(APP, it.digest()));
    let requests: Vec<_> = requests.collect();
    let pulls = (0..FILLS * FOLLOWERS).map(async |n| {
        let answer = requests[n % FILLS].send().await;
        answer.is(&blobs[n % FILLS]).await;
    });
    let meanwhile = async {
        gate.reached_by(FILLS).await;
        eventually("all to follow", async || {
            let fills = binary.metric("layerhold_fills", &[]).await;
            let followers = binary.metric("layerhold_followers", &[]).await;
            let is_all = fills == FILLS as f64 && followers >= (FILLS * FOLLOWERS) as f64;
            is_all.then_some(()).ok_or(format!("{fills} {followers}"))
        })
        .await;
        let usage = Usage::of(&binary);
        let of_fill = 5 * MIB + FOLLOWERS * 256 * KIB;
        let descriptors = 2.0 + FOLLOWERS as f64;
        usage.costs(
            before,
            ("fills with 4 followers each", FILLS),
            of_fill,
            descriptors,
        );
        binary.pull_blob(APP, &warm).await;
        let image = Image::random(&[KIB]);
        upstream.serve_image(APP, "v1", &image);
        binary.pull_manifest(APP, "v1").await;
        gate.open();
    };
    tokio::join!(join_all(pulls), meanwhile);
    for blob in &blobs {
        assert_eq!(upstream.count(&get(blob.digest())), 1);
    }
    is_as_before(&binary, before).await;
    assert!(staging(&builder.dir()).is_empty());
}

const FILLS: usize = 64;
const FOLLOWERS: usize = 4;
