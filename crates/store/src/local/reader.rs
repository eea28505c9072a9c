//! Ranged reads from a shard, with the files last used kept open.
//!
//! Invariants: at most [`FILES_OPEN_MAX`] descriptors per reader, the least recently used closed first. A
//! direct read covers the blocks around the range, and only the exact range is exposed. Objects are
//! immutable, so a descriptor never goes stale; one of a deleted object still reads what it always did.

use std::cell::RefCell;
use std::collections::VecDeque;

use mover_base::{BLOCK_BYTES, Result};
use mover_io::{Access, File, Shard};

use super::LocalStore;
use super::errno::{explain, explain_read, not_found};
use crate::bounds::{read_end, run_end, too_short};
use crate::key::Key;
use crate::{READ_BYTES_MAX, Slice};

/// Files that one reader keeps open. A restore reads from a few packs at a time, in runs; 16 per shard stay
/// far below the usual limit of 1024 descriptors even on large machines.
const FILES_OPEN_MAX: usize = 16;

/// A shard's cache of open objects.
pub struct LocalReader {
    store: LocalStore,
    shard: Shard,
    /// Most recently used last.
    open: RefCell<VecDeque<(Key, File)>>,
}

impl LocalReader {
    pub(super) fn new(store: &LocalStore, shard: &Shard) -> LocalReader {
        LocalReader {
            store: store.clone(),
            shard: shard.clone(),
            open: RefCell::default(),
        }
    }

    pub(crate) async fn read(&self, key: &Key, offset: u64, len: usize) -> Result<Slice> {
        let file = self.file(key)?;
        read_range(&self.shard, &file, key, offset, len).await
    }

    /// Piece by piece: a file's pages cost the same in any number of reads.
    pub(crate) async fn read_run(
        &self,
        key: &Key,
        offset: u64,
        lens: &[usize],
        take: &mut dyn FnMut(Slice),
    ) -> Result<()> {
        run_end(key, offset, lens)?;
        let mut offset = offset;
        for &len in lens {
            take(self.read_piece(key, offset, len).await?);
            offset += len as u64;
        }
        Ok(())
    }

    async fn read_piece(&self, key: &Key, offset: u64, len: usize) -> Result<Slice> {
        if len <= READ_BYTES_MAX {
            return self.read(key, offset, len).await;
        }
        let mut piece = Slice::on_heap(len);
        let mut at = offset;
        for part in piece.chunks_mut(READ_BYTES_MAX) {
            part.copy_from_slice(&self.read(key, at, part.len()).await?);
            at += part.len() as u64;
        }
        Ok(piece)
    }

    fn file(&self, key: &Key) -> Result<File> {
        let mut open = self.open.borrow_mut();
        if let Some(found) = open.iter().position(|(have, _)| have == key)
            && let Some(entry) = open.remove(found)
        {
            let file = entry.1.clone();
            open.push_back(entry);
            return Ok(file);
        }
        let file = open_object(&self.store, &self.shard, key)?.0;
        if open.len() >= FILES_OPEN_MAX {
            open.pop_front();
        }
        open.push_back((key.clone(), file.clone()));
        Ok(file)
    }
}

/// Opens `key` for direct reads, with its size in bytes.
pub(super) fn open_object(store: &LocalStore, shard: &Shard, key: &Key) -> Result<(File, u64)> {
    let (fd, bytes) = store
        .root()
        .open_object(key.as_str())?
        .ok_or_else(|| not_found(key.as_str()))?;
    let file = shard
        .file(fd, Access::Direct)
        .map_err(|error| explain(error, "open an object", key.as_str()))?;
    Ok((file, bytes))
}

/// Reads exactly `len` bytes at `offset`.
pub(super) async fn read_range(
    shard: &Shard,
    file: &File,
    key: &Key,
    offset: u64,
    len: usize,
) -> Result<Slice> {
    let end = read_end(key, offset, len)?;
    let block = BLOCK_BYTES as u64;
    let first = offset - offset % block;
    let skip = (offset - first) as usize;
    let buf = shard.buffer().await;
    if len == 0 {
        return Ok(Slice::in_buffer(buf, 0, len));
    }
    let span = (end.next_multiple_of(block) - first) as usize;
    let (result, buf) = file.read_at(buf, first, span).await;
    let got = result.map_err(|error| explain_read(error, key.as_str()))?;
    if got < skip + len {
        return Err(too_short(key));
    }
    Ok(Slice::in_buffer(buf, skip, len))
}
