//! The manifests of a run: which ones are listed, and reading many of them.
//!
//! Invariants: they are taken in the order that was asked for, whichever of them was there first; of those that are read at a time
//! no more is in memory than [`catalogue::fetch_next`] allows, one of them decoded, and that without its entry pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use mover_base::{BackupId, Result};
use mover_io::Shard;

use crate::catalogue::{self, OpenHead};
use crate::repository::Repository;
use crate::sessions::stray_name;

/// Manifests read at a time; most are short.
const READS_AT_ONCE: usize = 16;

/// All backups, with the lengths of their manifests. A name among them that none has is an error: it may be a backup that was
/// renamed, whose packs would go.
pub(super) async fn list(
    shard: &Shard,
    repository: &Repository,
) -> Result<BTreeMap<BackupId, u64>> {
    let (found, strays) = catalogue::list_sized(shard, repository).await?;
    match strays.first() {
        Some(stray) => Err(stray_name(stray, "manifests")),
        None => Ok(found.into_iter().collect()),
    }
}

/// Reads the manifests of `backups`, of which the lengths are known, and gives each to `take` in this order, or why it cannot be
/// read. `take` says whether the next one is wanted.
pub(super) async fn read_each(
    shard: &Shard,
    repository: &Arc<Repository>,
    backups: &[(BackupId, u64)],
    mut take: impl FnMut(BackupId, Result<OpenHead>) -> Result<bool>,
) -> Result<()> {
    let mut rest = backups;
    while !rest.is_empty() {
        let some = catalogue::fetch_next(shard, repository, &mut rest, READS_AT_ONCE);
        for (id, stored) in some.await? {
            // Each goes before the next one is decoded.
            let read = stored.and_then(|stored| stored.head(repository));
            if !take(id, read)? {
                return Ok(());
            }
            shard.stop()?;
        }
    }
    Ok(())
}
