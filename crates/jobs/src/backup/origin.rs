//! What a backup reads file contents from, as the shards see it: a tree that does not change, or a page store that does.
//!
//! Invariants: every byte of a share is a piece to read, a piece to keep, or a hole; pieces are in order and whole blocks,
//! but for the end of a file. What a piece must be is checked here after it was read: the same file as scanned, or pages
//! that are whole and in their place.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use mover_base::tree::{Entry, display_path};
use mover_base::{Error, Kind, Result};
use mover_source::{DirSource, HOLES_UNKNOWN, Item, Tree, data_ranges, source_error};

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
}

impl TreeOrigin {
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
                let item = tree.item(share.item)?;
                if item.stamp.allocated_bytes >= item.entry.content_bytes() {
                    return Ok(std::iter::once(Piece::Read(share.range())).collect());
                }
                data_pieces(fd, share.range(), &item.entry.path)
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

    /// Blocks of what was read from `offset` of a file on that are zeros and may not be, if the parent has data there.
    pub fn doubtful_zeros(&self, at: u32, offset: u64, bytes: &[u8]) -> Result<Vec<u64>> {
        match self {
            Origin::Tree(_) => Ok(Vec::new()),
            Origin::Pages(pages) => pages.doubtful_zeros(at, offset, bytes),
        }
    }

    /// Notes that a range of a file is missing where the parent has data.
    pub fn note_missing(&self, at: u32, range: &Range<u64>) -> Result<()> {
        match self {
            Origin::Tree(_) => Err(not_listed()),
            Origin::Pages(pages) => pages.note_missing(at, range),
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
