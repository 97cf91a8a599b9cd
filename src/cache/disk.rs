//! The cache directory: the only place that opens, renames or removes anything in it. Everything here may block.
//!
//! A published file is made in one way: staged under a name nobody looks for, written, synced, renamed to its digest, and
//! the directory synced. It is never written, extended or truncated again, so an open handle reads the right bytes
//! whatever becomes of the name.

use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustix::io::Errno;
use tracing::{debug, warn};

use super::clock;
use super::condition::Condition;
use super::faults::{Area, Faults, Operation};
use super::hold::{Hold, OpenError};
use super::layout::{Layout, Repository};
use super::metrics::Metrics;
use super::opening::{make_dirs, opening};
use crate::oci::{Algorithm, Digest, Tag};

/// The cache directory, held by this process alone.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) layout: Layout,
    metrics: Metrics,
    condition: Condition,
    faults: Faults,
    hold: Hold,
    /// What was staged and could not be removed; it goes when the disk works again.
    left: Mutex<Vec<PathBuf>>,
    /// In the name of everything that is staged here.
    token: u64,
    staged: AtomicU64,
}

/// A published file found by the scan.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// The stamp of its last use, as nanoseconds since the epoch.
    pub(super) used_at: u64,
}

/// A folder of published files.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) algorithm: Algorithm,
    /// The first byte of all digests in it.
    pub(super) first: u8,
    path: PathBuf,
}

/// What lies in a folder of published files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stored {
    /// A file by the name of a digest, where it belongs.
    Blob(Digest),
    /// Anything else.
    Foreign(PathBuf),
}

impl Disk {
    /// Takes the directory for this process: makes it when absent, checks its version, and locks it.
    pub(super) fn open(
        dir: PathBuf,
        faults: Faults,
        metrics: Metrics,
    ) -> Result<Arc<Self>, OpenError> {
        let layout = Layout::new(dir);
        let hold = Hold::take(&layout)?;
        let disk = Self::holding(hold, layout, faults, metrics);
        let dir = disk.layout.dir().to_owned();
        let prepared = disk.prepare();
        prepared.map_err(|source| OpenError::NotUsable { dir, source })?;
        Ok(Arc::new(disk))
    }

    /// Takes a directory that there is, at once or not at all, and changes nothing in it but the lock file.
    pub(super) fn open_as_it_is(dir: PathBuf, metrics: Metrics) -> Result<Arc<Self>, OpenError> {
        let layout = Layout::new(dir);
        let hold = Hold::take_as_it_is(&layout)?;
        let disk = Self::holding(hold, layout, Faults::default(), metrics);
        Ok(Arc::new(disk))
    }

    fn holding(hold: Hold, layout: Layout, faults: Faults, metrics: Metrics) -> Self {
        Self {
            condition: Condition::new(metrics.clone()),
            metrics,
            faults,
            hold,
            left: Mutex::new(Vec::new()),
            token: rand::random(),
            staged: AtomicU64::new(0),
            layout,
        }
    }

    /// Lets a successor have the directory; this process only reads from then on.
    pub(super) fn release(&self) {
        self.hold.release();
    }

    /// Tells whoever waits for the lock that it will be free soon.
    pub(super) fn announce_draining(&self) {
        self.hold.announce_draining();
    }

    /// Whether the directory takes what is written to it.
    pub(super) fn condition(&self) -> &Condition {
        &self.condition
    }

    /// The hold on the directory.
    pub(super) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// What goes wrong on order.
    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        self.layout.dir()
    }

    /// The size chosen at the first start, if one was.
    pub(super) fn chosen_size(&self) -> Option<u64> {
        let text = io::read_to_string(opening().open(self.layout.version()).ok()?).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("size "))?;
        line.trim().parse().ok()
    }

    /// Remembers the size chosen at the first start.
    pub(super) fn remember_size(&self, size: u64) -> io::Result<()> {
        let text = format!("{}\nsize {size}\n", Layout::VERSION);
        self.counted(
            "write",
            self.replace(&self.layout.version(), text.as_bytes()),
        )
    }

    /// Bytes of the file system: free to us, and in all.
    pub(super) fn space(&self) -> io::Result<(u64, u64)> {
        let asked = self
            .faults
            .check(Operation::Space, Area::Blobs)
            .and_then(|()| Ok(rustix::fs::statvfs(self.layout.dir())?));
        let stat = self.counted("statvfs", asked)?;
        Ok((
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
        ))
    }

    /// A name in staging that nobody has.
    pub(super) fn next_staged(&self) -> PathBuf {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        self.layout.staged(self.token, number)
    }

    /// The files in staging, as far as the disk tells. Folders there are nobody's, and removed.
    pub(super) fn staged_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in self.entries(&self.layout.staging()) {
            match is_dir(&entry) {
                // What cannot be removed is in nobody's way.
                true => drop(self.counted("remove", fs::remove_dir_all(entry.path()))),
                false => files.push(entry.path()),
            }
        }
        files
    }

    /// Opens a published file; `None` when there is none.
    pub(super) fn open_blob(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        self.open_blob_or_make_room(digest, || false)
    }

    /// The same. While there is no descriptor left for it, `make_room` is asked to give one back, and it is tried again as
    /// often as that does.
    pub(super) fn open_blob_or_make_room(
        &self,
        digest: &Digest,
        make_room: impl Fn() -> bool,
    ) -> io::Result<Option<(File, u64)>> {
        let path = self.layout.blob(digest);
        let opened = loop {
            let check = self.faults.check(Operation::Open, Area::Blobs);
            match check.and_then(|()| opening().open(&path)) {
                Err(error) if lacks_descriptors(&error) && make_room() => {}
                opened => break opened,
            }
        };
        match opened {
            Ok(file) => {
                let check = self.faults.check(Operation::Stat, Area::Blobs);
                let metadata = self.counted("stat", check.and(file.metadata()))?;
                // Whatever else stands there is of no size that was published.
                let size = if metadata.is_file() {
                    metadata.len()
                } else {
                    u64::MAX
                };
                Ok(Some((file, size)))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => self.counted("open", Err(error)),
        }
    }

    /// Looks for one published file.
    pub(super) fn find(&self, digest: &Digest) -> io::Result<Option<Found>> {
        let check = self.faults.check(Operation::Stat, Area::Blobs);
        match check.and_then(|()| fs::symlink_metadata(self.layout.blob(digest))) {
            Ok(metadata) => Ok(found(*digest, &metadata)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => self.counted("stat", Err(error)),
        }
    }

    /// Removes a published file; one that is gone already is no error.
    pub(super) fn remove_blob(&self, digest: &Digest) -> io::Result<()> {
        self.remove(&self.layout.blob(digest), Area::Blobs)
    }

    /// Takes a published file out of sight; the next start removes it.
    pub(super) fn quarantine(&self, digest: &Digest) -> io::Result<()> {
        self.set_aside(&self.layout.blob(digest))
    }

    /// Takes any file out of sight; the next start removes it.
    pub(super) fn set_aside(&self, path: &Path) -> io::Result<()> {
        let aside = self.next_staged();
        let renamed = self
            .make_parent(&aside, Area::Staging)
            .and_then(|()| self.rename(path, &aside, Area::Staging));
        self.counted("rename", renamed)
    }

    /// Writes the last use of a blob where the next start will find it.
    pub(super) fn write_last_use(&self, digest: &Digest, unix_nanos: u64) -> io::Result<()> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_nanos);
        let opened = opening().open(self.layout.blob(digest));
        let touched = opened.and_then(|file| file.set_modified(time));
        match touched {
            // Gone since: then nobody needs to know.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => self.counted("utimens", other),
        }
    }

    /// Every published file, in no order; unreadable folders are counted and passed over.
    pub(super) fn scan_blobs(&self, mut found: impl FnMut(Found)) {
        for algorithm in Algorithm::ALL {
            for shard in self.entries(&self.layout.blobs(algorithm)) {
                for entry in self.entries(&shard.path()) {
                    let Some(digest) = Layout::digest_of(algorithm, &entry.file_name()) else {
                        debug!(file = %entry.path().display(), "not a blob's name, left alone");
                        continue;
                    };
                    let check = self.faults.check(Operation::Stat, Area::Blobs);
                    match check.and_then(|()| entry.metadata()) {
                        Ok(metadata) => self::found(digest, &metadata)
                            .into_iter()
                            .for_each(&mut found),
                        // Evicted since.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        // Not known, and so fetched again when it is asked for.
                        Err(error) => drop(self.counted::<()>("stat", Err(error))),
                    }
                }
            }
        }
    }

    /// The folders of published files that there are. Those that the disk does not give are told by [`Disk::around`].
    pub(super) fn folders(&self) -> Vec<Folder> {
        let folders = Algorithm::ALL.into_iter().flat_map(|algorithm| {
            let entries = self.entries(&self.layout.blobs(algorithm));
            entries.into_iter().filter_map(move |entry| {
                let first = Layout::folder_of(&entry.file_name())?;
                let path = entry.path();
                Some(Folder {
                    algorithm,
                    first,
                    path,
                })
            })
        });
        folders.collect()
    }

    /// What is in one of them, in the order of the names; the folder itself when the disk does not give it.
    pub(super) fn stored_in(&self, folder: &Folder) -> Result<Vec<Stored>, PathBuf> {
        let entries = self.listed(&folder.path);
        let entries = entries.map_err(|_| folder.path.clone())?;
        let stored = entries.iter().map(|entry| {
            let path = entry.path();
            let digest = Layout::digest_of(folder.algorithm, &entry.file_name());
            let digest = digest.filter(|digest| self.layout.blob(digest) == path);
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            match digest.filter(|_| is_file) {
                Some(digest) => Stored::Blob(digest),
                None => Stored::Foreign(path),
            }
        });
        let mut stored: Vec<Stored> = stored.collect();
        stored.sort();
        Ok(stored)
    }

    /// A path as it is told: without the cache directory, and on one line whatever it is.
    pub(super) fn told(&self, path: &Path) -> String {
        let below = path.strip_prefix(self.layout.dir()).unwrap_or(path);
        below.to_string_lossy().escape_debug().to_string()
    }

    /// Bytes of all published files.
    pub(super) fn content_bytes(&self) -> u64 {
        let mut bytes = 0;
        self.scan_blobs(|found| bytes += found.size);
        bytes
    }

    /// Whether an open file is still the one that is published under this digest.
    pub(super) fn is_published(&self, digest: &Digest, file: &File) -> bool {
        let published = fs::metadata(self.layout.blob(digest));
        let (Ok(published), Ok(file)) = (published, file.metadata()) else {
            return false;
        };
        (published.dev(), published.ino()) == (file.dev(), file.ino())
    }

    /// Every repository that has metadata here, with its last use as seconds since the epoch.
    pub(super) fn scan_repositories(&self, found: &mut dyn FnMut(Repository, u64)) {
        for namespace in self.entries(&self.layout.upstreams()) {
            self.scan_repositories_below(&namespace.path(), found);
        }
    }

    fn scan_repositories_below(&self, dir: &Path, found: &mut dyn FnMut(Repository, u64)) {
        let mut used_at = None;
        for entry in self.entries(dir) {
            if Layout::is_own(&entry.file_name()) {
                let modified = entry.metadata().and_then(|it| it.modified());
                used_at = used_at.max(Some(modified.map_or(0, clock::unix_seconds)));
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.scan_repositories_below(&entry.path(), found);
            }
        }
        if let (Some(repository), Some(used_at)) = (self.layout.repository_at(dir), used_at) {
            found(repository, used_at);
        }
    }

    /// Bytes of a repository's metadata.
    pub(super) fn metadata_bytes(&self, repository: &Repository) -> u64 {
        let granted = fs::metadata(self.layout.granted(repository)).map_or(0, |it| it.len());
        let tags = self.entries(&self.layout.tags(repository));
        let tags = tags.iter().filter_map(|tag| tag.metadata().ok());
        granted + tags.map(|it| it.len()).sum::<u64>()
    }

    /// How many tags of a repository have a record.
    pub(super) fn tags(&self, repository: &Repository) -> u64 {
        self.entries(&self.layout.tags(repository)).len() as u64
    }

    /// The tags of a repository that have a record.
    pub(super) fn tag_names(&self, repository: &Repository) -> Vec<Tag> {
        let entries = self.entries(&self.layout.tags(repository));
        entries.iter().filter_map(tag_of).collect()
    }

    /// The grants file of a repository; empty when there is none.
    pub(super) fn read_grants(&self, repository: &Repository) -> io::Result<String> {
        self.read_text(&self.layout.granted(repository))
    }

    /// Adds whole lines to a repository's grants file.
    pub(super) fn append_grants(&self, repository: &Repository, lines: &str) -> io::Result<()> {
        let path = self.layout.granted(repository);
        let appended = self
            .make_parent(&path, Area::Records)
            .and_then(|()| opening().append(true).create(true).open(&path))
            .and_then(|file| self.append(&file, lines.as_bytes()));
        self.counted("append", appended)
    }

    /// Replaces a repository's grants file as a whole.
    pub(super) fn rewrite_grants(&self, repository: &Repository, lines: &str) -> io::Result<()> {
        self.counted(
            "write",
            self.replace(&self.layout.granted(repository), lines.as_bytes()),
        )
    }

    /// A tag's record as text; empty when there is none.
    pub(super) fn read_tag(&self, repository: &Repository, tag: &Tag) -> io::Result<String> {
        self.read_text(&self.layout.tag(repository, tag))
    }

    /// Bytes of a tag's record, also of one that cannot be read; zero when there is none.
    pub(super) fn tag_bytes(&self, repository: &Repository, tag: &Tag) -> u64 {
        fs::metadata(self.layout.tag(repository, tag)).map_or(0, |it| it.len())
    }

    /// Replaces a tag's record.
    pub(super) fn write_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        text: &str,
    ) -> io::Result<()> {
        self.counted(
            "write",
            self.replace(&self.layout.tag(repository, tag), text.as_bytes()),
        )
    }

    /// Removes a tag's record.
    pub(super) fn remove_tag(&self, repository: &Repository, tag: &Tag) -> io::Result<()> {
        self.remove(&self.layout.tag(repository, tag), Area::Records)
    }

    /// Forgets a repository's grants and tags; deeper repositories keep theirs.
    pub(super) fn remove_repository(&self, repository: &Repository) -> io::Result<()> {
        self.remove(&self.layout.granted(repository), Area::Records)?;
        match fs::remove_dir_all(self.layout.tags(repository)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return self.counted("remove", Err(error));
            }
            Ok(()) | Err(_) => {}
        }
        // And the folders that held nothing else; one that still does is not empty, and stays.
        let upstreams = self.layout.upstreams();
        let mut folder = self.layout.repository(repository);
        while folder.starts_with(&upstreams)
            && folder != upstreams
            && fs::remove_dir(&folder).is_ok()
        {
            folder.pop();
        }
        Ok(())
    }

    /// Counts the operation when it failed; a failed write degrades the cache until the next blob is published.
    pub(super) fn counted<T>(
        &self,
        operation: &'static str,
        result: io::Result<T>,
    ) -> io::Result<T> {
        if let Err(error) = &result {
            self.metrics.disk_failed(operation);
            warn!(operation, error = %error, "cache directory operation failed");
            if WRITES.contains(&operation) {
                self.condition.failed();
            }
        }
        result
    }

    /// Folders.
    fn prepare(&self) -> io::Result<()> {
        for algorithm in Algorithm::ALL {
            make_dirs(&self.layout.blobs(algorithm))?;
        }
        make_dirs(&self.layout.upstreams())?;
        make_dirs(&self.layout.staging())
    }

    /// What is in a folder, or as much of it as the disk tells.
    fn entries(&self, dir: &Path) -> Vec<DirEntry> {
        self.list(dir).0
    }

    /// What is in a folder, if the disk tells all of it; a folder that is not there is empty.
    pub(super) fn listed(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let (entries, end) = self.list(dir);
        end.map(|()| entries)
    }

    fn list(&self, dir: &Path) -> (Vec<DirEntry>, io::Result<()>) {
        let area = match dir {
            dir if dir.starts_with(self.layout.upstreams()) => Area::Records,
            dir if dir.starts_with(self.layout.staging()) => Area::Staging,
            _ => Area::Blobs,
        };
        let check = self.faults.check(Operation::List, area);
        let mut found = Vec::new();
        let listed = check.and_then(|()| fs::read_dir(dir));
        let listed = listed.and_then(|entries| {
            for entry in entries {
                found.push(entry?);
            }
            Ok(())
        });
        let end = match listed {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(())
            }
            other => self.counted("list", other),
        };
        (found, end)
    }

    fn read_text(&self, path: &Path) -> io::Result<String> {
        let check = self.faults.check(Operation::Read, Area::Records);
        let read = check.and_then(|()| {
            let mut bytes = Vec::new();
            opening().open(path)?.read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        match read {
            // Whatever is not text is a damaged line, which the parser passes over.
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => self.counted("read", Err(error)),
        }
    }

    /// Replaces a small file of ours: readers see the old one or the new one.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let (created, staged) = self.create_staged(Area::Records);
        let written = created
            .inspect(|file| self.give_back(file))
            .and_then(|file| self.write_through(&file, bytes, Area::Records))
            .and_then(|()| self.make_parent(path, Area::Records))
            .and_then(|()| self.rename(&staged, path, Area::Records));
        if written.is_err() {
            self.remove_staged(&staged);
        }
        written
    }

    /// What root writes, who repairs, belongs to whom the directory belongs: the proxy has to write to it again.
    fn give_back(&self, file: &File) {
        let (dir, ours) = (fs::metadata(self.layout.dir()), file.metadata());
        if let (Ok(dir), Ok(ours)) = (dir, ours)
            && dir.uid() != ours.uid()
        {
            // Nobody but root can, and nobody but root needs to.
            let _ = fchown(file, Some(dir.uid()), Some(dir.gid()));
        }
    }

    /// Adds to a file, all or nothing.
    fn append(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        let before = file.metadata()?.len();
        let written = self
            .faults
            .check(Operation::Write, Area::Records)
            .and_then(|()| file.write_all(bytes));
        if written.is_err() {
            // Half a line would spoil the next one.
            let _ = file.set_len(before);
        }
        written
    }

    /// Makes a new file under a name that nobody looks for, and says which.
    pub(super) fn create_staged(&self, area: Area) -> (io::Result<File>, PathBuf) {
        let path = self.next_staged();
        let mut options = opening();
        options.write(true).create_new(true);
        let check = self.faults.check(Operation::Create, area);
        let created = match check.and_then(|()| options.open(&path)) {
            // The directory was removed under us; what was in it is gone, and the next pulls bring it again.
            Err(error) if error.kind() == ErrorKind::NotFound => self
                .make_parent(&path, area)
                .and_then(|()| options.open(&path)),
            other => other,
        };
        (created, path)
    }

    fn write_through(&self, mut file: &File, bytes: &[u8], area: Area) -> io::Result<()> {
        self.faults.check(Operation::Write, area)?;
        file.write_all(bytes)?;
        self.faults.check(Operation::Sync, area)?;
        file.sync_data()
    }

    pub(super) fn remove(&self, path: &Path, area: Area) -> io::Result<()> {
        self.counted("remove", self.unlink(path, area))
    }

    #[expect(clippy::disallowed_methods, reason = "this is cache::disk")]
    fn unlink(&self, path: &Path, area: Area) -> io::Result<()> {
        let check = self.faults.check(Operation::Remove, area);
        match check.and_then(|()| fs::remove_file(path)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes what was staged, now or when the disk works again.
    pub(super) fn remove_staged(&self, path: &Path) {
        if self.remove(path, Area::Staging).is_err() {
            self.leave(path);
        }
    }

    fn leave(&self, path: &Path) {
        let mut left = self.left.lock();
        if left.len() < LEFT_MAX {
            left.push(path.to_owned());
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is cache::disk")]
    pub(super) fn rename(&self, from: &Path, to: &Path, area: Area) -> io::Result<()> {
        self.faults.check(Operation::Rename, area)?;
        fs::rename(from, to)
    }

    /// Makes the folder of a file when it is not there. The whole directory may be gone: then it is taken anew, so that
    /// nothing is ever put where another process might.
    pub(super) fn make_parent(&self, path: &Path, area: Area) -> io::Result<()> {
        let Some(parent) = path.parent() else {
            return Ok(());
        };
        if parent.is_dir() {
            return Ok(());
        }
        self.faults.check(Operation::MakeFolder, area)?;
        self.hold.regain()?;
        make_dirs(parent)?;
        self.sync_parent(parent, area)
    }

    pub(super) fn sync_parent(&self, path: &Path, area: Area) -> io::Result<()> {
        self.faults.check(Operation::SyncFolder, area)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Does all that publishing a blob takes, with bytes that are nobody's, and removes them again. What goes wrong is
    /// not counted: nothing is lost by it.
    pub(super) fn try_out(&self) -> io::Result<()> {
        self.hold.regain()?;
        let (created, path) = self.create_staged(Area::Staging);
        let renamed = self.next_staged();
        let tried = created
            .and_then(|file| self.write_through(&file, &vec![0; TRIAL_BYTES], Area::Staging))
            .and_then(|()| self.rename(&path, &renamed, Area::Blobs))
            .and_then(|()| self.sync_parent(&renamed, Area::Blobs));
        // The first is only there if it has not become the other.
        let removed = self
            .unlink(&path, Area::Staging)
            .and(self.unlink(&renamed, Area::Staging));
        if removed.is_err() {
            self.leave(&path);
            self.leave(&renamed);
        }
        tried.and(removed)
    }

    /// Removes what could not be removed when it should have been.
    pub(super) fn remove_left(&self) {
        let mut left = self.left.lock();
        left.retain(|path| self.unlink(path, Area::Staging).is_err());
    }
}

/// Whether this process has, or all have, as many open files as they may.
fn lacks_descriptors(error: &io::Error) -> bool {
    let code = Errno::from_io_error(error);
    matches!(code, Some(Errno::MFILE | Errno::NFILE))
}

/// A published file by what the file system says of it; what cannot have been published is none.
fn found(digest: Digest, metadata: &fs::Metadata) -> Option<Found> {
    let is_empty = digest == Digest::of(digest.algorithm(), b"");
    let plausible = metadata.is_file() && (metadata.len() == 0) == is_empty;
    plausible.then(|| Found {
        digest,
        size: metadata.len(),
        used_at: metadata.modified().map_or(0, clock::unix_nanos),
    })
}

pub(super) fn is_dir(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

pub(super) fn tag_of(entry: &DirEntry) -> Option<Tag> {
    Tag::parse(entry.file_name().to_str()?).ok()
}

/// What is written when it is tried whether the disk works; as much as a fill writes at once.
const TRIAL_BYTES: usize = 1 << 20;
/// Names that are remembered because they could not be removed; the next start removes the others.
const LEFT_MAX: usize = 1024;
/// Operations whose failure means that the store takes nothing more in.
const WRITES: &[&str] = &[
    "create", "pwrite", "sync", "rename", "write", "append", "statvfs",
];
