//! SIGHUP: the configuration is read again, and nobody who pulls notices.

use std::fs;
use std::path::Path;

use crate::harness::proxy::TWO;
use crate::harness::{
    APP, At, Authority, Binary, Blob, Demand, FakeRegistry, Image, KIB, MIB, TestProxy, TlsFront,
    TokenServer, any, get, lose,
};

const RELOADED: &str = "configuration reloaded";

/// Has the binary read its file again, and waits until it says this.
async fn reload(binary: &Binary, message: &str) {
    let before = binary.log().len();
    binary.hang_up();
    let message = message.to_owned();
    crate::harness::poll("the reload", async || {
        let log = binary.log();
        let mut since = log.iter().skip(before);
        since
            .any(|line| line["message"] == message.as_str())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reload_takes_other_upstreams_and_lets_transfers_end() {
    let (one, two) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let builder = TestProxy::in_front_of(&one);
    let binary = Binary::start(&builder).await;
    let blob = Blob::random(3 * MIB);
    one.serve_blob(APP, &blob);
    let image = Image::random(&[KIB]);
    two.serve_image(APP, "v1", &image);
    let unknown = binary.manifest(&format!("{TWO}/{APP}"), "v1").whole().await;
    assert_eq!(unknown.head.status, 404);
    let gate = one.hold(get(blob.digest()), At::Byte(MIB));
    let mut answer = binary.blob(APP, blob.digest()).send().await;
    answer.read(KIB).await;
    gate.reached().await;

    TestProxy::in_front_of_at(&builder, &two)
        .and(TWO, &two)
        .file();
    reload(&binary, RELOADED).await;

    let pulled = binary.pull_manifest(&format!("{TWO}/{APP}"), "v1").await;
    assert_eq!(pulled.bytes, image.manifest.bytes());
    let pulled = binary.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, image.manifest.bytes());
    gate.open();
    answer.continues(&blob, KIB).await;
}

#[tokio::test]
async fn pitfall_48_a_broken_file_changes_nothing_and_says_so() {
    let one = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&one);
    let binary = Binary::start(&builder).await;
    let image = Image::random(&[KIB]);
    one.serve_image(APP, "v1", &image);
    let file = builder.file();
    for text in ["no toml", "lisen = 1", "[[upstream]]\nnamespace = \"x\""] {
        fs::write(&file, text).unwrap();
        reload(
            &binary,
            "the configuration could not be reloaded, going on with the old one",
        )
        .await;
        binary.pull_manifest(APP, "v1").await;
    }
    let unreadable = builder.clone().upstream("ca_file", "/nowhere/ca.pem");
    unreadable.file();
    reload(
        &binary,
        "the configuration could not be reloaded, going on with the old one",
    )
    .await;
    binary.pull_manifest(APP, "v1").await;
    builder.file();
    reload(&binary, RELOADED).await;
    binary.pull_manifest(APP, "v1").await;
}

#[tokio::test]
async fn a_reload_changes_how_long_tags_are_believed_and_forgets_no_tag() {
    let one = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&one).set("freshness.fresh_for", "1h");
    let binary = Binary::start(&builder).await;
    let (old, new) = (Image::random(&[KIB]), Image::random(&[KIB]));
    one.serve_image(APP, "v1", &old);
    binary.pull_manifest(APP, "v1").await;
    one.serve_image(APP, "v1", &new);
    assert_eq!(
        binary.pull_manifest(APP, "v1").await.bytes,
        old.manifest.bytes()
    );

    builder.clone().set("freshness.fresh_for", "0s").file();
    reload(&binary, RELOADED).await;
    assert_eq!(
        binary.pull_manifest(APP, "v1").await.bytes,
        new.manifest.bytes()
    );
    binary.wait_for_fills("published", 2.0).await;

    builder.clone().set("freshness.fresh_for", "2h").file();
    reload(&binary, RELOADED).await;
    let asked = one.count(&any(""));
    assert_eq!(
        binary.pull_manifest(APP, "v1").await.bytes,
        new.manifest.bytes()
    );
    assert_eq!(one.count(&any("")), asked);
}

#[tokio::test]
async fn what_only_a_restart_can_change_is_named() {
    let one = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&one);
    let binary = Binary::start(&builder).await;
    builder.clone().set("cache.size", "2GiB").file();
    reload(&binary, "a change of the configuration needs a restart").await;
    let warned = |line: &serde_json::Value| line["part"] == "cache";
    binary.wait_for_log(warned).await;
    let parts = binary
        .log()
        .into_iter()
        .filter(|line| line["part"].is_string());
    assert_eq!(parts.count(), 1);
}

#[tokio::test]
async fn a_reload_that_would_wait_for_ever_keeps_nobody_from_stopping() {
    let one = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&one).upstream("username", "robot");
    let password = builder.write("password", "hush");
    let builder = builder.upstream("password_file", password.as_str());
    let binary = Binary::start(&builder).await;
    lose(Path::new(&password));
    rustix::fs::mkfifoat(rustix::fs::CWD, &password, rustix::fs::Mode::RWXU).unwrap();
    reload(
        &binary,
        "the configuration could not be reloaded, going on with the old one",
    )
    .await;
    binary.terminate();
    assert!(binary.exited().await.success());
}

#[tokio::test]
async fn an_upstream_that_has_not_changed_goes_on_as_it_was() {
    let (tokens, one, two) = (
        TokenServer::start().await,
        FakeRegistry::start().await,
        FakeRegistry::start().await,
    );
    one.require_token(&tokens);
    let pull = async |binary: &Binary| {
        let blob = Blob::random(KIB);
        one.serve_blob(APP, &blob);
        binary.pull_blob(APP, &blob).await;
    };
    let builder = TestProxy::in_front_of(&one);
    let binary = Binary::start(&builder).await;
    pull(&binary).await;
    let before = (tokens.exchanges(), one.connections());

    // Another upstream is new, and of this one only what is not its client's.
    TestProxy::in_front_of_at(&builder, &one)
        .upstream("hosts", vec!["one.cache.example"])
        .upstream("fresh_for", "1m")
        .and(TWO, &two)
        .file();
    reload(&binary, RELOADED).await;
    pull(&binary).await;
    assert_eq!((tokens.exchanges(), one.connections()), before);
    // It was refused once, before it had its token.
    let refused = one.log().iter().filter(|it| it.status == 401).count();
    assert_eq!(refused, 1);

    TestProxy::in_front_of_at(&builder, &one)
        .upstream("redirect_networks", vec!["10.0.0.0/8"])
        .file();
    reload(&binary, RELOADED).await;
    pull(&binary).await;
    assert_eq!(tokens.exchanges(), before.0 + 1);
    assert!(one.connections() > before.1);
}

#[tokio::test]
async fn a_file_that_changed_under_its_name_is_read_at_a_reload() {
    let registry = FakeRegistry::start().await;
    let (right, wrong) = (Authority::new(), Authority::new());
    let front = TlsFront::start(&registry, &right, &["127.0.0.1"], Demand::Nothing).await;
    let builder = TestProxy::in_front_of(&registry);
    let file = builder.write("ca.pem", &wrong.pem());
    let builder = builder
        .set("freshness.retry_after", "1ms")
        .upstream("url", front.url("127.0.0.1"))
        .upstream("ca_file", file);
    let binary = Binary::start(&builder).await;
    let pull = async || {
        let blob = Blob::random(KIB);
        registry.serve_blob(APP, &blob);
        binary.blob(APP, blob.digest()).whole().await.head.status
    };
    assert_eq!(pull().await, 502);
    builder.write("ca.pem", &right.pem());
    assert_eq!(pull().await, 502);
    reload(&binary, RELOADED).await;
    assert_eq!(pull().await, 200);
    builder.write("ca.pem", &wrong.pem());
    reload(&binary, RELOADED).await;
    assert_eq!(pull().await, 502);
}
