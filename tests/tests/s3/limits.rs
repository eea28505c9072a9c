//! What bounds a job on its way to the store: bytes and requests a second, also where they are changed while it runs.

use std::fs;
use std::process::Command;
use std::time::Instant;

use mover_test_servers::{FaultProxy, FilesystemS3};
use mover_tests::bucket::{repo_in, variables};
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{Outcome, Protection, exit, identity};
use mover_tests::plant;
use mover_tests::proof::restores_to;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use rustix::process::Signal;

use super::SEED;

/// So slow that the data would take longer than anything is waited for.
const CRAWL: &str = "64KiB/s";
const DATA_BYTES: usize = 12 << 20;
/// Requests a second, and what may come at once after a pause.
const RATE: f64 = 5.0;
const AT_ONCE: f64 = 10.0;
/// Key slots whose listing takes more requests than may come at once.
const SLOTS: usize = 25;

#[test]
fn limits_of_the_link_are_taken_over_by_a_job_that_runs() {
    let scratch = Scratch::new("s3-new-limits");
    let server = FilesystemS3::start(scratch.path());
    let repo = repo_in(server.access(), &scratch, "limits", Protection::Identity);
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let truth = Tree::read(&source);
    let target = scratch.join("target");
    let file = scratch.join("config.toml");
    let printed = scratch.join("printed");
    let freed = |mut command: Command, limit: &str, phase: &str| {
        fs::write(&file, format!("{limit} = '{CRAWL}'\n")).expect("a configuration file");
        command.arg("--config").arg(&file);
        let mut job = Job::start_until(&mut command, printed.clone(), phase);
        fs::write(&file, format!("{limit} = 'none'\n")).expect("a configuration file");
        job.signal(Signal::USR2);
        wait_until(|| !job.is_running());
        job.outcome().expect(exit::OK);
    };
    freed(repo.backup_command(&source), "limit-upload", "copy");
    freed(
        repo.restore_command("latest", &target),
        "limit-download",
        "restore",
    );
    truth.assert_same(&Tree::read(&target), "restored");
    restores_to(&repo, "latest", &truth, &scratch);
}

/// Runs a command that may ask [`RATE`] times a second, fails the test if it asks more often, and returns how often it asked in all.
fn asked_by(proxy: &FaultProxy, mut command: Command) -> f64 {
    command.args(["--limit-requests", &RATE.to_string()]);
    let (before, start) = (proxy.seen().len(), Instant::now());
    Outcome::of(&mut command).expect(exit::OK);
    let asked = (proxy.seen().len() - before) as f64;
    // It may take longer for any reason, and never shorter.
    let allowed = RATE * start.elapsed().as_secs_f64() + AT_ONCE;
    assert!(asked <= allowed, "{asked} requests instead of {allowed}");
    asked
}

#[test]
fn no_job_asks_more_often_than_it_may() {
    let scratch = Scratch::new("s3-limited-requests");
    let server = FilesystemS3::start(scratch.path());
    let access = server.access();
    let direct = repo_in(access, &scratch, "requests", Protection::None);
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    for i in 0..6 {
        plant::file(&source.join(format!("table-{i}")), &mut random, 12 << 20);
    }
    let proxy = FaultProxy::start(&access.endpoint);
    let url = access.at(&proxy.endpoint()).url("requests");
    let repo = direct.at(&url, &variables(&access.key));
    let target = scratch.join("target");
    let mut verify = repo.command("verify");
    verify.arg("--json");
    let asked_most = [
        repo.backup_command(&source),
        repo.restore_command("latest", &target),
        verify,
    ]
    .map(|command| asked_by(&proxy, command))
    .into_iter()
    .fold(0.0, f64::max);
    assert!(
        asked_most > 2.0 * AT_ONCE,
        "{asked_most} requests say nothing"
    );
    Tree::read(&source).assert_same(&Tree::read(&target), "restored");
}

#[test]
fn a_listing_of_keys_asks_no_more_often_than_it_may() {
    let scratch = Scratch::new("s3-limited-keys");
    let server = FilesystemS3::start(scratch.path());
    let access = server.access();
    let direct = repo_in(access, &scratch, "keys", Protection::Identity);
    for slot in 1..SLOTS {
        let (_, recipient) = identity(&scratch, &format!("slot-{slot}"));
        let mut add = direct.command("key add");
        Outcome::of(add.args(["--recipient", &recipient])).expect(exit::OK);
    }
    let proxy = FaultProxy::start(&access.endpoint);
    let url = access.at(&proxy.endpoint()).url("keys");
    let repo = direct.at(&url, &variables(&access.key));
    let asked = asked_by(&proxy, repo.command("key list"));
    assert!(asked > 2.0 * AT_ONCE, "{asked} requests say nothing");
}
