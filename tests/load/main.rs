//! Many clients, and bad ones, at the real binary: what it costs, that others are served meanwhile, and that it passes.
//!
//! ```text
//! cargo test --release --test load -- --nocapture      # prints what the README says about memory and descriptors
//! cargo test --test load a_part_of_a_name
//! ```
//!
//! The clients and the registry are of this process, the proxy is one of its own. What it has is read where the kernel
//! says it (`/proc`): resident memory and descriptors are bounded while the crowd is there, by what is documented for
//! each of its kind, and come back to what they were before when it is gone. That is waited for, with a deadline; no
//! time is asserted. One test runs at a time, for their descriptors are this process' too.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot set up has failed"
)]
#![expect(clippy::print_stdout, reason = "what was measured is printed")]

mod idle;
mod slow;
mod heads;
mod fills;
mod vanish;
mod descriptors;
mod takeover;
mod crowd;
mod process;

#[path = "../it/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "it is made for other tests, which need all of it"
)]
mod harness;
