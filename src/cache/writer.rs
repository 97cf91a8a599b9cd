//! The other half of a fill: writes and hashes what came, a turn at a time.
//!
//! Hashing takes a core and writing may wait for the disk, so that neither is done on an async thread, and not by more fills
//! at once than there are turns. A fill whose next bytes have not come holds no turn and no thread, however slow its source;
//! one that has more and more of them gives its turn away now and then. What waits for a turn is in the ring, where the
//! followers have it; how much that may be is the filler's to say.
//!
//! A turn is two changes of threads, which cost more than hashing what a slow source brings at once. So one is taken when it
//! is worth it: when there is enough to write, or all that there will be, or when what there is has waited long enough.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::fill::{Fill, Handover};
use super::footprint::Footprint;
use super::index::{NoRoom, Reservation};
use super::metrics::FillLabel;
use super::stage::Stage;
use super::staging::Staging;
use crate::oci::Digest;

/// Some bytes on their way to the writer, with the room that they take up until they are written.
pub(super) type Piece = (Bytes, OwnedSemaphorePermit);

/// Everything is in the staging file.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) digest: Digest,
    pub(super) stage: Arc<Mutex<Stage>>,
    pub(super) reservation: Reservation,
    pub(super) footprint: Footprint,
}

/// The writer could not go on.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) handover: Handover,
    pub(super) label: FillLabel,
    /// What is staged stays on disk while somebody reads it.
    pub(super) reservation: Reservation,
}

/// What writes one fill.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) fill: Arc<Fill>,
    pub(super) staging: Arc<Staging>,
    /// Locked for each write, so that the directory is not handed over in the middle of one.
    pub(super) stage: Arc<Mutex<Stage>>,
    pub(super) reservation: Reservation,
    pub(super) resumed: bool,
    /// Whether the size was known when the bytes were reserved.
    pub(super) sized: bool,
    pub(super) footprint: Footprint,
}

/// A writer with what it is to write.
#[derive(Debug)]
struct Work {
    writer: Writer,
    queue: mpsc::Receiver<Piece>,
    /// What is free of [`QUEUE_BYTES_MAX`].
    room: Arc<Semaphore>,
    done: oneshot::Sender<Result<Written, Stopped>>,
}

impl Writer {
    /// Writes what comes in the queue, to its end. The answer is the last thing that it does.
    pub(super) fn start(
        self,
        queue: mpsc::Receiver<Piece>,
        room: &Arc<Semaphore>,
    ) -> oneshot::Receiver<Result<Written, Stopped>> {
        let turns = Arc::clone(&self.staging.turns);
        let (done, answer) = oneshot::channel();
        let work = Work {
            writer: self,
            queue,
            room: Arc::clone(room),
            done,
        };
        tokio::spawn(work.run(turns));
        answer
    }

    fn write(&mut self, chunks: &[Bytes], bytes: u64) -> Result<(), FillLabel> {
        let staged = self.stage.lock().written();
        if staged + bytes > self.reservation.bytes() {
            // More than was announced is either a size nobody knew or a source that lied; the digest will tell.
            let more = if self.sized {
                bytes
            } else {
                self.reservation.growth().max(bytes)
            };
            self.staging
                .grow(&mut self.reservation, more)
                .map_err(|NoRoom| FillLabel::NoRoom)?;
        }
        let (written, result) = {
            let mut stage = self.stage.lock();
            let (written, result) = stage.write(chunks);
            if stage.tail().is_none() {
                let wanted_from = self.fill.wanted_from();
                self.footprint
                    .wrote(stage.file(), stage.written(), wanted_from);
            }
            if let Some(tail) = stage.tail() {
                // Before anybody hears that there is something in it.
                let _ = self.fill.tail.set(tail.clone());
            }
            (written, result)
        };
        self.reservation.wrote(written);
        self.fill.ring.lock().wrote(staged + written);
        result.map_err(|_| FillLabel::Disk)
    }
}

impl Work {
    async fn run(mut self, turns: Arc<Semaphore>) {
        loop {
            let batch = self.gather().await;
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
                return;
            };
            match spawn_blocking(move || self.take_turn(batch, &turn)).await {
                Ok(Some(work)) => self = work,
                // It is done; or it panicked, which whoever waits for the answer hears of.
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Waits for what is worth a turn. Nothing is the end.
    async fn gather(&mut self) -> Vec<Piece> {
        let mut batch: Vec<Piece> = self.queue.recv().await.into_iter().collect();
        let mut bytes = bytes_of(&batch);
        let latest = Instant::now() + WAIT_MAX;
        while bytes > 0 && bytes < PIECE_BYTES_MAX && batch.len() < QUEUE_CHUNKS_MAX {
            let Ok(Some(next)) = timeout_at(latest, self.queue.recv()).await else {
                break;
            };
            bytes += next.0.len();
            batch.push(next);
        }
        batch
    }

    /// Writes from this batch on; nothing is the end. Gives itself back when it waits for more, or has had its turn. Blocks.
    fn take_turn(mut self, batch: Vec<Piece>, turn: &OwnedSemaphorePermit) -> Option<Self> {
        let mut left = TURN_BYTES;
        let mut next = Some(batch).filter(|it| !it.is_empty());
        loop {
            let Some(batch) = next else {
                self.answer(None);
                return None;
            };
            let (bytes, result) = self.write_batch(batch);
            if let Err(label) = result {
                self.answer(Some(label));
                return None;
            }
            left = left.saturating_sub(bytes);
            // Where there is a turn left for others, it need not be this one.
            if left == 0 && turn.semaphore().available_permits() == 0 {
                return Some(self);
            }
            // A few bytes wait for more of them, as those of a next batch do.
            let is_little = QUEUE_BYTES_MAX - self.room.available_permits() < GO_ON_BYTES;
            if is_little && !self.queue.is_closed() {
                return Some(self);
            }
            next = match self.queue.try_recv() {
                Ok(piece) => Some(vec![piece]),
                Err(TryRecvError::Empty) => return Some(self),
                Err(TryRecvError::Disconnected) => None,
            };
        }
    }

    /// Writes this batch and what else has come, up to a large one, and marks it; how many bytes there were.
    fn write_batch(&mut self, mut batch: Vec<Piece>) -> (usize, Result<(), FillLabel>) {
        let mut bytes = bytes_of(&batch);
        while bytes < PIECE_BYTES_MAX
            && let Ok(next) = self.queue.try_recv()
        {
            bytes += next.0.len();
            batch.push(next);
        }
        let (chunks, room): (Vec<Bytes>, Vec<_>) = batch.into_iter().unzip();
        let result = self.writer.write(&chunks, bytes as u64);
        drop((chunks, room));
        if result.is_ok() {
            let mut stage = self.writer.stage.lock();
            stage.mark(self.queue.is_empty());
        }
        (bytes, result)
    }

    /// Says how it ended. What nobody waits for any more goes here, where that may take its time.
    fn answer(self, failed: Option<FillLabel>) {
        let Writer {
            stage,
            reservation,
            resumed,
            footprint,
            ..
        } = self.writer;
        let answer = match failed {
            None => {
                let digest = stage.lock().digester().clone().finish();
                Ok(Written {
                    digest,
                    stage,
                    reservation,
                    footprint,
                })
            }
            Some(label) => {
                let stage = stage.lock();
                let handover = Handover {
                    staged: stage.written(),
                    digester: Box::new(stage.digester().clone()),
                    is_resumed: resumed,
                };
                Err(Stopped {
                    handover,
                    label,
                    reservation,
                })
            }
        };
        // No more is taken in from here on.
        drop(self.queue);
        drop(self.done.send(answer));
    }
}

fn bytes_of(batch: &[Piece]) -> usize {
    batch.iter().map(|(bytes, _)| bytes.len()).sum()
}

/// What is written at once: large writes make large folios, and large reads later.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 20;
/// Bytes that wait for the writer of one fill: those that it gathers, and the largest piece beside them.
pub(super) const QUEUE_BYTES_MAX: usize = 2 * PIECE_BYTES_MAX;
/// Chunks that wait for the writer of one fill.
pub(super) const QUEUE_CHUNKS_MAX: usize = 256;
/// With so much more at hand a turn goes on: less is written sooner than two threads change places for it.
const GO_ON_BYTES: usize = PIECE_BYTES_MAX / 2;
/// How long bytes wait for more of them before they are written: a crash loses them, and nothing else waits.
pub(super) const WAIT_MAX: Duration = Duration::from_millis(100);
/// What a fill writes before it gives its turn to another one that waits.
const TURN_BYTES: usize = 8 << 20;
