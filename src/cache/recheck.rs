//! Checking one blob at once, because somebody says of it what cannot be true of its bytes: either our copy is damaged, or
//! that was a lie. Whoever lies may do so as often as he likes, so this is done for one blob at a time, at a bounded rate, and
//! for the same one only now and then.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lru::Lru;
use super::scrub::Scrub;
use crate::oci::Digest;

/// What was checked in this way, and what is being checked. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Rechecks {
    scrub: Scrub,
    place: Arc<Semaphore>,
    /// When a blob was checked last, and not found to be damaged.
    lately: Arc<Mutex<Lru<Digest, Instant>>>,
}

impl Rechecks {
    pub(super) fn new(scrub: &Scrub) -> Self {
        Self {
            scrub: scrub.clone(),
            place: Arc::new(Semaphore::new(1)),
            lately: Arc::new(Mutex::new(Lru::new(REMEMBERED_MAX))),
        }
    }

    /// Checks a blob now, unless that was done lately or another one is being checked. Whether it was damaged, and set aside.
    /// Dropped or stopped, it ends at once.
    pub(super) async fn check(&self, digest: Digest, stop: &CancellationToken) -> bool {
        let Ok(_place) = self.place.try_acquire() else {
            return false;
        };
        let is_due = |last: &Instant| last.elapsed() >= RECHECK_INTERVAL;
        if !self.lately.lock().peek(&digest).is_none_or(is_due) {
            return false;
        }
        let is_aside = self.scrub.recheck(digest, RECHECK_RATE, stop).await;
        if !is_aside {
            self.lately.lock().insert(digest, Instant::now());
        }
        is_aside
    }
}

/// The same blob is not checked again sooner.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Bytes in a second: a layer of the usual size before its client loses patience, and no burden for the others.
const RECHECK_RATE: u64 = 64 << 20;
/// Checks that are remembered; one that is forgotten may be made again.
const REMEMBERED_MAX: usize = 4096;
