//! A page store: the directory of a database that keeps tables in pages and a log of what changes in them.
//!
//! ```text
//! control          which database and history, where redo begins       (two slots)
//! catalogue        the tables at a checkpoint                          (replaced whole)
//! tables/<id>.pages
//! wal/<history>-<start>.wal
//! ```
//!
//! Invariants: `control` names a position from which the log leads to everything that was acknowledged; what stands in
//! the other files is never newer than the durable log. A store is created, checkpointed and given a new history in an
//! order that leaves it whole wherever that is cut off.

mod catalogue;
mod control;
mod live;
mod table;

use std::io;
use std::sync::Arc;

use mover_base::{BLOCK_BYTES, Error, HistoryId, Kind, Lsn, LsnRange, Result, Timestamp};

pub use catalogue::{CATALOGUE_BYTES_MAX, Catalogue, TABLES_MAX, Table};
pub use control::Control;
pub use live::{Checkpoint, LiveStore, MARK_BLOCKS, SCHEME};
pub use table::{TABLES_DIR, TableFile, table_path};

use crate::RESTORE_MARKER;
use crate::disk::{Access, Disk, remove_if_there};
use crate::failure::source_error;
use crate::redo::{Redo, Redone};
use crate::wal::segment::LOG_DIR;
use crate::wal::{
    self, Fork, LogEnd, LogIdentity, LogReader, SegmentSize, Verify, Writer, clean, find_end,
};
use crate::wire::corrupt;

/// The control file.
pub const CONTROL_FILE: &str = "control";
/// The catalogue file.
pub const CATALOGUE_FILE: &str = "catalogue";
/// Under this name it is written before it is put in its place.
const CATALOGUE_NEW: &str = "catalogue.new";

/// A page store that nobody is writing to but its owner.
#[derive(Debug)]
pub struct Store {
    disk: Arc<dyn Disk>,
    control: Control,
    catalogue: Catalogue,
}

/// What recovery did.
#[derive(Debug)]
pub struct Recovered {
    /// The log, to be gone on with.
    pub writer: Writer,
    /// Where the log ended, and whether its tail was torn.
    pub log: LogEnd,
    /// What redo did.
    pub redone: Redone,
    /// No transaction has this number or a larger one.
    pub next_transaction: u64,
}

impl Store {
    /// Makes an empty store with a new history in the (empty) directory of `disk`.
    ///
    /// # Errors
    /// `Conflict` if there is a store already; `Storage` if it cannot be written.
    pub fn create(disk: Arc<dyn Disk>, identity: LogIdentity) -> Result<Store> {
        match disk.open(CONTROL_FILE, Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(CONTROL_FILE, error)),
            Ok(_) => {
                return Err(Error::new(Kind::Conflict, "there is a page store already")
                    .object(CONTROL_FILE));
            }
        }
        for dir in [TABLES_DIR, LOG_DIR] {
            disk.make_dir(dir).map_err(|error| failed(dir, error))?;
        }
        disk.sync_dir("").map_err(|error| failed("", error))?;
        // What an earlier attempt left, which had no control file yet.
        for start in wal::segments(&*disk, &identity)? {
            let path = identity.path(start);
            disk.remove(&path).map_err(|error| failed(&path, error))?;
        }
        wal::begin(&*disk, &identity)?;
        let redo = identity.size.data_of(identity.first_segment());
        let mut store = Store {
            disk,
            control: Control {
                sequence: 0,
                identity,
                checkpoint: Lsn(0),
                redo,
                next_transaction: 1,
            },
            catalogue: Catalogue::new(identity.system, identity.history, redo),
        };
        store.save_catalogue(store.catalogue.clone())?;
        store.make_control()?;
        Ok(store)
    }

    /// Opens a store; [`recover`](Self::recover) it before anything is written.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Corrupt` if control file or catalogue are damaged; `Source` if they cannot be read, or if
    /// it is the target of a restore that was not finished: part of it may be of one time and part of another.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Store> {
        match disk.open(RESTORE_MARKER, Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Store::open_unfinished(disk),
            Err(error) => Err(failed(RESTORE_MARKER, error)),
            Ok(_) => Err(
                Error::new(Kind::Source, "the page store is an unfinished restore")
                    .object(RESTORE_MARKER)
                    .hint("run the restore again with --delta, or open another one"),
            ),
        }
    }

    /// Like [`open`](Self::open), for the restore itself, which opens what it brought back while the marker is there.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) but for the marker.
    pub fn open_unfinished(disk: Arc<dyn Disk>) -> Result<Store> {
        let control = read_control(&*disk)?;
        let catalogue = read_catalogue(&*disk)?;
        let (ours, theirs) = (&control.identity, &catalogue);
        if theirs.system != ours.system {
            return Err(corrupt("the catalogue is that of another database").object(CATALOGUE_FILE));
        }
        // A new history is begun with the catalogue: its position is behind all of the old one, its contents the same.
        let same = theirs.history == ours.history;
        if theirs.lsn < control.redo || (!same && theirs.lsn == control.redo) {
            return Err(corrupt(format!(
                "the catalogue is of {}, not of the checkpoint at {}",
                theirs.lsn, control.redo
            ))
            .object(CATALOGUE_FILE));
        }
        Ok(Store {
            disk,
            control,
            catalogue,
        })
    }

    /// What the control file says.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The tables, as of the last checkpoint or recovery.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Finds the end of the log, cuts a torn tail, and brings the pages up to it with at most `cache_pages` of them in
    /// memory. May be cut off anywhere and begun anew.
    ///
    /// # Errors
    /// `Corrupt` if log or pages are damaged beyond what the log can mend; `NotFound` if a segment is missing; `Storage`
    /// if files cannot be written; `Cancelled` if the disk's watch was asked to end it.
    pub fn recover(&mut self, cache_pages: usize) -> Result<Recovered> {
        let identity = self.control.identity;
        let log = find_end(&*self.disk, &identity, self.control.redo)?;
        if self.control.checkpoint != Lsn(0) && log.end <= self.control.checkpoint {
            return Err(corrupt(format!(
                "the log ends at {}, before the checkpoint at {} that is known to be in it",
                log.end, self.control.checkpoint
            ))
            .object(identity.path(identity.size.start_of(log.end)))
            .hint("restore from a backup; part of the log is lost"));
        }
        if self.catalogue.history == identity.history && self.catalogue.lsn > log.end {
            return Err(corrupt(format!(
                "the log ends at {}, before the catalogue's position {}, up to which it was durable",
                log.end, self.catalogue.lsn
            ))
            .object(identity.path(identity.size.start_of(log.end)))
            .hint("restore from a backup; part of the log is lost"));
        }
        clean(&*self.disk, &identity, &log)?;
        let mut redo = Redo::new(
            Arc::clone(&self.disk),
            self.catalogue.clone(),
            log.end,
            cache_pages,
        );
        let range = LsnRange {
            start: self.control.redo,
            end: log.end,
        };
        LogReader::new(Arc::clone(&self.disk), identity, Verify::Records)
            .read(range, |lsn, _, record| redo.apply(lsn, record))?;
        let (mut catalogue, redone) = redo.finish()?;
        catalogue.lsn = log.end;
        if catalogue.history == identity.history {
            self.catalogue = catalogue;
        } else {
            // A new history was begun and not finished: its position must not hide what this one says from now on.
            catalogue.history = identity.history;
            self.save_catalogue(catalogue)?;
        }
        table::remove_orphans(&*self.disk, &self.catalogue)?;
        if identity.fork.is_some() && self.control.checkpoint == Lsn(0) {
            // The other slot may still name the history that this one came from, if that was cut off.
            self.save_control(Control {
                sequence: self.control.sequence + 1,
                ..self.control
            })?;
        }
        Ok(Recovered {
            writer: Writer::open(Arc::clone(&self.disk), identity, &log)?,
            next_transaction: self.control.next_transaction.max(log.next_transaction),
            log,
            redone,
        })
    }

    /// Makes a checkpoint known, after all pages are on disk and synced that were changed before `catalogue.lsn`, which
    /// is where redo begins from now on. Returns where the checkpoint's record begins.
    ///
    /// The caller takes `catalogue` and the list of pages at one moment between two transactions, and logs the first
    /// change of a page since then as an image.
    ///
    /// # Errors
    /// `Usage` if the catalogue is of another log or older than the last; `Storage` if anything cannot be written.
    pub fn checkpoint(
        &mut self,
        writer: &Writer,
        catalogue: Catalogue,
        next_transaction: u64,
        time: Timestamp,
    ) -> Result<Lsn> {
        let redo = catalogue.lsn;
        let ours = self.control.identity;
        if (catalogue.system, catalogue.history) != (ours.system, ours.history)
            || redo < self.control.redo
            || redo > writer.end()
        {
            return Err(Error::new(
                Kind::Usage,
                "a checkpoint of another log or time",
            ));
        }
        self.sync_names()?;
        // The catalogue is never ahead of the log that leads to it.
        writer.flush_to(redo)?;
        self.save_catalogue(catalogue)?;
        let checkpoint = writer.checkpoint(redo, next_transaction, time)?;
        writer.flush_to(writer.end())?;
        self.save_control(Control {
            sequence: self.control.sequence + 1,
            checkpoint,
            redo,
            next_transaction,
            ..self.control
        })?;
        Ok(checkpoint)
    }

    /// Begins a new history where this one ends, as after a restore to the past: its log has a new id and begins at the next
    /// boundary of segments. All pages must be on disk and synced, and the log recovered with `recovered`.
    ///
    /// # Errors
    /// `Usage` if the log was gone on with; `Storage` if anything cannot be written.
    pub fn begin_history(&mut self, recovered: Recovered, history: HistoryId) -> Result<Writer> {
        let at = recovered.log.end;
        if recovered.writer.end() != at {
            let what = "a new history begins where recovery ended, and the log was gone on with";
            return Err(Error::new(Kind::Usage, what));
        }
        drop(recovered.writer);
        self.sync_names()?;
        let old = self.control.identity;
        let identity = LogIdentity {
            history,
            fork: Some(Fork {
                parent: old.history,
                at,
            }),
            ..old
        };
        for start in wal::segments(&*self.disk, &identity)? {
            let path = identity.path(start);
            self.disk
                .remove(&path)
                .map_err(|error| failed(&path, error))?;
        }
        wal::begin(&*self.disk, &identity)?;
        let redo = identity.size.data_of(identity.first_segment());
        let mut catalogue = self.catalogue.clone();
        (catalogue.history, catalogue.lsn) = (history, redo);
        self.save_catalogue(catalogue)?;
        let control = Control {
            sequence: self.control.sequence + 1,
            identity,
            checkpoint: Lsn(0),
            redo,
            next_transaction: recovered.next_transaction,
        };
        // Both slots: the old history must not come back when one of them is damaged.
        self.save_control(control)?;
        self.save_control(Control {
            sequence: control.sequence + 1,
            ..control
        })?;
        let found = find_end(&*self.disk, &identity, redo)?;
        Writer::open(Arc::clone(&self.disk), identity, &found)
    }

    fn sync_names(&self) -> Result<()> {
        self.disk
            .sync_dir(TABLES_DIR)
            .map_err(|error| failed(TABLES_DIR, error))
    }

    /// Replaces the catalogue as a whole.
    fn save_catalogue(&mut self, catalogue: Catalogue) -> Result<()> {
        let save = || {
            remove_if_there(&*self.disk, CATALOGUE_NEW)?;
            let file = self.disk.open(CATALOGUE_NEW, Access::Create)?;
            file.write_at(&catalogue.encode(), 0)?;
            file.sync()?;
            self.disk.rename(CATALOGUE_NEW, CATALOGUE_FILE)?;
            self.disk.sync_dir("")
        };
        save().map_err(|error| failed(CATALOGUE_FILE, error))?;
        self.catalogue = catalogue;
        Ok(())
    }

    /// Writes one slot; the other stays as it is.
    fn save_control(&mut self, control: Control) -> Result<()> {
        let save = || {
            let file = self.disk.open(CONTROL_FILE, Access::Write)?;
            file.write_at(&control.encode(), control.sequence % 2 * BLOCK_BYTES as u64)?;
            file.sync()
        };
        save().map_err(|error| failed(CONTROL_FILE, error))?;
        self.control = control;
        Ok(())
    }

    /// Makes the control file, which makes the store exist.
    fn make_control(&mut self) -> Result<()> {
        const NEW: &str = "control.new";
        let make = || {
            remove_if_there(&*self.disk, NEW)?;
            let file = self.disk.open(NEW, Access::Create)?;
            file.allocate(2 * BLOCK_BYTES as u64)?;
            file.write_at(&self.control.encode(), 0)?;
            file.sync()?;
            self.disk.rename(NEW, CONTROL_FILE)?;
            self.disk.sync_dir("")
        };
        make().map_err(|error| failed(CONTROL_FILE, error))
    }
}

/// Reads the control file: the sound slot with the larger sequence number.
///
/// # Errors
/// `NotFound` if there is none; `Corrupt` if no slot is sound; `Source` if it cannot be read.
pub fn read_control(disk: &dyn Disk) -> Result<Control> {
    let unreadable = |error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            return Error::new(Kind::NotFound, "there is no page store")
                .object(CONTROL_FILE)
                .hint("check the path: a page store has a control file");
        }
        source_error(
            "the control file cannot be read",
            CONTROL_FILE.as_bytes(),
            error,
        )
    };
    let file = disk.open(CONTROL_FILE, Access::Read).map_err(unreadable)?;
    let mut slots = Vec::with_capacity(2);
    for slot in 0..2u64 {
        let mut block = [0; BLOCK_BYTES];
        let offset = slot * BLOCK_BYTES as u64;
        let read = file.read_at(&mut block, offset).map_err(unreadable)?;
        let control = if read == BLOCK_BYTES {
            Control::decode(&block)
        } else {
            Err(corrupt("the control file is too short"))
        };
        slots.push(match control {
            Ok(control) if control.sequence % 2 != slot => Err(corrupt(
                "a slot of the control file stands in the other's place",
            )),
            control => control,
        });
    }
    let sound = slots.iter().filter_map(|slot| slot.as_ref().ok());
    match (sound.max_by_key(|control| control.sequence), slots.first()) {
        (Some(control), _) => Ok(*control),
        (None, Some(Err(error))) => Err(corrupt(error.message())
            .object(CONTROL_FILE)
            .hint("restore from a backup")),
        (None, _) => Err(corrupt("the control file is empty").object(CONTROL_FILE)),
    }
}

/// Reads the catalogue file.
///
/// # Errors
/// `Corrupt` if it is missing, too long or damaged; `Source` if it cannot be read.
pub fn read_catalogue(disk: &dyn Disk) -> Result<Catalogue> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => corrupt("the catalogue is missing").object(CATALOGUE_FILE),
        _ => source_error(
            "the catalogue cannot be read",
            CATALOGUE_FILE.as_bytes(),
            error,
        ),
    };
    let file = disk
        .open(CATALOGUE_FILE, Access::Read)
        .map_err(unreadable)?;
    let len = file.len().map_err(unreadable)?;
    if len > CATALOGUE_BYTES_MAX as u64 {
        return Err(corrupt("the catalogue is longer than any can be").object(CATALOGUE_FILE));
    }
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(&mut bytes, 0).map_err(unreadable)?;
    bytes.truncate(read);
    Catalogue::decode(&bytes).map_err(|error| error.object(CATALOGUE_FILE))
}

/// Makes up an identity for a new database from 32 random bytes.
pub fn new_identity(random: [u8; 32], size: SegmentSize) -> LogIdentity {
    let (mut system, mut history) = ([0; 16], [0; 16]);
    system.copy_from_slice(&random[..16]);
    history.copy_from_slice(&random[16..]);
    LogIdentity {
        system: mover_base::SystemId(system),
        history: HistoryId(history),
        fork: None,
        size,
    }
}

fn failed(path: &str, error: io::Error) -> Error {
    Error::new(Kind::Storage, "the page store cannot be written")
        .object(path)
        .cause(error)
}
