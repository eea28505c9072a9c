//! Clocks that are wrong: a program that believes in another time than this machine (libfaketime), or that time passes
//! faster.
//!
//! Invariant: where the time is off, how long something takes stays what it is.

use std::fs;
use std::process::Command;

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

/// Has a program ask the library for the time.
fn preload(command: &mut Command) -> &mut Command {
    let roots = fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let library = roots
        .map(|root| root.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists());
    command.env("LD_PRELOAD", library.expect("libfaketime is installed"))
}
