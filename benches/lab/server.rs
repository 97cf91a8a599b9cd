//! The server under measure.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;

use super::process::{Process, command, free_address};
use super::scratch::scratch;

/// A running layerhold with an empty cache. Dropping it stops it and removes the cache.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// Of metrics.
    pub(crate) admin: SocketAddr,
    // Held for its drop, after that of the process.
    pub(crate) dir: Option<TempDir>,
}

impl Server {
    /// Starts the binary that cargo built for the bench, so with its profile.
    pub(crate) fn start(upstream: SocketAddr, log_level: &str) -> Self {
        Self::start_with(upstream, log_level, "")
    }

    /// The same, with further keys of its upstream.
    pub(crate) fn start_with(upstream: SocketAddr, log_level: &str, keys: &str) -> Self {
        let dir = scratch();
        let mut server = Self::start_in(dir.path(), upstream, log_level, keys);
        server.dir = Some(dir);
        server
    }

    /// The same, in a directory of the bench's: its cache is `cache` in there, and stays.
    pub(crate) fn start_in(dir: &Path, upstream: SocketAddr, log_level: &str, keys: &str) -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_layerhold"));
        let profile = binary.parent().and_then(Path::file_name).unwrap();
        assert_eq!(profile, "release", "another profile says nothing");
        let address = free_address();
        let admin = free_address();
        let document = format!(
            r#"listen = "{address}"
admin_listen = "{admin}"
log_format = "json"
log_level = "{log_level}"

[cache]
dir = "{}"
size = "64GiB"
free_space_min = "64MiB"

[freshness]
fresh_for = "1h"

[[upstream]]
namespace = "bench.example"
url = "http://{upstream}"
default = true
{keys}
"#,
            dir.join("cache").display()
        );
        let config = dir.join("layerhold.toml");
        fs::write(&config, document).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = command(binary);
        command
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stderr(log);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LAYERHOLD_") {
                command.env_remove(name);
            }
        }
        Self {
            process: Process::start(&mut command, address),
            address,
            admin,
            dir: None,
        }
    }
}
