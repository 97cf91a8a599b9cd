//! Replayed: which blobs are still here when they are asked for again, by the order in which blobs go. All policies and
//! sizes of the cache; the table has the row that counts.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

mod eviction;

use clap::Parser;

/// Which order of eviction keeps what is asked for again
#[derive(Parser)]
struct Args {
    /// One seed of sizes: a smoke test
    #[arg(long)]
    short: bool,

    /// A recorded trace, a line for each request, such as v2/<owner>/<name>/blobs/<digest>; "-" is standard input
    #[arg(long)]
    trace: Option<String>,

    /// Seeds of sizes, over which the mean is told [default: 6, short: 1]
    #[arg(long)]
    seeds: Option<u64>,

    /// What cargo says to each bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let seeds = args.seeds.unwrap_or(if args.short { 1 } else { 6 });
    eviction::replay(args.trace.as_deref(), seeds).tell_all();
}
