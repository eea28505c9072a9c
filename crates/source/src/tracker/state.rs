//! The tracker's state: which epochs there are, and from where on each speaks.
//!
//! Invariants: epochs are numbered without a gap; every group of the log that ends behind the start of the oldest epoch
//! is marked in one of them, or lies in the log behind what the live file vouches for. The file is replaced as a
//! whole and durably. The layout is in docs/tracker-format.md, section 2.

use std::io;
use std::os::fd::BorrowedFd;

use mover_base::checksum::crc32;
use mover_base::{BLOCK_BYTES, Error, HistoryId, Kind, Lsn, Result, SystemId};

use super::doubt::Reset;
use super::{TRACKER_DIR, TRACKER_VERSION};
use crate::disk::{Access, Disk, remove_if_there};
use crate::failure::source_error;
use crate::wal::LSN_MAX;
use crate::wire::{array_at, corrupt, u16_at, u32_at, u64_at};

/// The state's file.
pub const STATE_FILE: &str = "tracker/state";
/// Under this name it is written before it is put in its place.
pub(super) const STATE_NEW: &str = "tracker/state.new";
/// Ended epochs that are kept; when there are more, the two oldest become one.
pub const KEPT_MAX: usize = 8;

const MAGIC: [u8; 8] = *b"HELIOSTK";
pub(super) const CRC_AT: usize = BLOCK_BYTES - 4;
const KEPT_AT: usize = 96;
const KEPT_BYTES: usize = 32;

/// An ended epoch whose marks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its number; of several that became one, the last one's.
    pub number: u64,
    /// Groups that end here or before are in older epochs.
    pub start: Lsn,
    /// Groups that end behind it are in younger epochs.
    pub end: Lsn,
    /// The checksum at the end of its file.
    pub crc: u32,
}

impl Kept {
    /// Path of the epoch's file: `tracker/<start>-<number>.epoch`, 16 hex digits each.
    pub fn path(&self) -> String {
        let (start, number) = (self.start.0, self.number);
        format!("{TRACKER_DIR}/{start:016x}-{number:016x}.epoch")
    }
}

/// What the state file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerState {
    /// The database.
    pub system: SystemId,
    /// The history.
    pub history: HistoryId,
    /// Which live file holds the marks of the running epoch; none if there is none that counts.
    pub live: Option<[u8; 16]>,
    /// The running epoch.
    pub epoch: u64,
    /// Groups that end here or before are in older epochs. The log was durable up to here.
    pub start: Lsn,
    /// Why nothing is known of what was before the oldest epoch.
    pub reset: Reset,
    /// Ended epochs, the oldest first.
    pub kept: Vec<Kept>,
}

impl TrackerState {
    /// From where on all changes are known.
    pub fn known_from(&self) -> Lsn {
        self.kept.first().map_or(self.start, |oldest| oldest.start)
    }

    /// The bytes of the file.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut out = [0; BLOCK_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&TRACKER_VERSION.to_le_bytes());
        out[10] = self.kept.len() as u8;
        out[11] = self.reset as u8;
        out[16..32].copy_from_slice(&self.system.0);
        out[32..48].copy_from_slice(&self.history.0);
        out[48..64].copy_from_slice(&self.live.unwrap_or_default());
        out[64..72].copy_from_slice(&self.epoch.to_le_bytes());
        out[72..80].copy_from_slice(&self.start.0.to_le_bytes());
        for (kept, entry) in self
            .kept
            .iter()
            .zip(out[KEPT_AT..CRC_AT].chunks_exact_mut(KEPT_BYTES))
        {
            entry[0..8].copy_from_slice(&kept.number.to_le_bytes());
            entry[8..16].copy_from_slice(&kept.start.0.to_le_bytes());
            entry[16..24].copy_from_slice(&kept.end.0.to_le_bytes());
            entry[24..28].copy_from_slice(&kept.crc.to_le_bytes());
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
        let wrong = |what: &str| corrupt(format!("the tracker's state {what}"));
        check_block(bytes, &MAGIC).map_err(wrong)?;
        let rules = || wrong("breaks a rule of its layout");
        let (count, live) = (usize::from(bytes[10]), array_at::<16>(bytes, 48));
        if count > KEPT_MAX {
            return Err(rules());
        }
        let entries = bytes[KEPT_AT..CRC_AT].chunks_exact(KEPT_BYTES);
        let kept = entries.take(count).map(|entry| Kept {
            number: u64_at(entry, 0),
            start: Lsn(u64_at(entry, 8)),
            end: Lsn(u64_at(entry, 16)),
            crc: u32_at(entry, 24),
        });
        let state = TrackerState {
            system: SystemId(array_at(bytes, 16)),
            history: HistoryId(array_at(bytes, 32)),
            live: (live != [0; 16]).then_some(live),
            epoch: u64_at(bytes, 64),
            start: Lsn(u64_at(bytes, 72)),
            reset: Reset::from_code(bytes[11]).ok_or_else(rules)?,
            kept: kept.collect(),
        };
        // Exactly one encoding: whatever is not read must be zero.
        let sound = state.follows() && state.encode()[..] == *bytes;
        if sound { Ok(state) } else { Err(rules()) }
    }

    /// Whether the epochs follow each other without a gap, and every position is one.
    fn follows(&self) -> bool {
        let ids = self.system.0 != [0; 16] && self.history.0 != [0; 16];
        let starts = self.kept.iter().map(|kept| (kept.number, kept.start));
        let next = starts.skip(1).chain([(self.epoch, self.start)]);
        let joined = self.kept.iter().zip(next).all(|(kept, (number, start))| {
            kept.number.checked_add(1) == Some(number)
                && kept.start <= start
                && start <= kept.end
                && kept.end <= LSN_MAX
        });
        let first = self.kept.first().map_or(self.epoch, |kept| kept.number);
        ids && joined && first > 0 && self.epoch < u64::MAX && self.start <= LSN_MAX
    }

    /// Reads the state of a store; `None` if it has no tracker.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged; `Source` if it cannot be read.
    pub fn read(disk: &dyn Disk) -> Result<Option<Self>> {
        let bytes = read_block(disk, STATE_FILE, "the tracker's state cannot be read")?;
        bytes
            .map(|bytes| TrackerState::decode(&bytes))
            .transpose()
            .map_err(|error| error.object(STATE_FILE))
    }

    /// Replaces the state as a whole, durably. `prepare` is called with the new file before it gets its name.
    ///
    /// # Errors
    /// `Storage` if it cannot be written.
    pub(super) fn save(
        &self,
        disk: &dyn Disk,
        prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<()> {
        replace(disk, STATE_NEW, STATE_FILE, &self.encode(), prepare)
    }
}

/// What all files of one block have in common: magic, version, a CRC-32 at the end. What is wrong with it, if not.
pub(super) fn check_block(bytes: &[u8], magic: &[u8; 8]) -> std::result::Result<(), &'static str> {
    match bytes.len() == BLOCK_BYTES && bytes[..8] == *magic {
        false => Err("does not begin as one, or has another length"),
        true if u32_at(bytes, CRC_AT) != crc32(&bytes[..CRC_AT]) => {
            Err("does not match its checksum")
        }
        true if u16_at(bytes, 8) != TRACKER_VERSION => Err("is of an unknown version"),
        true => Ok(()),
    }
}

/// Reads a file of one block; `None` if there is none. A longer one gives a byte more.
///
/// # Errors
/// `Source`, saying `what`, if it cannot be read.
pub(super) fn read_block(disk: &dyn Disk, path: &str, what: &str) -> Result<Option<Vec<u8>>> {
    let unread = |error| unreadable(what, path, error);
    let file = match disk.open(path, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(unread)?,
    };
    let mut bytes = vec![0; BLOCK_BYTES + 1];
    let read = file.read_at(&mut bytes, 0).map_err(unread)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// Makes a file anew as `new`, calls `prepare` with it, and puts it in the place of `path`, durably.
///
/// # Errors
/// `Storage` if it cannot be written.
pub(super) fn replace(
    disk: &dyn Disk,
    new: &str,
    path: &str,
    bytes: &[u8],
    prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<()> {
    let save = || {
        remove_if_there(disk, new)?;
        let file = disk.open(new, Access::Create)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        prepare(file.descriptor()?)?;
        disk.rename(new, path)?;
        disk.sync_dir(TRACKER_DIR)
    };
    save().map_err(|error| failed(path, error))
}

/// An error of writing one of the tracker's files.
pub(super) fn failed(path: &str, error: io::Error) -> Error {
    Error::new(Kind::Storage, "the tracker cannot be written")
        .object(path)
        .cause(error)
}

/// An error of reading one of the tracker's files. One that is gone is no change of the source: the tracker is not backed up.
pub(super) fn unreadable(what: &str, path: &str, error: io::Error) -> Error {
    source_error(what, path.as_bytes(), error).with_kind(Kind::Source)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::DirDisk;

    fn state(kept: Vec<Kept>, epoch: u64, start: u64) -> TrackerState {
        TrackerState {
            system: SystemId([1; 16]),
            history: HistoryId([2; 16]),
            live: Some([3; 16]),
            epoch,
            start: Lsn(start),
            reset: Reset::New,
            kept,
        }
    }

    fn kept(number: u64, start: u64, end: u64) -> Kept {
        Kept {
            number,
            start: Lsn(start),
            end: Lsn(end),
            crc: 77,
        }
    }

    proptest! {
        #[test]
        fn states_read_back(
            first in 1u64..1 << 60,
            positions in proptest::collection::vec((0u64..1 << 40, 0u64..1 << 40), 0..=8),
            ids in (1u8.., 1u8.., 0u8..),
            reset in 0u8..=6,
        ) {
            let (mut epochs, mut start, mut number) = (Vec::new(), 4096, first);
            for (more, overlap) in positions {
                epochs.push(kept(number, start, start + more + overlap));
                (number, start) = (number + 1, start + more);
            }
            let state = TrackerState {
                system: SystemId([ids.0; 16]),
                history: HistoryId([ids.1; 16]),
                live: (ids.2 != 0).then_some([ids.2; 16]),
                reset: Reset::from_code(reset).unwrap(),
                ..state(epochs, number, start)
            };
            prop_assert_eq!(TrackerState::decode(&state.encode()).unwrap(), state);
        }
    }

    #[test]
    fn epochs_that_do_not_follow_each_other_are_refused() {
        let good = vec![kept(3, 10, 30), kept(4, 20, 40)];
        TrackerState::decode(&state(good.clone(), 5, 40).encode()).unwrap();
        assert_eq!(state(good.clone(), 5, 40).known_from(), Lsn(10));
        assert_eq!(state(vec![], 5, 40).known_from(), Lsn(40));
        for (wrong, epoch, start) in [
            (good.clone(), 6, 40),
            (good.clone(), 4, 40),
            (good.clone(), 5, 41),
            (good.clone(), 5, 19),
            (vec![kept(3, 10, 30), kept(5, 20, 40)], 6, 40),
            (vec![kept(3, 10, 19), kept(4, 20, 40)], 5, 40),
            (vec![kept(3, 21, 30), kept(4, 20, 40)], 5, 40),
            (vec![kept(0, 10, 30)], 1, 20),
            (vec![kept(u64::MAX, 10, 30)], 0, 20),
            (vec![], 0, 20),
            (vec![], 1, u64::MAX),
        ] {
            let bytes = state(wrong, epoch, start).encode();
            assert!(TrackerState::decode(&bytes).is_err(), "{epoch} {start}");
        }
    }

    #[test]
    fn every_byte_and_every_length_counts() {
        let bytes = state(vec![kept(3, 10, 30)], 4, 20).encode();
        for at in 0..bytes.len() {
            let mut wrong = bytes;
            wrong[at] ^= 1 << (at % 8);
            assert!(TrackerState::decode(&wrong).is_err(), "byte {at}");
        }
        let mut wrong = bytes;
        wrong[11] = 7;
        let crc = crc32(&wrong[..CRC_AT]);
        wrong[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert!(TrackerState::decode(&wrong).is_err(), "an unknown reason");
        // Reserved bytes and entries that do not count are zero, whatever the checksum says.
        for at in [12, 80, KEPT_AT + 28, KEPT_AT + 32, KEPT_AT + 300, 4000] {
            let mut wrong = bytes;
            wrong[at] = 1;
            let crc = crc32(&wrong[..CRC_AT]);
            wrong[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
            assert!(TrackerState::decode(&wrong).is_err(), "byte {at}");
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = DirDisk::open(dir.path()).unwrap();
        assert!(TrackerState::read(&disk).unwrap().is_none());
        disk.make_dir(TRACKER_DIR).unwrap();
        state(vec![], 4, 20).save(&disk, |_| Ok(())).unwrap();
        assert_eq!(
            TrackerState::read(&disk).unwrap().unwrap(),
            state(vec![], 4, 20)
        );
        for wrong in [&bytes[..4095], &[], &[&bytes[..], &[0]].concat()] {
            std::fs::write(dir.path().join(STATE_FILE), wrong).unwrap();
            let error = TrackerState::read(&disk).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
        }
    }
}
