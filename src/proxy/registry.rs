//! One configured upstream, as pulls see it.

use std::sync::Arc;
use std::time::Duration;

use super::config::{Freshness, UpstreamConfig};
use crate::cache::Repository;
use crate::oci::{Namespace, RepositoryName, Tag};
use crate::upstream::{Metrics, Source, TransportError, Upstream};

/// One configured upstream: its client and its rules.
#[derive(Debug)]
pub struct Registry {
    config: UpstreamConfig,
    upstream: Arc<Upstream>,
}

impl Registry {
    /// Makes the client; nothing is dialled.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(config: UpstreamConfig, metrics: &Metrics) -> Result<Self, TransportError> {
        let upstream = Upstream::new(
            config.namespace.as_str(),
            config.connection.clone(),
            metrics,
        )?;
        Ok(Self {
            config,
            upstream: Arc::new(upstream),
        })
    }

    /// What clients call it.
    pub fn namespace(&self) -> &Namespace {
        &self.config.namespace
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

/// Ten years.
const FOR_EVER: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
