//! Files of a shard: positioned reads and writes with arena buffers, through the driver.
//!
//! Invariants: direct requests are aligned to [`BLOCK_BYTES`], whatever finer alignment a disk allows; a file
//! whose file system refuses direct I/O is read and written through the page cache, with the same results;
//! every retry is bounded, and a failed fsync is never retried, because the kernel forgets the lost pages.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use crate::arena::Buf;
use crate::driver::{Action, Driver, Op, OpenFile, Request};
use crate::report::add;

/// Alignment and unit of direct I/O.
pub const BLOCK_BYTES: usize = 4096;

/// How often an interrupted or refused request is made again before its error counts.
const RETRIES_MAX: u32 = 16;

/// How a file is read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Past the page cache where the file system can.
    Direct,
    /// Through the page cache.
    Buffered,
}

/// A file of a shard. Clones share the descriptor, which is closed after the last request on it.
#[derive(Clone)]
pub struct File {
    driver: Rc<Driver>,
    open: Rc<OpenFile>,
}

impl File {
    pub(crate) fn new(driver: Rc<Driver>, fd: OwnedFd, direct: bool) -> io::Result<Self> {
        let direct = direct && enable_direct(&fd)?;
        if !direct {
            // A descriptor may arrive with O_DIRECT set by its opener.
            set_direct_flag(&fd, false)?;
        }
        let stats = &driver.stats;
        add(
            if direct {
                &stats.direct_files
            } else {
                &stats.buffered_files
            },
            1,
        );
        Ok(File::open(driver, fd, direct))
    }

    /// A directory, which is only synced: neither direct nor buffered, so it is not counted as either.
    pub(crate) fn directory(driver: Rc<Driver>, fd: OwnedFd) -> Self {
        File::open(driver, fd, false)
    }

    fn open(driver: Rc<Driver>, fd: OwnedFd, direct: bool) -> Self {
        File {
            driver,
            open: Rc::new(OpenFile {
                fd,
                direct: direct.into(),
            }),
        }
    }

    /// Reads up to `len` bytes at `offset` into `buf`, until `len` or the end of the file.
    ///
    /// Returns the number of bytes read; less than `len` means that the file ends there. The request is queued
    /// when this is called, if there is room, and not only when the future is first polled, so a caller can start
    /// several and then wait. Direct files need `offset` and `len` in whole blocks. Dropping the future is safe;
    /// the buffer goes back to its arena when the kernel is done with it.
    pub fn read_at(
        &self,
        buf: Buf,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = (io::Result<usize>, Buf)> + use<> {
        let file = self.clone();
        let first = match file.check_read(&buf, offset, len) {
            Ok(()) => Ok(file.attempt(file.read_action(0, len, offset), buf)),
            Err(error) => Err((error, buf)),
        };
        async move {
            match first {
                Ok(first) => file.finish_read(first, offset, len).await,
                Err((error, buf)) => (Err(error), buf),
            }
        }
    }

    /// Writes `buf[..len]` at `offset`, all of it.
    ///
    /// Queued when called, like [`File::read_at`]. Direct files need `offset` in whole blocks; `len` is rounded up
    /// to a whole block, with zeros in the buffer, and the caller cuts the file to its length afterwards.
    pub fn write_at(
        &self,
        mut buf: Buf,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = (io::Result<()>, Buf)> + use<> {
        let file = self.clone();
        let first = match file.check_write(&buf, offset, len) {
            Ok(whole) => {
                buf[len..whole].fill(0);
                let action = file.write_action(0, whole, offset);
                Ok((file.attempt(action, buf), whole))
            }
            Err(error) => Err((error, buf)),
        };
        async move {
            match first {
                Ok((first, whole)) => file.finish_write(first, offset, whole).await,
                Err((error, buf)) => (Err(error), buf),
            }
        }
    }

    /// Makes written data durable, and the metadata that is needed to read it (fdatasync). An error is final:
    /// what was written since the last success must be written anew, to another file.
    pub async fn sync_data(&self) -> io::Result<()> {
        self.sync(Action::SyncData).await
    }

    /// Makes written data and all metadata durable (fsync). An error is final, as for [`File::sync_data`].
    pub async fn sync_all(&self) -> io::Result<()> {
        self.sync(Action::SyncAll).await
    }

    /// Reserves space and extends the file over `offset..offset + len`. File systems that cannot are ignored:
    /// writes then allocate as they go.
    pub async fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let mut retries = Retries::default();
        loop {
            let (result, _) = self.op(Action::Allocate { offset, len }, None).await;
            match outcome(result) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
                Err(error) => retries.allow(error).await?,
            }
        }
    }

    /// Cuts or extends the file to `len` bytes.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.open.fd, len)?)
    }

    /// The file's length in bytes.
    #[allow(clippy::len_without_is_empty)] // It asks the kernel and may fail: not a container's length.
    pub fn len(&self) -> io::Result<u64> {
        let size = rustix::fs::fstat(&self.open.fd)?.st_size;
        u64::try_from(size).map_err(io::Error::other)
    }

    /// Whether the file is read and written past the page cache.
    pub fn is_direct(&self) -> bool {
        self.open.direct.get()
    }

    /// The descriptor, for metadata calls.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.open.fd.as_fd()
    }

    fn op(&self, action: Action, buf: Option<Buf>) -> Op {
        self.driver.op(Request {
            action,
            file: Rc::clone(&self.open),
            buf,
        })
    }

    fn check_read(&self, buf: &Buf, offset: u64, len: usize) -> io::Result<()> {
        check_range(buf, offset, len)?;
        let block = BLOCK_BYTES as u64;
        if self.is_direct() && (!offset.is_multiple_of(block) || !len.is_multiple_of(BLOCK_BYTES)) {
            return Err(invalid("a direct read is not in whole blocks"));
        }
        Ok(())
    }

    /// The length to write.
    fn check_write(&self, buf: &Buf, offset: u64, len: usize) -> io::Result<usize> {
        check_range(buf, offset, len)?;
        if !self.is_direct() {
            return Ok(len);
        }
        if !offset.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(invalid("a direct write does not start at a block"));
        }
        // At most what the buffer has, which is in whole blocks.
        Ok(len.next_multiple_of(BLOCK_BYTES))
    }

    /// A read or write, and whether it goes past the page cache.
    fn attempt(&self, action: Action, buf: Buf) -> Attempt {
        Attempt {
            is_direct: self.is_direct(),
            op: self.op(action, Some(buf)),
        }
    }

    async fn finish_read(
        &self,
        mut attempt: Attempt,
        offset: u64,
        len: usize,
    ) -> (io::Result<usize>, Buf) {
        let mut done = 0;
        let mut retries = Retries::default();
        loop {
            let is_direct = attempt.is_direct;
            let (result, request) = attempt.op.await;
            let buf = held_buf(request);
            match outcome(result) {
                Ok(bytes) => {
                    done += bytes;
                    // Direct reads end inside a block only at the end of the file.
                    let torn = is_direct && !bytes.is_multiple_of(BLOCK_BYTES);
                    if done >= len || bytes == 0 || torn {
                        return (Ok(done), buf);
                    }
                    retries = Retries::default();
                }
                Err(error) => {
                    if let Err(error) = self.retry(error, is_direct, &mut retries).await {
                        return (Err(error), buf);
                    }
                }
            }
            attempt = self.attempt(self.read_action(done, len, offset), buf);
        }
    }

    async fn finish_write(
        &self,
        mut attempt: Attempt,
        offset: u64,
        len: usize,
    ) -> (io::Result<()>, Buf) {
        let mut done = 0;
        let mut retries = Retries::default();
        loop {
            let is_direct = attempt.is_direct;
            let (result, request) = attempt.op.await;
            let buf = held_buf(request);
            match outcome(result) {
                Ok(0) if done < len => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(bytes) => {
                    done += bytes;
                    if self.is_direct() {
                        // What follows must start at a block: the torn block is written again.
                        done -= done % BLOCK_BYTES;
                    }
                    if done >= len {
                        return (Ok(()), buf);
                    }
                    if bytes >= BLOCK_BYTES || !self.is_direct() {
                        retries = Retries::default();
                    } else if let Err(error) =
                        retries.allow(io::ErrorKind::Interrupted.into()).await
                    {
                        return (Err(error), buf);
                    }
                }
                Err(error) => {
                    if let Err(error) = self.retry(error, is_direct, &mut retries).await {
                        return (Err(error), buf);
                    }
                }
            }
            attempt = self.attempt(self.write_action(done, len, offset), buf);
        }
    }

    /// The next request of a read of `len` bytes from `offset` on of which `done` are there.
    fn read_action(&self, done: usize, len: usize, offset: u64) -> Action {
        Action::Read {
            at: done,
            len: (len - done).min(self.driver.request_bytes_max()),
            offset: offset + done as u64,
        }
    }

    /// The same for a write.
    fn write_action(&self, done: usize, len: usize, offset: u64) -> Action {
        Action::Write {
            at: done,
            len: (len - done).min(self.driver.request_bytes_max()),
            offset: offset + done as u64,
        }
    }

    async fn sync(&self, action: Action) -> io::Result<()> {
        let (result, _) = self.op(action, None).await;
        outcome(result).map(|_| ())
    }

    /// Decides whether a failed read or write, which went past the page cache or not, may be made again.
    async fn retry(
        &self,
        error: io::Error,
        was_direct: bool,
        retries: &mut Retries,
    ) -> io::Result<()> {
        // Some file systems accept the flag and refuse the requests. All of ours are aligned, so EINVAL says so.
        if error.kind() == io::ErrorKind::InvalidInput && was_direct {
            // Another request that was under way at the same time has found it out already.
            if !self.is_direct() {
                return Ok(());
            }
            set_direct_flag(&self.open.fd, false)?;
            self.open.direct.set(false);
            let stats = &self.driver.stats;
            stats.direct_files.set(stats.direct_files.get() - 1);
            add(&stats.buffered_files, 1);
            return Ok(());
        }
        retries.allow(error).await
    }
}

/// A read or write under way.
struct Attempt {
    op: Op,
    /// Whether the file went past the page cache when it was begun.
    is_direct: bool,
}

/// Counts retries of one request without progress.
#[derive(Default)]
struct Retries(u32);

impl Retries {
    /// Ok if a request that failed so may be made again.
    async fn allow(&mut self, error: io::Error) -> io::Result<()> {
        let passing = matches!(
            error.kind(),
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
        );
        if !passing || self.0 >= RETRIES_MAX {
            return Err(error);
        }
        self.0 += 1;
        tokio::task::yield_now().await;
        Ok(())
    }
}

/// The buffer of a read or write, which always has one.
fn held_buf(request: Request) -> Buf {
    request
        .buf
        .unwrap_or_else(|| unreachable!("reads and writes hold a buffer"))
}

/// The kernel's result as a count or an error.
fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

fn check_range(buf: &Buf, offset: u64, len: usize) -> io::Result<()> {
    if len > buf.len() {
        return Err(invalid("a request is longer than its buffer"));
    }
    match offset.checked_add(len as u64) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(invalid("a request ends beyond the largest file")),
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Switches direct I/O on. Returns false where the file system cannot, or only at a coarser alignment than ours.
fn enable_direct(fd: &OwnedFd) -> io::Result<bool> {
    match rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN) => {
            let fits = |align: u32| (1..=BLOCK_BYTES as u32).contains(&align);
            if !fits(stat.stx_dio_mem_align) || !fits(stat.stx_dio_offset_align) {
                return Ok(false);
            }
        }
        // Older kernels do not say. Then the flag decides, or the first request.
        Ok(_) | Err(_) => {}
    }
    match set_direct_flag(fd, true) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets or clears O_DIRECT.
fn set_direct_flag(fd: &OwnedFd, direct: bool) -> io::Result<()> {
    let old = rustix::fs::fcntl_getfl(fd)?;
    let mut new = old;
    new.set(OFlags::DIRECT, direct);
    if new != old {
        rustix::fs::fcntl_setfl(fd, new)?;
    }
    Ok(())
}
