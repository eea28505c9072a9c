//! The work that every engine does: which pieces to read, what to do with each, what to report.
//!
//! Invariants: pieces are claimed from one shared cursor in order, so all engines read the same ranges; the check
//! value does not depend on the order of completion, so equal values mean that all engines saw the same bytes.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
use mover_base::checksum::sha256;
use mover_base::{BLOCK_BYTES, Error, Kind, Result};

/// One read.
pub const PIECE_BYTES: usize = 1 << 20;
/// Size and alignment of a huge page.
pub const HUGE_BYTES: usize = 2 << 20;
/// A vector of so many bytes holds a whole huge page, wherever it begins.
pub const ROOM_BYTES: usize = 2 * HUGE_BYTES;
/// Reads in flight per shard.
pub const DEPTH: usize = 16;
/// Buffers of a shard: of the reads in flight, and of the piece that is worked on.
pub const BUFFERS: usize = DEPTH + 1;
/// Hashed between two looks at the ring: 64 blocks take about 0.15 ms.
pub const SLICE_BYTES: usize = 64 * BLOCK_BYTES;
/// Longest latency told apart, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Spreads what was seen of a piece over 64 bits, so that equal halves do not cancel (2^64 / golden ratio, odd).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Part of a file: index of the file, offset, length in whole blocks.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Index in [`Work::paths`].
    pub file: usize,
    /// First byte.
    pub offset: u64,
    /// Length, at most [`PIECE_BYTES`].
    pub len: usize,
}

/// What there is to do, shared by all shards.
#[derive(Debug)]
pub struct Work {
    /// Files.
    pub paths: Vec<PathBuf>,
    pieces: Vec<Piece>,
    next: AtomicUsize,
    /// Whether each block is hashed; otherwise the data is only read.
    pub hash: bool,
}

impl Work {
    /// All whole blocks of the files.
    pub fn new(paths: Vec<PathBuf>, hash: bool) -> Result<Arc<Self>> {
        let mut pieces = Vec::new();
        for (file, path) in paths.iter().enumerate() {
            let meta = std::fs::metadata(path).map_err(|e| {
                failed("a file cannot be read", e).object(path.display().to_string())
            })?;
            let bytes = meta.len() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
            for offset in (0..bytes).step_by(PIECE_BYTES) {
                let len = (bytes - offset).min(PIECE_BYTES as u64) as usize;
                pieces.push(Piece { file, offset, len });
            }
        }
        Ok(Arc::new(Work {
            paths,
            pieces,
            next: AtomicUsize::new(0),
            hash,
        }))
    }

    /// The next piece, if any is left.
    pub fn claim(&self) -> Option<Piece> {
        self.pieces
            .get(self.next.fetch_add(1, Ordering::Relaxed))
            .copied()
    }

    /// The files, opened for direct reads.
    pub fn open(&self) -> Result<Vec<File>> {
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or(0);
        let open = |path: &PathBuf| {
            std::fs::OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open(path)
                .map_err(|e| {
                    failed("a file cannot be opened for direct reads", e)
                        .object(path.display().to_string())
                })
        };
        self.paths.iter().map(open).collect()
    }
}

/// What a shard did.
#[derive(Debug)]
pub struct Tally {
    /// Bytes read.
    pub bytes: u64,
    /// From the call of a read until its task has the data, in microseconds.
    pub latency: Histogram<u64>,
    /// Sum over the pieces of what was seen of them, mixed by a multiplication.
    pub check: u64,
    /// Huge pages of the process when the shard was done, in MiB; of several shards the most, since each gives its own back.
    pub huge_mib: u64,
}

impl Tally {
    /// Nothing done yet.
    pub fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_US_MAX, 2)
            .unwrap_or_else(|error| unreachable!("constant bounds are valid: {error}"));
        Tally {
            bytes: 0,
            latency,
            check: 0,
            huge_mib: 0,
        }
    }

    /// Counts one read.
    pub fn count(&mut self, bytes: usize, took: Duration) {
        self.bytes += bytes as u64;
        self.latency
            .saturating_record((took.as_micros() as u64).max(1));
    }

    /// Looks at a slice of what was read: hashes each block, or only touches the last bytes.
    pub fn see(&mut self, slice: &[u8], hash: bool) {
        if !hash {
            self.note(slice.last_chunk());
            return;
        }
        for block in slice.chunks(BLOCK_BYTES) {
            self.note(sha256(block).first_chunk());
        }
    }

    fn note(&mut self, seen: Option<&[u8; 8]>) {
        let word = seen.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        self.check = self
            .check
            .wrapping_add((word ^ word >> 32).wrapping_mul(MIX));
    }

    /// Adds what another shard did.
    pub fn add(&mut self, other: &Tally) {
        self.bytes += other.bytes;
        self.check = self.check.wrapping_add(other.check);
        self.huge_mib = self.huge_mib.max(other.huge_mib);
        // Equal bounds, so adding cannot fail.
        let _ = self.latency.add(&other.latency);
    }
}

/// An error of the bake-off.
pub fn failed(what: &str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Kind::Source, what).cause(cause)
}

/// A read that gave less than was asked for.
pub fn short_read() -> Error {
    Error::new(
        Kind::SourceChanged,
        "a file became shorter while it was read",
    )
}

/// A histogram in the exchange format of HdrHistogram: V2, deflated, base64.
pub fn encode(histogram: &Histogram<u64>) -> Result<String> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .map_err(|e| failed("a histogram cannot be written", format!("{e:?}")))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// Cores that this process may use.
pub fn cores() -> Vec<core_affinity::CoreId> {
    core_affinity::get_core_ids().unwrap_or_default()
}

/// First byte of a huge page in a vector of [`ROOM_BYTES`] that begins at `address`.
pub fn huge_begin(address: *const u8) -> usize {
    let address = address as usize;
    address.next_multiple_of(HUGE_BYTES) - address
}

/// Huge pages of this process, in MiB: they decide more than the engine does, so each run says what it had.
pub fn huge_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
