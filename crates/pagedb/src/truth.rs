//! What a shop's database held at each of its commits, and the comparison of a store with it.
//!
//! Invariants: the truth comes from the model, which knows no page, and from hashes of the pages that were taken when
//! transactions changed them; the store's files are read as they lie there, by no code of the mover's but the checks of
//! page and catalogue. One table's rows at a time are in memory beside the model's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use mover_base::checksum::{Sha256, sha256};
use mover_base::{Lsn, Result};
use mover_source::disk::DirDisk;
use mover_source::page::{PAGE_BYTES, PAGE_HEADER_BYTES, PageBytes, check};
use mover_source::pages::{read_catalogue, table_path};

use crate::bulk::FullPages;
use crate::heap;
use crate::model::{Contents, Journal};
use crate::random::Random;

/// The large table that nobody changes.
pub(crate) const ARCHIVE: &str = "archive";
/// Pages that are read in one go.
const BATCH_PAGES: usize = 256;
/// Differences that are told; one is enough to fail.
const DIFFERENCES_MAX: usize = 8;

/// The truth up to the moment when it was asked for.
pub struct Truth {
    journal: Journal,
    seed: u64,
    archive_pages: u32,
}

/// What a comparison looked at and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Tables.
    pub tables: u64,
    /// Rows.
    pub rows: u64,
    /// Pages, each with its checksum.
    pub pages: u64,
    /// Transactions that the store should have, from the first one on.
    pub transactions: u64,
    /// The first differences; none if the store is right.
    pub differences: Vec<String>,
}

/// What is known of the store at one position.
struct Wanted {
    contents: Contents,
    pages: BTreeMap<(u32, u32), Sha256>,
    end: Lsn,
}

impl Truth {
    pub(crate) fn new(journal: Journal, seed: u64, archive_pages: u32) -> Truth {
        Truth {
            journal,
            seed,
            archive_pages,
        }
    }

    /// Compares every table, row and page of the recovered store in `directory` with what there was when the log ended at `end`.
    pub fn compare(&self, directory: &Path, end: Lsn) -> Result<Comparison> {
        let catalogue = read_catalogue(&DirDisk::open(directory)?)?;
        let commits = self.journal.0.iter();
        let wanted = Wanted {
            contents: self.journal.contents_at(end),
            pages: self.journal.pages_at(end),
            end,
        };
        let mut out = Comparison {
            tables: 0,
            rows: 0,
            pages: 0,
            transactions: commits.filter(|commit| commit.end <= end).count() as u64,
            differences: Vec::new(),
        };
        let mut missing: Vec<&str> = wanted.contents.0.keys().map(String::as_str).collect();
        missing.push(ARCHIVE);
        for (id, table) in catalogue.tables() {
            missing.retain(|name| *name != table.name);
            let path = directory.join(table_path(*id));
            let mut pages = Pages::open(&path, *id, table.pages)?;
            let difference = match table.name.as_str() {
                ARCHIVE => self.archive(&mut pages)?,
                name => wanted.table(name, &mut pages)?,
            };
            out.tables += 1;
            out.pages += u64::from(table.pages);
            out.rows += pages.rows;
            if let Some(what) = difference {
                out.tell(format!("table {} {what}", table.name));
            }
        }
        for name in missing {
            out.tell(format!("table {name} is missing"));
        }
        Ok(out)
    }

    fn archive(&self, pages: &mut Pages) -> Result<Option<String>> {
        if pages.count != self.archive_pages {
            return Ok(Some(format!("has {} pages", pages.count)));
        }
        let mut random = Random::new(self.seed);
        let wanted = FullPages::new(&mut random);
        for (number, wanted) in (0..self.archive_pages).zip(wanted) {
            match pages.next()? {
                Ok((page, _)) if page[PAGE_HEADER_BYTES..] == wanted[PAGE_HEADER_BYTES..] => {
                    pages.rows += heap::slots(&wanted) as u64;
                }
                Ok(_) => return Ok(Some(format!("differs in page {number}"))),
                Err(what) => return Ok(Some(what)),
            }
        }
        Ok(None)
    }
}

impl Wanted {
    fn table(&self, name: &str, pages: &mut Pages) -> Result<Option<String>> {
        let Some(wanted) = self.contents.0.get(name) else {
            return Ok(Some("should not exist".into()));
        };
        let mut rows = BTreeMap::new();
        for number in 0..pages.count {
            let (page, lsn) = match pages.next()? {
                Ok(page) => page,
                Err(what) => return Ok(Some(what)),
            };
            let known = self.pages.get(&(pages.table, number));
            if known.is_some_and(|known| sha256(&page[PAGE_HEADER_BYTES..]) != *known) {
                return Ok(Some(format!("differs in page {number}")));
            }
            if lsn >= self.end {
                return Ok(Some(format!("has a page {number} of position {lsn}")));
            }
            for (key, row) in (0..heap::slots(&page)).filter_map(|slot| heap::row(&page, slot)) {
                if rows.insert(key, row.to_vec()).is_some() {
                    return Ok(Some(format!("has row {key} twice")));
                }
            }
        }
        pages.rows = rows.len() as u64;
        Ok((rows != *wanted).then(|| "has other rows".into()))
    }
}

impl Comparison {
    fn tell(&mut self, what: String) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(what);
        }
    }
}

/// The pages of a table's file, in their order.
struct Pages {
    file: File,
    table: u32,
    count: u32,
    next: u32,
    batch: Vec<u8>,
    rows: u64,
}

/// A page and its position, or what is wrong with it.
type Checked = std::result::Result<(PageBytes, Lsn), String>;

impl Pages {
    fn open(path: &Path, table: u32, count: u32) -> Result<Pages> {
        let file = File::open(path).map_err(|error| {
            let path = path.as_os_str().as_bytes();
            mover_source::target_error("a table's file cannot be opened", path, error)
        })?;
        Ok(Pages {
            file,
            table,
            count,
            next: 0,
            batch: Vec::new(),
            rows: 0,
        })
    }

    fn next(&mut self) -> Result<Checked> {
        let number = self.next;
        let within = number as usize % BATCH_PAGES;
        if within == 0 {
            let bytes = BATCH_PAGES.min((self.count - number) as usize) * PAGE_BYTES;
            self.batch.clear();
            let read = (&mut self.file)
                .take(bytes as u64)
                .read_to_end(&mut self.batch);
            if let Err(error) = read {
                return Ok(Err(format!("cannot be read at page {number}: {error}")));
            }
            // Pages that a table has and its file has not yet are pages of zeros.
            self.batch.resize(bytes, 0);
        }
        self.next += 1;
        let bytes = &self.batch[within * PAGE_BYTES..][..PAGE_BYTES];
        let page: &PageBytes = bytes.first_chunk().expect("a page");
        match check(page, self.table, number) {
            Ok(lsn) => Ok(Ok((*page, lsn))),
            Err(error) => Ok(Err(format!("has a wrong page {number}: {error}"))),
        }
    }
}
