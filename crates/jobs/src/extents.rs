//! Dividing the files of a tree among shards, and joining what they make of an extent.
//!
//! The unit of work is an extent, 64 MiB: one leaf of a file's map, and near the end of the queue several shares of 8 MiB.
//! Where the data is hard to compress an extent takes a core the better part of a second, and that long the
//! others would wait for the last one.
//!
//! Invariants: every byte of every file is in exactly one share; a share lies within one extent and begins at a block;
//! which share a shard gets depends on nothing but the order in which shards ask.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use mover_base::BLOCK_BYTES;
use mover_base::units::blocks_of;
use mover_repo::EXTENT_BYTES;

/// Bytes of a share near the end of the queue.
const SHARE_BYTES: u64 = 8 << 20;
/// Extents per shard that are handed out in shares: when a shard comes to them, all have about as many whole extents before them,
/// since they claim them alike, so one of them is what it can get ahead by, and as much again for one that is slower.
const SHARED_EXTENTS: u64 = 2;

/// Which extent: the index of the file in the tree, and the number of the extent in the file.
pub(crate) type ExtentId = (u32, u64);

/// What one shard works on at a time: an extent of a file or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Index of the file in the tree.
    pub item: u32,
    /// Number of the extent in the file.
    pub index: u64,
    /// First byte, counted from the beginning of the file.
    pub begin: u64,
    /// The byte behind the last.
    pub end: u64,
    /// Bytes of the whole extent.
    extent_bytes: u64,
}

impl Share {
    /// What lies from `begin` on in a file of `file_bytes`, at most `unit` bytes.
    fn new(item: u32, begin: u64, unit: u64, file_bytes: u64) -> Self {
        let index = begin / EXTENT_BYTES;
        let extent_begin = index * EXTENT_BYTES;
        Share {
            item,
            index,
            begin,
            end: file_bytes.min(begin.saturating_add(unit)),
            extent_bytes: EXTENT_BYTES.min(file_bytes - extent_begin),
        }
    }

    /// The extent.
    pub fn extent(&self) -> ExtentId {
        (self.item, self.index)
    }

    /// First byte of the extent in the file.
    pub fn extent_begin(&self) -> u64 {
        self.index * EXTENT_BYTES
    }

    /// Its place in the file.
    pub fn range(&self) -> Range<u64> {
        self.begin..self.end
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }

    /// Its blocks, counted from the beginning of the extent.
    pub fn blocks(&self) -> Range<u64> {
        let first = self.extent_begin();
        (self.begin - first) / BLOCK_BYTES as u64..blocks_of(self.end - first)
    }
}

/// A stretch of a file that is handed out in equal units: all of it, or one of the two parts of that in which the shares begin
/// to be smaller.
struct Span {
    item: u32,
    file_bytes: u64,
    /// Shares in all spans up to the end of this one.
    shares: u64,
}

/// The files of a tree, claimed share by share.
pub(crate) struct ExtentQueue {
    /// Files that are not empty. Those of several extents come first, so that shards end on small pieces of work
    /// and hardly wait for the last. What a queue takes in memory follows the number of files, not their sizes, which
    /// a sparse file may claim to be enormous.
    spans: Vec<Span>,
    /// The first span that is handed out in shares smaller than an extent.
    shared_from: usize,
    /// First byte of that span, at the beginning of an extent; all others begin with their files.
    shared_begin: u64,
    next: AtomicU64,
}

impl ExtentQueue {
    /// Divides files with these sizes, given as (index, bytes), among so many shards.
    pub fn new(files: impl Iterator<Item = (u32, u64)>, shards: usize) -> Self {
        let mut files: Vec<(u32, u64)> = files.filter(|(_, bytes)| *bytes > 0).collect();
        files.sort_by_key(|(_, bytes)| *bytes <= EXTENT_BYTES);
        let shared_bytes =
            SHARED_EXTENTS * EXTENT_BYTES * if shards > 1 { shards as u64 } else { 0 };
        let (cut, cut_at) = cut(&files, shared_bytes);
        let mut queue = ExtentQueue {
            spans: Vec::with_capacity(files.len() + 1),
            shared_from: 0,
            shared_begin: cut_at,
            next: AtomicU64::new(0),
        };
        for (at, (item, bytes)) in files.into_iter().enumerate() {
            if at < cut {
                queue.push(item, 0..bytes, bytes, EXTENT_BYTES);
            } else if at > cut {
                queue.push(item, 0..bytes, bytes, SHARE_BYTES);
            } else {
                queue.push(item, 0..cut_at, bytes, EXTENT_BYTES);
                queue.shared_from = queue.spans.len();
                queue.push(item, cut_at..bytes, bytes, SHARE_BYTES);
            }
        }
        if cut == usize::MAX {
            queue.shared_from = queue.spans.len();
        }
        queue
    }

    fn push(&mut self, item: u32, range: Range<u64>, file_bytes: u64, unit: u64) {
        if range.is_empty() {
            return;
        }
        let before = self.spans.last().map_or(0, |span| span.shares);
        let shares = (range.end - range.start).div_ceil(unit);
        self.spans.push(Span {
            item,
            file_bytes,
            shares: before.saturating_add(shares),
        });
    }

    /// The next share that nobody has.
    pub fn claim(&self) -> Option<Share> {
        let next = self.next.fetch_add(1, Relaxed);
        let at = self.spans.partition_point(|span| span.shares <= next);
        let span = self.spans.get(at)?;
        let before = at.checked_sub(1).and_then(|before| self.spans.get(before));
        let number = next - before.map_or(0, |before| before.shares);
        let (begin, unit) = match at.cmp(&self.shared_from) {
            Ordering::Less => (0, EXTENT_BYTES),
            Ordering::Equal => (self.shared_begin, SHARE_BYTES),
            Ordering::Greater => (0, SHARE_BYTES),
        };
        let begin = begin + number * unit;
        Some(Share::new(span.item, begin, unit, span.file_bytes))
    }
}

/// Where the last `bytes` of these files begin, rounded to an extent: which file, and the byte in it. No file if
/// there is nothing to share.
fn cut(files: &[(u32, u64)], bytes: u64) -> (usize, u64) {
    let mut cut = (usize::MAX, 0);
    let mut left = bytes;
    for (at, (_, file_bytes)) in files.iter().enumerate().rev() {
        if left == 0 {
            break;
        }
        let whole = file_bytes.saturating_sub(left) / EXTENT_BYTES * EXTENT_BYTES;
        cut = (at, whole);
        left = left.saturating_sub(*file_bytes);
    }
    cut
}

/// Brings the parts of extents together that several shards have made.
pub(crate) struct Joiner<T> {
    extents: Mutex<HashMap<ExtentId, Parts<T>>>,
}

/// The parts of an extent that are there: each with its first byte in the file.
struct Parts<T> {
    parts: Vec<(u64, T)>,
    bytes: u64,
}

impl<T> Default for Joiner<T> {
    fn default() -> Self {
        Joiner {
            extents: Mutex::default(),
        }
    }
}

impl<T> Joiner<T> {
    /// Takes a part. Whoever brings the last one of an extent gets them all, in order.
    pub fn add(&self, share: &Share, part: T) -> Option<Vec<T>> {
        if share.bytes() == share.extent_bytes {
            return Some(vec![part]);
        }
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        let there = extents.entry(share.extent()).or_insert(Parts {
            parts: Vec::new(),
            bytes: 0,
        });
        there.parts.push((share.begin, part));
        there.bytes += share.bytes();
        if there.bytes < share.extent_bytes {
            return None;
        }
        let mut all = extents.remove(&share.extent())?.parts;
        all.sort_by_key(|(begin, _)| *begin);
        Some(all.into_iter().map(|(_, part)| part).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim_all(sizes: &[u64], shards: usize) -> Vec<Share> {
        let files = (0..).zip(sizes.iter().copied());
        let queue = ExtentQueue::new(files, shards);
        std::iter::from_fn(|| queue.claim()).collect()
    }

    fn sizes() -> impl Strategy<Value = Vec<u64>> {
        let about =
            |unit: u64| (0..6u64, 0..3u64).prop_map(move |(n, d)| (n * unit + d).saturating_sub(1));
        let size = prop_oneof![
            about(1),
            about(4096),
            about(SHARE_BYTES),
            about(EXTENT_BYTES)
        ];
        prop::collection::vec(size, 0..8)
    }

    proptest! {
        #[test]
        fn shares_cover_each_file_once_and_join(sizes in sizes(), shards in 1..5usize) {
            let shares = claim_all(&sizes, shards);
            let joiner = Joiner::default();
            let mut joined: Vec<(ExtentId, Vec<Range<u64>>)> = Vec::new();
            // Backwards: the order in which parts arrive must not matter.
            for share in shares.iter().rev() {
                prop_assert!(share.bytes() > 0 && share.begin % BLOCK_BYTES as u64 == 0);
                prop_assert!(share.range().end <= share.extent_begin() + EXTENT_BYTES);
                if let Some(parts) = joiner.add(share, share.range()) {
                    joined.push((share.extent(), parts));
                }
            }
            joined.sort_by_key(|(extent, _)| *extent);
            let mut ends = vec![0; sizes.len()];
            for ((item, _), parts) in joined {
                for part in parts {
                    prop_assert_eq!(part.start, ends[item as usize]);
                    ends[item as usize] = part.end;
                }
            }
            prop_assert_eq!(ends, sizes);
        }

        #[test]
        fn a_file_keeps_its_order_and_one_shard_gets_whole_extents(sizes in sizes()) {
            let extents = sizes.iter().map(|bytes| bytes.div_ceil(EXTENT_BYTES)).sum::<u64>();
            let shares = claim_all(&sizes, 1);
            prop_assert_eq!(shares.len() as u64, extents);
            for pair in claim_all(&sizes, 3).windows(2) {
                prop_assert!(pair[0].item != pair[1].item || pair[0].end == pair[1].begin);
            }
        }
    }

    #[test]
    fn only_the_end_of_the_queue_is_divided() {
        let shares = claim_all(&[10 * EXTENT_BYTES, 5000], 2);
        let whole = shares
            .iter()
            .take_while(|share| share.bytes() == EXTENT_BYTES);
        // Four extents and the short file, rounded to an extent.
        assert_eq!(whole.count(), 6);
        assert_eq!(shares[6].bytes(), SHARE_BYTES);
        assert_eq!(shares.len(), 6 + 4 * 8 + 1);
        assert_eq!(shares[7].blocks(), 2048..4096);
    }

    #[test]
    fn sizes_that_a_sparse_file_may_claim_are_no_trouble() {
        let queue = ExtentQueue::new([(0, u64::MAX / 2), (1, u64::MAX / 2)].into_iter(), 1024);
        assert_eq!(queue.claim().map(|share| share.end), Some(EXTENT_BYTES));
        assert!(queue.spans.len() <= 3);
    }
}
