//! What happened, for whoever has to understand a violation.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Run;

/// The last events, and the violations.
#[derive(Debug)]
pub(crate) struct Journal {
    began: Instant,
    events: Mutex<VecDeque<Event>>,
    violations: Mutex<Vec<String>>,
    /// How many answers of each kind there were.
    tally: Mutex<BTreeMap<String, usize>>,
    broken: watch::Sender<bool>,
}

/// Something that happened to an object.
#[derive(Clone, Debug)]
struct Event {
    from: Instant,
    until: Instant,
    object: String,
    what: String,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            events: Mutex::default(),
            violations: Mutex::default(),
            tally: Mutex::default(),
            broken: watch::Sender::new(false),
        }
    }
}

impl Journal {
    /// Notes what happened to an object since `from`.
    pub(crate) fn note(&self, object: &str, from: Instant, what: impl Into<String>) {
        let event = Event {
            from,
            until: Instant::now(),
            object: object.to_owned(),
            what: what.into(),
        };
        let mut events = self.events.lock();
        events.push_back(event);
        if events.len() > EVENTS_MAX {
            events.pop_front();
        }
    }

    /// Counts an answer of this kind.
    pub(crate) fn count(&self, kind: String) {
        *self.tally.lock().entry(kind).or_default() += 1;
    }

    /// Notes that something was not as it must be, with all that may explain it.
    pub(crate) fn violation(&self, run: &Run, object: &str, what: &str) {
        let mut text = format!(
            "VIOLATION (CHAOS_SEED={}) at {}: {object}: {what}\n",
            run.seed,
            self.at(Instant::now())
        );
        let events = self.events.lock().clone();
        let about = events
            .iter()
            .filter(|it| it.object == object || it.object == OPERATOR);
        let about: Vec<&Event> = about.collect();
        for it in about.iter().skip(about.len().saturating_sub(SHOWN)) {
            let (from, until) = (self.at(it.from), self.at(it.until));
            text += &format!("  {from}..{until} {}: {}\n", it.object, it.what);
        }
        let now = Instant::now();
        let recent = now.checked_sub(RECENT).unwrap_or(self.began);
        for it in run.world.troubles().during(recent, now) {
            let until = it.until.map_or("now".to_owned(), |it| self.at(it));
            let from = self.at(it.from);
            text += &format!(
                "  trouble {from}..{until}: {:?} {:?} {:?}\n",
                it.place, it.fault, it.target
            );
        }
        for line in run.fleet.log_about(object, SHOWN) {
            text += &format!("  {line}\n");
        }
        println!("{text}");
        let mut violations = self.violations.lock();
        violations.push(format!("{object}: {what}"));
        if violations.len() >= VIOLATIONS_MAX {
            self.broken.send_replace(true);
        }
    }

    /// Whether so much is wrong that going on teaches nothing.
    pub(crate) fn broken(&self) -> watch::Receiver<bool> {
        self.broken.subscribe()
    }

    /// Fails the test if anything was wrong.
    pub(crate) fn conclude(&self, seed: u64) {
        for (kind, n) in &*self.tally.lock() {
            println!("{n:7} {kind}");
        }
        let violations = self.violations.lock();
        assert!(
            violations.is_empty(),
            "CHAOS_SEED={seed}: {} violations: {violations:#?}",
            violations.len()
        );
    }

    /// A moment, in seconds since the run began.
    fn at(&self, moment: Instant) -> String {
        format!("{:.3}", moment.duration_since(self.began).as_secs_f64())
    }
}

/// What happens to everything.
pub(crate) const OPERATOR: &str = "operator";

const EVENTS_MAX: usize = 50_000;
const SHOWN: usize = 30;
const RECENT: std::time::Duration = std::time::Duration::from_secs(10);
/// After so many the run ends early.
const VIOLATIONS_MAX: usize = 10;
