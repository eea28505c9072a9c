//! kill -9 at any instant: what is listed restores exactly, verification passes, no target is half visible.
//!
//! The instants come from a seed (printed; `HELIOS_MOVER_SEED` sets another, `HELIOS_MOVER_KILLS` the number of
//! kills of each kind) and spread over the time that the undisturbed job takes, until so many of them came before its end;
//! backups of several packs are killed between their packs beside.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::Path;
use std::time::Instant;

use mover_tests::job::{kill_within, time_of};
use mover_tests::mover::{Outcome, Protection, Repo, exit};
use mover_tests::plant;
use mover_tests::proof::{KillAt, KillPlan, Kills, change, kill_backups, restores_to};
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

/// Kills of backups before their end, and as many of restores.
const KILLS: u64 = 100;
/// Backups into one repository before the next is begun, so that verification stays cheap.
const PER_REPO: u64 = 10;
/// Bytes of rows in the source.
const SOURCE_BYTES: usize = 8 << 20;
/// One repository in so many gets backups of several packs each, so that kills come between packs.
const LARGE_EVERY: u64 = 5;
/// New bytes in such a backup, which do not compress. A pack has about 10 MB.
const LARGE_BYTES: usize = 40 << 20;
/// They are killed when the first of their packs is there, or one of those behind it, of this many in all.
const LARGE_KILLED_BY: u64 = 3;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn seed() -> u64 {
    let seed = number("HELIOS_MOVER_SEED", 0x6b69_6c6c);
    eprintln!("HELIOS_MOVER_SEED={seed}");
    seed
}

/// Names in a directory, but for that of the target.
fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir)
        .expect("directory")
        .map(|entry| entry.expect("entry").file_name());
    names
        .map(|name| name.into_string().expect("UTF-8"))
        .filter(|name| name != "target")
        .collect()
}

/// Gives the source new content of several packs.
fn change_packs(source: &Path, random: &mut Random) {
    plant::file(&source.join("changed-packs"), random, LARGE_BYTES);
}

/// Packs of a repository.
fn packs(repo: &Repo) -> u64 {
    let objects = fs::read_dir(repo.dir.join("packs")).into_iter().flatten();
    let below = |prefix: std::io::Result<fs::DirEntry>| {
        fs::read_dir(prefix.expect("entry").path())
            .expect("packs")
            .count() as u64
    };
    objects.map(below).sum()
}

#[test]
fn killed_backups_leave_a_sound_repository() {
    let mut random = Random::new(seed());
    let kills = number("HELIOS_MOVER_KILLS", KILLS);
    let scratch = Scratch::new("kill-backup");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut random, SOURCE_BYTES);
    let (mut all, mut large) = (Kills::default(), Kills::default());
    for round in 0.. {
        if all.are_enough(kills) {
            break;
        }
        let protection = Protection::ALL[[0, 2][round as usize % 2]];
        let repo = Repo::create(&scratch, &format!("repo-{round}"), protection);
        let is_large = round % LARGE_EVERY == LARGE_EVERY - 1;
        let change = if is_large { change_packs } else { change };
        change(&source, &mut random);
        repo.backup(&source).summary();
        assert_eq!(repo.ids().len(), 1);
        restores_to(&repo, "latest", &Tree::read(&source), &scratch);
        // The time of a backup like those that are killed: the first one stores the rest of the source too.
        change(&source, &mut random);
        let usual = time_of(|| drop(repo.backup(&source).summary()));
        let count = || packs(&repo);
        let plan = KillPlan {
            kills: PER_REPO,
            at: match is_large {
                true => KillAt::Pack(LARGE_KILLED_BY, &count),
                false => KillAt::Within(usual),
            },
            change,
        };
        let seen = kill_backups(&repo, &source, &plan, &mut random, &scratch);
        if is_large {
            large += seen;
            fs::remove_file(source.join("changed-packs")).expect("file");
        } else {
            all += seen;
        }
        fs::remove_dir_all(&repo.dir).expect("repository");
    }
    eprintln!("{all:?}");
    large.assert_most_left_packs();
}

#[test]
fn killed_restores_leave_no_half_target() {
    let mut random = Random::new(seed() ^ 1);
    let kills = number("HELIOS_MOVER_KILLS", KILLS);
    let scratch = Scratch::new("kill-restore");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut random, SOURCE_BYTES);
    let truth = Tree::read(&source);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    repo.backup(&source).summary();
    let stored = Tree::read(&repo.dir);
    let mut usual = time_of(|| drop(repo.restore("latest", &scratch.join("first")).summary()));

    let parent = scratch.dir("parent");
    let target = parent.join("target");
    let mut all = Kills::default();
    for kill in 0.. {
        if all.are_enough(kills) {
            break;
        }
        let existed = kill % 3 == 0;
        if existed {
            fs::create_dir(&target).expect("empty target");
        }
        let ended = kill_within(
            &mut repo.restore_command("latest", &target),
            usual,
            &mut random,
        );
        all.count(ended);
        let empty = || fs::read_dir(&target).expect("target").next().is_none();
        if target.exists() && !(existed && empty()) {
            truth.assert_same(&Tree::read(&target), &format!("visible after kill {kill}"));
        } else {
            assert!(!ended, "a restore that ended is not visible");
        }
        if target.exists() && !empty() {
            fs::remove_dir_all(&target).expect("target");
        }
        // Beside whatever the killed one left behind, which is told and goes.
        let left = entries(&parent);
        // Not so in the moments before the marker is written and after it is gone.
        let is_marked = |name: &String| {
            let marker = ".helios-mover-restore-in-progress";
            fs::read(parent.join(name).join(marker)).is_ok_and(|content| !content.is_empty())
        };
        let marked: Vec<bool> = left.iter().map(is_marked).collect();
        // Its time is the one that the next is killed within: what else the machine does changes.
        let begun = Instant::now();
        let summary = repo.restore("latest", &target).summary();
        usual = begun.elapsed();
        truth.assert_same(&Tree::read(&target), &format!("restore after kill {kill}"));
        fs::remove_dir_all(&target).expect("target");
        for (name, is_marked) in left.into_iter().zip(marked) {
            assert!(
                name.starts_with(".target.helios-mover-partial-"),
                "left behind: {name}"
            );
            assert!(
                summary["warnings"].to_string().contains(&name),
                "{name} is not told of: {summary}"
            );
            let path = parent.join(&name);
            assert_eq!(path.exists(), !is_marked, "{name}: marked {is_marked}");
            if !is_marked {
                fs::remove_dir_all(path).expect("left behind");
            }
        }
    }
    stored.assert_same(&Tree::read(&repo.dir), "the repository after restores");
    assert!(
        entries(&parent).is_empty(),
        "{:?} left behind by restores that ended",
        entries(&parent)
    );
    eprintln!("{all:?}");
}

#[test]
fn killed_delta_restores_are_finished_by_the_next() {
    let mut random = Random::new(seed() ^ 2);
    let kills = number("HELIOS_MOVER_KILLS", KILLS) / 4;
    let scratch = Scratch::new("kill-delta");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut random, SOURCE_BYTES);
    repo.backup(&source).summary();
    let old = repo.ids().remove(0);
    change(&source, &mut random);
    fs::remove_file(source.join("one-byte")).expect("file");
    plant::file(&source.join("base/1/index"), &mut random, SOURCE_BYTES / 2);
    repo.backup(&source).summary();
    let truth = Tree::read(&source);

    let target = scratch.dir("target");
    let delta = |set: &str| {
        let mut command = repo.restore_command(set, &target);
        command.arg("--delta");
        command
    };
    let run = |set: &str| drop(Outcome::of(&mut delta(set)).summary());
    run(&old);
    let usual = time_of(|| run("latest"));
    for kill in 0..kills {
        run(&old);
        kill_within(&mut delta("latest"), usual, &mut random);
        run("latest");
        truth.assert_same(
            &Tree::read(&target),
            &format!("delta restore after kill {kill}"),
        );
    }
    repo.verify().expect(exit::OK);
}
