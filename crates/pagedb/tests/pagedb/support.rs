//! Stores on simulated disks, processes that are killed, and the comparisons that all tests make.

use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use mover_base::checksum::sha256;
use mover_base::{Kind, Lsn, Timestamp};
use mover_pagedb::random::Random;
use mover_pagedb::workload::accounts;
use mover_pagedb::{Contents, Database, Journal, Options, SimDisk, Workload};
use mover_source::disk::{DirDisk, Disk};
use mover_source::page::PAGE_HEADER_BYTES;
use mover_source::pages::{Store, TableFile, new_identity};
use mover_source::wal::{LogIdentity, SegmentSize};

pub const TIME: Timestamp = Timestamp::from_micros(1_795_371_249_000_000);
pub const SUM: i64 = mover_pagedb::workload::BALANCE * mover_pagedb::workload::ACCOUNT_ROWS as i64;

pub fn identity(seed: u64, log2: u8) -> LogIdentity {
    let mut random = [9; 32];
    random[..8].copy_from_slice(&seed.to_le_bytes());
    random[16..24].copy_from_slice(&seed.to_le_bytes());
    new_identity(random, SegmentSize::new(log2).unwrap())
}

pub fn arc(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// A new database with its accounts.
pub fn create(disk: &SimDisk, seed: u64, log2: u8, options: Options) -> Database {
    Store::create(arc(disk), identity(seed, log2)).unwrap();
    let (database, _) = Database::open(arc(disk), options).unwrap();
    database.commit(&accounts(seed)).unwrap();
    database
}

/// Runs `count` transactions of a client, with checkpoints at random.
pub fn run(database: &Database, workload: &mut Workload, random: &mut Random, count: u64) {
    for _ in 0..count {
        database.commit(&workload.next_transaction()).unwrap();
        if random.below(20) == 0 {
            database.checkpoint().unwrap();
        }
    }
}

/// Compares rows and pages with the model at `end`.
pub fn compare(database: &Database, disk: &SimDisk, journal: &Journal, end: Lsn) {
    let contents = database.contents().unwrap();
    assert_same(&contents, &journal.contents_at(end));
    for ((table, page), wanted) in journal.pages_at(end) {
        let file = TableFile::open_read(disk, table).unwrap().expect("table");
        let (bytes, lsn) = file.read_checked(page).unwrap();
        let same = sha256(&bytes[PAGE_HEADER_BYTES..]) == wanted;
        assert!(same, "table {table:08x}, page {page} of {lsn} differs");
        assert!(lsn < end && lsn > Lsn(0));
    }
}

pub fn assert_same(contents: &Contents, wanted: &Contents) {
    let names = |c: &Contents| c.0.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(contents), names(wanted));
    for (name, rows) in &wanted.0 {
        assert!(contents.0[name] == *rows, "{name} differs");
    }
    if wanted.0.contains_key("accounts") {
        assert_eq!(contents.sum(), SUM);
    }
}

/// A process that is killed, and gone, when this is dropped, also by a test that fails: a [`Child`] alone would go on.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The directory, locked. A program that another test of this process is about to start has the descriptors that were
/// closed here until it runs, and with them the lock: it is waited for.
pub fn locked(path: &Path) -> DirDisk {
    for _ in 0..500 {
        match DirDisk::open_locked(path) {
            Err(error) if error.kind() == Kind::Conflict => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("{} is locked", path.display());
}
