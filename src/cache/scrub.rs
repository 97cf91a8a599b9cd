//! Going round over all published files and rehashing them: bytes that were damaged behind our back are found before
//! they are asked for.
//!
//! A round follows the directory, folder by folder and name by name, so that it needs no list of its own. What is evicted
//! meanwhile is passed over; no lock is held while a file is read, reading is no use of it, and it can be evicted at any
//! moment. What is not what its name says is set aside, and the next pull fetches it again.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::check::{Check, Step};
use super::disk::{Disk, Folder, Stored};
use super::index::Index;
use super::metrics::Metrics;
use super::pace::{FILE_COST_BYTES, Pace, turn};
use crate::oci::Digest;

/// What checks the published files of one directory.
#[derive(Clone, Debug)]
pub(super) struct Scrub {
    disk: Arc<Disk>,
    index: Arc<Index>,
    metrics: Metrics,
    /// The folder with which rounds begin.
    start: u8,
}

/// What a round comes across.
#[derive(Debug)]
pub(super) enum Seen {
    /// So many bytes more were read.
    Read(u64),
    /// A file is what its name says.
    Right(u64),
    /// A file is not what its name says; whether it was set aside, which needs the right to write.
    Damaged(Digest, bool),
    /// A file could not be read, and is left where it is.
    Unreadable(Digest),
    /// A file that the index did not know; now it does.
    Adopted(Digest),
    /// Something that is no published file, where only those should be.
    Foreign(PathBuf),
    /// A folder that the disk does not give.
    Unlisted(PathBuf),
}

/// Who is told.
pub(super) type Witness<'a> = &'a mut (dyn FnMut(Seen) + Send);

/// The round was told to stop.
#[derive(Debug)]
pub(super) struct Stopped;

impl Scrub {
    pub(super) fn new(disk: &Arc<Disk>, index: &Arc<Index>, metrics: &Metrics) -> Self {
        Self {
            disk: Arc::clone(disk),
            index: Arc::clone(index),
            metrics: metrics.clone(),
            start: rand::random(),
        }
    }

    /// Checks every published file once, at most `rate` bytes in a second, unless it is zero. Dropped, it stops at once.
    pub(super) async fn round(
        &self,
        rate: u64,
        stop: &CancellationToken,
        witness: Witness<'_>,
    ) -> Result<(), Stopped> {
        let mut pace = Pace::new(rate);
        let began = Instant::now();
        let disk = Arc::clone(&self.disk);
        let mut folders: Vec<Folder> = spawn_blocking(move || disk.folders())
            .await
            .unwrap_or_default();
        folders.sort_by_key(|folder| (turn(self.start, folder.first), folder.algorithm));
        for folder in folders {
            let disk = Arc::clone(&self.disk);
            let stored = spawn_blocking(move || disk.stored_in(&folder)).await;
            let stored = stored.unwrap_or(Ok(Vec::new()));
            let stored = stored.unwrap_or_else(|unlisted| {
                witness(Seen::Unlisted(unlisted));
                Vec::new()
            });
            for stored in stored {
                match stored {
                    Stored::Blob(digest) => {
                        let mut breath = Breath {
                            pace: &mut pace,
                            began,
                            stop,
                        };
                        self.check(digest, &mut breath, witness).await?;
                    }
                    Stored::Foreign(path) => witness(Seen::Foreign(path)),
                }
            }
        }
        if stop.is_cancelled() {
            return Err(Stopped);
        }
        Ok(())
    }

    /// Checks one file now, at most `rate` bytes in a second. Whether it was damaged, and set aside.
    pub(super) async fn recheck(
        &self,
        digest: Digest,
        rate: u64,
        stop: &CancellationToken,
    ) -> bool {
        let mut is_aside = false;
        let mut witness = |seen| is_aside |= matches!(seen, Seen::Damaged(_, true));
        let mut breath = Breath {
            pace: &mut Pace::new(rate),
            began: Instant::now(),
            stop,
        };
        // Stopped, nothing was found.
        let _ = self.check(digest, &mut breath, &mut witness).await;
        is_aside
    }

    /// Checks one file.
    async fn check(
        &self,
        digest: Digest,
        breath: &mut Breath<'_>,
        witness: Witness<'_>,
    ) -> Result<(), Stopped> {
        breath.take(FILE_COST_BYTES).await?;
        let (disk, index) = (Arc::clone(&self.disk), Arc::clone(&self.index));
        let opened = spawn_blocking(move || open(&disk, &index, digest)).await;
        let Ok(opened) = opened else {
            return Ok(());
        };
        let mut check = match opened {
            Opened::Gone => return Ok(()),
            Opened::Unreadable => {
                witness(Seen::Unreadable(digest));
                return Ok(());
            }
            Opened::Damaged(file) => {
                self.set_aside(digest, file, witness).await;
                return Ok(());
            }
            Opened::Check { check, adopted } => {
                if adopted {
                    witness(Seen::Adopted(digest));
                }
                check
            }
        };
        let size = check.left();
        loop {
            let stretch = breath.pace.stretch();
            breath.take(stretch.min(check.left())).await?;
            let stepped = spawn_blocking(move || {
                let step = check.step(stretch);
                (check, step)
            });
            let Ok((next, step)) = stepped.await else {
                return Ok(());
            };
            check = next;
            let step = self.disk.counted("read", step);
            let Ok(Step::Read(read) | Step::Right(read)) = step else {
                match step {
                    Ok(Step::Wrong) => self.set_aside(digest, check.into_file(), witness).await,
                    Err(_) => witness(Seen::Unreadable(digest)),
                    Ok(Step::Gone | Step::Read(_) | Step::Right(_)) => {}
                }
                return Ok(());
            };
            self.metrics.scrubbed(read);
            witness(Seen::Read(read));
            if matches!(step, Ok(Step::Right(_))) {
                witness(Seen::Right(size));
                return Ok(());
            }
        }
    }

    /// Sets aside what was found damaged, unless something else has come in its place.
    async fn set_aside(&self, digest: Digest, file: File, witness: Witness<'_>) {
        let (disk, index) = (Arc::clone(&self.disk), Arc::clone(&self.index));
        let set_aside = spawn_blocking(move || {
            let is_same = disk.is_published(&digest, &file);
            is_same.then(|| {
                index.quarantine(&digest);
                !disk.is_published(&digest, &file)
            })
        });
        match set_aside.await {
            Ok(Some(is_aside)) => witness(Seen::Damaged(digest, is_aside)),
            Ok(None) => {}
            Err(error) => warn!(error = %error, "a task of the scrub was lost"),
        }
    }
}

/// The way to be slow, and to stop.
struct Breath<'a> {
    pace: &'a mut Pace,
    began: Instant,
    stop: &'a CancellationToken,
}

impl Breath<'_> {
    /// Waits until so many bytes may be read.
    async fn take(&mut self, bytes: u64) -> Result<(), Stopped> {
        let wait = self.pace.wait(self.began.elapsed(), bytes);
        if self.stop.is_cancelled() {
            return Err(Stopped);
        }
        if wait < WAIT_MIN {
            return Ok(());
        }
        // Neither arm holds anything.
        tokio::select! {
            () = self.stop.cancelled() => Err(Stopped),
            () = sleep(wait) => Ok(()),
        }
    }
}

/// A pause that is not worth a timer; it is made up for at the next.
const WAIT_MIN: Duration = Duration::from_millis(2);

enum Opened {
    Check {
        check: Box<Check>,
        adopted: bool,
    },
    /// It is not even of the right size.
    Damaged(File),
    Unreadable,
    Gone,
}

fn open(disk: &Disk, index: &Index, digest: Digest) -> Opened {
    let adopted = index.size_of(&digest).is_none() && index.adopt(&digest);
    let opened = disk.open_blob(&digest);
    let size = index.size_of(&digest);
    match opened {
        Ok(Some((file, found))) if size == Some(found) => {
            let check = Box::new(Check::new(digest, file, found));
            Opened::Check { check, adopted }
        }
        // Coming or going.
        Ok(Some(_)) if size.is_none() && !index.is_stray(&digest) => Opened::Gone,
        Ok(Some((file, _))) => Opened::Damaged(file),
        Ok(None) => Opened::Gone,
        Err(_) => Opened::Unreadable,
    }
}
