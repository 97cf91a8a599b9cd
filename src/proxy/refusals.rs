//! What was refused a moment ago is refused again without asking: a digest that is not there, a source that lied.

use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::time::Instant;

use super::error::{Error, Subject};
use super::seen::Seen;
use crate::cache::{Moment, Purge, Purges};
use crate::oci::Digest;

/// Recent refusals, bounded in number; forgetting one costs a question.
#[derive(Clone, Debug)]
pub(super) struct Refusals {
    // The deadline is in the value, since a cache's own clock is not the one that tests pause.
    recent: Cache<Key, (Instant, Error)>,
    negative_for: Duration,
    purges: Purges,
}

/// What is refused, and to whom.
pub(super) type Key = (Seen, Digest, Subject);

impl Refusals {
    pub(super) fn new(negative_for: Duration, purges: Purges) -> Self {
        let recent = Cache::builder()
            .max_capacity(REFUSALS_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self {
            recent,
            negative_for,
            purges,
        }
    }

    /// The refusal that still holds.
    pub(super) fn standing(&self, seen: &Seen, digest: &Digest, subject: Subject) -> Option<Error> {
        let key = (seen.clone(), *digest, subject);
        let (until, error) = self.recent.get(&key)?;
        (Instant::now() < until).then_some(error)
    }

    /// The present moment, for [`Refusals::remember`].
    pub(super) fn now(&self) -> Moment {
        self.purges.now()
    }

    /// Remembers an error that says something about the content, for as long as it is good; it was asked for at that
    /// moment.
    pub(super) fn remember(&self, key: &Key, error: &Error, asked: Moment) {
        let good_for = match error {
            Error::Mismatch { .. } => MISMATCH_REFUSED_FOR,
            Error::Upstream { source, .. } if source.class() == crate::upstream::Class::Gone => {
                self.negative_for
            }
            Error::Upstream { .. }
            | Error::Request(_)
            | Error::Route { .. }
            | Error::Denied(_)
            | Error::Unverified { .. }
            | Error::Broken(_)
            | Error::Deadline { .. }
            | Error::Busy
            | Error::TooOften { .. }
            | Error::Lost => return,
        };
        let refusal = (Instant::now() + good_for, error.clone());
        self.recent.insert(key.clone(), refusal);
        // Asked after it is there, so that a purge finds it or is found.
        let (seen, digest, _) = key;
        if self.purges.hit_digest(asked, &seen.repository, digest) {
            self.recent.invalidate(key);
        }
    }

    /// Forgets what a purge is about.
    pub(super) fn forget(&self, purge: &Purge) {
        for (key, _) in &self.recent {
            let (seen, digest, _) = key.as_ref();
            if purge.is_about(&seen.repository, digest) {
                self.recent.invalidate(key.as_ref());
            }
        }
    }
}

/// A source that sent other bytes than those of the digest is not asked for it again for this long.
const MISMATCH_REFUSED_FOR: Duration = Duration::from_secs(30);
const REFUSALS_MAX: u64 = 10_000;
