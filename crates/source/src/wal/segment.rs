//! Segments: the files that a log is cut into, and how positions map to them.
//!
//! Invariants: segments are of one size, a power of two, and begin at its multiples, so that a position's segment and
//! its place in the file follow from the position alone; header and footer name system, history and position, so that
//! no file can stand in for another. The layout is in docs/wal-format.md, sections 3 and 4.

use mover_base::checksum::{Sha256, crc32};
use mover_base::{BLOCK_BYTES, Error, HistoryId, Kind, Lsn, Result, SystemId, hex};

use crate::wire::{array_at, corrupt, is_zero, u16_at, u32_at, u64_at};

/// The directory of the segments in a page store.
pub const LOG_DIR: &str = "wal";
/// The end of a segment's file name.
const SUFFIX: &str = ".wal";
/// The one version of the log that there is.
pub const LOG_VERSION: u16 = 1;
/// Bytes of a segment's header, of its footer, and of what a flush writes at least.
pub const LOG_BLOCK_BYTES: u64 = BLOCK_BYTES as u64;
/// No position is beyond this, so that sums of positions and sizes never overflow.
pub const LSN_MAX: Lsn = Lsn(1 << 62);

const HEADER_MAGIC: [u8; 8] = *b"HELIOSWS";
const FOOTER_MAGIC: [u8; 8] = *b"HELIOSWE";
const CRC_AT: usize = BLOCK_BYTES - 4;

/// A block of the log.
pub type LogBlock = [u8; BLOCK_BYTES];

/// The size of a log's segments: a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSize(u8);

impl SegmentSize {
    /// 64 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(26);
    /// Smallest exponent: 16 KiB, room for two blocks of records.
    pub const LOG2_MIN: u8 = 14;
    /// Largest exponent: 1 GiB.
    pub const LOG2_MAX: u8 = 30;

    /// Segments of 2 to the power of `log2` bytes.
    ///
    /// # Errors
    /// `Usage` unless `log2` is 14 to 30.
    pub fn new(log2: u8) -> Result<Self> {
        if (Self::LOG2_MIN..=Self::LOG2_MAX).contains(&log2) {
            Ok(SegmentSize(log2))
        } else {
            Err(Error::new(
                Kind::Usage,
                format!("the size of log segments, 2^{log2} bytes, is not 2^14 to 2^30"),
            ))
        }
    }

    /// The exponent.
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// Where the segment begins that `lsn` lies in.
    pub const fn start_of(self, lsn: Lsn) -> Lsn {
        Lsn(lsn.0 & !(self.bytes() - 1))
    }

    /// Where the records of the segment at `start` begin.
    pub const fn data_of(self, start: Lsn) -> Lsn {
        Lsn(start.0 + LOG_BLOCK_BYTES)
    }

    /// Where the footer of the segment at `start` stands.
    pub const fn footer_of(self, start: Lsn) -> Lsn {
        Lsn(start.0 + self.bytes() - LOG_BLOCK_BYTES)
    }

    /// Where the segment after that at `start` begins.
    pub const fn next_of(self, start: Lsn) -> Lsn {
        Lsn(start.0 + self.bytes())
    }
}

/// Where a history left its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The parent.
    pub parent: HistoryId,
    /// The position in the parent up to which both are the same: the end of a transaction.
    pub at: Lsn,
}

/// Which log it is: what every segment of it says, and what a reader must know before it reads any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogIdentity {
    /// The database.
    pub system: SystemId,
    /// The history.
    pub history: HistoryId,
    /// Where the history comes from; none for a database's first.
    pub fork: Option<Fork>,
    /// The size of its segments.
    pub size: SegmentSize,
}

impl LogIdentity {
    /// Where the history's first segment begins: at the first boundary of segments that is not before the fork.
    pub const fn first_segment(&self) -> Lsn {
        match self.fork {
            None => Lsn(0),
            Some(fork) => {
                let start = self.size.start_of(fork.at);
                if start.0 == fork.at.0 {
                    start
                } else {
                    self.size.next_of(start)
                }
            }
        }
    }

    /// Path of the segment at `start` in the page store: `wal/<history>-<start, 16 hex digits>.wal`.
    pub fn path(&self, start: Lsn) -> String {
        format!("{LOG_DIR}/{}", self.file_name(start))
    }

    /// Whether a record of this history, or the end of one, can stand at `lsn`.
    pub fn holds_records_at(&self, lsn: Lsn) -> bool {
        if lsn > LSN_MAX || !lsn.0.is_multiple_of(8) {
            return false;
        }
        let start = self.size.start_of(lsn);
        start >= self.first_segment()
            && lsn >= self.size.data_of(start)
            && lsn < self.size.footer_of(start)
    }

    fn file_name(&self, start: Lsn) -> String {
        format!("{}-{:016x}{SUFFIX}", self.history, start.0)
    }

    /// Where the segment of this history with that file name begins; none if it is none of them.
    pub fn parse_name(&self, name: &str) -> Option<Lsn> {
        let digits = name.strip_suffix(SUFFIX)?.rsplit_once('-')?.1;
        let start = Lsn(u64::from_be_bytes(hex::decode(digits)?));
        let ours =
            self.file_name(start) == name && start <= LSN_MAX && self.size.start_of(start) == start;
        ours.then_some(start)
    }
}

/// The first block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log.
    pub identity: LogIdentity,
    /// Where the segment begins.
    pub start: Lsn,
    /// SHA-256 of the segment before it, as in that one's footer; zeros in a history's first segment.
    pub previous: Sha256,
}

impl SegmentHeader {
    /// The bytes of the block.
    pub fn encode(&self) -> LogBlock {
        let mut out = begin_block(&HEADER_MAGIC, &self.identity, self.start);
        out[64..96].copy_from_slice(&self.previous);
        if let Some(fork) = self.identity.fork {
            out[96..112].copy_from_slice(&fork.parent.0);
            out[112..120].copy_from_slice(&fork.at.0.to_le_bytes());
        }
        finish_block(&mut out);
        out
    }

    /// Reads the block.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or breaks a rule.
    pub fn decode(bytes: &LogBlock) -> Result<Self> {
        let (system, history, size, start) = decode_block(bytes, &HEADER_MAGIC, "header")?;
        let (parent, at) = (array_at::<16>(bytes, 96), Lsn(u64_at(bytes, 112)));
        let fork = (parent != [0; 16]).then_some(Fork {
            parent: HistoryId(parent),
            at,
        });
        let header = SegmentHeader {
            identity: LogIdentity {
                system,
                history,
                fork,
                size,
            },
            start,
            previous: array_at(bytes, 64),
        };
        let sound = at <= LSN_MAX
            && (fork.is_some() || at == Lsn(0))
            && start >= header.identity.first_segment()
            && (start != header.identity.first_segment() || header.previous == [0; 32])
            && u64_at(bytes, 56) == 0
            && is_zero(&bytes[120..CRC_AT]);
        if sound {
            Ok(header)
        } else {
            Err(corrupt(
                "a log segment's header breaks a rule of its layout",
            ))
        }
    }
}

/// The last block of a segment, zeros until it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFooter {
    /// The database.
    pub system: SystemId,
    /// The history.
    pub history: HistoryId,
    /// The segment's size.
    pub size: SegmentSize,
    /// Where the segment begins.
    pub start: Lsn,
    /// Where its last record, the segment end, begins.
    pub end: Lsn,
    /// SHA-256 of all bytes before this block.
    pub sha256: Sha256,
}

impl SegmentFooter {
    /// The bytes of the block.
    pub fn encode(&self) -> LogBlock {
        let identity = LogIdentity {
            system: self.system,
            history: self.history,
            fork: None,
            size: self.size,
        };
        let mut out = begin_block(&FOOTER_MAGIC, &identity, self.start);
        out[56..64].copy_from_slice(&self.end.0.to_le_bytes());
        out[64..96].copy_from_slice(&self.sha256);
        finish_block(&mut out);
        out
    }

    /// Reads the block.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or breaks a rule; so is the block of zeros of a segment that is not sealed.
    pub fn decode(bytes: &LogBlock) -> Result<Self> {
        let (system, history, size, start) = decode_block(bytes, &FOOTER_MAGIC, "footer")?;
        let end = Lsn(u64_at(bytes, 56));
        let inside = size.data_of(start) < end && end < size.footer_of(start);
        if !inside || !end.0.is_multiple_of(8) || !is_zero(&bytes[96..CRC_AT]) {
            return Err(corrupt(
                "a log segment's footer breaks a rule of its layout",
            ));
        }
        Ok(SegmentFooter {
            system,
            history,
            size,
            start,
            end,
            sha256: array_at(bytes, 64),
        })
    }

    /// Whether it is that of the segment of `identity` at `start`.
    pub(crate) fn belongs(&self, identity: &LogIdentity, start: Lsn) -> bool {
        (self.system, self.history, self.size, self.start)
            == (identity.system, identity.history, identity.size, start)
    }
}

/// What header and footer have in common.
fn begin_block(magic: &[u8; 8], identity: &LogIdentity, start: Lsn) -> LogBlock {
    let mut out = [0; BLOCK_BYTES];
    out[0..8].copy_from_slice(magic);
    out[8..10].copy_from_slice(&LOG_VERSION.to_le_bytes());
    out[10] = identity.size.log2();
    out[16..32].copy_from_slice(&identity.system.0);
    out[32..48].copy_from_slice(&identity.history.0);
    out[48..56].copy_from_slice(&start.0.to_le_bytes());
    out
}

fn finish_block(block: &mut LogBlock) {
    let crc = crc32(&block[..CRC_AT]);
    block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

fn decode_block(
    bytes: &LogBlock,
    magic: &[u8; 8],
    what: &str,
) -> Result<(SystemId, HistoryId, SegmentSize, Lsn)> {
    let wrong = |problem: &str| Err(corrupt(format!("a log segment's {what} {problem}")));
    if bytes[..8] != magic[..] {
        return wrong("does not begin as one");
    }
    if u32_at(bytes, CRC_AT) != crc32(&bytes[..CRC_AT]) {
        return wrong("does not match its checksum");
    }
    let version = u16_at(bytes, 8);
    if version != LOG_VERSION {
        return wrong(&format!("is of the unknown version {version}"));
    }
    let Ok(size) = SegmentSize::new(bytes[10]) else {
        return wrong("gives an impossible size");
    };
    let (system, history) = (array_at(bytes, 16), array_at(bytes, 32));
    let start = Lsn(u64_at(bytes, 48));
    if system == [0; 16]
        || history == [0; 16]
        || !is_zero(&bytes[11..16])
        || start > LSN_MAX
        || size.start_of(start) != start
    {
        return wrong("breaks a rule of its layout");
    }
    Ok((SystemId(system), HistoryId(history), size, start))
}
