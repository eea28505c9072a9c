//! The verbs of the mover, one module each: plan what would be done, then execute the plan.
//!
//! Invariants: a plan changes nothing; an execution that fails or is cancelled leaves nothing half-visible; every
//! figure in a summary was measured.

pub mod annotate;
pub mod backup;
pub mod catalogue;
pub mod check;
pub mod choice;
mod estimate;
pub mod expire;
mod extents;
mod fill;
pub mod hold;
pub mod init;
pub mod key;
mod log_work;
pub mod machine;
mod overlap;
pub mod progress;
pub mod report;
pub mod restore;
mod session;
pub mod settings;
mod settle;
pub mod verify;

pub use choice::{Choice, Whose, source_on};
pub use mover_io::{RateBudget, Rung, ShardReport, Stop};
pub use mover_repo::{
    BackupMetadata, BackupType, COMPRESSION_LEVEL_DEFAULT, COMPRESSION_LEVELS, Credentials,
    LinkLimits, Secret, SourceInfo,
};
pub use progress::Progress;
pub use settings::{Engine, JobLimits, RepoAccess, Tick};
pub use settle::Settled;
