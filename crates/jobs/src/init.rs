//! `init`: makes a repository.

use mover_base::{RepoId, Result};
use mover_repo::{InitRequest, LinkLimits, Repository, Secret, SlotInfo};
use serde::Serialize;

use crate::backup::only;
use crate::settings::Engine;

/// What to make.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Where.
    pub url: String,
    /// Whether everything is sealed.
    pub encryption: bool,
    /// A passphrase that shall open it.
    pub passphrase: Option<Secret>,
    /// age recipients that shall be able to open it.
    pub recipients: Vec<String>,
    /// What the operator calls the key slots; without that, those of recipients are called by how they begin.
    pub label: Option<String>,
    /// Limits on the link to it.
    pub link: LinkLimits,
}

/// What was made.
#[derive(Debug, Serialize)]
pub struct InitSummary {
    /// URL of the repository.
    pub repository: String,
    /// Its id.
    pub repository_id: RepoId,
    /// `aes-256-gcm` or `none`.
    pub cipher: &'static str,
    /// The public recipient: enough for a host that shall write and not read.
    pub recipient: Option<String>,
    /// The key slots.
    pub slots: Vec<SlotInfo>,
}

/// Makes a repository; fails where one exists.
pub fn run(engine: &Engine, options: &InitOptions) -> Result<InitSummary> {
    let request = InitRequest {
        encryption: options.encryption,
        passphrase: options.passphrase.as_ref(),
        recipients: &options.recipients,
        label: options.label.as_deref(),
    };
    let init = async |shard| {
        let (repository, slots) =
            Repository::init(&shard, &options.url, &options.link, &request).await?;
        Ok(InitSummary {
            repository: repository.url().to_owned(),
            repository_id: repository.id(),
            cipher: if repository.is_encrypted() {
                "aes-256-gcm"
            } else {
                "none"
            },
            recipient: repository.recipient().map(str::to_owned),
            slots,
        })
    };
    only(mover_io::run(&engine.single(), init, |_| {})?)
}
