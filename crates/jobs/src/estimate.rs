//! What a backup or a restore would cost, from a small sample of the source that is really read, hashed and compressed, or of the
//! backup that is really read, decoded and checked.
//!
//! Invariants: an estimate is made of measurements of this machine and this data, or it is absent; nothing is told to go faster
//! than the job's limits in bytes per second let it. Holes are no data: sampled, they would say that the rest takes as little as they do.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mover_base::units::blocks_of;
use mover_base::{BLOCK_BYTES, Result};
use mover_io::{Access, BUF_BYTES, RateBudget, Shard};
use mover_repo::{
    BackupView, Content, EXTENT_BYTES, ExtentReader, SampleEncoder, Segment, block_bytes,
};
use mover_source::{DataRanges, DirSource, Item, Tree};

use crate::settings::pieces_ahead;

/// Pieces of 1 MiB that are sampled, spread evenly over the data of the source.
const SAMPLES_MAX: u64 = 16;
/// Longest piece.
const PIECE_BYTES: u64 = BUF_BYTES as u64;
/// Places of a backup that are sampled, spread evenly over its files.
const PLACES_MAX: u64 = 8;
/// Bytes of such a place: enough that requests are under way one beside the other, as in a restore.
const PLACE_BYTES: u64 = 4 << 20;
/// How long is sampled: over a slow link, or under a tight limit, less must do.
const SAMPLING_MAX: Duration = Duration::from_secs(2);
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

/// What `seconds`, estimated without limits, come to where each of these amounts of bytes must not move faster than its
/// limit, in bytes per second. Where there was no time for a sample, the limits are what it takes.
pub(crate) fn within_limits(
    seconds: Option<f64>,
    amounts: &[(u64, &Arc<RateBudget>)],
) -> Option<f64> {
    let limited = amounts.iter().filter_map(|(bytes, budget)| {
        let limit = budget.get().filter(|limit| *limit > 0)?;
        Some(*bytes as f64 / limit as f64)
    });
    seconds.into_iter().chain(limited).reduce(f64::max)
}

/// What a sample may read, in bytes, so that it does not wait for a limit.
fn sample_bytes_max(limit: &RateBudget) -> u64 {
    let limit = limit.get().unwrap_or(u64::MAX);
    limit.saturating_mul(SAMPLING_MAX.as_secs())
}

/// Bytes of a file that are no holes, as far as its size on the disk tells: they may be fewer, where space was given to it and never
/// written, or is kept behind its end.
fn data_bytes(item: &Item) -> u64 {
    item.entry.content_bytes().min(item.stamp.allocated_bytes)
}

/// The middle of the first step; of less than that, the middle of all.
fn middle(step: u64, total: u64) -> u64 {
    step.min(total) / 2
}

/// Where in a file the piece is that lies behind so much of its data. None where the file has less.
fn piece(fd: BorrowedFd<'_>, item: &Item, data_before: u64) -> Option<Range<u64>> {
    let mut left = data_before;
    for range in DataRanges::new(fd, 0..item.entry.content_bytes()).take(RANGES_MAX) {
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
    limit: &Arc<RateBudget>,
) -> Result<Estimate> {
    let mut estimate = Estimate::default();
    // Sizes are the source's word: sparse files may claim more than 64 bits hold together.
    let sizes = tree.items().map(|item| data_bytes(&item));
    let total = sizes.fold(0, u64::saturating_add);
    if total == 0 {
        return Ok(estimate);
    }
    let mut encoder = SampleEncoder::new(level)?;
    let bytes_max = sample_bytes_max(limit);
    let step = (total / SAMPLES_MAX).max(PIECE_BYTES);
    let (mut before, mut next) = (0, middle(step, total));
    for item in tree.items() {
        let end = data_bytes(&item).saturating_add(before);
        while next < end {
            let data_before = next - before;
            shard.stop()?;
            let clock = Instant::now();
            let fd = source.open_file(&item)?;
            let opened = clock.elapsed();
            next = step.saturating_add(next);
            let Some(piece) = piece(fd.as_fd(), &item, data_before) else {
                continue;
            };
            let bytes = piece.end - piece.start;
            if estimate.sampled_bytes + bytes > bytes_max {
                return Ok(estimate);
            }
            shard.throttle(limit, bytes).await;
            let clock = Instant::now();
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
                estimate.seconds += (opened + clock.elapsed()).as_secs_f64();
            }
        }
        before = end;
    }
    Ok(estimate)
}

/// Reads up to 32 MiB of a backup, spread over its files, and writes them nowhere.
///
/// # Errors
/// Those of reading: what cannot be read now cannot be restored.
pub(crate) async fn sample_stored(
    shard: &Shard,
    view: &Arc<BackupView>,
    limit: &Arc<RateBudget>,
) -> Result<Estimate> {
    let mut estimate = Estimate::default();
    let entries = view.items.entries();
    let sizes = || (0..entries.len()).map(|at| entries.content_bytes(at));
    let total = sizes().fold(0, u64::saturating_add);
    let step = (total / PLACES_MAX).max(PLACE_BYTES);
    let mut reader = view.reader(shard, pieces_ahead(shard.buffers_total(), 0));
    let (begun, bytes_max) = (Instant::now(), sample_bytes_max(limit));
    let (mut before, mut next) = (0_u64, middle(step, total));
    for (item, bytes) in (0..).zip(sizes()) {
        let end = before.saturating_add(bytes);
        while next < end && begun.elapsed() < SAMPLING_MAX {
            shard.stop()?;
            let place = Place::around(next - before, bytes);
            next = next.saturating_add(step);
            let sought = reader.seek(item, place.extent, place.blocks);
            let segments = reader.found(sought).await?;
            let read_before = reader.read_bytes();
            if read_before + stored_of(&segments) > bytes_max {
                return Ok(estimate);
            }
            let clock = Instant::now();
            estimate.sampled_bytes += read_all(&mut reader, segments).await?;
            estimate.seconds += clock.elapsed().as_secs_f64();
            let read = reader.read_bytes() - read_before;
            estimate.stored_bytes += read;
            shard.throttle(limit, read).await;
        }
        before = end;
    }
    Ok(estimate)
}

/// A place of a file: blocks of an extent, counted from its beginning.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    extent: u64,
    blocks: Range<u64>,
}

impl Place {
    /// The one with byte `at` in it, of a file of so many bytes.
    fn around(at: u64, file_bytes: u64) -> Self {
        let extent = at / EXTENT_BYTES;
        let begin = at % EXTENT_BYTES / PLACE_BYTES * PLACE_BYTES;
        let end = (begin + PLACE_BYTES).min(file_bytes - extent * EXTENT_BYTES);
        Place {
            extent,
            blocks: begin / BLOCK_BYTES as u64..blocks_of(end),
        }
    }
}

/// Most bytes that these segments take in packs.
fn stored_of(segments: &[Segment]) -> u64 {
    let stored = segments
        .iter()
        .filter(|segment| matches!(segment.content, Content::Stored { .. }));
    stored.map(|segment| block_bytes(segment.count)).sum()
}

/// Reads what is stored of these segments, and gives its bytes.
async fn read_all(reader: &mut ExtentReader, segments: Vec<Segment>) -> Result<u64> {
    reader.announce(&segments).await?;
    let mut out = vec![0; BUF_BYTES];
    let mut bytes = 0;
    for segment in segments {
        let Content::Stored { pack, ordinal } = segment.content else {
            continue;
        };
        for first in (0..segment.count).step_by(BUF_BYTES / BLOCK_BYTES) {
            let count = (segment.count - first).min((BUF_BYTES / BLOCK_BYTES) as u64);
            let out = &mut out[..block_bytes(count) as usize];
            reader.blocks(pack, ordinal + first as u32, out).await?;
            bytes += block_bytes(count);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use mover_source::ScanOptions;
    use rustix::fs::FallocateFlags;

    use super::*;

    #[test]
    fn what_is_limited_takes_as_long_as_its_limit_asks() {
        let budget = |rate: Option<u64>| RateBudget::new(rate);
        let (none, slow, slower, nothing) = (
            budget(None),
            budget(Some(10)),
            budget(Some(2)),
            budget(Some(0)),
        );
        assert_eq!(within_limits(None, &[(100, &none)]), None);
        assert_eq!(within_limits(None, &[(100, &slow)]), Some(10.0));
        assert_eq!(within_limits(Some(3.0), &[]), Some(3.0));
        assert_eq!(
            within_limits(Some(3.0), &[(100, &none), (20, &slow)]),
            Some(3.0)
        );
        assert_eq!(
            within_limits(Some(3.0), &[(100, &slow), (100, &slower)]),
            Some(50.0)
        );
        assert_eq!(within_limits(Some(3.0), &[(100, &nothing)]), Some(3.0));
    }

    #[test]
    fn places_lie_within_their_extents() {
        let of = |at, bytes| {
            let Place { extent, blocks } = Place::around(at, bytes);
            (extent, blocks)
        };
        assert_eq!(of(0, 1), (0, 0..1));
        assert_eq!(of(4096, 4097), (0, 0..2));
        assert_eq!(of(PLACE_BYTES, PLACE_BYTES + 1), (0, 1024..1025));
        assert_eq!(of(EXTENT_BYTES - 1, 2 * EXTENT_BYTES), (0, 15_360..16_384));
        assert_eq!(of(EXTENT_BYTES, EXTENT_BYTES + 10), (1, 0..1));
    }

    #[test]
    fn a_sample_is_taken_of_data_however_much_is_allocated() {
        let dir = tempfile::tempdir().unwrap();
        let (bytes, at) = (8 * PIECE_BYTES, 4 * PIECE_BYTES);
        let file = File::create(dir.path().join("f")).unwrap();
        file.set_len(bytes).unwrap();
        let data = vec![7; PIECE_BYTES as usize];
        file.write_all_at(&data, at).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, bytes, bytes).unwrap();
        file.sync_all().unwrap();
        let source = DirSource::open(&format!("dir://{}", dir.path().display())).unwrap();
        let tree = source.scan(&ScanOptions::default()).unwrap();
        let item = tree.items().find(|item| item.entry.path == b"f").unwrap();
        assert_eq!(data_bytes(&item), bytes);
        let of = |data_before| piece(file.as_fd(), &item, data_before);
        assert_eq!(of(0), Some(at..at + PIECE_BYTES));
        assert_eq!(of(PIECE_BYTES), None);
    }

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
