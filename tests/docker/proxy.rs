//! The binary under test.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::http;
use crate::process::Process;
use crate::registry::Descriptor;
use crate::wait::{bounded, run, until};

/// A running layerhold, whose cache starts empty.
pub(crate) struct Proxy {
    process: Process,
    registry: SocketAddr,
    admin: SocketAddr,
    config: PathBuf,
    cache: PathBuf,
}

impl Proxy {
    /// Starts layerhold in the place of Docker Hub, in front of `upstream`.
    pub(crate) fn start(dir: &Path, upstream: SocketAddr) -> Self {
        Self::with(
            dir,
            &in_front_of("docker.io", &format!("http://{upstream}")),
        )
    }

    /// Starts layerhold with these tables of upstreams, as the configuration file has them.
    pub(crate) fn with(dir: &Path, upstreams: &str) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), dir, upstreams)
    }

    /// The same at another address of this machine, with tables of any kind.
    pub(crate) fn at(ip: IpAddr, dir: &Path, tables: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        let config = dir.join("layerhold.toml");
        let cache = dir.join("cache");
        let document = format!(
            r#"listen = ["{ip}:0"]
admin_listen = "127.0.0.1:0"

[cache]
dir = "{}"
size = "4GiB"
# However little a busy machine has left: the suite is about what is kept.
free_space_min = "256MiB"

{tables}"#,
            cache.display()
        );
        fs::write(&config, document).unwrap();
        let file = config.to_str().unwrap();
        let log = ["--log-format", "json", "--log-level", "trace"];
        let args = [&["serve", "--config", file], &log[..]].concat();
        let mut process = Process::start("layerhold", dir, PROGRAM, &args);
        let mut bound = |role: &str| {
            process.wait_for(&format!("{role} address"), |process| {
                address(&process.events(), role)
            })
        };
        Self {
            registry: bound("registry"),
            admin: bound("admin"),
            process,
            config,
            cache,
        }
    }

    /// Where clients pull.
    pub(crate) fn address(&self) -> SocketAddr {
        self.registry
    }

    /// Where metrics are.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    /// The file that makes a client pull through this proxy, as the binary itself writes it.
    pub(crate) fn client_config(&self, client: &str) -> String {
        let mut command = bounded(PROGRAM);
        command.args(["client-config", client, "--config"]);
        command.arg(&self.config);
        run(command.args(["--address", &self.registry.to_string()]))
    }

    /// All that it has logged, which is all that it ever says.
    pub(crate) fn logged(&self) -> String {
        self.process.logged()
    }

    /// What it has logged of each request.
    pub(crate) fn requests(&self) -> Vec<Value> {
        let mut events = self.process.events();
        events.retain(|it| it["message"] == "request");
        events
    }

    /// All that it has counted.
    pub(crate) fn metrics(&self) -> String {
        String::from_utf8(http::get(self.admin, "/metrics", "*/*")).unwrap()
    }

    /// The sum of a metric's values whose labels include these, written as the metrics have them.
    pub(crate) fn counts(&self, metric: &str, labels: &[&str]) -> usize {
        let metrics = self.metrics();
        let prefix = format!("{metric}{{");
        let lines = metrics.lines().filter(|line| {
            line.starts_with(&prefix) && labels.iter().all(|label| line.contains(label))
        });
        let counts = lines.map(|line| line.rsplit(' ').next().unwrap());
        counts.map(|count| count.parse::<usize>().unwrap()).sum()
    }

    /// How many requests had this outcome.
    pub(crate) fn requests_with_outcome(&self, outcome: &str) -> usize {
        let label = format!("outcome=\"{outcome}\"");
        self.counts("layerhold_requests_total", &[&label])
    }

    /// Waits until at least so many requests had this outcome. They are counted once they ended,
    /// which a client may see first.
    pub(crate) fn counted(&self, outcome: &str, times: usize) {
        until(
            &format!("{times} requests with the outcome {outcome}"),
            || (self.requests_with_outcome(outcome) >= times).then_some(()),
        );
    }

    /// Waits until the published blobs are at least these, and returns what is published then.
    /// A client has its last byte before the blob is published.
    pub(crate) fn published(&self, parts: &BTreeSet<Descriptor>) -> BTreeSet<Descriptor> {
        until("publication of every blob", || {
            let published = self.blobs();
            published.is_superset(parts).then_some(published)
        })
    }

    /// All that is stored under `blobs/`.
    fn blobs(&self) -> BTreeSet<Descriptor> {
        let mut blobs = BTreeSet::new();
        let mut dirs = vec![self.cache.join("blobs")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let meta = entry.metadata().unwrap();
                if meta.is_dir() {
                    dirs.push(entry.path());
                } else {
                    let name = entry.file_name().into_string().unwrap();
                    blobs.insert(Descriptor {
                        digest: format!("sha256:{name}"),
                        size: meta.len(),
                    });
                }
            }
        }
        blobs
    }
}

/// The table of an upstream that is the default one; more keys of it may follow.
pub(crate) fn in_front_of(namespace: &str, url: &str) -> String {
    format!("[[upstream]]\nnamespace = \"{namespace}\"\nurl = \"{url}\"\ndefault = true\n")
}

/// The address that a listener was logged with.
pub(crate) fn address(events: &[Value], role: &str) -> Option<SocketAddr> {
    let mut listening = events.iter().filter(|it| it["message"] == "listening");
    let mine = listening.find(|it| it["role"] == role)?;
    mine["address"].as_str()?.parse().ok()
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_layerhold");
