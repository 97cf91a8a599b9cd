//! The HTTP front: accept, limits, the one seam that every request passes, and the admin port.
//!
//! A request is parsed once and becomes a pull; an answer becomes a response here and nowhere else. Whatever is counted or
//! logged about a request is counted and logged in `handle.rs`, when the response has ended.
//!
//! **What is absent:** nothing here knows how content comes about.

mod listen;
mod accept;
mod admin;
mod purge;
mod verify;
mod asked;
mod handle;
mod limits;
mod respond;
mod multipart;
mod body;
mod access;
mod peers;
mod peer;
mod sources;
mod connection;
mod health;
mod metrics;
mod config;

pub use access::{
    Access, AccessConfig, Action, FileError, InvalidPattern, RepositoryPattern, Rule, Who,
    check_access_files, fuzz_access_file, fuzz_authorization, fuzz_token_request,
};
pub use config::Config;
pub use health::Health;
pub use listen::{BindError, Server};
pub use metrics::Metrics;
pub use purge::{PurgeReport, PurgedReference, fuzz_purge_order};
pub use verify::{VerifyLine, fuzz_verify_order};
