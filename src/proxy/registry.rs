//! One configured upstream, as pulls see it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::config::{Access, Freshness, UpstreamConfig};
use super::policy::Refusal;
use super::rights::Rights;
use super::seen::{Asker, Seen};
use crate::cache::{Lru, Repository};
use crate::oci::{Endpoint, Namespace, RepositoryName, Tag};
use crate::upstream::{Clients, Credential, Source, TransportError, Upstream};

/// One configured upstream: its client and its rules. Where the callers' own rights decide, also as one of them asks it.
#[derive(Debug)]
pub struct Registry {
    config: Arc<UpstreamConfig>,
    upstream: Arc<Upstream>,
    asker: Asker,
    /// Those of the callers, where they decide.
    rights: Option<Arc<Rights>>,
    /// The same registry as its callers of late ask it; empty in those themselves.
    views: Mutex<Lru<Asker, Arc<Self>>>,
    generation: u64,
}

impl Registry {
    /// Takes a client from `clients`; nothing is dialled. What a caller is refused is remembered for `refused_for`.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub(super) fn new(
        config: UpstreamConfig,
        clients: &Clients,
        rights: impl FnOnce(&str, Duration) -> Rights,
    ) -> Result<Self, TransportError> {
        let upstream = clients.client(config.namespace.as_str(), &config.connection)?;
        let rights = match config.access {
            Access::Shared => None,
            Access::Caller { grant_ttl } => {
                Some(Arc::new(rights(config.namespace.as_str(), grant_ttl)))
            }
        };
        Ok(Self {
            config: Arc::new(config),
            upstream,
            asker: Asker::Ourselves,
            rights,
            views: Mutex::new(Lru::new(VIEWS_MAX)),
            generation: rand::random(),
        })
    }

    /// Whether the callers' own rights decide what they may have.
    pub fn is_callers(&self) -> bool {
        self.rights.is_some()
    }

    /// The same registry, asked with a caller's credential, or without any. The same caller has the same one, as long as not
    /// too many others come.
    pub(super) fn as_caller(&self, credential: Option<&Credential>) -> Arc<Self> {
        let asker = Asker::of(credential);
        let mut views = self.views.lock();
        if let Some(view) = views.touch(&asker) {
            return Arc::clone(view);
        }
        // A token is used for less than a right holds, so that a right never rests on one that is older.
        let good_for = self.rights.as_ref().map(|it| it.good_for());
        let tokens_for = good_for.unwrap_or_default().mul_f64(0.9);
        let upstream = self.upstream.as_caller(credential.cloned(), tokens_for);
        let view = Arc::new(Self {
            config: Arc::clone(&self.config),
            upstream: Arc::new(upstream),
            asker,
            rights: self.rights.clone(),
            views: Mutex::new(Lru::new(1)),
            generation: self.generation,
        });
        views.insert(asker, Arc::clone(&view));
        view
    }

    /// Those of the callers, where they decide.
    pub(super) fn rights(&self) -> Option<&Arc<Rights>> {
        self.rights.as_ref()
    }

    /// As whom it is asked.
    pub(super) fn asker(&self) -> Asker {
        self.asker
    }

    /// This repository, as whoever asks sees it.
    pub(super) fn seen(&self, name: &RepositoryName) -> Seen {
        Seen {
            asker: self.asker,
            repository: self.repository(name),
        }
    }

    /// What clients call it.
    pub fn namespace(&self) -> &Namespace {
        &self.config.namespace
    }

    /// Whether this `Host` means it, whatever is asked there.
    pub fn is_hosted(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let bare = host
            .rsplit_once(':')
            .map_or(host.as_str(), |(bare, _)| bare);
        let hosts = &self.config.hosts;
        hosts.iter().any(|it| *it == host || it == bare)
    }

    /// Refuses what the operator's rules do not let be pulled from here; nobody is asked.
    ///
    /// # Errors
    ///
    /// With the rule.
    pub fn check_policy(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        self.config.policy.check(&self.config.namespace, endpoint)
    }

    /// Another one after each reload.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    pub(super) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Whether names of one segment are official images here: Docker Hub's `debian` is `library/debian`.
    pub(super) fn has_library(&self) -> bool {
        self.config.namespace.as_str() == "docker.io"
            || self.config.connection.own.url.host() == Some("registry-1.docker.io")
    }

    /// What grants and tags of this repository belong to.
    pub(super) fn repository(&self, name: &RepositoryName) -> Repository {
        Repository {
            namespace: self.config.namespace.clone(),
            name: name.clone(),
        }
    }

    /// This repository, as a source of its blobs.
    pub(super) fn source(&self, name: &RepositoryName) -> Source {
        Source {
            upstream: Arc::clone(&self.upstream),
            name: name.clone(),
        }
    }

    /// How long this tag's answers are good.
    pub(super) fn freshness(&self, tag: &Tag) -> Freshness {
        let rule = self
            .config
            .tags
            .iter()
            .find(|rule| rule.pattern.is_match(tag.as_str()));
        let fresh_for = rule.map_or(self.config.freshness.fresh_for, |rule| rule.fresh_for);
        self.lasting(fresh_for)
    }

    /// How long a list is good.
    pub(super) fn listing_freshness(&self) -> Freshness {
        self.lasting(self.config.freshness.fresh_for)
    }

    fn lasting(&self, fresh_for: Duration) -> Freshness {
        // Where nobody can be asked, what is here is what there is.
        let fresh_for = if self.config.connection.offline {
            FOR_EVER
        } else {
            fresh_for
        };
        Freshness {
            fresh_for,
            // What is fresh is usable.
            usable_for: self.config.freshness.usable_for.max(fresh_for),
            retry_after: self.config.freshness.retry_after,
        }
    }
}

/// Callers whose connections to a registry are kept ready; others are made when they come back.
const VIEWS_MAX: usize = 1_000;
/// Ten years.
const FOR_EVER: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
