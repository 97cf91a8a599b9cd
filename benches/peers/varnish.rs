//! Varnish, which streams what it is still fetching to all who ask for it, out of memory. It knows nothing of registries;
//! here it may keep whatever it sees.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;

use super::{Cache, Peer};
use crate::lab::process::{Process, command, free_address, version};
use crate::lab::scratch::scratch;

pub(crate) const PEER: Peer = Peer {
    name: "varnish",
    version: || version("varnishd", "-V"),
    start,
};

fn start(upstream: SocketAddr) -> Cache {
    let dir = scratch();
    let address = free_address();
    let rules = dir.path().join("rules.vcl");
    fs::write(&rules, document(upstream)).unwrap();
    let mut command = command("varnishd");
    // In the foreground, with no port of its own to be asked on, and without a user that could not read the directory.
    command.args(["-F", "-j", "none", "-T", "none"]);
    command.args(["-a", &address.to_string(), "-s", STORAGE]);
    command.arg("-n").arg(dir.path().join("work"));
    command.arg("-f").arg(rules);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Cache {
        process: Process::start(&mut command, address),
        address,
        _dir: Some(dir),
    }
}

fn document(upstream: SocketAddr) -> String {
    format!(
        "vcl 4.1;
backend registry {{ .host = \"{}\"; .port = \"{}\"; }}
sub vcl_backend_response {{
    set beresp.do_stream = true;
    set beresp.ttl = 1h;
}}
",
        upstream.ip(),
        upstream.port()
    )
}

/// More than any row pulls. It is taken as it is needed.
const STORAGE: &str = "malloc,4G";
