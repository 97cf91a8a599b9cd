//! A program of the operator's that says which manifests may be given out, as one that checks signatures does.
//!
//! It is asked once for a repository and digest, before the manifest is served, whoever asks and whether it is here or
//! not. Its word is remembered: a yes for a day, a no for half a minute, no answer for seconds; where there is none,
//! nothing is served. What an index that it let pass lists is let pass with it: a signature is on the index, and an index is
//! known by a digest over what it lists.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use moka::sync::Cache as Memory;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::answer::{Body, Content};
use super::error::Error;
use super::flights::Flights;
use super::metrics::Metrics;
use super::policy::{Refusal, RuleKind};
use super::registry::Registry;
use crate::cache::Repository;
use crate::net::Chain;
use crate::oci::{Digest, Reference, RepositoryName};
use crate::upstream::{ProgramError, run_program};

/// Asks the verifiers of all upstreams, and remembers what they said.
#[derive(Debug)]
pub(super) struct Verifiers {
    verdicts: Memory<Key, (Instant, Verdict)>,
    asking: Flights<Key, Verdict>,
    slots: Arc<Semaphore>,
    metrics: Metrics,
}

/// Another program, and one of another configuration, is asked anew.
type Key = (Arc<PathBuf>, u64, Repository, Digest);

/// What a verifier said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Refused,
    /// It has no answer.
    Failed,
}

/// What a verifier is told, as one JSON object.
#[derive(Serialize)]
struct Question<'a> {
    namespace: &'a str,
    repository: &'a str,
    reference: String,
    digest: String,
    media_type: Option<String>,
    image: &'a str,
}

/// As much of an index as says what it lists.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    digest: String,
}

/// Why a program's end is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("it ended with {0}, which is neither yes (0) nor no (1)")]
    Status(ExitStatus),
}

impl Verifiers {
    pub(super) fn new(metrics: Metrics, tracker: TaskTracker) -> Self {
        Self {
            verdicts: Memory::new(VERDICTS_MAX),
            asking: Flights::new(tracker),
            slots: Arc::new(Semaphore::new(PROGRAMS_MAX)),
            metrics,
        }
    }

    /// Lets a manifest go out, or does not. Cancelled, the question goes on, and its answer is there for whoever comes next.
    pub(super) async fn check(
        &self,
        registry: &Registry,
        name: &RepositoryName,
        reference: &Reference,
        content: &Content,
    ) -> Result<(), Error> {
        let Some(program) = &registry.config().verifier else {
            return Ok(());
        };
        let key = |digest| {
            let repository = registry.repository(name);
            (
                Arc::clone(program),
                registry.generation(),
                repository,
                digest,
            )
        };
        let own = key(content.digest);
        let verdict = match self.known(&own) {
            Some(verdict) => verdict,
            None => {
                let asked = self.asking.run(own.clone(), || {
                    let question = question(&own, reference, content);
                    ask(Arc::clone(program), question, Arc::clone(&self.slots))
                });
                let verdict = asked.await.unwrap_or(Verdict::Failed);
                self.metrics
                    .verified(registry.namespace(), verdict.as_str());
                self.remember(own, verdict);
                verdict
            }
        };
        let namespace = registry.namespace().clone();
        match verdict {
            Verdict::Allowed => {
                if let Body::Memory(bytes) = &content.body {
                    for digest in listed(bytes) {
                        self.remember(key(digest), Verdict::Allowed);
                    }
                }
                Ok(())
            }
            Verdict::Refused => Err(Refusal::by(namespace, RuleKind::Verifier).into()),
            Verdict::Failed => Err(Error::Unverified { namespace }),
        }
    }

    /// What was said a while ago, and holds yet.
    fn known(&self, key: &Key) -> Option<Verdict> {
        let (until, verdict) = self.verdicts.get(key)?;
        (Instant::now() < until).then_some(verdict)
    }

    fn remember(&self, key: Key, verdict: Verdict) {
        let until = Instant::now() + verdict.good_for();
        self.verdicts.insert(key, (until, verdict));
    }
}

impl Verdict {
    const fn good_for(self) -> Duration {
        match self {
            Self::Allowed => Duration::from_secs(24 * 60 * 60),
            Self::Refused => Duration::from_secs(30),
            Self::Failed => Duration::from_secs(2),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// The words and the input of a verifier.
#[derive(Debug)]
struct Asked {
    image: String,
    reference: String,
    input: Vec<u8>,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.image)
    }
}

fn question((_, _, repository, digest): &Key, reference: &Reference, content: &Content) -> Asked {
    let Repository { namespace, name } = repository;
    let image = format!("{namespace}/{name}@{digest}");
    let question = Question {
        namespace: namespace.as_str(),
        repository: name.as_str(),
        reference: reference.to_string(),
        digest: digest.to_string(),
        media_type: content.media_type.as_ref().map(ToString::to_string),
        image: &image,
    };
    // Strings can always be written.
    let input = serde_json::to_vec(&question).unwrap_or_default();
    Asked {
        reference: question.reference,
        input,
        image,
    }
}

async fn ask(program: Arc<PathBuf>, asked: Asked, slots: Arc<Semaphore>) -> Verdict {
    let Ok(_slot) = slots.acquire().await else {
        return Verdict::Failed;
    };
    let words = [asked.image.as_str(), asked.reference.as_str()];
    let ended = run_program(&program, &words, &asked.input, PATIENCE).await;
    let judged = ended
        .map_err(NoAnswer::from)
        .and_then(|(status, printed)| match status.code() {
            Some(0) => Ok((Verdict::Allowed, printed)),
            Some(1) => Ok((Verdict::Refused, printed)),
            Some(_) | None => Err(NoAnswer::Status(status)),
        });
    match judged {
        Ok((verdict, printed)) => {
            let (what, verdict_text) = (&asked, verdict.as_str());
            info!(%what, verdict = verdict_text, said = first_line(&printed), "verified");
            verdict
        }
        Err(error) => {
            warn!(what = %asked, verifier = %program.display(), error = %Chain(&error), "a verifier has no answer");
            Verdict::Failed
        }
    }
}

/// The first line of what was printed, on one line and short.
fn first_line(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let line = text.lines().next().unwrap_or_default();
    line.escape_debug().take(SAID_CHARS_MAX).collect()
}

/// The digests of the manifests that an index lists; nothing, where it is none.
fn listed(bytes: &Bytes) -> Vec<Digest> {
    let index = serde_json::from_slice::<Index>(bytes);
    let listed = index.map_or_else(|_| Vec::new(), |it| it.manifests);
    let digests = listed.iter().take(LISTED_MAX);
    digests
        .filter_map(|it| Digest::parse(&it.digest).ok())
        .collect()
}

/// Longer than clients wait for an answer: what comes later is there for their next try.
const PATIENCE: Duration = Duration::from_secs(60);
/// Verifiers that run at once.
const PROGRAMS_MAX: usize = 8;
const VERDICTS_MAX: u64 = 100_000;
/// Of one index.
const LISTED_MAX: usize = 1000;
const SAID_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_verdict_holds_for_its_time_and_its_repository() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let verifiers = Verifiers::new(metrics, TaskTracker::new());
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        let key = |name| {
            let repository = Repository {
                namespace: crate::oci::Namespace::parse("a.example").unwrap(),
                name: RepositoryName::parse(name).unwrap(),
            };
            (Arc::new(PathBuf::from("/v")), 0, repository, digest)
        };
        for (verdict, seconds) in [
            (Verdict::Failed, 2),
            (Verdict::Refused, 30),
            (Verdict::Allowed, 24 * 60 * 60),
        ] {
            verifiers.remember(key("a"), verdict);
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert_eq!(verifiers.known(&key("a")), Some(verdict));
            assert_eq!(verifiers.known(&key("b")), None);
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(verifiers.known(&key("a")), None);
        }
    }

    #[test]
    fn an_index_lists_what_it_lists() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        let text = format!(r#"{{"manifests":[{{"digest":"{digest}"}},{{"digest":"x"}}]}}"#);
        assert_eq!(listed(&Bytes::from(text)), [digest]);
        for none in [
            "",
            "[]",
            "{}",
            r#"{"manifests":[{}]}"#,
            r#"{"manifests":3}"#,
        ] {
            assert!(listed(&Bytes::from(none)).is_empty(), "{none}");
        }
    }

    #[test]
    fn what_a_verifier_says_is_one_short_line() {
        assert_eq!(first_line(b"no signature\nmore"), "no signature");
        assert_eq!(first_line(b"\x1b[31m\xff"), "\\u{1b}[31m\u{fffd}");
        assert_eq!(first_line(&[b'a'; 1000]).len(), SAID_CHARS_MAX);
    }
}
