//! The HTTP front: accept, limits, the one seam that every request passes, and the admin port.
//!
//! A request is parsed once and becomes a pull; an answer becomes a response here and nowhere else. Whatever is counted or
//! logged about a request is counted and logged in `handle.rs`, when the response has ended.
//!
//! **What is absent:** nothing here knows how content comes about.

mod listen;
mod serve;
mod serve_admin;
mod accept;
mod admin;
mod purge;
mod verify;
mod asked;
mod handle;
mod line;
mod shared;
mod limits;
mod callers;
mod respond;
mod multipart;
mod outgoing;
mod body;
mod stream;
mod access;
mod peers;
mod sources;
mod connection;
mod sendfile;
mod send_buffer;
mod handshake;
mod tls;
mod certificate;
mod peer;
mod health;
mod metrics;
mod port;
mod config;

pub use access::{
    Access, AccessConfig, Action, FileError, Rule, Terms, Who, check_access_files,
    fuzz_access_file, fuzz_authorization, fuzz_token_request,
};
pub use config::{ClientCertificates, Config, TlsConfig};
pub use health::Health;
pub use listen::{BindError, Ports, Server, StartError};
pub use metrics::Metrics;
pub use purge::{PurgeReport, PurgedReference, fuzz_purge_order};
pub use respond::bench_response;
pub use tls::{TlsError, TlsFault, check_files};
pub use verify::{VerifyLine, fuzz_verify_order};
