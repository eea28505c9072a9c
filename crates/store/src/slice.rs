//! The bytes that a read brought, where it put them.
//!
//! Invariants: only the range that was asked for is exposed; a slice in a buffer of the arena holds that buffer, and
//! only what is longer than a buffer lies on the heap.

use std::fmt;
use std::ops::{Deref, DerefMut};

use mover_io::Buf;

/// The bytes of one read. Holding it holds the buffer of the arena in which they lie.
pub struct Slice {
    memory: Memory,
    start: usize,
    len: usize,
}

enum Memory {
    Buffer(Buf),
    Heap(Vec<u8>),
}

impl Slice {
    /// `len` bytes of a buffer, from `start` on.
    pub(crate) fn in_buffer(buf: Buf, start: usize, len: usize) -> Self {
        Slice {
            memory: Memory::Buffer(buf),
            start,
            len,
        }
    }

    /// `len` bytes that no buffer has room for; zero at first.
    pub fn on_heap(len: usize) -> Self {
        Slice {
            memory: Memory::Heap(vec![0; len]),
            start: 0,
            len,
        }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.memory {
            Memory::Buffer(buf) => buf,
            Memory::Heap(bytes) => bytes,
        };
        &all[self.start..self.start + self.len]
    }
}

impl DerefMut for Slice {
    fn deref_mut(&mut self) -> &mut [u8] {
        let all: &mut [u8] = match &mut self.memory {
            Memory::Buffer(buf) => buf,
            Memory::Heap(bytes) => bytes,
        };
        &mut all[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}
