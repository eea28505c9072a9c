//! Memory for the next piece of an upload, of the kind that its store sends from without a copy: a buffer of the arena
//! where a disk takes it, memory of its own where a connection does, which may hold it for several tries.
//!
//! Invariants: a piece has [`BUF_BYTES`], whatever of it is filled; memory of its own goes back to its pool when nobody
//! sends from it any more, and a pool keeps no more than it was told.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mover_io::{BUF_BYTES, Buf};

/// Memory for one piece; see [`Store::piece`](crate::Store::piece). Its contents are unspecified at first.
pub struct Piece(pub(crate) Memory);

/// Where it lies.
pub(crate) enum Memory {
    Buffer(Buf),
    Own(OwnMemory),
}

impl From<Buf> for Piece {
    fn from(buf: Buf) -> Self {
        Piece(Memory::Buffer(buf))
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Buffer(buf) => buf,
            Memory::Own(own) => &own.bytes,
        }
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Buffer(buf) => buf,
            Memory::Own(own) => &mut own.bytes,
        }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Memory::Buffer(buf) => write!(f, "Piece({buf:?})"),
            Memory::Own(_) => f.write_str("Piece(own memory)"),
        }
    }
}

/// Memory that was used before and is free. What is taken from it was touched already, so no page of it is missing.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shelf>);

struct Shelf {
    free: Mutex<Vec<Box<[u8]>>>,
    kept_max: usize,
}

impl Pool {
    /// A pool that keeps at most so many pieces.
    pub fn new(kept_max: usize) -> Self {
        Pool(Arc::new(Shelf {
            free: Mutex::default(),
            kept_max,
        }))
    }

    /// Memory for a piece, new where none is free.
    pub fn take(&self) -> OwnMemory {
        let used = self.0.free().pop();
        OwnMemory {
            bytes: used.unwrap_or_else(|| vec![0; BUF_BYTES].into_boxed_slice()),
            pool: self.clone(),
        }
    }
}

impl Shelf {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Box<[u8]>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`BUF_BYTES`] on the heap.
pub(crate) struct OwnMemory {
    bytes: Box<[u8]>,
    pool: Pool,
}

impl OwnMemory {
    /// The first `len` bytes, to be sent as often as it takes.
    pub fn filled(self, len: usize) -> Bytes {
        let mut bytes = Bytes::from_owner(self);
        bytes.truncate(len);
        bytes
    }
}

impl AsRef<[u8]> for OwnMemory {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        let mut free = self.pool.0.free();
        if free.len() < self.pool.0.kept_max {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_its_last_reader_is_gone() {
        let pool = Pool::new(1);
        let mut piece = Piece(Memory::Own(pool.take()));
        assert_eq!(piece.len(), BUF_BYTES);
        piece[..3].copy_from_slice(b"abc");
        let Piece(Memory::Own(own)) = piece else {
            unreachable!("it was made so")
        };
        let bytes = own.filled(3);
        let other = bytes.slice(1..);
        drop(bytes);
        assert!(pool.0.free().is_empty());
        assert_eq!(&other[..], b"bc");
        drop(other);
        assert_eq!(pool.0.free().len(), 1);
        // More than it keeps is given back to the allocator.
        let (one, another) = (pool.take(), pool.take());
        assert!(pool.0.free().is_empty());
        drop((one, another));
        assert_eq!(pool.0.free().len(), 1);
    }
}
