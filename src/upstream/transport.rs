//! Clients for upstream registries: TLS and pooling.
//!
//! hyper-util's client takes any connector, so the addresses that are dialled and the roots that are trusted are decided by
//! us and nowhere else.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tracing::debug;

use super::config::SiteConfig;
use super::dialer::{Dialer, Rule, Word};

/// A pooled HTTP/1.1 client.
pub(super) type Transport = Client<HttpsConnector<Dialer>, Empty<Bytes>>;

/// The clients of one upstream, by who is asked. None shares a connection with another.
#[derive(Debug)]
pub(super) struct Transports {
    /// For the upstream itself.
    pub(super) own: Transport,
    /// For whomever it names: redirect targets and token servers.
    pub(super) named: Transport,
    /// For whom the operator listed besides it.
    pub(super) listed: Transport,
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The TLS library refused its own defaults.
    #[error("no TLS client could be set up")]
    Tls(#[from] rustls::Error),
}

/// The clients of one upstream.
///
/// # Errors
///
/// When TLS cannot be set up.
pub(super) fn clients(config: &SiteConfig) -> Result<Transports, TransportError> {
    let rule = Rule::all(config);
    Ok(Transports {
        own: client(config, rule(Word::Operators))?,
        named: client(config, rule(Word::Upstreams))?,
        listed: client(config, rule(Word::Listed))?,
    })
}

/// A client that dials by a rule. HTTP/1.1 only: a blob's throughput then hangs on no flow-control window but TCP's.
fn client(config: &SiteConfig, rule: Rule) -> Result<Transport, TransportError> {
    let dialer = Dialer::new(rule, config.connect_timeout);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let tls = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots())
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(dialer);
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_IDLE_MAX)
        .http1_max_buf_size(READ_BUFFER_BYTES_MAX)
        .build(connector);
    Ok(client)
}

/// The machine's own roots, or the ones that came with the program where the machine has none.
fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        debug!(error = %error, "part of the machine's certificate roots could not be read");
    }
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

const POOL_IDLE: Duration = Duration::from_secs(60);
const POOL_IDLE_MAX: usize = 32;
/// What one connection reads at once. Small enough that chunks stay cheap to keep, large enough to keep system calls rare.
const READ_BUFFER_BYTES_MAX: usize = 128 << 10;
