//! Sessions under way: who builds on which backup and writes packs that no manifest names yet.
//!
//! A backup creates its session object before it reads its parent and looks at the parent again afterwards; who deletes
//! backups puts up tombstones before it lists the sessions. So one of the two sees the other, whatever their clocks say.
//!
//! Invariants: a session object that stands protects what it names, also if its process is dead; it is taken away by its
//! owner, by an `expire` that knows it to be over or dead, or by an operator. A writer that cannot know whether its
//! manifest was created leaves its session object alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use mover_base::{BackupId, Error, Kind, Result, SessionId, Timestamp};
use mover_format::preamble::ObjectType;
use mover_format::record::{Purpose, Record, SessionRecord};
use mover_format::seal::Origin;
use mover_io::Shard;

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
    /// Whether the owner still has to take it away if the job fails.
    is_open: AtomicBool,
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
        records::create_unique(shard, repository, &layout::session(id)?, &bytes).await?;
        Ok(Registration {
            repository: repository.clone(),
            id,
            is_open: AtomicBool::new(true),
        })
    }

    /// To be called before the manifest is created. From here on only [`end`](Self::end) takes the object away.
    pub(crate) async fn before_publishing(&self, shard: &Shard) -> Result<()> {
        if !stands(shard, &self.repository, self.id).await? {
            return Err(Error::new(
                Kind::Conflict,
                "the session was given up by an operator, so what it builds on may be gone; nothing was published",
            )
            .object(layout::session(self.id)?.as_str())
            .hint("run the backup again"));
        }
        self.is_open.store(false, SeqCst);
        Ok(())
    }

    /// Whether the job ended without taking the object away, and may do so.
    pub fn is_open(&self) -> bool {
        self.is_open.load(SeqCst)
    }

    /// Takes the object away. A host that may not delete leaves it, and the next `expire` takes it.
    pub async fn end(&self, shard: &Shard) {
        self.is_open.store(false, SeqCst);
        let ended = match layout::session(self.id) {
            Ok(key) => self.repository.store().delete(shard, &key).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "the session object stays; the next expire takes it away");
        }
    }
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
            None => strays.push(key.as_str().to_owned()),
        }
    }
    Ok((ids, strays))
}

/// All session objects that stand. A name among them that none has is an error: it might be one that was renamed.
pub(crate) async fn list(shard: &Shard, repository: &Repository) -> Result<Vec<Standing>> {
    let (ids, strays) = ids(shard, repository).await?;
    if let Some(stray) = strays.first() {
        return Err(stray_name(stray, "sessions"));
    }
    let mut found = Vec::new();
    for id in ids {
        shard.stop()?;
        let key = layout::session(id)?;
        let open = match records::get(shard, repository, &key, ObjectType::Session, id.0).await {
            Ok(open) => open,
            // It ended since it was listed.
            Err(error) if error.kind() == Kind::NotFound => continue,
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Limit) => {
                let what = format!("a session cannot be read: {}", error.message());
                return Err(Error::new(error.kind(), what).object(key.as_str()).hint(format!(
                    "if its process is dead: `helios-mover expire --forget-session {id} --confirm`"
                )));
            }
            Err(error) => return Err(error),
        };
        let Record::Session(record) = open.record else {
            let what = "a session object opened as another record";
            return Err(Error::new(Kind::Internal, what).object(key.as_str()));
        };
        found.push(Standing {
            id,
            life: process::life(record.process.as_ref()),
            record,
            origin: open.origin,
        });
    }
    Ok(found)
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
        error.hint("`helios-mover expire` without --confirm lists the sessions")
    })?;
    let key = layout::session(id)?;
    let running = match records::get(shard, repository, &key, ObjectType::Session, id.0).await {
        Ok(open) => match open.record {
            Record::Session(record) => process::life(record.process.as_ref()) == Life::Running,
            _ => false,
        },
        // What cannot be read can still be given up.
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
