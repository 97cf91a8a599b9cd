//! What is measured, from the command line.

use std::time::Duration;

use clap::Parser;

/// What is measured. All benches that pull know the same flags.
#[derive(Parser)]
pub(crate) struct Args {
    /// Everything small and once: a smoke test that asserts lengths, digests and upstream bytes, and no time
    #[arg(long)]
    pub(crate) short: bool,

    /// Size of the blob, in MiB [default: 1024, short: 16]
    #[arg(long)]
    mib: Option<u64>,

    /// Interleaved rounds, of which the median is told [default: 5, fewer where they are long; short: 1]
    #[arg(long)]
    rounds: Option<usize>,

    /// Milliseconds of each measurement that runs for a time [default: 1000, short: 200]
    #[arg(long)]
    window: Option<u64>,

    /// The level of the server log, which goes to a file; nginx has its access log off
    #[arg(long, default_value = "warn")]
    pub(crate) log_level: String,

    /// What cargo says to each bench
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.mib.unwrap_or(if self.short { 16 } else { 1024 }) << 20
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds_or(5)
    }

    /// So many rounds if nothing is said, where each of them is long.
    pub(crate) fn rounds_or(&self, rounds: usize) -> usize {
        self.rounds.unwrap_or(if self.short { 1 } else { rounds })
    }

    pub(crate) fn window(&self) -> Duration {
        let millis = self.window.unwrap_or(if self.short { 200 } else { 1000 });
        Duration::from_millis(millis)
    }
}
