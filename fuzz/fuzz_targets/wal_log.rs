//! A whole log in one segment, whose records' checksums are set right: finding its end, reading it, extracting its
//! changes, redo. Whatever the end is said to be, the log reads to there.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use mover_base::{HistoryId, Kind, Lsn, LsnRange, SystemId, checksum};
use mover_pagedb::SimDisk;
use mover_source::delta::extract;
use mover_source::disk::Disk;
use mover_source::pages::Catalogue;
use mover_source::redo::Redo;
use mover_source::wal::segment::SegmentHeader;
use mover_source::wal::{LogIdentity, LogReader, SegmentSize, Verify, clean, find_end};

const SEGMENT_BYTES: usize = 16_384;

/// Makes records of whatever stands where they could begin.
fn seal(history: HistoryId, bytes: &mut [u8]) {
    let mut at = 4096;
    while at + 8 <= SEGMENT_BYTES - 4096 {
        if bytes[at..at + 8] == [0; 8] {
            at = (at + 1).next_multiple_of(4096);
            continue;
        }
        let len = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]) % 4097).max(8);
        bytes[at + 4..at + 6].copy_from_slice(&(len as u16).to_le_bytes());
        let end = at + len.next_multiple_of(8);
        if end > SEGMENT_BYTES - 4096 {
            return;
        }
        bytes[at + 7] = 0;
        bytes[at + len..end].fill(0);
        let covered = [
            &history.0[..],
            &(at as u64).to_le_bytes(),
            &bytes[at + 4..end],
        ]
        .concat();
        let crc = checksum::crc32(&covered);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

fuzz_target!(|input: &[u8]| {
    let identity = LogIdentity {
        system: SystemId([0x11; 16]),
        history: HistoryId([0x22; 16]),
        fork: None,
        size: SegmentSize::new(14).unwrap(),
    };
    let header = SegmentHeader {
        identity,
        start: Lsn(0),
        previous: [0; 32],
    };
    let mut bytes = vec![0; SEGMENT_BYTES];
    bytes[..4096].copy_from_slice(&header.encode());
    // A flush begins, so that what follows is looked at.
    bytes[4096..4112].copy_from_slice(&[0, 0, 0, 0, 16, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0, 0]);
    let len = input.len().min(SEGMENT_BYTES - 4112);
    bytes[4112..4112 + len].copy_from_slice(&input[..len]);
    seal(identity.history, &mut bytes);
    let sim = SimDisk::new();
    sim.set(&identity.path(Lsn(0)), &bytes);
    let disk: Arc<dyn Disk> = Arc::new(sim);
    let Ok(found) = find_end(&*disk, &identity, Lsn(4096)) else {
        return;
    };
    if clean(&*disk, &identity, &found).is_err() {
        return;
    }
    let again = find_end(&*disk, &identity, Lsn(4096)).unwrap();
    assert_eq!((again.end, again.next), (found.end, found.next));
    let range = LsnRange {
        start: Lsn(4096),
        end: found.end,
    };
    let catalogue = Catalogue::new(identity.system, identity.history, Lsn(4096));
    let mut redo = Redo::new(Arc::clone(&disk), catalogue, found.end, 4);
    LogReader::new(Arc::clone(&disk), identity, Verify::Segments)
        .read(range, |lsn, _, record| {
            // The log may be sound and its contents nonsense: that is an error of redo, once.
            let _ = redo.apply(lsn, record);
            Ok(())
        })
        .unwrap();
    if let Err(error) = extract(disk, identity, range, 8 << 20) {
        assert_eq!(error.kind(), Kind::Limit);
    }
});
