//! Retention as operators meet it: what is kept restores exactly, what is not is gone; beside running backups, after kills at
//! every step, on directories and in S3.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mover_test_servers::{
    Access, Action, Client, Fault, FaultId, FaultProxy, FilesystemS3, Garage, Reply,
};
use mover_tests::bucket::{repo_in, variables};
use mover_tests::clock;
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{AnyRepo, Outcome, Protection, Repo, exit, isolated};
use mover_tests::plant::{self, MIB};
use mover_tests::proof::{change, restores_to};
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::throttle::{NO_LIMITS, NO_READS, Throttle};
use mover_tests::tree::Tree;
use rustix::process::Signal;

#[path = "expire/hidden.rs"]
mod hidden;
#[path = "expire/restores.rs"]
mod restores;
#[path = "expire/scope.rs"]
mod scope;

/// Seed of everything that is planted here.
const SEED: u64 = 0x6578_7069;
/// At this rate a backup of what is planted has read what fills its first pack long before the end, with two shards; one, which
/// reads all that is planted ahead, has not.
const CRAWL: &str = "limit-read = '2MiB/s'\n";
const SHARDS: [&str; 2] = ["--shards", "2"];

/// A source that changes, and the truth of each backup of it.
struct History {
    repo: AnyRepo,
    source: PathBuf,
    random: Random,
    made: Vec<(String, Tree)>,
}

impl History {
    fn new(repo: AnyRepo, scratch: &Scratch, backups: usize) -> Self {
        let mut history = History {
            repo,
            source: scratch.dir("source"),
            random: Random::new(SEED),
            made: Vec::new(),
        };
        plant::mixed(&history.source, &mut history.random, 6 << 20);
        for _ in 0..backups {
            history.backup();
        }
        history
    }

    /// Changes the source and backs it up.
    fn backup(&mut self) {
        change(&self.source, &mut self.random);
        let truth = Tree::read(&self.source);
        let summary = self.repo.backup(&self.source).summary();
        let id = summary["backup_id"].as_str().expect("id").to_owned();
        self.made.push((id, truth));
    }

    fn id(&self, at: usize) -> &str {
        &self.made[at].0
    }

    fn expire(&self, arguments: &[&str]) -> Outcome {
        let mut command = self.repo.command("expire");
        Outcome::of(command.args(arguments).arg("--json"))
    }

    /// Exactly these are listed, and each restores exactly.
    #[track_caller]
    fn holds_exactly(&self, kept: &[usize], scratch: &Scratch) {
        let expected: Vec<&str> = kept.iter().map(|at| self.id(*at)).collect();
        assert_eq!(self.repo.ids(), expected);
        for &at in kept {
            restores_to(&self.repo, self.id(at), &self.made[at].1, scratch);
        }
        let verified = self.repo.verify().expect(exit::OK).summary();
        assert_eq!(verified["ok"], true, "{verified}");
    }

    /// No pack is stored that no backup needs.
    #[track_caller]
    fn nothing_is_left_over(&self) {
        let verified = self.repo.verify().summary();
        assert_eq!(verified["unreferenced_packs"], 0, "{verified}");
    }
}

/// Names of the objects below `prefix`, seen without the tool.
fn names(repo: &Repo, prefix: &str) -> Vec<String> {
    let objects = repo.objects().into_iter();
    objects
        .map(|(path, _)| path.to_str().expect("UTF-8").to_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

#[test]
fn after_a_clock_went_back_the_last_backup_is_the_latest() {
    let scratch = Scratch::new("expire-clock");
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let mut history = History::new((*repo).clone(), &scratch, 1);
    // Less than what an expire takes for a clock that cannot be right.
    change(&history.source, &mut history.random);
    let truth = Tree::read(&history.source);
    let mut command = history.repo.backup_command(&history.source);
    clock::off_by(&mut command, "+30m");
    let summary = Outcome::of(&mut command).summary();
    assert_eq!(summary["warnings"], serde_json::json!([]), "{summary}");
    let id = summary["backup_id"].as_str().expect("id").to_owned();
    history.made.push((id, truth));

    for _ in 0..2 {
        history.backup();
    }
    let made: Vec<&str> = history.made.iter().map(|(id, _)| id.as_str()).collect();
    assert!(made.is_sorted(), "{made:?}");
    assert_eq!(history.repo.ids(), made);
    let shown = Outcome::of(history.repo.command("show").args(["latest", "--json"]));
    assert_eq!(shown.document()["metadata"]["backup_id"], made[3]);
    restores_to(&history.repo, "latest", &history.made[3].1, &scratch);
    // What is unchanged is found where the clock was right, and where it was not.
    let again = history.repo.backup(&history.source).summary();
    assert!(
        again["warnings"][0]
            .to_string()
            .contains("the clock went back"),
        "{again}"
    );
    assert_eq!(again["parent"], made[3], "{again}");
    let kept = again["backup_id"].as_str().expect("id").to_owned();
    let truth = Tree::read(&history.source);
    history.made.push((kept, truth));
    history
        .expire(&["--keep-last", "2", "--confirm"])
        .expect(exit::OK);
    history.holds_exactly(&[3, 4], &scratch);
}

#[test]
fn a_plan_says_what_would_go_and_only_a_confirmation_deletes() {
    let scratch = Scratch::new("expire-plan");
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let history = History::new((*repo).clone(), &scratch, 3);
    let usage = history.expire(&["--confirm"]).expect(exit::USAGE).error();
    assert!(usage["hint"].to_string().contains("--keep-last"), "{usage}");
    history.expire(&["--keep-last", "0"]).expect(exit::USAGE);
    history.expire(&["--keep-within", "1m"]).expect(exit::USAGE);
    history
        .expire(&["--forget-session", "ab"])
        .expect(exit::USAGE);

    let before = Tree::read(&repo.dir);
    let plan = history.expire(&["--keep-last", "1", "--keep-daily", "1"]);
    let plan = plan.summary();
    assert_eq!(plan["dry_run"], true);
    assert_eq!(plan["expired"], 2);
    let verdicts = plan["backups"].as_array().expect("backups");
    assert_eq!(verdicts.len(), 3);
    assert_eq!(verdicts[2]["reasons"].to_string(), r#"["last","daily"]"#);
    assert_eq!(verdicts[0]["reasons"].to_string(), "[]");
    assert!(verdicts[0]["freed_bytes"].as_u64() > Some(0), "{plan}");
    let mut human = repo.command("expire");
    let human = Outcome::of(human.args(["--keep-last", "1"])).expect(exit::OK);
    for text in [
        "nothing was deleted",
        "WHY",
        "last",
        "no rule keeps it",
        history.id(0),
    ] {
        assert!(human.stdout.contains(text), "{text} in\n{human}");
    }
    assert!(!human.stdout.contains("SESSION"), "none stands:\n{human}");
    before.assert_same(&Tree::read(&repo.dir), "the repository after plans");

    // Rules may stand in the configuration, a confirmation may not.
    let file = scratch.join("config.toml");
    fs::write(&file, "[expire]\nkeep-last = 1\n").expect("file");
    let file = file.to_str().expect("UTF-8");
    assert_eq!(history.expire(&["--config", file]).summary()["expired"], 2);
    let done = history.expire(&["--config", file, "--confirm"]).summary();
    assert_eq!(done["ok"], true);
    assert_eq!(done["deleted"].as_array().map(Vec::len), Some(2), "{done}");
    assert_eq!(done["freed_bytes"], plan["freed_bytes"], "{done}");
    history.holds_exactly(&[2], &scratch);
    history.nothing_is_left_over();
}

#[test]
fn holds_and_notes_are_made_without_a_key() {
    let scratch = Scratch::new("expire-holds");
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let history = History::new((*repo).clone(), &scratch, 3);
    let writer = repo.opened_with(&[]);
    let run = |repo: &AnyRepo, verb: &str, arguments: &[&str]| {
        Outcome::of(repo.command(verb).args(arguments).arg("--json"))
    };
    run(&writer, "hold add", &[history.id(0)]).expect(exit::USAGE);
    let held = run(&writer, "hold add", &[history.id(0), "--reason", "audit"]);
    let held = held.expect(exit::OK).document();
    run(&writer, "expire", &["--keep-last", "1"]).expect(exit::KEY);
    history.expire(&["--keep-last", "1", "--confirm"]).summary();
    history.holds_exactly(&[0, 2], &scratch);

    run(&writer, "annotate", &["latest", "ticket=1", "who=me"]).expect(exit::OK);
    run(
        &repo,
        "annotate",
        &["latest", "ticket=2", "--remove", "who"],
    )
    .expect(exit::OK);
    run(&repo, "annotate", &["latest"]).expect(exit::USAGE);
    let shown = run(&repo, "show", &[]).expect(exit::OK).document();
    assert_eq!(
        shown["metadata"]["annotations"].to_string(),
        r#"{"ticket":"2"}"#
    );
    let listed = Outcome::of(&mut repo.command("list")).expect(exit::OK);
    assert!(
        listed.stdout.contains("ticket=2") && listed.stdout.contains("held"),
        "{listed}"
    );

    let document = run(&repo, "hold list", &[]).expect(exit::OK).document();
    assert_eq!(document["holds"][0]["reason"], "audit");
    let id = held["hold"]["hold_id"].as_str().expect("id");
    run(&repo, "hold remove", &[&id[..8]]).expect(exit::OK);
    run(&repo, "hold remove", &[id]).expect(exit::NOT_FOUND);
    history.expire(&["--keep-last", "1", "--confirm"]).summary();
    history.holds_exactly(&[2], &scratch);
    history.nothing_is_left_over();
}

/// The command that runs `command` under strace, to be killed at the `nth` call of `call`.
fn killed_at(command: &Command, home: &Path, call: &str, nth: usize) -> Command {
    let mut traced = isolated(Command::new("strace"), home);
    traced
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={call}"))
        .arg("-e")
        .arg(format!("inject={call}:signal=KILL:when={nth}"))
        .arg(command.get_program())
        .args(command.get_args());
    traced
}

#[test]
fn killed_at_every_change_it_loses_nothing_that_is_listed() {
    let scratch = Scratch::new("expire-kill");
    let home = scratch.dir("home-of-strace");
    let original = Repo::create(&scratch, "original", Protection::None);
    let history = History::new((*original).clone(), &scratch, 3);
    let annotate = ["annotate", history.id(0), "a=b"];
    let mut command = original.command(annotate[0]);
    Outcome::of(command.args(&annotate[1..])).expect(exit::OK);
    // A local store shows an object by a rename, and takes it away by an unlink.
    let mut kills = 0;
    for call in ["renameat2", "unlinkat"] {
        for nth in 1.. {
            assert!(nth < 200, "the kills never end");
            let dir = scratch.join(format!("copy-{call}-{nth}"));
            let copied = Command::new("cp")
                .arg("-a")
                .arg(&original.dir)
                .arg(&dir)
                .status();
            assert!(copied.expect("cp").success());
            let repo = original.moved_to(&dir);
            let mut expire = repo.command("expire");
            expire.args(["--keep-last", "1", "--confirm", "--json"]);
            let ended = Outcome::of(&mut killed_at(&expire, &home, call, nth));
            let is_over = ended.code == Some(exit::OK);
            kills += usize::from(!is_over);
            let listed = repo.ids();
            assert!(
                listed.contains(&history.made[2].0),
                "{call} {nth}: {listed:?}"
            );
            for (id, truth) in &history.made {
                if listed.contains(id) {
                    restores_to(&repo, id, truth, &scratch);
                }
            }
            repo.verify().expect(exit::OK);
            // A hold can be made in between; here nothing is held, and two more runs end it all: the first finds out that
            // the session is dead.
            for _ in 0..2 {
                Outcome::of(&mut expire).summary();
            }
            assert_eq!(repo.ids(), [history.made[2].0.as_str()]);
            restores_to(&repo, "latest", &history.made[2].1, &scratch);
            let verified = repo.verify().summary();
            assert_eq!(
                verified["unreferenced_packs"], 0,
                "{call} {nth}: {verified}"
            );
            for prefix in ["sessions/", "expired/", "annotations/"] {
                assert!(
                    names(&repo, prefix).is_empty(),
                    "{call} {nth}: {:?}",
                    names(&repo, prefix)
                );
            }
            fs::remove_dir_all(&dir).expect("copy");
            if is_over {
                break;
            }
        }
    }
    // Session, two tombstones; two manifests, packs, tombstones, a note, the session.
    assert!(kills >= 10, "{kills} kills hit");
}

/// Starts a slow backup and waits until packs of it stand that no manifest names.
fn crawling_backup(history: &History, repo: &Repo, throttle: &Throttle, prefix: &[&str]) -> Job {
    let known = names(repo, "packs/").len();
    let mut backup = history.repo.backup_command(&history.source);
    throttle.put_on(backup.args(SHARDS));
    let mut command = match prefix {
        [] => backup,
        [program, arguments @ ..] => {
            let home = backup.get_current_dir().expect("a directory").to_owned();
            let mut wrapped = isolated(Command::new(program), &home);
            wrapped
                .args(arguments)
                .arg(backup.get_program())
                .args(backup.get_args());
            wrapped
        }
    };
    let job = Job::start(&mut command);
    wait_until(|| names(repo, "packs/").len() > known);
    job
}

#[test]
fn a_running_backup_ends_and_restores_while_its_parent_is_to_go() {
    let scratch = Scratch::new("expire-beside");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let mut history = History::new((*repo).clone(), &scratch, 2);
    plant::file(
        &history.source.join("much"),
        &mut history.random,
        24 * MIB as usize,
    );
    let truth = Tree::read(&history.source);
    let throttle = Throttle::new(&scratch, "limits.toml", CRAWL);
    let mut job = crawling_backup(&history, &repo, &throttle, &[]);
    // It gets no further before the others are done, however long they take.
    throttle.change(&mut job, NO_READS);
    // A second one of the same source, so that the policy has the parent of the first go.
    let second = history.repo.backup(&history.source).summary();
    let second = second["backup_id"].as_str().expect("id").to_owned();
    for _ in 0..2 {
        let done = history.expire(&["--keep-last", "1", "--confirm"]).summary();
        let parent = &done["backups"].as_array().expect("backups")[0];
        assert!(
            done["warnings"].as_array().is_none_or(Vec::is_empty),
            "{done}"
        );
        assert!(
            parent["reasons"] == serde_json::json!([])
                || parent["reasons"].to_string().contains("in_use")
        );
    }
    assert_eq!(
        history.repo.ids(),
        [history.id(1).to_owned(), second.clone()]
    );
    assert!(job.is_running(), "ended too early\n{}", job.outcome());
    throttle.change(&mut job, NO_LIMITS);
    let done = job.outcome().summary();
    assert_eq!(done["parent"], history.id(1), "{done}");
    let id = done["backup_id"].as_str().expect("id");
    restores_to(&history.repo, id, &truth, &scratch);
    restores_to(&history.repo, &second, &truth, &scratch);
    restores_to(&history.repo, history.id(1), &history.made[1].1, &scratch);
    history.expire(&["--keep-last", "2", "--confirm"]).summary();
    let mut left = vec![id.to_owned(), second];
    left.sort();
    assert_eq!(history.repo.ids(), left);
    for id in &left {
        restores_to(&history.repo, id, &truth, &scratch);
    }
    history.nothing_is_left_over();
}

#[test]
fn what_a_killed_backup_left_goes_when_its_death_is_known() {
    let scratch = Scratch::new("expire-dead");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let mut history = History::new((*repo).clone(), &scratch, 2);
    let much = history.source.join("much");
    plant::file(&much, &mut history.random, 24 * MIB as usize);
    // On this machine: the next run knows, the one after that deletes.
    let throttle = Throttle::new(&scratch, "limits.toml", CRAWL);
    drop(crawling_backup(&history, &repo, &throttle, &[]));
    let session = names(&repo, "sessions/");
    assert_eq!(session.len(), 1);
    let plan = history.expire(&["--keep-last", "1"]).summary();
    assert_eq!(plan["sessions"][0]["process"], "dead", "{plan}");
    assert_eq!(plan["leftovers"]["packs"], 0, "{plan}");
    let mut human = repo.command("expire");
    let human = Outcome::of(human.args(["--keep-last", "1"])).expect(exit::OK);
    let id = session[0].strip_prefix("sessions/").expect("prefix");
    let line = human.stdout.lines().find(|line| line.contains(id));
    let host = plan["sessions"][0]["host"].as_str().expect("host");
    assert!(
        line.is_some_and(|line| line.contains("has died") && line.contains(host)),
        "{human}"
    );
    let first = history.expire(&["--keep-last", "1", "--confirm"]).summary();
    assert_eq!(
        (&first["sessions_removed"], &first["leftover_packs"]),
        (&1.into(), &0.into())
    );
    let second = history.expire(&["--keep-last", "1", "--confirm"]).summary();
    assert!(second["leftover_packs"].as_u64() > Some(0), "{second}");
    fs::remove_file(&much).expect("file");
    history.holds_exactly(&[1], &scratch);
    history.nothing_is_left_over();

    // In namespaces of its own, as on another machine: nobody here can know.
    plant::file(&much, &mut history.random, 24 * MIB as usize);
    let apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    drop(crawling_backup(&history, &repo, &throttle, &apart));
    for _ in 0..3 {
        let done = history.expire(&["--keep-last", "1", "--confirm"]).summary();
        assert_eq!(done["packs"], 0, "{done}");
        assert!(
            done["warnings"].to_string().contains("--forget-session"),
            "{done}"
        );
    }
    let name = names(&repo, "sessions/").remove(0);
    let id = name.strip_prefix("sessions/").expect("prefix");
    history
        .expire(&["--forget-session", &id[..6], "--confirm"])
        .expect(exit::OK);
    history
        .expire(&["--forget-session", &id[..6], "--confirm"])
        .expect(exit::NOT_FOUND);
    let done = history.expire(&["--keep-last", "1", "--confirm"]).summary();
    assert!(done["leftover_packs"].as_u64() > Some(0), "{done}");
    fs::remove_file(&much).expect("file");
    history.holds_exactly(&[1], &scratch);
    history.nothing_is_left_over();
}

/// A listing that leaves out all there is.
const EMPTY_LISTING: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
    <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>mover</Name>\
    <Prefix>expire/sessions/</Prefix><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>\
    </ListBucketResult>";

/// A fault that keeps objects below `path` on their way to the server until the proxy is told to let them go.
fn held_up(path: &str) -> Fault {
    Fault::new(Action::Hold).method("PUT").path(path)
}

/// The same repository by way of a proxy, for jobs that wait for an answer longer than any test holds it up.
fn patiently(repo: &AnyRepo, proxy: &FaultProxy, access: &Access) -> AnyRepo {
    let url = access.at(&proxy.endpoint()).url("expire");
    repo.at(&format!("{url}&timeout=600"), &variables(&access.key))
}

/// Lets go what the proxy holds up, as often as it is sent, and returns how the job ended.
#[track_caller]
fn let_go(proxy: &FaultProxy, mut job: Job) -> Outcome {
    wait_until(|| {
        proxy.release();
        !job.is_running()
    });
    job.outcome()
}

/// Changes the source and begins a backup whose manifest is held up on its way to the server: the proxy that does that, the
/// job, and what the source holds.
fn manifest_on_its_way(history: &mut History, access: &Access) -> (FaultProxy, Job, Tree) {
    let proxy = FaultProxy::start(&access.endpoint);
    let hit = proxy.inject(held_up("expire/backups/"));
    let repo = patiently(&history.repo, &proxy, access);
    change(&history.source, &mut history.random);
    let truth = Tree::read(&history.source);
    let job = Job::start(&mut repo.backup_command(&history.source));
    wait_until(|| proxy.hits(hit) > 0);
    (proxy, job, truth)
}

/// What a server has of the repository below `prefix`.
fn keys_below(client: &Client, prefix: &str) -> Vec<String> {
    let (objects, _) = client
        .list(&format!("expire/{prefix}"), 1000)
        .expect("a listing");
    objects.into_iter().map(|object| object.key).collect()
}

/// Deletes an object behind the tool's back.
#[track_caller]
fn delete(client: &Client, key: &str) {
    let reply = client.delete(key).expect("a reply");
    assert!(
        (200..300).contains(&reply.status),
        "{key}: {}",
        reply.text()
    );
}

#[test]
fn in_s3_what_is_kept_restores_and_doubt_deletes_nothing() {
    let scratch = Scratch::new("expire-s3");
    let garage = Garage::start(scratch.path());
    let access = garage.access();
    let repo = repo_in(access, &scratch, "expire", Protection::Identity);
    let history = History::new(repo, &scratch, 4);
    let objects = |prefix: &str| {
        let client = access.client();
        let (objects, _) = client
            .list(&format!("expire/{prefix}"), 1000)
            .expect("a listing");
        objects
    };
    let before = objects("");
    // Whatever cannot be listed or read deletes nothing.
    let refusal = Action::error(403, "AccessDenied");
    let incomplete = Reply::new(200, EMPTY_LISTING).with("content-type", "application/xml");
    let incomplete = Action::Answer(incomplete);
    let harms = [
        (&refusal, "prefix=expire%2Fbackups", ""),
        (&refusal, "prefix=expire%2Fpacks", ""),
        (&refusal, "prefix=expire%2Fsessions", ""),
        (&incomplete, "prefix=expire%2Fsessions", ""),
        (&refusal, "prefix=expire%2Fholds", ""),
        (&refusal, "prefix=expire%2Fexpired", ""),
        (&refusal, "", history.id(1)),
    ];
    for (action, query, path) in harms {
        let proxy = FaultProxy::start(&access.endpoint);
        let fault = Fault::new(action.clone()).method("GET");
        let hit = proxy.inject(fault.query(query).path(path));
        let harmed = access.at(&proxy.endpoint());
        let repo = history
            .repo
            .at(&harmed.url("expire"), &variables(&access.key));
        let mut command = repo.command("expire");
        let refused = Outcome::of(command.args(["--keep-last", "1", "--confirm", "--json"]));
        assert_ne!(refused.code, Some(exit::OK), "{query}{path}: {refused}");
        let error = refused.error().to_string();
        let is_told = error.contains("leaves out an object");
        assert_eq!(is_told, action == &incomplete, "{query}{path}: {error}");
        assert!(proxy.hits(hit) > 0, "{query}{path}: {:?}", proxy.seen());
        let is_data = |object: &&_| -> bool {
            let object: &mover_test_servers::Listed = object;
            !object.key.contains("/sessions/") && !object.key.contains("/expired/")
        };
        let now = objects("");
        assert_eq!(
            before.iter().filter(is_data).collect::<Vec<_>>(),
            now.iter().filter(is_data).collect::<Vec<_>>(),
            "{query}{path}"
        );
    }
    // What the store keeps is told; the rest goes, and what is listed restores.
    let proxy = FaultProxy::start(&access.endpoint);
    let denied = Action::error(403, "AccessDenied");
    let kept = history.id(1);
    proxy.inject(Fault::new(denied).method("DELETE").path(kept));
    let harmed = access.at(&proxy.endpoint());
    let repo = history
        .repo
        .at(&harmed.url("expire"), &variables(&access.key));
    let mut command = repo.command("expire");
    let refused = Outcome::of(command.args(["--keep-last", "1", "--confirm", "--json"]));
    let refused = refused.expect(exit::STORAGE);
    assert!(
        refused.stdout.contains(&format!("backups/{kept}")),
        "{refused}"
    );
    history.holds_exactly(&[1, 3], &scratch);

    let done = history.expire(&["--keep-last", "1", "--confirm"]).summary();
    assert_eq!(done["deleted"].as_array().map(Vec::len), Some(1), "{done}");
    history.holds_exactly(&[3], &scratch);
    history.nothing_is_left_over();
    for prefix in ["sessions/", "expired/"] {
        assert!(objects(prefix).is_empty(), "{:?}", objects(prefix));
    }
}

#[test]
fn a_session_given_up_while_its_manifest_is_on_its_way_takes_it_back_if_packs_are_gone() {
    let scratch = Scratch::new("expire-crossing");
    let server = FilesystemS3::start(&scratch.dir("server"));
    let access = server.access();
    let repo = repo_in(access, &scratch, "expire", Protection::Identity);
    let mut history = History::new(repo, &scratch, 1);
    let client = access.client();
    let objects = |prefix: &str| keys_below(&client, prefix);
    let delete = |key: &str| delete(&client, key);
    for packs_go in [true, false] {
        let packs = objects("packs/");
        let (proxy, job, truth) = manifest_on_its_way(&mut history, access);
        delete(&objects("sessions/")[0]);
        if packs_go {
            let own = objects("packs/").into_iter();
            own.filter(|pack| !packs.contains(pack))
                .for_each(|pack| delete(&pack));
            let error = let_go(&proxy, job).expect(exit::CONFLICT).error();
            assert!(error.to_string().contains("not listed any more"), "{error}");
        } else {
            let done = let_go(&proxy, job).summary();
            let id = done["backup_id"].as_str().expect("id").to_owned();
            history.made.push((id, truth));
        }
        let all: Vec<usize> = (0..history.made.len()).collect();
        history.holds_exactly(&all, &scratch);
    }
    assert_eq!(history.made.len(), 2);
    history.nothing_is_left_over();
}

#[test]
fn a_backup_that_cannot_look_again_stands_and_says_that_it_could_not() {
    let scratch = Scratch::new("expire-blind");
    let server = FilesystemS3::start(&scratch.dir("server"));
    let access = server.access();
    let repo = repo_in(access, &scratch, "expire", Protection::Identity);
    let mut history = History::new(repo, &scratch, 1);
    let (proxy, job, truth) = manifest_on_its_way(&mut history, access);
    // Whatever the method: a HEAD that is refused is asked again as a GET.
    let refusal = Fault::new(Action::error(403, "AccessDenied"));
    let refused = proxy.inject(refusal.path("expire/sessions/"));
    let outcome = let_go(&proxy, job).expect(exit::STORAGE);
    let error = outcome.error().to_string();
    assert!(error.contains("the backup is listed"), "{error}");
    assert!(error.contains("helios-mover verify"), "{error}");
    assert!(proxy.hits(refused) > 0);
    let id = history.repo.ids().pop().expect("an id");
    assert!(error.contains(&id), "{error}");
    history.made.push((id, truth));
    history.holds_exactly(&[0, 1], &scratch);
    // Its session is over, as its manifest says.
    let done = history.expire(&["--keep-last", "1", "--confirm"]).summary();
    assert_eq!(done["sessions_removed"], 1, "{done}");
    history.holds_exactly(&[1], &scratch);
    history.nothing_is_left_over();
}

/// What a request never brings: its answer, though the server has carried it out.
const UNANSWERED: Action = Action::StallReply(0);

/// Runs `command`, asks it to stop when the proxy holds a request back and the server has `done` it, and returns how it
/// ended.
fn stopped_at(
    proxy: &FaultProxy,
    hit: FaultId,
    command: &mut Command,
    done: impl Fn() -> bool,
) -> Outcome {
    let mut job = Job::start(command);
    wait_until(|| proxy.hits(hit) > 0 && done());
    job.signal(Signal::TERM);
    job.outcome().expect(exit::CANCELLED)
}

#[test]
fn a_job_that_is_stopped_before_it_publishes_or_deletes_takes_its_session_back() {
    let scratch = Scratch::new("expire-stopped");
    let server = FilesystemS3::start(&scratch.dir("server"));
    let access = server.access();
    let repo = repo_in(access, &scratch, "expire", Protection::Identity);
    let mut history = History::new(repo, &scratch, 2);
    let client = access.client();
    let objects = || keys_below(&client, "");
    change(&history.source, &mut history.random);
    let before = objects();
    // Once: whoever takes the session back is answered.
    let fault = |action: Action, method: &str| Fault::new(action).method(method).times(1);
    let moments = [
        // The session object is created, and nobody says so.
        (
            "backup",
            fault(UNANSWERED, "PUT").path("expire/sessions/"),
            Some("expire/sessions/"),
        ),
        // The parent is looked at again: whether it is about to be deleted, then its maps.
        (
            "backup",
            fault(Action::Stall, "GET").query("prefix=expire%2Fexpired%2F2"),
            None,
        ),
        (
            "backup",
            fault(Action::Stall, "GET").path("expire/packs/"),
            None,
        ),
        (
            "expire",
            fault(UNANSWERED, "PUT").path("expire/sessions/"),
            Some("expire/sessions/"),
        ),
        (
            "expire",
            fault(UNANSWERED, "PUT").path("expire/expired/"),
            Some("expire/expired/"),
        ),
        // The last look before the first deletion.
        (
            "expire",
            fault(Action::Stall, "HEAD").path("expire/sessions/"),
            None,
        ),
    ];
    for (verb, fault, created) in moments {
        let proxy = FaultProxy::start(&access.endpoint);
        let hit = proxy.inject(fault.clone());
        let through = access.at(&proxy.endpoint());
        let repo = history
            .repo
            .at(&through.url("expire"), &variables(&access.key));
        let mut command = match verb {
            "backup" => repo.backup_command(&history.source),
            _ => repo.command("expire"),
        };
        if verb == "expire" {
            command.args(["--keep-last", "1", "--confirm", "--json"]);
        }
        // A request is counted when it comes: what is created is there a little later.
        let is_done =
            || created.is_none_or(|prefix| objects().iter().any(|key| key.starts_with(prefix)));
        stopped_at(&proxy, hit, &mut command, is_done);
        let seen = proxy.seen();
        let sent = |what: &str| seen.iter().any(|seen| seen.starts_with(what));
        assert!(
            sent("PUT /mover/expire/sessions/"),
            "{verb}, {fault:?}: {seen:?}"
        );
        // In one request, or in one for each.
        assert!(
            sent("POST /mover?delete") || sent("DELETE /mover/expire/sessions/"),
            "{verb}, {fault:?}: {seen:?}"
        );
        if objects() != before {
            // It waits fifteen seconds for that and no longer. What it left then goes as of a job that died: what protects it first.
            for _ in 0..2 {
                history.expire(&["--keep-last", "2", "--confirm"]).summary();
            }
        }
        assert_eq!(objects(), before, "{verb}, {fault:?}");
    }
    history.backup();
    let done = history.expire(&["--keep-last", "1", "--confirm"]).summary();
    assert_eq!(done["deleted"].as_array().map(Vec::len), Some(2), "{done}");
    history.holds_exactly(&[2], &scratch);
    history.nothing_is_left_over();
}

#[test]
fn a_manifest_that_cannot_be_taken_back_is_named_and_found_by_verify() {
    let scratch = Scratch::new("expire-stuck");
    let server = FilesystemS3::start(&scratch.dir("server"));
    let access = server.access();
    let repo = repo_in(access, &scratch, "expire", Protection::Identity);
    let mut history = History::new(repo, &scratch, 1);
    let client = access.client();
    let keys = |prefix: &str| keys_below(&client, prefix);
    let delete = |key: &str| delete(&client, key);
    let packs = keys("packs/");
    let (proxy, job, _) = manifest_on_its_way(&mut history, access);
    // Objects are deleted in batches, by POST, or one by one.
    let denied = || Fault::new(Action::error(403, "AccessDenied"));
    let refused = proxy.inject(denied().method("POST").query("delete"));
    proxy.inject(denied().method("DELETE"));
    delete(&keys("sessions/")[0]);
    let lost: Vec<String> = keys("packs/")
        .into_iter()
        .filter(|pack| !packs.contains(pack))
        .collect();
    lost.iter().for_each(|pack| delete(pack));
    let error = let_go(&proxy, job).expect(exit::STORAGE).error();
    assert!(proxy.hits(refused) > 0, "{:?}", proxy.seen());
    let id = history.repo.ids().pop().expect("an id");
    assert_ne!(id, history.id(0), "the manifest stays");
    assert_eq!(error["object"], format!("backups/{id}"), "{error}");
    let told = error.to_string();
    for part in [
        "packs of the backup are gone",
        "could not be deleted",
        "delete this object, then run the backup again",
    ] {
        assert!(told.contains(part), "{part}: {error}");
    }

    // It is listed, and verify says of which packs it is missing what.
    let found = history.repo.verify().expect(exit::VERIFY_FAILED);
    let summary = found.bad_summary();
    let findings = summary["findings"].as_array().expect("findings");
    assert!(!findings.is_empty(), "{found}");
    for pack in &lost {
        let name = pack.strip_prefix("expire/").expect("prefix");
        let of_pack = findings.iter().find(|finding| finding["object"] == name);
        let of_pack = of_pack.unwrap_or_else(|| panic!("{name}: {found}"));
        assert!(of_pack["what"].to_string().contains("missing"), "{of_pack}");
        assert_eq!(of_pack["backups"], serde_json::json!([id]), "{of_pack}");
    }

    // What the hint says helps.
    delete(&format!("expire/backups/{id}"));
    history.repo.verify().expect(exit::OK);
    history.backup();
    history.holds_exactly(&[0, 1], &scratch);
}
