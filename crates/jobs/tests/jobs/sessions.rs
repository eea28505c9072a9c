//! Who may write and who may read, several writers, and jobs that are cancelled.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use mover_base::Kind;
use mover_jobs::{Credentials, Engine, JobLimits, RateBudget, backup, catalogue, restore, verify};

use crate::fixture::{BLOCK, MIB, Place, Random, assert_same_trees, engine};

#[test]
fn a_host_without_a_key_writes_what_only_a_reader_restores() {
    let place = Place::sealed();
    fs::write(place.source("a"), Random(1).bytes(3 * MIB + 5)).unwrap();
    let nothing = place.access_with(Credentials::None);
    let mut options = place.backup_options();
    options.repo = nothing.clone();
    let first = place.try_backup(&engine(), &options).unwrap();
    assert!(!first.reads_earlier_backups && first.encrypted);
    assert!(
        first
            .warnings
            .iter()
            .any(|warning| warning.contains("no key"))
    );
    // It cannot see that it has stored everything already.
    let second = place.try_backup(&engine(), &options).unwrap();
    assert_eq!(second.parent, None);
    assert_eq!(second.bytes_new, first.bytes_new);

    let kind = |result: mover_base::Result<()>| result.unwrap_err().kind();
    let shown = catalogue::show(&engine(), &nothing, "latest");
    assert_eq!(kind(shown.map(drop)), Kind::Key);
    for item in catalogue::list(&engine(), &nothing).unwrap().backups {
        assert!(!item.readable && item.metadata.is_none() && item.problem.is_some());
    }
    let mut restore = place.restore_options("latest", "out", false);
    restore.repo = nothing.clone();
    let restored = restore::plan(&engine(), &restore, &mut |_, _| {});
    assert_eq!(kind(restored.map(drop)), Kind::Key);
    assert!(!place.path("out").exists());
    let mut check = place.verify_options(None);
    check.repo = nothing;
    let verified = verify::execute(&engine(), &check, &mut |_, _| {});
    assert_eq!(kind(verified.map(drop)), Kind::Key);

    let shown = catalogue::show(&engine(), &place.access(), "latest").unwrap();
    assert_eq!(shown.authenticity, "recipient_only");
    assert_eq!(shown.metadata.backup_id, second.backup_id);
    place.restore_is_exact("latest", "out");
    place.verify_is_ok(None);
}

#[test]
fn a_writer_that_can_read_proves_it() {
    let place = Place::sealed();
    fs::write(place.source("a"), b"a").unwrap();
    place.backup();
    let shown = catalogue::show(&engine(), &place.access(), "latest").unwrap();
    assert_eq!(shown.authenticity, "master_key");
    let plain = Place::plain();
    fs::write(plain.source("a"), b"a").unwrap();
    plain.backup();
    let shown = catalogue::show(&engine(), &plain.access(), "latest").unwrap();
    assert_eq!(shown.authenticity, "none");
}

/// Both plan on the same parent; both backups are whole.
#[test]
fn two_writers_with_the_same_parent_do_not_disturb_each_other() {
    let place = Place::sealed();
    let mut random = Random(2);
    fs::write(place.source("a"), random.bytes(5 * MIB)).unwrap();
    place.backup();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(place.source("a"))
        .unwrap();
    file.write_all_at(&random.bytes(BLOCK), MIB as u64).unwrap();
    drop(file);
    let one = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let two = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    assert_eq!(one.parent, two.parent);
    // Plans are not sent between threads; each writer plans and executes on its own.
    drop((one, two));
    let ids: Vec<String> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2).map(|_| scope.spawn(|| place.backup())).collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap().backup_id.to_string())
            .collect()
    });
    assert_ne!(ids[0], ids[1]);
    for id in &ids {
        place.restore_is_exact(id, id);
    }
    place.verify_is_ok(None);
    let one = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let two = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    for plan in [one, two] {
        let done = backup::execute(&engine(), plan, &mut |_, _| {}).unwrap();
        assert_eq!(done.bytes_new, 0);
        let id = done.backup_id.to_string();
        place.restore_is_exact(&id, &id);
    }
}

/// Slow enough to be cancelled while bytes flow.
fn slow() -> Engine {
    Engine {
        limits: JobLimits {
            read: RateBudget::new(Some(MIB as u64)),
            write: RateBudget::new(Some(MIB as u64)),
        },
        ..engine()
    }
}

#[test]
fn a_cancelled_backup_publishes_nothing() {
    let place = Place::plain();
    fs::write(place.source("a"), Random(3).bytes(40 * MIB)).unwrap();
    let plan = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let result = backup::execute(&slow(), plan, &mut |progress, stop| {
        if progress.read().bytes_done > 0 {
            stop.raise();
        }
    });
    assert_eq!(result.map(drop).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(place.objects("backups/"), [""; 0]);
    // What it left is no obstacle.
    place.backup();
    place.restore_is_exact("latest", "out");
    let verified = place.try_verify(None).unwrap();
    assert!(verified.ok);
}

#[test]
fn a_cancelled_restore_leaves_no_target() {
    let place = Place::plain();
    fs::write(place.source("a"), Random(4).bytes(40 * MIB)).unwrap();
    place.backup();
    let options = place.restore_options("latest", "out", false);
    let plan = restore::plan(&engine(), &options, &mut |_, _| {}).unwrap();
    let result = restore::execute(&slow(), plan, &mut |_, stop| stop.raise());
    assert_eq!(result.map(drop).unwrap_err().kind(), Kind::Cancelled);
    assert!(!place.path("out").exists());
    place.restore_is_exact("latest", "out");
}

#[test]
fn a_backup_that_no_manifest_can_hold_takes_its_session_back() {
    let place = Place::sealed();
    fs::write(place.source("a"), Random(6).bytes(MIB)).unwrap();
    let mut options = place.backup_options();
    options.annotations = [("note".to_owned(), "x".repeat(MIB))].into();
    let result = place.try_backup(&engine(), &options);
    let error = result.map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit, "{error}");
    assert_eq!(error.kind().exit_code(), 60);
    assert!(error.hint_text().is_some(), "{error}");
    for nothing in ["backups/", "sessions/"] {
        assert_eq!(place.objects(nothing), [""; 0]);
    }
    options.annotations.clear();
    place.try_backup(&engine(), &options).unwrap();
    place.restore_is_exact("latest", "out");
}

#[test]
fn a_source_that_changes_under_the_job_is_an_error_and_publishes_nothing() {
    let place = Place::plain();
    fs::write(place.source("a"), Random(5).bytes(MIB)).unwrap();
    let changes: [&dyn Fn(); 4] = [
        &|| fs::write(place.source("a"), b"shorter").unwrap(),
        &|| fs::write(place.source("new"), b"n").unwrap(),
        &|| fs::remove_file(place.source("a")).unwrap(),
        &|| fs::rename(place.source("new"), place.source("other")).unwrap(),
    ];
    for change in changes {
        let plan = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
        // Time stamps of files tick every few milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        change();
        let result = backup::execute(&engine(), plan, &mut |_, _| {});
        assert_eq!(result.map(drop).unwrap_err().kind(), Kind::SourceChanged);
        assert_eq!(place.objects("backups/"), [""; 0]);
    }
    place.backup();
    place
        .try_restore(&engine(), &place.restore_options("latest", "out", false))
        .unwrap();
    assert_same_trees(&place.path("source"), &place.path("out"));
}
