//! Tags: what they last said, and asking again. *Digests are truth, tags are hearsay.*
//!
//! A check is a detached task that asks upstream by HEAD. For each tag one check is in flight and at most one is queued:
//! a request rests on a check that was sent after it came, so that whoever pushes and then pulls sees what was pushed, and
//! any number of waiters cost two requests.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::config::Freshness;
use super::error::{Error, Subject};
use super::freshness::{Facts, Verdict, is_usable, judge, next_pause};
use super::manifest::{Manifests, invalid};
use super::registry::Registry;
use super::seen::Seen;
use crate::cache::{Cache, Lru, Moment, Purge, Repository, TagRecord};
use crate::oci::{Digest, MediaType, Reference, RepositoryName, Tag};
use crate::upstream::{self, Class, Fault, ManifestHead};

/// What all tags last said. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Tags {
    cache: Cache,
    manifests: Manifests,
    states: Shared<(Seen, Tag), Arc<TagState>>,
    /// Those of callers, to each of whom a tag may say something else, or nothing.
    callers: Shared<(Seen, Tag), Arc<TagState>>,
    /// Tags that were heard to have moved to a digest whose manifest is not here yet.
    awaited: Shared<(Repository, Digest), Vec<Arc<TagState>>>,
    negative_for: Duration,
    tracker: TaskTracker,
}

type Shared<K, V> = Arc<Mutex<Lru<K, V>>>;

/// How a tag is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    pub(super) since: Instant,
    /// When an answer must be there.
    pub(super) until: Instant,
    /// Whether upstream is asked whatever the policy says.
    pub(super) anew: bool,
    /// The same moment in the order of purges.
    pub(super) asked: Moment,
}

/// What a tag says now.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub(super) word: Word,
    pub(super) how: How,
}

/// On what the word rests.
#[derive(Clone, Debug)]
pub(super) enum How {
    /// It is fresh enough to be served unasked.
    Fresh,
    /// Upstream just said so.
    Checked,
    /// Upstream could not say, for this reason.
    Stale(Error),
}

/// The manifest that a tag points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) digest: Digest,
    pub(super) media_type: MediaType,
    pub(super) size: u64,
}

/// One tag.
#[derive(Debug)]
struct TagState {
    registry: Arc<Registry>,
    name: RepositoryName,
    tag: Tag,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What was last stored, and when it was last confirmed.
    stored: Option<(Word, Age)>,
    /// What was heard since, and is not stored yet.
    heard: Option<Heard>,
    /// The last check failed; until when nobody asks again.
    failed: Option<Failed>,
    running: Option<Check>,
    queued: Option<Check>,
    /// When the record was last written.
    written: Option<Instant>,
}

/// What upstream said, and when it was asked.
#[derive(Clone, Debug)]
struct Heard {
    word: Word,
    age: Age,
    asked: Moment,
}

#[derive(Clone, Debug)]
struct Failed {
    until: Instant,
    pause: Duration,
    source: Arc<upstream::Error>,
}

type Checked = Result<Word, Arc<upstream::Error>>;
type Check = watch::Receiver<Option<Checked>>;

/// How old something is, across restarts.
#[derive(Clone, Copy, Debug)]
struct Age {
    at: Instant,
    /// How old it was then; `None`: nobody knows.
    before: Option<Duration>,
}

impl Tags {
    pub(super) fn new(
        cache: Cache,
        manifests: Manifests,
        negative_for: Duration,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            cache,
            manifests,
            states: Arc::new(Mutex::new(Lru::new(STATES_MAX))),
            callers: Arc::new(Mutex::new(Lru::new(CALLERS_STATES_MAX))),
            awaited: Arc::new(Mutex::new(Lru::new(AWAITED_MAX))),
            negative_for,
            tracker,
        }
    }

    /// What the tag says, where that is in memory and fresh enough to be served unasked.
    pub(super) fn fresh(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        tag: &Tag,
    ) -> Option<Digest> {
        let key = (registry.seen(name), tag.clone());
        let state = self.among(registry).lock().touch(&key).cloned()?;
        // One of a registry that was configured anew is taken over where there is time for it.
        if !Arc::ptr_eq(&state.registry, registry) {
            return None;
        }
        let inner = state.inner.lock();
        let verdict = judge(&registry.freshness(tag), inner.facts());
        let (word, _) = inner.stored.as_ref()?;
        (verdict == Verdict::Serve).then_some(word.digest)
    }

    /// What the tag says now, as far as its policy asks. Cancel-safe: a check goes on without whoever asked for it.
    pub(super) async fn resolve(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        tag: &Tag,
        asking: Asking,
    ) -> Result<Resolved, Error> {
        let state = self.state(registry, name, tag).await;
        let policy = match asking.anew {
            true => Freshness {
                fresh_for: Duration::ZERO,
                ..registry.freshness(tag)
            },
            false => registry.freshness(tag),
        };
        let (verdict, stored, failed) = {
            let inner = state.inner.lock();
            let facts = inner.facts();
            (
                judge(&policy, facts),
                inner.stored.clone(),
                inner.failed.clone(),
            )
        };
        match (verdict, stored, failed) {
            (Verdict::Serve, Some((word, _)), _) => {
                return Ok(Resolved {
                    word,
                    how: How::Fresh,
                });
            }
            (Verdict::ServeStale, Some((word, _)), Some(failed)) => {
                return Ok(Resolved {
                    word,
                    how: How::Stale(failed.error()),
                });
            }
            (Verdict::Fail, _, Some(failed)) => return Err(failed.error()),
            (Verdict::Serve | Verdict::ServeStale | Verdict::Fail | Verdict::Check, _, _) => {}
        }
        let mut check = self.check(&state, policy.fresh_for);
        let answered = match timeout_at(asking.until, check.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone(),
            Ok(Err(_)) => return Err(Error::Lost),
            Err(_) => None,
        };
        match answered {
            Some(Ok(word)) => Ok(Resolved {
                word,
                how: How::Checked,
            }),
            Some(Err(source)) => self.stale(&state, failure(source)).await,
            None => {
                let allowed = asking.until.saturating_duration_since(asking.since);
                self.stale(&state, Error::Deadline { allowed }).await
            }
        }
    }

    /// What was last stored, if it may stand in for an upstream that cannot say.
    pub(super) async fn stand_in(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        tag: &Tag,
        error: Error,
    ) -> Result<Resolved, Error> {
        let state = self.state(registry, name, tag).await;
        self.stale(&state, error).await
    }

    /// What the tag said could not be had: as with a failed check, nobody asks again for a while.
    pub(super) async fn fetch_failed(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        tag: &Tag,
        (error, asked): (&Error, Moment),
    ) {
        if let Error::Upstream { source, .. } = error {
            let state = self.state(registry, name, tag).await;
            let mut inner = state.inner.lock();
            if !self.was_purged(&state, asked) {
                inner.failed = self.failed(&state, &inner, source);
            }
        }
    }

    /// Forgets what tags said; gives how many had said something. A check that is under way answers those who wait for it,
    /// and nobody else: who comes after the purge rests on a check that is sent after it.
    pub(super) fn forget(&self, purge: &Purge) -> u64 {
        let is_about = |(seen, tag): &(Seen, Tag)| match purge {
            Purge::Repository(it) => *it == seen.repository,
            Purge::Tag(it, purged) => *it == seen.repository && purged == tag,
            Purge::Digest(_) => false,
        };
        let found = [&self.states, &self.callers].map(|states| {
            let states = states.lock();
            let found = states.iter().filter(|(key, _)| is_about(key));
            let found = found.map(|(_, state)| Arc::clone(state));
            found.collect::<Vec<_>>()
        });
        let had_said = |state: &Arc<TagState>| {
            let mut inner = state.inner.lock();
            // A queued check has not been sent, so it may stay.
            let queued = inner.queued.take();
            let former = std::mem::take(&mut *inner);
            inner.queued = queued;
            let name = (state.name.clone(), state.tag.clone());
            former.stored.is_some().then_some(name)
        };
        let said = found.iter().flatten().filter_map(had_said);
        // A tag is one tag, to however many callers it had said something.
        said.collect::<HashSet<_>>().len() as u64
    }

    /// A manifest of this repository is here now: tags that were heard to have moved to it take its digest.
    pub(super) async fn published(&self, repository: &Repository, digest: &Digest) {
        let waiting = self.awaited.lock().remove(&(repository.clone(), *digest));
        for state in waiting.unwrap_or_default() {
            let settled = self.settle(&state).await;
            self.store(&state, settled).await;
        }
    }

    async fn stale(&self, state: &Arc<TagState>, error: Error) -> Result<Resolved, Error> {
        // What was heard may be here by now.
        let settled = self.settle(state).await;
        self.store(state, settled).await;
        let policy = state.registry.freshness(&state.tag);
        let stored = state.inner.lock().stored.clone();
        match stored {
            Some((word, age)) if error.is_unavailable() && is_usable(&policy, Some(age.now())) => {
                warn!(
                    upstream = state.registry.upstream().name(),
                    repository = %state.name,
                    tag = %state.tag,
                    error = %crate::net::Chain(&error),
                    "serving stale tag"
                );
                Ok(Resolved {
                    word,
                    how: How::Stale(error),
                })
            }
            Some(_) | None => Err(error),
        }
    }

    /// The tag's state, with what the disk remembers.
    async fn state(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        tag: &Tag,
    ) -> Arc<TagState> {
        let key = (registry.seen(name), tag.clone());
        let repository = &key.0.repository;
        let states = self.among(registry);
        let former = states.lock().touch(&key).map(|it| Arc::clone(it));
        match former {
            Some(state) if Arc::ptr_eq(&state.registry, registry) => return state,
            Some(former) => return self.taken_over(key, &former, registry),
            None => {}
        }
        let asked = self.cache.purges().now();
        // A record that cannot be read is as good as none.
        let record = self.cache.tag(repository, tag).await.ok().flatten();
        let stored = record.map(|it| {
            let word = Word {
                digest: it.digest,
                media_type: it.media_type,
                size: it.size,
            };
            (
                word,
                Age {
                    at: Instant::now(),
                    before: it.age,
                },
            )
        });
        let mut states = states.lock();
        if let Some(state) = states.touch(&key) {
            return Arc::clone(state);
        }
        // Read before a purge removed it, perhaps: the lock is the one under which a purge looks for states.
        let was_purged = self.cache.purges().hit_tag(asked, repository, tag);
        let state = Arc::new(TagState {
            registry: Arc::clone(registry),
            name: name.clone(),
            tag: tag.clone(),
            inner: Mutex::new(Inner {
                stored: stored.filter(|_| !was_purged),
                ..Inner::default()
            }),
        });
        states.insert(key, Arc::clone(&state));
        state
    }

    /// The states among which those of this registry are, as whoever it is asked.
    fn among(&self, registry: &Registry) -> &Shared<(Seen, Tag), Arc<TagState>> {
        match registry.asker().is_caller() {
            true => &self.callers,
            false => &self.states,
        }
    }

    /// The state of a tag whose registry was configured anew: what is known of it stays, what went wrong does not.
    fn taken_over(
        &self,
        key: (Seen, Tag),
        former: &TagState,
        registry: &Arc<Registry>,
    ) -> Arc<TagState> {
        let asked = self.cache.purges().now();
        let mut inner = {
            let former = former.inner.lock();
            Inner {
                stored: former.stored.clone(),
                heard: former.heard.clone(),
                written: former.written,
                ..Inner::default()
            }
        };
        let mut states = self.among(registry).lock();
        if let Some(state) = states.touch(&key)
            && Arc::ptr_eq(&state.registry, registry)
        {
            return Arc::clone(state);
        }
        if self
            .cache
            .purges()
            .hit_tag(asked, &key.0.repository, &key.1)
        {
            inner = Inner::default();
        }
        let state = Arc::new(TagState {
            registry: Arc::clone(registry),
            name: former.name.clone(),
            tag: former.tag.clone(),
            inner: Mutex::new(inner),
        });
        states.insert(key, Arc::clone(&state));
        state
    }

    /// A check that is sent after now; where some age is allowed anyway, one that is under way will do.
    fn check(&self, state: &Arc<TagState>, fresh_for: Duration) -> Check {
        let mut inner = state.inner.lock();
        // A queued check whose task was lost will never be sent.
        let lost = inner
            .queued
            .as_ref()
            .is_some_and(|queued| queued.has_changed().is_err());
        if lost {
            inner.queued = None;
        }
        match (&inner.running, &inner.queued) {
            (Some(running), _) if !fresh_for.is_zero() => running.clone(),
            // Its turn has not come, so it is sent after now.
            (_, Some(queued)) => queued.clone(),
            (Some(running), None) => {
                let running = running.clone();
                let (sender, queued) = watch::channel(None);
                inner.queued = Some(queued.clone());
                drop(inner);
                self.spawn_queued(Arc::clone(state), running, sender);
                queued
            }
            (None, None) => {
                let (sender, running) = watch::channel(None);
                inner.running = Some(running.clone());
                drop(inner);
                self.spawn_check(Arc::clone(state), sender);
                running
            }
        }
    }

    fn spawn_check(&self, state: Arc<TagState>, sender: watch::Sender<Option<Checked>>) {
        let this = self.clone();
        self.tracker
            .spawn(async move { this.run_check(&state, &sender).await });
    }

    /// Waits for the running check to end, and takes its place.
    fn spawn_queued(
        &self,
        state: Arc<TagState>,
        mut running: Check,
        sender: watch::Sender<Option<Checked>>,
    ) {
        let this = self.clone();
        self.tracker.spawn(async move {
            // Ended or lost: either way it is over.
            let _ = running.wait_for(Option::is_some).await;
            {
                let mut inner = state.inner.lock();
                inner.running = inner.queued.take();
            }
            this.run_check(&state, &sender).await;
        });
    }

    async fn run_check(&self, state: &Arc<TagState>, sender: &watch::Sender<Option<Checked>>) {
        let age = Age {
            at: Instant::now(),
            before: Some(Duration::ZERO),
        };
        let asked = self.cache.purges().now();
        let ended = Ended { state, sender };
        let checked = self.ask(state).await;
        {
            let mut inner = state.inner.lock();
            match &checked {
                Ok(_) | Err(_) if self.was_purged(state, asked) => {}
                Ok(word) => {
                    let word = word.clone();
                    inner.failed = None;
                    inner.heard = Some(Heard { word, age, asked });
                }
                Err(source) => {
                    if source.class() != Class::Unavailable {
                        inner.stored = None;
                        inner.heard = None;
                    }
                    inner.failed = self.failed(state, &inner, source);
                }
            }
        }
        // What the registry itself says is gone or refused does not come back when the registry is away. To a caller it may
        // say so for want of rights: what others may see stays.
        let is_over = checked
            .as_ref()
            .is_err_and(|it| it.class() != Class::Unavailable)
            && !state.registry.asker().is_caller();
        let settled = if checked.is_ok() {
            self.settle(state).await
        } else {
            None
        };
        drop(ended);
        sender.send_replace(Some(checked));
        // Nobody waits for the disk.
        self.store(state, settled).await;
        if is_over {
            let repository = state.registry.repository(&state.name);
            self.cache.forget_tag(&repository, &state.tag).await;
        }
    }

    /// The pause that a failure asks for.
    fn failed(
        &self,
        state: &TagState,
        inner: &Inner,
        source: &Arc<upstream::Error>,
    ) -> Option<Failed> {
        let policy = state.registry.freshness(&state.tag);
        let pause = match source.class() {
            // Nobody was asked, and nobody will be too early.
            Class::Unavailable if matches!(**source, upstream::Error::Resting { .. }) => {
                return None;
            }
            Class::Unavailable => {
                let former = inner.failed.as_ref().map(|it| it.pause);
                let told = source.retry_after().unwrap_or_default();
                next_pause(&policy, former).max(told.min(TOLD_PAUSE_MAX))
            }
            Class::Gone => self.negative_for.min(policy.fresh_for),
            Class::Refused => return None,
        };
        let until = Instant::now() + pause;
        let source = Arc::clone(source);
        (!pause.is_zero()).then_some(Failed {
            until,
            pause,
            source,
        })
    }

    /// Asks upstream what the tag says: by HEAD, which registries do not count, and by GET where HEAD does not say.
    async fn ask(&self, state: &TagState) -> Checked {
        let (upstream, reference) = (state.registry.upstream(), Reference::Tag(state.tag.clone()));
        let head = upstream.head_manifest(&state.name, &reference, None).await;
        let head = word(head.map_err(Arc::new)?);
        if let Some(word) = head {
            return Ok(word);
        }
        let manifest = self
            .manifests
            .by_tag(&state.registry, &state.name, &reference)
            .await;
        let head = manifest.map_err(Arc::new)?;
        word(head).ok_or_else(|| Arc::new(invalid(&state.registry, Fault::NoDigest)))
    }

    /// What was heard takes the place of what is stored as soon as its manifest is here, with the type and the size that
    /// the manifest has. Gives what is to be written down.
    async fn settle(&self, state: &Arc<TagState>) -> Option<(TagRecord, Moment)> {
        let digest = state.inner.lock().heard.as_ref()?.word.digest;
        let repository = state.registry.repository(&state.name);
        let mut stored = self.manifests.stored(&repository, &digest).await;
        if stored.is_none() {
            self.await_manifest(state, &repository, &digest);
            // It may have come in between.
            stored = self.manifests.stored(&repository, &digest).await;
        }
        let (media_type, size) = stored?;
        let word = Word {
            digest,
            media_type: media_type.clone(),
            size,
        };
        let mut inner = state.inner.lock();
        let heard = inner.heard.take_if(|it| it.word.digest == digest)?;
        let (age, asked) = (heard.age, heard.asked);
        let moved = inner.stored.as_ref().is_none_or(|(it, _)| *it != word);
        inner.stored = Some((word, age));
        let due = inner
            .written
            .is_none_or(|it| it.elapsed() >= WRITTEN_AGE_MAX);
        if !(moved || due) {
            return None;
        }
        inner.written = Some(Instant::now());
        let record = TagRecord {
            digest,
            media_type,
            size,
            age: age.before.map(|_| age.now()),
        };
        Some((record, asked))
    }

    async fn store(&self, state: &TagState, settled: Option<(TagRecord, Moment)>) {
        if let Some((record, asked)) = settled {
            let repository = state.registry.repository(&state.name);
            self.cache
                .store_tag(&repository, &state.tag, record, asked)
                .await;
        }
    }

    /// Whether an answer that was asked for at that moment must not be remembered; to be asked under the state's lock.
    fn was_purged(&self, state: &TagState, asked: Moment) -> bool {
        let repository = state.registry.repository(&state.name);
        let purges = self.cache.purges();
        purges.hit_tag(asked, &repository, &state.tag)
    }

    fn await_manifest(&self, state: &Arc<TagState>, repository: &Repository, digest: &Digest) {
        let key = (repository.clone(), *digest);
        let mut awaited = self.awaited.lock();
        match awaited.touch(&key) {
            Some(waiting) if waiting.iter().any(|it| Arc::ptr_eq(it, state)) => {}
            Some(waiting) if waiting.len() < AWAITED_TAGS_MAX => waiting.push(Arc::clone(state)),
            Some(_) => info!("too many tags wait for one manifest"),
            None => {
                awaited.insert(key, vec![Arc::clone(state)]);
            }
        }
    }
}

impl Inner {
    fn facts(&self) -> Facts {
        let failed = self.failed.as_ref().filter(|it| Instant::now() < it.until);
        Facts {
            age: self.stored.as_ref().map(|(_, age)| age.now()),
            may_be_older: matches!(self.stored, Some((_, Age { before: None, .. }))),
            paused: failed.is_some(),
            unavailable: failed.is_some_and(|it| it.source.class() == Class::Unavailable),
        }
    }
}

impl Failed {
    /// The failure for who comes now: of a pause that was asked for, what is left until we ask.
    fn error(&self) -> Error {
        let mut source = Arc::clone(&self.source);
        if let upstream::Error::Status { retry_after, .. } = Arc::make_mut(&mut source)
            && let Some(told) = retry_after
        {
            *told = self.until.saturating_duration_since(Instant::now());
        }
        failure(source)
    }
}

impl Age {
    /// As far as it is known.
    fn now(self) -> Duration {
        self.at
            .elapsed()
            .saturating_add(self.before.unwrap_or_default())
    }
}

/// Ends the running check also when its task panics: then its waiters see the sender go.
struct Ended<'a> {
    state: &'a TagState,
    sender: &'a watch::Sender<Option<Checked>>,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut inner = self.state.inner.lock();
        let own = self.sender.subscribe();
        let own = inner
            .running
            .as_ref()
            .is_some_and(|it| own.same_channel(it));
        if own {
            inner.running = None;
        }
    }
}

/// A registry that asks for a longer pause than this is asked again all the same.
const TOLD_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Tags whose state is in memory; others are read from disk when they are asked for.
const STATES_MAX: usize = 100_000;
/// The same for callers, each of whom may ask for any; so that they do not drive out each other's for nothing.
const CALLERS_STATES_MAX: usize = 10_000;
/// Digests that tags were heard to have moved to.
const AWAITED_MAX: usize = 10_000;
/// Tags that wait for the same digest.
const AWAITED_TAGS_MAX: usize = 64;
/// An unchanged record is written again when it is older than this.
const WRITTEN_AGE_MAX: Duration = Duration::from_secs(60);

fn failure(source: Arc<upstream::Error>) -> Error {
    Error::Upstream {
        subject: Subject::Manifest,
        source,
    }
}

/// A head that says everything that a tag must say.
fn word(head: ManifestHead) -> Option<Word> {
    let media_type = head.media_type.filter(MediaType::is_manifest)?;
    Some(Word {
        digest: head.digest?,
        media_type,
        size: head.size?,
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pitfall_41_who_comes_later_is_told_what_is_left_of_a_pause() {
        let secs = Duration::from_secs;
        for (said, expected) in [(Some(secs(60)), [60, 40]), (None, [5, 5])] {
            let source = upstream::Error::Status {
                host: "a.example".to_owned(),
                status: StatusCode::TOO_MANY_REQUESTS,
                retry_after: said,
            };
            let failed = Failed {
                until: Instant::now() + secs(60),
                pause: secs(60),
                source: Arc::new(source),
            };
            assert_eq!(failed.error().retry_after(), Some(secs(expected[0])));
            tokio::time::advance(secs(20)).await;
            assert_eq!(failed.error().retry_after(), Some(secs(expected[1])));
        }
    }
}
