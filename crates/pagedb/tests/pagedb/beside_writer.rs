//! The end of a log that grows between the read of a piece and the look at it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use mover_base::{Kind, Lsn, LsnRange};
use mover_pagedb::SimDisk;
use mover_source::disk::{Access, Disk, DiskFile};
use mover_source::page::BODY_BYTES;
use mover_source::pages::Store;
use mover_source::wal::segment::LOG_DIR;
use mover_source::wal::{
    Group, LogReader, SegmentSize, Verify, Writer, find_end, find_end_beside_writer,
};

use crate::support::*;

const SEED: u64 = 93;

/// A disk as the backup sees it: whenever a piece of the log was read, and before it is looked at, the database goes on.
#[derive(Debug)]
struct Growing {
    disk: SimDisk,
    writer: Arc<Writer>,
    /// Flushes that each read is followed by.
    flushes: usize,
    /// Reads that are followed by any.
    reads: Arc<AtomicUsize>,
    bytes: Arc<AtomicU64>,
}

#[derive(Debug)]
struct GrowingFile {
    file: Box<dyn DiskFile>,
    writer: Arc<Writer>,
    flushes: usize,
    reads: Arc<AtomicUsize>,
    bytes: Arc<AtomicU64>,
}

fn pages(count: u32) -> Group {
    let mut group = Group::new();
    for page in 0..count {
        group.image(1, page, &[6; BODY_BYTES]).unwrap();
    }
    group
}

fn commit(writer: &Writer, count: u32) -> Lsn {
    let end = writer.append(&pages(count), 9, TIME).unwrap().end;
    writer.flush_to(end).unwrap();
    end
}

impl Disk for Growing {
    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn DiskFile>> {
        assert!(path.starts_with(LOG_DIR));
        Ok(Box::new(GrowingFile {
            file: self.disk.open(path, access)?,
            writer: self.writer.clone(),
            flushes: self.flushes,
            reads: self.reads.clone(),
            bytes: self.bytes.clone(),
        }))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.disk.make_dir(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
}

impl DiskFile for GrowingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.file.read_at(buffer, offset)?;
        self.bytes.fetch_add(read as u64, SeqCst);
        let left = self
            .reads
            .fetch_update(SeqCst, SeqCst, |reads| reads.checked_sub(1));
        if left.is_ok() {
            for _ in 0..self.flushes {
                commit(&self.writer, 1);
            }
        }
        Ok(read)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

/// A log of ten segments and a half, and where a group ends in its second.
fn grown(log2: u8, flushes: usize, reads: usize) -> (Growing, Lsn) {
    let disk = SimDisk::new();
    let mut store = Store::create(arc(&disk), identity(SEED, log2)).unwrap();
    let writer = store.recover(4).unwrap().writer;
    let size = SegmentSize::new(log2).unwrap().bytes();
    let count = (size / 4096 / 8).max(1) as u32;
    let mut from = Lsn(0);
    loop {
        let end = commit(&writer, count);
        if from == Lsn(0) && end.0 > size {
            from = end;
        }
        if end.0 > 10 * size + size / 2 {
            break;
        }
    }
    let growing = Growing {
        disk,
        writer: Arc::new(writer),
        flushes,
        reads: Arc::new(AtomicUsize::new(reads)),
        bytes: Arc::default(),
    };
    (growing, from)
}

/// The range once, with headers and footers, and of the segments at its end what is looked at again.
fn bytes_max(log2: u8, range: LsnRange) -> u64 {
    let size = SegmentSize::new(log2).unwrap().bytes();
    let range = range.end.0 - range.start.0;
    range + (range / size + 8) * 8192 + 3 * size
}

#[test]
fn a_log_that_grows_while_it_is_read_is_neither_damaged_nor_read_again() {
    for (log2, flushes, reads) in [
        (14, 1, usize::MAX),
        (16, 1, usize::MAX),
        (16, 3, usize::MAX),
        (20, 3, usize::MAX),
        (20, 20, usize::MAX),
        (22, 7, usize::MAX),
        (20, 3, 40),
        (16, 0, 0),
    ] {
        let context = format!("2^{log2}, {flushes} flushes after each of {reads} reads");
        let (disk, from) = grown(log2, flushes, reads);
        let durable = disk.writer.durable();
        let identity = identity(SEED, log2);
        let newest = Lsn(durable.0 - 1);
        let end = find_end_beside_writer(&disk, &identity, from, newest);
        let end = end.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert!(end >= durable, "{context}: {end}, and {durable} is durable");
        let range = LsnRange { start: from, end };
        let (read, max) = (disk.bytes.load(SeqCst), bytes_max(log2, range));
        assert!(read <= max, "{context}: {read} of {max} bytes");
        // It is the end of a group, and all before it is there.
        LogReader::new(arc(&disk.disk), identity, Verify::Segments)
            .read(range, |_, _, _| Ok(()))
            .unwrap();
    }
}

/// The machine stopped while a flush was written that goes on in the next segment, and its first block is not there: where it
/// begins is not told, and what was acknowledged before it is in the backup all the same.
#[test]
fn a_flush_that_was_torn_at_its_beginning_takes_nothing_acknowledged_with_it() {
    const LOG2: u8 = 16;
    let disk = SimDisk::new();
    let identity = identity(SEED, LOG2);
    let mut store = Store::create(arc(&disk), identity).unwrap();
    let writer = store.recover(4).unwrap().writer;
    let size = identity.size.bytes();
    let from = identity.size.data_of(Lsn(0));
    commit(&writer, 2);
    let acknowledged = commit(&writer, 2);
    let begins = acknowledged.0.next_multiple_of(4096) as usize;
    assert!(commit(&writer, 20).0 > size);
    drop(writer);
    let path = identity.path(Lsn(0));
    let mut bytes = disk.bytes(&path);
    // Nor was it sealed.
    bytes[size as usize - 4096..].fill(0);
    let whole = bytes[begins..begins + 4096].to_vec();
    for written in [0, 512, 4095] {
        bytes[begins..begins + 4096].fill(0);
        bytes[begins..begins + written].copy_from_slice(&whole[..written]);
        disk.set(&path, &bytes);
        let found = find_end(&disk, &identity, from).unwrap();
        assert!(found.torn.is_some());
        let end = find_end_beside_writer(&disk, &identity, from, from).unwrap();
        assert_eq!((found.end, end), (acknowledged, acknowledged), "{written}");
    }
}

#[test]
fn damage_in_a_log_that_grows_is_found_and_told_as_such() {
    for (log2, flushes) in [(16, 0), (16, 2), (20, 3)] {
        let size = SegmentSize::new(log2).unwrap().bytes();
        // Within the sealed ones, and before the last flushes of the one that is written.
        for at in [5 * size + size / 2, 10 * size + size / 4] {
            let (disk, from) = grown(log2, flushes, usize::MAX);
            let identity = identity(SEED, log2);
            let start = Lsn(at / size * size);
            disk.disk
                .flip(&identity.path(start), (at - start.0) as usize + 100, 4);
            let durable = disk.writer.durable();
            let newest = Lsn(durable.0 - 1);
            let error = find_end_beside_writer(&disk, &identity, from, newest).unwrap_err();
            let context = format!("2^{log2}, {flushes} flushes, at {at}: {error}");
            assert_eq!(error.kind(), Kind::Corrupt, "{context}");
            assert!(error.to_string().contains("is damaged at"), "{context}");
            let end = disk.writer.durable();
            let max = bytes_max(log2, LsnRange { start: from, end });
            assert!(disk.bytes.load(SeqCst) <= max, "{context}");
        }
    }
}
