//! The write-ahead log: records in segments, a writer that a database embeds, readers, and what to do after a crash.
//!
//! The format, with all rules, is docs/wal-format.md. [`record`] and [`segment`] are the bytes; `stream` lays records
//! out and `walk` reads them in order; [`Writer`], [`LogReader`], [`find_end`] and [`find_end_beside_writer`] work on files.
//!
//! Invariants: the log holds whole transactions only, each one contiguous; a position, once acknowledged, always
//! holds the same bytes; a reader hands out nothing that it has not checked.

pub mod record;
pub mod segment;

mod live_end;
mod reader;
mod stream;
mod tail;
mod walk;
mod writer;

pub use live_end::{clear_behind, find_end_beside_writer};
pub use reader::{LogReader, Verify};
pub use record::{Group, Record, TableKind};
pub use segment::{Fork, LSN_MAX, LogIdentity, SegmentSize};
pub use tail::{LogEnd, clean, find_end, find_end_behind, segments};
pub use writer::{Appended, PENDING_BYTES_MAX, Writer};

pub(crate) use writer::begin;
