//! A pull brings exactly what upstream has, once.

use serde_json::json;

use crate::harness::blob::{DOCKER_LIST, DOCKER_MANIFEST, OCI_MANIFEST, descriptor, image};
use crate::harness::proxy::TWO;
use crate::harness::{
    APP, At, Blob, FakeRegistry, Fault, Head, Image, KIB, MIB, Manifest, TestProxy, Whole, any,
    get, head, pair,
};

/// What every answer about content says, whoever asks and however it came.
fn assert_describes(head: &Head, digest: &str, len: usize) {
    let expected = [
        ("docker-content-digest", digest.to_owned()),
        ("etag", format!("\"{digest}\"")),
        ("content-length", len.to_string()),
        ("accept-ranges", "bytes".to_owned()),
        ("docker-distribution-api-version", "registry/2.0".to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(head.header(name), Some(value.as_str()), "{name}: {head:?}");
    }
    for name in ["content-type", "cache-status"] {
        assert!(head.header(name).is_some(), "{name}: {head:?}");
    }
}

#[tokio::test]
async fn a_blob_comes_from_upstream_once_and_from_the_cache_ever_after() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);

    let first = proxy.pull_blob(APP, &blob).await;
    assert_eq!(first.cache_status(), "layerhold; fwd=miss; stored");
    proxy.wait_for_fills("published", 1.0).await;
    let before = upstream.log().len();
    for _ in 0..3 {
        let again = proxy.pull_blob(APP, &blob).await;
        assert_eq!(again.cache_status(), "layerhold; hit");
    }

    assert_eq!(upstream.log().len(), before);
    assert_eq!(upstream.count(&get(blob.digest())), 1);
    assert_eq!(upstream.sent(&any("")), blob.len());
}

#[tokio::test]
async fn an_image_is_pulled_twice_and_the_second_time_moves_no_bytes() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[3 * MIB, MIB, 10 * KIB]);
    upstream.serve_image(APP, "v1", &image);

    for _ in 0..2 {
        let manifest = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(manifest.bytes, image.manifest.bytes());
        for blob in image.blobs() {
            proxy.pull_blob(APP, blob).await;
        }
        proxy
            .wait_for_metric("layerhold_fills", &[], |it| it == 0.0)
            .await;
    }

    assert_eq!(upstream.count(&get("/manifests/")), 1);
    assert_eq!(upstream.count(&get("/blobs/")), 4);
}

#[tokio::test]
async fn every_answer_about_content_says_what_it_is() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[100 * KIB]);
    upstream.serve_image(APP, "v1", &image);
    let layer = &image.layers[0];
    let (digest, len) = (image.manifest.digest(), image.manifest.bytes().len());

    for _ in 0..2 {
        assert_describes(
            &proxy.pull_blob(APP, layer).await,
            layer.digest(),
            layer.len(),
        );
        for reference in ["v1", digest] {
            let manifest = proxy.pull_manifest(APP, reference).await;
            assert_describes(&manifest.head, digest, len);
            assert_eq!(
                manifest.head.header("content-type"),
                Some(image.manifest.media_type())
            );
            let target = format!("/v2/{APP}/manifests/{reference}");
            let head = proxy.head(target).whole().await;
            assert_describes(head.is(200, b""), digest, len);
        }
        proxy.wait_for_hit(APP, layer).await;
        let target = format!("/v2/{APP}/blobs/{}", layer.digest());
        let head = proxy.head(target).whole().await;
        assert_describes(head.is(200, b""), layer.digest(), layer.len());
        assert_eq!(head.head.header("oci-namespace"), None);
    }
}

#[tokio::test]
async fn the_head_is_here_as_soon_as_upstreams_is() {
    let (upstream, proxy) = pair().await;
    for fault in [None, Some(Fault::NoLength)] {
        let blob = Blob::random(MIB);
        upstream.serve_blob(APP, &blob);
        if let Some(fault) = fault {
            upstream.always(get(blob.digest()), fault);
        }
        let gate = upstream.hold(get(blob.digest()), At::Byte(0));
        let answer = proxy.blob(APP, blob.digest()).send().await;
        assert_eq!(upstream.sent(&get(blob.digest())), 0);
        gate.open();
        answer.is(&blob).await;
    }
}

#[tokio::test]
async fn head_never_fills() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());

    let cold = proxy.head(target.clone()).whole().await;
    assert_eq!(cold.is(200, b"").content_length(), Some(blob.len()));
    assert_eq!(upstream.count(&head(blob.digest())), 1);
    assert_eq!(upstream.count(&get("")), 0);
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);

    proxy.wait_for_hit(APP, &blob).await;
    let before = upstream.log().len();
    let warm = proxy.head(target).whole().await;
    assert_eq!(warm.is(200, b"").cache_status(), "layerhold; hit");
    assert_eq!(upstream.log().len(), before);
}

#[tokio::test]
async fn a_cold_head_that_upstream_refuses_is_decided_by_a_get_whose_body_is_dropped() {
    for status in [401, 405] {
        let (upstream, proxy) = pair().await;
        let blob = Blob::random(4 * MIB);
        upstream.serve_blob(APP, &blob);
        upstream.always(head(blob.digest()), Fault::Status(status));
        let target = format!("/v2/{APP}/blobs/{}", blob.digest());

        let answer = proxy.head(target).whole().await;
        assert_eq!(answer.is(200, b"").content_length(), Some(blob.len()));
        let asked = upstream.seen(&get(blob.digest()));
        assert_eq!(asked.len(), 1, "{status}");
        assert_eq!(asked[0].header("range"), Some("bytes=0-0"));
        assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn pitfall_11_a_sha512_blob_is_verified_by_sha512() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(2 * MIB).named_by_sha512();
    let other = Blob::random(2 * MIB).named_by_sha512();
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob(APP, &other);
    upstream.always(get(other.digest()), Fault::Corrupt(MIB));

    proxy.pull_blob(APP, &blob).await;
    proxy.wait_for_hit(APP, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 1);
    let spoiled = proxy.blob(APP, other.digest()).whole().await;
    assert!(spoiled.bytes.len() < other.len());
}

#[tokio::test]
async fn pitfall_04_a_blob_of_unknown_length_is_stored_and_its_copy_has_one() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(3 * MIB + 17);
    upstream.serve_blob(APP, &blob);
    upstream.always(get(blob.digest()), Fault::NoLength);

    let first = proxy.pull_blob(APP, &blob).await;
    assert_eq!(first.header("transfer-encoding"), Some("chunked"));
    proxy.wait_for_fills("published", 1.0).await;
    let again = proxy.pull_blob(APP, &blob).await;
    assert_eq!(again.content_length(), Some(blob.len()));
    assert_eq!(again.cache_status(), "layerhold; hit");
}

#[tokio::test]
async fn empty_blobs_and_blobs_of_one_byte_are_blobs() {
    for is_measured in [true, false] {
        let (upstream, proxy) = pair().await;
        if !is_measured {
            upstream.always(get("/blobs/"), Fault::NoLength);
        }
        for blob in [Blob::of(""), Blob::random(1), Blob::random(2)] {
            upstream.serve_blob(APP, &blob);
            proxy.wait_for_hit(APP, &blob).await;
            assert_eq!(upstream.count(&get(blob.digest())), 1);
        }
    }
}

#[tokio::test]
async fn invariant_14_pitfall_20_manifests_and_indexes_keep_every_byte() {
    let (upstream, proxy) = pair().await;
    let (config, layer) = (Blob::random(100), Blob::random(KIB));
    let oci = Manifest::oci(&config, &[&layer]);
    let docker = Manifest::docker(&config, &[&layer]);
    let index = Manifest::index(&[&oci, &docker]);
    let list = Manifest::list(DOCKER_LIST, &[&docker, &oci]);
    // Of the children only one is there: an index is what its bytes are, whatever became of the rest.
    for (tag, manifest) in [("oci", &oci), ("index", &index), ("list", &list)] {
        upstream.tag(APP, tag, manifest);
        for _ in 0..2 {
            for reference in [tag, manifest.digest()] {
                let pulled = proxy.pull_manifest(APP, reference).await;
                assert_eq!(pulled.bytes, manifest.bytes(), "{tag}");
                assert_eq!(
                    pulled.head.header("content-type"),
                    Some(manifest.media_type())
                );
            }
        }
    }
    let missing = proxy.manifest(APP, docker.digest()).whole().await;
    assert_eq!(missing.head.status, 404);
}

#[tokio::test]
async fn what_the_client_has_already_is_not_sent_again() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let layer = &image.layers[0];
    proxy.wait_for_hit(APP, layer).await;

    let quoted = |digest: &str| format!("\"{digest}\"");
    let tag = quoted(image.manifest.digest());
    for (request, etag) in [
        (proxy.blob(APP, layer.digest()), quoted(layer.digest())),
        (proxy.manifest(APP, "v1"), tag.clone()),
        (proxy.manifest(APP, image.manifest.digest()), tag),
    ] {
        for condition in [
            etag.clone(),
            format!("W/{etag}"),
            format!("\"other\", {etag}"),
            "*".to_owned(),
        ] {
            let request = request.clone().header("If-None-Match", condition.clone());
            let same = request.whole().await;
            let head = same.is(304, b"");
            assert_eq!(head.header("etag"), Some(etag.as_str()), "{condition}");
        }
        let request = request.header("If-None-Match", "\"sha256:other\"");
        assert_eq!(request.whole().await.head.status, 200);
    }
}

#[tokio::test]
async fn pitfall_05_a_content_encoding_that_nobody_asked_for_is_undone() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.always(get(""), Fault::Gzip);

    for _ in 0..2 {
        let manifest = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(manifest.bytes, image.manifest.bytes());
        assert_eq!(manifest.head.header("content-encoding"), None);
        let blob = proxy.pull_blob(APP, &image.layers[0]).await;
        assert_eq!(blob.header("content-encoding"), None);
    }
}

#[tokio::test]
async fn pitfall_06_nothing_is_encoded_for_a_client_that_could_decode() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    let layer = &image.layers[0];

    for _ in 0..2 {
        for request in [proxy.blob(APP, layer.digest()), proxy.manifest(APP, "v1")] {
            let request = request.header("Accept-Encoding", "gzip, zstd");
            let whole = request.whole().await;
            assert_eq!(whole.head.status, 200);
            assert_eq!(whole.head.header("content-encoding"), None);
        }
    }
    for seen in upstream.log() {
        let asked = seen.header("accept-encoding").unwrap_or("identity");
        assert_eq!(asked, "identity", "{seen:?}");
    }
}

async fn refused(proxy: &TestProxy, reference: &str) -> Whole {
    let whole = proxy.manifest(APP, reference).whole().await;
    assert_eq!(whole.head.status, 502, "{reference}: {:?}", whole.head);
    whole
}

#[tokio::test]
async fn pitfall_07_a_digest_header_that_contradicts_the_bytes_is_refused() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.always(get(""), Fault::WrongDigestHeader);

    refused(&proxy, "v1").await;
    refused(&proxy, image.manifest.digest()).await;
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
}

#[tokio::test]
async fn pitfall_07_a_check_that_names_other_bytes_leads_nowhere() {
    let (upstream, proxy) = pair().await;
    upstream.serve_image(APP, "v1", &Image::random(&[MIB]));
    upstream.always(any(""), Fault::WrongDigestHeader);
    let whole = proxy.manifest(APP, "v1").whole().await;
    assert!(matches!(whole.head.status, 404 | 502), "{:?}", whole.head);
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
}

#[tokio::test]
async fn pitfall_07_a_digest_header_of_another_algorithm_is_not_compared() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.always(any(""), Fault::OtherAlgorithmHeader);

    proxy.pull_blob(APP, &image.layers[0]).await;
    let manifest = proxy.pull_manifest(APP, image.manifest.digest()).await;
    assert_eq!(manifest.bytes, image.manifest.bytes());
}

#[tokio::test]
async fn pitfall_07_without_a_digest_header_the_bytes_say_what_they_are() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.always(any(""), Fault::NoDigestHeader);

    for _ in 0..2 {
        let manifest = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(manifest.bytes, image.manifest.bytes());
        proxy.pull_blob(APP, &image.layers[0]).await;
    }
    let target = format!("/v2/{APP}/manifests/v1");
    let head = proxy.head(target).whole().await;
    let digest = head.is(200, b"").header("docker-content-digest");
    assert_eq!(digest, Some(image.manifest.digest()));
}

#[tokio::test]
async fn pitfall_08_a_digest_header_that_is_no_digest_is_refused() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.always(any(""), Fault::BadDigestHeader);

    refused(&proxy, "v1").await;
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
}

#[tokio::test]
async fn pitfall_09_a_manifest_has_the_type_that_upstream_gave_it() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);

    for accept in ["text/html", DOCKER_MANIFEST, "*/*"] {
        for reference in ["v1", image.manifest.digest()] {
            let request = proxy.manifest(APP, reference).header("Accept", accept);
            let whole = request.whole().await;
            let head = whole.is(200, image.manifest.bytes());
            assert_eq!(head.header("content-type"), Some(OCI_MANIFEST), "{accept}");
        }
    }
}

#[tokio::test]
async fn pitfall_09_a_manifest_is_no_blob_and_a_blob_no_manifest() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, "v1").await;
    proxy.wait_for_hit(APP, &image.config).await;

    let manifest = proxy.blob(APP, image.manifest.digest()).whole().await;
    assert_eq!(manifest.code().as_deref(), Some("BLOB_UNKNOWN"));
    let blob = proxy.manifest(APP, image.config.digest()).whole().await;
    assert_eq!(blob.code().as_deref(), Some("MANIFEST_UNKNOWN"));
}

#[tokio::test]
async fn pitfall_09_a_manifest_that_contradicts_its_type_is_refused() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.always(any(""), Fault::Type(DOCKER_MANIFEST));

    refused(&proxy, "v1").await;
    refused(&proxy, image.manifest.digest()).await;
}

#[tokio::test]
async fn pitfall_09_a_manifest_need_not_name_its_type() {
    let (upstream, proxy) = pair().await;
    let config = Blob::random(100);
    let mut json = image(OCI_MANIFEST, &descriptor("application/json", &config), &[]);
    json.as_object_mut().unwrap().remove("mediaType");
    let manifest = Manifest::of(OCI_MANIFEST, &json);
    upstream.tag(APP, "v1", &manifest);

    let pulled = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, manifest.bytes());
    assert_eq!(pulled.head.header("content-type"), Some(OCI_MANIFEST));
}

#[tokio::test]
async fn pitfall_10_a_manifest_beyond_the_limit_is_refused_and_a_blob_has_none() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("limits.manifest_bytes", "64KiB")
        .start()
        .await;
    // More than is on the way between two sockets.
    let padding = "x".repeat(32 * MIB);
    let long = Manifest::of(
        OCI_MANIFEST,
        &json!({ "schemaVersion": 2, "padding": padding }),
    );
    upstream.tag(APP, "long", &long);
    upstream.tag(APP, "endless", &long);
    upstream.always(get("/endless"), Fault::NoLength);
    upstream.always(head("/endless"), Fault::Status(405));

    for tag in ["long", "endless"] {
        let whole = proxy.manifest(APP, tag).whole().await;
        assert!(matches!(whole.head.status, 502 | 503), "{:?}", whole.head);
    }
    upstream.quiet().await;
    assert!(upstream.sent(&get("/manifests/")) < long.bytes().len());
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    proxy.pull_blob(APP, &blob).await;
}

#[tokio::test]
async fn a_manifest_of_schema_1_is_a_clear_error() {
    let (upstream, proxy) = pair().await;
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let manifest = Manifest::of(signed, &json!({ "schemaVersion": 1, "name": APP }));
    upstream.tag(APP, "old", &manifest);

    let whole = refused(&proxy, "old").await;
    assert!(whole.text().contains("errors"), "{}", whole.text());
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
}

#[tokio::test]
async fn the_same_blob_of_two_upstreams_is_stored_once() {
    let (one, two) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&one).and(TWO, &two).start().await;
    let blob = Blob::random(MIB);
    one.serve_blob(APP, &blob);
    two.serve_blob(APP, &blob);

    proxy.wait_for_hit(APP, &blob).await;
    proxy.wait_for_hit(&format!("{TWO}/{APP}"), &blob).await;
    assert_eq!(two.sent(&any("")), 0);
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 1.0);
}
