//! A start on a directory with many blobs: when the first of them is served, when the index knows them all, and what it
//! costs in memory.
//!
//! On this hangs that there is no database: the directory is the truth, and the index is read from it while the server
//! serves already. With root, the page cache is dropped before each cold round, so that directories come from the disk.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench takes real time and writes files of its own"
)]

mod lab;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use lab::blob::Blob;
use lab::load::Load;
use lab::server::{Server, scratch};
use lab::summary::Summary;
use lab::upstream::{Upstream, digest_of};

/// What is measured.
#[derive(Parser)]
struct Args {
    /// Few blobs and one round: a smoke test that asserts that all are found, and no time
    #[arg(long)]
    short: bool,

    /// Blobs on the disk, of some bytes each [default: 1000000, short: 2000]
    #[arg(long)]
    blobs: Option<u64>,

    /// Rounds, of which the median is told [default: 3, short: 1]
    #[arg(long)]
    rounds: Option<usize>,

    /// What cargo says to each bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let blobs = args
        .blobs
        .unwrap_or(if args.short { 2000 } else { 1_000_000 });
    let rounds = args.rounds.unwrap_or(if args.short { 1 } else { 3 });
    let bench = Bench::new();
    let before = bench.round(1, false);
    bench.fill_up(blobs);
    println!("a start on {blobs} blobs, {rounds} rounds: median [min-max]\n");
    println!(
        "{:<12}{:<22}{:<22}{:<18}{:<16}",
        "page cache", "first hit, ms", "all known, s", "memory, MiB", "bytes a blob"
    );
    for is_cold in [true, false] {
        if is_cold && !drop_page_cache() {
            println!("cold        (needs root)");
            continue;
        }
        let found: Vec<Round> = (0..rounds)
            .map(|_| bench.round(blobs + 1, is_cold))
            .collect();
        let of = |value: fn(&Round) -> f64| Summary::of(found.iter().map(value));
        let memory = of(|it| it.resident_mib);
        let each = (memory.median() - before.resident_mib) * f64::from(1 << 20) / blobs as f64;
        println!(
            "{:<12}{:<22.0}{:<22.2}{:<18.1}{each:<16.0}",
            if is_cold { "cold" } else { "warm" },
            of(|it| it.first_hit * 1000.0),
            of(|it| it.all_known),
            memory,
        );
    }
}

/// A directory with one blob that is pulled, and many that nobody asks for.
struct Bench {
    upstream: Upstream,
    blob: Arc<Blob>,
    path: String,
    dir: tempfile::TempDir,
}

struct Round {
    first_hit: f64,
    all_known: f64,
    resident_mib: f64,
}

impl Bench {
    /// The server itself makes the directory.
    fn new() -> Self {
        let upstream = Upstream::start();
        let blob = Arc::new(Blob::new(1, 1 << 10));
        let path = upstream.put_blob(&blob);
        let bench = Self {
            upstream,
            blob,
            path,
            dir: scratch(),
        };
        let server = bench.start();
        bench.pull(server.address);
        // Its client has it before the directory does.
        wait_until_known(server.admin, 1);
        bench
    }

    fn start(&self) -> Server {
        Server::start_in(self.dir.path(), self.upstream.address, "warn", "")
    }

    fn pull(&self, from: SocketAddr) {
        let load = Load {
            from,
            path: &self.path,
            clients: 1,
            threads: 1,
            length: self.blob.size,
            digest: Some(&self.blob.digest),
            tls: None,
        };
        load.pull();
    }

    /// Puts blobs into the directory, each right.
    fn fill_up(&self, blobs: u64) {
        let root = self.dir.path().join("cache/blobs/sha256");
        for number in 0..blobs {
            let content = number.to_le_bytes();
            let digest = digest_of(&content);
            let name = digest.strip_prefix("sha256:").unwrap();
            let folder = root.join(&name[..2]);
            // They are all there after some hundreds.
            if fs::write(folder.join(name), content).is_err() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(name), content).unwrap();
            }
        }
    }

    /// Starts until `blobs` are known.
    fn round(&self, blobs: u64, is_cold: bool) -> Round {
        if is_cold {
            drop_page_cache();
        }
        let began = Instant::now();
        let sent = self.upstream.sent();
        let server = self.start();
        self.pull(server.address);
        let first_hit = began.elapsed().as_secs_f64();
        assert_eq!(self.upstream.sent(), sent, "it was no hit");
        wait_until_known(server.admin, blobs);
        Round {
            first_hit,
            all_known: began.elapsed().as_secs_f64(),
            resident_mib: server.process.resident_mib(),
        }
    }
}

/// Whether the next round comes from the disk.
fn drop_page_cache() -> bool {
    rustix::fs::sync();
    fs::write(Path::new("/proc/sys/vm/drop_caches"), "3").is_ok()
}

fn wait_until_known(admin: SocketAddr, blobs: u64) {
    let began = Instant::now();
    while metric(admin, "layerhold_cache_blobs") != Some(blobs) {
        assert!(began.elapsed() < SCAN_MAX, "not all are found");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A whole number at the admin port.
fn metric(admin: SocketAddr, name: &str) -> Option<u64> {
    let mut stream = TcpStream::connect(admin).ok()?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|it| it.strip_prefix(name))?;
    line.trim().parse().ok()
}

const SCAN_MAX: Duration = Duration::from_secs(300);
