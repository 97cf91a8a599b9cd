//! A real `podman` with an image store of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::wait::{bounded, run};

/// The end of the name of the file of its logins.
const LOGINS: &str = "auth.json";

/// Podman's command line; there is no daemon.
pub(crate) struct Podman {
    registries: PathBuf,
    store: PathBuf,
    /// How the store is configured, where that is not as usual.
    storage: Option<PathBuf>,
    // Apart, since its path may have fifty characters.
    running: TempDir,
}

impl Podman {
    /// An empty store, and this `registries.conf`.
    pub(crate) fn new(dir: &Path, registries_conf: &str) -> Self {
        let registries = dir.join("registries.conf");
        fs::write(&registries, registries_conf).unwrap();
        // Who has no login has a file that says so.
        fs::write(registries.with_extension(LOGINS), "{}").unwrap();
        Self {
            registries,
            store: dir.join("podman"),
            storage: None,
            running: TempDir::with_prefix("podman-").unwrap(),
        }
    }

    /// The same, which pulls of a layer only what it has not, where a layer lets it.
    pub(crate) fn partial(dir: &Path, registries_conf: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut podman = Self::new(dir, registries_conf);
        let storage = dir.join("storage.conf");
        let document = format!(
            r#"[storage]
driver = "overlay"
graphroot = "{}"
runroot = "{}"

[storage.options]
pull_options = {{enable_partial_images = "true"}}
"#,
            podman.store.display(),
            podman.running.path().display()
        );
        fs::write(&storage, document).unwrap();
        podman.storage = Some(storage);
        podman
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

    /// Logs in at a registry of this machine, and says what was said if that is refused.
    pub(crate) fn try_log_in(
        &self,
        address: &str,
        user: &str,
        password: &str,
    ) -> Result<(), String> {
        let command = &[
            "login",
            "--tls-verify=false",
            "-u",
            user,
            "-p",
            password,
            address,
        ];
        let output = self.command(command).output().unwrap();
        let said = || String::from_utf8(output.stderr).unwrap();
        output.status.success().then_some(()).ok_or_else(said)
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

    /// Copies a folder of an image, of which nothing is run.
    pub(crate) fn copy_out(&self, image: &str, folder: &str, to: &Path) {
        let container = self.podman(&["create", "--pull=never", image, "nothing"]);
        let container = container.trim();
        let from = format!("{container}:{folder}");
        self.podman(&["cp", &from, to.to_str().unwrap()]);
        self.podman(&["rm", container]);
    }

    /// Runs `podman …` to its end. It keeps locks and what runs in places that it has for the
    /// whole machine; these are each command's own here, and gone with it.
    fn podman(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    /// `podman …`, not run yet.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = bounded("unshare");
        command.args(["--mount", "sh", "-ec", PRIVATELY, "sh", "podman"]);
        command.arg("--root").arg(&self.store);
        command.arg("--runroot").arg(self.running.path());
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=none"]);
        command.env("CONTAINERS_REGISTRIES_CONF", &self.registries);
        command.env("REGISTRY_AUTH_FILE", self.registries.with_extension(LOGINS));
        if let Some(storage) = &self.storage {
            command.env("CONTAINERS_STORAGE_CONF", storage);
        }
        command.args(args);
        command
    }
}

const PRIVATELY: &str = r#"mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /dev/shm; exec "$@""#;
