//! Walking through the records of one segment: the rules of order that every reader holds.
//!
//! Invariants: a record is handed out only if it and everything before it in the walk is sound; what is not sound ends
//! the walk with its place and the reason, and the caller knows whether that is a torn tail or damage. Memory is one
//! window and what is read ahead for it, whatever the bytes say. A walk can be ended from outside about every MiB ([`Pace`]).

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use mover_base::checksum::{Sha256, Sha256Stream};
use mover_base::{Lsn, Result};
use mover_io::{AHEAD_BYTES, Ahead};

use super::record::{HistorySeed, Parsed, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, Record, parse};
use super::segment::{LOG_BLOCK_BYTES, SegmentSize};
use crate::disk::{Disk, DiskFile};
use crate::wire::is_zero;

/// Bytes that are read at once, and steps in which a walk tells how far it is.
const READ_BYTES: usize = 1 << 20;
/// Bytes that are taken at once of what was read ahead: the copy is looked at while the core's own cache still holds it.
const TAKEN_BYTES: usize = 64 << 10;
/// Bytes that the window shows at least, unless the records end before: the longest record, the longest padding.
const SHOWN_BYTES_MIN: usize = RECORD_BYTES_MAX;

/// How far a walk came, told to the disk whenever it is another [`READ_BYTES`].
pub(crate) struct Pace<'d> {
    disk: &'d dyn Disk,
    told: Lsn,
}

impl<'d> Pace<'d> {
    /// A walk that begins at `from`.
    ///
    /// # Errors
    /// `Cancelled` if it is not to begin.
    pub(crate) fn begin(disk: &'d dyn Disk, from: Lsn) -> Result<Self> {
        disk.advance(0)?;
        Ok(Pace { disk, told: from })
    }

    /// The walk is at `at`.
    ///
    /// # Errors
    /// `Cancelled` if it is to end.
    pub(crate) fn at(&mut self, at: Lsn) -> Result<()> {
        let bytes = at.0.saturating_sub(self.told.0);
        if bytes < READ_BYTES as u64 {
            return Ok(());
        }
        self.told = at;
        self.disk.advance(bytes)
    }
}

/// A part of a segment's file that moves forward.
pub(crate) struct Window {
    file: Arc<dyn DiskFile>,
    /// Reads on while what is shown is looked at. None where there is little to read.
    ahead: Option<Ahead>,
    /// Room for what is shown at least and for what is read at once.
    buffer: Vec<u8>,
    /// How much of the buffer is in use.
    filled: usize,
    /// Place in the file of the first byte in the buffer.
    first: u64,
    /// Where the footer begins: the window ends there.
    limit: u64,
    hash: Option<Sha256Stream>,
}

impl Window {
    /// A window on `file`, whose footer begins at `limit`. With `hash`, all bytes from 0 are read and hashed.
    pub(crate) fn new(file: Box<dyn DiskFile>, limit: u64, hash: bool) -> Self {
        Window {
            file: file.into(),
            ahead: None,
            buffer: vec![0; SHOWN_BYTES_MIN + limit.min(READ_BYTES as u64) as usize],
            filled: 0,
            first: 0,
            limit,
            hash: hash.then(Sha256Stream::new),
        }
    }

    /// The bytes from `offset` on: at least [`SHOWN_BYTES_MIN`], or all up to the footer. Offsets never go back.
    #[inline]
    pub(crate) fn show(&mut self, offset: u64) -> io::Result<&[u8]> {
        let wanted = (offset + SHOWN_BYTES_MIN as u64).min(self.limit);
        while self.first + (self.filled as u64) < wanted {
            self.fill(offset)?;
        }
        Ok(&self.buffer[(offset - self.first) as usize..self.filled])
    }

    #[cold]
    fn fill(&mut self, offset: u64) -> io::Result<()> {
        let end = self.first + self.filled as u64;
        if self.hash.is_none() && offset > end {
            // Nobody wants what lies between.
            (self.first, self.filled) = (offset, 0);
        } else {
            // Less than what is shown at least is left over, or there would be no need for more.
            let dropped = (offset.min(end) - self.first) as usize;
            self.buffer.copy_within(dropped..self.filled, 0);
            self.first += dropped as u64;
            self.filled -= dropped;
        }
        let at = self.first + self.filled as u64;
        if self.ahead.is_none() && self.limit - at > AHEAD_BYTES as u64 {
            // Without a thread each piece is waited for.
            let file = Arc::clone(&self.file);
            self.ahead =
                Ahead::begin(move |piece, at| file.read_at(piece, at), at..self.limit).ok();
        }
        let room = self.buffer.len() - self.filled;
        let bytes = match self.ahead {
            Some(_) => room.min(TAKEN_BYTES),
            None => room,
        };
        let bytes = (self.limit - at).min(bytes as u64) as usize;
        let room = &mut self.buffer[self.filled..self.filled + bytes];
        let read = match &mut self.ahead {
            Some(ahead) => ahead.read(room, at)?,
            None => self.file.read_at(room, at)?,
        };
        if read < bytes {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter than a segment",
            ));
        }
        if let Some(hash) = &mut self.hash {
            hash.update(room);
        }
        self.filled += bytes;
        Ok(())
    }

    /// SHA-256 of all bytes up to the footer, if they were to be hashed. To be asked for behind a segment's end: then
    /// all of them were shown.
    pub(crate) fn finish(self) -> Option<Sha256> {
        debug_assert_eq!(self.first + self.filled as u64, self.limit);
        self.hash.map(Sha256Stream::finish)
    }
}

/// What ended the walk through a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The segment's last record, which begins at `at`.
    SegmentEnd { at: Lsn },
    /// The end that the caller asked for.
    Reached,
    /// Zeros, where the next flush would begin.
    Nothing { at: Lsn },
    /// Something that is not sound.
    Bad { at: Lsn, why: &'static str },
}

/// Where a walk is, and what it knows of the flush and the group that it is in.
#[derive(Debug)]
pub(crate) struct Walker {
    size: SegmentSize,
    seed: HistorySeed,
    at: Lsn,
    flush: Option<Lsn>,
    group: Option<Lsn>,
    /// The next record must begin a flush: padding or a segment's header came before.
    flush_due: bool,
}

/// One step of a walk.
enum Step<'a> {
    Record(Lsn, Record<'a>),
    Padding,
    Ended(Ended),
}

impl Walker {
    /// A walk that begins at `at`, the end of a group or the beginning of a segment's data.
    pub(crate) fn new(size: SegmentSize, seed: HistorySeed, at: Lsn) -> Self {
        let flush_due = size.data_of(size.start_of(at)) == at;
        Walker {
            size,
            seed,
            at,
            flush: None,
            group: None,
            flush_due,
        }
    }

    /// Where the next record is looked for.
    pub(crate) fn at(&self) -> Lsn {
        self.at
    }

    /// Whether records of a group were seen whose commit was not.
    pub(crate) fn in_group(&self) -> bool {
        self.group.is_some()
    }

    /// Whether the flush or the group that it is in began before `lsn`.
    pub(crate) fn began_before(&self, lsn: Lsn) -> bool {
        self.flush.is_some_and(|begin| begin < lsn) || self.group.is_some_and(|first| first < lsn)
    }

    /// Goes on in the next segment.
    pub(crate) fn next_segment(&mut self) {
        self.at = self
            .size
            .data_of(self.size.next_of(self.size.start_of(self.at)));
        self.flush_due = true;
    }

    /// Looks at what stands at `self.at`, which `shown` begins with.
    #[inline]
    fn step<'a>(&mut self, shown: &'a [u8]) -> Step<'a> {
        let (at, aligned) = (self.at, self.at.0.is_multiple_of(LOG_BLOCK_BYTES));
        let bad = |why| Step::Ended(Ended::Bad { at, why });
        match parse(shown, at, self.seed) {
            Parsed::Bad(why) => bad(why),
            Parsed::Nothing if aligned => Step::Ended(Ended::Nothing { at }),
            Parsed::Nothing => {
                let len = at.0.next_multiple_of(LOG_BLOCK_BYTES) - at.0;
                if !is_zero(&shown[..len as usize]) {
                    return bad("padding is not zero");
                }
                if self.group.is_some() {
                    return bad("a transaction ends without its commit");
                }
                self.at.0 += len;
                self.flush_due = true;
                if self.at == self.size.footer_of(self.size.start_of(at)) {
                    return bad("a segment ends without the record for that");
                }
                Step::Padding
            }
            Parsed::Record(record, len) => match self.check(at, aligned, &record) {
                Err(why) => bad(why),
                Ok(()) if matches!(record, Record::SegmentEnd) => {
                    Step::Ended(Ended::SegmentEnd { at })
                }
                Ok(()) if !self.leaves_room(at, len) => bad("no room is left for a segment's end"),
                Ok(()) => {
                    self.at.0 += len as u64;
                    Step::Record(at, record)
                }
            },
        }
    }

    /// Whether the record that ends a segment fits behind one of `len` bytes at `at`.
    fn leaves_room(&self, at: Lsn, len: usize) -> bool {
        let footer = self.size.footer_of(self.size.start_of(at));
        at.0 + (len + RECORD_HEADER_BYTES) as u64 <= footer.0
    }

    /// Holds the rules of order, and notes what follows from the record.
    #[inline]
    fn check(&mut self, at: Lsn, aligned: bool, record: &Record<'_>) -> Result<(), &'static str> {
        if self.flush_due && !matches!(record, Record::Flush { .. }) {
            return Err("a flush begins without the record for that");
        }
        self.flush_due = false;
        match record {
            Record::Flush { begin } if *begin == at => {
                if !aligned {
                    return Err("a flush does not begin at a block");
                }
                if self.group.is_some() {
                    return Err("a flush begins within a transaction");
                }
                self.flush = Some(at);
            }
            Record::Flush { begin } => {
                let first = at == self.size.data_of(self.size.start_of(at));
                let known = self.flush.is_none_or(|flush| flush == *begin);
                if !first || !known || *begin > at {
                    return Err("a flush goes on where it cannot");
                }
                self.flush = Some(*begin);
            }
            Record::SegmentEnd => {}
            Record::Delta { .. }
            | Record::Image { .. }
            | Record::Create { .. }
            | Record::Drop { .. }
            | Record::Extend { .. } => {
                self.group.get_or_insert(at);
            }
            Record::Commit { first, .. } => {
                if self.group.take() != Some(*first) {
                    return Err("a commit does not belong to the records before it");
                }
            }
            Record::Checkpoint { .. } | Record::Point { .. } => {
                if self.group.is_some() {
                    return Err("a checkpoint or named point stands within a transaction");
                }
            }
        }
        Ok(())
    }

    /// Walks to the end of the segment, to `stop`, or to the first thing that is not sound, and gives every record to
    /// `visit` with where it begins and ends. `visit` may end it, too.
    ///
    /// # Errors
    /// Those of reading, as `failed` makes them, and those of `visit`.
    pub(crate) fn walk(
        &mut self,
        window: &mut Window,
        stop: Option<Lsn>,
        failed: impl Fn(io::Error) -> mover_base::Error,
        mut visit: impl FnMut(Lsn, Lsn, &Record<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<Ended> {
        let start = self.size.start_of(self.at);
        loop {
            let shown = window.show(self.at.0 - start.0).map_err(&failed)?;
            match self.step(shown) {
                Step::Padding => {}
                Step::Ended(Ended::SegmentEnd { at }) => {
                    return self.rest_is_zero(window, start, at).map_err(&failed);
                }
                Step::Ended(ended) => return Ok(ended),
                Step::Record(at, record) => {
                    if stop.is_some_and(|stop| self.at > stop) {
                        let why = "the end of the range is not the end of a transaction";
                        return Ok(Ended::Bad { at, why });
                    }
                    if visit(at, self.at, &record)?.is_break() {
                        return Ok(Ended::Reached);
                    }
                    let ends_group = matches!(
                        record,
                        Record::Commit { .. } | Record::Checkpoint { .. } | Record::Point { .. }
                    );
                    if ends_group && stop == Some(self.at) {
                        return Ok(Ended::Reached);
                    }
                }
            }
        }
    }

    /// After a segment's last record nothing may stand.
    fn rest_is_zero(&self, window: &mut Window, start: Lsn, at: Lsn) -> io::Result<Ended> {
        let mut offset = at.0 - start.0 + RECORD_HEADER_BYTES as u64;
        while offset < window.limit {
            let shown = window.show(offset)?;
            if !is_zero(shown) {
                let why = "something follows the end of a segment";
                return Ok(Ended::Bad { at, why });
            }
            offset += shown.len() as u64;
        }
        Ok(Ended::SegmentEnd { at })
    }
}
