//! Writing one object: a temporary file, direct writes, then a name.
//!
//! Invariants:
//! - Nothing stands under the key before [`LocalUpload::commit`] renames the finished, synced file to it,
//!   and the rename never replaces anything. Where the file system has no such rename, a hard link gives the name.
//! - Of two writers one is told that it created the object; a name that our own file has got is never told as
//!   another's.
//! - A failed write or sync is final for the file: it is never tried again, and the file is discarded.
//! - At most [`WRITES_IN_FLIGHT_MAX`] buffers of the arena belong to one upload.
//! - However an upload ends, short of the process being killed, its temporary file is gone afterwards.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use mover_base::{BLOCK_BYTES, Error, Kind, Result, hex};
use mover_io::{Access, BUF_BYTES, Buf, File, Shard, random_bytes};
use rustix::fs::{AtFlags, FileType, OFlags, RenameFlags};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use super::errno::{explain, unnameable};
use super::root::{FILE_MODE, Root, resolve};
use super::{LocalStore, TEMPORARY_SUFFIX};
use crate::Put;
use crate::key::{Key, TEMPORARY_PART};

/// Writes of one upload that may be in flight. Four of 1 MiB keep an NVMe device busy while several
/// shards upload, and leave most of a 32 MiB arena to the reader.
const WRITES_IN_FLIGHT_MAX: usize = 4;
/// Step of preallocation: just above a pack, so that a pack is allocated at once and its direct writes
/// extend nothing (extending writes serialize on the inode and run at a fraction of the speed).
const ALLOCATION_STEP_BYTES: u64 = 16 << 20;
/// Tries of a fresh random name. One collision of 128 random bits is already a broken generator.
const NAME_TRIES_MAX: usize = 3;

/// An object being written.
pub struct LocalUpload {
    store: LocalStore,
    shard: Shard,
    key: Key,
    file: File,
    temporary: TemporaryFile,
    bytes: u64,
    /// Bytes of the file that are allocated; `u64::MAX` once allocation ahead was given up.
    allocated_bytes: u64,
    /// Length of the whole object where the caller knows it.
    expected_bytes: Option<u64>,
    in_flight: VecDeque<JoinHandle<io::Result<()>>>,
}

impl LocalUpload {
    pub(super) async fn begin(
        store: &LocalStore,
        shard: &Shard,
        key: &Key,
        expected_bytes: Option<u64>,
    ) -> Result<LocalUpload> {
        let (temporary, fd) = TemporaryFile::create(store.root())?;
        let file = shard
            .file(fd, Access::Direct)
            .map_err(|error| explain(error, "write an object", key.as_str()))?;
        Ok(LocalUpload {
            store: store.clone(),
            shard: shard.clone(),
            key: key.clone(),
            file,
            temporary,
            bytes: 0,
            allocated_bytes: 0,
            expected_bytes,
            in_flight: VecDeque::with_capacity(WRITES_IN_FLIGHT_MAX),
        })
    }

    pub(crate) async fn push(&mut self, buf: Buf, len: usize) -> Result<()> {
        while self.in_flight.len() >= WRITES_IN_FLIGHT_MAX
            || self.in_flight.front().is_some_and(JoinHandle::is_finished)
        {
            self.reap().await?;
        }
        self.allocate(len).await;
        // A task of its own, so that the buffer goes back to the arena when the write is done, not when this
        // upload is next looked at: many uploads that each wait for a buffer would wait for each other.
        let write = self.file.write_at(buf, self.bytes, len);
        let write = self.shard.spawn(async move { write.await.0 });
        self.in_flight.push_back(write);
        self.bytes += len as u64;
        Ok(())
    }

    /// The same for at most a buffer's bytes that lie elsewhere.
    pub(crate) async fn push_copy(&mut self, bytes: &[u8]) -> Result<()> {
        let mut buf = self.shard.buffer().await;
        buf[..bytes.len()].copy_from_slice(bytes);
        self.push(buf, bytes.len()).await
    }

    /// Waits until all that was pushed is written and durable.
    pub(super) async fn sync(&mut self) -> Result<()> {
        while !self.in_flight.is_empty() {
            self.reap().await?;
        }
        let told = |error| explain(error, "write an object", self.key.as_str());
        self.file.set_len(self.bytes).map_err(told)?;
        self.file.sync_all().await.map_err(told)
    }

    pub(crate) async fn commit(mut self) -> Result<Put> {
        self.sync().await?;
        let put = self.publish()?;
        // Also where the object existed: another writer may have named it a moment ago and not have made
        // the name durable yet, and our caller is about to rely on it.
        self.store
            .durability()
            .settle(self.store.root(), &self.shard, self.key.parent())
            .await?;
        Ok(put)
    }

    /// Tries whether the finished file can be given a name, by giving it another one of its kind.
    pub(super) fn try_name(&mut self) -> Result<()> {
        let name = random_name()?;
        let directory = Rc::clone(&self.temporary.directory);
        self.temporary
            .rename(self.file.as_fd(), &directory, &name)
            .map_err(|unnamed| self.told(unnamed))?;
        self.temporary.name = Some(name);
        Ok(())
    }

    pub(crate) async fn abort(mut self) -> Result<()> {
        while let Some(write) = self.in_flight.pop_front() {
            // Nothing depends on what was written any more, so neither does anything on its errors.
            let _ = write.await;
        }
        self.temporary
            .remove()
            .map_err(|errno| explain(errno, "remove a temporary file", &self.temporary.path()))
    }

    /// Waits for the oldest write.
    async fn reap(&mut self) -> Result<()> {
        let Some(write) = self.in_flight.pop_front() else {
            return Ok(());
        };
        match write.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(explain(error, "write an object", self.key.as_str())),
            Err(join) => Err(Error::new(Kind::Internal, "a write did not finish")
                .object(self.key.as_str())
                .cause(join)),
        }
    }

    /// Allocates ahead of a piece of `len` bytes. Only a matter of speed: where it fails, for instance because
    /// the step does not fit although the object would, the writes themselves decide.
    async fn allocate(&mut self, len: usize) {
        let end = self.bytes + len as u64;
        // A single piece gains nothing: allocating it costs as much as extending the file by it.
        let single = self.bytes == 0
            && (len < BUF_BYTES || self.expected_bytes.is_some_and(|all| all <= end));
        if single || end <= self.allocated_bytes {
            return;
        }
        let rest = self
            .expected_bytes
            .map_or(ALLOCATION_STEP_BYTES, |all| all.saturating_sub(self.bytes));
        let rest = if len < BUF_BYTES {
            len as u64
        } else {
            rest.max(len as u64)
        };
        let step = rest
            .min(ALLOCATION_STEP_BYTES)
            .next_multiple_of(BLOCK_BYTES as u64);
        self.allocated_bytes = match self.file.allocate(self.bytes, step).await {
            Ok(()) => self.bytes + step,
            Err(error) => {
                tracing::debug!(key = %self.key, %error, "no allocation ahead for this object");
                u64::MAX
            }
        };
    }

    /// Gives the finished file its name.
    fn publish(&mut self) -> Result<Put> {
        let directory = self.store.root().make_directory(self.key.parent())?;
        let named = self
            .temporary
            .rename(self.file.as_fd(), &directory, self.key.name());
        match named {
            Ok(()) => Ok(Put::Created),
            Err(Unnamed::Failed(Errno::EXIST)) => self.existing(&directory),
            Err(unnamed) => Err(self.told(unnamed)),
        }
    }

    fn told(&self, unnamed: Unnamed) -> Error {
        match unnamed {
            Unnamed::Unable(errno) => {
                let path = self.store.directory().display().to_string();
                unnameable(errno, is_anothers(self.file.as_fd()), &path)
            }
            Unnamed::Failed(Errno::NOENT) => Error::new(
                Kind::Storage,
                "a temporary file vanished while it was written",
            )
            .object(self.temporary.path())
            .hint("do not clean up the repository's tmp directory while a job writes to it"),
            Unnamed::Failed(errno) => explain(errno, "name an object", self.key.as_str()),
        }
    }

    /// The name is taken: by an object, or by something that is none.
    fn existing(&mut self, directory: &OwnedFd) -> Result<Put> {
        let told = |errno| explain(errno, "examine an object", self.key.as_str());
        let stat = rustix::fs::statat(directory, self.key.name(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(told)?;
        check_existing(FileType::from_raw_mode(stat.st_mode), &self.key)?;
        self.temporary
            .remove()
            .map_err(|errno| explain(errno, "remove a temporary file", &self.temporary.path()))?;
        Ok(Put::Exists)
    }
}

/// Whether what stands under the name of `key` is an object.
pub(super) fn check_existing(kind: FileType, key: &Key) -> Result<()> {
    match kind {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Error::new(
            Kind::Conflict,
            "a directory has the name of an object",
        )
        .object(key.as_str())),
        kind => Err(super::root::unexpected(kind, key.as_str())),
    }
}

/// Why a finished file has not got a name.
#[derive(Debug, PartialEq, Eq)]
enum Unnamed {
    /// The file system has no way to give one that replaces nothing.
    Unable(Errno),
    /// Anything else; EXIST where another file has the name.
    Failed(Errno),
}

/// A file in the temporary directory; dropped, it is unlinked.
struct TemporaryFile {
    directory: Rc<OwnedFd>,
    name: Option<String>,
}

impl TemporaryFile {
    fn create(root: &Root) -> Result<(TemporaryFile, OwnedFd)> {
        let told = |errno| explain(errno, "create a temporary file", TEMPORARY_PART);
        let directory = Rc::new(root.make_directory(TEMPORARY_PART)?);
        for _ in 0..NAME_TRIES_MAX {
            let name = random_name()?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            match resolve(directory.as_fd(), &name, flags, FILE_MODE) {
                Ok(fd) => {
                    return Ok((
                        TemporaryFile {
                            directory,
                            name: Some(name),
                        },
                        fd,
                    ));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(told(errno)),
            }
        }
        Err(told(Errno::EXIST))
    }

    fn path(&self) -> String {
        format!(
            "{TEMPORARY_PART}/{}",
            self.name.as_deref().unwrap_or_default()
        )
    }

    /// What it is called among the temporary files.
    fn own_name(&self) -> Result<&str, Unnamed> {
        let name = self.name.as_deref();
        name.ok_or(Unnamed::Failed(Errno::NOENT))
    }

    /// Renames the file, which is open as `file`, to `name` in `directory` unless that exists.
    fn rename(
        &mut self,
        file: BorrowedFd<'_>,
        directory: &OwnedFd,
        name: &str,
    ) -> Result<(), Unnamed> {
        let own = self.own_name()?;
        match rustix::fs::renameat_with(
            &*self.directory,
            own,
            directory,
            name,
            RenameFlags::NOREPLACE,
        ) {
            Ok(()) => {
                self.name = None;
                Ok(())
            }
            // The file system lacks NOREPLACE (NFS, some of FUSE).
            Err(Errno::INVAL | Errno::NOSYS) => self.link(file, directory, name),
            Err(errno) => Err(Unnamed::Failed(errno)),
        }
    }

    /// The same by a hard link, which refuses an existing name just as well. The temporary name goes afterwards,
    /// and if it cannot, it is a leftover and no error.
    fn link(
        &mut self,
        file: BorrowedFd<'_>,
        directory: &OwnedFd,
        name: &str,
    ) -> Result<(), Unnamed> {
        let own = self.own_name()?;
        match rustix::fs::linkat(&*self.directory, own, directory, name, AtFlags::empty()) {
            Ok(()) => {}
            // An NFS server that restarts between the link and its answer is asked again, and says that the name
            // exists. It does: it is ours, see O_EXCL in open(2).
            Err(Errno::EXIST) if has_name(file, directory, name).map_err(Unnamed::Failed)? => {}
            Err(errno @ (Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK)) => {
                return Err(Unnamed::Unable(errno));
            }
            Err(errno) => return Err(Unnamed::Failed(errno)),
        }
        let _ = self.remove();
        Ok(())
    }

    fn remove(&mut self) -> Result<(), Errno> {
        match self.name.take() {
            Some(name) => rustix::fs::unlinkat(&*self.directory, name, AtFlags::empty()),
            None => Ok(()),
        }
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let path = self.path();
        if let Err(errno) = self.remove() {
            tracing::warn!(path, %errno, "a temporary file is left over");
        }
    }
}

/// Whether `name` in `directory` is a name of the open file `file`.
fn has_name(file: BorrowedFd<'_>, directory: &OwnedFd, name: &str) -> Result<bool, Errno> {
    let own = rustix::fs::fstat(file)?;
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok((stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether the file system says that the open file is another user's, as some make all files one user's.
fn is_anothers(file: BorrowedFd<'_>) -> bool {
    let own = rustix::process::geteuid().as_raw();
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_uid != own)
}

fn random_name() -> Result<String> {
    let random = hex::encode(&random_bytes::<16>()?);
    Ok(format!("{random}{TEMPORARY_SUFFIX}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{fchown, symlink};

    use tempfile::TempDir;

    use super::*;

    /// A root with a finished file among the temporary ones: the root, its descriptor, the file and its descriptor.
    fn finished() -> (TempDir, OwnedFd, TemporaryFile, OwnedFd) {
        let kept = TempDir::new().unwrap();
        let root = Root::new(kept.path().to_owned());
        let (temporary, file) = TemporaryFile::create(&root).unwrap();
        let directory = root.open_directory("").unwrap().unwrap();
        (kept, directory, temporary, file)
    }

    #[test]
    fn a_link_whose_answer_was_lost_is_our_own() {
        let (kept, directory, mut temporary, file) = finished();
        let path = kept.path().join(temporary.path());
        // What the server did before it was asked again.
        fs::hard_link(&path, kept.path().join("object")).unwrap();
        let linked = temporary.link(file.as_fd(), &directory, "object");
        assert_eq!(linked, Ok(()));
        assert!(!path.exists());
        assert_eq!(has_name(file.as_fd(), &directory, "object"), Ok(true));
    }

    #[test]
    fn the_name_of_another_file_is_taken_and_stays_with_it() {
        let (kept, directory, mut temporary, file) = finished();
        let path = kept.path().join(temporary.path());
        fs::write(kept.path().join("theirs"), b"").unwrap();
        fs::create_dir(kept.path().join("directory")).unwrap();
        // It leads to our file, and is none of its names.
        symlink(&path, kept.path().join("symlink")).unwrap();
        for name in ["theirs", "directory", "symlink"] {
            let linked = temporary.link(file.as_fd(), &directory, name);
            assert_eq!(linked, Err(Unnamed::Failed(Errno::EXIST)), "{name}");
            assert_eq!(has_name(file.as_fd(), &directory, name), Ok(false));
        }
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_became_another_users_is_told_from_ours() {
        let is_root = rustix::process::geteuid().is_root();
        assert!(is_root, "this test gives a file away: run it as root");
        let (_kept, _directory, _temporary, file) = finished();
        assert!(!is_anothers(file.as_fd()));
        fchown(&file, Some(65_534), None).unwrap();
        assert!(is_anothers(file.as_fd()));
    }

    #[test]
    fn a_name_that_vanished_meanwhile_is_not_ours() {
        let (_kept, directory, _temporary, file) = finished();
        assert_eq!(has_name(file.as_fd(), &directory, "gone"), Ok(false));
    }
}
