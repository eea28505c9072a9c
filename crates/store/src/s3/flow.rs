//! How much a shard asks of the server at a time, and how it gives way.
//!
//! Invariants: requests in flight never exceed the limit, which stays between one and the shard's share of the
//! connections; it grows by one per round of answers and is halved when the server says that it is overloaded or
//! stops answering (additive increase, multiplicative decrease, as TCP does; Chiu and Jain 1989); while answers
//! take several times as long as they did at best, more in flight would only wait in line, so the limit shrinks by
//! steps and does not grow (the sign that TCP Vegas goes by; Brakmo and Peterson 1995); all cuts are a second
//! apart; tries after the first are paid for from a budget that successes and time refill, so a failing server
//! is never met with more and more requests; the pause before a try is drawn from the full range up to an
//! exponential bound, so that clients do not come back in step.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::multipart::PART_BYTES;
use crate::RUN_BYTES_MAX;

/// First bound of the pause before another try, and the largest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// Tries that a shard may make without a success in between; a server that is restarted while all connections are
/// busy takes about a dozen each.
const TRIES_SAVED_MAX: f64 = 600.0;
/// What a success, and a second, give back.
const TRIES_PER_SUCCESS: f64 = 0.2;
const TRIES_PER_SECOND: f64 = 4.0;
/// Between two cuts of the limit: what is in flight was sent under the old one.
const CUT_EVERY: Duration = Duration::from_secs(1);
/// Answers from which the slow ones are told, and how many are remembered.
const LATENCIES_MIN: usize = 32;
const LATENCIES_KEPT: usize = 256;
/// Answers whose median says whether requests wait in line, and how many such medians are remembered: what the
/// server could do at best a while ago is no measure for ever.
const LINE_ANSWERS: usize = 16;
const LINE_MEDIANS_KEPT: usize = 64;
/// They wait in line where the median is this much longer than the best one, and longer than a blink.
const LINE_FACTOR: u32 = 4;
const LINE_MIN: Duration = Duration::from_millis(50);
/// What is left of the limit then. Two in flight keep a link busy between one answer and the next request.
const LINE_CUT: f64 = 0.8;
const LINE_LIMIT_MIN: f64 = 2.0;
/// An answer is slow that takes longer than this, and longer than twice what 98 of 100 took.
const SLOW_MIN: Duration = Duration::from_millis(500);
const SLOW_SHARE: usize = 98;
/// From this length on a body takes its time by its length: a write that bears one is an upload.
pub(super) const LONG_BYTES_MIN: u64 = 1 << 20;
/// Times of long bodies are compared as if all were so long, which is the longest part of an upload, and run.
const LONG_BYTES_MAX: u64 = PART_BYTES as u64;
const _: () = assert!(LONG_BYTES_MAX == RUN_BYTES_MAX);

/// What a request does, for its latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Asks for bytes or names.
    Read,
    /// Changes something.
    Write,
    /// Writes so many bytes, which take most of the time.
    Upload(u64),
}

impl Class {
    /// That of a write with a body of this length.
    pub fn of_write(bytes: u64) -> Self {
        match bytes {
            LONG_BYTES_MIN.. => Class::Upload(bytes),
            _ => Class::Write,
        }
    }
}

/// A shard's flow of requests.
pub(super) struct Flow {
    max: f64,
    limit: Cell<f64>,
    in_flight: Cell<usize>,
    freed: Notify,
    last_cut: Cell<Option<Instant>>,
    tries: Cell<f64>,
    tries_at: Cell<Instant>,
    reads: RefCell<Latencies>,
    writes: RefCell<Latencies>,
    uploads: RefCell<Latencies>,
    downloads: RefCell<Latencies>,
}

/// The right to have one request in flight.
pub(super) struct Permit(Rc<Flow>);

impl Flow {
    /// At most `max` requests at a time.
    pub fn new(max: usize) -> Rc<Self> {
        Rc::new(Flow {
            max: max.max(1) as f64,
            limit: Cell::new(max.max(1) as f64),
            in_flight: Cell::new(0),
            freed: Notify::new(),
            last_cut: Cell::new(None),
            tries: Cell::new(TRIES_SAVED_MAX),
            tries_at: Cell::new(Instant::now()),
            reads: RefCell::default(),
            writes: RefCell::default(),
            uploads: RefCell::default(),
            downloads: RefCell::default(),
        })
    }

    /// Waits for a place in the flow.
    pub async fn permit(self: &Rc<Self>) -> Permit {
        while self.in_flight.get() as f64 >= self.limit.get().floor() {
            self.freed.notified().await;
        }
        self.in_flight.set(self.in_flight.get() + 1);
        Permit(Rc::clone(self))
    }

    /// An answer came, its first byte after `latency`.
    pub fn answered(&self, class: Class, latency: Duration, now: Instant) {
        self.refill(TRIES_PER_SUCCESS);
        let is_line = match class {
            Class::Read => self.reads.borrow_mut().add(latency),
            Class::Write => self.writes.borrow_mut().add(latency),
            Class::Upload(bytes) => {
                self.uploads.borrow_mut().add(of_longest(latency, bytes));
                self.writes.borrow_mut().add(latency)
            }
        };
        let limit = self.limit.get();
        // Only a limit that was felt says anything when it was kept to, with harm or without.
        if (self.in_flight.get() as f64) + 1.0 < limit {
            return;
        }
        if is_line {
            self.cut_to((limit * LINE_CUT).max(LINE_LIMIT_MIN.min(limit)), now);
            return;
        }
        self.limit.set((limit + 1.0 / limit).min(self.max));
        self.freed.notify_one();
    }

    /// The server is overloaded, or does not answer.
    pub fn cut(&self, now: Instant) {
        self.cut_to((self.limit.get() / 2.0).max(1.0), now);
    }

    fn cut_to(&self, limit: f64, now: Instant) {
        let is_recent = self
            .last_cut
            .get()
            .is_some_and(|last| now.saturating_duration_since(last) < CUT_EVERY);
        if !is_recent {
            self.last_cut.set(Some(now));
            self.limit.set(limit);
        }
    }

    /// Pays for another try. False: the budget is used up.
    pub fn pay_for_try(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.tries_at.replace(now));
        self.refill(since.as_secs_f64() * TRIES_PER_SECOND);
        let tries = self.tries.get();
        if tries < 1.0 {
            return false;
        }
        self.tries.set(tries - 1.0);
        true
    }

    /// Whether there are tries to spare for requests that are only late.
    pub fn has_tries_to_spare(&self) -> bool {
        self.tries.get() >= TRIES_SAVED_MAX / 2.0
    }

    /// How long an answer of this class may take before it is better asked for again.
    pub fn slow_after(&self, class: Class) -> Option<Duration> {
        let latencies = match class {
            Class::Read => &self.reads,
            Class::Write => &self.writes,
            Class::Upload(_) => &self.uploads,
        };
        latencies.borrow().slow_after()
    }

    /// The body of an answer came, `bytes` long, within `time` of its head.
    pub fn brought(&self, bytes: u64, time: Duration) {
        if bytes >= LONG_BYTES_MIN {
            let mut downloads = self.downloads.borrow_mut();
            downloads.add(of_longest(time, bytes));
        }
    }

    /// How long a body may take, whatever its length, before its rest is better asked for again.
    pub fn slow_body_after(&self) -> Option<Duration> {
        self.downloads.borrow().slow_after()
    }

    fn refill(&self, tries: f64) {
        self.tries
            .set((self.tries.get() + tries).min(TRIES_SAVED_MAX));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.freed.notify_one();
    }
}

/// What a body of `bytes` that took `time` would take if it were as long as any.
fn of_longest(time: Duration, bytes: u64) -> Duration {
    time.mul_f64(LONG_BYTES_MAX as f64 / bytes.max(1) as f64)
}

/// Pause before try number `retry` (0 is the first after a failure), for a random number of 64 bits.
pub(super) fn pause_before(retry: u32, random: u64) -> Duration {
    let bound = PAUSE_FIRST
        .saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX))
        .min(PAUSE_MAX);
    bound.mul_f64(random as f64 / u64::MAX as f64)
}

/// The last answers' times, what is slow by them, and whether requests wait in line.
#[derive(Default)]
struct Latencies {
    last: VecDeque<Duration>,
    answers: usize,
    slow_after: Option<Duration>,
    medians: VecDeque<Duration>,
    is_line: bool,
}

impl Latencies {
    /// Returns whether requests wait in line.
    fn add(&mut self, latency: Duration) -> bool {
        push_bounded(&mut self.last, latency, LATENCIES_KEPT);
        // Sorting now and then is cheaper than keeping order, and neither bound need be fresh.
        self.answers += 1;
        if self.answers.is_multiple_of(LATENCIES_MIN) {
            let usual = quantile(&self.last, self.last.len(), SLOW_SHARE);
            self.slow_after = usual.map(|usual| (usual * 2).max(SLOW_MIN));
        }
        if self.answers.is_multiple_of(LINE_ANSWERS) {
            let median = quantile(&self.last, LINE_ANSWERS, 50).unwrap_or_default();
            push_bounded(&mut self.medians, median, LINE_MEDIANS_KEPT);
            let best = self.medians.iter().min().copied().unwrap_or_default();
            self.is_line = median > (best * LINE_FACTOR).max(LINE_MIN);
        }
        self.is_line
    }

    fn slow_after(&self) -> Option<Duration> {
        self.slow_after
    }
}

fn push_bounded(queue: &mut VecDeque<Duration>, value: Duration, len_max: usize) {
    if queue.len() >= len_max {
        queue.pop_front();
    }
    queue.push_back(value);
}

/// What `percent` of the last `count` did not exceed.
fn quantile(all: &VecDeque<Duration>, count: usize, percent: usize) -> Option<Duration> {
    let mut sorted: Vec<Duration> = all.iter().rev().take(count).copied().collect();
    sorted.sort_unstable();
    let at = sorted.len() * percent / 100;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn the_limit_is_halved_once_a_second_and_never_below_one() {
        let flow = Flow::new(16);
        let start = Instant::now();
        flow.cut(start);
        flow.cut(at(start, 500));
        assert_eq!(flow.limit.get(), 8.0);
        for second in 1..10 {
            flow.cut(at(start, second * 1000));
        }
        assert_eq!(flow.limit.get(), 1.0);
    }

    #[test]
    fn the_limit_grows_by_one_a_round_and_only_where_it_is_felt() {
        let flow = Flow::new(16);
        flow.limit.set(4.0);
        let start = Instant::now();
        flow.answered(Class::Read, Duration::from_millis(1), start);
        assert_eq!(flow.limit.get(), 4.0, "nothing else was in flight");
        flow.in_flight.set(4);
        for _ in 0..4 {
            flow.answered(Class::Read, Duration::from_millis(1), start);
        }
        assert!((4.9..5.01).contains(&flow.limit.get()));
        for _ in 0..1000 {
            flow.in_flight.set(flow.limit.get() as usize);
            flow.answered(Class::Read, Duration::from_millis(1), start);
        }
        assert_eq!(flow.limit.get(), 16.0);
    }

    #[test]
    fn tries_run_out_and_come_back() {
        let flow = Flow::new(1);
        let start = Instant::now();
        flow.tries_at.set(start);
        let paid = (0..2000).filter(|_| flow.pay_for_try(start)).count();
        assert_eq!(paid, TRIES_SAVED_MAX as usize);
        assert!(!flow.has_tries_to_spare());
        assert!(!flow.pay_for_try(start));
        assert!(flow.pay_for_try(at(start, 1000)));
        for _ in 0..10 {
            flow.answered(Class::Write, Duration::ZERO, start);
        }
        assert!(flow.pay_for_try(at(start, 1000)));
    }

    #[test]
    fn who_is_late_leaves_half_of_the_tries_to_who_failed() {
        let flow = Flow::new(1);
        let start = Instant::now();
        flow.tries_at.set(start);
        let spare = (0..2000).filter(|_| flow.has_tries_to_spare() && flow.pay_for_try(start));
        assert_eq!(spare.count(), TRIES_SAVED_MAX as usize / 2 + 1);
        assert!(flow.pay_for_try(start));
    }

    #[test]
    fn slow_is_what_takes_twice_as_long_as_nearly_all() {
        let flow = Flow::new(1);
        assert_eq!(flow.slow_after(Class::Read), None);
        for answer in 0..64_u64 {
            let latency = Duration::from_millis(300 + answer);
            flow.answered(Class::Read, latency, Instant::now());
        }
        let slow = flow.slow_after(Class::Read).unwrap();
        assert!((720..=726).contains(&slow.as_millis()), "{slow:?}");
        assert_eq!(flow.slow_after(Class::Write), None);
    }

    #[test]
    fn an_upload_is_slow_by_what_uploads_take_for_their_length() {
        let flow = Flow::new(1);
        let long = Class::of_write(LONG_BYTES_MAX);
        for answer in 0..64_u64 {
            // Small writes are quick, and say nothing about long ones.
            let small = Class::of_write(LONG_BYTES_MIN - 1);
            flow.answered(small, Duration::from_millis(1), Instant::now());
            assert_eq!(flow.slow_after(long).is_some(), answer >= 32, "{answer}");
            // A half takes half as long.
            let half = Class::of_write(LONG_BYTES_MAX / 2);
            flow.answered(half, Duration::from_millis(400), Instant::now());
        }
        assert_eq!(flow.slow_after(long), Some(Duration::from_millis(1600)));
    }

    #[test]
    fn a_body_is_slow_by_what_long_bodies_take_for_their_length() {
        let flow = Flow::new(1);
        for _ in 0..LATENCIES_MIN {
            flow.brought(LONG_BYTES_MIN - 1, Duration::from_secs(9));
            assert_eq!(flow.slow_body_after(), None, "short ones say nothing");
            flow.brought(LONG_BYTES_MAX / 4, Duration::from_millis(100));
        }
        assert_eq!(flow.slow_body_after(), Some(Duration::from_millis(800)));
    }

    /// Rounds of answers, a second apart, of a server that works on one request at a time, each for `of_one`: latency
    /// follows the limit.
    fn rounds(flow: &Flow, start: Instant, rounds: u64, of_one: Duration) {
        for round in 0..rounds {
            for _ in 0..LINE_ANSWERS {
                let in_flight = flow.limit.get() as usize;
                flow.in_flight.set(in_flight);
                let now = start + CUT_EVERY * round as u32;
                flow.answered(Class::Write, of_one * in_flight as u32, now);
            }
        }
    }

    #[test]
    fn the_limit_shrinks_while_requests_wait_in_line_and_stays_above_one() {
        let flow = Flow::new(64);
        let (start, of_one) = (Instant::now(), Duration::from_millis(30));
        // What the server does at best is known from quiet times.
        for _ in 0..LINE_ANSWERS {
            flow.answered(Class::Write, of_one, start);
        }
        rounds(&flow, start, 40, of_one);
        let limit = flow.limit.get();
        assert!(
            (LINE_LIMIT_MIN..8.0).contains(&limit),
            "{limit}: 64 in flight take 64 times as long"
        );
        // It is free again.
        rounds(&flow, start, 400, Duration::from_micros(100));
        assert_eq!(flow.limit.get(), 64.0);
    }

    #[test]
    fn short_waits_and_limits_that_nobody_feels_are_left_alone() {
        let flow = Flow::new(8);
        let start = Instant::now();
        for latency_ms in [1, 40] {
            for _ in 0..10 * LINE_ANSWERS {
                flow.in_flight.set(8);
                flow.answered(Class::Read, Duration::from_millis(latency_ms), start);
            }
        }
        assert_eq!(flow.limit.get(), 8.0, "40 ms is a blink");
        for _ in 0..10 * LINE_ANSWERS {
            flow.in_flight.set(1);
            flow.answered(Class::Read, Duration::from_secs(1), start);
        }
        assert_eq!(flow.limit.get(), 8.0, "two in flight are no crowd");
    }

    proptest! {
        #[test]
        fn pauses_fill_the_whole_range_up_to_a_growing_bound(retry in 0..200_u32, random: u64) {
            let pause = pause_before(retry, random);
            let bound = PAUSE_FIRST.saturating_mul(1 << retry.min(10)).min(PAUSE_MAX);
            prop_assert!(pause <= bound);
            prop_assert!(pause_before(retry, u64::MAX) == bound);
            prop_assert!(pause_before(retry, 0) == Duration::ZERO);
        }
    }
}
