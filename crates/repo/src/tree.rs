//! Reading the map of a file, down to the leaf of an extent.
//!
//! Invariants: the shape of a map follows from the file's size and nothing else, and a node of another shape is
//! refused; what a leaf covers is exactly the blocks of its extent. However a forged map repeats its nodes, whoever goes through
//! it comes to an end: [`FileMap::each_leaf`] goes through a node once.

use std::collections::HashSet;

use mover_base::tree::Entry;
use mover_base::{BackupId, Error, Kind, Result};
use mover_format::node::{
    Child, Interior, LEAF_BLOCKS_MAX, Leaf, NodeRef, level_blocks, root_level,
};

use crate::layout;
use crate::reader::{PackReader, damaged};

/// Bytes of a file that one leaf of its map covers: the extent that a shard works on.
pub const EXTENT_BYTES: u64 = LEAF_BLOCKS_MAX as u64 * mover_base::BLOCK_BYTES as u64;

/// Most extents that the files of a backup have together: 4 PiB of files, holes included. A backup keeps some 80 bytes for each
/// while it runs.
pub(crate) const EXTENTS_MAX: u64 = 1 << 26;

/// The map of one file: its root node and its size.
#[derive(Debug, Clone)]
pub struct FileMap {
    root: Child,
    blocks: u64,
}

impl FileMap {
    /// The map of a file of so many blocks.
    pub(crate) fn new(root: Child, blocks: u64) -> Self {
        FileMap { root, blocks }
    }

    /// Extents of the file.
    pub fn extents(&self) -> u64 {
        self.blocks.div_ceil(LEAF_BLOCKS_MAX as u64)
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
        Ok((leaf_over(&bytes, self.extent_blocks(index))?, name))
    }

    /// Gives the leaves to `each`, in order, but for those below nodes that were gone through before.
    pub(crate) async fn each_leaf(
        &self,
        reader: &mut PackReader,
        walked: &mut Walked,
        each: impl FnMut(&Leaf),
    ) -> Result<()> {
        let shard = reader.shard().clone();
        let fetch = async |node: &NodeRef| {
            shard.stop()?;
            shard.turn().await;
            reader.node(node).await
        };
        walk(&self.root, self.blocks, walked, fetch, each).await
    }
}

fn too_large() -> Error {
    Error::new(Kind::Corrupt, "a file is larger than a map can describe")
}

fn leaf_over(bytes: &[u8], blocks: u64) -> Result<Leaf> {
    let leaf = Leaf::decode(bytes)?;
    match u64::from(leaf.blocks()) == blocks {
        true => Ok(leaf),
        false => Err(Error::new(
            Kind::Corrupt,
            "a map's leaf does not cover its extent exactly",
        )),
    }
}

/// Most stored nodes between roots and leaves that a walk remembers, some 90 bytes each: each stands for 64 GiB of files.
const WALKED_MAX: usize = 1 << 18;

/// Stored nodes between the roots and the leaves of maps that were gone through, each with its level and the blocks below it.
#[derive(Default)]
pub(crate) struct Walked(HashSet<(NodeRef, u8, u64)>);

impl Walked {
    /// Whether the node is new.
    fn add(&mut self, node: NodeRef, level: u8, blocks: u64) -> Result<bool> {
        let is_new = self.0.insert((node, level, blocks));
        if self.0.len() > WALKED_MAX {
            let what = format!("the maps of the backup have over {WALKED_MAX} inner nodes");
            return Err(Error::new(Kind::Limit, what));
        }
        Ok(is_new)
    }
}

/// Gives the leaves below `root`, over `blocks` blocks, to `each`. Inline nodes hold no more than their few bytes, so only stored
/// ones are remembered.
async fn walk(
    root: &Child,
    blocks: u64,
    walked: &mut Walked,
    mut fetch: impl AsyncFnMut(&NodeRef) -> Result<Vec<u8>>,
    mut each: impl FnMut(&Leaf),
) -> Result<()> {
    let root_level = root_level(blocks).ok_or_else(too_large)?;
    let mut open = vec![(root.clone(), root_level, blocks)];
    while let Some((child, level, blocks)) = open.pop() {
        let bytes = match child {
            Child::Inline(bytes) => bytes,
            Child::Node(node) => {
                let is_inner = level > 0 && level < root_level;
                if is_inner && !walked.add(node, level, blocks)? {
                    continue;
                }
                fetch(&node).await?
            }
        };
        if level == 0 {
            each(&leaf_over(&bytes, blocks)?);
            continue;
        }
        let node = Interior::decode(&bytes)?;
        node.check_shape(level, blocks)?;
        let per_child = level_blocks(level - 1);
        for (at, child) in node.children.into_iter().enumerate().rev() {
            let below = (blocks - at as u64 * per_child).min(per_child);
            open.push((child, level - 1, below));
        }
    }
    Ok(())
}

/// Says in an error about the map of a file which backup and which file that is, where the error names no object.
pub(crate) fn in_map(backup: BackupId, entry: &Entry, error: Error) -> Error {
    let what = format!("the map of the file {} is damaged", entry.display_path());
    match (error.kind(), error.object_name(), layout::backup(backup)) {
        (Kind::Corrupt, None, Ok(key)) => {
            damaged(&key, Error::new(Kind::Corrupt, what).cause(error))
        }
        _ => error,
    }
}

/// Says in an error about the entries of a backup which one that is, where the error names no object, and what to do.
pub(crate) fn in_pages(backup: BackupId, error: Error) -> Error {
    match (error.kind(), layout::backup(backup)) {
        (Kind::Corrupt | Kind::Limit, Ok(key)) => damaged(&key, error),
        _ => error,
    }
}

async fn interior(reader: &mut PackReader, child: &Child) -> Result<(Vec<Child>, Option<NodeRef>)> {
    let (bytes, name) = node_bytes(reader, child).await?;
    Ok((Interior::decode(&bytes)?.children, name))
}

pub(crate) async fn node_bytes(
    reader: &mut PackReader,
    child: &Child,
) -> Result<(Vec<u8>, Option<NodeRef>)> {
    match child {
        Child::Inline(bytes) => Ok((bytes.clone(), None)),
        Child::Node(node) => Ok((reader.node(node).await?, Some(*node))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use mover_base::PackId;
    use mover_base::checksum::sha256;
    use mover_base::tree::{EntryKind, FileTime};
    use mover_format::entry::EntryPage;
    use mover_format::node::{CHILDREN_MAX, LeafBuilder, Run};

    use super::*;

    fn hole(blocks: u32) -> Child {
        let mut leaf = LeafBuilder::new();
        leaf.push(Run::Hole { blocks }).unwrap();
        Child::Inline(leaf.finish().unwrap().encode())
    }

    /// Stores a node whose children are `count` times the same.
    fn repeated(
        nodes: &mut HashMap<NodeRef, Vec<u8>>,
        level: u8,
        of: &Child,
        count: usize,
    ) -> Child {
        let children = vec![of.clone(); count];
        let bytes = Interior { level, children }.encode().unwrap();
        let node = NodeRef {
            sha256: sha256(&bytes),
            pack: PackId([7; 16]),
            frame: 0,
            offset: 0,
            len: bytes.len() as u32,
        };
        nodes.insert(node, bytes);
        Child::Node(node)
    }

    /// Walks over nodes that are at hand; gives the leaves, and how many nodes were fetched.
    fn walked(
        nodes: &HashMap<NodeRef, Vec<u8>>,
        root: &Child,
        blocks: u64,
    ) -> Result<(Vec<u32>, usize)> {
        let (mut leaves, mut fetched, mut before) = (Vec::new(), 0, Walked::default());
        let fetch = async |node: &NodeRef| {
            fetched += 1;
            assert!(fetched <= 1000, "it goes on and on");
            Ok(nodes[node].clone())
        };
        let each = |leaf: &Leaf| leaves.push(leaf.blocks());
        {
            let walk = pin!(walk(root, blocks, &mut before, fetch, each));
            match walk.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => done?,
                Poll::Pending => panic!("nothing is waited for"),
            }
        }
        Ok((leaves, fetched))
    }

    /// A file of 2^63 bytes, as somebody forges it who is to write little.
    #[test]
    fn a_map_that_repeats_its_nodes_is_gone_through_once() {
        let mut nodes = HashMap::new();
        let mut child = hole(LEAF_BLOCKS_MAX);
        for level in 1..=3 {
            child = repeated(&mut nodes, level, &child, CHILDREN_MAX);
        }
        let root = repeated(&mut nodes, 4, &child, 128);
        let (leaves, fetched) = walked(&nodes, &root, 1 << 51).unwrap();
        assert_eq!(leaves, [LEAF_BLOCKS_MAX; CHILDREN_MAX]);
        assert_eq!(fetched, 4);
    }

    #[test]
    fn a_walk_meets_every_leaf_in_order_and_refuses_another_shape() {
        let mut nodes = HashMap::new();
        let full = repeated(&mut nodes, 1, &hole(LEAF_BLOCKS_MAX), CHILDREN_MAX);
        let last = Interior {
            level: 1,
            children: vec![hole(LEAF_BLOCKS_MAX), hole(5)],
        };
        let last = Child::Inline(last.encode().unwrap());
        let root = Interior {
            level: 2,
            children: vec![full, last],
        };
        let root = Child::Inline(root.encode().unwrap());
        let blocks = level_blocks(1) + u64::from(LEAF_BLOCKS_MAX) + 5;
        let mut expected = vec![LEAF_BLOCKS_MAX; CHILDREN_MAX + 1];
        expected.push(5);
        assert_eq!(walked(&nodes, &root, blocks).unwrap(), (expected, 1));
        for wrong in [blocks - 1, blocks + 1, blocks - 5, level_blocks(1) * 3] {
            let error = walked(&nodes, &root, wrong).map(drop).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{wrong}: {error}");
        }
    }

    #[test]
    fn a_fault_in_a_map_names_backup_and_file_where_it_names_no_object() {
        let id = BackupId::new(mover_base::Timestamp::from_micros(0), 7);
        let entry = Entry {
            path: b"base/large".to_vec(),
            kind: EntryKind::File { bytes: 1 },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: FileTime::default(),
            xattrs: Vec::new(),
        };
        let bare = Leaf::decode(&[1, 0, 2, 4, 4]).unwrap_err();
        let error = in_map(id, &entry, bare);
        assert_eq!(
            error.object_name(),
            Some("backups/19700101-000000-00000007")
        );
        let told = error.to_string();
        assert!(
            told.starts_with("the map of the file base/large is damaged"),
            "{told}"
        );
        assert!(
            told.ends_with("run should be one with the run before it"),
            "{told}"
        );
        assert!(error.hint_text().is_some());
        let of_pack = Error::new(Kind::Corrupt, "it is damaged").object("packs/ab/abcd");
        let error = in_map(id, &entry, of_pack);
        assert_eq!(error.to_string(), "it is damaged: packs/ab/abcd");
        let bare = EntryPage::decode(&[3]).unwrap_err();
        let error = in_pages(id, bare);
        assert_eq!(
            error.object_name(),
            Some("backups/19700101-000000-00000007")
        );
        assert!(error.hint_text().is_some());
    }
}
