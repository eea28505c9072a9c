//! Where the kernel refuses io_uring, the tool works with threads and says so. From Linux 6.6 on an administrator can switch
//! it off; an older kernel has no switch, and there strace puts the same refusal in the calls' place.
//!
//! The switch is one for the whole machine: this file holds one test, because test programs run one at a time. A killed one leaves
//! it to the next to put the switch back (`tests/src/io_uring_switch.rs`).
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::path::Path;
use std::process::Command;

use mover_tests::io_uring_switch::switch_off;
use mover_tests::mover::{Outcome, Protection, Repo, isolated};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::run::require_root;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

/// Runs the tool's `command` where each io_uring_setup fails as the switch makes it fail.
fn refused_by_strace(command: &Command, home: &Path) -> Outcome {
    let mut strace = isolated(Command::new("strace"), home);
    strace
        // Only the call in question stops the program.
        .args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"])
        .args(["-e", "trace=io_uring_setup"])
        .args(["-e", "inject=io_uring_setup:error=EPERM", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    Outcome::of(&mut strace)
}

#[test]
fn without_io_uring_threads_do_the_work() {
    require_root();
    let scratch = Scratch::new("no-io-uring");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(0x7468_7265), 12 << 20);
    let truth = Tree::read(&source);
    let target = scratch.join("target");
    let home = scratch.dir("refused");

    let outcomes = {
        let switch = switch_off();
        let repo = Repo::create(&scratch, "repo", Protection::Identity);
        let mut verify = repo.command("verify");
        verify.args(["--level", "checksum", "--json"]);
        [
            repo.backup_command(&source),
            repo.restore_command("latest", &target),
            verify,
        ]
        .map(|mut command| match &switch {
            Some(_) => Outcome::of(&mut command),
            None => refused_by_strace(&command, &home),
        })
    };
    for outcome in outcomes {
        let summary = outcome.summary();
        let shards = summary["engine"]["shards"]
            .as_array()
            .expect("a report per shard")
            .clone();
        assert!(!shards.is_empty());
        for shard in shards {
            assert_eq!(shard["rung"], "threads", "{summary}");
        }
    }
    truth.assert_same(&Tree::read(&target), "restored without io_uring");
}
