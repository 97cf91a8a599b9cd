//! The whole table, side by side: each row of work beside those who do the same, and the targets beside what was reached.
//!
//! `cargo bench --bench table` runs all of it, `cargo bench --bench table -- P1 P4` some rows; `benches/README.md` says what
//! hangs on which number. The functions of the rows are in `rows/`, which say what is measured.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench takes real time and writes files of its own"
)]

mod eviction;
mod lab;
mod peers;
mod rows;

use std::time::Instant;

use clap::Parser;

use lab::args::Args;
use lab::machine::introduce;
use lab::scratch::clean_up_on_signal;
use lab::summary::Summary;
use lab::verdicts::Target::AtLeast;
use lab::verdicts::Verdicts;
use peers::PEERS;
use rows::{Stage, cold, first_byte, hit, memory, start};

/// The whole table, or some rows of it, beside its targets
#[derive(Parser)]
struct TableArgs {
    /// The rows that are wanted, P1 to P12 [default: all]
    rows: Vec<String>,

    /// P11: a recorded trace, a line for each request [default: a made-up one]
    #[arg(long)]
    trace: Option<String>,

    /// P12: blobs on the disk [default: 1000000, short: 2000]
    #[arg(long)]
    blobs: Option<u64>,

    #[command(flatten)]
    all: Args,
}

/// Rows that are measured together.
struct Row {
    names: &'static [&'static str],
    run: fn(&TableArgs, &Stage<'_>, &mut Verdicts),
}

const ROWS: [Row; 10] = [
    Row {
        names: &["P1", "P2", "P3"],
        run: |_, stage, verdicts| hit::blobs(stage, verdicts),
    },
    Row {
        names: &["P4"],
        run: |_, stage, verdicts| hit::manifests(stage, verdicts),
    },
    Row {
        names: &["P5"],
        run: |_, stage, verdicts| hit::manifests_beside_blobs(stage, verdicts),
    },
    Row {
        names: &["P6"],
        run: |_, stage, verdicts| hit::blobs_over_tls(stage, verdicts),
    },
    Row {
        names: &["P7"],
        run: |_, stage, verdicts| cold::one_client(stage, verdicts),
    },
    Row {
        names: &["P8"],
        run: |_, stage, verdicts| cold::crowd(stage, verdicts),
    },
    Row {
        names: &["P9"],
        run: |_, stage, verdicts| first_byte::heads(stage, verdicts),
    },
    Row {
        names: &["P10"],
        run: |_, stage, verdicts| memory::peaks(stage, verdicts),
    },
    Row {
        names: &["P11"],
        run: |args, _, verdicts| evictions(args, verdicts),
    },
    Row {
        names: &["P12"],
        run: |args, _, verdicts| {
            let blobs = if args.all.short { 2000 } else { 1_000_000 };
            let blobs = args.blobs.unwrap_or(blobs);
            start::many_blobs(blobs, args.all.rounds_or(1), verdicts);
        },
    },
];

fn main() {
    clean_up_on_signal();
    let args = TableArgs::parse();
    let known = || ROWS.iter().flat_map(|it| it.names);
    for row in &args.rows {
        let is_known = known().any(|it| it.eq_ignore_ascii_case(row));
        assert!(is_known, "there is no row {row}");
    }
    let is_wanted = |name: &str| {
        let mut rows = args.rows.iter();
        args.rows.is_empty() || rows.any(|it| it.eq_ignore_ascii_case(name))
    };
    introduce(&PEERS.map(|it| (it.name, (it.version)())));
    if args.all.short {
        println!("a smoke test: its times say nothing\n");
    }
    let began = Instant::now();
    let stage = Stage::new(&args.all);
    let mut verdicts = Verdicts::default();
    for row in ROWS {
        if row.names.iter().any(|it| is_wanted(it)) {
            (row.run)(&args, &stage, &mut verdicts);
        }
    }
    verdicts.print();
    println!("in {} s", began.elapsed().as_secs());
}

/// P11: a trace of requests replayed on a disk for a tenth of its bytes.
fn evictions(args: &TableArgs, verdicts: &mut Verdicts) {
    let seeds = if args.all.short { 1 } else { 6 };
    println!("P11: a trace on a disk for a tenth of its bytes, {seeds} seeds of sizes");
    let replay = eviction::replay(args.trace.as_deref(), seeds);
    let leads = replay.leads_at_a_tenth().map(Summary::of);
    let lines = [("LRU by URL", 5.0), ("LRU by digest", -1.0)];
    for ((lru, least), lead) in lines.into_iter().zip(leads) {
        let what = format!("points of byte hits beyond {lru}");
        println!("{what}: {lead:.2}");
        verdicts.add("P11", what, AtLeast(least), Some(lead));
    }
    println!();
}
