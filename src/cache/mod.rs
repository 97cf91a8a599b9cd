//! Bytes on disk: one directory, deduplicated by digest, within a budget.
//!
//! The cache takes a stream and does not know where it comes from; it cannot name a host. Every published file was hashed
//! here under the name it has; every reader reads at an offset of its own and waits for nobody's socket; used and
//! reserved bytes stay below the limit.
//!
//! **What is absent:** no upstream, no HTTP, no freshness. The cache stores what a tag last said and never judges it, and
//! it stores what a repository was proven to hold and never asks for proof.

#[cfg(test)]
mod model;
mod store;
mod tend;
mod verify;
mod around;
mod recheck;
mod scrub;
mod repositories;
mod reader;
mod filler;
mod writer;
mod damage;
mod reservation;
mod staging;
mod index;
mod fill;
mod footprint;
mod stage;
mod remainder;
mod staged;
mod disk;
mod hold;
mod check;
mod pace;
mod purges;
mod condition;
mod layout;
mod order;
mod uses;
mod capacity;
mod lru;
mod clock;
mod opening;
mod metrics;
mod config;
mod faults;

pub use capacity::{Ledger, Shortfall, Space};
pub use config::{Config, Share};
pub use faults::{Area, Faults, Operation};
pub use fill::{FillError, Follower, Handover};
pub use filler::{Filler, Verified};
pub use hold::{OpenError, prepare_dir};
pub use index::OPEN_FILES_MAX;
pub use layout::{Repository, fuzz_layout};
pub use lru::Lru;
pub use metrics::Metrics;
pub use order::{Order, Place};
pub use purges::{Moment, Purge, PurgeError, Purged, Purges, UnderWay};
pub use reader::{Blob, Buffers, Content, FilePart, READ_BYTES, ReadError};
pub use repositories::{Grant, Granted, TagRecord, fuzz_grants, fuzz_tag_record};
pub use staging::turns_max;
pub use store::{Cache, Joined};
pub use verify::{Finding, FindingKind, Verify, VerifyProgress, VerifyReport, identity};
