//! A process of the lab: it logs to a file and ends with its owner, however that ends.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::wait::{BETWEEN_LOOKS, until};

/// A running server. Dropping it stops it, and shows the end of its log if the test has failed.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with both outputs in `dir/name.log`. The kernel stops it should the test
    /// be killed, and no mount that it makes is seen by anyone else or outlives it.
    pub(crate) fn start(name: &'static str, dir: &Path, program: &str, args: &[&str]) -> Self {
        let log = dir.join(name).with_extension("log");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "unshare", "--mount", program])
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { name, child, log }
    }

    /// All that was logged so far, whole lines only.
    pub(crate) fn logged(&self) -> String {
        let mut log = fs::read_to_string(&self.log).unwrap();
        log.truncate(log.rfind('\n').map_or(0, |end| end + 1));
        log
    }

    /// Those lines of the log that are JSON objects.
    pub(crate) fn events(&self) -> Vec<Value> {
        let log = self.logged();
        let objects = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        objects.filter(Value::is_object).collect()
    }

    /// Waits for something that this process makes true, and fails at once if it ends instead.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        mut seen: impl FnMut(&Self) -> Option<T>,
    ) -> T {
        until(&format!("{what} of {}", self.name), || {
            let seen = seen(self);
            if seen.is_none() {
                let ended = self.child.try_wait().unwrap();
                assert_eq!(ended, None, "{} ended while it was needed", self.name);
            }
            seen
        })
    }

    /// Stops it as an operator would, and waits until it is gone.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        until(&format!("end of {}", self.name), || {
            self.child.try_wait().unwrap()
        });
    }

    /// Signals it, unless it was already seen to end: its number may be another's by now.
    fn signal(&mut self, signal: Signal) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = Pid::from_child(&self.child);
            // It may end in between, which is what was wanted.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            show_end_of(&self.log);
        }
        self.signal(Signal::TERM);
        for _ in 0..STOP_LOOKS_MAX {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(BETWEEN_LOOKS);
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

#[expect(clippy::print_stderr, reason = "a failed test shows what it saw")]
fn show_end_of(log: &Path) {
    let text = fs::read_to_string(log).unwrap_or_default();
    // The registry says each step of each request there; its lines of other levels say enough.
    let is_shown = |line: &&str| !line.contains(r#""level":"debug""#);
    let lines: Vec<&str> = text.lines().filter(is_shown).collect();
    let end = lines.len().saturating_sub(LINES_SHOWN);
    eprintln!("---- {}\n{}", log.display(), lines[end..].join("\n"));
}

/// `Drop` must not panic, so it counts its looks: 20 s, more than the 15 that dockerd gives its
/// containers.
const STOP_LOOKS_MAX: u32 = 1000;

const LINES_SHOWN: usize = 40;
