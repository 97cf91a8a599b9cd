//! A process that is measured from outside.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

/// What runs, for when the bench is ended from outside.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// A program of a bench: it ends with the bench, however that ends. To be started by the main thread, since it is its end
/// that the kernel looks at.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// What a program says when it is asked for its version; `None` where it is not installed.
pub(crate) fn version(program: &str, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&said).lines().next()?.to_owned();
    output.status.success().then_some(line)
}

/// Ends all that runs, as far as it ends soon.
pub(crate) fn stop_all() {
    let running = RUNNING.lock().clone();
    for pid in &running {
        let _ = kill_process(*pid, Signal::TERM);
    }
    let began = Instant::now();
    while running.iter().any(|it| !has_ended(*it)) && began.elapsed() < STOP_MAX {
        thread::sleep(Duration::from_millis(10));
    }
}

/// A running server and the processes it started. Dropping it stops it.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts it and waits until it listens.
    pub(crate) fn start(command: &mut Command, listening: SocketAddr) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        RUNNING.lock().push(Pid::from_child(&child));
        let mut process = Self { child };
        let began = Instant::now();
        while TcpStream::connect(listening).is_err() {
            let ended = process.child.try_wait().unwrap();
            assert_eq!(ended, None, "{command:?} ended before it listened");
            assert!(began.elapsed() < START_MAX, "{command:?} does not listen");
            thread::sleep(Duration::from_millis(1));
        }
        process
    }

    /// CPU seconds so far, of threads that have ended too.
    pub(crate) fn cpu(&self) -> f64 {
        self.pids().into_iter().map(cpu).sum()
    }

    /// Lets the peak of memory begin anew.
    pub(crate) fn forget_peak(&self) {
        for pid in self.pids() {
            fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        }
    }

    /// Resident memory, in MiB.
    pub(crate) fn resident_mib(&self) -> f64 {
        self.pids().into_iter().map(|pid| mib(pid, "VmRSS:")).sum()
    }

    /// The peak of resident memory, in MiB.
    pub(crate) fn peak_mib(&self) -> f64 {
        self.pids().into_iter().map(|pid| mib(pid, "VmHWM:")).sum()
    }

    /// Itself, and the workers of one that has workers.
    fn pids(&self) -> Vec<u32> {
        let pid = self.child.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(path).unwrap_or_default();
        let children = children.split_whitespace().map(|it| it.parse().unwrap());
        [pid].into_iter().chain(children).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.child.wait();
        RUNNING.lock().retain(|it| *it != pid);
    }
}

/// An address nobody listens on. Another process could take it in between, which then shows.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// The user and the system time of `/proc/PID/stat`: fields 14 and 15, counted from behind the name, which may hold
/// anything.
fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
    let ticks = fields.skip(11).take(2).map(|it| it.parse::<f64>().unwrap());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

fn mib(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix(field));
    let kib: f64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib / 1024.0
}

/// Whether nothing is left of it but what its parent has not asked for.
fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.map_or(true, |it| it.contains(") Z "))
}

/// Of the times that Linux shows to users, on each architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(5);
