//! The workspace's database with pages and a log, `pagedb-run`, as a process of its own that tests start and kill.
//!
//! Invariant: a process that a failed test leaves behind is killed.

use std::path::PathBuf;
use std::process::Child;

/// The program, which is built with the tests of its package, beside the test that asks.
pub fn program() -> PathBuf {
    let own = std::env::current_exe().expect("this test's program");
    let path = own.ancestors().nth(2).expect("a target directory");
    let path = path.join("pagedb-run");
    assert!(
        path.exists(),
        "{} is missing: cargo build -p mover-pagedb",
        path.display()
    );
    path
}

/// A process that is killed, and gone, when this is dropped, also by a test that fails: a [`Child`] alone would go on.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
