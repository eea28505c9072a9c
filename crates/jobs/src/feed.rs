//! The reading side of a backup, for one shard: shares of extents are claimed, files opened, and reads kept going ahead
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

use mover_base::units::blocks_of;
use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use mover_io::{Access, BUF_BYTES, Buf, File, RateBudget, Shard};
use mover_repo::EXTENT_BYTES;
use mover_source::{DirSource, HOLES_UNKNOWN, Item, Tree, data_ranges, source_error};

use crate::extents::{ExtentQueue, Share};
use crate::settings::read_ahead;

/// Reads are queued this many at a time, as one submission: on a virtual disk each costs the kernel an exit to
/// the host, however many requests it brings.
const READS_BATCH: usize = 4;

/// What comes next.
pub(crate) enum Event {
    /// A new share of an extent.
    Begin(Share),
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
    /// The share is complete, and the file was not changed while it was read.
    End(Share),
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
        share: Share,
        file: Rc<File>,
    },
}

/// The share whose reads are being queued.
struct Cursor {
    share: Share,
    file: Rc<File>,
    /// Data ranges not yet queued, in order.
    ranges: VecDeque<Range<u64>>,
    /// First byte not yet queued.
    at: u64,
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
            Some(Queued::End { share, file }) => {
                let item = self.item(share.item)?;
                self.source.check_unchanged(item, file.as_fd())?;
                Ok(Some(Event::End(share)))
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
                None => self.begin_share()?,
                Some(cursor) => {
                    if !self.queue_next(cursor).await? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_share(&mut self) -> Result<()> {
        let Some(share) = self.extents.claim() else {
            self.exhausted = true;
            self.open = None;
            return Ok(());
        };
        let file = self.open_file(share.item)?;
        let item = self.item(share.item)?;
        let is_dense = item.stamp.allocated_bytes >= item.entry.content_bytes();
        let ranges = if is_dense {
            std::iter::once(share.range()).collect()
        } else {
            data_ranges(file.as_fd(), share.range())
                .map_err(|error| source_error(HOLES_UNKNOWN, &item.entry.path, error))?
                .into()
        };
        self.queue.push_back(Queued::Event(Event::Begin(share)));
        self.cursor = Some(Cursor {
            share,
            file,
            ranges,
            at: share.begin,
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

    /// Queues the next hole, read or end of the share. False: no buffer is free, work on what there is.
    async fn queue_next(&mut self, mut cursor: Cursor) -> Result<bool> {
        let Some(range) = cursor.ranges.front().cloned() else {
            let Cursor {
                share, file, at, ..
            } = cursor;
            if at < share.end {
                let blocks = blocks_of(share.end - at);
                self.queue.push_back(Queued::Event(Event::Hole(blocks)));
            }
            self.queue.push_back(Queued::End { share, file });
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
        let first_block = cursor.at % EXTENT_BYTES / BLOCK_BYTES as u64;
        let item = cursor.share.item;
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
