//! What is proven of a repository again and again, wherever it lies.
//!
//! Invariant: each proof leaves the scratch directory as it was, but for what the source was changed to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::AddAssign;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::job::{Job, kill_when, kill_within, time_of, wait_until};
use crate::mover::{AnyRepo, Outcome, Protection, exit};
use crate::random::Random;
use crate::scratch::Scratch;
use crate::throttle::{NO_LIMITS, NO_READS, Throttle};
use crate::tree::Tree;

/// Bytes of rows that are new after a change.
const CHANGED_BYTES: usize = 4 << 20;

/// Fails the test unless the backup `id` restores to exactly `truth`; the target is removed again.
#[track_caller]
pub fn restores_to(repo: &AnyRepo, id: &str, truth: &Tree, scratch: &Scratch) {
    truth.assert_same(&restored(repo, id, scratch), id);
}

/// What the backup `id` restores to; the target is removed again.
#[track_caller]
fn restored(repo: &AnyRepo, id: &str, scratch: &Scratch) -> Tree {
    let target = scratch.join(format!("check-{id}"));
    repo.restore(id, &target).summary();
    let tree = Tree::read(&target);
    fs::remove_dir_all(&target).expect("target");
    tree
}

/// Backs both sources up at the same time: both backups are listed, and both restore exactly.
#[track_caller]
pub fn backups_at_once(repo: &AnyRepo, sources: &[PathBuf; 2], scratch: &Scratch) {
    let known = repo.ids();
    let truth: Vec<Tree> = sources.iter().map(|source| Tree::read(source)).collect();
    let throttle = Throttle::new(scratch, "at-once.toml", NO_READS);
    let mut jobs = [0, 1].map(|at| {
        let mut backup = repo.backup_command(&sources[at]);
        throttle.put_on(backup.args(["--gentle", "false"]));
        Job::start_printing(&mut backup, scratch.join(format!("at-once-{at}")))
    });
    // Neither gets on before both have begun, however late one of them is.
    for job in &mut jobs {
        wait_until(|| job.has_said("\"phase\":\"copy\"") || !job.is_running());
    }
    for job in &mut jobs {
        // One that has ended tells why by its outcome.
        if job.is_running() {
            throttle.change(job, NO_LIMITS);
        }
    }
    let made = jobs.map(|job| {
        let summary = job.outcome().summary();
        let id = summary["backup_id"].as_str();
        id.expect("summary names the backup").to_owned()
    });
    for name in ["at-once.toml", "at-once-0", "at-once-1"] {
        fs::remove_file(scratch.join(name)).expect("a file");
    }
    assert_ne!(made[0], made[1]);
    let ids = repo.ids();
    assert_eq!(ids.len(), known.len() + 2, "both backups are listed");
    let [one, other] = made.each_ref().map(|id| time_of_backup(repo, id));
    assert!(one.0 < other.1 && other.0 < one.1, "{one:?} and {other:?}");
    for (id, truth) in made.iter().zip(&truth) {
        assert!(ids.contains(id), "{id} is listed");
        restores_to(repo, id, truth, scratch);
    }
    repo.verify().expect(exit::OK);
}

/// When a backup began, and when it ended.
fn time_of_backup(repo: &AnyRepo, id: &str) -> (String, String) {
    let listed = repo.list().document();
    let backups = listed["backups"].as_array().expect("backups");
    let found = backups.iter().find(|backup| backup["backup_id"] == id);
    let metadata = &found.expect("it is listed")["metadata"];
    let text = |field: &str| metadata[field].as_str().expect("a time").to_owned();
    (text("started"), text("ended"))
}

/// How kills turned out.
#[derive(Debug, Default, Clone, Copy)]
pub struct Kills {
    /// Jobs that were killed before they had ended.
    pub before_end: u64,
    /// Jobs that had ended before they were killed.
    pub after_end: u64,
    /// Backups that are listed, whether or not they had ended.
    pub published: u64,
    /// Backups of which there were packs and no manifest, as far as packs were counted.
    pub between_packs: u64,
    /// Restores that left something beside their target.
    pub left_behind: u64,
}

impl Kills {
    /// Counts one more kill, and whether what it was to hit had ended before.
    pub fn count(&mut self, ended: bool) {
        self.before_end += u64::from(!ended);
        self.after_end += u64::from(ended);
    }

    /// Whether `wanted` kills came before the end. Four fifths of all are meant to; a job's usual time may be measured while
    /// the machine is busy.
    ///
    /// # Panics
    /// Where so many came too late that it would take for ever.
    #[track_caller]
    pub fn are_enough(&self, wanted: u64) -> bool {
        let all = self.before_end + self.after_end;
        assert!(
            all <= wanted * 4 + 20,
            "too many kills come too late: {self:?}"
        );
        self.before_end >= wanted
    }

    /// Fails the test unless half of the kills came between packs, where each was meant to.
    #[track_caller]
    pub fn assert_most_left_packs(&self) {
        eprintln!("between packs: {self:?}");
        let all = self.before_end + self.after_end;
        assert!(
            self.between_packs >= all / 2,
            "too few kills came between packs: {self:?}"
        );
    }
}

impl AddAssign for Kills {
    fn add_assign(&mut self, more: Kills) {
        self.before_end += more.before_end;
        self.after_end += more.after_end;
        self.published += more.published;
        self.between_packs += more.between_packs;
        self.left_behind += more.left_behind;
    }
}

/// What is killed, and how often.
pub struct KillPlan<'a> {
    /// How often.
    pub kills: u64,
    /// When.
    pub at: KillAt<'a>,
    /// Gives the source something new to store before each.
    pub change: fn(&Path, &mut Random),
}

/// When a backup is killed.
#[derive(Clone, Copy)]
pub enum KillAt<'a> {
    /// At a random instant of what one takes that is left alone.
    Within(Duration),
    /// As soon as it has published its first packs, up to a random number of them below the first; the function tells
    /// how many the repository has.
    Pack(u64, &'a dyn Fn() -> u64),
}

impl KillAt<'_> {
    /// Runs `backup` and kills it; returns whether it had ended before.
    #[track_caller]
    fn kill(self, backup: &mut Command, random: &mut Random) -> bool {
        match self {
            KillAt::Within(usual) => kill_within(backup, usual, random),
            KillAt::Pack(bound, packs) => {
                let enough = packs() + 1 + random.below(bound);
                kill_when(backup, || packs() >= enough)
            }
        }
    }

    /// Packs of the repository, as far as it can tell.
    fn packs(self) -> u64 {
        match self {
            KillAt::Within(_) => 0,
            KillAt::Pack(_, packs) => packs(),
        }
    }
}

/// Kills backups, each at a random instant of what one takes that is left alone, with something new to store each time, as
/// [`kill_backups`] does: so many at a time, until so many of them came before the end.
#[track_caller]
pub fn killed_backups_harm_nothing(
    repo: &AnyRepo,
    source: &Path,
    kills: u64,
    random: &mut Random,
    scratch: &Scratch,
) -> Kills {
    let mut all = Kills::default();
    while !all.are_enough(kills) {
        change(source, random);
        // Each time anew: what else the machine does changes.
        let usual = time_of(|| drop(repo.backup(source).summary()));
        let plan = KillPlan {
            kills,
            at: KillAt::Within(usual),
            change,
        };
        all += kill_backups(repo, source, &plan, random, scratch);
    }
    all
}

/// Kills backups of `source` as planned. After each, what is new and listed restores exactly, verification passes, and
/// whatever a killed one left behind is in nobody's way; in the end all that is listed restores exactly, those included
/// that were there before.
#[track_caller]
pub fn kill_backups(
    repo: &AnyRepo,
    source: &Path,
    plan: &KillPlan<'_>,
    random: &mut Random,
    scratch: &Scratch,
) -> Kills {
    let known = repo.ids().into_iter();
    let mut truths: BTreeMap<String, Tree> = known
        .map(|id| (id.clone(), restored(repo, &id, scratch)))
        .collect();
    let mut all = Kills::default();
    for _ in 0..plan.kills {
        (plan.change)(source, random);
        let truth = Tree::read(source);
        let packs = plan.at.packs();
        let ended = plan.at.kill(&mut repo.backup_command(source), random);
        all.count(ended);
        let listed = repo.ids();
        let new: Vec<&String> = listed
            .iter()
            .filter(|id| !truths.contains_key(*id))
            .collect();
        assert!(
            new.len() <= 1 && truths.keys().all(|id| listed.contains(id)),
            "{:?} became {listed:?}",
            truths.keys()
        );
        assert!(
            !ended || new.len() == 1,
            "a backup that ended is not listed"
        );
        match new.first() {
            Some(id) => {
                restores_to(repo, id, &truth, scratch);
                all.published += 1;
                truths.insert((*id).clone(), truth);
            }
            None => all.between_packs += u64::from(plan.at.packs() > packs),
        }
        repo.verify().expect(exit::OK);
    }
    repo.backup(source).summary();
    restores_to(repo, "latest", &Tree::read(source), scratch);
    for (id, truth) in &truths {
        restores_to(repo, id, truth, scratch);
    }
    all
}

/// Kills restores of the latest backup, which is one of `truth`, each at a random instant of what one takes that is left alone,
/// until `kills` of them came before the end. After each, the target is complete or as it was, and the next restore to it
/// is exact, names what the killed one left behind, and takes that away if it is marked.
#[track_caller]
pub fn kill_restores(
    repo: &AnyRepo,
    truth: &Tree,
    kills: u64,
    random: &mut Random,
    scratch: &Scratch,
) -> Kills {
    let parent = scratch.dir("parent");
    let target = parent.join("target");
    let mut usual = time_of(|| drop(repo.restore("latest", &target).summary()));
    fs::remove_dir_all(&target).expect("target");
    let mut all = Kills::default();
    for kill in 0.. {
        if all.are_enough(kills) {
            break;
        }
        let existed = kill % 3 == 0;
        if existed {
            fs::create_dir(&target).expect("empty target");
        }
        let ended = kill_within(&mut repo.restore_command("latest", &target), usual, random);
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
        let left = beside_target(&parent);
        all.left_behind += u64::from(!left.is_empty());
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
    let left = beside_target(&parent);
    assert!(
        left.is_empty(),
        "{left:?} left behind by restores that ended"
    );
    fs::remove_dir_all(&parent).expect("parent");
    all
}

/// Names in a directory, but for that of the target.
fn beside_target(parent: &Path) -> Vec<String> {
    let names = fs::read_dir(parent)
        .expect("directory")
        .map(|entry| entry.expect("entry").file_name());
    names
        .map(|name| name.into_string().expect("UTF-8"))
        .filter(|name| name != "target")
        .collect()
}

/// Rewrites a part of the source, so that the next backup has something new to store.
pub fn change(source: &Path, random: &mut Random) {
    let bytes = random.rows(CHANGED_BYTES);
    fs::write(source.join(format!("changed-{}", random.below(3))), bytes).expect("file");
}

/// Bytes of the regular files below `dir`, which may change meanwhile, as the disk counts them.
pub fn disk_bytes(dir: &Path) -> u64 {
    let mut open = vec![dir.to_path_buf()];
    let (mut bytes, mut seen) = (0, BTreeSet::new());
    while let Some(dir) = open.pop() {
        // Whatever is gone by now counts nothing.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                open.push(entry.path());
            } else if seen.insert(meta.ino()) {
                bytes += meta.blocks() * 512;
            }
        }
    }
    bytes
}

/// Has two `init`s with keys of their own meet at `url`, and fails the test unless one makes a repository there and the other is refused
/// and leaves nothing: the winner's key opens it, by the only slot, and the loser's does not. Returns the winner.
#[track_caller]
pub fn one_init_wins(
    scratch: &Scratch,
    name: &str,
    url: &str,
    environment: &[(&str, &str)],
) -> AnyRepo {
    let rivals = ["one", "other"].map(|rival| {
        let name = format!("{name}-{rival}");
        AnyRepo::prepare(scratch, &name, url, environment, Protection::Identity)
    });
    let jobs = rivals
        .each_ref()
        .map(|(repo, protection)| Job::start(&mut repo.init_command(protection)));
    let outcomes = jobs.map(Job::outcome);
    let codes = outcomes.each_ref().map(|outcome| outcome.code);
    let winner = match codes {
        [Some(exit::OK), Some(exit::CONFLICT)] => 0,
        [Some(exit::CONFLICT), Some(exit::OK)] => 1,
        _ => panic!("{name}\n{}\n{}", outcomes[0], outcomes[1]),
    };
    outcomes[winner].summary();
    assert_eq!(outcomes[1 - winner].error()["kind"], "conflict");
    let [(one, _), (other, _)] = rivals;
    let (repo, loser) = match winner {
        0 => (one, other),
        _ => (other, one),
    };
    assert!(repo.ids().is_empty());
    loser.list().expect(exit::KEY);
    let slots = Outcome::of(repo.command("key list").arg("--json")).summary();
    assert_eq!(slots["slots"].as_array().map(Vec::len), Some(1), "{slots}");
    repo
}
