//! Records, as they are and with the checksum set right: what parses is the one encoding of its content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_base::{HistoryId, Lsn, checksum};
use mover_source::wal::record::{self, HistorySeed, Parsed, Ranges, Record, encode_at};

const HISTORY: HistoryId = HistoryId([0x22; 16]);
const AT: Lsn = Lsn(0x0123_4568);

fn check(bytes: &[u8]) {
    if let Parsed::Record(record, len) = record::parse(bytes, AT, HistorySeed::new(HISTORY)) {
        assert_eq!(encode_at(&record, AT, HISTORY).unwrap(), bytes[..len]);
        if let Record::Delta { ranges, .. } = record {
            ranges.apply(&mut [0; 4096]);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(ranges) = Ranges::decode(bytes) {
        ranges.apply(&mut [0; 4096]);
    }
    check(bytes);
    let mut bytes = bytes.to_vec();
    if bytes.len() >= 8 {
        let len = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        let padded = len.next_multiple_of(8);
        if let Some(rest) = bytes.get(4..padded) {
            let crc = checksum::crc32(&[&HISTORY.0[..], &AT.0.to_le_bytes(), rest].concat());
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
            check(&bytes);
        }
    }
});
