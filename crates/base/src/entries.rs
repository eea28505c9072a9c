//! Many [`Entry`]s in little memory: some 60 bytes for one in a directory of many with a name of 12 bytes, where an [`Entry`]
//! takes 200.
//!
//! Invariants: what was pushed, with a relative path, comes back equal and in the same order; nothing but [`find`](EntryList::find) and
//! [`lower_bound`](EntryList::lower_bound) asks for path order.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use crate::tree::{Entry, EntryKind, FileTime};
use crate::{Error, Kind, Result};

/// Most memory that the list of a source may be allowed, in bytes, and that the list of a backup may take: so whatever is backed up
/// can be restored. Earlier versions allowed as much by a count that is never less.
pub const LIST_BYTES_MAX: usize = 128 << 20;

/// Directories that are looked through for that of the next entry, from the last one back: in path order, what lies in the
/// subdirectories of one comes between the names of others.
const DIRS_TRIED: usize = 8;
/// The attributes of an entry that has none.
const NO_XATTRS: u32 = u32::MAX;

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Entries of a tree.
#[derive(Debug, Clone, Default)]
pub struct EntryList {
    records: Vec<Record>,
    /// Directories' paths, names and targets of links, one behind the other.
    text: Vec<u8>,
    /// Paths of directories, in `text`.
    dirs: Vec<Stretch>,
    /// Sets of attributes. Most entries of a tree that have some have the same: labels, default lists of access.
    xattrs: Vec<Arc<Xattrs>>,
    xattr_numbers: HashMap<Arc<Xattrs>, u32>,
    xattr_bytes: usize,
}

/// A part of the text.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    at: u32,
    len: u16,
}

impl Stretch {
    fn to_number(self) -> u64 {
        u64::from(self.at) << 16 | u64::from(self.len)
    }

    fn from_number(number: u64) -> Self {
        Stretch {
            at: (number >> 16) as u32,
            len: number as u16,
        }
    }
}

/// An entry but for its text and attributes. 48 bytes, with the smallest fields last.
#[derive(Debug, Clone)]
struct Record {
    /// Length of a file; for a link, the stretch of its target or first name.
    value: u64,
    mtime_seconds: i64,
    mtime_nanos: u32,
    /// Number of the directory that it lies in; where its path has no slash, that of an empty one.
    dir: u32,
    /// Number of its attributes, or [`NO_XATTRS`].
    xattrs: u32,
    uid: u32,
    gid: u32,
    name_at: u32,
    name_len: u16,
    mode: u16,
    kind: RecordKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordKind {
    Dir,
    File,
    Symlink,
    Hardlink,
    Fifo,
}

impl Record {
    fn name(&self) -> Stretch {
        Stretch {
            at: self.name_at,
            len: self.name_len,
        }
    }
}

impl EntryList {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes that the entries take, without the room that lists keep for more.
    pub fn memory_bytes(&self) -> usize {
        self.records.len() * size_of::<Record>()
            + self.dirs.len() * size_of::<Stretch>()
            + self.text.len()
            + self.xattr_bytes
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// `Limit` if the text of all entries would take 4 GiB, or a name or a mode is larger than those of file systems are.
    pub fn push(&mut self, entry: &Entry) -> Result<()> {
        let slash = entry.path.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = match slash {
            Some(slash) => (&entry.path[..slash], &entry.path[slash + 1..]),
            None => (&[][..], &entry.path[..]),
        };
        let dir = self.dir(dir)?;
        let name = self.add_text(name)?;
        let (kind, value) = match &entry.kind {
            EntryKind::Dir => (RecordKind::Dir, 0),
            EntryKind::File { bytes } => (RecordKind::File, *bytes),
            EntryKind::Symlink { target } => {
                (RecordKind::Symlink, self.add_text(target)?.to_number())
            }
            EntryKind::Hardlink { first } => {
                (RecordKind::Hardlink, self.add_text(first)?.to_number())
            }
            EntryKind::Fifo => (RecordKind::Fifo, 0),
        };
        let xattrs = self.add_xattrs(&entry.xattrs)?;
        self.records.push(Record {
            value,
            mtime_seconds: entry.mtime.seconds,
            mtime_nanos: entry.mtime.nanos,
            dir,
            xattrs,
            uid: entry.uid,
            gid: entry.gid,
            name_at: name.at,
            name_len: name.len,
            mode: u16::try_from(entry.mode).map_err(too_much)?,
            kind,
        });
        Ok(())
    }

    /// The number of a directory.
    fn dir(&mut self, path: &[u8]) -> Result<u32> {
        let last = self.dirs.iter().enumerate().rev().take(DIRS_TRIED);
        let known = last
            .filter(|(_, dir)| usize::from(dir.len) == path.len())
            .find(|(_, dir)| self.text(**dir) == path);
        if let Some((number, _)) = known {
            return Ok(number as u32);
        }
        let number = u32::try_from(self.dirs.len()).map_err(too_much)?;
        let dir = self.add_text(path)?;
        self.dirs.push(dir);
        Ok(number)
    }

    fn add_text(&mut self, text: &[u8]) -> Result<Stretch> {
        let stretch = Stretch {
            at: u32::try_from(self.text.len()).map_err(too_much)?,
            len: u16::try_from(text.len()).map_err(too_much)?,
        };
        self.text.extend_from_slice(text);
        Ok(stretch)
    }

    fn add_xattrs(&mut self, xattrs: &Xattrs) -> Result<u32> {
        if xattrs.is_empty() {
            return Ok(NO_XATTRS);
        }
        if let Some(number) = self.xattr_numbers.get(xattrs) {
            return Ok(*number);
        }
        let number = u32::try_from(self.xattrs.len()).map_err(too_much)?;
        let set = Arc::new(xattrs.clone());
        let pairs = xattrs.iter();
        let pairs = pairs.map(|pair| size_of_val(pair) + pair.0.len() + pair.1.len());
        self.xattr_bytes += size_of::<(Xattrs, [Arc<Xattrs>; 2])>() + pairs.sum::<usize>();
        self.xattrs.push(set.clone());
        self.xattr_numbers.insert(set, number);
        Ok(number)
    }

    fn text(&self, stretch: Stretch) -> &[u8] {
        &self.text[stretch.at as usize..][..usize::from(stretch.len)]
    }

    /// The path of an entry as parts that follow each other.
    fn path_parts(&self, record: &Record) -> [&[u8]; 3] {
        let dir = self.text(self.dirs[record.dir as usize]);
        let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
        [dir, slash, self.text(record.name())]
    }

    fn entry(&self, record: &Record) -> Entry {
        Entry {
            path: self.path_parts(record).concat(),
            kind: match record.kind {
                RecordKind::Dir => EntryKind::Dir,
                RecordKind::File => EntryKind::File {
                    bytes: record.value,
                },
                RecordKind::Symlink => EntryKind::Symlink {
                    target: self.text(Stretch::from_number(record.value)).to_vec(),
                },
                RecordKind::Hardlink => EntryKind::Hardlink {
                    first: self.text(Stretch::from_number(record.value)).to_vec(),
                },
                RecordKind::Fifo => EntryKind::Fifo,
            },
            mode: record.mode.into(),
            uid: record.uid,
            gid: record.gid,
            mtime: FileTime {
                seconds: record.mtime_seconds,
                nanos: record.mtime_nanos,
            },
            xattrs: match self.xattrs.get(record.xattrs as usize) {
                Some(set) => Xattrs::clone(set),
                None => Vec::new(),
            },
        }
    }

    /// An entry, by its number.
    pub fn get(&self, at: usize) -> Option<Entry> {
        self.records.get(at).map(|record| self.entry(record))
    }

    /// The path of the entry with this number.
    pub fn path(&self, at: usize) -> Option<Vec<u8>> {
        let record = self.records.get(at)?;
        Some(self.path_parts(record).concat())
    }

    /// The path of the first name of the file that the entry with this number is a further name of.
    pub fn first_name(&self, at: usize) -> Option<&[u8]> {
        let record = self.records.get(at)?;
        let is_link = record.kind == RecordKind::Hardlink;
        is_link.then(|| self.text(Stretch::from_number(record.value)))
    }

    /// All entries, as they were pushed. Their attributes are copied for each, which are long where somebody means harm.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Entry> {
        self.records.iter().map(|record| self.entry(record))
    }

    /// Length of the content of the entry with this number in bytes, 0 for what is no file.
    pub fn content_bytes(&self, at: usize) -> u64 {
        let record = self.records.get(at);
        let file = record.filter(|record| record.kind == RecordKind::File);
        file.map_or(0, |record| record.value)
    }

    /// Whether the entry with this number is a directory.
    pub fn is_dir(&self, at: usize) -> bool {
        let record = self.records.get(at);
        record.is_some_and(|record| record.kind == RecordKind::Dir)
    }

    /// Whether the entry with this number is a file; a further name of one is not.
    pub fn is_file(&self, at: usize) -> bool {
        let record = self.records.get(at);
        record.is_some_and(|record| record.kind == RecordKind::File)
    }

    /// The order of the paths of two entries. `scratch` is for the list's use.
    ///
    /// # Panics
    /// If there is no entry of such a number.
    pub fn order(&self, left: usize, right: usize, scratch: &mut Vec<u8>) -> Ordering {
        let (left, right) = (&self.records[left], &self.records[right]);
        if left.dir == right.dir {
            return self.text(left.name()).cmp(self.text(right.name()));
        }
        scratch.clear();
        for part in self.path_parts(right) {
            scratch.extend_from_slice(part);
        }
        order(self.path_parts(left), scratch)
    }

    /// The number of the first entry whose path is `path` or behind it, where the entries are in path order.
    pub fn lower_bound(&self, path: &[u8]) -> usize {
        let is_before = |record: &Record| order(self.path_parts(record), path).is_lt();
        self.records.partition_point(is_before)
    }

    /// The number of the entry with this path, where the entries are in path order.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let at = self.lower_bound(path);
        let record = self.records.get(at)?;
        order(self.path_parts(record), path).is_eq().then_some(at)
    }

    /// Whether one of the entries lies below `dir`, where they are in path order.
    pub fn holds_below(&self, dir: &[u8]) -> bool {
        let below = [dir, b"/"].concat();
        let first = self.path(self.lower_bound(&below));
        first.is_some_and(|path| path.starts_with(&below))
    }
}

/// The order of what `parts` are together and `other`.
fn order(parts: [&[u8]; 3], mut other: &[u8]) -> Ordering {
    for part in parts {
        let shared = part.len().min(other.len());
        match part[..shared].cmp(&other[..shared]) {
            Ordering::Equal if shared == part.len() => other = &other[shared..],
            Ordering::Equal => return Ordering::Greater,
            unequal => return unequal,
        }
    }
    match other.is_empty() {
        true => Ordering::Equal,
        false => Ordering::Less,
    }
}

fn too_much(_: std::num::TryFromIntError) -> Error {
    Error::new(
        Kind::Limit,
        "a list of files takes more than 4 GiB, or has an entry that no file system has",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let path = "([ab-]{1,2}(/[ab-]{1,2}){0,3})?".prop_map(String::into_bytes);
        let text = || prop::collection::vec(any::<u8>(), 0..6);
        let kind = prop_oneof![
            Just(EntryKind::Dir),
            Just(EntryKind::Fifo),
            any::<u64>().prop_map(|bytes| EntryKind::File { bytes }),
            text().prop_map(|target| EntryKind::Symlink { target }),
            text().prop_map(|first| EntryKind::Hardlink { first }),
        ];
        let xattrs = prop::collection::vec((text(), prop::collection::vec(0..2u8, 0..2)), 0..3);
        let numbers = any::<(u16, u32, u32, i64, u32)>();
        let entry = (path, kind, xattrs, numbers).prop_map(|(path, kind, xattrs, numbers)| {
            let (mode, uid, gid, seconds, nanos) = numbers;
            Entry {
                path,
                kind,
                mode: mode.into(),
                uid,
                gid,
                mtime: FileTime { seconds, nanos },
                xattrs,
            }
        });
        prop::collection::vec(entry, 0..40)
    }

    fn list_of(entries: &[Entry]) -> EntryList {
        let mut list = EntryList::default();
        entries.iter().for_each(|entry| list.push(entry).unwrap());
        list
    }

    proptest! {
        #[test]
        fn entries_come_back_as_they_were(entries in entries()) {
            let list = list_of(&entries);
            prop_assert_eq!(&list.iter().collect::<Vec<_>>(), &entries);
            for (at, entry) in entries.iter().enumerate() {
                prop_assert_eq!(list.content_bytes(at), entry.content_bytes());
                prop_assert_eq!(list.path(at), Some(entry.path.clone()));
                let first = match &entry.kind {
                    EntryKind::Hardlink { first } => Some(first.as_slice()),
                    _ => None,
                };
                prop_assert_eq!(list.first_name(at), first);
                prop_assert_eq!(list.is_dir(at), entry.kind == EntryKind::Dir);
                prop_assert_eq!(list.is_file(at), matches!(entry.kind, EntryKind::File { .. }));
            }
            prop_assert_eq!(list.get(entries.len()), None);
        }

        #[test]
        fn paths_are_ordered_and_found_as_their_bytes_are(mut entries in entries(), other in "[ab/-]{0,6}") {
            let list = list_of(&entries);
            let mut scratch = Vec::new();
            for (left, at) in entries.iter().zip(0..) {
                for (right, other) in entries.iter().zip(0..) {
                    prop_assert_eq!(list.order(at, other, &mut scratch), left.path.cmp(&right.path));
                }
            }
            entries.sort_by(|a, b| a.path.cmp(&b.path));
            entries.dedup_by(|a, b| a.path == b.path);
            let list = list_of(&entries);
            for (at, entry) in entries.iter().enumerate() {
                prop_assert_eq!(list.find(&entry.path), Some(at));
            }
            let other = other.as_bytes();
            let found = entries.binary_search_by(|entry| entry.path.as_slice().cmp(other));
            prop_assert_eq!(list.find(other), found.ok());
            prop_assert_eq!(list.lower_bound(other), found.unwrap_or_else(|at| at));
            let below = [other, b"/"].concat();
            let holds_below = entries.iter().any(|entry| entry.path.starts_with(&below));
            prop_assert_eq!(list.holds_below(other), holds_below);
        }
    }

    #[test]
    fn equal_attributes_and_directories_are_kept_once() {
        let entry = |path: String| Entry {
            path: path.into_bytes(),
            kind: EntryKind::File { bytes: 1 },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: FileTime::default(),
            xattrs: vec![(b"security.selinux".to_vec(), vec![b'x'; 500])],
        };
        let entries: Vec<Entry> = (0..1_000)
            .map(|at| entry(format!("{}/{at:03}", "d".repeat(500))))
            .collect();
        let list = list_of(&entries);
        assert_eq!(size_of::<Record>(), 48);
        let bytes = list.memory_bytes();
        assert!((51_000..53_000).contains(&bytes), "{bytes}");
    }
}
