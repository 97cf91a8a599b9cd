//! CNCF Distribution as a pull-through cache (Debian: `docker-registry`).

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::json;

use super::{Cache, Peer};
use crate::lab::process::{Process, command, free_address, version};
use crate::lab::scratch::scratch;

pub(crate) const PEER: Peer = Peer {
    name: "docker-registry",
    version: || version("docker-registry", "--version"),
    start,
};

fn start(upstream: SocketAddr) -> Cache {
    let dir = scratch();
    let address = free_address();
    let document = json!({
        "version": "0.1",
        "log": { "level": "error", "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": dir.path().join("storage") } },
        "http": { "addr": address.to_string() },
        "proxy": { "remoteurl": format!("http://{upstream}") },
    });
    // What is JSON is YAML.
    let config = dir.path().join("config.yml");
    fs::write(&config, document.to_string()).unwrap();
    let mut command = command("docker-registry");
    command.arg("serve").arg(config);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Cache {
        process: Process::start(&mut command, address),
        address,
        _dir: Some(dir),
    }
}
