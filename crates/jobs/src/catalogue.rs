//! `list` and `show`: what a repository holds.

use std::sync::Arc;

use mover_base::{BackupId, Kind, Result};
use mover_io::Shard;
use mover_repo::{BackupMetadata, BackupView, Origin, catalogue};
use serde::Serialize;

use crate::backup::only;
use crate::settings::{Engine, RepoAccess};

/// A backup in a listing.
#[derive(Debug, Serialize)]
pub struct ListItem {
    /// Its id.
    pub backup_id: BackupId,
    /// Whether its manifest could be read.
    pub readable: bool,
    /// What its manifest says.
    pub metadata: Option<BackupMetadata>,
    /// Why it could not be read.
    pub problem: Option<String>,
}

/// The backups of a repository.
#[derive(Debug, Serialize)]
pub struct BackupListing {
    /// The backups, oldest first. One that cannot be read is listed with its problem.
    pub backups: Vec<ListItem>,
    /// Names among the manifests that no manifest has; they were passed over.
    pub strays: Vec<String>,
}

/// A backup in full.
#[derive(Debug, Serialize)]
pub struct ShowDetails {
    /// What its manifest says.
    pub metadata: BackupMetadata,
    /// Packs that it needs.
    pub packs: u64,
    /// Their bytes; other backups may share them.
    pub pack_bytes: u64,
    /// Who wrote it: `master_key` (a writer that can read the repository), `recipient_only` (one that cannot:
    /// anybody who knows the public recipient could have written it), `none` (nothing is sealed).
    pub authenticity: &'static str,
}

/// All backups, oldest first.
pub fn list(engine: &Engine, repo: &RepoAccess) -> Result<BackupListing> {
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        let mut items = Vec::new();
        let found = catalogue::list_all(&shard, &repository).await?;
        for backup_id in found.ids {
            let item = match catalogue::load(&shard, &repository, backup_id).await {
                Ok(open) => ListItem {
                    backup_id,
                    readable: true,
                    metadata: Some(open.manifest.metadata),
                    problem: None,
                },
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Key | Kind::Limit) => {
                    let problem = Some(error.to_string());
                    ListItem {
                        backup_id,
                        readable: false,
                        metadata: None,
                        problem,
                    }
                }
                // It was deleted since it was listed.
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => return Err(error),
            };
            items.push(item);
        }
        Ok(BackupListing {
            backups: items,
            strays: found.strays,
        })
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}

/// One backup: an id, the beginning of one, or `latest`.
pub fn show(engine: &Engine, repo: &RepoAccess, set: &str) -> Result<ShowDetails> {
    let body = async |shard: Shard| {
        let repository = Arc::new(repo.open(&shard).await?);
        let id = catalogue::find(&shard, &repository, set).await?;
        let view = BackupView::open(&shard, &repository, id).await?;
        let (packs, pack_bytes) = view.pack_totals();
        let authenticity = match view.origin {
            _ if !repository.is_encrypted() => "none",
            Origin::Vouched => "master_key",
            Origin::WriteOnly => "recipient_only",
        };
        Ok(ShowDetails {
            metadata: view.metadata,
            packs,
            pack_bytes,
            authenticity,
        })
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}
