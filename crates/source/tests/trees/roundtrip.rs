//! Scan, restore, scan again: the same tree.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use mover_source::TargetMode;
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat};

use crate::support::{assert_same, require_root, restore};

/// Puts an ACL on a name. Without one, what is compared afterwards would be compared without ACLs.
fn setfacl(args: &[&str], path: &Path) {
    let status = Command::new("setfacl").args(args).arg(path).status();
    let status = status.expect("setfacl runs (tests/run installs it)");
    assert!(status.success(), "{args:?} {}: {status}", path.display());
}

/// Every kind of metadata that has an order to get wrong.
fn awkward_tree(root: &Path) {
    fs::create_dir_all(root.join("closed/inner")).unwrap();
    fs::write(root.join("closed/inner/f"), b"inner").unwrap();
    fs::hard_link(root.join("closed/inner/f"), root.join("again")).unwrap();
    symlink("/nowhere", root.join("link")).unwrap();
    mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_at(b"end", (1 << 20) + 1).unwrap();
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("none", 0)] {
        fs::write(root.join(name), name).unwrap();
        chown(root.join(name), Some(1), Some(2)).unwrap();
        fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(root.join("sticky")).unwrap();
    fs::set_permissions(root.join("sticky"), Permissions::from_mode(0o3777)).unwrap();
    fs::write(root.join("acl"), b"acl").unwrap();
    let flags = XattrFlags::empty();
    let fd = File::open(root.join("acl")).unwrap();
    rustix::fs::fsetxattr(&fd, "user.note", &[0, 255, 10], flags).unwrap();
    setfacl(&["-m", "u:daemon:rwx,g::r"], &root.join("acl"));
    setfacl(&["-d", "-m", "u:daemon:rx"], &root.join("sticky"));
    // cap_net_bind_service, version 2: cleared by a later change of owner.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::fsetxattr(&fd, "security.capability", &capability, flags).unwrap();
    let link = root.join("link");
    rustix::fs::lsetxattr(&link, "trusted.note", b"on a link", flags).unwrap();
    std::os::unix::fs::lchown(&link, Some(3), Some(4)).unwrap();
    let old = SystemTime::UNIX_EPOCH - Duration::new(1_000_000, 1);
    File::open(root.join("closed/inner"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    fs::set_permissions(root.join("closed"), Permissions::from_mode(0o500)).unwrap();
    fs::set_permissions(root, Permissions::from_mode(0o1750)).unwrap();
    File::open(root).unwrap().set_modified(old).unwrap();
}

#[test]
fn awkward_metadata_survives_a_fresh_and_a_delta_restore() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    awkward_tree(&from);
    let fresh = dir.path().join("fresh");
    let finished = restore(&from, &fresh, TargetMode::Fresh);
    assert_eq!(finished.warnings, Vec::<String>::new());
    assert_same(&from, &fresh);
    // Over an older state with other metadata, an inherited ACL and leftover attributes.
    let delta = dir.path().join("delta");
    fs::create_dir_all(delta.join("closed/inner")).unwrap();
    setfacl(&["-d", "-m", "u:daemon:rwx"], &delta);
    fs::write(delta.join("acl"), b"longer than before").unwrap();
    let fd = File::open(delta.join("acl")).unwrap();
    rustix::fs::fsetxattr(&fd, "user.stale", b"x", XattrFlags::empty()).unwrap();
    fs::set_permissions(delta.join("closed"), Permissions::from_mode(0o000)).unwrap();
    restore(&from, &delta, TargetMode::Delta);
    assert_same(&from, &delta);
    // Once more over itself.
    restore(&from, &delta, TargetMode::Delta);
    assert_same(&from, &delta);
}

#[derive(Debug, Clone)]
enum Node {
    Dir,
    File(Vec<u8>),
    Link(String),
    Pipe,
}

fn trees() -> impl Strategy<Value = BTreeMap<String, (Node, u32, i64)>> {
    let node = prop_oneof![
        3 => Just(Node::Dir),
        4 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(Node::File),
        1 => "[a-z/.]{1,9}".prop_map(Node::Link),
        1 => Just(Node::Pipe),
    ];
    let time = -2_000_000_000_i64..4_000_000_000;
    let one = (node, 0_u32..0o10000, time);
    proptest::collection::btree_map("[ab](/[ab-]){0,3}", one, 0..20)
}

fn make(root: &Path, tree: &BTreeMap<String, (Node, u32, i64)>) {
    for (path, (node, mode, _)) in tree {
        let path = root.join(path);
        // Something else may stand where a parent should be; that name is left out.
        if path.symlink_metadata().is_ok() || fs::create_dir_all(path.parent().unwrap()).is_err() {
            continue;
        }
        match node {
            Node::Dir => fs::create_dir(&path).unwrap(),
            Node::File(bytes) => fs::write(&path, bytes).unwrap(),
            Node::Link(target) => {
                symlink(target, &path).unwrap();
                continue;
            }
            Node::Pipe => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
        }
        fs::set_permissions(&path, Permissions::from_mode(*mode)).unwrap();
    }
    for (path, (node, _, seconds)) in tree.iter().rev() {
        let path = root.join(path);
        let is_real = path
            .symlink_metadata()
            .is_ok_and(|found| found.is_dir() || found.is_file());
        if is_real && matches!(node, Node::Dir | Node::File(_)) {
            let shift = Duration::from_secs(seconds.unsigned_abs());
            let epoch = SystemTime::UNIX_EPOCH;
            let time = if *seconds < 0 {
                epoch - shift
            } else {
                epoch + shift
            };
            File::open(&path).unwrap().set_modified(time).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_over_any_other_comes_back_equal(before in trees(), after in trees()) {
        require_root();
        let dir = tempfile::tempdir().unwrap();
        let (from, fresh, delta) =
            (dir.path().join("from"), dir.path().join("fresh"), dir.path().join("delta"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&delta).unwrap();
        make(&from, &after);
        make(&delta, &before);
        restore(&from, &fresh, TargetMode::Fresh);
        assert_same(&from, &fresh);
        restore(&from, &delta, TargetMode::Delta);
        assert_same(&from, &delta);
    }
}
