//! What many clients of one blob cost, however large it is.

use std::sync::Arc;

use rand::Rng;
use tokio::task::JoinSet;

use crate::content::Content;
use crate::harness::{KIB, MIB};
use crate::process::{Usage, turn};
use crate::scene::{Scene, Way, ask, choices};
use crate::seed;
use crate::source::Pace;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_49_many_clients_of_a_huge_blob_cost_what_those_of_a_small_one_do() {
    let _turn = turn().await;
    for way in [Way::Plain, Way::Tls] {
        let mut peaks = Vec::new();
        for len in [64 << 20, HUGE_BYTES] {
            let (cold, hit) = peaks_of(way, len).await;
            println!(
                "{way:?}, {CLIENTS} clients of {} MiB: {} MiB while it came in, {} MiB after",
                len >> 20,
                cold / MIB,
                hit / MIB
            );
            assert!(hit <= 64 * MIB + CLIENTS * 256 * KIB, "{} MiB", hit / MIB);
            peaks.push((cold, hit));
        }
        let flat = peaks[0].0.max(peaks[0].1) + 16 * MIB;
        assert!(peaks[1].1 <= flat, "{peaks:?}");
    }
}

/// Clients pull a blob of this length while it comes in, and others when it is there: the most memory so far, each time.
async fn peaks_of(way: Way, len: u64) -> (usize, usize) {
    let scene = Arc::new(Scene::start(seed(), (way, &[]), |it| it).await);
    let content = Content::new(choices(scene.seed, 0).random(), len);
    scene.source.serve(&content, Pace::Even);
    let idle = Usage::of(&scene.binary);
    crowd(&scene, &content).await;
    let cold = scene.binary.peak_memory();
    scene.pull(&content).await;
    assert!(scene.pull(&content).await.starts_with("layerhold; hit"));
    crowd(&scene, &content).await;
    let open = Usage::of(&scene.binary).descriptors - idle.descriptors;
    // It is opened once for all of them.
    assert!(open < CLIENTS, "{open} descriptors");
    (cold, scene.binary.peak_memory())
}

/// Everybody takes some, from anywhere, of one who takes all.
async fn crowd(scene: &Arc<Scene>, content: &Content) {
    let mut tasks = JoinSet::new();
    for n in 0..CLIENTS as u64 {
        let (scene, content) = (Arc::clone(scene), content.clone());
        tasks.spawn(async move { take(&scene, &content, n).await });
    }
    scene.pull(content).await;
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    scene.nobody_is_left().await;
}

async fn take(scene: &Scene, content: &Content, n: u64) {
    let start = choices(scene.seed, n).random_range(0..content.len() - SHARE_BYTES);
    let mut answer = ask(scene.open().await, content, start).await;
    let mut at = start;
    while at < start + SHARE_BYTES {
        let piece = answer.piece().await.unwrap();
        assert_eq!(content.differs(at, &piece), None);
        at += piece.len() as u64;
    }
}

const CLIENTS: usize = 64;
const SHARE_BYTES: u64 = 16 << 20;
const HUGE_BYTES: u64 = 512 << 20;
