//! Whom the kernel gives a core when there are not enough.
//!
//! Invariant: only the calling thread changes, and the threads that it starts afterwards.
#![allow(unsafe_code)]

use std::io;

/// Has the calling thread run only where no other program wants the core (sched(7), SCHED_IDLE). Who wakes up takes the core
/// from it at once; with a thread of the usual class it would have to share, and wait for milliseconds. Where the kernel
/// refuses, nothing changes.
pub(crate) fn give_way() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the structure, which lives until it returns, and keeps nothing of it.
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if outcome != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "the kernel does not let a thread give way");
    }
}

/// Whether the calling thread gives way.
#[cfg(test)]
pub(crate) fn gives_way() -> bool {
    // SAFETY: a call without pointers.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_IDLE }
}
