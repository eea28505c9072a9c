//! What goes over the link to a store, counted.
//!
//! Invariants: every request that is sent is counted once, tries after the first included; bytes are those of bodies, as
//! far as they were handed to the connection or came from it, whether or not the request came to a good end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What went over a link so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct LinkReport {
    /// Requests that were sent.
    pub requests: u64,
    /// Of them, those that were sent again: after a fault, or because the answer was late.
    pub retries: u64,
    /// Bytes of bodies sent.
    pub sent_bytes: u64,
    /// Bytes of bodies received.
    pub received_bytes: u64,
}

/// The counters behind it, which all shards share.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    requests: AtomicU64,
    retries: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Traffic {
    /// A request is sent, for the first time or `again`.
    pub fn count_request(&self, again: bool) {
        self.requests.fetch_add(1, Relaxed);
        self.retries.fetch_add(u64::from(again), Relaxed);
    }

    pub fn add_sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Relaxed);
    }

    pub fn add_received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Relaxed);
    }

    pub fn report(&self) -> LinkReport {
        LinkReport {
            requests: self.requests.load(Relaxed),
            retries: self.retries.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
        }
    }
}
