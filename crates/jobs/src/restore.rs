//! `restore`: a backup becomes a directory again. Plan, then execute.
//!
//! Invariants: without `--delta` the target appears at its name only when it is complete and durable; with
//! `--delta` it carries a marker until then. Every block that is written matched its SHA-256, and every block
//! that is left alone was read and matched it too. Names and metadata are put back beneath the target's root,
//! whatever the backup's entries say.

mod foreign;
mod names;
mod protect;
mod room;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mover_base::units::{count, format_bytes};
use mover_base::{BackupId, Error, Kind, Result};
use mover_io::Shard;
use mover_repo::{BackupView, Origin};
use mover_source::{DirTarget, ExtraCount, Finished, TargetMode, TargetPlan};
use serde::{Serialize, Serializer};

use self::foreign::foreign_names;
use self::names::Names;
use self::protect::Protected;
use crate::backup::only;
use crate::choice::{Choice, choose, source_at};
use crate::estimate::{Estimate, sample_stored, within_limits};
use crate::extents::ExtentQueue;
use crate::fill::{FillCounts, Filler, Ready, Sought};
use crate::log_work::{interruptible, watched};
use crate::machine::Clock;
use crate::overlap::{self, refuse_in_target};
use crate::progress::{Phase, Progress};
use crate::report::{EngineReport, ShardFigures, Spent};
use crate::settings::{Engine, JobLimits, RepoAccess, Tick};
use crate::settle::{Settled, in_target, is_page_store, require_plain, segment_bytes, settle};

/// What to restore, and where to.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Where from.
    pub repo: RepoAccess,
    /// Which backup.
    pub choice: Choice,
    /// The directory that shall hold it.
    pub to: PathBuf,
    /// Bring an existing directory to the backup's state, writing only blocks that differ.
    pub delta: bool,
    /// Let the plan read a sample of the backup, to say how long a fresh restore would take.
    pub estimate: bool,
}

impl RestoreOptions {
    fn mode(&self) -> TargetMode {
        match self.delta {
            true => TargetMode::Delta,
            false => TargetMode::Fresh,
        }
    }
}

/// What a restore would do.
#[derive(Serialize)]
pub struct RestorePlan {
    /// The backup.
    pub backup_id: BackupId,
    /// URL of what it was made of.
    pub source: String,
    /// The machine that made it.
    pub host: String,
    /// URL of the repository.
    pub repository: String,
    /// The directory that will hold it.
    #[serde(serialize_with = "as_text")]
    pub target: PathBuf,
    /// `fresh` or `delta`.
    pub mode: &'static str,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files.
    pub hardlinks: u64,
    /// Sizes of all files.
    pub bytes: u64,
    /// What they need on disk: less where there are holes.
    pub data_bytes: u64,
    /// Packs that will be read.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Free bytes at the target; none where its file system tells no size.
    pub free_bytes: Option<u64>,
    /// Names that are not in the backup and will be removed (delta only), once [`RestorePlan::count_removals`] looked.
    pub removes: Option<u64>,
    /// Directories that could not be looked into for that without a change to them; a warning names the first.
    pub uncounted_dirs: Option<u64>,
    /// The first names at the top of the target, if there are any and none of them is in the backup (delta only): whoever restores over
    /// them should be asked.
    pub foreign_names: Vec<String>,
    /// The source that the target is by its path and this host, if the repository holds backups of it (among the newest 100) and this one
    /// is of another (delta only): whoever restores over it should be asked.
    pub replaces_source: Option<String>,
    /// How long it would take, by a sample of the backup that was read, and the limits; the target, which is not written to, may be
    /// slower. Absent where there is neither a sample nor a limit, and with delta, where it hangs on what is there.
    pub estimated_seconds: Option<f64>,
    /// Bytes in the sample.
    pub sampled_bytes: u64,
    /// Things to know.
    pub warnings: Vec<String>,
    #[serde(skip)]
    prepared: Prepared,
}

struct Prepared {
    view: Arc<BackupView>,
    target: TargetPlan,
    /// On planning.
    spent: Spent,
}

/// What a restore did.
#[derive(Debug, Serialize)]
pub struct RestoreSummary {
    /// The backup.
    pub backup_id: BackupId,
    /// URL of what it was made of.
    pub source: String,
    /// The machine that made it.
    pub host: String,
    /// The directory.
    #[serde(serialize_with = "as_text")]
    pub target: PathBuf,
    /// `fresh` or `delta`.
    pub mode: &'static str,
    /// Sizes of all files.
    pub bytes: u64,
    /// Bytes read from the repository.
    pub bytes_read: u64,
    /// Bytes written to the target.
    pub bytes_written: u64,
    /// Bytes of the target that were right already (delta only).
    pub bytes_unchanged: u64,
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
    /// Names that were not in the backup and were removed (delta only).
    pub removed: u64,
    /// Where a page store stands after it was recovered; absent for a directory.
    pub settled: Option<Settled>,
    /// `bytes` per second of the whole job, with everything durable at its end.
    pub bytes_per_second: f64,
    /// What could not be put back.
    pub warnings: Vec<String>,
    /// The machinery.
    pub engine: EngineReport,
}

/// A path as people read it: JSON has no room for bytes that are no UTF-8, and a finished restore must not fail for that.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Looks at backup and target and says what a restore would do. Changes nothing.
pub fn plan(engine: &Engine, options: &RestoreOptions, tick: Tick<'_>) -> Result<RestorePlan> {
    let clock = Clock::start();
    let mut plan = look(engine, options, tick)?;
    plan.prepared.spent.add(Spent::since(&clock));
    Ok(plan)
}

fn look(engine: &Engine, options: &RestoreOptions, tick: Tick<'_>) -> Result<RestorePlan> {
    let progress = Progress::default();
    let mode = options.mode();
    let open = async |shard: Shard| open(&shard, options).await;
    let Opened {
        view,
        replaces_source,
        mut warnings,
    } = only(mover_io::run(&engine.single(), open, |stop| {
        tick(&progress, stop)
    })?)?;
    check_figures(&view)?;
    if is_page_store(&view) {
        require_plain(view.items.entries())?;
    }
    let mut target = DirTarget::plan(&options.to, mode)?;
    refuse_in_target(view.repository(), target.path())?;
    target.spare(overlap::directory(view.repository()));
    let size = view.metadata.size_info.clone();
    // What a dead restore left takes space that comes free before it is needed.
    if mode == TargetMode::Fresh && target.dead_leftovers().is_empty() {
        target.check_space(bytes_needed(&view))?;
        let (needed, more) = (bytes_needed(&view), redo_bytes_max(&view));
        let free = target.free_bytes()?;
        warnings.extend(free.and_then(|free| room_warning(needed, more, free)));
    }
    let foreign_names = match mode {
        TargetMode::Fresh => Vec::new(),
        TargetMode::Delta => foreign_names(target.path(), view.items.entries())?,
    };
    warnings.extend(leftover_warnings(&target));
    warnings.extend(authenticity_warning(&view));
    let (packs, pack_bytes) = view.pack_totals();
    let estimate = match options.estimate && mode == TargetMode::Fresh {
        true => sample(engine, &view, tick)?,
        false => Estimate::default(),
    };
    let estimated_seconds = match mode {
        TargetMode::Fresh => seconds(engine, options, &view, &estimate)?,
        TargetMode::Delta => None,
    };
    Ok(RestorePlan {
        backup_id: view.id,
        source: view.metadata.source.url.clone(),
        host: view.metadata.source.host.clone(),
        repository: view.repository().url().to_owned(),
        target: target.path().to_owned(),
        mode: mode_name(mode),
        files: size.files,
        dirs: size.dirs,
        symlinks: size.symlinks,
        hardlinks: size.hardlinks,
        bytes: size.original_bytes,
        data_bytes: size.data_bytes,
        packs,
        pack_bytes,
        free_bytes: target.free_bytes()?,
        removes: None,
        uncounted_dirs: None,
        foreign_names,
        replaces_source,
        estimated_seconds,
        sampled_bytes: estimate.sampled_bytes,
        warnings,
        prepared: Prepared {
            view,
            target,
            spent: Spent::default(),
        },
    })
}

/// What is to be restored.
struct Opened {
    view: Arc<BackupView>,
    replaces_source: Option<String>,
    warnings: Vec<String>,
}

async fn open(shard: &Shard, options: &RestoreOptions) -> Result<Opened> {
    let repository = Arc::new(options.repo.open(shard).await?);
    repository.require_reading()?;
    let (id, warnings) = choose(shard, &repository, &options.choice, options.delta).await?;
    let view = Arc::new(BackupView::open(shard, &repository, id).await?);
    let replaces_source = match options.delta {
        true => source_at(shard, &repository, &options.to, &view.metadata).await?,
        false => None,
    };
    Ok(Opened {
        view,
        replaces_source,
        warnings,
    })
}

/// How fast the backup can be read.
fn sample(engine: &Engine, view: &Arc<BackupView>, tick: Tick<'_>) -> Result<Estimate> {
    let config = engine.single_for_data();
    let limit = &engine.limits.read;
    let sample = async |shard: Shard| sample_stored(&shard, view, limit).await;
    only(mover_io::run(&config, sample, |stop| {
        tick(&Progress::default(), stop)
    })?)
}

/// How long a fresh restore takes at least.
fn seconds(
    engine: &Engine,
    options: &RestoreOptions,
    view: &BackupView,
    estimate: &Estimate,
) -> Result<Option<f64>> {
    let data_bytes = view.metadata.size_info.data_bytes;
    let mut limits = vec![(data_bytes, &engine.limits.write)];
    // Packs that are needed in part are not read as a whole: only a sample tells how much is.
    if let Some(read_bytes) = estimate.stored_bytes(data_bytes) {
        let read_bytes = read_bytes.min(view.pack_totals().1);
        limits.push((read_bytes, &engine.limits.read));
        if view.repository().has_link() {
            limits.push((read_bytes, &options.repo.link.download));
        }
    }
    let shards = engine.wide_to_read(view.repository())?.shard_count();
    Ok(within_limits(estimate.seconds(data_bytes, shards), &limits))
}

impl RestorePlan {
    /// Counts what would be removed: the whole target is listed for it, so that only who wants to know has to wait. What kept it
    /// from being counted is one more warning, and that there is no room, for which the restore would be refused.
    pub fn count_removals(&mut self, engine: &Engine, tick: Tick<'_>) -> Result<()> {
        let clock = Clock::start();
        let Prepared { view, target, .. } = &self.prepared;
        if target.mode() == TargetMode::Delta {
            let wanted = view.items.entries();
            let count = |go_on: &dyn Fn() -> Result<()>| target.count_extra(wanted, go_on);
            let progress = Progress::default();
            let counted = interruptible(&engine.single(), &progress, &mut *tick, count)?;
            let lack = room::lack(engine, target, bytes_needed(view), &progress, tick)?;
            self.removes = Some(counted.names);
            self.uncounted_dirs = Some(counted.closed);
            self.warnings.extend(closed_warning(&counted));
            self.warnings.extend(lack);
        }
        self.prepared.spent.add(Spent::since(&clock));
        Ok(())
    }
}

/// What of a target could not be counted.
fn closed_warning(counted: &ExtraCount) -> Option<String> {
    let first = counted.first_closed.as_ref()?;
    let more = match counted.closed.saturating_sub(1) {
        0 => String::new(),
        more => format!(" and {} more", count(more)),
    };
    Some(format!(
        "not all that would be removed could be counted: its mode keeps this user, who owns it, from looking into {first}{more}; the restore gives its owner that right"
    ))
}

/// Who forges a manifest may state any sizes in it: what is looked at and shown by them must be what the entries come to.
fn check_figures(view: &BackupView) -> Result<()> {
    let entries = view.items.entries();
    let files = (0..entries.len()).filter(|at| entries.is_file(*at));
    let stated = &view.metadata.size_info;
    if (stated.files, stated.original_bytes) == (files.count() as u64, content_bytes(view)) {
        return Ok(());
    }
    let what = "the manifest states another number or size of files than its entries have";
    Err(Error::new(Kind::Corrupt, what)
        .object(format!("backups/{}", view.id))
        .hint("no backup of this program does: the manifest may be forged; restore another backup"))
}

/// Sum of the files' sizes, by the entries.
fn content_bytes(view: &BackupView) -> u64 {
    let entries = view.items.entries();
    let sizes = (0..entries.len()).map(|at| entries.content_bytes(at));
    sizes.fold(0, u64::saturating_add)
}

/// Bytes that a target must have room for: the files, and of a page store the log segment that its new history begins with.
fn bytes_needed(view: &BackupView) -> u64 {
    // No more than the entries have: the plan checked the figures.
    let size = &view.metadata.size_info;
    let files = size.data_bytes.min(size.original_bytes);
    match is_page_store(view) {
        true => files.saturating_add(segment_bytes(view)),
        false => files,
    }
}

/// What recovery of a page store may write beside that: pages that are in the log alone, of each of which it holds an image, and
/// one more segment where the log is closed. Mostly it is far less, since most images are of pages that the files have, so that
/// nothing is refused for it. By how much the log extends tables without an image stays unknown.
fn redo_bytes_max(view: &BackupView) -> u64 {
    match view.metadata.lsn_range.filter(|_| is_page_store(view)) {
        Some(range) => {
            let log_bytes = range.end.0.saturating_sub(range.start.0);
            log_bytes.saturating_add(segment_bytes(view))
        }
        None => 0,
    }
}

/// What is to be known of a target with `free_bytes` where `needed` bytes will be written, and up to `more` by recovery.
fn room_warning(needed: u64, more: u64, free_bytes: u64) -> Option<String> {
    let most = needed.saturating_add(more);
    (free_bytes < most).then(|| {
        format!(
            "the target file system may become full when the page store is recovered: that and the files take up to {}, and it has {}",
            format_bytes(most),
            format_bytes(free_bytes)
        )
    })
}

/// Refuses a target that has the repository in it, as far as that can be seen without a change to it.
fn refuse_repository(
    engine: &Engine,
    view: &BackupView,
    target: &TargetPlan,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<()> {
    let wanted = view.items.entries();
    let count = |go_on: &dyn Fn() -> Result<()>| target.count_extra(wanted, go_on);
    interruptible(&engine.single(), progress, tick, count).map(drop)
}

/// Refuses to begin on what is there where a pack is not, by the names and lengths of a listing: what a target has is no longer
/// whole after its first change, and would not become so again.
fn require_packs(
    engine: &Engine,
    view: &BackupView,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<()> {
    let look = async |shard: Shard| {
        mover_repo::verify::missing_pack(&shard, view.repository(), view.packs()).await
    };
    let missing = only(mover_io::run(&engine.single(), look, |stop| {
        tick(progress, stop)
    })?)?;
    match missing {
        None => Ok(()),
        Some(missing) => Err(Error::new(
            Kind::Corrupt,
            format!("the backup cannot be restored: {missing}"),
        )
        .object(view.id.to_string())
        .hint("nothing was changed; verify the backup, and restore another one meanwhile")),
    }
}

/// What its seal says of who made a backup, if that is not who has its key.
fn authenticity_warning(view: &BackupView) -> Option<String> {
    let is_open = view.repository().is_encrypted() && view.origin == Origin::WriteOnly;
    is_open.then(|| {
        format!(
            "backup {} was written without the repository's key: by a host that has only its public key, or by anybody else who knows that and may write to the storage",
            view.id
        )
    })
}

fn leftover_warnings(target: &TargetPlan) -> Vec<String> {
    let dead = target.dead_leftovers().iter().map(|path| {
        format!(
            "an earlier restore to the target was killed; what it left is removed first: {}",
            path.display()
        )
    });
    let unknown = target.unknown_leftovers().iter().map(|path| {
        format!(
            "an earlier restore may have left this; it stays, because it is not marked as unfinished: {}",
            path.display()
        )
    });
    dead.chain(unknown).collect()
}

/// Makes room for the restore: removes what dead ones left, and gives what could not be removed.
fn clear_leftovers(
    engine: &Engine,
    target: &TargetPlan,
    bytes_needed: u64,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<Vec<String>> {
    if target.dead_leftovers().is_empty() {
        return Ok(Vec::new());
    }
    let remove = |go_on: &dyn Fn() -> Result<()>| target.remove_leftovers(go_on);
    let failures = interruptible(&engine.single(), progress, tick, remove)?;
    if target.mode() == TargetMode::Fresh {
        target.check_space(bytes_needed)?;
    }
    Ok(failures)
}

/// Makes the restore that was planned.
pub fn execute(engine: &Engine, plan: RestorePlan, tick: Tick<'_>) -> Result<RestoreSummary> {
    execute_telling(engine, plan, &|_| {}, tick)
}

/// The same. `tell` gets what is to be known before the first change to the target, which stands in the summary too, right behind
/// the warnings of the plan; and what becomes of the backup's hold where the restore fails.
pub fn execute_telling(
    engine: &Engine,
    plan: RestorePlan,
    tell: &dyn Fn(&str),
    tick: Tick<'_>,
) -> Result<RestoreSummary> {
    let clock = Clock::start();
    let progress = Progress::default();
    let Prepared {
        view,
        target,
        spent,
    } = plan.prepared;
    progress.begin(Phase::Prepare, 0, 0);
    let protected = match target.mode() {
        TargetMode::Fresh => None,
        TargetMode::Delta => {
            let looked = look_before(engine, &view, &target, tell, &progress, &mut *tick);
            Some(looked?)
        }
    };
    let (restored, not_removed, protected) =
        restore_protected(engine, &view, target, protected, &progress, &mut *tick)?;
    let Restored {
        parts,
        removed,
        settled,
        finished,
    } = restored;

    let (counts, shards) = added_up(parts);
    let mut warnings = plan.warnings;
    let told = protected.as_ref().map(Protected::warnings);
    warnings.extend_from_slice(told.unwrap_or_default());
    warnings.extend(not_removed);
    warnings.extend(finished.warnings);
    if finished.warnings_more > 0 {
        warnings.push(format!("{} warnings more", finished.warnings_more));
    }
    if let Some(protected) = protected {
        warnings.extend(protected.end(&progress, tick));
    }
    let engine = clock.report(shards, view.link_report());
    let engine = engine.with_plan(spent);
    Ok(RestoreSummary {
        backup_id: view.id,
        source: plan.source,
        host: plan.host,
        target: plan.target,
        mode: plan.mode,
        bytes: plan.bytes,
        bytes_read: counts.read_bytes,
        bytes_written: counts.written_bytes,
        bytes_unchanged: counts.unchanged_bytes,
        hole_bytes: counts.hole_bytes,
        files: plan.files,
        dirs: plan.dirs,
        symlinks: plan.symlinks,
        hardlinks: plan.hardlinks,
        removed,
        settled,
        bytes_per_second: plan.bytes as f64 / engine.seconds.max(1e-9),
        warnings,
        engine,
    })
}

/// What is looked at before the first change to what is there. The backup is kept from being deleted from here on.
fn look_before<'a>(
    engine: &'a Engine,
    view: &'a BackupView,
    target: &TargetPlan,
    tell: protect::Tell<'a>,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<Protected<'a>> {
    // What would go is looked through for the repository.
    if overlap::directory(view.repository()).is_some() {
        refuse_repository(engine, view, target, progress, &mut *tick)?;
    }
    room::require(engine, target, bytes_needed(view), progress, &mut *tick)?;
    let protected = Protected::begin(engine, view, target.path(), tell, progress, &mut *tick)?;
    match require_packs(engine, view, progress, tick) {
        Ok(()) => Ok(protected),
        Err(error) => {
            protected.cancel();
            Err(error)
        }
    }
}

/// Takes the target and restores to it; gives what of dead restores could not be removed, and the hold. Where it fails, the hold
/// goes and the target is as it was if nothing was changed yet; otherwise the hold stays.
fn restore_protected<'a>(
    engine: &Engine,
    view: &Arc<BackupView>,
    target: TargetPlan,
    mut protected: Option<Protected<'a>>,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<(Restored, Vec<String>, Option<Protected<'a>>)> {
    let (target, not_removed) = match begin(engine, view, target, progress, &mut *tick) {
        Ok(begun) => begun,
        Err(error) => {
            if let Some(protected) = protected {
                protected.cancel();
            }
            return Err(error);
        }
    };
    // Nobody else has the target now.
    let held = match &mut protected {
        Some(protected) => protected.take_over(progress, &mut *tick),
        None => Ok(()),
    };
    if let Err(error) = held {
        target.leave();
        return Err(match protected {
            Some(protected) => protected.leave(error),
            None => error,
        });
    }
    match restore(engine, view, target, progress, &mut *tick) {
        Ok(restored) => Ok((restored, not_removed, protected)),
        Err(error) => {
            let error = match protected {
                Some(protected) => protected.keep(error),
                None => error,
            };
            Err(protect::told(engine, view, error, progress, tick))
        }
    }
}

/// Makes room and takes the target; gives what of dead restores could not be removed.
fn begin(
    engine: &Engine,
    view: &BackupView,
    target: TargetPlan,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<(DirTarget, Vec<String>)> {
    let not_removed = clear_leftovers(engine, &target, bytes_needed(view), progress, tick)?;
    Ok((DirTarget::begin(target)?, not_removed))
}

/// What came of the work on the target.
struct Restored {
    parts: Vec<Part>,
    removed: u64,
    settled: Option<Settled>,
    finished: Finished,
}

/// What all shards did.
fn added_up(parts: Vec<Part>) -> (FillCounts, Vec<ShardFigures>) {
    let mut counts = FillCounts::default();
    parts.iter().for_each(|part| counts.add(&part.counts));
    (counts, parts.into_iter().map(|part| part.figures).collect())
}

/// Fills the target and completes it, or gives it up.
fn restore(
    engine: &Engine,
    view: &Arc<BackupView>,
    target: DirTarget,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<Restored> {
    let mode = target.mode();
    let filled = fill(engine, view, &target, mode, progress, &mut *tick).and_then(|filled| {
        let settled = match is_page_store(view) {
            true => {
                let disk = Arc::new(target.disk()?);
                let settle = || settle(view, &target, disk.clone());
                let settled = watched(&engine.single(), disk.watch(), progress, tick, settle);
                Some(settled.map_err(in_target)?)
            }
            false => None,
        };
        progress.begin(Phase::Commit, 0, 0);
        Ok((filled, settled))
    });
    let ((parts, removed), settled) = match filled {
        Ok(filled) => filled,
        Err(error) => {
            // The first error is the one to tell; what is left behind is recognisable as unfinished.
            if let Err(left) = target.abandon() {
                tracing::warn!(%left, "the unfinished restore could not be removed");
            }
            return Err(error);
        }
    };
    Ok(Restored {
        parts,
        removed,
        settled,
        finished: target.finish()?,
    })
}

/// Bytes of shares ahead of the one that is filled, if there are so many: one of full length, or several of small files, so that
/// the frames of more than the next file are fetched.
const READY_BYTES_MIN: u64 = 8 << 20;
/// Shares ahead at least where the repository lies behind a link: what one of them waits for, another covers.
const READY_LINK_MIN: usize = 2;
/// Shares ahead at most; each has a file open.
const READY_MAX: usize = 8;

/// What one shard brings back.
struct Part {
    counts: FillCounts,
    figures: ShardFigures,
}

/// What the shards share.
struct FillJob<'a> {
    view: &'a Arc<BackupView>,
    target: &'a DirTarget,
    names: &'a Names<'a>,
    mode: TargetMode,
    progress: &'a Progress,
    limits: JobLimits,
    extents: ExtentQueue,
    /// Bytes of each file that are not written yet.
    open_bytes: Vec<AtomicU64>,
}

/// Makes the names and fills the files; the metadata of directories is left to the end.
fn fill(
    engine: &Engine,
    view: &Arc<BackupView>,
    target: &DirTarget,
    mode: TargetMode,
    progress: &Progress,
    tick: Tick<'_>,
) -> Result<(Vec<Part>, u64)> {
    let removed = match mode {
        TargetMode::Fresh => 0,
        TargetMode::Delta => {
            let wanted = view.items.entries();
            let remove = |go_on: &dyn Fn() -> Result<()>| target.remove_extra(wanted, go_on);
            interruptible(&engine.single(), progress, &mut *tick, remove)?
        }
    };
    let names = Names::new(view, target, mode);
    names.make_first(engine, progress, &mut *tick)?;
    let bytes = view.metadata.size_info.original_bytes;
    progress.begin(Phase::Restore, bytes, view.metadata.size_info.files);
    let entries = view.items.entries();
    let sizes = || (0..entries.len()).map(|at| entries.content_bytes(at));
    let wide = engine.wide_to_read(view.repository())?;
    let job = FillJob {
        view,
        target,
        names: &names,
        mode,
        progress,
        limits: engine.limits.clone(),
        extents: ExtentQueue::new((0..).zip(sizes()), wide.shard_count()),
        open_bytes: sizes().map(AtomicU64::new).collect(),
    };
    let work = async |shard: Shard| fill_shard(&shard, &job).await;
    let parts = mover_io::run(&wide, work, |stop| tick(progress, stop))?;
    names.make_last(engine, progress, tick)?;
    Ok((parts, removed))
}

async fn fill_shard(shard: &Shard, job: &FillJob<'_>) -> Result<Part> {
    let mut filler = Filler::new(shard, job.view, job.mode, &job.limits);
    let mut sought = job.extents.claim().map(|share| filler.seek(share));
    let mut ready = VecDeque::new();
    loop {
        prepare_some(shard, &mut filler, job, &mut sought, &mut ready).await?;
        let Some(share) = ready.pop_front() else {
            break;
        };
        prepare_some(shard, &mut filler, job, &mut sought, &mut ready).await?;
        filler.fill(share, job.progress).await?;
        complete_files(&mut filler, job)?;
    }
    filler.drain(0, job.progress).await?;
    complete_files(&mut filler, job)?;
    let (counts, stages) = filler.finish();
    Ok(Part {
        counts,
        figures: ShardFigures {
            report: shard.report(),
            stages,
        },
    })
}

/// Begins shares, if any are left, until enough is ahead: their files are opened and their frames are on their way. The share
/// behind them is looked up meanwhile.
async fn prepare_some(
    shard: &Shard,
    filler: &mut Filler,
    job: &FillJob<'_>,
    sought: &mut Option<Sought>,
    ready: &mut VecDeque<Ready>,
) -> Result<()> {
    let ready_min = match job.view.repository().has_link() {
        true => READY_LINK_MIN,
        false => 1,
    };
    let enough = |ready: &VecDeque<Ready>| {
        let bytes: u64 = ready.iter().map(Ready::bytes).sum();
        ready.len() >= READY_MAX || (ready.len() >= ready_min && bytes >= READY_BYTES_MIN)
    };
    while !enough(ready) {
        shard.stop()?;
        let Some(next) = sought.take() else {
            return Ok(());
        };
        let item = next.item();
        let entry = job.view.entry(item)?;
        let open = filler.open(item, &entry, || job.names.open(item))?;
        ready.push_back(filler.prepare(open, next).await?);
        *sought = job.extents.claim().map(|share| filler.seek(share));
    }
    Ok(())
}

/// Completes the files of which everything is written.
fn complete_files(filler: &mut Filler, job: &FillJob<'_>) -> Result<()> {
    for (open, share) in filler.take_ended() {
        let at = open.item as usize;
        if job.open_bytes[at].fetch_sub(share.bytes(), Ordering::AcqRel) == share.bytes() {
            filler.complete(&open, job.target, &job.view.entry(open.item)?)?;
            job.progress.add_files(1);
        }
    }
    Ok(())
}

fn mode_name(mode: TargetMode) -> &'static str {
    match mode {
        TargetMode::Fresh => "fresh",
        TargetMode::Delta => "delta",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_recovery_may_fill_is_told() {
        assert_eq!(room_warning(100, 0, 100), None);
        assert_eq!(room_warning(100, 20, 120), None);
        let warning = room_warning(2 << 20, 1 << 20, 2 << 20).unwrap();
        assert!(warning.contains(&format_bytes(3 << 20)), "{warning}");
        assert!(room_warning(u64::MAX, 1, u64::MAX - 1).is_some());
    }

    #[test]
    fn what_could_not_be_counted_is_told_by_its_first_directory_and_their_number() {
        let told = |closed| {
            closed_warning(&ExtraCount {
                names: 7,
                closed,
                first_closed: (closed > 0).then(|| "base/1".to_owned()),
            })
        };
        assert_eq!(told(0), None);
        assert!(told(1).unwrap().contains("looking into base/1; the"));
        assert!(told(3).unwrap().contains("into base/1 and 2 more; the"));
    }
}
