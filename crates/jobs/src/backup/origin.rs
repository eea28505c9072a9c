//! What a backup reads file contents from, as the shards see it: a tree that does not change, or a page store that does.
//!
//! Invariants: every byte of a share is a piece to read, a piece to keep, or a hole; pieces are in order and whole blocks,
//! but for the end of a file. What a piece must be is checked here after it was read: the same file as scanned, or pages
//! that are whole and in their place.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mover_base::tree::{Entry, display_path};
use mover_base::{Error, Kind, Result};
use mover_source::{DirSource, HOLES_UNKNOWN, Item, Tree, data_ranges, first_hole, source_error};

use super::base::SOURCE_KIND;
use super::pages::PageOrigin;
use crate::extents::Share;

/// How manifests name a directory tree.
pub(crate) const TREE_KIND: &str = "dir";

/// A part of a share, in bytes of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// To be read.
    Read(Range<u64>),
    /// As the parent has it.
    Keep(Range<u64>),
    /// As the parent has it, if that is zeros. It changed since, as it seems, and is not in the file.
    Missing(Range<u64>),
}

impl Piece {
    pub fn range(&self) -> Range<u64> {
        match self {
            Piece::Read(range) | Piece::Keep(range) | Piece::Missing(range) => range.clone(),
        }
    }
}

/// What a look at something that was read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is as it should be.
    Whole,
    /// It is, and none of it can be as the parent has it: all was written since.
    New,
    /// It was read in the middle of a write. What was torn has been read again, and is to be looked at again.
    Torn,
}

/// Where contents come from.
pub(crate) enum Origin {
    /// A directory tree.
    Tree(Box<TreeOrigin>),
    /// A page store.
    Pages(Box<PageOrigin>),
}

/// A directory tree as it was scanned.
pub(crate) struct TreeOrigin {
    pub source: DirSource,
    pub tree: Tree,
    /// A file, and a run of it without holes: what was found last. To find its end all of it is gone through, and its shares are
    /// claimed one after the other, so they need not each do so.
    dense: Mutex<(u32, Range<u64>)>,
}

impl TreeOrigin {
    pub fn new(source: DirSource, tree: Tree) -> Self {
        TreeOrigin {
            source,
            tree,
            dense: Mutex::new((0, 0..0)),
        }
    }

    fn dense(&self) -> MutexGuard<'_, (u32, Range<u64>)> {
        self.dense.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a part of `range` of a file is a hole or lies beyond its end. A change meanwhile shows in its stamp.
    fn is_sparse(
        &self,
        item: u32,
        path: &[u8],
        fd: BorrowedFd<'_>,
        range: &Range<u64>,
    ) -> Result<bool> {
        let known = self.dense().clone();
        if known.0 == item && known.1.contains(&range.start) {
            return Ok(known.1.end < range.end);
        }
        // Not while others wait for the lock: shards that come to a file at the same time each look, and no others.
        let end = first_hole(fd, range.start)
            .map_err(|error| source_error(HOLES_UNKNOWN, path, error))?;
        *self.dense() = (item, range.start..end);
        Ok(end < range.end)
    }

    fn item(&self, at: u32) -> Result<Item> {
        self.tree.item(at as usize).ok_or_else(not_listed)
    }
}

/// The error for a number that no entry has.
pub(crate) fn not_listed() -> Error {
    Error::new(Kind::Internal, "an extent of a file that was not listed")
}

impl Origin {
    /// The entry with this number, in path order.
    pub fn entry(&self, at: u32) -> Result<Entry> {
        match self {
            Origin::Tree(tree) => {
                let entry = tree.tree.entries().get(at as usize);
                entry.ok_or_else(not_listed)
            }
            Origin::Pages(pages) => pages.entry(at).cloned(),
        }
    }

    /// All entries, in path order.
    pub fn entries(&self) -> Box<dyn Iterator<Item = Entry> + '_> {
        match self {
            Origin::Tree(tree) => Box::new(tree.tree.entries().iter()),
            Origin::Pages(pages) => Box::new(pages.entries().cloned()),
        }
    }

    /// What manifests call this kind of source.
    pub fn kind(&self) -> &'static str {
        match self {
            Origin::Tree(_) => TREE_KIND,
            Origin::Pages(_) => SOURCE_KIND,
        }
    }

    /// Opens a file. `None` if it is gone and need not be there.
    pub fn open(&self, at: u32) -> Result<Option<OwnedFd>> {
        match self {
            Origin::Tree(tree) => tree.source.open_file(&tree.item(at)?).map(Some),
            Origin::Pages(pages) => pages.open(at),
        }
    }

    /// What of a share is to be read, and what is kept; the rest are holes.
    pub fn pieces(&self, share: &Share, fd: BorrowedFd<'_>) -> Result<VecDeque<Piece>> {
        match self {
            Origin::Tree(tree) => {
                let (item, range) = (tree.item(share.item)?, share.range());
                let path = &item.entry.path;
                match tree.is_sparse(share.item, path, fd, &range)? {
                    true => data_pieces(fd, range, path),
                    false => Ok(std::iter::once(Piece::Read(range)).collect()),
                }
            }
            Origin::Pages(pages) => pages.pieces(share, fd),
        }
    }

    /// Checks what was read from `offset` of a file on. With `last`, what is torn still is noted as that and let pass.
    pub fn check(&self, at: u32, offset: u64, bytes: &mut [u8], last: bool) -> Result<Found> {
        match self {
            Origin::Tree(_) => Ok(Found::Whole),
            Origin::Pages(pages) => pages.check(at, offset, bytes, last),
        }
    }

    /// Checks a file after a share of it was read.
    pub fn check_end(&self, at: u32, fd: BorrowedFd<'_>) -> Result<()> {
        match self {
            Origin::Tree(tree) => tree.source.check_unchanged(&tree.item(at)?, fd),
            Origin::Pages(_) => Ok(()),
        }
    }

    /// The error for a file that ended before its size.
    pub fn too_short(&self, at: u32) -> Error {
        let path = self
            .entry(at)
            .map_or_else(|_| String::new(), |e| display_path(&e.path));
        Error::new(
            Kind::SourceChanged,
            "a file changed its size while it was read",
        )
        .object(path)
        .hint(match self {
            Origin::Tree(_) => "stop the database first, or back up a snapshot (LVM, btrfs, ZFS)",
            Origin::Pages(_) => {
                "files of a page store never become shorter; see what else writes to it"
            }
        })
    }
}

/// The parts of `range` that are not holes.
pub(crate) fn data_pieces(
    fd: BorrowedFd<'_>,
    range: Range<u64>,
    path: &[u8],
) -> Result<VecDeque<Piece>> {
    let ranges =
        data_ranges(fd, range).map_err(|error| source_error(HOLES_UNKNOWN, path, error))?;
    Ok(ranges.into_iter().map(Piece::Read).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use mover_base::BLOCK_BYTES;
    use mover_source::ScanOptions;

    use super::*;

    #[test]
    fn a_run_without_holes_is_looked_for_once_for_all_shares_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (dense, hole) = (dir.path().join("dense"), dir.path().join("hole"));
        fs::write(&dense, vec![7; 4 * BLOCK_BYTES]).unwrap();
        let file = File::create(&hole).unwrap();
        file.set_len(8 * BLOCK_BYTES as u64).unwrap();
        let [dense, hole] = [dense, hole].map(|path| File::open(path).unwrap());
        let source = DirSource::open(&format!("dir://{}", dir.path().display())).unwrap();
        let tree = source.scan(&ScanOptions::default()).unwrap();
        let origin = TreeOrigin::new(source, tree);
        let is_sparse = |item: u32, file: &File, blocks: Range<u64>| {
            let range = blocks.start * BLOCK_BYTES as u64..blocks.end * BLOCK_BYTES as u64;
            let found = origin.is_sparse(item, b"dense", file.as_fd(), &range);
            found.unwrap()
        };
        assert!(!is_sparse(1, &dense, 1..2));
        // Another file shows whether it is asked.
        for blocks in [1..2, 2..3, 3..4] {
            assert!(!is_sparse(1, &hole, blocks));
        }
        // Up to its end, and not from before where it was looked from.
        assert!(is_sparse(1, &dense, 3..5));
        assert!(is_sparse(1, &hole, 0..1));
        // Of another file nothing is known, nor of one where a hole was found at once.
        assert!(!is_sparse(1, &dense, 0..4));
        assert!(is_sparse(2, &hole, 0..1));
        assert!(is_sparse(2, &hole, 0..1));
        assert!(!is_sparse(2, &dense, 0..1));
    }
}
