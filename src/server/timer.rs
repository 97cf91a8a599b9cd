//! The time that the HTTP library allows for a head.
//!
//! It sets its timer twice for each request: to the end of its patience when it begins to read, and far away when the head is
//! there. The runtime's timers are kept in order under one lock, so that a timer that is set nearer costs every connection
//! something. This one is set late: it rings as it was set before, looks what its time is by now, and is set again only then.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::time::{Instant, sleep_until};

/// Makes alarms for one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct LateTimer;

struct Alarm {
    deadline: Instant,
    /// Rings at the deadline that was looked at last; most are later than the one before.
    sleep: Pin<Box<tokio::time::Sleep>>,
}

impl Timer for LateTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        let deadline = Instant::from_std(deadline);
        let sleep = Box::pin(sleep_until(deadline));
        Box::pin(Alarm { deadline, sleep })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: std::time::Instant) {
        match sleep.as_mut().downcast_mut_pin::<Alarm>() {
            Some(alarm) => alarm.get_mut().deadline = Instant::from_std(deadline),
            None => *sleep = self.sleep_until(deadline),
        }
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        if self.sleep.deadline() > deadline {
            self.sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if self.sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(deadline);
        }
    }
}

impl Sleep for Alarm {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets one alarm again and again, at the millisecond and for the time of each step; gives after how many it rings.
    async fn rings(steps: &[(u64, u64)]) -> u64 {
        let (timer, began) = (LateTimer, Instant::now());
        let millis = Duration::from_millis;
        let mut alarm = timer.sleep(millis(100));
        for (at, patience) in steps {
            tokio::select! {
                () = &mut alarm => break,
                () = sleep_until(began + millis(*at)) => {}
            }
            timer.reset(&mut alarm, timer.now() + millis(*patience));
        }
        alarm.await;
        u64::try_from(began.elapsed().as_millis()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_at_the_time_that_it_was_set_to_last() {
        let far = 1_000_000;
        for (steps, expected) in [
            (&[][..], 100),
            (&[(50, 100)], 150),
            // As for each request: far away, and near again.
            (&[(10, far), (20, 100)], 120),
            (&[(10, far), (500, 100)], 600),
            (&[(10, far), (20, 100), (90, far), (3000, 100)], 3100),
            // Nearer than before.
            (&[(10, 20)], 30),
            (&[(10, far), (200, far), (300, 7)], 307),
        ] {
            assert_eq!(rings(steps).await, expected, "{steps:?}");
        }
    }
}
