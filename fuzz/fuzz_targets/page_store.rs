//! A whole page store with bytes changed anywhere, as it is and with all checksums set right: control file, catalogue, tables and
//! log together. What recovers can be written to, and recovers again to there.

#![no_main]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use mover_base::{Timestamp, checksum};
use mover_pagedb::{Database, Op, Options};
use mover_source::disk::{Access, Disk, DiskFile};
use mover_source::pages::{
    CATALOGUE_FILE, CONTROL_FILE, Store, TABLES_DIR, TableFile, new_identity,
};
use mover_source::wal::{Group, SegmentSize};

const SEGMENT_BYTES: usize = 16_384;
/// Beyond it a file has no room: no table is longer than what fits the memory of a fuzzer.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// A change: file, place (3 bytes), new byte.
const CHANGE_BYTES: usize = 5;

type Files = BTreeMap<String, Arc<Mutex<Vec<u8>>>>;

/// Files in memory, all of them durable.
#[derive(Debug, Default)]
struct Memory(Mutex<Files>);

#[derive(Debug)]
struct MemoryFile(Arc<Mutex<Vec<u8>>>);

impl Disk for Memory {
    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let mut files = self.0.lock().expect("lock");
        if access == Access::Create {
            files.insert(path.to_owned(), Arc::default());
        }
        let file = files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(MemoryFile(Arc::clone(file))))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let files = self.0.lock().expect("lock");
        let name = |file: &String| Some(file.strip_prefix(path)?.strip_prefix('/')?.to_owned());
        Ok(files.keys().filter_map(name).collect())
    }

    fn make_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock().expect("lock");
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut files = self.0.lock().expect("lock");
        Ok(files
            .remove(path)
            .map(drop)
            .ok_or(io::ErrorKind::NotFound)?)
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.lock().expect("lock");
        let there = bytes.get(offset as usize..).unwrap_or_default();
        let len = there.len().min(buffer.len());
        buffer[..len].copy_from_slice(&there[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.allocate(offset.saturating_add(bytes.len() as u64))?;
        let at = offset as usize;
        self.0.lock().expect("lock")[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if bytes > FILE_BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut file = self.0.lock().expect("lock");
        let len = file.len().max(bytes as usize);
        file.resize(len, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().expect("lock").len() as u64)
    }
}

/// A store with two tables, a checkpoint, and a log of several segments behind it.
static STORE: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let memory = Arc::new(Memory::default());
    let disk: Arc<dyn Disk> = Arc::clone(&memory) as Arc<dyn Disk>;
    let size = SegmentSize::new(14).expect("a size");
    Store::create(Arc::clone(&disk), new_identity([0x11; 32], size)).expect("a store");
    let options = Options {
        pool_pages: 4,
        journal: false,
    };
    let (database, _) = Database::open(disk, options).expect("a database");
    let insert = |table: &str, key: u64| Op::Insert(table.to_owned(), key, vec![key as u8; 700]);
    let mut ops = vec![Op::Create("a".to_owned()), Op::Create("b".to_owned())];
    ops.extend((0..12).map(|key| insert(["a", "b"][key as usize % 2], key)));
    database.commit(&ops).expect("a commit");
    database.checkpoint().expect("a checkpoint");
    for key in 12..20 {
        database.commit(&[insert("a", key)]).expect("a commit");
        let update = Op::Update("b".to_owned(), 1, vec![key as u8; 700]);
        database.commit(&[update]).expect("a commit");
    }
    database
        .commit(&[Op::Drop("b".to_owned())])
        .expect("a commit");
    database.close().expect("closed");
    let files = memory.0.lock().expect("lock");
    let bytes = |file: &Arc<Mutex<Vec<u8>>>| file.lock().expect("lock").clone();
    files
        .iter()
        .map(|(path, file)| (path.clone(), bytes(file)))
        .collect()
});

fn put_crc(bytes: &mut [u8], at: usize, covered: &[&[u8]]) {
    let crc = checksum::crc32(&covered.concat());
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Makes records of whatever stands where they could begin.
fn seal_records(segment: &mut [u8]) {
    let (history, start) = (segment[32..48].to_vec(), segment[48..56].to_vec());
    let start = u64::from_le_bytes(start.try_into().expect("8 bytes"));
    let mut at = 4096;
    while at + 8 <= SEGMENT_BYTES - 4096 {
        let len = usize::from(u16::from_le_bytes([segment[at + 4], segment[at + 5]]));
        let end = at + len.next_multiple_of(8);
        if segment[at..at + 8] == [0; 8] {
            at = (at + 1).next_multiple_of(4096);
            continue;
        }
        if len < 8 || end > SEGMENT_BYTES - 4096 {
            return;
        }
        let lsn = start.wrapping_add(at as u64).to_le_bytes();
        let body = segment[at + 4..end].to_vec();
        put_crc(segment, at, &[&history, &lsn, &body]);
        at = end;
    }
}

/// Sets all checksums right, and lets each segment follow the one before it.
fn seal(files: &mut [(String, Vec<u8>)]) {
    let mut previous: Option<[u8; 32]> = None;
    for (path, bytes) in files {
        if *path == CONTROL_FILE {
            for slot in bytes.chunks_exact_mut(4096) {
                let body = slot[..4092].to_vec();
                put_crc(slot, 4092, &[&body]);
            }
        } else if *path == CATALOGUE_FILE {
            let end = bytes.len() - 4;
            let body = bytes[..end].to_vec();
            put_crc(bytes, end, &[&body]);
        } else if path.starts_with(TABLES_DIR) {
            let written = |page: &&mut [u8]| page.iter().any(|byte| *byte != 0);
            for page in bytes.chunks_exact_mut(4096).filter(written) {
                let (head, body) = (page[..16].to_vec(), page[20..].to_vec());
                put_crc(page, 16, &[&head, &body]);
            }
        } else if path.starts_with("wal/") && bytes.len() == SEGMENT_BYTES {
            if let Some(sha256) = previous {
                bytes[64..96].copy_from_slice(&sha256);
            }
            let header = bytes[..4092].to_vec();
            put_crc(bytes, 4092, &[&header]);
            seal_records(bytes);
            let footer = SEGMENT_BYTES - 4096;
            let sha256 = checksum::sha256(&bytes[..footer]);
            if bytes[footer..].iter().any(|byte| *byte != 0) {
                bytes[footer + 64..footer + 96].copy_from_slice(&sha256);
                let body = bytes[footer..SEGMENT_BYTES - 4].to_vec();
                put_crc(bytes, SEGMENT_BYTES - 4, &[&body]);
            }
            previous = Some(sha256);
        }
    }
}

/// Whether it recovers.
fn check(files: Vec<(String, Vec<u8>)>) -> bool {
    let files = files
        .into_iter()
        .map(|(path, bytes)| (path, Arc::new(Mutex::new(bytes))));
    let disk: Arc<dyn Disk> = Arc::new(Memory(Mutex::new(files.collect())));
    let Ok(mut store) = Store::open(Arc::clone(&disk)) else {
        return false;
    };
    let Ok(recovered) = store.recover(4) else {
        return false;
    };
    for (id, table) in store.catalogue().tables() {
        if let Ok(Some(file)) = TableFile::open_read(&*disk, *id) {
            for page in 0..table.pages.min(8) {
                let _ = file.read_checked(page);
            }
        }
    }
    let mut group = Group::new();
    let next = store.catalogue().next_table();
    let kind = mover_source::wal::TableKind::Rows;
    if group.create(next, kind, "new").is_err() {
        return true;
    }
    let time = Timestamp::from_micros(0);
    let number = recovered.next_transaction;
    let Ok(appended) = recovered.writer.append(&group, number, time) else {
        return true;
    };
    if recovered.writer.flush_to(appended.end).is_err() {
        return true;
    }
    drop(recovered);
    let mut store = Store::open(disk).expect("what was opened opens again");
    let again = store.recover(4).expect("what recovered recovers again");
    assert_eq!(again.log.end, appended.end);
    true
}

fuzz_target!(|input: &[u8]| {
    let mut files = STORE.clone();
    for change in input.chunks_exact(CHANGE_BYTES) {
        let count = files.len();
        let (_, bytes) = &mut files[usize::from(change[0]) % count];
        let at = u32::from_le_bytes([change[1], change[2], change[3], 0]) as usize;
        if let Some(len) = std::num::NonZeroUsize::new(bytes.len()) {
            bytes[at % len] = change[4];
        }
    }
    let recovers = check(files.clone());
    assert!(
        recovers || files != *STORE,
        "the store is sound before it is changed"
    );
    seal(&mut files);
    check(files);
});
