//! Patterns of names, as rules have them: `library/*`, `team/**`, `v1.*`.
//!
//! A pattern is held against the whole name. `*` stands for any characters but `/`, none included; `**` for any
//! characters, `/` and none included; everything else for itself. So `team/*` is `team/app` and not `team/app/debug`,
//! `team/**` is both, and neither is `team`.

use std::sync::Arc;

use super::names::{RepositoryName, Tag};

/// Some repositories, by their names.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RepositoryPattern(Arc<str>);

/// Some tags. A tag has no `/`, so `*` and `**` are the same here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TagPattern(Arc<str>);

/// A text that is no pattern: it is empty or too long, or has a character that no such name has. That includes what other
/// languages of patterns have (`?`, `[…]`, `{…}`, `!`): such a rule would never apply, and nobody would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pattern such as `library/debian`, `team/*` or `team/**`")]
pub struct InvalidPattern;

impl RepositoryPattern {
    /// Parses a pattern of whole repository names.
    ///
    /// # Errors
    ///
    /// When it is none, or could match no name for its characters.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let is_used = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/*".contains(&byte)
        };
        let is_bare = text.starts_with('/') || text.ends_with('/') || text.contains("//");
        match is_bare {
            true => Err(InvalidPattern),
            false => checked(text, is_used).map(Self),
        }
    }

    /// Whether the whole name is one of these.
    pub fn matches(&self, name: &RepositoryName) -> bool {
        matches(self.0.as_bytes(), name.as_str().as_bytes())
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TagPattern {
    /// Parses a pattern of whole tags.
    ///
    /// # Errors
    ///
    /// When it is none, or could match no tag for its characters.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let is_used = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*".contains(&byte);
        checked(text, is_used).map(Self)
    }

    /// Whether the whole tag is one of these.
    pub fn matches(&self, tag: &Tag) -> bool {
        matches(self.0.as_bytes(), tag.as_str().as_bytes())
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

written_as_text!(RepositoryPattern, TagPattern);

/// The longest name that there is, and as many stars again.
const PATTERN_BYTES_MAX: usize = 512;

fn checked(text: &str, is_used: impl Fn(u8) -> bool) -> Result<Arc<str>, InvalidPattern> {
    let is_pattern = !text.is_empty()
        && text.len() <= PATTERN_BYTES_MAX
        && text.bytes().all(is_used)
        && !text.contains("***");
    match is_pattern {
        true => Ok(text.into()),
        false => Err(InvalidPattern),
    }
}

/// Whether the pattern is the whole text. The time is bounded by the product of their lengths, whatever the pattern.
///
/// Each star takes as little as it can and more when what follows does not fit: the last `*` first, which may not pass a
/// `/`, then the last `**`. What stands before the last `**` never has to be tried again, since that star can take
/// whatever an earlier one would have.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut next) = (0, 0);
    // Where to go on in the pattern, and in the text, if a star has to take one more.
    let mut within: Option<(usize, usize)> = None;
    let mut across: Option<(usize, usize)> = None;
    loop {
        let rest = pattern.get(at..).unwrap_or_default();
        match (rest.first(), text.get(next)) {
            (Some(b'*'), _) if rest.get(1) == Some(&b'*') => {
                at += 2;
                (across, within) = (Some((at, next)), None);
                continue;
            }
            (Some(b'*'), _) => {
                at += 1;
                within = Some((at, next));
                continue;
            }
            (Some(wanted), Some(there)) if wanted == there => {
                (at, next) = (at + 1, next + 1);
                continue;
            }
            (None, None) => return true,
            (Some(_) | None, Some(_)) | (Some(_), None) => {}
        }
        if let Some((after, from)) = within
            && text.get(from).is_some_and(|&it| it != b'/')
        {
            (at, next) = (after, from + 1);
            within = Some((at, next));
        } else if let Some((after, from)) = across
            && from < text.len()
        {
            (at, next) = (after, from + 1);
            (across, within) = (Some((at, next)), None);
        } else {
            return false;
        }
    }
}

/// Parses anything without panicking, and renders what it accepts back as it was. The first half of the input is the
/// pattern, the other the name.
pub fn fuzz_pattern(input: &[u8]) {
    let (pattern, name) = input.split_at(input.len() / 2);
    let (Ok(pattern), Ok(name)) = (str::from_utf8(pattern), str::from_utf8(name)) else {
        return;
    };
    if let Ok(pattern) = RepositoryPattern::parse(pattern) {
        if let Ok(name) = RepositoryName::parse(name) {
            pattern.matches(&name);
        }
        // Without a star it is a name, or matches none.
        if let Ok(exact) = RepositoryName::parse(pattern.as_str()) {
            assert!(pattern.matches(&exact), "a name is a pattern of itself");
        }
    }
    if let (Ok(pattern), Ok(tag)) = (TagPattern::parse(pattern), Tag::parse(name)) {
        pattern.matches(&tag);
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use regex::Regex;

    use super::*;

    fn is_match(pattern: &str, name: &str) -> bool {
        let pattern = RepositoryPattern::parse(pattern).unwrap();
        pattern.matches(&RepositoryName::parse(name).unwrap())
    }

    #[test]
    fn a_pattern_is_held_against_the_whole_name() {
        for (pattern, name, expected) in [
            ("library/debian", "library/debian", true),
            ("library/debian", "library/debian-slim", false),
            ("library/debian", "my/library/debian", false),
            ("*", "debian", true),
            ("*", "library/debian", false),
            ("**", "library/debian", true),
            ("library/*", "library/debian", true),
            ("library/*", "library/a/b", false),
            ("library/*", "library", false),
            ("team/**", "team/app", true),
            ("team/**", "team/app/debug", true),
            ("team/**", "team", false),
            ("team/**", "teams/app", false),
            ("**/debug", "a/b/debug", true),
            ("**/debug", "debug", false),
            ("**debug", "debug", true),
            ("*/app", "team/app", true),
            ("*/app", "a/team/app", false),
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/b/b/c", false),
            ("a/**/c", "a/b/b/c", true),
            ("a/**/c", "a/c", false),
            ("team/app-*", "team/app-1", true),
            ("*a*b", "xaxb", true),
            ("**/x*y/z", "q/xy/xay/z", true),
        ] {
            assert_eq!(is_match(pattern, name), expected, "{pattern} {name}");
        }
        let tag = |pattern, tag| {
            let pattern = TagPattern::parse(pattern).unwrap();
            pattern.matches(&Tag::parse(tag).unwrap())
        };
        assert!(tag("latest", "latest"));
        assert!(tag("v1.*", "v1.2-RC1"));
        assert!(!tag("v1.*", "v10"));
        assert!(!tag("latest", "Latest"));
    }

    #[test]
    fn what_could_never_match_is_refused() {
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        for bad in [
            "", "/", "/a", "a/", "a//b", "A", "a b", "a?", "[ab]", "{a,b}", "!a", "a***", "a:b",
            "a@b", "a\0", "ü", "^a$", "a%2fb", &long,
        ] {
            assert_eq!(RepositoryPattern::parse(bad), Err(InvalidPattern), "{bad}");
        }
        for bad in ["", "a/b", "a:b", "a b", "v?", "***", "ü", &long] {
            assert_eq!(TagPattern::parse(bad), Err(InvalidPattern), "{bad}");
        }
    }

    #[test]
    fn every_pattern_agrees_with_its_regular_expression() {
        let seed: u64 = rand::random();
        let mut random = SmallRng::seed_from_u64(seed);
        let mut words = |words: &[&str], most: usize| -> String {
            let count = random.random_range(0..=most);
            let mut word = || words[random.random_range(0..words.len())];
            (0..count).map(|_| word()).collect()
        };
        for _ in 0..20_000 {
            let pattern = words(&["a", "b", "/", "*", "**"], 8);
            let text = words(&["a", "b", "/"], 10);
            if pattern.contains("***") {
                continue;
            }
            let expression = pattern.replace("**", "+").replace('*', "[^/]*");
            let expression = format!("^{}$", expression.replace('+', ".*"));
            let expected = Regex::new(&expression).unwrap().is_match(&text);
            let found = matches(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, expected, "{pattern} {text}, seed {seed}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_no_trap() {
        let pattern = format!("{}c", "*a**".repeat(100));
        let text = "a".repeat(255);
        assert!(!matches(pattern.as_bytes(), text.as_bytes()));
    }
}
