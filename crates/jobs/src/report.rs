//! What a finished job tells: every figure of its summary, as plain data.
//!
//! Invariants: figures are measured, never derived from a setting; a figure that was not measured is absent. A job's time is that of
//! its plan and of its execution, as are the bytes that it says it read: what lies between the two, in which somebody may look at the
//! plan, is nobody's.

use mover_io::ShardReport;
use mover_repo::{LinkReport, StageSeconds};
use serde::Serialize;

use crate::machine::Clock;

/// What the machinery did for a job.
#[derive(Debug, Clone, Serialize)]
pub struct EngineReport {
    /// Wall time of the whole job, its plan included.
    pub seconds: f64,
    /// CPU time of the whole process in that time, user and system, in seconds.
    pub cpu_seconds: f64,
    /// Largest resident set of the process, in bytes (VmHWM).
    pub peak_rss_bytes: u64,
    /// Wall seconds in each stage, added over shards.
    pub stages: StageSeconds,
    /// What each shard did.
    pub shards: Vec<ShardFigures>,
    /// What went over the link to the repository; absent where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkReport>,
}

/// What was spent on a job so far, which is to be gone on with later.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    seconds: f64,
    cpu_seconds: f64,
}

impl Spent {
    /// What was spent since `clock` was started.
    pub fn since(clock: &Clock) -> Self {
        Spent {
            seconds: clock.seconds(),
            cpu_seconds: clock.cpu_seconds(),
        }
    }

    /// Adds what else was spent.
    pub fn add(&mut self, other: Spent) {
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
    }
}

impl EngineReport {
    /// The report of an execution as that of the whole job, for whose plan that was spent.
    pub(crate) fn with_plan(mut self, plan: Spent) -> Self {
        self.seconds += plan.seconds;
        self.cpu_seconds += plan.cpu_seconds;
        self
    }
}

/// What one shard did for a job.
#[derive(Debug, Clone, Serialize)]
pub struct ShardFigures {
    /// Rung, buffers, bytes, busy share. Of a backup that copies twice, the tables of a page store and then its log, it is that of the
    /// run which moved more; files, bytes and requests of the other one are added.
    #[serde(flatten)]
    pub report: ShardReport,
    /// Its wall seconds in each stage, of all runs.
    pub stages: StageSeconds,
}

impl ShardFigures {
    /// Bytes that were read and written.
    pub(crate) fn moved_bytes(&self) -> u64 {
        self.report
            .read_bytes
            .saturating_add(self.report.written_bytes)
    }

    /// Adds those of another run on a shard of the same index, which moved less. What is said of the machinery and of latencies stays
    /// that of this one: of two runs neither could be told from a mixture.
    pub(crate) fn add_lesser(&mut self, other: &ShardFigures) {
        self.stages.add(&other.stages);
        let (report, other) = (&mut self.report, &other.report);
        report.direct_files += other.direct_files;
        report.buffered_files += other.buffered_files;
        report.read_bytes += other.read_bytes;
        report.written_bytes += other.written_bytes;
        report.reads += other.reads;
        report.writes += other.writes;
    }
}
