//! What is being staged, and what former processes have left: it counts, is gone on with when somebody asks for it through a
//! repository that has it, and makes room when there is none.
//!
//! Nothing of a remainder is shown to anybody before upstream has said that the repository has the blob; until then it is
//! only known here how much of it there is.

use std::collections::{HashMap, HashSet};
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::available_parallelism;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::disk::Disk;
use super::index::{Index, NoRoom, Reservation};
use super::metrics::{FillLabel, Metrics, RemainderLabel};
use super::remainder::Remainder;
use super::stage::Stage;
use crate::oci::Digest;

/// The staging directory.
#[derive(Debug)]
pub(super) struct Staging {
    disk: Arc<Disk>,
    pub(super) index: Arc<Index>,
    pub(super) metrics: Metrics,
    /// What former processes have left. Its bytes are used.
    remainders: Mutex<HashMap<Digest, Remainder>>,
    /// Turns of fills to hash and write.
    pub(super) turns: Arc<Semaphore>,
    /// What is written to.
    stages: Mutex<Vec<Weak<Mutex<Stage>>>>,
    handed_over: AtomicBool,
}

/// Room for a blob, and what there is of it already.
#[derive(Debug)]
pub(super) struct Admitted {
    digest: Digest,
    size: Option<u64>,
    pub(super) reservation: Reservation,
    remainder: Option<Remainder>,
}

/// How many fills hash and write at once: one for each core that we may use, and two where that is one, so that a
/// write that takes long does not stand in everybody's way.
pub fn turns_max() -> usize {
    available_parallelism().map_or(1, NonZero::get).max(2)
}

impl Staging {
    /// Counts what former processes have left.
    pub(super) fn new(
        disk: &Arc<Disk>,
        index: &Arc<Index>,
        metrics: &Metrics,
        left: Vec<Remainder>,
    ) -> Self {
        let bytes: u64 = left.iter().map(|it| it.says.length).sum();
        if !left.is_empty() {
            info!(remainders = left.len(), bytes, "interrupted fills found");
        }
        index.recount(bytes, 0);
        let remainders = left.into_iter().map(|it| (it.says.digest, it)).collect();
        Self {
            disk: Arc::clone(disk),
            index: Arc::clone(index),
            metrics: metrics.clone(),
            remainders: Mutex::new(remainders),
            turns: Arc::new(Semaphore::new(turns_max())),
            stages: Mutex::default(),
            handed_over: AtomicBool::new(false),
        }
    }

    /// How much of a blob a former process has left.
    pub(super) fn left_of(&self, digest: &Digest) -> Option<u64> {
        let remainders = self.remainders.lock();
        remainders.get(digest).map(|it| it.says.length)
    }

    /// Bytes that former processes have left.
    pub(super) fn left_bytes(&self) -> u64 {
        let remainders = self.remainders.lock();
        remainders.values().map(|it| it.says.length).sum()
    }

    /// Makes room for a blob. What is left of it counts as a part of it, if that is wanted and can be; else it is removed. May
    /// block.
    ///
    /// # Errors
    ///
    /// When there is no room, or the directory is a successor's.
    pub(super) fn admit(
        &self,
        digest: Digest,
        size: Option<u64>,
        resume: bool,
    ) -> Result<Admitted, NoRoom> {
        let _writing = self.index.writing().ok_or(NoRoom)?;
        let left = self.remainders.lock().remove(&digest);
        let (remainder, useless) = match left {
            Some(left) if resume && left.says.fits(size) => (Some(left), None),
            left => (None, left),
        };
        if let Some(useless) = useless {
            self.remove(useless);
        }
        let there = remainder.as_ref().map_or(0, |it| it.says.length);
        let total = size.unwrap_or_else(|| there.saturating_add(self.index.growth()));
        match self.reserve(total.saturating_sub(there)) {
            Ok(mut reservation) => {
                reservation.adopt(there);
                Ok(Admitted {
                    digest,
                    size,
                    reservation,
                    remainder,
                })
            }
            Err(NoRoom) => {
                if let Some(remainder) = remainder {
                    self.remove(remainder);
                }
                Err(NoRoom)
            }
        }
    }

    /// Sets more bytes aside for a blob whose size nobody knew. May block.
    ///
    /// # Errors
    ///
    /// As [`Staging::admit`].
    pub(super) fn grow(&self, reservation: &mut Reservation, bytes: u64) -> Result<(), NoRoom> {
        reservation.join(self.reserve(bytes)?);
        Ok(())
    }

    /// Opens a staging file for what was admitted: what is left of it, when its bytes are those that were marked, else a
    /// new one. Reads all of what is left. Blocks.
    ///
    /// # Errors
    ///
    /// When the disk refuses, or the directory is a successor's.
    pub(super) fn open(
        &self,
        admitted: Admitted,
    ) -> Result<(Arc<Mutex<Stage>>, Reservation), FillLabel> {
        let Admitted {
            digest,
            size,
            mut reservation,
            remainder,
        } = admitted;
        let reopened = {
            let _writing = self.index.writing().ok_or(FillLabel::NoRoom)?;
            remainder.map(|it| (it.reopen(&self.disk), it))
        };
        // Nobody waits for that who has to go. A successor finds it as it was.
        let reopened = reopened.map(|(files, it)| {
            let rehashed = files.and_then(|files| it.rehash(&self.disk, files));
            (rehashed, it)
        });
        let _writing = self.index.writing().ok_or(FillLabel::NoRoom)?;
        let resumed = match reopened {
            Some((Ok(Some(reopened)), remainder)) => {
                let length = remainder.says.length;
                debug!(%digest, length, "fill resumed");
                self.metrics.resumed(length);
                Some(Stage::resumed(&self.disk, &remainder.says, size, reopened))
            }
            Some((Ok(None) | Err(_), remainder)) => {
                warn!(%digest, "what was left of an interrupted fill is damaged, beginning anew");
                remainder.discard(&self.disk);
                self.metrics.remainder_ended(RemainderLabel::Damaged);
                reservation.lost();
                None
            }
            None => None,
        };
        let stage = match resumed {
            Some(stage) => stage,
            None => Stage::new(&self.disk, digest, size).map_err(|_| FillLabel::Disk)?,
        };
        let stage = Arc::new(Mutex::new(stage));
        let mut stages = self.stages.lock();
        stages.retain(|it| it.strong_count() > 0);
        stages.push(Arc::downgrade(&stage));
        Ok((stage, reservation))
    }

    /// Leaves everything to a successor. To be called when nothing is begun or published any more, and before the lock goes.
    /// Waits for what is being written. Blocks.
    pub(super) fn hand_over(&self) {
        let stages = std::mem::take(&mut *self.stages.lock());
        for stage in stages.iter().filter_map(Weak::upgrade) {
            stage.lock().hand_over();
        }
        self.handed_over.store(true, Ordering::Release);
    }

    /// Whether everything was left to a successor.
    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Removes what a purge is about. May block.
    ///
    /// # Errors
    ///
    /// When the disk does not let go of it.
    pub(super) fn forget(&self, digest: &Digest) -> io::Result<()> {
        self.remove_where(|it| it.says.digest == *digest);
        match self.left_of(digest) {
            None => Ok(()),
            Some(_) => Err(io::Error::other("what is left of it cannot be removed")),
        }
    }

    /// Forgets what is not there any more, since the directory was removed or replaced. Blocks.
    pub(super) fn forget_gone(&self) {
        // Not under the lock, for which fills wait that begin.
        let known: Vec<Remainder> = self.remainders.lock().values().cloned().collect();
        let gone = known.iter().filter(|it| it.is_gone());
        let gone: HashSet<Digest> = gone.map(|it| it.says.digest).collect();
        self.remove_where(|it| gone.contains(&it.says.digest));
    }

    /// Removes what nobody will come back for. May block.
    pub(super) fn remove_stale(&self) {
        self.remove_where(Remainder::is_stale);
    }

    /// Removes what is there as a whole, and what the budget has no room for. To be called when the scan has ended. May
    /// block.
    pub(super) fn settle(&self) {
        self.remove_where(|it| self.index.size_of(&it.says.digest).is_some());
        while !self.index.fits() && self.remove_oldest() {}
    }

    /// Sets bytes aside; what is left of former processes goes where nothing else can.
    fn reserve(&self, bytes: u64) -> Result<Reservation, NoRoom> {
        loop {
            match self.index.reserve(bytes) {
                Err(NoRoom) if self.index.could_fit(bytes) && self.remove_oldest() => {}
                reserved => return reserved,
            }
        }
    }

    /// Whether there was something to remove.
    fn remove_oldest(&self) -> bool {
        let oldest = {
            let remainders = self.remainders.lock();
            let oldest = remainders.values().min_by_key(|it| it.written_at);
            oldest.map(|it| it.says.digest)
        };
        oldest.is_some_and(|oldest| self.remove_where(|it| it.says.digest == oldest) > 0)
    }

    /// How many were removed.
    fn remove_where(&self, is_meant: impl Fn(&Remainder) -> bool) -> usize {
        let Some(_writing) = self.index.writing() else {
            return 0;
        };
        let meant: Vec<Remainder> = {
            let mut remainders = self.remainders.lock();
            let meant = remainders.extract_if(|_, it| is_meant(it));
            meant.map(|(_, it)| it).collect()
        };
        let removed = meant.into_iter().map(|it| self.remove(it));
        removed.filter(|is_gone| *is_gone).count()
    }

    /// Removes what was taken out; where the disk refuses that, it is still there and still counts. Whether it is gone.
    fn remove(&self, remainder: Remainder) -> bool {
        let (digest, length) = (remainder.says.digest, remainder.says.length);
        debug!(%digest, "removing what was left of an interrupted fill");
        if !remainder.remove(&self.disk) {
            self.disk.condition().failed();
            self.remainders.lock().insert(digest, remainder);
            return false;
        }
        self.metrics.remainder_ended(RemainderLabel::Dropped);
        self.index.recount(0, length);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use bytes::Bytes;

    use super::*;
    use crate::cache::capacity::Ledger;
    use crate::cache::{Config, Faults, Share};
    use crate::oci::Algorithm;

    const LEFT: &[u8] = b"lay";

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"layer")
    }

    fn left_in(dir: &Path) -> PathBuf {
        dir.join("staging/0123456789abcdef-7")
    }

    /// A directory in which a few bytes of a blob of that size were left.
    fn open(dir: &Path, size: u64) -> Staging {
        let prefix = Digest::of(Algorithm::Sha256, LEFT);
        let line = format!("{} {} {prefix} {size}\n", digest(), LEFT.len());
        fs::create_dir_all(dir.join("staging")).unwrap();
        fs::write(dir.join("VERSION"), "1\n").unwrap();
        fs::write(left_in(dir), LEFT).unwrap();
        fs::write(left_in(dir).with_extension("mark"), line).unwrap();
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let disk = Disk::open(dir.to_owned(), Faults::default(), metrics.clone()).unwrap();
        let left = Remainder::find(&disk);
        assert_eq!(left.len(), 1);
        let config = Config {
            dir: dir.to_owned(),
            size: None,
            free_space_min: Share::Bytes(0),
            high_watermark: Share::Percent(100.0),
            low_watermark: Share::Percent(100.0),
            repositories_max: 10,
            scrub_rate: 0,
            fills_max: 10,
            faults: Faults::default(),
        };
        let ledger = Ledger::new(1 << 30, &config);
        let index = Index::new(Arc::clone(&disk), ledger, metrics.clone());
        index.scan_ended();
        Staging::new(&disk, &index, &metrics, left)
    }

    #[test]
    fn invariant_12_nothing_is_cut_off_from_what_is_a_successors() {
        let dir = tempfile::tempdir().unwrap();
        let staging = open(dir.path(), 5);
        let admitted = staging.admit(digest(), Some(5), true).unwrap();
        // Before the file is opened the directory goes, and the successor is faster.
        staging.index.close();
        staging.hand_over();
        staging.disk.release();
        fs::write(left_in(dir.path()), b"layer").unwrap();
        assert!(staging.open(admitted).is_err());
        assert_eq!(fs::read(left_in(dir.path())).unwrap(), b"layer");
        assert!(left_in(dir.path()).with_extension("mark").exists());
    }

    #[test]
    fn a_mark_is_written_over_also_when_nobody_says_the_size_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let staging = open(dir.path(), 1 << 30);
        let admitted = staging.admit(digest(), None, true).unwrap();
        let (stage, _reservation) = staging.open(admitted).unwrap();
        let more = Bytes::from(vec![7; 1 << 20]);
        let (written, result) = stage.lock().write(std::slice::from_ref(&more));
        assert_eq!((written, result.is_ok()), (1 << 20, true));
        stage.lock().mark(true);
        let left = Remainder::find(&staging.disk);
        let lengths: Vec<u64> = left.iter().map(|it| it.says.length).collect();
        assert_eq!(lengths, [(1 << 20) + LEFT.len() as u64]);
    }
}
