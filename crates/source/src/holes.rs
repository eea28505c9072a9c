//! Which parts of a file hold data.
//!
//! Invariants: whatever is not in a returned range reads as zeros at the time of the call; ranges are in
//! order, do not touch, and are widened to whole blocks of 4 KiB inside the range that was asked for. A
//! file system that cannot tell gives one range. Errors are the system's own: only the caller knows which file
//! it is, and whether of a source or of a target.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use mover_base::BLOCK_BYTES;
use rustix::fs::SeekFrom;
use rustix::io::{Errno, Result};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What to say when [`data_ranges`] fails.
pub const HOLES_UNKNOWN: &str = "the holes of a file cannot be found";

/// [`data_ranges`] returns at most this many ranges (1 MiB of memory); past it, holes are read as zeros.
pub const RANGES_MAX: usize = 1 << 16;

/// Where the first hole from `at` on begins, by one system call that goes through all data up to it: the end of the file counts as a
/// hole, and so does what lies beyond it. What a file takes on its disk does not tell that: space that is kept behind its end, and
/// attributes that do not fit its inode, are counted there as well. `u64::MAX` where the file system cannot tell.
pub fn first_hole(fd: BorrowedFd<'_>, at: u64) -> Result<u64> {
    match rustix::fs::seek(fd, SeekFrom::Hole(at)) {
        Err(Errno::NXIO) => Ok(at),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(u64::MAX),
        found => found,
    }
}

/// The data ranges of `fd` inside `range`, at most [`RANGES_MAX`] of them: if there are more, the last one
/// reaches to the end of what was asked for. A range beyond the end of the file is empty.
pub fn data_ranges(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    collect(fd, range, RANGES_MAX)
}

fn collect(fd: BorrowedFd<'_>, range: Range<u64>, ranges_max: usize) -> Result<Vec<Range<u64>>> {
    let end = range.end;
    let mut found: Vec<Range<u64>> = Vec::new();
    for next in DataRanges::new(fd, range) {
        let next = next?;
        if found.len() < ranges_max {
            found.push(next);
        } else {
            if let Some(last) = found.last_mut() {
                last.end = end;
            }
            break;
        }
    }
    Ok(found)
}

/// Iterates over the data ranges of a file with two system calls per range and no memory to speak of.
pub struct DataRanges<'fd> {
    fd: BorrowedFd<'fd>,
    /// Where to look next; data before it is already returned.
    at: u64,
    end: u64,
    /// A range that the next one may still touch.
    held: Option<Range<u64>>,
}

impl<'fd> DataRanges<'fd> {
    /// Looks for data of `fd` inside `range`. The file's own position is moved, which positioned reads
    /// do not notice.
    pub fn new(fd: BorrowedFd<'fd>, range: Range<u64>) -> DataRanges<'fd> {
        DataRanges {
            fd,
            at: range.start,
            end: range.end,
            held: None,
        }
    }

    /// The next range as the file system tells it, widened to blocks and clipped.
    fn seek(&mut self) -> Result<Option<Range<u64>>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let start = match rustix::fs::seek(self.fd, SeekFrom::Data(self.at)) {
            Ok(start) => start,
            // No data after this point: a hole up to the end of the file, or beyond it.
            Err(Errno::NXIO) => self.end,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(self.rest())),
            Err(error) => return Err(error),
        };
        if start >= self.end {
            self.at = self.end;
            return Ok(None);
        }
        let stop = match rustix::fs::seek(self.fd, SeekFrom::Hole(start)) {
            Ok(stop) => stop,
            // The file was cut between the two calls; the reader finds out.
            Err(Errno::NXIO) => self.end,
            Err(error) => return Err(error),
        };
        let first = (start / BLOCK * BLOCK).max(self.at);
        let stop = stop.max(start + 1);
        let last = stop.checked_next_multiple_of(BLOCK).unwrap_or(stop);
        self.at = last.min(self.end);
        Ok(Some(first..self.at))
    }

    fn rest(&mut self) -> Range<u64> {
        let rest = self.at..self.end;
        self.at = self.end;
        rest
    }
}

impl Iterator for DataRanges<'_> {
    type Item = Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let next = match self.seek() {
                Ok(next) => next,
                Err(error) => {
                    // Nothing more comes after an error.
                    self.at = self.end;
                    self.held = None;
                    return Some(Err(error));
                }
            };
            match (self.held.take(), next) {
                (Some(held), Some(next)) if held.end >= next.start => {
                    self.held = Some(held.start..next.end);
                }
                (Some(held), next) => {
                    self.held = next;
                    return Some(Ok(held));
                }
                (None, Some(next)) => self.held = Some(next),
                (None, None) => return None,
            }
        }
    }
}
