//! Path resolution below the root of a local repository.
//!
//! Invariants: every path is resolved by `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` from one
//! descriptor of the root, so nothing planted in the repository leads out of it. Names are used only
//! relative to a directory resolved that way. A symbolic link on the way *to* the root is the operator's
//! choice and is followed, once. Opening never blocks on a FIFO and never returns anything but a regular
//! file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use mover_base::{Error, Kind, Result};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::errno::explain;

/// Only the owner enters the repository's directories.
const DIRECTORY_MODE: Mode = Mode::RWXU;
/// Only the owner reads and writes objects.
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// The root directory, opened when first needed.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    fd: OnceLock<OwnedFd>,
}

impl Root {
    pub(super) fn new(path: PathBuf) -> Root {
        Root {
            path,
            fd: OnceLock::new(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor of the root.
    fn fd(&self) -> Result<BorrowedFd<'_>> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd.as_fd());
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.path, flags, Mode::empty())
            .map_err(|errno| self.cannot_open(errno))?;
        // Two shards may open it at once; the later descriptor is closed and the first is used.
        Ok(self.fd.get_or_init(|| fd).as_fd())
    }

    fn cannot_open(&self, errno: Errno) -> Error {
        let path = self.path.display().to_string();
        match errno {
            Errno::NOENT => Error::new(Kind::NotFound, "the repository's directory does not exist")
                .object(path)
                .hint("check the URL and that its disk is mounted; `helios-mover init` makes a new repository"),
            Errno::NOTDIR => Error::new(Kind::Usage, "the repository's path is not a directory").object(path),
            _ => explain(errno, "open the repository's directory", &path),
        }
    }

    /// [`explain`], but where this user may not do it by whose it is, that is told.
    fn explain(&self, errno: Errno, action: &str, relative: &str) -> Error {
        let own = rustix::process::geteuid().as_raw();
        let is_denied = matches!(errno, Errno::ACCESS | Errno::PERM);
        let owner = self
            .owner(relative)
            .filter(|owner| is_denied && *owner != own);
        match owner {
            Some(owner) => Error::new(Kind::Storage, format!("no permission to {action}"))
                .object(relative)
                .hint(format!(
                    "run as the user with id {owner}, to whom it belongs (this is the one with id {own}), or give all of the repository to one user (chown -R), who makes every backup in it"
                ))
                .cause(io::Error::from(errno)),
            None => explain(errno, action, relative),
        }
    }

    /// Who owns what is at `relative`, or the directory above it that cannot be looked into, or that it would be in.
    fn owner(&self, relative: &str) -> Option<u32> {
        let mut path = self.path.clone();
        let mut owner = path.metadata().ok()?.uid();
        for part in relative.split('/') {
            path.push(part);
            match path.symlink_metadata() {
                Ok(found) => owner = found.uid(),
                Err(_) => break,
            }
        }
        Some(owner)
    }

    /// Fails where the root was removed after it was opened: an unlinked directory lists as empty, which
    /// must never be taken for a repository without objects.
    pub(super) fn check_linked(&self) -> Result<()> {
        let path = self.path.display().to_string();
        let stat = rustix::fs::fstat(self.fd()?)
            .map_err(|errno| explain(errno, "examine the repository's directory", &path))?;
        if stat.st_nlink == 0 {
            return Err(
                Error::new(Kind::NotFound, "the repository's directory was removed")
                    .object(path)
                    .hint("copy it back, or check that its disk is mounted"),
            );
        }
        Ok(())
    }

    /// Opens the directory `relative` ("" = the root itself); `None` where there is none.
    pub(super) fn open_directory(&self, relative: &str) -> Result<Option<OwnedFd>> {
        let path = if relative.is_empty() { "." } else { relative };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match resolve(self.fd()?, path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.explain(errno, "open a directory of the repository", relative)),
        }
    }

    /// Opens the directory `relative`, creating what is missing of it. Durability of the entries created is
    /// the caller's duty.
    pub(super) fn make_directory(&self, relative: &str) -> Result<OwnedFd> {
        if let Some(fd) = self.open_directory(relative)? {
            return Ok(fd);
        }
        let told = |errno: Errno| match errno {
            Errno::NOTDIR => {
                Error::new(Kind::Conflict, "an object has the name of a directory").object(relative)
            }
            _ => self.explain(errno, "create a directory of the repository", relative),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut parent = resolve(self.fd()?, ".", flags, Mode::empty()).map_err(told)?;
        for part in relative.split('/') {
            match rustix::fs::mkdirat(&parent, part, DIRECTORY_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(told(errno)),
            }
            parent = resolve(parent.as_fd(), part, flags, Mode::empty()).map_err(told)?;
        }
        Ok(parent)
    }

    /// What stands at `relative`; `None` where nothing does.
    pub(super) fn stat(&self, relative: &str) -> Result<Option<Stat>> {
        let told = |errno| self.explain(errno, "examine an object", relative);
        match resolve(self.fd()?, relative, OFlags::PATH, Mode::empty()) {
            Ok(fd) => rustix::fs::fstat(fd).map(Some).map_err(told),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(told(errno)),
        }
    }

    /// Opens the object `relative` for reading, with its size in bytes; `None` where there is none.
    pub(super) fn open_object(&self, relative: &str) -> Result<Option<(OwnedFd, u64)>> {
        let told = |errno| self.explain(errno, "open an object", relative);
        // NONBLOCK keeps a planted FIFO from hanging the shard. It is taken off again below, because
        // io_uring answers EAGAIN instead of waiting where it is set.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match resolve(self.fd()?, relative, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(told(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(told)?;
        let Some(bytes) = object_bytes(&stat, relative)? else {
            return Ok(None);
        };
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(told)?;
        rustix::fs::fcntl_setfl(&fd, flags.difference(OFlags::NONBLOCK)).map_err(told)?;
        Ok(Some((fd, bytes)))
    }
}

/// The size of the object that `stat` describes; `None` for a directory, which is only a prefix of keys.
pub(super) fn object_bytes(stat: &Stat, relative: &str) -> Result<Option<u64>> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Some(u64::try_from(stat.st_size).unwrap_or(0))),
        FileType::Directory => Ok(None),
        kind => Err(unexpected(kind, relative)),
    }
}

/// The error for something that is neither a file nor a directory.
pub(super) fn unexpected(kind: FileType, relative: &str) -> Error {
    match kind {
        FileType::Symlink => explain(Errno::LOOP, "open an object", relative),
        _ => Error::new(
            Kind::Corrupt,
            "neither a file nor a directory stands inside the repository",
        )
        .object(relative)
        .hint("the mover never makes one: find out who did, and remove it"),
    }
}

/// `openat2` below `directory`, through no symbolic link.
pub(super) fn resolve(
    directory: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, mode, below)
}

/// Creates the directory `path` and its missing ancestors, durably.
pub(super) fn create(path: &Path) -> Result<()> {
    let told = |errno: Errno, at: &Path| match errno {
        Errno::NOTDIR | Errno::EXIST => {
            Error::new(Kind::Usage, "the repository's path is not a directory")
                .object(at.display().to_string())
        }
        _ => explain(
            errno,
            "create the repository's directory",
            &at.display().to_string(),
        ),
    };
    let ancestors: Vec<&Path> = path.ancestors().collect();
    for pair in ancestors.windows(2).rev() {
        let (directory, parent) = (pair[0], pair[1]);
        let existed = match rustix::fs::mkdir(directory, DIRECTORY_MODE) {
            Ok(()) => false,
            Err(_) if directory.is_dir() => true,
            Err(errno) => return Err(told(errno, directory)),
        };
        if existed && directory != path {
            continue;
        }
        // The root is synced even where it existed, because whoever made it may not have done so; that
        // may fail where the mover may pass the parent but not read it.
        match sync_directory(parent) {
            Ok(()) => {}
            Err(Errno::ACCESS) if existed => {}
            Err(errno) => return Err(told(errno, parent)),
        }
    }
    Ok(())
}

fn sync_directory(path: &Path) -> Result<(), Errno> {
    let fd = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fsync(fd)
}
