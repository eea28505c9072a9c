//! Names of objects.
//!
//! Invariants: a [`Key`] is one to [`KEY_PARTS_MAX`] parts joined by `/`, each part made of `[a-z0-9._-]`
//! and not beginning with a dot, [`KEY_BYTES_MAX`] bytes at most. So no key climbs out of the repository,
//! hides, needs escaping in a URL, or folds with another on a file system that ignores case. The first part
//! is never [`TEMPORARY_PART`]: that name belongs to unfinished uploads.

use std::fmt;

use mover_base::{Error, Kind, Result};

/// Longest key in bytes. S3 allows 1024; half of it leaves room for a bucket prefix.
pub(crate) const KEY_BYTES_MAX: usize = 512;
/// Longest part in bytes. File systems allow 255; 200 leaves room for suffixes they may add.
pub(crate) const KEY_PART_BYTES_MAX: usize = 200;
/// Most parts of a key: bounds the directories (and descriptors) a listing has open at once.
pub(crate) const KEY_PARTS_MAX: usize = 8;
/// First part that no key may have.
pub const TEMPORARY_PART: &str = "tmp";
/// Every ext file system has this directory at its root, which a repository may be.
pub const LOST_AND_FOUND: &str = "lost+found";

/// The name of an object: `/`-separated safe parts, ordered by bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where `text` is not a key: names of objects come from the mover itself or from
    /// stored data, so a bad one means that the data is damaged or forged.
    pub fn new(text: &str) -> Result<Key> {
        match check(text) {
            Ok(()) => Ok(Key(text.to_owned())),
            Err(reason) => Err(not_a_key(reason, text)),
        }
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// All parts but the last, without a trailing slash; empty for a key of one part.
    pub(crate) fn parent(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    /// The last part.
    pub(crate) fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Checks a prefix of keys: whole safe parts, then a possibly empty beginning of one.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    let (parts, beginning) = match prefix.rsplit_once('/') {
        Some((parts, beginning)) => (Some(parts), beginning),
        None => (None, prefix),
    };
    let checked = parts.map_or(Ok(()), check).and_then(|()| {
        if beginning.is_empty() {
            return Ok(());
        }
        check_part(beginning)
    });
    checked.map_err(|reason| not_a_key(reason, prefix))
}

fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > KEY_BYTES_MAX {
        return Err("too long");
    }
    for (index, part) in text.split('/').enumerate() {
        check_part(part)?;
        if index == 0 && part == TEMPORARY_PART {
            return Err("its first part is reserved for unfinished uploads");
        }
        if index >= KEY_PARTS_MAX {
            return Err("too many parts");
        }
    }
    Ok(())
}

fn check_part(part: &str) -> Result<(), &'static str> {
    let safe = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if part.is_empty() {
        return Err("a part is empty");
    }
    if part.len() > KEY_PART_BYTES_MAX {
        return Err("a part is too long");
    }
    if part.starts_with('.') {
        return Err("a part begins with a dot");
    }
    if !part.bytes().all(safe) {
        return Err("only a-z, 0-9, '.', '_', '-' and '/' are allowed");
    }
    Ok(())
}

fn not_a_key(reason: &str, text: &str) -> Error {
    // A forged name may be long and may hold control characters: shown escaped and cut.
    let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    Error::new(
        Kind::Corrupt,
        format!("not the name of an object ({reason})"),
    )
    .object(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_names_are_keys() {
        let longest = "p".repeat(KEY_PART_BYTES_MAX);
        for text in [
            "a",
            "0",
            "packs/ab/abcd.pack",
            "a/b/c/d/e/f/g/h",
            "a-_.b",
            "x/tmp",
            "tmp2",
            "-",
            &longest,
        ] {
            assert_eq!(Key::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn unsafe_names_are_refused() {
        let long_part = "p".repeat(KEY_PART_BYTES_MAX + 1);
        let long_key = ["k".repeat(199).as_str(); 3].join("/");
        for text in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "../a",
            "a/.",
            ".hidden",
            "a/.hidden",
            "A",
            "a b",
            "a\0",
            "a\n",
            "ä",
            "a\\b",
            "a:b",
            "a+b",
            "a%2e",
            "tmp",
            "tmp/a",
            "a/b/c/d/e/f/g/h/i",
            &long_part,
            &long_key,
        ] {
            let error = Key::new(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{text:?}");
        }
    }

    #[test]
    fn a_prefix_may_end_inside_a_part() {
        for prefix in ["", "a", "a/", "packs/a", "packs/ab/", "tm", "x/tmp/"] {
            check_prefix(prefix).unwrap();
        }
        for prefix in [
            "/", "..", "../", "a//", "a/.", "A", "tmp/", "tmp/a", ".", "a/../",
        ] {
            check_prefix(prefix).unwrap_err();
        }
    }

    #[test]
    fn parent_and_name_split_at_the_last_slash() {
        let key = Key::new("a/b/c").unwrap();
        assert_eq!((key.parent(), key.name()), ("a/b", "c"));
        let key = Key::new("c").unwrap();
        assert_eq!((key.parent(), key.name()), ("", "c"));
    }

    #[test]
    fn a_refused_name_is_shown_escaped_and_cut() {
        let error = Key::new(&"\u{1b}[2J".repeat(100)).unwrap_err();
        let shown = error.object_name().unwrap();
        assert!(shown.is_ascii() && !shown.contains('\u{1b}') && shown.len() < 1000);
    }
}
