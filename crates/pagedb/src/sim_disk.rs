//! A disk in memory that loses power: what was not synced is kept, lost or torn by sectors, as the seed decides.
//!
//! Invariants: synced bytes and names survive every crash; of what was not synced, each sector of 512 bytes holds an
//! earlier or a later content, and names change in their order. After the stated number of operations everything
//! fails, as for a process whose machine is off; or for one that is killed, if the disk is then given to the next as it is.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use mover_source::disk::{Access, Disk, DiskFile};

use crate::random::Random;

const SECTOR_BYTES: usize = 512;
/// The longest file: beyond it the disk is full.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<(String, Option<usize>)>,
    operations: u64,
    off_at: Option<u64>,
    /// The sync with this number fails, and what it should have stored is lost.
    fail_sync_at: Option<u64>,
    syncs: u64,
}

#[derive(Debug, Default, Clone)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, new) => put(bytes, *at, new),
            Change::Len(len) => {
                if bytes.len() < *len {
                    bytes.resize(*len, 0);
                }
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

impl State {
    /// Counts an operation that changes something; `Err` when the power is off.
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        self.power()
    }

    fn power(&self) -> io::Result<()> {
        match self.off_at {
            Some(at) if self.operations > at => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    fn find(&self, path: &str) -> io::Result<usize> {
        let found = self.names.get(path).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn name(&mut self, path: &str, file: Option<usize>) {
        match file {
            Some(file) => self.names.insert(path.to_owned(), file),
            None => self.names.remove(path),
        };
        self.pending_names.push((path.to_owned(), file));
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        SimDisk::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("lock")
    }

    /// How many operations there were that changed something.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Turns the power off after `operations` more.
    pub fn power_off_after(&self, operations: u64) {
        let mut state = self.state();
        state.off_at = Some(state.operations + operations);
    }

    /// Makes one sync fail, after `syncs` more that do not.
    pub fn fail_sync_after(&self, syncs: u64) {
        let mut state = self.state();
        state.fail_sync_at = Some(state.syncs + syncs + 1);
    }

    /// Loses the power and gets it back: a disk with what survived.
    pub fn crash(&self, seed: u64) -> SimDisk {
        let state = self.state();
        let mut random = Random::new(seed);
        let mut names = state.durable_names.clone();
        let kept = random.below(state.pending_names.len() as u64 + 1) as usize;
        for (path, file) in &state.pending_names[..kept] {
            match file {
                Some(file) => names.insert(path.clone(), *file),
                None => names.remove(path),
            };
        }
        let survived = |content: &Content| {
            let mut bytes = content.durable.clone();
            // All, none, or a part that differs from file to file.
            let of_four = random.below(6);
            for change in &content.pending {
                match change {
                    Change::Len(_) if random.below(4) < of_four => change.apply(&mut bytes),
                    Change::Len(_) => {}
                    Change::Write(at, new) => {
                        for (i, sector) in new.chunks(SECTOR_BYTES).enumerate() {
                            if random.below(4) < of_four {
                                put(&mut bytes, at + i * SECTOR_BYTES, sector);
                            }
                        }
                    }
                }
            }
            Content {
                current: bytes.clone(),
                durable: bytes,
                pending: Vec::new(),
            }
        };
        let files = state.files.iter().map(survived).collect();
        SimDisk(Arc::new(Mutex::new(State {
            files,
            durable_names: names.clone(),
            names,
            ..State::default()
        })))
    }

    /// Lets the next process have the disk after the last one was killed: what that wrote and did not sync is there, and may
    /// still be lost.
    pub fn restart(&self) {
        self.state().off_at = None;
    }

    /// The disk as it is now, everything on it durable.
    pub fn copy(&self) -> SimDisk {
        let state = self.state();
        let files = state.files.iter().map(|content| Content {
            current: content.current.clone(),
            durable: content.current.clone(),
            pending: Vec::new(),
        });
        SimDisk(Arc::new(Mutex::new(State {
            files: files.collect(),
            names: state.names.clone(),
            durable_names: state.names.clone(),
            ..State::default()
        })))
    }

    /// Names of all files.
    pub fn paths(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// The bytes of a file.
    pub fn bytes(&self, path: &str) -> Vec<u8> {
        let state = self.state();
        let file = state.find(path).expect("file");
        state.files[file].current.clone()
    }

    /// Replaces a file, or makes it, durably.
    pub fn set(&self, path: &str, bytes: &[u8]) {
        let mut state = self.state();
        let file = match state.names.get(path) {
            Some(file) => *file,
            None => {
                state.files.push(Content::default());
                state.files.len() - 1
            }
        };
        state.files[file] = Content {
            current: bytes.to_vec(),
            durable: bytes.to_vec(),
            pending: Vec::new(),
        };
        state.names.insert(path.to_owned(), file);
        state.durable_names.insert(path.to_owned(), file);
    }

    /// Inverts bits of one byte of a file.
    pub fn flip(&self, path: &str, at: usize, bits: u8) {
        let mut state = self.state();
        let file = state.find(path).expect("file");
        state.files[file].current[at] ^= bits;
        state.files[file].durable[at] ^= bits;
    }

    /// Removes a file, durably.
    pub fn delete(&self, path: &str) {
        let mut state = self.state();
        state.names.remove(path).expect("file");
        state.durable_names.remove(path);
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let file = if access == Access::Create {
            state.operation()?;
            if state.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.files.push(Content::default());
            let file = state.files.len() - 1;
            state.name(path, Some(file));
            file
        } else {
            state.power()?;
            state.find(path)?
        };
        Ok(Box::new(SimFile {
            disk: self.clone(),
            file,
            direct: access == Access::WriteDirect,
        }))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let state = self.state();
        state.power()?;
        let prefix = format!("{path}/");
        let names = state.names.keys();
        Ok(names
            .filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned))
            .collect())
    }

    fn make_dir(&self, _: &str) -> io::Result<()> {
        self.state().power()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        let file = state.find(from)?;
        // One change for who looks: both names in one step.
        state.names.remove(from);
        state.names.insert(to.to_owned(), file);
        state.pending_names.push((to.to_owned(), Some(file)));
        state.pending_names.push((from.to_owned(), None));
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.find(path)?;
        state.name(path, None);
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        let parent = |path: &str| path.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned();
        let (synced, left) = std::mem::take(&mut state.pending_names)
            .into_iter()
            .partition(|(path, _)| parent(path) == dir);
        state.pending_names = left;
        let synced: Vec<(String, Option<usize>)> = synced;
        for (path, file) in synced {
            match file {
                Some(file) => state.durable_names.insert(path, file),
                None => state.durable_names.remove(&path),
            };
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: usize,
    direct: bool,
}

impl SimFile {
    fn change(&self, change: Change, end: u64) -> io::Result<()> {
        if end > FILE_BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut state = self.disk.state();
        // What is under way when the power goes may arrive in part.
        let before = state.power();
        let outcome = state.operation();
        before?;
        let content = &mut state.files[self.file];
        change.apply(&mut content.current);
        content.pending.push(change);
        outcome
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        state.power()?;
        let rest = state.files[self.file].current.get(offset as usize..);
        let rest = rest.unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.direct {
            let aligned = |n: usize| n.is_multiple_of(4096);
            assert!(
                aligned(bytes.len()) && aligned(offset as usize),
                "unaligned"
            );
            assert!(aligned(bytes.as_ptr() as usize), "unaligned memory");
        }
        let end = offset + bytes.len() as u64;
        self.change(Change::Write(offset as usize, bytes.to_vec()), end)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.change(Change::Len(bytes as usize), bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operation()?;
        state.syncs += 1;
        let fails = state.fail_sync_at == Some(state.syncs);
        let content = &mut state.files[self.file];
        let pending = std::mem::take(&mut content.pending);
        if fails {
            // Readers still see it; the disk will never have it.
            return Err(io::Error::other("the disk failed"));
        }
        for change in pending {
            change.apply(&mut content.durable);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.power()?;
        Ok(state.files[self.file].current.len() as u64)
    }
}
