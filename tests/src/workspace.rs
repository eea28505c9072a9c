//! The checkout under test: its root, its files and the crates it is made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The root of the checkout.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent()
        .expect("tests/ lies in the checkout")
        .to_path_buf()
}

/// `cargo metadata` of the workspace, without the crates of others.
pub fn metadata() -> Value {
    let text = crate::run::checked(
        Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version",
                "1",
                "--no-deps",
                "--offline",
            ])
            .current_dir(root()),
    );
    serde_json::from_str(&text).expect("cargo metadata prints JSON")
}

/// All Rust files below `dir` (relative to the root), sorted, as (path from the root, text).
pub fn rust_files(dir: &str) -> Vec<(String, String)> {
    files(dir, "rs")
}

/// The pages that people read, as (path from the root, text): the README first.
pub fn pages() -> Vec<(String, String)> {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let mut pages = vec![("README.md".to_owned(), readme)];
    for dir in ["benches", "crates", "docs", "tests", "tuning"] {
        pages.extend(files(dir, "md"));
    }
    pages
}

/// The blocks of a page that are marked as being in `language`.
pub fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    let block = |text: &'a str| text.split("```").next().expect("a block ends");
    page.split(begin.as_str()).skip(1).map(block).collect()
}

fn files(dir: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        let entries =
            fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for entry in entries {
            let path = entry.expect("directory is readable").path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                let name = path
                    .strip_prefix(root())
                    .expect("below the root")
                    .display()
                    .to_string();
                let text = fs::read_to_string(&path).expect("files are UTF-8");
                found.push((name, text));
            }
        }
    }
    found.sort();
    found
}
