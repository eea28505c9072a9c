//! `mover-bench-incremental`: incremental backups of a large page store beside the full one, and what an online backup costs the
//! database's commits.
//!
//! Invariants: the mover is the program that users run, at its defaults but for what the arguments say; caches are empty
//! before each step; what was restored is compared with the store byte by byte.
#![allow(clippy::print_stdout)] // Its output is its interface.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, ValueEnum};
use mover_base::{Error, Kind, Result, Timestamp};
use mover_benches::command::{Program, Usage, drop_caches};
use mover_benches::commits::{self, Setting};
use mover_benches::machine::Machine;
use mover_benches::results::{day, write};
use mover_benches::tools::mover;
use mover_pagedb::bulk::{Bulk, TABLE};
use mover_source::disk::{DirDisk, Disk};
use mover_source::page::PAGE_BYTES;
use mover_source::pages::{new_identity, table_path};
use mover_source::wal::SegmentSize;
use serde_json::Value;

/// Blocks that one frame of the repository holds.
const FRAME_BLOCKS: usize = 256;

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Incremental backups of a large store.
    Backups,
    /// Commits beside backups.
    Commits,
}

#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The program to measure.
    #[arg(long, default_value = "target/release/helios-mover")]
    mover: PathBuf,
    /// A directory on the disk to measure; about 1.9 times the store's size must be free there.
    #[arg(long)]
    dir: PathBuf,
    /// Size of the store, in MB.
    #[arg(long, default_value_t = 10_000)]
    store_mb: u64,
    /// How much of it changes between two backups, in MB.
    #[arg(long, default_value_t = 500)]
    changed_mb: u64,
    /// Where `<date>-incremental.md` is written, or `<date>-commits.md` if just that part is measured.
    #[arg(long, default_value = "benches/results")]
    results: PathBuf,
    /// The repository, for the version that was measured.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// The backup's read limit while commits are measured, in MiB/s.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    limit_read_mib: u64,
    /// Measure just this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let work = args.dir.join(format!("incremental-{}", std::process::id()));
    let mut report = Report::default();
    let outcome = std::fs::create_dir_all(&work)
        .map_err(|error| failed("the directory cannot be made").cause(error))
        .and_then(|()| measure(&args, &work, &mut report));
    let _ = std::fs::remove_dir_all(&work);
    let name = match args.only {
        Some(Part::Commits) => "commits",
        Some(Part::Backups) | None => "incremental",
    };
    match outcome.and_then(|()| report.write(&args.results, name)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn failed(what: &str) -> Error {
    Error::new(Kind::CheckFailed, what)
}

/// What was found so far: shown at once, and kept for the file.
#[derive(Default)]
struct Report {
    text: String,
}

impl Report {
    fn line(&mut self, line: impl AsRef<str>) {
        println!("{}", line.as_ref());
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    fn write(&self, dir: &Path, name: &str) -> Result<()> {
        let day = day(Timestamp::now());
        write(&dir.join(format!("{day}-{name}.md")), &self.text)
    }
}

/// A store, a repository, and the mover between them.
struct Bench<'a> {
    mover: &'a Path,
    work: &'a Path,
}

impl Bench<'_> {
    fn program(&self, verb: &str) -> Program {
        let url = format!("file://{}", self.work.join("repository").display());
        mover::on(self.mover, verb, &url, self.work)
    }

    fn init(&self) -> Result<()> {
        mover::write_passphrase(self.work)?;
        self.program("init").output().map(drop)
    }

    fn backup(&self, backup_type: &str) -> Result<(Usage, Value)> {
        drop_caches()?;
        let source = format!("pages://{}", self.work.join("store").display());
        let program = self
            .program("backup")
            .args(["--source", &source, "--type", backup_type]);
        let (usage, printed) = program.timed()?;
        let summary =
            mover::detail(&printed).ok_or_else(|| failed("the backup printed no summary"))?;
        if summary["backup_type"] != backup_type_name(backup_type) {
            return Err(failed("the backup is of another type").object(summary.to_string()));
        }
        Ok((usage, summary))
    }
}

fn backup_type_name(typed: &str) -> &str {
    match typed {
        "incr" => "incremental",
        "diff" => "differential",
        other => other,
    }
}

fn number(summary: &Value, name: &str) -> f64 {
    summary[name].as_f64().unwrap_or(f64::NAN)
}

/// What a backup read to copy it, without the log that it looked through.
fn copied(summary: &Value) -> f64 {
    number(summary, "bytes_read") - number(summary, "log_bytes_read")
}

fn measure(args: &Args, work: &Path, report: &mut Report) -> Result<()> {
    let machine = Machine::read(&args.dir, &args.root);
    report.line(format!(
        "# Incremental backups, and commits beside backups\n\n{}, {} cores, kernel {}, {}; commit {}\n",
        machine.cpu, machine.cores, machine.kernel, machine.mount, machine.commit
    ));
    let wants = |part| args.only.is_none_or(|only| only == part);
    if wants(Part::Backups) {
        backups(args, work, report)?;
    }
    if wants(Part::Commits) {
        let setting = Setting {
            mover: &args.mover,
            work,
            limit_mib: args.limit_read_mib,
        };
        commits::measure(setting, &mut |line| report.line(line))?;
    }
    Ok(())
}

fn backups(args: &Args, work: &Path, report: &mut Report) -> Result<()> {
    let bench = Bench {
        mover: &args.mover,
        work,
    };
    bench.init()?;
    let store = work.join("store");
    std::fs::create_dir(&store)
        .map_err(|error| failed("no directory for the store").cause(error))?;
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&store)?);
    let identity = new_identity([7; 32], SegmentSize::DEFAULT);
    let page = PAGE_BYTES as u64;
    let pages = (args.store_mb * 1_000_000 / page) as u32;
    let mut bulk = Bulk::make(&disk, identity, 7, pages)?;
    let (full, full_summary) = bench.backup("full")?;
    report.line(format!(
        "store: {} MB of rows in pages, {} MB changed in blocks at random\n",
        args.store_mb, args.changed_mb
    ));
    report.line(
        "| backup | seconds | CPU s | memory, MiB | read, MB | log looked through, MB | stored, MB |",
    );
    report.line("|---|---|---|---|---|---|---|");
    row(report, "full", &full, &full_summary);
    let ratios = changes(args, &bench, &mut bulk, "incremental", report)?;
    // What was marked is known from the first checkpoint on, and the log before it is gone.
    bulk.track(&store)?;
    bulk.change(1)?;
    bench.backup("full")?;
    let tracked = changes(args, &bench, &mut bulk, "incremental, tracked", report)?;
    let (usage, summary) = bench.backup("diff")?;
    row(report, "differential, tracked", &usage, &summary);
    for (name, last) in [("incremental", &ratios), ("incremental, tracked", &tracked)] {
        last.tell(name, &full, report);
    }
    drop(bulk);
    restore(&bench)?;
    report.line("restored and compared: the same");
    std::fs::remove_dir_all(&store)
        .map_err(|error| failed("the store cannot be removed").cause(error))
}

/// The last of several incremental backups, of which each follows a change.
struct Last {
    usage: Usage,
    summary: Value,
    changed_bytes: f64,
    /// What the changed blocks take at zstd 3.
    compressed_bytes: f64,
}

impl Last {
    fn tell(&self, name: &str, full: &Usage, report: &mut Report) {
        report.line(format!(
            "\nlast {name}: {:.3} of the full backup's time; read {:.3} of what changed;",
            self.usage.wall_seconds / full.wall_seconds,
            copied(&self.summary) / self.changed_bytes
        ));
        let stored = number(&self.summary, "bytes_stored");
        report.line(format!(
            "stored {:.2} % of the source and {:.3} of what the changed blocks take at zstd 3 ({:.3} of their size)",
            100.0 * stored / number(&self.summary, "bytes_source"),
            stored / self.compressed_bytes,
            self.compressed_bytes / self.changed_bytes
        ));
    }
}

/// Changes the store and backs up what changed, three times.
fn changes(
    args: &Args,
    bench: &Bench<'_>,
    bulk: &mut Bulk,
    name: &str,
    report: &mut Report,
) -> Result<Last> {
    let pages = (args.changed_mb * 1_000_000 / PAGE_BYTES as u64) as usize;
    let change = |bulk: &mut Bulk, report: &mut Report| {
        let changed = bulk.change(pages)?;
        let (usage, summary) = bench.backup("incr")?;
        row(report, name, &usage, &summary);
        Ok(Last {
            usage,
            summary,
            changed_bytes: changed.len() as f64 * PAGE_BYTES as f64,
            compressed_bytes: compressed(bulk, &changed)? as f64,
        })
    };
    for _ in 0..2 {
        change(bulk, report)?;
    }
    change(bulk, report)
}

fn row(report: &mut Report, name: &str, usage: &Usage, summary: &Value) {
    report.line(format!(
        "| {name} | {:.2} | {:.2} | {} | {:.1} | {:.1} | {:.1} |",
        usage.wall_seconds,
        usage.cpu_seconds(),
        usage.rss_bytes >> 20,
        copied(summary) / 1e6,
        number(summary, "log_bytes_read") / 1e6,
        number(summary, "bytes_stored") / 1e6,
    ));
}

/// What the changed blocks take, compressed a frame at a time as the mover does at its defaults.
fn compressed(bulk: &Bulk, changed: &std::collections::BTreeSet<u32>) -> Result<u64> {
    let mut bytes = 0;
    let mut frame = Vec::with_capacity(FRAME_BLOCKS * PAGE_BYTES);
    for (at, page) in (1..).zip(changed) {
        frame.extend_from_slice(&bulk.file().read(*page)?);
        if at % FRAME_BLOCKS == 0 || at == changed.len() {
            let packed = zstd::bulk::compress(&frame, 3);
            bytes += packed
                .map_err(|error| failed("zstd failed").cause(error))?
                .len() as u64;
            frame.clear();
        }
    }
    Ok(bytes)
}

fn restore(bench: &Bench<'_>) -> Result<()> {
    let target = bench.work.join("restored");
    bench
        .program("restore")
        .args(["--set", "latest", "--to"])
        .path(&target)
        .output()?;
    let path = table_path(TABLE);
    Program::new("cmp")
        .path(&bench.work.join("store").join(&path))
        .path(&target.join(&path))
        .output()?;
    std::fs::remove_dir_all(&target)
        .map_err(|error| failed("the restored store cannot be removed").cause(error))
}
