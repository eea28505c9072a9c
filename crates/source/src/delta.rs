//! Extracting what a range of the log changed, straight from its segments: which pages of which tables.
//!
//! Invariants: the result is exact or there is none: nothing is left out, and nothing added that no record of the
//! range names. Memory stays below the budget that the caller states, whatever the log says, and past it extraction
//! fails. Continuity, histories and the checksum of every record are checked by [`LogReader`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use mover_base::{Error, Kind, LsnRange, Result};

use crate::disk::Disk;
use crate::wal::{LogIdentity, LogReader, Record, Verify};

/// Pages that one bitmap stands for: 16 MiB of a table.
pub(crate) const CHUNK_PAGES: u32 = 4096;
/// Bytes of a bitmap.
pub(crate) const CHUNK_BYTES: usize = CHUNK_PAGES as usize / 8;
/// Bytes that a table is reckoned with beside its bitmaps.
pub(crate) const TABLE_BYTES: usize = 256;
/// Tables of which the place is at hand, while a log is gone through.
const RECENT_TABLES: usize = 16;
/// The budget that suits most: bitmaps for 1.9 TB of tables of which every 16 MiB have changed.
pub const BUDGET_BYTES_DEFAULT: usize = 64 << 20;

/// A bitmap: page n of its [`CHUNK_PAGES`] is bit n mod 64 of word n / 64.
pub(crate) type ChunkWords = [u64; CHUNK_BYTES / 8];

type Chunk = Box<ChunkWords>;

/// A set of page numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageSet {
    chunks: Vec<Option<Chunk>>,
}

impl PageSet {
    /// Whether `page` is in it.
    pub fn contains(&self, page: u32) -> bool {
        let chunk = self.chunks.get((page / CHUNK_PAGES) as usize);
        let bit = page % CHUNK_PAGES;
        matches!(chunk, Some(Some(words)) if words[(bit / 64) as usize] >> (bit % 64) & 1 == 1)
    }

    /// How many pages are in it.
    pub fn len(&self) -> u64 {
        let words = self.chunks.iter().flatten().flat_map(|chunk| chunk.iter());
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no page is in it.
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().flatten().next().is_none()
    }

    /// The pages in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        // No table has a page with the last number.
        self.within(0..u32::MAX)
    }

    /// The pages of `range` in order.
    pub fn within(&self, range: Range<u32>) -> impl Iterator<Item = u32> {
        let there = self
            .chunks
            .len()
            .min(range.end.div_ceil(CHUNK_PAGES) as usize) as u32;
        let chunks = range.start / CHUNK_PAGES..there;
        let words = chunks.filter_map(|at| {
            let chunk = self.chunks.get(at as usize)?.as_ref()?;
            Some((at, chunk))
        });
        let words = words.flat_map(|(at, chunk)| {
            let base = u64::from(at) * u64::from(CHUNK_PAGES);
            (base..).step_by(64).zip(chunk.iter().copied())
        });
        words
            .filter(|(_, word)| *word != 0)
            .flat_map(|(base, word)| {
                let set = (0..64).filter(move |bit| word >> bit & 1 == 1);
                set.map(move |bit| (base + bit) as u32)
            })
            .filter(move |page| range.contains(page))
    }

    /// The pages in order, as ranges that do not touch: first page and number of pages.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut pages = self.iter().peekable();
        std::iter::from_fn(move || {
            let first = pages.next()?;
            let mut count = 1u32;
            // No page has the last number, so that the one behind it is a number still.
            while pages.next_if_eq(&(first + count)).is_some() {
                count += 1;
            }
            Some((first, count))
        })
    }

    /// The bitmaps that are there, in order, each with its number.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u32, &ChunkWords)> {
        let numbered = (0u32..).zip(&self.chunks);
        numbered.filter_map(|(at, chunk)| Some((at, &**chunk.as_ref()?)))
    }

    /// Adds the pages of bitmap `number`. `None` if that would take more than `budget` bytes, which are counted down.
    pub(crate) fn insert_chunk(
        &mut self,
        number: u32,
        words: &ChunkWords,
        budget: &mut usize,
    ) -> Option<()> {
        let chunk = self.chunk(number as usize, budget)?;
        for (word, more) in chunk.iter_mut().zip(words) {
            *word |= more;
        }
        Some(())
    }

    /// Adds a page. `None` if that would take more than `budget` bytes, which are counted down.
    pub(crate) fn insert(&mut self, page: u32, budget: &mut usize) -> Option<()> {
        let chunk = self.chunk((page / CHUNK_PAGES) as usize, budget)?;
        let bit = page % CHUNK_PAGES;
        chunk[(bit / 64) as usize] |= 1 << (bit % 64);
        Some(())
    }

    /// A bitmap, made if it is not there yet.
    fn chunk(&mut self, at: usize, budget: &mut usize) -> Option<&mut ChunkWords> {
        if at >= self.chunks.len() {
            // A vector doubles when it grows.
            let more = 2 * (at + 1 - self.chunks.len()) * size_of::<Option<Chunk>>();
            *budget = budget.checked_sub(more)?;
            self.chunks.resize(at + 1, None);
        }
        match &mut self.chunks[at] {
            Some(chunk) => Some(chunk),
            empty => {
                *budget = budget.checked_sub(CHUNK_BYTES + 16)?;
                Some(empty.insert(Box::new([0; CHUNK_BYTES / 8])))
            }
        }
    }
}

impl FromIterator<u32> for PageSet {
    fn from_iter<T: IntoIterator<Item = u32>>(pages: T) -> Self {
        let mut set = PageSet::default();
        let mut budget = usize::MAX;
        for page in pages {
            set.insert(page, &mut budget);
        }
        set
    }
}

/// What happened to a table in a range of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableDelta {
    /// It was made in the range.
    pub created: bool,
    /// It was dropped in the range, and no page is told of.
    pub dropped: bool,
    /// How many pages it has at the end, if it was made or extended in the range. Pages that came new and are not among the
    /// changed ones are zeros.
    pub pages_at_end: Option<u32>,
    /// The pages that records of the range changed.
    pub pages: PageSet,
}

/// What a range of the log changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The range.
    pub range: LsnRange,
    /// The tables that the range names.
    pub tables: BTreeMap<u32, TableDelta>,
    /// Transactions in it.
    pub transactions: u64,
}

/// Extracts what `range` of the log changed, with at most `budget_bytes` of memory for the result.
///
/// # Errors
/// Those of [`LogReader::read`]; `Limit` if the result would take more than the budget.
pub fn extract(
    disk: Arc<dyn Disk>,
    identity: LogIdentity,
    range: LsnRange,
    budget_bytes: usize,
) -> Result<Delta> {
    let mut taking = Taking::new(budget_bytes);
    LogReader::new(disk, identity, Verify::Records).read(range, |_, _, record| {
        taking.take(record).ok_or_else(|| {
            Error::new(
                Kind::Limit,
                format!("the changes of the log range take more than {budget_bytes} bytes"),
            )
            .hint("make a full backup, or allow more memory")
        })
    })?;
    Ok(taking.finish(range))
}

/// Changes in the making.
struct Taking {
    tables: Vec<(u32, TableDelta)>,
    /// Where in `tables` each is.
    places: BTreeMap<u32, usize>,
    /// Some of `places`, by the last bits of the table: most records are of a table that was changed just before.
    recent: [(u32, usize); RECENT_TABLES],
    transactions: u64,
    /// What may still be taken, in bytes.
    budget: usize,
}

impl Taking {
    fn new(budget: usize) -> Self {
        Taking {
            tables: Vec::new(),
            places: BTreeMap::new(),
            recent: [(0, 0); RECENT_TABLES],
            transactions: 0,
            budget,
        }
    }

    fn finish(self, range: LsnRange) -> Delta {
        Delta {
            range,
            tables: self.tables.into_iter().collect(),
            transactions: self.transactions,
        }
    }

    /// Where the entry of a table is; `None` if there is no budget for another.
    fn table(&mut self, table: u32) -> Option<usize> {
        let recent = &mut self.recent[table as usize % RECENT_TABLES];
        // There is no table 0.
        if recent.0 == table && table != 0 {
            return Some(recent.1);
        }
        let at = match self.places.entry(table) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                self.budget = self.budget.checked_sub(TABLE_BYTES)?;
                self.tables.push((table, TableDelta::default()));
                *entry.insert(self.tables.len() - 1)
            }
        };
        *recent = (table, at);
        Some(at)
    }

    fn entry(&mut self, table: u32) -> Option<&mut TableDelta> {
        let at = self.table(table)?;
        Some(&mut self.tables[at].1)
    }

    fn take(&mut self, record: &Record<'_>) -> Option<()> {
        match *record {
            Record::Delta { table, page, .. } | Record::Image { table, page, .. } => {
                let at = self.table(table)?;
                self.tables[at].1.pages.insert(page, &mut self.budget)?;
            }
            Record::Create { table, .. } => {
                let entry = self.entry(table)?;
                (entry.created, entry.pages_at_end) = (true, Some(0));
            }
            Record::Drop { table } => {
                let entry = self.entry(table)?;
                let created = entry.created;
                *entry = TableDelta {
                    created,
                    dropped: true,
                    ..TableDelta::default()
                };
            }
            Record::Extend { table, pages } => {
                self.entry(table)?.pages_at_end = Some(pages);
            }
            Record::Commit { .. } => self.transactions += 1,
            Record::Flush { .. }
            | Record::SegmentEnd
            | Record::Checkpoint { .. }
            | Record::Point { .. } => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use mover_base::Lsn;

    use super::*;

    #[test]
    fn tables_that_share_a_place_at_hand_stay_apart() {
        let tables = [1, 1 + RECENT_TABLES as u32, 2, u32::MAX, u32::MAX - 16];
        let mut taking = Taking::new(10 * (TABLE_BYTES + 2 * CHUNK_BYTES));
        for round in 0..3 {
            for (n, table) in (0..).zip(tables) {
                // In turn, so that each finds another's place.
                let page = 10 * n + round;
                let body = &[0; crate::page::BODY_BYTES];
                let image = Record::Image { table, page, body };
                taking.take(&image).unwrap();
                let time = mover_base::Timestamp::from_micros(0);
                let first = Lsn(8);
                let commit = Record::Commit {
                    transaction: 1,
                    time,
                    first,
                };
                taking.take(&commit).unwrap();
            }
        }
        taking.take(&Record::Drop { table: 2 }).unwrap();
        let range = LsnRange {
            start: Lsn(0),
            end: Lsn(8),
        };
        let delta = taking.finish(range);
        assert_eq!(delta.transactions, 15);
        assert_eq!(delta.tables.len(), tables.len());
        for (n, table) in (0..).zip(tables) {
            let found = &delta.tables[&table];
            assert_eq!(found.dropped, table == 2);
            let pages: Vec<u32> = found.pages.iter().collect();
            let wanted = (10 * n..10 * n + 3).filter(|_| table != 2);
            assert_eq!(pages, wanted.collect::<Vec<u32>>());
        }
    }

    #[test]
    fn tables_count_towards_the_budget() {
        let mut taking = Taking::new(3 * TABLE_BYTES + 1);
        for table in [1, 2, 1, 2, 3] {
            assert!(taking.take(&Record::Drop { table }).is_some());
        }
        assert!(taking.take(&Record::Drop { table: 4 }).is_none());
    }
}
