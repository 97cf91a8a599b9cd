//! One connection of the registry API, from its first byte to its last.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::config::Config;
use super::connection::{Connection, ConnectionHandle, SecureConnection};
use super::handle::handle;
use super::metrics::{RecentSeries, Rejection};
use super::peer::Peer;
use super::shared::{Connected, Front};
use super::sources::{Seat, Sources};
use super::stream::{Progress, Watched};
use super::tls::{ALPN_HTTP2, Tls};
use crate::net::{Chain, Source};

/// What all connections share. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    pub(super) front: Arc<Front>,
    pub(super) tls: Option<Tls>,
    pub(super) sources: Arc<Sources>,
    pub(super) config: Arc<Config>,
    pub(super) streams: Arc<StreamPlaces>,
    /// Cancelled when no more requests are taken.
    pub(super) stopping: CancellationToken,
    /// Cancelled when the time to end is over.
    pub(super) breaking_off: CancellationToken,
    pub(super) tracker: TaskTracker,
}

impl Connections {
    /// Serves a connection that comes from `address`.
    pub(super) async fn serve(self, tcp: TcpStream, address: SocketAddr) {
        let metrics = self.front.metrics.clone();
        let mut connection = Connection::new(tcp, self.config.write_idle_timeout, metrics);
        let identifying = self.front.peers.identify(&mut connection, address);
        // Nothing is lost with half a header: nothing has been asked yet.
        let identified = tokio::select! {
            () = self.stopping.cancelled() => return,
            identified = identifying => identified,
        };
        let Some(peer) = identified.map(Peer::plain) else {
            return;
        };
        let Some(seat) = self.seat(peer.address) else {
            return;
        };
        let Some(tls) = &self.tls else {
            let handle = connection.handle();
            return self.serve_http1(connection, handle, &seat, peer).await;
        };
        connection.will_be_encrypted();
        // What is larger than a connection in the clear has its own place, so that the task of one that waits is small.
        Box::pin(self.serve_over_tls(tls, connection, &seat, peer)).await;
    }

    async fn serve_over_tls(
        &self,
        tls: &Tls,
        connection: Connection,
        seat: &Arc<Seat>,
        peer: Peer,
    ) {
        let accepting = tls.accept(connection, peer.clone(), self.config.header_read_timeout);
        // Neither is anything lost with half a handshake.
        let accepted = tokio::select! {
            () = self.stopping.cancelled() => return,
            () = seat.ended() => return made_room(peer.address),
            accepted = Box::pin(accepting) => accepted,
        };
        let Some((stream, peer)) = accepted else {
            return;
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2);
        let connection = SecureConnection::new(stream);
        let handle = connection.handle();
        if is_http2 {
            Box::pin(self.serve_http2(connection, handle, seat, peer)).await;
        } else {
            Box::pin(self.serve_http1(connection, handle, seat, peer)).await;
        }
    }

    /// The place of a connection among those of its source; `None` where there is none. A balancer speaks for many.
    fn seat(&self, peer: SocketAddr) -> Option<Arc<Seat>> {
        let front = &self.front;
        if front.peers.is_trusted(peer.ip()) {
            return Some(Sources::free_seat());
        }
        let source = Source::of(peer.ip());
        let seat = self.sources.seat(source);
        if seat.is_none() {
            front.metrics.rejected(Rejection::ConnectionsPerSource);
            self.sources.told(source);
        }
        seat
    }

    async fn serve_http1<I>(
        &self,
        connection: I,
        ending: ConnectionHandle,
        seat: &Arc<Seat>,
        peer: Peer,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let of_connection = Arc::new(ending.clone());
        let (address, seated) = (peer.address, Arc::clone(seat));
        let connected = self.connected(peer);
        let service = service_fn(move |request| {
            of_connection.head_is_whole();
            let (connected, connection) = (Arc::clone(&connected), Arc::clone(&of_connection));
            handle(connected, connection, seated.serve(), request)
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.header_read_timeout)
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_header_size(BUFFER_BYTES_MAX)
            .writev(true)
            .serve_connection(TokioIo::new(connection), service);
        let mut serving = std::pin::pin!(serving);
        let served = async {
            // The connection is not dropped but told, and served to its end.
            tokio::select! {
                served = serving.as_mut() => return served,
                () = self.stopping.cancelled() => serving.as_mut().graceful_shutdown(),
            }
            serving.as_mut().await
        };
        // Dropped at the end of the drain, what is still under way is reset, not ended in order.
        let served = tokio::select! {
            served = served => served,
            () = self.breaking_off.cancelled() => return ending.break_off(),
            // Nothing is lost: it is idle, or within its head. Or an answer is leaving yet, of which TLS keeps some back.
            () = seat.ended() => {
                if ending.has_unsent() && seat.may_take_leave() {
                    serving.as_mut().graceful_shutdown();
                    self.take_leave(serving, &ending).await;
                }
                return made_room(address);
            }
        };
        match served {
            // The library's patience for a head is also that for the next request to begin.
            Err(error) if error.is_timeout() && !ending.is_within_head() => {
                debug!(peer = %address, "idle connection closed");
            }
            Err(error) => {
                if error.is_parse() {
                    self.front.metrics.rejected(Rejection::Head);
                }
                debug!(peer = %address, error = %Chain(&error), "connection ended");
            }
            Ok(()) => {}
        }
    }

    /// Lets the rest of what a connection was answered leave, for a while, or to the end of the drain.
    async fn take_leave(&self, serving: impl Future, ending: &ConnectionHandle) {
        // Whichever comes first, the connection is dropped: in order, or broken off.
        tokio::select! {
            _ = timeout(FAREWELL, serving) => {}
            () = self.breaking_off.cancelled() => ending.break_off(),
        }
    }

    fn connected(&self, peer: Peer) -> Arc<Connected> {
        Arc::new(Connected {
            front: Arc::clone(&self.front),
            peer,
            series: RecentSeries::default(),
        })
    }

    async fn serve_http2(
        &self,
        connection: SecureConnection,
        ending: ConnectionHandle,
        seat: &Arc<Seat>,
        peer: Peer,
    ) {
        let (address, seated) = (peer.address, Arc::clone(seat));
        let streams = Streams {
            connections: self.clone(),
            open: watch::Sender::new(0),
        };
        let mut open = streams.open.subscribe();
        ending.talks_on();
        let is_shared = self.front.peers.is_trusted(address.ip());
        let connected = self.connected(peer);
        let source = (!is_shared).then(|| Source::of(address.ip()));
        let places = self.streams.of(source);
        let of_connection = ending.clone();
        let service = service_fn(move |request| {
            let (connected, places) = (Arc::clone(&connected), places.clone());
            let (serving, stream) = (seated.serve(), Arc::new(of_connection.of_stream()));
            async move {
                // It waits as a connection would that is not accepted yet.
                Progress::of_task().take_places(&places).await;
                handle(connected, stream, serving, request).await
            }
        });
        let serving = http2::Builder::new(streams)
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
            .max_local_error_reset_streams(RESETS_OF_ERRORS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .header_table_size(HEADER_TABLE_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_send_buf_size(UNSENT_BYTES_MAX)
            .serve_connection(TokioIo::new(connection), service);
        let mut serving = std::pin::pin!(serving);
        let patience = self.config.header_read_timeout;
        let served = async {
            // As above; and a connection on which nothing is asked goes as one does whose next head does not come.
            tokio::select! {
                served = serving.as_mut() => return Some(served),
                () = self.stopping.cancelled() => {}
                () = idle(&mut open, patience) => {}
            }
            serving.as_mut().graceful_shutdown();
            // Whoever does not answer that, and asks nothing, is not waited for.
            tokio::select! {
                served = serving.as_mut() => Some(served),
                () = idle(&mut open, patience) => None,
            }
        };
        let served = tokio::select! {
            served = served => served,
            () = self.breaking_off.cancelled() => return ending.break_off(),
            // As above; whoever was answered is told, too, that nothing more is to be asked.
            () = seat.ended() => {
                if ending.has_unsent() && seat.may_take_leave() {
                    serving.as_mut().graceful_shutdown();
                    self.take_leave(serving, &ending).await;
                }
                return made_room(address);
            }
        };
        match served {
            Some(Err(error)) => debug!(peer = %address, error = %Chain(&error), "connection ended"),
            Some(Ok(())) => {}
            None => debug!(peer = %address, "idle connection closed"),
        }
    }
}

/// A connection that waited was closed for another one of its source.
fn made_room(peer: SocketAddr) {
    debug!(%peer, "connection made room for another");
}

/// Places for requests that share a connection with others: no more at once than connections, for each source and for all.
#[derive(Debug)]
pub(super) struct StreamPlaces {
    all: Arc<Semaphore>,
    per_source: usize,
    sources: Mutex<HashMap<Source, Weak<Semaphore>>>,
}

impl StreamPlaces {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            all: Arc::new(Semaphore::new(config.connections_max)),
            per_source: config.connections_per_source(),
            sources: Mutex::default(),
        }
    }

    /// Where the requests of one connection have to have a place; no source is a balancer, which speaks for many.
    fn of(&self, source: Option<Source>) -> Vec<Arc<Semaphore>> {
        let mut places = Vec::new();
        if let Some(source) = source {
            let mut sources = self.sources.lock();
            // No more of them than there are connections.
            sources.retain(|_, it| it.strong_count() > 0);
            let held = sources.entry(source).or_default();
            places.push(held.upgrade().unwrap_or_else(|| {
                let new = Arc::new(Semaphore::new(self.per_source));
                *held = Arc::downgrade(&new);
                new
            }));
        }
        places.push(Arc::clone(&self.all));
        places
    }
}

/// What runs the requests of one connection of HTTP/2.
#[derive(Clone, Debug)]
struct Streams {
    connections: Connections,
    /// How many there are.
    open: watch::Sender<usize>,
}

/// A request under way.
struct Open(watch::Sender<usize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
{
    fn execute(&self, serving: F) {
        self.open.send_modify(|open| *open += 1);
        let open = Open(self.open.clone());
        let watched = Watched::new(serving, self.connections.config.write_idle_timeout);
        self.connections.tracker.spawn(async move {
            let _open = open;
            watched.await;
        });
    }
}

/// Waits until nothing was under way for as long as this. Cancel-safe.
async fn idle(open: &mut watch::Receiver<usize>, patience: Duration) {
    loop {
        // A sender that is gone sends no more.
        let _ = open.wait_for(|open| *open == 0).await;
        if timeout(patience, open.wait_for(|open| *open > 0))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// How long the rest of an answer has to leave on a connection that makes room.
const FAREWELL: Duration = Duration::from_secs(5);
/// A request head is at most this large, and so much of a response waits in the HTTP library before it asks for more.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Requests at once on one connection of HTTP/2: no fewer, says RFC 9113 §6.5.2.
const STREAMS_MAX: u32 = 100;
/// Requests that were taken back before we came to them; who sends more ("rapid reset", CVE-2023-44487) is cut off.
const RESETS_PENDING_MAX: usize = 20;
/// Streams that we had to reset for what the client did wrong on them; who does more wrong is cut off.
const RESETS_OF_ERRORS_MAX: usize = 64;
/// A request's head, decoded; from this the library also knows how many CONTINUATION frames are too many (CVE-2024-27316).
const HEADER_BYTES_MAX: u32 = 32 << 10;
/// What the compression of heads remembers: the protocol's own default.
const HEADER_TABLE_BYTES: u32 = 4096;
/// What we take of requests' bodies, which nobody reads: the protocol's own default. What limits a pull is the client's
/// window.
const WINDOW_BYTES: u32 = 65_535;
/// A frame from the client: the least that may be allowed.
const FRAME_BYTES_MAX: u32 = 16 << 10;
/// What a stream has handed over and its client has not taken.
const UNSENT_BYTES_MAX: usize = 256 << 10;
