//! Restores in place: which inodes are kept, and what the target is while its marker is there.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use mover_base::Kind;
use mover_base::tree::EntryKind;
use mover_source::{DirTarget, RESTORE_MARKER, TargetMode};

use crate::support::{
    assert_same, entry, failure, fill, listing, require_root, restore, scan, wanted,
};
use crate::target::{NOBODY, as_nobody};

const FILE: EntryKind = EntryKind::File { bytes: 0 };

fn begin(path: &Path, mode: TargetMode) -> DirTarget {
    DirTarget::begin(DirTarget::plan(path, mode).unwrap()).unwrap()
}

fn set(path: &Path, uid: u32, gid: u32, mode: u32) {
    chown(path, Some(uid), Some(gid)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn give_acl(path: &Path) {
    let mut setfacl = Command::new("setfacl");
    let status = setfacl.args(["-m", "u:daemon:rw"]).arg(path).status();
    assert!(status.unwrap().success());
}

fn give_capability(path: &Path) {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, "security.capability", &capability, flags).unwrap();
}

/// What a file is to be, what it was, and whether it may be written into.
type Case = (fn(&Path), fn(&Path), bool);

const CASES: [Case; 15] = [
    (|f| set(f, 0, 0, 0o644), |f| set(f, 0, 0, 0o644), true),
    (|f| set(f, 1, 2, 0o600), |f| set(f, 1, 7, 0o644), true),
    // As an interrupted restore leaves it.
    (|f| set(f, 1, 2, 0o600), |f| set(f, 0, 0, 0o600), true),
    (|f| set(f, 0, 0, 0o600), |f| set(f, NOBODY, 0, 0o600), false),
    (|f| set(f, 1, 2, 0o600), |f| set(f, NOBODY, 2, 0o600), false),
    (|f| set(f, 0, 0, 0o4755), |f| set(f, 0, 0, 0o755), false),
    (|f| set(f, 0, 0, 0o2755), |f| set(f, 0, 0, 0o755), false),
    (give_capability, |f| set(f, 0, 0, 0o755), false),
    // The group and all others could write.
    (|f| set(f, 0, 2, 0o664), |f| set(f, 0, 2, 0o664), true),
    (|f| set(f, 0, 2, 0o664), |f| set(f, 0, 7, 0o664), false),
    (|f| set(f, 0, 2, 0o644), |f| set(f, 0, 2, 0o664), false),
    (|f| set(f, 0, 2, 0o664), |f| set(f, 0, 2, 0o666), false),
    (give_acl, give_acl, true),
    (give_acl, |f| set(f, 0, 0, 0o664), false),
    (|f| set(f, 0, 0, 0o664), give_acl, false),
];

#[test]
fn what_others_may_hold_open_never_becomes_a_restored_file() {
    require_root();
    for (at, (wanted, existing, is_kept)) in CASES.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for side in [&from, &to] {
            fs::create_dir(side).unwrap();
        }
        fs::write(from.join("f"), b"restored").unwrap();
        fs::write(to.join("f"), b"before!!").unwrap();
        wanted(&from.join("f"));
        existing(&to.join("f"));
        let before = to.join("f").metadata().unwrap().ino();
        // Held, so that its number is not used again.
        let held = fs::OpenOptions::new().write(true).open(to.join("f"));
        restore(&from, &to, TargetMode::Delta);
        assert_same(&from, &to);
        let after = to.join("f").metadata().unwrap();
        assert_eq!(after.ino() == before, is_kept, "case {at}");
        held.unwrap().write_all_at(b"mine", 0).unwrap();
        let is_changed = fs::read(to.join("f")).unwrap() != b"restored";
        assert_eq!(is_changed, is_kept, "case {at}");
    }
}

#[test]
fn a_user_works_on_their_own_files_in_place() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), NOBODY, NOBODY, 0o755);
    let path = dir.path().join("f");
    for (uid, is_kept) in [(NOBODY, true), (1, false)] {
        fs::write(&path, b"before").unwrap();
        set(&path, uid, 0, 0o644);
        let held = fs::File::open(&path).unwrap();
        let to = dir.path().to_owned();
        let made = as_nobody(move || {
            let target = begin(&to, TargetMode::Delta);
            let mut of_root = entry(b"f", FILE);
            of_root.uid = 0;
            fs::File::from(target.make_file(&of_root, &[]).unwrap())
        });
        let ino = made.metadata().unwrap().ino();
        assert_eq!(ino == held.metadata().unwrap().ino(), is_kept, "{uid}");
        fs::remove_file(dir.path().join(RESTORE_MARKER)).unwrap();
    }
}

/// As a backup has it, and as a restore leaves it that was killed while it set modes.
#[test]
fn a_directory_that_its_owner_may_not_list_or_write_keeps_its_owner_not_out() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), NOBODY, NOBODY, 0o755);
    let inner = dir.path().join("d");
    fs::create_dir(&inner).unwrap();
    for mode in [0o300, 0o000, 0o500, 0o555, 0o400] {
        fs::create_dir(inner.join("more")).unwrap();
        for name in ["kept", "extra", "more/extra"] {
            fs::write(inner.join(name), b"x").unwrap();
            set(&inner.join(name), NOBODY, NOBODY, 0o600);
        }
        for path in [&inner.join("more"), &inner] {
            set(path, NOBODY, NOBODY, mode);
        }
        let to = dir.path().to_owned();
        let removed = as_nobody(move || restore_over(&to, mode));
        assert_eq!(removed, 3, "{mode:o}");
        let kept = inner.metadata().unwrap().mode() & 0o7777;
        assert_eq!(kept, mode, "as the backup has it");
        assert_eq!(listing(&inner), ["kept"]);
        assert_eq!(listing(dir.path()), ["d"]);
    }
}

/// As the caller, and with `d` of such a mode; returns how many names were removed.
fn restore_over(to: &Path, mode: u32) -> u64 {
    let target = begin(to, TargetMode::Delta);
    let wanted = wanted(&[b"", b"d", b"d/kept"]);
    let removed = target.remove_extra(&wanted, &|| Ok(())).unwrap();
    for path in [&b""[..], b"d"] {
        let mut dir = entry(path, EntryKind::Dir);
        dir.mode = if path.is_empty() { 0o755 } else { mode };
        target.make_dir(&dir).unwrap();
        target.apply_metadata(&dir, None).unwrap();
    }
    let kept = entry(b"d/kept", FILE);
    drop(target.make_file(&kept, &[]).unwrap());
    target.apply_metadata(&kept, None).unwrap();
    target.finish().unwrap();
    removed
}

#[test]
fn a_target_whose_marker_cannot_be_written_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    symlink("nowhere", to.join(RESTORE_MARKER)).unwrap();
    for mode in [0o555, 0o500, 0o755] {
        fs::set_permissions(&to, Permissions::from_mode(mode)).unwrap();
        let begun = DirTarget::begin(DirTarget::plan(&to, TargetMode::Delta).unwrap());
        assert_eq!(failure(begun).0, Kind::Target);
        assert_eq!(to.metadata().unwrap().mode() & 0o7777, mode);
    }
}

/// As a restore leaves one that the backup has so.
#[test]
fn a_target_that_its_owner_may_not_write_is_restored_over_by_its_owner_alone() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    set(dir.path(), 0, 0, 0o755);
    for mode in [0o555, 0o500] {
        fs::write(to.join("extra"), b"x").unwrap();
        set(&to, NOBODY, NOBODY, mode);
        let target = to.clone();
        let planned = as_nobody(move || {
            let plan = DirTarget::plan(&target, TargetMode::Delta).unwrap();
            plan.count_extra(&wanted(&[b""]), &|| Ok(())).unwrap()
        });
        assert_eq!(planned, 1);
        let mode_now = || to.metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode_now(), mode, "planning changes nothing");
        let target = to.clone();
        as_nobody(move || {
            let target = begin(&target, TargetMode::Delta);
            let removed = target.remove_extra(&wanted(&[b""]), &|| Ok(()));
            assert_eq!(removed.unwrap(), 1);
            let mut root = entry(b"", EntryKind::Dir);
            root.mode = mode;
            target.apply_metadata(&root, None).unwrap();
            target.finish().unwrap();
        });
        assert_eq!(mode_now(), mode);
        assert!(listing(&to).is_empty());
    }
    // Nobody else's, and none that its owner may not enter.
    for (uid, mode) in [(0, 0o755), (1, 0o755), (NOBODY, 0o400)] {
        set(&to, uid, 0, mode);
        let target = to.clone();
        let refused = as_nobody(move || failure(DirTarget::plan(&target, TargetMode::Delta)));
        assert_eq!(refused.0, Kind::Target);
        assert!(refused.1.contains("cannot be written"), "{}", refused.1);
    }
}

#[test]
fn a_name_that_cannot_be_removed_is_told() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), NOBODY, NOBODY, 0o755);
    // Somebody else's: in a directory that stays, and deep in what goes.
    for place in ["kept", "gone/deep"] {
        let theirs = dir.path().join(place);
        fs::create_dir_all(&theirs).unwrap();
        fs::write(theirs.join("extra"), b"x").unwrap();
        let top = place.split('/').next().unwrap();
        set(&dir.path().join(top), NOBODY, NOBODY, 0o755);
        set(&theirs, 0, 0, 0o755);
        let to = dir.path().to_owned();
        let refused = as_nobody(move || {
            let target = begin(&to, TargetMode::Delta);
            failure(target.remove_extra(&wanted(&[b"", b"kept"]), &|| Ok(())))
        });
        assert_eq!(refused.0, Kind::Target);
        let told = format!("a name cannot be removed: {place}/extra: Permission denied");
        assert!(refused.1.starts_with(&told), "{}", refused.1);
        fs::remove_dir_all(dir.path().join(place)).unwrap();
        fs::remove_file(dir.path().join(RESTORE_MARKER)).unwrap();
    }
}

#[test]
fn a_file_that_is_replaced_while_it_is_worked_on_is_not_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["a", "b"] {
        fs::write(at(name), name).unwrap();
    }
    let target = begin(dir.path(), TargetMode::Delta);
    for name in [b"a", b"b", b"c"] {
        drop(target.make_file(&entry(name, FILE), &[]).unwrap());
        assert!(target.open_existing(name).unwrap().is_some());
    }
    // Another of the restore's own files, one of somebody else's, and one that nobody asked for.
    fs::rename(at("a"), at("aside")).unwrap();
    fs::rename(at("b"), at("a")).unwrap();
    fs::rename(at("aside"), at("b")).unwrap();
    fs::rename(at("c"), at("held")).unwrap();
    fs::write(at("c"), b"theirs").unwrap();
    fs::write(at("d"), b"theirs").unwrap();
    for name in [b"a", b"b", b"c", b"d"] {
        let (kind, text, error) = failure(target.open_existing(name));
        assert_eq!(kind, Kind::Target);
        assert!(text.contains("replaced during the restore"), "{text}");
        assert!(error.hint_text().is_some());
    }
}

#[test]
fn a_marked_target_has_its_owner_before_the_marker_goes() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for side in [&from, &to] {
        fs::create_dir(side).unwrap();
    }
    fs::write(from.join("f"), b"content").unwrap();
    give_acl(&from);
    set(&from, 1, 2, 0o550);
    let target = begin(&to, TargetMode::Delta);
    fill(&target, &scan(&from), &from);
    // As if it ended just there: a directory is not removed as a file is.
    fs::remove_file(to.join(RESTORE_MARKER)).unwrap();
    fs::create_dir(to.join(RESTORE_MARKER)).unwrap();
    failure(target.finish());
    let found = to.metadata().unwrap();
    let owner = (found.uid(), found.gid(), found.mode() & 0o7777);
    assert_eq!(owner, (1, 2, 0o750));
    let mut value = [0; 256];
    assert!(rustix::fs::getxattr(&to, "system.posix_acl_access", &mut value[..]).is_ok());
    fs::remove_dir(to.join(RESTORE_MARKER)).unwrap();
    restore(&from, &to, TargetMode::Delta);
    assert_same(&from, &to);
    assert_eq!(listing(&to), ["f"]);
}
