//! The demo's database in a directory: making it, changing it, and comparing it with what it should be.
//!
//! Invariants: the truth (a SHA-256 per page, sizes and links) is taken while pages are written, kept in
//! memory and never read from the repository, so that it is independent of what it judges; at 32 bytes a page
//! it stays below 4 MiB.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mover_base::BLOCK_BYTES;
use mover_base::checksum::{Sha256, sha256};

use super::pages::{self, Page, Random, Rows};

/// Pages that are written or read in one go.
const BATCH_PAGES: usize = 256;

#[derive(Clone, Copy)]
struct TableSpec {
    file: &'static str,
    rows: Rows,
    pages: u32,
    /// Zero pages after them, as databases extend files ahead of use.
    zeros: u32,
}

impl TableSpec {
    fn shrunk(self, shrink: u32) -> Self {
        TableSpec {
            pages: self.pages / shrink,
            zeros: self.zeros / shrink,
            ..self
        }
    }
}

/// About 256 MiB together with the copy below.
const TABLES: [TableSpec; 4] = [
    TableSpec {
        file: "base/accounts.tbl",
        rows: Rows::Accounts,
        pages: 20_480,
        zeros: 1_024,
    },
    TableSpec {
        file: "base/orders.tbl",
        rows: Rows::Orders,
        pages: 20_480,
        zeros: 2_048,
    },
    TableSpec {
        file: "base/events.tbl",
        rows: Rows::Events,
        pages: 8_192,
        zeros: 2_048,
    },
    TableSpec {
        file: "base/orders_pkey.idx",
        rows: Rows::Index,
        pages: 4_096,
        zeros: 0,
    },
];
/// An old copy of a table's first pages, as checkpoints and partitions leave them.
const COPY: (&str, &str, u32) = ("base/orders.tbl", "archive/orders_2025.tbl", 7_168);
/// A file with a hole in its middle: bytes before the hole and in all.
const SPARSE: (&str, u64, u64) = ("base/freemap.fsm", 64 << 10, 8 << 20);
/// Of a thousand pages, how many the changes touch.
const CHANGED_PER_MILLE: u64 = 20;
/// Pages that change together: updates come in runs, since rows made together are used together.
const CHANGED_RUN: u64 = 8;
/// Pages that the changes append to the last table.
const APPENDED_PAGES: u32 = 256;

/// What a file should be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Truth {
    File { bytes: u64, pages: Vec<Sha256> },
    Symlink(PathBuf),
}

/// What the whole database should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expected(BTreeMap<PathBuf, Truth>);

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Comparison {
    /// Names compared.
    pub files: u64,
    /// Bytes compared.
    pub bytes: u64,
    /// What is wrong, the first few.
    pub differences: Vec<String>,
}

/// Most differences told; more say no more.
const DIFFERENCES_MAX: usize = 10;

/// The database.
pub struct Database {
    root: PathBuf,
    tables: Vec<TableSpec>,
    lsn: u64,
    random: Random,
    expected: Expected,
}

impl Database {
    /// Makes the database below `root`, which is created, with one page in `shrink` of its full size;
    /// `go_on` may stop it between batches.
    pub fn create(
        root: &Path,
        seed: u64,
        shrink: u32,
        go_on: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut database = Database {
            root: root.to_owned(),
            tables: TABLES.map(|spec| spec.shrunk(shrink)).to_vec(),
            lsn: 0x0100_0000,
            random: Random::new(seed),
            expected: Expected::default(),
        };
        for dir in ["base", "archive"] {
            fs::create_dir_all(root.join(dir))?;
        }
        for (table, spec) in (1..).zip(database.tables.clone()) {
            database.create_table(table, &spec, go_on)?;
        }
        let (from, to, pages) = COPY;
        database.copy(from, to, pages / shrink)?;
        database.sparse(SPARSE)?;
        database.write_file("catalog.json", &catalogue(&TABLES))?;
        std::os::unix::fs::symlink("base", root.join("current"))?;
        database
            .expected
            .0
            .insert("current".into(), Truth::Symlink("base".into()));
        Ok(database)
    }

    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        let sizes = self.expected.0.values().map(|truth| match truth {
            Truth::File { bytes, .. } => *bytes,
            Truth::Symlink(_) => 0,
        });
        sizes.sum()
    }

    /// Number of files.
    pub fn files(&self) -> u64 {
        self.expected.0.len() as u64
    }

    /// What the database should be now.
    pub fn expected(&self) -> Expected {
        self.expected.clone()
    }

    fn create_table(
        &mut self,
        table: u32,
        spec: &TableSpec,
        go_on: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut file = File::create(self.root.join(spec.file))?;
        let mut hashes = Vec::with_capacity((spec.pages + spec.zeros) as usize);
        let mut batch = Vec::with_capacity(BATCH_PAGES * BLOCK_BYTES);
        let mut page: Page = [0; BLOCK_BYTES];
        for number in 0..spec.pages + spec.zeros {
            if number < spec.pages {
                self.lsn += 100;
                pages::fill(
                    &mut page,
                    spec.rows,
                    table,
                    number,
                    self.lsn,
                    &mut self.random,
                );
            } else {
                page.fill(0);
            }
            hashes.push(sha256(&page));
            batch.extend_from_slice(&page);
            if batch.len() == BATCH_PAGES * BLOCK_BYTES || number + 1 == spec.pages + spec.zeros {
                file.write_all(&batch)?;
                batch.clear();
                go_on()?;
            }
        }
        let bytes = hashes.len() as u64 * BLOCK_BYTES as u64;
        self.expected.0.insert(
            spec.file.into(),
            Truth::File {
                bytes,
                pages: hashes,
            },
        );
        Ok(())
    }

    fn copy(&mut self, from: &str, to: &str, count: u32) -> io::Result<()> {
        let mut bytes = vec![0; count as usize * BLOCK_BYTES];
        File::open(self.root.join(from))?.read_exact(&mut bytes)?;
        self.write_file(to, &bytes)
    }

    fn write_file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        fs::write(self.root.join(path), bytes)?;
        let pages = bytes.chunks(BLOCK_BYTES).map(sha256).collect();
        self.expected.0.insert(
            path.into(),
            Truth::File {
                bytes: bytes.len() as u64,
                pages,
            },
        );
        Ok(())
    }

    fn sparse(&mut self, (path, head, bytes): (&str, u64, u64)) -> io::Result<()> {
        let file = File::create(self.root.join(path))?;
        let data: Vec<u8> = (0..head).map(|i| (i % 251) as u8).collect();
        file.write_all_at(&data, 0)?;
        file.set_len(bytes)?;
        let mut whole = data;
        whole.resize(bytes as usize, 0);
        let pages = whole.chunks(BLOCK_BYTES).map(sha256).collect();
        self.expected
            .0
            .insert(path.into(), Truth::File { bytes, pages });
        Ok(())
    }

    /// Updates about 2 % of the pages, appends some, and returns how many pages were touched.
    pub fn change(&mut self) -> io::Result<u64> {
        let mut touched = 0;
        for spec in &self.tables {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(self.root.join(spec.file))?;
            let Some(Truth::File { pages: hashes, .. }) =
                self.expected.0.get_mut(Path::new(spec.file))
            else {
                continue;
            };
            let runs = (u64::from(spec.pages) * CHANGED_PER_MILLE / 1000).div_ceil(CHANGED_RUN);
            for _ in 0..runs {
                let first = self
                    .random
                    .below(u64::from(spec.pages).saturating_sub(CHANGED_RUN));
                for number in first..first + CHANGED_RUN {
                    let mut page: Page = [0; BLOCK_BYTES];
                    file.read_exact_at(&mut page, number * BLOCK_BYTES as u64)?;
                    self.lsn += 100;
                    pages::update(&mut page, self.lsn, &mut self.random);
                    file.write_all_at(&page, number * BLOCK_BYTES as u64)?;
                    hashes[number as usize] = sha256(&page);
                    touched += 1;
                }
            }
        }
        Ok(touched + self.append()?)
    }

    fn append(&mut self) -> io::Result<u64> {
        let (table, spec) = (2, self.tables[1]);
        let Some(Truth::File {
            bytes,
            pages: hashes,
        }) = self.expected.0.get_mut(Path::new(spec.file))
        else {
            return Ok(0);
        };
        let mut file = OpenOptions::new()
            .append(true)
            .open(self.root.join(spec.file))?;
        for _ in 0..APPENDED_PAGES {
            let mut page: Page = [0; BLOCK_BYTES];
            self.lsn += 100;
            pages::fill(
                &mut page,
                spec.rows,
                table,
                hashes.len() as u32,
                self.lsn,
                &mut self.random,
            );
            file.write_all(&page)?;
            hashes.push(sha256(&page));
            *bytes += BLOCK_BYTES as u64;
        }
        Ok(u64::from(APPENDED_PAGES))
    }

    /// Removes every file of the database.
    pub fn destroy(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.root)
    }
}

fn catalogue(tables: &[TableSpec]) -> Vec<u8> {
    let list: Vec<_> = (1..)
        .zip(tables)
        .map(|(id, spec): (u32, _)| serde_json::json!({ "id": id, "file": spec.file, "pages": spec.pages }))
        .collect();
    serde_json::json!({ "format": 1, "page_bytes": BLOCK_BYTES, "tables": list })
        .to_string()
        .into_bytes()
}

impl Expected {
    /// Compares every name and every byte below `root` with what they should be.
    pub fn compare(
        &self,
        root: &Path,
        go_on: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<Comparison> {
        let mut found = Vec::new();
        walk(root, Path::new(""), &mut found)?;
        let mut out = Comparison {
            files: 0,
            bytes: 0,
            differences: Vec::new(),
        };
        for path in found.iter().filter(|path| !self.0.contains_key(*path)) {
            out.tell(path, "should not exist");
        }
        for (path, truth) in &self.0 {
            if !found.contains(path) {
                out.tell(path, "is missing");
                continue;
            }
            out.files += 1;
            match truth {
                Truth::Symlink(target) => {
                    if fs::read_link(root.join(path)).ok().as_ref() != Some(target) {
                        out.tell(path, "is not the symlink it was");
                    }
                }
                Truth::File { bytes, pages } => {
                    let checked = compare_file(
                        &root.join(path),
                        *bytes,
                        pages,
                        path.extension()
                            .is_some_and(|end| end == "tbl" || end == "idx"),
                        go_on,
                    )?;
                    out.bytes += *bytes;
                    if let Some(difference) = checked {
                        out.tell(path, &difference);
                    }
                }
            }
        }
        Ok(out)
    }
}

impl Comparison {
    fn tell(&mut self, path: &Path, what: &str) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(format!("{} {what}", path.display()));
        }
    }
}

fn walk(root: &Path, below: &Path, out: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            walk(root, &path, out)?;
        } else {
            out.push(path);
        }
    }
    Ok(())
}

/// What differs first in one file; pages of tables must carry a right CRC too.
fn compare_file(
    path: &Path,
    bytes: u64,
    hashes: &[Sha256],
    is_table: bool,
    go_on: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != bytes {
        return Ok(Some(format!(
            "has {} bytes instead of {bytes}",
            file.metadata()?.len()
        )));
    }
    let mut buffer = vec![0; BATCH_PAGES * BLOCK_BYTES];
    for (batch, wanted) in hashes.chunks(BATCH_PAGES).enumerate() {
        go_on()?;
        let done = (batch * BATCH_PAGES * BLOCK_BYTES) as u64;
        let len = (bytes - done).min(buffer.len() as u64) as usize;
        file.read_exact(&mut buffer[..len])?;
        for (slot, (page, hash)) in buffer[..len].chunks(BLOCK_BYTES).zip(wanted).enumerate() {
            let number = batch * BATCH_PAGES + slot;
            if sha256(page) != *hash {
                return Ok(Some(format!("differs in page {number}")));
            }
            let sound = page
                .try_into()
                .map_or(!is_table, |page: &Page| !is_table || pages::is_sound(page));
            if !sound {
                return Ok(Some(format!("has a wrong CRC in page {number}")));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never() -> impl FnMut() -> io::Result<()> {
        || Ok(())
    }

    #[test]
    fn the_comparison_sees_changed_missing_and_extra_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("db");
        let mut database = Database::create(&root, 1, 64, &mut never()).unwrap();
        let first = database.expected();
        let clean = first.compare(&root, &mut never()).unwrap();
        assert_eq!(clean.differences, [] as [String; 0]);
        assert_eq!(
            (clean.files, clean.bytes),
            (database.files(), database.bytes())
        );

        let touched = database.change().unwrap();
        assert!(touched > 0);
        let changed = first.compare(&root, &mut never()).unwrap();
        assert_eq!(
            changed.differences.len(),
            TABLES.len(),
            "{:?}",
            changed.differences
        );
        assert!(
            database
                .expected()
                .compare(&root, &mut never())
                .unwrap()
                .differences
                .is_empty()
        );

        fs::write(root.join("extra"), b"x").unwrap();
        fs::remove_file(root.join("catalog.json")).unwrap();
        fs::remove_file(root.join("current")).unwrap();
        std::os::unix::fs::symlink("elsewhere", root.join("current")).unwrap();
        let told = database
            .expected()
            .compare(&root, &mut never())
            .unwrap()
            .differences
            .join("; ");
        for what in [
            "extra should not exist",
            "catalog.json is missing",
            "current is not the symlink",
        ] {
            assert!(told.contains(what), "{told}");
        }
    }
}
