//! Properties: what is encoded decodes to itself, what decodes has one encoding, and no changed byte passes.

use mover_base::{HistoryId, Lsn, SystemId, Timestamp};
use mover_source::page::{self, PAGE_BYTES, PageHeader};
use mover_source::pages::{Catalogue, Control};
use mover_source::tracker::{EpochHeader, LiveHeader, TrackerState, WITNESSES_MAX, Witness};
use mover_source::wal::record::{Group, HistorySeed, Parsed, Record, TableKind, encode_at, parse};
use mover_source::wal::segment::{Fork, LogIdentity, SegmentFooter, SegmentHeader, SegmentSize};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::samples::*;

fn any_identity() -> impl Strategy<Value = LogIdentity> {
    let ids = (1u8.., 1u8..).prop_map(|(a, b)| (SystemId([a; 16]), HistoryId([b; 16])));
    let fork = proptest::option::of((1u8.., 0u64..1 << 40));
    (ids, fork, 14u8..=30).prop_map(|((system, history), fork, log2)| LogIdentity {
        system,
        history,
        fork: fork.map(|(parent, at)| Fork {
            parent: HistoryId([parent; 16]),
            at: Lsn(at),
        }),
        size: SegmentSize::new(log2).unwrap(),
    })
}

/// Whatever decodes must encode to the same bytes.
fn decode_all(bytes: &[u8]) {
    let seed = HistorySeed::new(HISTORY);
    if let Parsed::Record(record, len) = parse(bytes, AT, seed) {
        assert_eq!(encode_at(&record, AT, HISTORY).unwrap(), bytes[..len]);
    }
    if let Ok(catalogue) = Catalogue::decode(bytes) {
        assert_eq!(catalogue.encode(), bytes);
    }
    if let Ok(state) = TrackerState::decode(bytes) {
        assert_eq!(state.encode()[..], *bytes);
    }
    if let Some(head) = bytes.first_chunk()
        && let Ok(header) = EpochHeader::decode(head)
    {
        assert_eq!(header.encode(), *head);
    }
    if let Some(block) = bytes.first_chunk::<PAGE_BYTES>() {
        if let Ok(header) = LiveHeader::decode(block) {
            assert_eq!(header.encode(), *block);
        }
        if let Ok(header) = SegmentHeader::decode(block) {
            assert_eq!(header.encode(), *block);
        }
        if let Ok(footer) = SegmentFooter::decode(block) {
            assert_eq!(footer.encode(), *block);
        }
        if let Ok(control) = Control::decode(block) {
            assert_eq!(control.encode(), *block);
        }
        if let Ok(state) = TrackerState::decode(block) {
            assert_eq!(state.encode(), *block);
        }
        if let Ok(header) = LiveHeader::decode(block) {
            assert_eq!(header.encode(), *block);
        }
        if let Ok(witness) = Witness::decode(block) {
            assert_eq!(witness.encode(), *block);
        }
        if let Ok(Some(header)) = page::decode(block) {
            let mut again = *block;
            page::seal(&mut again, header);
            assert_eq!(again, *block);
        }
    }
}

fn samples() -> Vec<Vec<u8>> {
    let mut all = vec![
        header().encode().to_vec(),
        footer().encode().to_vec(),
        control().encode().to_vec(),
        catalogue().encode(),
        page().to_vec(),
        tracker_state().encode().to_vec(),
        epoch_header().encode().to_vec(),
        live_header().encode().to_vec(),
        witness().encode().to_vec(),
    ];
    records(|_, record| all.push(encoded(record)));
    all
}

/// Whether any structure accepts the bytes as a whole.
fn accepted(bytes: &[u8]) -> bool {
    let block = bytes
        .first_chunk::<PAGE_BYTES>()
        .filter(|_| bytes.len() == PAGE_BYTES);
    matches!(parse(bytes, AT, HistorySeed::new(HISTORY)), Parsed::Record(_, len) if len == bytes.len())
        || Catalogue::decode(bytes).is_ok()
        || TrackerState::decode(bytes).is_ok()
        || Witness::decode(bytes).is_ok()
        || bytes
            .try_into()
            .is_ok_and(|bytes| EpochHeader::decode(bytes).is_ok())
        || block.is_some_and(|block| {
            SegmentHeader::decode(block).is_ok()
                || SegmentFooter::decode(block).is_ok()
                || Control::decode(block).is_ok()
                || LiveHeader::decode(block).is_ok()
                || page::decode(block).is_ok()
        })
}

#[test]
fn every_changed_byte_of_every_sample_is_noticed() {
    for sample in samples() {
        assert!(accepted(&sample));
        let mut bytes = sample.clone();
        for at in 0..bytes.len() {
            for bits in [1, 0x80, 0xff] {
                bytes[at] ^= bits;
                assert!(!accepted(&bytes), "byte {at} was changed unnoticed");
                bytes[at] ^= bits;
            }
        }
        for len in 0..sample.len() {
            assert!(!accepted(&sample[..len]), "cut to {len}");
        }
    }
}

#[test]
fn a_record_verifies_at_its_place_in_its_history_only() {
    records(|name, record| {
        let bytes = encoded(record);
        let own = HistorySeed::new(HISTORY);
        let bad = |lsn, seed| matches!(parse(&bytes, lsn, seed), Parsed::Bad(_));
        assert!(!bad(AT, own), "{name}");
        assert!(bad(Lsn(AT.0 + 8), own), "{name}");
        assert!(bad(Lsn(AT.0 ^ (1 << 40)), own), "{name}");
        assert!(bad(AT, HistorySeed::new(PARENT)), "{name}");
    });
}

#[test]
fn a_control_slot_points_between_header_and_footer_only() {
    for log2 in [14, 24, 30] {
        let size = SegmentSize::new(log2).unwrap();
        let identity = LogIdentity { size, ..identity() };
        let start = identity.first_segment();
        let (data, footer) = (size.data_of(start).0, size.footer_of(start).0);
        // The last place has room for the segment's end record and for nothing else.
        for (at, sound) in [
            (data - 8, false),
            (data, true),
            (data + 4, false),
            (footer - 8, true),
            (footer, false),
            (start.0 + size.bytes(), false),
        ] {
            let control = Control {
                sequence: 1,
                identity,
                checkpoint: Lsn(at),
                redo: Lsn(data),
                next_transaction: 1,
            };
            let later = Control {
                checkpoint: Lsn(size.data_of(size.next_of(start)).0),
                redo: Lsn(at),
                ..control
            };
            for control in [control, later] {
                let back = Control::decode(&control.encode()).ok();
                assert_eq!(back, sound.then_some(control), "{at} in 2^{log2}");
            }
        }
    }
}

#[test]
fn what_a_reader_would_refuse_is_not_written() {
    let mut group = Group::new();
    let long = "x".repeat(256);
    assert!(group.create(1, TableKind::Rows, &long).is_err());
    assert!(group.create(1, TableKind::Rows, &long[1..]).is_ok());
    assert!(group.create(0, TableKind::Rows, "a").is_err());
    assert!(group.create(1, TableKind::Rows, "").is_err());
    assert!(group.extend(1, 0).is_err());
    assert!(group.image(0, 0, &body()).is_err());
    let all = [1; 4068];
    for (ranges, fits) in [
        (&[(24, &all[..])][..], true),
        (&[(28, &all[..])], true),
        (&[(29, &all[..])], false),
        (&[(23, b"a")], false),
        (&[], false),
        (&[(30, b"")], false),
        (&[(4095, b"a")], true),
        (&[(4096, b"a")], false),
        (&[(70_000, b"a")], false),
        (&[(30, b"ab"), (32, b"c")], false),
        (&[(30, b"ab"), (33, b"c")], true),
        (&[(33, b"c"), (30, b"ab")], false),
        (&[(24, &all[..4000]), (4030, &all[..66])], true),
        (&[(24, &all[..4000]), (4030, &all[..67])], false),
        // Within the page, and beyond the longest record.
        (
            &[
                (24, &all[..3990]),
                (4015, &all[..20]),
                (4036, &all[..20]),
                (4057, &all[..20]),
                (4078, &all[..18]),
            ],
            false,
        ),
    ] {
        let before = group.records();
        assert_eq!(
            group.delta(1, 0, ranges).is_ok(),
            fits,
            "{:?}",
            ranges.first().map(|r| r.0)
        );
        assert_eq!(group.records(), before + usize::from(fits));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn records_come_back(
        kind in 0u8..8, table in 1u32.., number: u64, page: u32, time: i64, name in "[a-zß]{1,60}",
        ranges in vec((1usize..60, vec(any::<u8>(), 1..50)), 1..30), lsn in 0u64..1 << 62,
    ) {
        let time = Timestamp::from_micros(time);
        let (lsn, number_at) = (Lsn(lsn), Lsn(number));
        let body = body();
        let record = match kind {
            0 => Record::Flush { begin: number_at },
            1 => Record::Image { table, page, body: &body },
            2 => Record::Create { table, kind: TableKind::Rows, name: &name },
            3 => Record::Drop { table },
            4 => Record::Extend { table, pages: page.max(1) },
            5 => Record::Commit { transaction: number, time, first: Lsn(number / 3) },
            6 => Record::Checkpoint { redo: number_at, next_transaction: number / 7, time },
            _ => Record::Point { time, name: &name },
        };
        let bytes = encode_at(&record, lsn, HISTORY).unwrap();
        let seed = HistorySeed::new(HISTORY);
        prop_assert_eq!(parse(&bytes, lsn, seed), Parsed::Record(record, bytes.len()));
        // Deltas: gaps and bytes become ranges, and come back the same.
        let mut at = 24;
        let mut wanted = Vec::new();
        for (gap, bytes) in &ranges {
            if at + gap + bytes.len() <= 4096 {
                wanted.push((at + gap, bytes.clone()));
                at += gap + bytes.len();
            }
        }
        let borrowed: Vec<(usize, &[u8])> = wanted.iter().map(|(at, b)| (*at, &b[..])).collect();
        let mut page_bytes = [0; PAGE_BYTES];
        let mut group = Group::new();
        group.delta(table, page, &borrowed).unwrap();
        prop_assert_eq!(group.records(), 1);
        let spelled: Vec<u8> = borrowed.iter().flat_map(|(at, b)| {
            [&(*at as u16).to_le_bytes()[..], &(b.len() as u16).to_le_bytes(), b].concat()
        }).collect();
        let mut raw = vec![0; 8];
        raw[4..6].copy_from_slice(&((16 + spelled.len()) as u16).to_le_bytes());
        raw[6] = 3;
        raw.extend_from_slice(&table.to_le_bytes());
        raw.extend_from_slice(&page.to_le_bytes());
        raw.extend_from_slice(&spelled);
        raw.resize(raw.len().next_multiple_of(8), 0);
        seal(&mut raw, AT);
        match parse(&raw, AT, seed) {
            Parsed::Record(Record::Delta { ranges, .. }, _) => {
                prop_assert_eq!(&owned(ranges), &wanted);
                ranges.apply(&mut page_bytes);
            }
            other => prop_assert!(false, "{:?}", other),
        }
        let mut by_hand = [0; PAGE_BYTES];
        for (at, bytes) in &wanted {
            by_hand[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        prop_assert!(page_bytes == by_hand);
    }

    #[test]
    fn blocks_come_back(
        identity in any_identity(), previous: [u8; 32], segments in 1u64..1000, words: [u64; 4],
    ) {
        let first = identity.first_segment();
        let start = Lsn(first.0 + segments * identity.size.bytes());
        let header = SegmentHeader { identity, start, previous };
        prop_assert_eq!(SegmentHeader::decode(&header.encode()).unwrap(), header);
        let name = identity.path(start);
        prop_assert_eq!(identity.parse_name(name.strip_prefix("wal/").unwrap()), Some(start));
        let room = identity.size.bytes() / 8 - 1024 - 1;
        let end = Lsn(start.0 + 4096 + 8 * (1 + words[0] % (room - 1)));
        let (system, history, size) = (identity.system, identity.history, identity.size);
        let footer = SegmentFooter { system, history, size, start, end, sha256: previous };
        prop_assert_eq!(SegmentFooter::decode(&footer.encode()).unwrap(), footer);
        // Where records may be: any multiple of 8 behind a segment's header and before its footer.
        let within = |word: u64| 4096 + 8 * (word % (identity.size.bytes() / 8 - 1024));
        let redo = Lsn(start.0 + within(words[1]));
        let control = Control {
            sequence: words[2] >> 2,
            identity,
            checkpoint: Lsn(start.0 + segments * identity.size.bytes() + within(words[3])),
            redo,
            next_transaction: words[3],
        };
        prop_assert_eq!(Control::decode(&control.encode()).unwrap(), control);
    }

    #[test]
    fn of_a_witness_the_latest_come_back(ends in vec((0u64..1 << 62, any::<[u8; 32]>()), 0..130)) {
        let ends: Vec<_> = ends.into_iter().map(|(end, sha256)| (Lsn(end), sha256)).collect();
        let all = Witness { ends, ..witness() };
        let back = Witness::decode(&all.encode()).unwrap();
        let latest = all.ends.len().saturating_sub(WITNESSES_MAX);
        prop_assert_eq!(&back.ends[..], &all.ends[latest..]);
        prop_assert_eq!((back.system, back.history), (all.system, all.history));
    }

    #[test]
    fn pages_come_back(lsn in 1u64.., table in 1u32.., number: u32, bytes in vec(any::<u8>(), 4072)) {
        let mut page = [0; PAGE_BYTES];
        page[24..].copy_from_slice(&bytes);
        let header = PageHeader { lsn: Lsn(lsn), table, page: number };
        page::seal(&mut page, header);
        prop_assert_eq!(page::decode(&page).unwrap(), Some(header));
        prop_assert_eq!(&page[24..], &bytes[..]);
        prop_assert_eq!(page::check(&page, table, number).unwrap(), Lsn(lsn));
        prop_assert!(page::check(&page, table, number ^ 1).is_err());
        prop_assert!(page::check(&page, table ^ 1, number).is_err());
    }

    #[test]
    fn hostile_bytes_do_no_harm(
        sample in any::<proptest::sample::Index>(), cut in any::<proptest::sample::Index>(),
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4), noise in vec(any::<u8>(), 0..300),
    ) {
        decode_all(&noise);
        let mut all = samples();
        let at = sample.index(all.len());
        let mut bytes = all.swap_remove(at);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // The checksum set right, so that what is behind it is reached.
        let len = bytes.len();
        if len == PAGE_BYTES {
            let crc = mover_base::checksum::crc32(&bytes[..len - 4]);
            bytes[len - 4..].copy_from_slice(&crc.to_le_bytes());
        }
        decode_all(&bytes);
        if len >= 8 && len != PAGE_BYTES {
            seal(&mut bytes, AT);
            decode_all(&bytes);
            let crc = mover_base::checksum::crc32(&bytes[..len - 4]);
            bytes[len - 4..].copy_from_slice(&crc.to_le_bytes());
            decode_all(&bytes);
        }
        bytes.truncate(cut.index(len));
        decode_all(&bytes);
    }
}
