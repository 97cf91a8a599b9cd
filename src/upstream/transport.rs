//! Connections to upstream registries: addresses, TCP, TLS, pooling.
//!
//! hyper-util's client takes any connector, so the address that is dialled and the roots that are trusted are decided here
//! and nowhere else. The check of an address is made on the very addresses that are then connected to: a name that means
//! something else a moment later gains nothing.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, vec};

use bytes::Bytes;
use http::Uri;
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use tower_service::Service;
use tracing::debug;

use super::address::AddressClass;
use super::config::SiteConfig;
use super::party;

/// A pooled HTTP/1.1 client.
pub(super) type Transport = Client<HttpsConnector<Dialer>, Empty<Bytes>>;

/// On whose word an address is dialled, and where the upstream itself is.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    word: Word,
    own: Arc<Mutex<Option<AddressClass>>>,
}

/// On whose word an address is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// The operator's, who configured the upstream: any address will do, and tells where the upstream is.
    Operators,
    /// The upstream's, which named somebody: only some addresses will do.
    Upstreams,
}

/// Makes TCP connections by a rule.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    tcp: HttpConnector<Resolver>,
    rule: Rule,
}

/// Looks names up by a rule; what it gives is what is dialled.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    rule: Rule,
}

/// An address that must not be dialled.
#[derive(Debug, thiserror::Error)]
#[error("the upstream named an address that it may not lead to ({0:?})")]
struct Forbidden(AddressClass);

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The TLS library refused its own defaults.
    #[error("no TLS client could be set up")]
    Tls(#[from] rustls::Error),
}

impl Rule {
    /// The rules for what the operator named, and for what the upstream then names.
    pub(super) fn pair() -> (Self, Self) {
        let own = Arc::new(Mutex::new(None));
        let operators = Self {
            word: Word::Operators,
            own: Arc::clone(&own),
        };
        (
            operators,
            Self {
                word: Word::Upstreams,
                own,
            },
        )
    }

    fn check(&self, address: IpAddr) -> Result<(), Forbidden> {
        let class = AddressClass::of(address);
        match self.word {
            Word::Operators => {
                *self.own.lock() = Some(class);
                Ok(())
            }
            Word::Upstreams if class.is_allowed_from(*self.own.lock()) => Ok(()),
            Word::Upstreams => Err(Forbidden(class)),
        }
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let rule = self.rule.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let mut allowed = Vec::new();
            let mut refused = None;
            for address in found {
                match rule.check(address.ip()) {
                    Ok(()) => allowed.push(address),
                    Err(forbidden) => refused = Some(forbidden),
                }
            }
            match refused.filter(|_| allowed.is_empty()) {
                Some(forbidden) => Err(io::Error::other(forbidden)),
                None => Ok(allowed.into_iter()),
            }
        })
    }
}

type Dialled = <HttpConnector<Resolver> as Service<Uri>>::Response;

impl Service<Uri> for Dialer {
    type Response = Dialled;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Dialled, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // An address is not looked up, so that nobody else would check it.
        let checked = uri
            .host()
            .and_then(party::literal)
            .map_or(Ok(()), |it| self.rule.check(it));
        let dialling = self.tcp.call(uri);
        Box::pin(async move {
            checked?;
            Ok(dialling.await?)
        })
    }
}

/// A client that dials by a rule. HTTP/1.1 only: a blob's throughput then hangs on no flow-control window but TCP's.
pub(super) fn client(config: &SiteConfig, rule: Rule) -> Result<Transport, TransportError> {
    let mut tcp = HttpConnector::new_with_resolver(Resolver { rule: rule.clone() });
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(config.connect_timeout));
    tcp.set_keepalive(Some(KEEPALIVE));
    let dialer = Dialer { tcp, rule };
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

const KEEPALIVE: Duration = Duration::from_secs(30);
const POOL_IDLE: Duration = Duration::from_secs(60);
const POOL_IDLE_MAX: usize = 32;
/// What one connection reads at once. Small enough that chunks stay cheap to keep, large enough to keep system calls rare.
const READ_BUFFER_BYTES_MAX: usize = 128 << 10;
