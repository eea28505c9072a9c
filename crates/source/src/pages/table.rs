//! The files of tables.
//!
//! Invariants: page n stands at n times 4,096; what a file does not hold yet reads as zeros, a page that was never
//! written.

use std::io;

use mover_base::{BLOCK_BYTES, Error, Kind, Lsn, Result, hex};

use super::Catalogue;
use crate::disk::{Access, Disk, DiskFile, remove_if_there};
use crate::failure::source_error;
use crate::page::{self, PageBytes, PageHeader};
use crate::wire::corrupt;

/// The directory of the tables.
pub const TABLES_DIR: &str = "tables";
const SUFFIX: &str = ".pages";

/// Path of a table's file in the page store: `tables/<id, 8 hex digits>.pages`.
pub fn table_path(table: u32) -> String {
    format!("{TABLES_DIR}/{table:08x}{SUFFIX}")
}

/// A table's open file.
#[derive(Debug)]
pub struct TableFile {
    table: u32,
    file: Box<dyn DiskFile>,
}

impl TableFile {
    /// Opens the file for reading; `None` if there is none.
    ///
    /// # Errors
    /// `Source` if it cannot be opened.
    pub fn open_read(disk: &dyn Disk, table: u32) -> Result<Option<Self>> {
        match disk.open(&table_path(table), Access::Read) {
            Ok(file) => Ok(Some(TableFile { table, file })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(table, error)),
        }
    }

    /// Opens the file for reading and writing, and makes it if there is none. Its name is durable after the next sync of
    /// [`TABLES_DIR`].
    ///
    /// # Errors
    /// `Storage` if it can be neither opened nor made.
    pub fn open_write(disk: &dyn Disk, table: u32) -> Result<Self> {
        let path = table_path(table);
        let file = match disk.open(&path, Access::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.open(&path, Access::Create)
            }
            opened => opened,
        };
        let file = file.map_err(|error| unwritable(table, error))?;
        Ok(TableFile { table, file })
    }

    /// The bytes of a page as they stand there, unchecked.
    ///
    /// # Errors
    /// `Source` if they cannot be read.
    pub fn read(&self, page: u32) -> Result<PageBytes> {
        let mut bytes = [0; BLOCK_BYTES];
        let read = self.file.read_at(&mut bytes, offset(page));
        let read = read.map_err(|error| unreadable(self.table, error))?;
        bytes[read..].fill(0);
        Ok(bytes)
    }

    /// A page, checked to be this one and whole; with its LSN, which is 0 for one that was never written.
    ///
    /// # Errors
    /// `Corrupt`, naming table and page, if it is not; `Source` if it cannot be read.
    pub fn read_checked(&self, page: u32) -> Result<(PageBytes, Lsn)> {
        let bytes = self.read(page)?;
        let lsn = page::check(&bytes, self.table, page)?;
        Ok((bytes, lsn))
    }

    /// Seals `bytes` as page `page` with `lsn`, and writes it. The log must be durable up to the end of the group that
    /// `lsn` is part of.
    ///
    /// # Errors
    /// `Storage` if it cannot be written.
    pub fn write(&self, page: u32, lsn: Lsn, bytes: &mut PageBytes) -> Result<()> {
        let header = PageHeader {
            lsn,
            table: self.table,
            page,
        };
        page::seal(bytes, header);
        self.file
            .write_at(&bytes[..], offset(page))
            .map_err(|error| unwritable(self.table, error))
    }

    /// Makes the file long enough for `pages` pages.
    ///
    /// # Errors
    /// `Storage` if that fails.
    pub fn extend(&self, pages: u32) -> Result<()> {
        self.file
            .allocate(offset(pages))
            .map_err(|error| unwritable(self.table, error))
    }

    /// Makes what was written durable. An error is final.
    ///
    /// # Errors
    /// `Storage` if that fails.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync()
            .map_err(|error| unwritable(self.table, error))
    }
}

/// Removes a table's file, if there is one.
pub(crate) fn remove(disk: &dyn Disk, table: u32) -> Result<()> {
    remove_if_there(disk, &table_path(table)).map_err(|error| unwritable(table, error))
}

/// Removes the files of tables that the catalogue does not have: dropped ones, and those that were never committed.
pub(crate) fn remove_orphans(disk: &dyn Disk, catalogue: &Catalogue) -> Result<()> {
    let names = disk.list(TABLES_DIR).map_err(|error| {
        source_error("the tables cannot be listed", TABLES_DIR.as_bytes(), error)
    })?;
    for name in names {
        let id = name.strip_suffix(SUFFIX).and_then(hex::decode::<4>);
        match id.map(u32::from_be_bytes) {
            Some(table) if !catalogue.tables().contains_key(&table) => remove(disk, table)?,
            _ => {}
        }
    }
    disk.sync_dir(TABLES_DIR).map_err(|error| {
        Error::new(Kind::Storage, "the tables' directory cannot be synced")
            .object(TABLES_DIR)
            .cause(error)
    })
}

fn offset(page: u32) -> u64 {
    u64::from(page) * BLOCK_BYTES as u64
}

fn unreadable(table: u32, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return corrupt("a table's file is missing").object(table_path(table));
    }
    source_error(
        "a table cannot be read",
        table_path(table).as_bytes(),
        error,
    )
}

fn unwritable(table: u32, error: io::Error) -> Error {
    Error::new(Kind::Storage, "a table cannot be written")
        .object(table_path(table))
        .cause(error)
}
