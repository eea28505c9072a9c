//! The block change tracker: which pages changed since a position of the log, without reading the log.
//!
//! The database marks the pages of a transaction before it appends the transaction to the log ([`Attached`]); a backup
//! ends an epoch and takes what was marked in it ([`Epochs`]). The format, the protocol and why it holds are in
//! docs/tracker-format.md.
//!
//! ```text
//! tracker/state                    which epochs there are, and what is claimed of them   (replaced whole)
//! tracker/live                     the marks of the running epoch, mapped by both sides
//! tracker/<start>-<number>.epoch   the marks of an ended epoch
//! tracker/witness                  which backups were taken of this line of the log      (replaced whole)
//! ```
//!
//! Invariants: **no mark is ever lost**: what [`Epochs::changed`] answers names every page that a record of the range
//! changed, and perhaps more. What the live file cannot vouch for is read from the log; what the log has no more is
//! claimed no longer, and asking for it gives [`Invalid`] with the reason. No transaction waits for a backup or fails because
//! of one; opening and closing wait ten seconds at most for others, and longer only where the marks are in doubt and the log
//! is read. Files, descriptors and memory are bounded by the constants here.

mod attach;
mod doubt;
mod epoch_file;
mod epochs;
mod hold;
mod live;
mod state;
mod witness;

pub use attach::{Attached, Attachment};
pub use doubt::{Doubt, Invalid, Reset};
pub use epoch_file::EpochHeader;
pub use epochs::{Changed, Epochs, Switched};
pub use hold::LogHold;
pub use live::{Capacity, LIVE_FILE, LiveHeader, Marking};
pub use state::{KEPT_MAX, Kept, STATE_FILE, TrackerState};
pub use witness::{WITNESS_FILE, WITNESSES_MAX, Witness};

/// The directory of the tracker in a page store.
pub const TRACKER_DIR: &str = "tracker";
/// The one version of the format that there is.
pub const TRACKER_VERSION: u16 = 1;
