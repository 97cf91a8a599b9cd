//! What a client shows of itself: the `Authorization` field (RFC 7617, RFC 6750 §2.1).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::net::{Secret, is_identity};

/// What a client shows of itself.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) enum Shown {
    /// Nothing.
    Nothing,
    /// A user and a password.
    Basic { user: String, password: Secret },
    /// A token, ours or the operator's.
    Bearer(Secret),
    /// Something that is neither, or too long to be.
    Other,
}

impl Shown {
    /// Reads it. What is there more than once is not chosen from.
    pub(in crate::server) fn of(headers: &HeaderMap) -> Self {
        let mut fields = headers.get_all(AUTHORIZATION).iter();
        match (fields.next(), fields.next()) {
            (None, _) => Self::Nothing,
            (Some(field), None) => field.to_str().map_or(Self::Other, Self::parse),
            (Some(_), Some(_)) => Self::Other,
        }
    }

    fn parse(field: &str) -> Self {
        let Some((scheme, rest)) = field.trim().split_once(' ') else {
            return Self::Other;
        };
        let rest = rest.trim_start();
        if scheme.eq_ignore_ascii_case("Basic") {
            Self::basic(rest).unwrap_or(Self::Other)
        } else if scheme.eq_ignore_ascii_case("Bearer") && is_token(rest) {
            Self::Bearer(Secret::new(rest))
        } else {
            Self::Other
        }
    }

    /// A user's name has no colon, a password may (RFC 7617 §2); neither has control characters.
    fn basic(encoded: &str) -> Option<Self> {
        if encoded.len() > BASIC_BYTES_MAX {
            return None;
        }
        let pair = Secret::new(String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?);
        let (user, password) = pair.reveal().split_once(':')?;
        let is_valid = is_identity(user)
            && password.len() <= PASSWORD_BYTES_MAX
            && !password.contains(char::is_control);
        is_valid.then(|| Self::Basic {
            user: user.to_owned(),
            password: Secret::new(password),
        })
    }
}

/// What RFC 6750 §2.1 allows, within bounds.
fn is_token(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    !text.is_empty() && text.len() <= TOKEN_BYTES_MAX && text.bytes().all(is_allowed)
}

/// Passwords that are tokens have some KiB.
const PASSWORD_BYTES_MAX: usize = 4 << 10;
/// Such a password with a user's name, in base64.
const BASIC_BYTES_MAX: usize = 6 << 10;
/// A token of ours may have such a password in it.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Reads any field without panicking; what is read is a user and a password that render as they were, or a token as it was.
/// Whether it is one of them.
pub fn fuzz_authorization(input: &[u8]) -> bool {
    let Ok(value) = http::HeaderValue::from_bytes(input) else {
        return false;
    };
    match Shown::of(&HeaderMap::from_iter([(AUTHORIZATION, value)])) {
        Shown::Nothing | Shown::Other => false,
        Shown::Basic { user, password } => {
            assert!(is_identity(&user) && !user.contains(':'), "a name");
            let pair = format!("{user}:{}", password.reveal());
            let field = format!("Basic {}", STANDARD.encode(pair));
            assert_eq!(Shown::parse(&field), Shown::Basic { user, password });
            true
        }
        Shown::Bearer(token) => {
            let field = format!("Bearer {}", token.reveal());
            assert_eq!(Shown::parse(&field), Shown::Bearer(token));
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[test]
    fn a_user_and_a_password_are_told_apart_at_the_first_colon() {
        for (field, expected) in [
            (
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
                Some(("Aladdin", "open sesame")),
            ),
            (&basic("ann:a:b"), Some(("ann", "a:b"))),
            (&basic("ann:"), Some(("ann", ""))),
            (&basic("zo\u{eb}:\u{a3}"), Some(("zo\u{eb}", "\u{a3}"))),
            (
                &basic("ann:b").replace("Basic ", "bASIC   "),
                Some(("ann", "b")),
            ),
            (&basic(":b"), None),
            (&basic("ann"), None),
            (&basic("a\nnn:b"), None),
            (&basic("ann:b\0c"), None),
            (&basic(&format!("{}:b", "a".repeat(257))), None),
            (&basic(&format!("a:{}", "b".repeat(4097))), None),
            ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ", None),
            ("Basic", None),
            ("Basic ", None),
            ("Basic !", None),
            ("Digest username=\"a\"", None),
            ("", None),
        ] {
            let expected = expected.map(|(user, password)| Shown::Basic {
                user: user.to_owned(),
                password: Secret::new(password),
            });
            let found = Shown::parse(field);
            assert_eq!(found, expected.unwrap_or(Shown::Other), "{field}");
        }
        let long = basic(&format!("{}:{}", "a".repeat(256), "b".repeat(4096)));
        assert!(matches!(Shown::parse(&long), Shown::Basic { .. }));
    }

    #[test]
    fn a_token_is_one_word() {
        let token = |text: &str| Shown::Bearer(Secret::new(text));
        assert_eq!(Shown::parse("Bearer a.b-c_~+/="), token("a.b-c_~+/="));
        assert_eq!(Shown::parse("bearer t"), token("t"));
        for field in [
            "Bearer",
            "Bearer a b",
            "Bearer a\"",
            "Bearer a,b",
            "Bearer \u{fc}",
        ] {
            assert_eq!(Shown::parse(field), Shown::Other, "{field}");
        }
        let long = format!("Bearer {}", "a".repeat(TOKEN_BYTES_MAX + 1));
        assert_eq!(Shown::parse(&long), Shown::Other);
    }

    #[test]
    fn who_shows_two_things_shows_none_of_them() {
        let mut headers = HeaderMap::new();
        assert_eq!(Shown::of(&headers), Shown::Nothing);
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        assert_eq!(Shown::of(&headers), Shown::Bearer(Secret::new("a")));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        assert_eq!(Shown::of(&headers), Shown::Other);
        let odd = HeaderValue::from_bytes(b"Bearer \xff").unwrap();
        let headers = HeaderMap::from_iter([(AUTHORIZATION, odd)]);
        assert_eq!(Shown::of(&headers), Shown::Other);
    }

    #[test]
    fn what_is_shown_is_not_told() {
        for field in [basic("ann:hush"), "Bearer hush".to_owned()] {
            assert!(!format!("{:?}", Shown::parse(&field)).contains("hush"));
        }
    }

    #[test]
    fn no_field_panics_the_parser() {
        use rand::rngs::SmallRng;
        use rand::{Rng, SeedableRng};
        let mut random = SmallRng::seed_from_u64(5);
        let starts: [&[u8]; 5] = [b"Basic ", b"bearer ", b"Basic", b"", b"Digest "];
        for n in 0..20_000 {
            let mut bytes = vec![0; random.random_range(0..40)];
            random.fill(&mut bytes[..]);
            let text = STANDARD.encode(&bytes).into_bytes();
            let rest = if n % 2 == 0 { text } else { bytes };
            let start = starts[n % starts.len()];
            fuzz_authorization(&[start, &rest].concat());
        }
    }
}
