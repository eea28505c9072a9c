//! What can be done to a job while it runs: its limits changed, an end made of it, and its process struck down without a trace of
//! its secrets; and what it says of that.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use mover_tests::job::{Job, status_of, wait_until};
use mover_tests::mover::{self, Outcome, Protection, Repo, exit, isolated};
use mover_tests::plant;
use mover_tests::proof::restores_to;
use mover_tests::random::Random;
use mover_tests::scratch::Scratch;
use mover_tests::throttle::{NO_LIMITS, NO_READS, NO_WRITES, Throttle};
use mover_tests::tree::Tree;
use rustix::process::Signal;
use serde_json::Value;

const SEED: u64 = 0x10ad;
const DATA_BYTES: usize = 12 << 20;

#[test]
fn limits_of_the_file_are_taken_over_by_a_job_that_runs() {
    let scratch = Scratch::new("new-limits");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let truth = Tree::read(&source);
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let file = scratch.join("config.toml");
    fs::write(&file, NO_WRITES).expect("a configuration file");
    let mut command = repo.backup_command(&source);
    command.arg("--config").arg(&file);
    let mut job = Job::start_until(&mut command, scratch.join("printed"), "copy");
    // A file that is wrong changes nothing.
    fs::write(&file, "limit-write = 'fast'\n").expect("a configuration file");
    job.signal(Signal::USR2);
    let refused = "the limits stay as they are: `fast` is not a value for --limit-write";
    wait_until(|| job.has_said(refused) || !job.is_running());
    assert!(job.is_running(), "{}", job.outcome());
    fs::write(&file, "limit-write = 'none'\n").expect("a configuration file");
    job.signal(Signal::USR2);
    wait_until(|| !job.is_running());
    job.outcome().expect(exit::OK);
    restores_to(&repo, "latest", &truth, &scratch);
}

/// A verification, and a restore that compares what is there, read no faster than they may.
#[test]
fn what_only_reads_keeps_to_its_limit_too() {
    let scratch = Scratch::new("read-limits");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let truth = Tree::read(&source);
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    repo.backup(&source).summary();
    let printed = scratch.join("printed");
    let mut compare = repo.restore_command("latest", &source);
    compare.arg("--delta");
    let mut verify = repo.command("verify");
    verify.arg("--json");
    for (mut command, phase) in [(verify, "verify"), (compare, "restore")] {
        let throttle = Throttle::new(&scratch, "config.toml", NO_READS);
        throttle.put_on(&mut command);
        let mut job = Job::start_until(&mut command, printed.clone(), phase);
        // Without a limit it would end before this one does, which begins later and reads as much; with it hours are left.
        repo.verify().expect(exit::OK);
        assert!(job.is_running(), "{}", job.outcome());
        let told = statuses_in(&printed).len();
        job.signal(Signal::USR1);
        wait_until(|| statuses_in(&printed).len() > told);
        let status = statuses_in(&printed).pop().expect("a status line");
        let figure = |name: &str| status[name].as_u64().expect("bytes");
        assert!(2 * figure("bytes_done") < figure("bytes_total"), "{status}");
        throttle.change(&mut job, NO_LIMITS);
        wait_until(|| !job.is_running());
        job.outcome().expect(exit::OK);
    }
    truth.assert_same(&Tree::read(&source), "compared");
}

#[test]
fn a_terminal_that_goes_away_ends_a_job_in_order_unless_it_was_told_to_stay() {
    let scratch = Scratch::new("hangup");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let printed = scratch.join("printed");
    let start = |command: &mut Command| Job::start_until(command, printed.clone(), "copy");
    let mut command = repo.backup_command(&source);
    command.args(["--limit-write", "1KiB/s"]);
    // Whoever runs the tests may have been told to stay.
    let mut listening = isolated(Command::new("env"), &scratch.dir("home"));
    listening.arg("--default-signal=HUP");
    listening
        .arg(command.get_program())
        .args(command.get_args());
    let mut job = start(&mut listening);
    job.signal(Signal::HUP);
    job.outcome().expect(exit::CANCELLED).error();

    // The hangup comes first and does nothing, or this would end as the other one did, but for SIGTERM.
    let mut nohup = isolated(Command::new("nohup"), &scratch.dir("home"));
    nohup.arg(command.get_program()).args(command.get_args());
    let mut job = start(&mut nohup);
    assert!(!catches(job.id(), Signal::HUP));
    job.signal(Signal::HUP);
    assert!(job.is_running());
    job.signal(Signal::TERM);
    job.outcome().expect(exit::CANCELLED);
}

/// The status lines in a file that is being written, as far as they are complete.
fn statuses_in(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("lines");
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line: &str| -> Value { serde_json::from_str(line).expect("JSON") };
    let lines = whole.lines().map(parse);
    lines
        .filter(|line| line["message_type"] == "status")
        .collect()
}

/// What such a file says to be stored so far, line by line.
fn stored_so_far(path: &Path) -> Vec<u64> {
    let statuses = statuses_in(path).into_iter();
    statuses
        .map(|line| line["bytes_stored"].as_u64().expect("bytes"))
        .collect()
}

#[test]
fn what_was_written_so_far_is_told_while_a_job_runs_and_is_never_more_than_in_the_end() {
    let scratch = Scratch::new("stored-so-far");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let printed = scratch.join("printed");
    let restore = repo.restore_command("latest", &scratch.join("target"));
    let jobs = [
        (repo.backup_command(&source), "bytes_stored"),
        (restore, "bytes_written"),
    ];
    for (mut command, figure) in jobs {
        // A unit of 1 MiB a second and shard, for 12 of them.
        let throttle = Throttle::new(&scratch, "config.toml", "limit-write = '1MiB/s'\n");
        throttle.put_on(&mut command);
        let mut job = Job::start_printing(&mut command, printed.clone());
        let id = job.id();
        wait_until(|| catches(id, Signal::USR1));
        wait_until(|| {
            job.signal(Signal::USR1);
            stored_so_far(&printed).iter().any(|bytes| *bytes > 0)
        });
        assert!(job.is_running(), "{}", job.outcome());
        throttle.change(&mut job, NO_LIMITS);
        wait_until(|| !job.is_running());
        let summary = job.outcome().summary();
        let most = summary[figure].as_u64().expect("bytes");
        let stored = stored_so_far(&printed);
        assert!(stored.is_sorted(), "{stored:?}");
        assert!(
            stored.iter().all(|bytes| *bytes <= most),
            "{stored:?} of {most}"
        );
    }
}

/// Whether a line is a warning that says so.
fn warns_of(line: &Value, what: &str) -> bool {
    let message = line["message"].as_str();
    line["message_type"] == "warning" && message.is_some_and(|message| message.contains(what))
}

#[test]
fn a_restore_over_a_target_that_is_ended_says_what_it_leaves_and_how_to_go_on() {
    let scratch = Scratch::new("ended-delta");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let truth = Tree::read(&source);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();
    let target = scratch.dir("target");
    fs::write(target.join("file"), "another").expect("a file");
    let delta = || {
        let mut command = repo.restore_command("latest", &target);
        command.arg("--delta");
        command
    };
    let mut slow = delta();
    slow.args(["--limit-write", "1KiB/s"]);
    let mut job = Job::start_until(&mut slow, scratch.join("printed"), "restore");
    job.signal(Signal::TERM);
    let ended = job.outcome().expect(exit::CANCELLED);
    // Whatever is to be known is told where all else is, and in nobody's log.
    assert!(!ended.stderr.contains("WARN"), "{ended}");
    let error = ended.error();
    // Root's goes on with ", as root": what root leaves is root's.
    let hint = error["hint"].as_str().expect("a hint");
    let said = "the target is incomplete, and the backup stays held: run it again with --delta";
    assert!(hint.starts_with(said), "{error}");
    let held = |line: &&Value| warns_of(line, "stays held");
    assert_eq!(ended.lines().iter().filter(held).count(), 1, "{ended}");

    let holds = || Outcome::of(repo.command("hold list").arg("--json")).document();
    assert_eq!(holds()["holds"].as_array().map(Vec::len), Some(1));
    Outcome::of(&mut delta()).summary();
    truth.assert_same(&Tree::read(&target), "restored");
    assert_eq!(holds()["holds"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_restore_that_puts_no_hold_on_says_so_once_and_before_it_begins() {
    const WHY: &str = "no hold could be put on the backup";
    mover_tests::run::require_root();
    let scratch = Scratch::new("unheld-delta");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    repo.backup(&source).summary();
    mover_tests::run::run("chown", ["nobody".as_ref(), repo.dir.as_os_str()]);
    let target = scratch.dir("target");
    for json in [true, false] {
        fs::write(target.join("file"), "another").expect("a file");
        let mut command = repo.command("restore");
        command.args(["--delta", "--to"]).arg(&target);
        command.args(json.then_some("--json"));
        let done = Outcome::of(&mut command).expect(exit::OK);
        assert!(!done.stderr.contains("WARN"), "{done}");
        if !json {
            assert_eq!(done.stderr.matches(WHY).count(), 1, "{done}");
            continue;
        }
        let lines = done.lines();
        let told = lines.iter().position(|line| warns_of(line, WHY));
        let told = told.unwrap_or_else(|| panic!("it was not told\n{done}"));
        let begun = lines.iter().position(|line| line["phase"] == "restore");
        assert!(begun.is_none_or(|begun| told < begun), "{done}");
        // By itself, and in the summary.
        assert_eq!(done.stdout.matches(WHY).count(), 2, "{done}");
        assert_eq!(done.summary()["warnings"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn a_job_that_is_asked_says_how_far_it_is_and_goes_on() {
    let scratch = Scratch::new("asked");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let printed = scratch.join("printed");
    let said = || fs::read_to_string(&printed).expect("a file");
    for json in [false, true] {
        // Where the data is known already, nothing is written and no limit holds the job.
        let repo = Repo::create(&scratch, &format!("repo-{json}"), Protection::None);
        let throttle = Throttle::new(&scratch, "config.toml", NO_WRITES);
        let mut command = repo.command("backup");
        throttle.put_on(command.arg("--source").arg(&source));
        command.args(json.then_some("--json"));
        let stream = || File::create(&printed).expect("a file").into();
        let mut job = match json {
            true => Job::start_into(&mut command, stream(), Stdio::piped()),
            false => Job::start_into(&mut command, Stdio::piped(), stream()),
        };
        let id = job.id();
        wait_until(|| catches(id, Signal::USR1));
        let copying = ["copying", "\"phase\":\"copy\""][usize::from(json)];
        wait_until(|| {
            job.signal(Signal::USR1);
            said().contains(copying)
        });
        // More than one a second are not told by themselves.
        let lines = said().lines().count();
        for more in 1..=5 {
            job.signal(Signal::USR1);
            wait_until(|| said().lines().count() >= lines + more);
        }
        assert!(job.is_running());
        if !json {
            let text = said();
            let last = text.lines().last().expect("lines");
            assert!(last.contains("%") && last.contains("of 12.0 MiB"), "{last}");
        }
        throttle.change(&mut job, NO_LIMITS);
        wait_until(|| !job.is_running());
        job.outcome().expect(exit::OK);
        assert_eq!(repo.ids().len(), 1);
    }
}

/// Whether a process has a handler for `signal`.
fn catches(id: u32, signal: Signal) -> bool {
    let caught = status_of(id, "SigCgt:");
    let mask = caught.and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}

/// Whether the tool has begun: it installs its handlers first.
fn listens(id: u32) -> bool {
    catches(id, Signal::USR2)
}

/// Runs `command` where cores may be as large as they like, and ends it as an abort does.
fn struck_down(command: &Command, home: &Path, is_ready: impl Fn(u32) -> bool) -> ExitStatus {
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    let mut shell = isolated(Command::new("sh"), home);
    shell
        .args(["-c", "ulimit -c unlimited; exec \"$@\"", "sh"])
        .args(words)
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let mut job = Job::start(&mut shell);
    let id = job.id();
    wait_until(|| is_ready(id));
    job.signal(Signal::ABORT);
    job.status()
}

/// Whether this is the program `sleep` by now.
fn is_sleep(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name == "sleep\n")
}

#[test]
fn a_job_that_is_struck_down_leaves_no_core() {
    let scratch = Scratch::new("no-core");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let repo = Repo::create(&scratch, "repo", Protection::Passphrase);
    let home = scratch.dir("home-of-cores");
    // What any other program leaves here, so that the test knows a core when it sees none.
    let mut sleep = Command::new("sleep");
    sleep.arg("600");
    let status = struck_down(&sleep, &home, is_sleep);
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
    if !status.core_dumped() {
        eprintln!(
            "this machine keeps no cores (see /proc/sys/kernel/core_pattern): only the test below tells of them"
        );
    }
    let mut backup = repo.backup_command(&source);
    backup.args(["--limit-write", "1KiB/s"]);
    let status = struck_down(&backup, &home, listens);
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
    assert!(!status.core_dumped());
}

/// Whose the memory of a process is: its own user's, or root's alone where the kernel keeps no core of it (`PR_SET_DUMPABLE`, see
/// proc(5)).
fn owner_of_memory(id: u32) -> u32 {
    let memory = fs::metadata(format!("/proc/{id}/environ"));
    memory.expect("a process that runs").uid()
}

/// Holds on every machine, whether or not it keeps cores.
#[test]
fn the_memory_of_a_job_is_closed_to_its_own_user() {
    mover_tests::run::require_root();
    let scratch = Scratch::new("closed-memory");
    let source = scratch.dir("source");
    plant::file(&source.join("file"), &mut Random::new(SEED), DATA_BYTES);
    let repo = Repo::create(&scratch, "repo", Protection::None);
    let home = scratch.dir("home-of-nobody");
    for dir in [&repo.dir, &home] {
        let owned = ["-R".as_ref(), "nobody".as_ref(), dir.as_os_str()];
        mover_tests::run::run("chown", owned);
    }
    let binary = scratch.join("helios-mover");
    mover::copy_binary(&binary);
    let as_nobody = || {
        let mut setpriv = isolated(Command::new("setpriv"), &home);
        setpriv.args(["--reuid", "nobody", "--clear-groups", "--"]);
        setpriv
    };
    // Any other program's is open, so that the test knows that when it sees it.
    let mut sleep = Job::start(as_nobody().args(["sleep", "600"]));
    let id = sleep.id();
    wait_until(|| is_sleep(id));
    let nobody = owner_of_memory(id);
    assert_ne!(nobody, 0);
    let mut backup = as_nobody();
    backup
        .arg(&binary)
        .args(repo.backup_command(&source).get_args())
        .args(["--limit-write", "1KiB/s"]);
    let mut job = Job::start(&mut backup);
    let id = job.id();
    wait_until(|| listens(id) || !job.is_running());
    assert!(job.is_running(), "{}", job.outcome());
    assert_eq!(owner_of_memory(id), 0);
}
