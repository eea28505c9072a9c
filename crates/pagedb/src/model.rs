//! The model: what the tables hold, by rows, and which pages each commit changed, as the database saw it.
//!
//! Invariant: nothing here knows of pages' layout, of the log's format, or of redo.

use std::collections::{BTreeMap, BTreeSet};

use mover_base::checksum::Sha256;
use mover_base::{Lsn, LsnRange};

use crate::workload::{ACCOUNTS, Op};

/// Rows by key, by table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents(pub BTreeMap<String, BTreeMap<u64, Vec<u8>>>);

impl Contents {
    /// Does what a transaction says.
    pub fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Create(name) => {
                    let old = self.0.insert(name.clone(), BTreeMap::new());
                    assert!(old.is_none(), "{name} was made twice");
                }
                Op::Drop(name) => {
                    self.0.remove(name).expect("table");
                }
                Op::Insert(name, key, row) => {
                    let old = self.rows(name).insert(*key, row.clone());
                    assert!(old.is_none(), "{name} had row {key}");
                }
                Op::Update(name, key, row) => {
                    self.rows(name).insert(*key, row.clone()).expect("row");
                }
                Op::Delete(name, key) => {
                    self.rows(name).remove(key).expect("row");
                }
                Op::Add(name, key, amount) => {
                    let row = self.rows(name).get_mut(key).expect("row");
                    let sum = balance(row) + amount;
                    row[..8].copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
    }

    fn rows(&mut self, name: &str) -> &mut BTreeMap<u64, Vec<u8>> {
        self.0.get_mut(name).expect("table")
    }

    /// The sum over all accounts.
    pub fn sum(&self) -> i64 {
        self.0[ACCOUNTS].values().map(|row| balance(row)).sum()
    }
}

/// The balance that a row begins with.
pub fn balance(row: &[u8]) -> i64 {
    i64::from_le_bytes(row[..8].try_into().expect("8 bytes"))
}

/// One commit.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Where it ends in the log.
    pub end: Lsn,
    /// What it did.
    pub ops: Vec<Op>,
    /// The bodies of the pages that it changed, as they were then.
    pub pages: Vec<((u32, u32), Sha256)>,
    /// Tables that it made.
    pub created: Vec<u32>,
    /// Tables that it dropped.
    pub dropped: Vec<u32>,
    /// Tables that it extended, and to how many pages.
    pub extended: Vec<(u32, u32)>,
}

/// All commits in their order.
#[derive(Debug, Clone, Default)]
pub struct Journal(pub Vec<Commit>);

/// What a range changed in a table, as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changed {
    /// It was made.
    pub created: bool,
    /// It was dropped.
    pub dropped: bool,
    /// Its pages at the end, if that changed.
    pub pages_at_end: Option<u32>,
    /// Pages that changed.
    pub pages: BTreeSet<u32>,
}

impl Journal {
    /// The contents when the log ended at `lsn`.
    pub fn contents_at(&self, lsn: Lsn) -> Contents {
        let mut contents = Contents::default();
        for commit in self.0.iter().filter(|commit| commit.end <= lsn) {
            contents.apply(&commit.ops);
        }
        contents
    }

    /// Every page that was ever written, of tables that were there when the log ended at `lsn`, and its body then.
    pub fn pages_at(&self, lsn: Lsn) -> BTreeMap<(u32, u32), Sha256> {
        let mut pages = BTreeMap::new();
        for commit in self.0.iter().filter(|commit| commit.end <= lsn) {
            pages.extend(commit.pages.iter().copied());
            pages.retain(|(table, _), _| !commit.dropped.contains(table));
        }
        pages
    }

    /// What changed in `range`.
    pub fn changed(&self, range: LsnRange) -> BTreeMap<u32, Changed> {
        let mut tables: BTreeMap<u32, Changed> = BTreeMap::new();
        let within = |commit: &&Commit| range.start < commit.end && commit.end <= range.end;
        for commit in self.0.iter().filter(within) {
            for table in &commit.created {
                let entry = tables.entry(*table).or_default();
                (entry.created, entry.pages_at_end) = (true, Some(0));
            }
            for (table, pages) in &commit.extended {
                tables.entry(*table).or_default().pages_at_end = Some(*pages);
            }
            for ((table, page), _) in &commit.pages {
                tables.entry(*table).or_default().pages.insert(*page);
            }
            for table in &commit.dropped {
                let entry = tables.entry(*table).or_default();
                *entry = Changed {
                    created: entry.created,
                    dropped: true,
                    ..Changed::default()
                };
            }
        }
        tables
    }

    /// Forgets what a crash took.
    pub fn cut(&mut self, end: Lsn) {
        self.0.retain(|commit| commit.end <= end);
    }
}
