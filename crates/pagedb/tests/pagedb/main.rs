//! Log, page store, database and tracker against the model: damage, crashes, kills, extraction, marks.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod beside_writer;
mod crash;
mod damage;
mod extract;
mod kill;
mod log_holds;
mod log_watch;
mod support;
mod tracker;
mod tracker_disk;
mod tracker_doubt;
mod tracker_kill;
mod writer;
