//! Cold, from a registry that gives each connection only so much: one blob over one connection and over several.
//!
//! On this hangs `upstream.parallel_ranges`. Beside it is what a client gets that downloads from the registry itself, over
//! one connection as docker, containerd (before 2.1), podman and curl do.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench takes real time and writes files of its own"
)]

mod lab;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;

use lab::args::Args;
use lab::blob::Blob;
use lab::limited::Limited;
use lab::load::Load;
use lab::server::Server;
use lab::summary::Summary;

fn main() {
    let args = Args::parse();
    // The whole of it is in memory here.
    let blob = Blob::new(1, args.blob_bytes().min(SIZE_MAX));
    let rate = if args.short { SHORT_RATE } else { RATE };
    let upstream = Limited::start(&blob, rate, DELAY);
    println!(
        "cold blob of {} MiB, {} MB/s a connection, {} ms a request, {} rounds: median [min-max]\n",
        blob.size >> 20,
        rate / 1e6,
        DELAY.as_millis(),
        args.rounds()
    );
    println!(
        "{:<16}{:<22}{:<20}{:<14}{:<16}{:<18}",
        "parallel_ranges", "wall s", "direct s", "direct/wall", "upstream/blob", "peak MiB"
    );
    for ranges in RANGES {
        let rounds: Vec<Round> = (0..args.rounds())
            .map(|_| round(&args, &upstream, &blob, ranges))
            .collect();
        let of = |value: fn(&Round) -> f64| Summary::of(rounds.iter().map(value));
        println!(
            "{ranges:<16}{:<22.2}{:<20.2}{:<14}{:<16}{:<18.1}",
            of(|it| it.wall),
            of(|it| it.direct),
            format!("{:.2}", of(|it| it.direct / it.wall).median()),
            format!("{:.2}", of(|it| it.sent).max()),
            of(|it| it.peak_mib),
        );
    }
}

struct Round {
    wall: f64,
    direct: f64,
    /// Body bytes from upstream, in blobs.
    sent: f64,
    peak_mib: f64,
}

fn round(args: &Args, upstream: &Limited, blob: &Blob, ranges: usize) -> Round {
    let timed = Some(&*blob.digest).filter(|_| args.short);
    let load = |from: SocketAddr, digest| Load {
        from,
        path: &upstream.path,
        clients: 1,
        threads: 1,
        length: blob.size,
        digest,
        tls: None,
    };
    let direct = load(upstream.address, timed).pull();
    let keys = format!("parallel_ranges = {ranges}");
    let server = Server::start_with(upstream.address, &args.log_level, &keys);
    let sent = upstream.sent();
    let wall = load(server.address, timed).pull();
    let peak_mib = server.process.peak_mib();
    load(server.address, Some(&*blob.digest)).pull();
    let sent = upstream.sent() - sent;
    assert_eq!(sent, blob.size, "one transfer's worth of bytes");
    Round {
        wall: wall.seconds(),
        direct: direct.seconds(),
        sent: sent as f64 / blob.size as f64,
        peak_mib,
    }
}

const RANGES: [usize; 4] = [1, 2, 4, 8];
const SIZE_MAX: u64 = 256 << 20;
/// Bytes a second that one connection gets.
const RATE: f64 = 40e6;
const SHORT_RATE: f64 = 400e6;
/// From a request to its answer: a continent, or a redirect.
const DELAY: Duration = Duration::from_millis(50);
