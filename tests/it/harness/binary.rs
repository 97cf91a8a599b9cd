//! The real binary, for what only a process can do: be killed, be signalled, exit.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::proxy::{Front, ProxyBuilder};
use super::{KIB, poll, within};

/// A running binary; dropped, it is killed.
pub(crate) struct Binary {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    front: Front,
    /// Keeps the directories for as long as they are in use.
    _builder: ProxyBuilder,
}

impl Binary {
    /// Starts the binary and waits until it listens.
    pub(crate) async fn start(builder: &ProxyBuilder) -> Self {
        let mut command = command(&builder.file());
        command.envs(builder.variables());
        Self::run(builder, command).await
    }

    /// Starts the binary so that no file of it grows beyond this many KiB: writes fail as on a broken disk.
    pub(crate) async fn start_with_file_limit(builder: &ProxyBuilder, kib: usize) -> Self {
        let mut command = bare("sh");
        // An ignored signal stays ignored in what is executed, so that the write fails instead of killing.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_layerhold"), "serve"])
            .arg("--config")
            .arg(builder.file())
            .args(["--log-format", "json"]);
        Self::run(builder, command).await
    }

    /// Starts the binary where cores of any size are dumped.
    pub(crate) async fn start_with_core_dumps(builder: &ProxyBuilder) -> Self {
        let mut command = bare("sh");
        let script = "ulimit -c unlimited; exec \"$0\" \"$@\"";
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_layerhold"), "serve"])
            .arg("--config")
            .arg(builder.file())
            .args(["--log-format", "json"]);
        Self::run(builder, command).await
    }

    /// Starts the binary so that it may have so many files open, and no more.
    pub(crate) async fn start_with_open_files(builder: &ProxyBuilder, files: usize) -> Self {
        Self::start_after(builder, &format!("ulimit -n {files}")).await
    }

    /// Starts the binary after these words of a shell, as `umask 0`.
    pub(crate) async fn start_after(builder: &ProxyBuilder, words: &str) -> Self {
        let mut command = bare("sh");
        let script = format!("{words}; exec \"$0\" \"$@\"");
        command
            .args(["-c", &script, env!("CARGO_BIN_EXE_layerhold"), "serve"])
            .arg("--config")
            .arg(builder.file())
            .args(["--log-format", "json"]);
        Self::run(builder, command).await
    }

    /// Starts the binary by another program, which becomes it, as `env` does.
    pub(crate) async fn start_by(builder: &ProxyBuilder, program: &str, words: &[&str]) -> Self {
        let mut command = bare(program);
        command
            .args(words)
            .args([env!("CARGO_BIN_EXE_layerhold"), "serve", "--config"])
            .arg(builder.file())
            .args(["--log-format", "json"]);
        Self::run(builder, command).await
    }

    /// Starts the binary as a service manager does that listens on `socket`.
    pub(crate) async fn start_notifying(builder: &ProxyBuilder, socket: &Path) -> Self {
        Self::run(builder, notifying(builder, socket)).await
    }

    /// As [`Binary::refused`], below such a service manager.
    pub(crate) async fn refused_notifying(builder: &ProxyBuilder, socket: &Path) -> ExitStatus {
        let (mut child, _) = spawn(notifying(builder, socket));
        exited(&mut child).await
    }

    /// Runs the binary where it must refuse: how it exited, and what it said.
    pub(crate) async fn refused(builder: &ProxyBuilder) -> (ExitStatus, String) {
        let (mut child, log) = spawn(command(&builder.file()));
        let status = exited(&mut child).await;
        poll("the end of stderr", async || {
            (Arc::strong_count(&log) == 1).then_some(())
        })
        .await;
        let text = log.lock().join("\n");
        (status, text)
    }

    /// Has the binary check a configuration: how it exited, and what it printed.
    pub(crate) async fn check(builder: &ProxyBuilder) -> (ExitStatus, String) {
        Self::check_file(&builder.file()).await
    }

    /// As [`Binary::check`], of a file that somebody else wrote.
    pub(crate) async fn check_file(file: &Path) -> (ExitStatus, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.args(["check", "--config"]).arg(file).env_clear();
        let checked = tokio::task::spawn_blocking(move || command.output());
        let output = within("the check", checked).await.unwrap().unwrap();
        (output.status, String::from_utf8(output.stdout).unwrap())
    }

    /// Runs another command of the binary to its end: its exit code, and what it said on stdout and on stderr.
    pub(crate) async fn command(words: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.args(words).env_clear();
        let running = tokio::task::spawn_blocking(move || command.output());
        let output = within("the command", running).await.unwrap().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    async fn run(builder: &ProxyBuilder, command: Command) -> Self {
        let (mut child, log) = spawn(command);
        let front = poll("the binary to listen", async || {
            let registry = address(&log.lock(), "registry");
            let admin = address(&log.lock(), "admin");
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{status}: {}", log.lock().join("\n"));
            }
            Some(Front {
                registry: registry?,
                admin: admin?,
            })
        })
        .await;
        Self {
            child,
            log,
            front,
            _builder: builder.clone(),
        }
    }

    /// Stops it as a power failure would.
    pub(crate) async fn kill(mut self) {
        self.child.kill().unwrap();
        exited(&mut self.child).await;
    }

    /// The most memory it ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> usize {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<usize>().unwrap() * KIB
    }

    /// The process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to read its configuration again.
    pub(crate) fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits until it has exited.
    pub(crate) async fn exited(mut self) -> ExitStatus {
        exited(&mut self.child).await
    }

    /// The log so far: one line, one object.
    pub(crate) fn log(&self) -> Vec<Value> {
        let parse = |line: &String| {
            serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON on stderr: {line:?}"))
        };
        self.log_lines().iter().map(parse).collect()
    }

    /// The log so far, as it was written.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    /// Waits for a line of the log that `wanted` accepts.
    pub(crate) async fn wait_for_log(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        poll("a line of the log", async || {
            self.log().into_iter().find(&wanted)
        })
        .await
    }
}

impl std::ops::Deref for Binary {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        // Gone already, or gone now: either is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a field, wherever the encoder puts fields.
pub(crate) fn field<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    line.get(name).or_else(|| line.get("fields")?.get(name))
}

/// A program in an environment of its own.
fn bare(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command
}

fn command(file: &Path) -> Command {
    let mut command = bare(env!("CARGO_BIN_EXE_layerhold"));
    command
        .args(["serve", "--config"])
        .arg(file)
        .args(["--log-format", "json"]);
    command
}

/// What is started here has an environment of its own, so `env` sets the variable and becomes the binary.
fn notifying(builder: &ProxyBuilder, socket: &Path) -> Command {
    let mut variable = OsString::from("NOTIFY_SOCKET=");
    variable.push(socket);
    let mut command = Command::new("env");
    command
        .arg(variable)
        .args([env!("CARGO_BIN_EXE_layerhold"), "serve", "--config"])
        .arg(builder.file())
        .args(["--log-format", "json"]);
    command
}

/// Starts a process whose stderr is collected by a thread of its own.
fn spawn(mut command: Command) -> (Child, Arc<Mutex<Vec<String>>>) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let lines = Arc::clone(&log);
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            lines.lock().push(line);
        }
    });
    (child, log)
}

async fn exited(child: &mut Child) -> ExitStatus {
    poll("the binary to exit", async || child.try_wait().unwrap()).await
}

/// Where the log says that a listener is.
fn address(log: &[String], role: &str) -> Option<std::net::SocketAddr> {
    let is = |line: &Value, name: &str, value: &str| {
        field(line, name).and_then(Value::as_str) == Some(value)
    };
    log.iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|line| is(line, "message", "listening") && is(line, "role", role))
        .and_then(|line| field(&line, "address")?.as_str()?.parse().ok())
}
