//! What the operator does not let be pulled is refused, whatever is here already.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{
    APP, Binary, FakeRegistry, Image, KIB, Manifest, ProxyBuilder, TestProxy, get, poll,
};

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

/// A verifier of these words of the shell, which notes down what it was asked.
fn verifier(builder: ProxyBuilder, home: &Path, script: &str) -> ProxyBuilder {
    let program = home.join("verify");
    // Not written by this process: another test's child may hold the file open a moment longer.
    let text = format!(
        "#!/bin/sh\ncd '{}'\necho \"$@\" >> asked\ncat > input\n{script}\n",
        home.display()
    );
    let written = Command::new("sh")
        .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""])
        .args([program.as_os_str(), text.as_ref()])
        .status();
    assert!(written.unwrap().success());
    builder.upstream("verifier", program.to_str().unwrap())
}

fn asked(home: &Path) -> Vec<String> {
    let asked = fs::read_to_string(home.join("asked")).unwrap_or_default();
    asked.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_manifest_is_given_out_once_its_verifier_says_yes() {
    let upstream = FakeRegistry::start().await;
    let (good, bad) = (Image::random(&[KIB]), Image::random(&[KIB]));
    upstream.serve_image(APP, "good", &good);
    upstream.serve_image(APP, "bad", &bad);
    let home = tempfile::tempdir().unwrap();
    let script = format!(
        "case $1 in *{}) exit 0;; esac\necho unsigned; exit 1",
        good.manifest.digest()
    );
    let builder = verifier(TestProxy::in_front_of(&upstream), home.path(), &script);
    let proxy = builder.start().await;

    proxy.pull_manifest(APP, "good").await;
    proxy.pull_manifest(APP, "good").await;
    proxy.pull_manifest(APP, good.manifest.digest()).await;
    let image = format!("one.example/{APP}@{}", good.manifest.digest());
    assert_eq!(asked(home.path()), [format!("{image} good")]);
    let input = fs::read_to_string(home.path().join("input")).unwrap();
    let input: serde_json::Value = serde_json::from_str(&input).unwrap();
    assert_eq!(input["image"], *image);
    assert_eq!(input["media_type"], good.manifest.media_type());

    // By tag and by digest, GET and HEAD, cold and here.
    for _ in 0..2 {
        for reference in ["bad", bad.manifest.digest()] {
            let path = format!("/v2/{APP}/manifests/{reference}");
            let (whole, probed) = (
                proxy.get(&path).whole().await,
                proxy.head(&path).whole().await,
            );
            assert_eq!(
                (whole.head.status, probed.head.status),
                (403, 403),
                "{path}"
            );
            assert!(
                whole
                    .text()
                    .contains("upstream[one.example].verifier refuses this")
            );
        }
    }
    assert_eq!(asked(home.path()).len(), 2);
    let refused = [("upstream", "one.example"), ("rule", "verifier")];
    assert_eq!(proxy.metric("layerhold_denied_total", &refused).await, 8.0);
    let asked = [("upstream", "one.example"), ("result", "refused")];
    assert_eq!(
        proxy.metric("layerhold_verifications_total", &asked).await,
        1.0
    );
    // A verifier is of manifests.
    proxy.pull_blob(APP, &bad.layers[0]).await;
}

#[tokio::test]
async fn without_an_answer_of_the_verifier_nothing_is_given_out() {
    for script in ["exit 2", "kill -9 $$", "head -c 100000 /dev/zero"] {
        let upstream = FakeRegistry::start().await;
        upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
        let home = tempfile::tempdir().unwrap();
        let builder = verifier(TestProxy::in_front_of(&upstream), home.path(), script);
        let proxy = builder.start().await;
        let refused = proxy.manifest(APP, "v1").whole().await;
        assert_eq!(refused.head.status, 503, "{script}");
        assert!(refused.head.header("retry-after").is_some(), "{script}");
        let failed = [("upstream", "one.example"), ("result", "failed")];
        assert_eq!(
            proxy.metric("layerhold_verifications_total", &failed).await,
            1.0
        );
    }
}

#[tokio::test]
async fn what_an_index_lists_is_let_pass_with_it() {
    let upstream = FakeRegistry::start().await;
    let (child, stranger) = (Image::random(&[KIB]), Image::random(&[KIB]));
    let index = Manifest::index(&[&child.manifest]);
    upstream.serve_image(APP, "child", &child);
    upstream.serve_image(APP, "stranger", &stranger);
    upstream.tag(APP, "index", &index);
    let home = tempfile::tempdir().unwrap();
    let script = format!("case $1 in *{}) exit 0;; esac; exit 1", index.digest());
    let builder = verifier(TestProxy::in_front_of(&upstream), home.path(), &script);
    let proxy = builder.start().await;
    proxy.pull_manifest(APP, "index").await;
    proxy.pull_manifest(APP, child.manifest.digest()).await;
    let refused = proxy
        .manifest(APP, stranger.manifest.digest())
        .whole()
        .await;
    assert_eq!(refused.head.status, 403);
    assert_eq!(asked(home.path()).len(), 2);
}
