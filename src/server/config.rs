//! What the HTTP front runs on.

use std::net::SocketAddr;
use std::time::Duration;

use crate::net::Networks;

/// Where to listen, and how patient to be with clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses of the registry API; port 0 asks the kernel for one.
    pub listen: Vec<SocketAddr>,
    /// Address of metrics and health; never the registry's.
    pub admin_listen: SocketAddr,
    /// The proxies in front of us, which may say for whom they ask.
    pub trusted_proxies: Networks,
    /// Whether a connection from one of them begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Connections at once; further ones wait in the kernel's backlog. Whoever builds this sees to it that there are
    /// descriptors for so many.
    pub connections_max: usize,
    /// How long a client may take over a request's head, and let its connection be idle before.
    pub header_read_timeout: Duration,
    /// How long a client may take nothing while we have bytes for it. That it takes nothing may be noticed at the end of a
    /// second such time.
    pub write_idle_timeout: Duration,
    /// How long responses in progress get to end after SIGTERM.
    pub drain_timeout: Duration,
}
