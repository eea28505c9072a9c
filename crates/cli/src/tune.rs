//! Tuning: profiles as data, the machine as it is, and the difference between the two.
//!
//! Invariants: reading changes nothing; what cannot be read is reported as not available and never as good.

pub mod compare;
pub mod probe;
pub mod profile;
