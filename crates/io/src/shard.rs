//! The handle of a shard: what its body and its tasks work with.
//!
//! Invariants: a handle never leaves its thread; all clones are one shard.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use mover_base::{Error, Kind, Result};
use tokio::task::JoinHandle;

use crate::arena::{Arena, Buf};
use crate::budget::{Bucket, Budgets, RateBudget};
use crate::driver::Driver;
use crate::file::{Access, File};
use crate::report::{Latency, ShardReport, thread_cpu};
use crate::stop::Stop;

/// One thread with its runtime, ring and arena. Cheap to clone; cannot leave its thread.
#[derive(Clone)]
pub struct Shard(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub(crate) index: usize,
    pub(crate) count: usize,
    pub(crate) core: Option<usize>,
    pub(crate) gentle: bool,
    pub(crate) direct: bool,
    pub(crate) histograms: bool,
    pub(crate) started: Instant,
    pub(crate) stop: Stop,
    pub(crate) arena: Rc<Arena>,
    pub(crate) driver: Rc<Driver>,
    /// Budgets that any shard of the run uses, for the coordinator.
    pub(crate) budgets: Arc<Budgets>,
    /// This shard's side of each budget, by the budget's address. The bucket keeps the budget alive, so that no
    /// other can take the address.
    pub(crate) buckets: RefCell<HashMap<usize, Rc<Bucket>>>,
    /// What others keep on this shard, by the address of its owner.
    pub(crate) kept: RefCell<HashMap<usize, Rc<dyn Any>>>,
    /// The first panic of a spawned task.
    pub(crate) task_panic: RefCell<Option<Error>>,
    pub(crate) task_panicked: tokio::sync::Notify,
}

impl Shard {
    /// Index of this shard, below [`Shard::count`].
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// Number of shards in this run.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// Err(Cancelled) once the run was asked to end: call it between steps, with `?`.
    pub fn stop(&self) -> Result<()> {
        if self.0.stop.is_raised() {
            return Err(cancelled());
        }
        Ok(())
    }

    /// Waits for a free buffer, first come, first served. Its contents are unspecified.
    ///
    /// This is the back-pressure of the data path. Hold on to as few buffers as possible while waiting for another:
    /// tasks that all hold and wait would wait for ever (until the run is stopped, which ends them).
    pub async fn buffer(&self) -> Buf {
        self.0.arena.buffer().await
    }

    /// A free buffer, if there is one and nobody waits for it.
    pub fn try_buffer(&self) -> Option<Buf> {
        self.0.arena.try_buffer()
    }

    /// Buffers in the arena: the most that can be held at a time.
    pub fn buffers_total(&self) -> usize {
        self.0.arena.count()
    }

    /// Buffers that are free now.
    pub fn buffers_free(&self) -> usize {
        self.0.arena.free_count()
    }

    /// Takes a file over. `Access::Direct` falls back to buffered where the file system or the settings forbid it;
    /// [`File::is_direct`] and the report say which it is. O_DIRECT is a flag of the opening, so duplicates of `fd`
    /// change with it. Errors: the flags of `fd` cannot be read or set.
    pub fn file(&self, fd: OwnedFd, access: Access) -> io::Result<File> {
        let direct = access == Access::Direct && self.0.direct;
        File::new(Rc::clone(&self.0.driver), fd, direct)
    }

    /// Makes the names in a directory durable (fsync). An error is final, as for [`File::sync_data`]. A directory is
    /// no file: the report does not count it.
    pub async fn sync_directory(&self, fd: OwnedFd) -> io::Result<()> {
        let directory = File::directory(Rc::clone(&self.0.driver), fd);
        directory.sync_all().await
    }

    /// Starts a task on this shard. It is dropped when the shard's body ends; a panic in it ends the run.
    pub fn spawn<T: 'static>(&self, f: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        tokio::task::spawn_local(Task {
            future: Some(Box::pin(f)),
            shard: Rc::downgrade(&self.0),
        })
    }

    /// Submits what is queued, takes in completions and lets other tasks run. Call it between slices of CPU work.
    pub async fn turn(&self) {
        self.0.driver.turn();
        tokio::task::yield_now().await;
    }

    /// Waits until `budget` allows `bytes` more from this shard. Returns at once when the budget is unlimited or
    /// the run is asked to end. Large amounts pass as a whole, so ask for pieces of what is moved at a time.
    pub async fn throttle(&self, budget: &Arc<RateBudget>, bytes: u64) {
        if budget.is_unlimited() {
            return;
        }
        let bucket = self.bucket(budget);
        let mut demand = bucket.demand(bytes, Instant::now());
        loop {
            if self.0.stop.is_raised() {
                return;
            }
            match demand.poll(Instant::now()) {
                Poll::Ready(()) => return,
                Poll::Pending => {
                    budget.rebalance_if_late(Instant::now());
                    tokio::time::sleep(demand.pause()).await;
                }
            }
        }
    }

    /// What `owner` keeps on this shard (connections, for instance), made at the first call. It is dropped with the
    /// shard and holds the owner, so that no other can take its address meanwhile.
    ///
    /// # Errors
    /// Those of `make`; [`Kind::Internal`] where the owner keeps something of another type.
    pub fn keep<O: 'static, T: 'static>(
        &self,
        owner: &Arc<O>,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Rc<T>> {
        let address = Arc::as_ptr(owner).addr();
        let kept = self.0.kept.borrow().get(&address).cloned();
        let kept: Rc<dyn Any> = match kept {
            Some(kept) => kept,
            None => {
                let made: Rc<dyn Any> = Rc::new((Rc::new(make()?), Arc::clone(owner)));
                self.0.kept.borrow_mut().insert(address, Rc::clone(&made));
                made
            }
        };
        let pair = kept.downcast::<(Rc<T>, Arc<O>)>();
        pair.map(|pair| Rc::clone(&pair.0)).map_err(|_| {
            Error::new(
                Kind::Internal,
                "two types of things are kept for one owner on a shard",
            )
        })
    }

    /// What this shard did so far.
    pub fn report(&self) -> ShardReport {
        let inner = &self.0;
        let (driver, stats) = (&inner.driver, &inner.driver.stats);
        let cpu_seconds = thread_cpu().as_secs_f64() + driver.pool_cpu_seconds();
        let wall_seconds = inner.started.elapsed().as_secs_f64();
        let [read_latency, write_latency] = stats.latency_summaries(inner.histograms);
        ShardReport {
            shard: inner.index,
            core: inner.core,
            gentle: inner.gentle,
            rung: driver.rung(),
            rung_reason: driver.rung_reason(),
            buffers_registered: driver.buffers_registered(),
            direct_files: stats.direct_files.get(),
            buffered_files: stats.buffered_files.get(),
            read_bytes: stats.read_bytes.get(),
            written_bytes: stats.written_bytes.get(),
            reads: stats.reads.get(),
            writes: stats.writes.get(),
            cpu_seconds,
            wall_seconds,
            busy_share: if wall_seconds > 0.0 {
                // The clocks differ by a tick, and a share is no more than all.
                (cpu_seconds / wall_seconds).min(1.0)
            } else {
                0.0
            },
            read_latency,
            write_latency,
        }
    }

    /// Latency histograms so far.
    pub fn latency(&self) -> Latency {
        self.0.driver.stats.latency.borrow().clone()
    }

    /// This shard's side of a budget.
    fn bucket(&self, budget: &Arc<RateBudget>) -> Rc<Bucket> {
        let key = Arc::as_ptr(budget) as usize;
        let mut buckets = self.0.buckets.borrow_mut();
        let bucket = buckets.entry(key).or_insert_with(|| {
            self.0.budgets.add(budget);
            Rc::new(Bucket::new(Arc::clone(budget), Instant::now()))
        });
        Rc::clone(bucket)
    }
}

impl Inner {
    fn note_panic(&self, error: Error) {
        self.task_panic.borrow_mut().get_or_insert(error);
        self.task_panicked.notify_one();
    }

    /// Completes with the error of the first spawned task that panics.
    pub(crate) async fn task_panic(&self) -> Error {
        loop {
            if let Some(error) = self.task_panic.borrow_mut().take() {
                return error;
            }
            self.task_panicked.notified().await;
        }
    }
}

/// A spawned future whose panics, also those of its destructor, end the run. The runtime alone would keep them for
/// whoever waits for the task, and nobody might.
struct Task<T> {
    future: Option<Pin<Box<dyn Future<Output = T>>>>,
    shard: Weak<Inner>,
}

impl<T> Task<T> {
    /// Runs `step` and notes its panic before it goes on to the task's handle.
    fn noting<R>(shard: &Weak<Inner>, step: impl FnOnce() -> R) -> R {
        catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|payload| {
            if let Some(shard) = shard.upgrade() {
                shard.note_panic(panicked(shard.index, payload.as_ref()));
            }
            resume_unwind(payload)
        })
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Task { future, shard } = &mut *self;
        match future {
            Some(future) => Self::noting(shard, || future.as_mut().poll(cx)),
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        let future = self.future.take();
        Self::noting(&self.shard, || drop(future));
    }
}

/// The error of a shard that was asked to end.
pub(crate) fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "the job was cancelled")
}

/// The error of a shard that panicked.
pub(crate) fn panicked(shard: usize, payload: &(dyn std::any::Any + Send)) -> Error {
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Error::new(Kind::Internal, "a shard panicked")
        .object(format!("shard {shard}"))
        .hint("this is a bug in the mover; please report it with the message above")
        .cause(message)
}
