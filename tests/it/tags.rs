//! Tags are hearsay: how long they are believed, and what is served when nobody can be asked.

use futures_util::future::join_all;

use crate::harness::blob::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::harness::proxy::TWO;
use crate::harness::{
    APP, At, FakeRegistry, Fault, Image, KIB, TestProxy, any, get, head, lose, pair, poll,
};

const REVALIDATED: &str = "layerhold; hit; detail=revalidated";
const STALE: &str = "layerhold; fwd=stale; detail=upstream-unavailable";

/// An upstream with one image under `v1`, and a proxy that has pulled it.
async fn pulled(fresh_for: &str) -> (FakeRegistry, TestProxy, Image) {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.fresh_for", fresh_for)
        .set("freshness.retry_after", "1m")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let first = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(first.bytes, image.manifest.bytes());
    assert_eq!(first.head.cache_status(), "layerhold; fwd=miss; stored");
    (upstream, proxy, image)
}

#[tokio::test]
async fn invariant_08_pitfall_12_push_then_pull_has_the_new_tag_at_once() {
    let (upstream, proxy, _) = pulled("0s").await;
    for _ in 0..5 {
        let image = Image::random(&[KIB]);
        upstream.serve_image(APP, "v1", &image);
        let pulled = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(pulled.bytes, image.manifest.bytes());
        let target = format!("/v2/{APP}/manifests/v1");
        let head = proxy.head(target).whole().await;
        let digest = head.is(200, b"").header("docker-content-digest");
        assert_eq!(digest, Some(image.manifest.digest()));
    }
}

#[tokio::test]
async fn a_tag_that_did_not_move_costs_one_head_and_no_get() {
    let (upstream, proxy, image) = pulled("0s").await;
    let gets = upstream.count(&get(""));
    let heads = upstream.count(&head(""));

    let again = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(again.bytes, image.manifest.bytes());
    assert_eq!(again.head.cache_status(), REVALIDATED);
    assert_eq!(upstream.count(&get("")), gets);
    assert_eq!(upstream.count(&head("")), heads + 1);
}

#[tokio::test]
async fn invariant_08_pitfall_13_a_digest_is_never_asked_about_again() {
    let (upstream, proxy, image) = pulled("0s").await;
    let digest = image.manifest.digest();
    proxy.pull_manifest(APP, digest).await;
    let before = upstream.log().len();
    upstream.stop().await;

    for _ in 0..3 {
        let hit = proxy.pull_manifest(APP, digest).await;
        assert_eq!(hit.head.cache_status(), "layerhold; hit");
    }
    assert_eq!(upstream.log().len(), before);
}

#[tokio::test]
async fn pitfall_14_a_fresh_tag_is_served_unasked() {
    let (upstream, proxy, image) = pulled("1h").await;
    let before = upstream.log().len();
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));

    let target = format!("/v2/{APP}/manifests/v1");
    let request = proxy.head(target);
    for whole in join_all((0..100).map(|_| request.whole())).await {
        let head = whole.is(200, b"");
        assert_eq!(head.cache_status(), "layerhold; hit");
        let digest = head.header("docker-content-digest");
        assert_eq!(digest, Some(image.manifest.digest()));
    }
    assert_eq!(upstream.log().len(), before);
}

#[tokio::test]
async fn any_number_of_waiters_costs_at_most_two_checks() {
    let (upstream, proxy, _) = pulled("0s").await;
    let heads = upstream.count(&head("/v1"));
    let gate = upstream.hold(head("/v1"), At::Head);
    let request = proxy.manifest(APP, "v1");

    let first = request.dispatch().await;
    gate.reached().await;
    let waiters = join_all((0..60).map(|_| request.dispatch())).await;
    proxy
        .wait_for_metric("layerhold_connections", &[], |n| n >= 61.0)
        .await;
    // Whoever was accepted before these is being answered after them.
    for _ in 0..3 {
        proxy.get("/v2/").whole().await.is(200, b"{}");
    }
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    gate.open();

    first.head("GET").await.whole().await;
    for waiter in waiters {
        let whole = waiter.head("GET").await.whole().await;
        whole.is(200, image.manifest.bytes());
    }
    let checks = upstream.count(&head("/v1")) - heads;
    assert!(checks <= 2, "{checks} checks");
}

#[tokio::test]
async fn an_answer_rests_on_a_check_that_was_sent_after_the_request_came() {
    let (upstream, proxy, old) = pulled("0s").await;
    let image = Image::random(&[KIB]);
    // The first check is answered with the old digest, but late; meanwhile the tag moves and is asked for again.
    let gate = upstream.hold(head("/v1"), At::Head);
    let request = proxy.manifest(APP, "v1");
    let early = request.dispatch().await;
    gate.reached().await;
    upstream.serve_image(APP, "v1", &image);
    let late = request.dispatch().await;
    gate.open();

    let late = late.head("GET").await.whole().await;
    late.is(200, image.manifest.bytes());
    let early = early.head("GET").await.whole().await;
    assert!([old.manifest.digest(), image.manifest.digest()].contains(&&*early.digest()));
}

#[tokio::test]
async fn pitfall_15_an_outage_is_bridged_by_the_last_manifest_and_says_so() {
    for fault in [
        Fault::Status(500),
        Fault::Status(502),
        Fault::Status(503),
        Fault::Status(408),
        Fault::RateLimit(60),
        Fault::Refuse,
        Fault::Html200,
    ] {
        let (upstream, proxy, image) = pulled("0s").await;
        upstream.always(any(""), fault);
        let stale = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(stale.bytes, image.manifest.bytes(), "{fault:?}");
        assert_eq!(stale.head.cache_status(), STALE, "{fault:?}");
        let target = format!("/v2/{APP}/manifests/v1");
        let head = proxy.head(target).whole().await;
        assert_eq!(head.is(200, b"").cache_status(), STALE, "{fault:?}");
        assert_eq!(proxy.outcome("stale").await, 2.0, "{fault:?}");
    }
}

#[tokio::test]
async fn pitfall_15_a_dead_upstream_is_an_outage() {
    let (upstream, proxy, image) = pulled("0s").await;
    upstream.stop().await;
    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.bytes, image.manifest.bytes());
    assert_eq!(stale.head.cache_status(), STALE);
    proxy
        .wait_for_metric("layerhold_requests_total", &[("outcome", "stale")], |n| {
            n == 1.0
        })
        .await;
}

#[tokio::test]
async fn pitfall_15_a_silent_upstream_is_an_outage() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.answer", "2s")
        .set("timeouts.first_byte", "200ms")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, "v1").await;
    upstream.always(any(""), Fault::Silence);
    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.bytes, image.manifest.bytes());
    assert_eq!(stale.head.cache_status(), STALE);
}

#[tokio::test]
async fn pitfall_15_a_refusal_is_never_served_over() {
    for (status, expected) in [(404, 404), (410, 404), (401, 401), (403, 403)] {
        let (upstream, proxy, _) = pulled("0s").await;
        upstream.always(any(""), Fault::Status(status));
        for _ in 0..2 {
            let whole = proxy.manifest(APP, "v1").whole().await;
            assert_eq!(whole.head.status, expected, "{:?}", whole.head);
        }
        assert_eq!(proxy.outcome("stale").await, 0.0);
    }
}

#[tokio::test]
async fn pitfall_15_a_refusal_of_what_a_moved_tag_names_is_never_served_over() {
    for status in [401, 403] {
        let (upstream, proxy, _) = pulled("0s").await;
        upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
        upstream.always(get("/manifests/"), Fault::Status(status));
        for _ in 0..2 {
            let whole = proxy.manifest(APP, "v1").whole().await;
            assert_eq!(whole.head.status, status, "{:?}", whole.head);
        }
        assert_eq!(proxy.outcome("stale").await, 0.0);
    }
}

#[tokio::test]
async fn what_is_no_longer_usable_is_not_served() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.usable_for", "0s")
        .start()
        .await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    proxy.pull_manifest(APP, "v1").await;
    upstream.stop().await;
    let whole = proxy.manifest(APP, "v1").whole().await;
    assert_eq!(whole.head.status, 502, "{:?}", whole.head);
}

#[tokio::test]
async fn pitfall_16_a_dead_upstream_is_asked_once_in_a_while_not_once_a_pull() {
    let (upstream, proxy, _) = pulled("0s").await;
    upstream.always(any(""), Fault::Status(503));
    proxy.pull_manifest(APP, "v1").await;
    let after_one = upstream.log().len();
    for _ in 0..20 {
        let stale = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(stale.head.cache_status(), STALE);
    }
    assert_eq!(upstream.log().len(), after_one);
}

#[tokio::test]
async fn an_upstream_that_comes_back_is_believed_again() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.retry_after", "50ms")
        .start()
        .await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    proxy.pull_manifest(APP, "v1").await;
    upstream.stop().await;
    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.head.cache_status(), STALE);

    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.restart();
    poll("the new tag", async || {
        let pulled = proxy.pull_manifest(APP, "v1").await;
        (pulled.bytes == image.manifest.bytes()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pitfall_07_a_head_without_a_digest_makes_the_check_a_get() {
    let (upstream, proxy, image) = pulled("0s").await;
    upstream.always(head(""), Fault::NoDigestHeader);
    let gets = upstream.count(&get("/v1"));
    let same = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(same.bytes, image.manifest.bytes());
    assert_eq!(upstream.count(&get("/v1")), gets + 1);

    let moved = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &moved);
    let pulled = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, moved.manifest.bytes());
}

#[tokio::test]
async fn pitfall_17_a_tag_belongs_to_its_upstream_and_its_repository() {
    let (one, two) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&one).and(TWO, &two);
    let proxy = proxy.set("freshness.fresh_for", "1h").start().await;
    let images: Vec<Image> = (0..3).map(|_| Image::random(&[KIB])).collect();
    one.serve_image(APP, "v1", &images[0]);
    two.serve_image(APP, "v1", &images[1]);
    one.serve_image("team/other", "v1", &images[2]);

    for _ in 0..2 {
        for (repository, image) in [
            (APP.to_owned(), &images[0]),
            (format!("{TWO}/{APP}"), &images[1]),
            ("team/other".to_owned(), &images[2]),
        ] {
            let pulled = proxy.pull_manifest(&repository, "v1").await;
            assert_eq!(pulled.bytes, image.manifest.bytes());
        }
    }
}

#[tokio::test]
async fn pitfall_17_head_and_get_agree() {
    for fresh_for in ["0s", "1h"] {
        let (_upstream, proxy, image) = pulled(fresh_for).await;
        for reference in ["v1", image.manifest.digest()] {
            let get = proxy.pull_manifest(APP, reference).await;
            let target = format!("/v2/{APP}/manifests/{reference}");
            let head = proxy.head(target).whole().await;
            for name in [
                "docker-content-digest",
                "content-type",
                "content-length",
                "etag",
            ] {
                assert_eq!(head.head.header(name), get.head.header(name), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn pitfall_18_upstream_is_always_asked_for_every_type() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    for accept in [DOCKER_MANIFEST, OCI_INDEX, "application/json"] {
        let narrow = proxy.manifest(APP, "v1").header("Accept", accept);
        narrow.whole().await.is(200, image.manifest.bytes());
    }
    let wide = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(wide.head.header("content-type"), Some(OCI_MANIFEST));

    for seen in upstream.seen(&any("/manifests/")) {
        let accept = seen.header("accept").unwrap_or_default();
        for media_type in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST] {
            assert!(accept.contains(media_type), "{media_type}: {seen:?}");
        }
        assert!(!accept.contains("distribution.manifest.v1"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_moved_tag_is_believed_only_when_its_manifest_is_here() {
    let (upstream, proxy, old) = pulled("0s").await;
    let moved = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &moved);
    upstream.always(get("/manifests/"), Fault::Status(503));

    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.bytes, old.manifest.bytes());
    assert_eq!(stale.head.cache_status(), STALE);
    upstream.stop().await;
    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.bytes, old.manifest.bytes());
}

#[tokio::test]
async fn pitfall_47_a_missing_digest_is_remembered_briefly() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.negative_for", "1h")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    for request in [
        proxy.blob(APP, image.config.digest()),
        proxy.manifest(APP, image.manifest.digest()),
    ] {
        assert_eq!(request.whole().await.head.status, 404);
        let before = upstream.log().len();
        for _ in 0..3 {
            assert_eq!(request.whole().await.head.status, 404);
        }
        assert_eq!(upstream.log().len(), before);
    }
    // One repository's 404 says nothing of another's.
    upstream.serve_image("team/other", "v1", &image);
    proxy.pull_blob("team/other", &image.config).await;
}

#[tokio::test]
async fn pitfall_47_a_missing_tag_is_remembered_no_longer_than_it_would_be_fresh() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.negative_for", "1h")
        .start()
        .await;
    let missing = proxy.manifest(APP, "v1").whole().await;
    assert_eq!(missing.code().as_deref(), Some("MANIFEST_UNKNOWN"));
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let pulled = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, image.manifest.bytes());
    upstream.untag(APP, "v1");
    let gone = proxy.manifest(APP, "v1").whole().await;
    assert_eq!(gone.head.status, 404);
}

#[tokio::test]
async fn pitfall_47_what_was_not_there_is_asked_for_again_after_a_while() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.negative_for", "50ms")
        .set("freshness.fresh_for", "1h")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    let all = [
        proxy.manifest(APP, image.manifest.digest()),
        proxy.blob(APP, image.config.digest()),
        proxy.manifest(APP, "v1"),
    ];
    for request in &all {
        assert_eq!(request.whole().await.head.status, 404);
    }
    upstream.serve_image(APP, "v1", &image);
    for request in &all {
        poll("what is there now", async || {
            (request.whole().await.head.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_tag_has_the_freshness_of_the_first_rule_that_matches() {
    let upstream = FakeRegistry::start().await;
    let rule: toml::Table = [
        ("match".to_owned(), r"^v?\d+\.\d+\.\d+$".into()),
        ("fresh_for".to_owned(), "1d".into()),
    ]
    .into_iter()
    .collect();
    let proxy = TestProxy::in_front_of(&upstream)
        .upstream("tags", vec![rule])
        .start()
        .await;
    for (tag, status) in [("1.2.3", "layerhold; hit"), ("1.2", REVALIDATED)] {
        let image = Image::random(&[KIB]);
        upstream.serve_image(APP, tag, &image);
        proxy.pull_manifest(APP, tag).await;
        let again = proxy.pull_manifest(APP, tag).await;
        assert_eq!(again.head.cache_status(), status, "{tag}");
    }
}

#[tokio::test]
async fn the_old_version_is_still_there_by_its_digest_when_upstream_is_gone() {
    let (upstream, proxy, old) = pulled("0s").await;
    for blob in old.blobs() {
        proxy.wait_for_hit(APP, blob).await;
    }
    let new = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &new);
    proxy.pull_manifest(APP, "v1").await;
    upstream.stop().await;

    let by_digest = proxy.pull_manifest(APP, old.manifest.digest()).await;
    assert_eq!(by_digest.head.cache_status(), "layerhold; hit");
    for blob in old.blobs() {
        proxy.pull_blob(APP, blob).await;
    }
    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.bytes, new.manifest.bytes());
    assert_eq!(stale.head.cache_status(), STALE);
}

#[tokio::test]
async fn a_fresh_tag_whose_manifest_is_gone_is_asked_about_anew() {
    let (upstream, proxy, old) = pulled("1h").await;
    // It is answered before it is published.
    proxy.wait_for_empty_staging().await;
    let proxy = proxy.restart().await;
    lose(&proxy.published(old.manifest.digest()));
    upstream.always(any(old.manifest.digest()), Fault::Status(404));
    let new = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &new);
    let pulled = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, new.manifest.bytes());
}

#[tokio::test]
async fn head_and_get_agree_after_upstreams_head_lied() {
    for fault in [Fault::ShortLength, Fault::Type(DOCKER_MANIFEST)] {
        for fresh_for in ["0s", "1h"] {
            let upstream = FakeRegistry::start().await;
            let proxy = TestProxy::in_front_of(&upstream)
                .set("freshness.fresh_for", fresh_for)
                .start()
                .await;
            upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
            upstream.always(head("/v1"), fault);
            let get = proxy.pull_manifest(APP, "v1").await;
            let target = format!("/v2/{APP}/manifests/v1");
            let head = proxy.head(target).whole().await;
            for name in ["content-type", "content-length"] {
                let (head, get) = (head.head.header(name), get.head.header(name));
                assert_eq!(head, get, "{fault:?}, {fresh_for}");
            }
        }
    }
}

#[tokio::test]
async fn a_moved_tag_whose_manifest_does_not_come_is_stale_at_once_the_second_time() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.answer", "10s")
        .set("timeouts.first_byte", "200ms")
        .set("freshness.retry_after", "1m")
        .start()
        .await;
    let old = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &old);
    proxy.pull_manifest(APP, "v1").await;
    let new = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &new);
    upstream.always(get("/manifests/"), Fault::Silence);
    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.head.cache_status(), STALE);

    let before = upstream.count(&get(""));
    let again = proxy.pull_manifest(APP, "v1").await;
    let target = format!("/v2/{APP}/manifests/v1");
    let head = proxy.head(target).whole().await;
    assert_eq!(again.bytes, old.manifest.bytes());
    assert_eq!(again.head.cache_status(), STALE);
    let digest = head.is(200, b"").header("docker-content-digest");
    assert_eq!(digest, Some(old.manifest.digest()));
    assert_eq!(upstream.count(&get("")), before);
}

#[tokio::test]
async fn a_refusal_stays_the_last_word_through_an_outage() {
    for status in [401, 403] {
        let (upstream, proxy, _) = pulled("0s").await;
        upstream.always(any(""), Fault::Status(status));
        let refused = proxy.manifest(APP, "v1").whole().await;
        assert_eq!(refused.head.status, status);
        upstream.always(any(""), Fault::Status(503));
        let failed = proxy.manifest(APP, "v1").whole().await;
        assert!(matches!(failed.head.status, 502 | 503), "{:?}", failed.head);
    }
}

#[tokio::test]
async fn a_tag_whose_manifest_was_here_through_another_repository_is_stored() {
    let (upstream, proxy, image) = pulled("1h").await;
    upstream.serve_image("other/app", "v1", &image);
    // As containerd pulls.
    let target = "/v2/other/app/manifests/v1";
    assert_eq!(proxy.head(target).whole().await.head.status, 200);
    let digest = image.manifest.digest();
    proxy.pull_manifest("other/app", digest).await;
    let asked = upstream.log().len();
    let again = proxy.head(target).whole().await;
    assert_eq!(again.head.cache_status(), "layerhold; hit");
    let proxy = proxy.restart().await;
    let again = proxy.head(target).whole().await;
    assert_eq!(again.head.cache_status(), "layerhold; hit");
    assert_eq!(upstream.log().len(), asked);
}
