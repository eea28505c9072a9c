//! `key`: who can open a repository.

use mover_base::Result;
use mover_io::Shard;
use mover_repo::{Credentials, LinkLimits, Repository, Secret};

use crate::backup::only;
use crate::settings::{Engine, RepoAccess};

pub use mover_repo::{ListedSlot, SlotInfo, SlotListing, generate_identity};

/// What to say of an encrypted repository that no key opens any more.
pub const LOCKED_OUT: &str = SlotListing::LOCKED_OUT;
/// What to do about that.
pub const LOCKED_OUT_HINT: &str = SlotListing::LOCKED_OUT_HINT;

/// The warning of that for whoever writes without a key, and so would not notice. Where the slots cannot be listed or read, which
/// such a host need not be allowed to, there is none.
pub(crate) async fn locked_out_warning(shard: &Shard, repository: &Repository) -> Option<String> {
    if repository.can_read() {
        return None;
    }
    let slots = repository.slots(shard).await.ok()?;
    slots
        .is_locked_out()
        .then(|| format!("{LOCKED_OUT}; {LOCKED_OUT_HINT}"))
}

/// The key slots of the repository at `url`, damaged ones too and those that could not be read. Needs no key, and so works for whom
/// no key is left.
pub fn list(engine: &Engine, url: &str, link: &LinkLimits) -> Result<SlotListing> {
    let repo = RepoAccess {
        url: url.to_owned(),
        credentials: Credentials::None,
        link: link.clone(),
    };
    with(engine, &repo, async |shard, repository| {
        repository.slots(&shard).await
    })
}

/// Adds a slot for a passphrase.
pub fn add_passphrase(
    engine: &Engine,
    repo: &RepoAccess,
    new: &Secret,
    label: &str,
) -> Result<SlotInfo> {
    with(engine, repo, async |shard, repository| {
        repository.add_passphrase(&shard, new, label).await
    })
}

/// Adds a slot for whoever holds the identity of an age recipient; without a label it is called by how that begins.
pub fn add_recipient(
    engine: &Engine,
    repo: &RepoAccess,
    recipient: &str,
    label: Option<&str>,
) -> Result<SlotInfo> {
    with(engine, repo, async |shard, repository| {
        repository.add_recipient(&shard, recipient, label).await
    })
}

/// Removes the slot whose id begins so, intact or damaged; only where the key that is given opens another one. One that cannot be
/// read stays.
pub fn remove(engine: &Engine, repo: &RepoAccess, slot_prefix: &str) -> Result<ListedSlot> {
    with(engine, repo, async |shard, repository| {
        repository
            .remove_slot(&shard, slot_prefix, &repo.credentials)
            .await
    })
}

fn with<T: Send>(
    engine: &Engine,
    repo: &RepoAccess,
    work: impl AsyncFn(Shard, Repository) -> Result<T> + Sync,
) -> Result<T> {
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        work(shard, repository).await
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}
