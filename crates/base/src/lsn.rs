//! Log sequence numbers: positions in the stream of a write-ahead log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A position in the log, in bytes from its beginning; docs/wal-format.md says what counts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The part of the log that a backup stands on: consistent from `end` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LsnRange {
    /// First position that the backup covers.
    pub start: Lsn,
    /// Position from which the restored state is consistent; not before `start`.
    pub end: Lsn,
}
