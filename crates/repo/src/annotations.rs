//! Annotations that were changed after the backup was made.
//!
//! Invariants: a manifest never changes; each change is an object of its own with the next free number, and creating it if
//! absent decides the order, whatever clocks say.

use std::collections::{BTreeMap, BTreeSet};

use mover_base::units::format_bytes;
use mover_base::{BackupId, Error, Kind, Result, Timestamp};
use mover_format::manifest::METADATA_BYTES_MAX;
use mover_format::preamble::ObjectType;
use mover_format::record::{ANNOTATIONS_MAX, AnnotationRecord, Record};
use mover_io::Shard;
use mover_store::Put;

use crate::repository::Repository;
use crate::{catalogue, layout, process, records};

/// How often the next number is tried when others take it.
const TRIES: usize = 100;

/// Numbers of the changes, by backup.
pub type Changes = BTreeMap<BackupId, BTreeSet<u32>>;

/// Adds a change to the annotations of a backup, behind those that are `known`, and returns its number. Whether they still fit with
/// it is asked before: [`require_room`].
pub async fn change(
    shard: &Shard,
    repository: &Repository,
    backup_id: BackupId,
    known: &Changes,
    set: &BTreeMap<String, String>,
    remove: &BTreeSet<String>,
) -> Result<u32> {
    let last = known.get(&backup_id).and_then(BTreeSet::last).copied();
    let first = last.unwrap_or(0) + 1;
    for number in first..=ANNOTATIONS_MAX.min(first.saturating_add(TRIES as u32)) {
        let record = Record::Annotation(AnnotationRecord {
            backup_id,
            number,
            remove: remove.clone(),
            set: set.clone(),
            host: process::host_name(),
            created: Timestamp::now(),
        });
        // A session for each: what it seals differs only in the number.
        let session = repository.begin_session()?;
        let id = AnnotationRecord::object_id(backup_id, number);
        let bytes = records::encode(repository, &session, id, &record)?;
        let key = layout::annotation(backup_id, number)?;
        if repository
            .store()
            .put_if_absent(shard, &key, &bytes)
            .await?
            == Put::Created
        {
            return Ok(number);
        }
    }
    Err(match first > ANNOTATIONS_MAX {
        true => Error::new(
            Kind::Limit,
            format!("the annotations were changed over {ANNOTATIONS_MAX} times"),
        ),
        false => Error::new(Kind::Conflict, "others change the annotations").hint("try again"),
    }
    .object(backup_id.to_string()))
}

/// Which changes there are, for all backups. Needs no key.
pub async fn list(shard: &Shard, repository: &Repository) -> Result<Changes> {
    below(shard, repository, layout::ANNOTATIONS).await
}

/// Which changes there are of one backup. Needs no key.
pub async fn of(shard: &Shard, repository: &Repository, backup: BackupId) -> Result<Changes> {
    below(shard, repository, &layout::annotations(backup)).await
}

async fn below(shard: &Shard, repository: &Repository, prefix: &str) -> Result<Changes> {
    let mut changes = Changes::new();
    for key in &records::names(shard, repository, prefix).await?.keys {
        if let Some((backup, number)) = layout::annotation_of(key) {
            changes.entry(backup).or_default().insert(number);
        }
    }
    Ok(changes)
}

/// What stands around the key and the text of each annotation in a manifest: `"":"",`.
const JSON_BYTES: usize = 6;

/// Whether annotations with a change are no longer than what a manifest may hold.
fn fits(
    annotations: &BTreeMap<String, String>,
    set: &BTreeMap<String, String>,
    remove: &BTreeSet<String>,
) -> bool {
    let kept = annotations.iter();
    let kept = kept.filter(|(key, _)| !remove.contains(*key) && !set.contains_key(*key));
    let bytes = kept
        .chain(set)
        .map(|(key, text)| key.len() + text.len() + JSON_BYTES);
    bytes.sum::<usize>() <= METADATA_BYTES_MAX
}

/// Refuses a change with which annotations would be longer than what a manifest may hold: nobody would apply it.
///
/// # Errors
/// `Limit`.
pub fn require_room(
    annotations: &BTreeMap<String, String>,
    set: &BTreeMap<String, String>,
    remove: &BTreeSet<String>,
) -> Result<()> {
    if fits(annotations, set, remove) {
        return Ok(());
    }
    let most = format_bytes(METADATA_BYTES_MAX as u64);
    Err(Error::new(
        Kind::Limit,
        format!("with this the annotations of the backup would take over {most}"),
    )
    .hint("take some away before: `helios-mover annotate SET --remove KEY`"))
}

/// The annotations of a backup with these changes, and what of these could not be read or does not fit.
pub async fn current(
    shard: &Shard,
    repository: &Repository,
    backup: BackupId,
    changes: &Changes,
) -> Result<(BTreeMap<String, String>, Vec<String>)> {
    let open = catalogue::load_head(shard, repository, backup).await?;
    let mut annotations = open.head.metadata.annotations;
    let problems = apply(shard, repository, backup, changes, &mut annotations).await?;
    Ok((annotations, problems))
}

/// Applies the changes of a backup to the annotations of its manifest. Gives what could not be read; the other changes
/// are applied all the same, but for those with which all together would be longer than what a manifest may hold.
pub async fn apply(
    shard: &Shard,
    repository: &Repository,
    backup: BackupId,
    changes: &Changes,
    annotations: &mut BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut is_overfull = false;
    for &number in changes.get(&backup).into_iter().flatten() {
        let key = layout::annotation(backup, number)?;
        let id = AnnotationRecord::object_id(backup, number);
        match records::get(shard, repository, &key, ObjectType::Annotation, id).await {
            Ok(open) => {
                let Record::Annotation(change) = open.record else {
                    continue;
                };
                if fits(annotations, &change.set, &change.remove) {
                    change.apply(annotations);
                } else if !std::mem::replace(&mut is_overfull, true) {
                    problems.push(format!(
                        "{}: with it the annotations would take over {}; it is left out, and so is each change behind it with which they would",
                        key.as_str(),
                        format_bytes(METADATA_BYTES_MAX as u64)
                    ));
                }
            }
            Err(error) if records::is_unreadable(&error) => {
                problems.push(error.to_string());
            }
            // The backup was deleted meanwhile.
            Err(error) if error.is_absence() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Credentials, fixture};

    /// Whoever may write can make as many as there are numbers.
    #[test]
    fn changes_of_annotations_do_not_grow_beyond_what_a_manifest_may_hold() {
        const CHANGES: u32 = 20;
        fixture::with_place(async |shard, url| {
            fixture::init(shard, url, &[]).await?;
            let repository = fixture::open(shard, url, &Credentials::None).await?;
            let backup_id = BackupId::new(Timestamp::from_micros(1_000_000), 7);
            let text = "x".repeat(60_000);
            for number in 1..=CHANGES {
                let (remove, set) = match number {
                    // Behind changes that do not fit: one key less, which is room for the last one.
                    CHANGES => (
                        BTreeSet::from(["key-1".to_owned()]),
                        BTreeMap::from([("key-2".to_owned(), "short".to_owned())]),
                    ),
                    _ => (
                        BTreeSet::new(),
                        BTreeMap::from([(format!("key-{number}"), text.clone())]),
                    ),
                };
                let record = Record::Annotation(AnnotationRecord {
                    backup_id,
                    number,
                    remove,
                    set,
                    host: process::host_name(),
                    created: Timestamp::now(),
                });
                let session = repository.begin_session()?;
                let id = AnnotationRecord::object_id(backup_id, number);
                let bytes = records::encode(&repository, &session, id, &record)?;
                let key = layout::annotation(backup_id, number)?;
                repository
                    .store()
                    .put_if_absent(shard, &key, &bytes)
                    .await?;
            }
            let changes = of(shard, &repository, backup_id).await?;
            assert_eq!(changes[&backup_id].len(), CHANGES as usize);
            let mut annotations = BTreeMap::new();
            let problems = apply(shard, &repository, backup_id, &changes, &mut annotations).await?;
            let fit = METADATA_BYTES_MAX / text.len();
            assert_eq!(
                (annotations.len(), problems.len()),
                (fit - 1, 1),
                "{problems:?}"
            );
            assert_eq!(annotations["key-2"], "short");
            Ok(())
        });
    }

    #[test]
    fn a_change_that_nobody_would_apply_is_refused() {
        let text = |bytes: usize| "x".repeat(bytes);
        let of = |key: &str, bytes: usize| BTreeMap::from([(key.to_owned(), text(bytes))]);
        let none = BTreeSet::new();
        let most = METADATA_BYTES_MAX - JSON_BYTES - 1;
        let full = of("a", most);
        require_room(&BTreeMap::new(), &full, &none).unwrap();
        require_room(&full, &of("a", most), &none).unwrap();
        require_room(&full, &of("b", most), &BTreeSet::from(["a".to_owned()])).unwrap();
        for (set, why) in [(of("a", most + 1), "longer"), (of("b", 0), "one more")] {
            let refused = require_room(&full, &set, &none).unwrap_err();
            assert_eq!(refused.kind(), Kind::Limit, "{why}");
        }
    }
}
