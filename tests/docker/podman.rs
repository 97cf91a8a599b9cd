//! A real `podman` with an image store of its own.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::wait::{bounded, run};

/// Podman's command line; there is no daemon.
pub(crate) struct Podman {
    registries: PathBuf,
    store: PathBuf,
    // Apart, since its path may have fifty characters.
    running: TempDir,
}

impl Podman {
    /// An empty store, and this `registries.conf`.
    pub(crate) fn new(dir: &Path, registries_conf: &str) -> Self {
        let registries = dir.join("registries.conf");
        fs::write(&registries, registries_conf).unwrap();
        Self {
            registries,
            store: dir.join("podman"),
            running: TempDir::with_prefix("podman-").unwrap(),
        }
    }

    /// Pulls an image and returns the digest of its manifest.
    pub(crate) fn pull(&self, reference: &str) -> String {
        let insecure = reference.starts_with("127.0.0.1:");
        let verify = format!("--tls-verify={}", !insecure);
        // What is not said is for the configuration to say, and a flag would overrule it.
        let flags: &[&str] = if insecure { &[&verify] } else { &[] };
        self.podman(&[&["pull"], flags, &[reference]].concat());
        let format = "--format={{.Digest}}";
        let digest = self.podman(&["image", "inspect", format, reference]);
        digest.trim().to_owned()
    }

    /// Runs a shell command in a container and returns what it printed.
    pub(crate) fn shell(&self, image: &str, script: &str) -> String {
        self.podman(&[
            "run",
            "--rm",
            "--pull=never",
            "--network=host",
            // Its own defaults may be more than this machine lets root have.
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
            image,
            "sh",
            "-ec",
            script,
        ])
    }

    /// Runs `podman …` to its end. It keeps locks and what runs in places that it has for the
    /// whole machine; these are each command's own here, and gone with it.
    fn podman(&self, args: &[&str]) -> String {
        let mut command = bounded("unshare");
        command.args(["--mount", "sh", "-ec", PRIVATELY, "sh", "podman"]);
        command.arg("--root").arg(&self.store);
        command.arg("--runroot").arg(self.running.path());
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=none"]);
        command.env("CONTAINERS_REGISTRIES_CONF", &self.registries);
        run(command.args(args))
    }
}

const PRIVATELY: &str = r#"mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /dev/shm; exec "$@""#;
