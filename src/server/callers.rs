//! Clients of upstreams that decide by their callers' own rights, and the tokens by which those clients are known again.
//!
//! ```text
//!   GET /v2/                      401, WWW-Authenticate: Bearer realm="…/token",service="…"
//!   GET /token?scope=…, as Ann    the upstream that the scope names is asked for a token, as Ann: a wrong password ends here
//!                                 → a token of ours: Ann's credential, sealed, for that upstream and those repositories alone
//!   GET /v2/…, with the token     a pull as Ann; what she may have is the upstream's to say, then
//! ```
//!
//! A credential goes to the one upstream that the client's own words name, and to nobody else: where they name none and there
//! are several, it goes nowhere. A token is no right: it says who somebody is, and where.
//!
//! **What is absent:** nothing is kept of anybody here, and no right is decided.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;
use tracing::debug;

use super::access::{
    Access, Authenticated, Challenge, Issued, Refusal, Sealer, Shown, TokenRequest, Visit, Wish,
};
use crate::net::Secret;
use crate::oci::{Endpoint, RepositoryName};
use crate::proxy::{Caller, Error, Proxy, Registry, Requested, Route};
use crate::upstream::Credential;

/// Knows callers again.
#[derive(Debug)]
pub(super) struct Callers {
    access: Arc<Access>,
    sealer: Sealer,
}

/// Why a caller is turned away.
#[derive(Debug)]
pub(super) enum Turned {
    /// By what it showed.
    Refused(Refusal),
    /// The upstream could not be asked.
    Failed(Error),
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Ticket {
    /// A user and a password; `None` is whoever has none.
    credential: Option<(String, Plain)>,
    /// Where that is theirs.
    upstream: String,
    /// The repositories that it is good for there; without any it is good for nothing.
    names: Vec<String>,
}

/// A secret on its way into a sealed token, or out of one.
#[derive(Serialize, Deserialize)]
#[serde(from = "String")]
struct Plain(#[serde(serialize_with = "revealed")] Secret);

impl Callers {
    pub(super) fn new(access: Arc<Access>) -> Self {
        Self {
            access,
            sealer: Sealer::new(),
        }
    }

    /// As whom this pull is made. What a client has for one upstream is not looked at for another, and goes nowhere.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// With what to answer to a client that has to show something else first.
    pub(super) async fn caller(
        &self,
        proxy: &Proxy,
        visit: Visit<'_>,
        route: &Route,
    ) -> Result<Caller, Turned> {
        let registry = &route.registry;
        let Some(name) = route.endpoint.name() else {
            return match route.namespace.is_some() && !registry.is_callers() {
                true => Ok(Caller::Anyone),
                false => self.at_ping(proxy, visit).await,
            };
        };
        if !registry.is_callers() {
            return Ok(Caller::Anyone);
        }
        let challenge = || self.access.challenge(visit).with_scope(&route.asked.name);
        let ticket = match Shown::of(visit.headers) {
            Shown::Nothing => return Err(Refusal::Nothing(challenge()).into()),
            Shown::Basic { user, password } => return Ok(own(&user, password)),
            Shown::Bearer(token) => self.sealer.open::<Ticket>(token.reveal()),
            Shown::Other => return Err(Refusal::Wrong(challenge()).into()),
        };
        let void = |wrong| Err(Refusal::Void(challenge().with_error(wrong)).into());
        match ticket {
            None => void(INVALID_TOKEN),
            Some(ticket) if !ticket.is_for(registry, name) => void(INSUFFICIENT_SCOPE),
            Some(ticket) => Ok(ticket.caller()),
        }
    }

    /// What a client that an upstream refused is told: where another token is to be had.
    pub(super) fn challenge(&self, visit: Visit<'_>, route: &Route) -> Challenge {
        let challenge = self.access.challenge(visit).with_scope(&route.asked.name);
        challenge.with_error(INSUFFICIENT_SCOPE)
    }

    /// Clients show who they are only where this asks for it.
    async fn at_ping(&self, proxy: &Proxy, visit: Visit<'_>) -> Result<Caller, Turned> {
        let challenge = || self.access.challenge(visit);
        match Shown::of(visit.headers) {
            Shown::Nothing => Err(Refusal::Nothing(challenge()).into()),
            Shown::Basic { user, password } => {
                let caller = own(&user, password);
                self.log_in(proxy, visit, None, &caller).await?;
                Ok(caller)
            }
            Shown::Bearer(token) => match self.sealer.open::<Ticket>(token.reveal()) {
                Some(_) => Ok(Caller::Anyone),
                None => Err(Refusal::Void(challenge().with_error(INVALID_TOKEN)).into()),
            },
            Shown::Other => Err(Refusal::Wrong(challenge()).into()),
        }
    }

    /// A token for whoever asks for one, and who that is. For what a rule of ours denies nobody is asked: the pull is told
    /// by which rule. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the upstream does not know them, or cannot say.
    pub(super) async fn exchange(
        &self,
        proxy: &Proxy,
        visit: Visit<'_>,
        authenticated: &Authenticated,
        query: Option<&str>,
    ) -> Result<(Caller, Issued), Turned> {
        let request = TokenRequest::parse(query).map_err(Refusal::Malformed)?;
        let caller = match Shown::of(visit.headers) {
            Shown::Nothing => Caller::Anyone,
            Shown::Basic { user, password } => own(&user, password),
            Shown::Bearer(_) | Shown::Other => {
                return Err(Refusal::Wrong(self.access.challenge(visit)).into());
            }
        };
        let TokenRequest { service, scopes } = &request;
        debug!(service, scopes = scopes.len(), "token asked for");
        let (ticket, left) = match self.wanted(proxy, visit, &request) {
            Some((registry, names)) => {
                let is_denied = |name: &_| self.is_denied(&registry, visit, authenticated, name);
                let (denied, names): (Vec<_>, Vec<_>) = names.into_iter().partition(is_denied);
                let letting_in = self.let_in(proxy, visit, (&registry, names), &caller);
                let deadline = proxy.deadline();
                let let_in = timeout_at(deadline, letting_in).await;
                let (mut names, left) = let_in.unwrap_or(Err(Refusal::Busy.into()))?;
                names.extend(denied.iter().map(|it| it.as_str().to_owned()));
                let upstream = registry.namespace().as_str();
                (Ticket::new(&caller, upstream, names), left)
            }
            None => {
                if scopes.is_empty() && caller != Caller::Anyone {
                    self.log_in(proxy, visit, service.as_deref(), &caller)
                        .await?;
                }
                // What it is for wants no credential, or is nothing yet.
                (Ticket::new(&Caller::Anyone, "", Vec::new()), LIFETIME)
            }
        };
        let lifetime = left.min(LIFETIME);
        let token = self.sealer.seal(&ticket, lifetime + GRACE);
        let token = token.ok_or(Refusal::Busy)?;
        Ok((caller, Issued::new(token, lifetime)))
    }

    /// Whether a rule of ours denies all of a repository, whatever its registry says.
    fn is_denied(
        &self,
        registry: &Registry,
        visit: Visit<'_>,
        authenticated: &Authenticated,
        name: &RepositoryName,
    ) -> bool {
        let endpoint = &Endpoint::Tags { name: name.clone() };
        let wish = Wish {
            upstream: registry.namespace(),
            endpoint,
            name: name.as_str(),
        };
        let judged = self.access.judge(visit, authenticated, wish);
        judged.is_err() || registry.check_policy(endpoint).is_err()
    }

    /// Those of these repositories for which the upstream knows the caller, and for how long it does.
    async fn let_in(
        &self,
        proxy: &Proxy,
        visit: Visit<'_>,
        (registry, names): (&Registry, Vec<RepositoryName>),
        caller: &Caller,
    ) -> Result<(Vec<String>, Duration), Turned> {
        let (mut let_in, mut left) = (Vec::new(), LIFETIME);
        let mut refused = None;
        for name in names {
            match proxy.log_in(registry, caller, Some(&name)).await {
                Ok(good_for) => {
                    left = good_for.map_or(left, |it| it.min(left));
                    let_in.push(name.as_str().to_owned());
                }
                Err(error) => refused = Some(error),
            }
        }
        match refused.filter(|_| let_in.is_empty()) {
            Some(error) => Err(self.turned(error, visit)),
            None => Ok((let_in, left)),
        }
    }

    /// Has the upstream that a login is for say whether it knows the caller: the one that the client names, or the only one there
    /// is. Where there are several, or the client names another one, the login is not verified: a password is not for all who
    /// might know it.
    async fn log_in(
        &self,
        proxy: &Proxy,
        visit: Visit<'_>,
        service: Option<&str>,
        caller: &Caller,
    ) -> Result<(), Turned> {
        let Some(Routed { route, is_named }) = self.route(proxy, visit, service, "/v2/") else {
            return Ok(());
        };
        let registry = match (is_named, &proxy.callers_registries()[..]) {
            (true, _) if route.registry.is_callers() => route.registry,
            (false, [only]) => Arc::clone(only),
            (true | false, _) => return Ok(()),
        };
        let known = proxy.log_in(&registry, caller, None).await;
        known.map(drop).map_err(|error| self.turned(error, visit))
    }

    /// The repositories that a token is wanted for, at the first upstream among them that decides by its callers' rights: no
    /// other one sees the credential.
    fn wanted(
        &self,
        proxy: &Proxy,
        visit: Visit<'_>,
        request: &TokenRequest,
    ) -> Option<(Arc<Registry>, Vec<RepositoryName>)> {
        let mut wanted: Option<(Arc<Registry>, Vec<RepositoryName>)> = None;
        for scope in &request.scopes {
            // Type, name and actions; a name has no colon, unless it begins with a host that has a port.
            let name = scope.strip_prefix("repository:");
            let Some((name, _)) = name.and_then(|it| it.rsplit_once(':')) else {
                continue;
            };
            let path = format!("/v2/{name}/tags/list");
            let routed = self.route(proxy, visit, request.service.as_deref(), &path);
            let Some(Route {
                registry,
                endpoint: Endpoint::Tags { name },
                ..
            }) = routed
                .map(|it| it.route)
                .filter(|it| it.registry.is_callers())
            else {
                continue;
            };
            let (first, names) = wanted.get_or_insert_with(|| (Arc::clone(&registry), Vec::new()));
            if Arc::ptr_eq(first, &registry) && !names.contains(&name) {
                names.push(name);
            }
        }
        wanted
    }

    /// Where a pull would go that a client asks a token for: as the pull itself would, since `service` is the namespace that it
    /// had, or a name of ours. `None` for anybody else's service.
    fn route(
        &self,
        proxy: &Proxy,
        visit: Visit<'_>,
        service: Option<&str>,
        path: &str,
    ) -> Option<Routed> {
        let route = |query: Option<&str>, host| {
            let requested = Requested { path, query, host };
            proxy.route(requested).ok()
        };
        if let Some(service) = service.filter(|it| !self.access.is_called(visit, it)) {
            let mut query = form_urlencoded::Serializer::new(String::new());
            let query = query.append_pair("ns", service).finish();
            // Also by a name of ours that another request had: tokens are asked for at `external_url`.
            let by_host = || route(None, Some(service)).filter(|it| it.registry.is_hosted(service));
            let is_named = true;
            let route = route(Some(&query), visit.host).or_else(by_host);
            return route.map(|route| Routed { route, is_named });
        }
        let route = route(None, visit.host)?;
        let is_named = visit
            .host
            .is_some_and(|host| route.registry.is_hosted(host));
        Some(Routed { route, is_named })
    }

    fn turned(&self, error: Error, visit: Visit<'_>) -> Turned {
        match error.is_denial() {
            true => Refusal::Wrong(self.access.challenge(visit)).into(),
            false => Turned::Failed(error),
        }
    }
}

/// Where a request would go, and whether the client named that upstream.
struct Routed {
    route: Route,
    is_named: bool,
}

impl Ticket {
    fn new(caller: &Caller, upstream: &str, names: Vec<String>) -> Self {
        let credential = caller.credential().map(|it| {
            let (user, password) = (it.username().to_owned(), it.password().clone());
            (user, Plain(password))
        });
        Self {
            credential,
            upstream: upstream.to_owned(),
            names,
        }
    }

    fn is_for(&self, registry: &Registry, name: &RepositoryName) -> bool {
        let is_named = || self.names.iter().any(|it| it == name.as_str());
        self.upstream == registry.namespace().as_str() && is_named()
    }

    fn caller(self) -> Caller {
        match self.credential {
            Some((user, Plain(password))) => own(&user, password),
            None => Caller::Anyone,
        }
    }
}

impl From<String> for Plain {
    fn from(text: String) -> Self {
        Self(Secret::new(text))
    }
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Refusal> for Turned {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn own(user: &str, password: Secret) -> Caller {
    Caller::Own(Arc::new(Credential::new(user, password)))
}

fn revealed<S: serde::Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.reveal())
}

/// What is wrong with a token (RFC 6750 §3.1).
const INVALID_TOKEN: &str = "invalid_token";
const INSUFFICIENT_SCOPE: &str = "insufficient_scope";
/// How long a token is good at most, as a client is told.
const LIFETIME: Duration = Duration::from_secs(300);
/// For requests that were on their way when it ended.
const GRACE: Duration = Duration::from_secs(30);
