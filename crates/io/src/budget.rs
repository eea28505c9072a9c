//! Rate budgets: token buckets whose rate is shared by the shards of a run.
//!
//! A shard accrues credit at its share of the rate, in plain cells, and a demand passes when it is paid in full.
//! About every 100 ms the coordinator reads how much credit each shard accrued, and sets the shares: what a shard
//! did not use goes to those that wait. Shard and coordinator meet in one padded line of atomics.
//!
//! Invariants:
//! - The coordinator accounts for all credit that was issued. What it issued too little or too much, because shares
//!   were idle or ticks late, it makes up for through the shares, up to [`CARRY_SECONDS`] of the rate.
//! - So credit issued in any window of T seconds is within `rate * (T ± 0.05)`, and what passes differs from that by
//!   no more than the burst ([`BURST_SECONDS`]) and one demand per shard: 3 % of 5 s. Late ticks can make it less, when
//!   a shard falls idle, and not more.
//! - A demand that is dropped while it waits is forgiven, and those behind it move up.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

/// Stands for "no limit".
const UNLIMITED: u64 = u64::MAX;

/// Credit that a shard may save up, in seconds of its share: smooths the scheduler's jitter.
const BURST_SECONDS: f64 = 0.025;

/// Unused rate that the coordinator carries over, in seconds of the rate.
const CARRY_SECONDS: f64 = 0.05;

/// Overdrawn rate that the coordinator remembers, in seconds of the rate; more comes from a clock that jumped.
const DEBT_SECONDS: f64 = 0.5;

/// Parts of a byte, or of a request, in which accrued credit is told.
const PARTS: f64 = 1024.0;

/// Time over which the carried rate is given out, or taken back.
const CARRY_HORIZON_SECONDS: f64 = 0.5;

/// Room for growth of a shard that uses less than it has, as a factor of its use.
const GROWTH: f64 = 1.25;

/// Rebalancing more often than this says nothing about use (several runs may share a budget).
const REBALANCE_MIN: Duration = Duration::from_millis(50);

/// After this long without the coordinator, whose ticks may wait for a terminal that takes nothing, a shard that waits does its
/// work: it may have a share of zero.
const REBALANCE_MAX: Duration = Duration::from_millis(300);

/// Bounds of the pause before a waiting demand looks again: the timer's resolution; and a fraction of a tick, so
/// that a new share or rate acts soon.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// A rate in bytes per second, shared by all shards that throttle by it. Can be changed while a job runs.
pub struct RateBudget {
    bytes_per_second: AtomicU64,
    /// How often the rate was set.
    settings: AtomicU64,
    accounts: Mutex<Accounts>,
}

/// What a shard and the coordinator tell each other. Alone on its pair of cache lines, so that no other shard's
/// traffic slows this shard's.
#[repr(align(128))]
#[derive(Default)]
struct Line {
    /// Bytes per second that the shard may accrue, the bits of an `f64`: of a rate of a few requests per second a shard's share
    /// is a fraction of one. Written by the coordinator.
    share_bits: AtomicU64,
    /// What the shard has accrued in its life, in parts of a byte ([`PARTS`]). Written by the shard.
    issued_parts: AtomicU64,
    /// Whether a demand waits. Written by the shard.
    waiting: AtomicBool,
}

impl Line {
    fn set_share(&self, share: f64) {
        self.share_bits.store(share.to_bits(), Ordering::Relaxed);
    }
}

/// The coordinator's books.
struct Accounts {
    lines: Vec<Account>,
    balanced_at: Instant,
    /// Bytes not issued so far though the rate allowed them; negative: issued too much.
    carry: f64,
}

struct Account {
    line: Arc<Line>,
    seen: u64,
}

impl RateBudget {
    /// A budget of so many bytes per second; `None` is unlimited, and 0 lets nothing pass.
    pub fn new(bytes_per_second: Option<u64>) -> Arc<Self> {
        Self::starting(bytes_per_second, Instant::now())
    }

    fn starting(bytes_per_second: Option<u64>, now: Instant) -> Arc<Self> {
        Arc::new(RateBudget {
            bytes_per_second: AtomicU64::new(bytes_per_second.unwrap_or(UNLIMITED)),
            settings: AtomicU64::new(0),
            accounts: Mutex::new(Accounts {
                lines: Vec::new(),
                balanced_at: now,
                carry: 0.0,
            }),
        })
    }

    /// Changes the rate. Acts within a few milliseconds on demands that wait already.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        self.set_at(bytes_per_second, Instant::now());
    }

    /// The rate in bytes per second; `None` is unlimited.
    pub fn get(&self) -> Option<u64> {
        match self.bytes_per_second.load(Ordering::Relaxed) {
            UNLIMITED => None,
            rate => Some(rate),
        }
    }

    /// Whether there is no limit.
    pub fn is_unlimited(&self) -> bool {
        self.get().is_none()
    }

    fn set_at(&self, bytes_per_second: Option<u64>, now: Instant) {
        let mut accounts = self.accounts();
        self.bytes_per_second
            .store(bytes_per_second.unwrap_or(UNLIMITED), Ordering::Relaxed);
        accounts.restart(self.get(), now);
        self.settings.fetch_add(1, Ordering::Release);
    }

    /// Reads the use of all shards and sets their shares anew.
    fn rebalance(&self, now: Instant) {
        self.rebalance_after(REBALANCE_MIN, now);
    }

    /// The coordinator's work, where it has not been done for long.
    pub(crate) fn rebalance_if_late(&self, now: Instant) {
        self.rebalance_after(REBALANCE_MAX, now);
    }

    fn rebalance_after(&self, pause: Duration, now: Instant) {
        let mut accounts = self.accounts();
        if now.saturating_duration_since(accounts.balanced_at) >= pause {
            accounts.rebalance(self.get(), now);
        }
    }

    fn join(&self, now: Instant) -> Arc<Line> {
        let line = Arc::new(Line::default());
        let mut accounts = self.accounts();
        accounts.lines.push(Account {
            line: Arc::clone(&line),
            seen: 0,
        });
        accounts.split_evenly(self.get(), now);
        line
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for RateBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RateBudget({:?})", self.get())
    }
}

impl Accounts {
    /// Books what was issued since the last time. Returns the bytes per second that each shard accrued.
    fn settle(&mut self, rate: Option<u64>, now: Instant) -> Vec<f64> {
        let seconds = now
            .saturating_duration_since(self.balanced_at)
            .as_secs_f64();
        self.balanced_at = now;
        let mut total = 0.0;
        let mut used = Vec::with_capacity(self.lines.len());
        self.lines.retain_mut(|account| {
            // Read before the count of owners: a shard that has ended issues nothing after that.
            let ended = Arc::strong_count(&account.line) == 1;
            let issued = account.line.issued_parts.load(Ordering::Acquire);
            let fresh = issued.wrapping_sub(account.seen) as f64 / PARTS;
            account.seen = issued;
            total += fresh;
            if !ended {
                used.push(if seconds > 0.0 { fresh / seconds } else { 0.0 });
            }
            !ended
        });
        if let Some(rate) = rate {
            let rate = rate as f64;
            self.carry = (self.carry + rate * seconds - total)
                .clamp(-DEBT_SECONDS * rate, CARRY_SECONDS * rate);
        }
        used
    }

    fn rebalance(&mut self, rate: Option<u64>, now: Instant) {
        let used = self.settle(rate, now);
        let wants: Vec<f64> = self
            .lines
            .iter()
            .zip(&used)
            .map(|(account, used)| {
                if account.line.waiting.load(Ordering::Relaxed) {
                    f64::INFINITY
                } else {
                    used * GROWTH
                }
            })
            .collect();
        for (account, share) in self.lines.iter().zip(fill(self.total(rate), &wants)) {
            account.line.set_share(share);
        }
    }

    /// Equal shares, when nothing is known about the use yet.
    fn split_evenly(&mut self, rate: Option<u64>, now: Instant) {
        self.settle(rate, now);
        let share = self.total(rate) / self.lines.len().max(1) as f64;
        for account in &self.lines {
            account.line.set_share(share);
        }
    }

    /// A new rate: the books of the old one are closed.
    fn restart(&mut self, rate: Option<u64>, now: Instant) {
        self.settle(None, now);
        self.carry = 0.0;
        self.split_evenly(rate, now);
    }

    /// Bytes per second to share out until the next time.
    fn total(&self, rate: Option<u64>) -> f64 {
        match rate {
            Some(rate) => (rate as f64 + self.carry / CARRY_HORIZON_SECONDS).max(0.0),
            None => 0.0,
        }
    }
}

/// Shares `total` out: nobody gets less than an equal part unless it wants less; what is left after all wants are
/// met is spread evenly.
fn fill(total: f64, wants: &[f64]) -> Vec<f64> {
    let mut shares = vec![0.0; wants.len()];
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_by(|&a, &b| wants[a].total_cmp(&wants[b]));
    let mut rest = total;
    for (position, &index) in order.iter().enumerate() {
        let even = rest / (wants.len() - position) as f64;
        shares[index] = wants[index].min(even);
        rest -= shares[index];
    }
    let bonus = rest / wants.len().max(1) as f64;
    for share in &mut shares {
        *share += bonus;
    }
    shares
}

/// One shard's side of a budget.
pub(crate) struct Bucket {
    budget: Arc<RateBudget>,
    line: Arc<Line>,
    refilled_at: Cell<Instant>,
    /// Bytes accrued or forgiven, in the bucket's life.
    credited: Cell<f64>,
    /// Bytes accrued, in the bucket's life.
    issued: Cell<f64>,
    /// Bytes demanded, in the bucket's life.
    demanded: Cell<f64>,
    /// The setting of the rate that the saved credit is of.
    setting: Cell<u64>,
}

impl Bucket {
    pub(crate) fn new(budget: Arc<RateBudget>, now: Instant) -> Self {
        let setting = budget.settings.load(Ordering::Acquire);
        let line = budget.join(now);
        Bucket {
            budget,
            line,
            refilled_at: Cell::new(now),
            credited: Cell::new(0.0),
            issued: Cell::new(0.0),
            demanded: Cell::new(0.0),
            setting: Cell::new(setting),
        }
    }

    /// Queues a demand behind those that wait.
    pub(crate) fn demand(self: &Rc<Self>, bytes: u64, now: Instant) -> Demand {
        // What accrued while nothing was demanded must not exceed the burst, so it is booked first.
        self.refill(now);
        let end = self.demanded.get() + bytes as f64;
        self.demanded.set(end);
        self.publish();
        Demand {
            bucket: Rc::clone(self),
            end,
            bytes: bytes as f64,
            passed: false,
        }
    }

    fn share(&self) -> f64 {
        f64::from_bits(self.line.share_bits.load(Ordering::Relaxed))
    }

    /// Accrues credit up to now: as much as is demanded, and the burst.
    fn refill(&self, now: Instant) {
        let seconds = now
            .saturating_duration_since(self.refilled_at.get())
            .as_secs_f64();
        self.refilled_at.set(now);
        let setting = self.budget.settings.load(Ordering::Acquire);
        let share = self.share();
        if self.setting.replace(setting) != setting {
            // Saved at another rate: a burst of that may be many seconds of this one. Where a demand waits, nothing is saved.
            let saved_max = self.demanded.get() + share * BURST_SECONDS;
            self.credited.set(self.credited.get().min(saved_max));
        }
        let room = self.demanded.get() + share * BURST_SECONDS - self.credited.get();
        let more = (share * seconds).min(room.max(0.0));
        self.credited.set(self.credited.get() + more);
        self.issued.set(self.issued.get() + more);
    }

    fn publish(&self) {
        let waiting = self.demanded.get() > self.credited.get();
        self.line.waiting.store(waiting, Ordering::Relaxed);
        self.line
            .issued_parts
            .store((self.issued.get() * PARTS) as u64, Ordering::Release);
    }
}

/// A demand in the queue of its bucket.
pub(crate) struct Demand {
    bucket: Rc<Bucket>,
    /// What must be credited for this and all before it to be paid.
    end: f64,
    bytes: f64,
    passed: bool,
}

impl Demand {
    /// Ready once the demand is paid, or the budget has become unlimited.
    pub(crate) fn poll(&mut self, now: Instant) -> Poll<()> {
        if self.bucket.budget.is_unlimited() {
            return Poll::Ready(());
        }
        self.bucket.refill(now);
        self.bucket.publish();
        if self.bucket.credited.get() >= self.end {
            self.passed = true;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// When to look again.
    pub(crate) fn pause(&self) -> Duration {
        let missing = self.end - self.bucket.credited.get();
        let share = self.bucket.share();
        if share <= 0.0 {
            return PAUSE_MAX;
        }
        let seconds = (missing / share).clamp(PAUSE_MIN.as_secs_f64(), PAUSE_MAX.as_secs_f64());
        Duration::from_secs_f64(seconds)
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        if !self.passed {
            let bucket = &self.bucket;
            bucket.credited.set(bucket.credited.get() + self.bytes);
            bucket.publish();
        }
    }
}

/// The budgets that a run's shards use.
#[derive(Default)]
pub(crate) struct Budgets(Mutex<Vec<Arc<RateBudget>>>);

impl Budgets {
    /// Has the coordinator look after a budget, from the next tick on.
    pub(crate) fn add(&self, budget: &Arc<RateBudget>) {
        let mut budgets = self.lock();
        if !budgets.iter().any(|known| Arc::ptr_eq(known, budget)) {
            budgets.push(Arc::clone(budget));
        }
    }

    /// One tick of the coordinator.
    pub(crate) fn rebalance(&self, now: Instant) {
        for budget in self.lock().iter() {
            budget.rebalance(now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<RateBudget>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 100 << 20;
    const PIECE: u64 = 256 << 10;
    const STEP: Duration = Duration::from_millis(1);

    /// Whether a shard demands anything in a millisecond.
    type Busy = fn(u64) -> bool;

    /// A shard of the simulation: demands one piece after the other while `busy(ms)` says so.
    struct Sim {
        bucket: Rc<Bucket>,
        waiting: Option<Demand>,
        pieces_per_ms_max: usize,
        busy: Busy,
    }

    /// Runs shards in virtual time. Returns the bytes that passed in each millisecond.
    fn simulate(
        budget: &Arc<RateBudget>,
        sims: &mut [Sim],
        start: Instant,
        millis: u64,
        late: bool,
    ) -> Vec<u64> {
        let mut passed = vec![0; millis as usize];
        let mut tick = 100;
        for ms in 0..millis {
            let now = start + STEP * ms as u32;
            for sim in sims.iter_mut() {
                for _ in 0..sim.pieces_per_ms_max {
                    if sim.waiting.is_none() && (sim.busy)(ms) {
                        sim.waiting = Some(sim.bucket.demand(PIECE, now));
                    }
                    match sim.waiting.as_mut().map(|demand| demand.poll(now)) {
                        Some(Poll::Ready(())) => {
                            sim.waiting = None;
                            passed[ms as usize] += PIECE;
                        }
                        Some(Poll::Pending) | None => break,
                    }
                }
            }
            if ms == tick {
                budget.rebalance(now);
                tick += if late && ms % 700 == 0 { 400 } else { 100 };
            }
        }
        passed
    }

    fn sims(budget: &Arc<RateBudget>, start: Instant, busy: &[Busy]) -> Vec<Sim> {
        busy.iter()
            .map(|&busy| Sim {
                bucket: Rc::new(Bucket::new(Arc::clone(budget), start)),
                waiting: None,
                pieces_per_ms_max: 64,
                busy,
            })
            .collect()
    }

    /// Least and most bytes of all windows of 5 s.
    fn windows(passed: &[u64]) -> (u64, u64) {
        let sums: Vec<u64> = passed.windows(5000).map(|w| w.iter().sum()).collect();
        (
            sums.iter().copied().min().expect("windows"),
            sums.iter().copied().max().expect("windows"),
        )
    }

    fn assert_at_most(passed: &[u64], rate: u64) {
        let share = windows(passed).1 as f64 / (5.0 * rate as f64);
        assert!(share <= 1.03, "{share}");
    }

    fn assert_within_3_percent(passed: &[u64], rate: u64) {
        assert_at_most(passed, rate);
        let share = windows(passed).0 as f64 / (5.0 * rate as f64);
        assert!(share >= 0.97, "{share}");
    }

    #[test]
    fn totals_hold_whoever_is_busy() {
        let always: Busy = |_| true;
        let never: Busy = |_| false;
        let early: Busy = |ms| ms < 7000;
        let bursts: Busy = |ms| ms % 900 < 300;
        let flicker: Busy = |ms| ms % 37 < 9;
        let cases: [&[Busy]; 6] = [
            &[always],
            &[always, always, always],
            &[always, never, never, never],
            &[always, early],
            &[always, bursts, flicker, never],
            &[
                flicker, always, bursts, bursts, bursts, early, never, always,
            ],
        ];
        for busy in cases {
            for late in [false, true] {
                let start = Instant::now();
                let budget = RateBudget::starting(Some(RATE), start);
                let mut sims = sims(&budget, start, busy);
                let passed = simulate(&budget, &mut sims, start, 20_000, late);
                if late {
                    // A late tick leaves the share of a shard that fell idle unused; it never gives out too much.
                    assert_at_most(&passed, RATE);
                } else {
                    assert_within_3_percent(&passed, RATE);
                }
            }
        }
    }

    #[test]
    fn idle_time_saves_no_more_than_the_burst() {
        let start = Instant::now();
        let budget = RateBudget::starting(Some(RATE), start);
        let mut sims = sims(&budget, start, &[|ms| ms > 10_000, |ms| ms > 10_000]);
        let passed = simulate(&budget, &mut sims, start, 20_000, false);
        assert_at_most(&passed, RATE);
        let first: u64 = passed[10_000..10_050].iter().sum();
        assert!(first as f64 <= RATE as f64 * (0.05 + 0.05 + BURST_SECONDS) + PIECE as f64);
    }

    /// Requests are counted by the same budget, and there may be more shards than requests per second.
    #[test]
    fn a_rate_below_one_for_each_shard_is_shared_too() {
        for (shards, rate) in [(8, 4), (64, 1), (3, 5), (2, 1)] {
            let start = Instant::now();
            let budget = RateBudget::starting(Some(rate), start);
            let buckets: Vec<_> = (0..shards)
                .map(|_| Rc::new(Bucket::new(Arc::clone(&budget), start)))
                .collect();
            let mut waiting: Vec<Option<Demand>> = buckets.iter().map(|_| None).collect();
            let mut passed = 0;
            for ms in 0..200_000 {
                let now = start + STEP * ms;
                for (bucket, waiting) in buckets.iter().zip(&mut waiting) {
                    let demand = waiting.get_or_insert_with(|| bucket.demand(1, now));
                    if demand.poll(now).is_ready() {
                        *waiting = None;
                        passed += 1;
                    }
                }
                if ms % 100 == 0 {
                    budget.rebalance(now);
                }
            }
            // All shards wait for their next one at the end, each for less than a whole one.
            let due = 200 * rate;
            assert!(
                passed <= due + 1 && passed + shards >= due * 97 / 100,
                "{passed} of {due} passed on {shards} shards"
            );
        }
    }

    #[test]
    fn a_new_rate_holds_from_then_on() {
        let start = Instant::now();
        let budget = RateBudget::starting(Some(RATE / 50), start);
        let mut sims = sims(&budget, start, &[|_| true, |_| true]);
        simulate(&budget, &mut sims, start, 3000, false);
        let later = start + Duration::from_secs(3);
        budget.set_at(Some(RATE), later);
        let passed = simulate(&budget, &mut sims, later, 12_000, false);
        assert_within_3_percent(&passed, RATE);
        let last = later + Duration::from_secs(12);
        budget.set_at(Some(RATE / 10), last);
        let passed = simulate(&budget, &mut sims, last, 12_000, false);
        assert_within_3_percent(&passed, RATE / 10);
    }

    #[test]
    fn credit_saved_at_one_rate_is_no_burst_at_a_lower_one() {
        let start = Instant::now();
        let budget = RateBudget::starting(Some(RATE), start);
        let mut sims = sims(&budget, start, &[|ms| ms > 5000, |ms| ms > 5000]);
        simulate(&budget, &mut sims, start, 5000, false);
        let later = start + Duration::from_secs(5);
        budget.set_at(Some(RATE / 1000), later);
        for sim in &mut sims {
            sim.busy = |_| true;
        }
        let passed: u64 = simulate(&budget, &mut sims, later, 1000, false)
            .iter()
            .sum();
        assert!(passed <= RATE / 1000 + 2 * PIECE, "{passed}");
    }

    #[test]
    fn dropped_demands_are_forgiven_and_ended_shards_forgotten() {
        let start = Instant::now();
        let budget = RateBudget::starting(Some(1000), start);
        let bucket = Rc::new(Bucket::new(Arc::clone(&budget), start));
        let mut first = bucket.demand(1_000_000, start);
        let mut second = bucket.demand(100, start);
        assert!(first.poll(start).is_pending());
        drop(first);
        let later = start + Duration::from_millis(150);
        assert!(second.poll(later).is_ready());
        let mut third = bucket.demand(10_000, later);
        assert!(third.poll(later).is_pending());
        drop((second, third, bucket));
        budget.rebalance(start + Duration::from_secs(1));
        assert!(budget.accounts().lines.is_empty());
    }

    #[test]
    fn shares_fill_wants_from_the_smallest() {
        assert_eq!(fill(100.0, &[]), Vec::<f64>::new());
        assert_eq!(fill(100.0, &[f64::INFINITY, f64::INFINITY]), [50.0, 50.0]);
        assert_eq!(fill(100.0, &[10.0, f64::INFINITY, 0.0]), [10.0, 90.0, 0.0]);
        assert_eq!(fill(100.0, &[10.0, 30.0]), [40.0, 60.0]);
        assert_eq!(fill(0.0, &[10.0, f64::INFINITY]), [0.0, 0.0]);
    }
}
