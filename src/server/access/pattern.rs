//! Patterns for whole names of repositories.

use std::fmt;

use regex::Regex;

/// A pattern for the whole name of a repository: `*` stands for any characters within a segment, or none, `**` for any at all.
#[derive(Clone, Debug)]
pub struct RepositoryPattern {
    text: String,
    regex: Regex,
}

/// A text that is no pattern, or one that no name matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a repository's name, in which `*` and `**` stand for others")]
pub struct InvalidPattern;

impl RepositoryPattern {
    /// Parses a pattern.
    ///
    /// # Errors
    ///
    /// When a character is in it that no name has, when a segment is empty, and when it is longer than any name.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let is_of_names = |byte: u8| {
            byte.is_ascii_lowercase()
                || byte.is_ascii_digit()
                || matches!(byte, b'.' | b'_' | b'-' | b'/' | b'*')
        };
        let is_valid = text.len() <= PATTERN_BYTES_MAX
            && text.bytes().all(is_of_names)
            && !text.contains("***")
            && text.split('/').all(|segment| !segment.is_empty());
        if !is_valid {
            return Err(InvalidPattern);
        }
        let parts = text.split("**").map(|part| {
            let parts: Vec<_> = part.split('*').map(regex::escape).collect();
            parts.join("[^/]*")
        });
        let parts: Vec<_> = parts.collect();
        let regex = Regex::new(&format!("^(?:{})$", parts.join(".*")));
        Ok(Self {
            text: text.to_owned(),
            regex: regex.map_err(|_| InvalidPattern)?,
        })
    }

    /// Whether a repository's name is of this pattern.
    pub fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }
}

impl PartialEq for RepositoryPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for RepositoryPattern {}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// As long as the longest name.
const PATTERN_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_for_whole_names() {
        for (pattern, name, expected) in [
            ("library/debian", "library/debian", true),
            ("library/debian", "library/debian2", false),
            ("library/debian", "my/library/debian", false),
            ("a.b", "aXb", false),
            ("a.b", "a.b", true),
            ("library/*", "library/debian", true),
            ("library/*", "library", false),
            ("library/*", "library/a/b", false),
            ("*", "app", true),
            ("*", "team/app", false),
            ("*/app", "team/app", true),
            ("*/app", "team/x/app", false),
            ("team-*/app", "team-/app", true),
            ("team-*/app", "team-a/app", true),
            ("team/**", "team/a", true),
            ("team/**", "team/a/b/c", true),
            ("team/**", "team", false),
            ("team/**", "teams/a", false),
            ("**", "app", true),
            ("**", "a/b/c", true),
            ("**/app", "a/b/app", true),
            ("**/app", "app", false),
            ("a/**/z", "a/b/z", true),
            ("a/**/z", "a/z", false),
            ("a**z", "a/b/z", true),
            ("*-x/**", "a-x/b/c", true),
            ("*-x/**", "b/a-x/c", false),
        ] {
            let parsed = RepositoryPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(name), expected, "{name} by {pattern}");
            assert_eq!(parsed.to_string(), pattern);
        }
    }

    #[test]
    fn what_no_name_can_match_is_no_pattern() {
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        for text in [
            "", "/", "a/", "/a", "a//b", "Team/*", "a b", "a?", "[ab]", "***", "a:b", "\u{fc}",
            &long,
        ] {
            assert!(RepositoryPattern::parse(text).is_err(), "{text}");
        }
    }
}
