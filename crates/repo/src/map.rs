//! Writing the map: leaves, the interior nodes above them, and the pages that list a tree's entries.
//!
//! Nodes are content-addressed. A node that the parent backup has already is not written again, so what an
//! incremental backup adds to the map follows what changed.
//!
//! Invariants: a node is decoded and compared before it is sent; a reference is given out only for a frame of
//! a pack that this session commits or an earlier one has committed; the order of children is the order of
//! the blocks, the order of entries that of their paths.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use mover_base::checksum::{Sha256, crc32, sha256};
use mover_base::entries::EntryList;
use mover_base::tree::Entry;
use mover_base::units::format_bytes;
use mover_base::{Error, Kind, PackId, Result};
use mover_format::ChildList;
use mover_format::entry::{EntryPageBuilder, StoredEntry};
use mover_format::frame::{FRAME_PLAIN_BYTES_MAX, FrameEncoder, FrameKind};
use mover_format::manifest::PackInfo;
use mover_format::node::{CHILDREN_MAX, Child, INLINE_BYTES_MAX, Interior, NodeRef};
use mover_format::preamble::ObjectType;
use mover_io::Shard;

use crate::dedup::word;
use crate::pack::PackWriter;
use crate::timing::{StageSeconds, lap};
use crate::tree::{EXTENT_BYTES, EXTENTS_MAX};
use crate::writer::{Commits, MapNode, WriteShared};

/// Plain bytes at which a frame of nodes is closed: large enough to compress well, small enough that reading
/// one node does not decode much else.
const NODE_FRAME_BYTES: usize = 128 << 10;
/// Entries after which a page is closed in any case.
const PAGE_ENTRIES_MAX: usize = 512;
/// Encoded bytes after which a page is closed in any case; one entry with all its attributes may go beyond.
const PAGE_BYTES_MAX: usize = 256 << 10;

/// Nodes that a writer of nodes remembers: some 100 bytes each.
pub(crate) const KNOWN_NODES_MAX: usize = 65_536;

/// Nodes that are stored already, of the parent backup or of this one, so that equal ones are referred to and not written again.
struct KnownNodes {
    /// The latest of them. Once there are as many as may be, the next takes the place of the oldest.
    nodes: Vec<NodeRef>,
    /// Where among them the node is whose SHA-256 begins so; of several that do, the last.
    places: HashMap<u64, u32>,
    /// Where the oldest is, once there are as many as may be.
    oldest: usize,
    nodes_max: usize,
    /// The leaf that the parent has of the extent at hand. However many nodes come between, it is known when it is needed.
    expected: Option<NodeRef>,
}

impl KnownNodes {
    /// None yet, and at most so many; at least one.
    fn new(nodes_max: usize) -> Self {
        KnownNodes {
            nodes: Vec::new(),
            places: HashMap::new(),
            oldest: 0,
            nodes_max: nodes_max.max(1),
            expected: None,
        }
    }

    /// Where a node of this content is.
    fn get(&self, hash: &Sha256) -> Option<NodeRef> {
        let place = self.places.get(&word(hash, 0));
        let known = place.and_then(|place| self.nodes.get(*place as usize));
        let mut known = self.expected.iter().chain(known);
        known.find(|node| node.sha256 == *hash).copied()
    }

    /// Remembers a node, unless one of its content is remembered.
    fn add(&mut self, node: &NodeRef) {
        if self.get(&node.sha256).is_some() {
            return;
        }
        let place = match self.nodes.len() < self.nodes_max {
            true => {
                self.nodes.push(*node);
                self.nodes.len() - 1
            }
            false => {
                let place = self.oldest;
                self.oldest = (place + 1) % self.nodes_max;
                let gone = word(&self.nodes[place].sha256, 0);
                if self.places.get(&gone) == Some(&(place as u32)) {
                    self.places.remove(&gone);
                }
                self.nodes[place] = *node;
                place
            }
        };
        self.places.insert(word(&node.sha256, 0), place as u32);
    }
}

/// Writes nodes into meta packs.
pub(crate) struct NodeWriter {
    shard: Shard,
    shared: Arc<WriteShared>,
    pack: Option<PackWriter>,
    plain: Vec<u8>,
    scratch: Vec<u8>,
    known: KnownNodes,
    commits: Commits,
    /// Packs of this session that hold nodes referred to.
    pub named_packs: HashSet<PackId>,
    /// Where its time went.
    pub stages: StageSeconds,
}

impl NodeWriter {
    pub fn new(shard: &Shard, shared: &Arc<WriteShared>) -> Self {
        NodeWriter {
            shard: shard.clone(),
            shared: shared.clone(),
            pack: None,
            plain: Vec::new(),
            scratch: Vec::new(),
            known: KnownNodes::new(shared.known_nodes_max),
            commits: Commits::new(shard, shared),
            named_packs: HashSet::new(),
            stages: StageSeconds::default(),
        }
    }

    /// Remembers a node of the parent backup.
    pub fn know(&mut self, node: &NodeRef) {
        self.known.add(node);
    }

    /// Remembers what the parent has in place of the node that is to be put next, if anything, until the next one is expected.
    pub fn set_expected(&mut self, node: Option<NodeRef>) {
        self.known.expected = node;
    }

    /// Stores an encoded node, or keeps it inline where it is small.
    pub async fn put(&mut self, node: &[u8], encoder: &mut FrameEncoder) -> Result<Child> {
        if node.len() <= INLINE_BYTES_MAX {
            return Ok(Child::Inline(node.to_vec()));
        }
        if node.len() > FRAME_PLAIN_BYTES_MAX {
            return Err(Error::new(Kind::Limit, "a map node is larger than 1 MiB"));
        }
        let hash = sha256(node);
        if let Some(known) = self.known.get(&hash) {
            if !self.shared.note_named(known.pack)? {
                self.named_packs.insert(known.pack);
            }
            return Ok(Child::Node(known));
        }
        if self.plain.len() + node.len() > NODE_FRAME_BYTES && !self.plain.is_empty() {
            self.flush(encoder).await?;
        }
        if self.pack.as_ref().is_some_and(|pack| pack.is_full(1)) && self.plain.is_empty() {
            self.end_pack(encoder).await?;
        }
        let pack = match &mut self.pack {
            Some(pack) => pack,
            none => {
                let store = self.shared.repository.store();
                let session = &self.shared.session;
                let begun =
                    PackWriter::begin(&self.shard, store, session, ObjectType::MetaPack).await?;
                none.insert(begun)
            }
        };
        let reference = NodeRef {
            sha256: hash,
            pack: pack.id(),
            frame: pack.frames(),
            offset: self.plain.len() as u32,
            len: node.len() as u32,
        };
        self.plain.extend_from_slice(node);
        self.known.add(&reference);
        Ok(Child::Node(reference))
    }

    async fn flush(&mut self, encoder: &mut FrameEncoder) -> Result<()> {
        let Some(pack) = &mut self.pack else {
            return Ok(());
        };
        if self.plain.is_empty() {
            return Ok(());
        }
        let clock = Instant::now();
        encoder.compress(FrameKind::Nodes, &self.plain)?;
        let clock = lap(&mut self.stages.compress, clock);
        encoder.compare(&self.plain)?;
        lap(&mut self.stages.compare, clock);
        pack.write_frame(
            encoder,
            &self.plain,
            &[],
            &mut self.stages,
            &mut self.scratch,
        )
        .await?;
        self.plain.clear();
        Ok(())
    }

    async fn end_pack(&mut self, encoder: &mut FrameEncoder) -> Result<()> {
        self.flush(encoder).await?;
        if let Some(pack) = self.pack.take() {
            let clock = Instant::now();
            let pending = pack.finish(encoder).await?;
            let clock = lap(&mut self.stages.seal, clock);
            self.commits.push(pending).await?;
            lap(&mut self.stages.write_wait, clock);
        }
        Ok(())
    }

    /// Writes and commits what is left.
    pub async fn finish(&mut self, encoder: &mut FrameEncoder) -> Result<Vec<PackInfo>> {
        self.end_pack(encoder).await?;
        let clock = Instant::now();
        self.commits.drain().await?;
        lap(&mut self.stages.write_wait, clock);
        Ok(std::mem::take(&mut self.commits.done))
    }
}

/// Refuses a source whose files have more extents together than a backup can list, before any of them is looked at: what is kept
/// of each while the backup runs would fill the memory first. A sparse file may claim any size.
///
/// # Errors
/// `Limit`, naming the largest file.
pub fn require_extents(entries: &EntryList) -> Result<()> {
    let (mut extents, mut largest) = (0_u64, (0, 0));
    for at in 0..entries.len() {
        let bytes = entries.content_bytes(at);
        extents = extents.saturating_add(bytes.div_ceil(EXTENT_BYTES));
        if bytes > largest.1 {
            largest = (at, bytes);
        }
    }
    match entries.get(largest.0).filter(|_| extents > EXTENTS_MAX) {
        None => Ok(()),
        Some(largest) => Err(too_large().object(largest.display_path())),
    }
}

fn too_large() -> Error {
    let limit = format_bytes(EXTENTS_MAX * EXTENT_BYTES);
    let what = format!("the files have more than {limit} together, holes included");
    Error::new(Kind::Limit, what)
        .hint("leave the file out with --exclude, or back up parts of the source on their own")
}

/// Nodes of extents, kept until all of them are there: some 65 bytes for that of a short file.
#[derive(Default)]
pub struct MapNodes {
    /// Number of the file in path order, and of the extent in it.
    extents: Vec<(u32, u32)>,
    nodes: ChildList,
}

impl MapNodes {
    /// Adds the node of an extent, by the file's number in path order and the extent's in the file.
    ///
    /// # Errors
    /// `Limit` for more extents than a backup has, or nodes that take more than 4 GiB.
    pub fn push(&mut self, file: u32, index: u64, node: &MapNode) -> Result<()> {
        let index = u32::try_from(index).map_err(|_| too_large())?;
        self.extents.push((file, index));
        self.nodes.push(Some(&node.0))
    }
}

/// The nodes of several lists, file by file.
pub(crate) struct OrderedNodes {
    lists: Vec<ChildList>,
    /// File, extent, list and number in it, the last one first.
    order: Vec<(u32, u32, u32, u32)>,
}

impl OrderedNodes {
    pub fn new(lists: Vec<MapNodes>) -> Self {
        let count = lists.iter().map(|list| list.extents.len()).sum();
        let mut order = Vec::with_capacity(count);
        let mut nodes = Vec::with_capacity(lists.len());
        for (number, list) in (0u32..).zip(lists) {
            let extents = (0u32..).zip(list.extents);
            order.extend(extents.map(|(at, (file, index))| (file, index, number, at)));
            nodes.push(list.nodes);
        }
        order.sort_unstable_by(|a, b| b.cmp(a));
        OrderedNodes {
            lists: nodes,
            order,
        }
    }

    /// The nodes of a file in order. Files are asked for in theirs.
    pub fn take(&mut self, file: u32) -> Result<Vec<MapNode>> {
        let mut nodes = Vec::new();
        while let Some((_, _, list, at)) = self.order.pop_if(|(next, ..)| *next == file) {
            nodes.extend(self.lists[list as usize].get(at as usize)?.map(MapNode));
        }
        Ok(nodes)
    }
}

/// Joins the extents of files into maps, and the entries into pages.
pub(crate) struct TreeWriter {
    nodes: NodeWriter,
    encoder: FrameEncoder,
    page: EntryPageBuilder,
    pages: Vec<Child>,
    /// Of all files so far.
    extents: u64,
}

impl TreeWriter {
    pub fn new(shard: &Shard, shared: &Arc<WriteShared>) -> Result<Self> {
        Ok(TreeWriter {
            nodes: NodeWriter::new(shard, shared),
            encoder: FrameEncoder::new(shared.level)?,
            page: EntryPageBuilder::new(),
            pages: Vec::new(),
            extents: 0,
        })
    }

    /// Remembers a node of the parent backup.
    pub fn know(&mut self, node: &NodeRef) {
        self.nodes.know(node);
    }

    /// The root of a file's map, from the nodes of its extents in order. `None` for an empty file.
    pub async fn join(&mut self, extents: Vec<MapNode>) -> Result<Option<MapNode>> {
        self.extents += extents.len() as u64;
        if self.extents > EXTENTS_MAX {
            return Err(too_large());
        }
        let mut children: Vec<Child> = extents.into_iter().map(|node| node.0).collect();
        let mut level = 0;
        while children.len() > 1 {
            level += 1;
            let mut above = Vec::with_capacity(children.len().div_ceil(CHILDREN_MAX));
            for group in children.chunks(CHILDREN_MAX) {
                let node = Interior {
                    level,
                    children: group.to_vec(),
                };
                above.push(self.nodes.put(&node.encode()?, &mut self.encoder).await?);
            }
            children = above;
        }
        Ok(children.pop().map(MapNode))
    }

    /// Adds the next entry in path order.
    pub async fn entry(&mut self, entry: Entry, map: Option<MapNode>) -> Result<()> {
        // A page ends where a path says so, not after a count: then an added file changes one page only.
        let ends_page = crc32(&entry.path).is_multiple_of(128);
        let stored = StoredEntry {
            entry,
            map: map.map(|node| node.0),
        };
        if !self.page.push(&stored)? {
            self.end_page().await?;
            self.page.push(&stored)?;
        }
        let full = self.page.entries() >= PAGE_ENTRIES_MAX || self.page.bytes() >= PAGE_BYTES_MAX;
        if ends_page || full {
            self.end_page().await?;
        }
        Ok(())
    }

    async fn end_page(&mut self) -> Result<()> {
        if let Some(page) = self.page.finish() {
            self.pages
                .push(self.nodes.put(&page, &mut self.encoder).await?);
        }
        Ok(())
    }

    /// Writes what is left; gives the pages, the new packs, and those of them that were referred to again.
    pub async fn finish(mut self) -> Result<(Vec<Child>, Vec<PackInfo>, HashSet<PackId>)> {
        self.end_page().await?;
        let packs = self.nodes.finish(&mut self.encoder).await?;
        Ok((self.pages, packs, self.nodes.named_packs))
    }
}

#[cfg(test)]
mod tests {
    use mover_base::tree::EntryKind;

    use super::*;

    fn node(number: u32) -> NodeRef {
        NodeRef {
            sha256: sha256(&number.to_le_bytes()),
            pack: PackId([7; 16]),
            frame: number,
            offset: 0,
            len: 1000,
        }
    }

    #[test]
    fn the_latest_nodes_are_known_and_the_expected_one_however_many_come_between() {
        let mut known = KnownNodes::new(4);
        known.expected = Some(node(100));
        for number in 0..10 {
            known.add(&node(number));
            // Again: it takes no other's place.
            known.add(&node(number));
        }
        let of = |number| known.get(&node(number).sha256);
        for number in 0..6 {
            assert_eq!(of(number), None, "{number}");
        }
        for number in [6, 7, 8, 9, 100] {
            assert_eq!(of(number), Some(node(number)));
        }
        assert_eq!(of(101), None);
        assert_eq!((known.nodes.len(), known.places.len()), (4, 4));
        known.expected = None;
        assert_eq!(known.get(&node(100).sha256), None);
    }

    #[test]
    fn nodes_whose_hashes_begin_alike_are_told_apart() {
        let (one, mut other) = (node(1), node(2));
        other.sha256[..8].copy_from_slice(&one.sha256[..8]);
        let mut known = KnownNodes::new(2);
        known.add(&one);
        known.add(&other);
        assert_eq!(known.get(&other.sha256), Some(other));
        // It lost its place among the beginnings; it is forgotten, not taken for another one.
        assert_eq!(known.get(&one.sha256), None);
        known.add(&node(3));
        assert_eq!(known.get(&other.sha256), Some(other));
        known.add(&node(4));
        assert_eq!(known.get(&other.sha256), None);
        assert_eq!(known.get(&node(3).sha256), Some(node(3)));
    }

    /// The table of memory in docs/architecture.md states it.
    #[test]
    fn a_known_node_takes_some_100_bytes() {
        let entries = 2 * (size_of::<(u64, u32)>() + 1);
        assert!(size_of::<NodeRef>() + entries <= 100);
    }

    #[test]
    fn files_that_claim_more_than_a_map_holds_are_refused_by_name() {
        let file = |path: &[u8], bytes| Entry {
            path: path.to_vec(),
            kind: EntryKind::File { bytes },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: Default::default(),
            xattrs: Vec::new(),
        };
        let require = |a, b| {
            let mut entries = EntryList::default();
            entries.push(&file(b"a", a)).unwrap();
            entries.push(&file(b"b", b)).unwrap();
            require_extents(&entries)
        };
        let most = EXTENTS_MAX * EXTENT_BYTES;
        require(most - EXTENT_BYTES, 1).unwrap();
        require(0, most).unwrap();
        for (a, b, named) in [(most, 1, "a"), (1, most, "b"), (u64::MAX, u64::MAX, "a")] {
            let error = require(a, b).unwrap_err();
            assert_eq!(error.kind(), Kind::Limit);
            assert_eq!(error.object_name(), Some(named));
        }
    }

    #[test]
    fn nodes_of_several_lists_come_file_by_file_in_order() {
        let node = |byte: u8| MapNode(Child::Inline(vec![1, byte]));
        let mut lists = vec![
            MapNodes::default(),
            MapNodes::default(),
            MapNodes::default(),
        ];
        let pushed = [
            (0, 5, 0),
            (1, 2, 1),
            (0, 2, 0),
            (2, 7, 0),
            (1, 5, 1),
            (0, 5, 2),
        ];
        for (list, file, index) in pushed {
            let node = node((file * 10 + index) as u8);
            lists[list].push(file as u32, index as u64, &node).unwrap();
        }
        let mut ordered = OrderedNodes::new(lists);
        let mut taken = |file| -> Vec<u8> {
            let nodes = ordered.take(file).unwrap().into_iter();
            nodes
                .map(|node| match node.0 {
                    Child::Inline(bytes) => bytes[1],
                    Child::Node(_) => 0,
                })
                .collect()
        };
        assert_eq!(taken(0), [0; 0]);
        assert_eq!(taken(2), [20, 21]);
        assert_eq!(taken(5), [50, 51, 52]);
        assert_eq!(taken(6), [0; 0]);
        assert_eq!(taken(7), [70]);
    }
}
