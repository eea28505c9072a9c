//! Tombstones: that a session is about to delete a backup.
//!
//! Invariants: a tombstone belongs to the session in its name and means something only while that session's object
//! stands; it keeps new backups from building on the backup and is never a reason to delete it. So one that a crash, a
//! changed policy or a stranger left does no harm.

use std::collections::BTreeMap;

use mover_base::{BackupId, Result, SessionId};
use mover_format::record::{Record, TombstoneRecord};
use mover_io::Shard;

use crate::layout;
use crate::records;
use crate::repository::{Repository, Session};

/// Tombstones by backup.
pub(crate) type Marks = BTreeMap<BackupId, Vec<SessionId>>;

/// Puts this session's tombstone on a backup.
pub(crate) async fn mark(
    shard: &Shard,
    repository: &Repository,
    session: &Session,
    backup: BackupId,
) -> Result<()> {
    let record = Record::Tombstone(TombstoneRecord { backup_id: backup });
    let bytes = records::encode(repository, session, backup.object_id(), &record)?;
    let key = layout::tombstone(backup, session.id())?;
    records::create_unique(shard, repository, &key, &bytes).await
}

/// Whether any session has put one on this backup.
pub(crate) async fn is_marked(
    shard: &Shard,
    repository: &Repository,
    backup: BackupId,
) -> Result<bool> {
    let prefix = layout::tombstones(backup);
    let page = repository.store().list(shard, &prefix, None, 1).await?;
    Ok(!page.objects.is_empty())
}

/// All tombstones. Needs no key: what counts stands in the names.
pub(crate) async fn list(shard: &Shard, repository: &Repository) -> Result<Marks> {
    let mut marks = Marks::new();
    for key in &records::names(shard, repository, layout::EXPIRED)
        .await?
        .keys
    {
        if let Some((backup, session)) = layout::tombstone_of(key) {
            marks.entry(backup).or_default().push(session);
        }
    }
    Ok(marks)
}
