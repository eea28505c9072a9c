//! The bytes of log and page store: frozen samples, properties, hostile input.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod golden;
mod properties;
mod samples;
