//! What a scan of a tree finds: items with the stamps by which a change is noticed.
//!
//! Invariants: items are sorted by path bytes, so that the root is first, every directory stands before
//! what is in it, and of several names of one file the first holds the content. The memory that a tree
//! takes is counted while it grows and bounded.

use std::collections::HashMap;
use std::fmt;
use std::mem::size_of;

use mover_base::tree::{Entry, EntryKind, FileTime};
use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use rustix::fs::Stat;

/// How much memory the items of a tree may take unless an operator says otherwise: half of the 256 MiB
/// that the whole process may, which holds about 500,000 files with paths of 50 bytes.
pub const TREE_BYTES_MAX_DEFAULT: u64 = 128 << 20;

/// How a source is scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanOptions {
    /// Paths and glob patterns, relative to the source, that are left out with everything below them. `*`
    /// and `?` stop at `/`, `**` does not.
    pub exclude: Vec<String>,
    /// Keep directories where other file systems are mounted, without what is in them.
    pub one_file_system: bool,
    /// How much memory the list of files may take, in bytes.
    pub tree_bytes_max: u64,
}

impl Default for ScanOptions {
    fn default() -> Self {
        ScanOptions {
            exclude: Vec::new(),
            one_file_system: false,
            tree_bytes_max: TREE_BYTES_MAX_DEFAULT,
        }
    }
}

/// What the file system said about one name; a later difference is a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Device that holds it.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last modification of the content.
    pub mtime: FileTime,
    /// Last change of content, metadata or number of names.
    pub ctime: FileTime,
    /// Bytes allocated on the device, less than the size where there are holes.
    pub allocated_bytes: u64,
    /// Number of names of the inode.
    pub links: u64,
}

impl Stamp {
    // The fields of `stat` have other types on other architectures.
    #[allow(clippy::unnecessary_cast)]
    pub(crate) fn of(stat: &Stat) -> Stamp {
        let time = |seconds: i64, nanos: u64| FileTime {
            seconds,
            nanos: nanos.min(999_999_999) as u32,
        };
        Stamp {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            size_bytes: stat.st_size as u64,
            mtime: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime: time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
            allocated_bytes: (stat.st_blocks as u64).saturating_mul(512),
            links: stat.st_nlink as u64,
        }
    }

    /// What differs in `now`, if it is not the same unchanged thing. Allocation may change without a
    /// change of the content (delayed allocation), so that it does not count.
    pub fn difference(&self, now: &Stamp) -> Option<String> {
        if self.is_other_inode(now) {
            Some("it was replaced".into())
        } else if self.size_bytes != now.size_bytes {
            let (before, after) = (self.size_bytes, now.size_bytes);
            Some(format!("its size went from {before} to {after} bytes"))
        } else if self.mtime != now.mtime {
            Some("it was written to".into())
        } else if self.ctime != now.ctime {
            Some("its metadata changed".into())
        } else {
            None
        }
    }

    pub(crate) fn is_other_inode(&self, now: &Stamp) -> bool {
        (self.dev, self.ino) != (now.dev, now.ino)
    }
}

/// One name of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What a backup keeps of it. A hard link has no extended attributes here: its first name has them.
    pub entry: Entry,
    /// By which a change is noticed.
    pub stamp: Stamp,
}

/// Sums over a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Regular files, each counted once.
    pub files: u64,
    /// Directories, the root among them.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files counted already.
    pub hardlinks: u64,
    /// Named pipes.
    pub fifos: u64,
    /// Sizes of all files, in bytes.
    pub bytes: u64,
    /// What all files take on the device, in bytes.
    pub allocated_bytes: u64,
}

/// Why a name is not backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// A socket lives with the process that listens on it.
    Socket,
    /// A device node belongs to a machine, not to its data.
    Device,
    /// The content of a mounted file system, with `one_file_system`.
    OtherFileSystem,
    /// The staging directory of a restore that was interrupted.
    PartialRestore,
    /// Something this mover does not know.
    Unknown,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SkipReason::Socket => "a socket",
            SkipReason::Device => "a device node",
            SkipReason::OtherFileSystem => "the content of another file system",
            SkipReason::PartialRestore => "left by an interrupted restore",
            SkipReason::Unknown => "of an unknown type",
        })
    }
}

/// A name that is not backed up, to be reported as a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Path for messages.
    pub path: String,
    /// Why.
    pub reason: SkipReason,
}

/// A scanned source.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Everything found, sorted by path bytes.
    pub items: Vec<Item>,
    /// Sums.
    pub totals: Totals,
    /// What was left out without having been excluded.
    pub skipped: Vec<Skipped>,
    /// How it was scanned, for the second look.
    pub(crate) options: ScanOptions,
}

/// A tree while it grows.
pub(crate) struct TreeBuilder {
    items: Vec<Item>,
    skipped: Vec<Skipped>,
    bytes: u64,
    options: ScanOptions,
}

impl TreeBuilder {
    pub(crate) fn new(options: &ScanOptions) -> TreeBuilder {
        TreeBuilder {
            items: Vec::new(),
            skipped: Vec::new(),
            bytes: 0,
            options: options.clone(),
        }
    }

    pub(crate) fn push(&mut self, item: Item) -> Result<()> {
        self.charge(item_bytes(&item))?;
        self.items.push(item);
        Ok(())
    }

    pub(crate) fn skip(&mut self, path: String, reason: SkipReason) -> Result<()> {
        self.charge(size_of::<Skipped>() + path.len())?;
        self.skipped.push(Skipped { path, reason });
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes <= self.options.tree_bytes_max {
            return Ok(());
        }
        let limit = format_bytes(self.options.tree_bytes_max);
        let found = self.items.len();
        Err(Error::new(
            Kind::Limit,
            format!("the list of files takes more than {limit} of memory after {found} names"),
        )
        .hint("exclude what is no part of the database, or split the source"))
    }

    pub(crate) fn finish(mut self) -> Result<Tree> {
        self.items
            .sort_unstable_by(|a, b| a.entry.path.cmp(&b.entry.path));
        self.link()?;
        let totals = totals(&self.items);
        Ok(Tree {
            items: self.items,
            totals,
            skipped: self.skipped,
            options: self.options,
        })
    }

    /// Turns every name of an inode but its first into a hard link.
    fn link(&mut self) -> Result<()> {
        let mut firsts: HashMap<(u64, u64), usize> = HashMap::new();
        for at in 0..self.items.len() {
            let Item { entry, stamp } = &self.items[at];
            if stamp.links < 2 || !matches!(entry.kind, EntryKind::File { .. }) {
                continue;
            }
            match firsts.get(&(stamp.dev, stamp.ino)) {
                None => {
                    firsts.insert((stamp.dev, stamp.ino), at);
                    self.charge(size_of::<((u64, u64), usize)>())?;
                }
                Some(&first) => {
                    let first = self.items[first].entry.path.clone();
                    self.charge(first.len())?;
                    let entry = &mut self.items[at].entry;
                    entry.xattrs = Vec::new();
                    entry.kind = EntryKind::Hardlink { first };
                }
            }
        }
        Ok(())
    }
}

fn item_bytes(item: &Item) -> usize {
    let entry = &item.entry;
    let target = match &entry.kind {
        EntryKind::Symlink { target } => target.len(),
        _ => 0,
    };
    let xattrs: usize = entry
        .xattrs
        .iter()
        .map(|pair| size_of_val(pair) + pair.0.len() + pair.1.len())
        .sum();
    size_of::<Item>() + entry.path.len() + target + xattrs
}

fn totals(items: &[Item]) -> Totals {
    let mut totals = Totals::default();
    for item in items {
        match &item.entry.kind {
            EntryKind::Dir => totals.dirs += 1,
            EntryKind::File { bytes } => {
                totals.files += 1;
                totals.bytes = totals.bytes.saturating_add(*bytes);
                totals.allocated_bytes = totals
                    .allocated_bytes
                    .saturating_add(item.stamp.allocated_bytes);
            }
            EntryKind::Symlink { .. } => totals.symlinks += 1,
            EntryKind::Hardlink { .. } => totals.hardlinks += 1,
            EntryKind::Fifo => totals.fifos += 1,
        }
    }
    totals
}
