//! Sessions under way: who builds on which backup and writes packs that no manifest names yet.
//!
//! A backup creates its session object before it reads its parent and looks at the parent again afterwards; who deletes
//! backups puts up tombstones before it lists the sessions. So one of the two sees the other, whatever their clocks say.
//!
//! Invariants: a session object that stands protects what it names, also if its process is dead; it is taken away by its
//! owner, by an `expire` that knows it to be over or dead, or by an operator. A writer that cannot know whether its
//! manifest was created leaves its session object alone. Until then the repository remembers the session as open, from before its
//! object is created: a job that fails or is cancelled anywhere in between can take it back ([`take_back`]). The id of a session
//! that makes a backup says under which id (`id_for`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mover_base::checksum::Sha256;
use mover_base::{BackupId, Error, Kind, Result, SessionId, Timestamp};
use mover_format::preamble::ObjectType;
use mover_format::record::{Purpose, Record, SessionRecord};
use mover_format::seal::Origin;
use mover_io::{Shard, random_bytes};
use mover_store::Key;

use crate::catalogue;
use crate::layout;
use crate::process::{self, Life};
use crate::records;
use crate::repository::{Repository, Session};
use crate::tombstones;

/// The session object of a running session.
pub struct Registration {
    repository: Arc<Repository>,
    id: SessionId,
}

/// The sessions of this process that are to be taken back if their jobs fail, each with the tombstones that it may have put
/// up. A job has one, and an `expire` as many tombstones as it deletes backups.
#[derive(Debug, Default)]
pub(crate) struct OpenSessions(Mutex<BTreeMap<SessionId, Vec<Key>>>);

impl OpenSessions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionId, Vec<Key>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session object that stands.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// Its id.
    pub id: SessionId,
    /// What it says.
    pub record: SessionRecord,
    /// Who wrote it, as far as its seal tells.
    pub origin: Origin,
    /// SHA-256 of its wrapped key, which its manifest carries too.
    pub wrapped_key_sha256: Sha256,
    /// What can be said of its process.
    pub life: Life,
}

impl Registration {
    /// Creates the session object; it is durable when this returns.
    pub(crate) async fn begin(
        shard: &Shard,
        repository: &Arc<Repository>,
        session: &Session,
        purpose: Purpose,
        parents: Vec<BackupId>,
    ) -> Result<Self> {
        let record = Record::Session(SessionRecord {
            purpose,
            parents,
            host: process::host_name(),
            process: process::this_process(),
            started: Timestamp::now(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        });
        let id = session.id();
        let bytes = records::encode(repository, session, id.0, &record)?;
        let registration = Registration {
            repository: repository.clone(),
            id,
        };
        // Before: an object whose creation was not answered may stand.
        repository.open_sessions().lock().insert(id, Vec::new());
        let created =
            records::create_unique(shard, repository, &layout::session(id)?, &bytes).await;
        match created {
            Ok(()) => Ok(registration),
            Err(error) => {
                // The object is another writer's.
                if error.kind() == Kind::Conflict {
                    registration.close();
                }
                Err(error)
            }
        }
    }

    /// Notes a tombstone that is about to be put up: it is taken back with the session.
    pub(crate) fn will_mark(&self, tombstone: Key) {
        let mut open = self.repository.open_sessions().lock();
        open.entry(self.id).or_default().push(tombstone);
    }

    /// To be called before what cannot be taken back: from here on only [`end`](Self::end) takes the object away.
    pub(crate) fn close(&self) {
        self.repository.open_sessions().lock().remove(&self.id);
    }

    /// To be called before the manifest is created, as [`close`](Self::close), which this does: so after all that can be found
    /// out about the manifest before.
    pub(crate) async fn before_publishing(&self, shard: &Shard) -> Result<()> {
        if !stands(shard, &self.repository, self.id).await? {
            return Err(Error::new(
                Kind::Conflict,
                "the session was given up by an operator, so what it builds on may be gone; nothing was published",
            )
            .object(layout::session(self.id)?.as_str())
            .hint("run the backup again"));
        }
        self.close();
        Ok(())
    }

    /// Takes the object away. What fails here is tried again by [`take_back`] if the job has failed, on a shard that was not
    /// stopped. A host that may not delete leaves the object, and the next `expire` takes it.
    pub(crate) async fn end(&self, shard: &Shard) {
        let ended = match layout::session(self.id) {
            Ok(key) => self.repository.store().delete(shard, &key).await,
            Err(error) => Err(error),
        };
        match ended {
            Err(error) if !error.is_absence() => {
                tracing::debug!(%error, "the session object stays; the next expire takes it away");
            }
            _ => self.close(),
        }
    }
}

/// Whether a job on `repository` has left a session open.
pub fn is_any_open(repository: &Repository) -> bool {
    !repository.open_sessions().lock().is_empty()
}

/// Takes the sessions of failed jobs on `repository` back, with their tombstones, which mean nothing without them. What is
/// still on its way to the store may appear later; the next `expire` takes that.
///
/// # Errors
/// Those of the store; what was not reached stays open.
pub async fn take_back(shard: &Shard, repository: &Repository) -> Result<()> {
    let open = repository.open_sessions().lock().clone();
    for (id, mut keys) in open {
        keys.push(layout::session(id)?);
        repository.store().delete_all(shard, &keys).await?;
        repository.open_sessions().lock().remove(&id);
    }
    Ok(())
}

/// The seconds of a backup's id as its session's id has them (40 bits hold every year of four digits). What comes before is
/// random; behind them stands the second half of the backup's id.
const SECONDS: Range<usize> = 7..12;

/// A session id for the backup that `backup` was drawn for. So each pack, whose preamble names its session, leads to the manifest
/// of the backup that wrote it, whatever a listing leaves out.
pub(crate) fn id_for(backup: BackupId) -> Result<SessionId> {
    let mut id: [u8; 16] = random_bytes()?;
    let object_id = backup.object_id();
    id[SECONDS].copy_from_slice(&object_id[8 - SECONDS.len()..8]);
    id[SECONDS.end..].copy_from_slice(&object_id[12..]);
    Ok(SessionId(id))
}

/// The ids that the backup of a session may have, in the order in which they are tried. Nobody has those of a session that makes
/// no backup, or that an earlier version began.
pub(crate) fn backups_of(id: SessionId) -> impl Iterator<Item = BackupId> {
    let (mut seconds, mut second_half) = ([0; 8], [0; 4]);
    seconds[8 - SECONDS.len()..].copy_from_slice(&id.0[SECONDS]);
    second_half.copy_from_slice(&id.0[SECONDS.end..]);
    let start = Timestamp::from_micros(i64::from_be_bytes(seconds) * 1_000_000);
    catalogue::tried_ids(BackupId::new(start, u32::from_be_bytes(second_half)))
}

/// Whether a session's object is there. Needs no key.
pub(crate) async fn stands(shard: &Shard, repository: &Repository, id: SessionId) -> Result<bool> {
    let key = layout::session(id)?;
    Ok(repository.store().head(shard, &key).await?.is_some())
}

/// Why nothing new may build on a backup, if so. To be asked after the session was registered, and in this order: a
/// tombstone goes only after the manifest.
pub(crate) async fn lost_parent(
    shard: &Shard,
    repository: &Repository,
    parent: BackupId,
) -> Result<Option<&'static str>> {
    if tombstones::is_marked(shard, repository, parent).await? {
        return Ok(Some("is about to be deleted"));
    }
    let stands = catalogue::stands(shard, repository, parent).await?;
    Ok((!stands).then_some("was deleted meanwhile"))
}

/// Ids of all session objects, and the names among them that none has. Needs no key.
pub(crate) async fn ids(
    shard: &Shard,
    repository: &Repository,
) -> Result<(Vec<SessionId>, Vec<String>)> {
    let found = records::names(shard, repository, layout::SESSIONS).await?;
    let mut strays = found.strays;
    let mut ids = Vec::new();
    for key in &found.keys {
        match layout::session_of(key) {
            Some(id) => ids.push(id),
            None => records::keep_stray(&mut strays, key),
        }
    }
    Ok((ids, strays))
}

/// All session objects that stand, in the order in which they are listed. A name among them that none has is an error: it might be
/// one that was renamed.
pub(crate) async fn list(shard: &Shard, repository: &Arc<Repository>) -> Result<Vec<Standing>> {
    let (ids, strays) = ids(shard, repository).await?;
    if let Some(stray) = strays.first() {
        return Err(stray_name(stray, "sessions"));
    }
    // Hosts that may not delete leave one for each backup.
    let read = |id: SessionId| {
        let (shard, repository) = (shard.clone(), repository.clone());
        async move { standing(&shard, &repository, id).await }
    };
    let found = records::at_once(shard, ids, read).await?;
    Ok(found.into_iter().flatten().collect())
}

/// Reads the session object of this id; none if it ended since it was listed.
async fn standing(
    shard: &Shard,
    repository: &Repository,
    id: SessionId,
) -> Result<Option<Standing>> {
    let key = layout::session(id)?;
    let open = match records::get(shard, repository, &key, ObjectType::Session, id.0).await {
        Ok(open) => open,
        Err(error) if error.is_absence() => return Ok(None),
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Limit) => {
            let what = format!("a session cannot be read: {}", error.message());
            return Err(Error::new(error.kind(), what)
                .object(key.as_str())
                .hint(format!(
                    "if its process is dead: `helios-mover expire --forget-session {id} --confirm`"
                )));
        }
        Err(error) => return Err(error),
    };
    let Record::Session(record) = open.record else {
        let what = "a session object opened as another record";
        return Err(Error::new(Kind::Internal, what).object(key.as_str()));
    };
    Ok(Some(Standing {
        id,
        life: process::life(record.process.as_ref()),
        record,
        origin: open.origin,
        wrapped_key_sha256: open.wrapped_key_sha256,
    }))
}

/// A name where only names of records may stand.
pub(crate) fn stray_name(name: &str, among: &str) -> Error {
    Error::new(
        Kind::Corrupt,
        format!("a name among the {among} is none of theirs; it may be one that was renamed, so nothing is deleted"),
    )
    .object(name)
    .hint("give the object its name back, or move it out of the repository")
}

/// Takes the session object away whose id begins so, because an operator knows that its process is gone. One that
/// runs on this machine is refused.
pub async fn forget(shard: &Shard, repository: &Repository, text: &str) -> Result<SessionId> {
    let (ids, _) = ids(shard, repository).await?;
    let id = records::only_match(ids.into_iter(), text, "session").map_err(|error| {
        error.hint("`helios-mover expire --keep-last 1` without --confirm deletes nothing and lists the sessions")
    })?;
    let key = layout::session(id)?;
    let running = match records::get(shard, repository, &key, ObjectType::Session, id.0).await {
        Ok(open) => match open.record {
            Record::Session(record) => process::life(record.process.as_ref()) == Life::Running,
            _ => false,
        },
        Err(error) if error.kind() == Kind::Key => {
            return Err(error.hint(
                "without the key it cannot be told whether its process runs here: give the key as well, or run this where it is",
            ));
        }
        // What is damaged can still be given up.
        Err(error) if records::is_unreadable(&error) => false,
        Err(error) => return Err(error),
    };
    if running {
        return Err(
            Error::new(Kind::Conflict, "the session runs on this machine")
                .object(id.to_string())
                .hint("wait for its end, or end its process"),
        );
    }
    repository.store().delete(shard, &key).await?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_leads_to_its_backup_and_one_that_makes_none_to_nobodys() {
        let years = [0, 1_795_371_249_000_000, i64::MAX];
        for (start, second_half) in years.into_iter().zip([0, 0x7f3a_9c2e, u32::MAX]) {
            let backup = BackupId::new(Timestamp::from_micros(start), second_half);
            let (one, two) = (id_for(backup).unwrap(), id_for(backup).unwrap());
            assert_ne!(one, two, "the rest is random");
            for id in [one, two] {
                let tried: Vec<BackupId> = backups_of(id).collect();
                assert_eq!(tried, catalogue::tried_ids(backup).collect::<Vec<_>>());
                assert_eq!(tried.first(), Some(&backup));
            }
        }
        // Whatever the bytes: ids that can be looked up.
        for id in [[0; 16], [0xff; 16], *b"0123456789abcdef"] {
            for backup in backups_of(SessionId(id)) {
                assert_eq!(backup.to_string().parse::<BackupId>().unwrap(), backup);
            }
        }
    }
}
