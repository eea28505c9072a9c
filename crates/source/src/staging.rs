//! Staging directories: made, told apart when their restore has died, and removed.
//!
//! A staging directory holds a marker file that its restore keeps locked. The system lets go of the lock when the
//! process ends, however it ends.
//!
//! Invariants: the marker names the target, and is written after it was locked and removed before anything is put
//! into place. So a directory whose marker is complete and not locked is what a dead restore to that target left,
//! and one without it may be anything, even a complete tree: nobody removes that. A leftover is emptied through the
//! descriptor that was examined, the marker last, and so is one whose restore gives up. Whoever owns the directory that it is in
//! may put another in its place before it is opened: none is used that is somebody else's or holds anything.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use mover_base::tree::display_path;
use mover_base::{Error, Kind, Result};
use mover_io::random_bytes;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::target_error;
use crate::remove::{Extra, Fate, each_extra, inode};
use crate::{RESTORE_MARKER, beneath};

/// Begins the content of a marker in a staging directory; the name of the target follows.
const MARKER_MAGIC: &[u8] = b"helios-mover staging directory of: ";
/// Longest content of a marker: the magic and a name.
const MARKER_BYTES_MAX: u64 = 512;
/// Hex digits at the end of a staging directory's name.
const RANDOM_DIGITS: usize = 16;

/// Where staging directories of one target stand, and how they are known.
pub(crate) struct Place<'a> {
    /// The directory that they are in.
    pub parent: BorrowedFd<'a>,
    /// What their names begin with.
    pub prefix: &'a OsStr,
    /// The target's name, or nothing if they stand inside the target.
    pub target: &'a OsStr,
}

/// A staging directory that was made.
pub(crate) struct Staged {
    pub name: OsString,
    pub dir: OwnedFd,
    /// The marker, open and locked.
    pub marker: OwnedFd,
}

/// What became of the restore that made a staging directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It runs.
    Live,
    /// It died.
    Dead,
    /// Not known: the directory has such a name and no marker of this target and user.
    Unknown,
}

/// A directory that may be a dead restore's, examined.
enum Examined {
    Live,
    /// Held and locked by us.
    Dead {
        dir: OwnedFd,
        _marker: OwnedFd,
    },
    Unknown,
}

impl Place<'_> {
    /// Makes a new directory with a random name that only its owner may enter, marked and locked. `path` is the target's, for
    /// messages.
    ///
    /// Errors: `Target` too if another directory was put in its place.
    pub fn make(&self, path: &[u8]) -> Result<Staged> {
        let failed = |error: Errno| target_error("the restore cannot begin", path, error);
        let random = random_bytes().map_err(|_| failed(Errno::IO))?;
        let mut name = self.prefix.as_bytes().to_vec();
        name.extend_from_slice(format!("{:016x}", u64::from_ne_bytes(random)).as_bytes());
        rustix::fs::mkdirat(self.parent, &name, Mode::RWXU).map_err(failed)?;
        let made = self.fill_new(&name).map_err(|error| {
            // Best effort: the first error is the one to tell.
            let _ = rustix::fs::unlinkat(self.parent, &name, AtFlags::REMOVEDIR);
            failed(error)
        })?;
        // What has the name by now is somebody else's, and stays.
        let (dir, marker) = made.ok_or_else(|| {
            Error::new(Kind::Target, "the staging directory was replaced")
                .object(display_path(path))
                .hint(
                    "look who may write to the directory that it is in; then run the restore again",
                )
        })?;
        let name = OsString::from_vec(name);
        Ok(Staged { name, dir, marker })
    }

    /// Opens and marks the directory that was just made; none if it is another one.
    fn fill_new(&self, name: &[u8]) -> rustix::io::Result<Option<(OwnedFd, OwnedFd)>> {
        let dir = match beneath::open(self.parent, name, beneath::DIR_FLAGS) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The umask may have taken even the owner's rights.
        beneath::take_rights(dir.as_fd())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let marker = match beneath::open(dir.as_fd(), RESTORE_MARKER.as_bytes(), flags) {
            Ok(marker) => marker,
            // A new one is empty.
            Err(Errno::EXIST) => return Ok(None),
            Err(error) => return Err(error),
        };
        let marked = self.mark_new(name, &dir, marker);
        if !matches!(marked, Ok(Some(_))) {
            let _ = rustix::fs::unlinkat(&dir, RESTORE_MARKER, AtFlags::empty());
        }
        Ok(marked?.map(|marker| (dir, marker)))
    }

    /// Locks and writes the marker, which was just made in `dir`; none if that is not the directory that was made.
    fn mark_new(
        &self,
        name: &[u8],
        dir: &OwnedFd,
        marker: OwnedFd,
    ) -> rustix::io::Result<Option<OwnedFd>> {
        let stat = rustix::fs::fstat(dir)?;
        // What is made here has one owner, also where a file system gives it to another than who makes it.
        let is_ours = rustix::fs::fstat(&marker)?.st_uid == stat.st_uid;
        let is_there = match beneath::stat(self.parent, name) {
            Ok(there) => inode(&there) == inode(&stat),
            Err(Errno::NOENT) => false,
            Err(error) => return Err(error),
        };
        if !is_ours || !is_there {
            return Ok(None);
        }
        // The lock is never waited for, and the umask must not decide whether the leftover is known again.
        rustix::fs::fchmod(dir, Mode::RWXU)?;
        if !holds_marker_alone(dir)? {
            return Ok(None);
        }
        rustix::fs::flock(&marker, FlockOperation::NonBlockingLockExclusive)?;
        let mut file = std::fs::File::from(marker);
        file.write_all(&self.content())
            .and_then(|()| file.sync_all())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(Some(file.into()))
    }

    fn content(&self) -> Vec<u8> {
        [MARKER_MAGIC, self.target.as_bytes(), b"\n"].concat()
    }

    /// Whether a staging directory of this target may have the name.
    fn is_ours(&self, name: &[u8]) -> bool {
        is_staging_name(name, self.prefix.as_bytes())
    }

    /// Directories of such names and what became of their restores, at most `max`.
    pub fn find(&self, max: usize) -> rustix::io::Result<Vec<(OsString, State)>> {
        // Opened anew, because listing uses up the descriptor's position.
        let listed = beneath::open(self.parent, b"", beneath::DIR_FLAGS)?;
        let mut names = Vec::new();
        beneath::list(&listed, |name| {
            if self.is_ours(name.to_bytes()) && names.len() < max {
                names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
            }
            Ok::<(), Errno>(())
        })?;
        names.sort();
        let state = |name: &OsString| match self.examine(name.as_bytes()) {
            Ok(Examined::Live) => State::Live,
            Ok(Examined::Dead { .. }) => State::Dead,
            Ok(Examined::Unknown) | Err(_) => State::Unknown,
        };
        Ok(names
            .into_iter()
            .map(|name| {
                let state = state(&name);
                (name, state)
            })
            .collect())
    }

    fn examine(&self, name: &[u8]) -> rustix::io::Result<Examined> {
        let dir = beneath::open(self.parent, name, beneath::DIR_FLAGS)?;
        let stat = rustix::fs::fstat(&dir)?;
        // Ours until the end of the restore: its metadata comes after the marker is gone.
        if !beneath::is_own(&stat) || stat.st_mode & 0o7777 != 0o700 {
            return Ok(Examined::Unknown);
        }
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let marker = beneath::open(dir.as_fd(), RESTORE_MARKER.as_bytes(), flags)?;
        let stat = rustix::fs::fstat(&marker)?;
        if !beneath::is_own(&stat) || beneath::file_type(&stat) != FileType::RegularFile {
            return Ok(Examined::Unknown);
        }
        let marker = std::fs::File::from(marker);
        let mut content = Vec::new();
        (&marker)
            .take(MARKER_BYTES_MAX)
            .read_to_end(&mut content)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if content != self.content() {
            return Ok(Examined::Unknown);
        }
        match rustix::fs::flock(&marker, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Examined::Dead {
                dir,
                _marker: marker.into(),
            }),
            Err(Errno::AGAIN) => Ok(Examined::Live),
            Err(error) => Err(error),
        }
    }

    /// Removes the directory `name` if it still is a dead restore's; returns whether it did.
    pub fn remove_dead(&self, name: &OsStr, go_on: &dyn Fn() -> Result<()>) -> Result<bool> {
        let failed = |error: Errno| {
            let what = "what an earlier restore left cannot be removed";
            target_error(what, name.as_bytes(), error)
        };
        let examined = match self.examine(name.as_bytes()) {
            Err(Errno::NOENT) => return Ok(false),
            examined => examined.map_err(failed)?,
        };
        // The lock is held until nothing is left, so that two restores do not remove it at once.
        let Examined::Dead { dir, _marker } = examined else {
            return Ok(false);
        };
        remove_held(self.parent, name, dir.as_fd(), go_on)?;
        Ok(true)
    }
}

fn holds_marker_alone(dir: &OwnedFd) -> rustix::io::Result<bool> {
    // Opened anew, because listing uses up the descriptor's position.
    let listed = beneath::open(dir.as_fd(), b"", beneath::DIR_FLAGS)?;
    let mut holds_more = false;
    beneath::list(&listed, |name| {
        holds_more |= name.to_bytes() != RESTORE_MARKER.as_bytes();
        Ok::<(), Errno>(())
    })?;
    Ok(!holds_more)
}

/// Whether a name is the prefix and the digits that [`Place::make`] puts behind it.
pub(crate) fn is_staging_name(name: &[u8], prefix: &[u8]) -> bool {
    let is_hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let random = name.strip_prefix(prefix);
    random.is_some_and(|random| random.len() == RANDOM_DIGITS && random.iter().all(is_hex))
}

/// Removes the staging directory `name` in `parent`, of which `dir` is held and the marker locked.
///
/// The marker last: a removal that fails or is killed half way can be taken up again.
pub(crate) fn remove_held(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    dir: BorrowedFd<'_>,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let failed = |error: Errno| {
        let what = "a staging directory cannot be removed";
        target_error(what, name.as_bytes(), error)
    };
    // What was moved elsewhere meanwhile belongs to who moved it.
    let (there, held) = (
        beneath::stat(parent, name.as_bytes()),
        rustix::fs::fstat(dir),
    );
    let (there, held) = (there.map_err(failed)?, held.map_err(failed)?);
    if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino) {
        return Err(failed(Errno::NOENT));
    }
    let fate = |path: &[u8]| match path == RESTORE_MARKER.as_bytes() {
        true => Fate::Left,
        false => Fate::Removed,
    };
    each_extra(dir, &fate, Extra::Remove, None, go_on)?;
    match rustix::fs::unlinkat(dir, RESTORE_MARKER, AtFlags::empty()) {
        // It is gone already if the last step of a restore failed.
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(failed(error)),
    }
    // Only an empty directory goes: whatever has the name by now.
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    /// Whoever owns the directory above renames the new one away and puts their own there before it is opened.
    #[test]
    fn a_directory_that_took_the_place_of_a_new_one_is_not_used() {
        let is_root = rustix::process::geteuid().is_root();
        assert!(is_root, "this test changes owners: run it as root");
        let above = tempfile::tempdir().unwrap();
        let parent = OwnedFd::from(fs::File::open(above.path()).unwrap());
        let place = Place {
            parent: parent.as_fd(),
            prefix: OsStr::new(".to."),
            target: OsStr::new("to"),
        };
        for name in ["theirs", "theirs-open", "full", "marked", "new"] {
            let path = above.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        }
        let at = |path: &str| above.path().join(path);
        for name in ["theirs", "theirs-open"] {
            chown(at(name), Some(65_534), Some(65_534)).unwrap();
        }
        fs::set_permissions(at("theirs-open"), Permissions::from_mode(0o777)).unwrap();
        fs::write(at("full/f"), b"theirs").unwrap();
        fs::write(at("marked").join(RESTORE_MARKER), b"theirs").unwrap();
        std::os::unix::fs::symlink("new", at("link")).unwrap();
        for name in ["theirs", "theirs-open", "full", "marked", "link", "gone"] {
            let filled = place.fill_new(name.as_bytes()).unwrap();
            assert!(filled.is_none(), "{name}");
        }
        // Nothing of ours is left there, and what was there stays.
        let count = |name: &str| fs::read_dir(at(name)).unwrap().count();
        assert_eq!(
            [count("theirs"), count("theirs-open"), count("full")],
            [0, 0, 1]
        );
        let mode = fs::metadata(at("theirs-open"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o777, "somebody else's was changed");
        let marker = fs::read(at("marked").join(RESTORE_MARKER)).unwrap();
        assert_eq!(marker, b"theirs");
        assert!(place.fill_new(b"new").unwrap().is_some());
        let marker = fs::read(at("new").join(RESTORE_MARKER)).unwrap();
        assert_eq!(marker, place.content());
    }
}
