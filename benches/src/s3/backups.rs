//! The mover's own backup and restore, with a local repository and with one in S3, in turn.
//!
//! Invariants: source and restored tree are on the disk for all of them; a server's data is in memory; caches are emptied
//! before each step; what is restored first is compared with the source, byte by byte.

use std::path::Path;

use mover_base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::servers::{Server, ServerKind};
use super::transfers::Places;
use crate::command::{Program, Usage, compare_trees, drop_caches};
use crate::data::Files;
use crate::stats::turns;
use crate::tools::{Round, Step, cannot_make, mover};

/// Where the repository is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepoPlace {
    /// On the disk.
    Local,
    /// In S3.
    S3(ServerKind),
}

impl RepoPlace {
    const ALL: [RepoPlace; 3] = [
        RepoPlace::Local,
        RepoPlace::S3(ServerKind::Sink),
        RepoPlace::S3(ServerKind::Garage),
    ];

    /// Name for tables.
    pub fn title(self) -> String {
        match self {
            RepoPlace::Local => "local".to_owned(),
            RepoPlace::S3(server) => format!("S3, {}", server.title()),
        }
    }
}

/// One timed step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupRun {
    /// Where the repository is.
    pub place: RepoPlace,
    /// Backup or restore.
    pub step: Step,
    /// Counted from 1.
    pub repetition: u32,
    /// What the mover used.
    #[serde(flatten)]
    pub usage: Usage,
    /// Bytes of the source's files.
    pub source_bytes: u64,
    /// Bytes that went to the repository, or came from it.
    pub moved_bytes: u64,
    /// What the server used meanwhile, in CPU seconds.
    pub server_cpu_seconds: Option<f64>,
    /// The mover's summary.
    pub detail: Option<Value>,
}

impl BackupRun {
    /// Source bytes per second of wall time.
    pub fn bytes_per_second(&self) -> f64 {
        self.source_bytes as f64 / self.usage.wall_seconds
    }
}

/// All places in turn, so many times.
///
/// # Errors
/// Those of the mover; [`Kind::CheckFailed`] where it restored something else than it backed up.
pub fn measure(
    places: &Places,
    binary: &Path,
    source: &Path,
    work: &Path,
    repetitions: u32,
    mut done: impl FnMut(&BackupRun),
) -> Result<Vec<BackupRun>> {
    let mut runs = Vec::new();
    for repetition in 1..=repetitions {
        for place in turns(&RepoPlace::ALL, repetition) {
            let job = Job {
                places,
                binary,
                source,
                work,
                place,
                repetition,
            };
            for run in job.run()? {
                done(&run);
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

struct Job<'a> {
    places: &'a Places,
    binary: &'a Path,
    source: &'a Path,
    work: &'a Path,
    place: RepoPlace,
    repetition: u32,
}

impl Job<'_> {
    fn run(&self) -> Result<Vec<BackupRun>> {
        let disk = tempfile::tempdir_in(self.work).map_err(|e| cannot_make(self.work, e))?;
        let memory = &self.places.memory;
        let memory = tempfile::tempdir_in(memory).map_err(|e| cannot_make(memory, e))?;
        let round = Round::new(self.binary, self.source, disk.path())?;
        let source_bytes = Files::list(self.source)?.bytes();
        let server = match self.place {
            RepoPlace::Local => None,
            RepoPlace::S3(kind) => Some(Server::start(
                kind,
                self.places.servers(),
                memory.path(),
                source_bytes,
                None,
            )?),
        };
        let url = match &server {
            Some(server) => server.access.url("repo", ""),
            None => format!("file://{}", round.repo.display()),
        };
        let mut runs = Vec::new();
        for step in [Step::Init, Step::Backup, Step::Restore] {
            let program = mover::program(step, &url, &round)?;
            let program = with_keys(program, server.as_ref());
            drop_caches()?;
            let before = server.as_ref().map(Server::cpu_seconds).transpose()?;
            let (usage, printed) = program.timed()?;
            let after = server.as_ref().map(Server::cpu_seconds).transpose()?;
            if step == Step::Init {
                continue;
            }
            let detail = mover::detail(&printed);
            runs.push(BackupRun {
                place: self.place,
                step,
                repetition: self.repetition,
                usage,
                source_bytes,
                moved_bytes: moved_bytes(step, detail.as_ref())?,
                server_cpu_seconds: after.zip(before).map(|(after, before)| after - before),
                detail,
            });
        }
        if self.repetition == 1 {
            compare_trees("helios-mover", self.source, &round.target, &[])?;
        }
        Ok(runs)
    }
}

/// The program, with what the server wants to know of it.
pub(super) fn with_keys(program: Program, server: Option<&Server>) -> Program {
    let variables = server.map(|server| server.access.variables());
    let variables = variables.into_iter().flatten();
    variables.fold(program, |program, (name, value)| program.env(name, value))
}

/// Bytes that the mover says went to the repository, or came from it.
pub(super) fn moved_bytes(step: Step, detail: Option<&Value>) -> Result<u64> {
    let name = match step {
        Step::Restore => "bytes_read",
        _ => "bytes_stored",
    };
    detail
        .and_then(|detail| detail[name].as_u64())
        .ok_or_else(|| Error::new(Kind::Internal, "the mover's summary has no figure").object(name))
}
