//! What a shard did and by which means, as a report for people and for benchmarks.
//!
//! Invariants: counters only grow; latency histograms have a fixed size, values above their range count as the
//! largest.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use hdrhistogram::Histogram;
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct LatencySummary {
    /// Median.
    pub p50_us: u64,
    /// 99 % are not slower.
    pub p99_us: u64,
    /// 99.9 % are not slower.
    pub p999_us: u64,
    /// The slowest.
    pub max_us: u64,
}

impl From<&Histogram<u64>> for LatencySummary {
    fn from(histogram: &Histogram<u64>) -> Self {
        LatencySummary {
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
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
