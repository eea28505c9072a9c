//! Restores in place: which inodes are kept, and what the target is while its marker is there.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use mover_base::Kind;
use mover_base::tree::EntryKind;
use mover_source::{DirTarget, RESTORE_MARKER, TargetMode};

use crate::support::{
    Mounted, assert_same, entry, failure, fill, listing, require_root, restore, scan, wanted,
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
    setfacl(path, "u:daemon:rw");
}

/// One that lets nobody write, to a file that not everybody may read.
fn give_reading_acl(path: &Path) {
    set(path, 0, 0, 0o640);
    setfacl(path, "u:daemon:r");
}

fn setfacl(path: &Path, acl: &str) {
    let mut setfacl = Command::new("setfacl");
    let status = setfacl.args(["-m", acl]).arg(path).status();
    assert!(status.unwrap().success());
}

/// One by which it makes no difference whether somebody is in the group.
fn give_acl_to_all(path: &Path, gid: u32) {
    set(path, 0, gid, 0o644);
    setfacl(path, "u:daemon:r");
}

/// One by which the group, or another one, may not do what all others may.
fn give_denying_acl(path: &Path, gid: u32, denied: &str) {
    set(path, 0, gid, 0o644);
    setfacl(path, &format!("u:daemon:r,{denied}:-"));
}

fn give_capability(path: &Path) {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, "security.capability", &capability, flags).unwrap();
}

/// What a file is to be, what it was, and whether it may be written into.
type Case = (fn(&Path), fn(&Path), bool);

const CASES: [Case; 26] = [
    (|f| set(f, 0, 0, 0o644), |f| set(f, 0, 0, 0o644), true),
    (|f| set(f, 1, 2, 0o600), |f| set(f, 1, 7, 0o600), true),
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
    // The group and all others could read.
    (|f| set(f, 0, 0, 0o600), |f| set(f, 0, 0, 0o644), false),
    (|f| set(f, 0, 2, 0o600), |f| set(f, 0, 2, 0o640), false),
    (|f| set(f, 0, 2, 0o640), |f| set(f, 0, 2, 0o640), true),
    (|f| set(f, 0, 2, 0o640), |f| set(f, 0, 7, 0o640), false),
    // What everybody may read is kept from no group.
    (|f| set(f, 0, 2, 0o644), |f| set(f, 0, 7, 0o644), true),
    (give_reading_acl, give_reading_acl, true),
    (|f| set(f, 0, 0, 0o640), give_reading_acl, false),
    // Nor by an ACL that gives the group what it gives all others.
    (|f| give_acl_to_all(f, 2), |f| give_acl_to_all(f, 7), true),
    (|f| give_acl_to_all(f, 2), |f| set(f, 0, 7, 0o644), false),
    (
        |f| give_denying_acl(f, 2, "g:"),
        |f| give_denying_acl(f, 7, "g:"),
        false,
    ),
    (
        |f| give_denying_acl(f, 2, "g:daemon"),
        |f| give_denying_acl(f, 7, "g:daemon"),
        false,
    ),
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
        let read = fs::File::open(to.join("f")).unwrap();
        restore(&from, &to, TargetMode::Delta);
        assert_same(&from, &to);
        let is_read = std::io::read_to_string(read).unwrap() == "restored";
        assert_eq!(is_read, is_kept, "case {at}");
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
            (of_root.uid, of_root.mode) = (0, 0o644);
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

/// To look into them would take a change of their modes.
#[test]
fn what_a_mode_hides_from_its_owner_is_told_as_not_counted_and_removed_all_the_same() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    set(dir.path(), NOBODY, NOBODY, 0o755);
    let dirs = ["kept", "gone"].map(|name| (name, dir.path().join(name)));
    let count = || {
        let to = dir.path().to_owned();
        as_nobody(move || {
            let plan = DirTarget::plan(&to, TargetMode::Delta).unwrap();
            plan.count_extra(&wanted(&[b"", b"kept"]), &|| Ok(()))
        })
    };
    for mode in [0o300, 0o400, 0o000] {
        fs::write(dir.path().join("extra"), b"x").unwrap();
        for (_, path) in &dirs {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("extra"), b"x").unwrap();
            set(path, NOBODY, NOBODY, mode);
        }
        let counted = count().unwrap();
        assert_eq!((counted.names, counted.closed), (2, 2), "{mode:o}");
        assert_eq!(counted.first_closed.as_deref(), Some("gone"));
        for (name, path) in &dirs {
            let mode_now = path.metadata().unwrap().mode() & 0o7777;
            assert_eq!(mode_now, mode, "counting changes nothing");
            // Into somebody else's the restore would not get either.
            set(path, 1, 1, 0o700);
            let (kind, text, _) = failure(count());
            assert_eq!(kind, Kind::Target);
            assert!(
                text.ends_with(&format!(": {name}: Permission denied (os error 13)")),
                "{text}"
            );
            set(path, NOBODY, NOBODY, mode);
        }
        let to = dir.path().to_owned();
        let removed = as_nobody(move || {
            let target = begin(&to, TargetMode::Delta);
            target.remove_extra(&wanted(&[b"", b"kept"]), &|| Ok(()))
        });
        assert_eq!(removed.unwrap(), 4, "{mode:o}");
        assert_eq!(listing(dir.path()), [RESTORE_MARKER, "kept"]);
        assert_eq!(listing(&dirs[0].1), [""; 0]);
        fs::remove_file(dir.path().join(RESTORE_MARKER)).unwrap();
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
        assert_eq!((planned.names, planned.closed), (1, 0));
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
        fs::set_permissions(at(name), Permissions::from_mode(0o600)).unwrap();
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

/// A file system gives the inode of a file that was removed to the next one. Where it keeps no time of birth, the owner tells.
#[test]
fn a_later_file_in_the_inode_of_one_that_was_made_is_not_taken_for_it() {
    require_root();
    for (inode_bytes, owner) in [("128", NOBODY), ("256", NOBODY), ("256", 0)] {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Mounted::ext4(dir.path(), inode_bytes);
        let to = mounted.0.join("to");
        fs::create_dir(&to).unwrap();
        let target = begin(&to, TargetMode::Delta);
        drop(target.make_file(&entry(b"f", FILE), &[]).unwrap());
        assert!(target.open_existing(b"f").unwrap().is_some());
        let path = to.join("f");
        let made = path.metadata().unwrap();
        // A clock that has not gone on since would tell nothing.
        let is_later = |found: &fs::Metadata| {
            owner != 0 || found.created().unwrap() != made.created().unwrap()
        };
        let is_replaced = (0..1_000_000).any(|_| {
            fs::remove_file(&path).unwrap();
            fs::write(&path, b"").unwrap();
            set(&path, owner, 0, 0o600);
            let found = path.metadata().unwrap();
            found.ino() == made.ino() && is_later(&found)
        });
        assert!(is_replaced, "the inode was not used again");
        let (kind, text, _) = failure(target.open_existing(b"f"));
        assert_eq!(kind, Kind::Target, "{inode_bytes} {owner}");
        assert!(text.contains("replaced during the restore"), "{text}");
    }
}

/// Its further names in the backup are made between its making and its content.
#[test]
fn a_file_that_somebody_opens_to_others_or_gives_a_name_is_not_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let target = begin(dir.path(), TargetMode::Delta);
    let path = dir.path().join("f");
    drop(target.make_file(&entry(b"f", FILE), &[]).unwrap());
    let first = b"f".to_vec();
    let link = entry(b"g", EntryKind::Hardlink { first });
    target.make_hardlink(&link).unwrap();
    assert!(target.open_existing(b"f").unwrap().is_some());
    let refused = || failure(target.open_existing(b"f")).0;
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(refused(), Kind::Target);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert!(target.open_existing(b"f").unwrap().is_some());
    fs::hard_link(&path, dir.path().join("theirs")).unwrap();
    assert_eq!(refused(), Kind::Target);
}

#[test]
fn a_fresh_file_that_is_somebody_elses_or_has_further_names_is_not_opened_again() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let target = begin(&dir.path().join("to"), TargetMode::Fresh);
    drop(target.make_file(&entry(b"f", FILE), &[]).unwrap());
    assert!(target.open_existing(b"f").unwrap().is_some());
    let path = dir.path().join(&listing(dir.path())[0]).join("f");
    chown(&path, Some(NOBODY), None).unwrap();
    assert_eq!(failure(target.open_existing(b"f")).0, Kind::Target);
    chown(&path, Some(0), None).unwrap();
    assert!(target.open_existing(b"f").unwrap().is_some());
    fs::hard_link(&path, dir.path().join("theirs")).unwrap();
    assert_eq!(failure(target.open_existing(b"f")).0, Kind::Target);
}

/// Their owner could replace what is made in them.
#[test]
fn directories_of_another_owner_are_taken_before_anything_is_made_in_them() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    let inner = to.join("d");
    fs::create_dir_all(&inner).unwrap();
    set(dir.path(), 0, 0, 0o755);
    for path in [&to, &inner] {
        set(path, NOBODY, 2, 0o775);
    }
    let plants = |path: &Path| {
        let path = path.join("planted");
        as_nobody(move || fs::write(&path, b"x").and_then(|()| fs::remove_file(&path)))
            .map_err(|error| error.kind())
    };
    assert_eq!([plants(&to), plants(&inner)], [Ok(()), Ok(())]);
    let target = begin(&to, TargetMode::Delta);
    let of = |path: &Path| {
        let found = path.metadata().unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!(of(&to), (0, 2, 0o755));
    for path in [&b""[..], b"d"] {
        let mut made = entry(path, EntryKind::Dir);
        (made.uid, made.gid, made.mode) = (NOBODY, 7, 0o770);
        target.make_dir(&made).unwrap();
        target.apply_metadata(&made, None).unwrap();
    }
    assert_eq!(of(&inner), (0, 2, 0o700));
    let denied: Result<(), _> = Err(std::io::ErrorKind::PermissionDenied);
    assert_eq!([plants(&to), plants(&inner)], [denied, denied]);
    target.finish().unwrap();
    for path in [&to, &inner] {
        assert_eq!(of(path), (NOBODY, 7, 0o770), "as the backup has it");
    }
}

#[test]
fn a_target_of_another_owner_that_cannot_be_marked_is_given_back() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    symlink("nowhere", dir.path().join(RESTORE_MARKER)).unwrap();
    set(dir.path(), NOBODY, 2, 0o575);
    let plan = DirTarget::plan(dir.path(), TargetMode::Delta).unwrap();
    assert_eq!(failure(DirTarget::begin(plan)).0, Kind::Target);
    let found = dir.path().metadata().unwrap();
    let now = (found.uid(), found.gid(), found.mode() & 0o7777);
    assert_eq!(now, (NOBODY, 2, 0o575));
}

/// It was begun, and nothing in it changed.
#[test]
fn a_target_that_is_left_has_its_owner_mode_and_names_as_before() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let of = || {
        let found = dir.path().metadata().unwrap();
        let owner = (found.uid(), found.gid(), found.mode() & 0o7777);
        (owner, listing(dir.path()))
    };
    fs::write(dir.path().join("theirs"), b"x").unwrap();
    for (mode, is_marked) in [(0o575, false), (0o700, false), (0o575, true)] {
        set(dir.path(), NOBODY, 2, mode);
        if is_marked {
            fs::write(dir.path().join(RESTORE_MARKER), b"").unwrap();
        }
        let before = of();
        let target = begin(dir.path(), TargetMode::Delta);
        assert_ne!(of(), before);
        assert!(listing(dir.path()).contains(&RESTORE_MARKER.to_owned()));
        target.leave();
        assert_eq!(of(), before);
    }
}

/// The last step of a page store's restore gives owner and mode to files that recovery made, by their names.
#[test]
fn owner_and_mode_never_go_onto_a_file_that_was_planted() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let (to, precious) = (dir.path().join("to"), dir.path().join("precious"));
    fs::create_dir_all(to.join("tables")).unwrap();
    fs::write(&precious, b"precious").unwrap();
    set(&precious, 0, 0, 0o600);
    let of = |path: &Path| {
        let found = path.symlink_metadata().unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    let target = begin(&to, TargetMode::Delta);
    let own = |name: &str| {
        let mut made = entry(format!("tables/{name}").as_bytes(), FILE);
        (made.uid, made.gid, made.mode) = (NOBODY, NOBODY, 0o666);
        target.apply_metadata(&made, None)
    };
    let at = |name: &str| to.join("tables").join(name);
    fs::hard_link(&precious, at("linked")).unwrap();
    symlink(&precious, at("symlink")).unwrap();
    fs::write(at("theirs"), b"x").unwrap();
    set(&at("theirs"), 1, 1, 0o644);
    for name in ["linked", "symlink", "theirs"] {
        let before = of(&at(name));
        let (kind, text, _) = failure(own(name));
        assert_eq!(kind, Kind::Target, "{name}: {text}");
        assert!(text.contains(&format!("tables/{name}")), "{text}");
        assert_eq!(of(&at(name)), before, "{name}");
    }
    assert_eq!(of(&precious), (0, 0, 0o600));
    // As recovery made them, and as the backup has them.
    for (name, owner) in [("made", 0), ("kept", NOBODY)] {
        fs::write(at(name), b"x").unwrap();
        set(&at(name), owner, 0, 0o600);
        own(name).unwrap();
        assert_eq!(of(&at(name)), (NOBODY, NOBODY, 0o666));
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
