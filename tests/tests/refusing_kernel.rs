//! Kernels that refuse some of io_uring: an older one, a container's, and one whose limit on locked memory is low. Jobs
//! take the next best rung, say which and why, and are as exact. And file systems that refuse ways to name an object.
//!
//! The refusals are real returns of real system calls, put in their place by strace, or come from the limit itself.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::path::PathBuf;
use std::process::Command;

use mover_tests::mover::{Outcome, Protection, Repo, exit, isolated};
use mover_tests::plant;
use mover_tests::random::Random;
use mover_tests::run::require_root;
use mover_tests::scratch::Scratch;
use mover_tests::tree::Tree;
use serde_json::Value;

/// Seed of what is planted here.
const SEED: u64 = 0x7275_6e67;
/// Of the refused set-up, what a report must repeat.
const TOO_OLD: &str = "DeferTaskrun: Invalid argument";

/// A source, and where it is backed up and restored to, by way of a program that runs the tool.
struct Hindered<'a> {
    /// The program that makes the kernel refuse, and its arguments.
    by: &'a [&'a str],
    scratch: Scratch,
    source: PathBuf,
    home: PathBuf,
}

impl<'a> Hindered<'a> {
    fn new(name: &str, by: &'a [&'a str]) -> Self {
        require_root();
        let scratch = Scratch::new(name);
        let source = scratch.dir("source");
        plant::mixed(&source, &mut Random::new(SEED), 12 << 20);
        let home = scratch.dir("hindered");
        Hindered {
            by,
            scratch,
            source,
            home,
        }
    }

    fn run(&self, command: &Command) -> Outcome {
        let mut hindered = isolated(Command::new(self.by[0]), &self.home);
        hindered
            .args(&self.by[1..])
            .arg(command.get_program())
            .args(command.get_args());
        Outcome::of(&mut hindered)
    }

    /// Backs up, restores exactly and verifies; each shard of each job must bear `looks` out.
    fn assert_works(&self, repo: &Repo, looks: impl Fn(&Value) -> bool) {
        let truth = Tree::read(&self.source);
        let target = self.scratch.join("target");
        let mut verify = repo.command("verify");
        verify.args(["--level", "checksum", "--json"]);
        for command in [
            repo.backup_command(&self.source),
            repo.restore_command("latest", &target),
            verify,
        ] {
            let outcome = self.run(&command);
            let summary = outcome.summary();
            let shards = summary["engine"]["shards"].as_array();
            let shards = shards.expect("a report per shard");
            assert!(!shards.is_empty());
            for shard in shards {
                assert!(looks(shard), "{shard}\n{outcome}");
            }
        }
        truth.assert_same(&Tree::read(&target), "restored in spite of the kernel");
    }

    /// The item of `check` under this name, where it ends well.
    fn check(&self, repo: &Repo, name: &str) -> Value {
        self.check_ends(repo, exit::OK, name)
    }

    /// The item of `check` under this name, where it ends with `code`.
    fn check_ends(&self, repo: &Repo, code: i32, name: &str) -> Value {
        let mut check = repo.command("check");
        check.arg("--json");
        // Behind the report of one that found something comes an error.
        let report = self.run(&check).expect(code).lines().swap_remove(0);
        let items = report["items"].as_array().expect("items");
        let item = items.iter().find(|item| item["name"] == name);
        item.unwrap_or_else(|| panic!("no item {name} in {report}"))
            .clone()
    }
}

/// What makes each thread's io_uring_setup, or io_uring_register, fail as `inject` says.
fn strace(inject: &str) -> Vec<&str> {
    strace_of("trace=io_uring_setup,io_uring_register", inject)
}

fn strace_of<'a>(calls: &'a str, inject: &'a str) -> Vec<&'a str> {
    // Only the calls in question stop the program.
    let mut words = vec!["strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"];
    words.extend(["-e", calls, "-e", inject]);
    words
}

fn repo_of(hindered: &Hindered<'_>) -> Repo {
    Repo::create(&hindered.scratch, "repo", Protection::Identity)
}

fn is(shard: &Value, rung: &str, reason: &str) -> bool {
    let said = shard["rung_reason"].as_str().unwrap_or_default();
    shard["rung"] == rung && said.contains(reason) && said.is_empty() == reason.is_empty()
}

#[test]
fn a_kernel_without_deferred_work_is_served_by_the_next_ring() {
    let by = strace("inject=io_uring_setup:error=EINVAL:when=1");
    let hindered = Hindered::new("kernel-coop", &by);
    let repo = repo_of(&hindered);
    hindered.assert_works(&repo, |shard| {
        is(shard, "coop_taskrun", TOO_OLD) && shard["buffers_registered"] == true
    });
    let item = hindered.check(&repo, "I/O rung");
    assert_eq!(item["status"], "warn", "{item}");
    assert_eq!(item["detail"], "io_uring, cooperative task work");
}

#[test]
fn a_kernel_without_cooperative_work_is_served_by_a_plain_ring() {
    let by = strace("inject=io_uring_setup:error=EINVAL:when=1..2");
    let hindered = Hindered::new("kernel-plain", &by);
    let repo = repo_of(&hindered);
    hindered.assert_works(&repo, |shard| is(shard, "plain_ring", TOO_OLD));
}

#[test]
fn a_container_that_forbids_rings_is_served_by_threads() {
    let by = strace("inject=io_uring_setup:error=EPERM");
    let hindered = Hindered::new("kernel-container", &by);
    let repo = repo_of(&hindered);
    hindered.assert_works(&repo, |shard| {
        is(shard, "threads", "DeferTaskrun: Operation not permitted")
            && shard["buffers_registered"] == false
    });
    let item = hindered.check(&repo, "I/O rung");
    let told = (item["status"].as_str(), item["detail"].as_str());
    assert_eq!(told, (Some("warn"), Some("threads")), "{item}");
}

#[test]
fn a_ring_that_may_be_made_and_not_entered_is_none() {
    let by = strace_of("trace=io_uring_enter", "inject=io_uring_enter:error=EPERM");
    let hindered = Hindered::new("kernel-enter", &by);
    let repo = repo_of(&hindered);
    hindered.assert_works(&repo, |shard| {
        is(shard, "threads", "DeferTaskrun: Operation not permitted")
    });
}

#[test]
fn a_ring_that_cannot_do_what_is_needed_is_none() {
    // What a ring can do is asked for by the first registration of each.
    let by = strace("inject=io_uring_register:error=EINVAL");
    let hindered = Hindered::new("kernel-probe", &by);
    let repo = repo_of(&hindered);
    hindered.assert_works(&repo, |shard| is(shard, "threads", TOO_OLD));
}

/// What runs the tool with a limit on locked memory, and without the capability to pass over it.
fn memlock(limit: &str) -> [&str; 7] {
    [
        "setpriv",
        "--bounding-set=-ipc_lock",
        "--inh-caps=-ipc_lock",
        "--",
        "prlimit",
        limit,
        "--",
    ]
}

/// What systemd gives a service that asks for nothing: the rings have room, the buffers have not.
#[test]
fn a_low_limit_on_locked_memory_leaves_plain_buffers_and_is_told() {
    let by = memlock("--memlock=8388608:8388608");
    let hindered = Hindered::new("kernel-memlock", &by);
    let repo = repo_of(&hindered);
    hindered.assert_works(&repo, |shard| {
        is(shard, "defer_taskrun", "") && shard["buffers_registered"] == false
    });
    let item = hindered.check(&repo, "registered buffers");
    let told = (item["status"].as_str(), item["detail"].as_str());
    assert_eq!(told, (Some("warn"), Some("no")), "{item}");
    let hint = item["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("memlock"), "{item}");
}

#[test]
fn without_locked_memory_for_rings_threads_do_the_work_and_the_remedy_is_told() {
    let by = memlock("--memlock=0:0");
    let hindered = Hindered::new("kernel-no-memlock", &by);
    let repo = repo_of(&hindered);
    hindered.assert_works(&repo, |shard| {
        is(shard, "threads", "raise the memlock limit")
    });
    let item = hindered.check(&repo, "I/O rung");
    let hint = item["hint"].as_str().unwrap_or_default();
    assert!(
        item["status"] == "warn" && hint.contains("memlock"),
        "{item}"
    );
}

/// Paths of what lies in the repository, temporary files among it.
fn paths(repo: &Repo) -> Vec<PathBuf> {
    repo.objects().into_iter().map(|(path, _)| path).collect()
}

/// What NFS and some of FUSE answer to a rename that must not replace.
const NO_RENAMES: &str = "inject=renameat2:error=EINVAL";

#[test]
fn a_file_system_without_renames_that_replace_nothing_is_served_by_links() {
    let by = strace_of("trace=renameat2", NO_RENAMES);
    let hindered = Hindered::new("kernel-links", &by);
    let repo = repo_of(&hindered);
    hindered.assert_works(&repo, |_| true);
    let item = hindered.check(&repo, "writable");
    assert_eq!(item["status"], "ok", "{item}");
    let paths = paths(&repo);
    assert!(paths.iter().any(|path| path.starts_with("packs")));
    assert!(
        !paths.iter().any(|path| path.starts_with("tmp")),
        "{paths:?}"
    );
}

#[test]
fn a_file_system_that_can_name_nothing_safely_is_told_by_backups_and_found_by_checks() {
    let unable = "this file system can neither rename without replacing nor make hard links";
    let mut by = strace_of("trace=renameat2,linkat", NO_RENAMES);
    by.extend(["-e", "inject=linkat:error=EPERM"]);
    let hindered = Hindered::new("kernel-no-links", &by);
    let repo = repo_of(&hindered);
    let before = paths(&repo);
    let place = repo.dir.to_str().expect("UTF-8");

    let outcome = hindered.run(&repo.backup_command(&hindered.source));
    let error = outcome.told(exit::STORAGE, place);
    assert_eq!(error["message"], unable, "{error}");
    let hint = error["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("s3://"), "{error}");
    assert_eq!(paths(&repo), before);

    let item = hindered.check_ends(&repo, exit::CHECK_FAILED, "writable");
    let text = |field: &str| item[field].as_str().unwrap_or_default();
    assert_eq!(text("status"), "fail", "{item}");
    assert!(text("detail").contains(unable), "{item}");
    assert!(text("hint").contains("s3://"), "{item}");
    assert_eq!(paths(&repo), before);
}
