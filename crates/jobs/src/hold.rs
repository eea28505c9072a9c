//! `hold`: backups that must not be deleted, whatever the policy says.

use mover_base::{BackupId, Error, HoldId, Kind, Result};
use mover_io::Shard;
use mover_repo::holds;
use serde::Serialize;

use crate::backup::only;
use crate::settings::{Engine, RepoAccess};

pub use mover_repo::holds::{Hold, HoldListing};

/// A hold that was taken away.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RemovedHold {
    /// Its id.
    pub hold_id: HoldId,
    /// The backup that it held.
    pub backup_id: BackupId,
}

/// Puts a hold on a backup: an id, the beginning of one, or `latest`.
pub fn add(engine: &Engine, repo: &RepoAccess, set: &str, reason: &str) -> Result<Hold> {
    if reason.trim().is_empty() {
        return Err(Error::new(Kind::Usage, "a hold needs a reason")
            .hint("say why the backup must stay: --reason TEXT"));
    }
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        holds::add(&shard, &repository, set, reason).await
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}

/// All holds, and the names among them that are none.
pub fn list(engine: &Engine, repo: &RepoAccess) -> Result<HoldListing> {
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        holds::list(&shard, &repository).await
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}

/// Takes the hold away whose id begins so.
pub fn remove(engine: &Engine, repo: &RepoAccess, hold: &str) -> Result<RemovedHold> {
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        let (backup_id, hold_id) = holds::remove(&shard, &repository, hold).await?;
        Ok(RemovedHold { hold_id, backup_id })
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}
