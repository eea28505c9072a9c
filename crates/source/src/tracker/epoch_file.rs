//! The files of ended epochs: bitmaps in order, with one checksum over all.
//!
//! Invariants: a file is whole before it has its name, and never changes; it says which epoch of which history it is, and
//! the state knows its checksum, so that no other file passes for it. Bitmaps ascend strictly, and none is empty: a
//! set of pages has one encoding. Memory is one window, whatever the length. The layout is in docs/tracker-format.md,
//! section 3.

use std::io;
use std::os::fd::BorrowedFd;

use mover_base::checksum::{crc32, crc32_continue};
use mover_base::{Error, HistoryId, Lsn, Result, SystemId};

use super::state::{Kept, failed, unreadable};
use super::{TRACKER_DIR, TRACKER_VERSION};
use crate::delta::{CHUNK_BYTES, CHUNK_PAGES, ChunkWords};
use crate::disk::{Access, Disk, DiskFile, remove_if_there};
use crate::wire::{array_at, corrupt, is_zero, u16_at, u32_at, u64_at};

/// Under this name a file is written before it gets its own.
pub(super) const EPOCH_NEW: &str = "tracker/epoch.new";
/// The end of an epoch file's name.
pub(super) const EPOCH_SUFFIX: &str = ".epoch";

const MAGIC: [u8; 8] = *b"HELIOSTE";
const HEADER_BYTES: usize = 80;
const ENTRY_BYTES: usize = 8 + CHUNK_BYTES;
const CRC_BYTES: usize = 4;
/// Entries that are read and written at a time: about 1 MiB.
const WINDOW_ENTRIES: usize = 2048;

/// A bitmap's place: the table, and which of its runs of 4,096 pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) table: u32,
    pub(super) chunk: u32,
}

/// Runs of 4,096 pages that a table may have, as a power of two: as many as 32 bits have page numbers for.
pub(super) const CHUNKS_LOG2: u32 = u32::BITS - CHUNK_PAGES.ilog2();
/// The same as a number.
pub(super) const CHUNKS_MAX: u32 = 1 << CHUNKS_LOG2;

/// What an epoch's file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochHeader {
    /// The database.
    pub system: SystemId,
    /// The history.
    pub history: HistoryId,
    /// The epoch.
    pub number: u64,
    /// As in the state.
    pub start: Lsn,
    /// As in the state.
    pub end: Lsn,
}

impl EpochHeader {
    /// The bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&TRACKER_VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.system.0);
        out[32..48].copy_from_slice(&self.history.0);
        out[48..56].copy_from_slice(&self.number.to_le_bytes());
        out[56..64].copy_from_slice(&self.start.0.to_le_bytes());
        out[64..72].copy_from_slice(&self.end.0.to_le_bytes());
        let crc = crc32(&out[..72]);
        out[72..76].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads them.
    ///
    /// # Errors
    /// `Corrupt` if they are damaged or break a rule.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let wrong = |what: &str| Err(corrupt(format!("an epoch's file {what}")));
        if bytes[..8] != MAGIC {
            return wrong("does not begin as one");
        }
        if u32_at(bytes, 72) != crc32(&bytes[..72]) {
            return wrong("does not match the checksum of its header");
        }
        if u16_at(bytes, 8) != TRACKER_VERSION {
            return wrong("is of an unknown version");
        }
        if !is_zero(&bytes[10..16]) || !is_zero(&bytes[76..]) {
            return wrong("breaks a rule of its layout");
        }
        Ok(EpochHeader {
            system: SystemId(array_at(bytes, 16)),
            history: HistoryId(array_at(bytes, 32)),
            number: u64_at(bytes, 48),
            start: Lsn(u64_at(bytes, 56)),
            end: Lsn(u64_at(bytes, 64)),
        })
    }
}

/// Writes an epoch's file.
pub(super) struct EpochWriter<'d> {
    disk: &'d dyn Disk,
    file: Box<dyn DiskFile>,
    header: EpochHeader,
    window: Vec<u8>,
    written: u64,
    crc: u32,
}

impl<'d> EpochWriter<'d> {
    /// Begins a file.
    pub(super) fn new(disk: &'d dyn Disk, header: EpochHeader) -> Result<Self> {
        let make = || {
            remove_if_there(disk, EPOCH_NEW)?;
            disk.open(EPOCH_NEW, Access::Create)
        };
        let file = make().map_err(|error| failed(EPOCH_NEW, error))?;
        Ok(EpochWriter {
            disk,
            file,
            header,
            window: header.encode().to_vec(),
            written: 0,
            crc: crc32(&[]),
        })
    }

    /// Adds a bitmap, which must stand behind the one before. An empty one is left out.
    pub(super) fn push(&mut self, place: Place, words: &ChunkWords) -> Result<()> {
        if words.iter().all(|word| *word == 0) {
            return Ok(());
        }
        self.window.extend_from_slice(&place.table.to_le_bytes());
        self.window.extend_from_slice(&place.chunk.to_le_bytes());
        for word in words {
            self.window.extend_from_slice(&word.to_le_bytes());
        }
        if self.window.len() >= WINDOW_ENTRIES * ENTRY_BYTES {
            self.crc = crc32_continue(self.crc, &self.window);
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        self.file
            .write_at(&self.window, self.written)
            .map_err(|error| failed(EPOCH_NEW, error))?;
        self.written += self.window.len() as u64;
        self.window.clear();
        Ok(())
    }

    /// Ends the file, makes it durable and gives it its name. `prepare` is called with it before.
    pub(super) fn finish(
        mut self,
        prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<Kept> {
        self.crc = crc32_continue(self.crc, &self.window);
        self.window.extend_from_slice(&self.crc.to_le_bytes());
        self.write()?;
        let kept = Kept {
            number: self.header.number,
            start: self.header.start,
            end: self.header.end,
            crc: self.crc,
        };
        let end = || {
            self.file.sync()?;
            prepare(self.file.descriptor()?)?;
            self.disk.rename(EPOCH_NEW, &kept.path())?;
            self.disk.sync_dir(TRACKER_DIR)
        };
        end().map_err(|error| failed(&kept.path(), error))?;
        Ok(kept)
    }
}

/// Reads an epoch's file. What it gave out counts only when [`next`](Self::next) has returned `None`.
pub(super) struct EpochReader {
    path: String,
    file: Box<dyn DiskFile>,
    window: Vec<u8>,
    at: usize,
    /// Where the next window begins.
    next: u64,
    /// Where the checksum stands.
    crc_at: u64,
    crc: u32,
    wanted: u32,
    last: Option<Place>,
}

impl EpochReader {
    /// Opens the file of `kept`, an epoch of the history.
    pub(super) fn open(
        disk: &dyn Disk,
        system: SystemId,
        history: HistoryId,
        kept: &Kept,
    ) -> Result<Self> {
        let path = kept.path();
        let wrong = |what: &str| Err(corrupt(format!("an epoch's file {what}")).object(&*path));
        let other = |error| unread(&path, error);
        let file = disk.open(&path, Access::Read).map_err(other)?;
        let len = file.len().map_err(other)?;
        let entries = len.checked_sub((HEADER_BYTES + CRC_BYTES) as u64);
        if entries.is_none_or(|bytes| !bytes.is_multiple_of(ENTRY_BYTES as u64)) {
            return wrong("has a length that none has");
        }
        let mut header = [0; HEADER_BYTES];
        file.read_at(&mut header, 0).map_err(other)?;
        let read = EpochHeader::decode(&header).map_err(|error| error.object(&*path))?;
        let due = EpochHeader {
            system,
            history,
            number: kept.number,
            start: kept.start,
            end: kept.end,
        };
        if read != due {
            return wrong("is that of another epoch, history or database");
        }
        Ok(EpochReader {
            file,
            window: Vec::new(),
            at: 0,
            next: HEADER_BYTES as u64,
            crc_at: len - CRC_BYTES as u64,
            crc: crc32(&header),
            wanted: kept.crc,
            last: None,
            path,
        })
    }

    /// The next bitmap; `None` at the end, when all of them were found sound.
    pub(super) fn next(&mut self) -> Result<Option<(Place, ChunkWords)>> {
        if self.at == self.window.len() && !self.fill()? {
            return Ok(None);
        }
        let entry = &self.window[self.at..self.at + ENTRY_BYTES];
        self.at += ENTRY_BYTES;
        let place = Place {
            table: u32_at(entry, 0),
            chunk: u32_at(entry, 4),
        };
        let words = std::array::from_fn(|i| u64_at(entry, 8 + 8 * i));
        let sound = place.table != 0
            && place.chunk < CHUNKS_MAX
            && self.last < Some(place)
            && words != [0; CHUNK_BYTES / 8];
        if !sound {
            return Err(self.wrong("breaks a rule of its layout"));
        }
        self.last = Some(place);
        Ok(Some((place, words)))
    }

    /// Reads the next window; false at the end.
    fn fill(&mut self) -> Result<bool> {
        let left = (self.crc_at - self.next) as usize;
        let bytes = left.min(WINDOW_ENTRIES * ENTRY_BYTES);
        self.window
            .resize(if bytes == 0 { CRC_BYTES } else { bytes }, 0);
        let read = self.file.read_at(&mut self.window, self.next);
        if read.map_err(|error| unread(&self.path, error))? != self.window.len() {
            return Err(self.wrong("became shorter while it was read"));
        }
        if bytes == 0 {
            let stored = u32_at(&self.window, 0);
            self.window.clear();
            self.at = 0;
            return if stored == self.crc && self.crc == self.wanted {
                Ok(false)
            } else {
                Err(self.wrong("does not match its checksum"))
            };
        }
        self.crc = crc32_continue(self.crc, &self.window);
        self.next += bytes as u64;
        self.at = 0;
        Ok(true)
    }

    fn wrong(&self, what: &str) -> Error {
        corrupt(format!("an epoch's file {what}")).object(&*self.path)
    }
}

fn unread(path: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return corrupt("an epoch's file is missing").object(path);
    }
    unreadable("an epoch's file cannot be read", path, error)
}

/// Makes two epochs that follow each other one.
pub(super) fn merge(
    disk: &dyn Disk,
    system: SystemId,
    history: HistoryId,
    kept: [&Kept; 2],
    prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<Kept> {
    let open = |kept| EpochReader::open(disk, system, history, kept);
    let (mut a, mut b) = (open(kept[0])?, open(kept[1])?);
    let header = EpochHeader {
        system,
        history,
        number: kept[1].number,
        start: kept[0].start,
        end: kept[0].end.max(kept[1].end),
    };
    let mut writer = EpochWriter::new(disk, header)?;
    let (mut left, mut right) = (a.next()?, b.next()?);
    loop {
        let order = match (&left, &right) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((l, _)), Some((r, _))) => l.cmp(r),
        };
        let from_left = if order.is_le() { left.take() } else { None };
        let from_right = if order.is_ge() { right.take() } else { None };
        let (came_left, came_right) = (from_left.is_some(), from_right.is_some());
        if let Some((place, mut words)) = from_left.or(from_right) {
            if let Some((_, more)) = from_right {
                words
                    .iter_mut()
                    .zip(more)
                    .for_each(|(word, more)| *word |= more);
            }
            writer.push(place, &words)?;
        }
        if came_left {
            left = a.next()?;
        }
        if came_right {
            right = b.next()?;
        }
    }
    writer.finish(prepare)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;
    use crate::disk::DirDisk;

    const IDS: (SystemId, HistoryId) = (SystemId([1; 16]), HistoryId([2; 16]));

    type Maps = BTreeMap<(u32, u32), (usize, u64)>;

    fn any_maps() -> impl Strategy<Value = Maps> {
        btree_map(
            (1u32..5, 0u32..6),
            (
                0usize..64,
                any::<u64>().prop_filter("a bit", |word| *word != 0),
            ),
            0..12,
        )
    }

    fn words((at, word): (usize, u64)) -> ChunkWords {
        let mut words = [0; CHUNK_BYTES / 8];
        words[at] = word;
        words
    }

    fn write(disk: &DirDisk, number: u64, (start, end): (u64, u64), maps: &Maps) -> Kept {
        let header = EpochHeader {
            system: IDS.0,
            history: IDS.1,
            number,
            start: Lsn(start),
            end: Lsn(end),
        };
        let mut writer = EpochWriter::new(disk, header).unwrap();
        for ((table, chunk), map) in maps {
            let place = Place {
                table: *table,
                chunk: *chunk,
            };
            writer.push(place, &words(*map)).unwrap();
        }
        writer.finish(|_| Ok(())).unwrap()
    }

    fn read(disk: &DirDisk, kept: &Kept) -> Result<BTreeMap<(u32, u32), ChunkWords>> {
        let mut reader = EpochReader::open(disk, IDS.0, IDS.1, kept)?;
        let mut maps = BTreeMap::new();
        while let Some((place, words)) = reader.next()? {
            maps.insert((place.table, place.chunk), words);
        }
        Ok(maps)
    }

    fn disk(path: &Path) -> DirDisk {
        let disk = DirDisk::open(path).unwrap();
        disk.make_dir(TRACKER_DIR).unwrap();
        disk
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn epochs_read_back_and_merge_to_their_union(a in any_maps(), b in any_maps()) {
            let dir = tempfile::tempdir().unwrap();
            let disk = disk(dir.path());
            let (first, second) = (write(&disk, 4, (8, 32), &a), write(&disk, 5, (24, 64), &b));
            let mut union: BTreeMap<(u32, u32), ChunkWords> = BTreeMap::new();
            for (maps, kept) in [(&a, &first), (&b, &second)] {
                let wanted = maps.iter().map(|(place, map)| (*place, words(*map)));
                prop_assert_eq!(read(&disk, kept).unwrap(), wanted.collect());
                for (place, map) in maps {
                    let both = union.entry(*place).or_insert([0; CHUNK_BYTES / 8]);
                    both[map.0] |= map.1;
                }
            }
            let merged = merge(&disk, IDS.0, IDS.1, [&first, &second], |_| Ok(())).unwrap();
            prop_assert_eq!((merged.number, merged.start, merged.end), (5, Lsn(8), Lsn(64)));
            prop_assert_eq!(read(&disk, &merged).unwrap(), union);
        }
    }

    #[test]
    fn many_bitmaps_go_through_several_windows() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let maps: Maps = (0..5000u32)
            .map(|n| ((1 + n / 100, n % 100), (0, 1)))
            .collect();
        let kept = write(&disk, 1, (8, 16), &maps);
        assert_eq!(read(&disk, &kept).unwrap().len(), 5000);
        let merged = merge(&disk, IDS.0, IDS.1, [&kept, &kept], |_| Ok(())).unwrap();
        assert_eq!(read(&disk, &merged).unwrap().len(), 5000);
    }

    #[test]
    fn every_byte_and_every_length_counts() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let maps = Maps::from([((1, 0), (3, 5)), ((1, 7), (63, 1)), ((9, 1), (0, u64::MAX))]);
        let kept = write(&disk, 7, (4096, 8192), &maps);
        let path = dir.path().join(kept.path());
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 80 + 3 * 520 + 4);
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << (at % 8);
            std::fs::write(&path, &wrong).unwrap();
            assert!(read(&disk, &kept).is_err(), "byte {at}");
        }
        for len in (0..bytes.len()).step_by(52) {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(read(&disk, &kept).is_err(), "{len} bytes");
        }
        std::fs::write(&path, [&bytes[..], &[0; 520]].concat()).unwrap();
        assert!(read(&disk, &kept).is_err());
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&disk, &kept).unwrap().len(), 3);
        // A sound file in the place of another: by its number, its ids, or its checksum alone.
        for other in [
            write(&disk, 8, (4096, 8192), &maps),
            write(&disk, 7, (4096, 8200), &maps),
        ] {
            std::fs::copy(dir.path().join(other.path()), dir.path().join(kept.path())).unwrap();
            assert!(read(&disk, &kept).is_err());
        }
        write(&disk, 7, (4096, 8192), &Maps::new());
        assert!(read(&disk, &kept).is_err());
        std::fs::write(&path, &bytes).unwrap();
        let open = |system, history| EpochReader::open(&disk, system, history, &kept).is_err();
        assert!(open(IDS.0, HistoryId([3; 16])) && open(SystemId([3; 16]), IDS.1));
        std::fs::remove_file(&path).unwrap();
        assert!(read(&disk, &kept).is_err());
    }
}
