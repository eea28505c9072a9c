//! Measurement of Helios Mover: data sets, rooflines, the tool itself, its peers and the reports.
//!
//! Invariants: every figure is measured on data that this package made from a seed, each rate is bytes of the
//! source per second of wall time, and each result carries the facts of the machine it was measured on.

pub mod chart;
pub mod command;
pub mod commits;
pub mod cores;
pub mod data;
pub mod dedup;
pub mod disk;
pub mod extraction;
pub mod latency;
pub mod machine;
pub mod marking;
pub mod report;
pub mod results;
pub mod rows;
pub mod run;
pub mod s3;
pub mod stages;
pub mod stats;
pub mod tools;
pub mod tracker;
