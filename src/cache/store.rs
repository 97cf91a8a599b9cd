//! The cache's front: join a digest, read what is here, remember what was proven.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::capacity::Ledger;
use super::clock;
use super::config::{Config, Share};
use super::disk::Disk;
use super::fill::{Fill, FillError, Follower};
use super::filler::Filler;
use super::hold::OpenError;
use super::index::{self, Index};
use super::layout::Repository;
use super::metrics::Metrics;
use super::purges::{Moment, Purge, PurgeError, Purged, Purges};
use super::reader::{Blob, Buffers, Content};
use super::recheck::Rechecks;
use super::remainder::Remainder;
use super::repositories::{Grant, Granted, Repositories, TagRecord};
use super::scrub::{Scrub, Seen};
use super::staging::Staging;
use super::tend::Tender;
use super::verify::{Verifier, Verify, VerifyProgress, VerifyReport, identity};
use crate::oci::{Digest, Tag};

/// The store of one directory. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Cache {
    disk: Arc<Disk>,
    index: Arc<Index>,
    staging: Arc<Staging>,
    repositories: Arc<Repositories>,
    purges: Purges,
    /// Places for fills in progress.
    places: Arc<Semaphore>,
    buffers: Buffers,
    scrub: Scrub,
    rechecks: Rechecks,
    scrub_rate: u64,
    /// Cancelled when the directory is about to be a successor's.
    stopping: CancellationToken,
    metrics: Metrics,
}

/// What became of asking for a digest: the type tells the caller its duty.
#[derive(Debug)]
pub enum Joined {
    /// It is here.
    Present(Blob),
    /// It is here, so many bytes of it, and cannot be opened now: go around the cache.
    Unreadable(u64),
    /// Somebody brings it.
    Following(Follower),
    /// Nobody does: the caller must, and may follow itself.
    First(Box<Filler>, Follower),
}

impl Joined {
    /// The size of what is here, or is known to come.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::Present(blob) => Some(blob.size()),
            Self::Unreadable(size) => Some(*size),
            Self::Following(follower) | Self::First(_, follower) => follower.size(),
        }
    }
}

impl Cache {
    /// Opens the store, or begins one. Blocks, and for long when a draining process still holds the directory.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used, is not ours, is of a newer version, or is another instance's.
    pub fn open(config: &Config, metrics: Metrics) -> Result<Self, OpenError> {
        let disk = Disk::open(config.dir.clone(), config.faults.clone(), metrics.clone())?;
        let left = Remainder::find(&disk);
        Self::holding(disk, left, config, metrics)
    }

    /// Takes a store that nobody else holds, to check it, and reads what is in it. Nothing is written, evicted or set
    /// aside, unless it is opened to be repaired. Blocks.
    ///
    /// # Errors
    ///
    /// When there is no store, it cannot be used, is of a newer version, or another instance has it.
    pub fn open_to_verify(
        config: &Config,
        metrics: Metrics,
        repair: bool,
    ) -> Result<Self, OpenError> {
        let disk = Disk::open_as_it_is(config.dir.clone(), metrics.clone())?;
        // What is too much is the next start's business.
        let unbounded = Config {
            size: Some(u64::MAX),
            free_space_min: Share::Bytes(0),
            high_watermark: Share::Percent(100.0),
            low_watermark: Share::Percent(100.0),
            repositories_max: usize::MAX,
            ..config.clone()
        };
        let cache = Self::holding(disk, Vec::new(), &unbounded, metrics)?;
        if !repair {
            cache.index.close();
        }
        cache.scan();
        Ok(cache)
    }

    fn holding(
        disk: Arc<Disk>,
        left: Vec<Remainder>,
        config: &Config,
        metrics: Metrics,
    ) -> Result<Self, OpenError> {
        let not_usable = |source| OpenError::NotUsable {
            dir: config.dir.clone(),
            source,
        };
        let limit = match config.size {
            Some(size) => size,
            None => default_size(&disk).map_err(not_usable)?,
        };
        info!(dir = %config.dir.display(), limit, "cache opened");
        let index = Index::new(
            Arc::clone(&disk),
            Ledger::new(limit, config),
            metrics.clone(),
        );
        let staging = Staging::new(&disk, &index, &metrics, left);
        let purges = Purges::default();
        let repositories = Repositories::new(
            config.repositories_max,
            Arc::clone(&index),
            Arc::clone(&disk),
            purges.clone(),
        );
        let scrub = Scrub::new(&disk, &index, &metrics);
        Ok(Self {
            rechecks: Rechecks::new(&scrub),
            scrub,
            scrub_rate: config.scrub_rate,
            stopping: CancellationToken::new(),
            buffers: Buffers::new(disk.faults().clone(), metrics.clone()),
            disk,
            index,
            staging: Arc::new(staging),
            repositories: Arc::new(repositories),
            purges,
            places: Arc::new(Semaphore::new(config.fills_max)),
            metrics,
        })
    }

    /// Reads the whole directory into the index, while the store is already in use. Blocks.
    pub fn scan(&self) {
        let (mut blobs, mut bytes) = (0_u64, 0_u64);
        self.disk.scan_blobs(|found| {
            blobs += 1;
            bytes += found.size;
            self.index.found(&found);
        });
        self.repositories.scan();
        self.index.scan_ended();
        self.staging.settle();
        info!(blobs, bytes, "cache scanned");
    }

    /// Goes round over all published files, as slowly as the configuration says, until the directory is released. To be
    /// called when the scan has ended.
    pub async fn scrub(&self) {
        let stop = &self.stopping;
        if self.scrub_rate == 0 {
            return;
        }
        loop {
            let began = Instant::now();
            let (mut blobs, mut bytes, mut damaged) = (0_u64, 0_u64, 0_u64);
            let mut witness = |seen| match seen {
                Seen::Right(size) => {
                    blobs += 1;
                    bytes += size;
                }
                Seen::Damaged(..) => damaged += 1,
                Seen::Read(_)
                | Seen::Unreadable(_)
                | Seen::Adopted(_)
                | Seen::Foreign(_)
                | Seen::Unlisted(_) => {}
            };
            let round = self.scrub.round(self.scrub_rate, stop, &mut witness);
            if round.await.is_err() {
                return;
            }
            self.metrics.scrub_ended(clock::unix_now());
            info!(blobs, bytes, damaged, "all content was checked");
            // Nothing is lost with the pause.
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(began + SCRUB_ROUND_MIN) => {}
            }
        }
    }

    /// Sees to the directory until it is released: finds out when a disk that refused writes takes them again, and takes the
    /// directory anew when it was removed under us.
    pub async fn tend(&self) {
        let tender = Tender {
            disk: Arc::clone(&self.disk),
            index: Arc::clone(&self.index),
            staging: Arc::clone(&self.staging),
            repositories: Arc::clone(&self.repositories),
        };
        tender.run(&self.stopping).await;
    }

    /// Checks one blob of which somebody says what cannot be true of its bytes, unless that was done lately or another one
    /// is being checked. Whether it was damaged, and set aside. Dropped, it stops at once.
    pub async fn recheck(&self, digest: &Digest) -> bool {
        self.rechecks.check(*digest, &self.stopping).await
    }

    /// Checks everything now: content, records, and what else lies in the directory. It ends unfinished when the directory
    /// is released. Dropped, it stops at once.
    pub async fn verify(
        &self,
        asked: Verify,
        stop: &CancellationToken,
        progress: &watch::Sender<VerifyProgress>,
    ) -> VerifyReport {
        let verifier = Verifier {
            disk: Arc::clone(&self.disk),
            index: Arc::clone(&self.index),
            staging: Arc::clone(&self.staging),
            repositories: Arc::clone(&self.repositories),
            scrub: self.scrub.clone(),
        };
        let both = stop.child_token();
        let mut verifying = std::pin::pin!(verifier.run(asked, &both, progress));
        // It is not dropped but told, so that there is a report.
        tokio::select! {
            report = verifying.as_mut() => return report,
            () = self.stopping.cancelled() => both.cancel(),
        }
        verifying.await
    }

    /// What tells the directory from any other, as [`identity`] does. Cancel-safe.
    pub async fn identity(&self) -> Option<String> {
        let disk = Arc::clone(&self.disk);
        let identity = spawn_blocking(move || identity(disk.dir()));
        log_panic(identity.await).flatten()
    }

    /// Writes down the last uses that the disk does not know of, and removes what fills of former processes have left and
    /// nobody has come back for. Blocks.
    pub fn keep_house(&self) {
        self.index.save_uses();
        self.staging.remove_stale();
    }

    /// Tells a successor that the directory will be released in a moment. Writes a few bytes.
    pub fn announce_release(&self) {
        self.stopping.cancel();
        self.disk.announce_draining();
    }

    /// Hands the directory to a successor, with what is staged: from here on this process only reads it. Waits for what is
    /// being published. Blocks.
    pub fn release(&self) {
        self.announce_release();
        self.index.save_order();
        self.index.close();
        self.staging.hand_over();
        self.disk.release();
    }

    /// Whether the last write to the directory failed.
    pub fn is_degraded(&self) -> bool {
        self.disk.condition().is_degraded()
    }

    /// Present, followed, or the caller's to bring; decided at once, under one lock. Cancel-safe.
    pub async fn join(&self, digest: &Digest, through: &Repository) -> Joined {
        loop {
            self.look_ahead_of_scan(digest).await;
            let begin = || Fill::new(*digest, through.clone());
            match self.index.join(digest, begin) {
                index::Joined::Following(fill) => {
                    return Joined::Following(Follower::new(fill, self.metrics.clone()));
                }
                index::Joined::First(fill) => {
                    let follower = Follower::new(Arc::clone(&fill), self.metrics.clone());
                    let filler = Filler::new(fill, &self.staging, &self.places);
                    return Joined::First(Box::new(filler), follower);
                }
                index::Joined::Present => {
                    if let Some(blob) = self.open_blob(digest).await {
                        return Joined::Present(blob);
                    }
                    if let Some(size) = self.index.size_of(digest) {
                        return Joined::Unreadable(size);
                    }
                    // It was not there after all, and the index knows it now.
                }
            }
        }
    }

    /// The size of a published blob; `None` when it is not here. No use of it is counted. Cancel-safe.
    pub async fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.look_ahead_of_scan(digest).await;
        self.index.size_of(digest)
    }

    /// Counts a use of a published blob that was answered from memory.
    pub fn touch(&self, digest: &Digest) {
        self.index.touch(digest);
    }

    /// What this fill brings, to be read from any offset on.
    pub fn follow(&self, follower: Follower) -> Content {
        Content::Follower(follower, self.buffers.clone())
    }

    /// What the repository was proven to hold of this digest, where that can be said at once.
    pub fn granted_in_memory(&self, repository: &Repository, digest: &Digest) -> Option<Granted> {
        self.repositories.granted_in_memory(repository, digest)
    }

    /// What the repository was proven to hold of this digest. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the record could not be read.
    pub async fn granted(&self, repository: &Repository, digest: &Digest) -> io::Result<Granted> {
        if let Some(granted) = self.granted_in_memory(repository, digest) {
            return Ok(granted);
        }
        let (repositories, repository, digest) =
            (Arc::clone(&self.repositories), repository.clone(), *digest);
        spawn_blocking(move || repositories.granted(&repository, &digest))
            .await
            .map_err(io::Error::other)?
    }

    /// Remembers that the repository holds the digest, as it was asked at that moment. Whether that is new.
    pub async fn grant(
        &self,
        repository: &Repository,
        digest: &Digest,
        grant: Grant,
        asked: Moment,
    ) -> bool {
        let known = self.granted_in_memory(repository, digest);
        if known.is_some_and(|known| known.has(&grant)) {
            return false;
        }
        let (repositories, repository, digest) =
            (Arc::clone(&self.repositories), repository.clone(), *digest);
        let granted =
            spawn_blocking(move || repositories.grant(&repository, &digest, &grant, asked));
        log_panic(granted.await).unwrap_or(false)
    }

    /// The stored answer of a tag. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the record could not be read.
    pub async fn tag(&self, repository: &Repository, tag: &Tag) -> io::Result<Option<TagRecord>> {
        let (repositories, repository, tag) = (
            Arc::clone(&self.repositories),
            repository.clone(),
            tag.clone(),
        );
        spawn_blocking(move || repositories.tag(&repository, &tag))
            .await
            .map_err(io::Error::other)?
    }

    /// Stores a tag's answer that was asked for at that moment; a disk that refuses has been counted and logged.
    pub async fn store_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        record: TagRecord,
        asked: Moment,
    ) {
        let (repositories, repository, tag) = (
            Arc::clone(&self.repositories),
            repository.clone(),
            tag.clone(),
        );
        let stored = spawn_blocking(move || {
            repositories
                .store_tag(&repository, &tag, &record, asked)
                .ok()
        });
        log_panic(stored.await);
    }

    /// Forgets a tag's answer; a disk that refuses has been counted and logged.
    pub async fn forget_tag(&self, repository: &Repository, tag: &Tag) {
        let (repositories, repository, tag) = (
            Arc::clone(&self.repositories),
            repository.clone(),
            tag.clone(),
        );
        let forgotten = spawn_blocking(move || repositories.forget_tag(&repository, &tag).ok());
        log_panic(forgotten.await);
    }

    /// What was purged lately, and the moments at which something is asked.
    pub fn purges(&self) -> &Purges {
        &self.purges
    }

    /// Removes what is purged from the disk, and from what is remembered here; the caller says before that it begins, and
    /// after it that it has ended. Gives the manifests that a purged repository was proven to hold, too.
    ///
    /// # Errors
    ///
    /// When the disk refuses, or the directory is a successor's.
    pub async fn purge(&self, purge: &Purge) -> Result<(Purged, Vec<Digest>), PurgeError> {
        if let Purge::Digest(digest) = purge {
            self.look_ahead_of_scan(digest).await;
        }
        let (index, repositories) = (Arc::clone(&self.index), Arc::clone(&self.repositories));
        let (purge, staging) = (purge.clone(), Arc::clone(&self.staging));
        let purging = spawn_blocking(move || match purge {
            Purge::Tag(repository, tag) => {
                let purged = repositories.purge_tag(&repository, &tag)?;
                Ok((purged, Vec::new()))
            }
            Purge::Repository(repository) => repositories.purge_repository(&repository),
            Purge::Digest(digest) => {
                let size = index.purge(&digest)?;
                staging.forget(&digest)?;
                let purged = Purged {
                    blobs: u64::from(size.is_some()),
                    bytes: size.unwrap_or(0),
                    ..Purged::default()
                };
                Ok((purged, Vec::new()))
            }
        });
        purging.await?
    }

    /// Puts bytes that are whole already under their digest, through a filler that the caller holds.
    ///
    /// # Errors
    ///
    /// As [`Filler::begin`] and [`Filler::verify`].
    pub async fn put(&self, mut filler: Filler, bytes: Bytes) -> Result<(), FillError> {
        filler.begin(Some(bytes.len() as u64)).await?;
        filler.write(bytes).await?;
        filler.verify().await?.publish().await;
        Ok(())
    }

    /// Looks on disk for a digest that the scan has not reached.
    async fn look_ahead_of_scan(&self, digest: &Digest) {
        if self.index.is_scanned() || self.index.knows(digest) {
            return;
        }
        let (disk, index, digest) = (Arc::clone(&self.disk), Arc::clone(&self.index), *digest);
        let looked = spawn_blocking(move || {
            if let Ok(Some(found)) = disk.find(&digest) {
                index.found(&found);
            }
        });
        log_panic(looked.await);
    }

    async fn open_blob(&self, digest: &Digest) -> Option<Blob> {
        let file = match self.index.open_already(digest) {
            Some(file) => Some(file),
            None => {
                let (index, digest) = (Arc::clone(&self.index), *digest);
                spawn_blocking(move || index.open(&digest))
                    .await
                    .ok()
                    .flatten()
            }
        };
        file.map(|file| Blob::new(file, Arc::clone(&self.index), self.buffers.clone()))
    }
}

fn log_panic<T>(joined: Result<T, JoinError>) -> Option<T> {
    joined
        .inspect_err(|error| warn!(error = %error, "a task of the cache panicked"))
        .ok()
}

/// What is kept when nobody says how much: 50 GiB, or 80 % of what is free at the first start if that is less.
fn default_size(disk: &Disk) -> io::Result<u64> {
    if let Some(size) = disk.chosen_size() {
        return Ok(size);
    }
    let (free, _) = disk.space()?;
    let size = DEFAULT_SIZE_MAX.min(free / 5 * 4);
    disk.remember_size(size)?;
    Ok(size)
}

/// A store that is small is not read again and again.
const SCRUB_ROUND_MIN: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_SIZE_MAX: u64 = 50 << 30;
