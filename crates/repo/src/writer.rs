//! One shard's side of a backup: blocks in, packs and map leaves out.
//!
//! For each piece of up to 256 blocks: find zeros and hash, look each block up (in the parent's map, then in
//! the shared index), and pack what is new. A piece that is new as a whole is compressed where it lies; other
//! new blocks are gathered until a frame is full.
//!
//! Invariants: a location is given out before its frame is written, and the frame goes into the pack that was
//! named, or the session fails; every frame is decoded and compared before it is sent; the number of packs
//! whose commit is under way is bounded; each pack that a map names is noted, the parent's with the parent.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use mover_base::checksum::{Sha256, sha256_each};
use mover_base::{BLOCK_BYTES, Error, Kind, PackId, Result};
use mover_format::frame::{
    FRAME_BLOCKS_MAX, FRAME_HEADER_BYTES, FRAME_PLAIN_BYTES_MAX, FrameEncoder, FrameKind,
};
use mover_format::manifest::{PackInfo, too_many_packs};
use mover_format::node::{Child, Leaf, LeafBuilder, Run};
use mover_format::preamble::ObjectType;
use mover_format::seal::TAG_BYTES;
use mover_io::{RateBudget, Shard};
use tokio::task::JoinHandle;

use crate::dedup::{BlockIndex, Location, PackTable};
use crate::map::NodeWriter;
use crate::pack::{PackWriter, PendingPack};
use crate::parent::{Parent, ParentReader};
use crate::repository::{Repository, Session};
use crate::timing::{StageSeconds, lap};

/// Packs of one shard whose commit may be under way at once: enough to hide the store's latency, few enough
/// that a failing store is noticed soon.
const COMMITS_MAX: usize = 4;
/// A piece that is new as a whole is packed where it lies; blocks gathered before it then go out as a frame
/// of their own if they are at least this many, or if an extent begins. Fewer are filled up by copying.
const GATHERED_BLOCKS_MIN: usize = 64;

static ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What all shards of a writing session share.
pub struct WriteShared {
    pub(crate) repository: Arc<Repository>,
    pub(crate) session: Arc<Session>,
    pub(crate) index: BlockIndex,
    pub(crate) packs: PackTable,
    pub(crate) parent: Option<Parent>,
    pub(crate) listed: ListedPacks,
    /// Nodes that each writer of nodes remembers.
    pub(crate) known_nodes_max: usize,
    pub(crate) level: i32,
    pub(crate) write_limit: Arc<RateBudget>,
}

impl WriteShared {
    /// Notes a pack of the parent that a map names. False for any other pack: then it is the caller's to remember.
    ///
    /// # Errors
    /// Those of [`ListedPacks::add`].
    pub(crate) fn note_named(&self, pack: PackId) -> Result<bool> {
        let parent = self.parent.as_ref();
        let Some(is_first) = parent.and_then(|parent| parent.set_named(pack)) else {
            return Ok(false);
        };
        if is_first {
            self.listed.add()?;
        }
        Ok(true)
    }
}

/// How many packs the manifest is going to list, counted as they come to be needed: a backup of more than one can list ends then,
/// and not when all of it is stored.
pub(crate) struct ListedPacks {
    count: AtomicUsize,
    max: usize,
}

impl ListedPacks {
    /// None yet, and at most so many.
    pub fn new(max: usize) -> Self {
        ListedPacks {
            count: AtomicUsize::new(0),
            max,
        }
    }

    /// Counts one more.
    ///
    /// # Errors
    /// `Limit` beyond the most.
    pub fn add(&self) -> Result<()> {
        match self.count.fetch_add(1, Relaxed) < self.max {
            true => Ok(()),
            false => Err(too_many_packs(self.max)),
        }
    }
}

/// What one shard did to the blocks it was given.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteCounts {
    /// Blocks given, holes left out.
    pub blocks: u64,
    /// Blocks of zeros, which are not stored.
    pub zero_blocks: u64,
    /// Blocks of holes.
    pub hole_blocks: u64,
    /// Blocks found in the repository.
    pub known_blocks: u64,
    /// Blocks with content taken over from the parent without being read.
    pub kept_blocks: u64,
    /// Blocks packed.
    pub new_blocks: u64,
    /// Frame payloads after compression, without the tags of their seals.
    pub compressed_bytes: u64,
    /// Bytes of packs sent to the store; of packs that are not complete, those of their frames of blocks.
    pub stored_bytes: u64,
    /// Packs written.
    pub packs: u64,
}

impl WriteCounts {
    /// Adds another shard's counts.
    pub fn add(&mut self, other: &WriteCounts) {
        self.blocks += other.blocks;
        self.zero_blocks += other.zero_blocks;
        self.hole_blocks += other.hole_blocks;
        self.known_blocks += other.known_blocks;
        self.kept_blocks += other.kept_blocks;
        self.new_blocks += other.new_blocks;
        self.compressed_bytes += other.compressed_bytes;
        self.stored_bytes += other.stored_bytes;
        self.packs += other.packs;
    }
}

/// What a shard hands over when it has no more extents.
pub struct WriterOutcome {
    /// Packs that were committed.
    pub(crate) new_packs: Vec<PackInfo>,
    /// Packs of this session that the maps name.
    pub(crate) named_packs: HashSet<PackId>,
    /// What was done.
    pub counts: WriteCounts,
    /// Where the time went.
    pub stages: StageSeconds,
}

/// The writer of one shard.
pub struct ShardWriter {
    shard: Shard,
    shared: Arc<WriteShared>,
    encoder: FrameEncoder,
    parent: Option<ParentReader>,
    data: Option<OpenPack>,
    nodes: NodeWriter,
    gathered: Box<[u8]>,
    gathered_hashes: Vec<Sha256>,
    leaf: LeafBuilder,
    extent_begins: bool,
    hashes: Vec<Option<Sha256>>,
    /// Which blocks of the piece have to be packed.
    new: Vec<u16>,
    packs: PackNames,
    scratch: Vec<u8>,
    commits: Commits,
    counts: WriteCounts,
    /// Where the time went so far; the caller adds its own waits.
    pub stages: StageSeconds,
}

struct OpenPack {
    writer: PackWriter,
    number: u32,
}

/// Commits under way, oldest first.
pub(crate) struct Commits {
    shard: Shard,
    shared: Arc<WriteShared>,
    running: VecDeque<JoinHandle<Result<PackInfo>>>,
    pub done: Vec<PackInfo>,
}

impl Commits {
    pub fn new(shard: &Shard, shared: &Arc<WriteShared>) -> Self {
        Commits {
            shard: shard.clone(),
            shared: shared.clone(),
            running: VecDeque::new(),
            done: Vec::new(),
        }
    }

    /// Commits a pack in the background; waits for the oldest when too many are under way.
    ///
    /// # Errors
    /// Those of earlier commits; `Limit` where the manifest cannot list one more.
    pub async fn push(&mut self, pack: PendingPack) -> Result<()> {
        self.shared.listed.add()?;
        while self.running.len() >= COMMITS_MAX {
            self.wait_oldest().await?;
        }
        self.running.push_back(self.shard.spawn(pack.commit()));
        Ok(())
    }

    /// Waits for all commits.
    pub async fn drain(&mut self) -> Result<()> {
        while !self.running.is_empty() {
            self.wait_oldest().await?;
        }
        Ok(())
    }

    async fn wait_oldest(&mut self) -> Result<()> {
        if let Some(commit) = self.running.pop_front() {
            let ended = commit.await.map_err(|error| {
                Error::new(Kind::Internal, "a commit ended without a result").cause(error)
            })?;
            self.done.push(ended?);
        }
        Ok(())
    }
}

impl ShardWriter {
    /// A writer for this shard.
    pub fn new(shard: &Shard, shared: &Arc<WriteShared>) -> Result<Self> {
        Ok(ShardWriter {
            shard: shard.clone(),
            shared: shared.clone(),
            encoder: FrameEncoder::new(shared.level)?,
            parent: shared
                .parent
                .as_ref()
                .map(|parent| ParentReader::new(shard, shared, parent)),
            data: None,
            nodes: NodeWriter::new(shard, shared),
            gathered: vec![0; FRAME_PLAIN_BYTES_MAX].into_boxed_slice(),
            gathered_hashes: Vec::with_capacity(FRAME_BLOCKS_MAX),
            leaf: LeafBuilder::new(),
            extent_begins: true,
            hashes: Vec::with_capacity(FRAME_BLOCKS_MAX),
            new: Vec::with_capacity(FRAME_BLOCKS_MAX),
            packs: PackNames::default(),
            scratch: Vec::new(),
            commits: Commits::new(shard, shared),
            counts: WriteCounts::default(),
            stages: StageSeconds::default(),
        })
    }

    /// Adds `count` blocks of a hole to the extent.
    pub fn hole(&mut self, count: u64) -> Result<()> {
        self.counts.hole_blocks += count;
        self.leaf.push(Run::Hole {
            blocks: run_count(count)?,
        })
    }

    /// Begins extent `index` of the file at `path`, or a part of it.
    pub async fn begin_extent(&mut self, path: &[u8], index: u64) -> Result<()> {
        self.extent_begins = true;
        let leaf = match &mut self.parent {
            Some(reader) => reader.begin_extent(path, index).await?,
            None => None,
        };
        self.nodes.set_expected(leaf);
        Ok(())
    }

    /// Takes over `count` blocks from `first_block` of the extent on as the parent has them, unread. False if what the
    /// parent has there is not known or damaged: then nothing was done, and they must be given as blocks.
    pub async fn keep(&mut self, first_block: u64, count: u64) -> Result<bool> {
        let Some(parent) = &mut self.parent else {
            return Ok(false);
        };
        let Some(runs) = parent.kept(first_block, count).await? else {
            return Ok(false);
        };
        for run in runs {
            let blocks = u64::from(run.blocks());
            match run {
                Run::Hole { .. } => self.counts.hole_blocks += blocks,
                Run::Zeros { .. } => {
                    self.counts.blocks += blocks;
                    self.counts.zero_blocks += blocks;
                }
                Run::Stored { pack, .. } => {
                    self.counts.blocks += blocks;
                    self.counts.kept_blocks += blocks;
                    self.packs.note(&self.shared, pack)?;
                }
            }
            self.leaf.push(run)?;
        }
        Ok(true)
    }

    /// Where in these blocks of the extent the parent has anything but zeros and holes, in blocks of the
    /// extent, whether it can be read or not.
    ///
    /// # Errors
    /// `Corrupt` where the parent's map is damaged, so that nobody knows.
    pub fn parent_data(&self, blocks: Range<u64>) -> Result<Vec<Range<u64>>> {
        match &self.parent {
            Some(parent) => parent.stored(blocks),
            None => Ok(Vec::new()),
        }
    }

    /// Adds the blocks in `bytes` (a multiple of 4096, at most 1 MiB) to the extent, of which they are the
    /// ones from `first_block` on. `new` says that none of them can be as the parent has it at the same place: then its
    /// packs need not be asked for their hashes.
    pub async fn blocks(&mut self, bytes: &[u8], first_block: u64, new: bool) -> Result<()> {
        let count = bytes.len() / BLOCK_BYTES;
        if count * BLOCK_BYTES != bytes.len() || count == 0 || count > FRAME_BLOCKS_MAX {
            return Err(Error::new(
                Kind::Internal,
                "a piece is not 1 to 256 whole blocks",
            ));
        }
        let clock = Instant::now();
        self.hash(bytes)?;
        lap(&mut self.stages.hash, clock);
        self.shard.turn().await;

        self.make_room(count).await?;
        let clock = Instant::now();
        if let Some(parent) = &mut self.parent {
            parent.load(first_block, count, new).await?;
        }
        self.place()?;
        lap(&mut self.stages.dedup, clock);

        if self.new.len() == FRAME_BLOCKS_MAX {
            self.pack_whole(bytes).await?;
        } else {
            self.gather(bytes).await?;
        }
        self.extent_begins = false;
        Ok(())
    }

    /// Bytes of frames of blocks that were sent so far: never more than what [`finish`](Self::finish) counts in the end.
    pub fn stored_bytes(&self) -> u64 {
        self.counts.stored_bytes
    }

    /// Ends the extent, or the part of it.
    pub fn end_part(&mut self) -> Result<LeafPart> {
        let leaf = self.leaf.finish();
        leaf.map(LeafPart).ok_or_else(no_blocks)
    }

    /// Joins the parts of an extent, which may come from several shards, and gives its node: inline where it is
    /// small, else written to a meta pack. The node is the same however the extent was divided.
    pub async fn end_extent(&mut self, parts: Vec<LeafPart>) -> Result<MapNode> {
        let mut whole = LeafBuilder::new();
        for LeafPart(part) in &parts {
            whole.append(part)?;
        }
        let leaf = whole.finish().ok_or_else(no_blocks)?;
        self.nodes
            .put(&leaf.encode(), &mut self.encoder)
            .await
            .map(MapNode)
    }

    /// Writes and commits what is left.
    pub async fn finish(mut self) -> Result<WriterOutcome> {
        self.flush_gathered().await?;
        self.end_pack().await?;
        // The last packs of blocks are committed while that of the nodes is.
        let nodes = self.nodes.finish(&mut self.encoder).await?;
        let clock = Instant::now();
        self.commits.drain().await?;
        lap(&mut self.stages.write_wait, clock);
        self.stages.add(&self.nodes.stages);
        let mut new_packs = self.commits.done;
        new_packs.extend(nodes);
        let mut named_packs = self.packs.named;
        named_packs.extend(&self.nodes.named_packs);
        self.counts.packs = new_packs.len() as u64;
        self.counts.stored_bytes = new_packs.iter().map(|pack| pack.bytes).sum();
        Ok(WriterOutcome {
            new_packs,
            named_packs,
            counts: self.counts,
            stages: self.stages,
        })
    }

    /// Sees to it that the blocks of one more piece fit into the open pack, whatever becomes of them.
    async fn make_room(&mut self, count: usize) -> Result<()> {
        let gathered = self.gathered_hashes.len();
        let full = self
            .data
            .as_ref()
            .is_some_and(|pack| pack.writer.is_full(gathered + count));
        if full {
            self.flush_gathered().await?;
            self.end_pack().await?;
        }
        if self.data.is_none() {
            let clock = Instant::now();
            let store = self.shared.repository.store();
            let writer = PackWriter::begin(
                &self.shard,
                store,
                &self.shared.session,
                ObjectType::DataPack,
            )
            .await?;
            lap(&mut self.stages.write_wait, clock);
            let number = self.shared.packs.add(writer.id());
            self.data = Some(OpenPack { writer, number });
        }
        Ok(())
    }

    /// Finds a place for each block of the piece, and lists those that have to be packed.
    fn place(&mut self) -> Result<()> {
        let Some(open) = &self.data else {
            return Err(Error::new(
                Kind::Internal,
                "blocks were placed without an open pack",
            ));
        };
        let mut ordinal = open.writer.blocks() + self.gathered_hashes.len() as u32;
        self.new.clear();
        self.shared.index.fetch(self.hashes.iter().flatten());
        self.counts.blocks += self.hashes.len() as u64;
        for (i, hash) in self.hashes.iter().enumerate() {
            let Some(hash) = hash else {
                self.counts.zero_blocks += 1;
                self.leaf.push(Run::Zeros { blocks: 1 })?;
                continue;
            };
            let here = Location {
                pack: open.number,
                ordinal,
            };
            let location = match self.parent.as_ref().and_then(|parent| parent.find(i, hash)) {
                Some(location) => location,
                None => self.shared.index.find_or_insert(hash, || here).0,
            };
            if location == here {
                ordinal += 1;
                self.new.push(i as u16);
            } else {
                self.counts.known_blocks += 1;
            }
            let pack = self.packs.id(&self.shared, location.pack)?;
            self.leaf.push(Run::Stored {
                blocks: 1,
                pack,
                ordinal: location.ordinal,
            })?;
        }
        self.counts.new_blocks += self.new.len() as u64;
        Ok(())
    }

    /// Packs a piece of 256 new blocks where it lies.
    async fn pack_whole(&mut self, bytes: &[u8]) -> Result<()> {
        let gathered = self.gathered_hashes.len();
        if gathered > 0 && (gathered >= GATHERED_BLOCKS_MIN || self.extent_begins) {
            self.flush_gathered().await?;
        }
        if !self.gathered_hashes.is_empty() {
            return self.gather(bytes).await;
        }
        let hashes: Vec<Sha256> = self.hashes.iter().flatten().copied().collect();
        self.write_frame(bytes, &hashes).await
    }

    /// Copies the piece's new blocks behind those that wait for a full frame.
    async fn gather(&mut self, bytes: &[u8]) -> Result<()> {
        for at in 0..self.new.len() {
            let i = usize::from(self.new[at]);
            let to = self.gathered_hashes.len() * BLOCK_BYTES;
            let block = &bytes[i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES];
            self.gathered[to..to + BLOCK_BYTES].copy_from_slice(block);
            self.gathered_hashes.extend(self.hashes[i]);
            if self.gathered_hashes.len() == FRAME_BLOCKS_MAX {
                self.flush_gathered().await?;
            }
        }
        Ok(())
    }

    async fn flush_gathered(&mut self) -> Result<()> {
        if self.gathered_hashes.is_empty() {
            return Ok(());
        }
        let gathered = std::mem::take(&mut self.gathered);
        let mut hashes = std::mem::take(&mut self.gathered_hashes);
        let written = self
            .write_frame(&gathered[..hashes.len() * BLOCK_BYTES], &hashes)
            .await;
        hashes.clear();
        (self.gathered, self.gathered_hashes) = (gathered, hashes);
        written
    }

    async fn write_frame(&mut self, plain: &[u8], hashes: &[Sha256]) -> Result<()> {
        let clock = Instant::now();
        self.encoder.compress(FrameKind::Blocks, plain)?;
        lap(&mut self.stages.compress, clock);
        self.shard.turn().await;
        let clock = Instant::now();
        self.encoder.compare(plain)?;
        lap(&mut self.stages.compare, clock);
        self.shard.turn().await;
        let Some(open) = &mut self.data else {
            return Err(Error::new(
                Kind::Internal,
                "a frame was written without an open pack",
            ));
        };
        let stored = open
            .writer
            .write_frame(
                &mut self.encoder,
                plain,
                hashes,
                &mut self.stages,
                &mut self.scratch,
            )
            .await?;
        let tag_bytes = match self.shared.repository.is_encrypted() {
            true => TAG_BYTES,
            false => 0,
        };
        self.counts.compressed_bytes += (stored - FRAME_HEADER_BYTES - tag_bytes) as u64;
        self.counts.stored_bytes += stored as u64;
        self.shard
            .throttle(&self.shared.write_limit, stored as u64)
            .await;
        Ok(())
    }

    async fn end_pack(&mut self) -> Result<()> {
        let Some(open) = self.data.take() else {
            return Ok(());
        };
        if open.writer.blocks() == 0 {
            return open.writer.discard().await;
        }
        let clock = Instant::now();
        let pending = open.writer.finish(&mut self.encoder).await?;
        let clock = lap(&mut self.stages.seal, clock);
        self.commits.push(pending).await?;
        lap(&mut self.stages.write_wait, clock);
        Ok(())
    }

    /// Finds the blocks of zeros and hashes the others.
    fn hash(&mut self, bytes: &[u8]) -> Result<()> {
        let blocks = bytes.chunks_exact(BLOCK_BYTES);
        let place = |block: &[u8]| (*block != ZERO_BLOCK).then_some([0; 32]);
        self.hashes.clear();
        self.hashes.extend(blocks.clone().map(place));
        let with_data = blocks.zip(&self.hashes).filter(|(_, hash)| hash.is_some());
        let with_data: Vec<&[u8]> = with_data.map(|(block, _)| block).collect();
        let digests = sha256_each(&with_data)?;
        for (hash, digest) in self.hashes.iter_mut().flatten().zip(digests) {
            *hash = digest;
        }
        Ok(())
    }
}

/// The ids of the packs that this shard's leaves name, without asking the shared table for every block.
#[derive(Default)]
struct PackNames {
    last: Option<(u32, PackId)>,
    /// Those of this session.
    named: HashSet<PackId>,
}

impl PackNames {
    /// The pack of a number, which is named now.
    fn id(&mut self, shared: &WriteShared, number: u32) -> Result<PackId> {
        match self.last {
            Some((last, id)) if last == number => Ok(id),
            _ => {
                let id = shared.packs.id(number);
                self.last = Some((number, id));
                self.note(shared, id)?;
                Ok(id)
            }
        }
    }

    fn note(&mut self, shared: &WriteShared, pack: PackId) -> Result<()> {
        if !shared.note_named(pack)? {
            self.named.insert(pack);
        }
        Ok(())
    }
}

/// What is at the blocks of an extent, or of a part of it.
pub struct LeafPart(Leaf);

/// The root of the map of one extent, to be joined with others into the map of a file.
#[derive(Debug, Clone)]
pub struct MapNode(pub(crate) Child);

fn no_blocks() -> Error {
    Error::new(Kind::Internal, "an extent has no blocks")
}

fn run_count(count: u64) -> Result<u32> {
    u32::try_from(count).map_err(|_| Error::new(Kind::Internal, "a run is longer than its leaf"))
}
