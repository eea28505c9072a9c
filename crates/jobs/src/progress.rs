//! What a running job has done so far, readable from any thread while it runs.
//!
//! Invariants: within a phase counters only grow; totals are set once per phase, before its work begins, so that a reader
//! never sees more done than there is (it clamps, because two counters are not read at one instant). A total of 0 says that
//! it is not known, or that there is nothing.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use serde::Serialize;

/// The part of a job that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// Opening the repository and listing the source.
    Prepare,
    /// Going through a page store's log, whose length is not known before.
    Log,
    /// Reading, packing and storing blocks.
    Copy,
    /// Writing blocks of a restore.
    Restore,
    /// Reading and checking stored objects.
    Verify,
    /// Making everything durable and publishing it.
    Commit,
    /// Deleting what nobody needs.
    Delete,
}

impl Phase {
    const ALL: [Phase; 7] = [
        Phase::Prepare,
        Phase::Log,
        Phase::Copy,
        Phase::Restore,
        Phase::Verify,
        Phase::Commit,
        Phase::Delete,
    ];
}

/// Counters of one job, shared between its shards and whoever shows them.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    bytes_total: AtomicU64,
    bytes_done: AtomicU64,
    bytes_stored: AtomicU64,
    files_total: AtomicU64,
    files_done: AtomicU64,
}

/// One reading of [`Progress`].
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Reading {
    /// What is under way.
    pub phase: Phase,
    /// Bytes of the source, target or repository that the job will go through; 0 if that is not known, or none.
    pub bytes_total: u64,
    /// Bytes gone through.
    pub bytes_done: u64,
    /// Bytes written to the repository (backup) or to the target (restore).
    pub bytes_stored: u64,
    /// Files or objects in all.
    pub files_total: u64,
    /// Files or objects finished.
    pub files_done: u64,
}

impl Progress {
    /// Enters `phase` with its totals; the done counters start again at 0.
    pub fn begin(&self, phase: Phase, bytes_total: u64, files_total: u64) {
        self.bytes_done.store(0, Relaxed);
        self.files_done.store(0, Relaxed);
        self.bytes_total.store(bytes_total, Relaxed);
        self.files_total.store(files_total, Relaxed);
        self.phase.store(phase as u8, Relaxed);
    }

    /// Counts bytes gone through.
    pub fn add_bytes(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Relaxed);
    }

    /// Says how many bytes of the phase were gone through, where another counts them.
    pub fn set_bytes(&self, bytes: u64) {
        self.bytes_done.fetch_max(bytes, Relaxed);
    }

    /// Counts bytes written.
    pub fn add_stored(&self, bytes: u64) {
        self.bytes_stored.fetch_add(bytes, Relaxed);
    }

    /// Counts finished files or objects.
    pub fn add_files(&self, files: u64) {
        self.files_done.fetch_add(files, Relaxed);
    }

    /// The counters now.
    pub fn read(&self) -> Reading {
        let bytes_total = self.bytes_total.load(Relaxed);
        let files_total = self.files_total.load(Relaxed);
        Reading {
            phase: Phase::ALL[usize::from(self.phase.load(Relaxed)).min(Phase::ALL.len() - 1)],
            bytes_total,
            bytes_done: match bytes_total {
                0 => self.bytes_done.load(Relaxed),
                total => self.bytes_done.load(Relaxed).min(total),
            },
            bytes_stored: self.bytes_stored.load(Relaxed),
            files_total,
            files_done: self.files_done.load(Relaxed).min(files_total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_total_is_never_done_and_without_a_total_everything_counts() {
        let progress = Progress::default();
        progress.begin(Phase::Copy, 10, 2);
        progress.add_bytes(12);
        progress.add_files(3);
        let reading = progress.read();
        assert_eq!((reading.bytes_done, reading.files_done), (10, 2));
        progress.begin(Phase::Log, 0, 0);
        assert_eq!(progress.read().bytes_done, 0);
        progress.set_bytes(7);
        progress.set_bytes(5);
        let reading = progress.read();
        assert_eq!((reading.phase, reading.bytes_done), (Phase::Log, 7));
    }
}
