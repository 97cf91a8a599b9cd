//! Accepting connections, and letting them go.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::accept::AcceptFaults;
use super::access::Access;
use super::admin::Admin;
use super::callers::Callers;
use super::config::Config;
use super::health::Health;
use super::limits::Limits;
use super::metrics::Metrics;
use super::peers::Peers;
use super::port::TlsPort;
use super::serve::{Connections, StreamPlaces};
use super::serve_admin::serve_admin;
use super::shared::Front;
use super::sources::Sources;
use super::tls::{Tls, TlsError};
use super::verify::Verifications;
use crate::cache::Cache;
use crate::net::unmapped_address;
use crate::proxy::Proxy;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Why the front cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A file for TLS is not what it should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The TLS of both ports, where it is spoken. Clones are the same.
#[derive(Clone, Debug)]
pub struct Ports {
    registry: Option<Tls>,
    admin: Option<Tls>,
}

/// Bound listeners, and what serves them.
#[derive(Debug)]
pub struct Server {
    config: Config,
    registry_addresses: Vec<SocketAddr>,
    admin_address: SocketAddr,
    listeners: Vec<TcpListener>,
    admin_listener: TcpListener,
    ports: Ports,
    health: Health,
    metrics: Metrics,
    access: Arc<Access>,
    /// Cancelled when no more requests are taken.
    stopping: CancellationToken,
    /// Cancelled when the time to end is over.
    breaking_off: CancellationToken,
    connections: TaskTracker,
    admin_stopping: CancellationToken,
}

impl Ports {
    fn load(config: &Config, metrics: &Metrics) -> Result<Self, TlsError> {
        let load = |port, config: &Option<_>| {
            let config = config.as_ref();
            let tls = config.map(|it| Tls::load(port, it, metrics.clone()));
            tls.transpose()
        };
        Ok(Self {
            registry: load(TlsPort::Registry, &config.tls)?,
            admin: load(TlsPort::Admin, &config.admin_tls)?,
        })
    }

    /// Goes on by the tables of another configuration, whose files are read in any case. Whether a port speaks TLS at all
    /// stays as it was. Blocks.
    ///
    /// # Errors
    ///
    /// When one of the files is not what it should be; the ports after it stay as they were.
    pub fn reload(&self, config: &Config) -> Result<(), TlsError> {
        let ports = [
            (&self.registry, &config.tls),
            (&self.admin, &config.admin_tls),
        ];
        for (tls, config) in ports {
            if let (Some(tls), Some(config)) = (tls, config) {
                tls.reload(config)?;
            }
        }
        Ok(())
    }

    /// Looks at the files now and then, for who looks at the metrics where no client comes.
    async fn tend(self, stopping: CancellationToken) {
        loop {
            // Nothing is lost with the pause.
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(LOOK_INTERVAL) => {}
            }
            for tls in self.registry.iter().chain(&self.admin) {
                tls.look().await;
            }
        }
    }
}

impl Server {
    /// Reads the files for TLS, and binds every address. Blocks for the files.
    ///
    /// # Errors
    ///
    /// When one of the files is not what it should be, or one of the addresses cannot be listened on.
    pub fn bind(
        config: Config,
        health: Health,
        metrics: Metrics,
        access: Arc<Access>,
    ) -> Result<Self, StartError> {
        let ports = Ports::load(&config, &metrics)?;
        let mut listeners = Vec::new();
        let mut registry_addresses = Vec::new();
        for address in &config.listen {
            let (listener, bound) = bind(*address)?;
            info!(role = "registry", address = %bound, "listening");
            listeners.push(listener);
            registry_addresses.push(bound);
        }
        let (admin_listener, admin_address) = bind(config.admin_listen)?;
        info!(role = "admin", address = %admin_address, "listening");
        Ok(Self {
            config,
            registry_addresses,
            admin_address,
            listeners,
            admin_listener,
            ports,
            health,
            metrics,
            access,
            stopping: CancellationToken::new(),
            breaking_off: CancellationToken::new(),
            connections: TaskTracker::new(),
            admin_stopping: CancellationToken::new(),
        })
    }

    /// The TLS of both ports, for a reload.
    pub fn ports(&self) -> Ports {
        self.ports.clone()
    }

    /// The bound addresses of the registry API.
    pub fn registry_addresses(&self) -> &[SocketAddr] {
        &self.registry_addresses
    }

    /// The bound address of the admin port.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// What the admin port tells about.
    fn admin(&self, registry: Registry, cache: Cache, proxy: &Arc<Proxy>) -> Admin {
        Admin {
            registry,
            health: self.health.clone(),
            verifications: Verifications::new(cache.clone()),
            cache,
            proxy: Arc::clone(proxy),
            peers: Arc::new(Peers::new(&self.config)),
            access: Arc::clone(&self.access),
        }
    }

    /// Serves until `stop` is cancelled, then until the responses in progress have ended or the drain timeout is over.
    /// The admin port is served to the end.
    pub async fn serve(
        self,
        proxy: Arc<Proxy>,
        cache: Cache,
        registry: Registry,
        stop: CancellationToken,
    ) {
        let connections = self.connections(Arc::clone(&proxy));
        let admin = self.admin(registry, cache, &proxy);
        let admin_serving = tokio::spawn(serve_admin(
            self.admin_listener,
            AcceptFaults::new(self.metrics.clone()),
            admin,
            self.ports.admin.clone(),
            self.admin_stopping.clone(),
        ));
        let tending = tokio::spawn(self.ports.clone().tend(self.admin_stopping.clone()));
        self.metrics.takes_at_once(self.config.connections_max);
        let places = Arc::new(Semaphore::new(self.config.connections_max));
        let accepting = TaskTracker::new();
        for listener in self.listeners {
            let acceptor = Acceptor {
                listener,
                places: Arc::clone(&places),
                connections: connections.clone(),
            };
            accepting.spawn(acceptor.run());
        }
        self.health.set_listening();
        stop.cancelled().await;
        self.health.set_draining();
        self.stopping.cancel();
        accepting.close();
        accepting.wait().await;
        self.connections.close();
        let open = self.connections.len();
        if open > 0 {
            info!(connections = open, "draining");
        }
        if timeout(self.config.drain_timeout, self.connections.wait())
            .await
            .is_err()
        {
            warn!(
                connections = self.connections.len(),
                "drain timeout is over, breaking off"
            );
            self.breaking_off.cancel();
            self.connections.wait().await;
        }
        self.admin_stopping.cancel();
        // A panic there is no reason not to stop.
        let _ = admin_serving.await;
        let _ = tending.await;
    }

    /// What all connections share.
    fn connections(&self, proxy: Arc<Proxy>) -> Connections {
        let front = Arc::new(Front {
            proxy,
            peers: Peers::new(&self.config),
            callers: Callers::new(Arc::clone(&self.access)),
            access: Arc::clone(&self.access),
            limits: Limits::new(&self.config, self.metrics.clone()),
            metrics: self.metrics.clone(),
        });
        let per_source = self.config.connections_per_source();
        Connections {
            front,
            tls: self.ports.registry.clone(),
            sources: Arc::new(Sources::new(per_source)),
            config: Arc::new(self.config.clone()),
            streams: Arc::new(StreamPlaces::new(&self.config)),
            stopping: self.stopping.clone(),
            breaking_off: self.breaking_off.clone(),
            tracker: self.connections.clone(),
        }
    }
}

/// One registry listener.
struct Acceptor {
    listener: TcpListener,
    places: Arc<Semaphore>,
    connections: Connections,
}

impl Acceptor {
    async fn run(self) {
        let stopping = self.connections.stopping.clone();
        let mut faults = AcceptFaults::new(self.connections.front.metrics.clone());
        loop {
            let place = Arc::clone(&self.places).acquire_owned();
            // Either arm may be dropped: nothing is accepted yet, and a place goes back.
            let place = tokio::select! {
                () = stopping.cancelled() => return,
                place = place => place,
            };
            let Ok(place) = place else { return };
            // Accepting is cancel-safe: a connection that is not returned is still in the backlog.
            let accepted = tokio::select! {
                () = stopping.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    faults.over();
                    self.spawn(tcp, unmapped_address(peer), place);
                }
                // Nothing is lost with a pause.
                Err(error) => tokio::select! {
                    () = stopping.cancelled() => return,
                    () = sleep(faults.met(&error)) => {}
                },
            }
        }
    }

    fn spawn(&self, tcp: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let connections = self.connections.clone();
        // Called in there, what it makes is kept once.
        self.connections.tracker.spawn(async move {
            let _place = place;
            connections.serve(tcp, peer).await;
        });
    }
}

/// Connections that wait to be accepted; the kernel may allow fewer (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// How often the files of certificates are looked at while nobody comes.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let failed = |source| BindError { address, source };
    let listener = listen(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of a predecessor may still be in their last minute (TIME_WAIT).
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
