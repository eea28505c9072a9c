//! Which paths of a source are left out.
//!
//! Invariants: patterns match whole relative paths from the root of the source; an excluded directory
//! excludes everything below it. A pattern that also is the literal path always matches that path.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use mover_base::{Error, Kind, Result};

/// More patterns than this are a mistake: each costs a match for each name.
const PATTERNS_MAX: usize = 1_000;

/// Compiled exclude patterns.
pub(crate) struct Excludes {
    literal: Vec<Vec<u8>>,
    globs: GlobSet,
}

impl Excludes {
    pub(crate) fn new(patterns: &[String]) -> Result<Excludes> {
        if patterns.len() > PATTERNS_MAX {
            return Err(Error::new(Kind::Usage, "too many exclude patterns")
                .hint(format!("at most {PATTERNS_MAX} are allowed")));
        }
        let mut literal = Vec::new();
        let mut globs = GlobSetBuilder::new();
        for pattern in patterns {
            let anchored = pattern.trim_start_matches('/').trim_end_matches('/');
            if anchored.is_empty() {
                return Err(wrong(pattern, "it would exclude everything"));
            }
            // `*` stops at `/`, so that `*.log` names files at the top only and `**/*.log` all of them.
            let glob = GlobBuilder::new(anchored)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|e| wrong(pattern, &e.kind().to_string()))?;
            globs.add(glob);
            literal.push(anchored.as_bytes().to_vec());
        }
        let globs = globs
            .build()
            .map_err(|e| wrong("(all patterns together)", &e.kind().to_string()))?;
        Ok(Excludes { literal, globs })
    }

    /// Whether `path` itself is excluded.
    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        !self.literal.is_empty()
            && (self.literal.iter().any(|literal| literal == path)
                || self.globs.is_match(Path::new(OsStr::from_bytes(path))))
    }
}

fn wrong(pattern: &str, why: &str) -> Error {
    Error::new(Kind::Usage, format!("not a usable exclude pattern ({why})"))
        .object(pattern)
        .hint("write a path relative to the source, such as `pg_wal`, `tmp/*` or `**/*.log`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(patterns: &[&str]) -> Excludes {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).into()).collect();
        Excludes::new(&patterns).unwrap()
    }

    #[test]
    fn patterns_are_anchored_at_the_root() {
        let some = excludes(&["LOCK", "/log/", "tmp/*", "**/*.swp"]);
        for out in [&b"LOCK"[..], b"log", b"tmp/a", b"a.swp", b"x/y/a.swp"] {
            assert!(some.matches(out));
        }
        for kept in [
            &b"x/LOCK"[..],
            b"tmp",
            b"tmp/a/b",
            b"swp",
            b"logs",
            b"x/log",
        ] {
            assert!(!some.matches(kept));
        }
        assert!(!excludes(&[]).matches(b"LOCK"));
    }

    #[test]
    fn a_literal_path_with_glob_characters_matches_itself() {
        assert!(excludes(&["a[1]"]).matches(b"a[1]"));
        assert!(excludes(&["t*"]).matches(&[b't', 0xff]));
    }

    #[test]
    fn unusable_patterns_are_usage_errors() {
        for bad in ["", "/", "a[", "{a"] {
            let error = Excludes::new(&[bad.to_string()]).err().unwrap();
            assert_eq!(error.kind(), Kind::Usage, "{bad}");
        }
    }
}
