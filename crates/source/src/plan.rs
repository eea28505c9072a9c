//! Where a restore goes and whether it can go there, found out without changing anything.
//!
//! Invariants: a fresh restore never touches a directory that holds something; a restore that was
//! interrupted is recognised, and one that runs is not disturbed. The path that the operator gave may contain
//! symbolic links; it is resolved here, once, and what it led to is held open: whoever owns a directory on the way may put
//! something else there meanwhile, and nothing is looked at, removed or made by that path again.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mover_base::entries::EntryList;
use mover_base::tree::display_path;
use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatVfs};
use rustix::io::Errno;

use crate::failure::target_error;
use crate::remove::{Extra, Fate, Inode, LOST_AND_FOUND, each_extra, inode};
use crate::staging::{Place, State};
use crate::{PARTIAL_PREFIX, RESTORE_MARKER, beneath};

/// At most so many staging directories of earlier restores are looked at.
pub(crate) const LEFTOVERS_MAX: usize = 64;

/// How a target is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetMode {
    /// Into a new or empty directory; nothing shows before it is complete.
    Fresh,
    /// Over what is there, writing only what differs.
    Delta,
}

/// What a restore in place would remove, as far as that can be seen without a change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtraCount {
    /// How many names would go, without those in closed directories.
    pub names: u64,
    /// How many directories are closed: their mode keeps this user, who owns them, from looking into them. The restore will give
    /// its owner that right.
    pub closed: u64,
    /// The first of them.
    pub first_closed: Option<String>,
}

/// Where the files are put until the restore is complete.
#[derive(Debug, Clone)]
pub(crate) enum Staging {
    /// In a hidden directory beside the target, which then is renamed.
    Beside {
        parent: Arc<OwnedFd>,
        name: OsString,
    },
    /// In a hidden directory inside the target, which cannot be replaced by a rename.
    Inside { target: Arc<OwnedFd> },
    /// Nowhere else.
    InPlace { target: Arc<OwnedFd> },
}

/// A target that was checked and not yet changed.
#[derive(Debug, Clone)]
pub struct TargetPlan {
    pub(crate) path: PathBuf,
    pub(crate) mode: TargetMode,
    pub(crate) staging: Staging,
    /// The target, if it was there.
    pub(crate) dir: Option<Arc<OwnedFd>>,
    /// The repository's directory, which is never removed or emptied.
    pub(crate) repository: Option<Inode>,
    leftovers: Leftovers,
}

/// What earlier restores left.
#[derive(Debug, Clone, Default)]
struct Leftovers {
    /// Of restores to this target that died.
    dead: Vec<PathBuf>,
    /// Of such a name, and nothing else is known.
    unknown: Vec<PathBuf>,
}

impl TargetPlan {
    pub(crate) fn new(path: &Path, mode: TargetMode) -> Result<TargetPlan> {
        let (path, exists) = resolve(path)?;
        let Some((parent, name)) = path.parent().zip(path.file_name()) else {
            return Err(refused("the root directory cannot be a target", &path)
                .hint("name a directory below it"));
        };
        let dir = match exists {
            true => Some(Arc::new(open_target(&path)?)),
            false => None,
        };
        let staging = match (mode, &dir) {
            (TargetMode::Delta, None) => {
                return Err(refused("there is nothing to restore over", &path)
                    .hint("restore without --delta, or name the directory to update"));
            }
            (TargetMode::Delta, Some(target)) => {
                check_in_place(target, &path)?;
                let target = Arc::clone(target);
                Staging::InPlace { target }
            }
            (TargetMode::Fresh, None) => {
                let above = open_dir(parent).map_err(|error| {
                    let what = "the parent of the target cannot be opened";
                    target_error(what, bytes(parent), error)
                })?;
                check_writable(&above, parent)?;
                beside(above, name)
            }
            (TargetMode::Fresh, Some(target)) => fresh_over(target, &path, parent, name)?,
        };
        let mut plan = TargetPlan {
            path,
            mode,
            staging,
            dir,
            repository: None,
            leftovers: Leftovers::default(),
        };
        plan.leftovers = plan.find_leftovers()?;
        Ok(plan)
    }

    /// Errors: `Conflict` if one of them is a restore's that runs.
    fn find_leftovers(&self) -> Result<Leftovers> {
        let mut found = Leftovers::default();
        for dir in self.path.parent().into_iter().chain([&*self.path]) {
            self.look_in(dir, &mut found)?;
        }
        // In place, what is left inside goes with everything else that is not in the backup.
        if matches!(self.staging, Staging::InPlace { .. }) {
            found = Leftovers::default();
        }
        Ok(found)
    }

    fn look_in(&self, dir: &Path, leftovers: &mut Leftovers) -> Result<()> {
        // A directory that may be written and not listed hides what is in it; that is no reason to refuse.
        let found = self.place_in(dir, |place| place.find(LEFTOVERS_MAX).unwrap_or_default());
        for (name, state) in found.unwrap_or_default() {
            match state {
                State::Live => return Err(is_running(&self.path)),
                State::Dead => leftovers.dead.push(dir.join(name)),
                State::Unknown => leftovers.unknown.push(dir.join(name)),
            }
        }
        Ok(())
    }

    /// Calls `each` with the place of staging directories in `dir`, which is the target or its parent, if there may be any.
    fn place_in<T>(&self, dir: &Path, each: impl FnOnce(&Place<'_>) -> T) -> Option<T> {
        match (&self.staging, &self.dir) {
            (_, Some(target)) if dir == self.path => Some(each(&inside(target.as_fd()))),
            (Staging::Beside { parent, name }, _) if dir != self.path => Some(each(&Place {
                parent: parent.as_fd(),
                prefix: &beside_prefix(name),
                target: name,
            })),
            _ => None,
        }
    }

    /// Removes what dead restores to this target left, and returns what could not be removed and why.
    ///
    /// # Errors
    /// That of `go_on`, which is asked for each directory; the next restore to the target removes the rest.
    pub fn remove_leftovers(&self, go_on: &dyn Fn() -> Result<()>) -> Result<Vec<String>> {
        let mut failures = Vec::new();
        for path in &self.leftovers.dead {
            go_on()?;
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            let removed = self.place_in(dir, |place| place.remove_dead(name, go_on));
            match removed.transpose() {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Cancelled => return Err(error),
                Err(error) => failures.push(format!("{error} ({})", path.display())),
            }
        }
        Ok(failures)
    }

    /// Checks that the paths still lead to what was planned with, and that a fresh target still is empty. What is made then
    /// goes by what is held: this is for the operator, who would look for it in vain.
    ///
    /// Errors: `Target` if they do not, or it is not.
    pub(crate) fn check_again(&self) -> Result<()> {
        let (path, held) = match (&self.dir, &self.staging) {
            (Some(dir), _) => (Some(&*self.path), dir),
            (None, Staging::Beside { parent, .. }) => (self.path.parent(), parent),
            (None, Staging::Inside { target } | Staging::InPlace { target }) => {
                (Some(&*self.path), target)
            }
        };
        let failed =
            |error| target_error("the target cannot be examined", bytes(&self.path), error);
        let held = rustix::fs::fstat(held).map_err(failed)?;
        let there = path.and_then(|path| open_dir(path).ok());
        let there = there.and_then(|there| rustix::fs::fstat(there).ok());
        if there.is_none_or(|there| inode(&there) != inode(&held)) {
            return Err(
                refused("the target was moved or replaced meanwhile", &self.path)
                    .hint("look who may rename it; then run the restore again"),
            );
        }
        match (&self.dir, self.mode) {
            (Some(dir), TargetMode::Fresh) => check_empty(dir.as_fd(), &self.path),
            _ => Ok(()),
        }
    }

    /// The directory that will hold the restored tree, absolute and without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it will be written.
    pub fn mode(&self) -> TargetMode {
        self.mode
    }

    /// Staging directories of restores to this path that died; [`TargetPlan::remove_leftovers`] removes them.
    pub fn dead_leftovers(&self) -> &[PathBuf] {
        &self.leftovers.dead
    }

    /// What has the name of a staging directory of this target and is not marked as one. It may be anything, even a
    /// complete tree of a restore that was stopped at its last step; nothing removes it.
    pub fn unknown_leftovers(&self) -> &[PathBuf] {
        &self.leftovers.unknown
    }

    /// Names the directory that is restored from, which must not be in the target, by whatever path.
    pub fn spare(&mut self, repository: Option<Inode>) {
        self.repository = repository;
    }

    /// Delta: how many names are in the target and not among the `wanted` ones, which are in path order: what
    /// [`DirTarget::remove_extra`] will remove, as far as that can be seen without a change.
    ///
    /// Errors: those of `go_on`, which is asked before each directory; `Usage` if the repository that [`spare`](Self::spare) named is in
    /// the target. In a directory that is closed to its owner it is not looked for here, but before anything in that is removed.
    ///
    /// [`DirTarget::remove_extra`]: crate::DirTarget::remove_extra
    pub fn count_extra(
        &self,
        wanted: &EntryList,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<ExtraCount> {
        let Staging::InPlace { target } = &self.staging else {
            return Ok(ExtraCount::default());
        };
        let fate = |path: &[u8]| Fate::of(path, wanted);
        let found = each_extra(target.as_fd(), &fate, Extra::Count, self.repository, go_on)?;
        Ok(ExtraCount {
            names: found.names,
            closed: found.closed,
            first_closed: found.first_closed.as_deref().map(display_path),
        })
    }

    /// What the target file system can still take, in bytes, without what is reserved for root; none where it tells no size.
    pub fn free_bytes(&self) -> Result<Option<u64>> {
        let space = self.space()?;
        Ok(space.map(|found| found.f_bavail.saturating_mul(found.f_frsize)))
    }

    /// What it can take at most: with what is reserved for root, where it is root who restores.
    pub fn room_bytes(&self) -> Result<Option<u64>> {
        let is_root = rustix::process::geteuid().is_root();
        let space = self.space()?;
        Ok(space.map(|found| {
            let blocks = match is_root {
                true => found.f_bfree,
                false => found.f_bavail,
            };
            blocks.saturating_mul(found.f_frsize)
        }))
    }

    /// What the target file system tells of its size, if it does (ramfs, a tmpfs without a limit and some of FUSE do not).
    fn space(&self) -> Result<Option<StatVfs>> {
        let (Staging::Beside { parent: held, .. }
        | Staging::Inside { target: held }
        | Staging::InPlace { target: held }) = &self.staging;
        let found = rustix::fs::fstatvfs(held).map_err(|error| {
            let what = "the free space of the target is unknown";
            target_error(what, bytes(&self.path), error)
        })?;
        Ok((found.f_blocks > 0).then_some(found))
    }

    /// Checks that `bytes_needed` more bytes fit. Others may take the space before the restore does, so that
    /// this finds a mistake early and promises nothing.
    pub fn check_space(&self, bytes_needed: u64) -> Result<()> {
        let Some(free) = self.free_bytes()?.filter(|free| *free < bytes_needed) else {
            return Ok(());
        };
        let (needed, free) = (format_bytes(bytes_needed), format_bytes(free));
        Err(refused(
            &format!("the target file system is full: needs {needed}, has {free}"),
            &self.path,
        )
        .hint("free space on it or restore to another file system"))
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn beside(parent: OwnedFd, name: &OsStr) -> Staging {
    Staging::Beside {
        parent: Arc::new(parent),
        name: name.to_owned(),
    }
}

fn refused(what: &str, path: &Path) -> Error {
    Error::new(Kind::Target, what).object(path.display().to_string())
}

/// The absolute path without symbolic links, and whether something is there.
fn resolve(path: &Path) -> Result<(PathBuf, bool)> {
    let failed = |error| target_error("the target cannot be examined", bytes(path), error);
    match path.canonicalize() {
        Ok(found) => return Ok((found, true)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if path.symlink_metadata().is_ok() {
        return Err(refused("the target is a symbolic link to nothing", path)
            .hint("create the directory that it points to, or remove it"));
    }
    let absolute = std::path::absolute(path).map_err(failed)?;
    let Some((parent, name)) = absolute.parent().zip(absolute.file_name()) else {
        return Err(refused("the target has no name", path).hint("name the directory itself"));
    };
    match parent.canonicalize() {
        Ok(parent) => Ok((parent.join(name), false)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(refused("the parent of the target does not exist", path)
                .hint("create it with the owner and mode it should have")
                .cause(error))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Opens a directory by its path without symbolic links: one that is met was put there since.
fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = beneath::DIR_FLAGS | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
}

fn open_target(path: &Path) -> Result<OwnedFd> {
    open_dir(path).map_err(|error| match error {
        Errno::NOTDIR => {
            refused("the target is not a directory", path).hint("name a directory, or a new name")
        }
        _ => target_error("the target cannot be examined", bytes(path), error),
    })
}

fn check_writable(dir: &OwnedFd, path: &Path) -> Result<()> {
    may_write(dir).map_err(|error| not_writable(path, error))
}

/// Like [`check_writable`], for a target that is worked on in place. Its owner need not be allowed to write to it, as the backup
/// may have it: the restore gives them that right.
fn check_in_place(dir: &OwnedFd, path: &Path) -> Result<()> {
    let is_enterable_own =
        |stat: Stat| beneath::is_own(&stat) && stat.st_mode & Mode::XUSR.as_raw_mode() != 0;
    match may_write(dir) {
        Err(Errno::ACCESS) if rustix::fs::fstat(dir).is_ok_and(is_enterable_own) => Ok(()),
        checked => checked.map_err(|error| not_writable(path, error)),
    }
}

fn may_write(dir: &OwnedFd) -> rustix::io::Result<()> {
    let access = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(dir, c".", access, AtFlags::EACCESS)
}

fn not_writable(path: &Path, error: Errno) -> Error {
    target_error("the target cannot be written", bytes(path), error)
}

/// Where staging directories inside `target` stand.
fn inside(target: BorrowedFd<'_>) -> Place<'_> {
    Place {
        parent: target,
        prefix: OsStr::new(PARTIAL_PREFIX),
        target: OsStr::new(""),
    }
}

/// How to restore into a directory that is there, if it is empty.
fn fresh_over(target: &Arc<OwnedFd>, path: &Path, parent: &Path, name: &OsStr) -> Result<Staging> {
    check_empty(target.as_fd(), path)?;
    let failed = |error| target_error("the target cannot be examined", bytes(path), error);
    let is_mount_root = beneath::is_mount_root(target.as_fd()).map_err(failed)?;
    // Devices differ without a mount between btrfs subvolumes, which no rename replaces either.
    let dev = |dir: &OwnedFd| rustix::fs::fstat(dir).map(|found| inode(&found).0);
    if !is_mount_root
        && let Ok(above) = open_dir(parent)
        && dev(&above).map_err(failed)? == dev(target).map_err(failed)?
        && check_writable(&above, parent).is_ok()
    {
        return Ok(beside(above, name));
    }
    check_writable(target, path)?;
    let target = Arc::clone(target);
    Ok(Staging::Inside { target })
}

/// Checks that a fresh restore may go into `dir`: what others of its kind staged there is no matter, nor is `lost+found`.
///
/// Errors: `Target` if it holds anything else.
pub(crate) fn check_empty(dir: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let failed = |error: Errno| target_error("the target cannot be examined", bytes(path), error);
    // Opened anew, because listing uses up the descriptor's position.
    let dir = beneath::open(dir, b"", beneath::DIR_FLAGS).map_err(failed)?;
    let is_mount_root = beneath::is_mount_root(dir.as_fd()).map_err(failed)?;
    let staged = inside(dir.as_fd()).find(LEFTOVERS_MAX).map_err(failed)?;
    let mut marked = false;
    let mut others = 0_u64;
    beneath::list(&dir, |found| {
        let found = found.to_bytes();
        let of_restore = staged.iter().find(|(name, _)| name.as_bytes() == found);
        // One that runs is told later; a dead one is removed before anything is put here.
        if of_restore.is_some_and(|(_, state)| *state != State::Unknown) {
            return Ok(());
        }
        // A new ext4 file system has this directory and is empty to everyone.
        if !(is_mount_root && found == LOST_AND_FOUND) {
            others += 1;
        }
        // A backup may hold anything but a directory under the name of one that is staged.
        let is_staged = || {
            let stat = beneath::stat(dir.as_fd(), found)?;
            Ok(beneath::file_type(&stat) == FileType::Directory)
        };
        marked |= found == RESTORE_MARKER.as_bytes() || (of_restore.is_some() && is_staged()?);
        Ok::<(), Errno>(())
    })
    .map_err(failed)?;
    if marked {
        return Err(
            refused("an earlier restore to the target was interrupted", path)
                .hint("run the restore again with --delta: it keeps what is right already"),
        );
    }
    if others > 0 {
        return Err(refused("the target is not empty", path)
            .hint("choose another directory, or --delta to restore over this one"));
    }
    Ok(())
}

/// What the name of a staging directory beside `name` begins with.
pub(crate) fn beside_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    // The random part must fit into the 255 bytes of a name; a cut one is still told apart by it.
    let name = name.as_bytes();
    prefix.push(OsStr::from_bytes(&name[..name.len().min(200)]));
    prefix.push(PARTIAL_PREFIX);
    prefix
}

/// The error for a target that another restore is working on.
pub(crate) fn is_running(path: &Path) -> Error {
    Error::new(Kind::Conflict, "another restore to the target is running")
        .object(path.display().to_string())
        .hint("wait until it ends or stop it")
}
