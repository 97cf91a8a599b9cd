//! The whole application: every floor built, joined, started and stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntGaugeVec, Opts, Registry};
use rustix::process::{Resource, getrlimit};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::cache::{self, Cache};
use crate::config::Config;
use crate::log;
use crate::proxy::{self, Proxy};
use crate::saved::Savings;
use crate::server::{self, Access, Health, Server, StartError, Terms};
use crate::upstream::{self, TransportError};

/// The application.
#[derive(Debug)]
pub struct App;

/// The application while it runs. Dropped, it goes on; ask it to shut down.
#[derive(Debug)]
pub struct Running {
    registry_addresses: Vec<SocketAddr>,
    admin_address: SocketAddr,
    stop: CancellationToken,
    stopped: watch::Receiver<bool>,
    cache: Cache,
    proxy: Arc<Proxy>,
    access: Arc<Access>,
    ports: server::Ports,
    config: Config,
}

/// Why the application could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache directory cannot be used.
    #[error(transparent)]
    Cache(#[from] cache::OpenError),
    /// The front cannot start.
    #[error(transparent)]
    Front(#[from] StartError),
    /// No client for upstreams could be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Two metrics have the same name.
    #[error("metrics could not be registered")]
    Metrics(#[from] prometheus::Error),
    /// A task of the start panicked.
    #[error("a task of the start was lost")]
    Lost(#[from] tokio::task::JoinError),
}

/// Why the application does not go on with another configuration.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// A file for TLS is not what it should be.
    #[error(transparent)]
    Tls(#[from] server::TlsError),
    /// No client for upstreams could be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl App {
    /// Opens the cache, binds every address, and serves. The cache is scanned while it is already in use.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used, or an address cannot be listened on.
    pub async fn start(config: Config) -> Result<Running, Error> {
        let registry = Registry::new();
        let server_metrics = server::Metrics::register(&registry)?;
        let cache_metrics = cache::Metrics::register(&registry)?;
        let proxy_metrics = proxy::Metrics::register(&registry)?;
        let upstream_metrics = upstream::Metrics::register(&registry)?;
        log::register(&registry)?;
        register_build(&registry)?;

        let cache_config = config.cache.clone();
        let cache = spawn_blocking(move || Cache::open(&cache_config, cache_metrics)).await??;
        let savings = Savings {
            server: server_metrics.clone(),
            proxy: proxy_metrics.clone(),
            upstream: upstream_metrics.clone(),
        };
        let tracker = TaskTracker::new();
        let proxy = Arc::new(Proxy::new(
            &config.proxy,
            &cache,
            &proxy_metrics,
            &upstream_metrics,
            &tracker,
        )?);
        let (access_config, metrics) = (config.access.clone(), server_metrics.clone());
        let access = spawn_blocking(move || Access::new(&access_config, metrics)).await?;
        let access = Arc::new(access);
        let server = Server::bind(
            within_open_files(&config),
            Health::default(),
            server_metrics,
            Arc::clone(&access),
        )?;

        let (registry_addresses, admin_address) =
            (server.registry_addresses().to_vec(), server.admin_address());
        let ports = server.ports();
        let stop = CancellationToken::new();
        let (stopped_sender, stopped) = watch::channel(false);
        let scanned = cache.clone();
        let scan = tracker.spawn_blocking(move || scanned.scan());
        let scrubbed = cache.clone();
        tracker.spawn(async move {
            // A scan that panicked has missed some; what is there can be checked all the same.
            let _ = scan.await;
            scrubbed.scrub().await;
        });
        tracker.spawn(keep_house(cache.clone(), stop.clone()));
        let tended = cache.clone();
        tracker.spawn(async move { tended.tend().await });
        tracker.spawn(savings.clone().tell_hourly(stop.clone()));
        let release = tokio::spawn(release_when_stopping(cache.clone(), stop.clone()));
        let remaining = cache.clone();
        let serving = server.serve(Arc::clone(&proxy), cache, registry, stop.clone());
        tokio::spawn(async move {
            serving.await;
            // What panicked there must not keep the process.
            let _ = release.await;
            savings.tell();
            stopped_sender.send_replace(true);
        });
        Ok(Running {
            registry_addresses,
            admin_address,
            stop,
            stopped,
            cache: remaining,
            proxy,
            access,
            ports,
            config,
        })
    }
}

impl Running {
    /// The bound addresses of the registry API.
    pub fn registry_addresses(&self) -> &[SocketAddr] {
        &self.registry_addresses
    }

    /// The bound address of the admin port.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Goes on with the upstreams and the access rules of another configuration, and with the files that its tables for TLS
    /// name; the rest of it stays as it was at the start, and differences there are logged. Blocks.
    ///
    /// # Errors
    ///
    /// When a client for one of the upstreams cannot be made, or a file for TLS is not what it should be; what comes after
    /// that stays as it was.
    pub fn reload(&self, config: &Config) -> Result<(), ReloadError> {
        self.ports.reload(&config.server)?;
        // Upstreams and rules are for each other, so nothing that may take long is done between them.
        let terms = Terms::read(&config.access);
        self.proxy.reload(&config.proxy.upstreams)?;
        self.access.reload(terms);
        let upstreams = config.proxy.upstreams.len();
        info!(upstreams, "configuration reloaded");
        for part in self.config.fixed_differences(config) {
            warn!(part, "a change of the configuration needs a restart");
        }
        Ok(())
    }

    /// Begins to stop: readiness fails, the directory is released, no more requests are taken, and responses in progress
    /// get the drain timeout. Calling it again changes nothing.
    pub fn shut_down(&self) {
        // At once, so that whoever starts next knows that waiting is worth it.
        self.cache.announce_release();
        self.stop.cancel();
    }

    /// Waits until everything has stopped. Cancel-safe.
    pub async fn stopped(&self) {
        // A sender that is gone has stopped, too.
        let _ = self.stopped.clone().wait_for(|stopped| *stopped).await;
    }
}

/// What the front runs on, with no more connections than there are descriptors for.
fn within_open_files(config: &Config) -> server::Config {
    // None is no limit.
    let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let mut server = config.server.clone();
    let configured = server.connections_max;
    server.connections_max = config.connections_within(open_files);
    let connections = server.connections_max;
    if connections < configured {
        warn!(
            configured,
            connections,
            open_files,
            "the limit of open files allows fewer connections than are configured"
        );
    } else {
        info!(connections, open_files, "limits");
    }
    server
}

/// How soon a use is written down, if it is, and how often what is stale is looked for.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(5);

async fn keep_house(cache: Cache, stop: CancellationToken) {
    loop {
        // Nothing is lost with the pause; the last uses are written when the directory is released.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(HOUSEKEEPING_INTERVAL) => {}
        }
        let cache = cache.clone();
        if let Err(error) = spawn_blocking(move || cache.keep_house()).await {
            warn!(error = %error, "housekeeping panicked");
        }
    }
}

async fn release_when_stopping(cache: Cache, stop: CancellationToken) {
    stop.cancelled().await;
    info!("stopping");
    if let Err(error) = spawn_blocking(move || cache.release()).await {
        warn!(error = %error, "the cache directory could not be released");
    }
}

fn register_build(registry: &Registry) -> Result<(), prometheus::Error> {
    let opts = Opts::new(
        "layerhold_build_info",
        "1, labelled by what this program was built from",
    );
    let build = IntGaugeVec::new(opts, &["version", "revision"])?;
    let revision = option_env!("LAYERHOLD_REVISION").unwrap_or("unknown");
    build
        .with_label_values(&[env!("CARGO_PKG_VERSION"), revision])
        .set(1);
    registry.register(Box::new(build))
}
