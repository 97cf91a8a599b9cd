//! A real `containerd` with directories, a socket and an image store of its own, and `ctr`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::Process;
use crate::wait::{bounded, run};

/// A containerd, and its command line.
pub(crate) struct Containerd {
    // Held for its drop.
    _process: Process,
    hosts: PathBuf,
    // Apart, since a socket's path is limited to some hundred bytes.
    sockets: TempDir,
}

/// What a pull showed.
pub(crate) struct Pulled {
    /// The digest that the image is kept under.
    pub(crate) digest: String,
    /// Where requests went: the part from `?` on, each once.
    pub(crate) queries: BTreeSet<String>,
    /// The namespaces that answers were said to be for.
    pub(crate) namespaces: BTreeSet<String>,
}

impl Containerd {
    /// Starts a containerd with an empty store and this `hosts.toml` for every registry.
    pub(crate) fn start(dir: &Path, hosts_toml: &str) -> Self {
        let hosts = dir.join("certs.d");
        fs::create_dir_all(hosts.join("_default")).unwrap();
        fs::write(hosts.join("_default/hosts.toml"), hosts_toml).unwrap();
        let sockets = TempDir::with_prefix("containerd-").unwrap();
        let home = dir.join("containerd");
        // A namespace's content is its own, so that another one's pull really pulls.
        let document = format!(
            r#"version = 2
root = "{home}/root"
state = "{sockets}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{home}/opt"

[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "isolated"
"#,
            home = home.display(),
            sockets = sockets.path().display(),
            socket = socket(&sockets),
        );
        let config = dir.join("containerd.toml");
        fs::write(&config, document).unwrap();
        let args = ["--config", config.to_str().unwrap()];
        let mut process = Process::start("containerd", dir, "containerd", &args);
        let mut version = ctr(&sockets);
        version.arg("version");
        process.wait_for("answer", |_| {
            let answered = version.output().unwrap().status.success();
            answered.then_some(())
        });
        Self {
            _process: process,
            hosts,
            sockets,
        }
    }

    /// Pulls into a containerd namespace, which knows nothing of what others have pulled.
    pub(crate) fn pull(&self, namespace: &str, reference: &str) -> Pulled {
        let pulled = self.try_pull(namespace, reference, &[]);
        pulled.unwrap_or_else(|said| panic!("{said}"))
    }

    /// The same with further flags of `ctr images pull`. Returns what was said if it is refused.
    pub(crate) fn try_pull(
        &self,
        namespace: &str,
        reference: &str,
        flags: &[&str],
    ) -> Result<Pulled, String> {
        let mut pull = ctr(&self.sockets);
        pull.args(["--debug", "--namespace", namespace, "images", "pull"]);
        let output = pull.args(flags).arg("--hosts-dir").arg(&self.hosts);
        let output = output.arg(reference).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        if !output.status.success() {
            return Err(said);
        }

        let filter = format!("name=={reference}");
        let mut list = ctr(&self.sockets);
        let list = run(list.args(["--namespace", namespace, "images", "list", &filter]));
        let digest = list
            .split_whitespace()
            .find(|it| it.starts_with("sha256:"))
            .unwrap();
        Ok(Pulled {
            digest: digest.to_owned(),
            queries: fields(&said, "url=")
                .map(|url| {
                    url.split_once('?')
                        .map_or(String::new(), |it| it.1.to_owned())
                })
                .collect(),
            namespaces: fields(&said, "response.header.oci-namespace=").collect(),
        })
    }

    /// Runs a shell command in a container and returns what it printed.
    pub(crate) fn shell(&self, namespace: &str, image: &str, script: &str) -> String {
        let mut command = ctr(&self.sockets);
        command.args(["--namespace", namespace, "run", "--rm", "--net-host"]);
        run(command.args([image, "check", "sh", "-ec", script]))
    }
}

fn ctr(sockets: &TempDir) -> Command {
    let mut command = bounded("ctr");
    command.args(["--address", &socket(sockets)]);
    command
}

fn socket(sockets: &TempDir) -> String {
    format!("{}/socket", sockets.path().display())
}

/// The values of a field in logged lines.
fn fields(log: &str, name: &str) -> impl Iterator<Item = String> {
    let words = log.split_whitespace();
    let values = words.filter_map(move |word| word.strip_prefix(name));
    values.map(|value| value.trim_matches('"').to_owned())
}
