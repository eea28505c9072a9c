//! One deterministic sample of each structure.

use mover_base::{HistoryId, Lsn, SystemId, Timestamp};
use mover_source::page::{self, BODY_BYTES, PAGE_BYTES, PageBytes, PageHeader};
use mover_source::pages::{Catalogue, Control};
use mover_source::tracker::{
    Capacity, EpochHeader, Kept, LiveHeader, Reset, TrackerState, Witness,
};
use mover_source::wal::record::{Group, Ranges, Record, TableKind, encode_at};
use mover_source::wal::record::{HistorySeed, Parsed, parse};
use mover_source::wal::segment::{Fork, LogIdentity, SegmentFooter, SegmentHeader, SegmentSize};

pub const SYSTEM: SystemId = SystemId([0x11; 16]);
pub const HISTORY: HistoryId = HistoryId([0x22; 16]);
pub const PARENT: HistoryId = HistoryId([0x33; 16]);
/// Where the sample records stand.
pub const AT: Lsn = Lsn(0x0123_4568);
/// 2026-11-22T18:14:09Z
pub const TIME: Timestamp = Timestamp::from_micros(1_795_371_249_000_000);

pub fn identity() -> LogIdentity {
    LogIdentity {
        system: SYSTEM,
        history: HISTORY,
        fork: Some(Fork {
            parent: PARENT,
            at: Lsn(0x00ff_0008),
        }),
        size: SegmentSize::DEFAULT,
    }
}

/// A body that counts up.
pub fn body() -> [u8; BODY_BYTES] {
    std::array::from_fn(|i| (i % 251) as u8)
}

/// A record of each kind by name, given to `each`, since records borrow.
pub fn records(mut each: impl FnMut(&str, &Record<'_>)) {
    // The ranges come from a record, as a reader has them.
    let mut ranges = vec![0; 8];
    for (offset, bytes) in [(24u16, &b"first"[..]), (100, b"x"), (4090, b"at end")] {
        ranges.extend_from_slice(&offset.to_le_bytes());
        ranges.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        ranges.extend_from_slice(bytes);
    }
    let body = body();
    let time = TIME;
    let with_ranges = delta_of(&ranges[8..]);
    let Parsed::Record(delta, _) = parse(&with_ranges, AT, HistorySeed::new(HISTORY)) else {
        panic!("the sample delta is none");
    };
    each("record-delta.bin", &delta);
    for (name, record) in [
        (
            "record-flush.bin",
            Record::Flush {
                begin: Lsn(0x123_4000),
            },
        ),
        ("record-segment-end.bin", Record::SegmentEnd),
        (
            "record-image.bin",
            Record::Image {
                table: 7,
                page: 0x0102_0304,
                body: &body,
            },
        ),
        (
            "record-create.bin",
            Record::Create {
                table: 7,
                kind: TableKind::Index,
                name: "bestellungen_größe",
            },
        ),
        ("record-drop.bin", Record::Drop { table: 7 }),
        (
            "record-extend.bin",
            Record::Extend {
                table: 7,
                pages: 256,
            },
        ),
        (
            "record-commit.bin",
            Record::Commit {
                transaction: 0x1122_3344_5566_7788,
                time,
                first: Lsn(0x123_4010),
            },
        ),
        (
            "record-checkpoint.bin",
            Record::Checkpoint {
                redo: Lsn(0x120_0000),
                next_transaction: 99,
                time,
            },
        ),
        (
            "record-point.bin",
            Record::Point {
                time,
                name: "before the migration",
            },
        ),
    ] {
        each(name, &record);
    }
}

/// A delta with these ranges, spelled out by hand from the specification.
fn delta_of(ranges: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 16];
    out[4..6].copy_from_slice(&((16 + ranges.len()) as u16).to_le_bytes());
    out[6] = 3;
    out[8..12].copy_from_slice(&7u32.to_le_bytes());
    out[12..16].copy_from_slice(&258u32.to_le_bytes());
    out.extend_from_slice(ranges);
    out.resize(out.len().next_multiple_of(8), 0);
    seal(&mut out, AT);
    out
}

/// Sets a record's checksum as the specification says it: over history, LSN, and all but itself.
pub fn seal(record: &mut [u8], lsn: Lsn) {
    let covered = [&HISTORY.0[..], &lsn.0.to_le_bytes(), &record[4..]].concat();
    let crc = mover_base::checksum::crc32(&covered);
    record[..4].copy_from_slice(&crc.to_le_bytes());
}

pub fn encoded(record: &Record<'_>) -> Vec<u8> {
    encode_at(record, AT, HISTORY).unwrap()
}

pub fn header() -> SegmentHeader {
    SegmentHeader {
        identity: identity(),
        start: Lsn(0x0800_0000),
        previous: std::array::from_fn(|i| i as u8),
    }
}

pub fn footer() -> SegmentFooter {
    SegmentFooter {
        system: SYSTEM,
        history: HISTORY,
        size: SegmentSize::DEFAULT,
        start: Lsn(0x0800_0000),
        end: Lsn(0x0bff_e008),
        sha256: std::array::from_fn(|i| 255 - i as u8),
    }
}

pub fn control() -> Control {
    Control {
        sequence: 5,
        identity: identity(),
        checkpoint: Lsn(0x0400_3000),
        redo: Lsn(0x0400_1000),
        next_transaction: 1234,
    }
}

pub fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::new(SYSTEM, HISTORY, Lsn(0x0400_1000));
    let lsn = Lsn(0x0400_2000);
    for (table, kind, name) in [
        (1, TableKind::Rows, "accounts"),
        (2, TableKind::Rows, "gone"),
        (9, TableKind::Index, "accounts_pkey"),
    ] {
        let record = Record::Create { table, kind, name };
        catalogue.apply(lsn, &record).unwrap();
    }
    catalogue.apply(lsn, &Record::Drop { table: 2 }).unwrap();
    let extend = Record::Extend {
        table: 9,
        pages: 70_000,
    };
    catalogue.apply(lsn, &extend).unwrap();
    catalogue
}

pub fn page() -> PageBytes {
    let mut bytes = [0; PAGE_BYTES];
    bytes[24..].copy_from_slice(&body());
    let header = PageHeader {
        lsn: AT,
        table: 7,
        page: 258,
    };
    page::seal(&mut bytes, header);
    bytes
}

/// Ranges as a group's delta takes them, from ranges as a record has them.
pub fn owned(ranges: Ranges<'_>) -> Vec<(usize, Vec<u8>)> {
    ranges
        .iter()
        .map(|(at, bytes)| (at, bytes.to_vec()))
        .collect()
}

/// The group of the sample log.
pub fn group() -> Group {
    let mut group = Group::new();
    group.create(1, TableKind::Rows, "accounts").unwrap();
    group.extend(1, 2).unwrap();
    group.image(1, 0, &body()).unwrap();
    group
        .delta(1, 0, &[(30, b"new bytes"), (60, b"more")])
        .unwrap();
    group
}

pub fn epoch_header() -> EpochHeader {
    EpochHeader {
        system: SYSTEM,
        history: HISTORY,
        number: 5,
        start: Lsn(0x0400_1000),
        end: Lsn(0x0400_3008),
    }
}

/// The file of the sample epoch, spelled out from the specification: pages 1 and 4,095 of table 7, page 8,200 of table 258.
pub fn epoch_file() -> Vec<u8> {
    let mut out = epoch_header().encode().to_vec();
    for (table, run, pages) in [(7u32, 0u32, &[1usize, 4095][..]), (258, 2, &[8])] {
        out.extend_from_slice(&table.to_le_bytes());
        out.extend_from_slice(&run.to_le_bytes());
        let mut bits = [0u8; 512];
        for page in pages {
            bits[page / 8] |= 1 << (page % 8);
        }
        out.extend_from_slice(&bits);
    }
    let crc = mover_base::checksum::crc32(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

pub fn tracker_state() -> TrackerState {
    let file = epoch_file();
    let header = epoch_header();
    TrackerState {
        system: SYSTEM,
        history: HISTORY,
        live: Some([0x44; 16]),
        epoch: 6,
        start: Lsn(0x0400_2000),
        reset: Reset::LogGone,
        kept: vec![Kept {
            number: header.number,
            start: header.start,
            end: header.end,
            crc: u32::from_le_bytes(file[file.len() - 4..].try_into().unwrap()),
        }],
    }
}

pub fn witness() -> Witness {
    Witness {
        system: SYSTEM,
        history: HISTORY,
        ends: vec![
            (Lsn(0x0400_1000), [0x66; 32]),
            (Lsn(0x0400_2008), [0x77; 32]),
        ],
    }
}

pub fn live_header() -> LiveHeader {
    LiveHeader {
        capacity: Capacity::new(13).unwrap(),
        system: SYSTEM,
        history: HISTORY,
        id: [0x44; 16],
        boot: [0x55; 16],
        device: 0x0801,
        inode: 1_234_567,
    }
}
