//! Asking one registry, wherever it can be had.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::config::{Config, MirrorConfig};
use super::credential::Credential;
use super::error::{Class, Error, Fault};
use super::metrics::Metrics;
use super::rest::{Entry, Rest, Turn};
use super::site::{BlobHead, Listing, Manifest, ManifestHead, Site};
use super::transport::TransportError;
use crate::net::Chain;
use crate::oci::{Digest, Endpoint, Reference, RepositoryName};

/// One remote registry: its mirrors in their order, and the registry itself.
#[derive(Debug)]
pub struct Upstream {
    mirrors: Vec<Arc<Mirror>>,
    own: Arc<Site>,
    offline: bool,
}

/// Another place of the registry.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) site: Arc<Site>,
    resolves: bool,
    rest: Mutex<Rest>,
    /// Until when it is not asked because it lied; no answer of it shortens that.
    distrusted_until: Mutex<Option<Instant>>,
}

impl Upstream {
    /// A client for the registry that clients call `name`. Nothing is dialled.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(name: &str, config: Config, metrics: &Metrics) -> Result<Self, TransportError> {
        let places = u32::try_from(config.mirrors.len() + 1).unwrap_or(u32::MAX);
        let mirrors = config.mirrors.into_iter().map(|mirror| {
            let MirrorConfig { site, resolves } = mirror;
            let host = site.url.authority().map_or("", |it| it.as_str());
            let label = format!("{name}@{host}");
            // All of them share the time that one of them would have.
            let patience = (site.connect_timeout + site.first_byte_timeout) / places;
            let (resting, _) = metrics.rests(&label);
            Ok(Arc::new(Mirror {
                rest: Mutex::new(Rest::new(site.rest, resting)),
                site: Arc::new(Site::new(&label, site, Some(patience), metrics.clone())?),
                resolves,
                distrusted_until: Mutex::default(),
            }))
        });
        Ok(Self {
            mirrors: mirrors.collect::<Result<_, TransportError>>()?,
            own: Arc::new(Site::new(name, config.own, None, metrics.clone())?),
            offline: config.offline,
        })
    }

    /// The same registry, asked by a caller with its own credential, or without any, instead of by us. The registry's own
    /// place alone sees that; mirrors are asked as they are configured. Connections, limits and what is known of hosts are
    /// shared; tokens are the caller's own, and are used for `tokens_for` at most, so that what the registry says by them is
    /// no older. Nothing is dialled.
    pub fn as_caller(&self, caller: Option<Credential>, tokens_for: Duration) -> Self {
        Self {
            mirrors: self.mirrors.clone(),
            own: Arc::new(self.own.as_caller(caller, tokens_for)),
            offline: self.offline,
        }
    }

    /// Asks the registry itself to be let in, to a repository or as such: so that a wrong password is known where it is given.
    /// A registry that asks nobody who they are lets everybody in. How long the answer is good, where the registry says so.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the registry or its token server refuses, or gives no valid answer.
    pub async fn log_in(&self, name: Option<&RepositoryName>) -> Result<Option<Duration>, Error> {
        self.itself()?.log_in(name).await
    }

    /// Has the registry itself, and no mirror of it, say that whoever asks may see this manifest or blob, and that it is
    /// there. As of when that is so: a token that was shown may be older than the question. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When they may not, or there is none, or no valid answer.
    pub async fn vouch(&self, endpoint: &Endpoint, bytes_max: u64) -> Result<Instant, Error> {
        let since = self.since(endpoint);
        let own = self.itself()?;
        match endpoint {
            Endpoint::Manifest { name, reference } => {
                own.vouch_for_manifest(name, reference, bytes_max).await?;
            }
            // A redirect may lead to a page to log in at: then the first byte decides.
            Endpoint::Blob { name, digest } => drop(own.head_blob(name, digest, true).await?),
            Endpoint::Ping | Endpoint::Tags { .. } | Endpoint::Referrers { .. } => {
                return Err(own.invalid(Fault::Listing));
            }
        }
        Ok(since)
    }

    /// As [`Upstream::vouch`], for a list of tags or referrers, with this query; `plausible` says whether it can be one.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// When they may not see it, or there is none, or no valid answer.
    pub async fn vouch_for_listing(
        &self,
        endpoint: &Endpoint,
        query: &str,
        bytes_max: u64,
        plausible: impl Fn(&Listing) -> bool,
    ) -> Result<Instant, Error> {
        let since = self.since(endpoint);
        let own = self.itself()?;
        let listing = own.listing(endpoint, query, bytes_max).await?;
        match plausible(&listing) {
            true => Ok(since),
            false => Err(own.invalid(Fault::Listing)),
        }
    }

    /// As of when an answer is so that is asked for now.
    fn since(&self, endpoint: &Endpoint) -> Instant {
        let token = endpoint.name().and_then(|name| self.own.token_since(name));
        token.unwrap_or_else(Instant::now)
    }

    fn itself(&self) -> Result<&Arc<Site>, Error> {
        if self.offline {
            let host = self.host().to_owned();
            return Err(Error::Offline { host });
        }
        Ok(&self.own)
    }

    /// The configured name.
    pub fn name(&self) -> &str {
        self.own.name()
    }

    /// Where the registry itself is, for logs.
    pub fn host(&self) -> &str {
        self.own.host()
    }

    /// Asks for the head of a manifest, of `here` bytes where that is known. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer, or one that is of another digest or size.
    pub async fn head_manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        here: Option<u64>,
    ) -> Result<ManifestHead, Error> {
        let ask = |site: Arc<Site>| async move {
            let head = site.head_manifest(name, reference).await?;
            let is_other = match (reference, &head.digest) {
                // Another algorithm may name the same bytes.
                (Reference::Digest(asked), Some(digest)) => {
                    digest.algorithm() == asked.algorithm() && digest != asked
                }
                (Reference::Digest(_) | Reference::Tag(_), _) => false,
            };
            if is_other || are_apart(here, head.size) {
                return Err(site.invalid(Fault::Digest));
            }
            Ok(head)
        };
        self.first(is_resolving(reference), ask).await
    }

    /// Asks for a manifest of at most `bytes_max` bytes; it is what was asked for when it comes. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer, or it is too large, or its bytes are not those of the digest.
    pub async fn manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        bytes_max: u64,
    ) -> Result<Manifest, Error> {
        let ask = |site: Arc<Site>| async move { site.manifest(name, reference, bytes_max).await };
        self.first(is_resolving(reference), ask).await
    }

    /// Asks for a list of tags or referrers, with this query; `plausible` says whether it can be one. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer, or it is too large or not plausible.
    pub async fn listing(
        &self,
        endpoint: &Endpoint,
        query: &str,
        bytes_max: u64,
        plausible: impl Fn(&Listing) -> bool,
    ) -> Result<Listing, Error> {
        let plausible = &plausible;
        let ask = |site: Arc<Site>| async move {
            let listing = site.listing(endpoint, query, bytes_max).await?;
            if plausible(&listing) {
                Ok(listing)
            } else {
                Err(site.invalid(Fault::Listing))
            }
        };
        self.first(true, ask).await
    }

    /// Asks whether there is such a blob, of `here` bytes where that is known; else for its size, too. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When there is none, or no valid answer, or one that is of another size.
    pub async fn head_blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        here: Option<u64>,
    ) -> Result<BlobHead, Error> {
        let ask = |site: Arc<Site>| async move {
            let head = site.head_blob(name, digest, here.is_none()).await?;
            if are_apart(here, head.size) {
                return Err(site.invalid(Fault::Digest));
            }
            Ok(head)
        };
        self.first(false, ask).await
    }

    /// What a tag was heard to name is not there: mirrors that may have said so are left alone for a while, as one that is
    /// behind. Whether there were any, so that the registry itself can be asked.
    pub fn doubt_mirrors(&self) -> bool {
        let now = Instant::now();
        let asked = self
            .mirrors
            .iter()
            .filter(|it| it.resolves && !it.is_resting());
        let mut doubted = false;
        for mirror in asked {
            doubted = true;
            let cause = Arc::new(mirror.site.invalid(Fault::Vanished));
            mirror.rest.lock().begin(now, &cause, now);
        }
        doubted
    }

    /// The mirrors that are not resting, and the registry itself.
    pub(super) fn places(&self) -> Result<(Vec<Arc<Mirror>>, Arc<Site>), Error> {
        let own = Arc::clone(self.itself()?);
        let mirrors = self.mirrors.iter().filter(|it| !it.is_resting());
        Ok((mirrors.map(Arc::clone).collect(), own))
    }

    /// The first valid answer. What goes wrong at a mirror is no news: the registry itself has the last word.
    async fn first<T, F>(&self, resolving: bool, ask: impl Fn(Arc<Site>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (mirrors, own) = self.places()?;
        for mirror in mirrors.iter().filter(|it| it.resolves || !resolving) {
            if let Ok(answer) = mirror.asked(ask(Arc::clone(&mirror.site))).await {
                return Ok(answer);
            }
        }
        ask(own).await
    }
}

impl Mirror {
    /// What it says, unless it is left alone. Whoever cannot answer is left alone for a while, so that it costs its time once
    /// and not each pull.
    pub(super) async fn asked<T>(
        &self,
        asking: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let entry = self.rest.lock().enter(self.site.host(), Instant::now());
        let turn = match entry {
            Entry::Open(turn) => turn,
            // Others need not wait for what one finds out: there is somebody else to ask.
            Entry::Probed(_, refusal) | Entry::Closed(refusal) => return Err(refusal),
        };
        let answer = asking.await;
        match &answer {
            Ok(_) => {
                self.rest.lock().end();
            }
            Err(error) => self.failed(&turn, error),
        }
        answer
    }

    fn failed(&self, turn: &Turn, error: &Error) {
        debug!(upstream = self.site.name(), error = %Chain(error), "going on from a mirror");
        // Who has no parts, or encodes them, may yet be asked for the whole; and who has nothing behind some offset may be
        // right, since we ask for the rest of what others gave.
        let is_ours = matches!(error, Error::Busy { .. })
            || matches!(error.fault(), Some(Fault::Range | Fault::Encoding))
            || error.is_beyond_the_end();
        if error.fault() == Some(Fault::Digest) {
            self.lied();
        } else if error.class() == Class::Unavailable && !is_ours {
            let cause = Arc::new(error.clone());
            let is_first = self.rest.lock().begin(turn.asked(), &cause, Instant::now());
            if is_first {
                warn!(upstream = self.site.name(), error = %Chain(error), "a mirror does not answer");
            }
        } else if !is_ours {
            // It does not have it, or does not let us: that is an answer.
            self.rest.lock().end();
        }
    }

    /// Notes that what it sent was not what it should be.
    pub(super) fn lied(&self) {
        warn!(
            upstream = self.site.name(),
            "a mirror sent wrong bytes, not asked for a while"
        );
        *self.distrusted_until.lock() = Some(Instant::now() + LIAR_REST);
    }

    fn is_resting(&self) -> bool {
        let now = Instant::now();
        let is_distrusted = self.distrusted_until.lock().is_some_and(|it| now < it);
        is_distrusted || self.rest.lock().is_on(now)
    }
}

/// How long a mirror that sent wrong bytes is not asked: longer than its bytes are refused.
const LIAR_REST: Duration = Duration::from_secs(600);

/// Whether two sizes of one thing are known, and differ.
fn are_apart(here: Option<u64>, there: Option<u64>) -> bool {
    matches!((here, there), (Some(here), Some(there)) if here != there)
}

/// Whether this asks what a name means now.
const fn is_resolving(reference: &Reference) -> bool {
    matches!(reference, Reference::Tag(_))
}
