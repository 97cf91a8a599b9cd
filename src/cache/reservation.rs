//! What becomes of bytes that were set aside, from the first one that is written on.

use super::index::Reservation;

impl Reservation {
    /// Makes one of two, of which nothing of the other is written.
    pub(super) fn join(&mut self, mut more: Self) {
        self.bytes += std::mem::take(&mut more.bytes);
    }

    /// Takes over bytes that are used, and written.
    pub(super) fn adopt(&mut self, bytes: u64) {
        self.index.count(|ledger| {
            ledger.used = ledger.used.saturating_sub(bytes);
            ledger.reserved += bytes;
        });
        self.bytes += bytes;
        self.written += bytes;
    }

    /// Notes that the file system knows nothing of it any more.
    pub(super) fn lost(&mut self) {
        let written = std::mem::take(&mut self.written);
        self.index.count(|ledger| ledger.unwritten += written);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn growth(&self) -> u64 {
        self.index.growth()
    }

    /// Notes that the file system knows of `bytes` more of it.
    pub(super) fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes - self.written);
        self.written += bytes;
        self.index
            .count(|ledger| ledger.unwritten = ledger.unwritten.saturating_sub(bytes));
    }
}
