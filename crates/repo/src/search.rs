//! Which earlier backup the next one builds on.
//!
//! Invariants: manifests are read from the latest on, [`LOADS_MAX`] at most, and a few at a time as their lengths allow; one that cannot be read, or
//! for which nobody vouches, is passed over and told; what is about to be deleted is not looked at. Of those looked at one is decoded at a time, and that without its
//! entry pages: the best so far is known by its id, and read again in the end.

use std::fmt::Display;
use std::sync::Arc;

use mover_base::{BackupId, Kind, Result};
use mover_format::manifest::{BackupMetadata, MANIFEST_PACKS_MAX};
use mover_format::seal::Origin;
use mover_io::Shard;

use crate::catalogue::{self, OpenManifest};
use crate::repository::Repository;
use crate::tombstones;

/// How many of the latest backups, of whatever source, are looked through: those that a fleet of a thousand hosts makes between
/// two of one host, in some seconds over a link.
pub const LOADS_MAX: usize = 1024;
/// Most backups of which is told that they cannot serve.
const WARNINGS_MAX: usize = 10;
/// Why a backup that was made without the key is no parent.
pub(crate) const NOBODY_VOUCHES: &str =
    "it was written without the repository's key, so nobody vouches for it";
/// Manifests read at a time; one of a terabyte takes some 5 MB.
const LOADS_AT_ONCE: usize = 4;

/// A source, as manifests name it.
#[derive(Debug, Clone, Copy)]
pub struct SourceName<'a> {
    /// Its URL.
    pub url: &'a str,
    /// What kind of source it is.
    pub kind: &'a str,
    /// The host that it is on.
    pub host: &'a str,
}

impl SourceName<'_> {
    /// Whether a backup is of this source.
    pub fn is_of(&self, metadata: &BackupMetadata) -> bool {
        let of = &metadata.source;
        (of.url.as_str(), of.kind.as_str(), of.host.as_str()) == (self.url, self.kind, self.host)
    }

    /// Whether a backup is of the same place on any host: perhaps of this source, when its host had another name.
    fn is_namesake_of(&self, metadata: &BackupMetadata) -> bool {
        let of = &metadata.source;
        (of.url.as_str(), of.kind.as_str()) == (self.url, self.kind)
    }

    /// Whether a backup is of a source that this one may be a copy of.
    fn is_akin_to(&self, metadata: &BackupMetadata) -> bool {
        let of = &metadata.source;
        (of.kind.as_str(), of.host.as_str()) == (self.kind, self.host)
    }
}

/// What came before a backup.
#[derive(Default)]
pub struct Earlier {
    /// What it builds on.
    pub parent: Option<OpenManifest>,
    /// The latest backup of its source: its own id is to be behind this one, whatever it builds on.
    pub latest: Option<BackupId>,
    /// Why later backups cannot serve as the parent, and whose the parent may be.
    pub warnings: Vec<String>,
}

impl Earlier {
    fn pass_over(&mut self, id: BackupId, why: &dyn Display) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(no_parent(id, why));
        }
    }

    /// None, and it is passed over, where a backup is damaged, and one over a cap is damaged too; none in silence where it was deleted
    /// since it was listed.
    fn readable<T>(&mut self, id: BackupId, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.is_absence() => Ok(None),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Limit) => {
                self.pass_over(id, &error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Packs of a backup from which on no other one builds on it: three quarters of those that a manifest may list. Each backup that
/// does lists its packs too, as long as one block of them is needed, and at the cap none could be published any more.
const BUILT_ON_PACKS_MAX: usize = MANIFEST_PACKS_MAX / 4 * 3;

/// Why no other backup should build on one that lists so many packs, if so: their blocks are better stored anew.
pub fn too_many_packs(packs: usize) -> Option<String> {
    (packs > BUILT_ON_PACKS_MAX).then(|| {
        format!("it lists {packs} packs, of {MANIFEST_PACKS_MAX} that a backup can list; what is still needed of them is stored anew")
    })
}

/// The warning that an earlier backup is no parent.
pub(crate) fn no_parent(id: BackupId, why: &dyn Display) -> String {
    format!("backup {id} cannot serve as the parent: {why}")
}

/// How well a backup serves as the parent of another one, from worst to best. Of those that serve equally the latest is the one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Not,
    /// If there is no better one.
    Fair,
    /// Better, and none is good.
    Namesake,
    /// The search ends with it.
    Good,
}

/// The backup to build on: the latest of the same source that can be read; without one the latest of the same URL and kind on another
/// host, which most likely is the same one whose host changed its name, and a warning says so; without that the latest of another
/// source of its kind and host, say of the database that this one is a copy of.
pub async fn find_parent(
    shard: &Shard,
    repository: &Arc<Repository>,
    source: SourceName<'_>,
) -> Result<Earlier> {
    let fit = |metadata: &BackupMetadata| {
        if source.is_of(metadata) {
            Fit::Good
        } else if source.is_namesake_of(metadata) {
            Fit::Namesake
        } else if source.is_akin_to(metadata) {
            Fit::Fair
        } else {
            Fit::Not
        }
    };
    let mut earlier = search(shard, repository, source, fit).await?;
    let host = earlier.parent.as_ref().and_then(|parent| {
        let of = &parent.manifest.metadata.source;
        (of.url == source.url && of.host != source.host).then_some(of.host.as_str())
    });
    let warning = host.map(|host| other_host(host, source.host));
    earlier.warnings.extend(warning);
    Ok(earlier)
}

/// The warning that a source may be one whose host has changed its name.
fn other_host(known: &str, now: &str) -> String {
    format!(
        "among the newest backups that can be built on there is no backup of this source by host {now}, and there are some by host {known}: if it is the same database, give --host {known}; `expire` counts the backups of each host apart"
    )
}

/// The latest backup of this source that can be read and is `wanted`.
pub async fn find_latest(
    shard: &Shard,
    repository: &Arc<Repository>,
    source: SourceName<'_>,
    wanted: impl Fn(&BackupMetadata) -> bool,
) -> Result<Earlier> {
    let fit = |metadata: &BackupMetadata| match source.is_of(metadata) && wanted(metadata) {
        true => Fit::Good,
        false => Fit::Not,
    };
    search(shard, repository, source, fit).await
}

async fn search(
    shard: &Shard,
    repository: &Arc<Repository>,
    source: SourceName<'_>,
    fit: impl Fn(&BackupMetadata) -> Fit,
) -> Result<Earlier> {
    let (mut earlier, mut best) = (Earlier::default(), None::<(Fit, BackupId)>);
    if !repository.can_read() {
        return Ok(earlier);
    }
    let (listed, _) = catalogue::list_sized(shard, repository).await?;
    let expiring = tombstones::list(shard, repository).await?;
    let lasting: Vec<(BackupId, u64)> = listed
        .into_iter()
        .rev()
        .filter(|(id, _)| !expiring.contains_key(id))
        .take(LOADS_MAX)
        .collect();
    let mut lasting = &lasting[..];
    // Mostly the first is the one.
    let mut count = 1;
    while !lasting.is_empty() {
        let some = catalogue::fetch_next(shard, repository, &mut lasting, count).await?;
        count = (2 * count).min(LOADS_AT_ONCE);
        for (id, fetched) in some {
            let Some(stored) = earlier.readable(id, fetched)? else {
                continue;
            };
            let Some(seen) = earlier.readable(id, stored.head(repository))? else {
                continue;
            };
            let metadata = &seen.head.metadata;
            if !is_vouched(repository, seen.origin) {
                if source.is_of(metadata) {
                    earlier.pass_over(id, &NOBODY_VOUCHES);
                }
                continue;
            }
            if source.is_of(metadata) {
                earlier.latest.get_or_insert(id);
            }
            let fits = fit(metadata);
            // What follows may decode the same list of packs once more.
            drop(seen);
            if fits == Fit::Good {
                earlier.parent = earlier.readable(id, stored.open(repository))?;
                if earlier.parent.is_some() {
                    return Ok(earlier);
                }
            } else if fits > best.map_or(Fit::Not, |(fits, _)| fits) {
                best = Some((fits, id));
            }
        }
    }
    if let Some((_, id)) = best {
        // It may have been deleted meanwhile, damaged, or replaced.
        let open = earlier.readable(id, catalogue::load(shard, repository, id).await)?;
        match open {
            Some(open) if is_vouched(repository, open.origin) => earlier.parent = Some(open),
            Some(_) => earlier.pass_over(id, &NOBODY_VOUCHES),
            None => {}
        }
    }
    Ok(earlier)
}

/// Whoever knows no more than the public key can write a manifest that names another host, and packs that do not hold what they
/// say: nothing is built on that unread.
pub fn is_vouched(repository: &Repository, origin: Origin) -> bool {
    !repository.is_encrypted() || origin == Origin::Vouched
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_changed_its_name_is_told_how_to_keep_the_old_one() {
        let told = other_host("db7", "4f1c2a");
        assert!(told.contains("no backup of this source by host 4f1c2a"));
        assert!(told.contains("give --host db7;"), "{told}");
    }

    #[test]
    fn no_backup_builds_on_one_whose_packs_leave_no_room_for_more() {
        assert_eq!(too_many_packs(0), None);
        assert_eq!(too_many_packs(MANIFEST_PACKS_MAX / 4 * 3), None);
        let why = too_many_packs(MANIFEST_PACKS_MAX / 4 * 3 + 1).unwrap();
        assert!(why.contains("786433 packs"), "{why}");
    }
}
