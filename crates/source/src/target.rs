//! A directory tree that a restore writes.
//!
//! Invariants: whatever an entry says and whatever somebody plants in the target meanwhile, nothing outside
//! of it is created, changed or removed: names are resolved beneath its descriptor without following
//! symbolic links. A fresh target appears complete or not at all; where that needs more than one rename, and
//! in delta mode, [`RESTORE_MARKER`] is in it, on the disk, from before the first change until after the
//! last. In delta mode nothing is written through two names. Everything is writable by its owner alone until its metadata is applied,
//! and that is who restores, where the system lets them be it: what is opened again by its name is what was made. File contents are
//! written and synced by the caller, before metadata; this makes names and metadata durable.

mod finish;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mover_base::entries::EntryList;
use mover_base::tree::{Entry, EntryKind, display_path, is_safe_path};
use mover_base::{Error, Kind, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::adopt::{adopt, give_back, take_dir, take_root};
use crate::attributes::{Node, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX};
use crate::disk::DirDisk;
use crate::durability::syncfs_vouches;
use crate::failure::target_error;
use crate::in_place::{Identity, InPlace, replaced};
use crate::marker::{Marker, mark, unmark};
use crate::metadata::{self, Warnings};
use crate::occupied::lock_in_place;
use crate::plan::{LEFTOVERS_MAX, Staging, beside_prefix, is_running};
use crate::remove::{Extra, Fate, Inode, each_extra, remove_tree};
use crate::staging::{Place, Staged, State, is_staging_name, remove_held};
use crate::{PARTIAL_PREFIX, RESTORE_MARKER, TargetMode, TargetPlan, beneath};

pub use crate::metadata::WARNINGS_MAX;

/// Longest target of a symbolic link that Linux takes, in bytes.
const SYMLINK_BYTES_MAX: usize = 4095;

/// A restore target that is being written. It may be used from several threads.
#[derive(Debug)]
pub struct DirTarget {
    path: PathBuf,
    mode: TargetMode,
    /// Where entries are made.
    root: OwnedFd,
    layout: Layout,
    /// The repository's directory, which is never removed or emptied.
    repository: Option<Inode>,
    /// Directories whose metadata is applied when nothing is written below them any more. Most have the same attributes, which
    /// such a list keeps once.
    dirs: Mutex<EntryList>,
    /// Of a fresh target only its makers are used.
    pub(crate) in_place: Mutex<InPlace>,
    warnings: Mutex<Warnings>,
    /// Whether dropping removes the staging directory.
    is_staged: bool,
}

#[derive(Debug)]
enum Layout {
    /// The staging directory's marker is held open and locked, as below.
    Beside {
        parent: Arc<OwnedFd>,
        staging: OsString,
        name: OsString,
        _marker: OwnedFd,
    },
    Inside {
        target: Arc<OwnedFd>,
        staging: OsString,
        _marker: OwnedFd,
    },
    /// The target is held open and locked, too.
    InPlace {
        marker: Marker,
        /// What the target was before it was taken.
        before: Stat,
    },
}

/// What is to be told about a finished restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Finished {
    /// Metadata that could not be put back (no permission, no support) and file systems that were left as they are, at
    /// most [`WARNINGS_MAX`].
    pub warnings: Vec<String>,
    /// How many more such warnings there were.
    pub warnings_more: u64,
}

impl DirTarget {
    /// Makes a file durable of which everything is written, where the last step of all does not.
    ///
    /// # Errors
    /// `Target`, by the file's path.
    pub fn sync_file(&self, entry: &Entry, file: BorrowedFd<'_>) -> Result<()> {
        // Of each, as another file system may be mounted there.
        if syncfs_vouches(file) {
            return Ok(());
        }
        rustix::fs::fsync(file).map_err(self.failed("a file cannot be synced", entry))
    }

    /// Whether it is new, or is changed where it is.
    pub fn mode(&self) -> TargetMode {
        self.mode
    }

    /// Checks whether `path` can be restored to, without changing anything.
    ///
    /// Errors (`Target`): fresh: it holds something, or its parent is missing or not writable; delta: it is
    /// no directory.
    pub fn plan(path: &Path, mode: TargetMode) -> Result<TargetPlan> {
        TargetPlan::new(path, mode)
    }

    /// Makes the staging directory, or in delta mode the marker.
    ///
    /// Errors: `Conflict` if another restore to the target runs, or in delta mode a database in it; `Target` if it is not
    /// what was planned with any more.
    pub fn begin(plan: TargetPlan) -> Result<DirTarget> {
        plan.check_again()?;
        let path = plan.path;
        let (root, layout) = match plan.staging {
            Staging::Beside { parent, name } => {
                let place = Place {
                    parent: parent.as_fd(),
                    prefix: &beside_prefix(&name),
                    target: &name,
                };
                let staged = stage(&place, &path)?;
                let layout = Layout::Beside {
                    parent,
                    staging: staged.name,
                    name,
                    _marker: staged.marker,
                };
                (staged.dir, layout)
            }
            Staging::Inside { target } => {
                let place = Place {
                    parent: target.as_fd(),
                    prefix: OsStr::new(PARTIAL_PREFIX),
                    target: OsStr::new(""),
                };
                let staged = stage(&place, &path)?;
                let layout = Layout::Inside {
                    target,
                    staging: staged.name,
                    _marker: staged.marker,
                };
                (staged.dir, layout)
            }
            Staging::InPlace { target } => {
                let (root, marker, before) = take_in_place(target.as_fd(), &path)?;
                (root, Layout::InPlace { marker, before })
            }
        };
        let root_stat = rustix::fs::fstat(&root).map_err(not_begun(&path))?;
        let mut in_place = InPlace::new(&root_stat);
        match &layout {
            Layout::InPlace { marker, .. } => in_place.makers.extend(marker.maker),
            // All that is made in a staging directory is whose that is.
            Layout::Beside { .. } | Layout::Inside { .. } => {
                in_place.makers.insert(root_stat.st_uid);
            }
        }
        Ok(DirTarget {
            path,
            mode: plan.mode,
            root,
            is_staged: !matches!(layout, Layout::InPlace { .. }),
            layout,
            repository: plan.repository,
            dirs: Mutex::default(),
            in_place: Mutex::new(in_place),
            warnings: Mutex::new(Warnings::default()),
        })
    }

    /// The directory that will hold the tree.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is being made, as the files of a page store.
    ///
    /// # Errors
    /// `Target` if its descriptor cannot be duplicated.
    pub fn disk(&self) -> Result<DirDisk> {
        let root = self.root.try_clone();
        root.map(DirDisk::beneath)
            .map_err(|error| target_error("the target cannot be opened again", b"", error))
    }

    /// Makes a directory with a temporary mode; delta: keeps one that is there, replaces anything else. The
    /// root is there already.
    pub fn make_dir(&self, entry: &Entry) -> Result<()> {
        self.check(entry, "directory", matches!(entry.kind, EntryKind::Dir))?;
        let failed = self.failed("a directory cannot be made", entry);
        if entry.path.is_empty() {
            let root = rustix::fs::fstat(&self.root).map_err(&failed)?;
            if root.st_mode & 0o700 != 0o700 {
                rustix::fs::fchmod(&self.root, Mode::RWXU).map_err(&failed)?;
            }
            return Ok(());
        }
        if self.is_left(entry) {
            return Ok(());
        }
        let place = beneath::place(self.root.as_fd(), &entry.path).map_err(&failed)?;
        if self.mode == TargetMode::Delta
            && self.clear_unless(&place, entry, |found| found == FileType::Directory)?
        {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let held = beneath::open(place.parent.as_fd(), place.name, flags).map_err(&failed)?;
            let stat = rustix::fs::fstat(&held).map_err(&failed)?;
            lock(&self.in_place).keep(&Identity::from(&stat), entry)?;
            // Names below it must be reachable even where the mode to come forbids it, and nobody else's to change.
            take_dir(held.as_fd(), &stat).map_err(failed)?;
            let open = || beneath::open(held.as_fd(), b"", beneath::DIR_FLAGS);
            return lock(&self.in_place).hold(&stat, entry, open);
        }
        rustix::fs::mkdirat(&place.parent, place.name, Mode::RWXU)
            .and_then(|()| self.made(&place, entry))
            .map_err(failed)
    }

    /// Makes a regular file that only its owner may touch and opens it for reading and writing.
    ///
    /// Fresh: it must not exist. Delta: an existing file is opened with its content, unless it has names besides
    /// its own and `other_names` (they may be outside the target), or somebody may hold it open who may not do the same with
    /// the entry's file. Then it is replaced, like anything that is no regular file. Setting the length is up to the
    /// caller. To be called once per entry.
    ///
    /// Errors: `Target` if it stands under another entry already.
    pub fn make_file(&self, entry: &Entry, other_names: &[Vec<u8>]) -> Result<OwnedFd> {
        self.check(entry, "file", matches!(entry.kind, EntryKind::File { .. }))?;
        let failed = self.failed("a file cannot be made", entry);
        let place = beneath::place(self.root.as_fd(), &entry.path).map_err(&failed)?;
        let parent = place.parent.as_fd();
        if self.mode == TargetMode::Delta {
            let adopted = adopt(&place, entry, |stat| {
                self.has_no_more_names(stat, &place, other_names)
            });
            if let Some(fd) = adopted.map_err(&failed)? {
                let stat = rustix::fs::fstat(&fd).map_err(&failed)?;
                let found = Identity::of(fd.as_fd()).map_err(&failed)?;
                let mut in_place = lock(&self.in_place);
                in_place.keep(&found, entry)?;
                in_place.hold(&stat, entry, || rustix::io::fcntl_dupfd_cloexec(&fd, 0))?;
                return Ok(fd);
            }
            self.clear_unless(&place, entry, |_| false)?;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = beneath::open(parent, place.name, flags).map_err(&failed)?;
        if self.mode == TargetMode::Delta {
            let found = Identity::of(fd.as_fd()).map_err(failed)?;
            lock(&self.in_place).made_file(&found, &entry.path);
        }
        Ok(fd)
    }

    /// Delta: takes note of what was made at `place` and is no file.
    fn made(&self, place: &beneath::Place<'_>, entry: &Entry) -> rustix::io::Result<()> {
        if self.mode == TargetMode::Delta {
            let stat = beneath::stat(place.parent.as_fd(), place.name)?;
            lock(&self.in_place).made(&Identity::from(&stat), &entry.path);
        }
        Ok(())
    }

    /// Whether the file at `place` has no names but that and some of `other_names`.
    fn has_no_more_names(
        &self,
        file: &Stat,
        place: &beneath::Place<'_>,
        other_names: &[Vec<u8>],
    ) -> bool {
        // By directory and name: through a bind mount one name is found at two paths.
        let mut names = HashSet::new();
        let mut count = |place: &beneath::Place<'_>| {
            let found = beneath::stat(place.parent.as_fd(), place.name);
            if found.is_ok_and(|found| is_same_inode(&found, file))
                && let Ok(dir) = rustix::fs::fstat(&place.parent)
            {
                names.insert((dir.st_dev, dir.st_ino, place.name.to_vec()));
            }
        };
        count(place);
        // Nothing to look for in the usual case.
        if file.st_nlink > 1 {
            for path in other_names {
                if let Ok(place) = beneath::place(self.root.as_fd(), path) {
                    count(&place);
                }
            }
        }
        usize::try_from(file.st_nlink).is_ok_and(|links| links == names.len())
    }

    /// Opens a file that was made before for reading and writing; none if there is no regular file.
    ///
    /// Errors: `Target` if it is not the one that [`make_file`](Self::make_file) returned, or has changed its owner or number of
    /// names since, or in delta mode its mode.
    pub fn open_existing(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        let found = self.open_named(path)?;
        if let Some(fd) = &found {
            self.check_same(fd.as_fd(), path)?;
        }
        Ok(found)
    }

    fn check_same(&self, fd: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        let found = Identity::of(fd)
            .map_err(|error| target_error("a file cannot be examined", path, error))?;
        let in_place = lock(&self.in_place);
        // Nobody else reaches the names of a fresh target before it is finished, so that none is kept in memory. What is here was
        // made by who made the staging directory, and gets further names last.
        let is_same = match self.mode {
            TargetMode::Delta => return in_place.check_same(&found, path),
            TargetMode::Fresh => in_place.makers.contains(&found.owner) && found.names <= 1,
        };
        match is_same {
            true => Ok(()),
            false => Err(replaced("a file was replaced during the restore", path)),
        }
    }

    /// Checks that a file that was not opened before is in no hands but those of who restores, of whom the file system gives what they
    /// make to, or of the entry's owner: what somebody else put there must not get that owner, and no other name of a file that may
    /// be anywhere.
    fn check_own(&self, fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
        let failed = self.failed("a file cannot be examined", entry);
        let found = rustix::fs::fstat(fd).map_err(failed)?;
        // Where a file system gives all that is made to one owner, the staging directory has that one, and so has in place what was
        // made before.
        let is_as_made = lock(&self.in_place).makers.contains(&found.st_uid);
        let is_own = beneath::is_own(&found) || found.st_uid == entry.uid || is_as_made;
        match is_own && found.st_nlink <= 1 {
            true => Ok(()),
            false => Err(replaced(
                "a file is not the restore's own: it has another owner or further names",
                &entry.path,
            )),
        }
    }

    fn open_named(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        let failed = |error: Errno| target_error("a file cannot be opened", path, error);
        check_path(path, false)?;
        if path.is_empty() {
            return Ok(None);
        }
        let place = match beneath::place(self.root.as_fd(), path) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match beneath::stat(place.parent.as_fd(), place.name) {
            Ok(stat) if beneath::file_type(&stat) == FileType::RegularFile => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        let flags = OFlags::RDWR;
        let fd = beneath::open(place.parent.as_fd(), place.name, flags).map_err(failed)?;
        Ok(Some(fd))
    }

    /// Makes a symbolic link; its target is not looked at.
    pub fn make_symlink(&self, entry: &Entry) -> Result<()> {
        let EntryKind::Symlink { target } = &entry.kind else {
            return Err(wrong_kind(entry, "symbolic link"));
        };
        self.check(entry, "symbolic link", true)?;
        if target.is_empty() || target.len() > SYMLINK_BYTES_MAX || target.contains(&0) {
            return Err(unusable("a symbolic link has an impossible target", entry));
        }
        let failed = self.failed("a symbolic link cannot be made", entry);
        let place = beneath::place(self.root.as_fd(), &entry.path).map_err(&failed)?;
        self.clear(&place, entry)?;
        rustix::fs::symlinkat(target.as_slice(), &place.parent, place.name)
            .and_then(|()| self.made(&place, entry))
            .map_err(failed)
    }

    /// Makes another name of a file that was made before; delta: keeps one that is.
    pub fn make_hardlink(&self, entry: &Entry) -> Result<()> {
        let EntryKind::Hardlink { first } = &entry.kind else {
            return Err(wrong_kind(entry, "hard link"));
        };
        self.check(entry, "hard link", true)?;
        check_path(first, false)?;
        let failed = self.failed("a hard link cannot be made", entry);
        if first.is_empty() || *first >= entry.path {
            return Err(unusable("a hard link does not follow its file", entry));
        }
        let from = beneath::place(self.root.as_fd(), first).map_err(&failed)?;
        let stat = beneath::stat(from.parent.as_fd(), from.name).map_err(&failed)?;
        if beneath::file_type(&stat) != FileType::RegularFile {
            return Err(unusable(
                "a hard link names something that is no file",
                entry,
            ));
        }
        let place = beneath::place(self.root.as_fd(), &entry.path).map_err(&failed)?;
        let there = beneath::stat(place.parent.as_fd(), place.name);
        if self.mode == TargetMode::Delta && there.is_ok_and(|there| is_same_inode(&there, &stat)) {
            return Ok(());
        }
        self.clear(&place, entry)?;
        self.link(&from, first, &place).map_err(failed)
    }

    /// Gives the file at `from`, which is that of the entry of `first`, another name.
    fn link(
        &self,
        from: &beneath::Place<'_>,
        first: &[u8],
        place: &beneath::Place<'_>,
    ) -> rustix::io::Result<()> {
        let link = || {
            let flags = AtFlags::empty();
            rustix::fs::linkat(&from.parent, from.name, &place.parent, place.name, flags)
        };
        if self.mode == TargetMode::Fresh {
            return link();
        }
        // Held, so that its inode goes to no other file meanwhile.
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let held = beneath::open(from.parent.as_fd(), from.name, flags)?;
        let before = Identity::of(held.as_fd())?;
        link()?;
        let after = Identity::of(held.as_fd())?;
        lock(&self.in_place).linked(&before, &after, first);
        Ok(())
    }

    /// Makes a named pipe.
    pub fn make_fifo(&self, entry: &Entry) -> Result<()> {
        self.check(entry, "named pipe", matches!(entry.kind, EntryKind::Fifo))?;
        let failed = self.failed("a named pipe cannot be made", entry);
        let place = beneath::place(self.root.as_fd(), &entry.path).map_err(&failed)?;
        self.clear(&place, entry)?;
        rustix::fs::mkfifoat(&place.parent, place.name, Mode::RUSR | Mode::WUSR)
            .and_then(|()| self.made(&place, entry))
            .map_err(failed)
    }

    /// Delta: removes every name that is not among the `wanted` ones, which are in path order, with everything below it, and
    /// returns how many names went.
    /// The marker stays. To be called before files are written, so that their space is free.
    ///
    /// Where another file system is mounted on a directory below which nothing is wanted, it was most likely no part
    /// of the source (or left out with `one_file_system`): it is left as it is, also by calls to come, with a warning.
    ///
    /// Errors: besides those of removing, that of `go_on`, which is asked before each directory.
    pub fn remove_extra(&self, wanted: &EntryList, go_on: &dyn Fn() -> Result<()>) -> Result<u64> {
        if self.mode == TargetMode::Fresh {
            return Ok(0);
        }
        let root = self.root.as_fd();
        let fate = |path: &[u8]| Fate::of(path, wanted);
        let removed = each_extra(root, &fate, Extra::Remove, self.repository, go_on)?;
        let mut warnings = lock(&self.warnings);
        for path in &removed.left {
            warnings.push(|| {
                let path = display_path(path);
                format!(
                    "{path} is another file system of which the backup holds nothing; it was left as it is"
                )
            });
        }
        lock(&self.in_place).left.extend(removed.left);
        Ok(removed.names)
    }

    /// Whether the entry is a directory that [`DirTarget::remove_extra`] left as it is.
    fn is_left(&self, entry: &Entry) -> bool {
        matches!(entry.kind, EntryKind::Dir) && lock(&self.in_place).left.contains(&entry.path)
    }

    /// Puts back owner, extended attributes, mode and modification time, in this order: a change of owner
    /// clears setuid bits and file capabilities, and an ACL changes the mode. To be called once per entry
    /// after its content is written and before the file is synced; `fd` is the file, if it is still open.
    ///
    /// Directories are remembered and done by [`DirTarget::finish`], hard links share what their first name
    /// has. What this user may not or this file system cannot do becomes a warning.
    ///
    /// Errors: `Target` if a file that is not open is somebody else's, or has further names.
    pub fn apply_metadata(&self, entry: &Entry, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.check(entry, "", true)?;
        check_attributes(entry)?;
        let failed = self.failed("metadata cannot be put back", entry);
        match &entry.kind {
            EntryKind::Hardlink { .. } => Ok(()),
            EntryKind::Dir if self.is_left(entry) => Ok(()),
            EntryKind::Dir => {
                let remembered = lock(&self.dirs).push(entry);
                remembered.map_err(|error| error.object(entry.display_path()))
            }
            EntryKind::File { .. } => {
                let opened;
                let fd = match fd {
                    Some(fd) => fd,
                    None => {
                        // The recovery of a page store may have put another in its place.
                        opened = self.open_named(&entry.path)?;
                        let fd = opened.as_ref().ok_or_else(|| failed(Errno::NOENT))?;
                        self.check_own(fd.as_fd(), entry)?;
                        fd.as_fd()
                    }
                };
                metadata::apply(Node::Open(fd), entry, &self.warnings)
            }
            EntryKind::Symlink { .. } | EntryKind::Fifo => {
                let place = beneath::place(self.root.as_fd(), &entry.path).map_err(failed)?;
                let node = Node::Named(place.parent.as_fd(), place.name);
                metadata::apply(node, entry, &self.warnings)
            }
        }
    }

    /// What could not be put back so far, without directories.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).list.clone()
    }

    /// Makes all names and metadata durable without finishing.
    pub fn sync_dirs(&self) -> Result<()> {
        rustix::fs::syncfs(&self.root)
            .map_err(|error| target_error("the target cannot be synced", b"", error))
    }

    /// Gives up: removes the staging directory; in delta mode the marker stays.
    pub fn abandon(mut self) -> Result<()> {
        self.remove_staging()
    }

    /// Gives up before the first change: removes the staging directory; in delta mode the target gets the owner and mode back that it
    /// had, as far as that is possible, and keeps the marker only if it had one.
    pub fn leave(self) {
        let Layout::InPlace { marker, before } = &self.layout else {
            return;
        };
        if marker.maker.is_some() {
            unmark(self.root.as_fd());
        }
        give_back(self.root.as_fd(), before);
    }

    fn remove_staging(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_staged) {
            return Ok(());
        }
        let (parent, staging) = match &self.layout {
            Layout::Beside {
                parent, staging, ..
            } => (parent, staging),
            Layout::Inside {
                target, staging, ..
            } => (target, staging),
            Layout::InPlace { .. } => return Ok(()),
        };
        remove_held(parent.as_fd(), staging, self.root.as_fd(), &|| Ok(()))
    }

    fn shown(&self) -> &[u8] {
        self.path.as_os_str().as_bytes()
    }

    fn failed<'e>(&self, what: &'e str, entry: &'e Entry) -> impl Fn(Errno) -> Error + 'e {
        move |error| target_error(what, &entry.path, error)
    }

    /// Checks what came from outside, before anything is done with it.
    fn check(&self, entry: &Entry, what: &str, is_kind: bool) -> Result<()> {
        check_path(&entry.path, matches!(entry.kind, EntryKind::Dir))?;
        if !is_kind {
            return Err(wrong_kind(entry, what));
        }
        if entry.path.is_empty() && !matches!(entry.kind, EntryKind::Dir) {
            return Err(unusable("the root of a tree is no directory", entry));
        }
        Ok(())
    }

    /// Delta: removes what stands in the way.
    fn clear(&self, place: &beneath::Place<'_>, entry: &Entry) -> Result<()> {
        if self.mode == TargetMode::Delta {
            self.clear_unless(place, entry, |_| false)?;
        }
        Ok(())
    }

    /// Removes what is at `place` unless its type is fine; returns whether it was kept.
    fn clear_unless(
        &self,
        place: &beneath::Place<'_>,
        entry: &Entry,
        is_fine: impl Fn(FileType) -> bool,
    ) -> Result<bool> {
        match beneath::stat(place.parent.as_fd(), place.name) {
            Ok(stat) if is_fine(beneath::file_type(&stat)) => Ok(true),
            Ok(stat) => {
                lock(&self.in_place).check_unused(&stat, entry)?;
                let parent = place.parent.as_fd();
                remove_tree(parent, place.name, &entry.path, self.repository, &|| Ok(()))?;
                Ok(false)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(target_error(
                "a name cannot be examined",
                &entry.path,
                error,
            )),
        }
    }
}

impl Drop for DirTarget {
    /// Best effort for paths that end with an error; [`DirTarget::abandon`] tells whether it worked.
    fn drop(&mut self) {
        let _ = self.remove_staging();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wrong_kind(entry: &Entry, what: &str) -> Error {
    Error::new(Kind::Internal, format!("an entry is no {what}")).object(entry.display_path())
}

fn unusable(what: &str, entry: &Entry) -> Error {
    Error::new(Kind::Corrupt, what).object(entry.display_path())
}

/// Whether a path may be made: it stays beneath the root and is none of our own names. Those of staging directories are
/// reserved for directories, as in a scan.
fn check_path(path: &[u8], is_dir: bool) -> Result<()> {
    let top = path.split(|byte| *byte == b'/').next().unwrap_or_default();
    let is_top_dir = is_dir || top.len() < path.len();
    let is_reserved = top == RESTORE_MARKER.as_bytes()
        || (is_top_dir && is_staging_name(top, PARTIAL_PREFIX.as_bytes()));
    if is_safe_path(path) && !is_reserved {
        return Ok(());
    }
    Err(
        Error::new(Kind::Corrupt, "an entry has a path that is not allowed")
            .object(display_path(path)),
    )
}

fn check_attributes(entry: &Entry) -> Result<()> {
    let fits = |(name, value): &(Vec<u8>, Vec<u8>)| {
        !name.is_empty()
            && name.len() <= XATTR_NAME_BYTES_MAX
            && !name.contains(&0)
            && value.len() <= XATTR_BYTES_MAX
    };
    if entry.mtime.nanos < 1_000_000_000 && entry.xattrs.iter().all(fits) {
        return Ok(());
    }
    Err(unusable("an entry has impossible metadata", entry))
}

/// Makes a staging directory, unless another restore to `path` has one and lives. Of two that begin at the same
/// time both may give way: neither knows which was first.
fn stage(place: &Place<'_>, path: &Path) -> Result<Staged> {
    let staged = place.make(path.as_os_str().as_bytes())?;
    // A directory that cannot be listed hides others; that is no reason to refuse.
    let found = place.find(LEFTOVERS_MAX).unwrap_or_default();
    let is_other =
        |(name, state): &(OsString, State)| *state == State::Live && *name != staged.name;
    if found.iter().any(is_other) {
        remove_held(place.parent, &staged.name, staged.dir.as_fd(), &|| Ok(()))?;
        return Err(is_running(path));
    }
    Ok(staged)
}

fn not_begun(path: &Path) -> impl Fn(Errno) -> Error {
    let path = path.as_os_str().as_bytes();
    move |error| target_error("the restore cannot begin", path, error)
}

/// Takes a target to work on it in place: gives it, locked, the marker in it, and what it was before.
fn take_in_place(target: BorrowedFd<'_>, path: &Path) -> Result<(OwnedFd, Marker, Stat)> {
    // Opened anew: the lock goes with this restore and not with the plan.
    let root = beneath::open(target, b"", beneath::DIR_FLAGS).map_err(not_begun(path))?;
    lock_in_place(root.as_fd(), path)?;
    // Not before it is known that nobody else works in it. At the end owner and mode are the backup's.
    let before = take_root(root.as_fd()).map_err(not_begun(path))?;
    // As it was found, as far as that is possible: a restore that did not begin leaves nothing to finish.
    let marker = mark(root.as_fd(), path).inspect_err(|_| give_back(root.as_fd(), &before))?;
    Ok((root, marker, before))
}

fn is_same_inode(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_place::tests::dir_entry;

    #[test]
    fn attributes_that_directories_have_in_common_are_remembered_once() {
        let dir = tempfile::tempdir().unwrap();
        let plan = DirTarget::plan(&dir.path().join("to"), TargetMode::Fresh).unwrap();
        let target = DirTarget::begin(plan).unwrap();
        for at in 0..1_000 {
            let mut entry = dir_entry(&format!("d{at}"));
            entry.xattrs = vec![(b"user.label".to_vec(), vec![b'x'; 16_000])];
            target.apply_metadata(&entry, None).unwrap();
        }
        let bytes = lock(&target.dirs).memory_bytes();
        assert!((16_000..100_000).contains(&bytes), "{bytes}");
    }
}
