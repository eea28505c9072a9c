//! `backup`: a directory becomes a backup of the repository. Plan, then execute.
//!
//! Invariants: what is published was read from files that did not change between the scan and the end of the
//! job, in a tree that did not change either; a job that fails or is cancelled publishes nothing. What it may
//! leave are packs that no manifest names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mover_base::{BLOCK_BYTES, BackupId, Error, Kind, Result, Timestamp};
use mover_io::{Shard, ShardReport};
use mover_repo::catalogue::OpenManifest;
use mover_repo::{
    BackupMetadata, BackupRequest, BackupRun, BackupType, Committed, LeafPart, MapNode, Repository,
    ShardWriter, SizeInfo, SourceInfo, StageSeconds, StorageInfo, VerificationInfo, WriterOutcome,
    find_parent, lap,
};
use mover_source::{DirSource, ScanOptions, Totals, Tree};
use serde::Serialize;

use crate::estimate::{self, Estimate};
use crate::extents::{ExtentId, ExtentQueue, Joiner};
use crate::feed::{Event, Feed};
use crate::machine::{Clock, host_name};
use crate::progress::{Phase, Progress};
use crate::report::EngineReport;
use crate::session::SessionGuard;
use crate::settings::{Engine, JobLimits, RepoAccess, Tick};

/// Warnings about skipped names that are spelled out; the rest is counted.
const SKIPPED_NAMED_MAX: usize = 20;

/// What to back up, and how.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// Where to.
    pub repo: RepoAccess,
    /// What, as a URL.
    pub source: String,
    /// Full, incremental or differential.
    pub backup_type: BackupType,
    /// zstd level.
    pub level: i32,
    /// Notes kept with the backup.
    pub annotations: BTreeMap<String, String>,
    /// Paths left out, relative to the source.
    pub exclude: Vec<String>,
    /// Do not descend into other file systems.
    pub one_file_system: bool,
    /// Let the plan read and pack a sample of the source, to say what the backup would take.
    pub estimate: bool,
}

/// What a backup would do.
#[derive(Serialize)]
pub struct BackupPlan {
    /// URL of the source.
    pub source: String,
    /// URL of the repository.
    pub repository: String,
    /// The type that will be made.
    pub backup_type: BackupType,
    /// The earlier backup of the same source that unchanged blocks are taken from.
    pub parent: Option<BackupId>,
    /// Whether earlier backups can be read with the key given, so that known blocks need not be stored.
    pub reads_earlier_backups: bool,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files.
    pub hardlinks: u64,
    /// Sizes of all files.
    pub source_bytes: u64,
    /// What they take on disk: less where there are holes.
    pub data_bytes: u64,
    /// What the backup would add to the repository, by a sample of the source; without regard to blocks that
    /// are known already. Absent where no estimate was asked for.
    pub estimated_stored_bytes: Option<u64>,
    /// How long it would take, by the same sample.
    pub estimated_seconds: Option<f64>,
    /// Bytes in the sample.
    pub sampled_bytes: u64,
    /// What will not be backed up, and other things to know.
    pub warnings: Vec<String>,
    #[serde(skip)]
    prepared: Prepared,
}

/// What planning found and executing needs.
struct Prepared {
    options: BackupOptions,
    /// Opening it costs a passphrase's key derivation, so it is opened once.
    repository: Arc<Repository>,
    parent: Option<OpenManifest>,
    source: Arc<DirSource>,
    tree: Arc<Tree>,
    started: Timestamp,
}

/// What a backup did.
#[derive(Debug, Serialize)]
pub struct BackupSummary {
    /// Its id.
    pub backup_id: BackupId,
    /// Its type.
    pub backup_type: BackupType,
    /// Why it is of that type, where that is not what was asked for.
    pub reason: Option<String>,
    /// The earlier backup that unchanged blocks were taken from.
    pub parent: Option<BackupId>,
    /// URL of the source.
    pub source: String,
    /// URL of the repository.
    pub repository: String,
    /// Sizes of all files.
    pub bytes_source: u64,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes in blocks that were packed.
    pub bytes_new: u64,
    /// Those bytes after compression and sealing.
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

/// What one shard brings back.
struct Part {
    outcome: WriterOutcome,
    nodes: Vec<(ExtentId, MapNode)>,
    read_bytes: u64,
    stages: StageSeconds,
    report: ShardReport,
}

/// What all shards bring back.
#[derive(Default)]
struct Gathered {
    outcomes: Vec<WriterOutcome>,
    nodes: Vec<(ExtentId, MapNode)>,
    bytes_read: u64,
    stages: StageSeconds,
    reports: Vec<ShardReport>,
}

impl Gathered {
    fn of(parts: Vec<Part>) -> Self {
        let mut all = Gathered::default();
        for part in parts {
            all.outcomes.push(part.outcome);
            all.nodes.extend(part.nodes);
            all.bytes_read += part.read_bytes;
            all.stages.add(&part.stages);
            all.reports.push(part.report);
        }
        all
    }
}

/// Looks at source and repository and says what a backup would do. Changes nothing.
pub fn plan(engine: &Engine, options: &BackupOptions, tick: Tick<'_>) -> Result<BackupPlan> {
    require_full(options)?;
    let started = Timestamp::now();
    let progress = Progress::default();
    let source = Arc::new(DirSource::open(&options.source)?);
    let scan_options = ScanOptions {
        exclude: options.exclude.clone(),
        one_file_system: options.one_file_system,
        ..ScanOptions::default()
    };
    let tree = Arc::new(source.scan(&scan_options)?);
    let look = async |shard: Shard| look(&shard, options, &source, &tree).await;
    let Outlook {
        repository,
        parent,
        estimate,
        mut warnings,
    } = only(mover_io::run(&engine.single(), look, |stop| {
        tick(&progress, stop)
    })?)?;
    warnings.extend(skipped_warnings(&tree));
    if !repository.can_read() {
        warnings.push(
            "no key was given: earlier backups cannot be read, so every block is stored again"
                .to_owned(),
        );
    }
    let Totals {
        files,
        dirs,
        symlinks,
        hardlinks,
        bytes,
        allocated_bytes,
        ..
    } = tree.totals;
    let data_bytes = allocated_bytes.min(bytes);
    let Estimate { sampled_bytes, .. } = estimate;
    Ok(BackupPlan {
        source: source.url().to_owned(),
        repository: repository.url().to_owned(),
        backup_type: options.backup_type,
        parent: parent.as_ref().map(|parent| parent.id),
        reads_earlier_backups: repository.can_read(),
        files,
        dirs,
        symlinks,
        hardlinks,
        source_bytes: bytes,
        data_bytes,
        estimated_stored_bytes: estimate.stored_bytes(data_bytes),
        estimated_seconds: estimate.seconds(data_bytes, engine.wide()?.shard_count()),
        sampled_bytes,
        warnings,
        prepared: Prepared {
            options: options.clone(),
            repository,
            parent,
            source,
            tree,
            started,
        },
    })
}

/// A directory can only be backed up in full.
fn require_full(options: &BackupOptions) -> Result<()> {
    if options.backup_type == BackupType::Full {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        "a directory has no log, so it can only be backed up in full",
    )
    .object(options.source.clone())
    .hint("use --type full; blocks that did not change are not stored again"))
}

/// What the repository holds already, and what a sample of the source says.
struct Outlook {
    repository: Arc<Repository>,
    parent: Option<OpenManifest>,
    estimate: Estimate,
    warnings: Vec<String>,
}

async fn look(
    shard: &Shard,
    options: &BackupOptions,
    source: &Arc<DirSource>,
    tree: &Arc<Tree>,
) -> Result<Outlook> {
    let access = &options.repo;
    let repository = Arc::new(access.open(shard).await?);
    let (parent, warnings) = find_parent(shard, &repository, source.url(), &host_name()).await?;
    let estimate = match options.estimate {
        true => estimate::sample(shard, source, tree, options.level).await?,
        false => Estimate::default(),
    };
    Ok(Outlook {
        repository,
        parent,
        estimate,
        warnings,
    })
}

/// Makes the backup that was planned.
pub fn execute(engine: &Engine, plan: BackupPlan, tick: Tick<'_>) -> Result<BackupSummary> {
    let clock = Clock::start();
    let progress = Progress::default();
    let Prepared {
        options,
        repository,
        parent,
        source,
        tree,
        started,
    } = plan.prepared;

    progress.begin(Phase::Prepare, 0, 0);
    let request = BackupRequest {
        parent: parent.as_ref(),
        level: options.level,
        index_bytes: engine.index_bytes,
        source_blocks: tree.totals.bytes / BLOCK_BYTES as u64 + tree.totals.files,
    };
    let limits = engine.limits.clone();
    let begin = async |shard: Shard| {
        BackupRun::begin(&shard, &repository, &request, limits.write.clone()).await
    };
    let run = only(mover_io::run(&engine.single(), begin, |stop| {
        tick(&progress, stop)
    })?)?;
    let _session = SessionGuard::new(engine, &run);
    let mut warnings = plan.warnings;
    warnings.extend(run.warning.clone());
    // Only what the run has read of it is needed from here on.
    drop(parent);

    progress.begin(Phase::Copy, tree.totals.bytes, tree.totals.files);
    let wide = engine.wide()?;
    let shards = wide.shard_count();
    let job = CopyJob::new(&source, &tree, &run, &progress, limits, shards);
    let parts = mover_io::run(
        &wide,
        async |shard| copy(&shard, &job).await,
        |stop| tick(&progress, stop),
    )?;

    progress.begin(Phase::Commit, 0, 0);
    source.check_tree_unchanged(&tree)?;
    if run.damaged_extents() > 0 {
        warnings.push(format!(
            "{} parts of the parent backup are damaged; their blocks were stored anew. Run `helios-mover verify`",
            run.damaged_extents()
        ));
    }
    let parent = run.parent();
    let draft = draft(&options, &source, &tree, &repository, started);
    let Gathered {
        outcomes,
        nodes,
        bytes_read,
        stages,
        reports,
    } = Gathered::of(parts);
    let committed = publish(engine, run, outcomes, nodes, &tree, draft, &mut |stop| {
        tick(&progress, stop)
    })?;
    Ok(summary(Ended {
        committed,
        parent,
        bytes_read,
        warnings,
        repository: &repository,
        engine: clock.report(stages, reports),
        totals: tree.totals,
    }))
}

/// What the shards share while they copy.
struct CopyJob<'a> {
    source: &'a Arc<DirSource>,
    tree: &'a Arc<Tree>,
    run: &'a BackupRun,
    progress: &'a Progress,
    limits: JobLimits,
    extents: Arc<ExtentQueue>,
    /// Parts of extents that several shards work on.
    parts: Joiner<LeafPart>,
}

impl<'a> CopyJob<'a> {
    fn new(
        source: &'a Arc<DirSource>,
        tree: &'a Arc<Tree>,
        run: &'a BackupRun,
        progress: &'a Progress,
        limits: JobLimits,
        shards: usize,
    ) -> Self {
        let files = tree
            .items
            .iter()
            .enumerate()
            .map(|(at, item)| (at as u32, item.entry.content_bytes()));
        let extents = Arc::new(ExtentQueue::new(files, shards));
        CopyJob {
            source,
            tree,
            run,
            progress,
            limits,
            extents,
            parts: Joiner::default(),
        }
    }
}

async fn copy(shard: &Shard, job: &CopyJob<'_>) -> Result<Part> {
    job.run.preload(shard).await?;
    let mut writer = ShardWriter::new(shard, job.run.shared())?;
    let mut feed = Feed::new(shard, job.source, job.tree, &job.extents, &job.limits.read);
    let mut nodes = Vec::new();
    loop {
        shard.stop()?;
        let clock = std::time::Instant::now();
        let event = feed.next().await?;
        lap(&mut writer.stages.read_wait, clock);
        match event {
            None => break,
            Some(Event::Begin(share)) => {
                let entry = &job.tree.items[share.item as usize].entry;
                let parent = job.run.parent_map(&entry.path);
                writer.begin_extent(parent, share.index).await?;
                if share.begin == 0 {
                    job.progress.add_files(1);
                }
            }
            Some(Event::Hole(blocks)) => {
                writer.hole(blocks)?;
                job.progress.add_bytes(mover_repo::block_bytes(blocks));
            }
            Some(Event::Data {
                buf,
                bytes,
                first_block,
            }) => {
                writer.blocks(&buf[..bytes], first_block).await?;
                job.progress.add_bytes(bytes as u64);
            }
            Some(Event::End(share)) => {
                let part = writer.end_part()?;
                if let Some(parts) = job.parts.add(&share, part) {
                    nodes.push((share.extent(), writer.end_extent(parts).await?));
                }
            }
        }
    }
    let read_bytes = feed.read_bytes;
    let outcome = writer.finish().await?;
    job.progress.add_stored(outcome.counts.stored_bytes);
    Ok(Part {
        stages: outcome.stages,
        outcome,
        nodes,
        read_bytes,
        report: shard.report(),
    })
}

/// Joins what the shards made into the tree and publishes the manifest.
fn publish(
    engine: &Engine,
    run: BackupRun,
    outcomes: Vec<WriterOutcome>,
    mut nodes: Vec<(ExtentId, MapNode)>,
    tree: &Tree,
    draft: BackupMetadata,
    tick: &mut dyn FnMut(&mover_io::Stop),
) -> Result<Committed> {
    nodes.sort_by_key(|(extent, _)| *extent);
    let mut nodes = nodes.into_iter().peekable();
    let entries = tree.items.iter().enumerate().map(move |(at, item)| {
        let mut extents = Vec::new();
        while let Some((_, node)) = nodes.next_if(|((item, _), _)| *item as usize == at) {
            extents.push(node);
        }
        (item.entry.clone(), extents)
    });
    // The shard's body may be called once per shard, and there is one shard.
    let work = Mutex::new(Some((run, outcomes, entries, draft)));
    let commit = async |shard: Shard| {
        let taken = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((run, outcomes, entries, draft)) = taken else {
            return Err(Error::new(Kind::Internal, "a backup was committed twice"));
        };
        run.commit(&shard, outcomes, entries, draft).await
    };
    only(mover_io::run(&engine.single(), commit, tick)?)
}

fn draft(
    options: &BackupOptions,
    source: &DirSource,
    tree: &Tree,
    repository: &Repository,
    started: Timestamp,
) -> BackupMetadata {
    let totals = &tree.totals;
    BackupMetadata {
        backup_id: BackupId::new(started, 0),
        backup_type: options.backup_type,
        reason: None,
        base_id: None,
        lsn_range: None,
        history: None,
        started,
        ended: started,
        source: SourceInfo {
            url: source.url().to_owned(),
            kind: "dir".to_owned(),
            host: host_name(),
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
struct Ended<'a> {
    committed: Committed,
    parent: Option<BackupId>,
    bytes_read: u64,
    warnings: Vec<String>,
    repository: &'a Repository,
    engine: EngineReport,
    totals: Totals,
}

fn summary(ended: Ended<'_>) -> BackupSummary {
    let Ended {
        committed,
        parent,
        bytes_read,
        warnings,
        repository,
        engine,
        totals,
    } = ended;
    let Committed { metadata, counts } = committed;
    let content_blocks = counts.blocks - counts.zero_blocks;
    let bytes_new = mover_repo::block_bytes(counts.new_blocks);
    BackupSummary {
        backup_id: metadata.backup_id,
        backup_type: metadata.backup_type,
        reason: metadata.reason,
        parent,
        source: metadata.source.url,
        repository: repository.url().to_owned(),
        bytes_source: totals.bytes,
        bytes_read,
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

fn skipped_warnings(tree: &Tree) -> Vec<String> {
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
    warnings
}

/// The one result of a run with one shard.
pub(crate) fn only<T>(mut results: Vec<T>) -> Result<T> {
    results
        .pop()
        .ok_or_else(|| Error::new(Kind::Internal, "a shard brought no result"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_only_backed_up_in_full() {
        let options = BackupOptions {
            repo: RepoAccess {
                url: "file:///nowhere".into(),
                credentials: Default::default(),
                link: Default::default(),
            },
            source: "dir:///nowhere".into(),
            backup_type: BackupType::Incremental,
            level: 3,
            annotations: BTreeMap::new(),
            exclude: Vec::new(),
            one_file_system: false,
            estimate: false,
        };
        let error = plan(&Engine::default(), &options, &mut |_, _| {})
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
    }
}
