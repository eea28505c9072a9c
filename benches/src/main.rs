//! `mover-bench`: prepares the data, runs the measurements and writes the reports.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mover_base::{Error, Kind, Result, Timestamp};
use mover_benches::data::{Dataset, Scale};
use mover_benches::results::{Part, ResultFile, day, write};
use mover_benches::run::{Plan, prepare, run};
use mover_benches::s3::servers::GARAGE;
use mover_benches::{chart, report};

/// Measures Helios Mover beside the limits of the hardware and beside its peers.
#[derive(Debug, Parser)]
#[command(name = "benches/run", version)]
struct Args {
    /// Parts to measure [default: all]
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Data sets to measure on
    #[arg(long, value_delimiter = ',', value_name = "NAME", default_values = ["pg", "nano", "rows", "packs"])]
    dataset: Vec<Dataset>,
    /// Tiny data, one repetition, results in a temporary directory: tries the harness
    #[arg(long)]
    smoke: bool,
    /// Repetitions of programs and engines [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20))]
    repetitions: Option<u32>,
    /// Date in the names of the result files [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: Option<String>,
    /// Make the data sets and stop
    #[arg(long)]
    prepare: bool,
    /// Write tables from the date's result files and stop
    #[arg(long)]
    report: bool,
    /// Draw docs/images/throughput.svg, the picture of the README, from the date's result files
    #[arg(long, conflicts_with = "prepare")]
    picture: bool,
    /// Directory of the result files [default: benches/results]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// The checkout
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// Directory of data sets [default: ~/.cache/helios-mover/bench-data]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Binary of the mover [default: target/release/helios-mover]
    #[arg(long, value_name = "FILE")]
    mover: Option<PathBuf>,
    /// Binary of the bake-off [default: benches/bakeoff/target/release/runtime-bakeoff]
    #[arg(long, value_name = "FILE")]
    bakeoff: Option<PathBuf>,
    /// Binary of the S3 measurements [default: target/release/mover-bench-s3]
    #[arg(long, value_name = "FILE")]
    s3: Option<PathBuf>,
    /// Python environment with rclone, s5cmd and awscrt [default: ~/.cache/helios-mover/peers/s3-clients-v1]
    #[arg(long, value_name = "DIR")]
    s3_peers: Option<PathBuf>,
}

fn cache_dir(name: &str) -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let base = base.filter(|path| path.is_absolute()).ok_or_else(|| {
        Error::new(Kind::Usage, "there is no cache directory")
            .hint("set HOME or XDG_CACHE_HOME to an absolute path")
    })?;
    Ok(base.join("helios-mover").join(name))
}

fn plan(args: &Args) -> Result<Plan> {
    let root = args.root.canonicalize().map_err(|e| {
        Error::new(Kind::Usage, "no such checkout")
            .object(args.root.display().to_string())
            .cause(e)
    })?;
    let results = match (&args.results, args.smoke) {
        (Some(dir), _) => dir.clone(),
        (None, false) => root.join("benches/results"),
        (None, true) => std::env::temp_dir().join("helios-mover-bench-smoke"),
    };
    Ok(Plan {
        parts: if args.only.is_empty() {
            Part::ALL.to_vec()
        } else {
            args.only.clone()
        },
        datasets: args.dataset.clone(),
        repetitions: args.repetitions.unwrap_or(if args.smoke { 1 } else { 3 }),
        scale: if args.smoke {
            Scale::Smoke
        } else {
            Scale::Full
        },
        date: args.date.clone().unwrap_or_else(|| day(Timestamp::now())),
        cache: args
            .cache
            .clone()
            .map_or_else(|| cache_dir("bench-data"), Ok)?,
        results,
        mover: args
            .mover
            .clone()
            .unwrap_or_else(|| root.join("target/release/helios-mover")),
        bakeoff: args
            .bakeoff
            .clone()
            .unwrap_or_else(|| root.join("benches/bakeoff/target/release/runtime-bakeoff")),
        s3: args
            .s3
            .clone()
            .unwrap_or_else(|| root.join("target/release/mover-bench-s3")),
        s3_peers: args
            .s3_peers
            .clone()
            .map_or_else(|| cache_dir("peers/s3-clients-v1"), Ok)?,
        garage: cache_dir(GARAGE)?,
        root,
    })
}

/// Tables from what the date's files hold, and the picture where it is asked for: a part that is measured again must not take it.
fn write_reports(args: &Args, plan: &Plan) -> Result<()> {
    let files = ResultFile::read_all(&plan.results, &plan.date)?;
    if files.is_empty() {
        return Err(
            Error::new(Kind::NotFound, "there are no results of this date")
                .object(&plan.date)
                .hint("give --date, or measure first"),
        );
    }
    let tables = report::markdown(&files, &plan.date);
    write(&plan.results.join(format!("{}.md", plan.date)), &tables)?;
    if args.picture {
        draw(args, plan, &files)?;
    }
    for dataset in Dataset::COMPARED {
        for warning in report::warnings(&files, dataset) {
            eprintln!("benches/run: warning: {warning}");
        }
    }
    std::io::stdout()
        .write_all(tables.as_bytes())
        .map_err(|e| Error::new(Kind::Target, "standard output cannot be written").cause(e))
}

fn draw(args: &Args, plan: &Plan, files: &[ResultFile]) -> Result<()> {
    let own_place = args.smoke || args.results.is_some();
    let picture = match own_place {
        true => plan.results.join("throughput.svg"),
        false => plan.root.join("docs/images/throughput.svg"),
    };
    let svg = chart::svg(files).ok_or_else(|| {
        Error::new(Kind::NotFound, "there is nothing to draw of this date")
            .object(&plan.date)
            .hint("measure the parts mover and peers, or give the --date of results that hold them")
    })?;
    write(&picture, &svg)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = plan(&args).and_then(|plan| {
        if !args.report {
            plan.check_measures(&args.only)?;
        }
        if args.prepare {
            return prepare(&plan);
        }
        if !args.report {
            run(&plan)?;
        }
        write_reports(&args, &plan)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches/run: {error}");
            if let Some(hint) = error.hint_text() {
                eprintln!("  {hint}");
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}
