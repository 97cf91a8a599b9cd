//! The whole application, tested at its sockets.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot set up has failed"
)]
#![expect(
    clippy::print_stdout,
    reason = "seeds are printed, and shown when a test fails"
)]

mod harness;
mod selfcheck;
