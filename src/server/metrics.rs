//! What is counted about requests and their responses.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::port::TlsPort;
use crate::net::{End, total};
use crate::oci::Namespace;
use crate::proxy::Outcome;

/// The front's metrics; clones count into the same series.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    first_byte: HistogramVec,
    bytes: IntCounterVec,
    from_files: IntCounter,
    responses: Responses,
    connections: IntGauge,
    connections_limit: IntGauge,
    accept_errors: IntCounterVec,
    tls: TlsMetrics,
    authentications: IntCounterVec,
    denied: IntCounterVec,
    refusals: IntCounterVec,
}

/// Responses that have ended.
#[derive(Clone, Debug)]
struct Responses {
    complete: IntCounter,
    failed: IntCounter,
    abandoned: IntCounter,
}

/// Where a request with these labels counts.
#[derive(Debug)]
pub(super) struct Series {
    labels: Labels,
    status: StatusCode,
    requests: IntCounter,
    first_byte: Histogram,
    bytes: IntCounter,
}

/// The series in which the latest requests of a connection were counted, in which the next ones mostly are, too: finding
/// one among all that there are costs more than counting.
#[derive(Debug, Default)]
pub(super) struct RecentSeries(Mutex<VecDeque<Arc<Series>>>);

/// What is counted of TLS with clients.
#[derive(Clone, Debug)]
struct TlsMetrics {
    handshakes: IntCounterVec,
    certificate_expiry: IntGaugeVec,
}

/// How it ended that TLS was to be spoken with somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandshakeEnd {
    /// It is.
    Complete,
    /// Nothing was said.
    Silent,
    /// Something else was said.
    Plain,
    /// It took too long.
    Slow,
    /// Because of what certificate was shown, or that none was.
    Certificate,
    /// For any other reason.
    Failed,
}

/// What became of finding out who a request is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Authentication {
    /// It shows nothing, or a token of nobody's.
    Anonymous,
    /// By somebody with a password, or with a token that was given for it.
    Password,
    /// By somebody with a token of the operator's.
    Token,
    /// By somebody with a certificate.
    Certificate,
    /// What it shows is wrong.
    Wrong,
    /// Its token's time is over.
    Void,
    /// Too many passwords are being checked.
    Busy,
}

/// What was refused before anybody looked at what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// A head that cannot be read, or is too large.
    Head,
    /// A request of which nobody can say for which host it is, or where it ends.
    Ambiguous,
    /// A connection from a source that has as many as it may.
    ConnectionsPerSource,
    /// A request from a source that asks too often.
    RequestsPerSource,
    /// A request by somebody who asks too often.
    RequestsPerIdentity,
    /// A password from a source where many were wrong.
    FailedAuthentications,
}

/// Why a connection could not be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptFault {
    /// All descriptors are in use: ours, or the machine's.
    Descriptors,
    /// The kernel has no memory for a socket.
    Memory,
    /// The connection was over before it was accepted; the next one may do.
    Connection,
    /// Anything else.
    Other,
}

/// Which request a figure is about. Every value is of a closed set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Labels {
    /// A configured namespace.
    pub(super) upstream: Option<Namespace>,
    pub(super) endpoint: &'static str,
    pub(super) outcome: &'static str,
}

impl Responses {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let responses = by_label(
            registry,
            "layerhold_responses_total",
            "Responses that ended, by how",
            "end",
            &[End::Complete, End::Failed, End::Abandoned].map(end_label),
        )?;
        let ended = |end| responses.with_label_values(&[end_label(end)]);
        Ok(Self {
            complete: ended(End::Complete),
            failed: ended(End::Failed),
            abandoned: ended(End::Abandoned),
        })
    }
}

impl Labels {
    /// A configured namespace, or `none`.
    pub(super) fn upstream(&self) -> &str {
        self.upstream.as_ref().map_or("none", Namespace::as_str)
    }
}

impl Series {
    /// The head of a response was there after this time.
    pub(super) fn answered(&self, waited: Duration) {
        self.requests.inc();
        self.first_byte.observe(waited.as_secs_f64());
    }
}

impl RecentSeries {
    /// Where a request with these labels counts.
    pub(super) fn of(&self, metrics: &Metrics, labels: &Labels, status: StatusCode) -> Arc<Series> {
        let mut recent = self.0.lock();
        let known = recent
            .iter()
            .find(|it| it.status == status && it.labels == *labels);
        if let Some(known) = known {
            return Arc::clone(known);
        }
        let series = Arc::new(metrics.series(labels, status));
        recent.truncate(RECENT_MAX - 1);
        recent.push_front(Arc::clone(&series));
        series
    }
}

impl Metrics {
    /// Makes the series and registers them.
    ///
    /// # Errors
    ///
    /// When one of the names is already taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let buckets = vec![
            0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0,
        ];
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("layerhold_requests_total", "Requests answered"),
                &["upstream", "endpoint", "outcome", "status"],
            )?,
            first_byte: HistogramVec::new(
                HistogramOpts::new(
                    "layerhold_request_first_byte_seconds",
                    "From a request to the head of its response",
                )
                .buckets(buckets),
                &["endpoint", "outcome"],
            )?,
            bytes: IntCounterVec::new(
                Opts::new(
                    "layerhold_response_bytes_total",
                    "Body bytes sent to clients",
                ),
                &["upstream", "endpoint", "outcome"],
            )?,
            from_files: IntCounter::new(
                "layerhold_response_sendfile_bytes_total",
                "Body bytes that the kernel sent from files",
            )?,
            responses: Responses::register(registry)?,
            connections: IntGauge::new("layerhold_connections", "Open client connections")?,
            connections_limit: IntGauge::new(
                "layerhold_connections_limit",
                "Client connections that are taken at once",
            )?,
            accept_errors: by_label(
                registry,
                "layerhold_accept_errors_total",
                "Times that no connection could be accepted, by why",
                "reason",
                &AcceptFault::ALL.map(AcceptFault::label),
            )?,
            tls: TlsMetrics::register(registry)?,
            authentications: by_label(
                registry,
                "layerhold_authentications_total",
                "Requests that were asked who they are by, by what they showed",
                "result",
                &Authentication::ALL.map(Authentication::label),
            )?,
            denied: by_label(
                registry,
                "layerhold_access_denied_total",
                "Requests that the access rules denied",
                "identity",
                &[kind(true), kind(false)],
            )?,
            refusals: by_label(
                registry,
                "layerhold_refusals_total",
                "Requests and connections refused whatever they ask for, by why",
                "reason",
                &Rejection::ALL.map(Rejection::label),
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.first_byte.clone()))?;
        registry.register(Box::new(metrics.from_files.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_limit.clone()))?;
        Ok(metrics)
    }

    /// Body bytes sent to clients since the start.
    pub fn sent_bytes(&self) -> u64 {
        total(&self.bytes, None)
    }

    /// Those of them that needed no transfer from an upstream.
    pub fn saved_bytes(&self) -> u64 {
        total(&self.bytes, Some(("outcome", &SAVING)))
    }

    /// A response has ended whose head was counted there.
    pub(super) fn ended(&self, series: &Series, end: End, bytes: u64) {
        let ended = match end {
            End::Complete => &self.responses.complete,
            End::Failed => &self.responses.failed,
            End::Abandoned => &self.responses.abandoned,
        };
        ended.inc();
        series.bytes.inc_by(bytes);
    }

    fn series(&self, labels: &Labels, status: StatusCode) -> Series {
        let Labels {
            upstream: _,
            endpoint,
            outcome,
        } = labels;
        let upstream = labels.upstream();
        Series {
            requests: self.requests.with_label_values(&[
                upstream,
                endpoint,
                outcome,
                status.as_str(),
            ]),
            first_byte: self.first_byte.with_label_values(&[*endpoint, *outcome]),
            bytes: self
                .bytes
                .with_label_values(&[upstream, *endpoint, *outcome]),
            labels: labels.clone(),
            status,
        }
    }

    pub(super) fn takes_at_once(&self, connections: usize) {
        let limit = i64::try_from(connections).unwrap_or(i64::MAX);
        self.connections_limit.set(limit);
    }

    pub(super) fn not_accepted(&self, fault: AcceptFault) {
        let label = fault.label();
        self.accept_errors.with_label_values(&[label]).inc();
    }

    pub(super) fn authenticated(&self, authentication: Authentication) {
        let label = authentication.label();
        self.authentications.with_label_values(&[label]).inc();
    }

    pub(super) fn denied(&self, is_anonymous: bool) {
        self.denied.with_label_values(&[kind(is_anonymous)]).inc();
    }

    pub(super) fn rejected(&self, rejection: Rejection) {
        let label = rejection.label();
        self.refusals.with_label_values(&[label]).inc();
    }

    pub(super) fn shook(&self, port: TlsPort, end: HandshakeEnd) {
        let labels = [port.label(), end.label()];
        self.tls.handshakes.with_label_values(&labels).inc();
    }

    /// A port shows a certificate from now on; with it come the series of its handshakes.
    pub(super) fn shows_certificate(&self, port: TlsPort, expiry: i64) {
        let series = self
            .tls
            .certificate_expiry
            .with_label_values(&[port.label()]);
        series.set(expiry);
        for end in HandshakeEnd::ALL {
            let labels = [port.label(), end.label()];
            self.tls.handshakes.with_label_values(&labels);
        }
    }

    pub(super) fn sent_from_file(&self, bytes: u64) {
        self.from_files.inc_by(bytes);
    }

    pub(super) fn connected(&self) {
        self.connections.inc();
    }

    pub(super) fn disconnected(&self) {
        self.connections.dec();
    }
}

impl Authentication {
    const ALL: [Self; 7] = [
        Self::Anonymous,
        Self::Password,
        Self::Token,
        Self::Certificate,
        Self::Wrong,
        Self::Void,
        Self::Busy,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Password => "password",
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::Wrong => "wrong",
            Self::Void => "void",
            Self::Busy => "busy",
        }
    }
}

/// A counter with a series for each value of its only label, from the start.
fn by_label(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
    registry.register(Box::new(counter.clone()))?;
    for value in values {
        counter.with_label_values(&[*value]);
    }
    Ok(counter)
}

/// Whom a request was by, as a label: no name is one.
const fn kind(is_anonymous: bool) -> &'static str {
    if is_anonymous { "anonymous" } else { "named" }
}

impl AcceptFault {
    const ALL: [Self; 4] = [
        Self::Descriptors,
        Self::Memory,
        Self::Connection,
        Self::Other,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Connection => "connection",
            Self::Other => "other",
        }
    }
}

impl TlsMetrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            handshakes: IntCounterVec::new(
                Opts::new(
                    "layerhold_tls_handshakes_total",
                    "TLS handshakes with clients that ended, by how",
                ),
                &["port", "end"],
            )?,
            certificate_expiry: IntGaugeVec::new(
                Opts::new(
                    "layerhold_tls_certificate_expiry_timestamp_seconds",
                    "When the certificate that a port shows is no longer good, in seconds since 1970",
                ),
                &["port"],
            )?,
        };
        registry.register(Box::new(metrics.handshakes.clone()))?;
        registry.register(Box::new(metrics.certificate_expiry.clone()))?;
        Ok(metrics)
    }
}

impl HandshakeEnd {
    const ALL: [Self; 6] = [
        Self::Complete,
        Self::Silent,
        Self::Plain,
        Self::Slow,
        Self::Certificate,
        Self::Failed,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Silent => "silent",
            Self::Plain => "plain",
            Self::Slow => "slow",
            Self::Certificate => "certificate",
            Self::Failed => "failed",
        }
    }
}

impl Rejection {
    const ALL: [Self; 6] = [
        Self::Head,
        Self::Ambiguous,
        Self::ConnectionsPerSource,
        Self::RequestsPerSource,
        Self::RequestsPerIdentity,
        Self::FailedAuthentications,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Ambiguous => "ambiguous",
            Self::ConnectionsPerSource => "connections_per_source",
            Self::RequestsPerSource => "requests_per_source",
            Self::RequestsPerIdentity => "requests_per_identity",
            Self::FailedAuthentications => "failed_authentications",
        }
    }
}

/// As many kinds of requests as a puller mostly makes.
const RECENT_MAX: usize = 8;
/// The outcomes of pulls whose bytes did not come from an upstream for them: they were here, or on their way for another.
const SAVING: [&str; 4] = [
    Outcome::Hit.label(),
    Outcome::Revalidated.label(),
    Outcome::Join.label(),
    Outcome::Stale.label(),
];

/// A response's end as a label.
pub(super) const fn end_label(end: End) -> &'static str {
    match end {
        End::Complete => "complete",
        End::Failed => "failed",
        End::Abandoned => "abandoned",
    }
}
