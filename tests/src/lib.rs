//! Harness of the end-to-end tests: scratch directories, the tool under test, trees and servers.
//!
//! Invariants: the tool is reached only through its command line; what it did is compared with a truth that
//! none of its code computed ([`tree`] walks and hashes by itself); every random choice comes from a seed
//! that is printed; whatever a test needs and does not find is a failure, never a skip.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

pub mod accounts;
pub mod blocks;
pub mod bucket;
pub mod clock;
pub mod disk;
pub mod io_uring_switch;
pub mod job;
pub mod mover;
pub mod nano;
pub mod pagedb;
pub mod plant;
pub mod postgres;
pub mod proof;
pub mod random;
pub mod run;
pub mod scratch;
pub mod source_text;
pub mod throttle;
pub mod tree;
pub mod workspace;
