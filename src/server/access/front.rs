//! Who a request is by, and whether it may.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::RwLock;
use tracing::debug;

use super::super::metrics::{Authentication, Metrics, Rejection};
use super::super::peer::Peer;
use super::book::{self, Book};
use super::challenge::Challenge;
use super::config::AccessConfig;
use super::entries::{FileError, Tokens, Users};
use super::exchange::{Issued, TokenRequest};
use super::passwords::{Checked, Passwords};
use super::refusal::Refusal;
use super::rules::{Asked, Verdict, Who, judge};
use super::sealed::{Bearer, Grant, Sealer, Shape};
use super::shown::Shown;
use crate::net::{Identity, Means, Networks, Secret, Source};
use crate::oci::{Endpoint, Namespace};

/// Who may pull what.
#[derive(Debug)]
pub struct Access {
    sealer: Sealer,
    passwords: Passwords,
    metrics: Metrics,
    /// Replaced as a whole by a reload.
    terms: RwLock<Arc<Terms>>,
}

/// The operator's word, and where who there is is kept.
#[derive(Debug)]
pub struct Terms {
    config: AccessConfig,
    users: Option<Book<Users>>,
    tokens: Option<Book<Tokens>>,
}

/// What of a request says who it is by.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Visit<'a> {
    pub(in crate::server) headers: &'a HeaderMap,
    pub(in crate::server) peer: &'a Peer,
    /// For whom the peer asks.
    pub(in crate::server) client: IpAddr,
    /// Whether the client speaks TLS, to us or to a proxy that we trust.
    pub(in crate::server) is_https: bool,
    /// The host that is asked.
    pub(in crate::server) host: Option<&'a str>,
    /// The `ns` that the request has.
    pub(in crate::server) namespace: Option<&'a str>,
}

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Wish<'a> {
    pub(in crate::server) upstream: &'a Namespace,
    pub(in crate::server) endpoint: &'a Endpoint,
    /// The repository's name in the client's own words.
    pub(in crate::server) name: &'a str,
}

/// Who a request is by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) struct Authenticated {
    pub(in crate::server) identity: Identity,
    /// How that was shown.
    pub(in crate::server) shown: Showing,
}

/// How a client has shown who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Showing {
    /// Not at all.
    Nothing,
    /// By a token of ours.
    Token,
    /// By a password, a token of the operator's, or a certificate.
    Itself,
}

/// Whether the files that a configuration names are there and what they should be. Blocks.
///
/// # Errors
///
/// With the first that is not.
pub fn check_access_files(config: &AccessConfig) -> Result<(), FileError> {
    if let Some(path) = &config.htpasswd_file {
        book::read(path, Users::parse)?;
    }
    if let Some(path) = &config.tokens_file {
        book::read(path, Tokens::parse)?;
    }
    Ok(())
}

impl Access {
    /// Reads who there is. Blocks.
    pub fn new(config: &AccessConfig, metrics: Metrics) -> Self {
        Self {
            sealer: Sealer::new(),
            passwords: Passwords::new(),
            metrics,
            terms: RwLock::new(Arc::new(Terms::read(config))),
        }
    }

    /// Goes by other rules and files from the next request on. Tokens that were handed out are good as long as what they were
    /// given for stands.
    pub fn reload(&self, terms: Terms) {
        *self.terms.write() = Arc::new(terms);
    }

    /// Whether anybody can show who they are, so that there are tokens to be had.
    pub(in crate::server) fn authenticates(&self) -> bool {
        self.terms.read().config.authenticates()
    }

    /// Who a request is by, where nobody can show who they are but by a certificate, which was verified before; else `None`.
    pub(in crate::server) fn authenticate_at_once(
        &self,
        visit: Visit<'_>,
    ) -> Option<Authenticated> {
        if self.authenticates() {
            return None;
        }
        // Whatever is shown is meant for somebody else; but the admin port may ask for certificates where this does not.
        Some(certified(visit.peer, Showing::Nothing).unwrap_or(Authenticated::NOBODY))
    }

    /// Who a request is by. What is shown and wrong is never taken for nothing. Cancel-safe.
    ///
    /// # Errors
    ///
    /// With what to answer when what was shown is wrong.
    pub(in crate::server) async fn authenticate(
        &self,
        visit: Visit<'_>,
    ) -> Result<Authenticated, Refusal> {
        if let Some(authenticated) = self.authenticate_at_once(visit) {
            return Ok(authenticated);
        }
        let terms = self.terms();
        let found = match Shown::of(visit.headers) {
            Shown::Nothing => certified(visit.peer, Showing::Nothing)
                .ok_or_else(|| Refusal::Wrong(terms.challenge(visit))),
            Shown::Basic { user, password } => {
                let shown = self.by_password(&terms, visit, &user, &password).await;
                shown.map(|bearer| bearer.authenticated(Showing::Itself))
            }
            Shown::Bearer(token) => self.by_token(&terms, visit, &token).await,
            Shown::Other => Err(Refusal::Wrong(terms.challenge(visit))),
        };
        self.metrics.authenticated(Authentication::of(&found));
        found
    }

    /// Whether who asks may have what is asked for.
    ///
    /// # Errors
    ///
    /// With what to answer when not.
    pub(in crate::server) fn judge(
        &self,
        visit: Visit<'_>,
        authenticated: &Authenticated,
        wish: Wish<'_>,
    ) -> Result<(), Refusal> {
        let terms = self.terms();
        let authenticates = terms.config.authenticates();
        let Some(repository) = wish.endpoint.name() else {
            // Clients show who they are only where this asks for it.
            let is_known = authenticated.shown != Showing::Nothing || !authenticates;
            let nothing = || Refusal::Nothing(terms.challenge(visit));
            return is_known.then_some(()).ok_or_else(nothing);
        };
        let asked = Asked {
            identity: &authenticated.identity,
            client: visit.client,
            upstream: wish.upstream,
            repository,
        };
        let number = match judge(&terms.config.rules, authenticates, asked) {
            Verdict::Allowed => return Ok(()),
            Verdict::Denied(number) => number,
        };
        let is_anonymous = authenticated.identity == Identity::Anonymous;
        self.metrics.denied(is_anonymous);
        debug!(rule = number, "denied by the access rules");
        if !(is_anonymous && authenticates) {
            return Err(Refusal::Denied(number));
        }
        let challenge = terms.challenge(visit).with_scope(wish.name);
        Err(Refusal::Nothing(match authenticated.shown {
            // So that a client that has a token of nobody's does not ask for another one of those (RFC 6750 §3.1).
            Showing::Token => challenge.with_error("insufficient_scope"),
            Showing::Nothing | Showing::Itself => challenge,
        }))
    }

    /// A token for whoever asks for one. Who shows nothing gets one of nobody's: clients that were asked for a token show one with
    /// every request, also where nobody in particular may pull. Cancel-safe.
    ///
    /// # Errors
    ///
    /// With what to answer when there is none to be had.
    pub(in crate::server) async fn exchange(
        &self,
        visit: Visit<'_>,
        query: Option<&str>,
    ) -> Result<(Authenticated, Issued), Refusal> {
        let terms = self.terms();
        let request = TokenRequest::parse(query).map_err(Refusal::Malformed)?;
        let found = match Shown::of(visit.headers) {
            // A certificate is shown again with every request, and stays where its key is.
            Shown::Nothing => Ok(None),
            Shown::Basic { user, password } => {
                let shown = self.by_password(&terms, visit, &user, &password).await;
                shown.map(Some)
            }
            Shown::Bearer(_) | Shown::Other => Err(Refusal::Wrong(terms.challenge(visit))),
        };
        let authenticated = found.as_ref().map(|bearer| {
            let shown = |it: &Bearer| it.clone().authenticated(Showing::Itself);
            bearer.as_ref().map_or(Authenticated::NOBODY, shown)
        });
        let authenticated = authenticated.map_err(Refusal::clone);
        self.metrics
            .authenticated(Authentication::of(&authenticated));
        let (authenticated, bearer) = (authenticated?, found?);
        let TokenRequest { service, scopes } = request;
        debug!(service, scopes = scopes.len(), "token asked for");
        let token = self.sealer.seal(&Grant { bearer }, LIFETIME + GRACE);
        let token = token.ok_or(Refusal::Busy)?;
        Ok((authenticated, Issued::new(token, LIFETIME)))
    }

    /// From where the admin port takes orders, and from whom.
    pub(super) fn admins(&self) -> (Networks, Vec<Who>) {
        let AccessConfig {
            admin_networks,
            admin_identities,
            ..
        } = &self.terms.read().config;
        (admin_networks.clone(), admin_identities.clone())
    }

    /// Whether a token that is asked of this service is asked of us, and not of a registry by its namespace.
    pub(in crate::server) fn is_called(&self, visit: Visit<'_>, service: &str) -> bool {
        let terms = self.terms();
        let mut names = visit.host.into_iter().chain(terms.external_host());
        names.any(|it| it.eq_ignore_ascii_case(service))
    }

    /// What a client is told that has to show who it is.
    pub(in crate::server) fn challenge(&self, visit: Visit<'_>) -> Challenge {
        self.terms().challenge(visit)
    }

    fn terms(&self) -> Arc<Terms> {
        Arc::clone(&self.terms.read())
    }

    /// Whose password, or whose token in the place of one, this is.
    async fn by_password(
        &self,
        terms: &Terms,
        visit: Visit<'_>,
        user: &str,
        password: &Secret,
    ) -> Result<Bearer, Refusal> {
        let bearer = |by, entry| Bearer {
            name: user.to_owned(),
            by,
            entry,
        };
        let wrong = || Refusal::Wrong(terms.challenge(visit));
        if let Some(tokens) = &terms.tokens {
            let tokens = tokens.current().await;
            if let Some((_, entry)) = tokens.find(password).filter(|(name, _)| *name == user) {
                return Ok(bearer(Shape::Token, entry));
            }
        }
        let users = terms.users.as_ref().ok_or_else(wrong)?;
        let users = users.current().await;
        let source = Source::of(visit.client);
        match self.passwords.check(&users, user, password, source).await {
            Checked::Right(entry) => Ok(bearer(Shape::User, entry)),
            Checked::Wrong => Err(wrong()),
            Checked::Busy => Err(Refusal::Busy),
            Checked::TooManyWrong(after) => {
                self.metrics.rejected(Rejection::FailedAuthentications);
                Err(Refusal::TooManyWrong(after))
            }
        }
    }

    /// Whose token this is: one of ours, or one that the operator gave out.
    async fn by_token(
        &self,
        terms: &Terms,
        visit: Visit<'_>,
        token: &Secret,
    ) -> Result<Authenticated, Refusal> {
        let void = || Refusal::Void(terms.challenge(visit).with_error("invalid_token"));
        if let Some(Grant { bearer }) = self.sealer.open(token.reveal()) {
            let Some(bearer) = bearer else {
                // A token of nobody's takes nothing from who has a certificate.
                let certified = certified(visit.peer, Showing::Token);
                return certified.ok_or_else(|| Refusal::Wrong(terms.challenge(visit)));
            };
            return if terms.stands(&bearer).await {
                Ok(bearer.authenticated(Showing::Token))
            } else {
                Err(void())
            };
        }
        let tokens = terms.tokens.as_ref().ok_or_else(void)?.current().await;
        let (name, entry) = tokens.find(token).ok_or_else(void)?;
        let bearer = Bearer {
            name: name.to_owned(),
            by: Shape::Token,
            entry,
        };
        Ok(bearer.authenticated(Showing::Itself))
    }
}

impl Terms {
    /// Reads who there is. Blocks.
    pub fn read(config: &AccessConfig) -> Self {
        let (htpasswd_file, tokens_file) = (&config.htpasswd_file, &config.tokens_file);
        Self {
            users: htpasswd_file
                .as_ref()
                .map(|it| Book::open(it, Users::parse)),
            tokens: tokens_file.as_ref().map(|it| Book::open(it, Tokens::parse)),
            config: config.clone(),
        }
    }

    /// What a client is told that has to show who it is.
    fn challenge(&self, visit: Visit<'_>) -> Challenge {
        let scheme = if visit.is_https { "https" } else { "http" };
        let host = visit.host.filter(|it| !it.is_empty());
        let own = || host.map(|host| format!("{scheme}://{host}"));
        let origin = self.config.external_url.clone().or_else(own);
        let external_host = self.external_host();
        Challenge::new(origin, visit.namespace.or(host).or(external_host))
    }

    /// What clients call us, where that is configured.
    fn external_host(&self) -> Option<&str> {
        let external = self.config.external_url.as_deref();
        external.and_then(|it| it.split_once("://")).map(|it| it.1)
    }

    /// Whether the entry that somebody was known by is still there.
    async fn stands(&self, bearer: &Bearer) -> bool {
        let Bearer { name, by, entry } = bearer;
        match (by, &self.users, &self.tokens) {
            (Shape::User, Some(users), _) => {
                let users = users.current().await;
                users.get(name).is_some_and(|user| user.entry == *entry)
            }
            (Shape::Token, _, Some(tokens)) => tokens.current().await.stands(name, entry),
            (Shape::User, None, _) | (Shape::Token, _, None) => false,
        }
    }
}

impl Authenticated {
    /// Who has shown nothing.
    pub(in crate::server) const NOBODY: Self = Self {
        identity: Identity::Anonymous,
        shown: Showing::Nothing,
    };
}

impl Bearer {
    fn authenticated(self, shown: Showing) -> Authenticated {
        let by = match self.by {
            Shape::User => Means::Password,
            Shape::Token => Means::Token,
        };
        Authenticated {
            // Names were checked when the files were read.
            identity: Identity::named(&self.name, by).unwrap_or_default(),
            shown,
        }
    }
}

/// Who a certificate says is there, or nobody in particular without one; `None` when it says what no name is.
fn certified(peer: &Peer, otherwise: Showing) -> Option<Authenticated> {
    let Some(name) = &peer.certificate else {
        return Some(Authenticated {
            identity: Identity::Anonymous,
            shown: otherwise,
        });
    };
    let identity = Identity::named(name, Means::Certificate)?;
    Some(Authenticated {
        identity,
        shown: Showing::Itself,
    })
}

impl Authentication {
    fn of(found: &Result<Authenticated, Refusal>) -> Self {
        match found {
            Ok(Authenticated { identity, .. }) => match identity {
                Identity::Anonymous => Self::Anonymous,
                Identity::Named { by, .. } => match by {
                    Means::Password => Self::Password,
                    Means::Token => Self::Token,
                    Means::Certificate => Self::Certificate,
                },
            },
            Err(Refusal::Void(_)) => Self::Void,
            Err(Refusal::Busy | Refusal::TooManyWrong(_)) => Self::Busy,
            Err(
                Refusal::Nothing(_)
                | Refusal::Wrong(_)
                | Refusal::Denied(_)
                | Refusal::Malformed(_)
                | Refusal::Method,
            ) => Self::Wrong,
        }
    }
}

/// How long a token is good, as a client is told; longer ones make no difference to anybody, since a client that comes later asks
/// again.
const LIFETIME: Duration = Duration::from_secs(300);
/// For requests that were on their way when it ended.
const GRACE: Duration = Duration::from_secs(30);
