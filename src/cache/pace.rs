//! How fast published files are read to be checked, and in which order. Pure; who waits and who reads is elsewhere.

use std::time::Duration;

/// The pace of one reader: never faster than its rate, and nothing saved up while it rests.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes in a second; `None` is as fast as the disk is.
    rate: Option<u64>,
    /// When what was let through is over at this rate.
    due: Duration,
}

impl Pace {
    /// A pace of so many bytes in a second; zero is no bound.
    pub(super) fn new(rate: u64) -> Self {
        Self {
            rate: (rate > 0).then_some(rate),
            due: Duration::ZERO,
        }
    }

    /// Bytes to read at a stretch: an eighth of a second's, within reason.
    pub(super) fn stretch(&self) -> u64 {
        let eighth = self.rate.map_or(STRETCH_BYTES_MAX, |rate| rate / 8);
        eighth.clamp(STRETCH_BYTES_MIN, STRETCH_BYTES_MAX)
    }

    /// How long to wait at `now` before `bytes` are read; `now` counts from any fixed point.
    pub(super) fn wait(&mut self, now: Duration, bytes: u64) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let start = self.due.max(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.due = start.saturating_add(takes);
        start.saturating_sub(now)
    }
}

/// When a folder's turn is in a round that begins at the folder `start`; folders are named by the first byte of what is in
/// them. The rounds of a process begin at one folder and go round, so that what is next is what was checked longest ago;
/// each process begins somewhere else, so that one that is often restarted does not check the same few again and again.
pub(super) fn turn(start: u8, folder: u8) -> u8 {
    folder.wrapping_sub(start)
}

/// What even an empty file costs: it has to be found and opened.
pub(super) const FILE_COST_BYTES: u64 = 4 << 10;
const STRETCH_BYTES_MIN: u64 = 4 << 10;
const STRETCH_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn no_more_than_the_rate_and_nothing_is_saved_up() {
        let mut pace = Pace::new(1000);
        // now, bytes, wait
        for (now, bytes, wait) in [
            (0, 500, 0),
            (0, 500, 500),
            // Reading took a while, which counts.
            (800, 100, 200),
            (5000, 2000, 0),
            (5000, 1, 2000),
            (60_000, 1000, 0),
            (60_000, 1000, 1000),
        ] {
            let found = pace.wait(ms(now), bytes);
            assert_eq!(found, ms(wait), "{bytes} at {now}");
        }
        let mut pace = Pace::new(1);
        pace.wait(ms(0), u64::MAX);
        assert!(pace.wait(ms(0), u64::MAX) > ms(1000));
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let mut pace = Pace::new(0);
        for _ in 0..10 {
            assert_eq!(pace.wait(ms(3), u64::MAX), ms(0));
        }
    }

    #[test]
    fn a_stretch_is_short_at_a_low_rate_and_bounded_at_a_high_one() {
        for (rate, stretch) in [
            (1, 4 << 10),
            (1 << 20, 128 << 10),
            (8 << 20, 1 << 20),
            (u64::MAX, 4 << 20),
            (0, 4 << 20),
        ] {
            assert_eq!(Pace::new(rate).stretch(), stretch, "{rate}");
        }
    }

    #[test]
    fn a_round_comes_to_every_folder_once_from_wherever_it_begins() {
        for start in [0, 1, 0x7f, 0xff] {
            let mut folders: Vec<u8> = (0..=255).collect();
            folders.sort_by_key(|folder| turn(start, *folder));
            assert_eq!(folders[0], start);
            let next = folders.iter().zip(&folders[1..]);
            assert!(next.clone().count() == 255);
            for (one, other) in next {
                assert_eq!(one.wrapping_add(1), *other);
            }
        }
    }
}
