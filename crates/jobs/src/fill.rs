//! Filling files with the blocks of a backup, extent by extent, for one shard.
//!
//! Fresh: space is allocated first, then every block that is not in a hole is written. Delta: what lies there is
//! read and hashed, and only what differs is fetched and written; data where the backup has a hole is punched
//! out, or overwritten with zeros where the file system makes no holes. Space that was kept for data and never written cannot
//! be told from a hole then: it is given back before ([`give_back_unwritten`]).
//!
//! Invariants: blocks pass their SHA-256 before they are written; writes under way hold at most their share of
//! the arena, so that reads always find buffers; an extent counts as done when all its writes have ended well.
//! They may end while the next extent is decoded, and that one's frames are fetched while this one is written: a
//! disk that is waited for between extents idles. What those behind it consist of is looked up meanwhile.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mover_base::checksum::sha256_each;
use mover_base::tree::Entry;
use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use mover_io::{Access, BUF_BYTES, Buf, File, Shard};
use mover_repo::{BackupView, Content, ExtentReader, Segment, StageSeconds, block_bytes, lap};
use mover_source::{DataRanges, DirTarget, HOLES_UNKNOWN, TargetMode, data_ranges, target_error};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::extents::Share;
use crate::progress::Progress;
use crate::settings::{JobLimits, pieces_ahead, writes_max};

/// Blocks in one write.
const WRITE_BLOCKS_MAX: u64 = (BUF_BYTES / BLOCK_BYTES) as u64;
/// Ranges below this are written without being allocated first: the call would cost more than it saves.
const ALLOCATE_BYTES_MIN: u64 = 256 << 10;

/// Writes and ends of shares that are under way; each keeps its file open.
const PENDING_MAX: usize = 16;

/// What one shard did to the target.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FillCounts {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub unchanged_bytes: u64,
    pub hole_bytes: u64,
}

impl FillCounts {
    /// Adds another shard's counts.
    pub fn add(&mut self, other: &FillCounts) {
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.unchanged_bytes += other.unchanged_bytes;
        self.hole_bytes += other.hole_bytes;
    }
}

type Write = Pin<Box<dyn Future<Output = (io::Result<()>, Buf)>>>;

/// A file that is being filled.
pub(crate) struct Open {
    /// Its index in the tree.
    pub item: u32,
    path: Vec<u8>,
    file: Rc<File>,
}

/// A share of which is being looked up what it consists of.
pub(crate) struct Sought {
    share: Share,
    sought: mover_repo::Sought,
}

impl Sought {
    /// Index of its file in the tree.
    pub fn item(&self) -> u32 {
        self.share.item
    }
}

/// A share whose frames are being fetched.
pub(crate) struct Ready {
    open: Rc<Open>,
    share: Share,
    /// What has to be written, in blocks of the extent.
    wanted: Vec<Segment>,
}

impl Ready {
    /// Bytes of the share.
    pub fn bytes(&self) -> u64 {
        self.share.bytes()
    }
}

/// What is under way, in order.
enum Pending {
    Write {
        write: Write,
        open: Rc<Open>,
        bytes: usize,
    },
    /// Everything of a share was begun before this.
    End { open: Rc<Open>, share: Share },
}

/// Fills files for one shard.
pub(crate) struct Filler {
    shard: Shard,
    reader: ExtentReader,
    mode: TargetMode,
    limits: JobLimits,
    open: Option<Rc<Open>>,
    pending: VecDeque<Pending>,
    /// Writes among them.
    writes: usize,
    writes_max: usize,
    ended: Vec<(Rc<Open>, Share)>,
    counts: FillCounts,
    throttled_bytes: u64,
    stages: StageSeconds,
}

impl Filler {
    pub fn new(
        shard: &Shard,
        view: &Arc<BackupView>,
        mode: TargetMode,
        limits: &JobLimits,
    ) -> Self {
        let total = shard.buffers_total();
        let writes_max = writes_max(total);
        Filler {
            shard: shard.clone(),
            reader: view.reader(shard, pieces_ahead(total, writes_max)),
            mode,
            limits: limits.clone(),
            open: None,
            pending: VecDeque::new(),
            writes: 0,
            writes_max,
            ended: Vec::new(),
            counts: FillCounts::default(),
            throttled_bytes: 0,
            stages: StageSeconds::default(),
        }
    }

    /// Opens the file of the next share with `open`, or gives it if it is open.
    pub fn open(
        &mut self,
        item: u32,
        entry: &Entry,
        open: impl FnOnce() -> Result<Option<OwnedFd>>,
    ) -> Result<Rc<Open>> {
        if let Some(open) = self.open.as_ref().filter(|open| open.item == item) {
            return Ok(open.clone());
        }
        let fd = open()?.ok_or_else(|| {
            Error::new(
                Kind::Target,
                "a file vanished from the target while it was restored",
            )
            .object(entry.display_path())
            .hint("keep other programs out of the target and restore again")
        })?;
        let failed = |error| target_error("a file cannot be written", &entry.path, error);
        let file = Rc::new(self.shard.file(fd, Access::Direct).map_err(failed)?);
        let open = Rc::new(Open {
            item,
            path: entry.path.clone(),
            file,
        });
        self.open = Some(open.clone());
        Ok(open)
    }

    /// Begins to look up what a share consists of, while others are prepared and filled. One at a time is ever looked up.
    pub fn seek(&mut self, share: Share) -> Sought {
        let sought = self.reader.seek(share.item, share.index, share.blocks());
        Sought { share, sought }
    }

    /// Finds what has to be written to a share of a file, and has it fetched. Shares are filled in the order in which
    /// they are prepared.
    pub async fn prepare(&mut self, open: Rc<Open>, sought: Sought) -> Result<Ready> {
        let Sought { share, sought } = sought;
        let segments = self.reader.found(sought).await?;
        let base = share.extent_begin();
        for segment in segments
            .iter()
            .filter(|segment| segment.content == Content::Hole)
        {
            self.counts.hole_bytes += block_bytes(segment.count);
        }
        let wanted = match self.mode {
            TargetMode::Fresh => {
                let data = segments
                    .into_iter()
                    .filter(|segment| segment.content != Content::Hole);
                let data: Vec<Segment> = data.collect();
                allocate(&open, base, &data).await?;
                data
            }
            TargetMode::Delta => self.differing(&open, base, segments).await?,
        };
        self.reader.announce(&wanted).await?;
        Ok(Ready {
            open,
            share,
            wanted,
        })
    }

    /// Brings a share to the backup's state; its last writes may still be under way.
    pub async fn fill(&mut self, ready: Ready, progress: &Progress) -> Result<()> {
        for unit in units(&ready.wanted) {
            self.shard.stop()?;
            self.write_unit(&ready, &unit, progress).await?;
        }
        let Ready { open, share, .. } = ready;
        self.pending.push_back(Pending::End { open, share });
        // Shares without a write end here; many of them may be behind one write.
        let left = match self.pending.len() > PENDING_MAX {
            true => 0,
            false => self.writes_max,
        };
        self.drain(left, progress).await
    }

    /// The shares that have ended since this was last called.
    pub fn take_ended(&mut self) -> Vec<(Rc<Open>, Share)> {
        std::mem::take(&mut self.ended)
    }

    /// Reads and writes one unit: neighbouring segments of at most 1 MiB.
    async fn write_unit(
        &mut self,
        ready: &Ready,
        unit: &[Segment],
        progress: &Progress,
    ) -> Result<()> {
        let Some(first) = unit.first() else {
            return Ok(());
        };
        self.drain(self.writes_max - 1, progress).await?;
        let clock = Instant::now();
        let mut buf = self.shard.buffer().await;
        lap(&mut self.stages.write_wait, clock);
        let mut at = 0;
        for segment in unit {
            let bytes = block_bytes(segment.count) as usize;
            let out = &mut buf[at..at + bytes];
            // Also what is decoded into: the kernel has just read these bytes, so they are in no cache of this core, and the
            // decoder, which reads what it wrote a moment ago, would wait for each line (docs/decisions, 7).
            out.fill(0);
            if let Content::Stored { pack, ordinal } = segment.content {
                self.reader.blocks(pack, ordinal, out).await?;
            }
            at += bytes;
        }
        let read_bytes = self.reader.read_bytes();
        let unpaid = read_bytes - std::mem::replace(&mut self.throttled_bytes, read_bytes);
        self.shard.throttle(&self.limits.read, unpaid).await;
        self.shard.throttle(&self.limits.write, at as u64).await;
        let offset = ready.share.extent_begin() + block_bytes(first.first_block);
        let open = ready.open.clone();
        let write = Box::pin(open.file.write_at(buf, offset, at));
        self.pending.push_back(Pending::Write {
            write,
            open,
            bytes: at,
        });
        self.writes += 1;
        self.counts.written_bytes += at as u64;
        self.shard.turn().await;
        Ok(())
    }

    /// Waits until at most `left` writes are under way, and takes note of the shares that have ended.
    pub async fn drain(&mut self, left: usize, progress: &Progress) -> Result<()> {
        while let Some(next) = self.pending.pop_front() {
            match next {
                Pending::Write { write, open, bytes } if self.writes > left => {
                    let clock = Instant::now();
                    let (result, _) = write.await;
                    lap(&mut self.stages.write_wait, clock);
                    self.writes -= 1;
                    result.map_err(|error| {
                        target_error("a file cannot be written", &open.path, error)
                    })?;
                    progress.add_stored(bytes as u64);
                }
                Pending::Write { .. } => {
                    self.pending.push_front(next);
                    break;
                }
                Pending::End { open, share } => {
                    progress.add_bytes(share.bytes());
                    self.ended.push((open, share));
                }
            }
        }
        Ok(())
    }

    /// The parts of the segments that the target does not hold yet; data in holes is punched out.
    async fn differing(
        &mut self,
        open: &Open,
        base: u64,
        segments: Vec<Segment>,
    ) -> Result<Vec<Segment>> {
        let Open { file, path, .. } = open;
        let failed = |error| target_error("a file of the target cannot be read", path, error);
        let end = segments.last().map_or(0, Segment::end);
        let length = file.len().map_err(failed)?;
        let limit = (base + block_bytes(end)).min(length.max(base));
        let allocated = if base < limit {
            data_ranges(file.as_fd(), base..limit)
                .map_err(|error| target_error(HOLES_UNKNOWN, path, error))?
        } else {
            Vec::new()
        };
        let is_allocated = |block: u64| {
            let at = base + block_bytes(block);
            let behind = allocated.partition_point(|range| range.end <= at);
            allocated.get(behind).is_some_and(|range| range.start <= at)
        };
        let mut wanted: Vec<Segment> = Vec::new();
        for segment in segments {
            if segment.content == Content::Hole
                && self.punch(file, path, base, &segment, &is_allocated)?
            {
                continue;
            }
            let mut from = segment.first_block;
            while from < segment.end() {
                let to = (from + WRITE_BLOCKS_MAX).min(segment.end());
                if let Some(part) = segment.clip(from, to) {
                    self.compare(file, path, base, &part, &is_allocated, &mut wanted)
                        .await?;
                }
                from = to;
            }
        }
        Ok(wanted)
    }

    /// Makes a hole of what the target holds where the backup has one. Returns false where the file system cannot.
    fn punch(
        &self,
        file: &File,
        path: &[u8],
        base: u64,
        hole: &Segment,
        is_allocated: &dyn Fn(u64) -> bool,
    ) -> Result<bool> {
        if !(hole.first_block..hole.end()).any(is_allocated) {
            return Ok(true);
        }
        let bytes = base + block_bytes(hole.first_block)..base + block_bytes(hole.end());
        make_hole(file.as_fd(), path, bytes)
    }

    /// Compares at most 1 MiB of the target with what the backup has there.
    async fn compare(
        &mut self,
        file: &File,
        path: &[u8],
        base: u64,
        part: &Segment,
        is_allocated: &dyn Fn(u64) -> bool,
        wanted: &mut Vec<Segment>,
    ) -> Result<()> {
        let bytes = block_bytes(part.count) as usize;
        let expected = match part.content {
            Content::Stored { pack, ordinal } => {
                Some(self.reader.hashes(pack, ordinal, part.count).await?)
            }
            Content::Zeros | Content::Hole => None,
        };
        let clock = Instant::now();
        let offset = base + block_bytes(part.first_block);
        let (read, mut buf) = file.read_at(self.shard.buffer().await, offset, bytes).await;
        let read =
            read.map_err(|error| target_error("a file of the target cannot be read", path, error))?;
        buf[read..bytes].fill(0);
        let clock = lap(&mut self.stages.read_wait, clock);
        let blocks: Vec<&[u8]> = buf[..bytes].chunks_exact(BLOCK_BYTES).collect();
        let digests = match &expected {
            Some(_) => sha256_each(&blocks)?,
            None => Vec::new(),
        };
        for (i, block) in blocks.iter().enumerate() {
            let at = part.first_block + i as u64;
            let is_zero = || *block == [0; BLOCK_BYTES];
            let same = match (&expected, part.content) {
                (Some(hashes), _) => hashes[i] == digests[i],
                // Zeros do for a hole that cannot be made, and what is zero already need not be written for it.
                (None, Content::Hole) if is_zero() => continue,
                (None, _) => is_allocated(at) && is_zero(),
            };
            if same && i * BLOCK_BYTES < read {
                self.counts.unchanged_bytes += BLOCK_BYTES as u64;
            } else if let Some(block) = part.clip(at, at + 1) {
                push_merged(wanted, block);
            }
        }
        lap(&mut self.stages.hash, clock);
        drop(buf);
        self.shard.throttle(&self.limits.read, read as u64).await;
        self.shard.turn().await;
        Ok(())
    }

    /// All extents of a file are written: gives it its length and its metadata.
    pub fn complete(&self, open: &Open, target: &DirTarget, entry: &Entry) -> Result<()> {
        open.file.set_len(entry.content_bytes()).map_err(|error| {
            target_error("a file cannot be cut to its length", &open.path, error)
        })?;
        let fd = open.file.as_fd();
        target.apply_metadata(entry, Some(fd.as_fd()))?;
        target.sync_file(entry, fd.as_fd())
    }

    /// What was done, and where the time went.
    pub fn finish(mut self) -> (FillCounts, StageSeconds) {
        self.counts.read_bytes = self.reader.read_bytes();
        let mut stages = self.stages;
        stages.add(self.reader.stages());
        (self.counts, stages)
    }
}

/// Gives back what an existing file of the target has of its disk beyond its data: space that was kept for it (fallocate) and
/// never written, which reads as zeros and passes for a hole, and what lies behind its end. To be called before anything is
/// written to it.
///
/// Errors: `Target`, and that of `go_on`, which is asked for each range of data.
// The fields of `stat` have other types on other architectures.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn give_back_unwritten(
    fd: BorrowedFd<'_>,
    entry: &Entry,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let path = &entry.path;
    let stat = rustix::fs::fstat(fd)
        .map_err(|error| target_error("a file of the target cannot be examined", path, error))?;
    let (length, allocated) = (stat.st_size as u64, stat.st_blocks as u64 * 512);
    if allocated == 0 {
        return Ok(());
    }
    // Behind its end no hole can be made, but a cut leaves nothing there, also one to the length that it has. One that is too long
    // is cut when it is complete.
    if length < entry.content_bytes() {
        rustix::fs::ftruncate(fd, length)
            .map_err(|error| target_error("a file cannot be cut", path, error))?;
    }
    let end = length.min(entry.content_bytes());
    let end = end.next_multiple_of(BLOCK_BYTES as u64);
    let ranges = || {
        DataRanges::new(fd, 0..end).map(move |range| {
            go_on()?;
            range.map_err(|error| target_error(HOLES_UNKNOWN, path, error))
        })
    };
    let mut data_bytes = 0;
    for range in ranges() {
        let range = range?;
        data_bytes += range.end - range.start;
    }
    // The file system's own map of the file counts as the file's. Then true holes are made once more, which changes nothing.
    if allocated <= data_bytes {
        return Ok(());
    }
    let mut at = 0;
    for range in ranges().chain([Ok(end..end)]) {
        let range = range?;
        if at < range.start && !make_hole(fd, path, at..range.start)? {
            break;
        }
        at = range.end;
    }
    Ok(())
}

/// Makes a hole. Returns false where the file system cannot.
fn make_hole(fd: BorrowedFd<'_>, path: &[u8], bytes: Range<u64>) -> Result<bool> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(fd, flags, bytes.start, bytes.end - bytes.start) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(target_error("a hole cannot be made", path, error)),
    }
}

/// Allocates each run of neighbouring segments: writes into space that is allocated do not wait for each
/// other in the file system.
async fn allocate(open: &Open, base: u64, wanted: &[Segment]) -> Result<()> {
    let mut rest = wanted;
    while let Some(first) = rest.first() {
        let mut end = first.end();
        let mut taken = 1;
        while let Some(next) = rest.get(taken).filter(|next| next.first_block == end) {
            end = next.end();
            taken += 1;
        }
        let bytes = block_bytes(end - first.first_block);
        if bytes >= ALLOCATE_BYTES_MIN {
            let offset = base + block_bytes(first.first_block);
            open.file
                .allocate(offset, bytes)
                .await
                .map_err(|error| target_error("space cannot be allocated", &open.path, error))?;
        }
        rest = &rest[taken..];
    }
    Ok(())
}

/// Appends a segment, joined with the last one where it continues it.
fn push_merged(segments: &mut Vec<Segment>, next: Segment) {
    if let Some(last) = segments.last_mut() {
        let follows = last.end() == next.first_block;
        let same = match (last.content, next.content) {
            (
                Content::Stored { pack, ordinal },
                Content::Stored {
                    pack: next_pack,
                    ordinal: next_ordinal,
                },
            ) => pack == next_pack && u64::from(ordinal) + last.count == u64::from(next_ordinal),
            (content, next_content) => content == next_content,
        };
        if follows && same {
            last.count += next.count;
            return;
        }
    }
    segments.push(next);
}

/// Cuts segments into units of neighbours, at most 1 MiB each.
fn units(segments: &[Segment]) -> Vec<Vec<Segment>> {
    let mut units: Vec<Vec<Segment>> = Vec::new();
    let mut unit: Vec<Segment> = Vec::new();
    let mut blocks = 0;
    for segment in segments {
        let mut from = segment.first_block;
        while from < segment.end() {
            let gap = unit.last().is_some_and(|last| last.end() != from);
            if gap || blocks == WRITE_BLOCKS_MAX {
                units.push(std::mem::take(&mut unit));
                blocks = 0;
            }
            let to = segment.end().min(from + WRITE_BLOCKS_MAX - blocks);
            unit.extend(segment.clip(from, to));
            blocks += to - from;
            from = to;
        }
    }
    if !unit.is_empty() {
        units.push(unit);
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeros(first_block: u64, count: u64) -> Segment {
        Segment {
            first_block,
            count,
            content: Content::Zeros,
        }
    }

    #[test]
    fn units_split_at_gaps_and_at_one_mebibyte() {
        let cut = units(&[zeros(0, 100), zeros(100, 200), zeros(400, 1)]);
        let shape: Vec<Vec<(u64, u64)>> = cut
            .iter()
            .map(|unit| unit.iter().map(|s| (s.first_block, s.count)).collect())
            .collect();
        assert_eq!(
            shape,
            [vec![(0, 100), (100, 156)], vec![(256, 44)], vec![(400, 1)]]
        );
        assert!(units(&[]).is_empty());
        assert_eq!(units(&[zeros(5, 256)]).len(), 1);
        assert_eq!(units(&[zeros(5, 257)]).len(), 2);
    }

    #[test]
    fn differing_blocks_join_only_where_they_continue() {
        let mut wanted = Vec::new();
        push_merged(&mut wanted, zeros(0, 1));
        push_merged(&mut wanted, zeros(1, 1));
        push_merged(&mut wanted, zeros(3, 1));
        assert_eq!(wanted, [zeros(0, 2), zeros(3, 1)]);
    }
}
