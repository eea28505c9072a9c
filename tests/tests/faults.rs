//! What goes wrong around the tool (full disks, missing permissions, a source that changes, signals, a hostile
//! environment) ends with the exit code that says what to do, and leaves nothing broken behind.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mover_tests::disk::{SmallDisk, names_in};
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{self, Outcome, Protection, Repo, dir_url, exit, identity, secret_file};
use mover_tests::plant::{self, MIB};
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use rustix::process::Signal;

/// Seed of what is planted here.
const SEED: u64 = 0x6661_756c;
/// User and group that own nothing: `nobody`, `nogroup`.
const NOBODY: u32 = 65_534;

fn random_source(scratch: &Scratch, name: &str, bytes: u64) -> PathBuf {
    let source = scratch.dir(name);
    let mut random = Random::new(SEED ^ bytes);
    for i in 0..4 {
        plant::file(
            &source.join(format!("table-{i}")),
            &mut random,
            (bytes / 4) as usize,
        );
    }
    source
}

#[test]
fn full_target_disk_is_a_target_error() {
    let scratch = Scratch::new("full-target");
    let source = random_source(&scratch, "source", 40 * MIB);
    let small = random_source(&scratch, "small", MIB);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    repo.backup(&small).summary();
    let small_id = repo.ids().remove(0);
    repo.backup(&source).summary();
    let disk = SmallDisk::new(&scratch, "disk", 32 * MIB);
    let before = Tree::read(&repo.dir);

    let target = disk.path().join("target");
    let error = repo.restore("latest", &target).told(exit::TARGET, "target");
    assert_eq!(error["kind"], "target", "{error}");
    assert_eq!(
        names_in(disk.path()),
        Vec::<String>::new(),
        "left by a failed restore"
    );
    before.assert_same(
        &Tree::read(&repo.dir),
        "repository after the failed restore",
    );

    repo.restore(&small_id, &target).summary();
    Tree::read(&small).assert_same(&Tree::read(&target), "what fits");
}

/// A full file system has room for a name, and often for a block.
#[test]
fn check_finds_out_that_a_repository_has_no_room() {
    let scratch = Scratch::new("check-full");
    let disk = SmallDisk::new(&scratch, "disk", 16 * MIB);
    let repo = Repo::create_at(&scratch, &disk.path().join("repo"), Protection::None);
    let check = || Outcome::of(repo.command("check").arg("--json"));
    check().expect(exit::OK);
    let filler = disk.path().join("filler");
    let file = File::create(&filler).expect("filler");
    let taken = disk.free_bytes() - (64 << 10);
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&file, flags, 0, taken).expect("filler takes its space");
    let full = check().expect(exit::CHECK_FAILED);
    assert!(full.stdout.contains("the repository is full"), "{full}");
    fs::remove_file(&filler).expect("filler");
    drop(file);
    check().expect(exit::OK);
}

#[test]
fn target_disk_that_fills_during_a_restore_is_a_target_error() {
    let scratch = Scratch::new("filling-target");
    // More files than shards, since a shard reserves the space of a file when it first writes to it.
    let source = scratch.dir("source");
    for i in 0..24 {
        let file = source.join(format!("table-{i}"));
        plant::file(&file, &mut Random::new(SEED ^ i), MIB as usize);
    }
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();
    let disk = SmallDisk::new(&scratch, "disk", 64 * MIB);
    let target = disk.path().join("target");

    let free = disk.free_bytes();
    let mut restore = repo.restore_command("latest", &target);
    let restore = Job::start(restore.args(["--limit-write", "4MiB/s"]));
    wait_until(|| disk.free_bytes() < free);
    // Takes whatever is left, however much the restore has reserved for itself.
    let mut filler = File::create(disk.path().join("filler")).expect("filler");
    let piece = vec![1; 1 << 16];
    while filler.write_all(&piece).is_ok() {}
    let outcome = restore.outcome();
    drop(filler);

    let error = outcome.told(exit::TARGET, "table-");
    assert_eq!(error["kind"], "target", "{error}");
    let left = names_in(disk.path());
    assert_eq!(left, ["filler"], "left by a failed restore");
    fs::remove_file(disk.path().join("filler")).expect("filler");
    repo.restore("latest", &target).summary();
    Tree::read(&source).assert_same(&Tree::read(&target), "restore after space was made");
}

#[test]
fn full_repository_disk_is_a_storage_error_and_heals() {
    let scratch = Scratch::new("full-repo");
    let first = random_source(&scratch, "first", 8 * MIB);
    let second = random_source(&scratch, "second", 40 * MIB);
    let disk = SmallDisk::new(&scratch, "disk", 96 * MIB);
    let repo = Repo::create_at(&scratch, &disk.path().join("repo"), Protection::Passphrase);
    repo.backup(&first).summary();

    let filler = disk.path().join("filler");
    let file = File::create(&filler).expect("filler");
    let taken = disk.free_bytes() - 24 * MIB;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken)
        .expect("filler takes its space");
    // What was being written when there was no more room.
    let error = repo.backup(&second).told(exit::STORAGE, "packs/");
    assert_eq!(error["kind"], "storage", "{error}");
    assert_eq!(repo.ids().len(), 1, "a failed backup is listed");
    repo.verify().expect(exit::OK);
    repo.restore("latest", &scratch.join("first-restored"))
        .summary();

    drop(file);
    fs::remove_file(&filler).expect("filler");
    repo.backup(&second).summary();
    let ids = repo.ids();
    assert_eq!(ids.len(), 2);
    for (i, (id, source)) in ids.iter().zip([&first, &second]).enumerate() {
        let target = scratch.join(format!("target-{i}"));
        repo.restore(id, &target).summary();
        Tree::read(source).assert_same(&Tree::read(&target), "after space was made");
    }
    repo.verify().expect(exit::OK);
}

#[test]
fn existing_target_is_kept() {
    let scratch = Scratch::new("existing");
    let source = random_source(&scratch, "source", MIB);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();

    let target = scratch.dir("target");
    fs::write(target.join("precious"), "kept").expect("file");
    let before = Tree::read(&target);
    repo.restore("latest", &target).told(exit::TARGET, "target");
    before.assert_same(&Tree::read(&target), "target that was not empty");

    let file = scratch.join("file");
    fs::write(&file, "a file").expect("file");
    repo.restore("latest", &file).told(exit::TARGET, "file");
    assert_eq!(fs::read(&file).expect("file"), b"a file");

    let empty = scratch.dir("empty");
    repo.restore("latest", &empty).summary();
    Tree::read(&source).assert_same(&Tree::read(&empty), "an empty directory is a fine target");
}

#[test]
fn root_of_a_new_file_system_is_a_fine_target() {
    let scratch = Scratch::new("mount-root");
    let source = random_source(&scratch, "source", 8 * MIB);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();
    let disk = SmallDisk::new(&scratch, "disk", 64 * MIB);
    repo.restore("latest", disk.path()).summary();
    let mut restored = Tree::read(disk.path());
    // What mkfs made stays; it is not part of the backup.
    restored.0.retain(|path, _| path != b"lost+found");
    Tree::read(&source).assert_same(&restored, "root of a file system");
}

#[test]
fn missing_source_and_wrong_type_of_source_are_source_errors() {
    let scratch = Scratch::new("no-source");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&scratch.join("absent"))
        .told(exit::SOURCE, "absent");
    let file = scratch.join("file");
    fs::write(&file, "not a directory").expect("file");
    repo.backup(&file).told(exit::SOURCE, "file");
    assert!(repo.ids().is_empty());
}

/// A copy of the binary and a repository that user nobody can use.
struct AsNobody {
    scratch: Scratch,
    binary: PathBuf,
    repo: Repo,
}

impl AsNobody {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let binary = scratch.join("helios-mover");
        mover::copy_binary(&binary);
        let repo = Repo::create(&scratch, "repo", Protection::None);
        run::run(
            "chown",
            [
                "-R".as_ref(),
                "nobody:nogroup".as_ref(),
                repo.dir.as_os_str(),
            ],
        );
        chown(scratch.dir("home"), Some(NOBODY), Some(NOBODY)).expect("owner");
        AsNobody {
            scratch,
            binary,
            repo,
        }
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let mut command = mover::isolated(
            run::as_user("nobody", &self.binary),
            &self.scratch.join("home"),
        );
        Outcome::of(
            command
                .args(args)
                .args(["--json", "--repo", self.repo.url()]),
        )
    }
}

#[test]
fn unreadable_file_is_a_source_error_that_names_it() {
    let nobody = AsNobody::new("unreadable");
    let source = random_source(&nobody.scratch, "source", MIB);
    let url = dir_url(&source);
    nobody.run(&["backup", "--source", &url]).summary();
    fs::set_permissions(source.join("table-2"), fs::Permissions::from_mode(0o600)).expect("mode");
    nobody
        .run(&["backup", "--source", &url])
        .told(exit::SOURCE, "table-2");
    assert_eq!(
        nobody.repo.ids().len(),
        1,
        "a backup without the file is listed"
    );

    fs::set_permissions(source.join("table-2"), fs::Permissions::from_mode(0o644)).expect("mode");
    let closed = source.join("closed");
    fs::create_dir(&closed).expect("directory");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("mode");
    nobody
        .run(&["backup", "--source", &url])
        .told(exit::SOURCE, "closed");
}

#[test]
fn permissions_of_target_and_repository_are_told_apart() {
    let nobody = AsNobody::new("permissions");
    let source = random_source(&nobody.scratch, "source", MIB);
    let url = dir_url(&source);
    nobody.run(&["backup", "--source", &url]).summary();

    let closed = nobody.scratch.dir("closed");
    let target = closed.join("target").display().to_string();
    nobody
        .run(&["restore", "--set", "latest", "--to", &target])
        .told(exit::TARGET, "closed");
    assert!(!Path::new(&target).exists());

    fs::write(source.join("new"), Random::new(SEED).bytes(10_000)).expect("file");
    run::run(
        "chown",
        [
            "-R".as_ref(),
            "root:root".as_ref(),
            nobody.repo.dir.as_os_str(),
        ],
    );
    nobody
        .run(&["backup", "--source", &url])
        .told(exit::STORAGE, &nobody.repo.dir.display().to_string());
    assert_eq!(nobody.repo.ids().len(), 1);
}

/// What an error calls a source itself.
const ROOT: &str = ".";

/// Tells another thread to end when it is dropped, also by a test that fails, which waits for it.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Changes the source again and again while it is backed up; the error names `object` as what has changed.
fn backup_while(object: &str, change: impl Fn(&Path, u64) + Sync) -> (Repo, Scratch, PathBuf) {
    let scratch = Scratch::new("changing");
    let source = random_source(&scratch, "source", 32 * MIB);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let done = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| {
            let mut round = 0;
            while !done.load(Ordering::Relaxed) {
                change(&source, round);
                round += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // Slow enough that changes fall into the time of reading, whatever the machine.
        Outcome::of(
            repo.backup_command(&source)
                .args(["--limit-read", "32MiB/s"]),
        )
    });
    let error = outcome.told(exit::SOURCE_CHANGED, object);
    assert_eq!(error["object"], object, "{error}");
    assert_eq!(error["kind"], "source_changed", "{error}");
    assert!(repo.ids().is_empty(), "a torn backup is listed");
    (repo, scratch, source)
}

/// Once it rests, the same source is backed up exactly.
fn then_it_works((repo, scratch, source): (Repo, Scratch, PathBuf)) {
    repo.backup(&source).summary();
    let target = scratch.join("target");
    repo.restore("latest", &target).summary();
    Tree::read(&source).assert_same(&Tree::read(&target), "source at rest");
    repo.verify().expect(exit::OK);
}

#[test]
fn growing_file_is_a_changed_source() {
    then_it_works(backup_while("table-3", |source, _| {
        let mut file = OpenOptions::new()
            .append(true)
            .open(source.join("table-3"))
            .expect("file");
        file.write_all(b"one more row\n").expect("append");
    }));
}

#[test]
fn file_written_in_place_is_a_changed_source() {
    then_it_works(backup_while("table-1", |source, round| {
        let file = OpenOptions::new()
            .write(true)
            .open(source.join("table-1"))
            .expect("file");
        file.write_all_at(&round.to_le_bytes(), (round * 7919) % (8 * MIB - 8))
            .expect("write");
    }));
}

#[test]
fn shrinking_file_is_a_changed_source() {
    then_it_works(backup_while("table-0", |source, round| {
        let file = OpenOptions::new()
            .write(true)
            .open(source.join("table-0"))
            .expect("file");
        file.set_len((8 * MIB).saturating_sub(round * 4099).max(1))
            .expect("truncate");
    }));
}

#[test]
fn replaced_file_is_a_changed_source() {
    then_it_works(backup_while("table-2", |source, round| {
        let new = source.parent().expect("scratch").join("new");
        fs::write(&new, round.to_le_bytes().repeat(1 << 17)).expect("file");
        fs::rename(&new, source.join("table-2")).expect("rename");
    }));
}

#[test]
fn vanished_file_is_a_changed_source() {
    then_it_works(backup_while("table-3", |source, _| {
        // A backup opens its session when it has listed the directory, and only then reads: others before this one.
        let sessions = source.parent().expect("scratch").join("repo/sessions");
        let is_any = fs::read_dir(sessions).is_ok_and(|mut open| open.next().is_some());
        if is_any {
            let _ = fs::remove_file(source.join("table-3"));
        }
    }));
}

#[test]
fn new_names_are_a_changed_source() {
    then_it_works(backup_while(ROOT, |source, round| {
        // Complete when it comes, so that nothing has changed but the list of names.
        let new = source.parent().expect("scratch").join("new");
        fs::write(&new, b"a row").expect("file");
        fs::rename(&new, source.join(format!("late-{round}"))).expect("rename");
    }));
}

#[test]
fn new_empty_directory_is_a_changed_source() {
    then_it_works(backup_while(ROOT, |source, round| {
        let at = source.join(format!("late-{round}"));
        fs::create_dir(at).expect("directory");
    }));
}

/// Runs a job until it is well in `phase` and ends it by `signal`. The last that it prints must be an error that says so.
fn cancel_in(phase: &str, command: &mut Command, signal: Signal, printed: &Path) {
    let mut job = Job::start_until(command, printed.to_path_buf(), phase);
    job.signal(signal);
    let outcome = job.outcome().expect(exit::CANCELLED);
    assert_eq!(outcome.error()["kind"], "cancelled", "{outcome}");
    let mut lines = outcome.lines().into_iter();
    let summary = lines.find(|line| line["message_type"] == "summary");
    assert_eq!(summary, None, "a summary of a cancelled job");
}

#[test]
fn cancelled_jobs_leave_nothing_visible() {
    let scratch = Scratch::new("cancel");
    let source = random_source(&scratch, "source", 24 * MIB);
    let repo = Repo::create(&scratch, "repo", Protection::Identity);
    let printed = scratch.join("printed");
    // A directory of its own, so that nothing else is beside what a restore leaves.
    let place = scratch.dir("place");
    let target = place.join("target");
    for signal in [Signal::INT, Signal::TERM] {
        let known = repo.ids().len();
        let mut backup = repo.backup_command(&source);
        backup.args(["--limit-read", "1KiB/s"]);
        cancel_in("copy", &mut backup, signal, &printed);
        assert_eq!(repo.ids().len(), known, "a cancelled backup is listed");

        repo.backup(&source).summary();
        let mut restore = repo.restore_command("latest", &target);
        restore.args(["--limit-write", "1KiB/s"]);
        cancel_in("restore", &mut restore, signal, &printed);
        assert_eq!(
            names_in(&place),
            Vec::<String>::new(),
            "a cancelled restore left this"
        );
        repo.restore("latest", &target).summary();
        Tree::read(&source).assert_same(&Tree::read(&target), "after a cancelled restore");
        fs::remove_dir_all(&target).expect("target");
    }
    repo.verify().expect(exit::OK);
}

/// A variable, a value that it cannot have, and what the error names.
const HOSTILE: [(&str, &str, &str); 19] = [
    ("HELIOS_MOVER_SHARDS", "-1", "HELIOS_MOVER_SHARDS"),
    (
        "HELIOS_MOVER_SHARDS",
        "99999999999999999999",
        "HELIOS_MOVER_SHARDS",
    ),
    ("HELIOS_MOVER_SHARDS", "two", "HELIOS_MOVER_SHARDS"),
    ("HELIOS_MOVER_ARENA", "1EiB of it", "HELIOS_MOVER_ARENA"),
    ("HELIOS_MOVER_ARENA", "-5", "HELIOS_MOVER_ARENA"),
    ("HELIOS_MOVER_ARENA", "1", "HELIOS_MOVER_ARENA"),
    ("HELIOS_MOVER_ARENA", "999999TiB", "HELIOS_MOVER_ARENA"),
    ("HELIOS_MOVER_INDEX", "NaN", "HELIOS_MOVER_INDEX"),
    ("HELIOS_MOVER_RUNG", "fastest", "HELIOS_MOVER_RUNG"),
    ("HELIOS_MOVER_LIMIT_READ", "0", "HELIOS_MOVER_LIMIT_READ"),
    (
        "HELIOS_MOVER_LIMIT_READ",
        "1e400",
        "HELIOS_MOVER_LIMIT_READ",
    ),
    ("HELIOS_MOVER_PIN", "maybe", "HELIOS_MOVER_PIN"),
    ("HELIOS_MOVER_COLOR", "\u{1b}[31m", "HELIOS_MOVER_COLOR"),
    ("HELIOS_MOVER_REPO", "ftp://example.org/x", "ftp://"),
    ("HELIOS_MOVER_REPO", "file://relative", "file://relative"),
    (
        "HELIOS_MOVER_CONFIG",
        "/absent/config.toml",
        "/absent/config.toml",
    ),
    (
        "HELIOS_MOVER_BACKUP_LEVEL",
        "1000",
        "HELIOS_MOVER_BACKUP_LEVEL",
    ),
    (
        "HELIOS_MOVER_BACKUP_TYPE",
        "sideways",
        "HELIOS_MOVER_BACKUP_TYPE",
    ),
    ("HELIOS_MOVER_BACKUP_SOURCE", "s3://bucket", "s3://bucket"),
];

#[test]
fn hostile_settings_are_usage_errors() {
    let scratch = Scratch::new("hostile");
    let source = random_source(&scratch, "source", MIB);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    // What is given by a variable is not given by a flag as well.
    let backup = |variable: &str, value: Option<&str>| {
        let mut command = mover::command(&scratch.dir("home"));
        command.args(["backup", "--json"]);
        if let Some(value) = value {
            command.env(variable, value);
        }
        if variable != "HELIOS_MOVER_REPO" {
            command.args(["--repo", repo.url()]);
        }
        if variable != "HELIOS_MOVER_BACKUP_SOURCE" {
            command.args(["--source", &dir_url(&source)]);
        }
        Outcome::of(&mut command)
    };
    for (variable, value, object) in HOSTILE {
        let error = backup(variable, Some(value)).told(exit::USAGE, object);
        assert_eq!(error["object"], object, "{variable}={value}: {error}");
        assert_eq!(error["kind"], "usage", "{variable}={value}: {error}");
    }
    assert!(repo.ids().is_empty());

    // It was the values: the same commands without one, or with a good one where there must be one, do their work.
    let url = dir_url(&source);
    for (variable, good) in [
        ("HELIOS_MOVER_SHARDS", None),
        ("HELIOS_MOVER_SHARDS", Some("1")),
        ("HELIOS_MOVER_REPO", Some(repo.url())),
        ("HELIOS_MOVER_BACKUP_SOURCE", Some(url.as_str())),
    ] {
        backup(variable, good).summary();
    }
    assert_eq!(repo.ids().len(), 4);
}

/// A command line that is wrong, and a part of what is said. URL, RECIPIENT, PASSPHRASE and IDENTITY stand for real ones, so
/// that nothing else is wrong.
const WRONG: [(&[&str], &str); 16] = [
    (&[], "Usage: helios-mover"),
    (&["--no-such-flag"], "unexpected argument '--no-such-flag'"),
    (
        &["backup", "--no-such-flag"],
        "unexpected argument '--no-such-flag'",
    ),
    (&["no-such-verb"], "unrecognized subcommand 'no-such-verb'"),
    (&["backup"], "no source is given"),
    (&["list"], "no repository is given"),
    (
        &["restore", "--repo", "URL"],
        "no target directory is given",
    ),
    (&["backup", "--repo", "URL"], "no source is given"),
    (
        &["backup", "--repo", "", "--source", "/tmp"],
        "no repository is given: its text is empty",
    ),
    (
        &[
            "backup",
            "--repo",
            "URL",
            "--source",
            "dir:///tmp",
            "--type",
            "incr",
        ],
        "a directory has no log, so it can only be backed up in full",
    ),
    (
        &["verify", "--repo", "URL", "--level", "wishful"],
        "invalid value 'wishful' for '--level",
    ),
    (
        &[
            "init",
            "--repo",
            "URL",
            "--no-encryption",
            "--recipient",
            "RECIPIENT",
        ],
        "a key and --no-encryption contradict each other",
    ),
    (
        &["init", "--repo", "URL", "--recipient", "age1notakey"],
        "not an age X25519 recipient",
    ),
    (
        &["init", "--repo", "URL"],
        "no key is given for the new repository",
    ),
    (&["completions", "tcl"], "invalid value 'tcl' for '<SHELL>'"),
    (
        &[
            "list",
            "--repo",
            "URL",
            "--passphrase-file",
            "PASSPHRASE",
            "--identity-file",
            "IDENTITY",
        ],
        "both a passphrase file and an identity file are given",
    ),
];

#[test]
fn unknown_flags_verbs_and_combinations_are_usage_errors() {
    let scratch = Scratch::new("usage");
    let home = scratch.dir("home");
    let repo = scratch.join("repo");
    let url = format!("file://{}", repo.display());
    let passphrase = scratch.join("passphrase");
    secret_file(&passphrase, "a passphrase\n");
    let (identity, recipient) = identity(&scratch, "usage");
    let run = |args: &[&str]| {
        let real = |word: &&str| match *word {
            "URL" => url.clone(),
            "RECIPIENT" => recipient.clone(),
            "PASSPHRASE" => passphrase.display().to_string(),
            "IDENTITY" => identity.display().to_string(),
            word => word.to_owned(),
        };
        Outcome::of(mover::command(&home).args(args.iter().map(real)))
    };
    for (args, said) in WRONG {
        let outcome = run(args).expect(exit::USAGE);
        assert!(outcome.stderr.contains(said), "not told: {said}\n{outcome}");
    }
    assert!(!repo.exists());
    // Each of the two keys alone is looked at: what is missing then is the repository. And what protects it is no mistake alone.
    for key in [
        ["--passphrase-file", "PASSPHRASE"],
        ["--identity-file", "IDENTITY"],
    ] {
        run(&["list", "--repo", "URL", key[0], key[1]]).expect(exit::NOT_FOUND);
    }
    run(&["init", "--repo", "URL", "--recipient", "RECIPIENT"]).expect(exit::OK);
}

#[test]
fn a_query_that_fails_tells_its_warnings_in_its_error() {
    let scratch = Scratch::new("warned-error");
    let absent = format!("file://{}", scratch.join("absent").display());
    let mut list = mover::command(&scratch.dir("home"));
    list.args(["list", "--json", "--repo", &absent]);
    list.env("HELIOS_MOVER_REPOO", "x");
    let error = Outcome::of(&mut list).expect(exit::NOT_FOUND).error();
    let warning = "HELIOS_MOVER_REPOO is set but is not an option";
    assert_eq!(error["warnings"], serde_json::json!([warning]), "{error}");
}

#[test]
fn a_typed_recipient_wins_over_an_identity_file_that_was_set_and_over_no_other() {
    let scratch = Scratch::new("init-identity");
    let (identity, recipient) = identity(&scratch, "own");
    let identity = identity.display().to_string();
    let config = scratch.join("config.toml");
    let command = |name: &str, text: &str| {
        fs::write(&config, text).expect("a configuration file");
        let mut command = mover::command(&scratch.dir("home"));
        command.args(["init", "--json", "--repo"]);
        command.arg(scratch.join(name)).arg("--config").arg(&config);
        command
    };
    let init =
        |name: &str, text: &str, flags: &[&str]| Outcome::of(command(name, text).args(flags));
    let set = format!("identity-file = '{identity}'\n");
    let made = init("typed", &set, &["--recipient", &recipient]).summary();
    assert_eq!(made["slots"][0]["kind"], "x25519", "{made}");
    let warning = format!(
        "the identity file from `identity-file` in {} is not used: --recipient comes from a stronger layer, and its identity opens the repository",
        config.display()
    );
    assert_eq!(made["warnings"], serde_json::json!([warning]), "{made}");

    let both = format!("{set}[init]\nrecipient = ['{recipient}']\n");
    let flags = ["--identity-file", &identity, "--recipient", &recipient];
    for (name, text, flags) in [("file", both.as_str(), &[][..]), ("flags", "", &flags[..])] {
        let error = init(name, text, flags).expect(exit::USAGE).error();
        let message = "a repository is not initialised with an identity file";
        assert_eq!(error["message"], message, "{error}");
        assert!(!scratch.join(name).exists(), "{name}: something was made");
    }

    // A passphrase that a weaker layer asks for is not left out in silence.
    let mut three = command("three", "passphrase-file = '/nowhere'\n");
    three.env("HELIOS_MOVER_IDENTITY_FILE", &identity);
    let refused = Outcome::of(three.args(["--recipient", &recipient])).expect(exit::USAGE);
    assert!(!scratch.join("three").exists(), "{refused}");
}

#[test]
fn init_never_overwrites() {
    let scratch = Scratch::new("init");
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let before = Tree::read(&repo.dir);
    Outcome::of(repo.command("init").args(["--no-encryption", "--json"]))
        .expect(exit::CONFLICT)
        .error();
    before.assert_same(&Tree::read(&repo.dir), "repository after a second init");

    let used = scratch.dir("used");
    fs::write(used.join("precious"), "kept").expect("file");
    let before = Tree::read(&used);
    let outcome = Outcome::of(
        repo.moved_to(&used)
            .command("init")
            .args(["--no-encryption", "--json"]),
    );
    let error = outcome.told(exit::CONFLICT, "(precious)");
    let message = "the place is not empty and not a repository";
    assert_eq!(error["message"], message, "{error}");
    before.assert_same(&Tree::read(&used), "a directory that is in use");
}

/// A backup would copy itself, and a restore with `--delta` remove every backup before it reads the first.
#[test]
fn a_repository_in_its_source_or_target_is_refused_and_stays_whole() {
    let scratch = Scratch::new("overlap");
    let source = random_source(&scratch, "source", MIB);
    let repo = Repo::create_at(&scratch, &source.join("backups"), Protection::None);
    let error = repo.backup(&source).expect(exit::USAGE).error();
    assert_eq!(
        error["hint"]
            .as_str()
            .map(|hint| hint.contains("--exclude 'backups'")),
        Some(true),
        "{error}"
    );
    let mut check = repo.command("check");
    check.args(["--json", "--source", &dir_url(&source)]);
    let outcome = Outcome::of(&mut check).expect(exit::CHECK_FAILED);
    let checked = outcome.lines().remove(0);
    let items = checked["items"].as_array().expect("items");
    let told = items.iter().find(|item| item["name"] == "repository in it");
    let told = told.unwrap_or_else(|| panic!("{checked}"));
    assert_eq!(told["status"], "fail", "{told}");
    Outcome::of(check.args(["--exclude", "backups"])).summary();
    let mut backup = repo.backup_command(&source);
    Outcome::of(backup.args(["--exclude", "backups"])).summary();

    let before = Tree::read(&repo.dir);
    // By its path, and by one that leads elsewhere.
    let alias = scratch.join("alias");
    std::os::unix::fs::symlink(&source, &alias).expect("a link");
    for target in [&source, &alias] {
        let mut restore = repo.restore_command("latest", target);
        let error = Outcome::of(restore.arg("--delta"))
            .expect(exit::USAGE)
            .error();
        assert!(
            error["message"]
                .to_string()
                .contains("the repository lies in the target"),
            "{error}"
        );
    }
    let inside = repo.dir.join("packs/restored");
    let error = repo.restore("latest", &inside).expect(exit::USAGE).error();
    assert!(
        error["message"]
            .to_string()
            .contains("the target lies in the repository"),
        "{error}"
    );
    before.assert_same(&Tree::read(&repo.dir), "the repository");
    repo.verify().expect(exit::OK);
    repo.restore("latest", &scratch.join("elsewhere")).summary();
}

/// `command` where the directory `from` is mounted at `at` as well, for it alone.
fn with_bind(scratch: &Scratch, from: &Path, at: &Path, command: &Command) -> Outcome {
    run::require_root();
    let mut bound = mover::isolated(Command::new("unshare"), &scratch.dir("home"));
    let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
    bound
        .args(["--mount", "--", "sh", "-ec", script, "sh"])
        .args([from, at])
        .arg(command.get_program())
        .args(command.get_args());
    Outcome::of(&mut bound)
}

/// By its path the repository is not in the target, and no parent of the one is the other's.
#[test]
fn a_repository_that_is_reached_through_a_bind_mount_is_not_removed_as_no_part_of_the_backup() {
    let scratch = Scratch::new("overlap-bind");
    let source = random_source(&scratch, "source", MIB);
    fs::create_dir(source.join("kept")).expect("a directory");
    let repo = Repo::create(&scratch, "backup", Protection::None);
    repo.backup(&source).summary();
    let target = scratch.join("data");
    repo.restore("latest", &target).summary();
    // Below what would go, where it would go itself, and in the place of a directory that would stay.
    for place in ["deep/er", "backup", "kept"] {
        let real = target.join(place);
        fs::create_dir_all(real.parent().expect("a parent")).expect("a directory");
        fs::rename(&repo.dir, &real).expect("the repository moves");
        fs::create_dir(&repo.dir).expect("where it is mounted");
        let before = Tree::read(&target);
        for dry in [&["--dry-run"][..], &[]] {
            let mut restore = repo.restore_command("latest", &target);
            restore.arg("--delta").args(dry);
            let outcome = with_bind(&scratch, &real, &repo.dir, &restore);
            let error = outcome.expect(exit::USAGE).error();
            assert!(
                error["message"]
                    .to_string()
                    .contains("the repository lies in the target"),
                "{error}"
            );
            before.assert_same(&Tree::read(&target), "the target");
        }
        fs::remove_dir(&repo.dir).expect("empty");
        fs::rename(&real, &repo.dir).expect("the repository moves back");
    }
    repo.verify().expect(exit::OK);
}

#[test]
fn a_limit_on_the_size_of_files_is_told_and_kills_nothing() {
    let scratch = Scratch::new("file-size");
    let source = random_source(&scratch, "source", 8 * MIB);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let limited = |command: &Command| {
        let mut limited = mover::isolated(Command::new("prlimit"), &scratch.dir("home"));
        limited
            .args(["--fsize=1048576", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        Outcome::of(&mut limited)
    };
    limited(&repo.backup_command(&source))
        .expect(exit::STORAGE)
        .error();
    assert!(repo.ids().is_empty());
    repo.backup(&source).summary();
    let target = scratch.join("target");
    limited(&repo.restore_command("latest", &target))
        .expect(exit::TARGET)
        .error();
    assert!(!target.exists());
}
