//! Bringing one blob into the store: reserve, stage, hash, verify, publish.
//!
//! ```text
//! begin ─► reservation, staging file, writer thread
//! write ─► ring (followers read it at once) ─► queue ─► writer: pwrite, hash
//! verify ─► digest right? ─► release the last byte ─► publish: sync, rename, sync ─► present
//!                        └► tell followers why
//! ```
//!
//! One thread for each fill writes and hashes, in pieces of up to 1 MiB, so that neither ever stands on an async thread.

use std::error::Error;
use std::io::{IoSlice, Write};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::disk::{Disk, StagedFile};
use super::fill::{Fill, FillError, Handover};
use super::index::{Index, NoRoom, Reservation};
use super::metrics::{FillLabel, Metrics};
use crate::oci::{Digest, Digester};

/// The right, and the duty, to bring one blob. Dropped unfinished, it fails its followers.
#[must_use = "dropping a filler fails everyone who follows it"]
#[derive(Debug)]
pub struct Filler {
    fill: Arc<Fill>,
    index: Arc<Index>,
    disk: Arc<Disk>,
    metrics: Metrics,
    /// Places for fills in progress.
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
    size: Option<u64>,
    received: u64,
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
    staged: StagedFile,
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
    staged: StagedFile,
    reservation: Reservation,
    digester: Digester,
    written: u64,
    /// Whether the size was known when the bytes were reserved.
    sized: bool,
}

impl Filler {
    pub(super) fn new(
        fill: Arc<Fill>,
        index: &Arc<Index>,
        disk: &Arc<Disk>,
        places: &Arc<Semaphore>,
        metrics: Metrics,
    ) -> Self {
        Self {
            fill,
            index: Arc::clone(index),
            disk: Arc::clone(disk),
            metrics,
            places: Arc::clone(places),
            place: None,
            size: None,
            received: 0,
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
        self.metrics.fill_began();
    }

    /// Says how large the blob will be, if that is known, and makes room for it. Cancelled, the filler can only be
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`FillError::NotKept`] when there is no room or the disk refuses; the followers know already.
    pub async fn begin(&mut self, size: Option<u64>) -> Result<(), FillError> {
        self.size = size;
        self.fill
            .progress
            .send_modify(|progress| progress.size = Some(size));
        let (index, disk) = (Arc::clone(&self.index), Arc::clone(&self.disk));
        let made = tokio::task::spawn_blocking(move || {
            let reservation = index.reserve(size.unwrap_or_else(|| index.growth()))?;
            Ok::<_, NoRoom>((reservation, disk.stage()))
        });
        let (reservation, staged) = match made.await {
            Ok(Ok((reservation, Ok(staged)))) => (reservation, staged),
            Ok(Ok((_, Err(_)))) | Err(_) => return Err(self.not_kept(FillLabel::Disk)),
            Ok(Err(NoRoom)) => return Err(self.not_kept(FillLabel::NoRoom)),
        };
        let _ = self.fill.file.set(Arc::clone(staged.file()));
        let writer = Writer {
            fill: Arc::clone(&self.fill),
            staged,
            reservation,
            digester: Digester::new(self.fill.digest.algorithm()),
            written: 0,
            sized: size.is_some(),
        };
        let (queue, received) = mpsc::channel(QUEUE_CHUNKS_MAX);
        self.writing = Some(Writing {
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            writer: tokio::task::spawn_blocking(move || writer.run(received)),
        });
        self.fill
            .progress
            .send_modify(|progress| progress.begun = true);
        Ok(())
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
        let received = self.fill.ring.lock().push(piece.clone());
        self.received = received;
        // With an unknown size any byte may be the last one.
        let last = self.size.unwrap_or(received).saturating_sub(1);
        let readable = received.min(last);
        self.fill
            .progress
            .send_modify(|progress| progress.readable = readable);
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
            self.index.forget_fill(&self.fill);
            self.metrics.fill_ended(label, self.place.is_some());
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
        let (index, fill, size) = (
            Arc::clone(&filler.index),
            Arc::clone(&filler.fill),
            filler.received,
        );
        let published = tokio::task::spawn_blocking(move || {
            index.publish(&fill, written.staged, written.reservation, size)
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
            if let Err(label) = self.write(&batch, bytes as u64) {
                let handover = Handover {
                    staged: self.written,
                    digester: Box::new(self.digester),
                };
                let reservation = self.reservation;
                return Err(Stopped {
                    handover,
                    label,
                    reservation,
                });
            }
            batch.clear();
        }
        let Self {
            digester,
            staged,
            reservation,
            ..
        } = self;
        Ok(Written {
            digest: digester.finish(),
            staged,
            reservation,
        })
    }

    fn write(
        &mut self,
        batch: &[(Bytes, OwnedSemaphorePermit)],
        bytes: u64,
    ) -> Result<(), FillLabel> {
        if self.written + bytes > self.reservation.bytes() {
            // More than was announced is either a size nobody knew or a source that lied; the digest will tell.
            let more = if self.sized {
                bytes
            } else {
                self.reservation.growth().max(bytes)
            };
            self.reservation
                .grow(more)
                .map_err(|NoRoom| FillLabel::NoRoom)?;
        }
        let (written, result) = match self.staged.check_write() {
            Ok(()) => write_all(self.staged.file(), batch),
            Err(error) => (0, Err(error)),
        };
        let mut left = written;
        for (chunk, _) in batch {
            let hashed = chunk.len().min(left);
            self.digester
                .update(chunk.get(..hashed).unwrap_or_default());
            left -= hashed;
        }
        self.written += written as u64;
        self.reservation.wrote(written as u64);
        self.fill.ring.lock().wrote(self.written);
        result.map_err(|error| {
            self.staged.write_failed(error);
            FillLabel::Disk
        })
    }
}

/// Appends all chunks; gives how many bytes the file took, also when it did not take all.
fn write_all(
    mut file: &std::fs::File,
    batch: &[(Bytes, OwnedSemaphorePermit)],
) -> (usize, std::io::Result<()>) {
    let mut slices: Vec<IoSlice<'_>> = batch.iter().map(|(chunk, _)| IoSlice::new(chunk)).collect();
    let mut rest = slices.as_mut_slice();
    let mut written = 0;
    while !rest.is_empty() {
        let many = rest.len().min(IOV_MAX);
        match file.write_vectored(rest.get(..many).unwrap_or_default()) {
            Ok(0) => return (written, Err(std::io::ErrorKind::WriteZero.into())),
            Ok(n) => {
                written += n;
                IoSlice::advance_slices(&mut rest, n);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// What the writer takes at once: large writes make large folios, and large reads later.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// Bytes that wait for the writer of one fill.
const QUEUE_BYTES_MAX: usize = 2 << 20;
/// Chunks that wait for the writer of one fill.
const QUEUE_CHUNKS_MAX: usize = 256;
/// Slices of one vectored write; the kernel's own limit (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;
