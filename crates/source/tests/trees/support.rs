//! Making and copying trees for tests.
//!
//! Invariants: contents are copied with std alone.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mover_base::entries::EntryList;
use mover_base::tree::{Entry, EntryKind};
use mover_base::{Error, Kind, Result};
use mover_source::{DirSource, DirTarget, Finished, Item, ScanOptions, TargetMode, Tree};

/// The URL of a directory.
pub fn url(path: &Path) -> String {
    format!("dir://{}", path.display())
}

pub fn open(path: &Path) -> DirSource {
    DirSource::open(&url(path)).unwrap()
}

pub fn scan(path: &Path) -> Tree {
    open(path).scan(&ScanOptions::default()).unwrap()
}

/// The item at a relative path.
pub fn item(tree: &Tree, path: &str) -> Item {
    let found = tree.items().find(|item| item.entry.path == path.as_bytes());
    found.unwrap_or_else(|| panic!("{path} was not found"))
}

pub fn paths(tree: &Tree) -> Vec<Vec<u8>> {
    tree.entries().iter().map(|entry| entry.path).collect()
}

pub fn entries(tree: &Tree) -> Vec<Entry> {
    tree.entries().iter().collect()
}

pub fn join(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

/// Many of the tests mount, change owners or make devices: only root can.
#[track_caller]
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root: run tests/run as root"
    );
}

/// The kind and text of an error.
pub fn failure<T>(result: Result<T>) -> (Kind, String, Error) {
    let error = result.err().expect("an error");
    (error.kind(), error.to_string(), error)
}

/// A plain entry for making things.
pub fn entry(path: &[u8], kind: EntryKind) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: 0o700,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Default::default(),
        xattrs: Vec::new(),
    }
}

/// What a target is to have, in path order.
pub fn wanted(paths: &[&[u8]]) -> EntryList {
    let mut list = EntryList::default();
    for path in paths {
        list.push(&entry(path, EntryKind::Dir)).unwrap();
    }
    list
}

/// Makes everything in `tree` (scanned at `from`) in `target`, with contents copied by std.
pub fn fill(target: &DirTarget, tree: &Tree, from: &Path) {
    for entry in &entries(tree) {
        match &entry.kind {
            EntryKind::Dir => target.make_dir(entry).unwrap(),
            EntryKind::Symlink { .. } => target.make_symlink(entry).unwrap(),
            EntryKind::Hardlink { .. } => target.make_hardlink(entry).unwrap(),
            EntryKind::Fifo => target.make_fifo(entry).unwrap(),
            EntryKind::File { bytes } => {
                let mut file = File::from(target.make_file(entry, &[]).unwrap());
                let mut original = File::open(join(from, &entry.path)).unwrap();
                assert_eq!(std::io::copy(&mut original, &mut file).unwrap(), *bytes);
                file.set_len(*bytes).unwrap();
                target.apply_metadata(entry, Some(file.as_fd())).unwrap();
                file.sync_all().unwrap();
                continue;
            }
        }
        target.apply_metadata(entry, None).unwrap();
    }
}

/// Restores the tree at `from` to `to`.
pub fn restore(from: &Path, to: &Path, mode: TargetMode) -> Finished {
    let tree = scan(from);
    let target = DirTarget::begin(DirTarget::plan(to, mode).unwrap()).unwrap();
    if mode == TargetMode::Delta {
        target.remove_extra(tree.entries(), &|| Ok(())).unwrap();
    }
    fill(&target, &tree, from);
    target.finish().unwrap()
}

/// Asserts that two trees have the same entries and contents.
pub fn assert_same(a: &Path, b: &Path) {
    let (left, right) = (scan(a), scan(b));
    assert_eq!(entries(&left), entries(&right));
    for item in left.items() {
        if matches!(item.entry.kind, EntryKind::File { .. }) {
            let read = |root| std::fs::read(join(root, &item.entry.path)).unwrap();
            assert!(read(a) == read(b), "{}", item.entry.display_path());
        }
    }
}

/// Names in a directory, with hidden ones, sorted.
pub fn listing(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = path
        .read_dir()
        .unwrap()
        .map(|found| found.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A tmpfs that is unmounted when it goes out of scope.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn tmpfs(at: &Path) -> Mounted {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", at, "tmpfs", flags, c"size=8m").unwrap();
        Mounted(at.to_owned())
    }

    /// A file system in `dir` that keeps times to the second, and none of birth: ext4 with inodes of 128 bytes.
    pub fn of_whole_seconds(dir: &Path) -> Mounted {
        Mounted::ext4(dir, "128")
    }

    /// An ext4 file system in `dir` with inodes of so many bytes.
    pub fn ext4(dir: &Path, inode_bytes: &str) -> Mounted {
        let (image, at) = (dir.join("image.ext4"), dir.join("mounted"));
        File::create(&image).unwrap().set_len(8 << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        let mkfs = ["mkfs.ext4", "-q", "-F", "-I", inode_bytes];
        for (command, last) in [(&mkfs[..], None), (&["mount", "-o", "loop"], Some(&at))] {
            let mut command_line = Command::new(command[0]);
            command_line.args(&command[1..]).arg(&image).args(last);
            let output = command_line.output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        Mounted(at)
    }

    /// A directory at a second path.
    pub fn bind(from: &Path, at: &Path) -> Mounted {
        rustix::mount::mount_bind(from, at).unwrap();
        Mounted(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
