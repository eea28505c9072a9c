//! Whether a database runs in a directory that a restore is to work on in place.
//!
//! Invariants: a page store's directory is locked by the one process that writes to it ([`DirDisk::open_locked`]), and so
//! is a target in place by its restore, from before the first change until after the last: neither begins while the
//! other is there. A database that marks in the tracker is known by its lock on that, whatever else it locks. A PostgreSQL server takes no such lock: it is known by the process that its `postmaster.pid` names,
//! if that works in the directory, so that a file that a crash left is in nobody's way.
//!
//! [`DirDisk::open_locked`]: crate::disk::DirDisk::open_locked

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use mover_base::{Error, Kind, Result};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use crate::plan::is_running;
use crate::remove::inode;
use crate::tracker::LIVE_FILE;
use crate::{RESTORE_MARKER, beneath};

/// In a PostgreSQL data directory while a server runs there: its process number is the first line.
const POSTMASTER_FILE: &[u8] = b"postmaster.pid";
/// Longest first line that is looked at.
const PROCESS_BYTES_MAX: u64 = 32;

/// Locks the target, which is open as `root`, until that is closed.
///
/// # Errors
/// `Conflict` if a database runs in it, or another restore.
pub(crate) fn lock_in_place(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    match rustix::fs::flock(root, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN) if is_marker_locked(root) => return Err(is_running(path)),
        Err(Errno::AGAIN) => {
            return Err(in_use("another process has the target open", path));
        }
        // Where directories cannot be locked (NFS), no database has this one locked either.
        Ok(()) | Err(_) => {}
    }
    if is_locked(root, LIVE_FILE.as_bytes()) {
        return Err(in_use(
            "a database that marks its changes runs in the target",
            path,
        ));
    }
    match postmaster(root) {
        Some(process) => Err(in_use(
            &format!("a PostgreSQL server runs in the target (process {process})"),
            path,
        )),
        None => Ok(()),
    }
}

fn in_use(what: &str, path: &Path) -> Error {
    Error::new(Kind::Conflict, what)
        .object(path.display().to_string())
        .hint("stop the database that runs in it")
}

fn is_marker_locked(root: BorrowedFd<'_>) -> bool {
    is_locked(root, RESTORE_MARKER.as_bytes())
}

/// Whether somebody has a file below locked.
fn is_locked(root: BorrowedFd<'_>, path: &[u8]) -> bool {
    let flags = OFlags::RDWR | OFlags::NONBLOCK;
    beneath::open(root, path, flags).is_ok_and(|file| {
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
        locked == Err(Errno::AGAIN)
    })
}

/// The process that is PostgreSQL's in the directory.
fn postmaster(root: BorrowedFd<'_>) -> Option<u64> {
    let file = beneath::open(root, POSTMASTER_FILE, OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    let mut text = Vec::new();
    File::from(file)
        .take(PROCESS_BYTES_MAX)
        .read_to_end(&mut text)
        .ok()?;
    let line = text.split(|byte| *byte == b'\n').next()?;
    // A server that was started for one user alone writes its number as a negative one.
    let process: i64 = std::str::from_utf8(line).ok()?.trim().parse().ok()?;
    let process = process.unsigned_abs();
    // Of another user's process this is not known: it is no server that could work in a directory of ours.
    let works_in = rustix::fs::stat(format!("/proc/{process}/cwd")).ok()?;
    let target = rustix::fs::fstat(root.as_fd()).ok()?;
    (inode(&works_in) == inode(&target)).then_some(process)
}
