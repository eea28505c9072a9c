//! Putting metadata back onto what a restore made.
//!
//! Invariants: the order is owner, extended attributes, mode, modification time. Where something cannot be
//! put back, nobody gets more rights than the backup gave: setuid and setgid bits go when the owner is not
//! theirs, and the group class loses its rights when the ACL that limited them is missing. Owner and mode of what is not
//! opened go onto what is held and was found to be of the entry's kind, whatever its name leads to by then.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use mover_base::Result;
use mover_base::tree::{Entry, EntryKind, FileTime};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use crate::attributes::{self, ACCESS_ACL, Attributes, Node};
use crate::beneath;
use crate::failure::target_error;

/// At most so many warnings are kept; a restore without root would otherwise have one per file.
pub const WARNINGS_MAX: usize = 100;

/// What could not be put back, and what was left as it is.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    pub(crate) list: Vec<String>,
    pub(crate) more: u64,
}

impl Warnings {
    /// Keeps one more, or counts it.
    pub(crate) fn push(&mut self, warning: impl FnOnce() -> String) {
        if self.list.len() < WARNINGS_MAX {
            self.list.push(warning());
        } else {
            self.more = self.more.saturating_add(1);
        }
    }
}

/// Puts owner, extended attributes, mode and time of `entry` onto `node`.
pub(crate) fn apply(node: Node<'_>, entry: &Entry, warnings: &Mutex<Warnings>) -> Result<()> {
    let warn = |what: &str, error: Errno| {
        let mut warnings = warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.push(|| format!("{}: {what}: {error}", entry.display_path()));
    };
    let failed = |error: Errno| target_error("metadata cannot be put back", &entry.path, error);
    let held;
    let fd = match node {
        Node::Open(fd) => fd,
        Node::Named(dir, name) => {
            held = hold(dir, name, entry).map_err(failed)?;
            held.as_fd()
        }
    };
    let owned = chown(fd, entry, &warn).map_err(failed)?;
    let has_acl = set_attributes(node, entry, &warn).map_err(failed)?;
    let mode = allowed_mode(entry, owned, has_acl);
    chmod(node, fd, entry, mode).map_err(failed)?;
    set_time(node, entry.mtime).map_err(failed)
}

/// Holds what is named without opening it, if it is of the entry's kind: who owns the directory may have put something else
/// there, even a further name of a file of somebody else's.
fn hold(dir: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<OwnedFd, Errno> {
    let held = beneath::open(dir, name, OFlags::PATH | OFlags::NOFOLLOW)?;
    let kind = beneath::file_type(&rustix::fs::fstat(&held)?);
    let is_kind = match entry.kind {
        EntryKind::Symlink { .. } => kind == FileType::Symlink,
        EntryKind::Fifo => kind == FileType::Fifo,
        // Those are opened.
        EntryKind::Dir | EntryKind::File { .. } | EntryKind::Hardlink { .. } => false,
    };
    match is_kind {
        true => Ok(held),
        false => Err(Errno::BUSY),
    }
}

/// Whether user and group are those of the entry.
#[derive(Clone, Copy)]
struct Owned {
    user: bool,
    group: bool,
}

fn chown(fd: BorrowedFd<'_>, entry: &Entry, warn: &dyn Fn(&str, Errno)) -> Result<Owned, Errno> {
    // u32::MAX is the kernel's "leave it"; no file is owned by it.
    let user = (entry.uid != u32::MAX).then(|| Uid::from_raw(entry.uid));
    let group = (entry.gid != u32::MAX).then(|| Gid::from_raw(entry.gid));
    // Not `fchown`, which refuses what is held without being opened.
    let set = |user, group| rustix::fs::chownat(fd, c"", user, group, AtFlags::EMPTY_PATH);
    match set(user, group) {
        Ok(()) => {
            return Ok(Owned {
                user: true,
                group: true,
            });
        }
        Err(error @ (Errno::PERM | Errno::INVAL | Errno::NOTSUP)) => {
            let what = format!("owner {}:{} not restored", entry.uid, entry.gid);
            warn(&what, error);
        }
        Err(error) => return Err(error),
    }
    // A user may give a file to another of their groups.
    let group = set(None, group).is_ok();
    let stat = rustix::fs::fstat(fd)?;
    let user = stat.st_uid == entry.uid;
    Ok(Owned { user, group })
}

/// Sets the attributes of the entry and removes others (an inherited ACL, what an older version had). Returns
/// whether an access ACL of the entry, if there is one, was set.
fn set_attributes(
    node: Node<'_>,
    entry: &Entry,
    warn: &dyn Fn(&str, Errno),
) -> Result<bool, Errno> {
    let wanted: HashSet<&[u8]> = entry.xattrs.iter().map(|pair| pair.0.as_slice()).collect();
    for name in Attributes::new().names(node)? {
        let bytes = name.to_bytes();
        // Security labels are given by the policy of this machine, but capabilities belong to the file.
        let is_label = bytes.starts_with(b"security.") && bytes != b"security.capability";
        if wanted.contains(bytes) || is_label {
            continue;
        }
        match attributes::remove(node, &name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => warn(&attribute("not removed", bytes), warning(error)?),
        }
    }
    let mut has_acl = true;
    for (name, value) in &entry.xattrs {
        if let Err(error) = attributes::set(node, name, value) {
            warn(&attribute("not restored", name), warning(error)?);
            has_acl &= name != ACCESS_ACL;
        }
    }
    Ok(has_acl)
}

fn attribute(what: &str, name: &[u8]) -> String {
    let name = mover_base::tree::display_path(name);
    format!("extended attribute {name} {what}")
}

/// Errors of attributes that end a restore; all others say what this user or file system cannot do (ext4
/// says "no space" for values larger than a block).
fn warning(error: Errno) -> Result<Errno, Errno> {
    match error {
        Errno::IO | Errno::ROFS | Errno::BADF | Errno::NOENT | Errno::NOMEM => Err(error),
        _ => Ok(error),
    }
}

fn allowed_mode(entry: &Entry, owned: Owned, has_acl: bool) -> u32 {
    let mut mode = entry.mode & 0o7777;
    if !matches!(entry.kind, EntryKind::Dir) {
        if !owned.user {
            mode &= !0o4000;
        }
        if !owned.group {
            mode &= !0o2000;
        }
    }
    if !has_acl {
        mode &= !0o070;
    }
    mode
}

/// Sets the mode of `node`, which is held as `fd`.
fn chmod(node: Node<'_>, fd: BorrowedFd<'_>, entry: &Entry, mode: u32) -> Result<(), Errno> {
    match node {
        Node::Open(fd) => rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)),
        // Linux has no modes of symbolic links.
        Node::Named(..) if matches!(entry.kind, EntryKind::Symlink { .. }) => Ok(()),
        Node::Named(..) => beneath::chmod_held(fd, mode),
    }
}

fn set_time(node: Node<'_>, mtime: FileTime) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanos.into(),
        },
    };
    match node {
        Node::Open(fd) => rustix::fs::futimens(fd, &times),
        Node::Named(dir, name) => {
            rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}
