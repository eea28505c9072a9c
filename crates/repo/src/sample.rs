//! Packing a sample of the source into nothing, to see what a backup would cost.

use mover_base::checksum::sha256_each;
use mover_base::{BLOCK_BYTES, Result};
use mover_format::frame::{FrameEncoder, FrameKind};
use mover_format::seal::Cipher;

/// Hashes, compresses and compares like a backup and stores nothing.
pub struct SampleEncoder(FrameEncoder);

impl SampleEncoder {
    /// An encoder at this zstd level.
    pub fn new(level: i32) -> Result<Self> {
        FrameEncoder::new(level).map(SampleEncoder)
    }

    /// What `blocks` (at most 1 MiB, a multiple of 4096) would take in a repository.
    pub fn stored_bytes(&mut self, blocks: &[u8]) -> Result<usize> {
        let hashed: Vec<&[u8]> = blocks.chunks_exact(BLOCK_BYTES).collect();
        let hash_bytes: usize = sha256_each(&hashed)?.iter().map(|hash| hash.len()).sum();
        self.0.compress(FrameKind::Blocks, blocks)?;
        self.0.compare(blocks)?;
        let frame_bytes = self
            .0
            .stored_bytes(Cipher::Aes256Gcm)
            .unwrap_or(blocks.len());
        Ok(frame_bytes + hash_bytes)
    }
}
