//! Limits that a test changes while a job runs: a job that is held up until something else has happened meanwhile, however long
//! that takes, and then does as it likes.
//!
//! Invariant: the limits stand in a configuration file of the test's own, which nobody else writes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;

use crate::job::Job;
use crate::scratch::Scratch;

/// At these limits what a test plants would take hours to read, or to write.
pub const NO_READS: &str = "limit-read = '1KiB/s'\n";
/// See [`NO_READS`].
pub const NO_WRITES: &str = "limit-write = '1KiB/s'\n";
/// No limit at all.
pub const NO_LIMITS: &str = "";

/// The limits of jobs, in a configuration file.
#[derive(Debug)]
pub struct Throttle {
    file: PathBuf,
}

impl Throttle {
    /// These limits, in a new file `name`.
    pub fn new(scratch: &Scratch, name: &str, limits: &str) -> Self {
        let throttle = Throttle {
            file: scratch.join(name),
        };
        throttle.set(limits);
        throttle
    }

    fn set(&self, limits: &str) {
        fs::write(&self.file, limits).expect("a configuration file");
    }

    /// Has a job keep to them; no flag of its command line may be about the same.
    pub fn put_on(&self, command: &mut Command) {
        command.arg("--config").arg(&self.file);
    }

    /// Has a job that is at work already keep to other limits from now on.
    pub fn change(&self, job: &mut Job, limits: &str) {
        self.set(limits);
        job.signal(Signal::USR2);
    }
}
