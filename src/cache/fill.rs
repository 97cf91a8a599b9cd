//! A fill in progress as its readers see it: how far it is, its recent bytes, and how it ended.
//!
//! Nobody leads and nobody waits for anybody's socket. Whoever keeps up reads the ring of recent bytes; whoever falls
//! behind reads the staging file, or has the kernel send it; what is in neither does not exist. The last byte is not
//! readable before the digest has been found right.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::layout::Repository;
use super::metrics::Metrics;
use crate::oci::{Digest, Digester};

/// How a fill failed. Many wait for one fill, so its failure is cheap to share.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillError {
    /// Whoever brought the bytes could not; the cause is theirs.
    #[error("the fill's source failed")]
    Source(#[source] Arc<dyn Error + Send + Sync>),
    /// All bytes came, and they are not those of the digest.
    #[error("the bytes are those of {found}")]
    Mismatch {
        /// What came instead of what was asked for.
        found: Box<Digest>,
    },
    /// The cache cannot keep the bytes: go on without it.
    #[error("the cache cannot keep the bytes")]
    NotKept(Handover),
    /// Whoever brought the bytes gave up without a word.
    #[error("the fill was abandoned")]
    Abandoned,
}

/// Where a reader goes on by itself when the cache cannot keep a blob.
#[derive(Clone)]
pub struct Handover {
    /// Bytes below this are in the staging file and can still be read there.
    pub staged: u64,
    /// The state of the digest after exactly `staged` bytes.
    pub digester: Box<Digester>,
    /// Whether some of them are of a former process, so that what is wrong in the end may be none of upstream's doing.
    pub is_resumed: bool,
}

/// How far a fill is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// The total, once the source has said it: `Some(None)` when it said that it does not know.
    pub(super) size: Option<Option<u64>>,
    /// Bytes below this may be read: all that was received but the last, until the digest is found right.
    pub(super) readable: u64,
    /// Whether the cache has decided that it keeps the bytes.
    pub(super) begun: bool,
    /// The end, when there is one.
    pub(super) end: Option<Result<u64, FillError>>,
}

/// One fill, shared by the filler and its followers.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) digest: Digest,
    /// The repository through which the bytes come.
    pub(super) through: Repository,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) ring: Mutex<Ring>,
    /// The staging file, once there is one.
    pub(super) file: OnceLock<Arc<File>>,
    /// What has the bytes from this offset on instead, once the staging file is a successor's.
    pub(super) tail: OnceLock<(u64, Arc<File>)>,
    /// Where somebody has read last.
    read_from: AtomicU64,
    /// What must live as long as somebody reads the file: its place in the budget.
    pub(super) held: Mutex<Option<Box<dyn Held>>>,
}

/// Something whose only use is to be dropped at the right time.
pub(super) trait Held: std::fmt::Debug + Send + Sync {}

/// The most recent bytes of a fill. Its chunks are contiguous, and everything before the first is in the file.
#[derive(Debug, Default)]
pub(super) struct Ring {
    chunks: VecDeque<(u64, Bytes)>,
    bytes: usize,
    received: u64,
    written: u64,
}

/// A reader of a fill in progress. It owns its place; nobody waits for it.
#[derive(Debug)]
pub struct Follower {
    pub(super) fill: Arc<Fill>,
    progress: watch::Receiver<Progress>,
    metrics: Metrics,
}

/// Where the bytes at an offset are to be had.
#[derive(Debug)]
pub(super) enum At {
    /// Here they are.
    Memory(Bytes),
    /// In the staging file; up to this many may be read.
    File(Arc<File>, u64),
    /// There are no more: this was the verified end.
    End,
}

impl Fill {
    pub(super) fn new(digest: Digest, through: Repository) -> Arc<Self> {
        Arc::new(Self {
            digest,
            through,
            progress: watch::Sender::new(Progress::default()),
            ring: Mutex::new(Ring::default()),
            file: OnceLock::new(),
            tail: OnceLock::new(),
            read_from: AtomicU64::new(0),
            held: Mutex::new(None),
        })
    }

    /// Ends the fill, once; later calls change nothing. Whoever still reads has the file, so that the memory of a fill
    /// ends with it.
    pub(super) fn end(&self, end: Result<u64, FillError>) {
        self.progress.send_if_modified(|progress| {
            if progress.end.is_some() {
                return false;
            }
            if let Ok(size) = end {
                progress.readable = size;
            }
            progress.end = Some(end);
            true
        });
        // After the end is known: nobody must find bytes in neither place.
        self.ring.lock().forget();
    }

    /// From where on somebody may read what is here. One reader alone wants what it has not read; where there are several,
    /// more may come.
    pub(super) fn wanted_from(&self) -> u64 {
        match self.progress.receiver_count() {
            0 => u64::MAX,
            1 => self.read_from.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// The file that has the byte at `offset`, and how many of the `left` bytes from there on it has for certain.
    fn file_at(&self, offset: u64, left: u64) -> Option<(Arc<File>, u64)> {
        // What is not written by us may be written by a successor, and is none of ours.
        let left = left.min(self.ring.lock().written.saturating_sub(offset));
        let (file, left) = match self.tail.get() {
            Some((begin, tail)) if offset >= *begin => (tail, left),
            Some((begin, _)) => (self.file.get()?, left.min(begin - offset)),
            None => (self.file.get()?, left),
        };
        (left > 0).then(|| (Arc::clone(file), left))
    }
}

impl Ring {
    /// Goes on after this many bytes, which are in the file.
    pub(super) fn begin_at(&mut self, offset: u64) {
        (self.received, self.written) = (offset, offset);
    }

    /// Lets go of all bytes. Those that were written are in the file.
    fn forget(&mut self) {
        self.chunks = VecDeque::new();
        self.bytes = 0;
    }

    /// Takes in what just arrived; gives the new total.
    pub(super) fn push(&mut self, bytes: Bytes) -> u64 {
        let at = self.received;
        self.received += bytes.len() as u64;
        self.bytes += weight(&bytes);
        self.chunks.push_back((at, bytes));
        self.trim();
        self.received
    }

    /// Notes that everything below `written` is in the file.
    pub(super) fn wrote(&mut self, written: u64) {
        self.written = written;
        self.trim();
    }

    /// The bytes from `offset` to the end of their chunk.
    fn at(&self, offset: u64) -> Option<Bytes> {
        let after = self.chunks.partition_point(|(at, _)| *at <= offset);
        let (at, chunk) = self.chunks.get(after.checked_sub(1)?)?;
        let skip = usize::try_from(offset - at).ok()?;
        (skip < chunk.len()).then(|| chunk.slice(skip..))
    }

    fn trim(&mut self) {
        while self.bytes > RING_BYTES_MAX {
            let Some((at, chunk)) = self.chunks.front() else {
                return;
            };
            if at + chunk.len() as u64 > self.written {
                return;
            }
            self.bytes -= weight(chunk);
            self.chunks.pop_front();
        }
    }
}

impl Follower {
    pub(super) fn new(fill: Arc<Fill>, metrics: Metrics) -> Self {
        metrics.follower_came();
        let progress = fill.progress.subscribe();
        Self {
            fill,
            progress,
            metrics,
        }
    }

    /// Whether the bytes come through this repository, so that the fill itself is its proof.
    pub fn is_through(&self, repository: &Repository) -> bool {
        self.fill.through == *repository
    }

    /// Waits until the source has said how large the blob is and the cache whether it keeps it. `None` is a size that the
    /// source does not know. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the fill failed before that. With [`FillError::NotKept`] the size is known: ask [`Follower::size`].
    pub async fn head(&mut self) -> Result<Option<u64>, FillError> {
        let known = |progress: &Progress| progress.begun || progress.end.is_some();
        let Ok(progress) = self.progress.wait_for(known).await else {
            return Err(FillError::Abandoned);
        };
        match &progress.end {
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(size)) => Ok(Some(*size)),
            None => Ok(progress.size.flatten()),
        }
    }

    /// The size as far as it is known now.
    pub fn size(&self) -> Option<u64> {
        let progress = self.progress.borrow();
        match progress.end {
            Some(Ok(size)) => Some(size),
            Some(Err(_)) | None => progress.size.flatten(),
        }
    }

    /// Bytes below this can be read now.
    pub fn front(&self) -> u64 {
        self.progress.borrow().readable
    }

    /// Waits for the verified end and gives the size. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the fill failed.
    pub async fn verified(&mut self) -> Result<u64, FillError> {
        match self
            .progress
            .wait_for(|progress| progress.end.is_some())
            .await
            .as_deref()
        {
            Ok(Progress { end: Some(end), .. }) => end.clone(),
            Ok(_) | Err(_) => Err(FillError::Abandoned),
        }
    }

    /// Waits until there is something to read at `offset`, or there will be nothing. Cancel-safe.
    pub(super) async fn arrives(&mut self, offset: u64) {
        let settled = |progress: &Progress| progress.readable > offset || progress.end.is_some();
        // Where nobody brings it any more, reading says so.
        let _ = self.progress.wait_for(settled).await;
    }

    /// The file that has the bytes at `offset` now, and how many of them may be read from it; `None` when there are none, or
    /// none yet, or it takes [`Follower::at`] to find out.
    pub(super) fn file_at(&self, offset: u64) -> Option<(Arc<File>, u64)> {
        let readable = {
            let progress = self.progress.borrow();
            match &progress.end {
                Some(Err(FillError::NotKept(handover))) => progress.readable.min(handover.staged),
                Some(Err(_)) => return None,
                Some(Ok(_)) | None => progress.readable,
            }
        };
        self.fill.read_from.store(offset, Ordering::Relaxed);
        if self.fill.ring.lock().at(offset).is_some() {
            // What was hashed, whatever has become of the file.
            return None;
        }
        self.fill.file_at(offset, readable.checked_sub(offset)?)
    }

    /// Waits until there is something to read at `offset`. Cancel-safe.
    pub(super) async fn at(&mut self, offset: u64) -> Result<At, FillError> {
        self.fill.read_from.store(offset, Ordering::Relaxed);
        let settled = |progress: &Progress| progress.readable > offset || progress.end.is_some();
        loop {
            let (readable, end) = match self.progress.wait_for(settled).await.as_deref() {
                Ok(progress) => (progress.readable, progress.end.clone()),
                Err(_) => return Err(FillError::Abandoned),
            };
            let has_ended = end.is_some();
            match end {
                Some(Ok(size)) if offset >= size => return Ok(At::End),
                Some(Err(FillError::NotKept(handover))) => {
                    // Only what is staged is sure to stay readable; the rest comes from upstream, hashed anew.
                    let left = handover.staged.saturating_sub(offset);
                    let staged = self.fill.file_at(offset, left);
                    let (file, left) = staged.ok_or(FillError::NotKept(handover))?;
                    return Ok(At::File(file, left));
                }
                Some(Err(error)) => return Err(error),
                Some(Ok(_)) | None => {}
            }
            let left = readable - offset;
            if let Some(mut bytes) = self.fill.ring.lock().at(offset) {
                bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                return Ok(At::Memory(bytes));
            }
            match self.fill.file_at(offset, left) {
                Some((file, left)) => return Ok(At::File(file, left)),
                // The fill has failed since, and let go of what was not written: that is news.
                None if !has_ended => {}
                None => return Err(FillError::Abandoned),
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.metrics.follower_left();
    }
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover")
            .field("staged", &self.staged)
            .finish_non_exhaustive()
    }
}

/// What a chunk costs: a small one keeps more alive than itself.
fn weight(chunk: &Bytes) -> usize {
    chunk.len().max(CHUNK_BYTES_MIN)
}

const CHUNK_BYTES_MIN: usize = 4 << 10;
/// Whoever is less than this behind the fill's front reads memory.
const RING_BYTES_MAX: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn fill() -> Arc<Fill> {
        let repository = Repository {
            namespace: crate::oci::Namespace::parse("docker.io").unwrap(),
            name: crate::oci::RepositoryName::parse("library/debian").unwrap(),
        };
        Fill::new(Digest::of(crate::oci::Algorithm::Sha256, b""), repository)
    }

    #[tokio::test]
    async fn what_was_not_written_when_the_fill_failed_is_no_end() {
        let fill = fill();
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let mut follower = Follower::new(Arc::clone(&fill), metrics);
        fill.ring.lock().push(Bytes::from_static(b"bytes"));
        fill.progress.send_modify(|progress| progress.readable = 4);
        // As when the failure comes between two looks of the reader.
        fill.ring.lock().forget();
        let reading = follower.at(2);
        let failing = async {
            let (staged, digester) = (0, Digester::new(fill.digest.algorithm()));
            fill.end(Err(FillError::NotKept(Handover {
                staged,
                digester: Box::new(digester),
                is_resumed: false,
            })));
        };
        let (read, ()) = tokio::join!(reading, failing);
        assert!(matches!(read, Err(FillError::NotKept(_))), "{read:?}");
    }

    #[tokio::test]
    async fn invariant_06_a_file_is_readable_up_to_the_mark_and_where_it_is_written() {
        let fill = fill();
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let follower = Follower::new(Arc::clone(&fill), metrics);
        let len_at = |offset| follower.file_at(offset).map(|(_, len)| len);
        let file = Arc::new(tempfile::tempfile().unwrap());
        fill.file.set(Arc::clone(&file)).unwrap();
        fill.ring.lock().push(Bytes::from(vec![7; 100]));
        fill.progress.send_modify(|it| it.readable = 99);
        assert_eq!(len_at(0), None, "nothing is written yet");
        fill.ring.lock().wrote(60);
        assert_eq!(len_at(0), None, "it is in memory");
        fill.ring.lock().forget();
        assert_eq!(
            (len_at(0), len_at(59), len_at(60)),
            (Some(60), Some(1), None)
        );
        fill.ring.lock().wrote(100);
        assert_eq!(
            (len_at(10), len_at(99), len_at(200)),
            (Some(89), None, None)
        );
        assert_eq!(fill.wanted_from(), 200, "what a file's reader has passed");
        let tail = Arc::new(tempfile::tempfile().unwrap());
        fill.tail.set((50, Arc::clone(&tail))).unwrap();
        assert_eq!((len_at(10), len_at(50)), (Some(40), Some(49)));
        assert!(Arc::ptr_eq(&follower.file_at(50).unwrap().0, &tail));
        fill.end(Ok(100));
        assert_eq!((len_at(99), len_at(100)), (Some(1), None));
    }

    #[test]
    fn who_reads_the_file_of_a_fill_that_failed_is_told_so() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let handover = Handover {
            staged: 70,
            digester: Box::new(Digester::new(crate::oci::Algorithm::Sha256)),
            is_resumed: false,
        };
        let kept = FillError::NotKept(handover);
        for (error, readable) in [(FillError::Abandoned, None), (kept, Some(60))] {
            let fill = fill();
            let follower = Follower::new(Arc::clone(&fill), metrics.clone());
            fill.file
                .set(Arc::new(tempfile::tempfile().unwrap()))
                .unwrap();
            fill.ring.lock().push(Bytes::from(vec![7; 100]));
            fill.ring.lock().wrote(100);
            fill.progress.send_modify(|it| it.readable = 99);
            fill.end(Err(error));
            assert_eq!(follower.file_at(10).map(|(_, len)| len), readable);
        }
    }

    #[test]
    fn the_ring_keeps_what_is_not_written() {
        let mut ring = Ring::default();
        let chunk = Bytes::from(vec![7; RING_BYTES_MAX]);
        ring.push(chunk.clone());
        ring.push(chunk.clone());
        assert!(ring.at(0).is_some(), "nothing is written yet");
        ring.wrote(RING_BYTES_MAX as u64);
        assert!(ring.at(0).is_none(), "the file has it");
        assert_eq!(
            ring.at(RING_BYTES_MAX as u64).unwrap().len(),
            RING_BYTES_MAX
        );
        assert_eq!(ring.at(2 * RING_BYTES_MAX as u64 - 1).unwrap().len(), 1);
        assert!(ring.at(2 * RING_BYTES_MAX as u64).is_none());
    }
}
