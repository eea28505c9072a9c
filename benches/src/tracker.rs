//! The block change tracker alone: how fast pages are marked, how fast an epoch is ended, and how fast marks are rebuilt from a
//! log. What it costs a database is in `marking`.
//!
//! Invariants: every figure is of the code that a database links; what is marked is counted, so that nothing is left out.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mover_base::{Error, Kind, Lsn, LsnRange, Result, Timestamp};
use mover_client::{Capacity, Tracker};
use mover_source::delta::BUDGET_BYTES_DEFAULT;
use mover_source::disk::{DirDisk, Disk};
use mover_source::page::BODY_BYTES;
use mover_source::pages::{Store, new_identity};
use mover_source::tracker::{Epochs, LIVE_FILE};
use mover_source::wal::{Group, LogIdentity, SegmentSize};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::results::day;
use crate::rows::Random;
use crate::stats::Spread;

/// Pages of the table that is marked: 1 TiB.
const PAGES: u64 = 1 << 28;
/// Pages that one transaction marks, where not each is one of its own.
const TRANSACTION_PAGES: usize = 8;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pages that each thread marks.
    pub marks: usize,
    /// Bytes of the log that a rebuild reads.
    pub log_bytes: u64,
    /// How often each is measured.
    pub repetitions: u32,
}

/// One way of marking.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MarkFigure {
    /// Threads that mark at once.
    pub threads: usize,
    /// `random` or `sequential`.
    pub order: String,
    /// Pages of a transaction.
    pub transaction_pages: usize,
    /// Whether the pages were marked before.
    pub again: bool,
    /// Marks per second of all threads, by repetition.
    pub marks_per_second: Vec<f64>,
}

/// All figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrackerFigures {
    /// When they were measured.
    pub started: Timestamp,
    /// Where.
    pub machine: Machine,
    /// Marking.
    pub marks: Vec<MarkFigure>,
    /// Bytes of the log that was read.
    pub log_bytes: u64,
    /// Bytes of log per second when a database whose machine was started anew takes up the tracker, by repetition.
    pub rebuild_bytes_per_second: Vec<f64>,
    /// Seconds of a switch and an answer over all marks of a TiB in random order, by repetition.
    pub switch_seconds: Vec<f64>,
    /// Pages in that answer.
    pub switch_pages: u64,
}

fn cannot(what: &str, error: std::io::Error) -> Error {
    Error::new(Kind::CheckFailed, what.to_owned()).cause(error)
}

fn identity() -> LogIdentity {
    new_identity([7; 32], SegmentSize::DEFAULT)
}

/// Measures everything in a directory beneath `dir`; `root` is the checkout.
///
/// # Errors
/// What the database or the tracker says.
pub fn measure(dir: &Path, root: &Path, effort: Effort) -> Result<TrackerFigures> {
    let started = Timestamp::now();
    let own = |name: &str| -> Result<tempfile::TempDir> {
        let made = tempfile::Builder::new().prefix(name).tempdir_in(dir);
        made.map_err(|error| cannot("no directory could be made", error))
    };
    let mut figures = TrackerFigures {
        started,
        machine: Machine::read(dir, root),
        marks: Vec::new(),
        log_bytes: effort.log_bytes,
        rebuild_bytes_per_second: Vec::new(),
        switch_seconds: Vec::new(),
        switch_pages: 0,
    };
    for repetition in 0..effort.repetitions as usize {
        let place = own("marks")?;
        marks(place.path(), effort, repetition, &mut figures)?;
        let place = own("rebuild")?;
        rebuild(place.path(), effort, &mut figures)?;
    }
    Ok(figures)
}

/// Marks in every way, then ends the epoch.
fn marks(
    dir: &Path,
    effort: Effort,
    repetition: usize,
    figures: &mut TrackerFigures,
) -> Result<()> {
    let mut at = 0;
    for threads in [1, 2] {
        for order in ["sequential", "random"] {
            for transaction_pages in [TRANSACTION_PAGES, 1] {
                let place = dir.join(format!("{threads}-{order}-{transaction_pages}"));
                std::fs::create_dir(&place).map_err(|error| cannot("no directory", error))?;
                let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&place)?);
                Store::create(disk, identity())?;
                // Twice the table's bitmaps, as a database of that size has.
                let capacity = Capacity::new(18)?;
                let (tracker, _) = Tracker::with_capacity(&place, identity(), Lsn(4096), capacity)?;
                let pages: Vec<Vec<u32>> = (0..threads)
                    .map(|thread| pages_of(thread as u64, threads as u64, order, effort.marks))
                    .collect();
                for again in [false, true] {
                    if repetition == 0 {
                        figures.marks.push(MarkFigure {
                            threads,
                            order: order.to_owned(),
                            transaction_pages,
                            again,
                            marks_per_second: Vec::new(),
                        });
                    }
                    let seconds = mark_all(&tracker, &pages, transaction_pages);
                    let rate = (threads * effort.marks) as f64 / seconds;
                    figures.marks[at].marks_per_second.push(rate);
                    at += 1;
                }
                // There is no log: all that was marked counts as told.
                tracker.durable(Lsn(1 << 40));
                let distinct = distinct(&pages);
                let (seconds, found) = switch(&place)?;
                if found != distinct {
                    let what = format!("{distinct} pages were marked, and {found} were found");
                    return Err(Error::new(Kind::Internal, what));
                }
                if (threads, order, transaction_pages) == (1, "random", TRANSACTION_PAGES) {
                    figures.switch_seconds.push(seconds);
                    figures.switch_pages = found;
                }
                drop(tracker);
                std::fs::remove_dir_all(&place).map_err(|error| cannot("not removed", error))?;
            }
        }
    }
    Ok(())
}

fn pages_of(thread: u64, threads: u64, order: &str, count: usize) -> Vec<u32> {
    let mut random = Random::new(thread);
    let own = PAGES / threads;
    let page = |n: u64| match order {
        "random" => random.below(PAGES),
        _ => thread * own + n % own,
    };
    (0..count as u64)
        .map(page)
        .map(|page| page as u32)
        .collect()
}

fn distinct(pages: &[Vec<u32>]) -> u64 {
    let mut all: Vec<u32> = pages.iter().flatten().copied().collect();
    all.sort_unstable();
    all.dedup();
    all.len() as u64
}

/// All threads mark their pages at once, as transactions that become durable one by one; the seconds of the slowest.
fn mark_all(tracker: &Tracker, pages: &[Vec<u32>], transaction_pages: usize) -> f64 {
    let threads = pages.len();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (thread, own) in pages.iter().enumerate() {
            scope.spawn(move || {
                for (n, pages) in own.chunks(transaction_pages).enumerate() {
                    let mut marking = tracker.begin();
                    marking.mark_many(pages.iter().map(|page| (1, *page)));
                    // As if the threads appended in turn, and each flushed.
                    let end = Lsn(4096 + 8 * (threads * n + thread) as u64 + 8);
                    marking.end(end);
                    tracker.durable(end);
                }
            });
        }
    });
    begun.elapsed().as_secs_f64()
}

/// Ends the epoch and asks for all of it. Seconds, and pages in the answer.
fn switch(dir: &Path) -> Result<(f64, u64)> {
    let begun = Instant::now();
    let Some(epochs) = Epochs::open(Arc::new(DirDisk::open(dir)?), identity())? else {
        return Err(Error::new(Kind::Internal, "there is no tracker"));
    };
    let done = epochs.switch(Lsn(4096), BUDGET_BYTES_DEFAULT)?;
    let range = LsnRange {
        start: Lsn(4096),
        end: done.end.max(Lsn(4104)),
    };
    let changed = epochs
        .changed(range, 1 << 30)
        .map_err(|invalid| Error::new(Kind::Internal, invalid.to_string()))?;
    let pages = changed.tables.values().map(|pages| pages.len()).sum();
    Ok((begun.elapsed().as_secs_f64(), pages))
}

/// Writes a log of small changes on 10 GB, takes the live file away, and times how the tracker is taken up.
fn rebuild(dir: &Path, effort: Effort, figures: &mut TrackerFigures) -> Result<()> {
    const TABLE_PAGES: u64 = 10_000_000_000 / 4096;
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir)?);
    let mut store = Store::create(Arc::clone(&disk), identity())?;
    let capacity = Capacity::new(13)?;
    let (tracker, _) = Tracker::with_capacity(dir, identity(), Lsn(4096), capacity)?;
    drop(tracker);
    let writer = store.recover(16)?.writer;
    let mut random = Random::new(1);
    let bytes: [u8; BODY_BYTES] = std::array::from_fn(|i| (i * 7) as u8);
    let (mut group, mut number) = (Group::new(), 0);
    while writer.end().0 < effort.log_bytes {
        group.clear();
        for _ in 0..4 {
            let (page, len) = (random.below(TABLE_PAGES), 40 + random.below(160) as usize);
            group.delta(1, page as u32, &[(100, &bytes[..8]), (1000, &bytes[..len])])?;
        }
        if random.below(40) == 0 {
            group.image(1, random.below(TABLE_PAGES) as u32, &bytes)?;
        }
        writer.append(&group, number, Timestamp::from_micros(0))?;
        number += 1;
    }
    let end = writer.end();
    writer.flush_to(end)?;
    drop(writer);
    std::fs::remove_file(dir.join(LIVE_FILE)).map_err(|error| cannot("not removed", error))?;
    // Once to bring the log into the page cache.
    for warm in [false, true] {
        let begun = Instant::now();
        let (tracker, found) = Tracker::with_capacity(dir, identity(), end, capacity)?;
        let seconds = begun.elapsed().as_secs_f64();
        if found.read.is_none() {
            return Err(Error::new(Kind::Internal, "the log was not read"));
        }
        drop(tracker);
        std::fs::remove_file(dir.join(LIVE_FILE)).map_err(|error| cannot("not removed", error))?;
        if warm {
            figures
                .rebuild_bytes_per_second
                .push(end.0 as f64 / seconds);
        }
    }
    Ok(())
}

fn spread(values: &[f64], unit: f64) -> String {
    Spread::of(values.iter().map(|value| value / unit)).map_or_else(String::new, |spread| {
        format!("{:.2} ({:.2}-{:.2})", spread.median, spread.min, spread.max)
    })
}

/// The figures as tables.
pub fn markdown(figures: &TrackerFigures) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let day = day(figures.started);
    let machine = &figures.machine;
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "# Block change tracker, {day}\n\n{}, {} cores; {}; commit {}. Median, smallest and largest repetition.\n\n\
         A table of 1 TiB; marks of one thread are counted once each, also where a page was drawn twice.\n\n\
         | marks | pages of a transaction | threads | million marks/s | ns a mark and thread |\n|---|---|---|---|---|\n",
        machine.cpu, machine.cores, machine.kernel, machine.commit
    );
    for mark in &figures.marks {
        let again = if mark.again { ", set before" } else { "" };
        let threads = mark.threads as f64;
        let each: Vec<f64> = mark
            .marks_per_second
            .iter()
            .map(|rate| 1e9 * threads / rate)
            .collect();
        let _ = writeln!(
            out,
            "| {}{again} | {} | {} | {} | {} |",
            mark.order,
            mark.transaction_pages,
            mark.threads,
            spread(&mark.marks_per_second, 1e6),
            spread(&each, 1.0)
        );
    }
    let _ = write!(
        out,
        "\n| | |\n|---|---|\n| rebuilt from a log of {} MiB in the page cache, GB/s | {} |\n\
         | switch and answer over {} marked pages, ms | {} |\n",
        figures.log_bytes >> 20,
        spread(&figures.rebuild_bytes_per_second, 1e9),
        figures.switch_pages,
        spread(&figures.switch_seconds, 1e-3)
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_measurement_counts_what_it_marks() {
        let dir = tempfile::tempdir().unwrap();
        let effort = Effort {
            marks: 2000,
            log_bytes: 1 << 20,
            repetitions: 1,
        };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let figures = measure(dir.path(), root, effort).unwrap();
        assert_eq!(figures.marks.len(), 16);
        assert!(
            figures
                .marks
                .iter()
                .all(|mark| mark.marks_per_second[0] > 0.0)
        );
        assert!(figures.switch_pages > 1900);
        let text = markdown(&figures);
        assert!(text.contains("| random, set before | 1 | 2 |"), "{text}");
    }
}
