//! Shards: the runtime of the data path, and the only crate with threads and `unsafe`.
//!
//! A [`Shard`] is one thread that owns everything it touches: a current-thread tokio runtime, an
//! io_uring, and an arena of 1 MiB buffers. Nothing is shared between shards but the [`Stop`] flag and one
//! padded cell per shard and [`RateBudget`].
//!
//! Invariants:
//! - **Memory handed to the kernel stays alive and untouched until the kernel is done with it.** The slab of
//!   the driver owns buffer and file of every request from submission to completion. A dropped future only
//!   marks its request as orphaned and asks the kernel to cancel it. A shard ends only when nothing is in flight.
//! - **The arena is the queue bound.** A task that needs a buffer waits in line for one, so memory and requests
//!   in flight are finite whatever the task asks for.
//! - **Every fallback gives the same bytes.** [`Rung`] ladder, registered or plain buffers, direct or buffered
//!   files differ in speed alone, and the [`ShardReport`] says which was in use.

mod ahead;
mod aligned;
mod alloc;
mod arena;
mod budget;
mod config;
mod driver;
mod file;
mod mapping;
mod pool;
mod priority;
mod queue;
mod random;
mod report;
mod ring;
mod run;
mod shard;
mod slab;
mod stop;
#[cfg(test)]
mod tests;

pub use ahead::{AHEAD_BYTES, Ahead};
pub use aligned::AlignedBytes;
pub use alloc::HugeAlloc;
pub use arena::{BUF_BYTES, Buf};
pub use budget::RateBudget;
pub use config::{GENTLE_REQUEST_BYTES, Rung, ShardConfig};
pub use file::{Access, BLOCK_BYTES, File};
pub use mapping::{FileWords, SharedWords};
pub use random::random_bytes;
pub use report::{Latency, LatencySummary, ShardReport, encode_histogram};
pub use run::run;
pub use shard::Shard;
pub use stop::Stop;
