//! Layering and style as tests: which crate may import which, where `unsafe` and threads may stand, and what
//! every file begins with.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::BTreeMap;

use mover_tests::source_text::{code_only, has_word};
use mover_tests::workspace;

/// What each crate may import of the workspace; a crate that is not listed fails the test. The crates that come
/// later (daemon) are listed already.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("mover-base", &[]),
    ("mover-io", &["mover-base"]),
    ("mover-format", &["mover-base"]),
    ("mover-source", &["mover-base", "mover-io"]),
    ("mover-store", &["mover-base", "mover-io"]),
    (
        "mover-repo",
        &["mover-base", "mover-io", "mover-format", "mover-store"],
    ),
    (
        "mover-jobs",
        &["mover-base", "mover-io", "mover-source", "mover-repo"],
    ),
    ("mover-daemon", &["mover-base", "mover-jobs"]),
    ("mover-client", &["mover-base", "mover-source"]),
    // The reference database is what `demo` backs up.
    (
        "helios-mover",
        &[
            "mover-base",
            "mover-io",
            "mover-jobs",
            "mover-daemon",
            "mover-pagedb",
        ],
    ),
    ("mover-tests", &["mover-test-servers"]),
    ("mover-test-servers", &[]),
    // It stands on the page store and the log, whose model it holds beside them.
    (
        "mover-pagedb",
        &["mover-base", "mover-io", "mover-source", "mover-client"],
    ),
    (
        "mover-benches",
        &[
            "mover-base",
            "mover-io",
            "mover-format",
            "mover-store",
            "mover-jobs",
            "mover-source",
            "mover-client",
            "mover-pagedb",
            "mover-test-servers",
        ],
    ),
];

/// What the tests of a crate may import besides.
const ALLOWED_IN_TESTS: [(&str, &str); 2] = [
    ("mover-store", "mover-test-servers"),
    ("mover-jobs", "mover-pagedb"),
];

/// Directories with Rust code.
const CODE: [&str; 3] = ["crates", "tests", "benches"];

/// Lines that a file may have before its unit tests.
const LINES_MAX: usize = 1000;

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    let metadata = workspace::metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    let members: Vec<&str> = packages
        .iter()
        .map(|package| package["name"].as_str().expect("name"))
        .collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().expect("name");
        let Some(may) = allowed.get(name) else {
            wrong.push(format!("{name} has no place in the architecture"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let on = dependency["name"].as_str().expect("name");
            let in_tests = dependency["kind"] == "dev" && ALLOWED_IN_TESTS.contains(&(name, on));
            if members.contains(&on) && !may.contains(&on) && !in_tests {
                wrong.push(format!("{name} may not import {on}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_stands_in_the_io_crate_only() {
    let mut wrong = Vec::new();
    for (path, text) in all_files() {
        if path.starts_with("crates/io/") {
            continue;
        }
        let code = code_only(&text);
        if has_word(&code, "unsafe") {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "unsafe outside crates/io: {wrong:#?}");
}

#[test]
fn unsafe_blocks_give_their_reason() {
    let mut wrong = Vec::new();
    for (path, text) in workspace::rust_files("crates/io") {
        let code = code_only(&text);
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in code.lines().enumerate() {
            let block =
                has_word(line, "unsafe") && !line.contains("unsafe fn") && !line.contains("allow(");
            // The reason stands in the comment above, perhaps above the statement that the block is part of.
            let reason = lines[i.saturating_sub(8)..=i]
                .iter()
                .any(|line| line.contains("SAFETY:"));
            if block && !reason {
                wrong.push(format!("{path}:{}", i + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe without SAFETY: {wrong:#?}");
}

#[test]
fn threads_are_started_by_the_io_crate_only() {
    // The reference database has clients, each on a thread of its own.
    let may = ["crates/io/", "crates/pagedb/"];
    let mut wrong = Vec::new();
    for (path, text) in workspace::rust_files("crates") {
        let code = code_only(without_unit_tests(&text));
        let starts = [
            "thread::spawn",
            "thread::scope",
            "thread::Builder",
            "spawn_blocking",
            "rayon",
        ];
        if !may.iter().any(|may| path.starts_with(may))
            && !path.contains("/tests/")
            && starts.iter().any(|word| code.contains(word))
        {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "threads outside crates/io: {wrong:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    let bare = |(path, text): (String, String)| (!text.starts_with("//! ")).then_some(path);
    let wrong: Vec<String> = all_files().into_iter().filter_map(bare).collect();
    assert!(wrong.is_empty(), "files without a //! header: {wrong:#?}");
}

#[test]
fn files_stay_readable_in_length() {
    let long = |(path, text): (String, String)| {
        let lines = without_unit_tests(&text).lines().count();
        (lines > LINES_MAX).then(|| format!("{path}: {lines} lines"))
    };
    let wrong: Vec<String> = all_files().into_iter().filter_map(long).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_left_for_later() {
    let mut wrong = Vec::new();
    for (path, text) in all_files() {
        let code = code_only(&text);
        for word in ["todo!", "unimplemented!", "dbg!", "#[ignore"] {
            if code.contains(word) {
                wrong.push(format!("{path}: {word}"));
            }
        }
        // In comments and messages too; put together here, or this file would find itself.
        for word in [
            concat!("TO", "DO"),
            concat!("FIX", "ME"),
            concat!("XX", "X"),
            concat!("Place", "holder"),
        ] {
            if has_word(&text, word) {
                wrong.push(format!("{path}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn all_files() -> Vec<(String, String)> {
    CODE.iter()
        .flat_map(|dir| workspace::rust_files(dir))
        .collect()
}

/// The part of a file before its unit tests.
fn without_unit_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text)
}
