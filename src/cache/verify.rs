//! A check of the whole store: every published file is rehashed, everything that lies around is looked at, and every
//! record is read.
//!
//! What a record names may have been evicted, which is no damage. What is damaged is set aside in `staging/`, where it is
//! never served and the next start removes it. What is not ours is told, and left where it is.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::around::Around;
use super::disk::Disk;
use super::index::Index;
use super::layout::Repository;
use super::repositories::Repositories;
use super::scrub::{Scrub, Seen};
use super::staging::Staging;
use crate::oci::Digest;

/// How the store is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verify {
    /// Bytes that are read in a second, at most; zero is no bound.
    pub rate: u64,
    /// Whether broken records are dropped. Damaged content is set aside in any case, unless the store was opened to be
    /// looked at.
    pub repair: bool,
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProgress {
    /// Bytes of content that were read.
    pub done: u64,
    /// Bytes of content that there were at the beginning.
    pub total: u64,
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Whether everything was looked at.
    pub finished: bool,
    /// Published files that are what their names say.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Repositories that have records.
    pub repositories: u64,
    /// Digests that these were proven to hold.
    pub grants: u64,
    /// Their tags.
    pub tags: u64,
    /// Bytes that count against the budget: content, records, and what was removed and is still being read.
    pub accounted_bytes: u64,
    /// Bytes of content, of interrupted fills and of records in the directory. It differs from what counts while content comes and goes.
    pub stored_bytes: u64,
    /// How much is wrong.
    pub wrong: u64,
    /// How much of that is right now.
    pub repaired: u64,
    /// What is wrong, the first thousand, or fewer where paths are very long.
    pub findings: Vec<Finding>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What is wrong with it.
    pub kind: FindingKind,
    /// A digest, a repository's record, or a path below the cache directory.
    pub what: String,
    /// Whether it is out of the way.
    pub repaired: bool,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A published file is not what its name says.
    Damaged,
    /// The disk does not give a published file, a folder or a record.
    Unreadable,
    /// A file that is known is not there.
    Missing,
    /// A file that is there was not known.
    Unknown,
    /// Something that is not ours, where only ours should be. It is never touched.
    Foreign,
    /// A line or a file that says what a repository holds, and cannot be read or contradicts the content.
    Record,
}

impl FindingKind {
    /// Its name, as in a report.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Unreadable => "unreadable",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Foreign => "foreign",
            Self::Record => "record",
        }
    }
}

impl VerifyReport {
    /// Whether all was looked at, and nothing was wrong; when it was asked to repair, whether all is right now.
    pub fn is_clean(&self, asked: Verify) -> bool {
        let left = if asked.repair { self.repaired } else { 0 };
        self.finished && self.wrong == left
    }

    fn add(&mut self, kind: FindingKind, what: String, repaired: bool) {
        self.wrong += 1;
        self.repaired += u64::from(repaired);
        let told = self.findings.iter().map(|it| it.what.len());
        let has_room = told.sum::<usize>() + what.len() <= FINDINGS_BYTES_MAX;
        if self.findings.len() < FINDINGS_MAX && has_room {
            self.findings.push(Finding {
                kind,
                what,
                repaired,
            });
        }
    }
}

/// What tells a directory from any other on the machine, in a container or out of it; `None` when there is none. Blocks.
pub fn identity(dir: &Path) -> Option<String> {
    let metadata = dir.metadata().ok()?;
    Some(format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// What is needed to check everything.
#[derive(Clone, Debug)]
pub(super) struct Verifier {
    pub(super) disk: Arc<Disk>,
    pub(super) index: Arc<Index>,
    pub(super) staging: Arc<Staging>,
    pub(super) repositories: Arc<Repositories>,
    pub(super) scrub: Scrub,
}

impl Verifier {
    /// Checks everything, or as much as can be before it is told to stop. Dropped, it stops at once.
    pub(super) async fn run(
        self,
        asked: Verify,
        stop: &CancellationToken,
        progress: &watch::Sender<VerifyProgress>,
    ) -> VerifyReport {
        // What is on a thread of its own stops with the whole, too.
        let stop = stop.child_token();
        let _stopping = stop.clone().drop_guard();
        let mut report = VerifyReport::default();
        // Before, everything would be unknown.
        while !self.index.is_scanned() {
            if stop.is_cancelled() {
                return report;
            }
            sleep(SCAN_POLL).await;
        }
        let (verifier, told_to_stop) = (self.clone(), stop.clone());
        let began = spawn_blocking(move || verifier.begin(&told_to_stop)).await;
        let Ok(Some((total, missing))) = began else {
            return report;
        };
        progress.send_modify(|progress| progress.total = total);
        for digest in missing {
            report.add(FindingKind::Missing, digest, true);
        }
        // Records are not held against content that is wrong.
        let mut damaged = HashSet::new();
        let mut witness = |seen| match seen {
            Seen::Read(bytes) => progress.send_modify(|progress| progress.done += bytes),
            Seen::Right(size) => {
                report.blobs += 1;
                report.bytes += size;
            }
            Seen::Damaged(digest, set_aside) => {
                damaged.insert(digest);
                report.add(FindingKind::Damaged, digest.to_string(), set_aside);
            }
            Seen::Unreadable(digest) => {
                report.add(FindingKind::Unreadable, digest.to_string(), false);
            }
            Seen::Unlisted(path) => {
                report.add(FindingKind::Unreadable, self.disk.told(&path), false);
            }
            Seen::Adopted(digest) => report.add(FindingKind::Unknown, digest.to_string(), true),
            // Whatever it is, it is somebody's, and harms nobody: only whoever put it there can say what becomes of it.
            Seen::Foreign(path) => report.add(FindingKind::Foreign, self.disk.told(&path), false),
        };
        let round = self.scrub.round(asked.rate, &stop, &mut witness).await;
        if round.is_err() {
            return report;
        }
        let ended = spawn_blocking(move || self.end(asked, &stop, report, &damaged));
        ended.await.unwrap_or_default()
    }

    /// The bytes to check, and the digests of files that are not there; none when it was told to stop.
    fn begin(&self, stop: &CancellationToken) -> Option<(u64, Vec<String>)> {
        let mut missing = Vec::new();
        let (present, bytes) = self.index.present();
        for digest in present {
            if stop.is_cancelled() {
                return None;
            }
            if self.index.forget_missing(&digest) {
                missing.push(digest.to_string());
            }
        }
        Some((bytes, missing))
    }

    /// Looks at everything but content.
    fn end(
        &self,
        asked: Verify,
        stop: &CancellationToken,
        mut report: VerifyReport,
        damaged: &HashSet<Digest>,
    ) -> VerifyReport {
        let Around {
            foreign,
            unreadable,
        } = self.disk.around();
        for path in foreign {
            report.add(FindingKind::Foreign, self.disk.told(&path), false);
        }
        for path in unreadable {
            report.add(FindingKind::Unreadable, self.disk.told(&path), false);
        }
        report.finished = self.check_records(asked.repair, stop, &mut report, damaged);
        report.accounted_bytes = self.index.used();
        report.stored_bytes += self.disk.content_bytes() + self.staging.left_bytes();
        report
    }

    /// Whether all records were looked at.
    fn check_records(
        &self,
        repair: bool,
        stop: &CancellationToken,
        report: &mut VerifyReport,
        damaged: &HashSet<Digest>,
    ) -> bool {
        let mut found: Vec<Repository> = Vec::new();
        self.disk
            .scan_repositories(&mut |repository, _| found.push(repository));
        found.sort();
        for repository in found {
            if stop.is_cancelled() {
                return false;
            }
            let records = self.repositories.check(&repository, repair, damaged);
            report.repositories += 1;
            report.grants += records.grants;
            report.tags += records.tags;
            report.stored_bytes += records.bytes;
            let Repository { namespace, name } = &repository;
            for (what, dropped) in records.broken {
                let what = format!("{namespace}/{name}: {what}");
                report.add(FindingKind::Record, what, dropped);
            }
            for what in records.unreadable {
                let what = format!("{namespace}/{name}: {what}");
                report.add(FindingKind::Unreadable, what, false);
            }
        }
        true
    }
}

const SCAN_POLL: Duration = Duration::from_millis(100);
/// Findings that are told one by one.
const FINDINGS_MAX: usize = 1000;
/// Paths may be long; a report must not be.
const FINDINGS_BYTES_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::cache::{Cache, Config, Joined, Metrics, Share};
    use crate::oci::{Algorithm, Namespace, RepositoryName};

    fn open(dir: &Path) -> Cache {
        let config = Config {
            dir: dir.to_owned(),
            size: Some(1 << 20),
            free_space_min: Share::Bytes(0),
            high_watermark: Share::Percent(100.0),
            low_watermark: Share::Percent(90.0),
            repositories_max: 10,
            scrub_rate: 0,
            fills_max: 10,
            faults: crate::cache::Faults::default(),
        };
        let metrics = Metrics::register(&Registry::new()).unwrap();
        Cache::open(&config, metrics).unwrap()
    }

    #[tokio::test]
    async fn what_the_scan_has_not_reached_is_not_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let bytes = bytes::Bytes::from_static(b"layer");
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let through = Repository {
            namespace: Namespace::parse("docker.io").unwrap(),
            name: RepositoryName::parse("library/debian").unwrap(),
        };
        let Joined::First(filler, _) = cache.join(&digest, &through).await else {
            panic!("nobody else is here");
        };
        cache.put(*filler, bytes).await.unwrap();
        cache.release();
        drop(cache);

        let cache = open(dir.path());
        let stop = CancellationToken::new();
        let (progress, _) = watch::channel(VerifyProgress::default());
        let mut verifying = std::pin::pin!(cache.verify(Verify::default(), &stop, &progress));
        // It does not end before the scan does.
        let early = tokio::time::timeout(SCAN_POLL * 3, verifying.as_mut()).await;
        assert!(early.is_err(), "{early:?}");
        cache.scan();
        let report = verifying.await;
        assert_eq!((report.wrong, report.blobs), (0, 1), "{report:?}");
    }

    #[test]
    fn a_report_is_short_however_much_is_wrong() {
        let mut report = VerifyReport::default();
        for _ in 0..2 * FINDINGS_MAX {
            report.add(FindingKind::Foreign, "x".repeat(4096), false);
        }
        assert_eq!(report.wrong, 2 * FINDINGS_MAX as u64);
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.len() < 2 * FINDINGS_BYTES_MAX, "{}", text.len());
    }
}
