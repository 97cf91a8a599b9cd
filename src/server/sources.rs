//! How many connections each source has: one alone must not be able to take all the places there are.
//!
//! A connection is *waiting* while it has no request in progress: it is idle, or within a head that may never end. When a
//! source has as many connections as it may and opens another, that of its own which has been waiting longest makes room: a
//! client may expect no more of an idle connection (RFC 9112 §9.3), and of heads it is the slowest that goes. Where none is
//! waiting, all of them are being served, and the new one is closed.
//!
//! One that makes room may have a little time yet, for the end of its last answer; but they are few, for they have places that
//! nobody else has meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::net::Source;

/// The connections of all sources.
#[derive(Debug)]
pub(super) struct Sources {
    connections_max: usize,
    /// Those that have any; a source's own lock is taken within this one, never the other way around.
    held: Mutex<HashMap<Source, Arc<Mutex<Held>>>>,
    /// When a warning was last written.
    warned: Mutex<Option<Instant>>,
}

/// The connections of one source.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    /// Those that have made room and are not closed yet.
    leaving: usize,
    /// Gives each wait its number, and so their order.
    waits: u64,
    /// How to end those that are waiting, by the number of their wait.
    waiting: BTreeMap<u64, CancellationToken>,
}

/// One connection's place among those of its source; dropped, it is free.
#[derive(Debug)]
pub(super) struct Seat {
    /// `None` for a connection that is not counted.
    of: Option<(Arc<Sources>, Source)>,
    held: Arc<Mutex<Held>>,
    state: Mutex<State>,
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// Requests in progress.
    serving: usize,
    /// The number of the wait that it is in.
    wait: Option<u64>,
}

/// A request in progress; dropped, it is over.
#[derive(Debug)]
pub(super) struct Serving(Arc<Seat>);

impl Sources {
    pub(super) fn new(connections_max: usize) -> Self {
        Self {
            connections_max,
            held: Mutex::default(),
            warned: Mutex::default(),
        }
    }

    /// A seat for a new connection, which is waiting for its first request. `None` where its source has as many as it may,
    /// and all of them are being served.
    pub(super) fn seat(self: &Arc<Self>, source: Source) -> Option<Arc<Seat>> {
        let mut all = self.held.lock();
        let held = Arc::clone(all.entry(source).or_default());
        {
            let mut held = held.lock();
            if held.count >= self.connections_max {
                let (_, longest) = held.waiting.pop_first()?;
                longest.cancel();
                held.count -= 1;
                held.leaving += 1;
            }
            held.count += 1;
        }
        let of = Some((Arc::clone(self), source));
        Some(Seat::new(of, held))
    }

    /// A connection of this source was closed for want of a seat.
    pub(super) fn told(&self, source: Source) {
        let mut warned = self.warned.lock();
        let limit = self.connections_max;
        if warned.is_none_or(|it| it.elapsed() >= WARNING_INTERVAL) {
            *warned = Some(Instant::now());
            warn!(%source, limit, "a source has as many connections as it may, all in use");
        } else {
            debug!(%source, limit, "a source has as many connections as it may, all in use");
        }
    }

    /// How many of a source may take their time over making room.
    fn leaving_max(&self) -> usize {
        (self.connections_max / LEAVING_SHARE).max(1)
    }

    /// A seat that counts for nobody.
    pub(super) fn free_seat() -> Arc<Seat> {
        Seat::new(None, Arc::default())
    }
}

impl Seat {
    fn new(of: Option<(Arc<Sources>, Source)>, held: Arc<Mutex<Held>>) -> Arc<Self> {
        let seat = Self {
            of,
            held,
            state: Mutex::default(),
            ended: CancellationToken::new(),
        };
        seat.wait(&mut seat.state.lock());
        Arc::new(seat)
    }

    /// A request has come.
    pub(super) fn serve(self: &Arc<Self>) -> Serving {
        let mut state = self.state.lock();
        state.serving += 1;
        if let Some(wait) = state.wait.take() {
            self.held.lock().waiting.remove(&wait);
        }
        Serving(Arc::clone(self))
    }

    /// Waits until it has to make room. Cancel-safe.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether one that has to make room may take its time over it: few of a source do, so that one which may have half of all
    /// places never has nearly all of them.
    pub(super) fn may_take_leave(&self) -> bool {
        let leaving = self.held.lock().leaving;
        let of = self.of.as_ref();
        of.is_some_and(|(sources, _)| leaving <= sources.leaving_max())
    }

    /// Who has made room for another waits for nothing more.
    fn wait(&self, state: &mut State) {
        let mut held = self.held.lock();
        if self.of.is_none() || self.ended.is_cancelled() {
            return;
        }
        held.waits += 1;
        let wait = held.waits;
        held.waiting.insert(wait, self.ended.clone());
        state.wait = Some(wait);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some((sources, source)) = &self.of else {
            return;
        };
        let mut all = sources.held.lock();
        let mut held = self.held.lock();
        if let Some(wait) = self.state.get_mut().wait.take() {
            held.waiting.remove(&wait);
        }
        // Whoever made room was counted off then.
        if self.ended.is_cancelled() {
            held.leaving -= 1;
        } else {
            held.count -= 1;
        }
        if held.count == 0 && held.leaving == 0 {
            all.remove(source);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.serving -= 1;
        if state.serving == 0 {
            self.0.wait(&mut state);
        }
    }
}

/// Of so many connections that a source may have, one more may be on its way out.
const LEAVING_SHARE: usize = 8;
/// A warning is to be seen, not counted.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn source(n: u8) -> Source {
        Source::of([192, 0, 2, n].into())
    }

    fn is_ended(seat: &Seat) -> bool {
        seat.ended.is_cancelled()
    }

    #[test]
    fn whoever_waits_longest_makes_room_for_its_own_source() {
        let sources = Arc::new(Sources::new(2));
        let other = sources.seat(source(2)).unwrap();
        let first = sources.seat(source(1)).unwrap();
        let second = sources.seat(source(1)).unwrap();
        // The first is served in between, and so waits less long.
        drop(first.serve());
        let third = sources.seat(source(1)).unwrap();
        assert!(is_ended(&second) && !is_ended(&first));
        let _fourth = sources.seat(source(1)).unwrap();
        assert!(is_ended(&first) && !is_ended(&third) && !is_ended(&other));
    }

    #[test]
    fn whoever_is_served_makes_no_room() {
        let sources = Arc::new(Sources::new(2));
        let seats = [0, 1].map(|_| sources.seat(source(1)).unwrap());
        let mut serving: Vec<_> = seats.iter().map(Seat::serve).collect();
        assert!(sources.seat(source(1)).is_none());
        assert!(sources.seat(source(2)).is_some());
        // Two at once on one connection.
        serving.push(seats[0].serve());
        drop(serving.remove(0));
        assert!(sources.seat(source(1)).is_none());
        drop(serving.pop());
        let third = sources.seat(source(1)).unwrap();
        assert!(is_ended(&seats[0]) && !is_ended(&seats[1]) && !is_ended(&third));
    }

    #[test]
    fn a_source_has_few_that_take_leave() {
        for (most, leaving_max) in [(1, 1), (2, 1), (16, 2), (2048, 256)] {
            let sources = Arc::new(Sources::new(most));
            let mut leaving: Vec<_> = (0..most + leaving_max + 1)
                .map(|_| sources.seat(source(1)).unwrap())
                .collect();
            let staying = leaving.split_off(leaving_max + 1);
            assert!(leaving.iter().all(|it| is_ended(it)));
            assert!(!staying.iter().any(|it| is_ended(it)));
            assert!(!leaving.iter().any(|it| it.may_take_leave()), "{most}");
            leaving.pop();
            assert!(leaving.iter().all(|it| it.may_take_leave()), "{most}");
        }
        assert!(!Sources::free_seat().may_take_leave());
    }

    #[test]
    fn a_seat_is_given_back_once_and_sources_without_any_are_forgotten() {
        let sources = Arc::new(Sources::new(3));
        let mut random = SmallRng::seed_from_u64(5);
        let (mut seats, mut serving) = (Vec::new(), Vec::new());
        for _ in 0..20_000 {
            match random.random_range(0..4) {
                0 => seats.extend(sources.seat(source(random.random_range(0..3)))),
                1 if !seats.is_empty() => {
                    let seat: &Arc<Seat> = &seats[random.random_range(0..seats.len())];
                    serving.push(seat.serve());
                }
                2 if !seats.is_empty() => {
                    seats.swap_remove(random.random_range(0..seats.len()));
                }
                3 if !serving.is_empty() => {
                    serving.swap_remove(random.random_range(0..serving.len()));
                }
                _ => {}
            }
            let all = sources.held.lock();
            assert!(all.values().all(|held| held.lock().count <= 3));
        }
        drop((seats, serving));
        assert!(sources.held.lock().is_empty());
    }

    #[test]
    fn a_free_seat_is_nobodys() {
        let seat = Sources::free_seat();
        drop(seat.serve());
        assert!(seat.held.lock().waiting.is_empty() && !is_ended(&seat));
    }
}
