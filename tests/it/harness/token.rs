//! Who is let in: a token server, the registry's side of it, and passwords.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::json;

use super::registry::{FakeRegistry, Seen};
use super::script::{Target, any, get};

/// A token server on loopback: a [`FakeRegistry`] in what it is asked, and in what it lets tests do, which gives out tokens
/// at `/token`. Whoever drops it learns of credentials.
#[derive(Debug)]
pub(crate) struct TokenServer {
    inner: FakeRegistry,
    issuer: Arc<Issuer>,
}

/// What gives out tokens, and knows them again.
#[derive(Debug)]
pub(super) struct Issuer {
    state: Mutex<State>,
}

/// The registry's side: lets in whoever has a token for the repository.
#[derive(Debug)]
pub(super) struct Guard {
    issuer: Arc<Issuer>,
    /// With `{realm}` and `{scope}`.
    challenge: String,
    realm: String,
}

/// Lets in some users by their passwords (RFC 7617).
#[derive(Debug)]
pub(super) struct Lock {
    keys: Vec<String>,
    pub(super) challenge: String,
}

#[derive(Debug)]
struct State {
    /// What a form must have to get a token (distribution's `docs/spec/auth/oauth.md`).
    identity: Option<String>,
    /// Where tokens are had.
    path: &'static str,
    /// What whoever wants one shows; anybody gets one without that.
    password: Option<String>,
    /// The answer, with `{token}`; without one it is made of what follows.
    answer: Option<&'static str>,
    /// The key of a token in the answer.
    key: &'static str,
    expires_in: Option<u64>,
    /// Whether the registry will take what is given out.
    is_trusted: bool,
    /// Who there is, and the repositories that each may pull from, by what they show; `None` is whoever shows nothing. Without
    /// anybody, everybody may everything.
    accounts: Option<BTreeMap<Option<String>, BTreeSet<String>>>,
    /// By token: its scope, and whether the registry takes it.
    issued: BTreeMap<String, (String, bool)>,
}

impl TokenServer {
    /// Listens on a port of its own.
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1").await
    }

    /// Listens on a port of its own at one of the addresses of loopback.
    pub(crate) async fn start_at(host: &str) -> Self {
        let inner = FakeRegistry::start_at(host).await;
        let issuer = Arc::new(Issuer {
            state: Mutex::new(State {
                identity: None,
                path: "/token",
                password: None,
                answer: None,
                key: "token",
                expires_in: Some(300),
                is_trusted: true,
                accounts: None,
                issued: BTreeMap::new(),
            }),
        });
        inner.issue(Arc::clone(&issuer));
        Self { inner, issuer }
    }

    /// Where tokens are had.
    pub(crate) fn realm(&self) -> String {
        let path = self.issuer.state.lock().path;
        format!("http://{}{path}", self.inner.address())
    }

    /// Its scheme, host and port.
    pub(crate) fn root(&self) -> String {
        format!("http://{}", self.inner.address())
    }

    /// Gives out tokens at this path, in this answer with `{token}` in it, to whoever shows this password. Nothing else here
    /// is locked by it.
    pub(crate) fn act_as(&self, path: &'static str, answer: &'static str, password: &str) {
        let mut state = self.issuer.state.lock();
        state.path = path;
        state.answer = Some(answer);
        state.password = Some(password.to_owned());
    }

    /// Names the token in its answers by this key.
    pub(crate) fn answer_with(&self, key: &'static str) {
        self.issuer.state.lock().key = key;
    }

    /// Gives tokens to whoever sends a form with this identity token, and to nobody else.
    pub(crate) fn want_identity(&self, token: &str) {
        self.issuer.state.lock().identity = Some(token.to_owned());
    }

    /// Says how many seconds a token is good for, or does not say.
    pub(crate) fn expire_in(&self, seconds: Option<u64>) {
        self.issuer.state.lock().expires_in = seconds;
    }

    /// Whether the registry takes the tokens that are given out from now on.
    pub(crate) fn trust(&self, is_trusted: bool) {
        self.issuer.state.lock().is_trusted = is_trusted;
    }

    /// Lets this user pull from these repositories, and from no others; and whoever is not known, from none. Without a user, it
    /// is about whoever shows nothing.
    pub(crate) fn permit(&self, user: Option<(&str, &str)>, repositories: &[&str]) {
        let shown = user.map(|(user, password)| basic(user, password));
        let repositories = repositories.iter().map(|it| (*it).to_owned()).collect();
        let mut state = self.issuer.state.lock();
        let accounts = state.accounts.get_or_insert_default();
        accounts.insert(shown, repositories);
    }

    /// Forgets a user.
    pub(crate) fn dismiss(&self, user: &str, password: &str) {
        let shown = Some(basic(user, password));
        let mut state = self.issuer.state.lock();
        state.accounts.get_or_insert_default().remove(&shown);
    }

    /// Has the registry take none of the tokens any more that were given out so far.
    pub(crate) fn expire(&self) {
        for (_, is_good) in self.issuer.state.lock().issued.values_mut() {
            *is_good = false;
        }
    }

    /// How often a token was asked for.
    pub(crate) fn exchanges(&self) -> usize {
        self.inner.count(&any("/token"))
    }

    /// The requests for tokens.
    pub(crate) fn exchange() -> Target {
        get("/token")
    }
}

impl std::ops::Deref for TokenServer {
    type Target = FakeRegistry;

    fn deref(&self) -> &FakeRegistry {
        &self.inner
    }
}

impl Issuer {
    /// The answer to a request for a token: a new one for the scope that was asked for, unless it lacks what it must have.
    pub(super) fn issue(&self, seen: &Seen) -> Option<String> {
        let mut state = self.state.lock();
        let query = seen.query.as_deref().unwrap_or_default();
        let (method, pairs) = match &state.identity {
            Some(_) => ("POST", seen.body.as_str()),
            None => ("GET", query),
        };
        let pair = |name| {
            let mut pairs = form_urlencoded::parse(pairs.as_bytes());
            let found = pairs.find(|(key, _)| key == name);
            found.map(|(_, value)| value.into_owned())
        };
        let shown = seen.header("authorization");
        let is_known = state.password.is_none() || state.password.as_deref() == shown;
        if seen.method != method || pair("refresh_token") != state.identity || !is_known {
            return None;
        }
        let scope = pair("scope").unwrap_or_default();
        let shown = shown.map(str::to_owned);
        // Who has a name and a password gets a token, but for what they may not it is good for nothing.
        let may = match &state.accounts {
            None => true,
            Some(accounts) => {
                let repositories = accounts.get(&shown)?;
                let name = scope.strip_prefix("repository:");
                let name = name.and_then(|it| it.strip_suffix(":pull"));
                name.is_some_and(|it| repositories.contains(it))
            }
        };
        let token = format!("{TOKEN}-{}", state.issued.len());
        let is_trusted = state.is_trusted && may;
        if let Some(answer) = state.answer {
            let answer = answer.replace("{token}", &token);
            let known = (scope, is_trusted);
            state.issued.insert(token, known);
            return Some(answer);
        }
        let mut answer = json!({ (state.key): token });
        if let (Some(seconds), Some(answer)) = (state.expires_in, answer.as_object_mut()) {
            answer.insert("expires_in".to_owned(), seconds.into());
        }
        let known = (scope, is_trusted);
        state.issued.insert(token, known);
        if let Some(answer) = answer.as_object_mut().filter(|_| state.identity.is_some()) {
            answer.insert("refresh_token".to_owned(), "another".into());
        }
        Some(answer.to_string())
    }

    /// Whether it is known who there is.
    fn has_accounts(&self) -> bool {
        self.state.lock().accounts.is_some()
    }

    /// Whether tokens are had by this request.
    pub(super) fn is_meant(&self, seen: &Seen) -> bool {
        seen.path == self.state.lock().path
    }

    /// Whether this is a password that is wanted here for a token.
    pub(super) fn wants(&self, authorization: &str, seen: &Seen) -> bool {
        let is_basic = authorization.starts_with("Basic ");
        let is_meant = is_basic && self.is_meant(seen);
        let state = self.state.lock();
        is_meant && (state.password.is_some() || state.accounts.is_some())
    }

    /// The scope of a token, and whether the registry takes it.
    fn issued(&self, authorization: &str) -> Option<(String, bool)> {
        let token = authorization.strip_prefix("Bearer ")?;
        self.state.lock().issued.get(token).cloned()
    }
}

impl Guard {
    pub(super) fn new(server: &TokenServer, challenge: &str) -> Self {
        Self {
            issuer: Arc::clone(&server.issuer),
            challenge: challenge.to_owned(),
            realm: server.realm(),
        }
    }

    /// What a request to this path has to show.
    pub(super) fn challenge(&self, seen: &Seen) -> String {
        let scope = scope(&seen.path).unwrap_or_default();
        let challenge = self.challenge.replace("{realm}", &self.realm);
        challenge.replace("{scope}", &scope)
    }

    /// Whether this was given out for what is asked here, good or not.
    pub(super) fn knows(&self, authorization: &str, seen: &Seen) -> bool {
        let issued = self.issuer.issued(authorization);
        issued.is_some_and(|(issued, _)| scope(&seen.path).is_none_or(|it| it == issued))
    }

    /// Whether this request is let in.
    pub(super) fn admits(&self, seen: &Seen) -> bool {
        let issued = seen
            .header("authorization")
            .and_then(|it| self.issuer.issued(it));
        let Some(scope) = scope(&seen.path) else {
            return issued.is_some() || !self.issuer.has_accounts();
        };
        issued.is_some_and(|(issued, is_good)| is_good && issued == scope)
    }
}

impl Lock {
    pub(super) fn new(user: &str, password: &str, challenge: &str) -> Self {
        Self {
            keys: vec![basic(user, password)],
            challenge: challenge.to_owned(),
        }
    }

    /// Lets in one more.
    pub(super) fn add(&mut self, user: &str, password: &str) {
        self.keys.push(basic(user, password));
    }

    /// Whether this is of the kind that is asked for here.
    pub(super) fn wants(&self, authorization: &str) -> bool {
        authorization.starts_with("Basic ")
    }

    /// Whether this request is let in.
    pub(super) fn opens(&self, seen: &Seen) -> bool {
        let shown = seen.header("authorization");
        self.keys.iter().any(|it| shown == Some(it))
    }
}

/// What a request shows that comes with a password.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// What every token begins with, and nobody else may learn.
pub(crate) const TOKEN: &str = "s3cr3t-token";

/// The scope of pulling what a path names; none where the path is in no repository.
fn scope(path: &str) -> Option<String> {
    let path = path.strip_prefix("/v2/")?;
    let kinds = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let (name, _) = kinds.iter().find_map(|kind| path.rsplit_once(kind))?;
    Some(format!("repository:{name}:pull"))
}
