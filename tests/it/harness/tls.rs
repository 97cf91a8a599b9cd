//! TLS in front of a fake, with certificates made on the spot.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::registry::FakeRegistry;

/// Somebody who vouches for others.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// The certificate, as files have it.
    pub(crate) certificate_pem: String,
    /// The key, as files have it.
    pub(crate) key_pem: String,
}

/// What a server wants to see of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nothing.
    Nothing,
    /// A certificate, if they have one.
    Wish,
    /// A certificate.
    Must,
}

/// Speaks TLS on a port of its own, and passes on to a fake what was said.
pub(crate) struct TlsFront {
    address: SocketAddr,
    counts: Arc<Mutex<Counts>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    shown: usize,
}

impl Authority {
    /// A new one that nobody trusts yet.
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        Self { issuer }
    }

    /// Its own certificate, as files have it.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Vouches for whoever goes by one of these names or addresses.
    pub(crate) fn vouch(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            chain: vec![certificate.der().clone()],
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            key: key.into(),
        }
    }
}

impl TlsFront {
    /// Stands before `server`, as one of these names, by the word of `authority`, which vouches for clients as well.
    pub(crate) async fn start(
        server: &FakeRegistry,
        authority: &Authority,
        names: &[&str],
        demand: Demand,
    ) -> Self {
        let identity = authority.vouch(names);
        let provider = Arc::new(default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = if demand == Demand::Nothing {
            config.with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            roots.add(authority.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier = if demand == Demand::Wish {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            config.with_client_cert_verifier(verifier.build().unwrap())
        };
        let config = config.with_single_cert(identity.chain, identity.key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let counts = Arc::default();
        Self {
            address: listener.local_addr().unwrap(),
            task: tokio::spawn(accept(
                listener,
                acceptor,
                server.address(),
                Arc::clone(&counts),
            )),
            counts,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its root, by this name.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("https://{name}:{}", self.address.port())
    }

    /// How many connections were made, whatever came over them.
    pub(crate) fn connections(&self) -> usize {
        self.counts.lock().connections
    }

    /// How many of them came to speak TLS.
    pub(crate) fn handshakes(&self) -> usize {
        self.counts.lock().handshakes
    }

    /// How many of them showed a certificate.
    pub(crate) fn shown(&self) -> usize {
        self.counts.lock().shown
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    server: SocketAddr,
    counts: Arc<Mutex<Counts>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        counts.lock().connections += 1;
        connections.spawn(splice(
            stream,
            acceptor.clone(),
            server,
            Arc::clone(&counts),
        ));
    }
}

/// Passes on what is said over one connection. Whoever leaves it is nobody's fault.
async fn splice(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    server: SocketAddr,
    counts: Arc<Mutex<Counts>>,
) -> io::Result<()> {
    let mut client = acceptor.accept(stream).await?;
    let is_shown = client.get_ref().1.peer_certificates().is_some();
    {
        let mut counts = counts.lock();
        counts.handshakes += 1;
        counts.shown += usize::from(is_shown);
    }
    let mut server = TcpStream::connect(server).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
