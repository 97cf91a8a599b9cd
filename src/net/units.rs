//! Sizes and durations as people write them.

use std::fmt;
use std::time::Duration;

/// A text that is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a size such as `200GiB` or `500MB`")]
pub struct InvalidSize;

/// A text that is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a duration such as `20s`, `5m` or `7d`")]
pub struct InvalidDuration;

/// Shows a size in the largest unit that divides it.
#[derive(Clone, Copy, Debug)]
pub struct SizeText(pub u64);

/// Shows a duration in the largest unit that divides it.
#[derive(Clone, Copy, Debug)]
pub struct DurationText(pub Duration);

/// Parses a whole number of bytes, with a binary (`KiB`) or decimal (`kB`) unit or none.
///
/// # Errors
///
/// When it is anything else, or too large.
pub fn parse_size(text: &str) -> Result<u64, InvalidSize> {
    let (number, unit) = split(text).ok_or(InvalidSize)?;
    let scale = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(InvalidSize),
    };
    number.checked_mul(scale).ok_or(InvalidSize)
}

/// Parses a whole number of `ms`, `s`, `m`, `h` or `d`, or several one after the other (`1h30m`).
///
/// # Errors
///
/// When it is anything else, or too long.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(InvalidDuration);
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|it: char| !it.is_ascii_digit())
            .ok_or(InvalidDuration)?;
        let (number, after) = rest.split_at(digits);
        let unit = after
            .find(|it: char| it.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let number: u64 = number.parse().map_err(|_| InvalidDuration)?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => DAY_MILLIS,
            _ => return Err(InvalidDuration),
        };
        let part = Duration::from_millis(number.checked_mul(millis).ok_or(InvalidDuration)?);
        total = total.checked_add(part).ok_or(InvalidDuration)?;
        rest = after;
    }
    if total > DURATION_MAX {
        Err(InvalidDuration)
    } else {
        Ok(total)
    }
}

impl fmt::Display for SizeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            ("TiB", 1 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
        ];
        match units
            .iter()
            .find(|(_, scale)| self.0 > 0 && self.0.is_multiple_of(*scale))
        {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        if millis == 0 {
            return f.write_str("0s");
        }
        let units = [
            ("d", u128::from(DAY_MILLIS)),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
        ];
        match units
            .iter()
            .find(|(_, scale)| millis.is_multiple_of(*scale))
        {
            Some((unit, scale)) => write!(f, "{}{unit}", millis / scale),
            None => write!(f, "{millis}ms"),
        }
    }
}

const DAY_MILLIS: u64 = 86_400_000;
/// Longer than anybody means, and short enough that no sum of two overflows a clock.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text
        .find(|it: char| !it.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// Parses anything without panicking, and renders what it accepts so that it means the same.
pub fn fuzz_units(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    if let Ok(size) = parse_size(text) {
        assert_eq!(parse_size(&SizeText(size).to_string()), Ok(size));
    }
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(
            parse_duration(&DurationText(duration).to_string()),
            Ok(duration)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases = [
            ("0", 0),
            ("1024", 1024),
            ("50GiB", 50 << 30),
            ("200 GB", 200_000_000_000),
            ("5mib", 5 << 20),
            ("12B", 12),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_size(text), Ok(expected), "{text}");
            fuzz_units(text.as_bytes());
        }
        for bad in ["", "GiB", "-1", "1.5GiB", "1 GiBs", "99999999TiB", "1e3"] {
            assert_eq!(parse_size(bad), Err(InvalidSize), "{bad}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let cases = [
            ("0s", 0),
            ("500ms", 500),
            ("20s", 20_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
        ];
        for (text, expected) in cases {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(expected)),
                "{text}"
            );
            fuzz_units(text.as_bytes());
        }
        for bad in [
            "",
            "20",
            "s",
            "20x",
            "1.5s",
            "-1s",
            "99999999999999999999s",
            "999999d",
            "1h 30m",
        ] {
            assert_eq!(parse_duration(bad), Err(InvalidDuration), "{bad}");
        }
    }
}
