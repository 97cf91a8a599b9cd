//! The one seam: every request passes here, and what is counted and logged about it is counted and logged here, when its
//! response has ended.

use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::header::{AUTHORIZATION, CONNECTION, HeaderValue};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::access::{Issued, Refusal, Visit, Wish};
use super::body::ResponseBody;
use super::callers::Turned;
use super::connection::ConnectionHandle;
use super::limits::Limits;
use super::line::Line;
use super::metrics::Rejection;
use super::outgoing::{OnEnd, Outgoing};
use super::peer::Peer;
use super::respond::{self, Wanted};
use super::shared::{Connected, Front};
use super::sources::Serving;
use crate::net::{Chain, End, InvalidFraming, check_framing, requested_host, shown_path};
use crate::oci::{Endpoint, OCI_NAMESPACE};
use crate::proxy::{Answer, Caller, Error, Method, Pull, RequestFault, Requested, Route};

/// What is asked.
#[derive(Clone, Copy)]
struct Asking<'a> {
    front: &'a Front,
    request: &'a Request<Incoming>,
    /// The host that is asked, where that can be said.
    host: Option<&'a str>,
    route: &'a Result<Route, Error>,
    deadline: Instant,
}

/// What was found out of a request before it had to wait for anything.
#[derive(Default)]
struct Begun {
    /// Whether it was let in, as anyone's.
    is_admitted: bool,
    /// After how long its turn comes, where it has one.
    turn: Option<Duration>,
}

/// A response, and how it came about.
type Answered = (Response<ResponseBody>, &'static str);

/// What a request that is let in gets.
enum Admitted {
    /// What it pulls, as this caller.
    Pull(Caller),
    Token(Issued),
}

/// Answers one request.
pub(super) async fn handle(
    connected: Arc<Connected>,
    connection: Arc<ConnectionHandle>,
    serving: Serving,
    request: Request<Incoming>,
) -> Result<Response<Outgoing>, Infallible> {
    let front = &connected.front;
    let requested = requested(&request, &connection);
    let host = requested.as_ref().ok().and_then(|it| it.host);
    let route = requested.and_then(|it| front.proxy.route(it));
    let mut line = Line::of(&connected, &request, &route);
    let asking = Asking {
        front,
        request: &request,
        host,
        route: &route,
        // Finding out who asks counts, too.
        deadline: front.proxy.deadline(),
    };
    let mut begun = Begun::default();
    let at_once = AssertUnwindSafe(|| answer_at_once(asking, &mut line, &mut begun));
    let answered = match catch_unwind(at_once) {
        Ok(Some(answered)) => Ok(answered),
        Ok(None) => {
            let answering = AssertUnwindSafe(answer(asking, &mut line, begun));
            Box::pin(answering.catch_unwind()).await
        }
        Err(panicked) => Err(panicked),
    };
    let (response, outcome) = answered.unwrap_or_else(|_| {
        error!(request = line.id(), "a request's code panicked");
        (respond::panicked(), "failed")
    });
    let is_head = request.method() == http::Method::HEAD;
    let response = if is_head {
        respond::without_body(response)
    } else {
        response
    };
    let (mut head, body) = response.into_parts();
    if let Ok(value) = HeaderValue::from_str(line.id()) {
        head.headers.insert(REQUEST_ID, value);
    }
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
    let ending = Arc::clone(&connection);
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

/// Answers a request for which nothing and nobody has to be waited for: nearly all that ask for what is in memory. What it
/// decides is what [`answer`] would decide; `None` where that has to, which goes on from what has begun.
fn answer_at_once(asking: Asking<'_>, line: &mut Line, begun: &mut Begun) -> Option<Answered> {
    let (front, request) = (asking.front, asking.request);
    let (Ok(route), Some(method)) = (asking.route, method(request.method())) else {
        return None;
    };
    if front.proxy.has_callers() {
        return None;
    }
    let own = visit(asking, line);
    let authenticated = front.access.authenticate_at_once(own)?;
    let judged = front.access.judge(own, &authenticated, wish(route));
    line.identity = authenticated.identity;
    if let Err(refusal) = judged {
        return Some(refused(line, &refusal));
    }
    begun.is_admitted = true;
    if respond::asks_too_many_ranges(request.headers()) {
        return None;
    }
    if route.endpoint != Endpoint::Ping {
        let who = (line.client, &line.identity);
        match front.limits.take_turn(who, asking.deadline) {
            Ok(wait) => begun.turn = Some(wait),
            Err(error) => return Some(failed(asking, line, &error)),
        }
        if begun.turn > Some(Duration::ZERO) {
            return None;
        }
    }
    let proxy = &front.proxy;
    let answer = proxy.pull_at_once(method, &route.registry, &route.endpoint)?;
    let outcome = outcome(&answer);
    let wanted = wanted(asking, method);
    Some((respond::answer_in_memory(answer, wanted), outcome))
}

async fn answer(asking: Asking<'_>, line: &mut Line, begun: Begun) -> Answered {
    let (front, request, route) = (asking.front, asking.request, asking.route);
    if let Err(error @ Error::Request(RequestFault::Host(_) | RequestFault::Framing(_))) = route {
        // What may mean another host, or end elsewhere, to somebody on the way is not looked at further.
        front.metrics.rejected(Rejection::Ambiguous);
        log_error(line.id(), error);
        return (respond::error(error, None), "refused");
    }
    let admitted = match begun.is_admitted {
        true => Ok(Admitted::Pull(Caller::Anyone)),
        false => admit(asking, line).await,
    };
    let caller = match admitted {
        Ok(Admitted::Pull(caller)) => caller,
        Ok(Admitted::Token(issued)) => return (respond::token(&issued), "none"),
        Err(Turned::Refused(refusal)) => return refused(line, &refusal),
        Err(Turned::Failed(error)) => {
            log_error(line.id(), &error);
            return (respond::error(&error, None), "failed");
        }
    };
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
                deadline: asking.deadline,
            };
            respond_to(asking, &pull, line, begun.turn).await
        }
    };
    match pulled {
        Ok(answered) => answered,
        Err(error) => failed(asking, line, &error),
    }
}

/// The answer to who may not.
fn refused(line: &Line, refusal: &Refusal) -> Answered {
    let status = refusal.status();
    debug!(request = line.id(), %status, "request not admitted");
    (respond::refusal(refusal), "refused")
}

/// The answer to a pull that has no content.
fn failed(asking: Asking<'_>, line: &Line, error: &Error) -> Answered {
    log_error(line.id(), error);
    let is_too_often = matches!(error, Error::TooOften { .. });
    let outcome = if error.status().is_server_error() && !is_too_often {
        "failed"
    } else {
        "refused"
    };
    let route = asking.route.as_ref().ok();
    let namespace = route.map(|it| it.registry.namespace().as_str());
    let mut response = respond::error(error, namespace);
    let callers = route.filter(|it| it.registry.is_callers());
    if let Some(route) = callers.filter(|_| error.status() == StatusCode::UNAUTHORIZED) {
        let callers = &asking.front.callers;
        let challenge = callers.challenge(visit(asking, line), route);
        respond::challenge(&mut response, &challenge);
    }
    (response, outcome)
}

/// Finds out who a request is by, and whether they may; a request for a token is answered by one.
async fn admit(asking: Asking<'_>, line: &mut Line) -> Result<Admitted, Turned> {
    let (front, request, deadline) = (asking.front, asking.request, asking.deadline);
    let route = asking.route.as_ref().ok();
    let is_read = method(request.method()).is_some();
    let connected = Arc::clone(&line.connected);
    let theirs = visit_of(asking, (&connected.peer, line.client));
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
        front.access.judge(own, &authenticated, wish(route))
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
fn visit<'a>(asking: Asking<'a>, line: &'a Line) -> Visit<'a> {
    visit_of(asking, (&line.connected.peer, line.client))
}

fn visit_of<'a>(asking: Asking<'a>, (peer, client): (&'a Peer, IpAddr)) -> Visit<'a> {
    let headers = asking.request.headers();
    let route = asking.route.as_ref().ok();
    Visit {
        headers,
        peer,
        client,
        is_https: asking.front.peers.is_https(peer, headers),
        host: asking.host,
        namespace: route.and_then(|it| it.namespace.as_deref()),
    }
}

fn wish(route: &Route) -> Wish<'_> {
    Wish {
        upstream: route.registry.namespace(),
        endpoint: &route.endpoint,
        name: &route.asked.name,
    }
}

/// The name of a caller, for the log. Nobody has looked at it yet.
fn user(caller: &Caller) -> Option<String> {
    let credential = caller.credential();
    credential.map(|it| shown_path(it.username(), NAME_SHOWN_MAX))
}

async fn respond_to(
    asking: Asking<'_>,
    pull: &Pull,
    line: &Line,
    turn: Option<Duration>,
) -> Result<Answered, Error> {
    let front = asking.front;
    match turn {
        Some(wait) => Limits::wait_for(wait).await,
        None if pull.endpoint == Endpoint::Ping => {}
        None => {
            let who = (line.client, &line.identity);
            front.limits.turn(who, pull.deadline).await?;
        }
    }
    let answer = front.proxy.pull(pull).await?;
    let outcome = outcome(&answer);
    let wanted = wanted(asking, pull.method);
    Ok((respond::answer(answer, wanted).await?, outcome))
}

fn outcome(answer: &Answer) -> &'static str {
    match answer {
        Answer::Pong => "none",
        Answer::Content(content) => content.outcome.label(),
        Answer::Listing(listing) => listing.outcome.label(),
    }
}

fn wanted(asking: Asking<'_>, method: Method) -> Wanted<'_> {
    Wanted {
        method,
        headers: asking.request.headers(),
        version: asking.request.version(),
        deadline: asking.deadline,
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Where tokens are asked for; a path of no registry's.
const TOKEN_PATH: &str = "/token";
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
