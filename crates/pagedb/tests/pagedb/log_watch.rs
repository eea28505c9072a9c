//! Going through a log: whoever does it says so about every MiB, and ends when it is told to.

use std::io;
use std::sync::{Arc, Mutex};

use mover_base::{Error, Kind, LsnRange, Result};
use mover_pagedb::{Bulk, Database, Options, SimDisk, Workload};
use mover_source::delta::{BUDGET_BYTES_DEFAULT, extract};
use mover_source::disk::{Access, DirDisk, Disk, DiskFile};
use mover_source::pages::Store;
use mover_source::wal::{LogReader, Verify, find_end};

use crate::support::*;

const MIB: u64 = 1 << 20;

/// A disk that notes what it is told, and ends whoever tells it so often.
#[derive(Debug)]
struct Told {
    disk: SimDisk,
    told: Mutex<Vec<u64>>,
    times: usize,
}

impl Told {
    fn new(disk: &SimDisk, times: usize) -> Arc<Told> {
        Arc::new(Told {
            disk: disk.clone(),
            told: Mutex::default(),
            times,
        })
    }

    fn told(&self) -> Vec<u64> {
        self.told.lock().unwrap().clone()
    }
}

impl Disk for Told {
    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open(path, access)
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

    fn advance(&self, bytes: u64) -> Result<()> {
        let mut told = self.told.lock().unwrap();
        told.push(bytes);
        match told.len() > self.times {
            true => Err(Error::new(Kind::Cancelled, "enough")),
            false => Ok(()),
        }
    }
}

#[test]
fn whoever_goes_through_a_log_says_so_every_mib_and_ends_when_it_is_told_to() {
    let sim = SimDisk::new();
    let identity = identity(81, 20);
    let mut bulk = Bulk::make(&arc(&sim), identity, 81, 2000).unwrap();
    bulk.change(1800).unwrap();
    drop(bulk);
    let start = identity.size.data_of(identity.first_segment());
    let end = find_end(&sim, &identity, start).unwrap().end;
    let range = LsnRange { start, end };
    let bytes = end.0 - start.0;
    assert!(bytes > 7 * MIB, "{bytes}");
    type Walk = fn(Arc<Told>, LsnRange) -> Result<()>;
    let walks: [Walk; 3] = [
        |disk, range| find_end(&*disk, &self::identity(81, 20), range.start).map(drop),
        |disk, range| {
            let reader = LogReader::new(disk, self::identity(81, 20), Verify::Records);
            reader.read(range, |_, _, _| Ok(()))
        },
        |disk, range| extract(disk, self::identity(81, 20), range, BUDGET_BYTES_DEFAULT).map(drop),
    ];
    for walk in walks {
        let disk = Told::new(&sim, usize::MAX);
        walk(Arc::clone(&disk), range).unwrap();
        let told = disk.told();
        assert_eq!(told[0], 0, "asked before the first byte: {told:?}");
        // A record is 64 KiB at most.
        assert!(
            told[1..]
                .iter()
                .all(|n| (MIB..MIB + (64 << 10)).contains(n)),
            "{told:?}"
        );
        let sum: u64 = told.iter().sum();
        assert!(sum <= bytes && bytes - sum < MIB, "{sum} of {bytes}");
        for times in 0..told.len() {
            let disk = Told::new(&sim, times);
            let error = walk(Arc::clone(&disk), range).unwrap_err();
            assert_eq!(error.kind(), Kind::Cancelled, "{error}");
            assert_eq!(disk.told(), told[..=times]);
        }
    }
}

#[test]
fn a_recovery_that_is_ended_anywhere_is_begun_anew() {
    let options = Options {
        pool_pages: 24,
        journal: true,
    };
    let sim = SimDisk::new();
    let database = create(&sim, 82, 18, options);
    let mut workload = Workload::new(82, 0);
    let begun = database.writer().end();
    while database.writer().end().0 - begun.0 < 3 * MIB {
        database.append(&workload.next_transaction()).unwrap();
    }
    let end = database.writer().end();
    database.writer().flush_to(end).unwrap();
    let journal = database.journal();
    drop(database);
    let recover = |disk: Arc<Told>| Store::open(disk)?.recover(options.pool_pages).map(drop);
    let whole = Told::new(&sim.copy(), usize::MAX);
    recover(Arc::clone(&whole)).unwrap();
    let calls = whole.told().len();
    assert!(calls >= 8, "found, and then redone: {:?}", whole.told());
    for times in 0..calls {
        let disk = sim.copy();
        let error = recover(Told::new(&disk, times)).unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{error}");
        let (database, found) = Database::open(arc(&disk), options).unwrap();
        assert_eq!(found, end);
        compare(&database, &disk, &journal, end);
    }
}

#[test]
fn a_directory_counts_what_was_gone_through_until_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let disk = DirDisk::open(dir.path()).unwrap();
    let watch = disk.watch();
    disk.advance(5).unwrap();
    disk.advance(7).unwrap();
    assert_eq!(watch.bytes(), 12);
    watch.stop();
    assert_eq!(disk.advance(0).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(watch.check().unwrap_err().kind(), Kind::Cancelled);
    // Others of the same directory go on.
    DirDisk::open(dir.path()).unwrap().advance(1).unwrap();
    assert_eq!(watch.bytes(), 12);
}
