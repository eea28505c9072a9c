//! kill -9 at any instant: what is listed restores exactly, verification passes, no target is half visible.
//!
//! The instants come from a seed (printed; `HELIOS_MOVER_SEED` sets another, `HELIOS_MOVER_KILLS` the number of
//! kills of each kind) and spread over the time that the undisturbed job takes, until so many of them came before its end;
//! backups of several packs are killed between their packs beside. That kills came in the middle of the work, and not only before
//! it, is told by what they left.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::Path;

use mover_tests::job::{kill_within, time_of};
use mover_tests::mover::{Outcome, Protection, Repo, exit};
use mover_tests::plant;
use mover_tests::proof::{
    KillAt, KillPlan, Kills, change, kill_backups, kill_restores, restores_to,
};
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
/// For so many kills of each other kind there is one of a restore in place.
const IN_PLACE_SHARE: u64 = 4;
/// A file that restores in place write anew as a whole, and its bytes: most of what they do is to write them.
const REWRITTEN: &str = "base/1/index";
const REWRITTEN_BYTES: usize = 16 << 20;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn seed() -> u64 {
    let seed = number("HELIOS_MOVER_SEED", 0x6b69_6c6c);
    eprintln!("HELIOS_MOVER_SEED={seed}");
    seed
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
    let seen = kill_restores(&repo, &truth, kills, &mut random, &scratch);
    stored.assert_same(&Tree::read(&repo.dir), "the repository after restores");
    eprintln!("{seen:?}");
    assert!(seen.left_behind > 0 || kills < KILLS, "{seen:?}");
}

#[test]
fn killed_delta_restores_are_finished_by_the_next() {
    let mut random = Random::new(seed() ^ 2);
    let kills = number("HELIOS_MOVER_KILLS", KILLS) / IN_PLACE_SHARE;
    let scratch = Scratch::new("kill-delta");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut random, SOURCE_BYTES);
    plant::file(&source.join(REWRITTEN), &mut random, REWRITTEN_BYTES);
    repo.backup(&source).summary();
    let old = repo.ids().remove(0);
    let rewritten = |root: &Path| fs::read(root.join(REWRITTEN)).ok();
    let before = rewritten(&source);
    change(&source, &mut random);
    fs::remove_file(source.join("one-byte")).expect("file");
    plant::file(&source.join(REWRITTEN), &mut random, REWRITTEN_BYTES);
    repo.backup(&source).summary();
    let truth = Tree::read(&source);
    let after = rewritten(&source);

    let target = scratch.dir("target");
    let delta = |set: &str| {
        let mut command = repo.restore_command(set, &target);
        command.arg("--delta");
        command
    };
    let run = |set: &str| drop(Outcome::of(&mut delta(set)).summary());
    let (mut all, mut halfway) = (Kills::default(), 0);
    while !all.are_enough(kills) {
        // The way back writes as much as the one that is killed, and so takes as long, whatever else the machine does.
        let usual = time_of(|| run(&old));
        assert!(rewritten(&target) == before, "the way back");
        let ended = kill_within(&mut delta("latest"), usual, &mut random);
        all.count(ended);
        let found = rewritten(&target);
        assert!(!ended || found == after, "a restore that ended is not done");
        halfway += u64::from(found != before && found != after);
        run("latest");
        truth.assert_same(
            &Tree::read(&target),
            &format!("delta restore after {all:?}"),
        );
    }
    eprintln!("{all:?}, {halfway} of them in the middle of a file");
    assert!(
        halfway > 0 || kills < KILLS / IN_PLACE_SHARE,
        "no kill came in the middle of a file: {all:?}"
    );
    repo.verify().expect(exit::OK);
}
