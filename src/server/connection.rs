//! One client connection: gives up on a client that takes nothing, and breaks off visibly; in the clear or encrypted.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SendFlags;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::handshake::Wire;
use super::metrics::Metrics;
use super::send_buffer::SendBuffer;
use super::sendfile::{Attempt, By, FileQueue, FileSender, First, Mark};
use crate::net::{LineEnds, Sent};

/// A TCP connection whose writes are bounded in time.
#[derive(Debug)]
pub(super) struct Connection {
    tcp: TcpStream,
    handle: ConnectionHandle,
    /// Whether what passes is what is said; else that is looked at where it is not encrypted.
    is_plain: bool,
    write_idle_timeout: Duration,
    patience: Patience,
    sender: FileSender,
    /// Runs from our end on, while the client's is waited for.
    parting: Option<Pin<Box<Sleep>>>,
    line_ends: LineEnds,
    buffer: SendBuffer,
    metrics: Metrics,
}

/// How long a client may take nothing.
#[derive(Debug, Default)]
struct Patience {
    /// Since when it has taken nothing, while a write waits for it.
    waiting_since: Option<Instant>,
    /// One for all waits of the connection, since a quick client makes us wait for moments, and often.
    limit: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Waits until the client has taken nothing for so long. From then on its time begins anew.
    fn poll_over(&mut self, cx: &mut Context<'_>, allowed: Duration) -> Poll<()> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let deadline = since + allowed;
        let limit = self
            .limit
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            std::task::ready!(limit.as_mut().poll(cx));
            // It ran since an earlier wait, perhaps.
            if limit.deadline() >= deadline {
                self.waiting_since = None;
                return Poll::Ready(());
            }
            limit.as_mut().reset(deadline);
        }
    }

    /// The client took something, or is not to blame.
    fn renew(&mut self) {
        self.waiting_since = None;
    }
}

/// What a request knows of its connection.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionHandle {
    pub(super) sent: Sent,
    /// The files that this connection has still to send; `None` where it cannot send any by themselves.
    files: Option<FileQueue>,
    broken: Arc<AtomicBool>,
    /// Whether bytes have come since the last head was whole.
    within_head: Arc<AtomicBool>,
    /// Whether a line feed has come that no carriage return came before.
    bare_feed: Arc<AtomicBool>,
    /// Whether something of an answer that has ended may be on this side yet. Where answers share the connection, nobody knows
    /// when the last frame of one was written, so that it stays so.
    unsent: Arc<AtomicBool>,
    /// Whether the client has things to say while it is answered.
    talks_on: Arc<AtomicBool>,
    /// Whether a large body comes next.
    expects_much: Arc<AtomicBool>,
    /// Whether it is one of several that share the connection: then it knows nothing of what is sent, and cannot break off
    /// the others.
    is_stream: bool,
}

impl ConnectionHandle {
    /// What a request knows that shares this connection with others.
    pub(super) fn of_stream(&self) -> Self {
        Self {
            is_stream: true,
            expects_much: Arc::clone(&self.expects_much),
            unsent: Arc::clone(&self.unsent),
            ..Self::default()
        }
    }

    /// Where files are queued that go out by themselves.
    pub(super) fn files(&self) -> Option<&FileQueue> {
        self.files.as_ref()
    }

    /// Whether others share the connection.
    pub(super) fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// A body failed: the connection ends by a reset, so that no client takes its end for that of the body.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// An answer was handed over to its end.
    pub(super) fn has_answered(&self) {
        self.unsent.store(true, Ordering::Relaxed);
    }

    /// Whether the end of an answer may not have left yet.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent.load(Ordering::Relaxed)
    }

    /// A large body is about to be sent.
    pub(super) fn expect_much(&self) {
        self.expects_much.store(true, Ordering::Relaxed);
    }

    fn flushed(&self, flushed: &Poll<io::Result<()>>) {
        // Of several, one may have ended whose last frame comes next.
        if flushed.is_ready() && !self.talks_on.load(Ordering::Relaxed) {
            self.unsent.store(false, Ordering::Relaxed);
        }
    }

    /// The client says what it has taken while it takes it, as in HTTP/2, to the very end and after it. A socket that is closed
    /// with such words unread, or gets them later, is reset, and what was not taken yet is lost. So they are listened to.
    pub(super) fn talks_on(&self) {
        self.talks_on.store(true, Ordering::Relaxed);
    }

    /// A request's head was read to its end.
    pub(super) fn head_is_whole(&self) {
        self.within_head.store(false, Ordering::Relaxed);
    }

    /// Whether a head has begun and not ended.
    pub(super) fn is_within_head(&self) -> bool {
        self.within_head.load(Ordering::Relaxed)
    }

    /// Looks at what a client said.
    fn heard(&self, line_ends: &mut LineEnds, new: &[u8]) {
        if !new.is_empty() {
            self.within_head.store(true, Ordering::Relaxed);
        }
        if line_ends.has_bare_feed(new) {
            self.bare_feed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether any line so far ended in a bare line feed. There are only lines here, as far as requests are answered: what has
    /// a body is refused.
    pub(super) fn has_bare_feed(&self) -> bool {
        self.bare_feed.load(Ordering::Relaxed)
    }
}

impl Connection {
    pub(super) fn new(tcp: TcpStream, write_idle_timeout: Duration, metrics: Metrics) -> Self {
        metrics.connected();
        prepare(&tcp);
        let handle = ConnectionHandle {
            files: Some(FileQueue::default()),
            ..ConnectionHandle::default()
        };
        Self {
            tcp,
            handle,
            is_plain: true,
            write_idle_timeout,
            patience: Patience::default(),
            sender: FileSender::default(),
            parting: None,
            line_ends: LineEnds::default(),
            buffer: SendBuffer::default(),
            metrics,
        }
    }

    pub(super) fn handle(&self) -> ConnectionHandle {
        self.handle.clone()
    }

    /// What comes from now on is encrypted. To be called before anybody has a handle.
    pub(super) fn will_be_encrypted(&mut self) {
        self.is_plain = false;
        self.handle.files = None;
    }

    /// What was read so far was no part of a request.
    pub(super) fn requests_begin(&mut self) {
        self.line_ends = LineEnds::default();
        self.handle.bare_feed.store(false, Ordering::Relaxed);
    }

    /// Sees to the send buffer, before each large body and for most writes in no time.
    fn see_to_buffer(&mut self) {
        let expects_much = &self.handle.expects_much;
        if expects_much.load(Ordering::Relaxed) {
            expects_much.store(false, Ordering::Relaxed);
            self.buffer.expect_much();
        }
        self.buffer.see_to(&self.tcp);
    }

    /// What comes first of what is to be written.
    fn first(&mut self, slices: &[IoSlice<'_>]) -> io::Result<First> {
        self.see_to_buffer();
        let Some(files) = &self.handle.files else {
            return Ok(First::Memory(None));
        };
        files.check().inspect_err(|_| self.handle.break_off())?;
        Ok(files.first(slices))
    }

    /// Counts what was written; while nothing is, the client's time runs.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match written {
            Poll::Ready(result) => result,
            Poll::Pending => {
                let allowed = self.write_idle_timeout;
                std::task::ready!(self.patience.poll_over(cx, allowed));
                self.write_at_last(bytes)
            }
        };
        if let Ok(bytes) = &written {
            self.count(*bytes);
        }
        Poll::Ready(written)
    }

    fn count(&mut self, bytes: usize) {
        self.patience.renew();
        self.buffer.wrote(bytes);
    }

    /// Sends some of a file; while nothing goes, the client's time runs.
    fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        bytes: (Mark, usize),
    ) -> Poll<io::Result<usize>> {
        let Some(files) = &self.handle.files else {
            return Poll::Ready(Ok(0));
        };
        let mut attempt = self.sender.poll_send(&self.tcp, cx, files, bytes);
        if matches!(attempt, Attempt::Full) {
            let allowed = self.write_idle_timeout;
            std::task::ready!(self.patience.poll_over(cx, allowed));
            attempt = self.sender.send_at_last(&self.tcp, cx, bytes.1);
        }
        match attempt {
            Attempt::Sent(bytes, by) => {
                if by == By::Kernel {
                    self.metrics.sent_from_file(bytes as u64);
                }
                self.count(bytes);
                Poll::Ready(Ok(bytes))
            }
            Attempt::Full => {
                self.handle.break_off();
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Attempt::Busy => {
                self.patience.renew();
                Poll::Pending
            }
            Attempt::Lost(error) => Poll::Ready(Err(error)),
            Attempt::Failed(error) => {
                // Before the end is told: this end closes the connection.
                self.handle.break_off();
                Poll::Ready(Err(io::Error::other(error)))
            }
        }
    }

    /// Whether the client has something to say after our end: a socket that is closed with words unread is reset, and what was
    /// not taken yet is lost (RFC 9112 §9.6). With HTTP/1 they are requests that are not answered any more, or the body of one
    /// that was refused.
    fn says_more(&self) -> bool {
        self.handle.talks_on.load(Ordering::Relaxed)
            || rustix::io::ioctl_fionread(&self.tcp).is_ok_and(|unread| unread > 0)
    }

    /// Hears out a client that was told that nothing more comes, for as long as it may take nothing.
    fn part(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.write_idle_timeout;
        let parting = self
            .parting
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        if parting.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut heard = [0; HEARD_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut heard);
            let read = std::task::ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }

    /// Writes to a client whose time is over. The kernel says that a socket is writable only when a good part of what
    /// waits in it is gone, which takes a slow client longer than that; but it takes a few bytes as soon as there is room for
    /// them. So a client that has taken anything at all is told from one that has not.
    fn write_at_last(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.tcp, bytes, flags) {
            Ok(written) => Ok(written),
            Err(Errno::AGAIN) => {
                self.handle.break_off();
                Err(io::ErrorKind::TimedOut.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buffer);
        let new = buffer.filled().get(before..).unwrap_or_default();
        let Self {
            handle,
            line_ends,
            is_plain,
            ..
        } = &mut *self;
        if *is_plain {
            handle.heard(line_ends, new);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let First::File(mark, len) = self.first(&[IoSlice::new(bytes)])? {
            return self.poll_send_file(cx, (mark, len));
        }
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.written(cx, written, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match self.first(slices)? {
            First::File(mark, len) => return self.poll_send_file(cx, (mark, len)),
            First::Memory(Some(before)) => {
                let memory = slices.get(..before).unwrap_or_default();
                let Self { tcp, sender, .. } = &mut *self;
                sender.poll_send_more(tcp, cx, memory)
            }
            First::Memory(None) => Pin::new(&mut self.tcp).poll_write_vectored(cx, slices),
        };
        let first = slices.iter().find(|it| !it.is_empty());
        self.written(cx, written, first.map_or(&[], |it| it))
    }

    fn is_write_vectored(&self) -> bool {
        // Without this the HTTP library copies every body into one buffer.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.tcp).poll_flush(cx);
        if self.is_plain {
            self.handle.flushed(&flushed);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.handle.broken.load(Ordering::Acquire) {
            // No orderly end: the reset follows when the socket is closed.
            return Poll::Ready(Ok(()));
        }
        if self.parting.is_none() {
            std::task::ready!(Pin::new(&mut self.tcp).poll_shutdown(cx))?;
            if !self.says_more() {
                return Poll::Ready(Ok(()));
            }
        }
        self.part(cx).map(Ok)
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

impl Wire for Connection {
    fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

/// A connection that is encrypted. What goes into it counts as sent, of which little is kept back.
#[derive(Debug)]
pub(super) struct SecureConnection {
    tls: TlsStream<Connection>,
    handle: ConnectionHandle,
    line_ends: LineEnds,
}

impl SecureConnection {
    /// Wraps a connection that was told that it will be encrypted.
    pub(super) fn new(tls: TlsStream<Connection>) -> Self {
        Self {
            handle: tls.get_ref().0.handle(),
            tls,
            line_ends: LineEnds::default(),
        }
    }

    pub(super) fn handle(&self) -> ConnectionHandle {
        self.handle.clone()
    }
}

impl AsyncRead for SecureConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.tls).poll_read(cx, buffer);
        let new = buffer.filled().get(before..).unwrap_or_default();
        let Self {
            handle, line_ends, ..
        } = &mut *self;
        handle.heard(line_ends, new);
        read
    }
}

impl AsyncWrite for SecureConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.tls).poll_flush(cx);
        self.handle.flushed(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.handle.broken.load(Ordering::Acquire) {
            // Neither is the end of TLS said: a client would take what it has for all there is.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// What is not to be had is done without.
fn prepare(tcp: &TcpStream) {
    if let Err(error) = tcp.set_nodelay(true) {
        debug!(error = %error, "no TCP_NODELAY");
    }
    if let Err(error) = SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        debug!(error = %error, "no TCP_NOTSENT_LOWAT");
    }
}

/// What waits in the kernel for a client that takes no more. What is on its way does not count, so that a long way is not a
/// slow one; without this limit it would be the whole send buffer, megabytes for each slow client.
const UNSENT_BYTES_MAX: u32 = 128 << 10;
/// What is read at once of what nobody listens to.
const HEARD_BYTES: usize = 4 << 10;
