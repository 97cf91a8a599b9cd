//! How a connection comes to speak TLS.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::certificate;
use super::metrics::HandshakeEnd;
use super::peer::Peer;
use super::tls::Tls;
use crate::net::Chain;

/// What TLS is spoken over.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// The socket below.
    fn tcp(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

/// Why TLS is not spoken with somebody.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// It was closed without a byte, as by somebody who only looks whether the port is open.
    #[error("closed before its first byte")]
    Silent,
    /// It speaks something else.
    #[error("what was said is not TLS")]
    Plain,
    /// It took too long.
    #[error("no handshake within {0:?}")]
    Slow(Duration),
    /// It has shown no certificate, or one that is not good here.
    #[error("no certificate that is good here")]
    Certificate(#[source] io::Error),
    /// Anything else.
    #[error("handshake failed")]
    Failed(#[source] io::Error),
}

impl Tls {
    /// Comes to speak TLS with whoever is at the other end, and learns who it says it is. `None` when it does not come to
    /// that in time, and the connection was ended. Cancelled, it ends the connection.
    pub(super) async fn accept<W: Wire>(
        &self,
        wire: W,
        peer: Peer,
        patience: Duration,
    ) -> Option<(TlsStream<W>, Peer)> {
        let shaken = timeout(patience, self.shake(wire)).await;
        let shaken = shaken.unwrap_or(Err(Error::Slow(patience)));
        let end = match &shaken {
            Ok(_) => HandshakeEnd::Complete,
            Err(Error::Silent) => HandshakeEnd::Silent,
            Err(Error::Plain) => HandshakeEnd::Plain,
            Err(Error::Slow(_)) => HandshakeEnd::Slow,
            Err(Error::Certificate(_)) => HandshakeEnd::Certificate,
            Err(Error::Failed(_)) => HandshakeEnd::Failed,
        };
        self.shook(end);
        match shaken {
            Ok(stream) => {
                let shown = stream.get_ref().1.peer_certificates();
                let certificate = shown.and_then(|it| it.first()).and_then(certificate::name);
                let peer = Peer {
                    is_tls: true,
                    certificate,
                    ..peer
                };
                Some((stream, peer))
            }
            Err(error) => {
                let port = self.port().label();
                debug!(port, peer = %peer.address, error = %Chain(&error), "no TLS connection");
                None
            }
        }
    }

    async fn shake<W: Wire>(&self, mut wire: W) -> Result<TlsStream<W>, Error> {
        let mut first = [0];
        let seen = wire.tcp().peek(&mut first).await.map_err(Error::Failed)?;
        match first {
            _ if seen == 0 => return Err(Error::Silent),
            [HANDSHAKE] => {}
            [byte] => {
                if byte.is_ascii_uppercase() {
                    say_https(&mut wire).await;
                }
                return Err(Error::Plain);
            }
        }
        let acceptor = TlsAcceptor::from(self.current().await);
        let accepting = acceptor.accept_with(wire, |session| {
            session.set_buffer_limit(Some(BUFFER_BYTES_MAX));
        });
        accepting.await.map_err(|error| {
            if is_about_certificate(&error) {
                Error::Certificate(error)
            } else {
                Error::Failed(error)
            }
        })
    }
}

/// Tells a client that speaks HTTP in the clear what it should do instead, and lets it read that.
async fn say_https<W: Wire>(wire: &mut W) {
    let mut heard = vec![0; HEARD_BYTES_MAX];
    // Bytes that nobody has read when a socket is closed reset it, and its answer with it.
    let saying = async {
        let _ = wire.read(&mut heard).await?;
        wire.write_all(SPEAKS_HTTPS).await?;
        wire.shutdown().await?;
        wire.read(&mut heard).await
    };
    // Who does not listen need not hear.
    let _ = timeout(FAREWELL, saying).await;
}

/// Whether it failed because of what the client showed, or did not.
fn is_about_certificate(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|it| it.downcast_ref());
    match error {
        Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => true,
        Some(_) | None => false,
    }
}

/// The first byte of a client that speaks TLS: its record is one of a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
const SPEAKS_HTTPS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
Content-Length: 23\r\nConnection: close\r\n\r\nthis port speaks https\n";
const HEARD_BYTES_MAX: usize = 16 << 10;
const FAREWELL: Duration = Duration::from_secs(1);
/// What is encrypted and waits for the socket, at most: some records of 16 KiB, for one system call. Without a limit it would be
/// whole bodies.
const BUFFER_BYTES_MAX: usize = 128 << 10;
