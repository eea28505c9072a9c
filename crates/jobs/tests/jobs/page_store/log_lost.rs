//! Backups of a store without a tracker, part of whose log cannot be read: what only tells what changed since the base makes the
//! next backup a full one; what recovery needs makes it fail.

use super::*;

/// Puts a directory in the place of the segment that begins at `start`; it is opened, and not read.
fn make_unreadable(site: &Site, start: Lsn) {
    let control = read_control(&*disk(&site.place.path("source"))).unwrap();
    let path = site.place.source(&control.identity.path(start));
    fs::remove_file(&path).unwrap();
    fs::create_dir(path).unwrap();
}

#[test]
fn a_segment_that_cannot_be_read_fails_a_backup_only_if_recovery_needs_it() {
    // Where the base's log begins, and where it ends: in one segment, or in two.
    for ends in [false, true] {
        let mut site = Site::new(60, 14);
        site.run(40);
        site.database().checkpoint().unwrap();
        let full = site.backup(BackupType::Full);
        site.run(60);
        site.database().checkpoint().unwrap();
        let size = SegmentSize::new(14).unwrap();
        let last = Lsn(full.end().0 - 1);
        let start = match ends {
            true => size.start_of(last),
            false => size.start_of(full.summary.lsn_range.unwrap().start),
        };
        assert!(start < site.redo_segment());
        make_unreadable(&site, start);
        let made = site.backup(BackupType::Incremental);
        assert_eq!(made.summary.backup_type, BackupType::Full);
        let reason = made.summary.reason.as_ref().expect("a reason");
        assert!(reason.contains("cannot be read"), "{reason}");
        site.check(&made);

        make_unreadable(&site, site.redo_segment());
        for backup_type in [BackupType::Incremental, BackupType::Full] {
            let error = site.try_backup(backup_type).map(drop).unwrap_err();
            assert_eq!(error.kind(), Kind::Source, "{error}");
        }
    }
}
