//! Windows: a part of a blob that its fill would bring too late is asked for by itself, while the fill goes on.
//!
//! Clients look into the end of a large layer before they want the rest (podman, for the table of contents of a
//! `zstd:chunked` one). A window spares them the wait for all that is before. It is bounded in every way: by its size, in
//! number, by a share of the blob, in time. Whatever goes wrong with it, its reader waits for the fill instead and notices
//! nothing. Its bytes are not stored, and not verified: as of any range that ends before the last byte, the client has to.
//! The last byte never comes by a window, since it waits for the digest.
//!
//! A window is asked for at the repository that its reader asked, which has been proven to hold the blob. It is received
//! by a task of its own, so that a slow client holds no request for long.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::metrics::{Metrics, WindowLabel};
use crate::cache::{Content, ReadError};
use crate::net::Chain;
use crate::oci::Digest;
use crate::upstream::{self, Source, Window};

/// What all windows share. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    places: Arc<Semaphore>,
    metrics: Metrics,
    tracker: TaskTracker,
}

/// The windows of one fill, shared by its readers.
#[derive(Debug)]
pub(super) struct FillWindows {
    all: Windows,
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the fill was first looked at, and how far it was.
    began: Option<(Instant, u64)>,
    /// What windows have cost, as far as it counts.
    spent: u64,
    /// Whether one failed: there are no more.
    closed: bool,
}

/// A reader's way to the windows of the fill that it follows.
#[derive(Debug)]
pub(super) struct Ahead {
    windows: Arc<FillWindows>,
    digest: Digest,
    source: Source,
    open: Option<Reader>,
}

/// What a reader wants next.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The next byte.
    pub(super) position: u64,
    /// The part that it is in.
    pub(super) part: Range<u64>,
    /// Where the last of the parts ends that one window may bring, this one and those near behind it.
    pub(super) run_end: u64,
}

impl Wanted {
    /// Whether a window may bring it.
    pub(super) fn is_small(&self) -> bool {
        self.part.end - self.part.start <= WINDOW_BYTES_MAX
    }
}

/// The bytes of one window.
#[derive(Debug)]
struct Reader {
    received: mpsc::Receiver<Bytes>,
    next: Bytes,
    position: u64,
    end: u64,
}

/// How a reader goes on whose bytes are not here.
#[derive(Debug)]
enum Verdict {
    /// They come with the fill, and in no other way.
    Wait,
    /// They may come soon.
    LookAgain,
    /// They come by a window.
    Open(Taken),
}

/// The right to one window.
#[derive(Debug)]
struct Taken {
    part: Range<u64>,
    size: u64,
    cost: u64,
    _places: [OwnedSemaphorePermit; 2],
}

impl Windows {
    pub(super) fn new(metrics: Metrics, tracker: TaskTracker) -> Self {
        Self {
            places: Arc::new(Semaphore::new(WINDOWS_MAX)),
            metrics,
            tracker,
        }
    }

    /// The windows of a fill that begins.
    pub(super) fn of_fill(&self) -> Arc<FillWindows> {
        Arc::new(FillWindows {
            all: self.clone(),
            places: Arc::new(Semaphore::new(WINDOWS_OF_A_FILL_MAX)),
            state: Mutex::default(),
        })
    }
}

impl FillWindows {
    /// For a reader of the fill, which is this far; `source` is the repository that it asked.
    pub(super) fn reader(self: &Arc<Self>, front: u64, digest: Digest, source: Source) -> Ahead {
        let began = (Instant::now(), front);
        self.state.lock().began.get_or_insert(began);
        Ahead {
            windows: Arc::clone(self),
            digest,
            source,
            open: None,
        }
    }

    fn judge(&self, wanted: &Wanted, front: u64, size: Option<u64>) -> Verdict {
        let (Some(size), Wanted { position, part, .. }) = (size, wanted) else {
            return Verdict::Wait;
        };
        if front > *position || !wanted.is_small() || part.end >= size {
            return Verdict::Wait;
        }
        let mut state = self.state.lock();
        let left = (size / BLOB_SHARE).saturating_sub(state.spent);
        let cost = |end: u64| (end - position).max(COST_MIN);
        if state.closed || cost(part.end) > left {
            return Verdict::Wait;
        }
        let pace = state.began.map(|(began, from)| Pace {
            bytes: front.saturating_sub(from),
            time: began.elapsed(),
        });
        if !is_late(position - front, pace) {
            return Verdict::LookAgain;
        }
        let places = [&self.places, &self.all.places];
        let [Ok(own), Ok(common)] = places.map(|it| Arc::clone(it).try_acquire_owned()) else {
            return Verdict::LookAgain;
        };
        let end = Some(wanted.run_end).filter(|end| cost(*end) <= left);
        let end = end.unwrap_or(part.end);
        state.spent += cost(end);
        Verdict::Open(Taken {
            part: *position..end,
            size,
            cost: cost(end),
            _places: [own, common],
        })
    }

    /// Receives a window for whoever reads it, as long as somebody does.
    async fn receive(
        &self,
        source: &Source,
        digest: &Digest,
        taken: &Taken,
        reader: &mpsc::Sender<Bytes>,
    ) -> Result<WindowLabel, upstream::Error> {
        let Taken { part, size, .. } = taken;
        let mut window = Window::open(source, digest, part.clone(), *size).await?;
        while let Some(bytes) = window.next().await? {
            let namespace = source.upstream.name();
            self.all
                .metrics
                .window_received(namespace, bytes.len() as u64);
            if reader.send(bytes).await.is_err() {
                return Ok(WindowLabel::Left);
            }
        }
        Ok(WindowLabel::Complete)
    }

    /// A window that failed is the last one of its fill, unless nothing was asked: then there was none.
    fn failed(&self, taken: &Taken, error: &upstream::Error) -> Option<WindowLabel> {
        let mut state = self.state.lock();
        if error.is_unasked() {
            state.spent -= taken.cost;
            return None;
        }
        state.closed = true;
        Some(WindowLabel::Failed)
    }
}

impl Ahead {
    /// Reads as [`Content::read_at`] does, at most `max` bytes of what is wanted, by a window if the fill would take too
    /// long. Cancel-safe.
    pub(super) async fn read_at(
        &mut self,
        content: &mut Content,
        wanted: &Wanted,
        max: u64,
    ) -> Result<Option<Bytes>, ReadError> {
        let position = wanted.position;
        loop {
            self.open.take_if(|it| !it.has(position));
            if let Some(window) = &mut self.open {
                // Either is cancel-safe; what a window had for us when the fill was as fast, the fill has.
                tokio::select! {
                    biased;
                    read = content.read_at(position, max) => {
                        self.open = None;
                        return read;
                    }
                    bytes = window.read_at(position, max) => match bytes {
                        Some(bytes) => return Ok(Some(bytes)),
                        None => self.open = None,
                    }
                }
                // Another one would hardly fare better at once.
                if let Ok(read) = timeout(LATE, content.read_at(position, max)).await {
                    return read;
                }
            }
            let front = match &*content {
                Content::Follower(follower, _) => follower.front(),
                Content::Blob(_) | Content::Unreadable(_) => u64::MAX,
            };
            match self.windows.judge(wanted, front, content.size()) {
                Verdict::Wait => return content.read_at(position, max).await,
                Verdict::LookAgain => {
                    if let Ok(read) = timeout(LATE, content.read_at(position, max)).await {
                        return read;
                    }
                }
                Verdict::Open(taken) => self.open = Some(self.begin(taken)),
            }
        }
    }

    /// The fill had the bytes first.
    pub(super) fn caught_up(&mut self) {
        self.open = None;
    }

    fn begin(&self, taken: Taken) -> Reader {
        let Range { start, end } = taken.part;
        let (sender, received) = mpsc::channel(QUEUE_CHUNKS_MAX);
        let (windows, digest) = (Arc::clone(&self.windows), self.digest);
        let source = self.source.clone();
        self.windows.all.tracker.spawn(async move {
            let receiving = timeout(TIME_MAX, windows.receive(&source, &digest, &taken, &sender));
            // Nobody misses what is cancelled when the reader has left.
            let label = tokio::select! {
                biased;
                () = sender.closed() => Some(WindowLabel::Left),
                received = receiving => match received {
                    Ok(Ok(label)) => Some(label),
                    Ok(Err(error)) => {
                        debug!(%digest, start, end, error = %Chain(&error), "window failed");
                        windows.failed(&taken, &error)
                    }
                    Err(_) => Some(WindowLabel::Failed),
                },
            };
            if let Some(label) = label {
                windows.all.metrics.window_ended(label);
            }
            // Whoever reads sees the end when the place is free again.
            drop((taken, sender));
        });
        Reader {
            received,
            next: Bytes::new(),
            position: start,
            end,
        }
    }
}

impl Reader {
    fn has(&self, position: u64) -> bool {
        (self.position..self.end).contains(&position)
    }

    /// The next bytes from `offset` on; `None` when no more come. What is passed by does not come again. Cancel-safe.
    async fn read_at(&mut self, offset: u64, max: u64) -> Option<Bytes> {
        loop {
            if self.next.is_empty() {
                self.next = self.received.recv().await?;
            }
            let unwanted = usize::try_from(offset - self.position).unwrap_or(usize::MAX);
            let unwanted = unwanted.min(self.next.len());
            self.next.advance(unwanted);
            let wanted = usize::try_from(max).unwrap_or(usize::MAX);
            let bytes = self.next.split_to(wanted.min(self.next.len()));
            self.position += (unwanted + bytes.len()) as u64;
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
    }
}

/// How far a fill has come in how long.
#[derive(Clone, Copy, Debug)]
struct Pace {
    bytes: u64,
    time: Duration,
}

/// Whether a fill needs [`LATE`] or more for so many bytes. One that has not run for as long yet is taken to be fast.
fn is_late(bytes: u64, pace: Option<Pace>) -> bool {
    let Pace { bytes: of, time } = pace.filter(|it| it.time >= LATE).unwrap_or(FAST);
    let needed = u128::from(bytes) * time.as_micros();
    bytes >= NEAR_BYTES && needed >= u128::from(of) * LATE.as_micros()
}

/// What a fill may take to be waited for rather than passed by.
const LATE: Duration = Duration::from_millis(100);
/// Nearer than this to the front of a fill nothing is late: to ask for it takes as long.
const NEAR_BYTES: u64 = 256 << 10;
/// A line of 1 Gbit/s.
const FAST: Pace = Pace {
    bytes: 125_000_000,
    time: Duration::from_secs(1),
};
/// Parts that are larger than this wait for the fill.
pub(super) const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// All windows of a fill may bring this part of the blob: a tenth.
const BLOB_SHARE: u64 = 10;
/// What a window counts at least towards that, since a request has its price.
const COST_MIN: u64 = 64 << 10;
const WINDOWS_OF_A_FILL_MAX: usize = 2;
/// Windows at once, of all fills: what one upstream is asked at most besides fills, of the 64 requests that it may be asked.
const WINDOWS_MAX: usize = 16;
/// How long a window may take; a client that is slower than that waits for the fill, which it does not slow.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Chunks that wait for the reader of a window.
const QUEUE_CHUNKS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    /// What is opened of a blob of a gibibyte for these parts, of which the first is read; 0 is what waits.
    fn opened(part: Range<u64>, run_end: u64) -> Range<u64> {
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let windows = Windows::new(metrics, TaskTracker::new()).of_fill();
        let wanted = Wanted {
            position: part.start,
            part,
            run_end,
        };
        match windows.judge(&wanted, 0, Some(1 << 30)) {
            Verdict::Open(taken) => taken.part,
            Verdict::Wait | Verdict::LookAgain => 0..0,
        }
    }

    #[test]
    fn a_window_is_of_eight_mebibytes_at_most_and_never_of_the_last_byte() {
        let (far, size) = (100 << 20, 1 << 30);
        let largest = far..far + WINDOW_BYTES_MAX;
        assert_eq!(opened(largest.clone(), largest.end), largest);
        assert_eq!(opened(far..largest.end + 1, largest.end + 1), 0..0);
        assert_eq!(opened(far..far + 10, far + 900), far..far + 900);
        assert_eq!(opened(size - 10..size, size), 0..0);
        let before = size - 10..size - 1;
        assert_eq!(opened(before.clone(), before.end), before);
        // Near enough to be waited for.
        assert_eq!(opened(1 << 20..2 << 20, 2 << 20), 0..0);
    }

    #[test]
    fn what_is_late_is_told_by_the_pace_of_the_fill() {
        let mib = 1 << 20;
        let pace = |bytes, millis| {
            Some(Pace {
                bytes,
                time: Duration::from_millis(millis),
            })
        };
        let cases = [
            // A fresh fill is believed to be fast, whatever it has or has not done yet.
            (11 * mib, None, false),
            (12 * mib, None, true),
            (11 * mib, pace(0, 99), false),
            (12 * mib, pace(0, 99), true),
            // 10 MiB a second.
            (mib - 1, pace(10 * mib, 1000), false),
            (mib, pace(10 * mib, 1000), true),
            (mib, pace(mib, 100), true),
            // A stalled one, and the near.
            (NEAR_BYTES - 1, pace(0, 1000), false),
            (NEAR_BYTES, pace(0, 1000), true),
            // Very fast, very far.
            (u64::MAX, pace(u64::MAX, 1000), true),
            (u64::MAX / 11, pace(u64::MAX, 1000), false),
        ];
        for (bytes, pace, expected) in cases {
            assert_eq!(is_late(bytes, pace), expected, "{bytes} {pace:?}");
        }
    }
}
