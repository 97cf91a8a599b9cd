//! The harness tells the truth: a fake that did not cut where it says would make every other test a lie.

use crate::harness::script::Turns;
use crate::harness::{
    At, Blob, BlobHost, Connection, End, FakeRegistry, Fault, Image, KIB, MIB, Request,
    TokenServer, any, get, head,
};

fn blob_of(upstream: &FakeRegistry, blob: &Blob) -> Request {
    let target = format!("/v2/team/app/blobs/{}", blob.digest());
    Request::new(upstream.address(), "GET", target)
}

#[tokio::test]
async fn the_fake_serves_what_it_was_given() {
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[3 * MIB, 10]);
    upstream.serve_image("team/app", "v1", &image);

    for blob in image.blobs() {
        blob_of(&upstream, blob).send().await.is(blob).await;
    }
    let target = "/v2/team/app/manifests/v1";
    let manifest = Request::new(upstream.address(), "GET", target)
        .whole()
        .await;
    let head = manifest.is(200, image.manifest.bytes());
    assert_eq!(
        head.header("content-type"),
        Some(image.manifest.media_type())
    );
    assert_eq!(upstream.count(&get("/blobs/")), 3);
    assert_eq!(upstream.sent(&get(image.layers[0].digest())), 3 * MIB);
}

#[tokio::test]
async fn the_fake_serves_ranges() {
    let upstream = FakeRegistry::start().await;
    let blob = Blob::random(1000);
    upstream.serve_blob("team/app", &blob);
    for (range, place, expected) in [
        ("bytes=0-", "bytes 0-999/1000", 0..1000),
        ("bytes=990-", "bytes 990-999/1000", 990..1000),
        ("bytes=-3", "bytes 997-999/1000", 997..1000),
        ("bytes=5-7", "bytes 5-7/1000", 5..8),
        ("bytes=5-7000", "bytes 5-999/1000", 5..1000),
    ] {
        let whole = blob_of(&upstream, &blob).range(range).whole().await;
        let head = whole.is(206, &blob.bytes()[expected]);
        assert_eq!(head.header("content-range"), Some(place));
    }
    let outside = blob_of(&upstream, &blob).range("bytes=1000-").whole().await;
    assert_eq!(outside.head.status, 416);
}

#[tokio::test]
async fn a_cut_is_after_the_byte_it_names() {
    let upstream = FakeRegistry::start().await;
    let blob = Blob::random(300 * KIB);
    upstream.serve_blob("team/app", &blob);
    upstream.once(get(blob.digest()), Fault::CutAfter(100_001));

    let cut = blob_of(&upstream, &blob).whole().await;
    assert_eq!((cut.bytes.len(), cut.end), (100_001, End::Cut));
    assert!(blob.bytes().starts_with(&cut.bytes));
    blob_of(&upstream, &blob).send().await.is(&blob).await;
}

#[tokio::test]
async fn a_gate_holds_the_byte_it_names() {
    let upstream = FakeRegistry::start().await;
    let blob = Blob::random(300 * KIB);
    upstream.serve_blob("team/app", &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(70_000));

    let mut answer = blob_of(&upstream, &blob).send().await;
    assert_eq!(answer.read(70_000).await, blob.bytes()[..70_000]);
    gate.reached().await;
    assert_eq!(upstream.sent(&any(blob.digest())), 70_000);
    gate.open();
    answer.continues(&blob, 70_000).await;
}

#[tokio::test]
async fn a_stopped_fake_refuses_and_comes_back_where_it_was() {
    let upstream = FakeRegistry::start().await;
    let blob = Blob::random(KIB);
    upstream.serve_blob("team/app", &blob);

    let idle = Connection::open(upstream.address()).await;
    upstream.stop().await;
    assert!(idle.closed().await);
    let refused = Connection::try_open(upstream.address()).await;
    assert_eq!(
        refused.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    upstream.restart();
    blob_of(&upstream, &blob).send().await.is(&blob).await;
}

#[tokio::test]
async fn faults_come_in_their_turn() {
    let upstream = FakeRegistry::start().await;
    let blob = Blob::random(KIB);
    upstream.serve_blob("team/app", &blob);
    upstream.script(get(blob.digest()), Turns::nth(2), Fault::Status(503));

    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(blob_of(&upstream, &blob).whole().await.head.status);
    }
    assert_eq!(statuses, [200, 503, 200]);
    assert_eq!(upstream.count(&head(blob.digest())), 0);
}

#[tokio::test]
async fn chunks_are_read_and_a_missing_last_one_is_noticed() {
    let upstream = FakeRegistry::start().await;
    let blob = Blob::random(200 * KIB);
    upstream.serve_blob("team/app", &blob);
    upstream.once(get(blob.digest()), Fault::NoLength);

    let head = blob_of(&upstream, &blob).send().await.is(&blob).await;
    assert_eq!(head.content_length(), None);
}

#[tokio::test]
#[should_panic(expected = "the fake saw")]
async fn credentials_fail_the_test() {
    let upstream = FakeRegistry::start().await;
    let request = Request::new(upstream.address(), "GET", "/v2/");
    request.header("Authorization", "Basic Zm9v").whole().await;
}

#[tokio::test]
#[should_panic(expected = "a second transfer")]
async fn two_transfers_of_one_blob_at_once_fail_the_test() {
    let upstream = FakeRegistry::start().await;
    let blob = Blob::random(200 * KIB);
    upstream.serve_blob("team/app", &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(KIB));
    let _first = blob_of(&upstream, &blob).send().await;
    let _second = blob_of(&upstream, &blob).send().await;
    gate.reached_by(2).await;
}

#[tokio::test]
async fn the_fake_lets_in_whoever_has_a_token_for_the_repository() {
    let tokens = TokenServer::start().await;
    let upstream = FakeRegistry::start().await;
    upstream.require_token(&tokens);
    let blob = Blob::random(KIB);
    upstream.serve_blob("team/app", &blob);

    let refused = blob_of(&upstream, &blob).whole().await;
    assert_eq!(refused.head.status, 401);
    let challenge = format!(
        r#"Bearer realm="{}",service="fake",scope="repository:team/app:pull""#,
        tokens.realm()
    );
    assert_eq!(refused.head.header("www-authenticate"), Some(&*challenge));
    let target = "/token?scope=repository:team/app:pull";
    let exchange = Request::new(tokens.address(), "GET", target);
    let text = exchange.whole().await.text();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let token = format!("Bearer {}", json["token"].as_str().unwrap());
    assert_eq!(json["expires_in"], 300);

    let shown = blob_of(&upstream, &blob).header("Authorization", token);
    shown.send().await.is(&blob).await;
    tokens.expire();
    assert_eq!(shown.whole().await.head.status, 401);
    assert_eq!((tokens.exchanges(), upstream.connections()), (1, 3));
}

#[tokio::test]
async fn the_fakes_notice_credentials_that_nobody_asked_for() {
    let tokens = TokenServer::start().await;
    let upstream = FakeRegistry::start().await;
    upstream.require_token(&tokens);
    let target = "/token?scope=repository:team/other:pull";
    let other = Request::new(tokens.address(), "GET", target);
    let json: serde_json::Value = serde_json::from_str(&other.whole().await.text()).unwrap();
    let token = format!("Bearer {}", json["token"].as_str().unwrap());
    let blob = Blob::random(KIB);
    for value in [token.as_str(), "Bearer made-up", "Basic Zm9vOmJhcg=="] {
        let before = upstream.violations().len();
        let request = blob_of(&upstream, &blob).header("Authorization", value);
        request.whole().await;
        assert_eq!(upstream.violations().len(), before + 1, "{value}");
    }
    upstream.forgive();
    let host = BlobHost::start().await;
    let link = host.serve(&blob);
    let (_, target) = link.split_once("/v2/").unwrap();
    let request = Request::new(host.address(), "GET", format!("/v2/{target}"));
    request.send().await.is(&blob).await;
    assert!(host.violations().is_empty());
    request.header("Authorization", token).whole().await;
    assert_eq!(host.violations().len(), 1);
    host.forgive();
}

#[tokio::test]
async fn the_fake_sends_elsewhere_and_counts() {
    let upstream = FakeRegistry::start().await;
    upstream.redirect(get("/blobs/"), 302, "/elsewhere?{n}");
    let blob = Blob::random(KIB);
    for n in 0..2 {
        let whole = blob_of(&upstream, &blob).whole().await;
        let location = format!("/elsewhere?{n}");
        assert_eq!(whole.head.status, 302);
        assert_eq!(whole.head.header("location"), Some(location.as_str()));
    }
}
