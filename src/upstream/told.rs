//! When somebody who was asked wants to be asked again.

use std::time::{Duration, SystemTime};

use http::header::{DATE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::Error;
use crate::net::{self, http_date};

/// What it means that somebody who decides about access answers with this.
pub(super) fn turned_away(host: String, status: StatusCode, headers: &HeaderMap) -> Error {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Refused { host, status },
        _ => Error::Status {
            host,
            status,
            retry_after: retry_after(headers),
        },
    }
}

/// Notes the pause that somebody asks for. Of several that are asked for at once, the longest is meant.
pub(super) fn note_rest(until: &Mutex<Option<Instant>>, status: StatusCode, headers: &HeaderMap) {
    if status == StatusCode::TOO_MANY_REQUESTS {
        let told = retry_after(headers).unwrap_or(REST_DEFAULT);
        let told = Instant::now() + told.clamp(REST_MIN, REST_MAX);
        let mut until = until.lock();
        *until = (*until).max(Some(told));
    }
}

/// Who asked for a pause gets it: until then we answer ourselves what `host` answered.
pub(super) fn check_rest(until: &Mutex<Option<Instant>>, host: &str) -> Result<(), Error> {
    let until = *until.lock();
    let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
    match rest.filter(|rest| !rest.is_zero()) {
        None => Ok(()),
        Some(rest) => Err(Error::Status {
            host: host.to_owned(),
            status: StatusCode::TOO_MANY_REQUESTS,
            retry_after: Some(rest),
        }),
    }
}

/// What the answer asks for. A date in it is by the other side's clock, as its own `Date` is; without that it says nothing.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?;
    let said_at = headers.get(DATE).and_then(http_date);
    if said_at.is_none() && http_date(value).is_some() {
        return None;
    }
    net::retry_after(value, said_at.unwrap_or(SystemTime::UNIX_EPOCH))
}

/// The rest that a registry gets which says 429 and not for how long, and the shortest and the longest that it gets: those
/// who wait for the end of one that is no pause would ask again all the time.
const REST_DEFAULT: Duration = Duration::from_secs(5);
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn pitfall_41_of_several_pauses_the_longest_counts() {
        let until = Mutex::new(None);
        let left = || check_rest(&until, "a.example").err()?.retry_after();
        let said = |seconds: &'static str| {
            HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(seconds))])
        };
        note_rest(&until, StatusCode::SERVICE_UNAVAILABLE, &said("60"));
        assert_eq!(left(), None);
        for headers in [said("60"), said("1"), said("0"), HeaderMap::new()] {
            note_rest(&until, StatusCode::TOO_MANY_REQUESTS, &headers);
            assert!(left() > Some(Duration::from_secs(50)), "{headers:?}");
        }
        note_rest(&until, StatusCode::TOO_MANY_REQUESTS, &said("3600"));
        assert!(left() > Some(Duration::from_secs(200)));
        assert!(left() <= Some(REST_MAX));
    }
}
