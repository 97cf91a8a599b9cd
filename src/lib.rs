//! layerhold: a pull-through caching proxy for OCI and Docker registries.
//!
//! (being written)

pub mod app;
pub mod config;
pub mod cli;
pub mod server;
pub mod proxy;
pub mod cache;
pub mod upstream;
pub mod net;
pub mod oci;
