//! What is counted about what is remembered and forgotten.

use prometheus::{IntCounterVec, Opts, Registry};

use super::policy::RuleKind;
use crate::cache::{Purge, Repository};
use crate::net::total;
use crate::oci::Namespace;

/// The metrics of pulling; clones count into the same series.
#[derive(Clone, Debug)]
pub struct Metrics {
    purged: IntCounterVec,
    deduplicated: IntCounterVec,
    windows: IntCounterVec,
    window_bytes: IntCounterVec,
    refused: IntCounterVec,
    verified: IntCounterVec,
    rights: IntCounterVec,
}

/// How it was decided whether a caller may go in, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RightLabel {
    /// By the registry's yes of a moment ago.
    Held,
    /// The registry said yes.
    Granted,
    /// The registry said no.
    Refused,
    /// By the registry's no of a moment ago.
    Remembered,
    /// The registry could not say.
    Unavailable,
}

/// How a window ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowLabel {
    /// All of it came.
    Complete,
    /// Its reader left, or had the bytes by the fill.
    Left,
    Failed,
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
            windows: IntCounterVec::new(
                Opts::new(
                    "layerhold_windows_total",
                    "Parts of blobs asked for beside their fills, by how they ended",
                ),
                &["end"],
            )?,
            window_bytes: IntCounterVec::new(
                Opts::new(
                    "layerhold_window_bytes_total",
                    "Bytes received of parts of blobs beside their fills",
                ),
                &["upstream"],
            )?,
            refused: IntCounterVec::new(
                Opts::new(
                    "layerhold_denied_total",
                    "Pulls refused by a rule of the configuration",
                ),
                &["upstream", "rule"],
            )?,
            rights: IntCounterVec::new(
                Opts::new(
                    "layerhold_rights_total",
                    "Decisions whether a caller may have what it asks for, by what they rest on",
                ),
                &["upstream", "result"],
            )?,
            verified: IntCounterVec::new(
                Opts::new(
                    "layerhold_verifications_total",
                    "Questions to verifiers, by what they said",
                ),
                &["upstream", "result"],
            )?,
        };
        registry.register(Box::new(metrics.rights.clone()))?;
        registry.register(Box::new(metrics.purged.clone()))?;
        registry.register(Box::new(metrics.deduplicated.clone()))?;
        registry.register(Box::new(metrics.windows.clone()))?;
        registry.register(Box::new(metrics.window_bytes.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.verified.clone()))?;
        for label in WindowLabel::ALL {
            metrics.windows.with_label_values(&[label.as_str()]);
        }
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

    /// A rule of this upstream refused a pull.
    pub(super) fn refused(&self, upstream: &Namespace, rule: RuleKind) {
        let labels = [upstream.as_str(), rule.as_str()];
        self.refused.with_label_values(&labels).inc();
    }

    /// A verifier of this upstream was asked.
    pub(super) fn verified(&self, upstream: &Namespace, result: &'static str) {
        let labels = [upstream.as_str(), result];
        self.verified.with_label_values(&labels).inc();
    }

    pub(super) fn window_received(&self, upstream: &str, bytes: u64) {
        self.window_bytes
            .with_label_values(&[upstream])
            .inc_by(bytes);
    }

    pub(super) fn right(&self, upstream: &str, result: RightLabel) {
        let labels = [upstream, result.as_str()];
        self.rights.with_label_values(&labels).inc();
    }

    pub(super) fn window_ended(&self, how: WindowLabel) {
        self.windows.with_label_values(&[how.as_str()]).inc();
    }
}

impl RightLabel {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Remembered => "remembered",
            Self::Unavailable => "unavailable",
        }
    }
}

impl WindowLabel {
    const ALL: [Self; 3] = [Self::Complete, Self::Left, Self::Failed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Left => "left",
            Self::Failed => "failed",
        }
    }
}
