//! Ten times what there is room for, pulled by many at once, through processes that are killed and replaced meanwhile: the
//! budget holds at any moment, in the metrics and on the disk, and every answer is right or honestly cut off.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::harness::proxy::{Front, sum};
use crate::harness::{
    APP, Answer, Binary, Blob, End, FakeRegistry, Image, KIB, MIB, ProxyBuilder, Request, TestProxy,
};

const LIMIT: u64 = 6 << 20;

/// What is in the directory besides what counts: two small files of our own, and records that are written anew beside the
/// old ones.
const BESIDES: u64 = 16 << 10;
const CLIENTS: u64 = 12;

/// What everybody knows.
struct Storm {
    blobs: Vec<Blob>,
    images: Vec<Image>,
    /// Where to pull from.
    front: watch::Receiver<Front>,
    /// Counted up when a process is about to end, and again when the next has taken over.
    ended: AtomicUsize,
    is_over: AtomicBool,
    seen: Seen,
}

/// How often what matters happened, so that a run that tests nothing fails.
#[derive(Default)]
struct Seen {
    hits: AtomicUsize,
    misses: AtomicUsize,
    joins: AtomicUsize,
    ranges: AtomicUsize,
    cut: AtomicUsize,
}

#[tokio::test]
async fn invariant_07_the_budget_holds_in_a_storm() {
    let seed: u64 = rand::random();
    println!("storm of seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let upstream = FakeRegistry::start().await;
    // Who goes around the cache pulls beside a fill, and after a kill the fill of before may still be sent.
    upstream.allow_concurrent_transfers();
    let (blobs, images) = working_set(&upstream, &mut random);
    let builder = TestProxy::in_front_of(&upstream)
        .set("cache.size", "6MiB")
        .set("timeouts.drain", "2s");
    let binary = Binary::start(&builder).await;
    let (front, fronts) = watch::channel(*binary);
    let storm = Arc::new(Storm {
        blobs,
        images,
        front: fronts,
        ended: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
        seen: Seen::default(),
    });

    let clients = (0..CLIENTS).map(|n| {
        let random = SmallRng::seed_from_u64(seed ^ (n + 1));
        tokio::spawn(pull(Arc::clone(&storm), random))
    });
    let clients: Vec<JoinHandle<()>> = clients.collect();
    let metrics = tokio::spawn(watch_metrics(Arc::clone(&storm)));
    let (watched, dir) = (Arc::clone(&storm), builder.dir());
    let disk = tokio::task::spawn_blocking(move || watch_disk(&watched, &dir));
    let last = replace_again_and_again(&storm, &builder, binary, &front, &mut random).await;
    let evicted = last.metric("layerhold_evictions_total", &[]).await;
    storm.is_over.store(true, Ordering::SeqCst);
    for ended in join_all(clients).await {
        ended.unwrap();
    }
    metrics.await.unwrap();
    let most = disk.await.unwrap();

    let seen = &storm.seen;
    let counts = [&seen.hits, &seen.misses, &seen.joins, &seen.ranges];
    let counts = counts.map(|it| it.load(Ordering::SeqCst));
    println!("hits, misses, joins, ranges: {counts:?}, {evicted} evicted, at most {most} bytes");
    assert!(counts.iter().all(|it| *it > 0) && evicted > 0.0);
    assert!(most > LIMIT / 2, "it was never full");
    last.terminate();
    assert_eq!(last.exited().await.code(), Some(0));
    let file = builder.file();
    let verified = Binary::command(&["verify", "--config", file.to_str().unwrap()]).await;
    assert_eq!(verified.0, Some(0), "{verified:?}");
}

/// Blobs of all sizes, the larger the rarer, ten times the budget; and some images.
fn working_set(upstream: &FakeRegistry, random: &mut SmallRng) -> (Vec<Blob>, Vec<Image>) {
    let sizes = [
        (100, 40 * KIB),
        (80, 500 * KIB),
        (12, 2 * MIB),
        (3, 4 * MIB),
    ];
    let mut blobs = Vec::new();
    for (count, most) in sizes {
        for _ in 0..count {
            let len = random.random_range(most / 2..most);
            blobs.push(Blob::seeded(random.random(), len));
        }
    }
    let bytes: usize = blobs.iter().map(Blob::len).sum();
    assert!(bytes as u64 > 8 * LIMIT, "{bytes}");
    let images: Vec<Image> = (0..10).map(|_| Image::random(&[KIB])).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    for (n, image) in images.iter().enumerate() {
        upstream.serve_image(APP, &format!("v{n}"), image);
    }
    (blobs, images)
}

/// Ends the process that runs in one way or another and starts the next, some times over; gives the last one.
async fn replace_again_and_again(
    storm: &Storm,
    builder: &ProxyBuilder,
    mut binary: Binary,
    front: &watch::Sender<Front>,
    random: &mut SmallRng,
) -> Binary {
    for how in 0..LIVES {
        sleep(Duration::from_millis(random.random_range(1000..2500))).await;
        // From here on answers may be cut off.
        storm.ended.fetch_add(1, Ordering::SeqCst);
        let next = match how % 3 {
            0 => {
                binary.kill().await;
                Binary::start(builder).await
            }
            1 => {
                binary.terminate();
                let next = Binary::start(builder).await;
                front.send_replace(*next);
                assert_eq!(binary.exited().await.code(), Some(0));
                next
            }
            _ => {
                binary.terminate();
                assert_eq!(binary.exited().await.code(), Some(0));
                Binary::start(builder).await
            }
        };
        front.send_replace(*next);
        binary = next;
        storm.ended.fetch_add(1, Ordering::SeqCst);
    }
    sleep(Duration::from_millis(1500)).await;
    binary
}

/// One client, until it is over.
async fn pull(storm: Arc<Storm>, mut random: SmallRng) {
    while !storm.is_over.load(Ordering::SeqCst) {
        // In this order: who pulls from the new process must not have counted it as one that ends.
        let ended = storm.ended.load(Ordering::SeqCst);
        let front = *storm.front.borrow();
        let is_right = match random.random_range(0..10) {
            0 => pull_image(&storm, front, &mut random).await,
            1..=4 => pull_range(&storm, front, &mut random).await,
            _ => pull_blob(&storm, front, &mut random).await,
        };
        // What was cut off must have had a reason.
        let had_reason = ended % 2 == 1 || storm.ended.load(Ordering::SeqCst) != ended;
        assert!(is_right || had_reason, "cut off without a reason");
        if !is_right {
            storm.seen.cut.fetch_add(1, Ordering::SeqCst);
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether a manifest came, which is right then.
async fn pull_image(storm: &Storm, front: Front, random: &mut SmallRng) -> bool {
    let n = random.random_range(0..storm.images.len());
    let manifest = &storm.images[n].manifest;
    let reference = match random.random_bool(0.5) {
        true => manifest.digest().to_owned(),
        false => format!("v{n}"),
    };
    let answer = front.manifest(APP, &reference).try_send().await;
    came(answer.ok(), 200, manifest.bytes(), random).await
}

async fn pull_blob(storm: &Storm, front: Front, random: &mut SmallRng) -> bool {
    let blob = storm.some_blob(random);
    let answer = front.blob(APP, blob.digest()).try_send().await.ok();
    let status = answer.as_ref().map(|it| it.head.cache_status().to_owned());
    let counter = match status.as_deref() {
        Some("layerhold; hit") => Some(&storm.seen.hits),
        Some("layerhold; fwd=miss; stored") => Some(&storm.seen.misses),
        Some("layerhold; fwd=miss; collapsed") => Some(&storm.seen.joins),
        Some(_) | None => None,
    };
    counter.map(|it| it.fetch_add(1, Ordering::SeqCst));
    came(answer, 200, blob.bytes(), random).await
}

async fn pull_range(storm: &Storm, front: Front, random: &mut SmallRng) -> bool {
    let blob = storm.some_blob(random);
    let first = random.random_range(0..blob.len());
    let last = random.random_range(first..blob.len());
    let (asked, expected) = match random.random_bool(0.5) {
        true => (format!("bytes={first}-{last}"), first..last + 1),
        false => (format!("bytes={first}-"), first..blob.len()),
    };
    let request: Request = front.blob(APP, blob.digest()).range(&asked);
    let answer = request.try_send().await.ok();
    storm.seen.ranges.fetch_add(1, Ordering::SeqCst);
    came(answer, 206, &blob.bytes()[expected], random).await
}

/// Whether all of `expected` came; what came of it must be right. Some take their time, and some leave.
async fn came(answer: Option<Answer>, status: u16, expected: &[u8], random: &mut SmallRng) -> bool {
    let Some(mut answer) = answer else {
        return false;
    };
    if answer.head.status >= 500 {
        return false;
    }
    assert_eq!(answer.head.status, status, "{:?}", answer.head);
    let (is_slow, leaves) = (random.random_bool(0.2), random.random_bool(0.1));
    let mut at = 0;
    loop {
        match answer.piece().await {
            Ok(piece) => {
                let right = expected.get(at..at + piece.len());
                assert!(right == Some(&*piece), "wrong bytes from {at} on");
                at += piece.len();
            }
            Err(End::Complete) => {
                assert_eq!(at, expected.len(), "{:?}", answer.head);
                return true;
            }
            Err(End::Cut | End::Reset) => return false,
        }
        if leaves {
            return true;
        }
        if is_slow {
            sleep(Duration::from_millis(30)).await;
        }
    }
}

impl Storm {
    /// The first of each size are asked for most.
    fn some_blob(&self, random: &mut SmallRng) -> &Blob {
        let [a, b] = [(); 2].map(|()| random.random_range(0..self.blobs.len()));
        let n = a.min(b);
        // Spread over all sizes.
        &self.blobs[n * 67 % self.blobs.len()]
    }
}

/// Used and reserved are within the limit in every scrape.
async fn watch_metrics(storm: Arc<Storm>) {
    while !storm.is_over.load(Ordering::SeqCst) {
        let front = *storm.front.borrow();
        let scrape = Request::new(front.admin, "GET", "/metrics");
        if let Ok(answer) = scrape.try_send().await {
            let whole = answer.whole().await;
            let text = whole.text();
            let bytes = |state| sum(&text, "layerhold_cache_bytes", &[("state", state)]);
            let (used, reserved) = (bytes("used"), bytes("reserved"));
            assert!(
                used + reserved <= LIMIT as f64,
                "{used} used and {reserved} reserved"
            );
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// The directory has no more bytes than the limit and a little besides; gives the most there were.
fn watch_disk(storm: &Storm, dir: &Path) -> u64 {
    let mut most = 0;
    while !storm.is_over.load(Ordering::SeqCst) {
        let bytes = bytes_at_once(dir);
        assert!(bytes <= LIMIT + BESIDES, "{bytes} bytes on disk");
        most = most.max(bytes);
        std::thread::sleep(Duration::from_millis(2));
    }
    most
}

/// Bytes that were in the directory at one moment, or fewer: files only grow, so what was seen of a file that is still there
/// afterwards was there between the two looks.
fn bytes_at_once(dir: &Path) -> u64 {
    let (mut before, mut after) = (HashMap::new(), HashMap::new());
    look(dir, &mut before);
    look(dir, &mut after);
    before.retain(|file, _| after.contains_key(file));
    before.values().sum()
}

/// The lengths of all files. Numbers of files are given again, times at which they were made are not.
fn look(dir: &Path, files: &mut HashMap<(u64, SystemTime), u64>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            look(&path, files);
        } else {
            let made = metadata.created().unwrap_or(SystemTime::UNIX_EPOCH);
            files.insert((metadata.ino(), made), metadata.len());
        }
    }
}

const LIVES: usize = 6;
