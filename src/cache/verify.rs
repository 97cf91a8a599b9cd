//! A check of the whole store: every published file is rehashed, everything that lies around is looked at, and every
//! record is read.
//!
//! What a record names may have been evicted, which is no damage. What is damaged is set aside in `staging/`, where it is
//! never served and the next start removes it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::disk::Disk;
use super::index::Index;
use super::layout::Repository;
use super::repositories::Repositories;
use super::scrub::{Scrub, Seen};

/// How the store is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verify {
    /// Bytes that are read in a second, at most; zero is no bound.
    pub rate: u64,
    /// Whether foreign files are set aside and broken records dropped. Damaged content is set aside in any case, unless
    /// the store was opened to be looked at.
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
    /// Bytes of content and records in the directory. It differs from what counts while content comes and goes.
    pub stored_bytes: u64,
    /// How much is wrong.
    pub wrong: u64,
    /// How much of that is right now.
    pub repaired: u64,
    /// What is wrong, the first thousand.
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
    /// The disk does not give a published file.
    Unreadable,
    /// A file that is known is not there.
    Missing,
    /// A file that is there was not known.
    Unknown,
    /// Something that is not ours, where only ours should be.
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
    /// Whether all was looked at, and all is right now.
    pub fn is_clean(&self) -> bool {
        self.finished && self.wrong == self.repaired
    }

    fn add(&mut self, kind: FindingKind, what: String, repaired: bool) {
        self.wrong += 1;
        self.repaired += u64::from(repaired);
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding {
                kind,
                what,
                repaired,
            });
        }
    }
}

/// What is needed to check everything.
#[derive(Clone, Debug)]
pub(super) struct Verifier {
    pub(super) disk: Arc<Disk>,
    pub(super) index: Arc<Index>,
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
        let mut report = VerifyReport::default();
        let verifier = self.clone();
        let began = spawn_blocking(move || verifier.begin()).await;
        let Ok((total, missing)) = began else {
            return report;
        };
        progress.send_modify(|progress| progress.total = total);
        for digest in missing {
            report.add(FindingKind::Missing, digest, true);
        }
        let mut foreign = Vec::new();
        let mut witness = |seen| match seen {
            Seen::Read(bytes) => progress.send_modify(|progress| progress.done += bytes),
            Seen::Right(size) => {
                report.blobs += 1;
                report.bytes += size;
            }
            Seen::Damaged(digest, set_aside) => {
                report.add(FindingKind::Damaged, digest.to_string(), set_aside);
            }
            Seen::Unreadable(digest) => {
                report.add(FindingKind::Unreadable, digest.to_string(), false);
            }
            Seen::Adopted(digest) => report.add(FindingKind::Unknown, digest.to_string(), true),
            Seen::Foreign(path) => foreign.push(path),
        };
        let round = self.scrub.round(asked.rate, stop, &mut witness).await;
        if round.is_err() {
            return report;
        }
        let stop = stop.clone();
        let ended = spawn_blocking(move || {
            for path in foreign.into_iter().chain(self.disk.foreign()) {
                for (path, set_aside) in self.set_aside_foreign(&path, asked.repair) {
                    report.add(FindingKind::Foreign, path, set_aside);
                }
            }
            report.finished = self.check_records(asked.repair, &stop, &mut report);
            report.accounted_bytes = self.index.used();
            report.stored_bytes += self.disk.content_bytes();
            report
        });
        ended.await.unwrap_or_default()
    }

    /// The bytes to check, and the digests of files that are not there.
    fn begin(&self) -> (u64, Vec<String>) {
        let mut missing = Vec::new();
        for digest in self.index.present() {
            if matches!(self.disk.open_blob(&digest), Ok(None))
                && self.index.forget_missing(&digest)
            {
                missing.push(digest.to_string());
            }
        }
        (self.disk.content_bytes(), missing)
    }

    fn set_aside_foreign(&self, path: &std::path::Path, repair: bool) -> Vec<(String, bool)> {
        let writing = self.index.writing().filter(|_| repair);
        let files = self.disk.files_below(path).into_iter();
        let told = files.map(|file| {
            let set_aside = writing.is_some() && self.disk.set_aside(&file).is_ok();
            (self.disk.told(&file), set_aside)
        });
        told.collect()
    }

    /// Whether all records were looked at.
    fn check_records(
        &self,
        repair: bool,
        stop: &CancellationToken,
        report: &mut VerifyReport,
    ) -> bool {
        let mut found: Vec<Repository> = Vec::new();
        self.disk
            .scan_repositories(&mut |repository, _| found.push(repository));
        found.sort();
        for repository in found {
            if stop.is_cancelled() {
                return false;
            }
            let records = self.repositories.check(&repository, repair);
            report.repositories += 1;
            report.grants += records.grants;
            report.tags += records.tags;
            report.stored_bytes += records.bytes;
            for (what, dropped) in records.broken {
                let Repository { namespace, name } = &repository;
                let what = format!("{namespace}/{name}: {what}");
                report.add(FindingKind::Record, what, dropped);
            }
        }
        true
    }
}

/// Findings that are told one by one.
const FINDINGS_MAX: usize = 1000;
