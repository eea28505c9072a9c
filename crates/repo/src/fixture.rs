//! Repositories for this crate's own tests.

use mover_base::{BackupId, Result};
use mover_format::manifest::{BackupMetadata, BackupType, SourceInfo};
use mover_io::{Shard, ShardConfig};

use crate::{Credentials, InitRequest, LinkLimits, Repository, SlotInfo};

/// Runs `body` on a shard of its own with the URL of a place for a repository, which is gone afterwards.
pub(crate) fn with_place(body: impl AsyncFn(&Shard, &str) -> Result<()> + Sync) {
    let dir = tempfile::tempdir().expect("a directory");
    let url = format!("file://{}/repo", dir.path().display());
    let config = ShardConfig {
        shards: 1,
        pin: false,
        ..ShardConfig::default()
    };
    let run = async |shard: Shard| body(&shard, &url).await;
    mover_io::run(&config, run, |_| {}).expect("a run");
}

/// Makes a repository that `recipients` open, one that is not encrypted if there are none; returns its key slots.
pub(crate) async fn init(shard: &Shard, url: &str, recipients: &[String]) -> Result<Vec<SlotInfo>> {
    let request = InitRequest {
        encryption: !recipients.is_empty(),
        passphrase: None,
        recipients,
        label: None,
    };
    let (_, slots) = Repository::init(shard, url, &LinkLimits::default(), &request).await?;
    Ok(slots)
}

/// Opens it.
pub(crate) async fn open(
    shard: &Shard,
    url: &str,
    credentials: &Credentials,
) -> Result<Repository> {
    Repository::open(shard, url, &LinkLimits::default(), credentials).await
}

/// What a full backup of this id, which began when that says, has for metadata beside its sizes.
pub(crate) fn metadata(backup_id: BackupId, source: &str) -> BackupMetadata {
    BackupMetadata {
        backup_id,
        backup_type: BackupType::Full,
        reason: None,
        base_id: None,
        parent_id: None,
        lsn_range: None,
        history: None,
        log_mark: None,
        started: backup_id.started(),
        ended: backup_id.started(),
        source: SourceInfo {
            url: source.to_owned(),
            kind: "dir".to_owned(),
            host: "here".to_owned(),
        },
        tool_version: String::new(),
        annotations: Default::default(),
        size_info: Default::default(),
        storage_info: Default::default(),
        verification_info: Default::default(),
        replication_info: Default::default(),
    }
}
