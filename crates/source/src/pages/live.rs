//! A page store as a backup finds it: `pages:///absolute/path`, a database perhaps writing to it all the while.
//!
//! What is copied are the tables as they stand, page by page, and then the log from the last checkpoint's redo position
//! up to an end that is behind every page that was copied. Redo brings them together, as after a crash.
//!
//! Invariants: nothing here writes, but for making durable what the database wrote to its log. The end that is given out
//! is the end of a group, so that the log cut there is a log that was stopped, whatever of it is sealed.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use mover_base::checksum::{Sha256, sha256};
use mover_base::tree::{Entry, EntryKind};
use mover_base::{Error, Kind, Lsn, Result};
use mover_io::RateBudget;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::{CATALOGUE_FILE, CONTROL_FILE, Catalogue, Control, read_catalogue, read_control};
use crate::disk::{Access, BytesRead, DirDisk, Disk, LogWatch};
use crate::failure::source_error;
use crate::scan::Stamp;
use crate::tracker::{Epochs, LogHold};
use crate::wal::segment::{LOG_BLOCK_BYTES, LOG_DIR};
use crate::wal::{LogIdentity, find_end_beside_writer, segments};
use crate::{RESTORE_MARKER, beneath};

/// The scheme of this source, with the separator.
pub const SCHEME: &str = "pages://";
/// Blocks of the log that a fingerprint is made of. No record is longer than one, and one alone may hold no more of the last
/// record than eight bytes that every log of this layout has there.
pub const MARK_BLOCKS: u64 = 2;
/// How often something is looked at that may be in the middle of a change, and how long each time is waited.
const TRIES: usize = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// A page store that is read while it may be written.
#[derive(Debug)]
pub struct LiveStore {
    url: String,
    path: PathBuf,
    disk: Arc<DirDisk>,
}

/// The last checkpoint of a store: where redo begins, and which tables there are.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The control file's current slot.
    pub control: Control,
    /// The catalogue, as of the redo position or of one behind it.
    pub catalogue: Catalogue,
}

impl LiveStore {
    /// Opens `pages:///absolute/path`; the path stands there literally.
    ///
    /// # Errors
    /// `Usage` for anything else than that form; `Source` if the directory is missing, unreadable, or the unfinished
    /// target of a restore.
    pub fn open(url: &str) -> Result<LiveStore> {
        let path = url.strip_prefix(SCHEME).unwrap_or_default();
        if !path.starts_with('/') || path.contains('\0') {
            return Err(
                Error::new(Kind::Usage, "the path of a page store must be absolute")
                    .object(url)
                    .hint("write three slashes: pages:///var/lib/database"),
            );
        }
        let path = PathBuf::from(path);
        let disk = DirDisk::open(&path)?;
        if disk.open(RESTORE_MARKER, Access::Read).is_ok() {
            return Err(
                Error::new(Kind::Source, "the source is an unfinished restore")
                    .object(path.display().to_string())
                    .hint("run the restore again with --delta, or choose another source"),
            );
        }
        Ok(LiveStore {
            url: url.to_owned(),
            path,
            disk: Arc::new(disk),
        })
    }

    /// The URL that it was opened with.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files.
    pub fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    /// Has reading of the log keep to the rate of `limit`, and to short requests if `gentle`; but for what is read on behalf of
    /// the tracker, which the database may wait for.
    pub fn pace(&self, limit: &Arc<RateBudget>, gentle: bool) {
        self.disk.pace(limit, gentle);
    }

    /// How far whoever goes through the log is: [`end`](Self::end), and others on [`disk`](Self::disk).
    pub fn watch(&self) -> &LogWatch {
        self.disk.watch()
    }

    /// What was read so far, but for the files that [`open_file`](Self::open_file) gave out and what is mapped of the tracker.
    pub fn bytes_read(&self) -> BytesRead {
        self.disk.bytes_read()
    }

    /// The epochs of the block change tracker; `None` if the database runs without one.
    ///
    /// # Errors
    /// `Conflict` if another process holds it; `Source` if it cannot be read.
    pub fn epochs(&self, identity: LogIdentity) -> Result<Option<Epochs>> {
        // The database waits for whoever holds it.
        Epochs::open(Arc::new(self.disk.unpaced()), identity)
    }

    /// Holds the log, if the database runs with a tracker: to be called before [`checkpoint`](Self::checkpoint), so that what is
    /// needed from there on is not removed meanwhile.
    ///
    /// # Errors
    /// `Conflict` if another process holds the tracker; `Storage` if the hold cannot be written; those of reading the control
    /// file, as for [`checkpoint`](Self::checkpoint).
    pub fn hold_log(&self) -> Result<Option<LogHold>> {
        let identity = self.control()?.identity;
        let epochs = self.epochs(identity)?;
        epochs.map(|epochs| epochs.hold_log()).transpose()
    }

    /// The last checkpoint. Control file and catalogue are read until they are of one checkpoint, or the catalogue of a
    /// later one, which redo copes with.
    ///
    /// # Errors
    /// `Corrupt` if one of the files is damaged; `Source` if there is no page store, if it cannot be read, or if a new history
    /// was begun and not finished.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        for _ in 0..TRIES {
            let control = self.control()?;
            let catalogue = read_catalogue(&*self.disk)?;
            if catalogue.system != control.identity.system {
                return Err(
                    Error::new(Kind::Corrupt, "the catalogue is that of another database")
                        .object(CATALOGUE_FILE),
                );
            }
            if catalogue.history == control.identity.history && catalogue.lsn >= control.redo {
                return Ok(Checkpoint { control, catalogue });
            }
            sleep(PAUSE);
        }
        Err(Error::new(
            Kind::Source,
            "control file and catalogue are not of one history: a new one was begun and not finished",
        )
        .object(self.path.display().to_string())
        .hint("start the database once, so that it recovers, and run the backup again"))
    }

    /// What the control file says, by which a directory is a page store.
    fn control(&self) -> Result<Control> {
        read_control(&*self.disk).map_err(|error| match error.kind() {
            Kind::NotFound => Error::new(Kind::Source, error.message())
                .object(self.path.join(CONTROL_FILE).display().to_string())
                .hint("check the path; a directory that is no page store is backed up as dir:///absolute/path"),
            _ => error,
        })
    }

    /// What a backup keeps of a file or directory beside its contents; `bytes` is the length it shall have. The empty
    /// path is the store itself.
    ///
    /// # Errors
    /// `Source` if it cannot be looked at.
    pub fn entry(&self, path: &str, bytes: Option<u64>) -> Result<Entry> {
        let fd = self.open_path(path, OFlags::PATH)?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| unreadable(path, error))?;
        let kind = bytes.map_or(EntryKind::Dir, |bytes| EntryKind::File { bytes });
        Ok(Entry {
            path: path.as_bytes().to_vec(),
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Stamp::of(&stat).mtime,
            xattrs: Vec::new(),
        })
    }

    /// Opens a file for reading; `None` if there is none.
    ///
    /// # Errors
    /// `Source` if it cannot be opened or is no regular file.
    pub fn open_file(&self, path: &str) -> Result<Option<OwnedFd>> {
        let failed = |error| unreadable(path, error);
        let fd = match beneath::open_to_read(self.disk.root(), path.as_bytes()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        if beneath::file_type(&stat) != FileType::RegularFile {
            return Err(Error::new(Kind::Source, "not a regular file").object(path));
        }
        beneath::make_blocking(&fd).map_err(failed)?;
        Ok(Some(fd))
    }

    fn open_path(&self, path: &str, flags: OFlags) -> Result<OwnedFd> {
        beneath::open(self.disk.root(), path.as_bytes(), flags)
            .map_err(|error| unreadable(path, error))
    }

    /// An end of the log behind `newest`, the largest LSN of a page that was copied, and behind everything that was committed
    /// before this was called, read from `from` on (the end of a group). It is the end of a group, durable when this returns; the
    /// block that it lies in may still be written behind it.
    /// Of what is written meanwhile about a segment is read.
    ///
    /// # Errors
    /// `Corrupt` if the log is damaged, or ends before `newest`; `NotFound` if a segment is missing; `Cancelled` if it was
    /// [stopped](LogWatch::stop).
    pub fn end(&self, identity: &LogIdentity, from: Lsn, newest: Lsn) -> Result<Lsn> {
        let end = find_end_beside_writer(&*self.disk, identity, from, newest)?;
        self.sync_log(identity, from, end)?;
        Ok(end)
    }

    /// Makes the log durable: what was seen of it must not be lost by a power cut while the backup has it.
    fn sync_log(&self, identity: &LogIdentity, from: Lsn, end: Lsn) -> Result<()> {
        let size = identity.size;
        for start in segments(&*self.disk, identity)?.range(size.start_of(from)..=end) {
            self.watch().check()?;
            let path = identity.path(*start);
            if let Some(fd) = self.open_file(&path)? {
                rustix::fs::fdatasync(&fd).map_err(|error| unreadable(&path, error))?;
            }
        }
        self.disk
            .sync_dir(LOG_DIR)
            .map_err(|error| source_error("the log cannot be synced", LOG_DIR.as_bytes(), error))
    }

    /// A fingerprint of the log's end: SHA-256 of its last `blocks` blocks up to `end`, the segment's header with them where
    /// they reach it, and nothing of the segment before. Another log that went through `end`, say of a copy that was started from
    /// a snapshot, has another one there if [`MARK_BLOCKS`] are asked for: they hold the last record as a whole, whatever
    /// little of the last block lies before `end`.
    ///
    /// # Errors
    /// `NotFound` if the segment is gone; `Source` if it cannot be read.
    pub fn mark(&self, identity: &LogIdentity, end: Lsn, blocks: u64) -> Result<Sha256> {
        let last = Lsn(end.0.saturating_sub(1));
        let block = last.0 / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
        let start = identity.size.start_of(last);
        let from = block
            .saturating_sub((blocks.max(1) - 1) * LOG_BLOCK_BYTES)
            .max(start.0);
        let path = identity.path(start);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::new(Kind::NotFound, "a log segment is missing").object(path.clone())
            }
            _ => source_error("the log cannot be read", path.as_bytes(), error),
        };
        let file = self.disk.open(&path, Access::Read).map_err(failed)?;
        let mut bytes = vec![0; (end.0 - from) as usize];
        let read = file.read_at(&mut bytes, from - start.0).map_err(failed)?;
        // Of a file that is shorter nothing is made up.
        Ok(sha256(&bytes[..read]))
    }
}

fn unreadable(path: &str, error: Errno) -> Error {
    source_error(
        "a file of the page store cannot be read",
        path.as_bytes(),
        error,
    )
}

#[cfg(test)]
mod tests {
    use mover_base::Timestamp;

    use super::*;
    use crate::pages::{Store, new_identity};
    use crate::wal::{Group, SegmentSize, Writer, find_end};

    /// A log of one transaction that changes `bytes` of a page; where it ends.
    fn log_of(directory: &Path, identity: LogIdentity, bytes: &[u8], micros: i64) -> Lsn {
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open_locked(directory).unwrap());
        Store::create(disk.clone(), identity).unwrap();
        let begin = identity.size.data_of(identity.first_segment());
        let found = find_end(&*disk, &identity, begin).unwrap();
        let writer = Writer::open(disk, identity, &found).unwrap();
        let mut group = Group::new();
        group.delta(1, 7, &[(24, bytes)]).unwrap();
        let time = Timestamp::from_micros(micros);
        let end = writer.append(&group, 1, time).unwrap().end;
        writer.flush_to(end).unwrap();
        end
    }

    #[test]
    fn two_lines_of_one_layout_have_different_marks() {
        let identity = new_identity([7; 32], SegmentSize::new(14).unwrap());
        // A flush record, a delta of 4,056 bytes, and of the commit all but eight bytes fill the first block; or less.
        for bytes in [4036, 4028, 100] {
            let mark = |fill: u8, micros: i64, blocks: u64| {
                let dir = tempfile::tempdir().unwrap();
                let end = log_of(dir.path(), identity, &vec![fill; bytes], micros);
                let url = format!("{SCHEME}{}", dir.path().display());
                let store = LiveStore::open(&url).unwrap();
                (end, store.mark(&identity, end, blocks).unwrap())
            };
            let (end, first) = mark(1, 1_000_000, MARK_BLOCKS);
            assert_eq!(end.0 % LOG_BLOCK_BYTES == 8, bytes == 4036, "{end}");
            for (fill, micros) in [(2, 1_000_000), (1, 2_000_000)] {
                let other = mark(fill, micros, MARK_BLOCKS);
                assert_eq!(other.0, end);
                assert_ne!(other.1, first, "{bytes} bytes of {fill} at {micros}");
            }
            assert_eq!(mark(1, 1_000_000, MARK_BLOCKS), (end, first));
            // Which one block alone does not tell.
            let one = |fill, micros| mark(fill, micros, 1).1;
            assert_eq!(one(1, 1) == one(2, 2), bytes == 4036);
        }
    }
}
