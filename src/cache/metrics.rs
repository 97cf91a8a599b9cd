//! What the cache counts.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The cache's metrics; clones count into the same series.
#[derive(Clone, Debug)]
pub struct Metrics {
    room: Room,
    fills: IntGauge,
    fills_ended: IntCounterVec,
    followers: IntGauge,
    resumes: Resumes,
    evictions: IntCounter,
    evicted_bytes: IntCounter,
    quarantined: IntCounter,
    scrubbed_bytes: IntCounter,
    scrub_ended: IntGauge,
    disk_errors: IntCounterVec,
    degraded: IntGauge,
}

/// What the ledger says. The figures of a scrape are those of one moment, so that their sum is true.
#[derive(Clone, Debug)]
struct Room {
    bytes: IntGaugeVec,
    blobs: IntGauge,
    /// Held while all are set, and while all are read.
    whole: Arc<Mutex<()>>,
}

/// What is counted of fills that the end of a process interrupted.
#[derive(Clone, Debug)]
struct Resumes {
    bytes: IntCounter,
    remainders: IntCounterVec,
}

/// How a fill ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillLabel {
    Published,
    Unpublished,
    Mismatch,
    NoRoom,
    Disk,
    Failed,
    Abandoned,
}

/// What became of what an interrupted fill had left, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RemainderLabel {
    Resumed,
    Damaged,
    Dropped,
}

impl Metrics {
    /// Makes the series and registers them.
    ///
    /// # Errors
    ///
    /// When one of the names is already taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            room: Room {
                bytes: IntGaugeVec::new(
                    Opts::new("layerhold_cache_bytes", "Bytes of the store, by state"),
                    &["state"],
                )?,
                blobs: IntGauge::new(
                    "layerhold_cache_blobs",
                    "Published blobs, manifests included",
                )?,
                whole: Arc::default(),
            },
            fills: IntGauge::new("layerhold_fills", "Fills in progress")?,
            fills_ended: IntCounterVec::new(
                Opts::new("layerhold_fills_total", "Fills that ended, by how"),
                &["end"],
            )?,
            followers: IntGauge::new("layerhold_followers", "Readers of fills in progress")?,
            resumes: Resumes::register(registry)?,
            evictions: IntCounter::new("layerhold_evictions_total", "Blobs evicted for room")?,
            evicted_bytes: IntCounter::new(
                "layerhold_evicted_bytes_total",
                "Bytes evicted for room",
            )?,
            quarantined: IntCounter::new(
                "layerhold_quarantined_total",
                "Published files set aside because they were not what was published",
            )?,
            scrubbed_bytes: IntCounter::new(
                "layerhold_scrubbed_bytes_total",
                "Bytes of published files that were read again to be checked",
            )?,
            scrub_ended: IntGauge::new(
                "layerhold_scrub_ended_seconds",
                "When all published files had last been checked, in seconds since the epoch; 0 before",
            )?,
            disk_errors: IntCounterVec::new(
                Opts::new(
                    "layerhold_disk_errors_total",
                    "Failed operations on the cache directory",
                ),
                &["operation"],
            )?,
            degraded: IntGauge::new(
                "layerhold_degraded",
                "1 while the last write to the cache directory failed",
            )?,
        };
        registry.register(Box::new(metrics.room.clone()))?;
        registry.register(Box::new(metrics.fills.clone()))?;
        registry.register(Box::new(metrics.fills_ended.clone()))?;
        registry.register(Box::new(metrics.followers.clone()))?;
        registry.register(Box::new(metrics.evictions.clone()))?;
        registry.register(Box::new(metrics.evicted_bytes.clone()))?;
        registry.register(Box::new(metrics.quarantined.clone()))?;
        registry.register(Box::new(metrics.scrubbed_bytes.clone()))?;
        registry.register(Box::new(metrics.scrub_ended.clone()))?;
        registry.register(Box::new(metrics.disk_errors.clone()))?;
        registry.register(Box::new(metrics.degraded.clone()))?;
        for label in FillLabel::ALL {
            metrics.fills_ended.with_label_values(&[label.as_str()]);
        }
        Ok(metrics)
    }

    /// Publishes the ledger's figures.
    pub(super) fn ledger(&self, used: u64, reserved: u64, limit: u64, blobs: usize) {
        let room = &self.room;
        let _whole = room.whole.lock();
        for (state, bytes) in [("used", used), ("reserved", reserved), ("limit", limit)] {
            room.bytes.with_label_values(&[state]).set(signed(bytes));
        }
        room.blobs.set(i64::try_from(blobs).unwrap_or(i64::MAX));
    }

    pub(super) fn fill_began(&self) {
        self.fills.inc();
    }

    /// A fill that never had a place never began.
    pub(super) fn fill_ended(&self, how: FillLabel, had_begun: bool) {
        if had_begun {
            self.fills.dec();
        }
        self.fills_ended.with_label_values(&[how.as_str()]).inc();
    }

    pub(super) fn follower_came(&self) {
        self.followers.inc();
    }

    pub(super) fn follower_left(&self) {
        self.followers.dec();
    }

    /// A fill goes on from so many bytes of a former process.
    pub(super) fn resumed(&self, bytes: u64) {
        self.resumes.bytes.inc_by(bytes);
        self.remainder_ended(RemainderLabel::Resumed);
    }

    pub(super) fn remainder_ended(&self, how: RemainderLabel) {
        self.resumes
            .remainders
            .with_label_values(&[how.as_str()])
            .inc();
    }

    pub(super) fn evicted(&self, bytes: u64) {
        self.evictions.inc();
        self.evicted_bytes.inc_by(bytes);
    }

    pub(super) fn quarantined(&self) {
        self.quarantined.inc();
    }

    pub(super) fn scrubbed(&self, bytes: u64) {
        self.scrubbed_bytes.inc_by(bytes);
    }

    pub(super) fn scrub_ended(&self, unix_seconds: u64) {
        self.scrub_ended.set(signed(unix_seconds));
    }

    pub(super) fn disk_failed(&self, operation: &'static str) {
        self.disk_errors.with_label_values(&[operation]).inc();
    }

    /// Says whether the last write to the cache directory failed.
    pub(super) fn set_degraded(&self, degraded: bool) {
        self.degraded.set(i64::from(degraded));
    }
}

impl Collector for Room {
    fn desc(&self) -> Vec<&Desc> {
        let mut descriptions = self.bytes.desc();
        descriptions.extend(self.blobs.desc());
        descriptions
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _whole = self.whole.lock();
        let mut families = self.bytes.collect();
        families.extend(self.blobs.collect());
        families
    }
}

impl FillLabel {
    const ALL: [Self; 7] = [
        Self::Published,
        Self::Unpublished,
        Self::Mismatch,
        Self::NoRoom,
        Self::Disk,
        Self::Failed,
        Self::Abandoned,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Unpublished => "unpublished",
            Self::Mismatch => "mismatch",
            Self::NoRoom => "no_room",
            Self::Disk => "disk",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
        }
    }
}

impl Resumes {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let resumes = Self {
            bytes: IntCounter::new(
                "layerhold_resumed_bytes_total",
                "Bytes that a former process had staged and that were not fetched again",
            )?,
            remainders: IntCounterVec::new(
                Opts::new(
                    "layerhold_remainders_total",
                    "What fills of former processes had left, by what became of it",
                ),
                &["end"],
            )?,
        };
        registry.register(Box::new(resumes.bytes.clone()))?;
        registry.register(Box::new(resumes.remainders.clone()))?;
        for label in RemainderLabel::ALL {
            resumes.remainders.with_label_values(&[label.as_str()]);
        }
        Ok(resumes)
    }
}

impl RemainderLabel {
    const ALL: [Self; 3] = [Self::Resumed, Self::Damaged, Self::Dropped];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Resumed => "resumed",
            Self::Damaged => "damaged",
            Self::Dropped => "dropped",
        }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_scrape_has_the_figures_of_one_moment() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let scraped = || {
            let families = registry.gather();
            let bytes = families.iter();
            let mut bytes = bytes.filter(|it| it.name() == "layerhold_cache_bytes");
            let series = bytes.next().unwrap().get_metric().iter();
            series.map(|it| it.get_gauge().get_value()).sum::<f64>()
        };
        metrics.ledger(0, 100, 0, 0);
        thread::scope(|scope| {
            let moving = scope.spawn(|| {
                for n in 0..20_000 {
                    let used = n % 100;
                    metrics.ledger(used, 100 - used, 0, 0);
                }
            });
            while !moving.is_finished() {
                assert_eq!(scraped(), 100.0);
            }
        });
    }
}
