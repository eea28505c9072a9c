//! The arena of a shard: one mapping, cut into equal buffers that are aligned for direct I/O.
//!
//! Invariants: an index is either in the free list or in exactly one [`Buf`], so a `Buf` is the only path to
//! its memory; the mapping lives as long as the last `Buf`. Contents of a fresh buffer are unspecified
//! (initialised, but left over from earlier use).
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::mapping::Mapping;
use crate::queue::{Permits, Take};

/// Bytes of every buffer: large enough for full disk bandwidth at a modest depth, and the unit of pieces.
pub const BUF_BYTES: usize = 1 << 20;

/// Owner of the mapping and of the list of free buffers.
pub(crate) struct Arena {
    mapping: Mapping,
    count: usize,
    free: RefCell<Vec<u16>>,
    permits: Rc<Permits>,
}

impl Arena {
    /// Maps `count` buffers.
    pub(crate) fn new(count: u16) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Arena {
            mapping: Mapping::new(usize::from(count) * BUF_BYTES)?,
            count: usize::from(count),
            free: RefCell::new((0..count).rev().collect()),
            permits: Permits::new(usize::from(count)),
        }))
    }

    /// All buffers as (address, length), by index: the list to register with a ring.
    pub(crate) fn iovecs(&self) -> Vec<libc::iovec> {
        (0..self.count)
            .map(|index| libc::iovec {
                iov_base: self
                    .mapping
                    .first()
                    .as_ptr()
                    .wrapping_add(index * BUF_BYTES)
                    .cast(),
                iov_len: BUF_BYTES,
            })
            .collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn free_count(&self) -> usize {
        self.permits.free()
    }

    pub(crate) fn try_buffer(self: &Rc<Self>) -> Option<Buf> {
        if self.permits.try_take() {
            Some(self.pop())
        } else {
            None
        }
    }

    /// Waits in line for a buffer.
    pub(crate) async fn buffer(self: &Rc<Self>) -> Buf {
        let take: Take = self.permits.take();
        take.await;
        self.pop()
    }

    /// The buffer of a permit that the caller holds.
    fn pop(self: &Rc<Self>) -> Buf {
        let index = self.free.borrow_mut().pop();
        // One permit exists for every index in the list.
        let index = index.unwrap_or_else(|| unreachable!("a permit without a free buffer"));
        Buf {
            arena: Rc::clone(self),
            index,
        }
    }
}

/// One buffer of [`BUF_BYTES`], aligned for direct I/O; goes back to its arena on drop.
///
/// Its contents are unspecified when it is handed out. It never leaves its shard.
pub struct Buf {
    arena: Rc<Arena>,
    index: u16,
}

impl Buf {
    /// First byte, for the kernel.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.address().as_ptr()
    }

    /// Index within the arena, which is its index in the ring's table of registered buffers.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    fn address(&self) -> NonNull<u8> {
        // SAFETY: index < count, so the buffer lies inside the mapping.
        unsafe {
            self.arena
                .mapping
                .first()
                .add(usize::from(self.index) * BUF_BYTES)
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: BUF_BYTES at this address are mapped, zeroed by the kernel at first and so initialised, and
        // reachable through this Buf alone: the free list gives an index to one Buf at a time.
        unsafe { std::slice::from_raw_parts(self.address().as_ptr(), BUF_BYTES) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref(); &mut self makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.address().as_ptr(), BUF_BYTES) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // First the list, then the permit: whoever gets the permit finds the buffer.
        self.arena.free.borrow_mut().push(self.index);
        self.arena.permits.release();
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({})", self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_distinct_and_come_back() {
        let arena = Arena::new(3).expect("map");
        let mut held: Vec<Buf> = (0..3)
            .map(|_| arena.try_buffer().expect("buffer"))
            .collect();
        assert!(arena.try_buffer().is_none());
        for (mark, buf) in held.iter_mut().enumerate() {
            assert_eq!(buf.len(), BUF_BYTES);
            assert_eq!(buf.as_ptr().align_offset(4096), 0);
            buf.fill(mark as u8 + 1);
        }
        for (mark, buf) in held.iter().enumerate() {
            assert!(buf.iter().all(|&byte| byte == mark as u8 + 1));
        }
        drop(held);
        assert_eq!(arena.free_count(), 3);
        assert_eq!(arena.iovecs().len(), arena.count());
    }

    #[test]
    fn a_buffer_outlives_the_arena_handle() {
        let arena = Arena::new(1).expect("map");
        let mut buf = arena.try_buffer().expect("buffer");
        drop(arena);
        buf.fill(7);
        assert_eq!(buf[BUF_BYTES - 1], 7);
    }
}
