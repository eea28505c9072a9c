//! The jobs from end to end, in process, on a real disk: what comes back is compared with what the standard
//! library read before, never with what the mover says of itself.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod dedup;
mod delta;
mod engine;
mod expire;
mod fixture;
mod forged;
mod hostile;
mod keys;
mod maps;
mod overlap;
mod page_store;
mod sessions;
mod slips;
mod strays;
