//! Putting metadata back onto what a restore made.
//!
//! Invariants: the order is owner, extended attributes, mode, modification time. Where something cannot be
//! put back, nobody gets more rights than the backup gave: setuid and setgid bits go when the owner is not
//! theirs, and the group class loses its rights when the ACL that limited them is missing, or keeps those that everybody
//! has when the group is another. Owner and mode of what is not opened go onto what is held and was found to be of the
//! entry's kind, whatever its name leads to by then. What counts is what the file system says afterwards: a call that
//! succeeds may have changed less than it was asked to.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use mover_base::tree::{Entry, EntryKind, FileTime};
use mover_base::{Error, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use crate::attributes::{self, ACCESS_ACL, Attributes, FILE_CAPABILITY, Node};
use crate::beneath;
use crate::failure::target_error;
use crate::scan::Stamp;

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

/// Tells what could not be put back, and why.
type Warn<'a> = &'a dyn Fn(&str, &dyn Display);

/// Puts owner, extended attributes, mode and time of `entry` onto `node`.
pub(crate) fn apply(node: Node<'_>, entry: &Entry, warnings: &Mutex<Warnings>) -> Result<()> {
    let held;
    let fd = match node {
        Node::Open(fd) => fd,
        Node::Named(dir, name) => {
            held = hold(dir, name, entry).map_err(|error| failed(entry, error))?;
            held.as_fd()
        }
    };
    let mode = put_owner(node, fd, entry, warnings)?;
    put_mode_and_time(node, fd, entry, mode, warnings)
}

/// The first half of [`apply`] for an opened directory, whose owner may still change what is in it. Returns the mode that
/// is left to [`complete_dir`].
pub(crate) fn prepare_dir(
    dir: BorrowedFd<'_>,
    entry: &Entry,
    warnings: &Mutex<Warnings>,
) -> Result<u32> {
    let mode = put_owner(Node::Open(dir), dir, entry, warnings)?;
    rustix::fs::fchmod(dir, Mode::from_raw_mode(mode | 0o700))
        .map_err(|error| failed(entry, error))?;
    Ok(mode)
}

/// The second half of [`apply`] for an opened directory.
pub(crate) fn complete_dir(
    dir: BorrowedFd<'_>,
    entry: &Entry,
    mode: u32,
    warnings: &Mutex<Warnings>,
) -> Result<()> {
    put_mode_and_time(Node::Open(dir), dir, entry, mode, warnings)
}

/// Puts back owner and extended attributes of `node`, which is held as `fd`, and returns the mode that it may have.
fn put_owner(
    node: Node<'_>,
    fd: BorrowedFd<'_>,
    entry: &Entry,
    warnings: &Mutex<Warnings>,
) -> Result<u32> {
    let warn = |what: &str, why: &dyn Display| keep(warnings, entry, what, why);
    let owned = chown(fd, entry, &warn).map_err(|error| failed(entry, error))?;
    let has_acl = set_attributes(node, entry, &warn).map_err(|error| failed(entry, error))?;
    Ok(allowed_mode(entry, owned, has_acl))
}

/// Puts back `mode` and the entry's time, and looks what became of them.
fn put_mode_and_time(
    node: Node<'_>,
    fd: BorrowedFd<'_>,
    entry: &Entry,
    mode: u32,
    warnings: &Mutex<Warnings>,
) -> Result<()> {
    let warn = |what: &str, why: &dyn Display| keep(warnings, entry, what, why);
    chmod(node, fd, entry, mode)
        .and_then(|()| set_time(node, entry.mtime))
        .and_then(|()| compare(fd, entry, &warn))
        .map_err(|error| failed(entry, error))
}

fn failed(entry: &Entry, error: Errno) -> Error {
    target_error("metadata cannot be put back", &entry.path, error)
}

fn keep(warnings: &Mutex<Warnings>, entry: &Entry, what: &str, why: &dyn Display) {
    let mut warnings = warnings.lock().unwrap_or_else(PoisonError::into_inner);
    warnings.push(|| format!("{}: {what}: {why}", entry.display_path()));
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

fn chown(fd: BorrowedFd<'_>, entry: &Entry, warn: Warn<'_>) -> Result<Owned, Errno> {
    // u32::MAX is the kernel's "leave it"; no file is owned by it.
    let user = (entry.uid != u32::MAX).then(|| Uid::from_raw(entry.uid));
    let group = (entry.gid != u32::MAX).then(|| Gid::from_raw(entry.gid));
    // Not `fchown`, which refuses what is held without being opened.
    let set = |user, group| rustix::fs::chownat(fd, c"", user, group, AtFlags::EMPTY_PATH);
    let refused = match set(user, group) {
        Ok(()) => None,
        Err(error @ (Errno::PERM | Errno::INVAL | Errno::NOTSUP)) => {
            // A user may give a file to another of their groups.
            let _ = set(None, group);
            Some(error)
        }
        Err(error) => return Err(error),
    };
    let stat = rustix::fs::fstat(fd)?;
    let owned = Owned {
        user: stat.st_uid == entry.uid,
        group: stat.st_gid == entry.gid,
    };
    let what = || format!("owner {}:{} not restored", entry.uid, entry.gid);
    match refused {
        Some(error) => warn(&what(), &error),
        None if owned.user && owned.group => {}
        None => warn(&what(), &format!("it is {}:{}", stat.st_uid, stat.st_gid)),
    }
    Ok(owned)
}

/// Sets the attributes of the entry and removes others (an inherited ACL, what an older version had). Returns
/// whether an access ACL of the entry, if there is one, was set.
fn set_attributes(node: Node<'_>, entry: &Entry, warn: Warn<'_>) -> Result<bool, Errno> {
    let wanted: HashSet<&[u8]> = entry.xattrs.iter().map(|pair| pair.0.as_slice()).collect();
    for name in Attributes::new().names(node)? {
        let bytes = name.to_bytes();
        // Security labels are given by the policy of this machine, but capabilities belong to the file.
        let is_label = bytes.starts_with(b"security.") && bytes != FILE_CAPABILITY;
        if wanted.contains(bytes) || is_label {
            continue;
        }
        match attributes::remove(node, &name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => warn(&attribute("not removed", bytes), &warning(error)?),
        }
    }
    let mut has_acl = true;
    for (name, value) in &entry.xattrs {
        if let Err(error) = attributes::set(node, name, value) {
            warn(&attribute("not restored", name), &warning(error)?);
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
    // Another group than the backup's is nobody but everybody. Where there is an ACL, these bits limit all whom it names,
    // who lose what everybody does not have, too.
    if !owned.group {
        mode &= !0o070 | ((mode & 0o007) << 3);
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

/// Compares mode and time of what is held as `fd` with those of the entry: file systems drop bits that this user may not
/// set and fractions of a second that they cannot hold, and report success.
fn compare(fd: BorrowedFd<'_>, entry: &Entry, warn: Warn<'_>) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    let (wanted, mode) = (entry.mode & 0o7777, stat.st_mode & 0o7777);
    if mode != wanted && !matches!(entry.kind, EntryKind::Symlink { .. }) {
        let what = format!("mode {wanted:04o} not restored");
        warn(&what, &format!("it is {mode:04o}"));
    }
    let mtime = Stamp::of(&stat).mtime;
    if mtime != entry.mtime {
        let what = format!("modification time {} not restored", Seconds(entry.mtime));
        warn(&what, &format!("it is {}", Seconds(mtime)));
    }
    Ok(())
}

/// Shows a time as seconds since 1970, as `touch -d @...` takes them, to the last digit.
struct Seconds(FileTime);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NANOS: u128 = 1_000_000_000;
        let nanos = i128::from(self.0.seconds) * NANOS as i128 + i128::from(self.0.nanos);
        let sign = if nanos < 0 { "-" } else { "" };
        let nanos = nanos.unsigned_abs();
        write!(f, "{sign}{}.{:09}", nanos / NANOS, nanos % NANOS)
    }
}
