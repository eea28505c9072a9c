//! An end of a log that is written while it is looked for.
//!
//! What was read a moment ago may be old: bytes that were read ahead, a footer that was read before the segment was sealed. So
//! a log that is sound can look as if it were damaged. Whatever does not look sound is looked at again, from the last flush
//! that was seen to begin, with nothing kept of what was read before; what is damaged stays so.
//!
//! Invariants: the end that is given out is the end of a flush, or of a group within one of which no more was to be seen: it was
//! being written, and looked like one that ends there. Whoever copies the log up to an end clears what came to stand behind it
//! meanwhile ([`clear_behind`]). Where something does not look sound, no more of the log is read
//! again than what lies behind that last flush, however fast the log grows: what was not there at the first look is not waited
//! for.

use std::thread::sleep;
use std::time::Duration;

use mover_base::{Error, Kind, Lsn, Result};

use super::record::{HistorySeed, Parsed, Record, parse};
use super::segment::LogIdentity;
use super::tail::{look_for_end, segments};
use crate::disk::Disk;

/// How often the log is looked at that does not reach far enough, and how long each time is waited.
const TRIES: usize = 500;
const PAUSE: Duration = Duration::from_millis(10);
/// How often in a row the same must be found for damage.
const DAMAGE_TRIES: usize = 2;

/// Clears what stands behind the `end` of a copy of the log in its last block, which `bytes` show from there on; but not the
/// record that ends the segment, which may stand nowhere else where the flush began in an earlier one.
pub fn clear_behind(identity: &LogIdentity, end: Lsn, bytes: &mut [u8]) {
    let seed = HistorySeed::new(identity.history);
    let kept = match parse(bytes, end, seed) {
        Parsed::Record(Record::SegmentEnd, len) => len,
        _ => 0,
    };
    bytes[kept..].fill(0);
}

/// Finds an end of the log behind `newest` and behind everything that was committed before this was called, reading from
/// `from` on (the end of a group). It is the end of a group, and need not be durable yet.
///
/// # Errors
/// `Corrupt` if the log is damaged, or ends before `newest`; `NotFound` if a segment is missing; `Source` if a file cannot
/// be read; `Cancelled` if the disk says that it is to end.
pub fn find_end_beside_writer(
    disk: &dyn Disk,
    identity: &LogIdentity,
    from: Lsn,
    newest: Lsn,
) -> Result<Lsn> {
    let size = identity.size;
    let last = segments(disk, identity)?.last().copied();
    let behind = Lsn(newest.0.saturating_add(1));
    let enough = last.map_or(from, |start| size.data_of(size.next_of(start)));
    let (mut from, mut enough) = (from, enough.max(behind));
    let mut damage: Option<(Error, usize)> = None;
    // The end of a flush behind which nothing sound was found at the last look.
    let mut last_whole: Option<Lsn> = None;
    for _ in 0..TRIES {
        let (found, outcome) = look_for_end(disk, identity, from, enough)?;
        match outcome {
            Ok(()) => {
                damage = None;
                // Behind a flush that is under way nothing is certain; before it everything is. One that is written
                // and whose segments are not sealed yet is under way, too. What stays as it is was torn for good: the flush
                // before it was whole, though none was seen to begin behind.
                let sealed = found.is_sealed_before(size.start_of(found.end));
                let whole = found.is_torn_between.then_some(found.end);
                let end = match found.torn {
                    None if sealed => found.end,
                    Some(_) if whole.is_some() && whole == last_whole => found.end,
                    _ => found.before_flush,
                };
                let is_first = whole.is_some() && last_whole.is_none();
                last_whole = whole;
                if end > newest && (found.torn.is_none() || !is_first) {
                    return Ok(end);
                }
            }
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                let times = match &damage {
                    Some((before, times)) if before.to_string() == error.to_string() => times + 1,
                    _ => 1,
                };
                if times == DAMAGE_TRIES {
                    return Err(error);
                }
                damage = Some((error, times));
            }
            Err(error) => return Err(error),
        }
        if found.torn.is_some() {
            // What was committed before this was called stood in the log when it was looked at, and so before the place where
            // nothing sound was found.
            enough = enough.min(found.end.max(behind));
        }
        // Segments that do not belong together are found only by who reads them as a whole.
        if found.torn.is_some() || damage.is_none() {
            from = found.before_flush;
        }
        sleep(PAUSE);
    }
    let ends = || {
        Error::new(
            Kind::Corrupt,
            format!("a page of position {newest} was found, and the log ends before that"),
        )
        .object(identity.path(size.start_of(newest)))
        .hint("part of the log is lost; restore from a backup")
    };
    Err(damage.map_or_else(ends, |(error, _)| error))
}
