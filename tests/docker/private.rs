//! Registries that want more than a question: a password, a token, a certificate. The proxy has
//! what they want, and its clients have nothing.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::certificates::{Authority, Identity, base64};
use crate::daemon::Daemon;
use crate::gets;
use crate::http;
use crate::images::{FIRST, SECOND};
use crate::proxy::{Proxy, in_front_of};
use crate::registry::{REPOSITORY, Registry};
use crate::shelf::Shelf;
use crate::skopeo::{pull, try_pull};
use crate::tokens::TokenServer;
use crate::wait::{bounded, run};

#[test]
fn a_daemon_that_has_no_password_pulls_through_a_proxy_that_has_it() {
    let shelf = Shelf::filled();
    let registry = Registry::demanding(&shelf.storage, &shelf.place("registry"), &basic(&shelf));
    let (status, _) = http::answer(registry.address(), &manifest(FIRST));
    assert_eq!(status, 401);
    let file = shelf.dir.path().join("password");
    fs::write(&file, PASSWORD).unwrap();
    let proxy = Proxy::with(&shelf.place("proxy"), &robot_at(&registry, &file));
    let place = shelf.place("docker");
    let daemon = Daemon::start(&place, &proxy.client_config("docker"));

    let pulled = daemon.pull(&format!("debian:{FIRST}"));

    assert_eq!(pulled, shelf.first.manifest.digest);
    assert_eq!(proxy.published(&shelf.first.parts()), shelf.first.parts());
    assert_is_kept(
        &proxy,
        &[PASSWORD, &base64(format!("{USER}:{PASSWORD}").as_bytes())],
    );
}

#[test]
fn a_wrong_password_fails_the_daemons_pull_until_its_file_is_corrected() {
    let shelf = Shelf::filled();
    let registry = Registry::demanding(&shelf.storage, &shelf.place("registry"), &basic(&shelf));
    let file = shelf.dir.path().join("password");
    fs::write(&file, WRONG).unwrap();
    let proxy = Proxy::with(&shelf.place("proxy"), &robot_at(&registry, &file));
    let place = shelf.place("docker");
    let daemon = Daemon::start(&place, &proxy.client_config("docker"));
    // By the proxy's own name: no failure makes the daemon go to Docker Hub itself.
    let reference = format!("{}/docker.io/{REPOSITORY}:{FIRST}", proxy.address());

    let refused = daemon.try_pull(&reference).unwrap_err();
    assert!(refused.contains("unauthorized"), "{refused}");
    let (status, _) = http::answer(proxy.address(), &manifest(FIRST));
    assert_eq!(status, 401);

    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let pulled = daemon.try_pull(&reference);
    assert_eq!(pulled, Ok(shelf.first.manifest.digest.clone()));
    let credentials = [PASSWORD, WRONG].map(|it| base64(format!("{USER}:{it}").as_bytes()));
    assert_is_kept(&proxy, &[PASSWORD, WRONG, &credentials[0], &credentials[1]]);
}

#[test]
fn two_pulls_of_a_repository_take_one_token_that_no_client_sees() {
    let shelf = Shelf::filled();
    let tokens = TokenServer::start(shelf.dir.path(), USER, PASSWORD);
    let demands = json!({ "auth": tokens.auth() });
    let registry = Registry::demanding(&shelf.storage, &shelf.place("registry"), &demands);
    let (status, refused) = http::answer(registry.address(), &manifest(FIRST));
    assert_eq!(status, 401);
    assert!(refused.contains(&tokens.url()), "{refused}");
    let file = shelf.dir.path().join("password");
    fs::write(&file, PASSWORD).unwrap();
    let realms = format!("token_realms = [\"{}\"]\n", tokens.url());
    let upstream = robot_at(&registry, &file) + &realms;
    let proxy = Proxy::with(&shelf.place("proxy"), &upstream);

    pull(&proxy, FIRST, &shelf.first);
    pull(&proxy, SECOND, &shelf.second);

    let [exchange] = &tokens.exchanges()[..] else {
        panic!("one exchange: {:?}", tokens.exchanges());
    };
    assert_eq!(exchange.scope, format!("repository:{REPOSITORY}:pull"));
    assert_eq!(tokens.refused(), [""; 0]);
    let counted = proxy.counts("layerhold_tokens_total", &["result=\"ok\""]);
    assert_eq!(counted, 1);
    let (status, answer) = http::answer(proxy.address(), &manifest(FIRST));
    assert_eq!(status, 200);
    assert!(!answer.to_lowercase().contains("authenticate"), "{answer}");
    let credentials = base64(format!("{USER}:{PASSWORD}").as_bytes());
    for secret in [PASSWORD, &credentials, &exchange.token] {
        assert!(!answer.contains(secret), "{answer}");
    }
    assert_is_kept(&proxy, &[PASSWORD, &credentials, &exchange.token]);
}

#[test]
fn a_registry_with_a_certificate_of_a_private_authority_is_trusted_by_its_file_alone() {
    let shelf = Shelf::filled();
    let authority = Authority::new(shelf.dir.path());
    let demands = json!({ "tls": tls(&authority.issue("registry")) });
    let registry = Registry::demanding(&shelf.storage, &shelf.place("registry"), &demands);
    let upstream = in_front_of(HUB, &registry.url());
    let trusting = upstream.clone() + &key("ca_file", &authority.certificate);

    let proxy = Proxy::with(&shelf.place("without"), &upstream);
    assert!(try_pull(&proxy, FIRST, &shelf.first).is_err());
    let (status, _) = http::answer(proxy.address(), &manifest(FIRST));
    assert_eq!(status, 502);
    assert_eq!(registry.requests(), []);

    let proxy = Proxy::with(&shelf.place("with"), &trusting);
    pull(&proxy, FIRST, &shelf.first);
    let sent = gets(&registry.requests(), &shelf.first.manifest.digest);
    assert_eq!(sent, Vec::from_iter(shelf.first.contents()));
}

#[test]
fn a_registry_that_demands_a_certificate_is_shown_the_proxys() {
    let shelf = Shelf::filled();
    let authority = Authority::new(shelf.dir.path());
    let mut tls = tls(&authority.issue("registry"));
    tls["clientcas"] = json!([authority.certificate]);
    let demands = json!({ "tls": tls });
    let registry = Registry::demanding(&shelf.storage, &shelf.place("registry"), &demands);
    let upstream = in_front_of(HUB, &registry.url()) + &key("ca_file", &authority.certificate);
    let ours = authority.issue("proxy");
    let certified = upstream.clone()
        + &key("client_certificate", &ours.certificate)
        + &key("client_key", &ours.key);

    let proxy = Proxy::with(&shelf.place("without"), &upstream);
    let (status, _) = http::answer(proxy.address(), &manifest(FIRST));
    assert_eq!(status, 502);
    assert_eq!(registry.requests(), []);

    let proxy = Proxy::with(&shelf.place("with"), &certified);
    pull(&proxy, FIRST, &shelf.first);
    let sent = gets(&registry.requests(), &shelf.first.manifest.digest);
    assert_eq!(sent, Vec::from_iter(shelf.first.contents()));
}

/// What makes a registry want [`PASSWORD`].
fn basic(shelf: &Shelf) -> Value {
    let file = shelf.dir.path().join("htpasswd");
    let line = run(bounded("htpasswd").args(["-nbB", USER, PASSWORD]));
    fs::write(&file, line).unwrap();
    json!({ "auth": { "htpasswd": { "realm": "suite", "path": file } } })
}

/// What makes a registry show this certificate.
fn tls(identity: &Identity) -> Value {
    json!({ "certificate": identity.certificate, "key": identity.key })
}

/// The table of an upstream at which the proxy is [`USER`], with the password in this file.
fn robot_at(registry: &Registry, password_file: &Path) -> String {
    in_front_of(HUB, &registry.url())
        + &format!("username = \"{USER}\"\n")
        + &key("password_file", password_file)
}

/// A key of the configuration file whose value is a path.
fn key(name: &str, value: &Path) -> String {
    format!("{name} = \"{}\"\n", value.display())
}

/// Nothing of what the proxy lets anybody read has one of these in it.
fn assert_is_kept(proxy: &Proxy, secrets: &[&str]) {
    let (log, metrics) = (proxy.logged(), proxy.metrics());
    for secret in secrets {
        let shown = log.lines().chain(metrics.lines());
        let shown: Vec<&str> = shown.filter(|line| line.contains(secret)).collect();
        assert_eq!(shown, [""; 0], "{secret} is shown");
    }
}

fn manifest(tag: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{tag}")
}

const HUB: &str = "docker.io";

const USER: &str = "robot";
const PASSWORD: &str = "correct-horse-battery";
const WRONG: &str = "incorrect-horse-battery";
