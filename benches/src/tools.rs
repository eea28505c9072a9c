//! The programs compared: the mover and its peers, each with its own way to say the same thing.
//!
//! Invariants: all of them encrypt, compress with zstd at level 3 or their nearest setting, read the same
//! directory, write to the same file system and start with cold caches; what is timed is the program from start to
//! exit. A final `sync` is timed on its own, because not every peer makes what it restored durable.

mod borg;
pub mod mover;
mod pgbackrest;
mod restic;

use std::path::{Path, PathBuf};

use mover_base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::{Program, Usage, compare_trees, drop_caches, sync};
use crate::data::{Dataset, Files};

/// Passphrase of all repositories: they hold generated data and live for a minute.
const PASSPHRASE: &str = "benchmark data is no secret";

/// A program that backs up and restores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tool {
    /// Helios Mover.
    Mover,
    /// pgBackRest, for PostgreSQL clusters only.
    Pgbackrest,
    /// The same, told to store small files together.
    PgbackrestBundled,
    /// restic.
    Restic,
    /// borg.
    Borg,
}

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Making the repository.
    Init,
    /// The first backup.
    Backup,
    /// A second backup of the same, unchanged data.
    BackupUnchanged,
    /// Restoring into an empty directory.
    Restore,
    /// Reading the repository and checking every block.
    Verify,
}

/// One timed run of a program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ToolRun {
    /// Which program.
    pub tool: Tool,
    /// Which step.
    pub step: Step,
    /// Counted from 1.
    pub repetition: u32,
    /// What it used.
    #[serde(flatten)]
    pub usage: Usage,
    /// A `sync` after it, in seconds: what the program left to the kernel.
    pub sync_seconds: f64,
    /// Bytes of the source's files.
    pub source_bytes: u64,
    /// Bytes of the repository after it.
    pub stored_bytes: u64,
    /// The program's own summary, if it prints one.
    pub detail: Option<Value>,
}

impl ToolRun {
    /// Source bytes per second of wall time.
    pub fn bytes_per_second(&self) -> f64 {
        self.source_bytes as f64 / self.usage.wall_seconds
    }

    /// CPU seconds per gigabyte (10^9 bytes) of the source.
    pub fn cpu_seconds_per_gb(&self) -> f64 {
        self.usage.cpu_seconds() * 1e9 / self.source_bytes.max(1) as f64
    }
}

/// Directories of one round.
#[derive(Debug)]
pub struct Round<'a> {
    /// Binary of the mover.
    pub mover: &'a Path,
    /// The data set.
    pub source: &'a Path,
    /// Where the repository is made.
    pub repo: PathBuf,
    /// Where the restore goes.
    pub target: PathBuf,
    /// Caches, locks and passphrase files.
    pub scratch: PathBuf,
}

impl<'a> Round<'a> {
    /// With its directories in `dir`, which is empty.
    ///
    /// # Errors
    /// `Target` where they cannot be made.
    pub fn new(mover: &'a Path, source: &'a Path, dir: &Path) -> Result<Self> {
        let round = Round {
            mover,
            source,
            repo: dir.join("repo"),
            target: dir.join("target"),
            scratch: dir.join("scratch"),
        };
        for path in [&round.target, &round.scratch] {
            std::fs::create_dir(path).map_err(|e| cannot_make(path, e))?;
        }
        Ok(round)
    }
}

impl Tool {
    /// All, the mover first.
    pub const ALL: [Tool; 5] = [
        Tool::Mover,
        Tool::Pgbackrest,
        Tool::PgbackrestBundled,
        Tool::Restic,
        Tool::Borg,
    ];

    /// Name for tables.
    pub fn title(self) -> &'static str {
        match self {
            Tool::Mover => "helios-mover",
            Tool::Pgbackrest => "pgBackRest",
            Tool::PgbackrestBundled => "pgBackRest, bundled",
            Tool::Restic => "restic",
            Tool::Borg => "borg",
        }
    }

    /// How it was told to work on a machine of so many cores, for the report.
    pub fn settings(self, cores: usize) -> String {
        match self {
            Tool::Mover => {
                "defaults: AES-256-GCM, zstd 3, one shard per core, decode-and-compare on"
                    .to_owned()
            }
            Tool::Pgbackrest => format!(
                "process-max {cores}, zstd 3, AES-256-CBC, offline full backup; each file stored by itself, which is its default"
            ),
            Tool::PgbackrestBundled => {
                "the same with --repo1-bundle, which stores small files together".to_owned()
            }
            Tool::Restic => {
                "repository version 2, compression auto (zstd default), AES-256-CTR with Poly1305, no cache"
                    .to_owned()
            }
            Tool::Borg => "repokey-blake2 (AES-256-CTR with BLAKE2b), zstd 3".to_owned(),
        }
    }

    /// Whether it can back this data up.
    pub fn takes(self, dataset: Dataset) -> bool {
        !self.is_pgbackrest() || dataset == Dataset::Pg
    }

    /// Whether it is pgBackRest, however it was told to work.
    fn is_pgbackrest(self) -> bool {
        matches!(self, Tool::Pgbackrest | Tool::PgbackrestBundled)
    }

    /// The steps it is measured on, in order.
    pub fn steps(self) -> &'static [Step] {
        match self {
            Tool::Mover => &[
                Step::Init,
                Step::Backup,
                Step::BackupUnchanged,
                Step::Restore,
                Step::Verify,
            ],
            _ => &[Step::Init, Step::Backup, Step::Restore],
        }
    }

    fn program(self, step: Step, round: &Round<'_>) -> Result<Program> {
        match self {
            Tool::Mover => mover::program(step, &format!("file://{}", round.repo.display()), round),
            Tool::Pgbackrest => Ok(pgbackrest::program(step, round, false)),
            Tool::PgbackrestBundled => Ok(pgbackrest::program(step, round, true)),
            Tool::Restic => Ok(restic::program(step, round)),
            Tool::Borg => Ok(borg::program(step, round)),
        }
    }

    /// Which part of the target must equal which part of the source, as sub-directories.
    fn compared(self, round: &Round<'_>) -> (PathBuf, PathBuf) {
        match self {
            // restic puts the whole path below the target.
            Tool::Restic => {
                let inside = round.source.strip_prefix("/").unwrap_or(round.source);
                (round.source.to_path_buf(), round.target.join(inside))
            }
            // pgBackRest writes recovery settings beside the tables.
            Tool::Pgbackrest | Tool::PgbackrestBundled => {
                (round.source.join("base"), round.target.join("base"))
            }
            _ => (round.source.to_path_buf(), round.target.clone()),
        }
    }
}

/// Runs all steps of a tool once in fresh directories below `work`, and removes these.
pub fn round(
    tool: Tool,
    repetition: u32,
    mover: &Path,
    source: &Path,
    work: &Path,
    mut done: impl FnMut(&ToolRun),
) -> Result<Vec<ToolRun>> {
    let dir = tempfile::tempdir_in(work).map_err(|e| cannot_make(work, e))?;
    let round = Round::new(mover, source, dir.path())?;
    let source_bytes = Files::list(source)?.bytes();
    let mut runs = Vec::new();
    for step in tool.steps() {
        let program = tool.program(*step, &round)?;
        drop_caches()?;
        let (usage, printed) = program.timed()?;
        let run = ToolRun {
            tool,
            step: *step,
            repetition,
            usage,
            sync_seconds: sync(),
            source_bytes,
            stored_bytes: Files::list(&round.repo)
                .map(|files| files.bytes())
                .unwrap_or(0),
            detail: (tool == Tool::Mover)
                .then(|| mover::detail(&printed))
                .flatten(),
        };
        done(&run);
        runs.push(run);
        // Once is enough: repetitions run the same program on the same data.
        if *step == Step::Restore && repetition == 1 {
            compare(tool, &round)?;
        }
    }
    dir.close().map_err(|e| cannot_make(work, e))?;
    Ok(runs)
}

fn compare(tool: Tool, round: &Round<'_>) -> Result<()> {
    let (source, target) = tool.compared(round);
    let left_out: &[&str] = match tool.is_pgbackrest() {
        // Caches that the server makes anew.
        true => &["pg_internal.init", "pgsql_tmp"],
        false => &[],
    };
    compare_trees(tool.title(), &source, &target, left_out)
}

pub(crate) fn cannot_make(path: &Path, error: std::io::Error) -> Error {
    Error::new(
        Kind::Target,
        "a working directory cannot be made or removed",
    )
    .object(path.display().to_string())
    .cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_keep_their_names_in_results() {
        let names = Tool::ALL.map(|tool| serde_json::to_string(&tool).unwrap());
        let kept = [
            "\"mover\"",
            "\"pgbackrest\"",
            "\"pgbackrest_bundled\"",
            "\"restic\"",
            "\"borg\"",
        ];
        assert_eq!(names, kept);
    }

    #[test]
    fn pgbackrest_is_measured_with_and_without_bundles_on_clusters_only() {
        let on = |dataset| {
            let all = Tool::ALL.into_iter();
            all.filter(move |tool| tool.takes(dataset) && tool.is_pgbackrest())
                .count()
        };
        assert_eq!((on(Dataset::Pg), on(Dataset::Rows)), (2, 0));
    }
}
