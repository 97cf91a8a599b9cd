//! What is counted about what is remembered and forgotten.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::cache::{Purge, Repository};
use crate::net::total;

/// The metrics of pulling; clones count into the same series.
#[derive(Clone, Debug)]
pub struct Metrics {
    purged: IntCounterVec,
    deduplicated: IntCounterVec,
}

impl Metrics {
    /// Makes the series and registers them.
    ///
    /// # Errors
    ///
    /// When one of the names is already taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            purged: IntCounterVec::new(
                Opts::new("layerhold_purged_total", "Purges carried out"),
                &["kind"],
            )?,
            deduplicated: IntCounterVec::new(
                Opts::new(
                    "layerhold_deduplicated_bytes_total",
                    "Bytes that a repository was proven to hold, and that were here already or on their way",
                ),
                &["upstream"],
            )?,
        };
        registry.register(Box::new(metrics.purged.clone()))?;
        registry.register(Box::new(metrics.deduplicated.clone()))?;
        for kind in Purge::KINDS {
            metrics.purged.with_label_values(&[kind]);
        }
        Ok(metrics)
    }

    /// Bytes that were neither fetched nor stored again since the start, because another repository had brought them.
    pub fn deduplicated_bytes(&self) -> u64 {
        total(&self.deduplicated, None)
    }

    /// A repository was proven to hold so many bytes that another one had brought.
    pub(super) fn deduplicated(&self, repository: &Repository, bytes: u64) {
        self.deduplicated
            .with_label_values(&[repository.namespace.as_str()])
            .inc_by(bytes);
    }

    pub(super) fn purged(&self, purge: &Purge) {
        self.purged.with_label_values(&[purge.kind()]).inc();
    }
}
