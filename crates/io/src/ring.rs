//! The io_uring of a shard: set-up of a rung, submission, completions.
//!
//! Invariants: the ring is created and used on one thread (the kernel insists: SINGLE_ISSUER); completions
//! never overflow, because requests and cancellations in flight are bounded by half of the completion queue each;
//! a submission that the kernel did not take yet stays queued.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use crate::config::Rung;
use crate::driver::{Action, Call, ENTRIES};

/// `user_data` of cancellations: no request has it, since no slab grows to 2^32 slots.
const CANCEL: u64 = u64::MAX;

/// Kernel workers for requests that would block (extending and buffered writes, fsync): bounded, unbounded kind.
const KERNEL_WORKERS: [u32; 2] = [8, 4];

/// How often one flush calls the kernel before it leaves the rest for later.
const SUBMITS_PER_FLUSH: usize = 4;

/// One ring and its table of registered buffers.
pub(crate) struct Ring {
    ring: RefCell<IoUring>,
    /// The kernel counts it up when completions arrive, or wait to be processed. The ring's own descriptor will not
    /// do: with deferred completions it becomes readable only once somebody has asked for them. It is never read,
    /// because the runtime polls edges.
    wake: OwnedFd,
    buffers_registered: bool,
    /// Pushed since the last flush.
    unflushed: Cell<usize>,
    cancels_in_flight: Cell<usize>,
}

/// Pushes after which the queue is flushed without waiting for the thread to park: deep enough to save system
/// calls, shallow enough that the disk does not idle while a burst is prepared.
const FLUSH_EVERY: usize = 8;

impl Ring {
    /// Sets up the ring of one rung; on failure the caller tries the next.
    pub(crate) fn new(rung: Rung) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(2 * ENTRIES as u32);
        match rung {
            Rung::DeferTaskrun => {
                builder
                    .setup_submit_all()
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_taskrun_flag();
            }
            Rung::CoopTaskrun => {
                builder
                    .setup_submit_all()
                    .setup_coop_taskrun()
                    .setup_taskrun_flag();
            }
            Rung::PlainRing => {}
            Rung::Threads => return Err(io::ErrorKind::Unsupported.into()),
        }
        let mut ring = builder.build(ENTRIES as u32)?;
        check_opcodes(&ring)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        take_a_step(&mut ring)?;
        // Older kernels cannot set this; their default bound is higher but finite.
        let _ = ring
            .submitter()
            .register_iowq_max_workers(&mut KERNEL_WORKERS.clone());
        Ok(Ring {
            ring: RefCell::new(ring),
            wake,
            buffers_registered: false,
            unflushed: Cell::new(0),
            cancels_in_flight: Cell::new(0),
        })
    }

    /// Registers the arena's buffers.
    ///
    /// # Safety
    /// The memory of `iovecs` must stay mapped until the ring is dropped.
    pub(crate) unsafe fn register_buffers(&mut self, iovecs: &[libc::iovec]) -> io::Result<()> {
        // SAFETY: the caller keeps the memory mapped.
        unsafe { self.ring.get_mut().submitter().register_buffers(iovecs) }?;
        self.buffers_registered = true;
        Ok(())
    }

    pub(crate) fn buffers_registered(&self) -> bool {
        self.buffers_registered
    }

    /// A descriptor that polls readable when completions wait.
    pub(crate) fn wake_fd(&self) -> io::Result<OwnedFd> {
        self.wake.try_clone()
    }

    /// Queues a request.
    ///
    /// # Safety
    /// The call's file descriptor and memory must stay valid, and the memory untouched by anybody else, until
    /// the completion of `user_data` was reaped.
    pub(crate) unsafe fn push(&self, user_data: u64, call: &Call) -> io::Result<()> {
        let entry = self.entry(call).user_data(user_data);
        // SAFETY: the caller keeps descriptor and memory valid until the completion.
        unsafe { self.push_entry(&entry) }
    }

    /// Asks the kernel to cancel a request. Best effort: its completion arrives either way.
    pub(crate) fn cancel(&self, user_data: u64) {
        // Bounded, so that completions cannot overflow; an orphan that is not cancelled just runs to its end.
        if self.cancels_in_flight.get() >= ENTRIES {
            return;
        }
        let entry = opcode::AsyncCancel::new(user_data)
            .build()
            .user_data(CANCEL);
        // SAFETY: a cancellation refers to no memory.
        if unsafe { self.push_entry(&entry) }.is_ok() {
            self.cancels_in_flight.set(self.cancels_in_flight.get() + 1);
        }
    }

    /// Hands queued requests to the kernel and lets it post completions that it deferred.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.unflushed.set(0);
        let mut ring = self.ring.borrow_mut();
        for _ in 0..SUBMITS_PER_FLUSH {
            let queue = ring.submission();
            if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                return Ok(());
            }
            drop(queue);
            match ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Whoever gets this comes again soon; otherwise the rest would wait for an occasion that may never come.
        if !ring.submission().is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Waits until at least one completion is there.
    pub(crate) fn wait(&self) -> io::Result<()> {
        match self.ring.borrow().submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Appends (user_data, result) of all completions that are there.
    pub(crate) fn reap(&self, completions: &mut Vec<(u64, i32)>) {
        let mut ring = self.ring.borrow_mut();
        for entry in ring.completion() {
            if entry.user_data() == CANCEL {
                self.cancels_in_flight.set(self.cancels_in_flight.get() - 1);
            } else {
                completions.push((entry.user_data(), entry.result()));
            }
        }
    }

    /// # Safety
    /// As for [`Ring::push`].
    unsafe fn push_entry(&self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller keeps what the entry refers to valid.
        if unsafe { self.ring.borrow_mut().submission().push(entry) }.is_err() {
            self.flush()?;
            // SAFETY: as above; the first attempt queued nothing.
            if unsafe { self.ring.borrow_mut().submission().push(entry) }.is_err() {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
        }
        self.unflushed.set(self.unflushed.get() + 1);
        if self.unflushed.get() >= FLUSH_EVERY {
            // The entry is queued. If the kernel is busy now, the flush at the next park reports it.
            let _ = self.flush();
        }
        Ok(())
    }

    fn entry(&self, call: &Call) -> squeue::Entry {
        let fd = types::Fd(call.fd);
        // Lengths are at most BUF_BYTES, so they fit.
        match call.action {
            Action::Read { at, len, offset } if self.buffers_registered => {
                opcode::ReadFixed::new(fd, call.memory.wrapping_add(at), len as u32, call.index)
                    .offset(offset)
                    .build()
            }
            Action::Read { at, len, offset } => {
                opcode::Read::new(fd, call.memory.wrapping_add(at), len as u32)
                    .offset(offset)
                    .build()
            }
            Action::Write { at, len, offset } if self.buffers_registered => {
                opcode::WriteFixed::new(fd, call.memory.wrapping_add(at), len as u32, call.index)
                    .offset(offset)
                    .build()
            }
            Action::Write { at, len, offset } => {
                opcode::Write::new(fd, call.memory.wrapping_add(at), len as u32)
                    .offset(offset)
                    .build()
            }
            Action::SyncData => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Action::SyncAll => opcode::Fsync::new(fd).build(),
            Action::Allocate { offset, len } => {
                opcode::Fallocate::new(fd, len).offset(offset).build()
            }
        }
    }
}

/// Has the kernel do nothing once: a filter may let rings be made and not entered.
fn take_a_step(ring: &mut IoUring) -> io::Result<()> {
    // SAFETY: it refers to no memory.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
    loop {
        match ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => {
                done?;
                break;
            }
        }
    }
    match ring.completion().next() {
        Some(entry) if entry.result() >= 0 => Ok(()),
        Some(entry) => Err(io::Error::from_raw_os_error(-entry.result())),
        None => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Refuses a kernel whose io_uring lacks a request that the driver makes.
fn check_opcodes(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::ReadFixed::CODE,
        opcode::Write::CODE,
        opcode::WriteFixed::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::AsyncCancel::CODE,
    ];
    if needed.iter().all(|&code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}
