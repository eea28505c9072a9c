//! Mapped memory. Anonymous, beginning on a huge page: the arena's buffers, and tables of words that shards share. And
//! of a file: words that processes share.
//!
//! Invariants: memory belongs to its mapping and is given back when that is dropped; anonymous memory is zeroed by the
//! kernel. Words are reached through atomics only, so any thread, and any other process that maps them, may change them.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

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

/// A whole file seen as words (8 bytes each, of the machine's order) that all processes share which map it: what one
/// stores, the others load, also after the process that stored it was killed.
///
/// Whoever makes such a file gives it all its blocks before it is mapped, and nobody ever cuts it: touching a word that
/// the file has no block for ends the process (SIGBUS).
#[derive(Debug)]
pub struct FileWords {
    first: NonNull<AtomicU64>,
    count: usize,
}

impl FileWords {
    /// Maps the file, which must be open for reading and writing. The descriptor may be closed afterwards.
    ///
    /// # Errors
    /// `InvalidData` unless the file has exactly `count` words, at least one; else what the kernel says.
    pub fn map(file: impl AsFd, count: usize) -> io::Result<Self> {
        let bytes = count
            .checked_mul(size_of::<AtomicU64>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let len = rustix::fs::fstat(&file)?.st_size;
        if bytes == 0 || usize::try_from(len) != Ok(bytes) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the file has {len} bytes instead of {bytes}"),
            ));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        let first = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let first = NonNull::new(first.cast::<AtomicU64>())
            .ok_or_else(|| io::Error::other("the kernel mapped memory at address zero"))?;
        Ok(FileWords { first, count })
    }
}

impl Drop for FileWords {
    fn drop(&mut self) {
        let bytes = self.count * size_of::<AtomicU64>();
        // SAFETY: the mapping was made by map() with these values, and its words are borrowed from self.
        let unmapped = unsafe { munmap(self.first.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

impl Deref for FileWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `count` words are mapped at this page-aligned address for as long as self lives, any bytes are a valid
        // word, and they are reached through this slice of atomics alone, by this process as by others.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

// SAFETY: the mapping is owned, its address is valid on every thread, and its words are atomics.
unsafe impl Send for FileWords {}
// SAFETY: as for Send; shared access goes through atomics only.
unsafe impl Sync for FileWords {}

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

    #[test]
    fn mappings_of_a_file_share_its_words() {
        let file = tempfile::tempfile().expect("file");
        file.set_len(8192).expect("length");
        let (ours, theirs) = (
            FileWords::map(&file, 1024).expect("map"),
            FileWords::map(&file, 1024).expect("map"),
        );
        ours[1023].store(7, Relaxed);
        assert_eq!(theirs[1023].load(Relaxed), 7);
        drop(ours);
        assert_eq!((theirs.len(), theirs[1023].load(Relaxed)), (1024, 7));
        let mut bytes = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 8184).expect("read");
        assert_eq!(u64::from_ne_bytes(bytes), 7);
    }

    #[test]
    fn files_of_another_length_are_not_mapped() {
        let file = tempfile::tempfile().expect("file");
        file.set_len(8192).expect("length");
        for wrong in [0, 1, 1023, 1025, usize::MAX] {
            assert!(FileWords::map(&file, wrong).is_err(), "{wrong}");
        }
    }
}
