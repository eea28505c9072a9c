//! What a backup holds of one name, checked when the name is found and not hours later, when the backup is to be committed.

use mover_base::tree::{Entry, EntryKind, PATH_BYTES_MAX, display_path};
use mover_base::{Error, Kind, Result};

/// Most attributes of one name.
const XATTRS_MAX: usize = 1024;

/// Longest component of a path, which [`mover_base::tree::is_safe_path`] states. Some file systems (vfat, NTFS, FUSE) have
/// longer ones.
const NAME_BYTES_MAX: usize = 255;

/// What an entry may take as it is stored. A repository keeps it in one node of 1 MiB (`ENTRY_BYTES_MAX` of the format,
/// which this crate does not know); 1 KiB of that is more than its numbers and the root of its file's map ever take.
const ENTRY_BYTES_MAX: usize = (1 << 20) - (1 << 10);

/// Most bytes that the length of a name or value takes before it.
const LENGTH_BYTES_MAX: usize = 3;

/// Checks the path of a name, and the last component of it.
///
/// Errors: `Limit` if either is too long.
pub(crate) fn check_name(path: &[u8], name: &[u8]) -> Result<()> {
    let (what, bytes_max) = match () {
        () if path.len() > PATH_BYTES_MAX => ("a path is too long", PATH_BYTES_MAX),
        () if name.len() > NAME_BYTES_MAX => ("a name is too long", NAME_BYTES_MAX),
        () => return Ok(()),
    };
    let hint = match bytes_max {
        PATH_BYTES_MAX => format!("at most {bytes_max} bytes below the source; exclude it"),
        _ => format!("at most {bytes_max} bytes; rename it, or exclude it"),
    };
    Err(Error::new(Kind::Limit, what)
        .object(display_path(path))
        .hint(hint))
}

/// Checks everything else that is kept of a name.
///
/// Errors: `Limit` if its extended attributes are too many or take too much.
pub(crate) fn check_entry(entry: &Entry) -> Result<()> {
    let found = entry.xattrs.len();
    let bytes = stored_bytes(entry);
    let what = if found > XATTRS_MAX {
        format!("a name has {found} extended attributes, more than {XATTRS_MAX}")
    } else if bytes > ENTRY_BYTES_MAX {
        format!(
            "a name takes {bytes} bytes with its extended attributes, more than {ENTRY_BYTES_MAX}"
        )
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Limit, what)
        .object(entry.display_path())
        .hint("remove those that nothing needs (setfattr -x), or exclude it"))
}

/// What an entry takes as it is stored, without what is of fixed size.
fn stored_bytes(entry: &Entry) -> usize {
    let target = match &entry.kind {
        EntryKind::Symlink { target } => target.len(),
        EntryKind::Hardlink { first } => first.len(),
        EntryKind::Dir | EntryKind::File { .. } | EntryKind::Fifo => 0,
    };
    let pairs = entry.xattrs.iter();
    let xattrs = pairs.map(|(name, value)| name.len() + value.len() + 2 * LENGTH_BYTES_MAX);
    entry.path.len() + target + xattrs.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(xattrs: usize, value_bytes: usize) -> Entry {
        let pair = |number: usize| {
            let name = format!("user.{number:04}").into_bytes();
            (name, vec![0; value_bytes])
        };
        Entry {
            path: b"d/f".to_vec(),
            kind: EntryKind::File { bytes: u64::MAX },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: Default::default(),
            xattrs: (0..xattrs).map(pair).collect(),
        }
    }

    #[test]
    fn attributes_that_no_entry_page_holds_are_refused_by_name() {
        for (xattrs, value_bytes) in [(0, 0), (1024, 0), (15, 65_536), (1024, 1_000)] {
            check_entry(&entry(xattrs, value_bytes)).unwrap();
        }
        for (xattrs, value_bytes, told) in [
            (1025, 0, "1025 extended attributes"),
            (17, 65_536, "more than 1047552"),
            (1024, 1_024, "more than 1047552"),
        ] {
            let error = check_entry(&entry(xattrs, value_bytes)).unwrap_err();
            assert_eq!(error.kind(), Kind::Limit);
            assert_eq!(error.object_name(), Some("d/f"));
            assert!(error.to_string().contains(told), "{error}");
            assert!(error.hint_text().unwrap().contains("exclude"));
        }
    }

    #[test]
    fn names_that_no_entry_has_are_refused() {
        let long = [b'n'; 256];
        check_name(&long[..255], &long[..255]).unwrap();
        let error = check_name(&long, &long).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit);
        assert!(error.hint_text().unwrap().contains("255"));
        let deep = b"d/".repeat(2_048);
        let error = check_name(&deep, b"d").unwrap_err();
        assert!(error.hint_text().unwrap().contains("4095"));
    }
}
