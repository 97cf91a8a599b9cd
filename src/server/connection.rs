//! One client connection: counts what goes out, gives up on a client that takes nothing, and breaks off visibly.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::metrics::Metrics;
use crate::net::Sent;

/// A TCP connection whose writes are counted and bounded in time.
#[derive(Debug)]
pub(super) struct Connection {
    tcp: TcpStream,
    handle: ConnectionHandle,
    write_idle_timeout: Duration,
    /// Runs while a write waits for the client.
    waiting: Option<Pin<Box<Sleep>>>,
    metrics: Metrics,
}

/// What a request knows of its connection.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionHandle {
    pub(super) sent: Sent,
    broken: Arc<AtomicBool>,
}

impl ConnectionHandle {
    /// A body failed: the connection ends by a reset, so that no client takes its end for that of the body.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }
}

impl Connection {
    pub(super) fn new(tcp: TcpStream, write_idle_timeout: Duration, metrics: Metrics) -> Self {
        metrics.connected();
        let handle = ConnectionHandle::default();
        Self {
            tcp,
            handle,
            write_idle_timeout,
            waiting: None,
            metrics,
        }
    }

    pub(super) fn handle(&self) -> ConnectionHandle {
        self.handle.clone()
    }

    /// Counts what was written; while nothing is, the client's time runs.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(result) => {
                self.waiting = None;
                if let Ok(bytes) = &result {
                    self.handle.sent.add(*bytes);
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                let patience = self.write_idle_timeout;
                let waiting = self
                    .waiting
                    .get_or_insert_with(|| Box::pin(sleep(patience)));
                match waiting.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        waiting.as_mut().reset(Instant::now() + patience);
                        self.handle.break_off();
                        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                    }
                }
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, slices);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        // Without this the HTTP library copies every body into one buffer.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.handle.broken.load(Ordering::Acquire) {
            // No orderly end: the reset follows when the socket is closed.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.disconnected();
        if self.handle.broken.load(Ordering::Acquire) {
            // A socket that cannot be told ends in order, and then short of its length.
            let _ = rustix::net::sockopt::set_socket_linger(&self.tcp, Some(Duration::ZERO));
        }
    }
}
