//! The end of a log after a crash: where it is, whether what follows is a torn tail, and cleaning that up.
//!
//! A flush is written only when everything before it is durable. So if a sound beginning of a flush follows something
//! that is not sound, durable bytes were damaged: an error. If none follows, only the last flush is torn, which nobody
//! was told about yet: it is cut after its last whole group. docs/wal-format.md, section 7.
//!
//! A segment is sealed when the one after it is made, durably: after a sealed segment a missing one is an error too.
//!
//! Invariants: [`find_end`] changes nothing. [`clean`] may be cut off at any point and begun anew: what `find_end` says
//! afterwards is the same. After it, nothing that an earlier run left stands behind the end of the log.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;

use mover_base::checksum::{Sha256, Sha256Stream};
use mover_base::{BLOCK_BYTES, Error, Kind, Lsn, Result};
use mover_io::AlignedBytes;

use super::reader::{NoSegment, Segment};
use super::record::{HistorySeed, Parsed, RECORD_HEADER_BYTES, Record, encode_at, parse};
use super::segment::{LOG_BLOCK_BYTES, LOG_DIR, LogIdentity, SegmentFooter};
use super::stream::after;
use super::walk::{Ended, Pace, Walker};
use super::writer::make_durable;
use crate::disk::{Access, Disk, DiskFile};
use crate::failure::source_error;
use crate::wire::{corrupt, is_zero};

/// Bytes that are read at once where there are no records to follow.
const PIECE_BYTES: usize = 1 << 20;

/// How much of `from..end` is read at once.
fn piece_len(from: u64, end: u64) -> usize {
    (end - from).min(PIECE_BYTES as u64) as usize
}

/// Where a log ends, and what stands behind its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// Where the last whole group ends.
    pub end: Lsn,
    /// Where the last whole group ends before the last flush that was seen to begin.
    pub before_flush: Lsn,
    /// Where the next flush begins.
    pub next: Lsn,
    /// What was found behind the end: where, and what is wrong with it. None after a clean stop.
    pub torn: Option<(Lsn, String)>,
    /// Whether that stands where the next flush would begin, and all segments before are sealed: then the flush before was whole.
    pub(crate) is_torn_between: bool,
    /// One more than the largest number of a transaction that was seen; 0 if none was.
    pub next_transaction: u64,
    /// Groups that were seen.
    pub groups: u64,
    /// Segments that are complete but not sealed yet.
    unsealed: Vec<Unsealed>,
    rest: Rest,
    /// Whether nobody wrote behind it: else it is the end of a flush, and not of the log.
    is_last: bool,
}

impl LogEnd {
    /// Whether all segments before the one that the last whole group ends in are sealed.
    pub(crate) fn is_sealed_before(&self, start: Lsn) -> bool {
        self.unsealed.iter().all(|footer| footer.start >= start)
    }

    /// To be asked by whoever changes what stands behind it.
    ///
    /// # Errors
    /// `Internal` if that is the log, which goes on there.
    pub(crate) fn require_last(&self) -> Result<()> {
        match self.is_last {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Internal,
                format!(
                    "the log goes on behind {} and was to be written from there on",
                    self.end
                ),
            )),
        }
    }
}

/// A segment that is complete but not sealed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unsealed {
    start: Lsn,
    /// Where its last record stands.
    end: Lsn,
    /// Of its bytes up to the footer, if they were all looked at.
    sha256: Option<Sha256>,
}

/// What becomes of the segment that the last whole group ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// The log goes on in it.
    Free,
    /// It has no room for another flush: it is ended behind the group.
    Ended,
    /// It is complete, and the log goes on in the next one.
    Complete,
}

/// Finds the end of the log, reading from `from` on: the end of a group, or the beginning of the history's log.
///
/// # Errors
/// `Corrupt` if something before the last flush is damaged; `NotFound` if a segment is missing between others or at the
/// beginning; `Source` if a file cannot be read; `Cancelled` if the disk says that it is to end.
pub fn find_end(disk: &dyn Disk, identity: &LogIdentity, from: Lsn) -> Result<LogEnd> {
    find_end_behind(disk, identity, from, Lsn(u64::MAX))
}

/// The same, content with the first end of a flush at or behind `enough` that another flush follows: of a log that is written
/// while it is read, the end may never be reached. Nothing can be written behind what was found so.
///
/// # Errors
/// Those of [`find_end`], as far as it looked.
pub fn find_end_behind(
    disk: &dyn Disk,
    identity: &LogIdentity,
    from: Lsn,
    enough: Lsn,
) -> Result<LogEnd> {
    let mut search = Search::begin(disk, identity, from, enough, true)?;
    search.run()?;
    Ok(search.finish())
}

/// The same for whoever does not write there: it reads nothing that lies before `from` to seal a segment by. Also gives what was
/// found if the search failed: `before_flush` is where another one may begin, and `torn` says whether it failed because
/// something did not look sound, which a flush that was under way does not, or one that came meanwhile.
///
/// # Errors
/// Those of [`find_end`] before there is anything to look at.
pub(crate) fn look_for_end(
    disk: &dyn Disk,
    identity: &LogIdentity,
    from: Lsn,
    enough: Lsn,
) -> Result<(LogEnd, Result<()>)> {
    let mut search = Search::begin(disk, identity, from, enough, false)?;
    let outcome = search.run();
    let mut found = search.finish();
    found.is_last = false;
    Ok((found, outcome))
}

/// Where the segments of the history begin that are there, in order.
///
/// # Errors
/// `Source` if the directory cannot be read.
pub fn segments(disk: &dyn Disk, identity: &LogIdentity) -> Result<BTreeSet<Lsn>> {
    let names = disk.list(LOG_DIR).map_err(|error| {
        source_error("the log cannot be listed", LOG_DIR.as_bytes(), error).with_kind(Kind::Source)
    })?;
    let starts = names.iter().filter_map(|name| identity.parse_name(name));
    Ok(starts.collect())
}

struct Search<'d> {
    disk: &'d dyn Disk,
    identity: &'d LogIdentity,
    starts: BTreeSet<Lsn>,
    from: Lsn,
    /// Where it need not be the end of the log.
    enough: Lsn,
    found: LogEnd,
    /// The data of the segment after the last that ended without an open group.
    whole_to: Option<Lsn>,
    /// Where the last sealed segment ends that was seen, or else where the first one begins. The segment here was made, durably,
    /// before that was sealed, and so was the whole of any flush that began before.
    sealed_to: Lsn,
    /// Whether segments are to be sealed by what is found: then those that are not are hashed from their beginning on.
    seals: bool,
    pace: Pace<'d>,
}

impl<'d> Search<'d> {
    fn begin(
        disk: &'d dyn Disk,
        identity: &'d LogIdentity,
        from: Lsn,
        enough: Lsn,
        seals: bool,
    ) -> Result<Self> {
        Ok(Search {
            disk,
            identity,
            starts: segments(disk, identity)?,
            from,
            enough,
            found: LogEnd {
                end: from,
                before_flush: from,
                next: Lsn(0),
                torn: None,
                is_torn_between: false,
                next_transaction: 0,
                groups: 0,
                unsealed: Vec::new(),
                rest: Rest::Free,
                is_last: true,
            },
            whole_to: None,
            sealed_to: identity.size.start_of(from),
            seals,
            pace: Pace::begin(disk, from)?,
        })
    }

    fn run(&mut self) -> Result<()> {
        let size = self.identity.size;
        if !self.identity.holds_records_at(self.from) {
            return Err(corrupt(format!(
                "the log is to be read from {}, where none of this history is",
                self.from
            )));
        }
        let seed = HistorySeed::new(self.identity.history);
        let mut walker = Walker::new(size, seed, self.from);
        let mut previous = None;
        loop {
            let start = size.start_of(walker.at());
            match Segment::try_open(self.disk, self.identity, start) {
                Ok(segment) => {
                    segment.follows(previous)?;
                    match self.segment(segment, &mut walker)? {
                        ControlFlow::Continue(sha256) => previous = sha256,
                        ControlFlow::Break(()) => return Ok(()),
                    }
                    walker.next_segment();
                }
                Err(NoSegment::Missing(error) | NoSegment::Unmade(error))
                    if self.sealed_to == start || self.was_durable(&walker, true) =>
                {
                    return Err(error);
                }
                Err(NoSegment::Missing(error)) => {
                    if self.starts.range(start..).next().is_some() {
                        return Err(error);
                    }
                    return Ok(());
                }
                Err(NoSegment::Unmade(error)) => {
                    let why = error.message().to_owned();
                    return self.torn(walker.at(), &why, false);
                }
                Err(NoSegment::Other(error)) => return Err(error),
            }
        }
    }

    /// Walks through a segment. Goes on, with its SHA-256 if that is known, if the log may go on after it.
    fn segment(
        &mut self,
        mut segment: Segment,
        walker: &mut Walker,
    ) -> Result<ControlFlow<(), Option<Sha256>>> {
        // Of the first one, what lies before the beginning need not be there.
        let whole = walker.at() == self.identity.size.data_of(segment.start());
        let mut window = segment.window(whole || self.seals && !segment.is_sealed())?;
        let failed = |error| segment.failed(error);
        let ended = walker.walk(&mut window, None, failed, |lsn, end, record| {
            self.record(lsn, end, record)
        })?;
        match ended {
            Ended::SegmentEnd { at } => {
                let sha256 = if segment.is_sealed() {
                    self.require_sealed()?;
                    Some(segment.check_seal(at, window.finish())?)
                } else {
                    let sha256 = window.finish();
                    self.found.unsealed.push(Unsealed {
                        start: segment.start(),
                        end: at,
                        sha256,
                    });
                    sha256
                };
                let next = self.identity.size.next_of(segment.start());
                if segment.is_sealed() {
                    self.sealed_to = next;
                }
                if !walker.in_group() {
                    self.whole_to = Some(self.identity.size.data_of(next));
                }
                Ok(ControlFlow::Continue(sha256))
            }
            Ended::Nothing { at } => {
                let sealed = segment.is_sealed() || self.was_durable(walker, true);
                self.note_place(walker, at);
                self.torn(at, "the log ends", sealed)?;
                // Zeros where the next flush would begin are how a log ends that was not torn.
                if !walker.in_group() && self.starts.range(segment.start()..).count() == 1 {
                    self.found.torn = None;
                }
                Ok(ControlFlow::Break(()))
            }
            Ended::Bad { at, why } => {
                let may_begin = at.0.is_multiple_of(LOG_BLOCK_BYTES);
                let sealed = segment.is_sealed() || self.was_durable(walker, may_begin);
                self.note_place(walker, at);
                self.torn(at, why, sealed)?;
                Ok(ControlFlow::Break(()))
            }
            Ended::Reached => {
                self.found.is_last = false;
                Ok(ControlFlow::Break(()))
            }
        }
    }

    /// What is sealed, or begins a flush, behind segments that are complete proves that they were sealed before that: if not when
    /// they were opened, then meanwhile, and their footers say so now.
    fn require_sealed(&mut self) -> Result<()> {
        for left in std::mem::take(&mut self.found.unsealed) {
            let segment = Segment::open(self.disk, self.identity, left.start)?;
            if !segment.is_sealed() {
                return Err(corrupt(
                    "a log segment is not sealed, though a later flush was written",
                )
                .object(self.identity.path(left.start)));
            }
            segment.check_seal(left.end, left.sha256)?;
        }
        Ok(())
    }

    /// Whether what the walk stopped in was durable once: a flush that began before the end of a segment which was sealed after
    /// it. Where another flush `may_begin` and no group is open, the stop may be in that one.
    fn was_durable(&self, walker: &Walker, may_begin: bool) -> bool {
        walker.began_before(self.sealed_to) && (walker.in_group() || !may_begin)
    }

    /// Notes what follows for the flush before from the place where the walk stopped.
    fn note_place(&mut self, walker: &Walker, at: Lsn) {
        let may_begin = at.0.is_multiple_of(LOG_BLOCK_BYTES) && !walker.in_group();
        self.found.is_torn_between = may_begin && self.found.unsealed.is_empty();
    }

    fn record(&mut self, lsn: Lsn, end: Lsn, record: &Record<'_>) -> Result<ControlFlow<()>> {
        self.pace.at(end)?;
        match *record {
            Record::Flush { begin } if begin == lsn => {
                self.require_sealed()?;
                self.found.before_flush = self.found.end;
                if self.found.end >= self.enough {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Record::Commit { transaction, .. } => {
                self.found.next_transaction = self
                    .found
                    .next_transaction
                    .max(transaction.saturating_add(1));
                self.group(end);
            }
            Record::Checkpoint { .. } | Record::Point { .. } => self.group(end),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    fn group(&mut self, end: Lsn) {
        self.found.end = end;
        self.found.groups += 1;
    }

    /// What stands at `at` is not sound: a torn tail, or an error if durable bytes follow.
    fn torn(&mut self, at: Lsn, why: &str, sealed: bool) -> Result<()> {
        self.found.torn = Some((at, why.to_owned()));
        let start = self.identity.size.start_of(at);
        let damaged = |found: String| {
            Err(
                corrupt(format!("the log is damaged at {at} ({why}): {found}"))
                    .object(self.identity.path(start))
                    .hint("restore from a backup; the log after this place cannot be trusted"),
            )
        };
        if sealed {
            return damaged("it was sealed".to_owned());
        }
        for later in self.starts.range(start..) {
            if let Some(flush) = self.later_flush(*later, at)? {
                return damaged(format!("a later flush stands at {flush}"));
            }
        }
        Ok(())
    }

    /// The first sound beginning of a flush after `at` in the segment at `start`; its footer, if that is sealed.
    fn later_flush(&self, start: Lsn, at: Lsn) -> Result<Option<Lsn>> {
        let size = self.identity.size;
        let path = self.identity.path(start);
        let failed = |error| source_error("a log segment cannot be read", path.as_bytes(), error);
        let file = self.disk.open(&path, Access::ReadDirect).map_err(failed)?;
        let seed = HistorySeed::new(self.identity.history);
        let first = Lsn(at.0.next_multiple_of(LOG_BLOCK_BYTES)).max(size.data_of(start));
        let footer_at = size.footer_of(start);
        let mut piece = AlignedBytes::new(piece_len(first.0, footer_at.0));
        for begins in (first.0..footer_at.0).step_by(PIECE_BYTES) {
            // Asked between pieces, and not told: it is no way forward.
            if begins > first.0 {
                self.disk.advance(0)?;
            }
            let len = piece_len(begins, footer_at.0);
            let read = file.read_at(&mut piece[..len], begins - start.0);
            let read = read.map_err(failed)?;
            let blocks = piece[..read].as_chunks::<BLOCK_BYTES>().0;
            for (lsn, block) in (begins..).step_by(BLOCK_BYTES).zip(blocks) {
                if let Parsed::Record(Record::Flush { begin }, _) = parse(block, Lsn(lsn), seed)
                    && begin > at
                {
                    return Ok(Some(Lsn(lsn)));
                }
            }
            if read < len {
                return Ok(None);
            }
        }
        let mut block = [0; BLOCK_BYTES];
        let read = file.read_at(&mut block, footer_at.0 - start.0);
        let sealed = read.map_err(failed)? == BLOCK_BYTES
            && SegmentFooter::decode(&block).is_ok_and(|f| f.belongs(self.identity, start));
        Ok(sealed.then_some(footer_at))
    }

    fn finish(mut self) -> LogEnd {
        let size = self.identity.size;
        let (end, start) = (self.found.end, size.start_of(self.found.end));
        let complete = self.whole_to.filter(|whole_to| *whole_to > end);
        let (next, rest) = match complete {
            Some(next) => (next, Rest::Complete),
            // Nothing was written yet.
            None if end == size.data_of(start) => (end, Rest::Free),
            None => match after(size, end) {
                (next, false) => (next, Rest::Free),
                (next, true) => (next, Rest::Ended),
            },
        };
        (self.found.next, self.found.rest) = (next, rest);
        let from = match rest {
            Rest::Complete => size.start_of(next),
            Rest::Free | Rest::Ended => start,
        };
        self.found.unsealed.retain(|footer| footer.start < from);
        self.found
    }
}

/// Makes what was found durable and removes what stands behind it: later segments go, complete ones are sealed, the
/// rest of the last one becomes zeros.
///
/// # Errors
/// `Storage` if the files cannot be written.
pub fn clean(disk: &dyn Disk, identity: &LogIdentity, found: &LogEnd) -> Result<()> {
    found.require_last()?;
    let size = identity.size;
    let failed = |path: &str, error: io::Error| {
        Error::new(Kind::Storage, "the log cannot be cleaned up after a crash")
            .object(path)
            .cause(error)
    };
    let last = size.start_of(found.end);
    let next = size.start_of(found.next);
    // After a complete segment the next one stays, if it was made whole.
    let kept = match found.rest {
        Rest::Free | Rest::Ended => last,
        Rest::Complete => match Segment::try_open(disk, identity, next) {
            Ok(_) => next,
            Err(NoSegment::Missing(_) | NoSegment::Unmade(_)) => Lsn(next.0 - 1),
            Err(NoSegment::Other(error)) => return Err(error),
        },
    };
    // From the last on: whatever is left of them when this is cut off has no gap.
    let there = segments(disk, identity)?;
    for start in there.iter().rev().filter(|start| **start > kept) {
        let path = identity.path(*start);
        disk.remove(&path).map_err(|error| failed(&path, error))?;
    }
    disk.sync_dir(LOG_DIR)
        .map_err(|error| failed(LOG_DIR, error))?;
    // A process that was killed may have left unsynced what it wrote last: blocks of the last flush, and footers because of it.
    let first = size.start_of(found.before_flush);
    for start in there.range(first..=kept.max(first)) {
        let path = identity.path(*start);
        let synced = disk.open(&path, Access::Write).and_then(|file| file.sync());
        synced.map_err(|error| failed(&path, error))?;
    }
    // What is kept is cleared and made durable, before anything is sealed.
    let (start, from) = match found.rest {
        Rest::Free | Rest::Ended => (last, Some(found.end)),
        Rest::Complete => (next, (kept == next).then_some(found.next)),
    };
    let mut unsealed = Vec::new();
    for left in &found.unsealed {
        let sha256 = left
            .sha256
            .ok_or_else(|| Error::new(Kind::Internal, "a segment was not hashed to its end"))?;
        unsealed.push(footer_of(identity, left.start, left.end, sha256));
    }
    if let Some(from) = from {
        let path = identity.path(start);
        let mut clear = || {
            let file = disk.open(&path, Access::WriteDirect)?;
            clear_rest(&*file, identity, from, found.rest == Rest::Ended)?;
            if found.rest == Rest::Ended {
                let sha256 = hash_to(&*file, size.footer_of(start).0 - start.0)?.finish();
                unsealed.push(footer_of(identity, start, found.end, sha256));
            }
            Ok(())
        };
        clear().map_err(|error| failed(&path, error))?;
    }
    if found.rest == Rest::Ended || from.is_none() {
        // A sealed segment always has one after it.
        let previous = unsealed
            .last()
            .map(|footer| footer.sha256)
            .ok_or_else(|| Error::new(Kind::Internal, "a sealed segment has none after it"))?;
        make_durable(disk, identity, next, previous)?;
    }
    for footer in &unsealed {
        let path = identity.path(footer.start);
        seal(disk, &path, footer).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

fn footer_of(identity: &LogIdentity, start: Lsn, end: Lsn, sha256: Sha256) -> SegmentFooter {
    SegmentFooter {
        system: identity.system,
        history: identity.history,
        size: identity.size,
        start,
        end,
        sha256,
    }
}

/// Writes the footer of a segment whose records are all there.
fn seal(disk: &dyn Disk, path: &str, footer: &SegmentFooter) -> io::Result<()> {
    let file = disk.open(path, Access::WriteDirect)?;
    // What it covers must be durable before it says so.
    file.sync()?;
    let mut block = AlignedBytes::new(BLOCK_BYTES);
    block.copy_from_slice(&footer.encode());
    let at = footer.size.footer_of(footer.start).0 - footer.start.0;
    file.write_at(&block, at)?;
    file.sync()
}

/// The hash of the first `bytes` of a file, a whole number of blocks.
pub(crate) fn hash_to(file: &dyn DiskFile, bytes: u64) -> io::Result<Sha256Stream> {
    let mut hash = Sha256Stream::new();
    let mut piece = AlignedBytes::new(piece_len(0, bytes));
    let mut at = 0;
    while at < bytes {
        let len = piece_len(at, bytes);
        if file.read_at(&mut piece[..len], at)? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&piece[..len]);
        at += len as u64;
    }
    Ok(hash)
}

/// Zeros from `from` to the end of the file; with `ended` behind the record that ends a segment.
fn clear_rest(
    file: &dyn DiskFile,
    identity: &LogIdentity,
    from: Lsn,
    ended: bool,
) -> io::Result<()> {
    let size = identity.size;
    let end = from.0 - size.start_of(from).0;
    let first = end / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
    let mut piece = AlignedBytes::new(piece_len(first, size.bytes()));
    for at in (first..size.bytes()).step_by(PIECE_BYTES) {
        let piece = &mut piece[..piece_len(at, size.bytes())];
        let read = file.read_at(piece, at)?;
        piece[read..].fill(0);
        let kept = end.saturating_sub(at) as usize;
        let clear = is_zero(&piece[kept..]);
        piece[kept..].fill(0);
        let ends_here = ended && at == first;
        if ends_here {
            let record =
                encode_at(&Record::SegmentEnd, from, identity.history).map_err(io::Error::other)?;
            piece[kept..kept + RECORD_HEADER_BYTES].copy_from_slice(&record);
        }
        if !clear || ends_here {
            file.write_at(piece, at)?;
        }
    }
    file.sync()
}
