//! Programs of the operator's that are asked something: run without a shell, in a process group of their own, for a bounded
//! time, and with a bounded answer. What they say on their standard error is thrown away: it may quote what must not be shown.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use zeroize::Zeroizing;

/// Why a program has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be run.
    #[error("it could not be run")]
    Broken(#[source] io::Error),
    /// It printed more than it may.
    #[error("it printed more than {PRINTED_BYTES_MAX} bytes")]
    Endless,
    /// It did not end in time.
    #[error("it did not end within {0:?}")]
    Silent(Duration),
}

/// A program that runs. Dropped, it is killed with whatever it started.
#[derive(Debug)]
struct Running {
    /// Before the process, whose number means nothing once it was waited for.
    group: Group,
    child: Child,
}

/// The process group of a program.
#[derive(Debug)]
struct Group(Option<Pid>);

/// Runs a program to its end: how it ended, and what it printed. Cancel-safe: one that is not waited for any more is killed.
///
/// # Errors
///
/// When it cannot be run, prints too much, or takes longer than it may.
pub async fn run_program(
    program: &Path,
    words: &[&str],
    input: &[u8],
    patience: Duration,
) -> Result<(ExitStatus, Zeroizing<Vec<u8>>), ProgramError> {
    let mut command = Command::new(program);
    command
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    // Starting a program reads it from a disk.
    let started = tokio::task::spawn_blocking(move || Running::start(command)).await;
    let started = started.map_err(io::Error::from).flatten();
    let mut running = started.map_err(ProgramError::Broken)?;
    let error = match timeout(patience, running.talk(input)).await {
        Ok(Ok((Some(status), printed))) => return Ok((status, printed)),
        Ok(Ok((None, _))) => ProgramError::Endless,
        Ok(Err(error)) => ProgramError::Broken(error),
        Err(_) => ProgramError::Silent(patience),
    };
    running.stop().await;
    Err(error)
}

impl Running {
    fn start(mut command: Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let pid = child.id().and_then(|it| i32::try_from(it).ok());
        Ok(Self {
            group: Group(pid.and_then(Pid::from_raw)),
            child,
        })
    }

    /// Asks, and waits for the end; how it ended, unless it is to be stopped for printing too much, and what it printed.
    async fn talk(&mut self, input: &[u8]) -> io::Result<(Option<ExitStatus>, Zeroizing<Vec<u8>>)> {
        if let Some(mut stdin) = self.child.stdin.take() {
            // A program that does not read may know the answer all the same.
            let _ = stdin.write_all(input).await;
        }
        // As large as it may get at once, and a little more for whoever looks for the end: what grows leaves copies behind.
        let mut printed = Zeroizing::new(Vec::with_capacity(PRINTED_BYTES_MAX + 64));
        if let Some(stdout) = self.child.stdout.take() {
            let bytes_max = PRINTED_BYTES_MAX as u64 + 1;
            stdout.take(bytes_max).read_to_end(&mut printed).await?;
        }
        if printed.len() > PRINTED_BYTES_MAX {
            return Ok((None, printed));
        }
        let status = self.child.wait().await?;
        // Its number may be another's from now on, and what it left running on purpose is its own affair.
        self.group.0 = None;
        Ok((Some(status), printed))
    }

    /// Kills it, and waits until it is gone.
    async fn stop(mut self) {
        self.group.kill();
        // Nothing survives that; what the system has in its hands is waited for elsewhere.
        let _ = timeout(GONE_WITHIN, self.child.wait()).await;
    }
}

impl Group {
    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            // It may be gone already, which is what is wanted.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Secrets are tokens of some KiB at most, and verdicts are a line.
pub(super) const PRINTED_BYTES_MAX: usize = 64 << 10;
const GONE_WITHIN: Duration = Duration::from_secs(1);
