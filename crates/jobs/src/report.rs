//! What a finished job tells: every figure of its summary, as plain data.
//!
//! Invariants: figures are measured, never derived from a setting; a figure that was not measured is absent.

use mover_io::ShardReport;
use mover_repo::{LinkReport, StageSeconds};
use serde::Serialize;

/// What the machinery did for a job.
#[derive(Debug, Clone, Serialize)]
pub struct EngineReport {
    /// Wall time of the whole job.
    pub seconds: f64,
    /// CPU time of the whole process, user and system, in seconds.
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

/// What one shard did for a job.
#[derive(Debug, Clone, Serialize)]
pub struct ShardFigures {
    /// Rung, buffers, bytes, busy share.
    #[serde(flatten)]
    pub report: ShardReport,
    /// Its wall seconds in each stage, those after the bulk of a backup included, which the report does not cover.
    pub stages: StageSeconds,
}
