//! The block index: which blocks the repository is known to hold already, under a fixed byte budget.
//!
//! A set-associative table of 32-byte entries, allocated once. A full set gives up its oldest entry, so a
//! database larger than the budget loses some duplicates and never memory. Blocks that did not move since
//! the parent backup are found without the index (see [`crate::parent`]), so the budget bounds only how far
//! *moved* and *copied* content is recognised.
//!
//! Invariants: an entry holds the last 24 bytes of the block's SHA-256 (192 bits: a chance collision among
//! 2^40 blocks is below 2^-112) and a location that was valid when it was inserted; entries of the running
//! session point into packs that are committed before the manifest is, or the whole backup fails. Locks are
//! per stripe, held for one lookup, never across an await.

use std::sync::{Mutex, PoisonError, RwLock};

use mover_base::PackId;
use mover_base::checksum::Sha256;

/// Bytes of one entry.
const ENTRY_BYTES: usize = 32;
/// Entries that one hash may take: a set fills two cache lines.
const WAYS: usize = 4;
/// Locks; far more than shards, so that two rarely meet.
const STRIPES: usize = 256;
/// Bytes of the hash that an entry keeps.
const PREFIX_BYTES: usize = 24;

/// Where a stored block is: a pack of this process's table and the block's ordinal in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// Number of the pack in [`PackTable`]; never 0.
    pub pack: u32,
    /// Ordinal of the block in the pack.
    pub ordinal: u32,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    prefix: [u8; PREFIX_BYTES],
    /// 0 marks a free slot.
    pack: u32,
    ordinal: u32,
}

const _: () = assert!(size_of::<Slot>() == ENTRY_BYTES);

type Set = [Slot; WAYS];

/// Blocks known to be stored, by content.
pub struct BlockIndex {
    stripes: Box<[Mutex<Box<[Set]>>]>,
    sets_per_stripe: u64,
}

impl BlockIndex {
    /// An empty index that takes at most `budget_bytes` (at least one set per stripe).
    pub fn new(budget_bytes: usize) -> Self {
        let sets = budget_bytes / (ENTRY_BYTES * WAYS);
        let sets_per_stripe = (sets / STRIPES).max(1);
        let stripe =
            || Mutex::new(vec![[Slot::default(); WAYS]; sets_per_stripe].into_boxed_slice());
        BlockIndex {
            stripes: (0..STRIPES).map(|_| stripe()).collect(),
            sets_per_stripe: sets_per_stripe as u64,
        }
    }

    /// How many blocks fit.
    pub fn capacity_blocks(&self) -> u64 {
        self.sets_per_stripe * (STRIPES * WAYS) as u64
    }

    /// The location of a block with this hash, or `new()` after noting it down.
    ///
    /// The second value tells whether it was known.
    pub fn find_or_insert(
        &self,
        hash: &Sha256,
        new: impl FnOnce() -> Location,
    ) -> (Location, bool) {
        // SHA-256 output is uniform, so any bytes of it choose the stripe and the set.
        let (head, rest) = hash.split_at(8);
        let word = u64::from_le_bytes(head.try_into().unwrap_or_default());
        let stripe = (word % STRIPES as u64) as usize;
        let set = ((word / STRIPES as u64) % self.sets_per_stripe) as usize;
        debug_assert_eq!(rest.len(), PREFIX_BYTES);
        // The entry keeps the last 24 bytes; the first 8 have chosen the set.
        let mut sets = self.stripes[stripe]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let slots = &mut sets[set];
        for slot in slots.iter() {
            if slot.pack != 0 && slot.prefix == rest {
                return (
                    Location {
                        pack: slot.pack,
                        ordinal: slot.ordinal,
                    },
                    true,
                );
            }
        }
        let location = new();
        let mut prefix = [0; PREFIX_BYTES];
        prefix.copy_from_slice(rest);
        slots.rotate_right(1);
        slots[0] = Slot {
            prefix,
            pack: location.pack,
            ordinal: location.ordinal,
        };
        (location, false)
    }
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
        let index = BlockIndex::new(1 << 20);
        let at = |ordinal| Location { pack: 1, ordinal };
        assert_eq!(index.find_or_insert(&hash(1), || at(7)), (at(7), false));
        assert_eq!(index.find_or_insert(&hash(1), || at(8)), (at(7), true));
        assert_eq!(index.find_or_insert(&hash(2), || at(9)), (at(9), false));
    }

    #[test]
    fn a_full_index_forgets_and_never_answers_wrongly() {
        let index = BlockIndex::new(0);
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
    fn budget_is_kept() {
        for budget in [1 << 16, 1 << 20, 48 << 20] {
            let index = BlockIndex::new(budget);
            assert!(index.capacity_blocks() as usize * ENTRY_BYTES <= budget);
        }
    }
}
