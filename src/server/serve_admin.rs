//! The connections of the admin port.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::accept::AcceptFaults;
use super::admin::Admin;
use super::peer::Peer;
use super::tls::Tls;
use crate::net::unmapped_address;

/// Serves until `stopping` is cancelled.
pub(super) async fn serve_admin(
    listener: TcpListener,
    mut faults: AcceptFaults,
    admin: Admin,
    tls: Option<Tls>,
    stopping: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
        let peer = Peer::plain(unmapped_address(address));
        let serving = serve(admin.clone(), tls.clone(), tcp, peer);
        let stopping = stopping.clone();
        tokio::spawn(async move {
            let _place = place;
            // A scrape that is cut at the very end is scraped again.
            tokio::select! {
                () = serving => {}
                () = stopping.cancelled() => {}
            }
        });
    }
}

async fn serve(admin: Admin, tls: Option<Tls>, tcp: TcpStream, peer: Peer) {
    let Some(tls) = tls else {
        return serve_requests(admin, tcp, peer).await;
    };
    if let Some((stream, peer)) = tls.accept(tcp, peer, HEADER_READ_TIMEOUT).await {
        serve_requests(admin, stream, peer).await;
    }
}

async fn serve_requests<I>(admin: Admin, connection: I, peer: Peer)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| admin.clone().handle(peer.clone(), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .serve_connection(TokioIo::new(connection), service);
    // Whoever leaves is nobody's fault.
    let _ = serving.await;
}

const CONNECTIONS_MAX: usize = 64;
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
