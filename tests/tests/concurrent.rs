//! Two backups into one repository at the same time: both exist afterwards, and both are exact.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use mover_tests::mover::{Outcome, Protection, Repo, exit, shown};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

const ROUNDS: u64 = 5;

fn two_at_once(name: &str, sources: impl Fn(&Scratch, u64) -> [PathBuf; 2]) {
    let scratch = Scratch::new(name);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    for round in 0..ROUNDS {
        let sources = sources(&scratch, round);
        let known = repo.ids();
        let truth: Vec<Tree> = sources.iter().map(|source| Tree::read(source)).collect();
        let start = |source: &PathBuf| {
            let mut command = repo.backup_command(source);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            (shown(&command), command.spawn().expect("the tool starts"))
        };
        let running: Vec<_> = sources.iter().map(start).collect();
        let mut made = Vec::new();
        for (line, child) in running {
            let output = child.wait_with_output().expect("the tool ends");
            let summary = Outcome::new(line, &output).summary();
            made.push(
                summary["backup_id"]
                    .as_str()
                    .expect("summary names the backup")
                    .to_string(),
            );
        }
        assert_ne!(made[0], made[1]);
        let ids = repo.ids();
        assert_eq!(ids.len(), known.len() + 2, "both backups are listed");
        for (id, truth) in made.iter().zip(&truth) {
            assert!(ids.contains(id), "{id} is listed");
            check(&repo, id, &scratch.join(format!("restored-{id}")), truth);
        }
        repo.verify().expect(exit::OK);
    }
}

fn check(repo: &Repo, id: &str, target: &Path, truth: &Tree) {
    repo.restore(id, target).summary();
    truth.assert_same(&Tree::read(target), id);
    fs::remove_dir_all(target).expect("target can be removed");
}

#[test]
fn two_sources_at_once() {
    two_at_once("two-sources", |scratch, round| {
        ["left", "right"].map(|side| {
            let source = scratch.dir(format!("{side}-{round}"));
            plant::mixed(
                &source,
                &mut Random::new(round * 2 + side.len() as u64),
                6 << 20,
            );
            source
        })
    });
}

#[test]
fn one_source_twice_at_once() {
    two_at_once("one-source", |scratch, round| {
        let source = scratch.dir(format!("source-{round}"));
        plant::mixed(&source, &mut Random::new(round), 6 << 20);
        [source.clone(), source]
    });
}
