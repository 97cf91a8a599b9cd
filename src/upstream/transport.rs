//! Clients for upstream registries: TLS and pooling.
//!
//! hyper-util's client takes any connector, so the addresses that are dialled and the roots that are trusted are decided by
//! us and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use super::config::SiteConfig;
use super::dialer::{Dialer, Rule, Word};
use super::egress::Proxies;
use super::tls::{FileError, Tls};

/// A pooled HTTP/1.1 client.
#[derive(Debug)]
pub(super) struct Transport {
    client: Client<HttpsConnector<Dialer>, Full<Bytes>>,
    proxies: Arc<Proxies>,
}

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
    /// A file that the configuration names is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Transport {
    /// Sends a request, and waits for the head of the answer. Cancel-safe.
    pub(super) async fn request(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, legacy::Error> {
        let authorization = self.proxies.authorization(request.uri());
        let authorization = authorization.map(|it| (PROXY_AUTHORIZATION, it));
        request.headers_mut().extend(authorization);
        self.client.request(request).await
    }
}

/// The clients of one upstream. Reads the files that its configuration names, and blocks for that.
///
/// # Errors
///
/// When TLS cannot be set up.
pub(super) fn clients(config: &SiteConfig) -> Result<Transports, TransportError> {
    let rules = Rule::all(config);
    let tls = Tls::load(&config.tls)?;
    let proxies = Arc::new(Proxies::new(&config.egress));
    let transport = |word, tls| {
        let proxies = Arc::clone(&proxies);
        let dialer = Dialer::new(&rules, word, Arc::clone(&proxies), config.connect_timeout);
        let client = client(dialer, tls);
        Transport { client, proxies }
    };
    Ok(Transports {
        own: transport(Word::Operators, tls.for_own()?),
        named: transport(Word::Upstreams, tls.for_others()?),
        listed: transport(Word::Listed, tls.for_others()?),
    })
}

/// HTTP/1.1 only: a blob's throughput then hangs on no flow-control window but TCP's.
fn client(dialer: Dialer, tls: ClientConfig) -> Client<HttpsConnector<Dialer>, Full<Bytes>> {
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(dialer);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_IDLE_MAX)
        .http1_max_buf_size(READ_BUFFER_BYTES_MAX)
        .build(connector)
}

const POOL_IDLE: Duration = Duration::from_secs(60);
const POOL_IDLE_MAX: usize = 32;
/// What one connection reads at once. Small enough that chunks stay cheap to keep, large enough to keep system calls rare.
const READ_BUFFER_BYTES_MAX: usize = 128 << 10;
