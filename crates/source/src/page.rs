//! Pages: 4 KiB with a header that says which page it is, how far the log has been applied to it, and whether it is whole.
//!
//! Invariants: a page of zeros was never written; every other page carries an LSN and a table id that are not 0, and a
//! CRC-32 over everything but itself. The layout is in docs/wal-format.md, section 2.

use mover_base::checksum::{crc32, crc32_continue};
use mover_base::{BLOCK_BYTES, Lsn, Result};

use crate::wire::{corrupt, is_zero, u32_at, u64_at};

/// Bytes of a page.
pub const PAGE_BYTES: usize = BLOCK_BYTES;
/// Bytes of a page's header; the body follows.
pub const PAGE_HEADER_BYTES: usize = 24;
/// Bytes of a page's body, which belong to the database.
pub const BODY_BYTES: usize = PAGE_BYTES - PAGE_HEADER_BYTES;
/// Where the CRC-32 stands.
const CRC_AT: usize = 16;

/// The bytes of a page.
pub type PageBytes = [u8; PAGE_BYTES];

/// What a page's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Where the last record that was applied to the page begins in the log.
    pub lsn: Lsn,
    /// The table.
    pub table: u32,
    /// The page's number in the table, from 0.
    pub page: u32,
}

fn crc_of(bytes: &PageBytes) -> u32 {
    crc32_continue(crc32(&bytes[..CRC_AT]), &bytes[CRC_AT + 4..])
}

/// Reads a page's header and checks its CRC; `None` for a page of zeros, which was never written.
///
/// # Errors
/// `Corrupt` if the page is torn, damaged or breaks a rule of the layout.
pub fn decode(bytes: &PageBytes) -> Result<Option<PageHeader>> {
    let header = PageHeader {
        lsn: Lsn(u64_at(bytes, 0)),
        table: u32_at(bytes, 8),
        page: u32_at(bytes, 12),
    };
    if header.lsn == Lsn(0) && is_zero(bytes) {
        return Ok(None);
    }
    if u32_at(bytes, CRC_AT) != crc_of(bytes) {
        return Err(corrupt("a page does not match its checksum"));
    }
    if header.lsn == Lsn(0) || header.table == 0 || u32_at(bytes, 20) != 0 {
        return Err(corrupt("a page's header breaks the rules of its layout"));
    }
    Ok(Some(header))
}

/// Reads a page that should be page `page` of `table`: its LSN, 0 for a page of zeros.
///
/// # Errors
/// `Corrupt`, naming table and page, if it is torn, damaged, or another page.
pub fn check(bytes: &PageBytes, table: u32, page: u32) -> Result<Lsn> {
    match decode(bytes) {
        Ok(None) => Ok(Lsn(0)),
        Ok(Some(header)) if (header.table, header.page) == (table, page) => Ok(header.lsn),
        Ok(Some(header)) => Err(corrupt(format!(
            "a page of another place (table {:08x}, page {}) was found",
            header.table, header.page
        ))
        .object(name(table, page))),
        Err(error) => Err(error.object(name(table, page))),
    }
}

/// Writes the header, with the CRC-32 of the body as it is now. `header` must obey the layout: LSN and table not 0.
pub fn seal(bytes: &mut PageBytes, header: PageHeader) {
    bytes[0..8].copy_from_slice(&header.lsn.0.to_le_bytes());
    bytes[8..12].copy_from_slice(&header.table.to_le_bytes());
    bytes[12..16].copy_from_slice(&header.page.to_le_bytes());
    bytes[20..24].fill(0);
    let crc = crc_of(bytes);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

/// How errors name a page.
pub(crate) fn name(table: u32, page: u32) -> String {
    format!("table {table:08x}, page {page}")
}
