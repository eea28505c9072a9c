//! The catalogue: which tables there are.
//!
//! Invariants: it follows from the log alone; the file is a shortcut to what the log says up to a position. A table's
//! id is never used twice. Counts and lengths are compared with their caps, and with the bytes there are, before memory
//! is taken. The layout is in docs/wal-format.md, section 9.

use std::collections::BTreeMap;

use mover_base::checksum::crc32;
use mover_base::{HistoryId, Lsn, Result, SystemId};

use crate::wal::record::NAME_BYTES_MAX;
use crate::wal::segment::LOG_VERSION;
use crate::wal::{LSN_MAX, Record, TableKind};
use crate::wire::{array_at, corrupt, is_zero, u16_at, u32_at, u64_at};

const MAGIC: [u8; 8] = *b"HELIOSCA";
const HEAD_BYTES: usize = 64;
const ENTRY_BYTES_MIN: usize = 10;
/// The most tables that a database has at a time.
pub const TABLES_MAX: usize = 65_536;
/// The longest catalogue file.
pub const CATALOGUE_BYTES_MAX: usize =
    HEAD_BYTES + TABLES_MAX * (ENTRY_BYTES_MIN + NAME_BYTES_MAX) + 4;

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it is called.
    pub name: String,
    /// What it holds.
    pub kind: TableKind,
    /// How many pages it has.
    pub pages: u32,
}

/// The tables at a position of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    /// The database.
    pub system: SystemId,
    /// The history.
    pub history: HistoryId,
    /// All groups that end here or before are in it, and none that ends later.
    pub lsn: Lsn,
    tables: BTreeMap<u32, Table>,
    next_table: u32,
}

impl Catalogue {
    /// No tables, at `lsn`.
    pub fn new(system: SystemId, history: HistoryId, lsn: Lsn) -> Self {
        Catalogue {
            system,
            history,
            lsn,
            tables: BTreeMap::new(),
            next_table: 1,
        }
    }

    /// The tables by id.
    pub fn tables(&self) -> &BTreeMap<u32, Table> {
        &self.tables
    }

    /// The smallest id that no table had yet.
    pub fn next_table(&self) -> u32 {
        self.next_table
    }

    /// Takes in what the record at `lsn` says; one before the catalogue's own position is in it already. The position
    /// itself stays.
    ///
    /// # Errors
    /// `Corrupt` if the record contradicts the catalogue.
    pub fn apply(&mut self, lsn: Lsn, record: &Record<'_>) -> Result<()> {
        if lsn < self.lsn {
            return Ok(());
        }
        let wrong = |table: u32, what: &str| {
            Err(corrupt(format!("the log's record at {lsn} {what}"))
                .object(format!("table {table:08x}")))
        };
        match *record {
            Record::Create { table, kind, name } => {
                if table < self.next_table || table == u32::MAX {
                    return wrong(table, "makes a table whose id was used before");
                }
                if self.tables.len() >= TABLES_MAX {
                    return wrong(table, "makes more tables than a database may have");
                }
                self.next_table = table + 1;
                let made = Table {
                    name: name.to_owned(),
                    kind,
                    pages: 0,
                };
                self.tables.insert(table, made);
            }
            Record::Drop { table } => {
                let known = self.tables.remove(&table);
                if known.is_none() {
                    return wrong(table, "drops a table that is not there");
                }
            }
            Record::Extend { table, pages } => match self.tables.get_mut(&table) {
                Some(known) if known.pages < pages => known.pages = pages,
                Some(_) => return wrong(table, "extends a table to less than it has"),
                None => return wrong(table, "extends a table that is not there"),
            },
            Record::Delta { table, page, .. } | Record::Image { table, page, .. } => {
                match self.tables.get(&table) {
                    Some(known) if page < known.pages => {}
                    Some(_) => return wrong(table, "changes a page behind the table's end"),
                    None => return wrong(table, "changes a page of a table that is not there"),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEAD_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&LOG_VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.system.0);
        out[32..48].copy_from_slice(&self.history.0);
        out[48..56].copy_from_slice(&self.lsn.0.to_le_bytes());
        out[56..60].copy_from_slice(&self.next_table.to_le_bytes());
        out[60..64].copy_from_slice(&(self.tables.len() as u32).to_le_bytes());
        for (id, table) in &self.tables {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&table.pages.to_le_bytes());
            out.push(table.kind as u8);
            // Names came out of records, which hold at most 255 bytes.
            out.push(table.name.len() as u8);
            out.extend_from_slice(table.name.as_bytes());
        }
        let crc = crc32(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the file.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or breaks a rule.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let rules = || corrupt("the catalogue breaks a rule of its layout");
        if bytes.len() < HEAD_BYTES + 4 || bytes[..8] != MAGIC {
            return Err(corrupt("the catalogue does not begin as one"));
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if u32_at(crc, 0) != crc32(body) {
            return Err(corrupt("the catalogue does not match its checksum"));
        }
        let version = u16_at(body, 8);
        if version != LOG_VERSION {
            return Err(corrupt(format!(
                "the catalogue is of the unknown version {version}"
            )));
        }
        let (next_table, count) = (u32_at(body, 56), u32_at(body, 60) as usize);
        let mut rest = &body[HEAD_BYTES..];
        if count > TABLES_MAX || count * ENTRY_BYTES_MIN > rest.len() {
            return Err(rules());
        }
        let mut tables = BTreeMap::new();
        let mut id_min = 1;
        for _ in 0..count {
            let (id, table, after) = decode_entry(rest).ok_or_else(rules)?;
            if id < id_min || id >= next_table {
                return Err(rules());
            }
            id_min = id + 1;
            tables.insert(id, table);
            rest = after;
        }
        let catalogue = Catalogue {
            system: SystemId(array_at(body, 16)),
            history: HistoryId(array_at(body, 32)),
            lsn: Lsn(u64_at(body, 48)),
            tables,
            next_table,
        };
        let sound = rest.is_empty()
            && next_table != 0
            && is_zero(&body[10..16])
            && catalogue.lsn <= LSN_MAX
            && catalogue.system.0 != [0; 16]
            && catalogue.history.0 != [0; 16];
        if sound { Ok(catalogue) } else { Err(rules()) }
    }
}

/// One entry at the front of `bytes`, and what follows it.
fn decode_entry(bytes: &[u8]) -> Option<(u32, Table, &[u8])> {
    let (head, rest) = bytes.split_at_checked(ENTRY_BYTES_MIN)?;
    let (name, rest) = rest.split_at_checked(usize::from(head[9]))?;
    let table = Table {
        name: std::str::from_utf8(name)
            .ok()
            .filter(|name| !name.is_empty())?
            .to_owned(),
        kind: TableKind::from_code(head[8])?,
        pages: u32_at(head, 4),
    };
    Some((u32_at(head, 0), table, rest))
}
