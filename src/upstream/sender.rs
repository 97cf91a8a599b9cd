//! One question to a registry, through whatever stands before the answer: a challenge, a token server, a redirect.
//!
//! Nobody whom the upstream names receives anything of ours but the question itself. A token goes to the upstream alone;
//! a password goes to the upstream, where it asks for one, and to token servers that may speak for it ([`party::Realm`]).
//! What a redirect leads to is another party, whose word about the content is not the registry's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, IF_RANGE, LOCATION, RANGE, USER_AGENT,
};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::accounts::Accounts;
use super::challenge::Challenge;
use super::config::SiteConfig;
use super::credential::Credential;
use super::credentials::Credentials;
use super::dialer;
use super::error::{Error, Fault};
use super::metrics::Metrics;
use super::party::{self, Realm};
use super::rest::{Host, Hosts, Trouble};
use super::token::{Place, Token};
use super::told::{check_rest, note_rest, retry_after, turned_away};
use super::transport::{self, Transport, TransportError, Transports};
use crate::oci::{Endpoint, MANIFEST_ACCEPT, RepositoryName};

/// Sends questions to one registry.
#[derive(Debug)]
pub(super) struct Sender {
    /// The configured name, for metrics and logs.
    name: String,
    host: String,
    config: Arc<SiteConfig>,
    transports: Arc<Transports>,
    /// Who of those that it leads to does not answer.
    hosts: Arc<Hosts>,
    accounts: Accounts,
    /// Whether the site was last seen to ask for a password, which it then gets at once.
    wants_password: Arc<AtomicBool>,
    /// How long a token is used at most.
    tokens_for: Duration,
    /// The token server that the log says is not asked.
    unasked: Arc<Mutex<Option<String>>>,
    /// Until when the registry asked not to be asked, and its token server.
    rest_until: Mutex<Option<Instant>>,
    token_rest_until: Mutex<Option<Instant>>,
    metrics: Metrics,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) endpoint: &'a Endpoint,
    pub(super) range: Option<String>,
    /// What the part must be a part of.
    pub(super) if_range: Option<HeaderValue>,
    /// Rendered.
    pub(super) query: &'a str,
    /// Whether a redirect is followed or is the answer.
    pub(super) follows: bool,
}

/// The head of an answer, and whose word it is.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) response: Response<Incoming>,
    /// Who answered.
    host: String,
    /// Whether that was the registry itself, and not somebody whom it named.
    is_own: bool,
    /// Who hears it when more comes.
    pub(super) heard_of: Option<Arc<Host>>,
}

/// An answer of the site itself, and what it was shown for it.
type Asked = (Response<Incoming>, Option<HeaderValue>);

/// What there is to get into a repository with.
struct Entry<'a> {
    /// `None` where it is only about who we are.
    name: Option<&'a RepositoryName>,
    credential: Option<&'a Arc<Credential>>,
    /// Of the credential's tokens for the repository.
    place: &'a Place,
    /// What the registry has just refused.
    rejected: Option<&'a HeaderValue>,
}

impl<'a> Question<'a> {
    /// A GET or HEAD of an endpoint, through redirects.
    pub(super) fn new(method: Method, endpoint: &'a Endpoint) -> Self {
        Self {
            method,
            endpoint,
            range: None,
            if_range: None,
            query: "",
            follows: true,
        }
    }
}

impl Sender {
    /// Asks one site, which metrics and logs call `name`. Whether a mirror is to be asked at all is for others to say.
    pub(super) fn new(
        name: &str,
        config: SiteConfig,
        is_mirror: bool,
        metrics: Metrics,
    ) -> Result<Self, TransportError> {
        let host = host_of(&config.url);
        let except = is_mirror.then(|| host.clone());
        Ok(Self {
            name: name.to_owned(),
            hosts: Arc::new(Hosts::new(name, except, config.rest, metrics.rests(name))),
            host,
            transports: Arc::new(transport::clients(&config)?),
            accounts: Accounts::new(name, &config),
            wants_password: Arc::default(),
            tokens_for: Duration::MAX,
            unasked: Arc::default(),
            rest_until: Mutex::new(None),
            token_rest_until: Mutex::new(None),
            config: Arc::new(config),
            metrics,
        })
    }

    /// The same site, asked as this caller, by tokens that are used for so long at most. Connections and what is known of
    /// hosts are shared; what the site said to whom is not: tokens, refusals, and pauses that it asked somebody for.
    pub(super) fn as_caller(&self, caller: Option<Credential>, tokens_for: Duration) -> Self {
        Self {
            name: self.name.clone(),
            host: self.host.clone(),
            config: Arc::clone(&self.config),
            transports: Arc::clone(&self.transports),
            hosts: Arc::clone(&self.hosts),
            accounts: Accounts::of_caller(&self.name, caller, self.config.rest),
            wants_password: Arc::clone(&self.wants_password),
            tokens_for,
            unasked: Arc::clone(&self.unasked),
            rest_until: Mutex::new(None),
            token_rest_until: Mutex::new(None),
            metrics: self.metrics.clone(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Asks, and waits for the head of the answer. A connection that breaks before that is tried once more: a pooled one
    /// may have been closed under us. Cancel-safe.
    pub(super) async fn ask(&self, question: &Question<'_>) -> Result<Reply, Error> {
        let error = match self.ask_once(question).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let broke = matches!(&error, Error::Unreachable { source, .. } if !source.is_connect());
        if !broke {
            return Err(error);
        }
        self.metrics.retried(&self.name, error.retry_reason());
        tokio::time::sleep(RETRY_PAUSE.mul_f64(rand::random_range(0.5..1.0))).await;
        self.ask_once(question).await
    }

    /// Asks to be let in, to one repository or as such: for a token where tokens are wanted, by which the repository is then
    /// asked, else by the password. How long that is good where it is known. Cancel-safe.
    pub(super) async fn log_in(
        &self,
        name: Option<&RepositoryName>,
    ) -> Result<Option<Duration>, Error> {
        check_rest(&self.rest_until, &self.host)?;
        let account = self.accounts.of(name);
        let credential = self.current(&account.credentials).await?;
        let ping = Question::new(Method::GET, &Endpoint::Ping);
        let uri = self.uri(&ping);
        let ask = |shown| {
            let request = request(&ping, &uri, shown);
            self.send(&self.transports.own, request, Endpoint::Ping.label())
        };
        let mut response = ask(None).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges = Challenge::all(response.headers());
            let place = name.map(|name| account.tokens.place(credential.as_ref(), name));
            let place = place.unwrap_or_default();
            let entry = Entry {
                name,
                credential: credential.as_ref(),
                place: &place,
                rejected: None,
            };
            let shown = self.authorize(&entry, &challenges).await?;
            if let Some(left) = place.left() {
                return Ok(Some(left));
            }
            if shown.is_some() {
                response = ask(shown).await?;
            }
        }
        note_rest(&self.rest_until, response.status(), response.headers());
        match response.status() {
            StatusCode::OK => Ok(None),
            status => Err(turned_away(self.host.clone(), status, response.headers())),
        }
    }

    /// When the token was asked for by which a repository is asked now.
    pub(super) fn token_since(&self, name: &RepositoryName) -> Option<Instant> {
        self.accounts.of(Some(name)).tokens.since(name)
    }

    /// Whether it is asked as a caller who has no token for this repository, or who is nowhere in particular.
    pub(super) fn is_stranger(&self, name: Option<&RepositoryName>) -> bool {
        let is_known = || name.is_some_and(|name| self.token_since(name).is_some());
        self.accounts.are_callers() && !is_known()
    }

    async fn current(&self, of: &Credentials) -> Result<Option<Arc<Credential>>, Error> {
        let current = of.current().await;
        current.map_err(|source| {
            let host = self.host.clone();
            Error::Credential { host, source }
        })
    }

    async fn ask_once(&self, question: &Question<'_>) -> Result<Reply, Error> {
        check_rest(&self.rest_until, &self.host)?;
        let credentials = &self.accounts.of(question.endpoint.name()).credentials;
        let mut credential = self.current(credentials).await?;
        if let (Some(credential), Some(name)) = (&credential, question.endpoint.name())
            && credentials.are_refused(credential, name)
        {
            let (host, status) = (self.host.clone(), StatusCode::UNAUTHORIZED);
            return Err(Error::Refused { host, status });
        }
        let uri = self.uri(question);
        let mut asked = self.ask_as(credential.as_ref(), question, &uri).await;
        if is_unauthorized(question, &asked) {
            // What was right when it was read may be wrong by now.
            let other = credentials.instead_of(credential.as_ref()).await;
            if let Some(other) = other.ok().filter(|it| *it != credential) {
                credential = other;
                asked = self.ask_as(credential.as_ref(), question, &uri).await;
            }
            if let Some(name) = question.endpoint.name()
                && is_unauthorized(question, &asked)
            {
                credentials.refused(credential.as_ref(), name);
            }
        }
        let (response, authorization) = asked?;
        self.note_limits(&response);
        if question.follows && response.status().is_redirection() {
            return self.follow(question, uri, response, authorization).await;
        }
        Ok(Reply {
            response,
            heard_of: self.hosts.of(&self.host),
            host: self.host.clone(),
            is_own: true,
        })
    }

    /// Asks the site itself, and once more with what it then wants to see; its answer, and what it saw.
    async fn ask_as(
        &self,
        credential: Option<&Arc<Credential>>,
        question: &Question<'_>,
        uri: &Uri,
    ) -> Result<Asked, Error> {
        let label = question.endpoint.label();
        let name = question.endpoint.name();
        let tokens = &self.accounts.of(name).tokens;
        let place = name.map(|name| tokens.place(credential, name));
        let wants_password = self.wants_password.load(Ordering::Relaxed);
        let password = || credential.filter(|_| wants_password)?.basic();
        let token = place.as_ref().and_then(|it| it.token());
        let shown = token.or_else(password);
        let first = request(question, uri, shown.clone());
        let response = self.send(&self.transports.own, first, label).await?;
        let (Some(name), Some(place)) = (name, place) else {
            return Ok((response, shown));
        };
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok((response, shown));
        }
        // Some registries refuse HEAD to everybody, and to a token as new as this one another would be no news. Whoever asks by
        // HEAD asks by GET next, and that tells.
        if question.method == Method::HEAD && place.is_new() {
            return Ok((response, shown));
        }
        let challenges = Challenge::all(response.headers());
        let entry = Entry {
            name: Some(name),
            credential,
            place: &place,
            rejected: shown.as_ref(),
        };
        let Some(shown) = self.authorize(&entry, &challenges).await? else {
            return Ok((response, None));
        };
        let second = request(question, uri, Some(shown.clone()));
        Ok((
            self.send(&self.transports.own, second, label).await?,
            Some(shown),
        ))
    }

    /// Follows redirects. A token and our certificate stay with the upstream, and do not come back once it was left: who sends
    /// us back there is somebody else, and what is said there is then not the upstream's word on what it was asked.
    async fn follow(
        &self,
        question: &Question<'_>,
        asked: Uri,
        redirect: Response<Incoming>,
        mut authorization: Option<HeaderValue>,
    ) -> Result<Reply, Error> {
        let (mut at, mut response, mut is_own) = (asked, redirect, true);
        for _ in 0..REDIRECTS_MAX {
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|it| it.to_str().ok());
            let target = party::redirect_target(&at, location.unwrap_or("\0"));
            let target = target.map_err(|fault| self.invalid(fault))?;
            is_own &= party::is_same(&self.config.url, &target);
            if !is_own {
                authorization = None;
            }
            let (transport, label) = if is_own {
                (&self.transports.own, question.endpoint.label())
            } else {
                (&self.transports.named, "redirect")
            };
            let host = host_of(&target);
            // Without its query, which may be signed.
            debug!(upstream = self.name, host, "redirected");
            let heard_of = self.hosts.of(&host);
            let named = heard_of.as_ref().filter(|_| !is_own);
            if let Some(named) = named {
                check_rest(&named.told_until, &host)?;
            }
            let request = request(question, &target, authorization.clone());
            response = self.send(transport, request, label).await?;
            if let Some(named) = named {
                note_rest(&named.told_until, response.status(), response.headers());
            }
            if !response.status().is_redirection() {
                return Ok(Reply {
                    response,
                    heard_of,
                    host,
                    is_own,
                });
            }
            at = target;
        }
        Err(self.invalid(Fault::Redirect))
    }

    /// What the registry wants to see, by its challenges: a token, or else a password; `None` when it is something else, or
    /// nothing that we have.
    async fn authorize(
        &self,
        entry: &Entry<'_>,
        challenges: &[Challenge],
    ) -> Result<Option<HeaderValue>, Error> {
        let offers = |scheme| challenges.iter().any(|it| it.scheme == scheme);
        let realm = challenges.iter().find_map(|it| self.realm(it));
        if let Some((realm, uri, bearer)) = realm {
            self.wants_password.store(false, Ordering::Relaxed);
            let service = bearer.parameter("service");
            return self.token(entry, (realm, &uri), service).await.map(Some);
        }
        if offers("bearer") {
            // Whoever that is receives nothing.
            self.complain_of(challenges);
        }
        if !offers("basic") {
            return Ok(None);
        }
        self.wants_password.store(true, Ordering::Relaxed);
        let password = entry.credential.and_then(|it| it.basic());
        // Our best try ends here: the refusal stands.
        Ok(password.filter(|it| Some(it) != entry.rejected))
    }

    /// Says in the log, once for each, which token server is not asked and what would change that.
    fn complain_of(&self, challenges: &[Challenge]) {
        let realm = challenges.iter().find_map(|it| it.parameter("realm"));
        let realm: Option<Uri> = realm.and_then(|it| it.parse().ok());
        let realm = realm.as_ref().map(host_of);
        let mut unasked = self.unasked.lock();
        if *unasked != realm {
            warn!(
                upstream = self.name,
                realm,
                "token server is not asked: not https, or not the upstream's own and not in token_realms"
            );
            *unasked = realm;
        }
    }

    /// The token server of a challenge, when it names one that may be asked.
    fn realm<'a>(&self, bearer: &'a Challenge) -> Option<(Realm, Uri, &'a Challenge)> {
        if bearer.scheme != "bearer" {
            return None;
        }
        let uri: Uri = bearer.parameter("realm")?.parse().ok()?;
        let realm = Realm::of(&self.config.url, &self.config.token_realms, &uri)?;
        Some((realm, uri, bearer))
    }

    /// A token: one that somebody else has just been given, or one from the token server.
    async fn token(
        &self,
        entry: &Entry<'_>,
        (realm, uri): (Realm, &Uri),
        service: Option<&str>,
    ) -> Result<HeaderValue, Error> {
        // Many who wait for a silent token server wait at once, and not one after the other.
        let patience = self.patience();
        let Ok(turn) = timeout(patience, entry.place.turn()).await else {
            return Err(self.silent(self.host.clone(), patience));
        };
        if let Some(ready) = turn.ready(entry.rejected) {
            return ready;
        }
        check_rest(&self.token_rest_until, &host_of(uri))?;
        let request = token_request(uri, service, entry);
        let request = request.ok_or_else(|| self.invalid(Fault::Token))?;
        let exchanged = self.exchange(realm, request, entry.name).await;
        self.metrics.exchanged(&self.name, exchanged.is_ok());
        turn.end(exchanged)
    }

    async fn exchange(
        &self,
        realm: Realm,
        request: Request<Full<Bytes>>,
        name: Option<&RepositoryName>,
    ) -> Result<Token, Error> {
        let host = host_of(request.uri());
        let transport = match realm {
            Realm::Own => &self.transports.own,
            Realm::Listed => &self.transports.listed,
            Realm::Named => &self.transports.named,
        };
        // All tokens are asked for at one path, and each is another thing.
        let about = name.map_or("", RepositoryName::as_str);
        let response = self.send_about(transport, request, "token", about).await?;
        note_rest(
            &self.token_rest_until,
            response.status(),
            response.headers(),
        );
        match response.status() {
            StatusCode::OK => {}
            // Its word is the registry's: this is who decides about access.
            StatusCode::BAD_REQUEST => {
                let status = StatusCode::UNAUTHORIZED;
                return Err(Error::Refused { host, status });
            }
            status => return Err(turned_away(host, status, response.headers())),
        }
        let body = Limited::new(response.into_body(), TOKEN_BYTES_MAX).collect();
        let fault = Fault::Token;
        match timeout(self.config.first_byte_timeout, body).await {
            Ok(Ok(body)) => {
                let token = Token::parse(&body.to_bytes());
                let token = token.map(|it| it.for_at_most(self.tokens_for));
                token.ok_or(Error::Invalid { host, fault })
            }
            Ok(Err(_)) => Err(Error::Invalid { host, fault }),
            Err(_) => Err(self.silent(host, self.config.first_byte_timeout)),
        }
    }

    async fn send(
        &self,
        transport: &Transport,
        request: Request<Full<Bytes>>,
        label: &str,
    ) -> Result<Response<Incoming>, Error> {
        // What is signed in its query is the same thing each time.
        let path = request.uri().path().to_owned();
        self.send_about(transport, request, label, &path).await
    }

    /// Sends a question about this thing.
    async fn send_about(
        &self,
        transport: &Transport,
        request: Request<Full<Bytes>>,
        label: &str,
        about: &str,
    ) -> Result<Response<Incoming>, Error> {
        let host = host_of(request.uri());
        let asked = self.hosts.of(&host);
        let turn = match &asked {
            Some(host) => Some(host.turn().await?),
            None => None,
        };
        let silence = Trouble::silent(about);
        let began = Instant::now();
        let patience = self.patience();
        let response = match timeout(patience, transport.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(Error::Unreachable {
                host,
                source: Arc::new(source),
            }),
            Err(_) => Err(self.silent(host, patience)),
        };
        let status = response.as_ref().ok().map(Response::status);
        self.metrics
            .answered(&self.name, label, status, began.elapsed());
        if let (Some(host), Some(turn)) = (&asked, &turn) {
            match &response {
                Ok(_) => host.answered(),
                Err(error) => {
                    if let Some(trouble) = trouble(error, silence) {
                        host.failed(turn, trouble, error);
                    }
                }
            }
        }
        response
    }

    /// What the answer says of how much more we may ask.
    fn note_limits(&self, response: &Response<Incoming>) {
        // `76;w=21600`: so many within so many seconds (Docker Hub, "Pull rate limit").
        let said = |name| {
            let value = response.headers().get(name)?.to_str().ok()?;
            value.split(';').next()?.trim().parse().ok()
        };
        let quota = (said(RATELIMIT_REMAINING), said(RATELIMIT_LIMIT));
        // What is left to one caller is nothing to the others.
        if !self.accounts.are_callers() {
            self.metrics.quota(&self.name, quota);
        }
        note_rest(&self.rest_until, response.status(), response.headers());
    }

    fn uri(&self, question: &Question<'_>) -> Uri {
        let mut parts = self.config.url.clone().into_parts();
        // An endpoint renders only characters that a path may have.
        parts.path_and_query = question.endpoint.path().parse().ok();
        let uri = Uri::from_parts(parts).unwrap_or_default();
        if question.query.is_empty() {
            return uri;
        }
        with_query(&uri, question.query).unwrap_or(uri)
    }

    fn invalid(&self, fault: Fault) -> Error {
        Error::Invalid {
            host: self.host.clone(),
            fault,
        }
    }

    /// How long a request may wait for its response head.
    fn patience(&self) -> Duration {
        self.config.connect_timeout + self.config.first_byte_timeout
    }

    fn silent(&self, host: String, waited: Duration) -> Error {
        Error::Silent { host, waited }
    }
}

impl Reply {
    /// The same, when it is a success.
    pub(super) fn successful(self) -> Result<Self, Error> {
        let success = matches!(
            self.response.status(),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT
        );
        if success {
            Ok(self)
        } else {
            Err(self.failure())
        }
    }

    /// What this answer means, as a failure. Only the registry itself can say that something is gone or refused.
    pub(super) fn failure(&self) -> Error {
        let (host, status) = (self.host.clone(), self.response.status());
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE if self.is_own => Error::Gone { host },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.is_own => {
                Error::Refused { host, status }
            }
            _ => {
                let retry_after = retry_after(self.response.headers());
                Error::Status {
                    host,
                    status,
                    retry_after,
                }
            }
        }
    }
}

/// How we introduce ourselves.
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("layerhold/", env!("CARGO_PKG_VERSION")));
/// Who asks, to token servers that keep a list.
const CLIENT_ID: &str = "layerhold";
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
/// The pause before the one retry of a request whose connection broke; half of it is left to chance.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Registries redirect once or twice.
const REDIRECTS_MAX: usize = 5;
/// Tokens with a certificate chain in them are the largest seen, at some 10 KiB.
const TOKEN_BYTES_MAX: usize = 64 << 10;

fn request(
    question: &Question<'_>,
    uri: &Uri,
    authorization: Option<HeaderValue>,
) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = uri.clone();
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, AGENT);
    // A digest is over the bytes as they are.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if matches!(question.endpoint, Endpoint::Manifest { .. }) {
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_ACCEPT));
    }
    let range = question
        .range
        .as_deref()
        .and_then(|it| HeaderValue::from_str(it).ok());
    headers.extend(range.map(|it| (RANGE, it)));
    let if_range = question.if_range.clone();
    headers.extend(if_range.map(|it| (IF_RANGE, it)));
    headers.extend(authorization.map(|it| (AUTHORIZATION, it)));
    request
}

/// What asks a token server for a token to pull with: a GET with our password, where we have one (distribution's token
/// specification), or a form with our identity token (distribution's `docs/spec/auth/oauth.md`).
fn token_request(
    realm: &Uri,
    service: Option<&str>,
    entry: &Entry<'_>,
) -> Option<Request<Full<Bytes>>> {
    let mut pairs = form_urlencoded::Serializer::new(String::new());
    if let Some(service) = service {
        pairs.append_pair("service", service);
    }
    if let Some(name) = entry.name {
        pairs.append_pair("scope", &format!("repository:{name}:pull"));
    }
    let identity_token = entry.credential.and_then(|it| it.identity_token());
    let mut request = if let Some(identity_token) = identity_token {
        pairs.append_pair("grant_type", "refresh_token");
        pairs.append_pair("client_id", CLIENT_ID);
        pairs.append_pair("refresh_token", identity_token.reveal());
        let mut request = Request::new(Full::from(pairs.finish()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = realm.clone();
        request.headers_mut().insert(CONTENT_TYPE, FORM);
        request
    } else {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = with_query(realm, &pairs.finish())?;
        let password = entry.credential.and_then(|it| it.basic());
        let headers = request.headers_mut();
        headers.extend(password.map(|it| (AUTHORIZATION, it)));
        request
    };
    request.headers_mut().insert(USER_AGENT, AGENT);
    Some(request)
}

/// Whether the registry or its token server does not know us, or does not let us. A HEAD that the registry refuses says
/// nothing: some refuse it to everybody, and are asked by GET next.
fn is_unauthorized(question: &Question<'_>, asked: &Result<Asked, Error>) -> bool {
    let status = match asked {
        Ok((response, _)) if question.method != Method::HEAD => response.status(),
        Err(Error::Refused { status, .. }) => *status,
        Ok(_) | Err(_) => return false,
    };
    status == StatusCode::UNAUTHORIZED
}

/// The same with more pairs in its query.
fn with_query(uri: &Uri, pairs: &str) -> Option<Uri> {
    let query = match uri.query() {
        Some(query) if !query.is_empty() => format!("{query}&{pairs}"),
        Some(_) | None => pairs.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{query}", uri.path()).parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// What a failure says about the host that was asked; `silence` is about what that was.
fn trouble(error: &Error, silence: Trouble) -> Option<Trouble> {
    if let Error::Unreachable { source, .. } = error {
        let is_of_host = source.is_connect() && !dialer::is_ours(source.as_ref());
        return is_of_host.then_some(Trouble::Unconnected);
    }
    matches!(error, Error::Silent { .. }).then_some(silence)
}

/// The host and its port, for errors and the log; without the user and the password that somebody may have put before it.
fn host_of(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", Authority::as_str);
    let host = authority.rsplit_once('@').map_or(authority, |(_, it)| it);
    host.to_owned()
}
