//! The gate before what is here, where the callers' own rights decide: nobody gets a look at it before the registry has let
//! them in.
//!
//! The gate comes before any look at the cache, and what it asks does not depend on that: what is here and not the caller's,
//! and what is not here, are asked for by the same questions in the same order, and answered the same. A repository is opened
//! by one yes of the registry itself, as of the caller, to content of it, or to lists of it; a digest that the repository is
//! not known to hold is asked for by itself, even where the repository is open.
//!
//! Behind the gate the registry is asked as the caller, and what is shared in memory lets nobody speak for another:
//!
//! - refusals, questions in flight, tags' words and lists have who asks in their keys, so that nobody hears what another was
//!   told; what a caller is refused clears no record on disk, where it is perhaps there for others;
//! - a fill is one transfer for all, but whoever joins it has passed the gate, and begins one of their own when it fails: what
//!   its first caller was refused is not their answer;
//! - whoever joins a fill is one more source of it, asked as them, for bytes of a digest that is verified;
//! - windows and ways around the cache are asked for as whoever reads them;
//! - that a repository holds a digest is a fact about the repository, whoever it was said to, and is looked at by those alone
//!   whom the registry has let into that repository.

use std::sync::Arc;

use super::answer::Pull;
use super::error::{Error, Subject};
use super::listing::{LISTING_BYTES_MAX, is_plausible};
use super::registry::Registry;
use crate::cache::Cache;
use crate::oci::{Endpoint, Reference, RepositoryName};
use crate::upstream::Class;

/// Who is let in to what.
#[derive(Debug)]
pub(super) struct Gate {
    cache: Cache,
    manifest_bytes_max: u64,
}

impl Gate {
    pub(super) fn new(cache: Cache, manifest_bytes_max: u64) -> Self {
        Self {
            cache,
            manifest_bytes_max,
        }
    }

    /// The registry as the caller of this pull asks it, who may; `None` where it is asked as ourselves, by whoever it is.
    ///
    /// # Errors
    ///
    /// When the registry does not let them, does not have it, or cannot say.
    pub(super) async fn pass(&self, pull: &Pull) -> Result<Option<Arc<Registry>>, Error> {
        let (Some(rights), Some(name)) = (pull.registry.rights(), pull.endpoint.name()) else {
            return Ok(None);
        };
        let registry = pull.registry.as_caller(pull.caller.credential());
        let asker = registry.asker();
        let thing = (asker, pull.endpoint.clone());
        if rights.hold(&thing) && self.is_held(&registry, name, &pull.endpoint).await {
            rights.used();
            return Ok(Some(registry));
        }
        let (upstream, endpoint) = (Arc::clone(registry.upstream()), pull.endpoint.clone());
        let bytes_max = self.manifest_bytes_max;
        let asking = rights.ask(&thing, subject(&endpoint), || async move {
            let is_tags = match endpoint {
                Endpoint::Tags { .. } => true,
                Endpoint::Referrers { .. } => false,
                Endpoint::Ping | Endpoint::Manifest { .. } | Endpoint::Blob { .. } => {
                    return upstream.vouch(&endpoint, bytes_max).await;
                }
            };
            let query = if is_tags { SHORTEST } else { "" };
            let plausible = |listing: &_| is_plausible(listing, is_tags);
            let asking = upstream.vouch_for_listing(&endpoint, query, LISTING_BYTES_MAX, plausible);
            asking.await
        });
        asking.await?;
        Ok(Some(registry))
    }

    /// The registry's yes is no more, when it has just refused the caller what it had opened.
    pub(super) fn contradicted(&self, pull: &Pull, error: &Error) {
        let is_refused =
            matches!(error, Error::Upstream { source, .. } if source.class() == Class::Refused);
        if let Some(rights) = pull.registry.rights().filter(|_| is_refused) {
            rights.lose(&(pull.registry.asker(), pull.endpoint.clone()));
        }
    }

    /// Whether the repository is known to hold what is asked for. Where it is asked for by a tag, or in a list, it is in the
    /// repository or nowhere.
    async fn is_held(
        &self,
        registry: &Registry,
        name: &RepositoryName,
        endpoint: &Endpoint,
    ) -> bool {
        let (digest, is_manifest) = match endpoint {
            Endpoint::Blob { digest, .. } => (digest, false),
            Endpoint::Manifest {
                reference: Reference::Digest(digest),
                ..
            } => (digest, true),
            Endpoint::Manifest {
                reference: Reference::Tag(_),
                ..
            }
            | Endpoint::Ping
            | Endpoint::Tags { .. }
            | Endpoint::Referrers { .. } => return true,
        };
        // A record that cannot be read costs a question.
        let granted = self.cache.granted(&registry.repository(name), digest).await;
        granted.is_ok_and(|it| match is_manifest {
            true => it.manifest.is_some(),
            false => it.blob,
        })
    }
}

/// A list is asked for to hear whether there may be one.
const SHORTEST: &str = "n=1";

fn subject(endpoint: &Endpoint) -> Subject {
    match endpoint {
        Endpoint::Manifest { .. } => Subject::Manifest,
        Endpoint::Blob { .. } => Subject::Blob,
        Endpoint::Ping | Endpoint::Tags { .. } | Endpoint::Referrers { .. } => Subject::Listing,
    }
}
