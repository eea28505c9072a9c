//! Reading a range of a log whose end is known: for redo, for archives, for extraction of changes.
//!
//! Invariants: everything between two positions is read or the reader fails: a missing, foreign, unsealed or damaged
//! segment is an error that names it, never an early end. Memory is one window and what is read ahead for it.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use mover_base::checksum::Sha256;
use mover_base::{BLOCK_BYTES, Error, Kind, Lsn, LsnRange, Result};
use mover_io::AHEAD_BYTES;

use super::record::{HistorySeed, Record};
use super::segment::{LOG_BLOCK_BYTES, LogIdentity, SegmentFooter, SegmentHeader};
use super::walk::{Ended, Pace, Walker, Window};
use crate::disk::{Access, Disk, DiskFile};
use crate::wire::corrupt;

/// What a reader checks beside every record's CRC-32, the order of records, and that segments belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Nothing else. Each record read is still the one that was written, at its place.
    Records,
    /// The SHA-256 of every segment that is read as a whole, which costs more than all the rest.
    Segments,
}

/// Reads a range of a history.
#[derive(Debug)]
pub struct LogReader {
    disk: Arc<dyn Disk>,
    identity: LogIdentity,
    verify: Verify,
}

impl LogReader {
    /// A reader of the log `identity` on `disk`.
    pub fn new(disk: Arc<dyn Disk>, identity: LogIdentity, verify: Verify) -> Self {
        LogReader {
            disk,
            identity,
            verify,
        }
    }

    /// Gives every record of `range` to `visit`, with where it begins and where the next may begin. Both ends of the
    /// range must be ends of groups, or the beginning of a history's log; what lies before the end must be durable.
    ///
    /// # Errors
    /// `Usage` if the range is backwards or not of this history; `NotFound` if a segment is missing; `Corrupt` if anything
    /// is damaged, belongs elsewhere, or the ends cut a transaction; `Source` if a file cannot be read; `Cancelled` if the disk
    /// says that it is to end; what `visit` says.
    pub fn read(
        &self,
        range: LsnRange,
        mut visit: impl FnMut(Lsn, Lsn, &Record<'_>) -> Result<()>,
    ) -> Result<()> {
        let size = self.identity.size;
        let first = size.data_of(self.identity.first_segment());
        let holds = |lsn| self.identity.holds_records_at(lsn);
        if range.end < range.start || !holds(range.start) || !holds(range.end) {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "the log range {} to {} is not one of this history, which begins at {first}",
                    range.start, range.end
                ),
            ));
        }
        if range.start == range.end {
            return Ok(());
        }
        let seed = HistorySeed::new(self.identity.history);
        let mut walker = Walker::new(size, seed, range.start);
        let mut pace = Pace::begin(&*self.disk, range.start)?;
        let mut visit = |lsn, end, record: &Record<'_>| {
            pace.at(end)?;
            visit(lsn, end, record).map(ControlFlow::Continue)
        };
        let mut previous = None;
        loop {
            let start = size.start_of(walker.at());
            let mut segment = Segment::open(&*self.disk, &self.identity, start)?;
            segment.follows(previous)?;
            // What lies before the range need not be there.
            let whole = walker.at() == size.data_of(start) && size.next_of(start) <= range.end;
            let hash = self.verify == Verify::Segments && whole;
            let mut window = segment.window(hash)?;
            let failed = |error| segment.failed(error);
            match walker.walk(&mut window, Some(range.end), failed, &mut visit)? {
                Ended::Reached => return Ok(()),
                Ended::SegmentEnd { at } if at < range.end => {
                    previous = Some(segment.check_seal(at, window.finish())?);
                    walker.next_segment();
                }
                Ended::SegmentEnd { at } | Ended::Nothing { at } => {
                    let why = "the log ends before the end of the range";
                    return Err(segment.bad(at, why));
                }
                Ended::Bad { at, why } => return Err(segment.bad(at, why)),
            }
        }
    }
}

/// One segment's file, opened, with its header checked.
#[derive(Debug)]
pub(crate) struct Segment {
    path: String,
    identity: LogIdentity,
    start: Lsn,
    header: SegmentHeader,
    file: Option<Box<dyn DiskFile>>,
    footer: Option<SegmentFooter>,
}

/// Why a segment's file is no segment.
pub(crate) enum NoSegment {
    /// There is no such file.
    Missing(Error),
    /// The file is short, or its header is not sound: so a crash leaves it when it was being made.
    Unmade(Error),
    /// It belongs elsewhere or cannot be read.
    Other(Error),
}

impl NoSegment {
    pub(crate) fn into_error(self) -> Error {
        match self {
            NoSegment::Missing(error) | NoSegment::Unmade(error) | NoSegment::Other(error) => error,
        }
    }
}

impl Segment {
    pub(crate) fn open(disk: &dyn Disk, identity: &LogIdentity, start: Lsn) -> Result<Self> {
        Segment::try_open(disk, identity, start).map_err(NoSegment::into_error)
    }

    pub(crate) fn try_open(
        disk: &dyn Disk,
        identity: &LogIdentity,
        start: Lsn,
    ) -> Result<Self, NoSegment> {
        let path = identity.path(start);
        // What a log holds is read once, and has no place in the page cache of a machine that runs a database.
        let access = match identity.size.bytes() > AHEAD_BYTES as u64 {
            true => Access::ReadDirect,
            false => Access::Read,
        };
        let file = match disk.open(&path, access) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let missing = Error::new(Kind::NotFound, "a log segment is missing");
                return Err(NoSegment::Missing(missing.object(path).hint(
                    "put it back (from the archive, if there is one), or make a full backup",
                )));
            }
            Err(error) => return Err(NoSegment::Other(failed(&path, error))),
        };
        let other = |error| NoSegment::Other(failed(&path, error));
        let len = file.len().map_err(other)?;
        if len != identity.size.bytes() {
            let error = corrupt(format!(
                "a log segment has {len} bytes instead of {}",
                identity.size.bytes()
            ));
            return Err(NoSegment::Unmade(error.object(path)));
        }
        let mut block = [0; BLOCK_BYTES];
        file.read_at(&mut block, 0).map_err(other)?;
        let header = SegmentHeader::decode(&block)
            .map_err(|error| NoSegment::Unmade(error.object(path.clone())))?;
        let foreign = || {
            let error = corrupt("a log segment of another database, history or position");
            NoSegment::Other(
                error
                    .object(path.clone())
                    .hint("put the right file in its place, or make a full backup"),
            )
        };
        if (header.identity, header.start) != (*identity, start) {
            return Err(foreign());
        }
        let footer_at = identity.size.bytes() - LOG_BLOCK_BYTES;
        file.read_at(&mut block, footer_at).map_err(other)?;
        let footer = SegmentFooter::decode(&block).ok();
        if footer.is_some_and(|footer| !footer.belongs(identity, start)) {
            return Err(foreign());
        }
        Ok(Segment {
            path,
            identity: *identity,
            start,
            header,
            file: Some(file),
            footer,
        })
    }

    /// Whether the segment is sealed.
    pub(crate) fn is_sealed(&self) -> bool {
        self.footer.is_some()
    }

    /// The segment before must be the one that this one was written after.
    pub(crate) fn follows(&self, previous: Option<Sha256>) -> Result<()> {
        match previous {
            Some(previous) if previous != self.header.previous => {
                Err(corrupt("a log segment does not follow the one before it")
                    .object(self.path.clone()))
            }
            _ => Ok(()),
        }
    }

    /// A window on the file; to be asked for once.
    pub(crate) fn window(&mut self, hash: bool) -> Result<Window> {
        let limit = self.identity.size.bytes() - LOG_BLOCK_BYTES;
        match self.file.take() {
            Some(file) => Ok(Window::new(file, limit, hash)),
            None => Err(Error::new(Kind::Internal, "a log segment is read twice")),
        }
    }

    /// The segment must be sealed and end at `end`; if its SHA-256 was computed it must match. Returns what the footer
    /// says that it is.
    pub(crate) fn check_seal(&self, end: Lsn, sha256: Option<Sha256>) -> Result<Sha256> {
        let wrong = |what| Err(corrupt(what).object(self.path.clone()));
        match self.footer {
            None => wrong("a log segment is not sealed, though the log goes on after it"),
            Some(footer) if footer.end != end => {
                wrong("a log segment's footer does not tell where its records end")
            }
            Some(footer) if sha256.is_some_and(|sha256| sha256 != footer.sha256) => {
                wrong("a log segment does not match its SHA-256")
            }
            Some(footer) => Ok(footer.sha256),
        }
    }

    /// An error about what stands at `at`.
    pub(crate) fn bad(&self, at: Lsn, why: &str) -> Error {
        corrupt(format!("the log is damaged at {at} ({why})")).object(self.path.clone())
    }

    /// An error of reading the file.
    pub(crate) fn failed(&self, error: io::Error) -> Error {
        failed(&self.path, error)
    }

    /// Where the segment begins.
    pub(crate) fn start(&self) -> Lsn {
        self.start
    }
}

fn failed(path: &str, error: io::Error) -> Error {
    crate::failure::source_error("a log segment cannot be read", path.as_bytes(), error)
        .with_kind(Kind::Source)
}
