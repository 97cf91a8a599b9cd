//! The rows of the table: each is some work, who does it, what is told of it, and what is to be reached.
//!
//! A row prints its numbers and adds its targets to the verdicts. What is asked of the servers by all rows, and from where,
//! is the [`Stage`].

#![allow(dead_code, reason = "each bench has its rows")]

pub(crate) mod hit;
pub(crate) mod cold;
pub(crate) mod first_byte;
pub(crate) mod memory;
pub(crate) mod start;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::lab::args::Args;
use crate::lab::blob::Blob;
use crate::lab::load::Load;
use crate::lab::upstream::{Upstream, digest_of, manifest_of};

/// The registry behind the servers, and what it has: a large blob and a small manifest.
pub(crate) struct Stage<'a> {
    pub(crate) args: &'a Args,
    pub(crate) upstream: Upstream,
    pub(crate) blob: Arc<Blob>,
    pub(crate) blob_path: String,
    pub(crate) manifest: Vec<u8>,
    pub(crate) manifest_digest: String,
    pub(crate) by_digest: String,
    pub(crate) by_tag: String,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(args: &'a Args) -> Self {
        let upstream = Upstream::start();
        let blob = Arc::new(Blob::new(1, args.blob_bytes()));
        let blob_path = upstream.put_blob(&blob);
        let manifest = manifest_of(MANIFEST_BYTES);
        let [by_digest, by_tag] = upstream.put_manifest(manifest.clone());
        Self {
            args,
            upstream,
            blob,
            blob_path,
            manifest_digest: digest_of(&manifest),
            manifest,
            by_digest,
            by_tag,
        }
    }

    /// Clients of one thread for the blob at some address.
    pub(crate) fn blob_load<'b>(&'b self, from: SocketAddr, clients: usize) -> Load<'b> {
        Load {
            from,
            path: &self.blob_path,
            clients,
            threads: 1,
            length: self.blob.size,
            digest: None,
            tls: None,
        }
    }

    fn blob_mib(&self) -> u64 {
        self.blob.size >> 20
    }
}

pub(crate) const LAYERHOLD: &str = "layerhold";
const MANIFEST_BYTES: usize = 4096;
