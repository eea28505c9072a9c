//! Vocabulary of Helios Mover: ids, positions, units, time, checksums, file-tree entries and errors.
//!
//! Invariants: nothing here does I/O, starts a thread or reads the clock behind the caller's back (the
//! one ambient read is [`time::Timestamp::now`], which is named for it). Every crate may import this one;
//! it imports none of the others.

pub mod checksum;
pub mod entries;
pub mod error;
pub mod hex;
pub mod id;
pub mod lsn;
pub mod time;
pub mod tree;
pub mod units;

pub use error::{Error, Kind, Result};
pub use id::{BackupId, HistoryId, HoldId, ObjectId, PackId, RepoId, SessionId, SlotId, SystemId};
pub use lsn::{Lsn, LsnRange};
pub use time::Timestamp;
pub use units::BLOCK_BYTES;
