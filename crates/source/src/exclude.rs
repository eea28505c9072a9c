//! Which paths of a source are left out.
//!
//! Invariants: patterns match whole relative paths from the root of the source; an excluded directory
//! excludes everything below it. A pattern that also is the literal path always matches that path. A pattern that cannot
//! mean anything in the source is refused, and one that matched nothing is told: either would store what was to be left out.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use mover_base::{Error, Kind, Result};

/// More patterns than this are a mistake: each costs a match for each name.
const PATTERNS_MAX: usize = 1_000;

/// Compiled exclude patterns.
pub(crate) struct Excludes {
    patterns: Vec<Pattern>,
    /// In the same order.
    globs: GlobSet,
}

struct Pattern {
    /// As it was given.
    text: String,
    /// The path that it always matches.
    literal: Vec<u8>,
    /// Whether anything matched it, or may have.
    is_used: Cell<bool>,
}

impl Excludes {
    /// Patterns for the source in the directory `source`.
    pub(crate) fn new(patterns: &[String], source: &Path) -> Result<Excludes> {
        if patterns.len() > PATTERNS_MAX {
            return Err(Error::new(Kind::Usage, "too many exclude patterns")
                .hint(format!("at most {PATTERNS_MAX} are allowed")));
        }
        let mut compiled = Vec::with_capacity(patterns.len());
        let mut globs = GlobSetBuilder::new();
        for pattern in patterns {
            let anchored = anchored(pattern);
            if anchored.is_empty() {
                return Err(wrong(pattern, "it would exclude everything"));
            }
            refuse_path_of(source, pattern)?;
            // `*` stops at `/`, so that `*.log` names files at the top only and `**/*.log` all of them.
            let glob = GlobBuilder::new(anchored)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|e| wrong(pattern, &e.kind().to_string()))?;
            globs.add(glob);
            compiled.push(Pattern {
                text: pattern.clone(),
                literal: anchored.as_bytes().to_vec(),
                is_used: Cell::new(false),
            });
        }
        let globs = globs
            .build()
            .map_err(|e| wrong("(all patterns together)", &e.kind().to_string()))?;
        Ok(Excludes {
            patterns: compiled,
            globs,
        })
    }

    /// Whether `path` itself is excluded. Which patterns say so is noted.
    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let by_glob = self.globs.matches(Path::new(OsStr::from_bytes(path)));
        let is_literal = |pattern: &&Pattern| pattern.literal == path;
        let literal = self.patterns.iter().filter(is_literal);
        let by_glob = by_glob.into_iter().filter_map(|at| self.patterns.get(at));
        let mut is_excluded = false;
        for pattern in by_glob.chain(literal) {
            pattern.is_used.set(true);
            is_excluded = true;
        }
        if is_excluded {
            self.use_below(path);
        }
        is_excluded
    }

    /// Nothing below an excluded directory is looked at, so a pattern that names something there has what it asks for.
    fn use_below(&self, path: &[u8]) {
        for pattern in &self.patterns {
            let below = pattern.literal.strip_prefix(path);
            if below.is_some_and(|below| below.starts_with(b"/")) {
                pattern.is_used.set(true);
            }
        }
    }

    /// A warning for each pattern that matched nothing of what it was asked about. A bare name, which other tools look for
    /// everywhere, is explained.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        let unused = self.patterns.iter().filter(|one| !one.is_used.get());
        unused.map(|Pattern { text, .. }| match text.contains('/') {
            true => format!("the exclude pattern {text} matched nothing"),
            false => format!(
                "the exclude pattern {text} matched nothing at the top of the source; **/{text} matches at any depth"
            ),
        })
    }
}

/// A pattern as a path from the root of the source: shells and people write `./name`, `/name` and `name/` for it.
fn anchored(pattern: &str) -> &str {
    let mut rest = pattern;
    while let Some(shorter) = rest.strip_prefix("./").or_else(|| rest.strip_prefix('/')) {
        rest = shorter;
    }
    match rest.trim_end_matches('/') {
        "." => "",
        rest => rest,
    }
}

/// Refuses a pattern that begins with the path of the source: relative to that it would match nothing, and what it was to
/// leave out would be stored.
fn refuse_path_of(source: &Path, pattern: &str) -> Result<()> {
    // From the root of the machine both are the same.
    if !pattern.starts_with('/') || source.parent().is_none() {
        return Ok(());
    }
    let Ok(below) = Path::new(pattern).strip_prefix(source) else {
        return Ok(());
    };
    let hint = match below.as_os_str().is_empty() {
        true => "it would exclude everything; leave it out".to_owned(),
        false => format!("write it relative to the source: `{}`", below.display()),
    };
    Err(Error::new(
        Kind::Usage,
        "an exclude pattern begins with the path of the source",
    )
    .object(pattern)
    .hint(hint))
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
        Excludes::new(&patterns, Path::new("/srv/x")).unwrap()
    }

    fn refusal(pattern: &str, source: &str) -> Option<Error> {
        Excludes::new(&[pattern.to_owned()], Path::new(source)).err()
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
        for bad in ["", "/", ".", "./", "/./", "a[", "{a"] {
            let error = refusal(bad, "/srv/x").unwrap();
            assert_eq!(error.kind(), Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn a_leading_dot_or_slash_is_no_part_of_a_path() {
        let some = excludes(&["./a", "/./b/", ".//c", ".hidden"]);
        for out in [&b"a"[..], b"b", b"c", b".hidden"] {
            assert!(some.matches(out));
        }
        assert!(!some.matches(b"hidden") && !some.matches(b"x/a"));
    }

    #[test]
    fn a_pattern_with_the_path_of_the_source_is_refused_with_the_right_one() {
        for (pattern, source) in [
            ("/srv/x/secret", "/srv/x"),
            ("/srv//x/./secret/", "/srv/x/"),
            ("/srv/[x]/secret", "/srv/[x]"),
        ] {
            let error = refusal(pattern, source).unwrap();
            assert_eq!(error.kind(), Kind::Usage);
            assert_eq!(error.object_name(), Some(pattern));
            assert!(error.hint_text().unwrap().contains("`secret`"), "{pattern}");
        }
        let whole = refusal("/srv/x", "/srv/x").unwrap();
        assert!(whole.hint_text().unwrap().contains("everything"));
        for (pattern, source) in [
            ("/srv/xy", "/srv/x"),
            ("srv/x/secret", "/srv/x"),
            ("/secret", "/srv/x"),
            ("/srv/x/secret", "/"),
        ] {
            assert!(refusal(pattern, source).is_none(), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_matched_nothing_is_told_and_no_other() {
        let some = excludes(&["a", "a/b", "t*", "./none", "[x]", "*.log"]);
        let told = || some.warnings().collect::<Vec<_>>();
        assert_eq!(told().len(), 6);
        assert!(some.matches(b"a") && some.matches(b"tmp") && some.matches(b"[x]"));
        assert!(!some.matches(b"c"));
        // What is below `a` was not looked at.
        let expected = [
            "the exclude pattern ./none matched nothing",
            "the exclude pattern *.log matched nothing at the top of the source; **/*.log matches at any depth",
        ];
        assert_eq!(told(), expected);
    }
}
