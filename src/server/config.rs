//! What the HTTP front runs on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::net::{Networks, Rate};

/// Where to listen, and how patient to be with clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses of the registry API; port 0 asks the kernel for one.
    pub listen: Vec<SocketAddr>,
    /// Address of metrics and health; never the registry's.
    pub admin_listen: SocketAddr,
    /// How TLS is spoken at the registry's addresses; `None` is in the clear.
    pub tls: Option<TlsConfig>,
    /// The same at the address of metrics and health.
    pub admin_tls: Option<TlsConfig>,
    /// The proxies in front of us, which may say for whom they ask.
    pub trusted_proxies: Networks,
    /// Whether a connection from one of them begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Connections at once; further ones wait in the kernel's backlog. Whoever builds this sees to it that there are
    /// descriptors for so many.
    pub connections_max: usize,
    /// Connections at once from one IPv4 address or IPv6 network of 64 bits; `None` for what follows from those of all.
    pub connections_per_source_max: Option<usize>,
    /// How often clients of one such source may ask for content; `None` for as often as they like.
    pub requests_per_source: Option<Rate>,
    /// The same for each who has shown who it is.
    pub requests_per_identity: Option<Rate>,
    /// How long a client may take over a request's head, and let its connection be idle before.
    pub header_read_timeout: Duration,
    /// How long a client may take nothing while we have bytes for it. That it takes nothing may be noticed at the end of a
    /// second such time.
    pub write_idle_timeout: Duration,
    /// How long responses in progress get to end after SIGTERM.
    pub drain_timeout: Duration,
}

impl Config {
    /// Connections at once from one source. By default half of all, so that no source can have all; but whoever allows few at
    /// all has one source in mind, perhaps, so it is not fewer than some.
    pub fn connections_per_source(&self) -> usize {
        self.connections_per_source_max.unwrap_or_else(|| {
            let half = self.connections_max / 2;
            half.max(SHARED_FROM).min(self.connections_max)
        })
    }
}

/// Fewer connections than this are nobody's half.
const SHARED_FROM: usize = 1024;

/// How TLS is spoken on one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Our certificate, and those between it and a root, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// What clients have to show.
    pub clients: ClientCertificates,
    /// Whether HTTP/2 is offered besides HTTP/1.1.
    pub http2: bool,
}

/// What clients have to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nothing; they are not asked.
    None,
    /// A certificate that one in this file vouches for, or none.
    Optional(PathBuf),
    /// A certificate that one in this file vouches for.
    Required(PathBuf),
}

impl ClientCertificates {
    /// The file of those who vouch for clients.
    pub fn ca_file(&self) -> Option<&PathBuf> {
        match self {
            Self::None => None,
            Self::Optional(file) | Self::Required(file) => Some(file),
        }
    }
}
