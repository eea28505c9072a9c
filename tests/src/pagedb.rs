//! The workspace's database with pages and a log, `pagedb-run`, as a process of its own that tests start and kill.

use std::path::PathBuf;

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
