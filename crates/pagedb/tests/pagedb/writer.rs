//! The writer: group commit, errors of the disk, crossing of segments, reopening.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use mover_base::{Kind, Lsn, LsnRange};
use mover_pagedb::SimDisk;
use mover_source::disk::{DirDisk, Disk};
use mover_source::page::BODY_BYTES;
use mover_source::pages::Store;
use mover_source::wal::record::{GROUP_BYTES_MAX, Record};
use mover_source::wal::{
    Group, LogReader, TableKind, Verify, Writer, clean, find_end, find_end_behind, segments,
};

use crate::support::*;

fn group(bytes: usize) -> Group {
    let mut group = Group::new();
    let body = [5; BODY_BYTES];
    for page in 0..(bytes / 4096).max(1) {
        group.image(1, page as u32, &body).unwrap();
    }
    group
}

fn writer(disk: Arc<dyn Disk>, log2: u8) -> Writer {
    let mut store = Store::create(disk, identity(1, log2)).unwrap();
    store.recover(4).unwrap().writer
}

/// Transactions and where they end, as a reader finds them.
fn transactions(disk: Arc<dyn Disk>, log2: u8, end: Lsn) -> Vec<(u64, Lsn)> {
    let range = LsnRange {
        start: Lsn(4096),
        end,
    };
    let mut found = Vec::new();
    LogReader::new(disk, identity(1, log2), Verify::Segments)
        .read(range, |_, end, record| {
            if let Record::Commit { transaction, .. } = record {
                found.push((*transaction, end));
            }
            Ok(())
        })
        .unwrap();
    found
}

#[test]
fn groups_of_every_size_cross_segments_and_come_back() {
    for log2 in [14, 15, 17] {
        let disk = SimDisk::new();
        let writer = writer(arc(&disk), log2);
        let mut wanted = Vec::new();
        for (number, bytes) in (0u64..).zip([1, 5000, 9000, 100, 70_000, 8, 300_000, 1, 12_288]) {
            let appended = writer.append(&group(bytes), number, TIME).unwrap();
            assert_eq!(appended.records.len(), (bytes / 4096).max(1));
            wanted.push((number, appended.end));
            if number % 2 == 0 {
                writer.flush_to(appended.end).unwrap();
            }
        }
        writer.flush_to(writer.end()).unwrap();
        assert_eq!(transactions(arc(&disk), log2, writer.durable()), wanted);
        assert_eq!(writer.flushes(), 5);
        // What is durable is what a crash leaves, and the log goes on behind it.
        drop(writer);
        let disk = disk.crash(1);
        let found = find_end(&disk, &identity(1, log2), Lsn(4096)).unwrap();
        assert_eq!((found.end, found.torn.clone()), (wanted[8].1, None));
        assert_eq!((found.groups, found.next_transaction), (9, 9));
        clean(&disk, &identity(1, log2), &found).unwrap();
        let writer = Writer::open(arc(&disk), identity(1, log2), &found).unwrap();
        wanted.push((9, writer.append(&group(1), 9, TIME).unwrap().end));
        writer.flush_to(writer.end()).unwrap();
        assert_eq!(transactions(arc(&disk), log2, writer.durable()), wanted);
    }
}

#[test]
fn an_end_that_is_enough_is_the_first_that_another_flush_follows() {
    let disk = SimDisk::new();
    let writer = writer(arc(&disk), 14);
    let mut ends = Vec::new();
    for (number, bytes) in (0u64..).zip([1, 5000, 9000, 1, 70_000, 1, 1, 12_288]) {
        writer.append(&group(bytes), 2 * number, TIME).unwrap();
        // Another group of the same flush is no end of one.
        let appended = writer.append(&group(1), 2 * number + 1, TIME).unwrap();
        writer.flush_to(appended.end).unwrap();
        ends.push(appended.end);
    }
    let places = ends.iter().flat_map(|end| [end.0 - 1, end.0, end.0 + 1]);
    for enough in places.map(Lsn) {
        let last = *ends.last().unwrap();
        let wanted = *ends.iter().find(|end| **end >= enough).unwrap_or(&last);
        let found = find_end_behind(&disk.copy(), &identity(1, 14), Lsn(4096), enough).unwrap();
        assert_eq!((found.end, &found.torn), (wanted, &None), "{enough}");
        if wanted < last {
            assert_eq!(found.before_flush, wanted);
            // Nor may anybody write there.
            let (copy, identity) = (disk.copy(), identity(1, 14));
            let cleaned = clean(&copy, &identity, &found).unwrap_err();
            let opened = Writer::open(arc(&copy), identity, &found).err().unwrap();
            assert_eq!(
                (cleaned.kind(), opened.kind()),
                (Kind::Internal, Kind::Internal)
            );
            assert_eq!(find_end(&copy, &identity, Lsn(4096)).unwrap().end, last);
        }
    }
}

/// Small groups move the end over every place near the end of a segment.
#[test]
fn every_distance_from_the_end_of_a_segment_works() {
    let disk = SimDisk::new();
    let writer = writer(arc(&disk), 14);
    let mut wanted = Vec::new();
    for number in 0..1500u64 {
        let mut group = Group::new();
        let bytes = vec![1; 1 + (number as usize * 8) % 700];
        group.delta(1, 0, &[(24, &bytes)]).unwrap();
        wanted.push((number, writer.append(&group, number, TIME).unwrap().end));
        if number % 3 != 0 {
            writer.flush_to(writer.end()).unwrap();
        }
        if number % 50 == 0 {
            let durable = writer.durable();
            let found = find_end(&disk.copy(), &identity(1, 14), Lsn(4096)).unwrap();
            assert_eq!((found.end, found.torn), (durable.max(Lsn(4096)), None));
        }
    }
    writer.flush_to(writer.end()).unwrap();
    assert_eq!(transactions(arc(&disk), 14, writer.durable()), wanted);
    assert!(segments(&disk, &identity(1, 14)).unwrap().len() > 300);
}

#[test]
fn many_threads_share_flushes_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open_locked(dir.path()).unwrap());
    let writer = writer(Arc::clone(&disk), 16);
    let number = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..40 {
                    let number = number.fetch_add(1, SeqCst);
                    let end = writer.append(&group(1), number, TIME).unwrap().end;
                    writer.flush_to(end).unwrap();
                    assert!(writer.durable() >= end);
                }
            });
        }
    });
    assert!(writer.flushes() < 320, "{} flushes", writer.flushes());
    let found = transactions(Arc::clone(&disk), 16, writer.durable());
    let mut numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..320));
    assert!(found.is_sorted_by(|a, b| a.1 < b.1));
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    for failing in 0..6 {
        let disk = SimDisk::new();
        let writer = writer(arc(&disk), 14);
        disk.fail_sync_after(failing);
        let mut acknowledged = Lsn(4096);
        let mut failed = 0;
        for number in 0..20 {
            let outcome = writer
                .append(&group(1), number, TIME)
                .and_then(|appended| writer.flush_to(appended.end).map(|()| appended.end));
            match outcome {
                Ok(end) => {
                    assert_eq!(failed, 0, "acknowledged after a failed sync");
                    acknowledged = end;
                }
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Storage);
                    failed += 1;
                }
            }
        }
        assert!(failed > 0 && writer.durable() == acknowledged);
        assert_eq!(writer.switch_segment().unwrap_err().kind(), Kind::Storage);
        drop(writer);
        let found = find_end(&disk.crash(failing), &identity(1, 14), Lsn(4096)).unwrap();
        assert!(found.end >= acknowledged);
    }
}

#[test]
fn a_switched_segment_is_sealed_and_the_log_goes_on() {
    let disk = SimDisk::new();
    let writer = writer(arc(&disk), 15);
    writer.switch_segment().unwrap();
    assert_eq!(
        segments(&disk, &identity(1, 15)).unwrap().len(),
        1,
        "nothing to switch from"
    );
    let mut wanted = Vec::new();
    for number in 0..5 {
        wanted.push((number, writer.append(&group(1), number, TIME).unwrap().end));
        writer.switch_segment().unwrap();
        writer.switch_segment().unwrap();
        assert_eq!(writer.durable(), writer.end());
    }
    assert_eq!(transactions(arc(&disk), 15, writer.durable()), wanted);
    assert_eq!(segments(&disk, &identity(1, 15)).unwrap().len(), 6);
    drop(writer);
    let disk = disk.crash(3);
    let found = find_end(&disk, &identity(1, 15), Lsn(4096)).unwrap();
    assert_eq!(
        (found.end, found.next),
        (wanted[4].1, Lsn(5 * 32768 + 4096))
    );
}

#[test]
fn limits_and_misuse_are_told() {
    let disk = SimDisk::new();
    let writer = writer(arc(&disk), 20);
    let usage = |error: mover_base::Error| assert_eq!(error.kind(), Kind::Usage);
    usage(writer.append(&Group::new(), 1, TIME).unwrap_err());
    usage(writer.flush_to(Lsn(writer.end().0 + 8)).unwrap_err());
    usage(writer.point("", TIME).unwrap_err());
    usage(writer.point(&"x".repeat(256), TIME).unwrap_err());
    let mut full = Group::new();
    let body = [1; BODY_BYTES];
    let limit = loop {
        if let Err(error) = full.image(1, 0, &body) {
            break error;
        }
    };
    assert_eq!(limit.kind(), Kind::Limit);
    assert!(full.create(2, TableKind::Rows, "b").is_err());
    assert!(full.records() * 4096 > GROUP_BYTES_MAX - 200_000);
    let end = writer.append(&full, 1, TIME).unwrap().end;
    writer.flush_to(end).unwrap();
    assert_eq!(transactions(arc(&disk), 20, end), [(1, end)]);
    let range = |start, end| LsnRange {
        start: Lsn(start),
        end: Lsn(end),
    };
    let reader = LogReader::new(arc(&disk), identity(1, 20), Verify::Records);
    let kind = |range| reader.read(range, |_, _, _| Ok(())).unwrap_err().kind();
    assert_eq!(kind(range(0, 4096)), Kind::Usage);
    assert_eq!(kind(range(8192, 4096)), Kind::Usage);
    assert_eq!(kind(range(1 << 40, 1 << 41)), Kind::Usage, "a header");
    assert_eq!(
        kind(range(4096, 4112)),
        Kind::Corrupt,
        "not the end of a transaction"
    );
    assert_eq!(
        kind(range(4120, end.0)),
        Kind::Corrupt,
        "not the end of a record"
    );
    assert_eq!(
        kind(range(4096, end.0 + 8)),
        Kind::Corrupt,
        "beyond the end"
    );
    assert_eq!(
        kind(range((1 << 40) + 4096, (1 << 41) + 4096)),
        Kind::NotFound
    );
}
