//! What the cache runs on.

use std::path::PathBuf;

use super::faults::Faults;

/// Where the store is and how large it may grow.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The cache directory; made when absent, refused when it holds anything that is not ours.
    pub dir: PathBuf,
    /// Bytes of content and metadata that are kept; `None` chooses at the first start: 50 GiB, or 80 % of what is free
    /// if that is less.
    pub size: Option<u64>,
    /// What stays free on the file system besides.
    pub free_space_min: Share,
    /// Eviction starts when used and reserved bytes would exceed this share of the size.
    pub high_watermark: Share,
    /// Eviction stops at this share of the size; at most the high watermark.
    pub low_watermark: Share,
    /// Repositories whose metadata (grants and tags) is kept; the least recently used goes first.
    pub repositories_max: usize,
    /// Bytes of published files that are read again in a second, to be checked; zero: none are.
    pub scrub_rate: u64,
    /// Fills in progress at once; further ones wait.
    pub fills_max: usize,
    /// What the disk does wrong on order: nothing, outside of tests.
    pub faults: Faults,
}

/// A part of a whole, in percent or in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// Percent of the whole, 0 to 100.
    Percent(f64),
    /// A number of bytes whatever the whole is.
    Bytes(u64),
}

impl Share {
    /// The bytes this share is of `whole`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a disk needs no exact arithmetic, and a percentage is checked to be 0 to 100"
    )]
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Percent(percent) => (whole as f64 * percent / 100.0) as u64,
            Self::Bytes(bytes) => bytes,
        }
    }
}
