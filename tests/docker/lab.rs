//! All the parts, connected.

use std::env;
use std::path::Path;

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::images;
use crate::proxy::Proxy;
use crate::registry::{Image, Registry};
use crate::shelf::Shelf;

/// A daemon that pulls through a proxy from a registry: each new, each only this test's.
pub(crate) struct Lab {
    // Stopped in this order: nobody outlives whom it asks, and the files go last.
    pub(crate) daemon: Daemon,
    pub(crate) proxy: Proxy,
    pub(crate) upstream: Registry,
    pub(crate) first: Image,
    pub(crate) second: Image,
    pub(crate) dir: TempDir,
}

impl Lab {
    /// Starts all of it; the tag `base` is the first version.
    pub(crate) fn start() -> Self {
        refuse_unless_possible();
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let storage = images::storage_in(dir.path());
        Self::serving(&storage, dir)
    }

    /// The same with small images, for who need not run them.
    pub(crate) fn small() -> Self {
        let Shelf { storage, dir, .. } = Shelf::filled();
        Self::serving(&storage, dir)
    }

    fn serving(storage: &Path, dir: TempDir) -> Self {
        let upstream = Registry::start(storage, dir.path());
        let (first, second) = (
            upstream.image(images::FIRST),
            upstream.image(images::SECOND),
        );
        upstream.tag("base", &first);
        let proxy = Proxy::start(dir.path(), upstream.address());
        let daemon = Daemon::start(dir.path(), &proxy.client_config("docker"));
        Self {
            daemon,
            proxy,
            upstream,
            first,
            second,
            dir,
        }
    }
}

/// Says what is missing before anything fails for want of it.
pub(crate) fn refuse_unless_possible() {
    assert!(geteuid().is_root(), "a docker daemon needs root");
    let path = env::var_os("PATH").unwrap();
    let is_there = |program: &str| env::split_paths(&path).any(|dir| dir.join(program).exists());
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    let missing = missing.join(" ");
    assert_eq!(missing, "", "these Debian packages are missing");
}

/// What is run here, and the package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("docker-registry", "docker-registry"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("debootstrap", "debootstrap"),
    ("htpasswd", "apache2-utils"),
    ("openssl", "openssl"),
    ("podman", "podman"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("skopeo", "skopeo"),
    ("setpriv", "util-linux"),
    ("tinyproxy", "tinyproxy-bin"),
    ("unshare", "util-linux"),
];
