//! A repository vouches for its content: having the bytes is not a right to them.

use serde_json::json;

use crate::harness::blob::{OCI_INDEX, OCI_MANIFEST, descriptor, image};
use crate::harness::proxy::TWO;
use crate::harness::{
    APP, At, Blob, FakeRegistry, Fault, Image, KIB, MIB, Manifest, TestProxy, any, get, head, pair,
};

const PRIVATE: &str = "secret/app";
const PUBLIC: &str = "attacker/app";

/// A private image that somebody has pulled, all of it in the store.
async fn scene() -> (FakeRegistry, TestProxy, Image) {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        // Each question is asked anew, not answered by the one before.
        .set("freshness.negative_for", "0s")
        .start()
        .await;
    let secret = Image::random(&[MIB]);
    upstream.serve_image(PRIVATE, "v1", &secret);
    proxy.pull_manifest(PRIVATE, "v1").await;
    for blob in secret.blobs() {
        proxy.wait_for_hit(PRIVATE, blob).await;
    }
    (upstream, proxy, secret)
}

/// Publishes `json` in the public repository, pulls it, and then asks there for what it names.
async fn assert_names_grant_nothing(
    upstream: &FakeRegistry,
    proxy: &TestProxy,
    manifest: &Manifest,
    secret: &Image,
) {
    upstream.tag(PUBLIC, "bait", manifest);
    proxy.pull_manifest(PUBLIC, "bait").await;
    proxy.pull_manifest(PUBLIC, manifest.digest()).await;
    let moved = upstream.sent(&any(PUBLIC));
    let stolen = [
        format!("manifests/{}", secret.manifest.digest()),
        format!("blobs/{}", secret.manifest.digest()),
        format!("blobs/{}", secret.config.digest()),
        format!("blobs/{}", secret.layers[0].digest()),
    ];
    for what in stolen {
        let target = format!("/v2/{PUBLIC}/{what}");
        for request in [
            proxy.get(&target),
            proxy.head(&target),
            proxy.get(&target).range("bytes=0-0"),
            proxy.get(&target).header("If-None-Match", "*"),
        ] {
            let whole = request.whole().await;
            assert_eq!(whole.head.status, 404, "{request:?}: {:?}", whole.head);
        }
    }
    let said = upstream.sent(&any(PUBLIC)) - moved;
    assert!(said < KIB * 8, "{said} bytes for nothing");
}

#[tokio::test]
async fn invariant_13_a_subject_is_no_grant() {
    let (upstream, proxy, secret) = scene().await;
    let config = Blob::of("{}");
    let mut json = image(OCI_MANIFEST, &descriptor("application/json", &config), &[]);
    json["subject"] = json!({
        "mediaType": secret.manifest.media_type(),
        "digest": secret.manifest.digest(),
        "size": secret.manifest.bytes().len(),
    });
    let bait = Manifest::of(OCI_MANIFEST, &json);
    assert_names_grant_nothing(&upstream, &proxy, &bait, &secret).await;
}

#[tokio::test]
async fn invariant_13_a_foreign_layer_is_no_grant() {
    let (upstream, proxy, secret) = scene().await;
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let mut layer = descriptor(foreign, &secret.layers[0]);
    layer["urls"] = json!(["http://elsewhere.invalid/layer"]);
    let config = descriptor("application/json", &secret.config);
    let bait = Manifest::of(OCI_MANIFEST, &image(OCI_MANIFEST, &config, &[layer]));
    assert_names_grant_nothing(&upstream, &proxy, &bait, &secret).await;
}

#[tokio::test]
async fn invariant_13_a_layer_and_a_config_are_no_grants() {
    let (upstream, proxy, secret) = scene().await;
    let bait = Manifest::docker(&secret.config, &[&secret.layers[0]]);
    assert_names_grant_nothing(&upstream, &proxy, &bait, &secret).await;
}

#[tokio::test]
async fn invariant_13_an_index_child_is_no_grant() {
    let (upstream, proxy, secret) = scene().await;
    let bait = Manifest::list(OCI_INDEX, &[&secret.manifest]);
    assert_names_grant_nothing(&upstream, &proxy, &bait, &secret).await;
}

#[tokio::test]
async fn invariant_13_another_upstreams_repository_of_the_same_name_is_no_grant() {
    let (one, two) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&one).and(TWO, &two).start().await;
    let secret = Image::random(&[KIB]);
    one.serve_image(APP, "v1", &secret);
    proxy.pull_manifest(APP, "v1").await;
    proxy.wait_for_hit(APP, &secret.config).await;
    two.serve_image(APP, "v1", &Image::random(&[KIB]));

    let there = format!("{TWO}/{APP}");
    for request in [
        proxy.manifest(&there, secret.manifest.digest()),
        proxy.blob(&there, secret.config.digest()),
    ] {
        assert_eq!(request.whole().await.head.status, 404);
    }
}

#[tokio::test]
async fn pitfall_36_a_cross_repository_hit_costs_one_head_once_and_no_bytes() {
    let (upstream, proxy, secret) = scene().await;
    upstream.serve_image(APP, "v1", &secret);
    let layer = &secret.layers[0];
    for _ in 0..3 {
        let hit = proxy.pull_blob(APP, layer).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
    }
    let asked = upstream.seen(&any(APP));
    let methods: Vec<&str> = asked.iter().map(|it| it.method.as_str()).collect();
    assert_eq!(methods, ["HEAD"]);
    assert_eq!(upstream.sent(&any(APP)), 0);
}

#[tokio::test]
async fn a_manifest_of_another_repository_costs_one_head_and_no_bytes() {
    let (upstream, proxy, secret) = scene().await;
    upstream.serve_manifest(APP, &secret.manifest);
    for _ in 0..3 {
        let hit = proxy.pull_manifest(APP, secret.manifest.digest()).await;
        assert_eq!(hit.bytes, secret.manifest.bytes());
    }
    assert_eq!(upstream.count(&any(APP)), 1);
    assert_eq!(upstream.sent(&any(APP)), 0);
}

#[tokio::test]
async fn a_proof_that_is_refused_as_head_is_made_by_a_get_whose_body_is_dropped() {
    for status in [401, 405] {
        let (upstream, proxy) = pair().await;
        let blob = Blob::random(32 * MIB);
        upstream.serve_blob(PRIVATE, &blob);
        proxy.wait_for_hit(PRIVATE, &blob).await;
        upstream.serve_blob(APP, &blob);
        upstream.always(head(APP), Fault::Status(status));
        for _ in 0..2 {
            let hit = proxy.pull_blob(APP, &blob).await;
            assert_eq!(hit.cache_status(), "layerhold; hit", "{status}");
        }
        assert_eq!(upstream.count(&get(APP)), 1, "{status}");
        upstream.quiet().await;
        let sent = upstream.sent(&get(APP));
        assert!(sent < 16 * MIB, "{sent} bytes to prove a point");
    }
}

#[tokio::test]
async fn a_refusal_of_the_proof_is_the_answer() {
    for (status, expected) in [(401, 401), (403, 403), (404, 404)] {
        let (upstream, proxy, secret) = scene().await;
        upstream.serve_image(APP, "v1", &secret);
        upstream.always(any(APP), Fault::Status(status));
        let layer = proxy.blob(APP, secret.layers[0].digest()).whole().await;
        assert_eq!(layer.head.status, expected, "{:?}", layer.head);
    }
}

#[tokio::test]
async fn a_redirect_is_proof_enough_and_is_not_followed() {
    let (upstream, proxy, secret) = scene().await;
    upstream.serve_image(APP, "v1", &secret);
    upstream.always(head(APP), Fault::Redirect);
    let hit = proxy.pull_blob(APP, &secret.layers[0]).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
    assert_eq!(upstream.count(&any("/elsewhere")), 0);
}

#[tokio::test]
async fn without_proof_an_outage_is_an_outage_and_never_a_404() {
    for is_down in [true, false] {
        let (upstream, proxy, secret) = scene().await;
        upstream.serve_image(APP, "v1", &secret);
        if is_down {
            upstream.stop().await;
        } else {
            upstream.always(any(APP), Fault::Status(500));
        }
        for request in [
            proxy.blob(APP, secret.layers[0].digest()),
            proxy.manifest(APP, secret.manifest.digest()),
        ] {
            let whole = request.whole().await;
            assert!(matches!(whole.head.status, 502 | 504), "{:?}", whole.head);
        }
        // Where it was proven, it is served.
        proxy.pull_blob(PRIVATE, &secret.layers[0]).await;
    }
}

#[tokio::test]
async fn a_joiner_from_another_repository_proves_itself_first() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(4 * MIB);
    upstream.serve_blob(PRIVATE, &blob);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(PRIVATE), At::Byte(MIB));
    let fill = proxy.blob(PRIVATE, blob.digest()).send().await;
    gate.reached().await;

    let stranger = proxy.blob(PUBLIC, blob.digest()).whole().await;
    assert_eq!(stranger.head.status, 404);
    let join = proxy.blob(APP, blob.digest()).send().await;
    assert_eq!(join.head.cache_status(), "layerhold; fwd=miss; collapsed");
    assert_eq!(upstream.count(&head(APP)), 1);
    gate.open();
    tokio::join!(fill.is(&blob), join.is(&blob));
    assert_eq!(upstream.count(&get("/blobs/")), 1);
}

#[tokio::test]
async fn invariant_13_a_joiner_who_may_does_not_bring_what_the_first_may_not_have() {
    let (upstream, proxy) = pair().await;
    let secret = Blob::random(MIB);
    upstream.serve_blob(PRIVATE, &secret);
    proxy.wait_for_hit(PRIVATE, &secret).await;
    proxy.purge(secret.digest()).await;
    // Whether the public repository holds it cannot be said: the registry has a bad moment.
    upstream.once(get(PUBLIC), Fault::Status(500));
    let gate = upstream.hold(get(PUBLIC), At::Head);
    let first = proxy.blob(PUBLIC, secret.digest()).dispatch().await;
    gate.reached().await;
    let second = proxy.blob(PRIVATE, secret.digest()).dispatch().await;
    proxy
        .wait_for_metric("layerhold_followers", &[], |it| it >= 2.0)
        .await;
    gate.open();
    let first = first.head("GET").await.whole().await;
    assert_eq!(first.head.status, 502, "{:?}", first.head);
    second.head("GET").await.is(&secret).await;

    let again = proxy.blob(PUBLIC, secret.digest()).whole().await;
    assert_eq!(again.head.status, 404, "{:?}", again.head);
}

#[tokio::test]
async fn grants_survive_a_restart() {
    let (upstream, proxy, secret) = scene().await;
    upstream.serve_image(APP, "v1", &secret);
    let layer = &secret.layers[0];
    proxy.pull_blob(APP, layer).await;
    proxy.pull_manifest(APP, secret.manifest.digest()).await;

    let proxy = proxy.restart().await;
    upstream.stop().await;
    for repository in [PRIVATE, APP] {
        proxy.pull_blob(repository, layer).await;
        proxy
            .pull_manifest(repository, secret.manifest.digest())
            .await;
    }
    let stranger = proxy.blob(PUBLIC, layer.digest()).whole().await;
    assert_eq!(stranger.head.status, 502);
}

#[tokio::test]
async fn a_manifest_needs_a_manifest_grant() {
    let (upstream, proxy, secret) = scene().await;
    // Anyone can push the bytes of a manifest as a blob.
    upstream.serve_blob(PUBLIC, &secret.manifest.as_blob());
    proxy.pull_blob(PUBLIC, &secret.manifest.as_blob()).await;
    let whole = proxy
        .manifest(PUBLIC, secret.manifest.digest())
        .whole()
        .await;
    assert_eq!(whole.head.status, 404);
    assert_eq!(whole.code().as_deref(), Some("MANIFEST_UNKNOWN"));
}

#[tokio::test]
async fn pitfall_36_a_head_of_what_is_cached_elsewhere_says_no_more_than_a_get() {
    let (_upstream, proxy, secret) = scene().await;
    for target in [
        format!("/v2/{PUBLIC}/blobs/{}", secret.layers[0].digest()),
        format!("/v2/{PUBLIC}/manifests/{}", secret.manifest.digest()),
    ] {
        let head = proxy.head(&target).whole().await;
        let get = proxy.get(&target).whole().await;
        assert_eq!((head.head.status, get.head.status), (404, 404));
        for name in ["docker-content-digest", "etag", "cache-status"] {
            assert_eq!(head.head.header(name), get.head.header(name), "{name}");
        }
    }
}

#[tokio::test]
async fn a_grant_by_head_is_enough_to_read() {
    let (upstream, proxy, secret) = scene().await;
    upstream.serve_image(APP, "v1", &secret);
    let layer = &secret.layers[0];
    let target = format!("/v2/{APP}/blobs/{}", layer.digest());
    proxy.head(target).whole().await.is(200, b"");
    upstream.stop().await;
    proxy.pull_blob(APP, layer).await;
    assert_eq!(upstream.count(&any(APP)), 1);
}

#[tokio::test]
async fn a_joiner_does_not_get_somebody_elses_404() {
    for (repository, endpoint) in [(PUBLIC, "blobs"), (APP, "manifests")] {
        let (upstream, proxy) = pair().await;
        let blob = Blob::random(MIB);
        upstream.serve_blob(APP, &blob);
        let target = format!("/v2/{repository}/{endpoint}/{}", blob.digest());
        let gate = upstream.hold(get(&target), At::Head);
        let first = proxy.get(&target).dispatch().await;
        gate.reached().await;
        let second = proxy.blob(APP, blob.digest()).dispatch().await;
        proxy
            .wait_for_metric("layerhold_followers", &[], |it| it >= 2.0)
            .await;
        gate.open();
        let missing = first.head("GET").await.whole().await;
        assert_eq!(missing.head.status, 404, "{target}");
        second.head("GET").await.is(&blob).await;
    }
}

#[tokio::test]
async fn a_proof_that_contradicts_grants_nothing() {
    for fault in [Fault::WrongDigestHeader, Fault::ShortLength, Fault::Html200] {
        let (upstream, proxy, secret) = scene().await;
        upstream.serve_image(APP, "v1", &secret);
        upstream.always(head(APP), fault);
        let layer = proxy.blob(APP, secret.layers[0].digest());
        for _ in 0..2 {
            let whole = layer.whole().await;
            assert_eq!(whole.head.status, 502, "{fault:?}: {:?}", whole.head);
        }
    }
}

#[tokio::test]
async fn a_proof_of_a_manifest_that_contradicts_grants_nothing() {
    for fault in [Fault::WrongDigestHeader, Fault::ShortLength, Fault::Html200] {
        let (upstream, proxy, secret) = scene().await;
        upstream.serve_image(APP, "v1", &secret);
        upstream.always(head(APP), fault);
        let manifest = proxy.manifest(APP, secret.manifest.digest());
        for _ in 0..2 {
            let whole = manifest.whole().await;
            assert_eq!(whole.head.status, 502, "{fault:?}: {:?}", whole.head);
        }
    }
}

#[tokio::test]
async fn a_manifest_whose_head_is_refused_is_described_and_proven_by_a_get() {
    let (upstream, proxy, secret) = scene().await;
    upstream.serve_image(APP, "v1", &secret);
    upstream.always(head(APP), Fault::Status(405));
    let cold = Image::random(&[KIB]);
    upstream.serve_image(APP, "v2", &cold);
    for manifest in [&secret.manifest, &cold.manifest] {
        let target = format!("/v2/{APP}/manifests/{}", manifest.digest());
        let head = proxy.head(target).whole().await;
        let digest = head.is(200, b"").header("docker-content-digest");
        assert_eq!(digest, Some(manifest.digest()));
        let pulled = proxy.pull_manifest(APP, manifest.digest()).await;
        assert_eq!(pulled.bytes, manifest.bytes());
    }
}

#[tokio::test]
async fn a_layer_asked_for_as_a_manifest_is_refused_by_memory_for_a_while() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("limits.manifest_bytes", "64KiB")
        .set("freshness.negative_for", "1m")
        .start()
        .await;
    let blob = Blob::random(100 * KIB);
    upstream.serve_blob(APP, &blob);
    proxy.pull_blob(APP, &blob).await;
    proxy.wait_for_hit(APP, &blob).await;
    for _ in 0..3 {
        let answer = proxy.manifest(APP, blob.digest()).whole().await;
        assert_eq!(answer.head.status, 404);
    }
    assert_eq!(upstream.count(&get("/manifests/")), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_manifest_of_many_repositories_is_served_while_it_is_being_published() {
    let (upstream, proxy) = pair().await;
    for _ in 0..20 {
        let image = Image::random(&[KIB]);
        let names: Vec<_> = (0..8).map(|n| format!("app/{n}")).collect();
        for name in &names {
            upstream.serve_image(name, "v1", &image);
        }
        // Each of them asks while what the first has brought is on its way to the disk.
        for name in &names {
            let pulled = proxy.pull_manifest(name, "v1").await;
            assert_eq!(pulled.bytes, image.manifest.bytes());
        }
    }
}

#[tokio::test]
async fn pitfall_05_a_proof_with_the_length_of_something_encoded_is_a_proof() {
    let (upstream, proxy, secret) = scene().await;
    let layer = &secret.layers[0];
    upstream.serve_blob(APP, layer);
    upstream.always(head("/blobs/"), Fault::Gzip);
    proxy.pull_blob(APP, layer).await;

    let cold = Blob::random(KIB);
    upstream.serve_blob(APP, &cold);
    let target = format!("/v2/{APP}/blobs/{}", cold.digest());
    let head = proxy.head(target).whole().await.head;
    assert_eq!((head.status, head.content_length()), (200, None));
}
