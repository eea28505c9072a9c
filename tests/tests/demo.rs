//! The demo's bounds: it does with the space that it asks for, says where there is less, and leaves nothing behind when it is
//! broken off.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::path::Path;
use std::process::Command;

use mover_tests::disk::{SmallDisk, names_in};
use mover_tests::job::{Job, wait_until};
use mover_tests::mover::{self, Outcome, exit};
use mover_tests::plant::MIB;
use mover_tests::run::run;
use mover_tests::scratch::Scratch;
use rustix::process::Signal;

/// What the demo asks for.
const FREE_BYTES_MIN: u64 = 700 * MIB;
/// What a file system takes beside, of which some may be given back or taken while files are made.
const SLACK_BYTES: u64 = 4 * MIB;

/// `demo` in this directory.
fn demo(scratch: &Scratch, temporary: &Path) -> Command {
    let mut command = mover::command(&scratch.dir("home"));
    command.args(["demo", "--json"]).env("TMPDIR", temporary);
    command
}

/// Takes so much of a disk that `left` bytes and a little more are free.
fn fill(disk: &SmallDisk, left: u64) {
    let taken = disk.free_bytes().checked_sub(left + SLACK_BYTES);
    let taken = taken.expect("the disk is large enough").to_string();
    let ballast = disk.path().join("ballast");
    run(
        "fallocate",
        ["-l".as_ref(), taken.as_ref(), ballast.as_os_str()],
    );
}

#[test]
fn the_demo_does_with_the_space_that_it_asks_for_and_with_less_it_does_not_begin() {
    let scratch = Scratch::new("demo-space");
    let disk = SmallDisk::new(&scratch, "disk", FREE_BYTES_MIN + 150 * MIB);
    fill(&disk, FREE_BYTES_MIN);
    Outcome::of(&mut demo(&scratch, disk.path())).summary();
    assert_eq!(names_in(disk.path()), ["ballast"]);

    let more = disk.path().join("more");
    let taken = (2 * SLACK_BYTES).to_string();
    run(
        "fallocate",
        ["-l".as_ref(), taken.as_ref(), more.as_os_str()],
    );
    let refused = Outcome::of(&mut demo(&scratch, disk.path()));
    let error = refused.told(exit::TARGET, &disk.path().display().to_string());
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.starts_with("the demo needs 700 MiB of free space"),
        "{error}"
    );
    let hint = error["hint"].as_str().expect("a hint");
    assert!(hint.contains("TMPDIR"), "{error}");
    fs::remove_file(&more).expect("it is there");
    assert_eq!(names_in(disk.path()), ["ballast"]);
}

#[test]
fn a_demo_without_a_temporary_directory_says_which_is_missing() {
    let scratch = Scratch::new("demo-nowhere");
    let absent = scratch.join("absent");
    let outcome = Outcome::of(&mut demo(&scratch, &absent));
    let error = outcome.told(exit::TARGET, &absent.display().to_string());
    let hint = error["hint"].as_str().expect("a hint");
    assert!(hint.contains("TMPDIR"), "{error}");
    assert!(!absent.exists());
}

#[test]
fn a_demo_that_is_broken_off_leaves_nothing_behind() {
    let scratch = Scratch::new("demo-signal");
    let temporary = scratch.dir("tmp");
    let mut job = Job::start(&mut demo(&scratch, &temporary));
    // Its clients work on for a second after the first backup, so what is met here is the middle.
    let has_begun = || {
        let names = names_in(&temporary);
        let mut repositories = names
            .iter()
            .map(|name| temporary.join(name).join("repository"));
        repositories.any(|repository| repository.join("config").exists())
    };
    wait_until(|| has_begun() || !job.is_running());
    assert!(job.is_running(), "ended too early\n{}", job.outcome());
    job.signal(Signal::INT);
    job.outcome().expect(exit::CANCELLED);
    assert_eq!(names_in(&temporary), [""; 0]);
}
