//! Who we are to a registry: whom the operator's passwords reach, and whom they never do.

use futures_util::future::join_all;
use serde_json::Value;

use crate::harness::binary::field;
use crate::harness::proxy::ONE;
use crate::harness::secret::says;
use crate::harness::token::{TOKEN, basic};
use crate::harness::{
    APP, Authority, Binary, Blob, BlobHost, Demand, FakeRegistry, Fault, HelperScript, Image, KIB,
    PasswordFile, ProxyBuilder, TestProxy, TlsFront, TokenServer, Whole, any, get, head,
};

const USER: &str = "robot";
const PASSWORD: &str = "s3cr3t-password";
const OTHER: &str = "another-s3cr3t-password";
const IDENTITY: &str = "s3cr3t-identity/token=";

/// A proxy that believes no tag unasked and loses patience quickly, with a password from a file.
fn with_file(upstream: &FakeRegistry, file: &PasswordFile) -> ProxyBuilder {
    brief(upstream)
        .upstream("username", USER)
        .upstream("password_file", file.path())
}

fn with_helper(upstream: &FakeRegistry, helper: &HelperScript) -> ProxyBuilder {
    brief(upstream).upstream("credential_helper", helper.path())
}

fn brief(upstream: &FakeRegistry) -> ProxyBuilder {
    TestProxy::in_front_of(upstream)
        .set("freshness.fresh_for", "0s")
        .set("freshness.negative_for", "0s")
        .set("freshness.retry_after", "1m")
        .set("timeouts.first_byte", "2s")
}

/// A blob that nobody asked for yet.
fn new_blob(upstream: &FakeRegistry) -> Blob {
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    blob
}

/// Pulls something that upstream has to be asked for.
async fn pull(upstream: &FakeRegistry, proxy: &TestProxy) {
    proxy.pull_blob(APP, &new_blob(upstream)).await;
}

/// The answer to such a pull where it must not succeed; it tells nothing.
async fn refused(upstream: &FakeRegistry, proxy: &TestProxy) -> u16 {
    let whole = proxy.blob(APP, new_blob(upstream).digest()).whole().await;
    assert_discreet(&whole);
    whole.head.status
}

fn assert_discreet(whole: &Whole) {
    assert_silent(&format!("{:?} {}", whole.head, whole.text()));
    for name in ["127.0.0.1", "/tmp", "helper", "docker-credential"] {
        assert!(!whole.text().contains(name), "{name}: {}", whole.text());
    }
}

/// No secret of this file is in a text.
fn assert_silent(text: &str) {
    let coded = [PASSWORD, OTHER, IDENTITY].map(|it| basic(USER, it));
    let coded = coded.iter().map(|it| it.trim_start_matches("Basic "));
    let plain = [PASSWORD, OTHER, IDENTITY, "s3cr3t", TOKEN];
    for secret in plain.into_iter().chain(coded) {
        let at = text.find(secret).unwrap_or_default();
        let near = text.get(at.saturating_sub(200)..text.len().min(at + 200));
        assert!(!text.contains(secret), "{secret} in {near:?}");
    }
}

/// The statuses of what the fake was asked.
fn statuses(upstream: &FakeRegistry) -> Vec<u16> {
    upstream.log().iter().map(|it| it.status).collect()
}

#[tokio::test]
async fn a_registry_that_wants_a_password_gets_it_and_is_asked_once_whether_it_does() {
    let (upstream, file) = (FakeRegistry::start().await, PasswordFile::new(PASSWORD));
    upstream.lock(USER, PASSWORD);
    let image = Image::random(&[KIB, KIB]);
    upstream.serve_image(APP, "v1", &image);
    let proxy = with_file(&upstream, &file).start().await;
    proxy.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        proxy.pull_blob(APP, blob).await;
    }
    pull(&upstream, &proxy).await;
    let log = upstream.log();
    assert_eq!(log[0].header("authorization"), None);
    assert_eq!(log[0].status, 401);
    for seen in &log[1..] {
        let shown = seen.header("authorization");
        assert_eq!(shown, Some(basic(USER, PASSWORD).as_str()), "{seen:?}");
    }
}

#[tokio::test]
async fn a_password_may_come_from_a_variable() {
    let upstream = FakeRegistry::start().await;
    upstream.lock(USER, PASSWORD);
    let proxy = brief(&upstream)
        .upstream("username", USER)
        .upstream("password_env", "LAYERHOLD_TEST_PASSWORD")
        .variable("LAYERHOLD_TEST_PASSWORD", PASSWORD)
        .start()
        .await;
    pull(&upstream, &proxy).await;
}

#[tokio::test]
async fn a_token_server_gets_the_password_and_the_registry_only_tokens() {
    let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
    let file = PasswordFile::new(PASSWORD);
    // Whoever may have a token need not show a password.
    let both = r#"Basic realm="fake", Bearer realm="{realm}",service="fake",scope="{scope}""#;
    upstream.challenge(&tokens, both);
    tokens.lock(USER, PASSWORD);
    let proxy = with_file(&upstream, &file).start().await;
    for _ in 0..3 {
        pull(&upstream, &proxy).await;
    }
    // The registry fails the test when it sees anything but a token of this server.
    let exchanges = tokens.log();
    let shown: Vec<_> = exchanges
        .iter()
        .map(|it| it.header("authorization"))
        .collect();
    assert_eq!(shown, [Some(basic(USER, PASSWORD).as_str())]);
}

#[tokio::test]
async fn pitfall_34_a_wrong_password_is_forgotten_when_it_was_corrected() {
    let (tokens, plain) = (TokenServer::start().await, FakeRegistry::start().await);
    let guarded = FakeRegistry::start().await;
    guarded.require_token(&tokens);
    for upstream in [&plain, &guarded] {
        let file = PasswordFile::new("wrong");
        tokens.lock(USER, PASSWORD);
        plain.lock(USER, PASSWORD);
        let proxy = with_file(upstream, &file).start().await;
        for _ in 0..2 {
            assert_eq!(refused(upstream, &proxy).await, 401);
        }
        file.write(PASSWORD);
        pull(upstream, &proxy).await;
        // And again when somebody changed it at the registry, and then here.
        plain.lock(USER, OTHER);
        tokens.lock(USER, OTHER);
        tokens.expire();
        assert_eq!(refused(upstream, &proxy).await, 401);
        file.write(OTHER);
        pull(upstream, &proxy).await;
    }
}

#[tokio::test]
async fn a_password_that_was_refused_is_read_again_though_its_file_looks_the_same() {
    let (tokens, plain) = (TokenServer::start().await, FakeRegistry::start().await);
    let guarded = FakeRegistry::start().await;
    guarded.require_token(&tokens);
    let rotated: String = PASSWORD.chars().rev().collect();
    for upstream in [&plain, &guarded] {
        let file = PasswordFile::new(PASSWORD);
        tokens.lock(USER, PASSWORD);
        plain.lock(USER, PASSWORD);
        let proxy = with_file(upstream, &file).start().await;
        pull(upstream, &proxy).await;
        file.slip(&rotated);
        plain.lock(USER, &rotated);
        tokens.lock(USER, &rotated);
        tokens.expire();
        pull(upstream, &proxy).await;
    }
}

#[tokio::test]
async fn pitfall_34_a_new_password_uses_no_token_of_the_old_one() {
    let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
    upstream.require_token(&tokens);
    tokens.lock(USER, PASSWORD);
    let file = PasswordFile::new(PASSWORD);
    let proxy = with_file(&upstream, &file).start().await;
    pull(&upstream, &proxy).await;
    file.write(OTHER);
    tokens.lock(USER, OTHER);
    pull(&upstream, &proxy).await;
    let log = upstream.log();
    let shown: Vec<_> = log.iter().map(|it| it.header("authorization")).collect();
    let of = |n| format!("Bearer {TOKEN}-{n}");
    let (first, second) = (of(0), of(1));
    assert_eq!(shown, [None, Some(&*first), None, Some(&*second)]);
    let exchanges = tokens.log();
    let last = exchanges.last().and_then(|it| it.header("authorization"));
    assert_eq!(last, Some(basic(USER, OTHER).as_str()));
}

#[tokio::test]
async fn a_password_that_cannot_be_read_any_more_stays_in_use() {
    let (upstream, file) = (FakeRegistry::start().await, PasswordFile::new(PASSWORD));
    upstream.lock(USER, PASSWORD);
    let proxy = with_file(&upstream, &file).start().await;
    pull(&upstream, &proxy).await;
    // As it is for a moment while somebody writes it.
    std::fs::write(file.path(), "").unwrap();
    pull(&upstream, &proxy).await;
    file.lose();
    pull(&upstream, &proxy).await;
    file.write(OTHER);
    upstream.lock(USER, OTHER);
    pull(&upstream, &proxy).await;
    assert_eq!(statuses(&upstream), [401, 200, 200, 200, 200]);
}

#[tokio::test]
async fn without_its_password_nobody_is_asked_as_anybody_else() {
    let (upstream, file) = (FakeRegistry::start().await, PasswordFile::new(PASSWORD));
    file.lose();
    let proxy = with_file(&upstream, &file).start().await;
    assert_eq!(refused(&upstream, &proxy).await, 502);
    assert_eq!(upstream.connections(), 0);
    file.write(PASSWORD);
    pull(&upstream, &proxy).await;
}

#[tokio::test]
async fn a_helper_is_asked_by_the_registrys_name_and_not_for_every_pull() {
    let upstream = FakeRegistry::start().await;
    upstream.lock(USER, PASSWORD);
    let helper = HelperScript::saying(USER, PASSWORD);
    let proxy = with_helper(&upstream, &helper).start().await;
    let pulls = (0..10).map(|_| pull(&upstream, &proxy));
    join_all(pulls).await;
    assert_eq!(helper.runs(), 1);
    assert_eq!(helper.asked(), upstream.address().to_string());
}

#[tokio::test]
async fn a_helper_is_asked_again_when_its_word_was_refused() {
    let (tokens, plain) = (TokenServer::start().await, FakeRegistry::start().await);
    let guarded = FakeRegistry::start().await;
    guarded.require_token(&tokens);
    tokens.lock(USER, PASSWORD);
    plain.lock(USER, PASSWORD);
    for upstream in [&plain, &guarded] {
        let (old, new) = (says(USER, "old"), says(USER, PASSWORD));
        let script = format!("if [ \"$(wc -l < runs)\" -eq 1 ]; then {old}; else {new}; fi");
        let helper = HelperScript::new(&script);
        let proxy = with_helper(upstream, &helper).start().await;
        pull(upstream, &proxy).await;
        pull(upstream, &proxy).await;
        assert_eq!(helper.runs(), 2);
    }
}

#[tokio::test]
async fn a_helper_that_insists_on_what_was_refused_is_not_asked_for_ever() {
    let upstream = FakeRegistry::start().await;
    upstream.lock(USER, PASSWORD);
    let helper = HelperScript::saying(USER, OTHER);
    let proxy = with_helper(&upstream, &helper).start().await;
    for _ in 0..3 {
        assert_eq!(refused(&upstream, &proxy).await, 401);
    }
    assert_eq!(helper.runs(), 2);
    // Once without, and once with it.
    assert_eq!(statuses(&upstream), [401; 2]);
}

#[tokio::test]
async fn pitfall_44_a_registry_that_refuses_heads_refuses_no_credentials() {
    let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
    upstream.require_token(&tokens);
    tokens.lock(USER, PASSWORD);
    upstream.always(head("/"), Fault::Status(401));
    let helper = HelperScript::saying(USER, PASSWORD);
    let proxy = with_helper(&upstream, &helper).start().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    for _ in 0..2 {
        proxy.pull_manifest(APP, "v1").await;
        let target = format!("/v2/{APP}/blobs/{}", new_blob(&upstream).digest());
        assert_eq!(proxy.head(target).whole().await.head.status, 200);
    }
    assert_eq!(helper.runs(), 1);
}

#[tokio::test]
async fn a_helper_that_knows_of_nobody_makes_us_nobody() {
    let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
    upstream.require_token(&tokens);
    let helper = HelperScript::new("echo 'credentials not found in native keychain'; exit 1");
    let proxy = with_helper(&upstream, &helper).start().await;
    // Either fails the test when it sees credentials.
    pull(&upstream, &proxy).await;
    assert_eq!(tokens.exchanges(), 1);
}

#[tokio::test]
async fn a_helper_that_fails_is_an_outage_and_nobody_is_asked() {
    let (said, hush) = (says(USER, PASSWORD), format!("echo {PASSWORD}"));
    for script in [
        format!("{said}; exit 1"),
        format!("{hush}; {hush} >&2; exit 3"),
        hush.clone(),
        format!("{hush} >&2"),
        "kill -9 $$".to_owned(),
        // More than it may print, and no end of it.
        format!("while :; do {said}; done"),
        format!("(while :; do {said}; done) & wait"),
        // What it says on the side stops nobody.
        format!("head -c 1000000 /dev/zero >&2; {hush}"),
    ] {
        let (upstream, helper) = (FakeRegistry::start().await, HelperScript::new(&script));
        let proxy = with_helper(&upstream, &helper).start().await;
        assert_eq!(refused(&upstream, &proxy).await, 502, "{script}");
        assert_eq!(upstream.connections(), 0, "{script}");
        assert_eq!(helper.runs(), 1, "{script}");
    }
    let upstream = FakeRegistry::start().await;
    let proxy = brief(&upstream).upstream("credential_helper", "/nowhere/helper");
    assert_eq!(refused(&upstream, &proxy.start().await).await, 502);
}

#[tokio::test]
async fn a_helper_that_fails_after_a_refusal_leaves_the_refusal() {
    let upstream = FakeRegistry::start().await;
    upstream.lock(USER, PASSWORD);
    let old = says(USER, OTHER);
    let helper = HelperScript::new(&format!("[ -e bad ] && exit 1; touch bad; {old}"));
    let proxy = with_helper(&upstream, &helper).start().await;
    for _ in 0..3 {
        assert_eq!(refused(&upstream, &proxy).await, 401);
    }
    // It failed once, and has a pause.
    assert_eq!(helper.runs(), 2);
}

#[tokio::test]
async fn what_a_stranger_may_not_read_takes_no_credentials_away() {
    let upstream = FakeRegistry::start().await;
    upstream.lock(USER, PASSWORD);
    // Works once, then is down.
    let said = says(USER, PASSWORD);
    let helper = HelperScript::new(&format!("[ -e used ] && exit 1; touch used; {said}"));
    let proxy = with_helper(&upstream, &helper).start().await;
    let [first, second] = [(); 2].map(|()| Blob::random(KIB));
    upstream.serve_blob(APP, &first);
    upstream.serve_blob(APP, &second);
    proxy.pull_blob(APP, &first).await;
    upstream.always(any("/v2/secret/"), Fault::Status(401));
    let secret = proxy.blob("secret/app", second.digest()).whole().await;
    assert_eq!(secret.head.status, 401);
    proxy.pull_blob(APP, &second).await;
}

#[tokio::test]
async fn a_helper_that_hangs_is_killed_with_its_children_once_for_everybody() {
    let upstream = FakeRegistry::start().await;
    let script = "echo $$ > self; sleep 1000 & echo $! > child; wait";
    let helper = HelperScript::new(script);
    let proxy = with_helper(&upstream, &helper).start().await;
    let pulls = (0..8).map(|_| refused(&upstream, &proxy));
    for status in join_all(pulls).await {
        assert_eq!(status, 502);
    }
    assert_eq!((helper.runs(), upstream.connections()), (1, 0));
    helper.gone("self").await;
    helper.dead("child").await;
}

#[tokio::test]
async fn a_helper_that_nobody_waits_for_any_more_is_killed() {
    let upstream = FakeRegistry::start().await;
    let helper = HelperScript::new("echo $$ > self; sleep 1000 & echo $! > child; wait");
    let proxy = with_helper(&upstream, &helper).start().await;
    let request = proxy.get(format!("/v2/{APP}/tags/list"));
    let connection = request.dispatch().await;
    crate::harness::poll("the helper to run", async || {
        let child = std::fs::read_to_string(helper.file("child")).unwrap_or_default();
        child.ends_with('\n').then_some(())
    })
    .await;
    drop(connection);
    helper.gone("self").await;
    helper.dead("child").await;
}

#[tokio::test]
async fn an_identity_token_is_for_the_token_server_alone() {
    let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
    upstream.require_token(&tokens);
    tokens.want_identity(IDENTITY);
    tokens.answer_with("access_token");
    let helper = HelperScript::saying("<token>", IDENTITY);
    let proxy = with_helper(&upstream, &helper).start().await;
    pull(&upstream, &proxy).await;
    tokens.expire();
    // The one that came with the first answer is not taken in its place.
    pull(&upstream, &proxy).await;
    assert_eq!(tokens.exchanges(), 2);
    for seen in tokens.log() {
        let mut pairs: Vec<(String, String)> = form_urlencoded::parse(seen.body.as_bytes())
            .into_owned()
            .collect();
        pairs.sort();
        let expected = [
            ("client_id", "layerhold"),
            ("grant_type", "refresh_token"),
            ("refresh_token", IDENTITY),
            ("scope", "repository:team/app:pull"),
            ("service", "fake"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(pairs, expected);
        let form = Some("application/x-www-form-urlencoded");
        assert_eq!(
            (seen.header("content-type"), seen.query.as_deref()),
            (form, None)
        );
    }
    // Whoever asks for a password is not shown what is none.
    upstream.lock(USER, PASSWORD);
    assert_eq!(refused(&upstream, &proxy).await, 401);
    let coded = upstream.log().into_iter().filter(|it| {
        let shown = it.header("authorization").unwrap_or_default();
        shown.starts_with("Basic")
    });
    assert_eq!(coded.count(), 0);
}

#[tokio::test]
async fn an_exchange_that_fails_fails_for_all_who_wait_for_it() {
    let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
    upstream.require_token(&tokens);
    for (fault, status) in [
        (Fault::Status(500), 502),
        (Fault::Html200, 502),
        (Fault::Status(403), 403),
    ] {
        let proxy = brief(&upstream).start().await;
        tokens.heal();
        tokens.always(any("/token"), fault);
        let gate = tokens.hold(any("/token"), crate::harness::At::Head);
        let before = (tokens.exchanges(), upstream.log().len());
        let pulls = (0..12).map(|_| refused(&upstream, &proxy));
        let release = async {
            // Refused all of them, and at most on their way to the one who asks.
            upstream.wait_for(&any("/blobs/"), before.1 + 12).await;
            gate.reached().await;
            proxy
                .wait_for_metric(
                    "layerhold_upstream_requests_total",
                    &[("endpoint", "blob"), ("status", "401")],
                    |it| it >= 12.0,
                )
                .await;
            gate.open();
        };
        let (found, ()) = tokio::join!(join_all(pulls), release);
        assert_eq!(found, [status; 12], "{fault:?}");
        assert_eq!(tokens.exchanges() - before.0, 1, "{fault:?}");
    }
}

#[tokio::test]
async fn pitfall_31_a_realm_on_another_host_receives_no_password() {
    let foreign = TokenServer::start_at("127.0.0.2").await;
    let listed = TokenServer::start_at("127.0.0.3").await;
    let local = TokenServer::start().await;
    let port = local.address().port();
    for realm in [
        foreign.realm(),
        format!("http://localhost:{port}/token"),
        format!("http://user:word@127.0.0.1:{port}/token"),
        format!("http://127.0.0.1:{port}@{}/token", foreign.address()),
    ] {
        for offers_basic in [false, true] {
            let (upstream, file) = (FakeRegistry::start().await, PasswordFile::new(PASSWORD));
            let bearer = format!(r#"Bearer realm="{realm}",service="fake""#);
            if offers_basic {
                let both = format!("{bearer}, Basic realm=\"fake\"");
                upstream.lock_and_say(USER, PASSWORD, &both);
            } else {
                upstream.challenge(&local, &bearer);
            }
            // Of those that are listed, one is on its host and none on its port.
            let other = format!("http://127.0.0.2:{}", listed.address().port());
            let proxy = with_file(&upstream, &file)
                .upstream("token_realms", vec![listed.root(), other])
                .start()
                .await;
            // The registry itself may ask for a password in the same breath.
            if offers_basic {
                pull(&upstream, &proxy).await;
            } else {
                assert_eq!(refused(&upstream, &proxy).await, 401, "{realm}");
            }
        }
    }
    let connections = [&foreign, &listed, &local].map(|it| it.connections());
    assert_eq!(connections, [0, 0, 0]);
}

/// The registry by a name of its own and a token server by another, both on the Internet for all that anybody knows.
fn named(
    proxy: ProxyBuilder,
    registry: &str,
    (upstream, realm): (&FakeRegistry, &str),
) -> ProxyBuilder {
    let url = format!("http://{registry}:{}", upstream.address().port());
    proxy
        .upstream("url", url)
        .name(registry, &["192.0.2.1"])
        .name(realm, &["192.0.2.1"])
        .stand_in("192.0.2.1", upstream.address().ip())
}

#[tokio::test]
async fn pitfall_31_a_realm_of_another_domain_receives_no_password() {
    for (registry, realm, is_own) in [
        ("registry.example.com", "auth.example.com", true),
        ("registry.example.co.uk", "auth.example.co.uk", true),
        ("registry.example.com", "auth.example.net", false),
        ("registry.example.com", "auth.xample.com", false),
        (
            "registry.example.com",
            "registry.example.com.evil.net",
            false,
        ),
        // Of one suffix under which anybody registers.
        ("good.github.io", "evil.github.io", false),
        ("registry.good.co.uk", "auth.evil.co.uk", false),
        // Of a suffix that nobody vouches for.
        ("registry.good.internal", "auth.good.internal", false),
        ("registry", "auth", false),
        ("registry", "registry.evil.net", false),
        // Where it is, and not who.
        ("registry.example.com", "192.0.2.1", false),
    ] {
        let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
        let file = PasswordFile::new(PASSWORD);
        tokens.lock(USER, PASSWORD);
        let challenge = format!(
            r#"Bearer realm="http://{realm}:{}/token",service="fake""#,
            tokens.address().port()
        );
        upstream.challenge(&tokens, &challenge);
        let proxy = with_file(&upstream, &file);
        let proxy = named(proxy, registry, (&upstream, realm)).start().await;
        if is_own {
            pull(&upstream, &proxy).await;
            assert_eq!(tokens.exchanges(), 1, "{registry} names {realm}");
        } else {
            let status = refused(&upstream, &proxy).await;
            let found = (status, tokens.connections());
            assert_eq!(found, (401, 0), "{registry} names {realm}");
        }
    }
}

#[tokio::test]
async fn pitfall_31_a_realm_in_a_private_network_receives_no_password_of_a_public_registry() {
    for inside in ["127.0.0.1", "10.0.0.7", "169.254.169.254", "fd00::1"] {
        let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
        let file = PasswordFile::new(PASSWORD);
        let realm = "auth.example.com";
        let port = tokens.address().port();
        let challenge = format!(r#"Bearer realm="http://{realm}:{port}/token""#);
        upstream.challenge(&tokens, &challenge);
        let proxy = with_file(&upstream, &file);
        let proxy = named(proxy, "registry.example.com", (&upstream, realm))
            .name(realm, &[inside])
            .stand_in(inside, tokens.address().ip());
        let proxy = proxy.start().await;
        let found = (refused(&upstream, &proxy).await, tokens.connections());
        assert_eq!(found, (502, 0), "{inside}");
    }
}

#[tokio::test]
async fn pitfall_31_nothing_that_goes_by_https_goes_on_by_http() {
    let authority = Authority::new();
    for listed in [false, true] {
        let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
        let (registry, realm) = ("registry.example.com", "auth.example.com");
        let names = [registry];
        let front = TlsFront::start(&upstream, &authority, &names, Demand::Nothing).await;
        let file = PasswordFile::new(PASSWORD);
        let root = format!("http://{realm}:{}", tokens.address().port());
        let challenge = format!(r#"Bearer realm="{root}/token", Basic realm="fake""#);
        let proxy = with_file(&upstream, &file);
        let authority = proxy.write("ca.pem", &authority.pem());
        let other = "http://other.example.com".to_owned();
        let listed = if listed { root } else { other };
        let proxy = named(proxy, registry, (&upstream, realm))
            .upstream("url", front.url(registry))
            .upstream("ca_file", authority)
            .upstream("token_realms", vec![listed]);
        // The registry itself asks, too, and what it gets nobody else hears.
        upstream.lock_and_say(USER, PASSWORD, &challenge);
        pull(&upstream, &proxy.start().await).await;
        assert_eq!(tokens.connections(), 0);
    }
}

#[tokio::test]
async fn a_listed_realm_is_asked_though_it_is_elsewhere() {
    let tokens = TokenServer::start_at("127.0.0.2").await;
    let (upstream, file) = (FakeRegistry::start().await, PasswordFile::new(PASSWORD));
    upstream.require_token(&tokens);
    tokens.lock(USER, PASSWORD);
    let proxy = with_file(&upstream, &file)
        .upstream("token_realms", vec![tokens.root()])
        .start()
        .await;
    pull(&upstream, &proxy).await;
    assert_eq!(tokens.exchanges(), 1);
}

#[tokio::test]
async fn pitfall_32_a_redirect_target_receives_no_password_even_if_it_asks() {
    let (upstream, host) = (FakeRegistry::start().await, BlobHost::start().await);
    let file = PasswordFile::new(PASSWORD);
    upstream.lock(USER, PASSWORD);
    let proxy = with_file(&upstream, &file).start().await;
    let blob = Blob::random(KIB);
    upstream.redirect(get(blob.digest()), 307, host.serve(&blob));
    // It fails the test when it sees credentials that it did not ask for.
    proxy.pull_blob(APP, &blob).await;

    host.lock(USER, PASSWORD);
    let asking = Blob::random(KIB);
    upstream.redirect(get(asking.digest()), 307, host.serve(&asking));
    let whole = proxy.blob(APP, asking.digest()).whole().await;
    assert_eq!(whole.head.status, 502, "{}", whole.text());
    for seen in host.log() {
        assert_eq!(seen.header("authorization"), None, "{seen:?}");
    }
}

#[tokio::test]
async fn a_token_server_that_redirects_takes_no_password_anywhere() {
    let (tokens, elsewhere) = (TokenServer::start().await, TokenServer::start().await);
    let (upstream, file) = (FakeRegistry::start().await, PasswordFile::new(PASSWORD));
    upstream.require_token(&tokens);
    tokens.lock(USER, PASSWORD);
    tokens.redirect(any("/token"), 307, elsewhere.realm());
    let proxy = with_file(&upstream, &file).start().await;
    assert_eq!(refused(&upstream, &proxy).await, 502);
    assert_eq!((tokens.exchanges(), elsewhere.connections()), (1, 0));
}

#[tokio::test]
async fn a_password_is_for_its_own_upstream() {
    let (upstream, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let file = PasswordFile::new(PASSWORD);
    upstream.lock(USER, PASSWORD);
    other.lock(USER, PASSWORD);
    let proxy = with_file(&upstream, &file).and("two.example", &other);
    let proxy = proxy.start().await;
    pull(&upstream, &proxy).await;
    let blob = new_blob(&other);
    let target = format!("/v2/{APP}/blobs/{}?ns=two.example", blob.digest());
    assert_eq!(proxy.get(target).whole().await.head.status, 401);
    for seen in other.log() {
        assert_eq!(seen.header("authorization"), None, "{seen:?}");
    }
}

#[tokio::test]
async fn a_mirror_receives_nothing_of_the_registrys() {
    let (upstream, mirror) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let file = PasswordFile::new(PASSWORD);
    upstream.lock(USER, PASSWORD);
    mirror.lock(USER, PASSWORD);
    let proxy = with_file(&upstream, &file).mirror(&mirror, "");
    let proxy = proxy.start().await;
    for _ in 0..2 {
        pull(&upstream, &proxy).await;
    }
    assert!(!mirror.log().is_empty());
    for seen in mirror.log() {
        assert_eq!(seen.header("authorization"), None, "{seen:?}");
    }
}

#[tokio::test]
async fn a_mirror_has_credentials_of_its_own() {
    let (tokens, mirror) = (TokenServer::start().await, FakeRegistry::start().await);
    let (upstream, file) = (FakeRegistry::start().await, PasswordFile::new(OTHER));
    mirror.require_token(&tokens);
    tokens.lock(USER, OTHER);
    let keys = [("username", USER), ("password_file", &file.path())];
    let keys = keys.map(|(key, value)| (key, value.into()));
    let proxy = brief(&upstream).mirror_with(&mirror, "/hub", &keys);
    let proxy = proxy.start().await;
    let blob = Blob::random(KIB);
    mirror.serve_blob(&format!("hub/{APP}"), &blob);
    proxy.pull_blob(APP, &blob).await;
    assert_eq!((tokens.exchanges(), upstream.log().len()), (1, 0));
}

#[tokio::test]
async fn pitfall_38_a_clients_password_goes_no_further() {
    let upstream = FakeRegistry::start().await;
    upstream.lock(USER, PASSWORD);
    let proxy = brief(&upstream).start().await;
    let request = proxy.blob(APP, new_blob(&upstream).digest());
    let whole = request.header("Authorization", basic(USER, PASSWORD));
    assert_eq!(whole.whole().await.head.status, 401);
    assert_eq!(upstream.log()[0].header("authorization"), None);
}

/// A binary in front of this fake that says all that it can say.
fn talkative(upstream: &FakeRegistry, file: &PasswordFile) -> ProxyBuilder {
    with_file(upstream, file).set("log_level", "trace")
}

/// Has a binary pull and be refused, and checks all that it said, where `wanted` must be.
async fn overheard(binary: &Binary, wanted: &[&str], path: &str) {
    let whole = binary.get(path).whole().await;
    assert_discreet(&whole);
    for phrase in wanted {
        let said = |it: &Value| {
            let error = field(it, "error").map(Value::to_string).unwrap_or_default();
            let message = field(it, "message").map(Value::to_string);
            error.contains(phrase) || message.is_some_and(|it| it.contains(phrase))
        };
        binary.wait_for_log(said).await;
    }
    for line in binary.log() {
        assert_silent(&line.to_string());
    }
    assert_silent(&binary.metrics().await);
}

#[tokio::test]
async fn pitfall_38_no_password_and_no_token_is_ever_said() {
    let (tokens, plain) = (TokenServer::start().await, FakeRegistry::start().await);
    let guarded = FakeRegistry::start().await;
    guarded.require_token(&tokens);
    let refusal = "the registry refused our credentials";
    for upstream in [&plain, &guarded] {
        plain.lock(USER, PASSWORD);
        tokens.lock(USER, PASSWORD);
        let file = PasswordFile::new(PASSWORD);
        let binary = Binary::start(&talkative(upstream, &file)).await;
        let blob = new_blob(upstream);
        let path = format!("/v2/{APP}/blobs/{}", blob.digest());
        overheard(&binary, &[], &path).await;
        plain.lock(USER, OTHER);
        tokens.lock(USER, OTHER);
        tokens.expire();
        let path = format!("/v2/{APP}/tags/list");
        overheard(&binary, &[refusal], &path).await;
        overheard(&binary, &[], &path).await;
        std::fs::write(file.path(), format!("{PASSWORD}\n{OTHER}\n")).unwrap();
        let last = "the last ones are used";
        overheard(
            &binary,
            &[last, "is neither one line of text nor a JSON document"],
            &path,
        )
        .await;
        overheard(&binary, &[], &path).await;
        // Said once, and not with every request.
        for phrase in [refusal, last] {
            let log = binary.log();
            let said = |it: &&Value| it.to_string().contains(phrase);
            assert_eq!(log.iter().filter(said).count(), 1, "{phrase}");
        }
    }
}

#[tokio::test]
async fn pitfall_38_what_a_helper_says_is_not_said_again() {
    let (tokens, upstream) = (TokenServer::start().await, FakeRegistry::start().await);
    upstream.require_token(&tokens);
    tokens.want_identity(IDENTITY);
    let path = format!("/v2/{APP}/tags/list");
    for (script, wanted) in [
        (says("<token>", IDENTITY), ""),
        (
            says("<token>", OTHER),
            "the registry refused our credentials",
        ),
        (format!("echo {PASSWORD}"), "printed no credentials"),
        (format!("echo {PASSWORD} >&2; exit 7"), "exit status: 7"),
        (
            format!("while :; do echo {PASSWORD}; done"),
            "printed more than 65536 bytes",
        ),
        (format!("echo {PASSWORD}; sleep 1000"), "gave no answer for"),
        (
            format!("{}; exit 1", says(USER, PASSWORD)),
            "exit status: 1",
        ),
    ] {
        let helper = HelperScript::new(&script);
        let builder = with_helper(&upstream, &helper).set("log_level", "trace");
        let binary = Binary::start(&builder).await;
        overheard(&binary, &[wanted], &path).await;
    }
    let (file, ours) = (PasswordFile::new(PASSWORD), ONE);
    let (_, printed) = Binary::check(&talkative(&upstream, &file)).await;
    assert!(printed.contains(ours));
    assert_silent(&printed);
}
