//! Tests of the repository format from outside: frozen samples, properties, hostile bytes.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

mod golden;
mod hostile;
mod properties;
mod samples;
