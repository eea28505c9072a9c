//! `list` and `show`: what a repository holds.
//!
//! Invariant: what a listing keeps of all backups together is bounded, whatever their manifests say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mover_base::units::format_bytes;
use mover_base::{BackupId, Error, Kind, Result};
use mover_io::Shard;
use mover_repo::annotations::{self, Changes};
use mover_repo::holds::{self, Hold};
use mover_repo::{
    BackupMetadata, BackupView, Origin, Repository, catalogue, expire, is_unreadable,
};
use serde::Serialize;

use crate::backup::only;
use crate::settings::{Engine, RepoAccess};

/// [`ShowDetails::authenticity`] of what a writer without the master key made.
pub const RECIPIENT_ONLY: &str = "recipient_only";

/// Most backups that are shown at once: what is kept of each takes some 2 KB.
const SHOWN_MAX: usize = 100_000;
/// Most memory that what is shown of all backups may take: so much of each of [`SHOWN_MAX`], and some more for long notes.
const SHOWN_BYTES_MAX: usize = 256 << 20;

/// A backup in a listing.
#[derive(Debug, Serialize)]
pub struct ListItem {
    /// Its id.
    pub backup_id: BackupId,
    /// Whether its manifest could be read.
    pub readable: bool,
    /// Whether an `expire` is about to delete it.
    pub expiring: bool,
    /// Holds on it.
    pub holds: u64,
    /// What its manifest says, with the annotations as they were changed since.
    pub metadata: Option<BackupMetadata>,
    /// Why it could not be read, or not all of what was noted of it later.
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
    /// What its manifest says, with the annotations as they were changed since.
    pub metadata: BackupMetadata,
    /// Whether an `expire` is about to delete it.
    pub expiring: bool,
    /// Holds on it.
    pub holds: Vec<Hold>,
    /// Packs that it needs.
    pub packs: u64,
    /// Their bytes; other backups may share them.
    pub pack_bytes: u64,
    /// Who wrote it: `master_key` (a writer that can read the repository), `recipient_only` (one that cannot:
    /// anybody who knows the public recipient could have written it), `none` (nothing is sealed).
    pub authenticity: &'static str,
    /// What was noted later and cannot be read.
    pub problems: Vec<String>,
}

/// All backups, oldest first.
pub fn list(engine: &Engine, repo: &RepoAccess) -> Result<BackupListing> {
    let body = async |shard: Shard| {
        let repository = repo.open(&shard).await?;
        let found = catalogue::list_all(&shard, &repository).await?;
        check_count(found.ids.len()).map_err(|error| error.object(repository.url()))?;
        let notes = Notes::read(&shard, &repository).await?;
        let (mut items, mut shown) = (Vec::new(), Shown::default());
        for id in found.ids {
            shard.stop()?;
            let Some(item) = item(&shard, &repository, id, &notes).await? else {
                continue;
            };
            shown.add(&item)?;
            items.push(item);
        }
        Ok(BackupListing {
            backups: items,
            strays: found.strays,
        })
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}

/// Whether so many backups can be shown.
fn check_count(backups: usize) -> Result<()> {
    if backups <= SHOWN_MAX {
        return Ok(());
    }
    let what = format!("{backups} backups are listed, and {SHOWN_MAX} are shown at most");
    Err(Error::new(Kind::Limit, what).hint(
        "`helios-mover expire` deletes those that a policy does not keep; other verbs take a backup's id, or latest",
    ))
}

/// How much memory the items of a listing take.
#[derive(Default)]
struct Shown {
    bytes: usize,
    /// The backup that takes most of it, and how much that is.
    most: Option<(usize, BackupId)>,
}

impl Shown {
    /// Takes one more into account.
    ///
    /// # Errors
    /// `Limit` if all of them take too much; it names the one that takes most.
    fn add(&mut self, item: &ListItem) -> Result<()> {
        let metadata = item.metadata.as_ref();
        let texts = metadata.map_or(0, BackupMetadata::memory_bytes);
        let problem = item.problem.as_ref().map_or(0, String::len);
        let bytes = size_of::<ListItem>() + texts + problem;
        self.bytes = self.bytes.saturating_add(bytes);
        let this = (bytes, item.backup_id);
        let most = self.most.map_or(this, |most| most.max(this));
        self.most = Some(most);
        if self.bytes <= SHOWN_BYTES_MAX {
            return Ok(());
        }
        let limit = format_bytes(SHOWN_BYTES_MAX as u64);
        let (bytes, id) = most;
        let what = format!(
            "what is noted of the backups takes over {limit}, and {} of that one of them",
            format_bytes(bytes as u64)
        );
        Err(Error::new(Kind::Limit, what).object(id.to_string()).hint(
            "`helios-mover expire` deletes backups that a policy does not keep; if no host of yours made this one, delete its manifest with \
             the storage's own tools; other verbs take a backup's id, or latest",
        ))
    }
}

/// What stands beside the manifests.
struct Notes {
    expiring: BTreeSet<BackupId>,
    held: BTreeMap<BackupId, u64>,
    changes: Changes,
}

impl Notes {
    async fn read(shard: &Shard, repository: &Repository) -> Result<Self> {
        Ok(Notes {
            expiring: expire::expiring(shard, repository).await?,
            held: holds::counts(shard, repository).await?,
            changes: annotations::list(shard, repository).await?,
        })
    }
}

/// One backup of a listing; none if it was deleted since it was listed.
async fn item(
    shard: &Shard,
    repository: &Repository,
    backup_id: BackupId,
    notes: &Notes,
) -> Result<Option<ListItem>> {
    let mut item = ListItem {
        backup_id,
        readable: false,
        expiring: notes.expiring.contains(&backup_id),
        holds: notes.held.get(&backup_id).copied().unwrap_or(0),
        metadata: None,
        problem: None,
    };
    match catalogue::load_head(shard, repository, backup_id).await {
        Ok(open) => {
            let mut metadata = open.head.metadata;
            let of = &mut metadata.annotations;
            let problems =
                annotations::apply(shard, repository, backup_id, &notes.changes, of).await?;
            item.readable = true;
            item.metadata = Some(metadata);
            item.problem = problems.into_iter().next();
        }
        Err(error) if is_unreadable(&error) => {
            item.problem = Some(error.to_string());
        }
        Err(error) if error.is_absence() => return Ok(None),
        Err(error) => return Err(error),
    }
    Ok(Some(item))
}

/// What a backup's seal says of who wrote it: `master_key`, `recipient_only`, or `none` in a repository without encryption.
pub(crate) fn authenticity(repository: &Repository, origin: Origin) -> &'static str {
    match origin {
        _ if !repository.is_encrypted() => "none",
        Origin::Vouched => "master_key",
        Origin::WriteOnly => RECIPIENT_ONLY,
    }
}

/// One backup: an id, the beginning of one, or `latest`.
pub fn show(engine: &Engine, repo: &RepoAccess, set: &str) -> Result<ShowDetails> {
    let body = async |shard: Shard| {
        let repository = Arc::new(repo.open(&shard).await?);
        let id = catalogue::find(&shard, &repository, set).await?;
        let view = BackupView::open(&shard, &repository, id).await?;
        let (packs, pack_bytes) = view.pack_totals();
        let authenticity = authenticity(&repository, view.origin);
        let mut metadata = view.metadata;
        let changes = annotations::of(&shard, &repository, id).await?;
        let of = &mut metadata.annotations;
        let problems = annotations::apply(&shard, &repository, id, &changes, of).await?;
        Ok(ShowDetails {
            expiring: expire::is_expiring(&shard, &repository, id).await?,
            metadata,
            holds: holds::of(&shard, &repository, id).await?,
            packs,
            pack_bytes,
            authenticity,
            problems,
        })
    };
    only(mover_io::run(&engine.single(), body, |_| {})?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_takes_too_much_names_the_backup_that_takes_most() {
        let item = |number: u32, problem_bytes: usize| ListItem {
            backup_id: BackupId::new(mover_base::Timestamp::from_micros(0), number),
            readable: false,
            expiring: false,
            holds: 0,
            metadata: None,
            problem: Some("x".repeat(problem_bytes)),
        };
        let (long, longest) = (item(1, 1 << 20), item(2, 3 << 20));
        let mut shown = Shown::default();
        shown.add(&longest).unwrap();
        let added = (0..).map_while(|_| shown.add(&long).ok()).count();
        assert_eq!(added, 252);
        let error = shown.add(&long).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit);
        assert_eq!(
            error.object_name(),
            Some(longest.backup_id.to_string().as_str())
        );
        assert!(error.hint_text().unwrap().contains("helios-mover expire"));
    }

    #[test]
    fn what_cannot_be_shown_says_how_to_have_less() {
        check_count(100_000).unwrap();
        let error = check_count(100_001).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit);
        assert!(error.hint_text().unwrap().contains("helios-mover expire"));
    }
}
