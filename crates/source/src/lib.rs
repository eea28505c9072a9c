//! What is backed up, and what a restore is written to: directory trees of database files, and page stores with
//! their write-ahead log.
//!
//! Invariants of trees: names and metadata go through here, file contents never do (the data path reads and writes
//! through the descriptors that this crate hands out). Every name is resolved beneath a held directory
//! descriptor without following symbolic links, on both sides; only the path that the operator gave for
//! the tree itself may contain them. A source that changes while it is read is an error, never a silent mix.
//! A target is either the whole restored tree or recognisably unfinished.

mod adopt;
mod attributes;
mod beneath;
pub mod delta;
mod dir;
pub mod disk;
mod durability;
mod exclude;
mod failure;
mod granule;
mod holes;
mod in_place;
mod limits;
mod marker;
mod memory;
mod metadata;
mod occupied;
pub mod page;
pub mod pages;
mod plan;
pub mod redo;
mod remove;
mod scan;
mod staging;
mod target;
pub mod tracker;
pub mod wal;
mod wire;

pub use dir::DirSource;
pub use failure::{source_error, target_error};
pub use holes::{DataRanges, HOLES_UNKNOWN, RANGES_MAX, data_ranges, first_hole};
pub use plan::{ExtraCount, TargetMode, TargetPlan};
pub use remove::{Inode, holds_repository};
pub use scan::{Item, NAMES_BYTES_DEFAULT, ScanOptions, SkipReason, Skipped, Stamp, Totals, Tree};
pub use target::{DirTarget, Finished, WARNINGS_MAX};

/// Marks a directory whose restore is not finished; its presence at the top of a tree makes a backup of
/// that tree fail and a restore into it ask for delta mode. While the restore lives it is locked.
pub const RESTORE_MARKER: &str = ".helios-mover-restore-in-progress";

/// Begins the name of a staging directory made inside the target, and is part of one made beside it. 16 hexadecimal
/// digits follow; a directory of such a name at the top of a tree is neither backed up nor restored.
pub const PARTIAL_PREFIX: &str = ".helios-mover-partial-";
