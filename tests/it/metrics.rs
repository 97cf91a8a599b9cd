//! What an operator can see, and what nobody should.

use serde_json::Value;

use crate::harness::binary::field;
use crate::harness::proxy::{ONE, TWO, sum};
use crate::harness::{
    APP, At, Binary, Blob, FakeRegistry, Fault, Image, KIB, MIB, Request, TestProxy, any, get, pair,
};

#[tokio::test]
async fn a_client_that_leaves_a_hit_in_the_middle_has_abandoned_it() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(64 * MIB);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    let labels = [("outcome", "hit")];
    let before = proxy
        .metric("layerhold_response_bytes_total", &labels)
        .await;

    let mut answer = proxy.blob(APP, blob.digest()).send().await;
    answer.read(4 * MIB).await;
    drop(answer);

    let abandoned = [("end", "abandoned")];
    proxy
        .wait_for_metric("layerhold_responses_total", &abandoned, |it| it == 1.0)
        .await;
    let sent = proxy
        .metric("layerhold_response_bytes_total", &labels)
        .await
        - before;
    assert!((4.0..60.0).contains(&(sent / 1024.0 / 1024.0)), "{sent}");
}

#[tokio::test]
async fn a_client_that_leaves_a_hit_in_the_middle_is_logged_as_such() {
    let upstream = FakeRegistry::start().await;
    let binary = Binary::start(&TestProxy::in_front_of(&upstream)).await;
    let blob = Blob::random(64 * MIB);
    upstream.serve_blob(APP, &blob);
    binary.wait_for_hit(APP, &blob).await;
    let mut answer = binary.blob(APP, blob.digest()).send().await;
    answer.read(4 * MIB).await;
    drop(answer);

    let line = binary.wait_for_log(|line| says(line, "abandoned")).await;
    let fields = line.get("fields").unwrap_or(&line);
    let bytes = fields["bytes"].as_u64().unwrap();
    assert!((4 << 20..60 << 20).contains(&bytes), "{line}");
    assert_eq!(line["level"], "INFO");
    assert_eq!(fields["outcome"], "hit");
    assert_eq!(fields["status"].to_string().trim_matches('"'), "200");
}

/// Whether some field has this value.
fn says(value: &Value, word: &str) -> bool {
    match value {
        Value::Object(fields) => fields.values().any(|it| says(it, word)),
        Value::String(text) => text == word,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => false,
    }
}

#[tokio::test]
async fn every_request_is_counted_with_its_outcome() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("cache.size", "8MiB")
        .start()
        .await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    let large = Blob::random(9 * MIB);
    upstream.serve_blob(APP, &large);
    let layer = &image.layers[0];

    let gate = upstream.hold(get(layer.digest()), At::Byte(KIB));
    let miss = proxy.blob(APP, layer.digest()).send().await;
    gate.reached().await;
    let join = proxy.blob(APP, layer.digest()).send().await;
    gate.open();
    miss.is(layer).await;
    join.is(layer).await;
    proxy.wait_for_fills("published", 1.0).await;
    proxy.pull_blob(APP, layer).await;
    proxy.pull_blob(APP, &large).await;
    proxy.pull_manifest(APP, "v1").await;
    proxy.pull_manifest(APP, "v1").await;
    upstream.stop().await;
    proxy.pull_manifest(APP, "v1").await;
    let failed = proxy.manifest(APP, "v2").whole().await;
    assert_eq!(failed.head.status, 502);

    for (outcome, wanted) in [
        ("miss", 2.0),
        ("join", 1.0),
        ("hit", 1.0),
        ("bypass", 1.0),
        ("revalidated", 1.0),
        ("stale", 1.0),
        ("failed", 1.0),
    ] {
        let labels = [("outcome", outcome), ("upstream", ONE)];
        let enough = |it| it == wanted;
        proxy
            .wait_for_metric("layerhold_requests_total", &labels, enough)
            .await;
    }
}

#[tokio::test]
async fn responses_without_a_body_end_too() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    let labels = [("end", "complete")];
    let before = proxy.metric("layerhold_responses_total", &labels).await;
    let request = proxy.blob(APP, blob.digest());
    let etag = format!("\"{}\"", blob.digest());
    request
        .header("If-None-Match", etag)
        .whole()
        .await
        .is(304, b"");
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    proxy.head(target).whole().await.is(200, b"");
    proxy.get("/v2/").whole().await.is(200, b"{}");
    proxy
        .wait_for_metric("layerhold_responses_total", &labels, |it| {
            it == before + 3.0
        })
        .await;
}

#[tokio::test]
async fn a_body_that_failed_is_not_one_that_was_abandoned() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    upstream.always(get(blob.digest()), Fault::Corrupt(9));
    proxy.blob(APP, blob.digest()).whole().await;
    proxy
        .wait_for_metric("layerhold_responses_total", &[("end", "failed")], |it| {
            it == 1.0
        })
        .await;
    let abandoned = [("end", "abandoned")];
    assert_eq!(
        proxy.metric("layerhold_responses_total", &abandoned).await,
        0.0
    );
}

#[tokio::test]
async fn what_upstream_was_asked_and_sent_is_counted() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(3 * MIB);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    proxy.manifest(APP, "missing").whole().await;

    let of = [("upstream", ONE)];
    let bytes = proxy.metric("layerhold_upstream_bytes_total", &of).await;
    assert!(bytes >= 3.0 * 1024.0 * 1024.0, "{bytes}");
    let ok = [("upstream", ONE), ("status", "200")];
    assert_eq!(
        proxy.metric("layerhold_upstream_requests_total", &ok).await,
        1.0
    );
    let missing = [("upstream", ONE), ("status", "404")];
    assert!(
        proxy
            .metric("layerhold_upstream_requests_total", &missing)
            .await
            >= 1.0
    );
    let timed = proxy
        .metric("layerhold_upstream_first_byte_seconds_count", &of)
        .await;
    assert!(timed >= 2.0);
}

#[tokio::test]
async fn the_quota_that_upstream_tells_is_shown() {
    let (upstream, proxy) = pair().await;
    upstream.add_header("ratelimit-remaining", "76;w=21600");
    upstream.add_header("ratelimit-limit", "100;w=21600");
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    proxy.pull_manifest(APP, "v1").await;
    let quota = proxy
        .metric("layerhold_upstream_quota_remaining", &[("upstream", ONE)])
        .await;
    assert_eq!(quota, 76.0);
    let limit = proxy
        .metric("layerhold_upstream_quota_limit", &[("upstream", ONE)])
        .await;
    assert_eq!(limit, 100.0);
}

#[tokio::test]
async fn labels_are_of_closed_sets() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[MIB]);
    upstream.serve_image("very/particular", "tagged", &image);
    upstream.once(any("very"), Fault::Status(503));
    for target in [
        "/v2/very/particular/manifests/tagged".to_owned(),
        format!("/v2/very/particular/blobs/{}", image.config.digest()),
        "/v2/very/particular/manifests/missing?ns=stranger.example".to_owned(),
        "/v2/very/particular/mischief".to_owned(),
    ] {
        proxy.get(&target).whole().await;
        Request::new(proxy.registry, "BREW", target).whole().await;
    }
    let metrics = proxy.metrics().await;
    let address = upstream.address().to_string();
    for word in [
        "very",
        "particular",
        "tagged",
        "stranger",
        "sha256",
        "BREW",
        &address,
    ] {
        assert!(!metrics.contains(word), "{word} in\n{metrics}");
    }
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            line.starts_with("layerhold_") || line.starts_with("process_"),
            "{line}"
        );
    }
    let info = sum(
        &metrics,
        "layerhold_build_info",
        &[("version", env!("CARGO_PKG_VERSION"))],
    );
    assert_eq!(info, 1.0);
}

#[tokio::test]
async fn the_metrics_of_the_store_follow_it() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(3 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));
    let pull = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    for (name, wanted) in [("layerhold_fills", 1.0), ("layerhold_followers", 1.0)] {
        assert_eq!(proxy.metric(name, &[]).await, wanted, "{name}");
    }
    gate.open();
    pull.is(&blob).await;
    proxy.wait_for_fills("published", 1.0).await;
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 1.0);
    let used = proxy
        .metric("layerhold_cache_bytes", &[("state", "used")])
        .await;
    assert!(used >= 3.0 * 1024.0 * 1024.0, "{used}");
    proxy
        .wait_for_metric("layerhold_followers", &[], |it| it == 0.0)
        .await;
}

#[tokio::test]
async fn each_port_has_its_own_business() {
    let (upstream, proxy) = pair().await;
    for target in ["/livez", "/readyz"] {
        assert_eq!(proxy.admin(target).await.head.status, 200, "{target}");
        assert_eq!(proxy.get(target).whole().await.head.status, 404, "{target}");
    }
    assert_eq!(proxy.get("/metrics").whole().await.head.status, 404);
    assert_eq!(proxy.admin("/v2/").await.head.status, 404);
    assert_eq!(proxy.admin("/").await.head.status, 404);
    let metrics = proxy.admin("/metrics").await;
    let media_type = metrics.head.header("content-type").unwrap();
    assert!(media_type.starts_with("text/plain"), "{media_type}");
    assert!(upstream.log().is_empty());
}

#[tokio::test]
async fn an_error_as_the_answer_to_head_is_complete() {
    let (_upstream, proxy) = pair().await;
    for target in ["/v2/team/app/manifests/missing", "/v2/team/mischief"] {
        let status = proxy.head(target).whole().await.head.status;
        assert_eq!(status, 404, "{target}");
    }
    proxy
        .wait_for_metric("layerhold_responses_total", &[("end", "complete")], |it| {
            it == 2.0
        })
        .await;
    let abandoned = [("end", "abandoned")];
    let abandoned = proxy.metric("layerhold_responses_total", &abandoned).await;
    assert_eq!(abandoned, 0.0);
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_is_counted() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Head);
    let client = proxy.blob(APP, blob.digest()).dispatch().await;
    gate.reached().await;
    drop(client);
    proxy
        .wait_for_metric("layerhold_requests_total", &[("status", "499")], |it| {
            it == 1.0
        })
        .await;
    let abandoned = [("end", "abandoned")];
    proxy
        .wait_for_metric("layerhold_responses_total", &abandoned, |it| it == 1.0)
        .await;
}

/// Bytes that needed no transfer, by the upstream of the repository that was proven to hold them.
async fn deduplicated(proxy: &TestProxy, upstream: &str) -> f64 {
    let of = [("upstream", upstream)];
    proxy
        .metric("layerhold_deduplicated_bytes_total", &of)
        .await
}

#[tokio::test]
async fn what_another_repository_brought_is_counted_once_for_each_that_holds_it() {
    let (one, two) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&one).and(TWO, &two).start().await;
    let image = Image::random(&[MIB, 3]);
    let there = format!("{TWO}/{APP}");
    one.serve_image(APP, "v1", &image);
    one.serve_image("other/app", "v1", &image);
    two.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        proxy.wait_for_hit(APP, blob).await;
    }
    assert_eq!(
        deduplicated(&proxy, ONE).await,
        0.0,
        "one's own is no other's"
    );

    let manifest = image.manifest.bytes().len();
    let sizes = image.blobs().map(Blob::len).sum::<usize>() + manifest;
    for repository in ["other/app", &there] {
        for _ in 0..2 {
            proxy.pull_manifest(repository, "v1").await;
            for blob in image.blobs() {
                proxy.pull_blob(repository, blob).await;
            }
        }
    }
    for upstream in [ONE, TWO] {
        assert_eq!(
            deduplicated(&proxy, upstream).await,
            sizes as f64,
            "{upstream}"
        );
    }
    let moved = [("upstream", TWO)];
    let moved = proxy.metric("layerhold_upstream_bytes_total", &moved).await;
    assert_eq!(moved, 0.0);
}

#[tokio::test]
async fn what_is_on_its_way_through_another_repository_is_deduplicated_too() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob("other/app", &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));
    let first = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    let second = proxy.blob("other/app", blob.digest()).send().await;
    let third = proxy.blob(APP, blob.digest()).send().await;
    gate.open();
    for answer in [first, second, third] {
        answer.is(&blob).await;
    }
    assert_eq!(deduplicated(&proxy, ONE).await, blob.len() as f64);
}

#[tokio::test]
async fn a_proxy_that_stops_tells_what_it_saved() {
    let upstream = FakeRegistry::start().await;
    let binary = Binary::start(&TestProxy::in_front_of(&upstream)).await;
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob("other/app", &blob);
    binary.pull_blob(APP, &blob).await;
    binary.wait_for_fills("published", 1.0).await;
    binary.pull_blob(APP, &blob).await;
    binary.pull_blob("other/app", &blob).await;
    binary.terminate();
    let line = binary
        .wait_for_log(|line| says(line, "bytes since the start"))
        .await;
    let number = |name: &str| field(&line, name).unwrap().as_u64().unwrap();
    assert_eq!(number("sent"), 3 << 20);
    assert_eq!(number("from_upstreams"), 1 << 20);
    assert_eq!(number("saved"), 2 << 20);
    assert_eq!(number("percent"), 66);
    assert_eq!(number("deduplicated"), 1 << 20);
    assert_eq!(line["level"], "INFO");
    assert_eq!(binary.exited().await.code(), Some(0));
}
