//! File systems in memory (tmpfs, ramfs), on which not every change leaves a stamp.
//!
//! Their pages are their files, so the kernel has nothing to do, and stamps nothing, when a program writes to a file that it
//! has mapped. What a backup reads of such a file may be torn, and nothing shows it. That can only be told.
//!
//! Invariants: each file system is asked once; one that gives no answer is taken for a disk, and is no error.

use std::os::fd::BorrowedFd;

use rustix::fs::{OFlags, StatFs};

use crate::beneath;

/// `f_type` of tmpfs and ramfs, see statfs(2).
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// What a scan came to.
#[derive(Default)]
pub(crate) struct InMemory {
    /// Devices that have been asked.
    asked: Vec<u64>,
    /// For messages: the first path on each file system in memory.
    found: Vec<String>,
}

impl InMemory {
    /// Looks at the file system of `name` in `dir`, which lies on the device `dev`, if that is a new one.
    pub(crate) fn look(
        &mut self,
        dev: u64,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: impl FnOnce() -> String,
    ) {
        // Hardly any source is on more than a few.
        if self.asked.contains(&dev) {
            return;
        }
        self.asked.push(dev);
        let held = beneath::open(dir, name, OFlags::PATH | OFlags::NOFOLLOW);
        let answer = held.and_then(|held| rustix::fs::fstatfs(&held));
        if answer.is_ok_and(|found| is_in_memory(&found)) {
            self.found.push(path());
        }
    }

    /// What is to be told, if any was found.
    pub(crate) fn warning(&self) -> Option<String> {
        let (first, others) = self.found.split_first()?;
        let more = match others.len() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some(format!(
            "changes through shared memory do not show on this file system; stop what uses it: {first}{more}"
        ))
    }
}

#[allow(clippy::unnecessary_cast, reason = "the type differs between machines")]
fn is_in_memory(found: &StatFs) -> bool {
    IN_MEMORY.contains(&(found.f_type as u32))
}
