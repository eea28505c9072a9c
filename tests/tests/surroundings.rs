//! What surrounds the tool (umask, limits, standard streams, signals, read-only and full disks, another `init` in the same place, a repository of
//! a newer version) changes neither what is made nor who may read it; where nothing can be made, that is told and nothing is changed.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mover_tests::disk::SmallDisk;
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{self, AnyRepo, Outcome, Protection, Repo, exit, isolated};
use mover_tests::plant::{self, MIB};
use mover_tests::proof::one_init_wins;
use mover_tests::random::Random;
use mover_tests::run;
use mover_tests::scratch::Scratch;
use mover_tests::tree::{Tree, What};

#[path = "surroundings/checks.rs"]
mod checks;
#[path = "surroundings/database.rs"]
mod database;
#[path = "surroundings/dry_runs.rs"]
mod dry_runs;
#[path = "surroundings/full_pipe.rs"]
mod full_pipe;
#[path = "surroundings/newer_version.rs"]
mod newer_version;
#[path = "surroundings/signals.rs"]
mod signals;

use full_pipe::{FullPipe, hangs};

/// Seed of everything that is planted here.
const SEED: u64 = 0x7375_7272;
/// Two `init` at once, so many times.
const CONTESTS: usize = 10;
/// With so many descriptors the tool starts and can set no shard up; with this many every job of one shard works.
const FILES_MIN: usize = 6;
const FILES_ENOUGH: usize = 64;

/// `command` run by way of another program.
fn by(words: &[&str], command: &Command, scratch: &Scratch) -> Outcome {
    let mut whole = isolated(Command::new(words[0]), &scratch.dir("home"));
    whole
        .args(&words[1..])
        .arg(command.get_program())
        .args(command.get_args());
    Outcome::of(&mut whole)
}

/// A directory of one file.
fn small_source(scratch: &Scratch) -> PathBuf {
    let source = scratch.dir("source");
    plant::file(&source.join("table"), &mut Random::new(SEED), 100_000);
    source
}

/// A URL of a repository in a directory.
fn url_of(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

fn holds(repo: &AnyRepo) -> usize {
    let listed = Outcome::of(repo.command("hold list").arg("--json")).summary();
    listed["holds"].as_array().expect("holds").len()
}

/// Names whose modes a umask would change.
fn source_of_many_modes(scratch: &Scratch) -> PathBuf {
    let source = small_source(scratch);
    for mode in [0o777, 0o666, 0o640, 0o4755, 0o2711, 0o200] {
        let file = source.join(format!("file-{mode:o}"));
        fs::write(&file, "rows").expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    for mode in [0o777, 0o1777, 0o2775, 0o700] {
        let dir = source.join(format!("dir-{mode:o}"));
        fs::create_dir(&dir).expect("a directory");
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    fs::set_permissions(&source, fs::Permissions::from_mode(0o775)).expect("a mode");
    source
}

#[test]
fn no_umask_opens_a_repository_or_a_key_or_changes_what_is_restored() {
    let scratch = Scratch::new("umask");
    let source = source_of_many_modes(&scratch);
    let truth = Tree::read(&source);
    for mask in ["000", "077"] {
        let script = "umask \"$1\" && shift && exec \"$@\"";
        let masked = |command: &Command| {
            by(&["sh", "-c", script, "sh", mask], command, &scratch).summary();
        };
        let key = scratch.join(format!("key-{mask}"));
        let mut generate = mover::command(&scratch.dir("home"));
        generate.args(["key", "generate", "--json", "--output"]);
        masked(generate.arg(&key));
        let mode = fs::metadata(&key).expect("a key").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "umask {mask}");

        let name = format!("repo-{mask}");
        let dir = scratch.join(&name);
        let protection = Protection::Identity;
        let (repo, init) = AnyRepo::prepare(&scratch, &name, &url_of(&dir), &[], protection);
        masked(&repo.init_command(&init));
        masked(&repo.backup_command(&source));
        for line in [
            &["hold add", "latest", "--reason", "x"][..],
            &["annotate", "latest", "a=b"],
        ] {
            masked(repo.command(line[0]).args(&line[1..]).arg("--json"));
        }
        for (path, node) in Tree::read(&dir).0 {
            let wanted = match node.what {
                What::Dir => 0o700,
                _ => 0o600,
            };
            let path = String::from_utf8_lossy(&path);
            assert_eq!(node.mode, wanted, "umask {mask}: {path:?}");
        }
        let target = scratch.join(format!("target-{mask}"));
        masked(&repo.restore_command("latest", &target));
        truth.assert_same(&Tree::read(&target), &format!("umask {mask}"));
    }
}

/// Which step has no descriptor left differs with the limit, and with it the code; the reason and the remedy do not.
#[test]
fn a_limit_on_open_files_is_told_wherever_it_is_met_and_leaves_nothing() {
    let scratch = Scratch::new("open-files");
    let source = small_source(&scratch);
    let truth = Tree::read(&source);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();
    let place = scratch.dir("place");
    let target = place.join("target");
    let (mut made, mut restored) = (1, 0);
    for files in (FILES_MIN..=24).chain([FILES_ENOUGH]) {
        let limit = format!("--nofile={files}");
        let run = |mut command: Command| {
            command.args(["--shards", "1"]);
            let outcome = by(&["prlimit", &limit, "--"], &command, &scratch);
            let is_done = outcome.code == Some(exit::OK);
            if !is_done {
                let error = outcome.error();
                let cause = error["cause"].as_str().unwrap_or_default();
                assert!(cause.starts_with("Too many open files"), "{outcome}");
                let hint = error["hint"].as_str().unwrap_or_default();
                assert!(hint.contains("open files"), "{outcome}");
                let codes = [exit::LIMIT, exit::STORAGE, exit::SOURCE, exit::TARGET];
                assert!(outcome.code.is_some_and(|code| codes.contains(&code)));
            }
            if files == FILES_MIN {
                assert_eq!(outcome.code, Some(exit::LIMIT), "{outcome}");
            }
            assert!(is_done || files != FILES_ENOUGH, "{outcome}");
            is_done
        };
        made += usize::from(run(repo.backup_command(&source)));
        if run(repo.restore_command("latest", &target)) {
            restored += 1;
            truth.assert_same(&Tree::read(&target), &limit);
            fs::remove_dir_all(&target).expect("a target");
        }
        let left = fs::read_dir(&place).expect("a directory").count();
        assert_eq!(left, 0, "a restore left something with {limit}");
        assert_eq!(repo.ids().len(), made, "with {limit}");
    }
    assert!(made > 1 && restored > 0);
    repo.verify().expect(exit::OK);
}

/// What is opened while a standard stream is closed could get its number, and then whatever is printed.
#[test]
fn closed_standard_streams_get_into_no_file() {
    let scratch = Scratch::new("closed-streams");
    let source = small_source(&scratch);
    let truth = Tree::read(&source);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let closings = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"];
    for (at, closed) in closings.into_iter().enumerate() {
        let script = format!("exec \"$@\" {closed}");
        let run = |command: &Command| {
            by(&["sh", "-c", &script, "sh"], command, &scratch).expect(exit::OK);
        };
        run(&repo.backup_command(&source));
        assert_eq!(repo.ids().len(), at + 1, "{closed}");
        let target = scratch.join(format!("target-{at}"));
        run(&repo.restore_command("latest", &target));
        truth.assert_same(&Tree::read(&target), closed);
        let mut verify = repo.command("verify");
        run(verify.args(["--level", "checksum", "--json"]));
    }
    repo.verify().expect(exit::OK);
}

/// Runs `command` with a standard output whose reader has gone away.
fn unread(command: &mut Command) -> Outcome {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    Job::start_into(command, writer.into(), Stdio::piped()).outcome()
}

#[test]
fn a_reader_that_goes_away_ends_no_verb() {
    let scratch = Scratch::new("unread");
    let source = small_source(&scratch);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let target = scratch.join("target");
    let done = |command: &mut Command| {
        let outcome = unread(command).expect(exit::OK);
        assert_eq!(outcome.stderr, "", "{outcome}");
    };
    done(&mut repo.backup_command(&source));
    assert_eq!(repo.ids().len(), 1);
    done(&mut repo.restore_command("latest", &target));
    Tree::read(&source).assert_same(&Tree::read(&target), "restored for nobody who reads");
    for verb in ["list", "show", "verify", "check"] {
        done(&mut repo.command(verb));
        done(repo.command(verb).arg("--json"));
    }
    done(mover::command(&scratch.dir("home")).arg("--help"));

    // What fails for another reason says so where somebody may still read.
    let absent = scratch.join("absent");
    let mut list = mover::command(&scratch.dir("home"));
    list.args(["list", "--json", "--repo", &url_of(&absent)]);
    let failed = unread(&mut list).expect(exit::NOT_FOUND);
    assert!(failed.stderr.starts_with("error: "), "{failed}");
    let named = absent.display().to_string();
    assert!(failed.stderr.contains(&named), "{failed}");
    assert!(failed.stderr.contains("\nhint:  "), "{failed}");
}

/// As whoever shares a pipe or a terminal with the tool may leave it.
#[test]
fn a_standard_output_that_does_not_block_gets_all_of_it_when_there_is_room() {
    let scratch = Scratch::new("unblocking");
    let completions = || {
        let mut command = mover::command(&scratch.dir("home"));
        command.args(["completions", "bash"]);
        command
    };
    let whole = Outcome::of(&mut completions()).expect(exit::OK).stdout;
    assert!(!whole.is_empty());
    let (pipe, end) = FullPipe::new(false);
    let mut job = Job::start_into(&mut completions(), end, Stdio::piped());
    let id = job.id();
    // It has found no room, and either waits for some or has given up.
    wait_until(|| hangs(id) || !job.is_running());
    assert_eq!(pipe.rest(), whole);
    let outcome = job.outcome().expect(exit::OK);
    assert_eq!(outcome.stderr, "", "{outcome}");
}

#[test]
fn a_read_only_repository_can_be_read_and_restored_from_and_says_why_it_takes_nothing() {
    let scratch = Scratch::new("read-only");
    let source = small_source(&scratch);
    let truth = Tree::read(&source);
    let disk = SmallDisk::new(&scratch, "disk", 32 * MIB);
    let repo = Repo::create_at(&scratch, &disk.path().join("repo"), Protection::Identity);
    repo.backup(&source).summary();
    let place = disk.path().as_os_str();
    run::run("mount", ["-o".as_ref(), "remount,ro".as_ref(), place]);
    let before = Tree::read(&repo.dir);

    for verb in ["list", "show", "hold list", "key list"] {
        Outcome::of(repo.command(verb).arg("--json")).summary();
    }
    assert_eq!(repo.verify().summary()["ok"], true);
    let plan = ["--keep-last", "1", "--json"];
    Outcome::of(repo.command("expire").args(plan)).summary();
    let target = scratch.join("target");
    repo.restore("latest", &target).summary();
    truth.assert_same(&Tree::read(&target), "restored from a read-only disk");
    fs::write(target.join("table"), "changed").expect("a file");
    let mut delta = repo.restore_command("latest", &target);
    let delta = Outcome::of(delta.arg("--delta")).summary();
    let warnings = delta["warnings"].to_string();
    assert!(warnings.contains("no hold could be put on"), "{delta}");
    truth.assert_same(&Tree::read(&target), "restored over a target");

    let told = |command: &mut Command| {
        let error = Outcome::of(command).told(exit::STORAGE, "tmp");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.ends_with("the file system is read-only"), "{error}");
        let hint = error["hint"].as_str().unwrap_or_default();
        assert!(hint.contains("read-write"), "{error}");
    };
    told(&mut repo.backup_command(&source));
    for line in [
        &["hold add", "latest", "--reason", "x"][..],
        &["annotate", "latest", "a=b"],
        &["expire", "--keep-last", "1", "--confirm"],
    ] {
        told(repo.command(line[0]).args(&line[1..]).arg("--json"));
    }
    let checked = Outcome::of(repo.command("check").arg("--json"));
    checked.told(exit::CHECK_FAILED, "repository, writable: ");
    before.assert_same(&Tree::read(&repo.dir), "a read-only repository");
}

#[test]
fn a_restore_over_a_target_whose_disk_is_full_goes_on_when_there_is_room() {
    let scratch = Scratch::new("full-delta");
    let source = scratch.dir("source");
    for table in 0..4 {
        let file = source.join(format!("table-{table}"));
        plant::file(&file, &mut Random::new(SEED ^ table), 3 << 20);
    }
    let truth = Tree::read(&source);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();
    let disk = SmallDisk::new(&scratch, "disk", 32 * MIB);
    let target = disk.path().join("target");
    fs::create_dir(&target).expect("a target");
    fs::write(target.join("table-0"), "an older row").expect("a file");
    let filler = disk.path().join("filler");
    let file = File::create(&filler).expect("filler");
    let taken = disk.free_bytes() - 5 * MIB;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken)
        .expect("filler takes its space");
    // What is extra seems to make room when it goes, and makes none: else nothing would be begun.
    fs::hard_link(&filler, target.join("extra")).expect("a further name");
    let delta = || {
        let mut command = repo.restore_command("latest", &target);
        Outcome::of(command.arg("--delta"))
    };

    let error = delta().told(exit::TARGET, "table-");
    assert_eq!(error["message"], "the target file system is full");
    let marker = target.join(".helios-mover-restore-in-progress");
    assert!(
        marker.exists(),
        "nothing tells that the target is half-done"
    );
    assert_eq!(holds(&repo), 1);
    // What looks like a database is none yet, and nothing but another restore over it is let on it.
    let refused = repo.restore("latest", &target).told(exit::TARGET, "target");
    let message = "an earlier restore to the target was interrupted";
    assert_eq!(refused["message"], message, "{refused}");

    drop(file);
    fs::remove_file(&filler).expect("filler");
    delta().summary();
    truth.assert_same(&Tree::read(&target), "restored when there was room");
    assert_eq!(holds(&repo), 0);
}

#[test]
fn of_two_repositories_at_once_in_one_directory_one_comes_into_being() {
    let scratch = Scratch::new("init-contest");
    let source = small_source(&scratch);
    let truth = Tree::read(&source);
    for round in 0..CONTESTS {
        let dir = scratch.join(format!("round-{round}"));
        let repo = one_init_wins(&scratch, &round.to_string(), &url_of(&dir), &[]);
        let objects: Vec<PathBuf> = Repo::objects_of(&dir)
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(objects.len(), 2, "the header and one slot: {objects:?}");
        repo.backup(&source).summary();
        let target = scratch.join(format!("target-{round}"));
        repo.restore("latest", &target).summary();
        truth.assert_same(&Tree::read(&target), "from the winner's repository");
    }
}
