//! How often each source and each identity may ask, and what becomes of it when it does more often.
//!
//! Who asks too often is made to wait for its turn, as long as that is some seconds, and only then refused. A client that
//! is made to wait pulls at the rate that it may, whatever it is. One that is refused does what its kind does: containerd asks
//! again at once when it is told 429, as often as it may, and goes to the registry itself when it is told 503, which is what
//! dockerd does in either case. So the refusal is a 503 with `Retry-After`: it ends the hammering.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::config::Config;
use super::metrics::{Metrics, Rejection};
use crate::net::{Buckets, Identity, Networks, Rate, Share, Source};
use crate::proxy::Error;

/// Who has asked how often.
#[derive(Debug)]
pub(super) struct Limits {
    /// From when its times are counted.
    began: Instant,
    per_source: Option<Mutex<Buckets<Source>>>,
    /// By name, however it was shown.
    per_identity: Option<Mutex<Buckets<Arc<str>>>>,
    /// The proxies in front of us, which ask for others.
    trusted: Networks,
    metrics: Metrics,
}

impl Limits {
    pub(super) fn new(config: &Config, metrics: Metrics) -> Self {
        Self {
            began: Instant::now(),
            per_source: config.requests_per_source.map(buckets),
            per_identity: config.requests_per_identity.map(buckets),
            trusted: config.trusted_proxies.clone(),
            metrics,
        }
    }

    /// Waits for the turn of a request that is made for this client, by whoever that is, and has to be answered by `deadline`.
    /// Cancelled, its turn is lost.
    ///
    /// # Errors
    ///
    /// When its turn does not come soon.
    pub(super) async fn turn(
        &self,
        who: (IpAddr, &Identity),
        deadline: Instant,
    ) -> Result<(), Error> {
        let wait = self.take_turn(who, deadline)?;
        Self::wait_for(wait).await;
        Ok(())
    }

    /// Waits for a turn that was taken. The timer has a millisecond at least for whoever it is set for: whose turn is now has none.
    pub(super) async fn wait_for(wait: Duration) {
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    /// The same without waiting: after how long its turn comes, which is its own from now on.
    ///
    /// # Errors
    ///
    /// When its turn does not come soon.
    pub(super) fn take_turn(
        &self,
        (client, identity): (IpAddr, &Identity),
        deadline: Instant,
    ) -> Result<Duration, Error> {
        if self.per_identity.is_none() && self.per_source.is_none() {
            return Ok(Duration::ZERO);
        }
        let patience = PATIENCE.min(deadline.saturating_duration_since(Instant::now()) / 2);
        let mut wait = Duration::ZERO;
        // The narrower limit comes first: whoever is refused by it takes nothing from others behind the same address.
        if let (Some(buckets), Identity::Named { name, .. }) = (&self.per_identity, identity) {
            let share = self.share(buckets, name, patience);
            let waited =
                share.map_err(|after| self.refused(Rejection::RequestsPerIdentity, after))?;
            wait = wait.max(waited);
        }
        // Without a word on for whom it asks, a balancer is everybody.
        if let Some(buckets) = &self.per_source
            && !self.trusted.contains(client)
        {
            let share = self.share(buckets, &Source::of(client), patience);
            let waited =
                share.map_err(|after| self.refused(Rejection::RequestsPerSource, after))?;
            wait = wait.max(waited);
        }
        Ok(wait)
    }

    /// How long to wait for a turn, else when to ask again.
    fn share<K: Clone + Ord + Hash>(
        &self,
        buckets: &Mutex<Buckets<K>>,
        key: &K,
        patience: Duration,
    ) -> Result<Duration, Duration> {
        match buckets.lock().take(key, self.began.elapsed(), patience) {
            Share::Now => Ok(Duration::ZERO),
            Share::After(wait) => Ok(wait),
            Share::Refused(after) => Err(after),
        }
    }

    fn refused(&self, rejection: Rejection, after: Duration) -> Error {
        self.metrics.rejected(rejection);
        Error::TooOften { after }
    }
}

fn buckets<K: Clone + Ord + Hash>(rate: Rate) -> Mutex<Buckets<K>> {
    Mutex::new(Buckets::new(rate, BUCKETS_MAX))
}

/// How long a request may wait for its turn, where its own time allows; what is left of that is upstream's.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many sources are told apart at once, of those that have asked of late: some megabytes.
const BUCKETS_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use prometheus::Registry;

    use super::*;
    use crate::net::Means;

    #[tokio::test]
    async fn whose_turn_is_now_does_not_wait_for_the_timer() {
        assert!(Limits::wait_for(Duration::ZERO).now_or_never().is_some());
        let wait = Duration::from_secs(60);
        assert!(Limits::wait_for(wait).now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_too_often_takes_nothing_from_who_shares_the_address() {
        let rate = |text| Rate::parse(text).unwrap();
        let limits = Limits {
            began: Instant::now(),
            per_source: Some(buckets(rate("100/h"))),
            per_identity: Some(buckets(rate("10/h"))),
            trusted: Networks::default(),
            metrics: Metrics::register(&Registry::new()).unwrap(),
        };
        let client: IpAddr = [192, 0, 2, 1].into();
        let ask = async |name: &str| {
            let identity = Identity::named(name, Means::Password).unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            limits.turn((client, &identity), deadline).await.is_ok()
        };
        for n in 0..200 {
            assert_eq!(ask("greedy").await, n < 10, "{n}");
        }
        assert!(ask("modest").await);
    }
}
