//! Where the kernel refuses io_uring, shards work on threads. From Linux 6.6 on the kernel's own switch is set; an older one
//! has none, and there a copy of this program runs under strace, which puts the same refusal in the calls' place.
//!
//! The only test of its binary, because it changes a setting of the whole machine; needs root there, and fails without.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::io::Write;
use std::process::Command;

use mover_io::{Access, Rung, Shard, ShardConfig, run};

// The end-to-end tests set it too, and this crate has nothing else of theirs.
#[path = "../../../tests/src/io_uring_switch.rs"]
mod io_uring_switch;

/// Set for the copy that gets no ring.
const COPY: &str = "MOVER_IO_TEST_WITHOUT_RINGS";

/// A shard that gets no ring reads on threads, and says why.
fn assert_served_by_threads() {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary file");
    file.write_all(&[7; 10_000]).expect("write");
    let config = ShardConfig {
        shards: 1,
        ..ShardConfig::default()
    };
    let reports = run(
        &config,
        async |shard: Shard| {
            let twin = file.try_clone().expect("clone");
            let file = shard.file(twin.into(), Access::Direct).expect("file");
            let (result, buf) = file.read_at(shard.buffer().await, 0, 1 << 20).await;
            assert_eq!(result.expect("read"), 10_000);
            assert!(buf[..10_000].iter().all(|&byte| byte == 7));
            Ok(shard.report())
        },
        |_| {},
    );
    let reports = reports.expect("run");
    assert_eq!(reports[0].rung, Rung::Threads);
    assert!(!reports[0].buffers_registered);
    assert!(reports[0].rung_reason.is_some(), "the report says why");
}

/// Runs this test again where each io_uring_setup fails as the switch makes it fail.
fn again_under_strace() {
    let output = Command::new("strace")
        .args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"])
        .args(["-e", "trace=io_uring_setup"])
        .args(["-e", "inject=io_uring_setup:error=EPERM"])
        .arg(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "a_kernel_without_io_uring_is_served_by_threads"])
        .args(["--nocapture"])
        .env(COPY, "1")
        .output()
        .expect("strace runs (tests/run installs it)");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_kernel_without_io_uring_is_served_by_threads() {
    if std::env::var_os(COPY).is_some() {
        return assert_served_by_threads();
    }
    match io_uring_switch::switch_off() {
        Some(_switched) => assert_served_by_threads(),
        None => again_under_strace(),
    }
}
