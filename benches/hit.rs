//! Warm: what is in the cache already, large and small, beside nginx serving the same bytes from files. The rows P1 to P4 of
//! the table.

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

use lab::args::Args;
use lab::scratch::clean_up_on_signal;
use lab::verdicts::Verdicts;
use rows::{Stage, hit};

fn main() {
    clean_up_on_signal();
    let args = Args::parse();
    let stage = Stage::new(&args);
    let mut verdicts = Verdicts::default();
    hit::blobs(&stage, &mut verdicts);
    hit::manifests(&stage, &mut verdicts);
    verdicts.print();
}
