//! Restores beside an `expire` that would delete what they read.

use mover_tests::throttle::NO_WRITES;

use super::*;

/// At this rate a restore of what is planted has begun to write long before its end.
const CREEP: &str = "limit-write = '1MiB/s'\n";
/// A job whose limits change has all its shards from the beginning.
const AT_ONCE: [&str; 2] = ["--gentle", "false"];

/// A repository on a directory with two backups, of which each has so many MiB that the other has not.
fn two_backups(scratch: &Scratch, mib: u64) -> (Repo, History) {
    let repo = Repo::create(scratch, "repo", Protection::Passphrase);
    let mut history = History::new((*repo).clone(), scratch, 0);
    plant::file(
        &history.source.join("much"),
        &mut history.random,
        (mib * MIB) as usize,
    );
    history.backup();
    plant::file(
        &history.source.join("much"),
        &mut history.random,
        (mib * MIB) as usize,
    );
    history.backup();
    (repo, history)
}

fn delta_of(history: &History, set: &str, target: &Path) -> Command {
    let mut command = history.repo.restore_command(set, target);
    command.arg("--delta");
    command
}

/// Starts a restore of the first backup over a target that holds the second, and waits until it bears its hold; then it gets no
/// further.
fn held_delta(history: &History, repo: &Repo, target: &Path, throttle: &Throttle) -> Job {
    history.repo.restore(history.id(1), target).summary();
    let much = || fs::read(target.join("much")).expect("a file that both have");
    let before = much();
    let mut delta = delta_of(history, history.id(0), target);
    throttle.put_on(delta.args(AT_ONCE));
    let mut job = Job::start(&mut delta);
    wait_until(|| much() != before);
    throttle.change(&mut job, NO_WRITES);
    assert_eq!(names(repo, "holds/").len(), 1);
    job
}

#[test]
fn what_is_restored_over_a_target_is_not_deleted_until_that_is_whole() {
    let scratch = Scratch::new("expire-delta");
    let (repo, history) = two_backups(&scratch, 16);
    let target = scratch.join("target");
    let throttle = Throttle::new(&scratch, "limits.toml", CREEP);
    let mut job = held_delta(&history, &repo, &target, &throttle);
    let shown = Outcome::of(repo.command("hold list").arg("--json")).expect(exit::OK);
    let hold = &shown.document()["holds"][0];
    assert_eq!(hold["backup_id"], history.id(0), "{hold}");
    let reason = hold["reason"].as_str().expect("reason");
    assert!(reason.contains("is not finished"), "{reason}");
    assert!(reason.contains(target.to_str().expect("UTF-8")), "{reason}");

    history.expire(&["--keep-last", "1", "--confirm"]).summary();
    assert_eq!(repo.ids(), [history.id(0), history.id(1)]);
    assert!(job.is_running(), "ended too early\n{}", job.outcome());
    throttle.change(&mut job, NO_LIMITS);
    let done = job.outcome().summary();
    assert_eq!(done["warnings"], serde_json::json!([]), "{done}");
    history.made[0].1.assert_same(&Tree::read(&target), "delta");

    assert_eq!(names(&repo, "holds/"), [""; 0]);
    history.expire(&["--keep-last", "1", "--confirm"]).summary();
    history.holds_exactly(&[1], &scratch);
    history.nothing_is_left_over();
}

#[test]
fn a_killed_restore_over_a_target_leaves_its_backup_held_for_the_next_one() {
    let scratch = Scratch::new("expire-delta-killed");
    let (repo, history) = two_backups(&scratch, 16);
    let target = scratch.join("target");
    let throttle = Throttle::new(&scratch, "limits.toml", CREEP);
    let mut job = held_delta(&history, &repo, &target, &throttle);
    job.signal(Signal::KILL);
    drop(job);
    history.expire(&["--keep-last", "1", "--confirm"]).summary();
    assert_eq!(repo.ids(), [history.id(0), history.id(1)]);

    // Of another target: what that leaves of holds is its own affair.
    let other = scratch.join("other");
    history.repo.restore(history.id(1), &other).summary();
    Outcome::of(&mut delta_of(&history, history.id(0), &other)).summary();
    assert_eq!(names(&repo, "holds/").len(), 1);
    Outcome::of(&mut delta_of(&history, history.id(0), &target)).summary();
    history.made[0].1.assert_same(&Tree::read(&target), "delta");
    assert_eq!(names(&repo, "holds/"), [""; 0]);
}

#[test]
fn a_restore_that_changes_nothing_leaves_no_hold() {
    let scratch = Scratch::new("expire-delta-refused");
    let (repo, history) = two_backups(&scratch, 16);
    let target = scratch.join("target");
    history.repo.restore(history.id(1), &target).summary();
    let before = Tree::read(&target);
    let pack = names(&repo, "packs/").remove(0);
    let (kept, away) = (repo.dir.join(&pack), scratch.join("pack"));
    fs::rename(&kept, &away).expect("a pack");
    // Whichever backup the pack is of: one of the two lacks it, or both do.
    let refused = [0, 1].map(|at| Outcome::of(&mut delta_of(&history, history.id(at), &target)));
    assert!(
        refused.iter().any(|one| one.code == Some(exit::CORRUPT)),
        "{refused:?}"
    );
    assert_eq!(names(&repo, "holds/"), [""; 0]);
    fs::rename(&away, &kept).expect("a pack");
    Outcome::of(&mut delta_of(&history, history.id(1), &target)).summary();
    before.assert_same(&Tree::read(&target), "restored again");
}

/// A request that was sent before the signal, and whose answer nobody waits for any more, may have put the hold on.
#[test]
fn a_restore_over_a_target_that_is_stopped_while_it_puts_its_hold_on_takes_that_back() {
    let scratch = Scratch::new("expire-delta-stopped");
    let server = FilesystemS3::start(&scratch.dir("server"));
    let access = server.access();
    let repo = repo_in(access, &scratch, "expire", Protection::Identity);
    let history = History::new(repo, &scratch, 1);
    let client = access.client();
    let holds = || keys_below(&client, "holds/");
    let target = scratch.join("target");
    history.repo.restore(history.id(0), &target).summary();
    let before = Tree::read(&target);
    let fault = |action: Action, method: &str| Fault::new(action).method(method).times(1);
    let moments = [
        // It is created, and nobody says so.
        fault(UNANSWERED, "PUT").path("expire/holds/"),
        // It is created, and whether in time is looked up.
        fault(Action::Stall, "GET").query("prefix=expire%2Fexpired"),
    ];
    for fault in moments {
        let proxy = FaultProxy::start(&access.endpoint);
        let hit = proxy.inject(fault.clone());
        let through = access.at(&proxy.endpoint());
        let repo = history
            .repo
            .at(&through.url("expire"), &variables(&access.key));
        let mut command = repo.restore_command(history.id(0), &target);
        command.arg("--delta");
        let stopped = stopped_at(&proxy, hit, &mut command, || !holds().is_empty());
        assert_eq!(holds(), [""; 0], "{fault:?}");
        assert!(!stopped.stdout.contains("may stay"), "{stopped}");
        before.assert_same(&Tree::read(&target), "after the stop");
    }
}

#[test]
fn a_restore_whose_backup_is_deleted_meanwhile_says_so_and_leaves_nothing() {
    let scratch = Scratch::new("expire-restore");
    let (repo, history) = two_backups(&scratch, 96);
    let target = scratch.join("target");
    let mut restore = history.repo.restore_command(history.id(0), &target);
    let throttle = Throttle::new(&scratch, "limits.toml", NO_WRITES);
    throttle.put_on(restore.args(AT_ONCE));
    let mut job = Job::start(&mut restore);
    let staged = || {
        let entries = fs::read_dir(scratch.path()).expect("scratch");
        let names = entries.map(|entry| entry.expect("entry").file_name());
        names
            .filter(|name| name.to_string_lossy().contains("helios-mover-partial"))
            .count()
    };
    wait_until(|| staged() > 0);
    history.expire(&["--keep-last", "1", "--confirm"]).summary();
    assert_eq!(repo.ids(), [history.id(1)]);
    assert!(job.is_running(), "ended too early\n{}", job.outcome());
    throttle.change(&mut job, NO_LIMITS);
    let error = job.outcome().told(exit::CONFLICT, history.id(0));
    let message = error["message"].as_str().expect("message");
    assert!(message.contains("deleted while it was restored"), "{error}");
    assert!(!target.exists());
    assert_eq!(staged(), 0);
}

/// What it asked the storage to delete may still go, so nothing is begun that could not be ended; an operator knows better.
#[test]
fn what_a_dead_expire_was_about_to_delete_is_restored_over_a_target_when_that_is_given_up() {
    mover_tests::run::require_root();
    let scratch = Scratch::new("expire-delta-dead");
    let (repo, history) = two_backups(&scratch, 2);
    let target = scratch.join("target");
    history.repo.restore(history.id(1), &target).summary();
    let mut expire = repo.command("expire");
    expire.args(["--keep-last", "1", "--confirm", "--json"]);
    // Its tombstone stands when it begins to delete.
    let home = scratch.dir("home-of-strace");
    let killed = Outcome::of(&mut killed_at(&expire, &home, "unlinkat", 1));
    assert_ne!(killed.code, Some(exit::OK), "{killed}");
    assert_eq!(repo.ids(), [history.id(0), history.id(1)]);
    assert!(!names(&repo, "expired/").is_empty());
    let session = names(&repo, "sessions/").remove(0);
    let session = session.rsplit('/').next().expect("a name");

    let before = Tree::read(&target);
    let refused = Outcome::of(&mut delta_of(&history, history.id(0), &target));
    let error = refused.told(exit::CONFLICT, history.id(0));
    let hint = error["hint"].as_str().expect("hint");
    assert!(hint.contains("into an empty directory"), "{error}");
    let way_out = format!("helios-mover expire --forget-session {session} --confirm");
    assert!(hint.contains(&way_out), "{error}");
    before.assert_same(&Tree::read(&target), "after the refusal");
    assert_eq!(names(&repo, "holds/"), [""; 0]);

    let mut forget = repo.command("expire");
    forget.args(["--forget-session", session, "--confirm", "--json"]);
    Outcome::of(&mut forget).summary();
    Outcome::of(&mut delta_of(&history, history.id(0), &target)).summary();
    history.made[0].1.assert_same(&Tree::read(&target), "delta");
    assert_eq!(names(&repo, "holds/"), [""; 0]);
    history.holds_exactly(&[0, 1], &scratch);
}

/// Who may enter a directory that root makes in another user's repository? Not that user.
#[test]
fn nothing_is_written_into_the_repository_of_another_user() {
    mover_tests::run::require_root();
    let scratch = Scratch::new("expire-delta-foreign");
    let (repo, history) = two_backups(&scratch, 2);
    let target = scratch.join("target");
    history.repo.restore(history.id(1), &target).summary();
    let owned = Command::new("chown")
        .args(["-R", "nobody"])
        .arg(&repo.dir)
        .status();
    assert!(owned.expect("chown").success());
    let before = Tree::read(&repo.dir);
    let done = Outcome::of(&mut delta_of(&history, history.id(0), &target)).summary();
    let warnings = done["warnings"].to_string();
    assert!(warnings.contains("no hold could be put"), "{done}");
    before.assert_same(&Tree::read(&repo.dir), "the repository after a restore");
    history.made[0].1.assert_same(&Tree::read(&target), "delta");
}
