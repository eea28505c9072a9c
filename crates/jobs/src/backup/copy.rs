//! The copying part of a backup, on all shards: pieces from the feed to the writer, extents to nodes of the map.
//!
//! Invariants: every block of every file is given to the writer once, in order within its share; what cannot be kept as
//! the parent has it is read instead.

use mover_base::{BLOCK_BYTES, Result};
use mover_io::{Shard, ShardConfig, Stop};
use mover_repo::{BackupRun, LeafPart, MapNodes, ShardWriter, WriterOutcome, lap};

use super::feed::{Event, Feed};
use super::origin::{Origin, not_listed};
use crate::extents::{ExtentQueue, Joiner, Share};
use crate::progress::Progress;
use crate::report::ShardFigures;
use crate::settings::JobLimits;

/// What one shard brings back.
struct Part {
    outcome: WriterOutcome,
    nodes: MapNodes,
    read_bytes: u64,
    figures: ShardFigures,
}

/// What all shards bring back.
#[derive(Default)]
pub(crate) struct Gathered {
    pub outcomes: Vec<WriterOutcome>,
    /// Of each shard.
    pub nodes: Vec<MapNodes>,
    pub bytes_copied: u64,
    pub shards: Vec<ShardFigures>,
}

impl Gathered {
    fn add(&mut self, part: Part) {
        self.outcomes.push(part.outcome);
        self.nodes.push(part.nodes);
        self.bytes_copied += part.read_bytes;
        // What is copied after the bulk, by shards of its own, says nothing more of the machinery; its time counts.
        let index = part.figures.report.shard;
        match self.shards.get_mut(index) {
            Some(shard) => shard.stages.add(&part.figures.stages),
            None => self.shards.push(part.figures),
        }
    }
}

/// What the shards share while they copy.
struct CopyJob<'a> {
    origin: &'a Origin,
    run: &'a BackupRun,
    progress: &'a Progress,
    limits: JobLimits,
    extents: ExtentQueue,
    /// Parts of extents that several shards work on.
    parts: Joiner<LeafPart>,
}

/// Copies these files, given by number and size, on the shards of `config`, and adds what comes of it to `gathered`.
pub(crate) fn run(
    config: &ShardConfig,
    (origin, run, progress, limits): (&Origin, &BackupRun, &Progress, &JobLimits),
    files: Vec<(u32, u64)>,
    gathered: &mut Gathered,
    tick: &mut dyn FnMut(&Stop),
) -> Result<()> {
    let extents = ExtentQueue::new(files.into_iter(), config.shard_count());
    let job = CopyJob {
        origin,
        run,
        progress,
        limits: limits.clone(),
        extents,
        parts: Joiner::default(),
    };
    let parts = mover_io::run(config, async |shard| copy(&shard, &job).await, tick)?;
    parts.into_iter().for_each(|part| gathered.add(part));
    Ok(())
}

async fn copy(shard: &Shard, job: &CopyJob<'_>) -> Result<Part> {
    job.run.preload(shard).await?;
    let mut writer = ShardWriter::new(shard, job.run.shared())?;
    let mut feed = Feed::new(shard, job.origin, &job.extents, &job.limits.read);
    let mut nodes = MapNodes::default();
    let mut current = None;
    loop {
        shard.stop()?;
        let clock = std::time::Instant::now();
        let event = feed.next().await?;
        lap(&mut writer.stages.read_wait, clock);
        match event {
            None => break,
            Some(Event::Begin(share)) => {
                let entry = job.origin.entry(share.item)?;
                writer.begin_extent(&entry.path, share.index).await?;
                if share.begin == 0 {
                    job.progress.add_files(1);
                }
                current = Some(share);
            }
            Some(Event::Kept {
                first_block,
                blocks,
                missing,
            }) => {
                let share = current.as_ref().ok_or_else(not_listed)?;
                if missing && writer.parent_has_data(first_block, blocks).await? {
                    let begin = share.extent_begin() + mover_repo::block_bytes(first_block);
                    let end = begin + mover_repo::block_bytes(blocks);
                    job.origin.note_missing(share.item, &(begin..end))?;
                }
                if !writer.keep(first_block, blocks).await? {
                    read_instead(&mut feed, &mut writer, share, first_block, blocks).await?;
                }
                job.progress.add_bytes(mover_repo::block_bytes(blocks));
            }
            Some(Event::Hole(blocks)) => {
                writer.hole(blocks)?;
                job.progress.add_bytes(mover_repo::block_bytes(blocks));
            }
            Some(Event::Data {
                buf,
                bytes,
                first_block,
                new,
            }) => {
                let share = current.as_ref().ok_or_else(not_listed)?;
                let begin = share.extent_begin() + mover_repo::block_bytes(first_block);
                for block in job
                    .origin
                    .doubtful_zeros(share.item, begin, &buf[..bytes])?
                {
                    if writer.parent_has_data(first_block + block, 1).await? {
                        let at = begin + mover_repo::block_bytes(block);
                        let page = at..at + mover_repo::block_bytes(1);
                        job.origin.note_missing(share.item, &page)?;
                    }
                }
                writer.blocks(&buf[..bytes], first_block, new).await?;
                job.progress.add_bytes(bytes as u64);
            }
            Some(Event::End(share)) => {
                let part = writer.end_part()?;
                if let Some(parts) = job.parts.add(&share, part) {
                    let node = writer.end_extent(parts).await?;
                    nodes.push(share.item, share.index, &node)?;
                }
            }
        }
    }
    let read_bytes = feed.read_bytes;
    let outcome = writer.finish().await?;
    job.progress.add_stored(outcome.counts.stored_bytes);
    let figures = ShardFigures {
        report: shard.report(),
        stages: outcome.stages,
    };
    Ok(Part {
        outcome,
        nodes,
        read_bytes,
        figures,
    })
}

/// Reads blocks that were to be kept, where the parent turned out to be damaged.
async fn read_instead(
    feed: &mut Feed<'_>,
    writer: &mut ShardWriter,
    share: &Share,
    first_block: u64,
    blocks: u64,
) -> Result<()> {
    let end = first_block + blocks;
    let mut at = first_block;
    while at < end {
        match feed.read_now(share, at, end - at).await? {
            Event::Data {
                buf, bytes, new, ..
            } => {
                writer.blocks(&buf[..bytes], at, new).await?;
                at += (bytes / BLOCK_BYTES) as u64;
            }
            Event::Hole(blocks) => {
                writer.hole(blocks)?;
                at += blocks;
            }
            _ => return Err(not_listed()),
        }
    }
    Ok(())
}
