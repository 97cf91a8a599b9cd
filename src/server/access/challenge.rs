//! What a client is told that has to show who it is (distribution's token specification; RFC 6750 §3).

use std::fmt;

/// The one challenge that goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) enum Challenge {
    /// A token of ours is wanted.
    Bearer {
        /// Our token endpoint.
        realm: String,
        /// Of whom the client asks the token, in its own words: the namespace that it named, or our host.
        service: String,
        /// The repository, in the client's words.
        scope: Option<String>,
        /// What is wrong with the token that was shown.
        error: Option<&'static str>,
    },
    /// Nobody can say where our token endpoint is: a password will do.
    Basic,
}

impl Challenge {
    /// A challenge by a proxy that is called `origin`, such as `https://cache.example`, to a client that means `service`.
    pub(super) fn new(origin: Option<String>, service: Option<&str>) -> Self {
        match (origin, service) {
            (Some(origin), Some(service)) if is_plain(&origin) && is_plain(service) => {
                Self::Bearer {
                    realm: format!("{origin}/token"),
                    service: service.to_owned(),
                    scope: None,
                    error: None,
                }
            }
            _ => Self::Basic,
        }
    }

    /// The same, for pulling from a repository.
    pub(in crate::server) fn with_scope(mut self, name: &str) -> Self {
        if let Self::Bearer { scope, .. } = &mut self {
            *scope = is_plain(name).then(|| format!("repository:{name}:pull"));
        }
        self
    }

    /// The same, after a token was shown with which this is wrong.
    pub(in crate::server) fn with_error(mut self, wrong: &'static str) -> Self {
        if let Self::Bearer { error, .. } = &mut self {
            *error = Some(wrong);
        }
        self
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Bearer {
            realm,
            service,
            scope,
            error,
        } = self
        else {
            return f.write_str("Basic realm=\"layerhold\"");
        };
        write!(f, "Bearer realm=\"{realm}\",service=\"{service}\"")?;
        if let Some(scope) = scope {
            write!(f, ",scope=\"{scope}\"")?;
        }
        error.map_or(Ok(()), |error| write!(f, ",error=\"{error}\""))
    }
}

/// Whether a text is the same within quotes, in an address and in a client's request: a host, a name, an address of ours.
pub(super) fn is_plain(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:[]".contains(&byte);
    !text.is_empty() && text.len() <= PLAIN_BYTES_MAX && text.bytes().all(is_plain)
}

/// Longer than any host, and any namespace with a repository.
const PLAIN_BYTES_MAX: usize = 600;

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(origin: &str, service: &str) -> String {
        Challenge::new(Some(origin.to_owned()), Some(service)).to_string()
    }

    #[test]
    fn a_challenge_names_us_and_what_was_asked_for() {
        let plain = Challenge::new(Some("http://c.example:5000".to_owned()), Some("ghcr.io"));
        let start = r#"Bearer realm="http://c.example:5000/token",service="ghcr.io""#;
        assert_eq!(plain.to_string(), start);
        let scoped = plain.with_scope("library/debian");
        let scope = r#",scope="repository:library/debian:pull""#;
        assert_eq!(scoped.to_string(), format!("{start}{scope}"));
        let again = scoped.with_error("invalid_token");
        let error = r#",error="invalid_token""#;
        assert_eq!(again.to_string(), format!("{start}{scope}{error}"));
        let v6 = challenge("http://[::1]:5000", "[::1]:5000");
        let expected = r#"Bearer realm="http://[::1]:5000/token",service="[::1]:5000""#;
        assert_eq!(v6, expected);
    }

    #[test]
    fn what_would_end_a_quote_is_not_repeated() {
        let basic = r#"Basic realm="layerhold""#;
        for text in [
            "",
            "a\"b",
            "a b",
            "a,b",
            "a\\",
            "a\r\nb",
            "a;b",
            "\u{fc}",
            &"a".repeat(601),
        ] {
            assert_eq!(challenge(&format!("http://{text}x\""), "a"), basic);
            assert_eq!(challenge("http://a", text), basic, "{text}");
        }
        assert_eq!(Challenge::new(None, Some("a")).to_string(), basic);
    }
}
