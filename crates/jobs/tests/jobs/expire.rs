//! Expire, holds and annotations: what is kept restores exactly, what is not is gone, whoever comes in between.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mover_base::{Kind, Result, Timestamp};
use mover_io::{Shard, ShardConfig};
use mover_jobs::annotate::{self, AnnotateOptions};
use mover_jobs::expire::{self, ExpireOptions, ExpireSummary, Life, OtherReason, Policy, Reason};
use mover_jobs::{
    Credentials, Engine, JobLimits, LinkLimits, RateBudget, backup, catalogue, hold, restore,
};
use mover_repo::{Repository, expire as repo_expire};

use crate::fixture::{MIB, Place, Random, assert_same_trees, copy_tree, engine};

/// Keeps the newest `last`.
pub fn keep(last: u32) -> Policy {
    Policy {
        last,
        ..Policy::default()
    }
}

pub fn options(place: &Place, policy: Policy) -> ExpireOptions {
    ExpireOptions::by_rules(place.access(), policy)
}

fn try_expire(place: &Place, last: u32) -> Result<ExpireSummary> {
    let plan = expire::plan(&engine(), &options(place, keep(last)), &mut |_, _| {})?;
    expire::execute(&engine(), plan, &mut |_, _| {})
}

#[track_caller]
fn expire(place: &Place, last: u32) -> ExpireSummary {
    let summary = try_expire(place, last).unwrap();
    assert!(summary.ok, "{summary:?}");
    summary
}

fn ids(place: &Place) -> Vec<String> {
    let listed = catalogue::list(&engine(), &place.access()).unwrap();
    let ids = listed.backups.iter().map(|item| item.backup_id.to_string());
    ids.collect()
}

/// Backups of a tree that changes, each with a copy of what was backed up.
struct History {
    place: Place,
    random: Random,
    made: Vec<String>,
}

impl History {
    fn new(place: Place, backups: usize) -> Self {
        let mut history = History {
            place,
            random: Random(7),
            made: Vec::new(),
        };
        fs::write(
            history.place.source("same"),
            history.random.bytes(2 * MIB + 5),
        )
        .unwrap();
        for _ in 0..backups {
            history.change();
            history.backup();
        }
        history
    }

    /// What the next backup has and the last one had not, and the other way round.
    fn change(&mut self) {
        let name = format!("new-{}", self.made.len() % 3);
        fs::write(self.place.source(&name), self.random.bytes(MIB + 77)).unwrap();
    }

    fn backup(&mut self) {
        let id = self.place.backup().backup_id.to_string();
        self.remember(id);
    }

    fn remember(&mut self, id: String) {
        let truth = self.place.path(&format!("truth-{id}"));
        copy_with_times(&self.place.path("source"), &truth);
        self.made.push(id);
    }

    /// Exactly these are listed, and each restores exactly.
    #[track_caller]
    fn holds_exactly(&self, expected: &[String]) {
        assert_eq!(ids(&self.place), expected);
        for id in expected {
            let target = format!("out-{id}");
            let options = self.place.restore_options(id, &target, false);
            self.place.try_restore(&engine(), &options).unwrap();
            let truth = self.place.path(&format!("truth-{id}"));
            assert_same_trees(&truth, &self.place.path(&target));
            fs::remove_dir_all(self.place.path(&target)).unwrap();
        }
        self.place.verify_is_ok(None);
    }

    /// Nothing is stored that no backup needs.
    #[track_caller]
    fn nothing_is_left_over(&self) {
        let verified = self.place.try_verify(None).unwrap();
        assert_eq!(verified.unreferenced_packs, Some(0));
        for prefix in ["sessions/", "expired/"] {
            assert_eq!(self.place.objects(prefix), [""; 0]);
        }
    }
}

/// A copy that also has the times of files and directories.
fn copy_with_times(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

#[test]
fn what_the_policy_keeps_restores_and_the_rest_is_gone() {
    for place in [Place::sealed(), Place::plain()] {
        // The second and the third wrote what nobody has any more in the last two.
        let history = History::new(place, 6);
        let place = &history.place;
        let before = place.objects("");
        let plan = expire::plan(&engine(), &options(place, keep(2)), &mut |_, _| {}).unwrap();
        assert_eq!((plan.kept, plan.expired), (2, 4));
        assert_eq!(place.objects(""), before, "a plan changes nothing");
        let packs = place.packs(true).len();
        let freed = plan.freed_bytes;
        let summary = expire::execute(&engine(), plan, &mut |_, _| {}).unwrap();
        assert!(summary.ok && summary.outcome.packs > 0);
        assert_eq!(summary.outcome.freed_bytes, freed, "as it was planned");
        assert!(place.packs(true).len() < packs);
        history.holds_exactly(&history.made[4..]);
        history.nothing_is_left_over();
        // Once more finds nothing to do.
        let again = expire(place, 2).outcome;
        assert_eq!((again.deleted.len(), again.packs), (0, 0));
        history.holds_exactly(&history.made[4..]);
    }
}

#[test]
fn without_a_rule_nothing_is_planned() {
    let history = History::new(Place::plain(), 2);
    let planned = expire::plan(
        &engine(),
        &options(&history.place, Policy::default()),
        &mut |_, _| {},
    );
    assert_eq!(planned.map(drop).unwrap_err().kind(), Kind::Usage);
    history.holds_exactly(&history.made);
}

#[test]
fn each_source_is_counted_on_its_own() {
    let mut history = History::new(Place::plain(), 2);
    let other = history.place.path("other");
    copy_tree(&history.place.path("source"), &other);
    let mut options = history.place.backup_options();
    options.source = format!("dir://{}", other.display());
    let lone = history.place.try_backup(&engine(), &options).unwrap();
    history.change();
    history.backup();
    expire(&history.place, 1);
    let kept = [lone.backup_id.to_string(), history.made[2].clone()];
    assert_eq!(ids(&history.place), kept);
    history.nothing_is_left_over();
}

#[test]
fn who_can_only_write_displaces_nothing_of_who_can_read() {
    let mut history = History::new(Place::sealed(), 2);
    let mut options = history.place.backup_options();
    options.repo = history.place.access_with(Credentials::None);
    for _ in 0..3 {
        history.change();
        let made = history.place.try_backup(&engine(), &options).unwrap();
        history.remember(made.backup_id.to_string());
    }
    let summary = expire(&history.place, 1);
    let vouched: Vec<bool> = summary.backups.iter().map(|one| one.vouched).collect();
    assert_eq!(vouched, [true, true, false, false, false]);
    let newest = [history.made[1].clone(), history.made[4].clone()];
    history.holds_exactly(&newest);
    history.nothing_is_left_over();
}

#[test]
fn whoever_cannot_read_cannot_expire() {
    let history = History::new(Place::sealed(), 2);
    let mut options = options(&history.place, keep(1));
    options.repo = history.place.access_with(Credentials::None);
    let planned = expire::plan(&engine(), &options, &mut |_, _| {});
    assert_eq!(planned.map(drop).unwrap_err().kind(), Kind::Key);
    history.holds_exactly(&history.made);
}

#[test]
fn a_backup_planned_on_what_is_deleted_meanwhile_builds_on_nothing() {
    let mut history = History::new(Place::sealed(), 1);
    let place = &history.place;
    let planned = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    assert_eq!(planned.parent.unwrap().to_string(), history.made[0]);
    let newer = place.backup().backup_id.to_string();
    let gone = expire(place, 1).outcome.deleted;
    assert_eq!(gone, [planned.parent.unwrap()]);
    let done = backup::execute(&engine(), planned, &mut |_, _| {}).unwrap();
    assert_eq!(done.parent, None);
    assert!(done.warnings.iter().any(|one| one.contains("deleted")));
    history.remember(newer);
    history.remember(done.backup_id.to_string());
    // Its id is as old as its plan.
    let mut expected = history.made[1..].to_vec();
    expected.sort();
    history.holds_exactly(&expected);
    history.nothing_is_left_over();
}

/// Slow enough for an expire to come in between.
fn slow() -> Engine {
    Engine {
        limits: JobLimits {
            read: RateBudget::new(Some(8 * MIB as u64)),
            write: RateBudget::new(None),
        },
        ..engine()
    }
}

/// Executes a planned backup and calls `meanwhile` once, when packs of it stand that no manifest names.
pub fn backup_beside(
    place: &Place,
    plan: backup::BackupPlan,
    mut meanwhile: impl FnMut(),
) -> Result<backup::BackupSummary> {
    let known = place.objects("packs/").len();
    let mut is_done = false;
    let done = backup::execute(&slow(), plan, &mut |_, _| {
        if !is_done && place.objects("packs/").len() > known {
            is_done = true;
            meanwhile();
        }
    });
    assert!(is_done, "the backup was too quick for the test");
    done
}

#[test]
fn a_running_backup_keeps_its_parent_and_its_packs() {
    for place in [Place::sealed(), Place::plain()] {
        let mut history = History::new(place, 2);
        fs::write(history.place.source("much"), history.random.bytes(24 * MIB)).unwrap();
        let place = &history.place;
        let planned = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
        let parent = planned.parent.unwrap();
        // Newer ones, so that the policy would have the parent go.
        let newer = [place.backup(), place.backup()].map(|made| made.backup_id.to_string());
        let summary = RefCell::new(None);
        let done = backup_beside(&history.place, planned, || {
            let plan = expire::plan(&engine(), &options(place, keep(1)), &mut |_, _| {}).unwrap();
            let reasons = |id| plan.backups.iter().find(|one| one.backup_id == id).unwrap();
            let in_use = BTreeSet::from([Reason::Other(OtherReason::InUse)]);
            assert_eq!(reasons(parent).reasons, in_use);
            assert!(plan.leftovers.owned_packs > 0 && plan.leftovers.packs == 0);
            let mine = plan.sessions.iter().find(|one| !one.is_over).unwrap();
            assert_eq!(
                (mine.process, &mine.parents[..]),
                (Life::Running, &[parent][..])
            );
            let done = expire::execute(&engine(), plan, &mut |_, _| {}).unwrap();
            *summary.borrow_mut() = Some(done);
            assert!(ids(place).contains(&parent.to_string()));
        });
        let summary = summary.into_inner().unwrap();
        assert!(summary.ok);
        // The first and the older of the newer ones are gone.
        assert_eq!(summary.outcome.deleted.len(), 2, "{summary:?}");
        let done = done.unwrap();
        assert_eq!(done.parent, Some(parent));
        assert!(done.deduplicated_share > 0.05, "{done:?}");
        history.remember(done.backup_id.to_string());
        let id = &history.made[2];
        let target = history.place.path("out");
        let options = history.place.restore_options(id, "out", false);
        history.place.try_restore(&engine(), &options).unwrap();
        assert_same_trees(&history.place.path(&format!("truth-{id}")), &target);
        history.place.verify_is_ok(None);
        // When it has ended, the parent can go.
        let summary = expire(&history.place, 1);
        assert!(summary.outcome.deleted.contains(&parent), "{summary:?}");
        assert_eq!(ids(&history.place), [newer[1].clone()]);
        history.place.verify_is_ok(None);
        history.nothing_is_left_over();
    }
}

#[test]
fn a_backup_that_begins_between_plan_and_execution_puts_its_parent_off() {
    let mut history = History::new(Place::sealed(), 1);
    fs::write(history.place.source("much"), history.random.bytes(24 * MIB)).unwrap();
    let place = &history.place;
    let planned = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let parent = planned.parent.unwrap();
    place.backup();
    let doomed = expire::plan(&engine(), &options(place, keep(1)), &mut |_, _| {}).unwrap();
    assert_eq!(doomed.expired, 1);
    let doomed = Cell::new(Some(doomed));
    let done = backup_beside(&history.place, planned, || {
        let plan = doomed.take().unwrap();
        let outcome = expire::execute(&engine(), plan, &mut |_, _| {})
            .unwrap()
            .outcome;
        assert_eq!(outcome.deleted, []);
        assert_eq!(outcome.packs, 0);
        let put_off = &outcome.put_off[0];
        assert_eq!(
            (put_off.backup_id, put_off.reason),
            (parent, OtherReason::InUse)
        );
    });
    let id = done.unwrap().backup_id.to_string();
    place.restore_is_exact(&id, "out");
    place.restore_is_exact_of(
        &history.made[0],
        "first",
        &place.path(&format!("truth-{}", history.made[0])),
    );
    place.verify_is_ok(None);
    expire(place, 1);
    history.nothing_is_left_over();
}

#[test]
fn a_backup_that_ends_between_plan_and_execution_keeps_all_it_names() {
    let mut history = History::new(Place::plain(), 2);
    let doomed =
        expire::plan(&engine(), &options(&history.place, keep(1)), &mut |_, _| {}).unwrap();
    // It takes over blocks of the one to go by way of the newest, and has packs of its own.
    history.change();
    history.backup();
    let outcome = expire::execute(&engine(), doomed, &mut |_, _| {})
        .unwrap()
        .outcome;
    assert_eq!(outcome.deleted.len(), 1);
    history.holds_exactly(&history.made[1..]);
    history.nothing_is_left_over();
}

#[test]
fn a_session_that_was_given_up_publishes_nothing() {
    let mut history = History::new(Place::plain(), 1);
    fs::write(history.place.source("much"), history.random.bytes(24 * MIB)).unwrap();
    let place = &history.place;
    let planned = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let result = backup_beside(&history.place, planned, || {
        let session = place.objects("sessions/").remove(0);
        let id = session.strip_prefix("sessions/").unwrap();
        let refused = expire::forget_session(&engine(), &place.access(), id);
        assert_eq!(refused.unwrap_err().kind(), Kind::Conflict, "it runs here");
        fs::remove_file(place.object(&session)).unwrap();
    });
    assert_eq!(result.map(drop).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(ids(place), history.made);
    let outcome = expire(place, 1).outcome;
    assert!(outcome.leftover_packs > 0 && outcome.packs == outcome.leftover_packs);
    history.nothing_is_left_over();
}

#[test]
fn a_cancelled_backup_takes_its_session_back_and_its_packs_go() {
    let mut history = History::new(Place::sealed(), 1);
    fs::write(history.place.source("much"), history.random.bytes(24 * MIB)).unwrap();
    let place = &history.place;
    let planned = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let known = place.objects("packs/").len();
    let result = backup::execute(&slow(), planned, &mut |_, stop| {
        if place.objects("packs/").len() > known {
            assert_eq!(place.objects("sessions/").len(), 1);
            stop.raise();
        }
    });
    assert_eq!(result.map(drop).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(place.objects("sessions/"), [""; 0]);
    assert!(place.try_verify(None).unwrap().unreferenced_packs.unwrap() > 0);
    fs::remove_file(place.source("much")).unwrap();
    assert!(expire(place, 1).outcome.leftover_packs > 0);
    history.holds_exactly(&history.made);
    history.nothing_is_left_over();
}

/// A session object as a host that may not delete leaves it: the manifest says that it is over.
#[test]
fn a_session_whose_backup_stands_protects_nothing() {
    let mut history = History::new(Place::sealed(), 1);
    fs::write(history.place.source("much"), history.random.bytes(24 * MIB)).unwrap();
    let place = &history.place;
    let planned = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let kept = RefCell::new(None);
    let id = backup_beside(&history.place, planned, || {
        let name = place.objects("sessions/").remove(0);
        let bytes = fs::read(place.object(&name)).unwrap();
        *kept.borrow_mut() = Some((name, bytes));
    });
    let id = id.unwrap().backup_id.to_string();
    let (name, bytes) = kept.into_inner().unwrap();
    fs::write(place.object(&name), bytes).unwrap();
    let summary = expire(place, 1);
    assert_eq!(summary.outcome.deleted.len(), 1);
    assert_eq!(summary.outcome.sessions_removed, 1);
    history.remember(id.clone());
    history.holds_exactly(&[id]);
    history.nothing_is_left_over();
}

/// Executes a plan of the repository's own and calls `told` at each object that is deleted.
fn execute_beside(place: &Place, last: u32, told: &(dyn Fn() + Sync)) -> Result<()> {
    let config = ShardConfig {
        shards: 1,
        pin: false,
        ..ShardConfig::default()
    };
    let body = async |shard: Shard| {
        let link = LinkLimits::default();
        let opened = Repository::open(&shard, &place.url(), &link, &place.credentials).await?;
        let repository = Arc::new(opened);
        let (policy, all) = (keep(last), Default::default());
        let plan = repo_expire::plan(&shard, &repository, &policy, &all, Timestamp::now()).await?;
        let done = repo_expire::execute(&shard, &repository, plan, &|_| told()).await;
        done.map(drop)
    };
    mover_io::run(&config, body, |_| {}).map(drop)
}

#[test]
fn an_expire_whose_session_was_given_up_deletes_nothing_more() {
    let history = History::new(Place::sealed(), 4);
    let place = &history.place;
    let packs = place.objects("packs/");
    let told = AtomicUsize::new(0);
    let result = execute_beside(place, 1, &|| {
        told.fetch_add(1, Relaxed);
        fs::remove_file(place.object(&place.objects("sessions/").remove(0))).unwrap();
    });
    assert_eq!(result.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(told.load(Relaxed), 1, "one manifest and nothing more");
    assert_eq!(place.objects("packs/"), packs);
    // The deletion may yet come true, as far as this run can know.
    assert_eq!(place.objects("expired/").len(), 3);
    history.holds_exactly(&history.made[1..]);
    expire(place, 1);
    history.holds_exactly(&history.made[3..]);
    history.nothing_is_left_over();
}

#[test]
fn unfinished_uploads_go_when_they_are_old_and_nobody_is_at_work() {
    let history = History::new(Place::plain(), 2);
    let place = &history.place;
    let session = Mutex::new(None);
    execute_beside(place, 1, &|| {
        let name = place.objects("sessions/").remove(0);
        let bytes = fs::read(place.object(&name)).unwrap();
        *session.lock().unwrap() = Some((place.object(&name), bytes));
    })
    .unwrap();
    let put = |digit: &str, hours: u64| {
        let path = place.object(&format!("tmp/{}.part", digit.repeat(32)));
        let file = fs::File::create(&path).unwrap();
        let age = Duration::from_secs(hours * 3600);
        file.set_modified(SystemTime::now() - age).unwrap();
        path
    };
    let (old, young) = (put("a", 25), put("b", 1));
    // Another expire, which runs as far as can be told.
    let (path, bytes) = session.into_inner().unwrap().unwrap();
    fs::write(&path, bytes).unwrap();
    assert_eq!(expire(place, 1).outcome.uploads_removed, 0);
    assert!(old.exists() && young.exists());
    fs::remove_file(&path).unwrap();
    assert_eq!(expire(place, 1).outcome.uploads_removed, 1);
    assert!(!old.exists() && young.exists());
    history.holds_exactly(&history.made[1..]);
}

#[test]
fn a_restore_whose_backup_is_deleted_meanwhile_fails_and_leaves_nothing() {
    // Each file has packs of its own, and more of them than a shard opens ahead.
    const FILES: usize = 8;
    let mut history = History::new(Place::plain(), 0);
    for at in 0..FILES {
        let path = history.place.source(&format!("part-{at}"));
        fs::write(path, history.random.bytes(4 * MIB)).unwrap();
        history.backup();
    }
    for at in 0..FILES {
        fs::remove_file(history.place.source(&format!("part-{at}"))).unwrap();
    }
    history.backup();
    let place = &history.place;
    let options = place.restore_options(&history.made[FILES - 1], "out", false);
    let plan = restore::plan(&engine(), &options, &mut |_, _| {}).unwrap();
    let around = || {
        let entries = fs::read_dir(place.path("")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.collect::<BTreeSet<_>>()
    };
    let before = around();
    let mut gone = None;
    let engine = Engine {
        shards: 1,
        ..slow()
    };
    let restored = restore::execute(&engine, plan, &mut |progress, _| {
        if gone.is_none() && progress.read().bytes_done > 0 {
            gone = Some(expire(place, 1).outcome.deleted.len());
        }
    });
    assert_eq!(gone, Some(FILES), "the restore was too quick for the test");
    let error = restored.map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
    assert_eq!(error.object_name(), Some(&*history.made[FILES - 1]));
    assert_eq!(around(), before, "{error}");
    history.holds_exactly(&history.made[FILES..]);
}

#[test]
fn a_pack_is_asked_once_who_wrote_it() {
    let mut history = History::new(Place::plain(), 1);
    let source = |history: &History, name: &str| history.place.source(name);
    fs::write(source(&history, "much"), history.random.bytes(24 * MIB)).unwrap();
    let place = &history.place;
    let planned = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    let session = RefCell::new(None);
    let owner = backup_beside(&history.place, planned, || {
        let path = place.object(&place.objects("sessions/").remove(0));
        let bytes = fs::read(&path).unwrap();
        *session.borrow_mut() = Some((path, bytes));
    });
    fs::remove_file(source(&history, "much")).unwrap();
    // One more that leaves packs over, of a session that has ended.
    let known = place.objects("packs/");
    fs::write(source(&history, "only"), Random(8).bytes(MIB)).unwrap();
    let other = place.backup().backup_id;
    let others = place.objects("packs/").into_iter();
    let others: Vec<String> = others.filter(|pack| !known.contains(pack)).collect();
    fs::remove_file(source(&history, "only")).unwrap();
    history.backup();
    let place = &history.place;
    for id in [owner.unwrap().backup_id, other] {
        fs::remove_file(place.object(&format!("backups/{id}"))).unwrap();
    }
    let (path, bytes) = session.into_inner().unwrap();
    fs::write(&path, bytes).unwrap();

    let plan = expire::plan(&engine(), &options(place, keep(2)), &mut |_, _| {}).unwrap();
    let planned = (plan.leftovers.packs, plan.leftovers.owned_packs);
    assert!(planned.0 > 0 && planned.1 > 0, "{planned:?}");
    let sound = others.iter().map(|pack| {
        let path = place.object(pack);
        let bytes = fs::read(&path).unwrap();
        // Nobody can tell any more who wrote it.
        fs::write(&path, b"damaged").unwrap();
        (path, bytes)
    });
    let sound: Vec<_> = sound.collect();
    let summary = expire::execute(&engine(), plan, &mut |_, _| {}).unwrap();
    assert_eq!(summary.outcome.leftover_packs, planned.0);
    for (path, bytes) in sound.iter().filter(|(path, _)| path.exists()) {
        fs::write(path, bytes).unwrap();
    }
    history.holds_exactly(&history.made);
    fs::remove_file(&path).unwrap();
    assert_eq!(expire(place, 2).outcome.leftover_packs, planned.1);
    history.nothing_is_left_over();
}

#[test]
fn a_run_that_ends_before_it_deletes_takes_all_its_tombstones_back() {
    let history = History::new(Place::plain(), 4);
    let place = &history.place;
    let plan = expire::plan(&engine(), &options(place, keep(1)), &mut |_, _| {}).unwrap();
    // The first is put off, the second cannot be.
    for id in &history.made[..2] {
        hold::add(&engine(), &place.access(), id, "wait").unwrap();
    }
    let manifest = place.object(&format!("backups/{}", history.made[1]));
    let sound = fs::read(&manifest).unwrap();
    fs::write(&manifest, b"damaged").unwrap();
    let before = place.objects("");
    let failed = expire::execute(&engine(), plan, &mut |_, _| {});
    assert_eq!(failed.map(drop).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(place.objects(""), before);
    fs::write(&manifest, sound).unwrap();
    history.holds_exactly(&history.made);
}

#[test]
fn two_expires_at_once_harm_nothing() {
    let history = History::new(Place::sealed(), 4);
    let place = &history.place;
    // One after the other, both planned before.
    let plan = || expire::plan(&engine(), &options(place, keep(3)), &mut |_, _| {}).unwrap();
    let (one, two) = (plan(), plan());
    for plan in [one, two] {
        let summary = expire::execute(&engine(), plan, &mut |_, _| {}).unwrap();
        assert!(summary.ok);
    }
    history.holds_exactly(&history.made[1..]);
    history.nothing_is_left_over();
    // Really at once. Either may find that the other was faster.
    let results: Vec<Result<ExpireSummary>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| try_expire(place, 1)))
            .collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for result in results {
        if let Err(error) = result {
            assert_eq!(error.kind(), Kind::Conflict, "{error}");
        }
    }
    expire(place, 1);
    history.holds_exactly(&history.made[3..]);
    history.nothing_is_left_over();
}

#[test]
fn a_hold_outlasts_every_policy() {
    let history = History::new(Place::sealed(), 3);
    let place = &history.place;
    // A host that can only write can hold.
    let writer = place.access_with(Credentials::None);
    let held = hold::add(&engine(), &writer, &history.made[0], "audit").unwrap();
    let error = hold::add(&engine(), &writer, &history.made[0], " ").unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    let error = hold::add(&engine(), &writer, "2", "several").unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    expire(place, 1);
    let kept = [history.made[0].clone(), history.made[2].clone()];
    history.holds_exactly(&kept);

    let listed = hold::list(&engine(), &place.access()).unwrap().holds;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].reason.as_deref(), Some("audit"));
    let shown = |id: &str| catalogue::show(&engine(), &place.access(), id).unwrap();
    let of_first = shown(&history.made[0]).holds;
    assert_eq!(of_first.len(), 1);
    assert_eq!(of_first[0].hold_id, held.hold_id);
    assert!(shown("latest").holds.is_empty());
    let blind = hold::list(&engine(), &writer).unwrap().holds;
    assert!(blind[0].reason.is_none() && blind[0].problem.is_some());
    assert!(
        !fs::read(place.object(&place.objects("holds/")[0]))
            .unwrap()
            .windows(5)
            .any(|bytes| bytes == b"audit")
    );
    let items = catalogue::list(&engine(), &place.access()).unwrap().backups;
    assert_eq!(
        items.iter().map(|item| item.holds).collect::<Vec<_>>(),
        [1, 0]
    );

    let prefix = &held.hold_id.to_string()[..6];
    hold::remove(&engine(), &place.access(), prefix).unwrap();
    let error = hold::remove(&engine(), &place.access(), prefix).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    expire(place, 1);
    history.holds_exactly(&history.made[2..]);
    history.nothing_is_left_over();
}

#[test]
fn a_hold_between_plan_and_execution_puts_the_backup_off() {
    let history = History::new(Place::plain(), 3);
    let place = &history.place;
    let plan = expire::plan(&engine(), &options(place, keep(1)), &mut |_, _| {}).unwrap();
    hold::add(&engine(), &place.access(), &history.made[1], "wait").unwrap();
    let outcome = expire::execute(&engine(), plan, &mut |_, _| {})
        .unwrap()
        .outcome;
    assert_eq!(outcome.put_off[0].reason, OtherReason::Hold);
    history.holds_exactly(&history.made[1..]);
    history.nothing_is_left_over();
}

#[test]
fn a_hold_that_may_be_too_late_is_taken_back_and_the_reason_told() {
    let history = History::new(Place::plain(), 1);
    let place = &history.place;
    // Whether an expire is at work cannot be told.
    let sessions = place.object("sessions");
    fs::remove_dir(&sessions).unwrap();
    std::os::unix::fs::symlink(place.path("nowhere"), &sessions).unwrap();
    let refused = hold::add(&engine(), &place.access(), &history.made[0], "why");
    let error = refused.unwrap_err();
    assert_ne!(error.kind(), Kind::NotFound, "{error}");
    assert!(error.to_string().contains("sessions"), "{error}");
    assert_eq!(place.objects("holds/"), [""; 0]);
    fs::remove_file(&sessions).unwrap();
    hold::add(&engine(), &place.access(), &history.made[0], "why").unwrap();
}

/// What an expire that was cut off leaves: a tombstone, with its session object or without.
#[test]
fn a_hold_comes_too_late_only_while_an_expire_is_at_work() {
    let history = History::new(Place::plain(), 2);
    let place = &history.place;
    let plan = expire::plan(&engine(), &options(place, keep(1)), &mut |_, _| {}).unwrap();
    // Made immutable, the manifest stays, and the run ends telling so; its records are caught on the way.
    let manifest = place.object(&format!("backups/{}", history.made[0]));
    let records = Immutable::new(&manifest);
    let summary = expire::execute(&engine(), plan, &mut |_, _| {}).unwrap();
    assert!(!summary.ok);
    drop(records);
    let session = "00112233445566778899aabbccddeeff";
    let mark = place.object(&format!("expired/{}/{session}", history.made[0]));
    fs::create_dir_all(mark.parent().unwrap()).unwrap();
    fs::write(&mark, b"only the name counts").unwrap();
    let items = catalogue::list(&engine(), &place.access()).unwrap().backups;
    assert_eq!(
        items.iter().map(|item| item.expiring).collect::<Vec<_>>(),
        [true, false]
    );
    for (id, expiring) in history.made.iter().zip([true, false]) {
        let shown = catalogue::show(&engine(), &place.access(), id).unwrap();
        assert_eq!(shown.expiring, expiring);
    }
    let standing = place.object(&format!("sessions/{session}"));
    fs::create_dir_all(standing.parent().unwrap()).unwrap();
    fs::write(&standing, b"whoever it is").unwrap();
    let late = hold::add(&engine(), &place.access(), &history.made[0], "late");
    assert_eq!(late.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(place.objects("holds/"), [""; 0]);
    // What cannot be read might be anybody: nothing is deleted beside it.
    assert_eq!(try_expire(place, 1).unwrap_err().kind(), Kind::Corrupt);
    expire::forget_session(&engine(), &place.access(), &session[..8]).unwrap();
    hold::add(&engine(), &place.access(), &history.made[0], "in time").unwrap();
    expire(place, 1);
    history.holds_exactly(&history.made);
    history.nothing_is_left_over();
}

#[test]
fn nothing_new_builds_on_what_carries_a_tombstone() {
    let mut history = History::new(Place::plain(), 2);
    let place = &history.place;
    let session = "00112233445566778899aabbccddeeff";
    let mark = place.object(&format!("expired/{}/{session}", history.made[1]));
    fs::create_dir_all(mark.parent().unwrap()).unwrap();
    fs::write(&mark, b"only the name counts").unwrap();
    let plan = backup::plan(&engine(), &place.backup_options(), &mut |_, _| {}).unwrap();
    assert_eq!(plan.parent.unwrap().to_string(), history.made[0]);
    let done = backup::execute(&engine(), plan, &mut |_, _| {}).unwrap();
    history.remember(done.backup_id.to_string());
    // A tombstone is no reason to delete, and one without a session goes.
    expire(&history.place, 2);
    history.holds_exactly(&history.made[1..]);
    history.nothing_is_left_over();
}

/// A file that not even root can delete, as objects under a lock.
struct Immutable<'a>(&'a Path);

impl<'a> Immutable<'a> {
    fn new(path: &'a Path) -> Self {
        Self::chattr("+i", path);
        Immutable(path)
    }

    fn chattr(change: &str, path: &Path) {
        let status = Command::new("chattr").arg(change).arg(path).status();
        assert!(
            status.unwrap().success(),
            "chattr {change} {}",
            path.display()
        );
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        Self::chattr("-i", self.0);
    }
}

#[test]
fn what_the_store_does_not_delete_is_told_and_the_rest_goes() {
    let history = History::new(Place::plain(), 6);
    let place = &history.place;
    let manifest = place.object(&format!("backups/{}", history.made[3]));
    let locked = Immutable::new(&manifest);
    let summary = try_expire(place, 1).unwrap();
    assert!(!summary.ok && summary.outcome.refused == 1, "{summary:?}");
    assert!(
        summary.outcome.refusals[0]
            .object
            .contains(&history.made[3])
    );
    assert_eq!(summary.outcome.deleted.len(), 4);
    // What is listed can be restored: the packs of a backup that could not be deleted stay.
    let kept = [history.made[3].clone(), history.made[5].clone()];
    history.holds_exactly(&kept);
    assert_eq!(place.try_verify(None).unwrap().unreferenced_packs, Some(0));
    assert_eq!(place.objects("sessions/"), [""; 0]);
    // Its tombstone stays until the next run: the deletion may yet come true.
    assert_eq!(place.objects("expired/").len(), 1);
    drop(locked);

    // A pack that only the other one needs.
    let all: BTreeSet<String> = place.packs(true).into_iter().collect();
    place.save_repo("saved");
    expire(place, 1);
    let left: BTreeSet<String> = place.packs(true).into_iter().collect();
    let doomed = all.difference(&left).next().unwrap().clone();
    place.reset_repo("saved");
    let pack = place.object(&doomed);
    let locked = Immutable::new(&pack);
    let summary = try_expire(place, 1).unwrap();
    assert!(!summary.ok && summary.outcome.refused == 1, "{summary:?}");
    assert!(summary.outcome.refusals[0].object.ends_with(&doomed));
    assert!(summary.outcome.packs > 0, "the others are gone");
    history.holds_exactly(&history.made[5..]);
    drop(locked);
    assert_eq!(expire(place, 1).outcome.leftover_packs, 1);
    history.nothing_is_left_over();
}

#[test]
fn whatever_is_doubtful_deletes_nothing() {
    let history = History::new(Place::plain(), 3);
    let place = &history.place;
    place.save_repo("saved");
    let first = format!("backups/{}", history.made[0]);
    let renamed = format!("{first}.bak");
    let pack = place.packs(true).remove(0);
    let pack_dir = Path::new(&pack).parent().unwrap().display().to_string();
    type Harm<'a> = (&'a str, Kind, Box<dyn Fn() + 'a>);
    let harms: [Harm<'_>; 7] = [
        (
            "a manifest was renamed",
            Kind::Corrupt,
            Box::new(|| fs::rename(place.object(&first), place.object(&renamed)).unwrap()),
        ),
        (
            "a manifest is damaged",
            Kind::Corrupt,
            Box::new(|| fs::write(place.object(&first), b"damaged").unwrap()),
        ),
        (
            "a manifest is a link",
            Kind::Storage,
            Box::new(|| {
                fs::rename(place.object(&first), place.path("aside")).unwrap();
                std::os::unix::fs::symlink(place.path("aside"), place.object(&first)).unwrap();
            }),
        ),
        (
            "the manifests are behind a link",
            Kind::Storage,
            Box::new(|| {
                fs::rename(place.object("backups"), place.path("aside-backups")).unwrap();
                let aside = place.path("aside-backups");
                std::os::unix::fs::symlink(aside, place.object("backups")).unwrap();
            }),
        ),
        (
            "a directory of packs is a link",
            Kind::Storage,
            Box::new(|| {
                fs::rename(place.object(&pack_dir), place.path("aside-packs")).unwrap();
                let aside = place.path("aside-packs");
                std::os::unix::fs::symlink(aside, place.object(&pack_dir)).unwrap();
            }),
        ),
        (
            "a session cannot be read",
            Kind::Corrupt,
            Box::new(|| {
                fs::create_dir_all(place.object("sessions")).unwrap();
                let name = "sessions/00112233445566778899aabbccddeeff";
                fs::write(place.object(name), b"damaged").unwrap();
            }),
        ),
        (
            "a hold was renamed",
            Kind::Corrupt,
            Box::new(|| {
                fs::create_dir_all(place.object("holds")).unwrap();
                fs::write(place.object("holds/renamed"), b"a hold").unwrap();
            }),
        ),
    ];
    for (what, kind, harm) in harms {
        harm();
        let before = place.objects("");
        let error = try_expire(place, 1).unwrap_err();
        // Where links make the listing fail, the driver says how.
        if kind != Kind::Storage {
            assert_eq!(error.kind(), kind, "{what}: {error}");
        }
        assert_eq!(place.objects(""), before, "{what}: {error}");
        for aside in ["aside", "aside-backups", "aside-packs"] {
            let aside = place.path(aside);
            match aside.is_dir() {
                true => fs::remove_dir_all(&aside).unwrap(),
                false => drop(fs::remove_file(&aside)),
            }
        }
        place.reset_repo("saved");
    }
    history.holds_exactly(&history.made);
    // Without any manifest the packs may be all that is left.
    let packs = place.objects("packs/");
    fs::remove_dir_all(place.object("backups")).unwrap();
    let summary = expire(place, 1);
    assert!(!summary.outcome.warnings.is_empty());
    assert_eq!(place.objects("packs/"), packs);
}

#[test]
fn notes_are_laid_over_the_manifest_in_order() {
    let place = Place::sealed();
    fs::write(place.source("a"), b"a").unwrap();
    let mut made = place.backup_options();
    made.annotations = BTreeMap::from([
        ("ticket".to_owned(), "1".to_owned()),
        ("old".to_owned(), "x".to_owned()),
    ]);
    place.try_backup(&engine(), &made).unwrap();
    let change = |put: &[(&str, &str)], remove: &[&str]| {
        let options = AnnotateOptions {
            set: "latest".to_owned(),
            put: put
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            remove: remove.iter().map(|key| (*key).to_owned()).collect(),
        };
        // Without a key: whoever can write can annotate.
        let writer = place.access_with(Credentials::None);
        annotate::run(&engine(), &writer, &options)
    };
    assert_eq!(
        change(&[("ticket", "2"), ("new", "näch")], &["old"])
            .unwrap()
            .number,
        1
    );
    assert_eq!(change(&[("old", "again")], &["new"]).unwrap().number, 2);
    assert_eq!(change(&[], &[]).unwrap_err().kind(), Kind::Usage);
    assert_eq!(
        change(&[("a", "b")], &["a"]).unwrap_err().kind(),
        Kind::Usage
    );
    let expected = BTreeMap::from([
        ("ticket".to_owned(), "2".to_owned()),
        ("old".to_owned(), "again".to_owned()),
    ]);
    let shown = catalogue::show(&engine(), &place.access(), "latest").unwrap();
    assert_eq!(shown.metadata.annotations, expected);
    let listed = catalogue::list(&engine(), &place.access()).unwrap();
    let metadata = listed.backups[0].metadata.as_ref().unwrap();
    assert_eq!(metadata.annotations, expected);

    // Writers at once take numbers of their own.
    std::thread::scope(|scope| {
        let change = &change;
        for i in 0..4 {
            scope.spawn(move || change(&[(&format!("k{i}"), "at once")], &[]).unwrap());
        }
    });
    let shown = catalogue::show(&engine(), &place.access(), "latest").unwrap();
    assert_eq!(shown.metadata.annotations.len(), 6);

    // A damaged change is told and the others are applied; they go with their backup.
    let changes = place.objects("annotations/");
    assert_eq!(changes.len(), 6);
    fs::write(place.object(&changes[1]), b"damaged").unwrap();
    let shown = catalogue::show(&engine(), &place.access(), "latest").unwrap();
    assert_eq!(shown.problems.len(), 1);
    assert!(shown.metadata.annotations.contains_key("new"));
    place.backup();
    expire(&place, 1);
    assert_eq!(place.objects("annotations/"), [""; 0]);
}
