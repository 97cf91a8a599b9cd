//! How long a server asks to be left alone.

use std::time::{Duration, SystemTime};

use http::HeaderValue;

/// What a `Retry-After` asks for, `now` being when it was said: a number of seconds, or a date (RFC 9110 §10.2.3). A date
/// that is over asks for nothing more. `None` when it is neither. Never longer than a year, so that no sum of it
/// overflows a clock.
///
/// A date is by the server's clock, and so is the response's own `Date`: that is the better `now` where there is one.
pub fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim_ascii();
    let asked = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // What does not fit is longer than anybody waits.
        text.parse().map_or(Duration::MAX, Duration::from_secs)
    } else {
        let date = http_date(value)?;
        date.duration_since(now).unwrap_or_default()
    };
    Some(asked.min(ASKED_MOST))
}

/// A date in any of the three forms there are (RFC 9110 §5.6.7).
pub fn http_date(value: &HeaderValue) -> Option<SystemTime> {
    let text = value.to_str().ok()?;
    httpdate::parse_http_date(text.trim_ascii()).ok()
}

const ASKED_MOST: Duration = Duration::from_secs(365 * 86_400);

/// Reads anything without panicking, and renders what it accepts so that it means the same.
pub fn fuzz_retry_after(input: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    if let Some(asked) = retry_after(&value, now) {
        assert!(asked <= ASKED_MOST, "nobody waits for ever");
        let seconds = HeaderValue::from(asked.as_secs());
        assert_eq!(retry_after(&seconds, now), Some(asked), "as seconds");
        let date = httpdate::fmt_http_date(now + asked);
        let date = HeaderValue::from_str(&date).ok();
        let again = date.and_then(|it| retry_after(&it, now));
        assert_eq!(again, Some(asked), "as a date");
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 §5.6.7.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    #[test]
    fn a_pause_is_a_number_of_seconds_or_a_date() {
        let year = 365 * 86_400;
        for (text, seconds) in [
            ("0", 0),
            ("120", 120),
            (" 120 ", 120),
            ("007", 7),
            ("31536000", year),
            ("31536001", year),
            ("18446744073709551615", year),
            ("18446744073709551616", year),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:38 GMT", 1),
            ("Sun, 06 Nov 1994 09:49:37 GMT", 3600),
            ("Sunday, 06-Nov-94 08:50:37 GMT", 60),
            ("Sun Nov  6 08:50:07 1994", 30),
            // Over already.
            ("Sun, 06 Nov 1994 08:49:36 GMT", 0),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Fri, 31 Dec 9999 23:59:59 GMT", year),
        ] {
            let value = HeaderValue::from_str(text).unwrap();
            let expected = Some(Duration::from_secs(seconds));
            assert_eq!(retry_after(&value, now()), expected, "{text}");
            fuzz_retry_after(text.as_bytes());
        }
    }

    #[test]
    fn what_is_neither_asks_for_nothing() {
        for bad in [
            "",
            "soon",
            "-1",
            "+1",
            "1.5",
            "5s",
            "1e3",
            "0x10",
            "1 2",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 +0100",
            "1994-11-06T08:49:37Z",
        ] {
            let value = HeaderValue::from_str(bad).unwrap();
            assert_eq!(retry_after(&value, now()), None, "{bad}");
        }
        let value = HeaderValue::from_bytes(b"\xff").unwrap();
        assert_eq!(retry_after(&value, now()), None);
    }

    #[test]
    fn no_value_panics_a_parser() {
        let words = [
            "Sun, ", "Sunday, ", "Sun ", "06", "-", " ", "Nov", "1994", "94", "9999", "08", ":",
            "49", "37", "60", " GMT", "120", "ü",
        ];
        let mut random = SmallRng::seed_from_u64(29);
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for _ in 0..50_000 {
            let count = random.random_range(0..12);
            let text: String = (0..count)
                .filter_map(|_| words.choose(&mut random))
                .copied()
                .collect();
            fuzz_retry_after(text.as_bytes());
            let mut bytes = date.as_bytes().to_vec();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            fuzz_retry_after(&bytes);
        }
    }
}
