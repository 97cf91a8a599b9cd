//! Names: repositories, tags, references, namespaces.

use std::fmt;
use std::sync::Arc;

use super::digest::Digest;

/// A repository's name, the spec's `<name>`: path components of lower-case letters and digits, separated within by one
/// dot, one or two underscores, or any number of dashes (distribution-spec, "Pulling manifests").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

/// A tag: up to 128 word characters, dots and dashes, of which the first is a word character (distribution-spec).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// The spec's `<reference>`: a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// It moves.
    Tag(Tag),
    /// It does not.
    Digest(Digest),
}

/// The registry that a client meant: a host with a dot, a port, or `localhost`, in lower case. It is a single path
/// component by construction.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

/// A text that is no repository name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the repository name is malformed")]
pub struct InvalidName;

/// A text that is no tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tag is malformed")]
pub struct InvalidTag;

/// A text that is no namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a namespace is a host name that has a dot or a port, or `localhost`, such as `ghcr.io` or `localhost:5000`"
)]
pub struct InvalidNamespace;

impl RepositoryName {
    /// Parses a whole name.
    ///
    /// # Errors
    ///
    /// When it is not of the spec's form, or longer than 255 bytes.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let valid = text.len() <= NAME_BYTES_MAX && text.split('/').all(is_component);
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName)
        }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the repository `folder`, or one below it.
    pub fn is_within(&self, folder: &Self) -> bool {
        let rest = self.0.strip_prefix(folder.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The name of an official image on Docker Hub: `debian` there is `library/debian`. Others stay as they are.
    #[must_use]
    pub fn in_library(self) -> Self {
        if self.0.contains('/') {
            self
        } else {
            Self(format!("library/{}", self.0).into())
        }
    }
}

impl Tag {
    /// Parses a tag.
    ///
    /// # Errors
    ///
    /// When it is not of the spec's form.
    pub fn parse(text: &str) -> Result<Self, InvalidTag> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let valid = text.bytes().next().is_some_and(is_word)
            && text.len() <= TAG_BYTES_MAX
            && text
                .bytes()
                .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidTag)
        }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Reference {
    /// Whether this text can only be meant as a digest: no tag has a colon.
    pub(super) fn is_digest(text: &str) -> bool {
        text.contains(':')
    }
}

impl Namespace {
    /// Parses a host with an optional port. Upper case is lowered and a trailing dot dropped, since both mean the same
    /// host; a scheme, user information, a path or an address in brackets is refused.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidNamespace> {
        if text.len() > NAME_BYTES_MAX {
            return Err(InvalidNamespace);
        }
        let text = text.to_ascii_lowercase();
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text.as_str(), None),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        let port_valid = port.is_none_or(is_port);
        let qualified = host.contains('.') || port.is_some() || host == "localhost";
        if !(port_valid && qualified && host.split('.').all(is_host_label)) {
            return Err(InvalidNamespace);
        }
        let whole = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Ok(Self(whole.into()))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

written_as_text!(RepositoryName, Tag, Namespace);

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

/// Names longer than this are refused: what registries in the field take, and what a path can hold.
const NAME_BYTES_MAX: usize = 255;
/// The spec's `{0,127}` and the first character.
const TAG_BYTES_MAX: usize = 128;

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_in_words =
        bytes.first().copied().is_some_and(is_word) && bytes.last().copied().is_some_and(is_word);
    let separators = text.split(|it: char| it.is_ascii_lowercase() || it.is_ascii_digit());
    ends_in_words
        && separators.filter(|it| !it.is_empty()).all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

fn is_host_label(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|byte| is_word(byte) || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_port(text: &str) -> bool {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    digits && text.parse::<u16>().is_ok()
}

/// Parses anything without panicking, and renders what it accepts back as it was.
pub fn fuzz_names(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    if let Ok(name) = RepositoryName::parse(text) {
        assert_eq!(name.to_string(), text, "a name renders as it was parsed");
    }
    if let Ok(tag) = Tag::parse(text) {
        assert_eq!(tag.to_string(), text, "a tag renders as it was parsed");
    }
    if let Ok(namespace) = Namespace::parse(text) {
        let again = Namespace::parse(namespace.as_str());
        assert_eq!(
            again.as_ref(),
            Ok(&namespace),
            "a namespace is its own normal form"
        );
        assert!(
            !namespace.as_str().contains('/'),
            "a namespace is one path component"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_holds_whole_segments() {
        let name = |text| RepositoryName::parse(text).unwrap();
        for (repository, folder, expected) in [
            ("org/team", "org/team", true),
            ("org/team/app", "org/team", true),
            ("org/team/app", "org", true),
            ("org/teamwork", "org/team", false),
            ("org", "org/team", false),
            ("x/org/team", "org/team", false),
        ] {
            let found = name(repository).is_within(&name(folder));
            assert_eq!(found, expected, "{repository} in {folder}");
        }
    }

    #[test]
    fn repository_names_are_those_of_the_spec() {
        for good in [
            "a",
            "library/debian",
            "a__b",
            "a--b",
            "a---b",
            "a.b_c",
            "0/1/2",
            "a-b/c.d",
        ] {
            assert_eq!(RepositoryName::parse(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a___b", "a..b", "a._b", ".a", "a.", "-a", "a_",
            "..", "a/../b", "a%2fb", "a b", "a\0b", "ü", "a:b", &long,
        ] {
            assert_eq!(RepositoryName::parse(bad), Err(InvalidName), "{bad:?}");
        }
    }

    #[test]
    fn tags_are_those_of_the_spec() {
        let longest = "a".repeat(128);
        for good in ["latest", "_", "1.0", "V1-x_y.z", &longest] {
            assert_eq!(Tag::parse(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(129);
        for bad in ["", ".a", "-a", "a:b", "a/b", "a b", "ä", &long] {
            assert_eq!(Tag::parse(bad), Err(InvalidTag), "{bad:?}");
        }
    }

    #[test]
    fn namespaces_are_hosts() {
        let cases = [
            ("docker.io", "docker.io"),
            ("GHCR.io", "ghcr.io"),
            ("ghcr.io.", "ghcr.io"),
            ("localhost", "localhost"),
            ("localhost:5000", "localhost:5000"),
            ("registry:80", "registry:80"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
        ];
        for (text, expected) in cases {
            assert_eq!(Namespace::parse(text).unwrap().as_str(), expected);
        }
        for bad in [
            "",
            ".",
            "..",
            "library",
            "a..b",
            ".io",
            "-a.io",
            "a-.io",
            "a.io/",
            "a.io:0",
            "a.io:",
            "a.io:070",
            "a.io:65536",
            "a.io:1:2",
            "http://a.io",
            "u@a.io",
            "a.io%2f",
            "[::1]:5000",
            "a_b.io",
            "ü.io",
        ] {
            assert_eq!(Namespace::parse(bad), Err(InvalidNamespace), "{bad:?}");
        }
    }

    #[test]
    fn official_images_live_in_the_library() {
        let name = |text| RepositoryName::parse(text).unwrap();
        assert_eq!(name("debian").in_library(), name("library/debian"));
        assert_eq!(name("org/app").in_library(), name("org/app"));
    }
}
