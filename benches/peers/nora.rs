//! NORA (crates.io: `nora-registry`, whose program is `nora`), a registry in Rust with a pull-through cache.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;

use super::{Cache, Peer};
use crate::lab::process::{Process, command, free_address, version};
use crate::lab::scratch::scratch;

pub(crate) const PEER: Peer = Peer {
    name: "NORA",
    version: || version("nora", "--version"),
    start,
};

/// As its own documentation has it, by variables; the limit on how often somebody may ask is off.
fn start(upstream: SocketAddr) -> Cache {
    let dir = scratch();
    let address = free_address();
    let storage = dir.path().join("storage");
    fs::create_dir(&storage).unwrap();
    let mut command = command("nora");
    command.arg("serve").current_dir(dir.path());
    command.env("NORA_HOST", address.ip().to_string());
    command.env("NORA_PORT", address.port().to_string());
    command.env("NORA_STORAGE_MODE", "local");
    command.env("NORA_STORAGE_PATH", storage);
    command.env("NORA_REGISTRIES_ENABLE", "docker");
    command.env("NORA_DOCKER_PROXIES", format!("http://{upstream}"));
    // Seconds for which a tag is fresh, as it is for ours.
    command.env("NORA_DOCKER_METADATA_TTL", "3600");
    command.env("NORA_RATE_LIMIT_ENABLED", "false");
    command.env("RUST_LOG", "warn");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Cache {
        process: Process::start(&mut command, address),
        address,
        _dir: Some(dir),
    }
}
