//! `mover-bench-tracker`: measures the block change tracker, what it costs a database, and the extraction of changes from the log
//! that stands in for it; figures as JSON and tables into a directory.
//!
//! Invariant: nothing of a part is written before all of it was measured.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use mover_base::Result;
use mover_benches::results::publish;
use mover_benches::{extraction, marking, tracker};

#[global_allocator]
static ALLOCATOR: mover_io::HugeAlloc = mover_io::HugeAlloc;

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Marks, switches and rebuilding alone.
    Tracker,
    /// What marking costs the reference database.
    Marking,
    /// Changes extracted straight from the log's segments.
    Extraction,
}

/// Measures marking, rebuilding, what marking costs a database, and extraction from the log.
#[derive(Debug, Parser)]
#[command(name = "mover-bench-tracker", version)]
struct Args {
    /// Where stores are made that are to wait for no disk: a directory in memory
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    dir: PathBuf,
    /// A directory on the disk to measure
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    disk: PathBuf,
    /// Directory of the result files
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    results: PathBuf,
    /// The checkout
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=50))]
    repetitions: u32,
    /// Measure just these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Tiny sizes, to try the harness: no figures to quote
    #[arg(long)]
    smoke: bool,
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn tracker(&self) -> Result<()> {
        let effort = tracker::Effort {
            marks: if self.smoke { 20_000 } else { 2_000_000 },
            log_bytes: if self.smoke { 8 << 20 } else { 512 << 20 },
            repetitions: self.repetitions,
        };
        let figures = tracker::measure(&self.dir, &self.root, effort)?;
        let tables = tracker::markdown(&figures);
        publish(&self.results, "tracker", figures.started, &figures, &tables)
    }

    fn marking(&self) -> Result<()> {
        let (append_transactions, slice_ms, rounds) = match self.smoke {
            true => (500, 200, [2, 1]),
            false => (2000, 1500, [20, 2]),
        };
        let figures = marking::measure(marking::Setting {
            memory: &self.dir,
            disk: &self.disk,
            root: &self.root,
            append_transactions,
            commit_slice: Duration::from_millis(slice_ms),
            rounds,
            repetitions: self.repetitions,
        })?;
        let tables = marking::markdown(&figures);
        publish(&self.results, "marking", figures.started, &figures, &tables)
    }

    fn extraction(&self) -> Result<()> {
        let figures = extraction::measure(extraction::Setting {
            memory: &self.dir,
            disk: &self.disk,
            root: &self.root,
            log_bytes: if self.smoke { 64 << 20 } else { 1 << 30 },
            repetitions: self.repetitions,
            cold: true,
        })?;
        let tables = extraction::markdown(&figures);
        publish(
            &self.results,
            "extraction",
            figures.started,
            &figures,
            &tables,
        )
    }
}

fn run(args: &Args) -> Result<()> {
    if args.wants(Part::Tracker) {
        args.tracker()?;
    }
    if args.wants(Part::Marking) {
        args.marking()?;
    }
    if args.wants(Part::Extraction) {
        args.extraction()?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mover-bench-tracker: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}
