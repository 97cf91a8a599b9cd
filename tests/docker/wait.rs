//! Waiting for what can be observed, with a deadline.

use std::process::Command;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

/// Asks `seen` again and again until it has an answer.
pub(crate) fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = seen() {
            return seen;
        }
        assert!(Instant::now() < deadline, "no {what} within {DEADLINE:?}");
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// A command that ends itself after a while; it must be there on every Debian (coreutils).
pub(crate) fn bounded(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", COMMAND_SECONDS_MAX, program]);
    command
}

/// Runs a command to its end and returns what it printed; a failure fails the test.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// Nothing that is waited for here takes more than a few seconds on two slow cores.
const DEADLINE: Duration = Duration::from_secs(60);

/// Short beside a process start, long beside a look.
pub(crate) const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// The longest command fetches a whole Debian from a mirror.
const COMMAND_SECONDS_MAX: &str = "600";
