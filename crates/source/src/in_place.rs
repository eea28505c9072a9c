//! What a restore in place (`--delta`) remembers of its target.
//!
//! Invariants: what stands under one entry of the backup never stands under another one too, but for further names of a
//! file. Two names may be one thing in the target: where the file system does not tell upper and lower case apart, or
//! something is mounted at two paths. The second is refused before anything is written through it, and so is what
//! somebody puts in the place of a file while it is worked on. The number of an inode does not tell that: a file system gives
//! one that was freed to the next file. So owner, mode, number of names and, where it is known, the time of birth must be
//! those of the file that was made. Each file system that
//! is written to is held open from before the first write, because a system call that syncs it tells only of writes that
//! failed since then.

use std::collections::hash_map::{Entry as Slot, RandomState};
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::os::fd::{BorrowedFd, OwnedFd};

use mover_base::tree::{Entry, display_path};
use mover_base::{Error, Kind, Result};
use rustix::fs::{AtFlags, Stat, StatxFlags};

use crate::failure::target_error;
use crate::remove::{Inode, inode};

/// File systems below the target at most; each takes a descriptor.
const FILE_SYSTEMS_MAX: usize = 64;

/// What tells a file from every other one, also from a later one in the same inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    inode: Inode,
    pub owner: u32,
    mode: u32,
    /// How many there are of it.
    pub names: u64,
    /// When it was made, where the file system tells.
    birth: Option<(i64, u32)>,
}

impl Identity {
    /// That of an open file.
    pub fn of(fd: BorrowedFd<'_>) -> rustix::io::Result<Identity> {
        let stat = rustix::fs::fstat(fd)?;
        let birth = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME)
            .ok()
            .filter(|found| found.stx_mask & StatxFlags::BTIME.bits() != 0)
            .map(|found| (found.stx_btime.tv_sec, found.stx_btime.tv_nsec));
        Ok(Identity {
            birth,
            ..Identity::from(&stat)
        })
    }
}

impl From<&Stat> for Identity {
    /// Without the time of birth, which no `stat` tells.
    // The number of links has another type on other architectures.
    #[allow(clippy::unnecessary_cast)]
    fn from(stat: &Stat) -> Identity {
        Identity {
            inode: inode(stat),
            owner: stat.st_uid,
            mode: stat.st_mode,
            names: stat.st_nlink as u64,
            birth: None,
        }
    }
}

/// What is known of a target so far.
#[derive(Debug)]
pub(crate) struct InPlace {
    /// Device and inode of everything that stands under an entry; the entry's path and what else tells a file, hashed.
    used: HashMap<Inode, u64>,
    /// Hashes them in a way that nobody outside can foresee.
    hasher: RandomState,
    /// Whom the file systems give files that are made here to, if any was made yet: some give all of them to one owner (NFS to root, CIFS,
    /// FUSE).
    pub makers: HashSet<u32>,
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
        let mut in_place = InPlace {
            used: HashMap::new(),
            hasher: RandomState::new(),
            makers: HashSet::new(),
            root_dev: inode(root).0,
            others: Vec::new(),
            left: HashSet::new(),
        };
        in_place.made(&Identity::from(root), b"");
        in_place
    }

    fn hash(&self, found: &Identity, path: &[u8]) -> u64 {
        self.hasher.hash_one((found, path))
    }

    /// Takes note of what was made for an entry. It was not there before, so that no other entry can have it.
    pub fn made(&mut self, found: &Identity, path: &[u8]) {
        let hash = self.hash(found, path);
        self.used.insert(found.inode, hash);
    }

    /// The same of a file, which was there under no name before it was opened.
    pub fn made_file(&mut self, found: &Identity, path: &[u8]) {
        self.made(found, path);
        self.makers.insert(found.owner);
    }

    /// Takes note of what was there and is kept for an entry.
    ///
    /// Errors: `Target` if it stands under another entry.
    pub fn keep(&mut self, found: &Identity, entry: &Entry) -> Result<()> {
        let hash = self.hash(found, &entry.path);
        match self.used.entry(found.inode) {
            Slot::Vacant(slot) => {
                slot.insert(hash);
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

    /// Takes note that the file of the entry of `path` was given another name, if it is the one that was made or kept for that.
    pub fn linked(&mut self, before: &Identity, after: &Identity, path: &[u8]) {
        if self.is_same(before, path) {
            self.made(after, path);
        }
    }

    /// Checks that the file that was found at `path` is what was made or kept for the entry of that path.
    ///
    /// Errors: `Target` if it is not.
    pub fn check_same(&self, found: &Identity, path: &[u8]) -> Result<()> {
        match self.is_same(found, path) {
            true => Ok(()),
            false => Err(replaced("a file was replaced during the restore", path)),
        }
    }

    fn is_same(&self, found: &Identity, path: &[u8]) -> bool {
        self.used.get(&found.inode) == Some(&self.hash(found, path))
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

/// The error for something in the target that somebody else put there.
pub(crate) fn replaced(what: &str, path: &[u8]) -> Error {
    Error::new(Kind::Target, what)
        .object(display_path(path))
        .hint("look who may write to the target; then run the restore again")
}

fn doubled(entry: &Entry) -> Error {
    Error::new(Kind::Target, "two names of the backup are one in the target")
        .object(display_path(&entry.path))
        .hint("restore to another directory, on a file system that tells upper and lower case apart and with nothing mounted in it twice")
}

#[cfg(test)]
pub(crate) mod tests {
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

    /// A directory's entry without attributes.
    pub(crate) fn dir_entry(path: &str) -> Entry {
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

    /// Where a file system gives all that is made to one owner, recovery's files are that one's too.
    #[test]
    fn what_recovery_made_may_be_whoever_the_file_system_gives_files_to() {
        let is_root = rustix::process::geteuid().is_root();
        assert!(is_root, "this test changes owners: run it as root");
        let dir = tempfile::tempdir().unwrap();
        let begin = || {
            let plan = DirTarget::plan(dir.path(), TargetMode::Delta).unwrap();
            DirTarget::begin(plan).unwrap()
        };
        let makers = |target: &DirTarget| target.in_place.lock().unwrap().makers.clone();
        let target = begin();
        assert_eq!(makers(&target), HashSet::from([0]), "the marker's");
        drop(target);
        // One that was there may be anybody's.
        let target = begin();
        assert_eq!(makers(&target), HashSet::new());
        let mut made = Entry {
            kind: EntryKind::File { bytes: 0 },
            uid: 7,
            ..dir_entry("made")
        };
        drop(target.make_file(&made, &[]).unwrap());
        assert_eq!(makers(&target), HashSet::from([0]));

        made.path = b"recovered".to_vec();
        let path = dir.path().join("recovered");
        fs::write(&path, b"x").unwrap();
        std::os::unix::fs::chown(&path, Some(1), None).unwrap();
        let refused = target.apply_metadata(&made, None).unwrap_err();
        assert_eq!(refused.kind(), Kind::Target);
        target.in_place.lock().unwrap().makers.insert(1);
        target.apply_metadata(&made, None).unwrap();
        let found = std::os::unix::fs::MetadataExt::uid(&path.metadata().unwrap());
        assert_eq!(found, 7);
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
