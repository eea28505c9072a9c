//! The marker in a target that is being restored: it tells that what is there is not whole, and its lock that somebody is at work.
//!
//! Invariants: it is on the disk before it is relied on; what was made for nothing is taken away again, unless another restore has it
//! locked.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use mover_base::{Error, Kind, Result};
use rustix::fs::{AtFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use crate::failure::target_error;
use crate::plan::is_running;
use crate::{RESTORE_MARKER, beneath};

/// The marker in a target, held open and locked.
#[derive(Debug)]
pub(crate) struct Marker {
    _held: OwnedFd,
    /// Whose it became, if it was not there before.
    pub maker: Option<u32>,
}

/// Writes the marker into `dir`, durably, and locks it against another restore.
pub(crate) fn mark(dir: BorrowedFd<'_>, path: &Path) -> Result<Marker> {
    let failed = |error: Errno| {
        target_error(
            "the marker cannot be written",
            RESTORE_MARKER.as_bytes(),
            error,
        )
    };
    let open = |more: OFlags| {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK | more;
        beneath::open(dir, RESTORE_MARKER.as_bytes(), flags)
    };
    let (held, is_new) = match open(OFlags::EXCL) {
        Ok(held) => (held, true),
        // Of a restore that was interrupted.
        Err(Errno::EXIST) => (open(OFlags::empty()).map_err(failed)?, false),
        Err(error) => return Err(failed(error)),
    };
    let locked = rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive);
    let locked = locked.map_err(|error| match error {
        Errno::AGAIN => is_running(path),
        _ => failed(error),
    });
    let durable = || rustix::fs::fsync(&held).and_then(|()| rustix::fs::fsync(dir));
    let stat = locked.and_then(|()| {
        durable()
            .and_then(|()| rustix::fs::fstat(&held))
            .map_err(failed)
    });
    // Whoever has it locked has it now.
    let is_left = |error: &Error| is_new && error.kind() != Kind::Conflict;
    let stat = stat.inspect_err(|error| {
        if is_left(error) {
            unmark(dir);
        }
    })?;
    Ok(Marker {
        _held: held,
        maker: is_new.then_some(stat.st_uid),
    })
}

/// Takes a marker away that was made for nothing, as far as that is possible.
pub(crate) fn unmark(dir: BorrowedFd<'_>) {
    if rustix::fs::unlinkat(dir, RESTORE_MARKER, AtFlags::empty()).is_ok() {
        let _ = rustix::fs::fsync(dir);
    }
}
