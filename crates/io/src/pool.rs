//! The last rung: a few threads per shard that make the requests as plain system calls.
//!
//! Invariants: as for the ring, memory of a request belongs to the slab until its completion was reaped; the
//! job queue is as long as the driver lets requests be in flight; dropping the pool runs the queue empty and
//! joins the threads.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::FallocateFlags;

use crate::driver::{Action, Call};
use crate::report::thread_cpu;

/// Threads per shard: enough to keep a disk busy with 1 MiB requests, few enough to start for every core.
const THREADS: usize = 4;

/// Stack of a pool thread: it only makes system calls.
const STACK_BYTES: usize = 128 << 10;

struct Job {
    user_data: u64,
    call: Call,
}

// SAFETY: a Call is a descriptor number and an address. The pointer is only used by the thread that runs the job,
// between push() and the completion, a time in which the slab owns the memory and nobody else touches it.
unsafe impl Send for Job {}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    completions: Mutex<Vec<(u64, i32)>>,
    finished: Condvar,
    wake: OwnedFd,
    cpu_nanos: AtomicU64,
}

/// The threads and their queues.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads; they inherit the core of the calling thread.
    pub(crate) fn new(shard: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            completions: Mutex::default(),
            finished: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            cpu_nanos: AtomicU64::new(0),
        });
        // Built up inside the pool, so that its Drop ends the threads that started if a later one does not.
        let mut pool = Pool {
            shared,
            threads: Vec::new(),
        };
        for index in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("shard{shard}-io{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || shared.work())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// A descriptor that polls readable when completions wait.
    pub(crate) fn wake_fd(&self) -> io::Result<OwnedFd> {
        self.shared.wake.try_clone()
    }

    /// CPU time of the threads so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.shared.cpu_nanos.load(Ordering::Relaxed) as f64 * 1e-9
    }

    /// Queues a request.
    ///
    /// # Safety
    /// The call's file descriptor and memory must stay valid, and the memory untouched by anybody else, until
    /// the completion of `user_data` was reaped.
    pub(crate) unsafe fn push(&self, user_data: u64, call: Call) {
        lock(&self.shared.queue)
            .jobs
            .push_back(Job { user_data, call });
        self.shared.work.notify_one();
    }

    /// Waits until at least one completion is there.
    pub(crate) fn wait(&self) {
        let mut completions = lock(&self.shared.completions);
        while completions.is_empty() {
            completions = self
                .shared
                .finished
                .wait(completions)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Appends (user_data, result) of all completions that are there.
    pub(crate) fn reap(&self, out: &mut Vec<(u64, i32)>) {
        // The counter first: a completion that comes after the list was taken counts anew and wakes again.
        let _ = rustix::io::read(&self.shared.wake, &mut [0_u8; 8]);
        out.append(&mut lock(&self.shared.completions));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in a thread was a bug there; its message is out, and the shard ends anyway.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Runs jobs until the pool is closed and the queue empty.
    fn work(&self) {
        let mut counted = Duration::ZERO;
        while let Some(job) = self.next_job() {
            let result = match execute(&job.call) {
                // Lengths are at most BUF_BYTES, so they fit.
                Ok(bytes) => bytes as i32,
                Err(errno) => -errno.raw_os_error(),
            };
            let cpu = thread_cpu();
            let more = cpu.saturating_sub(counted);
            counted = cpu;
            self.cpu_nanos
                .fetch_add(more.as_nanos() as u64, Ordering::Relaxed);
            let mut completions = lock(&self.completions);
            let first = completions.is_empty();
            completions.push((job.user_data, result));
            drop(completions);
            self.finished.notify_one();
            if first {
                // Only fails if the counter is about to overflow, and then the shard is awake anyway.
                let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
            }
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Makes the system call of a request.
fn execute(call: &Call) -> rustix::io::Result<usize> {
    // SAFETY: the slab keeps the file open until the completion was reaped.
    let fd = unsafe { BorrowedFd::borrow_raw(call.fd) };
    match call.action {
        Action::Read { at, len, offset } => {
            // SAFETY: at + len are within the buffer that the slab keeps for this request alone; the arena's memory is
            // initialised from its start.
            let into = unsafe { std::slice::from_raw_parts_mut(call.memory.add(at), len) };
            rustix::io::pread(fd, into, offset)
        }
        Action::Write { at, len, offset } => {
            // SAFETY: as for reads.
            let from = unsafe { std::slice::from_raw_parts(call.memory.add(at), len) };
            rustix::io::pwrite(fd, from, offset)
        }
        Action::SyncData => rustix::fs::fdatasync(fd).map(|()| 0),
        Action::SyncAll => rustix::fs::fsync(fd).map(|()| 0),
        Action::Allocate { offset, len } => {
            rustix::fs::fallocate(fd, FallocateFlags::empty(), offset, len).map(|()| 0)
        }
    }
}

/// Locks; a poisoned lock is taken as it is, because no critical section here can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
