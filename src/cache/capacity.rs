//! The ledger of bytes: what is used, what is set aside, and what must go before more comes in. Pure arithmetic; who is
//! evicted is the business of [`Order`](super::Order).

use super::config::{Config, Share};

/// Bytes by state. Once the start-up scan has ended, `used + reserved` never exceeds `limit` by anything this ledger
/// admitted.
#[derive(Clone, Debug)]
pub struct Ledger {
    limit: u64,
    high: u64,
    low: u64,
    free_space_min: Share,
    /// Published content, metadata, and unlinked files that are still being read.
    pub used: u64,
    /// Room for fills in progress.
    pub(super) reserved: u64,
    /// The part of `reserved` that the file system does not know of yet.
    pub(super) unwritten: u64,
    /// Evicted, and about to be free on the file system.
    pub(super) going: u64,
}

/// Free and total bytes of the file system.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// To us.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// What it takes to let some bytes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// At least this much must be evicted.
    pub required: u64,
    /// This much should be, so that not every newcomer evicts.
    pub wanted: u64,
}

impl Ledger {
    /// Of an empty store that may hold `limit` bytes.
    pub fn new(limit: u64, config: &Config) -> Self {
        let high = config.high_watermark.of(limit).min(limit);
        Self {
            limit,
            high,
            low: config.low_watermark.of(limit).min(high),
            free_space_min: config.free_space_min,
            used: 0,
            reserved: 0,
            unwritten: 0,
            going: 0,
        }
    }

    /// What may be used and reserved together.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What must go before `bytes` more may be reserved; `None` when no eviction could make the room.
    pub fn shortfall(&self, bytes: u64, space: Space) -> Option<Shortfall> {
        let after = self
            .used
            .saturating_add(self.reserved)
            .saturating_add(bytes);
        let by_budget = after.saturating_sub(self.high);
        let by_space = self.short_of_space(bytes, space);
        let required = by_budget.max(by_space);
        if required > self.used {
            return None;
        }
        let wanted = if by_budget > 0 {
            after.saturating_sub(self.low)
        } else {
            0
        };
        Some(Shortfall {
            required,
            wanted: wanted.max(required).min(self.used),
        })
    }

    /// Whether `bytes` more could be reserved if everything else were evicted.
    pub(super) fn could_hold(&self, bytes: u64) -> bool {
        self.reserved.saturating_add(bytes) <= self.high
    }

    /// How far `bytes` more would go below the free-space floor.
    pub(super) fn short_of_space(&self, bytes: u64, space: Space) -> u64 {
        let needed = self
            .free_space_min
            .of(space.total)
            .saturating_add(self.unwritten)
            .saturating_add(bytes);
        needed.saturating_sub(space.free.saturating_add(self.going))
    }

    /// Stops counting what is about to be removed from the disk.
    pub(super) fn evict(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
        self.going += bytes;
    }

    /// Whether bytes are given away that are not free yet.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.going > 0 && self.used + self.reserved + self.going > self.limit
    }

    pub(super) fn reserve(&mut self, bytes: u64) {
        self.reserved += bytes;
        self.unwritten += bytes;
    }

    /// Gives reserved bytes back, of which `written` are known to the file system.
    pub(super) fn release(&mut self, bytes: u64, written: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
        self.unwritten = self.unwritten.saturating_sub(bytes.saturating_sub(written));
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn ledger(used: u64, reserved: u64) -> Ledger {
        let config = Config {
            dir: PathBuf::new(),
            size: None,
            free_space_min: Share::Bytes(10),
            high_watermark: Share::Percent(100.0),
            low_watermark: Share::Percent(90.0),
            repositories_max: 1,
            scrub_rate: 0,
            fills_max: 1,
            faults: crate::cache::Faults::default(),
        };
        Ledger {
            used,
            reserved,
            unwritten: reserved,
            ..Ledger::new(100, &config)
        }
    }

    #[test]
    fn the_budget_asks_for_room_down_to_the_low_watermark() {
        let space = Space {
            free: 1000,
            total: 1000,
        };
        let cases = [
            // used, reserved, bytes, (required, wanted)
            (0, 0, 100, Some((0, 0))),
            (0, 0, 101, None),
            (60, 30, 10, Some((0, 0))),
            (60, 30, 11, Some((1, 11))),
            (60, 30, 80, None),
            (60, 30, 70, Some((60, 60))),
            (150, 0, 0, Some((50, 60))),
        ];
        for (used, reserved, bytes, expected) in cases {
            let found = ledger(used, reserved).shortfall(bytes, space);
            let found = found.map(|it| (it.required, it.wanted));
            assert_eq!(
                found, expected,
                "{used} used, {reserved} reserved, {bytes} more"
            );
        }
    }

    #[test]
    fn room_is_overdrawn_until_what_was_evicted_for_it_is_gone() {
        let mut ledger = ledger(90, 0);
        ledger.evict(30);
        assert!(!ledger.is_overdrawn(), "60 used and 30 going of 100");
        ledger.reserve(10);
        assert!(!ledger.is_overdrawn());
        ledger.reserve(1);
        assert!(ledger.is_overdrawn());
        ledger.going -= 1;
        assert!(!ledger.is_overdrawn());
    }

    #[test]
    fn the_floor_counts_what_is_reserved_but_not_written() {
        let cases = [
            // free, used, reserved, bytes, required
            (100, 50, 0, 50, Some(0)),
            (60, 50, 0, 50, Some(0)),
            (59, 50, 0, 50, Some(1)),
            (60, 50, 20, 30, Some(0)),
            (60, 50, 20, 31, Some(1)),
            (0, 5, 0, 1, None),
        ];
        for (free, used, reserved, bytes, expected) in cases {
            let found = ledger(used, reserved).shortfall(bytes, Space { free, total: 1000 });
            assert_eq!(
                found.map(|it| it.required),
                expected,
                "{free} free, {bytes} more"
            );
        }
    }
}
