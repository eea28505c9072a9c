//! A backup from the reader's side: its entries, the extents of its files, and their blocks.
//!
//! Invariants: an extent's segments cover its blocks exactly and in order; blocks are handed out only after
//! they matched their SHA-256.

use std::collections::HashMap;
use std::sync::Arc;

use mover_base::checksum::Sha256;
use mover_base::{BLOCK_BYTES, BackupId, PackId, Result};
use mover_format::manifest::{BackupMetadata, PackInfo};
use mover_format::node::Run;
use mover_format::seal::Origin;
use mover_io::Shard;

use crate::catalogue;
use crate::reader::{FrameNeed, PackInfos, PackReader};
use crate::repository::Repository;
use crate::timing::StageSeconds;
use crate::tree::{FileMap, TreeItem, read_entries};

/// A backup opened for reading, shared by the shards.
pub struct BackupView {
    repository: Arc<Repository>,
    /// The backup.
    pub id: BackupId,
    /// What its manifest says.
    pub metadata: BackupMetadata,
    /// Who wrote it, as far as its seal tells.
    pub origin: Origin,
    /// Its entries in path order.
    pub items: Vec<TreeItem>,
    pub(crate) infos: Arc<PackInfos>,
}

/// What a run of blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Not allocated.
    Hole,
    /// Allocated and zero.
    Zeros,
    /// Stored from this block on.
    Stored {
        /// The pack.
        pack: PackId,
        /// Ordinal of the first block in it.
        ordinal: u32,
    },
}

/// A run of blocks of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First block, counted from the beginning of the extent.
    pub first_block: u64,
    /// How many blocks; at least one.
    pub count: u64,
    /// What they are.
    pub content: Content,
}

impl Segment {
    /// The block behind the last.
    pub fn end(&self) -> u64 {
        self.first_block + self.count
    }

    /// The part that lies in `first_block..end`, if any.
    pub fn clip(&self, first_block: u64, end: u64) -> Option<Segment> {
        let from = self.first_block.max(first_block);
        let to = self.end().min(end);
        if from >= to {
            return None;
        }
        let content = match self.content {
            Content::Stored { pack, ordinal } => Content::Stored {
                pack,
                ordinal: ordinal + (from - self.first_block) as u32,
            },
            other => other,
        };
        Some(Segment {
            first_block: from,
            count: to - from,
            content,
        })
    }
}

impl BackupView {
    /// Opens a backup: manifest and entries.
    pub async fn open(shard: &Shard, repository: &Arc<Repository>, id: BackupId) -> Result<Self> {
        let open = catalogue::load(shard, repository, id).await?;
        let infos: PackInfos = open
            .manifest
            .packs
            .iter()
            .map(|pack| (pack.id, *pack))
            .collect::<HashMap<_, _>>();
        let infos = Arc::new(infos);
        let mut reader = PackReader::new(shard, repository, &infos);
        let (items, _) = read_entries(&mut reader, &open.manifest.pages).await?;
        Ok(BackupView {
            repository: repository.clone(),
            id,
            metadata: open.manifest.metadata,
            origin: open.origin,
            items,
            infos,
        })
    }

    /// The repository that holds it.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Packs that the backup needs, and their bytes.
    pub fn pack_totals(&self) -> (u64, u64) {
        (
            self.infos.len() as u64,
            self.infos.values().map(|pack| pack.bytes).sum(),
        )
    }

    /// The packs that the backup needs.
    pub fn packs(&self) -> impl Iterator<Item = &PackInfo> {
        self.infos.values()
    }

    /// A reader for one shard, of whose buffers it may fill so many ahead ([`READS_AHEAD`](crate::READS_AHEAD) at least).
    pub fn reader(&self, shard: &Shard, buffers_ahead: usize) -> ExtentReader {
        let reader = PackReader::new(shard, &self.repository, &self.infos);
        ExtentReader {
            reader: reader.with_pieces_ahead(buffers_ahead),
        }
    }
}

/// Reads the extents of a backup's files, for one shard.
pub struct ExtentReader {
    reader: PackReader,
}

impl ExtentReader {
    /// What extent `index` of a file consists of.
    pub async fn segments(&mut self, map: &FileMap, index: u64) -> Result<Vec<Segment>> {
        let (leaf, _) = map.leaf(&mut self.reader, index).await?;
        let mut segments = Vec::with_capacity(leaf.runs().len());
        let mut first_block = 0;
        for run in leaf.runs() {
            let content = match *run {
                Run::Hole { .. } => Content::Hole,
                Run::Zeros { .. } => Content::Zeros,
                Run::Stored { pack, ordinal, .. } => Content::Stored { pack, ordinal },
            };
            let count = u64::from(run.blocks());
            segments.push(Segment {
                first_block,
                count,
                content,
            });
            first_block += count;
        }
        Ok(segments)
    }

    /// Announces the segments whose blocks will be read, in order and behind those announced before, so that their
    /// frames are fetched ahead.
    pub async fn announce(&mut self, segments: &[Segment]) -> Result<()> {
        let mut needs = Vec::new();
        for segment in segments {
            let Content::Stored { pack, ordinal } = segment.content else {
                continue;
            };
            let count = segment.count as u32;
            let frames = self.reader.frames_of(pack, ordinal, count).await?;
            needs.extend(frames.map(|frame| FrameNeed { pack, frame }));
        }
        self.reader.announce(needs).await
    }

    /// Reads stored blocks into `out` (a multiple of 4096), each checked against its SHA-256.
    pub async fn blocks(&mut self, pack: PackId, ordinal: u32, out: &mut [u8]) -> Result<()> {
        self.reader.blocks(pack, ordinal, out).await
    }

    /// The SHA-256 of each of `count` stored blocks.
    pub async fn hashes(&mut self, pack: PackId, ordinal: u32, count: u64) -> Result<Vec<Sha256>> {
        let mut hashes = Vec::with_capacity(count as usize);
        for at in 0..count {
            hashes.push(self.reader.block_hash(pack, ordinal + at as u32).await?);
        }
        Ok(hashes)
    }

    /// Where the time went so far.
    pub fn stages(&mut self) -> &mut StageSeconds {
        &mut self.reader.stages
    }

    /// Bytes read from the store so far.
    pub fn read_bytes(&self) -> u64 {
        self.reader.read_bytes
    }
}

/// Bytes in `count` blocks.
pub fn block_bytes(count: u64) -> u64 {
    count * BLOCK_BYTES as u64
}
