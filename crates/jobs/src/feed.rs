//! The reading side of a backup, for one shard: extents are claimed, files opened, and reads kept going ahead
//! of the CPU.
//!
//! Invariants: reads are queued before the piece in hand is worked on; at most the read-ahead share of the
//! arena holds unread or unpacked pieces, so the packs being written always find buffers; pieces come out in
//! the order of their blocks; a file that differs from what was scanned is an error, not a surprise.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mover_base::units::blocks_of;
use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use mover_io::{Access, BUF_BYTES, Buf, File, RateBudget, Shard};
use mover_repo::EXTENT_BYTES;
use mover_source::{DirSource, HOLES_UNKNOWN, Item, Tree, data_ranges, source_error};

use crate::settings::read_ahead;

/// Reads are queued this many at a time, as one submission: on a virtual disk each costs the kernel an exit to
/// the host, however many requests it brings.
const READS_BATCH: usize = 4;

/// A part of a file that one shard works on: it becomes one leaf of the file's map.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Index of the file in the tree.
    pub item: u32,
    /// Number of the extent in the file.
    pub index: u64,
}

/// The extents of all files of a tree, claimed one by one.
pub(crate) struct ExtentQueue {
    /// Files that are not empty: index, and the extents of all files up to its end. Those of several extents come
    /// first, so that shards end on small pieces of work and hardly wait for the last. What a queue takes in memory
    /// follows the number of files, not their sizes, which a sparse file may claim to be enormous.
    files: Vec<(u32, u64)>,
    next: AtomicU64,
}

impl ExtentQueue {
    /// Lists the extents of files with these sizes, given as (index, bytes).
    pub fn new(files: impl Iterator<Item = (u32, u64)>) -> Self {
        let mut end = 0u64;
        let (long, short): (Vec<_>, Vec<_>) = files
            .filter(|(_, bytes)| *bytes > 0)
            .partition(|(_, bytes)| *bytes > EXTENT_BYTES);
        let files = long
            .into_iter()
            .chain(short)
            .map(|(item, bytes)| {
                end = end.saturating_add(bytes.div_ceil(EXTENT_BYTES));
                (item, end)
            })
            .collect();
        ExtentQueue {
            files,
            next: AtomicU64::new(0),
        }
    }

    /// The next extent that nobody has.
    pub fn claim(&self) -> Option<Extent> {
        let next = self.next.fetch_add(1, Relaxed);
        let at = self.files.partition_point(|(_, end)| *end <= next);
        let (item, _) = *self.files.get(at)?;
        let begin = at
            .checked_sub(1)
            .and_then(|before| self.files.get(before))
            .map_or(0, |(_, end)| *end);
        Some(Extent {
            item,
            index: next - begin,
        })
    }
}

/// What comes next.
pub(crate) enum Event {
    /// A new extent.
    Begin(Extent),
    /// Blocks of a hole.
    Hole(u64),
    /// Whole blocks of data, the last one padded with zeros.
    Data {
        /// They begin the buffer.
        buf: Buf,
        /// How many bytes, a multiple of 4096.
        bytes: usize,
        /// First block, counted from the beginning of the extent.
        first_block: u64,
    },
    /// The extent is complete, and the file was not changed while it was read.
    End(Extent),
}

type Read = Pin<Box<dyn Future<Output = (io::Result<usize>, Buf)>>>;

enum Queued {
    Event(Event),
    Read {
        read: Read,
        item: u32,
        offset: u64,
        bytes: usize,
        first_block: u64,
    },
    End {
        extent: Extent,
        file: Rc<File>,
    },
}

/// The extent whose reads are being queued.
struct Cursor {
    extent: Extent,
    file: Rc<File>,
    /// Data ranges not yet queued, in order.
    ranges: VecDeque<Range<u64>>,
    /// First byte not yet queued.
    at: u64,
    begin: u64,
    end: u64,
}

/// Reads extents for one shard.
pub(crate) struct Feed {
    shard: Shard,
    source: Arc<DirSource>,
    tree: Arc<Tree>,
    extents: Arc<ExtentQueue>,
    limit: Arc<RateBudget>,
    queue: VecDeque<Queued>,
    reads: usize,
    reads_max: usize,
    cursor: Option<Cursor>,
    open: Option<(u32, Rc<File>)>,
    exhausted: bool,
    /// Bytes of data read.
    pub read_bytes: u64,
}

impl Feed {
    pub fn new(
        shard: &Shard,
        source: &Arc<DirSource>,
        tree: &Arc<Tree>,
        extents: &Arc<ExtentQueue>,
        limit: &Arc<RateBudget>,
    ) -> Self {
        Feed {
            shard: shard.clone(),
            source: source.clone(),
            tree: tree.clone(),
            extents: extents.clone(),
            limit: limit.clone(),
            queue: VecDeque::new(),
            reads: 0,
            reads_max: read_ahead(shard.buffers_total()),
            cursor: None,
            open: None,
            exhausted: false,
            read_bytes: 0,
        }
    }

    /// The next event, or `None` when no extents are left.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        self.fill().await?;
        match self.queue.pop_front() {
            None => Ok(None),
            Some(Queued::Event(event)) => Ok(Some(event)),
            Some(Queued::Read {
                read,
                item,
                offset,
                bytes,
                first_block,
            }) => {
                self.reads -= 1;
                let (result, mut buf) = read.await;
                let whole = self.check_read(item, offset, bytes, result)?;
                buf[bytes..whole].fill(0);
                self.read_bytes += bytes as u64;
                Ok(Some(Event::Data {
                    buf,
                    bytes: whole,
                    first_block,
                }))
            }
            Some(Queued::End { extent, file }) => {
                let item = self.item(extent.item)?;
                self.source.check_unchanged(item, file.as_fd())?;
                Ok(Some(Event::End(extent)))
            }
        }
    }

    fn item(&self, at: u32) -> Result<&Item> {
        self.tree
            .items
            .get(at as usize)
            .ok_or_else(|| Error::new(Kind::Internal, "an extent of a file that was not listed"))
    }

    /// Whole bytes of the piece, if exactly what was scanned was read.
    fn check_read(
        &self,
        item: u32,
        offset: u64,
        bytes: usize,
        result: io::Result<usize>,
    ) -> Result<usize> {
        let item = self.item(item)?;
        let read = result.map_err(|error| {
            Error::new(Kind::Source, format!("the source cannot be read at byte {offset}"))
                .object(item.entry.display_path())
                .hint("check the disk (dmesg, smartctl); restore the file from an older backup if it is lost")
                .cause(error)
        })?;
        if read != bytes {
            return Err(Error::new(
                Kind::SourceChanged,
                "a file changed its size while it was read",
            )
            .object(item.entry.display_path())
            .hint("stop the database first, or back up a snapshot (LVM, btrfs, ZFS)"));
        }
        Ok(blocks_of(bytes as u64) as usize * BLOCK_BYTES)
    }

    async fn fill(&mut self) -> Result<()> {
        let batch = READS_BATCH.min(self.reads_max);
        if self.reads + batch > self.reads_max {
            return Ok(());
        }
        while self.reads < self.reads_max {
            match self.cursor.take() {
                None if self.exhausted => return Ok(()),
                None => self.begin_extent()?,
                Some(cursor) => {
                    if !self.queue_next(cursor).await? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_extent(&mut self) -> Result<()> {
        let Some(extent) = self.extents.claim() else {
            self.exhausted = true;
            self.open = None;
            return Ok(());
        };
        let file = self.open_file(extent.item)?;
        let item = self.item(extent.item)?;
        let size = item.entry.content_bytes();
        let begin = extent.index * EXTENT_BYTES;
        let end = (begin + EXTENT_BYTES).min(size);
        let is_dense = item.stamp.allocated_bytes >= size;
        let ranges = if is_dense {
            std::iter::once(begin..end).collect()
        } else {
            data_ranges(file.as_fd(), begin..end)
                .map_err(|error| source_error(HOLES_UNKNOWN, &item.entry.path, error))?
                .into()
        };
        self.queue.push_back(Queued::Event(Event::Begin(extent)));
        self.cursor = Some(Cursor {
            extent,
            file,
            ranges,
            at: begin,
            begin,
            end,
        });
        Ok(())
    }

    fn open_file(&mut self, at: u32) -> Result<Rc<File>> {
        if let Some((open, file)) = &self.open
            && *open == at
        {
            return Ok(file.clone());
        }
        let item = self.item(at)?;
        let fd = self.source.open_file(item)?;
        let failed = |error| {
            Error::new(Kind::Source, "a file cannot be read")
                .object(item.entry.display_path())
                .cause(error)
        };
        let file = Rc::new(self.shard.file(fd, Access::Direct).map_err(failed)?);
        self.open = Some((at, file.clone()));
        Ok(file)
    }

    /// Queues the next hole, read or end of the extent. False: no buffer is free, work on what there is.
    async fn queue_next(&mut self, mut cursor: Cursor) -> Result<bool> {
        let Some(range) = cursor.ranges.front().cloned() else {
            if cursor.at < cursor.end {
                let blocks = blocks_of(cursor.end - cursor.at);
                self.queue.push_back(Queued::Event(Event::Hole(blocks)));
            }
            let Cursor { extent, file, .. } = cursor;
            self.queue.push_back(Queued::End { extent, file });
            return Ok(true);
        };
        if cursor.at < range.start {
            let blocks = blocks_of(range.start - cursor.at);
            self.queue.push_back(Queued::Event(Event::Hole(blocks)));
            cursor.at = range.start;
        }
        let buf = match self.shard.try_buffer() {
            Some(buf) => buf,
            None if self.reads > 0 => {
                self.cursor = Some(cursor);
                return Ok(false);
            }
            None => self.shard.buffer().await,
        };
        let bytes = (range.end - cursor.at).min(BUF_BYTES as u64) as usize;
        self.shard.throttle(&self.limit, bytes as u64).await;
        let whole = blocks_of(bytes as u64) as usize * BLOCK_BYTES;
        let read = Box::pin(cursor.file.read_at(buf, cursor.at, whole));
        self.reads += 1;
        let first_block = (cursor.at - cursor.begin) / BLOCK_BYTES as u64;
        let item = cursor.extent.item;
        self.queue.push_back(Queued::Read {
            read,
            item,
            offset: cursor.at,
            bytes,
            first_block,
        });
        cursor.at += bytes as u64;
        if cursor.at >= range.end {
            cursor.ranges.pop_front();
        }
        self.cursor = Some(cursor);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_cover_each_file_once() {
        let sizes = [
            0,
            1,
            EXTENT_BYTES - 1,
            EXTENT_BYTES,
            EXTENT_BYTES + 1,
            3 * EXTENT_BYTES,
        ];
        let queue = ExtentQueue::new(
            sizes
                .iter()
                .enumerate()
                .map(|(i, bytes)| (i as u32, *bytes)),
        );
        let mut counts = [0u64; 6];
        while let Some(extent) = queue.claim() {
            assert_eq!(extent.index, counts[extent.item as usize]);
            counts[extent.item as usize] += 1;
        }
        assert_eq!(counts, [0, 1, 1, 1, 2, 3]);
    }
}
