//! Records: the units of the log.
//!
//! Invariants: a record's checksum covers its history and its LSN, so that the same bytes at another place or in another
//! history do not verify; every record has exactly one encoding; nothing is allocated to decode one. The layout is in
//! docs/wal-format.md, section 5.

use mover_base::checksum::crc32_continue;
use mover_base::{Error, HistoryId, Kind, Lsn, Result, Timestamp, checksum};

use crate::page::{BODY_BYTES, PAGE_BYTES, PAGE_HEADER_BYTES};
use crate::wire::{i64_at, is_zero, u16_at, u32_at, u64_at};

/// Bytes before a record's payload.
pub const RECORD_HEADER_BYTES: usize = 8;
/// The longest record, header included.
pub const RECORD_BYTES_MAX: usize = 4096;
/// Records begin at multiples of this.
pub const RECORD_ALIGN: usize = 8;
/// The longest name of a table or point, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a page change besides its ranges: header, table, page.
const CHANGE_FIXED_BYTES: usize = RECORD_HEADER_BYTES + 8;
/// Bytes before each range of a delta: offset and length.
const RANGE_HEADER_BYTES: usize = 4;

/// What a table holds. The log only carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TableKind {
    /// Rows.
    Rows = 1,
    /// An index over the rows of a table.
    Index = 2,
}

impl TableKind {
    /// The kind with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(TableKind::Rows),
            2 => Some(TableKind::Index),
            _ => None,
        }
    }
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// The beginning of what one flush wrote, or of its part in a segment.
    Flush {
        /// Where the flush began: here, unless it crossed into this segment.
        begin: Lsn,
    },
    /// Nothing follows in this segment.
    SegmentEnd,
    /// Bytes of a page changed.
    Delta {
        /// The table.
        table: u32,
        /// The page's number.
        page: u32,
        /// What changed.
        ranges: Ranges<'a>,
    },
    /// The whole body of a page as it is now.
    Image {
        /// The table.
        table: u32,
        /// The page's number.
        page: u32,
        /// The body.
        body: &'a [u8; BODY_BYTES],
    },
    /// A table was made, with no pages.
    Create {
        /// Its id, which no table of this database had before.
        table: u32,
        /// What it holds.
        kind: TableKind,
        /// Its name.
        name: &'a str,
    },
    /// A table is gone, with all its pages.
    Drop {
        /// The table.
        table: u32,
    },
    /// A table has more pages than before; the new ones are zeros.
    Extend {
        /// The table.
        table: u32,
        /// How many pages it has now.
        pages: u32,
    },
    /// The end of a transaction: all records since `first` happened.
    Commit {
        /// The database's number of the transaction.
        transaction: u64,
        /// When, by the database's clock, which may go backwards.
        time: Timestamp,
        /// Where the transaction's first record begins.
        first: Lsn,
    },
    /// Pages are on disk as far as the log went at `redo`.
    Checkpoint {
        /// Where redo begins after a crash.
        redo: Lsn,
        /// No transaction so far has this number or a larger one.
        next_transaction: u64,
        /// When.
        time: Timestamp,
    },
    /// A name for this position.
    Point {
        /// When.
        time: Timestamp,
        /// The name.
        name: &'a str,
    },
}

const FLUSH: u8 = 1;
const SEGMENT_END: u8 = 2;
const DELTA: u8 = 3;
const IMAGE: u8 = 4;
const CREATE: u8 = 5;
const DROP: u8 = 6;
const EXTEND: u8 = 7;
const COMMIT: u8 = 8;
const CHECKPOINT: u8 = 9;
const POINT: u8 = 10;

/// The changed ranges of a delta, checked: in order, not empty, apart from each other, within the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges<'a>(&'a [u8]);

impl<'a> Ranges<'a> {
    /// Each range as its offset in the page (header included) and its new bytes.
    pub fn iter(self) -> impl Iterator<Item = (usize, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest.len() < RANGE_HEADER_BYTES {
                return None;
            }
            let (offset, len) = (u16_at(rest, 0), u16_at(rest, 2));
            let (bytes, after) = rest[RANGE_HEADER_BYTES..].split_at_checked(usize::from(len))?;
            rest = after;
            Some((usize::from(offset), bytes))
        })
    }

    /// Puts the new bytes into a page.
    pub fn apply(self, page: &mut [u8; PAGE_BYTES]) {
        for (offset, bytes) in self.iter() {
            page[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Ranges as a record has them; none if they are not, or not in order and apart.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (mut rest, mut free_from) = (bytes, PAGE_HEADER_BYTES);
        while !rest.is_empty() {
            if rest.len() < RANGE_HEADER_BYTES {
                return None;
            }
            let (offset, len) = (usize::from(u16_at(rest, 0)), usize::from(u16_at(rest, 2)));
            if len == 0 || offset < free_from || offset + len > PAGE_BYTES {
                return None;
            }
            rest = rest[RANGE_HEADER_BYTES..].get(len..)?;
            // Ranges that touch are one range.
            free_from = offset + len + 1;
        }
        (!bytes.is_empty()).then_some(Ranges(bytes))
    }
}

/// The CRC-32 of a history's id: where the checksum of each of its records begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistorySeed(u32);

impl HistorySeed {
    /// The seed of `history`.
    pub fn new(history: HistoryId) -> Self {
        HistorySeed(checksum::crc32(&history.0))
    }

    /// The checksum of the record whose padded bytes (all of them) stand at `lsn`.
    #[inline]
    fn crc(self, lsn: Lsn, padded: &[u8]) -> u32 {
        crc32_continue(crc32_continue(self.0, &lsn.0.to_le_bytes()), &padded[4..])
    }
}

/// What stands at a place where a record may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A record, and how many bytes it takes with its padding.
    Record(Record<'a>, usize),
    /// Zeros: no record.
    Nothing,
    /// Neither; the reason.
    Bad(&'static str),
}

/// Looks at the record that begins at the front of `bytes`, which stand at `lsn`.
#[inline]
pub fn parse(bytes: &[u8], lsn: Lsn, seed: HistorySeed) -> Parsed<'_> {
    let Some(header) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else {
        return Parsed::Bad("a record ends early");
    };
    if *header == [0; RECORD_HEADER_BYTES] {
        return Parsed::Nothing;
    }
    let len = usize::from(u16_at(header, 4));
    if !(RECORD_HEADER_BYTES..=RECORD_BYTES_MAX).contains(&len) {
        return Parsed::Bad("a record's length is out of bounds");
    }
    let padded_len = len.next_multiple_of(RECORD_ALIGN);
    let Some(padded) = bytes.get(..padded_len) else {
        return Parsed::Bad("a record ends early");
    };
    if u32_at(padded, 0) != seed.crc(lsn, padded) {
        return Parsed::Bad("a record does not match its checksum");
    }
    if header[7] != 0 || !is_zero(&padded[len..]) {
        return Parsed::Bad("a record's reserved bytes are not zero");
    }
    match decode_payload(header[6], &padded[RECORD_HEADER_BYTES..len]) {
        Some(record) => Parsed::Record(record, padded_len),
        None => Parsed::Bad("a record's contents break the rules of its kind"),
    }
}

#[inline]
fn decode_payload(kind: u8, payload: &[u8]) -> Option<Record<'_>> {
    let exactly = |len: usize| (payload.len() == len).then_some(());
    Some(match kind {
        FLUSH => {
            exactly(8)?;
            Record::Flush {
                begin: Lsn(u64_at(payload, 0)),
            }
        }
        SEGMENT_END => {
            exactly(0)?;
            Record::SegmentEnd
        }
        DELTA..=EXTEND => {
            let (table, rest) = payload.split_first_chunk()?;
            let table = u32::from_le_bytes(*table);
            return (table != 0).then(|| decode_change(kind, table, rest))?;
        }
        COMMIT => {
            exactly(24)?;
            Record::Commit {
                transaction: u64_at(payload, 0),
                time: Timestamp::from_micros(i64_at(payload, 8)),
                first: Lsn(u64_at(payload, 16)),
            }
        }
        CHECKPOINT => {
            exactly(24)?;
            Record::Checkpoint {
                redo: Lsn(u64_at(payload, 0)),
                next_transaction: u64_at(payload, 8),
                time: Timestamp::from_micros(i64_at(payload, 16)),
            }
        }
        POINT => {
            let (time, name) = payload.split_first_chunk()?;
            Record::Point {
                time: Timestamp::from_micros(i64::from_le_bytes(*time)),
                name: decode_name(name)?,
            }
        }
        _ => return None,
    })
}

/// A record of what a transaction changed; `rest` is its payload behind the table's id.
fn decode_change(kind: u8, table: u32, rest: &[u8]) -> Option<Record<'_>> {
    Some(match kind {
        DELTA => {
            let (page, ranges) = rest.split_first_chunk()?;
            Record::Delta {
                table,
                page: u32::from_le_bytes(*page),
                ranges: Ranges::decode(ranges)?,
            }
        }
        IMAGE => {
            let (page, body) = rest.split_first_chunk()?;
            Record::Image {
                table,
                page: u32::from_le_bytes(*page),
                body: body.try_into().ok()?,
            }
        }
        CREATE => {
            let (code, name) = rest.split_first()?;
            Record::Create {
                table,
                kind: TableKind::from_code(*code)?,
                name: decode_name(name)?,
            }
        }
        DROP if rest.is_empty() => Record::Drop { table },
        EXTEND => {
            let pages = u32::from_le_bytes(rest.try_into().ok()?);
            (pages != 0).then_some(Record::Extend { table, pages })?
        }
        _ => return None,
    })
}

fn decode_name(bytes: &[u8]) -> Option<&str> {
    let fits = (1..=NAME_BYTES_MAX).contains(&bytes.len());
    std::str::from_utf8(bytes).ok().filter(|_| fits)
}

/// Appends a record whose checksum is still 0, padded; [`place`] sets that when its LSN is known.
///
/// # Errors
/// `Usage` if the record breaks a rule of its kind: what a reader would refuse is not written.
pub(crate) fn encode(record: &Record<'_>, out: &mut Vec<u8>) -> Result<()> {
    let first = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
    let kind = encode_payload(record, out);
    let len = out.len() - first;
    if len > RECORD_BYTES_MAX || decode_payload(kind, &out[first + RECORD_HEADER_BYTES..]).is_none()
    {
        out.truncate(first);
        return Err(
            Error::new(Kind::Usage, "a log record breaks the rules of its kind")
                .hint("see docs/wal-format.md, section 5; a change of most of a page is an image"),
        );
    }
    out[first + 4..first + 6].copy_from_slice(&(len as u16).to_le_bytes());
    out[first + 6] = kind;
    out.resize(first + len.next_multiple_of(RECORD_ALIGN), 0);
    Ok(())
}

fn encode_payload(record: &Record<'_>, out: &mut Vec<u8>) -> u8 {
    let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
    match record {
        Record::Flush { begin } => {
            put(&begin.0.to_le_bytes());
            FLUSH
        }
        Record::SegmentEnd => SEGMENT_END,
        Record::Delta {
            table,
            page,
            ranges,
        } => {
            put(&table.to_le_bytes());
            put(&page.to_le_bytes());
            put(ranges.0);
            DELTA
        }
        Record::Image { table, page, body } => {
            put(&table.to_le_bytes());
            put(&page.to_le_bytes());
            put(&body[..]);
            IMAGE
        }
        Record::Create { table, kind, name } => {
            put(&table.to_le_bytes());
            put(&[*kind as u8]);
            put(name.as_bytes());
            CREATE
        }
        Record::Drop { table } => {
            put(&table.to_le_bytes());
            DROP
        }
        Record::Extend { table, pages } => {
            put(&table.to_le_bytes());
            put(&pages.to_le_bytes());
            EXTEND
        }
        Record::Commit {
            transaction,
            time,
            first,
        } => {
            put(&transaction.to_le_bytes());
            put(&time.as_micros().to_le_bytes());
            put(&first.0.to_le_bytes());
            COMMIT
        }
        Record::Checkpoint {
            redo,
            next_transaction,
            time,
        } => {
            put(&redo.0.to_le_bytes());
            put(&next_transaction.to_le_bytes());
            put(&time.as_micros().to_le_bytes());
            CHECKPOINT
        }
        Record::Point { time, name } => {
            put(&time.as_micros().to_le_bytes());
            put(name.as_bytes());
            POINT
        }
    }
}

/// Sets the checksum of an encoded record that now stands at `lsn`.
pub(crate) fn place(padded: &mut [u8], lsn: Lsn, seed: HistorySeed) {
    let crc = seed.crc(lsn, padded);
    padded[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Bytes that an encoded record takes, by its header.
pub(crate) fn padded_len(encoded: &[u8]) -> usize {
    usize::from(u16_at(encoded, 4)).next_multiple_of(RECORD_ALIGN)
}

/// Encodes `record` for its place in a history: what a writer of another language would put there.
///
/// # Errors
/// `Usage` if the record breaks a rule of its kind.
pub fn encode_at(record: &Record<'_>, lsn: Lsn, history: HistoryId) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    encode(record, &mut out)?;
    place(&mut out, lsn, HistorySeed::new(history));
    Ok(out)
}

/// The most bytes that [`Group`] takes: a transaction's records together.
pub const GROUP_BYTES_MAX: usize = 64 << 20;

/// The changes of one transaction, in order, encoded but for their checksums.
#[derive(Debug, Default, Clone)]
pub struct Group {
    bytes: Vec<u8>,
    records: usize,
}

impl Group {
    /// No changes yet.
    pub fn new() -> Self {
        Group::default()
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Forgets all changes and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records = 0;
    }

    /// Bytes of page `page` changed to what `ranges` say: offsets in the page, in order and apart from each other.
    ///
    /// # Errors
    /// `Usage` if they are not, lie outside of the page's body, or make a record longer than [`RECORD_BYTES_MAX`]
    /// ([`delta_fits`] tells what does not); `Limit` if the group is full.
    pub fn delta(&mut self, table: u32, page: u32, ranges: &[(usize, &[u8])]) -> Result<()> {
        let mut bytes = Vec::with_capacity(ranges.iter().map(|(_, new)| 4 + new.len()).sum());
        for (offset, new) in ranges {
            // What does not fit 16 bits is outside of the page; encode() refuses the end of it.
            bytes.extend_from_slice(&u16::try_from(*offset).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend_from_slice(&u16::try_from(new.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend_from_slice(new);
        }
        self.push(&Record::Delta {
            table,
            page,
            ranges: Ranges(&bytes),
        })
    }

    /// All of the body of page `page`.
    ///
    /// # Errors
    /// `Usage` if the table's id is 0; `Limit` if the group is full.
    pub fn image(&mut self, table: u32, page: u32, body: &[u8; BODY_BYTES]) -> Result<()> {
        self.push(&Record::Image { table, page, body })
    }

    /// A new table without pages.
    ///
    /// # Errors
    /// `Usage` if the id is 0 or the name is empty or longer than [`NAME_BYTES_MAX`]; `Limit` if the group is full.
    pub fn create(&mut self, table: u32, kind: TableKind, name: &str) -> Result<()> {
        self.push(&Record::Create { table, kind, name })
    }

    /// A table is dropped.
    ///
    /// # Errors
    /// As for [`image`](Self::image).
    pub fn drop_table(&mut self, table: u32) -> Result<()> {
        self.push(&Record::Drop { table })
    }

    /// A table grew to `pages` pages.
    ///
    /// # Errors
    /// As for [`image`](Self::image).
    pub fn extend(&mut self, table: u32, pages: u32) -> Result<()> {
        self.push(&Record::Extend { table, pages })
    }

    fn push(&mut self, record: &Record<'_>) -> Result<()> {
        if self.bytes.len() + RECORD_BYTES_MAX > GROUP_BYTES_MAX {
            return Err(Error::new(
                Kind::Limit,
                format!("a transaction has more than {GROUP_BYTES_MAX} bytes of log records"),
            )
            .hint("split the transaction"));
        }
        encode(record, &mut self.bytes)?;
        self.records += 1;
        Ok(())
    }

    /// The encoded records.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Whether ranges of these lengths fit a delta; otherwise the change is an image.
pub fn delta_fits(lengths: impl Iterator<Item = usize>) -> bool {
    let bytes: usize = lengths.map(|len| RANGE_HEADER_BYTES + len).sum();
    CHANGE_FIXED_BYTES + bytes <= CHANGE_FIXED_BYTES + BODY_BYTES
}
