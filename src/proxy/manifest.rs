//! Manifests by digest: from memory, from the store, from upstream; byte for byte as they were received.

use std::sync::Arc;

use bytes::Bytes;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as Memory;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::answer::Outcome;
use super::blob::{Shared, fill_error};
use super::error::{Error, Subject};
use super::flights::Flights;
use super::metrics::Metrics;
use super::refusals::{Key, Refusals};
use super::registry::Registry;
use super::seen::Seen;
use crate::cache::{
    Blob, Cache, Content, FillError, Filler, Follower, Grant, Joined, Moment, Purge, ReadError,
    Repository,
};
use crate::oci::{Digest, DigestState, MediaType, Reference, RepositoryName};
use crate::upstream::{self, Fault, ManifestHead};

/// Manifests by digest. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Manifests {
    cache: Cache,
    memory: Memory<Digest, Bytes, DigestState>,
    heads: Arc<Flights<(Seen, Digest), Head>>,
    refusals: Refusals,
    metrics: Metrics,
    bytes_max: u64,
    tracker: TaskTracker,
}

type Head = Result<ManifestHead, Arc<upstream::Error>>;

/// A manifest that may be served.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) bytes: Bytes,
    pub(super) media_type: MediaType,
    pub(super) outcome: Outcome,
    /// Whether this repository was not known before to hold it.
    pub(super) is_new: bool,
}

/// What became of reading a manifest as it arrives.
enum Along {
    Read(Bytes, MediaType),
    /// Whoever brought it cannot leave it here.
    Again,
    /// It did not come.
    Failed(Error),
    /// It is not to be read here, or too large to be a manifest.
    Unreadable,
}

/// What became of reading a manifest that is here.
enum Here {
    Right(Bytes),
    /// It was damaged, and is out of the way.
    SetAside,
    /// It cannot be read, is too large to be a manifest, or damaged and still in the way.
    Unreadable,
}

impl Manifests {
    pub(super) fn new(
        cache: Cache,
        refusals: Refusals,
        metrics: Metrics,
        bytes_max: u64,
        tracker: TaskTracker,
    ) -> Self {
        let memory = Memory::builder()
            .max_capacity(MEMORY_BYTES_MAX)
            .weigher(|_, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
            .eviction_policy(EvictionPolicy::lru())
            .build_with_hasher(DigestState::default());
        let heads = Arc::new(Flights::new(tracker.clone()));
        Self {
            cache,
            memory,
            heads,
            refusals,
            metrics,
            bytes_max,
            tracker,
        }
    }

    /// The manifest of this digest, where this repository is known in memory to vouch for it and it is there, too. No use of it is
    /// counted.
    pub(super) fn in_memory(
        &self,
        registry: &Registry,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Option<Served> {
        let repository = registry.repository(name);
        let granted = self.cache.granted_in_memory(&repository, digest)?;
        let media_type = granted.manifest?;
        Some(Served {
            bytes: self.memory.get(digest)?,
            media_type,
            outcome: Outcome::Hit,
            is_new: false,
        })
    }

    /// The manifest of this digest, as this repository vouches for it.
    pub(super) async fn pull(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Served, Error> {
        let repository = registry.repository(name);
        let (mut outcome, mut followed) = (Outcome::Hit, false);
        let asked = self.cache.purges().now();
        for _ in 0..ATTEMPTS_MAX {
            let granted = self.granted(&repository, digest).await;
            if let Some(media_type) = &granted
                && let Some(bytes) = self.memory.get(digest)
            {
                self.cache.touch(digest);
                return Ok(Served {
                    bytes,
                    media_type: media_type.clone(),
                    outcome,
                    is_new: false,
                });
            }
            let (bytes, media_type) = match (self.cache.join(digest, &repository).await, granted) {
                (Joined::First(filler, _), _) => {
                    self.check_refusal(&registry.seen(name), digest)?;
                    return self.fetch(Some(*filler), registry, name, digest).await;
                }
                (Joined::Unreadable(_), _) => return self.around(registry, name, digest).await,
                (Joined::Present(blob), granted) => {
                    let bytes = match self.read_here(blob, digest).await {
                        Here::Right(bytes) => bytes,
                        Here::SetAside => continue,
                        Here::Unreadable => return self.around(registry, name, digest).await,
                    };
                    let media_type = match granted {
                        Some(media_type) => media_type,
                        None => self.proven_type(registry, name, digest, &bytes).await?,
                    };
                    (bytes, media_type)
                }
                (Joined::Following(follower), granted) => {
                    outcome = Outcome::Join;
                    let needs_proof = granted.is_none() && !follower.is_through(&repository);
                    let read = self
                        .read_along(follower, needs_proof, registry, (name, digest))
                        .await?;
                    match read {
                        Along::Read(bytes, media_type) => (bytes, media_type),
                        Along::Again => continue,
                        // Somebody else's failure, which may be of another repository or endpoint: we have not asked yet.
                        Along::Failed(_) if !followed => {
                            followed = true;
                            continue;
                        }
                        // Another caller's failure is never this one's answer.
                        Along::Failed(_) if registry.asker().is_caller() => {
                            return self.around(registry, name, digest).await;
                        }
                        Along::Failed(error) => return Err(error),
                        Along::Unreadable => return self.around(registry, name, digest).await,
                    }
                }
            };
            let kept = (&bytes, &media_type);
            let is_new = self.keep(&repository, digest, kept, asked).await;
            if is_new {
                // Another one had brought it, or is bringing it.
                self.metrics.deduplicated(&repository, bytes.len() as u64);
            }
            return Ok(Served {
                bytes,
                media_type,
                outcome,
                is_new,
            });
        }
        Err(Error::Lost)
    }

    /// Reads a manifest that is here. It is small, it is read once, and everything else hangs on it: so it is hashed.
    async fn read_here(&self, blob: Blob, digest: &Digest) -> Here {
        let read = Content::Blob(blob.clone()).read_all(self.bytes_max).await;
        match read {
            Ok(bytes) if Digest::of(digest.algorithm(), &bytes) == *digest => Here::Right(bytes),
            Ok(_) if blob.quarantine().await => Here::SetAside,
            Ok(_) | Err(_) => Here::Unreadable,
        }
    }

    /// Reads a manifest that somebody brings as it arrives: on disk it may be a moment later than it is verified.
    async fn read_along(
        &self,
        follower: Follower,
        needs_proof: bool,
        registry: &Arc<Registry>,
        (name, digest): (&RepositoryName, &Digest),
    ) -> Result<Along, Error> {
        // Having the bytes is not a right to them, nor is waiting for them.
        let proof = match needs_proof {
            true => Some(self.head(registry, name, digest, None).await?),
            false => None,
        };
        let bytes = match self.cache.follow(follower).read_all(self.bytes_max).await {
            Ok(bytes) => bytes,
            // What cannot be kept on disk is in memory; what was abandoned is asked for again.
            Err(ReadError::Fill(FillError::NotKept(_) | FillError::Abandoned)) => {
                return Ok(Along::Again);
            }
            Err(ReadError::Fill(error)) => {
                return Ok(Along::Failed(fill_error(error, digest, Subject::Manifest)));
            }
            Err(ReadError::Truncated | ReadError::Unreadable | ReadError::Io(_)) => {
                return Ok(Along::Unreadable);
            }
        };
        let granted = self.granted(&registry.repository(name), digest).await;
        let media_type = match (granted, proof) {
            (Some(media_type), _) => media_type,
            (None, Some(head)) => agreed_type(registry, &bytes, &head)?,
            (None, None) => self.proven_type(registry, name, digest, &bytes).await?,
        };
        Ok(Along::Read(bytes, media_type))
    }

    /// What is here cannot be read, or is too large to be a manifest: upstream has the word, and nothing is stored.
    async fn around(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Served, Error> {
        self.check_refusal(&registry.seen(name), digest)?;
        self.fetch(None, registry, name, digest).await
    }

    /// The type of a manifest that is here, once upstream has said that this repository holds it.
    async fn proven_type(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
        bytes: &Bytes,
    ) -> Result<MediaType, Error> {
        let here = Some(bytes.len() as u64);
        let head = self.head(registry, name, digest, here).await?;
        agreed_type(registry, bytes, &head)
    }

    /// What is known of a manifest without fetching it: here or, when it is not here, from upstream's head.
    pub(super) async fn describe(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<(MediaType, Option<u64>, Outcome), Error> {
        let repository = registry.repository(name);
        if let Some((media_type, size)) = self.stored(&repository, digest).await {
            self.cache.touch(digest);
            return Ok((media_type, Some(size), Outcome::Hit));
        }
        let head = self.head(registry, name, digest, None).await?;
        match head.media_type.filter(MediaType::is_manifest) {
            Some(media_type) => Ok((media_type, head.size, Outcome::Forwarded)),
            // Only the body can tell what this is.
            None => {
                let served = self.pull(registry, name, digest).await?;
                Ok((
                    served.media_type,
                    Some(served.bytes.len() as u64),
                    served.outcome,
                ))
            }
        }
    }

    /// Type and size of a manifest that is here and that this repository was proven to hold.
    pub(super) async fn stored(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<(MediaType, u64)> {
        let media_type = self.granted(repository, digest).await?;
        let size = match self.memory.get(digest) {
            Some(bytes) => bytes.len() as u64,
            None => self.cache.size_of(digest).await?,
        };
        Some((media_type, size))
    }

    /// Fetches what a tag points to and takes it in.
    pub(super) async fn by_tag(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, upstream::Error> {
        let asked = self.cache.purges().now();
        let manifest = registry
            .upstream()
            .manifest(name, reference, self.bytes_max)
            .await?;
        let upstream::Manifest {
            bytes,
            digest,
            media_type,
        } = manifest;
        let repository = registry.repository(name);
        let size = Some(bytes.len() as u64);
        let kept = (&bytes, &media_type);
        self.keep(&repository, &digest, kept, asked).await;
        if let Joined::First(filler, _) = self.cache.join(&digest, &repository).await {
            // Not kept on disk: then it is served from memory.
            let _ = self.cache.put(*filler, bytes).await;
        }
        Ok(ManifestHead {
            digest: Some(digest),
            media_type: Some(media_type),
            size,
        })
    }

    async fn granted(&self, repository: &Repository, digest: &Digest) -> Option<MediaType> {
        // A record that cannot be read costs a question.
        self.cache.granted(repository, digest).await.ok()?.manifest
    }

    /// In memory and granted, before anybody can find it on disk. Whether the grant is new.
    async fn keep(
        &self,
        repository: &Repository,
        digest: &Digest,
        (bytes, media_type): (&Bytes, &MediaType),
        asked: Moment,
    ) -> bool {
        self.memory.insert(*digest, bytes.clone());
        // Asked after it is there, so that a purge finds it or is found.
        if self.cache.purges().hit_digest(asked, repository, digest) {
            self.memory.invalidate(digest);
        }
        let grant = Grant::Manifest(media_type.clone());
        self.cache.grant(repository, digest, grant, asked).await
    }

    /// Forgets what a purge is about; `manifests` are those of a purged repository.
    pub(super) fn forget(&self, purge: &Purge, manifests: &[Digest]) {
        let purged = match purge {
            Purge::Digest(digest) => Some(digest),
            Purge::Tag(..) | Purge::Repository(_) => None,
        };
        for digest in manifests.iter().chain(purged) {
            self.memory.invalidate(digest);
        }
        self.heads
            .part_from(|(seen, digest)| purge.is_about(&seen.repository, digest));
    }

    /// Brings a manifest, whoever waits for it and whoever leaves; without a filler only into memory.
    async fn fetch(
        &self,
        filler: Option<Filler>,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Served, Error> {
        let digest = *digest;
        let (this, registry, name) = (self.clone(), Arc::clone(registry), name.clone());
        let (sender, answer) = oneshot::channel();
        let asked = self.cache.purges().now();
        self.tracker.spawn(async move {
            let repository = registry.repository(&name);
            let reference = Reference::Digest(digest);
            let upstream = registry.upstream();
            match upstream.manifest(&name, &reference, this.bytes_max).await {
                Ok(manifest) => {
                    let upstream::Manifest {
                        bytes, media_type, ..
                    } = manifest;
                    let kept = (&bytes, &media_type);
                    this.keep(&repository, &digest, kept, asked).await;
                    let outcome = Outcome::Miss;
                    let served = Served {
                        bytes: bytes.clone(),
                        media_type,
                        outcome,
                        is_new: true,
                    };
                    // Whoever asked may have left. Nobody waits for the disk.
                    let _ = sender.send(Ok(served));
                    if let Some(filler) = filler {
                        // Not kept on disk: then it is served from memory.
                        let _ = this.cache.put(filler, bytes).await;
                    }
                }
                Err(source) => {
                    let key = (registry.seen(&name), digest, Subject::Manifest);
                    let error = this.fetch_failed(&key, filler, source, asked);
                    let _ = sender.send(Err(error));
                }
            }
        });
        answer.await.map_err(|_| Error::Lost)?
    }

    /// Tells whoever follows why nothing comes.
    fn fetch_failed(
        &self,
        key: &Key,
        filler: Option<Filler>,
        source: upstream::Error,
        asked: Moment,
    ) -> Error {
        let source = Arc::new(source);
        let (_, digest, _) = *key;
        let error = if source.fault() == Some(Fault::Digest) {
            Error::Mismatch { expected: digest }
        } else {
            let (subject, source) = (Subject::Manifest, Arc::clone(&source));
            Error::Upstream { subject, source }
        };
        // Remembered before anybody hears of it, so that nobody asks again at once.
        self.refusals.remember(key, &error, asked);
        match (filler, &error) {
            (Some(filler), Error::Mismatch { .. }) => filler.refuse(digest),
            (Some(filler), _) => filler.fail(Arc::new(Shared(source))),
            (None, _) => {}
        }
        error
    }

    /// A refusal stands in the way of asking, not of what is here.
    fn check_refusal(&self, seen: &Seen, digest: &Digest) -> Result<(), Error> {
        match self.refusals.standing(seen, digest, Subject::Manifest) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    async fn head(
        &self,
        registry: &Arc<Registry>,
        name: &RepositoryName,
        digest: &Digest,
        here: Option<u64>,
    ) -> Result<ManifestHead, Error> {
        let seen = registry.seen(name);
        self.check_refusal(&seen, digest)?;
        let asked = self.cache.purges().now();
        let answer = self.heads.run((seen.clone(), *digest), || {
            let (upstream, name, digest) = (Arc::clone(registry.upstream()), name.clone(), *digest);
            let reference = Reference::Digest(digest);
            async move {
                let head = upstream.head_manifest(&name, &reference, here).await;
                head.map_err(Arc::new)
            }
        });
        answer.await.ok_or(Error::Lost)?.map_err(|source| {
            let error = Error::Upstream {
                subject: Subject::Manifest,
                source,
            };
            let key = (seen, *digest, Subject::Manifest);
            self.refusals.remember(&key, &error, asked);
            error
        })
    }
}

/// Manifests are small and asked for most: 500 of them answer nine requests in ten.
const MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Rounds of joining; each ends in an answer unless the store changes meanwhile.
const ATTEMPTS_MAX: usize = 4;

/// The type of a manifest that is here, as upstream's head and its own body agree on it; they must agree on the size, too.
fn agreed_type(
    registry: &Registry,
    bytes: &Bytes,
    head: &ManifestHead,
) -> Result<MediaType, Error> {
    let contradicts = head.size.is_some_and(|size| size != bytes.len() as u64);
    let agreed = if contradicts {
        Err(Fault::Digest)
    } else {
        upstream::media_type_of(bytes, head.media_type.as_ref())
    };
    agreed.map_err(|fault| {
        let (subject, source) = (Subject::Manifest, Arc::new(invalid(registry, fault)));
        Error::Upstream { subject, source }
    })
}

/// An answer of this registry that cannot be right.
pub(super) fn invalid(registry: &Registry, fault: Fault) -> upstream::Error {
    upstream::Error::Invalid {
        host: registry.upstream().host().to_owned(),
        fault,
    }
}
