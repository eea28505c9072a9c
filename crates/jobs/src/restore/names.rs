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
use mover_base::tree::{Entry, EntryKind};
use mover_io::Shard;
use mover_repo::BackupView;
use mover_source::{DirTarget, TargetMode, target_error};

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
            made: view
                .items
                .entries()
                .iter()
                .map(|_| Mutex::new(false))
                .collect(),
        }
    }

    /// Makes what comes before the content. Empty files are complete then.
    pub fn make_first(&self, engine: &Engine, progress: &Progress, tick: Tick<'_>) -> Result<()> {
        let comes_first = |entry: &Entry| match (self.mode, &entry.kind) {
            (TargetMode::Delta, _) => true,
            (TargetMode::Fresh, EntryKind::File { bytes }) => *bytes == 0,
            (TargetMode::Fresh, EntryKind::Hardlink { .. }) => false,
            (TargetMode::Fresh, _) => true,
        };
        self.make(engine, progress, tick, comes_first)
    }

    /// Makes what comes after the content.
    pub fn make_last(&self, engine: &Engine, progress: &Progress, tick: Tick<'_>) -> Result<()> {
        let is_link = |entry: &Entry| matches!(entry.kind, EntryKind::Hardlink { .. });
        match self.mode == TargetMode::Fresh
            && self
                .view
                .items
                .entries()
                .iter()
                .any(|entry| is_link(&entry))
        {
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
        chosen: impl Fn(&Entry) -> bool + Sync,
    ) -> Result<()> {
        // A file's further names tell whether it may be worked on in place.
        let mut links: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
        for entry in self.view.items.entries().iter() {
            if let EntryKind::Hardlink { first } = entry.kind {
                links.entry(first).or_default().push(entry.path);
            }
        }
        let body = async |shard: Shard| {
            let entries = self
                .view
                .items
                .entries()
                .iter()
                .filter(|entry| chosen(entry));
            for (at, entry) in entries.enumerate() {
                shard.stop()?;
                let links = links.get(&entry.path);
                make_name(&entry, links.map_or(&[], Vec::as_slice), self.target)?;
                if at % NAMES_PER_TURN == 0 {
                    shard.turn().await;
                }
            }
            Ok(())
        };
        mover_io::run(&engine.single(), body, |stop| tick(progress, stop)).map(|_| ())
    }
}

fn make_name(entry: &Entry, links: &[Vec<u8>], target: &DirTarget) -> Result<()> {
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
                return Ok(());
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
