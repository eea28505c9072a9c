//! The database's side: taking up the tracker when the database opens, marking while it runs, ending an epoch when it
//! closes.
//!
//! Invariants: when [`Attached::open`] returns, all groups of the log that end behind the start of the oldest epoch are
//! marked; marks that a killed run left count, what they may lack is read from the log, and what cannot be read is
//! claimed no longer. A database that runs without the tracker for a while needs to tell nobody: its groups lie behind
//! what the marks vouch for, and are read.

use std::sync::Arc;

use mover_base::{Error, Kind, Lsn, LsnRange, Result};

use super::TRACKER_DIR;
use super::doubt::{Doubt, Reset};
use super::epochs::Epochs;
use super::hold::held_from;
use super::live::{Capacity, LIVE_FILE, Live, Marking};
use super::state::{TrackerState, failed};
use crate::disk::{DirDisk, Disk};
use crate::wal::LogIdentity;

/// What taking up the tracker found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attachment {
    /// Why the live file did not count, if it did not.
    pub doubt: Option<Doubt>,
    /// The part of the log that was read to mark what was not, or not for certain.
    pub read: Option<LsnRange>,
    /// Why the tracker begins anew, if it does.
    pub reset: Option<Reset>,
}

/// A tracker that a database marks.
#[derive(Debug)]
pub struct Attached {
    disk: Arc<DirDisk>,
    identity: LogIdentity,
    live: Live,
}

impl Attached {
    /// Takes up the tracker of the store on `disk`, or makes it. The database has recovered its log `identity`, which ends at
    /// `end`, and has appended nothing yet. `capacity` is what the tracker must have room for at least.
    ///
    /// # Errors
    /// `Conflict` if another process marks, or works on the epochs for longer than ten seconds; `Source` or `Storage` if
    /// the tracker's files cannot be read or written; `Cancelled` if the disk's watch was asked to end it. The database may then
    /// run without: what it does not mark is read from the log.
    pub fn open(
        disk: Arc<DirDisk>,
        identity: LogIdentity,
        end: Lsn,
        capacity: Capacity,
    ) -> Result<(Attached, Attachment)> {
        let made = || {
            disk.make_dir(TRACKER_DIR)?;
            disk.sync_dir("")
        };
        made().map_err(|error| failed(TRACKER_DIR, error))?;
        let Some(epochs) = Epochs::open(Arc::clone(&disk), identity)? else {
            let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(failed(TRACKER_DIR, gone));
        };
        let mut opening = Opening {
            epochs: &epochs,
            identity,
            end,
            capacity,
            found: Attachment::default(),
        };
        let live = opening.run()?;
        let found = opening.found;
        Ok((
            Attached {
                disk,
                identity,
                live,
            },
            found,
        ))
    }

    /// Begins to mark a transaction's pages, before it is appended to the log. Never waits.
    pub fn begin(&self) -> Marking<'_> {
        self.live.begin()
    }

    /// The log is durable up to `lsn`. To be said after a flush; what was not said is read from the log by who needs it.
    pub fn durable(&self, lsn: Lsn) {
        self.live.set_durable(lsn);
    }

    /// From where on running backups need the log.
    ///
    /// # Errors
    /// `Source` if that cannot be found out.
    pub fn log_held_from(&self) -> Result<Option<Lsn>> {
        held_from(&self.disk)
    }

    /// Ends the epoch when the database stops, its log durable up to `end`, so that the marks outlast the machine.
    ///
    /// # Errors
    /// As for [`Epochs::open`] and [`Epochs::switch`]; what was marked then counts as long as the machine runs.
    pub fn close(self, end: Lsn) -> Result<()> {
        self.live.set_durable(end);
        if let Some(epochs) = Epochs::open(Arc::clone(&self.disk), self.identity)? {
            epochs.switch(end, crate::delta::BUDGET_BYTES_DEFAULT)?;
        }
        Ok(())
    }
}

struct Opening<'e> {
    epochs: &'e Epochs,
    identity: LogIdentity,
    end: Lsn,
    capacity: Capacity,
    found: Attachment,
}

impl Opening<'_> {
    fn run(&mut self) -> Result<Live> {
        // The log ends here, so it did not go through what lies behind, whatever lies there one day.
        self.epochs.forget_witnessed_behind(self.end)?;
        let state = match self.epochs.state() {
            Ok(state) if state.start <= self.end => state,
            Ok(state) => return self.anew(state.epoch + 1, Reset::LogBehind),
            Err(invalid) => return self.anew(1, invalid.reset()?),
        };
        match self.epochs.live(&state) {
            Ok(live) => self.take_up(live, state),
            Err(doubt) => {
                self.found.doubt = Some(doubt);
                self.rebuild(state)
            }
        }
    }

    /// Goes on with the live file of an earlier run.
    fn take_up(&mut self, live: Live, mut state: TrackerState) -> Result<Live> {
        claim(&live)?;
        if live.durable() > self.end {
            // What the log holds behind its end from now on is not what was marked there.
            return self.anew(state.epoch + 1, Reset::LogBehind);
        }
        if let Err(lost) = live.sync() {
            drop(live);
            self.found.doubt = Some(lost);
            return self.rebuild(state);
        }
        live.forget_under_way();
        let budget = crate::delta::BUDGET_BYTES_DEFAULT;
        if live.current() != state.epoch {
            let begun = live.start(state.epoch + 1);
            self.epochs.complete(&live, &mut state, begun, budget)?;
        }
        live.cut_appended(self.end);
        if !live.full(state.epoch) && !self.mark_rest(&live, state.epoch, live.durable())? {
            return self.anew(state.epoch + 1, Reset::LogGone);
        }
        if !live.full(state.epoch) && live.capacity() >= self.capacity {
            return Ok(live);
        }
        // A larger one, which begins empty.
        let full = live.full(state.epoch).then_some(Doubt::Full);
        let done = self
            .epochs
            .switch_live(&live, &mut state, self.end, budget)?;
        self.found.doubt = full;
        self.found.read = done.read.or(self.found.read);
        self.found.reset = done.reset;
        drop(live);
        self.rebuild(state)
    }

    /// Marks in `live` what the log says from `start` to its end. False if it cannot be read.
    fn mark_rest(&mut self, live: &Live, epoch: u64, start: Lsn) -> Result<bool> {
        let end = self.end;
        if start >= end {
            return Ok(true);
        }
        let range = LsnRange { start, end };
        match self.epochs.mark_from_log(live, epoch, range) {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            Err(_) => return Ok(false),
        }
        self.found.read = Some(range);
        live.set_durable(end);
        Ok(true)
    }

    /// Makes a live file for the running epoch, and marks in it what the log says.
    fn rebuild(&mut self, mut state: TrackerState) -> Result<Live> {
        let ids = (self.identity.system, self.identity.history);
        let live = Live::make(
            self.epochs.disk(),
            ids,
            self.capacity,
            state.epoch,
            state.start,
        )?;
        claim(&live)?;
        if !self.mark_rest(&live, state.epoch, state.start)? {
            return self.anew(state.epoch + 1, Reset::LogGone);
        }
        state.live = Some(live.id());
        self.epochs.save(&state)?;
        self.epochs.sweep(&state);
        Ok(live)
    }

    /// Begins a tracker that knows nothing of what was before the end of the log.
    fn anew(&mut self, epoch: u64, reset: Reset) -> Result<Live> {
        let ids = (self.identity.system, self.identity.history);
        let live = Live::make(self.epochs.disk(), ids, self.capacity, epoch, self.end)?;
        claim(&live)?;
        self.found.reset = Some(reset);
        self.epochs
            .restart(epoch, self.end, reset, Some(live.id()))?;
        Ok(live)
    }
}

/// Locks the live file for this process.
fn claim(live: &Live) -> Result<()> {
    match live.claim() {
        Ok(true) => Ok(()),
        Ok(false) => Err(
            Error::new(Kind::Conflict, "another process marks in the tracker")
                .object(LIVE_FILE)
                .hint("stop the database that runs in the store"),
        ),
        Err(error) => Err(failed(LIVE_FILE, error)),
    }
}
