//! Whether the cache directory takes what is written to it, and what an error of the disk means.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use tokio::sync::watch;
use tracing::{info, warn};

use super::metrics::Metrics;

/// How the cache directory is: well, or degraded since the last write that it refused.
#[derive(Debug)]
pub(super) struct Condition {
    degraded: watch::Sender<bool>,
    /// Bytes for which the file system had no room; zero when that was not the reason.
    wanted: AtomicU64,
    metrics: Metrics,
}

impl Condition {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            degraded: watch::Sender::new(false),
            wanted: AtomicU64::new(0),
            metrics,
        }
    }

    /// A write was refused.
    pub(super) fn failed(&self) {
        self.set(true);
    }

    /// There was no room for so many bytes above the floor of the file system.
    pub(super) fn short_of(&self, bytes: u64) {
        self.wanted.store(bytes, Ordering::Relaxed);
        self.set(true);
    }

    /// Something was written through.
    pub(super) fn works(&self) {
        self.wanted.store(0, Ordering::Relaxed);
        self.set(false);
    }

    /// The bytes for which there was no room when that was last told.
    pub(super) fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Whether the last write was refused.
    pub(super) fn is_degraded(&self) -> bool {
        *self.degraded.borrow()
    }

    /// Waits until a write is refused. Cancel-safe.
    pub(super) async fn degraded(&self) {
        // The sender is here, so it does not end.
        let _ = self.degraded.subscribe().wait_for(|it| *it).await;
    }

    fn set(&self, degraded: bool) {
        let changed = self.degraded.send_if_modified(|it| {
            let changed = *it != degraded;
            *it = degraded;
            if changed {
                // Under the lock, so that of two that tell at once the later stays.
                self.metrics.set_degraded(degraded);
            }
            changed
        });
        if !changed {
            return;
        }
        if degraded {
            warn!("the cache directory refuses writes: what is not here goes around it");
        } else {
            info!("the cache directory takes writes again");
        }
    }
}

/// Whether an error of reading says that the bytes are lost, and not only that they cannot be had now: an I/O error, a
/// damaged file system (`EUCLEAN`, `EBADMSG`), a damaged medium (`ENODATA`), and a link where a file was published
/// (`ELOOP`, with `O_NOFOLLOW`).
pub(super) fn is_lost(error: &io::Error) -> bool {
    let lost = [
        Errno::IO,
        Errno::UCLEAN,
        Errno::BADMSG,
        Errno::NODATA,
        Errno::LOOP,
    ];
    let found = error.raw_os_error();
    lost.iter().any(|it| found == Some(it.raw_os_error()))
}
