//! Seconds per CPU stage of one shard.
//!
//! Invariant: a stage is counted where it runs and nowhere else, so the stages of a shard never add up to
//! more than its wall time.

use std::time::Instant;

use serde::Serialize;

/// Wall seconds of one shard in each stage.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct StageSeconds {
    /// SHA-256 and the search for zero blocks.
    pub hash: f64,
    /// Looking blocks up.
    pub dedup: f64,
    /// zstd compression.
    pub compress: f64,
    /// Decoding and comparing what was compressed.
    pub compare: f64,
    /// Sealing, checksums, filling pack buffers.
    pub seal: f64,
    /// Opening seals and decompressing.
    pub decode: f64,
    /// Waiting for reads.
    pub read_wait: f64,
    /// Waiting for writes and for free buffers.
    pub write_wait: f64,
}

impl StageSeconds {
    /// Adds another shard's seconds.
    pub fn add(&mut self, other: &StageSeconds) {
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

/// Adds the seconds since `since` to `stage` and gives the present instant for the next stage.
pub fn lap(stage: &mut f64, since: Instant) -> Instant {
    let now = Instant::now();
    *stage += now.duration_since(since).as_secs_f64();
    now
}
