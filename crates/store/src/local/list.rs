//! Listing: a walk of the directories in the order of whole keys.
//!
//! Invariants:
//! - Objects come in byte order of their keys. Inside one directory that is the order of names with a `/`
//!   behind those of directories, because `-` and `.` sort before `/`.
//! - Memory is bounded by the page: of each directory at most one page's worth of entries is held, the
//!   smallest not yet walked; a larger directory is read again from there.
//! - An error is never "nothing there": what cannot be read, or has an object's name and is none, ends the
//!   listing with an error. Only what another process deleted meanwhile is passed over.
//! - A name that no object can have hides no object: it is passed over, and told as a stray, unless the file system gave it to a
//!   file that is gone.

use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};

use mover_base::{Error, Kind, Result};
use mover_io::Shard;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::errno::explain;
use super::is_removed_while_open;
use super::root::{Root, resolve, unexpected};
use crate::key::{self, KEY_PARTS_MAX, Key, LOST_AND_FOUND, TEMPORARY_PART};
use crate::{LIST_LIMIT_MAX, ObjectInfo, Page, STRAYS_MAX};

/// Objects examined between two turns of the shard, about half a millisecond of work.
const STATS_PER_TURN: usize = 128;

/// One entry still to be walked.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Its whole key as bytes; a directory's ends in `/`. First, because the order is by it alone.
    path: Vec<u8>,
    is_directory: bool,
}

/// What a walk found.
#[derive(Default)]
struct Found {
    objects: Vec<ObjectInfo>,
    /// Paths that no object can have, in order, [`STRAYS_MAX`] at most.
    strays: Vec<Vec<u8>>,
}

/// One directory on the way down.
struct Level {
    /// Path from the root: empty, or ending in `/`.
    path: String,
    directory: OwnedFd,
    /// Entries to walk, the smallest last.
    pending: Vec<Entry>,
    /// The largest entry taken from `pending` so far.
    walked: Option<Vec<u8>>,
    /// Whether entries beyond those in `pending` were left unread.
    more: bool,
}

/// Which keys are wanted.
struct Want<'a> {
    prefix: &'a [u8],
    after: Option<&'a [u8]>,
    /// Entries held per directory.
    hold_max: usize,
}

impl Want<'_> {
    fn object(&self, path: &[u8]) -> bool {
        path.starts_with(self.prefix) && self.after.is_none_or(|after| path > after)
    }

    /// Whether wanted keys may lie below the directory `path`, which ends in `/`.
    fn directory(&self, path: &[u8]) -> bool {
        let in_prefix = path.starts_with(self.prefix) || self.prefix.starts_with(path);
        in_prefix
            && self
                .after
                .is_none_or(|after| path > after || after.starts_with(path))
    }
}

pub(super) async fn list(
    root: &Root,
    shard: &Shard,
    prefix: &str,
    after: Option<&Key>,
    limit: usize,
) -> Result<Page> {
    key::check_prefix(prefix)?;
    if limit == 0 {
        return Err(
            Error::new(Kind::Internal, "a listing of no objects was asked for").object(prefix),
        );
    }
    let limit = limit.min(LIST_LIMIT_MAX);
    let want = Want {
        prefix: prefix.as_bytes(),
        after: after.map(|key| key.as_str().as_bytes()),
        hold_max: limit + 1,
    };
    root.check_linked()?;
    let start = prefix.rfind('/').map_or("", |slash| &prefix[..slash]);
    let mut found = Found::default();
    if let Some(directory) = root.open_directory(start)? {
        let path = if start.is_empty() {
            String::new()
        } else {
            format!("{start}/")
        };
        walk(shard, &want, Level::new(path, directory), &mut found).await?;
    }
    root.check_linked()?;
    let Found {
        mut objects,
        mut strays,
    } = found;
    let mut next = None;
    if objects.len() > limit {
        objects.truncate(limit);
        next = objects.last().map(|object: &ObjectInfo| object.key.clone());
    }
    if let Some(next) = &next {
        // Those behind the page come up again on the next one.
        strays.retain(|stray| stray.as_slice() < next.as_str().as_bytes());
    }
    Ok(Page {
        objects,
        strays: strays.iter().map(|stray| shown(stray)).collect(),
        next,
    })
}

/// Walks depth first from `start` until the page and one more object are found.
async fn walk(shard: &Shard, want: &Want<'_>, start: Level, found: &mut Found) -> Result<()> {
    let mut levels = vec![start];
    while let Some(level) = levels.last_mut() {
        if level.pending.is_empty() && level.more {
            level.fill(want)?;
            shard.turn().await;
        }
        let Some(entry) = level.pending.pop() else {
            levels.pop();
            continue;
        };
        level.walked = Some(entry.path.clone());
        let Some(key) = key_of(&entry) else {
            if found.strays.len() < STRAYS_MAX {
                found.strays.push(entry.path);
            }
            continue;
        };
        if entry.is_directory {
            if let Some(below) = level.enter(&key)? {
                levels.push(below);
            }
        } else if let Some(object) = level.examine(key)? {
            found.objects.push(object);
            if found.objects.len() == want.hold_max {
                return Ok(());
            }
            if found.objects.len().is_multiple_of(STATS_PER_TURN) {
                shard.turn().await;
            }
        }
    }
    Ok(())
}

impl Level {
    fn new(path: String, directory: OwnedFd) -> Level {
        Level {
            path,
            directory,
            pending: Vec::new(),
            walked: None,
            more: true,
        }
    }

    /// Reads the directory and holds the smallest wanted entries that were not walked yet.
    fn fill(&mut self, want: &Want<'_>) -> Result<()> {
        let told =
            |errno: Errno, path: &str| explain(errno, "read a directory of the repository", path);
        let mut held: BinaryHeap<Entry> = BinaryHeap::new();
        self.more = false;
        let reader = Dir::read_from(&self.directory).map_err(|errno| told(errno, &self.path))?;
        for entry in reader {
            let entry = entry.map_err(|errno| told(errno, &self.path))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." || self.is_ignored(name) {
                continue;
            }
            let Some(kind) = self.kind(entry.file_type(), name)? else {
                continue;
            };
            let is_directory = kind == FileType::Directory;
            let mut path = [self.path.as_bytes(), name].concat();
            if is_directory {
                path.push(b'/');
            }
            let wanted = if is_directory {
                want.directory(&path)
            } else {
                want.object(&path)
            };
            if !wanted || self.walked.as_ref().is_some_and(|walked| path <= *walked) {
                continue;
            }
            let entry = Entry { path, is_directory };
            if !is_directory && kind != FileType::RegularFile && key_of(&entry).is_some() {
                return Err(unexpected(kind, &shown(&entry.path)));
            }
            held.push(entry);
            if held.len() > want.hold_max {
                held.pop();
                self.more = true;
            }
        }
        self.pending = held.into_sorted_vec();
        self.pending.reverse();
        Ok(())
    }

    /// Whether `name` belongs to the root of a repository without being an object, or to the file system.
    fn is_ignored(&self, name: &[u8]) -> bool {
        let is_of_root = self.path.is_empty()
            && (name == TEMPORARY_PART.as_bytes() || name == LOST_AND_FOUND.as_bytes());
        is_of_root || is_removed_while_open(name)
    }

    /// The type of an entry, asked for where the directory does not tell; `None` where it is gone.
    fn kind(&self, told: FileType, name: &[u8]) -> Result<Option<FileType>> {
        if told != FileType::Unknown {
            return Ok(Some(told));
        }
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(explain(
                errno,
                "examine an object",
                &name.escape_ascii().to_string(),
            )),
        }
    }

    /// Opens the directory `key` below; `None` where it is gone.
    fn enter(&self, key: &Key) -> Result<Option<Level>> {
        let path = format!("{key}/");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match resolve(self.directory.as_fd(), key.name(), flags, Mode::empty()) {
            Ok(directory) => Ok(Some(Level::new(path, directory))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(explain(errno, "open a directory of the repository", &path)),
        }
    }

    /// The object's size; `None` where it is gone.
    fn examine(&self, key: Key) -> Result<Option<ObjectInfo>> {
        let path = key.as_str();
        let stat = match rustix::fs::statat(&self.directory, key.name(), AtFlags::SYMLINK_NOFOLLOW)
        {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(explain(errno, "examine an object", path)),
        };
        match super::root::object_bytes(&stat, path)? {
            Some(bytes) => Ok(Some(ObjectInfo { key, bytes })),
            None => Err(Error::new(
                Kind::Storage,
                "an object became a directory while it was listed",
            )
            .object(path)),
        }
    }
}

/// The name of an entry as a key; none where neither an object nor a directory of objects can have it.
fn key_of(entry: &Entry) -> Option<Key> {
    let path = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
    let key = Key::new(std::str::from_utf8(path).ok()?).ok()?;
    // A directory at the greatest depth could hold no object.
    let is_too_deep = entry.is_directory && key.as_str().split('/').count() >= KEY_PARTS_MAX;
    (!is_too_deep).then_some(key)
}

/// A path for messages.
fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}
