//! How often something may happen, and who has had how much of it.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::Hash;
use std::time::Duration;

/// So many in a time, all of them at once if need be: `100/s`, `600/min`, `5000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

/// A text that is no rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a rate such as `100/s`, `600/min` or `5000/h`")]
pub struct InvalidRate;

/// A bucket for each of many, which holds [`Rate`]'s count when it is full, and is filled at its rate. How many buckets are
/// kept is bounded: a full one is as good as none, and when there are too many, that which is soonest full goes.
///
/// It has no clock: whoever asks says what time it is, counted from any moment.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    most: usize,
    full_at: HashMap<K, Duration>,
    /// The same, soonest first.
    by_time: BTreeSet<(Duration, K)>,
}

/// What a bucket has for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Enough.
    Now,
    /// Enough after this long, which is kept for whoever asked.
    After(Duration),
    /// Nothing soon: there will be something after this long, for whoever comes then.
    Refused(Duration),
}

impl Rate {
    /// So many a minute.
    pub const fn per_minute(count: u32) -> Self {
        let unit = Unit::Minute;
        Self { count, unit }
    }

    /// Parses a whole number from 1 to a million, a slash, and `s`, `min` or `h`.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidRate> {
        let (count, unit) = text.split_once('/').ok_or(InvalidRate)?;
        let unit = Unit::ALL.into_iter().find(|it| it.text() == unit);
        let is_number = count.bytes().all(|byte| byte.is_ascii_digit());
        let count = count.parse().ok().filter(|_| is_number);
        match (count, unit) {
            (Some(count @ 1..=COUNT_MAX), Some(unit)) => Ok(Self { count, unit }),
            _ => Err(InvalidRate),
        }
    }

    /// After how long one more is there.
    fn interval(self) -> Duration {
        self.unit.length() / self.count.max(1)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.unit.text())
    }
}

impl Unit {
    const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    const fn text(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "min",
            Self::Hour => "h",
        }
    }

    const fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 60 * 60,
        })
    }
}

impl<K: Clone + Ord + Hash> Buckets<K> {
    /// At most this many buckets, all of them full.
    pub fn new(rate: Rate, most: usize) -> Self {
        Self {
            rate,
            most: most.max(1),
            full_at: HashMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    /// Takes one from this bucket, at once or, if that is within `patience`, in advance. Nothing is taken when it is
    /// refused, so that asking in vain does not make it longer.
    pub fn take(&mut self, key: &K, now: Duration, patience: Duration) -> Share {
        let full_at = self.full_at_next(key, now);
        let wait = full_at.saturating_sub(now + self.rate.unit.length());
        if wait > patience {
            return Share::Refused(wait);
        }
        self.set(key, full_at);
        match wait {
            Duration::ZERO => Share::Now,
            wait => Share::After(wait),
        }
    }

    /// Whether there is one in this bucket, which stays there; else when there will be.
    pub fn look(&mut self, key: &K, now: Duration) -> Result<(), Duration> {
        let full_at = self.full_at_next(key, now);
        match full_at.saturating_sub(now + self.rate.unit.length()) {
            Duration::ZERO => Ok(()),
            wait => Err(wait),
        }
    }

    /// When the bucket would be full again, were one taken now.
    fn full_at_next(&mut self, key: &K, now: Duration) -> Duration {
        self.forget_full(now);
        let full_at = self.full_at.get(key).copied().unwrap_or(now);
        full_at.max(now) + self.rate.interval()
    }

    fn set(&mut self, key: &K, full_at: Duration) {
        if let Some(former) = self.full_at.insert(key.clone(), full_at) {
            self.by_time.remove(&(former, key.clone()));
        }
        self.by_time.insert((full_at, key.clone()));
        if self.full_at.len() > self.most
            && let Some((_, soonest)) = self.by_time.pop_first()
        {
            self.full_at.remove(&soonest);
        }
    }

    fn forget_full(&mut self, now: Duration) {
        while self.by_time.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.by_time.pop_first() {
                self.full_at.remove(&key);
            }
        }
    }
}

/// Faster than anything here is.
const COUNT_MAX: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn buckets(rate: &str) -> Buckets<u8> {
        Buckets::new(Rate::parse(rate).unwrap(), 1000)
    }

    #[test]
    fn rates_are_read_as_they_render() {
        for text in ["1/s", "600/min", "5000/h", "1000000/s"] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "1",
            "/s",
            "0/s",
            "-1/s",
            "+1/s",
            "1.5/s",
            "1/m",
            "1/S",
            "1 /s",
            "1/ s",
            "1/s/s",
            "1000001/s",
            "99999999999/s",
            "100",
        ] {
            assert_eq!(Rate::parse(text), Err(InvalidRate), "{text}");
        }
    }

    #[test]
    fn a_bucket_gives_what_is_in_it_at_once_and_then_at_its_rate() {
        use Share::{After, Now, Refused};
        let mut buckets = buckets("4/s");
        // When, who, how patient, and what there is.
        let table = [
            (0, 1, 0, Now),
            (0, 1, 0, Now),
            (0, 1, 0, Now),
            (0, 1, 0, Now),
            (0, 1, 0, Refused(millis(250))),
            // In vain costs nothing.
            (100, 1, 0, Refused(millis(150))),
            // Others have their own.
            (100, 2, 0, Now),
            (250, 1, 0, Now),
            (250, 1, 0, Refused(millis(250))),
            // What is promised in advance is taken.
            (250, 1, 300, After(millis(250))),
            (250, 1, 500, After(millis(500))),
            (250, 1, 500, Refused(millis(750))),
            (999, 1, 0, Refused(millis(1))),
            (1000, 1, 0, Now),
            // Never more than it holds, however long nobody came.
            (60_000, 1, 0, Now),
            (60_000, 1, 0, Now),
            (60_000, 1, 0, Now),
            (60_000, 1, 0, Now),
            (60_000, 1, 0, Refused(millis(250))),
        ];
        for (row, (at, who, patience, expected)) in table.into_iter().enumerate() {
            let share = buckets.take(&who, millis(at), millis(patience));
            assert_eq!(share, expected, "row {row}");
        }
    }

    #[test]
    fn looking_takes_nothing() {
        let mut buckets = buckets("2/s");
        for _ in 0..9 {
            assert_eq!(buckets.look(&1, millis(0)), Ok(()));
        }
        for _ in 0..2 {
            buckets.take(&1, millis(0), millis(0));
        }
        assert_eq!(buckets.look(&1, millis(100)), Err(millis(400)));
        assert_eq!(buckets.look(&2, millis(100)), Ok(()));
        assert_eq!(buckets.look(&1, millis(500)), Ok(()));
    }

    #[test]
    fn invariant_10_no_more_buckets_are_kept_than_allowed_and_no_full_ones() {
        let mut buckets = Buckets::new(Rate::parse("2/s").unwrap(), 10);
        for who in 0..1000_u32 {
            buckets.take(&who, millis(u64::from(who) / 100), millis(0));
            assert!(buckets.full_at.len() <= 10);
            assert_eq!(buckets.full_at.len(), buckets.by_time.len());
        }
        // Whoever has taken most is remembered longest.
        for _ in 0..2 {
            buckets.take(&5000, millis(10), millis(0));
        }
        for who in 0..1000_u32 {
            buckets.take(&who, millis(10), millis(0));
        }
        assert!(buckets.look(&5000, millis(10)).is_err());
        buckets.look(&1, millis(5000)).unwrap();
        assert_eq!((buckets.full_at.len(), buckets.by_time.len()), (0, 0));
    }

    #[test]
    fn nobody_gets_more_than_a_full_bucket_and_the_rate() {
        let mut random = SmallRng::seed_from_u64(3);
        for rate in ["1/s", "7/s", "100/min"] {
            let parsed = Rate::parse(rate).unwrap();
            let mut buckets = buckets(rate);
            let (mut now, mut given) = (Duration::ZERO, 0_u32);
            for _ in 0..5000 {
                now += millis(random.random_range(0..100));
                let share = buckets.take(&0, now, Duration::ZERO);
                given += u32::from(share == Share::Now);
                let most = parsed.count + 1;
                let filled = now.as_nanos() / parsed.interval().as_nanos();
                assert!(u128::from(given) <= u128::from(most) + filled, "{rate}");
            }
            let filled = now.as_nanos() / parsed.interval().as_nanos();
            // Whoever asks late gets a little less.
            let least = filled.min(2000) * 9 / 10;
            assert!(u128::from(given) >= least, "{rate}: {given}");
        }
    }
}
