//! `annotate`: notes on a backup that was made already.

use std::collections::{BTreeMap, BTreeSet};

use mover_base::{BackupId, Error, Kind, Result};
use mover_io::Shard;
use mover_repo::annotations;
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
        let (set, put, remove) = (&options.set, &options.put, &options.remove);
        let (backup_id, number) =
            annotations::change(&shard, &repository, set, put, remove).await?;
        Ok(Annotated { backup_id, number })
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}
