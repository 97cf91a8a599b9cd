//! What a fill leaves behind when its process ends: a staging file, and beside it a mark that says whose first bytes are in
//! it.
//!
//! A mark is one line, written over the one before while the file grows: the digest that is coming, how many bytes of it
//! are sure to be there, their own digest, and the size that was announced. It is never synced: nothing of it is believed
//! before the bytes were hashed again, so that whatever a power failure or a bad disk made of either is found out. What
//! lies behind the marked bytes is cut off.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use super::clock;
use super::disk::Disk;
use super::faults::Area;
use super::layout::Layout;
use super::opening::opening;
use super::staged::StagedFile;
use crate::oci::{Digest, Digester};

/// The first bytes of a blob, staged by a process that is gone or about to go.
#[derive(Clone, Debug)]
pub(super) struct Remainder {
    pub(super) says: Says,
    /// When the last of them were written, as seconds since the epoch.
    pub(super) written_at: u64,
    path: PathBuf,
}

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Says {
    /// What was to be brought.
    pub(super) digest: Digest,
    /// How many bytes of it there are, at least one.
    pub(super) length: u64,
    /// Their digest.
    pub(super) prefix: Digest,
    /// How many there should be in the end, more than there are, when that was known.
    pub(super) size: Option<u64>,
}

/// The mark of a staging file. Dropped, its name is removed.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    path: PathBuf,
    disk: Arc<Disk>,
    /// Whether the name is somebody else's by now.
    left: bool,
}

impl Says {
    fn parse(text: &str) -> Option<Self> {
        // A line that is not ended is not all there.
        let mut words = text.strip_suffix('\n')?.split(' ');
        let digest = Digest::parse(words.next()?).ok()?;
        let length = number(words.next()?)?;
        let prefix = Digest::parse(words.next()?).ok()?;
        let size = match words.next()? {
            "-" => None,
            size => Some(number(size)?),
        };
        let fits = length > 0
            && size.is_none_or(|size| length < size)
            && prefix.algorithm() == digest.algorithm()
            && words.next().is_none();
        fits.then_some(Self {
            digest,
            length,
            prefix,
            size,
        })
    }

    fn line(&self) -> String {
        let Self {
            digest,
            length,
            prefix,
            size,
        } = self;
        let size = size.map_or_else(|| "-".to_owned(), |it| it.to_string());
        format!("{digest} {length} {prefix} {size}\n")
    }

    /// Whether a blob that somebody says is of this size may begin with these bytes.
    pub(super) fn fits(&self, size: Option<u64>) -> bool {
        match (size, self.size) {
            (Some(now), Some(then)) => now == then,
            (Some(now), None) => now > self.length,
            (None, _) => true,
        }
    }
}

impl Remainder {
    /// What the staging directory has of fills that were interrupted; at most one for each digest, the longest. Everything
    /// else in it is removed, if it can be. To be called before anything is staged. Blocks.
    pub(super) fn find(disk: &Arc<Disk>) -> Vec<Self> {
        let paths = disk.staged_files();
        let mut longest: HashMap<Digest, Self> = HashMap::new();
        for mark in &paths {
            let Some(found) = Layout::marked_by(mark).and_then(|path| Self::at(&path, mark)) else {
                continue;
            };
            let best = longest.entry(found.says.digest);
            let best = best.or_insert_with(|| found.clone());
            if best.says.length < found.says.length {
                *best = found;
            }
        }
        // What is behind the mark does not count; what cannot be cut off is of no use.
        longest.retain(|_, it| {
            StagedFile::over(disk, &it.path, it.says.length)
                .map(|mut it| it.leave(true))
                .is_ok()
        });
        let kept = longest.values().map(|it| &it.path);
        let kept: HashSet<PathBuf> = kept
            .flat_map(|path| [path.clone(), Layout::mark(path)])
            .collect();
        for path in paths.iter().filter(|it| !kept.contains(*it)) {
            disk.remove_staged(path);
        }
        longest.into_values().collect()
    }

    /// What is in a staging file, if its mark can be read and nothing speaks against it.
    fn at(path: &Path, mark: &Path) -> Option<Self> {
        let mut text = String::new();
        let opened = opening().open(mark).ok()?.take(MARK_BYTES_MAX);
        { opened }.read_to_string(&mut text).ok()?;
        let says = Says::parse(&text)?;
        let metadata = fs::symlink_metadata(path).ok()?;
        let written_at = metadata.modified().map_or(0, clock::unix_seconds);
        let remainder = Self {
            says,
            written_at,
            path: path.to_owned(),
        };
        let is_there = metadata.is_file() && metadata.len() >= says.length;
        (is_there && !remainder.is_stale()).then_some(remainder)
    }

    /// Whether it is so old that nobody will come back for it.
    pub(super) fn is_stale(&self) -> bool {
        // One from the future is of no age that anybody knows, and goes when room is needed.
        clock::age_of(self.written_at).is_some_and(|age| age > AGE_MAX)
    }

    /// Removes it, if the disk lets go of it; whether it did. May block.
    pub(super) fn remove(&self, disk: &Disk) -> bool {
        let removed = disk.remove(&self.path, Area::Staging).is_ok();
        if removed {
            disk.remove_staged(&Layout::mark(&self.path));
        }
        removed
    }

    /// Removes it now or when the disk works again: it is of no use. May block.
    pub(super) fn discard(&self, disk: &Disk) {
        disk.remove_staged(&self.path);
        disk.remove_staged(&Layout::mark(&self.path));
    }

    /// Opens it to be gone on with: the file, and its mark. To be called while the directory is ours: what is behind its bytes
    /// is cut off, and may be a successor's by then. Blocks.
    ///
    /// # Errors
    ///
    /// When the disk refuses; the names are left as they are then.
    pub(super) fn reopen(&self, disk: &Arc<Disk>) -> io::Result<(StagedFile, Mark)> {
        let mut staged = StagedFile::over(disk, &self.path, self.says.length)?;
        // They are not ours to remove before the caller says so.
        staged.leave(true);
        let mark = Layout::mark(&self.path);
        let opened = opening().write(true).open(&mark);
        let file = disk.counted("open", opened)?;
        let mark = Mark {
            file,
            path: mark,
            disk: Arc::clone(disk),
            left: true,
        };
        Ok((staged, mark))
    }

    /// Adds the state of the digest after its bytes to what was opened; `None` when they are not those that were marked.
    /// Reads all of them. Blocks.
    ///
    /// # Errors
    ///
    /// When the disk does not give them; the names are left as they are then.
    pub(super) fn rehash(
        &self,
        disk: &Disk,
        (staged, mark): (StagedFile, Mark),
    ) -> io::Result<Option<(StagedFile, Mark, Digester)>> {
        let digester = disk.counted("read", self.says.rehash(staged.file()))?;
        if digester.is_none() {
            debug!(digest = %self.says.digest, "staged bytes are not those that were marked");
        }
        Ok(digester.map(|digester| (staged, mark, digester)))
    }

    /// Whether the file is not there any more. Blocks.
    pub(super) fn is_gone(&self) -> bool {
        let found = fs::symlink_metadata(&self.path);
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

impl Says {
    /// The state of the digest after the marked bytes; `None` when the file has others.
    fn rehash(&self, file: &File) -> io::Result<Option<Digester>> {
        let mut digester = Digester::new(self.digest.algorithm());
        let mut buffer = vec![0; PIECE_BYTES];
        let mut offset = 0;
        while offset < self.length {
            let left = usize::try_from(self.length - offset).unwrap_or(usize::MAX);
            let piece = left.min(buffer.len());
            let read = match file.read_at(buffer.get_mut(..piece).unwrap_or_default(), offset) {
                Ok(0) => return Ok(None),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            digester.update(buffer.get(..read).unwrap_or_default());
            offset += read as u64;
        }
        let is_right = digester.clone().finish() == self.prefix;
        Ok(is_right.then_some(digester))
    }
}

impl Mark {
    /// Makes the mark of a staging file, which says nothing yet.
    pub(super) fn new(disk: &Arc<Disk>, staged: &Path) -> io::Result<Self> {
        let path = Layout::mark(staged);
        let file = opening().write(true).create_new(true).open(&path)?;
        Ok(Self {
            file,
            path,
            disk: Arc::clone(disk),
            left: false,
        })
    }

    /// Says something else, which is at least as long: lengths only grow.
    pub(super) fn say(&self, says: &Says) -> io::Result<()> {
        self.file.write_all_at(says.line().as_bytes(), 0)
    }

    /// Whether the name is left to whoever has the directory next.
    pub(super) fn leave(&mut self, leave: bool) {
        self.left = leave;
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if !self.left {
            self.disk.remove_staged(&self.path);
        }
    }
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Clients that were cut off come back within minutes; after this long nobody will.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// More than any mark has.
const MARK_BYTES_MAX: u64 = 1 << 10;
/// What is read at once.
const PIECE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn says(algorithm: Algorithm, size: Option<u64>) -> Says {
        Says {
            digest: Digest::of(algorithm, b"layer"),
            length: 3,
            prefix: Digest::of(algorithm, b"lay"),
            size,
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for algorithm in Algorithm::ALL {
            for size in [None, Some(4), Some(u64::MAX)] {
                let says = says(algorithm, size);
                assert_eq!(Says::parse(&says.line()), Some(says));
                assert!(says.line().len() as u64 <= MARK_BYTES_MAX);
            }
        }
    }

    #[test]
    fn what_is_no_mark_says_nothing() {
        let line = says(Algorithm::Sha256, Some(5)).line();
        let other = Digest::of(Algorithm::Sha512, b"lay").to_string();
        let prefix = Digest::of(Algorithm::Sha256, b"lay").to_string();
        for text in [
            String::new(),
            "\n".to_owned(),
            "\0".repeat(200),
            line.trim_end().to_owned(),
            line.replace(" 3 ", " 0 "),
            line.replace(" 3 ", " +3 "),
            line.replace(" 3 ", " 5 "),
            line.replace(" 5\n", "\n"),
            line.replace(" 5\n", " 99999999999999999999\n"),
            line.replace(" 5\n", " 5 5\n"),
            line.replace(&prefix, &other),
            line.clone() + &line,
        ] {
            assert_eq!(Says::parse(&text), None, "{text:?}");
        }
    }

    #[test]
    fn a_mark_that_was_torn_is_none() {
        let line = says(Algorithm::Sha512, Some(1 << 30)).line();
        for end in 0..line.len() {
            assert_eq!(Says::parse(&line[..end]), None, "{end}");
        }
    }

    #[test]
    fn what_was_announced_must_be_announced_again() {
        let cases = [
            // then, now, fits
            (Some(5), Some(5), true),
            (Some(5), Some(6), false),
            (Some(5), None, true),
            (None, Some(4), true),
            (None, Some(3), false),
            (None, None, true),
        ];
        for (then, now, fits) in cases {
            let says = says(Algorithm::Sha256, then);
            assert_eq!(says.fits(now), fits, "{then:?} then, {now:?} now");
        }
    }

    #[test]
    fn only_the_bytes_that_were_marked_are_gone_on_with() {
        let says = says(Algorithm::Sha256, None);
        for (bytes, is_right) in [
            ("layer", true),
            ("lay", true),
            ("la", false),
            ("lax", false),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), bytes).unwrap();
            let digester = says.rehash(file.as_file()).unwrap();
            assert_eq!(digester.is_some(), is_right, "{bytes}");
            if let Some(mut digester) = digester {
                digester.update(b"er");
                assert_eq!(digester.finish(), says.digest);
            }
        }
    }
}
