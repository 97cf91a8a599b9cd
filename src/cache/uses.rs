//! Last uses on their way to the disk, where the next process finds them as the times of the files.
//!
//! A time there is a stamp and no more: it follows the wall clock as long as that goes forward, and each is later than all
//! before it, so that the order is right whatever the clock does. One blob's is written at most once an hour, and again
//! when the directory is released: a process that is killed loses the order of the last hour, and nothing else.

use std::time::Duration;

use tokio::time::Instant;

use super::clock;
use crate::oci::Digest;

/// Uses that the disk does not know of yet, and the latest stamp there is.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pending: Vec<Digest>,
    latest: u64,
}

/// When the disk was last told of a use of some blob, by this process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Saved(Option<Instant>);

impl Uses {
    /// Notes a stamp that is on disk.
    pub(super) fn found(&mut self, stamp: u64) {
        self.latest = self.latest.max(stamp);
    }

    /// Notes a use, unless the disk was told of one within the hour, or is about to be. Without room it is forgotten until
    /// the next.
    pub(super) fn note(&mut self, digest: &Digest, saved: &mut Saved) {
        let is_known = saved.0.is_some_and(|at| at.elapsed() < SAVED_FOR);
        if !is_known && self.pending.len() < PENDING_MAX {
            saved.0 = Some(Instant::now());
            self.pending.push(*digest);
        }
    }

    /// Notes what was published just now: its file has the wall clock's time, which may be too early.
    pub(super) fn published(&mut self, digest: &Digest, saved: &mut Saved) {
        let now = clock::unix_nanos_now();
        if now > self.latest {
            self.latest = now;
            saved.0 = Some(Instant::now());
        } else {
            self.note(digest, saved);
        }
    }

    /// Some of those that wait; the caller writes them. None when none do.
    pub(super) fn take(&mut self) -> Vec<Digest> {
        let rest = self.pending.len().saturating_sub(TAKEN_AT_ONCE);
        self.pending.split_off(rest)
    }

    /// The next stamp: the time, or a little later than the latest there is.
    pub(super) fn stamp(&mut self) -> u64 {
        let now = clock::unix_nanos_now();
        self.latest = now.max(self.latest.saturating_add(1));
        self.latest
    }
}

const SAVED_FOR: Duration = Duration::from_secs(3600);
/// Uses that wait to be written, and those that are written at the end.
pub(super) const PENDING_MAX: usize = 65_536;
/// So that the lock under which they are sorted is not held for long.
const TAKEN_AT_ONCE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn stamps_only_grow_and_follow_the_clock() {
        let mut uses = Uses::default();
        let first = uses.stamp();
        let ahead = first + 3_600_000_000_000;
        uses.found(ahead);
        assert_eq!(uses.stamp(), ahead + 1);
        assert_eq!(uses.stamp(), ahead + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blob_is_written_once_an_hour() {
        let (mut uses, mut saved) = (Uses::default(), Saved::default());
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        for (minutes, written) in [(0, 1), (1, 0), (58, 0), (2, 1), (59, 0)] {
            tokio::time::advance(Duration::from_secs(60 * minutes)).await;
            uses.note(&digest, &mut saved);
            assert_eq!(uses.take().len(), written, "after {minutes} minutes more");
        }
    }

    #[tokio::test]
    async fn what_comes_while_the_clock_is_behind_is_stamped_anew() {
        let (mut uses, mut saved) = (Uses::default(), Saved::default());
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        uses.published(&digest, &mut saved);
        assert!(uses.take().is_empty(), "its file's time is right");
        uses.found(u64::MAX / 2);
        uses.published(&digest, &mut Saved::default());
        assert_eq!(uses.take(), [digest]);
    }
}
