//! Other places of the same registry, asked first; and a registry that nobody asks.

use crate::harness::proxy::TWO;
use crate::harness::{
    APP, At, Blob, End, FakeRegistry, Fault, Image, KIB, MIB, TestProxy, any, get, head,
};

const STALE: &str = "layerhold; fwd=stale; detail=upstream-unavailable";

/// A registry and a mirror of it that both have one image, and a proxy that loses patience quickly.
struct Scene {
    registry: FakeRegistry,
    mirror: FakeRegistry,
    proxy: TestProxy,
    image: Image,
}

impl Scene {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With these keys of the mirror.
    async fn with(keys: &[(&str, toml::Value)]) -> Self {
        let (registry, mirror) = (FakeRegistry::start().await, FakeRegistry::start().await);
        let proxy = TestProxy::in_front_of(&registry)
            .mirror_with(&mirror, "", keys)
            .set("timeouts.answer", "5s")
            .set("timeouts.first_byte", "300ms")
            .set("timeouts.idle", "300ms")
            .start()
            .await;
        let image = Image::random(&[KIB, 3 * KIB]);
        registry.serve_image(APP, "v1", &image);
        mirror.serve_image(APP, "v1", &image);
        Self {
            registry,
            mirror,
            proxy,
            image,
        }
    }

    /// Pulls the image as clients do, and everything must be right.
    async fn pull(&self) {
        let manifest = self.proxy.pull_manifest(APP, "v1").await;
        assert_eq!(manifest.bytes, self.image.manifest.bytes());
        for blob in self.image.blobs() {
            self.proxy.pull_blob(APP, blob).await;
        }
    }
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_is_not_asked() {
    let scene = Scene::start().await;
    scene.pull().await;
    assert_eq!(scene.registry.connections(), 0);
    assert_eq!(scene.mirror.count(&get("")), 4);
    // Each place is counted by its own name.
    let label = format!("one.example@{}", scene.mirror.address());
    let labels = [("upstream", label.as_str()), ("status", "200")];
    let counted = scene
        .proxy
        .metric("layerhold_upstream_requests_total", &labels)
        .await;
    assert_eq!(counted, scene.mirror.count(&any("")) as f64);
}

#[tokio::test]
async fn a_mirror_that_does_not_resolve_gives_digests_and_the_registry_says_what_tags_mean() {
    let scene = Scene::with(&[("resolve", false.into())]).await;
    let moved = Image::random(&[KIB]);
    scene.registry.serve_image(APP, "v1", &moved);
    scene.mirror.serve_manifest(APP, &moved.manifest);

    let manifest = scene.proxy.pull_manifest(APP, "v1").await;
    assert_eq!(manifest.bytes, moved.manifest.bytes());
    assert_eq!(scene.registry.count(&any("manifests/v1")), 1);
    assert_eq!(scene.registry.count(&get("")), 0);
    assert_eq!(scene.mirror.count(&any("manifests/v1")), 0);
    assert_eq!(scene.mirror.count(&get(moved.manifest.digest())), 1);

    let tags = scene
        .proxy
        .get(format!("/v2/{APP}/tags/list"))
        .whole()
        .await;
    assert_eq!(tags.head.status, 200);
    assert_eq!(scene.mirror.count(&any("tags/list")), 0);
}

#[tokio::test]
async fn whatever_a_mirror_answers_that_is_no_valid_success_the_registry_is_asked() {
    for fault in [
        Fault::Status(400),
        Fault::Status(401),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(410),
        Fault::Status(416),
        Fault::Status(500),
        Fault::Status(503),
        Fault::RateLimit(60),
        Fault::Refuse,
        Fault::Silence,
        Fault::Html200,
        Fault::Redirect,
        Fault::BadDigestHeader,
        Fault::WrongDigestHeader,
    ] {
        let scene = Scene::start().await;
        // What a HEAD of a tag names is a valid answer, whatever it is.
        let target = if fault == Fault::WrongDigestHeader {
            get("")
        } else {
            any("")
        };
        scene.mirror.always(target, fault);
        scene.pull().await;
        assert!(scene.registry.count(&get("")) > 0, "{fault:?}");
        assert!(scene.mirror.connections() > 0, "{fault:?}");
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_what_its_digest_says_is_had_from_the_registry() {
    let scene = Scene::with(&[("resolve", false.into())]).await;
    let digest = scene.image.manifest.digest();
    scene.mirror.always(get(digest), Fault::Corrupt(3));
    let manifest = scene.proxy.pull_manifest(APP, digest).await;
    assert_eq!(manifest.bytes, scene.image.manifest.bytes());
    assert_eq!(scene.registry.count(&get(digest)), 1);
}

#[tokio::test]
async fn pitfall_28_a_cut_is_mended_however_many_mirrors_do_not_answer() {
    let registry = FakeRegistry::start().await;
    let mut proxy = TestProxy::in_front_of(&registry);
    let mut mirrors = Vec::new();
    for _ in 0..7 {
        let mirror = FakeRegistry::start().await;
        mirror.always(any(""), Fault::Status(500));
        proxy = proxy.mirror(&mirror, "");
        mirrors.push(mirror);
    }
    let proxy = proxy.start().await;
    let blob = Blob::random(3 * MIB);
    registry.serve_blob(APP, &blob);
    registry.once(get(blob.digest()), Fault::CutAfter(MIB));
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(registry.sent(&get(blob.digest())), blob.len());
}

#[tokio::test]
async fn pitfall_42_a_mirrors_404_while_the_registry_is_away_is_no_404() {
    let scene = Scene::start().await;
    scene.mirror.always(any(""), Fault::Status(404));
    scene.registry.always(any(""), Fault::Status(503));
    let digest = scene.image.layers[0].digest();
    let blob = scene.proxy.blob(APP, digest).whole().await;
    assert_eq!(blob.head.status, 503);
    let tag = scene.proxy.manifest(APP, "v1").whole().await;
    assert_eq!(tag.head.status, 503);
    // And what the registry itself does not have is not there.
    scene.registry.heal();
    scene
        .registry
        .always(any("manifests/v2"), Fault::Status(404));
    let tag = scene.proxy.manifest(APP, "v2").whole().await;
    assert_eq!(tag.head.status, 404);
}

#[tokio::test]
async fn with_all_places_away_the_tag_is_served_stale() {
    let scene = Scene::start().await;
    scene.pull().await;
    scene.mirror.always(any(""), Fault::Status(404));
    scene.registry.stop().await;
    let manifest = scene.proxy.pull_manifest(APP, "v1").await;
    assert_eq!(manifest.head.cache_status(), STALE);
}

#[tokio::test]
async fn a_blob_that_a_mirror_cuts_off_goes_on_from_the_registry() {
    let scene = Scene::start().await;
    let blob = Blob::random(3 * MIB);
    scene.mirror.serve_blob(APP, &blob);
    scene.registry.serve_blob(APP, &blob);
    scene
        .mirror
        .always(get(blob.digest()), Fault::CutAfter(MIB));

    scene.proxy.pull_blob(APP, &blob).await;
    assert_eq!(scene.mirror.count(&get(blob.digest())), 1);
    let rest = scene.registry.seen(&get(blob.digest()));
    assert_eq!(
        rest[0].header("range"),
        Some(format!("bytes={MIB}-").as_str())
    );
    assert_eq!((rest.len(), rest[0].sent), (1, 2 * MIB));
    // A validator is good where it was given.
    assert_eq!(rest[0].header("if-range"), None);
}

#[tokio::test]
async fn pitfall_01_a_mirror_that_sends_wrong_bytes_is_found_out_and_left_alone() {
    let scene = Scene::start().await;
    let (first, second) = (Blob::random(MIB), Blob::random(MIB));
    for blob in [&first, &second] {
        scene.mirror.serve_blob(APP, blob);
        scene.registry.serve_blob(APP, blob);
    }
    scene.mirror.always(get(""), Fault::Corrupt(KIB));

    let whole = scene.proxy.blob(APP, first.digest()).whole().await;
    assert_ne!(whole.end, End::Complete);
    scene.proxy.wait_for_fills("mismatch", 1.0).await;
    // Whoever asks again has it from the registry at once.
    scene.proxy.pull_blob(APP, &first).await;
    scene.proxy.pull_blob(APP, &second).await;
    assert_eq!(scene.mirror.count(&get("")), 1);
}

#[tokio::test]
async fn a_mirror_that_announces_another_size_costs_one_pull_and_is_left_alone() {
    for fault in [Fault::LongLength, Fault::ShortLength] {
        let scene = Scene::start().await;
        let blob = Blob::random(MIB);
        scene.mirror.serve_blob(APP, &blob);
        scene.registry.serve_blob(APP, &blob);
        scene.mirror.always(get(blob.digest()), fault);
        let first = scene.proxy.blob(APP, blob.digest()).whole().await;
        assert_ne!(first.end, End::Complete, "{fault:?}");
        scene
            .proxy
            .wait_for_metric("layerhold_fills", &[], |it| it == 0.0)
            .await;
        scene.proxy.pull_blob(APP, &blob).await;
        assert_eq!(scene.mirror.count(&get(blob.digest())), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_mirror_whose_blob_is_empty_costs_one_pull_and_is_left_alone() {
    let scene = Scene::start().await;
    let blob = Blob::random(KIB);
    scene.registry.serve_blob(APP, &blob);
    scene
        .mirror
        .serve_spoiled(APP, blob.digest(), &Blob::of(""));
    let first = scene.proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(first.head.status, 502);
    scene.proxy.wait_for_fills("mismatch", 1.0).await;
    scene.proxy.pull_blob(APP, &blob).await;
}

#[tokio::test]
async fn a_liar_is_not_forgiven_for_an_answer_that_was_under_way() {
    let scene = Scene::start().await;
    let [lie, late, next] = [(); 3].map(|()| Blob::random(MIB));
    for blob in [&lie, &late, &next] {
        scene.registry.serve_blob(APP, blob);
        scene.mirror.serve_blob(APP, blob);
    }
    scene.mirror.always(get(lie.digest()), Fault::Corrupt(KIB));
    let gate = scene.mirror.hold(get(late.digest()), At::Head);
    let request = scene.proxy.blob(APP, late.digest());
    let (answer, ()) = tokio::join!(request.send(), async {
        gate.reached().await;
        let whole = scene.proxy.blob(APP, lie.digest()).whole().await;
        assert_ne!(whole.end, End::Complete);
        scene.proxy.wait_for_fills_at_least("mismatch", 1.0).await;
        gate.open();
    });
    answer.is(&late).await;
    scene.proxy.pull_blob(APP, &next).await;
    assert_eq!(scene.mirror.count(&get(next.digest())), 0);
}

#[tokio::test]
async fn a_mirror_that_we_ask_for_much_at_once_is_not_put_to_rest() {
    let (registry, mirror) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&registry)
        .mirror(&mirror, "")
        .set("timeouts.connect", "200ms")
        .set("timeouts.first_byte", "300ms")
        .set("limits.requests_per_upstream", 4)
        .start()
        .await;
    let blobs: Vec<_> = (0..4).map(|_| Blob::random(3 * MIB)).collect();
    for blob in &blobs {
        registry.serve_blob(APP, blob);
        mirror.serve_blob(APP, blob);
    }
    let image = Image::random(&[KIB]);
    mirror.serve_image(APP, "v1", &image);
    let gate = mirror.hold(get("/blobs/"), At::Byte(MIB));
    let mut held = Vec::new();
    for blob in &blobs[..3] {
        held.push(proxy.blob(APP, blob.digest()).send().await);
    }
    gate.reached_by(3).await;
    // All places for blobs are in use there: the registry serves this one, and the mirror is as well as before.
    proxy.pull_blob(APP, &blobs[3]).await;
    proxy.pull_manifest(APP, "v1").await;
    assert_eq!(registry.count(&any("manifests")), 0);
    gate.open();
    for (answer, blob) in held.into_iter().zip(&blobs) {
        answer.is(blob).await;
    }
}

#[tokio::test]
async fn a_mirror_that_failed_is_not_asked_at_each_pull() {
    let scene = Scene::start().await;
    scene.mirror.always(any(""), Fault::Silence);
    scene.pull().await;
    assert_eq!(scene.mirror.count(&any("")), 1);
}

#[tokio::test]
async fn a_mirror_that_has_not_everything_is_asked_for_the_rest() {
    let scene = Scene::start().await;
    let [first, second] = &scene.image.layers[..] else {
        panic!("not two");
    };
    scene.mirror.always(get(first.digest()), Fault::Status(404));
    scene.proxy.pull_blob(APP, first).await;
    scene.proxy.pull_blob(APP, second).await;
    assert_eq!(scene.registry.count(&get(first.digest())), 1);
    assert_eq!(scene.registry.count(&get(second.digest())), 0);
}

#[tokio::test]
async fn a_mirrors_path_stands_before_the_names_there() {
    let (registry, mirror) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&registry)
        .mirror(&mirror, "/hub/proxy")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    mirror.serve_image(&format!("hub/proxy/{APP}"), "v1", &image);
    let manifest = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(manifest.bytes, image.manifest.bytes());
    proxy.pull_blob(APP, &image.layers[0]).await;
    assert_eq!(registry.connections(), 0);

    // A name that is too long with it is the registry's own matter.
    let long = vec!["abcdefgh"; 28].join("/");
    registry.serve_image(&long, "v1", &image);
    proxy.pull_manifest(&long, "v1").await;
}

#[tokio::test]
async fn mirrors_are_asked_in_their_order() {
    let registry = FakeRegistry::start().await;
    let (first, second) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&registry)
        .mirror(&first, "")
        .mirror(&second, "")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    for place in [&registry, &first, &second] {
        place.serve_image(APP, "v1", &image);
    }
    first.always(any(""), Fault::Status(404));
    let gate = second.hold(get(image.manifest.digest()), At::Head);
    let request = proxy.manifest(APP, image.manifest.digest());
    let pulled = tokio::join!(request.whole(), async {
        gate.reached().await;
        assert_eq!(first.count(&any("")), 1);
        gate.open();
    });
    assert_eq!(pulled.0.bytes, image.manifest.bytes());
    assert_eq!(registry.connections(), 0);
}

#[tokio::test]
async fn a_mirrors_word_is_a_proof_and_its_silence_is_none() {
    let scene = Scene::start().await;
    let blob = Blob::random(KIB);
    scene.mirror.serve_blob("other/app", &blob);
    scene.proxy.pull_blob("other/app", &blob).await;
    let refused = scene.proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(refused.head.status, 404);
    scene.mirror.serve_blob("third/app", &blob);
    scene.proxy.pull_blob("third/app", &blob).await;
    assert_eq!(scene.registry.count(&head("third/app")), 0);
    assert_eq!(scene.mirror.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn an_offline_upstream_is_never_dialled_and_serves_what_is_here() {
    let registry = FakeRegistry::start().await;
    let mirror = FakeRegistry::start().await;
    let image = Image::random(&[KIB]);
    registry.serve_image(APP, "v1", &image);
    let proxy = TestProxy::in_front_of(&registry).start().await;
    proxy.pull_manifest(APP, "v1").await;
    proxy.pull_blob(APP, &image.layers[0]).await;
    proxy.wait_for_fills("published", 2.0).await;
    proxy.shut_down();
    let builder = proxy.stopped().await;
    let proxy = builder
        .set("freshness.usable_for", "0s")
        .upstream("offline", true)
        .mirror(&mirror, "")
        .start()
        .await;
    let before = registry.connections();

    let manifest = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(manifest.head.cache_status(), "layerhold; hit");
    proxy.pull_blob(APP, &image.layers[0]).await;
    for target in [
        format!("/v2/{APP}/blobs/{}", image.config.digest()),
        format!("/v2/{APP}/manifests/v2"),
        format!("/v2/{APP}/tags/list"),
        // Here, and never proven to be in this repository: nobody can say.
        format!("/v2/other/app/blobs/{}", image.layers[0].digest()),
    ] {
        let answer = proxy.get(&target).whole().await;
        assert_eq!(answer.head.status, 502, "{target}");
        let answer = proxy.head(&target).whole().await;
        assert!(matches!(answer.head.status, 405 | 502), "{target}");
    }
    assert_eq!(registry.connections(), before);
    assert_eq!(mirror.connections(), 0);
}

#[tokio::test]
async fn a_mirrors_wrong_head_of_what_is_here_is_no_word_on_it() {
    let scene = Scene::start().await;
    let blob = Blob::random(MIB);
    let manifest = &scene.image.manifest;
    for repository in ["other/app", APP] {
        scene.registry.serve_blob(repository, &blob);
        scene.registry.serve_manifest(repository, manifest);
    }
    scene.mirror.always(any("other/app"), Fault::Status(404));
    scene.proxy.pull_blob("other/app", &blob).await;
    scene
        .proxy
        .pull_manifest("other/app", manifest.digest())
        .await;
    scene.proxy.wait_for_fills("published", 2.0).await;
    scene
        .mirror
        .serve_spoiled(APP, blob.digest(), &Blob::of("x"));
    scene
        .mirror
        .always(any(manifest.digest()), Fault::ShortLength);

    let pulled = scene.proxy.pull_manifest(APP, manifest.digest()).await;
    assert_eq!(pulled.head.cache_status(), "layerhold; hit");
    scene.proxy.pull_blob(APP, &blob).await;
    assert_eq!(scene.registry.count(&get(APP)), 0);
    assert_eq!(scene.registry.count(&head(APP)), 2);
}

#[tokio::test]
async fn a_mirrors_tag_that_names_nothing_is_asked_of_the_registry() {
    let scene = Scene::start().await;
    let new = Image::random(&[KIB]);
    scene.registry.serve_image(APP, "v1", &new);
    scene
        .registry
        .always(any(scene.image.manifest.digest()), Fault::Status(404));
    scene
        .mirror
        .always(get(scene.image.manifest.digest()), Fault::Status(404));
    let pulled = scene.proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, new.manifest.bytes());
}

#[tokio::test]
async fn a_mirror_that_lies_around_the_cache_is_not_the_registry() {
    let (registry, mirror) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&registry)
        .mirror(&mirror, "")
        .set("cache.size", "8MiB")
        .start()
        .await;
    let blob = Blob::random(12 * MIB);
    registry.serve_blob(APP, &blob);
    mirror.serve_blob(APP, &blob);
    mirror.always(get(blob.digest()), Fault::Corrupt(KIB));
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_ne!(whole.end, End::Complete);
    registry.allow_concurrent_transfers();
    let head = proxy.pull_blob(APP, &blob).await;
    assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
}

#[tokio::test]
async fn whoever_joins_from_another_registry_brings_a_source_to_go_on_from() {
    let (one, two) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&one)
        .and(TWO, &two)
        .set("timeouts.first_byte", "300ms")
        .set("timeouts.idle", "300ms")
        .start()
        .await;
    let blob = Blob::random(3 * MIB);
    one.serve_blob(APP, &blob);
    two.serve_blob(APP, &blob);
    let gate = one.hold(get(blob.digest()), At::Byte(MIB));
    let mut first = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    let mut second = proxy
        .blob(&format!("{TWO}/{APP}"), blob.digest())
        .send()
        .await;
    let status = second.head.cache_status().to_owned();
    first.read(KIB).await;
    second.read(KIB).await;

    one.stop().await;
    gate.open();
    first.continues(&blob, KIB).await;
    second.continues(&blob, KIB).await;
    assert_eq!(status, "layerhold; fwd=miss; collapsed");
    let rest = two.seen(&get(blob.digest()));
    let range = format!("bytes={MIB}-");
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].header("range"), Some(range.as_str()));
}

#[tokio::test]
async fn a_list_is_served_unasked_as_long_as_a_tag() {
    let registry = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&registry)
        .set("freshness.fresh_for", "1h")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    registry.serve_image(APP, "v1", &image);
    let list = || async { proxy.get(format!("/v2/{APP}/tags/list")).whole().await };
    let first = list().await;
    assert_eq!(first.head.cache_status(), "layerhold; fwd=miss");
    let second = list().await;
    assert_eq!(second.head.cache_status(), "layerhold; hit");
    assert_eq!(second.bytes, first.bytes);
    assert_eq!(registry.count(&any("tags/list")), 1);
}
