//! The files of a page store and its log, and what "durable" means for them.
//!
//! A [`Disk`] is a directory beneath which all names are resolved; [`DirDisk`] is the real one, and the tests' other one
//! loses, tears and reorders what was not synced, as a power cut does.
//!
//! Invariants: a write is durable after [`DiskFile::sync`] of its file, a name (made, renamed or removed) after
//! [`Disk::sync_dir`] of its directory, and neither before. A failed sync is final: the kernel forgets what it lost, so
//! nobody may sync again and go on. No lookup leaves the directory or follows a symbolic link, and nothing but a regular file is
//! opened as a [`DiskFile`]. Whoever goes through a log says so
//! about every MiB ([`Disk::advance`]), so that others can see how far it is, slow it down, and end it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use mover_io::{AlignedBytes, GENTLE_REQUEST_BYTES, RateBudget};
use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::beneath;
use crate::failure::source_error;
use crate::wal::segment::LOG_DIR;

/// Bytes that are copied at a time where direct reads need a copy.
const COPIED_BYTES: usize = 1 << 20;
/// Time for which whoever goes through a log may come forward faster than the limit, after it was slower.
const BURST: Duration = Duration::from_millis(25);
/// How often whoever waits looks whether it is to end, and what the limit is by now.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To be read; it must exist.
    Read,
    /// To be read past the page cache, where the file system can; it must exist. Whole blocks go straight into aligned
    /// memory, all else takes a copy.
    ReadDirect,
    /// To be read and written; it must exist.
    Write,
    /// To be written past the page cache, where the file system can, in whole aligned blocks; it must exist.
    WriteDirect,
    /// Made anew for reading and writing; it must not exist.
    Create,
}

/// A directory that holds a page store.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens the file at `path` (relative, components joined by `/`).
    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn DiskFile>>;
    /// The names in the directory `path`, in no order.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Makes a directory; one that exists is left as it is.
    fn make_dir(&self, path: &str) -> io::Result<()>;
    /// Puts `from` in the place of `to`, whether that exists or not.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Makes the names in the directory `path` (the empty path is the disk itself) durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Told by whoever goes through a log how many bytes it came forward since it said so last: at its beginning, and then
    /// about every MiB.
    ///
    /// # Errors
    /// `Cancelled` if it is to end.
    fn advance(&self, bytes: u64) -> Result<()> {
        let _ = bytes;
        Ok(())
    }
}

/// The other end of [`Disk::advance`]: how far those are that go through a log, and their end.
#[derive(Debug, Default)]
pub struct LogWatch {
    bytes: AtomicU64,
    stopped: AtomicBool,
}

/// What was read from the files of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BytesRead {
    /// From segments of the log.
    pub log: u64,
    /// From all other files.
    pub other: u64,
}

/// The same while it is counted.
#[derive(Debug, Default)]
struct ReadCounts {
    log: AtomicU64,
    other: AtomicU64,
}

/// How fast a log may be gone through.
#[derive(Debug)]
struct Throttle {
    limit: Arc<RateBudget>,
    gentle: bool,
    /// When what was gone through so far is through at the limit.
    paid: Mutex<Instant>,
}

impl LogWatch {
    /// Bytes of the log that were gone through; more than it is long where it is gone through again.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Counts bytes that were gone through.
    ///
    /// # Errors
    /// `Cancelled` if whoever did is to end.
    pub fn advance(&self, bytes: u64) -> Result<()> {
        self.bytes.fetch_add(bytes, Relaxed);
        self.check()
    }

    /// Ends whoever goes through a log of this disk, now or later.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// Whether they may go on.
    ///
    /// # Errors
    /// `Cancelled` if not.
    pub fn check(&self) -> Result<()> {
        match self.stopped.load(Relaxed) {
            true => Err(Error::new(Kind::Cancelled, "the job was cancelled")),
            false => Ok(()),
        }
    }
}

impl Throttle {
    /// Waits until so many bytes more are within the limit, which may change meanwhile, or `check` fails.
    fn wait(&self, bytes: u64, check: impl Fn() -> Result<()>) -> Result<()> {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        let from = (*paid).max(begun.checked_sub(BURST).unwrap_or(begun));
        loop {
            let now = Instant::now();
            let due = match self.limit.get() {
                None => Some(now),
                Some(rate) => Duration::try_from_secs_f64(bytes as f64 / rate as f64)
                    .ok()
                    .and_then(|pause| from.checked_add(pause)),
            };
            let pause = match due {
                Some(due) if due <= now => {
                    *paid = due;
                    return Ok(());
                }
                Some(due) => PAUSE_MAX.min(due - now),
                // Nothing may pass.
                None => PAUSE_MAX,
            };
            check()?;
            std::thread::sleep(pause);
        }
    }
}

/// Removes a file, if there is one.
pub(crate) fn remove_if_there(disk: &dyn Disk, path: &str) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An open file of a [`Disk`].
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `buffer` from `offset` and returns how much there was: less than asked for means that the file ends there.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the file at least `bytes` long, with zeros, and reserves the space where the file system can.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Makes what was written durable, with the length (fdatasync). An error is final.
    fn sync(&self) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// The open file itself, for what is not offered here.
    ///
    /// # Errors
    /// `Unsupported` if it is none of the kernel's.
    fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A real directory.
#[derive(Debug)]
pub struct DirDisk {
    root: Arc<OwnedFd>,
    watch: Arc<LogWatch>,
    counts: Arc<ReadCounts>,
    pace: OnceLock<Throttle>,
}

impl DirDisk {
    /// Opens the directory `path` for reading; a database may be running in it.
    ///
    /// # Errors
    /// [`Kind::Source`] if it is missing or no directory.
    pub fn open(path: &Path) -> Result<DirDisk> {
        let flags = beneath::DIR_FLAGS | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
            Error::new(Kind::Source, "the page store's directory cannot be opened")
                .object(path.display().to_string())
                .hint("check the path and its permissions")
                .cause(io::Error::from(error))
        })?;
        Ok(DirDisk::beneath(root))
    }

    /// The directory that is open as `root`.
    pub(crate) fn beneath(root: OwnedFd) -> DirDisk {
        DirDisk {
            root: Arc::new(root),
            watch: Arc::default(),
            counts: Arc::default(),
            pace: OnceLock::new(),
        }
    }

    /// Has whoever goes through a log of this disk from now on keep to the rate of `limit`, and files that are opened from now
    /// on read [`GENTLE_REQUEST_BYTES`] at a time if `gentle`. Only the first call counts.
    pub fn pace(&self, limit: &Arc<RateBudget>, gentle: bool) {
        let _ = self.pace.set(Throttle {
            limit: Arc::clone(limit),
            gentle,
            paid: Mutex::new(Instant::now()),
        });
    }

    /// The same directory, with the same watch and counts, for what somebody waits for: it is not paced.
    pub fn unpaced(&self) -> DirDisk {
        DirDisk {
            root: Arc::clone(&self.root),
            watch: Arc::clone(&self.watch),
            counts: Arc::clone(&self.counts),
            pace: OnceLock::new(),
        }
    }

    /// Longest read of a file at once.
    fn request_bytes_max(&self) -> usize {
        match self.pace.get() {
            Some(Throttle { gentle: true, .. }) => GENTLE_REQUEST_BYTES,
            _ => usize::MAX,
        }
    }

    /// How far those are that go through its log.
    pub fn watch(&self) -> &LogWatch {
        &self.watch
    }

    /// What was read so far from files that were opened as a [`Disk`]'s: by whoever asked, and also what nobody asked for yet.
    pub fn bytes_read(&self) -> BytesRead {
        BytesRead {
            log: self.counts.log.load(Relaxed),
            other: self.counts.other.load(Relaxed),
        }
    }

    /// The directory.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory `path` for the one process that writes to it, and keeps others out while it lives.
    ///
    /// # Errors
    /// As for [`open`](Self::open); [`Kind::Conflict`] if another process holds it.
    pub fn open_locked(path: &Path) -> Result<DirDisk> {
        let disk = DirDisk::open(path)?;
        rustix::fs::flock(&disk.root, FlockOperation::NonBlockingLockExclusive).map_err(
            |error| match error {
                Errno::WOULDBLOCK => {
                    Error::new(Kind::Conflict, "another process has the page store open")
                        .object(path.display().to_string())
                        .hint("stop the database that runs in it")
                }
                _ => source_error("the page store cannot be locked", b"", error),
            },
        )?;
        Ok(disk)
    }
}

impl DirDisk {
    /// The descriptor of a file or directory beneath it, for what a [`DiskFile`] does not offer.
    pub(crate) fn descriptor(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(beneath::open(self.root.as_fd(), path.as_bytes(), flags)?)
    }

    /// Opens a regular file, and nothing else: whoever may write to the directory could hold up everybody with a pipe in its
    /// place, which blocks an open for ever.
    fn regular(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let fd = self.descriptor(path, flags | OFlags::NONBLOCK)?;
        if beneath::file_type(&rustix::fs::fstat(&fd)?) != FileType::RegularFile {
            return Err(io::Error::other("it is not a regular file"));
        }
        beneath::make_blocking(&fd)?;
        Ok(fd)
    }
}

impl Disk for DirDisk {
    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let flags = match access {
            Access::Read | Access::ReadDirect => OFlags::RDONLY,
            Access::Write | Access::WriteDirect => OFlags::RDWR,
            Access::Create => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        let open = |flags| self.regular(path, flags);
        let (fd, direct) = match access {
            // Some file systems (tmpfs of older kernels) refuse the flag: then through the page cache.
            Access::ReadDirect | Access::WriteDirect => match open(flags | OFlags::DIRECT) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => (open(flags)?, false),
                opened => (opened?, true),
            },
            Access::Read | Access::Write | Access::Create => (open(flags)?, false),
        };
        Ok(Box::new(RealFile {
            file: File::from(fd),
            direct: AtomicBool::new(direct),
            request_bytes_max: self.request_bytes_max(),
            counts: Arc::clone(&self.counts),
            is_log: Path::new(path).starts_with(LOG_DIR),
        }))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let dir = beneath::open(self.root.as_fd(), path.as_bytes(), beneath::DIR_FLAGS)?;
        let mut names = Vec::new();
        beneath::list(dir, |name| {
            // What is no text is no name of ours.
            names.extend(name.to_str().ok().map(str::to_owned));
            Ok::<(), Errno>(())
        })?;
        Ok(names)
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        let place = beneath::place(self.root.as_fd(), path.as_bytes())?;
        match rustix::fs::mkdirat(&place.parent, place.name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let from = beneath::place(self.root.as_fd(), from.as_bytes())?;
        let to = beneath::place(self.root.as_fd(), to.as_bytes())?;
        Ok(rustix::fs::renameat(
            &from.parent,
            from.name,
            &to.parent,
            to.name,
        )?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let place = beneath::place(self.root.as_fd(), path.as_bytes())?;
        Ok(rustix::fs::unlinkat(
            &place.parent,
            place.name,
            AtFlags::empty(),
        )?)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let dir = beneath::open(self.root.as_fd(), path.as_bytes(), beneath::DIR_FLAGS)?;
        Ok(rustix::fs::fsync(dir)?)
    }

    fn advance(&self, bytes: u64) -> Result<()> {
        self.watch.advance(bytes)?;
        match self.pace.get() {
            Some(pace) => pace.wait(bytes, || self.watch.check()),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    direct: AtomicBool,
    /// Longest read at once.
    request_bytes_max: usize,
    counts: Arc<ReadCounts>,
    is_log: bool,
}

impl RealFile {
    fn count(&self, bytes: usize) {
        let count = match self.is_log {
            true => &self.counts.log,
            false => &self.counts.other,
        };
        count.fetch_add(bytes as u64, Relaxed);
    }

    /// Some file systems take the flag for direct I/O and refuse the requests. All of ours are aligned, so EINVAL says so:
    /// then the file goes through the page cache from now on.
    ///
    /// # Errors
    /// `error`, if it is another one, or the request that it is about did not go past the page cache.
    fn refused(&self, error: io::Error, was_direct: bool) -> io::Result<()> {
        if error.kind() != io::ErrorKind::InvalidInput || !was_direct {
            return Err(error);
        }
        // Others, too, may have found it out by now.
        self.direct.store(false, Relaxed);
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        Ok(rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?)
    }

    /// A direct read of what is not whole blocks, or into memory that is not aligned.
    fn read_copied(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut piece = AlignedBytes::new(buffer.len().min(COPIED_BYTES) + 2 * BLOCK_BYTES);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let skipped = (at % BLOCK_BYTES as u64) as usize;
            let wanted = (buffer.len() - done).min(COPIED_BYTES);
            let whole = (skipped + wanted).next_multiple_of(BLOCK_BYTES);
            let read = self.read_at(&mut piece[..whole], at - skipped as u64)?;
            let fresh = read.saturating_sub(skipped).min(wanted);
            buffer[done..done + fresh].copy_from_slice(&piece[skipped..skipped + fresh]);
            done += fresh;
            if fresh < wanted {
                break;
            }
        }
        Ok(done)
    }
}

fn is_aligned(buffer: &[u8], offset: u64) -> bool {
    buffer.as_ptr().align_offset(BLOCK_BYTES) == 0
        && buffer.len().is_multiple_of(BLOCK_BYTES)
        && offset.is_multiple_of(BLOCK_BYTES as u64)
}

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.direct.load(Relaxed) && !is_aligned(buffer, offset) {
            return self.read_copied(buffer, offset);
        }
        let mut done = 0;
        while done < buffer.len() {
            let end = buffer
                .len()
                .min(done.saturating_add(self.request_bytes_max));
            let was_direct = self.direct.load(Relaxed);
            match self
                .file
                .read_at(&mut buffer[done..end], offset + done as u64)
            {
                Ok(0) => break,
                Ok(bytes) => {
                    self.count(bytes);
                    done += bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.refused(error, was_direct)?,
            }
            // Direct reads end inside a block only at the end of the file.
            if self.direct.load(Relaxed) && !done.is_multiple_of(BLOCK_BYTES) {
                break;
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let was_direct = self.direct.load(Relaxed);
        match self.file.write_all_at(bytes, offset) {
            Err(error) => {
                self.refused(error, was_direct)?;
                self.file.write_all_at(bytes, offset)
            }
            Ok(()) => Ok(()),
        }
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if self.len()? >= bytes {
            return Ok(());
        }
        let allocate = || rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes);
        match rustix::io::retry_on_intr(allocate) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => self.file.set_len(bytes),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.file.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte_at(at: usize) -> u8 {
        (at / 5 % 253) as u8
    }

    /// A file of `len` bytes in a directory on a real disk: not every kernel's tmpfs takes direct reads.
    fn file_of(len: usize) -> (tempfile::TempDir, DirDisk) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let bytes: Vec<u8> = (0..len).map(byte_at).collect();
        std::fs::write(dir.path().join("file"), bytes).unwrap();
        let disk = DirDisk::open(dir.path()).unwrap();
        (dir, disk)
    }

    #[test]
    fn direct_reads_of_any_place_and_length_give_what_the_file_has() {
        let len = 2 * COPIED_BYTES + 5000;
        let (_dir, disk) = file_of(len);
        let file = disk.open("file", Access::ReadDirect).unwrap();
        let block = BLOCK_BYTES;
        let places = [
            0,
            1,
            block - 1,
            block,
            COPIED_BYTES + 3,
            len - 5000,
            len - 1,
        ];
        let lengths = [0, 1, block, block + 1, COPIED_BYTES, COPIED_BYTES + block];
        for (at, wanted) in places.iter().flat_map(|at| lengths.map(|len| (*at, len))) {
            // Both memory that is aligned and memory that is not.
            let mut memory = AlignedBytes::new(wanted + 1);
            for first in [0, 1] {
                let buffer = &mut memory[first..first + wanted];
                let read = file.read_at(buffer, at as u64).unwrap();
                assert_eq!(read, wanted.min(len - at), "{wanted} bytes at {at}");
                let right = (at..).zip(&buffer[..read]);
                assert!(right.into_iter().all(|(at, byte)| *byte == byte_at(at)));
            }
        }
        for behind in [len, len + 1, len.next_multiple_of(block), 2 * len] {
            assert_eq!(file.read_at(&mut [0; 10], behind as u64).unwrap(), 0);
        }
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened_and_nobody_waits_for_a_pipe() {
        let (dir, disk) = file_of(BLOCK_BYTES);
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        disk.make_dir("dir").unwrap();
        // Held at both ends, it would let itself be opened.
        let held = File::options().read(true).write(true).open(&pipe).unwrap();
        for (path, access) in ["pipe", "dir"].into_iter().flat_map(|path| {
            let all = [Access::Read, Access::ReadDirect, Access::Write];
            all.map(|access| (path, access))
        }) {
            let error = disk.open(path, access).unwrap_err();
            let is_told = error.to_string() == "it is not a regular file";
            let is_dir = error.kind() == io::ErrorKind::IsADirectory;
            assert!(is_told || is_dir, "{path}, {access:?}: {error}");
        }
        drop(held);
        disk.open("pipe", Access::Read).unwrap_err();
        // What was opened waits for its bytes.
        let fd = disk.regular("file", OFlags::RDONLY).unwrap();
        let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn whatever_is_read_is_counted_the_log_on_its_own() {
        let (dir, disk) = file_of(3 * BLOCK_BYTES);
        disk.make_dir(LOG_DIR).unwrap();
        let (segment, beside) = (format!("{LOG_DIR}/1"), format!("{LOG_DIR}s"));
        for name in [&segment, &beside] {
            std::fs::copy(dir.path().join("file"), dir.path().join(name)).unwrap();
        }
        let read = |disk: &DirDisk, path: &str, bytes, offset| {
            let file = disk.open(path, Access::Read).unwrap();
            file.read_at(&mut vec![0; bytes], offset).unwrap();
        };
        read(&disk, &segment, 100, 7);
        // No more than there is.
        read(&disk.unpaced(), &segment, 9 * BLOCK_BYTES, 0);
        read(&disk, &beside, 50, 0);
        let log = 100 + 3 * BLOCK_BYTES as u64;
        assert_eq!(disk.bytes_read(), BytesRead { log, other: 50 });
        // What is read for a piece of a block is the block.
        let (_dir, disk) = file_of(3 * BLOCK_BYTES);
        let file = disk.open("file", Access::ReadDirect).unwrap();
        file.read_at(&mut [0; 10], BLOCK_BYTES as u64 - 5).unwrap();
        let other = 2 * BLOCK_BYTES as u64;
        assert_eq!(disk.bytes_read(), BytesRead { log: 0, other });
    }

    #[test]
    fn direct_reads_see_what_stands_in_the_page_cache_alone() {
        let (dir, disk) = file_of(3 * BLOCK_BYTES);
        // Not synced: it is in the page cache alone.
        let written = File::options().write(true).open(dir.path().join("file"));
        written.unwrap().write_all_at(b"new", 5000).unwrap();
        let file = disk.open("file", Access::ReadDirect).unwrap();
        let mut read = [0; 3];
        assert_eq!(file.read_at(&mut read, 5000).unwrap(), 3);
        assert_eq!(&read, b"new");
    }

    #[test]
    fn a_paced_log_is_gone_through_at_the_limit_and_can_be_ended() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DirDisk::open(dir.path()).unwrap();
        let begun = Instant::now();
        disk.advance(1 << 40).unwrap();
        let limit = RateBudget::new(Some(10 << 20));
        disk.pace(&limit, false);
        disk.unpaced().advance(1 << 40).unwrap();
        // Nothing is saved up from before, but for the burst.
        for _ in 0..5 {
            disk.advance(1 << 20).unwrap();
        }
        assert!(begun.elapsed() + BURST >= Duration::from_millis(500));
        limit.set(None);
        disk.advance(1 << 40).unwrap();
        // One that may not pass at all is ended all the same.
        limit.set(Some(0));
        let ended = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| disk.advance(1));
            std::thread::sleep(PAUSE_MAX);
            disk.unpaced().watch().stop();
            waiting.join().unwrap()
        });
        assert_eq!(ended.unwrap_err().kind(), Kind::Cancelled);
    }

    #[test]
    fn gentle_reads_give_what_the_file_has() {
        let len = 3 * GENTLE_REQUEST_BYTES + 5000;
        let (_dir, disk) = file_of(len);
        disk.pace(&RateBudget::new(None), true);
        for access in [Access::Read, Access::ReadDirect] {
            let file = disk.open("file", access).unwrap();
            let mut buffer = AlignedBytes::new(len.next_multiple_of(BLOCK_BYTES));
            assert_eq!(file.read_at(&mut buffer, 0).unwrap(), len);
            assert!((0..len).all(|at| buffer[at] == byte_at(at)));
        }
    }

    #[test]
    fn a_file_whose_direct_requests_are_refused_goes_through_the_page_cache() {
        let (dir, _) = file_of(3 * BLOCK_BYTES);
        let file = RealFile {
            file: File::options()
                .read(true)
                .write(true)
                .open(dir.path().join("file"))
                .unwrap(),
            direct: AtomicBool::new(true),
            request_bytes_max: usize::MAX,
            counts: Arc::default(),
            is_log: false,
        };
        let refusal = || io::ErrorKind::InvalidInput.into();
        file.refused(refusal(), true).unwrap();
        file.refused(refusal(), true).unwrap();
        assert!(!file.direct.load(Relaxed));
        file.write_at(b"odd", 4097).unwrap();
        let mut read = [0; 3];
        assert_eq!(file.read_at(&mut read, 4097).unwrap(), 3);
        assert_eq!(&read, b"odd");
        // What is wrong with it now is wrong without the flag, too.
        let error = file.refused(refusal(), false);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
