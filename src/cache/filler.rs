//! Bringing one blob into the store: reserve, stage, hash, verify, publish.
//!
//! ```text
//! begin ─► reservation, staging file, writer thread
//! resume ─► the same, with a staging file that a former process began
//! write ─► ring (followers read it at once) ─► queue ─► writer: pwrite, hash
//! verify ─► digest right? ─► release the last byte ─► publish: sync, rename, sync ─► present
//!                        └► tell followers why
//! ```
//!
//! One thread for each fill writes and hashes, in pieces of up to 1 MiB, so that neither ever stands on an async thread.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::fill::{Fill, FillError, Handover};
use super::index::{NoRoom, Reservation};
use super::metrics::FillLabel;
use super::stage::Stage;
use super::staging::{Admitted, Staging};
use crate::oci::{Digest, Digester};

/// The right, and the duty, to bring one blob. Dropped unfinished, it fails its followers.
#[must_use = "dropping a filler fails everyone who follows it"]
#[derive(Debug)]
pub struct Filler {
    fill: Arc<Fill>,
    staging: Arc<Staging>,
    /// Places for fills in progress.
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
    size: Option<u64>,
    received: u64,
    /// Whether it goes on from bytes of a former process.
    resumed: bool,
    writing: Option<Writing>,
    ended: bool,
}

/// A blob whose bytes are right and whose readers have them all. Dropped, only the copy is lost.
#[must_use = "a verified blob is lost unless it is published"]
#[derive(Debug)]
pub struct Verified {
    filler: Filler,
    written: Written,
}

/// The way to the writer thread of a fill.
#[derive(Debug)]
struct Writing {
    queue: mpsc::Sender<(Bytes, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    writer: JoinHandle<Result<Written, Stopped>>,
}

/// Everything is in the staging file.
#[derive(Debug)]
struct Written {
    digest: Digest,
    stage: Arc<Mutex<Stage>>,
    reservation: Reservation,
}

/// The writer could not go on.
#[derive(Debug)]
struct Stopped {
    handover: Handover,
    label: FillLabel,
    /// What is staged stays on disk while somebody reads it.
    reservation: Reservation,
}

/// What the writer thread holds.
#[derive(Debug)]
struct Writer {
    fill: Arc<Fill>,
    staging: Arc<Staging>,
    /// Locked for each write, so that the directory is not handed over in the middle of one.
    stage: Arc<Mutex<Stage>>,
    reservation: Reservation,
    resumed: bool,
    /// Whether the size was known when the bytes were reserved.
    sized: bool,
}

impl Filler {
    pub(super) fn new(fill: Arc<Fill>, staging: &Arc<Staging>, places: &Arc<Semaphore>) -> Self {
        Self {
            fill,
            staging: Arc::clone(staging),
            places: Arc::clone(places),
            place: None,
            size: None,
            received: 0,
            resumed: false,
            writing: None,
            ended: false,
        }
    }

    /// The digest to bring.
    pub fn digest(&self) -> &Digest {
        &self.fill.digest
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Waits for a place among the fills in progress; to be called before the source is asked for anything. Bytes that are
    /// whole already need none.
    pub async fn place(&mut self) {
        self.place = Arc::clone(&self.places).acquire_owned().await.ok();
        self.staging.metrics.fill_began();
    }

    /// How many of the first bytes a former process has left, if it has. They are not to be told to anybody, and asked for
    /// again only if [`Filler::resume`] says so.
    pub fn left(&self) -> Option<u64> {
        self.staging.left_of(&self.fill.digest)
    }

    /// Whether it goes on from bytes of a former process, which were right when they were written, for all that is known
    /// here.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Says how large the blob will be, if that is known, and makes room for it. Cancelled, the filler can only be
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`FillError::NotKept`] when there is no room or the disk refuses; the followers know already.
    pub async fn begin(&mut self, size: Option<u64>) -> Result<(), FillError> {
        let admitted = self.admit(size, false).await?;
        // Nobody waits for a file to be made to hear how large it will be.
        self.say_begun();
        self.open(admitted).await
    }

    /// As [`Filler::begin`], and goes on from what a former process has left: gives how many bytes there are already. None,
    /// where they are not what they were, or the blob is of another size. The followers hear of the size at once, and of the
    /// bytes when they have been hashed again.
    ///
    /// # Errors
    ///
    /// As [`Filler::begin`].
    pub async fn resume(&mut self, size: Option<u64>) -> Result<u64, FillError> {
        let admitted = self.admit(size, true).await?;
        // It may take some time to read it all.
        self.say_begun();
        self.open(admitted).await?;
        Ok(self.received)
    }

    async fn admit(&mut self, size: Option<u64>, resume: bool) -> Result<Admitted, FillError> {
        self.size = size;
        self.fill
            .progress
            .send_modify(|progress| progress.size = Some(size));
        let (staging, digest) = (Arc::clone(&self.staging), self.fill.digest);
        let admitted =
            tokio::task::spawn_blocking(move || staging.admit(digest, size, resume)).await;
        match admitted {
            Ok(Ok(admitted)) => Ok(admitted),
            Ok(Err(NoRoom)) => Err(self.not_kept(FillLabel::NoRoom)),
            Err(_) => Err(self.not_kept(FillLabel::Disk)),
        }
    }

    /// Opens the file and starts its writer.
    async fn open(&mut self, admitted: Admitted) -> Result<(), FillError> {
        let staging = Arc::clone(&self.staging);
        let opened = tokio::task::spawn_blocking(move || staging.open(admitted)).await;
        let (stage, reservation) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(label)) => return Err(self.not_kept(label)),
            Err(_) => return Err(self.not_kept(FillLabel::Disk)),
        };
        let (file, there) = {
            let stage = stage.lock();
            (Arc::clone(stage.file()), stage.written())
        };
        let _ = self.fill.file.set(file);
        self.resumed = there > 0;
        self.received = there;
        self.fill.ring.lock().begin_at(there);
        self.say_readable();
        let writer = Writer {
            fill: Arc::clone(&self.fill),
            staging: Arc::clone(&self.staging),
            stage,
            reservation,
            resumed: self.resumed,
            sized: self.size.is_some(),
        };
        let (queue, received) = mpsc::channel(QUEUE_CHUNKS_MAX);
        self.writing = Some(Writing {
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            writer: tokio::task::spawn_blocking(move || writer.run(received)),
        });
        Ok(())
    }

    fn say_begun(&self) {
        self.fill
            .progress
            .send_modify(|progress| progress.begun = true);
    }

    fn say_readable(&self) {
        // With an unknown size any byte may be the last one.
        let last = self.size.unwrap_or(self.received).saturating_sub(1);
        let readable = self.received.min(last);
        self.fill
            .progress
            .send_modify(|progress| progress.readable = readable);
    }

    /// Takes in the next bytes. Followers may read them at once, but for the last one. Waits while the disk is behind.
    /// Cancelled, the filler can only be dropped.
    ///
    /// # Errors
    ///
    /// [`FillError::NotKept`] when the disk refused; the followers know already. A source that sends more than it
    /// announced is answered as a mismatch by [`Filler::verify`].
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), FillError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
            self.write_piece(piece).await?;
        }
        Ok(())
    }

    async fn write_piece(&mut self, piece: Bytes) -> Result<(), FillError> {
        let Some(writing) = &self.writing else {
            return Err(FillError::Abandoned);
        };
        let permits = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        let room = Arc::clone(&writing.room).acquire_many_owned(permits).await;
        let Ok(room) = room else {
            return Err(FillError::Abandoned);
        };
        // What is not kept is brought for those who read it.
        if self.staging.is_handed_over() && self.fill.progress.receiver_count() == 0 {
            return Err(self.fail_with(FillError::Abandoned, FillLabel::Abandoned));
        }
        let received = self.fill.ring.lock().push(piece.clone());
        self.received = received;
        self.say_readable();
        if writing.queue.send((piece, room)).await.is_err() {
            return Err(self.writer_stopped().await);
        }
        Ok(())
    }

    /// Verifies what came. The followers have their last byte as soon as the digest is found right; what fails after
    /// that loses the copy and no client.
    ///
    /// # Errors
    ///
    /// When the bytes are not those of the digest, or the disk refused them; the followers know already.
    pub async fn verify(mut self) -> Result<Verified, FillError> {
        let Some(Writing { queue, writer, .. }) = self.writing.take() else {
            return Err(FillError::Abandoned);
        };
        drop(queue);
        let written = match writer.await {
            Ok(Ok(written)) => written,
            Ok(Err(stopped)) => return Err(self.stopped(stopped)),
            Err(_) => return Err(self.fail_with(FillError::Abandoned, FillLabel::Abandoned)),
        };
        if written.digest != self.fill.digest {
            let found = Box::new(written.digest);
            let error = FillError::Mismatch { found };
            return Err(self.fail_with(error, FillLabel::Mismatch));
        }
        self.fill.end(Ok(self.received));
        Ok(Verified {
            filler: self,
            written,
        })
    }

    /// Tells the followers why no more bytes come.
    pub fn fail(mut self, cause: Arc<dyn Error + Send + Sync>) {
        let _ = self.fail_with(FillError::Source(cause), FillLabel::Failed);
    }

    /// Tells the followers that the source's bytes are not those of the digest.
    pub fn refuse(mut self, found: Digest) {
        let found = Box::new(found);
        let _ = self.fail_with(FillError::Mismatch { found }, FillLabel::Mismatch);
    }

    /// The writer is gone: learn why, and tell.
    async fn writer_stopped(&mut self) -> FillError {
        let Some(writing) = self.writing.take() else {
            return FillError::Abandoned;
        };
        drop(writing.queue);
        match writing.writer.await {
            Ok(Err(stopped)) => self.stopped(stopped),
            Ok(Ok(_)) | Err(_) => self.fail_with(FillError::Abandoned, FillLabel::Abandoned),
        }
    }

    fn stopped(&mut self, stopped: Stopped) -> FillError {
        *self.fill.held.lock() = Some(Box::new(stopped.reservation));
        self.fail_with(FillError::NotKept(stopped.handover), stopped.label)
    }

    fn not_kept(&mut self, label: FillLabel) -> FillError {
        let digester = Box::new(Digester::new(self.fill.digest.algorithm()));
        self.fail_with(
            FillError::NotKept(Handover {
                staged: 0,
                digester,
                is_resumed: false,
            }),
            label,
        )
    }

    fn fail_with(&mut self, error: FillError, label: FillLabel) -> FillError {
        debug!(digest = %self.fill.digest, error = %error, "fill failed");
        self.close(label);
        self.fill.end(Err(error.clone()));
        error
    }

    /// Forgets the fill, before anybody hears of its end: whoever asks again then begins anew.
    fn close(&mut self, label: FillLabel) {
        if !self.ended {
            self.ended = true;
            self.staging.index.forget_fill(&self.fill);
            self.staging.metrics.fill_ended(label, self.place.is_some());
        }
    }
}

impl Verified {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.filler.received
    }

    /// Makes the blob official. What goes wrong is logged and counted, and loses the copy.
    pub async fn publish(self) {
        let Self {
            mut filler,
            written,
        } = self;
        let (staging, fill, size) = (
            Arc::clone(&filler.staging),
            Arc::clone(&filler.fill),
            filler.received,
        );
        let published = tokio::task::spawn_blocking(move || {
            let handed_over = || std::io::Error::other("the cache directory was handed over");
            let _writing = staging.index.writing().ok_or_else(handed_over)?;
            let mut stage = written.stage.lock();
            let staged = stage.take().ok_or_else(handed_over)?;
            staging
                .index
                .publish(&fill, staged, written.reservation, size)
        });
        let label = match published.await {
            Ok(Ok(())) => FillLabel::Published,
            Ok(Err(error)) => {
                warn!(digest = %filler.fill.digest, error = %error, "verified blob could not be published");
                FillLabel::Unpublished
            }
            Err(_) => FillLabel::Unpublished,
        };
        filler.close(label);
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.fail_with(FillError::Abandoned, FillLabel::Abandoned);
        }
    }
}

impl Writer {
    fn run(
        mut self,
        mut queue: mpsc::Receiver<(Bytes, OwnedSemaphorePermit)>,
    ) -> Result<Written, Stopped> {
        let mut batch = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = first.0.len();
            batch.push(first);
            while bytes < PIECE_BYTES_MAX
                && let Ok(next) = queue.try_recv()
            {
                bytes += next.0.len();
                batch.push(next);
            }
            let (chunks, permits): (Vec<Bytes>, Vec<_>) = batch.drain(..).unzip();
            if let Err(label) = self.write(&chunks, bytes as u64) {
                let stage = self.stage.lock();
                let handover = Handover {
                    staged: stage.written(),
                    digester: Box::new(stage.digester().clone()),
                    is_resumed: self.resumed,
                };
                let reservation = self.reservation;
                return Err(Stopped {
                    handover,
                    label,
                    reservation,
                });
            }
            drop((chunks, permits));
            self.stage.lock().mark(queue.is_empty());
        }
        let digest = self.stage.lock().digester().clone().finish();
        Ok(Written {
            digest,
            stage: self.stage,
            reservation: self.reservation,
        })
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

/// What the writer takes at once: large writes make large folios, and large reads later.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// Bytes that wait for the writer of one fill.
const QUEUE_BYTES_MAX: usize = 2 << 20;
/// Chunks that wait for the writer of one fill.
const QUEUE_CHUNKS_MAX: usize = 256;
