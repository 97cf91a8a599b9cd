//! The operations of pulling, and their paths.

use super::digest::{Digest, InvalidDigest};
use super::names::{InvalidName, InvalidTag, Reference, RepositoryName, Tag};

/// One API operation of pulling (distribution-spec, "Endpoints").
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/v2/`: is this a registry? (end-1)
    Ping,
    /// `/v2/<name>/manifests/<reference>` (end-3)
    Manifest {
        /// The repository.
        name: RepositoryName,
        /// Which manifest of it.
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>` (end-2)
    Blob {
        /// The repository.
        name: RepositoryName,
        /// Which blob of it.
        digest: Digest,
    },
    /// `/v2/<name>/tags/list` (end-8)
    Tags {
        /// The repository.
        name: RepositoryName,
    },
    /// `/v2/<name>/referrers/<digest>` (end-12)
    Referrers {
        /// The repository.
        name: RepositoryName,
        /// What is referred to.
        digest: Digest,
    },
}

/// A path that has the form of an endpoint; its words are not checked yet, because the first of them may be a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointPath<'a> {
    kind: Kind,
    name: &'a str,
    last: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ping,
    Manifest,
    Blob,
    Tags,
    Referrers,
}

/// Why a path is no endpoint of pulling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// It has the form of none.
    #[error("the path is no endpoint of pulling")]
    NotAnEndpoint,
    /// The repository name is malformed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The tag is malformed.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl Endpoint {
    /// The path of this operation; [`EndpointPath`] parses it back.
    pub fn path(&self) -> String {
        match self {
            Self::Ping => "/v2/".to_owned(),
            Self::Manifest { name, reference } => format!("/v2/{name}/manifests/{reference}"),
            Self::Blob { name, digest } => format!("/v2/{name}/blobs/{digest}"),
            Self::Tags { name } => format!("/v2/{name}/tags/list"),
            Self::Referrers { name, digest } => format!("/v2/{name}/referrers/{digest}"),
        }
    }

    /// The repository that is asked about.
    pub const fn name(&self) -> Option<&RepositoryName> {
        match self {
            Self::Ping => None,
            Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Tags { name }
            | Self::Referrers { name, .. } => Some(name),
        }
    }

    /// The same operation on a repository whose name has `prefix` before it; `None` when that is too long for a name.
    #[must_use]
    pub fn under(&self, prefix: &RepositoryName) -> Option<Self> {
        let name = |name: &RepositoryName| RepositoryName::parse(&format!("{prefix}/{name}")).ok();
        Some(match self {
            Self::Ping => Self::Ping,
            Self::Manifest {
                name: inner,
                reference,
            } => Self::Manifest {
                name: name(inner)?,
                reference: reference.clone(),
            },
            Self::Blob {
                name: inner,
                digest,
            } => Self::Blob {
                name: name(inner)?,
                digest: *digest,
            },
            Self::Tags { name: inner } => Self::Tags { name: name(inner)? },
            Self::Referrers {
                name: inner,
                digest,
            } => Self::Referrers {
                name: name(inner)?,
                digest: *digest,
            },
        })
    }

    /// A short name, for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Manifest { .. } => "manifest",
            Self::Blob { .. } => "blob",
            Self::Tags { .. } => "tags",
            Self::Referrers { .. } => "referrers",
        }
    }
}

impl<'a> EndpointPath<'a> {
    /// Splits a path. A repository name may itself contain `blobs` or `manifests`, so it is split from the right.
    ///
    /// # Errors
    ///
    /// When it has the form of no endpoint. Nothing that is valid needs an escape, so `%` is in none.
    pub fn split(path: &'a str) -> Result<Self, InvalidEndpoint> {
        let not_one = InvalidEndpoint::NotAnEndpoint;
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => {
                return Ok(Self {
                    kind: Kind::Ping,
                    name: "",
                    last: "",
                });
            }
            Some(rest) => rest.strip_prefix('/').ok_or(not_one)?,
            None => return Err(not_one),
        };
        let (rest, last) = rest.rsplit_once('/').ok_or(not_one)?;
        let (name, word) = rest.rsplit_once('/').ok_or(not_one)?;
        let kind = match (word, last) {
            // An upload is no pull (end-4 to end-6), whatever its last word.
            ("blobs", "uploads") | (_, "") => return Err(not_one),
            ("uploads", _) => return Err(not_one),
            ("manifests", _) => Kind::Manifest,
            ("blobs", _) => Kind::Blob,
            ("tags", "list") => Kind::Tags,
            ("referrers", _) => Kind::Referrers,
            _ => return Err(not_one),
        };
        Ok(Self { kind, name, last })
    }

    /// The name as it stands in the path, namespace included.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The first segment of the name, when more follow.
    pub fn first_segment(&self) -> Option<&'a str> {
        self.name.split_once('/').map(|(first, _)| first)
    }

    /// The same without the first segment of the name, when more follow.
    #[must_use]
    pub fn without_first_segment(self) -> Self {
        let name = self
            .name
            .split_once('/')
            .map_or(self.name, |(_, rest)| rest);
        Self { name, ..self }
    }

    /// The operation, with every word of it checked.
    ///
    /// # Errors
    ///
    /// When the name, the tag or the digest is malformed.
    pub fn endpoint(&self) -> Result<Endpoint, InvalidEndpoint> {
        if self.kind == Kind::Ping {
            return Ok(Endpoint::Ping);
        }
        let name = RepositoryName::parse(self.name)?;
        Ok(match self.kind {
            Kind::Ping => Endpoint::Ping,
            Kind::Manifest => {
                let reference = if Reference::is_digest(self.last) {
                    Reference::Digest(Digest::parse(self.last)?)
                } else {
                    Reference::Tag(Tag::parse(self.last)?)
                };
                Endpoint::Manifest { name, reference }
            }
            Kind::Blob => Endpoint::Blob {
                name,
                digest: Digest::parse(self.last)?,
            },
            Kind::Tags => Endpoint::Tags { name },
            Kind::Referrers => Endpoint::Referrers {
                name,
                digest: Digest::parse(self.last)?,
            },
        })
    }
}

/// Parses anything without panicking, and renders what it accepts back as it was.
pub fn fuzz_endpoint(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let Ok(path) = EndpointPath::split(text) else {
        return;
    };
    if let Ok(endpoint) = path.endpoint()
        && endpoint != Endpoint::Ping
    {
        assert_eq!(
            endpoint.path(),
            text,
            "an endpoint renders as it was parsed"
        );
    }
    let _ = path.without_first_segment().endpoint();
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::oci::{fuzz_digest, fuzz_full_reference, fuzz_names};

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(path: &str) -> Result<Endpoint, InvalidEndpoint> {
        EndpointPath::split(path)?.endpoint()
    }

    #[test]
    fn path_is_the_inverse_of_parse() {
        for path in [
            "/v2/".to_owned(),
            "/v2/library/debian/manifests/latest".to_owned(),
            format!("/v2/a/b/c/manifests/sha256:{HEX}"),
            format!("/v2/blobs/manifests/blobs/sha256:{HEX}"),
            "/v2/a/manifests/manifests/manifests".to_owned(),
            "/v2/tags/list/tags/list".to_owned(),
            format!("/v2/a/referrers/sha256:{HEX}"),
        ] {
            assert_eq!(parse(&path).unwrap().path(), path);
        }
        assert_eq!(parse("/v2"), Ok(Endpoint::Ping));
    }

    #[test]
    fn what_is_no_endpoint_says_why() {
        use InvalidEndpoint::{Name, NotAnEndpoint, Tag};
        let digest = InvalidEndpoint::Digest;
        let cases = [
            ("/", NotAnEndpoint),
            ("/v2x/", NotAnEndpoint),
            ("/v1/a/manifests/b", NotAnEndpoint),
            ("/v2/manifests/latest", NotAnEndpoint),
            ("/v2/a/manifests/", NotAnEndpoint),
            ("/v2/a/blobs/uploads/", NotAnEndpoint),
            ("/v2/a/blobs/uploads/1234", NotAnEndpoint),
            ("/v2/a/tags/other", NotAnEndpoint),
            ("/v2/_catalog", NotAnEndpoint),
            ("/v2//manifests/latest", Name(InvalidName)),
            ("/v2/a//b/manifests/latest", Name(InvalidName)),
            ("/v2/../manifests/latest", Name(InvalidName)),
            ("/v2/a%2fb/manifests/latest", Name(InvalidName)),
            ("/v2/A/manifests/latest", Name(InvalidName)),
            ("/v2/a/manifests/%41", Tag(InvalidTag)),
            ("/v2/a/manifests/..", Tag(InvalidTag)),
            ("/v2/a/manifests/md5:00", digest(InvalidDigest::Algorithm)),
            ("/v2/a/blobs/latest", digest(InvalidDigest::Form)),
            ("/v2/a/blobs/sha256:00", digest(InvalidDigest::Encoded)),
        ];
        for (path, expected) in cases {
            assert_eq!(parse(path), Err(expected), "{path}");
        }
    }

    #[test]
    fn the_first_segment_may_be_a_namespace() {
        let path = EndpointPath::split("/v2/localhost:5000/org/app/manifests/1").unwrap();
        assert_eq!(path.first_segment(), Some("localhost:5000"));
        let endpoint = path.without_first_segment().endpoint().unwrap();
        assert_eq!(endpoint.path(), "/v2/org/app/manifests/1");
        let path = EndpointPath::split("/v2/app/manifests/1").unwrap();
        assert_eq!(path.first_segment(), None);
    }

    #[test]
    fn no_input_panics_a_parser() {
        let words = [
            "/",
            "v2",
            "/v2/",
            "library",
            "debian",
            "manifests",
            "blobs",
            "tags",
            "list",
            "latest",
            "sha256:",
            HEX,
            "..",
            "%2f",
            "_",
            "-",
            ".",
            ":",
            "localhost:5000",
            "ü",
            "\0",
            "uploads",
            "referrers",
            "A",
            "docker.io",
            "@",
        ];
        let mut random = SmallRng::seed_from_u64(7);
        for _ in 0..50_000 {
            let count = random.random_range(0..9);
            let text: String = (0..count)
                .filter_map(|_| words.choose(&mut random))
                .copied()
                .collect();
            fuzz_endpoint(text.as_bytes());
            fuzz_endpoint(format!("/v2/{text}").as_bytes());
            fuzz_digest(text.as_bytes());
            fuzz_names(text.as_bytes());
            fuzz_full_reference(text.as_bytes());
            let noise: Vec<u8> = (0..count * 4).map(|_| random.random()).collect();
            fuzz_endpoint(&noise);
            fuzz_digest(&noise);
            fuzz_names(&noise);
            fuzz_full_reference(&noise);
        }
    }
}
