//! What a fill leaves in the page cache.
//!
//! Whoever pulls a blob is often the first of many, so that what was just written is best left where it is: in memory. But
//! one that is as large as the memory would push everything else out, for the sake of readers who may never come. So of
//! each fill the first part stays, and of what lies behind only what somebody follows: where there are several readers,
//! everything, for there may be more of them; where there is one, what it has not read; where there is none, nothing.

use std::fs::File;
use std::num::NonZeroU64;

use rustix::fs::{Advice, fadvise};

/// How much of one fill is in memory, and when to look at that again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footprint {
    /// Bytes that stay whoever reads them.
    kept: u64,
    /// Bytes from one look to the next.
    step: u64,
    /// How much is written at the next one.
    next: u64,
}

impl Default for Footprint {
    fn default() -> Self {
        Self::new(KEPT_BYTES, STEP_BYTES)
    }
}

impl Footprint {
    /// Keeps so many bytes, and looks again after each step of so many.
    pub(super) fn new(kept: u64, step: u64) -> Self {
        Self {
            kept,
            step,
            next: kept + step,
        }
    }

    /// Notes that so many bytes are written. Those below `wanted_from` may go. May wait for the disk.
    pub(super) fn wrote(&mut self, file: &File, written: u64, wanted_from: u64) {
        if written >= self.next {
            self.next = written + self.step;
            self.let_go(file, written, wanted_from);
        }
    }

    /// Lets go of what is not wanted of this many bytes. What is not on the disk yet is on its way there from now on, and
    /// goes the next time (`mm/fadvise.c` of Linux: first a flush, then the clean pages are dropped). May wait for the
    /// disk.
    pub(super) fn let_go(&self, file: &File, written: u64, wanted_from: u64) {
        let length = written.min(wanted_from).checked_sub(self.kept);
        if let Some(length) = length.and_then(NonZeroU64::new) {
            // Where that cannot be, the kernel does as it likes with them, as ever.
            let _ = fadvise(file, self.kept, Some(length), Advice::DontNeed);
        }
    }
}

/// Less than this of a blob is no burden for the memory of a machine that serves such blobs; of the blobs that are pulled,
/// 1 in 2000 is larger.
const KEPT_BYTES: u64 = 1 << 30;
const STEP_BYTES: u64 = 32 << 20;
