//! A start on a directory with many blobs. The row P12 of the table.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench takes real time and writes files of its own"
)]

mod lab;
mod peers;
mod rows;

use clap::Parser;

use lab::scratch::clean_up_on_signal;
use lab::verdicts::Verdicts;
use rows::start;

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
    clean_up_on_signal();
    let args = Args::parse();
    let (blobs, rounds) = if args.short {
        (2000, 1)
    } else {
        (1_000_000, 3)
    };
    let mut verdicts = Verdicts::default();
    start::many_blobs(
        args.blobs.unwrap_or(blobs),
        args.rounds.unwrap_or(rounds),
        &mut verdicts,
    );
    verdicts.print();
}
