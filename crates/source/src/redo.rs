//! Redo: bringing pages up to a position of the log.
//!
//! A record is applied where the page's LSN is below the record's, so that doing it again changes nothing. A page that
//! is torn or damaged is passed over until its image comes along in the log.
//!
//! Invariants: records of one page are applied in the order of the log; at most a stated number of pages and
//! [`OPEN_TABLES_MAX`] files are held; [`Redo::finish`] succeeds only if no page is left that is not whole, and then all
//! pages are durable.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use mover_base::{Error, Kind, Lsn, Result};

use crate::disk::Disk;
use crate::page::{self, PAGE_BYTES, PAGE_HEADER_BYTES, PageBytes};
use crate::pages::{Catalogue, TABLES_DIR, TableFile, table_path};
use crate::wal::Record;
use crate::wire::corrupt;

/// Files of tables that are held open.
pub const OPEN_TABLES_MAX: usize = 128;
/// Torn pages that may wait for their images at a time.
pub const TORN_PAGES_MAX: usize = 65_536;

/// What redo did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Redone {
    /// Page records looked at.
    pub records: u64,
    /// Of these, applied.
    pub applied: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Torn or damaged pages that an image mended.
    pub mended: u64,
}

struct Held {
    bytes: Box<PageBytes>,
    lsn: Lsn,
    changed: bool,
}

/// Applies records to the pages of a store.
pub struct Redo {
    disk: Arc<dyn Disk>,
    catalogue: Catalogue,
    end: Lsn,
    cache_pages: usize,
    held: BTreeMap<(u32, u32), Held>,
    torn: BTreeSet<(u32, u32)>,
    open: HashMap<u32, TableFile>,
    redone: Redone,
}

impl Redo {
    /// Redo on the store on `disk`, whose tables at the beginning are `catalogue`'s (or later ones), up to `end`, with at
    /// most `cache_pages` pages in memory.
    pub fn new(disk: Arc<dyn Disk>, catalogue: Catalogue, end: Lsn, cache_pages: usize) -> Self {
        Redo {
            disk,
            catalogue,
            end,
            cache_pages: cache_pages.max(1),
            held: BTreeMap::new(),
            torn: BTreeSet::new(),
            open: HashMap::new(),
            redone: Redone::default(),
        }
    }

    /// Applies the record that begins at `lsn`. Records must come in the order of the log, and each committed.
    ///
    /// # Errors
    /// `Corrupt` if the record contradicts tables or pages; `Storage` or `Source` if files cannot be written or read.
    pub fn apply(&mut self, lsn: Lsn, record: &Record<'_>) -> Result<()> {
        self.catalogue.apply(lsn, record)?;
        match *record {
            Record::Delta {
                table,
                page,
                ranges,
            } if self.concerns(table) => {
                self.within(lsn, table, page)?;
                self.change(lsn, table, page, false, |bytes| ranges.apply(bytes))
            }
            Record::Image { table, page, body } if self.concerns(table) => {
                self.within(lsn, table, page)?;
                self.change(lsn, table, page, true, |bytes| {
                    bytes[PAGE_HEADER_BYTES..].copy_from_slice(body);
                })
            }
            // A later catalogue may know that the table is gone.
            Record::Create { table, .. } if self.concerns(table) => self.file(table).map(|_| ()),
            Record::Drop { table } => self.drop_table(table),
            _ => Ok(()),
        }
    }

    fn concerns(&self, table: u32) -> bool {
        self.catalogue.tables().contains_key(&table)
    }

    /// Tables only grow, so a page that the catalogue does not have yet never was one, also in records before it.
    fn within(&self, lsn: Lsn, table: u32, page: u32) -> Result<()> {
        let known = self.catalogue.tables().get(&table);
        if known.is_some_and(|known| page < known.pages) {
            return Ok(());
        }
        let what = format!("the log's record at {lsn} changes a page that its table does not have");
        Err(corrupt(what).object(page::name(table, page)))
    }

    fn change(
        &mut self,
        lsn: Lsn,
        table: u32,
        page: u32,
        image: bool,
        change: impl FnOnce(&mut PageBytes),
    ) -> Result<()> {
        self.redone.records += 1;
        let place = (table, page);
        if !self.held.contains_key(&place) {
            self.load(table, page, image)?;
        }
        if self.torn.contains(&place) && !image {
            return Ok(());
        }
        let Some(held) = self.held.get_mut(&place) else {
            return Err(Error::new(
                Kind::Internal,
                "a page is neither held nor torn",
            ));
        };
        if self.torn.remove(&place) {
            self.redone.mended += 1;
        }
        if held.lsn >= lsn {
            return Ok(());
        }
        if held.lsn == Lsn(0) && !image {
            return Err(corrupt(format!(
                "the log's record at {lsn} changes a page that was never written"
            ))
            .object(page::name(table, page))
            .hint("a file of the table lost what was written to it; restore from a backup"));
        }
        change(&mut held.bytes);
        (held.lsn, held.changed) = (lsn, true);
        self.redone.applied += 1;
        Ok(())
    }

    /// Brings a page into memory. One that is not whole is noted as torn, and held (as zeros) only for an image.
    fn load(&mut self, table: u32, page: u32, image: bool) -> Result<()> {
        let place = (table, page);
        if !image && self.torn.contains(&place) {
            return Ok(());
        }
        let mut bytes = Box::new(self.file(table)?.read(page)?);
        let lsn = match page::check(&bytes, table, page) {
            Ok(lsn) if lsn >= self.end => {
                return Err(corrupt(format!(
                    "a page is ahead of the log: it is of {lsn}, and the log ends at {}",
                    self.end
                ))
                .object(page::name(table, page))
                .hint("part of the log is lost; restore from a backup"));
            }
            Ok(lsn) => lsn,
            Err(_) => {
                if self.torn.len() >= TORN_PAGES_MAX && !self.torn.contains(&place) {
                    return Err(Error::new(
                        Kind::Limit,
                        format!("more than {TORN_PAGES_MAX} pages are damaged"),
                    )
                    .object(table_path(table))
                    .hint("restore from a backup"));
                }
                self.torn.insert(place);
                if !image {
                    return Ok(());
                }
                *bytes = [0; PAGE_BYTES];
                Lsn(0)
            }
        };
        if self.held.len() >= self.cache_pages {
            self.write_all()?;
        }
        let held = Held {
            bytes,
            lsn,
            changed: false,
        };
        self.held.insert(place, held);
        Ok(())
    }

    /// Writes all changed pages, in the order of the files, and forgets all.
    fn write_all(&mut self) -> Result<()> {
        for ((table, page), mut held) in std::mem::take(&mut self.held) {
            if held.changed {
                self.file(table)?.write(page, held.lsn, &mut held.bytes)?;
                self.redone.pages_written += 1;
            }
        }
        Ok(())
    }

    fn file(&mut self, table: u32) -> Result<&TableFile> {
        if !self.open.contains_key(&table) {
            if self.open.len() >= OPEN_TABLES_MAX {
                self.sync()?;
            }
            let file = TableFile::open_write(&*self.disk, table)?;
            self.open.insert(table, file);
        }
        self.open
            .get(&table)
            .ok_or_else(|| Error::new(Kind::Internal, "an opened table is not open"))
    }

    /// Syncs all open files and closes them.
    fn sync(&mut self) -> Result<()> {
        for file in std::mem::take(&mut self.open).into_values() {
            file.sync()?;
        }
        Ok(())
    }

    fn drop_table(&mut self, table: u32) -> Result<()> {
        if self.concerns(table) {
            // A catalogue older than the record would have dropped it just now.
            return Ok(());
        }
        self.held.retain(|(of, _), _| *of != table);
        self.torn.retain(|(of, _)| *of != table);
        self.open.remove(&table);
        Ok(())
    }

    /// Writes and syncs everything, and returns the tables at the end.
    ///
    /// # Errors
    /// `Corrupt`, naming table and page, if a page is not whole and the log has no image of it; `Storage` if anything cannot
    /// be written.
    pub fn finish(mut self) -> Result<(Catalogue, Redone)> {
        if let Some((table, page)) = self.torn.first() {
            return Err(
                corrupt("a page is torn or damaged, and the log has no image of it")
                    .object(page::name(*table, *page))
                    .hint("restore from a backup"),
            );
        }
        self.write_all()?;
        let tables: Vec<(u32, u32)> = self
            .catalogue
            .tables()
            .iter()
            .map(|(id, table)| (*id, table.pages))
            .collect();
        for (table, pages) in tables {
            self.file(table)?.extend(pages)?;
        }
        self.sync()?;
        self.disk.sync_dir(TABLES_DIR).map_err(|error| {
            Error::new(Kind::Storage, "the tables' directory cannot be synced")
                .object(TABLES_DIR)
                .cause(error)
        })?;
        Ok((self.catalogue, self.redone))
    }
}
