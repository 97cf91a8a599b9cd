//! Tokens: what a token server gave us for one repository (distribution's token specification).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::oci::RepositoryName;

/// The tokens of one upstream, by repository. What is forgotten is asked for again.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    places: Mutex<HashMap<RepositoryName, Arc<Place>>>,
}

/// The place of one repository's token; one exchange at a time fills it.
#[derive(Debug)]
pub(super) struct Place {
    token: Mutex<Option<Token>>,
    exchange: Arc<Semaphore>,
}

/// A token and when it ends.
#[derive(Clone)]
pub(super) struct Token {
    authorization: HeaderValue,
    good_until: Instant,
}

/// What a token server answers.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Tokens {
    pub(super) fn place(&self, name: &RepositoryName) -> Arc<Place> {
        let mut places = self.places.lock();
        if places.len() >= PLACES_MAX && !places.contains_key(name) {
            places.retain(|_, place| place.token().is_some());
            if places.len() >= PLACES_MAX {
                places.clear();
            }
        }
        Arc::clone(places.entry(name.clone()).or_default())
    }
}

impl Default for Place {
    fn default() -> Self {
        Self {
            token: Mutex::default(),
            exchange: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Place {
    /// The token that is still good.
    pub(super) fn token(&self) -> Option<HeaderValue> {
        let token = self.token.lock();
        let token = token.as_ref().filter(|it| Instant::now() < it.good_until);
        token.map(|it| it.authorization.clone())
    }

    /// The right to exchange; whoever waited for it looks again first.
    pub(super) async fn exchange(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.exchange).acquire_owned().await.ok()
    }

    pub(super) fn put(&self, token: Token) -> HeaderValue {
        let authorization = token.authorization.clone();
        *self.token.lock() = Some(token);
        authorization
    }
}

impl Token {
    /// Reads a token server's answer; `None` when it is none.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(body).ok()?;
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|it| !it.is_empty())?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        authorization.set_sensitive(true);
        let good_for = answer
            .expires_in
            .map_or(GOOD_FOR_DEFAULT, Duration::from_secs);
        // It may be old already when it comes, and is used a little after it was looked at.
        let good_for = good_for.min(GOOD_FOR_MAX).mul_f64(0.9);
        Some(Self {
            authorization,
            good_until: Instant::now() + good_for,
        })
    }
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
const PLACES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

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
        for none in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, "<html>"] {
            assert!(of(none).is_none(), "{none}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = Token::parse(br#"{"token":"secret"}"#).unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        assert!(!format!("{:?}", token.authorization).contains("secret"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_ends_before_its_time() {
        let tokens = Tokens::default();
        let place = tokens.place(&RepositoryName::parse("a").unwrap());
        place.put(Token::parse(br#"{"token":"a"}"#).unwrap());
        tokio::time::advance(Duration::from_secs(53)).await;
        assert!(place.token().is_some());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(place.token().is_none());
    }
}
