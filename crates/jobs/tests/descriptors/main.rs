//! What a backup or a restore of many small files holds at a time, seen from outside: a process of its own with few descriptors.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

#[allow(dead_code)] // Other tests use the rest.
#[path = "../jobs/fixture.rs"]
mod fixture;

use std::fs;
use std::sync::Arc;

use mover_jobs::BackupType;
use mover_jobs::backup::{BackupOptions, BackupSummary};
use mover_pagedb::{Database, Op, Options};
use mover_source::disk::{DirDisk, Disk};
use mover_source::pages::{Store, new_identity};
use mover_source::wal::SegmentSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fixture::{Place, engine};

const TABLES: u64 = 600;
/// Far fewer than tables: what a shard queues at most, 24 files, and what it has open beside them.
const DESCRIPTORS: u64 = 72;

/// The same for a restore by two shards: on each 8 files ahead, 16 whose last writes or ends are under way, and 16 of the
/// repository.
const DESCRIPTORS_TO_RESTORE: u64 = 120;

/// A stopped store of many tables with a row in each.
fn many_tables(place: &Place) {
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&place.path("source")).unwrap());
    let identity = new_identity([4; 32], SegmentSize::new(18).unwrap());
    Store::create(Arc::clone(&disk), identity).unwrap();
    let (database, _) = Database::open(disk, Options::default()).unwrap();
    for table in 0..TABLES {
        let name = format!("table-{table}");
        let row = Op::Insert(name.clone(), 1, vec![7; 100]);
        database.append(&[Op::Create(name), row]).unwrap();
    }
    database.checkpoint().unwrap();
}

#[test]
fn files_that_are_kept_do_not_pile_up_open() {
    let place = Place::plain();
    many_tables(&place);
    limit_to(DESCRIPTORS);
    let backup = |backup_type| -> BackupSummary {
        let options = BackupOptions {
            source: format!("pages://{}", place.path("source").display()),
            backup_type,
            ..place.backup_options()
        };
        place.try_backup(&engine(), &options).unwrap()
    };
    let full = backup(BackupType::Full);
    assert_eq!(full.bytes_kept, 0);
    // Nothing changed: all tables are opened and none is read.
    let made = backup(BackupType::Incremental);
    assert_eq!((made.reason, made.base), (None, Some(full.backup_id)));
    assert!(made.bytes_kept >= TABLES * 4096, "{}", made.bytes_kept);

    // What is right in the target is not written, and what is a hole neither.
    let files = place.path("files");
    fs::create_dir(&files).unwrap();
    for file in 0..TABLES {
        let path = files.join(format!("file-{file}"));
        match file % 2 {
            0 => fs::write(&path, [7; 4096]).unwrap(),
            _ => fixture::write_sparse(&path, 8192, &[]),
        }
    }
    let options = BackupOptions {
        source: format!("dir://{}", files.display()),
        backup_type: BackupType::Full,
        ..place.backup_options()
    };
    let made = place.try_backup(&engine(), &options).unwrap();
    let set = made.backup_id.to_string();
    limit_to(DESCRIPTORS_TO_RESTORE);
    for delta in [false, true] {
        let options = place.restore_options(&set, "target", delta);
        place.try_restore(&engine(), &options).unwrap();
        fixture::assert_same_trees(&files, &place.path("target"));
    }
}

/// Lets this process have so many descriptors, fewer than there are files.
fn limit_to(descriptors: u64) {
    let limit = getrlimit(Resource::Nofile);
    assert!(limit.maximum.is_none_or(|most| most > TABLES));
    let few = Rlimit {
        current: Some(descriptors),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, few).unwrap();
    // The limit is one: as many files cannot be open.
    let null = || fs::File::open("/dev/null");
    let opened: Result<Vec<_>, _> = (0..TABLES).map(|_| null()).collect();
    assert!(opened.is_err());
}
