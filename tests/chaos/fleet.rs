//! The process under test, and its successors on the same directory.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tokio::sync::watch;

use crate::harness::binary::field;
use crate::harness::proxy::{Front, ProxyBuilder};
use crate::harness::{Head, poll};
use crate::world::World;

/// The processes, one after the other.
pub(crate) struct Fleet {
    configurations: Vec<ProxyBuilder>,
    current: watch::Sender<Option<Arc<Instance>>>,
    log: Arc<Mutex<VecDeque<String>>>,
}

/// One process.
pub(crate) struct Instance {
    pub(crate) front: Front,
    child: Mutex<Child>,
    ending: watch::Sender<bool>,
    /// Requests that clients sent, and those that had a head in answer.
    pub(crate) sent: AtomicU64,
    pub(crate) answered: AtomicU64,
    /// The answers, by what they said of themselves.
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
}

impl Fleet {
    /// Starts the first one.
    pub(crate) async fn start(world: &World) -> Self {
        let fleet = Self {
            configurations: world.configurations(),
            current: watch::Sender::new(None),
            log: Arc::default(),
        };
        fleet.configurations[0].file();
        fleet.launch().await;
        fleet
    }

    /// The process that listens; waits for it while there is none.
    pub(crate) async fn current(&self) -> Arc<Instance> {
        let mut current = self.current.subscribe();
        let current = current.wait_for(Option::is_some).await.unwrap();
        Arc::clone(current.as_ref().unwrap())
    }

    /// The same, if there is one.
    pub(crate) fn listening(&self) -> Option<Arc<Instance>> {
        self.current.borrow().clone()
    }

    /// Kills the process and starts another one, after something that needs the directory.
    pub(crate) async fn kill<T>(&self, meanwhile: impl Future<Output = T>) -> T {
        let former = self.retire();
        former.child.lock().kill().unwrap();
        former.exited().await;
        let done = meanwhile.await;
        self.launch().await;
        done
    }

    /// Asks the process to stop, and starts no other.
    pub(crate) async fn end(&self) -> ExitStatus {
        let former = self.retire();
        former.signal(Signal::TERM);
        former.exited().await
    }

    /// Asks the process to stop and starts another one, as soon as it says that it is on its way out: one that does not is
    /// not waited for by a successor.
    pub(crate) async fn succeed(&self) -> ExitStatus {
        let former = self.retire();
        former.signal(Signal::TERM);
        let lock = self.dir().join("LOCK");
        poll("the process to drain", async || {
            let said = std::fs::read_to_string(&lock).unwrap();
            let is_gone = former.child.lock().try_wait().unwrap().is_some();
            (said.contains("draining") || is_gone).then_some(())
        })
        .await;
        self.launch().await;
        former.exited().await
    }

    /// Has the process read another configuration, or a broken one.
    pub(crate) async fn reload(&self, configuration: Option<usize>) {
        let instance = self.current().await;
        match configuration {
            Some(n) => drop(self.configurations[n % self.configurations.len()].file()),
            None => drop(self.configurations[0].write("layerhold.toml", "nonsense = 1\n")),
        }
        instance.signal(Signal::HUP);
    }

    /// Puts a good configuration back.
    pub(crate) fn repair(&self) {
        self.configurations[0].file();
    }

    /// The directory of the cache.
    pub(crate) fn dir(&self) -> PathBuf {
        self.configurations[0].dir()
    }

    /// The last lines of the log that have this in them.
    pub(crate) fn log_about(&self, object: &str, n: usize) -> Vec<String> {
        let key = object.rsplit([':', '/', ' ']).next().unwrap_or(object);
        let log = self.log.lock();
        let about: Vec<&String> = log.iter().filter(|it| it.contains(key)).collect();
        let skipped = about.len().saturating_sub(n);
        about.into_iter().skip(skipped).cloned().collect()
    }

    fn retire(&self) -> Arc<Instance> {
        let former = self.current.borrow().clone().unwrap();
        former.ending.send_replace(true);
        self.current.send_replace(None);
        former
    }

    async fn launch(&self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        let file = self.dir().with_file_name("layerhold.toml");
        command
            .args(["serve", "--log-format", "json", "--config"])
            .arg(file)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (addresses, log) = (Arc::new(Mutex::new(Vec::new())), Arc::clone(&self.log));
        let heard = Arc::clone(&addresses);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if line.contains("\"listening\"") {
                    heard.lock().extend(address(&line));
                }
                let mut log = log.lock();
                log.push_back(line);
                if log.len() > LOG_MAX {
                    log.pop_front();
                }
            }
        });
        let front = poll("the process to listen", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{status}: {:#?}", self.log_about("", 5));
            }
            let addresses = addresses.lock();
            let of = |role: &str| addresses.iter().find(|(it, _)| it == role);
            Some(Front {
                registry: of("registry")?.1,
                admin: of("admin")?.1,
            })
        })
        .await;
        self.current.send_replace(Some(Arc::new(Instance {
            front,
            child: Mutex::new(child),
            ending: watch::Sender::new(false),
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            outcomes: Mutex::default(),
        })));
    }
}

impl Instance {
    /// Whether it was told to stop, or killed.
    pub(crate) fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    pub(crate) fn requests(&self) -> (u64, u64) {
        let answered = self.answered.load(Ordering::SeqCst);
        (answered, self.sent.load(Ordering::SeqCst))
    }

    /// A client had the head of an answer.
    pub(crate) fn has_answered(&self, head: &Head) {
        if let Some(outcome) = outcome(head.cache_status()) {
            *self.outcomes.lock().entry(outcome).or_default() += 1;
        }
        self.answered.fetch_add(1, Ordering::SeqCst);
    }

    /// How many answers of each outcome clients had.
    pub(crate) fn outcomes(&self) -> BTreeMap<&'static str, u64> {
        self.outcomes.lock().clone()
    }

    /// What it has open: files of the cache, by their names, and how much else.
    pub(crate) fn descriptors(&self) -> (Vec<String>, usize) {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap();
        let targets = open.filter_map(|it| std::fs::read_link(it.ok()?.path()).ok());
        let targets = targets.map(|it| it.to_string_lossy().into_owned());
        let (files, others): (Vec<_>, Vec<_>) = targets.partition(|it| it.contains("/cache/"));
        (files, others.len())
    }

    /// The most memory it ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let peak = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
        let kib = peak.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() << 10
    }

    fn id(&self) -> u32 {
        self.child.lock().id()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    async fn exited(&self) -> ExitStatus {
        poll("the process to exit", async || {
            self.child.lock().try_wait().unwrap()
        })
        .await
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let mut child = self.child.lock();
        // Gone already, or gone now: either is what is wanted.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Lines of all processes that are kept.
const LOG_MAX: usize = 100_000;

/// The role and the address in a line of the log.
fn address(line: &str) -> Option<(String, std::net::SocketAddr)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let role = field(&line, "role")?.as_str()?.to_owned();
    let address = field(&line, "address")?.as_str()?.parse().ok()?;
    Some((role, address))
}

/// The outcome that an answer's `Cache-Status` stands for, as metrics call it.
fn outcome(cache_status: &str) -> Option<&'static str> {
    match cache_status {
        "layerhold; hit" => Some("hit"),
        "layerhold; hit; detail=revalidated" => Some("revalidated"),
        "layerhold; fwd=miss; collapsed" => Some("join"),
        "layerhold; fwd=miss; stored" | "layerhold; fwd=miss" => Some("miss"),
        "layerhold; fwd=stale; detail=upstream-unavailable" => Some("stale"),
        "layerhold; fwd=bypass" => Some("bypass"),
        _ => None,
    }
}
