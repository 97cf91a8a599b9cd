//! Whether an answer is one that could be given, by what was so between its request and its end.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Ask, Object, Outcome};
use crate::harness::{End, Head};
use crate::trouble::Subject;
use crate::world::World;

/// An answer and all that it is judged by.
struct Case<'a> {
    world: &'a World,
    ask: &'a Ask,
    outcome: &'a Outcome,
    head: &'a Head,
}

type Judged = Result<(), String>;

/// Says what is wrong with an answer.
pub(crate) fn judge(world: &World, ask: &Ask, outcome: &Outcome) -> Judged {
    let Some(head) = &outcome.head else {
        return is(outcome.was_ending, || "no answer".to_owned());
    };
    let took = outcome.headed - outcome.asked;
    is(took <= ANSWER, || format!("a head after {took:?}"))?;
    let case = Case {
        world,
        ask,
        outcome,
        head,
    };
    match head.status {
        200 | 206 | 304 => case.served(),
        404 => case.absent(),
        416 => case.unsatisfiable(),
        502..=504 => is(case.is_excused(), || "failed without a reason".to_owned()),
        _ => Err("a status that must not be".to_owned()),
    }
}

impl Case<'_> {
    /// From the request to the end of its answer.
    fn time(&self) -> (Instant, Instant) {
        (self.outcome.asked, self.outcome.ended)
    }

    fn registry(&self) -> usize {
        self.world.repositories[self.ask.repository].of
    }

    fn subject(&self) -> Subject<'_> {
        self.ask.subject(self.world)
    }

    fn is_excused(&self) -> bool {
        is_excused(self.world, self.ask, self.outcome)
    }

    fn served(&self) -> Judged {
        let repository = &self.world.repositories[self.ask.repository];
        match &self.ask.object {
            Object::Blob(n) => {
                let held = self.world.holds(self.ask.repository, *n);
                is(held, || {
                    "served what the repository does not hold".to_owned()
                })?;
                let blob = &self.world.blobs[*n];
                self.content(blob.digest(), blob.bytes())
            }
            Object::Manifest(n) => {
                let manifest = &repository.manifests[*n];
                self.content(manifest.digest(), manifest.bytes())
            }
            Object::Tag(tag) => self.tagged(tag),
            Object::List => self.list(),
        }
    }

    fn tagged(&self, tag: &str) -> Judged {
        let repository = &self.world.repositories[self.ask.repository];
        let digest = self
            .head
            .header("docker-content-digest")
            .unwrap_or_default();
        let known = |it: &crate::harness::Manifest| it.digest() == digest;
        let Some(n) = repository.manifests.iter().position(known) else {
            return Err("a manifest that nobody knows".to_owned());
        };
        self.content(digest, repository.manifests[n].bytes())?;
        let key = (self.ask.repository, tag);
        let (asked, ended) = self.time();
        if self.head.cache_status().contains("fwd=stale") {
            is(self.is_excused(), || "stale without a reason".to_owned())?;
            let (_, purged) = self.world.seen(self.ask.repository, tag);
            let since = purged.filter(|it| *it < asked);
            let was = match since {
                Some(purged) => self.world.meant(key, Some(n), (purged, ended)),
                None => self.world.meant(key, Some(n), (self.world.began, ended)),
            };
            return is(was, || "stale from before a purge".to_owned());
        }
        let since = asked - fresh_for(tag);
        let was = self.world.meant(key, Some(n), (since, ended));
        is(was, || "what the tag did not mean".to_owned())?;
        self.world.saw_right(self.ask.repository, tag, asked);
        Ok(())
    }

    fn list(&self) -> Judged {
        if !self.is_complete() {
            return self.broke_off();
        }
        let list: Option<Value> = serde_json::from_slice(&self.outcome.bytes).ok();
        let list = list.ok_or("not JSON")?;
        let (_, name) = self.ask.head(self.world);
        is(list["name"] == name, || "another name".to_owned())?;
        let tags = list["tags"].as_array().ok_or("no tags")?;
        let tags = tags.iter().filter_map(|it| Some(it.as_str()?.to_owned()));
        let tags: BTreeSet<String> = tags.collect();
        let (asked, ended) = self.time();
        let since = if self.head.cache_status().contains("fwd=stale") {
            is(self.is_excused(), || "stale without a reason".to_owned())?;
            self.world.began
        } else {
            asked
        };
        let was = self
            .world
            .listed(self.ask.repository, &tags, (since, ended));
        is(was, || format!("a list that was not so: {tags:?}"))
    }

    /// Whether these are the bytes of the digest, or the part of them that was asked for.
    fn content(&self, digest: &str, whole: &Bytes) -> Judged {
        let head = self.head;
        let named = head.header("docker-content-digest") == Some(digest);
        is(named, || "the digest of something else".to_owned())?;
        let etag = format!("\"{digest}\"");
        is(head.header("etag") == Some(&etag), || {
            "another ETag".to_owned()
        })?;
        let repository = &self.world.repositories[self.ask.repository];
        let known = self.ask.known.map(|n| repository.manifests[n].digest());
        let is_known = known == Some(digest);
        is(is_known == (head.status == 304), || {
            "304, or not".to_owned()
        })?;
        if head.status == 304 {
            return Ok(());
        }
        let wanted = self
            .ask
            .range
            .filter(|_| !self.ask.is_head && !whole.is_empty());
        let unmeasured = self
            .world
            .troubles()
            .unmeasured(self.subject(), self.time());
        let part = match wanted.map(|it| it.of(whole.len())) {
            None => None,
            Some(Some(part)) => Some(part),
            // Nobody knew that it was too far.
            Some(None) if unmeasured => None,
            Some(None) => return Err("served where nothing was asked for".to_owned()),
        };
        let (start, end) = part.unwrap_or((0, whole.len()));
        let sized = self.sized((start, end), whole.len(), unmeasured);
        if sized.is_err() && self.lied() {
            // The head was somebody's lie too; the body must not end as if it were none.
            let open = self.ask.is_head || self.ask.range.is_some();
            return if open {
                Ok(())
            } else {
                is(!self.is_complete(), || "a lie that ended well".to_owned())
            };
        }
        sized?;
        if self.ask.is_head {
            return Ok(());
        }
        let whole_came = head.status == 200;
        let (start, end) = if whole_came {
            (0, whole.len())
        } else {
            (start, end)
        };
        self.body(&whole[start..end], end == whole.len())
    }

    /// Whether the head says what comes: this part of so many bytes.
    fn sized(&self, (start, end): (usize, usize), len: usize, unmeasured: bool) -> Judged {
        let head = self.head;
        let expected = match head.status {
            206 => {
                let place = format!("bytes {start}-{}/{len}", end.saturating_sub(1));
                let right = head.header("content-range") == Some(&place);
                is(right && self.ask.range.is_some(), || format!("not {place}"))?;
                end - start
            }
            _ => {
                let is_whole = (start, end) == (0, len) && self.ask.range.is_none();
                let ignored = self.ask.is_head || len == 0 || unmeasured;
                is(is_whole || ignored, || "200 for a part".to_owned())?;
                len
            }
        };
        let length = head.content_length();
        let right = length == Some(expected) || (length.is_none() && unmeasured);
        is(right, || format!("not a length of {expected}"))
    }

    /// Whether a body is the right one, or broke off where it may have.
    fn body(&self, expected: &[u8], is_verified: bool) -> Judged {
        let bytes = &self.outcome.bytes;
        let lied = self.lied();
        let right = expected.starts_with(bytes);
        if self.is_complete() {
            let unverified = lied && !is_verified && bytes.len() == expected.len();
            let whole = right && bytes.len() == expected.len();
            return is(whole || unverified, || {
                "wrong bytes that ended well".to_owned()
            });
        }
        is(right || lied, || "wrong bytes".to_owned())?;
        self.broke_off()
    }

    fn lied(&self) -> bool {
        self.world.troubles().lied(self.subject(), self.time())
    }

    fn is_complete(&self) -> bool {
        self.outcome.end == Some(End::Complete)
    }

    /// Whether it may have ended early.
    fn broke_off(&self) -> Judged {
        let left = self.outcome.end.is_none();
        is(left || self.is_excused(), || {
            "broke off without a reason".to_owned()
        })
    }

    fn absent(&self) -> Judged {
        let (asked, ended) = self.time();
        let troubles = self.world.troubles();
        let said = troubles.gone(self.registry(), self.subject(), (asked - NEGATIVE, ended));
        drop(troubles);
        let absent = match &self.ask.object {
            Object::Blob(n) => !self.world.holds(self.ask.repository, *n),
            Object::Manifest(_) | Object::List => false,
            Object::Tag(tag) => {
                let time = (asked - fresh_for(tag), ended);
                let key = (self.ask.repository, tag.as_str());
                let absent = self.world.meant(key, None, time);
                if absent && !said {
                    self.world.saw_right(self.ask.repository, tag, asked);
                }
                absent
            }
        };
        is(absent || said, || "404, though it was there".to_owned())
    }

    fn unsatisfiable(&self) -> Judged {
        let (Object::Blob(n), Some(range)) = (&self.ask.object, self.ask.range) else {
            return Err("416 for the whole".to_owned());
        };
        let len = self.world.blobs[*n].len();
        let held = self.world.holds(self.ask.repository, *n);
        is(held, || {
            "a size that is not the repository's to know".to_owned()
        })?;
        let nothing = range.of(len).is_none() && len > 0 && !self.ask.is_head;
        is(nothing || self.lied(), || {
            "416, though there was something".to_owned()
        })?;
        let place = format!("bytes */{len}");
        let right = self.head.header("content-range") == Some(&place);
        is(right || self.lied(), || format!("not {place}"))
    }
}

/// Whether a request may have failed.
fn is_excused(world: &World, ask: &Ask, outcome: &Outcome) -> bool {
    let own = world.repositories[ask.repository].of;
    let time = (outcome.asked, outcome.ended);
    let troubles = world.troubles();
    let excused = |of| troubles.excuse(of, ask.subject(world), time);
    match &ask.object {
        _ if outcome.was_ending => true,
        // A fill is everybody's who follows it, wherever it comes from.
        Object::Blob(n) => excused(own) || world.holders(*n).into_iter().any(excused),
        Object::Tag(tag) => {
            let (right, _) = world.seen(ask.repository, tag);
            troubles.excuse_tag(own, time, right)
        }
        Object::Manifest(_) | Object::List => excused(own),
    }
}

fn is(right: bool, wrong: impl FnOnce() -> String) -> Judged {
    if right { Ok(()) } else { Err(wrong()) }
}

/// How long a tag is served unasked, by its rule in the configuration.
fn fresh_for(tag: &str) -> Duration {
    match tag.starts_with("stable") {
        true => Duration::from_secs(2),
        false => Duration::ZERO,
    }
}

/// `timeouts.answer`, and what a busy machine takes besides.
const ANSWER: Duration = Duration::from_secs(5 + 3);
/// `freshness.negative_for`.
const NEGATIVE: Duration = Duration::from_secs(1);
