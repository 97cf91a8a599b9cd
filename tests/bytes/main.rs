//! Every byte that clients get, whichever way it comes to them, at the real binary.
//!
//! ```text
//! cargo test --release --test bytes                   # each run some seconds long, from a new seed, which is printed
//! BYTES_SEED=7 BYTES_SECONDS=120 cargo test --release --test bytes a_part_of_a_name -- --nocapture
//! ```
//!
//! Two dozen clients ask, over connections that they keep, for ranges of a byte to twenty megabytes in every form, several
//! ranges at once, whole blobs, heads, manifests, and what is not there; alone or up to twelve at a time; some are slow, and
//! some leave in the middle (`client`). Each byte of each body is compared with what it must be, which follows from its place
//! (`content`), so that nobody keeps a blob to compare with. At the end what was counted agrees with what clients got, no
//! descriptor is left open, and memory was never much (`scene`).
//!
//! So it is in the clear and over TLS, with blobs that are arriving (`cold`), while blobs are evicted and purged and the page
//! cache loses what is being sent (`trouble`).
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot set up has failed"
)]
#![expect(
    clippy::print_stdout,
    reason = "seeds are printed, and what was measured"
)]

mod cold;
mod streams;
mod trouble;
mod fallback;
mod memory;
mod far;
mod client;
mod scene;
mod source;
mod tun;
mod content;

#[path = "../load/process.rs"]
#[allow(dead_code, reason = "it is made for other tests, which need all of it")]
mod process;

#[path = "../it/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "it is made for other tests, which need all of it"
)]
mod harness;

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use crate::harness::{KIB, MIB};
use crate::process::{Usage, eventually, turn};
use crate::scene::{Counted, Scene, Way};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_right_in_the_clear() {
    let _turn = turn().await;
    all_is_right(Way::Plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_right_over_tls() {
    let _turn = turn().await;
    all_is_right(Way::Tls).await;
}

/// Clients pull what is in the cache: what they get, what is counted, and what it costs.
async fn all_is_right(way: Way) {
    let scene = Arc::new(Scene::start(seed(), (way, LENS), |it| it).await);
    scene.warm().await;
    // What the process needs once it has had many of them.
    scene.crowd(CLIENTS, Duration::from_millis(500)).await;
    let (before, used) = (Counted::by(&scene.binary).await, Usage::of(&scene.binary));
    scene.tally.reset();

    scene.crowd(CLIENTS, run_length()).await;
    let counted = Counted::by(&scene.binary).await;
    counted.agrees(before, &scene.tally);
    let (sent, large) = (counted.by_kernel - before.by_kernel, scene.tally.large());
    println!("{:.0} MiB of them by the kernel alone", sent / MIB as f64);
    match way {
        // Now and then the page cache says that it lacks what it has.
        Way::Plain => assert!(sent >= 0.8 * large, "{sent} of {large}"),
        Way::Tls => assert_eq!(sent, 0.0),
    }
    is_small(&scene, used).await;
}

/// Nothing stays open, and memory was never much.
async fn is_small(scene: &Scene, before: Usage) {
    eventually("descriptors as before", async || {
        let now = Usage::of(&scene.binary);
        let more = now.descriptors.saturating_sub(before.descriptors);
        // Connections to the registry, at most.
        match more <= usize::try_from(CLIENTS).unwrap() {
            true => Ok(()),
            false => Err(format!("{now:?} after {before:?}")),
        }
    })
    .await;
    let peak = scene.binary.peak_memory();
    println!(
        "{} MiB at most, {} MiB before",
        peak / MIB,
        before.memory / MIB
    );
    let allowed = 64 * MIB + usize::try_from(CLIENTS).unwrap() * 256 * KIB;
    assert!(peak <= allowed, "{} MiB", peak / MIB);
}

/// What is printed, so that it can be had again.
fn seed() -> u64 {
    let seed = number("BYTES_SEED").unwrap_or_else(|| rand::rng().random_range(0..1 << 32));
    println!("BYTES_SEED={seed}");
    seed
}

/// How long clients pull.
fn run_length() -> Duration {
    Duration::from_secs(number("BYTES_SECONDS").unwrap_or(3))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

const CLIENTS: u64 = 24;
/// Blobs of a byte and up, at the border between small and large, and far beyond it.
const LENS: &[u64] = &[
    1,
    4 << 10,
    300_000,
    (1 << 20) - 1,
    1 << 20,
    (1 << 20) + 1,
    6_000_001,
    (20 << 20) + 77,
    (33 << 20) + 4096,
    (64 << 20) + 12_345,
];
