//! A page store, two branches of it, and backups of them together and one by one.
//!
//! Invariants: a branch is a copy of all files of the stopped store; each of the three goes its own way from then on, by
//! a seed of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mover_base::Result;
use mover_pagedb::bulk::{Bulk, TABLE};
use mover_source::disk::{DirDisk, Disk};
use mover_source::page::PAGE_BYTES;
use mover_source::pages::{new_identity, table_path};
use mover_source::wal::SegmentSize;
use mover_source::wal::segment::LOG_DIR;

use super::{Backup, Bench, Plan, Size, Workload, cannot, remove};
use crate::command::Program;

const NAMES: [&str; 3] = ["main", "branch 1", "branch 2"];
const WORKLOAD: Workload = Workload::PageStore;

/// Makes the stores, backs them up and removes them.
pub(super) fn measure(bench: &Bench<'_>, size: Size, keep: &mut impl FnMut(Backup)) -> Result<()> {
    let stores = bench.work.join("stores");
    let dirs = make(&stores, size)?;
    for (title, dir) in [
        ("main alone, a directory", &dirs[0]),
        ("all three, one directory", &stores),
    ] {
        keep(bench.alone(&Plan::of_dir(WORKLOAD, title, dir, LOG_DIR)?, dir)?);
    }
    let mut repository = bench.repository("own-paths")?;
    for (name, dir) in NAMES.iter().zip(&dirs) {
        let title = format!("{name}, one after the other, each at its own path");
        keep(repository.backup(&plan(&title, dir)?)?);
    }
    remove(&repository.dir)?;
    remove(&stores)
}

/// Of a page store as such. What is counted is its table: of catalogue and log such a backup takes only a little.
fn plan<'a>(title: &'a str, dir: &Path) -> Result<Plan<'a>> {
    let mut plan = Plan::of_dir(WORKLOAD, title, dir, LOG_DIR)?;
    let table = dir.join(table_path(TABLE));
    plan.counted.0.retain(|(path, _)| *path == table);
    plan.source = format!("pages://{}", dir.display());
    Ok(plan)
}

fn make(stores: &Path, size: Size) -> Result<[PathBuf; 3]> {
    let dirs = ["main", "branch-1", "branch-2"].map(|name| stores.join(name));
    let pages = (u64::from(size.store_mb) * 1_000_000 / PAGE_BYTES as u64) as u32;
    std::fs::create_dir_all(&dirs[0])
        .map_err(|error| cannot("no directory for the store", &dirs[0], error))?;
    let identity = new_identity([7; 32], SegmentSize::DEFAULT);
    drop(Bulk::make(&disk(&dirs[0])?, identity, 7, pages)?);
    for branch in &dirs[1..] {
        let copy = Program::new("cp").args(["-a"]);
        copy.path(&dirs[0]).path(branch).output()?;
    }
    for (seed, dir) in (8..).zip(&dirs) {
        let changed = (f64::from(pages) * size.changed_share) as usize;
        Bulk::open(&disk(dir)?, seed)?.change(changed)?;
    }
    Ok(dirs)
}

fn disk(dir: &Path) -> Result<Arc<dyn Disk>> {
    Ok(Arc::new(DirDisk::open(dir)?))
}

#[cfg(test)]
mod tests {
    use super::super::blocks::BlockSet;
    use super::*;

    #[test]
    fn branches_share_what_none_of_them_changed() {
        let dir = tempfile::tempdir().unwrap();
        let size = Size {
            scale: 1,
            transactions_per_scale: 1,
            store_mb: 8,
            changed_share: 0.05,
        };
        let dirs = make(dir.path(), size).unwrap();
        let mut set = BlockSet::default();
        let counts = dirs.map(|dir| set.add(&plan("", &dir).unwrap().counted).unwrap());
        let pages = 8_000_000 / PAGE_BYTES as u64;
        assert_eq!((counts[0].blocks, counts[0].new), (pages, pages));
        for count in &counts[1..] {
            // What it changed, and what main did. The third shares with the second what main alone changed.
            let changed = pages / 20;
            assert_eq!(count.blocks, pages);
            assert!((changed..=2 * changed).contains(&count.new), "{count:?}");
        }
    }
}
