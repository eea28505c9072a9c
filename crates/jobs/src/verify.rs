//! `verify`: is what is stored what was stored?
//!
//! Level `checksum` reads every byte that the backups need: preambles, seals, CRC-32 of frames, SHA-256 of every
//! block and node, that every map names blocks that exist, and the records (holds, annotations, sessions, tombstones). What a backup lacks that was deleted meanwhile is no
//! damage.
//!
//! Invariants: damage does not end the run, it is collected; a run that found any never reports `ok`; the same
//! pack is read once, however many backups share it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use mover_base::{BackupId, Result};
use mover_io::Shard;
use mover_repo::verify::{
    Damage, Inventory, NextPack, PACKS_AHEAD, PiecesAhead, Unreferenced, begin_pack, check_map,
    check_pack, finding,
};
use mover_repo::{PackInfo, Repository, StageSeconds, catalogue};
use serde::Serialize;

use crate::backup::only;
use crate::catalogue::{RECIPIENT_ONLY, authenticity};
use crate::machine::Clock;
use crate::progress::{Phase, Progress};
use crate::report::{EngineReport, ShardFigures};
use crate::settings::{Engine, RepoAccess, Tick, pieces_ahead};

/// How deeply to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Every stored byte, by its checksums and seals.
    Checksum,
}

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Which repository.
    pub repo: RepoAccess,
    /// How deeply.
    pub level: Level,
    /// One backup (an id, the beginning of one, or `latest`), or all.
    pub set: Option<String>,
}

/// Damage to one object.
#[derive(Debug, Clone, Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// The backups that need it.
    pub backups: Vec<BackupId>,
}

/// Whether one backup is sound.
#[derive(Debug, Clone, Serialize)]
pub struct BackupVerdict {
    /// The backup.
    pub backup_id: BackupId,
    /// No finding concerns it.
    pub ok: bool,
    /// What its seal says of who wrote it, like [`ShowDetails::authenticity`]; none where its manifest cannot be read.
    ///
    /// [`ShowDetails::authenticity`]: crate::catalogue::ShowDetails::authenticity
    pub authenticity: Option<&'static str>,
}

/// What a verification found.
#[derive(Debug, Serialize)]
pub struct VerifySummary {
    /// How deeply it looked.
    pub level: Level,
    /// Nothing is wrong.
    pub ok: bool,
    /// Every backup that was to be verified.
    pub backups: Vec<BackupVerdict>,
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Blocks whose SHA-256 was checked.
    pub blocks: u64,
    /// Packs that no backup needs: an interrupted job left them, or one is running. Counted for all backups only.
    pub unreferenced_packs: Option<u64>,
    /// Their bytes.
    pub unreferenced_bytes: Option<u64>,
    /// Names in the repository that none of its objects has; they were passed over, which is no damage. An object that
    /// was renamed is missing at its place, and that is. Looked for when all backups are verified.
    pub strays: Vec<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What is no damage and should be known.
    pub warnings: Vec<String>,
    /// The machinery.
    pub engine: EngineReport,
}

/// One thing to check.
enum Task {
    Pack(PackInfo, Vec<BackupId>),
    Map(BackupId),
}

/// The same, with the pack being opened.
enum Begun<'a> {
    Pack(&'a PackInfo, &'a [BackupId], NextPack),
    Map(BackupId),
}

/// What the run works on.
struct Scope {
    repository: Arc<Repository>,
    listed: catalogue::Listing,
    inventory: Inventory,
    /// Packs that no backup needs.
    unreferenced: Option<Unreferenced>,
}

/// What was read and what is wrong with it: by one shard, or by the whole run.
#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    objects: u64,
    bytes: u64,
    blocks: u64,
}

impl Found {
    fn add(&mut self, other: Found) {
        self.findings.extend(other.findings);
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.blocks += other.blocks;
    }
}

/// Verifies one backup or all. Damage is in the summary; an error means that the run could not be finished.
pub fn execute(engine: &Engine, options: &VerifyOptions, tick: Tick<'_>) -> Result<VerifySummary> {
    let clock = Clock::start();
    let progress = Progress::default();
    progress.begin(Phase::Prepare, 0, 0);
    let prepare = async |shard: Shard| survey(&shard, options).await;
    let Scope {
        repository,
        listed,
        mut inventory,
        mut unreferenced,
    } = only(mover_io::run(&engine.single(), prepare, |stop| {
        tick(&progress, stop)
    })?)?;

    let bytes = inventory.packs.values().map(|(pack, _)| pack.bytes).sum();
    progress.begin(Phase::Verify, bytes, inventory.packs.len() as u64);
    let mut strays = listed.strays;
    strays.append(&mut inventory.strays);
    if let Some(found) = &mut unreferenced {
        strays.append(&mut found.strays);
    }
    let origins = std::mem::take(&mut inventory.backups);
    let (mut found, tasks) = begin(inventory, origins.keys());
    let next = AtomicUsize::new(0);
    let work = async |shard: Shard| check(&shard, &repository, &tasks, &next, &progress).await;
    let wide = engine.wide_to_read(&repository)?;
    let parts = mover_io::run(&wide, work, |stop| tick(&progress, stop))?;
    let mut shards = Vec::new();
    for (part, figures) in parts {
        found.add(part);
        shards.push(figures);
    }

    let mut findings = merged(found.findings);
    let mut ids = listed.ids;
    if !findings.is_empty() {
        let look = async |shard: Shard| deleted(&shard, &repository, &findings).await;
        let deleted = only(mover_io::run(&engine.single(), look, |stop| {
            tick(&progress, stop)
        })?)?;
        leave_out(&mut findings, &deleted);
        ids.retain(|id| !deleted.contains(id));
    }
    let backups = verdicts(&ids, &findings, |id| {
        let origin = origins.get(&id)?;
        Some(authenticity(&repository, *origin))
    });
    Ok(VerifySummary {
        level: options.level,
        ok: findings.is_empty(),
        warnings: unproven_warning(&backups).into_iter().collect(),
        backups,
        objects: found.objects,
        bytes: found.bytes,
        blocks: found.blocks,
        unreferenced_packs: unreferenced.as_ref().map(|found| found.packs),
        unreferenced_bytes: unreferenced.as_ref().map(|found| found.bytes),
        strays,
        findings,
        engine: clock.report(shards, repository.link_report()),
    })
}

/// Opens the repository and reads what the backups say that they need.
async fn survey(shard: &Shard, options: &VerifyOptions) -> Result<Scope> {
    let access = &options.repo;
    let repository = Arc::new(access.open(shard).await?);
    repository.require_reading()?;
    let listed = match &options.set {
        Some(set) => catalogue::Listing {
            ids: vec![catalogue::find(shard, &repository, set).await?],
            strays: Vec::new(),
        },
        None => catalogue::list_all(shard, &repository).await?,
    };
    let mut inventory = Inventory::take(shard, &repository, &listed.ids).await?;
    let only = options.set.as_ref().and_then(|_| listed.ids.first());
    inventory
        .take_records(shard, &repository, only.copied())
        .await?;
    let unreferenced = match options.set {
        Some(_) => None,
        None => Some(inventory.unreferenced(shard, &repository).await?),
    };
    Ok(Scope {
        repository,
        listed,
        inventory,
        unreferenced,
    })
}

/// What taking the inventory already found, and what is left to check.
fn begin<'a>(
    inventory: Inventory,
    backups: impl Iterator<Item = &'a BackupId>,
) -> (Found, Vec<Task>) {
    let findings = inventory.findings.into_iter();
    let found = Found {
        findings: findings
            .map(|(damage, backups)| Finding::new(damage, backups))
            .collect(),
        objects: inventory.objects,
        bytes: inventory.bytes,
        ..Found::default()
    };
    // Maps first: they are few, and each is one task however large.
    let maps = backups.copied().map(Task::Map);
    let packs = inventory
        .packs
        .into_values()
        .map(|(pack, users)| Task::Pack(pack, users));
    (found, maps.chain(packs).collect())
}

/// Backups among the findings that were deleted since they were listed: what they lack is no damage.
async fn deleted(
    shard: &Shard,
    repository: &Repository,
    findings: &[Finding],
) -> Result<BTreeSet<BackupId>> {
    let mut deleted: BTreeSet<BackupId> = findings
        .iter()
        .flat_map(|finding| finding.backups.iter().copied())
        .collect();
    for id in catalogue::list(shard, repository).await? {
        deleted.remove(&id);
    }
    Ok(deleted)
}

/// Takes deleted backups out of the findings, and findings that concern nothing else.
fn leave_out(findings: &mut Vec<Finding>, deleted: &BTreeSet<BackupId>) {
    findings.retain_mut(|finding| {
        let concerned_any = !finding.backups.is_empty();
        finding.backups.retain(|id| !deleted.contains(id));
        !concerned_any || !finding.backups.is_empty()
    });
}

/// One verdict per backup, from all findings.
fn verdicts(
    ids: &[BackupId],
    findings: &[Finding],
    authenticity: impl Fn(BackupId) -> Option<&'static str>,
) -> Vec<BackupVerdict> {
    let damaged: BTreeSet<BackupId> = findings
        .iter()
        .flat_map(|finding| finding.backups.iter().copied())
        .collect();
    ids.iter()
        .map(|id| BackupVerdict {
            backup_id: *id,
            ok: !damaged.contains(id),
            authenticity: authenticity(*id),
        })
        .collect()
}

/// How many backups whose writer is not proven are named.
const NAMED_MAX: usize = 3;

/// What to say of backups that may be sound and that anybody could have put there.
fn unproven_warning(backups: &[BackupVerdict]) -> Option<String> {
    let is_unproven = |backup: &&BackupVerdict| backup.authenticity == Some(RECIPIENT_ONLY);
    let mut unproven = backups.iter().filter(is_unproven);
    let named: Vec<String> = (unproven.by_ref().take(NAMED_MAX))
        .map(|backup| backup.backup_id.to_string())
        .collect();
    let more = match unproven.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!named.is_empty()).then(|| {
        format!(
            "written without the repository's key, by a host that has only its public key, or by anybody else who knows that and may write to the storage: {}{more}",
            named.join(", ")
        )
    })
}

impl Finding {
    fn new(damage: Damage, backups: Vec<BackupId>) -> Self {
        Finding {
            object: damage.object,
            what: damage.what,
            backups,
        }
    }
}

/// One finding per damage, with every backup that it concerns.
fn merged(findings: Vec<Finding>) -> Vec<Finding> {
    let mut by_damage: BTreeMap<(String, String), BTreeSet<BackupId>> = BTreeMap::new();
    for finding in findings {
        let damage = (finding.object, finding.what);
        by_damage.entry(damage).or_default().extend(finding.backups);
    }
    by_damage
        .into_iter()
        .map(|((object, what), backups)| Finding {
            object,
            what,
            backups: backups.into_iter().collect(),
        })
        .collect()
}

async fn check(
    shard: &Shard,
    repository: &Arc<Repository>,
    tasks: &[Task],
    next: &AtomicUsize,
    progress: &Progress,
) -> Result<(Found, ShardFigures)> {
    let (mut part, mut stages) = (Found::default(), StageSeconds::default());
    let pieces = PiecesAhead::of(pieces_ahead(shard.buffers_total(), 0));
    let claim = || {
        let task = tasks.get(next.fetch_add(1, Relaxed))?;
        Some(match task {
            Task::Map(id) => Begun::Map(*id),
            Task::Pack(pack, users) => {
                let next = begin_pack(shard, repository, pack, pieces);
                Begun::Pack(pack, users, next)
            }
        })
    };
    // Without a link opening a pack takes no time, and packs that are claimed ahead only divide the last ones worse among the
    // shards.
    let ahead_max = match repository.has_link() {
        true => PACKS_AHEAD,
        false => 0,
    };
    let mut ahead = VecDeque::new();
    while let Some(task) = ahead.pop_front().or_else(&claim) {
        shard.stop()?;
        while ahead.len() < ahead_max
            && let Some(task) = claim()
        {
            ahead.push_back(task);
        }
        match task {
            Begun::Map(id) => {
                if let Err(error) = check_map(shard, repository, id).await {
                    part.findings.push(Finding::new(finding(error)?, vec![id]));
                }
            }
            Begun::Pack(pack, users, next) => {
                part.objects += 1;
                match check_pack(shard, next, pieces).await {
                    Ok(checked) => {
                        part.bytes += checked.bytes;
                        part.blocks += checked.blocks;
                        stages.add(&checked.stages);
                    }
                    Err(error) => part
                        .findings
                        .push(Finding::new(finding(error)?, users.to_vec())),
                }
                progress.add_bytes(pack.bytes);
                progress.add_files(1);
            }
        }
    }
    let report = shard.report();
    Ok((part, ShardFigures { report, stages }))
}

#[cfg(test)]
mod tests {
    use mover_base::Timestamp;

    use super::*;

    #[test]
    fn what_deleted_backups_lack_is_no_damage() {
        let id = |second: i64| BackupId::new(Timestamp::from_micros(second * 1_000_000), 0);
        let finding = |object: &str, backups: &[BackupId]| Finding {
            object: object.to_owned(),
            what: "is missing".to_owned(),
            backups: backups.to_vec(),
        };
        let mut findings = vec![
            finding("shared", &[id(1), id(2)]),
            finding("its own", &[id(1)]),
            finding("a key slot", &[]),
        ];
        leave_out(&mut findings, &[id(1)].into());
        let left = [finding("shared", &[id(2)]), finding("a key slot", &[])];
        assert_eq!(findings, left);
        assert!(!verdicts(&[id(2)], &findings, |_| None)[0].ok);
    }
}
