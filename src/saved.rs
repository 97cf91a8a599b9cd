//! What pulls did not cost the upstreams, told in the log: every hour in which something was served, and at the end.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::proxy;
use crate::server;
use crate::upstream;

/// The metrics that say what was saved.
#[derive(Clone, Debug)]
pub struct Savings {
    /// What clients got.
    pub server: server::Metrics,
    /// What needed no transfer.
    pub proxy: proxy::Metrics,
    /// What upstreams sent.
    pub upstream: upstream::Metrics,
}

/// Bytes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    sent: u64,
    saved: u64,
    from_upstreams: u64,
    deduplicated: u64,
}

impl Savings {
    /// Tells what was saved so far, every hour in which something was served, until `stop`.
    pub async fn tell_hourly(self, stop: CancellationToken) {
        hourly(|| self.totals(), Totals::tell, stop).await;
    }

    /// Tells what was saved so far.
    pub fn tell(&self) {
        self.totals().tell();
    }

    fn totals(&self) -> Totals {
        Totals {
            sent: self.server.sent_bytes(),
            saved: self.server.saved_bytes(),
            from_upstreams: self.upstream.received_bytes(),
            deduplicated: self.proxy.deduplicated_bytes(),
        }
    }
}

impl Totals {
    fn tell(self) {
        let Self {
            sent,
            saved,
            from_upstreams,
            deduplicated,
        } = self;
        let percent = self.saved_percent();
        info!(
            sent,
            from_upstreams, saved, percent, deduplicated, "bytes since the start"
        );
    }

    /// How much of what was sent needed no upstream.
    fn saved_percent(self) -> u64 {
        self.saved.saturating_mul(100) / self.sent.max(1)
    }
}

async fn hourly(totals: impl Fn() -> Totals, tell: impl Fn(Totals), stop: CancellationToken) {
    let mut told = Totals::default();
    loop {
        // Nothing is lost with the pause.
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(INTERVAL) => {}
        }
        let now = totals();
        if now.sent != told.sent {
            tell(now);
            told = now;
        }
    }
}

const INTERVAL: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_hour_in_which_nothing_was_served_is_not_told() {
        let now = Arc::new(Mutex::new(Totals::default()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let (read, write) = (Arc::clone(&now), Arc::clone(&told));
        let telling = tokio::spawn(hourly(
            move || *read.lock(),
            move |totals| write.lock().push(totals.sent),
            stop.clone(),
        ));
        for sent in [0, 5, 5, 9] {
            now.lock().sent = sent;
            sleep(INTERVAL + Duration::from_secs(1)).await;
        }
        assert_eq!(*told.lock(), [5, 9]);
        stop.cancel();
        telling.await.unwrap();
    }

    #[test]
    fn the_percentage_is_of_what_was_sent() {
        for (saved, sent, expected) in [(0, 0, 0), (2, 3, 66), (3, 3, 100)] {
            let totals = Totals {
                sent,
                saved,
                ..Totals::default()
            };
            assert_eq!(totals.saved_percent(), expected, "{saved} of {sent}");
        }
    }
}
