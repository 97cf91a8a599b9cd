//! One remote registry: ask it for a manifest, a blob or a head, and go on where a transfer broke off.
//!
//! HTTP goes through hyper-util's pooled client over a connector of our own choosing. A transfer is a stream of bytes from
//! an ordered list of places of the same content; a cut or a stall continues by `Range` at the next of them, and whoever
//! reads does not notice.
//!
//! Tokens are exchanged anonymously, where a registry asks for them; redirects are followed to another party without them.
//!
//! **What is absent:** no disk, no knowledge of what the bytes are for, and no credentials of anybody's.

mod transfer;
mod client;
mod sender;
mod body;
mod transport;
mod token;
mod challenge;
mod party;
mod address;
mod error;
mod metrics;
mod config;

pub use client::{BlobHead, Listing, Manifest, ManifestHead, Upstream};
pub use config::{
    AddressBook, ClientCertificate, Config, CredentialSource, Egress, MirrorConfig, SiteConfig,
    TlsConfig,
};
pub use error::{Class, Error, Fault};
pub use metrics::Metrics;
pub use transfer::{Source, Transfer};
pub use transport::TransportError;
