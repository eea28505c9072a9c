//! The reading side of a backup, for one shard: shares of extents are claimed, files opened, and reads kept going ahead
//! of the CPU.
//!
//! Invariants: reads are queued before the piece in hand is worked on; at most the read-ahead share of the
//! arena holds unread or unpacked pieces, so the packs being written always find buffers; pieces come out in
//! the order of their blocks; what was read is handed out only when its origin has found nothing wrong with it.
//! Small reads, as of single pages that changed, share buffers: with one for each there would be too few under way for
//! the disk.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mover_base::units::blocks_of;
use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use mover_io::{Access, BUF_BYTES, Buf, File, RateBudget, Shard};
use mover_repo::EXTENT_BYTES;

use super::origin::{Found, Origin, Piece};
use crate::extents::{ExtentQueue, Share};
use crate::settings::read_ahead;

/// Reads are queued this many at a time, as one submission: on a virtual disk each costs the kernel an exit to
/// the host, however many requests it brings.
const READS_BATCH: usize = 4;
/// Larger reads are not small.
const SMALL_READ_BYTES: usize = 32 << 10;
/// As [`READS_BATCH`], where the last read was small: then the exits are most of what a read costs.
const SMALL_READS_BATCH: usize = 16;
/// Reads under way, with small ones among them: what they bring has to last while a frame is compressed, and a ring has
/// to have room for the writes of packs beside them.
const READS_MAX: usize = 224;
/// Events that are queued at most: between small reads there is what is kept.
const QUEUE_MAX: usize = 512;
/// Shares whose ends are queued at most: each keeps a file open.
const SHARES_MAX: usize = 24;
/// How long what was read in the middle of a write is read again: many times what a write of a few blocks takes.
const MENDING: Duration = Duration::from_millis(500);
/// So many pieces of a shard are waited for; where more stay torn, the database is damaged, and each is read twice.
const UNMENDED_MAX: usize = 60;

/// What comes next.
pub(crate) enum Event {
    /// A new share of an extent.
    Begin(Share),
    /// Blocks of a hole.
    Hole {
        /// First block, counted from the beginning of the extent.
        first_block: u64,
        /// How many.
        blocks: u64,
    },
    /// Blocks that are as the parent has them.
    Kept {
        /// First block, counted from the beginning of the extent.
        first_block: u64,
        /// How many.
        blocks: u64,
        /// Whether they seem to have changed since, and are missing in the file.
        missing: bool,
    },
    /// Whole blocks of data, the last one padded with zeros.
    Data {
        /// They begin the buffer.
        buf: Buf,
        /// How many bytes, a multiple of 4096.
        bytes: usize,
        /// First block, counted from the beginning of the extent.
        first_block: u64,
        /// Whether none of them can be as the parent has it.
        new: bool,
    },
    /// The share is complete, and the file was not changed while it was read.
    End(Share),
}

type Read = Pin<Box<dyn Future<Output = (io::Result<usize>, Buf)>>>;

enum Queued {
    Event(Event),
    Read {
        read: Read,
        loan: Rc<Loan>,
        item: u32,
        offset: u64,
        bytes: usize,
        first_block: u64,
    },
    End {
        share: Share,
        file: Option<Rc<File>>,
    },
}

/// One buffer of the read-ahead share, until all that was read into it was taken from the queue.
struct Loan(Rc<Cell<usize>>);

impl Loan {
    fn new(count: &Rc<Cell<usize>>) -> Rc<Self> {
        count.set(count.get() + 1);
        Rc::new(Loan(count.clone()))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The share whose reads are being queued.
struct Cursor {
    share: Share,
    /// None if it is gone and need not be there.
    file: Option<Rc<File>>,
    /// Pieces not yet queued, in order.
    pieces: VecDeque<Piece>,
    /// First byte not yet queued.
    at: u64,
}

/// Reads extents for one shard.
pub(crate) struct Feed<'a> {
    shard: Shard,
    origin: &'a Origin,
    extents: &'a ExtentQueue,
    limit: Arc<RateBudget>,
    queue: VecDeque<Queued>,
    /// Reads in the queue.
    reads: usize,
    /// Ends of shares in the queue.
    ends: usize,
    /// Buffers that hold, or will hold, what is in the queue.
    loans: Rc<Cell<usize>>,
    loans_max: usize,
    /// What is left of the buffer that small reads share.
    shared: Option<(Buf, Rc<Loan>)>,
    last_read_bytes: usize,
    cursor: Option<Cursor>,
    open: Option<(u32, Option<Rc<File>>)>,
    exhausted: bool,
    /// Pieces that stayed torn as long as they were waited for.
    unmended: usize,
    /// Bytes of data read.
    pub read_bytes: u64,
}

impl<'a> Feed<'a> {
    pub fn new(
        shard: &Shard,
        origin: &'a Origin,
        extents: &'a ExtentQueue,
        limit: &Arc<RateBudget>,
    ) -> Self {
        Feed {
            shard: shard.clone(),
            origin,
            extents,
            limit: limit.clone(),
            queue: VecDeque::new(),
            reads: 0,
            ends: 0,
            loans: Rc::default(),
            loans_max: read_ahead(shard.buffers_total(), limit.get()),
            shared: None,
            last_read_bytes: BUF_BYTES,
            cursor: None,
            open: None,
            exhausted: false,
            unmended: 0,
            read_bytes: 0,
        }
    }

    /// The next event, or `None` when no extents are left.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        self.fill().await?;
        match self.queue.pop_front() {
            // Shares that are never asked for would be missing in the backup.
            None if !self.exhausted || self.cursor.is_some() => Err(Error::new(
                Kind::Internal,
                "reading ended before the last extent",
            )),
            None => Ok(None),
            Some(Queued::Event(event)) => Ok(Some(event)),
            Some(Queued::Read {
                read,
                loan,
                item,
                offset,
                bytes,
                first_block,
            }) => {
                self.reads -= 1;
                let (result, buf) = read.await;
                drop(loan);
                let read = (offset, bytes, first_block);
                self.checked(item, read, result, buf).await.map(Some)
            }
            Some(Queued::End { share, file }) => {
                self.ends -= 1;
                if let Some(file) = file {
                    self.origin.check_end(share.item, file.as_fd())?;
                }
                Ok(Some(Event::End(share)))
            }
        }
    }

    /// Reads a piece now that was to be kept and cannot be: `blocks` of them, at most a buffer full, counted from the
    /// beginning of the share's extent. The parent is damaged where they are. What a table's file has not, is zeros.
    pub async fn read_now(
        &mut self,
        share: &Share,
        first_block: u64,
        blocks: u64,
    ) -> Result<Event> {
        self.shard.stop()?;
        let offset = share.extent_begin() + first_block * BLOCK_BYTES as u64;
        let whole = (blocks as usize * BLOCK_BYTES).min(BUF_BYTES);
        let entry = self.origin.entry(share.item)?;
        let bytes = (entry.content_bytes() - offset).min(whole as u64) as usize;
        let Some(fd) = self.origin.open(share.item)? else {
            return Ok(Event::Hole {
                first_block,
                blocks: blocks_of(bytes as u64),
            });
        };
        let file = self.file(share.item, fd)?;
        self.shard.throttle(&self.limit, bytes as u64).await;
        let buf = self.shard.buffer().await;
        let (mut result, mut buf) = file.read_at(buf, offset, whole).await;
        // The file of a page store's table may end before the table does; no other may.
        let may_end = matches!(self.origin, Origin::Pages(pages) if pages.is_table(share.item));
        if let Ok(read) = &mut result
            && may_end
            && *read < bytes
        {
            buf[*read..bytes].fill(0);
            *read = bytes;
        }
        let read = (offset, bytes, first_block);
        self.checked(share.item, read, result, buf).await
    }

    /// The whole blocks of what was read, if it is what it should be; given its offset, its length and its first block.
    async fn checked(
        &mut self,
        item: u32,
        (offset, bytes, first_block): (u64, usize, u64),
        result: io::Result<usize>,
        mut buf: Buf,
    ) -> Result<Event> {
        let read = result.map_err(|error| {
            let object = self.origin.entry(item).map(|entry| entry.display_path());
            Error::new(Kind::Source, format!("the source cannot be read at byte {offset}"))
                .object(object.unwrap_or_default())
                .hint("check the disk (dmesg, smartctl); restore the file from an older backup if it is lost")
                .cause(error)
        })?;
        if read != bytes {
            return Err(self.origin.too_short(item));
        }
        let whole = blocks_of(bytes as u64) as usize * BLOCK_BYTES;
        buf[bytes..whole].fill(0);
        self.read_bytes += bytes as u64;
        let patience = match self.unmended < UNMENDED_MAX {
            true => MENDING,
            false => Duration::ZERO,
        };
        let begun = Instant::now();
        let mut last = false;
        let found = loop {
            match self.origin.check(item, offset, &mut buf[..whole], last)? {
                Found::Torn => {}
                found => break found,
            }
            self.shard.stop()?;
            last = begun.elapsed() > patience;
            self.shard.turn().await;
        };
        self.unmended += usize::from(last);
        Ok(Event::Data {
            buf,
            bytes: whole,
            first_block,
            new: found == Found::New,
        })
    }

    async fn fill(&mut self) -> Result<()> {
        let idle = self.queue.is_empty();
        let limit = self.limit.get();
        // It may have changed.
        self.loans_max = read_ahead(self.shard.buffers_total(), limit);
        let batch = match limit {
            None => READS_BATCH.min(self.loans_max),
            // A batch would be waited for, and then worked on, at once.
            Some(_) => 1,
        };
        let room = match self.last_read_bytes <= SMALL_READ_BYTES {
            true => self.reads + SMALL_READS_BATCH <= READS_MAX,
            false => self.loans.get() + batch <= self.loans_max,
        };
        if !room && !idle {
            return Ok(());
        }
        while self.reads < READS_MAX && self.queue.len() < QUEUE_MAX && self.ends < SHARES_MAX {
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
        let pieces = match &file {
            Some(file) => self.origin.pieces(&share, file.as_fd())?,
            None => VecDeque::new(),
        };
        self.queue.push_back(Queued::Event(Event::Begin(share)));
        self.cursor = Some(Cursor {
            share,
            file,
            pieces,
            at: share.begin,
        });
        Ok(())
    }

    fn open_file(&mut self, at: u32) -> Result<Option<Rc<File>>> {
        if let Some((open, file)) = &self.open
            && *open == at
        {
            return Ok(file.clone());
        }
        let opened = self.origin.open(at)?;
        let file = opened.map(|fd| self.file(at, fd)).transpose()?;
        self.open = Some((at, file.clone()));
        Ok(file)
    }

    fn file(&self, at: u32, fd: OwnedFd) -> Result<Rc<File>> {
        let failed = |error| {
            let object = self.origin.entry(at).map(|entry| entry.display_path());
            Error::new(Kind::Source, "a file cannot be read")
                .object(object.unwrap_or_default())
                .cause(error)
        };
        let file = self.shard.file(fd, Access::Direct).map_err(failed)?;
        Ok(Rc::new(file))
    }

    /// Queues the next hole, piece or end of the share. False: no buffer is free, work on what there is.
    async fn queue_next(&mut self, mut cursor: Cursor) -> Result<bool> {
        let next = cursor.pieces.front().map(Piece::range);
        let hole_end = next.as_ref().map_or(cursor.share.end, |range| range.start);
        if cursor.at < hole_end {
            let hole = Event::Hole {
                first_block: cursor.at % EXTENT_BYTES / BLOCK_BYTES as u64,
                blocks: blocks_of(hole_end - cursor.at),
            };
            self.queue.push_back(Queued::Event(hole));
            cursor.at = hole_end;
        }
        match (cursor.pieces.front().cloned(), cursor.file.clone()) {
            (Some(Piece::Read(range)), Some(file)) => {
                return self.queue_read(cursor, file, range.end).await;
            }
            (Some(piece @ (Piece::Keep(_) | Piece::Missing(_))), Some(_)) => {
                let range = piece.range();
                let first_block = range.start % EXTENT_BYTES / BLOCK_BYTES as u64;
                let blocks = blocks_of(range.end - range.start);
                let kept = Event::Kept {
                    first_block,
                    blocks,
                    missing: matches!(piece, Piece::Missing(_)),
                };
                self.queue.push_back(Queued::Event(kept));
                cursor.at = range.end;
                cursor.pieces.pop_front();
                self.cursor = Some(cursor);
            }
            _ => {
                let Cursor { share, file, .. } = cursor;
                self.ends += 1;
                self.queue.push_back(Queued::End { share, file });
            }
        }
        Ok(true)
    }

    /// Queues a read of what the cursor is at, up to `end`.
    async fn queue_read(&mut self, mut cursor: Cursor, file: Rc<File>, end: u64) -> Result<bool> {
        let bytes = (end - cursor.at).min(BUF_BYTES as u64) as usize;
        let whole = blocks_of(bytes as u64) as usize * BLOCK_BYTES;
        let Some((buf, loan)) = self.borrow(whole).await else {
            self.cursor = Some(cursor);
            return Ok(false);
        };
        self.shard.throttle(&self.limit, bytes as u64).await;
        let read = Box::pin(file.read_at(buf, cursor.at, whole));
        self.reads += 1;
        self.last_read_bytes = bytes;
        let first_block = cursor.at % EXTENT_BYTES / BLOCK_BYTES as u64;
        let item = cursor.share.item;
        self.queue.push_back(Queued::Read {
            read,
            loan,
            item,
            offset: cursor.at,
            bytes,
            first_block,
        });
        cursor.at += bytes as u64;
        if cursor.at >= end {
            cursor.pieces.pop_front();
        }
        self.cursor = Some(cursor);
        Ok(true)
    }

    /// A buffer for a read of `bytes`, whole blocks: a part of the shared one where they are few. `None` if there is none,
    /// and something in the queue will give one back.
    async fn borrow(&mut self, bytes: usize) -> Option<(Buf, Rc<Loan>)> {
        let small = bytes <= SMALL_READ_BYTES;
        if small && let Some(lent) = self.part(bytes) {
            return Some(lent);
        }
        // What is left of it is too short, or in the way.
        if small || self.loans.get() >= self.loans_max {
            self.shared = None;
        }
        let buf = match self.loans.get() < self.loans_max {
            true => self.shard.try_buffer(),
            false => None,
        };
        let buf = match buf {
            Some(buf) => buf,
            None if self.reads > 0 => return None,
            None => self.shard.buffer().await,
        };
        let loan = Loan::new(&self.loans);
        if !small {
            return Some((buf, loan));
        }
        self.shared = Some((buf, loan));
        self.part(bytes)
    }

    /// The first `bytes` of what is left of the shared buffer.
    fn part(&mut self, bytes: usize) -> Option<(Buf, Rc<Loan>)> {
        let (rest, loan) = self.shared.as_mut()?;
        Some((rest.split_to(bytes)?, loan.clone()))
    }
}
