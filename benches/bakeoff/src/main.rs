//! The same extraction loop on four runtimes: `runtime-bakeoff ENGINE read|hash FILE...`.
//!
//! Per core: 16 reads of 1 MiB in flight with O_DIRECT, from one shared cursor; `hash` also takes the SHA-256 of each
//! 4 KiB block. Every loop queues its next read before it works on a piece, as the mover does. Prints one JSON document. CPU time and memory are measured from outside, so that kernel workers and
//! helper threads of every runtime count.

mod with_glommio;
mod with_mover_io;
mod with_threads;
mod with_tokio_uring;
mod work;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use mover_base::{Error, Kind, Result};
use mover_io::Rung;
use serde_json::json;

use crate::work::Work;

const ENGINES: &str = "mover_io, mover_io_threads, tokio_uring, glommio, pread_threads";

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (engine, variant) = (
        args.next().unwrap_or_default(),
        args.next().unwrap_or_default(),
    );
    let hash = match variant.as_str() {
        "read" => false,
        "hash" => true,
        _ => {
            return Err(Error::new(Kind::Usage, "not a variant")
                .object(variant)
                .hint("usage: runtime-bakeoff ENGINE read|hash FILE..."));
        }
    };
    let work = Work::new(args.map(PathBuf::from).collect(), hash)?;
    let start = Instant::now();
    let (tally, note) = match engine.as_str() {
        "mover_io" => with_mover_io::run(&work, Rung::DeferTaskrun),
        "mover_io_threads" => with_mover_io::run(&work, Rung::Threads),
        "tokio_uring" => with_tokio_uring::run(&work),
        "glommio" => with_glommio::run(&work),
        "pread_threads" => with_threads::run(&work),
        _ => Err(Error::new(Kind::Usage, "not an engine")
            .object(&engine)
            .hint(format!("choose one of {ENGINES}"))),
    }?;
    let wall_seconds = start.elapsed().as_secs_f64();
    let document = json!({
        "engine": engine,
        "variant": variant,
        "bytes": tally.bytes,
        "wall_seconds": wall_seconds,
        "latency": {
            "p50_us": tally.latency.value_at_quantile(0.5),
            "p99_us": tally.latency.value_at_quantile(0.99),
            "p999_us": tally.latency.value_at_quantile(0.999),
            "max_us": tally.latency.max(),
            "histogram": work::encode(&tally.latency)?,
        },
        "check": format!("{:016x}", tally.check),
        "note": note,
        "huge_mib": tally.huge_mib,
    });
    writeln!(std::io::stdout(), "{document}")
        .map_err(|e| Error::new(Kind::Target, "standard output cannot be written").cause(e))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("runtime-bakeoff: {error}");
            if let Some(hint) = error.hint_text() {
                eprintln!("  {hint}");
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}
