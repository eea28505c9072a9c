//! A disk that does not give one object back, as one with a bad sector, or btrfs where a bit has rotted: every verb says and does what it
//! does where a byte of that object was changed, and the other backups are as good as ever.
//!
//! The errors are real returns of real reads, put in their place by strace.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::Path;
use std::process::Command;

use mover_tests::mover::{Outcome, Protection, Repo, exit, isolated};
use mover_tests::proof::restores_to;
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

/// Seed of what is planted here.
const SEED: u64 = 0x7365_6374;
/// Reads are calls of threads, which strace can answer.
const BY_THREADS: [&str; 4] = ["--shards", "1", "--rung", "threads"];

/// Runs `command`, all of whose reads of the file `object` fail, if there is one.
fn on_disk(mut command: Command, object: Option<&Path>, home: &Path) -> Outcome {
    command.args(BY_THREADS);
    let Some(object) = object else {
        return Outcome::of(&mut command);
    };
    let mut strace = isolated(Command::new("strace"), home);
    strace.args(["-f", "-qq", "-o", "/dev/null", "-P"]);
    strace.arg(object);
    strace.args(["-e", "trace=pread64", "-e", "inject=pread64:error=EIO"]);
    strace.arg(command.get_program()).args(command.get_args());
    Outcome::of(&mut strace)
}

/// What the verbs come to: of `verify` the object of each finding, and which backups are whole; of `list` which can be read; and
/// whether a backup is made.
fn told(repo: &Repo, source: &Path, object: Option<&Path>, home: &Path) -> Vec<Value> {
    let mut verify = repo.command("verify");
    verify.arg("--json");
    let verified = on_disk(verify, object, home).expect(exit::VERIFY_FAILED);
    let mut lines = verified.lines().into_iter();
    let verified = lines.find(|line| line["message_type"] == "summary");
    let verified = verified.expect("a summary before the error");
    let of = |list: &Value, field: &str| -> Vec<Value> {
        let items = list.as_array().expect("items").iter();
        items.map(|item| item[field].clone()).collect()
    };
    let mut list = repo.command("list");
    list.arg("--json");
    let listed = on_disk(list, object, home).expect(exit::OK).document();
    let made = on_disk(repo.backup_command(source), object, home).summary();
    vec![
        of(&verified["findings"], "object").into(),
        of(&verified["backups"], "ok").into(),
        of(&listed["backups"], "readable").into(),
        made["warnings"].as_array().expect("warnings").len().into(),
    ]
}

#[test]
fn an_object_that_the_disk_does_not_give_back_is_as_one_that_was_changed() {
    run::require_root();
    let scratch = Scratch::new("bad-sector");
    let home = scratch.dir("home");
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    let mut truth = Vec::new();
    for round in 0..2 {
        fs::write(source.join(format!("rows-{round}")), random.rows(5000)).expect("a file");
        let made = repo.backup(&source).summary();
        let id = made["backup_id"].as_str().expect("an id").to_owned();
        truth.push((id, Tree::read(&source)));
    }
    let kept = scratch.join("kept");
    let root = scratch.join("repo");
    copy(&root, &kept);
    let newest = format!("backups/{}", truth[1].0);
    let mut objects: Vec<String> = repo
        .objects()
        .into_iter()
        .map(|(path, _)| path.display().to_string())
        .filter(|name| name.starts_with("packs/") || *name == newest)
        .collect();
    objects.sort();
    assert!(objects.len() >= 3, "packs of both backups: {objects:?}");
    for name in &objects {
        let object = root.join(name);
        let by_disk = told(&repo, &source, Some(&object), &home);
        // What else is there is there.
        if *name == newest {
            restores_to(&repo, &truth[0].0, &truth[0].1, &scratch);
        }
        copy(&kept, &root);
        let mut bytes = fs::read(&object).expect("an object");
        bytes[0] ^= 1;
        fs::write(&object, bytes).expect("a changed byte");
        let by_change = told(&repo, &source, None, &home);
        assert_eq!(by_disk, by_change, "{name}");
        assert_eq!(by_disk[0], Value::from(vec![name.clone()]), "one finding");
        copy(&kept, &root);
    }
}

/// Makes `to` a copy of the directory `from`.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    run::checked(Command::new("cp").arg("-a").arg(from).arg(to));
}
