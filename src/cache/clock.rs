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
    let age = age.saturating_add(JUST_UNDER_A_SECOND);
    unix_now().saturating_sub(age.as_secs())
}

/// The age of something stamped `then`; a stamp from the future, which a clock set back leaves behind, is as good as one
/// of this second.
pub(super) fn age_of(then: u64) -> Duration {
    Duration::from_secs(unix_now().saturating_sub(then) + 1)
}

const JUST_UNDER_A_SECOND: Duration = Duration::from_nanos(999_999_999);
