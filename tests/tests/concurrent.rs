//! Two backups into one repository at the same time: both exist afterwards, and both are exact.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::path::PathBuf;

use mover_tests::mover::{Protection, Repo};
use mover_tests::plant;
use mover_tests::proof::backups_at_once;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;

const ROUNDS: u64 = 5;

fn two_at_once(name: &str, sources: impl Fn(&Scratch, u64) -> [PathBuf; 2]) {
    let scratch = Scratch::new(name);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    for round in 0..ROUNDS {
        backups_at_once(&repo, &sources(&scratch, round), &scratch);
    }
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
