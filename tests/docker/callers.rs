//! Two users of one registry, of whom one may pull what the other may not, through one proxy that keeps
//! it for both: each client shows the proxy what it would show the registry.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::http::{answer, answer_to};
use crate::images::{FIRST, SECOND};
use crate::proxy::{Proxy, in_front_of};
use crate::registry::{REPOSITORY, Registry};
use crate::shelf::Shelf;
use crate::skopeo::try_pull_as;
use crate::tokens::{TokenServer, authorization};
use crate::wait::{bounded, run};

/// A registry with a secret repository, which is [`REPOSITORY`], and one that both may pull from.
struct Tenants {
    // Stopped in this order.
    proxy: Proxy,
    registry: Registry,
    tokens: TokenServer,
    shelf: Shelf,
}

impl Tenants {
    fn start() -> Self {
        let shelf = Shelf::filled();
        let open = Registry::start(&shelf.storage, &shelf.place("open"));
        let at = |name: &str| format!("docker://{}/{name}:{SECOND}", open.address());
        let mut skopeo = bounded("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--src-tls-verify=false"]);
        skopeo.args(["--dest-tls-verify=false", &at(REPOSITORY), &at(COMMON)]);
        run(&mut skopeo);
        drop(open);
        let users: [(&str, &str, &[&str]); 2] = [
            (ANN.0, ANN.1, &[REPOSITORY, COMMON]),
            (BOB.0, BOB.1, &[COMMON]),
        ];
        let tokens = TokenServer::start_for(shelf.dir.path(), &users);
        let demands = json!({ "auth": tokens.auth() });
        let registry = Registry::demanding(&shelf.storage, &shelf.place("registry"), &demands);
        let upstream = in_front_of("docker.io", &registry.url());
        let realms = format!("token_realms = [\"{}\"]\n", tokens.url());
        let keys = format!("access = \"caller\"\n{realms}");
        let proxy = Proxy::with(&shelf.place("proxy"), &(upstream + &keys));
        Self {
            proxy,
            registry,
            tokens,
            shelf,
        }
    }

    /// Every way to ask for what is in the secret repository, as Bob: how it is answered.
    fn probe(&self) -> Vec<(u16, String)> {
        let first = &self.shelf.first;
        let (manifest, layer) = (&first.manifest.digest, &first.layers[0].digest);
        let mut answers = Vec::new();
        for (repository, kind, content) in [
            (REPOSITORY, "manifests", FIRST),
            (REPOSITORY, "manifests", manifest),
            (REPOSITORY, "blobs", layer),
            (COMMON, "blobs", layer),
            (COMMON, "manifests", manifest),
        ] {
            let address = self.proxy.address();
            let query = format!("service={address}&scope=repository:{repository}:pull");
            let asked = format!("GET /token?{query}");
            let (status, said) = answer_to(address, &asked, &authorization(BOB.0, BOB.1));
            assert_eq!(status, 200, "{said}");
            let (_, body) = said.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap();
            let shown = format!("Bearer {}", body["token"].as_str().unwrap());
            for method in ["HEAD", "GET"] {
                let asked = format!("{method} /v2/{repository}/{kind}/{content}");
                let (status, said) = answer_to(address, &asked, &shown);
                assert!(matches!(status, 401 | 404), "{asked}: {said}");
                let is_fixed = |line: &&str| {
                    let line = line.to_lowercase();
                    !line.starts_with("x-request-id") && !line.starts_with("date")
                };
                let said = said.lines().filter(is_fixed).collect::<Vec<_>>();
                answers.push((status, said.join("\n")));
            }
        }
        answers
    }

    /// Nothing of what the proxy lets anybody read has a password in it, or a token.
    fn assert_is_kept(&self) {
        let (log, metrics) = (self.proxy.logged(), self.proxy.metrics());
        let exchanged = self.tokens.exchanges();
        let tokens = exchanged.iter().map(|it| it.token.clone());
        let shown = [ANN, BOB].map(|(user, password)| {
            let shown = authorization(user, password);
            [password.to_owned(), shown.replace("Basic ", "")]
        });
        for secret in shown.into_iter().flatten().chain(tokens) {
            assert!(
                !log.contains(&secret) && !metrics.contains(&secret),
                "{secret} is shown"
            );
        }
    }
}

#[test]
fn pitfall_35_of_two_who_copy_each_gets_what_the_registry_lets_it() {
    let tenants = Tenants::start();
    let Tenants { proxy, shelf, .. } = &tenants;
    let secret = format!("{REPOSITORY}:{FIRST}");
    let common = format!("{COMMON}:{SECOND}");
    let try_as = |user| try_pull_as(proxy, &secret, &shelf.first, user);
    let before = tenants.probe();
    assert!(try_as(Some(BOB)).is_err());
    assert!(try_as(None).is_err());
    assert!(try_as(Some((ANN.0, BOB.1))).is_err());
    assert_eq!(proxy.requests_with_outcome("hit"), 0);

    assert_eq!(try_as(Some(ANN)), Ok(()));
    assert_eq!(proxy.published(&shelf.first.parts()), shelf.first.parts());
    let asked = tenants.registry.requests().len();
    assert!(try_as(Some(BOB)).is_err());
    assert!(try_as(None).is_err());
    assert!(try_as(Some((ANN.0, BOB.1))).is_err());
    assert_eq!(try_as(Some(ANN)), Ok(()));
    assert_eq!(tenants.probe(), before);
    let since = &tenants.registry.requests()[asked..];
    let gets = since.iter().filter(|it| it.method == "GET");
    let layers = gets.filter(|it| {
        shelf
            .first
            .layers
            .iter()
            .any(|layer| it.path.contains(&layer.digest))
    });
    assert_eq!(
        layers.filter(|it| it.path.contains(REPOSITORY)).count(),
        0,
        "{since:#?}"
    );

    for user in [BOB, ANN] {
        assert_eq!(
            try_pull_as(proxy, &common, &shelf.second, Some(user)),
            Ok(())
        );
    }
    tenants.assert_is_kept();
}

#[test]
fn pitfall_35_of_two_who_log_in_with_docker_each_gets_what_the_registry_lets_it() {
    let tenants = Tenants::start();
    let Tenants { proxy, shelf, .. } = &tenants;
    let place = shelf.place("docker");
    let daemon = Daemon::start(&place, "{}");
    let address = proxy.address().to_string();
    let docker = |user: &str, args: &[&str]| {
        let home: PathBuf = place.join(user);
        fs::create_dir_all(&home).unwrap();
        let mut command = daemon.command(args);
        let output = command.env("DOCKER_CONFIG", home).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        output.status.success().then_some(()).ok_or(said)
    };
    let log_in = |(user, password)| docker(user, &["login", "-u", user, "-p", password, &address]);
    assert!(log_in((ANN.0, BOB.1)).is_err());
    for user in [ANN, BOB] {
        assert_eq!(log_in(user), Ok(()));
    }
    let secret = format!("{address}/docker.io/{REPOSITORY}:{FIRST}");
    let common = format!("{address}/docker.io/{COMMON}:{SECOND}");
    let pull = |user: &str, reference: &str| {
        // So that each layer really is asked for.
        let _ = docker(user, &["rmi", "--force", reference]);
        docker(user, &["pull", reference])
    };
    for _ in 0..2 {
        assert!(pull(BOB.0, &secret).is_err());
        assert!(pull("nobody", &secret).is_err());
        assert_eq!(pull(ANN.0, &secret), Ok(()));
        assert_eq!(pull(BOB.0, &common), Ok(()));
    }
    let (status, said) = answer(
        proxy.address(),
        &format!("/v2/{REPOSITORY}/manifests/{FIRST}"),
    );
    assert_eq!(status, 401, "{said}");
    tenants.assert_is_kept();
}

const COMMON: &str = "team/common";
const ANN: (&str, &str) = ("ann", "correct-horse-battery");
const BOB: (&str, &str) = ("bob", "another-horse-battery");
