//! Cold: one blob through an empty cache, to many clients at once.
//!
//! On this hang how a fill feeds its followers, how much of the blob it keeps in memory, and how often the bytes are
//! copied: `benches/README.md` says which number decides what. Each round has a fresh server with a fresh directory, and a
//! direct pull from the same upstream by one client beside it, as the yardstick of the machine at that moment.
//!
//! The clients of a timed round look at the length only; then one more client pulls the blob, now published, and looks at
//! its digest. In the short mode every client looks at the digest.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench takes real time and writes files of its own"
)]

mod lab;

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Parser;

use lab::args::Args;
use lab::blob::Blob;
use lab::load::{Load, gib};
use lab::server::Server;
use lab::summary::Summary;
use lab::upstream::Upstream;

/// What is measured.
#[derive(Parser)]
struct Wanted {
    #[command(flatten)]
    args: Args,

    /// How many clients pull at once, a row for each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 64])]
    clients: Vec<usize>,
}

fn main() {
    let Wanted { args, clients } = Wanted::parse();
    let blob = Arc::new(Blob::new(1, args.blob_bytes()));
    let upstream = Upstream::start();
    let path = upstream.put_blob(&blob);
    println!(
        "cold blob of {} MiB, {} rounds, log level {}: median [min-max]\n",
        blob.size >> 20,
        args.rounds(),
        args.log_level
    );
    println!(
        "{:<8}{:<20}{:<20}{:<20}{:<16}{:<20}{:<20}{:<8}",
        "clients",
        "wall s",
        "GiB/s to clients",
        "CPU s/GiB of blob",
        "upstream/blob",
        "peak MiB",
        "direct, 1 client, s",
        "wall/direct"
    );
    let mut bounds = Vec::new();
    for clients in clients {
        let bench = Bench {
            args: &args,
            upstream: &upstream,
            blob: &blob,
            path: &path,
            clients,
        };
        let rounds: Vec<Round> = (0..args.rounds()).map(|_| bench.round()).collect();
        let peak = tell(&rounds, clients, blob.size);
        bounds.push((clients, peak));
    }
    println!();
    for (clients, peak) in bounds {
        let limit = PEAK_MIB + PEAK_MIB_PER_STREAM * clients as f64;
        let verdict = if peak <= limit { "holds" } else { "is BROKEN" };
        println!(
            "peak memory, {clients} clients on a cold {} MiB blob: {peak:.1} MiB; \
             limit 64 MiB + 256 KiB a stream = {limit:.2} MiB: {verdict}",
            blob.size >> 20
        );
    }
}

struct Bench<'a> {
    args: &'a Args,
    upstream: &'a Upstream,
    blob: &'a Blob,
    path: &'a str,
    clients: usize,
}

struct Round {
    wall: f64,
    direct: f64,
    cpu: f64,
    /// Body bytes from upstream.
    sent: u64,
    peak_mib: f64,
}

impl Bench<'_> {
    fn round(&self) -> Round {
        let digest = Some(&*self.blob.digest);
        let timed = digest.filter(|_| self.args.short);
        let direct = self.load(self.upstream.address, 1, timed).pull();

        let server = Server::start(self.upstream.address, &self.args.log_level);
        let sent = self.upstream.sent();
        let wall = self.load(server.address, self.clients, timed).pull();
        let cpu = server.process.cpu();
        let peak_mib = server.process.peak_mib();
        self.load(server.address, 1, digest).pull();
        let sent = self.upstream.sent() - sent;
        assert!(
            !self.args.short || sent == self.blob.size,
            "{sent} bytes of {} came from upstream",
            self.blob.size
        );
        Round {
            sent,
            wall: wall.as_secs_f64(),
            direct: direct.as_secs_f64(),
            cpu,
            peak_mib,
        }
    }

    fn load<'a>(&'a self, from: SocketAddr, clients: usize, digest: Option<&'a str>) -> Load<'a> {
        Load {
            from,
            path: self.path,
            clients,
            threads: 1,
            length: self.blob.size,
            digest,
            tls: None,
        }
    }
}

/// Prints a row; gives the highest peak.
fn tell(rounds: &[Round], clients: usize, size: u64) -> f64 {
    let of = |value: fn(&Round) -> f64| Summary::of(rounds.iter().map(value));
    let bytes = gib(size) * clients as f64;
    let rate = Summary::of(rounds.iter().map(|it| bytes / it.wall));
    let cpu = Summary::of(rounds.iter().map(|it| it.cpu / gib(size)));
    let upstream = Summary::of(rounds.iter().map(|it| it.sent as f64 / size as f64)).max();
    let peak = of(|it| it.peak_mib);
    println!(
        "{clients:<8}{:<20.2}{rate:<20.2}{cpu:<20.2}{:<16}{peak:<20.1}{:<20.2}{:<8.2}",
        of(|it| it.wall),
        format!("{upstream:.2}"),
        of(|it| it.direct),
        of(|it| it.wall / it.direct).median(),
    );
    peak.max()
}

const PEAK_MIB: f64 = 64.0;
const PEAK_MIB_PER_STREAM: f64 = 0.25;
