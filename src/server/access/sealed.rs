//! Tokens of ours: what they are good for, encrypted and authenticated, and nothing kept for them here.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::entries::Fingerprint;

/// Seals tokens under a key of this process. Clones have the same.
///
/// The cipher is one that survives a nonce that comes twice (AES-GCM-SIV, RFC 8452): they are random, and anybody may ask for as
/// many tokens as they like.
#[derive(Clone, Debug)]
pub(in crate::server) struct Sealer {
    key: Arc<RandomizedNonceKey>,
    /// Time is counted from here: no clock that is set back makes a token live longer.
    began: Instant,
}

/// What a token is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    /// To whom it was given; `None` is to nobody in particular.
    pub(super) bearer: Option<Bearer>,
}

/// Who has shown who they are, and by which entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bearer {
    pub(super) name: String,
    pub(super) by: Shape,
    pub(super) entry: Fingerprint,
}

/// In which file the entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Shape {
    User,
    Token,
}

#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    grant: T,
    /// Milliseconds after the beginning.
    until: u64,
}

impl Sealer {
    /// A sealer with a new key.
    pub(in crate::server) fn new() -> Self {
        let key: [u8; 32] = rand::random();
        #[expect(clippy::expect_used, reason = "keys of this cipher have this length")]
        let key = RandomizedNonceKey::new(&AES_256_GCM_SIV, &key).expect("a key of 32 bytes");
        Self {
            key: Arc::new(key),
            began: Instant::now(),
        }
    }

    /// A token that is good for so long; `None` when the library fails.
    pub(in crate::server) fn seal<T: Serialize>(
        &self,
        grant: &T,
        lifetime: Duration,
    ) -> Option<String> {
        let until = self.millis(Instant::now() + lifetime);
        let mut sealed = serde_json::to_vec(&Sealed { grant, until }).ok()?;
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(PURPOSE), &mut sealed);
        let mut token = nonce.ok()?.as_ref().to_vec();
        token.append(&mut sealed);
        Some(URL_SAFE_NO_PAD.encode(token))
    }

    /// What a token is good for; `None` when it is not one of this process', or its time is over.
    pub(in crate::server) fn open<T: DeserializeOwned>(&self, token: &str) -> Option<T> {
        let mut bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = self.key.open_in_place(nonce, Aad::from(PURPOSE), sealed);
        let Sealed::<T> { grant, until } = serde_json::from_slice(opened.ok()?).ok()?;
        (self.millis(Instant::now()) < until).then_some(grant)
    }

    fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// What the key is used for, so that nothing else that may be sealed some day is taken for a token.
const PURPOSE: &[u8] = b"layerhold token";

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(name: &str) -> Grant {
        Grant {
            bearer: Some(Bearer {
                name: name.to_owned(),
                by: Shape::User,
                entry: [7; 32],
            }),
        }
    }

    #[test]
    fn a_token_says_what_it_is_good_for_to_us_alone() {
        let sealer = Sealer::new();
        for grant in [grant("ann"), grant("zo\u{eb}"), Grant { bearer: None }] {
            let token = sealer.seal(&grant, Duration::from_secs(1)).unwrap();
            assert_eq!(sealer.open::<Grant>(&token), Some(grant.clone()));
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            assert!(token.bytes().all(is_plain), "{token}");
            let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains("ann"));
            // Of another process, as after a restart.
            assert_eq!(Sealer::new().open::<Grant>(&token), None);
            assert_ne!(sealer.seal(&grant, Duration::from_secs(1)).unwrap(), token);
        }
    }

    #[test]
    fn a_token_that_was_touched_is_none() {
        let sealer = Sealer::new();
        let token = sealer.seal(&grant("ann"), Duration::from_secs(1)).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(
                sealer.open::<Grant>(&URL_SAFE_NO_PAD.encode(bytes)),
                None,
                "{at}"
            );
        }
        for len in 0..bytes.len() {
            assert_eq!(
                sealer.open::<Grant>(&URL_SAFE_NO_PAD.encode(&bytes[..len])),
                None
            );
        }
        for text in ["", "a", "!", &format!("{token}="), &format!("{token}A")] {
            assert_eq!(sealer.open::<Grant>(text), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_ends() {
        let sealer = Sealer::new();
        let token = sealer.seal(&grant("ann"), Duration::from_secs(10)).unwrap();
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert!(sealer.open::<Grant>(&token).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(sealer.open::<Grant>(&token), None);
    }
}
