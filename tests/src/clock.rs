//! Clocks that are wrong: a program that believes in another time than this machine (libfaketime), or that time passes
//! faster.
//!
//! Invariant: where the time is off, how long something takes stays what it is.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Has a program believe that the time is off by `offset`, as libfaketime writes it: `+30m`, `-2d`.
pub fn off_by(command: &mut Command, offset: &str) {
    preload(command)
        .env("FAKETIME", offset)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// Has a program believe that time passes `times` as fast, and wait accordingly less.
pub fn faster(command: &mut Command, times: u32) {
    preload(command).env("FAKETIME", format!("+0 x{times}"));
}

/// The clock of one program, which goes as the machine's does until it is made to go faster; then the program waits accordingly
/// less.
#[derive(Debug)]
pub struct Pace {
    dir: TempDir,
}

impl Pace {
    /// Gives such a clock to a program that is about to be started, and may run for as long as this lives.
    pub fn of(command: &mut Command) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let pace = Pace { dir };
        pace.set(1);
        preload(command)
            .env("FAKETIME_TIMESTAMP_FILE", pace.file())
            // The file is looked at whenever the program asks for the time, and what has passed by then stays what it was.
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_XRESET", "1");
        pace
    }

    /// From now on time passes `times` as fast.
    pub fn set(&self, times: u32) {
        let new = self.dir.path().join("new");
        fs::write(&new, format!("+0 x{times}\n")).expect("a pace");
        // At once, so that nobody reads a part of it.
        fs::rename(new, self.file()).expect("a pace");
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("pace")
    }
}

/// Has a program ask the library for the time.
fn preload(command: &mut Command) -> &mut Command {
    let roots = fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let library = roots
        .map(|root| root.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists());
    command.env("LD_PRELOAD", library.expect("libfaketime is installed"))
}
