//! The packs that the readers of a job have open, on all of its shards.
//!
//! Invariants: a pack that several want at the same time is opened by one of them, and the others wait; directories take at most
//! [`DIRECTORIES_BYTES_MAX`] for each shard that shares them, or it is one pack; those that were used last are kept. Of a pack
//! that could not be opened nothing is kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mover_base::PackId;
use tokio::sync::OnceCell;

use crate::reader::OpenPack;

/// Bytes of directories that are kept for each shard (each at most 3 MiB; about 2 MiB for a pack of easy pages).
pub(crate) const DIRECTORIES_BYTES_MAX: usize = 8 << 20;
/// Bytes of a directory for each of a pack's blocks: its SHA-256.
pub(crate) const DIRECTORY_BYTES_PER_BLOCK: usize = 32;

/// Where an open pack is, or will be.
pub(crate) type Place = Arc<OnceCell<Arc<OpenPack>>>;

/// Open packs.
#[derive(Default)]
pub(crate) struct OpenPacks(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// How many share them.
    shards: usize,
    /// The least recently used first.
    places: VecDeque<(PackId, Place)>,
}

impl OpenPacks {
    /// So many shards share them.
    pub fn share(&self, shards: usize) {
        let mut kept = self.kept();
        kept.shards = kept.shards.max(shards);
    }

    /// Where a pack is; empty if it is to be opened.
    pub fn place(&self, id: PackId) -> Place {
        let mut kept = self.kept();
        let known = kept.places.iter().rposition(|(known, _)| *known == id);
        let known = known.and_then(|at| kept.places.remove(at));
        let place = match known {
            Some((_, place)) => place,
            None => {
                // Only here: one that was used a moment ago is found without going through all of them.
                kept.forget_failed();
                Place::default()
            }
        };
        kept.places.push_back((id, place.clone()));
        place
    }

    /// Whether a pack is open.
    pub fn is_open(&self, id: PackId) -> bool {
        let kept = self.kept();
        let mut places = kept.places.iter();
        places.any(|(known, place)| *known == id && place.initialized())
    }

    /// Closes what there is no room for: to be called when one was opened.
    pub fn trim(&self) {
        let mut kept = self.kept();
        kept.forget_failed();
        let room = DIRECTORIES_BYTES_MAX * kept.shards.max(1);
        let open = kept.places.iter().filter_map(|(_, place)| place.get());
        let bytes: Vec<usize> = open.map(|pack| pack.memory_bytes()).collect();
        let mut without = too_many(&bytes, room);
        kept.places.retain(|(_, place)| {
            let goes = without > 0 && place.initialized();
            without -= usize::from(goes);
            !goes
        });
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Removes the places at which nothing was opened and nobody opens anything any more. Whoever is about to has taken a place of
    /// [`OpenPacks::place`], under the lock that is held here too.
    fn forget_failed(&mut self) {
        let is_wanted = |place: &Place| place.initialized() || Arc::strong_count(place) > 1;
        self.places.retain(|(_, place)| is_wanted(place));
    }
}

/// How many of the first of things of these sizes have to go, so that the others have room, or one is left.
fn too_many(bytes: &[usize], room: usize) -> usize {
    let mut left = room;
    let mut kept = 0;
    for bytes in bytes.iter().rev() {
        match left.checked_sub(*bytes) {
            Some(rest) => left = rest,
            None => break,
        }
        kept += 1;
    }
    bytes.len() - kept.max(1).min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_within_the_room() {
        let gone = |bytes: &[usize]| too_many(bytes, 10);
        assert_eq!(gone(&[]), 0);
        assert_eq!(gone(&[10]), 0);
        assert_eq!(gone(&[11]), 0, "one is kept in any case");
        assert_eq!(gone(&[4, 3, 3]), 0);
        assert_eq!(gone(&[1, 4, 3, 3]), 1);
        assert_eq!(gone(&[1, 11, 3]), 2);
        assert_eq!(gone(&[3, 11]), 1);
    }

    #[test]
    fn a_pack_has_one_place_until_it_is_closed() {
        let packs = OpenPacks::default();
        let id = |byte| PackId([byte; 16]);
        let first = packs.place(id(1));
        assert!(Arc::ptr_eq(&first, &packs.place(id(1))));
        assert!(!Arc::ptr_eq(&first, &packs.place(id(2))));
        packs.trim();
        assert!(Arc::ptr_eq(&first, &packs.place(id(1))));
        assert!(!packs.is_open(id(1)));
    }

    #[test]
    fn packs_that_could_not_be_opened_leave_nothing_behind() {
        let packs = OpenPacks::default();
        let waited_for = packs.place(PackId([0xff; 16]));
        for number in 0..10_000u128 {
            // Whoever fails to open it drops it as it is.
            drop(packs.place(PackId(number.to_le_bytes())));
            assert!(packs.kept().places.len() <= 2, "{number}");
        }
        packs.trim();
        assert_eq!(packs.kept().places.len(), 1);
        assert!(Arc::ptr_eq(&waited_for, &packs.place(PackId([0xff; 16]))));
        drop(waited_for);
        packs.trim();
        assert!(packs.kept().places.is_empty());
    }
}
