//! What is known of a connection when its requests come.

use std::net::SocketAddr;
use std::sync::Arc;

/// The other end of a connection. Clones are cheap.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Its address: the client's, or that of the proxy in between. What a PROXY header said counts before the socket.
    pub(super) address: SocketAddr,
    /// The address and its host as text, which each line of the log has.
    pub(super) shown: Shown,
    /// Whether what passes is encrypted between this end and that.
    pub(super) is_tls: bool,
    /// The name in the certificate that it showed, which was verified; `None` where it showed none.
    pub(super) certificate: Option<Arc<str>>,
}

/// An address as text.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) address: Arc<str>,
    pub(super) host: Arc<str>,
}

impl Shown {
    fn of(address: SocketAddr) -> Self {
        Self {
            address: address.to_string().into(),
            host: address.ip().to_string().into(),
        }
    }
}

impl Peer {
    /// Somebody who speaks in the clear.
    pub(super) fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            shown: Shown::of(address),
            is_tls: false,
            certificate: None,
        }
    }
}
