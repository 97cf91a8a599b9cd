//! When a tag's answer may be served, and when upstream must be asked. Pure.

use std::time::Duration;

use super::config::Freshness;

/// What to do about a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Serve what is stored.
    Serve,
    /// Ask upstream.
    Check,
    /// Do not ask: the last check failed a moment ago. Serve what is stored, as stale.
    ServeStale,
    /// Do not ask, and there is nothing usable: answer with the last failure.
    Fail,
}

/// What is known of a tag at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// How long ago the stored answer was last confirmed; `None` when nothing is stored.
    pub(super) age: Option<Duration>,
    /// Whether it may be older than that.
    pub(super) may_be_older: bool,
    /// Whether the pause after a failed check, or after a 404, is still on.
    pub(super) paused: bool,
    /// Whether that failure means that nothing is known, so that a stored answer may be served.
    pub(super) unavailable: bool,
}

/// Decides by the tag's policy.
pub(super) fn judge(policy: &Freshness, facts: Facts) -> Verdict {
    if facts.paused {
        let usable = facts.unavailable && is_usable(policy, facts.age);
        return if usable {
            Verdict::ServeStale
        } else {
            Verdict::Fail
        };
    }
    match facts.age {
        Some(age) if age < policy.fresh_for && !facts.may_be_older => Verdict::Serve,
        Some(_) | None => Verdict::Check,
    }
}

/// Whether what is stored may be served when upstream cannot say.
pub(super) fn is_usable(policy: &Freshness, age: Option<Duration>) -> bool {
    age.is_some_and(|age| age < policy.usable_for)
}

/// The pause after a failed check that follows a pause of `former`: doubling, up to a minute.
pub(super) fn next_pause(policy: &Freshness, former: Option<Duration>) -> Duration {
    crate::net::next_pause(policy.retry_after, former)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    const POLICY: Freshness = Freshness {
        fresh_for: secs(10),
        usable_for: secs(100),
        retry_after: secs(5),
    };

    #[test]
    fn each_boundary_belongs_to_the_later_verdict() {
        let facts = |age, paused, unavailable| Facts {
            age,
            may_be_older: false,
            paused,
            unavailable,
        };
        let cases = [
            (facts(None, false, false), Verdict::Check),
            (facts(Some(secs(9)), false, false), Verdict::Serve),
            (facts(Some(secs(10)), false, false), Verdict::Check),
            (facts(Some(secs(1000)), false, false), Verdict::Check),
            (facts(Some(secs(99)), true, true), Verdict::ServeStale),
            (facts(Some(secs(100)), true, true), Verdict::Fail),
            (facts(Some(secs(1)), true, false), Verdict::Fail),
            (facts(None, true, true), Verdict::Fail),
        ];
        for (facts, expected) in cases {
            assert_eq!(judge(&POLICY, facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn pitfall_19_what_is_of_unknown_age_is_not_fresh_and_stands_in_all_the_same() {
        for (paused, expected) in [(false, Verdict::Check), (true, Verdict::ServeStale)] {
            let facts = Facts {
                age: Some(secs(1)),
                may_be_older: true,
                paused,
                unavailable: paused,
            };
            assert_eq!(judge(&POLICY, facts), expected);
        }
    }

    #[test]
    fn zero_freshness_always_checks() {
        let policy = Freshness {
            fresh_for: Duration::ZERO,
            ..POLICY
        };
        let facts = Facts {
            age: Some(Duration::ZERO),
            may_be_older: false,
            paused: false,
            unavailable: false,
        };
        assert_eq!(judge(&policy, facts), Verdict::Check);
    }
}
