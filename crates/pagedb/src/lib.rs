//! A reference database for tests, benches and the tool's `demo`: rows in pages, concurrent transactions, fuzzy
//! checkpoints, crashes; and what judges it.
//!
//! Invariants: [`model`] knows the contents by rows and shares no code with pages, log and redo; every random choice
//! comes from a seed; memory is bounded by the sizes that a test asks for.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

pub mod bulk;
pub mod database;
pub mod heap;
pub mod model;
pub mod random;
pub mod shop;
pub mod sim_disk;
pub mod truth;
pub mod workload;

pub use bulk::Bulk;
pub use database::{Database, Options};
pub use model::{Contents, Journal};
pub use shop::Shop;
pub use sim_disk::SimDisk;
pub use truth::{Comparison, Truth};
pub use workload::{Op, Workload};
