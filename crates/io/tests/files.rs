//! Files on every rung, direct and buffered: the bytes are those that the standard library writes and sees.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use mover_base::Result;
use mover_io::{Access, BLOCK_BYTES, BUF_BYTES, File, Rung, Shard, ShardConfig, run};

/// Every way that bytes can take through a shard.
fn each_way(body: impl AsyncFn(Shard, Access) -> Result<()> + Sync) {
    for top_rung in Rung::ALL {
        for register_buffers in [true, false] {
            let config = ShardConfig {
                shards: 1,
                arena_bytes: 4 << 20,
                top_rung,
                register_buffers,
                ..ShardConfig::default()
            };
            let both = async |shard: Shard| {
                assert_eq!(shard.report().rung, top_rung);
                let registered = register_buffers && top_rung != Rung::Threads;
                assert_eq!(shard.report().buffers_registered, registered);
                body(shard.clone(), Access::Direct).await?;
                body(shard, Access::Buffered).await
            };
            run(&config, both, |_| {}).expect("the body succeeds");
        }
    }
}

/// An unlinked file on a file system with direct I/O, opened twice: direct I/O is a flag of the opening.
fn unlinked() -> (fs::File, OwnedFd) {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary file");
    let twin = fs::File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .expect("open again");
    (file, twin.into())
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 13 + at / 4096) as u8).collect()
}

fn contents(mut file: &fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("seek");
    file.read_to_end(&mut bytes).expect("read");
    bytes
}

async fn read(shard: &Shard, file: &File, offset: u64, len: usize) -> Vec<u8> {
    let (result, buf) = file.read_at(shard.buffer().await, offset, len).await;
    let read = result.expect("read");
    buf[..read].to_vec()
}

/// Sizes around every block and sector boundary up to three blocks.
fn sizes() -> Vec<usize> {
    let around = (0..=3 * BLOCK_BYTES).step_by(512);
    let mut sizes: Vec<usize> = around
        .flat_map(|at| [at.saturating_sub(1), at, at + 1])
        .collect();
    sizes.dedup();
    sizes
}

#[test]
fn reads_end_where_the_file_ends_at_every_alignment() {
    each_way(async |shard, access| {
        for size in sizes() {
            let (mut file, fd) = unlinked();
            let want = pattern(size);
            file.write_all(&want).expect("write");
            let file = shard.file(fd, access).expect("file");
            assert_eq!(file.is_direct(), access == Access::Direct);
            assert_eq!(file.len().expect("length"), size as u64);
            for first in 0..=3 {
                for blocks in [0, 1, 2, 4] {
                    let (offset, len) = (first * BLOCK_BYTES, blocks * BLOCK_BYTES);
                    let got = read(&shard, &file, offset as u64, len).await;
                    let range = offset.min(size)..(offset + len).min(size);
                    assert!(got == want[range], "size {size} offset {offset} len {len}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn reads_end_where_the_file_ends_at_every_byte_of_a_block() {
    each_way(async |shard, access| {
        let (mut file, fd) = unlinked();
        let want = pattern(2 * BLOCK_BYTES);
        file.write_all(&want).expect("write");
        let read_from = shard.file(fd, access).expect("file");
        for size in (BLOCK_BYTES..=2 * BLOCK_BYTES).rev() {
            file.set_len(size as u64).expect("a shorter file");
            let got = read(&shard, &read_from, 0, 3 * BLOCK_BYTES).await;
            assert!(got == want[..size], "size {size}, {} read", got.len());
        }
        Ok(())
    });
}

#[test]
fn writes_pad_the_tail_of_direct_files_with_zeros_and_nothing_else() {
    each_way(async |shard, access| {
        for size in sizes().into_iter().skip(1) {
            let (file, fd) = unlinked();
            let shard_file = shard.file(fd, access).expect("file");
            let want = pattern(size);
            let mut buf = shard.buffer().await;
            buf.fill(0xee);
            buf[..size].copy_from_slice(&want);
            let (result, _) = shard_file.write_at(buf, 0, size).await;
            result.expect("write");
            let mut padded = want.clone();
            if access == Access::Direct {
                padded.resize(size.next_multiple_of(BLOCK_BYTES), 0);
            }
            assert!(contents(&file) == padded, "size {size}");
            shard_file.set_len(size as u64).expect("cut");
            shard_file.sync_data().await.expect("sync");
            assert!(contents(&file) == want, "size {size}");
        }
        Ok(())
    });
}

#[test]
fn parts_of_a_buffer_are_read_and_written_side_by_side() {
    each_way(async |shard, access| {
        let (mut file, fd) = unlinked();
        let want = pattern(300 * BLOCK_BYTES + 100);
        file.write_all(&want).expect("write");
        let shard_file = shard.file(fd, access).expect("file");
        let mut rest = shard.buffer().await;
        let mut reads = Vec::new();
        for at in 0..60 {
            let len = (1 + at % 7) * BLOCK_BYTES;
            let part = rest.split_to(len).expect("part");
            assert_eq!(part.len(), len);
            let offset = (at * 37 % 300) * BLOCK_BYTES;
            reads.push((offset, len, shard_file.read_at(part, offset as u64, len)));
        }
        // Whichever is waited for first.
        for (offset, len, read) in reads.into_iter().rev() {
            let (result, part) = read.await;
            let range = offset..(offset + len).min(want.len());
            assert_eq!(result.expect("read"), range.len());
            assert!(part[..range.len()] == want[range]);
        }
        let short = rest.split_to(BLOCK_BYTES).expect("part");
        let (refused, short) = shard_file.read_at(short, 0, 2 * BLOCK_BYTES).await;
        assert_eq!(
            refused.expect_err("too long").kind(),
            std::io::ErrorKind::InvalidInput
        );
        let (refused, mut short) = shard_file.write_at(short, 0, BLOCK_BYTES + 1).await;
        assert_eq!(
            refused.expect_err("too long").kind(),
            std::io::ErrorKind::InvalidInput
        );
        let mut second = rest.split_to(2 * BLOCK_BYTES).expect("part");
        short.fill(1);
        second.fill(2);
        let first = shard_file.write_at(short, 0, BLOCK_BYTES);
        let second = shard_file.write_at(second, BLOCK_BYTES as u64, 2 * BLOCK_BYTES);
        second.await.0.expect("write");
        first.await.0.expect("write");
        let written = contents(&file);
        assert!(written[..BLOCK_BYTES].iter().all(|&byte| byte == 1));
        assert!(
            written[BLOCK_BYTES..3 * BLOCK_BYTES]
                .iter()
                .all(|&byte| byte == 2)
        );
        assert!(written[3 * BLOCK_BYTES..] == want[3 * BLOCK_BYTES..]);
        drop(rest);
        assert_eq!(shard.buffers_free(), shard.buffers_total());
        Ok(())
    });
}

#[test]
fn whole_buffers_at_large_offsets_come_back() {
    each_way(async |shard, access| {
        let (file, fd) = unlinked();
        let shard_file = shard.file(fd, access).expect("file");
        let offset = 5_u64 << 32;
        shard_file
            .allocate(0, BUF_BYTES as u64)
            .await
            .expect("allocate");
        assert_eq!(shard_file.len().expect("length"), BUF_BYTES as u64);
        let want = pattern(BUF_BYTES);
        let mut buf = shard.buffer().await;
        buf.copy_from_slice(&want);
        let (result, buf) = shard_file.write_at(buf, offset, BUF_BYTES).await;
        result.expect("write");
        drop(buf);
        shard_file.sync_all().await.expect("sync");
        assert!(read(&shard, &shard_file, offset, BUF_BYTES).await == want);
        drop(file);
        let report = shard.report();
        assert!(report.read_bytes >= BUF_BYTES as u64 && report.reads >= 1);
        assert!(report.written_bytes >= BUF_BYTES as u64 && report.writes >= 1);
        assert!(report.read_latency.max_us >= report.read_latency.p50_us);
        Ok(())
    });
}

#[test]
fn impossible_requests_are_refused_and_the_buffer_comes_back() {
    each_way(async |shard, access| {
        let (_file, fd) = unlinked();
        let file = shard.file(fd, access).expect("file");
        let mut bad = vec![
            (0, BUF_BYTES + 1),
            (u64::MAX - 4095, 4096),
            (i64::MAX as u64, 4096),
        ];
        if access == Access::Direct {
            bad.extend([(1, 4096), (512, 4096), (0, 4095)]);
        }
        for (offset, len) in bad {
            let (result, buf) = file.read_at(shard.buffer().await, offset, len).await;
            assert!(result.is_err(), "read {offset} {len}");
            // Only the start of a direct write must be aligned.
            if (offset, len) != (0, 4095) {
                let (result, _) = file.write_at(buf, offset, len).await;
                assert!(result.is_err(), "write {offset} {len}");
            }
        }
        assert_eq!(shard.buffers_free(), shard.buffers_total());
        Ok(())
    });
}

#[test]
fn file_systems_without_direct_io_are_read_buffered() {
    each_way(async |shard, access| {
        let want = fs::read("/proc/version").expect("read");
        let fd = fs::File::open("/proc/version").expect("open");
        let file = shard.file(fd.into(), access).expect("file");
        assert!(!file.is_direct(), "proc has no direct I/O");
        assert!(read(&shard, &file, 0, BLOCK_BYTES).await == want);
        Ok(())
    });
}

#[test]
fn memory_file_systems_give_the_same_bytes() {
    each_way(async |shard, access| {
        let mut file = tempfile::tempfile_in("/dev/shm").expect("temporary file in memory");
        let want = pattern(5 * BLOCK_BYTES + 77);
        file.write_all(&want).expect("write");
        let file = shard.file(file.into(), access).expect("file");
        assert!(read(&shard, &file, 0, 8 * BLOCK_BYTES).await == want);
        assert!(read(&shard, &file, 4096, 4096).await == want[4096..8192]);
        Ok(())
    });
}

#[test]
fn settings_can_forbid_direct_io() {
    let config = ShardConfig {
        shards: 1,
        direct: false,
        ..ShardConfig::default()
    };
    let reports = run(
        &config,
        async |shard| {
            let (_file, fd) = unlinked();
            let file = shard.file(fd, Access::Direct).expect("file");
            assert!(!file.is_direct());
            Ok(shard.report())
        },
        |_| {},
    )
    .expect("run");
    assert_eq!((reports[0].direct_files, reports[0].buffered_files), (0, 1));
}
