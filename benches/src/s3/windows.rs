//! How well a rate limit holds: the rate in every window of five seconds.
//!
//! Invariants: windows begin at each sample; a window counts against the lower bound only where the transfer was under way
//! from its beginning to its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mover_base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::link::{Counters, HEADER_BYTES, counters};

/// Between two samples.
const EVERY: Duration = Duration::from_millis(100);
/// Length of a window.
const WINDOW_SECONDS: f64 = 5.0;
/// A limit is meant to hold in every window to this share of it.
const TOLERANCE: f64 = 0.03;
/// Of all bytes, so many are passed over at either end where a rate is held against its lower bound: before and behind the
/// packs come small requests.
const ENDS_SHARE: f64 = 0.01;

/// Payload bytes by time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since the first sample.
    pub seconds: f64,
    /// Payload of TCP so far.
    pub bytes: f64,
}

/// The rates of all windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Windows {
    /// Windows that were looked at.
    pub count: usize,
    /// Highest rate of any window, in bytes per second.
    pub max_bytes_per_second: f64,
    /// When that window began, in seconds from the program's start.
    pub max_at_seconds: Option<f64>,
    /// Lowest rate of a window in which the transfer was under way throughout.
    pub min_bytes_per_second: f64,
    /// When that window began.
    pub min_at_seconds: Option<f64>,
    /// When 99 of 100 bytes had passed.
    pub end_seconds: Option<f64>,
    /// Windows whose rate was further than 3 % from the limit: none where there was no limit, and in results of up to
    /// 2026-11-30, which keep the worst windows alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside_count: Option<usize>,
}

impl Windows {
    /// Of samples in order of time, held against a limit in bytes per second if there was one; `None` where no window fits.
    pub fn of(samples: &[Sample], limit: Option<f64>) -> Option<Self> {
        let total = samples.last()?.bytes - samples.first()?.bytes;
        let base = samples.first()?.bytes;
        let (low, high) = (total * ENDS_SHARE, total * (1.0 - ENDS_SHARE));
        let is_end = |sample: &&Sample| sample.bytes - base >= high;
        let mut windows = Windows {
            count: 0,
            max_bytes_per_second: 0.0,
            max_at_seconds: None,
            min_bytes_per_second: f64::INFINITY,
            min_at_seconds: None,
            end_seconds: samples.iter().find(is_end).map(|sample| sample.seconds),
            outside_count: limit.map(|_| 0),
        };
        for (at, begin) in samples.iter().enumerate() {
            let fits = |end: &&Sample| end.seconds - begin.seconds >= WINDOW_SECONDS;
            let Some(end) = samples[at..].iter().find(fits) else {
                break;
            };
            let rate = (end.bytes - begin.bytes) / (end.seconds - begin.seconds);
            windows.count += 1;
            if rate > windows.max_bytes_per_second {
                (windows.max_bytes_per_second, windows.max_at_seconds) =
                    (rate, Some(begin.seconds));
            }
            let is_inside = begin.bytes - base >= low && end.bytes - base <= high;
            if is_inside && rate < windows.min_bytes_per_second {
                (windows.min_bytes_per_second, windows.min_at_seconds) =
                    (rate, Some(begin.seconds));
            }
            if let (Some(limit), Some(outside)) = (limit, &mut windows.outside_count) {
                let is_below = is_inside && rate < limit * (1.0 - TOLERANCE);
                let is_above = rate > limit * (1.0 + TOLERANCE);
                *outside += usize::from(is_below || is_above);
            }
        }
        windows.min_bytes_per_second.is_finite().then_some(windows)
    }

    /// The larger of the deviations to either side of `limit`, as a share of it.
    pub fn worst_deviation(&self, limit: f64) -> f64 {
        let above = self.max_bytes_per_second / limit - 1.0;
        let below = 1.0 - self.min_bytes_per_second / limit;
        above.max(below)
    }
}

/// Takes samples of the link while `work` runs: what went towards the far end, and what came from there.
///
/// # Errors
/// Those of the work; [`Kind::CheckFailed`] where the link's counters cannot be read.
pub fn while_sampling<T>(
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<Sample>, Vec<Sample>)> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(&is_over));
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        let sampled = sampler
            .join()
            .map_err(|_| Error::new(Kind::Internal, "the sampling thread panicked"))?;
        let (sent, received) = sampled?;
        Ok((done?, sent, received))
    })
}

fn sample(is_over: &AtomicBool) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let start = Instant::now();
    loop {
        let now: Counters = counters()?;
        let seconds = start.elapsed().as_secs_f64();
        let add = |to: &mut Vec<Sample>, bytes: u64, packets: u64| {
            let bytes = bytes.saturating_sub(packets * HEADER_BYTES) as f64;
            to.push(Sample { seconds, bytes });
        };
        add(&mut sent, now.sent_bytes, now.sent_packets);
        add(&mut received, now.received_bytes, now.received_packets);
        if is_over.load(Ordering::Relaxed) {
            return Ok((sent, received));
        }
        std::thread::sleep(EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rate: impl Fn(usize) -> f64) -> Vec<Sample> {
        let mut bytes = 0.0;
        (0..200)
            .map(|at| {
                bytes += rate(at) * 0.1;
                Sample {
                    seconds: at as f64 * 0.1,
                    bytes,
                }
            })
            .collect()
    }

    #[test]
    fn an_even_rate_has_no_deviation_and_pauses_at_the_ends_are_none() {
        let even = Windows::of(&samples(|_| 100.0), None).unwrap();
        assert!(even.worst_deviation(100.0) < 1e-9, "{even:?}");
        let idle = |at| if (20..180).contains(&at) { 100.0 } else { 0.0 };
        let with_ends = Windows::of(&samples(idle), None).unwrap();
        assert!(with_ends.worst_deviation(100.0) < 1e-9, "{with_ends:?}");
        assert!(Windows::of(&samples(|_| 100.0)[..40], None).is_none());
    }

    #[test]
    fn a_burst_and_a_gap_of_a_second_show() {
        let burst = |at| {
            if (90..100).contains(&at) {
                200.0
            } else {
                100.0
            }
        };
        let found = Windows::of(&samples(burst), None).unwrap();
        assert!(
            (found.max_bytes_per_second - 120.0).abs() < 1e-6,
            "{found:?}"
        );
        let gap = |at| if (90..100).contains(&at) { 0.0 } else { 100.0 };
        let found = Windows::of(&samples(gap), None).unwrap();
        assert!(
            (found.worst_deviation(100.0) - 0.2).abs() < 1e-6,
            "{found:?}"
        );
    }

    #[test]
    fn windows_that_miss_the_limit_are_counted_to_either_side() {
        let outside = |rate: fn(usize) -> f64, limit| {
            let found = Windows::of(&samples(rate), limit);
            found.and_then(|windows| windows.outside_count)
        };
        assert_eq!(outside(|_| 100.0, None), None);
        assert_eq!(outside(|_| 100.0, Some(100.0)), Some(0));
        assert_eq!(outside(|_| 100.0, Some(98.0)), Some(0));
        // All that begin early enough to end; those at the ends do not count against the lower bound.
        let above = outside(|_| 100.0, Some(90.0)).unwrap();
        let below = outside(|_| 100.0, Some(110.0)).unwrap();
        assert!(above > below && below > 100, "{above} {below}");
        // A tenth of a second at nine times the rate is 16 % more in each of the windows that it lies in.
        let burst = |at: usize| if at == 100 { 900.0 } else { 100.0 };
        let touched = outside(burst, Some(100.0)).unwrap();
        assert!((49..=51).contains(&touched), "{touched}");
    }
}
