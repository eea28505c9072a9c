//! The allocator of the binary: the system's, with huge pages for the few allocations that are large.
//!
//! Opening a repository with a passphrase fills 64 MiB (scrypt wants memory to be expensive) and uses them once. In small
//! pages that is 16,384 page faults, a third of the time that it takes.
//!
//! Invariants: memory comes from the system's allocator and goes back to it; the advice changes no contents.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

use rustix::mm::{Advice, madvise};

/// Allocations from here on are mappings of their own in the system's allocator, and nothing on the data path is so
/// large: all of it is used soon, or it would not be asked for at once.
const LARGE_BYTES: usize = 32 << 20;
/// Pages that the advice is given for begin at a multiple of this.
const PAGE_BYTES: usize = 4096;

/// To be named as the `global_allocator`.
pub struct HugeAlloc;

// SAFETY: all memory is System's; see GlobalAlloc's requirements there.
unsafe impl GlobalAlloc for HugeAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps GlobalAlloc's contract, which is System's.
        advise(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in alloc().
        advise(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, first: *mut u8, layout: Layout) {
        // SAFETY: as in alloc(); `first` came from System.
        unsafe { System.dealloc(first, layout) }
    }

    unsafe fn realloc(&self, first: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as in dealloc().
        unsafe { System.realloc(first, layout, bytes) }
    }
}

/// Asks for huge pages where an allocation is large.
fn advise(first: *mut u8, bytes: usize) -> *mut u8 {
    if bytes >= LARGE_BYTES && !first.is_null() {
        let skip = first.align_offset(PAGE_BYTES);
        let whole_bytes = (bytes - skip) / PAGE_BYTES * PAGE_BYTES;
        // A wish: without huge pages it is slower, and a refusal is no error.
        // SAFETY: the pages lie within the allocation, and this advice does not change what is in them.
        let _ = unsafe {
            madvise(
                first.wrapping_add(skip).cast(),
                whole_bytes,
                Advice::LinuxHugepage,
            )
        };
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_memory_is_zeroed_and_writable() {
        for bytes in [1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 12345] {
            let layout = Layout::from_size_align(bytes, 8).expect("a layout");
            // SAFETY: the layout is not empty, the bytes are used within it and given back once.
            unsafe {
                let first = HugeAlloc.alloc_zeroed(layout);
                assert!(!first.is_null());
                let memory = std::slice::from_raw_parts_mut(first, bytes);
                assert!(memory.iter().all(|byte| *byte == 0));
                memory.fill(1);
                HugeAlloc.dealloc(first, layout);
            }
        }
    }
}
