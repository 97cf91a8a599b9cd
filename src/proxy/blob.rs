//! Blobs: hit, join, miss, and the proof that a repository holds what it is asked for.

use std::collections::HashMap;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::answer::{Body, Content, Method, Outcome};
use super::bypass::Detour;
use super::error::{Error, Subject};
use super::flights::Flights;
use super::metrics::Metrics;
use super::refusals::Refusals;
use super::registry::Registry;
use super::seen::Seen;
use super::stream::BlobStream;
use super::window::{FillWindows, Windows};
use crate::cache::{
    self, Cache, FillError, Filler, Follower, Grant, Granted, Joined, Purge, Repository,
};
use crate::oci::{Digest, RepositoryName};
use crate::upstream::{self, BlobHead, Fault, Source, Sources, Transfer};

/// Pulls of blobs.
#[derive(Debug)]
pub(super) struct Blobs {
    cache: Cache,
    heads: Flights<(Seen, Digest), Result<BlobHead, Arc<upstream::Error>>>,
    refusals: Refusals,
    fills: Fills,
    windows: Windows,
    metrics: Metrics,
    bypasses: Arc<Semaphore>,
    tracker: TaskTracker,
}

/// A cause that many wait for, found again behind the cache's back.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Shared(pub(super) Arc<upstream::Error>);

impl Blobs {
    pub(super) fn new(
        cache: Cache,
        refusals: Refusals,
        metrics: Metrics,
        bypasses_max: usize,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            cache,
            heads: Flights::new(tracker.clone()),
            refusals,
            fills: Fills::default(),
            windows: Windows::new(metrics.clone(), tracker.clone()),
            metrics,
            bypasses: Arc::new(Semaphore::new(bypasses_max)),
            tracker,
        }
    }

    pub(super) async fn pull(
        &self,
        method: Method,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Content, Error> {
        let repository = registry.repository(name);
        match method {
            Method::Head => self.head(registry, name, &repository, digest).await,
            Method::Get => self.get(registry, name, &repository, digest).await,
        }
    }

    /// Forgets what a purge is about.
    pub(super) fn forget(&self, purge: &Purge) {
        self.refusals.forget(purge);
        self.heads
            .part_from(|(seen, digest)| purge.is_about(&seen.repository, digest));
    }

    /// A refusal stands in the way of asking, not of what is here.
    fn check_refusal(&self, seen: &Seen, digest: &Digest) -> Result<(), Error> {
        match self.refusals.standing(seen, digest, Subject::Blob) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// HEAD never fills: what is not here is upstream's to describe.
    async fn head(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Content, Error> {
        let here = self.cache.size_of(digest).await;
        if let Some(size) = here
            && let Some(granted) = self.granted(repository, digest).await
        {
            self.cache.touch(digest);
            // Where the file has another size it is damaged, and the next GET finds that.
            let size = granted.size.unwrap_or(size);
            return Ok(content(*digest, Some(size), Outcome::Hit, Body::None));
        }
        let held = here.map_or(Held::Nothing, |size| Held::Bytes(Some(size)));
        let head = self.prove(registry, name, digest, held).await?;
        let outcome = if here.is_some() {
            Outcome::Hit
        } else {
            Outcome::Forwarded
        };
        Ok(content(*digest, head.size.or(here), outcome, Body::None))
    }

    async fn get(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Content, Error> {
        let detour = || self.detour(registry, name, digest);
        let seen = registry.seen(name);
        let granted = self.granted(repository, digest).await;
        let mut proven = granted.is_some();
        let mut size_then = granted.and_then(|granted| granted.size);
        let mut followed = 0;
        let mut attempts = 0;
        while attempts < ATTEMPTS_MAX {
            attempts += 1;
            let (follower, outcome) = match self.cache.join(digest, repository).await {
                // It was cut short or extended behind our back. What is fetched instead is of a size that was hashed.
                Joined::Present(blob) if size_then.is_some_and(|then| then != blob.size()) => {
                    if !blob.quarantine().await {
                        return unreadable(digest, size_then.unwrap_or_default(), detour());
                    }
                    size_then = None;
                    continue;
                }
                Joined::Present(blob) if proven => {
                    let size = Some(blob.size());
                    let stream = BlobStream::new(cache::Content::Blob(blob), detour());
                    return Ok(content(
                        *digest,
                        size,
                        Outcome::Hit,
                        Body::Stream(Box::new(stream)),
                    ));
                }
                Joined::Following(follower) if proven || follower.is_through(repository) => {
                    self.fills.add(digest, || registry.source(name));
                    (follower, Outcome::Join)
                }
                Joined::Unreadable(size) if proven => {
                    return unreadable(digest, size_then.unwrap_or(size), detour());
                }
                present @ (Joined::Present(_) | Joined::Unreadable(_) | Joined::Following(_)) => {
                    // Having the bytes is not a right to them.
                    let held = Held::Bytes(present.size());
                    self.prove(registry, name, digest, held).await?;
                    proven = true;
                    continue;
                }
                Joined::First(filler, follower) => {
                    self.check_refusal(&seen, digest)?;
                    self.spawn_fill(*filler, registry.source(name), seen.clone());
                    (follower, Outcome::Miss)
                }
            };
            // Whoever brings it there or as another caller is somebody else: what they are refused says nothing of this one.
            let is_strangers = !follower.is_through(repository)
                || (outcome == Outcome::Join && registry.asker().is_caller());
            match self.follow(follower, outcome, digest, detour()).await {
                Err(Followed::Again) => debug!(%digest, "fill was abandoned, asking again"),
                // What another repository has not says nothing of this one, however often it is asked for there. The
                // deadline is the limit.
                Err(Followed::Failed(error)) if is_strangers && !matches!(error, Error::Busy) => {
                    self.check_refusal(&seen, digest)?;
                    attempts -= 1;
                }
                // Somebody else's failure, which may be of another endpoint: we have not asked yet.
                Err(Followed::Failed(_)) if outcome == Outcome::Join && followed == 0 => {
                    self.check_refusal(&seen, digest)?;
                    followed += 1;
                }
                Err(Followed::Failed(error)) => return Err(error),
                Ok(content) => return Ok(content),
            }
        }
        Err(Error::Lost)
    }

    /// Answers from a fill as soon as its head is known.
    async fn follow(
        &self,
        mut follower: Follower,
        outcome: Outcome,
        digest: &Digest,
        mut detour: Detour,
    ) -> Result<Content, Followed> {
        let outcome = match follower.head().await {
            Ok(Some(0)) => {
                // There is no last byte to withhold: the digest decides before the head goes out.
                follower
                    .verified()
                    .await
                    .map_err(|error| Followed::from(error, digest))?;
                outcome
            }
            Ok(_) => outcome,
            Err(FillError::NotKept(_)) if !detour.hold() => {
                return Err(Followed::Failed(Error::Busy));
            }
            Err(FillError::NotKept(_)) => Outcome::Bypass,
            Err(error) => return Err(Followed::from(error, digest)),
        };
        let size = follower.size();
        if size == Some(0) && *digest != Digest::of(digest.algorithm(), b"") {
            return Err(Followed::Failed(Error::Mismatch { expected: *digest }));
        }
        let ahead = self.fills.windows(digest).map(|windows| {
            let source = detour.source().clone();
            windows.reader(follower.front(), *digest, source)
        });
        let stream = BlobStream::new(self.cache.follow(follower), detour).ahead(ahead);
        Ok(content(
            *digest,
            size,
            outcome,
            Body::Stream(Box::new(stream)),
        ))
    }

    /// Brings a blob, whoever waits for it and whoever leaves.
    fn spawn_fill(&self, filler: Filler, source: Source, seen: Seen) {
        let (cache, refusals) = (self.cache.clone(), self.refusals.clone());
        let digest = *filler.digest();
        let sources = self.fills.begin(&digest, source, self.windows.of_fill());
        self.tracker.spawn(async move {
            let asked = refusals.now();
            let repository = &seen.repository;
            let (error, excused) = match fill(&cache, filler, &sources.list(), repository).await {
                Ok(()) => return,
                Err(Unfilled { error, excused }) => (error, excused),
            };
            // The next who asks gets the registry's own bytes, from the first on.
            if !excused {
                let key = (seen.clone(), digest, Subject::Blob);
                refusals.remember(&key, &error, asked);
            }
            let (namespace, name, chain) = (
                &repository.namespace,
                &repository.name,
                crate::net::Chain(&error),
            );
            if error.status().is_server_error() {
                warn!(%namespace, repository = %name, %digest, error = %chain, "fill failed");
            } else {
                debug!(%namespace, repository = %name, %digest, error = %chain, "fill refused");
            }
        });
    }

    fn detour(&self, registry: &Arc<Registry>, name: &RepositoryName, digest: &Digest) -> Detour {
        Detour::new(
            *digest,
            registry.seen(name),
            registry.source(name),
            Arc::clone(&self.bypasses),
            self.refusals.clone(),
        )
    }

    async fn granted(&self, repository: &Repository, digest: &Digest) -> Option<Granted> {
        // A record that cannot be read costs a question.
        let granted = self.cache.granted(repository, digest).await.ok()?;
        granted.blob.then_some(granted)
    }

    /// Has upstream say that this repository holds the digest, and remembers it. What is here has a size, which must be
    /// the one that upstream says, unless it is found to be damaged.
    async fn prove(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
        held: Held,
    ) -> Result<BlobHead, Error> {
        let here = match held {
            Held::Nothing => None,
            Held::Bytes(size) => size,
        };
        let seen = registry.seen(name);
        self.check_refusal(&seen, digest)?;
        let (key, asked) = ((seen.clone(), *digest), self.cache.purges().now());
        let answer = self.heads.run(key, || {
            let (upstream, name, digest) = (Arc::clone(registry.upstream()), name.clone(), *digest);
            let (cache, repository) = (self.cache.clone(), seen.repository.clone());
            let metrics = self.metrics.clone();
            async move {
                let mut head = upstream.head_blob(&name, &digest, here).await;
                let contradicts = here.is_some()
                    && head.as_ref().err().and_then(upstream::Error::fault) == Some(Fault::Digest);
                let damaged = contradicts && cache.recheck(&digest).await;
                if damaged {
                    head = upstream.head_blob(&name, &digest, None).await;
                }
                let head = head.map_err(Arc::new)?;
                // What is here was hashed once, and upstream says the same. What is only said, or coming, need not be so.
                let present = cache.size_of(&digest).await;
                let grant = Grant::Blob(present.filter(|_| head.size == present));
                let granted = cache.grant(&repository, &digest, grant, asked);
                if granted.await && held != Held::Nothing && !damaged {
                    let bytes = here.or(head.size).unwrap_or(0);
                    metrics.deduplicated(&repository, bytes);
                }
                Ok(head)
            }
        });
        answer.await.ok_or(Error::Lost)?.map_err(|source| {
            let error = Error::Upstream {
                subject: Subject::Blob,
                source,
            };
            let key = (seen, *digest, Subject::Blob);
            self.refusals.remember(&key, &error, asked);
            error
        })
    }
}

/// What the store has of a digest that is to be proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    /// It is here or on its way, with this size if that is known.
    Bytes(Option<u64>),
}

/// How following a fill went wrong.
enum Followed {
    /// Whoever brought it vanished: ask again.
    Again,
    Failed(Error),
}

impl Followed {
    fn from(error: FillError, digest: &Digest) -> Self {
        if matches!(error, FillError::Abandoned) {
            return Self::Again;
        }
        Self::Failed(fill_error(error, digest, Subject::Blob))
    }
}

/// A fill's failure as the failure of a pull.
pub(super) fn fill_error(error: FillError, digest: &Digest, subject: Subject) -> Error {
    match error {
        FillError::Source(cause) => match cause.downcast_ref::<Shared>() {
            Some(Shared(source)) => Error::Upstream {
                subject,
                source: Arc::clone(source),
            },
            None => Error::Lost,
        },
        FillError::Mismatch { .. } => Error::Mismatch { expected: *digest },
        FillError::NotKept(_) | FillError::Abandoned => Error::Lost,
    }
}

/// The fills in progress: who joins one from another repository brings its own source.
#[derive(Clone, Debug, Default)]
struct Fills {
    fills: Arc<Mutex<HashMap<Digest, UnderWay>>>,
}

type UnderWay = (Sources, Arc<FillWindows>);

/// The sources of one fill, listed as long as this is held.
struct Listed {
    digest: Digest,
    sources: Sources,
    fills: Fills,
}

impl Fills {
    fn begin(&self, digest: &Digest, source: Source, windows: Arc<FillWindows>) -> Listed {
        let sources = Sources::new(source);
        let fill = (sources.clone(), windows);
        self.fills.lock().insert(*digest, fill);
        Listed {
            digest: *digest,
            sources,
            fills: self.clone(),
        }
    }

    /// Adds a proven source to a fill that is under way.
    fn add(&self, digest: &Digest, source: impl FnOnce() -> Source) {
        if let Some((sources, _)) = self.fills.lock().get(digest) {
            sources.add(source());
        }
    }

    /// The windows of a fill that is under way.
    fn windows(&self, digest: &Digest) -> Option<Arc<FillWindows>> {
        let fills = self.fills.lock();
        fills.get(digest).map(|(_, windows)| Arc::clone(windows))
    }
}

impl Listed {
    fn list(&self) -> Sources {
        self.sources.clone()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut fills = self.fills.fills.lock();
        // The next fill of the same digest may have begun.
        if fills
            .get(&self.digest)
            .is_some_and(|(it, _)| it.is(&self.sources))
        {
            fills.remove(&self.digest);
        }
    }
}

/// Why a blob did not come.
struct Unfilled {
    error: Error,
    /// Whether that is not held against the registry: it was the fault of a mirror, which is not asked again soon, or perhaps
    /// of what a former process had left, which is gone.
    excused: bool,
}

/// Brings one blob into the cache: upstream's bytes, verified, granted, published.
async fn fill(
    cache: &Cache,
    mut filler: Filler,
    sources: &Sources,
    repository: &Repository,
) -> Result<(), Unfilled> {
    let digest = *filler.digest();
    let failed = |filler: Filler, error: upstream::Error| {
        let source = Arc::new(error);
        filler.fail(Arc::new(Shared(Arc::clone(&source))));
        let error = Error::Upstream {
            subject: Subject::Blob,
            source,
        };
        Unfilled {
            error,
            excused: false,
        }
    };
    filler.place().await;
    let asked = cache.purges().now();
    let begun = begin(&mut filler, sources).await;
    let mut transfer = match begun {
        Ok(Some(transfer)) => transfer,
        // Not kept: every reader knows and goes on by itself.
        Ok(None) => return Ok(()),
        Err(error) => return Err(failed(filler, error)),
    };
    loop {
        match transfer.next().await {
            Ok(Some(bytes)) => {
                if filler.write(bytes).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => break,
            Err(error) => return Err(failed(filler, error)),
        }
    }
    let is_resumed = filler.is_resumed();
    match filler.verify().await {
        Ok(verified) => {
            // Before anybody can find it present, so that nobody of this repository has to prove what just came.
            let grant = Grant::Blob(Some(verified.size()));
            cache.grant(repository, &digest, grant, asked).await;
            verified.publish().await;
            Ok(())
        }
        Err(FillError::NotKept(_)) => Ok(()),
        Err(error) => Err(Unfilled {
            excused: is_resumed || transfer.blame_mirrors(),
            error: fill_error(error, &digest, Subject::Blob),
        }),
    }
}

/// What is here cannot be read now: it comes from upstream, and is of the size that it had when it was right.
fn unreadable(digest: &Digest, size: u64, mut detour: Detour) -> Result<Content, Error> {
    if !detour.hold() {
        return Err(Error::Busy);
    }
    let stream = BlobStream::new(cache::Content::Unreadable(size), detour);
    let body = Body::Stream(Box::new(stream));
    Ok(content(*digest, Some(size), Outcome::Bypass, body))
}

/// Asks for a blob, or for the rest of what a former process has left of it: that a source has this is the proof that the
/// repository has the blob, before which nobody hears of what is here. What is left is never the reason for a failure: where
/// it cannot be gone on with, it is as if there were nothing.
async fn begin(
    filler: &mut Filler,
    sources: &Sources,
) -> Result<Option<Transfer>, upstream::Error> {
    let digest = *filler.digest();
    if let Some(left) = filler.left() {
        match Transfer::open(sources.clone(), digest, left, None).await {
            Ok(mut transfer) => {
                let Ok(there) = filler.resume(transfer.size()).await else {
                    return Ok(None);
                };
                if there != left {
                    transfer.rewind();
                }
                return Ok(Some(transfer));
            }
            Err(error) if may_be_the_question(&error) => {
                debug!(%digest, %error, "the rest cannot be had");
            }
            Err(error) => return Err(error),
        }
    }
    let transfer = Transfer::open(sources.clone(), digest, 0, None).await?;
    let begun = filler.begin(transfer.size()).await;
    Ok(begun.is_ok().then_some(transfer))
}

/// Whether the rest of a blob may be what cannot be had, where the whole can be: some answer 500 to any range.
fn may_be_the_question(error: &upstream::Error) -> bool {
    use upstream::Error::{Invalid, Status};

    let failing = [
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::NOT_IMPLEMENTED,
    ];
    let has_failed_at_it = matches!(error, Status { status, .. } if failing.contains(status));
    has_failed_at_it || matches!(error, Status { .. } | Invalid { .. }) && !error.is_transient()
}

/// Rounds of joining and proving; each ends in an answer unless the store changes meanwhile.
const ATTEMPTS_MAX: usize = 4;

fn content(digest: Digest, size: Option<u64>, outcome: Outcome, body: Body) -> Content {
    Content {
        digest,
        media_type: None,
        size,
        outcome,
        body,
    }
}
