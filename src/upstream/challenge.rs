//! `WWW-Authenticate`: what a registry wants to see (RFC 9110 §11.6.1).

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue};

/// One challenge: a scheme in lower case, and its parameters by names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// All challenges of a response, in their order. What cannot be parsed ends its own field and nothing else.
    pub(super) fn all(headers: &HeaderMap) -> Vec<Self> {
        let fields = headers.get_all(WWW_AUTHENTICATE).iter();
        // Realms are for people to read, and some write them in their own language.
        let texts = fields.map(|it| String::from_utf8_lossy(it.as_bytes()));
        let challenges = texts.take(FIELDS_MAX).flat_map(|it| Self::parse(&it));
        challenges.take(CHALLENGES_MAX).collect()
    }

    /// A parameter's value.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// As the RFC has it, with every value in quotes.
    fn written(&self) -> String {
        let mut text = self.scheme.clone();
        for (n, (name, value)) in self.parameters.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', r#"\""#);
            let separator = if n == 0 { "" } else { "," };
            text = format!("{text}{separator} {name}=\"{value}\"");
        }
        text
    }

    /// Several challenges stand in one field, separated by the same commas as the parameters of one.
    fn parse(field: &str) -> Vec<Self> {
        let mut challenges: Vec<Self> = Vec::new();
        let mut rest = field.trim_start_matches(is_separator);
        while !rest.is_empty() {
            let (word, after) = token(rest);
            if word.is_empty() {
                break;
            }
            let after = after.trim_start_matches(is_space);
            let is_last = challenges.len() == CHALLENGES_MAX;
            match (after.strip_prefix('='), challenges.last_mut()) {
                (Some(value), Some(challenge)) => {
                    let Some((value, after)) = value_of(value.trim_start_matches(is_space)) else {
                        break;
                    };
                    challenge
                        .parameters
                        .push((word.to_ascii_lowercase(), value));
                    rest = after;
                }
                // A parameter of no challenge.
                (Some(_), None) => break,
                // The last one that is read has its parameters, too.
                (None, _) if is_last => break,
                (None, _) => {
                    let scheme = word.to_ascii_lowercase();
                    challenges.push(Self {
                        scheme,
                        parameters: Vec::new(),
                    });
                    rest = without_token68(after);
                }
            }
            rest = rest.trim_start_matches(is_separator);
        }
        challenges
    }
}

const FIELDS_MAX: usize = 8;
const CHALLENGES_MAX: usize = 16;

const fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t')
}

const fn is_separator(character: char) -> bool {
    matches!(character, ' ' | '\t' | ',')
}

/// A token at the beginning (RFC 9110 §5.6.2), and what follows.
fn token(text: &str) -> (&str, &str) {
    let is_tchar = |it: char| it.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(it);
    text.split_at(text.find(|it| !is_tchar(it)).unwrap_or(text.len()))
}

/// What follows a token68 (RFC 9110 §11.2), which some schemes have instead of parameters, and the text itself where it
/// does not begin with one. Only its end tells it from a parameter.
fn without_token68(text: &str) -> &str {
    let is_part = |it: char| it.is_ascii_alphanumeric() || "-._~+/".contains(it);
    let rest = text.trim_start_matches(is_part);
    let after = rest.trim_start_matches('=').trim_start_matches(is_space);
    let is_one = rest.len() < text.len() && (after.is_empty() || after.starts_with(','));
    if is_one { after } else { text }
}

/// A token or a quoted string, and what follows; `None` when the string does not end.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        // Some send a URL without quotes: everything up to the next separator.
        let end = text.find(is_separator).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// Parses anything without panicking; what was found is found again when it is written as the RFC has it. Whether anything
/// was.
pub fn fuzz_challenge(input: &[u8]) -> bool {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    let found = Challenge::all(&headers);
    assert!(found.len() <= CHALLENGES_MAX, "their number is bounded");
    let written: Vec<String> = found.iter().map(Challenge::written).collect();
    assert_eq!(
        Challenge::parse(&written.join(", ")),
        found,
        "challenges are read as they are written"
    );
    !found.is_empty()
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn challenges_are_told_apart() {
        let field = r#"Basic realm="a, b", BEARER Realm="https://auth.example/token",service=reg , scope="repository:a/b:pull", Negotiate"#;
        let found = Challenge::parse(field);
        let schemes: Vec<&str> = found.iter().map(|it| it.scheme.as_str()).collect();
        assert_eq!(schemes, ["basic", "bearer", "negotiate"]);
        assert_eq!(found[0].parameter("realm"), Some("a, b"));
        assert_eq!(
            found[1].parameter("realm"),
            Some("https://auth.example/token")
        );
        assert_eq!(found[1].parameter("service"), Some("reg"));
        assert_eq!(found[1].parameter("scope"), Some("repository:a/b:pull"));
        assert_eq!(found[1].parameter("error"), None);
    }

    #[test]
    fn what_registries_really_send_is_understood() {
        for (field, realm, service) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#,
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
            ),
            (
                r#"bearer realm = "https://ghcr.io/token" , service = "ghcr.io""#,
                "https://ghcr.io/token",
                Some("ghcr.io"),
            ),
            (
                "Bearer realm=https://a.example/token",
                "https://a.example/token",
                None,
            ),
            (
                r#"Bearer realm="https://a.example/\"x\"""#,
                r#"https://a.example/"x""#,
                None,
            ),
        ] {
            let found = Challenge::parse(field);
            assert_eq!(found.len(), 1, "{field}");
            assert_eq!(found[0].parameter("realm"), Some(realm));
            assert_eq!(found[0].parameter("service"), service);
        }
        for nothing in ["", ",,", "=x", "\"", "realm=\"x\""] {
            assert!(
                Challenge::parse(nothing)
                    .iter()
                    .all(|it| it.scheme != "bearer")
            );
        }
        assert_eq!(
            Challenge::parse(r#"Bearer realm="x"#)[0].parameter("realm"),
            None
        );
    }

    #[test]
    fn pitfall_44_what_stands_around_a_challenge_does_not_hide_it() {
        for field in [
            r#"Negotiate, bearer realm="r",service="s""#,
            r#"Negotiate oRQwEqADCgEA/x+y==, Bearer realm="r",service="s""#,
            r#"Basic realm="a, Bearer realm=\"x\"", Bearer realm="r", service="s""#,
            r#"Digest qop="auth, auth-int", nonce=a==, BEARER Service="s",Realm="r""#,
            ", ,Bearer\trealm = \"r\" ,, service=s , Custom",
            r#"Basic realm="Zugriff für alle", Bearer realm="r",service="s""#,
            r#"Bearer realm="r",error="invalid_token",service="s",error_description="a \"b\", c""#,
        ] {
            let mut headers = HeaderMap::new();
            let field = HeaderValue::from_bytes(field.as_bytes()).unwrap();
            headers.append(WWW_AUTHENTICATE, "Basic realm=\"first\"".parse().unwrap());
            headers.append(WWW_AUTHENTICATE, "Broken realm=\"".parse().unwrap());
            headers.append(WWW_AUTHENTICATE, field.clone());
            let found = Challenge::all(&headers);
            let mut bearers = found.iter().filter(|it| it.scheme == "bearer");
            let bearer = bearers.next().unwrap();
            let said = (bearer.parameter("realm"), bearer.parameter("service"));
            assert_eq!(said, (Some("r"), Some("s")), "{field:?}");
            assert!(bearers.next().is_none(), "{field:?}");
            assert_eq!(found[0].parameter("realm"), Some("first"));
        }
        // What has a token68 has no parameters, and what has parameters no token68.
        let found = Challenge::parse("Negotiate realm=, Bearer realm=r");
        assert_eq!(found[0].parameter("realm"), None);
        assert_eq!(found[1].parameter("realm"), Some("r"));
    }

    #[test]
    fn the_last_challenge_that_is_read_has_its_parameters() {
        for (before, expected) in [(CHALLENGES_MAX - 1, Some("r")), (CHALLENGES_MAX, None)] {
            let field = format!("{}Bearer realm=r", "Negotiate, ".repeat(before));
            let found = Challenge::parse(&field);
            assert_eq!(found.len(), CHALLENGES_MAX);
            let bearer = found.iter().find(|it| it.scheme == "bearer");
            assert_eq!(bearer.and_then(|it| it.parameter("realm")), expected);
        }
    }

    #[test]
    fn no_input_panics_the_parser() {
        let words = [
            "Bearer",
            " ",
            ",",
            "=",
            "\"",
            "\\",
            "realm",
            "ü",
            "https://a/b",
            "\t",
            "Basic",
        ];
        let mut random = SmallRng::seed_from_u64(7);
        for _ in 0..50_000 {
            let count = random.random_range(0..12);
            let text: String = (0..count)
                .filter_map(|_| words.choose(&mut random))
                .copied()
                .collect();
            fuzz_challenge(text.as_bytes());
        }
    }
}
