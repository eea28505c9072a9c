//! Page stores as operators back them up: with the program, while a database writes, in full and by what changed, encrypted
//! and in S3. What comes back is compared with what the database's clients were told.
//!
//! The database is the workspace's `pagedb-run`, a process of its own. Each of its clients counts its transactions in a row, and
//! says the count when a commit was acknowledged.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use mover_test_servers::Garage;
use mover_tests::bucket::repo_in;
use mover_tests::clock;
use mover_tests::disk::SmallDisk;
use mover_tests::job::wait_until;
use mover_tests::mover::{AnyRepo, Outcome, Protection, Repo, exit};
use mover_tests::pagedb::{self, Killed};
use mover_tests::scratch::Scratch;
use serde_json::Value;

/// Clients of the database.
const CLIENTS: usize = 2;

/// What a client said: its first count and its last.
type Told = HashMap<usize, (u64, u64)>;

/// What the database prints into a file, as far as it was looked at.
struct Said {
    printed: BufReader<File>,
    /// A line of which not all was there yet.
    line: String,
    told: Told,
}

impl Said {
    /// Takes in what was printed by now.
    fn listen(&mut self) {
        while self.printed.read_line(&mut self.line).expect("a line") > 0
            && self.line.ends_with('\n')
        {
            if let Some((client, count)) = self.line.trim_end().split_once(' ') {
                let (client, count) = (client.parse().unwrap(), count.parse().unwrap());
                self.told.entry(client).or_insert((count, count)).1 = count;
            }
            self.line.clear();
        }
    }
}

/// The database at work in a store.
struct Load {
    process: Killed,
    said: Said,
}

impl Load {
    /// Makes or recovers the store, and begins to write to it. It prints into a file beside the store, where all that it has said
    /// is seen at once: whoever reads a pipe may be behind, and would take too few transactions for acknowledged.
    fn start(store: &Path) -> Self {
        let printed = store.with_extension("printed");
        let out = File::create(&printed).expect("a file for its output");
        let process = Command::new(pagedb::program())
            .arg(store)
            .args(["7", &CLIENTS.to_string()])
            .stdout(out)
            .spawn()
            .expect("the database starts");
        let said = Said {
            printed: BufReader::new(File::open(&printed).expect("its output")),
            line: String::new(),
            told: Told::new(),
        };
        Load {
            process: Killed(process),
            said,
        }
    }

    /// The last count of each client.
    fn counts(&mut self) -> Vec<u64> {
        self.said.listen();
        let told = &self.said.told;
        let last = |client| told.get(&client).map_or(0, |(_, last)| *last);
        (0..CLIENTS).map(last).collect()
    }

    /// Waits until every client has committed so many transactions more.
    fn go_on(&mut self, more: u64) {
        let before = self.counts();
        let ahead = |(now, before): (&u64, &u64)| *now >= before + more;
        wait_until(|| self.counts().iter().zip(&before).all(ahead));
    }

    /// Kills it, and gives what its clients said.
    fn kill(mut self) -> Told {
        drop(self.process);
        self.said.listen();
        self.said.told
    }
}

/// How many transactions of each client a store has: the database goes on behind them.
fn transactions_in(store: &Path) -> Vec<u64> {
    let mut load = Load::start(store);
    load.go_on(1);
    let told = load.kill();
    (0..CLIENTS).map(|client| told[&client].0 - 1).collect()
}

/// A backup, and how many transactions were acknowledged before it began and when it had ended.
struct Made {
    id: String,
    before: Vec<u64>,
    after: Vec<u64>,
}

struct Site<'a> {
    repo: &'a AnyRepo,
    store: PathBuf,
}

impl Site<'_> {
    fn command(&self, backup_type: &str) -> Command {
        let source = format!("pages://{}", self.store.display());
        let mut command = self.repo.command("backup");
        command.args(["--type", backup_type, "--source", &source]);
        command
    }

    /// A backup of a type, which must be what is made.
    fn backup(&self, backup_type: &str, wanted: &str) -> Value {
        let summary = Outcome::of(self.command(backup_type).arg("--json")).summary();
        assert_eq!(summary["backup_type"], wanted, "{summary}");
        assert!(summary["reason"].is_null(), "{summary}");
        summary
    }

    /// Restores a backup and compares it with what the clients were told. One commit of each may be durable and not yet told.
    fn check(&self, made: &Made, target: &Path) {
        let restored = self.repo.restore(&made.id, target).summary();
        assert!(restored["settled"].is_object(), "{restored}");
        let found = transactions_in(target);
        for (client, found) in found.iter().enumerate() {
            let possible = made.before[client]..=made.after[client] + 1;
            assert!(possible.contains(found), "{found} of {possible:?}");
        }
    }
}

/// A store that a database has begun to write to.
fn at_work<'a>(repo: &'a AnyRepo, scratch: &Scratch) -> (Site<'a>, Load) {
    let store = scratch.dir("store");
    let mut load = Load::start(&store);
    load.go_on(10);
    (Site { repo, store }, load)
}

fn id_of(summary: &Value) -> String {
    summary["backup_id"].as_str().expect("id").to_owned()
}

/// Full, incremental and differential backups of a database at work and of one that was killed restore to what was
/// acknowledged; a store that was put back to the past is backed up in full, and everybody is told why.
fn chain(repo: &AnyRepo, scratch: &Scratch) {
    let site = Site {
        repo,
        store: scratch.dir("store"),
    };
    let mut load = Load::start(&site.store);
    let mut made = Vec::new();
    for (backup_type, wanted) in [
        ("full", "full"),
        ("incr", "incremental"),
        ("diff", "differential"),
        ("incr", "incremental"),
    ] {
        load.go_on(40);
        let before = load.counts();
        let summary = site.backup(backup_type, wanted);
        let after = load.counts();
        let id = id_of(&summary);
        made.push(Made { id, before, after });
    }
    load.go_on(40);
    let told = load.kill();
    let last: Vec<u64> = (0..CLIENTS).map(|client| told[&client].1).collect();
    let summary = site.backup("incr", "incremental");
    let figure = |name: &str| summary[name].as_u64().expect("a figure");
    // What was read beside the log that was looked through for what changed.
    let copied = figure("bytes_read") - figure("log_bytes_read");
    assert!(figure("log_bytes_read") > 0, "{summary}");
    assert!(copied < figure("bytes_source"), "{summary}");
    made.push(Made {
        id: id_of(&summary),
        before: last.clone(),
        after: last,
    });
    for (at, made) in made.iter().enumerate() {
        site.check(made, &scratch.join(format!("restored-{at}")));
    }
    repo.verify().expect(exit::OK);

    // Back to the first backup, and a few transactions on: another history.
    fs::remove_dir_all(&site.store).expect("the store goes");
    fs::rename(scratch.join("restored-0"), &site.store).expect("an older one comes");
    let healed = Outcome::of(&mut site.command("incr")).expect(exit::OK);
    assert!(healed.stdout.contains("history"), "{healed}");
    let shown = Outcome::of(repo.command("show").args(["latest", "--json"])).document();
    let metadata = &shown["metadata"];
    assert_eq!(metadata["backup_type"], "full", "{shown}");
    let reason = metadata["reason"].as_str().expect("a reason");
    assert!(reason.contains("history"), "{shown}");
    site.backup("incr", "incremental");
}

#[test]
fn a_database_at_work_is_backed_up_into_an_encrypted_repository() {
    let scratch = Scratch::new("page-store");
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    chain(&repo, &scratch);
}

#[test]
fn a_database_at_work_is_backed_up_into_s3() {
    let scratch = Scratch::new("page-store-s3");
    let garage = Garage::start(scratch.path());
    let repo = repo_in(garage.access(), &scratch, "pages", Protection::Identity);
    chain(&repo, &scratch);
}

/// A restored store begins a new history, whose first log segment is a file of its own.
#[test]
fn a_target_without_room_for_a_new_history_is_a_target_error() {
    let scratch = Scratch::new("page-store-full");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let (site, load) = at_work(&repo, &scratch);
    load.kill();
    let made = site.backup("full", "full");
    let shown = Outcome::of(repo.command("show").args(["latest", "--json"])).document();
    let data_bytes = shown["metadata"]["size_info"]["data_bytes"].as_u64();
    let segment = fs::read_dir(site.store.join("wal")).expect("a log").next();
    let segment_bytes = segment.unwrap().unwrap().metadata().unwrap().len();
    let disk = SmallDisk::new(&scratch, "disk", 4 * (data_bytes.unwrap() + segment_bytes));
    let target = disk.path().join("target");
    let filler = File::create(disk.path().join("filler")).expect("filler");
    let taken = disk.free_bytes() - data_bytes.unwrap() - segment_bytes / 2;
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&filler, flags, 0, taken).expect("filler takes its space");
    let error = repo.restore("latest", &target).told(exit::TARGET, "target");
    assert_eq!(error["kind"], "target", "{error}");
    assert!(!target.exists(), "a failed restore left its target");
    drop(filler);
    fs::remove_file(disk.path().join("filler")).expect("filler");
    let id = id_of(&made);
    assert!(repo.restore(&id, &target).summary()["settled"].is_object());
}

/// The incremental backup was made by a clock that was half an hour ahead.
#[test]
fn after_a_clock_went_back_a_differential_backup_is_the_latest() {
    let scratch = Scratch::new("page-store-clock");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let (site, mut load) = at_work(&repo, &scratch);
    site.backup("full", "full");
    let mut ahead = site.command("incr");
    clock::off_by(ahead.arg("--json"), "+30m");
    let ahead = Outcome::of(&mut ahead).summary();
    assert_eq!(ahead["backup_type"], "incremental", "{ahead}");
    load.go_on(10);
    let last = Outcome::of(site.command("diff").arg("--json")).summary();
    load.kill();
    assert_eq!(last["backup_type"], "differential", "{last}");
    assert!(
        last["warnings"].to_string().contains("the clock went back"),
        "{last}"
    );
    let ids = repo.ids();
    assert_eq!(ids.last(), Some(&id_of(&last)), "{ids:?}");
    let expire = ["--keep-last", "1", "--json"];
    let plan = Outcome::of(repo.command("expire").args(expire)).summary();
    let kept: Vec<&Value> = plan["backups"]
        .as_array()
        .expect("backups")
        .iter()
        .filter(|verdict| verdict["reasons"].to_string().contains("last"))
        .map(|verdict| &verdict["backup_id"])
        .collect();
    assert_eq!(kept, [&last["backup_id"]], "{plan}");
}

/// As many others back up between two backups of a store as a fleet does that shares a repository.
#[test]
fn a_store_finds_its_own_backups_among_those_of_many_others() {
    const OTHERS: usize = 70;
    let scratch = Scratch::new("page-store-fleet");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let site = Site {
        repo: &repo,
        store: scratch.dir("store"),
    };
    let mut load = Load::start(&site.store);
    load.go_on(1);
    load.kill();
    site.backup("full", "full");
    let other = scratch.dir("other");
    fs::write(other.join("file"), "rows").expect("a file");
    for _ in 0..OTHERS {
        repo.backup(&other).summary();
    }
    site.backup("incr", "incremental");
    site.backup("diff", "differential");
}
