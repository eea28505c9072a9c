//! What running backups still need of the log. The layout is in docs/tracker-format.md, section 9.
//!
//! A backup copies the log last, from the redo position that it began with. A database that removes what its latest
//! checkpoint needs no more asks here first.
//!
//! Invariants: a hold stands before the backup looks for the redo position, so that the database either has written a
//! later one by then or sees the hold. It counts as long as its file is locked, which ends with the process: a killed
//! backup holds nothing. What cannot be read holds everything.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mover_base::{Lsn, Result, hex};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::TRACKER_DIR;
use super::state::{failed, unreadable};
use crate::disk::{DirDisk, Disk, remove_if_there};

/// Under this name a hold's file is made before it is locked.
pub(super) const HOLD_NEW: &str = "tracker/hold.new";
const HOLD_PREFIX: &str = "hold-";

/// A backup's hold on the log of a store. It ends when this is dropped.
#[derive(Debug)]
pub struct LogHold {
    disk: Arc<DirDisk>,
    path: String,
    file: File,
}

impl LogHold {
    /// Holds all of the log. To be called under the tracker's lock; `prepare` is called with the new file before it gets
    /// its name.
    pub(super) fn place(
        disk: Arc<DirDisk>,
        prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<LogHold> {
        let number: [u8; 8] = mover_io::random_bytes()?;
        let path = format!("{TRACKER_DIR}/{HOLD_PREFIX}{}", hex::encode(&number));
        let make = || {
            remove_if_there(&*disk, HOLD_NEW)?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            let file = File::from(disk.descriptor(HOLD_NEW, flags)?);
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            file.write_all_at(&[0; 8], 0)?;
            prepare(file.as_fd())?;
            disk.rename(HOLD_NEW, &path)?;
            Ok(file)
        };
        let file = make().map_err(|error| failed(HOLD_NEW, error))?;
        Ok(LogHold { disk, path, file })
    }

    /// Lets go of the log before `lsn`.
    ///
    /// # Errors
    /// `Storage` if that cannot be written; more is held then than need be.
    pub fn keep_from(&self, lsn: Lsn) -> Result<()> {
        let written = self.file.write_all_at(&lsn.0.to_le_bytes(), 0);
        written.map_err(|error| failed(&self.path, error))
    }
}

impl Drop for LogHold {
    fn drop(&mut self) {
        // What stays is not locked any more, and goes when the database looks.
        let _ = self.disk.remove(&self.path);
    }
}

/// From where on the log of the store on `disk` is held; `None` if no backup runs that would need it. Files of backups
/// that were killed are removed.
///
/// # Errors
/// `Source` if the tracker's directory cannot be read: then nothing may be removed.
pub(super) fn held_from(disk: &DirDisk) -> Result<Option<Lsn>> {
    let names = match disk.list(TRACKER_DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        names => {
            names.map_err(|error| unreadable("the tracker cannot be listed", TRACKER_DIR, error))?
        }
    };
    let mut from = None;
    for name in names.iter().filter(|name| name.starts_with(HOLD_PREFIX)) {
        let path = format!("{TRACKER_DIR}/{name}");
        if let Some(lsn) = read(disk, &path) {
            from = Some(from.map_or(lsn, |from: Lsn| from.min(lsn)));
        }
    }
    Ok(from)
}

/// What one file holds, if its backup runs.
fn read(disk: &DirDisk, path: &str) -> Option<Lsn> {
    let file = match disk.descriptor(path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => File::from(fd),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(_) => return Some(Lsn(0)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {
            let mut bytes = [0; 8];
            let read = file.read_exact_at(&mut bytes, 0);
            Some(read.map_or(Lsn(0), |()| Lsn(u64::from_le_bytes(bytes))))
        }
        Ok(()) => {
            // Its backup is gone. Another time, if it cannot be removed now.
            let _ = disk.remove(path);
            None
        }
        Err(_) => Some(Lsn(0)),
    }
}
