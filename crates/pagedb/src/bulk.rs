//! Large page stores, quickly: one table full of rows, and changes of pages at random, both logged and checkpointed as a
//! database does it.
//!
//! Invariants: the pages on disk are those that the log leads to; content depends on the seed alone; memory does not
//! depend on the size.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use mover_base::{Lsn, Result, Timestamp};
use mover_client::Tracker;
use mover_source::disk::Disk;
use mover_source::page::{BODY_BYTES, PAGE_BYTES, PAGE_HEADER_BYTES, PageBytes};
use mover_source::pages::{Catalogue, Store, TableFile};
use mover_source::wal::{Appended, Group, LogIdentity, Record, TableKind, Writer};

use crate::database::remove_log;
use crate::heap;
use crate::random::Random;
use crate::workload::row;

/// The table.
pub const TABLE: u32 = 1;
/// Pages that a transaction changes.
const PAGES_PER_TRANSACTION: usize = 32;
/// Bytes of a row's time and token.
const FRESH_BYTES: usize = 16;

/// A store with one large table, open for changes.
pub struct Bulk {
    disk: Arc<dyn Disk>,
    store: Store,
    writer: Writer,
    file: TableFile,
    catalogue: Catalogue,
    pages: u32,
    random: Random,
    transaction: u64,
    tracker: Option<Tracker>,
}

impl Bulk {
    /// Makes a store with a table of `pages` pages.
    pub fn make(
        disk: &Arc<dyn Disk>,
        identity: LogIdentity,
        seed: u64,
        pages: u32,
    ) -> Result<Bulk> {
        let mut store = Store::create(Arc::clone(disk), identity)?;
        let recovered = store.recover(16)?;
        let mut catalogue = store.catalogue().clone();
        let mut group = Group::new();
        group.create(TABLE, TableKind::Rows, "orders")?;
        group.extend(TABLE, pages)?;
        let appended = recovered.writer.append(&group, 1, time(1))?;
        let create = Record::Create {
            table: TABLE,
            kind: TableKind::Rows,
            name: "orders",
        };
        catalogue.apply(appended.records[0], &create)?;
        let extend = Record::Extend {
            table: TABLE,
            pages,
        };
        catalogue.apply(appended.records[1], &extend)?;
        recovered.writer.flush_to(appended.end)?;
        let mut bulk = Bulk {
            disk: Arc::clone(disk),
            file: TableFile::open_write(&**disk, TABLE)?,
            store,
            writer: recovered.writer,
            catalogue,
            pages,
            random: Random::new(seed),
            transaction: 1,
            tracker: None,
        };
        fill(&bulk.file, &mut bulk.random, pages, appended.records[1])?;
        bulk.checkpoint()?;
        Ok(bulk)
    }

    /// Opens a store that [`make`](Self::make) made, or a copy of one, which `seed` makes go its own way.
    pub fn open(disk: &Arc<dyn Disk>, seed: u64) -> Result<Bulk> {
        let mut store = Store::open(Arc::clone(disk))?;
        let recovered = store.recover(16)?;
        let catalogue = store.catalogue().clone();
        Ok(Bulk {
            disk: Arc::clone(disk),
            file: TableFile::open_write(&**disk, TABLE)?,
            store,
            writer: recovered.writer,
            pages: catalogue.tables()[&TABLE].pages,
            catalogue,
            random: Random::new(seed),
            transaction: recovered.next_transaction,
            tracker: None,
        })
    }

    /// Takes up the block change tracker of the store, which is in `directory`. From now on it is told what changes, and the log
    /// goes after each checkpoint as far as nobody holds it.
    pub fn track(&mut self, directory: &Path) -> Result<()> {
        let (identity, end) = (*self.writer.identity(), self.writer.end());
        let (tracker, _) = Tracker::open(directory, identity, end, &self.catalogue)?;
        self.tracker = Some(tracker);
        Ok(())
    }

    /// Changes a row in each of `count` pages at random, and makes a checkpoint. Returns the pages.
    pub fn change(&mut self, count: usize) -> Result<BTreeSet<u32>> {
        let mut changed = BTreeSet::new();
        while changed.len() < count.min(self.pages as usize) {
            changed.insert(self.random.below(u64::from(self.pages)) as u32);
        }
        let numbers: Vec<u32> = changed.iter().copied().collect();
        for numbers in numbers.chunks(PAGES_PER_TRANSACTION) {
            let mut group = Group::new();
            let mut pages = Vec::with_capacity(numbers.len());
            for number in numbers {
                let (mut page, _) = self.file.read_checked(*number)?;
                let slot = self.random.below(heap::slots(&page) as u64) as usize;
                let mut content = heap::row(&page, slot).expect("row").1.to_vec();
                freshen(&mut self.random, &mut content);
                assert!(heap::replace(&mut page, slot, &content));
                let body = page[PAGE_HEADER_BYTES..].first_chunk::<BODY_BYTES>();
                // The first change since the checkpoint.
                group.image(TABLE, *number, body.expect("body"))?;
                pages.push(page);
            }
            self.transaction += 1;
            let appended = self.append(&group, numbers)?;
            for ((number, page), lsn) in numbers.iter().zip(&mut pages).zip(&appended.records) {
                self.file.write(*number, *lsn, page)?;
            }
        }
        self.checkpoint()?;
        Ok(changed)
    }

    /// Commits `group`, which changes these pages.
    fn append(&self, group: &Group, pages: &[u32]) -> Result<Appended> {
        let marking = self.tracker.as_ref().map(|tracker| {
            let mut marking = tracker.begin();
            marking.mark_many(pages.iter().map(|page| (TABLE, *page)));
            marking
        });
        let time = time(self.transaction);
        let appended = self.writer.append(group, self.transaction, time)?;
        if let Some(marking) = marking {
            marking.end(appended.end);
        }
        self.writer.flush_to(appended.end)?;
        if let Some(tracker) = &self.tracker {
            tracker.durable(appended.end);
        }
        Ok(appended)
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.file.sync()?;
        self.catalogue.lsn = self.writer.end();
        let next = self.transaction + 1;
        self.store
            .checkpoint(&self.writer, self.catalogue.clone(), next, time(next))?;
        if let Some(tracker) = &self.tracker {
            let control = self.store.control();
            let held = tracker.log_held_from()?;
            let needed = held.map_or(control.redo, |held| held.min(control.redo));
            remove_log(&*self.disk, &control.identity, needed)?;
        }
        Ok(())
    }

    /// The table's file.
    pub fn file(&self) -> &TableFile {
        &self.file
    }
}

/// Pages full of rows, one after the other, their headers empty.
pub(crate) struct FullPages<'a> {
    random: &'a mut Random,
    key: u64,
}

impl<'a> FullPages<'a> {
    pub(crate) fn new(random: &'a mut Random) -> Self {
        FullPages { random, key: 0 }
    }
}

impl Iterator for FullPages<'_> {
    type Item = PageBytes;

    fn next(&mut self) -> Option<PageBytes> {
        let mut page: PageBytes = [0; PAGE_BYTES];
        loop {
            let content = row(self.random, 30);
            if heap::insert(&mut page, self.key, &content).is_none() {
                return Some(page);
            }
            self.key += 1;
        }
    }
}

/// Writes `pages` pages full of rows, as of `lsn`.
pub(crate) fn fill(file: &TableFile, random: &mut Random, pages: u32, lsn: Lsn) -> Result<()> {
    for (number, mut page) in (0..pages).zip(FullPages::new(random)) {
        file.write(number, lsn, &mut page)?;
    }
    Ok(())
}

/// A new time and a new token in a row.
fn freshen(random: &mut Random, row: &mut [u8]) {
    row[..8].copy_from_slice(&(1_700_000_000_000_000 + random.below(1 << 44)).to_le_bytes());
    row[8..FRESH_BYTES].copy_from_slice(&random.bits().to_le_bytes());
}

fn time(number: u64) -> Timestamp {
    Timestamp::from_micros(1_790_000_000_000_000 + number as i64)
}

#[cfg(test)]
mod tests {
    use mover_source::disk::DirDisk;
    use mover_source::pages::new_identity;
    use mover_source::wal::SegmentSize;

    use super::*;
    use crate::workload::accounts;
    use crate::{Database, Options, Workload};

    const PAGES: u32 = 200;

    fn pages(bulk: &Bulk) -> Vec<PageBytes> {
        let read = |page| bulk.file().read_checked(page).unwrap().0;
        (0..PAGES).map(read).collect()
    }

    #[test]
    fn a_store_that_is_opened_again_changes_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir.path()).unwrap());
        let identity = new_identity([3; 32], SegmentSize::new(18).unwrap());
        let before = pages(&Bulk::make(&disk, identity, 1, PAGES).unwrap());
        let mut last = before;
        for seed in [2, 3] {
            let mut bulk = Bulk::open(&disk, seed).unwrap();
            let changed = bulk.change(10).unwrap();
            let now = pages(&bulk);
            let differ = (0..PAGES).filter(|page| now[*page as usize] != last[*page as usize]);
            assert_eq!(differ.collect::<BTreeSet<_>>(), changed);
            last = now;
        }
    }

    #[test]
    fn a_database_runs_beside_a_table_that_was_filled() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir.path()).unwrap());
        let identity = new_identity([4; 32], SegmentSize::new(18).unwrap());
        Store::create(Arc::clone(&disk), identity).unwrap();
        let options = Options {
            pool_pages: 20,
            journal: false,
        };
        let (database, _) = Database::open(Arc::clone(&disk), options).unwrap();
        database.fill("archive", PAGES, 4).unwrap();
        let filled = database.contents().unwrap().0["archive"].clone();
        assert!(filled.len() > PAGES as usize);
        database.commit(&accounts(4)).unwrap();
        let mut leaving = Workload::new(4, 1);
        let mut staying = Workload::new(4, 2);
        for _ in 0..30 {
            database.commit(&leaving.next_transaction()).unwrap();
            database.commit(&staying.next_transaction()).unwrap();
        }
        database.commit(&leaving.leave()).unwrap();
        database.checkpoint().unwrap();
        let contents = database.contents().unwrap();
        assert_eq!(contents.0["archive"], filled);
        assert!(!contents.0.contains_key(&Workload::counter(1)));
        assert!(!contents.0.contains_key("orders-1"));
        database.close().unwrap();
        let (again, _) = Database::open(disk, options).unwrap();
        assert_eq!(again.contents().unwrap(), contents);
    }
}
