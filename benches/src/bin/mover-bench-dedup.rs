//! `mover-bench-dedup`: measures what deduplication saves on branches and copied tables; figures as JSON and tables into a
//! directory.
//!
//! Invariant: nothing is written before everything was measured.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mover_base::Result;
use mover_benches::dedup::{Size, markdown, measure};
use mover_benches::results::publish;

/// Backs up branches of a page store and of a PostgreSQL database, and a copied table.
#[derive(Debug, Parser)]
#[command(name = "mover-bench-dedup", version)]
struct Args {
    /// The program to measure
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/release/helios-mover"
    )]
    mover: PathBuf,
    /// Where databases and repositories are made: a directory that user postgres can enter
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Directory of the result files
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    results: PathBuf,
    /// The checkout
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// Scale factor of pgbench, about 16 MB each
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    scale: u32,
    /// Transactions of pgbench on each database for each of the scale factor
    #[arg(long, value_name = "N", default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    transactions_per_scale: u32,
    /// Size of the page store
    #[arg(long, value_name = "MB", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=4000))]
    store_mb: u32,
    /// Share of the page store's pages that each branch changes
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=100))]
    changed_percent: u8,
}

fn run(args: &Args) -> Result<()> {
    let size = Size {
        scale: args.scale,
        transactions_per_scale: args.transactions_per_scale,
        store_mb: args.store_mb,
        changed_share: f64::from(args.changed_percent) / 100.0,
    };
    let figures = measure(&args.mover, &args.dir, &args.root, size, |backup| {
        eprintln!(
            "{}: {:.1} % of {:.1} %",
            backup.title,
            100.0 * backup.share,
            100.0 * backup.possible.known_share()
        );
    })?;
    publish(
        &args.results,
        "dedup",
        figures.started,
        &figures,
        &markdown(&figures),
    )
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mover-bench-dedup: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}
