//! A backup from the reader's side: its entries, the extents of its files, and their blocks.
//!
//! Invariants: an extent's segments cover its blocks exactly and in order; blocks are handed out only after
//! they matched their SHA-256.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use mover_base::checksum::Sha256;
use mover_base::tree::Entry;
use mover_base::{BLOCK_BYTES, BackupId, Error, Kind, PackId, Result};
use mover_format::manifest::{BackupMetadata, PackInfo};
use mover_format::node::Run;
use mover_format::seal::Origin;
use mover_io::Shard;
use mover_store::LinkReport;
use tokio::task::JoinHandle;

use crate::catalogue;
use crate::items::ItemList;
use crate::open_packs::OpenPacks;
use crate::reader::{FRAMES_SHARED_MAX, FrameNeed, PackInfos, PackReader};
use crate::repository::Repository;
use crate::timing::{StageSeconds, lap};
use crate::tree::{FileMap, in_map, in_pages};

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
    pub items: ItemList,
    pub(crate) infos: Arc<PackInfos>,
    packs: Arc<OpenPacks>,
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

    /// The pack that holds it, if one does.
    fn pack(&self) -> Option<PackId> {
        match self.content {
            Content::Stored { pack, .. } => Some(pack),
            Content::Hole | Content::Zeros => None,
        }
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
    /// What went over the link to its repository so far.
    pub fn link_report(&self) -> Option<LinkReport> {
        self.repository.link_report()
    }

    /// Opens a backup: manifest and entries.
    pub async fn open(shard: &Shard, repository: &Arc<Repository>, id: BackupId) -> Result<Self> {
        let open = catalogue::load(shard, repository, id).await?;
        let infos = Arc::new(PackInfos::new(open.manifest.packs));
        let packs = Arc::default();
        let mut reader = PackReader::new(shard, repository, &infos).with_packs(&packs);
        let read = ItemList::read(&mut reader, &open.manifest.pages).await;
        let items = read.map_err(|error| in_pages(id, error))?;
        Ok(BackupView {
            repository: repository.clone(),
            id,
            metadata: open.manifest.metadata,
            origin: open.origin,
            items,
            infos,
            packs,
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
            self.infos.iter().map(|pack| pack.bytes).sum(),
        )
    }

    /// The packs that the backup needs.
    pub fn packs(&self) -> impl Iterator<Item = &PackInfo> {
        self.infos.iter()
    }

    /// An entry.
    ///
    /// # Errors
    /// `Internal` if there is none of that index.
    pub fn entry(&self, item: u32) -> Result<Entry> {
        let entry = self.items.entries().get(item as usize);
        entry.ok_or_else(no_entry)
    }

    /// The map of an entry that has blocks.
    fn map(&self, item: u32) -> Result<FileMap> {
        self.items.map(item as usize)?.ok_or_else(no_entry)
    }

    /// A reader for one shard, of whose buffers it may fill so many ahead ([`READS_AHEAD`](crate::READS_AHEAD) at least).
    pub fn reader(self: &Arc<Self>, shard: &Shard, buffers_ahead: usize) -> ExtentReader {
        self.packs.share(shard.count());
        let reader = PackReader::new(shard, &self.repository, &self.infos);
        let frames = FRAMES_SHARED_MAX / shard.count();
        let reader = reader.with_packs(&self.packs).with_frames(frames);
        ExtentReader {
            view: self.clone(),
            reader: reader.with_pieces_ahead(buffers_ahead),
            scout: None,
        }
    }
}

fn no_entry() -> Error {
    Error::new(
        Kind::Internal,
        "an extent of a file that is not in the backup",
    )
}

/// Reads the extents of a backup's files, for one shard.
pub struct ExtentReader {
    view: Arc<BackupView>,
    reader: PackReader,
    /// Goes ahead of the reader: none before it first does, and while it does.
    scout: Option<PackReader>,
}

/// What a part of an extent consists of, while that is being looked up.
pub struct Sought(JoinHandle<(PackReader, Result<Vec<Segment>>)>);

/// What the blocks `wanted` of extent `index` consist of. The packs that hold them are open then, as far as there is room.
async fn segments(
    reader: &mut PackReader,
    map: &FileMap,
    index: u64,
    wanted: Range<u64>,
) -> Result<Vec<Segment>> {
    let (leaf, _) = map.leaf(reader, index).await?;
    let mut segments = Vec::with_capacity(leaf.runs().len());
    let mut first_block = 0;
    for run in leaf.runs() {
        let content = match *run {
            Run::Hole { .. } => Content::Hole,
            Run::Zeros { .. } => Content::Zeros,
            Run::Stored { pack, ordinal, .. } => Content::Stored { pack, ordinal },
        };
        let count = u64::from(run.blocks());
        let segment = Segment {
            first_block,
            count,
            content,
        };
        segments.extend(segment.clip(wanted.start, wanted.end));
        first_block += count;
    }
    let packs: Vec<PackId> = segments.iter().filter_map(Segment::pack).collect();
    reader.open_all(&packs).await?;
    Ok(segments)
}

impl ExtentReader {
    /// Begins to look up what the blocks `wanted` of extent `index` of an entry consist of, and to open the packs that hold
    /// them, while blocks of others are decoded: over a link it takes longer than that. One at a time is ever looked up.
    pub fn seek(&mut self, item: u32, index: u64, wanted: Range<u64>) -> Sought {
        let scout = self.scout.take();
        let mut scout = scout.unwrap_or_else(|| self.reader.beside());
        let view = self.view.clone();
        Sought(self.reader.shard().spawn(async move {
            let found = match view.map(item) {
                Ok(map) => {
                    let found = segments(&mut scout, &map, index, wanted).await;
                    found.map_err(|error| match view.entry(item) {
                        Ok(entry) => in_map(view.id, &entry, error),
                        Err(_) => error,
                    })
                }
                Err(error) => Err(error),
            };
            (scout, found)
        }))
    }

    /// Waits for what was looked up.
    ///
    /// # Errors
    /// `Corrupt` if a part of the map or a pack is damaged, and what reading the repository brings.
    pub async fn found(&mut self, sought: Sought) -> Result<Vec<Segment>> {
        let clock = Instant::now();
        let (mut scout, found) = sought.0.await.map_err(|error| {
            Error::new(Kind::Internal, "looking ahead ended without a result").cause(error)
        })?;
        // It waited beside others; what counts is who waits for it.
        lap(&mut self.reader.stages.read_wait, clock);
        self.reader.read_bytes += std::mem::take(&mut scout.read_bytes);
        self.reader.stages.add(&StageSeconds {
            read_wait: 0.0,
            ..std::mem::take(&mut scout.stages)
        });
        self.scout = Some(scout);
        found
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
        self.reader.hashes(pack, ordinal, count as usize).await
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
