//! What backups hold of the log: counted while they run, whoever asks, and not a moment longer.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mover_base::{Kind, Lsn};
use mover_client::Tracker;
use mover_source::pages::read_catalogue;
use mover_source::tracker::TRACKER_DIR;

use crate::support::Killed;
use crate::tracker::{directory, epochs, make, real};

/// The tracker of a store without a database that runs.
fn tracked(path: &Path, seed: u64) -> Tracker {
    let database = make(path, seed, 14);
    let identity = *database.writer().identity();
    let end = database.close().unwrap();
    let catalogue = read_catalogue(&*real(path)).unwrap();
    Tracker::open(path, identity, end, &catalogue).unwrap().0
}

#[test]
fn the_earliest_of_what_running_backups_need_is_held() {
    let dir = directory();
    let tracker = tracked(dir.path(), 31);
    let held = || tracker.log_held_from().unwrap();
    assert_eq!(held(), None);
    let first = epochs(dir.path()).hold_log().unwrap();
    assert_eq!(held(), Some(Lsn(0)), "all of it, until it is told");
    first.keep_from(Lsn(9000)).unwrap();
    assert_eq!(held(), Some(Lsn(9000)));
    let second = epochs(dir.path()).hold_log().unwrap();
    assert_eq!(held(), Some(Lsn(0)));
    second.keep_from(Lsn(u64::MAX / 2)).unwrap();
    assert_eq!(held(), Some(Lsn(9000)));
    drop(first);
    assert_eq!(held(), Some(Lsn(u64::MAX / 2)));
    drop(second);
    assert_eq!(held(), None);
    // What a process leaves that dies before its hold has a name is no hold, and in nobody's way.
    let path = |name: &str| dir.path().join(TRACKER_DIR).join(name);
    std::fs::write(path("hold.new"), [0; 3]).unwrap();
    assert_eq!(held(), None);
    drop(epochs(dir.path()).hold_log().unwrap());
    assert!(!path("hold.new").exists());
    // A name that leads elsewhere is not followed, and what cannot be read holds everything.
    symlink("/etc/passwd", path("hold-0123456789abcdef")).unwrap();
    assert_eq!(held(), Some(Lsn(0)));
    std::fs::remove_file(path("hold-0123456789abcdef")).unwrap();
    // Without the directory nobody holds anything; what is no directory cannot be asked.
    std::fs::rename(dir.path().join(TRACKER_DIR), dir.path().join("aside")).unwrap();
    assert_eq!(held(), None);
    std::fs::write(dir.path().join(TRACKER_DIR), []).unwrap();
    assert_eq!(tracker.log_held_from().unwrap_err().kind(), Kind::Source);
}

#[test]
fn a_killed_backup_holds_nothing() {
    let dir = directory();
    let tracker = tracked(dir.path(), 32);
    let path = |name: &str| dir.path().join(TRACKER_DIR).join(name);
    // Another process, which has the lock before the file has its name.
    std::fs::write(path("hold.new"), 8192u64.to_le_bytes()).unwrap();
    let process = Command::new("flock")
        .args(["--no-fork", "--exclusive"])
        .arg(path("hold.new"))
        .args(["sleep", "600"])
        .spawn()
        .unwrap();
    let mut process = Killed(process);
    let file = std::fs::File::open(path("hold.new")).unwrap();
    while file.try_lock_shared().is_ok() {
        file.unlock().unwrap();
        assert_eq!(process.0.try_wait().unwrap(), None, "it ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::rename(path("hold.new"), path("hold-00000000000000ff")).unwrap();
    assert_eq!(tracker.log_held_from().unwrap(), Some(Lsn(8192)));
    drop(process);
    assert!(path("hold-00000000000000ff").exists());
    assert_eq!(tracker.log_held_from().unwrap(), None);
    assert!(!path("hold-00000000000000ff").exists());
}
