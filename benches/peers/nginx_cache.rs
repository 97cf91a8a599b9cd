//! nginx as a cache: `proxy_cache`, with `proxy_cache_lock` so that one request at a time goes upstream for the same thing.
//! It knows nothing of registries; here it may keep whatever it sees.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use super::{Cache, Peer};
use crate::lab::process::{Process, command, free_address, version};
use crate::lab::scratch::scratch;

pub(crate) const PEER: Peer = Peer {
    name: "nginx proxy_cache",
    version: || version("nginx", "-v"),
    start,
};

fn start(upstream: SocketAddr) -> Cache {
    let dir = scratch();
    let address = free_address();
    let config = dir.path().join("nginx.conf");
    fs::write(&config, document(dir.path(), address, upstream)).unwrap();
    let mut command = command("nginx");
    command.arg("-p").arg(dir.path()).arg("-c").arg(&config);
    command.stderr(Stdio::null());
    Cache {
        process: Process::start(&mut command, address),
        address,
        _dir: Some(dir),
    }
}

/// A lock that gives up after a while, as it does by default, would let the followers of a large blob through to upstream.
fn document(dir: &Path, address: SocketAddr, upstream: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "user root;
worker_processes 2;
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    client_body_temp_path {dir}/temporary;
    fastcgi_temp_path {dir}/temporary;
    uwsgi_temp_path {dir}/temporary;
    scgi_temp_path {dir}/temporary;
    proxy_cache_path {dir}/cache levels=1:2 keys_zone=all:10m max_size=64g inactive=1h use_temp_path=off;
    upstream registry {{ server {upstream}; keepalive 64; }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://registry;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_cache all;
            proxy_cache_valid 200 1h;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
        }}
    }}
}}
"
    )
}
