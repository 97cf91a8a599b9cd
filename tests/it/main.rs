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

mod policy;
mod privilege;
mod pull;
mod at_once;
mod range;
mod multipart;
mod window;
mod parallel;
mod coalesce;
mod tags;
mod routes;
mod framing;
mod errors;
mod outage;
mod auth;
mod access;
mod caller;
mod caller_fills;
mod credentials;
mod accounts;
mod secrets;
mod redirect;
mod registries;
mod names;
mod mirrors;
mod transport;
mod egress;
mod faults;
mod disk;
mod grants;
mod evict;
mod storm;
mod restart;
mod resume;
mod purge;
mod verify;
mod drain;
mod reload;
mod notify;
mod limits;
mod zero_copy;
mod zero_copy_ends;
mod peers;
mod sources;
mod metrics;
mod crash;
mod cli;
mod deploy;
mod tidy;
mod tls;
mod tls_http2;
mod pitfalls;
mod selfcheck;
mod harness;
