//! What to run on: flags, environment and file, put together and checked whole.
//!
//! ```text
//!   cli::Options ──┐
//!   environment ───┼─► given: the first that has a value ─► read ─► compared ─► Config
//!   file ──────────┘                                                              │
//!                                            report: a file that means the same ◄─┤
//!                                   clients: the files of those who pull through it ◄─┘
//! ```
//!
//! Precedence is flag, variable, key, default, value by value; only the value that counts is judged. A configuration is
//! accepted whole or refused with one line that says where, what, and what would be right. The environment is a map that
//! the caller hands over, so a test needs no process of its own. Nothing is opened here but the file.

mod clients;
mod report;
mod load;
mod tls;
mod descriptors;
mod upstreams;
mod policies;
mod access;
mod limits;
mod callers;
mod peers;
mod sandbox;
mod sites;
mod networks;
mod addresses;
mod effective;
mod file;
mod given;
mod names;
mod error;

pub use clients::Snippet;
pub use effective::{Config, Log, LogFormat, Sandbox};
pub use error::{At, Error};
