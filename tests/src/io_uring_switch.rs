//! The kernel's switch for io_uring (`kernel.io_uring_disabled`, from Linux 6.6 on), as tests set it. It is one for the whole machine.
//!
//! Invariants: whoever sets it holds a lock until it is put back, so nobody takes what a test has set for what was there before;
//! what was there stands in the locked file from before it is changed until it is put back, so what a killed test left is put
//! right by the next one, or by tests/run. The file is gone when the machine starts again, as is what was set.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};

/// The switch: 2 refuses io_uring to everybody.
const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";
/// Locked while the switch is set, and what it was before. tests/run knows it too.
const MARKER: &str = "/run/helios-mover-tests.io_uring_disabled";

/// io_uring is refused until this is dropped, also when the test fails.
#[derive(Debug)]
pub struct SwitchedOff {
    /// Its lock ends with it.
    _marker: File,
    before: String,
}

/// Has the kernel refuse io_uring, when no other test does. None where the kernel has no switch.
pub fn switch_off() -> Option<SwitchedOff> {
    if let Err(error) = fs::metadata(SWITCH) {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{SWITCH}: {error}");
        return None;
    }
    let marker = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(MARKER);
    let mut marker = marker.expect("this test sets kernel.io_uring_disabled: run it as root");
    marker.lock().expect("a lock");
    let mut left = String::new();
    marker.read_to_string(&mut left).expect("the marker");
    if !left.is_empty() {
        put_back(&left);
    }
    let before = fs::read_to_string(SWITCH).expect("the switch can be read");
    fs::write(MARKER, &before).expect("the marker can be written");
    // Nothing is to be put back yet: what is put back in vain while this panics would end the process.
    if let Err(error) = fs::write(SWITCH, "2") {
        fs::write(MARKER, "").expect("the marker can be written");
        panic!(
            "this test sets kernel.io_uring_disabled: run it as root, where /proc/sys can be written ({error})"
        );
    }
    Some(SwitchedOff {
        _marker: marker,
        before,
    })
}

fn put_back(before: &str) {
    fs::write(SWITCH, before).expect("the switch can be put back");
    fs::write(MARKER, "").expect("the marker can be written");
}

impl Drop for SwitchedOff {
    fn drop(&mut self) {
        put_back(&self.before);
    }
}
