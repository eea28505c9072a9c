//! Figures of transfers: what one run moved, and how long its requests took.
//!
//! Invariants: a rate is bytes of objects per second of wall time; latencies are kept in HDR histograms of three digits.

use std::time::Duration;

use hdrhistogram::Histogram;
use mover_base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::latency::Latencies;

/// Reads of one byte for the times to the first byte: so many that the slowest in a thousand is one of them.
pub const FIRST_BYTE_READS: usize = 1000;
/// Longest latency told apart, in microseconds.
const LATENCY_MAX_US: u64 = 600_000_000;

/// What a transfer by this package's own program did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Bytes of objects.
    pub bytes: u64,
    /// From the start of the first request to the end of the last, in seconds.
    pub loop_seconds: f64,
    /// Requests whose time was taken.
    pub requests: u64,
    /// Their times.
    pub latency: Latencies,
}

impl Moved {
    /// From the histogram of all requests.
    ///
    /// # Errors
    /// [`Kind::Internal`] where nothing was moved: that would make any rate look good.
    pub fn new(bytes: u64, loop_seconds: f64, latency: &Histogram<u64>) -> Result<Self> {
        if bytes == 0 {
            return Err(Error::new(Kind::Internal, "a transfer moved nothing"));
        }
        Ok(Moved {
            bytes,
            loop_seconds,
            requests: latency.len(),
            latency: Latencies::of(latency)?,
        })
    }
}

/// An empty histogram of microseconds.
///
/// # Errors
/// None for these bounds.
pub fn new_histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
        .map_err(|e| Error::new(Kind::Internal, "a histogram cannot be made").cause(e))
}

/// Adds a time.
///
/// # Errors
/// None: a time beyond the bound counts as the bound.
pub fn record(histogram: &mut Histogram<u64>, time: Duration) -> Result<()> {
    let us = (time.as_micros() as u64).clamp(1, LATENCY_MAX_US);
    histogram
        .record(us)
        .map_err(|e| Error::new(Kind::Internal, "a time cannot be recorded").cause(e))
}
