//! Which existing files a restore in place (`--delta`) writes into, how they are opened, and how directories that stay are
//! taken from their owners.
//!
//! Invariants: what is written into cannot be read or changed afterwards through what somebody opened or mapped before, by
//! anybody whom the entry gives no right to do so. A change of owner or mode takes neither away, and writes through a
//! mapping leave a setuid bit where it is. An inode that this may be true of is never reused: the file is made anew. Nobody but
//! who restores changes names in a directory that was taken, where the system lets them take it: no mode keeps its owner out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mover_base::tree::Entry;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Uid};
use rustix::io::{Errno, Result};

use crate::attributes::{ACCESS_ACL, FILE_CAPABILITY, XATTR_BYTES_MAX, value_in};
use crate::beneath;

/// Rights of the group class and of all others to read and write.
const OTHERS_ACCESS: u32 = 0o066;
const OTHERS_READ: u32 = 0o044;
const OTHERS_WRITE: u32 = 0o022;
const GROUP_ACCESS: u32 = 0o060;
const GROUP_WRITES: u32 = 0o020;
/// Rights to read and write in an entry of an ACL.
const ACL_ACCESS: u16 = 0o6;
/// Bytes before the entries of an ACL, and of each: tag and rights, of two bytes each, and id.
const ACL_HEADER_BYTES: usize = 4;
const ACL_ENTRY_BYTES: usize = 8;
/// Tags of such entries: the file's group, a group by its id, the most that any but owner and others get, and the others.
const ACL_GROUP_OBJ: u16 = 0x04;
const ACL_GROUP: u16 = 0x08;
const ACL_MASK: u16 = 0x10;
const ACL_OTHER: u16 = 0x20;
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
    let acl = match is_closed_to_group(&before, entry) {
        true => None,
        false => access_acl(held.as_fd())?,
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

/// Whether nobody could read or write the file, as its owner, mode and access ACL tell, who may not do that with the one of
/// `entry`. `user` is the one who restores: what is theirs, as a restore that was interrupted leaves it, is in nobody else's
/// hands.
fn is_fit(file: &Stat, acl: Option<&[u8]>, entry: &Entry, user: u32) -> bool {
    let is_privileged = entry.mode & SET_IDS != 0 || value_in(entry, FILE_CAPABILITY).is_some();
    let is_of_owner = file.st_uid == entry.uid || file.st_uid == user;
    let is_open_to_more = file.st_mode & OTHERS_ACCESS & !entry.mode != 0;
    let is_group_alike =
        || file.st_gid == entry.gid || acl.is_some_and(gives_group_what_others_have);
    let is_same_group =
        is_closed_to_group(file, entry) || (acl == value_in(entry, ACCESS_ACL) && is_group_alike());
    !is_privileged && is_of_owner && !is_open_to_more && is_same_group
}

/// Whether the file gave its group, and whom its ACL names, no right that the entry does not give to everybody.
fn is_closed_to_group(file: &Stat, entry: &Entry) -> bool {
    // Where the backup's group cannot be put back, what everybody may read still is worked on in place.
    let everybody_reads =
        entry.mode & OTHERS_READ == OTHERS_READ && value_in(entry, ACCESS_ACL).is_none();
    let refused = match everybody_reads {
        true => GROUP_WRITES,
        false => GROUP_ACCESS,
    };
    file.st_mode & refused == 0
}

/// Whether it is all the same by an ACL whether somebody is in the file's group: that may do what all others may, and no other group is
/// named, which might be denied it. Then the ACL gives the same rights with whatever group the file has.
fn gives_group_what_others_have(acl: &[u8]) -> bool {
    let entries = acl.get(ACL_HEADER_BYTES..).unwrap_or_default();
    // What is not there denies nothing: without a mask the group has its rights as they stand.
    let (mut group, mut mask, mut others) = (0, ACL_ACCESS, 0);
    for entry in entries.chunks(ACL_ENTRY_BYTES) {
        let Some([tag_low, tag_high, low, high]) = entry.first_chunk() else {
            return false;
        };
        let rights = u16::from_le_bytes([*low, *high]) & ACL_ACCESS;
        match u16::from_le_bytes([*tag_low, *tag_high]) {
            ACL_GROUP => return false,
            ACL_GROUP_OBJ => group = rights,
            ACL_MASK => mask = rights,
            ACL_OTHER => others = rights,
            _ => {}
        }
    }
    group & mask == others
}

/// Takes a directory that stays, which is held by an `O_PATH` descriptor and was `found` so, from its owner and from everybody else.
pub(crate) fn take_dir(held: BorrowedFd<'_>, found: &Stat) -> Result<()> {
    take_owner(held, found)?;
    beneath::chmod_held(held, 0o700)
}

/// Takes the opened directory at the top of a target, so that nobody else changes names in it. Gives what it was before.
pub(crate) fn take_root(root: BorrowedFd<'_>) -> Result<Stat> {
    let before = rustix::fs::fstat(root)?;
    take_owner(root, &before)?;
    let mode = before.st_mode & 0o7777;
    let taken = (mode | 0o700) & !OTHERS_WRITE;
    if taken != mode && beneath::is_own(&rustix::fs::fstat(root)?) {
        rustix::fs::fchmod(root, Mode::from_raw_mode(taken))?;
    }
    Ok(before)
}

/// Gives back what [`take_root`] took, as far as that is possible.
pub(crate) fn give_back(root: BorrowedFd<'_>, before: &Stat) {
    if !beneath::is_own(before) {
        let _ = chown(root, Uid::from_raw(before.st_uid));
    }
    let _ = rustix::fs::fchmod(root, Mode::from_raw_mode(before.st_mode & 0o7777));
}

/// Makes a directory this user's. Where only root may do that, it stays its owner's.
fn take_owner(dir: BorrowedFd<'_>, found: &Stat) -> Result<()> {
    if beneath::is_own(found) {
        return Ok(());
    }
    match chown(dir, rustix::process::geteuid()) {
        Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error),
    }
}

fn chown(dir: BorrowedFd<'_>, owner: Uid) -> Result<()> {
    // Not `fchown`, which refuses what is held without being opened.
    rustix::fs::chownat(dir, c"", Some(owner), None, AtFlags::EMPTY_PATH)
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
