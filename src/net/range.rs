//! Byte ranges (RFC 9110 §14).

use std::fmt;
use std::ops::Range;

/// One range of a `Range` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=a-`
    From(u64),
    /// `bytes=a-b`, both inclusive.
    Between(u64, u64),
    /// `bytes=-n`
    Last(u64),
}

/// A range against a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// This part.
    Part(Range<u64>),
    /// There is nothing to have a part of; the whole, which is empty, is the answer.
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

impl ByteRange {
    /// Parses a `Range` field of a single range. Anything else (several ranges, another unit, nonsense) is `None`, which
    /// a server ignores (RFC 9110 §14.2).
    pub fn parse(text: &str) -> Option<Self> {
        let (unit, range) = text.trim().split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = range.trim().split_once('-')?;
        match (first, last) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// What this is of something of `size` bytes.
    pub fn resolve(self, size: u64) -> Resolved {
        if size == 0 {
            return Resolved::Whole;
        }
        let range = match self {
            Self::From(first) => first..size,
            Self::Between(first, last) => first..last.saturating_add(1).min(size),
            Self::Last(length) => size.saturating_sub(length)..size,
        };
        if range.is_empty() {
            Resolved::Unsatisfiable
        } else {
            Resolved::Part(range)
        }
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
    if let Some(range) = ByteRange::parse(text) {
        for size in [0, 1, 1000, u64::MAX] {
            if let Resolved::Part(part) = range.resolve(size) {
                assert!(
                    part.start < part.end && part.end <= size,
                    "a part lies within the whole"
                );
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
                ByteRange::parse(text).unwrap().resolve(size),
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
            "bytes=0-1,3-4",
            "items=0-1",
            "bytes=+1-2",
            "bytes=1 - 2",
        ] {
            assert_eq!(ByteRange::parse(ignored), None, "{ignored}");
        }
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
