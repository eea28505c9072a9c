//! The copying part of a backup, on all shards: pieces from the feed to the writer, extents to nodes of the map.
//!
//! Invariants: every block of every file is given to the writer once, in order within its share; what cannot be kept as
//! the parent has it is read instead.

use mover_base::{BLOCK_BYTES, Result};
use mover_io::{Shard, ShardConfig, Stop};
use mover_repo::{BackupRun, LeafPart, MapNodes, ShardWriter, WriterOutcome, block_bytes, lap};

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
    let mut copier = Copier {
        job,
        writer: ShardWriter::new(shard, job.run.shared())?,
        feed: Feed::new(shard, job.origin, &job.extents, &job.limits.read),
        nodes: MapNodes::default(),
        share: None,
    };
    loop {
        shard.stop()?;
        let clock = std::time::Instant::now();
        let event = copier.feed.next().await?;
        lap(&mut copier.writer.stages.read_wait, clock);
        match event {
            Some(event) => copier.take(event).await?,
            None => break,
        }
    }
    let Copier {
        writer,
        feed,
        nodes,
        ..
    } = copier;
    let outcome = writer.finish().await?;
    job.progress.add_stored(outcome.counts.stored_bytes);
    let figures = ShardFigures {
        report: shard.report(),
        stages: outcome.stages,
    };
    Ok(Part {
        outcome,
        nodes,
        read_bytes: feed.read_bytes,
        figures,
    })
}

/// One shard at work.
struct Copier<'a> {
    job: &'a CopyJob<'a>,
    writer: ShardWriter,
    feed: Feed<'a>,
    nodes: MapNodes,
    /// What is being copied.
    share: Option<Share>,
}

impl Copier<'_> {
    async fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Begin(share) => self.begin(share).await,
            Event::Kept {
                first_block,
                blocks,
                missing,
            } => self.keep(first_block, blocks, missing).await,
            Event::Hole(blocks) => {
                self.writer.hole(blocks)?;
                self.job.progress.add_bytes(block_bytes(blocks));
                Ok(())
            }
            Event::Data {
                buf,
                bytes,
                first_block,
                new,
            } => self.copy(&buf[..bytes], first_block, new).await,
            Event::End(share) => self.end(&share).await,
        }
    }

    async fn begin(&mut self, share: Share) -> Result<()> {
        let entry = self.job.origin.entry(share.item)?;
        self.writer.begin_extent(&entry.path, share.index).await?;
        if share.begin == 0 {
            self.job.progress.add_files(1);
        }
        self.share = Some(share);
        Ok(())
    }

    /// Blocks that did not change. Of those that are `missing` in the source, where the parent has data, a note is made.
    async fn keep(&mut self, first_block: u64, blocks: u64, missing: bool) -> Result<()> {
        let share = self.share.as_ref().ok_or_else(not_listed)?;
        let begin = share.extent_begin() + block_bytes(first_block);
        if missing && self.writer.parent_has_data(first_block, blocks).await? {
            let range = begin..begin + block_bytes(blocks);
            self.job.origin.note_missing(share.item, &range)?;
        }
        if !self.writer.keep(first_block, blocks).await? {
            let (feed, writer) = (&mut self.feed, &mut self.writer);
            read_instead(feed, writer, share, first_block, blocks).await?;
        }
        self.job.progress.add_bytes(block_bytes(blocks));
        Ok(())
    }

    async fn copy(&mut self, bytes: &[u8], first_block: u64, new: bool) -> Result<()> {
        let (origin, share) = (self.job.origin, self.share.as_ref().ok_or_else(not_listed)?);
        let begin = share.extent_begin() + block_bytes(first_block);
        for block in origin.doubtful_zeros(share.item, begin, bytes)? {
            if self.writer.parent_has_data(first_block + block, 1).await? {
                let at = begin + block_bytes(block);
                origin.note_missing(share.item, &(at..at + block_bytes(1)))?;
            }
        }
        self.writer.blocks(bytes, first_block, new).await?;
        self.job.progress.add_bytes(bytes.len() as u64);
        Ok(())
    }

    async fn end(&mut self, share: &Share) -> Result<()> {
        let part = self.writer.end_part()?;
        if let Some(parts) = self.job.parts.add(share, part) {
            let node = self.writer.end_extent(parts).await?;
            self.nodes.push(share.item, share.index, &node)?;
        }
        Ok(())
    }
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
