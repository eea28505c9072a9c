//! Trees on real file systems: what a scan finds, what changes it notices, what a restore makes of it.
//!
//! Invariants: the truth comes from elsewhere (`find`, std, raw system calls), never from the code under
//! test. What needs root (owners, devices, mounts) says so and fails without it.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod in_place;
mod metadata;
mod roundtrip;
mod scan;
mod support;
mod target;
