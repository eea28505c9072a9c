//! Files of ended epochs, whole and as bodies behind a header that is set right: what is answered is what the bytes say, in
//! the one encoding that there is. Two epochs made one are their union.

#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use mover_base::{HistoryId, Lsn, LsnRange, SystemId, checksum};
use mover_source::delta::BUDGET_BYTES_DEFAULT;
use mover_source::disk::{DirDisk, Disk};
use mover_source::tracker::{
    Changed, EpochHeader, Epochs, KEPT_MAX, Kept, Reset, STATE_FILE, TRACKER_DIR, TrackerState,
};
use mover_source::wal::{LogIdentity, SegmentSize};

const START: Lsn = Lsn(4096);
const END: Lsn = Lsn(8192);
const HEADER_BYTES: usize = 80;
const ENTRY_BYTES: usize = 520;

/// A directory, made once. `fuzz/run` has temporary files in memory, and removes them.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("mover-fuzz-epoch-{}", std::process::id()));
    fs::create_dir_all(dir.join(TRACKER_DIR)).expect("a directory");
    dir
});

fn identity(header: &EpochHeader) -> LogIdentity {
    LogIdentity {
        system: header.system,
        history: header.history,
        fork: None,
        size: SegmentSize::new(14).expect("a size"),
    }
}

/// The answer of a tracker that has `files` as its epochs, one after the other, each with its header.
fn answer(files: &[(EpochHeader, &[u8])], merges: bool) -> Option<Changed> {
    let (first, _) = files.first()?;
    let kept: Vec<Kept> = files
        .iter()
        .map(|(header, bytes)| Kept {
            number: header.number,
            start: header.start,
            end: header.end,
            crc: bytes.last_chunk().map_or(0, |crc| u32::from_le_bytes(*crc)),
        })
        .collect();
    let last = kept.last()?;
    let (epoch, start) = (last.number.checked_add(1)?, last.end);
    let state = TrackerState {
        system: first.system,
        history: first.history,
        live: None,
        epoch,
        start,
        reset: Reset::New,
        kept: kept.clone(),
    };
    // A state that no state is, is another target's.
    TrackerState::decode(&state.encode()).ok()?;
    fs::write(DIR.join(STATE_FILE), state.encode()).expect("a state");
    for (kept, (_, bytes)) in kept.iter().zip(files) {
        fs::write(DIR.join(kept.path()), bytes).expect("an epoch");
    }
    let disk = Arc::new(DirDisk::open(&DIR).expect("a disk"));
    let epochs = Epochs::open(Arc::clone(&disk), identity(first));
    let epochs = epochs.expect("nobody else").expect("a tracker");
    if merges {
        // One more than are kept: nothing is in it, and there is no log to read.
        let switched = epochs.switch(start, BUDGET_BYTES_DEFAULT);
        switched.expect("the files can be written");
    }
    let range = LsnRange {
        start: first.start,
        end: start,
    };
    let changed = epochs.changed(range, BUDGET_BYTES_DEFAULT).ok();
    for name in disk.list(TRACKER_DIR).expect("names") {
        fs::remove_file(DIR.join(TRACKER_DIR).join(name)).expect("removed");
    }
    changed
}

/// The bitmaps of an answer.
fn bitmaps(changed: &Changed) -> BTreeMap<(u32, u32), [u8; 512]> {
    let mut all = BTreeMap::new();
    for (table, pages) in &changed.tables {
        for page in pages.iter() {
            let map = all.entry((*table, page / 4096)).or_insert([0; 512]);
            map[page as usize % 4096 / 8] |= 1 << (page % 8);
        }
    }
    all
}

/// The one encoding of bitmaps.
fn entries(bitmaps: &BTreeMap<(u32, u32), [u8; 512]>) -> Vec<u8> {
    let each = bitmaps.iter().flat_map(|((table, run), map)| {
        [&table.to_le_bytes()[..], &run.to_le_bytes(), map].concat()
    });
    each.collect()
}

fn header(number: u64) -> EpochHeader {
    EpochHeader {
        system: SystemId([0x11; 16]),
        history: HistoryId([0x22; 16]),
        number,
        start: START,
        end: END,
    }
}

/// A file with the checksum that its bytes have.
fn file(header: &EpochHeader, body: &[u8]) -> Vec<u8> {
    let mut bytes = [&header.encode()[..], body].concat();
    let crc = checksum::crc32(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let head = bytes.first_chunk::<HEADER_BYTES>();
    if let Some(header) = head.and_then(|head| EpochHeader::decode(head).ok())
        && let Some(changed) = answer(&[(header, bytes)], false)
    {
        let body = entries(&bitmaps(&changed));
        assert_eq!(file(&header, &body), bytes);
    }
    let mut body = bytes[..bytes.len() - bytes.len() % ENTRY_BYTES].to_vec();
    for entry in body.chunks_exact_mut(ENTRY_BYTES) {
        // An answer with a large table takes long to be made and compared, and says no more.
        entry[5] &= 0x01;
        entry[6..8].fill(0);
    }
    let whole = file(&header(1), &body);
    let told = answer(&[(header(1), &whole)], false);
    if let Some(changed) = &told {
        assert_eq!(entries(&bitmaps(changed)), body);
    }
    // The two oldest of too many epochs become one: the first and second half of the entries.
    let half = body.len() / ENTRY_BYTES / 2 * ENTRY_BYTES;
    let (left, right) = (
        file(&header(1), &body[..half]),
        file(&header(2), &body[half..]),
    );
    let empty: Vec<Vec<u8>> = (3..=KEPT_MAX as u64)
        .map(|n| file(&header(n), &[]))
        .collect();
    let mut files = vec![(header(1), &left[..]), (header(2), &right[..])];
    for (number, bytes) in (3..).zip(&empty) {
        files.push((header(number), bytes));
    }
    if told.is_some() {
        assert_eq!(answer(&files, true), told);
    }
});
