//! Where a restore goes and whether it can go there, found out without changing anything.
//!
//! Invariants: a fresh restore never touches a directory that holds something; a restore that was
//! interrupted is recognised, and one that runs is not disturbed. The path that the operator gave may contain
//! symbolic links; it is resolved here, once.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};

use crate::failure::target_error;
use crate::remove::{Extra, Fate, Inode, LOST_AND_FOUND, each_extra};
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

/// Where the files are put until the restore is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Staging {
    /// In a hidden directory beside the target, which then is renamed.
    Beside { parent: PathBuf, name: OsString },
    /// In a hidden directory inside the target, which cannot be replaced by a rename.
    Inside,
    /// Nowhere else.
    InPlace,
}

/// A target that was checked and not yet changed.
#[derive(Debug, Clone)]
pub struct TargetPlan {
    pub(crate) path: PathBuf,
    pub(crate) mode: TargetMode,
    pub(crate) staging: Staging,
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
        let staging = match (mode, exists) {
            (TargetMode::Delta, false) => {
                return Err(refused("there is nothing to restore over", &path)
                    .hint("restore without --delta, or name the directory to update"));
            }
            (TargetMode::Delta, true) => {
                check_dir(&path)?;
                check_writable(&path)?;
                Staging::InPlace
            }
            (TargetMode::Fresh, false) => {
                check_writable(parent)?;
                beside(parent, name)
            }
            (TargetMode::Fresh, true) => fresh_over(&path, parent, name)?,
        };
        let mut plan = TargetPlan {
            path,
            mode,
            staging,
            repository: None,
            leftovers: Leftovers::default(),
        };
        plan.leftovers = plan.find_leftovers()?;
        Ok(plan)
    }

    /// Errors: `Conflict` if one of them is a restore's that runs.
    fn find_leftovers(&self) -> Result<Leftovers> {
        let mut found = Leftovers::default();
        if let Staging::Beside { parent, .. } = &self.staging {
            self.look_in(parent, &mut found)?;
        }
        if self.path.is_dir() {
            self.look_in(&self.path, &mut found)?;
        }
        // In place, what is left inside goes with everything else that is not in the backup.
        if self.staging == Staging::InPlace {
            found = Leftovers::default();
        }
        Ok(found)
    }

    fn look_in(&self, dir: &Path, leftovers: &mut Leftovers) -> Result<()> {
        // A directory that may be written and not listed hides what is in it; that is no reason to refuse.
        let listed = self.in_place(dir, |place| place.find(LEFTOVERS_MAX));
        for (name, state) in listed.and_then(|found| found).unwrap_or_default() {
            match state {
                State::Live => return Err(is_running(&self.path)),
                State::Dead => leftovers.dead.push(dir.join(name)),
                State::Unknown => leftovers.unknown.push(dir.join(name)),
            }
        }
        Ok(())
    }

    /// Calls `each` with the place of staging directories in `dir`, which is the target or its parent.
    fn in_place<T>(&self, dir: &Path, each: impl FnOnce(&Place<'_>) -> T) -> rustix::io::Result<T> {
        let flags = beneath::DIR_FLAGS | OFlags::CLOEXEC;
        let opened = rustix::fs::open(dir, flags, Mode::empty())?;
        let parent = opened.as_fd();
        let (prefix, target) = match self.path.file_name() {
            Some(name) if dir != self.path => (beside_prefix(name), name),
            _ => (OsString::from(PARTIAL_PREFIX), OsStr::new("")),
        };
        Ok(each(&Place {
            parent,
            prefix: &prefix,
            target,
        }))
    }

    /// Removes what dead restores to this target left, and returns what could not be removed and why.
    pub fn remove_leftovers(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for path in &self.leftovers.dead {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            let removed = self
                .in_place(dir, |place| place.remove_dead(name))
                .map_err(|error| target_error("a directory cannot be opened", bytes(dir), error))
                .and_then(|removed| removed);
            if let Err(error) = removed {
                failures.push(format!("{error} ({})", path.display()));
            }
        }
        failures
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

    /// Delta: how many names are in the target and not `wanted`: what [`DirTarget::remove_extra`] will remove.
    ///
    /// Errors: `Usage` if the repository that [`spare`](Self::spare) named is in the target.
    ///
    /// [`DirTarget::remove_extra`]: crate::DirTarget::remove_extra
    pub fn count_extra(&self, wanted: &BTreeSet<&[u8]>) -> Result<u64> {
        if self.mode == TargetMode::Fresh {
            return Ok(0);
        }
        let failed =
            |error| target_error("the target cannot be examined", bytes(&self.path), error);
        let flags = beneath::DIR_FLAGS | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.path, flags, Mode::empty()).map_err(failed)?;
        let fate = |path: &[u8]| Fate::of(path, wanted);
        let found = each_extra(root.as_fd(), &fate, Extra::Count, self.repository)?;
        Ok(found.names)
    }

    /// What the target file system can still take, in bytes, without what is reserved for root.
    pub fn free_bytes(&self) -> Result<u64> {
        let dir = match &self.staging {
            Staging::Beside { parent, .. } => parent,
            Staging::Inside | Staging::InPlace => &self.path,
        };
        let found = rustix::fs::statvfs(dir).map_err(|error| {
            target_error("the free space of the target is unknown", bytes(dir), error)
        })?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Checks that `bytes_needed` more bytes fit. Others may take the space before the restore does, so that
    /// this finds a mistake early and promises nothing.
    pub fn check_space(&self, bytes_needed: u64) -> Result<()> {
        let free = self.free_bytes()?;
        if bytes_needed <= free {
            return Ok(());
        }
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

fn beside(parent: &Path, name: &OsStr) -> Staging {
    Staging::Beside {
        parent: parent.to_owned(),
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

fn check_dir(path: &Path) -> Result<()> {
    let found = path
        .symlink_metadata()
        .map_err(|error| target_error("the target cannot be examined", bytes(path), error))?;
    if found.is_dir() {
        return Ok(());
    }
    Err(refused("the target is not a directory", path).hint("name a directory, or a new name"))
}

fn check_writable(path: &Path) -> Result<()> {
    rustix::fs::accessat(
        CWD,
        path,
        Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    )
    .map_err(|error| target_error("the target cannot be written", bytes(path), error))
}

/// How to restore into a directory that is there, if it is empty.
fn fresh_over(path: &Path, parent: &Path, name: &OsStr) -> Result<Staging> {
    check_dir(path)?;
    let failed = |error| target_error("the target cannot be examined", bytes(path), error);
    let flags = beneath::DIR_FLAGS | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let is_mount_root = beneath::is_mount_root(dir.as_fd()).map_err(|e| failed(e.into()))?;
    let staged = Place {
        parent: dir.as_fd(),
        prefix: OsStr::new(PARTIAL_PREFIX),
        target: OsStr::new(""),
    };
    let staged = staged.find(LEFTOVERS_MAX).map_err(|e| failed(e.into()))?;
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
        Ok::<(), rustix::io::Errno>(())
    })
    .map_err(|e| failed(e.into()))?;
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
    // Devices differ without a mount between btrfs subvolumes, which no rename replaces either.
    let dev = |path: &Path| path.metadata().map(|found| found.dev());
    let same_dev = dev(path).map_err(failed)? == dev(parent).map_err(failed)?;
    if !is_mount_root && same_dev && check_writable(parent).is_ok() {
        return Ok(beside(parent, name));
    }
    check_writable(path)?;
    Ok(Staging::Inside)
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
