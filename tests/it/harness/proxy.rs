//! The application on ports and a directory of its own.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use layerhold::app::{App, Running};
use layerhold::cache::Faults;
use layerhold::cli::{Args, Command};
use layerhold::config::Config;
use layerhold::upstream::AddressBook;
use tempfile::TempDir;
use toml::{Table, Value};

use super::blob::Blob;
use super::client::{Head, Request, Whole};
use super::registry::FakeRegistry;
use super::{poll, within};

/// The namespace of the first upstream, which is the default one.
pub(crate) const ONE: &str = "one.example";

/// The namespace that tests give a second upstream.
pub(crate) const TWO: &str = "two.example";

/// What a proxy is going to run on.
#[derive(Clone, Debug)]
pub(crate) struct ProxyBuilder {
    settings: Table,
    upstreams: Vec<Table>,
    addresses: AddressBook,
    variables: BTreeMap<String, String>,
    faults: Faults,
    /// Holds the cache directory and the configuration file; gone with the last who knows it.
    home: Arc<TempDir>,
}

/// A proxy that runs in this process.
pub(crate) struct TestProxy {
    running: Running,
    front: Front,
    builder: ProxyBuilder,
}

/// The two addresses of a proxy, in this process or another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front {
    pub(crate) registry: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl ProxyBuilder {
    fn new() -> Self {
        let home = Arc::new(tempfile::tempdir().unwrap());
        let builder = Self {
            settings: Table::new(),
            upstreams: Vec::new(),
            addresses: AddressBook::default(),
            variables: BTreeMap::new(),
            faults: Faults::scripted(),
            home,
        };
        let dir = builder.dir().to_str().unwrap().to_owned();
        builder
            .set("listen", vec!["127.0.0.1:0"])
            .set("admin_listen", "127.0.0.1:0")
            .set("cache.dir", dir)
            .set("cache.size", "1GiB")
            // Loopback connects at once or never; tests may then allow little for the whole answer.
            .set("timeouts.connect", "500ms")
            // What the machine's disk has free is not what most tests are about.
            .set("cache.free_space_min", "0%")
    }

    /// Sets a key of the configuration file, such as `freshness.fresh_for`.
    pub(crate) fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let mut table = &mut self.settings;
        let (sections, last) = key.rsplit_once('.').unwrap_or(("", key));
        for section in sections.split_terminator('.') {
            let inner = table.entry(section).or_insert(Value::Table(Table::new()));
            table = inner.as_table_mut().unwrap();
        }
        table.insert(last.to_owned(), value.into());
        self
    }

    /// Sets an environment variable.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The environment variables.
    pub(crate) fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Adds an upstream.
    pub(crate) fn and(mut self, namespace: &str, upstream: &FakeRegistry) -> Self {
        let mut table = Table::new();
        table.insert("namespace".to_owned(), namespace.into());
        let url = format!("http://{}", upstream.address());
        table.insert("url".to_owned(), url.into());
        if self.upstreams.is_empty() {
            table.insert("default".to_owned(), true.into());
        }
        self.upstreams.push(table);
        self
    }

    /// Sets a key of the upstream that was added last.
    pub(crate) fn upstream(mut self, key: &str, value: impl Into<Value>) -> Self {
        let upstream = self.upstreams.last_mut().unwrap();
        upstream.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a mirror to the upstream that was added last, after those it has; `path` stands before names there.
    pub(crate) fn mirror(self, mirror: &FakeRegistry, path: &str) -> Self {
        self.mirror_with(mirror, path, &[])
    }

    /// The same, with some more keys.
    pub(crate) fn mirror_with(
        mut self,
        mirror: &FakeRegistry,
        path: &str,
        keys: &[(&str, Value)],
    ) -> Self {
        let mut table = Table::new();
        let url = format!("http://{}{path}", mirror.address());
        table.insert("url".to_owned(), url.into());
        for (key, value) in keys {
            table.insert((*key).to_owned(), value.clone());
        }
        let upstream = self.upstreams.last_mut().unwrap();
        let mirrors = upstream.entry("mirror").or_insert(Value::Array(Vec::new()));
        mirrors.as_array_mut().unwrap().push(table.into());
        self
    }

    /// Gives a name its addresses, in this process only: nobody is asked for them.
    pub(crate) fn name(self, name: &str, addresses: &[&str]) -> Self {
        self.answers(name, &[addresses])
    }

    /// As [`ProxyBuilder::name`], with other addresses at each look; the last ones stay.
    pub(crate) fn answers(mut self, name: &str, answers: &[&[&str]]) -> Self {
        let parsed = |answer: &&[&str]| answer.iter().map(|it| it.parse().unwrap()).collect();
        let answers = answers.iter().map(parsed).collect();
        self.addresses.names.insert(name.to_owned(), answers);
        self
    }

    /// Has somebody else dialled for an address, in this process only: it is checked as what it is, and reached where a
    /// test can listen.
    pub(crate) fn stand_in(self, address: &str, dialled: IpAddr) -> Self {
        self.stand_in_at(address, SocketAddr::new(dialled, 0))
    }

    /// The same, at a port for those who name none.
    pub(crate) fn stand_in_at(mut self, address: &str, dialled: SocketAddr) -> Self {
        let address = address.parse().unwrap();
        self.addresses.stand_ins.insert(address, dialled);
        self
    }

    /// Writes a file next to the configuration's and says where it is.
    pub(crate) fn write(&self, name: &str, content: &str) -> String {
        let file = self.home.path().join(name);
        fs::write(&file, content).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// What the disk does wrong on order, in this process only.
    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The cache directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.home.path().join("cache")
    }

    /// Writes the configuration file and says where.
    pub(crate) fn file(&self) -> PathBuf {
        let mut table = self.settings.clone();
        table.insert("upstream".to_owned(), self.upstreams.clone().into());
        let file = self.home.path().join("layerhold.toml");
        fs::write(&file, toml::to_string(&table).unwrap()).unwrap();
        file
    }

    /// The configuration, as the application gets it.
    fn config(&self) -> Config {
        let mut config = config(&self.file(), &self.variables);
        config.cache.faults = self.faults.clone();
        for upstream in &mut config.proxy.upstreams {
            let connection = &mut upstream.connection;
            let mirrors = connection.mirrors.iter_mut().map(|it| &mut it.site);
            for site in mirrors.chain([&mut connection.own]) {
                site.addresses = self.addresses.clone();
            }
        }
        config
    }

    /// Starts the application.
    pub(crate) async fn start(self) -> TestProxy {
        let config = self.config();
        let running = within("the start", App::start(config)).await.unwrap();
        let front = Front {
            registry: *running.registry_addresses().first().unwrap(),
            admin: running.admin_address(),
        };
        TestProxy {
            running,
            front,
            builder: self,
        }
    }

    /// Starts the application where it must refuse, and says why it did.
    pub(crate) async fn refused(self) -> String {
        let config = self.config();
        match within("the refusal", App::start(config)).await {
            Ok(_) => panic!("it started"),
            Err(error) => chain(&error),
        }
    }
}

impl TestProxy {
    /// A proxy whose only upstream so far is `upstream`, by the name of [`ONE`].
    pub(crate) fn in_front_of(upstream: &FakeRegistry) -> ProxyBuilder {
        Self::in_front_of_named(ONE, upstream)
    }

    /// A proxy whose default upstream has a name of the test's choice.
    pub(crate) fn in_front_of_named(namespace: &str, upstream: &FakeRegistry) -> ProxyBuilder {
        ProxyBuilder::new().and(namespace, upstream)
    }

    /// What runs in the same place as `builder`, in front of another upstream.
    pub(crate) fn in_front_of_at(builder: &ProxyBuilder, upstream: &FakeRegistry) -> ProxyBuilder {
        let builder = ProxyBuilder {
            upstreams: Vec::new(),
            ..builder.clone()
        };
        builder.and(ONE, upstream)
    }

    /// Begins to stop.
    pub(crate) fn shut_down(&self) {
        self.running.shut_down();
    }

    /// Waits until it has stopped; what it ran on, for another start.
    pub(crate) async fn stopped(self) -> ProxyBuilder {
        within("the proxy to stop", self.running.stopped()).await;
        self.builder
    }

    /// Stops and starts on the same directory.
    pub(crate) async fn restart(self) -> Self {
        self.shut_down();
        self.stopped().await.start().await
    }

    /// What it runs on: for a second one on the same directory.
    pub(crate) fn builder(&self) -> &ProxyBuilder {
        &self.builder
    }

    /// What its disk does wrong on order.
    pub(crate) fn faults(&self) -> &Faults {
        self.builder.faults()
    }

    /// The published file of a digest, by the layout that is part of the contract.
    pub(crate) fn published(&self, digest: &str) -> PathBuf {
        published(&self.builder.dir(), digest)
    }

    /// Waits until nothing is staged.
    pub(crate) async fn wait_for_empty_staging(&self) {
        let dir = self.builder.dir();
        poll("an empty staging directory", async || {
            staging(&dir).is_empty().then_some(())
        })
        .await;
    }
}

impl std::ops::Deref for TestProxy {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

impl Front {
    /// A GET at the registry port.
    pub(crate) fn get(&self, target: impl Into<String>) -> Request {
        Request::new(self.registry, "GET", target)
    }

    /// A HEAD at the registry port.
    pub(crate) fn head(&self, target: impl Into<String>) -> Request {
        Request::new(self.registry, "HEAD", target)
    }

    /// A GET of a blob.
    pub(crate) fn blob(&self, repository: &str, digest: &str) -> Request {
        self.get(format!("/v2/{repository}/blobs/{digest}"))
    }

    /// A GET of a manifest.
    pub(crate) fn manifest(&self, repository: &str, reference: &str) -> Request {
        self.get(format!("/v2/{repository}/manifests/{reference}"))
    }

    /// Pulls a blob and fails the test unless it comes whole and right.
    pub(crate) async fn pull_blob(&self, repository: &str, blob: &Blob) -> Head {
        let answer = self.blob(repository, blob.digest()).send().await;
        let head = answer.is(blob).await;
        assert_eq!(head.header("docker-content-digest"), Some(blob.digest()));
        head
    }

    /// Pulls a manifest and fails the test unless its bytes are those of the digest it claims.
    pub(crate) async fn pull_manifest(&self, repository: &str, reference: &str) -> Whole {
        let whole = self.manifest(repository, reference).whole().await;
        assert_eq!(whole.head.status, 200, "{:?}", whole.head);
        let digest = whole.digest();
        assert_eq!(
            whole.head.header("docker-content-digest"),
            Some(digest.as_str())
        );
        whole
    }

    /// A GET at the admin port.
    pub(crate) async fn admin(&self, target: &str) -> Whole {
        Request::new(self.admin, "GET", target).whole().await
    }

    /// A request to purge, as its command sends it.
    pub(crate) fn purging(&self, references: &[&str]) -> Request {
        let body = serde_json::json!({ "reference": references });
        Request::new(self.admin, "POST", "/purge")
            .header("Content-Type", "application/json")
            .body(body.to_string())
    }

    /// Purges, and says what of one reference was stored: tags, grants and blobs.
    pub(crate) async fn purge(&self, reference: &str) -> (u64, u64, u64) {
        let whole = self.purging(&[reference]).whole().await;
        assert_eq!(whole.head.status, 200, "{}", whole.text());
        let report: serde_json::Value = serde_json::from_slice(&whole.bytes).unwrap();
        let count = |name: &str| report["purged"][0][name].as_u64().unwrap();
        (count("tags"), count("grants"), count("blobs"))
    }

    /// Has it check all that it keeps: the report.
    pub(crate) async fn verify(&self) -> serde_json::Value {
        let whole = Request::new(self.admin, "POST", "/verify")
            .header("Content-Type", "application/json")
            .body("{}")
            .whole()
            .await;
        let text = whole.text();
        let last = text.lines().last().unwrap();
        let mut said: serde_json::Value = serde_json::from_str(last).unwrap();
        said["report"].take()
    }

    /// Everything at `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        let whole = self.admin("/metrics").await;
        assert_eq!(whole.head.status, 200);
        whole.text()
    }

    /// The sum of the series of this name that have all these labels.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.metrics().await, name, labels)
    }

    /// Waits until a metric is as wanted.
    pub(crate) async fn wait_for_metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        wanted: impl Fn(f64) -> bool,
    ) -> f64 {
        poll(&format!("{name} {labels:?}"), async || {
            let value = self.metric(name, labels).await;
            wanted(value).then_some(value)
        })
        .await
    }

    /// Waits until this many fills have ended in this way.
    pub(crate) async fn wait_for_fills(&self, end: &str, n: f64) {
        let labels = [("end", end)];
        self.wait_for_metric("layerhold_fills_total", &labels, |it| it >= n)
            .await;
        self.wait_for_metric("layerhold_fills", &[], |it| it == 0.0)
            .await;
    }

    /// Waits until at least this many fills have ended in this way, whatever else is under way.
    pub(crate) async fn wait_for_fills_at_least(&self, end: &str, n: f64) {
        self.wait_for_metric("layerhold_fills_total", &[("end", end)], |it| it >= n)
            .await;
    }

    /// Waits until a blob is a hit.
    pub(crate) async fn wait_for_hit(&self, repository: &str, blob: &Blob) {
        poll("a hit", async || {
            let head = self.pull_blob(repository, blob).await;
            head.cache_status()
                .starts_with("layerhold; hit")
                .then_some(())
        })
        .await;
    }

    /// Requests that ended with this outcome.
    pub(crate) async fn outcome(&self, outcome: &str) -> f64 {
        self.metric("layerhold_requests_total", &[("outcome", outcome)])
            .await
    }
}

/// The one place that knows how a configuration is made of a file.
fn config(file: &Path, variables: &BTreeMap<String, String>) -> Config {
    let file = file.to_str().unwrap();
    let args = Args::try_parse_from(["layerhold", "serve", "--config", file]).unwrap();
    let Command::Serve(options) = args.command else {
        panic!("serve is not serve");
    };
    Config::load(&options, variables).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// The published file of a digest below a cache directory.
pub(crate) fn published(dir: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    let shard = hex.get(..2).unwrap();
    dir.join("blobs").join(algorithm).join(shard).join(hex)
}

/// The files under `staging/` of a cache directory.
pub(crate) fn staging(dir: &Path) -> Vec<PathBuf> {
    match fs::read_dir(dir.join("staging")) {
        Ok(entries) => entries.map(|it| it.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    }
}

/// The sum of the series of this name that have all these labels, in the text of a scrape.
pub(crate) fn sum(metrics: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let mut sum = 0.0;
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        let has = |(label, value): &(&str, &str)| rest.contains(&format!("{label}=\"{value}\""));
        if rest.starts_with([' ', '{']) && labels.iter().all(has) {
            let (_, value) = rest.rsplit_once(' ').unwrap();
            sum += value.parse::<f64>().unwrap();
        }
    }
    sum
}

/// An error and its sources on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
