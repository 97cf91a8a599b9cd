//! The store against a map, through thousands of random steps. A seed that fails is printed and becomes a test by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use prometheus::Registry;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::{Config, Share};
use super::faults::Faults;
use super::fill::FillError;
use super::filler::Filler;
use super::layout::Repository;
use super::metrics::Metrics;
use super::purges::{Purge, Purged};
use super::reader::{Blob, Content};
use super::repositories::{Grant, TagRecord};
use super::store::{Cache, Joined};
use super::verify::Verify;
use crate::oci::{Algorithm, Digest, MediaType, Namespace, RepositoryName, Tag};

/// What the store must know of a digest. What is not in the map is absent.
#[derive(Debug)]
enum Known {
    Filling {
        filler: Box<Filler>,
        received: usize,
        corrupt: bool,
        /// One of unknown size makes room while it is written, behind the model's back: its bytes all come with its
        /// commit.
        sized: bool,
    },
    Present,
}

struct Model {
    dir: tempfile::TempDir,
    cache: Cache,
    registry: Registry,
    blobs: BTreeMap<Digest, Bytes>,
    known: BTreeMap<Digest, Known>,
    /// Blobs held open across steps, purged or not, each with the life of its digest that it is of.
    held: Vec<(Digest, u64, Blob)>,
    /// How often a digest has been purged.
    lives: BTreeMap<Digest, u64>,
    /// What was granted and not purged. Less may be remembered after a restart, but never more.
    grants: BTreeSet<(Repository, Digest)>,
    tags: BTreeSet<(Repository, Tag)>,
    random: SmallRng,
    evictions_seen: u64,
    /// How often the steps that matter happened, so that a run that tests nothing fails.
    hits: u64,
    evicted: u64,
    mismatches: u64,
    purged: Purged,
    damaged: u64,
}

impl Model {
    async fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut blobs = BTreeMap::new();
        for n in 0..BLOBS {
            let mut bytes = vec![0; random.random_range(0..BLOB_BYTES_MAX)];
            random.fill(bytes.as_mut_slice());
            let algorithm = if n % 4 == 0 {
                Algorithm::Sha512
            } else {
                Algorithm::Sha256
            };
            blobs.insert(Digest::of(algorithm, &bytes), Bytes::from(bytes));
        }
        let dir = tempfile::tempdir().unwrap();
        let (cache, registry) = open(dir.path()).await;
        Self {
            dir,
            cache,
            registry,
            blobs,
            known: BTreeMap::new(),
            held: Vec::new(),
            lives: BTreeMap::new(),
            grants: BTreeSet::new(),
            tags: BTreeSet::new(),
            random,
            evictions_seen: 0,
            hits: 0,
            evicted: 0,
            mismatches: 0,
            purged: Purged::default(),
            damaged: 0,
        }
    }

    async fn step(&mut self) {
        let digest = *self.blobs.keys().choose(&mut self.random).unwrap();
        match self.random.random_range(0..100) {
            0..30 => self.join(digest).await,
            30..50 => self.write().await,
            50..70 => self.commit().await,
            70..73 => self.give_up(),
            73..80 => drop(self.held.pop()),
            80..90 => self.remember(digest).await,
            90..96 => self.purge(digest).await,
            96..98 => self.damage().await,
            _ => self.restart().await,
        }
        self.check();
        self.check_memory(digest).await;
    }

    async fn join(&mut self, digest: Digest) {
        let joined = self.cache.join(&digest, &repository(0)).await;
        match (joined, self.known.get(&digest)) {
            (Joined::Present(blob), Some(Known::Present)) => {
                let read = Content::Blob(blob.clone())
                    .read_all(u64::MAX)
                    .await
                    .unwrap();
                assert_eq!(read, self.blobs[&digest], "a present blob has its bytes");
                let life = self.lives.get(&digest).copied().unwrap_or(0);
                self.held.push((digest, life, blob));
                self.hits += 1;
            }
            (Joined::Following(_), Some(Known::Filling { .. })) => {}
            (Joined::First(mut filler, follower), None) => {
                filler.place().await;
                let size = self.blobs[&digest].len() as u64;
                let size = self.random.random_bool(0.8).then_some(size);
                match filler.begin(size).await {
                    Ok(()) => {
                        let corrupt = self.random.random_bool(0.1);
                        self.known.insert(
                            digest,
                            Known::Filling {
                                filler,
                                received: 0,
                                corrupt,
                                sized: size.is_some(),
                            },
                        );
                    }
                    Err(FillError::NotKept(_)) => assert!(follower.size() == size),
                    Err(error) => panic!("no source has failed: {error}"),
                }
            }
            (joined, known) => panic!("{joined:?}, but the model knows {known:?}"),
        }
    }

    async fn write(&mut self) {
        let fillings = self
            .known
            .iter_mut()
            .filter(|(_, it)| matches!(it, Known::Filling { sized: true, .. }));
        let Some((
            digest,
            Known::Filling {
                filler,
                received,
                corrupt,
                ..
            },
        )) = fillings.choose(&mut self.random)
        else {
            return;
        };
        let rest = self.blobs[digest].slice(*received..);
        let count = self.random.random_range(0..=rest.len());
        let mut bytes = rest[..count].to_vec();
        if *corrupt && let Some(first) = bytes.first_mut() {
            *first ^= 1;
        }
        *received += count;
        if filler.write(bytes.into()).await.is_err() {
            let digest = *digest;
            self.known.remove(&digest);
        }
    }

    async fn commit(&mut self) {
        let fillings = self
            .known
            .iter()
            .filter(|(_, it)| matches!(it, Known::Filling { .. }));
        let Some(digest) = fillings.map(|(digest, _)| *digest).choose(&mut self.random) else {
            return;
        };
        let Some(Known::Filling {
            mut filler,
            received,
            corrupt,
            ..
        }) = self.known.remove(&digest)
        else {
            return;
        };
        let rest = self.blobs[&digest].slice(received..);
        // What was corrupted before stays so; what is corrupted must have a byte to be corrupted.
        let corrupt = corrupt && !(received == 0 && rest.is_empty());
        let mut rest = rest.to_vec();
        if corrupt && let Some(first) = rest.first_mut() {
            *first ^= 1;
        }
        if filler.write(rest.into()).await.is_err() {
            return;
        }
        match filler.verify().await {
            Ok(verified) => {
                assert!(!corrupt, "wrong bytes were found right");
                verified.publish().await;
                self.known.insert(digest, Known::Present);
            }
            Err(FillError::Mismatch { .. }) => {
                assert!(corrupt, "right bytes were found wrong");
                self.mismatches += 1;
            }
            Err(FillError::NotKept(_)) => {}
            Err(error) => panic!("no source has failed: {error}"),
        }
    }

    fn give_up(&mut self) {
        let fillings = self
            .known
            .iter()
            .filter(|(_, it)| matches!(it, Known::Filling { .. }));
        if let Some(digest) = fillings.map(|(digest, _)| *digest).choose(&mut self.random) {
            self.known.remove(&digest);
        }
    }

    /// A grant and a tag of some repository.
    async fn remember(&mut self, digest: Digest) {
        let (repository, tag) = self.some();
        let asked = self.cache.purges().now();
        let size = self.blobs[&digest].len() as u64;
        let grant = Grant::Blob(self.random.random_bool(0.5).then_some(size));
        self.cache.grant(&repository, &digest, grant, asked).await;
        self.grants.insert((repository.clone(), digest));
        let record = TagRecord {
            digest,
            media_type: MediaType::parse("application/vnd.oci.image.index.v1+json").unwrap(),
            size: self.blobs[&digest].len() as u64,
            age: Some(Duration::ZERO),
        };
        // Without room the former record stays, or none.
        self.cache.store_tag(&repository, &tag, record, asked).await;
        if self.cache.tag(&repository, &tag).await.unwrap().is_some() {
            self.tags.insert((repository, tag));
        }
    }

    async fn purge(&mut self, digest: Digest) {
        let (repository, tag) = self.some();
        let asked = self.cache.purges().now();
        // Mostly one that is being read: those are the hard ones.
        let held = self.held.iter().map(|(digest, ..)| *digest);
        let digest = held.choose(&mut self.random).unwrap_or(digest);
        let purge = match self.random.random_range(0..3) {
            0 => Purge::Digest(digest),
            1 => Purge::Tag(repository.clone(), tag.clone()),
            _ => Purge::Repository(repository.clone()),
        };
        let under_way = self.cache.purges().begin(purge.clone());
        let (purged, _) = self.cache.purge(&purge).await.unwrap();
        drop(under_way);
        let (tags, grants) = (self.tags.len(), self.grants.len());
        match &purge {
            Purge::Digest(_) => {
                let was_present = matches!(self.known.get(&digest), Some(Known::Present));
                assert_eq!(purged.blobs, u64::from(was_present), "{purge:?}");
                if was_present {
                    assert_eq!(purged.bytes, self.blobs[&digest].len() as u64);
                    self.known.remove(&digest);
                    *self.lives.entry(digest).or_default() += 1;
                }
            }
            Purge::Tag(..) => drop(self.tags.remove(&(repository.clone(), tag.clone()))),
            Purge::Repository(_) => {
                self.tags.retain(|(it, _)| *it != repository);
                self.grants.retain(|(it, _)| *it != repository);
            }
        }
        assert_eq!(purged.tags, (tags - self.tags.len()) as u64, "{purge:?}");
        assert_eq!(purged.grants, (grants - self.grants.len()) as u64);
        self.purged.tags += purged.tags;
        self.purged.grants += purged.grants;
        self.purged.blobs += purged.blobs;
        // What was asked before comes too late.
        if purge.is_about(&repository, &digest) && purge != Purge::Digest(digest) {
            let grant = Grant::Blob(None);
            let is_new = self.cache.grant(&repository, &digest, grant, asked).await;
            assert!(!is_new, "{purge:?}");
        }
    }

    /// Damages a present blob behind the store's back, or none, and has everything checked.
    async fn damage(&mut self) {
        let present = self.known.iter();
        let present = present.filter(|(_, it)| matches!(it, Known::Present));
        let present = present.map(|(digest, _)| *digest);
        let victim = present.choose(&mut self.random);
        let victim = victim.filter(|it| !self.blobs[it].is_empty());
        let layout = super::layout::Layout::new(self.dir.path().to_owned());
        if let Some(digest) = victim {
            let mut bytes = self.blobs[&digest].to_vec();
            let at = self.random.random_range(0..bytes.len());
            match self.random.random_range(0..3) {
                0 => bytes[at] ^= 1,
                1 => bytes.truncate(at),
                _ => bytes.push(0),
            }
            std::fs::write(layout.blob(&digest), bytes).unwrap();
        }
        let (stop, (progress, _)) = (CancellationToken::new(), watch::channel(<_>::default()));
        let asked = Verify {
            rate: 0,
            repair: self.random.random(),
        };
        let report = self.cache.verify(asked, &stop, &progress).await;
        let found: Vec<_> = report.findings.iter().map(|it| it.what.clone()).collect();
        let expected: Vec<_> = victim.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{report:?}");
        assert_eq!(report.is_clean(asked), asked.repair || victim.is_none());
        if let Some(digest) = victim {
            self.known.remove(&digest);
            *self.lives.entry(digest).or_default() += 1;
            self.damaged += 1;
        }
        let present = self.known.values();
        let present = present.filter(|it| matches!(it, Known::Present));
        assert_eq!(report.blobs, present.count() as u64);
        assert_eq!(report.accounted_bytes, self.used());
        assert_eq!(report.tags, self.tags.len() as u64);
    }

    fn some(&mut self) -> (Repository, Tag) {
        let repository = repository(self.random.random_range(0..REPOSITORIES));
        let tag = format!("v{}", self.random.random_range(0..3));
        (repository, Tag::parse(&tag).unwrap())
    }

    /// Looks at one digest and one tag of each repository: what is remembered is what was remembered and not purged.
    async fn check_memory(&mut self, digest: Digest) {
        for n in 0..REPOSITORIES {
            let of = (repository(n), digest);
            let granted = self.cache.granted(&of.0, &digest).await.unwrap();
            assert_eq!(granted.blob, self.grants.contains(&of), "{of:?}");
            let (_, tag) = self.some();
            let of = (repository(n), tag);
            let record = self.cache.tag(&of.0, &of.1).await.unwrap();
            assert_eq!(record.is_some(), self.tags.contains(&of), "{of:?}");
        }
    }

    async fn restart(&mut self) {
        self.known.retain(|_, it| matches!(it, Known::Present));
        self.held.clear();
        let cache = self.cache.clone();
        tokio::task::spawn_blocking(move || cache.release())
            .await
            .unwrap();
        self.forget_evicted();
        (self.cache, self.registry) = open(self.dir.path()).await;
        self.evictions_seen = 0;
        // What had no room on disk is proven again.
        let mut kept = BTreeSet::new();
        for (repository, digest) in std::mem::take(&mut self.grants) {
            let granted = self.cache.granted(&repository, &digest).await.unwrap();
            if granted.blob {
                kept.insert((repository, digest));
            }
        }
        self.grants = kept;
    }

    /// What must hold after every step.
    fn check(&mut self) {
        self.forget_evicted();
        let state = |name| self.figure("layerhold_cache_bytes", Some(name));
        assert!(
            state("used") + state("reserved") <= LIMIT,
            "the budget holds"
        );
        let present = self
            .known
            .values()
            .filter(|it| matches!(it, Known::Present))
            .count();
        assert_eq!(self.figure("layerhold_cache_blobs", None), present as u64);
        assert_eq!(state("used"), self.used(), "the ledger is exact");
        assert_eq!(
            files(&self.dir.path().join("blobs")),
            present,
            "the directory is the truth"
        );
    }

    /// Bytes that count: content, metadata, and what was purged and is still being read.
    fn used(&self) -> u64 {
        let present = self.known.iter();
        let present = present.filter(|(_, it)| matches!(it, Known::Present));
        let present = present.map(|(digest, _)| self.blobs[digest].len() as u64);
        let life = |digest| self.lives.get(digest).copied().unwrap_or(0);
        let purged: BTreeSet<_> = self
            .held
            .iter()
            .filter(|(digest, of, _)| *of < life(digest))
            .map(|(digest, of, blob)| (digest, of, blob.size()))
            .collect();
        let purged = purged.iter().map(|(_, _, size)| size);
        present.sum::<u64>() + purged.sum::<u64>() + bytes(&self.dir.path().join("upstreams"))
    }

    /// Takes what was evicted out of the model: nothing else may vanish, and nothing that is being read.
    fn forget_evicted(&mut self) {
        let evictions = self.figure("layerhold_evictions_total", None);
        let mut vanished = 0;
        let layout = super::layout::Layout::new(self.dir.path().to_owned());
        let (held, lives) = (&self.held, &self.lives);
        self.known.retain(|digest, known| {
            let gone = matches!(known, Known::Present) && !layout.blob(digest).exists();
            if gone {
                assert!(
                    held.iter()
                        .all(|(it, of, _)| it != digest || Some(of) < lives.get(digest)),
                    "evicted while being read"
                );
                vanished += 1;
            }
            !gone
        });
        assert_eq!(
            vanished,
            evictions - self.evictions_seen,
            "only eviction removes"
        );
        self.evictions_seen = evictions;
        self.evicted += vanished;
    }

    fn figure(&self, name: &str, state: Option<&str>) -> u64 {
        figure(&self.registry, name, state)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the figures are small counts"
)]
fn figure(registry: &Registry, name: &str, state: Option<&str>) -> u64 {
    let families = registry.gather();
    let family = families.iter().find(|it| it.name() == name).unwrap();
    let metrics = family.get_metric().iter();
    let mut metrics = metrics.filter(|it| {
        state.is_none_or(|state| it.get_label().iter().any(|label| label.value() == state))
    });
    let metric = metrics.next().unwrap();
    (metric.get_gauge().get_value() + metric.get_counter().get_value()) as u64
}

const BLOBS: usize = 24;
const BLOB_BYTES_MAX: usize = 3000;
const LIMIT: u64 = 16_000;
const REPOSITORIES: usize = 3;

async fn open(dir: &Path) -> (Cache, Registry) {
    let (cache, registry) = unscanned(dir).await;
    scan(&cache).await;
    (cache, registry)
}

async fn scan(cache: &Cache) {
    let cache = cache.clone();
    let scanning = tokio::task::spawn_blocking(move || cache.scan());
    scanning.await.unwrap();
}

async fn unscanned(dir: &Path) -> (Cache, Registry) {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let config = Config {
        dir: dir.to_owned(),
        size: Some(LIMIT),
        free_space_min: Share::Bytes(0),
        high_watermark: Share::Percent(100.0),
        low_watermark: Share::Percent(90.0),
        repositories_max: 10,
        scrub_rate: 0,
        fills_max: BLOBS,
        faults: Faults::default(),
    };
    let opening = move || Cache::open(&config, metrics).unwrap();
    (
        tokio::task::spawn_blocking(opening).await.unwrap(),
        registry,
    )
}

/// Some lie below others.
fn repository(n: usize) -> Repository {
    Repository {
        namespace: Namespace::parse("docker.io").unwrap(),
        name: RepositoryName::parse(&format!("library{}", "/debian".repeat(n))).unwrap(),
    }
}

/// The sum of the sizes of all files below.
fn bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| match path.is_dir() {
            true => bytes(&path),
            false => path.metadata().unwrap().len(),
        })
        .sum()
}

fn files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| if path.is_dir() { files(&path) } else { 1 })
        .sum()
}

#[expect(clippy::print_stdout, reason = "a failing test shows its seed")]
async fn run(seed: u64, steps: usize) {
    println!("seed {seed}");
    let mut model = Model::new(seed).await;
    for _ in 0..steps {
        model.step().await;
    }
    let Model {
        hits,
        evicted,
        mismatches,
        purged,
        damaged,
        ..
    } = model;
    assert!(
        hits > 0 && evicted > 0 && mismatches > 0 && damaged > 0,
        "{hits} {evicted} {mismatches} {damaged}"
    );
    let Purged {
        tags,
        grants,
        blobs,
        ..
    } = purged;
    assert!(tags > 0 && grants > 0 && blobs > 0, "{purged:?}");
}

#[tokio::test]
async fn the_store_behaves_as_a_map_does() {
    for seed in 0..8 {
        run(seed, 500).await;
    }
}

#[tokio::test]
async fn checking_is_no_use() {
    let model = Model::new(0).await;
    let mut put = Vec::new();
    let of_size: Vec<Bytes> = (0..8).map(|n| vec![n; 1900].into()).collect();
    for bytes in of_size {
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let Joined::First(filler, _) = model.cache.join(&digest, &repository(0)).await else {
            panic!("nobody else brings it");
        };
        model.cache.put(*filler, bytes).await.unwrap();
        put.push(digest);
    }
    let (stop, (progress, seen)) = (CancellationToken::new(), watch::channel(<_>::default()));
    let verifying = model.cache.verify(Verify::default(), &stop, &progress);
    assert_eq!(verifying.await.blobs, 8);
    assert_eq!(
        (seen.borrow().done, seen.borrow().total),
        (8 * 1900, 8 * 1900)
    );
    // One more has no room.
    let bytes = Bytes::from(vec![9; 1900]);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let Joined::First(filler, _) = model.cache.join(&digest, &repository(0)).await else {
        panic!("nobody else brings it");
    };
    model.cache.put(*filler, bytes).await.unwrap();
    let evicted = model.figure("layerhold_evictions_total", None);
    let (gone, kept) = put.split_at(usize::try_from(evicted).unwrap());
    assert!(evicted > 0 && evicted < 8);
    for digest in gone {
        assert_eq!(model.cache.size_of(digest).await, None, "the oldest went");
    }
    for digest in kept {
        assert!(model.cache.size_of(digest).await.is_some());
    }
}

#[tokio::test]
async fn invariant_07_what_is_given_out_while_the_scan_goes_on_fits_when_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, _) = open(dir.path()).await;
    for n in 0..5 {
        let bytes = Bytes::from(vec![n; 3000]);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let Joined::First(filler, _) = cache.join(&digest, &repository(0)).await else {
            panic!("nobody else brings it");
        };
        cache.put(*filler, bytes).await.unwrap();
    }
    cache.release();
    drop(cache);

    let (cache, registry) = unscanned(dir.path()).await;
    let mut fillers = Vec::new();
    for (n, is_kept) in [(1, true), (2, false)] {
        let digest = Digest::of(Algorithm::Sha256, &[n]);
        let Joined::First(mut filler, follower) = cache.join(&digest, &repository(0)).await else {
            panic!("nobody else brings it");
        };
        let begun = filler.begin(Some(LIMIT / 3 * 2)).await;
        assert_eq!(begun.is_ok(), is_kept, "{begun:?}");
        fillers.push((filler, follower));
    }
    scan(&cache).await;
    let state = |name| figure(&registry, "layerhold_cache_bytes", Some(name));
    let (used, reserved) = (state("used"), state("reserved"));
    assert!(used + reserved <= LIMIT, "{used} and {reserved}");
    assert!(used >= 3000, "no more went than had to");
}
