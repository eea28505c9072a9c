//! Whether a directory that is to be restored over looks as if it were another one than the backup is of.
//!
//! Invariant: a target that has one name at its top that the backup has too is not foreign, nor is an empty one. This is
//! for the operator who mistypes a path; it is looked at by that path and guards nothing else.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use mover_base::entries::EntryList;
use mover_base::tree::display_path;
use mover_base::{Error, Kind, Result};
use mover_source::{PARTIAL_PREFIX, RESTORE_MARKER};

/// How many of the names are told.
const NAMED_MAX: usize = 5;

/// The first names at the top of `target`, in order, if none of those there is `wanted`.
pub(super) fn foreign_names(target: &Path, wanted: &EntryList) -> Result<Vec<String>> {
    let failed = |error| {
        Error::new(Kind::Target, "the target cannot be listed")
            .object(target.display().to_string())
            .cause(error)
    };
    let mut first = BTreeSet::new();
    for entry in std::fs::read_dir(target).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.as_bytes();
        if wanted.find(name).is_some() {
            return Ok(Vec::new());
        }
        // What restores themselves leave, and what every file system of that kind has, is nobody's data.
        let is_nobodys = name == RESTORE_MARKER.as_bytes()
            || name == b"lost+found"
            || name.starts_with(PARTIAL_PREFIX.as_bytes());
        if is_nobodys {
            continue;
        }
        first.insert(name.to_vec());
        if first.len() > NAMED_MAX {
            first.pop_last();
        }
    }
    Ok(first.iter().map(|name| display_path(name)).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mover_base::tree::{Entry, EntryKind, FileTime};

    use super::*;

    #[test]
    fn a_target_is_foreign_if_it_has_names_and_none_of_the_backup() {
        let dir = tempfile::tempdir().unwrap();
        let mut wanted = EntryList::default();
        for path in ["", "data", "data/etc"] {
            let entry = Entry {
                path: path.into(),
                kind: EntryKind::Dir,
                mode: 0o700,
                uid: 0,
                gid: 0,
                mtime: FileTime::default(),
                xattrs: Vec::new(),
            };
            wanted.push(&entry).unwrap();
        }
        let found = || foreign_names(dir.path(), &wanted).unwrap();
        let make = |name: &str| fs::create_dir(dir.path().join(name)).unwrap();
        assert!(found().is_empty(), "it is empty");
        make(RESTORE_MARKER);
        make("lost+found");
        assert!(found().is_empty(), "nobody's names");
        for name in ["var", "usr", "etc", "home", "bin", "srv", "opt"] {
            make(name);
        }
        assert_eq!(found(), ["bin", "etc", "home", "opt", "srv"]);
        make("data");
        assert!(found().is_empty(), "one name is the backup's");
    }
}
