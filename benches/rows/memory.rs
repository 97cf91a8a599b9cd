//! P10: the peak of memory with many clients on one blob, cold and then warm, and whether it grows with the blob.

use std::sync::Arc;

use super::{LAYERHOLD, Stage};
use crate::lab::blob::Blob;
use crate::lab::block::{Block, Column};
use crate::lab::load::Load;
use crate::lab::server::Server;
use crate::lab::summary::Summary;
use crate::lab::verdicts::Target::AtMost;
use crate::lab::verdicts::Verdicts;

/// What 64 clients take at most, on a blob and on one of a quarter of its size.
pub(crate) fn peaks(stage: &Stage<'_>, verdicts: &mut Verdicts) {
    let quarter = Arc::new(Blob::new(2, stage.blob.size / 4));
    let mut peaks = Vec::new();
    for blob in [&quarter, &stage.blob] {
        let mib = blob.size >> 20;
        let path = stage.upstream.put_blob(blob);
        let title = format!("P10: peak memory, {CLIENTS} clients on {mib} MiB");
        let mut block = Block::new(title, COLUMNS, LAYERHOLD);
        block.enter(LAYERHOLD, || turn(stage, blob, &path));
        // A peak is a peak.
        block.run(stage.args.rounds_or(2));
        let limit = PEAK_MIB + PEAK_MIB_PER_STREAM * CLIENTS as f64;
        let columns = COLUMNS.iter().enumerate();
        let found = columns.filter_map(|(at, column)| {
            let peak = block.summary(LAYERHOLD, at)?.max();
            let what = format!("{}, {mib} MiB", column.name);
            verdicts.add("P10", what, AtMost(limit), Some(Summary::of([peak])));
            Some(peak)
        });
        peaks.push(found.collect::<Vec<f64>>());
    }
    for (at, column) in COLUMNS.iter().enumerate() {
        let more = peaks[1][at] - peaks[0][at];
        let what = format!("{}, more for four times the size", column.name);
        verdicts.add("P10", what, AtMost(FLAT_MIB), Some(Summary::of([more])));
    }
}

/// The peak while the blob comes in, and while it is pulled again and again.
fn turn(stage: &Stage<'_>, blob: &Blob, path: &str) -> [f64; 2] {
    let server = Server::start(stage.upstream.address, &stage.args.log_level);
    let load = Load {
        from: server.address,
        path,
        clients: CLIENTS,
        threads: 1,
        length: blob.size,
        digest: None,
        tls: None,
    };
    load.pull();
    let cold = server.process.peak_mib();
    server.process.forget_peak();
    load.sustain(stage.args.window(), || 0.0);
    [cold, server.process.peak_mib()]
}

const CLIENTS: usize = 64;
const PEAK_MIB: f64 = 64.0;
const PEAK_MIB_PER_STREAM: f64 = 0.25;
/// What an allocator may keep here and there, and no part of a blob.
const FLAT_MIB: f64 = 8.0;

const COLUMNS: [Column; 2] = [Column::plain("cold MiB", 1), Column::plain("hit MiB", 1)];
