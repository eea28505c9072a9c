//! With io_uring disabled in the kernel, shards work on threads. The only test of its binary, because it changes a
//! setting of the whole machine; needs root, and fails without.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::io::Write;

use mover_io::{Access, Rung, Shard, ShardConfig, run};

const SETTING: &str = "/proc/sys/kernel/io_uring_disabled";

/// Sets the kernel's setting and restores it in the end, also on panic.
struct Disabled {
    before: String,
}

impl Disabled {
    fn set() -> Self {
        let before = fs::read_to_string(SETTING).expect("this kernel has no io_uring_disabled");
        fs::write(SETTING, "2")
            .expect("this test changes kernel.io_uring_disabled: run it as root");
        Disabled { before }
    }
}

impl Drop for Disabled {
    fn drop(&mut self) {
        fs::write(SETTING, self.before.trim()).expect("restore kernel.io_uring_disabled");
    }
}

#[test]
fn a_kernel_without_io_uring_is_served_by_threads() {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary file");
    file.write_all(&[7; 10_000]).expect("write");
    let config = ShardConfig {
        shards: 1,
        ..ShardConfig::default()
    };
    let disabled = Disabled::set();
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
    drop(disabled);
    let reports = reports.expect("run");
    assert_eq!(reports[0].rung, Rung::Threads);
    assert!(!reports[0].buffers_registered);
    assert!(reports[0].rung_reason.is_some(), "the report says why");
}
