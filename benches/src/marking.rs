//! What the block change tracker costs the database that marks in it: its throughput with and without, and the time that
//! transactions spend on marking.
//!
//! Invariants: one database runs all slices of a load, so that nothing but the tracker differs, least of all where its rows lie in
//! memory; slices with and without take turns, and each kind comes first as often as any other; each slice runs the same
//! transactions from the same seed on tables of its own, for the same number or the same time; marking is timed in slices of
//! their own, because looking at the clock is slow; what compares slices without the tracker with others without it says how
//! much of a difference is chance.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mover_base::{Error, Kind, Result, Timestamp};
use mover_pagedb::workload::accounts;
use mover_pagedb::{Database, Options, Workload};
use mover_source::disk::{DirDisk, Disk};
use mover_source::pages::{Store, new_identity};
use mover_source::wal::SegmentSize;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::stats::{Spread, turns};

/// Clients that commit.
const CLIENTS: u64 = 4;
/// Seed of all transactions.
const SEED: u64 = 3;
/// Pages that the database holds in memory: all.
const PAGES_IN_MEMORY: usize = 100_000;
/// What share of a slice runs before it is counted: caches that making a checkpoint or taking up the tracker left cold are warm then.
const WARM_SHARE: usize = 5;
/// Time between two checkpoints while clients commit.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// What runs in a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slice {
    Without,
    With,
    /// With the tracker, and with marking timed.
    Timed,
    /// As without, to be compared with that.
    Alike,
}

const SLICES: [Slice; 4] = [Slice::Without, Slice::With, Slice::Timed, Slice::Alike];

/// What the database does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// One thread appends transactions, and waits for nothing but a full log buffer: the share of marking is the largest that a
    /// database of this kind can see.
    Appends,
    /// Four clients commit durably, with a checkpoint every second.
    Commits,
}

impl Load {
    fn title(self) -> &'static str {
        match self {
            Load::Appends => "One thread that appends and waits for nothing",
            Load::Commits => "Four clients that commit durably, a checkpoint every second",
        }
    }

    /// Threads whose time counts.
    fn clients(self) -> u64 {
        match self {
            Load::Appends => 1,
            Load::Commits => CLIENTS,
        }
    }
}

/// How much is measured, and where.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// A directory in memory, for what is to wait for no disk.
    pub memory: &'a Path,
    /// A directory on the disk to commit on.
    pub disk: &'a Path,
    /// The checkout.
    pub root: &'a Path,
    /// Transactions in a slice of appends.
    pub append_transactions: usize,
    /// Time of a slice of commits.
    pub commit_slice: Duration,
    /// Rounds of slices in a repetition of appends, and of commits.
    pub rounds: [u32; 2],
    /// Repetitions of each.
    pub repetitions: u32,
}

/// One load's figures, by repetition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadFigures {
    /// What ran.
    pub load: Load,
    /// Transactions per second without the tracker.
    pub without: Vec<f64>,
    /// With it.
    pub with: Vec<f64>,
    /// Without it once more.
    pub alike: Vec<f64>,
    /// Seconds of a transaction that are spent on marking.
    pub marking_seconds: Vec<f64>,
    /// The same as a share of the clients' time, waiting included, while it was timed.
    pub share_of_clients: Vec<f64>,
}

/// All figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MarkingFigures {
    /// When they were measured.
    pub started: Timestamp,
    /// Where; the disk is that of the commits.
    pub machine: Machine,
    /// By load.
    pub loads: Vec<LoadFigures>,
}

/// Slices of one kind in a repetition.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    transactions: u64,
    seconds: f64,
    marking_seconds: f64,
}

impl Sum {
    fn per_second(self) -> f64 {
        self.transactions as f64 / self.seconds
    }
}

/// Measures both loads.
///
/// # Errors
/// What the database or the tracker says.
pub fn measure(setting: Setting<'_>) -> Result<MarkingFigures> {
    let started = Timestamp::now();
    let machine = Machine::read(setting.disk, setting.root);
    let loads = [Load::Appends, Load::Commits].map(|load| measure_load(setting, load));
    Ok(MarkingFigures {
        started,
        machine,
        loads: loads.into_iter().collect::<Result<_>>()?,
    })
}

fn measure_load(setting: Setting<'_>, load: Load) -> Result<LoadFigures> {
    let (dir, rounds) = match load {
        Load::Appends => (setting.memory, setting.rounds[0]),
        Load::Commits => (setting.disk, setting.rounds[1]),
    };
    let made = tempfile::Builder::new().prefix("marking-").tempdir_in(dir);
    let place = made.map_err(|error| {
        Error::new(Kind::CheckFailed, "no directory could be made").cause(error)
    })?;
    let mut bench = Bench::open(place.path(), setting, load)?;
    let mut figures = LoadFigures {
        load,
        without: Vec::new(),
        with: Vec::new(),
        alike: Vec::new(),
        marking_seconds: Vec::new(),
        share_of_clients: Vec::new(),
    };
    // Nobody is to be the one who finds everything cold.
    for slice in SLICES {
        bench.run(slice)?;
    }
    for repetition in 0..setting.repetitions {
        let mut sums = [Sum::default(); SLICES.len()];
        for round in 1..=rounds {
            for slice in turns(&SLICES, repetition * rounds + round) {
                let sum = bench.run(slice)?;
                let all = &mut sums[slice as usize];
                all.transactions += sum.transactions;
                all.seconds += sum.seconds;
                all.marking_seconds += sum.marking_seconds;
            }
        }
        let [without, with, timed, alike] = sums;
        figures.without.push(without.per_second());
        figures.with.push(with.per_second());
        figures.alike.push(alike.per_second());
        let each = timed.marking_seconds / timed.transactions as f64;
        figures.marking_seconds.push(each);
        let clients = timed.seconds * load.clients() as f64;
        figures
            .share_of_clients
            .push(timed.marking_seconds / clients);
    }
    bench.database.close()?;
    Ok(figures)
}

struct Bench<'a> {
    dir: &'a Path,
    setting: Setting<'a>,
    load: Load,
    database: Database,
    /// The next client, so that each slice has tables of its own.
    client: u64,
}

impl<'a> Bench<'a> {
    fn open(dir: &'a Path, setting: Setting<'a>, load: Load) -> Result<Self> {
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open_locked(dir)?);
        Store::create(
            Arc::clone(&disk),
            new_identity([7; 32], SegmentSize::DEFAULT),
        )?;
        let options = Options {
            pool_pages: PAGES_IN_MEMORY,
            journal: false,
        };
        let (database, _) = Database::open(disk, options)?;
        database.commit(&accounts(SEED))?;
        Ok(Bench {
            dir,
            setting,
            load,
            database,
            client: 0,
        })
    }

    /// Runs one slice. What an earlier one left behind is no part of it.
    fn run(&mut self, slice: Slice) -> Result<Sum> {
        self.database.checkpoint()?;
        self.database.trim()?;
        if matches!(slice, Slice::With | Slice::Timed) {
            self.database.track(self.dir, None)?;
        }
        self.database.time_marking(slice == Slice::Timed);
        let (first, clients) = (self.client, self.load.clients());
        self.client += clients;
        let workloads = (0..clients).map(|n| Workload::new(SEED, n).renamed(first + n));
        let mut workloads: Vec<Workload> = workloads.collect();
        let sum = match self.load {
            Load::Appends => self.appends(&mut workloads)?,
            Load::Commits => self.commits(&mut workloads)?,
        };
        self.database.time_marking(false);
        // A client may have come to nothing in a short slice.
        let left = workloads.into_iter().map(Workload::leave);
        for ops in left.filter(|ops| !ops.is_empty()) {
            self.database.append(&ops)?;
        }
        self.database.untrack()?;
        Ok(sum)
    }

    /// Counts what is done from now on: `work` says how many transactions there were.
    fn count(&self, work: impl FnOnce() -> Result<u64>) -> Result<Sum> {
        let (marked, begun) = (self.database.marking_seconds(), Instant::now());
        let transactions = work()?;
        Ok(Sum {
            transactions,
            seconds: begun.elapsed().as_secs_f64(),
            marking_seconds: self.database.marking_seconds() - marked,
        })
    }

    fn appends(&self, workloads: &mut [Workload]) -> Result<Sum> {
        let count = self.setting.append_transactions;
        let next = workloads.iter_mut().flat_map(|workload| {
            (0..count + count / WARM_SHARE).map(|_| workload.next_transaction())
        });
        let transactions: Vec<_> = next.collect();
        let (warm, counted) = transactions.split_at(count / WARM_SHARE);
        for ops in warm {
            self.database.append(ops)?;
        }
        self.count(|| {
            for ops in counted {
                self.database.append(ops)?;
            }
            Ok(counted.len() as u64)
        })
    }

    fn commits(&self, workloads: &mut [Workload]) -> Result<Sum> {
        let (ended, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let client = |workload: &mut Workload| {
            while !ended.load(Relaxed) {
                self.database.commit(&workload.next_transaction())?;
                done.fetch_add(1, Relaxed);
            }
            Ok::<_, Error>(())
        };
        let slice = self.setting.commit_slice;
        std::thread::scope(|scope| {
            let clients: Vec<_> = workloads
                .iter_mut()
                .map(|workload| scope.spawn(|| client(workload)))
                .collect();
            std::thread::sleep(slice / WARM_SHARE as u32);
            let before = done.load(Relaxed);
            let sum = self.count(|| {
                self.checkpoints(Instant::now() + slice)?;
                Ok(done.load(Relaxed) - before)
            });
            ended.store(true, Relaxed);
            for client in clients {
                let panicked = |_| Error::new(Kind::Internal, "a client panicked");
                client.join().map_err(panicked)??;
            }
            sum
        })
    }

    /// Makes checkpoints until `end`.
    fn checkpoints(&self, end: Instant) -> Result<()> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(CHECKPOINT_EVERY));
            if left <= CHECKPOINT_EVERY {
                return Ok(());
            }
            self.database.checkpoint()?;
        }
    }
}

fn spread(values: &[f64], unit: f64, digits: usize) -> String {
    Spread::of(values.iter().map(|value| value / unit)).map_or_else(String::new, |spread| {
        let (median, min, max) = (spread.median, spread.min, spread.max);
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    })
}

fn median(values: &[f64]) -> f64 {
    Spread::of(values.iter().copied()).map_or(f64::NAN, |spread| spread.median)
}

impl LoadFigures {
    /// One repetition's rate as a multiple of the other's.
    fn ratios(&self, of: &[f64]) -> Vec<f64> {
        let pairs = of.iter().zip(&self.without);
        pairs.map(|(this, without)| this / without).collect()
    }

    /// The ratio of the medians, and that of each repetition from the smallest to the largest.
    fn ratio(&self, of: &[f64]) -> String {
        let ratio = median(of) / median(&self.without);
        Spread::of(self.ratios(of)).map_or_else(String::new, |spread| {
            format!("{ratio:.4} ({:.4} to {:.4})", spread.min, spread.max)
        })
    }

    fn table(&self) -> String {
        let of_a_core: Vec<f64> = self
            .share_of_clients
            .iter()
            .map(|share| share * self.load.clients() as f64)
            .collect();
        format!(
            "\n## {}\n\n| | |\n|---|---|\n| transactions/s without the tracker | {} |\n| with it | {} |\n| without it, once more | {} |\n\
             | **with / without** | {} |\n| without once more / without, which is chance | {} |\n\
             | marking, ns of a transaction | {} |\n| marking, % of the clients' time | {} |\n| marking, % of one core | {} |\n",
            self.load.title(),
            spread(&self.without, 1.0, 0),
            spread(&self.with, 1.0, 0),
            spread(&self.alike, 1.0, 0),
            self.ratio(&self.with),
            self.ratio(&self.alike),
            spread(&self.marking_seconds, 1e-9, 0),
            spread(&self.share_of_clients, 0.01, 3),
            spread(&of_a_core, 0.01, 3),
        )
    }
}

/// The figures as tables.
pub fn markdown(figures: &MarkingFigures) -> String {
    let (day, machine) = (crate::results::day(figures.started), &figures.machine);
    let head = format!(
        "# What marking costs a database, {day}\n\n{}, {} cores; kernel {}; disk {}, {}; commit {}.\n\nMedian, smallest and largest repetition; ratios are those \
         of the medians, and from the smallest to the largest of one repetition. Slices with and without the tracker take turns on one database. Marking is timed \
         by the clock in place, in slices of their own, and looks at the clock are taken off.\n",
        machine.cpu, machine.cores, machine.kernel, machine.disk, machine.mount, machine.commit
    );
    let tables = figures.loads.iter().map(LoadFigures::table);
    head + &tables.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_measurement_compares_what_it_says() {
        let (memory, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let setting = Setting {
            memory: memory.path(),
            disk: disk.path(),
            root: Path::new(env!("CARGO_MANIFEST_DIR")),
            append_transactions: 50,
            commit_slice: Duration::from_millis(300),
            rounds: [2, 1],
            repetitions: 2,
        };
        let figures = measure(setting).unwrap();
        for load in &figures.loads {
            assert_eq!(load.without.len(), 2);
            assert!(
                load.without
                    .iter()
                    .chain(&load.with)
                    .all(|rate| *rate > 0.0)
            );
            assert!(load.marking_seconds.iter().all(|each| *each > 0.0));
            assert!(load.share_of_clients.iter().all(|share| *share < 0.5));
        }
        let text = markdown(&figures);
        assert!(text.contains("| **with / without** |"), "{text}");
    }
}
