//! A file in staging: the only way to a published file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::Disk;
use super::faults::{Area, Operation};
use super::opening::opening;
use crate::oci::Digest;

/// A file that nobody looks for yet. Dropped unpublished, its name is removed; open handles go on reading.
#[derive(Debug)]
pub(super) struct StagedFile {
    file: Arc<File>,
    path: PathBuf,
    disk: Arc<Disk>,
    /// Whether the name is not ours to remove.
    published: bool,
}

impl StagedFile {
    /// Makes a new staging file. Blocks.
    pub(super) fn new(disk: &Arc<Disk>) -> io::Result<Self> {
        let (created, path) = disk.create_staged(Area::Staging);
        let file = Arc::new(disk.counted("create", created)?);
        Ok(Self {
            file,
            path,
            disk: Arc::clone(disk),
            published: false,
        })
    }

    /// Opens what another process has staged, so that it ends after `length` bytes and grows from there. Blocks.
    pub(super) fn over(disk: &Arc<Disk>, path: &Path, length: u64) -> io::Result<Self> {
        let opened = opening().write(true).open(path);
        let opened = opened.and_then(|mut file| {
            // Else it would look younger than it is.
            if file.metadata()?.len() != length {
                file.set_len(length)?;
            }
            io::Seek::seek(&mut file, io::SeekFrom::Start(length))?;
            Ok(file)
        });
        Ok(Self {
            file: Arc::new(disk.counted("open", opened)?),
            path: path.to_owned(),
            disk: Arc::clone(disk),
            published: false,
        })
    }

    /// The file itself; a handle of it outlives the name.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name is left to whoever has the directory next.
    pub(super) fn leave(&mut self, leave: bool) {
        self.published = leave;
    }

    /// Makes the file official: sync, rename, sync of the directory. The caller has verified that its `size` bytes are
    /// those of `digest`; after an error the name is not there.
    pub(super) fn publish(mut self, digest: &Digest, size: u64) -> io::Result<Arc<File>> {
        let (disk, path) = (Arc::clone(&self.disk), self.disk.layout.blob(digest));
        let (faults, area) = (disk.faults(), Area::Blobs);
        let synced = faults
            .check(Operation::Sync, Area::Staging)
            .and_then(|()| self.file.sync_data())
            .and_then(|()| self.check_size(size));
        disk.counted("sync", synced)?;
        let renamed = disk
            .make_parent(&path, area)
            .and_then(|()| disk.rename(&self.path, &path, area));
        disk.counted("rename", renamed)?;
        self.published = true;
        // The name is there. Should the power fail before it is so on disk, too, the blob is fetched again.
        if disk.counted("sync", disk.sync_parent(&path, area)).is_ok() {
            disk.condition().works();
        }
        Ok(Arc::clone(&self.file))
    }

    /// Fails unless the file has this many bytes: somebody may have cut it while it was staged. Blocks.
    pub(super) fn check_size(&self, size: u64) -> io::Result<()> {
        match self.file.metadata()?.len() == size {
            true => Ok(()),
            false => Err(io::Error::other(
                "the staged file was changed behind our back",
            )),
        }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.published {
            self.disk.remove_staged(&self.path);
        }
    }
}
