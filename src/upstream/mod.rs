//! One remote registry: ask it for a manifest, a blob or a head, and go on where a transfer broke off.
//!
//! A registry may be had at several places: mirrors of it, asked in their order, and the registry itself, which is asked
//! last and alone can say that something is not there.
//!
//! HTTP goes through hyper-util's pooled client over a connector of our own choosing. A transfer is a stream of bytes from
//! an ordered list of places of the same content; a cut or a stall continues by `Range` at the next of them, and whoever
//! reads does not notice.
//!
//! Whoever the operator says that we are to a site goes to that site and to the token servers that may speak for it, and to
//! nobody else: redirects are followed to another party without credentials, without tokens and without our certificate.
//! Whoever an upstream names is dialled at some addresses only; where requests leave through a proxy, that is checked as far
//! as it can be before the proxy looks the name up.
//!
//! **What is absent:** no disk but for the files that say who we are and whom we trust, no knowledge of what the bytes are
//! for, and no credentials of a client's but where an upstream is asked as that client ([`Upstream::as_caller`]).

mod files;
mod window;
mod transfer;
mod part;
mod clients;
mod client;
mod site;
mod sender;
mod accounts;
mod body;
mod transport;
mod dialer;
mod egress;
mod tls;
mod token;
mod challenge;
mod party;
mod address;
mod rest;
mod told;
mod error;
mod credentials;
mod helper;
mod credential;
mod program;
mod metrics;
mod config;

pub use body::fuzz_gzip;
pub use challenge::fuzz_challenge;
pub use client::Upstream;
pub use clients::Clients;
pub use config::{
    AddressBook, ClientCertificate, Config, CredentialSource, Egress, FolderCredential,
    MirrorConfig, SiteConfig, TlsConfig,
};
pub use credential::{Credential, CredentialError};
pub use egress::{fuzz_no_proxy, fuzz_tunnel_answer};
pub use error::{Class, Error, Fault};
pub use files::check_files;
pub use helper::fuzz_credential_helper;
pub use metrics::Metrics;
pub use party::{fuzz_realm, fuzz_redirect};
pub use program::{ProgramError, run_program};
pub use site::{BlobHead, Listing, Manifest, ManifestHead, fuzz_link, media_type_of};
pub use tls::FileError;
pub use token::fuzz_token;
pub use transfer::{Source, Sources, Transfer};
pub use transport::TransportError;
pub use window::Window;
