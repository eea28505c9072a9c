//! A store that is restored over and the database that belongs in it: never both at once, and never one half of each.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use mover_jobs::restore::RestoreOptions;
use mover_source::{DirTarget, TargetMode};

use super::*;

/// A stopped database, a backup of an earlier state of it, and how to go back to that.
fn stopped_later(seed: u64) -> (Site, Made, RestoreOptions) {
    let mut site = Site::new(seed, 14);
    site.run(20);
    let full = site.backup(BackupType::Full);
    site.run(20);
    site.kill();
    let id = full.summary.backup_id.to_string();
    let options = site.place.restore_options(&id, "source", true);
    (site, full, options)
}

/// Every name with the time of its last change and what is in it.
fn snapshot(root: &Path) -> Vec<(PathBuf, (i64, i64), Vec<u8>)> {
    let of = |path: PathBuf| {
        let found = path.symlink_metadata().unwrap();
        let content = found.is_file().then(|| fs::read(&path).unwrap());
        let changed = (found.ctime(), found.ctime_nsec());
        (path, changed, content.unwrap_or_default())
    };
    walk(root).into_iter().map(of).collect()
}

#[test]
fn a_delta_restore_beside_a_database_that_runs_is_refused_and_changes_nothing() {
    let (site, full, options) = stopped_later(70);
    let source = site.place.path("source");
    let locked: Arc<dyn Disk> = Arc::new(DirDisk::open_locked(&source).unwrap());
    let running = Database::open(locked, OPTIONS).unwrap();
    let before = snapshot(&source);
    let error = site.place.try_restore(&engine(), &options).err().unwrap();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
    let hint = error.hint_text().unwrap_or_default().to_owned();
    assert!(hint.contains("stop the database"), "{hint}");
    assert!(snapshot(&source) == before, "something was changed");
    drop(running);
    let restored = site.place.try_restore(&engine(), &options).unwrap();
    assert_eq!(restored.settled.unwrap().position, full.end().0);
    same(&source, &full.journal, full.end());
    // Nothing of the restore keeps the database out.
    DirDisk::open_locked(&source).unwrap();
}

/// One that does not lock its directory, and marks its changes.
#[test]
fn a_database_that_only_its_tracker_shows_is_not_restored_over() {
    let mut site = Site::with(72, 14, true);
    site.run(20);
    let full = site.backup(BackupType::Full);
    site.run(20);
    let source = site.place.path("source");
    let id = full.summary.backup_id.to_string();
    let options = site.place.restore_options(&id, "source", true);
    let before = snapshot(&source);
    let error = site.place.try_restore(&engine(), &options).err().unwrap();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
    assert!(error.to_string().contains("marks its changes"), "{error}");
    assert!(snapshot(&source) == before, "something was changed");
    site.kill();
    let restored = site.place.try_restore(&engine(), &options).unwrap();
    assert_eq!(restored.settled.unwrap().position, full.end().0);
}

#[test]
fn what_a_killed_delta_restore_left_is_not_opened_by_the_database_until_it_is_restored_to_the_end()
{
    let (site, full, options) = stopped_later(71);
    let source = site.place.path("source");
    // A restore that is killed leaves its marker, and the system lets go of its locks.
    drop(DirTarget::begin(DirTarget::plan(&source, TargetMode::Delta).unwrap()).unwrap());
    let error = Database::open(disk(&source), OPTIONS).err().unwrap();
    assert_eq!(error.kind(), Kind::Source, "{error}");
    assert!(error.to_string().contains("unfinished restore"), "{error}");
    site.place.try_restore(&engine(), &options).unwrap();
    same(&source, &full.journal, full.end());
}
