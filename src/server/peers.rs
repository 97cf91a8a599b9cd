//! Who is on the other end of a connection: the client, or a balancer that says for whom it speaks.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::BufMut;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::config::Config;
use super::connection::Connection;
use super::peer::Peer;
use crate::net::{
    Chain, InvalidProxyHeader, Networks, ProxyHeader, ProxySource, client_address,
    is_forwarded_https,
};

/// Whom to believe about who is asking.
#[derive(Debug)]
pub(super) struct Peers {
    trusted: Networks,
    proxy_protocol: bool,
    header_read_timeout: Duration,
    /// When a warning was last written, so that a balancer that is set up wrong does not fill the log.
    warned: Mutex<Option<Instant>>,
}

/// Why a connection has nobody at its other end.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// It was closed without a byte, as by somebody who only looks whether the port is open.
    #[error("closed before its first byte")]
    Silent,
    /// It was closed within the header.
    #[error("closed within its PROXY header")]
    Cut,
    /// The header took too long.
    #[error("no PROXY header within {0:?}")]
    Slow(Duration),
    /// It does not begin with a header.
    #[error(transparent)]
    Invalid(#[from] InvalidProxyHeader),
    /// It cannot be read from.
    #[error("could not be read from")]
    Read(#[from] io::Error),
}

impl Peers {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            trusted: config.trusted_proxies.clone(),
            proxy_protocol: config.proxy_protocol,
            header_read_timeout: config.header_read_timeout,
            warned: Mutex::new(None),
        }
    }

    /// Who is at the other end of a connection that comes from `address`: who its PROXY header says, where there has to
    /// be one. The header is read, and not a byte more. `None` when it is missing or wrong, and the connection is to be
    /// closed. Cancelled, it leaves a connection that is good for nothing else.
    pub(super) async fn identify(
        &self,
        connection: &mut Connection,
        address: SocketAddr,
    ) -> Option<SocketAddr> {
        if !self.proxy_protocol || !self.trusted.contains(address.ip()) {
            return Some(address);
        }
        let reading = timeout(self.header_read_timeout, read_header(connection));
        let source = match reading.await {
            Ok(source) => source,
            Err(_) => Err(Error::Slow(self.header_read_timeout)),
        };
        connection.requests_begin();
        match source {
            Ok(ProxySource::Client(client)) => Some(client),
            Ok(ProxySource::Peer) => Some(address),
            Err(error) => {
                self.refused(address, &error);
                None
            }
        }
    }

    /// Whether this is a proxy in front of us, which may say for whom it asks.
    pub(super) fn is_trusted(&self, peer: IpAddr) -> bool {
        self.trusted.contains(peer)
    }

    /// For whom a peer asks.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        client_address(peer, headers, &self.trusted)
    }

    /// Whether a client speaks TLS, to us or to the proxy in front that says so.
    pub(super) fn is_https(&self, peer: &Peer, headers: &HeaderMap) -> bool {
        peer.is_tls || (self.is_trusted(peer.address.ip()) && is_forwarded_https(headers))
    }

    fn refused(&self, peer: SocketAddr, error: &Error) {
        let chain = Chain(error);
        let is_new = || {
            let mut warned = self.warned.lock();
            let is_new = warned.is_none_or(|it| it.elapsed() >= WARNING_INTERVAL);
            if is_new {
                *warned = Some(Instant::now());
            }
            is_new
        };
        if !matches!(error, Error::Silent) && is_new() {
            warn!(%peer, error = %chain, "connection from a trusted proxy refused");
        } else {
            debug!(%peer, error = %chain, "connection from a trusted proxy refused");
        }
    }
}

/// Reads a header, whose bytes may come one by one, and nothing of what follows it.
async fn read_header(connection: &mut Connection) -> Result<ProxySource, Error> {
    let mut header = Vec::new();
    loop {
        let wanted = match ProxyHeader::parse(&header)? {
            ProxyHeader::Whole { source, .. } => return Ok(source),
            ProxyHeader::Partial { wanted } => wanted,
        };
        let missing = wanted.saturating_sub(header.len());
        let read = connection
            .read_buf(&mut (&mut header).limit(missing))
            .await?;
        if read == 0 {
            return Err(if header.is_empty() {
                Error::Silent
            } else {
                Error::Cut
            });
        }
    }
}

/// A warning is to be seen, not counted.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
