//! Upstreams that decide by their callers' own rights: what one may have, and another may not, of what is here.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};
use toml::Value;

use crate::harness::proxy::{ONE, TWO};
use crate::harness::token::basic;
use crate::harness::{
    APP, At, Binary, Blob, FakeRegistry, Fault, Image, KIB, MIB, ProxyBuilder, Request, TestProxy,
    TokenServer, Whole, any, get, head, poll,
};

/// A repository that Ann and Cat may pull from, and one that everybody may.
const SECRET: &str = "team/secret";
const PUBLIC: &str = "team/public";

const ANN: (&str, &str) = ("ann", "horse-a");
const BOB: (&str, &str) = ("bob", "horse-b");
const CAT: (&str, &str) = ("cat", "horse-c");

const STALE: &str = "layerhold; fwd=stale; detail=upstream-unavailable";

/// A registry with a token server that knows three users, and an image in each repository.
struct Scene {
    upstream: FakeRegistry,
    tokens: TokenServer,
    secret: Image,
    public: Image,
}

impl Scene {
    async fn start() -> Self {
        let (upstream, tokens) = (FakeRegistry::start().await, TokenServer::start().await);
        upstream.require_token(&tokens);
        tokens.permit(Some(ANN), &[SECRET, PUBLIC]);
        tokens.permit(Some(BOB), &[PUBLIC]);
        tokens.permit(Some(CAT), &[SECRET, PUBLIC]);
        tokens.permit(None, &[PUBLIC]);
        let (secret, public) = (Image::random(&[MIB, KIB]), Image::random(&[KIB]));
        upstream.serve_image(SECRET, "v1", &secret);
        upstream.serve_image(PUBLIC, "v1", &public);
        Self {
            upstream,
            tokens,
            secret,
            public,
        }
    }

    fn proxy(&self) -> ProxyBuilder {
        TestProxy::in_front_of(&self.upstream).upstream("access", "caller")
    }

    /// All ways to ask for what is in the secret repository, there and elsewhere.
    fn probes(&self, proxy: &TestProxy) -> Vec<Request> {
        let digest = self.secret.manifest.digest();
        let layer = self.secret.layers[0].digest();
        let manifests = ["v1", digest].map(|it| format!("/v2/{SECRET}/manifests/{it}"));
        let elsewhere = format!("/v2/{PUBLIC}/manifests/{digest}");
        let blobs = [SECRET, PUBLIC].map(|it| format!("/v2/{it}/blobs/{layer}"));
        let mut probes = Vec::new();
        for target in manifests.into_iter().chain([elsewhere]).chain(blobs) {
            probes.push(proxy.head(&target));
            probes.push(proxy.get(&target));
            probes.push(proxy.get(&target).range("bytes=0-99"));
            probes.push(proxy.get(&target).range("bytes=-1"));
            probes.push(proxy.get(&target).range("bytes=0-9,20-29"));
            let tag = target.rsplit_once('/').map_or("", |(_, it)| it);
            let tag = tag.replace("v1", digest);
            probes.push(
                proxy
                    .get(&target)
                    .header("If-None-Match", format!("\"{tag}\"")),
            );
        }
        probes.push(proxy.get(format!("/v2/{SECRET}/tags/list")));
        probes.push(proxy.get(format!("/v2/{SECRET}/referrers/{digest}")));
        probes
    }
}

/// The same request, by somebody.
fn by(request: Request, (user, password): (&str, &str)) -> Request {
    request.header("Authorization", basic(user, password))
}

/// Pulls an image as somebody, and verifies all of it.
async fn pull(proxy: &TestProxy, user: (&str, &str), repository: &str, image: &Image) {
    let whole = by(proxy.manifest(repository, "v1"), user).whole().await;
    whole.is(200, image.manifest.bytes());
    let blobs = image.blobs().map(|blob| {
        let request = by(proxy.blob(repository, blob.digest()), user);
        async move { request.send().await.is(blob).await }
    });
    join_all(blobs).await;
}

async fn status(request: Request) -> u16 {
    request.whole().await.head.status
}

/// What a client can see of an answer, but for what is another one each time.
fn seen(whole: &Whole) -> (u16, Vec<(String, String)>, String) {
    let mut headers = whole.head.headers().to_vec();
    headers.retain(|(name, _)| !matches!(&*name.to_ascii_lowercase(), "x-request-id" | "date"));
    (whole.head.status, headers, whole.text())
}

/// What a registry was asked, in order, and what it said.
fn asked(upstream: &FakeRegistry, from: usize) -> Vec<(String, String, Option<String>, u16)> {
    let log = upstream.log();
    let since = log.iter().skip(from).map(|it| {
        let range = it.header("range").map(str::to_owned);
        (it.method.clone(), it.path.clone(), range, it.status)
    });
    since.collect()
}

#[tokio::test]
async fn pitfall_35_what_is_cached_and_not_yours_looks_like_what_is_not_here() {
    let scene = Scene::start().await;
    let warm = scene.proxy().start().await;
    let probes = scene.probes(&warm).len();
    warm.shut_down();
    let warm = warm.stopped().await;
    for (nth, has_a_right) in (0..probes).flat_map(|nth| [(nth, false), (nth, true)]) {
        let mut answers = Vec::new();
        for builder in [scene.proxy(), warm.clone()] {
            let is_cold = answers.is_empty();
            let proxy = builder.start().await;
            if !is_cold {
                pull(&proxy, ANN, SECRET, &scene.secret).await;
            }
            if has_a_right {
                let target = format!("/v2/{PUBLIC}/manifests/v1");
                assert_eq!(status(by(proxy.head(target), BOB)).await, 200);
            }
            let (from, exchanges) = (scene.upstream.log().len(), scene.tokens.exchanges());
            let probe = by(scene.probes(&proxy).swap_remove(nth), BOB);
            let whole = probe.header("Host", "cache.example").whole().await;
            assert!(matches!(whole.head.status, 401 | 404), "{:?}", whole.head);
            scene.upstream.quiet().await;
            let exchanges = scene.tokens.exchanges() - exchanges;
            answers.push((seen(&whole), asked(&scene.upstream, from), exchanges));
            proxy.shut_down();
            proxy.stopped().await;
        }
        assert!(!answers[0].1.is_empty(), "somebody was asked");
        assert_eq!(answers[0], answers[1]);
    }
}

#[tokio::test]
async fn pitfall_35_one_may_have_what_another_may_not_whoever_came_first() {
    let scene = Scene::start().await;
    let proxy = scene.proxy().start().await;
    let refused = async |user| {
        for probe in scene.probes(&proxy) {
            let status = status(by(probe, user)).await;
            assert!(matches!(status, 401 | 404), "{status}");
        }
    };
    refused(BOB).await;
    pull(&proxy, ANN, SECRET, &scene.secret).await;
    refused(BOB).await;
    refused(("ann", "wrong")).await;
    refused(("nobody", "")).await;
    pull(&proxy, CAT, SECRET, &scene.secret).await;
    pull(&proxy, BOB, PUBLIC, &scene.public).await;
    pull(&proxy, ANN, SECRET, &scene.secret).await;
    // All of it was brought once.
    for blob in scene.secret.blobs() {
        assert_eq!(scene.upstream.sent(&get(blob.digest())), blob.bytes().len());
    }
    let labels = |result| [("upstream", ONE), ("result", result)];
    for result in ["granted", "refused", "held"] {
        let counted = proxy
            .metric("layerhold_rights_total", &labels(result))
            .await;
        assert!(counted > 0.0, "{result}");
    }
}

#[tokio::test]
async fn pitfall_35_a_right_is_asked_for_once_in_its_time() {
    let scene = Scene::start().await;
    let proxy = scene.proxy().start().await;
    pull(&proxy, ANN, SECRET, &scene.secret).await;
    let digest = scene.secret.manifest.digest();
    let layer = scene.secret.layers[0].digest();
    proxy
        .wait_for_metric("layerhold_fills", &[], |n| n == 0.0)
        .await;
    let before = scene.upstream.log().len();
    for _ in 0..3 {
        for request in [proxy.manifest(SECRET, digest), proxy.blob(SECRET, layer)] {
            let whole = by(request, ANN).whole().await;
            assert_eq!(whole.head.cache_status(), "layerhold; hit");
        }
    }
    assert_eq!(scene.upstream.log().len(), before);
    // Another one has a right of its own, and asks for it.
    let whole = by(proxy.manifest(SECRET, digest), CAT).whole().await;
    assert_eq!(whole.head.cache_status(), "layerhold; hit");
    assert!(scene.upstream.log().len() > before);
}

#[tokio::test]
async fn pitfall_35_what_was_taken_away_ends_with_the_time_of_a_right() {
    let scene = Scene::start().await;
    let proxy = scene
        .proxy()
        .upstream("caller_grant_ttl", "0s")
        .start()
        .await;
    pull(&proxy, ANN, SECRET, &scene.secret).await;
    scene.tokens.permit(Some(ANN), &[PUBLIC]);
    // The tokens that were given out are good yet, and are not used.
    for probe in scene.probes(&proxy) {
        let status = status(by(probe, ANN)).await;
        assert!(matches!(status, 401 | 404), "{status}");
    }
    pull(&proxy, CAT, SECRET, &scene.secret).await;
}

#[tokio::test]
async fn pitfall_35_a_right_is_as_old_as_the_token_that_it_rests_on() {
    let scene = Scene::start().await;
    let proxy = scene
        .proxy()
        .upstream("caller_grant_ttl", "1s")
        .start()
        .await;
    let blobs = [Blob::random(KIB), Blob::random(KIB)];
    for blob in &blobs {
        scene.upstream.serve_blob(SECRET, blob);
    }
    let ask = |n: usize| status(by(proxy.blob(SECRET, blobs[n].digest()), ANN));
    assert_eq!(ask(0).await, 200);
    let first = Instant::now();
    scene.tokens.permit(Some(ANN), &[PUBLIC]);
    // Her token is good at the registry yet. Where this comes too late for it, there is nothing to see.
    sleep_until(first + Duration::from_millis(500)).await;
    assert!(matches!(ask(1).await, 200 | 401));
    sleep_until(first + Duration::from_secs(1)).await;
    assert_eq!(ask(1).await, 401);
}

#[tokio::test]
async fn pitfall_35_a_right_that_the_registry_contradicts_is_none() {
    let scene = Scene::start().await;
    let proxy = scene
        .proxy()
        .upstream("caller_grant_ttl", "1h")
        .start()
        .await;
    pull(&proxy, ANN, SECRET, &scene.secret).await;
    // What is not here yet would be asked for.
    proxy
        .wait_for_metric("layerhold_fills", &[], |n| n == 0.0)
        .await;
    scene.tokens.permit(Some(ANN), &[PUBLIC]);
    scene.tokens.expire();
    let layer = scene.secret.layers[0].digest();
    let cached = || status(by(proxy.blob(SECRET, layer), ANN));
    assert_eq!(cached().await, 200);
    // The check of a tag asks the registry, which says no.
    assert_eq!(status(by(proxy.manifest(SECRET, "v1"), ANN)).await, 401);
    assert_eq!(cached().await, 401);
}

#[tokio::test]
async fn pitfall_35_an_outage_gives_no_right_and_ends_none() {
    let scene = Scene::start().await;
    let settings = |it: ProxyBuilder| it.set("timeouts.answer", "2s");
    let proxy = settings(scene.proxy()).start().await;
    let brief = settings(scene.proxy())
        .upstream("caller_grant_ttl", "0s")
        .start()
        .await;
    pull(&proxy, ANN, SECRET, &scene.secret).await;
    pull(&brief, ANN, SECRET, &scene.secret).await;
    scene.upstream.stop().await;
    let whole = by(proxy.manifest(SECRET, "v1"), ANN).whole().await;
    assert_eq!(whole.head.cache_status(), STALE);
    whole.is(200, scene.secret.manifest.bytes());
    let layer = &scene.secret.layers[0];
    let blob = by(proxy.blob(SECRET, layer.digest()), ANN).send().await;
    assert_eq!(blob.is(layer).await.cache_status(), "layerhold; hit");
    for (proxy, user) in [(&proxy, BOB), (&proxy, CAT), (&brief, ANN)] {
        for probe in scene.probes(proxy) {
            let status = status(by(probe, user)).await;
            assert!(matches!(status, 502 | 504), "{status}");
        }
    }
}

#[tokio::test]
async fn pitfall_35_what_one_is_refused_another_is_not_though_both_ask_at_once() {
    let scene = Scene::start().await;
    let (digest, layer) = (
        scene.secret.manifest.digest(),
        scene.secret.layers[0].digest(),
    );
    let targets = [
        format!("/v2/{SECRET}/manifests/v1"),
        format!("/v2/{SECRET}/manifests/{digest}"),
        format!("/v2/{SECRET}/blobs/{layer}"),
        format!("/v2/{SECRET}/tags/list"),
    ];
    for target in targets {
        let proxy = scene.proxy().start().await;
        let gate = scene.tokens.hold(TokenServer::exchange(), At::Head);
        let users = [BOB, ANN, BOB, CAT];
        let asking = users.map(|user| {
            let request = by(proxy.get(&target), user);
            tokio::spawn(async move { request.whole().await.head.status })
        });
        gate.reached().await;
        gate.open();
        let mut statuses = Vec::new();
        for asking in asking {
            statuses.push(asking.await.unwrap());
        }
        assert_eq!(statuses, [401, 200, 401, 200], "{target}");
    }
}

#[tokio::test]
async fn pitfall_35_who_may_not_makes_no_one_forget_a_tag() {
    let scene = Scene::start().await;
    let settings = |it: ProxyBuilder| it.set("freshness.negative_for", "0s");
    let proxy = settings(scene.proxy()).start().await;
    pull(&proxy, ANN, SECRET, &scene.secret).await;
    // Cat is let in, and then the tag is not there for her, as registries say of what somebody may not see.
    pull(&proxy, CAT, SECRET, &scene.secret).await;
    scene.upstream.once(head("/v1"), Fault::Status(404));
    assert_eq!(status(by(proxy.manifest(SECRET, "v1"), CAT)).await, 404);
    assert_eq!(status(by(proxy.manifest(SECRET, "v1"), BOB)).await, 401);
    scene.upstream.always(any("/v1"), Fault::Status(500));
    let whole = by(proxy.manifest(SECRET, "v1"), ANN).whole().await;
    assert_eq!(whole.head.cache_status(), STALE);
    let stored = proxy
        .builder()
        .dir()
        .join(format!("upstreams/{ONE}/{SECRET}/_tags/v1"));
    assert!(stored.exists(), "{}", stored.display());
}

#[tokio::test]
async fn pitfall_35_a_transfer_goes_on_as_somebody_else_when_its_first_caller_is_shut_out() {
    let scene = Scene::start().await;
    let proxy = scene.proxy().start().await;
    let blob = Blob::random(2 * MIB);
    scene.upstream.serve_blob(SECRET, &blob);
    let ask = |user| by(proxy.blob(SECRET, blob.digest()), user);
    scene
        .upstream
        .once(get(blob.digest()), Fault::CutAfter(MIB));
    let gate = scene.upstream.hold(get(blob.digest()), At::Byte(KIB));
    let first = ask(ANN).send().await;
    gate.reached().await;
    let second = ask(CAT).send().await;
    scene.tokens.dismiss(ANN.0, ANN.1);
    scene.tokens.expire();
    assert_eq!(second.head.cache_status(), "layerhold; fwd=miss; collapsed");
    gate.open();
    first.is(&blob).await;
    second.is(&blob).await;
}

#[tokio::test]
async fn pitfall_35_a_list_is_its_askers_own() {
    let scene = Scene::start().await;
    let proxy = scene.proxy().set("freshness.fresh_for", "1h").start().await;
    let target = format!("/v2/{SECRET}/tags/list");
    let list = |user| status(by(proxy.get(&target), user));
    assert_eq!(list(ANN).await, 200);
    assert_eq!(list(BOB).await, 401);
    assert_eq!(list(ANN).await, 200);
}

#[tokio::test]
async fn pitfall_38_a_callers_credential_goes_to_the_registry_itself_alone() {
    let scene = Scene::start().await;
    // Neither knows of any credentials, and fails the test when it sees some.
    let (mirror, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    for (repository, image) in [(SECRET, &scene.secret), (PUBLIC, &scene.public)] {
        mirror.serve_image(repository, "v1", image);
    }
    other.serve_image(APP, "v1", &scene.public);
    let proxy = scene
        .proxy()
        .mirror(&mirror, "")
        .and(TWO, &other)
        .start()
        .await;
    pull(&proxy, ANN, SECRET, &scene.secret).await;
    let layer = scene.secret.layers[0].digest();
    assert_eq!(mirror.count(&get(layer)), 1);
    assert_eq!(scene.upstream.count(&get(layer)), 0);
    let mirrored = mirror.log().len();
    assert_eq!(status(by(proxy.manifest(SECRET, "v1"), BOB)).await, 401);
    assert_eq!(mirror.log().len(), mirrored, "a mirror decides nothing");
    pull(&proxy, BOB, &format!("{TWO}/{APP}"), &scene.public).await;
    let said = proxy.metrics().await;
    for secret in [ANN.1, BOB.1, &basic(ANN.0, ANN.1)] {
        assert!(!said.contains(secret));
    }
}

#[tokio::test]
async fn a_purge_forgets_what_callers_were_refused() {
    let scene = Scene::start().await;
    let proxy = scene
        .proxy()
        .set("freshness.negative_for", "1h")
        .start()
        .await;
    let late = Image::random(&[KIB]).manifest;
    let ask = || status(by(proxy.manifest(SECRET, late.digest()), ANN));
    assert_eq!(ask().await, 404);
    scene.upstream.serve_manifest(SECRET, &late);
    assert_eq!(ask().await, 404);
    proxy.purge(&format!("{ONE}/{SECRET}")).await;
    assert_eq!(ask().await, 200);
}

#[tokio::test]
async fn a_registry_that_wants_passwords_decides_by_them_as_well() {
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(SECRET, "v1", &image);
    upstream.lock(ANN.0, ANN.1);
    let proxy = TestProxy::in_front_of(&upstream)
        .upstream("access", "caller")
        .start()
        .await;
    pull(&proxy, ANN, SECRET, &image).await;
    for _ in 0..2 {
        assert_eq!(status(by(proxy.manifest(SECRET, "v1"), BOB)).await, 401);
        pull(&proxy, ANN, SECRET, &image).await;
    }
}

/// Asks for a token as somebody, or as nobody.
fn token(proxy: &TestProxy, user: Option<(&str, &str)>, service: &str, scopes: &[&str]) -> Request {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("service", service);
    for name in scopes {
        query.append_pair("scope", &format!("repository:{name}:pull"));
    }
    let request = proxy.get(format!("/token?{}", query.finish()));
    match user {
        Some(user) => by(request, user),
        None => request,
    }
}

/// The same, for one that there is.
async fn granted(request: Request) -> String {
    let whole = request.whole().await;
    assert_eq!(whole.head.status, 200, "{}", whole.text());
    assert_eq!(whole.head.header("cache-control"), Some("no-store"));
    let answer: serde_json::Value = serde_json::from_slice(&whole.bytes).unwrap();
    assert_eq!(answer["token"], answer["access_token"]);
    answer["token"].as_str().unwrap().to_owned()
}

/// The same request, with a token.
fn with(request: Request, token: &str) -> Request {
    request.header("Authorization", format!("Bearer {token}"))
}

/// What a client has to show, by what it is told.
async fn challenge(request: Request) -> String {
    let whole = request.whole().await;
    assert_eq!(whole.head.status, 401);
    whole.head.header("www-authenticate").unwrap().to_owned()
}

#[tokio::test]
async fn clients_get_a_token_of_ours_for_their_password_at_the_upstream() {
    let scene = Scene::start().await;
    let proxy = scene.proxy().start().await;
    let us = proxy.registry.to_string();
    let bearer = format!(r#"Bearer realm="http://{us}/token",service="{us}""#);
    assert_eq!(challenge(proxy.get("/v2/")).await, bearer);
    let scoped = format!(r#"{bearer},scope="repository:{SECRET}:pull""#);
    assert_eq!(challenge(proxy.manifest(SECRET, "v1")).await, scoped);
    assert_eq!(
        (scene.upstream.log().len(), scene.tokens.exchanges()),
        (0, 0)
    );

    let anns = granted(token(&proxy, Some(ANN), &us, &[SECRET])).await;
    assert_eq!(scene.tokens.exchanges(), 1);
    for secret in [ANN.0, ANN.1] {
        assert!(!anns.contains(secret));
    }
    let ping = with(proxy.get("/v2/"), &anns).whole().await;
    assert_eq!(ping.head.status, 200);
    let whole = with(proxy.manifest(SECRET, "v1"), &anns).whole().await;
    whole.is(200, scene.secret.manifest.bytes());
    for layer in scene.secret.blobs() {
        let blob = with(proxy.blob(SECRET, layer.digest()), &anns);
        blob.send().await.is(layer).await;
    }
    // The registry was asked with the token that was got at the login.
    assert_eq!(scene.tokens.exchanges(), 1);

    // Bob is known, and may not.
    let bobs = granted(token(&proxy, Some(BOB), &us, &[SECRET])).await;
    let refused = challenge(with(proxy.manifest(SECRET, "v1"), &bobs)).await;
    assert_eq!(refused, format!(r#"{scoped},error="insufficient_scope""#));
    assert_eq!(
        status(token(&proxy, Some((ANN.0, BOB.1)), &us, &[SECRET])).await,
        401
    );
    assert_eq!(
        status(token(&proxy, Some(("eve", "")), &us, &[SECRET])).await,
        401
    );
}

#[tokio::test]
async fn what_anybody_may_have_is_had_by_a_token_of_nobodys() {
    let scene = Scene::start().await;
    let proxy = scene.proxy().start().await;
    let us = proxy.registry.to_string();
    let nobodys = granted(token(&proxy, None, &us, &[PUBLIC, SECRET])).await;
    let whole = with(proxy.manifest(PUBLIC, "v1"), &nobodys).whole().await;
    whole.is(200, scene.public.manifest.bytes());
    assert_eq!(
        status(with(proxy.manifest(SECRET, "v1"), &nobodys)).await,
        401
    );
    scene.upstream.always(any("/v2/"), Fault::Status(500));
    let cats = token(&proxy, Some(CAT), &us, &[SECRET]);
    assert_eq!(status(cats).await, 502);
}

#[tokio::test]
async fn pitfall_35_a_token_is_for_one_upstream_and_the_repositories_that_it_was_asked_for() {
    let (scene, other) = (Scene::start().await, Scene::start().await);
    let builder = scene.proxy().and(TWO, &other.upstream);
    let proxy = builder.upstream("access", "caller").start().await;
    let us = proxy.registry.to_string();
    let theirs = format!("{TWO}/{SECRET}");
    let pulls = [SECRET, PUBLIC, &theirs].map(|it| proxy.manifest(it, "v1"));
    let statuses = async |token: &str| {
        let mut statuses = Vec::new();
        for pull in &pulls {
            statuses.push(status(with(pull.clone(), token)).await);
        }
        statuses
    };
    let secret = granted(token(&proxy, Some(ANN), &us, &[SECRET])).await;
    assert_eq!(statuses(&secret).await, [200, 401, 401]);
    let both = granted(token(&proxy, Some(ANN), &us, &[SECRET, PUBLIC])).await;
    assert_eq!(statuses(&both).await, [200, 200, 401]);
    assert_eq!(other.tokens.exchanges(), 0);
    let exchanges = scene.tokens.exchanges();
    let prefixed = granted(token(&proxy, Some(ANN), &us, &[&theirs])).await;
    assert_eq!(statuses(&prefixed).await, [401, 401, 200]);
    // As containerd asks: by namespace, which is then of whom the token is asked.
    let target = format!("/v2/{SECRET}/manifests/v1?ns={TWO}");
    let asked = challenge(proxy.get(&target)).await;
    let service = format!(r#"service="{TWO}",scope="repository:{SECRET}:pull""#);
    assert!(asked.ends_with(&service), "{asked}");
    let named = granted(token(&proxy, Some(ANN), TWO, &[SECRET])).await;
    assert_eq!(status(with(proxy.get(&target), &named)).await, 200);
    assert_eq!(statuses(&named).await, [401, 401, 200]);
    // A password is for the first of several upstreams alone.
    let others = other.tokens.exchanges();
    let mixed = granted(token(&proxy, Some(ANN), &us, &[&theirs, SECRET, PUBLIC])).await;
    assert_eq!(statuses(&mixed).await, [401, 401, 200]);
    assert_eq!(other.tokens.exchanges(), others, "not of the other's names");
    assert_eq!(scene.tokens.exchanges(), exchanges);
    // Whose service is nobody's that there is gets a token for nothing.
    let nobodys = granted(token(&proxy, Some(ANN), "three.example", &[SECRET])).await;
    assert_eq!(statuses(&nobodys).await, [401, 401, 401]);
    assert_eq!(statuses("garbage").await, [401, 401, 401]);
    assert_eq!(scene.tokens.exchanges(), exchanges);
}

#[tokio::test]
async fn a_login_is_verified_where_it_is_known_whose_it_is() {
    let (scene, other) = (Scene::start().await, Scene::start().await);
    let alone = scene.proxy().start().await;
    let wrong = (ANN.0, "wrong");
    let login =
        |proxy: &TestProxy, user| token(proxy, Some(user), &proxy.registry.to_string(), &[]);
    assert_eq!(status(login(&alone, ANN)).await, 200);
    assert_eq!(status(login(&alone, wrong)).await, 401);
    assert_eq!(status(by(alone.get("/v2/"), ANN)).await, 200);
    assert_eq!(status(by(alone.get("/v2/"), wrong)).await, 401);

    let builder = scene.proxy().and(TWO, &other.upstream);
    let builder = builder.upstream("access", "caller");
    let proxy = builder.upstream("hosts", vec!["two.cache"]).start().await;
    let seen = || scene.tokens.exchanges() + other.tokens.exchanges();
    let before = seen();
    let unverified = granted(login(&proxy, wrong)).await;
    assert_eq!(status(with(proxy.get("/v2/"), &unverified)).await, 200);
    assert_eq!(
        status(with(proxy.manifest(PUBLIC, "v1"), &unverified)).await,
        401
    );
    assert_eq!(seen(), before);
    let named = |user| token(&proxy, Some(user), "two.cache", &[]).header("Host", "two.cache");
    assert_eq!(status(named(wrong)).await, 401);
    assert_eq!(status(named(ANN)).await, 200);
    assert_eq!(other.tokens.exchanges(), 2);
    let pull = proxy.manifest(SECRET, "v1").header("Host", "two.cache");
    let hosted = token(&proxy, Some(ANN), "two.cache", &[SECRET]).header("Host", "two.cache");
    assert_eq!(status(with(pull, &granted(hosted).await)).await, 200);
}

#[tokio::test]
async fn logins_at_an_upstream_have_their_turn_as_pulls_have() {
    let scene = Scene::start().await;
    let proxy = scene.proxy().set("limits.requests_per_source", "2/h");
    let proxy = proxy.start().await;
    let us = proxy.registry.to_string();
    granted(token(&proxy, Some(ANN), &us, &[SECRET])).await;
    assert_eq!(status(by(proxy.get("/v2/"), ANN)).await, 200);
    let asked = || (scene.tokens.exchanges(), scene.upstream.log().len());
    let before = asked();
    for login in [
        token(&proxy, Some(BOB), &us, &[PUBLIC]),
        by(proxy.get("/v2/"), BOB),
    ] {
        assert_eq!(status(login).await, 503);
    }
    assert_eq!(asked(), before);
}

#[tokio::test]
async fn a_token_for_a_shared_upstream_takes_no_credential_there() {
    let (scene, other) = (Scene::start().await, FakeRegistry::start().await);
    let image = Image::random(&[KIB]);
    other.serve_image(APP, "v1", &image);
    let proxy = scene.proxy().and(TWO, &other).start().await;
    let name = format!("{TWO}/{APP}");
    let us = proxy.registry.to_string();
    let token = granted(token(&proxy, Some(ANN), &us, &[&name])).await;
    let pull = with(proxy.manifest(&name, "v1"), &token);
    pull.whole().await.is(200, image.manifest.bytes());
    let bare = proxy.manifest(&name, "v1");
    bare.whole().await.is(200, image.manifest.bytes());
    assert_eq!(scene.tokens.exchanges(), 0);
    assert!(scene.upstream.log().is_empty());
}

#[tokio::test]
async fn a_token_of_ours_is_no_longer_good_than_the_upstreams() {
    let scene = Scene::start().await;
    let proxy = scene.proxy().start().await;
    let us = proxy.registry.to_string();
    for (said, user, expected) in [
        (Some(100), ANN, 60..=90),
        (Some(3600), BOB, 300..=300),
        (None, CAT, 30..=54),
    ] {
        scene.tokens.expire_in(said);
        let whole = token(&proxy, Some(user), &us, &[SECRET]).whole().await;
        let answer: serde_json::Value = serde_json::from_slice(&whole.bytes).unwrap();
        let seconds = answer["expires_in"].as_u64().unwrap();
        assert!(expected.contains(&seconds), "{said:?}: {seconds}");
    }
    // Clients that try a form first go on when it is refused so.
    let form = Request::new(proxy.registry, "POST", "/token").body("grant_type=password");
    let whole = form.whole().await;
    assert_eq!(whole.head.status, 405);
}

#[tokio::test]
async fn nobody_is_asked_about_what_a_rule_denies() {
    let scene = Scene::start().await;
    let rule = "action = 'deny'\nrepositories = ['team/public']";
    let rules = [rule, "action = 'allow'"].map(|it| Value::Table(it.parse().unwrap()));
    let builder = scene.proxy().upstream("deny", vec![SECRET]);
    let proxy = builder.set("access.rule", rules.to_vec()).start().await;
    let us = proxy.registry.to_string();
    for (name, rule) in [(SECRET, "upstream[one.example].deny"), (PUBLIC, "rule 1")] {
        let anns = granted(token(&proxy, Some(ANN), &us, &[name])).await;
        for pull in [
            with(proxy.manifest(name, "v1"), &anns),
            by(proxy.manifest(name, "v1"), ANN),
        ] {
            let refused = pull.whole().await;
            assert_eq!(refused.head.status, 403);
            assert!(refused.text().contains(rule), "{}", refused.text());
        }
    }
    assert_eq!(scene.tokens.exchanges(), 0);
    assert!(scene.upstream.log().is_empty());
    // About the others they are asked.
    let other = token(&proxy, Some(ANN), &us, &[SECRET, "team/other"]);
    granted(other).await;
    assert_eq!(scene.tokens.exchanges(), 1);
}

#[tokio::test]
async fn pitfall_38_a_login_for_one_upstream_is_shown_to_no_other() {
    let (scene, other) = (Scene::start().await, FakeRegistry::start().await);
    let builder = scene.proxy().and(TWO, &other);
    let proxy = builder.upstream("hosts", vec!["two.cache"]).start().await;
    for service in [TWO, "two.cache", "three.example"] {
        for host in ["two.cache", "one.cache"] {
            let login = token(&proxy, Some(ANN), service, &[]).header("Host", host);
            granted(login).await;
        }
    }
    let ping = by(proxy.get("/v2/"), ANN).header("Host", "two.cache");
    assert_eq!(status(ping).await, 200);
    assert_eq!(scene.tokens.exchanges(), 0);
    assert!(scene.upstream.log().is_empty() && other.log().is_empty());
}

#[tokio::test]
async fn a_token_is_for_the_upstream_whose_name_the_client_called_wherever_it_is_asked_for() {
    let (scene, other) = (Scene::start().await, Scene::start().await);
    let builder = scene.proxy().and(TWO, &other.upstream);
    let builder = builder
        .upstream("access", "caller")
        .upstream("hosts", vec!["two.cache"]);
    let builder = builder.set("access.external_url", "https://cache.example");
    let proxy = builder.start().await;
    let pull = proxy.manifest(SECRET, "v1").header("Host", "two.cache");
    let asked = challenge(pull.clone()).await;
    let start = r#"Bearer realm="https://cache.example/token",service="two.cache","#;
    assert!(asked.starts_with(start), "{asked}");
    let asked = token(&proxy, Some(ANN), "two.cache", &[SECRET]).header("Host", "cache.example");
    let whole = with(pull, &granted(asked).await).whole().await;
    whole.is(200, other.secret.manifest.bytes());
    assert!(scene.upstream.log().is_empty());
}

#[tokio::test]
async fn pitfall_35_a_reload_gives_nobody_a_right() {
    let scene = Scene::start().await;
    let builder = scene.proxy();
    let binary = Binary::start(&builder).await;
    let ping = async || {
        let whole = binary.get("/v2/").whole().await;
        whole.head.status
    };
    let us = binary.registry.to_string();
    let target = format!("/token?service={us}&scope=repository:{SECRET}:pull");
    let anns = granted(by(binary.get(target), ANN)).await;
    let pull = |user| by(binary.manifest(SECRET, "v1"), user);
    let mine = with(binary.manifest(SECRET, "v1"), &anns).whole().await;
    mine.is(200, scene.secret.manifest.bytes());
    assert_eq!(status(pull(BOB)).await, 401);
    // Shared, and as the registry lets nobody in that has no password: what is here is not asked for.
    for (access, pinged) in [("shared", 200), ("caller", 401)] {
        builder.clone().upstream("access", access).file();
        binary.hang_up();
        poll("the reload", async || {
            (ping().await == pinged).then_some(())
        })
        .await;
    }
    let before = scene.upstream.log().len();
    assert_eq!(status(pull(BOB)).await, 401);
    assert!(scene.upstream.log().len() > before, "somebody was asked");
    let mine = with(binary.manifest(SECRET, "v1"), &anns).whole().await;
    mine.is(200, scene.secret.manifest.bytes());
}

#[tokio::test]
async fn pitfall_38_no_credential_of_a_caller_is_said_by_anybody() {
    let scene = Scene::start().await;
    let builder = scene.proxy().set("log_level", "trace");
    let binary = Binary::start(&builder).await;
    let (good, bad) = ((ANN.0, ANN.1), ("eve", "c4nary-of-eve"));
    let us = binary.registry.to_string();
    let target = format!("/token?service={us}&scope=repository:{SECRET}:pull");
    let mut said = String::new();
    let mut shown = Vec::new();
    for trouble in 0..4 {
        scene.upstream.heal();
        match trouble {
            0 => {}
            1 => scene.upstream.always(any(""), Fault::Status(500)),
            2 => scene.upstream.lock(ANN.0, ANN.1),
            _ => scene.upstream.require_token(&scene.tokens),
        }
        for user in [good, bad] {
            let asked = by(binary.get(&target), user).whole().await;
            if let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&asked.bytes)
                && let Some(token) = answer["token"].as_str()
            {
                shown.push(token.to_owned());
            } else {
                said += &format!("{:?}{}", asked.head, asked.text());
            }
            for request in [binary.get("/v2/"), binary.manifest(SECRET, "v1")] {
                let whole = by(request, user).whole().await;
                said += &format!("{:?}{}", whole.head, whole.text());
            }
            let bearer = shown.last().map_or("c4nary-of-a-token", String::as_str);
            let whole = with(binary.manifest(SECRET, "v1"), bearer).whole().await;
            said += &format!("{:?}{}", whole.head, whole.text());
        }
    }
    assert!(!shown.is_empty());
    said += &binary.metrics().await;
    said += &binary.log_lines().join("\n");
    shown.push("c4nary".to_owned());
    shown.push(ANN.1.to_owned());
    for (user, password) in [good, bad] {
        shown.push(
            basic(user, password)
                .trim_start_matches("Basic ")
                .to_owned(),
        );
    }
    for secret in shown {
        assert!(!said.contains(&secret), "{secret}");
    }
}
