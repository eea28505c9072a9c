//! What a backup says of itself: in its manifest, and to whoever asked for it.
//!
//! Invariant: every figure was counted or measured by the job.

use mover_base::{BackupId, LsnRange, Timestamp};
use mover_repo::{
    BackupMetadata, BackupType, Committed, Repository, SizeInfo, SourceInfo, StorageInfo,
    VerificationInfo,
};
use mover_source::disk::BytesRead;
use mover_source::{Totals, Tree};
use serde::Serialize;

use super::pages::history_text;
use super::{BackupOptions, Copied};
use crate::report::EngineReport;

/// Warnings about skipped names that are spelled out; the rest is counted.
const SKIPPED_NAMED_MAX: usize = 20;

/// What a backup did.
#[derive(Debug, Serialize)]
pub struct BackupSummary {
    /// Its id.
    pub backup_id: BackupId,
    /// Its type.
    pub backup_type: BackupType,
    /// Why it is of that type, where that is not what was asked for.
    pub reason: Option<String>,
    /// The backup that an incremental or differential one stands on.
    pub base: Option<BackupId>,
    /// The earlier backup that unchanged blocks were taken from.
    pub parent: Option<BackupId>,
    /// Its source, where that is another one.
    pub parent_source: Option<String>,
    /// The part of the database's log in it: the backup is consistent from its end on.
    pub lsn_range: Option<LsnRange>,
    /// URL of the source.
    pub source: String,
    /// URL of the repository.
    pub repository: String,
    /// Pages that were torn however often they were read. The part of the log in the backup has an image of each, or drops
    /// its table.
    pub torn_pages: u64,
    /// Sizes of all files.
    pub bytes_source: u64,
    /// Bytes read from the source: what was copied, what was read again, and what was looked through for that.
    pub bytes_read: u64,
    /// Those of them that were read from the database's log to find what changed and where it ends, not to copy it.
    pub log_bytes_read: u64,
    /// Bytes taken over from the parent without being read: what the log says did not change.
    pub bytes_kept: u64,
    /// Bytes in blocks that were packed.
    pub bytes_new: u64,
    /// Those bytes after compression.
    pub bytes_compressed: u64,
    /// Everything added to the repository: packs with their directories, map and manifest.
    pub bytes_stored: u64,
    /// `bytes_new / bytes_compressed`; absent where nothing was new.
    pub compression_ratio: Option<f64>,
    /// Share of the blocks that are not zero which were in the repository, or twice in the source.
    pub deduplicated_share: f64,
    /// Bytes in blocks of zeros.
    pub zero_bytes: u64,
    /// Bytes in holes.
    pub hole_bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files.
    pub hardlinks: u64,
    /// Packs written.
    pub packs: u64,
    /// `bytes_source` per second of the whole job.
    pub bytes_per_second: f64,
    /// Whether the repository is encrypted.
    pub encrypted: bool,
    /// Whether earlier backups could be read.
    pub reads_earlier_backups: bool,
    /// What was not backed up, and other things to know.
    pub warnings: Vec<String>,
    /// The machinery.
    pub engine: EngineReport,
}

/// The metadata as far as it is known before the manifest is written.
pub(super) fn draft(
    options: &BackupOptions,
    copied: &Copied,
    repository: &Repository,
    started: Timestamp,
) -> BackupMetadata {
    let (totals, log) = (&copied.totals, copied.log.as_ref());
    BackupMetadata {
        backup_id: BackupId::new(started, 0),
        backup_type: options.backup_type,
        reason: None,
        base_id: log.and_then(|log| Some(log.base?.id)),
        parent_id: None,
        lsn_range: log.map(|log| log.range),
        history: log.map(|log| history_text(&log.identity)),
        log_mark: log.map(|log| log.mark.clone()),
        started,
        ended: started,
        source: SourceInfo {
            url: options.source.clone(),
            kind: copied.origin.kind().to_owned(),
            host: options.host(),
        },
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        annotations: options.annotations.clone(),
        size_info: SizeInfo {
            original_bytes: totals.bytes,
            data_bytes: totals.allocated_bytes.min(totals.bytes),
            files: totals.files,
            dirs: totals.dirs,
            symlinks: totals.symlinks,
            hardlinks: totals.hardlinks,
            ..SizeInfo::default()
        },
        storage_info: StorageInfo {
            primary: format!("repository {}", repository.id()),
            ..StorageInfo::default()
        },
        verification_info: VerificationInfo {
            decoded_and_compared: true,
            ..VerificationInfo::default()
        },
        replication_info: Default::default(),
    }
}

/// What the summary is made of.
pub(super) struct Ended<'a> {
    pub committed: Committed,
    pub parent: Option<BackupId>,
    pub parent_source: Option<String>,
    /// What was copied.
    pub bytes_copied: u64,
    /// What was read of a page store beside that.
    pub looked_through: BytesRead,
    pub torn_pages: u64,
    pub warnings: Vec<String>,
    pub repository: &'a Repository,
    pub engine: EngineReport,
    pub totals: Totals,
}

/// The summary of a backup that was published.
pub(super) fn summary(ended: Ended<'_>) -> BackupSummary {
    let Ended {
        committed,
        parent,
        parent_source,
        bytes_copied,
        looked_through,
        torn_pages,
        warnings,
        repository,
        engine,
        totals,
    } = ended;
    let Committed { metadata, counts } = committed;
    let content_blocks = counts.blocks - counts.zero_blocks - counts.kept_blocks;
    let bytes_new = mover_repo::block_bytes(counts.new_blocks);
    BackupSummary {
        backup_id: metadata.backup_id,
        backup_type: metadata.backup_type,
        reason: metadata.reason,
        base: metadata.base_id,
        parent,
        parent_source,
        lsn_range: metadata.lsn_range,
        source: metadata.source.url,
        repository: repository.url().to_owned(),
        torn_pages,
        bytes_source: totals.bytes,
        bytes_read: bytes_copied + looked_through.log + looked_through.other,
        log_bytes_read: looked_through.log,
        bytes_kept: mover_repo::block_bytes(counts.kept_blocks),
        bytes_new,
        bytes_compressed: counts.compressed_bytes,
        bytes_stored: counts.stored_bytes,
        compression_ratio: (counts.compressed_bytes > 0)
            .then(|| bytes_new as f64 / counts.compressed_bytes as f64),
        deduplicated_share: counts.known_blocks as f64 / content_blocks.max(1) as f64,
        zero_bytes: mover_repo::block_bytes(counts.zero_blocks),
        hole_bytes: mover_repo::block_bytes(counts.hole_blocks),
        files: totals.files,
        dirs: totals.dirs,
        symlinks: totals.symlinks,
        hardlinks: totals.hardlinks,
        packs: counts.packs,
        bytes_per_second: totals.bytes as f64 / engine.seconds.max(1e-9),
        encrypted: repository.is_encrypted(),
        reads_earlier_backups: repository.can_read(),
        warnings,
        engine,
    }
}

/// What was not backed up, and what else its scan told of a source.
pub(super) fn skipped_warnings(tree: &Tree) -> Vec<String> {
    let named = tree.skipped.iter().take(SKIPPED_NAMED_MAX);
    let mut warnings: Vec<String> = named
        .map(|skipped| format!("not backed up, {}: {}", skipped.reason, skipped.path))
        .collect();
    if tree.skipped.len() > SKIPPED_NAMED_MAX {
        warnings.push(format!(
            "not backed up: {} names more",
            tree.skipped.len() - SKIPPED_NAMED_MAX
        ));
    }
    warnings.extend(tree.warnings.iter().cloned());
    warnings
}
