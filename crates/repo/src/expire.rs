//! Expire, from the repository's side: what a policy leaves, what nobody needs then, and its deletion in two phases.
//!
//! [`plan`] reads everything and changes nothing. [`execute`] puts up tombstones, looks again at who needs what, and only
//! then deletes: sessions that are over, manifests, packs after them. Why the order of listings suffices is shown in
//! `docs/decisions/0010-retention.md`.
//!
//! Invariants: whatever cannot be listed or read, and whatever stands and is not listed, ends the run before anything is deleted; a
//! pack is deleted only if it was listed before the sessions, these before the manifests, and no manifest left and no session
//! standing needs it; from the plan on, the set of backups to delete only shrinks.

mod look;
mod makers;
mod manifests;
#[cfg(test)]
mod many;
mod packs;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mover_base::checksum::Sha256;
use mover_base::units::{counted, format_bytes};
use mover_base::{BackupId, Error, Kind, PackId, Result, SessionId, Timestamp};
use mover_format::record::Purpose;
use mover_format::seal::Origin;
use mover_io::Shard;
use mover_store::Key;
use serde::Serialize;

use crate::catalogue::OpenHead;
use crate::layout;
use crate::policy::{Policy, Rule};
use crate::process::Life;
use crate::repository::Repository;
use crate::sessions::Standing;
use look::{LOOKS_MAX, Looked, View};
use makers::Maker;
use packs::PackUses;

pub use run::{Outcome, PutOff, Refusal, execute};

/// What the names of sources and hosts may take, of all backups together: those of 4 million take as much.
const NAMES_BYTES_MAX: usize = 256 << 20;

/// Why a backup stays. In JSON, the name of the rule or of the other reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(untagged)]
pub enum Reason {
    /// A rule of the policy.
    Rule(Rule),
    /// Something else.
    Other(OtherReason),
}

/// Why a backup stays that no rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OtherReason {
    /// A hold is on it.
    Hold,
    /// A session builds on it.
    InUse,
    /// The run is about others.
    NotAsked,
}

/// Which backups a run is about. All others stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Those of this source and host, where they are given, by the policy.
    Rules {
        /// URL of the source.
        source: Option<String>,
        /// Name of the machine.
        host: Option<String>,
    },
    /// These go, whatever the policy says.
    Named(BTreeSet<BackupId>),
}

impl Default for Scope {
    fn default() -> Self {
        Scope::Rules {
            source: None,
            host: None,
        }
    }
}

impl Scope {
    /// Whether the policy is asked about the backups of this source and host.
    fn has_rules_for(&self, of_source: &str, of_host: &str) -> bool {
        let Scope::Rules { source, host } = self else {
            return false;
        };
        let fits = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|one| one == is);
        fits(source, of_source) && fits(host, of_host)
    }

    /// Whether this backup is to go without a look at the policy.
    fn names(&self, id: BackupId) -> bool {
        matches!(self, Scope::Named(backups) if backups.contains(&id))
    }
}

/// What becomes of one backup.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The backup.
    pub backup_id: BackupId,
    /// What it is of.
    pub source: String,
    /// The machine that made it.
    pub host: String,
    /// Whether its writer proved to be able to read the repository; what cannot prove it is counted apart.
    pub vouched: bool,
    /// Why it stays; empty where it goes.
    pub reasons: BTreeSet<Reason>,
    /// Bytes of packs that nothing needs any more once this backup and all older ones that go are gone.
    pub freed_bytes: u64,
}

/// A session object, as a plan shows it.
#[derive(Debug, Clone, Serialize)]
pub struct SessionInfo {
    /// Its id.
    pub session_id: SessionId,
    /// `backup` or `expire`.
    pub purpose: Purpose,
    /// Where it runs.
    pub host: String,
    /// Since when, by the clock of that host.
    pub started: Timestamp,
    /// What can be said of its process.
    pub process: Life,
    /// Whether its manifest is there, so that it protects nothing any more.
    pub is_over: bool,
    /// The backups that it may build on.
    pub parents: Vec<BackupId>,
}

/// Packs that no manifest names.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Leftovers {
    /// Packs that no session owns.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs of sessions that stand, or whose owner cannot be told; they stay.
    pub owned_packs: u64,
    /// Their bytes.
    pub owned_bytes: u64,
}

/// What would be done.
pub struct Plan {
    /// One verdict per backup, oldest first.
    pub verdicts: Vec<Verdict>,
    /// Sessions that stand.
    pub sessions: Vec<SessionInfo>,
    /// Packs that no manifest names.
    pub leftovers: Leftovers,
    /// Things to know.
    pub warnings: Vec<String>,
    survey: Survey,
    doomed: BTreeSet<BackupId>,
}

/// What is known of one backup.
struct Known {
    source: String,
    host: String,
    /// By the clock of its host, which its id need not follow.
    started: Timestamp,
    origin: Origin,
    session: SessionId,
    wrapped_key_sha256: Sha256,
    /// What it was made on: its base, and the backup that had the packs which it took over.
    bases: [Option<BackupId>; 2],
}

/// All that is known of the repository.
#[derive(Default)]
struct Survey {
    backups: BTreeMap<BackupId, Known>,
    /// Bytes of the names of their sources and hosts.
    names_bytes: usize,
    /// What sessions published.
    published: BTreeMap<SessionId, Vec<BackupId>>,
    packs: PackUses,
    /// Who wrote packs that no manifest names, as far as it was asked.
    makers: BTreeMap<PackId, Maker>,
    /// Sessions, holds and manifests that stood when they were looked for: the next look shows them, or they are gone.
    stood: BTreeSet<Key>,
    /// Objects that were looked up and are gone for good.
    gone: BTreeSet<Key>,
}

impl Survey {
    /// Takes a manifest into account.
    fn add(&mut self, open: OpenHead) -> Result<()> {
        self.packs.add(&open.head.packs, open.origin)?;
        let metadata = open.head.metadata;
        self.names_bytes += metadata.source.url.len() + metadata.source.host.len();
        if self.names_bytes > NAMES_BYTES_MAX {
            let limit = format_bytes(NAMES_BYTES_MAX as u64);
            let what = format!("the backups' sources and hosts have names of over {limit}");
            return Err(Error::new(Kind::Limit, what)
                .object(layout::backup(open.id)?.as_str())
                .hint("names of some thousand bytes each are no backups' of this program: with the storage's own tools, delete manifests that none of the hosts made"));
        }
        let known = Known {
            source: metadata.source.url,
            host: metadata.source.host,
            started: metadata.started,
            origin: open.origin,
            session: open.session_id,
            wrapped_key_sha256: open.wrapped_key_sha256,
            bases: [metadata.base_id, metadata.parent_id],
        };
        let published = self.published.entry(open.session_id).or_default();
        published.push(open.id);
        self.backups.insert(open.id, known);
        Ok(())
    }

    /// Whether the session has published its manifest. Both must be vouched for alike and carry the same wrapped key: else a
    /// stranger could end the protection of a session by a manifest under its id. Who copies the key cannot seal anything with it.
    /// (Without encryption there is none, and whoever may write is believed.)
    fn is_over(&self, session: &Standing) -> bool {
        let published = self.published.get(&session.id).into_iter().flatten();
        let mut published = published.filter_map(|id| self.backups.get(id));
        published.any(|known| {
            known.session == session.id
                && known.origin == session.origin
                && known.wrapped_key_sha256 == session.wrapped_key_sha256
        })
    }

    /// Sessions whose packs and parents must stay.
    fn protecting<'a>(&self, sessions: &'a [Standing]) -> Vec<&'a Standing> {
        let standing = sessions.iter();
        standing
            .filter(|session| session.record.purpose == Purpose::Backup && !self.is_over(session))
            .collect()
    }

    /// Others change the repository all the time; the last thing that came or went is told.
    fn too_busy(&self, between: Option<Key>) -> Error {
        // Nobody deletes it anew in each look: the listing shows what is not there.
        let is_listed_only = between
            .as_ref()
            .is_some_and(|key| layout::backup_of(key).is_some() && self.gone.contains(key));
        let (what, hint) = match is_listed_only {
            true => (
                "the storage lists a backup that it does not have; nothing was deleted",
                "if it was deleted a moment ago, run this again later; else the storage's listing is damaged: check it",
            ),
            false => (
                "others begin, end or delete backups faster than they can be looked at; nothing was deleted",
                "the object came or went in between; run it again while fewer are at work",
            ),
        };
        let error = Error::new(Kind::Conflict, what).hint(hint);
        match between {
            Some(key) => error.object(key.as_str()),
            None => error,
        }
    }

    /// Looks until nobody was at work in between: what is to be seen, and the packs that no manifest names.
    ///
    /// Packs are listed once, behind a look that tells which of them are needed. Where somebody began in between, the next look
    /// is behind the packs, as it must be: of who wrote these, each session or manifest that stands is there to be listed.
    async fn look_around(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
    ) -> Result<(View, Vec<(PackId, u64)>)> {
        let (mut between, mut unnamed) = (None, None);
        for _ in 0..LOOKS_MAX {
            let view = match self.look(shard, repository).await? {
                Looked::Shown(view) => view,
                Looked::Between(key) => {
                    between = Some(key);
                    continue;
                }
            };
            let mut packs = match unnamed.take() {
                Some(packs) => packs,
                None => packs::not_needed(shard, repository, &self.packs).await?,
            };
            // Manifests that came meanwhile name some.
            packs.retain(|(id, _)| !self.packs.is_needed(id));
            let hidden = self.hidden_makers(shard, repository, &packs, &view).await?;
            let Some(key) = hidden.first() else {
                return Ok((view, packs));
            };
            between = Some(key.clone());
            self.stood.extend(hidden);
            unnamed = Some(packs);
        }
        Err(self.too_busy(between))
    }
}

/// Says what the policy would delete within the scope. Changes nothing.
pub async fn plan(
    shard: &Shard,
    repository: &Arc<Repository>,
    policy: &Policy,
    scope: &Scope,
    now: Timestamp,
) -> Result<Plan> {
    repository.require_reading().map_err(|error| {
        error.hint(
            "a host that can only write cannot know what backups need; run expire where the key is",
        )
    })?;
    let mut survey = Survey::default();
    let (view, unnamed) = survey.look_around(shard, repository).await?;
    // Those that went in between.
    survey.backups.retain(|id, _| view.lists(*id));
    let mut verdicts = verdicts(&survey, policy, scope, now);
    let protecting = survey.protecting(&view.sessions);
    add_other_reasons(&mut verdicts, &view, &protecting);
    let owners = protecting.iter().map(|session| session.id).collect();
    let leftovers = leftovers(&survey, &unnamed, &owners);
    let doomed = release(shard, repository, &mut survey, &mut verdicts, &view).await?;
    let standing = view.sessions;
    let mut warnings = warnings(&survey, &verdicts, &standing, &leftovers);
    // Without encryption nobody is vouched for, and all may do all.
    if repository.is_encrypted() && matches!(scope, Scope::Rules { .. }) {
        warnings.extend(unvouched_warning(&verdicts));
    }
    let unreadable = survey.unreadable(&unnamed);
    if unreadable > 0 {
        warnings.push(format!(
            "{unreadable} packs that no backup needs cannot be read, so whose they are cannot be told: they stay"
        ));
    }
    Ok(Plan {
        warnings,
        sessions: session_infos(&survey, standing),
        verdicts,
        leftovers,
        survey,
        doomed,
    })
}

/// What keeps backups beside the policy.
fn add_other_reasons(verdicts: &mut [Verdict], view: &View, protecting: &[&Standing]) {
    let held: BTreeSet<BackupId> = view.holds.iter().map(|(backup, _)| *backup).collect();
    let parents = protecting.iter().flat_map(|one| &one.record.parents);
    let in_use: BTreeSet<BackupId> = parents.copied().collect();
    for verdict in verdicts {
        if held.contains(&verdict.backup_id) {
            verdict.reasons.insert(Reason::Other(OtherReason::Hold));
        }
        if in_use.contains(&verdict.backup_id) {
            verdict.reasons.insert(Reason::Other(OtherReason::InUse));
        }
    }
}

/// Releases what the backups need that nothing keeps, oldest first, and says of each what that frees. Their manifests are read once
/// more for it: all that all of them list would take far more memory than how many need each pack.
async fn release(
    shard: &Shard,
    repository: &Arc<Repository>,
    survey: &mut Survey,
    verdicts: &mut [Verdict],
    view: &View,
) -> Result<BTreeSet<BackupId>> {
    let going = verdicts.iter().filter(|one| one.reasons.is_empty());
    let going = going.map(|one| {
        let bytes = view.listed.get(&one.backup_id).copied();
        (one.backup_id, bytes.unwrap_or(u64::MAX))
    });
    let going: Vec<(BackupId, u64)> = going.collect();
    let mut freed_bytes = BTreeMap::new();
    let read = manifests::read_each(shard, repository, &going, |id, read| {
        let open = read.map_err(|error| unreadable_now(id, error))?;
        freed_bytes.insert(id, survey.packs.release(&open.head.packs));
        Ok(true)
    });
    read.await?;
    for verdict in verdicts {
        if let Some(freed_bytes) = freed_bytes.get(&verdict.backup_id) {
            verdict.freed_bytes = *freed_bytes;
        }
    }
    Ok(freed_bytes.into_keys().collect())
}

/// The error for a manifest that was listed and read, and is gone or cannot be read now: it ends the run, since what it needs cannot
/// be told.
fn unreadable_now(id: BackupId, error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => Error::new(Kind::Conflict, "a backup was deleted since it was listed")
            .object(id.to_string())
            .hint("another expire is at work; run this one again when it has ended"),
        _ => error,
    }
}

/// What the policy says, group by group, of those that the scope has it asked about.
fn verdicts(survey: &Survey, policy: &Policy, scope: &Scope, now: Timestamp) -> Vec<Verdict> {
    let mut groups = BTreeMap::<(&str, &str, bool), Vec<_>>::new();
    for (id, known) in &survey.backups {
        let vouched = known.origin == Origin::Vouched;
        let group = (known.source.as_str(), known.host.as_str(), vouched);
        groups.entry(group).or_default().push((*id, known.started));
    }
    let mut verdicts = Vec::new();
    for ((source, host, vouched), backups) in groups {
        let has_rules = scope.has_rules_for(source, host);
        for ((id, _), rules) in backups.iter().zip(policy.keep(&backups, now)) {
            let reasons = match has_rules {
                true => rules.into_iter().map(Reason::Rule).collect(),
                false if scope.names(*id) => BTreeSet::new(),
                false => BTreeSet::from([Reason::Other(OtherReason::NotAsked)]),
            };
            verdicts.push(Verdict {
                backup_id: *id,
                source: source.to_owned(),
                host: host.to_owned(),
                vouched,
                reasons,
                freed_bytes: 0,
            });
        }
    }
    verdicts.sort_by_key(|verdict| verdict.backup_id);
    verdicts
}

fn leftovers(
    survey: &Survey,
    unnamed: &[(PackId, u64)],
    owners: &BTreeSet<SessionId>,
) -> Leftovers {
    let mut found = Leftovers::default();
    for (id, bytes) in unnamed {
        // Without a backup nobody was asked, and nothing is deleted.
        if !survey.backups.is_empty() && survey.may_delete(id, owners) {
            found.packs += 1;
            found.bytes += bytes;
        } else {
            found.owned_packs += 1;
            found.owned_bytes += bytes;
        }
    }
    found
}

fn session_infos(survey: &Survey, standing: Vec<Standing>) -> Vec<SessionInfo> {
    standing
        .into_iter()
        .map(|session| SessionInfo {
            is_over: survey.is_over(&session),
            session_id: session.id,
            purpose: session.record.purpose,
            host: session.record.host,
            started: session.record.started,
            process: session.life,
            parents: session.record.parents,
        })
        .collect()
}

fn warnings(
    survey: &Survey,
    verdicts: &[Verdict],
    standing: &[Standing],
    leftovers: &Leftovers,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let ahead = |verdict: &&Verdict| verdict.reasons.contains(&Reason::Rule(Rule::Future));
    let mut ahead = verdicts.iter().filter(ahead);
    if let Some(first) = ahead.next() {
        let (count, source, host) = (1 + ahead.count(), &first.source, &first.host);
        warnings.push(format!(
            "{count} backups begin over an hour in the future of this host's clock: they are kept and count for no rule. The first one is of {source} on {host}: \
             later ones of it are named as if they had begun behind it, and count by what their own clock said"
        ));
    }
    for session in survey.protecting(standing) {
        let (id, host) = (session.id, &session.record.host);
        match session.life {
            Life::Running => {}
            Life::Dead => warnings.push(format!(
                "session {id} on {host} has died: what it protects can go with the run after the next one with --confirm"
            )),
            Life::Unknown => warnings.push(format!(
                "session {id} on {host} protects its packs and its parent; if it is dead: `helios-mover expire --forget-session {id} --confirm`"
            )),
        }
    }
    let expires = standing.iter().filter(|session| {
        session.record.purpose == Purpose::Expire && session.life != Life::Running
    });
    for session in expires {
        let (id, host) = (session.id, &session.record.host);
        warnings.push(format!(
            "an expire on {host}, session {id}, was cut off or runs elsewhere: nothing builds on what it was about to delete; if it is dead: \
             `helios-mover expire --forget-session {id} --confirm`"
        ));
    }
    if survey.backups.is_empty() && leftovers.owned_packs > 0 {
        warnings.push(NO_BACKUP.to_owned());
    }
    warnings
}

/// What is to be known where backups go of which nobody vouches for whose they are.
fn unvouched_warning(verdicts: &[Verdict]) -> Option<String> {
    let goes = |verdict: &&Verdict| !verdict.vouched && verdict.reasons.is_empty();
    let mut going = verdicts.iter().filter(goes);
    let first = going.next()?;
    let count = counted(1 + going.count() as u64, "backup");
    let (source, host) = (&first.source, &first.host);
    Some(format!(
        "{count} of hosts without the repository's key go by these rules, the first one of {source} on {host}: such a host can claim any source and host, and by newer backups have those of another one go that has no key either. Look whether the newer ones are its own; a hold keeps a backup, and so does object lock"
    ))
}

/// Said where packs stand and no manifest does.
const NO_BACKUP: &str = "no backup is listed, so nothing is deleted: if the manifests are lost, the packs are all that is left";

/// Whether a backup carries a tombstone. Needs no key.
pub async fn is_expiring(shard: &Shard, repository: &Repository, id: BackupId) -> Result<bool> {
    crate::tombstones::is_marked(shard, repository, id).await
}

/// Backups that carry a tombstone: nothing new builds on them. Needs no key.
pub async fn expiring(shard: &Shard, repository: &Repository) -> Result<BTreeSet<BackupId>> {
    let marks = crate::tombstones::list(shard, repository).await?;
    Ok(marks.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use mover_format::manifest::{
        ManifestHead, ReplicationInfo, SizeInfo, StorageInfo, VerificationInfo,
    };
    use mover_format::record::SessionRecord;

    use super::*;

    #[test]
    fn only_a_manifest_that_is_vouched_for_alike_ends_a_session() {
        let session = SessionId([7; 16]);
        let over = |(manifest, by): (Origin, Sha256), (standing, with): (Origin, Sha256)| {
            let known = Known {
                source: "dir:///a".to_owned(),
                host: "a".to_owned(),
                started: Timestamp::now(),
                origin: manifest,
                session,
                wrapped_key_sha256: by,
                bases: [None; 2],
            };
            let id = BackupId::new(Timestamp::now(), 1);
            let survey = Survey {
                published: BTreeMap::from([(known.session, vec![id])]),
                backups: BTreeMap::from([(id, known)]),
                ..Survey::default()
            };
            let standing = Standing {
                id: session,
                record: SessionRecord {
                    purpose: Purpose::Backup,
                    parents: Vec::new(),
                    host: "a".to_owned(),
                    process: None,
                    started: Timestamp::now(),
                    tool_version: "1".to_owned(),
                },
                origin: standing,
                wrapped_key_sha256: with,
                life: Life::Unknown,
            };
            let is_over = survey.is_over(&standing);
            assert_eq!(survey.protecting(&[standing]).is_empty(), is_over);
            is_over
        };
        let (own, stranger) = ([1; 32], [2; 32]);
        assert!(!over((Origin::WriteOnly, own), (Origin::Vouched, own)));
        assert!(!over((Origin::Vouched, own), (Origin::WriteOnly, own)));
        for origin in [Origin::Vouched, Origin::WriteOnly] {
            assert!(over((origin, own), (origin, own)));
            assert!(!over((origin, stranger), (origin, own)), "another's key");
        }
    }

    /// Earlier versions name the base of an incremental backup alone.
    #[test]
    fn a_manifest_names_what_its_backup_was_made_on() {
        let id = |second: i64| BackupId::new(Timestamp::from_micros(second * 1_000_000), 7);
        let mut metadata = serde_json::json!({
            "backup_id": id(3), "backup_type": "incremental", "reason": null, "base_id": id(1),
            "lsn_range": null, "history": null, "started": Timestamp::now(), "ended": Timestamp::now(),
            "source": {"url": "dir:///a", "kind": "dir", "host": "a"}, "tool_version": "1", "annotations": {},
            "size_info": SizeInfo::default(), "storage_info": StorageInfo::default(),
            "verification_info": VerificationInfo::default(), "replication_info": ReplicationInfo::default(),
        });
        for parent in [None, Some(id(2))] {
            if let Some(parent) = parent {
                metadata["parent_id"] = serde_json::json!(parent);
            }
            let open = OpenHead {
                id: id(3),
                head: ManifestHead {
                    metadata: serde_json::from_value(metadata.clone()).unwrap(),
                    packs: Vec::new(),
                },
                origin: Origin::Vouched,
                session_id: SessionId([7; 16]),
                wrapped_key_sha256: [1; 32],
            };
            let mut survey = Survey::default();
            survey.add(open).unwrap();
            assert_eq!(survey.backups[&id(3)].bases, [Some(id(1)), parent]);
        }
    }

    #[test]
    fn names_that_take_too_much_end_a_run_with_the_backup_that_has_the_last_one() {
        let id = |number: u32| BackupId::new(Timestamp::from_micros(0), number);
        let open = |number: u32| {
            let mut metadata = crate::fixture::metadata(id(number), "dir:///a");
            metadata.source.host = "h".repeat(64 << 10);
            OpenHead {
                id: id(number),
                head: ManifestHead {
                    metadata,
                    packs: Vec::new(),
                },
                origin: Origin::Vouched,
                session_id: SessionId([7; 16]),
                wrapped_key_sha256: [1; 32],
            }
        };
        let mut survey = Survey {
            names_bytes: NAMES_BYTES_MAX - (65 << 10),
            ..Survey::default()
        };
        survey.add(open(1)).unwrap();
        let error = survey.add(open(2)).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit);
        let last = layout::backup(id(2)).unwrap();
        assert_eq!(error.object_name(), Some(last.as_str()));
        assert!(error.hint_text().is_some());
    }

    #[test]
    fn who_came_in_between_is_named() {
        let key = crate::layout::session(SessionId([7; 16])).unwrap();
        let mut survey = Survey::default();
        let error = survey.too_busy(Some(key.clone()));
        assert_eq!(error.kind(), Kind::Conflict);
        assert_eq!(error.object_name(), Some(key.as_str()));
        // A manifest that is listed and not there is nobody's doing.
        let key = layout::backup(BackupId::new(Timestamp::from_micros(0), 1)).unwrap();
        survey.gone.insert(key.clone());
        let error = survey.too_busy(Some(key.clone()));
        assert_eq!(error.object_name(), Some(key.as_str()));
        assert!(error.message().contains("does not have"), "{error}");
    }
}
