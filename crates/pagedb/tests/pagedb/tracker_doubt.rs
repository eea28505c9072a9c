//! Everything that puts the tracker in doubt: the answer is still right, made from the log, or there is none and a
//! reason; never a wrong one.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mover_base::{HistoryId, Kind, Lsn, LsnRange, SystemId};
use mover_client::{Doubt, Reset, Tracker};
use mover_pagedb::random::Random;
use mover_pagedb::{Database, Workload};
use mover_source::delta::BUDGET_BYTES_DEFAULT;
use mover_source::disk::DirDisk;
use mover_source::pages::{Catalogue, Store, read_control};
use mover_source::tracker::{
    Attached, Capacity, Epochs, Invalid, KEPT_MAX, LIVE_FILE, LiveHeader, STATE_FILE, TRACKER_DIR,
    WITNESS_FILE, Witness,
};
use mover_source::wal::{LogIdentity, segments};

use crate::support::*;
use crate::tracker::*;

const BUDGET: usize = BUDGET_BYTES_DEFAULT;

/// A store whose tracker has two ended epochs and a running one, its database stopped without a word.
struct Stopped {
    dir: tempfile::TempDir,
    workload: Workload,
    /// Where the epochs begin.
    starts: [Lsn; 3],
    /// Where the log ends.
    end: Lsn,
}

impl Stopped {
    fn new() -> Self {
        let dir = directory();
        let database = make(dir.path(), 11, 14);
        let mut workload = Workload::new(11, 0);
        let mut random = Random::new(11);
        let mut starts = [Lsn(4096); 3];
        for start in &mut starts[1..] {
            run(&database, &mut workload, &mut random, 25);
            *start = database.writer().durable();
            epochs(dir.path()).switch(*start, BUDGET).unwrap();
        }
        run(&database, &mut workload, &mut random, 25);
        let end = database.writer().durable();
        Stopped {
            dir,
            workload,
            starts,
            end,
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn range(&self) -> LsnRange {
        self.range_from(self.starts[1])
    }

    fn range_from(&self, start: Lsn) -> LsnRange {
        LsnRange {
            start,
            end: self.end,
        }
    }

    /// The answer from the middle epoch on must be right, before and after the next switch.
    fn assert_right(&self) {
        for _ in 0..2 {
            let epochs = epochs(self.path());
            let changed = epochs.changed(self.range(), BUDGET).unwrap();
            assert_holds(&changed, &extracted(self.path(), self.range()), "stopped");
            epochs.switch(self.end, BUDGET).unwrap();
        }
    }

    /// Takes the log away up to the end of the segment that the running epoch begins in.
    fn remove_log(&self) {
        let identity = read_control(&*real(self.path())).unwrap().identity;
        let start = identity.size.start_of(self.starts[2]);
        std::fs::remove_file(self.file(&identity.path(start))).unwrap();
    }
}

/// Changes bytes of a file in place: what is mapped sees it, and its number stays.
fn poke(path: &Path, at: u64, change: impl FnOnce(&mut [u8; 8])) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    change(&mut bytes);
    file.write_all_at(&bytes, at).unwrap();
}

/// Makes the live file's header say something else, its checksum right.
fn edit_header(live: &Path, change: impl FnOnce(&mut LiveHeader)) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(live)
        .unwrap();
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, 0).unwrap();
    let mut header = LiveHeader::decode(&block).unwrap();
    change(&mut header);
    file.write_all_at(&header.encode(), 0).unwrap();
}

fn replace(live: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let bytes = change(std::fs::read(live).unwrap());
    let copy = live.with_extension("copy");
    std::fs::write(&copy, bytes).unwrap();
    std::fs::rename(&copy, live).unwrap();
}

/// Ways to lose faith in the live file.
type Harm = (&'static str, fn(&Path), fn(&Doubt) -> bool);
const HARMS: [Harm; 7] = [
    (
        "removed",
        |live| std::fs::remove_file(live).unwrap(),
        |d| *d == Doubt::Missing,
    ),
    (
        "header",
        |live| poke(live, 20, |b| b[0] ^= 8),
        |d| matches!(d, Doubt::Header(_)),
    ),
    (
        "restarted",
        |live| edit_header(live, |header| header.boot[3] ^= 1),
        |d| *d == Doubt::Restarted,
    ),
    (
        "copied",
        |live| replace(live, |bytes| bytes),
        |d| *d == Doubt::Copied,
    ),
    (
        "cut",
        |live| {
            replace(live, |mut bytes| {
                bytes.truncate(bytes.len() - 4096);
                bytes
            });
        },
        |d| *d == Doubt::Size,
    ),
    (
        "epoch",
        |live| poke(live, 4096, |b| b[1] ^= 1),
        |d| *d == Doubt::Epoch,
    ),
    (
        "another",
        |live| edit_header(live, |header| header.id[0] ^= 1),
        |d| *d == Doubt::Another,
    ),
];

#[test]
fn without_the_live_file_the_log_tells() {
    for (what, harm, expected) in HARMS {
        // Found by a backup.
        let stopped = Stopped::new();
        harm(&stopped.file(LIVE_FILE));
        let done = epochs(stopped.path()).switch(stopped.end, BUDGET).unwrap();
        assert!(
            done.doubt.as_ref().is_some_and(expected),
            "{what}: {done:?}"
        );
        assert_eq!(done.reset, None);
        stopped.assert_right();
        // Found by the database, which makes another and marks on.
        let mut stopped = Stopped::new();
        harm(&stopped.file(LIVE_FILE));
        let (database, found) = open(stopped.path(), true);
        let found = found.unwrap();
        assert!(
            found.doubt.as_ref().is_some_and(expected),
            "{what}: {found:?}"
        );
        assert_eq!(found.read.unwrap().start, stopped.starts[2]);
        database
            .commit(&stopped.workload.next_transaction())
            .unwrap();
        stopped.end = database.writer().durable();
        stopped.assert_right();
    }
}

#[test]
fn without_live_file_and_log_nothing_is_claimed() {
    for (what, harm, expected) in HARMS {
        let stopped = Stopped::new();
        harm(&stopped.file(LIVE_FILE));
        stopped.remove_log();
        let epochs = epochs(stopped.path());
        let answer = epochs.changed(stopped.range(), BUDGET);
        assert!(matches!(answer, Err(Invalid::Log(_))), "{what}: {answer:?}");
        let done = epochs.switch(stopped.end, BUDGET).unwrap();
        assert_eq!(done.reset, Some(Reset::LogGone), "{what}");
        assert!(
            done.doubt.as_ref().is_some_and(expected),
            "{what}: {done:?}"
        );
        let answer = epochs.changed(stopped.range(), BUDGET).unwrap_err();
        let before = Invalid::Before {
            known_from: stopped.end,
            reset: Reset::LogGone,
        };
        assert_eq!(answer, before, "{what}");
        assert!(answer.to_string().contains("gone"));
        // From there on all is well again.
        let from_here = LsnRange {
            start: stopped.end,
            end: stopped.end,
        };
        assert!(epochs.changed(from_here, BUDGET).unwrap().tables.is_empty());
    }
}

#[test]
fn an_untracked_run_whose_log_is_gone_is_not_passed_over() {
    for attach in [false, true] {
        let mut stopped = Stopped::new();
        let (database, _) = open(stopped.path(), false);
        while database.writer().end().0 < stopped.end.0 + 5 * (1 << 14) {
            database
                .commit(&stopped.workload.next_transaction())
                .unwrap();
        }
        database.checkpoint().unwrap();
        let end = database.writer().durable();
        drop(database);
        let disk = DirDisk::open(stopped.path()).unwrap();
        let identity = read_control(&disk).unwrap().identity;
        let kept = Lsn(identity.size.start_of(stopped.end).0 + (2 << 14));
        for start in segments(&disk, &identity).unwrap().range(..kept) {
            std::fs::remove_file(stopped.path().join(identity.path(*start))).unwrap();
        }
        if attach {
            let (_, found) = open(stopped.path(), true);
            assert_eq!(found.unwrap().reset, Some(Reset::LogGone));
        } else {
            let done = epochs(stopped.path()).switch(end, BUDGET).unwrap();
            assert_eq!(done.reset, Some(Reset::LogGone));
        }
        let answer = epochs(stopped.path()).changed(stopped.range(), BUDGET);
        assert!(matches!(
            answer,
            Err(Invalid::Before {
                reset: Reset::LogGone,
                ..
            })
        ));
        // And with the marks going on, the next range is right.
        if !attach {
            let (database, _) = open(stopped.path(), true);
            database
                .commit(&stopped.workload.next_transaction())
                .unwrap();
            let range = LsnRange {
                start: end,
                end: database.writer().durable(),
            };
            let changed = epochs(stopped.path()).changed(range, BUDGET).unwrap();
            assert_holds(&changed, &extracted(stopped.path(), range), "after");
        }
    }
}

#[test]
fn a_damaged_state_is_a_new_beginning() {
    let harms: [fn(&Path); 3] = [
        |state| poke(state, 64, |b| b[0] ^= 1),
        |state| {
            std::fs::File::options()
                .write(true)
                .open(state)
                .unwrap()
                .set_len(4000)
                .unwrap()
        },
        |state| std::fs::write(state, b"").unwrap(),
    ];
    for harm in harms {
        let stopped = Stopped::new();
        harm(&stopped.file(STATE_FILE));
        let epochs = epochs(stopped.path());
        let answer = epochs.changed(stopped.range(), BUDGET).unwrap_err();
        assert!(matches!(answer, Invalid::State(_)), "{answer}");
        let done = epochs.switch(stopped.end, BUDGET).unwrap();
        assert_eq!(done.reset, Some(Reset::Damaged));
        drop(epochs);
        let stopped = Stopped::new();
        harm(&stopped.file(STATE_FILE));
        let (_database, found) = open(stopped.path(), true);
        assert_eq!(found.unwrap().reset, Some(Reset::Damaged));
        let files = std::fs::read_dir(stopped.file(TRACKER_DIR))
            .unwrap()
            .count();
        assert_eq!(files, 2, "what nobody names is removed");
    }
}

#[test]
fn a_state_that_cannot_be_read_now_is_left_as_it_is() {
    let stopped = Stopped::new();
    let (state, aside) = (stopped.file(STATE_FILE), stopped.file("aside"));
    std::fs::rename(&state, &aside).unwrap();
    std::fs::create_dir(&state).unwrap();
    let error = epochs(stopped.path())
        .switch(stopped.end, BUDGET)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Source, "{error}");
    let (mut database, _) = open(stopped.path(), false);
    let error = database.track(stopped.path(), None).unwrap_err();
    assert_eq!(error.kind(), Kind::Source, "{error}");
    // It runs without, and what it does is not lost.
    database
        .commit(&stopped.workload.clone().next_transaction())
        .unwrap();
    let range = LsnRange {
        start: stopped.starts[1],
        end: database.writer().durable(),
    };
    std::fs::remove_dir(&state).unwrap();
    std::fs::rename(&aside, &state).unwrap();
    let changed = epochs(stopped.path()).changed(range, BUDGET).unwrap();
    assert_holds(&changed, &extracted(stopped.path(), range), "untracked");
}

#[test]
fn a_damaged_epoch_is_named_until_its_turn_to_be_merged_comes() {
    let stopped = Stopped::new();
    let epochs = epochs(stopped.path());
    let middle = epochs.state().unwrap().kept[1];
    let path = stopped.file(&middle.path());
    let bytes = std::fs::read(&path).unwrap();
    for at in (0..bytes.len()).step_by(bytes.len() / 97) {
        poke_byte(&path, at);
        let answer = epochs.changed(stopped.range(), BUDGET).unwrap_err();
        assert!(matches!(answer, Invalid::Epoch { number, .. } if number == middle.number));
        poke_byte(&path, at);
    }
    epochs.changed(stopped.range(), BUDGET).unwrap();
    assert_eq!(epochs.changed(stopped.range(), 300), Err(Invalid::Limit));
    std::fs::remove_file(&path).unwrap();
    let answer = epochs.changed(stopped.range(), BUDGET).unwrap_err();
    assert!(answer.to_string().contains("missing"), "{answer}");
    // A range that does not need it is answered.
    let later = LsnRange {
        start: stopped.starts[2],
        end: stopped.end,
    };
    epochs.changed(later, BUDGET).unwrap();
    // It is one of the two oldest: when they are to become one, they are claimed no longer.
    while epochs.state().unwrap().kept[1] == middle {
        let answer = epochs.changed(stopped.range(), BUDGET).unwrap_err();
        assert!(matches!(answer, Invalid::Epoch { number, .. } if number == middle.number));
        assert!(epochs.state().unwrap().kept.len() <= KEPT_MAX);
        let done = epochs.switch(stopped.end, BUDGET).unwrap();
        assert_eq!((done.reset, done.doubt), (None, None));
    }
    let answer = epochs.changed(stopped.range(), BUDGET).unwrap_err();
    let before = Invalid::Before {
        known_from: stopped.starts[2],
        reset: Reset::Damaged,
    };
    assert_eq!(answer, before);
    let changed = epochs.changed(later, BUDGET).unwrap();
    assert_holds(&changed, &extracted(stopped.path(), later), "later");
}

#[test]
fn an_answer_that_takes_too_much_is_none_wherever_it_comes_from() {
    let stopped = Stopped::new();
    let running = LsnRange {
        start: stopped.starts[2],
        end: stopped.end,
    };
    let epochs = epochs(stopped.path());
    // From the marks.
    assert_eq!(epochs.changed(running, 300), Err(Invalid::Limit));
    epochs.changed(running, BUDGET).unwrap();
    // From the log, which need not be there any more behind where it was too much.
    std::fs::remove_file(stopped.file(LIVE_FILE)).unwrap();
    assert_eq!(epochs.changed(running, 300), Err(Invalid::Limit));
    let identity = read_control(&*real(stopped.path())).unwrap().identity;
    let last = identity.size.start_of(stopped.end);
    assert!(identity.size.start_of(stopped.starts[2]) < last);
    let segment = stopped.file(&identity.path(last));
    let aside = stopped.file("aside");
    std::fs::rename(&segment, &aside).unwrap();
    assert_eq!(epochs.changed(running, 300), Err(Invalid::Limit));
    let answer = epochs.changed(running, BUDGET);
    assert!(matches!(answer, Err(Invalid::Log(_))), "{answer:?}");
    std::fs::rename(&aside, &segment).unwrap();
    // Where an epoch ends for which that is too much, nothing before is claimed.
    let done = epochs.switch(stopped.end, 300).unwrap();
    assert_eq!(done.reset, Some(Reset::Limit));
    let before = Invalid::Before {
        known_from: stopped.end,
        reset: Reset::Limit,
    };
    assert_eq!(epochs.changed(running, BUDGET), Err(before));
}

#[test]
fn a_state_that_is_gone_is_a_new_tracker() {
    for attach in [false, true] {
        let stopped = Stopped::new();
        std::fs::remove_file(stopped.file(STATE_FILE)).unwrap();
        let answer = epochs(stopped.path()).changed(stopped.range(), BUDGET);
        assert_eq!(answer, Err(Invalid::Missing));
        let reset = if attach {
            open(stopped.path(), true).1.unwrap().reset
        } else {
            let done = epochs(stopped.path()).switch(stopped.end, BUDGET);
            done.unwrap().reset
        };
        assert_eq!(reset, Some(Reset::New));
        let state = epochs(stopped.path()).state().unwrap();
        assert_eq!((state.epoch, state.start), (1, stopped.end));
    }
}

fn poke_byte(path: &Path, at: usize) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at as u64).unwrap();
}

#[test]
fn a_full_live_file_is_read_past_until_a_larger_one_is_made() {
    let stopped = Stopped::new();
    let (database, _) = open(stopped.path(), true);
    drop(database);
    // More tables than 1,024 bitmaps have room for, marked by a transaction that comes to nothing.
    let identity = read_control(&*real(stopped.path())).unwrap().identity;
    let catalogue = Catalogue::new(identity.system, identity.history, Lsn(4096));
    let capacity = Capacity::new(10).unwrap();
    let (tracker, _) =
        Tracker::with_capacity(stopped.path(), identity, stopped.end, capacity).unwrap();
    let mut marking = tracker.begin();
    marking.mark_many((1_000_000..1_003_000).map(|table| (table, 5)));
    drop(marking);
    drop(tracker);
    let mut workload = stopped.workload.clone();
    let (database, found) = open(stopped.path(), true);
    assert_eq!(found.unwrap().doubt, Some(Doubt::Full));
    // The new one is as small as the old; it fills again while it runs.
    database.commit(&workload.next_transaction()).unwrap();
    drop(database);
    let (tracker, _) =
        Tracker::open(stopped.path(), identity, end_of(stopped.path()), &catalogue).unwrap();
    let mut marking = tracker.begin();
    marking.mark_many((1_000_000..1_030_000).map(|table| (table, 5)));
    drop(marking);
    drop(tracker);
    let (database, _) = open(stopped.path(), false);
    database.commit(&workload.next_transaction()).unwrap();
    let end = database.writer().durable();
    drop(database);
    for doubt in [Some(Doubt::Full), Some(Doubt::Full)] {
        let epochs = epochs(stopped.path());
        let done = epochs.switch(end, BUDGET).unwrap();
        assert_eq!((done.doubt, done.reset), (doubt, None));
        let range = LsnRange {
            start: stopped.starts[1],
            end,
        };
        let changed = epochs.changed(range, BUDGET).unwrap();
        assert_holds(&changed, &extracted(stopped.path(), range), "full");
    }
    let (_database, found) = open(stopped.path(), true);
    assert_eq!(found.unwrap().doubt, Some(Doubt::Full));
    assert_eq!(
        epochs(stopped.path()).switch(end, BUDGET).unwrap().doubt,
        None
    );
}

fn end_of(path: &Path) -> Lsn {
    let mut store = Store::open(real(path)).unwrap();
    store.recover(10).unwrap().log.end
}

#[test]
fn other_histories_and_databases_are_told_apart() {
    let stopped = Stopped::new();
    let identity = read_control(&*real(stopped.path())).unwrap().identity;
    let as_other = |identity: LogIdentity| {
        let epochs = Epochs::open(real(stopped.path()), identity)
            .unwrap()
            .unwrap();
        epochs.changed(stopped.range(), BUDGET).unwrap_err()
    };
    let other = LogIdentity {
        system: SystemId([9; 16]),
        ..identity
    };
    assert_eq!(as_other(other), Invalid::OtherDatabase);
    // A new history, as after a restore to the past.
    let mut store = Store::open(real(stopped.path())).unwrap();
    let recovered = store.recover(50).unwrap();
    let writer = store.begin_history(recovered, HistoryId([6; 16])).unwrap();
    let (new, start) = (*writer.identity(), writer.end());
    drop((writer, store));
    assert_eq!(as_other(new), Invalid::OtherHistory);
    let (database, found) = open(stopped.path(), true);
    assert_eq!(found.unwrap().reset, Some(Reset::OtherHistory));
    database
        .commit(&stopped.workload.clone().next_transaction())
        .unwrap();
    let range = LsnRange {
        start,
        end: database.writer().durable(),
    };
    let changed = epochs(stopped.path()).changed(range, BUDGET).unwrap();
    assert_exact(&changed, &extracted(stopped.path(), range), "new history");
    let answer = epochs(stopped.path()).changed(stopped.range(), BUDGET);
    assert!(matches!(
        answer,
        Err(Invalid::Before {
            reset: Reset::OtherHistory,
            ..
        })
    ));
}

#[test]
fn a_log_that_ends_before_the_epoch_is_not_the_log_that_was_marked() {
    let stopped = Stopped::new();
    let epochs = epochs(stopped.path());
    let done = epochs.switch(stopped.starts[1], BUDGET).unwrap();
    assert_eq!(done.reset, Some(Reset::LogBehind));
    drop(epochs);
    let stopped = Stopped::new();
    let identity = read_control(&*real(stopped.path())).unwrap().identity;
    let capacity = Capacity::new(10).unwrap();
    let (_, found) =
        Tracker::with_capacity(stopped.path(), identity, stopped.starts[1], capacity).unwrap();
    assert_eq!(found.reset, Some(Reset::LogBehind));
}

#[test]
fn a_log_that_lost_what_was_durable_is_not_the_log_that_was_marked() {
    for cut_off in [false, true] {
        let stopped = Stopped::new();
        if cut_off {
            let obstacle = stopped.file("tracker/epoch.new");
            std::fs::create_dir(&obstacle).unwrap();
            let begun = epochs(stopped.path()).switch(stopped.starts[2], BUDGET);
            assert_eq!(begun.unwrap_err().kind(), Kind::Storage);
            std::fs::remove_dir(&obstacle).unwrap();
        }
        let identity = read_control(&*real(stopped.path())).unwrap().identity;
        let capacity = Capacity::new(10).unwrap();
        let take_up = |end| {
            let taken = Tracker::with_capacity(stopped.path(), identity, end, capacity);
            taken.unwrap().1
        };
        // The running epoch begins before this end, and what was said to be durable lies behind it.
        let end = Lsn((stopped.starts[2].0 + stopped.end.0) / 16 * 8);
        assert!(stopped.starts[2] < end && end < stopped.end);
        assert_eq!(take_up(end).reset, Some(Reset::LogBehind), "{cut_off}");
        let answer = epochs(stopped.path()).changed(stopped.range(), BUDGET);
        let before = Invalid::Before {
            known_from: end,
            reset: Reset::LogBehind,
        };
        assert_eq!(answer, Err(before));
        // At the very end of what was durable nothing is amiss.
        assert_eq!(take_up(end).reset, None);
        let stopped = Stopped::new();
        let taken = Tracker::with_capacity(stopped.path(), identity, stopped.end, capacity);
        assert_eq!(taken.unwrap().1.reset, None);
    }
}

#[test]
fn a_tracker_that_is_removed_while_the_database_runs_stops_nobody() {
    let stopped = Stopped::new();
    let (database, _) = open(stopped.path(), true);
    std::fs::remove_dir_all(stopped.file(TRACKER_DIR)).unwrap();
    let mut workload = stopped.workload.clone();
    for _ in 0..5 {
        database.commit(&workload.next_transaction()).unwrap();
    }
    let identity = *database.writer().identity();
    assert!(
        Epochs::open(real(stopped.path()), identity)
            .unwrap()
            .is_none()
    );
    database.close().unwrap();
    let (_database, found) = open(stopped.path(), true);
    assert_eq!(found.unwrap().reset, Some(Reset::New));
}

#[test]
fn a_switch_that_was_cut_off_is_finished() {
    // Neither an epoch's file nor a state can be made while a directory is in its place.
    let obstacles = ["tracker/epoch.new", "tracker/state.new"];
    for (attach, obstacle) in [false, true]
        .into_iter()
        .flat_map(|attach| obstacles.map(|obstacle| (attach, obstacle)))
    {
        let mut stopped = Stopped::new();
        let obstacle = stopped.file(obstacle);
        std::fs::create_dir(&obstacle).unwrap();
        let error = epochs(stopped.path())
            .switch(stopped.end, BUDGET)
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Storage);
        // The live file is an epoch ahead of the state, and what is marked in either counts.
        let changed = epochs(stopped.path())
            .changed(stopped.range(), BUDGET)
            .unwrap();
        assert_holds(
            &changed,
            &extracted(stopped.path(), stopped.range()),
            "cut off",
        );
        std::fs::remove_dir(&obstacle).unwrap();
        if attach {
            let (database, found) = open(stopped.path(), true);
            assert_eq!(found.unwrap().reset, None);
            database
                .commit(&stopped.workload.next_transaction())
                .unwrap();
            stopped.end = database.writer().durable();
        }
        let epochs = epochs(stopped.path());
        let done = epochs.switch(stopped.end, BUDGET).unwrap();
        assert_eq!((done.reset, done.doubt), (None, None));
        let state = epochs.state().unwrap();
        assert_eq!((state.kept.len(), state.epoch), (4, 5));
        let changed = epochs.changed(stopped.range(), BUDGET).unwrap();
        assert_exact(
            &changed,
            &extracted(stopped.path(), stopped.range()),
            "finished",
        );
    }
}

/// Leaves marks of groups that end behind `starts[2]` and that no transaction said to be appended. Each returns from where on
/// they are.
type Unsaid = (&'static str, fn(&mut Stopped) -> Lsn);
const UNSAID: [Unsaid; 4] = [
    ("rebuilt", |stopped| {
        std::fs::remove_file(stopped.file(LIVE_FILE)).unwrap();
        let (_, found) = open(stopped.path(), true);
        assert_eq!(found.unwrap().doubt, Some(Doubt::Missing));
        stopped.starts[2]
    }),
    ("untracked", |stopped| {
        let start = stopped.end;
        let (database, _) = open(stopped.path(), false);
        stopped.end = database
            .commit(&stopped.workload.next_transaction())
            .unwrap();
        drop(database);
        let (_, found) = open(stopped.path(), true);
        assert_eq!(found.unwrap().read.unwrap().start, start);
        start
    }),
    ("killed", kill_unsaid),
    ("killed, and opened again", |stopped| {
        let start = kill_unsaid(stopped);
        let (_, found) = open(stopped.path(), true);
        assert_eq!(found.unwrap().read, None);
        start
    }),
];

/// The database is killed between its append and what it says of it, when another thread has flushed the log.
fn kill_unsaid(stopped: &mut Stopped) -> Lsn {
    let start = stopped.end;
    let capacity = Capacity::new(10).unwrap();
    let identity = read_control(&*real(stopped.path())).unwrap().identity;
    let taken = Tracker::with_capacity(stopped.path(), identity, start, capacity);
    let (tracker, _) = taken.unwrap();
    let (database, _) = open(stopped.path(), false);
    stopped.end = database
        .commit(&stopped.workload.next_transaction())
        .unwrap();
    let delta = extracted(stopped.path(), stopped.range_from(start));
    let mut marking = tracker.begin();
    for (table, changed) in &delta.tables {
        marking.mark_many(changed.pages.iter().map(|page| (*table, page)));
    }
    std::mem::forget(marking);
    tracker.durable(stopped.end);
    start
}

/// A backup switches where its redo begins, which is before the end of the log: the epoch that ends then still has the
/// only marks of what lies between.
#[test]
fn an_epoch_does_not_end_before_what_is_marked_in_it_whoever_marked_it() {
    for (what, leave) in UNSAID {
        let mut stopped = Stopped::new();
        let redo = leave(&mut stopped);
        let (range, epochs) = (stopped.range_from(redo), epochs(stopped.path()));
        let delta = extracted(stopped.path(), range);
        assert!(!delta.tables.is_empty());
        // Where the log is asked for no more.
        for end in [redo, stopped.end] {
            let done = epochs.switch(end, BUDGET).unwrap();
            assert_eq!((done.reset, done.read), (None, None), "{what}");
            assert!(done.end >= stopped.end, "{what}: {done:?}");
            let changed = epochs.changed(range, BUDGET).unwrap();
            assert_holds(&changed, &delta, what);
        }
    }
}

#[test]
fn a_rebuild_that_was_cut_off_begins_again() {
    // Before the new live file has its name, and before the state names it.
    let cuts = [
        ("tracker/live.new", Doubt::Missing),
        ("tracker/state.new", Doubt::Another),
    ];
    for (attach, (obstacle, doubt)) in [false, true]
        .into_iter()
        .flat_map(|attach| cuts.clone().map(|cut| (attach, cut)))
    {
        let mut stopped = Stopped::new();
        std::fs::remove_file(stopped.file(LIVE_FILE)).unwrap();
        let obstacle = stopped.file(obstacle);
        std::fs::create_dir(&obstacle).unwrap();
        let (mut database, _) = open(stopped.path(), false);
        let error = database
            .track(stopped.path(), Some(Capacity::new(10).unwrap()))
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        // It runs without.
        database
            .commit(&stopped.workload.next_transaction())
            .unwrap();
        stopped.end = database.writer().durable();
        drop(database);
        let changed = epochs(stopped.path())
            .changed(stopped.range(), BUDGET)
            .unwrap();
        let delta = extracted(stopped.path(), stopped.range());
        assert_holds(&changed, &delta, "cut off");
        std::fs::remove_dir(&obstacle).unwrap();
        if attach {
            let (database, found) = open(stopped.path(), true);
            let found = found.unwrap();
            assert_eq!((found.doubt, found.reset), (Some(doubt), None));
            assert_eq!(found.read.unwrap().start, stopped.starts[2]);
            database
                .commit(&stopped.workload.next_transaction())
                .unwrap();
            stopped.end = database.writer().durable();
        } else {
            let done = epochs(stopped.path()).switch(stopped.end, BUDGET).unwrap();
            assert_eq!((done.doubt, done.reset), (Some(doubt), None));
        }
        stopped.assert_right();
    }
}

#[test]
fn who_is_stopped_while_it_reads_the_log_gives_up_nothing() {
    for has_live in [true, false] {
        let mut stopped = Stopped::new();
        // What the log says and the marks do not.
        let (database, _) = open(stopped.path(), false);
        let ops = stopped.workload.next_transaction();
        stopped.end = database.commit(&ops).unwrap();
        drop(database);
        if !has_live {
            std::fs::remove_file(stopped.file(LIVE_FILE)).unwrap();
        }
        let state = std::fs::read(stopped.file(STATE_FILE)).unwrap();
        let disk = real(stopped.path());
        let identity = read_control(&*disk).unwrap().identity;
        disk.watch().stop();
        let capacity = Capacity::new(10).unwrap();
        let attached = Attached::open(disk.clone(), identity, stopped.end, capacity);
        assert_eq!(attached.map(drop).unwrap_err().kind(), Kind::Cancelled);
        let ended = Epochs::open(disk, identity).unwrap().expect("a tracker");
        let changed = ended.changed(stopped.range(), BUDGET);
        assert_eq!(changed, Err(Invalid::Cancelled));
        for _ in 0..2 {
            let error = ended.switch(stopped.end, BUDGET).unwrap_err();
            assert_eq!(error.kind(), Kind::Cancelled, "{error}");
        }
        drop(ended);
        assert_eq!(std::fs::read(stopped.file(STATE_FILE)).unwrap(), state);
        stopped.assert_right();
        let state = epochs(stopped.path()).state().unwrap();
        assert_eq!(state.reset, Reset::New);
    }
}

#[test]
fn a_witness_in_doubt_says_nothing_and_is_only_replaced_if_it_is_damaged() {
    let stopped = Stopped::new();
    let epochs = epochs(stopped.path());
    let disk = real(stopped.path());
    let identity = read_control(&*disk).unwrap().identity;
    let (first, second) = ((Lsn(8192), [1; 32]), (Lsn(12288), [2; 32]));
    let known = || Witness::read(&*disk, &identity).map(|witness| witness.ends);
    assert_eq!(known().unwrap(), []);
    epochs.testify(first.0, first.1).unwrap();
    epochs.testify(second.0, second.1).unwrap();
    assert_eq!(known().unwrap(), [first, second]);
    let path = stopped.file(WITNESS_FILE);
    poke_byte(&path, 60);
    assert_eq!(known().unwrap_err().kind(), Kind::Corrupt);
    epochs.testify(second.0, second.1).unwrap();
    assert_eq!(known().unwrap(), [second]);
    // What cannot be read now may be sound.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = epochs.testify(first.0, first.1).unwrap_err();
    assert_eq!(error.kind(), Kind::Source, "{error}");
    assert!(path.is_dir());
}

#[test]
fn one_works_at_a_time() {
    let stopped = Stopped::new();
    let (database, _): (Database, _) = open(stopped.path(), true);
    let identity = *database.writer().identity();
    let capacity = Capacity::new(10).unwrap();
    let second = Tracker::with_capacity(stopped.path(), identity, stopped.end, capacity);
    assert_eq!(second.unwrap_err().kind(), Kind::Conflict);
    let held = epochs(stopped.path());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| epochs(stopped.path()).state().unwrap().epoch);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waits.is_finished());
        held.switch(stopped.end, BUDGET).unwrap();
        let epoch = held.state().unwrap().epoch;
        drop(held);
        assert_eq!(waits.join().unwrap(), epoch);
    });
    // A tracker elsewhere than a directory is an error, not a panic.
    assert!(DirDisk::open(&stopped.file("control")).is_err());
}
