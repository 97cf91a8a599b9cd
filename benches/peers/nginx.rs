//! nginx, serving the same content from files.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use crate::lab::process::{Process, command, free_address, version};

/// A running nginx with two workers.
pub(crate) struct Nginx {
    pub(crate) process: Process,
    /// As it is configured everywhere: `sendfile`, `tcp_nopush`, and an open file cache for what is small.
    pub(crate) stock: SocketAddr,
    /// The same with `sndbuf=208k`, which nobody sets and which is what sendfile can do.
    pub(crate) bounded: SocketAddr,
    /// Over TLS 1.3, as it is configured everywhere, where the directory has `tls.crt` and `tls.key`.
    pub(crate) secure: SocketAddr,
}

impl Nginx {
    /// Serves the files of `dir`; `None` where nginx is not installed. Its own files go to `dir` too.
    pub(crate) fn start(dir: &Path) -> Option<Self> {
        version("nginx", "-v")?;
        let [stock, bounded, secure] = [(); 3].map(|()| free_address());
        let config = dir.join("nginx.conf");
        fs::write(&config, document(dir, [stock, bounded, secure])).unwrap();
        let mut command = command("nginx");
        command.arg("-p").arg(dir).arg("-c").arg(&config);
        // Without root it complains of `user`, and before it has read the file of its usual log.
        command.stderr(Stdio::null());
        Some(Self {
            process: Process::start(&mut command, stock),
            stock,
            bounded,
            secure,
        })
    }
}

fn document(dir: &Path, [stock, bounded, secure]: [SocketAddr; 3]) -> String {
    let has_certificate = dir.join("tls.crt").exists();
    let dir = dir.display();
    let secure = if has_certificate {
        format!(
            "listen {secure} ssl http2;
        ssl_protocols TLSv1.3;
        ssl_certificate {dir}/tls.crt;
        ssl_certificate_key {dir}/tls.key;"
        )
    } else {
        String::new()
    };
    // It answers 1000 requests on a connection and then closes it, if it is not told otherwise.
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
    proxy_temp_path {dir}/temporary;
    fastcgi_temp_path {dir}/temporary;
    uwsgi_temp_path {dir}/temporary;
    scgi_temp_path {dir}/temporary;
    server {{
        listen {stock};
        listen {bounded} sndbuf=208k;
        {secure}
        root {dir};
        location = /manifest {{ open_file_cache max=100 inactive=1h; open_file_cache_valid 1h; }}
    }}
}}
"
    )
}
