//! An operator says what is to be forgotten.

use crate::harness::proxy::{ONE, TWO};
use crate::harness::{
    APP, At, Binary, Blob, FakeRegistry, Image, KIB, MIB, Manifest, Request, TestProxy, any, get,
    head, pair,
};

const OTHER: &str = "other/app";

/// A registry, and a proxy that asks it about nothing twice within an hour.
async fn lasting() -> (FakeRegistry, TestProxy) {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.fresh_for", "1h")
        .set("freshness.negative_for", "1h")
        .start()
        .await;
    (upstream, proxy)
}

/// `reference` at the first upstream.
fn at_one(reference: &str) -> String {
    format!("{ONE}/{reference}")
}

/// Waits until this many blobs are published.
async fn wait_for_blobs(proxy: &TestProxy, n: f64) {
    proxy
        .wait_for_metric("layerhold_cache_blobs", &[], |it| it == n)
        .await;
}

#[tokio::test]
async fn a_purged_tag_is_asked_again_however_fresh_it_was() {
    let (upstream, proxy) = lasting().await;
    let first = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &first);
    upstream.serve_image(APP, "v2", &first);
    for tag in ["v1", "v2", "v1", "v2"] {
        proxy.pull_manifest(APP, tag).await;
    }
    let second = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &second);
    upstream.serve_image(APP, "v2", &second);

    assert_eq!(proxy.purge(&at_one("team/app:v1")).await, (1, 0, 0));
    let asked = upstream.log().len();
    let pulled = proxy.pull_manifest(APP, "v2").await;
    assert_eq!(pulled.bytes, first.manifest.bytes());
    assert_eq!(upstream.log().len(), asked, "the other tag is still fresh");
    let pulled = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, second.manifest.bytes());

    assert_eq!(proxy.purge(&at_one("team/app:v3")).await, (0, 0, 0));
    let purged = [("kind", "tag")];
    assert_eq!(proxy.metric("layerhold_purged_total", &purged).await, 2.0);
}

#[tokio::test]
async fn what_a_purged_tag_points_to_is_still_here() {
    let (upstream, proxy) = lasting().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    proxy.pull_manifest(APP, "v1").await;
    proxy.purge(&at_one("team/app:v1")).await;
    proxy.pull_manifest(APP, "v1").await;
    assert_eq!(upstream.count(&head("/manifests/v1")), 2);
    assert_eq!(upstream.count(&get("/manifests/")), 1);
}

#[tokio::test]
async fn a_purged_tag_does_not_stand_in_and_is_not_back_after_a_restart() {
    let (upstream, proxy) = lasting().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    proxy.pull_manifest(APP, "v1").await;
    wait_for_blobs(&proxy, 1.0).await;
    proxy.purge(&at_one("team/app:v1")).await;
    upstream.stop().await;
    let refused = proxy.manifest(APP, "v1").whole().await;
    assert_eq!(refused.head.status, 502);
    let proxy = proxy.restart().await;
    let refused = proxy.manifest(APP, "v1").whole().await;
    assert_eq!(refused.head.status, 502);
}

#[tokio::test]
async fn pitfall_47_a_purge_drops_what_was_not_there() {
    let (upstream, proxy) = lasting().await;
    let image = Image::random(&[KIB]);
    let (manifest, blob) = (image.manifest.digest(), image.config.digest());
    let all = || {
        [
            proxy.manifest(APP, "v1"),
            proxy.manifest(APP, manifest),
            proxy.blob(APP, blob),
        ]
    };
    for request in all() {
        assert_eq!(request.whole().await.head.status, 404);
    }
    upstream.serve_image(APP, "v1", &image);
    let asked = upstream.log().len();
    for request in all() {
        assert_eq!(request.whole().await.head.status, 404, "it is remembered");
    }
    assert_eq!(upstream.log().len(), asked);

    proxy.purge(&at_one("team/app:v1")).await;
    proxy.purge(manifest).await;
    proxy.purge(&at_one(&format!("team/app@{blob}"))).await;
    for request in all() {
        assert_eq!(request.whole().await.head.status, 200);
    }
}

#[tokio::test]
async fn pitfall_47_a_purged_repository_has_no_404_left() {
    let (upstream, proxy) = lasting().await;
    let image = Image::random(&[KIB]);
    let blob = image.config.digest();
    let all = || {
        [
            proxy.manifest(APP, "v1"),
            proxy.blob(APP, blob),
            proxy.blob(OTHER, blob),
        ]
    };
    for request in all() {
        assert_eq!(request.whole().await.head.status, 404);
    }
    upstream.serve_image(APP, "v1", &image);
    upstream.serve_blob(OTHER, &image.config);
    proxy.purge(&at_one(APP)).await;
    let mut statuses = Vec::new();
    for request in all() {
        statuses.push(request.whole().await.head.status);
    }
    assert_eq!(statuses, [200, 200, 404], "the other's is none of it");
}

#[tokio::test]
async fn a_purged_digest_is_fetched_again() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob(OTHER, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    proxy.wait_for_hit(OTHER, &blob).await;
    let used = [("state", "used")];
    let before = proxy.metric("layerhold_cache_bytes", &used).await;

    assert_eq!(proxy.purge(blob.digest()).await, (0, 0, 1));
    assert!(!proxy.published(blob.digest()).exists());
    let after = proxy.metric("layerhold_cache_bytes", &used).await;
    assert_eq!(before - after, 1024.0 * 1024.0);
    assert_eq!(proxy.purge(blob.digest()).await, (0, 0, 0));

    let proxy = proxy.restart().await;
    proxy.wait_for_hit(OTHER, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
}

#[tokio::test]
async fn a_purged_manifest_is_not_served_from_memory() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    let digest = image.manifest.digest();
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, digest).await;
    wait_for_blobs(&proxy, 1.0).await;
    proxy.pull_manifest(APP, digest).await;
    let reference = at_one(&format!("team/app@{digest}"));
    assert_eq!(proxy.purge(&reference).await, (0, 0, 1));
    proxy.pull_manifest(APP, digest).await;
    assert_eq!(upstream.count(&get(digest)), 2);
}

#[tokio::test]
async fn a_purged_repository_proves_itself_again_and_others_need_not() {
    let (upstream, proxy) = lasting().await;
    let image = Image::random(&[MIB]);
    let below = "team/app/below";
    for repository in [APP, OTHER, below] {
        upstream.serve_image(repository, "v1", &image);
        proxy.pull_manifest(repository, "v1").await;
        for blob in image.blobs() {
            proxy.wait_for_hit(repository, blob).await;
        }
    }
    // The manifest and its blobs.
    assert_eq!(proxy.purge(&at_one(APP)).await, (1, 3, 0));
    let asked = upstream.log().len();
    for repository in [OTHER, below] {
        proxy.pull_manifest(repository, "v1").await;
        for blob in image.blobs() {
            proxy.pull_blob(repository, blob).await;
        }
    }
    assert_eq!(upstream.log().len(), asked, "others are not asked again");

    let proxy = proxy.restart().await;
    proxy.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        let hit = proxy.pull_blob(APP, blob).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
    }
    let again = upstream.log().split_off(asked);
    let methods: Vec<&str> = again.iter().map(|it| it.method.as_str()).collect();
    // The tag, the manifest, the config, the layer: no bytes.
    assert_eq!(methods, ["HEAD"; 4]);
}

#[tokio::test]
async fn a_purged_repository_has_no_list_left() {
    let (upstream, proxy) = pair().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    let list = || proxy.get(format!("/v2/{APP}/tags/list"));
    assert_eq!(list().whole().await.head.status, 200);
    upstream.stop().await;
    let stale = list().whole().await;
    assert_eq!(stale.head.status, 200, "{:?}", stale.head);
    proxy.purge(&at_one(APP)).await;
    assert_eq!(list().whole().await.head.status, 502);
}

#[tokio::test]
async fn upstreams_do_not_share_a_repository() {
    let (one, two) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of(&one)
        .and(TWO, &two)
        .set("freshness.fresh_for", "1h")
        .start()
        .await;
    let there = format!("{TWO}/{APP}");
    one.serve_image(APP, "v1", &Image::random(&[KIB]));
    two.serve_image(APP, "v1", &Image::random(&[KIB]));
    proxy.pull_manifest(APP, "v1").await;
    proxy.pull_manifest(&there, "v1").await;
    assert_eq!(proxy.purge(&there).await, (1, 1, 0));
    let asked = one.log().len();
    proxy.pull_manifest(APP, "v1").await;
    assert_eq!(one.log().len(), asked);
}

#[tokio::test]
async fn an_official_image_has_the_name_that_people_give_it() {
    let hub = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of_named("docker.io", &hub)
        .set("freshness.fresh_for", "1h")
        .start()
        .await;
    hub.serve_image("library/debian", "12", &Image::random(&[KIB]));
    proxy.pull_manifest("debian", "12").await;
    assert_eq!(proxy.purge("docker.io/debian:12").await, (1, 0, 0));
    proxy.pull_manifest("debian", "12").await;
    assert_eq!(hub.count(&head("/v2/library/debian/manifests/12")), 2);
    let said = proxy.purging(&["docker.io/debian"]).whole().await;
    assert!(
        said.text().contains("docker.io/library/debian"),
        "{}",
        said.text()
    );
}

#[tokio::test]
async fn a_check_under_way_answers_who_waits_for_it_and_is_not_remembered() {
    let (upstream, proxy) = lasting().await;
    let first = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &first);
    let gate = upstream.hold(head("/manifests/v1"), At::Head);
    let waiting = proxy.manifest(APP, "v1").dispatch().await;
    gate.reached().await;
    proxy.purge(&at_one("team/app:v1")).await;
    // Who comes now does not rest on a question that was sent before.
    let later = proxy.manifest(APP, "v1").dispatch().await;
    gate.reached_by(2).await;
    gate.open();
    for connection in [waiting, later] {
        let answered = connection.head("GET").await.whole().await;
        assert_eq!(answered.bytes, first.manifest.bytes());
    }
    proxy.pull_manifest(APP, "v1").await;
    assert_eq!(upstream.count(&head("/manifests/v1")), 2);
}

#[tokio::test]
async fn a_check_that_was_purged_leaves_nothing_on_disk() {
    let (upstream, proxy) = lasting().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    let gate = upstream.hold(head("/manifests/v1"), At::Head);
    let waiting = proxy.manifest(APP, "v1").dispatch().await;
    gate.reached().await;
    proxy.purge(&at_one(APP)).await;
    gate.open();
    let answered = waiting.head("GET").await.whole().await;
    assert_eq!(answered.head.status, 200);
    wait_for_blobs(&proxy, 1.0).await;
    let proxy = proxy.restart().await;
    proxy.pull_manifest(APP, "v1").await;
    assert_eq!(upstream.count(&head("/manifests/v1")), 2);
}

#[tokio::test]
async fn a_proof_under_way_serves_who_waits_for_it_and_is_not_remembered() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob(OTHER, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    let gate = upstream.hold(head(OTHER), At::Head);
    let waiting = proxy.blob(OTHER, blob.digest()).dispatch().await;
    gate.reached().await;
    proxy.purge(&at_one(OTHER)).await;
    let later = proxy.blob(OTHER, blob.digest()).dispatch().await;
    gate.reached_by(2).await;
    gate.open();
    for connection in [waiting, later] {
        connection.head("GET").await.is(&blob).await;
    }
    proxy.pull_blob(OTHER, &blob).await;
    assert_eq!(upstream.count(&head(OTHER)), 2);
}

#[tokio::test]
async fn a_reader_of_purged_content_reads_on() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(64 * MIB);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    let mut reading = proxy.blob(APP, blob.digest()).send().await;
    reading.read(MIB).await;
    assert_eq!(proxy.purge(blob.digest()).await, (0, 0, 1));
    let used = [("state", "used")];
    let bytes = proxy.metric("layerhold_cache_bytes", &used).await;
    assert!(
        bytes >= 64.0 * 1024.0 * 1024.0,
        "it counts while it is read"
    );
    reading.continues(&blob, MIB).await;
    proxy
        .wait_for_metric("layerhold_cache_bytes", &used, |it| it < 1024.0)
        .await;
}

#[tokio::test]
async fn a_fill_under_way_is_not_disturbed() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(4 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));
    let pulling = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    assert_eq!(proxy.purge(blob.digest()).await, (0, 0, 0));
    assert_eq!(proxy.purge(&at_one(APP)).await, (0, 0, 0));
    gate.open();
    pulling.is(&blob).await;
    proxy.wait_for_fills("published", 1.0).await;
    // Its repository was purged meanwhile, so what was asked before is no proof.
    let hit = proxy.pull_blob(APP, &blob).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
    assert_eq!(upstream.count(&get(blob.digest())), 1);
    assert_eq!(upstream.count(&head(blob.digest())), 1);
}

#[tokio::test]
async fn only_an_operator_purges() {
    let (upstream, proxy) = lasting().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    proxy.pull_manifest(APP, "v1").await;
    let tag = at_one("team/app:v1");
    let body = format!(r#"{{"reference": "{tag}"}}"#);
    let post = |address| Request::new(address, "POST", "/purge");
    let json = |request: Request| request.header("Content-Type", "application/json");

    let refused = proxy.admin("/purge").await;
    assert_eq!(refused.head.status, 405);
    assert_eq!(refused.head.header("allow"), Some("POST"));
    let by_page = proxy
        .purging(&[&tag])
        .header("Origin", "http://evil.example");
    let long = format!("{}{}", " ".repeat(64 * KIB), body);
    let wrong = body.replace("v1\"", "v 1\"");
    let one_is_wrong = format!(r#"{{"reference": ["{tag}", "debian"]}}"#);
    for (request, status) in [
        (by_page, 403),
        (post(proxy.admin).body(body.clone()), 415),
        (
            post(proxy.admin)
                .header("Content-Type", "text/plain")
                .body(body.clone()),
            415,
        ),
        (json(post(proxy.admin)).body(long), 413),
        (json(post(proxy.admin)).body("reference=all"), 400),
        (json(post(proxy.admin)).body("{}"), 400),
        (json(post(proxy.admin)).body(wrong), 400),
        (json(post(proxy.admin)).body(one_is_wrong), 400),
        // Not a word of it on the registry port.
        (json(post(proxy.registry)).body(body.clone()), 405),
    ] {
        let whole = request.whole().await;
        assert_eq!(whole.head.status, status, "{request:?}: {}", whole.text());
        if status != 405 {
            let said: serde_json::Value = serde_json::from_slice(&whole.bytes).unwrap();
            assert!(said["message"].is_string(), "{said}");
        }
    }
    proxy.pull_manifest(APP, "v1").await;
    assert_eq!(
        upstream.count(&head("/manifests/v1")),
        1,
        "nothing was purged"
    );
}

#[tokio::test]
async fn one_request_purges_several() {
    let (upstream, proxy) = lasting().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.tag(APP, "v2", &Manifest::oci(&image.config, &[]));
    proxy.pull_manifest(APP, "v1").await;
    proxy.pull_manifest(APP, "v2").await;
    let tags = [at_one("team/app:v1"), at_one("team/app:v2")];
    let said = proxy.purging(&[&tags[0], &tags[1]]).whole().await.text();
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    for (n, tag) in tags.iter().enumerate() {
        assert_eq!(report["purged"][n]["reference"], **tag);
        assert_eq!(report["purged"][n]["tags"], 1);
        assert_eq!(report["purged"][n]["kind"], "tag");
    }
}

#[tokio::test]
async fn a_proxy_that_stops_does_not_purge() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));
    let pulling = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    proxy.shut_down();
    crate::harness::poll("the directory to be released", async || {
        let refused = proxy.purging(&[&at_one(APP)]).whole().await;
        (refused.head.status == 503).then_some(())
    })
    .await;
    gate.open();
    pulling.is(&blob).await;
    proxy.stopped().await;
}

#[tokio::test]
async fn the_command_purges_at_a_running_proxy() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("freshness.fresh_for", "1h");
    let binary = Binary::start(&builder).await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    binary.pull_manifest(APP, "v1").await;
    binary.wait_for_hit(APP, &image.config).await;
    let (tag, blob) = (at_one("team/app:v1"), image.config.digest());
    let admin = binary.admin.to_string();
    let file = builder.file();
    let file = file.to_str().unwrap();

    let by_flag = [
        "purge",
        "--admin-listen",
        &admin,
        "--cache-dir",
        "/x",
        &tag,
        &tag,
    ];
    let (code, said, _) = Binary::command(&by_flag).await;
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with(&format!("{tag}: 1 tag, ")), "{said}");
    assert_eq!(lines[1..], [format!("{tag}: nothing was stored")]);
    let (code, said, _) = Binary::command(&["purge", "--admin", &admin, blob]).await;
    assert_eq!(
        (code, said),
        (Some(0), format!("{blob}: 1 blob, 600 bytes\n"))
    );
    binary.pull_manifest(APP, "v1").await;
    binary.pull_blob(APP, &image.config).await;
    assert_eq!(upstream.count(&any("/manifests/v1")), 2);
    assert_eq!(upstream.count(&get(blob)), 2);

    // What is wrong is one line, and nothing is asked.
    for words in [
        &["purge", "--admin", &admin, &tag, "debian"][..],
        &["purge", "--admin", &admin, "a.io/b:c/d"],
        &["purge", "--admin", "nowhere", &tag],
        // Of port 0 nobody knows what it became.
        &["purge", "--config", file, &tag],
        &["purge", "--admin", &admin],
    ] {
        let (code, said, error) = Binary::command(words).await;
        assert_eq!((code, said.as_str()), (Some(64), ""), "{words:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    binary.pull_manifest(APP, "v1").await;
    assert_eq!(upstream.count(&any("/manifests/v1")), 2);
    // A registry port is no admin port.
    let registry = binary.registry.to_string();
    let (code, _, error) = Binary::command(&["purge", "--admin", &registry, &tag]).await;
    assert_eq!((code, error.lines().count()), (Some(1), 1), "{error}");
    binary.kill().await;
    let (code, _, error) = Binary::command(&["purge", "--admin", &admin, &tag]).await;
    assert_eq!((code, error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("no proxy answers"), "{error}");
}

#[tokio::test]
async fn a_manifest_under_way_is_served_to_all_who_wait_for_it() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    let digest = image.manifest.digest();
    upstream.serve_image(APP, "v1", &image);
    let gate = upstream.hold(get(digest), At::Head);
    let mut waiting = vec![proxy.manifest(APP, digest).dispatch().await];
    gate.reached().await;
    for _ in 0..3 {
        waiting.push(proxy.manifest(APP, digest).dispatch().await);
    }
    proxy.purge(&at_one(APP)).await;
    gate.open();
    for connection in waiting {
        let answered = connection.head("GET").await.whole().await;
        assert_eq!(answered.bytes, image.manifest.bytes());
    }
    assert_eq!(upstream.count(&get(digest)), 1);
}
