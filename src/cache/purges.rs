//! What was purged lately, so that nothing that was asked before brings it back.
//!
//! Whoever asks upstream takes the [`Moment`] first, and when the answer is there and about to be remembered, asks here
//! whether a purge came in between. A purge counts from its beginning to its end and as of its end: an answer is
//! remembered only if its question was sent after the purge was over. That is decided under the lock under which the
//! answer is stored and the purge forgets, so that one of them sees the other.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::layout::Repository;
use crate::oci::{Digest, Tag};

/// What is purged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    /// A tag's record; what it points to stays.
    Tag(Repository, Tag),
    /// All that is remembered of a repository: its tags, and what it was proven to hold. The content stays.
    Repository(Repository),
    /// Content, whichever repositories hold it. That they do is still remembered.
    Digest(Digest),
}

/// What a purge removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Records of tags.
    pub tags: u64,
    /// Digests that the repository was proven to hold.
    pub grants: u64,
    /// Published files.
    pub blobs: u64,
    /// Bytes of all of these on disk.
    pub bytes: u64,
}

/// Why a purge is not complete. What was remembered in memory is forgotten all the same.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// This process is stopping, and the directory belongs to whoever starts next.
    #[error("the cache directory was handed over")]
    HandedOver,
    /// The disk refused.
    #[error("the cache directory could not be changed")]
    Disk(#[from] std::io::Error),
    /// The purging task panicked.
    #[error("a task of the purge was lost")]
    Lost(#[from] tokio::task::JoinError),
}

/// A point in the order of purges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// The purges that somebody may have to know of. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Purges {
    state: Arc<Mutex<State>>,
}

/// A purge that is being carried out; dropped, it is over.
#[derive(Debug)]
#[must_use = "a purge is over when this is dropped"]
pub struct UnderWay {
    purges: Purges,
    id: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Counts beginnings and ends.
    now: u64,
    under_way: Vec<(u64, Purge)>,
    /// The last ones, by the moment of their end.
    ended: VecDeque<(u64, Purge)>,
    /// The end of the last one that is not in `ended` any more.
    forgotten: u64,
}

impl Purge {
    /// Every [`Purge::kind`].
    pub const KINDS: [&str; 3] = ["tag", "repository", "digest"];

    /// A short name, for metrics and logs.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Tag(..) => "tag",
            Self::Repository(_) => "repository",
            Self::Digest(_) => "digest",
        }
    }

    /// Whether it takes away what is known of this digest in this repository.
    pub fn is_about(&self, repository: &Repository, digest: &Digest) -> bool {
        match self {
            Self::Repository(it) => it == repository,
            Self::Digest(it) => it == digest,
            Self::Tag(..) => false,
        }
    }
}

impl Purges {
    /// The present moment.
    pub fn now(&self) -> Moment {
        Moment(self.state.lock().now)
    }

    /// Begins a purge: from now on nothing that it is about is remembered.
    pub fn begin(&self, purge: Purge) -> UnderWay {
        let mut state = self.state.lock();
        state.now += 1;
        let id = state.now;
        state.under_way.push((id, purge));
        drop(state);
        let purges = self.clone();
        UnderWay { purges, id }
    }

    /// Whether what was asked of this repository at that moment must not be remembered.
    pub fn hit_repository(&self, asked: Moment, repository: &Repository) -> bool {
        self.hit(asked, |purge| match purge {
            Purge::Repository(it) => it == repository,
            Purge::Tag(..) | Purge::Digest(_) => false,
        })
    }

    /// The same of a tag.
    pub fn hit_tag(&self, asked: Moment, repository: &Repository, tag: &Tag) -> bool {
        self.hit(asked, |purge| match purge {
            Purge::Repository(it) => it == repository,
            Purge::Tag(it, purged) => it == repository && purged == tag,
            Purge::Digest(_) => false,
        })
    }

    /// The same of content.
    pub fn hit_digest(&self, asked: Moment, repository: &Repository, digest: &Digest) -> bool {
        self.hit(asked, |purge| purge.is_about(repository, digest))
    }

    fn hit(&self, asked: Moment, is_about: impl Fn(&Purge) -> bool) -> bool {
        let state = self.state.lock();
        let ended = state.ended.iter().rev();
        asked.0 < state.forgotten
            || state.under_way.iter().any(|(_, purge)| is_about(purge))
            || ended
                .take_while(|(end, _)| asked.0 < *end)
                .any(|(_, purge)| is_about(purge))
    }
}

impl fmt::Display for Purge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(Repository { namespace, name }, tag) => {
                write!(f, "{namespace}/{name}:{tag}")
            }
            Self::Repository(Repository { namespace, name }) => write!(f, "{namespace}/{name}"),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.purges.state.lock();
        state.now += 1;
        let end = state.now;
        let Some(at) = state.under_way.iter().position(|(id, _)| *id == self.id) else {
            return;
        };
        let (_, purge) = state.under_way.swap_remove(at);
        state.ended.push_back((end, purge));
        if state.ended.len() > ENDED_MAX
            && let Some((end, _)) = state.ended.pop_front()
        {
            state.forgotten = end;
        }
    }
}

/// Purges that are known one by one. What was asked before all of them is remembered by nobody, which costs a question.
const ENDED_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Namespace, RepositoryName};

    fn repository(name: &str) -> Repository {
        Repository {
            namespace: Namespace::parse("docker.io").unwrap(),
            name: RepositoryName::parse(name).unwrap(),
        }
    }

    #[test]
    fn what_was_asked_before_the_end_of_a_purge_is_hit() {
        let purges = Purges::default();
        let (a, b) = (repository("a"), repository("b"));
        let hit = |asked| purges.hit_repository(asked, &a);
        let before = purges.now();
        assert!(!hit(before));
        let under_way = purges.begin(Purge::Repository(a.clone()));
        let meanwhile = purges.now();
        assert!(hit(before) && hit(meanwhile));
        drop(under_way);
        assert!(hit(before) && hit(meanwhile));
        assert!(!hit(purges.now()));
        assert!(!purges.hit_repository(before, &b));
    }

    #[test]
    fn a_purge_hits_what_it_is_about() {
        let (a, b) = (repository("a"), repository("b"));
        let tag = |text| Tag::parse(text).unwrap();
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        let cases = [
            // the purge; the repository, its tag 1, its tag 2, its digest x, its digest y
            (Purge::Repository(a.clone()), [true, true, true, true, true]),
            (
                Purge::Repository(b.clone()),
                [false, false, false, false, false],
            ),
            (
                Purge::Tag(a.clone(), tag("1")),
                [false, true, false, false, false],
            ),
            (Purge::Tag(b, tag("1")), [false, false, false, false, false]),
            (
                Purge::Digest(digest("x")),
                [false, false, false, true, false],
            ),
        ];
        for (purge, expected) in cases {
            let purges = Purges::default();
            let asked = purges.now();
            drop(purges.begin(purge.clone()));
            let hit = [
                purges.hit_repository(asked, &a),
                purges.hit_tag(asked, &a, &tag("1")),
                purges.hit_tag(asked, &a, &tag("2")),
                purges.hit_digest(asked, &a, &digest("x")),
                purges.hit_digest(asked, &a, &digest("y")),
            ];
            assert_eq!(hit, expected, "{purge:?}");
        }
    }

    #[test]
    fn what_is_older_than_all_known_purges_is_hit_by_any() {
        let purges = Purges::default();
        let asked = purges.now();
        for _ in 0..=ENDED_MAX {
            drop(purges.begin(Purge::Repository(repository("a"))));
        }
        assert!(purges.hit_repository(asked, &repository("b")));
        assert!(!purges.hit_repository(purges.now(), &repository("b")));
        assert_eq!(purges.state.lock().ended.len(), ENDED_MAX);
    }
}
