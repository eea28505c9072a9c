//! Frozen samples of version 1: what was once written must be read for ever, and is written the same.
//!
//! The files under `golden/v1` were made by this test from `samples.rs`, with WRITE_GOLDEN=1 in the environment, which
//! writes what is missing and never replaces a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mover_base::checksum::{crc32, sha256};
use mover_base::{Lsn, LsnRange};
use mover_source::delta::BUDGET_BYTES_DEFAULT;
use mover_source::disk::{DirDisk, Disk};
use mover_source::page;
use mover_source::pages::{Catalogue, Control, Store};
use mover_source::tracker::{EpochHeader, Epochs, LiveHeader, TrackerState, Witness};
use mover_source::wal::record::{HistorySeed, Parsed, parse};
use mover_source::wal::segment::{SegmentFooter, SegmentHeader};
use mover_source::wal::{LogIdentity, LogReader, SegmentSize, Verify};

use crate::samples::*;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/v1")
        .join(name)
}

/// Reads the frozen bytes and checks that they are what is written today.
fn frozen(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = path(name);
    if !path.exists() && std::env::var_os("WRITE_GOLDEN").is_some() {
        std::fs::write(&path, encoded).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(golden == encoded, "{name} is written differently now");
    golden
}

#[test]
fn records_are_frozen() {
    let mut kinds = 0;
    records(|name, record| {
        let bytes = frozen(name, &encoded(record));
        let seed = HistorySeed::new(HISTORY);
        assert_eq!(
            parse(&bytes, AT, seed),
            Parsed::Record(*record, bytes.len()),
            "{name}"
        );
        kinds += 1;
    });
    assert_eq!(kinds, 10);
}

#[test]
fn blocks_are_frozen() {
    let bytes = frozen("segment-header.bin", &header().encode());
    assert_eq!(
        SegmentHeader::decode(bytes[..].try_into().unwrap()).unwrap(),
        header()
    );
    let bytes = frozen("segment-footer.bin", &footer().encode());
    assert_eq!(
        SegmentFooter::decode(bytes[..].try_into().unwrap()).unwrap(),
        footer()
    );
    let bytes = frozen("control-slot.bin", &control().encode());
    assert_eq!(
        Control::decode(bytes[..].try_into().unwrap()).unwrap(),
        control()
    );
    let bytes = frozen("catalogue.bin", &catalogue().encode());
    assert_eq!(Catalogue::decode(&bytes).unwrap(), catalogue());
    let bytes = frozen("page.bin", &page());
    let header = page::decode(bytes[..].try_into().unwrap())
        .unwrap()
        .unwrap();
    assert_eq!((header.lsn, header.table, header.page), (AT, 7, 258));
}

fn small() -> LogIdentity {
    LogIdentity {
        fork: None,
        size: SegmentSize::new(14).unwrap(),
        ..identity()
    }
}

/// A whole sealed segment of 16 KiB, written by the writer.
#[test]
fn a_sealed_segment_is_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open_locked(dir.path()).unwrap());
    let mut store = Store::create(Arc::clone(&disk), small()).unwrap();
    let writer = store.recover(10).unwrap().writer;
    let first = writer.append(&group(), 41, TIME).unwrap();
    assert_eq!(first.records.len(), 4);
    writer.point("before the migration", TIME).unwrap();
    writer.checkpoint(first.end, 42, TIME).unwrap();
    writer.switch_segment().unwrap();
    let name = small().path(Lsn(0));
    let bytes = std::fs::read(dir.path().join(&name)).unwrap();
    let bytes = frozen("sealed-segment.wal", &bytes);

    // By the specification alone: where the SHA-256 stands and what it covers.
    assert_eq!(bytes.len(), 16_384);
    assert_eq!(bytes[12_288 + 64..12_288 + 96], sha256(&bytes[..12_288]));
    assert_eq!(bytes[16_380..], crc32(&bytes[12_288..16_380]).to_le_bytes());
    // The first record begins the flush at 4,096; its checksum is that of history, LSN and itself.
    let mut flush = bytes[4096..4112].to_vec();
    assert_eq!(flush[4..8], [16, 0, 1, 0]);
    assert_eq!(flush[8..], 4096u64.to_le_bytes());
    seal(&mut flush, Lsn(4096));
    assert_eq!(flush, bytes[4096..4112]);

    // And it reads back as what was written, from a store made of nothing but the sample.
    std::fs::write(dir.path().join(&name), &bytes).unwrap();
    let mut kinds = Vec::new();
    let range = LsnRange {
        start: Lsn(4096),
        end: writer.durable(),
    };
    LogReader::new(disk, small(), Verify::Segments)
        .read(range, |_, _, record| {
            let debug = format!("{record:?}");
            kinds.push(debug.split([' ', '(']).next().unwrap().to_owned());
            Ok(())
        })
        .unwrap();
    let expected = [
        "Flush",
        "Create",
        "Extend",
        "Image",
        "Delta",
        "Commit",
        "Point",
        "Checkpoint",
    ];
    assert_eq!(kinds, expected);
}

/// The tracker's files, and what is answered from nothing but the samples.
#[test]
fn the_tracker_is_frozen() {
    let state = frozen("tracker-state.bin", &tracker_state().encode());
    assert_eq!(TrackerState::decode(&state).unwrap(), tracker_state());
    let bytes = frozen("tracker-live-header.bin", &live_header().encode());
    let live = LiveHeader::decode(bytes[..].try_into().unwrap()).unwrap();
    assert_eq!(live, live_header());
    let bytes = frozen("tracker-witness.bin", &witness().encode());
    assert_eq!(Witness::decode(&bytes).unwrap(), witness());
    let epoch = frozen("tracker-epoch.bin", &epoch_file());
    let header = EpochHeader::decode(epoch[..80].try_into().unwrap()).unwrap();
    assert_eq!(header, epoch_header());

    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tracker")).unwrap();
    std::fs::write(dir.path().join("tracker/state"), &state).unwrap();
    let name = "tracker/0000000004001000-0000000000000005.epoch";
    std::fs::write(dir.path().join(name), &epoch).unwrap();
    let disk = Arc::new(DirDisk::open(dir.path()).unwrap());
    let epochs = Epochs::open(disk, identity()).unwrap().unwrap();
    let range = LsnRange {
        start: Lsn(0x0400_1000),
        end: Lsn(0x0400_2000),
    };
    let changed = epochs.changed(range, BUDGET_BYTES_DEFAULT).unwrap();
    let pages: Vec<(u32, Vec<(u32, u32)>)> = changed
        .tables
        .iter()
        .map(|(table, pages)| (*table, pages.ranges().collect()))
        .collect();
    assert_eq!(
        pages,
        [(7, vec![(1, 1), (4095, 1)]), (258, vec![(8200, 1)])]
    );
}
