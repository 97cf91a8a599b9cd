//! Whoever does not answer is left alone for a while, and is then asked by one at a time until they answer. One who waits
//! long for that is not waited for: what it asked for may be the one thing that nobody gets an answer about.
//!
//! A pause begins at once for a mirror, which others stand behind, and whatever it was that it did not do. A host that nobody
//! stands behind has its pause only when it is known not to answer anybody: what speaks of a host is that there is no
//! connection to it, or no word over one, several times in a row and for a while, with not a byte from it in between. Any
//! status is an answer, and a connection that breaks says nothing of the next one.
//!
//! A pause ends with the first answer, whoever had asked: with bytes of a transfer that goes on, too.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::error::Error;
use crate::net::{Chain, next_pause};

/// The pauses of somebody.
#[derive(Debug)]
pub(super) struct Rest {
    /// How long the first of a row is; they double.
    first: Duration,
    /// `None` while there is an answer.
    pause: Option<Pause>,
    resting: IntGauge,
}

#[derive(Debug)]
struct Pause {
    began: Instant,
    length: Duration,
    cause: Arc<Error>,
    probe: Option<Probe>,
    _counted: Counted,
}

/// Somebody asks whether a pause is over.
#[derive(Debug)]
struct Probe {
    since: Instant,
    /// Where they are heard to be done.
    done: watch::Receiver<()>,
}

/// One more who rests, until it is dropped.
#[derive(Debug)]
struct Counted(IntGauge);

/// The right to ask. Dropped without a verdict, it is the next one's.
#[derive(Debug)]
pub(super) struct Turn {
    asked: Instant,
    _probe: Option<watch::Sender<()>>,
}

/// Whether somebody may be asked.
#[derive(Debug)]
pub(super) enum Entry {
    /// They may.
    Open(Turn),
    /// Somebody else is about to find that out, and is heard to be done here.
    Probed(watch::Receiver<()>, Error),
    /// They may not.
    Closed(Error),
}

/// The hosts that one place of a registry leads to: itself, its token server, and where its blobs are.
#[derive(Debug)]
pub(super) struct Hosts {
    upstream: String,
    /// Who has pauses of another kind.
    except: Option<String>,
    first: Duration,
    known: Mutex<HashMap<String, Arc<Host>>>,
    resting: IntGauge,
    unasked: IntCounter,
}

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    upstream: String,
    name: String,
    state: Mutex<State>,
    /// Until when it asked not to be asked.
    pub(super) told_until: Mutex<Option<Instant>>,
    unasked: IntCounter,
}

#[derive(Debug)]
struct State {
    answered_at: Option<Instant>,
    /// What speaks against it since it last answered.
    row: Option<Row>,
    rest: Rest,
}

/// Failures in a row.
#[derive(Debug)]
struct Row {
    /// When the first of them had been asked.
    since: Instant,
    failures: u32,
    /// What there was no word about.
    about: Option<u64>,
    /// Whether it is the host, and not one thing that is asked of it.
    is_of_host: bool,
}

/// What speaks against a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no connection.
    Unconnected,
    /// There is no word about this.
    Silent(u64),
}

impl Rest {
    pub(super) fn new(first: Duration, resting: IntGauge) -> Self {
        Self {
            first,
            pause: None,
            resting,
        }
    }

    /// Whether `host` may be asked now, and by whom.
    pub(super) fn enter(&mut self, host: &str, now: Instant) -> Entry {
        let turn = |probe| Turn {
            asked: now,
            _probe: probe,
        };
        let Some(pause) = &mut self.pause else {
            return Entry::Open(turn(None));
        };
        let left = (pause.began + pause.length).saturating_duration_since(now);
        let refusal = Error::Resting {
            host: host.to_owned(),
            left,
            source: Arc::clone(&pause.cause),
        };
        if !left.is_zero() {
            return Entry::Closed(refusal);
        }
        if let Some(probe) = pause.probe.as_ref().filter(|it| it.stands_for_all(now)) {
            return Entry::Probed(probe.done.clone(), refusal);
        }
        let (probe, done) = watch::channel(());
        pause.probe = Some(Probe { since: now, done });
        Entry::Open(turn(Some(probe)))
    }

    /// Whether nobody is to be sent there now.
    pub(super) fn is_on(&self, now: Instant) -> bool {
        self.pause.as_ref().is_some_and(|it| {
            let probe = it.probe.as_ref();
            now < it.began + it.length || probe.is_some_and(|it| it.stands_for_all(now))
        })
    }

    /// Ends the pause; whether there was one.
    pub(super) fn end(&mut self) -> bool {
        self.pause.take().is_some()
    }

    /// Begins a pause, twice as long as the last if there was no answer since; whether it is the first. Many who asked at once
    /// had one bad moment, and not as many: who had asked before a pause began does not begin the next.
    pub(super) fn begin(&mut self, asked: Instant, cause: &Arc<Error>, now: Instant) -> bool {
        let former = self.pause.as_ref();
        if former.is_some_and(|it| asked <= it.began || now < it.began + it.length) {
            return false;
        }
        let is_first = former.is_none();
        let length = next_pause(self.first, former.map(|it| it.length));
        self.pause = Some(Pause {
            began: now,
            length,
            cause: Arc::clone(cause),
            probe: None,
            _counted: Counted::new(&self.resting),
        });
        is_first
    }
}

impl Probe {
    /// Whether what it will hear is waited for by everybody.
    fn stands_for_all(&self, now: Instant) -> bool {
        self.done.has_changed().is_ok() && now < self.since + PROBE_MAX
    }
}

impl Turn {
    pub(super) const fn asked(&self) -> Instant {
        self.asked
    }
}

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Hosts {
    /// The hosts of this upstream, but for one. Those who rest and those who were not asked are counted.
    pub(super) fn new(
        upstream: &str,
        except: Option<String>,
        first: Duration,
        (resting, unasked): (IntGauge, IntCounter),
    ) -> Self {
        Self {
            upstream: upstream.to_owned(),
            except,
            first,
            known: Mutex::default(),
            resting,
            unasked,
        }
    }

    /// The host of this name, if it is one of those.
    pub(super) fn of(&self, name: &str) -> Option<Arc<Host>> {
        if self.except.as_deref() == Some(name) {
            return None;
        }
        let mut known = self.known.lock();
        if let Some(host) = known.get(name) {
            return Some(Arc::clone(host));
        }
        let state = State {
            answered_at: None,
            row: None,
            rest: Rest::new(self.first, self.resting.clone()),
        };
        let host = Arc::new(Host {
            upstream: self.upstream.clone(),
            name: name.to_owned(),
            state: Mutex::new(state),
            told_until: Mutex::new(None),
            unasked: self.unasked.clone(),
        });
        if known.len() >= HOSTS_MAX {
            known.retain(|_, it| it.is_left_alone());
        }
        if known.len() < HOSTS_MAX {
            known.insert(name.to_owned(), Arc::clone(&host));
        }
        Some(host)
    }
}

impl Host {
    /// The right to ask it. While somebody finds out whether it answers again, that is waited for, but only briefly.
    ///
    /// # Errors
    ///
    /// When it is left alone.
    pub(super) async fn turn(&self) -> Result<Turn, Error> {
        let until = Instant::now() + BRIEFLY;
        loop {
            let entry = self.state.lock().rest.enter(&self.name, Instant::now());
            let refusal = match entry {
                Entry::Open(turn) => return Ok(turn),
                Entry::Closed(refusal) => refusal,
                // Nothing is ever sent: it ends with its sender.
                Entry::Probed(mut done, refusal) => match timeout_at(until, done.changed()).await {
                    Ok(_) => continue,
                    Err(_) => refusal,
                },
            };
            self.unasked.inc();
            return Err(refusal);
        }
    }

    fn is_left_alone(&self) -> bool {
        let told_until = *self.told_until.lock();
        told_until > Some(Instant::now()) || self.state.lock().rest.pause.is_some()
    }

    /// Notes that something came from it.
    pub(super) fn answered(&self) {
        let mut state = self.state.lock();
        state.answered_at = Some(Instant::now());
        state.row = None;
        if state.rest.end() {
            info!(
                upstream = self.upstream,
                host = self.name,
                "a host answers again"
            );
        }
    }

    /// Notes what speaks against it.
    pub(super) fn failed(&self, turn: &Turn, trouble: Trouble, error: &Error) {
        if self.state.lock().failed(turn, trouble, error) {
            warn!(
                upstream = self.upstream,
                host = self.name,
                error = %Chain(error),
                "a host does not answer and is left alone"
            );
        }
    }
}

impl State {
    /// Whether nobody is to be sent there for now, and that is news.
    fn failed(&mut self, turn: &Turn, trouble: Trouble, error: &Error) -> bool {
        // It has spoken since.
        if self.answered_at.is_some_and(|it| turn.asked <= it) {
            return false;
        }
        let now = Instant::now();
        if self.rest.pause.is_none() {
            let row = self.row.get_or_insert(Row::new(turn.asked));
            if !row.note(turn.asked, trouble, now) {
                return false;
            }
            self.row = None;
        }
        self.rest.begin(turn.asked, &Arc::new(error.clone()), now)
    }
}

impl Row {
    const fn new(since: Instant) -> Self {
        Self {
            since,
            failures: 0,
            about: None,
            is_of_host: false,
        }
    }

    /// Whether, with this one, it is certain that nobody gets an answer.
    fn note(&mut self, asked: Instant, trouble: Trouble, now: Instant) -> bool {
        self.failures += 1;
        self.since = self.since.min(asked);
        match trouble {
            Trouble::Unconnected => self.is_of_host = true,
            Trouble::Silent(about) => {
                self.is_of_host |= self.about.is_some_and(|it| it != about);
                self.about = Some(about);
            }
        }
        self.is_of_host && self.failures >= FAILURES_MIN && now >= self.since + CERTAIN_AFTER
    }
}

impl Trouble {
    /// Silence about this thing.
    pub(super) fn silent(about: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        about.hash(&mut hasher);
        Self::Silent(hasher.finish())
    }
}

/// Failures in a row, and the time that they span, after which a host is known not to answer: a registry that is started
/// again refuses many at once, and not for long.
const FAILURES_MIN: u32 = 3;
const CERTAIN_AFTER: Duration = Duration::from_secs(1);
/// How long one alone finds out whether somebody answers again, before another one may.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// How long others wait with the one who finds out whether a host answers again.
const BRIEFLY: Duration = Duration::from_millis(500);
/// Hosts that are remembered of one place of a registry.
const HOSTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn rest() -> Rest {
        Rest::new(secs(5), IntGauge::new("resting", "resting").unwrap())
    }

    fn cause() -> Arc<Error> {
        let host = "a.example".to_owned();
        Arc::new(Error::Short { host })
    }

    fn length(rest: &Rest) -> Option<Duration> {
        rest.pause.as_ref().map(|it| it.length)
    }

    #[test]
    fn one_bad_moment_is_one_pause_however_many_asked() {
        let (mut rest, mut now) = (rest(), Instant::now());
        assert!(rest.begin(now, &cause(), now));
        for expected in [5, 10, 20, 40, 60, 60] {
            assert_eq!(length(&rest), Some(secs(expected)));
            assert_eq!(rest.resting.get(), 1);
            for _ in 0..7 {
                assert!(!rest.begin(now, &cause(), now));
            }
            // Those who had asked before, and hear only now that there is no answer.
            let before = now;
            now += secs(expected);
            assert!(!rest.begin(before, &cause(), now));
            assert_eq!(length(&rest), Some(secs(expected)));
            assert!(!rest.begin(now, &cause(), now));
        }
        assert!(rest.end());
        assert!(!rest.end());
        assert_eq!(rest.resting.get(), 0);
        assert!(rest.begin(now, &cause(), now));
        assert_eq!(length(&rest), Some(secs(5)));
    }

    #[test]
    fn after_a_pause_one_at_a_time_may_ask() {
        let (mut rest, now) = (rest(), Instant::now());
        let enter = |rest: &mut Rest, at: u64| rest.enter("a.example", now + secs(at));
        assert!(matches!(enter(&mut rest, 0), Entry::Open(_)));
        rest.begin(now, &cause(), now);
        assert!(rest.is_on(now + secs(4)));
        let closed = enter(&mut rest, 4);
        let Entry::Closed(Error::Resting { left, .. }) = closed else {
            panic!("{closed:?}");
        };
        assert_eq!(left, secs(1));
        let Entry::Open(probe) = enter(&mut rest, 5) else {
            panic!("nobody may ask");
        };
        assert!(rest.is_on(now + secs(6)));
        assert!(matches!(enter(&mut rest, 6), Entry::Probed(..)));
        // It went away without a verdict, and another may.
        drop(probe);
        assert!(!rest.is_on(now + secs(6)));
        let Entry::Open(probe) = enter(&mut rest, 7) else {
            panic!("nobody may ask");
        };
        assert!(!rest.begin(probe.asked(), &cause(), now + secs(9)));
        drop(probe);
        assert!(matches!(enter(&mut rest, 18), Entry::Closed(_)));
        assert!(matches!(enter(&mut rest, 19), Entry::Open(_)));
    }

    #[test]
    fn one_who_hears_nothing_keeps_others_out_for_a_while_only() {
        let (mut rest, now) = (rest(), Instant::now());
        let enter = |rest: &mut Rest, at: u64| rest.enter("a.example", now + secs(at));
        rest.begin(now, &cause(), now);
        let Entry::Open(slow) = enter(&mut rest, 5) else {
            panic!("nobody may ask");
        };
        assert!(matches!(enter(&mut rest, 9), Entry::Probed(..)));
        assert!(rest.is_on(now + secs(9)));
        assert!(!rest.is_on(now + secs(10)));
        let Entry::Open(second) = enter(&mut rest, 10) else {
            panic!("the first keeps everybody out");
        };
        assert!(matches!(enter(&mut rest, 11), Entry::Probed(..)));
        // The first that fails begins the next pause, and the others are no news.
        rest.begin(slow.asked(), &cause(), now + secs(20));
        assert_eq!(length(&rest), Some(secs(10)));
        rest.begin(second.asked(), &cause(), now + secs(25));
        rest.begin(second.asked(), &cause(), now + secs(30));
        assert_eq!(length(&rest), Some(secs(10)));
        assert!(matches!(enter(&mut rest, 29), Entry::Closed(_)));
        assert!(matches!(enter(&mut rest, 30), Entry::Open(_)));
    }

    #[test]
    fn a_host_is_dead_when_nobody_has_an_answer_for_a_while() {
        use Trouble::{Silent, Unconnected};
        let no = Unconnected;
        for (is_dead, failures) in [
            (false, vec![]),
            (false, vec![(0, no, 10), (0, no, 20)]),
            // Many at once, as when it is started again.
            (
                false,
                vec![(0, no, 1), (0, no, 2), (0, no, 3), (0, no, 999)],
            ),
            (true, vec![(0, no, 1), (0, no, 2), (500, no, 1000)]),
            // One thing that takes long, however often.
            (false, vec![(0, Silent(7), 15_000); 9]),
            (false, vec![(0, Silent(7), 15_000), (0, Silent(8), 15_000)]),
            (
                true,
                vec![
                    (0, Silent(7), 15_000),
                    (0, Silent(8), 15_000),
                    (0, Silent(8), 15_000),
                ],
            ),
            (
                true,
                vec![
                    (0, Silent(7), 15_000),
                    (0, Silent(7), 15_000),
                    (0, no, 15_001),
                ],
            ),
        ] {
            let start = Instant::now();
            let at = |millis| start + Duration::from_millis(millis);
            let mut row = Row::new(start);
            let verdict = failures.iter().fold(false, |_, &(asked, trouble, heard)| {
                row.note(at(asked), trouble, at(heard))
            });
            assert_eq!(verdict, is_dead, "{failures:?}");
        }
    }

    #[test]
    fn what_was_asked_before_the_last_answer_is_no_news() {
        let counters = || {
            (
                IntGauge::new("a", "a").unwrap(),
                IntCounter::new("b", "b").unwrap(),
            )
        };
        let hosts = Hosts::new(
            "a.example",
            Some("b.example".to_owned()),
            secs(5),
            counters(),
        );
        assert!(hosts.of("b.example").is_none());
        let host = hosts.of("a.example").unwrap();
        let turn = |back| Turn {
            asked: Instant::now() - secs(back),
            _probe: None,
        };
        let early: Vec<Turn> = (0..5).map(|_| turn(9)).collect();
        host.answered();
        for turn in &early {
            host.failed(turn, Trouble::Unconnected, &cause());
        }
        assert_eq!(hosts.resting.get(), 0);
        // The same host, by whoever asks for it.
        host.state.lock().answered_at = Some(Instant::now() - secs(60));
        for turn in &early {
            host.failed(turn, Trouble::Unconnected, &cause());
        }
        assert_eq!(hosts.resting.get(), 1);
        hosts.of("a.example").unwrap().answered();
        assert_eq!(hosts.resting.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_while_one_asks_waits_a_moment_with_it() {
        let counters = (
            IntGauge::new("a", "a").unwrap(),
            IntCounter::new("b", "b").unwrap(),
        );
        let hosts = Hosts::new("a.example", None, secs(5), counters);
        let host = hosts.of("a.example").unwrap();
        let die = |host: &Host| {
            let now = Instant::now();
            host.state.lock().rest.begin(now, &cause(), now);
        };
        die(&host);
        assert!(host.turn().await.is_err());
        tokio::time::sleep(secs(5)).await;
        let probe = host.turn().await.unwrap();
        let (waited, ()) = tokio::join!(waiting(&host), async {
            tokio::time::sleep(BRIEFLY / 2).await;
            host.answered();
            drop(probe);
        });
        assert_eq!(waited, (true, BRIEFLY / 2));
        die(&host);
        tokio::time::sleep(secs(5)).await;
        let _probe = host.turn().await.unwrap();
        let waited = waiting(&host).await;
        assert_eq!(waited, (false, BRIEFLY));
        assert_eq!(hosts.unasked.get(), 2);
    }

    async fn waiting(host: &Host) -> (bool, Duration) {
        let began = Instant::now();
        let turn = host.turn().await;
        (turn.is_ok(), began.elapsed())
    }
}
