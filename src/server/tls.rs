//! TLS on one port: which certificate is shown, and who is asked for one.
//!
//! The files are looked at whenever a client comes, and now and then when nobody does. When one has changed, all are read
//! again; what is not whole or does not fit together changes nothing but the log, once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use super::certificate;
use super::config::{ClientCertificates, Config, TlsConfig};
use super::metrics::{HandshakeEnd, Metrics};
use super::port::TlsPort;
use crate::files::{self, Mark};
use crate::net::Chain;

/// TLS on one port. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    shared: Arc<Shared>,
    /// Whoever has it looks at the files; the others go on with what there is.
    state: Arc<tokio::sync::Mutex<State>>,
}

#[derive(Debug)]
struct Shared {
    port: TlsPort,
    current: Mutex<Arc<ServerConfig>>,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    config: TlsConfig,
    /// Of the files as they were last read, or tried.
    marks: Marks,
    /// What the log says is wrong with them.
    complaint: Option<String>,
}

/// What is there of certificate, key and those who vouch for clients.
type Marks = [Option<Mark>; 3];

/// Why TLS cannot be spoken on a port.
#[derive(Debug, thiserror::Error)]
#[error("{table}")]
pub struct TlsError {
    /// The table of the configuration.
    pub table: &'static str,
    /// Why.
    #[source]
    pub source: Box<TlsFault>,
}

/// What is wrong with the files of one port.
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    /// One of them is not what it should be.
    #[error(transparent)]
    File(#[from] files::Error),
    /// Nobody can vouch for clients with what is in the file.
    #[error("no client can be verified by {}", file.display())]
    Verifier {
        /// Which.
        file: PathBuf,
        /// What the TLS library said.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// The TLS library refused its own defaults.
    #[error("no TLS server could be set up")]
    Library(#[from] rustls::Error),
}

impl TlsError {
    fn at(port: TlsPort, fault: TlsFault) -> Self {
        Self {
            table: port.table(),
            source: Box::new(fault),
        }
    }
}

/// Whether the files that the front's configuration names are there and what they should be: each is read as it would be.
/// Blocks.
///
/// # Errors
///
/// With the first that is not.
pub fn check_files(config: &Config) -> Result<(), TlsError> {
    let ports = [
        (TlsPort::Registry, &config.tls),
        (TlsPort::Admin, &config.admin_tls),
    ];
    for (port, config) in ports {
        if let Some(config) = config {
            load(port, config).map_err(|fault| TlsError::at(port, fault))?;
        }
    }
    Ok(())
}

impl Tls {
    /// Reads the files, and blocks for that.
    ///
    /// # Errors
    ///
    /// When one of them is not what it should be.
    pub(super) fn load(
        port: TlsPort,
        config: &TlsConfig,
        metrics: Metrics,
    ) -> Result<Self, TlsError> {
        let marks = marks(config);
        let loaded = load(port, config).map_err(|fault| TlsError::at(port, fault))?;
        metrics.shows_certificate(port, loaded.expiry);
        Ok(Self {
            shared: Arc::new(Shared {
                port,
                current: Mutex::new(loaded.server),
                metrics,
            }),
            state: Arc::new(tokio::sync::Mutex::new(State {
                config: config.clone(),
                marks,
                complaint: None,
            })),
        })
    }

    /// Which port it is on.
    pub(super) fn port(&self) -> TlsPort {
        self.shared.port
    }

    /// Counts how a handshake ended.
    pub(super) fn shook(&self, end: HandshakeEnd) {
        self.shared.metrics.shook(self.shared.port, end);
    }

    /// What is spoken now. Cancel-safe.
    pub(super) async fn current(&self) -> Arc<ServerConfig> {
        self.look().await;
        Arc::clone(&self.shared.current.lock())
    }

    /// Looks whether the files have changed, and reads them if so. A disk that hangs holds one thread, and nobody for long.
    /// Cancel-safe: a look that nobody waits for goes on.
    pub(super) async fn look(&self) {
        if let Ok(state) = Arc::clone(&self.state).try_lock_owned() {
            let shared = Arc::clone(&self.shared);
            let looking = spawn_blocking(move || shared.look(state));
            // Whoever is not done by then is done later, and a panic there leaves what there was.
            let _ = timeout(PATIENCE, looking).await;
        }
    }

    /// Goes on by another configuration, whose files are read in any case. Blocks.
    ///
    /// # Errors
    ///
    /// When one of them is not what it should be; then all stays as it was.
    pub(super) fn reload(&self, config: &TlsConfig) -> Result<(), TlsError> {
        let mut state = self.state.blocking_lock();
        let marks = marks(config);
        let port = self.shared.port;
        let loaded = load(port, config).map_err(|fault| TlsError::at(port, fault))?;
        *state = State {
            config: config.clone(),
            marks,
            complaint: None,
        };
        self.shared.take(loaded);
        Ok(())
    }
}

impl Shared {
    fn look(&self, mut state: OwnedMutexGuard<State>) {
        let found = marks(&state.config);
        if found == state.marks {
            return;
        }
        state.marks = found;
        match load(self.port, &state.config) {
            Ok(loaded) => {
                state.complaint = None;
                self.take(loaded);
                let port = self.port.label();
                info!(port, "certificate read again");
            }
            Err(error) => {
                let complaint = Chain(&error).to_string();
                if state.complaint.as_ref() != Some(&complaint) {
                    let port = self.port.label();
                    warn!(
                        port,
                        error = complaint,
                        "certificate could not be read again, the last one is used"
                    );
                }
                state.complaint = Some(complaint);
            }
        }
    }

    fn take(&self, loaded: Loaded) {
        self.metrics.shows_certificate(self.port, loaded.expiry);
        *self.current.lock() = loaded.server;
    }
}

/// What was made of the files.
struct Loaded {
    server: Arc<ServerConfig>,
    /// When the certificate is no longer good, in seconds since 1970.
    expiry: i64,
}

/// Reads all files of a port. Blocks.
fn load(port: TlsPort, config: &TlsConfig) -> Result<Loaded, TlsFault> {
    let provider = Arc::new(default_provider());
    let ours = files::certified(&config.certificate, &config.key, &provider)?;
    let expiry = ours.cert.first().and_then(certificate::expiry);
    // A certificate that matches its key was parsed before.
    let expiry = expiry.unwrap_or_default();
    // TLS 1.2 and 1.3; the library has no older ones.
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match &config.clients {
        ClientCertificates::None => builder.with_no_client_auth(),
        ClientCertificates::Optional(file) | ClientCertificates::Required(file) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(file)?, provider);
            let verifier = match &config.clients {
                ClientCertificates::Optional(_) => verifier.allow_unauthenticated(),
                ClientCertificates::None | ClientCertificates::Required(_) => verifier,
            };
            let verifier = verifier.build().map_err(|source| TlsFault::Verifier {
                file: file.clone(),
                source,
            })?;
            builder.with_client_cert_verifier(match port {
                TlsPort::Registry => verifier,
                TlsPort::Admin => {
                    let ours = ours.cert.first().cloned();
                    Arc::new(OrOurs { verifier, ours })
                }
            })
        }
    };
    let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(ours)));
    if config.clients == ClientCertificates::None {
        // What a ticket takes up again is with the client: nothing is kept for thousands of nodes.
        server.ticketer = Ticketer::new()?;
    } else {
        // A session that is taken up again shows no certificate, which may have ended meanwhile.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    }
    server.alpn_protocols = if config.http2 {
        vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()]
    } else {
        vec![ALPN_HTTP1.to_vec()]
    };
    Ok(Loaded {
        server: Arc::new(server),
        expiry,
    })
}

/// Lets in to the admin port whom a verifier does, and whoever shows that port's own certificate: only who has its key can, as
/// the operator's commands do. Nobody pulls by it: at the registry port it would be an identity that nobody vouches for.
#[derive(Debug)]
struct OrOurs {
    verifier: Arc<dyn ClientCertVerifier>,
    ours: Option<CertificateDer<'static>>,
}

impl ClientCertVerifier for OrOurs {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A list would keep clients from showing one that is not on it, as ours may not be.
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.ours.as_ref() == Some(shown) {
            return Ok(ClientCertVerified::assertion());
        }
        self.verifier.verify_client_cert(shown, between, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn roots(file: &Path) -> Result<Arc<RootCertStore>, files::Error> {
    let mut roots = RootCertStore::empty();
    files::authorities(file, &mut roots)?;
    Ok(Arc::new(roots))
}

/// Taken before the content: whatever is written from then on is another mark.
fn marks(config: &TlsConfig) -> Marks {
    let files = [
        Some(&config.certificate),
        Some(&config.key),
        config.clients.ca_file(),
    ];
    files.map(|it| Mark::at(it?))
}

/// The name of HTTP/2 over TLS (RFC 9113 §3.2).
pub(super) const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";
/// How long a client waits for a look at the files.
const PATIENCE: Duration = Duration::from_secs(2);
