//! Content by its full name, as people write it: `docker.io/library/debian:12`.

use std::fmt;

use super::digest::{Algorithm, Digest, InvalidDigest};
use super::names::{
    InvalidName, InvalidNamespace, InvalidTag, Namespace, Reference, RepositoryName, Tag,
};

/// What a full name names. It begins with the registry: nothing is guessed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FullReference {
    /// `docker.io/library/debian`
    Repository(Namespace, RepositoryName),
    /// `docker.io/library/debian:12`
    Tag(Namespace, RepositoryName, Tag),
    /// `sha256:…`, or `docker.io/library/debian@sha256:…`: content is the same wherever it is.
    Digest(Digest),
}

/// Why a text is no full name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFullReference {
    /// It does not begin with a registry, or there is nothing behind it.
    #[error("not of the form registry/repository, registry/repository:tag or sha256:…")]
    Form,
    /// The registry is malformed.
    #[error(transparent)]
    Namespace(#[from] InvalidNamespace),
    /// The repository name is malformed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The tag is malformed.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// A tag and a digest: they may contradict each other.
    #[error("it names a tag and a digest: name one of them")]
    Both,
}

impl FullReference {
    /// Parses `registry/repository`, `registry/repository:tag`, `registry/repository@digest` or `digest`.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidFullReference> {
        let Some((namespace, rest)) = text.split_once('/') else {
            let algorithm = text.split_once(':').map(|(algorithm, _)| algorithm);
            let is_digest = Algorithm::ALL
                .iter()
                .any(|it| Some(it.as_str()) == algorithm);
            return match is_digest {
                true => Ok(Self::Digest(Digest::parse(text)?)),
                false => Err(InvalidFullReference::Form),
            };
        };
        let namespace = Namespace::parse(namespace)?;
        if let Some((name, digest)) = rest.split_once('@') {
            if Reference::is_digest(name) {
                return Err(InvalidFullReference::Both);
            }
            RepositoryName::parse(name)?;
            return Ok(Self::Digest(Digest::parse(digest)?));
        }
        match rest.rsplit_once(':') {
            Some((name, tag)) => {
                let name = RepositoryName::parse(name)?;
                Ok(Self::Tag(namespace, name, Tag::parse(tag)?))
            }
            None => Ok(Self::Repository(namespace, RepositoryName::parse(rest)?)),
        }
    }
}

impl fmt::Display for FullReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository(namespace, name) => write!(f, "{namespace}/{name}"),
            Self::Tag(namespace, name, tag) => write!(f, "{namespace}/{name}:{tag}"),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// Parses anything without panicking, and means the same when what it accepts is rendered and read again.
pub fn fuzz_full_reference(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    if let Ok(reference) = FullReference::parse(text) {
        let again = FullReference::parse(&reference.to_string());
        assert_eq!(again, Ok(reference), "a full name is rendered as it reads");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn full_names_are_read_as_people_write_them() {
        let digest = format!("sha256:{HEX}");
        let pinned = format!("docker.io/library/debian@{digest}");
        let cases = [
            ("docker.io/library/debian:12", "docker.io/library/debian:12"),
            ("docker.io/debian", "docker.io/debian"),
            ("GHCR.io/org/app:V1", "ghcr.io/org/app:V1"),
            ("localhost:5000/app:latest", "localhost:5000/app:latest"),
            ("localhost:5000/a/b/c", "localhost:5000/a/b/c"),
            (&digest, &digest),
            (&pinned, &digest),
        ];
        for (text, expected) in cases {
            let reference = FullReference::parse(text).unwrap();
            assert_eq!(reference.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_full_name_says_why() {
        use InvalidFullReference::{Both, Form};
        let tag_and_digest = format!("docker.io/library/debian:12@sha256:{HEX}");
        let cases = [
            ("", Form),
            ("debian", Form),
            ("debian:12", Form),
            ("md5:00", Form),
            ("library/debian", InvalidNamespace.into()),
            ("https://docker.io/a", InvalidNamespace.into()),
            ("docker.io/", InvalidName.into()),
            ("docker.io/a/../b", InvalidName.into()),
            ("docker.io/Debian:12", InvalidName.into()),
            ("docker.io/debian:", InvalidTag.into()),
            ("docker.io/debian:a/b", InvalidTag.into()),
            ("sha256:00", InvalidDigest::Encoded.into()),
            ("docker.io/debian@sha256:00", InvalidDigest::Encoded.into()),
            ("docker.io/debian@latest", InvalidDigest::Form.into()),
            (&tag_and_digest, Both),
        ];
        for (text, expected) in cases {
            assert_eq!(FullReference::parse(text), Err(expected), "{text:?}");
        }
    }
}
