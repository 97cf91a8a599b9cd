//! Tokens: what a token server gave us for one repository (distribution's token specification).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::credential::Credential;
use super::error::Error;
use crate::net::from_json_object;
use crate::oci::RepositoryName;

/// The tokens of one site, by repository. What is forgotten is asked for again.
#[derive(Debug)]
pub(super) struct Tokens {
    kept: Mutex<Kept>,
    places_max: usize,
}

/// Tokens of one and the same owner: others find none of them.
#[derive(Debug, Default)]
struct Kept {
    owner: Option<Arc<Credential>>,
    places: HashMap<RepositoryName, Arc<Place>>,
}

/// The place of one repository's token; one exchange at a time fills it.
#[derive(Debug, Default)]
pub(super) struct Place {
    token: Mutex<Option<Token>>,
    /// What the last exchange came to.
    exchange: tokio::sync::Mutex<Option<Exchanged>>,
}

/// The right to exchange, and the duty to say what it came to.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    place: &'a Place,
    last: MutexGuard<'a, Option<Exchanged>>,
    came: Instant,
}

/// What an exchange came to, and when.
#[derive(Debug)]
struct Exchanged {
    outcome: Result<HeaderValue, Error>,
    ended: Instant,
}

/// A token and when it ends.
#[derive(Clone)]
pub(super) struct Token {
    authorization: HeaderValue,
    good_until: Instant,
    /// Until when the token server says that it is good.
    ends: Instant,
    /// What it says was so at this moment, or later.
    since: Instant,
}

/// What a token server answers. `issued_at` is not looked at: it is the time of another clock than ours, and a token that
/// ends before we think so costs one refusal and one exchange.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<Value>,
}

impl Tokens {
    /// None yet, of ourselves.
    pub(super) fn new() -> Self {
        Self {
            kept: Mutex::default(),
            places_max: PLACES_MAX,
        }
    }

    /// None yet, of one caller among many: anybody can be one, and name as many repositories as they like.
    pub(super) fn of_caller() -> Self {
        Self {
            kept: Mutex::default(),
            places_max: CALLERS_PLACES_MAX,
        }
    }

    /// The place of the token that this owner has for this repository. The tokens of another owner are forgotten.
    pub(super) fn place(
        &self,
        owner: Option<&Arc<Credential>>,
        name: &RepositoryName,
    ) -> Arc<Place> {
        let mut kept = self.kept.lock();
        if kept.owner.as_ref() != owner {
            kept.places.clear();
            kept.owner = owner.cloned();
        }
        let places = &mut kept.places;
        if places.len() >= self.places_max && !places.contains_key(name) {
            places.retain(|_, place| place.token().is_some());
            if places.len() >= self.places_max {
                places.clear();
            }
        }
        Arc::clone(places.entry(name.clone()).or_default())
    }

    /// When the token was asked for that is good for this repository now, whoever owns it.
    pub(super) fn since(&self, name: &RepositoryName) -> Option<Instant> {
        let place = self.kept.lock().places.get(name).cloned()?;
        let token = place.token.lock();
        let token = token.as_ref().filter(|it| Instant::now() < it.good_until);
        token.map(|it| it.since)
    }
}

impl Place {
    /// For how long the token is good yet, if there is one, whether or not it is used for as long.
    pub(super) fn left(&self) -> Option<Duration> {
        let ends = self.token.lock().as_ref()?.ends;
        let left = ends.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// The token that is still good.
    pub(super) fn token(&self) -> Option<HeaderValue> {
        let token = self.token.lock();
        let token = token.as_ref().filter(|it| Instant::now() < it.good_until);
        token.map(|it| it.authorization.clone())
    }

    /// Whether there is a token that was given a moment ago.
    pub(super) fn is_new(&self) -> bool {
        let token = self.token.lock();
        let token = token.as_ref().filter(|it| Instant::now() < it.good_until);
        token.is_some_and(|it| it.since.elapsed() < NEW_FOR)
    }

    /// Waits for the right to exchange. Cancel-safe; a right that is dropped unused is the next one's.
    pub(super) async fn turn(&self) -> Turn<'_> {
        let came = Instant::now();
        let last = self.exchange.lock().await;
        Turn {
            place: self,
            last,
            came,
        }
    }
}

impl Turn<'_> {
    /// What need not be exchanged for: a good token that is not the rejected one, or what came of an exchange that ended
    /// while this one waited for its turn.
    pub(super) fn ready(
        &self,
        rejected: Option<&HeaderValue>,
    ) -> Option<Result<HeaderValue, Error>> {
        let is_news = |it: &HeaderValue| Some(it) != rejected;
        if let Some(token) = self.place.token().filter(is_news) {
            return Some(Ok(token));
        }
        let last = self.last.as_ref().filter(|it| it.ended >= self.came)?;
        let outcome = last.outcome.clone();
        (outcome.as_ref().is_err() || outcome.as_ref().is_ok_and(is_news)).then_some(outcome)
    }

    /// Keeps what an exchange came to, for us and for those who wait.
    pub(super) fn end(mut self, exchanged: Result<Token, Error>) -> Result<HeaderValue, Error> {
        let outcome = exchanged.map(|mut token| {
            token.since = self.came;
            let authorization = token.authorization.clone();
            *self.place.token.lock() = Some(token);
            authorization
        });
        *self.last = Some(Exchanged {
            outcome: outcome.clone(),
            ended: Instant::now(),
        });
        outcome
    }
}

impl Token {
    /// Reads a token server's answer; `None` when it is none.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let answer: Answer = from_json_object(body)?;
        let tokens = [answer.token, answer.access_token];
        let token = tokens.into_iter().flatten().find(|it| !it.is_empty())?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        authorization.set_sensitive(true);
        let good_for = answer.expires_in.as_ref().and_then(good_for);
        // It may be old already when it comes, and is used a little after it was looked at.
        let good_for = good_for
            .unwrap_or(GOOD_FOR_DEFAULT)
            .min(GOOD_FOR_MAX)
            .mul_f64(0.9);
        let now = Instant::now();
        Some(Self {
            authorization,
            good_until: now + good_for,
            ends: now + good_for,
            since: now,
        })
    }

    /// The same, used for no longer than this.
    pub(super) fn for_at_most(mut self, max: Duration) -> Self {
        let until = Instant::now().checked_add(max);
        self.good_until = until.map_or(self.good_until, |it| it.min(self.good_until));
        self
    }
}

/// A number of seconds, as some write it: whole or not, quoted or not; what is no time at all is none.
fn good_for(expires_in: &Value) -> Option<Duration> {
    let quoted = expires_in.as_str().and_then(|it| it.trim().parse().ok());
    let seconds = expires_in.as_f64().or(quoted)?;
    let seconds = seconds.clamp(0.0, GOOD_FOR_MAX.as_secs_f64());
    Duration::try_from_secs_f64(seconds).ok()
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("good_until", &self.good_until)
            .finish_non_exhaustive()
    }
}

/// A token without `expires_in` is good for this long (distribution's token specification).
const GOOD_FOR_DEFAULT: Duration = Duration::from_secs(60);
const GOOD_FOR_MAX: Duration = Duration::from_secs(3600);
/// For how long another token would say nothing else.
const NEW_FOR: Duration = Duration::from_secs(60);
const PLACES_MAX: usize = 10_000;
/// More than a client pulls from within the time of a token.
const CALLERS_PLACES_MAX: usize = 100;

/// Reads anything without panicking; a token is the one that the answer has, and good for a bounded time. Whether there was
/// one.
pub fn fuzz_token(input: &[u8]) -> bool {
    let Some(token) = Token::parse(input) else {
        return false;
    };
    let left = token.good_until.saturating_duration_since(Instant::now());
    assert!(left <= GOOD_FOR_MAX, "no token is good for ever");
    assert!(token.authorization.is_sensitive(), "it is not shown");
    // What is passed over may be of no characters, or no number that there is.
    let Ok(answer) = serde_json::from_slice::<Value>(input) else {
        return true;
    };
    let texts = ["token", "access_token"].map(|name| answer.get(name).and_then(Value::as_str));
    let is_there = texts.into_iter().flatten().any(|text| {
        let expected = format!("Bearer {text}");
        !text.is_empty() && token.authorization.as_bytes() == expected.as_bytes()
    });
    assert!(is_there, "a token is what the answer calls one");
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Secret;

    #[test]
    fn either_name_of_a_token_will_do() {
        let of = |text: &str| Token::parse(text.as_bytes()).map(|it| it.authorization);
        assert_eq!(of(r#"{"token":"a"}"#).unwrap(), "Bearer a");
        assert_eq!(
            of(r#"{"access_token":"b","expires_in":300}"#).unwrap(),
            "Bearer b"
        );
        assert_eq!(
            of(r#"{"token":"a","access_token":"b"}"#).unwrap(),
            "Bearer a"
        );
        assert_eq!(
            of(r#"{"token":"","access_token":"b"}"#).unwrap(),
            "Bearer b"
        );
        for none in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, "<html>"] {
            assert!(of(none).is_none(), "{none}");
        }
    }

    #[test]
    fn a_list_is_no_answer_of_a_token_server() {
        assert!(Token::parse(br#"["a", null, 300]"#).is_none());
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = Token::parse(br#"{"token":"secret"}"#).unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        assert!(!format!("{:?}", token.authorization).contains("secret"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_ends_before_its_time() {
        let tokens = Tokens::new();
        let place = tokens.place(None, &name("a"));
        let put = place.turn().await.end(Ok(of("a")));
        assert_eq!(put.unwrap(), "Bearer a");
        tokio::time::advance(Duration::from_secs(53)).await;
        assert!(place.token().is_some());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(place.token().is_none());
    }

    #[test]
    fn a_lifetime_is_read_however_it_is_written() {
        for (text, seconds) in [
            ("300", 300),
            ("\"300\"", 300),
            ("299.5", 299),
            ("0", 0),
            ("-1", 0),
            ("1e300", 3600),
            ("18446744073709551615", 3600),
            ("null", 60),
            ("\"soon\"", 60),
            ("\"NaN\"", 60),
            ("[300]", 60),
        ] {
            let body = format!(r#"{{"token":"a","expires_in":{text}}}"#);
            let began = Instant::now();
            let token = Token::parse(body.as_bytes()).unwrap();
            let good_for = (token.good_until - began).as_secs_f64() / 0.9;
            let apart = (good_for - f64::from(seconds)).abs();
            assert!(apart < 1.0, "{text}: {good_for}");
        }
    }

    #[tokio::test]
    async fn tokens_are_bounded_in_number() {
        for (tokens, max) in [
            (Tokens::new(), PLACES_MAX),
            (Tokens::of_caller(), CALLERS_PLACES_MAX),
        ] {
            let kept = tokens.place(None, &name("kept"));
            kept.turn().await.end(Ok(of("a"))).unwrap();
            for n in 0..max + 10 {
                tokens.place(None, &name(&format!("a{n}")));
                assert!(tokens.kept.lock().places.len() <= max);
            }
            assert!(tokens.place(None, &name("kept")).token().is_some());
        }
    }

    #[test]
    fn pitfall_34_tokens_are_their_owners_alone() {
        let owner = |password| Some(Arc::new(Credential::new("u", Secret::new(password))));
        let (tokens, name) = (Tokens::new(), name("a"));
        let (first, second) = (owner("first"), owner("second"));
        for (was, is) in [
            (&None, &first),
            (&first, &second),
            (&second, &None),
            (&first, &None),
        ] {
            let place = tokens.place(was.as_ref(), &name);
            *place.token.lock() = Some(of("a"));
            let again = owner("first").filter(|_| *was == first).or(was.clone());
            assert!(tokens.place(again.as_ref(), &name).token().is_some());
            assert!(tokens.place(is.as_ref(), &name).token().is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_ends_for_everybody_who_waited_for_it() {
        let (place, host) = (Place::default(), || "t".to_owned());
        let first = place.turn().await;
        let waiting = async {
            let turn = place.turn().await;
            turn.ready(None).map(|it| it.map_err(|it| it.to_string()))
        };
        let ending = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let failed = first.end(Err(Error::Gone { host: host() }));
            assert!(failed.is_err());
        };
        let (waited, ()) = tokio::join!(waiting, ending);
        assert_eq!(waited, Some(Err("t does not have it".to_owned())));
        // Whoever comes later makes one of its own.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(place.turn().await.ready(None).is_none());
    }

    fn name(text: &str) -> RepositoryName {
        RepositoryName::parse(text).unwrap()
    }

    fn of(token: &str) -> Token {
        Token::parse(format!(r#"{{"token":"{token}"}}"#).as_bytes()).unwrap()
    }
}
