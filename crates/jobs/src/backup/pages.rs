//! A page store as the origin of a backup: its files as they shall stand in the backup, and what of each is read.
//!
//! The backup of a store that is written to is a directory as a crash could have left it: the tables as they were found,
//! control file and catalogue of one checkpoint, and the log from that checkpoint's redo position to an end behind every
//! page that was read. What opens it recovers it to exactly that end.
//!
//! Invariants: a page that goes into the backup is whole, or is known to be torn and has an image in the log that goes with
//! it; no page is newer than the log's end; of the log nothing behind its end is taken. A page that an earlier backup of the same
//! log has, and that its file has no more, is told, if the log does not make it good. At most [`TORN_MAX`] torn pages
//! are remembered, as many as redo mends.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mover_base::tree::{Entry, EntryKind};
use mover_base::units::blocks_of;
use mover_base::{BLOCK_BYTES, Error, Kind, Lsn, LsnRange, Result};
use mover_source::delta::PageSet;
use mover_source::page::{self, PAGE_BYTES};
use mover_source::pages::{
    CATALOGUE_FILE, CONTROL_FILE, Checkpoint, LiveStore, TABLES_DIR, TableFile, table_path,
};
use mover_source::wal::segment::{LOG_BLOCK_BYTES, LOG_DIR};
use mover_source::wal::{LogReader, SegmentSize, Verify};
use mover_source::{Totals, source_error, wal};
use rustix::fs::MemfdFlags;

use super::base::Since;
use super::odd::{Odd, Predecessor};
use super::origin::{Found, Piece, data_pieces, not_listed};
use crate::extents::Share;

/// What to do where the database removed log that the backup needs.
const LOG_HINT: &str = "keep the log from the last checkpoint on until the backup has ended, or run the database with a tracker; run it again";
/// Redo mends as many.
const TORN_MAX: usize = 65_536;
/// What of a table is read.
pub(crate) enum Changes {
    /// Everything.
    All,
    /// These pages, and what lies behind the base's last one; the rest is as the base has it.
    Since {
        /// The pages.
        pages: PageSet,
        /// Pages that the base has.
        base_pages: u32,
        /// As in [`Since`].
        named_from: Option<Lsn>,
    },
}

enum Content {
    Dir,
    /// These bytes, whatever stands in the store now.
    Bytes(Vec<u8>),
    Table {
        table: u32,
        changes: Changes,
        /// How long its file was, in whole pages, when it was looked at last.
        written: AtomicU64,
    },
    /// A log segment: its header; what the base has of it; what is read. The rest are zeros.
    Log {
        kept: Range<u64>,
        read: Range<u64>,
        /// Where the log ends, if it ends in this one: nothing is taken of what stands behind it in its block.
        end: Option<Lsn>,
    },
}

struct PageItem {
    entry: Entry,
    content: Content,
}

/// A page store that is being copied.
pub(crate) struct PageOrigin {
    store: Arc<LiveStore>,
    checkpoint: Checkpoint,
    /// Where the log of the base ends: it has no newer page. None in a full backup.
    base_end: Option<Lsn>,
    predecessor: Option<Predecessor>,
    items: Vec<PageItem>,
    newest: AtomicU64,
    odd: Mutex<Odd>,
    /// By table that has doubtful pages, the error that the earlier backup's map is damaged.
    damaged_maps: Mutex<BTreeMap<u32, Error>>,
}

impl PageOrigin {
    /// The files of the store as of `checkpoint`, but for the log; `changes` says what of a table, by its id and
    /// path, is read.
    ///
    /// # Errors
    /// `Source` if a file cannot be looked at.
    pub fn new(
        store: &Arc<LiveStore>,
        checkpoint: Checkpoint,
        base_end: Option<Lsn>,
        mut changes: impl FnMut(u32, &[u8]) -> Changes,
    ) -> Result<Self> {
        let catalogue = checkpoint.catalogue.encode();
        let control = checkpoint.control.file();
        let mut items = vec![dir(store, "")?];
        for (path, bytes) in [(CATALOGUE_FILE, catalogue), (CONTROL_FILE, control)] {
            items.push(PageItem {
                entry: store.entry(path, Some(bytes.len() as u64))?,
                content: Content::Bytes(bytes),
            });
        }
        items.push(dir(store, TABLES_DIR)?);
        for (table, kept) in checkpoint.catalogue.tables() {
            let bytes = u64::from(kept.pages) * BLOCK_BYTES as u64;
            let entry = match store.entry(&table_path(*table), Some(bytes)) {
                // It was dropped, or its first page was never written.
                Err(error) if error.kind() == Kind::SourceChanged => {
                    let like = &items[1].entry;
                    Entry {
                        path: table_path(*table).into_bytes(),
                        kind: EntryKind::File { bytes },
                        ..like.clone()
                    }
                }
                entry => entry?,
            };
            let changes = changes(*table, &entry.path);
            items.push(PageItem {
                entry,
                content: Content::Table {
                    table: *table,
                    changes,
                    written: AtomicU64::new(u64::MAX),
                },
            });
        }
        items.push(dir(store, LOG_DIR)?);
        Ok(PageOrigin {
            store: store.clone(),
            checkpoint,
            base_end,
            predecessor: None,
            items,
            newest: AtomicU64::new(0),
            odd: Mutex::default(),
            damaged_maps: Mutex::default(),
        })
    }

    /// The same, compared with what the parent has, which is this backup: its pages must all still be there.
    pub fn compared_with(self, predecessor: Option<Predecessor>) -> Self {
        PageOrigin {
            predecessor,
            ..self
        }
    }

    fn item(&self, at: u32) -> Result<&PageItem> {
        self.items.get(at as usize).ok_or_else(not_listed)
    }

    /// The entry with this number, in path order.
    pub fn entry(&self, at: u32) -> Result<&Entry> {
        Ok(&self.item(at)?.entry)
    }

    /// All entries, in path order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.items.iter().map(|item| &item.entry)
    }

    /// Numbers and sizes of the tables.
    pub fn tables(&self) -> Vec<(u32, u64)> {
        self.sizes(|content| matches!(content, Content::Table { .. }))
    }

    /// Numbers and sizes of everything else: what is copied when the log's end is known.
    pub fn others(&self) -> Vec<(u32, u64)> {
        self.sizes(|content| !matches!(content, Content::Table { .. }))
    }

    fn sizes(&self, wanted: impl Fn(&Content) -> bool) -> Vec<(u32, u64)> {
        let numbered = (0u32..).zip(&self.items);
        let wanted = numbered.filter(|(_, item)| wanted(&item.content));
        wanted
            .map(|(at, item)| (at, item.entry.content_bytes()))
            .collect()
    }

    /// How many bytes of the tables are to be read, as far as that is known without looking at their files.
    pub fn read_bytes(&self) -> u64 {
        let pages = self.items.iter().map(|item| match &item.content {
            Content::Table {
                changes: Changes::All,
                ..
            } => blocks_of(item.entry.content_bytes()),
            Content::Table {
                changes:
                    Changes::Since {
                        pages, base_pages, ..
                    },
                ..
            } => {
                let all = blocks_of(item.entry.content_bytes());
                let new = all.saturating_sub(u64::from(*base_pages));
                all.min(pages.len() + new)
            }
            _ => 0,
        });
        pages.sum::<u64>() * BLOCK_BYTES as u64
    }

    /// Opens a file; `None` if it is the table's that is not there any more, or not yet.
    pub fn open(&self, at: u32) -> Result<Option<OwnedFd>> {
        let item = self.item(at)?;
        let path = item.entry.display_path();
        match &item.content {
            Content::Dir => Err(not_listed()),
            Content::Bytes(bytes) => in_memory(bytes).map(Some).map_err(|error| {
                source_error("no memory file can be made", path.as_bytes(), error)
            }),
            Content::Table { table, .. } => {
                let opened = self.store.open_file(&path)?;
                if opened.is_none() {
                    self.odd().gone.insert(*table);
                }
                Ok(opened)
            }
            Content::Log { .. } => {
                let opened = self.store.open_file(&path)?;
                opened.map(Some).ok_or_else(|| log_missing(&path))
            }
        }
    }

    /// What of a share is read, and what is kept.
    pub fn pieces(&self, share: &Share, fd: BorrowedFd<'_>) -> Result<VecDeque<Piece>> {
        let item = self.item(share.item)?;
        let range = share.range();
        match &item.content {
            Content::Dir => Err(not_listed()),
            Content::Bytes(_) => Ok(VecDeque::from([Piece::Read(range)])),
            Content::Log { kept, read, .. } => {
                let part = |of: Range<u64>| range.start.max(of.start)..range.end.min(of.end);
                let pieces = [
                    Piece::Read(part(0..LOG_BLOCK_BYTES)),
                    Piece::Keep(part(kept.clone())),
                    Piece::Read(part(read.clone())),
                ];
                let there = pieces.into_iter().filter(|piece| !piece.range().is_empty());
                Ok(there.collect())
            }
            Content::Table {
                table,
                changes,
                written: last_written,
            } => {
                let stat = rustix::fs::fstat(fd).map_err(|error| {
                    source_error("a table cannot be read", &item.entry.path, error)
                })?;
                // What was never written is not in the file yet.
                let written = (stat.st_size as u64) / PAGE_BYTES as u64 * PAGE_BYTES as u64;
                last_written.store(written, Relaxed);
                // A page of which only a part is there was written, and is not whole. If that was before the base, it has the page.
                let last = (written / PAGE_BYTES as u64) as u32;
                let is_since = match changes {
                    Changes::All => true,
                    Changes::Since {
                        base_pages,
                        named_from: Some(_),
                        ..
                    } => last >= *base_pages,
                    Changes::Since {
                        base_pages, pages, ..
                    } => last >= *base_pages || pages.contains(last),
                };
                if stat.st_size as u64 != written && range.contains(&written) && is_since {
                    self.note_torn(*table, std::iter::once(last))?;
                }
                match changes {
                    Changes::All => {
                        data_pieces(fd, range.start..range.end.min(written), &item.entry.path)
                    }
                    Changes::Since {
                        pages,
                        base_pages,
                        named_from,
                    } => {
                        let is_exact = named_from.is_some();
                        let base_bytes = u64::from(*base_pages) * PAGE_BYTES as u64;
                        let old = range.start..range.end.min(base_bytes);
                        let mut pieces = changed_pieces(old, written, pages, !is_exact);
                        let new = range.start.max(base_bytes)..range.end.min(written);
                        if !new.is_empty() {
                            pieces.extend(data_pieces(fd, new, &item.entry.path)?);
                        }
                        if is_exact {
                            self.check_written(*table, &range, &pieces, pages)?;
                        }
                        Ok(pieces)
                    }
                }
            }
        }
    }

    /// Checks the pages that were read from `offset` of a table on. One that is torn is read again, and so is one that is as it
    /// was before the log says that it was changed: a write was lost, or the file lost its end and grew again. With `last`, it is
    /// noted as torn. Of the log, what stands behind its end is cleared: it may have been written since that was found.
    pub fn check(&self, at: u32, offset: u64, bytes: &mut [u8], last: bool) -> Result<Found> {
        let (table, changes) = match &self.item(at)?.content {
            Content::Table { table, changes, .. } => (*table, changes),
            Content::Log { end: Some(end), .. } => {
                let identity = &self.checkpoint.control.identity;
                let behind = end.0 - identity.size.start_of(*end).0;
                if let Some(behind) = bytes.get_mut(behind.saturating_sub(offset) as usize..) {
                    wal::clear_behind(identity, *end, behind);
                }
                return Ok(Found::Whole);
            }
            Content::Dir | Content::Bytes(_) | Content::Log { .. } => return Ok(Found::Whole),
        };
        let is_stale = |number: u32, lsn: Lsn| match changes {
            Changes::Since {
                pages,
                named_from: Some(from),
                ..
            } => lsn < *from && pages.contains(number),
            _ => false,
        };
        let first = (offset / PAGE_BYTES as u64) as u32;
        let (mut oldest, mut newest) = (Lsn(u64::MAX), Lsn(0));
        let mut torn = Vec::new();
        for (number, page) in (first..).zip(bytes.as_chunks_mut::<PAGE_BYTES>().0) {
            match page::check(page, table, number) {
                Ok(lsn) if !is_stale(number, lsn) => {
                    (oldest, newest) = (oldest.min(lsn), newest.max(lsn));
                }
                _ => torn.push((number, page)),
            }
        }
        self.newest.fetch_max(newest.0, Relaxed);
        if torn.is_empty() {
            let new = self.base_end.is_some_and(|end| end <= oldest);
            return Ok(if new { Found::New } else { Found::Whole });
        }
        if last {
            self.note_torn(table, torn.iter().map(|(page, _)| *page))?;
            return Ok(Found::Whole);
        }
        let disk = self.store.disk();
        if let Some(file) = TableFile::open_read(&*disk, table)? {
            for (number, page) in torn {
                *page = file.read(number)?;
            }
        }
        Ok(Found::Torn)
    }

    /// Pages that the log says were changed must be in the file; what is not among what of `range` is read is as good as torn.
    fn check_written(
        &self,
        table: u32,
        range: &Range<u64>,
        pieces: &VecDeque<Piece>,
        changed: &PageSet,
    ) -> Result<()> {
        let reads = pieces.iter().filter_map(|piece| match piece {
            Piece::Read(range) => Some(range),
            Piece::Keep(_) | Piece::Missing(_) => None,
        });
        let mut reads = reads.peekable();
        let first = (range.start / PAGE_BYTES as u64) as u32;
        let named = changed.within(first..blocks_of(range.end) as u32);
        let missing = named.filter(|page| {
            let at = u64::from(*page) * PAGE_BYTES as u64;
            while reads.next_if(|read| read.end <= at).is_some() {}
            reads.peek().is_none_or(|read| at < read.start)
        });
        self.note_torn(table, missing)
    }

    /// Notes that pages which changed are not in their file, where the base has something else than zeros: they are as good
    /// as torn.
    pub fn note_missing(&self, at: u32, range: &Range<u64>) -> Result<()> {
        self.note_torn(self.table(at)?, pages_of(range))
    }

    /// Notes that pages are not in their file of which nobody knows whether the earlier backup has something else than zeros there:
    /// `damage` says which part of its map is damaged. It is an error if the log has no images of them.
    pub fn note_doubtful(&self, at: u32, range: &Range<u64>, damage: Error) -> Result<()> {
        let table = self.table(at)?;
        self.damaged_maps().entry(table).or_insert(damage);
        self.odd().doubtful.add(table, pages_of(range));
        Ok(())
    }

    /// The id of the table with this number.
    fn table(&self, at: u32) -> Result<u32> {
        match self.item(at)?.content {
            Content::Table { table, .. } => Ok(table),
            _ => Err(not_listed()),
        }
    }

    /// Whether it is a table.
    pub fn is_table(&self, at: u32) -> bool {
        let item = self.items.get(at as usize);
        item.is_some_and(|item| matches!(item.content, Content::Table { .. }))
    }

    /// Pages of what was read of a table that are zeros, counted from the first of them.
    pub fn zeros(&self, at: u32, bytes: &[u8]) -> Vec<u64> {
        if !self.is_table(at) {
            return Vec::new();
        }
        let pages = (0..).zip(bytes.as_chunks::<PAGE_BYTES>().0);
        let zeros = pages.filter(|(_, page)| is_zero(page));
        zeros.map(|(number, _)| number).collect()
    }

    /// What of a range of a file lies behind its end, though the backup takes it for a part of the table. Nothing of what is no
    /// table.
    pub fn behind_end(&self, at: u32, range: Range<u64>) -> Result<Range<u64>> {
        match &self.item(at)?.content {
            Content::Table { written, .. } => {
                let end = written.load(Relaxed).clamp(range.start, range.end);
                Ok(end..range.end)
            }
            _ => Ok(range.end..range.end),
        }
    }

    /// Whether what a file has a hole at, or ends before, is lost if the parent has something there.
    pub fn doubts_holes(&self, at: u32) -> bool {
        self.predecessor.is_some() && self.is_table(at)
    }

    /// Pages of what a full backup read of a table that are lost if the parent has something there, counted from the first of them:
    /// those that are zeros, which no page becomes again. In an incremental one these are what changed:
    /// [`doubtful_zeros`](Self::doubtful_zeros).
    pub fn lost_zeros(&self, at: u32, bytes: &[u8]) -> Vec<u64> {
        match self.is_full() && self.predecessor.is_some() {
            true => self.zeros(at, bytes),
            false => Vec::new(),
        }
    }

    /// Notes that pages which did not change are not in their file, where the earlier backup has something else than zeros.
    pub fn note_lost(&self, at: u32, range: &Range<u64>) -> Result<()> {
        let table = self.table(at)?;
        self.odd().lost.add(table, pages_of(range));
        Ok(())
    }

    /// Pages of what was read from `offset` of a table on that are zeros though the tracker says that they changed, counted from
    /// `offset`. They were never written, or they are lost: what the base has there tells.
    pub fn doubtful_zeros(&self, at: u32, offset: u64, bytes: &[u8]) -> Result<Vec<u64>> {
        let Content::Table {
            changes:
                Changes::Since {
                    pages,
                    base_pages,
                    named_from: None,
                },
            ..
        } = &self.item(at)?.content
        else {
            return Ok(Vec::new());
        };
        let first = (offset / PAGE_BYTES as u64) as u32;
        let read = (first..*base_pages).zip(bytes.as_chunks::<PAGE_BYTES>().0);
        let zeros = read.filter(|(number, page)| pages.contains(*number) && is_zero(page));
        Ok(zeros.map(|(number, _)| u64::from(number - first)).collect())
    }

    fn note_torn(&self, table: u32, pages: impl Iterator<Item = u32>) -> Result<()> {
        let mut odd = self.odd();
        for page in pages {
            odd.torn.insert((table, page));
            if odd.torn.len() > TORN_MAX {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("more than {TORN_MAX} pages do not match their checksums"),
                )
                .object(table_path(table))
                .hint("the database is damaged; restore it from a backup"));
            }
        }
        Ok(())
    }

    /// Pages that were torn however often they were read.
    pub fn torn_pages(&self) -> u64 {
        self.odd().torn.len() as u64
    }

    fn odd(&self) -> MutexGuard<'_, Odd> {
        self.odd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn damaged_maps(&self) -> MutexGuard<'_, BTreeMap<u32, Error>> {
        let maps = self.damaged_maps.lock();
        maps.unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the end of the log that the backup is consistent from, after all tables were read, and adds the segments
    /// that lead there. Of those that `in_base` says the base has, what lies before its end `base_end` is kept. Returns the
    /// part of the log that the backup holds.
    ///
    /// # Errors
    /// `Corrupt` if the log is damaged, or does not mend what was found torn; `SourceChanged` if a segment is missing.
    pub fn add_log(
        &mut self,
        base_end: Option<Lsn>,
        in_base: impl Fn(&[u8]) -> bool,
    ) -> Result<LsnRange> {
        let control = &self.checkpoint.control;
        let identity = &control.identity;
        // The catalogue and the last checkpoint's record are in the log, too.
        let newest = Lsn(self.newest.load(Relaxed)).max(control.checkpoint);
        let newest = newest.max(Lsn(self.checkpoint.catalogue.lsn.0.saturating_sub(1)));
        // What is kept may be as new as the base's end.
        let newest = newest.max(Lsn(base_end.map_or(0, |end| end.0.saturating_sub(1))));
        let end = self.store.end(identity, control.redo, newest);
        let end = end.map_err(log_needed)?;
        let range = LsnRange {
            start: control.redo,
            end,
        };
        self.check_odd(range).map_err(log_needed)?;
        let size = identity.size;
        let mut start = size.start_of(range.start);
        while start <= end {
            let path = identity.path(start);
            let entry = match self.store.entry(&path, Some(size.bytes())) {
                Err(error) if error.kind() == Kind::SourceChanged => {
                    return Err(log_missing(&path));
                }
                entry => entry?,
            };
            let base_end = base_end.filter(|_| in_base(&entry.path));
            let (kept, read) = log_parts(size, start, range, base_end);
            self.items.push(PageItem {
                entry,
                content: Content::Log {
                    kept,
                    read,
                    end: (size.start_of(end) == start).then_some(end),
                },
            });
            start = size.next_of(start);
        }
        Ok(range)
    }

    /// Whether the log from `range` makes good what was found torn, gone, doubtful or lost. What is lost is in an incremental backup
    /// all the same, taken over from its base.
    fn check_odd(&self, range: LsnRange) -> Result<()> {
        // A copy: what was torn is told later, however it was mended.
        let mut left = self.odd().clone();
        if left.is_empty() {
            return Ok(());
        }
        let tables = self.checkpoint.catalogue.tables();
        left.gone
            .retain(|table| tables.get(table).is_none_or(|kept| kept.pages > 0));
        let identity = self.checkpoint.control.identity;
        let reader = LogReader::new(self.store.disk(), identity, Verify::Records);
        reader.read(range, |_, _, record| {
            left.mend(record);
            Ok(())
        })?;
        left.lost.forget_mended();
        left.doubtful.forget_mended();
        self.refuse_damage(&left)?;
        if let Some(before) = self.predecessor.filter(|_| self.is_full()) {
            left.lost.refuse(before)?;
        }
        self.odd().lost = left.lost;
        Ok(())
    }

    /// Refuses what would not be in the backup as it was written, or may not be.
    fn refuse_damage(&self, left: &Odd) -> Result<()> {
        if let Some((table, page)) = left.torn.first() {
            return Err(Error::new(
                Kind::Corrupt,
                "a page is not as it was written (it does not match its checksum, or is older than the log says), and the log holds no image of it",
            )
            .object(format!("table {table:08x}, page {page}"))
            .hint("the database is damaged there; restore it from a backup"));
        }
        if let Some(table) = left.gone.first() {
            return Err(Error::new(Kind::Corrupt, "a table's file is missing")
                .object(table_path(*table))
                .hint("the database is damaged; restore it from a backup"));
        }
        if let Some(table) = left.doubtful.first_table() {
            let damage = self.damaged_maps().remove(&table);
            return Err(damage.unwrap_or_else(not_listed));
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.base_end.is_none()
    }

    /// What there is to say of pages that were lost, once the log was added.
    pub fn lost_warnings(&self) -> Vec<String> {
        let warnings = |before| self.odd().lost.warnings(before, self.is_full());
        self.predecessor.map(warnings).unwrap_or_default()
    }

    /// Sums over all files.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for item in &self.items {
            match item.content {
                Content::Dir => totals.dirs += 1,
                _ => totals.files += 1,
            }
            let bytes = item.entry.content_bytes();
            totals.bytes += bytes;
            totals.allocated_bytes += match &item.content {
                Content::Log { kept, read, .. } => read.end - kept.start + LOG_BLOCK_BYTES,
                _ => bytes,
            };
        }
        totals
    }

    /// The checkpoint that the backup begins with.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Bytes of the log that are to be read.
    pub fn log_bytes(&self) -> u64 {
        let log = self.items.iter().map(|item| match &item.content {
            Content::Log { read, .. } => read.end - read.start + LOG_BLOCK_BYTES,
            _ => 0,
        });
        log.sum()
    }
}

/// An error of reading log that the backup needs. That a segment is missing there is nothing that was asked for and does not exist:
/// the database removed it meanwhile, and the next backup may well find all of its log.
pub(crate) fn log_needed(error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => log_missing(error.object_name().unwrap_or(LOG_DIR)),
        _ => error,
    }
}

fn log_missing(path: &str) -> Error {
    Error::new(Kind::SourceChanged, "a log segment is missing")
        .object(path)
        .hint(LOG_HINT)
}

/// Which bytes of the segment at `start` are as the base has them, of which the log ends at `base_end`, and which are read,
/// so that the backup has `range` of the log.
fn log_parts(
    size: SegmentSize,
    start: Lsn,
    range: LsnRange,
    base_end: Option<Lsn>,
) -> (Range<u64>, Range<u64>) {
    let block = |lsn: Lsn| (lsn.0 - start.0) / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
    let first = match range.start > start {
        true => block(range.start).max(LOG_BLOCK_BYTES),
        false => LOG_BLOCK_BYTES,
    };
    let end = match start == size.start_of(range.end) {
        true => (range.end.0 - start.0).next_multiple_of(LOG_BLOCK_BYTES),
        false => size.bytes(),
    };
    // Not the footer: the base may have the segment before it was sealed.
    let footer = size.footer_of(start);
    let kept = base_end.filter(|end| *end > start);
    let kept = kept.map_or(first, |end| block(end.min(footer)).max(first));
    (first..kept.min(end), kept.min(end)..end)
}

fn dir(store: &LiveStore, path: &str) -> Result<PageItem> {
    Ok(PageItem {
        entry: store.entry(path, None)?,
        content: Content::Dir,
    })
}

/// A file that is nowhere but in memory.
fn in_memory(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(
        "helios-mover",
        MemfdFlags::CLOEXEC,
    )?);
    file.write_all(bytes)?;
    Ok(file.into())
}

fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    *page == [0; PAGE_BYTES]
}

/// The pages in a range of a table's file.
fn pages_of(range: &Range<u64>) -> Range<u32> {
    let page = |bytes: u64| (bytes / PAGE_BYTES as u64) as u32;
    page(range.start)..page(range.end)
}

/// What of `range`, all of which the base has, is read because `pages` changed, and what is kept. Of what changed and is not
/// `written` that is to be seen, if `tell` says so.
fn changed_pieces(range: Range<u64>, written: u64, pages: &PageSet, tell: bool) -> VecDeque<Piece> {
    let mut pieces = VecDeque::new();
    if range.is_empty() {
        return pieces;
    }
    let bytes = |page: u64| page * PAGE_BYTES as u64;
    let end = blocks_of(range.end);
    let mut at = range.start / PAGE_BYTES as u64;
    let there = written / PAGE_BYTES as u64;
    let last = if tell { end } else { end.min(there) };
    let mut changed = pages
        .within(at as u32..last as u32)
        .map(u64::from)
        .peekable();
    while let Some(first) = changed.next() {
        let mut behind = first + 1;
        while behind != there && changed.next_if_eq(&behind).is_some() {
            behind += 1;
        }
        if at < first {
            pieces.push_back(Piece::Keep(bytes(at)..bytes(first)));
        }
        let range = bytes(first)..bytes(behind);
        pieces.push_back(match first < there {
            true => Piece::Read(range),
            false => Piece::Missing(range),
        });
        at = behind;
    }
    if at < end {
        pieces.push_back(Piece::Keep(bytes(at)..bytes(end)));
    }
    pieces
}

/// The history of a log, as manifests have it.
pub(crate) fn history_text(identity: &wal::LogIdentity) -> String {
    identity.history.to_string()
}

/// What of a table is read, by what changed since a base that has so many pages of it.
/// The set of the table's pages is taken out of `since`: all sets together may be as large as the budget for them.
pub(crate) fn changes_since(since: &mut Since, table: u32, base_pages: Option<u32>) -> Changes {
    let pages = since.pages.tables.remove(&table);
    match base_pages {
        // Of a table that the base has not, all is read; that what the log names is there can be said of it, too.
        None if since.named_from.is_none() => Changes::All,
        _ => Changes::Since {
            pages: pages.unwrap_or_default(),
            base_pages: base_pages.unwrap_or_default(),
            named_from: since.named_from,
        },
    }
}

#[cfg(test)]
mod tests {
    use mover_source::disk::{DirDisk, Disk};
    use mover_source::pages::Store;
    use mover_source::tracker::Changed;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn page_sets_are_moved_and_not_copied() {
        let set: PageSet = [3, 5].into_iter().collect();
        let mut since = Since {
            pages: Changed {
                tables: [(1, set.clone()), (2, set.clone())].into(),
            },
            named_from: Some(Lsn(7)),
        };
        for (table, base_pages) in [(1, Some(9)), (2, None)] {
            let changes = changes_since(&mut since, table, base_pages);
            let Changes::Since {
                pages,
                base_pages: of_base,
                named_from,
            } = changes
            else {
                panic!("what the log names is kept");
            };
            assert_eq!((pages, named_from), (set.clone(), Some(Lsn(7))));
            assert_eq!(of_base, base_pages.unwrap_or(0));
        }
        assert!(since.pages.tables.is_empty());
        since.named_from = None;
        assert!(matches!(changes_since(&mut since, 2, None), Changes::All));
    }

    #[test]
    fn of_the_log_a_backup_takes_its_range_and_no_more() {
        let size = SegmentSize::new(14).unwrap();
        let parts = |start: u64, range: Range<u64>, base_end: Option<u64>| {
            let range = LsnRange {
                start: Lsn(range.start),
                end: Lsn(range.end),
            };
            log_parts(size, Lsn(start), range, base_end.map(Lsn))
        };
        // Segments of four blocks: a header, two blocks of records, a footer.
        assert_eq!(parts(0, 4096..4200, None), (4096..4096, 4096..8192));
        assert_eq!(parts(0, 9000..9008, None), (8192..8192, 8192..12288));
        assert_eq!(parts(0, 9000..21000, None), (8192..8192, 8192..16384));
        assert_eq!(parts(16384, 9000..21000, None), (4096..4096, 4096..8192));
        assert_eq!(parts(0, 4096..9000, Some(4200)), (4096..4096, 4096..12288));
        assert_eq!(parts(0, 4096..9000, Some(8192)), (4096..8192, 8192..12288));
        assert_eq!(
            parts(0, 4096..9000, Some(99_000)),
            (4096..12288, 12288..12288)
        );
        // The base ends in a later segment: all but the footer.
        assert_eq!(
            parts(0, 4096..21000, Some(21000)),
            (4096..12288, 12288..16384)
        );
        assert_eq!(
            parts(16384, 4096..21000, Some(9000)),
            (4096..4096, 4096..8192)
        );
    }

    #[test]
    fn a_segment_that_goes_while_the_backup_runs_is_a_changed_source() {
        let dir = tempfile::tempdir().unwrap();
        let identity = mover_source::pages::new_identity([7; 32], SegmentSize::new(15).unwrap());
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir.path()).unwrap());
        let mut store = Store::create(disk, identity).unwrap();
        let writer = store.recover(4).unwrap().writer;
        let mut group = wal::Group::new();
        group.create(10, wal::TableKind::Rows, "x").unwrap();
        let time = mover_base::Timestamp::from_micros(1);
        let end = writer.append(&group, 1, time).unwrap().end;
        writer.flush_to(end).unwrap();

        let live = Arc::new(LiveStore::open(&format!("pages://{}", dir.path().display())).unwrap());
        let origin = || {
            let checkpoint = live.checkpoint().unwrap();
            PageOrigin::new(&live, checkpoint, None, |_, _| Changes::All).unwrap()
        };
        let name = identity.path(Lsn(0));
        let (segment, aside) = (dir.path().join(&name), dir.path().join("aside"));
        let assert_told = |error: Error| {
            assert_eq!(error.kind(), Kind::SourceChanged, "{error}");
            assert_eq!(error.object_name(), Some(&*name));
            assert_eq!(error.hint_text(), Some(LOG_HINT));
        };
        // Before the log's end was found: the log goes on behind what is gone. And then before the segment is copied.
        let behind = dir.path().join(identity.path(Lsn(1 << 15)));
        std::fs::copy(&segment, &behind).unwrap();
        std::fs::rename(&segment, &aside).unwrap();
        assert_told(origin().add_log(None, |_| false).map(drop).unwrap_err());
        std::fs::rename(&aside, &segment).unwrap();
        std::fs::remove_file(behind).unwrap();
        let mut found = origin();
        found.add_log(None, |_| false).unwrap();
        std::fs::rename(&segment, &aside).unwrap();
        let last = found.items.len() as u32 - 1;
        assert_told(found.open(last).map(drop).unwrap_err());
        // What else fails stays what it is.
        let other = log_needed(Error::new(Kind::Corrupt, "damage"));
        assert_eq!(other.kind(), Kind::Corrupt);
    }

    /// A block of the log that was only half written when the log's end was found, so that a flush of two groups looked like one
    /// of the first, is whole when it is copied.
    #[test]
    fn a_flush_that_comes_to_stand_behind_the_end_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let identity = mover_source::pages::new_identity([7; 32], SegmentSize::new(15).unwrap());
        let segment = identity.path(Lsn(0));
        // Names of the tables that the first group makes: it ends within the first block, at its end, within the second.
        for (names, ends) in [
            (vec![1], 4096 + 64),
            ([vec![255; 14], vec![227]].concat(), 2 * 4096),
            (vec![255; 20], 2 * 4096 + 1392),
        ] {
            let (from, to) = (path("from"), path("to"));
            std::fs::create_dir(&from).unwrap();
            let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&from).unwrap());
            let mut store = Store::create(disk, identity).unwrap();
            let writer = store.recover(4).unwrap().writer;
            let mut group = wal::Group::new();
            for (table, len) in (10..).zip(names) {
                let name = "x".repeat(len);
                group.create(table, wal::TableKind::Rows, &name).unwrap();
            }
            let end = writer
                .append(&group, 1, mover_base::Timestamp::from_micros(1))
                .unwrap()
                .end;
            let mut group = wal::Group::new();
            group.create(99, wal::TableKind::Rows, "y").unwrap();
            let behind = writer
                .append(&group, 2, mover_base::Timestamp::from_micros(2))
                .unwrap()
                .end;
            writer.flush_to(behind).unwrap();
            let whole = std::fs::read(from.join(&segment)).unwrap();
            let mut half = whole.clone();
            half[end.0 as usize..].fill(0);
            std::fs::write(from.join(&segment), &half).unwrap();

            let live = Arc::new(LiveStore::open(&format!("pages://{}", from.display())).unwrap());
            let checkpoint = live.checkpoint().unwrap();
            let mut origin = PageOrigin::new(&live, checkpoint, None, |_, _| Changes::All).unwrap();
            let range = origin.add_log(None, |_| false).unwrap();
            assert_eq!((range.end, end), (end, Lsn(ends)));
            std::fs::write(from.join(&segment), &whole).unwrap();

            for (at, item) in (0..).zip(&origin.items) {
                let path = to.join(std::str::from_utf8(&item.entry.path).unwrap());
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                match &item.content {
                    Content::Dir => std::fs::create_dir_all(path).unwrap(),
                    Content::Bytes(bytes) => std::fs::write(path, bytes).unwrap(),
                    Content::Table { .. } => {}
                    Content::Log { read, .. } => {
                        let mut bytes = whole.clone();
                        for range in [0..LOG_BLOCK_BYTES, read.clone()] {
                            let part = &mut bytes[range.start as usize..range.end as usize];
                            origin.check(at, range.start, part, false).unwrap();
                        }
                        bytes[read.end as usize..].fill(0);
                        std::fs::write(path, &bytes).unwrap();
                    }
                }
            }
            let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&to).unwrap());
            let recovered = Store::open(disk).unwrap().recover(4).unwrap();
            assert_eq!(recovered.log.end, end);
            std::fs::remove_dir_all(&from).unwrap();
            std::fs::remove_dir_all(&to).unwrap();
        }
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range_and_read_what_changed(
            pages in proptest::collection::btree_set(0u32..600, 0..80), first in 0u64..300, len in 0u64..300,
            there in 0u64..700, tell: bool,
        ) {
            let set: PageSet = pages.iter().copied().collect();
            let page = PAGE_BYTES as u64;
            let range = first * page..(first + len) * page;
            let pieces = changed_pieces(range.clone(), there * page, &set, tell);
            let mut at = range.start;
            for piece in &pieces {
                prop_assert_eq!(piece.range().start, at);
                prop_assert!(!piece.range().is_empty());
                at = piece.range().end;
                for number in piece.range().start / page..at / page {
                    let changed = pages.contains(&(number as u32));
                    let written = number < there;
                    let right = match piece {
                        Piece::Read(_) => changed && written,
                        Piece::Keep(_) => !changed || !written && !tell,
                        Piece::Missing(_) => changed && !written && tell,
                    };
                    prop_assert!(right);
                }
            }
            prop_assert_eq!(at, range.end);
        }
    }
}
