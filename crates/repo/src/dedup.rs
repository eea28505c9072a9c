//! The block index: which blocks the repository is known to hold already, under a fixed byte budget.
//!
//! A set-associative table of 32-byte entries, allocated once. A full set gives up its oldest entry, so a
//! database larger than the budget loses some duplicates and never memory. Blocks that did not move since
//! the parent backup are found without the index (see [`crate::parent`]), so the budget bounds only how far
//! *moved* and *copied* content is recognised.
//!
//! Invariants: an entry holds the last 24 bytes of the block's SHA-256 (192 bits: a chance collision among
//! 2^40 blocks is below 2^-112) and a location that was valid when it was inserted; entries of the running
//! session point into packs that are committed before the manifest is, or the whole backup fails. A set is read
//! and written only under the lock of its stripe, held for one lookup, never across an await. The words are
//! atomic for one reason: [`BlockIndex::fetch`] touches them without the lock and uses nothing of what it reads.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};

use mover_base::checksum::Sha256;
use mover_base::{Error, Kind, PackId, Result};
use mover_io::SharedWords;

/// Bytes of one entry: three words of the hash, one of the location.
const ENTRY_BYTES: usize = 32;
/// Entries that one hash may take: a set fills two cache lines.
const WAYS: usize = 4;
/// Words of an entry.
const ENTRY_WORDS: usize = ENTRY_BYTES / 8;
/// Words of a set. The table is aligned, so that a set never takes a third cache line.
const SET_WORDS: usize = WAYS * ENTRY_WORDS;
/// Words of a cache line.
const LINE_WORDS: usize = 8;
/// An index that is made in no time and in which a small source forgets nothing.
const SMALL_BYTES: usize = 4 << 20;
/// Locks; far more than shards, so that two rarely meet.
const STRIPES: usize = 256;

/// Where a stored block is: a pack of this process's table and the block's ordinal in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// Number of the pack in [`PackTable`]; never 0.
    pub pack: u32,
    /// Ordinal of the block in the pack.
    pub ordinal: u32,
}

impl Location {
    /// Never 0, which marks a free entry.
    fn word(self) -> u64 {
        u64::from(self.pack) << 32 | u64::from(self.ordinal)
    }

    fn of_word(word: u64) -> Option<Self> {
        (word != 0).then_some(Location {
            pack: (word >> 32) as u32,
            ordinal: word as u32,
        })
    }
}

type Entry = [u64; ENTRY_WORDS];

fn entry(set: &[AtomicU64], way: usize) -> Entry {
    std::array::from_fn(|word| set[way * ENTRY_WORDS + word].load(Relaxed))
}

fn put(set: &[AtomicU64], way: usize, entry: Entry) {
    for (word, value) in entry.into_iter().enumerate() {
        set[way * ENTRY_WORDS + word].store(value, Relaxed);
    }
}

/// Blocks known to be stored, by content.
pub struct BlockIndex {
    words: SharedWords,
    sets: usize,
    locks: Box<[Mutex<()>]>,
}

impl BlockIndex {
    /// An empty index that takes at most `budget_bytes` (at least one set per stripe).
    pub fn new(budget_bytes: usize) -> Result<Self> {
        let sets = (budget_bytes / (ENTRY_BYTES * WAYS)).max(STRIPES);
        let words = SharedWords::new(sets * SET_WORDS).map_err(|error| {
            Error::new(Kind::Limit, "there is no memory for the block index")
                .object(format!("{budget_bytes} bytes"))
                .hint("give --index less, or the process more")
                .cause(error)
        })?;
        Ok(BlockIndex {
            words,
            sets,
            locks: (0..STRIPES).map(|_| Mutex::new(())).collect(),
        })
    }

    /// Bytes that hold this many blocks with hardly any set overflowing: with eight times what they take, a set of four
    /// has half an entry on average, and under one block in a thousand is pushed out. A larger index only takes longer
    /// to make.
    pub fn bytes_for(blocks: u64) -> usize {
        let bytes = blocks.saturating_mul(8 * ENTRY_BYTES as u64);
        usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .max(SMALL_BYTES)
    }

    /// How many blocks fit.
    pub fn capacity_blocks(&self) -> u64 {
        (self.sets * WAYS) as u64
    }

    /// SHA-256 output is uniform, so any bytes of it choose the set; the entry keeps the others. As a fraction of all that a word
    /// can be, since a remainder costs a division.
    fn set_of(&self, hash: &Sha256) -> usize {
        ((u128::from(word(hash, 0)) * self.sets as u128) >> u64::BITS) as usize
    }

    fn set(&self, at: usize) -> &[AtomicU64] {
        &self.words[at * SET_WORDS..(at + 1) * SET_WORDS]
    }

    /// Brings the sets of these blocks into the cache, side by side. One after the other they would each wait
    /// for memory, as a lock lets no later load begin: that was more than half of a lookup.
    pub fn fetch<'a>(&self, hashes: impl Iterator<Item = &'a Sha256>) {
        let mut touched = 0;
        for hash in hashes {
            let set = self.set(self.set_of(hash));
            touched ^= set[0].load(Relaxed) ^ set[LINE_WORDS].load(Relaxed);
        }
        black_box(touched);
    }

    /// The location of a block with this hash, or `new()` after noting it down.
    ///
    /// The second value tells whether it was known.
    pub fn find_or_insert(
        &self,
        hash: &Sha256,
        new: impl FnOnce() -> Location,
    ) -> (Location, bool) {
        let at = self.set_of(hash);
        let set = self.set(at);
        let _held = self.locks[at % STRIPES]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let key = [word(hash, 1), word(hash, 2), word(hash, 3)];
        for way in 0..WAYS {
            let [a, b, c, location] = entry(set, way);
            match Location::of_word(location) {
                Some(location) if [a, b, c] == key => return (location, true),
                // Entries are filled from the first on.
                None => break,
                Some(_) => {}
            }
        }
        let location = new();
        for way in (1..WAYS).rev() {
            put(set, way, entry(set, way - 1));
        }
        let [a, b, c] = key;
        put(set, 0, [a, b, c, location.word()]);
        (location, false)
    }
}

/// Word `at` (of four) of a hash.
pub(crate) fn word(hash: &Sha256, at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[at * 8..at * 8 + 8]);
    u64::from_le_bytes(bytes)
}

/// Numbers for packs, so that a location takes 8 bytes.
pub struct PackTable {
    packs: RwLock<Vec<PackId>>,
}

impl Default for PackTable {
    fn default() -> Self {
        // Number 0 means "free" in the index and is given to no pack.
        PackTable {
            packs: RwLock::new(vec![PackId([0; 16])]),
        }
    }
}

impl PackTable {
    /// Gives a pack the next number.
    pub fn add(&self, id: PackId) -> u32 {
        let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
        packs.push(id);
        (packs.len() - 1) as u32
    }

    /// The pack of a number that [`add`](Self::add) gave.
    pub fn id(&self, number: u32) -> PackId {
        self.packs.read().unwrap_or_else(PoisonError::into_inner)[number as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mover_base::checksum::sha256;

    fn hash(n: u32) -> Sha256 {
        sha256(&n.to_le_bytes())
    }

    #[test]
    fn a_block_keeps_its_first_location() {
        let index = BlockIndex::new(1 << 20).expect("memory");
        let at = |ordinal| Location { pack: 1, ordinal };
        assert_eq!(index.find_or_insert(&hash(1), || at(7)), (at(7), false));
        assert_eq!(index.find_or_insert(&hash(1), || at(8)), (at(7), true));
        assert_eq!(index.find_or_insert(&hash(2), || at(9)), (at(9), false));
    }

    #[test]
    fn a_full_index_forgets_and_never_answers_wrongly() {
        let index = BlockIndex::new(0).expect("memory");
        assert_eq!(index.capacity_blocks(), (STRIPES * WAYS) as u64);
        for n in 0..20_000 {
            let (location, known) = index.find_or_insert(&hash(n), || Location {
                pack: 1,
                ordinal: n,
            });
            assert!(!known && location.ordinal == n);
        }
        let mut known_count = 0;
        for n in 0..20_000 {
            let (location, known) = index.find_or_insert(&hash(n), || Location {
                pack: 2,
                ordinal: n,
            });
            assert_eq!(location.ordinal, n);
            known_count += u32::from(known);
        }
        assert!(known_count <= (STRIPES * WAYS) as u32);
    }

    #[test]
    fn an_index_made_for_a_source_forgets_under_a_thousandth_of_it() {
        let blocks = 100_000;
        let index = BlockIndex::new(BlockIndex::bytes_for(blocks)).expect("memory");
        for n in 0..blocks as u32 {
            index.find_or_insert(&hash(n), || Location {
                pack: 1,
                ordinal: n,
            });
        }
        let locations = index
            .words
            .iter()
            .skip(ENTRY_WORDS - 1)
            .step_by(ENTRY_WORDS);
        let held = locations.filter(|word| word.load(Relaxed) != 0).count() as u64;
        assert!(held <= blocks && held > blocks - blocks / 1000, "{held}");
    }

    #[test]
    fn many_threads_agree_on_one_location() {
        let index = BlockIndex::new(1 << 20).expect("memory");
        let found: Vec<Vec<Location>> = std::thread::scope(|scope| {
            let ask = |pack| {
                let index = &index;
                scope.spawn(move || {
                    let hashes: Vec<Sha256> = (0..2_000).map(hash).collect();
                    index.fetch(hashes.iter());
                    let each = hashes.iter().zip(0..).map(|(hash, ordinal)| {
                        index.find_or_insert(hash, || Location { pack, ordinal }).0
                    });
                    each.collect()
                })
            };
            let threads: Vec<_> = (1..5).map(ask).collect();
            let ended = threads.into_iter().map(|thread| thread.join());
            ended.map(|found| found.expect("no panic")).collect()
        });
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]));
        assert!(
            (0..)
                .zip(&found[0])
                .all(|(n, location)| location.ordinal == n)
        );
    }

    #[test]
    fn budget_is_kept() {
        for budget in [1 << 16, (1 << 20) + 1, 48 << 20] {
            let index = BlockIndex::new(budget).expect("memory");
            assert!(index.capacity_blocks() as usize * ENTRY_BYTES <= budget);
        }
    }
}
