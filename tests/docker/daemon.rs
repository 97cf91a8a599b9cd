//! A real `dockerd` with directories, a socket and an image store of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::Process;
use crate::wait::{bounded, run};

/// A docker daemon, and its command line.
pub(crate) struct Daemon {
    process: Process,
    data: PathBuf,
    // Apart, since a socket's path is limited to some hundred bytes.
    sockets: TempDir,
}

impl Daemon {
    /// Starts a daemon with an empty store and this `daemon.json`.
    pub(crate) fn start(dir: &Path, config: &str) -> Self {
        let data = dir.join("docker");
        let file = dir.join("daemon.json");
        fs::write(&file, config).unwrap();
        let sockets = TempDir::with_prefix("docker-").unwrap();
        let at = |name: &str| sockets.path().join(name).to_str().unwrap().to_owned();
        let args = [
            // Not the machine's own.
            format!("--config-file={}", file.display()),
            format!("--data-root={}", data.display()),
            format!("--exec-root={}", at("exec")),
            format!("--pidfile={}", at("pid")),
            format!("--host={}", host(&sockets)),
            "--iptables=false".to_owned(),
            "--ip6tables=false".to_owned(),
            "--bridge=none".to_owned(),
        ];
        let args = args.each_ref().map(String::as_str);
        let process = Process::start("dockerd", dir, "dockerd", &args);
        let mut daemon = Self {
            process,
            data,
            sockets,
        };
        let mut version = daemon.command(&["version"]);
        daemon.process.wait_for("answer", |_| {
            let answered = version.output().unwrap().status.success();
            answered.then_some(())
        });
        daemon
    }

    /// Runs `docker …` to its end.
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    /// Pulls into an empty store, so that every layer really comes over the wire, and from where
    /// it should. Returns the digest that the daemon was given.
    pub(crate) fn pull(&self, reference: &str) -> String {
        self.remove_images();
        let said = self.docker(&["pull", reference]);
        assert!(!said.contains("Already exists"), "{said}");
        // Docker Hub comes after the mirror.
        let log = self.process.logged();
        assert!(!log.contains("Attempting next endpoint"), "{log}");

        let digest = said.lines().find_map(|line| line.strip_prefix("Digest: "));
        let digest = digest.unwrap().to_owned();
        let known = self.docker(&["image", "inspect", "-f", "{{.RepoDigests}}", reference]);
        assert_eq!(known.trim(), format!("[debian@{digest}]"));
        digest
    }

    /// Pulls what may be refused. Returns the digest that the daemon was given, or what it said.
    pub(crate) fn try_pull(&self, reference: &str) -> Result<String, String> {
        let output = self.command(&["pull", reference]).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8(output.stderr).unwrap());
        }
        let said = String::from_utf8(output.stdout).unwrap();
        let digest = said.lines().find_map(|line| line.strip_prefix("Digest: "));
        Ok(digest.unwrap().to_owned())
    }

    /// Runs a shell command in a container and returns what it printed.
    pub(crate) fn shell(&self, image: &str, script: &str) -> String {
        self.docker(&[
            "run",
            "--rm",
            "--network",
            "host",
            image,
            "sh",
            "-ec",
            script,
        ])
    }

    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    /// `docker …`, not run yet.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = bounded("docker");
        // Not the configuration, credentials or context of whoever runs the tests.
        command
            .env("DOCKER_CONFIG", self.sockets.path())
            .env_remove("DOCKER_CONTEXT")
            .arg("--host")
            .arg(host(&self.sockets))
            .args(args);
        command
    }

    /// Removes every image, and makes sure that no layer is left.
    fn remove_images(&self) {
        let images = self.docker(&["images", "--all", "--quiet", "--no-trunc"]);
        // An image with two names is listed twice.
        let images: BTreeSet<&str> = images.lines().collect();
        for image in images {
            self.docker(&["rmi", "--force", image]);
        }
        assert_eq!(self.docker(&["images", "--all", "--quiet"]), "");
        for driver in fs::read_dir(self.data.join("image")).unwrap() {
            let layers = driver.unwrap().path().join("layerdb/sha256");
            let left = fs::read_dir(layers).map_or(0, Iterator::count);
            assert_eq!(left, 0, "the daemon kept layers of images it no longer has");
        }
    }
}

fn host(sockets: &TempDir) -> String {
    format!("unix://{}/docker.sock", sockets.path().display())
}
