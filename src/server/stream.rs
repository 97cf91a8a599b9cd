//! A body that is one of several on its connection: what HTTP/2 calls a stream.
//!
//! What a connection has sent says nothing of one of its streams, so each counts for itself. It hands out small pieces and
//! knows which of them the HTTP library still has. A stream ends when the last piece is gone; one whose client takes
//! nothing for too long is dropped, and its connection goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::net::End;

/// A body that tells, exactly once, how it ended.
pub(super) struct StreamBody<B, F: FnOnce(End, u64)> {
    body: B,
    /// `None` once it is told.
    on_end: Option<F>,
    progress: Progress,
    /// What is left of a frame.
    rest: Bytes,
    handed_over: u64,
    /// Whether all of the body was handed over.
    is_whole: bool,
}

/// How far a stream's client is. Clones are of the same stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Mutex<Flight>>);

#[derive(Debug, Default)]
struct Flight {
    /// Bytes that the HTTP library has.
    bytes: u64,
    /// Since when it is the client's turn to take some; `None` while it waits for us.
    waiting_since: Option<Instant>,
    /// Who waits for all of them to be gone.
    waker: Option<Waker>,
    /// Its places among all streams, given back when nothing is left of it.
    places: Vec<OwnedSemaphorePermit>,
}

/// Some bytes that the HTTP library has.
struct Piece {
    bytes: Bytes,
    progress: Progress,
}

/// All that is done for one stream. It ends when the client takes nothing for too long, which resets the stream.
pub(super) struct Watched<F> {
    serving: Pin<Box<F>>,
    progress: Progress,
    write_idle_timeout: Duration,
    limit: Option<Pin<Box<Sleep>>>,
}

tokio::task_local! {
    /// Of the stream that the running task serves.
    static CURRENT: Progress;
}

impl Progress {
    /// That of the stream that the running task serves; one that nobody watches, where it serves none.
    pub(super) fn of_task() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }

    /// Waits for a place in each of these, and keeps them to the stream's end. Cancel-safe.
    pub(super) async fn take_places(&self, places: &[Arc<Semaphore>]) {
        for of in places {
            // Nobody closes them.
            let place = Arc::clone(of).acquire_owned().await.ok();
            self.0.lock().places.extend(place);
        }
    }

    /// There is nothing that the client could take.
    fn is_our_turn(&self) {
        self.0.lock().waiting_since = None;
    }

    /// Takes bytes for the HTTP library, which asks for them since the client took what came before.
    fn piece(&self, bytes: Bytes) -> Bytes {
        {
            let mut flight = self.0.lock();
            flight.bytes += bytes.len() as u64;
            flight.waiting_since = Some(Instant::now());
        }
        Bytes::from_owner(Piece {
            bytes,
            progress: self.clone(),
        })
    }

    /// Waits until the HTTP library has none of them any more.
    fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        let mut flight = self.0.lock();
        if flight.bytes == 0 {
            return Poll::Ready(());
        }
        flight.waker = Some(cx.waker().clone());
        flight.waiting_since.get_or_insert_with(Instant::now);
        Poll::Pending
    }

    fn in_flight(&self) -> u64 {
        self.0.lock().bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut flight = self.progress.0.lock();
        flight.bytes = flight.bytes.saturating_sub(self.bytes.len() as u64);
        if flight.waiting_since.is_some() {
            flight.waiting_since = Some(Instant::now());
        }
        let is_last = flight.bytes == 0;
        let waker = flight.waker.take_if(|_| is_last);
        drop(flight);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<B: Body<Data = Bytes>, F: FnOnce(End, u64)> StreamBody<B, F> {
    /// Wraps the body of a stream that `progress` is of.
    pub(super) fn new(body: B, progress: Progress, on_end: F) -> Self {
        let mut stream = Self {
            is_whole: body.is_end_stream(),
            body,
            on_end: Some(on_end),
            progress,
            rest: Bytes::new(),
            handed_over: 0,
        };
        // Nobody will ever poll it.
        if stream.is_whole {
            stream.say(End::Complete);
        }
        stream
    }
}

impl<B, F: FnOnce(End, u64)> StreamBody<B, F> {
    fn say(&mut self, end: End) {
        if let Some(on_end) = self.on_end.take() {
            on_end(
                end,
                self.handed_over.saturating_sub(self.progress.in_flight()),
            );
        }
    }
}

impl<B, F> Body for StreamBody<B, F>
where
    B: Body<Data = Bytes> + Unpin,
    F: FnOnce(End, u64) + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        while this.rest.is_empty() && !this.is_whole {
            this.progress.is_our_turn();
            match std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => this.rest = bytes,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                Some(Err(error)) => {
                    this.say(End::Failed);
                    return Poll::Ready(Some(Err(error)));
                }
                None => this.is_whole = true,
            }
        }
        if !this.rest.is_empty() {
            let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES_MAX));
            this.handed_over += piece.len() as u64;
            let piece = this.progress.piece(piece);
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        std::task::ready!(this.progress.poll_gone(cx));
        this.say(End::Complete);
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        // The end is told apart from the last piece, which says that this one arrived.
        self.on_end.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        match hint.exact() {
            Some(bytes) => SizeHint::with_exact(bytes + rest),
            None => hint,
        }
    }
}

impl<B, F: FnOnce(End, u64)> Drop for StreamBody<B, F> {
    fn drop(&mut self) {
        self.say(End::Abandoned);
    }
}

impl<F: Future> Watched<F> {
    pub(super) fn new(serving: F, write_idle_timeout: Duration) -> Self {
        Self {
            serving: Box::pin(serving),
            progress: Progress::default(),
            write_idle_timeout,
            limit: None,
        }
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let serving = this.serving.as_mut();
        if CURRENT
            .sync_scope(this.progress.clone(), || serving.poll(cx))
            .is_ready()
        {
            return Poll::Ready(());
        }
        loop {
            let Some(since) = this.progress.0.lock().waiting_since else {
                return Poll::Pending;
            };
            let deadline = since + this.write_idle_timeout;
            let limit = this
                .limit
                .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if limit.deadline() < deadline && limit.is_elapsed() {
                limit.as_mut().reset(deadline);
            }
            std::task::ready!(limit.as_mut().poll(cx));
            // It ran since an earlier turn, perhaps.
            if limit.deadline() >= deadline {
                return Poll::Ready(());
            }
        }
    }
}

/// What one frame of HTTP/2 carries unless its receiver asks for more (RFC 9113 §4.2); by that much a client's progress is seen.
const PIECE_BYTES_MAX: usize = 16 << 10;
