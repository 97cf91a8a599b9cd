//! Files that are taken away, lost from memory, or cut short, while they are being sent.

use std::fs::{File, OpenOptions};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rustix::fs::{Advice, fadvise};
use tokio::time::{Instant, sleep};

use crate::content::Content;
use crate::harness::{APP, Connection, End, KIB, MIB};
use crate::process::turn;
use crate::scene::{Counted, Scene, Way, ask, choices};
use crate::{CLIENTS, LENS, is_small, run_length, seed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_right_while_blobs_are_evicted_and_purged() {
    let _turn = turn().await;
    // A third of them fits.
    let lens: Vec<u64> = (0..24)
        .map(|n| (1 << 20) * (2 + n % 9) + n * 1000)
        .collect();
    let change = |it: crate::harness::ProxyBuilder| it.set("cache.size", "48MiB");
    let scene = Arc::new(Scene::start(seed(), (Way::Plain, &lens), change).await);
    scene.crowd(CLIENTS, Duration::from_millis(500)).await;
    let (before, used) = (
        Counted::by(&scene.binary).await,
        crate::Usage::of(&scene.binary),
    );
    scene.tally.reset();
    let purging = async {
        let (mut choices, until) = (choices(scene.seed, 0), Instant::now() + run_length());
        while Instant::now() < until {
            let content = &scene.contents[choices.random_range(0..lens.len())];
            scene.binary.purge(content.digest()).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(purging, scene.crowd(CLIENTS, run_length()));
    let counted = Counted::by(&scene.binary).await;
    counted.agrees(before, &scene.tally);
    assert!(counted.hits > before.hits, "{counted:?}");
    let evicted = scene.binary.metric("layerhold_evictions_total", &[]).await;
    println!("{evicted} evicted, {} transfers", scene.source.transfers());
    assert!(evicted > 0.0);
    is_small(&scene, used).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_right_while_the_page_cache_loses_it() {
    let _turn = turn().await;
    let scene = Arc::new(Scene::start(seed(), (Way::Plain, LENS), |it| it).await);
    scene.warm().await;
    scene.crowd(CLIENTS, Duration::from_millis(500)).await;
    let files: Vec<(File, u64)> = scene
        .contents
        .iter()
        .map(|it| (File::open(scene.file(it)).unwrap(), it.len()))
        .collect();
    for (file, _) in &files {
        // What is not on the disk cannot be lost.
        file.sync_all().unwrap();
    }
    let (before, used) = (
        Counted::by(&scene.binary).await,
        crate::Usage::of(&scene.binary),
    );
    let read_before = disk_bytes(&scene);
    scene.tally.reset();
    let losing = async {
        let (mut choices, until) = (choices(scene.seed, 0), Instant::now() + run_length());
        while Instant::now() < until {
            let (file, len) = &files[choices.random_range(0..files.len())];
            let at = choices.random_range(0..*len);
            // A stretch of it, or all the rest.
            let some = NonZeroU64::new(1 << choices.random_range(12..26));
            let some = some.filter(|_| choices.random());
            fadvise(file, at, some, Advice::DontNeed).unwrap();
            sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::join!(losing, scene.crowd(CLIENTS, run_length()));
    let counted = Counted::by(&scene.binary).await;
    counted.agrees(before, &scene.tally);
    let read = disk_bytes(&scene) - read_before;
    let sent = counted.by_kernel - before.by_kernel;
    println!(
        "{:.0} MiB by the kernel alone, {} MiB from the disk",
        sent / MIB as f64,
        read >> 20
    );
    // Both ways were gone.
    assert!(sent > 0.0 && read > 16 << 20);
    is_small(&scene, used).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_cut_short_under_its_readers_gives_nobody_a_wrong_byte() {
    let _turn = turn().await;
    let lens = [40 << 20, (40 << 20) + 1, (41 << 20) + 4095];
    let scene = Arc::new(Scene::start(seed(), (Way::Plain, &lens), |it| it).await);
    scene.warm().await;
    let mut choices = choices(scene.seed, 0);
    scene.source.go_away();
    for content in &scene.contents {
        // What is in the kernel for a client is in the file's own pages, so it is cut behind all of that.
        let cut = choices.random_range(24 << 20..content.len());
        let mut readers = Vec::new();
        for n in 0..CLIENTS {
            let start = choices.random_range(0..8 << 20);
            let mut answer = ask(scene.open().await, content, start).await;
            let begun = answer.read(usize::try_from(n).unwrap() * 16 * KIB).await;
            assert_eq!(content.differs(start, &begun), None);
            readers.push((answer, start + begun.len() as u64));
        }
        let file = OpenOptions::new().write(true).open(scene.file(content));
        file.unwrap().set_len(cut).unwrap();
        for (mut answer, mut at) in readers {
            let end = loop {
                match answer.piece().await {
                    Ok(piece) => {
                        assert_eq!(content.differs(at, &piece), None, "{cut} left");
                        at += piece.len() as u64;
                    }
                    Err(end) => break end,
                }
            };
            assert_ne!(end, End::Complete);
            assert!(at <= cut, "{at} of {cut}");
        }
        nobody_gets(&scene, content).await;
    }
    let n = lens.len() as f64;
    let quarantined = scene.binary.metric("layerhold_quarantined_total", &[]);
    assert_eq!(quarantined.await, n);
    let failed = Counted::by(&scene.binary).await.failed;
    assert!(failed >= n * CLIENTS as f64, "{failed}");
    scene.nobody_is_left().await;
}

/// Bytes that the binary's process has had read from the disk.
fn disk_bytes(scene: &Scene) -> u64 {
    let pid = scene.binary.pid().as_raw_nonzero();
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = text.lines().find_map(|it| it.strip_prefix("read_bytes: "));
    line.unwrap().parse().unwrap()
}

/// What was set aside is not there any more.
async fn nobody_gets(scene: &Scene, content: &Content) {
    let whole = scene.binary.blob(APP, content.digest()).whole().await;
    assert!(whole.head.status >= 500, "{:?}", whole.head);
    let mut ping = Connection::open(scene.binary.registry).await;
    ping.write(b"GET /v2/ HTTP/1.1\r\nHost: cache\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(ping.head("GET").await.head.status, 200);
}
