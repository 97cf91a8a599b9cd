//! What our numbers are held against. Each of them is started here with what it needs for the work of a row and nothing
//! that slows it: no log of requests, room for all that is pulled, streaming where it has it.

#![allow(dead_code, reason = "each bench has its peers")]

pub(crate) mod ceiling;
pub(crate) mod docker_registry;
pub(crate) mod nginx;
pub(crate) mod nginx_cache;
pub(crate) mod nora;
pub(crate) mod varnish;

use std::net::SocketAddr;

use tempfile::TempDir;

use crate::lab::process::Process;
use crate::lab::server::Server;

/// A cache with an empty directory of its own, in front of a registry. Dropping it stops it and removes what it has.
pub(crate) struct Cache {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    // Held for its drop, after that of the process.
    _dir: Option<TempDir>,
}

/// One that can be started; there is none where it is not installed.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) version: fn() -> Option<String>,
    /// In front of the registry at that address.
    pub(crate) start: fn(SocketAddr) -> Cache,
}

/// All caches that know how to stand in front of a registry.
pub(crate) const PEERS: [Peer; 4] = [
    docker_registry::PEER,
    nginx_cache::PEER,
    varnish::PEER,
    nora::PEER,
];

impl Cache {
    pub(crate) fn layerhold(upstream: SocketAddr, log_level: &str) -> Self {
        let Server {
            process,
            address,
            dir,
            ..
        } = Server::start(upstream, log_level);
        Self {
            process,
            address,
            _dir: dir,
        }
    }
}

impl Peer {
    pub(crate) fn is_installed(&self) -> bool {
        (self.version)().is_some()
    }
}
