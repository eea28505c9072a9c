//! A directory of database files as a source: `dir:///absolute/path`.
//!
//! Invariants: the root is opened once and everything is found beneath that descriptor, so that a renamed
//! or replaced root cannot mix two trees. Only regular files are opened, and never a pipe or a device. A
//! change is noticed by inode, size, mtime and ctime: after each file ([`DirSource::check_unchanged`]) and
//! once over everything at the end ([`DirSource::check_tree_unchanged`], owner and mode as well), which a network file system is
//! asked for anew. A scan ends when the clock
//! of the file system is past every stamp it found, so that each later write shows; what the scan itself read before that
//! (attributes, targets of links) is read again at the end where no stamp vouches for it. That catches a database that was
//! not stopped, up to writes through shared memory that the kernel has not stamped yet, or never does (a warning tells of such
//! file systems); it makes no hot copy consistent.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use mover_base::tree::{Entry, EntryKind, display_path};
use mover_base::{Error, Kind, Result};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::attributes::{Attributes, Node};
use crate::exclude::Excludes;
use crate::failure::{changed, source_error};
use crate::granule::{Clocks, scan_begins};
use crate::memory::InMemory;
use crate::scan::{Item, ScanOptions, SkipReason, Stamp, Tree, TreeBuilder};
use crate::staging::is_staging_name;
use crate::{PARTIAL_PREFIX, RESTORE_MARKER, beneath, limits};

/// The scheme of this source, with the separator.
const SCHEME: &str = "dir://";

/// A directory tree that is read.
#[derive(Debug)]
pub struct DirSource {
    url: String,
    path: PathBuf,
    root: OwnedFd,
}

impl DirSource {
    /// Opens `dir:///absolute/path`; the path stands there literally, without percent-encoding. Symbolic
    /// links in this path are followed, below it none is.
    ///
    /// Errors: `Usage` for anything else than that form, `Source` if the directory is missing or unreadable.
    pub fn open(url: &str) -> Result<DirSource> {
        let Some(path) = url.strip_prefix(SCHEME) else {
            return Err(Error::new(Kind::Usage, "not a supported source")
                .object(url)
                .hint(
                    "supported sources: dir:///absolute/path (a stopped database or a snapshot), pages:///absolute/path (a page store, also at work)",
                ));
        };
        if !path.starts_with('/') || path.contains('\0') {
            return Err(
                Error::new(Kind::Usage, "the path of a source must be absolute")
                    .object(url)
                    .hint("write three slashes: dir:///var/lib/database"),
            );
        }
        let path = PathBuf::from(path);
        let flags = beneath::DIR_FLAGS | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| {
            let what = match error {
                Errno::NOENT => "the source does not exist",
                Errno::NOTDIR => "the source is not a directory",
                _ => {
                    let path = path.as_os_str().as_bytes();
                    return source_error("the source cannot be opened", path, error)
                        .with_kind(Kind::Source);
                }
            };
            // Nothing was read yet, so nothing can have changed meanwhile.
            Error::new(Kind::Source, what)
                .object(path.display().to_string())
                .hint("check the path: dir:///absolute/path of the database's directory")
        })?;
        if let Err(error) = rustix::fs::stat("/proc/self/fd") {
            return Err(Error::new(Kind::Source, "/proc is not mounted")
                .hint("mount it: extended attributes cannot be read without it")
                .cause(error));
        }
        Ok(DirSource {
            url: url.to_owned(),
            path,
            root,
        })
    }

    /// The URL that it was opened with.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lists the whole tree. No file is opened. Where something was changed a moment ago, it waits until a change after it
    /// shows: about two seconds at most, where the file system keeps whole seconds.
    ///
    /// Errors: `Usage` for exclude patterns that mean nothing in it, `SourceChanged` if names vanish meanwhile, `Limit` past
    /// `options.names_bytes_max` or with too many extended attributes or too long ones or names, `Source` if
    /// something cannot be read or the tree is an unfinished restore.
    pub fn scan(&self, options: &ScanOptions) -> Result<Tree> {
        self.scan_while(options, &|| Ok(()))
    }

    /// Like [`scan`](Self::scan), and ends with the error of `go_on`, which is asked before each directory and in
    /// a long wait.
    pub fn scan_while(
        &self,
        options: &ScanOptions,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Tree> {
        let excludes = Excludes::new(&options.exclude, &self.path)?;
        let mut tree = TreeBuilder::new(options);
        let mut attributes = Attributes::new();
        let mut memory = InMemory::default();
        let begun = scan_begins();
        self.walk(&excludes, options, &beneath::stat, go_on, &mut |found| {
            if found.is_other_file_system {
                tree.skip(display_path(found.path), SkipReason::OtherFileSystem)?;
            }
            let item = match found.kind()? {
                Ok(kind) => found.item(kind, &mut attributes)?,
                Err(reason) => return tree.skip(display_path(found.path), reason),
            };
            if !found.is_other_file_system {
                let path = || self.full_path(found.path);
                memory.look(item.stamp.dev, found.dir, found.name, path);
            }
            tree.push(&item)
        })?;
        let mut tree = tree.finish()?;
        let warnings = memory.warning().into_iter().chain(excludes.warnings());
        tree.warnings = warnings.collect();
        let clocks = Clocks::of(tree.items().map(|item| item.stamp));
        tree.doubt = clocks.doubt(begun);
        clocks.wait(go_on)?;
        Ok(tree)
    }

    /// A path in the source with that of the source before it, for messages.
    fn full_path(&self, path: &[u8]) -> String {
        let mut full = self.path.clone();
        if !path.is_empty() {
            full.push(OsStr::from_bytes(path));
        }
        display_path(full.as_os_str().as_bytes())
    }

    /// Opens a file of the tree for reading, without touching its access time where that is allowed, and
    /// checks that it still is what was scanned.
    pub fn open_file(&self, item: &Item) -> Result<OwnedFd> {
        let path = &item.entry.path;
        if !matches!(item.entry.kind, EntryKind::File { .. }) {
            return Err(Error::new(Kind::Internal, "only regular files are opened")
                .object(display_path(path)));
        }
        let opened = beneath::open_to_read(self.root.as_fd(), path);
        let fd = opened.map_err(|error| match error {
            Errno::NXIO => changed("it was replaced", path),
            _ => source_error("a file cannot be opened", path, error),
        })?;
        self.check_stamp(item, fd.as_fd())?;
        beneath::make_blocking(&fd)
            .map_err(|error| source_error("a file cannot be prepared for reading", path, error))?;
        Ok(fd)
    }

    /// Checks that the opened file is unchanged since the scan; to be called after it was read.
    pub fn check_unchanged(&self, item: &Item, fd: BorrowedFd<'_>) -> Result<()> {
        beneath::refresh(fd, b"").map_err(|error| unexamined(&item.entry.path, error))?;
        self.check_stamp(item, fd)
    }

    fn check_stamp(&self, item: &Item, fd: BorrowedFd<'_>) -> Result<()> {
        let path = &item.entry.path;
        let stat = rustix::fs::fstat(fd).map_err(|error| unexamined(path, error))?;
        match item.stamp.difference(&Stamp::of(&stat)) {
            Some(how) => Err(changed(&how, path)),
            None => Ok(()),
        }
    }

    /// Walks the tree again and checks that names, kinds and stamps are those of `tree`, and where stamps do not tell, attributes
    /// and targets of links. To be called at the end: it finds what changed after its turn, and names that came or went.
    pub fn check_tree_unchanged(&self, tree: &Tree) -> Result<()> {
        self.check_tree_while(tree, &|| Ok(()))
    }

    /// Like [`check_tree_unchanged`](Self::check_tree_unchanged), and ends with the error of `go_on`, which is asked before
    /// each directory.
    pub fn check_tree_while(&self, tree: &Tree, go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        let excludes = Excludes::new(&tree.options.exclude, &self.path)?;
        let mut attributes = Attributes::new();
        let mut seen = vec![false; tree.entries().len()];
        let any = beneath::refresh(self.root.as_fd(), b"")
            .and_then(|()| rustix::fs::fstat(&self.root))
            .map_err(|error| source_error("the source cannot be examined", b"", error))?;
        let look = |dir: BorrowedFd<'_>, name: &[u8]| beneath::stat_anew(dir, name, &any);
        self.walk(&excludes, &tree.options, &look, go_on, &mut |found| {
            if found.skip_reason().is_some() {
                return Ok(());
            }
            let at = tree.entries().find(found.path);
            let known = at.and_then(|at| Some((at, tree.item(at)?)));
            let (at, item) = known.ok_or_else(|| changed("it was added", found.path))?;
            seen[at] = true;
            check(tree, &item, &found, &mut attributes)
        })?;
        let gone = seen.iter().position(|seen| !seen);
        match gone.and_then(|at| tree.entries().get(at)) {
            Some(entry) => Err(changed("it was removed", &entry.path)),
            None => Ok(()),
        }
    }

    /// Visits the root and every name below it that is not excluded, each directory before its content. `look` says what a name
    /// is.
    fn walk(
        &self,
        excludes: &Excludes,
        options: &ScanOptions,
        look: Look<'_>,
        go_on: &dyn Fn() -> Result<()>,
        visit: &mut dyn FnMut(Found<'_>) -> Result<()>,
    ) -> Result<()> {
        let root = self.root.as_fd();
        let root_stat = rustix::fs::fstat(root)
            .map_err(|error| source_error("the source cannot be examined", b"", error))?;
        let root_stamp = Stamp::of(&root_stat);
        visit(Found {
            path: b"",
            dir: root,
            name: b".",
            stat: root_stat,
            is_other_file_system: false,
        })?;
        let mut pending = vec![(Vec::new(), root_stamp)];
        while let Some((path, stamp)) = pending.pop() {
            go_on()?;
            let dir = self.open_dir(&path, &stamp)?;
            beneath::list(&dir, |name| {
                self.step(
                    &path,
                    (dir.as_fd(), name.to_bytes()),
                    excludes,
                    look,
                    &mut |found| {
                        let below = Stamp::of(&found.stat);
                        let is_dir = beneath::file_type(&found.stat) == FileType::Directory;
                        found.is_other_file_system =
                            is_dir && options.one_file_system && below.dev != root_stamp.dev;
                        if is_dir && !found.is_other_file_system && found.skip_reason().is_none() {
                            pending.push((found.path.to_vec(), below));
                        }
                        visit(Found { ..*found })
                    },
                )
                .map_err(Stopped::Here)
            })
            .map_err(|stopped| match stopped {
                Stopped::Here(error) => error,
                Stopped::List(errno) => source_error("a directory cannot be listed", &path, errno),
            })?;
        }
        Ok(())
    }

    /// Examines one name of a directory and hands it on, unless it is excluded.
    fn step(
        &self,
        parent: &[u8],
        (dir, name): (BorrowedFd<'_>, &[u8]),
        excludes: &Excludes,
        look: Look<'_>,
        visit: &mut dyn FnMut(&mut Found<'_>) -> Result<()>,
    ) -> Result<()> {
        let path = beneath::join(parent, name);
        if excludes.matches(&path) {
            return Ok(());
        }
        limits::check_name(&path, name)?;
        if path == RESTORE_MARKER.as_bytes() {
            return Err(
                Error::new(Kind::Source, "the source is an unfinished restore")
                    .object(self.path.display().to_string())
                    .hint(
                        "finish the restore (run it again with --delta) or choose another source",
                    ),
            );
        }
        let stat = look(dir, name)
            .map_err(|error| source_error("a name cannot be examined", &path, error))?;
        visit(&mut Found {
            path: &path,
            dir,
            name,
            stat,
            is_other_file_system: false,
        })
    }

    /// Opens a directory for listing and checks that it is the one that was examined.
    fn open_dir(&self, path: &[u8], stamp: &Stamp) -> Result<OwnedFd> {
        let root = self.root.as_fd();
        let opened = match beneath::open(root, path, beneath::DIR_FLAGS | OFlags::NOATIME) {
            Err(Errno::PERM) => beneath::open(root, path, beneath::DIR_FLAGS),
            opened => opened,
        };
        let dir =
            opened.map_err(|error| source_error("a directory cannot be opened", path, error))?;
        let stat = rustix::fs::fstat(&dir)
            .map_err(|error| source_error("a directory cannot be examined", path, error))?;
        if stamp.is_other_inode(&Stamp::of(&stat)) {
            return Err(changed("it was replaced", path));
        }
        Ok(dir)
    }
}

/// How it is found out what a name in a directory is.
type Look<'l> = &'l dyn Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<Stat>;

fn unexamined(path: &[u8], error: Errno) -> Error {
    source_error("a file cannot be examined", path, error)
}

/// Why listing a directory stopped.
enum Stopped {
    List(Errno),
    Here(Error),
}

impl From<Errno> for Stopped {
    fn from(errno: Errno) -> Self {
        Stopped::List(errno)
    }
}

/// A name that a walk came to.
struct Found<'a> {
    path: &'a [u8],
    dir: BorrowedFd<'a>,
    name: &'a [u8],
    stat: Stat,
    /// A directory that is kept without its content.
    is_other_file_system: bool,
}

impl Found<'_> {
    /// Why it is no part of a backup, if it is not.
    fn skip_reason(&self) -> Option<SkipReason> {
        match beneath::file_type(&self.stat) {
            FileType::Socket => Some(SkipReason::Socket),
            FileType::BlockDevice | FileType::CharacterDevice => Some(SkipReason::Device),
            FileType::Unknown => Some(SkipReason::Unknown),
            FileType::Directory if is_staging_name(self.path, PARTIAL_PREFIX.as_bytes()) => {
                Some(SkipReason::PartialRestore)
            }
            _ => None,
        }
    }

    /// What it is to a backup, or why it is none of it.
    #[allow(clippy::unnecessary_cast)]
    fn kind(&self) -> Result<std::result::Result<EntryKind, SkipReason>> {
        if let Some(reason) = self.skip_reason() {
            return Ok(Err(reason));
        }
        Ok(Ok(match beneath::file_type(&self.stat) {
            FileType::Directory => EntryKind::Dir,
            FileType::RegularFile => EntryKind::File {
                bytes: self.stat.st_size as u64,
            },
            FileType::Fifo => EntryKind::Fifo,
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(self.dir, self.name, Vec::new()).map_err(|error| {
                        match error {
                            Errno::INVAL => changed("it was replaced", self.path),
                            _ => source_error("a symbolic link cannot be read", self.path, error),
                        }
                    })?;
                EntryKind::Symlink {
                    target: target.into_bytes(),
                }
            }
            _ => return Ok(Err(SkipReason::Unknown)),
        }))
    }

    fn xattrs(&self, attributes: &mut Attributes) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let read = attributes.read(Node::Named(self.dir, self.name));
        read.map_err(|error| source_error("extended attributes cannot be read", self.path, error))
    }

    fn item(&self, kind: EntryKind, attributes: &mut Attributes) -> Result<Item> {
        let xattrs = self.xattrs(attributes)?;
        let stamp = Stamp::of(&self.stat);
        let entry = Entry {
            path: self.path.to_vec(),
            kind,
            mode: self.stat.st_mode & 0o7777,
            uid: self.stat.st_uid,
            gid: self.stat.st_gid,
            mtime: stamp.mtime,
            xattrs,
        };
        limits::check_entry(&entry)?;
        Ok(Item { entry, stamp })
    }
}

/// Compares a name with what the scan found of it.
fn check(tree: &Tree, item: &Item, found: &Found<'_>, attributes: &mut Attributes) -> Result<()> {
    // Excluded names may come and go, which shows in the stamps of their directories; and what is in a file system that
    // is left out, in the stamp of its root.
    let is_dir = beneath::file_type(&found.stat) == FileType::Directory;
    let is_listing_free =
        is_dir && (found.is_other_file_system || !tree.options.exclude.is_empty());
    let now = Stamp::of(&found.stat);
    let how = match is_listing_free {
        true => item
            .stamp
            .is_other_inode(&now)
            .then(|| "it was replaced".to_owned()),
        false => item.stamp.difference(&now),
    };
    if let Some(how) = how {
        return Err(changed(&how, found.path));
    }
    check_owner(item, &found.stat)?;
    match is_listing_free || tree.doubt.is_about(&item.stamp) {
        true => check_again(item, found, attributes),
        false => Ok(()),
    }
}

/// Compares, where the stamps of a name do not vouch for it, what else the scan read of it. Contents are not among that: they
/// were read when each change showed.
fn check_again(item: &Item, found: &Found<'_>, attributes: &mut Attributes) -> Result<()> {
    let was = &item.entry;
    let is = found.kind()?.ok();
    let is_file = matches!(is, Some(EntryKind::File { .. }));
    let is_further_name = matches!(was.kind, EntryKind::Hardlink { .. });
    if is.as_ref() != Some(&was.kind) && !(is_file && is_further_name) {
        return Err(changed("it was replaced", found.path));
    }
    if is_file && item.stamp.has_other_links(&Stamp::of(&found.stat)) {
        return Err(changed("it got or lost a hard link", found.path));
    }
    // The first name has those of all.
    if !is_further_name && found.xattrs(attributes)? != was.xattrs {
        return Err(changed("its extended attributes changed", found.path));
    }
    Ok(())
}

/// Compares owner and mode.
fn check_owner(item: &Item, now: &Stat) -> Result<()> {
    let entry = &item.entry;
    let owner = (entry.uid, entry.gid, entry.mode);
    match owner == (now.st_uid, now.st_gid, now.st_mode & 0o7777) {
        true => Ok(()),
        false => Err(changed("its metadata changed", &entry.path)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn another_owner_or_mode_is_a_change_whatever_the_stamps_say() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let source = DirSource::open(&format!("dir://{}", dir.path().display())).unwrap();
        let options = ScanOptions::default();
        let scanned = source.scan(&options).unwrap();
        source.check_tree_unchanged(&scanned).unwrap();
        let changes: [fn(&mut Entry); 3] = [
            |entry| entry.uid ^= 1,
            |entry| entry.gid ^= 1,
            |entry| entry.mode ^= 1,
        ];
        for change in changes {
            let mut changed = TreeBuilder::new(&options);
            for mut item in scanned.items() {
                if item.entry.path == b"file" {
                    change(&mut item.entry);
                }
                changed.push(&item).unwrap();
            }
            let tree = changed.finish().unwrap();
            let error = source.check_tree_unchanged(&tree).unwrap_err();
            assert_eq!(error.kind(), Kind::SourceChanged);
            assert!(error.to_string().contains("metadata changed"), "{error}");
        }
    }
}
