//! Laying records out in the stream: padding, flush records, the ends of segments.
//!
//! Invariants: what one [`FlushBuffer`] holds is what one flush writes. It begins at a block with a flush record, ends at
//! a block, holds whole groups, and holds every byte of the stream between them; headers and footers of segments that
//! begin or end in it stand there as zeros and are filled in by the writer. A record never crosses a segment, and the
//! room for the record that ends a segment is always left.

use mover_base::{Lsn, Result};

use super::record::{HistorySeed, RECORD_HEADER_BYTES, Record, encode, padded_len, place};
use super::segment::{LOG_BLOCK_BYTES, SegmentSize};

/// The bytes of one flush, in the making.
#[derive(Debug)]
pub(crate) struct FlushBuffer {
    size: SegmentSize,
    seed: HistorySeed,
    begin: Lsn,
    bytes: Vec<u8>,
    /// Where the records that end segments stand, for their footers.
    segment_ends: Vec<Lsn>,
}

/// Where the next flush begins after one that ended with what `end` is; whether the segment must be ended for that.
pub(crate) fn after(size: SegmentSize, end: Lsn) -> (Lsn, bool) {
    let block = Lsn(end.0.next_multiple_of(LOG_BLOCK_BYTES));
    let start = size.start_of(end);
    if block < size.footer_of(start) {
        (block, false)
    } else {
        (size.data_of(size.next_of(start)), true)
    }
}

impl FlushBuffer {
    /// A flush that begins at `begin`, a block of a segment's data; `memory` is used for its bytes.
    pub(crate) fn new(
        size: SegmentSize,
        seed: HistorySeed,
        begin: Lsn,
        mut memory: Vec<u8>,
    ) -> Result<Self> {
        memory.clear();
        let mut buffer = FlushBuffer {
            size,
            seed,
            begin,
            bytes: memory,
            segment_ends: Vec::new(),
        };
        buffer.put(&Record::Flush { begin })?;
        Ok(buffer)
    }

    /// Where it begins.
    pub(crate) fn begin(&self) -> Lsn {
        self.begin
    }

    /// Where the next byte goes.
    pub(crate) fn at(&self) -> Lsn {
        Lsn(self.begin.0 + self.bytes.len() as u64)
    }

    /// Its bytes so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The memory, to be used again.
    pub(crate) fn into_memory(self) -> Vec<u8> {
        self.bytes
    }

    /// Where the segment that begins at `start` ends its records, if this flush ended it.
    pub(crate) fn end_of_segment(&self, start: Lsn) -> Option<Lsn> {
        let mut ends = self.segment_ends.iter();
        ends.find(|end| self.size.start_of(**end) == start).copied()
    }

    /// Appends an encoded record and returns where it begins.
    pub(crate) fn push(&mut self, encoded: &[u8]) -> Result<Lsn> {
        let start = self.size.start_of(self.at());
        let room = self.size.footer_of(start).0 - self.at().0;
        if (encoded.len() + RECORD_HEADER_BYTES) as u64 > room {
            self.end_segment()?;
            let data = self.size.data_of(self.size.next_of(start));
            self.bytes.resize((data.0 - self.begin.0) as usize, 0);
            self.put(&Record::Flush { begin: self.begin })?;
        }
        Ok(self.push_here(encoded))
    }

    /// Appends encoded records, one after the other, and notes where each begins.
    pub(crate) fn push_all(&mut self, mut encoded: &[u8], lsns: &mut Vec<Lsn>) -> Result<()> {
        while !encoded.is_empty() {
            let (record, rest) = encoded.split_at(padded_len(encoded));
            lsns.push(self.push(record)?);
            encoded = rest;
        }
        Ok(())
    }

    /// Ends the segment here, whatever room is left in it; the flush ends with it.
    pub(crate) fn end_segment(&mut self) -> Result<()> {
        self.segment_ends.push(self.at());
        self.put(&Record::SegmentEnd)
    }

    /// Pads the flush to a whole block and returns where the next one begins.
    pub(crate) fn close(&mut self) -> Result<Lsn> {
        let ended = self.end_of_segment(self.size.start_of(self.at()));
        let (mut next, full) = after(self.size, ended.unwrap_or(self.at()));
        if full && ended.is_none() {
            self.end_segment()?;
        }
        if ended.is_some() {
            next = self
                .size
                .data_of(self.size.next_of(self.size.start_of(self.at())));
        }
        let padded = self.bytes.len().next_multiple_of(LOG_BLOCK_BYTES as usize);
        self.bytes.resize(padded, 0);
        Ok(next)
    }

    fn put(&mut self, record: &Record<'_>) -> Result<()> {
        let mut encoded = Vec::with_capacity(16);
        encode(record, &mut encoded)?;
        self.push_here(&encoded);
        Ok(())
    }

    fn push_here(&mut self, encoded: &[u8]) -> Lsn {
        let (lsn, first) = (self.at(), self.bytes.len());
        self.bytes.extend_from_slice(encoded);
        place(&mut self.bytes[first..], lsn, self.seed);
        lsn
    }
}
