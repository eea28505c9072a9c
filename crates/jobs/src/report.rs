//! What a finished job tells: every figure of its summary, as plain data.
//!
//! Invariants: figures are measured, never derived from a setting; a figure that was not measured is absent.

use mover_io::ShardReport;
use serde::Serialize;

/// Wall seconds that the shards spent in each CPU stage, added over all shards.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Stages {
    /// SHA-256 of blocks, the search for zeros included.
    pub hash: f64,
    /// Looking blocks up in the parent backup and in the block index.
    pub dedup: f64,
    /// zstd compression.
    pub compress: f64,
    /// Decoding what was encoded and comparing it with the source.
    pub compare: f64,
    /// Sealing, checksums and filling pack buffers.
    pub seal: f64,
    /// Opening seals and decompressing (restore, verify).
    pub decode: f64,
    /// Waiting for a read to end with nothing else to do.
    pub read_wait: f64,
    /// Waiting for a write to end with nothing else to do.
    pub write_wait: f64,
}

impl Stages {
    /// Adds another shard's seconds.
    pub fn add(&mut self, other: &Stages) {
        self.hash += other.hash;
        self.dedup += other.dedup;
        self.compress += other.compress;
        self.compare += other.compare;
        self.seal += other.seal;
        self.decode += other.decode;
        self.read_wait += other.read_wait;
        self.write_wait += other.write_wait;
    }
}

/// What the machinery did for a job.
#[derive(Debug, Clone, Serialize)]
pub struct EngineReport {
    /// Wall time of the whole job.
    pub seconds: f64,
    /// CPU time of the whole process, user and system, in seconds.
    pub cpu_seconds: f64,
    /// Largest resident set of the process, in bytes (VmHWM).
    pub peak_rss_bytes: u64,
    /// Seconds per stage, added over shards.
    pub stages: Stages,
    /// One report per shard: rung, buffers, bytes, busy share.
    pub shards: Vec<ShardReport>,
}
