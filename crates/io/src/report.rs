//! What a shard did and by which means, as a report for people and for benchmarks.
//!
//! Invariants: counters only grow; latency histograms have a fixed size, values above their range count as the
//! largest.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
use mover_base::{Error, Kind, Result};
use rustix::io::Errno;

use crate::config::Rung;
use crate::shard::Shard;

/// Longest latency told apart: slower requests count as this.
const LATENCY_MAX_US: u64 = 120_000_000;

/// Significant decimal digits of latencies: 1 % is finer than any disk repeats, at about 50 KiB a histogram.
const LATENCY_DIGITS: u8 = 2;

/// Latency histograms of a shard in microseconds, from the hand-over to the kernel to the completion's arrival.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Reads, one value per request to the kernel.
    pub reads: Histogram<u64>,
    /// Writes, one value per request to the kernel.
    pub writes: Histogram<u64>,
}

impl Latency {
    fn new() -> Self {
        let empty = || {
            Histogram::new_with_bounds(1, LATENCY_MAX_US, LATENCY_DIGITS)
                .unwrap_or_else(|error| unreachable!("constant bounds are valid: {error}"))
        };
        Latency {
            reads: empty(),
            writes: empty(),
        }
    }
}

/// Quantiles of a latency histogram, in microseconds; zeros if nothing was measured.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct LatencySummary {
    /// Median.
    pub p50_us: u64,
    /// 99 % are not slower.
    pub p99_us: u64,
    /// 99.9 % are not slower.
    pub p999_us: u64,
    /// The slowest.
    pub max_us: u64,
    /// All of them, as [`encode_histogram`] writes them; only where the run was asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histogram: Option<String>,
}

impl LatencySummary {
    /// The quantiles of a histogram, and the histogram itself if it `is_kept`.
    fn of(histogram: &Histogram<u64>, is_kept: bool) -> Self {
        // No job makes so many requests that their count could not be written. If one did, its quantiles would still be told.
        let text = is_kept.then(|| encode_histogram(histogram).ok()).flatten();
        LatencySummary {
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
            histogram: text,
        }
    }
}

/// A histogram in the exchange format of HdrHistogram (V2, deflated, base64), which its libraries and plotters of every
/// language read: some hundred bytes to a few KiB.
///
/// # Errors
/// [`Kind::Internal`] where a count is beyond `i64::MAX`.
pub fn encode_histogram(histogram: &Histogram<u64>) -> Result<String> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .map_err(|error| {
            Error::new(Kind::Internal, "a histogram cannot be written").cause(error)
        })?;
    Ok(STANDARD.encode(bytes))
}

/// What one shard did so far, and by which means.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ShardReport {
    /// Index of the shard.
    pub shard: usize,
    /// The core it is pinned to; none if it is not pinned.
    pub core: Option<usize>,
    /// Whether it asks disks for little at a time and lets other programs have the cores first.
    pub gentle: bool,
    /// How requests reach the kernel.
    pub rung: Rung,
    /// Why a better rung is not in use; none if the wished one is.
    pub rung_reason: Option<String>,
    /// Whether the arena is registered with the ring.
    pub buffers_registered: bool,
    /// Files opened for direct I/O.
    pub direct_files: u64,
    /// Files that go through the page cache, by wish or because the file system refused direct I/O.
    pub buffered_files: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written, zero padding included.
    pub written_bytes: u64,
    /// Read requests that the kernel completed.
    pub reads: u64,
    /// Write requests that the kernel completed.
    pub writes: u64,
    /// CPU time of the shard's thread (and its pool, on the last rung), without kernel workers.
    pub cpu_seconds: f64,
    /// Time since the shard started.
    pub wall_seconds: f64,
    /// `cpu_seconds / wall_seconds`.
    pub busy_share: f64,
    /// Latency of reads.
    pub read_latency: LatencySummary,
    /// Latency of writes.
    pub write_latency: LatencySummary,
}

/// Requests whose futures were dropped before they completed, by how they ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Orphans {
    /// The kernel did not do them.
    pub cancelled: u64,
    /// The kernel did them, so that it read or wrote their memory when nobody waited any more.
    pub completed: u64,
}

impl Shard {
    /// What became of requests whose futures were dropped in flight.
    pub fn orphans(&self) -> Orphans {
        self.0.driver.stats.orphans.get()
    }
}

/// Counters behind the report.
pub(crate) struct Stats {
    pub(crate) direct_files: Cell<u64>,
    pub(crate) buffered_files: Cell<u64>,
    pub(crate) read_bytes: Cell<u64>,
    pub(crate) written_bytes: Cell<u64>,
    pub(crate) reads: Cell<u64>,
    pub(crate) writes: Cell<u64>,
    /// Completions that matched no request: always zero unless the kernel or the driver is broken.
    pub(crate) stale_completions: Cell<u64>,
    orphans: Cell<Orphans>,
    pub(crate) latency: RefCell<Latency>,
}

impl Stats {
    pub(crate) fn new() -> Self {
        Stats {
            direct_files: Cell::new(0),
            buffered_files: Cell::new(0),
            read_bytes: Cell::new(0),
            written_bytes: Cell::new(0),
            reads: Cell::new(0),
            writes: Cell::new(0),
            stale_completions: Cell::new(0),
            orphans: Cell::default(),
            latency: RefCell::new(Latency::new()),
        }
    }

    /// Latencies of reads and of writes so far, with their histograms if these `are_kept`.
    pub(crate) fn latency_summaries(&self, are_kept: bool) -> [LatencySummary; 2] {
        let latency = self.latency.borrow();
        [&latency.reads, &latency.writes].map(|histogram| LatencySummary::of(histogram, are_kept))
    }

    /// Counts a completed read of `bytes`.
    pub(crate) fn count_read(&self, bytes: u64, took: Duration) {
        add(&self.reads, 1);
        add(&self.read_bytes, bytes);
        self.latency
            .borrow_mut()
            .reads
            .saturating_record(micros(took));
    }

    /// Counts a completed write of `bytes`.
    pub(crate) fn count_write(&self, bytes: u64, took: Duration) {
        add(&self.writes, 1);
        add(&self.written_bytes, bytes);
        self.latency
            .borrow_mut()
            .writes
            .saturating_record(micros(took));
    }

    /// Counts a request that nobody waited for any more when it completed with `result`.
    pub(crate) fn count_orphan(&self, result: i32) {
        let refusals = [Errno::CANCELED, Errno::INTR].map(|errno| -errno.raw_os_error());
        let mut orphans = self.orphans.get();
        if result >= 0 {
            orphans.completed += 1;
        } else if refusals.contains(&result) {
            orphans.cancelled += 1;
        }
        self.orphans.set(orphans);
    }
}

/// Adds to a counter.
pub(crate) fn add(counter: &Cell<u64>, more: u64) {
    counter.set(counter.get().wrapping_add(more));
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// CPU time that the calling thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;

    use super::*;

    fn decoded(summary: &LatencySummary) -> Histogram<u64> {
        let text = summary.histogram.as_deref().unwrap();
        let bytes = STANDARD.decode(text).unwrap();
        Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .unwrap()
    }

    #[test]
    fn a_kept_histogram_holds_every_count() {
        let stats = Stats::new();
        for took in (1..3000).chain([77_000, 77_000, 1_500_000]) {
            stats.count_read(4096, Duration::from_micros(took));
        }
        let [reads, writes] = stats.latency_summaries(true);
        let back = decoded(&reads);
        let counts = |histogram: &Histogram<u64>| -> Vec<(u64, u64)> {
            let steps = histogram.iter_recorded();
            steps
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect()
        };
        let measured = stats.latency.borrow();
        assert_eq!(counts(&back), counts(&measured.reads));
        assert_eq!(back, measured.reads);
        assert_eq!(back.len(), stats.reads.get());
        assert_eq!(
            (back.low(), back.high(), back.sigfig()),
            (1, LATENCY_MAX_US, LATENCY_DIGITS)
        );
        // What is told beside it is what it gives.
        assert_eq!(LatencySummary::of(&back, true), reads);
        assert_ne!(reads, writes);
    }

    #[test]
    fn an_empty_histogram_is_kept_as_one() {
        let stats = Stats::new();
        for summary in stats.latency_summaries(true) {
            let back = decoded(&summary);
            assert!(back.is_empty());
            assert_eq!(back, stats.latency.borrow().writes);
            let zeros = LatencySummary {
                histogram: summary.histogram.clone(),
                ..LatencySummary::default()
            };
            assert_eq!(summary, zeros);
        }
    }

    #[test]
    fn what_is_beyond_the_slowest_is_kept_as_that() {
        let stats = Stats::new();
        stats.count_write(4096, Duration::MAX);
        stats.count_write(4096, Duration::from_micros(LATENCY_MAX_US));
        let [_, writes] = stats.latency_summaries(true);
        let back = decoded(&writes);
        assert_eq!((back.len(), back.count_at(LATENCY_MAX_US)), (2, 2));
        assert!(back.max() >= LATENCY_MAX_US);
        assert_eq!(back.max(), writes.max_us);
    }

    #[test]
    fn nobody_is_told_a_histogram_unasked() {
        let stats = Stats::new();
        stats.count_read(4096, Duration::from_micros(100));
        for are_kept in [false, true] {
            for summary in stats.latency_summaries(are_kept) {
                let fields = serde_json::to_value(summary).unwrap();
                assert_eq!(fields.get("histogram").is_some(), are_kept, "{fields}");
                assert!(fields["p999_us"].is_u64(), "{fields}");
            }
        }
    }
}
