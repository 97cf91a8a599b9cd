//! What the benches share: the server under measure, the registry behind it, the clients before it, and how numbers are
//! told.
//!
//! All of it but the servers runs in the process of the bench, so that the CPU time and the memory of a server are its
//! own. Nothing here goes through the crate that is measured.

#![allow(dead_code, reason = "each bench uses its part of the lab")]

pub(crate) mod args;
pub(crate) mod machine;
pub(crate) mod server;
pub(crate) mod scratch;
pub(crate) mod process;
pub(crate) mod upstream;
pub(crate) mod limited;
pub(crate) mod load;
pub(crate) mod sealed;
pub(crate) mod certificate;
pub(crate) mod blob;
pub(crate) mod verdicts;
pub(crate) mod block;
pub(crate) mod summary;
