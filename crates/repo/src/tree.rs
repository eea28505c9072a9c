//! Reading the map: from a manifest's pages to entries, from a file's map to the leaf of an extent.
//!
//! Invariants: the shape of a map follows from the file's size and nothing else, and a node of another shape is
//! refused; entries come in strictly rising path order over all pages; what a leaf covers is exactly the
//! blocks of its extent.

use mover_base::tree::{Entry, EntryKind};
use mover_base::units::{blocks_of, format_bytes};
use mover_base::{Error, Kind, Result};
use mover_format::entry::EntryPage;
use mover_format::node::{
    Child, Interior, LEAF_BLOCKS_MAX, Leaf, NodeRef, level_blocks, root_level,
};

use crate::reader::PackReader;

/// Bytes of a file that one leaf of its map covers: the extent that a shard works on.
pub const EXTENT_BYTES: u64 = LEAF_BLOCKS_MAX as u64 * mover_base::BLOCK_BYTES as u64;

/// The map of one file: its root node and its size.
#[derive(Debug, Clone)]
pub struct FileMap {
    root: Child,
    blocks: u64,
}

/// An entry of a backup; a file that is not empty has a map.
#[derive(Debug, Clone)]
pub struct TreeItem {
    /// The entry.
    pub entry: Entry,
    /// The map of its content.
    pub map: Option<FileMap>,
}

impl FileMap {
    /// Extents of the file.
    pub fn extents(&self) -> u64 {
        self.blocks.div_ceil(LEAF_BLOCKS_MAX as u64)
    }

    /// Blocks of the file.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks of extent `index`.
    pub fn extent_blocks(&self, index: u64) -> u64 {
        let before = index * LEAF_BLOCKS_MAX as u64;
        self.blocks
            .saturating_sub(before)
            .min(LEAF_BLOCKS_MAX as u64)
    }

    /// The names of the stored nodes above the leaves, of those that can be read. A node that cannot is
    /// passed over with all that is below it, and the error is the second value.
    pub(crate) async fn interior_names(
        &self,
        reader: &mut PackReader,
    ) -> (Vec<NodeRef>, Option<Error>) {
        let mut names = Vec::new();
        let mut damage = None;
        let mut level = root_level(self.blocks).unwrap_or(0);
        let mut nodes = vec![self.root.clone()];
        while level > 0 && !nodes.is_empty() {
            let mut below = Vec::new();
            for node in &nodes {
                match interior(reader, node).await {
                    Ok((children, name)) => {
                        names.extend(name);
                        if level > 1 {
                            below.extend(children);
                        }
                    }
                    Err(error) => damage = Some(error),
                }
            }
            nodes = below;
            level -= 1;
        }
        (names, damage)
    }

    /// The leaf of extent `index`, and its name if it is not inline.
    pub(crate) async fn leaf(
        &self,
        reader: &mut PackReader,
        index: u64,
    ) -> Result<(Leaf, Option<NodeRef>)> {
        let too_large = || Error::new(Kind::Corrupt, "a file is larger than a map can describe");
        let mut child = self.root.clone();
        // The block wanted and the blocks in all, counted from the beginning of the node at hand.
        let (mut block, mut blocks) = (index * u64::from(LEAF_BLOCKS_MAX), self.blocks);
        for level in (1..=root_level(blocks).ok_or_else(too_large)?).rev() {
            let (bytes, _) = node_bytes(reader, &child).await?;
            let mut node = Interior::decode(&bytes)?;
            node.check_shape(level, blocks)?;
            let per_child = level_blocks(level - 1);
            let at = block / per_child;
            if at >= node.children.len() as u64 {
                return Err(Error::new(
                    Kind::Internal,
                    "an extent lies behind the end of its file",
                ));
            }
            child = node.children.swap_remove(at as usize);
            block -= at * per_child;
            blocks = (blocks - at * per_child).min(per_child);
        }
        let (bytes, name) = node_bytes(reader, &child).await?;
        let leaf = Leaf::decode(&bytes)?;
        if u64::from(leaf.blocks()) != self.extent_blocks(index) {
            return Err(Error::new(
                Kind::Corrupt,
                "a map's leaf does not cover its extent exactly",
            ));
        }
        Ok((leaf, name))
    }
}

async fn interior(reader: &mut PackReader, child: &Child) -> Result<(Vec<Child>, Option<NodeRef>)> {
    let (bytes, name) = node_bytes(reader, child).await?;
    Ok((Interior::decode(&bytes)?.children, name))
}

async fn node_bytes(reader: &mut PackReader, child: &Child) -> Result<(Vec<u8>, Option<NodeRef>)> {
    match child {
        Child::Inline(bytes) => Ok((bytes.clone(), None)),
        Child::Node(node) => Ok((reader.node(node).await?, Some(*node))),
    }
}

/// Most memory that the entries of a backup may take: half as much again as a scan allows, in bytes.
const ENTRIES_BYTES_MAX: usize = 192 << 20;

/// The memory that an entry takes, in bytes.
fn entry_bytes(entry: &Entry) -> usize {
    let target = match &entry.kind {
        EntryKind::Symlink { target } => target.len(),
        EntryKind::Hardlink { first } => first.len(),
        _ => 0,
    };
    let xattrs = entry.xattrs.iter();
    let xattrs = xattrs.map(|pair| size_of_val(pair) + pair.0.len() + pair.1.len());
    size_of::<TreeItem>() + entry.path.len() + target + xattrs.sum::<usize>()
}

/// Every entry that `pages` list, in path order, and the names of the stored pages.
///
/// # Errors
/// `Corrupt` for what no writer stores; `Limit` for entries that take over [`ENTRIES_BYTES_MAX`]; those of the reader.
pub(crate) async fn read_entries(
    reader: &mut PackReader,
    pages: &[Child],
) -> Result<(Vec<TreeItem>, Vec<NodeRef>)> {
    let mut items: Vec<TreeItem> = Vec::new();
    let (mut names, mut bytes_taken) = (Vec::new(), 0);
    for page in pages {
        let (bytes, name) = node_bytes(reader, page).await?;
        names.extend(name);
        for stored in EntryPage::decode(&bytes)?.entries {
            if items
                .last()
                .is_some_and(|last| last.entry.path >= stored.entry.path)
            {
                return Err(Error::new(
                    Kind::Corrupt,
                    "the entries of the backup are not in order",
                )
                .object(stored.entry.display_path()));
            }
            bytes_taken += entry_bytes(&stored.entry);
            if bytes_taken > ENTRIES_BYTES_MAX {
                let limit = format_bytes(ENTRIES_BYTES_MAX as u64);
                let what = format!("the backup's list of files takes more than {limit}");
                return Err(Error::new(Kind::Limit, what)
                    .object(stored.entry.display_path())
                    .hint("no backup of this program lists so much: the manifest may be forged"));
            }
            let blocks = blocks_of(stored.entry.content_bytes());
            let map = stored.map.map(|root| FileMap { root, blocks });
            if map.is_some() != (blocks > 0) {
                return Err(
                    Error::new(Kind::Corrupt, "a file's map does not fit its size")
                        .object(stored.entry.display_path()),
                );
            }
            items.push(TreeItem {
                entry: stored.entry,
                map,
            });
        }
    }
    check_hardlinks(&items)?;
    Ok((items, names))
}

/// A hard link must name a file that precedes it.
fn check_hardlinks(items: &[TreeItem]) -> Result<()> {
    for (at, item) in items.iter().enumerate() {
        let EntryKind::Hardlink { first } = &item.entry.kind else {
            continue;
        };
        let found = items[..at].binary_search_by(|other| other.entry.path.as_slice().cmp(first));
        let is_file = |at: usize| matches!(items[at].entry.kind, EntryKind::File { .. });
        if !found.is_ok_and(is_file) {
            return Err(
                Error::new(Kind::Corrupt, "a hard link does not name a file before it")
                    .object(item.entry.display_path()),
            );
        }
    }
    Ok(())
}
