//! P9: how long the head of a cold blob takes, beside that of the registry it comes from.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{LAYERHOLD, Stage};
use crate::lab::blob::Blob;
use crate::lab::block::{Block, Column};
use crate::lab::load::{Load, millis};
use crate::lab::summary::Summary;
use crate::lab::verdicts::Target::AtMost;
use crate::lab::verdicts::Verdicts;
use crate::peers::{Cache, PEERS};

/// In each round some blobs that nobody has seen, one after the other, each over a new connection.
pub(crate) fn heads(stage: &Stage<'_>, verdicts: &mut Verdicts) {
    let rounds = stage.args.rounds();
    let mut seeds = SEEDS..;
    let blobs: Vec<Vec<Cold>> = (0..rounds)
        .map(|_| {
            seeds
                .by_ref()
                .take(BLOBS)
                .map(|it| Cold::put(stage, it))
                .collect()
        })
        .collect();
    let mut caches = vec![(
        LAYERHOLD,
        Cache::layerhold(stage.upstream.address, &stage.args.log_level),
    )];
    let peers = PEERS.iter().filter(|it| it.is_installed());
    caches.extend(peers.map(|it| (it.name, (it.start)(stage.upstream.address))));
    let title = format!("P9: heads of {BLOBS} cold blobs of {} MiB", SIZE >> 20);
    let mut block = Block::new(title, COLUMNS, DIRECT);
    for (name, cache) in &caches {
        let mut rounds = blobs.iter();
        block.enter(*name, move || turn(cache.address, rounds.next().unwrap()));
    }
    let mut rounds_direct = blobs.iter();
    block.enter(DIRECT, move || {
        turn(stage.upstream.address, rounds_direct.next().unwrap())
    });
    block.run(rounds);
    let later = block.difference(LAYERHOLD, DIRECT, P50);
    verdicts.add(
        "P9",
        "ms to the head beyond upstream's own",
        AtMost(2.0),
        later,
    );
}

/// A blob that is in no cache.
struct Cold {
    path: String,
    digest: String,
}

impl Cold {
    fn put(stage: &Stage<'_>, seed: u64) -> Self {
        let blob = Arc::new(Blob::new(seed, SIZE));
        Self {
            path: stage.upstream.put_blob(&blob),
            digest: blob.digest.clone(),
        }
    }
}

fn turn(from: SocketAddr, blobs: &[Cold]) -> [f64; 2] {
    let heads = blobs.iter().map(|blob| {
        let load = Load {
            from,
            path: &blob.path,
            clients: 1,
            threads: 1,
            length: SIZE,
            digest: Some(&blob.digest),
            tls: None,
        };
        millis(load.pull().responses[0].first_byte)
    });
    let heads = Summary::of(heads);
    [heads.median(), heads.max()]
}

const DIRECT: &str = "(upstream)";
/// A round's.
const BLOBS: usize = 10;
const SIZE: u64 = 4 << 20;
/// Other blobs have smaller ones.
const SEEDS: u64 = 1000;

const P50: usize = 0;
const COLUMNS: [Column; 2] = [
    Column::plain("first byte p50 ms", 2),
    Column::plain("max ms", 2),
];
