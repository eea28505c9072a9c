//! Starting shards, watching over them, ending them.
//!
//! Invariants: `run` returns only after every thread has ended and nothing is in flight; the first error wins and
//! stops the others; a panic anywhere is an error, never a hang.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use mover_base::{Error, Kind, Result};
use tokio::task::LocalSet;

use crate::arena::Arena;
use crate::budget::Budgets;
use crate::config::{ShardConfig, cores};
use crate::driver::Driver;
use crate::priority;
use crate::shard::{Inner, Shard, cancelled, panicked};
use crate::stop::Stop;

/// Period of the coordinator: rate shares are rebalanced and the caller's tick runs.
const TICK: Duration = Duration::from_millis(100);

/// How long a body may go on after the stop flag was raised before it is dropped.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Threads per shard for blocking calls of libraries (name resolution): they are rare and short.
const BLOCKING_THREADS_MAX: usize = 4;

thread_local! {
    /// The driver of this thread's shard, for the runtime's park hook, which takes no state of its own thread.
    static DRIVER: RefCell<Weak<Driver>> = const { RefCell::new(Weak::new()) };
}

/// Runs `body` once on each shard and returns the results by index of the shard.
///
/// Every shard is a thread of its own with runtime, ring and arena. `tick` runs on the calling thread about every
/// 100 ms, for progress and for signals (it may raise the stop flag). It should be quick: rate budgets are
/// rebalanced between ticks.
///
/// # Errors
/// The first error of a body. A panic of a body, or of a task that it spawned, is one of [`Kind::Internal`]. Either
/// raises the stop flag for the other shards.
///
/// # How shards end
/// A body that returns ends its shard; tasks it spawned are dropped and requests in flight are waited for. When the
/// stop flag is raised, a body has 5 s to see it ([`Shard::stop`]) and to clean up. Then it is dropped at its next
/// suspension, so that waiting for a buffer, a task or a peer cannot keep the run alive; only a body that never
/// suspends can.
pub fn run<T: Send, F>(config: &ShardConfig, body: F, mut tick: impl FnMut(&Stop)) -> Result<Vec<T>>
where
    F: AsyncFn(Shard) -> Result<T> + Sync,
{
    let buffers = config.checked_buffers()?;
    let (count, cores) = (config.shard_count(), cores());
    let stop = Stop::new();
    let budgets = Arc::new(Budgets::default());
    let first_error = Mutex::new(None);
    let mut results: Vec<Option<T>> = Vec::new();
    std::thread::scope(|scope| {
        // Shards end even if the tick, or this function, panics.
        let _raise = RaiseOnPanic(&stop);
        let (ended, all_ended) = mpsc::channel::<()>();
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let plan = Plan {
                config,
                index,
                count,
                buffers,
                // Fewer shards than cores stay free: pinned, those of all jobs would crowd on the same few.
                core: (count >= cores.len())
                    .then(|| cores.get(index % cores.len().max(1)).copied())
                    .flatten(),
                stop: stop.clone(),
                budgets: Arc::clone(&budgets),
            };
            let (body, stop, first_error, ended) = (&body, &stop, &first_error, ended.clone());
            let thread = std::thread::Builder::new()
                .name(format!("shard{index}"))
                .spawn_scoped(scope, move || {
                    // Dropped at the end of the thread, which tells the coordinator.
                    let _ended = ended;
                    let caught = catch_unwind(AssertUnwindSafe(|| plan.run(body)));
                    let result = caught.unwrap_or_else(|payload| Err(panicked(index, &*payload)));
                    result.map_err(|error| fail(first_error, stop, error)).ok()
                });
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    let error = Error::new(Kind::Limit, "a shard's thread could not be started")
                        .hint("use fewer shards, or raise the limit of processes")
                        .cause(error);
                    fail(first_error, stop, error);
                    break;
                }
            }
        }
        drop(ended);
        coordinate(&all_ended, &budgets, || tick(&stop));
        results = threads
            .into_iter()
            .map(|thread| thread.join().ok().flatten())
            .collect();
    });
    if let Some(error) = first_error
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        return Err(error);
    }
    let results: Option<Vec<T>> = results.into_iter().collect();
    results.ok_or_else(|| Error::new(Kind::Internal, "a shard ended without a result"))
}

/// Ticks until all shards have ended.
fn coordinate(all_ended: &mpsc::Receiver<()>, budgets: &Budgets, mut tick: impl FnMut()) {
    let mut next = Instant::now() + TICK;
    loop {
        let pause = next.saturating_duration_since(Instant::now());
        match all_ended.recv_timeout(pause) {
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
        }
        budgets.rebalance(Instant::now());
        tick();
        // A late tick is not made up for.
        next = (next + TICK).max(Instant::now());
    }
}

/// Keeps the first error and stops the other shards.
fn fail(first: &Mutex<Option<Error>>, stop: &Stop, error: Error) {
    first
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert(error);
    stop.raise();
}

struct RaiseOnPanic<'a>(&'a Stop);

impl Drop for RaiseOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.raise();
        }
    }
}

/// What a shard's thread needs to start.
struct Plan<'a> {
    config: &'a ShardConfig,
    index: usize,
    count: usize,
    buffers: u16,
    core: Option<CoreId>,
    stop: Stop,
    budgets: Arc<Budgets>,
}

impl Plan<'_> {
    /// The whole life of a shard, on its own thread.
    fn run<T, F>(self, body: &F) -> Result<T>
    where
        F: AsyncFn(Shard) -> Result<T>,
    {
        let started = Instant::now();
        if self.config.gentle {
            priority::give_way();
        }
        // Where it may only run when a core is free, any free core will do.
        let pin = self.config.pin && !self.config.gentle;
        let pinned = self
            .core
            .filter(|core| pin && core_affinity::set_for_current(*core));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .on_thread_park(turn_driver)
            .build()
            .map_err(|error| self.cannot_start(error))?;
        let arena = Arena::new(self.buffers).map_err(|error| self.cannot_start(error))?;
        let driver = Driver::new(self.config, self.index, &arena)
            .map_err(|error| self.cannot_start(error))?;
        let wake_fd = {
            let _context = runtime.enter();
            driver.wake_fd().map_err(|error| self.cannot_start(error))?
        };
        DRIVER.set(Rc::downgrade(&driver));
        let shard = Shard(Rc::new(Inner {
            index: self.index,
            count: self.count,
            core: pinned.map(|core| core.id),
            gentle: self.config.gentle,
            direct: self.config.direct,
            histograms: self.config.histograms,
            started,
            stop: self.stop.clone(),
            arena,
            driver: Rc::clone(&driver),
            budgets: self.budgets,
            buckets: RefCell::new(HashMap::new()),
            kept: RefCell::new(HashMap::new()),
            task_panic: RefCell::new(None),
            task_panicked: tokio::sync::Notify::new(),
        }));
        let inner = Rc::clone(&shard.0);
        let tasks = LocalSet::new();
        tasks.spawn_local(Rc::clone(&driver).reap_loop(wake_fd));
        let index = self.index;
        let caught = catch_unwind(AssertUnwindSafe(|| {
            tasks.block_on(&runtime, supervise(shard, body, &self.stop))
        }));
        let result = caught.unwrap_or_else(|payload| Err(panicked(index, &*payload)));
        // Tasks first: their requests become orphans, which the drain then outwaits. The ring closes after that.
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            drop(tasks);
            // What is kept may hold the shard, which would then hold itself.
            let kept = (inner.kept.take(), inner.buckets.take());
            drop(kept);
        }));
        driver.drain();
        runtime.shutdown_background();
        // A panic says more than an error that it may have caused; a body may also end without looking at its tasks.
        match (inner.task_panic.take(), dropped) {
            (Some(panic), _) => Err(panic),
            (None, Ok(())) => result,
            (None, Err(payload)) => result.and(Err(panicked(index, &*payload))),
        }
    }

    fn cannot_start(&self, error: std::io::Error) -> Error {
        Error::new(Kind::Limit, "a shard could not be set up")
            .object(format!("shard {}", self.index))
            .hint(
                "use fewer shards or a smaller arena, or raise the limits of open files and memory",
            )
            .cause(error)
    }
}

/// Park hook of the runtime: nothing may stay queued, or unseen, while the thread sleeps.
fn turn_driver() {
    let driver = DRIVER.with_borrow(Weak::upgrade);
    if let Some(driver) = driver {
        driver.turn();
    }
}

/// Runs the body to its end, or to the first thing that ends it.
async fn supervise<T, F>(shard: Shard, body: &F, stop: &Stop) -> Result<T>
where
    F: AsyncFn(Shard) -> Result<T>,
{
    let inner = Rc::clone(&shard.0);
    let overdue = async {
        stop.raised().await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        biased;
        result = body(shard) => result,
        error = inner.task_panic() => Err(error),
        error = inner.driver.broken() => Err(
            Error::new(Kind::Internal, "the kernel refused the shard's requests")
                .object(format!("shard {}", inner.index))
                .cause(error),
        ),
        () = overdue => Err(cancelled()),
    }
}
