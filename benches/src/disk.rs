//! What the disk alone can do, by the mover's own shards and files.
//!
//! Invariants: reads cover every byte of the data set once; writes count only after fsync of the files and of their
//! directory; all of it with O_DIRECT where the file system has it, and the figure says if not.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use mover_io::{Access, BUF_BYTES, File, Shard, ShardConfig, ShardReport};
use serde::{Deserialize, Serialize};

use crate::data::{Files, Piece};
use crate::latency::Latencies;
use crate::stages::{Opener, Packer, Prepared};

/// Requests in flight per shard.
pub const DEPTH: usize = 16;
/// Files that a shard writes side by side, so that the disk has work while one is synced.
const WRITERS: usize = 2;
/// Files that a shard keeps open while it reads, which are those of its latest pieces.
const OPEN_FILES_MAX: usize = 64;
/// Size of a file that is written: what the mover's restore of a table segment would write.
const WRITE_FILE_BYTES: u64 = 256 << 20;

/// What was reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskFigure {
    /// Bytes moved.
    pub bytes: u64,
    /// From the start of the shards until all is read, or written and durable, in seconds.
    pub wall_seconds: f64,
    /// bytes / wall_seconds.
    pub bytes_per_second: f64,
    /// CPU seconds of the shards per gigabyte.
    pub cpu_seconds_per_gb: f64,
    /// Latency per request, over all shards.
    pub latency: Latencies,
    /// How requests reached the kernel, whether buffers were registered, how many files were not direct.
    pub engine: String,
}

fn config() -> ShardConfig {
    ShardConfig {
        arena_bytes: 2 * DEPTH * BUF_BYTES,
        ..ShardConfig::default()
    }
}

fn failed(kind: Kind, what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::new(kind, what)
        .object(path.display().to_string())
        .cause(error)
}

fn task_failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Kind::Internal, "a measuring task failed").cause(error)
}

/// What one shard measured.
struct Part {
    bytes: u64,
    report: ShardReport,
    latency: mover_io::Latency,
}

fn figure(parts: Vec<Part>, wall_seconds: f64, reads: bool) -> Result<DiskFigure> {
    let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
    let cpu: f64 = parts.iter().map(|part| part.report.cpu_seconds).sum();
    let buffered: u64 = parts.iter().map(|part| part.report.buffered_files).sum();
    let mut all: Option<mover_io::Latency> = None;
    let mut engine = String::new();
    for part in parts {
        engine = format!(
            "{:?}, registered {}, buffered files {buffered}",
            part.report.rung, part.report.buffers_registered
        );
        match &mut all {
            None => all = Some(part.latency),
            Some(all) => {
                all.reads.add(&part.latency.reads).map_err(task_failed)?;
                all.writes.add(&part.latency.writes).map_err(task_failed)?;
            }
        }
    }
    let latency = match &all {
        None => Latencies::default(),
        Some(all) => Latencies::of(if reads { &all.reads } else { &all.writes })?,
    };
    Ok(DiskFigure {
        bytes,
        wall_seconds,
        bytes_per_second: bytes as f64 / wall_seconds,
        cpu_seconds_per_gb: cpu * 1e9 / (bytes.max(1)) as f64,
        latency,
        engine,
    })
}

/// The data set's pieces, claimed by all shards.
struct ReadPlan {
    files: Vec<PathBuf>,
    pieces: Vec<Piece>,
    next: AtomicUsize,
}

/// What is done with the bytes that are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Nothing: the disk alone.
    Nothing,
    /// What a backup does to each frame. Nothing is looked up and nothing is stored.
    Pack,
}

/// Reads all files once, in pieces of 1 MiB.
pub fn read(files: &Files, drain: Drain) -> Result<DiskFigure> {
    let plan = Arc::new(ReadPlan {
        files: files.0.iter().map(|(path, _)| path.clone()).collect(),
        pieces: files.pieces(),
        next: AtomicUsize::new(0),
    });
    let start = Instant::now();
    let parts = mover_io::run(
        &config(),
        async |shard| {
            let open = Rc::new(RefCell::new(BTreeMap::new()));
            let packer = match drain {
                Drain::Nothing => None,
                Drain::Pack => Some(Rc::new(RefCell::new(Packer::new()?))),
            };
            let tasks: Vec<_> = (0..DEPTH)
                .map(|_| {
                    shard.spawn(read_pieces(
                        shard.clone(),
                        Arc::clone(&plan),
                        Rc::clone(&open),
                        packer.clone(),
                    ))
                })
                .collect();
            let mut bytes = 0;
            for task in tasks {
                bytes += task.await.map_err(task_failed)??;
            }
            Ok(part(&shard, bytes))
        },
        |_| {},
    )?;
    figure(parts, start.elapsed().as_secs_f64(), true)
}

fn part(shard: &Shard, bytes: u64) -> Part {
    Part {
        bytes,
        report: shard.report(),
        latency: shard.latency(),
    }
}

/// A read under way, and the piece that it is of.
struct Reading<F> {
    piece: Piece,
    read: F,
}

async fn read_pieces(
    shard: Shard,
    plan: Arc<ReadPlan>,
    open: Rc<RefCell<BTreeMap<usize, File>>>,
    packer: Option<Rc<RefCell<Packer>>>,
) -> Result<u64> {
    let begin = async || -> Result<_> {
        let claimed = plan.next.fetch_add(1, Ordering::Relaxed);
        let Some(&piece) = plan.pieces.get(claimed) else {
            return Ok(None);
        };
        shard.stop()?;
        let file = open_file(&shard, &plan.files[piece.file], piece.file, &open)?;
        let buf = shard.buffer().await;
        let whole = piece.len.next_multiple_of(BLOCK_BYTES);
        let read = Box::pin(file.read_at(buf, piece.offset, whole));
        Ok(Some(Reading { piece, read }))
    };
    let mut bytes = 0;
    let mut next = begin().await?;
    while let Some(Reading { piece, read }) = next {
        let path = &plan.files[piece.file];
        let (read, mut buf) = read.await;
        let read = read.map_err(|e| failed(Kind::Source, "a read failed", path, e))?;
        if read < piece.len {
            return Err(Error::new(Kind::SourceChanged, "a file became shorter")
                .object(path.display().to_string()));
        }
        bytes += piece.len as u64;
        // The next read is on its way before this piece is worked on: tasks that take turns on one core would else
        // fall into step, all of them computing while the disk idles and then all waiting.
        next = begin().await?;
        if let Some(packer) = &packer {
            shard.turn().await;
            let whole = piece.len.next_multiple_of(BLOCK_BYTES);
            buf[piece.len..whole].fill(0);
            packer.borrow_mut().pack(&buf[..whole])?;
        }
    }
    Ok(bytes)
}

fn open_file(
    shard: &Shard,
    path: &Path,
    index: usize,
    open: &RefCell<BTreeMap<usize, File>>,
) -> Result<File> {
    if let Some(file) = open.borrow().get(&index) {
        return Ok(file.clone());
    }
    let file = std::fs::File::open(path)
        .and_then(|file| shard.file(OwnedFd::from(file), Access::Direct))
        .map_err(|e| failed(Kind::Source, "a file cannot be opened", path, e))?;
    let mut open = open.borrow_mut();
    open.insert(index, file.clone());
    if open.len() > OPEN_FILES_MAX {
        open.pop_first();
    }
    Ok(file)
}

/// What fills the files that are written.
#[derive(Clone, Copy)]
pub enum Fill<'a> {
    /// Bytes made before the clock starts.
    Bytes(&'a [u8]),
    /// Frames that are opened, decoded and hashed on the way, as a restore does.
    Frames(&'a Prepared),
}

/// Writes files of 256 MiB, `bytes` in all, preallocated, with O_DIRECT and fsync, and removes them.
pub fn write(dir: &Path, bytes: u64, fill: Fill<'_>) -> Result<DiskFigure> {
    let files = bytes.div_ceil(WRITE_FILE_BYTES).max(1) as usize;
    let file_bytes = (bytes / files as u64).next_multiple_of(BUF_BYTES as u64);
    let next = AtomicUsize::new(0);
    let path_of = |index: usize| dir.join(format!("write-{index}"));
    let write_files = async |shard: &Shard| {
        let mut bytes = 0;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= files {
                return Ok::<u64, Error>(bytes);
            }
            shard.stop()?;
            write_file(shard, &path_of(index), file_bytes, fill).await?;
            bytes += file_bytes;
        }
    };
    let start = Instant::now();
    let parts = mover_io::run(
        &config(),
        async |shard| {
            let (one, other) = tokio::join!(write_files(&shard), write_files(&shard));
            Ok(part(&shard, one? + other?))
        },
        |_| {},
    );
    let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
    let wall_seconds = start.elapsed().as_secs_f64();
    for index in 0..files {
        let _ = std::fs::remove_file(path_of(index));
    }
    synced.map_err(|e| failed(Kind::Target, "a directory cannot be synced", dir, e))?;
    figure(parts?, wall_seconds, false)
}

async fn write_file(shard: &Shard, path: &Path, bytes: u64, fill: Fill<'_>) -> Result<()> {
    let wrong = |error| failed(Kind::Target, "a file cannot be written", path, error);
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let file = shard
        .file(OwnedFd::from(file.map_err(wrong)?), Access::Direct)
        .map_err(wrong)?;
    file.allocate(0, bytes).await.map_err(wrong)?;
    let mut opener = Opener::new()?;
    let mut writes = std::collections::VecDeque::new();
    let mut offset = 0;
    let mut index = shard.index();
    while offset < bytes {
        shard.stop()?;
        if writes.len() == DEPTH / WRITERS {
            finish(&mut writes).await?.map_err(wrong)?;
        }
        let mut buf = shard.buffer().await;
        match fill {
            Fill::Bytes(bytes) => {
                let len = bytes.len().min(BUF_BYTES);
                buf[..len].copy_from_slice(&bytes[..len]);
            }
            Fill::Frames(prepared) => {
                // As a restore does, so that the decoder does not wait for cache lines.
                buf.fill(0);
                prepared.open_and_hash(&mut opener, index, &mut buf)?;
                index += shard.count();
            }
        }
        let write = file.write_at(buf, offset, BUF_BYTES);
        writes.push_back(shard.spawn(async move { write.await.0 }));
        offset += BUF_BYTES as u64;
        shard.turn().await;
    }
    while !writes.is_empty() {
        finish(&mut writes).await?.map_err(wrong)?;
    }
    file.sync_all().await.map_err(wrong)
}

type Write = tokio::task::JoinHandle<std::io::Result<()>>;

/// Waits for the oldest write.
async fn finish(writes: &mut std::collections::VecDeque<Write>) -> Result<std::io::Result<()>> {
    match writes.pop_front() {
        Some(write) => write.await.map_err(task_failed),
        None => Ok(Ok(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_count_every_byte_and_writes_leave_nothing() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(dir.path().join("a"), vec![1; (1 << 20) + 5]).unwrap();
        for drain in [Drain::Nothing, Drain::Pack] {
            let figure = read(&Files::list(dir.path()).unwrap(), drain).unwrap();
            assert_eq!(figure.bytes, (1 << 20) + 5);
        }
        let target = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let figure = write(target.path(), 3 << 20, Fill::Bytes(&[1; 4096])).unwrap();
        assert_eq!(figure.bytes, 3 << 20);
        assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 0);
    }
}
