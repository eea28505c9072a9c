//! Where the administrator has switched io_uring off, the tool works with threads and says so.
//!
//! The switch is one for the whole machine: this file holds one test, because test programs run one at a time.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;

use mover_tests::mover::{Protection, Repo, exit};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::run::require_root;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;

const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";

/// Puts the switch back, also when the test fails.
struct Restored(String);

impl Drop for Restored {
    fn drop(&mut self) {
        fs::write(SWITCH, &self.0).expect("the switch can be put back");
    }
}

#[test]
fn without_io_uring_threads_do_the_work() {
    require_root();
    let scratch = Scratch::new("no-io-uring");
    let source = scratch.dir("source");
    plant::mixed(&source, &mut Random::new(0x7468_7265), 12 << 20);
    let truth = Tree::read(&source);
    let target = scratch.join("target");

    let (backup, restore, verify) = {
        let _restored = Restored(fs::read_to_string(SWITCH).expect("the kernel has the switch"));
        fs::write(SWITCH, "2").expect("the switch can be set");
        let repo = Repo::create(&scratch, "repo", Protection::Identity);
        (
            repo.backup(&source),
            repo.restore("latest", &target),
            repo.verify(),
        )
    };
    for summary in [
        backup.summary(),
        restore.summary(),
        verify.expect(exit::OK).summary(),
    ] {
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
