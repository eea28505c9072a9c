//! The end of a restore: the metadata of directories, everything on the disk, and the tree in its place.
//!
//! Invariants: a directory's metadata is applied when nothing below it is written any more; on return the restore survives a power cut;
//! a complete tree is never removed for want of its name, and takes the place of nothing that others put there.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use mover_base::entries::EntryList;
use mover_base::tree::Entry;
use mover_base::{Error, Kind, Result};
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::{DirTarget, Finished, Layout, lock};
use crate::adopt::{give_back, take_root};
use crate::attributes::Node;
use crate::failure::target_error;
use crate::marker::mark;
use crate::plan::check_empty;
use crate::remove::LOST_AND_FOUND;
use crate::{RESTORE_MARKER, beneath, metadata};

/// What is wrong where others put something into a fresh target.
const FILLED_MEANWHILE: &str = "the target came to hold something during the restore";

impl DirTarget {
    /// Applies the metadata of directories, makes everything durable and puts it into place. On return the
    /// restore survives a power cut.
    ///
    /// Errors: if the last rename fails, the staging directory is kept and named, as it is complete.
    pub fn finish(mut self) -> Result<Finished> {
        let dirs = Dirs::children_first(std::mem::take(&mut *lock(&self.dirs)));
        match &self.layout {
            Layout::Beside { .. } => self.finish_beside(&dirs)?,
            Layout::Inside { .. } => self.finish_inside(&dirs)?,
            Layout::InPlace { .. } => self.finish_marked(self.root.as_fd(), false, &dirs)?,
        }
        self.is_staged = false;
        let warnings = std::mem::take(&mut *lock(&self.warnings));
        Ok(Finished {
            warnings: warnings.list,
            warnings_more: warnings.more,
        })
    }

    fn finish_beside(&mut self, dirs: &Dirs) -> Result<()> {
        // From where its marker goes on, the directory may be a complete tree and is nobody's to remove.
        self.finish_marked(self.root.as_fd(), true, dirs)?;
        let Layout::Beside {
            parent,
            staging,
            name,
            ..
        } = &self.layout
        else {
            return Ok(());
        };
        let renamed = rustix::fs::renameat(parent, staging, parent, name);
        let result = renamed.map_err(|error| {
            let what = match error {
                Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR => FILLED_MEANWHILE,
                _ => "the restored tree cannot be put into place",
            };
            let kept = self.path.with_file_name(staging);
            target_error(what, self.shown(), error).hint(format!(
                "the restored tree is complete in {}: move it by hand",
                kept.display()
            ))
        });
        // After hours of work a complete tree is not thrown away for want of a name.
        let synced = result.and_then(|()| {
            rustix::fs::fsync(parent)
                .map_err(|error| target_error("the target cannot be synced", self.shown(), error))
        });
        self.is_staged = false;
        synced
    }

    fn finish_inside(&mut self, dirs: &Dirs) -> Result<()> {
        self.sync_dirs()?;
        let Layout::Inside {
            target, staging, ..
        } = &self.layout
        else {
            return Ok(());
        };
        if let Err(error) = check_empty(target.as_fd(), &self.path) {
            // As beside the target: what is complete is not thrown away, and goes to no place where others are.
            self.finish_marked(self.root.as_fd(), true, dirs)?;
            let kept = self.path.join(staging);
            self.is_staged = false;
            return Err(Error::new(Kind::Target, FILLED_MEANWHILE)
                .object(self.path.display().to_string())
                .hint(format!(
                    "the restored tree is complete in {}: move it by hand",
                    kept.display()
                ))
                .cause(error));
        }
        let shown = self.path.as_os_str().as_bytes();
        let failed = |error: Errno| {
            let what = "the restored tree cannot be put into place";
            target_error(what, shown, error)
        };
        // It is nobody else's to change names in. What fails up to the marker leaves the target as it was.
        let before = take_root(target.as_fd()).map_err(failed)?;
        let marked = mark(target.as_fd(), &self.path);
        let _marker = marked.inspect_err(|_| give_back(target.as_fd(), &before))?;
        // From here on the target holds parts of the tree; the marker tells so.
        self.is_staged = false;
        // What is held, whatever has its name by now, and opened anew, because listing uses up the descriptor's position.
        let from = beneath::open(self.root.as_fd(), b"", beneath::DIR_FLAGS).map_err(failed)?;
        rustix::fs::unlinkat(&from, RESTORE_MARKER, AtFlags::empty()).map_err(failed)?;
        let mut names = Vec::new();
        beneath::list(&from, |name| {
            names.push(name.to_owned());
            Ok::<(), Errno>(())
        })
        .map_err(failed)?;
        for name in &names {
            move_up(&from, name, target).map_err(|error| match error {
                Errno::EXIST | Errno::NOTEMPTY => {
                    target_error(FILLED_MEANWHILE, name.to_bytes(), error)
                        .hint("move away what is there; then run the restore again with --delta")
                }
                _ => failed(error),
            })?;
        }
        rustix::fs::unlinkat(target, staging, AtFlags::REMOVEDIR).map_err(failed)?;
        self.finish_marked(target.as_fd(), false, dirs)
    }

    /// Finishes a tree that holds the marker.
    ///
    /// The mode of its root may forbid to remove the marker, and its time changes with that: both come last. Whose it is
    /// and who may enter it comes before, so that no target without a marker has that of earlier. But a staging directory
    /// stays its maker's own while it is marked, or the next restore would not know it again.
    fn finish_marked(&self, root: BorrowedFd<'_>, is_staging: bool, dirs: &Dirs) -> Result<()> {
        self.apply_below(root, dirs)?;
        let root_entry = dirs.root();
        let failed = |error: Errno| target_error("the target cannot be synced", b"", error);
        rustix::fs::syncfs(root).map_err(failed)?;
        lock(&self.in_place).sync_others()?;
        let prepare = |entry: &Entry| metadata::prepare_dir(root, entry, &self.warnings);
        let prepared = match &root_entry {
            Some(entry) if !is_staging => Some(prepare(entry)?),
            _ => None,
        };
        rustix::fs::fsync(root).map_err(failed)?;
        rustix::fs::unlinkat(root, RESTORE_MARKER, AtFlags::empty()).map_err(failed)?;
        if let Some(entry) = &root_entry {
            let mode = match prepared {
                Some(mode) => mode,
                None => prepare(entry)?,
            };
            metadata::complete_dir(root, entry, mode, &self.warnings)?;
        }
        rustix::fs::fsync(root).map_err(failed)
    }

    /// Applies the metadata of `dirs` beneath `root` and syncs each.
    fn apply_below(&self, root: BorrowedFd<'_>, dirs: &Dirs) -> Result<()> {
        for entry in dirs.below_root() {
            let failed = self.failed("metadata of a directory cannot be put back", &entry);
            let dir = beneath::open(root, &entry.path, beneath::DIR_FLAGS).map_err(&failed)?;
            metadata::apply(Node::Open(dir.as_fd()), &entry, &self.warnings)?;
            rustix::fs::fsync(&dir).map_err(failed)?;
        }
        Ok(())
    }
}

/// Directories in the order in which they are finished.
struct Dirs {
    list: EntryList,
    /// Numbers in it, children before parents: a parent's mode may forbid to reach them.
    order: Vec<usize>,
}

impl Dirs {
    /// They may be listed in any order: several threads make them.
    fn children_first(list: EntryList) -> Dirs {
        let mut scratch = Vec::new();
        let mut order: Vec<usize> = (0..list.len()).collect();
        order.sort_unstable_by(|a, b| list.order(*b, *a, &mut scratch));
        Dirs { list, order }
    }

    /// The root, if it is among them. It comes last.
    fn root(&self) -> Option<Entry> {
        let last = self.list.get(*self.order.last()?)?;
        last.path.is_empty().then_some(last)
    }

    /// All others, one at a time: the attributes of each are copied.
    fn below_root(&self) -> impl Iterator<Item = Entry> {
        let entries = self.order.iter().filter_map(|at| self.list.get(*at));
        entries.filter(|entry| !entry.path.is_empty())
    }
}

/// Moves `name` from a staging directory up into the target, in the place of nothing. But an empty `lost+found` of a mounted
/// file system gives way to the backup's.
fn move_up(from: &OwnedFd, name: &CStr, target: &OwnedFd) -> rustix::io::Result<()> {
    if name.to_bytes() == LOST_AND_FOUND && beneath::is_mount_root(target.as_fd())? {
        return rustix::fs::renameat(from, name, target, name);
    }
    match rustix::fs::renameat_with(from, name, target, name, RenameFlags::NOREPLACE) {
        // Of a file system that cannot tell (NFS, some of FUSE) it is asked before, which leaves others a moment.
        Err(Errno::INVAL | Errno::NOSYS) => match beneath::stat(target.as_fd(), name.to_bytes()) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => rustix::fs::renameat(from, name, target, name),
            Err(error) => Err(error),
        },
        moved => moved,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::in_place::tests::dir_entry;

    /// A name may go on with a byte that sorts before the slash, and threads need not keep to path order.
    #[test]
    fn directories_are_finished_before_the_one_that_holds_them() {
        let mut list = EntryList::default();
        for path in ["b", "", "a", "b/c", "a-x", "a/b/c", "a/b"] {
            list.push(&dir_entry(path)).unwrap();
        }
        let dirs = Dirs::children_first(list);
        let paths: Vec<Vec<u8>> = dirs.below_root().map(|entry| entry.path).collect();
        let expected = ["b/c", "b", "a/b/c", "a/b", "a-x", "a"];
        assert_eq!(paths, expected.map(|path| path.as_bytes().to_vec()));
        assert!(dirs.root().unwrap().path.is_empty());
        assert!(Dirs::children_first(EntryList::default()).root().is_none());
    }

    #[test]
    fn what_appears_at_the_last_moment_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        for side in [&from, &to] {
            fs::create_dir(side).unwrap();
        }
        for (name, theirs) in [("taken", true), ("free", false)] {
            fs::write(from.join(name), b"ours").unwrap();
            if theirs {
                fs::write(to.join(name), b"theirs").unwrap();
            }
        }
        fs::create_dir(from.join("dir")).unwrap();
        fs::create_dir(to.join("dir")).unwrap();
        let [source, target] = [&from, &to].map(|dir| OwnedFd::from(fs::File::open(dir).unwrap()));
        for name in [c"taken", c"dir"] {
            assert_eq!(move_up(&source, name, &target), Err(Errno::EXIST));
        }
        move_up(&source, c"free", &target).unwrap();
        assert_eq!(fs::read(to.join("taken")).unwrap(), b"theirs");
        assert_eq!(fs::read(from.join("taken")).unwrap(), b"ours");
        assert_eq!(fs::read(to.join("free")).unwrap(), b"ours");
    }
}
