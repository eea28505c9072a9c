//! Whoever ends an epoch is killed, at every system call of it and at random instants between them: what was known before is
//! known afterwards, and right. And what such a switch relies on is durable before.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mover_base::{Lsn, LsnRange};
use mover_client::Reset;
use mover_pagedb::random::Random;
use mover_pagedb::{Database, Workload};
use mover_source::delta::BUDGET_BYTES_DEFAULT;
use mover_source::pages::read_control;
use mover_source::tracker::{KEPT_MAX, LIVE_FILE, Witness};

use crate::support::Killed;
use crate::tracker::*;

/// The calls of a switch that change something, or on which what is changed depends.
const CALLS: [&str; 8] = [
    "openat2",
    "flock",
    "unlinkat",
    "pwrite64",
    "fdatasync",
    "fchown",
    "renameat",
    "fsync",
];
/// Bases that answers are asked for, beside the first.
const BASES: usize = 6;

fn switch(path: &Path, end: Lsn, words: &[&str]) -> Vec<String> {
    let mut line = vec![env!("CARGO_BIN_EXE_pagedb-switch").to_owned()];
    line.push(path.to_str().expect("UTF-8").to_owned());
    line.push(end.to_string());
    line.extend(words.iter().map(|word| (*word).to_owned()));
    line
}

/// Runs a switch that is killed at the `nth` call of `call`; false if it came to its end before.
fn is_killed_at(path: &Path, end: Lsn, call: &str, nth: usize) -> bool {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={call}"))
        .arg("-e")
        .arg(format!("inject={call}:signal=KILL:when={nth}"))
        .args(switch(path, end, &[]))
        .status()
        .expect("strace runs");
    assert!(status.success() || status.code().is_none(), "{status}");
    !status.success()
}

/// What the tracker answers from `bases` on holds what the log says, and nothing was given up.
#[track_caller]
fn assert_known(path: &Path, bases: &[Lsn], end: Lsn, context: &str) {
    let epochs = epochs(path);
    let state = epochs.state().unwrap();
    assert_eq!(state.reset, Reset::New, "{context}");
    let latest = &bases[bases.len().saturating_sub(BASES)..];
    for start in bases[..1].iter().chain(latest) {
        let range = LsnRange { start: *start, end };
        let changed = epochs.changed(range, BUDGET_BYTES_DEFAULT);
        let changed = changed.unwrap_or_else(|invalid| panic!("{context}: {invalid}"));
        let context = format!("{context}, {range:?}, {state:?}");
        assert_holds(&changed, &extracted(path, range), &context);
    }
}

/// Who marks while epochs are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marked {
    /// The database.
    Running,
    /// Nobody; the live file is there, and the log is read behind what it vouches for.
    Unattended,
    /// Nobody, and there is no live file: the log is read.
    InDoubt,
}

struct Marks {
    path: std::path::PathBuf,
    database: Database,
    workload: Workload,
    marked: Marked,
}

impl Marks {
    fn new(path: &Path, seed: u64, marked: Marked) -> Self {
        // Segments so long that the log is not longer by one of them with each kill.
        let mut database = make(path, seed, 18);
        if marked != Marked::Running {
            drop(database);
            database = open(path, false).0;
        }
        Marks {
            path: path.to_owned(),
            database,
            workload: Workload::new(seed, 0),
            marked,
        }
    }

    /// Changes pages, and returns up to where the log is durable.
    fn go_on(&mut self) -> Lsn {
        for _ in 0..2 {
            let ops = self.workload.next_transaction();
            self.database.commit(&ops).unwrap();
        }
        let live = self.path.join(LIVE_FILE);
        if self.marked == Marked::InDoubt && live.exists() {
            std::fs::remove_file(live).unwrap();
        }
        self.database.writer().durable()
    }
}

#[test]
fn a_switch_that_is_killed_at_any_call_loses_nothing() {
    for marked in [Marked::Running, Marked::Unattended, Marked::InDoubt] {
        let dir = directory();
        let path = dir.path();
        let mut marks = Marks::new(path, 61, marked);
        let mut bases = vec![marks.database.writer().durable()];
        let mut killed = BTreeSet::new();
        for call in CALLS {
            for nth in 1.. {
                assert!(nth < 100, "the kills never end");
                let end = marks.go_on();
                let is_killed = is_killed_at(path, end, call, nth);
                bases.push(end);
                let context = format!("{marked:?}, killed at {call} {nth}: {is_killed}");
                let end = marks.go_on();
                assert_known(path, &bases, end, &context);
                if !is_killed {
                    break;
                }
                killed.insert(call);
            }
        }
        assert_eq!(killed.len(), CALLS.len(), "{marked:?}: only {killed:?}");
        // What comes next is whole again, and names no page too many.
        let start = marks.go_on();
        epochs(path).switch(start, BUDGET_BYTES_DEFAULT).unwrap();
        let end = marks.go_on();
        epochs(path).switch(end, BUDGET_BYTES_DEFAULT).unwrap();
        let range = LsnRange { start, end };
        let changed = epochs(path).changed(range, BUDGET_BYTES_DEFAULT).unwrap();
        assert_exact(&changed, &extracted(path, range), &format!("{marked:?}"));
    }
}

#[test]
fn a_switch_that_is_killed_at_any_instant_loses_nothing() {
    let dir = directory();
    let path = dir.path();
    let mut marks = Marks::new(path, 62, Marked::Running);
    let mut random = Random::new(62);
    let mut bases = vec![marks.database.writer().durable()];
    for round in 0..80 {
        let end = marks.go_on();
        bases.push(end);
        let line = switch(path, end, &["for-ever"]);
        let process = Command::new(&line[0])
            .args(&line[1..])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut process = Killed(process);
        let out = process.0.stdout.take().expect("stdout");
        let ready = BufReader::new(out).lines().next().expect("a line");
        assert_eq!(ready.expect("text"), "ready");
        // The database goes on meanwhile.
        for _ in 0..random.below(3) {
            marks.go_on();
        }
        std::thread::sleep(Duration::from_micros(random.below(2000)));
        drop(process);
        let end = marks.go_on();
        assert_known(path, &bases, end, &format!("round {round}"));
    }
}

/// A call in the notes of strace: its name, and the paths and names among its arguments.
fn call_of(line: &str) -> Option<(&str, Vec<&str>)> {
    let (name, arguments) = line.split_once('(')?;
    let name = name.rsplit(' ').next()?;
    let quoted = arguments.split('"').skip(1).step_by(2);
    let mut named: Vec<&str> = match name {
        "renameat" => quoted.collect(),
        _ => Vec::new(),
    };
    if named.is_empty() {
        let path = arguments.split_once('<')?.1.split_once('>')?.0;
        named.push(path.rsplit('/').next()?);
    }
    Some((name, named))
}

/// Content before its name, each name before what relies on it, and all of it before the switch is over.
#[test]
fn every_content_and_every_name_is_synced_in_time() {
    let dir = directory();
    let path = dir.path();
    let mut marks = Marks::new(path, 63, Marked::Running);
    for _ in 0..KEPT_MAX {
        let end = marks.go_on();
        epochs(path).switch(end, BUDGET_BYTES_DEFAULT).unwrap();
    }
    let end = marks.go_on();
    let notes = path.join("strace");
    let status = Command::new("strace")
        .args(["-f", "-qq", "-y", "-s", "200", "-e"])
        .arg("trace=pwrite64,fdatasync,renameat,fsync")
        .arg("-o")
        .arg(&notes)
        .args(switch(path, end, &[]))
        .status();
    assert!(status.expect("strace runs").success());
    let notes = std::fs::read_to_string(&notes).unwrap();
    let (mut unsynced, mut unnamed) = (BTreeSet::new(), Vec::new());
    let mut renamed = Vec::new();
    for line in notes.lines() {
        let Some((call, names)) = call_of(line) else {
            continue;
        };
        match (call, &names[..]) {
            ("pwrite64", [file]) => _ = unsynced.insert(*file),
            ("fdatasync", [file]) => _ = unsynced.remove(file),
            ("fsync", ["tracker"]) => unnamed.clear(),
            ("renameat", [from, to]) => {
                assert!(!unsynced.contains(from), "{line}\n{notes}");
                assert!(*to != "state" || unnamed.is_empty(), "{line}\n{notes}");
                unnamed.push(*to);
                renamed.push(*to);
            }
            _ => panic!("{line}\n{notes}"),
        }
    }
    assert!(unsynced.is_empty() && unnamed.is_empty(), "{notes}");
    // The ended epoch, the two oldest as one, the state, the witness.
    let [ended, merged, "state", "witness"] = renamed[..] else {
        panic!("{renamed:?}\n{notes}");
    };
    assert!(
        ended.ends_with(".epoch") && merged.ends_with(".epoch"),
        "{renamed:?}"
    );
    let disk = real(path);
    let identity = read_control(&*disk).unwrap().identity;
    assert!(
        Witness::read(&*disk, &identity)
            .unwrap()
            .knows(end, &[7; 32])
    );
}
