//! Where everything lies; the only place that joins paths.
//!
//! ```text
//! <cache-dir>/
//!   VERSION                                        layout version, and the size chosen at the first start
//!   LOCK                                           one writer
//!   blobs/<algorithm>/ab/abcdef…                   published content, manifests included
//!   staging/…                                      never served; at start all is removed but fills that were interrupted
//!   staging/….mark                                 what is known of the file of the same name: see `remainder`
//!   upstreams/<namespace>/<repository>/_granted    digests this repository was proven to hold
//!   upstreams/<namespace>/<repository>/_tags/<tag> the last stored digest of a tag
//! ```
//!
//! A repository's components never begin with `_`, so its own files cannot be mistaken for a deeper repository.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::oci::{Algorithm, Digest, Namespace, RepositoryName, Tag};

/// A repository of one upstream: what grants and tags belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The upstream, by the name that clients use.
    pub namespace: Namespace,
    /// The repository there.
    pub name: RepositoryName,
}

/// The paths below one cache directory.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout that this program writes; a higher number on disk is refused.
    pub(super) const VERSION: u32 = 1;

    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn version(&self) -> PathBuf {
        self.dir.join("VERSION")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.dir.join("LOCK")
    }

    pub(super) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.dir.join("blobs").join(algorithm.as_str())
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let shard = hex.get(..2).unwrap_or_default();
        self.blobs(digest.algorithm()).join(shard).join(&hex)
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.dir.join("staging")
    }

    /// A staging file. A token of whoever stages is in the name, so that a draining process and its successor never share
    /// one; their process numbers may be the same, since in a container every one is 1.
    pub(super) fn staged(&self, token: u64, number: u64) -> PathBuf {
        self.staging().join(format!("{token:016x}-{number}"))
    }

    /// The mark of a staging file.
    pub(super) fn mark(staged: &Path) -> PathBuf {
        staged.with_extension(MARK)
    }

    /// The staging file whose mark this is; the inverse of [`Layout::mark`].
    pub(super) fn marked_by(path: &Path) -> Option<PathBuf> {
        let is_mark = path.extension().is_some_and(|it| it == MARK);
        is_mark.then(|| path.with_extension(""))
    }

    pub(super) fn upstreams(&self) -> PathBuf {
        self.dir.join("upstreams")
    }

    pub(super) fn repository(&self, repository: &Repository) -> PathBuf {
        self.upstreams()
            .join(repository.namespace.as_str())
            .join(repository.name.as_str())
    }

    pub(super) fn granted(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join(GRANTED)
    }

    pub(super) fn tags(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join(TAGS)
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> PathBuf {
        self.tags(repository).join(tag.as_str())
    }

    /// The repository whose directory this is; the inverse of [`Layout::repository`].
    pub(super) fn repository_at(&self, dir: &Path) -> Option<Repository> {
        let below = dir.strip_prefix(self.upstreams()).ok()?;
        let mut parts = below.iter();
        let namespace = Namespace::parse(parts.next()?.to_str()?).ok()?;
        let name = RepositoryName::parse(parts.as_path().to_str()?).ok()?;
        let repository = Repository { namespace, name };
        // A namespace has other spellings, and a directory of one of those is not ours.
        (self.repository(&repository) == dir).then_some(repository)
    }

    /// The digest that a file of this name holds; the inverse of [`Layout::blob`].
    pub(super) fn digest_of(algorithm: Algorithm, file_name: &OsStr) -> Option<Digest> {
        let hex = file_name.to_str()?;
        Digest::parse(&format!("{}:{hex}", algorithm.as_str())).ok()
    }

    /// The folder of published files that a directory of this name is: the first byte of what is in it.
    pub(super) fn folder_of(file_name: &OsStr) -> Option<u8> {
        let hex = file_name.to_str()?;
        let first = u8::from_str_radix(hex, 16).ok()?;
        (hex == format!("{first:02x}")).then_some(first)
    }

    /// Whether a directory below a repository's is its own and not a deeper repository.
    pub(super) fn is_own(file_name: &OsStr) -> bool {
        file_name == GRANTED || file_name == TAGS
    }

    /// Whether this is the name of one of the folders of a store.
    pub(super) fn is_top(file_name: &OsStr) -> bool {
        ["blobs", "staging", "upstreams"]
            .iter()
            .any(|it| file_name == *it)
    }

    /// Whether this is the name of a grants file.
    pub(super) fn is_grants(file_name: &OsStr) -> bool {
        file_name == GRANTED
    }
}

const GRANTED: &str = "_granted";
const TAGS: &str = "_tags";
const MARK: &str = "mark";

/// Reads any name of a file or directory without panicking; what it is found to be is found there. Whether it is anything.
pub fn fuzz_layout(input: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt;

    let layout = Layout::new(PathBuf::from("/cache"));
    let name = OsStr::from_bytes(input);
    let dir = layout.upstreams().join(name);
    let repository = layout.repository_at(&dir);
    if let Some(repository) = &repository {
        assert_eq!(layout.repository(repository), dir, "a directory is its own");
        let own = [layout.granted(repository), layout.tags(repository)];
        assert!(own.iter().all(|it| layout.repository_at(it).is_none()));
    }
    let digests = Algorithm::ALL.map(|it| Layout::digest_of(it, name));
    for digest in digests.iter().flatten() {
        let blob = layout.blob(digest);
        assert_eq!(blob.file_name(), Some(name), "a file is its own");
        let folder = blob.parent().and_then(Path::file_name);
        assert!(folder.and_then(Layout::folder_of).is_some());
    }
    repository.is_some() || digests.iter().any(Option::is_some) || Layout::folder_of(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_found_again_by_its_file_name() {
        let layout = Layout::new(PathBuf::from("/cache"));
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"layer");
            let path = layout.blob(&digest);
            assert_eq!(
                Layout::digest_of(algorithm, path.file_name().unwrap()),
                Some(digest)
            );
        }
        assert_eq!(
            Layout::digest_of(Algorithm::Sha256, OsStr::new("abc")),
            None
        );
        for first in [0, 9, 0xab, 0xff] {
            let name = format!("{first:02x}");
            assert_eq!(Layout::folder_of(OsStr::new(&name)), Some(first));
        }
        for other in ["", "0", "AB", "+1", "0x", "abc", "zz"] {
            assert_eq!(Layout::folder_of(OsStr::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_staging_file_is_found_again_by_its_mark() {
        let layout = Layout::new(PathBuf::from("/cache"));
        let staged = layout.staged(7, 8);
        assert_eq!(
            Layout::marked_by(&Layout::mark(&staged)),
            Some(staged.clone())
        );
        assert_eq!(Layout::marked_by(&staged), None);
    }

    #[test]
    fn a_repository_is_found_again_by_its_directory() {
        let layout = Layout::new(PathBuf::from("/cache"));
        for (namespace, name) in [("docker.io", "library/debian"), ("localhost:5000", "a/b/c")] {
            let repository = Repository {
                namespace: Namespace::parse(namespace).unwrap(),
                name: RepositoryName::parse(name).unwrap(),
            };
            let dir = layout.repository(&repository);
            assert_eq!(layout.repository_at(&dir), Some(repository));
        }
        for foreign in [
            "docker.io",
            "docker.io/a/_tags",
            "Docker.io/a",
            "docker.io./a",
        ] {
            let dir = layout.upstreams().join(foreign);
            assert_eq!(layout.repository_at(&dir), None, "{foreign}");
        }
    }
}
