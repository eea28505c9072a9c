//! Map nodes: the tree that says where each block of a file is.
//!
//! Invariants: a node's name is the SHA-256 of its bytes, and there is one encoding of a node's content (runs
//! are merged, packs stand in order of first use, short nodes are inlined), so that a part of a file that did
//! not change keeps its nodes. All children of an interior node but the last are full, so that the position
//! of a block alone fixes the path to it.

use std::collections::HashMap;

use mover_base::checksum::{Sha256, sha256};
use mover_base::{Error, Kind, PackId, Result};

use crate::frame::FRAME_PLAIN_BYTES_MAX;
use crate::pack::{PACK_BLOCKS_MAX, PACK_FRAMES_MAX};
use crate::wire::{Reader, corrupt, put_varint, unzigzag, zigzag};

/// Most blocks that a leaf covers: 64 MiB.
pub const LEAF_BLOCKS_MAX: u32 = 16_384;
/// Most children of an interior node.
pub const CHILDREN_MAX: usize = 1024;
/// Highest level: such a root covers 2^54 blocks, more than any file has.
pub const LEVEL_MAX: u8 = 4;
/// Nodes of at most so many bytes are stored in their parent; longer ones never are.
pub const INLINE_BYTES_MAX: usize = 192;
/// Longest node: it must fit a frame.
pub const NODE_BYTES_MAX: usize = FRAME_PLAIN_BYTES_MAX;
/// Length of an encoded [`NodeRef`].
pub const NODE_REF_BYTES: usize = 60;

const LEAF_CODE: u8 = 1;
const INTERIOR_CODE: u8 = 2;
pub(crate) const ENTRY_PAGE_CODE: u8 = 3;
const RUN_HOLE: u64 = 0;
const RUN_ZEROS: u64 = 1;
const RUN_STORED: u64 = 2;

/// What a node is, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// [`Leaf`].
    Leaf,
    /// [`Interior`].
    Interior,
    /// [`crate::EntryPage`].
    EntryPage,
}

impl NodeKind {
    /// The kind of the node that `bytes` encode.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        match bytes.first() {
            Some(&LEAF_CODE) => Ok(NodeKind::Leaf),
            Some(&INTERIOR_CODE) => Ok(NodeKind::Interior),
            Some(&ENTRY_PAGE_CODE) => Ok(NodeKind::EntryPage),
            _ => Err(corrupt("node: the kind is unknown")),
        }
    }
}

/// How many blocks a full node of this level covers; level 0 is a leaf.
pub const fn level_blocks(level: u8) -> u64 {
    (LEAF_BLOCKS_MAX as u64) << (10 * level as u32)
}

/// Level of the root of a file of so many blocks; none for an empty file or one longer than any file can be.
pub fn root_level(blocks: u64) -> Option<u8> {
    if blocks == 0 {
        return None;
    }
    (0..=LEVEL_MAX).find(|&level| blocks <= level_blocks(level))
}

/// Where a node is stored, and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeRef {
    /// The node's name: SHA-256 of its bytes.
    pub sha256: Sha256,
    /// The meta pack.
    pub pack: PackId,
    /// The frame's index in the pack.
    pub frame: u32,
    /// First byte in the frame's plain bytes.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

impl NodeRef {
    fn check(&self) -> Result<()> {
        let end = u64::from(self.offset) + u64::from(self.len);
        if self.len as usize <= INLINE_BYTES_MAX {
            return Err(corrupt("node reference: so short a node must be inlined"));
        }
        if end > FRAME_PLAIN_BYTES_MAX as u64 || self.frame as usize >= PACK_FRAMES_MAX {
            return Err(corrupt("node reference: the place is outside of any pack"));
        }
        Ok(())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.sha256);
        out.extend_from_slice(&self.pack.0);
        out.extend_from_slice(&self.frame.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let node = NodeRef {
            sha256: reader.array("node name")?,
            pack: PackId(reader.array("pack id")?),
            frame: reader.u32("frame")?,
            offset: reader.u32("offset")?,
            len: reader.u32("length")?,
        };
        node.check()?;
        Ok(node)
    }

    /// Finds the node in the plain bytes of its frame and checks it against its name.
    pub fn slice<'a>(&self, frame_plain: &'a [u8]) -> Result<&'a [u8]> {
        let begin = self.offset as usize;
        let bytes = begin
            .checked_add(self.len as usize)
            .and_then(|end| frame_plain.get(begin..end))
            .ok_or_else(|| corrupt("node: it lies outside of its frame"))?;
        if sha256(bytes) == self.sha256 {
            Ok(bytes)
        } else {
            Err(corrupt("node: it does not match its name"))
        }
    }
}

/// A node as its parent holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Child {
    /// The encoded node itself, 1 to [`INLINE_BYTES_MAX`] bytes.
    Inline(Vec<u8>),
    /// A node stored in a meta pack.
    Node(NodeRef),
}

impl Child {
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Child::Inline(bytes) if bytes.is_empty() || bytes.len() > INLINE_BYTES_MAX => {
                Err(corrupt("child: the inline node is empty or too long"))
            }
            Child::Inline(bytes) => NodeKind::of(bytes).map(|_| ()),
            Child::Node(node) => node.check(),
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Child::Inline(bytes) => {
                out.push(0);
                put_varint(out, bytes.len() as u64);
                out.extend_from_slice(bytes);
            }
            Child::Node(node) => {
                out.push(1);
                node.encode(out);
            }
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let child = match reader.u8("child tag")? {
            0 => Child::Inline(reader.string("inline node", INLINE_BYTES_MAX)?.to_vec()),
            1 => Child::Node(NodeRef::read(reader)?),
            _ => return Err(reader.wrong("child tag", "is unknown")),
        };
        child.check()?;
        Ok(child)
    }

    /// An inline node's kind must fit its parent; a stored node is checked when it is read.
    fn check_inline_level(&self, level: u8) -> Result<()> {
        let fits = match self {
            Child::Node(_) => true,
            Child::Inline(bytes) if level == 0 => bytes.first() == Some(&LEAF_CODE),
            Child::Inline(bytes) => bytes.starts_with(&[INTERIOR_CODE, level]),
        };
        if fits {
            Ok(())
        } else {
            Err(corrupt(
                "child: the inline node is not of the level below its parent",
            ))
        }
    }

    /// Checks that an inline map root is of the level that a file of so many blocks has.
    pub(crate) fn check_root(&self, blocks: u64) -> Result<()> {
        let level = root_level(blocks).ok_or_else(|| corrupt("map root: the file has none"))?;
        self.check_inline_level(level)
    }
}

/// Neighbouring blocks of one nature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Run {
    /// Not allocated in the file; reads as zeros.
    Hole {
        /// How many blocks.
        blocks: u32,
    },
    /// Allocated, and all zeros.
    Zeros {
        /// How many blocks.
        blocks: u32,
    },
    /// Stored in a data pack under consecutive ordinals.
    Stored {
        /// How many blocks.
        blocks: u32,
        /// The pack.
        pack: PackId,
        /// Ordinal of the first block.
        ordinal: u32,
    },
}

impl Run {
    /// How many blocks the run covers.
    pub const fn blocks(&self) -> u32 {
        match *self {
            Run::Hole { blocks } | Run::Zeros { blocks } | Run::Stored { blocks, .. } => blocks,
        }
    }

    /// This run and `next` as one, if they are of one nature and their blocks follow each other.
    fn merged(&self, next: &Run) -> Option<Run> {
        let blocks = self.blocks().checked_add(next.blocks())?;
        match (*self, *next) {
            (Run::Hole { .. }, Run::Hole { .. }) => Some(Run::Hole { blocks }),
            (Run::Zeros { .. }, Run::Zeros { .. }) => Some(Run::Zeros { blocks }),
            (
                Run::Stored {
                    blocks: before,
                    pack,
                    ordinal,
                },
                Run::Stored {
                    pack: next_pack,
                    ordinal: next_ordinal,
                    ..
                },
            ) if pack == next_pack && ordinal.checked_add(before) == Some(next_ordinal) => {
                Some(Run::Stored {
                    blocks,
                    pack,
                    ordinal,
                })
            }
            _ => None,
        }
    }
}

/// The runs of at most [`LEAF_BLOCKS_MAX`] blocks of a file, made by [`LeafBuilder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    runs: Vec<Run>,
    blocks: u32,
}

impl Leaf {
    /// The runs in order; no two neighbours could be one.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// How many blocks the leaf covers.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The data packs that the leaf needs, each once, in order of first use.
    pub fn packs(&self) -> Vec<PackId> {
        self.indexed_packs().0
    }

    fn indexed_packs(&self) -> (Vec<PackId>, HashMap<PackId, usize>) {
        let (mut packs, mut index) = (Vec::new(), HashMap::new());
        for run in &self.runs {
            if let Run::Stored { pack, .. } = run {
                index.entry(*pack).or_insert_with(|| {
                    packs.push(*pack);
                    packs.len() - 1
                });
            }
        }
        (packs, index)
    }

    /// The leaf's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (packs, index) = self.indexed_packs();
        let mut out = Vec::with_capacity(8 + packs.len() * 16 + self.runs.len() * 6);
        out.push(LEAF_CODE);
        put_varint(&mut out, packs.len() as u64);
        for pack in &packs {
            out.extend_from_slice(&pack.0);
        }
        put_varint(&mut out, self.runs.len() as u64);
        // A deduplicated file returns to a pack near the place where it left it: the difference is short.
        let mut expected = vec![0u32; packs.len()];
        for run in &self.runs {
            let count = u64::from(run.blocks()) << 2;
            match *run {
                Run::Hole { .. } => put_varint(&mut out, count | RUN_HOLE),
                Run::Zeros { .. } => put_varint(&mut out, count | RUN_ZEROS),
                Run::Stored {
                    blocks,
                    pack,
                    ordinal,
                } => {
                    let pack = index[&pack];
                    put_varint(&mut out, count | RUN_STORED);
                    put_varint(&mut out, pack as u64);
                    put_varint(
                        &mut out,
                        zigzag(i64::from(ordinal) - i64::from(expected[pack])),
                    );
                    expected[pack] = ordinal + blocks;
                }
            }
        }
        out
    }

    /// Reads a leaf.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("leaf", bytes);
        if bytes.len() > NODE_BYTES_MAX || reader.u8("kind")? != LEAF_CODE {
            return Err(reader.wrong("kind", "is another or the node too long"));
        }
        let cap = u64::from(LEAF_BLOCKS_MAX);
        let pack_count = reader.varint_max("pack count", cap)? as usize;
        reader.check_count("pack count", pack_count, 16)?;
        let packs: Vec<PackId> = (0..pack_count)
            .map(|_| Ok(PackId(reader.array("pack id")?)))
            .collect::<Result<_>>()?;
        let mut sorted = packs.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(reader.wrong("pack id", "stands twice"));
        }
        let run_count = reader.varint_max("run count", cap)? as usize;
        reader.check_count("run count", run_count, 1)?;
        let mut expected = vec![0i64; pack_count];
        let mut used = 0;
        let mut leaf = LeafBuilder::new();
        leaf.runs.reserve(run_count);
        for _ in 0..run_count {
            let head = reader.varint_max("run length", cap << 2 | 3)?;
            let blocks = (head >> 2) as u32;
            let run = match head & 3 {
                RUN_HOLE => Run::Hole { blocks },
                RUN_ZEROS => Run::Zeros { blocks },
                RUN_STORED => {
                    let pack = reader.varint_max("pack index", cap)? as usize;
                    if pack > used || pack >= pack_count {
                        return Err(reader.wrong("pack index", "is not in order of first use"));
                    }
                    used = used.max(pack + 1);
                    let ordinal = expected[pack]
                        .checked_add(unzigzag(reader.varint("ordinal")?))
                        .and_then(|ordinal| u32::try_from(ordinal).ok())
                        .ok_or_else(|| reader.wrong("ordinal", "is out of range"))?;
                    expected[pack] = i64::from(ordinal) + i64::from(blocks);
                    Run::Stored {
                        blocks,
                        pack: packs[pack],
                        ordinal,
                    }
                }
                _ => return Err(reader.wrong("run kind", "is unknown")),
            };
            if !leaf.add(run)? {
                return Err(reader.wrong("run", "should be one with the run before it"));
            }
        }
        reader.finish()?;
        if used != pack_count {
            return Err(reader.wrong("pack id", "is not used"));
        }
        leaf.finish()
            .ok_or_else(|| reader.wrong("run count", "is zero"))
    }
}

/// Builds a [`Leaf`] from runs as they come, merging neighbours.
#[derive(Debug, Clone, Default)]
pub struct LeafBuilder {
    runs: Vec<Run>,
    blocks: u32,
}

impl LeafBuilder {
    /// An empty leaf.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many blocks still fit.
    pub fn room(&self) -> u32 {
        LEAF_BLOCKS_MAX - self.blocks
    }

    /// How many blocks it covers by now.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Appends a run of at least one and at most [`room`](Self::room) blocks.
    pub fn push(&mut self, run: Run) -> Result<()> {
        self.add(run)
            .map(|_| ())
            .map_err(|e| Error::new(Kind::Internal, "a run does not fit its leaf").cause(e))
    }

    /// Appends the runs of a leaf that covers the blocks that follow: the result is the leaf that one builder
    /// would have made of both.
    pub fn append(&mut self, next: &Leaf) -> Result<()> {
        next.runs.iter().try_for_each(|run| self.push(*run))
    }

    /// Adds a run; false if it was merged with the one before it.
    fn add(&mut self, run: Run) -> Result<bool> {
        let blocks = run.blocks();
        if blocks == 0 || blocks > self.room() {
            return Err(corrupt(
                "leaf: a run is empty or the runs cover too many blocks",
            ));
        }
        if let Run::Stored { ordinal, .. } = run
            && u64::from(ordinal) + u64::from(blocks) > PACK_BLOCKS_MAX as u64
        {
            return Err(corrupt("leaf: a run lies outside of any pack"));
        }
        self.blocks += blocks;
        if let Some(last) = self.runs.last_mut()
            && let Some(merged) = last.merged(&run)
        {
            *last = merged;
            return Ok(false);
        }
        self.runs.push(run);
        Ok(true)
    }

    /// The leaf; none if nothing was pushed. The builder is empty again.
    pub fn finish(&mut self) -> Option<Leaf> {
        let LeafBuilder { runs, blocks } = std::mem::take(self);
        (blocks > 0).then_some(Leaf { runs, blocks })
    }
}

/// A node above the leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interior {
    /// 1 directly above the leaves, at most [`LEVEL_MAX`].
    pub level: u8,
    /// The nodes of the level below, in order of position.
    pub children: Vec<Child>,
}

impl Interior {
    fn check(&self) -> Result<()> {
        if !(1..=LEVEL_MAX).contains(&self.level) {
            return Err(corrupt("interior node: the level is out of range"));
        }
        if self.children.is_empty() || self.children.len() > CHILDREN_MAX {
            return Err(corrupt("interior node: the child count is out of range"));
        }
        self.children
            .iter()
            .try_for_each(|child| child.check_inline_level(self.level - 1))
    }

    /// The node's bytes; fails if level, count or an inline child is not allowed.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()
            .and_then(|()| self.children.iter().try_for_each(Child::check))
            .map_err(|e| Error::new(Kind::Internal, "a map node is inconsistent").cause(e))?;
        let mut out = vec![INTERIOR_CODE, self.level];
        put_varint(&mut out, self.children.len() as u64);
        for child in &self.children {
            child.encode(&mut out);
        }
        Ok(out)
    }

    /// Reads an interior node.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("interior node", bytes);
        if bytes.len() > NODE_BYTES_MAX || reader.u8("kind")? != INTERIOR_CODE {
            return Err(reader.wrong("kind", "is another or the node too long"));
        }
        let level = reader.u8("level")?;
        let count = reader.varint_max("child count", CHILDREN_MAX as u64)? as usize;
        let children = (0..count)
            .map(|_| Child::read(&mut reader))
            .collect::<Result<_>>()?;
        reader.finish()?;
        let node = Interior { level, children };
        node.check()?;
        Ok(node)
    }

    /// Checks that the node stands where a node of `level` over `blocks` blocks must stand: the child count follows.
    pub fn check_shape(&self, level: u8, blocks: u64) -> Result<()> {
        if self.level != level {
            return Err(corrupt(
                "interior node: it is of another level than its place",
            ));
        }
        let children = blocks.div_ceil(level_blocks(level - 1));
        if blocks > level_blocks(level) || children != self.children.len() as u64 {
            return Err(corrupt(
                "interior node: the child count does not fit the file's length",
            ));
        }
        Ok(())
    }
}
