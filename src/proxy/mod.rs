//! What pulling means: which upstream is asked, who may read what, how long a tag's word is good, and what the answer is.
//!
//! The floor joins a cache that knows no network to upstreams that know no disk. A pull comes in as an [`Endpoint`] with
//! an upstream, and goes out as an [`Answer`]; HTTP is somebody else's business on either side.
//!
//! **What is absent:** no sockets, no paths, no status lines but the one mapping of errors.
//!
//! [`Endpoint`]: crate::oci::Endpoint

mod front;
mod routes;
mod gate;
mod verifier;
mod tag;
mod listing;
mod manifest;
mod blob;
mod answer;
mod stream;
mod window;
mod bypass;
mod refusals;
mod freshness;
mod registry;
mod rights;
mod flights;
mod seen;
mod error;
mod metrics;
mod config;
mod policy;

pub use crate::cache::FilePart;
pub use answer::{Answer, Asked, Body, Caller, Content, Listing, Method, Outcome, Pull};
pub use config::{Access, Config, Freshness, TagRule, UpstreamConfig};
pub use error::{Error, RequestFault, StreamError, Subject};
pub use front::Proxy;
pub use listing::fuzz_listing;
pub use metrics::Metrics;
pub use policy::{Policy, PullRule, Refusal, RuleKind};
pub use registry::Registry;
pub use routes::{Requested, Route};
pub use stream::BlobStream;
