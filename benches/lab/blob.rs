//! Content that costs nothing to make.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

/// A blob that is made as it is written: one piece of noise again and again, each time under its own number, so that a
/// piece that is lost, doubled or misplaced changes the digest.
pub(crate) struct Blob {
    seed: u64,
    pub(crate) size: u64,
    pub(crate) digest: String,
}

impl Blob {
    pub(crate) fn new(seed: u64, size: u64) -> Self {
        let mut blob = Self {
            seed,
            size,
            digest: String::new(),
        };
        let mut hasher = Hasher(Sha256::new());
        blob.write_to(&mut hasher).unwrap();
        blob.digest = hasher.digest();
        blob
    }

    /// Writes the whole blob, a piece at a time.
    pub(crate) fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut piece = noise();
        let mut at = 0;
        while at < self.size {
            piece[..8].copy_from_slice(&self.seed.to_le_bytes());
            piece[8..16].copy_from_slice(&at.to_le_bytes());
            let len = usize::try_from(self.size - at).unwrap_or(usize::MAX);
            let len = len.min(piece.len());
            out.write_all(&piece[..len])?;
            at += len as u64;
        }
        Ok(())
    }
}

/// Bytes on their way into a digest.
pub(crate) struct Hasher(pub(crate) Sha256);

impl Hasher {
    /// As registries write it.
    pub(crate) fn digest(self) -> String {
        let hash = self.0.finalize();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What no file system and no compiler makes shorter (xorshift64).
fn noise() -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let words = (0..PIECE_BYTES / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

const PIECE_BYTES: usize = 1 << 20;
