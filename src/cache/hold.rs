//! Having the cache directory: whose it is, of which version, and that nobody else writes to it.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use rustix::process::geteuid;
use tracing::{info, warn};

use super::layout::Layout;
use super::opening::{DIR_MODE, make_dir, make_dirs, opening};

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
    /// It is another user's, who could change what is in it.
    #[error("cache directory {} belongs to user {owner}, and this process is user {us}: give it to that user with chown, or name another one", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who this process is.
        us: u32,
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

/// The right to write to a directory, against all other processes.
#[derive(Debug)]
pub(super) struct Hold {
    layout: Layout,
    lock: Mutex<Option<File>>,
    /// Whether the directory was replaced by an empty one, or by another, since that was last asked.
    replaced: AtomicBool,
}

impl Hold {
    /// Takes the directory: makes it when absent, locks it, and checks its version. A lock whose holder says that it is
    /// draining is waited for, up to [`DRAINING_WAIT`].
    pub(super) fn take(layout: &Layout) -> Result<Self, OpenError> {
        prepare_dir(layout.dir())?;
        let lock = take_lock(layout, DRAINING_WAIT)?;
        check_version(layout)?;
        Ok(Self::of(layout, lock))
    }

    /// Takes a directory that there is, at once or not at all, and changes nothing in it but the lock file.
    pub(super) fn take_as_it_is(layout: &Layout) -> Result<Self, OpenError> {
        let is_store = fs::metadata(layout.version()).is_ok_and(|it| it.len() > 0);
        if !is_store {
            let dir = layout.dir().to_owned();
            return Err(OpenError::NoStore { dir });
        }
        let lock = take_lock(layout, Duration::ZERO)?;
        check_version(layout)?;
        Ok(Self::of(layout, lock))
    }

    fn of(layout: &Layout, lock: File) -> Self {
        Self {
            layout: layout.clone(),
            lock: Mutex::new(Some(lock)),
            replaced: AtomicBool::new(false),
        }
    }

    /// Lets a successor have the directory.
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

    /// Whether the directory has been replaced since this was last asked.
    pub(super) fn was_replaced(&self) -> bool {
        self.replaced.swap(false, Ordering::AcqRel)
    }

    /// Takes the directory again if it was removed, or replaced by another, under us. Its parent is not made: what it was
    /// mounted on may be gone with it. [`ErrorKind::ResourceBusy`] is another instance that has it now.
    pub(super) fn regain(&self) -> io::Result<()> {
        let (layout, mut held) = (&self.layout, self.lock.lock());
        // Who let it go does not want it back.
        if held.as_ref().is_none_or(|lock| is_at(lock, layout)) {
            return Ok(());
        }
        match make_dir(layout.dir()) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let taken = keep_to_ourselves(layout, true).and_then(|()| {
            let lock = take_lock(layout, Duration::ZERO)?;
            check_version(layout)?;
            Ok(lock)
        });
        match taken {
            Ok(lock) => *held = Some(lock),
            Err(OpenError::NotUsable { source, .. }) => return Err(source),
            Err(error @ OpenError::InUse { .. }) => {
                return Err(io::Error::new(ErrorKind::ResourceBusy, error));
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        warn!("the cache directory was removed or replaced, and is taken again");
        self.replaced.store(true, Ordering::Release);
        Ok(())
    }
}

/// Makes the directory when it is absent, sees to it that it is ours alone, and opens it.
///
/// # Errors
///
/// When it cannot be made or opened, is another user's, or has something else in it; what it then is it stays.
pub fn prepare_dir(dir: &Path) -> Result<File, OpenError> {
    let not_usable = |source| OpenError::NotUsable {
        dir: dir.to_owned(),
        source,
    };
    make_dirs(dir).map_err(not_usable)?;
    keep_to_ourselves(&Layout::new(dir.to_owned()), false)?;
    File::open(dir).map_err(not_usable)
}

/// Refuses another user's directory and one that is no store's, and takes everybody else's rights from one of ours: what an
/// earlier version put into it may be readable for all. Where it is root's, as a volume in a container is, nobody but root can
/// do that.
fn keep_to_ourselves(layout: &Layout, was_ours: bool) -> Result<(), OpenError> {
    let dir = layout.dir();
    let not_usable = |source| OpenError::NotUsable {
        dir: dir.to_owned(),
        source,
    };
    let metadata = fs::metadata(dir).map_err(not_usable)?;
    let (owner, us) = (metadata.uid(), geteuid().as_raw());
    let mode = metadata.mode() & 0o7777;
    let shown = format!("{mode:04o}");
    let whose = whose(owner, us, mode);
    if whose != Whose::Foreign {
        // Before anything is changed: a slip of the hand may have named `/tmp`.
        check_ours(layout, was_ours)?;
    }
    match whose {
        Whose::Ours => {}
        Whose::TooWide => {
            let narrower = Permissions::from_mode(mode & 0o7000 | DIR_MODE);
            fs::set_permissions(dir, narrower).map_err(not_usable)?;
            info!(dir = %dir.display(), mode = shown, "others had rights in the cache directory, and have none now");
        }
        Whose::Theirs => {
            warn!(dir = %dir.display(), owner, "the cache directory is another user's, who can change what is served");
        }
        Whose::Everybodys => {
            warn!(dir = %dir.display(), mode = shown, "everybody can write to the cache directory, and change what is served");
        }
        Whose::Foreign => {
            let dir = dir.to_owned();
            return Err(OpenError::Foreign { dir, owner, us });
        }
    }
    Ok(())
}

/// Who has power over a directory that is to be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Nobody but us, and root.
    Ours,
    /// It is ours, and others have rights in it.
    TooWide,
    /// We are root, and it is somebody else's.
    Theirs,
    /// It is root's, and everybody may write to it, as to a container's empty volume.
    Everybodys,
    /// It is another user's.
    Foreign,
}

fn whose(owner: u32, us: u32, mode: u32) -> Whose {
    match owner {
        _ if owner == us && mode & 0o077 == 0 => Whose::Ours,
        _ if owner == us => Whose::TooWide,
        _ if us == 0 => Whose::Theirs,
        0 if mode & 0o002 != 0 => Whose::Everybodys,
        0 => Whose::Ours,
        _ => Whose::Foreign,
    }
}

fn is_at(lock: &File, layout: &Layout) -> bool {
    let (Ok(lock), Ok(there)) = (lock.metadata(), fs::metadata(layout.lock())) else {
        return false;
    };
    (lock.dev(), lock.ino()) == (there.dev(), there.ino())
}

fn not_usable(layout: &Layout, source: io::Error) -> OpenError {
    OpenError::NotUsable {
        dir: layout.dir().to_owned(),
        source,
    }
}

/// How long a starting process waits for a draining one.
const DRAINING_WAIT: Duration = Duration::from_secs(30);
const DRAINING: &str = "draining";

/// A directory with something in it and no word of ours is somebody else's; nothing is written to it.
/// What was ours a moment ago may have lost its VERSION before the rest.
fn check_ours(layout: &Layout, was_ours: bool) -> Result<(), OpenError> {
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
    let is_left = |name: &std::ffi::OsString| is_bare(name) || was_ours && Layout::is_top(name);
    if is_ours || names.iter().all(is_left) {
        Ok(())
    } else {
        Err(OpenError::NotOurs { dir })
    }
}

/// Reads the layout version, or writes it at the first start; an empty one is a first start that was cut off.
fn check_version(layout: &Layout) -> Result<(), OpenError> {
    let dir = layout.dir().to_owned();
    let read = opening().open(layout.version());
    let text = match read.and_then(io::read_to_string) {
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
    let mut file = opening()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&staged)?;
    writeln!(file, "{}", Layout::VERSION)?;
    file.sync_data()?;
    rename(&staged, &layout.version())?;
    File::open(layout.dir())?.sync_all()
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is no blob, but the first file of a store"
)]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

fn take_lock(layout: &Layout, patience: Duration) -> Result<File, OpenError> {
    let not_usable = |source| not_usable(layout, source);
    let opened = opening()
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
        if !may_end(&holder, waited) || waited >= patience {
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

/// Whether whoever holds the lock may be about to let it go, after this long.
fn may_end(holder: &str, waited: Duration) -> bool {
    // Empty: it is being written at this very moment. One that was told to stop a moment ago has perhaps not said so yet.
    holder.contains(DRAINING) || holder.is_empty() || waited < GRACE
}

const LOCK_POLL: Duration = Duration::from_millis(50);
/// How long a successor waits for its predecessor to hear that it is to stop.
const GRACE: Duration = Duration::from_secs(2);

/// Says in the lock file who holds it, and in which state.
fn write_holder(mut lock: &File, state: &str) -> io::Result<()> {
    lock.set_len(0)?;
    io::Seek::rewind(&mut lock)?;
    writeln!(lock, "{} {state}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_ours_or_roots() {
        for (owner, us, mode, expected) in [
            (1000, 1000, 0o700, Whose::Ours),
            (1000, 1000, 0o2700, Whose::Ours),
            (1000, 1000, 0o750, Whose::TooWide),
            (1000, 1000, 0o777, Whose::TooWide),
            (0, 0, 0o755, Whose::TooWide),
            (1000, 0, 0o700, Whose::Theirs),
            (0, 1000, 0o2770, Whose::Ours),
            (0, 1000, 0o777, Whose::Everybodys),
            (0, 1000, 0o1777, Whose::Everybodys),
            (1001, 1000, 0o770, Whose::Foreign),
            (1001, 1000, 0o777, Whose::Foreign),
        ] {
            assert_eq!(whose(owner, us, mode), expected, "{owner} {us} {mode:o}");
        }
    }

    #[test]
    fn only_who_may_be_about_to_go_is_waited_for() {
        let draining = format!("17 {DRAINING}");
        for (holder, millis, expected) in [
            ("17", 0, true),
            ("17", 1999, true),
            ("17", 2000, false),
            ("", 9000, true),
            (draining.as_str(), 9000, true),
        ] {
            let waited = Duration::from_millis(millis);
            assert_eq!(may_end(holder, waited), expected, "{holder:?} {millis}");
        }
    }
}
