//! The tracker on a disk that is full: the database runs without, nothing that was known is lost, and the tracker is taken up
//! where there is room again.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use mover_base::{Kind, Lsn, LsnRange};
use mover_client::{Capacity, Doubt, Reset};
use mover_pagedb::workload::accounts;
use mover_pagedb::{Database, Workload};
use mover_source::delta::BUDGET_BYTES_DEFAULT;
use mover_source::pages::Store;
use mover_source::tracker::{Invalid, LIVE_FILE, STATE_FILE, TRACKER_DIR};

use crate::support::*;
use crate::tracker::*;

const MIB: u64 = 1 << 20;
/// Room for some of the log, and for no live file: the smallest takes 1.03 MiB.
const SCANT: u64 = MIB / 2;

/// A file system in memory of 16 MiB; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let disk = SmallDisk(tempfile::tempdir().unwrap());
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
            .arg(disk.0.path())
            .status();
        assert!(
            mounted.expect("mount runs").success(),
            "this test needs root"
        );
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes all room but `left` bytes.
    fn fill(&self, left: u64) {
        let mut file = File::create(self.filler()).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let bytes = file.metadata().unwrap().len();
        file.set_len(bytes - left).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, so that a failed test which still has a file open leaves no mount behind.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A store on a small disk, whose database has just been opened and is not tracked yet.
struct Site {
    disk: SmallDisk,
    database: Database,
    workload: Workload,
}

impl Site {
    fn path(&self) -> &Path {
        self.disk.path()
    }

    /// Changes pages, and returns up to where the log is durable.
    fn go_on(&mut self) -> Lsn {
        for _ in 0..3 {
            let ops = self.workload.next_transaction();
            self.database.commit(&ops).unwrap();
        }
        self.database.writer().durable()
    }

    /// The database is killed and opened again.
    fn restart(self) -> Self {
        let Site {
            disk,
            database,
            workload,
        } = self;
        drop(database);
        let database = open(disk.path(), false).0;
        Site {
            disk,
            database,
            workload,
        }
    }

    /// Taking the tracker up fails for want of room, and leaves nothing half done.
    #[track_caller]
    fn finds_no_room(&mut self, log2: u8) {
        let path = self.disk.path();
        let error = self
            .database
            .track(path, Some(Capacity::new(log2).unwrap()))
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        assert_eq!(error.object_name(), Some(LIVE_FILE), "{error}");
        assert!(error.to_string().contains("No space left"), "{error}");
        let left = std::fs::read_dir(path.join(TRACKER_DIR)).unwrap();
        for name in left.map(|entry| entry.unwrap().file_name()) {
            let name = name.into_string().unwrap();
            assert!(!name.ends_with(".new"), "{name}");
        }
    }

    #[track_caller]
    fn assert_known_from(&self, start: Lsn, context: &str) {
        let end = self.database.writer().durable();
        let range = LsnRange { start, end };
        let epochs = epochs(self.path());
        let changed = epochs.changed(range, BUDGET_BYTES_DEFAULT).unwrap();
        assert_holds(&changed, &extracted(self.path(), range), context);
    }
}

#[test]
fn a_full_disk_costs_the_tracker_nothing_that_it_knew() {
    let disk = SmallDisk::new();
    Store::create(real(disk.path()), identity(71, 14)).unwrap();
    let database = open(disk.path(), false).0;
    database.commit(&accounts(71)).unwrap();
    let workload = Workload::new(71, 0);
    let mut site = Site {
        disk,
        database,
        workload,
    };

    // There is no room for the first live file: then there is no tracker, and whoever asks is told so.
    site.disk.fill(SCANT);
    site.finds_no_room(10);
    site.go_on();
    assert_eq!(epochs(site.path()).state(), Err(Invalid::Missing));
    site.disk.free();
    let mut site = site.restart();
    let found = site
        .database
        .track(site.disk.path(), Some(Capacity::new(10).unwrap()));
    assert_eq!(found.unwrap().reset, Some(Reset::New));
    let base = site.database.writer().durable();
    site.go_on();
    site.assert_known_from(base, "begun late");

    // The live file is lost, and there is no room to make it anew.
    let mut site = site.restart();
    std::fs::remove_file(site.path().join(LIVE_FILE)).unwrap();
    site.disk.fill(SCANT);
    site.finds_no_room(10);
    site.go_on();
    site.assert_known_from(base, "not made anew");
    site.disk.free();
    let mut site = site.restart();
    let found = site
        .database
        .track(site.disk.path(), Some(Capacity::new(10).unwrap()));
    let found = found.unwrap();
    assert_eq!((found.doubt, found.reset), (Some(Doubt::Missing), None));
    site.go_on();
    site.assert_known_from(base, "made anew");

    // A larger one is wanted than there is room for.
    let mut site = site.restart();
    site.disk.fill(SCANT);
    site.finds_no_room(11);
    site.go_on();
    site.assert_known_from(base, "not made larger");
    site.disk.free();
    let mut site = site.restart();
    let found = site
        .database
        .track(site.disk.path(), Some(Capacity::new(11).unwrap()));
    assert_eq!(found.unwrap().reset, None);
    let end = site.go_on();
    site.assert_known_from(base, "made larger");

    // Not a block is left when an epoch is to be ended.
    let state = std::fs::read(site.path().join(STATE_FILE)).unwrap();
    site.disk.fill(0);
    for _ in 0..2 {
        let error = epochs(site.path())
            .switch(end, BUDGET_BYTES_DEFAULT)
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        site.assert_known_from(base, "not ended");
    }
    assert_eq!(std::fs::read(site.path().join(STATE_FILE)).unwrap(), state);
    site.disk.free();
    let done = epochs(site.path())
        .switch(end, BUDGET_BYTES_DEFAULT)
        .unwrap();
    assert_eq!((done.reset, done.doubt), (None, None));
    site.go_on();
    site.assert_known_from(base, "ended");
    site.assert_known_from(end, "since it was ended");
}
