//! A successor on the same directory, under load.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::crowd::blob_head;
use crate::harness::{
    APP, At, Binary, Blob, Connection, End, FakeRegistry, MIB, TestProxy, get, poll,
};
use crate::process::{eventually, turn};

/// What the clients know.
struct Load {
    blobs: Vec<Blob>,
    /// Where they pull: one process' address after the other's.
    address: SocketAddr,
    is_over: AtomicBool,
    pulled: AtomicUsize,
    again: AtomicUsize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_12_pitfall_50_a_successor_takes_over_under_load() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    // What the predecessor still brings, the successor may ask for, too.
    upstream.allow_concurrent_transfers();
    let builder = TestProxy::in_front_of(&upstream);
    let first = Binary::start(&builder).await;
    let blobs: Vec<Blob> = (0..40).map(|_| Blob::random(2 * MIB)).collect();
    for blob in &blobs {
        upstream.serve_blob(APP, blob);
    }
    let kept = &blobs[0];
    first.wait_for_hit(APP, kept).await;
    let held = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &held);
    let gate = upstream.hold(get(held.digest()), At::Byte(4 * MIB));
    let mut under_way = first.blob(APP, held.digest()).send().await;
    gate.reached().await;

    let load = Load {
        blobs: blobs.clone(),
        address: first.registry,
        is_over: AtomicBool::new(false),
        pulled: AtomicUsize::new(0),
        again: AtomicUsize::new(0),
    };
    let clients = join_all((0..CLIENTS).map(|n| load.pull(n)));
    let operator = async {
        load.more_pulls(100).await;
        first.terminate();
        poll("readiness to fail", async || {
            let ready = first.admin("/readyz").await;
            (ready.head.status == 503).then_some(())
        })
        .await;
        // The first has left the address already.
        let listen = vec![first.registry.to_string()];
        let second = Binary::start(&builder.clone().set("listen", listen)).await;
        // At once, and from the disk.
        let asked = upstream.count(&get(kept.digest()));
        let head = second.pull_blob(APP, kept).await;
        assert_eq!(head.cache_status(), "layerhold; hit");
        assert_eq!(upstream.count(&get(kept.digest())), asked);
        // What is under way ends whole, while the other process serves already.
        load.more_pulls(100).await;
        under_way.read(MIB).await;
        gate.open();
        under_way.continues(&held, MIB).await;
        assert_eq!(first.exited().await.code(), Some(0));
        load.more_pulls(100).await;
        load.is_over.store(true, Ordering::SeqCst);
        second.wait_for_hit(APP, &held).await;
        second
    };
    let (_, second) = tokio::join!(clients, operator);
    let (pulled, again) = (&load.pulled, &load.again);
    println!("{pulled:?} pulls, {again:?} of them asked again");
    second.terminate();
    assert_eq!(second.exited().await.code(), Some(0));
}

impl Load {
    /// One client, which never gives up and takes nothing that is wrong.
    async fn pull(&self, n: u64) {
        let mut choices = SmallRng::seed_from_u64(n);
        while !self.is_over.load(Ordering::SeqCst) {
            let blob = &self.blobs[choices.random_range(0..self.blobs.len())];
            while !self.attempt(blob).await {
                self.again.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_millis(20)).await;
            }
            self.pulled.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Whether there was an answer. One that has begun must be whole.
    async fn attempt(&self, blob: &Blob) -> bool {
        // Not there, or closed before the request was read: what every client tries again.
        // (From an address of their own: a port that nobody listens at could be taken for a client's end.)
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 254));
        let connecting = Connection::try_open_from(source, self.address);
        let Ok(mut connection) = connecting.await else {
            return false;
        };
        let head = blob_head(blob);
        if connection.write(head.as_bytes()).await.is_err() {
            return false;
        }
        let Ok(answer) = connection.try_head("GET").await else {
            return false;
        };
        let whole = answer.whole().await;
        assert_eq!(
            (whole.head.status, whole.end),
            (200, End::Complete),
            "{}",
            whole.text()
        );
        assert!(whole.bytes == *blob.bytes());
        true
    }

    async fn more_pulls(&self, n: usize) {
        let before = self.pulled.load(Ordering::SeqCst);
        eventually("more pulls", async || {
            let now = self.pulled.load(Ordering::SeqCst);
            (now >= before + n)
                .then_some(())
                .ok_or(format!("{now} after {before}"))
        })
        .await;
    }
}

const CLIENTS: u64 = 24;
