//! Damage of every byte: an error or, in the last flush alone, a cut; never another content.

use mover_base::checksum::{Sha256, sha256};
use mover_base::{HistoryId, Kind, Lsn, LsnRange};
use mover_pagedb::random::Random;
use mover_pagedb::{Database, Options, SimDisk, Workload};
use mover_source::page::{BODY_BYTES, PAGE_BYTES};
use mover_source::pages::{Store, table_path};
use mover_source::wal::record::encode_at;
use mover_source::wal::{Group, LogIdentity, LogReader, Verify, find_end};

use crate::support::*;

const LOG2: u8 = 15;

/// A log of four segments with groups that cross them; the last has two flushes. With every group's end.
struct Log {
    disk: SimDisk,
    ends: Vec<Lsn>,
    /// Where the last group of the last flush but one ends.
    before_last: Lsn,
    /// Everything that the log says.
    records: Vec<(Lsn, Sha256)>,
}

fn id() -> LogIdentity {
    identity(3, LOG2)
}

fn read(disk: &SimDisk, end: Lsn, verify: Verify) -> mover_base::Result<Vec<(Lsn, Sha256)>> {
    let mut records = Vec::new();
    let range = LsnRange {
        start: Lsn(4096),
        end,
    };
    LogReader::new(arc(disk), id(), verify).read(range, |lsn, _, record| {
        let encoded = encode_at(record, lsn, id().history)?;
        records.push((lsn, sha256(&encoded)));
        Ok(())
    })?;
    Ok(records)
}

fn log() -> Log {
    let disk = SimDisk::new();
    let mut store = Store::create(arc(&disk), id()).unwrap();
    let writer = store.recover(4).unwrap().writer;
    let mut ends = Vec::new();
    let mut append = |bytes: usize| {
        let mut group = Group::new();
        let body: [u8; BODY_BYTES] = std::array::from_fn(|i| (i % 13) as u8);
        for page in 0..bytes / 4000 {
            group.image(1, page as u32, &body).unwrap();
        }
        group.delta(1, 9, &[(100, &body[..bytes % 4000])]).unwrap();
        ends.push(writer.append(&group, ends.len() as u64, TIME).unwrap().end);
    };
    for bytes in [500, 13_000, 900, 17_000, 8_900] {
        append(bytes);
        writer.flush_to(writer.end()).unwrap();
    }
    writer.switch_segment().unwrap();
    for bytes in [100, 70] {
        append(bytes);
    }
    writer.flush_to(writer.end()).unwrap();
    let before_last = writer.end();
    append(300);
    append(200);
    writer.flush_to(writer.end()).unwrap();
    let end = writer.end();
    let starts = mover_source::wal::segments(&disk, &id()).unwrap();
    assert!(starts.len() >= 4 && id().size.start_of(end) == *starts.last().unwrap());
    let records = read(&disk, end, Verify::Segments).unwrap();
    Log {
        disk,
        ends,
        before_last,
        records,
    }
}

/// What both ways to read the log say about one that is not in order.
fn refusals(log: &Log) -> [mover_base::Error; 2] {
    [
        find_end(&log.disk, &id(), Lsn(4096)).map(|_| ()),
        read(&log.disk, log.end(), Verify::Records).map(|_| ()),
    ]
    .map(Result::unwrap_err)
}

impl Log {
    fn end(&self) -> Lsn {
        *self.ends.last().unwrap()
    }

    /// The log ends at `end` now: that must be after the last flush but one, and what is before must be unchanged.
    fn is_prefix(&self, disk: &SimDisk, end: Lsn, what: &str) {
        assert!(
            end == self.before_last || self.ends.contains(&end),
            "{what}: {end}"
        );
        let records = read(disk, end, Verify::Segments).unwrap();
        assert!(self.records.starts_with(&records), "{what}");
    }
}

#[test]
fn every_flipped_byte_of_a_log_is_an_error_or_cuts_the_last_flush() {
    let log = log();
    let active = id().size.start_of(log.end());
    let last_flush = log.before_last.0.next_multiple_of(4096);
    let (mut cut, mut refused) = (0, 0);
    for start in mover_source::wal::segments(&log.disk, &id()).unwrap() {
        let path = id().path(start);
        for at in 0..id().size.bytes() as usize {
            let lsn = start.0 + at as u64;
            log.disk.flip(&path, at, 1 << (at % 8));
            match find_end(&log.disk, &id(), Lsn(4096)) {
                Ok(found) => {
                    assert!(lsn >= last_flush, "a flip at {lsn} went unnoticed");
                    assert!(start == active && found.end >= log.before_last);
                    if found.end != log.end() {
                        log.is_prefix(&log.disk, found.end, &format!("flip at {lsn}"));
                        assert!(found.torn.is_some());
                        cut += 1;
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
                    assert!(
                        error.object_name().is_some_and(|o| o.contains("wal")),
                        "{error}"
                    );
                    refused += 1;
                }
            }
            // Who knows where the log ends notices everything before it.
            match read(&log.disk, log.end(), Verify::Records) {
                Ok(records) => {
                    assert!(lsn >= log.end().0, "a flip at {lsn} was read");
                    assert!(records == log.records);
                }
                Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "{error}"),
            }
            log.disk.flip(&path, at, 1 << (at % 8));
        }
    }
    assert!(
        cut > 300 && refused > 3 * 32_768,
        "{cut} cut, {refused} refused"
    );
}

#[test]
fn the_tail_cut_at_every_byte_leaves_whole_transactions() {
    let log = log();
    let active = id().size.start_of(log.end());
    let path = id().path(active);
    let whole = log.disk.bytes(&path);
    for at in 4096..whole.len() - 4096 {
        // Zeros from there on: what a file reserved in advance holds behind what was written.
        let mut torn = whole.clone();
        torn[at..].fill(0);
        log.disk.set(&path, &torn);
        let found = find_end(&log.disk, &id(), Lsn(4096)).unwrap();
        // Bytes that are zeros anyway cut nothing.
        let intact = |end: &&Lsn| {
            let len = end.0.saturating_sub(active.0) as usize;
            torn[..len] == whole[..len]
        };
        assert_eq!(Some(&found.end), log.ends.iter().rfind(intact));
        log.is_prefix(&log.disk, found.end, "cut tail");
        // A file that is really shorter is no segment at all.
        log.disk.set(&path, &whole[..at]);
        let error = find_end(&log.disk, &id(), Lsn(4096)).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(read(&log.disk, log.end(), Verify::Records).is_err());
    }
}

#[test]
fn missing_foreign_and_misplaced_segments_are_errors() {
    let log = log();
    let starts: Vec<Lsn> = mover_source::wal::segments(&log.disk, &id())
        .unwrap()
        .into_iter()
        .collect();
    for start in &starts {
        let path = id().path(*start);
        let bytes = log.disk.bytes(&path);
        log.disk.delete(&path);
        for error in refusals(&log) {
            assert_eq!(
                (error.kind(), error.object_name()),
                (Kind::NotFound, Some(&path[..]))
            );
        }
        // Segments of another history, another database, another place, under this one's name.
        let other_history = LogIdentity {
            history: HistoryId([8; 16]),
            ..id()
        };
        let other_system = LogIdentity {
            system: mover_base::SystemId([8; 16]),
            ..id()
        };
        let mut foreign: Vec<Vec<u8>> = Vec::new();
        for other in [other_history, other_system] {
            let disk = SimDisk::new();
            let mut store = Store::create(arc(&disk), other).unwrap();
            let writer = store.recover(4).unwrap().writer;
            for number in 0..60 {
                let mut group = Group::new();
                group.image(1, 0, &[3; BODY_BYTES]).unwrap();
                writer.append(&group, number, TIME).unwrap();
            }
            writer.flush_to(writer.end()).unwrap();
            foreign.push(disk.bytes(&other.path(*start)));
        }
        let misplaced = starts.iter().filter(|other| *other != start);
        foreign.extend(misplaced.map(|other| log.disk.bytes(&id().path(*other))));
        for bytes in foreign {
            log.disk.set(&path, &bytes);
            for error in refusals(&log) {
                assert_eq!(
                    (error.kind(), error.object_name()),
                    (Kind::Corrupt, Some(&path[..]))
                );
                assert!(error.message().contains("another"), "{error}");
            }
        }
        log.disk.set(&path, &bytes);
    }
}

/// A segment whose records are all sound but that is another's predecessor: the chain of SHA-256 tells.
#[test]
fn a_segment_rewritten_with_sound_checksums_breaks_the_chain() {
    let log = log();
    let other = {
        let disk = SimDisk::new();
        let mut store = Store::create(arc(&disk), id()).unwrap();
        let writer = store.recover(4).unwrap().writer;
        let mut group = Group::new();
        group.image(1, 0, &[3; BODY_BYTES]).unwrap();
        writer.append(&group, 1, TIME).unwrap();
        writer.switch_segment().unwrap();
        disk.bytes(&id().path(Lsn(0)))
    };
    log.disk.set(&id().path(Lsn(0)), &other);
    for error in refusals(&log) {
        assert!(error.message().contains("does not follow"), "{error}");
    }
}

/// A database with some history, stopped without a checkpoint.
fn stopped(seed: u64) -> (SimDisk, mover_pagedb::Journal, Lsn) {
    let options = Options {
        pool_pages: 20,
        journal: true,
    };
    let disk = SimDisk::new();
    let database = create(&disk, seed, 16, options);
    let mut workload = Workload::new(seed, 0);
    run(&database, &mut workload, &mut Random::new(seed), 300);
    database.checkpoint().unwrap();
    for _ in 0..6 {
        database.commit(&workload.next_transaction()).unwrap();
    }
    (
        disk.clone(),
        database.journal(),
        database.writer().durable(),
    )
}

#[test]
fn torn_pages_are_mended_from_images_or_named() {
    let options = Options {
        pool_pages: 20,
        journal: true,
    };
    let (origin, journal, end) = stopped(11);
    let changed = {
        let control = mover_source::pages::read_control(&origin).unwrap();
        let range = LsnRange {
            start: control.redo,
            end,
        };
        journal.changed(range)
    };
    let (mut mended, mut named) = (0, 0);
    for ((table, page), _) in journal.pages_at(end) {
        let disk = origin.copy();
        let path = table_path(table);
        let mut bytes = disk.bytes(&path);
        let first = page as usize * PAGE_BYTES;
        if bytes.len() < first + PAGE_BYTES || bytes[first..first + PAGE_BYTES] == [0; PAGE_BYTES] {
            continue;
        }
        // The second half is of another time.
        for byte in &mut bytes[first + 2048..first + PAGE_BYTES] {
            *byte ^= 0x55;
        }
        disk.set(&path, &bytes);
        let has_image = changed.get(&table).is_some_and(|t| t.pages.contains(&page));
        match Database::open(arc(&disk), options) {
            Ok((database, _)) => {
                assert!(has_image);
                compare(&database, &disk, &journal, end);
                mended += 1;
            }
            Err(error) => {
                assert!(!has_image, "{error}");
                assert_eq!(error.kind(), Kind::Corrupt);
                let name = format!("table {table:08x}, page {page}");
                assert_eq!(error.object_name(), Some(&name[..]));
                named += 1;
            }
        }
    }
    assert!(mended > 5 && named > 5, "{mended} mended, {named} named");
}

#[test]
fn a_log_that_lost_its_end_is_noticed_by_control_and_pages() {
    let (origin, _, end) = stopped(12);
    let control = mover_source::pages::read_control(&origin).unwrap();
    let cut_at = |lsn: Lsn| {
        let disk = origin.copy();
        let size = control.identity.size;
        for start in mover_source::wal::segments(&disk, &control.identity).unwrap() {
            let path = control.identity.path(start);
            let mut bytes = disk.bytes(&path);
            if start > lsn {
                disk.delete(&path);
            } else if start == size.start_of(lsn) {
                bytes[(lsn.0 - start.0) as usize..].fill(0);
                disk.set(&path, &bytes);
            }
        }
        Store::open(arc(&disk)).unwrap().recover(20).map(|_| ())
    };
    cut_at(end).unwrap();
    let error = cut_at(control.checkpoint).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let wanted = format!("before the checkpoint at {}", control.checkpoint);
    assert!(error.message().contains(&wanted), "{error}");
}

/// A log of one flush that goes on through `segments` segments, all but the last sealed; where it ends.
fn flushed_through(segments: u64) -> (SimDisk, Lsn) {
    let disk = SimDisk::new();
    let mut store = Store::create(arc(&disk), id()).unwrap();
    let writer = store.recover(4).unwrap().writer;
    let mut group = Group::new();
    for page in 0..6 * segments as u32 - 4 {
        group.image(1, page, &[5; BODY_BYTES]).unwrap();
    }
    let end = writer.append(&group, 1, TIME).unwrap().end;
    writer.flush_to(end).unwrap();
    let active = Lsn((segments - 1) * id().size.bytes());
    assert_eq!(id().size.start_of(end), active, "the group crosses");
    (disk, end)
}

/// A segment is sealed when the whole flush is durable that began in it: what of that stands in later segments was
/// acknowledged once, and its damage is no torn tail. Nor where the machine stopped when only the first of several was sealed.
#[test]
fn what_goes_on_from_a_sealed_segment_is_never_cut() {
    for segments in [2, 3] {
        let (disk, end) = flushed_through(segments);
        let size = id().size;
        for unsealed in 1..segments - 1 {
            let path = id().path(Lsn(unsealed * size.bytes()));
            let mut bytes = disk.bytes(&path);
            bytes[(size.bytes() - 4096) as usize..].fill(0);
            disk.set(&path, &bytes);
        }
        let found = find_end(&disk, &id(), Lsn(4096)).unwrap();
        assert_eq!((found.end, found.torn), (end, None));
        let active = size.start_of(end);
        let path = id().path(active);
        let flushed = end.0.next_multiple_of(4096);
        for lsn in active.0..flushed {
            let at = (lsn - active.0) as usize;
            disk.flip(&path, at, 1 << (at % 8));
            match find_end(&disk, &id(), Lsn(4096)) {
                Ok(found) => panic!("a flip at {lsn} cuts the log at {}", found.end),
                Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "{error}"),
            }
            disk.flip(&path, at, 1 << (at % 8));
        }
        // Behind it the next flush may have been torn.
        disk.flip(&path, (flushed - active.0) as usize, 1);
        let found = find_end(&disk, &id(), Lsn(4096)).unwrap();
        assert_eq!(found.end, end);
        assert!(found.torn.is_some());
        disk.delete(&path);
        let error = find_end(&disk, &id(), Lsn(4096)).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    }
}

#[test]
fn positions_where_no_record_can_stand_are_refused() {
    let log = log();
    let size = id().size.bytes();
    for lsn in [
        0,
        8,
        4095,
        4097,
        4100,
        size - 4096,
        size - 8,
        size,
        size + 8,
        1 << 62,
    ] {
        let error = find_end(&log.disk, &id(), Lsn(lsn)).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        let reader = LogReader::new(arc(&log.disk), id(), Verify::Records);
        for (start, end) in [(lsn, log.end().0), (4096, lsn)] {
            let range = LsnRange {
                start: Lsn(start),
                end: Lsn(end),
            };
            let error = reader.read(range, |_, _, _| Ok(())).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{error}");
        }
    }
}

#[test]
fn a_catalogue_ahead_of_the_log_is_damage() {
    let (origin, _, end) = stopped(14);
    let mut catalogue = mover_source::pages::read_catalogue(&origin).unwrap();
    for (lsn, is_sound) in [(end, true), (Lsn(end.0 + 8), false)] {
        let disk = origin.copy();
        catalogue.lsn = lsn;
        disk.set("catalogue", &catalogue.encode());
        let recovered = Store::open(arc(&disk)).unwrap().recover(20);
        match recovered {
            Ok(_) => assert!(is_sound),
            Err(error) => {
                assert!(!is_sound, "{error}");
                assert_eq!(error.kind(), Kind::Corrupt);
                assert!(error.message().contains("catalogue's position"), "{error}");
            }
        }
    }
}

#[test]
fn a_history_begins_where_recovery_ended_and_nowhere_else() {
    let (disk, _, _) = stopped(15);
    let mut store = Store::open(arc(&disk)).unwrap();
    let recovered = store.recover(20).unwrap();
    let mut group = Group::new();
    group.extend(1, 4000).unwrap();
    recovered.writer.append(&group, 1 << 40, TIME).unwrap();
    let error = store
        .begin_history(recovered, HistoryId([7; 16]))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    // Nothing was changed by the refusal.
    let control = mover_source::pages::read_control(&disk).unwrap();
    assert!(control.identity.fork.is_none());
}

#[test]
fn every_flipped_byte_of_control_and_catalogue_is_survived_or_told() {
    let (origin, journal, end) = stopped(13);
    let options = Options {
        pool_pages: 20,
        journal: true,
    };
    let opens = |disk: &SimDisk| Database::open(arc(disk), options);
    let sequence = mover_source::pages::read_control(&origin).unwrap().sequence;
    let newer = (sequence % 2 * 4096) as usize;
    for at in (0..8192)
        .step_by(97)
        .chain([newer, newer + 80, newer + 4095, newer + 72])
    {
        let disk = origin.copy();
        disk.flip("control", at, 0x10);
        // Either slot leads to the same contents: the older one by more of the log.
        let (database, reached) = opens(&disk).unwrap();
        assert_eq!(reached, end);
        compare(&database, &disk, &journal, end);
    }
    let disk = origin.copy();
    for slot in [0, 4096] {
        disk.flip("control", slot + 100, 1);
    }
    assert_eq!(opens(&disk).err().unwrap().kind(), Kind::Corrupt);
    for at in 0..origin.bytes("catalogue").len() {
        let disk = origin.copy();
        disk.flip("catalogue", at, 1 << (at % 8));
        let error = Store::open(arc(&disk)).unwrap_err();
        assert_eq!(
            (error.kind(), error.object_name()),
            (Kind::Corrupt, Some("catalogue"))
        );
    }
}
