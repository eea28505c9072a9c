//! Settings of a run of shards.
//!
//! Invariants: every setting is a wish for speed, or for what the report holds; none changes the bytes that are read or
//! written.

use mover_base::{Error, Kind, Result};

use crate::arena::BUF_BYTES;

/// Longest request of a gentle run: what a disk of 1 GB/s serves in 65 us, so that whoever comes meanwhile hardly waits.
pub const GENTLE_REQUEST_BYTES: usize = 64 << 10;

/// How requests reach the kernel, best first. A shard takes the first rung that works.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// io_uring whose completions are processed when the shard asks for them (Linux 6.1).
    DeferTaskrun,
    /// io_uring without interrupts of the shard for completions (Linux 5.19).
    CoopTaskrun,
    /// io_uring without either (Linux 5.6).
    PlainRing,
    /// A few threads per shard that call `pread` and `pwrite`; works wherever threads do.
    Threads,
}

impl Rung {
    /// All rungs, best first.
    pub const ALL: [Rung; 4] = [
        Rung::DeferTaskrun,
        Rung::CoopTaskrun,
        Rung::PlainRing,
        Rung::Threads,
    ];
}

/// Most shards of a run: more than any machine's cores that this was made for, and few enough to start.
const SHARDS_MAX: usize = 1024;

/// Most buffers of an arena: the ring's table of registered buffers has this many entries.
const ARENA_BUFFERS_MAX: usize = 16_384;

/// Settings of a run of shards.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Number of shards; 0 = one per core that this process may use.
    pub shards: usize,
    /// Pin each shard to a core of its own.
    pub pin: bool,
    /// Bytes of buffers per shard, rounded down to whole buffers; the bound of its memory and its queue.
    pub arena_bytes: usize,
    /// The best rung to try.
    pub top_rung: Rung,
    /// Register the arena with the ring (needs RLIMIT_MEMLOCK; without it plain buffers are used).
    pub register_buffers: bool,
    /// Allow O_DIRECT for files that ask for it.
    pub direct: bool,
    /// Give way to other programs: reads and writes reach the disk [`GENTLE_REQUEST_BYTES`] at a time, one after the other
    /// for each buffer, and the threads run where nobody else wants the core (SCHED_IDLE), pinned to none.
    pub gentle: bool,
    /// Keep whole latency histograms in the report, not quantiles alone.
    pub histograms: bool,
}

impl Default for ShardConfig {
    fn default() -> Self {
        ShardConfig {
            shards: 0,
            pin: true,
            arena_bytes: 32 << 20,
            top_rung: Rung::DeferTaskrun,
            register_buffers: true,
            direct: true,
            gentle: false,
            histograms: false,
        }
    }
}

impl ShardConfig {
    /// Number of shards that [`run`](crate::run) starts: `shards`, or the number of usable cores.
    pub fn shard_count(&self) -> usize {
        match self.shards {
            0 => cores().len().max(1),
            shards => shards,
        }
    }

    /// Buffers per arena, or what is wrong with the settings.
    pub(crate) fn checked_buffers(&self) -> Result<u16> {
        if self.shard_count() > SHARDS_MAX {
            return Err(
                Error::new(Kind::Usage, "more shards than the mover can start")
                    .object(self.shards.to_string())
                    .hint(format!("use at most {SHARDS_MAX} shards")),
            );
        }
        let buffers = self.arena_bytes / BUF_BYTES;
        match u16::try_from(buffers) {
            Ok(count) if (1..=ARENA_BUFFERS_MAX).contains(&buffers) => Ok(count),
            _ => Err(
                Error::new(Kind::Usage, "the arena of a shard has an impossible size")
                    .object(format!("{} bytes", self.arena_bytes))
                    .hint("use 1 MiB to 16 GiB per shard"),
            ),
        }
    }
}

/// Cores in the affinity mask of the calling thread; empty if it cannot be read.
pub(crate) fn cores() -> Vec<core_affinity::CoreId> {
    core_affinity::get_core_ids().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_settings_are_refused() {
        let with = |shards, arena_bytes| ShardConfig {
            shards,
            arena_bytes,
            ..ShardConfig::default()
        };
        assert_eq!(with(1, BUF_BYTES).checked_buffers().ok(), Some(1));
        assert_eq!(with(1, 3 * BUF_BYTES - 1).checked_buffers().ok(), Some(2));
        for bad in [
            with(1, 0),
            with(1, BUF_BYTES - 1),
            with(1, (ARENA_BUFFERS_MAX + 1) * BUF_BYTES),
            with(SHARDS_MAX + 1, BUF_BYTES),
        ] {
            let error = bad.checked_buffers().expect_err("refused");
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.hint_text().is_some());
        }
    }
}
