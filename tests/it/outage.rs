//! A registry that does not answer anybody: what that costs, what goes on without it, and what is no such thing.

use futures_util::future::join_all;

use crate::harness::proxy::ONE;
use crate::harness::script::Turns;
use crate::harness::{
    APP, At, Authority, Blob, BlobHost, Demand, FakeRegistry, Fault, Image, KIB, MIB, ProxyBuilder,
    Request, TestProxy, TlsFront, any, get, head, poll,
};

const STALE: &str = "layerhold; fwd=stale; detail=upstream-unavailable";

/// A proxy that loses patience quickly and then leaves a registry alone for this long.
fn before(upstream: &FakeRegistry, retry_after: &str) -> ProxyBuilder {
    TestProxy::in_front_of(upstream)
        .set("timeouts.answer", "10s")
        .set("timeouts.first_byte", "300ms")
        .set("freshness.retry_after", retry_after)
}

async fn scene(retry_after: &str) -> (FakeRegistry, TestProxy) {
    let upstream = FakeRegistry::start().await;
    let proxy = before(&upstream, retry_after).start().await;
    (upstream, proxy)
}

/// How many hosts are left alone.
async fn resting(proxy: &TestProxy) -> f64 {
    proxy.metric("layerhold_upstream_resting", &[]).await
}

/// A request for a blob of which nobody has heard.
fn anything(proxy: &TestProxy) -> Request {
    proxy.blob(APP, Blob::random(8).digest())
}

/// Asks for this and that until the registry is left alone.
async fn fail_until_it_rests(proxy: &TestProxy) {
    poll("the registry to be left alone", async || {
        let status = anything(proxy).whole().await.head.status;
        assert!(matches!(status, 502 | 504), "{status}");
        (resting(proxy).await > 0.0).then_some(())
    })
    .await;
}

/// Every way to ask for something that is not here.
fn everything(proxy: &TestProxy, image: &Image) -> Vec<Request> {
    let (blob, manifest) = (image.layers[0].digest(), image.manifest.digest());
    vec![
        proxy.blob(APP, blob),
        proxy.blob(APP, blob).range("bytes=1-2"),
        proxy.head(format!("/v2/{APP}/blobs/{blob}")),
        proxy.manifest(APP, manifest),
        proxy.head(format!("/v2/{APP}/manifests/{manifest}")),
        proxy.manifest(APP, "v1"),
        proxy.head(format!("/v2/{APP}/manifests/v1")),
        proxy.get(format!("/v2/{APP}/tags/list")),
        proxy.get(format!("/v2/{APP}/referrers/{manifest}")),
    ]
}

#[tokio::test]
async fn pitfall_16_a_dead_registry_is_left_alone_whatever_is_asked_of_it() {
    let (upstream, proxy) = scene("1m").await;
    let [image, other] = [(); 2].map(|()| Image::random(&[KIB]));
    upstream.serve_image(APP, "v1", &image);
    upstream.serve_image("other/app", "v1", &other);
    proxy.pull_manifest("other/app", "v1").await;
    proxy.wait_for_hit("other/app", &other.layers[0]).await;
    upstream.stop().await;
    fail_until_it_rests(&proxy).await;

    // Whatever comes now is not sent, though it would be answered.
    upstream.restart();
    let connections = upstream.connections();
    let proof = proxy.blob(APP, other.layers[0].digest());
    for request in everything(&proxy, &image).into_iter().chain([proof]) {
        let whole = request.whole().await;
        assert_eq!(whole.head.status, 502, "{request:?}: {}", whole.text());
        let seconds: u32 = whole.head.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    let labels = [("upstream", ONE)];
    let unasked = proxy
        .metric("layerhold_upstream_unasked_total", &labels)
        .await;
    assert!(unasked >= 10.0, "{unasked}");
    // What is here is served, and tags as last stored.
    proxy.pull_blob("other/app", &other.layers[0]).await;
    let stale = proxy.pull_manifest("other/app", "v1").await;
    assert_eq!(stale.head.cache_status(), STALE);
    assert_eq!(upstream.connections(), connections);
}

#[tokio::test]
async fn pitfall_16_a_silent_registry_costs_no_more_time_once_it_is_known() {
    let (upstream, proxy) = scene("1m").await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.always(any(""), Fault::Silence);
    fail_until_it_rests(&proxy).await;
    let asked = upstream.log().len();
    for request in everything(&proxy, &image) {
        let whole = request.whole().await;
        assert_eq!(whole.head.status, 504, "{request:?}: {}", whole.text());
    }
    assert_eq!(upstream.log().len(), asked);
}

#[tokio::test]
async fn a_registry_that_comes_back_is_used_again_and_at_once_for_everything() {
    let (upstream, proxy) = scene("100ms").await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.stop().await;
    fail_until_it_rests(&proxy).await;
    upstream.restart();
    poll("the registry to be used", async || {
        let whole = proxy.blob(APP, image.layers[0].digest()).whole().await;
        (whole.head.status == 200).then_some(())
    })
    .await;
    assert_eq!(resting(&proxy).await, 0.0);
    for request in everything(&proxy, &image) {
        let status = request.whole().await.head.status;
        let expected = if format!("{request:?}").contains("referrers") {
            404
        } else {
            200
        };
        assert!(status == expected || status == 206, "{request:?}: {status}");
    }
}

#[tokio::test]
async fn whether_a_registry_is_back_is_found_out_by_one() {
    let upstream = FakeRegistry::start().await;
    let proxy = before(&upstream, "50ms");
    let proxy = proxy.set("timeouts.first_byte", "9s").start().await;
    let [first, second] = [(); 2].map(|()| Blob::random(KIB));
    for blob in [&first, &second] {
        upstream.serve_blob(APP, blob);
    }
    upstream.stop().await;
    fail_until_it_rests(&proxy).await;
    let asked = upstream.log().len();
    let gate = upstream.hold(any(""), At::Head);
    upstream.restart();
    let request = proxy.blob(APP, first.digest());
    let probe = poll("the pause to be over", async || {
        let sent = request.dispatch().await;
        (upstream.log().len() > asked).then_some(sent)
    })
    .await;
    gate.reached().await;
    // Whoever comes meanwhile waits a moment with it, and no longer.
    let others = (0..20).map(|_| async { anything(&proxy).whole().await });
    for other in join_all(others).await {
        assert_eq!(other.head.status, 502, "{}", other.text());
    }
    assert_eq!(upstream.log().len(), asked + 1);
    gate.open();
    probe.head("GET").await.is(&first).await;
    proxy.pull_blob(APP, &second).await;
    assert_eq!(resting(&proxy).await, 0.0);
}

#[tokio::test]
async fn one_thing_that_is_not_answered_is_not_held_against_the_registry() {
    let (upstream, proxy) = scene("1m").await;
    let slow = Blob::random(KIB);
    upstream.serve_blob(APP, &slow);
    upstream.always(any(slow.digest()), Fault::Silence);
    for _ in 0..5 {
        let whole = proxy.blob(APP, slow.digest()).whole().await;
        assert_eq!(whole.head.status, 504, "{}", whole.text());
    }
    assert_eq!(resting(&proxy).await, 0.0);
    let other = Blob::random(KIB);
    upstream.serve_blob(APP, &other);
    proxy.pull_blob(APP, &other).await;
}

#[tokio::test]
async fn an_answer_is_an_answer_whatever_it_says() {
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(404),
        Fault::Status(403),
        Fault::Status(429),
        Fault::Refuse,
        Fault::CutAfter(0),
        Fault::Html200,
    ] {
        let upstream = FakeRegistry::start().await;
        let proxy = before(&upstream, "1m").start().await;
        upstream.always(any(""), fault);
        // Long enough for it to be known if it were dead.
        let began = tokio::time::Instant::now();
        while began.elapsed().as_millis() < 1500 {
            anything(&proxy).whole().await;
        }
        assert_eq!(resting(&proxy).await, 0.0, "{fault:?}");
    }
}

#[tokio::test]
async fn a_transfer_that_goes_on_is_proof_of_life() {
    let upstream = FakeRegistry::start().await;
    let proxy = before(&upstream, "1m")
        .set("timeouts.first_byte", "1s")
        .start()
        .await;
    let (large, lost) = (Blob::random(3 * MIB), [(); 4].map(|()| Blob::random(KIB)));
    upstream.serve_blob(APP, &large);
    for blob in &lost {
        upstream.always(any(blob.digest()), Fault::Silence);
    }
    let gate = upstream.hold(get(large.digest()), At::Byte(MIB));
    let mut answer = proxy.blob(APP, large.digest()).send().await;
    answer.read(MIB - KIB).await;
    gate.reached().await;
    let requests = lost.each_ref().map(|it| proxy.blob(APP, it.digest()));
    let failing = join_all(requests.iter().map(|it| async { it.whole().await }));
    let going_on = async {
        upstream.wait_for(&get(""), 1 + lost.len()).await;
        gate.open();
        answer.read(MIB).await;
    };
    let (failed, ()) = tokio::join!(failing, going_on);
    for whole in failed {
        assert_eq!(whole.head.status, 504, "{}", whole.text());
    }
    assert_eq!(resting(&proxy).await, 0.0);
}

#[tokio::test]
async fn a_registry_whose_tls_fails_is_left_alone() {
    let (upstream, authority) = (FakeRegistry::start().await, Authority::new());
    let name = "registry.example.com";
    let front = TlsFront::start(&upstream, &authority, &[name], Demand::Nothing).await;
    // Nobody vouches for that authority.
    let proxy = before(&upstream, "1m")
        .upstream("url", front.url(name))
        .name(name, &["192.0.2.1"])
        .stand_in("192.0.2.1", front.address().ip())
        .start()
        .await;
    fail_until_it_rests(&proxy).await;
    let whole = anything(&proxy).whole().await;
    assert_eq!(whole.head.status, 502, "{}", whole.text());
    assert!(whole.head.header("retry-after").is_some());
}

#[tokio::test]
async fn a_blob_host_that_is_dead_is_left_alone_and_its_registry_is_not() {
    let (upstream, host) = (FakeRegistry::start().await, BlobHost::start().await);
    let proxy = before(&upstream, "1m").start().await;
    let link = host.link(Blob::random(1).digest());
    upstream.redirect(get("/blobs/"), 307, link);
    host.stop().await;
    fail_until_it_rests(&proxy).await;
    host.restart();
    assert_eq!(anything(&proxy).whole().await.head.status, 502);
    assert_eq!(host.connections(), 0);
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, "v1").await;
    assert_eq!(resting(&proxy).await, 1.0);
}

#[tokio::test]
async fn a_mirror_that_may_be_back_is_asked_by_one_and_nobody_waits_for_that() {
    let (registry, mirror) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = before(&registry, "50ms").mirror(&mirror, "");
    let proxy = proxy.set("timeouts.first_byte", "4s").start().await;
    let [first, second] = [(); 2].map(|()| Blob::random(KIB));
    for blob in [&first, &second] {
        registry.serve_blob(APP, blob);
        mirror.serve_blob(APP, blob);
    }
    mirror.script(any(""), Turns::NEXT, Fault::Status(503));
    let refused = Blob::random(KIB);
    registry.serve_blob(APP, &refused);
    proxy.pull_blob(APP, &refused).await;
    let gate = mirror.hold(any(""), At::Head);
    let others = async {
        gate.reached().await;
        proxy.pull_blob(APP, &second).await;
        assert_eq!(registry.count(&get(second.digest())), 1);
        assert_eq!(mirror.count(&any(second.digest())), 0);
        gate.open();
    };
    let probe = async {
        // Those that come in its pause have the registry's.
        poll("the pause of the mirror to be over", async || {
            proxy.purge(first.digest()).await;
            proxy.pull_blob(APP, &first).await;
            (mirror.count(&any(first.digest())) > 0).then_some(())
        })
        .await;
    };
    tokio::join!(probe, others);
}

#[tokio::test]
async fn pitfall_46_nothing_that_is_here_needs_a_name_server() {
    let upstream = FakeRegistry::start().await;
    let proxy = before(&upstream, "1m").start().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        proxy.wait_for_hit(APP, blob).await;
    }
    proxy.shut_down();
    let builder = proxy.stopped().await;
    let asked = upstream.log().len();
    // A name that nobody knows.
    let proxy = builder
        .upstream("url", "http://registry.invalid:5000")
        .name("registry.invalid", &[])
        .start()
        .await;
    for blob in image.blobs() {
        let hit = proxy.pull_blob(APP, blob).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
    }
    let stale = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(stale.bytes, image.manifest.bytes());
    assert_eq!(stale.head.cache_status(), STALE);
    fail_until_it_rests(&proxy).await;
    assert_eq!(upstream.log().len(), asked);
}

#[tokio::test]
async fn pitfall_41_a_transfer_that_is_told_to_pause_goes_on_after_it() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream).start().await;
    let blob = Blob::random(3 * MIB);
    upstream.serve_blob(APP, &blob);
    upstream.script(get(blob.digest()), Turns::nth(2), Fault::RateLimit(2));
    upstream.once(get(blob.digest()), Fault::CutAfter(MIB));
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 3);
    assert_eq!(upstream.count(&head("")), 0);
}

#[tokio::test]
async fn pitfall_41_a_pause_in_the_middle_is_kept_whoever_else_brings_the_blob() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream).start().await;
    let blob = Blob::random(3 * MIB);
    for name in [APP, "other/app"] {
        upstream.serve_blob(name, &blob);
    }
    upstream.script(get(blob.digest()), Turns::nth(2), Fault::RateLimit(2));
    upstream.once(get(blob.digest()), Fault::CutAfter(MIB));
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB - KIB));
    let first = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    let second = proxy.blob("other/app", blob.digest()).send().await;
    gate.open();
    first.is(&blob).await;
    second.is(&blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 3);
}

#[tokio::test]
async fn a_mirror_that_does_not_have_it_has_answered() {
    let (registry, mirror) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = before(&registry, "50ms").mirror(&mirror, "").start().await;
    mirror.script(any(""), Turns::NEXT, Fault::Status(503));
    let pull = async || {
        let blob = Blob::random(KIB);
        registry.serve_blob(APP, &blob);
        proxy.pull_blob(APP, &blob).await;
    };
    pull().await;
    assert_eq!(resting(&proxy).await, 1.0);
    poll("the mirror to be at rest no more", async || {
        pull().await;
        (resting(&proxy).await == 0.0).then_some(())
    })
    .await;
}
