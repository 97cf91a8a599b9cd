//! Byte ranges (RFC 9110 §14).

use std::fmt;
use std::ops::Range;

/// One range of a `Range` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteRange {
    /// `a-`
    From(u64),
    /// `a-b`, both inclusive.
    Between(u64, u64),
    /// `-n`
    Last(u64),
}

/// What a `Range` field asks for, in its order; at least one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<ByteRange>);

/// What is asked for, against a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// This part.
    Part(Range<u64>),
    /// These parts, two or more, in the order asked; together no more than the whole.
    Parts(Vec<Range<u64>>),
    /// There is nothing to have a part of, or the parts are absurd: the whole is the answer.
    Whole,
    /// No byte of it exists (416).
    Unsatisfiable,
}

/// A `Content-Range` of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// Which part, the end exclusive; never empty.
    pub range: Range<u64>,
    /// Of how many bytes, when that is known.
    pub size: Option<u64>,
}

impl RangeSet {
    /// Parses a `Range` field. Another unit is `None`, and so is nonsense in any of its ranges: a server ignores the field
    /// (RFC 9110 §14.2).
    pub fn parse(text: &str) -> Option<Self> {
        let (unit, ranges) = text.trim().split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        // An element of a list may be empty (RFC 9110 §5.6.1.2).
        let ranges = ranges.split(',').map(str::trim).filter(|it| !it.is_empty());
        let ranges = ranges.map(ByteRange::parse).collect::<Option<Vec<_>>>()?;
        (!ranges.is_empty()).then_some(Self(ranges))
    }

    /// How many ranges there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What this is of something of `size` bytes. Ranges that do not exist there are passed over (RFC 9110 §14.1.1).
    ///
    /// Parts are never put together, though they may be (RFC 9110 §15.3.7.2): podman counts them, and takes as many as it
    /// asked for or none. What §14.2 lets a server ignore is ignored: three or more ranges that overlap. So is what comes to
    /// more than the whole. Any order is good.
    pub fn resolve(&self, size: u64) -> Resolved {
        if size == 0 {
            return Resolved::Whole;
        }
        let parts = self.0.iter().filter_map(|range| range.within(size));
        let mut parts: Vec<Range<u64>> = parts.collect();
        if is_absurd(&parts, size) {
            return Resolved::Whole;
        }
        match parts.len() {
            0 => Resolved::Unsatisfiable,
            1 => parts.pop().map_or(Resolved::Unsatisfiable, Resolved::Part),
            _ => Resolved::Parts(parts),
        }
    }
}

impl ByteRange {
    fn parse(range: &str) -> Option<Self> {
        let (first, last) = range.split_once('-')?;
        match (first, last) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// What this is of something of `size` bytes, unless that has none of it.
    fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first) => first..size,
            Self::Between(first, last) => first..last.saturating_add(1).min(size),
            Self::Last(length) => size.saturating_sub(length)..size,
        };
        (!range.is_empty()).then_some(range)
    }
}

impl ContentRange {
    /// Parses the `Content-Range` of a 206.
    pub fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        let (range, size) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let size = if size == "*" {
            None
        } else {
            Some(number(size)?)
        };
        let end = last.checked_add(1)?;
        let valid = unit.eq_ignore_ascii_case("bytes")
            && first <= last
            && size.is_none_or(|size| end <= size);
        valid.then_some(Self {
            range: first..end,
            size,
        })
    }
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.range;
        write!(f, "bytes {start}-{}/", end.saturating_sub(1))?;
        match self.size {
            Some(size) => write!(f, "{size}"),
            None => f.write_str("*"),
        }
    }
}

/// The `Content-Range` of a 416.
pub fn unsatisfied(size: u64) -> String {
    format!("bytes */{size}")
}

/// Whether somebody asks for more than there is, or for the same again and again.
fn is_absurd(parts: &[Range<u64>], size: u64) -> bool {
    let mut lengths = parts.iter().map(|part| part.end - part.start);
    let left = lengths.try_fold(size, u64::checked_sub);
    let mut sorted: Vec<_> = parts.iter().collect();
    sorted.sort_by_key(|part| part.start);
    let (mut end, mut overlaps) = (0, 0);
    for part in sorted {
        overlaps += usize::from(part.start < end);
        end = end.max(part.end);
    }
    left.is_none() || overlaps > 1
}

/// Digits and nothing else; what does not fit is larger than any blob.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Parses anything without panicking, and resolves what it accepts within bounds.
pub fn fuzz_range(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    if let Some(ranges) = RangeSet::parse(text) {
        for size in [0, 1, 1000, u64::MAX] {
            let parts = match ranges.resolve(size) {
                Resolved::Part(part) => vec![part],
                Resolved::Parts(parts) => {
                    assert!(parts.len() > 1, "a single part is no list");
                    parts
                }
                Resolved::Whole | Resolved::Unsatisfiable => Vec::new(),
            };
            assert!(parts.len() <= ranges.count(), "no part is invented");
            let mut left = size;
            for part in parts {
                let lies_within = part.start < part.end && part.end <= size;
                assert!(lies_within, "a part lies within the whole");
                let length = part.end - part.start;
                assert!(length <= left, "the parts are no more than the whole");
                left -= length;
            }
        }
    }
    if let Some(range) = ContentRange::parse(text) {
        let again = ContentRange::parse(&range.to_string());
        assert_eq!(
            again,
            Some(range),
            "a content range renders as it was parsed"
        );
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn ranges_are_those_of_the_rfc() {
        use Resolved::{Part, Unsatisfiable, Whole};
        let cases = [
            ("bytes=,2-4 ,", 10, Part(2..5)),
            ("bytes=0-", 10, Part(0..10)),
            ("bytes=9-", 10, Part(9..10)),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=2-4", 10, Part(2..5)),
            ("BYTES = 2-4", 10, Part(2..5)),
            ("bytes=2-400", 10, Part(2..10)),
            ("bytes=10-11", 10, Unsatisfiable),
            ("bytes=-3", 10, Part(7..10)),
            ("bytes=-30", 10, Part(0..10)),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=0-", 0, Whole),
            ("bytes=5-", 0, Whole),
            ("bytes=0-18446744073709551615", 10, Part(0..10)),
            ("bytes=99999999999999999999-", 10, Unsatisfiable),
        ];
        for (text, size, expected) in cases {
            assert_eq!(
                RangeSet::parse(text).unwrap().resolve(size),
                expected,
                "{text} of {size}"
            );
        }
        for ignored in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-",
            "bytes=4-2",
            "bytes=,",
            "bytes=0-1,x",
            "bytes=0-1,4-2",
            "bytes=0-1;3-4",
            "items=0-1",
            "bytes=+1-2",
            "bytes=1 - 2",
        ] {
            assert_eq!(RangeSet::parse(ignored), None, "{ignored}");
        }
    }

    #[test]
    fn several_ranges_are_parts_in_the_order_asked() {
        use Resolved::{Part, Parts, Unsatisfiable, Whole};
        let cases = [
            ("bytes=0-1,3-4", Parts(vec![0..2, 3..5])),
            ("bytes=3-4, 0-1", Parts(vec![3..5, 0..2])),
            ("bytes=0-1\t,\t2-3", Parts(vec![0..2, 2..4])),
            ("bytes=0-4,5-9", Parts(vec![0..5, 5..10])),
            ("bytes=0-1,-2", Parts(vec![0..2, 8..10])),
            ("bytes=0-1,8-", Parts(vec![0..2, 8..10])),
            ("bytes=0-1,8-700", Parts(vec![0..2, 8..10])),
            // Two that overlap are what was asked for; more, or more than there is, are absurd.
            ("bytes=0-4,3-5", Parts(vec![0..5, 3..6])),
            ("bytes=0-1,0-1", Parts(vec![0..2, 0..2])),
            ("bytes=0-1,0-1,0-1", Whole),
            ("bytes=5-7,0-1,6-6,1-2", Whole),
            ("bytes=0-,0-", Whole),
            ("bytes=0-,-1", Whole),
            // What does not exist is passed over.
            ("bytes=0-1,10-", Part(0..2)),
            ("bytes=70-90,-0,8-", Part(8..10)),
            ("bytes=10-,-0", Unsatisfiable),
        ];
        for (text, expected) in cases {
            let ranges = RangeSet::parse(text).unwrap();
            assert_eq!(ranges.resolve(10), expected, "{text}");
            assert_eq!(ranges.resolve(0), Whole, "{text}");
        }
        assert_eq!(RangeSet::parse("bytes=0-1,,3-4").unwrap().count(), 2);
    }

    #[test]
    fn content_ranges_render_as_they_were_parsed() {
        for text in ["bytes 0-9/10", "bytes 5-5/*", "bytes 0-0/1"] {
            assert_eq!(ContentRange::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "bytes */10",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "items 0-1/2",
            "bytes 0-1",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_input_panics_a_parser() {
        let words = [
            "bytes",
            "=",
            "-",
            ",",
            "/",
            "*",
            " ",
            "0",
            "9",
            "18446744073709551615",
            "ü",
        ];
        let mut random = SmallRng::seed_from_u64(7);
        for _ in 0..50_000 {
            let count = random.random_range(0..9);
            let text: String = (0..count)
                .filter_map(|_| words.choose(&mut random))
                .copied()
                .collect();
            fuzz_range(text.as_bytes());
            fuzz_range(format!("bytes={text}").as_bytes());
            fuzz_range(format!("bytes {text}").as_bytes());
        }
    }
}
