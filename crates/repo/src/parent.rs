//! The parent backup, as the running one uses it: what lay at the same place of the same file, and which
//! blocks to put into the index before the first is read.
//!
//! Invariants: a block counts as known only after the directory of its pack was opened and checked in this
//! session; a parent that turns out damaged is not trusted further, its blocks are stored anew, and that is
//! reported.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mover_base::checksum::Sha256;
use mover_base::{Kind, PackId, Result};
use mover_format::node::{NodeRef, Run};
use mover_io::Shard;

use crate::dedup::Location;
use crate::reader::{OpenPack, PackInfos, PackReader};
use crate::tree::FileMap;
use crate::writer::WriteShared;

/// What the shards share of the parent.
pub(crate) struct Parent {
    pub infos: Arc<PackInfos>,
    /// Numbers of its packs in the session's table.
    pub numbers: HashMap<PackId, u32>,
    /// Extents whose old map could not be used because it is damaged.
    pub damaged_extents: AtomicU64,
}

impl Parent {
    /// Blocks in all its packs.
    pub fn blocks(&self) -> u64 {
        self.infos.values().map(|info| u64::from(info.blocks)).sum()
    }
}

/// One shard's view of the parent.
pub(crate) struct ParentReader {
    reader: PackReader,
    shared: Arc<WriteShared>,
    runs: Vec<StoredRun>,
    expected: Vec<Option<(Location, Sha256)>>,
}

struct StoredRun {
    first_block: u64,
    count: u32,
    pack: PackId,
    ordinal: u32,
}

impl ParentReader {
    pub fn new(shard: &Shard, shared: &Arc<WriteShared>, parent: &Parent) -> Self {
        ParentReader {
            reader: PackReader::new(shard, &shared.repository, &parent.infos),
            shared: shared.clone(),
            runs: Vec::new(),
            expected: Vec::new(),
        }
    }

    /// Loads what the parent has in extent `index` of a file. Gives the leaf's name if it has one.
    pub async fn begin_extent(
        &mut self,
        map: Option<&FileMap>,
        index: u64,
    ) -> Result<Option<NodeRef>> {
        self.runs.clear();
        let Some(map) = map.filter(|map| index < map.extents()) else {
            return Ok(None);
        };
        let (leaf, name) = match map.leaf(&mut self.reader, index).await {
            Ok(found) => found,
            Err(error) => return self.give_up(error).map(|()| None),
        };
        let mut first_block = 0;
        for run in leaf.runs() {
            if let Run::Stored {
                blocks,
                pack,
                ordinal,
            } = *run
            {
                self.runs.push(StoredRun {
                    first_block,
                    count: blocks,
                    pack,
                    ordinal,
                });
            }
            first_block += u64::from(run.blocks());
        }
        Ok(name)
    }

    /// Prepares the hashes that the parent has for `count` blocks from `first_block` of the extent on.
    pub async fn load(&mut self, first_block: u64, count: usize) -> Result<()> {
        self.expected.clear();
        self.expected.resize(count, None);
        let end = first_block + count as u64;
        let from = self
            .runs
            .partition_point(|run| run.first_block + u64::from(run.count) <= first_block);
        for at in from..self.runs.len() {
            let run = &self.runs[at];
            if run.first_block >= end {
                break;
            }
            let pack = match self.reader.open(run.pack).await {
                Ok(pack) => pack,
                Err(error) => {
                    self.runs.clear();
                    return self.give_up(error);
                }
            };
            self.fill(at, first_block, end, &pack);
        }
        Ok(())
    }

    fn fill(&mut self, at: usize, first_block: u64, end: u64, pack: &Rc<OpenPack>) {
        let run = &self.runs[at];
        let Some(number) = self
            .shared
            .parent
            .as_ref()
            .and_then(|parent| parent.numbers.get(&run.pack))
        else {
            return;
        };
        let run_end = run.first_block + u64::from(run.count);
        for block in run.first_block.max(first_block)..run_end.min(end) {
            let ordinal = run.ordinal + (block - run.first_block) as u32;
            if let Some(hash) = pack.directory.hashes.get(ordinal as usize) {
                let location = Location {
                    pack: *number,
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
    fn give_up(&mut self, error: mover_base::Error) -> Result<()> {
        if error.kind() != Kind::Corrupt {
            return Err(error);
        }
        tracing::warn!(%error, "the parent backup is damaged; its blocks are stored anew");
        if let Some(parent) = &self.shared.parent {
            parent.damaged_extents.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}
