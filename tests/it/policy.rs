//! What the operator does not let be pulled is refused, whatever is here already.

use crate::harness::{APP, Binary, FakeRegistry, Image, KIB, TestProxy, get, poll};

const RULES: &str = "team/app:latest";

#[tokio::test]
async fn what_is_denied_is_refused_by_its_rule_and_nobody_is_asked() {
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    upstream.serve_image(APP, "latest", &image);
    upstream.serve_image("team/secret", "v1", &image);
    let proxy = TestProxy::in_front_of(&upstream)
        .upstream("allow", vec!["team/*"])
        .upstream("deny", vec!["team/secret", RULES])
        .start()
        .await;
    let (manifest, blob) = (image.manifest.digest(), image.layers[0].digest());
    let denied = |pattern| format!("upstream[one.example].deny refuses this: \"{pattern}\"");
    let unlisted = "upstream[one.example].allow does not list this".to_owned();
    for (path, message) in [
        (format!("/v2/{APP}/manifests/latest"), denied(RULES)),
        (
            "/v2/team/secret/manifests/v1".to_owned(),
            denied("team/secret"),
        ),
        (
            format!("/v2/team/secret/manifests/{manifest}"),
            denied("team/secret"),
        ),
        (
            format!("/v2/team/secret/blobs/{blob}"),
            denied("team/secret"),
        ),
        (
            "/v2/team/secret/tags/list".to_owned(),
            denied("team/secret"),
        ),
        (
            format!("/v2/team/secret/referrers/{manifest}"),
            denied("team/secret"),
        ),
        ("/v2/other/app/manifests/v1".to_owned(), unlisted),
    ] {
        let (refused, probed) = (
            proxy.get(&path).whole().await,
            proxy.head(&path).whole().await,
        );
        assert_eq!(
            (refused.head.status, probed.head.status),
            (403, 403),
            "{path}"
        );
        let body: serde_json::Value = serde_json::from_str(&refused.text()).unwrap();
        assert_eq!(body["errors"][0]["code"], "DENIED", "{path}");
        assert_eq!(body["errors"][0]["message"], *message, "{path}");
    }
    assert_eq!(upstream.log().len(), 0);
    let rule = [("upstream", "one.example"), ("rule", "deny")];
    assert_eq!(proxy.metric("layerhold_denied_total", &rule).await, 12.0);
    proxy.pull_manifest(APP, "v1").await;
}

#[tokio::test]
async fn what_is_here_is_refused_as_soon_as_a_rule_says_so() {
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let builder = TestProxy::in_front_of(&upstream);
    let binary = Binary::start(&builder).await;
    binary.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        binary.wait_for_hit(APP, blob).await;
    }
    let before = upstream.log().len();

    builder.upstream("deny", vec![APP]).file();
    binary.hang_up();
    poll("the rule", async || {
        let refused = binary.manifest(APP, "v1").whole().await;
        (refused.head.status == 403).then_some(())
    })
    .await;
    let refused = binary.blob(APP, image.layers[0].digest()).whole().await;
    assert_eq!(refused.head.status, 403);
    let told = |line: &serde_json::Value| {
        line["message"] == "refused by a rule" && line["level"] == "INFO"
    };
    let line = binary.wait_for_log(told).await;
    let rule = format!("upstream[one.example].deny refuses this: {APP:?}");
    assert_eq!(line["error"], *rule);
    // Of the pulls before the rule each tag was checked by a HEAD; of those after it nothing is heard.
    let log = upstream.log();
    let mut since = log.iter().skip(before);
    assert!(since.all(|it| it.method == "HEAD"));
}

#[tokio::test]
async fn where_a_digest_is_required_a_tag_is_refused() {
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let proxy = TestProxy::in_front_of(&upstream)
        .upstream("require_digest", vec!["team/*"])
        .start()
        .await;
    for asked in [
        proxy.manifest(APP, "v1"),
        proxy.head(format!("/v2/{APP}/manifests/v1")),
    ] {
        assert_eq!(asked.whole().await.head.status, 403);
    }
    assert_eq!(upstream.count(&get("v1")), 0);
    proxy.pull_manifest(APP, image.manifest.digest()).await;
    proxy.pull_blob(APP, &image.layers[0]).await;
    let list = proxy.get(format!("/v2/{APP}/tags/list")).whole().await;
    assert_eq!(list.head.status, 200);
}
