//! Futures dropped in flight, by the ten thousand over all rungs: no buffer is lent again before the kernel is done with it, and
//! none is lost.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::collections::VecDeque;
use std::future::Future;
use std::io::Write;
use std::pin::{Pin, pin};
use std::task::Context;

use mover_io::{Access, BLOCK_BYTES, Buf, File, Rung, Shard, ShardConfig, run};

const FILE_BLOCKS: u64 = 4096;
const ROUNDS: usize = 2500;

/// What each shard drops in flight at least: of its reads more than half, of the parts half, of the writes three quarters.
const ORPHANS_MIN: u64 = 1000;

/// Marsaglia's xorshift: the same sequence every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn stamp(block: u64) -> [u8; 8] {
    (block.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes()
}

fn fill_block(into: &mut [u8], block: u64) {
    for word in into.chunks_exact_mut(8) {
        word.copy_from_slice(&stamp(block));
    }
}

fn is_block(bytes: &[u8], block: u64) -> bool {
    bytes.chunks_exact(8).all(|word| word == stamp(block))
}

fn stamped_file() -> std::fs::File {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary file");
    let mut bytes = vec![0; BLOCK_BYTES * FILE_BLOCKS as usize];
    for (block, into) in bytes.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        fill_block(into, block as u64);
    }
    file.write_all(&bytes).expect("write");
    file.sync_all().expect("sync");
    file
}

/// All buffers at once: proves that every one came back.
async fn all_buffers(shard: &Shard) -> Vec<Buf> {
    let mut held = Vec::new();
    for _ in 0..shard.buffers_total() {
        held.push(shard.buffer().await);
    }
    held
}

fn poll_once<F: Future>(future: Pin<&mut F>) {
    let _ = future.poll(&mut Context::from_waker(std::task::Waker::noop()));
}

/// Starts reads, drops most of them at random moments, and guards fresh buffers against late writes by the kernel.
async fn dropped_reads(shard: &Shard, file: &File, random: &mut Random) {
    let mut guarded: VecDeque<(Buf, u8)> = VecDeque::new();
    for round in 0..ROUNDS {
        // A quarter of the arena is held with a mark in it. A read that still ran into one would destroy it.
        while guarded.len() > shard.buffers_total() / 4 {
            let (buf, mark) = guarded.pop_front().expect("guarded");
            assert!(buf[..64 << 10].iter().all(|&byte| byte == mark));
        }
        let mut buf = shard.buffer().await;
        let mark = (round % 251) as u8;
        buf[..64 << 10].fill(mark);
        guarded.push_back((buf, mark));
        let blocks = 1 + random.below(16);
        let first = random.below(FILE_BLOCKS - blocks);
        let read = file.read_at(
            shard.buffer().await,
            first * BLOCK_BYTES as u64,
            blocks as usize * BLOCK_BYTES,
        );
        match random.below(10) {
            0..2 => drop(read),
            2 => {
                let mut read = Box::pin(read);
                poll_once(read.as_mut());
            }
            3 => {
                shard.turn().await;
                drop(read);
            }
            4 => drop(shard.spawn(read)),
            5 => {
                let task = shard.spawn(read);
                task.abort();
            }
            6..9 => {
                // Handed over a moment ago: whoever does it is at work on it.
                poll_once(pin!(shard.turn()));
                drop(read);
            }
            _ => {
                let (result, buf) = read.await;
                assert_eq!(result.expect("read"), blocks as usize * BLOCK_BYTES);
                for (at, bytes) in buf
                    .chunks_exact(BLOCK_BYTES)
                    .take(blocks as usize)
                    .enumerate()
                {
                    assert!(is_block(bytes, first + at as u64));
                }
            }
        }
    }
    for (buf, mark) in guarded {
        assert!(buf[..64 << 10].iter().all(|&byte| byte == mark));
    }
}

/// The same with reads into every other part of a buffer: what lies between is held and must stay as it is, and the buffer
/// must not come back while the kernel may write into any part.
async fn dropped_parts(shard: &Shard, file: &File, random: &mut Random) {
    for round in 0..ROUNDS / 16 {
        let mut rest = shard.buffer().await;
        let mark = (round % 251) as u8;
        rest.fill(mark);
        let mut guarded = Vec::new();
        for _ in 0..16 {
            let blocks = 1 + random.below(4) as usize;
            let part = rest.split_to(blocks * BLOCK_BYTES).expect("part");
            guarded.push(rest.split_to(BLOCK_BYTES).expect("part"));
            let first = random.below(FILE_BLOCKS - blocks as u64);
            let read = file.read_at(part, first * BLOCK_BYTES as u64, blocks * BLOCK_BYTES);
            match random.below(4) {
                0 => drop(read),
                1 => {
                    let mut read = Box::pin(read);
                    poll_once(read.as_mut());
                }
                2 => drop(shard.spawn(read)),
                _ => {
                    let (result, part) = read.await;
                    assert_eq!(result.expect("read"), part.len());
                    for (block, bytes) in (first..).zip(part.chunks_exact(BLOCK_BYTES)) {
                        assert!(is_block(bytes, block));
                    }
                }
            }
        }
        drop(rest);
        shard.turn().await;
        for part in guarded {
            assert!(part.iter().all(|&byte| byte == mark));
        }
    }
}

/// Starts writes of whole blocks to their own places and drops most: every block is then old or new, never foreign.
async fn dropped_writes(shard: &Shard, file: &File, random: &mut Random) {
    for _ in 0..ROUNDS / 4 {
        let block = random.below(FILE_BLOCKS);
        let mut buf = shard.buffer().await;
        fill_block(&mut buf[..BLOCK_BYTES], block);
        let write = file.write_at(buf, block * BLOCK_BYTES as u64, BLOCK_BYTES);
        if random.below(4) == 0 {
            write.await.0.expect("write");
        } else {
            drop(write);
        }
        // The next owner of the buffer scribbles into it at once.
        if let Some(mut buf) = shard.try_buffer() {
            buf[..BLOCK_BYTES].fill(0xaa);
        }
    }
}

#[test]
fn dropped_requests_neither_lose_nor_share_buffers() {
    for top_rung in Rung::ALL {
        for register_buffers in [true, false] {
            let config = ShardConfig {
                shards: 2,
                arena_bytes: 16 << 20,
                top_rung,
                register_buffers,
                ..ShardConfig::default()
            };
            let body = async |shard: Shard| {
                let mut random = Random(0x5eed_0001 + shard.index() as u64);
                let file = shard
                    .file(stamped_file().into(), Access::Direct)
                    .expect("file");
                assert!(file.is_direct());
                dropped_reads(&shard, &file, &mut random).await;
                drop(all_buffers(&shard).await);
                dropped_parts(&shard, &file, &mut random).await;
                drop(all_buffers(&shard).await);
                dropped_writes(&shard, &file, &mut random).await;
                drop(all_buffers(&shard).await);
                for first in (0..FILE_BLOCKS).step_by(256) {
                    let offset = first * BLOCK_BYTES as u64;
                    let (result, buf) = file.read_at(shard.buffer().await, offset, 1 << 20).await;
                    assert_eq!(result.expect("read"), 1 << 20);
                    for (at, bytes) in buf.chunks_exact(BLOCK_BYTES).enumerate() {
                        assert!(is_block(bytes, first + at as u64));
                    }
                }
                assert_eq!(shard.buffers_free(), shard.buffers_total());
                assert_eq!(shard.report().rung, top_rung);
                Ok(shard.orphans())
            };
            for orphans in run(&config, body, |_| {}).expect("run") {
                // A thread that has a request does it. A ring may or may not catch one that the disk is at work on.
                let (enough, done) = match top_rung {
                    Rung::Threads => (orphans.completed, orphans.completed),
                    _ => (orphans.cancelled + orphans.completed, orphans.completed),
                };
                assert!(enough >= ORPHANS_MIN, "{top_rung:?}: {orphans:?}");
                assert!(done > 0, "{top_rung:?}: {orphans:?}");
            }
        }
    }
}

#[test]
fn requests_left_behind_by_a_body_are_outwaited() {
    for top_rung in Rung::ALL {
        let config = ShardConfig {
            shards: 2,
            arena_bytes: 8 << 20,
            top_rung,
            ..ShardConfig::default()
        };
        for fails in [false, true] {
            let body = async |shard: Shard| {
                let file = shard
                    .file(stamped_file().into(), Access::Direct)
                    .expect("file");
                for index in 0..8 {
                    let read = file.read_at(shard.buffer().await, index << 20, 1 << 20);
                    if index % 2 == 0 {
                        drop(shard.spawn(read));
                    } else {
                        // Leaked on purpose: its memory must stay alive even so.
                        std::mem::forget(read);
                    }
                }
                assert!(!fails, "on purpose");
                Ok(())
            };
            assert_eq!(run(&config, body, |_| {}).is_err(), fails);
        }
    }
}
