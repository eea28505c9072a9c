//! What a database links: the hook of the block change tracker.
//!
//! ```text
//! let (tracker, _) = Tracker::open(directory, identity, end_of_log, &catalogue)?;   // after recovery
//! let mut marking = tracker.begin();                                                // for each transaction
//! marking.mark_many(pages);
//! let end = log.append(transaction)?;
//! marking.end(end);
//! log.flush_to(end)?;
//! tracker.durable(end);
//! tracker.close(end)?;                                                              // when it stops
//! ```
//!
//! Invariants: marking takes no lock, waits for nobody and cannot fail, whatever a backup does meanwhile. A database may
//! run without a tracker at any time: what it does not mark is read from its log.

use std::path::Path;
use std::sync::Arc;

use mover_base::Result;
use mover_source::disk::DirDisk;
use mover_source::tracker::Attached;

pub use mover_base::Lsn;
pub use mover_source::pages::Catalogue;
pub use mover_source::tracker::{Attachment, Capacity, Doubt, Marking, Reset};
pub use mover_source::wal::LogIdentity;

/// A database's hold on its tracker. Shared by the threads of the database.
#[derive(Debug)]
pub struct Tracker(Attached);

impl Tracker {
    /// Takes up the tracker of the store in `directory`, or makes it: when the log is recovered, ends at `end`, and nothing was
    /// appended yet. Room is made for the tables of `catalogue` to double.
    ///
    /// # Errors
    /// `Conflict` if another process marks, or works on the tracker for longer than ten seconds; `Source` or
    /// `Storage` if its files cannot be read or written. The database may then run without.
    pub fn open(
        directory: &Path,
        identity: LogIdentity,
        end: Lsn,
        catalogue: &Catalogue,
    ) -> Result<(Tracker, Attachment)> {
        Self::with_capacity(directory, identity, end, Capacity::of(catalogue))
    }

    /// The same with room for a stated number of bitmaps.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn with_capacity(
        directory: &Path,
        identity: LogIdentity,
        end: Lsn,
        capacity: Capacity,
    ) -> Result<(Tracker, Attachment)> {
        let disk = Arc::new(DirDisk::open(directory)?);
        let (attached, found) = Attached::open(disk, identity, end, capacity)?;
        Ok((Tracker(attached), found))
    }

    /// Begins a transaction's marks, which all go to one epoch. To be called before the transaction is appended.
    pub fn begin(&self) -> Marking<'_> {
        self.0.begin()
    }

    /// The log is durable up to `lsn`. To be called after a flush.
    pub fn durable(&self, lsn: Lsn) {
        self.0.durable(lsn);
    }

    /// Ends the epoch when the database stops, so that its marks outlast the machine. The log is durable and ends at `end`.
    ///
    /// # Errors
    /// As for [`open`](Self::open). The marks still count until the machine is started anew.
    pub fn close(self, end: Lsn) -> Result<()> {
        self.0.close(end)
    }
}
