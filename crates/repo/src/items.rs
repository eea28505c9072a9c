//! The entries of a backup: reading its pages, and keeping what they list in little memory.
//!
//! Invariants: entries come in strictly rising path order over all pages, each in a directory that precedes it, and a file
//! has a map exactly if it has content. Neither the memory that they take nor the extents of their files go beyond what a
//! backup may have, whatever a forged manifest lists.

use mover_base::entries::{EntryList, LIST_BYTES_MAX};
use mover_base::tree::{Entry, display_path};
use mover_base::units::{blocks_of, format_bytes};
use mover_base::{Error, Kind, Result};
use mover_format::ChildList;
use mover_format::entry::{EntryPage, StoredEntry};
use mover_format::node::Child;

use crate::reader::PackReader;
use crate::tree::{EXTENT_BYTES, EXTENTS_MAX, FileMap, node_bytes};

/// The entries of a backup in path order, with the maps of the files that are not empty.
#[derive(Default)]
pub struct ItemList {
    entries: EntryList,
    roots: ChildList,
}

impl ItemList {
    /// Reads every entry that `pages` list.
    ///
    /// # Errors
    /// `Corrupt` for what no writer stores, as files of over [`EXTENTS_MAX`]; `Limit` for entries that take over
    /// [`LIST_BYTES_MAX`], which is a limit of this program and none of the format; those of the reader.
    pub(crate) async fn read(reader: &mut PackReader, pages: &[Child]) -> Result<Self> {
        let mut items = ItemList::default();
        each_page(reader, pages, |_, stored| {
            stored.into_iter().try_for_each(|stored| items.push(stored))
        })
        .await?;
        items.check_parents()?;
        items.check_hardlinks()?;
        Ok(items)
    }

    fn push(&mut self, stored: StoredEntry) -> Result<()> {
        self.entries.push(&stored.entry)?;
        self.roots.push(stored.map.as_ref())?;
        // Their maps are at most four times as long, and usually shorter.
        if self.entries.memory_bytes() <= LIST_BYTES_MAX {
            return Ok(());
        }
        let limit = format_bytes(LIST_BYTES_MAX as u64);
        let what = format!("the backup's list of files takes more than {limit}");
        Err(forged(Kind::Limit, what, &stored.entry))
    }

    /// The entries.
    pub fn entries(&self) -> &EntryList {
        &self.entries
    }

    /// The map of the entry with this number, if it has content.
    pub(crate) fn map(&self, at: usize) -> Result<Option<FileMap>> {
        let blocks = blocks_of(self.entries.content_bytes(at));
        let root = self.roots.get(at)?;
        Ok(root.map(|root| FileMap::new(root, blocks)))
    }

    /// A name must be in a directory that precedes it, or it could not be restored. The root itself has none.
    fn check_parents(&self) -> Result<()> {
        for (at, path) in self.paths() {
            let slash = path.iter().rposition(|byte| *byte == b'/');
            let parent = match path.is_empty() {
                true => Some(at),
                false => self.entries.find(&path[..slash.unwrap_or(0)]),
            };
            if !parent.is_some_and(|parent| self.entries.is_dir(parent)) {
                let what = match path.is_empty() {
                    true => "the root of the backup is no directory",
                    false => "an entry of the backup lies in no directory of it",
                };
                return Err(Error::new(Kind::Corrupt, what).object(display_path(&path)));
            }
        }
        Ok(())
    }

    /// A hard link must name a file that precedes it.
    fn check_hardlinks(&self) -> Result<()> {
        for (at, path) in self.paths() {
            let Some(first) = self.entries.first_name(at) else {
                continue;
            };
            let found = self.entries.find(first);
            if !found.is_some_and(|found| found < at && self.entries.is_file(found)) {
                let what = "a hard link does not name a file before it";
                return Err(Error::new(Kind::Corrupt, what).object(display_path(&path)));
            }
        }
        Ok(())
    }

    /// The number and the path of each entry.
    fn paths(&self) -> impl Iterator<Item = (usize, Vec<u8>)> {
        let numbers = 0..self.entries.len();
        numbers.filter_map(|at| Some((at, self.entries.path(at)?)))
    }
}

/// Reads `pages` one after the other, and gives the encoded bytes and the entries of each.
///
/// # Errors
/// `Corrupt` for entries that are not in order or whose maps do not fit them, and for files of over [`EXTENTS_MAX`]; those of
/// the reader and of `each`.
pub(crate) async fn each_page(
    reader: &mut PackReader,
    pages: &[Child],
    mut each: impl FnMut(&[u8], Vec<StoredEntry>) -> Result<()>,
) -> Result<()> {
    let (mut last, mut extents) = (None::<Vec<u8>>, Extents::default());
    for page in pages {
        let (bytes, _) = node_bytes(reader, page).await?;
        let entries = EntryPage::decode(&bytes)?.entries;
        for stored in &entries {
            extents.add(&stored.entry)?;
        }
        let first = entries.first().map(|stored| &stored.entry);
        if let Some(first) = first.filter(|first| last.as_ref() >= Some(&first.path)) {
            let what = "the entries of the backup are not in order";
            return Err(Error::new(Kind::Corrupt, what).object(first.display_path()));
        }
        last = entries.last().map(|stored| stored.entry.path.clone());
        each(&bytes, entries)?;
    }
    Ok(())
}

/// The extents of the files so far.
#[derive(Default)]
struct Extents(u64);

impl Extents {
    fn add(&mut self, entry: &Entry) -> Result<()> {
        let extents = entry.content_bytes().div_ceil(EXTENT_BYTES);
        self.0 = self.0.saturating_add(extents);
        if self.0 <= EXTENTS_MAX {
            return Ok(());
        }
        let limit = format_bytes(EXTENTS_MAX * EXTENT_BYTES);
        let what = format!("the backup's files have more than {limit} together");
        Err(forged(Kind::Corrupt, what, entry))
    }
}

fn forged(kind: Kind, what: String, entry: &Entry) -> Error {
    Error::new(kind, what)
        .object(entry.display_path())
        .hint("no backup of this program lists so much: the manifest may be forged")
}

#[cfg(test)]
mod tests {
    use mover_base::tree::{EntryKind, FileTime};

    use super::*;

    fn named(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: FileTime::default(),
            xattrs: Vec::new(),
        }
    }

    fn items(entries: Vec<Entry>) -> ItemList {
        let mut items = ItemList::default();
        for entry in entries {
            items.push(StoredEntry { entry, map: None }).unwrap();
        }
        items
    }

    #[test]
    fn a_name_lies_in_a_directory_before_it() {
        let dir = |path| named(path, EntryKind::Dir);
        let empty = |path| named(path, EntryKind::File { bytes: 0 });
        let target = b"base".to_vec();
        let link = |path| named(path, EntryKind::Symlink { target });
        let sound = vec![
            dir(""),
            dir("base"),
            empty("base/1"),
            dir("base/2"),
            empty("base/2/x"),
            empty("base0"),
        ];
        items(sound).check_parents().unwrap();
        items(Vec::new()).check_parents().unwrap();
        for (wrong, object) in [
            (vec![empty("")], ""),
            (vec![empty("base")], "base"),
            (vec![dir(""), empty("base/1")], "base/1"),
            (vec![dir(""), empty("base"), empty("base/1")], "base/1"),
            (vec![dir(""), link("base"), empty("base/1")], "base/1"),
            (vec![dir(""), dir("base"), empty("base/2/x")], "base/2/x"),
        ] {
            let error = items(wrong).check_parents().unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            let name = error.object_name().unwrap_or_default();
            assert!(name.ends_with(object), "{error}");
        }
    }

    #[test]
    fn a_hard_link_names_a_file_before_it() {
        let link = |path, first: &str| {
            let first = first.into();
            named(path, EntryKind::Hardlink { first })
        };
        let of = |link| {
            let (dir, file) = (EntryKind::Dir, EntryKind::File { bytes: 0 });
            items(vec![named("", dir), named("b", file), link]).check_hardlinks()
        };
        of(link("c", "b")).unwrap();
        for wrong in [link("c", ""), link("c", "a"), link("c", "c")] {
            assert_eq!(of(wrong).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn files_of_4_pib_are_taken_and_a_byte_more_is_refused() {
        let file = |bytes| named("base/large", EntryKind::File { bytes });
        let mut extents = Extents::default();
        extents.add(&file((4 << 50) - EXTENT_BYTES)).unwrap();
        extents.add(&file(EXTENT_BYTES)).unwrap();
        for bytes in [1, 1 << 63, u64::MAX] {
            let error = extents.add(&file(bytes)).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "the format forbids it");
            assert_eq!(error.object_name(), Some("base/large"));
        }
    }
}
