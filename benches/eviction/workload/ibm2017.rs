//! A made-up trace in the manner of IBM's production registries in 2017 (Anwar et al., FAST '18), for where the recorded one
//! is not at hand.
//!
//! A session is some pings, a manifest and, one time in four, some blobs. Manifests are as popular as Zipf has it, and asked
//! for again soon; some are seen once. A blob is one of the few that everybody has, a new one, or the one that was asked for
//! some requests ago; how many is drawn so that the time to the next use comes out as measured. Clients, methods and times
//! are left out: no policy here sees them.

use super::draw::Draw;
use super::{BlobRequest, Request, Workload};

/// So many requests, all made of one seed.
pub(crate) fn generate(requests: usize, seed: u64) -> Workload {
    let mut made = Made {
        draw: Draw::new(seed),
        requests: Vec::with_capacity(requests),
        popular: Zipf::new(MANIFESTS, MANIFEST_SKEW),
        base: Zipf::new(BASE_BLOBS as usize, BASE_SKEW),
        manifests: Vec::new(),
        manifests_once: 0,
        blobs: Vec::new(),
        digests: BASE_BLOBS,
        urls: BASE_BLOBS,
    };
    while made.requests.len() < requests {
        made.session();
    }
    let mut names = Draw::new(seed ^ u64::MAX);
    Workload {
        name: format!("a made-up trace, seed {seed}"),
        requests: made.requests,
        digests: (0..made.digests).map(|_| names.bits()).collect(),
    }
}

struct Made {
    draw: Draw,
    requests: Vec<Request>,
    popular: Zipf,
    base: Zipf,
    manifests: Vec<u32>,
    manifests_once: u32,
    blobs: Vec<BlobRequest>,
    digests: u32,
    urls: u32,
}

impl Made {
    fn session(&mut self) {
        let pings = self.draw.between(2, 4);
        self.requests.extend([Request::Ping].repeat(pings));
        let manifest = self.manifest();
        self.requests.push(Request::Manifest(manifest));
        if self.draw.unit() < PULLS {
            for _ in 0..self.blob_count() {
                let blob = self.blob();
                self.requests.push(Request::Blob(blob));
            }
        }
    }

    fn manifest(&mut self) -> u32 {
        if self.draw.unit() < MANIFEST_ONCE {
            self.manifests_once += 1;
            return u32::MAX - self.manifests_once;
        }
        let back = self.draw.between(1, 100);
        let is_again = self.draw.unit() < MANIFEST_AGAIN;
        let recent = self.manifests.len().checked_sub(back);
        let manifest = match recent.filter(|_| is_again) {
            Some(recent) => self.manifests[recent],
            None => self.popular.rank(self.draw.unit()),
        };
        self.manifests.push(manifest);
        manifest
    }

    /// Of a pull that fetches any.
    fn blob_count(&mut self) -> usize {
        match self.draw.unit() {
            ..0.20 => 1,
            ..0.35 => 2,
            ..0.46 => 3,
            ..0.55 => 4,
            ..0.62 => 5,
            ..0.67 => 6,
            ..0.72 => 7,
            ..0.82 => self.draw.between(8, 11),
            ..0.93 => self.draw.between(11, 20),
            _ => self.draw.between(20, 77),
        }
    }

    fn blob(&mut self) -> BlobRequest {
        if self.draw.unit() < BASE {
            let rank = self.base.rank(self.draw.unit());
            return BlobRequest {
                digest: rank,
                url: rank,
            };
        }
        let back = gap(self.draw.unit());
        let is_again = self.draw.unit() >= NEW;
        let known = self.blobs.len().checked_sub(back);
        let mut blob = match known.filter(|_| is_again) {
            Some(known) => self.blobs[known],
            None => self.new_blob(),
        };
        if is_again && self.draw.unit() < SHARED {
            blob.url = self.new_url();
        }
        self.blobs.push(blob);
        blob
    }

    fn new_blob(&mut self) -> BlobRequest {
        self.digests += 1;
        BlobRequest {
            digest: self.digests - 1,
            url: self.new_url(),
        }
    }

    fn new_url(&mut self) -> u32 {
        self.urls += 1;
        self.urls - 1
    }
}

/// How many blob requests ago the same blob was asked for, between the measured quantiles.
fn gap(unit: f64) -> usize {
    let above = GAPS.partition_point(|(quantile, _)| *quantile <= unit);
    let ((from, least), (to, most)) = (GAPS[above - 1], GAPS[above]);
    let part = (unit - from) / (to - from);
    (least * (most / least).powf(part)) as usize
}

/// Ranks as popular as `1 / rank^skew`.
struct Zipf {
    cumulated: Vec<f64>,
}

impl Zipf {
    fn new(ranks: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=ranks).map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        });
        let cumulated = weights.collect();
        Self { cumulated }
    }

    fn rank(&self, unit: f64) -> u32 {
        let at = unit * self.cumulated[self.cumulated.len() - 1];
        let rank = self.cumulated.partition_point(|sum| *sum <= at);
        u32::try_from(rank).unwrap()
    }
}

/// Two tags of each of 2000 repositories.
const MANIFESTS: usize = 4000;
const MANIFEST_SKEW: f64 = 1.27;
/// Manifest requests that are the only ones for it.
const MANIFEST_ONCE: f64 = 0.07;
/// Of the rest, those that repeat one of the last hundred.
const MANIFEST_AGAIN: f64 = 0.5;
/// Manifest requests that are followed by blobs.
const PULLS: f64 = 0.24;
/// Blobs that everybody has, and the blob requests for them.
const BASE_BLOBS: u32 = 100;
const BASE_SKEW: f64 = 1.0;
const BASE: f64 = 0.32;
/// Of the rest, those for one that was never asked for.
const NEW: f64 = 0.42;
/// Repeated blob requests that come through yet another repository.
const SHARED: f64 = 0.23;
/// Quantiles of the number of blob requests back to the one that is repeated.
const GAPS: [(f64, f64); 7] = [
    (0.0, 1.0),
    (0.10, 60.0),
    (0.25, 400.0),
    (0.50, 3500.0),
    (0.75, 14_000.0),
    (0.90, 40_000.0),
    (1.0, 150_000.0),
];
