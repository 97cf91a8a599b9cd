//! The cache directory: the only place that opens, renames or removes anything in it. Everything here may block.
//!
//! A published file is made in one way: staged under a name nobody looks for, written, synced, renamed to its digest, and
//! the directory synced. It is never written, extended or truncated again, so an open handle reads the right bytes
//! whatever becomes of the name.

use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags};
use tracing::{debug, warn};

use super::clock;
use super::layout::{Layout, Repository};
use super::metrics::Metrics;
use crate::oci::{Algorithm, Digest, Tag};

/// Why a cache directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory could not be made, read or written.
    #[error("cache directory {} is not usable", dir.display())]
    NotUsable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is something in it, and none of it is ours.
    #[error("cache directory {} is not empty and holds no layerhold store (no VERSION file): name another one", dir.display())]
    NotOurs {
        /// The directory.
        dir: PathBuf,
    },
    /// A newer program wrote it.
    #[error("cache directory {} has layout version {found:?}, newer than this program's {}", dir.display(), Layout::VERSION)]
    TooNew {
        /// The directory.
        dir: PathBuf,
        /// What its VERSION file says.
        found: String,
    },
    /// There is nothing in it to look at.
    #[error("cache directory {} holds no layerhold store", dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
    },
    /// Another process holds it.
    #[error("cache directory {} is in use by another instance (process {holder})", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// What the holder wrote into the lock file.
        holder: String,
    },
}

/// The cache directory, held by this process alone.
#[derive(Debug)]
pub(super) struct Disk {
    layout: Layout,
    metrics: Metrics,
    lock: parking_lot::Mutex<Option<File>>,
    /// In the name of everything that is staged here.
    token: u64,
    staged: AtomicU64,
}

/// A file that nobody looks for yet. Dropped unpublished, its name is removed; open handles go on reading.
#[derive(Debug)]
pub(super) struct StagedFile {
    file: Arc<File>,
    path: PathBuf,
    disk: Arc<Disk>,
    published: bool,
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

/// What lies around in the directory besides what is ours.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) foreign: Vec<PathBuf>,
    /// Folders that the disk does not give.
    pub(super) unreadable: Vec<PathBuf>,
}

impl Around {
    fn list(&mut self, disk: &Disk, dir: &Path) -> Vec<DirEntry> {
        let listed = disk.listed(dir);
        listed.unwrap_or_else(|_| {
            self.unreadable.push(dir.to_owned());
            Vec::new()
        })
    }
}

impl Disk {
    /// Takes the directory for this process: makes it when absent, checks its version, and locks it. A lock whose holder
    /// says that it is draining is waited for, up to [`DRAINING_WAIT`].
    pub(super) fn open(dir: PathBuf, metrics: Metrics) -> Result<Arc<Self>, OpenError> {
        let layout = Layout::new(dir);
        let not_usable = |source| OpenError::NotUsable {
            dir: layout.dir().to_owned(),
            source,
        };
        fs::create_dir_all(layout.dir()).map_err(not_usable)?;
        check_ours(&layout)?;
        let lock = take_lock(&layout, DRAINING_WAIT)?;
        check_version(&layout)?;
        let disk = Self::holding(lock, layout.clone(), metrics);
        disk.prepare().map_err(not_usable)?;
        Ok(Arc::new(disk))
    }

    /// Takes a directory that there is, at once or not at all, and changes nothing in it but the lock file.
    pub(super) fn open_as_it_is(dir: PathBuf, metrics: Metrics) -> Result<Arc<Self>, OpenError> {
        let layout = Layout::new(dir);
        let is_store = fs::metadata(layout.version()).is_ok_and(|it| it.len() > 0);
        if !is_store {
            let dir = layout.dir().to_owned();
            return Err(OpenError::NoStore { dir });
        }
        let lock = take_lock(&layout, Duration::ZERO)?;
        check_version(&layout)?;
        Ok(Arc::new(Self::holding(lock, layout, metrics)))
    }

    fn holding(lock: File, layout: Layout, metrics: Metrics) -> Self {
        Self {
            metrics,
            lock: parking_lot::Mutex::new(Some(lock)),
            token: rand::random(),
            staged: AtomicU64::new(0),
            layout,
        }
    }

    /// Lets a successor have the directory; this process only reads from then on.
    pub(super) fn release(&self) {
        if let Some(lock) = self.lock.lock().take() {
            drop(lock);
        }
    }

    /// Tells whoever waits for the lock that it will be free soon.
    pub(super) fn announce_draining(&self) {
        if let Some(lock) = self.lock.lock().as_ref() {
            let _ = write_holder(lock, DRAINING);
        }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        self.layout.dir()
    }

    /// The size chosen at the first start, if one was.
    pub(super) fn chosen_size(&self) -> Option<u64> {
        let text = fs::read_to_string(self.layout.version()).ok()?;
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
        let stat = self.counted(
            "statvfs",
            rustix::fs::statvfs(self.layout.dir()).map_err(io::Error::from),
        )?;
        Ok((
            stat.f_bavail.saturating_mul(stat.f_frsize),
            stat.f_blocks.saturating_mul(stat.f_frsize),
        ))
    }

    /// Makes a new staging file.
    pub(super) fn stage(self: &Arc<Self>) -> io::Result<StagedFile> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let path = self.layout.staged(self.token, number);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let opened = match options.open(&path) {
            // The directory was removed under us; what was in it is gone, and the next pulls bring it again.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_parent(&path).and_then(|()| options.open(&path))
            }
            other => other,
        };
        let file = Arc::new(self.counted("create", opened)?);
        Ok(StagedFile {
            file,
            path,
            disk: Arc::clone(self),
            published: false,
        })
    }

    /// Opens a published file; `None` when there is none.
    pub(super) fn open_blob(&self, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        // Not to wait for anybody, should it be something else than a file.
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(nonblocking)
            .open(self.layout.blob(digest));
        match opened {
            Ok(file) => {
                let metadata = self.counted("stat", file.metadata())?;
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
        match fs::metadata(self.layout.blob(digest)) {
            Ok(metadata) => Ok(found(*digest, &metadata)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => self.counted("stat", Err(error)),
        }
    }

    /// Removes a published file; one that is gone already is no error.
    pub(super) fn remove_blob(&self, digest: &Digest) -> io::Result<()> {
        self.remove(&self.layout.blob(digest))
    }

    /// Takes a published file out of sight; the next start removes it.
    pub(super) fn quarantine(&self, digest: &Digest) -> io::Result<()> {
        self.set_aside(&self.layout.blob(digest))
    }

    /// Takes any file out of sight; the next start removes it.
    pub(super) fn set_aside(&self, path: &Path) -> io::Result<()> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let aside = self.layout.staged(self.token, number);
        self.counted("rename", rename(path, &aside))
    }

    /// Writes the last use of a blob where the next start will find it.
    pub(super) fn write_last_use(&self, digest: &Digest, unix_nanos: u64) -> io::Result<()> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_nanos);
        let touched = File::open(self.layout.blob(digest)).and_then(|file| file.set_modified(time));
        match touched {
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
                    let Ok(metadata) = entry.metadata() else {
                        continue;
                    };
                    if let Some(file) = self::found(digest, &metadata) {
                        found(file);
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

    /// What lies where only our folders should be, and is none. What lies within a folder of published files is told by
    /// [`Disk::stored_in`].
    pub(super) fn around(&self) -> Around {
        let mut around = Around::default();
        let algorithms = Algorithm::ALL.map(|algorithm| self.layout.blobs(algorithm));
        let blobs = algorithms.first().and_then(|it| it.parent());
        for entry in blobs.map(|it| around.list(self, it)).unwrap_or_default() {
            if !algorithms.contains(&entry.path()) || !is_dir(&entry) {
                around.foreign.push(entry.path());
            }
        }
        for algorithm in &algorithms {
            for entry in around.list(self, algorithm) {
                if Layout::folder_of(&entry.file_name()).is_none() || !is_dir(&entry) {
                    around.foreign.push(entry.path());
                }
            }
        }
        self.around_records(&self.layout.upstreams(), &mut around);
        around
    }

    fn around_records(&self, dir: &Path, around: &mut Around) {
        let is_repository = self.layout.repository_at(dir).is_some();
        for entry in around.list(self, dir) {
            let (name, path) = (entry.file_name(), entry.path());
            match (Layout::is_own(&name) && is_repository, is_dir(&entry)) {
                (false, true) => self.around_records(&path, around),
                (true, false) if Layout::is_grants(&name) => {}
                (true, true) if !Layout::is_grants(&name) => {
                    let tags = around.list(self, &path).into_iter();
                    let other = tags.filter(|it| is_dir(it) || tag_of(it).is_none());
                    around.foreign.extend(other.map(|it| it.path()));
                }
                _ => around.foreign.push(path),
            }
        }
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
        let appended = make_parent(&path)
            .and_then(|()| OpenOptions::new().append(true).create(true).open(&path))
            .and_then(|mut file| file.write_all(lines.as_bytes()));
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
        self.remove(&self.layout.tag(repository, tag))
    }

    /// Forgets a repository's grants and tags; deeper repositories keep theirs.
    pub(super) fn remove_repository(&self, repository: &Repository) -> io::Result<()> {
        self.remove(&self.layout.granted(repository))?;
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
                self.metrics.set_degraded(true);
            }
        }
        result
    }

    /// Folders and the removal of what a former process staged.
    fn prepare(&self) -> io::Result<()> {
        for algorithm in Algorithm::ALL {
            fs::create_dir_all(self.layout.blobs(algorithm))?;
        }
        fs::create_dir_all(self.layout.upstreams())?;
        fs::create_dir_all(self.layout.staging())?;
        for entry in fs::read_dir(self.layout.staging())? {
            self.remove(&entry?.path())?;
        }
        Ok(())
    }

    fn entries(&self, dir: &Path) -> Vec<DirEntry> {
        self.listed(dir).unwrap_or_default()
    }

    fn listed(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let listed = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        match listed {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(Vec::new())
            }
            other => self.counted("list", other),
        }
    }

    fn read_text(&self, path: &Path) -> io::Result<String> {
        match fs::read(path) {
            // Whatever is not text is a damaged line, which the parser passes over.
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => self.counted("read", Err(error)),
        }
    }

    /// Replaces a small file of ours: readers see the old one or the new one.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let staged = self.layout.staged(self.token, number);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&staged)
            .and_then(|mut file| {
                self.give_back(&file);
                file.write_all(bytes).and_then(|()| file.sync_data())
            })
            .and_then(|()| make_parent(path))
            .and_then(|()| rename(&staged, path));
        if written.is_err() {
            let _ = self.remove(&staged);
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

    #[expect(clippy::disallowed_methods, reason = "this is cache::disk")]
    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => self.counted("remove", Err(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl StagedFile {
    /// The file itself; a handle of it outlives the name.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Counts a failed write.
    pub(super) fn write_failed(&self, error: io::Error) -> io::Error {
        match self.disk.counted::<()>("pwrite", Err(error)) {
            Ok(()) => io::Error::other("unreachable"),
            Err(error) => error,
        }
    }

    /// Makes the file official: sync, rename, sync of the directory. The caller has verified that its bytes are those of
    /// `digest`; after an error the name may or may not be there, and is right if it is.
    pub(super) fn publish(mut self, digest: &Digest) -> io::Result<Arc<File>> {
        let path = self.disk.layout.blob(digest);
        self.disk.counted("sync", self.file.sync_data())?;
        let renamed = make_parent(&path).and_then(|()| rename(&self.path, &path));
        self.disk.counted("rename", renamed)?;
        self.published = true;
        self.disk.counted("sync", sync_parent(&path))?;
        self.disk.metrics.set_degraded(false);
        Ok(Arc::clone(&self.file))
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.published {
            let _ = self.disk.remove(&self.path);
        }
    }
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

fn is_dir(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

fn tag_of(entry: &DirEntry) -> Option<Tag> {
    Tag::parse(entry.file_name().to_str()?).ok()
}

/// How long a starting process waits for a draining one.
const DRAINING_WAIT: Duration = Duration::from_secs(30);
const DRAINING: &str = "draining";
/// Operations whose failure means that the store takes nothing more in.
const WRITES: &[&str] = &[
    "create", "pwrite", "sync", "rename", "write", "append", "statvfs",
];

/// A directory with something in it and no word of ours is somebody else's; nothing is written to it.
fn check_ours(layout: &Layout) -> Result<(), OpenError> {
    let dir = layout.dir().to_owned();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name()),
        Err(source) => return Err(OpenError::NotUsable { dir, source }),
    };
    let names: Vec<_> = entries.collect();
    // A mount point of its own brings `lost+found` along; a first start that was cut off leaves the rest.
    let is_ours = names.iter().any(|name| name == "VERSION");
    let is_bare =
        |name: &std::ffi::OsString| name == "lost+found" || name == "LOCK" || name == "VERSION.new";
    if is_ours || names.iter().all(is_bare) {
        Ok(())
    } else {
        Err(OpenError::NotOurs { dir })
    }
}

/// Reads the layout version, or writes it at the first start; an empty one is a first start that was cut off.
fn check_version(layout: &Layout) -> Result<(), OpenError> {
    let dir = layout.dir().to_owned();
    let text = match fs::read_to_string(layout.version()) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(source) => return Err(OpenError::NotUsable { dir, source }),
    };
    if text.is_empty() {
        return begin_store(layout).map_err(|source| OpenError::NotUsable { dir, source });
    }
    let found = text.lines().next().unwrap_or_default().trim().to_owned();
    match found.parse::<u32>() {
        Ok(version) if version <= Layout::VERSION => Ok(()),
        Ok(_) | Err(_) => Err(OpenError::TooNew { dir, found }),
    }
}

fn begin_store(layout: &Layout) -> io::Result<()> {
    let staged = layout.version().with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&staged)?;
    writeln!(file, "{}", Layout::VERSION)?;
    file.sync_data()?;
    rename(&staged, &layout.version())?;
    sync_parent(&layout.version())
}

fn take_lock(layout: &Layout, patience: Duration) -> Result<File, OpenError> {
    let not_usable = |source| OpenError::NotUsable {
        dir: layout.dir().to_owned(),
        source,
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(layout.lock());
    let mut lock = opened.map_err(not_usable)?;
    let mut waited = Duration::ZERO;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => {}
            Err(error) => return Err(not_usable(error.into())),
        }
        let mut holder = String::new();
        let _ = io::Seek::rewind(&mut lock);
        let _ = lock.read_to_string(&mut holder);
        let holder = holder.trim().to_owned();
        // Empty: it is being written at this very moment.
        let may_end = holder.contains(DRAINING) || holder.is_empty();
        if !may_end || waited >= patience {
            return Err(OpenError::InUse {
                dir: layout.dir().to_owned(),
                holder,
            });
        }
        waited += LOCK_POLL;
        std::thread::sleep(LOCK_POLL);
    }
    write_holder(&lock, "").map_err(not_usable)?;
    Ok(lock)
}

const LOCK_POLL: Duration = Duration::from_millis(50);

/// Says in the lock file who holds it, and in which state.
fn write_holder(mut lock: &File, state: &str) -> io::Result<()> {
    lock.set_len(0)?;
    io::Seek::rewind(&mut lock)?;
    writeln!(lock, "{} {state}", std::process::id())
}

#[expect(clippy::disallowed_methods, reason = "this is cache::disk")]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

fn make_parent(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    if parent.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(parent)?;
    sync_parent(parent)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
