//! Sources of many files: more names than a parent's are kept in memory come back, what did not change is stored once, and what each
//! name costs in memory is bounded. And of files that claim more than a backup can list.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::Path;

use mover_tests::mover::{Outcome, Protection, Repo, dir_url, exit};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

const DIRS: usize = 45;
const FILES_PER_DIR: usize = 1_000;
/// What a name may cost, in bytes: its entry, its stamps, its map and its place in the queue.
const BYTES_PER_FILE_MAX: u64 = 480;

fn plant_names(source: &Path, files_per_dir: usize) {
    for dir in 0..DIRS {
        let path = source.join(format!("tenant-{dir:04}/relations/base"));
        fs::create_dir_all(&path).expect("directory");
        for file in 0..files_per_dir {
            let name = format!("{dir:04}-segment-{file:05}");
            fs::write(path.join(&name), &name).expect("file");
        }
    }
}

fn peak_bytes(summary: &Value) -> u64 {
    let peak = summary["engine"]["peak_rss_bytes"].as_u64();
    peak.expect("peak_rss_bytes")
}

/// The summary of a backup whose index of blocks takes as little as it can: it is bounded, and not by the names.
fn backup(repo: &Repo, source: &Path) -> Value {
    let mut command = repo.backup_command(source);
    command.args(["--index", "1MiB"]);
    Outcome::of(&mut command).summary()
}

#[test]
fn many_files_come_back_and_cost_little_memory() {
    let scratch = Scratch::new("many-files");
    let few = scratch.dir("few");
    plant_names(&few, 1);
    plant::file(&few.join("large"), &mut Random::new(1), 128 << 20);
    let repo = Repo::create(&scratch, "few-repo", Protection::None);
    let base = peak_bytes(&backup(&repo, &few));

    let source = scratch.dir("source");
    plant_names(&source, FILES_PER_DIR);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let files = (DIRS * FILES_PER_DIR) as u64;
    let first = backup(&repo, &source);
    assert_eq!(first["files"].as_u64(), Some(files));
    let (stored, again) = (repo.stored_bytes(), backup(&repo, &source));
    assert_eq!(again["bytes_new"].as_u64(), Some(0), "{again}");
    let grown = repo.stored_bytes() - stored;
    assert!(grown < 100_000, "the same names again took {grown} bytes");
    for summary in [&first, &again] {
        let peak = peak_bytes(summary);
        let each = peak.saturating_sub(base) / files;
        assert!(
            each < BYTES_PER_FILE_MAX,
            "{each} bytes for each file: {peak} against {base} for few"
        );
    }

    // The first name and the last, one between, one that goes and one that comes.
    let at = |dir: usize, file: usize| {
        source.join(format!(
            "tenant-{dir:04}/relations/base/{dir:04}-segment-{file:05}"
        ))
    };
    for path in [at(0, 0), at(16, 500), at(DIRS - 1, FILES_PER_DIR - 1)] {
        fs::write(path, "changed").expect("file");
    }
    fs::remove_file(at(16, 499)).expect("file");
    fs::write(at(16, 499).with_extension("new"), "new").expect("file");
    let changed = backup(&repo, &source);
    assert_eq!(changed["bytes_new"].as_u64(), Some(2 * 4096), "{changed}");
    let target = scratch.join("target");
    let restored = repo.restore("latest", &target).summary();
    assert_eq!(restored["files"].as_u64(), Some(files));
    Tree::read(&source).assert_same(&Tree::read(&target), "restored");
    repo.verify().expect(exit::OK);
}

#[test]
fn more_names_than_may_be_kept_are_told_before_anything_is_stored() {
    let scratch = Scratch::new("too-many-files");
    let source = scratch.dir("source");
    plant_names(&source, 400);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let empty = repo.stored_bytes();
    let mut command = repo.backup_command(&source);
    command.args(["--names", "1MiB"]);
    let refused = Outcome::of(&mut command).expect(exit::LIMIT);
    let error = refused.error();
    let hint = error["hint"].as_str().expect("a hint");
    assert!(hint.contains("--names"), "{refused}");
    assert!(
        refused.stdout.contains("more than 1.00 MiB of memory"),
        "{refused}"
    );
    assert_eq!(repo.stored_bytes(), empty);
    repo.backup(&source).summary();
}

/// Sparse files may claim any size: `check` tells what every backup would refuse.
#[test]
fn files_that_claim_more_than_a_backup_can_list_fail_a_check_as_they_do_a_backup() {
    // As large as ext4 lets a file be, and one more than make 4 PiB.
    const FILE_BYTES: u64 = (1 << 44) - 4096;
    const FILES: usize = 257;
    let scratch = Scratch::new("too-large");
    let source = scratch.dir("source");
    for file in 0..FILES {
        let file = fs::File::create(source.join(format!("file-{file:03}"))).expect("a file");
        file.set_len(FILE_BYTES).expect("a size");
    }
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let refused = repo.backup(&source).told(exit::LIMIT, "file-000");
    let check = |more: &[&str]| {
        let mut command = repo.command("check");
        command.args(["--json", "--source", &dir_url(&source)]);
        Outcome::of(command.args(more))
    };
    let checked = check(&[]).expect(exit::CHECK_FAILED);
    let items = checked.lines()[0]["items"]
        .as_array()
        .expect("items")
        .clone();
    let size = items.iter().find(|item| item["name"] == "size");
    let size = size.expect("an item");
    assert_eq!(size["area"], "source", "{size}");
    assert_eq!(size["status"], "fail", "{size}");
    let detail = size["detail"].as_str().expect("a detail");
    assert!(detail.contains("more than 4.00 PiB together"), "{size}");
    assert_eq!(size["hint"], refused["hint"], "{size}");
    // One less is what a backup can just list.
    check(&["--exclude", "file-000"]).expect(exit::OK);
}
