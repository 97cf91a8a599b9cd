//! Rights: whom a registry has let into which of its repositories a moment ago, and to what it said no.
//!
//! Where the callers' own rights decide, a caller is served from what is here only while the registry's yes to their own
//! credential, for that very repository, is fresh. A yes is remembered for a bounded time, in memory alone and for a bounded
//! number of callers; forgetting one costs a question. A no is remembered for seconds, of one thing and to one caller.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::error::{Error, Subject};
use super::flights::Flights;
use super::metrics::{Metrics, RightLabel};
use super::seen::Asker;
use crate::cache::Lru;
use crate::oci::{Endpoint, RepositoryName};
use crate::upstream::{self, Class};

/// The rights of all callers at one registry.
#[derive(Debug)]
pub(super) struct Rights {
    upstream: String,
    good_for: Duration,
    refused_for: Duration,
    known: Mutex<Known>,
    questions: Flights<Thing, Word>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Known {
    /// Until when the registry's yes holds.
    held: Lru<(Asker, RepositoryName, Kind), Instant>,
    refused: Lru<Thing, (Instant, Arc<upstream::Error>)>,
    /// How often refusals were forgotten: one that was asked for before that is not remembered.
    purges: u64,
}

/// To what a yes opens a repository. Some registries let somebody pull who may not list, and the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Content,
    Lists,
}

/// What is asked for, and by whom.
type Thing = (Asker, Endpoint);

/// What the registry said: a yes is as of some moment.
type Word = Result<Instant, Arc<upstream::Error>>;

impl Rights {
    /// Nobody has any. A yes holds for `good_for`, a no for `refused_for`; questions are asked on `tracker`.
    pub(super) fn new(
        upstream: &str,
        good_for: Duration,
        refused_for: Duration,
        metrics: Metrics,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            upstream: upstream.to_owned(),
            good_for,
            refused_for,
            known: Mutex::new(Known {
                held: Lru::new(RIGHTS_MAX),
                refused: Lru::new(REFUSALS_MAX),
                purges: 0,
            }),
            questions: Flights::new(tracker),
            metrics,
        }
    }

    /// How long a yes holds.
    pub(super) fn good_for(&self) -> Duration {
        self.good_for
    }

    /// Whether the registry's yes to this caller, for the repository that this is in, still holds.
    pub(super) fn hold(&self, (asker, endpoint): &Thing) -> bool {
        let Some(name) = endpoint.name() else {
            return false;
        };
        let key = (*asker, name.clone(), Kind::of(endpoint));
        let mut known = self.known.lock();
        match known.held.touch(&key) {
            Some(until) if Instant::now() < *until => true,
            Some(_) => {
                known.held.remove(&key);
                false
            }
            None => false,
        }
    }

    /// A caller goes in by a right that still holds.
    pub(super) fn used(&self) {
        self.metrics.right(&self.upstream, RightLabel::Held);
    }

    /// Has the registry decide by this one thing whether the caller may go in. Many who ask the same as the same caller are
    /// one question. Cancel-safe: it goes on.
    ///
    /// # Errors
    ///
    /// When the registry says no, or cannot say.
    pub(super) async fn ask<F>(
        &self,
        thing: &Thing,
        subject: Subject,
        ask: impl FnOnce() -> F,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<Instant, upstream::Error>> + Send + 'static,
    {
        let failed = |source| Error::Upstream { subject, source };
        let purges = {
            let mut known = self.known.lock();
            if let Some((until, error)) = known.refused.touch(thing)
                && Instant::now() < *until
            {
                self.metrics.right(&self.upstream, RightLabel::Remembered);
                return Err(failed(Arc::clone(error)));
            }
            known.purges
        };
        let asking = self.questions.run(thing.clone(), || {
            let asking = ask();
            async move { asking.await.map_err(Arc::new) }
        });
        let word = asking.await.ok_or(Error::Lost)?;
        self.note(thing, &word, purges);
        word.map(drop).map_err(failed)
    }

    fn note(&self, (asker, endpoint): &Thing, word: &Word, purges: u64) {
        let Some(name) = endpoint.name() else { return };
        let key = (*asker, name.clone(), Kind::of(endpoint));
        let mut known = self.known.lock();
        let label = match word {
            Ok(since) => {
                let until = *since + self.good_for;
                // Of two answers the later one counts.
                let former = known.held.peek(&key).copied();
                known
                    .held
                    .insert(key, former.map_or(until, |it| it.max(until)));
                RightLabel::Granted
            }
            Err(error) if error.class() == Class::Unavailable => RightLabel::Unavailable,
            Err(error) => {
                if error.class() == Class::Refused {
                    known.held.remove(&key);
                }
                if known.purges == purges {
                    let until = Instant::now() + self.refused_for;
                    let thing = (*asker, endpoint.clone());
                    known.refused.insert(thing, (until, Arc::clone(error)));
                }
                RightLabel::Refused
            }
        };
        self.metrics.right(&self.upstream, label);
    }

    /// The registry has just refused this to the caller, which it had opened: its yes is no more.
    pub(super) fn lose(&self, (asker, endpoint): &Thing) {
        if let Some(name) = endpoint.name() {
            let key = (*asker, name.clone(), Kind::of(endpoint));
            self.known.lock().held.remove(&key);
        }
    }

    /// Forgets what was refused; what is being asked is not remembered when it is.
    pub(super) fn forget_refusals(&self) {
        let mut known = self.known.lock();
        known.refused = Lru::new(REFUSALS_MAX);
        known.purges += 1;
    }
}

impl Kind {
    fn of(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Ping | Endpoint::Manifest { .. } | Endpoint::Blob { .. } => Self::Content,
            Endpoint::Tags { .. } | Endpoint::Referrers { .. } => Self::Lists,
        }
    }
}

/// Callers times the repositories that they are in at once.
const RIGHTS_MAX: usize = 10_000;
const REFUSALS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    fn rights() -> Rights {
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let secs = Duration::from_secs;
        Rights::new("a.example", secs(60), secs(5), metrics, TaskTracker::new())
    }

    fn name(text: &str) -> RepositoryName {
        RepositoryName::parse(text).unwrap()
    }

    fn tags(asker: Asker, text: &str) -> Thing {
        (asker, Endpoint::Tags { name: name(text) })
    }

    async fn say(rights: &Rights, thing: &Thing, word: Result<Instant, upstream::Error>) -> bool {
        let asked = rights.ask(thing, Subject::Listing, || async move { word });
        asked.await.is_ok()
    }

    fn gone() -> upstream::Error {
        let host = "a.example".to_owned();
        upstream::Error::Gone { host }
    }

    #[tokio::test(start_paused = true)]
    async fn pitfall_35_a_yes_is_one_callers_for_one_repository_and_for_its_time() {
        let (rights, me) = (rights(), Asker::Nobody);
        assert!(say(&rights, &tags(me, "a"), Ok(Instant::now())).await);
        assert!(rights.hold(&tags(me, "a")));
        assert!(!rights.hold(&tags(me, "b")) && !rights.hold(&tags(me, "a/b")));
        assert!(!rights.hold(&tags(Asker::Ourselves, "a")));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(rights.hold(&tags(me, "a")));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!rights.hold(&tags(me, "a")));
        // What may be listed may not therefore be had.
        let reference = crate::oci::Reference::Tag(crate::oci::Tag::parse("v1").unwrap());
        let name = name("a");
        let manifest = (me, Endpoint::Manifest { name, reference });
        assert!(say(&rights, &tags(me, "a"), Ok(Instant::now())).await);
        assert!(rights.hold(&tags(me, "a")) && !rights.hold(&manifest));
        tokio::time::advance(Duration::from_secs(60)).await;
        // What was said by an older token is as old as that.
        let since = Instant::now() - Duration::from_secs(50);
        assert!(say(&rights, &tags(me, "a"), Ok(since)).await);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!rights.hold(&tags(me, "a")));
    }

    #[tokio::test(start_paused = true)]
    async fn pitfall_35_a_no_is_one_callers_about_one_thing_and_for_seconds() {
        let (rights, me) = (rights(), Asker::Nobody);
        let now = || Ok(Instant::now());
        assert!(!say(&rights, &tags(me, "a"), Err(gone())).await);
        assert!(!say(&rights, &tags(me, "a"), now()).await, "remembered");
        assert!(say(&rights, &tags(Asker::Ourselves, "a"), now()).await);
        assert!(say(&rights, &tags(me, "b"), now()).await);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(say(&rights, &tags(me, "a"), now()).await);
        // An outage says nothing.
        let host = "a.example".to_owned();
        assert!(
            !say(
                &rights,
                &tags(me, "c"),
                Err(upstream::Error::Short { host })
            )
            .await
        );
        assert!(!rights.hold(&tags(me, "c")));
        assert!(say(&rights, &tags(me, "c"), now()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn pitfall_35_a_refusal_ends_a_right_and_a_purge_ends_a_refusal() {
        let (rights, me) = (rights(), Asker::Nobody);
        assert!(say(&rights, &tags(me, "a"), Ok(Instant::now())).await);
        // That one thing is not there says nothing of the others.
        assert!(!say(&rights, &tags(me, "a"), Err(gone())).await);
        assert!(rights.hold(&tags(me, "a")));
        rights.forget_refusals();
        let (host, status) = ("a.example".to_owned(), http::StatusCode::FORBIDDEN);
        let refused = upstream::Error::Refused { host, status };
        assert!(!say(&rights, &tags(me, "a"), Err(refused)).await);
        assert!(!rights.hold(&tags(me, "a")));
    }

    #[tokio::test(start_paused = true)]
    async fn pitfall_35_rights_are_bounded_in_number() {
        let (rights, me) = (rights(), Asker::Nobody);
        let now = Instant::now();
        for n in 0..RIGHTS_MAX + 10 {
            rights.note(&tags(me, &format!("a{n}")), &Ok(now), 0);
            rights.note(&tags(me, &format!("b{n}")), &Err(Arc::new(gone())), 0);
        }
        let known = rights.known.lock();
        assert_eq!(known.held.len(), RIGHTS_MAX);
        assert_eq!(known.refused.len(), REFUSALS_MAX);
    }
}
