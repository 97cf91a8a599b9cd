//! The one seam: every request passes here, and what is counted and logged about it is counted and logged here, when its
//! response has ended.

use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::FutureExt;
use http::header::{AUTHORIZATION, CONNECTION, HeaderValue};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::access::{Access, Issued, Refusal, Visit, Wish};
use super::body::ResponseBody;
use super::callers::{Callers, Turned};
use super::connection::ConnectionHandle;
use super::limits::Limits;
use super::metrics::{Labels, Metrics, Rejection, end_label};
use super::outgoing::{OnEnd, Outgoing};
use super::peer::Peer;
use super::peers::Peers;
use super::respond::{self, Wanted};
use super::sources::Serving;
use crate::net::{Chain, End, Identity, InvalidFraming, check_framing, requested_host, shown_path};
use crate::oci::{Endpoint, OCI_NAMESPACE};
use crate::proxy::{Answer, Caller, Error, Method, Proxy, Pull, RequestFault, Requested, Route};

/// What all requests share.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) proxy: Arc<Proxy>,
    pub(super) metrics: Metrics,
    pub(super) peers: Peers,
    pub(super) access: Arc<Access>,
    pub(super) limits: Limits,
    pub(super) callers: Callers,
}

/// The one log line of a request, and what is counted with it; written when it is dropped.
struct Line {
    id: String,
    /// Who asks, as far as it is known.
    client: IpAddr,
    /// The other end of the connection: the client, or a proxy.
    peer: Peer,
    /// Who that is to us.
    identity: Identity,
    /// Who they say they are at the upstream, where that is for the upstream to judge.
    caller: Option<String>,
    method: String,
    path: String,
    labels: Labels,
    status: StatusCode,
    began: Instant,
    /// `None` while there is no head.
    first_byte: Option<Duration>,
    end: Option<(End, u64)>,
    metrics: Metrics,
}

/// What a request that is let in gets.
enum Admitted {
    /// What it pulls, as this caller.
    Pull(Caller),
    Token(Issued),
}

/// Answers one request.
pub(super) async fn handle(
    front: Arc<Front>,
    peer: Peer,
    connection: ConnectionHandle,
    serving: Serving,
    request: Request<Incoming>,
) -> Result<Response<Outgoing>, Infallible> {
    let id = format!("{:016x}", rand::random::<u64>());
    let requested = requested(&request, &connection);
    let route = requested.and_then(|it| front.proxy.route(it));
    let mut line = Line::of(&front, peer, &request, &route, id);
    let answering = AssertUnwindSafe(answer(&front, &request, &route, &mut line)).catch_unwind();
    let answered = Box::pin(answering).await;
    let (response, outcome) = answered.unwrap_or_else(|_| {
        error!(request = line.id, "a request's code panicked");
        (respond::panicked(), "failed")
    });
    let is_head = request.method() == http::Method::HEAD;
    let response = if is_head {
        respond::without_body(response)
    } else {
        response
    };
    let (mut head, body) = response.into_parts();
    let value = HeaderValue::from_str(&line.id).ok();
    head.headers.extend(value.map(|value| (REQUEST_ID, value)));
    if method(request.method()).is_none() {
        // What comes behind a write is its body, which nobody wants, whoever it is that refuses it.
        let close = HeaderValue::from_static("close");
        head.headers.insert(CONNECTION, close);
    }
    if let Ok(Route {
        namespace: Some(namespace),
        ..
    }) = &route
    {
        let value = HeaderValue::from_str(namespace).ok();
        head.headers
            .extend(value.map(|value| (OCI_NAMESPACE, value)));
    }
    line.answered(head.status, outcome);
    let ending = connection.clone();
    let on_end: OnEnd = Box::new(move |end, bytes| {
        if end == End::Failed {
            ending.break_off();
        }
        line.ended(end, bytes);
        ending.has_answered();
        drop(serving);
    });
    let body = Outgoing::new(body, &connection, on_end);
    Ok(Response::from_parts(head, body))
}

async fn answer(
    front: &Front,
    request: &Request<Incoming>,
    route: &Result<Route, Error>,
    line: &mut Line,
) -> (Response<ResponseBody>, &'static str) {
    // Finding out who asks counts, too.
    let deadline = front.proxy.deadline();
    if let Err(error @ Error::Request(RequestFault::Host(_) | RequestFault::Framing(_))) = route {
        // What may mean another host, or end elsewhere, to somebody on the way is not looked at further.
        front.metrics.rejected(Rejection::Ambiguous);
        log_error(&line.id, error);
        return (respond::error(error, None), "refused");
    }
    let caller = match admit(front, request, route, line, deadline).await {
        Ok(Admitted::Pull(caller)) => caller,
        Ok(Admitted::Token(issued)) => return (respond::token(&issued), "none"),
        Err(Turned::Refused(refusal)) => {
            let status = refusal.status();
            debug!(request = line.id, %status, "request not admitted");
            return (respond::refusal(&refusal), "refused");
        }
        Err(Turned::Failed(error)) => {
            log_error(&line.id, &error);
            return (respond::error(&error, None), "failed");
        }
    };
    let namespace = route
        .as_ref()
        .ok()
        .map(|it| it.registry.namespace().as_str());
    let pulled = match (method(request.method()), route) {
        // What is no endpoint says so whatever the method; an upload's path is none either, and is refused as a write.
        (None, _) => Err(Error::Request(RequestFault::Method)),
        (Some(_), Err(error)) => Err(error.clone()),
        (Some(Method::Get), Ok(_)) if respond::asks_too_many_ranges(request.headers()) => {
            Err(Error::Request(RequestFault::Ranges))
        }
        (Some(method), Ok(route)) => {
            let pull = Pull {
                method,
                registry: Arc::clone(&route.registry),
                endpoint: route.endpoint.clone(),
                asked: route.asked.clone(),
                caller,
                deadline,
            };
            respond_to(front, &pull, request, line).await
        }
    };
    match pulled {
        Ok(answered) => answered,
        Err(error) => {
            log_error(&line.id, &error);
            let is_too_often = matches!(error, Error::TooOften { .. });
            let outcome = if error.status().is_server_error() && !is_too_often {
                "failed"
            } else {
                "refused"
            };
            let mut response = respond::error(&error, namespace);
            let callers = route.as_ref().ok().filter(|it| it.registry.is_callers());
            if let Some(route) = callers.filter(|_| error.status() == StatusCode::UNAUTHORIZED) {
                let visit = visit(front, request, Some(route), (&line.peer, line.client));
                let challenge = front.callers.challenge(visit, route);
                respond::challenge(&mut response, &challenge);
            }
            (response, outcome)
        }
    }
}

/// Finds out who a request is by, and whether they may; a request for a token is answered by one.
async fn admit(
    front: &Front,
    request: &Request<Incoming>,
    route: &Result<Route, Error>,
    line: &mut Line,
    deadline: Instant,
) -> Result<Admitted, Turned> {
    let (route, is_read) = (route.as_ref().ok(), method(request.method()).is_some());
    let theirs = visit(front, request, route, (&line.peer, line.client));
    let (mut own, nothing) = (theirs, HeaderMap::new());
    let has_callers = front.proxy.has_callers();
    if has_callers {
        // Whatever is shown is for an upstream.
        own.headers = &nothing;
    }
    if request.uri().path() == TOKEN_PATH && (has_callers || front.access.authenticates()) {
        line.labels.endpoint = "token";
        if !is_read {
            return Err(Refusal::Method.into());
        }
        let query = request.uri().query();
        let issued = if has_callers {
            let authenticated = front.access.authenticate(own).await?;
            line.identity = authenticated.identity.clone();
            // Each costs the upstream some.
            let turn = front.limits.turn((line.client, &line.identity), deadline);
            turn.await.map_err(Turned::Failed)?;
            let callers = &front.callers;
            let exchange = callers.exchange(&front.proxy, theirs, &authenticated, query);
            let (caller, issued) = exchange.await?;
            line.caller = user(&caller);
            issued
        } else {
            let (authenticated, issued) = front.access.exchange(own, query).await?;
            line.identity = authenticated.identity;
            issued
        };
        return Ok(Admitted::Token(issued));
    }
    let authenticated = front.access.authenticate(own).await?;
    // Where callers come, a ping is about who they are at the upstreams.
    let judged = route.filter(|it| !has_callers || it.endpoint.name().is_some());
    let admitted = judged.map_or(Ok(()), |route| {
        let wish = Wish {
            upstream: route.registry.namespace(),
            endpoint: &route.endpoint,
            name: &route.asked.name,
        };
        front.access.judge(own, &authenticated, wish)
    });
    line.identity = authenticated.identity;
    admitted?;
    let caller = match route.filter(|_| has_callers && is_read) {
        Some(route) => {
            // A login without a token costs the upstream some, too.
            if route.endpoint == Endpoint::Ping && theirs.headers.contains_key(AUTHORIZATION) {
                let turn = front.limits.turn((line.client, &line.identity), deadline);
                turn.await.map_err(Turned::Failed)?;
            }
            front.callers.caller(&front.proxy, theirs, route).await?
        }
        None => Caller::Anyone,
    };
    line.caller = user(&caller);
    Ok(Admitted::Pull(caller))
}

/// What of a request says who it is by.
fn visit<'a>(
    front: &Front,
    request: &'a Request<Incoming>,
    route: Option<&'a Route>,
    (peer, client): (&'a Peer, IpAddr),
) -> Visit<'a> {
    let headers = request.headers();
    Visit {
        headers,
        peer,
        client,
        is_https: front.peers.is_https(peer, headers),
        // It was looked at before.
        host: requested_host(request.version(), request.uri(), headers).unwrap_or_default(),
        namespace: route.and_then(|it| it.namespace.as_deref()),
    }
}

/// The name of a caller, for the log. Nobody has looked at it yet.
fn user(caller: &Caller) -> Option<String> {
    let credential = caller.credential();
    credential.map(|it| shown_path(it.username(), NAME_SHOWN_MAX))
}

async fn respond_to(
    front: &Front,
    pull: &Pull,
    request: &Request<Incoming>,
    line: &Line,
) -> Result<(Response<ResponseBody>, &'static str), Error> {
    if pull.endpoint != Endpoint::Ping {
        let who = (line.client, &line.identity);
        front.limits.turn(who, pull.deadline).await?;
    }
    let answer = front.proxy.pull(pull).await?;
    let outcome = match &answer {
        Answer::Pong => "none",
        Answer::Content(content) => content.outcome.label(),
        Answer::Listing(listing) => listing.outcome.label(),
    };
    let wanted = Wanted {
        method: pull.method,
        headers: request.headers(),
        version: request.version(),
        deadline: pull.deadline,
    };
    Ok((respond::answer(answer, wanted).await?, outcome))
}

impl Line {
    fn of(
        front: &Front,
        peer: Peer,
        request: &Request<Incoming>,
        route: &Result<Route, Error>,
        id: String,
    ) -> Self {
        Self {
            id,
            client: front.peers.client(peer.address.ip(), request.headers()),
            peer,
            identity: Identity::Anonymous,
            caller: None,
            method: shown_path(request.method().as_str(), METHOD_SHOWN_MAX),
            path: shown_path(request.uri().path(), PATH_SHOWN_MAX),
            labels: labels_of(route),
            status: *CLIENT_LEFT,
            began: Instant::now(),
            first_byte: None,
            end: None,
            metrics: front.metrics.clone(),
        }
    }

    /// The head is about to go out.
    fn answered(&mut self, status: StatusCode, outcome: &'static str) {
        self.status = status;
        self.labels.outcome = outcome;
        let waited = self.began.elapsed();
        self.first_byte = Some(waited);
        self.metrics.answered(&self.labels, status, waited);
    }

    /// The body has ended.
    fn ended(mut self, end: End, bytes: u64) {
        self.end = Some((end, bytes));
    }
}

impl Drop for Line {
    /// Writes the line, once, whatever became of the request: a client that leaves before its answer leaves this.
    fn drop(&mut self) {
        let (end, bytes) = self.end.unwrap_or((End::Abandoned, 0));
        if self.first_byte.is_none() {
            self.metrics
                .answered(&self.labels, self.status, self.began.elapsed());
        }
        self.metrics.ended(&self.labels, end, bytes);
        info!(
            request = self.id,
            client = %self.client,
            peer = %self.peer.address,
            tls = self.peer.is_tls,
            certificate = self.peer.certificate.as_deref(),
            identity = self.identity.name(),
            caller = self.caller,
            method = %self.method,
            path = self.path,
            upstream = self.labels.upstream,
            endpoint = self.labels.endpoint,
            outcome = self.labels.outcome,
            status = self.status.as_u16(),
            bytes,
            first_byte_ms = self.first_byte.map(millis),
            total_ms = millis(self.began.elapsed()),
            end = end_label(end),
            "request"
        );
    }
}

/// What is logged of a request whose client left before it was answered; nginx's number for it, which no client sees.
static CLIENT_LEFT: LazyLock<StatusCode> =
    LazyLock::new(|| StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT));
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Where tokens are asked for; a path of no registry's.
const TOKEN_PATH: &str = "/token";
/// How much of a path a log line shows: more than the longest valid one.
const PATH_SHOWN_MAX: usize = 600;
/// More than any method has.
const METHOD_SHOWN_MAX: usize = 32;
/// More than any user's name has.
const NAME_SHOWN_MAX: usize = 200;

fn requested<'a>(
    request: &'a Request<Incoming>,
    connection: &ConnectionHandle,
) -> Result<Requested<'a>, Error> {
    let invalid = |invalid: InvalidFraming| Error::Request(invalid.into());
    check_framing(request.method(), request.headers()).map_err(invalid)?;
    if method(request.method()).is_some() && connection.has_bare_feed() {
        return Err(invalid(InvalidFraming::LineFeed));
    }
    let uri = request.uri();
    let host = requested_host(request.version(), uri, request.headers());
    Ok(Requested {
        path: uri.path(),
        query: uri.query(),
        host: host.map_err(|invalid| Error::Request(invalid.into()))?,
    })
}

fn method(method: &http::Method) -> Option<Method> {
    match *method {
        http::Method::GET => Some(Method::Get),
        http::Method::HEAD => Some(Method::Head),
        _ => None,
    }
}

fn labels_of(route: &Result<Route, Error>) -> Labels {
    match route {
        Ok(Route {
            registry, endpoint, ..
        }) => Labels {
            upstream: registry.namespace().as_str().to_owned(),
            endpoint: endpoint.label(),
            outcome: "none",
        },
        Err(_) => Labels {
            upstream: "none".to_owned(),
            endpoint: "none",
            outcome: "none",
        },
    }
}

/// At the level that the cause deserves.
fn log_error(id: &str, error: &Error) {
    let chain = Chain(error);
    match error.status() {
        // The line of the request says so; whoever asks too often would write two.
        _ if matches!(error, Error::TooOften { .. }) => {
            debug!(request = id, error = %chain, "request refused");
        }
        _ if matches!(error, Error::Denied(_)) => {
            info!(request = id, error = %chain, "refused by a rule");
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            info!(request = id, error = %chain, "refused by upstream");
        }
        status if status == StatusCode::INTERNAL_SERVER_ERROR => {
            error!(request = id, error = %chain, "request failed");
        }
        status if status.is_server_error() => warn!(request = id, error = %chain, "request failed"),
        _ => debug!(request = id, error = %chain, "request refused"),
    }
}

/// Milliseconds with a fraction: hits take less than one.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Secret;
    use crate::upstream::Credential;

    #[test]
    fn a_callers_name_is_visible_and_bounded() {
        for (name, shown) in [
            ("ann", "ann"),
            ("robot$a+b", "robot$a+b"),
            ("a\n\u{202e}b", "a%0A%E2%80%AEb"),
            (&"x".repeat(10_000), &"x".repeat(NAME_SHOWN_MAX)),
        ] {
            let credential = Credential::new(name, Secret::new("hush"));
            let caller = Caller::Own(Arc::new(credential));
            assert_eq!(user(&caller).as_deref(), Some(shown));
        }
    }
}
