//! Who goes when room is needed. Pure: it knows no file, no lock and no clock, so that a bench can replay a trace through it.
//!
//! What was used longest ago goes first. Two kinds of content are better than their age, and each keeps a share of the
//! budget as long as anything else can go; what it has beyond its share counts by its age like all else:
//!
//! - what is *small*: manifests and configurations, without which no pull begins, and which cost next to nothing;
//! - what was used *again* after it came: a flood of content that is pulled once does not wash it away.
//!
//! Both are bounded, so neither can squeeze out the rest: a manifest that nobody asks for any more is followed by newer
//! ones, ages beyond the share, and goes. If everything is small, or everything is used again, this is plain LRU.
//! `benches/README.md` has the trace by which the shares were chosen.

use std::collections::BTreeMap;
use std::iter::Peekable;

use super::capacity::Shortfall;
use crate::oci::Digest;

/// The order in which content goes. `turn` is the newest of all turns.
#[derive(Debug)]
pub struct Order {
    limit: u64,
    turn: u64,
    kinds: [Kind; 3],
}

/// Where a blob stands in the order; whoever knows the digest keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    turn: Turn,
    kind: usize,
}

/// When something was last used. Only the order counts: it is right whatever the wall clock did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// Before this process, which stamped it so; found on disk as the n-th.
    Before(u64, u64),
    Now(u64),
}

/// Content of one kind, the least recently used first, and the sum of its sizes.
#[derive(Debug, Default)]
struct Kind {
    blobs: BTreeMap<Turn, (Digest, u64)>,
    bytes: u64,
}

impl Order {
    /// Of nothing yet, within a budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            turn: 0,
            kinds: Default::default(),
        }
    }

    /// How many blobs there are.
    pub fn len(&self) -> usize {
        self.kinds.iter().map(|kind| kind.blobs.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All digests.
    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> {
        let blobs = self.kinds.iter().flat_map(|kind| kind.blobs.values());
        blobs.map(|(digest, _)| *digest)
    }

    /// Takes in what has just come.
    pub fn admit(&mut self, digest: Digest, size: u64) -> Place {
        let kind = if self.is_small(size) { SMALL } else { ONCE };
        let turn = self.next_turn();
        self.put(kind, turn, digest, size)
    }

    /// Takes in what a former process left, by the stamp of its last use there.
    pub(super) fn adopt(&mut self, digest: Digest, size: u64, stamp: u64) -> Place {
        let kind = if self.is_small(size) { SMALL } else { ONCE };
        self.turn += 1;
        self.put(kind, Turn::Before(stamp, self.turn), digest, size)
    }

    /// Counts a use; gives the new place.
    pub fn touch(&mut self, place: Place) -> Place {
        let Some((digest, size)) = self.remove(place) else {
            return place;
        };
        let kind = if place.kind == SMALL { SMALL } else { AGAIN };
        let turn = self.next_turn();
        self.put(kind, turn, digest, size)
    }

    /// Takes out what is there no more; gives it with its size.
    pub fn remove(&mut self, place: Place) -> Option<(Digest, u64)> {
        let kind = self.kinds.get_mut(place.kind)?;
        let blob = kind.blobs.remove(&place.turn)?;
        kind.bytes -= blob.1;
        Some(blob)
    }

    /// What has to go, with sizes, so that there is no shortfall: what is required, and of what is in no kind's share also
    /// what is wanted besides. `None` when there is not as much; what is being read stays.
    pub fn victims(
        &self,
        shortfall: Shortfall,
        is_read: impl Fn(&Digest) -> bool,
    ) -> Option<Vec<(Digest, u64)>> {
        let free = |(_, (digest, _)): &(&Turn, &(Digest, u64))| !is_read(digest);
        let mut kinds = self.kinds.each_ref().map(|kind| {
            let oldest = kind.blobs.iter().filter(free).peekable();
            (kind.bytes, oldest)
        });
        let (mut victims, mut bytes) = (Vec::new(), 0);
        while bytes < shortfall.wanted {
            let is_enough = bytes >= shortfall.required;
            let next = self.oldest_beyond_shares(&mut kinds);
            let next = next.or_else(|| (!is_enough).then(|| first_within_shares(&mut kinds))?);
            let Some((left, kind)) = next.and_then(|kind| kinds.get_mut(kind)) else {
                return is_enough.then_some(victims);
            };
            if let Some((_, &(digest, size))) = kind.next() {
                victims.push((digest, size));
                bytes += size;
                *left -= size;
            }
        }
        Some(victims)
    }

    /// The most recently used by this process, at most `max`, the least recently used first.
    pub(super) fn newest(&self, max: usize) -> Vec<Digest> {
        let blobs = self.kinds.iter().flat_map(|kind| {
            let newest = kind.blobs.iter().rev().take(max);
            newest.take_while(|(turn, _)| matches!(turn, Turn::Now(_)))
        });
        let mut blobs: Vec<_> = blobs.collect();
        blobs.sort();
        let newest = blobs.len().saturating_sub(max);
        let newest = blobs.split_off(newest);
        newest.into_iter().map(|(_, (digest, _))| *digest).collect()
    }

    fn is_small(&self, size: u64) -> bool {
        size <= SMALL_BYTES_MAX.min(self.limit / SMALL_SHARE_OF_LIMIT)
    }

    fn next_turn(&mut self) -> Turn {
        self.turn += 1;
        Turn::Now(self.turn)
    }

    fn put(&mut self, kind: usize, turn: Turn, digest: Digest, size: u64) -> Place {
        if let Some(kind) = self.kinds.get_mut(kind) {
            kind.blobs.insert(turn, (digest, size));
            kind.bytes += size;
        }
        Place { turn, kind }
    }

    /// The kind whose oldest is the least recently used of all that is in no share.
    fn oldest_beyond_shares<'a>(&self, kinds: &mut [Left<impl Blobs<'a>>; 3]) -> Option<usize> {
        let shares = SHARES_PERCENT.map(|percent| self.limit / 100 * percent);
        let beyond = kinds.iter_mut().zip(shares).enumerate();
        let beyond = beyond.filter_map(|(n, ((left, oldest), share))| {
            let (turn, _) = *oldest.peek().filter(|_| *left > share)?;
            Some((turn, n))
        });
        beyond.min().map(|(_, n)| n)
    }
}

/// Bytes of a kind that are left, and its blobs.
type Left<I> = (u64, Peekable<I>);

trait Blobs<'a>: Iterator<Item = (&'a Turn, &'a (Digest, u64))> {}

impl<'a, I: Iterator<Item = (&'a Turn, &'a (Digest, u64))>> Blobs<'a> for I {}

/// The kind that gives of its share when there is nothing else.
fn first_within_shares<'a>(kinds: &mut [Left<impl Blobs<'a>>; 3]) -> Option<usize> {
    kinds
        .iter_mut()
        .position(|(_, oldest)| oldest.peek().is_some())
}

/// The kinds, those of which more is lost last.
const ONCE: usize = 0;
const AGAIN: usize = 1;
const SMALL: usize = 2;
/// What each kind keeps of the budget.
const SHARES_PERCENT: [u64; 3] = [0, 40, 10];
/// Manifests have a few KiB, the largest indexes and configurations some dozens.
const SMALL_BYTES_MAX: u64 = 128 << 10;
/// In a small budget, only what is smaller than this part of it.
const SMALL_SHARE_OF_LIMIT: u64 = 64;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::oci::Algorithm;

    /// An order of blobs by name, each of which is used again by naming it again.
    struct Shelf {
        order: Order,
        places: HashMap<String, Place>,
        names: HashMap<Digest, String>,
    }

    impl Shelf {
        fn new(limit: u64) -> Self {
            Self {
                order: Order::new(limit),
                places: HashMap::new(),
                names: HashMap::new(),
            }
        }

        fn digest(&mut self, name: &str) -> Digest {
            let digest = Digest::of(Algorithm::Sha256, name.as_bytes());
            self.names.insert(digest, name.to_owned());
            digest
        }

        /// Uses `name:size`, one after the other.
        fn use_all(&mut self, blobs: &str) {
            for blob in blobs.split(' ') {
                let (name, size) = blob.split_once(':').unwrap();
                let digest = self.digest(name);
                let place = match self.places.get(name) {
                    Some(place) => self.order.touch(*place),
                    None => self.order.admit(digest, size.parse().unwrap()),
                };
                self.places.insert(name.to_owned(), place);
            }
        }

        /// The names of what would go, passing over `read`.
        fn victims(&self, required: u64, wanted: u64, read: &str) -> Option<String> {
            let is_read = |digest: &Digest| read.split(' ').any(|it| it == self.names[digest]);
            let shortfall = Shortfall { required, wanted };
            let victims = self.order.victims(shortfall, is_read)?;
            let names: Vec<_> = victims
                .iter()
                .map(|(it, _)| self.names[it].as_str())
                .collect();
            Some(names.join(" "))
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut shelf = Shelf::new(1000);
        shelf.use_all("a:100 b:100 c:100 d:100");
        for (required, wanted, read, victims) in [
            (0, 0, "", Some("")),
            (1, 1, "", Some("a")),
            (100, 101, "", Some("a b")),
            (100, 200, "a c", Some("b d")),
            (400, 400, "", Some("a b c d")),
            (401, 401, "", None),
            (301, 400, "a", None),
            (300, 400, "a", Some("b c d")),
        ] {
            let found = shelf.victims(required, wanted, read);
            assert_eq!(found.as_deref(), victims, "{required} {wanted} {read}");
        }
    }

    #[test]
    fn what_was_used_again_goes_last_up_to_its_share() {
        let mut shelf = Shelf::new(1000);
        shelf.use_all("a:200 b:200 a:200 b:200 c:100 d:100");
        assert_eq!(shelf.victims(1, 200, "").unwrap(), "c d");
        // More than was required is not taken of a share.
        assert_eq!(shelf.victims(200, 400, "").unwrap(), "c d");
        assert_eq!(shelf.victims(201, 400, "").unwrap(), "c d a");
        // Beyond the share it is as old as it is, until the rest of it is within.
        shelf.use_all("e:100 e:100 f:100 c:100 d:100");
        assert_eq!(shelf.victims(400, 600, "").unwrap(), "a b f");
        assert_eq!(shelf.victims(600, 600, "").unwrap(), "a b f e");
        let all_again = "a:200 b:200 e:100 f:100 c:100 d:100";
        shelf.use_all(all_again);
        assert_eq!(shelf.victims(800, 800, "").unwrap(), "a b e f c d");
    }

    #[test]
    fn what_is_small_goes_when_nothing_else_is_left() {
        let mut shelf = Shelf::new(6400);
        shelf.use_all("tiny:99 small:100 large:101 again:101 again:101");
        assert_eq!(shelf.victims(1, 101, "").unwrap(), "large");
        assert_eq!(shelf.victims(102, 400, "").unwrap(), "large again");
        assert_eq!(shelf.victims(203, 203, "").unwrap(), "large again tiny");
        // What is small to a large budget.
        assert!(Order::new(1 << 40).is_small(SMALL_BYTES_MAX));
        assert!(!Order::new(1 << 40).is_small(SMALL_BYTES_MAX + 1));
    }

    #[test]
    fn small_content_does_not_squeeze_out_the_rest() {
        let mut shelf = Shelf::new(6400);
        let many = |from: u32, to: u32| {
            let names: Vec<_> = (from..to).map(|n| format!("s{n}:100")).collect();
            names.join(" ")
        };
        shelf.use_all(&many(0, 10));
        shelf.use_all("large:1000");
        assert_eq!(shelf.victims(1, 1, "").unwrap(), "s0");
        // Its share is 640 bytes: six stay, however new the large one is.
        let victims = shelf.victims(1200, 1200, "").unwrap();
        assert_eq!(victims, "s0 s1 s2 s3 large");
        // In the order of use, where that is older.
        shelf.use_all(&many(0, 10));
        assert_eq!(shelf.victims(1, 1, "").unwrap(), "large");
    }

    #[test]
    fn what_a_former_process_left_is_older_than_all_that_is_used_now() {
        let mut shelf = Shelf::new(1000);
        shelf.use_all("now:10");
        let (never, ever) = (0, u64::MAX);
        for (name, stamp) in [
            ("future", ever),
            ("epoch", never),
            ("past", 5),
            ("past too", 5),
        ] {
            let digest = shelf.digest(name);
            let place = shelf.order.adopt(digest, 10_000, stamp);
            shelf.places.insert(name.to_owned(), place);
        }
        let victims = shelf.victims(40_000, 40_000, "").unwrap();
        assert_eq!(victims, "epoch past past too future");
        shelf.use_all("past:10000");
        let newest = shelf.order.newest(2);
        let newest: Vec<_> = newest.iter().map(|it| shelf.names[it].as_str()).collect();
        assert_eq!(newest, ["now", "past"]);
        assert_eq!(shelf.order.newest(1).len(), 1);
        let place = shelf.places["past"];
        assert_eq!(shelf.order.remove(place).map(|it| it.1), Some(10_000));
        assert_eq!(shelf.order.remove(place), None);
        assert_eq!(shelf.order.len(), 4);
    }
}
