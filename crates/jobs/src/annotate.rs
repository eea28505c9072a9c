//! `annotate`: notes on a backup that was made already.

use std::collections::{BTreeMap, BTreeSet};

use mover_base::{BackupId, Error, Kind, Result};
use mover_io::Shard;
use mover_repo::{Repository, annotations, catalogue};
use serde::Serialize;

use crate::backup::only;
use crate::settings::{Engine, RepoAccess};

/// What to change.
#[derive(Debug, Clone, Default)]
pub struct AnnotateOptions {
    /// The backup: an id, the beginning of one, or `latest`.
    pub set: String,
    /// Keys and values to put in.
    pub put: BTreeMap<String, String>,
    /// Keys to take away.
    pub remove: BTreeSet<String>,
}

/// What was changed.
#[derive(Debug, Serialize)]
pub struct Annotated {
    /// The backup.
    pub backup_id: BackupId,
    /// The place of this change among those of the backup.
    pub number: u32,
    /// Keys that were to be taken away and were not there, as far as that could be read.
    pub absent: Vec<String>,
}

/// Changes the annotations of a backup. Works without a key that reads.
pub fn run(engine: &Engine, repo: &RepoAccess, options: &AnnotateOptions) -> Result<Annotated> {
    if options.put.is_empty() && options.remove.is_empty() {
        return Err(Error::new(Kind::Usage, "nothing is to be changed")
            .hint("give KEY=VALUE, or --remove KEY"));
    }
    if let Some(key) = options
        .remove
        .iter()
        .find(|key| options.put.contains_key(*key))
    {
        return Err(Error::new(Kind::Usage, "a key is both set and removed").object(key));
    }
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        let id = catalogue::find(&shard, &repository, &options.set).await?;
        let (put, remove) = (&options.put, &options.remove);
        let changes = annotations::of(&shard, &repository, id).await?;
        let there = known(&shard, &repository, id, &changes).await;
        if let Some(there) = &there {
            annotations::require_room(there, put, remove)
                .map_err(|error| error.object(id.to_string()))?;
        }
        let is_absent = |key: &&String| there.as_ref().is_some_and(|all| !all.contains_key(*key));
        Ok(Annotated {
            backup_id: id,
            number: annotations::change(&shard, &repository, id, &changes, put, remove).await?,
            absent: remove.iter().filter(is_absent).cloned().collect(),
        })
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}

/// The annotations of a backup. None where they cannot be read: a change needs no key that reads.
async fn known(
    shard: &Shard,
    repository: &Repository,
    id: BackupId,
    changes: &annotations::Changes,
) -> Option<BTreeMap<String, String>> {
    if !repository.can_read() {
        return None;
    }
    let current = annotations::current(shard, repository, id, changes)
        .await
        .ok();
    current.map(|(there, _)| there)
}
