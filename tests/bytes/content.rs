//! Content of any size that nobody has to keep: each byte follows from a seed and its place.

use std::ops::Range;

use sha2::{Digest, Sha256};

/// Bytes, and the digest of them.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    seed: u64,
    len: u64,
    digest: String,
}

impl Content {
    /// The bytes that `seed` stands for.
    pub(crate) fn new(seed: u64, len: u64) -> Self {
        let mut content = Self {
            seed,
            len,
            digest: String::new(),
        };
        let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
        for at in (0..len).step_by(PIECE) {
            let piece = &mut piece[..length(at..len.min(at + PIECE as u64))];
            content.write(at, piece);
            hash.update(&*piece);
        }
        let hex: String = hash
            .finalize()
            .iter()
            .map(|it| format!("{it:02x}"))
            .collect();
        content.digest = format!("sha256:{hex}");
        content
    }

    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Writes the bytes from this place on.
    pub(crate) fn write(&self, at: u64, mut to: &mut [u8]) {
        let mut place = at / WORD as u64;
        let before = length(0..at % WORD as u64);
        if before > 0 {
            let some = to.len().min(WORD - before);
            let (first, rest) = to.split_at_mut(some);
            first.copy_from_slice(&self.word(place)[before..before + some]);
            (place, to) = (place + 1, rest);
        }
        for word in to.chunks_mut(WORD) {
            word.copy_from_slice(&self.word(place)[..word.len()]);
            place += 1;
        }
    }

    /// Where the first byte is that is not the one of its place, of those that came from this place on.
    pub(crate) fn differs(&self, at: u64, came: &[u8]) -> Option<u64> {
        let mut expected = [0; 4096];
        for (n, some) in came.chunks(expected.len()).enumerate() {
            let start = at + (n * expected.len()) as u64;
            let expected = &mut expected[..some.len()];
            self.write(start, expected);
            if expected != some || start + some.len() as u64 > self.len {
                let mut pairs = some.iter().zip(expected);
                let wrong = pairs.position(|(one, other)| one != other);
                return Some(start + wrong.unwrap_or(0) as u64);
            }
        }
        None
    }

    /// Eight bytes that look like no others (the finaliser of `SplitMix64`).
    fn word(&self, place: u64) -> [u8; WORD] {
        let mut word = (self.seed ^ place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).to_le_bytes()
    }
}

/// How many bytes there are in a range that fits into memory.
pub(crate) fn length(range: Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap()
}

const WORD: usize = 8;
/// Bytes made at once.
const PIECE: usize = 1 << 20;

#[test]
fn every_place_has_its_byte() {
    let content = Content::new(7, 100_000);
    let mut whole = vec![0; 100_000];
    content.write(0, &mut whole);
    for (start, end) in [(0, 1), (3, 7), (5, 8), (8, 16), (13, 4099), (9, 100_000)] {
        let mut part = vec![0; end - start];
        content.write(start as u64, &mut part);
        assert!(part == whole[start..end]);
        assert_eq!(content.differs(start as u64, &part), None);
        part[end - start - 1] ^= 1;
        assert_eq!(content.differs(start as u64, &part), Some(end as u64 - 1));
    }
    assert_eq!(content.differs(99_990, &whole[99_990..]), None);
    assert!(content.differs(1, &whole[..100]).is_some());
    let other = Content::new(8, 100_000);
    assert!(other.differs(0, &whole).is_some());
}
