//! Log, page store and database against the model: damage, crashes, kills, extraction.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod crash;
mod damage;
mod extract;
mod kill;
mod support;
mod writer;
