//! A real egress proxy: `tinyproxy`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

use crate::process::Process;
use crate::registry::Registry;

/// A running tinyproxy. Whom it asks sees [`EGRESS`] as the place that it comes from.
pub(crate) struct Egress {
    process: Process,
    address: SocketAddr,
}

impl Egress {
    /// Starts one that lets through to this registry.
    pub(crate) fn start(dir: &Path, registry: &Registry) -> Self {
        let (address, held) = unused();
        let document = format!(
            "Listen 127.0.0.1\nPort {}\nBind {EGRESS}\nAllow 127.0.0.1\nConnectPort {}\n\
             LogLevel Info\nTimeout 60\nMaxClients 100\n",
            address.port(),
            registry.address().port()
        );
        let config = dir.join("tinyproxy.conf");
        fs::write(&config, document).unwrap();
        let args = ["-d", "-c", config.to_str().unwrap()];
        let mut process = Process::start("tinyproxy", dir, "tinyproxy", &args);
        process.wait_for("readiness", |process| {
            let is_ready = process.logged().contains("Accepting connections");
            is_ready.then_some(())
        });
        drop(held);
        Self { process, address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The request lines so far, as in `CONNECT 127.0.0.1:443 HTTP/1.1`.
    pub(crate) fn requests(&self) -> Vec<String> {
        let log = self.process.logged();
        let lines = log.lines().filter(|line| line.contains("Request (file"));
        let requests = lines.filter_map(|line| line.split_once("): "));
        requests.map(|(_, request)| request.to_owned()).collect()
    }
}

/// A port that nobody else gets while it is held. tinyproxy cannot be told to take a free one and
/// say which; but of sockets that allow it (`SO_REUSEADDR`) Linux lets one listen on a port that
/// the others are only bound to.
fn unused() -> (SocketAddr, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    let held = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    set_socket_reuseaddr(&held, true).unwrap();
    bind(&held, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = getsockname(&held).unwrap().try_into().unwrap();
    (address, held)
}

/// As much loopback as 127.0.0.1, and told from it.
pub(crate) const EGRESS: &str = "127.0.0.2";
