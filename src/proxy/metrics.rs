//! What is counted about what is remembered and forgotten.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::cache::Purge;

/// The metrics of pulling; clones count into the same series.
#[derive(Clone, Debug)]
pub struct Metrics {
    purged: IntCounterVec,
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
        };
        registry.register(Box::new(metrics.purged.clone()))?;
        for kind in Purge::KINDS {
            metrics.purged.with_label_values(&[kind]);
        }
        Ok(metrics)
    }

    pub(super) fn purged(&self, purge: &Purge) {
        self.purged.with_label_values(&[purge.kind()]).inc();
    }
}
