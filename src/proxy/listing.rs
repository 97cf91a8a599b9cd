//! Listings: tags and referrers. They are upstream's to say each time; a listing is no content, so the client's own name
//! stands in it, and its link leads back to us.

use std::borrow::Cow;
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
use super::seen::Seen;
use crate::cache::{Purge, Purges};
use crate::net::Chain;
use crate::oci::Endpoint;
use crate::upstream;

/// Pulls of listings. What was last heard stands in for an upstream that cannot say.
#[derive(Debug)]
pub(super) struct Listings {
    heard: Memory<Key, (Instant, Arc<upstream::Listing>)>,
    purges: Purges,
}

type Key = (Seen, String);

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
        let query = forwarded(asked.query.as_deref().unwrap_or_default(), is_tags);
        let name = endpoint.name().ok_or(Error::Lost)?;
        let key = (registry.seen(name), format!("{}?{query}", endpoint.path()));
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
                if self.purges.hit_repository(moment, &key.0.repository) {
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
            if key.0.repository == *purged {
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
/// Pairs of a query, and bytes of one with its escapes, that go on; what is beyond is nobody's pagination.
const PAIRS_MAX: usize = 8;
const PAIR_BYTES_MAX: usize = 2048;

/// Tag lists of one page are larger than manifests may be: a hundred thousand tags are some megabytes.
pub(super) const LISTING_BYTES_MAX: u64 = 16 << 20;
/// What an entry costs besides its bytes.
const ENTRY_BYTES: usize = 512;

/// A list that is one, with a link that can be followed: anything else is somebody's web page.
pub(super) fn is_plausible(listing: &upstream::Listing, is_tags: bool) -> bool {
    let key = if is_tags { "tags" } else { "manifests" };
    let value: Option<Value> = serde_json::from_slice(&listing.bytes).ok();
    let is_list =
        value.is_some_and(|it| it.get(key).is_some_and(|it| it.is_array() || it.is_null()));
    // A pair that does not go on would lead to the first page again, for ever.
    let can_follow = listing.next.as_deref().is_none_or(|next| {
        let sizes: Vec<usize> = pairs(next).map(|pair| in_query(pair).len()).collect();
        sizes.len() <= PAIRS_MAX && sizes.iter().all(|size| *size <= PAIR_BYTES_MAX)
    });
    is_list && can_follow
}

/// The client's query as upstream gets it: without `ns`, bounded, and otherwise as it came. A cursor may be of bytes that
/// are no text, so it is not decoded.
fn forwarded(query: &str, is_tags: bool) -> String {
    let mut kept: Vec<Cow<'_, str>> = Vec::new();
    let mut has_page = false;
    for pair in pairs(query).map(in_query) {
        if kept.len() == PAIRS_MAX {
            break;
        }
        if pair.len() > PAIR_BYTES_MAX {
            continue;
        }
        let Some(value) = value_of(&pair, "n").filter(|_| is_tags) else {
            kept.push(pair);
            continue;
        };
        // One page size, a whole number, and not more than registries like.
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && !has_page {
            has_page = true;
            let n = value.parse().unwrap_or(PAGE_MAX).min(PAGE_MAX);
            kept.push(format!("n={n}").into());
        }
    }
    kept.join("&")
}

/// The pairs of a query that are not ours, as they are written.
fn pairs(query: &str) -> impl Iterator<Item = &str> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.filter(|pair| value_of(pair, "ns").is_none())
}

/// The value of a pair that has this name.
fn value_of<'a>(pair: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let (key, value) = form_urlencoded::parse(pair.as_bytes()).next()?;
    (key == name).then_some(value)
}

/// A pair as it is, but for what cannot stand in a query (RFC 3986 §3.4), and for `;`, which to some ends a pair.
fn in_query(pair: &str) -> Cow<'_, str> {
    let is_query = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$'()*+,=:@/?%".contains(&byte);
    if pair.bytes().all(is_query) {
        return pair.into();
    }
    let mut out = String::new();
    for byte in pair.bytes() {
        match is_query(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out.into()
}

/// A `Link` to the next page (RFC 8288) on the client's own path: upstream's host is not the client's business, its query
/// is opaque.
fn link(asked: &Asked, next: &str) -> String {
    let mut query = forwarded(next, false);
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

/// Answers anything without panicking: a line that is the client's query, one that is upstream's link, and what is the list.
/// The link leads back to the client's own path, asks upstream for what its own link asks for, and is one header; the list
/// has the client's name. Whether it is a list.
pub fn fuzz_listing(input: &[u8]) -> bool {
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let mut text = || String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let (query, next) = (text(), text());
    let bytes = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let path = "/v2/a.example/b/tags/list";
    let asked = Asked {
        name: "a.example/b".to_owned(),
        path: path.to_owned(),
        query: Some(query.clone()),
    };
    for is_tags in [true, false] {
        let once = forwarded(&query, is_tags);
        assert_eq!(forwarded(&once, is_tags), once, "a fixed point");
        assert!(once.is_ascii() && !once.contains([' ', '<', '>', '"', '\r', '\n', '#']));
    }
    let listing = upstream::Listing {
        bytes,
        media_type: None,
        next: Some(next.clone()),
        filters_applied: None,
    };
    if !is_plausible(&listing, true) {
        return false;
    }
    let link = link(&asked, &next);
    let target = link.strip_prefix(&format!("<{path}?"));
    let leads_back = target.and_then(|it| it.strip_suffix(">; rel=\"next\""));
    // Byte by byte, since what is no text would look the same when it is something else.
    let bytes_of = |query: &str| -> Vec<Vec<u8>> { pairs(query).map(unescaped).collect() };
    let followed = leads_back.map(bytes_of);
    assert_eq!(followed, Some(bytes_of(&next)), "nothing of it is lost");
    let renamed = renamed(&listing.bytes, &asked.name).unwrap_or_default();
    let renamed: Value = serde_json::from_slice(&renamed).unwrap_or_default();
    let mut list: Value = serde_json::from_slice(&listing.bytes).unwrap_or_default();
    assert_eq!(renamed["name"], asked.name);
    list["name"] = Value::from(asked.name);
    assert_eq!(renamed, list, "nothing else is another");
    true
}

/// A pair with its escapes undone.
fn unescaped(pair: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = pair.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|it| str::from_utf8(it).ok());
        let is_escape = |it: &&str| *first == b'%' && it.bytes().all(|it| it.is_ascii_hexdigit());
        let escaped = digits.filter(is_escape);
        let byte = escaped.and_then(|it| u8::from_str_radix(it, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    bytes
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
            ("", ""),
            ("ns=a.io&n=100000&last=b", "n=1000&last=b"),
            ("n%73=a.io&%6e=5", "n=5"),
            ("n=abc&n=-1&n=7&n=8", "n=7"),
            ("n=99999999999999999999999", "n=1000"),
            ("a=b%0d%0ac&&d", "a=b%0d%0ac&d"),
            ("a=<b> \"c\u{fc}", "a=%3Cb%3E%20%22c%C3%BC"),
            ("a=b;n=5", "a=b%3Bn=5"),
            (long.as_str(), "n=5"),
        ];
        for (query, expected) in cases {
            assert_eq!(forwarded(query, true), expected);
        }
    }

    #[test]
    fn a_cursor_that_is_no_text_goes_on_as_it_is() {
        let cursor = "last=%ff%FE%00+x%zz&opaque";
        assert_eq!(forwarded(cursor, true), cursor);
    }

    #[test]
    fn a_tag_list_gets_the_clients_name() {
        let renamed = renamed(br#"{"name":"x","tags":["1"]}"#, "a/b").unwrap();
        assert_eq!(renamed, r#"{"name":"a/b","tags":["1"]}"#);
        assert_eq!(super::renamed(b"[]", "a"), None);
        // Found by fuzzing: read inexactly, it is another number at each reading.
        let list = r#"{"n":147573952589676412927.0,"name":"a/b","tags":[]}"#;
        let value = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
        let renamed = super::renamed(list.as_bytes(), "a/b").unwrap();
        assert_eq!(value(&renamed), value(list.as_bytes()));
    }
}
