//! Clients that show layerhold who they are, each in its own way, and one that nobody knows.

use std::fs;
use std::path::PathBuf;

use crate::containerd::Containerd;
use crate::daemon::Daemon;
use crate::images::{FIRST, SECOND};
use crate::podman::Podman;
use crate::proxy::{Proxy, in_front_of};
use crate::registry::{REPOSITORY, Registry};
use crate::shelf::Shelf;
use crate::wait::{bounded, run};

/// A proxy that knows one user, in front of a registry that knows nobody.
struct Guarded {
    proxy: Proxy,
    // Held for its drop.
    _registry: Registry,
    shelf: Shelf,
}

impl Guarded {
    /// With these tables of rules.
    fn with(rules: &str) -> Self {
        let shelf = Shelf::filled();
        let registry = Registry::start(&shelf.storage, &shelf.place("registry"));
        let file = shelf.dir.path().join("htpasswd");
        fs::write(
            &file,
            run(bounded("htpasswd").args(["-nbB", USER, PASSWORD])),
        )
        .unwrap();
        let tables = format!(
            "[access]\nhtpasswd_file = \"{}\"\n{rules}\n{}",
            file.display(),
            in_front_of(HUB, &registry.url())
        );
        Self {
            proxy: Proxy::with(&shelf.place("proxy"), &tables),
            _registry: registry,
            shelf,
        }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.shelf.place(name)
    }

    fn address(&self) -> String {
        self.proxy.address().to_string()
    }

    /// What clients call an image that they name with the proxy's address.
    fn reference(&self, tag: &str) -> String {
        format!("{}/{HUB}/{REPOSITORY}:{tag}", self.address())
    }

    /// Nothing of what the proxy says has the password in it.
    fn is_discreet(&self) {
        let said = self.proxy.logged() + &self.proxy.metrics();
        assert!(
            !said.contains(PASSWORD) && !said.contains("Bearer e"),
            "{said}"
        );
        let by_password = ["result=\"password\""];
        let counted = self
            .proxy
            .counts("layerhold_authentications_total", &by_password);
        assert!(counted > 0);
    }
}

#[test]
fn docker_logs_in_and_pulls() {
    let guarded = Guarded::with("");
    let daemon = Daemon::start(&guarded.place("docker"), "{}");
    let address = guarded.address();
    let log_in = |password: &str| {
        let args = [
            "login",
            "--username",
            USER,
            "--password",
            password,
            &address,
        ];
        daemon.command(&args).output().unwrap()
    };
    let first = guarded.reference(FIRST);

    let refused = daemon.try_pull(&first).unwrap_err();
    assert!(refused.contains("may require 'docker login'"), "{refused}");
    let refused = log_in("wrong");
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("the user, the password or the token is wrong"),
        "{said}"
    );

    assert!(log_in(PASSWORD).status.success());
    let digest = &guarded.shelf.first.manifest.digest;
    assert_eq!(daemon.try_pull(&first).as_ref(), Ok(digest));
    guarded.is_discreet();
}

#[test]
fn a_daemon_that_nobody_knows_pulls_from_its_mirror_what_anybody_may() {
    let rule = "[[access.rule]]\naction = \"allow\"\nidentities = [\"anonymous\"]\n";
    let guarded = Guarded::with(&format!("{rule}repositories = [\"{REPOSITORY}\"]\n"));
    let config = guarded.proxy.client_config("docker");
    let daemon = Daemon::start(&guarded.place("docker"), &config);

    let digest = daemon.pull(&format!("debian:{FIRST}"));

    assert_eq!(digest, guarded.shelf.first.manifest.digest);
    let counts = |result: &str| {
        let label = format!("result=\"{result}\"");
        guarded
            .proxy
            .counts("layerhold_authentications_total", &[&label])
    };
    assert!(counts("anonymous") > 0);
    assert_eq!(counts("wrong") + counts("void"), 0);
    let other = format!("{}/{HUB}/other/app:{FIRST}", guarded.address());
    let refused = daemon.try_pull(&other).unwrap_err();
    assert!(
        refused.contains("denied") || refused.contains("unauthorized"),
        "{refused}"
    );
}

#[test]
fn skopeo_shows_its_password_and_is_refused_with_another() {
    let guarded = Guarded::with("");
    let copy = |creds: &str, to: &str| {
        let mut skopeo = bounded("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--src-tls-verify=false", creds]);
        let to = format!("dir:{}", guarded.place(to).display());
        let from = format!("docker://{}", guarded.reference(FIRST));
        skopeo.args([&from, &to]).output().unwrap()
    };
    assert!(
        copy(&format!("--src-creds={USER}:{PASSWORD}"), "right")
            .status
            .success()
    );
    for creds in [&format!("--src-creds={USER}:wrong"), "--src-no-creds"] {
        let output = copy(creds, "wrong");
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("unauthorized") || said.contains("authentication required"),
            "{said}"
        );
    }
    guarded.is_discreet();
}

#[test]
fn containerd_shows_its_password_to_the_mirror_of_a_namespace() {
    let guarded = Guarded::with("");
    let hosts_toml = guarded.proxy.client_config("containerd");
    // Nothing else may answer for the registry.
    let hosts_toml = format!("server = \"http://127.0.0.1:1\"\n{hosts_toml}");
    let containerd = Containerd::start(&guarded.place("containerd"), &hosts_toml);
    let reference = |tag: &str| format!("{HUB}/{REPOSITORY}:{tag}");
    let user = |password: &str| format!("{USER}:{password}");

    let right = user(PASSWORD);
    let pulled = containerd.try_pull("right", &reference(FIRST), &["--user", &right]);
    let digest = pulled.unwrap_or_else(|said| panic!("{said}")).digest;
    assert_eq!(digest, guarded.shelf.first.manifest.digest);
    let wrong = user("wrong");
    assert!(
        containerd
            .try_pull("wrong", &reference(SECOND), &["--user", &wrong])
            .is_err()
    );
    assert!(
        containerd
            .try_pull("nobody", &reference(SECOND), &[])
            .is_err()
    );
    guarded.is_discreet();
}

#[test]
fn podman_logs_in_and_pulls() {
    let guarded = Guarded::with("");
    let podman = Podman::new(&guarded.place("podman"), "");
    let address = guarded.address();
    assert!(podman.try_log_in(&address, USER, "wrong").is_err());
    podman.try_log_in(&address, USER, PASSWORD).unwrap();
    let digest = podman.pull(&guarded.reference(FIRST));
    assert_eq!(digest, guarded.shelf.first.manifest.digest);
    guarded.is_discreet();
}

const HUB: &str = "docker.io";
const USER: &str = "ann";
const PASSWORD: &str = "open-sesame-4711";
