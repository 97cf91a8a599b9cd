//! Inputs made of other inputs.

use rand::rngs::SmallRng;
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand::{Rng, SeedableRng};

use crate::targets::Target;

/// Makes inputs for one target; which ones follows from the seed and from what is kept.
pub(crate) struct Mutator {
    seeds: &'static [&'static [u8]],
    words: &'static [&'static [u8]],
    /// Inputs that a parser accepted, besides the seeds.
    kept: Vec<Vec<u8>>,
    random: SmallRng,
}

impl Mutator {
    pub(crate) fn new(target: &Target, seed: u64) -> Self {
        Self {
            seeds: target.seeds,
            words: target.words,
            kept: Vec::new(),
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// The next input: an old one with a few changes.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut input = self.old();
        // Mostly one or two changes, now and then very many.
        let mut changes = 1;
        while self.random.random_ratio(1, 2) && changes < 64 {
            changes += 1;
        }
        for _ in 0..changes {
            self.change(&mut input);
        }
        input.truncate(BYTES_MAX);
        input
    }

    /// Has this input changed further.
    pub(crate) fn keep(&mut self, input: Vec<u8>) {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(input);
        } else if let Some(former) = self.kept.choose_mut(&mut self.random) {
            *former = input;
        }
    }

    fn old(&mut self) -> Vec<u8> {
        if self.random.random_ratio(1, 3)
            && let Some(kept) = self.kept.choose(&mut self.random)
        {
            return kept.clone();
        }
        let seed = self.seeds.choose(&mut self.random);
        seed.map(|it| it.to_vec()).unwrap_or_default()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let (start, end) = self.part(input);
        match self.random.random_range(0..13) {
            // A bit.
            0 if !input.is_empty() => {
                let at = self.random.random_range(0..input.len());
                input[at] ^= 1 << self.random.random_range(0..8);
            }
            // A byte that means something to many.
            1 if !input.is_empty() => {
                let at = self.random.random_range(0..input.len());
                input[at] = self.byte();
            }
            2 => {
                let byte = self.byte();
                input.insert(start, byte);
            }
            3 => {
                input.drain(start..end);
            }
            4 => {
                let part = input[start..end].to_vec();
                input.splice(end..end, part);
            }
            // The same again and again, so that limits are met.
            5 => {
                let times = 1 << self.random.random_range(0..12);
                let part = &input[start..end.min(start + 8)];
                let part = part.repeat(times.min(BYTES_MAX / part.len().max(1)));
                input.splice(start..start, part);
            }
            6 => input.truncate(end),
            7 => {
                input.drain(..start);
            }
            // Part of another input.
            8 => {
                let other = self.old();
                let (from, to) = self.part(&other);
                input.splice(start..end, other[from..to].iter().copied());
            }
            9 => self.number(input),
            10 => input[start..end].make_ascii_uppercase(),
            11 => input[start..end].reverse(),
            _ => {
                let word = self.words.choose(&mut self.random);
                let word = word.map(|it| it.to_vec()).unwrap_or_default();
                let end = if self.random.random() { start } else { end };
                input.splice(start..end, word);
            }
        }
    }

    /// Some part of an input; mostly a short one.
    fn part(&mut self, input: &[u8]) -> (usize, usize) {
        let start = self.random.random_range(0..=input.len());
        let rest = input.len() - start;
        let most = if self.random.random_ratio(3, 4) {
            rest.min(8)
        } else {
            rest
        };
        (start, start + self.random.random_range(0..=most))
    }

    /// Another number in the place of one.
    fn number(&mut self, input: &mut Vec<u8>) {
        let starts: Vec<usize> = (0..input.len())
            .filter(|at| {
                let before = at.checked_sub(1).and_then(|it| input.get(it));
                input[*at].is_ascii_digit() && !before.is_some_and(u8::is_ascii_digit)
            })
            .collect();
        let Some(start) = starts.choose(&mut self.random).copied() else {
            return;
        };
        let digits = input[start..].iter().take_while(|it| it.is_ascii_digit());
        let end = start + digits.count();
        let number = match self.random.random_range(0..3) {
            0 => (1_u128 << self.random.random_range(0..70)).to_string(),
            1 => self.random.random_range(0..20).to_string(),
            _ => {
                let edge = *EDGES.choose(&mut self.random).unwrap();
                (edge + self.random.random_range(0..3))
                    .saturating_sub(1)
                    .to_string()
            }
        };
        input.splice(start..end, number.into_bytes());
    }

    fn byte(&mut self) -> u8 {
        if self.random.random() {
            *BYTES.choose(&mut self.random).unwrap()
        } else {
            self.random.random()
        }
    }
}

/// Larger than any limit of a line, and small enough for many inputs in a second.
const BYTES_MAX: usize = 8 << 10;
const KEPT_MAX: usize = 256;
/// What texts are made of that have a form.
const BYTES: &[u8] = b"\0\t\n\r \"#$%&'()*+,-./019:;<=>?@AZ[\\]^_`az{|}~\x7f\x80\xc3\xff";
/// Numbers next to which something ends.
const EDGES: &[u128] = &[
    0,
    9,
    32,
    64,
    100,
    128,
    255,
    1000,
    u16::MAX as u128,
    i32::MAX as u128,
    u32::MAX as u128,
    1 << 53,
    i64::MAX as u128,
    u64::MAX as u128,
    i128::MAX as u128,
];
