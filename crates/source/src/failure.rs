//! System errors in the words of the mover: which kind, and what to do next.
//!
//! Invariants: reading sides never blame the target and the reverse (a full target taken for an unreadable
//! source has lost backups elsewhere); a name that vanished under a running job is a changed source.

use std::io;

use mover_base::tree::display_path;
use mover_base::{Error, Kind};
use rustix::io::Errno;

/// What to do when a source changes under the job.
pub(crate) const CHANGED_HINT: &str =
    "stop the database, read a snapshot of it (LVM, btrfs, zfs), or use an online source";

/// The error for a failed system call on the source. `what` is one clause, `path` relative to the source.
pub fn source_error(what: &str, path: &[u8], cause: impl Into<io::Error>) -> Error {
    let cause = cause.into();
    let errno = Errno::from_io_error(&cause);
    let error = match errno {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) => {
            Error::new(Kind::SourceChanged, "the source changed while it was read")
                .hint(CHANGED_HINT)
        }
        _ => Error::new(Kind::Source, what),
    };
    let hint = match errno {
        Some(Errno::ACCESS | Errno::PERM) => {
            "run as root, as the owner of the files, or with CAP_DAC_READ_SEARCH"
        }
        Some(Errno::IO) => "the disk or its file system fails; look at the kernel log",
        Some(Errno::MFILE | Errno::NFILE) => "raise the limit of open files (ulimit -n)",
        Some(Errno::NOSYS) => "this needs Linux 5.6 or newer (openat2)",
        _ => "",
    };
    finish(error, hint, path, cause)
}

/// The error for a failed system call on a restore target. `what` is one clause, `path` relative to it.
pub fn target_error(what: &str, path: &[u8], cause: impl Into<io::Error>) -> Error {
    let cause = cause.into();
    let errno = Errno::from_io_error(&cause);
    let full = matches!(errno, Some(Errno::NOSPC | Errno::DQUOT));
    let what = if full {
        "the target file system is full"
    } else {
        what
    };
    let hint = match errno {
        Some(Errno::NOSPC | Errno::DQUOT) => {
            "free space (or inodes, or quota) on it, or restore to another directory"
        }
        Some(Errno::ACCESS | Errno::PERM) => {
            "run as root or as the owner of the target; an immutable file needs chattr -i"
        }
        Some(Errno::ROFS) => "the target file system is mounted read-only",
        Some(Errno::LOOP) => "a symbolic link stands where a directory should be; remove it",
        Some(Errno::TXTBSY | Errno::BUSY) => "stop what is using the target",
        Some(Errno::IO) => "the disk or its file system fails; look at the kernel log",
        Some(Errno::MFILE | Errno::NFILE) => "raise the limit of open files (ulimit -n)",
        Some(Errno::NAMETOOLONG | Errno::ILSEQ | Errno::INVAL | Errno::FBIG) => {
            "the target file system cannot hold this; restore to one like the source's"
        }
        Some(Errno::NOSYS) => "this needs Linux 5.6 or newer (openat2)",
        _ => "",
    };
    finish(Error::new(Kind::Target, what), hint, path, cause)
}

fn finish(error: Error, hint: &str, path: &[u8], cause: io::Error) -> Error {
    let error = if hint.is_empty() {
        error
    } else {
        error.hint(hint)
    };
    error.object(display_path(path)).cause(cause)
}

/// The source is not what it was; `how` says what differs.
pub(crate) fn changed(how: &str, path: &[u8]) -> Error {
    Error::new(
        Kind::SourceChanged,
        format!("the source changed while it was read ({how})"),
    )
    .object(display_path(path))
    .hint(CHANGED_HINT)
}
