//! The workspace's database at work in a page store, as a process that is killed.

use std::io::{BufRead, BufReader};

use mover_tests::pagedb::{self, Killed};

use super::*;

/// How many transactions a run commits before it is killed.
const COMMITS: usize = 200;

/// Makes or recovers the store in a directory, marks in its tracker what it writes, and is killed.
pub fn write_to(store: &Path) {
    let process = Command::new(pagedb::program())
        .arg(store)
        .args(["7", "2", "tracked"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the database starts");
    let mut process = Killed(process);
    let mut lines = BufReader::new(process.0.stdout.take().expect("its output")).lines();
    let told = lines.by_ref().map_while(Result::ok);
    let committed = told.filter(|line| line.starts_with("at ")).take(COMMITS);
    assert_eq!(committed.count(), COMMITS, "the database ended by itself");
    // While somebody still reads what it says.
    drop(process);
}

/// The URL of a store.
pub fn pages_url(store: &Path) -> String {
    format!("pages://{}", store.display())
}
