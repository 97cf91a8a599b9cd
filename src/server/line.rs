//! The one log line of a request, and what is counted with it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::{Level, enabled, info};

use super::metrics::{Labels, Series, end_label};
use super::shared::Connected;
use crate::net::{End, Identity, shown_path};
use crate::proxy::{Error, Route};

/// The one log line of a request, and what is counted with it; written when it is dropped.
pub(super) struct Line {
    id: RequestId,
    /// Who asks, as far as it is known.
    pub(super) client: IpAddr,
    /// Over which connection: of the client, or of a proxy.
    pub(super) connected: Arc<Connected>,
    /// Who that is to us.
    pub(super) identity: Identity,
    /// Who they say they are at the upstream, where that is for the upstream to judge.
    pub(super) caller: Option<String>,
    method: Method,
    /// Empty where nobody will read it.
    path: String,
    pub(super) labels: Labels,
    status: StatusCode,
    began: Instant,
    /// When the head was there, and where it was counted; `None` while there is none.
    answered: Option<(Duration, Arc<Series>)>,
    end: Option<(End, u64)>,
}

/// What a request is called in the log, which its client hears, too: sixteen digits.
struct RequestId([u8; 16]);

impl Line {
    pub(super) fn of(
        connected: &Arc<Connected>,
        request: &Request<Incoming>,
        route: &Result<Route, Error>,
    ) -> Self {
        let (front, peer) = (&connected.front, &connected.peer);
        let path = match enabled!(Level::INFO) {
            true => shown_path(request.uri().path(), PATH_SHOWN_MAX),
            false => String::new(),
        };
        Self {
            id: RequestId::random(),
            client: front.peers.client(peer.address.ip(), request.headers()),
            connected: Arc::clone(connected),
            identity: Identity::Anonymous,
            caller: None,
            method: request.method().clone(),
            path,
            labels: labels_of(route),
            status: *CLIENT_LEFT,
            began: Instant::now(),
            answered: None,
            end: None,
        }
    }

    /// What the request is called.
    pub(super) fn id(&self) -> &str {
        self.id.as_str()
    }

    /// The head is about to go out.
    pub(super) fn answered(&mut self, status: StatusCode, outcome: &'static str) {
        self.status = status;
        self.labels.outcome = outcome;
        self.count();
    }

    /// The body has ended.
    pub(super) fn ended(mut self, end: End, bytes: u64) {
        self.end = Some((end, bytes));
    }

    fn count(&mut self) -> Arc<Series> {
        let (metrics, recent) = (&self.connected.front.metrics, &self.connected.series);
        let series = recent.of(metrics, &self.labels, self.status);
        let waited = self.began.elapsed();
        series.answered(waited);
        self.answered = Some((waited, Arc::clone(&series)));
        series
    }
}

impl Drop for Line {
    /// Writes the line, once, whatever became of the request: a client that leaves before its answer leaves this.
    fn drop(&mut self) {
        let (end, bytes) = self.end.unwrap_or((End::Abandoned, 0));
        let (first_byte, series) = match self.answered.take() {
            Some((waited, series)) => (Some(waited), series),
            None => (None, self.count()),
        };
        self.connected.front.metrics.ended(&series, end, bytes);
        if !enabled!(target: TARGET, Level::INFO) {
            return;
        }
        let peer = &self.connected.peer;
        let client = match self.client == peer.address.ip() {
            true => Arc::clone(&peer.shown.host),
            false => self.client.to_string().into(),
        };
        info!(
            target: TARGET,
            request = self.id(),
            client = %client,
            peer = %peer.shown.address,
            tls = peer.is_tls,
            certificate = peer.certificate.as_deref(),
            identity = self.identity.name(),
            caller = self.caller,
            method = %shown_method(&self.method),
            path = self.path,
            upstream = self.labels.upstream(),
            endpoint = self.labels.endpoint,
            outcome = self.labels.outcome,
            status = self.status.as_u16(),
            bytes,
            first_byte_ms = first_byte.map(millis),
            total_ms = millis(self.began.elapsed()),
            end = end_label(end),
            "request"
        );
    }
}

impl RequestId {
    fn random() -> Self {
        let random = rand::random::<u64>();
        // The first digit is the highest.
        Self(std::array::from_fn(|at| {
            let nibble = random >> (60 - 4 * at) & 15;
            DIGITS.get(nibble as usize).copied().unwrap_or_default()
        }))
    }

    fn as_str(&self) -> &str {
        // Digits are text.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

fn labels_of(route: &Result<Route, Error>) -> Labels {
    let route = route.as_ref().ok();
    Labels {
        upstream: route.map(|it| it.registry.namespace().clone()),
        endpoint: route.map_or("none", |it| it.endpoint.label()),
        outcome: "none",
    }
}

/// Any word may be a method.
fn shown_method(method: &Method) -> Cow<'_, str> {
    match *method {
        Method::GET | Method::HEAD => Cow::Borrowed(method.as_str()),
        _ => Cow::Owned(shown_path(method.as_str(), METHOD_SHOWN_MAX)),
    }
}

/// Milliseconds with a fraction: hits take less than one.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// What is logged of a request whose client left before it was answered; nginx's number for it, which no client sees.
static CLIENT_LEFT: LazyLock<StatusCode> =
    LazyLock::new(|| StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT));
/// Where operators know the lines from.
const TARGET: &str = "layerhold::server::handle";
const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// How much of a path a log line shows: more than the longest valid one.
const PATH_SHOWN_MAX: usize = 600;
/// More than any method has.
const METHOD_SHOWN_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_called_by_sixteen_digits() {
        let ids: [RequestId; 64] = std::array::from_fn(|_| RequestId::random());
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        assert!(ids.iter().all(|it| it.as_str().bytes().all(is_digit)));
        // Each place takes more than one value.
        for at in 0..16 {
            assert!(ids.iter().any(|it| it.0[at] != ids[0].0[at]), "{at}");
        }
    }
}
