//! Where the bytes of one fill are written and hashed: the staging file, its mark, and, once the directory is a successor's,
//! a file without a name.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::disk::Disk;
use super::faults::{Area, Operation};
use super::remainder::{Mark, Says};
use super::staged::StagedFile;
use crate::oci::{Digest, Digester};

/// The bytes of a fill on their way to the disk. Dropped unpublished, the staging file and its mark lose their names.
#[derive(Debug)]
pub(super) struct Stage {
    disk: Arc<Disk>,
    digest: Digest,
    size: Option<u64>,
    /// Until it is published.
    staged: Option<StagedFile>,
    file: Arc<File>,
    mark: Option<Mark>,
    digester: Digester,
    written: u64,
    /// How many bytes the mark speaks of, and since when.
    marked: u64,
    marked_at: Instant,
    /// What takes the bytes from some offset on since the directory is a successor's.
    tail: Option<(u64, Arc<File>)>,
    handed_over: bool,
}

impl Stage {
    /// A new staging file for a blob of this size. Blocks.
    ///
    /// # Errors
    ///
    /// When the disk refuses, which has been counted.
    pub(super) fn new(disk: &Arc<Disk>, digest: Digest, size: Option<u64>) -> io::Result<Self> {
        let digester = Digester::new(digest.algorithm());
        let staged = StagedFile::new(disk)?;
        Ok(Self::with(disk, digest, size, (staged, None, digester, 0)))
    }

    /// What a former process has begun. The names are ours from here on.
    pub(super) fn resumed(
        disk: &Arc<Disk>,
        says: &Says,
        size: Option<u64>,
        (mut staged, mut mark, digester): (StagedFile, Mark, Digester),
    ) -> Self {
        staged.leave(false);
        mark.leave(false);
        let begun = (staged, Some(mark), digester, says.length);
        // A mark never gets shorter: what it says of the size is said again, should nobody say it now.
        Self::with(disk, says.digest, size.or(says.size), begun)
    }

    fn with(
        disk: &Arc<Disk>,
        digest: Digest,
        size: Option<u64>,
        (staged, mark, digester, written): (StagedFile, Option<Mark>, Digester, u64),
    ) -> Self {
        Self {
            disk: Arc::clone(disk),
            digest,
            size,
            file: Arc::clone(staged.file()),
            staged: Some(staged),
            mark,
            digester,
            written,
            marked: written,
            marked_at: Instant::now(),
            tail: None,
            handed_over: false,
        }
    }

    /// The file that has everything, or everything before the tail.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The file that has the rest, and where it begins.
    pub(super) fn tail(&self) -> Option<&(u64, Arc<File>)> {
        self.tail.as_ref()
    }

    /// Bytes that are in the file, or the two.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// The state of the digest after them.
    pub(super) fn digester(&self) -> &Digester {
        &self.digester
    }

    /// The staging file, to be published; `None` when its name is not ours any more.
    pub(super) fn take(&mut self) -> Option<StagedFile> {
        self.staged.take().filter(|_| !self.handed_over)
    }

    /// Appends all chunks, and takes those bytes into the digest that the file took, also when it did not take all. Gives
    /// their number. Where the file was changed behind our back, nothing counts as written any more. Blocks.
    pub(super) fn write(&mut self, chunks: &[Bytes]) -> (u64, io::Result<()>) {
        if let Err(error) = self.check_size() {
            // Nothing that is in it is read any more.
            (self.written, self.digester) = (0, Digester::new(self.digest.algorithm()));
            return (0, self.disk.counted("stat", Err(error)));
        }
        let file = self.tail.as_ref().map_or(&self.file, |(_, tail)| tail);
        let (written, result) = match self.disk.faults().check(Operation::Write, Area::Staging) {
            Ok(()) => write_all(file, chunks),
            Err(error) => (0, Err(error)),
        };
        let mut left = written;
        for chunk in chunks {
            let hashed = chunk.len().min(left);
            self.digester
                .update(chunk.get(..hashed).unwrap_or_default());
            left -= hashed;
        }
        self.written += written as u64;
        let result = result.or_else(|error| self.disk.counted("pwrite", Err(error)));
        (written as u64, result)
    }

    /// Somebody may have cut the file meanwhile. Written behind the cut, it would have a hole that nobody sees any more: the
    /// digest is of what came, and readers who are behind are sent what the file has.
    fn check_size(&self) -> io::Result<()> {
        match (&self.staged, &self.tail) {
            (Some(staged), None) => staged.check_size(self.written),
            (None, _) | (_, Some(_)) => Ok(()),
        }
    }

    /// Marks what is written, if that is worth it by now: at leisure often, else from time to time. Blocks.
    pub(super) fn mark(&mut self, is_idle: bool) {
        let is_due = is_idle || self.marked_at.elapsed() >= MARK_EVERY;
        if is_due && self.written - self.marked >= MARK_STEP_BYTES {
            self.mark_now();
        }
    }

    /// Whether all that is written is marked now.
    fn mark_now(&mut self) -> bool {
        // What lacks nothing is about to be published, and nobody can ask for the rest of it.
        if self.handed_over || self.size.is_some_and(|size| self.written >= size) {
            return false;
        }
        let says = Says {
            digest: self.digest,
            length: self.written,
            prefix: self.digester.clone().finish(),
            size: self.size,
        };
        let said = self.say(&says);
        let is_said = self.disk.counted("mark", said).is_ok();
        (self.marked, self.marked_at) = (self.written, Instant::now());
        is_said
    }

    fn say(&mut self, says: &Says) -> io::Result<()> {
        if self.mark.is_none()
            && let Some(staged) = &self.staged
        {
            self.mark = Some(Mark::new(&self.disk, staged.path())?);
        }
        match &self.mark {
            Some(mark) => mark.say(says),
            None => Ok(()),
        }
    }

    /// Leaves what is written to a successor, marked, and writes no more to it; or removes its names, where it is not worth
    /// that. Readers of the fill do not notice. To be called while the directory is still ours. Blocks.
    pub(super) fn hand_over(&mut self) {
        let is_worth_it = self.staged.is_some() && self.written >= MARK_STEP_BYTES;
        let tail = (is_worth_it && self.mark_now()).then(|| self.nameless());
        self.handed_over = true;
        match tail {
            Some(Ok(tail)) => {
                self.tail = Some((self.written, Arc::new(tail)));
                if let Some(staged) = &mut self.staged {
                    staged.leave(true);
                }
                if let Some(mark) = &mut self.mark {
                    mark.leave(true);
                }
            }
            // The file loses its name and is gone on with.
            Some(Err(_)) | None => (self.staged, self.mark) = (None, None),
        }
    }

    /// A file without a name whose next byte is that of the blob which is written next.
    fn nameless(&self) -> io::Result<File> {
        let staged = StagedFile::new(&self.disk)?;
        let mut file = staged.file().try_clone()?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(self.written))?;
        Ok(file)
    }
}

/// Appends all chunks; gives how many bytes the file took, also when it did not take all.
fn write_all(mut file: &File, chunks: &[Bytes]) -> (usize, io::Result<()>) {
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut rest = slices.as_mut_slice();
    let mut written = 0;
    while !rest.is_empty() {
        let many = rest.len().min(IOV_MAX);
        match file.write_vectored(rest.get(..many).unwrap_or_default()) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => {
                written += n;
                IoSlice::advance_slices(&mut rest, n);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// Bytes from one mark to the next, at least; less is not worth an interruption.
const MARK_STEP_BYTES: u64 = 1 << 20;
/// How much time the next start may lose of a fill that keeps its writer busy.
const MARK_EVERY: Duration = Duration::from_millis(100);
/// Slices of one vectored write; the kernel's own limit (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Faults, Metrics};
    use crate::oci::Algorithm;

    fn stage(dir: &std::path::Path) -> Stage {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let disk = Disk::open(dir.to_owned(), Faults::default(), metrics).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"layers");
        Stage::new(&disk, digest, Some(6)).unwrap()
    }

    #[test]
    fn what_was_changed_behind_our_back_is_not_gone_on_with() {
        for len in [0, 2, 4] {
            let dir = tempfile::tempdir().unwrap();
            let mut stage = stage(dir.path());
            let (written, result) = stage.write(&[Bytes::from_static(b"lay")]);
            assert_eq!((written, result.is_ok()), (3, true));
            stage.file().set_len(len).unwrap();
            let (written, result) = stage.write(&[Bytes::from_static(b"ers")]);
            assert_eq!((written, result.is_ok()), (0, false));
            assert_eq!(stage.file().metadata().unwrap().len(), len);
            let of_nothing = Digest::of(Algorithm::Sha256, b"");
            let digest = stage.digester().clone().finish();
            assert_eq!((stage.written(), digest), (0, of_nothing));
        }
    }

    #[test]
    fn what_was_changed_after_the_last_write_is_not_published() {
        let dir = tempfile::tempdir().unwrap();
        let mut stage = stage(dir.path());
        assert!(stage.write(&[Bytes::from_static(b"layers")]).1.is_ok());
        stage.file().set_len(5).unwrap();
        let digest = stage.digest;
        assert!(stage.take().unwrap().publish(&digest, 6).is_err());
    }
}
