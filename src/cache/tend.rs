//! Seeing to the cache directory while it is in use: a disk that refused writes is tried again and again, since nobody
//! else may write to it as long as everything goes around the cache, and a directory that was removed is taken anew.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::disk::Disk;
use super::index::Index;
use super::repositories::Repositories;
use super::staging::Staging;

/// Who sees to one directory.
#[derive(Clone, Debug)]
pub(super) struct Tender {
    pub(super) disk: Arc<Disk>,
    pub(super) index: Arc<Index>,
    pub(super) staging: Arc<Staging>,
    pub(super) repositories: Arc<Repositories>,
}

impl Tender {
    /// Looks at the directory now and then until it is told to stop. A disk that works and does not by turns is tried less
    /// and less often.
    pub(super) async fn run(self, stop: &CancellationToken) {
        let mut pause = TRIAL_PAUSE_MIN;
        loop {
            let trouble = self.disk.condition().degraded();
            // None of the arms holds anything.
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(LOOK_INTERVAL) => pause = TRIAL_PAUSE_MIN,
                () = trouble => {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = sleep(pause) => pause = TRIAL_PAUSE_MAX.min(pause * 2),
                    }
                }
            }
            let tender = self.clone();
            if let Err(error) = spawn_blocking(move || tender.look()).await {
                warn!(error = %error, "a task of the cache panicked");
            }
        }
    }

    /// Looks once. Blocks.
    fn look(&self) {
        let Some(writing) = self.index.writing() else {
            return;
        };
        if let Err(error) = self.disk.hold().regain() {
            if error.kind() == ErrorKind::ResourceBusy {
                drop(writing);
                warn!(
                    "the cache directory was replaced by one that another instance has: nothing more is written"
                );
                self.index.close();
            }
            self.disk.condition().failed();
            return;
        }
        if self.disk.hold().was_replaced() {
            self.forget_what_is_gone();
        }
        self.disk.remove_left();
        if !self.disk.condition().is_degraded() {
            return;
        }
        match self.disk.try_out() {
            Ok(()) if self.index.has_room(self.disk.condition().wanted()) => {
                self.disk.condition().works();
            }
            Ok(()) => debug!("there is still no room"),
            Err(error) => debug!(error = %error, "the cache directory still refuses writes"),
        }
    }

    /// Makes the index that of the directory that is there now. What else lies in it is found by the scrub.
    fn forget_what_is_gone(&self) {
        for digest in self.index.present().0 {
            if matches!(self.disk.find(&digest), Ok(None)) {
                self.index.forget_missing(&digest);
            }
        }
        self.staging.forget_gone();
        self.repositories.recount();
    }
}

/// How often the directory is looked at while all is well.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long after a refused write the disk is tried for the first time.
const TRIAL_PAUSE_MIN: Duration = Duration::from_secs(1);
/// How often it is tried at last.
const TRIAL_PAUSE_MAX: Duration = Duration::from_secs(10);
