//! The live file: the marks of the running epoch, in memory that the database and the backup side share.
//!
//! A slot holds one epoch's marks: a directory, open-addressed, whose entry n says which 4,096 pages of which table the
//! n-th bitmap stands for. There are two slots, so that one can be read while the other is marked. The layout is in
//! docs/tracker-format.md, section 4.
//!
//! Invariants: nobody waits to mark, and no order of two marks matters: an entry is taken once and stays, a bit is set
//! and stays, until its epoch's marks are in a durable file and nobody marks in it any more. So a process killed at any
//! instruction leaves marks that are sound. The file has all its blocks before it is mapped and is never cut: no touch
//! of it can fail for want of room, but where the file system copies on write (docs/tracker-format.md, section 4). Where a
//! slot has no room it says so in `full`, and the log is read instead.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::thread::LocalKey;
use std::time::{Duration, Instant};

use mover_base::checksum::crc32;
use mover_base::{BLOCK_BYTES, Error, HistoryId, Kind, Lsn, Result, SystemId, hex};
use mover_io::FileWords;
use rustix::fs::{FallocateFlags, FlockOperation, IFlags, OFlags};
use rustix::io::Errno;

use super::TRACKER_VERSION;
use super::doubt::Doubt;
use super::epoch_file::{CHUNKS_LOG2, CHUNKS_MAX, Place};
use super::state::failed;
use crate::delta::{CHUNK_BYTES, CHUNK_PAGES, ChunkWords};
use crate::disk::{DirDisk, Disk, remove_if_there};
use crate::pages::Catalogue;
use crate::wire::{array_at, corrupt, is_zero, u16_at, u32_at, u64_at};

/// The live file.
pub const LIVE_FILE: &str = "tracker/live";
/// Under this name it is made before it is put in its place.
pub(super) const LIVE_NEW: &str = "tracker/live.new";
/// How long the end of an epoch may wait for transactions that were marked and not appended yet.
const QUIET_WAIT: Duration = Duration::from_secs(10);
/// How long it sleeps between two looks.
const QUIET_POLL: Duration = Duration::from_micros(50);

const MAGIC: [u8; 8] = *b"HELIOSTL";
const CRC_AT: usize = BLOCK_BYTES - 4;
const BLOCK_WORDS: usize = BLOCK_BYTES / 8;
const CHUNK_WORDS: usize = CHUNK_BYTES / 8;
/// Words of a cache line.
const LINE_WORDS: usize = 8;
/// Entries that share a cache line, and their bitmaps a page of memory: neighbours of a table.
const GROUP: u64 = 8;
/// Groups that are looked at for an entry before the slot counts as full.
const PROBES_MAX: u64 = 64;
/// Counters of transactions under way; threads are spread over them.
const SHARDS: usize = 32;

// Words of the second block, each in a cache line of its own.
const CURRENT: usize = BLOCK_WORDS;
const DURABLE: usize = BLOCK_WORDS + LINE_WORDS;
const APPENDED: usize = BLOCK_WORDS + 2 * LINE_WORDS;
const START: usize = BLOCK_WORDS + 3 * LINE_WORDS;
const FULL: usize = BLOCK_WORDS + 5 * LINE_WORDS;
/// The third block: the counters, a line for each shard.
const COUNTERS: usize = 2 * BLOCK_WORDS;
/// Where the directories begin.
const DIRECTORIES: usize = 3 * BLOCK_WORDS;

/// How many bitmaps of 4,096 pages each of the two slots has room for, as a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capacity(u8);

impl Capacity {
    /// Smallest exponent: 1,024 bitmaps, for tests.
    pub const LOG2_MIN: u8 = 10;
    /// Largest exponent: 8 Mi bitmaps, for 64 TiB of tables.
    pub const LOG2_MAX: u8 = 23;
    /// Smallest exponent that a database gets: a file of 8.14 MiB (8.5 MB).
    const LOG2_USUAL: u8 = 13;

    /// Room for 2 to the power of `log2` bitmaps.
    ///
    /// # Errors
    /// `Usage` unless `log2` is 10 to 23.
    pub fn new(log2: u8) -> Result<Self> {
        if (Self::LOG2_MIN..=Self::LOG2_MAX).contains(&log2) {
            Ok(Capacity(log2))
        } else {
            let what = format!("the tracker's capacity, 2^{log2} bitmaps, is not 2^10 to 2^23");
            Err(Error::new(Kind::Usage, what))
        }
    }

    /// Twice what all pages of all tables would take, so that the tables may grow.
    pub fn of(catalogue: &Catalogue) -> Self {
        let tables = catalogue.tables().values();
        let chunks: u64 = tables.map(|t| 1 + u64::from(t.pages / CHUNK_PAGES)).sum();
        let log2 = (2 * chunks).next_power_of_two().ilog2() as u8;
        Capacity(log2.clamp(Self::LOG2_USUAL, Self::LOG2_MAX))
    }

    /// The exponent.
    pub const fn log2(self) -> u8 {
        self.0
    }

    const fn entries(self) -> usize {
        1 << self.0
    }

    /// Words of the file: three blocks, two directories, two times the bitmaps.
    const fn words(self) -> usize {
        DIRECTORIES + 2 * self.entries() * (1 + CHUNK_WORDS)
    }
}

/// The first block of the live file: whose it is, and where it may count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveHeader {
    /// How much there is room for.
    pub capacity: Capacity,
    /// The database.
    pub system: SystemId,
    /// The history.
    pub history: HistoryId,
    /// Random; the state names it.
    pub id: [u8; 16],
    /// The kernel's id of this start of the machine.
    pub boot: [u8; 16],
    /// The device that the file was made on.
    pub device: u64,
    /// The file's number there.
    pub inode: u64,
}

impl LiveHeader {
    /// The bytes of the block.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut out = [0; BLOCK_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&TRACKER_VERSION.to_le_bytes());
        out[10] = self.capacity.0;
        out[16..32].copy_from_slice(&self.system.0);
        out[32..48].copy_from_slice(&self.history.0);
        out[48..64].copy_from_slice(&self.id);
        out[64..80].copy_from_slice(&self.boot);
        out[80..88].copy_from_slice(&self.device.to_le_bytes());
        out[88..96].copy_from_slice(&self.inode.to_le_bytes());
        let crc = crc32(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the block.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or breaks a rule.
    pub fn decode(bytes: &[u8; BLOCK_BYTES]) -> Result<Self> {
        let wrong = |what: &str| Err(corrupt(format!("its header {what}")).object(LIVE_FILE));
        if bytes[..8] != MAGIC {
            return wrong("does not begin as one");
        }
        if u32_at(bytes, CRC_AT) != crc32(&bytes[..CRC_AT]) {
            return wrong("does not match its checksum");
        }
        if u16_at(bytes, 8) != TRACKER_VERSION {
            return wrong("is of an unknown version");
        }
        let (Ok(capacity), true) = (
            Capacity::new(bytes[10]),
            is_zero(&bytes[11..16]) && is_zero(&bytes[96..CRC_AT]),
        ) else {
            return wrong("breaks a rule of its layout");
        };
        Ok(LiveHeader {
            capacity,
            system: SystemId(array_at(bytes, 16)),
            history: HistoryId(array_at(bytes, 32)),
            id: array_at(bytes, 48),
            boot: array_at(bytes, 64),
            device: u64_at(bytes, 80),
            inode: u64_at(bytes, 88),
        })
    }
}

/// The mapped live file.
#[derive(Debug)]
pub(super) struct Live {
    words: FileWords,
    capacity: Capacity,
    id: [u8; 16],
    /// Locked while a database marks.
    file: File,
}

impl Live {
    /// Makes a live file in which epoch `epoch` begins at `start`, and puts it in its place.
    pub(super) fn make(
        disk: &DirDisk,
        ids: (SystemId, HistoryId),
        capacity: Capacity,
        epoch: u64,
        start: Lsn,
    ) -> Result<Live> {
        let id = mover_io::random_bytes()?;
        let make = || -> io::Result<Live> {
            remove_if_there(disk, LIVE_NEW)?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            let file = File::from(disk.descriptor(LIVE_NEW, flags)?);
            give_blocks(&file, capacity.words() as u64 * 8)?;
            let found = file.metadata()?;
            let header = LiveHeader {
                capacity,
                system: ids.0,
                history: ids.1,
                id,
                boot: boot_id()?,
                device: found.dev(),
                inode: found.ino(),
            };
            file.write_all_at(&header.encode(), 0)?;
            let words = FileWords::map(&file, capacity.words())?;
            words[START + slot_of(epoch) * LINE_WORDS].store(start.0, Relaxed);
            words[DURABLE].store(start.0, Relaxed);
            words[APPENDED].store(start.0, Relaxed);
            words[CURRENT].store(epoch, SeqCst);
            disk.rename(LIVE_NEW, LIVE_FILE)?;
            Ok(Live {
                words,
                capacity,
                id,
                file,
            })
        };
        make().map_err(|error| {
            // On a full disk its blocks are needed elsewhere.
            let _ = disk.remove(LIVE_NEW);
            failed(LIVE_FILE, error)
        })
    }

    /// Opens the live file `id` of the history, if it counts.
    pub(super) fn open(
        disk: &DirDisk,
        ids: (SystemId, HistoryId),
        id: [u8; 16],
    ) -> Result<Live, Doubt> {
        let unreadable = |error: io::Error| Doubt::Unreadable(error.to_string());
        let file = match disk.descriptor(LIVE_FILE, OFlags::RDWR) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Doubt::Missing),
            file => File::from(file.map_err(unreadable)?),
        };
        let found = file.metadata().map_err(unreadable)?;
        if found.len() < BLOCK_BYTES as u64 {
            return Err(Doubt::Size);
        }
        let mut block = [0; BLOCK_BYTES];
        file.read_exact_at(&mut block, 0).map_err(unreadable)?;
        let header = LiveHeader::decode(&block)
            .map_err(|error| Doubt::Header(error.message().to_owned()))?;
        if found.len() != header.capacity.words() as u64 * 8 {
            return Err(Doubt::Size);
        }
        if (header.id, header.system, header.history) != (id, ids.0, ids.1) {
            return Err(Doubt::Another);
        }
        if header.boot != boot_id().map_err(unreadable)? {
            return Err(Doubt::Restarted);
        }
        if (header.device, header.inode) != (found.dev(), found.ino()) {
            return Err(Doubt::Copied);
        }
        let words = FileWords::map(&file, header.capacity.words()).map_err(unreadable)?;
        Ok(Live {
            words,
            capacity: header.capacity,
            id,
            file,
        })
    }

    pub(super) fn id(&self) -> [u8; 16] {
        self.id
    }

    pub(super) fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The running epoch.
    pub(super) fn current(&self) -> u64 {
        self.words[CURRENT].load(SeqCst)
    }

    /// All groups that end here or before are marked, and durable.
    pub(super) fn durable(&self) -> Lsn {
        Lsn(self.words[DURABLE].load(SeqCst))
    }

    /// The log is durable up to `lsn`, and all of it is marked.
    pub(super) fn set_durable(&self, lsn: Lsn) {
        // Mostly somebody else said more already: then the cache line stays shared.
        if self.words[DURABLE].load(Relaxed) < lsn.0 {
            self.words[DURABLE].fetch_max(lsn.0, SeqCst);
        }
    }

    /// No group that was marked ends behind this.
    pub(super) fn appended(&self) -> Lsn {
        Lsn(self.words[APPENDED].load(SeqCst))
    }

    /// A group is marked that ends at `lsn` in the log.
    pub(super) fn raise_appended(&self, lsn: Lsn) {
        let appended = &self.words[APPENDED];
        if appended.load(Relaxed) < lsn.0 {
            appended.fetch_max(lsn.0, SeqCst);
        }
    }

    /// The log ends at `lsn`: what was appended behind it never became durable.
    pub(super) fn cut_appended(&self, lsn: Lsn) {
        self.words[APPENDED].fetch_min(lsn.0, SeqCst);
    }

    /// Where an epoch in a slot begins.
    pub(super) fn start(&self, epoch: u64) -> Lsn {
        Lsn(self.words[START + slot_of(epoch) * LINE_WORDS].load(SeqCst))
    }

    pub(super) fn full(&self, epoch: u64) -> bool {
        self.words[FULL + slot_of(epoch) * LINE_WORDS].load(SeqCst) != 0
    }

    pub(super) fn set_full(&self, epoch: u64) {
        self.words[FULL + slot_of(epoch) * LINE_WORDS].store(1, SeqCst);
    }

    /// Has the kernel write what was marked, and so learns of marks that it could not write before: those may be lost when it
    /// needs their memory. The log is read in place of all marks then, and of all to come.
    pub(super) fn sync(&self) -> Result<(), Doubt> {
        self.file.sync_data().map_err(|error| {
            self.set_full(0);
            self.set_full(1);
            Doubt::Unwritten(error.to_string())
        })
    }

    /// Locks the file for the one process that marks. False if another one does.
    pub(super) fn claim(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Says where transactions end whose process was killed behind their append. What of them is not durable by what was said
    /// is read from the log by who comes next.
    fn speak_for_dead(&self) {
        self.raise_appended(self.durable());
    }

    /// Forgets transactions under way: whoever began them is dead.
    pub(super) fn forget_under_way(&self) {
        self.speak_for_dead();
        for counter in &self.words[COUNTERS..COUNTERS + SHARDS * LINE_WORDS] {
            counter.store(0, SeqCst);
        }
    }

    fn counter(&self, shard: usize, epoch: u64) -> &AtomicU64 {
        &self.words[COUNTERS + shard * LINE_WORDS + slot_of(epoch)]
    }

    /// Where marks of an epoch go.
    pub(super) fn slot(&self, epoch: u64) -> Slot<'_> {
        let (entries, slot) = (self.capacity.entries(), slot_of(epoch));
        let directory = DIRECTORIES + slot * entries;
        let maps = DIRECTORIES + 2 * entries + slot * entries * CHUNK_WORDS;
        Slot {
            directory: &self.words[directory..directory + entries],
            maps: &self.words[maps..maps + entries * CHUNK_WORDS],
            full: &self.words[FULL + slot * LINE_WORDS],
        }
    }

    /// Empties the slot of the next epoch, which nobody marks in, and says where it begins.
    pub(super) fn prepare(&self, next: u64, start: Lsn) {
        let slot = self.slot(next);
        for (at, entry) in slot.directory.iter().enumerate() {
            if entry.load(Relaxed) != 0 {
                for word in &slot.maps[at * CHUNK_WORDS..(at + 1) * CHUNK_WORDS] {
                    word.store(0, Relaxed);
                }
                // Last, so that who is killed here begins with this entry again.
                entry.store(0, Release);
            }
        }
        slot.full.store(0, SeqCst);
        self.words[START + slot_of(next) * LINE_WORDS].store(start.0, SeqCst);
    }

    /// From now on transactions begin in epoch `next`.
    pub(super) fn switch(&self, next: u64) {
        self.words[CURRENT].store(next, SeqCst);
    }

    /// Waits until no transaction is under way that began in `epoch`, which is over, and all of them have said where they
    /// end. If nobody has claimed the file, what is counted belongs to the dead.
    pub(super) fn wait_quiet(&self, disk: &DirDisk, epoch: u64) -> Result<()> {
        let deadline = Instant::now() + QUIET_WAIT;
        let quiet = || (0..SHARDS).all(|shard| self.counter(shard, epoch).load(SeqCst) == 0);
        while !quiet() && claimed(disk)? {
            if Instant::now() > deadline {
                return Err(Error::new(
                    Kind::Unreachable,
                    "the database does not end a transaction that it began to log",
                )
                .object(LIVE_FILE)
                .hint("try again when the database's log can be written again"));
            }
            std::thread::sleep(QUIET_POLL);
        }
        if !quiet() {
            self.speak_for_dead();
        }
        Ok(())
    }

    /// Begins a transaction: all its marks go to one epoch, which does not end before it does.
    pub(super) fn begin(&self) -> Marking<'_> {
        let shard = shard();
        loop {
            let epoch = self.words[CURRENT].load(SeqCst);
            let counter = self.counter(shard, epoch);
            // All four accesses are SeqCst and so in one order. If the epoch is still the same behind the count, the switch
            // comes later, and whoever switches sees the count; otherwise the count is taken back, and it goes to the
            // next epoch.
            counter.fetch_add(1, SeqCst);
            if self.words[CURRENT].load(SeqCst) == epoch {
                return Marking {
                    live: self,
                    slot: self.slot(epoch),
                    counter,
                    last: None,
                    has_ended: false,
                };
            }
            counter.fetch_sub(1, SeqCst);
        }
    }
}

/// Whether a living process has the live file claimed.
fn claimed(disk: &DirDisk) -> Result<bool> {
    let claimed = || -> io::Result<bool> {
        let file: OwnedFd = match disk.descriptor(LIVE_FILE, OFlags::RDWR) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    };
    claimed().map_err(|error| failed(LIVE_FILE, error))
}

/// The marks of one epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'l> {
    directory: &'l [AtomicU64],
    maps: &'l [AtomicU64],
    full: &'l AtomicU64,
}

impl<'l> Slot<'l> {
    /// Where the bitmap of a run of pages is. It is taken if it is not there yet; `None` if there is no room.
    fn find(&self, table: u32, chunk: u32) -> Option<usize> {
        // Never 0: there is no table 0.
        let key = u64::from(table) << CHUNKS_LOG2 | u64::from(chunk);
        // A power of two, and more than are looked at.
        let groups = self.directory.len() as u64 / GROUP;
        let hash = spread(key / GROUP);
        // Neighbours of a table stand in one group; where in it, differs from table to table, or else small tables, which
        // have but one run, would crowd the groups' first entries.
        let column = (u64::from(chunk) + (hash >> 8)) % GROUP;
        for probe in 0..PROBES_MAX {
            let group = ((hash >> 32) + probe) & (groups - 1);
            let at = (group * GROUP + column) as usize;
            let entry = &self.directory[at];
            let mut found = entry.load(Relaxed);
            if found == 0 {
                // An empty entry's bitmap is zeros, since before this epoch began. Relaxed is enough: nothing is reached
                // through the entry, and who reads the slot has synchronised with who marks in it.
                found = match entry.compare_exchange(0, key, Relaxed, Relaxed) {
                    Ok(_) => key,
                    Err(found) => found,
                };
            }
            if found == key {
                return Some(at);
            }
        }
        None
    }

    /// Marks a page. What has no room is noted in `full`.
    pub(super) fn mark(&self, table: u32, page: u32) {
        match self.find(table, page / CHUNK_PAGES) {
            Some(at) => self.set(at, page),
            None => self.full.store(1, SeqCst),
        }
    }

    /// Sets a page's bit in the bitmap `at`.
    fn set(&self, at: usize, page: u32) {
        let bit = page % CHUNK_PAGES;
        let word = &self.maps[at * CHUNK_WORDS + (bit / 64) as usize];
        let mask = 1 << (bit % 64);
        // Mostly it is set already: then the cache line stays shared.
        if word.load(Relaxed) & mask == 0 {
            word.fetch_or(mask, Relaxed);
        }
    }

    /// All bitmaps in order, each with its place.
    pub(super) fn each(
        &self,
        mut visit: impl FnMut(Place, &ChunkWords) -> Result<()>,
    ) -> Result<()> {
        // Four bytes for each, since there may be millions. What is taken stays, so that the order holds.
        let key_at = |at: u32| self.directory[at as usize].load(SeqCst);
        let mut order: Vec<u32> = (0..self.directory.len() as u32)
            .filter(|at| key_at(*at) != 0)
            .collect();
        order.sort_unstable_by_key(|at| key_at(*at));
        for at in order {
            let (key, at) = (key_at(at), at as usize);
            let words = &self.maps[at * CHUNK_WORDS..(at + 1) * CHUNK_WORDS];
            let words = std::array::from_fn(|i| words[i].load(SeqCst));
            let place = Place {
                table: (key >> CHUNKS_LOG2) as u32,
                chunk: key as u32 & (CHUNKS_MAX - 1),
            };
            visit(place, &words)?;
        }
        Ok(())
    }
}

/// A transaction whose pages are being marked. It must live until the transaction was appended to the log, and say where
/// it ends there ([`end`](Self::end)). Dropped without, nobody knows whether it was appended: the log is read in place of the
/// marks of its epoch then, if it had any.
#[derive(Debug)]
#[must_use = "marks count for the log up to where the transaction ends in it"]
pub struct Marking<'l> {
    live: &'l Live,
    slot: Slot<'l>,
    counter: &'l AtomicU64,
    /// The bitmap of the page marked last: table, run and where.
    last: Option<(u32, u32, usize)>,
    /// Where it ends in the log is known.
    has_ended: bool,
}

impl Marking<'_> {
    /// Marks a page of a table that the transaction changes. Table ids begin at 1.
    pub fn mark(&mut self, table: u32, page: u32) {
        debug_assert!(table != 0, "there is no table 0");
        let chunk = page / CHUNK_PAGES;
        let at = match self.last {
            Some((of, run, at)) if (of, run) == (table, chunk) => Some(at),
            // The log is read in place of the whole slot: no more need be looked for.
            _ if self.slot.full.load(Relaxed) != 0 => return,
            _ => self.slot.find(table, chunk),
        };
        match at {
            Some(at) => {
                self.slot.set(at, page);
                self.last = Some((table, chunk, at));
            }
            None => self.slot.full.store(1, SeqCst),
        }
    }

    /// Marks several pages.
    pub fn mark_many(&mut self, pages: impl IntoIterator<Item = (u32, u32)>) {
        for (table, page) in pages {
            self.mark(table, page);
        }
    }

    /// The transaction was appended, and ends at `lsn` in the log.
    pub fn end(mut self, lsn: Lsn) {
        // Before the count goes: who finds nobody under way finds the last position too.
        self.live.raise_appended(lsn);
        self.has_ended = true;
    }
}

impl Drop for Marking<'_> {
    fn drop(&mut self) {
        // A thread that unwinds, or a task that is cancelled, may have appended it behind a switch.
        if !self.has_ended && self.last.is_some() {
            self.slot.full.store(1, SeqCst);
        }
        // Release: who sees the count go sees the marks, and the position.
        self.counter.fetch_sub(1, Release);
    }
}

/// Which of the two slots is an epoch's.
fn slot_of(epoch: u64) -> usize {
    (epoch % 2) as usize
}

/// The thread's counter: threads take them in turn.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SHARD: usize = NEXT.fetch_add(1, Relaxed) % SHARDS);
    let shard: &LocalKey<usize> = &SHARD;
    // A thread that is ending has lost it: any will do.
    shard.try_with(|shard| *shard).unwrap_or(0)
}

/// Spreads a number over all 64 bits.
fn spread(key: u64) -> u64 {
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// The kernel's id of this start of the machine.
fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    hex::decode(&digits).ok_or_else(|| io::Error::other("the kernel's boot id is none"))
}

/// Gives an empty file `bytes` bytes with blocks of their own, all zero.
fn give_blocks(file: &File, bytes: u64) -> io::Result<()> {
    // Where the file system would copy on write (btrfs), an overwritten block may need a new one when the disk is full. The
    // others know no such flag.
    if let Ok(flags) = rustix::fs::ioctl_getflags(file) {
        let _ = rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW);
    }
    let allocate = || rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes);
    match rustix::io::retry_on_intr(allocate) {
        Err(Errno::OPNOTSUPP) => {
            let zeros = vec![0; 1 << 20];
            let mut at = 0;
            while at < bytes {
                let piece = (bytes - at).min(zeros.len() as u64);
                file.write_all_at(&zeros[..piece as usize], at)?;
                at += piece;
            }
            Ok(())
        }
        given => Ok(given?),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    const IDS: (SystemId, HistoryId) = (SystemId([1; 16]), HistoryId([2; 16]));

    fn disk(path: &Path) -> DirDisk {
        let disk = DirDisk::open(path).unwrap();
        disk.make_dir("tracker").unwrap();
        disk
    }

    fn make(disk: &DirDisk) -> Live {
        Live::make(disk, IDS, Capacity::new(10).unwrap(), 1, Lsn(4096)).unwrap()
    }

    fn marked(slot: Slot<'_>) -> BTreeSet<(u32, u32)> {
        let mut pages = BTreeSet::new();
        let mut last = None;
        slot.each(|place, words| {
            assert!(last < Some(place), "in order");
            last = Some(place);
            for page in (0..CHUNK_PAGES).filter(|p| words[(p / 64) as usize] >> (p % 64) & 1 == 1) {
                pages.insert((place.table, place.chunk * CHUNK_PAGES + page));
            }
            Ok(())
        })
        .unwrap();
        pages
    }

    #[test]
    fn marks_are_what_was_marked_and_another_mapping_sees_them() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let live = make(&disk);
        let mut wanted = BTreeSet::new();
        for n in 0..400u32 {
            let place = (1 + n % 7, n.wrapping_mul(2_654_435_761) >> (n % 20));
            wanted.insert(place);
        }
        wanted.extend([(u32::MAX - 1, u32::MAX - 1), (1, 0), (1, 63), (1, 64)]);
        let mut marking = live.begin();
        marking.mark_many(wanted.iter().copied());
        marking.mark_many(wanted.iter().copied());
        marking.end(Lsn(5000));
        let other = Live::open(&disk, IDS, live.id()).unwrap();
        assert_eq!(marked(other.slot(1)), wanted);
        assert!(marked(other.slot(2)).is_empty() && !other.full(1));
        assert_eq!((other.appended(), other.durable()), (Lsn(5000), Lsn(4096)));
        // The next epoch begins empty, and so does the one after it in the same slot.
        other.prepare(2, Lsn(5000));
        other.switch(2);
        other.wait_quiet(&disk, 1).unwrap();
        let mut marking = live.begin();
        marking.mark(3, 9);
        marking.end(Lsn(5008));
        assert_eq!(marked(live.slot(2)), BTreeSet::from([(3, 9)]));
        assert_eq!(marked(live.slot(1)), wanted);
        other.prepare(3, Lsn(5008));
        assert!(marked(live.slot(1)).is_empty());
    }

    #[test]
    fn a_transaction_of_which_nobody_says_where_it_ends_has_the_log_read() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let live = make(&disk);
        drop(live.begin());
        assert!(!live.full(1), "nothing was marked");
        let mut marking = live.begin();
        marking.mark(1, 7);
        marking.end(Lsn(5000));
        assert!(!live.full(1), "it ended");
        let unwound = std::thread::scope(|scope| {
            let marks = scope.spawn(|| {
                let mut marking = live.begin();
                marking.mark(1, 8);
                panic!("between the append and its end");
            });
            marks.join()
        });
        assert!(unwound.is_err() && live.full(1));
        live.wait_quiet(&disk, 1).unwrap();
    }

    #[test]
    fn marks_that_cannot_be_written_never_count_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let mut live = make(&disk);
        live.sync().unwrap();
        assert!(!live.full(1) && !live.full(2));
        // A pipe cannot be synced.
        let (reader, _writer) = std::io::pipe().unwrap();
        live.file = File::from(OwnedFd::from(reader));
        assert!(matches!(live.sync(), Err(Doubt::Unwritten(_))));
        let other = Live::open(&disk, IDS, live.id()).unwrap();
        assert!(other.full(1) && other.full(2));
    }

    #[test]
    fn bitmaps_stand_where_the_format_says() {
        let dir = tempfile::tempdir().unwrap();
        let live = make(&disk(dir.path()));
        let slot = live.slot(1);
        // Computed by section 4 of the format, outside of this program. The last one's first place is that of the first.
        let places = [
            ((1, 0), 962),
            ((1, 1), 963),
            ((7, 8), 778),
            ((258, 2), 245),
            ((344, 0), 970),
        ];
        for ((table, chunk), at) in places {
            slot.mark(table, chunk * CHUNK_PAGES + 65);
            let key = u64::from(table) << 20 | u64::from(chunk);
            assert_eq!(slot.directory[at].load(SeqCst), key, "{table} {chunk}");
            let words: Vec<u64> = slot.maps[at * 64..(at + 1) * 64]
                .iter()
                .map(|word| word.load(SeqCst))
                .collect();
            let wanted: Vec<u64> = (0..64).map(|n| if n == 1 { 2 } else { 0 }).collect();
            assert_eq!(words, wanted, "{table} {chunk}");
        }
        let taken = slot.directory.iter().filter(|e| e.load(SeqCst) != 0);
        assert_eq!(taken.count(), places.len());
    }

    #[test]
    fn who_has_no_room_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let live = make(&disk(dir.path()));
        let mut table = 0;
        while !live.full(1) {
            table += 1;
            live.slot(1).mark(table, 0);
        }
        // Small tables alone fill at least three quarters of it.
        assert!((768..=1025).contains(&table), "{table}");
        assert_eq!(marked(live.slot(1)).len() as u32, table - 1);
        // What has its place keeps it.
        live.slot(1).mark(1, 4095);
        assert!(marked(live.slot(1)).contains(&(1, 4095)));
        // A transaction looks for no more places, though this one is there.
        let before = marked(live.slot(1));
        let mut marking = live.begin();
        marking.mark_many([(1, 7), (2_000_000, 7)]);
        marking.end(Lsn(4104));
        assert_eq!(marked(live.slot(1)), before);
        assert!(live.full(1));
        live.prepare(3, Lsn(0));
        assert!(!live.full(3) && marked(live.slot(3)).is_empty());
    }

    #[test]
    fn epochs_end_between_transactions_whoever_switches() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let live = make(&disk);
        assert!(live.claim().unwrap());
        let (other, log) = (
            Live::open(&disk, IDS, live.id()).unwrap(),
            AtomicU64::new(8),
        );
        let transactions = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=3u32)
                .map(|table| {
                    let (live, log) = (&live, &log);
                    scope.spawn(move || {
                        let mut ends = Vec::new();
                        for page in 0..20_000u32 {
                            let mut marking = live.begin();
                            marking.mark(table, page);
                            let end = Lsn(log.fetch_add(8, SeqCst));
                            marking.end(end);
                            ends.push((end, (table, page)));
                        }
                        ends
                    })
                })
                .collect();
            let mut seen: Vec<(Lsn, BTreeSet<(u32, u32)>)> = Vec::new();
            for epoch in 1..40 {
                other.prepare(epoch + 1, Lsn(0));
                other.switch(epoch + 1);
                other.wait_quiet(&disk, epoch).unwrap();
                seen.push((other.appended(), marked(other.slot(epoch))));
                std::thread::sleep(Duration::from_micros(200));
            }
            let ends = threads.into_iter().flat_map(|t| t.join().unwrap());
            seen.push((Lsn(u64::MAX), marked(other.slot(40))));
            (seen, ends.collect::<Vec<_>>())
        });
        let (seen, ends) = transactions;
        for (end, place) in ends {
            let epochs: Vec<usize> = (0..seen.len())
                .filter(|e| seen[*e].1.contains(&place))
                .collect();
            assert_eq!(epochs.len(), 1, "{place:?}");
            // No epoch says that it ends before what is marked in it, nor that it began behind.
            assert!(end <= seen[epochs[0]].0, "{place:?}");
        }
    }

    #[test]
    fn a_living_process_that_does_not_end_its_transaction_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let live = make(&disk);
        assert!(live.claim().unwrap());
        std::thread::scope(|scope| {
            let mut marking = live.begin();
            marking.mark(1, 1);
            scope.spawn(|| {
                let mut marking = marking;
                std::thread::sleep(Duration::from_millis(30));
                marking.mark(1, 2);
                marking.end(Lsn(9000));
            });
            live.prepare(2, Lsn(0));
            live.switch(2);
            live.wait_quiet(&disk, 1).unwrap();
            assert_eq!(marked(live.slot(1)).len(), 2);
            assert_eq!(live.appended(), Lsn(9000));
        });
        // A dead one's count holds nobody up, and whoever takes the file up forgets it.
        let (id, dead) = (live.id(), live.begin());
        std::mem::forget(dead);
        drop(live);
        let live = Live::open(&disk, IDS, id).unwrap();
        live.wait_quiet(&disk, 2).unwrap();
        assert!(live.claim().unwrap());
        live.forget_under_way();
        live.wait_quiet(&disk, 2).unwrap();
    }

    #[test]
    fn every_byte_of_the_header_counts() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let live = make(&disk);
        let bytes = std::fs::read(dir.path().join(LIVE_FILE)).unwrap();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        let block: [u8; BLOCK_BYTES] = bytes[..BLOCK_BYTES].try_into().unwrap();
        let header = LiveHeader::decode(&block).unwrap();
        assert_eq!(header.encode(), block);
        assert_eq!((header.id, header.capacity), (live.id(), live.capacity()));
        // No touch of it needs a block that the disk may not have.
        let given = live.file.metadata().unwrap().blocks() * 512;
        assert!(given >= bytes.len() as u64, "{given} bytes have blocks");
        for at in 0..BLOCK_BYTES {
            let mut wrong = block;
            wrong[at] ^= 1 << (at % 8);
            assert!(LiveHeader::decode(&wrong).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_file_that_is_not_the_one_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let path = dir.path().join(LIVE_FILE);
        let live = make(&disk);
        let open = |ids, id| Live::open(&disk, ids, id).unwrap_err();
        assert_eq!(open(IDS, [9; 16]), Doubt::Another);
        let other = (IDS.0, HistoryId([3; 16]));
        assert_eq!(open(other, live.id()), Doubt::Another);
        let bytes = std::fs::read(&path).unwrap();
        let mut header = LiveHeader::decode(bytes[..BLOCK_BYTES].try_into().unwrap()).unwrap();
        header.boot[0] ^= 1;
        let write = |bytes: &[u8]| {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(bytes, 0).unwrap();
        };
        write(&header.encode());
        assert_eq!(open(IDS, live.id()), Doubt::Restarted);
        write(&bytes[..BLOCK_BYTES]);
        Live::open(&disk, IDS, live.id()).unwrap();
        let copy = dir.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        assert_eq!(open(IDS, live.id()), Doubt::Copied);
        for len in [0, 100, 4096, bytes.len() as u64 - 1, bytes.len() as u64 + 1] {
            let file = std::fs::File::create(&copy).unwrap();
            file.write_all_at(&bytes[..(len as usize).min(bytes.len())], 0)
                .unwrap();
            file.set_len(len).unwrap();
            std::fs::rename(&copy, &path).unwrap();
            assert_eq!(open(IDS, live.id()), Doubt::Size, "{len}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(open(IDS, live.id()), Doubt::Missing);
    }

    #[test]
    fn capacity_follows_the_tables_and_has_bounds() {
        let mut catalogue = Catalogue::new(IDS.0, IDS.1, Lsn(4096));
        assert_eq!(Capacity::of(&catalogue).log2(), 13);
        let record = crate::wal::Record::Create {
            table: 1,
            kind: crate::wal::TableKind::Rows,
            name: "t",
        };
        catalogue.apply(Lsn(5000), &record).unwrap();
        // 1 TiB of pages is 65,536 bitmaps, and as many again.
        let record = crate::wal::Record::Extend {
            table: 1,
            pages: 1 << 28,
        };
        catalogue.apply(Lsn(5008), &record).unwrap();
        assert_eq!(Capacity::of(&catalogue).log2(), 18);
        assert!(Capacity::new(9).is_err() && Capacity::new(24).is_err());
    }
}
