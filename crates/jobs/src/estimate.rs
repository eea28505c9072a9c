//! What a backup would cost, from a small sample of the source that is really read, hashed and compressed.
//!
//! Invariant: an estimate is made of measurements of this machine and this data, or it is absent.

use std::time::Instant;

use mover_base::units::blocks_of;
use mover_base::{BLOCK_BYTES, Result};
use mover_io::{Access, BUF_BYTES, Shard};
use mover_repo::SampleEncoder;
use mover_source::{DirSource, Tree};

/// Pieces of 1 MiB that are sampled, spread evenly over the source.
const SAMPLES_MAX: u64 = 16;

/// A measured sample.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Estimate {
    /// Bytes sampled.
    pub sampled_bytes: u64,
    stored_bytes: u64,
    seconds: f64,
}

impl Estimate {
    /// Stored size of `bytes` such bytes.
    pub fn stored_bytes(&self, bytes: u64) -> Option<u64> {
        (self.sampled_bytes > 0)
            .then(|| (bytes as f64 * self.stored_bytes as f64 / self.sampled_bytes as f64) as u64)
    }

    /// Seconds that `bytes` such bytes take on `shards` shards.
    pub fn seconds(&self, bytes: u64, shards: usize) -> Option<f64> {
        (self.sampled_bytes > 0)
            .then(|| bytes as f64 * self.seconds / self.sampled_bytes as f64 / shards as f64)
    }
}

/// Reads up to 16 MiB of the source, spread over its files, and packs them into nothing.
pub(crate) async fn sample(
    shard: &Shard,
    source: &DirSource,
    tree: &Tree,
    level: i32,
) -> Result<Estimate> {
    let mut estimate = Estimate::default();
    let total = tree.totals.bytes;
    if total == 0 {
        return Ok(estimate);
    }
    let mut encoder = SampleEncoder::new(level)?;
    let step = (total / SAMPLES_MAX).max(BUF_BYTES as u64);
    let (mut before, mut next) = (0, step / 2);
    for item in &tree.items {
        let bytes = item.entry.content_bytes();
        // Sizes are the source's word: sparse files may claim more than 64 bits hold together.
        let end = bytes.saturating_add(before);
        while next < end {
            let piece = BUF_BYTES as u64;
            let offset = (next - before) / piece * piece;
            let begun = Instant::now();
            let fd = source.open_file(item)?;
            next = step.saturating_add(next);
            let Ok(file) = shard.file(fd, Access::Direct) else {
                continue;
            };
            let (read, mut buf) = file.read_at(shard.buffer().await, offset, BUF_BYTES).await;
            // What cannot be read is found out, and reported, by the backup itself.
            let Ok(read) = read else { continue };
            if read > 0 {
                let whole = blocks_of(read as u64) as usize * BLOCK_BYTES;
                buf[read..whole].fill(0);
                estimate.stored_bytes += encoder.stored_bytes(&buf[..whole])? as u64;
                estimate.sampled_bytes += read as u64;
                estimate.seconds += begun.elapsed().as_secs_f64();
            }
        }
        before = end;
    }
    Ok(estimate)
}
