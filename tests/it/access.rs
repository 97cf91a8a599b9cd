//! Who may pull what: passwords, tokens, rules, and the token endpoint that clients are sent to.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

use crate::harness::binary::field;
use crate::harness::blob::sha256;
use crate::harness::proxy::{Front, ONE, TWO};
use crate::harness::token::basic;
use crate::harness::{
    APP, Authority, Binary, Blob, Connection, FakeRegistry, Head, Identity, Image, KIB,
    ProxyBuilder, Request, TestProxy, Whole, any, poll,
};

/// A user and a password.
type User = (&'static str, &'static str);

const ANN: User = ("ann", "open sesame");
const BOB: User = ("bob", "pa:ss");
/// Whose password is a token of the operator's.
const CI: User = ("ci", "static-token-of-ci");

/// A file of users, as `htpasswd -B -C 4` makes it.
fn htpasswd(users: &[User]) -> String {
    let line = |(name, password): &User| {
        let hash = bcrypt::hash(password, 4).unwrap();
        format!("{name}:{hash}\n")
    };
    users.iter().map(line).collect()
}

/// A file of tokens.
fn tokens(users: &[User]) -> String {
    let line = |(name, token): &User| {
        let digest = sha256(token.as_bytes());
        format!("{name}:{}\n", digest.strip_prefix("sha256:").unwrap())
    };
    users.iter().map(line).collect()
}

/// A proxy that knows ann and bob by their passwords and ci by a token.
fn guarded(upstream: &FakeRegistry) -> ProxyBuilder {
    let builder = TestProxy::in_front_of(upstream);
    let users = builder.write("htpasswd", &htpasswd(&[ANN, BOB]));
    let tokens = builder.write("tokens", &tokens(&[CI]));
    builder
        .set("access.htpasswd_file", users)
        .set("access.tokens_file", tokens)
}

/// The same, with rules, each in the words of TOML.
fn ruled(upstream: &FakeRegistry, rules: &[&str]) -> ProxyBuilder {
    with_rules(guarded(upstream), rules)
}

fn with_rules(builder: ProxyBuilder, rules: &[&str]) -> ProxyBuilder {
    let rules: Vec<toml::Value> = rules
        .iter()
        .map(|rule| rule.parse::<toml::Table>().unwrap().into())
        .collect();
    builder.set("access.rule", rules)
}

fn serve(upstream: &FakeRegistry, repository: &str) -> Blob {
    let blob = Blob::random(KIB);
    upstream.serve_blob(repository, &blob);
    blob
}

fn as_user(request: Request, (name, password): User) -> Request {
    request.header("Authorization", basic(name, password))
}

fn with_token(request: Request, token: &str) -> Request {
    request.header("Authorization", format!("Bearer {token}"))
}

fn challenge(head: &Head) -> &str {
    assert_eq!(head.status, 401, "{head:?}");
    head.header("www-authenticate").unwrap()
}

/// The value of a parameter of the only challenge.
fn parameter(head: &Head, name: &str) -> Option<String> {
    let (_, rest) = challenge(head).split_once(&format!("{name}=\""))?;
    Some(rest.split('"').next().unwrap().to_owned())
}

fn token_in(whole: &Whole) -> String {
    assert_eq!(whole.head.status, 200, "{}", whole.text());
    assert_eq!(whole.head.header("cache-control"), Some("no-store"));
    let body: Value = serde_json::from_slice(&whole.bytes).unwrap();
    assert_eq!(body["token"], body["access_token"]);
    assert_eq!(body["expires_in"], 300);
    body["token"].as_str().unwrap().to_owned()
}

/// A token, as docker asks for it.
async fn log_in(front: &Front, user: User) -> String {
    let target = "/token?account=ann&client_id=docker&offline_token=true&service=a%3A5000";
    token_in(&as_user(front.get(target), user).whole().await)
}

/// The status of a pull of a blob.
async fn status(request: Request) -> u16 {
    request.whole().await.head.status
}

#[tokio::test]
async fn a_client_logs_in_as_docker_does() {
    let upstream = FakeRegistry::start().await;
    let proxy = guarded(&upstream).start().await;
    let blob = serve(&upstream, APP);
    let asked = proxy.get("/v2/").whole().await;
    assert_eq!(asked.code().as_deref(), Some("UNAUTHORIZED"));
    let own = proxy.registry;
    let expected = format!("Bearer realm=\"http://{own}/token\",service=\"{own}\"");
    assert_eq!(challenge(&asked.head), expected);
    let token = log_in(&proxy, ANN).await;
    with_token(proxy.get("/v2/"), &token)
        .whole()
        .await
        .is(200, b"{}");
    for _ in 0..2 {
        with_token(proxy.blob(APP, blob.digest()), &token)
            .send()
            .await
            .is(&blob)
            .await;
    }
    for user in [ANN, BOB, CI] {
        let token = log_in(&proxy, user).await;
        assert_eq!(status(with_token(proxy.head("/v2/"), &token)).await, 200);
    }
    // As curl does, without a token.
    for user in [ANN, BOB, CI] {
        as_user(proxy.blob(APP, blob.digest()), user)
            .send()
            .await
            .is(&blob)
            .await;
    }
    with_token(proxy.blob(APP, blob.digest()), CI.1)
        .send()
        .await
        .is(&blob)
        .await;
}

#[tokio::test]
async fn what_is_wrong_is_never_taken_for_nothing() {
    let upstream = FakeRegistry::start().await;
    let proxy = ruled(&upstream, &["action = 'allow'"]).start().await;
    let blob = serve(&upstream, APP);
    let digest = blob.digest();
    proxy.blob(APP, digest).send().await.is(&blob).await;
    let requests = || {
        [
            proxy.get("/v2/"),
            proxy.head("/v2/"),
            proxy.blob(APP, digest),
            proxy.manifest(APP, "v1"),
            proxy.get("/v2/?ns=unknown.example"),
            proxy.get("/token"),
        ]
    };
    for wrong in [
        basic("ann", "open sesam"),
        basic("ann", ""),
        basic("ann", BOB.1),
        basic("Ann", ANN.1),
        basic("eve", ANN.1),
        basic("ann", CI.1),
        basic("", ""),
        "Basic !".to_owned(),
        "Bearer".to_owned(),
        "Negotiate abc".to_owned(),
        format!("Basic {}", "a".repeat(20_000)),
    ] {
        // Remembered or not, it is wrong.
        for request in requests().into_iter().chain(requests()) {
            let whole = request.header("Authorization", &wrong).whole().await;
            let start = format!("Bearer realm=\"http://{}/token\"", proxy.registry);
            assert!(challenge(&whole.head).starts_with(&start), "{wrong}");
        }
    }
    for request in requests().into_iter().take(4) {
        let whole = with_token(request, "nobodys").whole().await;
        assert_eq!(
            parameter(&whole.head, "error").as_deref(),
            Some("invalid_token")
        );
    }
    let both = as_user(as_user(proxy.get("/v2/"), ANN), ANN).whole().await;
    assert_eq!(both.head.status, 401);
    assert!(
        proxy
            .metric("layerhold_authentications_total", &[("result", "wrong")])
            .await
            > 100.0
    );
    assert!(
        proxy
            .metric("layerhold_authentications_total", &[("result", "void")])
            .await
            >= 4.0
    );
}

#[tokio::test]
async fn who_nobody_is_may_what_rules_say_and_is_asked_for_a_token_otherwise() {
    let upstream = FakeRegistry::start().await;
    let rules = [
        "action = 'allow'\nrepositories = ['library/*']",
        "action = 'allow'\nidentities = ['ann']",
    ];
    let proxy = ruled(&upstream, &rules).start().await;
    let (open, closed) = (serve(&upstream, "library/a"), serve(&upstream, "team/a"));
    let token = token_in(
        &proxy
            .get("/token?scope=repository:team/a:pull")
            .whole()
            .await,
    );
    assert_eq!(status(with_token(proxy.get("/v2/"), &token)).await, 200);
    proxy
        .blob("library/a", open.digest())
        .send()
        .await
        .is(&open)
        .await;
    with_token(proxy.blob("library/a", open.digest()), &token)
        .send()
        .await
        .is(&open)
        .await;
    let whole = proxy.blob("team/a", closed.digest()).whole().await;
    assert_eq!(whole.code().as_deref(), Some("UNAUTHORIZED"));
    let scope = parameter(&whole.head, "scope");
    assert_eq!(scope.as_deref(), Some("repository:team/a:pull"));
    assert_eq!(parameter(&whole.head, "error"), None);
    let whole = with_token(proxy.blob("team/a", closed.digest()), &token)
        .whole()
        .await;
    let error = parameter(&whole.head, "error");
    assert_eq!(error.as_deref(), Some("insufficient_scope"));
    as_user(proxy.blob("team/a", closed.digest()), ANN)
        .send()
        .await
        .is(&closed)
        .await;
    // A name is what the upstream knows, and a scope what the client says.
    let prefixed = proxy
        .blob(&format!("{ONE}/team/a"), closed.digest())
        .whole()
        .await;
    let scope = parameter(&prefixed.head, "scope").unwrap();
    assert_eq!(scope, format!("repository:{ONE}/team/a:pull"));
}

#[tokio::test]
async fn who_is_denied_is_told_by_which_rule_and_nothing_else() {
    let (upstream, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let builder = guarded(&upstream).and(TWO, &other);
    let builder = with_rules(
        builder,
        &[
            "action = 'allow'\nidentities = ['ann']\nrepositories = ['team/**']",
            "action = 'deny'\nrepositories = ['team/**']",
            "action = 'allow'\nidentities = ['authenticated']\nupstreams = ['two.example']",
        ],
    );
    let proxy = builder.start().await;
    let secret = serve(&upstream, "team/x/app");
    let image = Image::random(&[KIB]);
    upstream.serve_image("team/x/app", "v1", &image);
    as_user(proxy.blob("team/x/app", secret.digest()), ANN)
        .send()
        .await
        .is(&secret)
        .await;
    let asked = upstream.count(&any(""));
    for request in [
        proxy.blob("team/x/app", secret.digest()),
        proxy.blob("team/x/app", secret.digest()).range("bytes=0-1"),
        proxy.manifest("team/x/app", "v1"),
        proxy.manifest("team/x/app", image.manifest.digest()),
        proxy.manifest("team/x/app", "unknown"),
        proxy.get("/v2/team/x/app/tags/list"),
        proxy.get(format!("/v2/team/x/app/referrers/{}", secret.digest())),
    ] {
        let whole = as_user(request, BOB).whole().await;
        assert_eq!(whole.head.status, 403);
        let expected =
            r#"{"errors":[{"code":"DENIED","message":"access rule 2 of this proxy denies this"}]}"#;
        assert_eq!(whole.text(), expected);
        assert_eq!(whole.head.header("www-authenticate"), None);
    }
    let none = as_user(proxy.blob("mine/app", secret.digest()), ANN)
        .whole()
        .await;
    assert_eq!(none.head.status, 403);
    assert!(
        none.text()
            .contains("no access rule of this proxy allows this")
    );
    // What is here is no right to it: neither the blob's bytes nor whether there are any.
    assert_eq!(upstream.count(&any("")), asked);
    let elsewhere = serve(&other, "team2/app");
    let target = format!("/v2/team2/app/blobs/{}?ns={TWO}", elsewhere.digest());
    as_user(proxy.get(&target), BOB)
        .send()
        .await
        .is(&elsewhere)
        .await;
    let whole = proxy.get(&target).whole().await;
    assert_eq!(parameter(&whole.head, "service").as_deref(), Some(TWO));
    assert_eq!(whole.head.header("oci-namespace"), Some(TWO));
    let ping = proxy.get(format!("/v2/?ns={TWO}")).whole().await;
    assert_eq!(parameter(&ping.head, "service").as_deref(), Some(TWO));
    let denied = |identity| [("identity", identity)];
    let count = "layerhold_access_denied_total";
    assert_eq!(proxy.metric(count, &denied("named")).await, 8.0);
    assert_eq!(proxy.metric(count, &denied("anonymous")).await, 1.0);
}

#[tokio::test]
async fn official_images_are_in_library_for_rules_too() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of_named("docker.io", &upstream);
    let rules = [
        "action = 'deny'\nrepositories = ['library/secret']",
        "action = 'allow'",
    ];
    let proxy = with_rules(builder, &rules).start().await;
    for name in [
        "secret",
        "library/secret",
        "docker.io/secret",
        "docker.io/library/secret",
    ] {
        let whole = proxy.manifest(name, "v1").whole().await;
        // Nobody can show who they are here, so nobody is asked to.
        assert_eq!(whole.head.status, 403, "{name}");
        assert_eq!(whole.head.header("www-authenticate"), None);
    }
    let target = "/v2/secret/manifests/v1?ns=docker.io";
    assert_eq!(status(proxy.get(target)).await, 403);
    assert_eq!(upstream.log().len(), 0);
    assert_eq!(status(proxy.get("/v2/")).await, 200);
}

#[tokio::test]
async fn who_is_struck_out_is_out() {
    let upstream = FakeRegistry::start().await;
    let builder = guarded(&upstream);
    let proxy = builder.clone().start().await;
    let (anns, bobs) = (log_in(&proxy, ANN).await, log_in(&proxy, BOB).await);
    let cis = log_in(&proxy, CI).await;
    assert_eq!(status(as_user(proxy.get("/v2/"), ANN)).await, 200);
    builder.write(
        "htpasswd",
        &htpasswd(&[("ann", "another one"), BOB, ("eve", "new")]),
    );
    builder.write("tokens", "# nobody\n");
    poll("ann to be out", async || {
        let whole = with_token(proxy.get("/v2/"), &anns).whole().await;
        (whole.head.status == 401).then_some(whole)
    })
    .await;
    poll("ci to be out", async || {
        let whole = with_token(proxy.get("/v2/"), &cis).whole().await;
        (whole.head.status == 401).then_some(whole)
    })
    .await;
    // Remembered is the password for the entry that was there.
    assert_eq!(status(as_user(proxy.get("/v2/"), ANN)).await, 401);
    assert_eq!(status(with_token(proxy.get("/v2/"), CI.1)).await, 401);
    assert_eq!(
        status(as_user(proxy.get("/v2/"), ("ann", "another one"))).await,
        200
    );
    assert_eq!(
        status(as_user(proxy.get("/v2/"), ("eve", "new"))).await,
        200
    );
    // The same password in another line is another entry.
    let whole = with_token(proxy.get("/v2/"), &bobs).whole().await;
    assert_eq!(
        parameter(&whole.head, "error").as_deref(),
        Some("invalid_token")
    );
    assert_eq!(status(as_user(proxy.get("/v2/"), BOB)).await, 200);
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_says_so_once() {
    let upstream = FakeRegistry::start().await;
    let builder = guarded(&upstream);
    let binary = Binary::start(&builder).await;
    let phrase = "a file of who there is could not be read, its last content is used";
    let complaints = || {
        let log = binary.log();
        let of = log.iter().filter(|line| line["message"] == phrase);
        of.map(|line| line["error"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    builder.write("htpasswd", "ann:$apr1$abc$hush\n");
    poll("the complaint", async || {
        assert_eq!(status(as_user(binary.get("/v2/"), ANN)).await, 200);
        (!complaints().is_empty()).then_some(())
    })
    .await;
    let said = complaints();
    assert!(
        said[0]
            .ends_with("/htpasswd: line 1: the hash is not bcrypt's: make it with `htpasswd -B`")
    );
    assert!(!said[0].contains("apr1"));
    builder.write("htpasswd", &htpasswd(&[("eve", "new")]));
    poll("another user", async || {
        let now = status(as_user(binary.get("/v2/"), ("eve", "new"))).await;
        (now == 200).then_some(())
    })
    .await;
    assert_eq!(complaints().len(), 1);
    assert_eq!(status(as_user(binary.get("/v2/"), ANN)).await, 401);

    let wrong = builder.clone();
    wrong.write("htpasswd", "ann:hush\n");
    let (exit, _) = Binary::check(&wrong).await;
    assert_eq!(exit.code(), Some(64));
    let (exit, said) = Binary::refused(&wrong).await;
    assert_eq!(exit.code(), Some(64));
    assert!(
        said.starts_with("layerhold: access: ") && said.contains("/htpasswd: line 1: "),
        "{said}"
    );
    assert!(!said.contains("hush"), "{said}");
}

#[tokio::test]
async fn a_reload_takes_other_rules() {
    let upstream = FakeRegistry::start().await;
    let builder = ruled(&upstream, &["action = 'allow'\nidentities = ['ann']"]);
    let binary = Binary::start(&builder).await;
    let blob = serve(&upstream, APP);
    let token = log_in(&binary, ANN).await;
    let pull = || with_token(binary.blob(APP, blob.digest()), &token);
    pull().send().await.is(&blob).await;
    with_rules(builder.clone(), &["action = 'allow'\nidentities = ['bob']"]).file();
    binary.hang_up();
    poll("the new rules", async || {
        (status(pull()).await == 403).then_some(())
    })
    .await;
    as_user(binary.blob(APP, blob.digest()), BOB)
        .send()
        .await
        .is(&blob)
        .await;
    let restarts = |line: &Value| line["part"].is_string();
    assert!(!binary.log().iter().any(restarts));
    // A rule about an upstream that is none is a mistake, and changes nothing.
    with_rules(
        builder,
        &["action = 'allow'\nupstreams = ['three.example']"],
    )
    .file();
    binary.hang_up();
    let refused = |line: &Value| {
        let error = line["error"].as_str().unwrap_or_default();
        error.contains("access.rule[1].upstreams: \"three.example\": not the namespace")
    };
    binary.wait_for_log(refused).await;
    assert_eq!(status(pull()).await, 403);
}

#[tokio::test]
async fn a_token_does_not_outlive_the_process() {
    let upstream = FakeRegistry::start().await;
    let proxy = guarded(&upstream).start().await;
    let token = log_in(&proxy, ANN).await;
    let proxy = proxy.restart().await;
    let whole = with_token(proxy.get("/v2/"), &token).whole().await;
    assert_eq!(
        parameter(&whole.head, "error").as_deref(),
        Some("invalid_token")
    );
    assert_eq!(whole.code().as_deref(), Some("UNAUTHORIZED"));
}

#[tokio::test]
async fn where_nobody_is_known_nobody_is_asked() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream).start().await;
    let blob = serve(&upstream, APP);
    assert_eq!(status(proxy.get("/token")).await, 404);
    for request in [proxy.get("/v2/"), as_user(proxy.get("/v2/"), ANN)] {
        assert_eq!(status(request).await, 200);
    }
    let pull = proxy.blob(APP, blob.digest());
    with_token(pull, "of-somebody-else")
        .send()
        .await
        .is(&blob)
        .await;
    let asked = proxy.metric("layerhold_authentications_total", &[]).await;
    assert_eq!(asked, 0.0);
}

#[tokio::test]
async fn tokens_are_asked_for_by_get_and_within_bounds() {
    let upstream = FakeRegistry::start().await;
    let proxy = guarded(&upstream).start().await;
    let post = Request::new(proxy.registry, "POST", "/token").body("grant_type=password");
    let whole = post.whole().await;
    assert_eq!(whole.head.status, 405);
    assert_eq!(whole.head.header("allow"), Some("GET, HEAD"));
    let many = "scope=repository:a:pull&".repeat(17);
    let long = format!("service={}", "a".repeat(9000));
    for query in [many.as_str(), &long, "service=a&service=b"] {
        let whole = as_user(proxy.get(format!("/token?{query}")), ANN)
            .whole()
            .await;
        assert_eq!(whole.head.status, 400, "{query}");
        assert_eq!(whole.code().as_deref(), Some("UNSUPPORTED"));
    }
    for target in ["/token/", "/tokens", "/v2/token", "/"] {
        assert_eq!(
            status(as_user(proxy.get(target), ANN)).await,
            404,
            "{target}"
        );
    }
    let head = as_user(proxy.head("/token"), ANN).whole().await;
    assert_eq!((head.head.status, head.bytes.len()), (200, 0));
}

#[tokio::test]
async fn a_challenge_calls_us_what_the_client_does() {
    const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let upstream = FakeRegistry::start().await;
    let builder = guarded(&upstream).set("trusted_proxies", vec!["127.0.0.2"]);
    let proxy = builder.start().await;
    let told = async |proxy: &TestProxy, from: Option<IpAddr>, headers: &[(&str, &str)]| {
        let add = |request: Request, (name, value): &(&str, &str)| request.header(name, *value);
        let request = headers.iter().fold(proxy.get("/v2/"), add);
        let answer = match from {
            Some(from) => {
                let connection = Connection::open_from(from, proxy.registry).await;
                request.send_on(connection).await
            }
            None => request.send().await,
        };
        let whole = answer.whole().await;
        (
            parameter(&whole.head, "realm").unwrap(),
            parameter(&whole.head, "service"),
        )
    };
    let own = |realm: &str, service: &str| (realm.to_owned(), Some(service.to_owned()));
    let host = [("Host", "Cache.example:5000")];
    let expected = own("http://Cache.example:5000/token", "Cache.example:5000");
    assert_eq!(told(&proxy, None, &host).await, expected);
    let https = ("X-Forwarded-Proto", "https");
    let by_proxy = [("Host", "c.example"), https];
    // From anybody else it is only what somebody says.
    let expected = own("http://c.example/token", "c.example");
    assert_eq!(told(&proxy, None, &by_proxy).await, expected);
    let expected = own("https://c.example/token", "c.example");
    assert_eq!(told(&proxy, Some(BALANCER), &by_proxy).await, expected);
    for odd in ["a$b", "a'b", "a;b", "a(b)", "a!b", ""] {
        let said = told(&proxy, None, &[("Host", odd)]).await;
        assert_eq!(said, ("layerhold".to_owned(), None), "{odd}");
    }
    proxy.shut_down();
    let builder = proxy.stopped().await;
    let named = builder.set("access.external_url", "https://hub.example/");
    let proxy = named.start().await;
    let expected = own("https://hub.example/token", "Cache.example:5000");
    assert_eq!(told(&proxy, None, &host).await, expected);
    let expected = own("https://hub.example/token", "hub.example");
    assert_eq!(told(&proxy, None, &[("Host", "")]).await, expected);
}

#[tokio::test]
async fn rules_are_about_the_client_and_not_the_balancer() {
    let upstream = FakeRegistry::start().await;
    let rules = ["action = 'allow'\nnetworks = ['203.0.113.0/24', '127.0.0.3']"];
    let builder = with_rules(TestProxy::in_front_of(&upstream), &rules);
    let proxy = builder
        .set("trusted_proxies", vec!["127.0.0.1"])
        .start()
        .await;
    let blob = serve(&upstream, APP);
    let pull = || proxy.blob(APP, blob.digest());
    assert_eq!(status(pull()).await, 403);
    let forwarded = pull().header("X-Forwarded-For", "203.0.113.9");
    assert_eq!(status(forwarded.clone()).await, 200);
    let other = pull().header("X-Forwarded-For", "203.0.113.9, 198.51.100.1");
    assert_eq!(status(other).await, 403);
    for (from, expected) in [(3, 200), (4, 403)] {
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, from));
        let connection = Connection::open_from(from, proxy.registry).await;
        // Nobody believes them.
        let answer = forwarded.send_on(connection).await;
        assert_eq!(answer.head.status, expected, "{from}");
    }
}

#[tokio::test]
async fn the_log_says_who() {
    let upstream = FakeRegistry::start().await;
    let binary = Binary::start(&guarded(&upstream)).await;
    for (request, expected) in [
        (as_user(binary.get("/v2/"), ANN), Some("ann")),
        (
            with_token(binary.get("/v2/"), &log_in(&binary, BOB).await),
            Some("bob"),
        ),
        (with_token(binary.get("/v2/"), CI.1), Some("ci")),
        (as_user(binary.get("/token"), CI), Some("ci")),
        (as_user(binary.get("/v2/"), ("ann", "wrong")), None),
        (binary.get("/v2/"), None),
    ] {
        let head = request.whole().await.head;
        let id = head.header("x-request-id").unwrap();
        let is_of_it = |line: &Value| {
            let is = |name, value| field(line, name).and_then(Value::as_str) == Some(value);
            is("message", "request") && is("request", id)
        };
        let line = binary.wait_for_log(is_of_it).await;
        assert_eq!(field(&line, "identity").and_then(Value::as_str), expected);
    }
}

#[tokio::test]
async fn pitfall_38_what_clients_show_goes_nowhere_and_is_said_nowhere() {
    const SECRETS: [&str; 3] = ["hush-of-ann", "hush-of-ci", "hush-wrong"];
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("log_level", "trace");
    let users = builder.write("htpasswd", &htpasswd(&[("ann", SECRETS[0])]));
    let tokens = builder.write("tokens", &tokens(&[("ci", SECRETS[1])]));
    let builder = builder
        .set("access.htpasswd_file", users.as_str())
        .set("access.tokens_file", tokens);
    let hash = fs::read_to_string(users).unwrap();
    let hash = hash.trim().strip_prefix("ann:").unwrap().to_owned();
    let binary = Binary::start(&builder).await;
    let mut secrets: Vec<String> = SECRETS.iter().map(|it| (*it).to_owned()).collect();
    secrets.push(hash);
    let ann = log_in(&binary, ("ann", SECRETS[0])).await;
    let nobody = token_in(&binary.get("/token").whole().await);
    secrets.extend([ann.clone(), nobody.clone()]);
    let pairs = [("ann", SECRETS[0]), ("ci", SECRETS[1]), ("ann", SECRETS[2])];
    let mut shown: Vec<String> = pairs.iter().map(|(user, it)| basic(user, it)).collect();
    secrets.extend(
        shown
            .iter()
            .map(|it| it.strip_prefix("Basic ").unwrap().to_owned()),
    );
    let bearers = [&ann, &nobody, SECRETS[1], SECRETS[2]];
    shown.extend(bearers.iter().map(|it| format!("Bearer {it}")));
    shown.push(format!("Basic  {}", SECRETS[2]));
    let silent = |text: &str| {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{secret} in {text}");
        }
    };
    for authorization in &shown {
        let blob = serve(&upstream, APP);
        for request in [
            binary.get("/v2/"),
            binary.blob(APP, blob.digest()),
            binary.manifest(APP, "unknown"),
            binary.get(format!("/v2/{APP}/tags/list?n=1")),
            Request::new(binary.registry, "POST", "/token"),
            Request::new(binary.registry, "PUT", "/v2/a/manifests/b"),
        ] {
            let whole = request.header("Authorization", authorization).whole().await;
            silent(&format!("{:?} {}", whole.head, whole.text()));
        }
        // An order at the admin port has them too.
        let order = binary.purging(&["a.example/b"]);
        let whole = order.header("Authorization", authorization).whole().await;
        silent(&format!("{:?} {}", whole.head, whole.text()));
    }
    assert!(upstream.log().len() > 10);
    for seen in upstream.log() {
        assert_eq!(seen.header("authorization"), None, "{seen:?}");
        silent(&format!("{seen:?}"));
    }
    for line in binary.log() {
        silent(&line.to_string());
    }
    silent(&binary.metrics().await);
    let (_, printed) = Binary::check(&builder).await;
    silent(&printed);
}

#[tokio::test]
async fn the_admin_port_takes_orders_of_this_machine() {
    let upstream = FakeRegistry::start().await;
    let builder = guarded(&upstream).set("access.admin_networks", vec!["127.0.0.1"]);
    let proxy = builder.start().await;
    let order = |proxy: &TestProxy| proxy.purging(&["a.example/b"]);
    assert_eq!(status(order(&proxy)).await, 200);
    let whole = from_afar(&proxy, bare(&proxy)).await;
    assert_eq!(whole.head.status, 403);
    assert!(
        whole.text().contains("access.admin_networks"),
        "{}",
        whole.text()
    );
    let whole = from_afar(&proxy, Request::new(proxy.admin, "POST", "/verify")).await;
    assert_eq!(whole.head.status, 403);
    // Telling is for everybody.
    for target in ["/metrics", "/livez", "/readyz"] {
        let whole = from_afar(&proxy, Request::new(proxy.admin, "GET", target)).await;
        assert_eq!(whole.head.status, 200, "{target}");
    }
    // A web page's name that means this machine, and a proxy that nobody trusts.
    for (name, value, expected) in [
        ("Host", "evil.example:9555", 403),
        ("Host", "localhost:9555", 200),
        ("Host", "layerhold:9555", 200),
        ("Host", "127.0.0.1", 200),
        ("X-Forwarded-For", "203.0.113.9", 403),
        ("Forwarded", "for=203.0.113.9", 403),
        ("X-Real-IP", "203.0.113.9", 403),
        ("Via", "1.1 front", 403),
    ] {
        assert_eq!(
            status(order(&proxy).header(name, value)).await,
            expected,
            "{value}"
        );
    }
    assert_eq!(status(as_user(order(&proxy), ("ann", "wrong"))).await, 401);
    // Who somebody is does not matter where nobody is named.
    assert_eq!(
        from_afar(&proxy, as_user(bare(&proxy), ANN))
            .await
            .head
            .status,
        403
    );
}

#[tokio::test]
async fn the_admin_port_takes_orders_of_whom_it_knows() {
    let upstream = FakeRegistry::start().await;
    let builder = guarded(&upstream).set("access.admin_networks", vec!["127.0.0.1"]);
    let named = builder.set("access.admin_identities", vec!["ann"]);
    let proxy = named.start().await;
    let order = |proxy: &TestProxy| proxy.purging(&["a.example/b"]);
    let whole = from_afar(&proxy, bare(&proxy)).await;
    assert_eq!(challenge(&whole.head), "Basic realm=\"layerhold\"");
    // It is the order that is wrong then.
    assert_eq!(
        from_afar(&proxy, as_user(bare(&proxy), ANN))
            .await
            .head
            .status,
        415
    );
    assert_eq!(
        from_afar(&proxy, as_user(bare(&proxy), BOB))
            .await
            .head
            .status,
        401
    );
    // A token is for pulling.
    let token = log_in(&proxy, ANN).await;
    assert_eq!(
        from_afar(&proxy, with_token(bare(&proxy), &token))
            .await
            .head
            .status,
        401
    );
    // A page has no password.
    let named = as_user(order(&proxy), ANN).header("Host", "admin.example");
    assert_eq!(status(named).await, 200);
    assert_eq!(status(order(&proxy)).await, 200);
}

#[tokio::test]
async fn a_crowd_with_one_password_gets_in() {
    let upstream = FakeRegistry::start().await;
    let proxy = guarded(&upstream).start().await;
    let pings = (0..200).map(|_| status(as_user(proxy.get("/v2/"), ANN)));
    for status in futures_util::future::join_all(pings).await {
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn a_certificate_says_who() {
    let (upstream, ours, clients) = (
        FakeRegistry::start().await,
        Authority::new(),
        Authority::new(),
    );
    let builder = TestProxy::in_front_of(&upstream);
    let identity = ours.vouch(&["cache.example"]);
    let certificate = builder.write("tls.crt", &identity.certificate_pem);
    let key = builder.write("tls.key", &identity.key_pem);
    let authority = builder.write("clients.crt", &clients.pem());
    let builder = builder
        .set("tls.certificate", certificate)
        .set("tls.key", key)
        .set("tls.client_certificates", "optional")
        .set("tls.client_ca_file", authority);
    let rules = ["action = 'allow'\nidentities = ['node.example']"];
    let proxy = with_rules(builder, &rules).start().await;
    let blob = serve(&upstream, APP);
    let pull = proxy.blob(APP, blob.digest()).header("Host", "c.example");
    let (node, other) = (
        clients.vouch(&["node.example"]),
        clients.vouch(&["other.example"]),
    );
    let ask = async |shown: Option<&Identity>, request: &Request| {
        let client = ours.client();
        let client = shown.map_or(client.clone(), |it| client.clone().showing(it));
        let stream = client.try_open(proxy.registry).await.unwrap();
        request
            .send_on(Connection::over(stream))
            .await
            .whole()
            .await
    };
    assert_eq!(
        ask(Some(&node), &pull).await.is(200, blob.bytes()).status,
        200
    );
    assert_eq!(ask(Some(&other), &pull).await.head.status, 403);
    let whole = ask(None, &pull).await;
    let realm = parameter(&whole.head, "realm");
    assert_eq!(realm.as_deref(), Some("https://c.example/token"));
    // A token is nobody's where a certificate is all there is, and takes nothing from it.
    let token = token_in(&ask(Some(&node), &proxy.get("/token")).await);
    let pull = with_token(pull, &token);
    assert_eq!(ask(None, &pull).await.head.status, 401);
    assert_eq!(ask(Some(&node), &pull).await.head.status, 200);
    let ping = proxy.get("/v2/");
    assert_eq!(ask(None, &ping).await.head.status, 401);
    assert_eq!(ask(Some(&other), &ping).await.head.status, 200);
}

/// An order that says nothing.
fn bare(proxy: &TestProxy) -> Request {
    Request::new(proxy.admin, "POST", "/purge")
}

/// Sends a request from another address of this machine than most are.
async fn from_afar(proxy: &TestProxy, request: Request) -> Whole {
    let far = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
    let connection = Connection::open_from(far, proxy.admin).await;
    request.send_on(connection).await.whole().await
}
