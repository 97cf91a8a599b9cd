//! What is kept and what goes, by different rules. A policy is asked for one blob after the other and says what was a hit;
//! what was not, it takes in if it likes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;

use layerhold::cache::{Config, Faults, Ledger, Order, Place, Share, Space};
use layerhold::oci::Digest;

/// A cache of some capacity in bytes.
pub(crate) trait Policy {
    /// Asks for a blob; whether it is here.
    fn ask(&mut self, blob: u32, size: u64) -> bool;
}

/// layerhold's own order and ledger, as its index uses them, with the watermarks that are the default.
pub(crate) struct Ours {
    ledger: Ledger,
    order: Order,
    places: HashMap<u32, Place>,
}

impl Ours {
    pub(crate) fn new(capacity: u64) -> Self {
        let config = Config {
            dir: PathBuf::new(),
            size: Some(capacity),
            free_space_min: Share::Bytes(0),
            high_watermark: Share::Percent(100.0),
            low_watermark: Share::Percent(98.0),
            repositories_max: 1,
            scrub_rate: 0,
            fills_max: 1,
            faults: Faults::default(),
        };
        Self {
            ledger: Ledger::new(capacity, &config),
            order: Order::new(capacity),
            places: HashMap::new(),
        }
    }

    fn make_room(&mut self, size: u64) -> Option<()> {
        let shortfall = self.ledger.shortfall(size, ROOMY)?;
        for (digest, size) in self.order.victims(shortfall, |_| false)? {
            let place = self.places.remove(&number(&digest))?;
            self.order.remove(place);
            self.ledger.used -= size;
        }
        Some(())
    }
}

impl Policy for Ours {
    fn ask(&mut self, blob: u32, size: u64) -> bool {
        if let Some(place) = self.places.get_mut(&blob) {
            *place = self.order.touch(*place);
            return true;
        }
        if self.make_room(size).is_some() {
            let place = self.order.admit(digest(blob), size);
            self.places.insert(blob, place);
            self.ledger.used += size;
        }
        false
    }
}

const ROOMY: Space = Space {
    free: u64::MAX,
    total: u64::MAX,
};

fn digest(blob: u32) -> Digest {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&blob.to_be_bytes());
    Digest::Sha256(bytes)
}

fn number(digest: &Digest) -> u32 {
    match digest {
        Digest::Sha256([a, b, c, d, ..]) => u32::from_be_bytes([*a, *b, *c, *d]),
        Digest::Sha512(_) => unreachable!("made above"),
    }
}

/// What is ranked lowest goes first. The rank of a blob is made of how often it was asked for, of its size, of the rank that
/// went last, and of the time.
pub(crate) struct Ranked {
    capacity: u64,
    used: u64,
    rank: fn(&Known) -> f64,
    time: u64,
    aged: f64,
    blobs: HashMap<u32, Known>,
    order: BTreeMap<(u64, u64), u32>,
}

pub(crate) struct Known {
    pub(crate) size: u64,
    pub(crate) uses: f64,
    /// The rank of what went last, when this was used last.
    pub(crate) aged: f64,
    /// Of its last use, and so unique.
    pub(crate) time: u64,
    place: (u64, u64),
}

impl Ranked {
    pub(crate) fn new(capacity: u64, rank: fn(&Known) -> f64) -> Self {
        Self {
            capacity,
            used: 0,
            rank,
            time: 0,
            aged: 0.0,
            blobs: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    /// The least recently used goes first.
    pub(crate) fn lru(capacity: u64) -> Self {
        Self::new(capacity, |known| known.time as f64)
    }

    /// GreedyDual-Size with frequency (Cherkasova 1998), for object hits: what is large or rare goes first.
    pub(crate) fn gdsf(capacity: u64) -> Self {
        Self::new(capacity, |it| it.aged + it.uses * 1e6 / it.size as f64)
    }

    /// The same without sizes: LFU with dynamic ageing (Arlitt et al. 1999).
    pub(crate) fn lfu_da(capacity: u64) -> Self {
        Self::new(capacity, |it| it.aged + it.uses)
    }
}

impl Policy for Ranked {
    fn ask(&mut self, blob: u32, size: u64) -> bool {
        self.time += 1;
        let was = self.blobs.remove(&blob);
        let is_hit = was.is_some();
        if let Some(was) = &was {
            self.order.remove(&was.place);
            self.used -= was.size;
        }
        if size > self.capacity {
            return false;
        }
        while self.used + size > self.capacity {
            let ((rank, _), victim) = self.order.pop_first().unwrap();
            self.aged = f64::from_bits(rank);
            self.used -= self.blobs.remove(&victim).unwrap().size;
        }
        let mut known = Known {
            size,
            uses: was.map_or(0.0, |was| was.uses) + 1.0,
            aged: self.aged,
            time: self.time,
            place: (0, 0),
        };
        // Bits of floats that are not negative are in the order of the floats.
        known.place = ((self.rank)(&known).to_bits(), self.time);
        self.order.insert(known.place, blob);
        self.blobs.insert(blob, known);
        self.used += size;
        is_hit
    }
}

/// First in, first out, but for what was asked for meanwhile: that gets another round.
pub(crate) struct Clock {
    capacity: u64,
    used: u64,
    hand: VecDeque<u32>,
    blobs: HashMap<u32, (u64, bool)>,
}

impl Clock {
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            used: 0,
            hand: VecDeque::new(),
            blobs: HashMap::new(),
        }
    }
}

impl Policy for Clock {
    fn ask(&mut self, blob: u32, size: u64) -> bool {
        if let Some((_, used)) = self.blobs.get_mut(&blob) {
            *used = true;
            return true;
        }
        if size > self.capacity {
            return false;
        }
        while self.used + size > self.capacity {
            let next = self.hand.pop_front().unwrap();
            let (size, used) = self.blobs.get_mut(&next).unwrap();
            if std::mem::take(used) {
                self.hand.push_back(next);
            } else {
                self.used -= *size;
                self.blobs.remove(&next);
            }
        }
        self.hand.push_back(blob);
        self.blobs.insert(blob, (size, false));
        self.used += size;
        false
    }
}

/// S3-FIFO (Yang et al., SOSP '23), by bytes: a small queue of a tenth for newcomers, a main queue for what was asked for
/// again in it, and a list of what went from the small one.
pub(crate) struct S3Fifo {
    capacity: u64,
    small: Queue,
    main: Queue,
    gone: Queue,
    /// Size, uses since the last round (up to three), and which queue.
    blobs: HashMap<u32, (u64, u8)>,
    remembered: BTreeSet<u32>,
}

#[derive(Default)]
struct Queue {
    blobs: VecDeque<(u32, u64)>,
    bytes: u64,
}

impl Queue {
    fn push(&mut self, blob: u32, size: u64) {
        self.blobs.push_back((blob, size));
        self.bytes += size;
    }

    fn pop(&mut self) -> Option<(u32, u64)> {
        let (blob, size) = self.blobs.pop_front()?;
        self.bytes -= size;
        Some((blob, size))
    }
}

impl S3Fifo {
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            small: Queue::default(),
            main: Queue::default(),
            gone: Queue::default(),
            blobs: HashMap::new(),
            remembered: BTreeSet::new(),
        }
    }

    fn evict(&mut self) {
        if self.small.bytes > self.capacity / 10 || self.main.blobs.is_empty() {
            let (blob, size) = self.small.pop().unwrap();
            if self.uses(blob) > 0 {
                self.main.push(blob, size);
                self.blobs.insert(blob, (size, 0));
                return;
            }
            self.blobs.remove(&blob);
            self.remembered.insert(blob);
            self.gone.push(blob, size);
            while self.gone.bytes > self.capacity {
                let (forgotten, _) = self.gone.pop().unwrap();
                self.remembered.remove(&forgotten);
            }
            return;
        }
        let (blob, size) = self.main.pop().unwrap();
        let uses = self.uses(blob);
        if uses > 0 {
            self.main.push(blob, size);
            self.blobs.insert(blob, (size, uses - 1));
        } else {
            self.blobs.remove(&blob);
        }
    }

    fn uses(&self, blob: u32) -> u8 {
        self.blobs[&blob].1
    }
}

impl Policy for S3Fifo {
    fn ask(&mut self, blob: u32, size: u64) -> bool {
        if let Some((_, uses)) = self.blobs.get_mut(&blob) {
            *uses = (*uses + 1).min(3);
            return true;
        }
        if size > self.capacity {
            return false;
        }
        while self.small.bytes + self.main.bytes + size > self.capacity {
            self.evict();
        }
        let queue = match self.remembered.contains(&blob) {
            true => &mut self.main,
            false => &mut self.small,
        };
        queue.push(blob, size);
        self.blobs.insert(blob, (size, 0));
        false
    }
}

/// Knows the future: what is asked for last goes first, and what is never asked for again is not kept (after Belady 1966;
/// with sizes it is no bound in the strict sense, but nobody who does not know the future comes near it).
pub(crate) struct Offline<'a> {
    capacity: u64,
    used: u64,
    /// When each request's blob is asked for again.
    next: &'a [usize],
    asked: usize,
    blobs: HashMap<u32, (u64, usize)>,
    order: BTreeSet<Reverse<(usize, u32)>>,
}

impl<'a> Offline<'a> {
    pub(crate) fn new(capacity: u64, next: &'a [usize]) -> Self {
        Self {
            capacity,
            used: 0,
            next,
            asked: 0,
            blobs: HashMap::new(),
            order: BTreeSet::new(),
        }
    }
}

impl Policy for Offline<'_> {
    fn ask(&mut self, blob: u32, size: u64) -> bool {
        let next = self.next[self.asked];
        self.asked += 1;
        let was = self.blobs.remove(&blob);
        if let Some((size, now)) = was {
            self.order.remove(&Reverse((now, blob)));
            self.used -= size;
        }
        if next != NEVER && size <= self.capacity {
            self.blobs.insert(blob, (size, next));
            self.order.insert(Reverse((next, blob)));
            self.used += size;
        }
        while self.used > self.capacity {
            let Reverse((_, victim)) = self.order.pop_first().unwrap();
            self.used -= self.blobs.remove(&victim).unwrap().0;
        }
        was.is_some()
    }
}

/// A blob that is not asked for again.
pub(crate) const NEVER: usize = usize::MAX;

/// When each request's blob is asked for again.
pub(crate) fn next_uses(blobs: &[u32]) -> Vec<usize> {
    let (mut next, mut seen) = (vec![NEVER; blobs.len()], HashMap::new());
    for (at, blob) in blobs.iter().enumerate().rev() {
        if let Some(later) = seen.insert(*blob, at) {
            next[at] = later;
        }
    }
    next
}
