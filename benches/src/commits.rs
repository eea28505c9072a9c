//! What an online backup under a read limit costs the commits of the database that it backs up.
//!
//! Invariants: the mover is the program that users run, at its defaults but for the limit; intervals beside backups and
//! alone take turns on one store, and have the same length, load and lead; each has tables of its own; backups run from
//! the first instant of an interval beside them to its last; load without backups goes on for as long as it did with those before.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mover_base::{Error, Kind, Result};
use mover_pagedb::workload::accounts;
use mover_pagedb::{Database, Options, Workload};
use mover_source::disk::{DirDisk, Disk};
use mover_source::page::PAGE_BYTES;
use mover_source::pages::{Store, new_identity};
use mover_source::wal::SegmentSize;

use crate::command::{Program, drop_caches};
use crate::stats::Spread;
use crate::tools::{cannot_make, mover};

/// How long commits are counted each time.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long load and backup run before that: the program has started by then, derived its key and begun to read.
const LEAD: Duration = Duration::from_secs(1);
/// How often commits are measured beside backups and then alone. In the end they are measured beside backups once more.
const ROUNDS: usize = 4;
/// Clients that commit one transaction after the other.
const CLIENTS: u64 = 4;
/// Pages that the database holds in memory.
const POOL_PAGES: usize = 4096;
/// How much longer than lead and interval reading the store takes at the limit.
const MARGIN: f64 = 1.1;
/// Commits that take longer count as this long.
const LATENCY_MAX_US: u64 = 60_000_000;

/// Before the interval, in it, and until the last backup has ended.
const PHASES: usize = 3;
const COUNTED: usize = 1;
const REST: usize = 2;
const ENDED: usize = 3;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The program.
    pub mover: &'a Path,
    /// A directory on the disk to measure.
    pub work: &'a Path,
    /// The backups' read limit, in MiB/s.
    pub limit_mib: u64,
}

/// What runs beside the commits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// For this long at least.
    Nothing(Duration),
    /// One backup, into a repository of its own.
    One,
    /// Backups one after the other, into the same repository.
    Many,
}

/// A backup that has ended.
struct Backup {
    seconds: f64,
    read_bytes: f64,
}

/// Commits while something ran beside them.
struct Interval {
    /// Latencies in the interval, in microseconds.
    counted: Histogram<u64>,
    /// Those from the start of load and backup to the end of both.
    whole: Histogram<u64>,
    seconds: f64,
    /// How long load and backup ran.
    whole_time: Duration,
    backups: Vec<Backup>,
}

/// Figures of several intervals.
#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    p999: Vec<f64>,
    whole: Vec<f64>,
}

fn failed(what: &str) -> Error {
    Error::new(Kind::CheckFailed, what)
}

/// Measures commits beside one backup that lasts, then beside many short ones. What is found is given to `line` at once.
///
/// # Errors
/// The store or a repository cannot be made, or the database or a backup fails.
pub fn measure(setting: Setting<'_>, line: &mut dyn FnMut(&str)) -> Result<()> {
    let reading = (LEAD + INTERVAL).as_secs_f64() * MARGIN * (setting.limit_mib << 20) as f64;
    let pages = (reading / PAGE_BYTES as f64) as u32;
    line(&format!(
        "\ncommits of {CLIENTS} clients in {} s, counted {} s after load and backup began, checkpoints every second; read limit of the backups: {} MiB/s",
        INTERVAL.as_secs(),
        LEAD.as_secs(),
        setting.limit_mib
    ));
    line(&format!(
        "\n## One backup\n\nIn full, of a store with a table of {} MB that nobody changes, into an empty repository.\n",
        u64::from(pages) * PAGE_BYTES as u64 / 1_000_000
    ));
    compare(setting, pages, Beside::One, line)?;
    line(
        "\n## Many short backups one after another\n\nIn full, of a store without that table, into one repository.\n",
    );
    compare(setting, 0, Beside::Many, line)
}

/// Commits with and without backups beside them, in turns, in a new store with a table of `pages` beside the load's.
fn compare(
    setting: Setting<'_>,
    pages: u32,
    beside: Beside,
    line: &mut dyn FnMut(&str),
) -> Result<()> {
    let store = setting.work.join("store");
    remove(&store)?;
    std::fs::create_dir(&store).map_err(|error| cannot_make(&store, error))?;
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&store)?);
    Store::create(disk.clone(), new_identity([8; 32], SegmentSize::DEFAULT))?;
    let options = Options {
        pool_pages: POOL_PAGES,
        journal: false,
    };
    let (database, _) = Database::open(disk, options)?;
    if pages > 0 {
        database.fill("archive", pages, 8)?;
    }
    database.commit(&accounts(8))?;
    setting.new_repository()?;
    line(
        "| | per second | p50, ms | p99, ms | p99.9, ms | from start to end: p99, ms | backups | a backup, s | it read, MB/s |",
    );
    line("|---|---|---|---|---|---|---|---|---|");
    let mut figures = [Figures::default(), Figures::default()];
    let mut whole = Duration::ZERO;
    for turn in 0..=2 * ROUNDS {
        let what = [beside, Beside::Nothing(whole)][turn % 2];
        if what == Beside::One {
            setting.new_repository()?;
        }
        // What the last turn left behind is no part of this one.
        database.checkpoint()?;
        database.trim()?;
        drop_caches()?;
        let interval = setting.interval(&database, turn as u64 * CLIENTS, what)?;
        line(&figures[turn % 2].add(&interval));
        whole = interval.whole_time;
    }
    let [beside, alone] = &figures;
    line(&format!("| alone, medians {}", alone.medians()));
    line(&format!("| beside, medians {}", beside.medians()));
    line(&format!("| beside / alone {}", beside.over(alone)));
    drop(database);
    remove(&store)
}

fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(cannot_make(dir, error)),
        _ => Ok(()),
    }
}

impl Setting<'_> {
    fn program(&self, verb: &str) -> Program {
        let url = format!("file://{}", self.work.join("commits").display());
        mover::on(self.mover, verb, &url, self.work)
    }

    /// An empty repository in place of the last one.
    fn new_repository(&self) -> Result<()> {
        remove(&self.work.join("commits"))?;
        mover::write_passphrase(self.work)?;
        self.program("init").output().map(drop)
    }

    fn backup(&self) -> Result<Backup> {
        let source = format!("pages://{}", self.work.join("store").display());
        let limit = format!("{}MiB/s", self.limit_mib);
        let program = self
            .program("backup")
            .args(["--type", "full", "--source", &source])
            .args(["--limit-read", &limit]);
        let begun = Instant::now();
        let printed = program.output()?;
        let seconds = begun.elapsed().as_secs_f64();
        let summary =
            mover::detail(&printed).ok_or_else(|| failed("the backup printed no summary"))?;
        let figure = |name: &str| {
            let unsaid = || failed("the backup does not say what it read");
            summary[name].as_f64().ok_or_else(unsaid)
        };
        // Without the log that it looked through.
        let read_bytes = figure("bytes_read")? - figure("log_bytes_read")?;
        Ok(Backup {
            seconds,
            read_bytes,
        })
    }

    /// Runs what is to run beside the commits from `begun` on, over the interval that ends at `end` at least.
    fn run(&self, what: Beside, begun: Instant, end: Instant) -> Result<Vec<Backup>> {
        let mut backups = Vec::new();
        match what {
            Beside::Nothing(time) => {
                let end = end.max(begun + time);
                std::thread::sleep(end.saturating_duration_since(Instant::now()));
            }
            Beside::One => {
                backups.push(self.backup()?);
                if Instant::now() < end {
                    return Err(failed("the backup ended before the interval did"));
                }
            }
            Beside::Many => {
                while Instant::now() < end {
                    backups.push(self.backup()?);
                }
            }
        }
        Ok(backups)
    }

    fn interval(&self, database: &Database, first: u64, what: Beside) -> Result<Interval> {
        let phase = AtomicUsize::new(0);
        let begun = Instant::now();
        let end = begun + LEAD + INTERVAL;
        let (by_phase, backups, seconds, whole_time) = std::thread::scope(|scope| {
            let load = scope.spawn(|| load(database, first, &phase));
            let beside = scope.spawn(|| self.run(what, begun, end));
            std::thread::sleep(LEAD);
            phase.store(COUNTED, Relaxed);
            let counted = Instant::now();
            std::thread::sleep(end.saturating_duration_since(counted));
            phase.store(REST, Relaxed);
            let seconds = counted.elapsed().as_secs_f64();
            let backups = beside.join();
            phase.store(ENDED, Relaxed);
            let whole_time = begun.elapsed();
            (load.join(), backups, seconds, whole_time)
        });
        let by_phase = by_phase.map_err(|_| failed("the load panicked"))??;
        let backups = backups.map_err(|_| failed("the backups panicked"))??;
        let mut whole = histogram()?;
        for part in &by_phase {
            add(&mut whole, part)?;
        }
        let [_, counted, _] = by_phase;
        Ok(Interval {
            counted,
            whole,
            seconds,
            whole_time,
            backups,
        })
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
        .map_err(|error| failed("no histogram").cause(error))
}

fn histograms() -> Result<[Histogram<u64>; PHASES]> {
    Ok([histogram()?, histogram()?, histogram()?])
}

fn add(to: &mut Histogram<u64>, other: &Histogram<u64>) -> Result<()> {
    to.add(other)
        .map_err(|error| failed("histograms cannot be added").cause(error))
}

/// Latencies of commits in each phase, in microseconds, until the phases have ended.
fn load(database: &Database, first: u64, phase: &AtomicUsize) -> Result<[Histogram<u64>; PHASES]> {
    let client = |number| {
        let mut workload = Workload::new(8, number);
        let mut histograms = histograms()?;
        while let Some(histogram) = histograms.get_mut(phase.load(Relaxed)) {
            let ops = workload.next_transaction();
            let begun = Instant::now();
            database.commit(&ops)?;
            histogram.saturating_record(begun.elapsed().as_micros() as u64);
        }
        // Tables that nobody changes any more would cost the checkpoints of the intervals after this a sync each.
        database.commit(&workload.leave())?;
        Ok::<_, Error>(histograms)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (first..first + CLIENTS)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        while phase.load(Relaxed) != ENDED {
            std::thread::sleep(Duration::from_secs(1));
            database.checkpoint()?;
        }
        let mut all = histograms()?;
        for client in clients {
            let histograms = client.join().map_err(|_| failed("a client panicked"))??;
            for (to, other) in all.iter_mut().zip(&histograms) {
                add(to, other)?;
            }
        }
        Ok(all)
    })
}

fn ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1000.0
}

impl Figures {
    /// Takes an interval in, and returns its row of the table.
    fn add(&mut self, interval: &Interval) -> String {
        let counted = &interval.counted;
        let rate = counted.len() as f64 / interval.seconds;
        let of = |quantile| ms(counted, quantile);
        let (p50, p99, p999) = (of(0.5), of(0.99), of(0.999));
        let whole = ms(&interval.whole, 0.99);
        self.rates.push(rate);
        self.p50.push(p50);
        self.p99.push(p99);
        self.p999.push(p999);
        self.whole.push(whole);
        let row = format!("{rate:.0} | {p50:.2} | {p99:.2} | {p999:.2} | {whole:.2}");
        let backups = &interval.backups;
        if backups.is_empty() {
            return format!("| alone | {row} | | | |");
        }
        let reading = |backup: &Backup| backup.read_bytes / backup.seconds / 1e6;
        format!(
            "| beside | {row} | {} | {:.2} | {:.1} |",
            backups.len(),
            middle(backups.iter().map(|backup| backup.seconds)),
            middle(backups.iter().map(reading))
        )
    }

    fn columns(&self) -> [(&[f64], usize); 5] {
        [
            (&self.rates, 0),
            (&self.p50, 2),
            (&self.p99, 2),
            (&self.p999, 2),
            (&self.whole, 2),
        ]
    }

    /// The rest of a row of medians, with the smallest and the largest.
    fn medians(&self) -> String {
        let spread = |(values, digits): (&[f64], usize)| {
            Spread::of(values.iter().copied()).map_or_else(String::new, |of| {
                let (median, min, max) = (of.median, of.min, of.max);
                format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
            })
        };
        format!("| {} | | | |", self.columns().map(spread).join(" | "))
    }

    /// The rest of a row with these medians as multiples of those of `other`.
    fn over(&self, other: &Figures) -> String {
        let (these, others) = (self.columns(), other.columns());
        let ratios = these.iter().zip(&others).map(|((these, _), (others, _))| {
            let (this, other) = (these.iter().copied(), others.iter().copied());
            format!("{:.2}", middle(this) / middle(other))
        });
        let ratios: Vec<String> = ratios.collect();
        format!("| {} | | | |", ratios.join(" | "))
    }
}

fn middle(values: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(values).map_or(f64::NAN, |spread| spread.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_commits_count_as_what_they_took() {
        let mut all = histogram().unwrap();
        for micros in [300, 900_000, 2 * LATENCY_MAX_US] {
            all.saturating_record(micros);
        }
        assert_eq!(ms(&all, 0.3), 0.3);
        assert!((ms(&all, 0.6) - 900.0).abs() < 1.0);
        assert!(ms(&all, 1.0) > 59_900.0);
    }
}
