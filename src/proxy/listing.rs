//! Listings: tags and referrers. They are upstream's to say each time; a listing is no content, so the client's own name
//! stands in it, and its link leads back to us.

use std::sync::Arc;

use bytes::Bytes;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as Memory;
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

use super::answer::{Asked, Listing, Outcome};
use super::error::{Error, Subject};
use super::registry::Registry;
use crate::cache::{Purge, Purges, Repository};
use crate::net::Chain;
use crate::oci::Endpoint;
use crate::upstream;

/// Pulls of listings. What was last heard stands in for an upstream that cannot say.
#[derive(Debug)]
pub(super) struct Listings {
    heard: Memory<Key, (Instant, Arc<upstream::Listing>)>,
    purges: Purges,
}

type Key = (Repository, String);

impl Listings {
    pub(super) fn new(purges: Purges) -> Self {
        let weigh = |(_, path): &Key, (_, listing): &(Instant, Arc<upstream::Listing>)| {
            u32::try_from(ENTRY_BYTES + path.len() + listing.bytes.len()).unwrap_or(u32::MAX)
        };
        let heard = Memory::builder()
            .max_capacity(HEARD_BYTES_MAX)
            .weigher(weigh)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { heard, purges }
    }

    pub(super) async fn pull(
        &self,
        registry: &Arc<Registry>,
        endpoint: &Endpoint,
        asked: &Asked,
    ) -> Result<Listing, Error> {
        let is_tags = matches!(endpoint, Endpoint::Tags { .. });
        let query = forwarded(asked.query.as_deref(), is_tags);
        let name = endpoint.name().ok_or(Error::Lost)?;
        let key = (
            registry.repository(name),
            format!("{}?{query}", endpoint.path()),
        );
        let freshness = registry.listing_freshness();
        if let Some((at, listing)) = self.heard.get(&key)
            && at.elapsed() < freshness.fresh_for
        {
            return answer(registry, asked, is_tags, &listing, Outcome::Hit);
        }
        let (upstream, moment) = (registry.upstream(), self.purges.now());
        let plausible = |listing: &upstream::Listing| is_plausible(listing, is_tags);
        let listed = upstream.listing(endpoint, &query, LISTING_BYTES_MAX, plausible);
        let (listing, outcome) = match listed.await {
            Ok(listing) => {
                let listing = Arc::new(listing);
                let heard = (Instant::now(), Arc::clone(&listing));
                self.heard.insert(key.clone(), heard);
                // Asked after it is there, so that a purge finds it or is found.
                if self.purges.hit_repository(moment, &key.0) {
                    self.heard.invalidate(&key);
                }
                (listing, Outcome::Forwarded)
            }
            Err(error) => {
                let subject = Subject::Listing;
                let source = Arc::new(error);
                let error = Error::Upstream { subject, source };
                let usable_for = freshness.usable_for;
                match self.heard.get(&key) {
                    Some((at, listing)) if error.is_unavailable() && at.elapsed() < usable_for => {
                        warn!(upstream = upstream.name(), error = %Chain(&error), "serving stale listing");
                        (listing, Outcome::Stale)
                    }
                    Some(_) | None => return Err(error),
                }
            }
        };
        answer(registry, asked, is_tags, &listing, outcome)
    }

    /// Forgets what a purge is about.
    pub(super) fn forget(&self, purge: &Purge) {
        let Purge::Repository(purged) = purge else {
            return;
        };
        for (key, _) in &self.heard {
            if key.0 == *purged {
                self.heard.invalidate(key.as_ref());
            }
        }
    }
}

/// A listing in the client's own words.
fn answer(
    registry: &Registry,
    asked: &Asked,
    is_tags: bool,
    listing: &upstream::Listing,
    outcome: Outcome,
) -> Result<Listing, Error> {
    let link = listing.next.as_deref().map(|next| link(asked, next));
    let bytes = if is_tags {
        renamed(&listing.bytes, &asked.name).ok_or_else(|| {
            let fault = upstream::Fault::Listing;
            let source = Arc::new(super::manifest::invalid(registry, fault));
            Error::Upstream {
                subject: Subject::Listing,
                source,
            }
        })?
    } else {
        listing.bytes.clone()
    };
    Ok(Listing {
        bytes,
        media_type: listing.media_type.clone(),
        link,
        filters_applied: listing.filters_applied.clone(),
        outcome,
    })
}

const HEARD_BYTES_MAX: u64 = 16 << 20;
/// Pages that are asked for; registries answer 400 to more than they like (distribution#4856).
const PAGE_MAX: u64 = 1000;
/// Pairs of a query, and bytes of one, that go on; what is beyond is nobody's pagination.
const PAIRS_MAX: usize = 8;
const PAIR_BYTES_MAX: usize = 1024;

/// Tag lists of one page are larger than manifests may be: a hundred thousand tags are some megabytes.
const LISTING_BYTES_MAX: u64 = 16 << 20;
/// What an entry costs besides its bytes.
const ENTRY_BYTES: usize = 512;

/// A list that is one, with a link that can be followed: anything else is somebody's web page.
fn is_plausible(listing: &upstream::Listing, is_tags: bool) -> bool {
    let key = if is_tags { "tags" } else { "manifests" };
    let value: Option<Value> = serde_json::from_slice(&listing.bytes).ok();
    let is_list =
        value.is_some_and(|it| it.get(key).is_some_and(|it| it.is_array() || it.is_null()));
    // A pair that does not go on would lead to the first page again, for ever.
    let can_follow = listing.next.as_deref().is_none_or(|next| {
        let pairs = form_urlencoded::parse(next.as_bytes());
        let mut sizes = pairs.map(|(key, value)| key.len() + value.len());
        sizes.clone().count() <= PAIRS_MAX && sizes.all(|size| size <= PAIR_BYTES_MAX)
    });
    is_list && can_follow
}

/// The client's query as upstream gets it: without `ns`, bounded, and rendered anew.
fn forwarded(query: Option<&str>, is_tags: bool) -> String {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let mut out = form_urlencoded::Serializer::new(String::new());
    let pairs =
        pairs.filter(|(key, value)| key != "ns" && key.len() + value.len() <= PAIR_BYTES_MAX);
    let mut has_page = false;
    for (key, value) in pairs.take(PAIRS_MAX) {
        if !(is_tags && key == "n") {
            out.append_pair(&key, &value);
            continue;
        }
        // One page size, a whole number, and not more than registries like.
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && !has_page {
            has_page = true;
            let n = value.parse().unwrap_or(PAGE_MAX).min(PAGE_MAX);
            out.append_pair(&key, &n.to_string());
        }
    }
    out.finish()
}

/// A `Link` to the next page (RFC 8288) on the client's own path: upstream's host is not the client's business, its query
/// is opaque.
fn link(asked: &Asked, next: &str) -> String {
    let mut query = forwarded(Some(next), false);
    let pairs = form_urlencoded::parse(asked.query.as_deref().unwrap_or_default().as_bytes());
    for (_, value) in pairs.filter(|(key, _)| key == "ns") {
        let mut with_namespace = form_urlencoded::Serializer::new(query);
        query = with_namespace.append_pair("ns", &value).finish();
    }
    format!("<{}?{query}>; rel=\"next\"", asked.path)
}

/// A tag list under the client's own name; the rest as it was.
fn renamed(bytes: &[u8], name: &str) -> Option<Bytes> {
    let mut list: Value = serde_json::from_slice(bytes).ok()?;
    let object = list.as_object_mut()?;
    object.insert("name".to_owned(), Value::from(name));
    serde_json::to_vec(&list).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_back_to_us() {
        let asked = Asked {
            name: "a.example/app".to_owned(),
            path: "/v2/a.example/app/tags/list".to_owned(),
            query: Some("n=2&ns=b%3A1".to_owned()),
        };
        let link = link(&asked, "n=2&last=x%26y&ns=evil");
        assert_eq!(
            link,
            "</v2/a.example/app/tags/list?n=2&last=x%26y&ns=b%3A1>; rel=\"next\""
        );
    }

    #[test]
    fn a_query_goes_on_bounded_and_without_ns() {
        let long = format!("n=5&x={}", "y".repeat(PAIR_BYTES_MAX));
        let cases = [
            (None, ""),
            (Some("ns=a.io&n=100000&last=b"), "n=1000&last=b"),
            (Some("n=abc&n=-1&n=7&n=8"), "n=7"),
            (Some("n=99999999999999999999999"), "n=1000"),
            (Some("a=b%0d%0ac"), "a=b%0D%0Ac"),
            (Some(long.as_str()), "n=5"),
        ];
        for (query, expected) in cases {
            assert_eq!(forwarded(query, true), expected);
        }
    }

    #[test]
    fn a_tag_list_gets_the_clients_name() {
        let renamed = renamed(br#"{"name":"x","tags":["1"]}"#, "a/b").unwrap();
        assert_eq!(renamed, r#"{"name":"a/b","tags":["1"]}"#);
        assert_eq!(super::renamed(b"[]", "a"), None);
    }
}
