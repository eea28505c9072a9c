//! Measures the rate at which shards read a file past the page cache: the disk's roofline through this crate.
//!
//! `read_rate FILE SHARDS DEPTH [RUNG] [plain]`: 1 MiB requests, DEPTH of them in flight in all, each shard its own
//! part of the file. Prints one line per shard and the total.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A measurement says what it expects.
#![allow(clippy::print_stdout)] // A measurement prints its result.

use std::collections::VecDeque;
use std::fs::File;
use std::time::Instant;

use mover_base::{Error, Kind, Result};
use mover_io::{Access, BUF_BYTES, Rung, Shard, ShardConfig, ShardReport, run};

fn usage() -> Error {
    Error::new(Kind::Usage, "arguments are wrong")
        .hint("read_rate FILE SHARDS DEPTH [defer|coop|ring|threads] [plain]")
}

async fn read_part(shard: Shard, path: &str, depth: usize) -> Result<ShardReport> {
    let failed = |error: std::io::Error| Error::new(Kind::Source, "read failed").cause(error);
    let file = shard
        .file(File::open(path).map_err(failed)?.into(), Access::Direct)
        .map_err(failed)?;
    let buffers = file.len().map_err(failed)? / BUF_BYTES as u64;
    let (count, index) = (shard.count() as u64, shard.index() as u64);
    let mut reads = VecDeque::new();
    for at in buffers * index / count..buffers * (index + 1) / count {
        if reads.len() >= depth.div_ceil(shard.count())
            && let Some(oldest) = reads.pop_front()
        {
            let (result, _buf): (std::io::Result<usize>, _) = Box::into_pin(oldest).await;
            result.map_err(failed)?;
        }
        let buf = shard.buffer().await;
        reads.push_back(Box::new(file.read_at(
            buf,
            at * BUF_BYTES as u64,
            BUF_BYTES,
        )));
    }
    for read in reads {
        Box::into_pin(read).await.0.map_err(failed)?;
    }
    Ok(shard.report())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, shards, depth, options @ ..] = arguments.as_slice() else {
        return Err(usage());
    };
    let number = |text: &String| text.parse::<usize>().map_err(|_| usage());
    let (shards, depth) = (number(shards)?, number(depth)?);
    let mut config = ShardConfig {
        shards,
        ..ShardConfig::default()
    };
    for option in options {
        match option.as_str() {
            "defer" => config.top_rung = Rung::DeferTaskrun,
            "coop" => config.top_rung = Rung::CoopTaskrun,
            "ring" => config.top_rung = Rung::PlainRing,
            "threads" => config.top_rung = Rung::Threads,
            "plain" => config.register_buffers = false,
            _ => return Err(usage()),
        }
    }
    let started = Instant::now();
    let reports = run(
        &config,
        async |shard| read_part(shard, path, depth).await,
        |_| {},
    )?;
    let seconds = started.elapsed().as_secs_f64();
    let bytes: u64 = reports.iter().map(|report| report.read_bytes).sum();
    let cpu: f64 = reports.iter().map(|report| report.cpu_seconds).sum();
    for report in &reports {
        println!("{report:?}");
    }
    println!(
        "{bytes} bytes in {seconds:.3} s: {:.0} MB/s, CPU {cpu:.3} s",
        bytes as f64 / seconds / 1e6
    );
    Ok(())
}
