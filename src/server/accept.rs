//! What an accept that failed means for the next one.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::metrics::{AcceptFault, Metrics};

/// One listener's failures: counted each, told once in a while, and followed by a pause that grows.
#[derive(Debug)]
pub(super) struct AcceptFaults {
    metrics: Metrics,
    pause: Duration,
    warned: Option<Instant>,
}

impl AcceptFaults {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            pause: PAUSE_MIN,
            warned: None,
        }
    }

    /// A connection was accepted.
    pub(super) fn over(&mut self) {
        self.pause = PAUSE_MIN;
    }

    /// Counts a failure and says how long to leave the listener alone. What cannot be accepted now waits in the kernel's
    /// backlog; without a pause this would spin until a descriptor is free.
    pub(super) fn met(&mut self, error: &io::Error) -> Duration {
        let fault = fault(error);
        self.metrics.not_accepted(fault);
        if fault == AcceptFault::Connection {
            debug!(error = %error, "a connection was over before it was accepted");
            return Duration::ZERO;
        }
        if self
            .warned
            .is_none_or(|it| it.elapsed() >= WARNING_INTERVAL)
        {
            self.warned = Some(Instant::now());
            warn!(error = %error, "no connection can be accepted now");
        }
        let pause = self.pause;
        self.pause = PAUSE_MAX.min(pause * 2);
        pause
    }
}

/// Why it failed, by the number that accept(2) gave.
fn fault(error: &io::Error) -> AcceptFault {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE) => AcceptFault::Descriptors,
        Some(Errno::NOBUFS | Errno::NOMEM) => AcceptFault::Memory,
        // Linux passes on what is wrong with the new socket (accept(2), error handling).
        Some(
            Errno::CONNABORTED
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::NONET
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
            | Errno::PERM
            | Errno::PROTO,
        ) => AcceptFault::Connection,
        Some(_) | None => AcceptFault::Other,
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A warning is to be seen, not counted.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    fn faults() -> AcceptFaults {
        AcceptFaults::new(Metrics::register(&Registry::new()).unwrap())
    }

    #[test]
    fn each_number_has_its_meaning() {
        let table = [
            (Errno::MFILE, AcceptFault::Descriptors),
            (Errno::NFILE, AcceptFault::Descriptors),
            (Errno::NOBUFS, AcceptFault::Memory),
            (Errno::CONNABORTED, AcceptFault::Connection),
            (Errno::INVAL, AcceptFault::Other),
        ];
        for (errno, expected) in table {
            assert_eq!(fault(&errno.into()), expected, "{errno}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_second_until_one_is_accepted() {
        let mut faults = faults();
        let pauses: Vec<_> = (0..8).map(|_| faults.met(&Errno::MFILE.into())).collect();
        assert_eq!(
            pauses[..3],
            [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4],
            "{pauses:?}"
        );
        assert_eq!(pauses[7], PAUSE_MAX);
        faults.over();
        assert_eq!(faults.met(&Errno::MFILE.into()), PAUSE_MIN);
    }

    #[test]
    fn a_client_that_left_costs_no_pause() {
        assert_eq!(faults().met(&Errno::CONNABORTED.into()), Duration::ZERO);
    }
}
