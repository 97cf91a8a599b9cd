//! Registries that let in whoever has a token: who is asked for one, how often, and who never learns it.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::harness::proxy::ONE;
use crate::harness::script::Turns;
use crate::harness::token::TOKEN;
use crate::harness::{
    APP, At, Blob, FakeRegistry, Fault, Image, KIB, MIB, PasswordFile, ProxyBuilder, Request,
    TestProxy, TokenServer, Whole, any, get, head, within,
};

const STALE: &str = "layerhold; fwd=stale; detail=upstream-unavailable";

/// A registry that wants tokens, with an image under `v1`, its token server, and a proxy that believes no tag unasked.
async fn scene() -> (FakeRegistry, TokenServer, TestProxy, Image) {
    scene_with(|it| it).await
}

/// The same with a proxy that loses patience quickly.
async fn brief_scene() -> (FakeRegistry, TokenServer, TestProxy, Image) {
    scene_with(|it| {
        it.set("timeouts.answer", "2s")
            .set("timeouts.connect", "300ms")
            .set("timeouts.first_byte", "300ms")
    })
    .await
}

async fn scene_with(
    settings: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
) -> (FakeRegistry, TokenServer, TestProxy, Image) {
    let tokens = TokenServer::start().await;
    let upstream = FakeRegistry::start().await;
    upstream.require_token(&tokens);
    let builder = TestProxy::in_front_of(&upstream)
        .set("freshness.fresh_for", "0s")
        .set("freshness.retry_after", "1m");
    let proxy = settings(builder).start().await;
    let image = Image::random(&[MIB, KIB]);
    upstream.serve_image(APP, "v1", &image);
    (upstream, tokens, proxy, image)
}

/// The ways to ask for something of an image.
fn requests(proxy: &TestProxy, image: &Image) -> [Request; 4] {
    [
        proxy.manifest(APP, "v1"),
        proxy.manifest(APP, image.manifest.digest()),
        proxy.blob(APP, image.layers[0].digest()),
        proxy.head(format!("/v2/{APP}/blobs/{}", image.layers[0].digest())),
    ]
}

/// Pulls an image as a client does, and verifies all of it.
async fn pull(proxy: &TestProxy, repository: &str, image: &Image) {
    let target = format!("/v2/{repository}/manifests/v1");
    let head = proxy.head(target).whole().await;
    let digest = head.is(200, b"").header("docker-content-digest");
    assert_eq!(digest, Some(image.manifest.digest()));
    let manifest = proxy
        .pull_manifest(repository, image.manifest.digest())
        .await;
    assert_eq!(manifest.bytes, image.manifest.bytes());
    join_all(image.blobs().map(|blob| proxy.pull_blob(repository, blob))).await;
}

/// An answer that tells nothing of who said what behind us.
fn assert_discreet(whole: &Whole) {
    let said = format!("{:?} {}", whole.head, whole.text());
    for secret in [TOKEN, "127.0.0.1", "Bearer", "the fake's own words"] {
        assert!(!said.contains(secret), "{secret}: {said}");
    }
}

#[tokio::test]
async fn an_image_is_pulled_with_one_token() {
    let (upstream, tokens, proxy, image) = scene().await;
    pull(&proxy, APP, &image).await;
    assert_eq!(tokens.exchanges(), 1);
    let asked = &tokens.seen(&TokenServer::exchange())[0];
    let query = "service=fake&scope=repository%3Ateam%2Fapp%3Apull";
    assert_eq!(asked.query.as_deref(), Some(query));
    // Nobody is asked what it wants before there is something to ask for.
    assert!(upstream.log().iter().all(|it| it.path != "/v2/"));
    let labels = [("upstream", ONE), ("result", "ok")];
    assert_eq!(proxy.metric("layerhold_tokens_total", &labels).await, 1.0);
}

#[tokio::test]
async fn a_token_is_used_again_and_only_the_first_request_goes_without() {
    let (upstream, tokens, proxy, image) = scene().await;
    pull(&proxy, APP, &image).await;
    for _ in 0..3 {
        pull(&proxy, APP, &image).await;
    }
    assert_eq!(tokens.exchanges(), 1);
    let mut refused = upstream.log();
    refused.retain(|it| it.status == 401);
    assert_eq!(refused.len(), 1, "{refused:#?}");
}

#[tokio::test]
async fn each_repository_has_a_token_of_its_own() {
    let (upstream, tokens, proxy, image) = scene().await;
    let other = Image::random(&[KIB]);
    upstream.serve_image("team/other", "v1", &other);
    // The fake fails the test when it sees the one's token at the other.
    for _ in 0..2 {
        pull(&proxy, APP, &image).await;
        pull(&proxy, "team/other", &other).await;
    }
    assert_eq!(tokens.exchanges(), 2);
}

#[tokio::test]
async fn fifty_cold_pulls_cause_one_exchange_per_repository() {
    let (upstream, tokens, proxy, _) = scene().await;
    let repositories = [APP, "team/other"];
    let blobs: Vec<Blob> = (0..50).map(|_| Blob::random(KIB)).collect();
    for (n, blob) in blobs.iter().enumerate() {
        upstream.serve_blob(repositories[n % 2], blob);
    }
    let gate = tokens.hold(TokenServer::exchange(), At::Head);
    let pulls = blobs
        .iter()
        .enumerate()
        .map(|(n, blob)| proxy.pull_blob(repositories[n % 2], blob));
    let release = async {
        // More than half of them were refused before the first token is there.
        upstream.wait_for(&get("/blobs/"), 26).await;
        gate.reached_by(2).await;
        gate.open();
    };
    tokio::join!(join_all(pulls), release);
    assert_eq!(tokens.exchanges(), 2);
}

#[tokio::test]
async fn pitfall_34_a_token_that_ended_early_costs_one_refresh_and_one_repeat() {
    let (upstream, tokens, proxy, image) = scene().await;
    pull(&proxy, APP, &image).await;
    tokens.expire();
    let late = Blob::random(KIB);
    upstream.serve_blob(APP, &late);
    proxy.pull_blob(APP, &late).await;
    assert_eq!(tokens.exchanges(), 2);
    let asked = upstream.seen(&get(late.digest()));
    let statuses: Vec<u16> = asked.iter().map(|it| it.status).collect();
    assert_eq!(statuses, [401, 200]);
}

#[tokio::test]
async fn pitfall_34_a_token_that_ended_early_is_refreshed_once_for_everybody() {
    let (upstream, tokens, proxy, image) = scene().await;
    pull(&proxy, APP, &image).await;
    tokens.expire();
    let late: Vec<Blob> = (0..20).map(|_| Blob::random(KIB)).collect();
    for blob in &late {
        upstream.serve_blob(APP, blob);
    }
    let gate = upstream.hold(get("/blobs/"), At::Head);
    let release = async {
        gate.reached_by(20).await;
        gate.open();
    };
    let pulls = join_all(late.iter().map(|blob| proxy.pull_blob(APP, blob)));
    tokio::join!(pulls, release);
    assert_eq!(tokens.exchanges(), 2);
}

#[tokio::test]
async fn pitfall_34_a_transfer_that_outlives_its_token_goes_on_with_another() {
    let (upstream, tokens, proxy, _) = scene().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    // The first request is refused, the second one is cut.
    upstream.script(get(blob.digest()), Turns::nth(2), Fault::CutAfter(MIB));
    let gate = upstream.hold(get(blob.digest()), At::Byte(KIB));
    let expiry = async {
        gate.reached().await;
        tokens.expire();
        gate.open();
    };
    tokio::join!(proxy.pull_blob(APP, &blob), expiry);
    assert_eq!(tokens.exchanges(), 2);
    assert_eq!(upstream.seen(&get(blob.digest())).len(), 4);
}

#[tokio::test]
async fn pitfall_34_a_token_that_the_registry_never_takes_is_a_401_after_one_exchange() {
    let (upstream, tokens, proxy, image) = scene().await;
    tokens.trust(false);
    let whole = proxy.manifest(APP, image.manifest.digest()).whole().await;
    assert_eq!(whole.head.status, 401);
    assert_discreet(&whole);
    assert_eq!((tokens.exchanges(), upstream.log().len()), (1, 2));

    // And it is not held against the next one.
    tokens.trust(true);
    let late = Blob::random(KIB);
    upstream.serve_blob(APP, &late);
    proxy.pull_blob(APP, &late).await;
    assert_eq!((tokens.exchanges(), upstream.log().len()), (2, 4));
}

#[tokio::test]
async fn pitfall_44_either_key_names_a_token_and_nobody_need_say_for_how_long() {
    for key in ["token", "access_token"] {
        for seconds in [Some(300), Some(u64::MAX), None] {
            let (_upstream, tokens, proxy, image) = scene().await;
            tokens.answer_with(key);
            tokens.expire_in(seconds);
            pull(&proxy, APP, &image).await;
            assert_eq!(tokens.exchanges(), 1, "{key} {seconds:?}");
        }
    }
}

#[tokio::test]
async fn a_token_that_is_over_when_it_comes_serves_at_least_its_own_request() {
    let (_upstream, tokens, proxy, image) = scene().await;
    tokens.expire_in(Some(0));
    pull(&proxy, APP, &image).await;
    assert!(tokens.exchanges() >= 1);
}

#[tokio::test]
async fn pitfall_44_challenges_of_all_shapes_are_understood() {
    for challenge in [
        r#"Basic realm="a, b", Bearer realm="{realm}",service="fake",scope="{scope}""#,
        r#"bearer realm="{realm}",service="fake",scope="{scope}""#,
        r#"BEARER Scope="{scope}" , Service="fake" , Realm="{realm}", Negotiate"#,
        "Bearer realm={realm},service=fake",
        r#"Bearer realm="{realm}""#,
        // What a registry would like more than we want is not asked for.
        r#"Bearer realm="{realm}",service="fake",scope="repository:other/repository:pull,push""#,
    ] {
        let (upstream, tokens, proxy, image) = scene().await;
        upstream.challenge(&tokens, challenge);
        pull(&proxy, APP, &image).await;
        assert_eq!(tokens.exchanges(), 1, "{challenge}");
    }
}

#[tokio::test]
async fn pitfall_42_a_refusal_by_the_token_server_is_the_registrys() {
    for (fault, status) in [
        (Fault::Status(400), 401),
        (Fault::Status(401), 401),
        (Fault::Status(403), 403),
    ] {
        let (_upstream, tokens, proxy, image) = scene().await;
        tokens.always(any(""), fault);
        for request in requests(&proxy, &image) {
            let whole = request.whole().await;
            assert_eq!(whole.head.status, status, "{fault:?}: {}", whole.text());
            assert_discreet(&whole);
            let ours = format!("Basic realm=\"{ONE}\"");
            let expected = if status == 401 { vec![&*ours] } else { vec![] };
            assert_eq!(whole.head.all("www-authenticate"), expected);
        }
    }
}

#[tokio::test]
async fn pitfall_15_a_refusal_by_the_token_server_is_never_served_over() {
    for (fault, status) in [(Fault::Status(401), 401), (Fault::Status(403), 403)] {
        let (_upstream, tokens, proxy, _) = scene().await;
        proxy.pull_manifest(APP, "v1").await;
        tokens.expire();
        tokens.always(any(""), fault);
        let whole = proxy.manifest(APP, "v1").whole().await;
        assert_eq!(whole.head.status, status, "{fault:?}: {:?}", whole.head);
    }
}

#[tokio::test]
async fn pitfall_42_a_token_server_that_fails_is_an_outage_and_never_a_404() {
    for (fault, status) in [
        (Fault::Status(404), 502),
        (Fault::Status(500), 502),
        (Fault::Status(503), 503),
        (Fault::Html200, 502),
        (Fault::Refuse, 502),
        (Fault::CutAfter(1), 502),
        (Fault::StallAfter(1), 504),
        (Fault::Silence, 504),
        (Fault::RateLimit(60), 503),
    ] {
        let (_upstream, tokens, proxy, image) = brief_scene().await;
        tokens.always(any(""), fault);
        let requests = requests(&proxy, &image);
        let wholes = join_all(requests.iter().map(Request::whole)).await;
        for whole in wholes {
            assert_eq!(whole.head.status, status, "{fault:?}: {}", whole.text());
            assert_discreet(&whole);
        }
    }
}

#[tokio::test]
async fn pitfall_15_a_stale_tag_is_served_while_the_token_server_is_down() {
    for fault in [
        Some(Fault::Status(404)),
        Some(Fault::Status(500)),
        Some(Fault::Html200),
        Some(Fault::Silence),
        None,
    ] {
        let (_upstream, tokens, proxy, image) = brief_scene().await;
        proxy.pull_manifest(APP, "v1").await;
        tokens.expire();
        match fault {
            Some(fault) => tokens.always(any(""), fault),
            None => tokens.stop().await,
        }
        let stale = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(stale.bytes, image.manifest.bytes(), "{fault:?}");
        assert_eq!(stale.head.cache_status(), STALE, "{fault:?}");
    }
}

#[tokio::test]
async fn pitfall_16_a_token_server_that_is_silent_is_left_alone() {
    let (_upstream, tokens, proxy, _) = brief_scene().await;
    tokens.always(any(""), Fault::Silence);
    let pull = async |repository: &str| {
        let whole = proxy
            .blob(repository, Blob::random(8).digest())
            .whole()
            .await;
        assert_eq!(whole.head.status, 504, "{}", whole.text());
    };
    let resting = async || proxy.metric("layerhold_upstream_resting", &[]).await;
    // That may be one repository.
    for _ in 0..4 {
        pull(APP).await;
    }
    assert_eq!(resting().await, 0.0);
    pull("team/other").await;
    assert_eq!(resting().await, 1.0);
    let asked = tokens.seen(&TokenServer::exchange()).len();
    for repository in [APP, "team/other", "team/third"] {
        pull(repository).await;
    }
    assert_eq!(tokens.seen(&TokenServer::exchange()).len(), asked);
}

#[tokio::test]
async fn a_token_server_that_is_silent_holds_up_many_no_longer_than_one() {
    let (upstream, tokens, proxy, _) = brief_scene().await;
    tokens.always(any(""), Fault::Silence);
    let blobs: Vec<Blob> = (0..12).map(|_| Blob::random(KIB)).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    let began = Instant::now();
    let requests: Vec<Request> = blobs
        .iter()
        .map(|blob| proxy.blob(APP, blob.digest()))
        .collect();
    for whole in join_all(requests.iter().map(Request::whole)).await {
        assert_eq!(whole.head.status, 504, "{}", whole.text());
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    // The next one gets its token without waiting for those who have gone.
    tokens.heal();
    within("a pull", proxy.pull_blob(APP, &blobs[0])).await;
}

#[tokio::test]
async fn pitfall_31_a_realm_on_another_host_receives_nothing() {
    let foreign = FakeRegistry::start_at("127.0.0.2").await;
    let local = FakeRegistry::start().await;
    let port = local.address().port();
    for realm in [
        format!("http://{}/token", foreign.address()),
        format!("http://localhost:{port}/token"),
        format!("http://[::ffff:127.0.0.1]:{port}/token"),
        format!("http://2130706433:{port}/token"),
        format!("http://user:word@127.0.0.1:{port}/token"),
        format!("ftp://127.0.0.1:{port}/token"),
        "/token".to_owned(),
        String::new(),
    ] {
        let (upstream, tokens, proxy, image) = scene().await;
        let challenge = format!("Bearer realm=\"{realm}\",service=\"fake\"");
        upstream.challenge(&tokens, &challenge);
        for request in requests(&proxy, &image) {
            let whole = request.whole().await;
            // The refusal stands: our best try ended where we may not ask.
            assert_eq!(whole.head.status, 401, "{realm}: {}", whole.text());
            assert_discreet(&whole);
        }
        assert_eq!(tokens.connections(), 0, "{realm}");
    }
    assert_eq!((foreign.connections(), local.connections()), (0, 0));
}

#[tokio::test]
async fn a_registry_that_wants_a_password_is_a_401_and_nobody_is_asked() {
    let (upstream, tokens, proxy, image) = scene().await;
    upstream.challenge(&tokens, r#"Basic realm="fake""#);
    for request in requests(&proxy, &image) {
        let whole = request.whole().await;
        assert_eq!(whole.head.status, 401);
        let ours = format!("Basic realm=\"{ONE}\"");
        assert_eq!(whole.head.all("www-authenticate"), [ours.as_str()]);
    }
    assert_eq!(tokens.connections(), 0);
}

#[tokio::test]
async fn a_token_server_that_redirects_is_not_followed() {
    let (_upstream, tokens, proxy, image) = scene().await;
    let elsewhere = TokenServer::start().await;
    tokens.redirect(TokenServer::exchange(), 307, elsewhere.realm());
    let whole = proxy.manifest(APP, image.manifest.digest()).whole().await;
    assert_eq!(whole.head.status, 502, "{}", whole.text());
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn pitfall_44_a_registry_that_refuses_heads_even_with_a_token_is_asked_by_get() {
    for status in [401, 405] {
        let (upstream, _tokens, proxy, image) = scene().await;
        let layer = &image.layers[0];
        upstream.always(head("/blobs/"), Fault::Status(status));
        let target = format!("/v2/{APP}/blobs/{}", layer.digest());
        let answer = proxy.head(target).whole().await;
        assert_eq!(answer.is(200, b"").content_length(), Some(layer.len()));
        let asked = upstream.seen(&get(layer.digest()));
        let last = asked.last().map(|it| (it.status, it.header("range")));
        assert_eq!(last, Some((206, Some("bytes=0-0"))), "{status}");
    }
}

#[tokio::test]
async fn pitfall_44_a_registry_that_refuses_heads_of_manifests_is_asked_by_get() {
    let (upstream, _tokens, proxy, image) = scene().await;
    upstream.always(head("/manifests/"), Fault::Status(405));
    for _ in 0..2 {
        let pulled = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(pulled.bytes, image.manifest.bytes());
    }
    let moved = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &moved);
    let pulled = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, moved.manifest.bytes());
}

#[tokio::test]
async fn pitfall_41_a_token_server_that_asks_for_a_pause_gets_it() {
    let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
    upstream.require_token(&tokens);
    tokens.always(TokenServer::exchange(), Fault::RateLimit(60));
    let proxy = TestProxy::in_front_of(&upstream).start().await;
    // For one repository and for another: it is the server that wants the pause.
    for repository in [APP, APP, "other/app"] {
        let digest = Blob::random(10).digest().to_owned();
        let whole = proxy.blob(repository, &digest).whole().await;
        assert_eq!(whole.head.status, 503);
        assert!(whole.head.header("retry-after").is_some());
    }
    assert_eq!(tokens.exchanges(), 1);
}

#[tokio::test]
async fn pitfall_34_a_wrong_password_is_not_shown_at_each_pull_and_a_right_one_at_once() {
    let (tokens, plain) = (TokenServer::start().await, FakeRegistry::start().await);
    let guarded = FakeRegistry::start().await;
    guarded.require_token(&tokens);
    tokens.lock("robot", "right");
    plain.lock("robot", "right");
    for upstream in [&plain, &guarded] {
        let file = PasswordFile::new("wrong");
        let proxy = TestProxy::in_front_of(upstream)
            .upstream("username", "robot")
            .upstream("password_file", file.path())
            .set("freshness.retry_after", "1m")
            .start()
            .await;
        let blob = Blob::random(KIB);
        let shown = || upstream.log().len() + tokens.log().len();
        for repository in [APP, "team/other"] {
            upstream.serve_blob(repository, &blob);
            let before = shown();
            for n in 1..6 {
                let whole = proxy.blob(repository, blob.digest()).whole().await;
                assert_eq!(whole.head.status, 401);
                if n == 1 {
                    assert!(shown() > before);
                }
            }
            // Without, with, and for a token: in each repository once.
            assert!(shown() <= before + 2, "{}", shown() - before);
        }
        file.write("right");
        for repository in [APP, "team/other"] {
            proxy.pull_blob(repository, &blob).await;
        }
    }
}
