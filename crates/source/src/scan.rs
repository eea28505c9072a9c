//! What a scan of a tree finds: items with the stamps by which a change is noticed.
//!
//! Invariants: items are sorted by path bytes, so that the root is first, every directory stands before
//! what is in it, and of several names of one file the first holds the content. The memory that a tree
//! takes is counted while it grows and bounded.

use std::collections::HashMap;
use std::fmt;

use mover_base::entries::{EntryList, LIST_BYTES_MAX};
use mover_base::tree::{Entry, EntryKind, FileTime};
use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use rustix::fs::Stat;

use crate::granule::Doubt;

/// How much memory the items of a tree may take unless an operator says otherwise: with what else a job keeps of each file,
/// and with all that it takes for few, it stays below the 256 MiB that the whole process may. It holds 540,000 files with
/// names of 20 bytes.
pub const NAMES_BYTES_DEFAULT: u64 = 56 << 20;

/// How a source is scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanOptions {
    /// Paths and glob patterns, relative to the source, that are left out with everything below them. `*`
    /// and `?` stop at `/`, `**` does not.
    pub exclude: Vec<String>,
    /// Keep directories where other file systems are mounted, without what is in them.
    pub one_file_system: bool,
    /// How much memory the list of files may take, in bytes.
    pub names_bytes_max: u64,
}

impl Default for ScanOptions {
    fn default() -> Self {
        ScanOptions {
            exclude: Vec::new(),
            one_file_system: false,
            names_bytes_max: NAMES_BYTES_DEFAULT,
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
    /// Bytes allocated on the device: less than the size where there are holes, and more where space is kept behind the end, or
    /// for attributes. So it does not tell whether there are holes.
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

    /// Whether the inode has got or lost names, as far as a tree keeps their number.
    pub(crate) fn has_other_links(&self, now: &Stamp) -> bool {
        let kept = |links: u64| links.min(LINKS_MAX.into());
        kept(self.links) != kept(now.links)
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

/// Up to there a tree keeps the number of an inode's names.
const LINKS_MAX: u16 = u16::MAX;

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
    /// What all files take on the device, each at most its size, in bytes: what there is to read of them, or more where space is
    /// kept that holds no data.
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
    entries: EntryList,
    /// What else was found of each entry.
    found: Vec<Found>,
    /// The devices that hold the entries.
    devices: Vec<u64>,
    /// Sums.
    pub totals: Totals,
    /// What was left out without having been excluded.
    pub skipped: Vec<Skipped>,
    /// What else there is to know of the source.
    pub warnings: Vec<String>,
    /// How it was scanned, for the second look.
    pub(crate) options: ScanOptions,
    /// Which stamps do not vouch for what the scan itself has read.
    pub(crate) doubt: Doubt,
}

/// What a stamp has that its entry has not.
#[derive(Debug, Clone)]
struct Found {
    ino: u64,
    size_bytes: u64,
    allocated_bytes: u64,
    ctime_seconds: i64,
    ctime_nanos: u32,
    /// At most [`LINKS_MAX`].
    links: u16,
    /// Number of its device.
    device: u16,
}

impl Tree {
    /// Everything found, in path order.
    pub fn entries(&self) -> &EntryList {
        &self.entries
    }

    /// Bytes that the items take, without the room that lists keep for more.
    pub fn memory_bytes(&self) -> usize {
        self.entries.memory_bytes() + size_of_val(&self.found[..])
    }

    /// The item with this number in path order.
    pub fn item(&self, at: usize) -> Option<Item> {
        let (entry, found) = (self.entries.get(at)?, self.found.get(at)?);
        Some(self.join(entry, found))
    }

    /// Everything found, in path order, with its stamps.
    pub fn items(&self) -> impl ExactSizeIterator<Item = Item> {
        let found = self.entries.iter().zip(&self.found);
        found.map(|(entry, found)| self.join(entry, found))
    }

    fn join(&self, entry: Entry, found: &Found) -> Item {
        let stamp = Stamp {
            dev: self.devices[found.device as usize],
            ino: found.ino,
            size_bytes: found.size_bytes,
            mtime: entry.mtime,
            ctime: FileTime {
                seconds: found.ctime_seconds,
                nanos: found.ctime_nanos,
            },
            allocated_bytes: found.allocated_bytes,
            links: found.links.into(),
        };
        Item { entry, stamp }
    }
}

/// A tree while it grows.
pub(crate) struct TreeBuilder {
    /// As they come; their paths are in order when it is finished.
    tree: Tree,
    skipped_bytes: usize,
}

impl TreeBuilder {
    pub(crate) fn new(options: &ScanOptions) -> TreeBuilder {
        TreeBuilder {
            tree: Tree {
                entries: EntryList::default(),
                found: Vec::new(),
                devices: Vec::new(),
                totals: Totals::default(),
                skipped: Vec::new(),
                warnings: Vec::new(),
                options: options.clone(),
                doubt: Doubt::default(),
            },
            skipped_bytes: 0,
        }
    }

    pub(crate) fn push(&mut self, item: &Item) -> Result<()> {
        let tree = &mut self.tree;
        let Item { entry, stamp } = item;
        // Hardly any source is on more than a few.
        let device = tree.devices.iter().position(|device| *device == stamp.dev);
        let device = device.unwrap_or_else(|| {
            tree.devices.push(stamp.dev);
            tree.devices.len() - 1
        });
        let device = u16::try_from(device).map_err(|_| {
            Error::new(
                Kind::Limit,
                "the source is on more than 65,536 file systems",
            )
            .object(entry.display_path())
            .hint("use --one-file-system, or back up parts of the source on their own")
        })?;
        tree.entries.push(entry)?;
        tree.found.push(Found {
            ino: stamp.ino,
            size_bytes: stamp.size_bytes,
            allocated_bytes: stamp.allocated_bytes,
            ctime_seconds: stamp.ctime.seconds,
            ctime_nanos: stamp.ctime.nanos,
            links: stamp.links.try_into().unwrap_or(LINKS_MAX),
            device,
        });
        self.check_room()
    }

    pub(crate) fn skip(&mut self, path: String, reason: SkipReason) -> Result<()> {
        self.skipped_bytes += size_of::<Skipped>() + path.len();
        self.tree.skipped.push(Skipped { path, reason });
        self.check_room()
    }

    fn check_room(&self) -> Result<()> {
        let tree = &self.tree;
        let bytes = tree.memory_bytes() + self.skipped_bytes;
        if bytes as u64 <= tree.options.names_bytes_max {
            return Ok(());
        }
        let limit = format_bytes(tree.options.names_bytes_max);
        let found = tree.entries.len();
        Err(Error::new(
            Kind::Limit,
            format!("the list of files takes more than {limit} of memory after {found} names"),
        )
        .hint(format!(
            "exclude what is no part of the database, split the source, or allow more (--names, {} at most)",
            format_bytes(LIST_BYTES_MAX as u64)
        )))
    }

    /// The tree in path order, where every name of an inode but its first is a hard link. Both orders are in memory for a
    /// moment; nothing else of a job is yet.
    pub(crate) fn finish(self) -> Result<Tree> {
        let unordered = self.tree;
        let mut order: Vec<u32> = (0..unordered.entries.len() as u32).collect();
        let mut scratch = Vec::new();
        order.sort_unstable_by(|a, b| {
            let (a, b) = (*a as usize, *b as usize);
            unordered.entries.order(a, b, &mut scratch)
        });
        let mut ordered = TreeBuilder {
            skipped_bytes: self.skipped_bytes,
            ..TreeBuilder::new(&unordered.options)
        };
        let mut firsts: HashMap<(u64, u64), u32> = HashMap::new();
        for (at, from) in (0u32..).zip(order) {
            let Some(mut item) = unordered.item(from as usize) else {
                return Err(Error::new(Kind::Internal, "an item of the tree is gone"));
            };
            let stamp = &item.stamp;
            if stamp.links > 1 && matches!(item.entry.kind, EntryKind::File { .. }) {
                // Its own number, which is not in the list yet, if it is the first.
                let first = *firsts.entry((stamp.dev, stamp.ino)).or_insert(at);
                if let Some(first) = ordered.tree.entries.get(first as usize) {
                    item.entry.kind = EntryKind::Hardlink { first: first.path };
                    item.entry.xattrs = Vec::new();
                }
            }
            ordered.push(&item)?;
        }
        let mut tree = ordered.tree;
        tree.skipped = unordered.skipped;
        tree.totals = totals(tree.items());
        Ok(tree)
    }
}

fn totals(items: impl Iterator<Item = Item>) -> Totals {
    let mut totals = Totals::default();
    for item in items {
        match &item.entry.kind {
            EntryKind::Dir => totals.dirs += 1,
            EntryKind::File { bytes } => {
                totals.files += 1;
                totals.bytes = totals.bytes.saturating_add(*bytes);
                // What one file has too much is not what another one's holes lack.
                totals.allocated_bytes = totals
                    .allocated_bytes
                    .saturating_add(item.stamp.allocated_bytes.min(*bytes));
            }
            EntryKind::Symlink { .. } => totals.symlinks += 1,
            EntryKind::Hardlink { .. } => totals.hardlinks += 1,
            EntryKind::Fifo => totals.fifos += 1,
        }
    }
    totals
}
