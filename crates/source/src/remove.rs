//! Removing what is in a target and not in the backup, or counting it.
//!
//! Invariants: symbolic links are removed and never followed; what is mounted inside is never emptied, be it in what is
//! extra or on a directory that is kept, unless the backup holds something below that; `lost+found` of a mounted file
//! system is never entered. A repository is never removed or emptied, by whatever path it comes up: it is told by device
//! and inode. The depth is bounded by the length of a path and not by the stack. A mode keeps nobody out of what is their
//! own: whoever owns a directory gets its owner's rights back before anything in it is removed. Counting changes nothing: it
//! passes such a directory over and says so.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mover_base::entries::EntryList;
use mover_base::tree::{PATH_BYTES_MAX, display_path};
use mover_base::{Error, Kind, Result};
use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::failure::target_error;
use crate::{RESTORE_MARKER, beneath};

/// The directory in an ext file system where fsck puts what it rescued.
pub(crate) const LOST_AND_FOUND: &[u8] = b"lost+found";

/// What tells a directory from all others: its device and inode.
pub type Inode = (u64, u64);

// The fields of `stat` have other types on other architectures.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn inode(stat: &Stat) -> Inode {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// The error for a target in which the repository was found; `object` is the target, or where in it.
pub fn holds_repository(object: String) -> Error {
    let what =
        "the repository lies in the target: it is no part of the backup and would be removed";
    Error::new(Kind::Usage, what)
        .object(object)
        .hint("restore to another directory, or move the repository away")
}

/// Checks that the directory at `path`, of which this is the `stat`, is not that of the repository.
fn check_spared(stat: &Stat, path: &[u8], repository: Option<Inode>) -> Result<()> {
    match repository {
        Some(repository) if repository == inode(stat) => Err(holds_repository(display_path(path))),
        _ => Ok(()),
    }
}

/// Why a listing stopped.
enum Stopped {
    Call(Errno),
    Refused(Error),
}

impl From<Errno> for Stopped {
    fn from(errno: Errno) -> Self {
        Stopped::Call(errno)
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Stopped::Refused(error)
    }
}

impl Stopped {
    /// The error, where `failed` makes one of a failed call.
    fn or(self, failed: impl Fn(Errno) -> Error) -> Error {
        match self {
            Stopped::Call(errno) => failed(errno),
            Stopped::Refused(error) => error,
        }
    }
}

/// Removes `name` in `parent` with everything below it; `path` is for messages. Returns how many names.
///
/// Errors: `Target` if something else is mounted below it, or new names keep appearing; `Usage` where it comes to the
/// repository.
pub(crate) fn remove_tree(
    parent: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    repository: Option<Inode>,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<u64> {
    let failed = |error: Errno| not_removed(path, error);
    let stat = beneath::stat(parent, name).map_err(failed)?;
    if beneath::file_type(&stat) != FileType::Directory {
        rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(failed)?;
        return Ok(1);
    }
    // Relative paths of directories; a directory comes up a second time when it has been emptied.
    let mut pending = vec![(name.to_vec(), false)];
    let shown = |dir: &[u8]| beneath::join(beneath::split(path).0, dir);
    let mut removed = 0;
    while let Some((dir, emptied)) = pending.pop() {
        go_on()?;
        let shown = shown(&dir);
        if emptied {
            let failed = |error: Errno| not_removed(&shown, error);
            let place = beneath::place(parent, &dir).map_err(failed)?;
            rustix::fs::unlinkat(&place.parent, place.name, AtFlags::REMOVEDIR).map_err(failed)?;
            removed += 1;
            continue;
        }
        let subdirs = empty_dir(parent, &dir, &shown, &mut removed, repository)?;
        pending.push((dir, true));
        pending.extend(subdirs.into_iter().map(|subdir| (subdir, false)));
    }
    Ok(removed)
}

/// Removes everything but directories from `dir` beneath `base`, and returns the paths of those. `shown` is for messages.
fn empty_dir(
    base: BorrowedFd<'_>,
    dir: &[u8],
    shown: &[u8],
    removed: &mut u64,
    repository: Option<Inode>,
) -> Result<Vec<Vec<u8>>> {
    let failed = |error: Errno| not_emptied(shown, error);
    check_depth(dir)?;
    let here = open_by_owner(|flags| open_extra(base, dir, flags)).map_err(failed)?;
    // By what is open, which is what will be emptied, whatever has its name by now.
    let stat = rustix::fs::fstat(&here).map_err(failed)?;
    check_spared(&stat, shown, repository)?;
    let mut subdirs = Vec::new();
    beneath::list(&here, |name| {
        let refused = |error| not_removed(&beneath::join(shown, name.to_bytes()), error);
        match rustix::fs::unlinkat(&here, name, AtFlags::empty()) {
            Ok(()) => *removed += 1,
            // Which of the two it is for a directory depends on the file system.
            Err(error @ (Errno::ISDIR | Errno::PERM)) => {
                let stat = beneath::stat(here.as_fd(), name.to_bytes())?;
                if beneath::file_type(&stat) != FileType::Directory {
                    return Err(refused(error).into());
                }
                subdirs.push(beneath::join(dir, name.to_bytes()));
            }
            Err(error) => return Err(refused(error).into()),
        }
        Ok::<(), Stopped>(())
    })
    .map_err(|stopped| stopped.or(failed))?;
    Ok(subdirs)
}

/// Counts the names at `name` in `parent` and below it: what [`remove_tree`] would remove. Nothing is changed, so that what is in
/// a closed directory is not among them. `path` is for messages.
///
/// Errors: like those of [`remove_tree`]; `Target` too if a directory of somebody else's may not be listed.
fn count_tree(
    parent: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    repository: Option<Inode>,
    counted: &mut Removed,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let mut pending = vec![name.to_vec()];
    while let Some(dir) = pending.pop() {
        go_on()?;
        check_depth(&dir)?;
        counted.names += 1;
        let shown = beneath::join(beneath::split(path).0, &dir);
        let failed = |error: Errno| not_emptied(&shown, error);
        let opened = open_to_count(|flags| open_extra(parent, &dir, flags));
        let (here, is_closed) = opened.map_err(failed)?;
        let stat = rustix::fs::fstat(&here).map_err(failed)?;
        check_spared(&stat, &shown, repository)?;
        if is_closed {
            counted.add_closed(&shown);
            continue;
        }
        beneath::list(&here, |name| {
            let stat = beneath::stat(here.as_fd(), name.to_bytes())?;
            match beneath::file_type(&stat) {
                FileType::Directory => pending.push(beneath::join(&dir, name.to_bytes())),
                _ => counted.names += 1,
            }
            Ok::<(), Errno>(())
        })
        .map_err(failed)?;
    }
    Ok(())
}

fn check_depth(dir: &[u8]) -> Result<()> {
    if dir.len() <= PATH_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(Kind::Target, "a path in the target is too long")
        .object(display_path(dir))
        .hint("remove it by hand"))
}

/// Opens a directory of what is extra, unless another file system is mounted there.
fn open_extra(base: BorrowedFd<'_>, dir: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    beneath::open_with(base, dir, flags, beneath::RESOLVE | ResolveFlags::NO_XDEV)
}

/// Opens a directory that stays, to look through it. Its mode is set at the end of a restore; one that takes its owner's rights
/// away, as the backup may have it, keeps no later restore by that owner out. Gives whether it is closed, too, as [`open_to_count`].
fn open_kept(
    root: BorrowedFd<'_>,
    dir: &[u8],
    extra: Extra,
) -> rustix::io::Result<(OwnedFd, bool)> {
    let open = |flags| beneath::open(root, dir, flags);
    match extra {
        Extra::Remove => Ok((open_by_owner(open)?, false)),
        Extra::Count => open_to_count(open),
    }
}

/// Opens a directory to look through it without changing anything. Gives whether it is closed, too: its mode keeps this user, who
/// owns it, from listing it or from looking at what is in it. A restore gives its owner that right back before it removes anything.
fn open_to_count(
    open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>,
) -> rustix::io::Result<(OwnedFd, bool)> {
    match open(beneath::DIR_FLAGS) {
        Ok(dir) => {
            let stat = rustix::fs::fstat(&dir)?;
            let is_closed = beneath::is_own(&stat)
                && stat.st_mode & Mode::XUSR.as_raw_mode() == 0
                // Root looks into any.
                && rustix::fs::accessat(&dir, c".", Access::EXEC_OK, AtFlags::EACCESS).is_err();
            Ok((dir, is_closed))
        }
        Err(Errno::ACCESS) => {
            let held = open(OFlags::PATH | OFlags::DIRECTORY)?;
            match beneath::is_own(&rustix::fs::fstat(&held)?) {
                true => Ok((held, true)),
                false => Err(Errno::ACCESS),
            }
        }
        Err(error) => Err(error),
    }
}

/// Opens a directory to remove what is in it. It gets its owner's rights back if this user is the owner: some modes keep from
/// listing it, others only from removing what was listed.
fn open_by_owner(
    open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>,
) -> rustix::io::Result<OwnedFd> {
    match open(beneath::DIR_FLAGS) {
        Ok(dir) => {
            // Where this fails nothing may be left to remove; if there is, that fails too and tells which name it is.
            let _ = beneath::take_rights(dir.as_fd());
            Ok(dir)
        }
        Err(Errno::ACCESS) => {
            let held = open(OFlags::PATH | OFlags::DIRECTORY)?;
            beneath::chmod_held(held.as_fd(), 0o700)?;
            open(beneath::DIR_FLAGS)
        }
        Err(error) => Err(error),
    }
}

fn not_removed(path: &[u8], error: Errno) -> Error {
    target_error("a name cannot be removed", path, error)
}

fn not_emptied(dir: &[u8], error: Errno) -> Error {
    match error {
        Errno::XDEV => Error::new(Kind::Target, "a file system is mounted in the way")
            .object(display_path(dir))
            .hint("unmount it: what is not in the backup would have to be removed")
            .cause(error),
        _ => target_error("a directory cannot be emptied", dir, error),
    }
}

/// What becomes of a name that is in a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes, with everything below it.
    Removed,
    /// It stays, and so does what is in it.
    Left,
    /// It stays. The backup holds nothing below it, so that everything in it goes, unless something is mounted on it.
    KeptEmpty,
    /// It stays, and each name in it has a fate of its own.
    Kept,
}

impl Fate {
    /// What becomes of `path` in a target where `wanted` is to be. The restore's marker stays.
    pub(crate) fn of(path: &[u8], wanted: &EntryList) -> Fate {
        match path {
            _ if path == RESTORE_MARKER.as_bytes() => Fate::Left,
            _ if wanted.find(path).is_none() => Fate::Removed,
            _ if wanted.holds_below(path) => Fate::Kept,
            _ => Fate::KeptEmpty,
        }
    }
}

/// What to do with what is extra.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    /// Remove it.
    Remove,
    /// Change nothing.
    Count,
}

/// What came of a removal, or would.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    /// How many names go.
    pub names: u64,
    /// Directories that were left with all that is in them, because another file system is mounted there.
    pub left: Vec<Vec<u8>>,
    /// Counting: how many directories it would take a change to look into. What is in them is not among the names.
    pub closed: u64,
    /// The first of those.
    pub first_closed: Option<Vec<u8>>,
}

impl Removed {
    fn add_closed(&mut self, path: &[u8]) {
        self.closed += 1;
        self.first_closed.get_or_insert_with(|| path.to_vec());
    }
}

/// Removes or counts every name beneath `root` whose `fate` (given the relative path) is to go, with everything below it.
///
/// Errors: `Usage` where it comes to the `repository`, be that to go or to stay: a directory that stays is written to. That of
/// `go_on`, which is asked before each directory.
pub(crate) fn each_extra(
    root: BorrowedFd<'_>,
    fate: &dyn Fn(&[u8]) -> Fate,
    extra: Extra,
    repository: Option<Inode>,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Removed> {
    let mut pending = vec![Vec::new()];
    let mut removed = Removed::default();
    while let Some(dir) = pending.pop() {
        go_on()?;
        let failed = |error: Errno| target_error("a directory cannot be listed", &dir, error);
        let (here, is_closed) = open_kept(root, &dir, extra).map_err(failed)?;
        if is_closed {
            removed.add_closed(&dir);
            continue;
        }
        let here_stat = rustix::fs::fstat(&here).map_err(failed)?;
        let mut extra_dirs = Vec::new();
        beneath::list(&here, |name| {
            let name = name.to_bytes();
            // What fsck rescued is in no backup and may be all that is left of something.
            if name == LOST_AND_FOUND && beneath::is_mount_root(here.as_fd()).unwrap_or(false) {
                return Ok(());
            }
            let path = beneath::join(&dir, name);
            let stat = beneath::stat(here.as_fd(), name)?;
            let is_dir = beneath::file_type(&stat) == FileType::Directory;
            if is_dir {
                check_spared(&stat, &path, repository)?;
            }
            match (fate(&path), is_dir) {
                (Fate::KeptEmpty, true) if is_mounted(&here, &here_stat, name, &stat)? => {
                    removed.left.push(path);
                }
                (Fate::Kept | Fate::KeptEmpty, true) => pending.push(path),
                (Fate::Kept | Fate::KeptEmpty, false) | (Fate::Left, _) => {}
                (Fate::Removed, true) => extra_dirs.push(name.to_vec()),
                (Fate::Removed, false) => {
                    if extra == Extra::Remove {
                        rustix::fs::unlinkat(&here, name, AtFlags::empty())
                            .map_err(|error| not_removed(&path, error))?;
                    }
                    removed.names += 1;
                }
            }
            Ok::<(), Stopped>(())
        })
        .map_err(|stopped| stopped.or(failed))?;
        for name in extra_dirs {
            let (parent, path) = (here.as_fd(), beneath::join(&dir, &name));
            match extra {
                Extra::Remove => {
                    removed.names += remove_tree(parent, &name, &path, repository, go_on)?;
                }
                Extra::Count => {
                    count_tree(parent, &name, &path, repository, &mut removed, go_on)?;
                }
            }
        }
    }
    Ok(removed)
}

/// Whether the directory `name` in `parent` is where another file system begins. By its device too, as a scan goes by:
/// btrfs subvolumes differ in it without being mounted.
fn is_mounted(
    parent: &OwnedFd,
    parent_stat: &Stat,
    name: &[u8],
    stat: &Stat,
) -> rustix::io::Result<bool> {
    if stat.st_dev != parent_stat.st_dev {
        return Ok(true);
    }
    let held = beneath::open(parent.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)?;
    beneath::is_mount_root(held.as_fd())
}
