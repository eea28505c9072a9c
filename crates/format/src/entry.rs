//! Entry pages: the listing of a tree, cut into nodes.
//!
//! Invariants: entries stand in strictly increasing byte order of their paths, within a page and (checked by
//! whoever walks the pages) across pages; every path is safe to join to a root; a page fits a node. Each
//! field has one encoding, so that an unchanged stretch of the listing keeps its page.

use mover_base::tree::{Entry, EntryKind, FileTime, PATH_BYTES_MAX, is_safe_path};
use mover_base::{Error, Kind, Result, units::blocks_of};

use crate::node::{Child, ENTRY_PAGE_CODE, NODE_BYTES_MAX};
use crate::wire::{Reader, VARINT_BYTES_MAX, corrupt, put_varint, unzigzag, zigzag};

/// Most entries of a page.
pub const PAGE_ENTRIES_MAX: usize = 4096;
/// Most extended attributes of an entry.
pub const XATTRS_MAX: usize = 1024;
/// Longest name of an extended attribute (XATTR_NAME_MAX of Linux).
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value of an extended attribute (XATTR_SIZE_MAX of Linux).
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;
/// Longest encoded entry: alone in a page it must fit a node.
pub const ENTRY_BYTES_MAX: usize = NODE_BYTES_MAX - PAGE_HEAD_BYTES_MAX;

const PAGE_HEAD_BYTES_MAX: usize = 1 + VARINT_BYTES_MAX;
const MODE_MAX: u64 = 0o7777;
const NANOS_MAX: u64 = 999_999_999;
const KIND_DIR: u8 = 0;
const KIND_FILE: u8 = 1;
const KIND_SYMLINK: u8 = 2;
const KIND_HARDLINK: u8 = 3;
const KIND_FIFO: u8 = 4;

/// An entry and where its content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// The entry as the source listed it.
    pub entry: Entry,
    /// Root of the file's map: present exactly for a file of at least one byte.
    pub map: Option<Child>,
}

impl StoredEntry {
    fn check(&self) -> Result<()> {
        let Entry {
            path,
            kind,
            mode,
            mtime,
            xattrs,
            ..
        } = &self.entry;
        let wrong = |what: &str| Err(corrupt(format!("entry: {what}")));
        if !is_safe_path(path) {
            return wrong("the path is not allowed");
        }
        if path.is_empty() && !matches!(kind, EntryKind::Dir) {
            return wrong("the root is not a directory");
        }
        if u64::from(*mode) > MODE_MAX || u64::from(mtime.nanos) > NANOS_MAX {
            return wrong("the mode or the time is out of range");
        }
        if xattrs.len() > XATTRS_MAX {
            return wrong("there are too many extended attributes");
        }
        for (name, value) in xattrs {
            let name_ok = (1..=XATTR_NAME_BYTES_MAX).contains(&name.len()) && !name.contains(&0);
            if !name_ok || value.len() > XATTR_VALUE_BYTES_MAX {
                return wrong("an extended attribute is too long or has no proper name");
            }
        }
        if xattrs.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return wrong("the extended attributes are not sorted by name");
        }
        match kind {
            EntryKind::Symlink { target } => {
                if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
                    return wrong("the link target is empty, too long or holds a NUL");
                }
            }
            EntryKind::Hardlink { first } => {
                if first.is_empty() || !is_safe_path(first) || first >= path {
                    return wrong(
                        "the first name of the hard link is not allowed or does not precede it",
                    );
                }
            }
            EntryKind::Dir | EntryKind::File { .. } | EntryKind::Fifo => {}
        }
        match (&self.map, self.entry.content_bytes()) {
            (None, 0) => Ok(()),
            (None, _) => wrong("a file with content has no map"),
            (Some(_), 0) => wrong("an entry without content has a map"),
            (Some(map), bytes) => map.check().and_then(|()| map.check_root(blocks_of(bytes))),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let entry = &self.entry;
        put_string(out, &entry.path);
        out.push(match entry.kind {
            EntryKind::Dir => KIND_DIR,
            EntryKind::File { .. } => KIND_FILE,
            EntryKind::Symlink { .. } => KIND_SYMLINK,
            EntryKind::Hardlink { .. } => KIND_HARDLINK,
            EntryKind::Fifo => KIND_FIFO,
        });
        put_varint(out, u64::from(entry.mode));
        put_varint(out, u64::from(entry.uid));
        put_varint(out, u64::from(entry.gid));
        put_varint(out, zigzag(entry.mtime.seconds));
        put_varint(out, u64::from(entry.mtime.nanos));
        put_varint(out, entry.xattrs.len() as u64);
        for (name, value) in &entry.xattrs {
            put_string(out, name);
            put_string(out, value);
        }
        match &entry.kind {
            EntryKind::File { bytes } => {
                put_varint(out, *bytes);
                if let Some(map) = &self.map {
                    map.encode(out);
                }
            }
            EntryKind::Symlink { target } => put_string(out, target),
            EntryKind::Hardlink { first } => put_string(out, first),
            EntryKind::Dir | EntryKind::Fifo => {}
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let path = reader.string("path", PATH_BYTES_MAX)?.to_vec();
        let kind_code = reader.u8("kind")?;
        let mode = reader.varint_max("mode", MODE_MAX)? as u32;
        let uid = reader.varint_max("owner", u64::from(u32::MAX))? as u32;
        let gid = reader.varint_max("group", u64::from(u32::MAX))? as u32;
        let mtime = FileTime {
            seconds: unzigzag(reader.varint("seconds")?),
            nanos: reader.varint_max("nanoseconds", NANOS_MAX)? as u32,
        };
        let xattr_count = reader.varint_max("attribute count", XATTRS_MAX as u64)?;
        let xattrs = (0..xattr_count)
            .map(|_| {
                let name = reader.string("attribute name", XATTR_NAME_BYTES_MAX)?;
                let value = reader.string("attribute value", XATTR_VALUE_BYTES_MAX)?;
                Ok((name.to_vec(), value.to_vec()))
            })
            .collect::<Result<_>>()?;
        let mut map = None;
        let kind = match kind_code {
            KIND_DIR => EntryKind::Dir,
            KIND_FILE => {
                let bytes = reader.varint("file length")?;
                if bytes > 0 {
                    map = Some(Child::read(reader)?);
                }
                EntryKind::File { bytes }
            }
            KIND_SYMLINK => EntryKind::Symlink {
                target: reader.string("link target", PATH_BYTES_MAX)?.to_vec(),
            },
            KIND_HARDLINK => EntryKind::Hardlink {
                first: reader.string("first name", PATH_BYTES_MAX)?.to_vec(),
            },
            KIND_FIFO => EntryKind::Fifo,
            _ => return Err(reader.wrong("entry kind", "is unknown")),
        };
        let entry = Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        };
        let stored = StoredEntry { entry, map };
        stored.check()?;
        Ok(stored)
    }
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A stretch of a tree's listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPage {
    /// The entries by path; at least one.
    pub entries: Vec<StoredEntry>,
}

impl EntryPage {
    /// Reads an entry page.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("entry page", bytes);
        if bytes.len() > NODE_BYTES_MAX || reader.u8("kind")? != ENTRY_PAGE_CODE {
            return Err(reader.wrong("kind", "is another or the node too long"));
        }
        let count = reader.varint_max("entry count", PAGE_ENTRIES_MAX as u64)?;
        if count == 0 {
            return Err(reader.wrong("entry count", "is zero"));
        }
        let mut entries: Vec<StoredEntry> = Vec::new();
        for _ in 0..count {
            let stored = StoredEntry::read(&mut reader)?;
            if entries
                .last()
                .is_some_and(|last| last.entry.path >= stored.entry.path)
            {
                return Err(reader.wrong("path", "is not in increasing order"));
            }
            entries.push(stored);
        }
        reader.finish()?;
        Ok(EntryPage { entries })
    }

    /// The page's bytes; fails if the entries are too many, too long or out of order.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut page = EntryPageBuilder::new();
        for stored in &self.entries {
            if !page.push(stored)? {
                return Err(Error::new(Kind::Limit, "the entries do not fit one page"));
            }
        }
        page.finish()
            .ok_or_else(|| Error::new(Kind::Internal, "an entry page has no entries"))
    }
}

/// Encodes entries as they come, until a page is full.
#[derive(Debug, Default)]
pub struct EntryPageBuilder {
    body: Vec<u8>,
    count: usize,
    last_path: Vec<u8>,
}

impl EntryPageBuilder {
    /// An empty page.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries the page has.
    pub fn entries(&self) -> usize {
        self.count
    }

    /// How long the page is, not counting its first few bytes.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// Adds an entry; false if the page is full and the entry belongs to the next one.
    ///
    /// Fails with [`Kind::Limit`] if the entry alone exceeds [`ENTRY_BYTES_MAX`], with [`Kind::Internal`] if
    /// it is out of order or not what a reader accepts.
    pub fn push(&mut self, stored: &StoredEntry) -> Result<bool> {
        let path = || stored.entry.display_path();
        stored.check().map_err(|e| {
            Error::new(Kind::Internal, "an entry cannot be stored")
                .object(path())
                .cause(e)
        })?;
        if self.count > 0 && self.last_path >= stored.entry.path {
            return Err(Error::new(Kind::Internal, "entries are out of order").object(path()));
        }
        let before = self.body.len();
        stored.encode(&mut self.body);
        if self.body.len() - before > ENTRY_BYTES_MAX {
            self.body.truncate(before);
            return Err(Error::new(
                Kind::Limit,
                "an entry's extended attributes take over 1 MiB",
            )
            .object(path())
            .hint("remove some of the file's extended attributes"));
        }
        if self.count == PAGE_ENTRIES_MAX || self.body.len() > ENTRY_BYTES_MAX {
            self.body.truncate(before);
            return Ok(false);
        }
        self.count += 1;
        self.last_path.clone_from(&stored.entry.path);
        Ok(true)
    }

    /// The page's bytes; none if nothing was pushed. The builder is empty again.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        if self.count == 0 {
            return None;
        }
        let mut out = Vec::with_capacity(PAGE_HEAD_BYTES_MAX + self.body.len());
        out.push(ENTRY_PAGE_CODE);
        put_varint(&mut out, self.count as u64);
        out.append(&mut self.body);
        *self = Self::new();
        Some(out)
    }
}
