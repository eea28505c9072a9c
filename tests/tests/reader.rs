//! The format, seen from outside: a reader that was written from docs/repository-format.md alone gets back what the tool
//! stores, and what was stored long ago is still read by both.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mover_tests::mover::{AnyRepo, Outcome, Protection, Repo, exit};
use mover_tests::plant::SHAPES;
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

/// Seed of what is planted here, and of the bits that are flipped.
const SEED: u64 = 0x7265_6164;
/// Flipped bits of each repository.
const FLIPS: usize = 30;
/// Codes with which the reader refuses: storage, not found, key, corrupt.
const REFUSALS: [i32; 4] = [30, 32, 40, 50];

fn below_tests(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What the other reader makes of a backup.
fn read_by_other(dir: &Path, repo: &AnyRepo, id: &str, target: &Path) -> Output {
    let _ = fs::remove_dir_all(target);
    run::output(
        Command::new("/usr/bin/python3")
            .arg(below_tests("reader/reader.py"))
            .args([dir, Path::new(id), target])
            .args(repo.key_args()),
    )
}

/// Fails the test unless the other reader gets `truth` out of a backup.
fn comes_back_by_other(dir: &Path, repo: &AnyRepo, id: &str, truth: &Tree, target: &Path) {
    let output = read_by_other(dir, repo, id, target);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{id}: {said}");
    truth.assert_same(&Tree::read(target), id);
}

/// All shapes of files, and data of several packs.
fn planted(scratch: &Scratch) -> PathBuf {
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    for (name, plant) in SHAPES {
        let dir = source.join(name);
        fs::create_dir(&dir).expect("directory");
        plant(&dir, &mut random);
    }
    source
}

#[test]
fn a_reader_made_from_the_specification_gets_back_what_is_stored() {
    let scratch = Scratch::new("reader");
    let source = planted(&scratch);
    for (at, protection) in Protection::ALL.into_iter().enumerate() {
        let repo = Repo::create(&scratch, &format!("repo-{at}"), protection);
        let mut truths = Vec::new();
        for round in 0..2 {
            let made = repo.backup(&source).summary();
            let id = made["backup_id"].as_str().expect("id").to_owned();
            truths.push((id, Tree::read(&source)));
            let changed = Random::new(SEED + round).rows(200_000);
            fs::write(source.join("changed"), changed).expect("file");
        }
        let target = scratch.join("by-other");
        for (id, truth) in &truths {
            comes_back_by_other(&repo.dir, &repo, id, truth, &target);
        }
        comes_back_by_other(&repo.dir, &repo, "latest", &truths[1].1, &target);
        fs::remove_dir_all(&target).expect("target");
    }
}

#[test]
fn what_is_damaged_is_refused_by_the_other_reader_too() {
    let scratch = Scratch::new("reader-damage");
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    fs::write(source.join("rows"), random.rows(100_000)).expect("file");
    fs::write(source.join("random"), random.bytes(50_000)).expect("file");
    let truth = Tree::read(&source);
    for protection in [Protection::None, Protection::Identity] {
        let repo = Repo::create(&scratch, &format!("{protection:?}"), protection);
        repo.backup(&source).summary();
        let objects = repo.objects();
        let mut refused = 0;
        for _ in 0..FLIPS {
            let (name, bytes) = &objects[random.below(objects.len() as u64) as usize];
            let mut damaged = bytes.clone();
            let at = random.below(bytes.len() as u64) as usize;
            damaged[at] ^= 1 << random.below(8);
            fs::write(repo.dir.join(name), &damaged).expect("object");
            let target = scratch.join("target");
            let output = read_by_other(&repo.dir, &repo, "latest", &target);
            let shown = || format!("{} at {at}: {output:?}", name.display());
            match output.status.code() {
                // Not every byte is needed: of a record, or of another slot.
                Some(0) => truth.assert_same(&Tree::read(&target), &shown()),
                Some(code) if REFUSALS.contains(&code) => refused += 1,
                _ => panic!("{}", shown()),
            }
            fs::write(repo.dir.join(name), bytes).expect("object");
        }
        assert!(refused > FLIPS / 2, "{refused} of {FLIPS}");
    }
}

/// Repositories of version 1 that were made when it was new: whatever is changed since, they are restored.
#[test]
fn what_was_stored_with_version_1_is_restored_for_ever() {
    let scratch = Scratch::new("frozen");
    for (name, protection) in [
        ("plain", Protection::None),
        ("sealed", Protection::Passphrase),
    ] {
        let dir = scratch.join(name);
        let frozen = below_tests("frozen/v1").join(name);
        run::run("cp", ["-r".as_ref(), frozen.as_os_str(), dir.as_os_str()]);
        let url = format!("file://{}", dir.display());
        let (repo, _) = AnyRepo::prepare(&scratch, name, &url, &[], protection);
        repo.verify().expect(exit::OK);
        let ids = repo.ids();
        assert_eq!(ids.len(), 2);
        for (id, sums) in ids.iter().zip(["first", "second"]) {
            let (target, other) = (scratch.join("target"), scratch.join("by-other"));
            repo.restore(id, &target).summary();
            let sums = below_tests(&format!("frozen/v1/{sums}.sha256"));
            let mut check = Command::new("sha256sum");
            check.args(["--check", "--strict", "--quiet"]).arg(sums);
            run::checked(check.current_dir(&target));
            let restored = Tree::read(&target);
            assert_eq!(restored.0.len(), 16, "names, the root among them");
            comes_back_by_other(&dir, &repo, id, &restored, &other);
            fs::remove_dir_all(&target).expect("target");
        }
        let mut show = repo.command("show");
        show.args(["--set", &ids[0], "--json"]);
        let shown = Outcome::of(&mut show).expect(exit::OK).document();
        let text = shown.to_string();
        assert!(
            text.contains("\"release\":\"1\""),
            "the annotation: {shown}"
        );
        assert!(text.contains("kept"), "the hold: {shown}");
        // And it goes on from there.
        let source = scratch.dir("more");
        fs::write(source.join("new"), "data").expect("file");
        repo.backup(&source).summary();
        repo.verify().expect(exit::OK);
    }
}
