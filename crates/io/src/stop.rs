//! The flag that asks all shards of a run to end.
//!
//! Invariants: once raised it stays raised; whoever waits for it is woken, on any thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Cheap shared flag that asks all shards of a run to end.
///
/// Raising it is a request: bodies see it through [`Shard::stop`](crate::Shard::stop) between their steps.
#[derive(Clone, Default)]
pub struct Stop(Arc<Inner>);

#[derive(Default)]
struct Inner {
    raised: AtomicBool,
    notify: Notify,
}

impl Stop {
    pub(crate) fn new() -> Self {
        Stop::default()
    }

    /// Asks all shards to end. Safe to call any number of times, from any thread (not from a signal handler).
    pub fn raise(&self) {
        self.0.raised.store(true, Ordering::Release);
        self.0.notify.notify_waiters();
    }

    /// Whether the flag was raised.
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::Acquire)
    }

    /// Waits until the flag is raised.
    pub(crate) async fn raised(&self) {
        let mut notified = std::pin::pin!(self.0.notify.notified());
        // Enrolled before the flag is read, else a raise in between would be missed.
        notified.as_mut().enable();
        if !self.is_raised() {
            notified.await;
        }
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stop({})", self.is_raised())
    }
}
