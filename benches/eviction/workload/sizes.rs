//! Sizes of blobs, drawn once for each digest. Shares, shapes and means are those of the blob GETs of IBM's production
//! registries in 2017 (Anwar et al., FAST '18): mean 14 MB, and two thirds of the bytes in blobs above 64 MiB.

use super::draw::Draw;

/// The size of a digest, as the seed has it.
pub(crate) fn size(digest: u64, seed: u64) -> u64 {
    let mut draw = Draw::new(digest ^ Draw::new(seed).bits());
    let (which, within) = (draw.unit(), draw.unit());
    let log_uniform = |low: f64, high: f64| low * (high / low).powf(within);
    let pareto = |low: f64, high: f64, a: f64| {
        low / (1.0 - within * (1.0 - (low / high).powf(a))).powf(1.0 / a)
    };
    let bytes = match which {
        ..0.65 => log_uniform(200.0, MIB),
        ..0.80 => log_uniform(MIB, 10.0 * MIB),
        ..0.9414 => log_uniform(10.0 * MIB, 64.0 * MIB),
        ..0.9944 => pareto(64.0 * MIB, 256.0 * MIB, 2.048),
        ..0.9995 => pareto(256.0 * MIB, 1024.0 * MIB, 1.545),
        _ => pareto(1024.0 * MIB, 16384.0 * MIB, 1.759),
    };
    bytes as u64
}

/// Blobs above this have most of the bytes.
pub(crate) const LARGE: u64 = 64 << 20;
const MIB: f64 = 1_048_576.0;
