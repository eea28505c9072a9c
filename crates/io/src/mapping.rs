//! Anonymous memory that begins on a huge page: the arena's buffers, and tables of words that shards share.
//!
//! Invariants: the memory is zeroed by the kernel, belongs to its mapping alone and is given back when that is
//! dropped. A table is reached through atomics only, so any thread may hold it.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of a huge page on the processors that this runs on.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A private anonymous mapping.
pub(crate) struct Mapping {
    /// First usable byte, aligned to [`HUGE_PAGE_BYTES`].
    first: NonNull<u8>,
    /// The mapping as the kernel returned it.
    whole: NonNull<u8>,
    whole_bytes: usize,
}

impl Mapping {
    /// Maps `bytes` zeroed bytes, in huge pages if the kernel has them.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let whole_bytes = bytes
            .checked_add(HUGE_PAGE_BYTES)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
        let whole = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                whole_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let whole = NonNull::new(whole.cast::<u8>())
            .ok_or_else(|| io::Error::other("the kernel mapped memory at address zero"))?;
        let skip = whole.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: the mapping is HUGE_PAGE_BYTES longer than what was asked for, and skip is less than that.
        let first = unsafe { whole.add(skip) };
        // Huge pages are a wish: without them only the TLB suffers, so a refusal is no error.
        // SAFETY: the range lies in the mapping made above, and the advice does not change its contents.
        let _ = unsafe { madvise(first.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
        Ok(Mapping {
            first,
            whole,
            whole_bytes,
        })
    }

    /// The first usable byte.
    pub fn first(&self) -> NonNull<u8> {
        self.first
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by new() with these values. Whoever lends its memory out keeps the mapping
        // until nothing refers to it: an arena lives as long as its last buffer, a table is borrowed.
        let unmapped = unsafe { munmap(self.whole.as_ptr().cast(), self.whole_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A table of words, zero at first, that all shards of a job share. In huge pages where the kernel has them,
/// because a large table is read at random: every read would otherwise miss the TLB too.
pub struct SharedWords {
    mapping: Mapping,
    count: usize,
}

impl SharedWords {
    /// A table of `count` words (8 bytes each). Memory is taken as words are first touched.
    pub fn new(count: usize) -> io::Result<Self> {
        let bytes = count
            .checked_mul(size_of::<AtomicU64>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping::new(bytes)?;
        Ok(SharedWords { mapping, count })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `count` words are mapped at this aligned address, zeroed by the kernel and so initialised, for as
        // long as self lives; they are reached through this slice of atomics alone.
        unsafe { std::slice::from_raw_parts(self.mapping.first().as_ptr().cast(), self.count) }
    }
}

// SAFETY: the mapping is owned, its address is valid on every thread, and its words are atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as for Send; shared access goes through atomics only.
unsafe impl Sync for SharedWords {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn words_begin_at_zero_and_are_shared() {
        let words = SharedWords::new(3 * HUGE_PAGE_BYTES / 8 + 1).expect("map");
        assert!(words.iter().all(|word| word.load(Relaxed) == 0));
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let words = &words;
                scope.spawn(move || {
                    for at in (thread as usize..words.len()).step_by(4) {
                        words[at].store(at as u64, Relaxed);
                    }
                });
            }
        });
        assert!(
            (0..)
                .zip(words.iter())
                .all(|(at, word)| word.load(Relaxed) == at)
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(SharedWords::new(0).is_ok_and(|words| words.is_empty()));
        assert!(SharedWords::new(usize::MAX).is_err());
        assert!(SharedWords::new(usize::MAX / 8).is_err());
    }
}
