//! Cold: one blob through an empty cache, to one client and to many at once, beside a direct pull from the same registry. The
//! table has the same beside other caches.

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
use rows::{Stage, cold};

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
    clean_up_on_signal();
    let Wanted { args, clients } = Wanted::parse();
    let stage = Stage::new(&args);
    for clients in clients {
        cold::ours(&stage, clients);
    }
}
