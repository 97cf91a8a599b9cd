//! Lines on their way out: together, in order, by a thread of their own.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::{Level, warn};

use super::metrics;

/// Lines that wait to be written. Clones are the same.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

/// How soon a line must be out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Somebody may have to act.
    Now,
    /// Within milliseconds.
    Soon,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to write, or something more urgent.
    filled: Condvar,
    /// Something was written.
    written: Condvar,
    /// Who has read nothing for so long reads no more.
    patience: Duration,
}

struct State {
    /// `None` while it is being written to.
    out: Option<Box<dyn Write + Send>>,
    /// Whether a thread of its own writes.
    is_apart: bool,
    waiting: Vec<u8>,
    is_urgent: bool,
    is_ending: bool,
    /// Whether nobody reads.
    is_stuck: bool,
    /// Lines that had no room since then.
    lost: u64,
}

impl Urgency {
    pub(super) fn of(level: Level) -> Self {
        if level <= Level::WARN {
            Self::Now
        } else {
            Self::Soon
        }
    }
}

impl Lines {
    pub(super) fn new(out: impl Write + Send + 'static) -> Self {
        Self::with(out, PATIENCE)
    }

    fn with(out: impl Write + Send + 'static, patience: Duration) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                out: Some(Box::new(out)),
                is_apart: false,
                waiting: Vec::new(),
                is_urgent: false,
                is_ending: false,
                is_stuck: false,
                lost: 0,
            }),
            filled: Condvar::new(),
            written: Condvar::new(),
            patience,
        }))
    }

    /// Takes a whole line. It waits as long as others have to be written first and some are; where none are, the line is lost.
    pub(super) fn write(&self, line: &[u8], urgency: Urgency) {
        let shared = &self.0;
        let mut state = shared.state.lock();
        if state.is_apart && !state.has_room(line.len()) && !state.is_stuck {
            let is_full = |state: &mut State| state.is_apart && !state.has_room(line.len());
            let written = &shared.written;
            let waited = written.wait_while_for(&mut state, is_full, shared.patience);
            state.is_stuck |= waited.timed_out();
        }
        if !state.is_apart {
            // A log that cannot be written has nowhere to say so.
            let _ = state.out.as_mut().map(|out| out.write_all(line));
            return;
        }
        if !state.has_room(line.len()) {
            state.lost += 1;
            metrics::lost();
            return;
        }
        let is_first = state.waiting.is_empty();
        let is_more_urgent = urgency == Urgency::Now && !state.is_urgent;
        state.is_urgent |= is_more_urgent;
        state.waiting.extend_from_slice(line);
        drop(state);
        if is_first || is_more_urgent {
            shared.filled.notify_one();
        }
    }

    /// From now on a thread of its own writes.
    pub(super) fn write_apart(&self) -> io::Result<()> {
        self.0.state.lock().is_apart = true;
        let shared = Arc::clone(&self.0);
        let writer = thread::Builder::new().name("log".to_owned());
        let spawned = writer.spawn(move || shared.write_all());
        spawned.map(|_| ()).inspect_err(|_| {
            self.0.state.lock().is_apart = false;
        })
    }

    /// Has all that waits written, if anybody reads. Later lines are written by whoever logs them.
    pub(super) fn finish(&self) {
        let mut state = self.0.state.lock();
        state.is_ending = true;
        self.0.filled.notify_one();
        let is_unwritten = |state: &mut State| state.is_apart;
        let written = &self.0.written;
        written.wait_while_for(&mut state, is_unwritten, self.0.patience);
    }
}

impl Shared {
    /// What the thread does.
    fn write_all(&self) {
        let mut lines = Vec::new();
        let mut state = self.state.lock();
        while self.wait(&mut state) {
            state.is_urgent = false;
            std::mem::swap(&mut lines, &mut state.waiting);
            let mut out = state.out.take();
            MutexGuard::unlocked(&mut state, || {
                // As above.
                let _ = out.as_mut().map(|out| out.write_all(&lines));
                lines.clear();
                lines.shrink_to(KEPT_BYTES);
            });
            state.out = out;
            let lost = std::mem::take(&mut state.lost);
            if lost > 0 {
                // While it counts as stuck this thread does not wait for itself.
                MutexGuard::unlocked(&mut state, || {
                    warn!(lines = lost, "lines of the log were lost: nobody read them");
                });
            }
            state.is_stuck = false;
            self.written.notify_all();
        }
        state.is_apart = false;
        self.written.notify_all();
    }

    /// Waits until something has to be written; `false` where nothing comes any more.
    fn wait(&self, state: &mut MutexGuard<'_, State>) -> bool {
        while state.waiting.is_empty() {
            if state.is_ending {
                return false;
            }
            self.filled.wait(state);
        }
        let may_wait = |state: &mut State| !state.is_urgent && !state.is_ending;
        self.filled.wait_while_for(state, may_wait, GATHERING);
        true
    }
}

impl State {
    fn has_room(&self, bytes: usize) -> bool {
        self.waiting.is_empty() || self.waiting.len() + bytes <= WAITING_BYTES_MAX
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lines").finish_non_exhaustive()
    }
}

/// How long lines are gathered that nobody is in a hurry to read.
const GATHERING: Duration = Duration::from_millis(5);
/// Some ten thousand requests.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// What is kept for the next lines.
const KEPT_BYTES: usize = 256 << 10;
/// How long a line waits for a reader, and the end of the process for the last lines.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use prometheus::Registry;

    use super::*;

    /// Somebody who takes a write only when told to.
    struct Reader {
        taken: Arc<Mutex<Vec<Vec<u8>>>>,
        told: Receiver<()>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // One who is not told any more takes all.
            let _ = self.told.recv();
            self.taken.lock().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Taken = Arc<Mutex<Vec<Vec<u8>>>>;

    fn lines(patience: Duration) -> (Lines, Sender<()>, Taken) {
        let (tell, told) = channel();
        let taken = Taken::default();
        let reader = Reader {
            taken: Arc::clone(&taken),
            told,
        };
        (Lines::with(reader, patience), tell, taken)
    }

    #[test]
    fn lines_go_out_whole_and_in_order_and_before_the_end() {
        let (lines, tell, taken) = lines(Duration::from_secs(60));
        drop(tell);
        lines.write(b"before\n", Urgency::Soon);
        lines.write_apart().unwrap();
        let mut expected = "before\n".to_owned();
        for n in 0..5000 {
            let line = format!("line {n}\n");
            lines.write(line.as_bytes(), Urgency::Soon);
            expected += &line;
        }
        lines.finish();
        lines.write(b"after\n", Urgency::Soon);
        expected += "after\n";
        let taken = taken.lock();
        assert_eq!(taken.concat(), expected.as_bytes());
        assert!(taken.len() < 2500, "{} writes", taken.len());
    }

    #[test]
    fn a_slow_reader_loses_nothing() {
        let (lines, tell, taken) = lines(Duration::from_secs(60));
        lines.write_apart().unwrap();
        let line = [b'x'; 64 << 10];
        let count = 4 * WAITING_BYTES_MAX / line.len();
        thread::scope(|scope| {
            let writing = scope.spawn(|| {
                for _ in 0..count {
                    lines.write(&line, Urgency::Soon);
                }
            });
            while !writing.is_finished() {
                tell.send(()).unwrap();
                thread::yield_now();
            }
        });
        drop(tell);
        lines.finish();
        let bytes: usize = taken.lock().iter().map(Vec::len).sum();
        assert_eq!(bytes, count * line.len());
    }

    #[test]
    fn a_reader_that_has_stopped_stops_nobody_and_what_is_lost_is_counted() {
        let registry = Registry::new();
        metrics::register(&registry).unwrap();
        let (lines, tell, taken) = lines(Duration::from_millis(50));
        lines.write_apart().unwrap();
        let line = [b'x'; 64 << 10];
        let count = 4 * WAITING_BYTES_MAX / line.len();
        for _ in 0..count {
            lines.write(&line, Urgency::Soon);
        }
        let lost = lines.0.state.lock().lost;
        assert!(lost > 0);
        let told = registry.gather()[0].get_metric()[0]
            .get_counter()
            .get_value();
        assert_eq!(told, lost as f64);
        // It reads again.
        drop(tell);
        while lines.0.state.lock().is_stuck {
            thread::yield_now();
        }
        lines.write(b"new", Urgency::Now);
        while lines.0.state.lock().is_apart {
            lines.finish();
        }
        let bytes = taken.lock().concat();
        assert!(bytes.ends_with(b"new"));
        assert_eq!(
            bytes.len(),
            (count - usize::try_from(lost).unwrap()) * line.len() + 3
        );
    }
}
