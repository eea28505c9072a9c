//! Scanning, opening, holes and noticing changes.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mover_base::Kind;
use mover_base::tree::{EntryKind, FileTime};
use mover_source::{
    DataRanges, DirSource, HOLES_UNKNOWN, RESTORE_MARKER, ScanOptions, SkipReason, data_ranges,
    first_hole, source_error, target_error,
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat};

use crate::support::{Mounted, entries, failure, item, open, paths, require_root, scan, url};

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
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let _socket = UnixListener::bind(dir.path().join("s")).unwrap();
    let null = rustix::fs::makedev(1, 3);
    let device = dir.path().join("d");
    mknodat(CWD, device, FileType::CharacterDevice, Mode::RUSR, null).unwrap();
    let expected = [
        ("d".to_owned(), SkipReason::Device),
        ("s".to_owned(), SkipReason::Socket),
    ];
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
    assert!(!tree.warnings.iter().any(|told| told.contains("exclude")));
}

#[test]
fn a_pattern_that_leaves_nothing_out_is_told_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    tree_of_everything(dir.path());
    let source = open(dir.path());
    let scan_without = |patterns: &[&str]| {
        source.scan(&ScanOptions {
            exclude: patterns.iter().map(|one| (*one).to_owned()).collect(),
            ..ScanOptions::default()
        })
    };
    let told = |patterns: &[&str]| {
        let warnings = scan_without(patterns).unwrap().warnings;
        let is_of = |told: &String| told.contains("exclude");
        warnings.into_iter().filter(is_of).collect::<Vec<_>>()
    };
    assert_eq!(told(&["./a", "a/b/empty", "/z", "*-b/again"]), [""; 0]);
    let expected = [
        "the exclude pattern b matched nothing at the top of the source; **/b matches at any depth",
        "the exclude pattern **/*.log matched nothing",
    ];
    assert_eq!(told(&["b", "a", "**/*.log"]), expected);
    let all = paths(&scan_without(&["./z"]).unwrap());
    assert!(!all.contains(&b"z".to_vec()) && all.contains(&b"a/file".to_vec()));
    let absolute = dir.path().join("z").display().to_string();
    let (kind, _, error) = failure(scan_without(&[absolute.as_str()]));
    assert_eq!(kind, Kind::Usage);
    assert_eq!(error.object_name(), Some(absolute.as_str()));
    assert!(error.hint_text().unwrap().contains("`z`"));
}

fn set_user_attribute(path: &Path, value: &[u8]) {
    rustix::fs::setxattr(path, "user.a", value, XattrFlags::empty()).unwrap();
}

#[test]
fn an_attribute_of_a_directory_that_changes_is_noticed_where_names_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    tree_of_everything(dir.path());
    let source = open(dir.path());
    let options = ScanOptions {
        exclude: vec!["n*".into()],
        ..ScanOptions::default()
    };
    for path in [dir.path().to_owned(), dir.path().join("a")] {
        set_user_attribute(&path, b"old");
        let tree = source.scan(&options).unwrap();
        fs::write(dir.path().join("nothing"), b"").unwrap();
        source.check_tree_unchanged(&tree).unwrap();
        set_user_attribute(&path, b"new");
        let (kind, text, _) = failure(source.check_tree_unchanged(&tree));
        assert_eq!(kind, Kind::SourceChanged);
        assert!(text.contains("extended attributes"), "{text}");
    }
}

#[test]
fn other_file_systems_are_left_out_on_request_only() {
    require_root();
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
    // What happens to its root is one.
    set_attribute(&File::open(&mounted.0).unwrap(), 1, b"x");
    let (kind, _, _) = failure(source.check_tree_unchanged(&tree));
    assert_eq!(kind, Kind::SourceChanged);
    let tree = source.scan(&options).unwrap();
    source.check_tree_unchanged(&tree).unwrap();
    rustix::fs::chmod(&mounted.0, Mode::from_raw_mode(0o711)).unwrap();
    let (kind, _, _) = failure(source.check_tree_unchanged(&tree));
    assert_eq!(kind, Kind::SourceChanged);
}

#[test]
fn a_file_system_in_memory_is_told_once() {
    require_root();
    for kind in ["tmpfs", "ramfs"] {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let told_of_memory = |path: &Path| {
            let warnings = scan(path).warnings;
            let is_of = |told: &String| told.contains("shared memory");
            warnings.into_iter().filter(is_of).collect::<Vec<_>>()
        };
        let before = told_of_memory(dir.path()).len();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", &inner, kind, flags, c"").unwrap();
        let mounted = Mounted(inner);
        for name in ["a", "b"] {
            fs::create_dir(mounted.0.join(name)).unwrap();
            fs::write(mounted.0.join(name).join("file"), b"x").unwrap();
        }
        let told = told_of_memory(&mounted.0);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].contains(&mounted.0.display().to_string()),
            "{told:?}"
        );
        assert_eq!(told_of_memory(dir.path()).len(), 1);
        // Of what is left out nothing is read.
        let options = ScanOptions {
            one_file_system: true,
            ..ScanOptions::default()
        };
        let tree = open(dir.path()).scan(&options).unwrap();
        assert_eq!(tree.warnings.len(), before, "{:?}", tree.warnings);
    }
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
    rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()).unwrap();
}

#[test]
fn more_attributes_than_a_backup_holds_are_refused_before_anything_is_read() {
    require_root();
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
    require_root();
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
    std::thread::sleep(Duration::from_millis(20));
    let writer = File::options().write(true).open(&path).unwrap();
    writer.write_at(&[2], 50).unwrap();
    let checked = source.check_unchanged(&item(&tree, "f"), fd.as_fd());
    let (kind, text, _) = failure(checked);
    assert_eq!(kind, Kind::SourceChanged);
    assert!(text.contains("written to"), "{text}");
}

#[test]
fn a_write_within_the_second_of_the_scan_is_noticed_where_times_are_whole_seconds() {
    require_root();
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
    let asked = Cell::new(0);
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

/// A source whose file system keeps whole seconds.
struct SlowClock<'a> {
    root: &'a Path,
    file: &'a Path,
    link: &'a Path,
}

impl SlowClock<'_> {
    /// Scans what `prepare` has made, with `change` when all has been read and the scan still waits, within the second of
    /// `prepare`. The kind and text of what the second look finds.
    fn noticed(&self, prepare: &dyn Fn(), change: &dyn Fn()) -> (Kind, String) {
        let source = open(self.root);
        for _ in 0..20 {
            // The kernel's clock is a tick behind.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let next =
                Duration::from_millis(1_030) - Duration::from_nanos(now.subsec_nanos().into());
            std::thread::sleep(next);
            prepare();
            let stamps = || {
                [self.root, self.file, self.link].map(|path| {
                    let found = path.symlink_metadata().unwrap();
                    (found.ino(), found.ctime(), found.ctime_nsec())
                })
            };
            let (before, after) = (stamps(), Cell::new(None));
            let asked = Cell::new(0);
            let scanned = source.scan_while(&ScanOptions::default(), &|| {
                asked.set(asked.get() + 1);
                // Once for the one directory, and then while it waits.
                if asked.get() == 2 {
                    change();
                    after.set(Some(stamps()));
                }
                Ok(())
            });
            let tree = scanned.unwrap();
            // Otherwise the machine was too busy, and the stamps tell.
            if after.get() == Some(before) {
                let (kind, text, _) = failure(source.check_tree_unchanged(&tree));
                return (kind, text);
            }
        }
        panic!("nothing changes within a second");
    }
}

#[test]
fn what_changes_behind_the_scan_within_its_second_is_noticed_where_times_are_whole_seconds() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::of_whole_seconds(dir.path());
    let root = mounted.0.join("source");
    let (file, link) = (root.join("f"), root.join("l"));
    let beside = mounted.0.join("beside");
    fs::create_dir(&root).unwrap();
    fs::write(&file, [1; 100]).unwrap();
    // Its inode is the first free one, so that the next link has it again.
    let link_to = |target: &str| {
        let _ = fs::remove_file(&link);
        symlink(target, &link).unwrap();
    };
    let prepare = || {
        let _ = fs::remove_file(&beside);
        set_user_attribute(&file, b"old");
        set_user_attribute(&root, b"old");
        link_to("AAAA");
    };
    let changes: [(&str, &dyn Fn()); 4] = [
        ("extended attributes", &|| set_user_attribute(&file, b"new")),
        ("extended attributes", &|| set_user_attribute(&root, b"new")),
        ("replaced", &|| link_to("BBBB")),
        ("hard link", &|| fs::hard_link(&file, &beside).unwrap()),
    ];
    let source = SlowClock {
        root: &root,
        file: &file,
        link: &link,
    };
    for (told, change) in changes {
        let (kind, text) = source.noticed(&prepare, change);
        assert_eq!(kind, Kind::SourceChanged, "{told}: {text}");
        assert!(text.contains(told), "{text}");
    }
    // What rests is what was read.
    let scanned = scan(&root);
    open(&root).check_tree_unchanged(&scanned).unwrap();
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
fn a_hole_is_found_however_much_is_allocated_elsewhere() {
    const BLOCK: u64 = 4096;
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 * BLOCK).unwrap();
    for block in [0, 1, 3] {
        file.write_all_at(&[7; BLOCK as usize], block * BLOCK)
            .unwrap();
    }
    let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 4 * BLOCK, 8 * BLOCK).unwrap();
    file.sync_all().unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 >= 4 * BLOCK);
    // The end is a hole, and beyond it: the file has been cut.
    for (block, expected) in [(0, 2), (1, 2), (2, 2), (3, 4), (4, 4), (5, 5)] {
        let found = first_hole(file.as_fd(), block * BLOCK).unwrap();
        assert_eq!(found, expected * BLOCK, "{block}");
    }
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
    let flags = XattrFlags::empty();
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
