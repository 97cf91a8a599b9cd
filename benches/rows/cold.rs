//! What is in no cache yet: one blob through an empty one, to one client and to many at once.
//!
//! On this hangs how a fill feeds its followers, how much of the blob it keeps in memory, and how often the bytes are
//! copied. Each turn has a fresh server with a fresh directory.

use std::net::SocketAddr;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::{LAYERHOLD, Stage};
use crate::lab::blob::Hasher;
use crate::lab::block::{Block, Column};
use crate::lab::load::{Load, gib};
use crate::lab::upstream::Upstream;
use crate::lab::verdicts::Target::{AtLeast, AtMost};
use crate::lab::verdicts::Verdicts;
use crate::peers::{Cache, PEERS};

/// P7: one client, beside what it would take to download from the registry itself, over a link that is open and over one of
/// 1 Gb/s.
pub(crate) fn one_client(stage: &Stage<'_>, verdicts: &mut Verdicts) {
    let title = format!("P7: cold blob of {} MiB, 1 client", stage.blob_mib());
    let cold = Cold::new(stage, &stage.upstream, 1);
    let mut block = Block::new(title.clone(), COLUMNS, DIRECT);
    cold.enter_ours(&mut block);
    cold.enter_peers(
        &mut block,
        &["docker-registry", "nginx proxy_cache", "NORA"],
    );
    cold.enter_direct(&mut block);
    block.enter(HASHING, || [hashing(stage), NONE, NONE, NONE, NONE]);
    block.run(stage.args.rounds());
    let registry = block.ratio(LAYERHOLD, "docker-registry", WALL);
    verdicts.add("P7", "wall x docker-registry", AtMost(1.05), registry);
    let behind = block.difference(LAYERHOLD, DIRECT, WALL);
    let hashing = block.summary(HASHING, WALL).map_or(NONE, |it| it.median());
    let what = "s behind direct, against SHA-256 alone";
    verdicts.add("P7", what, AtMost(hashing), behind);

    let link = Upstream::behind_link(GIGABIT);
    link.put_blob(&stage.blob);
    let cold = Cold::new(stage, &link, 1);
    let mut block = Block::new(format!("{title}, link of 1 Gb/s"), COLUMNS, DIRECT);
    cold.enter_ours(&mut block);
    cold.enter_direct(&mut block);
    // Nine seconds each, and nearly the same each time.
    block.run(stage.args.rounds_or(3));
    let direct = block.ratio(LAYERHOLD, DIRECT, WALL);
    verdicts.add("P7", "wall x direct at 1 Gb/s", AtMost(1.03), direct);
}

/// P8: many clients at once, who all want the same.
pub(crate) fn crowd(stage: &Stage<'_>, verdicts: &mut Verdicts) {
    let title = format!(
        "P8: cold blob of {} MiB, 32 clients at once",
        stage.blob_mib()
    );
    let cold = Cold::new(stage, &stage.upstream, 32);
    let mut block = Block::new(title, COLUMNS, LAYERHOLD);
    cold.enter_ours(&mut block);
    cold.enter_peers(&mut block, &PEERS.map(|it| it.name));
    // Half a minute for the slowest peer. Varnish is no registry, so to be as quick as it is has no number in the table.
    block.run(stage.args.rounds_or(3));
    for (peer, least) in [
        ("docker-registry", 4.0),
        ("nginx proxy_cache", 2.0),
        ("varnish", 1.0),
    ] {
        let quicker = block.ratio(peer, LAYERHOLD, WALL);
        let what = format!("wall of {peer} x ours");
        verdicts.add("P8", what, AtLeast(least), quicker);
    }
    let sent = block.summary(LAYERHOLD, SENT);
    verdicts.add("P8", "upstream bytes/blob", AtMost(1.0), sent);
}

/// Ours alone, to so many clients.
pub(crate) fn ours(stage: &Stage<'_>, clients: usize) {
    let title = format!("cold blob of {} MiB, {clients} clients", stage.blob_mib());
    let cold = Cold::new(stage, &stage.upstream, clients);
    let mut block = Block::new(title, COLUMNS, DIRECT);
    cold.enter_ours(&mut block);
    Cold { clients: 1, ..cold }.enter_direct(&mut block);
    block.run(stage.args.rounds());
}

/// A blob that so many clients want, and the registry that has it.
#[derive(Clone, Copy)]
struct Cold<'a> {
    stage: &'a Stage<'a>,
    upstream: &'a Upstream,
    clients: usize,
}

impl<'a> Cold<'a> {
    fn new(stage: &'a Stage<'a>, upstream: &'a Upstream, clients: usize) -> Self {
        Self {
            stage,
            upstream,
            clients,
        }
    }

    fn enter_ours(self, block: &mut Block<'a, 5>) {
        let level = &self.stage.args.log_level;
        block.enter(LAYERHOLD, move || {
            let numbers = self.turn(|upstream| Cache::layerhold(upstream, level));
            let is_once = numbers[SENT] == 1.0;
            assert!(!self.stage.args.short || is_once, "upstream sends it once");
            numbers
        });
    }

    fn enter_peers(self, block: &mut Block<'a, 5>, names: &[&str]) {
        for peer in PEERS.iter().filter(|it| names.contains(&it.name)) {
            if peer.is_installed() {
                block.enter(peer.name, move || self.turn(peer.start));
            }
        }
    }

    /// From the registry itself.
    fn enter_direct(self, block: &mut Block<'a, 5>) {
        block.enter(DIRECT, move || {
            let pulled = self.load(self.upstream.address).pull();
            [pulled.seconds(), pulled.first_byte_max(), NONE, NONE, NONE]
        });
    }

    fn turn(self, start: impl Fn(SocketAddr) -> Cache) -> [f64; 5] {
        let cache = start(self.upstream.address);
        let sent = self.upstream.sent();
        let pulled = self.load(cache.address).pull();
        let cpu = cache.process.cpu() / gib(self.stage.blob.size);
        let peak = cache.process.peak_mib();
        let sent = (self.upstream.sent() - sent) as f64 / self.stage.blob.size as f64;
        [pulled.seconds(), pulled.first_byte_max(), cpu, sent, peak]
    }

    /// Each client looks at the digest in the short mode.
    fn load(self, from: SocketAddr) -> Load<'a> {
        let digest = Some(&*self.stage.blob.digest);
        Load {
            digest: digest.filter(|_| self.stage.args.short),
            ..self.stage.blob_load(from, self.clients)
        }
    }
}

/// Seconds that one core takes to hash the blob.
fn hashing(stage: &Stage<'_>) -> f64 {
    let mut piece = vec![0x5a; 1 << 20];
    piece.truncate(usize::try_from(stage.blob.size).unwrap_or(usize::MAX));
    let pieces = stage.blob.size / piece.len() as u64;
    let began = Instant::now();
    let mut hasher = Hasher(Sha256::new());
    for _ in 0..pieces {
        hasher.0.update(&piece);
    }
    assert!(hasher.digest() != stage.blob.digest);
    began.elapsed().as_secs_f64()
}

const DIRECT: &str = "(direct)";
const HASHING: &str = "(SHA-256, one core)";
/// Bytes a second of a link of 1 Gb/s.
const GIGABIT: f64 = 125e6;
const NONE: f64 = f64::NAN;

const WALL: usize = 0;
const SENT: usize = 3;
const COLUMNS: [Column; 5] = [
    Column::compared("wall s", 2),
    Column::plain("last first byte ms", 1),
    Column::plain("CPU s/GiB of blob", 2),
    Column::plain("upstream/blob", 2),
    Column::plain("peak MiB", 1),
];
