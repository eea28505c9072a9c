//! What an error of the file system means for a repository, and what to do about it.
//!
//! Invariant: every errno ends up as a [`Kind`] that names the remedy; a full file system is always told as
//! "the repository is full", whichever call met it.

use std::io;

use mover_base::{Error, Kind};
use rustix::io::Errno;

/// Explains `error`, met while doing `action` ("write an object") to `object` (a key, or a path).
pub(super) fn explain(error: impl Into<io::Error>, action: &str, object: &str) -> Error {
    let error = error.into();
    let told = match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT) => Error::new(Kind::Storage, "the repository is full")
            .hint("free space on the repository's file system or raise the quota, then run again; `helios-mover expire` needs a few blocks of free space itself"),
        Some(Errno::ACCESS | Errno::PERM) => Error::new(Kind::Storage, format!("no permission to {action}"))
            .hint("run as the user who owns the repository, or correct the owner and mode of its directories"),
        Some(Errno::ROFS) => Error::new(Kind::Storage, format!("cannot {action}: the file system is read-only"))
            .hint("mount the repository's file system read-write; look in the kernel's log for why it is not"),
        Some(Errno::IO | Errno::UCLEAN | Errno::NODATA) => {
            Error::new(Kind::Storage, format!("I/O error: cannot {action}"))
                .hint("look in the kernel's log and check the disk of the repository")
        }
        Some(Errno::LOOP | Errno::XDEV) => {
            Error::new(Kind::Corrupt, "a symbolic link or foreign file system stands inside the repository").hint(
                "the mover never makes one: find out who did, and replace it by the directory that it points to",
            )
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            Error::new(Kind::Storage, format!("too many open files: cannot {action}"))
                .hint("raise the limit on open files (ulimit -n)")
        }
        Some(Errno::FBIG) => Error::new(Kind::Storage, format!("cannot {action}: larger than files may be there"))
            .hint("put the repository on a file system without that limit, or raise ulimit -f"),
        Some(Errno::NOSYS) => Error::new(Kind::Storage, format!("cannot {action}: the kernel lacks the call"))
            .hint("the mover needs openat2 (Linux 5.6 or later, not blocked by a seccomp filter)"),
        Some(Errno::STALE | Errno::NOTCONN | Errno::HOSTDOWN | Errno::TIMEDOUT) => {
            Error::new(Kind::Unreachable, format!("cannot {action}: the file system does not answer"))
                .hint("check the mount of the repository and try again")
        }
        _ => Error::new(Kind::Storage, format!("cannot {action}")),
    };
    told.object(object).cause(error)
}

/// Explains that the file system of the repository at `path` gives no name that replaces nothing: it has no such rename, and the hard
/// link in its place met `errno`. Some FUSE mounts that put a bucket behind a directory are like that. Others make each file that of
/// one user, and the kernel keeps all but that user from linking to it: whether this may be so, `is_anothers` says.
pub(super) fn unnameable(errno: Errno, is_anothers: bool, path: &str) -> Error {
    let (what, hint) = match (errno, is_anothers) {
        (Errno::PERM, true) => (
            "this file system cannot rename without replacing, and a hard link was refused",
            "it made a file of this user another user's, to which fs.protected_hardlinks may forbid a link: have its mount options give files to who makes them; if it has no hard links at all, use another file system for the repository, or s3://",
        ),
        _ => (
            "this file system can neither rename without replacing nor make hard links",
            "use another file system for the repository, or s3://",
        ),
    };
    Error::new(Kind::Storage, what)
        .object(path)
        .hint(hint)
        .cause(io::Error::from(errno))
}

/// Explains an error met while bytes of the object `object` were read: what the disk does not give back is lost as if it had been
/// changed, and lost is this object alone. (btrfs and ZFS answer so to every bit that rots.)
pub(super) fn explain_read(error: impl Into<io::Error>, object: &str) -> Error {
    let error = error.into();
    match Errno::from_io_error(&error) {
        Some(
            Errno::IO | Errno::UCLEAN | Errno::NODATA | Errno::BADMSG | Errno::REMOTEIO | Errno::ILSEQ,
        ) => Error::new(Kind::Corrupt, "the disk does not give an object back")
            .object(object)
            .hint("look in the kernel's log and check the disk of the repository; run `verify` for what else is lost")
            .cause(error),
        _ => explain(error, "read an object", object),
    }
}

/// The error for an object that does not exist.
pub(super) fn not_found(object: &str) -> Error {
    Error::new(Kind::NotFound, "no such object").object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_is_named_as_such() {
        for errno in [Errno::NOSPC, Errno::DQUOT] {
            let error = explain(errno, "write an object", "packs/a");
            assert_eq!(
                (error.kind(), error.message()),
                (Kind::Storage, "the repository is full")
            );
            assert_eq!(error.object_name(), Some("packs/a"));
            assert!(error.hint_text().is_some());
        }
    }

    #[test]
    fn remedies_differ_by_errno() {
        let kind = |errno| explain(errno, "x", "y").kind();
        assert_eq!(kind(Errno::IO), Kind::Storage);
        assert_eq!(kind(Errno::ACCESS), Kind::Storage);
        assert_eq!(kind(Errno::ROFS), Kind::Storage);
        assert_eq!(kind(Errno::LOOP), Kind::Corrupt);
        assert_eq!(kind(Errno::MFILE), Kind::Storage);
        assert_eq!(kind(Errno::STALE), Kind::Unreachable);
        assert_eq!(kind(Errno::BADMSG), Kind::Storage);
    }

    #[test]
    fn a_link_that_is_refused_is_laid_to_the_setting_only_where_that_may_be_why() {
        let told = |errno, is_anothers| {
            let error = unnameable(errno, is_anothers, "/srv/backup");
            assert_eq!(error.kind(), Kind::Storage);
            assert_eq!(error.object_name(), Some("/srv/backup"));
            let hint = error.hint_text().unwrap_or_default();
            assert!(hint.contains("use another file system"), "{hint}");
            hint.contains("fs.protected_hardlinks")
        };
        assert!(told(Errno::PERM, true));
        // To its own files the kernel lets everybody link, and it forbids by no other error.
        assert!(!told(Errno::PERM, false));
        assert!(!told(Errno::OPNOTSUPP, true));
    }

    #[test]
    fn an_object_that_the_disk_does_not_give_back_is_damaged() {
        let kind = |errno| explain_read(errno, "packs/a").kind();
        for errno in [Errno::IO, Errno::UCLEAN, Errno::NODATA, Errno::BADMSG] {
            assert_eq!(kind(errno), Kind::Corrupt);
        }
        // What is wrong with more than the object, or may pass.
        assert_eq!(kind(Errno::ACCESS), Kind::Storage);
        assert_eq!(kind(Errno::NFILE), Kind::Storage);
        assert_eq!(kind(Errno::NOMEM), Kind::Storage);
        assert_eq!(kind(Errno::STALE), Kind::Unreachable);
    }
}
