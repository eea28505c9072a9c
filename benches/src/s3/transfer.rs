//! Files as objects, there and back, through the mover's own S3 driver: the same work as a copying tool does.
//!
//! Invariants: what is measured is the public interface of the store, with shards, buffers and bounds as a backup and a
//! restore have them; a file is read into the memory that the store sends from, and written from the arena's buffers; an
//! object that exists is an error.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use mover_base::{Error, Kind, Result};
use mover_io::{BUF_BYTES, Shard, ShardConfig};
use mover_store::{Key, LinkLimits, Put, READ_BYTES_MAX, Slice, Store};

use super::figures::{FIRST_BYTE_READS, Moved, new_histogram, record};
use crate::data::Files;

/// Buffers of all shards together, as a job's default.
const ARENA_BYTES: usize = 64 << 20;
/// Most buffers of one shard, as a restore's from S3.
const SHARD_BYTES_MAX: usize = 32 << 20;
/// Objects that a shard writes side by side. The store's own memory lets fewer be under way.
const PUTS: usize = 8;
/// Runs that a shard reads side by side, as a restore does, and the pieces of one.
const GETS: usize = 3;
const RUN_PIECES: usize = 7;
/// Whole objects that a shard reads side by side.
const WHOLE_GETS: usize = 16;

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Files to objects.
    Put,
    /// Objects to files, in runs of pieces of 1 MiB as a restore reads.
    Get,
    /// Objects to files, each by one request.
    GetWhole,
    /// One byte of an object after another, one request at a time.
    FirstByte,
}

/// What all shards share.
struct Plan {
    way: Way,
    store: Store,
    dir: PathBuf,
    /// Names and sizes.
    items: Vec<(String, u64)>,
    next: AtomicUsize,
}

/// What one task did.
struct Part {
    bytes: u64,
    latency: Histogram<u64>,
}

/// Moves all files of `dir` to the store at `url`, or all objects of the store into `dir`.
///
/// # Errors
/// Those of the store; [`Kind::Conflict`] where an object exists already.
pub fn transfer(way: Way, url: &str, dir: &Path) -> Result<Moved> {
    let store = Store::open(url, &LinkLimits::default())?;
    let items = match way {
        Way::Put => files(dir)?,
        _ => objects(&store)?,
    };
    let shards = match way {
        Way::FirstByte => 1,
        _ => ShardConfig::default().shard_count(),
    };
    let config = ShardConfig {
        shards,
        arena_bytes: (ARENA_BYTES / shards).min(SHARD_BYTES_MAX),
        ..ShardConfig::default()
    };
    let plan = Arc::new(Plan {
        way,
        store,
        dir: dir.to_path_buf(),
        items,
        next: AtomicUsize::new(0),
    });
    let start = Instant::now();
    let parts = mover_io::run(&config, async |shard| on_shard(shard, &plan).await, |_| {})?;
    let wall_seconds = start.elapsed().as_secs_f64();
    let mut latency = new_histogram()?;
    let mut bytes = 0;
    for part in parts.into_iter().flatten() {
        bytes += part.bytes;
        latency.add(&part.latency).map_err(task_failed)?;
    }
    Moved::new(bytes, wall_seconds, &latency)
}

fn files(dir: &Path) -> Result<Vec<(String, u64)>> {
    let name = |path: PathBuf| {
        let relative = path.strip_prefix(dir).unwrap_or(&path);
        relative.to_string_lossy().into_owned()
    };
    let files = Files::list(dir)?.0;
    Ok(files
        .into_iter()
        .map(|(path, len)| (name(path), len))
        .collect())
}

fn objects(store: &Store) -> Result<Vec<(String, u64)>> {
    let config = ShardConfig {
        shards: 1,
        pin: false,
        arena_bytes: 2 * BUF_BYTES,
        ..ShardConfig::default()
    };
    let mut lists = mover_io::run(
        &config,
        async |shard| {
            let (mut all, mut after) = (Vec::new(), None);
            loop {
                let page = store.list(&shard, "", after.as_ref(), 1000).await?;
                let found = page.objects.into_iter();
                all.extend(found.map(|object| (object.key.as_str().to_owned(), object.bytes)));
                after = page.next;
                if after.is_none() {
                    return Ok(all);
                }
            }
        },
        |_| {},
    )?;
    Ok(lists.pop().unwrap_or_default())
}

fn task_failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Kind::Internal, "a measuring task failed").cause(error)
}

async fn on_shard(shard: Shard, plan: &Arc<Plan>) -> Result<Vec<Part>> {
    let count = match plan.way {
        Way::Put => PUTS,
        Way::Get => GETS,
        Way::GetWhole => WHOLE_GETS,
        Way::FirstByte => 1,
    };
    let spawn = |_| {
        let (own, plan) = (shard.clone(), Arc::clone(plan));
        shard.spawn(async move { work(own, &plan).await })
    };
    let tasks: Vec<_> = (0..count).map(spawn).collect();
    let mut parts = Vec::new();
    for task in tasks {
        parts.push(task.await.map_err(task_failed)??);
    }
    Ok(parts)
}

async fn work(shard: Shard, plan: &Plan) -> Result<Part> {
    let mut part = Part {
        bytes: 0,
        latency: new_histogram()?,
    };
    loop {
        let claimed = plan.next.fetch_add(1, Ordering::Relaxed);
        let is_over = plan.way == Way::FirstByte && claimed >= FIRST_BYTE_READS;
        let at = match plan.way {
            Way::FirstByte => claimed % plan.items.len().max(1),
            _ => claimed,
        };
        let Some((name, bytes)) = plan.items.get(at).filter(|_| !is_over) else {
            return Ok(part);
        };
        shard.stop()?;
        let key = Key::new(name)?;
        let path = plan.dir.join(name);
        part.bytes += match plan.way {
            Way::Put => put(&shard, plan, &key, &path, &mut part.latency).await?,
            Way::Get => get(&shard, plan, &key, *bytes, &path, &mut part.latency).await?,
            Way::GetWhole => get_whole(&shard, plan, &key, *bytes, &path).await?,
            Way::FirstByte => {
                let start = Instant::now();
                let offset = (claimed as u64 * 4099) % bytes.max(&1);
                plan.store.read(&shard, &key, offset, 1).await?;
                record(&mut part.latency, start.elapsed())?;
                1
            }
        };
    }
}

fn cannot_read(path: &Path, error: std::io::Error) -> Error {
    Error::new(Kind::Source, "a file cannot be read")
        .object(path.display().to_string())
        .cause(error)
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::new(Kind::Target, "a file cannot be written")
        .object(path.display().to_string())
        .cause(error)
}

/// A file as an object. The time is that of the commit, which sends it.
async fn put(
    shard: &Shard,
    plan: &Plan,
    key: &Key,
    path: &Path,
    latency: &mut Histogram<u64>,
) -> Result<u64> {
    let mut upload = plan.store.upload_unique(shard, key).await?;
    let file = File::open(path).map_err(|e| cannot_read(path, e))?;
    let mut offset = 0;
    loop {
        let mut piece = plan.store.piece(shard).await?;
        let mut filled = 0;
        while filled < BUF_BYTES {
            let read = file.read_at(&mut piece[filled..], offset);
            match read.map_err(|e| cannot_read(path, e))? {
                0 => break,
                read => (filled, offset) = (filled + read, offset + read as u64),
            }
        }
        upload.push(piece, filled).await?;
        if filled < BUF_BYTES {
            break;
        }
        shard.turn().await;
    }
    let start = Instant::now();
    let put = upload.commit().await?;
    record(latency, start.elapsed())?;
    match put {
        Put::Created => Ok(offset),
        Put::Exists => Err(Error::new(Kind::Conflict, "the object exists").object(key.as_str())),
    }
}

/// An object as a file, a run at a time. The times are those of the runs.
async fn get(
    shard: &Shard,
    plan: &Plan,
    key: &Key,
    bytes: u64,
    path: &Path,
    latency: &mut Histogram<u64>,
) -> Result<u64> {
    let file = File::create(path).map_err(|e| cannot_write(path, e))?;
    let reader = plan.store.reader(shard);
    let (mut asked, mut at) = (0, 0);
    let mut written = Ok(());
    while asked < bytes {
        let left = (asked..bytes).step_by(READ_BYTES_MAX).take(RUN_PIECES);
        let lens: Vec<usize> = left
            .map(|from| (bytes - from).min(READ_BYTES_MAX as u64) as usize)
            .collect();
        let start = Instant::now();
        let mut take = |piece: Slice| {
            if written.is_ok() {
                written = file.write_all_at(&piece, at);
            }
            at += piece.len() as u64;
        };
        reader.read_run(key, asked, &lens, &mut take).await?;
        record(latency, start.elapsed())?;
        asked = at;
    }
    written.map_err(|e| cannot_write(path, e))?;
    Ok(bytes)
}

/// An object as a file, by one request.
async fn get_whole(shard: &Shard, plan: &Plan, key: &Key, bytes: u64, path: &Path) -> Result<u64> {
    let whole = plan.store.get(shard, key, bytes).await?;
    std::fs::write(path, &whole).map_err(|e| cannot_write(path, e))?;
    Ok(whole.len() as u64)
}
