//! The live file with any words behind its header, as whoever takes it up finds it: the answer names what the words mark,
//! a switch, and the database that opens, end in a state that can be read or in an error, and none of them waits or panics.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use mover_base::{HistoryId, Lsn, LsnRange, SystemId, hex};
use mover_source::delta::BUDGET_BYTES_DEFAULT;
use mover_source::disk::{DirDisk, Disk};
use mover_source::tracker::{
    Attached, Capacity, Changed, Epochs, LIVE_FILE, LiveHeader, Reset, STATE_FILE, TRACKER_DIR,
    TrackerState,
};
use mover_source::wal::{LogIdentity, SegmentSize};

const IDENTITY: (SystemId, HistoryId) = (SystemId([0x11; 16]), HistoryId([0x22; 16]));
const ID: [u8; 16] = [0x33; 16];
const EPOCH: u64 = 5;
const START: u64 = 4096;
const END: u64 = 8192;

// The layout is in docs/tracker-format.md, section 4; offsets in words.
const CURRENT: usize = 512;
const DURABLE: usize = CURRENT + 8;
const APPENDED: usize = CURRENT + 16;
const STARTS: usize = CURRENT + 24;
const COUNTS: usize = 1024;
const DIRECTORIES: usize = 1536;
const ENTRIES: usize = 1 << Capacity::LOG2_MIN;
const BITMAP_WORDS: usize = 64;
const BITMAPS: usize = DIRECTORIES + 2 * ENTRIES;
const WORDS: usize = BITMAPS + 2 * ENTRIES * BITMAP_WORDS;

/// A store's directory, whose live file is made once: its header names its inode. `fuzz/run` has temporary files in memory, and
/// removes them.
static PLACE: LazyLock<(PathBuf, File)> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("mover-fuzz-live-{}", std::process::id()));
    fs::create_dir_all(dir.join(TRACKER_DIR)).expect("a directory");
    let file = make(&dir);
    (dir, file)
});

fn make(dir: &Path) -> File {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false);
    let file = file.open(dir.join("kept")).expect("a file");
    file.set_len(8 * WORDS as u64).expect("a length");
    let found = file.metadata().expect("metadata");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    let digits: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
    let header = LiveHeader {
        capacity: Capacity::new(Capacity::LOG2_MIN).expect("a capacity"),
        system: IDENTITY.0,
        history: IDENTITY.1,
        id: ID,
        boot: hex::decode(&digits).expect("a boot id"),
        device: found.dev(),
        inode: found.ino(),
    };
    file.write_all_at(&header.encode(), 0).expect("a header");
    file
}

/// What the live file holds behind its header, but for zeros.
struct Words(BTreeMap<usize, u64>);

impl Words {
    /// As a database leaves them, and then as the input says.
    fn of(input: &[u8]) -> Self {
        let mut words = BTreeMap::from([
            (CURRENT, EPOCH),
            (DURABLE, END),
            (APPENDED, END),
            (STARTS + 8 * (EPOCH as usize % 2), START),
        ]);
        for entry in input.chunks_exact(12) {
            let at = usize::from(u16::from_le_bytes([entry[1], entry[2]]));
            let value = u64::from_le_bytes(entry[4..].try_into().expect("8 bytes"));
            let slot = usize::from(entry[3]) % 2;
            let place = DIRECTORIES + slot * ENTRIES + at % ENTRIES;
            let (index, value) = match entry[0] % 6 {
                0 => (CURRENT + 8 * (at % 7), value),
                1 => (COUNTS + at % (32 * 8), value),
                // Near each other, and near the running epoch.
                2 => (CURRENT + 8 * (at % 7), value % 16_384),
                3 => (place, value),
                // Small tables with low ids.
                4 => (place, (value >> 8 & 7) << 20 | value & 63),
                _ => {
                    let bitmap = slot * ENTRIES + at % ENTRIES;
                    let word = BITMAPS + bitmap * BITMAP_WORDS + at / ENTRIES;
                    (word, value)
                }
            };
            words.insert(index, value);
        }
        Words(words)
    }

    fn at(&self, index: usize) -> u64 {
        self.0.get(&index).copied().unwrap_or(0)
    }

    /// Puts them into the file, whose other words are zero, and the state that it belongs to beside it.
    fn put(&self) {
        let (dir, file) = &*PLACE;
        file.set_len(4096).expect("a length");
        file.set_len(8 * WORDS as u64).expect("a length");
        for (at, word) in &self.0 {
            let written = file.write_all_at(&word.to_le_bytes(), 8 * *at as u64);
            written.expect("a word");
        }
        let state = TrackerState {
            system: IDENTITY.0,
            history: IDENTITY.1,
            live: Some(ID),
            epoch: EPOCH,
            start: Lsn(START),
            reset: Reset::New,
            kept: Vec::new(),
        };
        let tracker = dir.join(TRACKER_DIR);
        for entry in fs::read_dir(&tracker).expect("names") {
            fs::remove_file(entry.expect("a name").path()).expect("removed");
        }
        fs::write(dir.join(STATE_FILE), state.encode()).expect("a state");
        fs::hard_link(dir.join("kept"), dir.join(LIVE_FILE)).expect("a link");
    }

    /// The pages that the slots of the epochs mark which the state knows of.
    fn marked(&self) -> BTreeSet<(u32, u32)> {
        let known = match self.at(CURRENT) {
            EPOCH => vec![EPOCH],
            current if current == EPOCH + 1 => vec![EPOCH, EPOCH + 1],
            _ => Vec::new(),
        };
        let mut pages = BTreeSet::new();
        for (index, word) in self.0.range(BITMAPS..) {
            let (bitmap, n) = (
                (index - BITMAPS) / BITMAP_WORDS,
                (index - BITMAPS) % BITMAP_WORDS,
            );
            let key = self.at(DIRECTORIES + bitmap);
            let slot = bitmap / ENTRIES;
            if key != 0 && known.iter().any(|epoch| *epoch as usize % 2 == slot) {
                let first = (key as u32) << 12 | (n as u32) << 6;
                let bits = (0..64).filter(|bit| word >> bit & 1 == 1);
                pages.extend(bits.map(|bit| ((key >> 20) as u32, first | bit)));
            }
        }
        pages
    }
}

fn holds(changed: &Changed, pages: &BTreeSet<(u32, u32)>) -> bool {
    let told = |(table, page): &(u32, u32)| {
        let pages = changed.tables.get(table);
        pages.is_some_and(|pages| pages.contains(*page))
    };
    pages.iter().all(told)
}

fuzz_target!(|input: &[u8]| {
    let identity = LogIdentity {
        system: IDENTITY.0,
        history: IDENTITY.1,
        fork: None,
        size: SegmentSize::new(14).expect("a size"),
    };
    let range = LsnRange {
        start: Lsn(START),
        end: Lsn(END),
    };
    let words = Words::of(input);
    let marked = words.marked();
    words.put();
    let disk = || Arc::new(DirDisk::open(&PLACE.0).expect("a disk"));
    let epochs = Epochs::open(disk(), identity);
    let epochs = epochs.expect("nobody else").expect("a tracker");
    if let Ok(changed) = epochs.changed(range, BUDGET_BYTES_DEFAULT) {
        assert!(holds(&changed, &marked));
    }
    if let Ok(switched) = epochs.switch(Lsn(END), BUDGET_BYTES_DEFAULT)
        && switched.reset.is_none()
        && let Ok(changed) = epochs.changed(range, BUDGET_BYTES_DEFAULT)
    {
        assert!(holds(&changed, &marked));
    }
    drop(epochs);
    words.put();
    let capacity = Capacity::new(Capacity::LOG2_MIN).expect("a capacity");
    if let Ok((attached, found)) = Attached::open(disk(), identity, Lsn(END), capacity) {
        let mut marking = attached.begin();
        marking.mark(7, 77);
        marking.end(Lsn(END + 64));
        attached.durable(Lsn(END + 64));
        let epochs = Epochs::open(disk(), identity);
        let epochs = epochs.expect("nobody else").expect("a tracker");
        let changed = epochs.changed(range, BUDGET_BYTES_DEFAULT);
        if found.reset.is_none()
            && found.doubt.is_none()
            && let Ok(changed) = changed
        {
            assert!(holds(&changed, &marked));
        }
    }
    let disk = disk();
    for name in disk.list(TRACKER_DIR).expect("names") {
        fs::remove_file(PLACE.0.join(TRACKER_DIR).join(name)).expect("removed");
    }
});
