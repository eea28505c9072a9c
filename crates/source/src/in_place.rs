//! What a restore in place (`--delta`) remembers of its target.
//!
//! Invariants: what stands under one entry of the backup never stands under another one too, but for further names of a
//! file. Two names may be one thing in the target: where the file system does not tell upper and lower case apart, or
//! something is mounted at two paths. The second is refused before anything is written through it, and so is what
//! somebody puts in the place of a file while it is worked on. Each file system that
//! is written to is held open from before the first write, because a system call that syncs it tells only of writes that
//! failed since then.

use std::collections::hash_map::{Entry as Slot, RandomState};
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::os::fd::OwnedFd;

use mover_base::tree::{Entry, display_path};
use mover_base::{Error, Kind, Result};
use rustix::fs::Stat;

use crate::failure::target_error;
use crate::remove::{Inode, inode};

/// File systems below the target at most; each takes a descriptor.
const FILE_SYSTEMS_MAX: usize = 64;

/// What is known of a target so far.
#[derive(Debug)]
pub(crate) struct InPlace {
    /// Device and inode of everything that stands under an entry, and the entry's path, hashed.
    used: HashMap<Inode, u64>,
    /// Hashes paths, in a way that nobody outside can foresee.
    hasher: RandomState,
    /// The file system of the target itself, which is held anyway.
    root_dev: u64,
    /// Other file systems below.
    others: Vec<FileSystem>,
    /// Directories that stay as they are, because another file system is mounted there.
    pub left: HashSet<Vec<u8>>,
}

#[derive(Debug)]
struct FileSystem {
    dev: u64,
    held: OwnedFd,
    /// Where it was met first.
    path: Vec<u8>,
}

impl InPlace {
    /// `root` is the target itself.
    pub fn new(root: &Stat) -> InPlace {
        let hasher = RandomState::new();
        InPlace {
            used: HashMap::from([(inode(root), hasher.hash_one(b"".as_slice()))]),
            hasher,
            root_dev: inode(root).0,
            others: Vec::new(),
            left: HashSet::new(),
        }
    }

    /// Takes note of what was made for an entry. It was not there before, so that no other entry can have it.
    pub fn made(&mut self, stat: &Stat, path: &[u8]) {
        let path = self.hasher.hash_one(path);
        self.used.insert(inode(stat), path);
    }

    /// Takes note of what was there and is kept for an entry.
    ///
    /// Errors: `Target` if it stands under another entry.
    pub fn keep(&mut self, stat: &Stat, entry: &Entry) -> Result<()> {
        match self.used.entry(inode(stat)) {
            Slot::Vacant(slot) => {
                slot.insert(self.hasher.hash_one(entry.path.as_slice()));
                Ok(())
            }
            Slot::Occupied(_) => Err(doubled(entry)),
        }
    }

    /// Checks that what stands in the way of an entry does not stand under another one.
    pub fn check_unused(&self, stat: &Stat, entry: &Entry) -> Result<()> {
        match self.used.contains_key(&inode(stat)) {
            true => Err(doubled(entry)),
            false => Ok(()),
        }
    }

    /// Checks that what was found at `path` is what was made or kept for the entry of that path.
    ///
    /// Errors: `Target` if it is not.
    pub fn check_same(&self, stat: &Stat, path: &[u8]) -> Result<()> {
        let is_same = self.used.get(&inode(stat)) == Some(&self.hasher.hash_one(path));
        match is_same {
            true => Ok(()),
            false => Err(
                Error::new(Kind::Target, "a file was replaced during the restore")
                    .object(display_path(path))
                    .hint("look who may write to the target; then run the restore again"),
            ),
        }
    }

    /// Holds the file system of something that is kept, which is opened with `open` if it is the first on it.
    ///
    /// Errors: `Limit` if there are too many.
    pub fn hold(
        &mut self,
        stat: &Stat,
        entry: &Entry,
        open: impl FnOnce() -> rustix::io::Result<OwnedFd>,
    ) -> Result<()> {
        let dev = inode(stat).0;
        if dev == self.root_dev || self.others.iter().any(|other| other.dev == dev) {
            return Ok(());
        }
        if self.others.len() >= FILE_SYSTEMS_MAX {
            let what = format!("more than {FILE_SYSTEMS_MAX} file systems are below the target");
            return Err(Error::new(Kind::Limit, what)
                .object(entry.display_path())
                .hint("unmount some, or restore to another directory"));
        }
        let held = open().map_err(|error| {
            target_error("a file system cannot be held open", &entry.path, error)
        })?;
        self.others.push(FileSystem {
            dev,
            held,
            path: entry.path.clone(),
        });
        Ok(())
    }

    /// Makes everything on the other file systems durable; returns how many these are.
    pub fn sync_others(&self) -> Result<usize> {
        for other in &self.others {
            rustix::fs::syncfs(&other.held).map_err(|error| {
                let what = "a file system below the target cannot be synced";
                target_error(what, &other.path, error)
            })?;
        }
        Ok(self.others.len())
    }
}

fn doubled(entry: &Entry) -> Error {
    Error::new(Kind::Target, "two names of the backup are one in the target")
        .object(display_path(&entry.path))
        .hint("restore to another directory, on a file system that tells upper and lower case apart and with nothing mounted in it twice")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use mover_base::tree::EntryKind;

    use super::*;
    use crate::{DirTarget, TargetMode};

    /// A tmpfs that is unmounted when it goes out of scope.
    struct Mounted(std::path::PathBuf);

    impl Mounted {
        fn tmpfs(at: &Path) -> Mounted {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("none", at, "tmpfs", flags, c"size=1m").unwrap();
            Mounted(at.to_owned())
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }

    fn dir_entry(path: &str) -> Entry {
        Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::Dir,
            mode: 0o700,
            uid: 0,
            gid: 0,
            mtime: Default::default(),
            xattrs: Vec::new(),
        }
    }

    #[test]
    fn every_file_system_below_the_target_is_synced() {
        let is_root = rustix::process::geteuid().is_root();
        assert!(is_root, "this test mounts file systems: run it as root");
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "plain"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let _mounts = ["a", "b"].map(|name| Mounted::tmpfs(&dir.path().join(name)));
        fs::create_dir(dir.path().join("b/deep")).unwrap();
        let plan = DirTarget::plan(dir.path(), TargetMode::Delta).unwrap();
        let target = DirTarget::begin(plan).unwrap();
        for name in ["a", "b", "b/deep", "plain"] {
            target.make_dir(&dir_entry(name)).unwrap();
        }
        let mut in_place = target.in_place.lock().unwrap();
        let held: Vec<&[u8]> = in_place
            .others
            .iter()
            .map(|other| &other.path[..])
            .collect();
        assert_eq!(held, [b"a", b"b"]);
        assert_eq!(in_place.sync_others().unwrap(), 2);
        // Each of them takes a descriptor, so that there is an end.
        let root = fs::File::open(dir.path()).unwrap();
        let mut stat = rustix::fs::fstat(&root).unwrap();
        let mut hold = |dev| {
            stat.st_dev = dev;
            in_place.hold(&stat, &dir_entry("more"), || {
                Ok(root.try_clone().unwrap().into())
            })
        };
        for more in 0..FILE_SYSTEMS_MAX as u64 - 2 {
            hold(u64::MAX - more).unwrap();
        }
        assert_eq!(hold(u64::MAX / 2).unwrap_err().kind(), Kind::Limit);
    }
}
