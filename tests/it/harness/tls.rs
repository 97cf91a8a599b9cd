//! TLS in front of a fake, with certificates made on the spot.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::client::Connection;
use super::registry::FakeRegistry;
use super::within;

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

/// A client that speaks TLS, and trusts one authority.
#[derive(Clone, Debug)]
pub(crate) struct TlsClient {
    authority: CertificateDer<'static>,
    shown: Option<Arc<CertifiedKey>>,
    versions: &'static [&'static SupportedProtocolVersion],
    protocols: Vec<Vec<u8>>,
    /// With the sessions of earlier connections.
    kept: Option<Arc<ClientConfig>>,
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
        self.sign(&CertificateParams::new(names).unwrap())
    }

    /// Vouches for somebody of this common name and these alternative ones.
    pub(crate) fn vouch_for(&self, common: &str, names: Vec<SanType>) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common);
        params.subject_alt_names = names;
        self.sign(&params)
    }

    /// Vouched, until ten years ago.
    pub(crate) fn vouched_once(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2010, 1, 1);
        params.not_after = date_time_ymd(2016, 1, 1);
        self.sign(&params)
    }

    /// Somebody who trusts it.
    pub(crate) fn client(&self) -> TlsClient {
        TlsClient {
            authority: self.issuer.der().clone(),
            shown: None,
            versions: rustls::ALL_VERSIONS,
            protocols: Vec::new(),
            kept: None,
        }
    }

    fn sign(&self, params: &CertificateParams) -> Identity {
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

impl TlsClient {
    /// Shows this when it is asked who it is.
    pub(crate) fn showing(mut self, identity: &Identity) -> Self {
        let key = identity.key.clone_key();
        let ours = CertifiedKey::from_der(identity.chain.clone(), key, &default_provider());
        self.shown = Some(Arc::new(ours.unwrap()));
        self
    }

    /// Shows this, and has not its key.
    pub(crate) fn pretending(mut self, identity: &Identity) -> Self {
        let key: PrivateKeyDer<'static> = KeyPair::generate().unwrap().into();
        let key = default_provider().key_provider.load_private_key(key);
        let pretended = CertifiedKey::new(identity.chain.clone(), key.unwrap());
        self.shown = Some(Arc::new(pretended));
        self
    }

    /// Takes up sessions again where it may, as it is now.
    pub(crate) fn remembering(mut self) -> Self {
        self.kept = Some(self.config());
        self
    }

    /// Speaks these versions only.
    pub(crate) fn speaking(
        mut self,
        versions: &'static [&'static SupportedProtocolVersion],
    ) -> Self {
        self.versions = versions;
        self
    }

    /// Asks for one of these by ALPN.
    pub(crate) fn offering(mut self, protocols: &[&str]) -> Self {
        let bytes = |it: &&str| it.as_bytes().to_vec();
        self.protocols = protocols.iter().map(bytes).collect();
        self
    }

    /// Connects.
    pub(crate) async fn open(&self, address: SocketAddr) -> Connection {
        Connection::over(self.try_open(address).await.unwrap())
    }

    /// Connects, if both agree.
    pub(crate) async fn try_open(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let tcp = within("a connection", TcpStream::connect(address)).await?;
        self.over(tcp).await
    }

    /// Speaks TLS over what is there already.
    pub(crate) async fn over(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        tcp.set_nodelay(true)?;
        let config = self.kept.clone().unwrap_or_else(|| self.config());
        let connector = TlsConnector::from(config);
        let name = ServerName::try_from(NAME).unwrap();
        within("a handshake", connector.connect(name, tcp)).await
    }

    fn config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.shown {
            Some(ours) => {
                let shown = SingleCertAndKey::from(Arc::clone(ours));
                config.with_client_cert_resolver(Arc::new(shown))
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.protocols);
        Arc::new(config)
    }
}

/// TLS 1.2 and nothing else.
pub(crate) static TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
/// TLS 1.3 and nothing else.
pub(crate) static TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Who clients think they talk to.
pub(crate) const NAME: &str = "cache.example";

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
