//! Metadata that cannot be put back: what is told, and that nobody gains a right by it.

use std::fs::{self, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use mover_base::tree::EntryKind;
use mover_source::{DirTarget, TargetMode};

use crate::support::{Mounted, entry, require_root, restore};

const FILE: EntryKind = EntryKind::File { bytes: 0 };
const NOBODY: u32 = 65_534;

fn begin(path: &Path, mode: TargetMode) -> DirTarget {
    DirTarget::begin(DirTarget::plan(path, mode).unwrap()).unwrap()
}

#[test]
fn a_user_without_rights_gets_warnings_and_no_setuid() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let to = dir.path().join("to");
    std::thread::spawn({
        let to = to.clone();
        move || {
            let nobody = rustix::fs::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let target = begin(&to, TargetMode::Fresh);
            let mut root = entry(b"", EntryKind::Dir);
            root.mode = 0o555;
            let mut file = entry(b"f", FILE);
            (file.uid, file.gid, file.mode) = (0, 0, 0o4755);
            target.make_dir(&root).unwrap();
            target.make_file(&file, &[]).unwrap();
            target.apply_metadata(&file, None).unwrap();
            make_of_another_group(&target);
            target.apply_metadata(&root, None).unwrap();
            let warnings = target.finish().unwrap().warnings;
            let told = [
                "f: owner 0:0 not restored",
                "f: mode 4755 not restored: it is 0755",
                "secret: owner 65534:12345 not restored",
                "secret: mode 0660 not restored: it is 0600",
            ];
            assert!(warnings.len() > told.len(), "{warnings:?}");
            for (warning, told) in warnings.iter().zip(told) {
                assert!(warning.starts_with(told), "{warnings:?}");
            }
        }
    })
    .join()
    .unwrap();
    let mode = |name: &str| to.join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!(to.join("f").metadata().unwrap().uid(), 65_534);
    assert_eq!((mode("f"), mode("")), (0o755, 0o555));
    // What the group could do is nothing that the group it has now may do, but for what everybody may.
    let modes = ["secret", "shared", "with-acl", "dir", "pipe"].map(mode);
    assert_eq!(modes, [0o600, 0o644, 0o644, 0o711, 0o622]);
}

/// Entries of a group that this user is not in.
fn make_of_another_group(target: &DirTarget) {
    // Version 2; owner, user 1, group and mask may read and write, all others read.
    let acl = [
        (1, 6, u32::MAX),
        (2, 6, 1),
        (4, 6, u32::MAX),
        (16, 6, u32::MAX),
        (32, 4, u32::MAX),
    ];
    let mut value = vec![2, 0, 0, 0];
    for (tag, perm, id) in acl {
        value.extend_from_slice(&[tag, 0, perm, 0]);
        value.extend_from_slice(&u32::to_le_bytes(id));
    }
    let of_another = |name: &str, kind, mode| {
        let mut made = entry(name.as_bytes(), kind);
        (made.gid, made.mode) = (12_345, mode);
        made
    };
    let mut with_acl = of_another("with-acl", FILE, 0o664);
    with_acl.xattrs = vec![(b"system.posix_acl_access".to_vec(), value)];
    for made in [
        of_another("secret", FILE, 0o660),
        of_another("shared", FILE, 0o2674),
        with_acl,
    ] {
        target.make_file(&made, &[]).unwrap();
        target.apply_metadata(&made, None).unwrap();
    }
    let dir = of_another("dir", EntryKind::Dir, 0o771);
    target.make_dir(&dir).unwrap();
    target.apply_metadata(&dir, None).unwrap();
    let pipe = of_another("pipe", EntryKind::Fifo, 0o662);
    target.make_fifo(&pipe).unwrap();
    target.apply_metadata(&pipe, None).unwrap();
}

#[test]
fn what_a_file_system_does_not_keep_is_told() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    symlink("f", from.join("link")).unwrap();
    for (name, time) in [
        ("f", "@1700000000.123456789"),
        ("whole", "@1700000000"),
        ("", "@-1.5"),
    ] {
        let path = from.join(name);
        if !name.is_empty() {
            fs::write(&path, b"x").unwrap();
        }
        let touched = Command::new("touch").args(["-d", time]).arg(&path).status();
        assert!(touched.unwrap().success());
    }
    let link = ["-h", "-d", "@1600000000.5"];
    let touched = Command::new("touch")
        .args(link)
        .arg(from.join("link"))
        .status();
    assert!(touched.unwrap().success());
    let fresh = restore(&from, &dir.path().join("fresh"), TargetMode::Fresh);
    assert_eq!(fresh.warnings, [""; 0]);
    let mounted = Mounted::of_whole_seconds(dir.path());
    let mut warnings = restore(&from, &mounted.0.join("to"), TargetMode::Fresh).warnings;
    warnings.sort();
    let told = [
        ".: modification time -1.500000000 not restored: it is -2.000000000",
        "f: modification time 1700000000.123456789 not restored: it is 1700000000.000000000",
        "link: modification time 1600000000.500000000 not restored: it is 1600000000.000000000",
    ];
    assert_eq!(warnings, told);
}

#[test]
fn a_mode_that_the_kernel_drops_bits_of_is_told() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    // What is made in it belongs to a group that its owner is not in, who may then not set a setgid bit.
    chown(dir.path(), Some(NOBODY), Some(12_345)).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o2755)).unwrap();
    let to = dir.path().to_owned();
    let finished = std::thread::spawn(move || {
        let nobody = rustix::fs::Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let target = begin(&to, TargetMode::Delta);
        let mut made = entry(b"f", FILE);
        (made.gid, made.mode) = (12_345, 0o2755);
        let file = target.make_file(&made, &[]).unwrap();
        target.apply_metadata(&made, Some(file.as_fd())).unwrap();
        target.finish().unwrap()
    });
    let warnings = finished.join().unwrap().warnings;
    assert_eq!(warnings, ["f: mode 2755 not restored: it is 0755"]);
}
