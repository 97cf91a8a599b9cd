//! Reading content at an offset: a published blob, or a fill in progress. Hit, join and miss differ only in how long the
//! next byte takes.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Once};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags};
use tracing::warn;

use super::condition::is_lost;
use super::faults::{Area, Faults, Operation};
use super::fill::{At, FillError, Follower};
use super::index::{BlobFile, Index};
use super::metrics::Metrics;

/// A published blob, open. While it is held the blob is not evicted.
#[derive(Clone, Debug)]
pub struct Blob {
    file: Arc<BlobFile>,
    index: Arc<Index>,
    buffers: Buffers,
}

/// Content that can be read at any offset.
#[derive(Debug)]
pub enum Content {
    /// Published.
    Blob(Blob),
    /// Arriving.
    Follower(Follower, Buffers),
    /// Here, so many bytes of it, and not to be read now.
    Unreadable(u64),
}

/// Bytes of content that are in a file, for whoever can send them from there without reading them.
#[derive(Debug)]
pub struct FilePart {
    file: Arc<File>,
    /// Where they begin in it.
    pub offset: u64,
    /// How many there are, at least one.
    pub len: u64,
}

/// Why content could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The fill ended before the reader did.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The file has fewer bytes than were published, or the disk has lost some.
    #[error("the file does not have all of the blob")]
    Truncated,
    /// The file cannot be opened now.
    #[error("the file cannot be opened")]
    Unreadable,
    /// The disk refused.
    #[error("the cache could not be read")]
    Io(#[from] io::Error),
}

/// Buffers of [`READ_BYTES`] for file reads, used again and again; shared by all readers, bounded.
#[derive(Clone, Debug)]
pub struct Buffers {
    shared: Arc<Shared>,
}

/// What all readers share.
#[derive(Debug)]
struct Shared {
    idle: Mutex<Vec<Vec<u8>>>,
    faults: Faults,
    metrics: Metrics,
}

/// A buffer on loan, cut to what was read.
struct Lent {
    buffer: Vec<u8>,
    len: usize,
    home: Buffers,
}

impl Blob {
    pub(super) fn new(file: Arc<BlobFile>, index: Arc<Index>, buffers: Buffers) -> Self {
        Self {
            file,
            index,
            buffers,
        }
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.file.size
    }

    /// Sets the file aside: its bytes were found not to be those of its digest. Whether it is out of the way; if the disk
    /// refuses that, it is not, and whoever wants the blob must go around the cache. One that is published no more is, and
    /// what may have come in its place is right.
    pub async fn quarantine(&self) -> bool {
        if self.file.is_removed() {
            return true;
        }
        let (index, digest) = (Arc::clone(&self.index), self.file.digest);
        // A panic there leaves the file where it is, to be found out again.
        let set_aside = tokio::task::spawn_blocking(move || index.quarantine(&digest));
        set_aside.await.unwrap_or(false)
    }

    /// Reads at `offset`, at most `max` bytes and at least one. Cancel-safe.
    async fn read_at(&self, offset: u64, max: u64) -> Result<Bytes, ReadError> {
        let file = Arc::clone(&self.file);
        let part = Part {
            owner: file,
            file: |it: &BlobFile| &it.file,
            area: Area::Blobs,
            offset,
            max,
        };
        let read = match self.buffers.read(part).await {
            // What the disk has lost is as good as damaged.
            Err(error) if is_lost(&error) => Bytes::new(),
            other => other?,
        };
        if read.is_empty() {
            self.quarantine().await;
            return Err(ReadError::Truncated);
        }
        Ok(read)
    }
}

impl Content {
    /// The size, when it is known.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::Blob(blob) => Some(blob.size()),
            Self::Follower(follower, _) => follower.size(),
            Self::Unreadable(size) => Some(*size),
        }
    }

    /// Reads at `offset`, at most `max` bytes; `None` is the verified end. Waits for bytes that are still to come.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the fill failed or the disk did. A reader that gets [`FillError::NotKept`] has read everything below
    /// `staged` that it asked for, and goes on from there by itself.
    pub async fn read_at(&mut self, offset: u64, max: u64) -> Result<Option<Bytes>, ReadError> {
        match self {
            Self::Blob(blob) if offset >= blob.size() => Ok(None),
            Self::Blob(blob) => blob
                .read_at(offset, max.min(blob.size() - offset))
                .await
                .map(Some),
            Self::Unreadable(_) => Err(ReadError::Unreadable),
            Self::Follower(follower, buffers) => match follower.at(offset).await? {
                At::End => Ok(None),
                At::Memory(mut bytes) => {
                    bytes.truncate(usize::try_from(max).unwrap_or(usize::MAX));
                    Ok(Some(bytes))
                }
                At::File(file, readable) => {
                    let part = Part {
                        owner: file,
                        file: |it: &File| it,
                        area: Area::Staging,
                        offset,
                        max: max.min(readable),
                    };
                    let read = buffers.read(part).await?;
                    if read.is_empty() {
                        Err(ReadError::Truncated)
                    } else {
                        Ok(Some(read))
                    }
                }
            },
        }
    }

    /// The file that has the bytes at `offset`, at most `max` of them; `None` when they are not in a file, or not yet, or not
    /// to be had from it: then reading them says what to do.
    pub fn file_at(&self, offset: u64, max: u64) -> Option<FilePart> {
        let (file, left) = match self {
            Self::Blob(blob) if !blob.buffers.may_fail(Area::Blobs) => {
                let left = blob.size().saturating_sub(offset);
                (Arc::clone(&blob.file.file), left)
            }
            Self::Follower(follower, buffers) if !buffers.may_fail(Area::Staging) => {
                follower.file_at(offset)?
            }
            Self::Blob(_) | Self::Follower(..) | Self::Unreadable(_) => return None,
        };
        let len = left.min(max);
        (len > 0).then_some(FilePart { file, offset, len })
    }

    /// Waits until [`Content::file_at`] or [`Content::read_at`] has an answer for this offset at once. Cancel-safe.
    pub async fn arrives(&mut self, offset: u64) {
        if let Self::Follower(follower, _) = self {
            follower.arrives(offset).await;
        }
    }

    /// Whether its bytes are in a file, or will be.
    pub fn is_in_file(&self) -> bool {
        matches!(self, Self::Blob(_) | Self::Follower(..))
    }

    /// Reads everything, when it is at most `max` bytes.
    ///
    /// # Errors
    ///
    /// As [`Content::read_at`]; too many bytes are [`ErrorKind::FileTooLarge`].
    pub async fn read_all(&mut self, max: u64) -> Result<Bytes, ReadError> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.read_at(whole.len() as u64, READ_BYTES as u64).await? {
            if (whole.len() + bytes.len()) as u64 > max {
                return Err(ReadError::Io(ErrorKind::FileTooLarge.into()));
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.into())
    }
}

impl FilePart {
    /// How many of the first `max` bytes can be had without waiting for the disk. Told from one look in every `LOOK_BYTES`, so
    /// that it is a guess, but one for which a disk has seldom to be waited for.
    pub fn cached(&self, max: u64) -> u64 {
        let end = self.offset + self.len.min(max);
        let is_cached = |at| read_cached(&self.file, &mut [0], at) == Ok(1);
        let (mut cached_to, mut look) = (self.offset, self.offset);
        while look < end && is_cached(look) {
            if look + 1 == end {
                return end - self.offset;
            }
            cached_to = look;
            look = (look + LOOK_BYTES).min(end - 1);
        }
        cached_to - self.offset
    }
}

impl AsFd for FilePart {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Buffers {
    pub(super) fn new(faults: Faults, metrics: Metrics) -> Self {
        let shared = Shared {
            idle: Mutex::default(),
            faults,
            metrics,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Reads a part of a file, counting what goes wrong. Empty at the end.
    async fn read<F: Send + Sync + 'static>(&self, part: Part<F>) -> io::Result<Bytes> {
        let read = match self.shared.faults.check(Operation::Read, part.area) {
            Ok(()) => read_file(self, part).await,
            Err(error) => Err(error),
        };
        read.inspect_err(|error| {
            self.shared.metrics.disk_failed("read");
            warn!(error = %error, "cached content could not be read");
        })
    }

    fn may_fail(&self, area: Area) -> bool {
        self.shared.faults.may_fail(Operation::Read, area)
    }

    fn lend(&self) -> Vec<u8> {
        self.shared
            .idle
            .lock()
            .pop()
            .unwrap_or_else(|| vec![0; READ_BYTES])
    }

    fn wrap(&self, buffer: Vec<u8>, len: usize) -> Bytes {
        Bytes::from_owner(Lent {
            buffer,
            len,
            home: self.clone(),
        })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut idle = self.home.shared.idle.lock();
        if idle.len() < IDLE_BUFFERS_MAX {
            idle.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// Bytes of one file read. Two of these wait in a connection at most, which bounds the memory of a slow client.
pub const READ_BYTES: usize = 128 << 10;
const IDLE_BUFFERS_MAX: usize = 64;
/// How far apart the bytes are that are looked at to see what the page cache has.
const LOOK_BYTES: u64 = 256 << 10;

/// What is to be read of which file.
struct Part<F> {
    owner: Arc<F>,
    file: fn(&F) -> &File,
    area: Area,
    offset: u64,
    max: u64,
}

/// Reads what the page cache has at once; what it has not, on a thread that may wait for the disk. Empty at the end.
async fn read_file<F: Send + Sync + 'static>(
    buffers: &Buffers,
    part: Part<F>,
) -> io::Result<Bytes> {
    let Part {
        owner,
        file,
        offset,
        max,
        ..
    } = part;
    let mut buffer = buffers.lend();
    let len = usize::try_from(max).unwrap_or(usize::MAX).min(buffer.len());
    let part = buffer.get_mut(..len).unwrap_or_default();
    match read_cached(file(&owner), part, offset) {
        Ok(read) if read > 0 => return Ok(buffers.wrap(buffer, read)),
        // The end, or a page that is not in memory: ask again, patiently.
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let read = tokio::task::spawn_blocking(move || {
        let part = buffer.get_mut(..len).unwrap_or_default();
        let read = file(&owner).read_at(part, offset);
        read.map(|read| (buffer, read))
    });
    let (buffer, read) = read.await.map_err(io::Error::other)??;
    Ok(buffers.wrap(buffer, read))
}

/// Reads what is in memory.
///
/// What is cut short is read as far as it goes, and the rest asked for next; where there is nothing at all, it is asked for again
/// by a read that may wait. So it does no harm that Linux 5.9 and 5.10 cut such reads short where there was more.
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    unless_refused(&REFUSED, || {
        let slices = &mut [IoSliceMut::new(buffer)];
        rustix::io::preadv2(file, slices, offset, ReadWriteFlags::NOWAIT)
    })
}

/// Where nobody can tell what is in memory, nothing is: the file system may not know how (`EOPNOTSUPP`), nor an old kernel
/// (`ENOSYS`, `EINVAL`), and a sandbox may forbid to ask (`EPERM`). Then nobody is asked again: the last three are answers to
/// all that this process reads, and the first is one to all of the cache, whose files are on one file system, since what is
/// published is renamed there.
fn unless_refused(
    refused: &Once,
    read: impl FnOnce() -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    if refused.is_completed() {
        return Err(Errno::AGAIN);
    }
    match read() {
        Err(error @ (Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM)) => {
            refused.call_once(|| {
                warn!(error = %error, "a file cannot be read without waiting, reading it on other threads");
            });
            Err(Errno::AGAIN)
        }
        read => read,
    }
}

/// Reading without waiting was refused, the log says so, and it is not tried again.
static REFUSED: Once = Once::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_once_is_not_asked_for_again() {
        for error in [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::PERM] {
            let refused = Once::new();
            let mut asked = 0;
            let mut read = |answer| {
                let read = unless_refused(&refused, || {
                    asked += 1;
                    answer
                });
                (read, asked)
            };
            // What is not in memory now may be later, and an error is one of this file.
            assert_eq!(read(Err(Errno::AGAIN)), (Err(Errno::AGAIN), 1));
            assert_eq!(read(Err(Errno::IO)), (Err(Errno::IO), 2));
            assert_eq!(read(Ok(3)), (Ok(3), 3));
            assert_eq!(read(Err(error)), (Err(Errno::AGAIN), 4));
            assert_eq!(read(Ok(3)), (Err(Errno::AGAIN), 4), "{error}");
        }
    }
}
