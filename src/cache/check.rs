//! One published file, read and hashed piece by piece, without a trace in the page cache.
//!
//! What the page cache has already is read from there and left there: somebody else uses it. What has to come from the disk
//! is let go again, since nobody asked for it. A file system that cannot tell the two apart (no `RWF_NOWAIT`) keeps what
//! it likes: dropping what clients read would cost more than a few pages that nobody does.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

use super::condition::is_lost;
use super::faults::{Area, Faults, Operation};
use crate::oci::{Digest, Digester};

/// A file on its way to a verdict. It is open, and nothing is held but its descriptor: it may be evicted meanwhile.
#[derive(Debug)]
pub(super) struct Check {
    digest: Digest,
    file: File,
    size: u64,
    offset: u64,
    digester: Digester,
    buffer: Vec<u8>,
}

/// What reading on has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// So many bytes more were read; there are others.
    Read(u64),
    /// So many bytes more were read, and the whole is what its name says.
    Right(u64),
    /// It is not what its name says.
    Wrong,
    /// It has no name any more.
    Gone,
}

impl Check {
    /// Begins with a file that should be `size` bytes large.
    pub(super) fn new(digest: Digest, file: File, size: u64) -> Self {
        // Its own descriptor's alone: no reading ahead of what is asked for, which would then pass for somebody else's.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        let bytes = usize::try_from(size).unwrap_or(usize::MAX);
        Self {
            digester: Digester::new(digest.algorithm()),
            digest,
            file,
            size,
            offset: 0,
            // One more, to see whether there is more than there should be.
            buffer: vec![0; bytes.saturating_add(1).min(PIECE_BYTES)],
        }
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }

    /// Bytes that are still to be read.
    pub(super) fn left(&self) -> u64 {
        self.size - self.offset
    }

    /// Reads on, about `stretch` bytes. Blocks.
    ///
    /// # Errors
    ///
    /// When the disk refuses. What it has lost is [`Step::Wrong`].
    pub(super) fn step(&mut self, stretch: u64) -> io::Result<Step> {
        if self.file.metadata()?.nlink() == 0 {
            return Ok(Step::Gone);
        }
        let mut read = 0;
        while read < stretch {
            let piece = match self.read_piece() {
                Ok(piece) => piece as u64,
                Err(error) if is_lost(&error) => return Ok(Step::Wrong),
                Err(error) => return Err(error),
            };
            if piece == 0 {
                return Ok(self.verdict(read));
            }
            self.offset += piece;
            read += piece;
            if self.offset > self.size {
                return Ok(Step::Wrong);
            }
        }
        Ok(Step::Read(read))
    }

    fn verdict(&self, read: u64) -> Step {
        let is_right = self.offset == self.size && self.digester.clone().finish() == self.digest;
        match is_right {
            true => Step::Right(read),
            false => Step::Wrong,
        }
    }

    fn read_piece(&mut self) -> io::Result<usize> {
        let cached = rustix::io::preadv2(
            &self.file,
            &mut [IoSliceMut::new(&mut self.buffer)],
            self.offset,
            ReadWriteFlags::NOWAIT,
        );
        let is_told_apart = !matches!(cached, Err(Errno::OPNOTSUPP));
        let read = match cached {
            Ok(read) if read > 0 => read,
            // The end, a page that is not in memory, or a file system that cannot tell: ask again, patiently.
            Ok(_) | Err(_) => {
                let read = self.file.read_at(&mut self.buffer, self.offset)?;
                let range = NonZeroU64::new(read as u64).filter(|_| is_told_apart);
                if range.is_some() {
                    let _ = rustix::fs::fadvise(&self.file, self.offset, range, Advice::DontNeed);
                }
                read
            }
        };
        self.digester
            .update(self.buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// Whether a file of `size` bytes that was just opened has the bytes of its digest, as far as that costs next to nothing:
/// what is large is left to the scrub, and passes here.
///
/// # Errors
///
/// When the disk refuses; a file that has become shorter is not right.
pub(super) fn is_right(
    digest: &Digest,
    file: &File,
    size: u64,
    faults: &Faults,
) -> io::Result<bool> {
    if size > HASHED_AT_OPEN_MAX {
        return Ok(true);
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    faults.check(Operation::Read, Area::Blobs)?;
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Digest::of(digest.algorithm(), &bytes) == *digest),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is hashed whenever it is opened: most configurations and small layers. That takes some hundred microseconds.
const HASHED_AT_OPEN_MAX: u64 = 128 << 10;
/// What is read at once, and let go at once.
const PIECE_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::oci::Algorithm;

    fn check(written: &[u8], size: u64, digest: Digest) -> (tempfile::NamedTempFile, Check) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(written).unwrap();
        let check = Check::new(digest, file.reopen().unwrap(), size);
        (file, check)
    }

    fn run(check: &mut Check) -> Step {
        loop {
            match check.step(100_000).unwrap() {
                Step::Read(_) => {}
                end @ (Step::Right(_) | Step::Wrong | Step::Gone) => return end,
            }
        }
    }

    #[test]
    fn only_the_whole_and_nothing_but_it_is_right() {
        for len in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES * 3 + 7] {
            let bytes: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
            for algorithm in Algorithm::ALL {
                let digest = Digest::of(algorithm, &bytes);
                let (_file, mut whole) = check(&bytes, len as u64, digest);
                assert!(matches!(run(&mut whole), Step::Right(_)), "{len}");
                assert_eq!(whole.left(), 0);
                let longer = [&bytes[..], b"x"].concat();
                let (_file, mut check_longer) = check(&longer, len as u64, digest);
                assert_eq!(run(&mut check_longer), Step::Wrong, "{len} and one");
                if let Some((last, shorter)) = bytes.split_last() {
                    let (_file, mut check_shorter) = check(shorter, len as u64, digest);
                    assert_eq!(run(&mut check_shorter), Step::Wrong, "{len} less one");
                    let flipped = [shorter, &[last ^ 1]].concat();
                    let (_file, mut check_flipped) = check(&flipped, len as u64, digest);
                    assert_eq!(run(&mut check_flipped), Step::Wrong, "{len}, flipped");
                }
            }
        }
    }

    #[test]
    fn what_lost_its_name_is_left_alone() {
        let bytes = vec![7; PIECE_BYTES * 4];
        let digest = Digest::of(Algorithm::Sha256, b"another");
        let (file, mut check) = check(&bytes, bytes.len() as u64, digest);
        let Step::Read(_) = check.step(1).unwrap() else {
            panic!("there is more");
        };
        file.close().unwrap();
        assert_eq!(run(&mut check), Step::Gone);
    }
}
