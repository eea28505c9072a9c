//! Which existing files a restore in place (`--delta`) writes into, and how they are opened.
//!
//! Invariants: what is written into cannot be changed afterwards through what somebody opened or mapped before, by
//! anybody whom the entry gives no right to do so. A change of owner or mode takes neither away, and writes through a
//! mapping leave a setuid bit where it is. An inode that this may be true of is never reused: the file is made anew.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mover_base::tree::Entry;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::{Errno, Result};

use crate::attributes::{ACCESS_ACL, FILE_CAPABILITY, XATTR_BYTES_MAX, value_in};
use crate::beneath;

/// Rights of the group class and of all others to write.
const OTHERS_WRITE: u32 = 0o022;
const GROUP_WRITES: u32 = 0o020;
/// Setuid and setgid.
const SET_IDS: u32 = 0o6000;

/// Opens the existing regular file at `place` to become that of `entry`, after taking it from everyone but its owner;
/// none if it must be made anew, also where `is_ours` says that a name of it is elsewhere.
pub(crate) fn adopt(
    place: &beneath::Place<'_>,
    entry: &Entry,
    is_ours: impl Fn(&Stat) -> bool,
) -> Result<Option<OwnedFd>> {
    let parent = place.parent.as_fd();
    let held = match beneath::open(parent, place.name, OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(held) => held,
        // A symbolic link may be refused as such.
        Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error),
    };
    let before = rustix::fs::fstat(&held)?;
    if beneath::file_type(&before) != FileType::RegularFile || !is_ours(&before) {
        return Ok(None);
    }
    let acl = match before.st_mode & GROUP_WRITES {
        0 => None,
        _ => access_acl(held.as_fd())?,
    };
    let user = rustix::process::geteuid().as_raw();
    if !is_fit(&before, acl.as_deref(), entry, user) {
        return Ok(None);
    }
    beneath::chmod_held(held.as_fd(), 0o600)?;
    let fd = beneath::open(parent, place.name, OFlags::RDWR | OFlags::NONBLOCK)?;
    let after = rustix::fs::fstat(&fd)?;
    if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino) {
        return Err(Errno::BUSY);
    }
    beneath::make_blocking(&fd)?;
    Ok(Some(fd))
}

/// Whether nobody could write to the file, as its owner, mode and access ACL tell, who may not write to that of `entry`.
/// `user` is the one who restores: what is theirs, as a restore that was interrupted leaves it, is in nobody else's hands.
fn is_fit(file: &Stat, acl: Option<&[u8]>, entry: &Entry, user: u32) -> bool {
    let is_privileged = entry.mode & SET_IDS != 0 || value_in(entry, FILE_CAPABILITY).is_some();
    let is_of_owner = file.st_uid == entry.uid || file.st_uid == user;
    let is_open_to_more = file.st_mode & OTHERS_WRITE & !entry.mode != 0;
    let is_same_group = file.st_mode & GROUP_WRITES == 0
        || (file.st_gid == entry.gid && acl == value_in(entry, ACCESS_ACL));
    !is_privileged && is_of_owner && !is_open_to_more && is_same_group
}

/// The access ACL of something held by an `O_PATH` descriptor, if it has one.
fn access_acl(held: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; XATTR_BYTES_MAX];
    match rustix::fs::getxattr(beneath::proc_path(held), ACCESS_ACL, &mut value[..]) {
        Ok(bytes) => {
            value.truncate(bytes);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error),
    }
}
