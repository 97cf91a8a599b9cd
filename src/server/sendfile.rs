//! Bodies that go from a file to the socket without passing through this process.
//!
//! The HTTP library sends what it finds in memory. So it is given a stand-in, a [`QueuedFile`]: as long as the body, and
//! wherever it is looked at, blank. The connection knows the blank page by its address, and where it is asked to write some
//! of that, it has the kernel send as much of the file. Nothing maps the file, so that a file that is cut short while it is
//! being sent is an error to handle and no signal. Nobody of us cuts one; should somebody do so behind our back, what comes
//! after the cut is brought another way, but what the kernel has yet for a client are the file's own pages, in which the cut
//! leaves blanks. Of these the client learns by the digest only.
//!
//! What the kernel cannot send at once goes the usual way, through a buffer: what is not in the page cache, so that no disk
//! is waited for here; what the file does not have; everything, where sendfile is refused. The stream behind the file knows
//! how, up to going around the cache.
//!
//! Should the stand-in ever be read as if it were content, the connection sends nothing any more.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Once};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tracing::warn;

use crate::net::End;
use crate::proxy::{BlobStream, FilePart, StreamError};

/// Content that goes out by and by, in files or not.
pub(super) trait Content: fmt::Debug + Send {
    /// Whether it is so many bytes, and better sent from a file as far as it is in one, or will be.
    fn is_in_file(&self, length: u64) -> bool;

    /// The file that the next bytes are in; `None` when they come another way, or it takes reading to find out.
    fn file(&self) -> Option<FilePart>;

    /// Passes over the next bytes, which went out from that file.
    fn skip(&mut self, bytes: u64);

    /// Reads the next bytes, and gives itself back with them.
    fn read(self: Box<Self>) -> Reading;

    /// The same, but empty when the next bytes are in a file by the time that they are there.
    fn read_unless_in_file(self: Box<Self>) -> Reading;
}

pub(super) type Reading = Pin<Box<dyn Future<Output = (Box<dyn Content>, Read)> + Send>>;
/// Some bytes; `None` is the end.
pub(super) type Read = Result<Option<Bytes>, BodyError>;

impl Content for BlobStream {
    fn is_in_file(&self, length: u64) -> bool {
        Self::is_in_file(self, length)
    }

    fn file(&self) -> Option<FilePart> {
        Self::file(self)
    }

    fn skip(&mut self, bytes: u64) {
        Self::skip(self, bytes);
    }

    fn read(mut self: Box<Self>) -> Reading {
        Box::pin(async {
            let read = self.next().await.map_err(BodyError::from);
            (self as Box<dyn Content>, read)
        })
    }

    fn read_unless_in_file(mut self: Box<Self>) -> Reading {
        Box::pin(async {
            let read = self.next_unless_in_file().await;
            (self as Box<dyn Content>, read.map_err(BodyError::from))
        })
    }
}

/// A body of one frame: the next bytes of content that has them in a file.
#[derive(Debug)]
pub(super) struct FileBody {
    /// `None` when it is taken.
    content: Option<Box<dyn Content>>,
    length: u64,
    files: FileQueue,
    fate: Arc<Fate>,
}

/// What the connection says of one file's sending.
#[derive(Debug, Default)]
struct Fate {
    /// Bytes of it that went out.
    sent: AtomicU64,
    /// Its content failed, or ended before it should.
    has_failed: AtomicBool,
}

/// The files that are to be sent on one connection, in the order of their responses. Clones are of the same connection.
#[derive(Clone, Debug, Default)]
pub(super) struct FileQueue(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<VecDeque<Sending>>,
    next: AtomicUsize,
    /// Stand-ins that there are.
    standing: AtomicUsize,
    /// A stand-in was taken for content.
    is_spoiled: AtomicBool,
}

/// What stands for a file's bytes in the HTTP library's queue.
#[derive(Debug)]
pub(super) struct QueuedFile {
    mark: Mark,
    left: u64,
    taken: u64,
    fate: Arc<Fate>,
    queue: FileQueue,
}

/// Where on the blank page a stand-in begins: its name among those of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(usize);

/// What of some bytes to write comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// Bytes in memory; a file follows behind so many slices, if at all.
    Memory(Option<usize>),
    /// So many bytes of this file.
    File(Mark, usize),
}

/// Sends the files of one connection.
#[derive(Debug, Default)]
pub(super) struct FileSender {
    current: Option<Sending>,
    /// Bytes sent since others had their turn.
    burst: u64,
    hold: Hold,
}

/// What the kernel holds back until there is enough for a full segment, so that a client is not woken for less: eight near
/// ones get almost twice as much by it (`benches/README.md`).
#[derive(Debug, Default)]
struct Hold {
    /// Whether it holds back what is sent from files; it always does so with a head that a file follows.
    is_corked: bool,
    /// Whether it may have some.
    has_some: bool,
}

/// What became of an attempt to send.
#[derive(Debug)]
pub(super) enum Attempt {
    /// So many bytes went out.
    Sent(usize, By),
    /// The client takes nothing now.
    Full,
    /// The client is not to blame: the bytes have to come first, or it is the turn of others.
    Busy,
    /// The connection is no more.
    Lost(io::Error),
    /// The content has failed.
    Failed(BodyError),
}

/// Whether a socket takes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    /// The kernel says when it does.
    Asked,
    /// It is found out, now.
    Tried,
}

/// Who copied the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The kernel did, or need not.
    Kernel,
    /// They went through a buffer.
    Buffer,
}

/// A file on its way out.
#[derive(Debug)]
struct Sending {
    mark: Mark,
    source: Source,
    left: u64,
    fate: Arc<Fate>,
    /// What the page cache was last seen to have.
    cached: Range<u64>,
    /// The kernel would not send it.
    is_refused: bool,
}

enum Source {
    /// Nothing is in memory.
    Idle(Box<dyn Content>),
    Reading(Reading),
    /// These bytes come first.
    Read(Box<dyn Content>, Bytes),
    /// It failed.
    Over,
}

/// Why a body ends short of its length.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// Its source failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Its source ended before it should.
    #[error("the content ended {left} bytes short of its length")]
    Short { left: u64 },
}

/// A stand-in was read, and what was read of it may be on its way.
#[derive(Debug, thiserror::Error)]
#[error("a body from a file was taken for bytes in memory")]
struct Spoiled;

impl FileBody {
    /// So many bytes of some content, at least one.
    pub(super) fn new(content: Box<dyn Content>, length: u64, files: FileQueue) -> Self {
        Self {
            content: Some(content),
            length,
            files,
            fate: Arc::default(),
        }
    }

    /// Tells how it ended and how many of its bytes went out, to be asked at its end. The HTTP library knows no more than that
    /// it could not be written, and the connection counts the heads, too: to it the last bytes may be missing and all be sent.
    pub(super) fn judge(&self) -> impl FnOnce() -> (End, u64) + Send + use<> {
        let (fate, length) = (Arc::clone(&self.fate), self.length);
        move || {
            let sent = fate.sent.load(Ordering::Acquire);
            let end = if sent == length {
                End::Complete
            } else if fate.has_failed.load(Ordering::Acquire) {
                End::Failed
            } else {
                End::Abandoned
            };
            (end, sent)
        }
    }
}

impl Body for FileBody {
    type Data = QueuedFile;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<QueuedFile>, BodyError>>> {
        let this = self.get_mut();
        Poll::Ready(this.content.take().map(|content| {
            let queued = this.files.push(content, this.length, &this.fate);
            Ok(Frame::data(queued))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.content.as_ref().map_or(0, |_| self.length);
        SizeHint::with_exact(left)
    }
}

impl FileQueue {
    /// Queues the next `left` bytes of some content, and gives what stands for them.
    fn push(&self, content: Box<dyn Content>, left: u64, fate: &Arc<Fate>) -> QueuedFile {
        let mark = Mark(self.0.next.fetch_add(1, Ordering::Relaxed) % MARKS);
        self.0.standing.fetch_add(1, Ordering::Release);
        self.0.waiting.lock().push_back(Sending {
            mark,
            source: Source::Idle(content),
            left,
            fate: Arc::clone(fate),
            cached: 0..0,
            is_refused: false,
        });
        QueuedFile {
            mark,
            left,
            taken: 0,
            fate: Arc::clone(fate),
            queue: self.clone(),
        }
    }

    /// What comes first of what the HTTP library wants to write.
    pub(super) fn first(&self, slices: &[IoSlice<'_>]) -> First {
        if self.0.standing.load(Ordering::Acquire) == 0 {
            return First::Memory(None);
        }
        first(slices)
    }

    /// Whether what is queued may still be sent.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.0.is_spoiled.load(Ordering::Acquire) {
            return Err(io::Error::other(Spoiled));
        }
        Ok(())
    }

    fn take(&self, mark: Mark) -> Option<Sending> {
        let mut waiting = self.0.waiting.lock();
        let place = waiting.iter().position(|it| it.mark == mark)?;
        waiting.remove(place)
    }
}

impl Buf for QueuedFile {
    fn remaining(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    fn chunk(&self) -> &[u8] {
        let len = self.remaining().min(CHUNK_BYTES);
        BLANK
            .get(self.mark.0..self.mark.0 + len)
            .unwrap_or_default()
    }

    fn advance(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes as u64);
        self.taken += bytes as u64;
        if self.taken > self.fate.sent.load(Ordering::Acquire) {
            self.queue.0.is_spoiled.store(true, Ordering::Release);
        }
    }
}

impl Drop for QueuedFile {
    fn drop(&mut self) {
        // Never begun, it is let go of; the connection lets go of what it has begun.
        drop(self.queue.take(self.mark));
        self.queue.0.standing.fetch_sub(1, Ordering::Release);
    }
}

fn first(slices: &[IoSlice<'_>]) -> First {
    let mut is_first = true;
    for (place, slice) in slices.iter().enumerate() {
        match mark_of(slice) {
            Some(mark) if is_first => return First::File(mark, slice.len()),
            Some(_) => return First::Memory(Some(place)),
            None => is_first &= slice.is_empty(),
        }
    }
    First::Memory(None)
}

impl FileSender {
    /// Sends bytes in memory that a file follows, so that the head of a response need not go in a packet of its own.
    pub(super) fn poll_send_more(
        &mut self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.hold.has_some = true;
        poll_io(tcp, cx, Socket::Asked, || {
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            rustix::net::sendmsg(tcp, slices, &mut SendAncillaryBuffer::default(), flags)
        })
    }

    /// Sends some of a file's bytes, at most `max`.
    pub(super) fn poll_send(
        &mut self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
        queue: &FileQueue,
        (mark, max): (Mark, usize),
    ) -> Attempt {
        if self.current.as_ref().is_none_or(|it| it.mark != mark) {
            self.current = queue.take(mark);
            self.hold.begin(tcp);
        }
        let Some(sending) = &mut self.current else {
            return Attempt::Lost(io::Error::other(Spoiled));
        };
        if self.burst >= BURST_BYTES_MAX {
            self.burst = 0;
            cx.waker().wake_by_ref();
            return Attempt::Busy;
        }
        let attempt = sending.poll_send(tcp, cx, max, Socket::Asked);
        self.note(tcp, attempt)
    }

    /// Sends what there is room for now to a client whose time is over, though the kernel does not say that there is.
    pub(super) fn send_at_last(
        &mut self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Attempt {
        let Some(sending) = &mut self.current else {
            return Attempt::Lost(io::Error::other(Spoiled));
        };
        let attempt = sending.poll_send(tcp, cx, max, Socket::Tried);
        self.note(tcp, attempt)
    }

    fn note(&mut self, tcp: &TcpStream, attempt: Attempt) -> Attempt {
        match &attempt {
            Attempt::Sent(bytes, _) => {
                self.burst += *bytes as u64;
                self.hold.has_some = true;
                // Nobody reads the blob any more when it is sent.
                let sent = self.current.take_if(|it| it.sent(*bytes as u64));
                if sent.is_some() {
                    self.hold.end(tcp);
                }
            }
            Attempt::Busy => {
                self.burst = 0;
                self.hold.push(tcp);
            }
            Attempt::Full => self.burst = 0,
            Attempt::Lost(_) => self.current = None,
            Attempt::Failed(_) => {
                if let Some(sending) = self.current.take() {
                    sending.fate.has_failed.store(true, Ordering::Release);
                }
            }
        }
        attempt
    }
}

impl Hold {
    /// Bytes of a file come. What is not to be had is done without.
    fn begin(&mut self, tcp: &TcpStream) {
        self.is_corked = self.is_corked || SockRef::from(tcp).set_tcp_cork(true).is_ok();
    }

    /// More is some time in coming: what there is goes now. Where that is refused, the kernel sends it a little later.
    fn push(&mut self, tcp: &TcpStream) {
        if std::mem::take(&mut self.has_some) {
            // Said again it is a word to send, also what is corked (`tcp_sock_set_nodelay` of Linux).
            let _ = tcp.set_nodelay(true);
        }
    }

    /// No more comes, and what there is goes.
    fn end(&mut self, tcp: &TcpStream) {
        self.has_some = false;
        if std::mem::take(&mut self.is_corked) {
            let _ = SockRef::from(tcp).set_tcp_cork(false);
        }
    }
}

impl Sending {
    /// Counts what went out. Whether that was all.
    fn sent(&mut self, bytes: u64) -> bool {
        self.left = self.left.saturating_sub(bytes);
        self.fate.sent.fetch_add(bytes, Ordering::Release);
        self.left == 0
    }

    fn poll_send(
        &mut self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
        max: usize,
        socket: Socket,
    ) -> Attempt {
        let max = max.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        loop {
            match std::mem::replace(&mut self.source, Source::Over) {
                Source::Idle(mut content) => {
                    let attempt = self.send_file(&mut *content, max, |part, offset, max| {
                        poll_io(tcp, cx, socket, || {
                            rustix::fs::sendfile(tcp, part, Some(offset), max)
                        })
                    });
                    if let Some(attempt) = attempt {
                        self.source = Source::Idle(content);
                        return attempt;
                    }
                    self.source = Source::Reading(match content.file() {
                        Some(_) => content.read(),
                        None => content.read_unless_in_file(),
                    });
                }
                Source::Reading(mut reading) => match reading.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.source = Source::Reading(reading);
                        return Attempt::Busy;
                    }
                    Poll::Ready((content, Ok(Some(bytes)))) => {
                        self.source = Source::Read(content, bytes);
                    }
                    Poll::Ready((_, Ok(None))) => {
                        return Attempt::Failed(BodyError::Short { left: self.left });
                    }
                    Poll::Ready((_, Err(error))) => return Attempt::Failed(error),
                },
                Source::Read(content, bytes) if bytes.is_empty() => {
                    self.source = Source::Idle(content);
                }
                Source::Read(content, mut bytes) => {
                    let some = bytes.get(..max.min(bytes.len())).unwrap_or_default();
                    let written = poll_io(tcp, cx, socket, || {
                        rustix::net::send(tcp, some, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
                    });
                    if let Poll::Ready(Ok(written)) = written {
                        bytes.advance(written);
                    }
                    self.source = Source::Read(content, bytes);
                    return Attempt::of(written, By::Buffer);
                }
                Source::Over => return Attempt::Lost(io::Error::other(Spoiled)),
            }
        }
    }

    /// Has the kernel send some; `None` when the bytes must be read instead.
    fn send_file(
        &mut self,
        content: &mut dyn Content,
        max: usize,
        send: impl FnOnce(&FilePart, &mut u64, usize) -> Poll<io::Result<usize>>,
    ) -> Option<Attempt> {
        if self.is_refused {
            return None;
        }
        let part = content.file()?;
        if !self.cached.contains(&part.offset) {
            self.cached = part.offset..part.offset + part.cached(WINDOW_BYTES);
        }
        let cached = part.len.min(self.cached.end - part.offset);
        let max = max.min(usize::try_from(cached).unwrap_or(usize::MAX));
        if max == 0 {
            return None;
        }
        let mut offset = part.offset;
        let sent = send(&part, &mut offset, max);
        match &sent {
            // The file has become shorter.
            Poll::Ready(Ok(0)) => {
                self.is_refused = true;
                return None;
            }
            Poll::Ready(Ok(bytes)) => content.skip(*bytes as u64),
            Poll::Ready(Err(error)) if is_of_file(error) => {
                SAID.call_once(|| warn!(error = %error, "sendfile is refused, reading instead"));
                self.is_refused = true;
                return None;
            }
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        Some(Attempt::of(sent, By::Kernel))
    }
}

impl Attempt {
    fn of(written: Poll<io::Result<usize>>, by: By) -> Self {
        match written {
            Poll::Ready(Ok(bytes)) => Self::Sent(bytes, by),
            Poll::Ready(Err(error)) => Self::Lost(error),
            Poll::Pending => Self::Full,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle(_) => "Idle",
            Self::Reading(_) => "Reading",
            Self::Read(..) => "Read",
            Self::Over => "Over",
        })
    }
}

/// Whether a refusal to send is about the file or the way, and not about the connection: then reading is worth a try.
fn is_of_file(error: &io::Error) -> bool {
    const OF_FILE: [Errno; 8] = [
        Errno::ACCESS,
        Errno::INVAL,
        Errno::IO,
        Errno::NOMEM,
        Errno::NOSYS,
        Errno::OPNOTSUPP,
        Errno::PERM,
        Errno::STALE,
    ];
    let code = error.raw_os_error();
    OF_FILE.iter().any(|it| Some(it.raw_os_error()) == code)
}

/// Does something with a socket as soon as it takes bytes.
fn poll_io(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    socket: Socket,
    mut send: impl FnMut() -> Result<usize, Errno>,
) -> Poll<io::Result<usize>> {
    if socket == Socket::Tried {
        return match send() {
            Err(Errno::AGAIN | Errno::INTR) => Poll::Pending,
            tried => Poll::Ready(Ok(tried?)),
        };
    }
    loop {
        std::task::ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_io(Interest::WRITABLE, || Ok(send()?)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return Poll::Ready(done),
        }
    }
}

fn mark_of(slice: &IoSlice<'_>) -> Option<Mark> {
    let from_start = slice.as_ptr().addr().wrapping_sub(BLANK.as_ptr().addr());
    (from_start < MARKS && !slice.is_empty()).then_some(Mark(from_start))
}

/// The page that stand-ins show. Nobody reads or writes it, so that it takes addresses and no memory.
static BLANK: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; MARKS + CHUNK_BYTES]);
/// Sendfile was refused, and the log says so.
static SAID: Once = Once::new();
/// As much of a file as the HTTP library sees at once, and so the most that is sent by one call.
const CHUNK_BYTES: usize = 1 << 20;
/// More than the buffers that the HTTP library queues on a connection.
const MARKS: usize = 64;
/// How far ahead the page cache is looked at.
const WINDOW_BYTES: u64 = 2 << 20;
/// Bytes that a quick client gets before others have their turn.
const BURST_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn queued(left: u64) -> (QueuedFile, FileQueue) {
        let queue = FileQueue::default();
        queue.0.standing.fetch_add(1, Ordering::Release);
        let file = QueuedFile {
            mark: Mark(3),
            left,
            taken: 0,
            fate: Arc::default(),
            queue: queue.clone(),
        };
        (file, queue)
    }

    #[test]
    fn what_was_sent_may_be_taken() {
        let (mut file, queue) = queued(5 << 20);
        assert_eq!(file.remaining(), 5 << 20);
        file.fate.sent.store(1000, Ordering::Release);
        file.advance(1000);
        assert_eq!(file.remaining(), (5 << 20) - 1000);
        assert!(queue.check().is_ok());
    }

    #[test]
    fn a_stand_in_that_is_read_as_content_ends_the_connection() {
        let (mut file, queue) = queued(5 << 20);
        file.fate.sent.store(1000, Ordering::Release);
        assert!(file.copy_to_bytes(1001).iter().all(|byte| *byte == 0));
        assert!(queue.check().is_err());
    }

    #[tokio::test]
    async fn what_is_held_back_goes_when_more_does_not_come_soon() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (client, (tcp, _)) = (client.unwrap(), accepted.unwrap());
        let is_corked = || SockRef::from(&tcp).tcp_cork().unwrap();
        let mut hold = Hold::default();
        hold.begin(&tcp);
        assert!(is_corked());
        for text in [&b"one"[..], b"other"] {
            rustix::net::send(&tcp, text, SendFlags::empty()).unwrap();
            hold.has_some = true;
            hold.push(&tcp);
            // Not before a word to send, as long as the kernel has the patience.
            client.readable().await.unwrap();
            let mut heard = [0; 9];
            assert_eq!(client.try_read(&mut heard).unwrap(), text.len());
            assert!(!hold.has_some && is_corked());
        }
        hold.end(&tcp);
        assert!(!is_corked());
        // Once is enough.
        hold.end(&tcp);
    }

    #[test]
    fn a_file_is_known_by_its_address_wherever_it_stands() {
        let (mut file, _queue) = queued(5 << 20);
        let slice = |file: &QueuedFile| first(&[IoSlice::new(file.chunk())]);
        assert_eq!(slice(&file), First::File(Mark(3), CHUNK_BYTES));
        file.left = 10;
        assert_eq!(slice(&file), First::File(Mark(3), 10));
        let (head, none) = (IoSlice::new(b"HTTP/1.1 200 OK"), IoSlice::new(b""));
        let file = IoSlice::new(file.chunk());
        assert_eq!(first(&[none, file, head]), First::File(Mark(3), 10));
        assert_eq!(first(&[head, none, file]), First::Memory(Some(2)));
        assert_eq!(first(&[head, none]), First::Memory(None));
    }
}
