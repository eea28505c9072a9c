//! What an incremental or differential backup of a page store stands on: its base, and what changed since by the log.
//!
//! Invariants: a base is used only if everything between it and now is known: the same history, the same log up to the
//! base's end, every record since, and every pack that the base needs. Whatever else is found makes the backup a full
//! one, with the reason; nothing is guessed.

use std::sync::Arc;

use mover_base::{BackupId, Error, Kind, Lsn, LsnRange, Result, hex};
use mover_io::Shard;
use mover_repo::catalogue::{self, OpenManifest};
use mover_repo::verify::missing_pack;
use mover_repo::{
    BackupMetadata, BackupType, Earlier, LogMark, Repository, SourceName, expire, find_latest,
    find_parent, is_vouched, too_many_packs,
};
use mover_source::delta::{BUDGET_BYTES_DEFAULT, extract};
use mover_source::pages::{Checkpoint, LiveStore, MARK_BLOCKS};
use mover_source::tracker::{Changed, LogHold, Switched, Witness};
use mover_source::wal::LogIdentity;
use mover_source::wal::segment::LOG_BLOCK_BYTES;

use super::odd::Predecessor;
use super::pages::{history_text, log_needed};
use super::{Base, Ground, LogPart};

/// How manifests name this kind of source.
pub(crate) const SOURCE_KIND: &str = "pages";
/// No record that ends a group is longer: a named point has 272 bytes, with a name of 255.
const LAST_RECORD_BYTES_MAX: u64 = 512;

/// How the backup will be made.
pub(crate) struct Footing {
    /// The type that will be made.
    pub backup_type: BackupType,
    /// Why, if that is not the type that was asked for.
    pub reason: Option<String>,
    /// The backup whose blocks this one builds on, whatever its type.
    pub parent: Option<OpenManifest>,
    /// The latest backup of this store.
    pub latest: Option<BackupId>,
    /// What changed since the parent, if the type is not full.
    pub changed: Option<Since>,
    /// What else there is to know.
    pub warnings: Vec<String>,
}

impl Footing {
    /// What the backup is compared with: its base, or, of a full one, a parent of this store and history.
    pub fn predecessor(
        &self,
        store: &LiveStore,
        checkpoint: &Checkpoint,
        host: &str,
    ) -> Option<Predecessor> {
        let certain = |base: Base| Predecessor {
            id: base.id,
            is_certain: true,
        };
        let of_full = || predecessor(store, checkpoint, self.parent.as_ref()?, host);
        self.base().map(certain).or_else(of_full)
    }

    /// The base: none for a full backup.
    pub fn base(&self) -> Option<Base> {
        let parent = self.parent.as_ref()?;
        self.changed.as_ref()?;
        let metadata = &parent.manifest.metadata;
        let mark = metadata.log_mark.as_ref();
        Some(Base {
            id: parent.id,
            end: metadata.lsn_range?.end,
            sha256: mark.and_then(|mark| hex::decode(&mark.sha256)),
        })
    }
}

/// What changed since the base.
pub(crate) struct Since {
    /// The pages, and perhaps more.
    pub pages: Changed,
    /// Where the log begins to name them, if it names each, before the redo position: then each is in its table's file as it was
    /// changed there or later. None from the block change tracker, which also names what a transaction was about to change that
    /// came to nothing.
    pub named_from: Option<Lsn>,
}

/// What was asked for.
pub(crate) struct Wanted<'a> {
    /// The type.
    pub backup_type: BackupType,
    /// The base, if one was named.
    pub base: Option<&'a str>,
    /// The host that the source is on.
    pub host: &'a str,
    /// What of the repository may be built on.
    pub ground: Ground,
}

/// Chooses the base and finds out what changed since. `on_log` is called before the log is read for that.
///
/// # Errors
/// `NotFound` or `Usage` if a base was named that does not exist or is not of this source; what ends any job.
pub(crate) async fn find(
    shard: &Shard,
    repository: &Arc<Repository>,
    store: &LiveStore,
    checkpoint: &Checkpoint,
    wanted: &Wanted<'_>,
    on_log: impl FnOnce(),
) -> Result<Footing> {
    let Candidate {
        parent,
        latest,
        serves,
        mut warnings,
    } = candidate(shard, repository, store, wanted).await?;
    if wanted.backup_type == BackupType::Full {
        return Ok(Footing {
            backup_type: BackupType::Full,
            reason: None,
            parent,
            latest,
            changed: None,
            warnings,
        });
    }
    let found = match parent.as_ref().filter(|_| serves) {
        None if !repository.can_read() => {
            Err("earlier backups cannot be read without a key".to_owned())
        }
        None => Err(nothing_before(wanted.backup_type).to_owned()),
        Some(base) => match unusable_packs(shard, repository, base).await? {
            Some(missing) => Err(format!("base {}: {missing}", base.id)),
            None => {
                on_log();
                changed_since(store, checkpoint, &base.manifest.metadata)?
                    .map_err(|why| format!("base {}: {why}", base.id))
            }
        },
    };
    let (backup_type, reason, changed) = match found {
        Ok(changed) => (wanted.backup_type, None, Some(changed)),
        Err(reason) => {
            warnings.push(format!("a full backup is made instead: {reason}"));
            (BackupType::Full, Some(reason), None)
        }
    };
    Ok(Footing {
        backup_type,
        reason,
        parent,
        latest,
        changed,
        warnings,
    })
}

fn nothing_before(wanted: BackupType) -> &'static str {
    match wanted {
        BackupType::Differential => "there is no full backup of this source to stand on",
        _ => "there is no earlier backup of this source",
    }
}

/// An earlier backup, before it is looked at closely.
struct Candidate {
    parent: Option<OpenManifest>,
    /// The latest backup of this store.
    latest: Option<BackupId>,
    /// Whether the parent may be the base, too: it is of this source, and of the type that is asked for.
    serves: bool,
    warnings: Vec<String>,
}

impl Candidate {
    fn new(earlier: Earlier, serves: bool) -> Self {
        let Earlier {
            parent,
            latest,
            warnings,
        } = earlier;
        Candidate {
            parent,
            latest,
            serves,
            warnings,
        }
    }
}

/// The backup to build on.
async fn candidate(
    shard: &Shard,
    repository: &Arc<Repository>,
    store: &LiveStore,
    wanted: &Wanted<'_>,
) -> Result<Candidate> {
    let source = SourceName {
        url: store.url(),
        kind: SOURCE_KIND,
        host: wanted.host,
    };
    if wanted.ground == Ground::Nothing {
        let earlier = only_its_id(shard, repository, source).await?;
        return Ok(Candidate::new(earlier, false));
    }
    if let Some(named) = wanted.base {
        if wanted.backup_type == BackupType::Full {
            return Err(Error::new(Kind::Usage, "a full backup has no base")
                .hint("leave out --base, or ask for --type incr or diff"));
        }
        let open = named_base(shard, repository, named, source).await?;
        let latest = find_latest(shard, repository, source, |_| true).await?;
        let earlier = Earlier {
            parent: Some(open),
            latest: latest.latest,
            warnings: Vec::new(),
        };
        return Ok(Candidate::new(earlier, true));
    }
    if wanted.backup_type == BackupType::Differential {
        let is_full = |metadata: &BackupMetadata| metadata.backup_type == BackupType::Full;
        let earlier = find_latest(shard, repository, source, is_full).await?;
        if earlier.parent.is_some() {
            return Ok(Candidate::new(earlier, true));
        }
    }
    let earlier = find_parent(shard, repository, source).await?;
    let parent = earlier.parent.as_ref();
    let serves = wanted.backup_type == BackupType::Incremental
        && parent.is_some_and(|open| source.is_of(&open.manifest.metadata));
    Ok(Candidate::new(earlier, serves))
}

/// What came before a backup that uses none of it: its own id is to be behind that of the latest.
pub(crate) async fn only_its_id(
    shard: &Shard,
    repository: &Arc<Repository>,
    source: SourceName<'_>,
) -> Result<Earlier> {
    let found = find_latest(shard, repository, source, |_| true).await?;
    Ok(Earlier {
        latest: found.latest,
        ..Earlier::default()
    })
}

/// The backup that `--base` names.
async fn named_base(
    shard: &Shard,
    repository: &Repository,
    named: &str,
    source: SourceName<'_>,
) -> Result<OpenManifest> {
    let id = catalogue::find(shard, repository, named).await?;
    if expire::is_expiring(shard, repository, id).await? {
        return Err(
            Error::new(Kind::Conflict, "the base is about to be deleted")
                .object(id.to_string())
                .hint(
                    "leave out --base, or wait until the expire has ended; if none is at work, one was cut off or refused, and `helios-mover expire` with --confirm and a policy that keeps this backup clears its mark",
                ),
        );
    }
    let open = catalogue::load(shard, repository, id).await?;
    if !is_vouched(repository, open.origin) {
        return Err(Error::new(
            Kind::Usage,
            "the base was written without the repository's key, so nobody vouches for it",
        )
        .object(id.to_string())
        .hint("name a backup that was made with the key, or leave out --base"));
    }
    if !source.is_of(&open.manifest.metadata) {
        let of = &open.manifest.metadata.source;
        return Err(Error::new(
            Kind::Usage,
            format!("the base is of another source: {} on {}", of.url, of.host),
        )
        .object(id.to_string())
        .hint("name a backup of this source, or leave out --base"));
    }
    Ok(open)
}

/// Why nothing can stand on the packs of `base`, going by their number, names and lengths.
async fn unusable_packs(
    shard: &Shard,
    repository: &Arc<Repository>,
    base: &OpenManifest,
) -> Result<Option<String>> {
    let packs = &base.manifest.packs;
    match too_many_packs(packs.len()) {
        None => missing_pack(shard, repository, packs).await,
        many => Ok(many),
    }
}

/// What a full backup is compared with, so that a table which lost pages is told: `parent`, if it is of this store and history. None
/// if the log is another one there: then the store was put back to an earlier state.
fn predecessor(
    store: &LiveStore,
    checkpoint: &Checkpoint,
    parent: &OpenManifest,
    host: &str,
) -> Option<Predecessor> {
    let metadata = &parent.manifest.metadata;
    let identity = &checkpoint.control.identity;
    let source = SourceName {
        url: store.url(),
        kind: SOURCE_KIND,
        host,
    };
    let end = metadata.lsn_range?.end;
    if !source.is_of(metadata) || *metadata.history.as_ref()? != history_text(identity) {
        return None;
    }
    let mark = metadata.log_mark.as_ref();
    let blocks = marked_blocks(mark, end).ok();
    let found = blocks.and_then(|blocks| read_mark(store, checkpoint, end, blocks).ok());
    let is_certain = match found {
        Some(found) if is_same(mark, &found) => true,
        Some(_) => return None,
        None => is_witnessed(store, identity, end, mark),
    };
    Some(Predecessor {
        id: parent.id,
        is_certain,
    })
}

/// What the log says changed between what `base` holds and the redo position of `checkpoint`, or why that is not
/// known. What changed later is in the log that goes with the backup.
fn changed_since(
    store: &LiveStore,
    checkpoint: &Checkpoint,
    base: &BackupMetadata,
) -> Result<Result<Since, String>> {
    let control = &checkpoint.control;
    let identity = &control.identity;
    let (Some(range), Some(history)) = (base.lsn_range, &base.history) else {
        return Ok(Err(
            "it does not say which part of a log it stands on".to_owned()
        ));
    };
    let ours = history_text(identity);
    if *history != ours {
        return Ok(Err(format!(
            "it is of history {history}, and the database is in history {ours} now"
        )));
    }
    let blocks = match marked_blocks(base.log_mark.as_ref(), range.end) {
        Ok(blocks) => blocks,
        Err(why) => return Ok(Err(why)),
    };
    match read_mark(store, checkpoint, range.end, blocks) {
        Ok(marked) if is_same(base.log_mark.as_ref(), &marked) => {}
        Ok(_) => {
            return Ok(Err(format!(
                "the log at {} is not the one that it was made of: the database was put back to an earlier state without \
                 a new history",
                range.end
            )));
        }
        // The log is gone there, or cannot be read. Then the store itself must say that it went through it.
        Err(error) if is_about_log(&error) => {
            if !is_witnessed(store, identity, range.end, base.log_mark.as_ref()) {
                return Ok(Err(format!(
                    "{error}, and the store does not know this backup again (tracker/witness)"
                )));
            }
        }
        Err(error) => return Err(error),
    }
    if range.start > control.redo {
        return Ok(Err(format!(
            "it begins at {}, behind the redo position {} of the control file",
            range.start, control.redo
        )));
    }
    // Pages on disk are never older than the redo position; what changed behind it, redo brings.
    let since = LsnRange {
        start: range.start,
        end: control.redo,
    };
    match extract(store.disk(), *identity, since, BUDGET_BYTES_DEFAULT) {
        Ok(delta) => Ok(Ok(Since {
            pages: delta.into(),
            named_from: Some(since.start),
        })),
        Err(error) if is_about_log(&error) => by_tracker(store, checkpoint, since, &error),
        Err(error) if error.kind() == Kind::Limit => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// What the block change tracker says changed in `range`, where the log does not tell because of `gone`.
fn by_tracker(
    store: &LiveStore,
    checkpoint: &Checkpoint,
    range: LsnRange,
    gone: &Error,
) -> Result<Result<Since, String>> {
    let epochs = match store.epochs(checkpoint.control.identity) {
        Ok(Some(epochs)) => epochs,
        Ok(None) => return Ok(Err(gone.to_string())),
        Err(error) => return Ok(Err(format!("{gone}; the block change tracker: {error}"))),
    };
    let changed = epochs.changed(range, BUDGET_BYTES_DEFAULT);
    let since = changed.map(|pages| Since {
        pages,
        named_from: None,
    });
    Ok(since.map_err(|invalid| format!("{gone}; the block change tracker: {invalid}")))
}

/// Holds the log for the backup, where the database runs with a tracker. What keeps it from that is a warning, since most
/// databases keep more log than a backup takes.
pub(crate) fn hold_log(store: &LiveStore) -> (Option<LogHold>, Option<String>) {
    match store.hold_log() {
        Ok(hold) => (hold, None),
        Err(error) => {
            let why = "the log is not held for this backup, which fails if the database removes it meanwhile";
            (None, Some(format!("{why}: {error}")))
        }
    }
}

/// Lets go of the log before `redo`. What keeps it from that is a warning.
pub(crate) fn hold_from(hold: &LogHold, redo: Lsn) -> Option<String> {
    let kept = hold.keep_from(redo);
    kept.err().map(|error| {
        format!("all of the database's log is kept until this backup has ended: {error}")
    })
}

/// Begins a new epoch of the tracker at the redo position, so that the next backup asks for no more than it needs. What
/// keeps it from that is a warning: the epochs that there are go on.
pub(crate) fn switch_epoch(store: &LiveStore, checkpoint: &Checkpoint) -> Option<String> {
    let control = &checkpoint.control;
    let switched = match store.epochs(control.identity) {
        Ok(None) => return None,
        Ok(Some(epochs)) => {
            // An epoch that began later, as the first one does, cannot end before that.
            let begun = epochs.state().map_or(control.redo, |state| state.start);
            epochs.switch(control.redo.max(begun), BUDGET_BYTES_DEFAULT)
        }
        Err(error) => Err(error),
    };
    match switched {
        Ok(Switched {
            reset: Some(why),
            end,
            ..
        }) => Some(format!(
            "the block change tracker knows nothing of what was before {end} any more: {why}"
        )),
        Ok(_) => None,
        Err(error) => Some(format!(
            "the block change tracker began no new epoch: {error}"
        )),
    }
}

/// Whether the log does not tell, for whatever reason. What is asked for here is what lies before the redo position; a segment
/// that recovery needs is read again when the log is added to the backup, which then fails.
fn is_about_log(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::NotFound | Kind::Corrupt | Kind::Source | Kind::SourceChanged
    )
}

/// Whether the store remembers that a backup was taken of its log up to `end`.
fn is_witnessed(
    store: &LiveStore,
    identity: &LogIdentity,
    end: Lsn,
    mark: Option<&LogMark>,
) -> bool {
    let Some(sha256) = mark.and_then(|mark| hex::decode(&mark.sha256)) else {
        return false;
    };
    // One that cannot be read says nothing.
    Witness::read(&*store.disk(), identity).is_ok_and(|witness| witness.knows(end, &sha256))
}

/// Lets the store remember the backup that was published, and its base no shorter. Without a tracker nobody asks; what keeps it
/// from that is a warning.
pub(crate) fn testify(log: &LogPart) -> Option<String> {
    let said = match log.store.epochs(log.identity) {
        Ok(None) => return None,
        Ok(Some(epochs)) => match hex::decode(&log.mark.sha256) {
            Some(sha256) => {
                let base = log.base.and_then(|base| Some((base.end, base.sha256?)));
                epochs.testify_on(base, log.range.end, sha256)
            }
            None => Err(Error::new(Kind::Internal, "a fingerprint is no SHA-256")),
        },
        Err(error) => Err(error),
    };
    let failed =
        |error| format!("the store will not know this backup again where the log is gone: {error}");
    said.err().map(failed)
}

/// How many blocks of the log the fingerprint of a base that ends at `end` is made of, or why it tells nothing.
fn marked_blocks(mark: Option<&LogMark>, end: Lsn) -> Result<u64, String> {
    match mark.map(|mark| mark.blocks.unwrap_or(1)) {
        None | Some(MARK_BLOCKS) => Ok(MARK_BLOCKS),
        // As earlier versions made it: of what little of a block lies before the end, another log may have the same.
        Some(1) if end.0.saturating_sub(1) % LOG_BLOCK_BYTES + 1 >= LAST_RECORD_BYTES_MAX => Ok(1),
        Some(1) => Err(format!(
            "its fingerprint of the log at {end} is that of an earlier version, and covers too little there to know the log \
             again"
        )),
        Some(blocks) => Err(format!(
            "its fingerprint of the log at {end} is of {blocks} blocks, as no version makes it that is known to this one"
        )),
    }
}

/// Whether the base's fingerprint is the one that was found.
fn is_same(base: Option<&LogMark>, found: &LogMark) -> bool {
    base.is_some_and(|base| base.sha256 == found.sha256)
}

/// The fingerprint of the log of a backup that ends at `end`, as its manifest has it: of the last `blocks` blocks.
///
/// # Errors
/// `SourceChanged` if the segment is gone; `Source` if it cannot be read.
pub(crate) fn mark(
    store: &LiveStore,
    checkpoint: &Checkpoint,
    end: Lsn,
    blocks: u64,
) -> Result<LogMark> {
    read_mark(store, checkpoint, end, blocks).map_err(log_needed)
}

/// The same of any log up to `end`, which need not be there any more.
fn read_mark(store: &LiveStore, checkpoint: &Checkpoint, end: Lsn, blocks: u64) -> Result<LogMark> {
    let sha256 = store.mark(&checkpoint.control.identity, end, blocks)?;
    Ok(LogMark {
        sha256: hex::encode(&sha256),
        blocks: Some(blocks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_does_not_tell_is_no_end_of_the_backup() {
        for kind in [
            Kind::NotFound,
            Kind::Corrupt,
            Kind::Source,
            Kind::SourceChanged,
        ] {
            assert!(is_about_log(&Error::new(kind, "a segment")));
        }
        for kind in [Kind::Cancelled, Kind::Limit, Kind::Internal] {
            assert!(!is_about_log(&Error::new(kind, "a segment")));
        }
    }

    #[test]
    fn a_mark_that_covers_no_whole_record_makes_a_full_backup() {
        let of = |blocks| LogMark {
            sha256: hex::encode(&[7; 32]),
            blocks,
        };
        let blocks = |mark: Option<u64>, end| marked_blocks(Some(&of(mark)), Lsn(end));
        for end in [8192, 8200, 8448, 8704] {
            assert_eq!(blocks(Some(2), end), Ok(2));
        }
        // Earlier manifests.
        assert_eq!((blocks(None, 8192), blocks(None, 8704)), (Ok(1), Ok(1)));
        for end in [8200, 8224, 8696] {
            let why = blocks(None, end).unwrap_err();
            assert!(why.contains("an earlier version"), "{why}");
        }
        // Later ones.
        for unknown in [0, 3, u64::MAX] {
            assert!(blocks(Some(unknown), 8192).is_err());
        }
        assert_eq!(marked_blocks(None, Lsn(8200)), Ok(2));
    }
}
