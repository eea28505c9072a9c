//! Tests that need the driver's insides: results bent as a kernel might bend them, and the bound of requests.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use mover_base::Result;

use crate::driver::{Action, ENTRIES};
use crate::priority;
use crate::{
    Access, BLOCK_BYTES, BUF_BYTES, File, GENTLE_REQUEST_BYTES, Rung, Shard, ShardConfig, run,
};

const EINTR: i32 = -4;
const EIO: i32 = -5;
const EAGAIN: i32 = -11;
const EINVAL: i32 = -22;
const EOPNOTSUPP: i32 = -95;

/// Runs a body on one shard of each rung.
fn on_each_rung(body: impl AsyncFn(Shard) -> Result<()> + Sync) {
    for top_rung in Rung::ALL {
        let config = ShardConfig {
            shards: 1,
            arena_bytes: 4 << 20,
            top_rung,
            ..ShardConfig::default()
        };
        run(&config, &body, |_| {}).expect("the body succeeds");
    }
}

/// An unlinked file on the file system of the build directory.
fn file_with(bytes: &[u8]) -> OwnedFd {
    use std::io::Write;
    let exe = std::env::current_exe().expect("path of the test");
    let dir = exe.parent().expect("directory of the test");
    let mut file = tempfile::tempfile_in(dir).expect("temporary file");
    file.write_all(bytes).expect("write");
    file.into()
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 4096) as u8).collect()
}

/// Bends every result, and counts requests.
fn bend(shard: &Shard, mut how: impl FnMut(Action, i32) -> i32 + 'static) -> Rc<Cell<u32>> {
    let requests = Rc::new(Cell::new(0));
    let counter = Rc::clone(&requests);
    let hook = move |action, result| {
        counter.set(counter.get() + 1);
        how(action, result)
    };
    shard.0.driver.intercept.replace(Some(Box::new(hook)));
    requests
}

fn unbend(shard: &Shard) {
    shard.0.driver.intercept.replace(None);
}

fn open(shard: &Shard, bytes: &[u8], access: Access) -> File {
    shard.file(file_with(bytes), access).expect("file")
}

async fn read(shard: &Shard, file: &File, len: usize) -> io::Result<Vec<u8>> {
    let (result, buf) = file.read_at(shard.buffer().await, 0, len).await;
    result.map(|read| buf[..read].to_vec())
}

#[test]
fn short_reads_are_continued() {
    let want = pattern(10 * BLOCK_BYTES);
    on_each_rung(async |shard| {
        for (access, piece) in [(Access::Direct, 4096), (Access::Buffered, 1000)] {
            let file = open(&shard, &want, access);
            assert_eq!(file.is_direct(), access == Access::Direct);
            let requests = bend(&shard, move |_, result| result.min(piece));
            let got = read(&shard, &file, want.len()).await.expect("read");
            assert!(got == want, "{access:?}");
            assert_eq!(requests.get() as usize, want.len().div_ceil(piece as usize));
            unbend(&shard);
        }
        Ok(())
    });
}

#[test]
fn a_gentle_run_asks_for_little_at_a_time_and_gets_the_same() {
    for top_rung in Rung::ALL {
        let config = ShardConfig {
            shards: 1,
            top_rung,
            gentle: true,
            ..ShardConfig::default()
        };
        let body = async |shard: Shard| {
            let want = pattern(3 * GENTLE_REQUEST_BYTES + BLOCK_BYTES + 700);
            for access in [Access::Direct, Access::Buffered] {
                let file = open(&shard, &[], access);
                let requests = bend(&shard, |action, result| {
                    assert!(result <= GENTLE_REQUEST_BYTES as i32, "{action:?}");
                    result
                });
                let mut buf = shard.buffer().await;
                buf[..want.len()].copy_from_slice(&want);
                let (written, _) = file.write_at(buf, 0, want.len()).await;
                written.expect("write");
                assert_eq!(requests.get(), 4);
                file.set_len(want.len() as u64).expect("cut");
                let got = read(&shard, &file, BUF_BYTES).await.expect("read");
                assert!(got == want, "{access:?}");
                unbend(&shard);
            }
            let report = shard.report();
            assert_eq!((report.core, report.gentle), (None, true));
            assert!(priority::gives_way());
            Ok(())
        };
        run(&config, body, |_| {}).expect("the body succeeds");
        assert!(!priority::gives_way());
    }
}

#[test]
fn a_direct_read_that_ends_inside_a_block_is_the_end() {
    let want = pattern(2 * BLOCK_BYTES + 700);
    on_each_rung(async |shard| {
        let file = open(&shard, &want, Access::Direct);
        assert!(file.is_direct());
        let requests = bend(&shard, |_, result| result);
        let got = read(&shard, &file, BUF_BYTES).await.expect("read");
        assert!(got == want);
        assert_eq!(requests.get(), 1, "no request to see the end again");
        unbend(&shard);
        Ok(())
    });
}

#[test]
fn passing_errors_are_retried_and_lasting_ones_returned() {
    let want = pattern(3 * BLOCK_BYTES);
    on_each_rung(async |shard| {
        let file = open(&shard, &want, Access::Direct);
        for errno in [EINTR, EAGAIN] {
            let mut failures = 10;
            bend(&shard, move |_, result| {
                failures -= 1;
                if failures >= 0 { errno } else { result }
            });
            assert!(read(&shard, &file, want.len()).await.expect("read") == want);
            let requests = bend(&shard, move |_, _| errno);
            let error = read(&shard, &file, want.len()).await.expect_err("refused");
            assert_eq!(error.raw_os_error(), Some(-errno));
            assert_eq!(requests.get(), 17, "one attempt and 16 retries");
        }
        let requests = bend(&shard, |_, _| EIO);
        let error = read(&shard, &file, want.len()).await.expect_err("failed");
        assert_eq!(error.raw_os_error(), Some(-EIO));
        assert_eq!(requests.get(), 1, "a lasting error is not retried");
        unbend(&shard);
        assert_eq!(shard.buffers_free(), shard.buffers_total());
        Ok(())
    });
}

#[test]
fn a_file_system_that_refuses_direct_requests_is_used_buffered() {
    let want = pattern(3 * BLOCK_BYTES + 5);
    on_each_rung(async |shard| {
        let file = open(&shard, &want, Access::Direct);
        assert!(file.is_direct());
        let mut first = true;
        bend(&shard, move |_, result| {
            if std::mem::take(&mut first) {
                EINVAL
            } else {
                result
            }
        });
        assert!(read(&shard, &file, 4 * BLOCK_BYTES).await.expect("read") == want);
        assert!(!file.is_direct());
        let report = shard.report();
        assert_eq!((report.direct_files, report.buffered_files), (0, 1));
        // Those that were under way at the same time are refused as well.
        let file = open(&shard, &want, Access::Direct);
        let mut refused = Vec::new();
        bend(&shard, move |action, result| match action {
            Action::Read { offset, .. } if !refused.contains(&offset) => {
                refused.push(offset);
                EINVAL
            }
            _ => result,
        });
        let two = [0, BLOCK_BYTES].map(|at| (at, shard.buffer()));
        let mut reads = Vec::new();
        for (at, buffer) in two {
            reads.push((at, file.read_at(buffer.await, at as u64, BLOCK_BYTES)));
        }
        for (at, read) in reads {
            let (result, buf) = read.await;
            assert_eq!(result.expect("read"), BLOCK_BYTES);
            assert!(buf[..BLOCK_BYTES] == want[at..at + BLOCK_BYTES]);
        }
        let report = shard.report();
        assert_eq!((report.direct_files, report.buffered_files), (0, 2));
        // Buffered, EINVAL is an error like any other.
        bend(&shard, |_, _| EINVAL);
        assert!(read(&shard, &file, 100).await.is_err());
        unbend(&shard);
        Ok(())
    });
}

#[test]
fn short_writes_are_continued_and_no_progress_is_an_error() {
    let want = pattern(9 * BLOCK_BYTES);
    on_each_rung(async |shard| {
        for (access, piece) in [
            (Access::Direct, 4096),
            (Access::Direct, 5000),
            (Access::Buffered, 777),
        ] {
            let file = open(&shard, &[], access);
            let mut buf = shard.buffer().await;
            buf[..want.len()].copy_from_slice(&want);
            bend(&shard, move |action, result| match action {
                Action::Write { .. } => result.min(piece),
                _ => result,
            });
            let (result, buf) = file.write_at(buf, 0, want.len()).await;
            result.expect("write");
            assert!(buf[..want.len()] == want, "the caller's bytes are intact");
            unbend(&shard);
            assert!(read(&shard, &file, want.len()).await.expect("read") == want);
            let requests = bend(&shard, |_, _| 0);
            let (result, _) = file.write_at(buf, 0, want.len()).await;
            assert_eq!(
                result.expect_err("no progress").kind(),
                io::ErrorKind::WriteZero
            );
            assert_eq!(requests.get(), 1);
            unbend(&shard);
        }
        // A direct write that never gets past a block ends, too.
        let file = open(&shard, &[], Access::Direct);
        bend(&shard, |_, result| result.min(512));
        let (result, _) = file.write_at(shard.buffer().await, 0, 8192).await;
        assert!(result.is_err());
        unbend(&shard);
        Ok(())
    });
}

#[test]
fn a_failed_sync_is_final_and_missing_fallocate_is_no_error() {
    on_each_rung(async |shard| {
        let file = open(&shard, b"data", Access::Buffered);
        let requests = bend(&shard, |action, result| match action {
            Action::SyncAll | Action::SyncData => EIO,
            Action::Allocate { .. } => EOPNOTSUPP,
            _ => result,
        });
        assert!(file.sync_data().await.is_err());
        assert!(file.sync_all().await.is_err());
        assert_eq!(requests.get(), 2);
        file.allocate(0, 1 << 20).await.expect("ignored");
        bend(&shard, |_, _| EINTR);
        assert!(file.sync_data().await.is_err(), "not even EINTR is retried");
        unbend(&shard);
        file.sync_all().await.expect("sync");
        Ok(())
    });
}

#[test]
fn a_synced_directory_is_not_counted_among_the_files() {
    on_each_rung(async |shard| {
        let dir = tempfile::tempdir().expect("temporary directory");
        let open_dir = || OwnedFd::from(std::fs::File::open(dir.path()).expect("directory"));
        let requests = bend(&shard, |action, result| {
            assert!(matches!(action, Action::SyncAll));
            result
        });
        shard.sync_directory(open_dir()).await.expect("sync");
        assert_eq!(requests.get(), 1);
        bend(&shard, |_, _| EIO);
        assert!(shard.sync_directory(open_dir()).await.is_err());
        unbend(&shard);
        let report = shard.report();
        assert_eq!((report.direct_files, report.buffered_files), (0, 0));
        Ok(())
    });
}

#[test]
fn requests_in_flight_are_bounded_and_all_get_their_turn() {
    on_each_rung(async |shard| {
        let file = open(&shard, b"data", Access::Buffered);
        let most = Rc::new(RefCell::new(0));
        let tasks: Vec<_> = (0..3 * ENTRIES)
            .map(|_| {
                let (file, shard2, most) = (file.clone(), shard.clone(), Rc::clone(&most));
                shard.spawn(async move {
                    let done = file.sync_data().await;
                    let mut most = most.borrow_mut();
                    *most = shard2.0.driver.in_flight().max(*most);
                    done
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("task").expect("sync");
        }
        assert!(*most.borrow() <= ENTRIES);
        assert_eq!(shard.0.driver.in_flight(), 0);
        assert_eq!(shard.0.driver.stats.stale_completions.get(), 0);
        Ok(())
    });
}
