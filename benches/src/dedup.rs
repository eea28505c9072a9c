//! What deduplication saves on branches of databases and on copied tables, by the mover's own figures, beside what equal
//! blocks there are.
//!
//! Invariants: the mover is the program that users run, at its defaults; equal blocks are counted by this module from the
//! files alone; a repository is new but where backups one after the other are what is measured; what is restored is the source.

pub mod blocks;
mod page_store;
mod postgres;

use std::path::{Path, PathBuf};

use mover_base::{BLOCK_BYTES, Error, Kind, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::{Program, compare_trees};
use crate::data::Files;
use crate::machine::Machine;
use crate::report::line;
use crate::results::day;
use crate::tools::mover;
use blocks::{BlockSet, Count};

/// How large the databases are and how far the branches go.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Size {
    /// Scale factor of pgbench: 100,000 accounts or about 16 MB each.
    pub scale: u32,
    /// Transactions of pgbench on each database for each of `scale`.
    pub transactions_per_scale: u32,
    /// Rows of the page store, in MB.
    pub store_mb: u32,
    /// Share of its pages that each branch changes.
    pub changed_share: f64,
}

/// A series of backups that tell of one thing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// A page store and two copies of its directory.
    PageStore,
    /// A PostgreSQL cluster with a database, branches of it and a copied table.
    Postgres,
}

/// One backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backup {
    /// Of which series.
    pub workload: Workload,
    /// What was backed up, and into what.
    pub title: String,
    /// Sizes of the source's files.
    pub source_bytes: u64,
    /// Of these, the database's log.
    pub log_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes in blocks that were not stored again.
    pub deduplicated_bytes: u64,
    /// Bytes in blocks that were stored.
    pub new_bytes: u64,
    /// The share that the summary tells.
    pub share: f64,
    /// The same, as this program counts it in the files.
    pub possible: Count,
    /// Everything that was added to the repository.
    pub stored_bytes: u64,
}

/// What of a copied table is found elsewhere in its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CopiedTable {
    /// The copy's blocks, of which those that are new are found nowhere else.
    pub blocks: Count,
}

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DedupFigures {
    /// When it began.
    pub started: Timestamp,
    /// Where.
    pub machine: Machine,
    /// On what.
    pub size: Size,
    /// The backups, in order.
    pub backups: Vec<Backup>,
    /// PostgreSQL's copied table.
    pub copied_table: CopiedTable,
}

/// Makes both workloads in `dir` and backs them up with the program `mover`; `done` sees each backup.
///
/// # Errors
/// Those of the programs; [`Kind::CheckFailed`] where something else was restored than backed up.
pub fn measure(
    mover: &Path,
    dir: &Path,
    root: &Path,
    size: Size,
    mut done: impl FnMut(&Backup),
) -> Result<DedupFigures> {
    let started = Timestamp::now();
    let work = tempfile::Builder::new()
        .prefix("dedup-")
        .tempdir_in(dir)
        .map_err(|error| cannot("no directory could be made", dir, error))?;
    let mut backups = Vec::new();
    let mut keep = |backup: Backup| {
        done(&backup);
        backups.push(backup);
    };
    let bench = Bench {
        mover,
        work: work.path(),
    };
    mover::write_passphrase(bench.work)?;
    page_store::measure(&bench, size, &mut keep)?;
    let copied_table = postgres::measure(&bench, size, &mut keep)?;
    Ok(DedupFigures {
        started,
        machine: Machine::read(dir, root),
        size,
        backups,
        copied_table,
    })
}

fn cannot(what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::new(Kind::Target, what)
        .object(path.display().to_string())
        .cause(error)
}

fn remove(dir: &Path) -> Result<()> {
    std::fs::remove_dir_all(dir).map_err(|error| cannot("a directory stays", dir, error))
}

/// The program and the directory that everything is in.
struct Bench<'a> {
    mover: &'a Path,
    work: &'a Path,
}

/// One backup to be made.
struct Plan<'a> {
    workload: Workload,
    title: &'a str,
    /// URL of the source.
    source: String,
    /// The source's files that are counted.
    counted: Files,
    /// Bytes of the database's log in the source.
    log_bytes: u64,
}

impl<'a> Plan<'a> {
    /// Of everything in `dir`, in which the log's files are below directories named `log_dir`.
    fn of_dir(workload: Workload, title: &'a str, dir: &Path, log_dir: &str) -> Result<Plan<'a>> {
        let counted = Files::list(dir)?;
        let is_log = |path: &Path| path.iter().any(|name| name == log_dir);
        let logs = counted.0.iter().filter(|(path, _)| is_log(path));
        Ok(Plan {
            workload,
            title,
            source: format!("dir://{}", dir.display()),
            log_bytes: logs.map(|(_, bytes)| bytes).sum(),
            counted,
        })
    }
}

/// A repository that backups go into.
struct Repository<'a> {
    bench: &'a Bench<'a>,
    dir: PathBuf,
    /// What is in it, as counted here.
    blocks: BlockSet,
}

impl Bench<'_> {
    fn repository(&self, name: &str) -> Result<Repository<'_>> {
        let repository = Repository {
            bench: self,
            dir: self.work.join(name),
            blocks: BlockSet::default(),
        };
        repository.program("init").output()?;
        Ok(repository)
    }

    /// Backs a directory up into a repository of its own, restores it and compares.
    fn alone(&self, plan: &Plan<'_>, dir: &Path) -> Result<Backup> {
        let mut repository = self.repository("repository")?;
        let backup = repository.backup(plan)?;
        let target = self.work.join("restored");
        let restore = repository.program("restore").args(["--to"]).path(&target);
        restore.args(["--set", "latest"]).output()?;
        compare_trees("helios-mover", dir, &target, &[])?;
        remove(&target)?;
        remove(&repository.dir)?;
        Ok(backup)
    }
}

impl Repository<'_> {
    fn program(&self, verb: &str) -> Program {
        let url = format!("file://{}", self.dir.display());
        mover::on(self.bench.mover, verb, &url, self.bench.work)
    }

    fn backup(&mut self, plan: &Plan<'_>) -> Result<Backup> {
        let program = self.program("backup").args(["--source", &plan.source]);
        let summary = mover::detail(&program.output()?).ok_or_else(|| strange("backup"))?;
        let shown = self.program("show").args(["--set", "latest"]).output()?;
        let shown: Value = serde_json::from_str(&shown).map_err(|e| strange("show").cause(e))?;
        let of_summary = |name: &str| summary[name].as_u64().ok_or_else(|| strange(name));
        let deduplicated = shown["metadata"]["size_info"]["deduplicated_blocks"].as_u64();
        let deduplicated = deduplicated.ok_or_else(|| strange("deduplicated_blocks"))?;
        Ok(Backup {
            workload: plan.workload,
            title: plan.title.to_owned(),
            source_bytes: of_summary("bytes_source")?,
            log_bytes: plan.log_bytes,
            read_bytes: of_summary("bytes_read")?,
            deduplicated_bytes: deduplicated * BLOCK_BYTES as u64,
            new_bytes: of_summary("bytes_new")?,
            share: summary["deduplicated_share"]
                .as_f64()
                .ok_or_else(|| strange("deduplicated_share"))?,
            possible: self.blocks.add(&plan.counted)?,
            stored_bytes: of_summary("bytes_stored")?,
        })
    }
}

fn strange(what: &str) -> Error {
    Error::new(
        Kind::Internal,
        "the mover printed something else than its figures",
    )
    .object(what)
}

impl DedupFigures {
    fn of(&self, workload: Workload) -> impl Iterator<Item = &Backup> {
        let is_of = move |backup: &&Backup| backup.workload == workload;
        self.backups.iter().filter(is_of)
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The figures as tables.
pub fn markdown(figures: &DedupFigures) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let day = day(figures.started);
    let (machine, size) = (&figures.machine, &figures.size);
    line!(out, "# Deduplication, {day}\n");
    line!(
        out,
        "{}, {} cores; kernel {}; {}; commit {}.\n",
        machine.cpu,
        machine.cores,
        machine.kernel,
        machine.mount,
        machine.commit
    );
    line!(
        out,
        "Share: blocks of 4 KiB that were not stored again, of all that are not zero. Possible: the same, counted in the files \
         by their SHA-256 without the mover, for a repository that knows every block it was given.\n"
    );
    line!(out, "## Page store and two branches\n");
    line!(
        out,
        "A page store of {} MB of rows, its directory copied twice while it was stopped; then transactions on each of the three, \
         each of which changes a row in {} of the pages, picked at random, and a checkpoint.\n",
        size.store_mb,
        percent(size.changed_share)
    );
    table(&mut out, figures.of(Workload::PageStore));
    line!(out, "## PostgreSQL: branches and a copied table\n");
    line!(
        out,
        "A PostgreSQL 15 cluster with `pgbench -i -s {}` and {} transactions of pgbench in a database; then `CREATE DATABASE branch \
         TEMPLATE main STRATEGY FILE_COPY` and as many transactions again on each of the two; then a second branch of main and as many \
         on each of the three; then `CREATE TABLE accounts_copy AS TABLE pgbench_accounts` in main. {}. Stopped before each backup.\n",
        size.scale,
        size.scale * size.transactions_per_scale,
        postgres::SETTINGS
    );
    table(&mut out, figures.of(Workload::Postgres));
    let copy = figures.copied_table.blocks;
    line!(
        out,
        "Of the {} blocks of `accounts_copy` {} are found elsewhere in the cluster ({}): each page names the position of its \
         change in the log, and each row the transaction that wrote it.",
        copy.blocks,
        copy.known(),
        percent(copy.known_share())
    );
    out
}

fn table<'a>(out: &mut String, backups: impl Iterator<Item = &'a Backup>) {
    use std::fmt::Write;
    line!(
        out,
        "| backup | source, MB | of it log, MB | read, MB | deduplicated, MB | new, MB | share | possible | stored, MB |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for backup in backups {
        let [source, log, read, known, new, stored] = [
            backup.source_bytes,
            backup.log_bytes,
            backup.read_bytes,
            backup.deduplicated_bytes,
            backup.new_bytes,
            backup.stored_bytes,
        ]
        .map(|bytes| format!("{:.1}", bytes as f64 / 1e6));
        line!(
            out,
            "| {} | {source} | {log} | {read} | {known} | {new} | {} | {} | {stored} |",
            backup.title,
            percent(backup.share),
            percent(backup.possible.known_share()),
        );
    }
    line!(out, "");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_what_was_measured() {
        let count = |blocks, new| Count { blocks, new };
        let backup = |workload, title: &str| Backup {
            workload,
            title: title.to_owned(),
            source_bytes: 12_000_000,
            log_bytes: 1_000_000,
            read_bytes: 11_000_000,
            deduplicated_bytes: 6_000_000,
            new_bytes: 4_000_000,
            share: 0.6,
            possible: count(1000, 395),
            stored_bytes: 1_500_000,
        };
        let figures = DedupFigures {
            started: Timestamp::from_micros(1_790_000_000_000_000),
            machine: Machine::read(Path::new("/"), Path::new(env!("CARGO_MANIFEST_DIR"))),
            size: Size {
                scale: 20,
                transactions_per_scale: 100,
                store_mb: 300,
                changed_share: 0.05,
            },
            backups: vec![
                backup(Workload::PageStore, "all three"),
                backup(Workload::Postgres, "and a branch"),
            ],
            copied_table: CopiedTable {
                blocks: count(200, 199),
            },
        };
        let text = markdown(&figures);
        let cells = "| 12.0 | 1.0 | 11.0 | 6.0 | 4.0 | 60.0 % | 60.5 % | 1.5 |";
        for title in ["all three", "and a branch"] {
            assert!(text.contains(&format!("| {title} {cells}")), "{text}");
        }
        for sentence in [
            "a row in 5.0 % of the pages",
            "Of the 200 blocks of `accounts_copy` 1 are found elsewhere in the cluster (0.5 %)",
            "`pgbench -i -s 20` and 2000 transactions",
        ] {
            assert!(text.contains(sentence), "{sentence}\n{text}");
        }
    }
}
