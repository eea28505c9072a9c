//! `mover-bench-incremental`: incremental backups of a large page store beside the full one, and what an online backup costs the
//! database's commits.
//!
//! Invariants: the mover is the program that users run, at its defaults but for what the arguments say; caches are empty
//! before each step; what was restored is compared with the store byte by byte.
#![allow(clippy::print_stdout)] // Its output is its interface.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use mover_base::{Error, Kind, Result, Timestamp};
use mover_benches::command::{Program, Usage, drop_caches};
use mover_benches::machine::Machine;
use mover_benches::results::{day, write};
use mover_benches::stats::Spread;
use mover_benches::tools::mover;
use mover_pagedb::bulk::{Bulk, TABLE};
use mover_pagedb::workload::accounts;
use mover_pagedb::{Database, Options, Workload};
use mover_source::disk::{DirDisk, Disk};
use mover_source::page::PAGE_BYTES;
use mover_source::pages::{Store, new_identity, table_path};
use mover_source::wal::SegmentSize;
use serde_json::Value;

/// Blocks that one frame of the repository holds.
const FRAME_BLOCKS: usize = 256;
/// How long commits are measured each time, at least.
const LOAD: Duration = Duration::from_secs(10);
/// How often they are measured alone and then beside backups. In the end they are measured alone once more.
const ROUNDS: usize = 4;
/// Clients that commit one transaction after the other.
const CLIENTS: u64 = 4;

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
    /// Where `<date>-incremental.md` is written.
    #[arg(long, default_value = "benches/results")]
    results: PathBuf,
    /// The repository, for the version that was measured.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// The backup's read limit while commits are measured.
    #[arg(long, default_value = "50MiB/s")]
    limit_read: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let work = args.dir.join(format!("incremental-{}", std::process::id()));
    let mut report = Report::default();
    let outcome = std::fs::create_dir_all(&work)
        .map_err(|error| failed("the directory cannot be made").cause(error))
        .and_then(|()| measure(&args, &work, &mut report));
    let _ = std::fs::remove_dir_all(&work);
    match outcome.and_then(|()| report.write(&args.results)) {
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

    fn write(&self, dir: &Path) -> Result<()> {
        let day = day(Timestamp::now());
        write(&dir.join(format!("{day}-incremental.md")), &self.text)
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

fn measure(args: &Args, work: &Path, report: &mut Report) -> Result<()> {
    let machine = Machine::read(&args.dir, &args.root);
    report.line(format!(
        "# Incremental backups\n\n{}, {} cores, kernel {}, {}; commit {}\n",
        machine.cpu, machine.cores, machine.kernel, machine.mount, machine.commit
    ));
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
    report.line("| backup | seconds | CPU s | memory, MiB | read, MB | stored, MB |");
    report.line("|---|---|---|---|---|---|");
    row(report, "full", &full, &full_summary);
    let mut last = None;
    for _ in 0..3 {
        let changed = bulk.change((args.changed_mb * 1_000_000 / page) as usize)?;
        let (usage, summary) = bench.backup("incr")?;
        row(report, "incremental", &usage, &summary);
        let compressed = compressed(&bulk, &changed)?;
        last = Some((usage, summary, compressed, changed.len()));
    }
    let (usage, summary) = bench.backup("diff")?;
    row(report, "differential", &usage, &summary);
    let Some((usage, summary, compressed, changed)) = last else {
        return Ok(());
    };
    let changed_bytes = changed as f64 * PAGE_BYTES as f64;
    report.line(format!(
        "\nlast incremental: {:.3} of the full backup's time; read {:.3} of what changed;",
        usage.wall_seconds / full.wall_seconds,
        number(&summary, "bytes_read") / changed_bytes
    ));
    report.line(format!(
        "stored {:.2} % of the source and {:.3} of what the changed blocks take at zstd 3 ({:.3} of their size)",
        100.0 * number(&summary, "bytes_stored") / number(&summary, "bytes_source"),
        number(&summary, "bytes_stored") / compressed as f64,
        compressed as f64 / changed_bytes
    ));
    drop(bulk);
    restore(&bench)?;
    report.line("restored and compared: the same");
    std::fs::remove_dir_all(&store)
        .map_err(|error| failed("the store cannot be removed").cause(error))?;
    commits(&bench, &args.limit_read, report)
}

fn row(report: &mut Report, name: &str, usage: &Usage, summary: &Value) {
    report.line(format!(
        "| {name} | {:.2} | {:.2} | {} | {:.1} | {:.1} |",
        usage.wall_seconds,
        usage.cpu_seconds(),
        usage.rss_bytes >> 20,
        number(summary, "bytes_read") / 1e6,
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

/// Commits of a database with and without a backup beside it.
fn commits(bench: &Bench<'_>, limit_read: &str, report: &mut Report) -> Result<()> {
    let store = bench.work.join("store");
    std::fs::create_dir(&store)
        .map_err(|error| failed("no directory for the store").cause(error))?;
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(&store)?);
    Store::create(disk.clone(), new_identity([8; 32], SegmentSize::DEFAULT))?;
    let options = Options {
        pool_pages: 4096,
        journal: false,
    };
    let (database, _) = Database::open(disk, options)?;
    database.commit(&accounts(8))?;
    report.line(format!(
        "\ncommits of {CLIENTS} clients, {} s each or until the last backup has ended, checkpoints every second:\n",
        LOAD.as_secs()
    ));
    report.line("| | per second | p50, ms | p99, ms |");
    report.line("|---|---|---|---|");
    let mut first = 0;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for turn in 0..=2 * ROUNDS {
        let (name, limit, p99s) = match turn % 2 {
            0 => ("alone", None, &mut alone),
            _ => ("beside full backups", Some(limit_read), &mut beside),
        };
        let stop = AtomicBool::new(false);
        let begun = Instant::now();
        let (histogram, backups) = std::thread::scope(|scope| {
            let load = scope.spawn(|| load(&database, first, &stop));
            let backups = backups_until(bench, limit, begun + LOAD);
            stop.store(true, Relaxed);
            (load.join(), backups)
        });
        first += CLIENTS;
        let histogram = histogram.map_err(|_| failed("the load panicked"))??;
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        p99s.push(ms(0.99));
        // The last backup may have ended later than that.
        let rate = histogram.len() as f64 / begun.elapsed().as_secs_f64();
        report.line(format!(
            "| {name} ({} backups) | {rate:.0} | {:.2} | {:.2} |",
            backups?,
            ms(0.5),
            ms(0.99)
        ));
    }
    let middle = |p99s| Spread::of(p99s).map_or(f64::NAN, |spread| spread.median);
    let (alone, beside) = (middle(alone), middle(beside));
    report.line(format!(
        "\np99 in the middle: {beside:.2} ms beside backups, {alone:.2} ms alone: {:.2} times; read limit of the backups: {limit_read}",
        beside / alone
    ));
    Ok(())
}

fn backups_until(bench: &Bench<'_>, limit: Option<&str>, end: Instant) -> Result<u64> {
    let mut backups = 0;
    while Instant::now() < end {
        match limit {
            None => std::thread::sleep(Duration::from_millis(50)),
            Some(limit) => {
                let source = format!("pages://{}", bench.work.join("store").display());
                let program =
                    bench
                        .program("backup")
                        .args(["--source", &source, "--limit-read", limit]);
                program.output()?;
                backups += 1;
            }
        }
    }
    Ok(backups)
}

/// Latencies of commits, in microseconds.
fn load(database: &Database, first: u64, stop: &AtomicBool) -> Result<Histogram<u64>> {
    let client = |number| {
        let mut workload = Workload::new(8, number);
        let mut histogram =
            Histogram::<u64>::new(3).map_err(|error| failed("no histogram").cause(error))?;
        while !stop.load(Relaxed) {
            let ops = workload.next_transaction();
            let begun = Instant::now();
            database.commit(&ops)?;
            histogram.saturating_record(begun.elapsed().as_micros() as u64);
        }
        Ok::<_, Error>(histogram)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (first..first + CLIENTS)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        while !stop.load(Relaxed) {
            std::thread::sleep(Duration::from_secs(1));
            database.checkpoint()?;
        }
        let mut all =
            Histogram::<u64>::new(3).map_err(|error| failed("no histogram").cause(error))?;
        for client in clients {
            let histogram = client.join().map_err(|_| failed("a client panicked"))??;
            all.add(histogram)
                .map_err(|error| failed("histograms cannot be added").cause(error))?;
        }
        Ok(all)
    })
}
