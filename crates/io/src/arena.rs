//! The arena of a shard: one mapping, cut into equal buffers that are aligned for direct I/O.
//!
//! Invariants: an index is either in the free list or in exactly one [`Slot`], and the ranges of the [`Buf`]s that share
//! a slot do not overlap, so a `Buf` is the only path to its memory; the mapping lives as long as the last `Buf`.
//! Contents of a fresh buffer are unspecified (initialised, but left over from earlier use).
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::file::BLOCK_BYTES;
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
        let slot = Slot {
            arena: Rc::clone(self),
            index,
        };
        Buf {
            slot: Rc::new(slot),
            range: 0..BUF_BYTES,
        }
    }
}

/// A piece of the arena that is not free; goes back with the last [`Buf`] on it.
struct Slot {
    arena: Rc<Arena>,
    index: u16,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // First the list, then the permit: whoever gets the permit finds the buffer.
        self.arena.free.borrow_mut().push(self.index);
        self.arena.permits.release();
    }
}

/// One buffer of [`BUF_BYTES`], or a part of one, aligned for direct I/O; goes back to its arena when the last of its
/// parts is dropped.
///
/// Its contents are unspecified when it is handed out. It never leaves its shard.
pub struct Buf {
    slot: Rc<Slot>,
    range: Range<usize>,
}

impl Buf {
    /// Gives the first `len` bytes away as a buffer of their own, for requests that are small: each needs a buffer, and
    /// there are few. `None` if that is more than there is, or would leave a rest that is not aligned for direct I/O.
    pub fn split_to(&mut self, len: usize) -> Option<Buf> {
        if len > self.range.len() || !len.is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        let middle = self.range.start + len;
        let first = Buf {
            slot: Rc::clone(&self.slot),
            range: self.range.start..middle,
        };
        self.range.start = middle;
        Some(first)
    }

    /// First byte, for the kernel.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.address().as_ptr()
    }

    /// Index within the arena of what it is (a part of), which is its index in the ring's table of registered buffers.
    pub(crate) fn index(&self) -> u16 {
        self.slot.index
    }

    fn address(&self) -> NonNull<u8> {
        let first = self.slot.arena.mapping.first();
        // SAFETY: index < count and start <= BUF_BYTES, so this lies inside the mapping, or right behind its end for an
        // empty part.
        unsafe { first.add(usize::from(self.slot.index) * BUF_BYTES + self.range.start) }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the BUF_BYTES of the slot, which are mapped, zeroed by the kernel at first and so
        // initialised, and reachable through this Buf alone: the free list gives an index to one slot at a time, and
        // split_to() to one Buf each byte of it.
        unsafe { std::slice::from_raw_parts(self.address().as_ptr(), self.range.len()) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref(); &mut self makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.address().as_ptr(), self.range.len()) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({}, {:?})", self.slot.index, self.range)
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

    #[test]
    fn parts_do_not_overlap_and_the_last_of_them_gives_the_buffer_back() {
        let arena = Arena::new(1).expect("map");
        let mut rest = arena.try_buffer().expect("buffer");
        let whole = rest.as_ptr_range();
        assert!(rest.split_to(BLOCK_BYTES - 1).is_none());
        assert!(rest.split_to(BUF_BYTES + BLOCK_BYTES).is_none());
        let mut first = rest.split_to(2 * BLOCK_BYTES).expect("first");
        let mut second = rest.split_to(BLOCK_BYTES).expect("second");
        assert_eq!(
            (first.len(), second.len(), rest.len()),
            (2 * BLOCK_BYTES, BLOCK_BYTES, BUF_BYTES - 3 * BLOCK_BYTES)
        );
        assert_eq!(first.as_ptr_range().start, whole.start);
        assert_eq!(first.as_ptr_range().end, second.as_ptr_range().start);
        assert_eq!(second.as_ptr_range().end, rest.as_ptr_range().start);
        assert_eq!(rest.as_ptr_range().end, whole.end);
        for (buf, mark) in [(&mut first, 1), (&mut second, 2), (&mut rest, 3)] {
            buf.fill(mark);
        }
        assert!(first.iter().all(|&byte| byte == 1) && second.iter().all(|&byte| byte == 2));
        let last = rest.split_to(BUF_BYTES - 3 * BLOCK_BYTES).expect("last");
        assert!(rest.is_empty() && rest.split_to(BLOCK_BYTES).is_none());
        drop((first, second, rest));
        assert_eq!(arena.free_count(), 0);
        assert!(last.iter().all(|&byte| byte == 3));
        drop(last);
        assert_eq!(arena.free_count(), 1);
    }
}
