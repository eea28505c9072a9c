//! The tracker against the extractor: what was marked is what the log says, through random histories, concurrent
//! transactions and kills.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use mover_base::{Lsn, LsnRange};
use mover_client::{Attachment, Capacity, Reset};
use mover_pagedb::random::Random;
use mover_pagedb::workload::accounts;
use mover_pagedb::{Database, Options, Workload};
use mover_source::delta::{BUDGET_BYTES_DEFAULT, Delta, extract};
use mover_source::disk::{DirDisk, Disk};
use mover_source::pages::{Store, read_control};
use mover_source::tracker::{Changed, Epochs, KEPT_MAX};

use crate::support::*;

pub const OPTIONS: Options = Options {
    pool_pages: 40,
    journal: false,
};

/// A directory in memory, where a sync costs nothing, or else wherever temporary files go.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

pub fn real(path: &Path) -> Arc<DirDisk> {
    Arc::new(DirDisk::open(path).unwrap())
}

fn small() -> Option<Capacity> {
    Some(Capacity::new(10).unwrap())
}

/// The database in `path`, tracked or not, and what the tracker found.
pub fn open(path: &Path, tracked: bool) -> (Database, Option<Attachment>) {
    let disk: Arc<dyn Disk> = Arc::new(locked(path));
    let (mut database, _) = Database::open(disk, OPTIONS).unwrap();
    let found = tracked.then(|| database.track(path, small()).unwrap());
    (database, found)
}

/// A new database with its accounts, tracked from the beginning.
pub fn make(path: &Path, seed: u64, log2: u8) -> Database {
    Store::create(real(path), identity(seed, log2)).unwrap();
    let (database, found) = open(path, true);
    assert_eq!(found.unwrap().reset, Some(Reset::New));
    database.commit(&accounts(seed)).unwrap();
    database
}

pub fn epochs(path: &Path) -> Epochs {
    let disk = real(path);
    let identity = read_control(&*disk).unwrap().identity;
    Epochs::open(disk, identity).unwrap().expect("a tracker")
}

pub fn extracted(path: &Path, range: LsnRange) -> Delta {
    let disk = real(path);
    let identity = read_control(&*disk).unwrap().identity;
    extract(disk, identity, range, BUDGET_BYTES_DEFAULT).unwrap()
}

/// Every page that the log names must be in the answer.
pub fn assert_holds(changed: &Changed, delta: &Delta, context: &str) {
    for (id, table) in &delta.tables {
        for page in table.pages.iter() {
            let marked = changed.tables.get(id).is_some_and(|p| p.contains(page));
            assert!(marked, "table {id}, page {page} is lost: {context}");
        }
    }
}

/// The answer must name what the log names and nothing more, but for tables that were dropped.
pub fn assert_exact(changed: &Changed, delta: &Delta, context: &str) {
    let mut answer = changed.clone();
    answer
        .tables
        .retain(|id, _| delta.tables.get(id).is_none_or(|table| !table.dropped));
    let mut wanted = Changed::from(delta.clone());
    wanted.tables.retain(|id, _| !delta.tables[id].dropped);
    // Sets may differ in what room they have.
    let spelled = |changed: &Changed| -> BTreeMap<u32, Vec<(u32, u32)>> {
        let tables = changed.tables.iter();
        tables
            .map(|(id, pages)| (*id, pages.ranges().collect()))
            .collect()
    };
    assert_eq!(spelled(&answer), spelled(&wanted), "{context}");
}

/// One history: transactions, checkpoints, switches, stops in order and not, runs without the tracker. Returns
/// how many ranges were compared, and how many exactly.
fn history(seed: u64) -> (usize, usize) {
    let dir = directory();
    let path = dir.path();
    let mut random = Random::new(seed);
    let mut database = make(path, seed, [14, 15, 18][seed as usize % 3]);
    let mut clients: Vec<Workload> = (0..2).map(|client| Workload::new(seed, client)).collect();
    let mut switches: Vec<Lsn> = Vec::new();
    for _ in 0..30 {
        match random.below(20) {
            0..9 => {
                let client = &mut clients[random.below(2) as usize];
                for _ in 0..random.below(6) {
                    database.append(&client.next_transaction()).unwrap();
                }
                database.commit(&client.next_transaction()).unwrap();
            }
            9..11 => _ = database.checkpoint().unwrap(),
            11..16 => {
                let end = database.writer().durable();
                let done = epochs(path).switch(end, BUDGET_BYTES_DEFAULT).unwrap();
                assert_eq!((done.reset, done.end >= end), (None, true));
                switches.push(end);
            }
            16 => {
                let end = database.close().unwrap();
                switches.push(end);
                database = open(path, true).0;
            }
            17..19 => {
                database.writer().flush_to(database.writer().end()).unwrap();
                drop(database);
                let (next, found) = open(path, true);
                assert_eq!(found.unwrap().reset, None);
                database = next;
            }
            _ => {
                database.writer().flush_to(database.writer().end()).unwrap();
                drop(database);
                database = open(path, false).0;
                for _ in 0..3 {
                    let client = &mut clients[random.below(2) as usize];
                    database.commit(&client.next_transaction()).unwrap();
                }
                // A backup may find it before the database is tracked again.
                let found_by_backup = random.below(2) == 0;
                if found_by_backup {
                    let end = database.writer().durable();
                    let done = epochs(path).switch(end, BUDGET_BYTES_DEFAULT).unwrap();
                    assert!(done.read.is_some() && done.reset.is_none());
                    switches.push(end);
                }
                drop(database);
                let (next, found) = open(path, true);
                let read = found.unwrap().read.is_some();
                assert!(read || found_by_backup, "the untracked run is read");
                database = next;
            }
        }
    }
    database.writer().flush_to(database.writer().end()).unwrap();
    let end = database.writer().durable();
    let epochs = epochs(path);
    epochs.switch(end, BUDGET_BYTES_DEFAULT).unwrap();
    switches.push(end);
    let state = epochs.state().unwrap();
    assert!(state.kept.len() <= KEPT_MAX);
    let starts: Vec<Lsn> = state.kept.iter().map(|kept| kept.start).collect();
    let (mut compared, mut exact) = (0, 0);
    for (at, start) in switches.iter().enumerate() {
        for end in &switches[at..] {
            let range = LsnRange {
                start: *start,
                end: *end,
            };
            let context = format!("seed {seed}, {range:?}, {state:?}");
            let Ok(changed) = epochs.changed(range, BUDGET_BYTES_DEFAULT) else {
                assert!(*start < state.known_from(), "{context}");
                continue;
            };
            let delta = extracted(path, range);
            assert_holds(&changed, &delta, &context);
            compared += 1;
            // What was merged with others cannot be told apart from them.
            let whole = |lsn: &Lsn| starts.contains(lsn) || *lsn == state.start;
            if whole(start) && whole(end) {
                assert_exact(&changed, &delta, &context);
                exact += 1;
            }
        }
    }
    (compared, exact)
}

#[test]
fn random_histories_agree_with_the_extractor() {
    let (mut compared, mut exact) = (0, 0);
    for seed in 0..120 {
        let (some, same) = history(seed);
        compared += some;
        exact += same;
    }
    assert!(compared > 2000 && exact > 1500, "{compared} {exact}");
}

#[test]
fn what_a_checkpoint_made_durable_is_known_without_its_log() {
    let dir = directory();
    let path = dir.path();
    let database = make(path, 9, 14);
    let start = database.writer().durable();
    epochs(path).switch(start, BUDGET_BYTES_DEFAULT).unwrap();
    let mut workload = Workload::new(9, 0);
    // Nobody waits for these; it is the checkpoint that makes them durable.
    for _ in 0..200 {
        database.append(&workload.next_transaction()).unwrap();
    }
    let end = database.writer().end();
    database.checkpoint().unwrap();
    let delta = extracted(path, LsnRange { start, end });
    assert!(database.trim().unwrap() > 2);
    let done = epochs(path).switch(end, BUDGET_BYTES_DEFAULT).unwrap();
    assert_eq!(
        (done.reset, done.read),
        (None, None),
        "the log was not asked"
    );
    let changed = epochs(path).changed(LsnRange { start, end }, BUDGET_BYTES_DEFAULT);
    assert_holds(&changed.unwrap(), &delta, "after the log is gone");
}

/// Tells other threads to end when it is dropped, also by a test that fails, which waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn nothing_is_lost_while_transactions_and_switches_race() {
    let dir = directory();
    let path = dir.path();
    let database = make(path, 7, 18);
    let stop = AtomicBool::new(false);
    let mut bases = Vec::new();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for client in 0..3 {
            let (database, stop) = (&database, &stop);
            scope.spawn(move || {
                let mut workload = Workload::new(7, client);
                let mut count = 0;
                while !stop.load(Relaxed) || count < 50 {
                    let ops = workload.next_transaction();
                    if count % 8 == 0 {
                        database.commit(&ops).unwrap();
                    } else {
                        database.append(&ops).unwrap();
                    }
                    count += 1;
                }
            });
        }
        for _ in 0..60 {
            std::thread::sleep(Duration::from_millis(2));
            let epochs = epochs(path);
            let end = database.writer().durable();
            let done = epochs.switch(end, BUDGET_BYTES_DEFAULT).unwrap();
            assert_eq!(done.reset, None);
            bases.extend([end, done.end]);
            // Not switched, what is marked so far is told too.
            let start = epochs.state().unwrap().known_from();
            let now = database.writer().durable();
            let range = LsnRange { start, end: now };
            let changed = epochs.changed(range, BUDGET_BYTES_DEFAULT).unwrap();
            assert_holds(&changed, &extracted(path, range), "while it runs");
        }
    });
    let end = database.writer().end();
    database.writer().flush_to(end).unwrap();
    let epochs = epochs(path);
    let known_from = epochs.state().unwrap().known_from();
    bases.retain(|base| *base >= known_from);
    assert!(bases.len() >= 2 * (KEPT_MAX - 2), "{bases:?}");
    for start in bases {
        let range = LsnRange { start, end };
        let changed = epochs.changed(range, BUDGET_BYTES_DEFAULT).unwrap();
        assert_holds(&changed, &extracted(path, range), &format!("{range:?}"));
    }
}

/// Runs the database as a process until it has said `lines` positions; whenever it has, `each` gets the last.
fn run_and_kill(path: &Path, seed: u64, lines: usize, mut each: impl FnMut(Lsn)) {
    let process = Command::new(env!("CARGO_BIN_EXE_pagedb-run"))
        .args([path.to_str().unwrap(), &seed.to_string(), "2", "tracked"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the database starts");
    let mut process = Killed(process);
    let out = process.0.stdout.take().expect("stdout");
    let (sender, positions) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(out).lines() {
            if let Some(lsn) = line.expect("a line").strip_prefix("at ") {
                // Nobody listens any more when the process is about to be killed.
                let _ = sender.send(Lsn(lsn.parse().expect("a position")));
            }
        }
    });
    for n in 0..lines {
        let lsn = positions
            .recv_timeout(Duration::from_secs(60))
            .expect("a position");
        if n % 16 == 15 {
            each(lsn);
        }
    }
    drop(process);
    reader.join().expect("reader");
}

#[test]
fn a_killed_database_leaves_its_marks() {
    let dir = directory();
    let path = dir.path();
    let mut random = Random::new(5);
    let mut bases = vec![];
    let mut last = Lsn(0);
    for round in 0..8 {
        run_and_kill(path, 3, 30 + random.below(60) as usize, |lsn| {
            // Two clients say their positions in any order.
            last = last.max(lsn);
            let done = epochs(path).switch(last, BUDGET_BYTES_DEFAULT).unwrap();
            assert_eq!((done.reset, done.doubt), (None, None));
            bases.push(last);
        });
        let (database, found) = open(path, round % 3 != 2);
        if let Some(found) = found {
            assert_eq!((found.reset, found.doubt), (None, None));
        }
        database
            .commit(&[mover_pagedb::Op::Create(format!("round-{round}"))])
            .unwrap();
        let end = database.writer().durable();
        drop(database);
        // What the dead one marked, what it did not mark, and what ran untracked: all of it is there.
        let epochs = epochs(path);
        let known_from = epochs.state().unwrap().known_from();
        for start in bases.iter().copied().filter(|base| *base >= known_from) {
            let range = LsnRange { start, end };
            let changed = epochs.changed(range, BUDGET_BYTES_DEFAULT).unwrap();
            assert_holds(
                &changed,
                &extracted(path, range),
                &format!("{round} {range:?}"),
            );
        }
        last = end;
    }
    assert!(bases.len() > 8, "{} switches", bases.len());
}
