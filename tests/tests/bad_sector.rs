//! Disks that fail. One that does not give an object of the repository back, as one with a bad sector, or btrfs where a bit has
//! rotted: every verb says and does what it does where a byte of that object was changed, and the other backups are as good as
//! ever. One under the source: the backup fails, names the file, and is none. One under the target: the restore fails, names what
//! it was at, and nothing appears; over what is there already, the next one makes it exact.
//!
//! The errors are real returns of real system calls, put in their place by strace.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mover_tests::mover::{Outcome, Protection, Repo, exit, isolated};
use mover_tests::proof::restores_to;
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

/// Seed of what is planted here.
const SEED: u64 = 0x7365_6374;
/// Reads and writes are calls of threads, which strace can answer.
const BY_THREADS: [&str; 4] = ["--shards", "1", "--rung", "threads"];
/// What a target holds that is not complete.
const MARKER: &str = ".helios-mover-restore-in-progress";
/// Calls of one kind that a restore of a small tree makes at most.
const CALLS_MAX: u32 = 100;

/// System calls that fail as on a broken disk.
#[derive(Clone, Copy)]
struct Broken<'a> {
    call: &'static str,
    /// Those on this file alone.
    on: Option<&'a Path>,
    /// That of this number alone, counted from 1 in each thread.
    at: Option<u32>,
}

impl Broken<'_> {
    /// All calls of this name.
    fn all(call: &'static str) -> Self {
        Broken {
            call,
            on: None,
            at: None,
        }
    }

    /// Runs `command` over it.
    fn run(self, mut command: Command, home: &Path) -> Outcome {
        let Broken { call, on, at } = self;
        command.args(BY_THREADS);
        let mut strace = isolated(Command::new("strace"), home);
        strace.args(["-f", "-qq", "-o", "/dev/null"]);
        if let Some(on) = on {
            strace.arg("-P").arg(on);
        }
        let when = at.map_or_else(String::new, |at| format!(":when={at}"));
        strace.args(["-e", &format!("trace={call}")]);
        strace.args(["-e", &format!("inject={call}:error=EIO{when}")]);
        strace.arg(command.get_program()).args(command.get_args());
        Outcome::of(&mut strace)
    }
}

/// Runs `command`, all of whose reads of the file `object` fail, if there is one.
fn on_disk(mut command: Command, object: Option<&Path>, home: &Path) -> Outcome {
    if object.is_none() {
        return Outcome::of(command.args(BY_THREADS));
    }
    let reads = Broken {
        on: object,
        ..Broken::all("pread64")
    };
    reads.run(command, home)
}

/// What the verbs come to: of `verify` the object of each finding, and which backups are whole; of `list` which can be read; and
/// whether a backup is made.
fn told(repo: &Repo, source: &Path, object: Option<&Path>, home: &Path) -> Vec<Value> {
    let mut verify = repo.command("verify");
    verify.arg("--json");
    let verified = on_disk(verify, object, home).expect(exit::VERIFY_FAILED);
    let verified = verified.bad_summary();
    let of = |list: &Value, field: &str| -> Vec<Value> {
        let items = list.as_array().expect("items").iter();
        items.map(|item| item[field].clone()).collect()
    };
    let mut list = repo.command("list");
    list.arg("--json");
    let listed = on_disk(list, object, home).expect(exit::OK).document();
    let made = on_disk(repo.backup_command(source), object, home).summary();
    vec![
        of(&verified["findings"], "object").into(),
        of(&verified["backups"], "ok").into(),
        of(&listed["backups"], "readable").into(),
        made["warnings"].as_array().expect("warnings").len().into(),
    ]
}

#[test]
fn an_object_that_the_disk_does_not_give_back_is_as_one_that_was_changed() {
    run::require_root();
    let scratch = Scratch::new("bad-sector");
    let home = scratch.dir("home");
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let source = scratch.dir("source");
    let mut random = Random::new(SEED);
    let mut truth = Vec::new();
    for round in 0..2 {
        fs::write(source.join(format!("rows-{round}")), random.rows(5000)).expect("a file");
        let made = repo.backup(&source).summary();
        let id = made["backup_id"].as_str().expect("an id").to_owned();
        truth.push((id, Tree::read(&source)));
    }
    let kept = scratch.join("kept");
    let root = scratch.join("repo");
    copy(&root, &kept);
    let newest = format!("backups/{}", truth[1].0);
    let mut objects: Vec<String> = repo
        .objects()
        .into_iter()
        .map(|(path, _)| path.display().to_string())
        .filter(|name| name.starts_with("packs/") || *name == newest)
        .collect();
    objects.sort();
    assert!(objects.len() >= 3, "packs of both backups: {objects:?}");
    for name in &objects {
        let object = root.join(name);
        let by_disk = told(&repo, &source, Some(&object), &home);
        // What else is there is there.
        if *name == newest {
            restores_to(&repo, &truth[0].0, &truth[0].1, &scratch);
        }
        copy(&kept, &root);
        let mut bytes = fs::read(&object).expect("an object");
        bytes[0] ^= 1;
        fs::write(&object, bytes).expect("a changed byte");
        let by_change = told(&repo, &source, None, &home);
        assert_eq!(by_disk, by_change, "{name}");
        assert_eq!(by_disk[0], Value::from(vec![name.clone()]), "one finding");
        copy(&kept, &root);
    }
}

/// Makes `to` a copy of the directory `from`.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    run::checked(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// A repository and what is backed up: one directory with one file of several writes.
struct Scene {
    repo: Repo,
    source: PathBuf,
    home: PathBuf,
    scratch: Scratch,
}

impl Scene {
    fn new(name: &str) -> Self {
        run::require_root();
        let scratch = Scratch::new(name);
        let repo = Repo::create(&scratch, "repo", Protection::Identity);
        let source = scratch.dir("source");
        fs::create_dir(source.join("base")).expect("a directory");
        let rows = Random::new(SEED).rows(3 << 20);
        fs::write(source.join("base/rows"), rows).expect("a file");
        Scene {
            repo,
            source,
            home: scratch.dir("home"),
            scratch,
        }
    }
}

/// Fails the test unless a restore over a broken disk said so; returns what it was at.
#[track_caller]
fn failed(outcome: Outcome) -> String {
    let error = outcome.told(exit::TARGET, "");
    let cause = error["cause"].as_str().unwrap_or_default();
    assert!(cause.contains("Input/output error"), "{error}");
    error["object"].as_str().expect("an object").to_owned()
}

#[test]
fn a_file_that_the_disk_does_not_give_back_fails_its_backup_by_name() {
    let scene = Scene::new("bad-source");
    let (repo, source, home) = (&scene.repo, &scene.source, &scene.home);
    for name in ["before", "later"] {
        fs::write(source.join(name), Random::new(SEED).bytes(5000)).expect("a file");
    }
    for name in ["base/rows", "before", "later"] {
        let file = source.join(name);
        let outcome = on_disk(repo.backup_command(source), Some(&file), home);
        let error = outcome.told(exit::SOURCE, name);
        assert_eq!(error["object"], name, "{error}");
        let cause = error["cause"].as_str().unwrap_or_default();
        assert!(cause.contains("Input/output error"), "{error}");
        assert!(repo.ids().is_empty(), "{name}: a backup that failed");
    }
    on_disk(repo.backup_command(source), None, home).summary();
    restores_to(repo, "latest", &Tree::read(source), &scene.scratch);
    repo.verify().expect(exit::OK);
}

#[test]
fn a_target_whose_disk_fails_does_not_appear() {
    let scene = Scene::new("bad-target");
    let (repo, home) = (&scene.repo, &scene.home);
    repo.backup(&scene.source).summary();
    let truth = Tree::read(&scene.source);
    let place = scene.scratch.dir("place");
    let target = place.join("target");
    let restore = |broken: Broken<'_>| broken.run(repo.restore_command("latest", &target), home);
    let is_empty = || fs::read_dir(&place).expect("a directory").next().is_none();

    for (call, object) in [
        ("pwrite64", "base/rows"),
        ("ftruncate", "base/rows"),
        // By it the bytes of all files become durable.
        ("syncfs", "."),
    ] {
        let outcome = restore(Broken::all(call));
        assert_eq!(failed(outcome), object, "{call}");
        assert!(is_empty(), "{call}: something stays");
    }

    // Marker, directories, names: whichever of them does not become durable.
    let (mut objects, mut is_there) = (Vec::new(), Vec::new());
    for at in 1..CALLS_MAX {
        let outcome = restore(Broken {
            at: Some(at),
            ..Broken::all("fsync")
        });
        if outcome.code == Some(exit::OK) {
            break;
        }
        objects.push(failed(outcome));
        is_there.push(target.exists());
        if target.exists() {
            truth.assert_same(&Tree::read(&target), "put into place");
            fs::remove_dir_all(&target).expect("a target");
        }
        assert!(is_empty(), "fsync {at}: something stays");
    }
    truth.assert_same(&Tree::read(&target), "restored");
    for object in [target.to_str().expect("UTF-8"), "base", "."] {
        assert!(objects.iter().any(|told| told == object), "{objects:?}");
    }
    // After the last step there is a complete tree, whose name may be lost with the power.
    let (last, before) = is_there.split_last().expect("some have failed");
    assert!(*last && !before.contains(&true), "{is_there:?}");
}

#[test]
fn a_delta_restore_over_a_disk_that_fails_is_made_good_by_the_next() {
    let scene = Scene::new("bad-delta");
    let (repo, home) = (&scene.repo, &scene.home);
    repo.backup(&scene.source).summary();
    let truth = Tree::read(&scene.source);
    let target = scene.scratch.join("target");
    let rows = target.join("base/rows");
    let delta = || {
        let mut command = repo.restore_command("latest", &target);
        command.arg("--delta");
        command
    };
    // One byte is another, and there is something that has to go.
    let mut spoilt = fs::read(scene.source.join("base/rows")).expect("a file");
    spoilt[2_000_000] ^= 1;
    let spoil = || {
        copy(&scene.source, &target);
        fs::write(&rows, &spoilt).expect("a file");
        fs::write(target.join("base/extra"), "extra").expect("a file");
    };
    let is_made_good = |what: &str| {
        // Without a marker nothing was changed, or all is done.
        match (
            target.join(MARKER).exists(),
            target.join("base/extra").exists(),
        ) {
            (true, _) => {}
            (false, true) => assert!(fs::read(&rows).expect("a file") == spoilt, "{what}"),
            (false, false) => {
                truth.assert_same(&Tree::read(&target), &format!("{what}: without a marker"));
            }
        }
        on_disk(delta(), None, home).summary();
        truth.assert_same(&Tree::read(&target), what);
    };

    for (call, object) in [
        ("pread64", "base/rows"),
        ("pwrite64", "base/rows"),
        ("ftruncate", "base/rows"),
    ] {
        spoil();
        let broken = Broken {
            on: Some(&rows),
            ..Broken::all(call)
        };
        let outcome = broken.run(delta(), home);
        assert_eq!(failed(outcome), object, "{call}");
        is_made_good(call);
    }
    spoil();
    let outcome = Broken::all("syncfs").run(delta(), home);
    assert_eq!(failed(outcome), ".");
    is_made_good("syncfs");

    let mut objects = Vec::new();
    for at in 1..CALLS_MAX {
        spoil();
        let broken = Broken {
            at: Some(at),
            ..Broken::all("fsync")
        };
        let outcome = broken.run(delta(), home);
        if outcome.code == Some(exit::OK) {
            // One of the repository's: then the backup is not held meanwhile, which is told, and no more.
            let warnings = outcome.summary()["warnings"].to_string();
            if warnings.contains("no hold") || warnings.contains("hold list") {
                continue;
            }
            break;
        }
        objects.push(failed(outcome));
        is_made_good(&format!("fsync {at}"));
    }
    truth.assert_same(&Tree::read(&target), "delta");
    for object in [MARKER, "base", "."] {
        assert!(objects.iter().any(|told| told == object), "{objects:?}");
    }
}

/// What `syncfs` does not do for a file system that is a program, or a server, is done for each file.
#[test]
fn on_a_file_system_that_is_kept_elsewhere_each_file_is_synced() {
    let scene = Scene::new("bad-elsewhere");
    let (repo, home) = (&scene.repo, &scene.home);
    for name in ["before", "later"] {
        fs::write(scene.source.join(name), "some bytes").expect("a file");
    }
    repo.backup(&scene.source).summary();
    let target = scene.scratch.join("target");
    let calls = scene.scratch.join("calls");
    // As f_type: FUSE.
    const ELSEWHERE: &str = "inject=fstatfs:poke_exit=@arg2=4655736500000000";
    let restore = |inject: &[&str]| {
        let mut strace = isolated(Command::new("strace"), home);
        strace.args(["-f", "-qq", "-y", "-e", "trace=fstatfs,fsync", "-o"]);
        strace.arg(&calls);
        inject.iter().for_each(|inject| {
            strace.args(["-e", inject]);
        });
        let mut command = repo.restore_command("latest", &target);
        command.args(BY_THREADS);
        strace.arg(command.get_program()).args(command.get_args());
        Outcome::of(&mut strace)
    };
    let synced = || {
        let calls = fs::read_to_string(&calls).expect("what strace saw");
        let of = |name: &str| {
            let is_of =
                |line: &&str| line.contains("fsync(") && line.contains(&format!("/{name}>"));
            calls.lines().filter(is_of).count()
        };
        ["base/rows", "before", "later"].map(of)
    };
    restore(&[]).summary();
    assert_eq!(synced(), [0; 3]);
    fs::remove_dir_all(&target).expect("a target");
    restore(&[ELSEWHERE]).summary();
    assert_eq!(synced(), [1; 3]);
    Tree::read(&scene.source).assert_same(&Tree::read(&target), "restored");
    let mut objects = Vec::new();
    for at in 1..CALLS_MAX {
        let _ = fs::remove_dir_all(&target);
        let outcome = restore(&[ELSEWHERE, &format!("inject=fsync:error=EIO:when={at}")]);
        if outcome.code == Some(exit::OK) {
            break;
        }
        objects.push(failed(outcome));
    }
    // The first of them is synced as the marker is, by another thread, whose error may be the first.
    let files = ["base/rows", "before", "later"];
    let told = objects.iter().filter(|told| files.contains(&told.as_str()));
    assert!(told.count() >= 2, "{objects:?}");
}
