//! The parent backup, as the running one uses it: what lay at the same place of the same file, and which
//! blocks to put into the index before the first is read.
//!
//! Invariants: a block counts as known only after the directory of its pack was opened and checked in this
//! session; a parent that turns out damaged is not trusted further, its blocks are stored anew, and that is
//! reported. What its map says of a place can be asked all the same, as long as the map itself is sound.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use mover_base::checksum::Sha256;
use mover_base::{Error, Kind, PackId, Result};
use mover_format::manifest::PackInfo;
use mover_format::node::{Leaf, NodeRef, Run};
use mover_io::Shard;

use crate::dedup::{Location, PackTable};
use crate::open_packs::OpenPacks;
use crate::parent_names::{NamesCursor, ParentNames};
use crate::reader::{OpenPack, PackInfos, PackReader};
use crate::writer::WriteShared;

/// A mark of a pack: its directory was read in this session and is the one that the manifest names.
const CHECKED: u8 = 1;
/// A mark of a pack: a map of the running backup names it.
const NAMED: u8 = 2;

/// What the shards share of the parent.
pub(crate) struct Parent {
    pub names: ParentNames,
    pub infos: Arc<PackInfos>,
    /// Those that are open.
    pub packs: Arc<OpenPacks>,
    /// The number of its first pack in the session's table, behind which the others follow as `infos` has them.
    first_number: u32,
    /// Of each of `infos`: [`CHECKED`] and [`NAMED`].
    marks: Vec<AtomicU8>,
    /// Extents whose old map could not be used because it is damaged.
    pub damaged_extents: AtomicU64,
}

impl Parent {
    /// A parent with these names and packs, which enter `table`. Nobody else adds to that meanwhile.
    pub fn new(names: ParentNames, infos: Arc<PackInfos>, table: &PackTable) -> Self {
        let numbers = infos.iter().map(|info| table.add(info.id));
        let first_number = numbers.min().unwrap_or(0);
        let marks = infos.iter().map(|_| AtomicU8::new(0)).collect();
        Parent {
            names,
            infos,
            packs: Arc::default(),
            first_number,
            marks,
            damaged_extents: AtomicU64::new(0),
        }
    }

    /// The number of one of its packs in the session's table.
    pub fn number(&self, pack: PackId) -> Option<u32> {
        let number = self.infos.number(&pack)?;
        Some(self.first_number + number as u32)
    }

    fn marks(&self, pack: PackId) -> Option<&AtomicU8> {
        self.marks.get(self.infos.number(&pack)?)
    }

    /// Sets a mark; tells whether it is new. None for a pack that is not the parent's.
    fn mark(&self, pack: PackId, mark: u8) -> Option<bool> {
        let marks = self.marks(pack)?;
        // Mostly it is there, and a read leaves the line in the caches of all shards.
        let is_there = marks.load(Relaxed) & mark != 0;
        Some(!is_there && marks.fetch_or(mark, Relaxed) & mark == 0)
    }

    fn has_mark(&self, pack: PackId, mark: u8) -> bool {
        let marks = self.marks(pack);
        marks.is_some_and(|marks| marks.load(Relaxed) & mark != 0)
    }

    /// Notes that the directory of `pack` was read and is the one that the manifest names.
    pub fn set_checked(&self, pack: PackId) {
        self.mark(pack, CHECKED);
    }

    /// Whether that was noted.
    pub fn is_checked(&self, pack: PackId) -> bool {
        self.has_mark(pack, CHECKED)
    }

    /// Notes that a map of the running backup names `pack`; tells whether it is the first that does. None for a pack that is
    /// not the parent's.
    pub fn set_named(&self, pack: PackId) -> Option<bool> {
        self.mark(pack, NAMED)
    }

    /// The packs of which that was noted.
    pub fn named(&self) -> impl Iterator<Item = PackInfo> {
        let marked = self.infos.iter().zip(&self.marks);
        let named = marked.filter(|(_, marks)| marks.load(Relaxed) & NAMED != 0);
        named.map(|(info, _)| *info)
    }

    /// Blocks in all its packs.
    pub fn blocks(&self) -> u64 {
        self.infos.iter().map(|info| u64::from(info.blocks)).sum()
    }
}

/// One shard's view of the parent.
pub(crate) struct ParentReader {
    reader: PackReader,
    cursor: NamesCursor,
    shared: Arc<WriteShared>,
    /// What the parent has in the extent at hand, in order; empty where that is not known.
    runs: Vec<PlacedRun>,
    /// Whether a pack that the extent needs turned out damaged: then nothing of it is taken over.
    is_damaged: bool,
    /// The object that is damaged, where that keeps what the parent has in the extent from being known.
    unknown: Option<String>,
    expected: Vec<Option<(Location, Sha256)>>,
}

/// A run, with its first block counted from the beginning of the extent.
struct PlacedRun {
    first_block: u64,
    run: Run,
}

impl PlacedRun {
    fn end(&self) -> u64 {
        self.first_block + u64::from(self.run.blocks())
    }
}

impl ParentReader {
    pub fn new(shard: &Shard, shared: &Arc<WriteShared>, parent: &Parent) -> Self {
        let reader = PackReader::new(shard, &shared.repository, &parent.infos);
        ParentReader {
            reader: reader.with_packs(&parent.packs),
            cursor: NamesCursor::default(),
            shared: shared.clone(),
            runs: Vec::new(),
            is_damaged: false,
            unknown: None,
            expected: Vec::new(),
        }
    }

    /// Loads what the parent has in extent `index` of the file at `path`. Gives the leaf's name if it has one.
    pub async fn begin_extent(&mut self, path: &[u8], index: u64) -> Result<Option<NodeRef>> {
        self.runs.clear();
        (self.is_damaged, self.unknown) = (false, None);
        let (leaf, name) = match self.leaf(path, index).await {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.unknown = Some(error.object_name().unwrap_or_default().to_owned());
                return self.give_up(error).map(|()| None);
            }
        };
        let mut first_block = 0;
        for run in leaf.runs() {
            self.runs.push(PlacedRun {
                first_block,
                run: *run,
            });
            first_block += u64::from(run.blocks());
        }
        Ok(name)
    }

    async fn leaf(&mut self, path: &[u8], index: u64) -> Result<Option<(Leaf, Option<NodeRef>)>> {
        let Some(parent) = &self.shared.parent else {
            return Ok(None);
        };
        let (cursor, reader) = (&mut self.cursor, &mut self.reader);
        let map = parent.names.map(cursor, reader, path).await?;
        match map.filter(|map| index < map.extents()) {
            Some(map) => map.leaf(reader, index).await.map(Some),
            None => Ok(None),
        }
    }

    /// What the parent has at `count` blocks from `first_block` of the extent on. `None` if that is not known for all of
    /// them, or if one of their packs is not as the parent's manifest says; then nothing may be taken over.
    pub async fn kept(&mut self, first_block: u64, count: u64) -> Result<Option<Vec<Run>>> {
        let end = first_block + count;
        if self.is_damaged || self.runs.last().is_none_or(|last| last.end() < end) {
            return Ok(None);
        }
        let from = self.runs.partition_point(|run| run.end() <= first_block);
        let mut kept = Vec::new();
        for at in from..self.runs.len() {
            let placed = &self.runs[at];
            if placed.first_block >= end {
                break;
            }
            let skipped = first_block.saturating_sub(placed.first_block) as u32;
            let blocks = (placed.end().min(end) - placed.first_block) as u32 - skipped;
            kept.push(match placed.run {
                Run::Hole { .. } => Run::Hole { blocks },
                Run::Zeros { .. } => Run::Zeros { blocks },
                Run::Stored { pack, ordinal, .. } => {
                    if !self.holds(pack, ordinal + skipped + blocks).await? {
                        return Ok(None);
                    }
                    Run::Stored {
                        blocks,
                        pack,
                        ordinal: ordinal + skipped,
                    }
                }
            });
        }
        Ok(Some(kept))
    }

    /// Where in these blocks of the extent the parent has anything but zeros and holes, by its map alone:
    /// whether its packs can be read is not asked. Behind the end of what it has there is nothing.
    ///
    /// # Errors
    /// `Corrupt` if that map is damaged.
    pub fn stored(&self, blocks: Range<u64>) -> Result<Vec<Range<u64>>> {
        if let Some(object) = &self.unknown {
            return Err(unknown(object));
        }
        let from = self.runs.partition_point(|run| run.end() <= blocks.start);
        let runs = self.runs[from..].iter();
        let runs = runs.take_while(|placed| placed.first_block < blocks.end);
        let stored = runs.filter(|placed| matches!(placed.run, Run::Stored { .. }));
        let part =
            |placed: &PlacedRun| placed.first_block.max(blocks.start)..placed.end().min(blocks.end);
        Ok(stored.map(part).filter(|part| !part.is_empty()).collect())
    }

    /// Whether a pack has at least so many blocks, and its directory is the one that the parent's manifest names.
    async fn holds(&mut self, pack: PackId, blocks: u32) -> Result<bool> {
        let shared = self.shared.clone();
        let Some(parent) = &shared.parent else {
            return Ok(false);
        };
        let info = parent.infos.get(&pack);
        if parent.is_checked(pack) && info.is_some_and(|info| blocks <= info.blocks) {
            return Ok(true);
        }
        let damage = match self.reader.open(pack).await {
            Ok(open) if blocks as usize <= open.directory.hashes.len() => {
                parent.set_checked(pack);
                return Ok(true);
            }
            Ok(_) => Error::new(
                Kind::Corrupt,
                "a map names a block that its pack does not hold",
            )
            .object(pack.to_string()),
            Err(error) => error,
        };
        self.is_damaged = true;
        self.give_up(damage).map(|()| false)
    }

    /// Prepares the hashes that the parent has for `count` blocks from `first_block` of the extent on; none if the blocks
    /// are `new`.
    pub async fn load(&mut self, first_block: u64, count: usize, new: bool) -> Result<()> {
        self.expected.clear();
        if new || self.is_damaged {
            return Ok(());
        }
        self.expected.resize(count, None);
        let end = first_block + count as u64;
        let from = self.runs.partition_point(|run| run.end() <= first_block);
        self.open_some(from, end).await?;
        for at in from..self.runs.len() {
            let placed = &self.runs[at];
            if placed.first_block >= end {
                break;
            }
            let Run::Stored { pack, .. } = placed.run else {
                continue;
            };
            let pack = match self.reader.open(pack).await {
                Ok(pack) => pack,
                Err(error) => {
                    self.is_damaged = true;
                    return self.give_up(error);
                }
            };
            self.fill(at, first_block, end, &pack);
        }
        Ok(())
    }

    /// Opens the packs of the runs from `from` on that begin before `end`, several at a time. One that is damaged is met again
    /// by whoever needs it.
    async fn open_some(&mut self, from: usize, end: u64) -> Result<()> {
        let runs = self.runs[from..].iter();
        let runs = runs.take_while(|placed| placed.first_block < end);
        let packs = runs.filter_map(|placed| match placed.run {
            Run::Stored { pack, .. } => Some(pack),
            Run::Hole { .. } | Run::Zeros { .. } => None,
        });
        let packs: Vec<PackId> = packs.collect();
        match self.reader.open_all(&packs).await {
            Err(error) if error.kind() != Kind::Corrupt => Err(error),
            _ => Ok(()),
        }
    }

    fn fill(&mut self, at: usize, first_block: u64, end: u64, pack: &Arc<OpenPack>) {
        let placed = &self.runs[at];
        let Run::Stored {
            pack: id, ordinal, ..
        } = placed.run
        else {
            return;
        };
        let parent = self.shared.parent.as_ref();
        let Some(number) = parent.and_then(|parent| parent.number(id)) else {
            return;
        };
        for block in placed.first_block.max(first_block)..placed.end().min(end) {
            let ordinal = ordinal + (block - placed.first_block) as u32;
            if let Some(hash) = pack.directory.hashes.get(ordinal as usize) {
                let location = Location {
                    pack: number,
                    ordinal,
                };
                self.expected[(block - first_block) as usize] = Some((location, *hash));
            }
        }
    }

    /// Where the parent has the block, if what it has at this place is the same.
    pub fn find(&self, at: usize, hash: &Sha256) -> Option<Location> {
        match self.expected.get(at) {
            Some(Some((location, expected))) if expected == hash => Some(*location),
            _ => None,
        }
    }

    /// A damaged parent is left aside; any other failure ends the backup.
    fn give_up(&mut self, error: Error) -> Result<()> {
        if error.kind() != Kind::Corrupt {
            return Err(error);
        }
        tracing::info!(%error, "the parent backup is damaged; its blocks are stored anew");
        if let Some(parent) = &self.shared.parent {
            parent.damaged_extents.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

fn unknown(object: &str) -> Error {
    Error::new(
        Kind::Corrupt,
        "the map of the backup that this one stands on is damaged, and without it nobody knows whether data that is not in the source was lost",
    )
    .object(object)
    .hint("the repository is damaged, and the source need not be: run `helios-mover verify`; a backup with `--type full` needs nothing of that map")
}
