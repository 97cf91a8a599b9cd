//! What is in the cache already: beside nginx, which serves the same bytes from files, and other caches that have them too.
//!
//! On this hang how a blob goes from its file to a socket, how large the send buffer is, and what the way of a request
//! through the floors may cost.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::thread;

use tempfile::TempDir;

use super::{LAYERHOLD, Stage};
use crate::lab::block::{Block, Column};
use crate::lab::certificate::Certificate;
use crate::lab::load::{Load, Sustained};
use crate::lab::process::Process;
use crate::lab::scratch::scratch;
use crate::lab::sealed::Sealing;
use crate::lab::server::Server;
use crate::lab::verdicts::Target::{AtLeast, AtMost};
use crate::lab::verdicts::Verdicts;
use crate::peers::ceiling::{serve_file, serve_memory};
use crate::peers::nginx::Nginx;
use crate::peers::{Cache, PEERS};

/// P1, P2, P3: the blob, again and again, over plain HTTP/1.1, to one and to many clients that copy it.
pub(crate) fn blobs(stage: &Stage<'_>, verdicts: &mut Verdicts) {
    let warm = Warm::start(stage);
    let ceiling = serve_file(&warm.files.path().join("blob"));
    for clients in [1, 8, 64] {
        let title = format!(
            "P1 P2 P3: hit of {} MiB, {clients} clients",
            stage.blob_mib()
        );
        let mut sources = vec![warm.ours(LAYERHOLD, &stage.blob_path)];
        sources.extend(warm.of_nginx("/blob"));
        sources.push(Source::without_process(CEILING, ceiling));
        let block = warm.take_turns(title, clients, sources);
        let rate = |other| block.ratio(LAYERHOLD, other, 0);
        let cpu = |other| block.ratio(LAYERHOLD, other, 1);
        let at_least = match clients {
            8 => 1.7,
            64 => 3.0,
            _ => continue,
        };
        let with = |what| format!("{clients} clients: {what}");
        verdicts.add("P1", with("GiB/s x nginx"), AtLeast(at_least), rate(NGINX));
        verdicts.add("P2", with("CPU x nginx"), AtMost(0.5), cpu(NGINX));
        verdicts.add(
            "P3",
            with("GiB/s x nginx sndbuf"),
            AtLeast(0.95),
            rate(SNDBUF),
        );
    }
}

/// P6: the same over TLS 1.3 with AES-128-GCM. The clients open the head of each answer and nothing else, so that only the
/// servers encrypt.
pub(crate) fn blobs_over_tls(stage: &Stage<'_>, verdicts: &mut Verdicts) {
    let warm = Warm::over_tls(stage);
    for (clients, at_least) in [(1, 1.5), (8, 2.5), (64, 2.0)] {
        let title = format!(
            "P6: hit of {} MiB over TLS 1.3, {clients} clients",
            stage.blob_mib()
        );
        let mut sources = vec![warm.ours(LAYERHOLD, &stage.blob_path)];
        sources.extend(warm.of_nginx("/blob"));
        let block = warm.take_turns(title, clients, sources);
        let rate = block.ratio(LAYERHOLD, NGINX, 0);
        let what = format!("{clients} clients: GiB/s x nginx");
        verdicts.add("P6", what, AtLeast(at_least), rate);
    }
}

/// P4: a small manifest, by digest and by a tag that is fresh, over connections that are kept. docker-registry knows no
/// freshness of tags: it asks its upstream each time.
pub(crate) fn manifests(stage: &Stage<'_>, verdicts: &mut Verdicts) {
    let warm = Warm::start(stage);
    let logging = Server::start(stage.upstream.address, "info");
    let caches: Vec<(&str, Cache)> = PEERS
        .iter()
        .filter(|it| KNOW_MANIFESTS.contains(&it.name) && it.is_installed())
        .map(|it| (it.name, (it.start)(stage.upstream.address)))
        .collect();
    let title = format!(
        "P4: hit of a manifest of {} bytes, 64 clients",
        stage.manifest.len()
    );
    let columns = [PER_SECOND, P50, P99];
    let mut block = Block::new(title, columns, NGINX);
    let kinds = [("digest", &stage.by_digest), ("tag", &stage.by_tag)];
    let mut sources = Vec::new();
    for (kind, path) in kinds {
        sources.push(warm.ours(&format!("{LAYERHOLD}, {kind}"), path));
    }
    sources.push(Source {
        from: logging.address,
        process: Some(&logging.process),
        ..warm.ours(LOGGING, &stage.by_digest)
    });
    sources.extend(warm.of_nginx("/manifest").into_iter().take(1));
    for (name, cache) in &caches {
        for (kind, path) in kinds {
            sources.push(Source {
                name: format!("{name}, {kind}"),
                from: cache.address,
                path,
                process: Some(&cache.process),
                tls: None,
            });
        }
    }
    sources.push(Source::without_process(
        CEILING,
        serve_memory(&stage.manifest),
    ));
    for source in sources {
        let load = source.load(64, 2, stage.manifest.len() as u64);
        warm.check(&load, &stage.manifest_digest);
        block.enter(source.name.clone(), move || {
            let (sustained, _) = source.turn(stage, &load);
            let per_second = sustained.requests_per_second();
            [per_second, sustained.latency(0.5), sustained.latency(0.99)]
        });
    }
    block.run(stage.args.rounds());
    for (kind, _) in kinds {
        let ours = format!("{LAYERHOLD}, {kind}");
        let registry = format!("docker-registry, {kind}");
        let with = |what| format!("{kind}: {what}");
        let rate = |other| block.ratio(&ours, other, 0);
        verdicts.add("P4", with("requests/s x nginx"), AtLeast(1.0), rate(NGINX));
        verdicts.add(
            "P4",
            with("requests/s x docker-registry"),
            AtLeast(100.0),
            rate(&registry),
        );
        let p99 = block.ratio(&ours, NGINX, 2);
        verdicts.add("P4", with("p99 x nginx"), AtMost(1.5), p99);
    }
    let logged = block.ratio(LOGGING, &format!("{LAYERHOLD}, digest"), 0);
    let what = "digest: requests/s with log lines x without";
    verdicts.add("P4", what.to_owned(), AtLeast(0.9), logged);
}

/// P5: the same manifest to a few clients, while others take the blob without end.
pub(crate) fn manifests_beside_blobs(stage: &Stage<'_>, verdicts: &mut Verdicts) {
    let warm = Warm::start(stage);
    let title = format!(
        "P5: manifests to 64 clients while 8 others take {} MiB",
        stage.blob_mib()
    );
    let columns = [PER_SECOND, P50, P99, GIB_PER_SECOND];
    let mut block = Block::new(title, columns, NGINX);
    let mut pairs = vec![(
        warm.ours(LAYERHOLD, &stage.blob_path),
        warm.ours(LAYERHOLD, &stage.by_digest),
    )];
    let nginx = warm
        .of_nginx("/blob")
        .into_iter()
        .zip(warm.of_nginx("/manifest"));
    pairs.extend(nginx.take(1));
    pairs.push((
        Source::without_process(CEILING, serve_file(&warm.files.path().join("blob"))),
        Source::without_process(CEILING, serve_memory(&stage.manifest)),
    ));
    for (blob, manifest) in pairs {
        let blobs = blob.load(8, 1, stage.blob.size);
        let manifests = manifest.load(64, 1, stage.manifest.len() as u64);
        warm.check(&blobs, &stage.blob.digest);
        warm.check(&manifests, &stage.manifest_digest);
        block.enter(manifest.name.clone(), move || {
            let window = stage.args.window();
            thread::scope(|scope| {
                // So that they are there from before the first manifest until after the last.
                let beside = scope.spawn(|| blobs.sustain(window + window / 4, || 0.0));
                let told = manifests.sustain(window, || 0.0);
                let rate = beside.join().unwrap().gib_per_second();
                let per_second = told.requests_per_second();
                [per_second, told.latency(0.5), told.latency(0.99), rate]
            })
        });
    }
    block.run(stage.args.rounds());
    let p99 = block.ratio(LAYERHOLD, NGINX, 2);
    verdicts.add("P5", "p99 x nginx", AtMost(0.3), p99);
}

/// Servers that have everything.
struct Warm<'a> {
    stage: &'a Stage<'a>,
    server: Server,
    nginx: Option<Nginx>,
    /// How clients come to speak TLS, if they do.
    tls: Option<Sealing>,
    // What nginx serves, and the ceiling.
    files: TempDir,
}

impl<'a> Warm<'a> {
    fn start(stage: &'a Stage<'a>) -> Self {
        Self::start_in(scratch(), stage, None)
    }

    fn over_tls(stage: &'a Stage<'a>) -> Self {
        let files = scratch();
        let certificate = Certificate::write(files.path());
        Self::start_in(files, stage, Some(&certificate))
    }

    fn start_in(files: TempDir, stage: &'a Stage<'a>, tls: Option<&Certificate>) -> Self {
        let mut blob = File::create(files.path().join("blob")).unwrap();
        stage.blob.write_to(&mut blob).unwrap();
        // The disk is not to be busy with it later.
        blob.sync_all().unwrap();
        fs::write(files.path().join("manifest"), &stage.manifest).unwrap();
        Self {
            stage,
            server: Server::start_with(
                stage.upstream.address,
                &stage.args.log_level,
                &tls.map(|it| it.keys("")).unwrap_or_default(),
            ),
            nginx: Nginx::start(files.path()),
            tls: tls.map(|it| Sealing::with(&it.pem, Certificate::NAME)),
            files,
        }
    }

    fn ours<'b>(&'b self, name: &str, path: &'b str) -> Source<'b> {
        Source {
            name: name.to_owned(),
            from: self.server.address,
            path,
            process: Some(&self.server.process),
            tls: self.tls.as_ref(),
        }
    }

    /// As it comes, and with a bounded send buffer, which has no TLS.
    fn of_nginx<'b>(&'b self, path: &'b str) -> Vec<Source<'b>> {
        let Some(nginx) = &self.nginx else {
            return Vec::new();
        };
        let of = |(name, from): (&str, SocketAddr)| Source {
            name: name.to_owned(),
            from,
            path,
            process: Some(&nginx.process),
            tls: self.tls.as_ref(),
        };
        match self.tls {
            Some(_) => vec![of((NGINX, nginx.secure))],
            None => [(NGINX, nginx.stock), (SNDBUF, nginx.bounded)]
                .map(of)
                .into(),
        }
    }

    /// The blob from each, in turns.
    fn take_turns<'b>(
        &'b self,
        title: String,
        clients: usize,
        sources: Vec<Source<'b>>,
    ) -> Block<'b, 3> {
        let columns = [GIB_PER_SECOND, CPU_PER_GIB, PEAK_MIB];
        let mut block = Block::new(title, columns, NGINX);
        for source in sources {
            let load = source.load(clients, 1, self.stage.blob.size);
            self.check(&load, &self.stage.blob.digest);
            block.enter(source.name.clone(), move || {
                let (sustained, peak) = source.turn(self.stage, &load);
                [sustained.gib_per_second(), source.cpu(&sustained), peak]
            });
        }
        block.run(self.stage.args.rounds());
        block
    }

    /// Warms a server, and looks at what it sends: once, and for each client in the short mode.
    fn check(&self, load: &Load<'_>, digest: &str) {
        let clients = if self.stage.args.short {
            load.clients
        } else {
            1
        };
        let checked = Load {
            clients,
            threads: 1,
            digest: Some(digest),
            ..load.clone()
        };
        checked.pull();
    }
}

/// Who has the same content under which path.
struct Source<'a> {
    name: String,
    from: SocketAddr,
    path: &'a str,
    /// `None` where its CPU time is the bench's own.
    process: Option<&'a Process>,
    tls: Option<&'a Sealing>,
}

impl<'a> Source<'a> {
    fn without_process(name: &str, from: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            from,
            path: "/",
            process: None,
            tls: None,
        }
    }

    fn load(&self, clients: usize, threads: usize, length: u64) -> Load<'a> {
        Load {
            from: self.from,
            path: self.path,
            clients,
            threads,
            length,
            digest: None,
            tls: self.tls,
        }
    }

    /// One turn, and the peak of memory in it, in MiB.
    fn turn(&self, stage: &Stage<'_>, load: &Load<'_>) -> (Sustained, f64) {
        self.process.inspect(|it| it.forget_peak());
        let sent = stage.upstream.sent();
        let cpu = || self.process.map_or(0.0, Process::cpu);
        let sustained = load.sustain(stage.args.window(), cpu);
        let is_ours = self.name.starts_with(LAYERHOLD);
        let asked = stage.upstream.sent() - sent;
        assert!(!is_ours || asked == 0, "a hit asks upstream for nothing");
        let peak = self.process.map_or(f64::NAN, Process::peak_mib);
        (sustained, peak)
    }

    fn cpu(&self, sustained: &Sustained) -> f64 {
        self.process.map_or(f64::NAN, |_| sustained.cpu_per_gib())
    }
}

const NGINX: &str = "nginx";
const SNDBUF: &str = "nginx sndbuf=208k";
/// With a line in its log for each request.
const LOGGING: &str = "layerhold, digest, logged";
const CEILING: &str = "(client's ceiling)";
/// The peers that are registries.
const KNOW_MANIFESTS: [&str; 2] = ["docker-registry", "NORA"];

const GIB_PER_SECOND: Column = Column::compared("GiB/s", 2);
const CPU_PER_GIB: Column = Column::compared("CPU s/GiB", 3);
const PEAK_MIB: Column = Column::plain("peak MiB", 1);
const PER_SECOND: Column = Column::compared("requests/s", 0);
const P50: Column = Column::plain("p50 ms", 2);
const P99: Column = Column::compared("p99 ms", 2);
