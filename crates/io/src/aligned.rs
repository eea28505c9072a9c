//! A heap buffer aligned for direct I/O, for who writes outside of a shard (a database that flushes its own log).
//!
//! Invariants: the first byte stands at a multiple of [`BLOCK_BYTES`] and the length never changes, because the
//! memory is never reallocated.

use std::ops::{Deref, DerefMut};

use crate::file::BLOCK_BYTES;

/// Zeroed bytes of a fixed length, aligned to [`BLOCK_BYTES`].
pub struct AlignedBytes {
    /// Longer than what is lent out by one block, so that an aligned part of the right length lies in it.
    memory: Box<[u8]>,
    first: usize,
    len: usize,
}

impl AlignedBytes {
    /// A buffer of `len` zero bytes.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + BLOCK_BYTES].into_boxed_slice();
        let first = memory.as_ptr().align_offset(BLOCK_BYTES);
        AlignedBytes { memory, first, len }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.first..self.first + self.len]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.first..self.first + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_of_their_length() {
        let held: Vec<AlignedBytes> = [0, 1, 4096, 4097, 1 << 20].map(AlignedBytes::new).into();
        for (bytes, len) in held.iter().zip([0, 1, 4096, 4097, 1 << 20]) {
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes.as_ptr().align_offset(BLOCK_BYTES), 0);
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
        let mut moved = AlignedBytes::new(4096);
        moved.fill(7);
        let moved = Box::new(moved);
        assert_eq!(moved.as_ptr().align_offset(BLOCK_BYTES), 0);
        assert_eq!(moved[4095], 7);
    }
}
