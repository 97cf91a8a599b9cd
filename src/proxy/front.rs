//! One pull from its endpoint to its answer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::answer::{Answer, Body, Caller, Content, Method, Outcome, Pull};
use super::blob::Blobs;
use super::config::{Config, UpstreamConfig};
use super::error::{Error, Subject};
use super::gate::Gate;
use super::listing::Listings;
use super::manifest::{Manifests, Served, invalid};
use super::metrics::Metrics;
use super::refusals::Refusals;
use super::registry::Registry;
use super::rights::Rights;
use super::routes::{Requested, Route, Routes};
use super::tag::{Asking, How, Resolved, Tags, Word};
use super::verifier::Verifiers;
use crate::cache::{Cache, Purge, PurgeError, Purged, Repository};
use crate::net::Chain;
use crate::oci::{Digest, Endpoint, FullReference, Namespace, Reference, RepositoryName, Tag};
use crate::upstream::{self, Clients, Fault, TransportError};

/// Everything between the HTTP front and the cache.
#[derive(Debug)]
pub struct Proxy {
    /// Replaced as a whole by a reload.
    routes: RwLock<Option<Arc<Routes>>>,
    clients: Clients,
    blobs: Blobs,
    manifests: Manifests,
    tags: Tags,
    listings: Listings,
    gate: Gate,
    negative_for: Duration,
    verifiers: Verifiers,
    cache: Cache,
    metrics: Metrics,
    tracker: TaskTracker,
    answer_timeout: Duration,
}

impl Proxy {
    /// Joins the cache to the upstreams; nothing is dialled. Fills and checks run on `tracker`.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(
        config: &Config,
        cache: &Cache,
        metrics: &Metrics,
        upstream_metrics: &upstream::Metrics,
        tracker: &TaskTracker,
    ) -> Result<Self, TransportError> {
        let refusals = Refusals::new(config.negative_for, cache.purges().clone());
        let manifests = Manifests::new(
            cache.clone(),
            refusals.clone(),
            metrics.clone(),
            config.manifest_bytes_max,
            tracker.clone(),
        );
        let tags = Tags::new(
            cache.clone(),
            manifests.clone(),
            config.negative_for,
            tracker.clone(),
        );
        let clients = Clients::new(upstream_metrics.clone());
        let rights = |upstream: &str, good_for| {
            let refused_for = config.negative_for;
            Rights::new(
                upstream,
                good_for,
                refused_for,
                metrics.clone(),
                tracker.clone(),
            )
        };
        Ok(Self {
            routes: RwLock::new(routes(&config.upstreams, &clients, rights)?),
            clients,
            blobs: Blobs::new(
                cache.clone(),
                refusals,
                metrics.clone(),
                config.bypasses_max,
                tracker.clone(),
            ),
            manifests,
            tags,
            listings: Listings::new(cache.purges().clone()),
            gate: Gate::new(cache.clone(), config.manifest_bytes_max),
            negative_for: config.negative_for,
            verifiers: Verifiers::new(metrics.clone(), tracker.clone()),
            cache: cache.clone(),
            metrics: metrics.clone(),
            tracker: tracker.clone(),
            answer_timeout: config.answer_timeout,
        })
    }

    /// Where a request goes. Nothing is dialled, and no name is looked up.
    ///
    /// # Errors
    ///
    /// When the request is malformed, or means an upstream that is not configured.
    pub fn route(&self, requested: Requested<'_>) -> Result<Route, Error> {
        let unknown = || Error::Route {
            namespace: String::new(),
        };
        let routes = self.routes.read().clone();
        routes.ok_or_else(unknown)?.route(requested)
    }

    /// Has an upstream that decides by its callers' rights say whether it knows this caller: for a repository of it, by a token
    /// with which the next pulls ask, or as such. How long that is good, where the upstream says so. A yes is no right yet.
    ///
    /// # Errors
    ///
    /// When it does not know them, or cannot say.
    pub async fn log_in(
        &self,
        registry: &Registry,
        caller: &Caller,
        name: Option<&RepositoryName>,
    ) -> Result<Option<Duration>, Error> {
        let view = registry.as_caller(caller.credential());
        let asked = timeout_at(self.deadline(), view.upstream().log_in(name)).await;
        let allowed = self.answer_timeout;
        let asked = asked.map_err(|_| Error::Deadline { allowed })?;
        asked.map_err(|source| Error::Upstream {
            subject: Subject::Listing,
            source: Arc::new(source),
        })
    }

    /// Whether any upstream decides by its callers' rights.
    pub fn has_callers(&self) -> bool {
        let routes = self.routes.read();
        routes.as_ref().is_some_and(|it| it.has_callers())
    }

    /// The upstreams that decide by their callers' rights.
    pub fn callers_registries(&self) -> Vec<Arc<Registry>> {
        let routes = self.routes.read();
        let all = routes.as_deref().map_or_else(Vec::new, Routes::registries);
        all.into_iter().filter(|it| it.is_callers()).collect()
    }

    /// Takes other upstreams from the next request on; nothing is dialled. What is in progress ends with those it began
    /// with; an upstream of which nothing has changed goes on with its connections and tokens. Everything else of the
    /// configuration stays as it was.
    ///
    /// # Errors
    ///
    /// When a client for one of them cannot be made; then all stay as they were.
    pub fn reload(&self, upstreams: &[UpstreamConfig]) -> Result<(), TransportError> {
        let rights = |upstream: &str, good_for| {
            let (metrics, tracker) = (self.metrics.clone(), self.tracker.clone());
            Rights::new(upstream, good_for, self.negative_for, metrics, tracker)
        };
        let routes = routes(upstreams, &self.clients, rights)?;
        *self.routes.write() = routes;
        Ok(())
    }

    /// When the head of an answer to a request that came now must be there.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.answer_timeout
    }

    /// Answers a pull that needs nothing but what is in memory, and nobody's leave: a ping, and a manifest that this repository
    /// was proven to hold, by its digest or by a tag that is fresh. What is decided here is what [`Self::pull`] would decide;
    /// `None` where that has to.
    pub fn pull_at_once(
        &self,
        method: Method,
        registry: &Arc<Registry>,
        endpoint: &Endpoint,
    ) -> Option<Answer> {
        // Who may refuse it, or has to be asked first, does so there.
        let is_open = !registry.is_callers() && registry.config().verifier.is_none();
        if !is_open || registry.check_policy(endpoint).is_err() {
            return None;
        }
        let (name, reference) = match endpoint {
            Endpoint::Ping => return Some(Answer::Pong),
            Endpoint::Manifest { name, reference } => (name, reference),
            Endpoint::Blob { .. } | Endpoint::Tags { .. } | Endpoint::Referrers { .. } => {
                return None;
            }
        };
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => self.tags.fresh(registry, name, tag)?,
        };
        let served = self.manifests.in_memory(registry, name, &digest)?;
        if method == Method::Get || matches!(reference, Reference::Digest(_)) {
            self.cache.touch(&digest);
        }
        let outcome = served.outcome;
        let mut content = content(&digest, served, outcome);
        if method == Method::Head {
            content.body = Body::None;
        }
        Some(Answer::Content(content))
    }

    /// Answers a pull, before its deadline. Cancelled, what was begun for it goes on for whoever comes next.
    ///
    /// # Errors
    ///
    /// When there is no content to answer with.
    pub async fn pull(&self, pull: &Pull) -> Result<Answer, Error> {
        let answered = timeout_at(pull.deadline, Box::pin(self.answer_patiently(pull))).await;
        answered.unwrap_or(Err(Error::Deadline {
            allowed: self.answer_timeout,
        }))
    }

    /// Forgets what is named, on disk and in memory. What upstream is being asked about it at the moment is answered and
    /// not remembered; a fill under way goes on, and what it brings is kept. Cancelled, it goes on.
    ///
    /// # Errors
    ///
    /// When the disk refuses, or the directory is a successor's; then only memory has forgotten.
    pub async fn purge(
        self: &Arc<Self>,
        reference: &FullReference,
    ) -> Result<(Purge, Purged), PurgeError> {
        let purge = self.meant_by(reference);
        let (this, purging) = (Arc::clone(self), purge.clone());
        let task = self
            .tracker
            .spawn(async move { this.carry_out(&purging).await });
        let purged = task.await?;
        match &purged {
            Ok(Purged {
                tags,
                grants,
                blobs,
                bytes,
            }) => {
                let kind = purge.kind();
                info!(what = %purge, kind, tags, grants, blobs, bytes, "purged");
            }
            Err(error) => {
                warn!(what = %purge, error = %Chain(error), "purge is not complete");
            }
        }
        purged.map(|purged| (purge, purged))
    }

    fn meant_by(&self, reference: &FullReference) -> Purge {
        let repository = |namespace: &Namespace, name: &RepositoryName| {
            let (namespace, name) = (namespace.clone(), name.clone());
            match self.routes.read().as_deref() {
                Some(routes) => routes.repository(namespace, name),
                None => Repository { namespace, name },
            }
        };
        match reference {
            FullReference::Tag(namespace, name, tag) => {
                Purge::Tag(repository(namespace, name), tag.clone())
            }
            FullReference::Repository(namespace, name) => {
                Purge::Repository(repository(namespace, name))
            }
            FullReference::Digest(digest) => Purge::Digest(*digest),
        }
    }

    async fn carry_out(&self, purge: &Purge) -> Result<Purged, PurgeError> {
        // Until it is over nothing that it is about is remembered.
        let _under_way = self.cache.purges().begin(purge.clone());
        let removed = self.cache.purge(purge).await;
        let manifests = removed.as_ref().map_or(&[][..], |(_, manifests)| manifests);
        self.manifests.forget(purge, manifests);
        self.blobs.forget(purge);
        self.listings.forget(purge);
        for registry in self.callers_registries() {
            registry.rights().inspect(|it| it.forget_refusals());
        }
        let tags = self.tags.forget(purge);
        let (purged, _) = removed?;
        self.metrics.purged(purge);
        Ok(Purged {
            // What the disk had no room for was in memory only.
            tags: purged.tags.max(tags),
            ..purged
        })
    }

    /// Where the registry asks for a pause that is over soon, and nothing here can be served instead, answers after it: clients
    /// that are told to come back later mostly go elsewhere, or come back at once.
    async fn answer_patiently(&self, pull: &Pull) -> Result<Answer, Error> {
        // The rest of the time is for the answer itself.
        let latest = pull.deadline - self.answer_timeout / 2;
        loop {
            let answered = Box::pin(self.answer(pull)).await;
            match answered.as_ref().err().and_then(Error::ask_again_at) {
                Some(over) if over <= latest => sleep_until(over).await,
                Some(_) | None => return answered,
            }
        }
    }

    async fn answer(&self, pull: &Pull) -> Result<Answer, Error> {
        // Before anything is looked up or anybody is asked.
        let judged = pull.registry.check_policy(&pull.endpoint);
        judged.inspect_err(|it| self.metrics.refused(pull.registry.namespace(), it.rule()))?;
        if !pull.registry.is_callers() {
            return self.answer_within(pull).await;
        }
        let Some(registry) = Box::pin(self.gate.pass(pull)).await? else {
            return self.answer_within(pull).await;
        };
        // From here on the registry is asked as the caller, whatever it is asked.
        let pull = Pull {
            registry,
            ..pull.clone()
        };
        let answered = self.answer_within(&pull).await;
        if let Err(error) = &answered {
            self.gate.contradicted(&pull, error);
        }
        answered
    }

    /// Answers somebody who may have it, if it is there.
    async fn answer_within(&self, pull: &Pull) -> Result<Answer, Error> {
        let registry = &pull.registry;
        let content = match &pull.endpoint {
            Endpoint::Ping => return Ok(Answer::Pong),
            Endpoint::Blob { name, digest } => {
                self.blobs.pull(pull.method, registry, name, digest).await?
            }
            Endpoint::Manifest {
                name,
                reference: Reference::Digest(digest),
            } => self.manifest(pull.method, registry, name, digest).await?,
            Endpoint::Manifest {
                name,
                reference: Reference::Tag(tag),
            } => match pull.method {
                Method::Get => self.tagged(pull, name, tag).await?,
                Method::Head => self.tagged_head(pull, name, tag).await?,
            },
            endpoint @ (Endpoint::Tags { .. } | Endpoint::Referrers { .. }) => {
                let listing = self.listings.pull(registry, endpoint, &pull.asked).await?;
                return Ok(Answer::Listing(listing));
            }
        };
        if let Endpoint::Manifest { name, reference } = &pull.endpoint {
            let checked = self.verifiers.check(registry, name, reference, &content);
            checked.await.inspect_err(|error| {
                if let Error::Denied(refusal) = error {
                    self.metrics.refused(registry.namespace(), refusal.rule());
                }
            })?;
        }
        Ok(Answer::Content(content))
    }

    async fn manifest(
        &self,
        method: Method,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Content, Error> {
        if method == Method::Head {
            let (media_type, size, outcome) =
                self.manifests.describe(registry, name, digest).await?;
            let (digest, media_type) = (*digest, Some(media_type));
            return Ok(Content {
                digest,
                media_type,
                size,
                outcome,
                body: Body::None,
            });
        }
        let served = self.served(registry, name, digest).await?;
        let outcome = served.outcome;
        Ok(content(digest, served, outcome))
    }

    async fn tagged(
        &self,
        pull: &Pull,
        name: &RepositoryName,
        tag: &Tag,
    ) -> Result<Content, Error> {
        let registry = &pull.registry;
        let asking = self.asking(pull);
        let mut resolved = self.tags.resolve(registry, name, tag, asking).await?;
        let mut served = self
            .served_by(asking.until, registry, name, &resolved.word)
            .await;
        let may_have_moved = match (&served, &resolved.how) {
            // It was fresh enough to be believed, and what it names is gone: it has moved, or is gone itself.
            (Err(error), How::Fresh) => error.is_gone(),
            // A mirror may have said so that is behind.
            (Err(error), How::Checked) => error.is_gone() && registry.upstream().doubt_mirrors(),
            (Ok(_), _) | (Err(_), How::Stale(_)) => false,
        };
        if may_have_moved {
            let asking = Asking {
                anew: true,
                ..asking
            };
            resolved = self.tags.resolve(registry, name, tag, asking).await?;
            served = self
                .served_by(asking.until, registry, name, &resolved.word)
                .await;
        }
        let Resolved { word, how } = resolved;
        let failed = match (served, how) {
            (Ok(served), how) => {
                let outcome = match (how, served.outcome) {
                    (How::Stale(_), _) => Outcome::Stale,
                    (How::Checked, Outcome::Hit) => Outcome::Revalidated,
                    (How::Checked | How::Fresh, outcome) => outcome,
                };
                return Ok(content(&word.digest, served, outcome));
            }
            // What was last stored is not here any more: the first reason is the better one.
            (Err(_), How::Stale(reason)) => return Err(reason),
            // The registry has the tag and not what the tag names: it contradicts itself, and nothing is known.
            (Err(error), How::Checked) if error.is_gone() => {
                let source = Arc::new(invalid(registry, Fault::Vanished));
                let subject = Subject::Manifest;
                Error::Upstream { subject, source }
            }
            (Err(error), How::Checked | How::Fresh) => error,
        };
        let heard = (&failed, asking.asked);
        self.tags.fetch_failed(registry, name, tag, heard).await;
        let stand_in = self
            .tags
            .stand_in(registry, name, tag, failed.clone())
            .await?;
        if stand_in.word == word {
            return Err(failed);
        }
        let digest = stand_in.word.digest;
        let served = self
            .served(registry, name, &digest)
            .await
            .map_err(|_| failed)?;
        Ok(content(&digest, served, Outcome::Stale))
    }

    async fn tagged_head(
        &self,
        pull: &Pull,
        name: &RepositoryName,
        tag: &Tag,
    ) -> Result<Content, Error> {
        let registry = &pull.registry;
        let asking = self.asking(pull);
        let Resolved { word, how } = self.tags.resolve(registry, name, tag, asking).await?;
        let repository = registry.repository(name);
        let stored = self.manifests.stored(&repository, &word.digest).await;
        let outcome = match (how, stored.is_some()) {
            (How::Stale(reason), false) => return Err(reason),
            (How::Stale(_), true) => Outcome::Stale,
            (How::Fresh, true) => Outcome::Hit,
            (How::Checked, true) => Outcome::Revalidated,
            (How::Fresh | How::Checked, false) => Outcome::Forwarded,
        };
        // What is here says more exactly what it is than a head that was heard.
        let (media_type, size) = stored.unwrap_or((word.media_type, word.size));
        Ok(Content {
            digest: word.digest,
            media_type: Some(media_type),
            size: Some(size),
            outcome,
            body: Body::None,
        })
    }

    /// Some of the time is kept for answering with what is stored.
    fn asking(&self, pull: &Pull) -> Asking {
        Asking {
            since: pull.deadline - self.answer_timeout,
            until: pull.deadline - self.answer_timeout / 8,
            anew: false,
            asked: self.cache.purges().now(),
        }
    }

    async fn served_by(
        &self,
        deadline: Instant,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        word: &Word,
    ) -> Result<Served, Error> {
        let served = timeout_at(deadline, self.served(registry, name, &word.digest)).await;
        let allowed = self.answer_timeout;
        served.unwrap_or(Err(Error::Deadline { allowed }))
    }

    async fn served(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Served, Error> {
        let served = self.manifests.pull(registry, name, digest).await?;
        if served.outcome != Outcome::Hit || served.is_new {
            self.tags
                .published(&registry.repository(name), digest)
                .await;
        }
        Ok(served)
    }
}

/// A client for each upstream, by all of its names.
fn routes(
    upstreams: &[UpstreamConfig],
    clients: &Clients,
    rights: impl Fn(&str, Duration) -> Rights,
) -> Result<Option<Arc<Routes>>, TransportError> {
    let registries: Vec<Arc<Registry>> = upstreams
        .iter()
        .map(|upstream| Registry::new(upstream.clone(), clients, &rights).map(Arc::new))
        .collect::<Result<_, _>>()?;
    Ok(Routes::new(&registries).map(Arc::new))
}

fn content(digest: &Digest, served: Served, outcome: Outcome) -> Content {
    Content {
        digest: *digest,
        media_type: Some(served.media_type),
        size: Some(served.bytes.len() as u64),
        outcome,
        body: Body::Memory(served.bytes),
    }
}
