//! `mover-bench-tracker`: measures the block change tracker; figures as JSON and tables into a directory.
//!
//! Invariant: nothing is written before everything was measured.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mover_base::Result;
use mover_benches::results::publish;
use mover_benches::tracker::{Effort, markdown, measure};

#[global_allocator]
static ALLOCATOR: mover_io::HugeAlloc = mover_io::HugeAlloc;

/// Measures marking, rebuilding, and what both cost a database.
#[derive(Debug, Parser)]
#[command(name = "mover-bench-tracker", version)]
struct Args {
    /// Where stores are made: a directory in memory, so that no disk is measured
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    dir: PathBuf,
    /// Directory of the result files
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    results: PathBuf,
    /// The checkout
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    repetitions: u32,
}

fn run(args: &Args) -> Result<()> {
    let effort = Effort {
        marks: 2_000_000,
        log_bytes: 512 << 20,
        transactions: 20_000,
        repetitions: args.repetitions,
    };
    let figures = measure(&args.dir, &args.root, effort)?;
    publish(
        &args.results,
        "tracker",
        figures.started,
        &figures,
        &markdown(&figures),
    )
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
