//! What is counted between us and the upstream registries.

use std::time::Duration;

use http::StatusCode;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::net::total;

/// The metrics of all upstreams; clones count into the same series.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    first_byte: HistogramVec,
    bytes: IntCounterVec,
    retries: IntCounterVec,
    quota: IntGaugeVec,
    quota_limit: IntGaugeVec,
    resting: IntGaugeVec,
    unasked: IntCounterVec,
    tokens: IntCounterVec,
}

impl Metrics {
    /// Makes the series and registers them.
    ///
    /// # Errors
    ///
    /// When one of the names is already taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let buckets = vec![0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "layerhold_upstream_requests_total",
                    "Requests sent upstream, by answer; status `error` had none",
                ),
                &["upstream", "endpoint", "status"],
            )?,
            first_byte: HistogramVec::new(
                HistogramOpts::new(
                    "layerhold_upstream_first_byte_seconds",
                    "From sending a request upstream to its response head",
                )
                .buckets(buckets),
                &["upstream"],
            )?,
            bytes: IntCounterVec::new(
                Opts::new(
                    "layerhold_upstream_bytes_total",
                    "Body bytes received from upstream",
                ),
                &["upstream"],
            )?,
            retries: IntCounterVec::new(
                Opts::new(
                    "layerhold_upstream_retries_total",
                    "Requests sent again, by reason",
                ),
                &["upstream", "reason"],
            )?,
            quota: gauges(
                "layerhold_upstream_quota_remaining",
                "Pulls that upstream lets us have yet, as it last said",
            )?,
            quota_limit: gauges(
                "layerhold_upstream_quota_limit",
                "Pulls that upstream lets us have in all, as it last said",
            )?,
            resting: gauges(
                "layerhold_upstream_resting",
                "Hosts of an upstream that are left alone because they do not answer",
            )?,
            unasked: IntCounterVec::new(
                Opts::new(
                    "layerhold_upstream_unasked_total",
                    "Requests not sent because the host is left alone",
                ),
                &["upstream"],
            )?,
            tokens: IntCounterVec::new(
                Opts::new(
                    "layerhold_tokens_total",
                    "Tokens asked of the upstreams' token servers",
                ),
                &["upstream", "result"],
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.tokens.clone()))?;
        registry.register(Box::new(metrics.quota.clone()))?;
        registry.register(Box::new(metrics.quota_limit.clone()))?;
        registry.register(Box::new(metrics.resting.clone()))?;
        registry.register(Box::new(metrics.unasked.clone()))?;
        registry.register(Box::new(metrics.first_byte.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        Ok(metrics)
    }

    /// Body bytes received since the start, from all upstreams.
    pub fn received_bytes(&self) -> u64 {
        total(&self.bytes, None)
    }

    pub(super) fn answered(
        &self,
        upstream: &str,
        endpoint: &str,
        status: Option<StatusCode>,
        waited: Duration,
    ) {
        let status = status.as_ref().map_or("error", StatusCode::as_str);
        self.requests
            .with_label_values(&[upstream, endpoint, status])
            .inc();
        self.first_byte
            .with_label_values(&[upstream])
            .observe(waited.as_secs_f64());
    }

    pub(super) fn bytes_from(&self, upstream: &str) -> IntCounter {
        self.bytes.with_label_values(&[upstream])
    }

    /// What upstream says of how much it lets us have: what is left, and in all.
    pub(super) fn quota(&self, upstream: &str, (remaining, limit): (Option<i64>, Option<i64>)) {
        for (gauge, said) in [(&self.quota, remaining), (&self.quota_limit, limit)] {
            if let Some(said) = said {
                gauge.with_label_values(&[upstream]).set(said);
            }
        }
    }

    /// The hosts of an upstream that rest, and what was not asked of them.
    pub(super) fn rests(&self, upstream: &str) -> (IntGauge, IntCounter) {
        let resting = self.resting.with_label_values(&[upstream]);
        (resting, self.unasked.with_label_values(&[upstream]))
    }

    pub(super) fn exchanged(&self, upstream: &str, succeeded: bool) {
        let result = if succeeded { "ok" } else { "failed" };
        self.tokens.with_label_values(&[upstream, result]).inc();
    }

    pub(super) fn retried(&self, upstream: &str, reason: &str) {
        self.retries.with_label_values(&[upstream, reason]).inc();
    }
}

/// A gauge of each upstream.
fn gauges(name: &str, help: &str) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), &["upstream"])
}
