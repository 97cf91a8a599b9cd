//! Wall-clock time, read in this one file.
//!
//! Within a process everything is measured by a monotonic clock; the wall clock is only for what outlives us: the last
//! use of a blob and the last check of a tag.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since the epoch; 0 when the clock stands before it.
pub(super) fn unix_now() -> u64 {
    unix_seconds(now())
}

/// Nanoseconds since the epoch; 0 when the clock stands before it.
pub(super) fn unix_nanos_now() -> u64 {
    unix_nanos(now())
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one file that reads wall-clock time"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// A file's time as seconds since the epoch.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A file's time as nanoseconds since the epoch; a time that is none is the first.
pub(super) fn unix_nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}

/// The stamp of something of this age. Stamps are whole seconds: this and [`age_of`] round so that nothing gets younger.
pub(super) fn stamp_of(age: Duration) -> u64 {
    stamp_at(unix_now(), age)
}

/// The age of something stamped `then`. A stamp from the future, which a clock that was set back leaves behind, says nothing:
/// it may be of any age.
pub(super) fn age_of(then: u64) -> Option<Duration> {
    age_at(unix_now(), then)
}

fn stamp_at(now: u64, age: Duration) -> u64 {
    let age = age.saturating_add(JUST_UNDER_A_SECOND);
    now.saturating_sub(age.as_secs())
}

fn age_at(now: u64, then: u64) -> Option<Duration> {
    let age = now.checked_sub(then)?.saturating_add(1);
    Some(Duration::from_secs(age))
}

const JUST_UNDER_A_SECOND: Duration = Duration::from_nanos(999_999_999);

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: u64 = 365 * 24 * 60 * 60;

    #[test]
    fn pitfall_19_an_age_is_what_it_was_or_more_or_not_known() {
        let now = 50 * YEAR;
        for (age, clock, expected) in [
            (0, now, Some(1)),
            (60, now, Some(61)),
            (60, now + 40, Some(101)),
            // The clock was set forward by a year, and back.
            (60, now + YEAR, Some(YEAR + 61)),
            (60, now - 59, Some(2)),
            (60, now - 61, None),
            (60, now - YEAR, None),
            (60, 0, None),
            // It stood before the epoch when this was stamped, and does not now.
            (now + 9, now, Some(now + 1)),
        ] {
            let stamp = stamp_at(now, Duration::from_secs(age));
            let read = age_at(clock, stamp).map(|it| it.as_secs());
            assert_eq!(read, expected, "{age} at {clock}");
        }
        assert_eq!(age_at(u64::MAX, 0), Some(Duration::from_secs(u64::MAX)));
        assert_eq!(stamp_at(now, Duration::MAX), 0);
    }
}
