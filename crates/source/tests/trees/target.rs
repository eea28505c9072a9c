//! Targets: what is refused, what is staged, and that nothing outside is ever touched.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use mover_base::Kind;
use mover_base::entries::EntryList;
use mover_base::tree::{Entry, EntryKind};
use mover_source::disk::DirDisk;
use mover_source::{DirSource, DirTarget, RESTORE_MARKER, ScanOptions, TargetMode, target_error};

use crate::support::{
    Mounted, assert_same, entry, failure, fill, listing, require_root, restore, scan, wanted,
};

const FILE: EntryKind = EntryKind::File { bytes: 0 };
/// A user who may do nothing that the owner of a file may not.
pub const NOBODY: u32 = 65_534;

/// Does `work` as that user, which root alone can.
pub fn as_nobody<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = std::thread::spawn(move || {
        let nobody = rustix::fs::Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        work()
    });
    done.join().unwrap()
}

fn begin(path: &Path, mode: TargetMode) -> DirTarget {
    DirTarget::begin(DirTarget::plan(path, mode).unwrap()).unwrap()
}

fn small_tree(root: &Path) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("d/f"), b"content").unwrap();
    symlink("d/f", root.join("l")).unwrap();
}

#[test]
fn a_target_that_holds_something_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"mine").unwrap();
    let (kind, text, error) = failure(DirTarget::plan(dir.path(), TargetMode::Fresh));
    assert_eq!(kind, Kind::Target);
    assert!(text.contains("not empty"), "{text}");
    assert!(error.hint_text().unwrap().contains("--delta"));
    for (path, mode) in [
        ("f", TargetMode::Fresh),
        ("f", TargetMode::Delta),
        ("absent", TargetMode::Delta),
        ("absent/below", TargetMode::Fresh),
    ] {
        assert_eq!(
            failure(DirTarget::plan(&dir.path().join(path), mode)).0,
            Kind::Target
        );
    }
    assert_eq!(
        failure(DirTarget::plan(Path::new("/"), TargetMode::Delta)).0,
        Kind::Target
    );
    assert_eq!(listing(dir.path()), ["f"]);
}

#[test]
fn more_bytes_than_are_free_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plan = DirTarget::plan(&dir.path().join("t"), TargetMode::Fresh).unwrap();
    plan.check_space(1).unwrap();
    let (kind, text, _) = failure(plan.check_space(u64::MAX / 2));
    assert_eq!(kind, Kind::Target);
    assert!(text.contains("is full: needs"), "{text}");
    let full = target_error("writing failed", b"f", rustix::io::Errno::NOSPC);
    assert_eq!(full.kind(), Kind::Target);
    assert_eq!(full.message(), "the target file system is full");
}

#[test]
fn nothing_shows_before_a_fresh_restore_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    small_tree(&from);
    let target = begin(&to, TargetMode::Fresh);
    fill(&target, &scan(&from), &from);
    assert!(!to.exists());
    let staged = listing(dir.path());
    assert!(
        staged[0].starts_with(".to.helios-mover-partial-"),
        "{staged:?}"
    );
    let staging = dir.path().join(&staged[0]);
    assert_eq!(staging.metadata().unwrap().mode() & 0o7777, 0o700);
    let (kind, text, _) = failure(DirTarget::plan(&to, TargetMode::Fresh));
    assert_eq!(kind, Kind::Conflict, "{text}");
    target.finish().unwrap();
    assert_eq!(listing(dir.path()), ["from", "to"]);
    assert_same(&from, &to);
}

#[test]
fn an_abandoned_or_dropped_restore_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    small_tree(&from);
    for is_dropped in [false, true] {
        let target = begin(&to, TargetMode::Fresh);
        fill(&target, &scan(&from), &from);
        if is_dropped {
            drop(target);
        } else {
            target.abandon().unwrap();
        }
        assert_eq!(listing(dir.path()), ["from"]);
    }
}

#[test]
fn a_target_filled_meanwhile_keeps_its_content_and_the_restored_tree() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    small_tree(&from);
    let target = begin(&to, TargetMode::Fresh);
    fill(&target, &scan(&from), &from);
    fs::create_dir(&to).unwrap();
    fs::write(to.join("mine"), b"mine").unwrap();
    let (kind, _, error) = failure(target.finish());
    assert_eq!(kind, Kind::Target);
    assert!(error.hint_text().is_some());
    assert_eq!(fs::read(to.join("mine")).unwrap(), b"mine");
    let staging = dir.path().join(&listing(dir.path())[0]);
    assert_same(&from, &staging);
}

/// A small tree, and an empty file system to restore it to. Dropped in this order.
struct MountPoint {
    from: PathBuf,
    to: PathBuf,
    _mounted: Mounted,
    _dir: tempfile::TempDir,
}

impl MountPoint {
    fn new() -> Self {
        require_root();
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        small_tree(&from);
        fs::create_dir(&to).unwrap();
        MountPoint {
            _mounted: Mounted::tmpfs(&to),
            from,
            to,
            _dir: dir,
        }
    }
}

#[test]
fn a_mount_point_is_filled_from_inside() {
    let MountPoint { from, to, .. } = &MountPoint::new();
    let target = begin(to, TargetMode::Fresh);
    fill(&target, &scan(from), from);
    assert!(listing(to)[0].starts_with(".helios-mover-partial-"));
    for mode in [TargetMode::Fresh, TargetMode::Delta] {
        assert_eq!(failure(DirTarget::plan(to, mode)).0, Kind::Conflict);
    }
    target.finish().unwrap();
    assert_same(from, to);
    assert_eq!(listing(to), listing(from));
}

#[test]
fn a_mount_point_that_came_to_hold_something_keeps_that_and_the_restored_tree() {
    let MountPoint { from, to, .. } = &MountPoint::new();
    let target = begin(to, TargetMode::Fresh);
    fill(&target, &scan(from), from);
    // Of a name that the backup has, too.
    fs::write(to.join("l"), b"theirs").unwrap();
    let (kind, text, error) = failure(target.finish());
    assert_eq!(kind, Kind::Target);
    assert!(text.contains("came to hold something"), "{text}");
    let names = listing(to);
    assert_eq!(names.len(), 2, "{names:?}");
    let kept = to.join(&names[0]);
    let hint = error.hint_text().unwrap();
    assert!(hint.contains(&names[0]), "{hint}");
    assert_eq!(names[1], "l");
    assert_eq!(fs::read(to.join("l")).unwrap(), b"theirs");
    assert_same(from, &kept);
}

#[test]
fn an_empty_lost_and_found_gives_way_to_that_of_the_backup() {
    let MountPoint { from, to, .. } = &MountPoint::new();
    fs::create_dir(to.join("lost+found")).unwrap();
    fs::create_dir(from.join("lost+found")).unwrap();
    fs::write(from.join("lost+found/#12"), b"rescued").unwrap();
    restore(from, to, TargetMode::Fresh);
    assert_same(from, to);
}

#[test]
fn what_a_dead_restore_left_inside_a_mount_point_is_removed() {
    let MountPoint { from, to, .. } = &MountPoint::new();
    let left = killed_restore(to, to);
    let plan = DirTarget::plan(to, TargetMode::Fresh).unwrap();
    assert_eq!(plan.dead_leftovers(), [left.canonicalize().unwrap()]);
    assert_eq!(plan.remove_leftovers(&|| Ok(())).unwrap(), [""; 0]);
    let target = DirTarget::begin(plan).unwrap();
    fill(&target, &scan(from), from);
    target.finish().unwrap();
    assert_same(from, to);
    // One that is not marked may hold anything: only --delta goes over it.
    fs::remove_dir_all(to.join("d")).unwrap();
    fs::remove_file(to.join("l")).unwrap();
    fs::create_dir(to.join(".helios-mover-partial-0123456789abcdef")).unwrap();
    let (_, text, error) = failure(DirTarget::plan(to, TargetMode::Fresh));
    assert!(text.contains("interrupted"), "{text}");
    assert!(error.hint_text().unwrap().contains("--delta"));
}

/// Leaves in `dir` what a restore to `to` leaves when it is killed, and gives its path.
///
/// The directory is renamed away and put back around the end of the restore, which is no other to it than if it
/// had never come to its end: the descriptors are closed and nothing is removed.
fn killed_restore(to: &Path, dir: &Path) -> PathBuf {
    let before = listing(dir);
    let target = begin(to, TargetMode::Fresh);
    target.make_dir(&entry(b"deep", EntryKind::Dir)).unwrap();
    drop(target.make_file(&entry(b"deep/file", FILE), &[]).unwrap());
    let mut names = listing(dir);
    names.retain(|name| !before.contains(name));
    let left = dir.join(names.first().expect("a staging directory"));
    let aside = dir.join("aside");
    fs::rename(&left, &aside).unwrap();
    drop(target);
    fs::rename(&aside, &left).unwrap();
    left
}

#[test]
fn what_a_dead_restore_left_is_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    small_tree(&from);
    let left = killed_restore(&to, dir.path());
    symlink(&from, left.join("link-out")).unwrap();
    fs::set_permissions(left.join("deep"), Permissions::from_mode(0o000)).unwrap();
    let plan = DirTarget::plan(&to, TargetMode::Fresh).unwrap();
    assert_eq!(plan.dead_leftovers(), [left.canonicalize().unwrap()]);
    assert!(left.exists(), "planning changes nothing");
    assert_eq!(plan.remove_leftovers(&|| Ok(())).unwrap(), [""; 0]);
    assert_eq!(listing(dir.path()), ["from"]);
    restore(&from, &to, TargetMode::Fresh);
    assert_same(&from, &to);
    assert_eq!(listing(dir.path()), ["from", "to"]);
}

/// A restore that died while it set modes has left such directories, and so has one that gives up there.
#[test]
fn what_a_restore_left_goes_where_its_owner_may_not_write() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let (root, to) = (dir.path().to_owned(), dir.path().join("to"));
    chown(&root, Some(NOBODY), None).unwrap();
    for mode in [0o555, 0o500, 0o400, 0o300, 0o000] {
        let (there, target) = (root.clone(), to.clone());
        let left = as_nobody(move || killed_restore(&target, &there));
        let inner = left.join("deep/inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("file"), b"x").unwrap();
        for path in [&inner, &left.join("deep")] {
            chown(path, Some(NOBODY), None).unwrap();
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let target = to.clone();
        as_nobody(move || {
            let plan = DirTarget::plan(&target, TargetMode::Fresh).unwrap();
            assert_eq!(plan.dead_leftovers(), [left.canonicalize().unwrap()]);
            assert_eq!(plan.remove_leftovers(&|| Ok(())).unwrap(), [""; 0]);
        });
        assert!(listing(&root).is_empty(), "{mode:o}");

        let (there, target) = (root.clone(), to.clone());
        as_nobody(move || {
            let target = begin(&target, TargetMode::Fresh);
            target.make_dir(&entry(b"deep", EntryKind::Dir)).unwrap();
            drop(target.make_file(&entry(b"deep/file", FILE), &[]).unwrap());
            let deep = there.join(&listing(&there)[0]).join("deep");
            fs::set_permissions(deep, Permissions::from_mode(mode)).unwrap();
            target.abandon().unwrap();
        });
        assert!(listing(&root).is_empty(), "{mode:o}");
    }
}

#[test]
fn a_restore_that_lives_is_never_taken_for_a_dead_one() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    let (first, second) = (
        DirTarget::plan(&to, TargetMode::Fresh).unwrap(),
        DirTarget::plan(&to, TargetMode::Fresh).unwrap(),
    );
    let left = killed_restore(&to, dir.path());
    let late = DirTarget::plan(&to, TargetMode::Fresh).unwrap();
    assert_eq!(late.dead_leftovers(), [left.canonicalize().unwrap()]);
    let living = DirTarget::begin(first).unwrap();
    let (kind, text, error) = failure(DirTarget::begin(second));
    assert_eq!(kind, Kind::Conflict, "{text}");
    assert!(error.hint_text().is_some());
    assert_eq!(
        failure(DirTarget::plan(&to, TargetMode::Fresh)).0,
        Kind::Conflict
    );
    assert_eq!(late.remove_leftovers(&|| Ok(())).unwrap(), [""; 0]);
    assert_eq!(listing(dir.path()).len(), 1, "the living one's stays");
    // A restore to another target is not concerned.
    drop(begin(&dir.path().join("other"), TargetMode::Fresh));
    living.finish().unwrap();
    assert_eq!(listing(dir.path()), ["to"]);
}

#[test]
fn a_restore_that_gives_up_half_way_leaves_what_the_next_one_removes() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    let target = begin(&to, TargetMode::Fresh);
    for name in [&b"a"[..], b"b"] {
        target.make_dir(&entry(name, EntryKind::Dir)).unwrap();
    }
    drop(target.make_file(&entry(b"f", FILE), &[]).unwrap());
    let left = dir.path().join(&listing(dir.path())[0]);
    // What is mounted is never emptied, so that the removal fails.
    let mounted = Mounted::tmpfs(&left.join("b"));
    assert!(failure(target.abandon()).1.contains("mounted"));
    assert!(!left.join("f").exists());
    assert!(left.join(RESTORE_MARKER).exists());
    drop(mounted);
    let plan = DirTarget::plan(&to, TargetMode::Fresh).unwrap();
    assert_eq!(plan.dead_leftovers(), [left.canonicalize().unwrap()]);
    assert_eq!(plan.remove_leftovers(&|| Ok(())).unwrap(), [""; 0]);
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn removing_what_a_dead_restore_left_can_be_ended_and_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    let left = killed_restore(&to, dir.path());
    let plan = DirTarget::plan(&to, TargetMode::Fresh).unwrap();
    let asked = std::cell::Cell::new(0);
    // Once for the leftover, then for its first directory.
    let ends = || {
        asked.set(asked.get() + 1);
        match asked.get() {
            1 => Ok(()),
            _ => Err(mover_base::Error::new(Kind::Cancelled, "to end")),
        }
    };
    assert_eq!(failure(plan.remove_leftovers(&ends)).0, Kind::Cancelled);
    assert_eq!(listing(&left.join("deep")), ["file"]);
    drop(plan);
    let plan = DirTarget::plan(&to, TargetMode::Fresh).unwrap();
    assert_eq!(plan.dead_leftovers(), [left.canonicalize().unwrap()]);
    assert_eq!(plan.remove_leftovers(&|| Ok(())).unwrap(), [""; 0]);
    assert!(!left.exists());
}

#[test]
fn a_directory_that_only_looks_like_a_leftover_stays() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let to = root.join("to");
    let name = |digit: &str| format!(".to.helios-mover-partial-{}", digit.repeat(16));
    // Without a marker, with an empty one, with another's, with one that is a link, as a link, for others to enter.
    let marker_of = |from: &Path| fs::read(from.join(RESTORE_MARKER)).unwrap();
    let real = killed_restore(&to, root);
    let other = killed_restore(&root.join("other"), root);
    let private = Permissions::from_mode(0o700);
    for (digit, marker) in [
        ("0", None),
        ("1", Some(Vec::new())),
        ("2", Some(marker_of(&other))),
        ("3", Some([marker_of(&real), b"x".to_vec()].concat())),
    ] {
        let path = root.join(name(digit));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, private.clone()).unwrap();
        fs::write(path.join("data"), b"precious").unwrap();
        if let Some(marker) = marker {
            fs::write(path.join(RESTORE_MARKER), marker).unwrap();
        }
    }
    let linked = root.join(name("4"));
    fs::create_dir(&linked).unwrap();
    fs::set_permissions(&linked, private).unwrap();
    symlink(real.join(RESTORE_MARKER), linked.join(RESTORE_MARKER)).unwrap();
    symlink(&other, root.join(name("5"))).unwrap();
    let open = root.join(name("6"));
    fs::create_dir(&open).unwrap();
    fs::copy(real.join(RESTORE_MARKER), open.join(RESTORE_MARKER)).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
    for beside in [
        format!("{}.old", name("7")),
        ".to.helios-mover-partial-".to_owned(),
    ] {
        fs::create_dir(root.join(beside)).unwrap();
    }
    let mut before = listing(root);
    let plan = DirTarget::plan(&to, TargetMode::Fresh).unwrap();
    assert_eq!(plan.dead_leftovers(), [real.canonicalize().unwrap()]);
    assert_eq!(plan.unknown_leftovers().len(), 7);
    assert_eq!(plan.remove_leftovers(&|| Ok(())).unwrap(), [""; 0]);
    before.retain(|name| root.join(name) != real);
    assert_eq!(listing(root), before);
    for digit in ["0", "1", "2", "3"] {
        assert_eq!(
            fs::read(root.join(name(digit)).join("data")).unwrap(),
            b"precious"
        );
    }
    assert!(other.join("deep/file").exists());
}

#[test]
fn a_delta_restore_gives_way_to_whoever_has_the_directory_locked() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    small_tree(&to);
    let database = DirDisk::open_locked(&to).unwrap();
    let begun = DirTarget::begin(DirTarget::plan(&to, TargetMode::Delta).unwrap());
    let (kind, text, error) = failure(begun);
    assert_eq!(kind, Kind::Conflict, "{text}");
    assert_eq!(
        error.hint_text(),
        Some("stop the database that runs in it"),
        "{text}"
    );
    assert_eq!(listing(&to), ["d", "l"]);
    drop(database);
    let target = begin(&to, TargetMode::Delta);
    assert_eq!(failure(DirDisk::open_locked(&to)).0, Kind::Conflict);
    // Also while what it brought back is recovered.
    let disk = target.disk().unwrap();
    assert_eq!(failure(DirDisk::open_locked(&to)).0, Kind::Conflict);
    drop((disk, target));
    DirDisk::open_locked(&to).unwrap();
}

#[test]
fn a_delta_restore_gives_way_to_a_postgresql_server_and_not_to_a_stale_file() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    small_tree(&to);
    let mut server = Command::new("sleep")
        .arg("600")
        .current_dir(&to)
        .spawn()
        .unwrap();
    let write = |process: i64| {
        let text = format!("{process}\n{}\n1790000000\n5432\n", to.display());
        fs::write(to.join("postmaster.pid"), text).unwrap();
    };
    let plan = || DirTarget::plan(&to, TargetMode::Delta).unwrap();
    let process = i64::from(server.id());
    for written in [process, -process] {
        write(written);
        let (kind, text, error) = failure(DirTarget::begin(plan()));
        assert_eq!(kind, Kind::Conflict, "{text}");
        assert!(text.contains("PostgreSQL"), "{text}");
        assert!(error.hint_text().unwrap().contains("stop the database"));
        assert_eq!(listing(&to), ["d", "l", "postmaster.pid"]);
    }
    // The number is another process's by now.
    write(i64::from(std::process::id()));
    drop(DirTarget::begin(plan()).unwrap());
    write(process);
    server.kill().unwrap();
    server.wait().unwrap();
    drop(DirTarget::begin(plan()).unwrap());
}

#[test]
fn an_interrupted_delta_is_recognised_and_can_be_finished() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    small_tree(&from);
    fs::create_dir(&to).unwrap();
    let target = begin(&to, TargetMode::Delta);
    assert!(to.join(RESTORE_MARKER).exists());
    // A second restore at the same time is refused.
    let second = DirTarget::begin(DirTarget::plan(&to, TargetMode::Delta).unwrap());
    assert!(failure(second).1.contains("another restore"));
    drop(target);
    assert!(to.join(RESTORE_MARKER).exists());
    let (kind, text, error) = failure(DirTarget::plan(&to, TargetMode::Fresh));
    assert_eq!(kind, Kind::Target);
    assert!(text.contains("interrupted"), "{text}");
    assert!(error.hint_text().unwrap().contains("--delta"));
    restore(&from, &to, TargetMode::Delta);
    assert_same(&from, &to);
    assert!(!to.join(RESTORE_MARKER).exists());
}

#[test]
fn delta_replaces_other_kinds_and_removes_what_is_extra() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), b"precious").unwrap();
    small_tree(&from);
    fs::create_dir(from.join("sub")).unwrap();
    fs::write(from.join("linked"), b"new!").unwrap();
    // A symbolic link where a directory should be, a directory where a file should be, and the reverse.
    fs::create_dir_all(to.join("d/f/deep")).unwrap();
    fs::write(to.join("d/e"), b"file").unwrap();
    symlink(&outside, to.join("sub")).unwrap();
    symlink(&outside, to.join("extra-link")).unwrap();
    fs::create_dir_all(to.join("extra/deep/er")).unwrap();
    fs::write(to.join("extra/deep/f"), b"x").unwrap();
    symlink(&outside, to.join("extra/deep/l")).unwrap();
    // Another name of a file outside: writing in place would change both.
    fs::write(outside.join("linked"), b"old!").unwrap();
    fs::hard_link(outside.join("linked"), to.join("linked")).unwrap();
    restore(&from, &to, TargetMode::Delta);
    assert_same(&from, &to);
    assert_eq!(listing(&outside), ["linked", "precious"]);
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"precious");
    assert_eq!(fs::read(outside.join("linked")).unwrap(), b"old!");
}

#[test]
fn delta_keeps_the_content_of_a_file_to_compare_with() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), b"before").unwrap();
    fs::set_permissions(dir.path().join("f"), Permissions::from_mode(0o000)).unwrap();
    let ino = dir.path().join("f").metadata().unwrap().ino();
    let target = begin(dir.path(), TargetMode::Delta);
    let file = fs::File::from(target.make_file(&entry(b"f", FILE), &[]).unwrap());
    assert_eq!(std::io::read_to_string(&file).unwrap(), "before");
    let found = file.metadata().unwrap();
    assert_eq!((found.ino(), found.mode() & 0o7777), (ino, 0o600));
    assert!(target.open_existing(b"f").unwrap().is_some());
    assert!(target.open_existing(b"g").unwrap().is_none());
    assert!(target.open_existing(b"f/g").unwrap().is_none());
}

#[test]
fn two_names_of_the_backup_are_never_one_in_the_target() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("d1")).unwrap();
    fs::create_dir_all(at("d2")).unwrap();
    for name in ["f1", "f2"] {
        fs::write(at(name), name).unwrap();
        fs::set_permissions(at(name), Permissions::from_mode(0o600)).unwrap();
    }
    // As names are that differ in case only, where the file system does not tell them apart.
    let _dirs = Mounted::bind(&at("d1"), &at("d2"));
    let _files = Mounted::bind(&at("f1"), &at("f2"));
    let symlink = |path: &[u8]| {
        let target = b"x".to_vec();
        entry(path, EntryKind::Symlink { target })
    };
    let target = begin(dir.path(), TargetMode::Delta);
    target.make_dir(&entry(b"d1", EntryKind::Dir)).unwrap();
    drop(target.make_file(&entry(b"d1/new", FILE), &[]).unwrap());
    target.make_symlink(&symlink(b"d1/link")).unwrap();
    drop(target.make_file(&entry(b"f1", FILE), &[]).unwrap());
    for doubled in [
        target.make_dir(&entry(b"d2", EntryKind::Dir)),
        target.make_file(&entry(b"d2/new", FILE), &[]).map(drop),
        target.make_symlink(&symlink(b"d2/new")),
        target.make_fifo(&entry(b"d2/link", EntryKind::Fifo)),
        target.make_file(&entry(b"f2", FILE), &[]).map(drop),
        target.make_fifo(&entry(b"f2", EntryKind::Fifo)),
    ] {
        let (kind, text, error) = failure(doubled);
        assert_eq!(kind, Kind::Target);
        assert!(text.contains("two names of the backup are one"), "{text}");
        assert!(error.hint_text().unwrap().contains("another directory"));
    }
    // What was made and each share of it is opened again as often as wanted.
    for _ in 0..2 {
        assert!(target.open_existing(b"f1").unwrap().is_some());
    }
    assert_eq!(listing(&at("d1")), ["link", "new"]);
}

#[test]
fn a_mount_in_what_is_extra_is_never_emptied() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("extra/inner");
    fs::create_dir_all(&inner).unwrap();
    let mounted = Mounted::tmpfs(&inner);
    fs::write(mounted.0.join("precious"), b"x").unwrap();
    let target = begin(dir.path(), TargetMode::Delta);
    let (kind, text, _) = failure(target.remove_extra(&EntryList::default(), &|| Ok(())));
    assert_eq!(kind, Kind::Target);
    assert!(text.contains("mounted"), "{text}");
    assert_eq!(listing(&inner), ["precious"]);
}

#[test]
fn a_mount_on_a_kept_directory_is_left_unless_the_backup_holds_something_below() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    // As --one-file-system keeps a directory where something is mounted. "data-x" sorts between "data" and "data/".
    for name in ["data", "data-x", "bound", "full"] {
        fs::create_dir_all(from.join(name)).unwrap();
        fs::create_dir_all(to.join(name)).unwrap();
    }
    fs::write(from.join("full/wanted"), b"new").unwrap();
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let mounts = [
        Mounted::tmpfs(&to.join("data")),
        Mounted::bind(&other, &to.join("bound")),
        Mounted::tmpfs(&to.join("full")),
    ];
    fs::set_permissions(&mounts[0].0, Permissions::from_mode(0o1777)).unwrap();
    for at in [&mounts[0].0, &mounts[1].0, &mounts[2].0, &to.join("data-x")] {
        fs::create_dir(at.join("deep")).unwrap();
        fs::write(at.join("deep/precious"), b"x").unwrap();
    }
    let warnings = restore(&from, &to, TargetMode::Delta).warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for name in ["data", "bound"] {
        assert_eq!(listing(&to.join(name).join("deep")), ["precious"]);
        let told = format!("{name} is another file system of which the backup holds nothing");
        assert!(
            warnings.iter().any(|text| text.starts_with(&told)),
            "{warnings:?}"
        );
    }
    let mode = mounts[0].0.metadata().unwrap().mode();
    assert_eq!(mode & 0o7777, 0o1777, "its root was changed");
    assert_eq!(listing(&to.join("full")), ["wanted"]);
    assert!(listing(&to.join("data-x")).is_empty());
    // Nor is it emptied for what must stand in its place.
    fs::remove_dir(from.join("data")).unwrap();
    fs::write(from.join("data"), b"file").unwrap();
    let target = begin(&to, TargetMode::Delta);
    let wanted = wanted(&[b"", b"bound", b"data", b"data-x", b"full", b"full/wanted"]);
    target.remove_extra(&wanted, &|| Ok(())).unwrap();
    let made = target.make_file(&entry(b"data", FILE), &[]);
    assert!(failure(made).1.contains("mounted"));
    assert_eq!(listing(&to.join("data/deep")), ["precious"]);
}

#[test]
fn what_fsck_rescued_is_kept() {
    let MountPoint { from, to, .. } = &MountPoint::new();
    fs::create_dir_all(to.join("lost+found/#11")).unwrap();
    fs::write(to.join("lost+found/#11/rescued"), b"x").unwrap();
    // Also where the backup holds the directory, which is empty in most.
    for is_kept in [false, true] {
        if is_kept {
            fs::create_dir(from.join("lost+found")).unwrap();
        }
        restore(from, to, TargetMode::Delta);
        assert_eq!(listing(&to.join("lost+found/#11")), ["rescued"]);
    }
}

/// Tries every way to make something at `path`.
fn make_all(target: &DirTarget, path: &[u8]) -> Vec<mover_base::Error> {
    let made = |kind| entry(path, kind);
    let symlink = EntryKind::Symlink {
        target: b"x".to_vec(),
    };
    let all: [Result<(), mover_base::Error>; 6] = [
        target.make_dir(&made(EntryKind::Dir)),
        target.make_file(&made(FILE), &[]).map(drop),
        target.make_symlink(&made(symlink)),
        target.make_fifo(&made(EntryKind::Fifo)),
        target.apply_metadata(&made(FILE), None),
        target.apply_metadata(&made(EntryKind::Fifo), None),
    ];
    all.into_iter().filter_map(Result::err).collect()
}

#[test]
fn hostile_paths_write_nothing_outside() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for mode in [TargetMode::Fresh, TargetMode::Delta] {
        let to = dir.path().join("to");
        fs::create_dir_all(&to).unwrap();
        let target = begin(&to, mode);
        let absolute = outside.join("x").into_os_string().into_encoded_bytes();
        for path in [
            &b"../outside/x"[..],
            b"a/../../outside/x",
            b"..",
            b".",
            b"a//x",
            b"x\0y",
            &absolute,
            RESTORE_MARKER.as_bytes(),
            b".helios-mover-partial-0123456789abcdef/x",
        ] {
            let errors = make_all(&target, path);
            assert_eq!(errors.len(), 6);
            assert!(errors.iter().all(|error| error.kind() == Kind::Corrupt));
        }
        let first = |first: &[u8]| EntryKind::Hardlink {
            first: first.to_vec(),
        };
        for bad in [&b"../outside"[..], b"", b"z"] {
            let link = entry(b"link", first(bad));
            assert_eq!(failure(target.make_hardlink(&link)).0, Kind::Corrupt);
        }
    }
    assert!(listing(&outside).is_empty());
}

#[test]
fn names_like_those_of_staging_directories_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    small_tree(&from);
    let name = |digits: &str| format!(".helios-mover-partial-{digits}");
    let staged = name("0123456789abcdef");
    for digits in ["", "1", "0123456789abcdefg", "0123456789ABCDEF"] {
        fs::create_dir(from.join(name(digits))).unwrap();
        fs::write(from.join(name(digits)).join("f"), digits).unwrap();
    }
    fs::write(from.join(name("file")), b"file").unwrap();
    symlink("x", from.join(name("link"))).unwrap();
    // What has exactly such a name and is no directory is no leftover.
    fs::write(from.join(name("fedcba9876543210")), b"file").unwrap();
    symlink("x", from.join(name("0000000000000000"))).unwrap();
    let tree = scan(&from);
    assert!(tree.skipped.is_empty());
    for mode in [TargetMode::Fresh, TargetMode::Delta] {
        restore(&from, &to, mode);
        assert_same(&from, &to);
        assert_eq!(listing(&to), listing(&from));
        let (_, text, _) = failure(DirTarget::plan(&to, TargetMode::Fresh));
        assert!(text.contains("not empty"), "{text}");
    }
    // A directory of exactly such a name is skipped, and never made.
    fs::create_dir(from.join(&staged)).unwrap();
    assert_eq!(scan(&from).skipped[0].path, staged);
    let target = begin(&to, TargetMode::Delta);
    let made = target.make_dir(&entry(staged.as_bytes(), EntryKind::Dir));
    assert_eq!(failure(made).0, Kind::Corrupt);
}

#[test]
fn a_symlink_in_the_backup_or_planted_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), b"precious").unwrap();
    let out = outside.clone().into_os_string().into_encoded_bytes();
    let link = |path: &[u8], target: &[u8]| -> Entry {
        let target = target.to_vec();
        entry(path, EntryKind::Symlink { target })
    };
    let to = dir.path().join("to");
    let target = begin(&to, TargetMode::Fresh);
    target.make_symlink(&link(b"sub", &out)).unwrap();
    let file = [&out[..], b"/f"].concat();
    target.make_symlink(&link(b"to-file", &file)).unwrap();
    assert_eq!(make_all(&target, b"sub/x").len(), 6);
    let errors = make_all(&target, b"sub/f");
    assert!(errors.iter().all(|error| error.kind() == Kind::Target));
    // A name that is taken by a link is not written through.
    assert!(target.make_file(&entry(b"to-file", FILE), &[]).is_err());
    assert!(
        target
            .apply_metadata(&entry(b"to-file", FILE), None)
            .is_err()
    );
    assert!(
        target
            .apply_metadata(&entry(b"to-file", EntryKind::Fifo), None)
            .is_err()
    );
    let first = b"to-file".to_vec();
    let hard = entry(b"zz", EntryKind::Hardlink { first });
    assert_eq!(failure(target.make_hardlink(&hard)).0, Kind::Corrupt);
    assert!(target.open_existing(b"to-file").unwrap().is_none());
    drop(target);
    // Delta: the links were planted before.
    fs::create_dir(&to).unwrap();
    symlink(&outside, to.join("sub")).unwrap();
    symlink(outside.join("f"), to.join("to-file")).unwrap();
    let target = begin(&to, TargetMode::Delta);
    assert!(target.make_file(&entry(b"sub/x", FILE), &[]).is_err());
    let mut made = fs::File::from(target.make_file(&entry(b"to-file", FILE), &[]).unwrap());
    made.write_all(b"restored").unwrap();
    assert_eq!(listing(&outside), ["f"]);
    assert_eq!(fs::read(outside.join("f")).unwrap(), b"precious");
    assert_eq!(outside.join("f").metadata().unwrap().mode() & 0o777, 0o644);
}

/// Whoever owns the parent may put anything in the target's place.
#[test]
fn a_target_that_is_swapped_for_a_link_after_it_was_planned_leads_nowhere() {
    for (mode, swapped) in [
        (TargetMode::Delta, "above/to"),
        (TargetMode::Delta, "above"),
        (TargetMode::Fresh, "above/to"),
        (TargetMode::Fresh, "above"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let (to, outside) = (root.join("above/to"), root.join("outside"));
        fs::create_dir_all(&to).unwrap();
        if mode == TargetMode::Delta {
            fs::write(to.join("f"), b"old").unwrap();
        }
        // As much as would be there to be removed, or to be restored into.
        fs::create_dir_all(outside.join("to")).unwrap();
        if swapped == "above/to" || mode == TargetMode::Delta {
            fs::write(outside.join("precious"), b"theirs").unwrap();
            fs::write(outside.join("to/precious"), b"theirs").unwrap();
        }
        let before = (listing(&outside), listing(&outside.join("to")));
        let plan = DirTarget::plan(&to, mode).unwrap();
        fs::rename(root.join(swapped), root.join("aside")).unwrap();
        symlink(&outside, root.join(swapped)).unwrap();
        let extra = u64::from(mode == TargetMode::Delta);
        let counted = plan.count_extra(&EntryList::default(), &|| Ok(()));
        assert_eq!(counted.unwrap().names, extra);
        assert_eq!(plan.remove_leftovers(&|| Ok(())).unwrap(), [""; 0]);
        let (kind, text, _) = failure(DirTarget::begin(plan));
        assert_eq!(kind, Kind::Target);
        assert!(text.contains("replaced meanwhile"), "{text}");
        assert_eq!(
            (listing(&outside), listing(&outside.join("to"))),
            before,
            "{mode:?} {swapped}"
        );
    }
}

#[test]
fn a_fresh_target_that_came_to_hold_something_after_it_was_planned_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    let plan = DirTarget::plan(&to, TargetMode::Fresh).unwrap();
    fs::write(to.join("theirs"), b"theirs").unwrap();
    let (kind, text, _) = failure(DirTarget::begin(plan));
    assert_eq!(kind, Kind::Target);
    assert!(text.contains("not empty"), "{text}");
    assert_eq!(listing(dir.path()), ["to"]);
    assert_eq!(listing(&to), ["theirs"]);
}

#[test]
fn owner_and_mode_of_a_pipe_or_link_never_go_onto_what_took_its_place() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let (to, theirs) = (dir.path().join("to"), dir.path().join("theirs"));
    fs::create_dir(&to).unwrap();
    fs::write(&theirs, b"precious").unwrap();
    fs::set_permissions(&theirs, Permissions::from_mode(0o600)).unwrap();
    let target = begin(&to, TargetMode::Delta);
    let link = EntryKind::Symlink {
        target: b"nowhere".to_vec(),
    };
    for (name, kind) in [("pipe", EntryKind::Fifo), ("link", link)] {
        let mut made = entry(name.as_bytes(), kind);
        (made.uid, made.gid, made.mode) = (65_534, 65_534, 0o666);
        match &made.kind {
            EntryKind::Fifo => target.make_fifo(&made).unwrap(),
            _ => target.make_symlink(&made).unwrap(),
        }
        target.apply_metadata(&made, None).unwrap();
        let found = to.join(name).symlink_metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (65_534, 65_534));
        // Who may write to the directory gives it a further name of a file that is not theirs.
        fs::remove_file(to.join(name)).unwrap();
        fs::hard_link(&theirs, to.join(name)).unwrap();
        assert_eq!(failure(target.apply_metadata(&made, None)).0, Kind::Target);
        let found = theirs.metadata().unwrap();
        assert_eq!(
            (found.uid(), found.gid(), found.mode() & 0o7777),
            (0, 0, 0o600)
        );
    }
}

/// A signal is heeded between two directories, in what is removed at once as well.
#[test]
fn a_removal_and_a_scan_that_are_to_end_do_so_at_the_next_directory() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    for name in ["a/b", "a/c"] {
        fs::create_dir_all(to.join(name)).unwrap();
    }
    let count = std::cell::Cell::new(0);
    let asked = &count;
    let ends_after = move |times: u64| {
        asked.set(0);
        move || {
            asked.set(asked.get() + 1);
            match asked.get() > times {
                true => Err(mover_base::Error::new(Kind::Cancelled, "to end")),
                false => Ok(()),
            }
        }
    };
    let source = DirSource::open(&format!("dir://{}", to.display())).unwrap();
    let options = ScanOptions::default();
    let scanned = source.scan_while(&options, &ends_after(3));
    assert_eq!((failure(scanned).0, asked.get()), (Kind::Cancelled, 4));
    let tree = source.scan_while(&options, &ends_after(4)).unwrap();
    let checked = source.check_tree_while(&tree, &ends_after(3));
    assert_eq!((failure(checked).0, asked.get()), (Kind::Cancelled, 4));
    let plan = DirTarget::plan(&to, TargetMode::Delta).unwrap();
    let counted = plan.count_extra(&EntryList::default(), &ends_after(3));
    assert_eq!((failure(counted).0, asked.get()), (Kind::Cancelled, 4));
    let target = DirTarget::begin(plan).unwrap();
    // The root, then `a`, which is emptied of nothing but directories, then the first of those.
    let removed = target.remove_extra(&EntryList::default(), &ends_after(2));
    assert_eq!((failure(removed).0, asked.get()), (Kind::Cancelled, 3));
    assert_eq!(listing(&to.join("a")), ["b", "c"]);
}

#[test]
fn a_planted_marker_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (to, outside) = (dir.path().join("to"), dir.path().join("outside"));
    fs::create_dir(&to).unwrap();
    symlink(&outside, to.join(RESTORE_MARKER)).unwrap();
    let begun = DirTarget::begin(DirTarget::plan(&to, TargetMode::Delta).unwrap());
    assert_eq!(failure(begun).0, Kind::Target);
    assert!(!outside.exists());
}
