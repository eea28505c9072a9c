//! The writer that a database embeds: transactions in, durable positions out.
//!
//! [`Writer::append`] gives a transaction its place in the log; [`Writer::flush_to`] returns when that place is durable.
//! Who finds no flush under way writes for everybody who has appended so far, the others wait: group commit without a
//! thread of its own.
//!
//! Invariants: at most one flush is under way, and it begins only when everything before it is durable. A block that
//! was written is never written again. After any error of writing or syncing nothing more is written: the kernel may
//! have forgotten what it could not store, and a second fsync would not tell (fsyncgate). Memory is two buffers of at
//! most [`PENDING_BYTES_MAX`] and one group each.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use mover_base::checksum::{Sha256, Sha256Stream};
use mover_base::{BLOCK_BYTES, Error, Kind, Lsn, Result, Timestamp};
use mover_io::AlignedBytes;

use super::record::{Group, HistorySeed, Record, encode};
use super::segment::{
    LOG_BLOCK_BYTES, LOG_DIR, LSN_MAX, LogIdentity, SegmentFooter, SegmentHeader,
};
use super::stream::FlushBuffer;
use super::tail::{LogEnd, hash_to};
use crate::disk::{Access, Disk, DiskFile};
use crate::wire::corrupt;

/// Who appends while so much is not flushed yet flushes first.
pub const PENDING_BYTES_MAX: usize = 16 << 20;
/// Bytes of one write.
const WRITE_BYTES: usize = 1 << 20;

/// Where a group went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Where each of its records begins, the commit not counted: the LSN that the page it changed gets.
    pub records: Vec<Lsn>,
    /// Where the group ends: it is in every part of the log that reaches to here.
    pub end: Lsn,
}

/// Writes a history's log. Shared by the threads of a database.
pub struct Writer {
    identity: LogIdentity,
    seed: HistorySeed,
    shared: Mutex<Shared>,
    changed: Condvar,
    files: Mutex<Files>,
}

struct Shared {
    /// What is appended and not given to a flush yet.
    buffer: Option<FlushBuffer>,
    spare: Vec<u8>,
    /// Where the next buffer begins.
    next: Lsn,
    /// Where the last group ends.
    end: Lsn,
    durable: Lsn,
    flushing: bool,
    failed: Option<String>,
    flushes: u64,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("history", &self.identity.history)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Goes on where [`find_end`](super::find_end) found the end, after [`clean`](super::clean).
    ///
    /// # Errors
    /// `Storage` if the segment to go on in cannot be opened.
    pub fn open(disk: Arc<dyn Disk>, identity: LogIdentity, found: &LogEnd) -> Result<Writer> {
        found.require_last()?;
        let files = Files::open(disk, identity, found.next)?;
        Ok(Writer {
            identity,
            seed: HistorySeed::new(identity.history),
            shared: Mutex::new(Shared {
                buffer: None,
                spare: Vec::new(),
                next: found.next,
                end: found.end,
                durable: found.end,
                flushing: false,
                failed: None,
                flushes: 0,
            }),
            changed: Condvar::new(),
            files: Mutex::new(files),
        })
    }

    /// The log that is written.
    pub fn identity(&self) -> &LogIdentity {
        &self.identity
    }

    /// Where the last group ends.
    pub fn end(&self) -> Lsn {
        lock(&self.shared).end
    }

    /// Up to where the log is durable.
    pub fn durable(&self) -> Lsn {
        lock(&self.shared).durable
    }

    /// How many flushes there were.
    pub fn flushes(&self) -> u64 {
        lock(&self.shared).flushes
    }

    /// Appends a transaction: the changes of `group` and their commit. It is not durable before
    /// [`flush_to`](Self::flush_to) its end.
    ///
    /// # Errors
    /// `Usage` if the group is empty; `Limit` at the end of all positions; `Storage` if the log cannot be written, now
    /// or since an earlier call.
    pub fn append(&self, group: &Group, transaction: u64, time: Timestamp) -> Result<Appended> {
        if group.is_empty() {
            return Err(Error::new(Kind::Usage, "a transaction without changes"));
        }
        self.push(group.bytes(), group.records(), |first| Record::Commit {
            transaction,
            time,
            first,
        })
    }

    /// Appends a checkpoint: pages are on disk as far as the log went at `redo`.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    pub fn checkpoint(&self, redo: Lsn, next_transaction: u64, time: Timestamp) -> Result<Lsn> {
        let record = Record::Checkpoint {
            redo,
            next_transaction,
            time,
        };
        let appended = self.push(&[], 1, |_| record)?;
        appended.records.first().copied().ok_or_else(lost)
    }

    /// Appends a name for the position that it ends at, and returns that.
    ///
    /// # Errors
    /// As for [`append`](Self::append); `Usage` if the name is empty or longer than 255 bytes.
    pub fn point(&self, name: &str, time: Timestamp) -> Result<Lsn> {
        let record = Record::Point { time, name };
        // Refused before anything is appended.
        encode(&record, &mut Vec::new())?;
        Ok(self.push(&[], 1, |_| record)?.end)
    }

    /// Appends encoded records and then the record that ends their group.
    fn push<'r>(
        &self,
        encoded: &[u8],
        records: usize,
        last: impl FnOnce(Lsn) -> Record<'r>,
    ) -> Result<Appended> {
        let mut shared = self.with_room()?;
        if shared.next.0 + 4 * (encoded.len() as u64 + self.identity.size.bytes()) > LSN_MAX.0 {
            return Err(Error::new(Kind::Limit, "the log has no more positions"));
        }
        let mut buffer = match shared.buffer.take() {
            Some(buffer) => buffer,
            None => {
                let memory = std::mem::take(&mut shared.spare);
                FlushBuffer::new(self.identity.size, self.seed, shared.next, memory)?
            }
        };
        let mut lsns = Vec::with_capacity(records);
        let append = || {
            buffer.push_all(encoded, &mut lsns)?;
            let mut end = Vec::with_capacity(64);
            encode(&last(lsns.first().copied().unwrap_or_default()), &mut end)?;
            buffer.push(&end)
        };
        match append() {
            Ok(at) => {
                if encoded.is_empty() {
                    lsns.push(at);
                }
                shared.end = buffer.at();
                shared.buffer = Some(buffer);
                Ok(Appended {
                    records: lsns,
                    end: shared.end,
                })
            }
            Err(error) => {
                // Part of a group stands in the buffer: it must never be written.
                shared.failed = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Waits until little enough is pending.
    fn with_room(&self) -> Result<MutexGuard<'_, Shared>> {
        let mut shared = lock(&self.shared);
        loop {
            shared.check()?;
            let pending = shared.buffer.as_ref().map_or(0, |b| b.bytes().len());
            if pending < PENDING_BYTES_MAX {
                return Ok(shared);
            }
            shared = if shared.flushing {
                self.wait(shared)
            } else {
                self.lead(shared)
            };
        }
    }

    /// Returns when the log is durable up to `lsn`.
    ///
    /// # Errors
    /// `Usage` if nothing was appended there yet; `Storage` if the log could not be written or synced, now or earlier: then
    /// the database must stop, and find out by recovery what is durable.
    pub fn flush_to(&self, lsn: Lsn) -> Result<()> {
        let mut shared = lock(&self.shared);
        if lsn > shared.end {
            let what = format!("the log ends at {}, before {lsn}", shared.end);
            return Err(Error::new(Kind::Usage, what));
        }
        while shared.durable < lsn {
            shared.check()?;
            shared = if shared.flushing {
                self.wait(shared)
            } else {
                self.lead(shared)
            };
        }
        Ok(())
    }

    /// Flushes, and ends the segment, so that all of the log so far is in sealed ones. Nothing happens if it is already.
    ///
    /// # Errors
    /// As for [`flush_to`](Self::flush_to).
    pub fn switch_segment(&self) -> Result<()> {
        let mut shared = lock(&self.shared);
        while shared.flushing {
            shared = self.wait(shared);
        }
        shared.check()?;
        let size = self.identity.size;
        if shared.buffer.is_none() && shared.next == size.data_of(size.start_of(shared.next)) {
            return Ok(());
        }
        let mut buffer = match shared.buffer.take() {
            Some(buffer) => buffer,
            None => FlushBuffer::new(size, self.seed, shared.next, Vec::new())?,
        };
        buffer.end_segment()?;
        shared.buffer = Some(buffer);
        self.lead(shared).check()
    }

    fn wait<'a>(&self, shared: MutexGuard<'a, Shared>) -> MutexGuard<'a, Shared> {
        self.changed
            .wait(shared)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is pending, for everybody.
    fn lead<'a>(&'a self, mut shared: MutexGuard<'a, Shared>) -> MutexGuard<'a, Shared> {
        let Some(mut buffer) = shared.buffer.take() else {
            return shared;
        };
        let end = shared.end;
        match buffer.close() {
            Ok(next) => shared.next = next,
            Err(error) => {
                shared.failed = Some(error.to_string());
                return shared;
            }
        }
        shared.flushing = true;
        drop(shared);
        let outcome = lock(&self.files).write(&buffer);
        let mut shared = lock(&self.shared);
        shared.flushing = false;
        match outcome {
            Ok(()) => {
                shared.durable = end;
                shared.flushes += 1;
                if buffer.bytes().len() <= PENDING_BYTES_MAX {
                    shared.spare = buffer.into_memory();
                }
            }
            Err(error) => shared.failed = Some(error.to_string()),
        }
        self.changed.notify_all();
        shared
    }
}

impl Shared {
    fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(why) => Err(Error::new(
                Kind::Storage,
                format!("the write-ahead log cannot be written ({why})"),
            )
            .hint("stop the database, mend the disk, and start it again: it then recovers from what is durable")),
        }
    }
}

/// The state is whole whenever the lock is free: nothing between taking and giving it back panics half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> Error {
    Error::new(Kind::Internal, "an appended record has no position")
}

/// The segment that is written to.
struct Active {
    start: Lsn,
    path: String,
    file: Box<dyn DiskFile>,
    hash: Sha256Stream,
    /// Up to which offset the hash went.
    hashed: u64,
}

/// A segment that a flush ended.
struct Completed {
    active: Active,
    footer: SegmentFooter,
}

struct Files {
    disk: Arc<dyn Disk>,
    identity: LogIdentity,
    active: Option<Active>,
    staging: AlignedBytes,
}

impl Files {
    fn open(disk: Arc<dyn Disk>, identity: LogIdentity, next: Lsn) -> Result<Files> {
        let start = identity.size.start_of(next);
        let path = identity.path(start);
        let mut files = Files {
            disk,
            identity,
            active: None,
            staging: AlignedBytes::new(WRITE_BYTES),
        };
        let opened = files.disk.open(&path, Access::WriteDirect);
        let file = opened.map_err(|error| failed(&path, error))?;
        let hashed = next.0 - start.0;
        let hash = hash_to(&*file, hashed).map_err(|error| failed(&path, error))?;
        files.active = Some(Active {
            start,
            path,
            file,
            hash,
            hashed,
        });
        Ok(files)
    }

    /// Writes a flush, makes it durable, and seals the segments that it ended.
    fn write(&mut self, buffer: &FlushBuffer) -> Result<()> {
        let size = self.identity.size;
        let mut completed = Vec::new();
        let (mut at, mut rest) = (buffer.begin(), buffer.bytes());
        while !rest.is_empty() {
            let start = size.start_of(at);
            let footer_at = size.footer_of(start);
            let active = self.active.as_mut().ok_or_else(lost)?;
            if active.start != start {
                return Err(corrupt("a flush does not begin in the active segment")
                    .object(active.path.clone()));
            }
            let len = rest.len().min((footer_at.0 - at.0) as usize);
            active.write(&mut self.staging, at.0 - start.0, &rest[..len])?;
            // What follows in the buffer is room for footer and header.
            rest = rest.get(len + 2 * BLOCK_BYTES..).unwrap_or_default();
            at = size.data_of(size.next_of(start));
            if let Some(end) = buffer.end_of_segment(start)
                && let Some(active) = self.active.take()
            {
                let ended = active.complete(&self.identity, end);
                // A sealed segment always has one after it.
                let next = make(
                    &*self.disk,
                    &self.identity,
                    size.next_of(start),
                    ended.footer.sha256,
                )?;
                self.active = Some(next);
                completed.push(ended);
            }
        }
        if !completed.is_empty() {
            let synced = self.disk.sync_dir(LOG_DIR);
            synced.map_err(|error| failed(LOG_DIR, error))?;
        }
        let ended = completed.iter().map(|completed| &completed.active);
        for active in ended.chain(self.active.as_ref()) {
            let synced = active.file.sync();
            synced.map_err(|error| failed(&active.path, error))?;
        }
        // Only now: a sealed segment holds durable groups, all of them whole.
        for ended in &completed {
            ended.seal(&mut self.staging)?;
        }
        Ok(())
    }
}

impl Active {
    /// Writes whole blocks at `offset`, past the page cache.
    fn write(&mut self, staging: &mut AlignedBytes, mut offset: u64, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.hashed = offset + bytes.len() as u64;
        for piece in bytes.chunks(WRITE_BYTES) {
            staging[..piece.len()].copy_from_slice(piece);
            let written = self.file.write_at(&staging[..piece.len()], offset);
            written.map_err(|error| failed(&self.path, error))?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// The segment with the footer that it will get.
    fn complete(mut self, identity: &LogIdentity, end: Lsn) -> Completed {
        let zeros = [0; BLOCK_BYTES];
        let footer_at = identity.size.bytes() - LOG_BLOCK_BYTES;
        while self.hashed < footer_at {
            self.hash.update(&zeros);
            self.hashed += LOG_BLOCK_BYTES;
        }
        let footer = SegmentFooter {
            system: identity.system,
            history: identity.history,
            size: identity.size,
            start: self.start,
            end,
            sha256: self.hash.clone().finish(),
        };
        Completed {
            active: self,
            footer,
        }
    }
}

impl Completed {
    fn seal(&self, staging: &mut AlignedBytes) -> Result<()> {
        staging[..BLOCK_BYTES].copy_from_slice(&self.footer.encode());
        let at = self.footer.size.bytes() - LOG_BLOCK_BYTES;
        let write = || {
            self.active.file.write_at(&staging[..BLOCK_BYTES], at)?;
            self.active.file.sync()
        };
        write().map_err(|error| failed(&self.active.path, error))
    }
}

/// Makes a segment's file, with its header and zeros. Not durable yet.
fn make(disk: &dyn Disk, identity: &LogIdentity, start: Lsn, previous: Sha256) -> Result<Active> {
    let path = identity.path(start);
    let header = SegmentHeader {
        identity: *identity,
        start,
        previous,
    };
    let mut block = AlignedBytes::new(BLOCK_BYTES);
    block.copy_from_slice(&header.encode());
    let make = || {
        disk.open(&path, Access::Create)?
            .allocate(identity.size.bytes())?;
        let file = disk.open(&path, Access::WriteDirect)?;
        file.write_at(&block, 0)?;
        Ok(file)
    };
    let file = make().map_err(|error| failed(&path, error))?;
    let mut hash = Sha256Stream::new();
    hash.update(&block);
    Ok(Active {
        start,
        path,
        file,
        hash,
        hashed: LOG_BLOCK_BYTES,
    })
}

/// Makes a segment's file, durably.
///
/// # Errors
/// `Storage` if it cannot be written.
pub(crate) fn make_durable(
    disk: &dyn Disk,
    identity: &LogIdentity,
    start: Lsn,
    previous: Sha256,
) -> Result<()> {
    let active = make(disk, identity, start, previous)?;
    let sync = || {
        active.file.sync()?;
        disk.sync_dir(LOG_DIR)
    };
    sync().map_err(|error| failed(&active.path, error))
}

/// Begins a history's log: makes its first segment, durably.
///
/// # Errors
/// `Storage` if it cannot be written.
pub(crate) fn begin(disk: &dyn Disk, identity: &LogIdentity) -> Result<()> {
    make_durable(disk, identity, identity.first_segment(), [0; 32])
}

fn failed(path: &str, error: io::Error) -> Error {
    Error::new(Kind::Storage, "a log segment cannot be written")
        .object(path)
        .cause(error)
}
