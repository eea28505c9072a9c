//! Scanning, opening, holes and noticing changes.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use mover_base::Kind;
use mover_base::tree::{EntryKind, FileTime};
use mover_source::{
    DataRanges, DirSource, HOLES_UNKNOWN, RESTORE_MARKER, ScanOptions, SkipReason, data_ranges,
    source_error, target_error,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{Mounted, entries, failure, is_root, item, open, paths, scan, url};

fn tree_of_everything(root: &Path) {
    fs::create_dir_all(root.join("a/b/empty")).unwrap();
    fs::create_dir(root.join("a-b")).unwrap();
    fs::write(root.join("a/file"), b"content").unwrap();
    fs::write(root.join("a/empty"), b"").unwrap();
    fs::hard_link(root.join("a/file"), root.join("a-b/again")).unwrap();
    fs::hard_link(root.join("a/file"), root.join("z")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    symlink("/etc", root.join("absolute")).unwrap();
    symlink("a", root.join("to-dir")).unwrap();
    mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    for name in [&b"new\nline"[..], b"\xff\xfe", &[b'n'; 255]] {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
}

#[test]
fn a_scan_finds_what_find_finds() {
    let dir = tempfile::tempdir().unwrap();
    tree_of_everything(dir.path());
    let found = Command::new("find")
        .arg(dir.path())
        .args(["-printf", "%P\\0%y\\0%s\\0%m\\0%U\\0%G\\0%l\\0"])
        .output()
        .unwrap();
    assert!(found.status.success());
    let fields: Vec<&[u8]> = found.stdout.split(|b| *b == 0).collect();
    let mut truth: Vec<Vec<Vec<u8>>> = fields
        .chunks_exact(7)
        .map(|record| record.iter().map(|field| field.to_vec()).collect())
        .collect();
    truth.sort();
    let tree = scan(dir.path());
    let ours: Vec<Vec<Vec<u8>>> = tree
        .items()
        .map(|item| {
            let entry = &item.entry;
            let (kind, target) = match &entry.kind {
                EntryKind::Dir => ("d", &b""[..]),
                EntryKind::File { .. } | EntryKind::Hardlink { .. } => ("f", &b""[..]),
                EntryKind::Symlink { target } => ("l", target.as_slice()),
                EntryKind::Fifo => ("p", &b""[..]),
            };
            vec![
                entry.path.clone(),
                kind.into(),
                item.stamp.size_bytes.to_string().into(),
                format!("{:o}", entry.mode).into(),
                entry.uid.to_string().into(),
                entry.gid.to_string().into(),
                target.to_vec(),
            ]
        })
        .collect();
    assert_eq!(ours, truth);
    let totals = tree.totals;
    assert_eq!((totals.files, totals.dirs, totals.symlinks), (5, 5, 3));
    assert_eq!((totals.hardlinks, totals.fifos), (2, 1));
    assert_eq!(totals.bytes, 7 + 8 + 2 + 255);
}

#[test]
fn the_first_of_several_names_holds_the_content() {
    let dir = tempfile::tempdir().unwrap();
    tree_of_everything(dir.path());
    let tree = scan(dir.path());
    // `-` sorts before `/`, so that the name in `a-b` precedes the one in `a`.
    assert_eq!(
        item(&tree, "a-b/again").entry.kind,
        EntryKind::File { bytes: 7 }
    );
    for path in ["a/file", "z"] {
        let first = b"a-b/again".to_vec();
        assert_eq!(item(&tree, path).entry.kind, EntryKind::Hardlink { first });
    }
}

#[test]
fn sockets_and_devices_are_skipped_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = UnixListener::bind(dir.path().join("s")).unwrap();
    let mut expected = vec![("s".to_string(), SkipReason::Socket)];
    if is_root() {
        let null = rustix::fs::makedev(1, 3);
        let device = dir.path().join("d");
        mknodat(CWD, device, FileType::CharacterDevice, Mode::RUSR, null).unwrap();
        expected.insert(0, ("d".into(), SkipReason::Device));
    }
    let source = open(dir.path());
    let tree = source.scan(&ScanOptions::default()).unwrap();
    let mut skipped: Vec<_> = tree
        .skipped
        .iter()
        .map(|skipped| (skipped.path.clone(), skipped.reason))
        .collect();
    skipped.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(skipped, expected);
    assert_eq!(tree.entries().len(), 1);
    source.check_tree_unchanged(&tree).unwrap();
}

#[test]
fn times_before_1970_and_nanoseconds_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old");
    fs::write(&path, b"x").unwrap();
    let touched = Command::new("touch")
        .args(["-d", "1965-03-01T00:00:00.123456789Z"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(touched.success());
    let mtime = item(&scan(dir.path()), "old").entry.mtime;
    // date -u -d 1965-03-01 +%s
    let expected = FileTime {
        seconds: -152_668_800,
        nanos: 123_456_789,
    };
    assert_eq!(mtime, expected);
}

#[test]
fn excluded_names_are_left_out_with_what_is_below() {
    let dir = tempfile::tempdir().unwrap();
    tree_of_everything(dir.path());
    let source = open(dir.path());
    let options = ScanOptions {
        exclude: vec!["a".into(), "n*".into(), "?-b/again".into()],
        ..ScanOptions::default()
    };
    let tree = source.scan(&options).unwrap();
    let all = paths(&tree);
    assert!(
        !all.iter()
            .any(|p| p.starts_with(b"a/") || p == b"a" || p[..].starts_with(b"n"))
    );
    // The only name left of the three holds the content.
    assert_eq!(item(&tree, "z").entry.kind, EntryKind::File { bytes: 7 });
    fs::write(dir.path().join("a/new"), b"").unwrap();
    fs::write(dir.path().join("nothing"), b"").unwrap();
    source.check_tree_unchanged(&tree).unwrap();
}

#[test]
fn other_file_systems_are_left_out_on_request_only() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("m")).unwrap();
    let mounted = Mounted::tmpfs(&dir.path().join("m"));
    fs::write(mounted.0.join("in"), b"x").unwrap();
    assert_eq!(scan(dir.path()).entries().len(), 3);
    let options = ScanOptions {
        one_file_system: true,
        ..ScanOptions::default()
    };
    let source = open(dir.path());
    let tree = source.scan(&options).unwrap();
    assert_eq!(tree.entries().len(), 2);
    assert_eq!(tree.skipped[0].reason, SkipReason::OtherFileSystem);
    source.check_tree_unchanged(&tree).unwrap();
    // What happens in it is no change of the source.
    fs::write(mounted.0.join("more"), b"x").unwrap();
    fs::create_dir(mounted.0.join("below")).unwrap();
    source.check_tree_unchanged(&tree).unwrap();
    rustix::fs::chmod(&mounted.0, Mode::from_raw_mode(0o711)).unwrap();
    let (kind, _, _) = failure(source.check_tree_unchanged(&tree));
    assert_eq!(kind, Kind::SourceChanged);
}

#[test]
fn a_tree_that_takes_too_much_memory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    tree_of_everything(dir.path());
    let options = ScanOptions {
        names_bytes_max: 1_000,
        ..ScanOptions::default()
    };
    let (kind, _, error) = failure(open(dir.path()).scan(&options));
    assert_eq!(kind, Kind::Limit);
    assert!(error.hint_text().unwrap().contains("--names"));
}

/// The file `f` of a file system whose files hold any number of attributes.
fn file_in(mounted: &Mounted) -> File {
    let path = mounted.0.join("f");
    fs::write(&path, b"x").unwrap();
    File::open(&path).unwrap()
}

fn set_attribute(file: &File, number: usize, value: &[u8]) {
    let name = format!("trusted.{number:04}");
    rustix::fs::fsetxattr(file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn more_attributes_than_a_backup_holds_are_refused_before_anything_is_read() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::tmpfs(dir.path());
    let file = file_in(&mounted);
    let set = |number| set_attribute(&file, number, b"");
    (0..1024).for_each(set);
    assert_eq!(item(&scan(dir.path()), "f").entry.xattrs.len(), 1024);
    set(1024);
    let (kind, text, error) = failure(open(dir.path()).scan(&ScanOptions::default()));
    assert_eq!(kind, Kind::Limit);
    assert!(text.contains("1025 extended attributes"), "{text}");
    assert_eq!(error.object_name(), Some("f"));
    assert!(error.hint_text().unwrap().contains("exclude"));
}

#[test]
fn longer_attributes_than_a_backup_holds_are_refused_before_anything_is_read() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::tmpfs(dir.path());
    let file = file_in(&mounted);
    let value = vec![1; 64 << 10];
    let set = |number| set_attribute(&file, number, &value);
    (0..15).for_each(set);
    assert_eq!(item(&scan(dir.path()), "f").entry.xattrs.len(), 15);
    (15..17).for_each(set);
    let (kind, text, error) = failure(open(dir.path()).scan(&ScanOptions::default()));
    assert_eq!(kind, Kind::Limit, "{text}");
    assert_eq!(error.object_name(), Some("f"));
    assert!(error.hint_text().unwrap().contains("exclude"));
}

#[test]
fn an_unfinished_restore_is_no_source() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(RESTORE_MARKER), b"").unwrap();
    let scanned = open(dir.path()).scan(&ScanOptions::default());
    let (kind, text, _) = failure(scanned);
    assert_eq!(kind, Kind::Source);
    assert!(text.contains("unfinished restore"), "{text}");
}

#[test]
fn wrong_urls_and_missing_directories_say_what_to_do() {
    let cases = [
        ("s3://bucket", Kind::Usage),
        ("/var/lib", Kind::Usage),
        ("dir://relative", Kind::Usage),
        ("dir:///does/not/exist", Kind::Source),
        ("dir:///etc/hostname", Kind::Source),
    ];
    for (url, expected) in cases {
        assert_eq!(failure(DirSource::open(url)).0, expected, "{url}");
    }
}

#[test]
fn changes_between_scan_and_open_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let changes: [fn(&Path); 5] = [
        |path| fs::remove_file(path).unwrap(),
        |path| {
            fs::remove_file(path).unwrap();
            fs::write(path, b"same").unwrap();
        },
        |path| fs::write(path, b"longer").unwrap(),
        |path| {
            fs::remove_file(path).unwrap();
            symlink("/etc/passwd", path).unwrap();
        },
        |path| {
            // Opening a pipe for reading without a writer would block for ever.
            fs::remove_file(path).unwrap();
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        },
    ];
    for (at, change) in changes.iter().enumerate() {
        let _ = fs::remove_file(&path);
        fs::write(&path, b"same").unwrap();
        let source = open(dir.path());
        let tree = source.scan(&ScanOptions::default()).unwrap();
        source.open_file(&item(&tree, "f")).unwrap();
        source.check_tree_unchanged(&tree).unwrap();
        change(&path);
        let (kind, text, error) = failure(source.open_file(&item(&tree, "f")));
        assert_eq!(kind, Kind::SourceChanged, "{at}: {text}");
        assert!(error.hint_text().unwrap().contains("snapshot"));
        assert_eq!(
            failure(source.check_tree_unchanged(&tree)).0,
            Kind::SourceChanged
        );
    }
}

#[test]
fn a_write_while_the_file_is_read_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, [1; 100]).unwrap();
    let source = open(dir.path());
    let tree = source.scan(&ScanOptions::default()).unwrap();
    let fd = source.open_file(&item(&tree, "f")).unwrap();
    let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    source
        .check_unchanged(&item(&tree, "f"), fd.as_fd())
        .unwrap();
    // Past the kernel's clock tick, by which old kernels stamp.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let writer = File::options().write(true).open(&path).unwrap();
    writer.write_at(&[2], 50).unwrap();
    let checked = source.check_unchanged(&item(&tree, "f"), fd.as_fd());
    let (kind, text, _) = failure(checked);
    assert_eq!(kind, Kind::SourceChanged);
    assert!(text.contains("written to"), "{text}");
}

#[test]
fn a_write_within_the_second_of_the_scan_is_noticed_where_times_are_whole_seconds() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::of_whole_seconds(dir.path());
    let path = mounted.0.join("f");
    fs::write(&path, [1; 100]).unwrap();
    let source = open(&mounted.0);
    let tree = source.scan(&ScanOptions::default()).unwrap();
    assert_eq!(item(&tree, "f").stamp.ctime.nanos, 0);
    let fd = source.open_file(&item(&tree, "f")).unwrap();
    fs::write(&path, [2; 100]).unwrap();
    for checked in [
        source.check_unchanged(&item(&tree, "f"), fd.as_fd()),
        source.check_tree_unchanged(&tree),
    ] {
        assert_eq!(failure(checked).0, Kind::SourceChanged);
    }
    // Once for each of the two directories, and then while it waits.
    let asked = std::cell::Cell::new(0);
    fs::write(&path, [3; 100]).unwrap();
    let scanned = source.scan_while(&ScanOptions::default(), &|| {
        asked.set(asked.get() + 1);
        match asked.get() {
            ..=3 => Ok(()),
            _ => Err(mover_base::Error::new(Kind::Cancelled, "to end")),
        }
    });
    assert_eq!(failure(scanned).0, Kind::Cancelled);
}

#[test]
fn names_that_come_and_go_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    tree_of_everything(dir.path());
    let source = open(dir.path());
    let check = |change: &dyn Fn()| {
        let tree = source.scan(&ScanOptions::default()).unwrap();
        source.check_tree_unchanged(&tree).unwrap();
        change();
        assert_eq!(
            failure(source.check_tree_unchanged(&tree)).0,
            Kind::SourceChanged
        );
    };
    check(&|| fs::write(dir.path().join("a/b/new"), b"").unwrap());
    check(&|| fs::remove_file(dir.path().join("a/b/new")).unwrap());
    check(&|| fs::rename(dir.path().join("a/b"), dir.path().join("a/c")).unwrap());
    check(&|| fs::hard_link(dir.path().join("z"), dir.path().join("zz")).unwrap());
    check(&|| fs::set_permissions(dir.path().join("a"), Permissions::from_mode(0o711)).unwrap());
}

#[test]
fn a_file_that_the_user_may_not_read_is_an_error_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    let at = url(dir.path());
    // Credentials belong to a thread: this one becomes nobody and ends.
    std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::fs::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        let source = DirSource::open(&at).unwrap();
        let tree = source.scan(&ScanOptions::default()).unwrap();
        let (kind, _, error) = failure(source.open_file(&item(&tree, "secret")));
        assert_eq!(kind, Kind::Source);
        assert!(error.hint_text().unwrap().contains("CAP_DAC_READ_SEARCH"));
        assert_eq!(error.object_name(), Some("secret"));
    })
    .join()
    .unwrap();
}

#[test]
fn data_ranges_hold_every_byte_that_is_not_zero() {
    const MIB: u64 = 1 << 20;
    let file = tempfile::tempfile().unwrap();
    file.set_len(10 * MIB).unwrap();
    for at in [0, MIB + 5, 3 * MIB - 1, 7 * MIB] {
        file.write_at(&[7; 10], at).unwrap();
    }
    file.sync_all().unwrap();
    let ranges = data_ranges(file.as_fd(), 0..10 * MIB).unwrap();
    for at in [0, MIB + 5, 3 * MIB - 1, 3 * MIB, 7 * MIB] {
        assert!(ranges.iter().any(|range| range.contains(&at)), "{at}");
    }
    assert!(
        ranges
            .iter()
            .all(|r| r.start % 4096 == 0 && r.end % 4096 == 0 && r.start < r.end)
    );
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
    // Windows of the same file find the same blocks.
    let mut blocks = Vec::new();
    for window in 0..10 {
        let window = window * MIB..(window + 1) * MIB;
        for range in DataRanges::new(file.as_fd(), window) {
            blocks.extend(range.unwrap().step_by(4096));
        }
    }
    let whole: Vec<u64> = ranges
        .iter()
        .flat_map(|r| r.clone().step_by(4096))
        .collect();
    assert_eq!(blocks, whole);
    assert!(
        data_ranges(file.as_fd(), 20 * MIB..30 * MIB)
            .unwrap()
            .is_empty()
    );
    assert!(data_ranges(file.as_fd(), 5..5).unwrap().is_empty());
}

#[test]
fn holes_that_cannot_be_found_in_a_target_are_no_error_of_the_source() {
    let (reader, _writer) = std::os::unix::net::UnixStream::pair().unwrap();
    let errno = data_ranges(reader.as_fd(), 0..10).unwrap_err();
    assert_eq!(errno, rustix::io::Errno::SPIPE);
    let error = target_error(HOLES_UNKNOWN, b"base/1/file", errno);
    assert_eq!(error.kind(), Kind::Target);
    assert_eq!(error.object_name(), Some("base/1/file"));
    let error = source_error(HOLES_UNKNOWN, b"base/1/file", errno);
    assert_eq!(error.kind(), Kind::Source);
    assert_eq!(error.object_name(), Some("base/1/file"));
}

#[test]
fn extended_attributes_and_acls_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, b"x").unwrap();
    let fd = File::open(&path).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&fd, "user.zebra", b"1", flags).unwrap();
    rustix::fs::fsetxattr(&fd, "user.ant", b"", flags).unwrap();
    let acl = Command::new("setfacl")
        .args(["-m", "u:daemon:rw"])
        .arg(&path)
        .status();
    let tree = scan(dir.path());
    let xattrs = &item(&tree, "f").entry.xattrs;
    let has = |name: &[u8]| xattrs.iter().any(|(found, _)| found == name);
    assert!(has(b"user.zebra") && has(b"user.ant"));
    assert!(xattrs.is_sorted());
    if acl.is_ok_and(|status| status.success()) {
        assert!(has(b"system.posix_acl_access"));
    }
    assert_eq!(entries(&tree).len(), 2);
}
