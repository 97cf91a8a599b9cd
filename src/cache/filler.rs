//! Bringing one blob into the store: reserve, stage, hash, verify, publish.
//!
//! ```text
//! begin ─► reservation, staging file, writer
//! resume ─► the same, with a staging file that a former process began
//! write ─► ring (followers read it at once) ─► queue ─► writer, in its turn: pwrite, hash
//! verify ─► digest right? ─► release the last byte ─► publish: sync, rename, sync ─► present
//!                        └► tell followers why
//! ```

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::{debug, warn};

use super::fill::{Fill, FillError, Handover};
use super::footprint::Footprint;
use super::index::NoRoom;
use super::metrics::FillLabel;
use super::staging::{Admitted, Staging};
use super::writer::{
    PIECE_BYTES_MAX, Piece, QUEUE_BYTES_MAX, QUEUE_CHUNKS_MAX, Stopped, Writer, Written,
};
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
    /// What it leaves in memory.
    pub(super) footprint: Footprint,
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

/// The way to the writer of a fill.
#[derive(Debug)]
struct Writing {
    queue: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
    done: oneshot::Receiver<Result<Written, Stopped>>,
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
            footprint: Footprint::default(),
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
        self.open(admitted).await?;
        self.say_begun();
        Ok(())
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
            footprint: self.footprint,
        };
        let (queue, received) = mpsc::channel(QUEUE_CHUNKS_MAX);
        let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
        self.writing = Some(Writing {
            queue,
            done: writer.start(received, &room),
            room,
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
        let Some(Writing { queue, done, .. }) = self.writing.take() else {
            return Err(FillError::Abandoned);
        };
        drop(queue);
        let written = match done.await {
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
        match writing.done.await {
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
            let published = staging
                .index
                .publish(&fill, staged, written.reservation, size);
            // All of it is on the disk now.
            let wanted_from = fill.wanted_from();
            written.footprint.let_go(stage.file(), size, wanted_from);
            published
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::path::Path;
    use std::time::Duration;

    use rustix::io::ReadWriteFlags;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::cache::layout::Repository;
    use crate::cache::metrics::Metrics;
    use crate::cache::staging::turns_max;
    use crate::cache::writer::WAIT_MAX;
    use crate::cache::{Cache, Config, Faults, Follower, Joined, Share};
    use crate::oci::{Algorithm, Namespace, RepositoryName};

    const MIB: u64 = 1 << 20;

    async fn open(dir: &Path) -> Cache {
        let config = Config {
            dir: dir.to_owned(),
            size: Some(1 << 30),
            free_space_min: Share::Bytes(0),
            high_watermark: Share::Percent(100.0),
            low_watermark: Share::Percent(100.0),
            repositories_max: 10,
            scrub_rate: 0,
            fills_max: 1000,
            faults: Faults::default(),
        };
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let opening = move || {
            let cache = Cache::open(&config, metrics).unwrap();
            cache.scan();
            cache
        };
        tokio::task::spawn_blocking(opening).await.unwrap()
    }

    async fn first(cache: &Cache, digest: &Digest) -> (Filler, Follower) {
        let through = Repository {
            namespace: Namespace::parse("docker.io").unwrap(),
            name: RepositoryName::parse("library/debian").unwrap(),
        };
        let Joined::First(filler, follower) = cache.join(digest, &through).await else {
            panic!("nobody else brings it");
        };
        (*filler, follower)
    }

    fn written(filler: &Filler) -> u64 {
        let file = filler.fill.file.get().unwrap();
        file.metadata().unwrap().len()
    }

    #[tokio::test]
    async fn a_fill_that_waits_for_its_turn_is_followed_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path()).await;
        let bytes = Bytes::from(vec![7; 1 << 20]);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let (mut filler, mut follower) = first(&cache, &digest).await;
        let all = u32::try_from(turns_max()).unwrap();
        let turns = Arc::clone(&filler.staging.turns);
        let others = turns.acquire_many_owned(all).await.unwrap();
        filler.begin(Some(MIB)).await.unwrap();
        assert_eq!(follower.head().await.unwrap(), Some(MIB));
        filler.write(bytes).await.unwrap();
        let mut content = cache.follow(follower);
        let mut read = 0;
        while read < MIB - 1 {
            let bytes = content.read_at(read, MIB).await.unwrap();
            read += bytes.unwrap().len() as u64;
        }
        assert_eq!((read, written(&filler)), (MIB - 1, 0));
        drop(others);
        filler.verify().await.unwrap().publish().await;
        let last = content.read_at(read, MIB).await.unwrap();
        assert_eq!(last.as_deref(), Some(&[7][..]));
        assert_eq!(cache.size_of(&digest).await, Some(MIB));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_small_pieces_is_written_in_large_ones() {
        const PIECE: usize = 64 << 10;
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path()).await;
        let pieces = vec![7; 2 * PIECE_BYTES_MAX - PIECE];
        let digest = Digest::of(Algorithm::Sha256, &pieces);
        let (mut filler, _follower) = first(&cache, &digest).await;
        filler.begin(Some(pieces.len() as u64)).await.unwrap();
        let began = Instant::now();
        let mut pieces = pieces.chunks(PIECE).map(Bytes::copy_from_slice);
        for piece in pieces.by_ref().take(PIECE_BYTES_MAX / PIECE - 1) {
            filler.write(piece).await.unwrap();
            // As long as nothing else is to be done, but no time.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(written(&filler), 0, "it is little yet");
        filler.write(pieces.next().unwrap()).await.unwrap();
        let turns = Arc::clone(&filler.staging.turns);
        while written(&filler) < MIB || turns.available_permits() < turns_max() {
            tokio::task::yield_now().await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "a large one does not wait");
        filler.write(pieces.next().unwrap()).await.unwrap();
        sleep(WAIT_MAX / 2).await;
        assert_eq!(written(&filler), MIB, "a small one waits");
        sleep(WAIT_MAX).await;
        drain(&filler).await;
        assert_eq!(written(&filler), MIB + PIECE as u64, "but not for ever");
        let waited = began.elapsed();
        for piece in pieces {
            filler.write(piece).await.unwrap();
        }
        let verified = filler.verify().await.unwrap();
        assert_eq!(began.elapsed(), waited, "nothing waits at the end");
        verified.publish().await;
    }

    #[test]
    fn fills_whose_bytes_do_not_come_hold_neither_turn_nor_thread() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(turns_max());
        let runtime = runtime.build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let filling = async {
            let cache = open(dir.path()).await;
            let mut slow = Vec::new();
            for n in 0..4 * turns_max() {
                let digest = Digest::of(Algorithm::Sha256, &n.to_le_bytes());
                let (mut filler, follower) = first(&cache, &digest).await;
                filler.begin(Some(MIB)).await.unwrap();
                filler.write(Bytes::from_static(b"slow")).await.unwrap();
                slow.push((filler, follower));
            }
            for (filler, _) in &slow {
                drain(filler).await;
            }
            let digest = Digest::of(Algorithm::Sha256, b"quick");
            let (mut filler, _follower) = first(&cache, &digest).await;
            filler.begin(Some(5)).await.unwrap();
            filler.write(Bytes::from_static(b"quick")).await.unwrap();
            filler.verify().await.unwrap().publish().await;
            assert_eq!(cache.size_of(&digest).await, Some(5));
        };
        let patience = Duration::from_secs(20);
        let filled = runtime.block_on(async { timeout(patience, filling).await });
        runtime.shutdown_background();
        assert!(filled.is_ok(), "slow fills stand in the way of a quick one");
    }

    /// Waits until all that came is written.
    async fn drain(filler: &Filler) {
        let all = u32::try_from(QUEUE_BYTES_MAX).unwrap();
        let room = &filler.writing.as_ref().unwrap().room;
        drop(room.acquire_many(all).await.unwrap());
    }

    /// MiB of a file that begin in memory. One page is looked at in each, for a look may bring the next pages.
    fn resident(file: &File) -> u64 {
        let is_there = |at: &u64| {
            let mut byte = [0];
            let mut slices = [IoSliceMut::new(&mut byte)];
            rustix::io::preadv2(file, &mut slices, at * MIB, ReadWriteFlags::NOWAIT).is_ok()
        };
        let whole = file.metadata().unwrap().len() / MIB;
        (0..whole).filter(is_there).count() as u64
    }

    /// Who follows a fill.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Follows {
        Nobody,
        OneThatKeepsUp,
        OneThatIsBehind,
        Two,
    }

    /// Fills a blob of which some MiB may stay in memory in any case; gives how many are there before it is published, and
    /// after that.
    async fn left_in_memory(follows: Follows) -> [u64; 2] {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path()).await;
        let piece = Bytes::from(vec![7; 1 << 20]);
        let mut digester = Digester::new(Algorithm::Sha256);
        (0..BLOB_MIB).for_each(|_| digester.update(&piece));
        let digest = digester.finish();
        let (mut filler, follower) = first(&cache, &digest).await;
        filler.footprint = Footprint::new(KEPT_MIB * MIB, 4 * MIB);
        filler.begin(Some(BLOB_MIB * MIB)).await.unwrap();
        let is_followed = follows != Follows::Nobody;
        let mut content = is_followed.then(|| cache.follow(follower));
        let second = (follows == Follows::Two).then(|| filler.fill.progress.subscribe());
        let mut read = 0;
        for n in 0..BLOB_MIB {
            if n == SYNCED_MIB {
                drain(&filler).await;
                let file = filler.fill.file.get().unwrap();
                file.sync_data().unwrap();
            }
            filler.write(piece.clone()).await.unwrap();
            while follows == Follows::OneThatKeepsUp
                && let Some(content) = &mut content
                && read + 1 < filler.received()
            {
                let bytes = content.read_at(read, MIB).await.unwrap();
                read += bytes.unwrap().len() as u64;
            }
        }
        drain(&filler).await;
        let file = Arc::clone(filler.fill.file.get().unwrap());
        let before = resident(&file);
        filler.verify().await.unwrap().publish().await;
        drop((content, second));
        [before, resident(&file)]
    }

    const BLOB_MIB: u64 = 64;
    const KEPT_MIB: u64 = 8;
    const SYNCED_MIB: u64 = 56;

    #[tokio::test]
    async fn what_nobody_follows_does_not_fill_the_memory() {
        for follows in [Follows::Two, Follows::OneThatIsBehind] {
            let [before, after] = left_in_memory(follows).await;
            // The system may take back some, as ever.
            let least = BLOB_MIB - 8;
            assert!(
                before >= least && after >= least,
                "{follows:?} may read it: {before}, {after}"
            );
        }
        for follows in [Follows::Nobody, Follows::OneThatKeepsUp] {
            let [before, after] = left_in_memory(follows).await;
            // A page that the system is busy with stays, and what is not on the disk.
            let most = KEPT_MIB + BLOB_MIB - SYNCED_MIB + 4;
            assert!((KEPT_MIB..=most).contains(&before), "{follows:?}: {before}");
            assert!(
                (KEPT_MIB..=KEPT_MIB + 4).contains(&after),
                "{follows:?}: {after}"
            );
        }
    }
}
