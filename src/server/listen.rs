//! Accepting connections, and letting them go.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::Registry;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::accept::AcceptFaults;
use super::access::Access;
use super::admin::Admin;
use super::config::Config;
use super::connection::Connection;
use super::handle::{Front, handle};
use super::health::Health;
use super::limits::Limits;
use super::metrics::{Metrics, Rejection};
use super::peer::Peer;
use super::peers::Peers;
use super::sources::{Seat, Sources};
use super::verify::Verifications;
use crate::cache::Cache;
use crate::net::{Chain, Source, unmapped_address};
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

/// Bound listeners, and what serves them.
#[derive(Debug)]
pub struct Server {
    config: Config,
    registry_addresses: Vec<SocketAddr>,
    admin_address: SocketAddr,
    listeners: Vec<TcpListener>,
    admin_listener: TcpListener,
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

impl Server {
    /// Binds every address.
    ///
    /// # Errors
    ///
    /// When one of them cannot be listened on.
    pub fn bind(
        config: Config,
        health: Health,
        metrics: Metrics,
        access: Arc<Access>,
    ) -> Result<Self, BindError> {
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
            health,
            metrics,
            access,
            stopping: CancellationToken::new(),
            breaking_off: CancellationToken::new(),
            connections: TaskTracker::new(),
            admin_stopping: CancellationToken::new(),
        })
    }

    /// The bound addresses of the registry API.
    pub fn registry_addresses(&self) -> &[SocketAddr] {
        &self.registry_addresses
    }

    /// The bound address of the admin port.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
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
        let admin = Admin {
            registry,
            health: self.health.clone(),
            verifications: Verifications::new(cache.clone()),
            cache,
            proxy: Arc::clone(&proxy),
            peers: Arc::new(Peers::new(&self.config)),
            access: Arc::clone(&self.access),
        };
        let admin_serving = tokio::spawn(serve_admin(
            self.admin_listener,
            AcceptFaults::new(self.metrics.clone()),
            admin,
            self.admin_stopping.clone(),
        ));
        self.metrics.takes_at_once(self.config.connections_max);
        let front = Arc::new(Front {
            proxy,
            peers: Peers::new(&self.config),
            access: self.access,
            limits: Limits::new(&self.config, self.metrics.clone()),
            metrics: self.metrics,
        });
        let per_source = self.config.connections_per_source();
        let sources = Arc::new(Sources::new(per_source));
        let places = Arc::new(Semaphore::new(self.config.connections_max));
        let accepting = TaskTracker::new();
        for listener in self.listeners {
            let acceptor = Acceptor {
                listener,
                places: Arc::clone(&places),
                front: Arc::clone(&front),
                sources: Arc::clone(&sources),
                config: self.config.clone(),
                stopping: self.stopping.clone(),
                breaking_off: self.breaking_off.clone(),
                connections: self.connections.clone(),
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
    }
}

/// One registry listener.
struct Acceptor {
    listener: TcpListener,
    places: Arc<Semaphore>,
    front: Arc<Front>,
    sources: Arc<Sources>,
    config: Config,
    stopping: CancellationToken,
    breaking_off: CancellationToken,
    connections: TaskTracker,
}

impl Acceptor {
    async fn run(self) {
        let mut faults = AcceptFaults::new(self.front.metrics.clone());
        loop {
            let place = Arc::clone(&self.places).acquire_owned();
            // Either arm may be dropped: nothing is accepted yet, and a place goes back.
            let place = tokio::select! {
                () = self.stopping.cancelled() => return,
                place = place => place,
            };
            let Ok(place) = place else { return };
            // Accepting is cancel-safe: a connection that is not returned is still in the backlog.
            let accepted = tokio::select! {
                () = self.stopping.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    faults.over();
                    self.spawn(tcp, unmapped_address(peer), place);
                }
                // Nothing is lost with a pause.
                Err(error) => tokio::select! {
                    () = self.stopping.cancelled() => return,
                    () = sleep(faults.met(&error)) => {}
                },
            }
        }
    }

    fn spawn(&self, tcp: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let (front, stopping) = (Arc::clone(&self.front), self.stopping.clone());
        let sources = Arc::clone(&self.sources);
        let breaking_off = self.breaking_off.clone();
        let Config {
            header_read_timeout,
            write_idle_timeout,
            ..
        } = self.config;
        self.connections.spawn(async move {
            let _place = place;
            let mut connection = Connection::new(tcp, write_idle_timeout, front.metrics.clone());
            // Nothing is lost with half a header: nothing has been asked yet.
            let identified = tokio::select! {
                () = stopping.cancelled() => return,
                identified = front.peers.identify(&mut connection, peer) => identified,
            };
            let Some(peer) = identified else { return };
            let Some(seat) = seat(&front, &sources, peer) else {
                return;
            };
            let (seated, metrics) = (Arc::clone(&seat), front.metrics.clone());
            let seen = Peer::plain(peer);
            let (of_connection, ending) = (connection.handle(), connection.handle());
            let service = service_fn(move |request| {
                of_connection.head_is_whole();
                handle(
                    Arc::clone(&front),
                    seen.clone(),
                    of_connection.clone(),
                    seated.serve(),
                    request,
                )
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_read_timeout)
                .max_buf_size(BUFFER_BYTES_MAX)
                .max_header_size(BUFFER_BYTES_MAX)
                .writev(true)
                .serve_connection(TokioIo::new(connection), service);
            let mut serving = std::pin::pin!(serving);
            let served = async {
                // The connection is not dropped but told, and served to its end.
                tokio::select! {
                    served = serving.as_mut() => return served,
                    () = stopping.cancelled() => serving.as_mut().graceful_shutdown(),
                }
                serving.await
            };
            // Dropped at the end of the drain, what is still under way is reset, not ended in order.
            let served = tokio::select! {
                served = served => served,
                () = breaking_off.cancelled() => return ending.break_off(),
                // Nothing is lost: it is idle, or within its head.
                () = seat.ended() => return debug!(%peer, "connection made room for another"),
            };
            match served {
                // The library's patience for a head is also that for the next request to begin.
                Err(error) if error.is_timeout() && !ending.is_within_head() => {
                    debug!(%peer, "idle connection closed");
                }
                Err(error) => {
                    if error.is_parse() {
                        metrics.rejected(Rejection::Head);
                    }
                    debug!(%peer, error = %Chain(&error), "connection ended");
                }
                Ok(()) => {}
            }
        });
    }
}

/// The place of a connection among those of its source; `None` where there is none. A balancer speaks for many.
fn seat(front: &Front, sources: &Arc<Sources>, peer: SocketAddr) -> Option<Arc<Seat>> {
    if front.peers.is_trusted(peer.ip()) {
        return Some(Sources::free_seat());
    }
    let source = Source::of(peer.ip());
    let seat = sources.seat(source);
    if seat.is_none() {
        front.metrics.rejected(Rejection::ConnectionsPerSource);
        sources.told(source);
    }
    seat
}

async fn serve_admin(
    listener: TcpListener,
    mut faults: AcceptFaults,
    admin: Admin,
    stopping: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        // Accepting is cancel-safe.
        let accepted = tokio::select! {
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                sleep(faults.met(&error)).await;
                continue;
            }
        };
        faults.over();
        let (admin, stopping) = (admin.clone(), stopping.clone());
        tokio::spawn(async move {
            let _place = place;
            let peer = Peer::plain(unmapped_address(address));
            let service = service_fn(move |request| admin.clone().handle(peer.clone(), request));
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(ADMIN_HEADER_READ_TIMEOUT)
                .serve_connection(TokioIo::new(tcp), service);
            // A scrape that is cut at the very end is scraped again.
            tokio::select! {
                _ = serving => {}
                () = stopping.cancelled() => {}
            }
        });
    }
}

/// A request head is at most this large, and so much of a response waits in the HTTP library before it asks for more.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Connections that wait to be accepted; the kernel may allow fewer (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
const ADMIN_CONNECTIONS_MAX: usize = 64;
const ADMIN_HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);

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
