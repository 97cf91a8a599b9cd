//! The distribution spec's words as types: what is malformed cannot be said.
//!
//! Everything here is parsed once, at the door, and rendered back exactly. Below the HTTP front no name, tag or digest is
//! a string.
//!
//! **What is absent:** no I/O, no clock, no async.

/// What is shown of a text with a rule is that text, in logs as well.
macro_rules! written_as_text {
    ($($name:ident),*) => {$(
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

mod endpoint;
mod full_reference;
mod error_code;
mod manifest;
mod media_type;
mod pattern;
mod names;
mod digest;
mod headers;

pub use digest::{Algorithm, Digest, DigestMap, DigestState, Digester, InvalidDigest, fuzz_digest};
pub use endpoint::{Endpoint, EndpointPath, InvalidEndpoint, fuzz_endpoint};
pub use error_code::{ErrorCode, error_body};
pub use full_reference::{FullReference, InvalidFullReference, fuzz_full_reference};
pub use headers::{
    DOCKER_CONTENT_DIGEST, DOCKER_DISTRIBUTION_API_VERSION, OCI_FILTERS_APPLIED, OCI_NAMESPACE,
};
pub use manifest::{InvalidManifest, declared_media_type};
pub use media_type::{InvalidMediaType, MANIFEST_ACCEPT, MediaType};
pub use names::{
    InvalidName, InvalidNamespace, InvalidTag, Namespace, Reference, RepositoryName, Tag,
    fuzz_names,
};
pub use pattern::{InvalidPattern, RepositoryPattern, TagPattern, fuzz_pattern};
