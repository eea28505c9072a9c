//! The driver of a shard: futures on top of a ring or a pool.
//!
//! Invariants:
//! - A request's buffer and file are in the slab before the engine hears of the request, and leave it after its
//!   completion was reaped. This alone makes the engines' memory accesses sound.
//! - At most [`ENTRIES`] requests are in flight; more wait in line.
//! - Dropping an [`Op`] never blocks: the request becomes an orphan and is cancelled as far as the kernel can.
//! - [`Driver::drain`] ends with nothing in flight. If the kernel refuses even that, memory of the remaining
//!   requests is leaked, never reused.
//! - Wakers and held resources are run or dropped outside of all borrows, so they may call back.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::arena::{Arena, BUF_BYTES, Buf};
use crate::config::{GENTLE_REQUEST_BYTES, Rung, ShardConfig};
use crate::pool::Pool;
use crate::queue::{Permits, Take};
use crate::report::Stats;
use crate::ring::Ring;
use crate::slab::{Abandoned, Completed, OpId, Slab};

/// Most requests in flight per shard, and entries of its ring: eight times what saturates one NVMe disk with
/// 1 MiB requests, and what 4 KiB requests need that have to last while a frame is compressed.
pub(crate) const ENTRIES: usize = 256;

/// Pause before a submission that the kernel refused for the moment is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Fill `buf[at..at + len]` from the file at `offset`.
    Read { at: usize, len: usize, offset: u64 },
    /// Write `buf[at..at + len]` to the file at `offset`.
    Write { at: usize, len: usize, offset: u64 },
    /// fdatasync
    SyncData,
    /// fsync
    SyncAll,
    /// fallocate, mode 0
    Allocate { offset: u64, len: u64 },
}

/// A request as the engines see it: raw, and valid as long as the slab holds its resources.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) action: Action,
    pub(crate) fd: RawFd,
    /// First byte of the buffer; null for requests without one.
    pub(crate) memory: *mut u8,
    /// Index of the buffer in the table of registered buffers.
    pub(crate) index: u16,
}

/// A file that requests refer to.
pub(crate) struct OpenFile {
    pub(crate) fd: OwnedFd,
    pub(crate) direct: Cell<bool>,
}

/// A request with what it keeps alive.
pub(crate) struct Request {
    pub(crate) action: Action,
    pub(crate) file: Rc<OpenFile>,
    pub(crate) buf: Option<Buf>,
}

struct Held {
    request: Request,
    started: Instant,
}

enum Engine {
    Ring(Box<Ring>),
    Pool(Pool),
}

#[cfg(test)]
pub(crate) type Intercept = Box<dyn FnMut(Action, i32) -> i32>;

/// The engine of a shard with its requests in flight.
pub(crate) struct Driver {
    // Fields drop in this order: the engine stops before the memory of its requests can go.
    engine: Engine,
    slab: RefCell<Slab<Held>>,
    permits: Rc<Permits>,
    scratch: Cell<Vec<(u64, i32)>>,
    rung: Rung,
    rung_reason: Option<String>,
    /// Longest read or write that the kernel is asked for at once.
    request_bytes_max: usize,
    closed: Cell<bool>,
    failure: RefCell<Option<io::Error>>,
    failed: Notify,
    retry: Notify,
    pub(crate) stats: Stats,
    /// Lets tests bend results as a kernel might: short, interrupted, failed.
    #[cfg(test)]
    pub(crate) intercept: RefCell<Option<Intercept>>,
}

impl Driver {
    /// Sets up the best rung that works, for use on this thread only.
    pub(crate) fn new(
        config: &ShardConfig,
        shard: usize,
        arena: &Rc<Arena>,
    ) -> io::Result<Rc<Self>> {
        let (engine, rung, rung_reason) = climb(config, shard, arena)?;
        Ok(Rc::new(Driver {
            engine,
            slab: RefCell::new(Slab::new()),
            permits: Permits::new(ENTRIES),
            scratch: Cell::new(Vec::new()),
            rung,
            rung_reason,
            request_bytes_max: match config.gentle {
                true => GENTLE_REQUEST_BYTES,
                false => BUF_BYTES,
            },
            closed: Cell::new(false),
            failure: RefCell::new(None),
            failed: Notify::new(),
            retry: Notify::new(),
            stats: Stats::new(),
            #[cfg(test)]
            intercept: RefCell::new(None),
        }))
    }

    pub(crate) fn rung(&self) -> Rung {
        self.rung
    }

    /// Longest read or write that the kernel is to be asked for at once.
    pub(crate) fn request_bytes_max(&self) -> usize {
        self.request_bytes_max
    }

    pub(crate) fn rung_reason(&self) -> Option<String> {
        self.rung_reason.clone()
    }

    pub(crate) fn buffers_registered(&self) -> bool {
        match &self.engine {
            Engine::Ring(ring) => ring.buffers_registered(),
            Engine::Pool(_) => false,
        }
    }

    /// CPU time of threads that work for this driver besides the shard's own.
    pub(crate) fn pool_cpu_seconds(&self) -> f64 {
        match &self.engine {
            Engine::Ring(_) => 0.0,
            Engine::Pool(pool) => pool.cpu_seconds(),
        }
    }

    /// Requests whose completion has not arrived.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.slab.borrow().in_flight()
    }

    /// Queues a request at once if there is room, else when the future is polled and its turn has come.
    pub(crate) fn op(self: &Rc<Self>, request: Request) -> Op {
        let state = if self.permits.try_take() {
            self.start(request)
        } else {
            OpState::Waiting(self.permits.take(), request)
        };
        Op {
            driver: Rc::clone(self),
            state,
        }
    }

    /// Hands queued requests to the kernel and takes in the completions that are there.
    pub(crate) fn turn(&self) {
        if let Engine::Ring(ring) = &self.engine
            && let Err(error) = ring.flush()
        {
            self.refused(error);
        }
        self.reap();
    }

    /// Completes when the engine broke; its error then tells how.
    pub(crate) async fn broken(&self) -> io::Error {
        loop {
            if let Some(error) = self.failure.borrow_mut().take() {
                return error;
            }
            self.failed.notified().await;
        }
    }

    /// Waits until nothing is in flight. No request can be started afterwards.
    pub(crate) fn drain(&self) {
        self.closed.set(true);
        let mut patience = 100_u32;
        while self.slab.borrow().in_flight() > 0 {
            let waited = match &self.engine {
                Engine::Ring(ring) => ring.wait(),
                Engine::Pool(pool) => {
                    pool.wait();
                    Ok(())
                }
            };
            self.reap();
            if let Err(error) = waited {
                if !is_transient(&error) || patience == 0 {
                    tracing::error!(%error, "the ring cannot be drained; its buffers are leaked");
                    let slab = std::mem::replace(&mut *self.slab.borrow_mut(), Slab::new());
                    std::mem::forget(slab);
                    return;
                }
                patience -= 1;
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }

    /// Puts a request for which there is a permit in flight.
    fn start(&self, mut request: Request) -> OpState {
        if self.closed.get() {
            self.permits.release();
            return OpState::Refused(request, -rustix::io::Errno::CANCELED.raw_os_error());
        }
        let call = Call {
            action: request.action,
            fd: request.file.fd.as_fd().as_raw_fd(),
            memory: request
                .buf
                .as_mut()
                .map_or(std::ptr::null_mut(), Buf::as_mut_ptr),
            index: request.buf.as_ref().map_or(0, Buf::index),
        };
        let id = self.slab.borrow_mut().insert(Held {
            request,
            started: Instant::now(),
        });
        match &self.engine {
            Engine::Ring(ring) => {
                // SAFETY: descriptor and buffer were moved into the slab above, which keeps both, and lends the
                // buffer to nobody, until reap() saw the completion; drain() outwaits the rest.
                if let Err(error) = unsafe { ring.push(id.user_data(), &call) } {
                    // Nothing was queued, so the kernel will never answer: answer in its place.
                    self.refused(error);
                    let busy = -rustix::io::Errno::AGAIN.raw_os_error();
                    self.complete(id, busy);
                }
            }
            // SAFETY: as above.
            Engine::Pool(pool) => unsafe { pool.push(id.user_data(), call) },
        }
        OpState::Started(id)
    }

    /// Notes that the kernel refused a submission: for the moment, or for good.
    fn refused(&self, error: io::Error) {
        if is_transient(&error) {
            self.retry.notify_one();
        } else if self.failure.borrow().is_none() {
            self.failure.replace(Some(error));
            self.failed.notify_one();
        }
    }

    /// Takes in the completions that are there.
    fn reap(&self) {
        let mut completions = self.scratch.take();
        match &self.engine {
            Engine::Ring(ring) => ring.reap(&mut completions),
            Engine::Pool(pool) => pool.reap(&mut completions),
        }
        for (user_data, result) in completions.drain(..) {
            self.complete(OpId::from_user_data(user_data), result);
        }
        self.scratch.set(completions);
    }

    /// Takes in one completion.
    fn complete(&self, id: OpId, result: i32) {
        let result = self.note(id, result);
        let completed = self.slab.borrow_mut().complete(id, result);
        match completed {
            Completed::Stale => {
                crate::report::add(&self.stats.stale_completions, 1);
                tracing::error!(?id, result, "a completion matches no request; ignored");
                return;
            }
            Completed::Ready(Some(waker)) => waker.wake(),
            Completed::Ready(None) => {}
            Completed::Orphan(held) => {
                self.stats.count_orphan(result);
                drop(held);
            }
        }
        self.permits.release();
    }

    /// Counts a completion.
    fn note(&self, id: OpId, result: i32) -> i32 {
        let noted = self
            .slab
            .borrow_mut()
            .held_mut(id)
            .map(|held| (held.request.action, held.started));
        let Some((action, started)) = noted else {
            return result;
        };
        #[cfg(test)]
        let result = match self.intercept.borrow_mut().as_mut() {
            Some(intercept) => intercept(action, result),
            None => result,
        };
        if let Ok(bytes) = u64::try_from(result) {
            match action {
                Action::Read { .. } => self.stats.count_read(bytes, started.elapsed()),
                Action::Write { .. } => self.stats.count_write(bytes, started.elapsed()),
                Action::SyncData | Action::SyncAll | Action::Allocate { .. } => {}
            }
        }
        result
    }

    /// The future of a request was dropped.
    fn abandon(&self, id: OpId) {
        let abandoned = self.slab.borrow_mut().abandon(id);
        match abandoned {
            Abandoned::InFlight => {
                if let Engine::Ring(ring) = &self.engine {
                    ring.cancel(id.user_data());
                }
            }
            Abandoned::Done(held) => drop(held),
            Abandoned::Gone => {}
        }
    }

    /// A descriptor that polls readable when completions wait, registered with the runtime of this thread.
    pub(crate) fn wake_fd(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let fd = match &self.engine {
            Engine::Ring(ring) => ring.wake_fd()?,
            Engine::Pool(pool) => pool.wake_fd()?,
        };
        // SAFETY: the registration owns the descriptor, a duplicate of the engine's.
        Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
    }

    /// Takes in completions whenever there are some. Ends only by being dropped, or when polling itself fails.
    pub(crate) async fn reap_loop(self: Rc<Self>, fd: AsyncFd<OwnedFd>) {
        loop {
            tokio::select! {
                ready = fd.readable() => match ready {
                    // Cleared before the turn: what completes during the turn makes it ready again.
                    Ok(mut guard) => guard.clear_ready(),
                    Err(error) => {
                        self.refused(io::Error::other(error));
                        return;
                    }
                },
                () = self.retry.notified() => tokio::time::sleep(RETRY_PAUSE).await,
            }
            self.turn();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Normally done by the shard already. This covers every other way out.
        self.drain();
    }
}

/// Whether the kernel may take the same submission later.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy | io::ErrorKind::Interrupted
    )
}

/// Goes down the rungs from the wished one until one works.
fn climb(
    config: &ShardConfig,
    shard: usize,
    arena: &Rc<Arena>,
) -> io::Result<(Engine, Rung, Option<String>)> {
    let mut reason = None;
    let wished = Rung::ALL
        .into_iter()
        .skip_while(|&rung| rung != config.top_rung);
    for rung in wished {
        if rung == Rung::Threads {
            break;
        }
        match Ring::new(rung) {
            Ok(mut ring) => {
                if config.register_buffers {
                    // SAFETY: every request holds a Buf and so the arena, and the ring is dropped with the driver
                    // whose shard holds the arena; registered pages are pinned by the kernel besides.
                    if let Err(error) = unsafe { ring.register_buffers(&arena.iovecs()) } {
                        tracing::debug!(%error, shard, "the arena could not be registered");
                    }
                }
                return Ok((Engine::Ring(Box::new(ring)), rung, reason));
            }
            Err(error) => {
                reason.get_or_insert_with(|| refusal(rung, &error));
            }
        }
    }
    let pool = Pool::new(shard)?;
    Ok((Engine::Pool(pool), Rung::Threads, reason))
}

/// Why a rung is not taken, for people.
fn refusal(rung: Rung, error: &io::Error) -> String {
    // Rings count as locked memory.
    let remedy = match error.raw_os_error() {
        Some(libc::ENOMEM) => "; raise the memlock limit: `helios-mover tune` shows how",
        _ => "",
    };
    format!("{rung:?}: {error}{remedy}")
}

/// Future of a request: its result as the kernel gave it (negative errno or a count), and what it held.
pub(crate) struct Op {
    driver: Rc<Driver>,
    state: OpState,
}

enum OpState {
    Waiting(Take, Request),
    Started(OpId),
    Refused(Request, i32),
    Over,
}

impl Future for Op {
    type Output = (i32, Request);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let OpState::Waiting(take, _) = &mut self.state {
            std::task::ready!(Pin::new(take).poll(cx));
            if let OpState::Waiting(_, request) = std::mem::replace(&mut self.state, OpState::Over)
            {
                self.state = self.driver.start(request);
            }
        }
        match std::mem::replace(&mut self.state, OpState::Over) {
            OpState::Started(id) => {
                let polled = self.driver.slab.borrow_mut().poll(id, cx.waker());
                match polled {
                    Poll::Ready(Some((result, held))) => Poll::Ready((result, held.request)),
                    Poll::Ready(None) => unreachable!("the slot of a live request is its own"),
                    Poll::Pending => {
                        self.state = OpState::Started(id);
                        Poll::Pending
                    }
                }
            }
            OpState::Refused(request, result) => Poll::Ready((result, request)),
            OpState::Waiting(..) | OpState::Over => unreachable!("polled after completion"),
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if let OpState::Started(id) = self.state {
            self.driver.abandon(id);
        }
    }
}
