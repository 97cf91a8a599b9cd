//! Asking one registry, wherever it can be had.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::config::{Config, MirrorConfig};
use super::error::{Class, Error, Fault};
use super::metrics::Metrics;
use super::site::{BlobHead, Listing, Manifest, ManifestHead, Site};
use super::transport::TransportError;
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
}

/// The pause of a mirror that did not answer as it should.
#[derive(Debug, Default)]
struct Rest {
    until: Option<Instant>,
    pause: Duration,
    /// Until when it is not asked because it lied; no answer of it shortens that.
    distrusted_until: Option<Instant>,
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
            Ok(Arc::new(Mirror {
                site: Arc::new(Site::new(&label, site, Some(patience), metrics.clone())?),
                resolves,
                rest: Mutex::default(),
            }))
        });
        Ok(Self {
            mirrors: mirrors.collect::<Result<_, TransportError>>()?,
            own: Arc::new(Site::new(name, config.own, None, metrics.clone())?),
            offline: config.offline,
        })
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
            mirror.rest.lock().begin(now);
        }
        doubted
    }

    /// The mirrors that are not resting, and the registry itself.
    pub(super) fn places(&self) -> Result<(Vec<Arc<Mirror>>, Arc<Site>), Error> {
        if self.offline {
            let host = self.host().to_owned();
            return Err(Error::Offline { host });
        }
        let mirrors = self.mirrors.iter().filter(|it| !it.is_resting());
        Ok((mirrors.map(Arc::clone).collect(), Arc::clone(&self.own)))
    }

    /// The first valid answer. What goes wrong at a mirror is no news: the registry itself has the last word.
    async fn first<T, F>(&self, resolving: bool, ask: impl Fn(Arc<Site>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (mirrors, own) = self.places()?;
        for mirror in mirrors.iter().filter(|it| it.resolves || !resolving) {
            match ask(Arc::clone(&mirror.site)).await {
                Ok(answer) => {
                    mirror.answered();
                    return Ok(answer);
                }
                Err(error) => mirror.failed(&error),
            }
        }
        ask(own).await
    }
}

impl Rest {
    /// Begins a pause, twice as long as the last one if nothing was answered since; whether there was none. Many who asked
    /// at once had one bad moment, and not as many.
    fn begin(&mut self, now: Instant) -> bool {
        let is_first = self.pause.is_zero();
        if self.until.is_none_or(|until| until <= now) {
            self.pause = (self.pause * 2).clamp(REST_MIN, REST_MAX);
            self.until = Some(now + self.pause);
        }
        is_first
    }
}

impl Mirror {
    /// Notes that it answered as it should.
    pub(super) fn answered(&self) {
        let mut rest = self.rest.lock();
        (rest.until, rest.pause) = (None, Duration::ZERO);
    }

    /// Notes a failure: whoever cannot answer is left alone for a while, so that it costs its time once and not each pull.
    pub(super) fn failed(&self, error: &Error) {
        debug!(upstream = self.site.name(), error = %crate::net::Chain(error), "going on from a mirror");
        if error.fault() == Some(Fault::Digest) {
            self.lied();
        } else if error.class() == Class::Unavailable && !matches!(error, Error::Busy { .. }) {
            let is_first = self.rest.lock().begin(Instant::now());
            if is_first {
                warn!(upstream = self.site.name(), error = %crate::net::Chain(error), "a mirror does not answer");
            }
        }
    }

    /// Notes that what it sent was not what it should be.
    pub(super) fn lied(&self) {
        warn!(
            upstream = self.site.name(),
            "a mirror sent wrong bytes, not asked for a while"
        );
        self.rest.lock().distrusted_until = Some(Instant::now() + LIAR_REST);
    }

    fn is_resting(&self) -> bool {
        let rest = self.rest.lock();
        let mut times = rest.until.into_iter().chain(rest.distrusted_until);
        times.any(|until| Instant::now() < until)
    }
}

/// How long a mirror that failed is not asked: twice as long after each failure in a row, up to the longest.
const REST_MIN: Duration = Duration::from_secs(5);
const REST_MAX: Duration = Duration::from_secs(60);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_moment_is_one_pause_however_many_asked() {
        let (mut rest, mut now) = (Rest::default(), Instant::now());
        assert!(rest.begin(now));
        assert!(!rest.begin(now));
        assert_eq!(rest.pause, REST_MIN);
        for expected in [10, 20, 40, 60, 60] {
            now += rest.pause;
            for _ in 0..7 {
                rest.begin(now);
            }
            assert_eq!(rest.pause, Duration::from_secs(expected));
        }
    }
}
