//! How long to leave somebody alone who fails.

use std::time::Duration;

/// The pause after a failure that follows a pause of `former`: the first one at first, then twice as long each time, up to a
/// minute, or the first one where that is longer.
pub fn next_pause(first: Duration, former: Option<Duration>) -> Duration {
    former.map_or(first, |former| {
        former.saturating_mul(2).min(PAUSE_MAX).max(first)
    })
}

const PAUSE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        for (first, expected) in [
            (5, [5, 10, 20, 40, 60, 60]),
            (45, [45, 60, 60, 60, 60, 60]),
            (90, [90; 6]),
        ] {
            let mut former = None;
            let pauses = expected.map(|_| {
                let pause = next_pause(Duration::from_secs(first), former);
                former = Some(pause);
                pause.as_secs()
            });
            assert_eq!(pauses, expected);
        }
    }
}
