//! What is being staged, and what former processes have left: it counts, is gone on with when somebody asks for it through a
//! repository that has it, and makes room when there is none.
//!
//! Nothing of a remainder is shown to anybody before upstream has said that the repository has the blob; until then it is
//! only known here how much of it there is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
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
            self.remove(&useless, RemainderLabel::Dropped);
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
                    self.remove(&remainder, RemainderLabel::Dropped);
                }
                Err(NoRoom)
            }
        }
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
        let reopened = remainder.map(|it| (it.reopen(&self.disk), it));
        // A successor finds it as it was.
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
                remainder.remove(&self.disk);
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
    pub(super) fn forget(&self, digest: &Digest) {
        self.remove_where(|it| it.says.digest == *digest);
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

    /// How many there were.
    fn remove_where(&self, is_meant: impl Fn(&Remainder) -> bool) -> usize {
        let Some(_writing) = self.index.writing() else {
            return 0;
        };
        let meant: Vec<Remainder> = {
            let mut remainders = self.remainders.lock();
            let meant = remainders.extract_if(|_, it| is_meant(it));
            meant.map(|(_, it)| it).collect()
        };
        for remainder in &meant {
            self.remove(remainder, RemainderLabel::Dropped);
        }
        meant.len()
    }

    fn remove(&self, remainder: &Remainder, label: RemainderLabel) {
        debug!(digest = %remainder.says.digest, "removing what was left of an interrupted fill");
        remainder.remove(&self.disk);
        self.metrics.remainder_ended(label);
        self.index.recount(0, remainder.says.length);
    }
}
