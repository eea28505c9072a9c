//! `verify`: is what is stored what was stored?
//!
//! Level `checksum` reads every byte that the backups need: preambles, seals, CRC-32 of frames, SHA-256 of every
//! block and node, that every map names blocks that exist, and the records (holds, annotations, sessions, tombstones). What a backup lacks that was deleted meanwhile is no
//! damage; whether it was is asked for under its own name.
//!
//! Invariants: damage does not end the run, it is collected; a run that found any never reports `ok`; the same
//! pack is read once, however many backups share it; of all maps one at a time is read, since the list of a backup's files takes
//! most of what a job may.

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_set};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec;

use mover_base::{BackupId, Error, Kind, Result};
use mover_io::{RateBudget, Shard};
use mover_repo::verify::{
    self, Damage, Inventory, PACKS_AHEAD, PiecesAhead, StatedPack, Unreferenced, begin_pack,
    check_map, check_pack, finding,
};
use mover_repo::{Origin, Repository, StageSeconds, catalogue};
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

/// What is left to check. The maps come first: each is one task however large.
struct Tasks {
    maps: Mutex<Maps>,
    packs: Mutex<btree_set::IntoIter<StatedPack>>,
}

struct Maps {
    left: vec::IntoIter<BackupId>,
    /// Whether a shard is at one.
    is_busy: bool,
}

impl Tasks {
    fn new(maps: Vec<BackupId>, packs: BTreeSet<StatedPack>) -> Self {
        Tasks {
            maps: Mutex::new(Maps {
                left: maps.into_iter(),
                is_busy: false,
            }),
            packs: Mutex::new(packs.into_iter()),
        }
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next map, for whoever is to say when it is done; none while another one is read.
    fn claim_map(&self) -> Option<BackupId> {
        let mut maps = self.maps();
        if maps.is_busy {
            return None;
        }
        let map = maps.left.next();
        maps.is_busy = map.is_some();
        map
    }

    fn end_map(&self) {
        self.maps().is_busy = false;
    }

    fn claim_pack(&self) -> Option<StatedPack> {
        let packs = self.packs.lock();
        packs.unwrap_or_else(PoisonError::into_inner).next()
    }
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
    /// Packs that are not as they are stated to be.
    damaged: Vec<(StatedPack, Damage)>,
    objects: u64,
    bytes: u64,
    blocks: u64,
}

impl Found {
    /// What taking the inventory already found.
    fn by(inventory: &mut Inventory) -> Self {
        let findings = std::mem::take(&mut inventory.findings).into_iter();
        Found {
            findings: findings
                .map(|(damage, backups)| Finding::new(damage, backups))
                .collect(),
            objects: inventory.objects,
            bytes: inventory.bytes,
            ..Found::default()
        }
    }

    fn add(&mut self, other: Found) {
        self.findings.extend(other.findings);
        self.damaged.extend(other.damaged);
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

    let bytes = inventory.packs.iter().map(|pack| pack.0.bytes).sum();
    progress.begin(Phase::Verify, bytes, inventory.packs.len() as u64);
    let mut strays = listed.strays;
    strays.append(&mut inventory.strays);
    if let Some(found) = &mut unreferenced {
        strays.append(&mut found.strays);
    }
    let mut found = Found::by(&mut inventory);
    let origins = inventory.backups;
    let tasks = Tasks::new(origins.keys().copied().collect(), inventory.packs);
    let limit = &engine.limits.read;
    let work = async |shard: Shard| check(&shard, &repository, &tasks, limit, &progress).await;
    let wide = engine.wide_to_read(&repository)?;
    let parts = mover_io::run(&wide, work, |stop| tick(&progress, stop))?;
    let mut shards = Vec::new();
    for (part, figures) in parts {
        found.add(part);
        shards.push(figures);
    }

    let look = async |shard: Shard| conclude(&shard, &repository, &origins, &found).await;
    let (findings, gone) = match found.findings.is_empty() && found.damaged.is_empty() {
        true => Default::default(),
        false => only(mover_io::run(&engine.single(), look, |stop| {
            tick(&progress, stop)
        })?)?,
    };
    let ids = remaining(listed.ids, &gone, options.set.is_some())?;
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

/// What is wrong in the end, and the backups that were deleted since they were listed: what they lack is no damage.
async fn conclude(
    shard: &Shard,
    repository: &Arc<Repository>,
    backups: &BTreeMap<BackupId, Origin>,
    found: &Found,
) -> Result<(Vec<Finding>, BTreeSet<BackupId>)> {
    let (mut findings, mut gone) = (found.findings.clone(), BTreeSet::new());
    if !found.damaged.is_empty() {
        let ids = backups.keys().copied();
        let charged = verify::charge(shard, repository, ids, &found.damaged).await?;
        let more = charged.findings.into_iter();
        findings.extend(more.map(|(damage, backups)| Finding::new(damage, backups)));
        gone = charged.gone;
    }
    let mut findings = merged(findings);
    let concerned = findings.iter().flat_map(|finding| &finding.backups);
    let concerned: BTreeSet<BackupId> = concerned.copied().collect();
    let asked = concerned.difference(&gone).copied().collect();
    gone.extend(verify::gone(shard, repository, asked).await?);
    leave_out(&mut findings, &gone);
    Ok((findings, gone))
}

/// The backups that are still there.
///
/// # Errors
/// `NotFound` if the one that was to be verified is not.
fn remaining(
    mut ids: Vec<BackupId>,
    gone: &BTreeSet<BackupId>,
    is_one: bool,
) -> Result<Vec<BackupId>> {
    let named = ids.first().copied();
    ids.retain(|id| !gone.contains(id));
    match (named, ids.is_empty() && is_one) {
        (Some(id), true) => Err(Error::new(
            Kind::NotFound,
            "the backup was deleted while it was verified",
        )
        .object(id.to_string())
        .hint("`helios-mover list` shows the backups")),
        _ => Ok(ids),
    }
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
    tasks: &Tasks,
    read_limit: &Arc<RateBudget>,
    progress: &Progress,
) -> Result<(Found, ShardFigures)> {
    let (mut part, mut stages) = (Found::default(), StageSeconds::default());
    let pieces = PiecesAhead::of(pieces_ahead(shard.buffers_total(), 0));
    // Without a link opening a pack takes no time, and packs that are claimed ahead only divide the last ones worse among the
    // shards.
    let ahead_max = match repository.has_link() {
        true => PACKS_AHEAD,
        false => 0,
    };
    let mut ahead = VecDeque::new();
    loop {
        shard.stop()?;
        if let Some(id) = tasks.claim_map() {
            let checked = check_map(shard, repository, id).await;
            tasks.end_map();
            if let Err(error) = checked {
                part.findings.push(Finding::new(finding(error)?, vec![id]));
            }
            continue;
        }
        while ahead.len() <= ahead_max
            && let Some(pack) = tasks.claim_pack()
        {
            let next = begin_pack(shard, repository, &pack.0, pieces);
            ahead.push_back((pack, next));
        }
        let Some((pack, next)) = ahead.pop_front() else {
            break;
        };
        part.objects += 1;
        match check_pack(shard, next, pieces, read_limit).await {
            Ok(checked) => {
                part.bytes += checked.bytes;
                part.blocks += checked.blocks;
                stages.add(&checked.stages);
            }
            Err(error) => part.damaged.push((pack, finding(error)?)),
        }
        progress.add_bytes(pack.0.bytes);
        progress.add_files(1);
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
    #[test]
    fn one_map_at_a_time_is_read_whichever_shard_is_free() {
        let ids = [1, 2, 3].map(|second| BackupId::new(Timestamp::from_micros(second), 0));
        let tasks = Tasks::new(ids.to_vec(), BTreeSet::new());
        for id in ids {
            assert_eq!(tasks.claim_map(), Some(id));
            assert_eq!(tasks.claim_map(), None);
            tasks.end_map();
        }
        assert_eq!(tasks.claim_map(), None);
    }

    #[test]
    fn a_named_backup_that_is_gone_is_not_verified() {
        let id = |second: i64| BackupId::new(Timestamp::from_micros(second * 1_000_000), 0);
        let gone = BTreeSet::from([id(1)]);
        let error = remaining(vec![id(1)], &gone, true).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.object_name(), Some(id(1).to_string().as_str()));
        assert_eq!(remaining(vec![id(1)], &gone, false).unwrap(), []);
        assert_eq!(remaining(vec![id(2)], &gone, true).unwrap(), [id(2)]);
        assert_eq!(
            remaining(vec![id(1), id(2)], &gone, false).unwrap(),
            [id(2)]
        );
    }
}
