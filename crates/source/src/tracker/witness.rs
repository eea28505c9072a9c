//! Which backups were taken of this line of the log: end positions, each with the fingerprint of the log there. The layout is
//! in docs/tracker-format.md, section 8.
//!
//! A backup knows the log that it was made of by the log's last blocks. When they are gone, the store itself must say that
//! its log went through it: a copy or snapshot that was taken before and put back does not have the backup's entry.
//!
//! Invariants: an entry is made by the backup itself, in the store that it read, after it was published; it is of the store's
//! history. Each is there once. At most [`WITNESSES_MAX`] are kept, those that were made or stood on last. The file is replaced
//! as a whole; one that is damaged or another history's says nothing.

use std::io;
use std::os::fd::BorrowedFd;

use mover_base::checksum::{Sha256, crc32};
use mover_base::{BLOCK_BYTES, HistoryId, Lsn, Result, SystemId};

use super::TRACKER_VERSION;
use super::state::{CRC_AT, check_block, read_block, replace};
use crate::disk::Disk;
use crate::wal::{LSN_MAX, LogIdentity};
use crate::wire::{array_at, corrupt, u64_at};

/// The file.
pub const WITNESS_FILE: &str = "tracker/witness";
/// Under this name it is written before it is put in its place.
pub(super) const WITNESS_NEW: &str = "tracker/witness.new";
const MAGIC: [u8; 8] = *b"HELIOSTW";
/// Backups that are remembered.
pub const WITNESSES_MAX: usize = 100;
const FIRST_AT: usize = 48;
const ENTRY_BYTES: usize = 40;

/// The backups of a store's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The database.
    pub system: SystemId,
    /// The history that all positions are of.
    pub history: HistoryId,
    /// Ends of backups, in the order in which they were made or stood on last, with the fingerprint of the log up to there.
    pub ends: Vec<(Lsn, Sha256)>,
}

impl Witness {
    /// Of no backup.
    pub(super) fn none(identity: &LogIdentity) -> Self {
        Witness {
            system: identity.system,
            history: identity.history,
            ends: Vec::new(),
        }
    }

    /// The bytes of the file; of more than [`WITNESSES_MAX`] backups the latest.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut out = [0; BLOCK_BYTES];
        let ends = &self.ends[self.ends.len().saturating_sub(WITNESSES_MAX)..];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&TRACKER_VERSION.to_le_bytes());
        out[10] = ends.len() as u8;
        out[16..32].copy_from_slice(&self.system.0);
        out[32..48].copy_from_slice(&self.history.0);
        let places = out[FIRST_AT..CRC_AT].chunks_exact_mut(ENTRY_BYTES);
        for ((end, sha256), place) in ends.iter().zip(places) {
            place[..8].copy_from_slice(&end.0.to_le_bytes());
            place[8..].copy_from_slice(sha256);
        }
        let crc = crc32(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the file.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or breaks a rule.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: &str| corrupt(format!("the tracker's witness {what}"));
        check_block(bytes, &MAGIC).map_err(wrong)?;
        let count = usize::from(bytes[10]);
        if count > WITNESSES_MAX {
            return Err(wrong("breaks a rule of its layout"));
        }
        let entries = bytes[FIRST_AT..CRC_AT].chunks_exact(ENTRY_BYTES);
        let ends = entries
            .take(count)
            .map(|entry| (Lsn(u64_at(entry, 0)), array_at(entry, 8)));
        let witness = Witness {
            system: SystemId(array_at(bytes, 16)),
            history: HistoryId(array_at(bytes, 32)),
            ends: ends.collect(),
        };
        let ids = witness.system.0 != [0; 16] && witness.history.0 != [0; 16];
        let within = witness.ends.iter().all(|(end, _)| *end <= LSN_MAX);
        // Exactly one encoding: whatever is not read must be zero.
        match ids && within && witness.encode()[..] == *bytes {
            true => Ok(witness),
            false => Err(wrong("breaks a rule of its layout")),
        }
    }

    /// What the store on `disk` says of the history `identity`; nothing if there is no file, or one of another history.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged; `Source` if it cannot be read.
    pub fn read(disk: &dyn Disk, identity: &LogIdentity) -> Result<Self> {
        let what = "the tracker's witness cannot be read";
        let Some(bytes) = read_block(disk, WITNESS_FILE, what)? else {
            return Ok(Witness::none(identity));
        };
        let found = Witness::decode(&bytes).map_err(|error| error.object(WITNESS_FILE))?;
        let ours = (found.system, found.history) == (identity.system, identity.history);
        Ok(match ours {
            true => found,
            false => Witness::none(identity),
        })
    }

    /// Whether a backup of this line ended at `end`, with that fingerprint.
    pub fn knows(&self, end: Lsn, sha256: &Sha256) -> bool {
        self.ends.contains(&(end, *sha256))
    }

    /// Enters a backup as the latest, and right before it the one that it stands on, if that is known: one that is in use is never
    /// the first to go. None is entered twice, so that backups of a store where nothing happens push out no other.
    pub(super) fn enter(&mut self, base: Option<(Lsn, Sha256)>, entry: (Lsn, Sha256)) {
        let base = base.filter(|(end, sha256)| self.knows(*end, sha256));
        for latest in base.into_iter().chain([entry]) {
            self.ends.retain(|known| *known != latest);
            self.ends.push(latest);
        }
    }

    /// Replaces the file as a whole, durably. `prepare` is called with the new file before it gets its name.
    ///
    /// # Errors
    /// `Storage` if it cannot be written.
    pub(super) fn save(
        &self,
        disk: &dyn Disk,
        prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<()> {
        replace(disk, WITNESS_NEW, WITNESS_FILE, &self.encode(), prepare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> (Lsn, Sha256) {
        (Lsn(4096 * number), [number as u8; 32])
    }

    /// What is left when the file was written and read.
    fn entered(witness: &Witness) -> Vec<(Lsn, Sha256)> {
        Witness::decode(&witness.encode()).unwrap().ends
    }

    fn witness() -> Witness {
        Witness {
            system: SystemId([1; 16]),
            history: HistoryId([2; 16]),
            ends: Vec::new(),
        }
    }

    #[test]
    fn backups_of_an_idle_store_push_no_other_out() {
        let mut witness = witness();
        witness.enter(None, entry(1));
        for _ in 0..2 * WITNESSES_MAX {
            witness.enter(None, entry(2));
        }
        assert_eq!(entered(&witness), [entry(1), entry(2)]);
        // One that is made at an end that was known before is the latest.
        witness.enter(None, entry(1));
        assert_eq!(entered(&witness), [entry(2), entry(1)]);
    }

    #[test]
    fn a_base_stays_as_long_as_backups_stand_on_it() {
        let mut witness = witness();
        witness.enter(None, entry(1));
        let numbers = 2..2 * WITNESSES_MAX as u64;
        for number in numbers.clone() {
            witness.enter(Some(entry(1)), entry(number));
        }
        let ends = entered(&witness);
        assert_eq!(ends.len(), WITNESSES_MAX);
        assert_eq!(
            ends[WITNESSES_MAX - 2..],
            [entry(1), entry(numbers.end - 1)]
        );
        // One that is not known, since the log went back before its end, does not become known by that.
        let unknown = (Lsn(8), [0; 32]);
        witness.enter(Some(unknown), entry(500));
        assert!(!witness.knows(unknown.0, &unknown.1));
    }
}
