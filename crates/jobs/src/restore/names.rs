//! Who makes which name of a restored tree, and when.
//!
//! A fresh tree: directories and whatever holds no content first; a file with content when a shard first has something to
//! write to it, since cores have time while the disk writes; further names of files last. In place (`--delta`) all
//! names come first: what lies there under one of them may have to go before anything is written.
//!
//! Invariants: each name is made once; a directory before what it holds, in path order; a file before its further names.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use mover_base::Result;
use mover_base::entries::EntryList;
use mover_base::tree::{Entry, EntryKind};
use mover_io::Shard;
use mover_repo::BackupView;
use mover_source::{DirTarget, TargetMode, target_error};

use crate::fill::give_back_unwritten;
use crate::progress::Progress;
use crate::settings::{Engine, Tick};

/// Names between two moments in which a cancelled job ends.
const NAMES_PER_TURN: usize = 256;

/// The names of a tree that is being restored.
pub(super) struct Names<'a> {
    view: &'a BackupView,
    target: &'a DirTarget,
    mode: TargetMode,
    /// For each item, whether its file was made by [`open`](Self::open); locked while it is.
    made: Vec<Mutex<bool>>,
}

impl<'a> Names<'a> {
    pub fn new(view: &'a BackupView, target: &'a DirTarget, mode: TargetMode) -> Self {
        Names {
            view,
            target,
            mode,
            made: std::iter::repeat_with(Mutex::default)
                .take(view.items.entries().len())
                .collect(),
        }
    }

    fn entries(&self) -> &EntryList {
        self.view.items.entries()
    }

    /// Makes what comes before the content. Empty files are complete then.
    pub fn make_first(&self, engine: &Engine, progress: &Progress, tick: Tick<'_>) -> Result<()> {
        let entries = self.entries();
        let comes_first = |at| match self.mode {
            TargetMode::Delta => true,
            TargetMode::Fresh => entries.content_bytes(at) == 0 && entries.first_name(at).is_none(),
        };
        self.make(engine, progress, tick, comes_first)
    }

    /// Makes what comes after the content.
    pub fn make_last(&self, engine: &Engine, progress: &Progress, tick: Tick<'_>) -> Result<()> {
        let is_link = |at| self.entries().first_name(at).is_some();
        match self.mode == TargetMode::Fresh && (0..self.entries().len()).any(is_link) {
            true => self.make(engine, progress, tick, is_link),
            false => Ok(()),
        }
    }

    /// Opens the file of an item for writing and, where that was left to this, makes it; none if it is gone.
    pub fn open(&self, item: u32) -> Result<Option<OwnedFd>> {
        let at = item as usize;
        let entry = self.view.entry(item)?;
        if self.mode == TargetMode::Delta {
            return self.target.open_existing(&entry.path);
        }
        let mut made = self.made[at].lock().unwrap_or_else(PoisonError::into_inner);
        if *made {
            return self.target.open_existing(&entry.path);
        }
        let fd = self.target.make_file(&entry, &[])?;
        *made = true;
        Ok(Some(fd))
    }

    /// Makes the `chosen` names in path order.
    fn make(
        &self,
        engine: &Engine,
        progress: &Progress,
        tick: Tick<'_>,
        chosen: impl Fn(usize) -> bool + Sync,
    ) -> Result<()> {
        let links = self.links();
        let body = async |shard: Shard| {
            let chosen = (0..self.entries().len()).filter(|at| chosen(*at));
            let entries = chosen.filter_map(|at| self.entries().get(at));
            for (at, entry) in entries.enumerate() {
                shard.stop()?;
                let links: &[Vec<u8>] = links.get(&entry.path).map_or(&[], Vec::as_slice);
                make_name(&entry, links, self.target, &|| shard.stop())?;
                if at % NAMES_PER_TURN == 0 {
                    shard.turn().await;
                }
            }
            Ok(())
        };
        mover_io::run(&engine.single(), body, |stop| tick(progress, stop)).map(|_| ())
    }

    /// The further names of files, by the first one: they tell whether a file may be worked on in place.
    fn links(&self) -> HashMap<Vec<u8>, Vec<Vec<u8>>> {
        let mut links: HashMap<_, Vec<_>> = HashMap::new();
        if self.mode == TargetMode::Delta {
            for at in 0..self.entries().len() {
                if let (Some(first), Some(path)) =
                    (self.entries().first_name(at), self.entries().path(at))
                {
                    links.entry(first.to_vec()).or_default().push(path);
                }
            }
        }
        links
    }
}

fn make_name(
    entry: &Entry,
    links: &[Vec<u8>],
    target: &DirTarget,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    match &entry.kind {
        EntryKind::Dir => {
            if !entry.path.is_empty() {
                target.make_dir(entry)?;
            }
            target.apply_metadata(entry, None)
        }
        EntryKind::File { bytes } => {
            let fd = target.make_file(entry, links)?;
            if *bytes > 0 {
                // Its content comes later. One that is new has no space yet.
                return give_back_unwritten(fd.as_fd(), entry, go_on);
            }
            rustix::fs::ftruncate(&fd, 0)
                .map_err(|error| target_error("a file cannot be cut", &entry.path, error))?;
            target.apply_metadata(entry, Some(fd.as_fd()))
        }
        EntryKind::Symlink { .. } => {
            target.make_symlink(entry)?;
            target.apply_metadata(entry, None)
        }
        EntryKind::Hardlink { .. } => target.make_hardlink(entry),
        EntryKind::Fifo => {
            target.make_fifo(entry)?;
            target.apply_metadata(entry, None)
        }
    }
}
