//! Holds: backups that must not be deleted, each with a reason.
//!
//! Invariants: a hold that was reported as made is seen by every `expire` that begins later, and by one that ran meanwhile;
//! where that cannot be known, the hold is taken back and an error says so. One that cannot be taken back stays, which only
//! keeps more. A name among the holds that none has ends an `expire`, since it may be one that was renamed, and nothing else.

use std::collections::BTreeMap;

use mover_base::{BackupId, Error, HoldId, Kind, Result, Timestamp};
use mover_format::preamble::ObjectType;
use mover_format::record::{HoldRecord, Record};
use mover_io::{Shard, random_bytes};
use serde::Serialize;

use crate::repository::Repository;
use crate::sessions::{self, stray_name};
use crate::{catalogue, layout, process, records, tombstones};

/// A hold, as listings show it.
#[derive(Debug, Clone, Serialize)]
pub struct Hold {
    /// Its id.
    pub hold_id: HoldId,
    /// The backup that it holds.
    pub backup_id: BackupId,
    /// Why; absent where it cannot be read.
    pub reason: Option<String>,
    /// Where it was made.
    pub host: Option<String>,
    /// When, by the clock of that host.
    pub created: Option<Timestamp>,
    /// Why it cannot be read. It holds all the same.
    pub problem: Option<String>,
}

/// The holds of a repository.
#[derive(Debug, Clone, Serialize)]
pub struct HoldListing {
    /// The holds, by backup. One that cannot be read is listed with its problem.
    pub holds: Vec<Hold>,
    /// Names among them that no hold has, at most [`STRAYS_MAX`](mover_store::STRAYS_MAX); they were passed over.
    pub strays: Vec<String>,
}

/// Puts a hold on the backup that `set` names.
pub async fn add(shard: &Shard, repository: &Repository, set: &str, reason: &str) -> Result<Hold> {
    let backup_id = catalogue::find(shard, repository, set).await?;
    add_as(shard, repository, backup_id, draw_id()?, reason).await
}

/// An id for a hold that is to be put on. Who draws it can look for the hold, and take it back, whatever became of the request.
pub fn draw_id() -> Result<HoldId> {
    random_bytes().map(HoldId)
}

/// Puts a hold of this id on a backup.
///
/// # Errors
/// `Conflict` if an `expire` is about to delete the backup, `NotFound` if it is gone. After any error the hold may stand.
pub async fn add_as(
    shard: &Shard,
    repository: &Repository,
    backup_id: BackupId,
    hold_id: HoldId,
    reason: &str,
) -> Result<Hold> {
    let body = HoldRecord {
        backup_id,
        reason: reason.to_owned(),
        host: process::host_name(),
        created: Timestamp::now(),
    };
    let record = Record::Hold(body.clone());
    let session = repository.begin_session()?;
    let bytes = records::encode(repository, &session, hold_id.0, &record)?;
    let key = layout::hold(backup_id, hold_id)?;
    records::create_unique(shard, repository, &key, &bytes).await?;
    let late = too_late(shard, repository, backup_id).await;
    if let Some(error) = late.unwrap_or_else(Some) {
        if let Err(kept) = repository.store().delete(shard, &key).await {
            tracing::debug!(error = %kept, "a hold that was refused stays");
        }
        return Err(error);
    }
    Ok(Hold {
        hold_id,
        backup_id,
        reason: Some(body.reason),
        host: Some(body.host),
        created: Some(body.created),
        problem: None,
    })
}

/// Whether an `expire` may have looked for holds before this one was made.
async fn too_late(
    shard: &Shard,
    repository: &Repository,
    backup: BackupId,
) -> Result<Option<Error>> {
    let marks = tombstones::list(shard, repository).await?;
    let (standing, _) = sessions::ids(shard, repository).await?;
    for session in marks.get(&backup).into_iter().flatten() {
        // A listing that lags may not show it: its tombstone tells of it.
        let stands =
            standing.contains(session) || sessions::stands(shard, repository, *session).await?;
        // Be its process dead: a deletion that it asked for may still arrive.
        if stands {
            return Ok(Some(
                Error::new(Kind::Conflict, "an expire is about to delete the backup")
                    .object(backup.to_string())
                    .hint(format!(
                        "try again when it has ended; if it is dead: `helios-mover expire --forget-session {session} --confirm`"
                    )),
            ));
        }
    }
    let stands = catalogue::stands(shard, repository, backup).await?;
    let gone = || Error::new(Kind::NotFound, "the backup was deleted").object(backup.to_string());
    Ok((!stands).then(gone))
}

/// Backup and id of all holds, for who deletes. Needs no key. A name among them that no hold has is an error: it might be one.
pub(crate) async fn ids(shard: &Shard, repository: &Repository) -> Result<Vec<(BackupId, HoldId)>> {
    let (ids, strays) = ids_below(shard, repository, layout::HOLDS).await?;
    match strays.first() {
        Some(stray) => Err(stray_name(stray, "holds")),
        None => Ok(ids),
    }
}

/// Backup and id of the holds below `prefix`, and the names there that no hold has.
async fn ids_below(
    shard: &Shard,
    repository: &Repository,
    prefix: &str,
) -> Result<(Vec<(BackupId, HoldId)>, Vec<String>)> {
    let found = records::names(shard, repository, prefix).await?;
    let (mut ids, mut strays) = (Vec::new(), found.strays);
    for key in &found.keys {
        match layout::hold_of(key) {
            Some(id) => ids.push(id),
            None => records::keep_stray(&mut strays, key),
        }
    }
    Ok((ids, strays))
}

/// How many holds there are on each backup. Needs no key.
pub async fn counts(shard: &Shard, repository: &Repository) -> Result<BTreeMap<BackupId, u64>> {
    let mut counts = BTreeMap::new();
    for key in &records::names(shard, repository, layout::HOLDS).await?.keys {
        if let Some((backup, _)) = layout::hold_of(key) {
            *counts.entry(backup).or_default() += 1;
        }
    }
    Ok(counts)
}

/// All holds, and the names among them that are none.
pub async fn list(shard: &Shard, repository: &Repository) -> Result<HoldListing> {
    let (ids, strays) = ids_below(shard, repository, layout::HOLDS).await?;
    let holds = read(shard, repository, ids).await?;
    Ok(HoldListing { holds, strays })
}

/// The holds on one backup. One that cannot be read is there with its problem.
pub async fn of(shard: &Shard, repository: &Repository, backup: BackupId) -> Result<Vec<Hold>> {
    let (ids, _) = ids_below(shard, repository, &layout::holds(backup)).await?;
    read(shard, repository, ids).await
}

async fn read(
    shard: &Shard,
    repository: &Repository,
    ids: Vec<(BackupId, HoldId)>,
) -> Result<Vec<Hold>> {
    let mut holds = Vec::new();
    for (backup_id, hold_id) in ids {
        let key = layout::hold(backup_id, hold_id)?;
        let mut hold = Hold {
            hold_id,
            backup_id,
            reason: None,
            host: None,
            created: None,
            problem: None,
        };
        match records::get(shard, repository, &key, ObjectType::Hold, hold_id.0).await {
            Ok(open) => match open.record {
                Record::Hold(body) if body.backup_id == backup_id => {
                    hold.reason = Some(body.reason);
                    hold.host = Some(body.host);
                    hold.created = Some(body.created);
                }
                _ => hold.problem = Some("the hold was made for another backup".to_owned()),
            },
            Err(error) if error.is_absence() => continue,
            Err(error) if records::is_unreadable(&error) => {
                hold.problem = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        holds.push(hold);
    }
    Ok(holds)
}

/// Whether a hold stands, by its name and not by a listing. Needs no key.
pub async fn stands(
    shard: &Shard,
    repository: &Repository,
    backup: BackupId,
    hold: HoldId,
) -> Result<bool> {
    let key = layout::hold(backup, hold)?;
    Ok(repository.store().head(shard, &key).await?.is_some())
}

/// Takes a hold away of which the whole id is known, if it stands.
pub async fn take_away(
    shard: &Shard,
    repository: &Repository,
    backup: BackupId,
    hold: HoldId,
) -> Result<()> {
    let key = layout::hold(backup, hold)?;
    match repository.store().delete(shard, &key).await {
        Err(error) if !error.is_absence() => Err(error),
        _ => Ok(()),
    }
}

/// Takes the hold away whose id begins so.
pub async fn remove(
    shard: &Shard,
    repository: &Repository,
    text: &str,
) -> Result<(BackupId, HoldId)> {
    let (found, _) = ids_below(shard, repository, layout::HOLDS).await?;
    let wanted = records::only_match(found.iter().map(|(_, id)| *id), text, "hold")
        .map_err(|error| error.hint("`helios-mover hold list` shows the holds"))?;
    let backup = found.iter().find(|(_, id)| *id == wanted);
    let backup = backup.map(|(backup, _)| *backup).ok_or_else(|| {
        Error::new(Kind::Internal, "a hold was found and lost").object(wanted.to_string())
    })?;
    let key = layout::hold(backup, wanted)?;
    repository.store().delete(shard, &key).await?;
    Ok((backup, wanted))
}

#[cfg(test)]
mod tests {
    use mover_store::{Key, STRAYS_MAX};

    use super::*;
    use crate::{Credentials, fixture};

    #[test]
    fn of_many_strays_among_the_holds_some_are_told() {
        fixture::with_place(async |shard, url| {
            fixture::init(shard, url, &[]).await?;
            let repository = fixture::open(shard, url, &Credentials::None).await?;
            for number in 0..STRAYS_MAX + 5 {
                let key = Key::new(&format!("{}x{number}", layout::HOLDS))?;
                repository
                    .store()
                    .put_if_absent(shard, &key, b"not ours")
                    .await?;
            }
            let listed = list(shard, &repository).await?;
            assert!(listed.holds.is_empty(), "{listed:?}");
            assert_eq!(listed.strays.len(), STRAYS_MAX);
            Ok(())
        });
    }
}
