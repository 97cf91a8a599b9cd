//! What a process has, as the kernel says it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

use crate::harness::{Binary, KIB, MIB};

/// Resident memory in bytes, and open descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) memory: usize,
    pub(crate) descriptors: usize,
}

/// Waits for this test's turn, with all the descriptors that this process may have.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().await;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    turn
}

/// Looks until it is as wanted; `told` says what was seen last.
pub(crate) async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(told) if Instant::now() > deadline => panic!("{what}: {told}"),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

impl Usage {
    pub(crate) fn of(binary: &Binary) -> Self {
        let of_process = format!("/proc/{}", binary.pid().as_raw_nonzero());
        let status = fs::read_to_string(format!("{of_process}/status")).unwrap();
        let resident = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        let kib = resident.unwrap().trim().trim_end_matches(" kB");
        Self {
            memory: kib.parse::<usize>().unwrap() * KIB,
            descriptors: fs::read_dir(format!("{of_process}/fd")).unwrap().count(),
        }
    }

    /// Prints, and checks, what each of a crowd costs; what they all need once may be there besides.
    pub(crate) fn costs(self, before: Self, crowd: (&str, usize), memory: usize, descriptors: f64) {
        let (kind, n) = crowd;
        let more = self.memory.saturating_sub(before.memory);
        let open = self.descriptors.saturating_sub(before.descriptors);
        println!(
            "{n} {kind}: {} KiB and {} descriptors each; {} MiB in all, {} before",
            tenths(more * 10 / n / KIB),
            tenths(open * 10 / n),
            self.memory / MIB,
            before.memory / MIB,
        );
        let allowed = before.memory + ONCE_BYTES + n * memory;
        assert!(self.memory <= allowed, "{kind}: {self:?} after {before:?}");
        let allowed = n as f64 * descriptors + ONCE_DESCRIPTORS as f64;
        assert!(open as f64 <= allowed, "{kind}: {self:?} after {before:?}");
    }
}

/// Waits until a process has no more than `before`, but for what it may keep once and the connections that it keeps to
/// its upstream.
pub(crate) async fn is_as_before(binary: &Binary, before: Usage) {
    eventually("as before", async || {
        let now = Usage::of(binary);
        let is_back = now.memory <= before.memory + ONCE_BYTES
            && now.descriptors <= before.descriptors + ONCE_DESCRIPTORS;
        let connections = binary.metric("layerhold_connections", &[]).await;
        match is_back && connections == 0.0 {
            true => Ok(()),
            false => Err(format!(
                "{now:?}, {connections} connections, before {before:?}"
            )),
        }
    })
    .await;
}

/// Bytes that wait in the kernel to be sent from an address, by connection (`/proc/net/tcp`, `tx_queue`).
pub(crate) fn waiting_bytes(from: SocketAddr) -> Vec<usize> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", from.port());
    let rows = table
        .lines()
        .map(|it| it.split_whitespace().collect::<Vec<_>>());
    let ours = rows.filter(|it| it.get(1).is_some_and(|local| local.ends_with(&port)));
    // 01 is an established connection.
    let established = ours.filter(|it| it.get(3) == Some(&"01"));
    let queue = |it: Vec<&str>| usize::from_str_radix(it[4].split(':').next()?, 16).ok();
    established.filter_map(queue).collect()
}

/// How many descriptors of the process are of the file of a blob.
pub(crate) fn open_files(binary: &Binary, digest: &str) -> usize {
    let (_, hex) = digest.split_once(':').unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", binary.pid().as_raw_nonzero())).unwrap();
    // One may be gone meanwhile.
    let files = open.filter_map(|it| fs::read_link(it.unwrap().path()).ok());
    files.filter(|it| it.ends_with(hex)).count()
}

/// How many times each word comes.
pub(crate) fn counted<T: Ord>(words: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

fn tenths(n: usize) -> String {
    format!("{}.{}", n / 10, n % 10)
}

static TURN: Mutex<()> = Mutex::const_new(());
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);
/// What a process needs once it has had many clients, whatever their number: threads, buffers for the next ones, what the
/// allocator has not given back yet.
pub(crate) const ONCE_BYTES: usize = 64 * MIB;
/// Blobs that are kept open, connections to the registry, threads that wait.
pub(crate) const ONCE_DESCRIPTORS: usize = 128;
