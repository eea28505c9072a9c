//! Settings that every verb shares, each beside its bound.
//!
//! Invariant: at the defaults the arenas and the block index, with the list of a source's names beyond a bound, take the same memory
//! for any size of database and any number of cores; what follows the number of names and extents is stated in
//! docs/architecture.md.

use mover_base::units::format_bytes;
use mover_base::{Error, Kind, Result};
use mover_io::{BUF_BYTES, RateBudget, Rung, Shard, ShardConfig, Stop};
use mover_repo::{Credentials, LinkLimits, Repository};

use mover_source::NAMES_BYTES_DEFAULT;

use crate::progress::Progress;
use std::sync::Arc;

/// Default of [`Engine::arena_bytes`].
pub const ARENA_BYTES_DEFAULT: usize = 64 << 20;
/// Default of [`Engine::index_bytes`]: about 1.5 million blocks, 6 GB of distinct content.
pub const INDEX_BYTES_DEFAULT: usize = 48 << 20;
/// Names beside which the whole index has room. What they take beyond it is taken from the index, so that both together stay
/// within bounds: a file that is where it was is recognised without it.
const NAMES_BYTES_BESIDE: usize = 24 << 20;
/// The index that is made beside any number of names.
const INDEX_BYTES_LEAST: usize = 16 << 20;
/// Buffers that a shard needs beside those it reads ahead into: one pack of blocks and one of nodes being
/// filled, the writes of either under way, and one for reading a parent's directory.
pub(crate) const BUFFERS_RESERVED: usize = 7;
/// Buffers that a restoring shard needs beside its writes and stored frames ahead: the frames being decoded, a
/// directory, and the unit being put together.
const BUFFERS_DECODE: usize = 3;
/// Those that it needs at least beside its writes.
const BUFFERS_RESTORE: usize = mover_repo::READS_AHEAD + BUFFERS_DECODE;
/// Fewest buffers of a shard: enough to go forward in either direction.
const BUFFERS_MIN: usize = BUFFERS_RESTORE + 3;
/// Most writes of a restoring shard under way.
const WRITES_MAX: usize = 8;
/// Most buffers that a shard reads ahead into: 16 MiB in flight cover the time in which it compresses.
const READ_AHEAD_MAX: usize = 16;
/// As much as a job's limit lets through in this time is read ahead where there is one: longer than most disks take, and short
/// enough that what was read comes to the processors evenly, not in bursts that other programs wait behind.
const READ_AHEAD_LIMITED_MS: u64 = 50;
/// More buffers than a shard can have in use, whichever way it goes: they would only be zeroed and pinned, which takes
/// up to a millisecond each before the first read.
const BUFFERS_MAX: usize = max(
    BUFFERS_RESERVED + READ_AHEAD_MAX,
    BUFFERS_RESTORE + WRITES_MAX,
);
/// The same where reading goes over a link: 21 MiB of packs ahead, in runs that are long and yet several
/// (decision 8).
const BUFFERS_LINK_MAX: usize = BUFFERS_DECODE + 21 + WRITES_MAX;

/// What one shard keeps up with, of nearly all data. A gentle job has no more shards than its limit needs: a core that is at
/// work on one does not take over at once what waits for another core (decision 13).
const GENTLE_SHARD_BYTES_PER_SECOND: u64 = 64 << 20;

/// How the machinery of a job is set up.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Shards; 0 = one per core, of a gentle job as few as its limit needs.
    pub shards: usize,
    /// Pin shards to cores.
    pub pin: bool,
    /// Bytes of I/O buffers, all shards together.
    pub arena_bytes: usize,
    /// Highest rung of the I/O ladder to try.
    pub top_rung: Rung,
    /// Use O_DIRECT where the file system offers it.
    pub direct: bool,
    /// Register buffers with the kernel where the memlock limit allows.
    pub register_buffers: bool,
    /// Give way to other programs on the machine: short requests to disks, and processors only where nobody else wants them.
    pub gentle: bool,
    /// Tell the whole histograms of latencies in the summary, not quantiles alone.
    pub histograms: bool,
    /// Budget of the block index, in bytes.
    pub index_bytes: usize,
    /// Budget of the list of a source's names, in bytes.
    pub names_bytes: usize,
    /// Limits on what a job reads and writes.
    pub limits: JobLimits,
}

impl Default for Engine {
    fn default() -> Self {
        Engine {
            shards: 0,
            pin: true,
            arena_bytes: ARENA_BYTES_DEFAULT,
            top_rung: Rung::DeferTaskrun,
            direct: true,
            register_buffers: true,
            gentle: false,
            histograms: false,
            index_bytes: INDEX_BYTES_DEFAULT,
            names_bytes: NAMES_BYTES_DEFAULT as usize,
            limits: JobLimits::default(),
        }
    }
}

/// A repository and what opens it.
#[derive(Debug, Clone)]
pub struct RepoAccess {
    /// Its URL.
    pub url: String,
    /// Passphrase, identity or nothing.
    pub credentials: Credentials,
    /// Limits on the link to it.
    pub link: LinkLimits,
}

impl RepoAccess {
    /// Opens the repository.
    pub(crate) async fn open(&self, shard: &Shard) -> Result<Repository> {
        Repository::open(shard, &self.url, &self.link, &self.credentials).await
    }
}

/// Called about ten times a second on the calling thread while a job runs; raising the flag cancels the job.
pub type Tick<'a> = &'a mut dyn FnMut(&Progress, &Stop);

/// Limits on what a job reads and writes, in bytes per second; they may change while it runs.
#[derive(Debug, Clone)]
pub struct JobLimits {
    /// On reading the source (backup) or the repository (restore, verify).
    pub read: Arc<RateBudget>,
    /// On writing to the repository (backup) or the target (restore).
    pub write: Arc<RateBudget>,
}

impl Default for JobLimits {
    fn default() -> Self {
        JobLimits {
            read: RateBudget::new(None),
            write: RateBudget::new(None),
        }
    }
}

impl Engine {
    /// Budget of the block index beside a list of names that takes so many bytes.
    pub(crate) fn index_bytes_beside(&self, names_bytes: usize) -> usize {
        let taken = names_bytes.saturating_sub(NAMES_BYTES_BESIDE);
        let left = self.index_bytes.saturating_sub(taken);
        left.max(INDEX_BYTES_LEAST.min(self.index_bytes))
    }

    /// Shards on every core, for the work on a source's data. More cores than the arenas allow for are left idle.
    pub(crate) fn wide(&self) -> Result<ShardConfig> {
        // What is written is stored, and of what is stored one shard may fall short.
        self.wide_with(BUFFERS_MAX, self.limits.read.get())
    }

    /// The same for reading a repository.
    pub(crate) fn wide_to_read(&self, repository: &Repository) -> Result<ShardConfig> {
        let limits = [self.limits.read.get(), self.limits.write.get()];
        let buffers_max = match repository.has_link() {
            true => BUFFERS_LINK_MAX,
            false => BUFFERS_MAX,
        };
        self.wide_with(buffers_max, limits.into_iter().flatten().min())
    }

    /// `limit` is what all shards together shall move, in bytes per second.
    fn wide_with(&self, buffers_max: usize, limit: Option<u64>) -> Result<ShardConfig> {
        let buffers = self.arena_bytes / BUF_BYTES;
        if buffers < BUFFERS_MIN {
            return Err(Error::new(Kind::Usage, "the buffers are too small")
                .object(format_bytes(self.arena_bytes as u64))
                .hint(format!("give --arena at least {BUFFERS_MIN}MiB")));
        }
        let config = self.config(self.shards, self.arena_bytes);
        let wanted = match limit {
            Some(limit) if self.gentle && self.shards == 0 => {
                limit.div_ceil(GENTLE_SHARD_BYTES_PER_SECOND).max(1)
            }
            _ => u64::MAX,
        };
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let shards = config.shard_count().min(buffers / BUFFERS_MIN).min(wanted);
        let arena_bytes = (self.arena_bytes / shards).min(buffers_max * BUF_BYTES);
        Ok(self.config(shards, arena_bytes))
    }

    /// One shard, for what comes before and after the work on data. It moves so little that registering its buffers,
    /// which zeroes and pins all of them, would cost more than it saves. It is short, and others may wait for it: it never
    /// gives way.
    pub(crate) fn single(&self) -> ShardConfig {
        ShardConfig {
            register_buffers: false,
            gentle: false,
            ..self.config(1, (2 * BUFFERS_MIN) * BUF_BYTES)
        }
    }

    /// The same for work on little data.
    pub(crate) fn single_for_data(&self) -> ShardConfig {
        ShardConfig {
            gentle: self.gentle,
            ..self.single()
        }
    }

    fn config(&self, shards: usize, arena_bytes: usize) -> ShardConfig {
        ShardConfig {
            shards,
            pin: self.pin,
            arena_bytes,
            top_rung: self.top_rung,
            register_buffers: self.register_buffers,
            direct: self.direct,
            gentle: self.gentle,
            histograms: self.histograms,
        }
    }
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// Buffers that a shard with `total` of them may read ahead into, where all shards together read no more than `limit` bytes
/// per second.
pub(crate) fn read_ahead(total: usize, limit: Option<u64>) -> usize {
    let most = total
        .saturating_sub(BUFFERS_RESERVED)
        .clamp(1, READ_AHEAD_MAX);
    let Some(limit) = limit else { return most };
    let bytes = u128::from(limit) * u128::from(READ_AHEAD_LIMITED_MS) / 1000;
    let covered = usize::try_from(bytes / BUF_BYTES as u128).unwrap_or(usize::MAX);
    // One is worked on, and one is under way, however slow.
    covered.saturating_add(2).min(most)
}

/// Writes that a restoring shard with `total` buffers may have under way.
pub(crate) fn writes_max(total: usize) -> usize {
    total.saturating_sub(BUFFERS_RESTORE).clamp(1, WRITES_MAX)
}

/// Buffers of stored frames that a reading shard with `total` buffers may have ahead, beside so many writes.
pub(crate) fn pieces_ahead(total: usize, writes_max: usize) -> usize {
    total.saturating_sub(BUFFERS_DECODE + writes_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever waits for a buffer gets one, since each side keeps to its share.
    #[test]
    fn the_shares_of_a_restoring_shard_fit_its_buffers() {
        for total in BUFFERS_MIN..100 {
            let writes = writes_max(total);
            let ahead = pieces_ahead(total, writes);
            assert!(ahead >= mover_repo::READS_AHEAD, "{total}");
            assert!(ahead + writes + BUFFERS_DECODE <= total, "{total}");
        }
        // Three runs of 7 MiB in a restore. A verification, which writes nothing, divides them among three packs.
        assert_eq!(pieces_ahead(BUFFERS_LINK_MAX, WRITES_MAX), 21);
        assert_eq!(pieces_ahead(BUFFERS_LINK_MAX, 0), 29);
    }

    #[test]
    fn names_and_index_share_what_they_may_take() {
        let beside = |index_mib: usize, names_mib: usize| {
            let engine = Engine {
                index_bytes: index_mib << 20,
                ..Engine::default()
            };
            engine.index_bytes_beside(names_mib << 20) >> 20
        };
        let default = INDEX_BYTES_DEFAULT >> 20;
        assert_eq!(
            [0, 24, 25, 56, 128].map(|names| beside(default, names)),
            [48, 48, 47, 16, 16]
        );
        assert_eq!([0, 56].map(|names| beside(8, names)), [8, 8]);
        assert_eq!([0, 56].map(|names| beside(1024, names)), [1024, 992]);
        assert_eq!(NAMES_BYTES_DEFAULT >> 20, 56);
    }

    #[test]
    fn a_limited_job_reads_ahead_what_its_limit_gives_in_a_moment() {
        let mib = |mib: u64| Some(mib << 20);
        assert_eq!(read_ahead(BUFFERS_MAX, None), READ_AHEAD_MAX);
        for (limit, buffers) in [(Some(0), 2), (mib(2), 2), (mib(50), 4), (mib(200), 12)] {
            assert_eq!(read_ahead(BUFFERS_MAX, limit), buffers, "{limit:?}");
        }
        for limit in [mib(1000), Some(u64::MAX)] {
            assert_eq!(read_ahead(BUFFERS_MAX, limit), READ_AHEAD_MAX);
        }
        assert_eq!(read_ahead(BUFFERS_RESERVED, mib(50)), 1);
    }

    #[test]
    fn all_buffers_stay_within_the_budget() {
        for arena_bytes in [BUFFERS_MIN << 20, ARENA_BYTES_DEFAULT, 1 << 30] {
            for shards in 1..20 {
                let engine = Engine {
                    shards,
                    arena_bytes,
                    ..Engine::default()
                };
                for buffers_max in [BUFFERS_MAX, BUFFERS_LINK_MAX] {
                    let config = engine.wide_with(buffers_max, None).unwrap();
                    let count = config.shard_count();
                    assert!(count * config.arena_bytes <= arena_bytes);
                    assert!((BUFFERS_MIN << 20..=buffers_max << 20).contains(&config.arena_bytes));
                }
            }
        }
    }

    #[test]
    fn a_gentle_job_has_as_few_shards_as_its_limit_needs() {
        let shards = |shards, gentle, limit_mib: Option<u64>| {
            let engine = Engine {
                shards,
                gentle,
                arena_bytes: 1 << 30,
                limits: JobLimits {
                    read: RateBudget::new(limit_mib.map(|mib| mib << 20)),
                    ..JobLimits::default()
                },
                ..Engine::default()
            };
            engine.wide().unwrap().shard_count()
        };
        let all = ShardConfig::default().shard_count();
        for (limit_mib, wanted) in [(1, 1), (50, 1), (64, 1), (65, 2), (1 << 20, 1 << 14)] {
            let wanted = all.min(wanted);
            assert_eq!(shards(0, true, Some(limit_mib)), wanted, "{limit_mib}");
        }
        assert_eq!(shards(0, true, None), all);
        assert_eq!(shards(0, false, Some(1)), all);
        // Who names a number gets it.
        assert_eq!(shards(3, true, Some(1)), 3);
    }
}
