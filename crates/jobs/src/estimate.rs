//! What a backup would cost, from a small sample of the source that is really read, hashed and compressed.
//!
//! Invariants: an estimate is made of measurements of this machine and this data, or it is absent. Holes are no data: sampled,
//! they would say that the rest takes as little as they do.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use mover_base::units::blocks_of;
use mover_base::{BLOCK_BYTES, Result};
use mover_io::{Access, BUF_BYTES, Shard};
use mover_repo::SampleEncoder;
use mover_source::{DataRanges, DirSource, Item, Tree};

/// Pieces of 1 MiB that are sampled, spread evenly over the data of the source.
const SAMPLES_MAX: u64 = 16;
/// Longest piece.
const PIECE_BYTES: u64 = BUF_BYTES as u64;
/// Ranges of a sparse file that are passed over to find a piece: bounds what a file of many small ones costs.
const RANGES_MAX: usize = 10_000;

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

/// Bytes of a file that are no holes, as far as its size on the disk tells.
fn data_bytes(item: &Item) -> u64 {
    item.entry.content_bytes().min(item.stamp.allocated_bytes)
}

/// Where in a file the piece is that lies behind so much of its data. None where the file has less.
fn piece(fd: BorrowedFd<'_>, item: &Item, data_before: u64) -> Option<Range<u64>> {
    let bytes = item.entry.content_bytes();
    let mut left = data_before;
    // A file without holes is one range, and need not be looked through.
    if data_bytes(item) == bytes {
        return within(&(0..bytes), left);
    }
    for range in DataRanges::new(fd, 0..bytes).take(RANGES_MAX) {
        let range = range.ok()?;
        match within(&range, left) {
            Some(piece) => return Some(piece),
            None => left -= range.end - range.start,
        }
    }
    None
}

/// The piece around `at` of a range.
fn within(range: &Range<u64>, at: u64) -> Option<Range<u64>> {
    let start = range.start + at / PIECE_BYTES * PIECE_BYTES;
    (at < range.end - range.start).then(|| start..range.end.min(start + PIECE_BYTES))
}

/// Reads up to 16 MiB of the source, spread over its files, and packs them into nothing.
pub(crate) async fn sample(
    shard: &Shard,
    source: &DirSource,
    tree: &Tree,
    level: i32,
) -> Result<Estimate> {
    let mut estimate = Estimate::default();
    // Sizes are the source's word: sparse files may claim more than 64 bits hold together.
    let sizes = tree.items().map(|item| data_bytes(&item));
    let total = sizes.fold(0, u64::saturating_add);
    if total == 0 {
        return Ok(estimate);
    }
    let mut encoder = SampleEncoder::new(level)?;
    let step = (total / SAMPLES_MAX).max(PIECE_BYTES);
    let (mut before, mut next) = (0, step / 2);
    for item in tree.items() {
        let end = data_bytes(&item).saturating_add(before);
        while next < end {
            let data_before = next - before;
            let begun = Instant::now();
            let fd = source.open_file(&item)?;
            next = step.saturating_add(next);
            let Some(piece) = piece(fd.as_fd(), &item, data_before) else {
                continue;
            };
            let Ok(file) = shard.file(fd, Access::Direct) else {
                continue;
            };
            let blocks = blocks_of(piece.end - piece.start) as usize;
            let buf = shard.buffer().await;
            let (read, mut buf) = file.read_at(buf, piece.start, blocks * BLOCK_BYTES).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_within_their_range() {
        let mib = PIECE_BYTES;
        assert_eq!(within(&(0..10), 9), Some(0..10));
        assert_eq!(within(&(0..10), 10), None);
        assert_eq!(
            within(&(4096..4096 + 3 * mib), mib + 1),
            Some(4096 + mib..4096 + 2 * mib)
        );
        assert_eq!(within(&(0..mib + 5), mib + 4), Some(mib..mib + 5));
    }
}
