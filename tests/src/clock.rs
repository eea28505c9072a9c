//! Clocks that are wrong: a program that believes in another time than this machine (libfaketime).
//!
//! Invariant: only what a program takes for the time of day is wrong; how long something takes stays what it is.

use std::fs;
use std::process::Command;

/// Has a program believe that the time is off by `offset`, as libfaketime writes it: `+30m`, `-2d`.
pub fn off_by(command: &mut Command, offset: &str) {
    let roots = fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let library = roots
        .map(|root| root.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists());
    command
        .env("LD_PRELOAD", library.expect("libfaketime is installed"))
        .env("FAKETIME", offset)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}
