//! Entries of a file tree, as a source lists them, a repository stores them and a target makes them.
//!
//! Invariants: paths are relative, `/`-separated raw bytes without empty, `.` or `..` components and without
//! NUL ([`is_safe_path`]); the root of the tree is the empty path. Everyone who decodes an entry from outside
//! checks that first.

/// Longest path, in bytes, that an entry may have (PATH_MAX of Linux, less the NUL).
pub const PATH_BYTES_MAX: usize = 4095;

/// Seconds and nanoseconds since 1970, as file systems keep them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FileTime {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file of `bytes` bytes.
    File {
        /// Size in bytes.
        bytes: u64,
    },
    /// A symbolic link; the target is kept as it is and never followed.
    Symlink {
        /// Where it points, raw bytes.
        target: Vec<u8>,
    },
    /// Another name of the regular file `first`, which precedes this entry in path order.
    Hardlink {
        /// Path of the entry that holds the content.
        first: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
}

/// One name in a tree, with what a restore puts back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Relative path; empty for the root directory.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky (0o7777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification of the content.
    pub mtime: FileTime,
    /// Extended attributes (name, value), sorted by name; ACLs are among them.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The path for messages; bytes that are not UTF-8 are replaced.
    pub fn display_path(&self) -> String {
        display_path(&self.path)
    }

    /// Size of the content: the file's bytes, 0 for everything else.
    pub fn content_bytes(&self) -> u64 {
        match self.kind {
            EntryKind::File { bytes } => bytes,
            _ => 0,
        }
    }
}

/// A path for messages; bytes that are not UTF-8 are replaced, control characters escaped.
pub fn display_path(path: &[u8]) -> String {
    if path.is_empty() {
        return ".".into();
    }
    String::from_utf8_lossy(path)
        .chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// Whether `path` stays below the root it is joined to.
pub fn is_safe_path(path: &[u8]) -> bool {
    path.is_empty()
        || (path.len() <= PATH_BYTES_MAX
            && !path.contains(&0)
            && path
                .split(|b| *b == b'/')
                .all(|part| !part.is_empty() && part != b"." && part != b".." && part.len() <= 255))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_root_are_unsafe() {
        for bad in [
            &b"/etc"[..],
            b"..",
            b"a/../b",
            b"a//b",
            b"a/",
            b"./a",
            b"a\0b",
            &[b'a'; 256],
        ] {
            assert!(!is_safe_path(bad), "{}", display_path(bad));
        }
        for good in [
            &b""[..],
            b"a",
            b"a/b",
            b"...",
            b"a b",
            "ü".as_bytes(),
            &[0xff],
            &[b'a'; 255],
        ] {
            assert!(is_safe_path(good), "{}", display_path(good));
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(display_path(b"a\x1b[31m"), "a\\u{1b}[31m");
        assert_eq!(display_path(b""), ".");
    }
}
