//! Resolving names beneath a directory descriptor.
//!
//! Invariants: no lookup here leaves the directory it starts from or follows a symbolic link, whoever
//! changes the tree meanwhile. `/proc/self/fd` is used only for calls that the kernel offers by path alone
//! (extended attributes and modes of things that must not be opened).

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, Statx, StatxAttributes, StatxFlags,
};
use rustix::io::{Errno, Result, retry_on_intr};

/// How every name is resolved.
pub(crate) const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Flags that open a directory for listing.
pub(crate) const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Directory entries are read in pieces of this size: enough for about 1,000 short names per system call.
const LIST_BYTES: usize = 32 << 10;

/// Opens a file for reading, without touching its access time where that is allowed. Without waiting: a pipe put in the
/// place of a file would block the open for ever. [`make_blocking`] follows when it is known what was opened.
pub(crate) fn open_to_read(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    match open(root, path, flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(root, path, flags),
        opened => opened,
    }
}

/// A non-blocking file would make asynchronous reads fail with EAGAIN instead of waiting.
pub(crate) fn make_blocking(fd: &OwnedFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags - OFlags::NONBLOCK)
}

/// Opens `path` beneath `root`; the empty path is `root` itself. A created file gets mode 0600.
pub(crate) fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    open_with(root, path, flags, RESOLVE)
}

/// Like [`open`], with other resolve flags (which must contain [`RESOLVE`]).
pub(crate) fn open_with(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let mode = if flags.contains(OFlags::CREATE) {
        Mode::RUSR | Mode::WUSR
    } else {
        Mode::empty()
    };
    retry_on_intr(|| rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve))
}

/// A held parent directory and the last component of a path in it.
pub(crate) struct Place<'p> {
    pub(crate) parent: OwnedFd,
    pub(crate) name: &'p [u8],
}

/// Opens the parent of `path` (not empty) beneath `root`.
pub(crate) fn place<'p>(root: BorrowedFd<'_>, path: &'p [u8]) -> Result<Place<'p>> {
    let (parent, name) = split(path);
    let parent = open(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    Ok(Place { parent, name })
}

/// Splits a path into the path of its parent (empty for the root) and its last component.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// `parent` and `name` joined; an empty parent is the root.
pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(parent.len() + 1 + name.len());
    if !parent.is_empty() {
        path.extend_from_slice(parent);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// What `name` in `dir` is, without following it.
pub(crate) fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Has what the next look at `name` in `dir` tells, or at `dir` itself if the name is empty, be of now: what a network file system
/// keeps of it for some seconds is asked for anew. Elsewhere it changes nothing.
pub(crate) fn refresh(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    look_anew(dir, name).map(drop)
}

fn look_anew(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW
        | AtFlags::NO_AUTOMOUNT
        | AtFlags::EMPTY_PATH
        | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)
}

/// Like [`stat`] after a [`refresh`], in one call: on a network each is a question to its server. Nothing makes a [`Stat`] but the system,
/// so one of anything is given, of which nothing stays.
// The fields of `stat` have other types on other architectures.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn stat_anew(dir: BorrowedFd<'_>, name: &[u8], any: &Stat) -> Result<Stat> {
    let found = look_anew(dir, name)?;
    let mut stat = *any;
    stat.st_dev = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor) as _;
    stat.st_rdev = rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor) as _;
    stat.st_ino = found.stx_ino as _;
    stat.st_mode = found.stx_mode as _;
    stat.st_nlink = found.stx_nlink as _;
    stat.st_uid = found.stx_uid as _;
    stat.st_gid = found.stx_gid as _;
    stat.st_size = found.stx_size as _;
    stat.st_blksize = found.stx_blksize as _;
    stat.st_blocks = found.stx_blocks as _;
    stat.st_atime = found.stx_atime.tv_sec as _;
    stat.st_atime_nsec = found.stx_atime.tv_nsec as _;
    stat.st_mtime = found.stx_mtime.tv_sec as _;
    stat.st_mtime_nsec = found.stx_mtime.tv_nsec as _;
    stat.st_ctime = found.stx_ctime.tv_sec as _;
    stat.st_ctime_nsec = found.stx_ctime.tv_nsec as _;
    Ok(stat)
}

/// The type in a mode.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The path by which `fd` itself can be named.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> Vec<u8> {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes()
}

/// The path by which `name` in `dir` can be named, whatever happens to the path of `dir`.
pub(crate) fn proc_path_in(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = proc_path(dir);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

/// Sets permission bits of something held by an `O_PATH` descriptor, which `fchmod` refuses.
pub(crate) fn chmod_held(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    rustix::fs::chmod(proc_path(fd), Mode::from_raw_mode(mode & 0o7777))
}

/// Whether this user owns it.
pub(crate) fn is_own(stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw()
}

/// Gives an opened directory's owner all rights to it, if this user is the owner: who may list it need not be allowed to
/// change what is in it.
pub(crate) fn take_rights(dir: BorrowedFd<'_>) -> Result<()> {
    let stat = rustix::fs::fstat(dir)?;
    if is_own(&stat) && stat.st_mode & 0o700 != 0o700 {
        let mode = stat.st_mode & 0o7777;
        rustix::fs::fchmod(dir, Mode::from_raw_mode(mode | 0o700))?;
    }
    Ok(())
}

/// Whether the directory is where a file system (or a bind) is mounted.
pub(crate) fn is_mount_root(dir: BorrowedFd<'_>) -> Result<bool> {
    let found = rustix::fs::statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Calls `each` for every name in `dir` but `.` and `..`, in the order of the file system.
///
/// The descriptor's position is used: each opened directory is listed once.
pub(crate) fn list<E: From<Errno>>(
    dir: impl AsFd,
    mut each: impl FnMut(&CStr) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut buffer = vec![MaybeUninit::uninit(); LIST_BYTES];
    let mut names = RawDir::new(dir, &mut buffer);
    while let Some(name) = names.next() {
        let name = name?;
        let name = name.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            each(name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// By each field that anything here is told by.
    #[test]
    fn a_look_anew_finds_what_any_other_does() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), vec![1; 10_000]).unwrap();
        fs::hard_link(dir.path().join("file"), dir.path().join("more")).unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let opened = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        // Of what has none of its fields in common with those.
        let any = rustix::fs::stat("/dev/null").unwrap();
        let fields = |stat: Stat| {
            let place = (stat.st_dev, stat.st_rdev, stat.st_ino, stat.st_nlink);
            let whose = (stat.st_mode, stat.st_uid, stat.st_gid);
            let size = (stat.st_size, stat.st_blksize, stat.st_blocks);
            let changed = (stat.st_ctime, stat.st_ctime_nsec);
            (
                place,
                whose,
                size,
                changed,
                stat.st_mtime,
                stat.st_mtime_nsec,
            )
        };
        for name in [&b"file"[..], b"dir", b"link"] {
            let found = stat(opened.as_fd(), name).unwrap();
            let anew = stat_anew(opened.as_fd(), name, &any).unwrap();
            assert_eq!(fields(anew), fields(found));
        }
        let gone = stat_anew(opened.as_fd(), b"gone", &any);
        assert_eq!(gone.map(drop), Err(Errno::NOENT));
    }
}
