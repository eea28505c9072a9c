//! `backup`: a directory, or a page store that may be written to meanwhile, becomes a backup of the repository. Plan, then
//! execute.
//!
//! Invariants: what is published of a directory was read from files that did not change between the scan and the end of
//! the job, in a tree that did not change either; what is published of a page store is one that recovers to exactly the end
//! of the log in it. A job that fails or is cancelled publishes nothing. What it may leave are packs that no manifest names.

mod base;
mod copy;
mod feed;
mod odd;
mod origin;
mod pages;
mod summary;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mover_base::checksum::Sha256;
use mover_base::units::format_bytes;
use mover_base::{BLOCK_BYTES, BackupId, Error, Kind, Lsn, LsnRange, Result, Timestamp};
use mover_io::Shard;
use mover_repo::catalogue::OpenManifest;
use mover_repo::{
    BackupMetadata, BackupRequest, BackupRun, BackupType, Committed, Earlier, LogMark, Repository,
    SourceName, find_parent, require_extents,
};
use mover_source::delta::PageSet;
use mover_source::disk::BytesRead;
use mover_source::pages::{Checkpoint, LiveStore, MARK_BLOCKS, SCHEME as PAGES_SCHEME};
use mover_source::tracker::LogHold;
use mover_source::wal::LogIdentity;
use mover_source::{DirSource, ScanOptions, Totals};
use serde::Serialize;

use self::base::{Footing, Since, Wanted};
use self::copy::Gathered;
use self::odd::Predecessor;
use self::origin::{Origin, TREE_KIND, TreeOrigin};
use self::pages::{Changes, PageOrigin};
use self::summary::{Ended, draft, skipped_warnings, summary};
use crate::check::page_store_warning;
use crate::estimate::{self, Estimate};
use crate::key;
use crate::log_work;
use crate::machine::{Clock, host_name};
use crate::overlap::{owner_warning, refuse_in_source, refuse_source_below};
use crate::progress::{Phase, Progress};
use crate::report::Spent;
use crate::session::SessionGuard;
use crate::settings::{Engine, RepoAccess, Tick};

pub(crate) use self::base::SOURCE_KIND;
pub use self::summary::BackupSummary;

/// Less than this is copied by one shard: starting others, and the packs that each of them leaves half full, cost more.
const SINGLE_BYTES_MAX: u64 = 64 << 20;

/// What to back up, and how.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// Where to.
    pub repo: RepoAccess,
    /// What, as a URL.
    pub source: String,
    /// The host that it is said to be on; this machine if none is named. What a session says of its process is not of it.
    pub host: Option<String>,
    /// Full, incremental or differential.
    pub backup_type: BackupType,
    /// The backup to stand on: an id or the beginning of one; the latest that serves if none is named.
    pub base: Option<String>,
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

impl BackupOptions {
    pub(crate) fn host(&self) -> String {
        self.host.clone().unwrap_or_else(host_name)
    }
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
    /// Why it is of that type, where that is not what was asked for.
    pub reason: Option<String>,
    /// The backup that an incremental or differential one stands on.
    pub base: Option<BackupId>,
    /// The earlier backup that unchanged blocks are taken from.
    pub parent: Option<BackupId>,
    /// Its source, where that is another one.
    pub parent_source: Option<String>,
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
    /// How long it would take, by the same sample and the limits.
    pub estimated_seconds: Option<f64>,
    /// Free bytes where the repository is, if that is a directory.
    pub repository_free_bytes: Option<u64>,
    /// Bytes in the sample.
    pub sampled_bytes: u64,
    /// What will not be backed up, and other things to know.
    pub warnings: Vec<String>,
    #[serde(skip)]
    prepared: Prepared,
    /// On planning.
    #[serde(skip)]
    spent: Spent,
}

/// What planning found and executing needs.
struct Prepared {
    options: BackupOptions,
    /// Opening it costs a passphrase's key derivation, so it is opened once.
    repository: Arc<Repository>,
    parent: Option<OpenManifest>,
    latest: Option<BackupId>,
    source: Source,
    started: Timestamp,
}

/// What of the repository a backup may build on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    /// An earlier backup, if one serves.
    Earlier,
    /// Nothing: every block is stored anew.
    Nothing,
}

/// What will be read.
enum Source {
    Tree(Box<TreeOrigin>),
    Pages(Box<PageSource>),
}

impl Source {
    /// Memory that the list of its files takes.
    fn names_bytes(&self) -> usize {
        match self {
            Source::Tree(origin) => origin.tree.memory_bytes(),
            Source::Pages(_) => 0,
        }
    }

    /// Whether blocks of it may stand elsewhere than in the parent.
    fn may_have_moved(&self) -> bool {
        match self {
            Source::Tree(_) => true,
            Source::Pages(pages) => pages.changed.is_none(),
        }
    }
}

/// A page store, and what of it is to be read.
struct PageSource {
    store: Arc<LiveStore>,
    checkpoint: Checkpoint,
    /// What changed since the base; all of it is read where there is none.
    changed: Option<Since>,
    /// The base, if the type is not full.
    base: Option<Base>,
    /// What there is to compare with: the base, or the parent of a full backup.
    predecessor: Option<Predecessor>,
    /// Keeps the log that is copied last, where the database asks.
    hold: Option<LogHold>,
}

/// What a backup stands on.
#[derive(Clone, Copy)]
struct Base {
    id: BackupId,
    /// Up to there it has the log.
    end: Lsn,
    /// The fingerprint of the log there.
    sha256: Option<Sha256>,
}

/// Looks at source and repository and says what a backup would do. Changes nothing, but that a page store's log is held until
/// the plan is dropped.
pub fn plan(engine: &Engine, options: &BackupOptions, tick: Tick<'_>) -> Result<BackupPlan> {
    plan_on(engine, options, Ground::Earlier, tick)
}

/// The same for a backup that uses no block of the repository, so that damage there does not reach it: all is stored anew.
///
/// # Errors
/// As [`plan`]; `Usage` unless it is a full one without a base.
pub fn plan_anew(engine: &Engine, options: &BackupOptions, tick: Tick<'_>) -> Result<BackupPlan> {
    if options.backup_type != BackupType::Full || options.base.is_some() {
        return Err(Error::new(
            Kind::Usage,
            "a backup that uses nothing of the repository is a full one and has no base",
        )
        .object(options.source.clone())
        .hint("ask for --type full without --base, or leave out --no-parent"));
    }
    plan_on(engine, options, Ground::Nothing, tick)
}

fn plan_on(
    engine: &Engine,
    options: &BackupOptions,
    ground: Ground,
    tick: Tick<'_>,
) -> Result<BackupPlan> {
    let clock = Clock::start();
    let plan = match options.source.starts_with(PAGES_SCHEME) {
        true => plan_pages(engine, (options, ground), tick),
        false => plan_tree(engine, (options, ground), tick),
    };
    Ok(BackupPlan {
        spent: Spent::since(&clock),
        ..plan?
    })
}

/// What is asked for, and what it may build on.
type Asked<'a> = (&'a BackupOptions, Ground);

fn plan_tree(engine: &Engine, asked: Asked<'_>, tick: Tick<'_>) -> Result<BackupPlan> {
    let (options, _) = asked;
    require_full(options)?;
    let started = Timestamp::now();
    let progress = Progress::default();
    let origin = scan(engine, options, &progress, &mut *tick)?;
    let look = async |shard: Shard| look(engine, &shard, asked, &origin).await;
    let Outlook {
        repository,
        earlier,
        estimate,
    } = only(mover_io::run(&engine.single(), look, |stop| {
        tick(&progress, stop)
    })?)?;
    refuse_in_source(&repository, &origin.source, &origin.tree)?;
    require_extents(origin.tree.entries())?;
    let Earlier {
        parent,
        latest,
        mut warnings,
    } = earlier;
    warnings.extend(page_store_warning(origin.source.path()));
    warnings.extend(skipped_warnings(&origin.tree));
    warnings.extend(access_warnings(&repository));
    let totals = origin.tree.totals;
    let data_bytes = totals.allocated_bytes.min(totals.bytes);
    let expected = forecast(engine, options, &repository, &estimate, data_bytes)?;
    let free_bytes = repository.store().free_bytes();
    warnings.extend(room_warning(expected.stored_bytes, free_bytes));
    Ok(BackupPlan {
        source: options.source.clone(),
        repository: repository.url().to_owned(),
        backup_type: options.backup_type,
        reason: None,
        base: None,
        parent: parent.as_ref().map(|parent| parent.id),
        parent_source: other_source(parent.as_ref(), origin.source.url()),
        reads_earlier_backups: repository.can_read(),
        files: totals.files,
        dirs: totals.dirs,
        symlinks: totals.symlinks,
        hardlinks: totals.hardlinks,
        source_bytes: totals.bytes,
        data_bytes,
        estimated_stored_bytes: expected.stored_bytes,
        estimated_seconds: expected.seconds,
        repository_free_bytes: free_bytes,
        sampled_bytes: estimate.sampled_bytes,
        warnings,
        prepared: Prepared {
            options: options.clone(),
            repository,
            parent,
            latest,
            source: Source::Tree(Box::new(origin)),
            started,
        },
        spent: Spent::default(),
    })
}

fn scan(
    engine: &Engine,
    options: &BackupOptions,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<TreeOrigin> {
    let source = DirSource::open(&options.source)?;
    let scan_options = ScanOptions {
        exclude: options.exclude.clone(),
        one_file_system: options.one_file_system,
        names_bytes_max: engine.names_bytes as u64,
    };
    let tree = log_work::interruptible(&engine.single(), progress, tick, |go_on| {
        source.scan_while(&scan_options, go_on)
    })?;
    Ok(TreeOrigin::new(source, tree))
}

/// The source of `parent`, if it is not the one at `url`.
fn other_source(parent: Option<&OpenManifest>, url: &str) -> Option<String> {
    let of = &parent?.manifest.metadata.source.url;
    (of != url).then(|| of.clone())
}

/// What a host without a key misses, and what root does to a repository that is another user's.
fn access_warnings(repository: &Repository) -> impl Iterator<Item = String> {
    const NO_KEY: &str =
        "no key was given: earlier backups cannot be read, so every block is stored again";
    let no_key = (!repository.can_read()).then(|| NO_KEY.to_owned());
    owner_warning(repository).into_iter().chain(no_key)
}

/// What a backup would take.
struct Forecast {
    stored_bytes: Option<u64>,
    seconds: Option<f64>,
}

/// What a sample says of `data_bytes`, within the limits.
fn forecast(
    engine: &Engine,
    options: &BackupOptions,
    repository: &Repository,
    estimate: &Estimate,
    data_bytes: u64,
) -> Result<Forecast> {
    let stored_bytes = estimate.stored_bytes(data_bytes);
    let mut limits = vec![(data_bytes, &engine.limits.read)];
    if let Some(stored) = stored_bytes {
        limits.push((stored, &engine.limits.write));
        if repository.has_link() {
            limits.push((stored, &options.repo.link.upload));
        }
    }
    let seconds = estimate.seconds(data_bytes, engine.wide()?.shard_count());
    Ok(Forecast {
        stored_bytes,
        seconds: estimate::within_limits(seconds, &limits),
    })
}

/// What the repository may not have room for.
fn room_warning(stored_bytes: Option<u64>, free_bytes: Option<u64>) -> Option<String> {
    let (stored, free) = (stored_bytes?, free_bytes?);
    (stored > free).then(|| {
        let (stored, free) = (format_bytes(stored), format_bytes(free));
        format!("the repository has room for {free}, and the backup may take about {stored}")
    })
}

/// A directory can only be backed up in full.
fn require_full(options: &BackupOptions) -> Result<()> {
    if options.backup_type == BackupType::Full && options.base.is_none() {
        return Ok(());
    }
    let hint = match options.backup_type {
        BackupType::Full => {
            "leave out --base: a full backup has none; blocks that did not change are not stored again"
        }
        _ => "use --type full; blocks that did not change are not stored again",
    };
    Err(Error::new(
        Kind::Usage,
        "a directory has no log, so it can only be backed up in full",
    )
    .object(options.source.clone())
    .hint(hint))
}

/// Of a page store nothing can be left out.
pub(crate) fn require_whole(source: &str, exclude: &[String], one_file_system: bool) -> Result<()> {
    if exclude.is_empty() && !one_file_system {
        return Ok(());
    }
    Err(
        Error::new(Kind::Usage, "a page store is backed up as a whole")
            .object(source)
            .hint("leave out --exclude and --one-file-system"),
    )
}

/// What the repository holds already, and what a sample of the source says.
struct Outlook {
    repository: Arc<Repository>,
    earlier: Earlier,
    estimate: Estimate,
}

async fn look(
    engine: &Engine,
    shard: &Shard,
    (options, ground): Asked<'_>,
    origin: &TreeOrigin,
) -> Result<Outlook> {
    let access = &options.repo;
    let repository = Arc::new(access.open(shard).await?);
    let source = SourceName {
        url: origin.source.url(),
        kind: TREE_KIND,
        host: &options.host(),
    };
    let mut earlier = match ground {
        Ground::Earlier => find_parent(shard, &repository, source).await?,
        Ground::Nothing => base::only_its_id(shard, &repository, source).await?,
    };
    let locked_out = key::locked_out_warning(shard, &repository).await;
    earlier.warnings.extend(locked_out);
    let estimate = match options.estimate {
        true => {
            let (source, tree) = (&origin.source, &origin.tree);
            estimate::sample(shard, source, tree, options.level, &engine.limits.read).await?
        }
        false => Estimate::default(),
    };
    Ok(Outlook {
        repository,
        earlier,
        estimate,
    })
}

fn plan_pages(engine: &Engine, asked: Asked<'_>, tick: Tick<'_>) -> Result<BackupPlan> {
    let (options, _) = asked;
    require_whole(&options.source, &options.exclude, options.one_file_system)?;
    let started = Timestamp::now();
    let progress = Progress::default();
    let store = Arc::new(LiveStore::open(&options.source)?);
    store.pace(&engine.limits.read, engine.gentle);
    let (hold, unheld) = base::hold_log(&store);
    let checkpoint = store.checkpoint()?;
    let (repository, footing) =
        find_footing(engine, asked, (&store, &checkpoint), &progress, tick)?;
    refuse_source_below(&repository, store.path())?;
    store.watch().check()?;
    let unheld = unheld.or_else(|| base::hold_from(hold.as_ref()?, checkpoint.control.redo));
    let base = footing.base();
    let predecessor = footing.predecessor(&store, &checkpoint, &options.host());
    let Footing {
        backup_type,
        reason,
        parent,
        latest,
        changed,
        mut warnings,
    } = footing;
    warnings.extend(unheld);
    warnings.extend(access_warnings(&repository));
    let tables = checkpoint.catalogue.tables();
    let pages: u64 = tables.values().map(|table| u64::from(table.pages)).sum();
    let source_bytes = mover_repo::block_bytes(pages);
    let changed_bytes = changed.as_ref().map(changed_bytes);
    Ok(BackupPlan {
        source: options.source.clone(),
        repository: repository.url().to_owned(),
        backup_type,
        reason: reason.clone(),
        base: base.map(|base| base.id),
        parent: parent.as_ref().map(|parent| parent.id),
        parent_source: other_source(parent.as_ref(), store.url()),
        reads_earlier_backups: repository.can_read(),
        files: tables.len() as u64,
        dirs: 0,
        symlinks: 0,
        hardlinks: 0,
        source_bytes,
        data_bytes: changed_bytes.unwrap_or(source_bytes),
        estimated_stored_bytes: None,
        estimated_seconds: None,
        repository_free_bytes: repository.store().free_bytes(),
        sampled_bytes: 0,
        warnings,
        prepared: Prepared {
            options: options.clone(),
            repository,
            parent,
            latest,
            source: Source::Pages(Box::new(PageSource {
                store,
                checkpoint,
                changed,
                base,
                predecessor,
                hold,
            })),
            started,
        },
        spent: Spent::default(),
    })
}

/// Bytes of the pages that changed.
fn changed_bytes(changed: &Since) -> u64 {
    let pages = changed.pages.tables.values().map(PageSet::len);
    mover_repo::block_bytes(pages.sum())
}

/// Opens the repository and looks there for what the backup can stand on.
fn find_footing(
    engine: &Engine,
    (options, ground): Asked<'_>,
    (store, checkpoint): (&LiveStore, &Checkpoint),
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<(Arc<Repository>, Footing)> {
    let wanted = Wanted {
        backup_type: options.backup_type,
        base: options.base.as_deref(),
        host: &options.host(),
        ground,
    };
    let look = async |shard: Shard| {
        let repository = Arc::new(options.repo.open(&shard).await?);
        let footing = base::find(&shard, &repository, store, checkpoint, &wanted, || {
            progress.begin(Phase::Log, 0, 0);
        });
        let mut footing = footing.await?;
        let locked_out = key::locked_out_warning(&shard, &repository).await;
        footing.warnings.extend(locked_out);
        Ok((repository, footing))
    };
    only(mover_io::run(&engine.single(), look, |stop| {
        log_work::pass_on(store.watch(), 0, progress, &mut *tick, stop);
    })?)
}

/// What a copied source adds to the backup's metadata.
struct Copied {
    origin: Origin,
    totals: Totals,
    gathered: Gathered,
    log: Option<LogPart>,
}

/// The part of the log that a backup of a page store stands on.
struct LogPart {
    store: Arc<LiveStore>,
    identity: LogIdentity,
    range: LsnRange,
    mark: LogMark,
    base: Option<Base>,
    /// Pages that this part of the log makes good.
    torn_pages: u64,
}

/// Makes the backup that was planned.
pub fn execute(engine: &Engine, plan: BackupPlan, tick: Tick<'_>) -> Result<BackupSummary> {
    let clock = Clock::start();
    let progress = Progress::default();
    let Prepared {
        options,
        repository,
        parent,
        latest,
        source,
        started,
    } = plan.prepared;

    progress.begin(Phase::Prepare, 0, 0);
    let source_blocks = plan.source_bytes / BLOCK_BYTES as u64 + plan.files;
    let request = BackupRequest {
        parent: parent.as_ref(),
        latest,
        started,
        level: options.level,
        index_bytes: engine.index_bytes_beside(source.names_bytes()),
        source_blocks,
        moved: source.may_have_moved(),
    };
    let _session = SessionGuard::new(engine, &repository);
    let run = begin_run(engine, &repository, &request, &mut |stop| {
        tick(&progress, stop)
    })?;
    let mut warnings = plan.warnings;
    warnings.extend(run.warning.clone());
    // Only what the run has read of it is needed from here on.
    drop(parent);
    let (backup_type, reason) = match plan.backup_type {
        BackupType::Full => (BackupType::Full, plan.reason),
        _ if run.parent().is_none() => (BackupType::Full, run.warning.clone()),
        other => (other, plan.reason),
    };

    let work = Work {
        engine,
        run: &run,
        progress: &progress,
    };
    let mut copied = copy_source(&work, source, backup_type, &mut warnings, &mut *tick)?;
    warnings.extend(damage_warnings(&run, &copied.origin));
    let parent = run.parent();
    let draft = BackupMetadata {
        backup_type,
        reason,
        ..draft(&options, &copied, &repository, started)
    };
    let committed = publish(engine, run, &mut copied, draft, &mut |stop| {
        tick(&progress, stop)
    })?;
    let log = copied.log.as_ref();
    warnings.extend(log.and_then(base::testify));
    warnings.extend(clock_warning(&committed.metadata));
    Ok(summary(Ended {
        committed,
        parent,
        parent_source: parent.and(plan.parent_source),
        bytes_copied: copied.gathered.bytes_copied,
        looked_through: log.map_or_else(BytesRead::default, |log| log.store.bytes_read()),
        torn_pages: log.map_or(0, |log| log.torn_pages),
        warnings,
        repository: &repository,
        engine: clock
            .report(copied.gathered.shards, repository.link_report())
            .with_plan(plan.spent),
        totals: copied.totals,
    }))
}

/// What a clock that went back made of the backup's id.
fn clock_warning(metadata: &BackupMetadata) -> Option<String> {
    let (named, started) = (metadata.backup_id.started(), metadata.started);
    (named > started).then(|| {
        format!(
            "the clock went back: this backup began at {started}, and the one before it later than that. So that it is the later of the two, it is named as if it had begun right behind that one, at {named}. Check the clock"
        )
    })
}

/// What the parent could not be used for, and what the source has lost since then.
fn damage_warnings(run: &BackupRun, origin: &Origin) -> Vec<String> {
    let mut warnings = match origin {
        Origin::Pages(pages) => pages.lost_warnings(),
        Origin::Tree(_) => Vec::new(),
    };
    let damaged = run.damaged_extents();
    if damaged > 0 {
        warnings.insert(0, format!(
            "{damaged} parts of the parent backup are damaged; their blocks were stored anew. Run `helios-mover verify`"
        ));
    }
    warnings
}

fn begin_run(
    engine: &Engine,
    repository: &Arc<Repository>,
    request: &BackupRequest<'_>,
    tick: &mut dyn FnMut(&mover_io::Stop),
) -> Result<BackupRun> {
    let begin = async |shard: Shard| {
        BackupRun::begin(&shard, repository, request, engine.limits.write.clone()).await
    };
    only(mover_io::run(&engine.single(), begin, tick)?)
}

/// What copying needs beside the source.
struct Work<'a> {
    engine: &'a Engine,
    run: &'a BackupRun,
    progress: &'a Progress,
}

impl Work<'_> {
    /// Copies these files on as many shards as `bytes`, which are to be read of them, are worth.
    fn copy(
        &self,
        origin: &Origin,
        files: Vec<(u32, u64)>,
        bytes: u64,
        gathered: &mut Gathered,
        tick: Tick<'_>,
    ) -> Result<()> {
        let config = match bytes <= SINGLE_BYTES_MAX {
            true => self.engine.single_for_data(),
            false => self.engine.wide()?,
        };
        let (progress, limits) = (self.progress, &self.engine.limits);
        let job = (origin, self.run, progress, limits);
        copy::run(&config, job, files, gathered, &mut |stop| {
            tick(progress, stop)
        })
    }
}

fn copy_source(
    work: &Work<'_>,
    source: Source,
    backup_type: BackupType,
    warnings: &mut Vec<String>,
    tick: Tick<'_>,
) -> Result<Copied> {
    let mut source = match source {
        Source::Tree(tree) => return copy_tree(work, tree, tick),
        Source::Pages(source) => source,
    };
    let (store, checkpoint) = (&source.store, &source.checkpoint);
    let switch = || Ok(base::switch_epoch(store, checkpoint));
    // Not gentle: the database may wait for the tracker.
    let single = work.engine.single();
    let unswitched = log_work::watched(&single, store.watch(), work.progress, &mut *tick, switch)?;
    warnings.extend(unswitched);
    if backup_type == BackupType::Full {
        (source.changed, source.base) = (None, None);
    }
    copy_pages(work, *source, tick)
}

fn copy_tree(work: &Work<'_>, tree: Box<TreeOrigin>, tick: Tick<'_>) -> Result<Copied> {
    let totals = tree.tree.totals;
    work.progress.begin(Phase::Copy, totals.bytes, totals.files);
    let entries = tree.tree.entries();
    let sizes = (0..entries.len()).map(|at| entries.content_bytes(at));
    let files = (0..).zip(sizes).collect();
    let origin = Origin::Tree(tree);
    let mut gathered = Gathered::default();
    work.copy(&origin, files, u64::MAX, &mut gathered, &mut *tick)?;
    work.progress.begin(Phase::Commit, 0, 0);
    if let Origin::Tree(tree) = &origin {
        let single = work.engine.single();
        log_work::interruptible(&single, work.progress, tick, |go_on| {
            tree.source.check_tree_while(&tree.tree, go_on)
        })?;
    }
    Ok(Copied {
        origin,
        totals,
        gathered,
        log: None,
    })
}

/// Tables first, then the log up to an end behind all that was read of them.
fn copy_pages(work: &Work<'_>, source: PageSource, tick: Tick<'_>) -> Result<Copied> {
    let PageSource {
        store,
        checkpoint,
        mut changed,
        base,
        predecessor,
        hold,
    } = source;
    let base_end = base.map(|base| base.end);
    let origin = PageOrigin::new(&store, checkpoint, base_end, |table, path| {
        let base = work.run.parent_blocks(path).map(|blocks| blocks as u32);
        match &mut changed {
            Some(changed) => pages::changes_since(changed, table, base),
            None => Changes::All,
        }
    })?
    .compared_with(predecessor);
    drop(changed);
    let tables = origin.tables();
    let table_bytes = tables.iter().map(|(_, bytes)| bytes).sum();
    let read_bytes = origin.read_bytes();
    work.progress
        .begin(Phase::Copy, table_bytes, tables.len() as u64);
    let mut gathered = Gathered::default();
    let mut origin = Origin::Pages(Box::new(origin));
    work.copy(&origin, tables, read_bytes, &mut gathered, &mut *tick)?;

    let Origin::Pages(pages) = &mut origin else {
        return Err(Error::new(Kind::Internal, "a page store is not a tree"));
    };
    let add = || pages.add_log(base_end, |path| work.run.parent_blocks(path).is_some());
    let single = work.engine.single_for_data();
    let range = log_work::watched(&single, store.watch(), work.progress, &mut *tick, add)?;
    let (others, log_bytes) = (pages.others(), pages.log_bytes());
    // What is kept and holes are gone through, too.
    let others_bytes = others.iter().map(|(_, bytes)| bytes).sum();
    let checkpoint = pages.checkpoint();
    let log = LogPart {
        store: store.clone(),
        range,
        identity: checkpoint.control.identity,
        mark: base::mark(&store, checkpoint, range.end, MARK_BLOCKS)?,
        base,
        torn_pages: pages.torn_pages(),
    };
    let totals = pages.totals();
    work.progress
        .begin(Phase::Copy, others_bytes, others.len() as u64);
    work.copy(&origin, others, log_bytes, &mut gathered, tick)?;
    drop(hold);
    work.progress.begin(Phase::Commit, 0, 0);
    Ok(Copied {
        origin,
        totals,
        gathered,
        log: Some(log),
    })
}

/// Joins what the shards made, which it takes from what was copied, into the tree and publishes the manifest.
fn publish(
    engine: &Engine,
    run: BackupRun,
    copied: &mut Copied,
    draft: BackupMetadata,
    tick: &mut dyn FnMut(&mover_io::Stop),
) -> Result<Committed> {
    let outcomes = std::mem::take(&mut copied.gathered.outcomes);
    let nodes = std::mem::take(&mut copied.gathered.nodes);
    let origin = &copied.origin;
    // The shard's body may be called once per shard, and there is one shard.
    let work = Mutex::new(Some((run, outcomes, nodes, draft)));
    let commit = async |shard: Shard| {
        let taken = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((run, outcomes, nodes, draft)) = taken else {
            return Err(Error::new(Kind::Internal, "a backup was committed twice"));
        };
        let entries = origin.entries();
        run.commit(&shard, outcomes, nodes, entries, draft).await
    };
    only(mover_io::run(&engine.single(), commit, tick)?)
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
    fn a_repository_without_room_for_the_estimate_is_told() {
        assert_eq!(room_warning(Some(100), None), None);
        assert_eq!(room_warning(None, Some(100)), None);
        assert_eq!(room_warning(Some(100), Some(100)), None);
        assert!(room_warning(Some(101), Some(100)).is_some());
    }

    #[test]
    fn a_directory_is_only_backed_up_in_full() {
        let options = BackupOptions {
            repo: RepoAccess {
                url: "file:///nowhere".into(),
                credentials: Default::default(),
                link: Default::default(),
            },
            source: "dir:///nowhere".into(),
            host: None,
            backup_type: BackupType::Incremental,
            base: None,
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
