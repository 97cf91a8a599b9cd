//! Warm: what is in the cache already, large and small, beside nginx serving the same bytes from files.
//!
//! On this hang how a blob goes from its file to a socket, how large the send buffer is, and what the way of a request
//! through the floors may cost: `benches/README.md` says which number decides what. The servers take turns within each
//! round, so that a noisy minute is everybody's.
//!
//! The clients look at status and length of each response; the digest is looked at once before the rounds, and in the
//! short mode by every client of one more pull for each row.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench takes real time and writes files of its own"
)]

mod lab;
mod peers;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::sync::Arc;

use clap::Parser;

use lab::args::Args;
use lab::blob::Blob;
use lab::load::{Load, Sustained};
use lab::process::Process;
use lab::server::{Server, scratch};
use lab::summary::Summary;
use lab::upstream::{Upstream, digest_of, manifest_of};
use peers::ceiling::{serve_file, serve_memory};
use peers::nginx::Nginx;

fn main() {
    let args = Args::parse();
    let files = scratch();
    let upstream = Upstream::start();
    let server = Server::start(upstream.address, &args.log_level);
    let blob = Arc::new(Blob::new(1, args.blob_bytes()));
    let blob_file = files.path().join("blob");
    blob.write_to(&mut File::create(&blob_file).unwrap())
        .unwrap();
    let manifest = manifest_of(MANIFEST_BYTES);
    fs::write(files.path().join("manifest"), &manifest).unwrap();
    let nginx = Nginx::start(files.path());
    if nginx.is_none() {
        println!("nginx is not installed: our rows stand alone");
    }
    let bench = Bench {
        args: &args,
        server: &server,
        nginx: nginx.as_ref(),
    };
    let blob_content = Content {
        path: upstream.put_blob(&blob),
        file_path: "/blob",
        length: blob.size,
        digest: blob.digest.clone(),
    };
    bench.blob_rows(&blob_content, serve_file(&blob_file));
    let digest = digest_of(&manifest);
    let [by_digest, by_tag] = upstream.put_manifest(manifest.clone()).map(|path| Content {
        path,
        file_path: "/manifest",
        length: manifest.len() as u64,
        digest: digest.clone(),
    });
    bench.manifest_rows(&by_digest, &by_tag, serve_memory(&manifest));
    let stored = blob.size + manifest.len() as u64;
    // A manifest that is not yet known by its tag is asked for by HEAD, and is in the cache then.
    assert_eq!(upstream.sent(), stored, "a hit asks upstream for nothing");
}

struct Bench<'a> {
    args: &'a Args,
    server: &'a Server,
    nginx: Option<&'a Nginx>,
}

struct Content {
    /// At the server, and what nginx calls it.
    path: String,
    file_path: &'static str,
    length: u64,
    digest: String,
}

/// One of those that take turns.
struct Turn<'a> {
    name: &'static str,
    load: Load<'a>,
    /// `None` where its CPU time is the bench's own.
    process: Option<&'a Process>,
    rounds: Vec<Measured>,
}

struct Measured {
    sustained: Sustained,
    peak_mib: f64,
}

impl Bench<'_> {
    fn blob_rows(&self, blob: &Content, ceiling: SocketAddr) {
        println!(
            "blob of {} MiB, {}\n{:<9}{:<20}{:<20}{:<22}{:<22}{:<10}{:<10}",
            blob.length >> 20,
            self.said(),
            "clients",
            "server",
            "GiB/s",
            "CPU s/GiB",
            "peak MiB",
            "x nginx",
            "CPU x nginx"
        );
        for clients in BLOB_CLIENTS {
            let load = |from, path| Load {
                from,
                path,
                clients,
                threads: 1,
                length: blob.length,
                digest: None,
                tls: None,
            };
            let ours = load(self.server.address, &*blob.path);
            let mut turns = vec![Turn::new("layerhold", ours, Some(&self.server.process))];
            if let Some(nginx) = self.nginx {
                for (name, from) in [(NGINX, nginx.stock), ("nginx sndbuf=208k", nginx.bounded)] {
                    turns.push(Turn::new(
                        name,
                        load(from, blob.file_path),
                        Some(&nginx.process),
                    ));
                }
            }
            turns.push(Turn::new(CEILING, load(ceiling, "/"), None));
            self.take_turns(&mut turns, &blob.digest);
            for turn in &turns {
                turn.tell_blob(&turns);
            }
        }
    }

    fn manifest_rows(&self, by_digest: &Content, by_tag: &Content, ceiling: SocketAddr) {
        println!(
            "\nmanifest of {} bytes, {MANIFEST_CLIENTS} clients, tag fresh for 1h, {}\n\
             {:<20}{:<30}{:<20}{:<20}{:<10}{:<10}",
            by_digest.length,
            self.said(),
            "server",
            "requests/s",
            "p50 ms",
            "p99 ms",
            "x nginx",
            "p99 x nginx"
        );
        let length = by_digest.length;
        let load = |from, path| Load {
            from,
            path,
            clients: MANIFEST_CLIENTS,
            threads: 2,
            length,
            digest: None,
            tls: None,
        };
        let server = self.server;
        let mut turns = vec![
            Turn::new(
                "layerhold, digest",
                load(server.address, &by_digest.path),
                Some(&server.process),
            ),
            Turn::new(
                "layerhold, tag",
                load(server.address, &by_tag.path),
                Some(&server.process),
            ),
        ];
        if let Some(nginx) = self.nginx {
            let load = load(nginx.stock, by_digest.file_path);
            turns.push(Turn::new(NGINX, load, Some(&nginx.process)));
        }
        turns.push(Turn::new(CEILING, load(ceiling, "/"), None));
        self.take_turns(&mut turns, &by_digest.digest);
        for turn in &turns {
            println!(
                "{:<20}{:<30.0}{:<20.2}{:<20.2}{:<10}{:<10}",
                turn.name,
                turn.of(|it| it.sustained.requests_per_second()),
                turn.of(|it| it.sustained.latency(0.5)),
                turn.of(|it| it.sustained.latency(0.99)),
                turn.against(&turns, |it| it.sustained.requests_per_second()),
                turn.against(&turns, |it| it.sustained.latency(0.99)),
            );
        }
    }

    fn said(&self) -> String {
        format!(
            "{} rounds of {:?}, log level {}: median [min-max]",
            self.args.rounds(),
            self.args.window(),
            self.args.log_level
        )
    }

    /// Warms each, then lets them take turns.
    fn take_turns(&self, turns: &mut [Turn<'_>], digest: &str) {
        for turn in &*turns {
            let clients = if self.args.short {
                turn.load.clients
            } else {
                1
            };
            let digest = Some(digest);
            Load {
                clients,
                threads: 1,
                digest,
                ..turn.load.clone()
            }
            .pull();
        }
        for _ in 0..self.args.rounds() {
            for turn in &mut *turns {
                turn.process.inspect(|it| it.forget_peak());
                let cpu = || turn.process.map_or(0.0, Process::cpu);
                let sustained = turn.load.sustain(self.args.window(), cpu);
                let peak_mib = turn.process.map_or(0.0, Process::peak_mib);
                turn.rounds.push(Measured {
                    sustained,
                    peak_mib,
                });
            }
        }
    }
}

impl<'a> Turn<'a> {
    fn new(name: &'static str, load: Load<'a>, process: Option<&'a Process>) -> Self {
        Self {
            name,
            load,
            process,
            rounds: Vec::new(),
        }
    }

    fn of(&self, value: fn(&Measured) -> f64) -> Summary {
        Summary::of(self.rounds.iter().map(value))
    }

    fn tell_blob(&self, turns: &[Self]) {
        let rate = self.of(|it| it.sustained.gib_per_second());
        let rate_ratio = self.against(turns, |it| it.sustained.gib_per_second());
        print!("{:<9}{:<20}{rate:<20.2}", self.load.clients, self.name);
        if self.process.is_some() {
            let cpu = self.of(|it| it.sustained.cpu_per_gib());
            let peak = self.of(|it| it.peak_mib);
            let cpu_ratio = self.against(turns, |it| it.sustained.cpu_per_gib());
            println!("{cpu:<22.3}{peak:<22.1}{rate_ratio:<10}{cpu_ratio:<10}");
        } else {
            println!("{:<22}{:<22}{rate_ratio:<10}{:<10}", "-", "-", "-");
        }
    }

    /// The median of the rounds' ratios to nginx in the same round.
    fn against(&self, turns: &[Self], value: fn(&Measured) -> f64) -> String {
        let Some(nginx) = turns.iter().find(|it| it.name == NGINX) else {
            return "-".to_owned();
        };
        let rounds = self.rounds.iter().zip(&nginx.rounds);
        let ratios = Summary::of(rounds.map(|(ours, theirs)| value(ours) / value(theirs)));
        format!("{:.2}", ratios.median())
    }
}

const NGINX: &str = "nginx";
const CEILING: &str = "(client's ceiling)";
const BLOB_CLIENTS: [usize; 3] = [1, 8, 64];
const MANIFEST_CLIENTS: usize = 64;
const MANIFEST_BYTES: usize = 4096;
