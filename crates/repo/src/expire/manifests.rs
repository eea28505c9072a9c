//! The manifests of a run: which ones are listed, and reading many of them.
//!
//! Invariants: they are taken in the order that was asked for, whichever of them was there first; of those that are read at a time
//! no more is in memory than [`READ_BYTES_MAX`] as they are stored, or one that is longer, and what they are decoded to.

use std::collections::BTreeMap;
use std::sync::Arc;

use mover_base::{BackupId, Error, Kind, Result};
use mover_io::Shard;

use crate::catalogue::{self, OpenManifest};
use crate::layout;
use crate::records::{at_once, each_object};
use crate::repository::Repository;
use crate::sessions::stray_name;

/// Most backups of one repository; a listing that never ends has more.
const BACKUPS_MAX: usize = 4_000_000;
/// Manifests read at a time; most are short.
const READS_AT_ONCE: usize = 16;
/// Bytes of manifests read at a time, as they are stored, unless the first alone is longer.
const READ_BYTES_MAX: u64 = 24 << 20;

/// All backups, with the lengths of their manifests. A name among them that none has is an error: it may be a backup that was
/// renamed, whose packs would go.
pub(super) async fn list(
    shard: &Shard,
    repository: &Repository,
) -> Result<BTreeMap<BackupId, u64>> {
    let mut found = Vec::new();
    let strays = each_object(shard, repository, layout::BACKUPS, |object| {
        let Some(id) = layout::backup_of(&object.key) else {
            return Ok(false);
        };
        if found.len() == BACKUPS_MAX {
            let what = format!("the repository lists over {BACKUPS_MAX} backups");
            return Err(Error::new(Kind::Limit, what)
                .object(repository.url())
                .hint("begin another repository; if so many were never made, its storage, or a proxy before it, lists what is not there"));
        }
        found.push((id, object.bytes));
        Ok(true)
    })
    .await?;
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
    mut take: impl FnMut(BackupId, Result<OpenManifest>) -> Result<bool>,
) -> Result<()> {
    let mut rest = backups;
    while !rest.is_empty() {
        let (some, later) = rest.split_at(at_a_time(rest));
        rest = later;
        let read = |(id, _): (BackupId, u64)| {
            let (shard, repository) = (shard.clone(), repository.clone());
            async move { Ok((id, catalogue::load(&shard, &repository, id).await)) }
        };
        for (id, read) in at_once(shard, some.to_vec(), read).await? {
            if !take(id, read)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// How many of the manifests that come next, of which there is one at least, are read at a time.
fn at_a_time(next: &[(BackupId, u64)]) -> usize {
    let mut bytes_all = 0u64;
    let fits = next.iter().take(READS_AT_ONCE).take_while(|(_, bytes)| {
        bytes_all = bytes_all.saturating_add(*bytes);
        bytes_all <= READ_BYTES_MAX
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests {
    use mover_base::Timestamp;

    use super::*;

    #[test]
    fn as_many_are_read_at_a_time_as_their_lengths_allow() {
        let id = BackupId::new(Timestamp::from_micros(0), 0);
        let of = |bytes: &[u64]| {
            let next: Vec<(BackupId, u64)> = bytes.iter().map(|bytes| (id, *bytes)).collect();
            at_a_time(&next)
        };
        let max = READ_BYTES_MAX;
        assert_eq!(of(&[1]), 1);
        assert_eq!(of(&[1; READS_AT_ONCE + 1]), READS_AT_ONCE);
        assert_eq!(of(&[max - 2, 1, 1, 1]), 3);
        assert_eq!(of(&[max + 1, 1]), 1);
        assert_eq!(of(&[1, u64::MAX]), 1);
        assert_eq!(of(&[u64::MAX, u64::MAX]), 1);
    }
}
