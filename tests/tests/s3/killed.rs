//! kill -9 of jobs with a repository in S3: what is listed restores exactly, verification passes, no target is half visible, on a
//! store that keeps conditional writes and on one that does not.
//!
//! The instants are random. Beside that, where new objects are claimed because writes know no conditions, jobs are killed
//! while their claims stand, which is for a few requests only: when the server has a certain one of these and does not answer.

use mover_test_servers::{Action, Conditions, Fault, FaultProxy, FilesystemOptions, FilesystemS3};
use mover_tests::bucket::repo_in;
use mover_tests::mover::Protection;
use mover_tests::plant;
use mover_tests::proof::{
    KillAt, KillPlan, change, kill_backups, kill_restores, killed_backups_harm_nothing,
};
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

use super::{SEED, objects};

/// Kills of restores before their end.
const KILLS: u64 = 20;
/// The same of backups, which come in rounds of so many: two of them as a rule.
const KILLS_EARLY: u64 = 12;
/// On a store without conditional writes so many of those of backups come at each of two certain requests.
const KILLS_AT_REQUEST: u64 = 4;

#[test]
fn killed_backups_leave_a_sound_repository_in_s3() {
    let mut random = Random::new(SEED);
    let scratch = Scratch::new("s3-kill");
    let server = FilesystemS3::start(scratch.path());
    let source = scratch.dir("source");
    plant::mixed(&source, &mut random, 4 << 20);
    let repo = repo_in(server.access(), &scratch, "kill", Protection::Identity);
    repo.backup(&source).summary();
    let seen = killed_backups_harm_nothing(&repo, &source, KILLS_EARLY, &mut random, &scratch);
    eprintln!("{seen:?}");
}

/// A killed writer's claim keeps others from its object for a minute. Of all that a backup writes only the manifest is claimed,
/// and no other backup wants its name, so nobody waits.
#[test]
fn killed_backups_leave_a_sound_repository_where_conditions_are_ignored() {
    let mut random = Random::new(SEED);
    let scratch = Scratch::new("s3-kill-claims");
    let options = FilesystemOptions {
        conditions: Conditions::Ignored,
        ..FilesystemOptions::default()
    };
    let server = FilesystemS3::start_with(scratch.path(), options);
    let proxy = FaultProxy::start(&server.access().endpoint);
    let access = server.access().at(&proxy.endpoint());
    let repo = repo_in(&access, &scratch, "weak", Protection::Identity);
    let source = scratch.dir("source");
    plant::mixed(&source, &mut random, 2 << 20);
    repo.backup(&source).summary();

    let mut killed_at = |request: Fault| {
        let request = proxy.inject(request.times(KILLS_AT_REQUEST));
        let arrived = || proxy.hits(request);
        let plan = KillPlan {
            kills: KILLS_AT_REQUEST,
            at: KillAt::Pack(1, &arrived),
            change,
        };
        let seen = kill_backups(&repo, &source, &plan, &mut random, &scratch);
        assert_eq!(arrived(), KILLS_AT_REQUEST, "{seen:?}");
        assert_eq!(seen.before_end, KILLS_AT_REQUEST, "{seen:?}");
        seen.published
    };
    // Between the claim and the manifest: who has written a claim looks for others.
    let looks = Fault::new(Action::Stall).method("GET").query("claim-");
    assert_eq!(killed_at(looks), 0);
    // Between the manifest and the end of the claim.
    let withdraws = Fault::new(Action::Stall).method("DELETE").path("/claim-");
    assert_eq!(killed_at(withdraws), KILLS_AT_REQUEST);
    let left = objects(server.access(), "weak/tmp").into_iter();
    let claims = left.filter(|object| object.key.contains("/claim-"));
    assert_eq!(claims.count() as u64, 2 * KILLS_AT_REQUEST);

    let kills = KILLS_EARLY - KILLS_AT_REQUEST;
    let seen = killed_backups_harm_nothing(&repo, &source, kills, &mut random, &scratch);
    eprintln!("{seen:?}");
}

#[test]
fn killed_restores_from_s3_leave_no_half_target() {
    let mut random = Random::new(SEED);
    let scratch = Scratch::new("s3-kill-restore");
    let server = FilesystemS3::start(scratch.path());
    let source = scratch.dir("source");
    plant::mixed(&source, &mut random, 8 << 20);
    let repo = repo_in(server.access(), &scratch, "restores", Protection::Identity);
    repo.backup(&source).summary();
    let stored = objects(server.access(), "restores");
    let truth = Tree::read(&source);
    let seen = kill_restores(&repo, &truth, KILLS, &mut random, &scratch);
    assert_eq!(stored, objects(server.access(), "restores"));
    eprintln!("{seen:?}");
    assert!(seen.left_behind > 0, "{seen:?}");
}
