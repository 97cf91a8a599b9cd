//! What is counted between us and the upstream registries.

use std::time::Duration;

use http::StatusCode;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
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
            quota: IntGaugeVec::new(
                Opts::new(
                    "layerhold_upstream_quota_remaining",
                    "Pulls that upstream lets us have yet, as it last said",
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

    pub(super) fn quota(&self, upstream: &str, remaining: i64) {
        self.quota.with_label_values(&[upstream]).set(remaining);
    }

    pub(super) fn exchanged(&self, upstream: &str, succeeded: bool) {
        let result = if succeeded { "ok" } else { "failed" };
        self.tokens.with_label_values(&[upstream, result]).inc();
    }

    pub(super) fn retried(&self, upstream: &str, reason: &str) {
        self.retries.with_label_values(&[upstream, reason]).inc();
    }
}
