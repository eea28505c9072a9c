//! Every decoder of stored bytes is fuzzed, and every fuzz target is one that `fuzz/run` and `tests/run` find.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use mover_tests::source_text::code_only;
use mover_tests::workspace;

/// Where the formats are: of repositories, and of page stores with their log and their tracker.
const FORMATS: [&str; 2] = ["crates/format/src", "crates/source/src"];

/// What functions are called that make sense of stored bytes.
const DECODERS: [&str; 3] = ["decode", "decode_object", "parse"];

fn stem(path: &str) -> String {
    let stem = Path::new(path).file_stem().expect("a name");
    stem.to_string_lossy().into_owned()
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The type of an `impl` that begins with this line.
fn implemented(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("impl")?;
    let rest = match rest.strip_prefix('<') {
        Some(generics) => generics.split_once('>')?.1,
        None => rest,
    };
    Some(word(rest.trim_start()))
}

/// The public decoders of a file, as they are called: `Type::decode`, `module::parse`.
fn decoders_of(path: &str, text: &str) -> Vec<String> {
    let module = stem(path);
    let code = code_only(text.split("\n#[cfg(test)]\nmod ").next().expect("text"));
    let mut owner = module.as_str();
    let mut found = Vec::new();
    for line in code.lines() {
        if line == "}" {
            owner = &module;
        }
        owner = implemented(line).unwrap_or(owner);
        if let Some(rest) = line.trim_start().strip_prefix("pub fn ")
            && DECODERS.contains(&word(rest))
        {
            found.push(format!("{owner}::{}", word(rest)));
        }
    }
    found
}

#[test]
fn every_decoder_is_fuzzed() {
    let files = FORMATS.iter().flat_map(|dir| workspace::rust_files(dir));
    let decoders: Vec<String> = files
        .flat_map(|(path, text)| decoders_of(&path, &text))
        .collect();
    for known in ["Leaf::decode", "page::decode", "Ranges::decode"] {
        assert!(decoders.iter().any(|one| one == known), "{decoders:?}");
    }
    let targets: Vec<String> = workspace::rust_files("fuzz/fuzz_targets")
        .into_iter()
        .map(|(_, text)| code_only(&text))
        .collect();
    let fuzzed = |decoder: &String| {
        let call = format!("{decoder}(");
        targets.iter().any(|target| target.contains(&call))
    };
    let missing: Vec<&String> = decoders.iter().filter(|one| !fuzzed(one)).collect();
    assert!(missing.is_empty(), "in no fuzz target: {missing:#?}");
}

#[test]
fn every_fuzz_target_is_found() {
    let manifest = fs::read_to_string(workspace::root().join("fuzz/Cargo.toml"));
    let manifest = manifest.expect("fuzz/Cargo.toml");
    // As fuzz/run and tests/run look for them.
    let name = |line: &str| {
        let name = line.strip_prefix("name = \"")?.strip_suffix('"')?;
        (word(name) == name).then(|| name.to_owned())
    };
    let listed: BTreeSet<String> = manifest.lines().filter_map(name).collect();
    let files = workspace::rust_files("fuzz/fuzz_targets");
    let there: BTreeSet<String> = files.iter().map(|(path, _)| stem(path)).collect();
    assert_eq!(listed, there);
    let seeds = fs::read_dir(workspace::root().join("fuzz/seeds")).expect("fuzz/seeds");
    for entry in seeds {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy().into_owned();
        assert!(listed.contains(&name), "seeds of no target: {name}");
    }
}
