//! The copying part of a backup, on all shards: pieces from the feed to the writer, extents to nodes of the map.
//!
//! Invariants: every block of every file is given to the writer once, in order within its share; what cannot be kept as
//! the parent has it is read instead; where the parent has data and a page store has none, or where that is not known because the
//! parent's map is damaged, that is noted.

use std::ops::Range;

use mover_base::{BLOCK_BYTES, Result};
use mover_io::{Shard, ShardConfig, Stop};
use mover_repo::{BackupRun, LeafPart, MapNodes, ShardWriter, WriterOutcome, block_bytes, lap};

use super::feed::{Event, Feed};
use super::origin::{Origin, not_listed};
use super::pages::PageOrigin;
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
    /// Adds what a run on shards of its own brings back. The one that moved most says what the machinery is like; the others add to
    /// what was done.
    fn add(&mut self, parts: Vec<Part>) {
        let mut lesser = Vec::with_capacity(parts.len());
        for part in parts {
            self.outcomes.push(part.outcome);
            self.nodes.push(part.nodes);
            self.bytes_copied += part.read_bytes;
            lesser.push(part.figures);
        }
        let moved = |run: &[ShardFigures]| run.iter().map(ShardFigures::moved_bytes).sum::<u64>();
        if moved(&lesser) > moved(&self.shards) {
            std::mem::swap(&mut lesser, &mut self.shards);
        }
        for figures in lesser {
            match self.shards.get_mut(figures.report.shard) {
                Some(shard) => shard.add_lesser(&figures),
                None => self.shards.push(figures),
            }
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
    gathered.add(parts);
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
        stored_told: 0,
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
        copier.tell_stored();
    }
    let Copier {
        writer,
        feed,
        nodes,
        stored_told,
        ..
    } = copier;
    let outcome = writer.finish().await?;
    let stored_bytes = outcome.counts.stored_bytes;
    job.progress
        .add_stored(stored_bytes.saturating_sub(stored_told));
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
    /// Bytes sent to the store that the job's progress has.
    stored_told: u64,
}

impl Copier<'_> {
    fn tell_stored(&mut self) {
        let stored = self.writer.stored_bytes();
        let told = std::mem::replace(&mut self.stored_told, stored);
        self.job.progress.add_stored(stored.saturating_sub(told));
    }

    async fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Begin(share) => self.begin(share).await,
            Event::Kept {
                first_block,
                blocks,
                missing,
            } => self.keep(first_block, blocks, missing).await,
            Event::Hole {
                first_block,
                blocks,
            } => self.hole(first_block, blocks),
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

    /// Blocks of a hole. Where the parent has data, and must not have more than the source, a note is made.
    fn hole(&mut self, first_block: u64, blocks: u64) -> Result<()> {
        let share = self.share.as_ref().ok_or_else(not_listed)?;
        if let Origin::Pages(pages) = self.job.origin
            && pages.doubts_holes(share.item)
        {
            let all = first_block..first_block + blocks;
            note_lost(pages, &self.writer, share, all)?;
        }
        self.writer.hole(blocks)?;
        self.job.progress.add_bytes(block_bytes(blocks));
        Ok(())
    }

    /// Blocks that did not change. Of those that are `missing` in the source, where the parent has data, a note is made, and so
    /// it is of those that lie behind the end of their file.
    async fn keep(&mut self, first_block: u64, blocks: u64, missing: bool) -> Result<()> {
        let share = self.share.as_ref().ok_or_else(not_listed)?;
        let (origin, all) = (self.job.origin, first_block..first_block + blocks);
        if !self.writer.keep(first_block, blocks).await? {
            let (feed, writer) = (&mut self.feed, &mut self.writer);
            read_instead(feed, writer, origin, share, all).await?;
        } else if let Origin::Pages(pages) = origin {
            if missing {
                note_missing(pages, &self.writer, share, all)?;
            } else {
                let behind = pages.behind_end(share.item, bytes_of(share, &all))?;
                let begin = (behind.start - share.extent_begin()) / BLOCK_BYTES as u64;
                note_lost(pages, &self.writer, share, begin..all.end)?;
            }
        }
        self.job.progress.add_bytes(block_bytes(blocks));
        Ok(())
    }

    async fn copy(&mut self, bytes: &[u8], first_block: u64, new: bool) -> Result<()> {
        if let Origin::Pages(pages) = self.job.origin {
            let share = self.share.as_ref().ok_or_else(not_listed)?;
            let begin = share.extent_begin() + block_bytes(first_block);
            for block in pages.doubtful_zeros(share.item, begin, bytes)? {
                let at = first_block + block;
                note_missing(pages, &self.writer, share, at..at + 1)?;
            }
            for block in pages.lost_zeros(share.item, bytes) {
                let at = first_block + block;
                note_lost(pages, &self.writer, share, at..at + 1)?;
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

/// Blocks of the share's extent, in bytes of its file.
fn bytes_of(share: &Share, blocks: &Range<u64>) -> Range<u64> {
    let begin = share.extent_begin();
    begin + block_bytes(blocks.start)..begin + block_bytes(blocks.end)
}

/// Notes what of `blocks`, which did not change as far as is known, and which the source has nothing of, the parent has. Where its
/// map is damaged there is nothing to compare with.
fn note_lost(
    pages: &PageOrigin,
    writer: &ShardWriter,
    share: &Share,
    blocks: Range<u64>,
) -> Result<()> {
    let data = writer.parent_data(blocks);
    for lost in data.unwrap_or_default() {
        pages.note_lost(share.item, &bytes_of(share, &lost))?;
    }
    Ok(())
}

/// Notes what of `blocks`, which must be in the source as the log or the parent has them, and are not, the parent has. Where its map
/// is damaged that is in doubt for all of them.
fn note_missing(
    pages: &PageOrigin,
    writer: &ShardWriter,
    share: &Share,
    blocks: Range<u64>,
) -> Result<()> {
    match writer.parent_data(blocks.clone()) {
        Ok(data) => data
            .iter()
            .try_for_each(|lost| pages.note_missing(share.item, &bytes_of(share, lost))),
        Err(damage) => pages.note_doubtful(share.item, &bytes_of(share, &blocks), damage),
    }
}

/// Reads blocks that were to be kept, where the parent turned out to be damaged. Where it had data, and the source has none, the
/// data is lost, unless the log has it.
async fn read_instead(
    feed: &mut Feed<'_>,
    writer: &mut ShardWriter,
    origin: &Origin,
    share: &Share,
    blocks: Range<u64>,
) -> Result<()> {
    let Range { start: mut at, end } = blocks;
    while at < end {
        match feed.read_now(share, at, end - at).await? {
            Event::Data {
                buf, bytes, new, ..
            } => {
                if let Origin::Pages(pages) = origin {
                    for block in pages.zeros(share.item, &buf[..bytes]) {
                        let block = at + block;
                        note_missing(pages, writer, share, block..block + 1)?;
                    }
                }
                writer.blocks(&buf[..bytes], at, new).await?;
                at += (bytes / BLOCK_BYTES) as u64;
            }
            Event::Hole { blocks, .. } => {
                writer.hole(blocks)?;
                at += blocks;
            }
            _ => return Err(not_listed()),
        }
    }
    Ok(())
}
