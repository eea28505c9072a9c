//! The names of the parent backup, by which the running one finds what a file's map was: its pages are read once and then
//! looked into again one by one, since a source's files are gone through in path order, or nearly.
//!
//! Invariants: all pages were read and found in order before the first name is looked up; what is kept of them is bounded,
//! however many names there are: the rest is read again when it is asked for. A parent of more pages than that has room for, which
//! only a forged manifest lists, is none.

use mover_base::units::blocks_of;
use mover_base::{Error, Kind, Result};
use mover_format::entry::{EntryPage, StoredEntry};
use mover_format::node::{Child, INLINE_BYTES_MAX, NodeRef};

use crate::items::each_page;
use crate::reader::PackReader;
use crate::tree::{FileMap, node_bytes};

/// Bytes of pages that are kept: the names of 18,000 files. Beyond it 1 byte is kept for each name.
const KEPT_BYTES_MAX: usize = 2 << 20;

/// Bytes that the list of pages may take: many times what that of a backup with as many names as a scan may find does.
const PAGES_BYTES_MAX: usize = 64 << 20;

/// The pages that list the parent's names.
#[derive(Default)]
pub(crate) struct ParentNames {
    pages: Vec<Page>,
}

struct Page {
    /// The path of its first entry.
    first: Vec<u8>,
    place: Child,
    /// Its bytes, if they are kept.
    kept: Option<Box<[u8]>>,
}

/// The page that a shard looked into last.
#[derive(Default)]
pub(crate) struct NamesCursor {
    page: Option<usize>,
    entries: Vec<StoredEntry>,
}

impl ParentNames {
    /// Reads `pages`, and gives each entry to `each`.
    ///
    /// # Errors
    /// Those of [`each_page`] and of `each`; `Limit` for too many pages.
    pub async fn read(
        reader: &mut PackReader,
        pages: &[Child],
        mut each: impl FnMut(&StoredEntry) -> Result<()>,
    ) -> Result<Self> {
        let mut names = ParentNames::default();
        let (mut places, mut room) = (pages.iter(), KEPT_BYTES_MAX);
        let mut pages_room = PAGES_BYTES_MAX;
        each_page(reader, pages, |bytes, entries| {
            entries.iter().try_for_each(&mut each)?;
            let (Some(place), Some(first)) = (places.next(), entries.first()) else {
                return Err(Error::new(Kind::Internal, "a page that is not listed"));
            };
            let page_bytes = size_of::<Page>() + INLINE_BYTES_MAX + first.entry.path.len();
            pages_room = pages_room
                .checked_sub(page_bytes)
                .ok_or_else(too_many_names)?;
            let rest = room.checked_sub(bytes.len());
            room = rest.unwrap_or(0);
            names.pages.push(Page {
                first: first.entry.path.clone(),
                place: place.clone(),
                kept: rest.map(|_| bytes.into()),
            });
            Ok(())
        })
        .await?;
        Ok(names)
    }

    /// Where the pages are stored, of those that do not lie in the manifest itself.
    pub fn stored(&self) -> impl Iterator<Item = &NodeRef> {
        self.pages.iter().filter_map(|page| match &page.place {
            Child::Node(node) => Some(node),
            Child::Inline(_) => None,
        })
    }

    /// The map that the file at `path` has in the parent, if it is there and not empty.
    ///
    /// # Errors
    /// Those of the reader, where a page has to be read again.
    pub async fn map(
        &self,
        cursor: &mut NamesCursor,
        reader: &mut PackReader,
        path: &[u8],
    ) -> Result<Option<FileMap>> {
        let behind = self.pages.partition_point(|page| *page.first <= *path);
        let Some(at) = behind.checked_sub(1) else {
            return Ok(None);
        };
        if cursor.page != Some(at) {
            let page = &self.pages[at];
            cursor.page = None;
            cursor.entries = match &page.kept {
                Some(bytes) => EntryPage::decode(bytes)?.entries,
                None => EntryPage::decode(&node_bytes(reader, &page.place).await?.0)?.entries,
            };
            cursor.page = Some(at);
        }
        let found = cursor
            .entries
            .binary_search_by(|stored| (*stored.entry.path).cmp(path));
        let stored = found.ok().map(|found| &cursor.entries[found]);
        Ok(stored.and_then(|stored| {
            let blocks = blocks_of(stored.entry.content_bytes());
            Some(FileMap::new(stored.map.clone()?, blocks))
        }))
    }
}

/// The error for a parent whose names take more memory than those of any backup do.
pub(crate) fn too_many_names() -> Error {
    Error::new(
        Kind::Limit,
        "its list of files takes more memory than that of any backup",
    )
}
