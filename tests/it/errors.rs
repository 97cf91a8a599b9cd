//! What a client is told when there is nothing to serve, and what it is not told.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::proxy::ONE;
use crate::harness::{
    APP, Blob, BlobHost, FakeRegistry, Fault, Image, KIB, MIB, Request, TestProxy, Whole, any, get,
    pair,
};

/// An upstream that has an image of which nothing was pulled yet, and a proxy that waits briefly.
async fn cold() -> (FakeRegistry, TestProxy, Image) {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.answer", "2s")
        .set("timeouts.first_byte", "300ms")
        .start()
        .await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    (upstream, proxy, image)
}

/// The ways to ask for something of an image.
fn requests(proxy: &TestProxy, image: &Image) -> [Request; 3] {
    [
        proxy.manifest(APP, "v1"),
        proxy.manifest(APP, image.manifest.digest()),
        proxy.blob(APP, image.layers[0].digest()),
    ]
}

/// An error body of the spec's form that gives nothing away.
fn assert_discreet(whole: &Whole, upstream: &FakeRegistry) {
    let text = whole.text();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(json["errors"][0]["message"].is_string(), "{text}");
    assert!(!text.contains(&upstream.address().to_string()), "{text}");
    assert!(!text.contains("127.0.0.1"), "{text}");
    assert!(!text.contains("the fake's own words"), "{text}");
    let id = whole.head.header("x-request-id");
    assert!(id.is_some_and(|id| !id.is_empty()), "{:?}", whole.head);
}

#[tokio::test]
async fn pitfall_42_each_cause_has_its_status_and_code() {
    for (fault, status, codes) in [
        (
            Fault::Status(404),
            404,
            ["MANIFEST_UNKNOWN", "BLOB_UNKNOWN"],
        ),
        (
            Fault::Status(410),
            404,
            ["MANIFEST_UNKNOWN", "BLOB_UNKNOWN"],
        ),
        (Fault::Status(401), 401, ["UNAUTHORIZED", "UNAUTHORIZED"]),
        (Fault::Status(403), 403, ["DENIED", "DENIED"]),
    ] {
        let (upstream, proxy, image) = cold().await;
        upstream.always(any(""), fault);
        let [manifest, by_digest, blob] = requests(&proxy, &image);
        for (request, code) in [
            (manifest, codes[0]),
            (by_digest, codes[0]),
            (blob, codes[1]),
        ] {
            let whole = request.whole().await;
            assert_eq!(whole.head.status, status, "{fault:?}: {}", whole.text());
            assert_eq!(whole.code().as_deref(), Some(code), "{fault:?}");
            assert_discreet(&whole, &upstream);
        }
    }
}

#[tokio::test]
async fn pitfall_42_an_outage_is_a_502_and_never_a_404() {
    for fault in [Fault::Status(500), Fault::Status(502), Fault::Refuse] {
        let (upstream, proxy, image) = cold().await;
        upstream.always(any(""), fault);
        for request in requests(&proxy, &image) {
            let whole = request.whole().await;
            assert_eq!(whole.head.status, 502, "{fault:?}: {}", whole.text());
            assert_discreet(&whole, &upstream);
        }
    }
}

#[tokio::test]
async fn pitfall_42_an_upstream_that_cannot_be_reached_is_a_502() {
    let (upstream, proxy, image) = cold().await;
    upstream.stop().await;
    for request in requests(&proxy, &image) {
        let whole = request.whole().await;
        assert_eq!(whole.head.status, 502, "{}", whole.text());
        assert_discreet(&whole, &upstream);
    }
}

#[tokio::test]
async fn a_web_page_is_no_manifest() {
    let (upstream, proxy, image) = cold().await;
    upstream.always(any(""), Fault::Html200);
    for request in requests(&proxy, &image).iter().take(2) {
        let whole = request.whole().await;
        assert_eq!(whole.head.status, 502, "{}", whole.text());
    }
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
}

#[tokio::test]
async fn upstreams_challenge_is_not_forwarded_and_ours_names_the_namespace() {
    let (upstream, proxy, image) = cold().await;
    upstream.always(any(""), Fault::Status(401));
    for request in requests(&proxy, &image) {
        let whole = request.whole().await;
        let challenge = format!("Basic realm=\"{ONE}\"");
        assert_eq!(whole.head.all("www-authenticate"), [challenge.as_str()]);
    }
}

#[tokio::test]
async fn invariant_11_what_a_client_says_of_itself_goes_no_further() {
    let (upstream, proxy, image) = cold().await;
    for request in requests(&proxy, &image) {
        let request = request
            .header("Authorization", "Basic Zm9vOmJhcg==")
            .header("Cookie", "a=b")
            .header("X-Forwarded-For", "192.0.2.1");
        assert_eq!(request.whole().await.head.status, 200);
    }
    for seen in upstream.log() {
        for name in ["authorization", "cookie", "x-forwarded-for"] {
            assert_eq!(seen.header(name), None, "{seen:?}");
        }
    }
}

#[tokio::test]
async fn pitfall_41_a_rate_limit_becomes_a_503_that_says_when() {
    for which in 0..3 {
        let (upstream, proxy, image) = cold().await;
        upstream.always(any(""), Fault::RateLimit(60));
        let request = &requests(&proxy, &image)[which];
        let whole = request.whole().await;
        assert_eq!(whole.head.status, 503, "{}", whole.text());
        assert_eq!(whole.code().as_deref(), Some("TOOMANYREQUESTS"));
        let seconds: u32 = whole.head.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
}

#[tokio::test]
async fn pitfall_41_a_rate_limit_may_say_when_by_a_date() {
    let (upstream, proxy, image) = cold().await;
    upstream.add_header("Date", "Fri, 20 Nov 2026 23:59:30 GMT");
    upstream.add_header("Retry-After", "Sat, 21 Nov 2026 00:01:00 GMT");
    upstream.always(any(""), Fault::Status(429));
    let request = &requests(&proxy, &image)[2];
    let whole = request.whole().await;
    let seconds: u32 = whole.head.header("retry-after").unwrap().parse().unwrap();
    assert!((60..=90).contains(&seconds), "{seconds}");
    let before = upstream.log().len();
    assert_eq!(request.whole().await.head.status, 503);
    assert_eq!(upstream.log().len(), before);
}

#[tokio::test]
async fn pitfall_41_a_rate_limit_is_not_tried_again_before_its_time() {
    let (upstream, proxy, image) = cold().await;
    upstream.always(any(""), Fault::RateLimit(60));
    let blob = &requests(&proxy, &image)[2];
    blob.whole().await;
    let before = upstream.log().len();
    for _ in 0..3 {
        assert_eq!(blob.whole().await.head.status, 503);
    }
    assert_eq!(upstream.log().len(), before);
}

#[tokio::test]
async fn pitfall_41_a_blob_host_that_asks_for_a_pause_gets_it() {
    let (upstream, proxy, image) = cold().await;
    let host = BlobHost::start().await;
    let digest = image.layers[0].digest();
    upstream.redirect(get("/blobs/"), 307, host.link(digest));
    host.always(any(""), Fault::RateLimit(60));
    for _ in 0..3 {
        let whole = proxy.blob(APP, digest).whole().await;
        assert_eq!(whole.head.status, 503, "{}", whole.text());
        let seconds: u32 = whole.head.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    assert_eq!(host.log().len(), 1);
    // That was not the registry's own word.
    proxy.pull_manifest(APP, "v1").await;
}

/// What names no tag waits no longer than it is told to; a tag has a pause of its own besides.
#[tokio::test]
async fn pitfall_41_a_pause_that_ends_soon_is_waited_for_and_not_cut_short() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.retry_after", "100ms")
        .start()
        .await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let [tag, manifest, blob] = requests(&proxy, &image);
    let config = format!("/v2/{APP}/blobs/{}", image.config.digest());
    let list = proxy.get(format!("/v2/{APP}/tags/list"));
    for request in [blob, proxy.head(config), list, manifest, tag] {
        let asked = upstream.log().len();
        upstream.once(any(""), Fault::RateLimit(1));
        let began = Instant::now();
        let whole = request.whole().await;
        assert_eq!(whole.head.status, 200, "{request:?}: {}", whole.text());
        assert!(began.elapsed() >= Duration::from_secs(1), "{request:?}");
        assert_eq!(upstream.log().len(), asked + 2, "{request:?}");
    }
}

#[tokio::test]
async fn pitfall_41_a_pause_of_no_time_is_one_all_the_same() {
    for is_redirected in [false, true] {
        let (upstream, host) = (FakeRegistry::start().await, BlobHost::start().await);
        let proxy = TestProxy::in_front_of(&upstream)
            .set("timeouts.answer", "6s")
            .start()
            .await;
        let digest = Blob::random(1).digest().to_owned();
        upstream.redirect(any("/blobs/"), 307, host.link(&digest));
        host.always(any(""), Fault::RateLimit(0));
        if !is_redirected {
            upstream.always(any(""), Fault::RateLimit(0));
        }
        let began = Instant::now();
        let whole = proxy.blob(APP, &digest).whole().await;
        assert_eq!(whole.head.status, 503, "{}", whole.text());
        let (asked, seconds) = (upstream.log().len(), began.elapsed().as_secs());
        assert!(asked > 1, "a short pause is waited for");
        assert!(asked as u64 <= 1 + seconds, "{asked} in {seconds} s");
    }
}

#[tokio::test]
async fn pitfall_41_neither_a_408_nor_a_429_is_passed_on() {
    for (fault, status) in [
        (Fault::Status(408), 502),
        (Fault::Status(429), 503),
        (Fault::RateLimit(60), 503),
    ] {
        for is_redirected in [false, true] {
            let (upstream, proxy, image) = cold().await;
            let host = BlobHost::start().await;
            upstream.redirect(any("/blobs/"), 307, host.link(image.layers[0].digest()));
            host.always(any(""), fault);
            if !is_redirected {
                upstream.always(any(""), fault);
            }
            let blob = format!("/v2/{APP}/blobs/{}", image.layers[0].digest());
            let mut all = vec![proxy.get(&blob), proxy.head(&blob)];
            if !is_redirected {
                let digest = image.manifest.digest();
                all.extend([
                    proxy.manifest(APP, "v1"),
                    proxy.head(format!("/v2/{APP}/manifests/v1")),
                    proxy.manifest(APP, digest),
                    proxy.head(format!("/v2/{APP}/manifests/{digest}")),
                    proxy.get(format!("/v2/{APP}/tags/list")),
                    proxy.get(format!("/v2/{APP}/referrers/{digest}")),
                ]);
            }
            for request in &all {
                let whole = request.whole().await;
                assert_eq!(whole.head.status, status, "{fault:?}: {request:?}");
                let says_when = whole.head.header("retry-after").is_some();
                assert_eq!(says_when, status == 503, "{fault:?}: {request:?}");
            }
        }
    }
}

#[tokio::test]
async fn invariant_10_a_silent_upstream_is_a_504_in_time() {
    let (upstream, proxy, image) = cold().await;
    upstream.always(any(""), Fault::Silence);
    for request in requests(&proxy, &image) {
        let began = Instant::now();
        let whole = request.whole().await;
        assert_eq!(whole.head.status, 504, "{}", whole.text());
        assert!(began.elapsed() < Duration::from_secs(4), "{request:?}");
        assert_discreet(&whole, &upstream);
    }
}

#[tokio::test]
async fn invariant_10_one_deadline_covers_all_attempts() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.answer", "1s")
        .start()
        .await;
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    upstream.always(any(""), Fault::Silence);
    let began = Instant::now();
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(whole.head.status, 504, "{}", whole.text());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn errors_are_for_those_who_asked_and_not_for_ever() {
    let (upstream, proxy, image) = cold().await;
    upstream.always(any(""), Fault::Status(500));
    for request in requests(&proxy, &image) {
        assert_eq!(request.whole().await.head.status, 502);
    }
    upstream.heal();
    proxy.pull_blob(APP, &image.layers[0]).await;
    proxy.pull_manifest(APP, image.manifest.digest()).await;
}

#[tokio::test]
async fn head_has_the_errors_of_get_without_their_bodies() {
    let (_upstream, proxy) = pair().await;
    let digest = Blob::random(1).digest().to_owned();
    for (target, status) in [
        (format!("/v2/{APP}/blobs/{digest}"), 404),
        (format!("/v2/{APP}/manifests/{digest}"), 404),
        (format!("/v2/{APP}/manifests/v1"), 404),
        (format!("/v2/{APP}/blobs/nonsense"), 400),
        (format!("/v2/{APP}/manifests/v1?ns=unknown.example"), 404),
    ] {
        let whole = proxy.head(&target).whole().await;
        assert_eq!(whole.head.status, status, "{target}");
        assert!(whole.bytes.is_empty());
    }
}

#[tokio::test]
async fn a_transfer_that_never_begins_leaves_nothing_behind() {
    let (upstream, proxy, image) = cold().await;
    let layer = &image.layers[0];
    upstream.always(get(layer.digest()), Fault::Status(500));
    let whole = proxy.blob(APP, layer.digest()).whole().await;
    assert_eq!(whole.head.status, 502);
    proxy
        .wait_for_metric("layerhold_fills", &[], |it| it == 0.0)
        .await;
    let reserved = [("state", "reserved")];
    let free = |it| it == 0.0;
    proxy
        .wait_for_metric("layerhold_cache_bytes", &reserved, free)
        .await;
    proxy.wait_for_empty_staging().await;
}
