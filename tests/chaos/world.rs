//! What upstreams hold, and what they held when.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::{Mutex, MutexGuard};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;
use toml::{Table, Value};

use crate::harness::proxy::{ONE, ProxyBuilder, TWO};
use crate::harness::{Blob, FakeRegistry, KIB, MIB, Manifest, TestProxy};
use crate::timeline::Timeline;
use crate::trouble::{Place, Troubles};

/// Two registries, a mirror of the first, and all that is in them.
pub(crate) struct World {
    pub(crate) began: Instant,
    pub(crate) registries: [FakeRegistry; 2],
    pub(crate) mirror: FakeRegistry,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) repositories: Vec<Repository>,
    names: Mutex<Names>,
    troubles: Mutex<Troubles>,
    hurt: Mutex<BTreeSet<String>>,
}

/// One repository: what never changes of it.
pub(crate) struct Repository {
    /// The number of its registry.
    pub(crate) of: usize,
    pub(crate) name: &'static str,
    /// The blobs that it holds, by number.
    pub(crate) blobs: Vec<usize>,
    pub(crate) manifests: Vec<Manifest>,
    pub(crate) tags: Vec<String>,
}

/// What changes: tags, by the number of their repository.
#[derive(Default)]
struct Names {
    tags: BTreeMap<(usize, String), Tag>,
    lists: Vec<Timeline<BTreeSet<String>>>,
}

struct Tag {
    /// The number of the manifest that it means.
    meaning: Timeline<Option<usize>>,
    /// When a client that saw it checked had asked.
    right: Option<Instant>,
    /// What was known before is forgotten.
    purged: Option<Instant>,
}

impl World {
    /// Fills the registries with what the seed says.
    pub(crate) async fn new(seed: u64) -> Self {
        let mut choices = SmallRng::seed_from_u64(seed);
        let blobs: Vec<Blob> = (0..BLOBS)
            .map(|n| Blob::seeded(choices.random(), size(n, &mut choices)))
            .collect();
        let repositories = REPOSITORIES.iter().enumerate();
        let repositories = repositories
            .map(|(n, (of, name))| Repository::new(n, (*of, name), &blobs, &mut choices))
            .collect();
        let world = Self {
            began: Instant::now(),
            registries: [FakeRegistry::start().await, FakeRegistry::start().await],
            mirror: FakeRegistry::start().await,
            blobs,
            repositories,
            names: Mutex::default(),
            troubles: Mutex::default(),
            hurt: Mutex::default(),
        };
        for (n, repository) in world.repositories.iter().enumerate() {
            for place in world.places(repository.of) {
                place.allow_concurrent_transfers();
                for blob in &repository.blobs {
                    place.serve_blob(repository.name, &world.blobs[*blob]);
                }
                for manifest in &repository.manifests {
                    place.serve_manifest(repository.name, manifest);
                }
            }
            world
                .names
                .lock()
                .lists
                .push(Timeline::new(BTreeSet::new()));
            for tag in &repository.tags {
                world.point(n, tag, Some(choices.random_range(0..MANIFESTS)));
            }
        }
        world
    }

    /// The configurations that a reload changes between.
    pub(crate) fn configurations(&self) -> Vec<ProxyBuilder> {
        let [first, second] = &self.registries;
        let common = TestProxy::in_front_of(first)
            .set("cache.size", CACHE)
            .set("limits.manifest_bytes", "64KiB")
            .set("freshness.negative_for", "1s")
            .set("freshness.retry_after", "250ms")
            .set("timeouts.answer", "5s")
            .set("timeouts.first_byte", "1s")
            .set("timeouts.idle", "1s")
            .set("timeouts.drain", "2s");
        let stable = Table::from_iter([
            ("match".to_owned(), Value::from("stable")),
            ("fresh_for".to_owned(), Value::from("2s")),
        ]);
        let tags = vec![Value::from(stable)];
        let with = common.clone().upstream("tags", tags.clone());
        let with = with.mirror(&self.mirror, "").and(TWO, second);
        let without = common.upstream("tags", tags.clone()).and(TWO, second);
        [with, without]
            .map(|it| it.upstream("tags", tags.clone()))
            .into()
    }

    /// Where what a registry holds can be had.
    fn places(&self, of: usize) -> Vec<&FakeRegistry> {
        let mirror = (of == 0).then_some(&self.mirror);
        mirror.into_iter().chain([&self.registries[of]]).collect()
    }

    pub(crate) fn at(&self, place: Place) -> &FakeRegistry {
        match place {
            Place::Registry(n) => &self.registries[n],
            Place::Mirror => &self.mirror,
        }
    }

    pub(crate) fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock()
    }

    /// The digests of what was damaged while it was served.
    pub(crate) fn hurt(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.hurt.lock()
    }

    /// Whether a repository holds a blob.
    pub(crate) fn holds(&self, repository: usize, blob: usize) -> bool {
        self.repositories[repository].blobs.contains(&blob)
    }

    /// The registries that hold a blob.
    pub(crate) fn holders(&self, blob: usize) -> BTreeSet<usize> {
        let holding = self
            .repositories
            .iter()
            .filter(|it| it.blobs.contains(&blob));
        holding.map(|it| it.of).collect()
    }

    /// Moves a tag to a manifest, or takes it away, at the registry and its mirror.
    pub(crate) fn point(&self, repository: usize, tag: &str, manifest: Option<usize>) {
        let it = &self.repositories[repository];
        let mut names = self.names.lock();
        let from = Instant::now();
        for place in self.places(it.of) {
            match manifest {
                Some(n) => place.tag(it.name, tag, &it.manifests[n]),
                None => place.untag(it.name, tag),
            }
        }
        let state = names.tags.entry((repository, tag.to_owned()));
        let state = state.or_insert_with(|| Tag {
            meaning: Timeline::new(None),
            right: None,
            purged: None,
        });
        state.meaning.change(manifest, from);
        let mut list = names.lists[repository].now().cloned().unwrap_or_default();
        let changed = match manifest {
            Some(_) => list.insert(tag.to_owned()),
            None => list.remove(tag),
        };
        if changed {
            names.lists[repository].change(list, from);
        }
    }

    /// What a tag means now.
    pub(crate) fn meaning(&self, repository: usize, tag: &str) -> Option<usize> {
        let names = self.names.lock();
        *names.tags[&(repository, tag.to_owned())].meaning.now()?
    }

    /// Whether a tag meant this at some moment of this time.
    pub(crate) fn meant(
        &self,
        (repository, tag): (usize, &str),
        manifest: Option<usize>,
        (from, until): (Instant, Instant),
    ) -> bool {
        let names = self.names.lock();
        let tag = &names.tags[&(repository, tag.to_owned())];
        tag.meaning.was(|it| *it == manifest, from, until)
    }

    /// Whether a repository had these tags at some moment of this time.
    pub(crate) fn listed(
        &self,
        repository: usize,
        tags: &BTreeSet<String>,
        (from, until): (Instant, Instant),
    ) -> bool {
        self.names.lock().lists[repository].was(|it| it == tags, from, until)
    }

    /// A client that asked at this time saw the tag checked.
    pub(crate) fn saw_right(&self, repository: usize, tag: &str, asked: Instant) {
        let mut names = self.names.lock();
        if let Some(tag) = names.tags.get_mut(&(repository, tag.to_owned())) {
            tag.right = tag.right.max(Some(asked));
        }
    }

    /// When a tag was last seen checked, and when it was last purged.
    pub(crate) fn seen(&self, repository: usize, tag: &str) -> (Option<Instant>, Option<Instant>) {
        let names = self.names.lock();
        let tag = &names.tags[&(repository, tag.to_owned())];
        (tag.right, tag.purged)
    }

    /// What was known of a repository's tags, or of one of them, is forgotten now.
    pub(crate) fn purged(&self, repository: usize, tag: Option<&str>) {
        let mut names = self.names.lock();
        for ((of, name), it) in &mut names.tags {
            if *of == repository && tag.is_none_or(|tag| tag == name) {
                it.purged = Some(Instant::now());
            }
        }
    }

    /// Bytes of bodies that all of them sent.
    pub(crate) fn sent(&self) -> usize {
        let places = self.registries.iter().chain([&self.mirror]);
        places
            .map(|it| it.log().iter().map(|it| it.sent).sum::<usize>())
            .sum()
    }
}

impl Repository {
    /// What this one holds: a secret nothing but its own, the others what they share by chance.
    fn new(
        n: usize,
        (of, name): (usize, &'static str),
        blobs: &[Blob],
        choices: &mut SmallRng,
    ) -> Self {
        let held: Vec<usize> = (0..blobs.len())
            .filter(|it| match (it % 10 == 0, n == SECRET) {
                (is_secret, true) => is_secret,
                (true, false) => false,
                // Each blob has a home, and is elsewhere too, perhaps.
                (false, false) => it % PUBLIC == n || choices.random_bool(0.3),
            })
            .collect();
        let manifests = (0..MANIFESTS).map(|at| {
            let pick = |n: usize| &blobs[held[(at + n) % held.len()]];
            Manifest::oci(pick(0), &[pick(1), pick(2)])
        });
        let short = name.rsplit('/').next().unwrap_or(name);
        let tags = (0..TAGS).map(|at| match at {
            0 => format!("stable-{short}"),
            _ => format!("moving-{short}-{at}"),
        });
        Self {
            of,
            name,
            manifests: manifests.collect(),
            tags: tags.collect(),
            blobs: held,
        }
    }

    /// The namespace that clients know its registry by.
    pub(crate) fn namespace(&self) -> &'static str {
        [ONE, TWO][self.of]
    }
}

/// The bytes that blob `n` has: many as large as layers here, some tiny, one empty, and one larger than the whole cache.
fn size(n: usize, choices: &mut SmallRng) -> usize {
    match n {
        1 => 0,
        2 => 1,
        3 => 9 * MIB,
        _ if n.is_multiple_of(4) => choices.random_range(100..300 * KIB),
        _ => choices.random_range(300 * KIB..4 * MIB),
    }
}

/// The repository whose blobs nobody else holds.
pub(crate) const SECRET: usize = 4;
/// The others.
const PUBLIC: usize = 4;
const REPOSITORIES: [(usize, &str); 5] = [
    (0, "team/app"),
    (0, "team/web"),
    (1, "other/app"),
    (1, "other/tool"),
    (0, "secret/vault"),
];
const BLOBS: usize = 60;
const MANIFESTS: usize = 6;
const TAGS: usize = 4;
/// Less than a tenth of all blobs.
const CACHE: &str = "8MiB";
