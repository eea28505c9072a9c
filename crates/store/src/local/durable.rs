//! Making directory entries durable.
//!
//! A rename is durable when the directory that holds the new name was synced after it; a new directory is
//! durable when its parent was, too. [`Durability::settle`] does both.
//!
//! Invariants:
//! - A sync counts only for changes made before it began. Callers that arrive while one runs share the next.
//! - The first time this process uses a directory it syncs the ancestors also, even if the directory
//!   existed: another process may have created it a moment ago and not have synced it yet.
//! - After one failed sync nothing is called durable any more: the kernel reports a write-back error once,
//!   and a second sync that "succeeds" proves nothing. A new process starts afresh.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mover_base::{Error, Kind, Result};
use mover_io::Shard;

use super::errno::explain;
use super::root::Root;

/// Most directories remembered (about 100 bytes each). Past it the idle ones are forgotten, which costs
/// one more sync of their parents when they are next used.
const DIRECTORIES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Durability {
    directories: Mutex<HashMap<String, Arc<Directory>>>,
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Directory {
    /// Changes announced so far.
    changes: AtomicU64,
    /// Changes that a finished sync covers. Held locked while a sync runs.
    synced: tokio::sync::Mutex<u64>,
    /// Whether its own entry in its parent is known to be durable.
    entry_durable: AtomicBool,
}

impl Durability {
    /// Makes every change made so far to the entries of `directory` durable, and the directory itself.
    pub(super) async fn settle(&self, root: &Root, shard: &Shard, directory: &str) -> Result<()> {
        let mut chain = vec![(directory, self.directory(directory))];
        loop {
            let (path, state) = &chain[chain.len() - 1];
            if path.is_empty() || state.entry_durable.load(Ordering::Acquire) {
                break;
            }
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let state = self.directory(parent);
            chain.push((parent, state));
        }
        // From the top, so that an error leaves no durable name below a name that is not.
        for index in (0..chain.len()).rev() {
            self.sync(root, shard, chain[index].0, &chain[index].1)
                .await?;
            if index > 0 {
                chain[index - 1]
                    .1
                    .entry_durable
                    .store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    async fn sync(&self, root: &Root, shard: &Shard, path: &str, state: &Directory) -> Result<()> {
        let change = state.changes.fetch_add(1, Ordering::AcqRel) + 1;
        let mut synced = state.synced.lock().await;
        if self.failed.load(Ordering::Acquire) {
            return Err(distrusted(path));
        }
        if *synced >= change {
            return Ok(());
        }
        let covered = state.changes.load(Ordering::Acquire);
        let fd = root.open_directory(path)?.ok_or_else(|| {
            Error::new(
                Kind::Storage,
                "a directory of the repository vanished while it was written",
            )
            .object(path)
        })?;
        if let Err(error) = shard.sync_directory(fd).await {
            self.failed.store(true, Ordering::Release);
            return Err(explain(
                error,
                "make a directory of the repository durable",
                path,
            ));
        }
        *synced = covered;
        Ok(())
    }

    fn directory(&self, path: &str) -> Arc<Directory> {
        // A panic elsewhere cannot leave the map half changed, so a poisoned lock is used as it is.
        let mut directories = self
            .directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = directories.get(path) {
            return Arc::clone(directory);
        }
        if directories.len() >= DIRECTORIES_MAX {
            directories.retain(|_, directory| Arc::strong_count(directory) > 1);
        }
        let directory = Arc::new(Directory::default());
        directories.insert(path.to_owned(), Arc::clone(&directory));
        directory
    }
}

fn distrusted(path: &str) -> Error {
    Error::new(
        Kind::Storage,
        "an earlier sync of a directory failed, so no further write is trusted",
    )
    .object(path)
    .hint("look in the kernel's log and check the disk of the repository; then run again")
}
