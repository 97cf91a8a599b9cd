//! A minute of everything at once: the real binary between clients and upstreams that all misbehave.
//!
//! ```text
//! cargo test --test chaos                        # a minute, from a new seed, which is printed
//! CHAOS_SECONDS=600 CHAOS_SEED=7 cargo test --test chaos -- --nocapture
//! ```
//!
//! Two registries and a mirror of the first serve a working set of more than ten times the cache's budget. Clients pull
//! blobs, manifests, tags and lists at random, whole and in ranges; some leave, some are slow, some come in herds, and
//! some ask for what their repository does not hold. Meanwhile tags move and vanish, upstreams fail in every way that the
//! fake knows, an operator purges and reloads, and the process is stopped, succeeded, killed and started again.
//!
//! What is chosen follows from the seed; how it interleaves does not. So nothing is expected at a moment: the model
//! remembers what was so in which interval (`timeline`, `trouble`), and each answer is judged by the time between its
//! request and its end (`judge`):
//!
//! - a body that ends as promised has the bytes of its digest, or exactly the range of them that was asked for;
//! - a tag says what upstream had under it in that time, or is marked stale while upstream was in trouble, and no stale
//!   answer is older than a purge;
//! - 404 is upstream's own word; what a repository does not hold is not served there, whoever else pulled it;
//! - failures come only from upstreams in trouble and from processes that end; 500 never; no head comes later than
//!   `timeouts.answer` allows.
//!
//! Ranges that end before the last byte are not verified, which the README says: while upstream lies about a blob, they may be
//! wrong. Every scrape must find the budget held (`watch`). At the end the trouble is over: what was counted adds up,
//! nothing leaks, the disk holds only what it should, and everything pulls right (`finish`).
//!
//! A violation prints the seed, what happened to the same object before, and what the process logged about it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot set up has failed"
)]
#![expect(clippy::print_stdout, reason = "seeds and violations are printed")]

mod finish;
mod client;
mod operator;
mod damage;
mod weather;
mod watch;
mod judge;
mod world;
mod trouble;
mod timeline;
mod fleet;
mod journal;

#[path = "../it/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "it is made for other tests, which need all of it"
)]
mod harness;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;

use crate::fleet::Fleet;
use crate::journal::Journal;
use crate::world::World;

/// What every task of the run knows.
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) world: World,
    pub(crate) fleet: Fleet,
    pub(crate) journal: Journal,
    over: channel::Sender<bool>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos() {
    let seed = number("CHAOS_SEED").unwrap_or_else(|| rand::rng().random_range(0..1 << 32));
    let length = Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(60));
    println!("CHAOS_SEED={seed}, {length:?}");
    let world = World::new(seed).await;
    let fleet = Fleet::start(&world).await;
    let run = Arc::new(Run {
        seed,
        world,
        fleet,
        journal: Journal::default(),
        over: channel::Sender::new(false),
    });
    let mut tasks = JoinSet::new();
    for n in 0..CLIENTS {
        tasks.spawn(client::pull_until_over(Arc::clone(&run), n));
    }
    for n in 0..3 {
        tasks.spawn(weather::at_place(Arc::clone(&run), n));
    }
    tasks.spawn(weather::of_tags(Arc::clone(&run)));
    tasks.spawn(watch::scrape(Arc::clone(&run)));
    tasks.spawn(watch::stalls(Arc::clone(&run)));
    let mut broken = run.journal.broken();
    let time = async {
        // Whichever comes first: time, or more wrong than anybody reads.
        let _ = tokio::time::timeout(length, broken.wait_for(|it| *it)).await;
        run.over.send_replace(true);
    };
    tokio::join!(time, operator::work(&run, length.mul_f64(0.7)));
    while let Some(ended) = tasks.join_next().await {
        if let Err(panic) = ended {
            run.journal.violation(&run, "a task", &format!("{panic}"));
        }
    }
    finish::check(&run).await;
    run.journal.conclude(seed);
}

impl Run {
    /// Whether the time is up.
    pub(crate) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Waits this long, or until the time is up.
    pub(crate) async fn pause(&self, pause: Duration) {
        let mut over = self.over.subscribe();
        // Either way it is time to go on.
        let _ = tokio::time::timeout(pause, over.wait_for(|it| *it)).await;
    }

    /// The choices of one task.
    pub(crate) fn choices(&self, task: u64) -> SmallRng {
        SmallRng::seed_from_u64(self.seed.wrapping_mul(0x9e37_79b9).wrapping_add(task))
    }
}

/// Clients that pull at once; herds come on top.
const CLIENTS: u64 = 24;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}
