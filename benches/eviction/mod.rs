//! P11: which blobs are still here when they are asked for again, by the order in which blobs go.
//!
//! On this hangs the order of eviction: `benches/README.md` says which number decides what. Nothing is timed and no byte is
//! moved: the policies are asked for one blob after the other. Ours is the ledger and the order that the index uses, the
//! rest is written down here for comparison. The trace is a recorded one, given by its path, or made up.
//!
//! A made-up trace must be like the recorded one in what is asserted here, each time.

#![allow(dead_code, reason = "a bench may want one size of the cache only")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "figures of a simulation, which are far from any limit"
)]

mod policies;
mod workload;

use std::fs::File;
use std::io::{BufReader, stdin};

use policies::{Clock, Offline, Ours, Policy, Ranked, S3Fifo, next_uses};
use workload::sizes::{LARGE, size};
use workload::{Workload, ibm2017, slice};

/// The trace at a path, or on standard input for `-`; a made-up one, which is looked at, where there is no path.
pub(crate) fn replay(trace: Option<&str>, seeds: u64) -> Replay {
    let workload = match trace {
        Some("-") => slice::read(stdin().lock()),
        Some(path) => slice::read(BufReader::new(File::open(path).unwrap())),
        None => ibm2017::generate(REQUESTS, SEED),
    };
    let replay = Replay::of(&workload, seeds);
    replay.introduce(&workload);
    if trace.is_none() {
        replay.validate(&workload);
    }
    replay
}

/// Requests for blobs, by digest and by URL, and the sizes that each seed gives them.
pub(crate) struct Replay {
    digests: Vec<u32>,
    urls: Vec<u32>,
    next: Vec<usize>,
    sizes: Vec<Vec<u64>>,
}

/// What was hit, of objects and of bytes, in percent.
#[derive(Clone, Copy)]
struct Hits {
    objects: f64,
    bytes: f64,
}

type Make<'a> = Box<dyn Fn(u64) -> Box<dyn Policy + 'a> + 'a>;

impl Replay {
    fn of(workload: &Workload, seeds: u64) -> Self {
        let blobs = workload.blobs();
        let digests: Vec<u32> = blobs.iter().map(|it| it.digest).collect();
        let sizes = (1..=seeds).map(|seed| {
            let digests = workload.digests.iter();
            digests.map(|digest| size(*digest, seed)).collect()
        });
        Self {
            next: next_uses(&digests),
            urls: blobs.iter().map(|it| it.url).collect(),
            sizes: sizes.collect(),
            digests,
        }
    }

    fn introduce(&self, workload: &Workload) {
        let totals = self.sizes.iter().map(|it| it.iter().sum::<u64>());
        let total = totals.sum::<u64>() as f64 / self.sizes.len() as f64;
        println!(
            "{}: {} requests, {} for {} blobs of {:.2} TB\n",
            workload.name,
            workload.requests.len(),
            self.digests.len(),
            workload.digests.len(),
            total / 1e12
        );
    }

    /// What a made-up trace must have of the recorded one.
    fn validate(&self, workload: &Workload) {
        let all = workload.requests.len() as f64;
        let ones = |capacity| Ranked::lru(capacity);
        let tenth = workload.digests.len() as u64 / 10;
        let blobs = objects_hit(&mut ones(tenth), &self.digests);
        let manifests = objects_hit(&mut ones(100), &workload.manifests());
        let (mut bytes, mut large) = (0, 0);
        for digest in &self.digests {
            let size = self.sizes[0][*digest as usize];
            bytes += size;
            large += if size > LARGE { size } else { 0 };
        }
        for (what, percent, from, to) in [
            ("LRU of a tenth of the blobs", blobs, 60.0, 65.0),
            ("LRU of 100 manifests", manifests, 78.0, 84.0),
            (
                "bytes in blobs above 64 MiB",
                100.0 * large as f64 / bytes as f64,
                60.0,
                70.0,
            ),
            ("pings", 100.0 * workload.pings() as f64 / all, 44.0, 48.0),
        ] {
            println!("{what}: {percent:.1} %, must be {from} to {to} %");
            assert!((from..=to).contains(&percent), "{what}");
        }
        println!();
    }

    /// How many points of bytes ours is ahead of LRU by URL, and of LRU by digest, where the disk holds a tenth of the
    /// bytes; seed by seed.
    pub(crate) fn leads_at_a_tenth(&self) -> [Vec<f64>; 2] {
        let ours = self.hits(&self.digests, 10, &ours());
        let by_url = self.hits(&self.urls, 10, &lru());
        let by_digest = self.hits(&self.digests, 10, &lru());
        [by_url, by_digest].map(|lru| {
            let pairs = ours.iter().zip(&lru);
            pairs.map(|(ours, lru)| ours.bytes - lru.bytes).collect()
        })
    }

    /// All policies, at all sizes of the cache.
    pub(crate) fn tell_all(&self) {
        let policies: [(&str, &[u32], Make<'_>); 8] = [
            (LRU, &self.digests, lru()),
            (OURS, &self.digests, ours()),
            (
                "CLOCK",
                &self.digests,
                Box::new(|it| Box::new(Clock::new(it))),
            ),
            (
                "GDSF",
                &self.digests,
                Box::new(|it| Box::new(Ranked::gdsf(it))),
            ),
            (
                "LFU-DA",
                &self.digests,
                Box::new(|it| Box::new(Ranked::lfu_da(it))),
            ),
            (
                "S3-FIFO",
                &self.digests,
                Box::new(|it| Box::new(S3Fifo::new(it))),
            ),
            ("LRU by URL", &self.urls, lru()),
            (
                "offline",
                &self.digests,
                Box::new(|it| Box::new(Offline::new(it, &self.next))),
            ),
        ];
        println!(
            "hits in percent of objects / of bytes, mean of {} seeds",
            self.sizes.len()
        );
        print!("{:<16}", "cache / all");
        for share in SHARES_PERCENT {
            print!("{:<16}", format!("{share} %"));
        }
        println!();
        let mut kept: Vec<(&str, Vec<Vec<Hits>>)> = Vec::new();
        for (name, names, make) in policies {
            let rows = SHARES_PERCENT.map(|share| self.hits(names, share, &make));
            print!("{name:<16}");
            for hits in &rows {
                let told = format!(
                    "{:.1} / {:.1}",
                    mean(hits, |it| it.objects),
                    mean(hits, |it| it.bytes)
                );
                print!("{told:<16}");
            }
            println!();
            kept.push((name, rows.to_vec()));
        }
        println!();
        let of = |name| kept.iter().find(|it| it.0 == name).map(|it| &it.1).unwrap();
        tell_lead(of(OURS), of(LRU));
    }

    /// With a cache of this part of all bytes, by each seed.
    fn hits(&self, names: &[u32], share: u64, make: &Make<'_>) -> Vec<Hits> {
        let sizes = self.sizes.iter();
        let hits = sizes.map(|sizes| {
            let capacity = sizes.iter().sum::<u64>() / 100 * share;
            let mut policy = make(capacity);
            let (mut objects, mut bytes, mut all) = (0_u64, 0, 0);
            for (name, digest) in names.iter().zip(&self.digests) {
                let size = sizes[*digest as usize];
                all += size;
                if policy.ask(*name, size) {
                    objects += 1;
                    bytes += size;
                }
            }
            Hits {
                objects: 100.0 * objects as f64 / names.len() as f64,
                bytes: 100.0 * bytes as f64 / all as f64,
            }
        });
        hits.collect()
    }
}

fn lru<'a>() -> Make<'a> {
    Box::new(|capacity| Box::new(Ranked::lru(capacity)))
}

fn ours<'a>() -> Make<'a> {
    Box::new(|capacity| Box::new(Ours::new(capacity)))
}

fn objects_hit(policy: &mut impl Policy, names: &[u32]) -> f64 {
    let hits = names.iter().filter(|name| policy.ask(**name, 1)).count();
    100.0 * hits as f64 / names.len() as f64
}

fn mean(hits: &[Hits], of: fn(&Hits) -> f64) -> f64 {
    hits.iter().map(of).sum::<f64>() / hits.len() as f64
}

/// How far ours is from LRU in bytes, seed by seed. Whatever the trace, it is not far behind.
fn tell_lead(ours: &[Vec<Hits>], lru: &[Vec<Hits>]) {
    for (share, (ours, lru)) in SHARES_PERCENT.iter().zip(ours.iter().zip(lru)) {
        let leads = ours.iter().zip(lru);
        let mut leads: Vec<f64> = leads.map(|(a, b)| a.bytes - b.bytes).collect();
        leads.sort_by(f64::total_cmp);
        let lead = leads.iter().sum::<f64>() / leads.len() as f64;
        let verdict = if lead >= 0.0 {
            "at least LRU"
        } else {
            "BELOW LRU"
        };
        println!(
            "at {share} %, ours against LRU: {lead:+.2} points of bytes [{:+.2} to {:+.2}]: {verdict}",
            leads[0],
            leads[leads.len() - 1]
        );
        assert!(lead > -1.0, "far behind LRU");
    }
}

const LRU: &str = "LRU";
const OURS: &str = "layerhold";
const SHARES_PERCENT: [u64; 4] = [1, 5, 10, 20];
/// As many as the recorded trace has.
const REQUESTS: usize = 725_000;
const SEED: u64 = 1;
