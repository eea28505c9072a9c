//! The backup side: ending epochs, asking what changed.
//!
//! Invariants: one process at a time works on epochs; its lock ends with it. Every step can be cut off: the state names
//! an epoch as ended only when its file is durable, and who comes next finishes what the dead one began. What is claimed
//! is claimed durably before it is relied on, and given up durably before what replaces it. Who is ended while it reads the log gives
//! up nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mover_base::checksum::Sha256;
use mover_base::{Error, HistoryId, Kind, Lsn, LsnRange, Result, SystemId};
use rustix::fs::{FlockOperation, Gid, OFlags, Uid};
use rustix::io::Errno;

use super::TRACKER_DIR;
use super::doubt::{Doubt, Invalid, Reset};
use super::epoch_file::{
    EPOCH_NEW, EPOCH_SUFFIX, EpochHeader, EpochReader, EpochWriter, Place, merge,
};
use super::hold::{HOLD_NEW, LogHold};
use super::live::{LIVE_FILE, LIVE_NEW, Live};
use super::state::{KEPT_MAX, Kept, STATE_NEW, TrackerState, unreadable};
use super::witness::{WITNESS_NEW, Witness};
use crate::delta::{ChunkWords, Delta, PageSet, TABLE_BYTES};
use crate::disk::{DirDisk, Disk};
use crate::wal::{LogIdentity, LogReader, Record, Verify};

/// How long the lock is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long to sleep between two attempts.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// Which pages changed. Pages behind a table's end, and tables that are there no more, may be named and are to be passed
/// over; whether a table was made or dropped, and how long it is, the catalogue says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changed {
    /// The pages by table.
    pub tables: BTreeMap<u32, PageSet>,
}

impl From<Delta> for Changed {
    /// What was extracted from the log, in the tracker's terms.
    fn from(delta: Delta) -> Self {
        let tables = delta.tables.into_iter();
        let pages = tables.filter(|(_, table)| !table.pages.is_empty());
        Changed {
            tables: pages.map(|(id, table)| (id, table.pages)).collect(),
        }
    }
}

impl Changed {
    fn pages(&mut self, table: u32, budget: &mut usize) -> Option<&mut PageSet> {
        match self.tables.entry(table) {
            std::collections::btree_map::Entry::Occupied(entry) => Some(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                *budget = budget.checked_sub(TABLE_BYTES)?;
                Some(entry.insert(PageSet::default()))
            }
        }
    }

    fn add(&mut self, place: Place, words: &ChunkWords, budget: &mut usize) -> Option<()> {
        if words.iter().all(|word| *word == 0) {
            return Some(());
        }
        let pages = self.pages(place.table, budget)?;
        pages.insert_chunk(place.chunk, words, budget)
    }

    fn add_page(&mut self, table: u32, page: u32, budget: &mut usize) -> Option<()> {
        self.pages(table, budget)?.insert(page, budget)
    }
}

/// What ending an epoch did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switched {
    /// Groups that end behind this are marked in the next epoch only. A backup whose redo begins here or later does not
    /// need the ended epoch's marks to be followed.
    pub end: Lsn,
    /// Why the marks were in doubt, if they were.
    pub doubt: Option<Doubt>,
    /// The part of the log that was read, beside the marks or in their place.
    pub read: Option<LsnRange>,
    /// Why what was before is known no longer, if that happened now.
    pub reset: Option<Reset>,
}

/// The epochs of a store's tracker, held by one process.
#[derive(Debug)]
pub struct Epochs {
    disk: Arc<DirDisk>,
    identity: LogIdentity,
    /// The tracker's directory, locked.
    lock: OwnedFd,
}

impl Epochs {
    /// Takes hold of the tracker of the store on `disk`, whose log is `identity`; `None` if no database ever made one.
    ///
    /// # Errors
    /// `Conflict` if another process has hold of it for longer than ten seconds; `Source` if it cannot be opened.
    pub fn open(disk: Arc<DirDisk>, identity: LogIdentity) -> Result<Option<Epochs>> {
        let unopened = |error| unreadable("the tracker cannot be opened", TRACKER_DIR, error);
        let lock = match disk.descriptor(TRACKER_DIR, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            lock => lock.map_err(unopened)?,
        };
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_POLL);
                }
                Err(Errno::WOULDBLOCK) => {
                    let what = "another process works on the tracker";
                    return Err(Error::new(Kind::Conflict, what)
                        .object(TRACKER_DIR)
                        .hint("wait for it to end"));
                }
                Err(error) => return Err(unopened(error.into())),
            }
        }
        Ok(Some(Epochs {
            disk,
            identity,
            lock,
        }))
    }

    fn ids(&self) -> (SystemId, HistoryId) {
        (self.identity.system, self.identity.history)
    }

    pub(super) fn disk(&self) -> &DirDisk {
        &self.disk
    }

    /// What the state says, if it is this history's.
    pub fn state(&self) -> Result<TrackerState, Invalid> {
        let state = TrackerState::read(&*self.disk).map_err(|error| match error.kind() {
            Kind::Corrupt => Invalid::State(error.message().to_owned()),
            _ => Invalid::Unreadable(error.to_string()),
        })?;
        let state = state.ok_or(Invalid::Missing)?;
        if state.system != self.identity.system {
            return Err(Invalid::OtherDatabase);
        }
        if state.history != self.identity.history {
            return Err(Invalid::OtherHistory);
        }
        Ok(state)
    }

    /// The live file, if it counts.
    pub(super) fn live(&self, state: &TrackerState) -> Result<Live, Doubt> {
        let live = Live::open(&self.disk, self.ids(), state.live.ok_or(Doubt::Missing)?)?;
        let current = live.current();
        if current == state.epoch || current == state.epoch + 1 {
            Ok(live)
        } else {
            Err(Doubt::Epoch)
        }
    }

    /// Ends the running epoch. `end` is a position up to which the log is durable, the end of a group: all that ends there
    /// or before is known afterwards. Should the log be needed, it is read; `budget_bytes` bounds what that takes.
    ///
    /// If the marks are in doubt and the log cannot be read, nothing is known of what was before `end` from now on.
    ///
    /// # Errors
    /// `Source` or `Storage` if the tracker's files cannot be read or written; `Unreachable` if the database does not end a
    /// transaction that it has begun to log; `Cancelled` if the disk's watch says so while the log is read. None loses anything.
    pub fn switch(&self, end: Lsn, budget_bytes: usize) -> Result<Switched> {
        let anew = |epoch, reset| Ok(self.restart(epoch, end, reset, None)?.1);
        let mut state = match self.state() {
            Ok(state) if state.start <= end => state,
            Ok(state) => return anew(state.epoch + 1, Reset::LogBehind),
            Err(invalid) => return anew(1, invalid.reset()?),
        };
        match self.live(&state) {
            Ok(live) => self.switch_live(&live, &mut state, end, budget_bytes),
            // It may well count, and what it knows is not to be lost for want of memory or descriptors.
            Err(doubt @ Doubt::Unreadable(_)) => Err(Error::new(Kind::Source, doubt.to_string())
                .object(LIVE_FILE)
                .hint("raise the limits of memory and open files (ulimit -v, -n); run as the owner of the store's files, or as root")),
            Err(doubt) => self.end_from_log(&mut state, end, budget_bytes, doubt, None),
        }
    }

    /// The same where the live file counts. `state` is what is saved then.
    pub(super) fn switch_live(
        &self,
        live: &Live,
        state: &mut TrackerState,
        end: Lsn,
        budget_bytes: usize,
    ) -> Result<Switched> {
        if live.current() != state.epoch {
            let begun = live.start(state.epoch + 1);
            let done = self.complete(live, state, begun, budget_bytes)?;
            if done.reset.is_some() || end < state.start {
                return Ok(done);
            }
        }
        let (mut read, mut reset) = (None, None);
        let durable = live.durable();
        if durable < end && !live.full(state.epoch) {
            let range = LsnRange {
                start: durable,
                end,
            };
            match self.mark_from_log(live, state.epoch, range) {
                Ok(()) => read = Some(range),
                Err(error) if error.kind() == Kind::Cancelled => return Err(error),
                Err(_) => {
                    // Given up durably, before the live file says that all is marked up to here.
                    state.kept.clear();
                    (state.start, state.reset) = (end, Reset::LogGone);
                    self.save(state)?;
                    reset = Some(Reset::LogGone);
                }
            }
            live.set_durable(end);
        }
        live.prepare(state.epoch + 1, end);
        live.switch(state.epoch + 1);
        let done = self.complete(live, state, end, budget_bytes)?;
        Ok(Switched {
            read: done.read.or(read),
            reset: done.reset.or(reset),
            ..done
        })
    }

    /// Finishes a switch: the live file is at the next epoch, which begins at `start`, and the state is not yet.
    pub(super) fn complete(
        &self,
        live: &Live,
        state: &mut TrackerState,
        start: Lsn,
        budget_bytes: usize,
    ) -> Result<Switched> {
        live.wait_quiet(&self.disk, state.epoch)?;
        if let Err(lost) = live.sync() {
            // It never counts again.
            return self.end_from_log(state, start, budget_bytes, lost, None);
        }
        if live.full(state.epoch) {
            // What had no room may have been appended behind `start`: the next epoch is read from the log as well.
            live.set_full(state.epoch + 1);
            let (live, full) = (Some(live.id()), Doubt::Full);
            return self.end_from_log(state, start, budget_bytes, full, live);
        }
        // Whoever began in this epoch has said where its transaction ends.
        let end = live.appended().max(start);
        let mut writer = EpochWriter::new(&*self.disk, self.header(state, end))?;
        live.slot(state.epoch)
            .each(|place, words| writer.push(place, words))?;
        let kept = writer.finish(|made| self.give(made))?;
        self.ended(state, kept, start)?;
        Ok(Switched {
            end,
            doubt: None,
            read: None,
            reset: None,
        })
    }

    /// Ends the running epoch with what the log says, since the live file does not count.
    fn end_from_log(
        &self,
        state: &mut TrackerState,
        end: Lsn,
        budget_bytes: usize,
        doubt: Doubt,
        live: Option<[u8; 16]>,
    ) -> Result<Switched> {
        let range = LsnRange {
            start: state.start,
            end,
        };
        let mut changed = Changed::default();
        let read = self.add_from_log(&mut changed, range, &mut { budget_bytes });
        if let Err(invalid) = read {
            let (begun, done) = self.restart(state.epoch + 1, end, invalid.reset()?, live)?;
            *state = begun;
            return Ok(Switched {
                doubt: Some(doubt),
                ..done
            });
        }
        let mut writer = EpochWriter::new(&*self.disk, self.header(state, end))?;
        for (table, pages) in &changed.tables {
            for (chunk, words) in pages.chunks() {
                let place = Place {
                    table: *table,
                    chunk,
                };
                writer.push(place, words)?;
            }
        }
        let kept = writer.finish(|made| self.give(made))?;
        state.live = live;
        self.ended(state, kept, end)?;
        Ok(Switched {
            end,
            doubt: Some(doubt),
            read: Some(range),
            reset: None,
        })
    }

    fn header(&self, state: &TrackerState, end: Lsn) -> EpochHeader {
        EpochHeader {
            system: state.system,
            history: state.history,
            number: state.epoch,
            start: state.start,
            end,
        }
    }

    /// Records an ended epoch; the next one begins at `start`.
    fn ended(&self, state: &mut TrackerState, kept: Kept, start: Lsn) -> Result<()> {
        state.kept.push(kept);
        (state.epoch, state.start) = (state.epoch + 1, start);
        while state.kept.len() > KEPT_MAX {
            let merged = merge(
                &*self.disk,
                state.system,
                state.history,
                [&state.kept[0], &state.kept[1]],
                |made| self.give(made),
            );
            match merged {
                Ok(merged) => _ = state.kept.splice(..2, [merged]),
                // What cannot be read is claimed no longer.
                Err(error) if error.kind() != Kind::Storage => {
                    state.kept.drain(..2);
                    state.reset = Reset::Damaged;
                }
                Err(error) => return Err(error),
            }
        }
        self.save(state)?;
        self.sweep(state);
        Ok(())
    }

    /// Begins anew at `end`: nothing is known of what was before. Returns the state, too.
    pub(super) fn restart(
        &self,
        epoch: u64,
        end: Lsn,
        reset: Reset,
        live: Option<[u8; 16]>,
    ) -> Result<(TrackerState, Switched)> {
        let state = TrackerState {
            system: self.identity.system,
            history: self.identity.history,
            live,
            epoch,
            start: end,
            reset,
            kept: Vec::new(),
        };
        self.save(&state)?;
        self.sweep(&state);
        let done = Switched {
            end,
            doubt: None,
            read: None,
            reset: Some(reset),
        };
        Ok((state, done))
    }

    /// The pages that groups changed which end in `range`, behind its start and not behind its end; perhaps more. Up to the
    /// last switch the answer is made of ended epochs; behind it the running epoch's marks so far are in it.
    ///
    /// # Errors
    /// [`Invalid`], if the tracker cannot vouch for the answer, or the disk's watch was asked to end it.
    pub fn changed(&self, range: LsnRange, budget_bytes: usize) -> Result<Changed, Invalid> {
        let state = self.state()?;
        if range.end < range.start {
            return Err(Invalid::Backwards);
        }
        let (known_from, reset) = (state.known_from(), state.reset);
        if range.start < known_from {
            return Err(Invalid::Before { known_from, reset });
        }
        let mut budget = budget_bytes;
        let mut changed = Changed::default();
        for kept in &state.kept {
            if kept.end > range.start && kept.start < range.end {
                self.add_kept(&mut changed, &state, kept, &mut budget)?;
            }
        }
        if range.end > state.start {
            self.add_running(&mut changed, &state, range, &mut budget)?;
        }
        Ok(changed)
    }

    fn add_kept(
        &self,
        changed: &mut Changed,
        state: &TrackerState,
        kept: &Kept,
        budget: &mut usize,
    ) -> Result<(), Invalid> {
        let damaged = |error: Error| Invalid::Epoch {
            number: kept.number,
            why: error.to_string(),
        };
        let mut reader =
            EpochReader::open(&*self.disk, state.system, state.history, kept).map_err(damaged)?;
        while let Some((place, words)) = reader.next().map_err(damaged)? {
            changed.add(place, &words, budget).ok_or(Invalid::Limit)?;
        }
        Ok(())
    }

    /// Adds what is marked since the last switch, and what the log has beyond what the marks vouch for.
    fn add_running(
        &self,
        changed: &mut Changed,
        state: &TrackerState,
        range: LsnRange,
        budget: &mut usize,
    ) -> Result<(), Invalid> {
        let mut from = state.start;
        if let Ok(live) = self.live(state)
            && live.sync().is_ok()
        {
            // Before the marks: those of what is durable by now are among them then.
            let durable = live.durable();
            let epochs = [state.epoch, state.epoch + 1];
            let slots = &epochs[..if live.current() == state.epoch { 1 } else { 2 }];
            for epoch in slots {
                let add = |place, words: &ChunkWords| {
                    changed.add(place, words, budget).ok_or_else(over_budget)
                };
                live.slot(*epoch).each(add).map_err(unread)?;
            }
            if !slots.iter().any(|epoch| live.full(*epoch)) {
                from = durable;
            }
        }
        let rest = LsnRange {
            start: from.max(range.start),
            end: range.end,
        };
        if rest.start < rest.end {
            self.add_from_log(changed, rest, budget)?;
        }
        Ok(())
    }

    /// Remembers that a backup was taken of this line, whose log up to `end` has the fingerprint `sha256`.
    ///
    /// # Errors
    /// `Storage` if it cannot be written, `Source` if what is there cannot be read now: it stays as it is.
    pub fn testify(&self, end: Lsn, sha256: Sha256) -> Result<()> {
        self.testify_on(None, end, sha256)
    }

    /// The same of a backup that stands on `base`, by its end and fingerprint: that is remembered as long as those that it is the base
    /// of.
    ///
    /// # Errors
    /// As for [`testify`](Self::testify).
    pub fn testify_on(&self, base: Option<(Lsn, Sha256)>, end: Lsn, sha256: Sha256) -> Result<()> {
        let mut witness = match Witness::read(&*self.disk, &self.identity) {
            // What is damaged says nothing, and is begun anew.
            Err(error) if error.kind() == Kind::Corrupt => Witness::none(&self.identity),
            found => found?,
        };
        witness.enter(base, (end, sha256));
        witness.save(&*self.disk, |made| self.give(made))
    }

    /// Forgets the backups of a log that went on behind `end`, where the log of this line ends: the store, or its log alone, was put
    /// back to an earlier state, and will soon reach their positions on another line.
    ///
    /// # Errors
    /// As for [`testify`](Self::testify).
    pub(super) fn forget_witnessed_behind(&self, end: Lsn) -> Result<()> {
        let mut witness = match Witness::read(&*self.disk, &self.identity) {
            // What is damaged says nothing.
            Err(error) if error.kind() == Kind::Corrupt => return Ok(()),
            found => found?,
        };
        let all = witness.ends.len();
        witness.ends.retain(|(at, _)| *at <= end);
        match witness.ends.len() == all {
            true => Ok(()),
            false => witness.save(&*self.disk, |made| self.give(made)),
        }
    }

    /// Holds the log for a backup: a database that asks removes nothing of it until the hold is told, or dropped.
    ///
    /// # Errors
    /// `Storage` if it cannot be written.
    pub fn hold_log(&self) -> Result<LogHold> {
        LogHold::place(Arc::clone(&self.disk), |made| self.give(made))
    }

    fn add_from_log(
        &self,
        changed: &mut Changed,
        range: LsnRange,
        budget: &mut usize,
    ) -> Result<(), Invalid> {
        let add = |table, page| {
            let added = changed.add_page(table, page, budget);
            added.ok_or_else(over_budget)
        };
        self.each_change(range, add).map_err(unread)
    }

    /// Marks what a range of the log changed. The epoch then does not end before the range does, wherever the next one begins.
    pub(super) fn mark_from_log(&self, live: &Live, epoch: u64, range: LsnRange) -> Result<()> {
        live.raise_appended(range.end);
        let slot = live.slot(epoch);
        self.each_change(range, |table, page| {
            slot.mark(table, page);
            Ok(())
        })
    }

    /// Gives the pages that a range of the log changed to `visit`, until that fails.
    fn each_change(
        &self,
        range: LsnRange,
        mut visit: impl FnMut(u32, u32) -> Result<()>,
    ) -> Result<()> {
        let disk: Arc<dyn Disk> = Arc::clone(&self.disk) as Arc<dyn Disk>;
        let reader = LogReader::new(disk, self.identity, Verify::Records);
        reader.read(range, |_, _, record| match *record {
            Record::Delta { table, page, .. } | Record::Image { table, page, .. } => {
                visit(table, page)
            }
            _ => Ok(()),
        })
    }

    pub(super) fn save(&self, state: &TrackerState) -> Result<()> {
        state.save(&*self.disk, |made| self.give(made))
    }

    /// Gives a file that root made to whom the directory belongs: the database must be able to read it. Not by its name, in
    /// whose place who owns the directory may have put another file.
    fn give(&self, made: BorrowedFd<'_>) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = rustix::fs::fstat(&self.lock)?;
        let (user, group) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
        Ok(rustix::fs::fchown(made, Some(user), Some(group))?)
    }

    /// Removes files that the state does not name. What cannot be removed now is removed next time.
    pub(super) fn sweep(&self, state: &TrackerState) {
        let named: Vec<String> = state.kept.iter().map(Kept::path).collect();
        for name in self.disk.list(TRACKER_DIR).unwrap_or_default() {
            let path = format!("{TRACKER_DIR}/{name}");
            let ours = path.ends_with(EPOCH_SUFFIX) && !named.contains(&path);
            if ours || [STATE_NEW, EPOCH_NEW, LIVE_NEW, WITNESS_NEW, HOLD_NEW].contains(&&*path) {
                let _ = self.disk.remove(&path);
            }
        }
    }
}

/// Ends the reading for an answer that has used up its budget.
fn over_budget() -> Error {
    Error::new(Kind::Limit, Invalid::Limit.to_string())
}

/// Why reading for an answer ended. No log fails by a limit.
fn unread(error: Error) -> Invalid {
    match error.kind() {
        Kind::Limit => Invalid::Limit,
        Kind::Cancelled => Invalid::Cancelled,
        _ => Invalid::Log(error.to_string()),
    }
}
