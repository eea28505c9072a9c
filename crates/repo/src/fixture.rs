//! Repositories for this crate's own tests.

use mover_base::Result;
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
