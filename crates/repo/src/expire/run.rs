//! Carrying an expire out.
//!
//! Invariants: nothing but own tombstones and an own session object is written, and nothing at all is deleted, before
//! [`Run::look`] has agreed; what a store refuses to delete is told and counts as still there, and so does one object or another
//! at which it fails again and again while it deletes others (nobody needs them, so they may go later): a run that ends
//! because the store fails, or without an answer to the deletion of a manifest, leaves its session object and tombstones standing.

use std::collections::BTreeSet;
use std::sync::Arc;

use mover_base::{BackupId, Error, Kind, PackId, Result, SessionId};
use mover_format::record::Purpose;
use mover_io::Shard;
use mover_store::Key;
use serde::Serialize;

use super::look::{LOOKS_MAX, Looked, View, incomplete};
use super::packs::{self, PackUses};
use super::{NO_BACKUP, OtherReason, Plan, Survey};
use crate::process::Life;
use crate::repository::{Repository, Session};
use crate::sessions::{self, Registration, Standing};
use crate::{catalogue, layout, tombstones};

/// Objects deleted by one request; after a refusal they are tried one by one.
const BATCH: usize = 250;
/// Refused objects that are named; the rest is counted.
const REFUSED_NAMED_MAX: usize = 100;
/// Objects of a run at which the store may fail again and again: each costs two minutes and more.
const FAILED_MAX: usize = 2;

/// An object that the store did not delete.
#[derive(Debug, Clone, Serialize)]
pub struct Refusal {
    /// The object.
    pub object: String,
    /// What the store said.
    pub problem: String,
}

/// A backup that was to go by the plan, and that this run does not delete, because it is needed.
#[derive(Debug, Clone, Serialize)]
pub struct PutOff {
    /// The backup.
    pub backup_id: BackupId,
    /// Why.
    pub reason: OtherReason,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Backups that are gone.
    pub deleted: Vec<BackupId>,
    /// Backups that were to go and are needed after all.
    pub put_off: Vec<PutOff>,
    /// Packs deleted.
    pub packs: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Packs among them that no manifest had named.
    pub leftover_packs: u64,
    /// Session objects taken away whose owners had ended or died.
    pub sessions_removed: u64,
    /// Unfinished uploads taken away.
    pub uploads_removed: u64,
    /// Objects that the store did not delete.
    pub refused: u64,
    /// The first of them.
    pub refusals: Vec<Refusal>,
    /// Things to know.
    pub warnings: Vec<String>,
}

/// A run under way.
struct Run<'a> {
    shard: &'a Shard,
    repository: &'a Arc<Repository>,
    session: Session,
    survey: Survey,
    /// Backups to delete, whose packs are released; when the manifests are deleted, those that are gone.
    doomed: BTreeSet<BackupId>,
    /// Backups whose manifests the store did not delete; their tombstones stay for the next run.
    kept_back: BTreeSet<BackupId>,
    /// Open until a manifest or a pack may have been deleted.
    registration: &'a Registration,
    /// Whether the store has deleted something of what may be deleted together.
    has_deleted: bool,
    /// Objects at which it failed again and again.
    failed: usize,
    out: Outcome,
    /// Told of each object deleted, with its bytes.
    progress: &'a (dyn Fn(u64) + Sync),
}

/// Deletes what was planned, as far as it is still true that nobody needs it. After an error the caller takes back what is
/// to be ([`sessions::take_back`]).
pub async fn execute(
    shard: &Shard,
    repository: &Arc<Repository>,
    plan: Plan,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Outcome> {
    let session = repository.begin_session()?;
    let purpose = Purpose::Expire;
    let registration =
        Registration::begin(shard, repository, &session, purpose, Vec::new()).await?;
    let mut run = Run {
        shard,
        repository,
        session,
        survey: plan.survey,
        doomed: plan.doomed,
        kept_back: BTreeSet::new(),
        registration: &registration,
        has_deleted: false,
        failed: 0,
        out: Outcome::default(),
        progress,
    };
    // One that fails after it has begun to delete leaves everything standing: a deletion that was not answered may still come
    // true, so until this process is known to be dead, nothing may build on what carries its tombstones.
    run.carry_out().await?;
    let out = run.out;
    registration.end(shard).await;
    Ok(out)
}

impl Run<'_> {
    async fn carry_out(&mut self) -> Result<()> {
        for &backup in &self.doomed {
            self.shard.stop()?;
            // Before it is put up: one whose creation was not answered may stand.
            let own = layout::tombstone(backup, self.session.id())?;
            self.registration.will_mark(own);
            tombstones::mark(self.shard, self.repository, &self.session, backup).await?;
        }
        // Before the sessions, and these before the manifests: the reverse of the order in which a backup writes.
        let candidates = packs::not_needed(self.shard, self.repository, &self.survey.packs).await?;
        let view = self.look(&candidates).await?;
        self.remove_ended(&view).await?;
        self.delete_manifests().await?;
        self.delete_packs(candidates, &view).await?;
        self.clean(&view).await?;
        self.remove_uploads(&view).await
    }

    /// Looks at sessions, holds and manifests until they fit together; puts off what is needed. Packs of `candidates` whose makers
    /// are not listed and stand show that the listings are incomplete: sessions and manifests were listed after the packs.
    async fn look(&mut self, candidates: &[(PackId, u64)]) -> Result<View> {
        let (shard, repository) = (self.shard, self.repository);
        let mut between = None;
        for _ in 0..LOOKS_MAX {
            let view = match self.survey.look(shard, repository).await? {
                Looked::Shown(view) => view,
                Looked::Between(key) => {
                    between = Some(key);
                    continue;
                }
            };
            let own = self.session.id();
            if !view.stands(own) {
                self.check_session().await?;
                return Err(incomplete(&layout::session(own)?, "this run made it"));
            }
            if let Some(ended) = self.put_off(&view).await? {
                between = Some(layout::session(ended)?);
                continue;
            }
            let hidden = self
                .survey
                .hidden_makers(shard, repository, candidates, &view);
            return match hidden.await?.first() {
                Some(key) => Err(incomplete(key, "packs that it wrote are stored")),
                None => Ok(view),
            };
        }
        Err(self.survey.too_busy(between))
    }

    /// Takes out of the doomed what a hold or a session needs. Gives a session whose parent is gone and that has ended
    /// too: its manifest may have appeared behind the listing.
    async fn put_off(&mut self, view: &View) -> Result<Option<SessionId>> {
        let protecting: Vec<(SessionId, Vec<BackupId>)> = self
            .survey
            .protecting(&view.sessions)
            .iter()
            .map(|one| (one.id, one.record.parents.clone()))
            .collect();
        for (session, parents) in protecting {
            for parent in parents {
                if view.lists(parent) && self.keep(parent, OtherReason::InUse).await? {
                    continue;
                }
                // One that stands looked at the parent after it was registered, and does not use it.
                if !sessions::stands(self.shard, self.repository, session).await? {
                    return Ok(Some(session));
                }
            }
        }
        for &(backup, _) in &view.holds {
            if view.lists(backup) {
                self.keep(backup, OtherReason::Hold).await?;
            }
        }
        Ok(None)
    }

    /// Makes sure that a backup is not deleted by this run. False if it is gone.
    async fn keep(&mut self, backup: BackupId, reason: OtherReason) -> Result<bool> {
        if !self.doomed.contains(&backup) {
            return Ok(true);
        }
        let open = match catalogue::load_head(self.shard, self.repository, backup).await {
            Ok(open) => open,
            Err(error) if error.is_absence() => return Ok(false),
            Err(error) => return Err(error),
        };
        self.survey.packs.add(&open.head.packs, open.origin)?;
        self.doomed.remove(&backup);
        self.out.put_off.push(PutOff {
            backup_id: backup,
            reason,
        });
        Ok(true)
    }

    /// Whoever gave this run's session up may have relied on that already: nothing more is deleted.
    async fn check_session(&self) -> Result<()> {
        let own = self.session.id();
        if sessions::stands(self.shard, self.repository, own).await? {
            return Ok(());
        }
        Err(Error::new(
            Kind::Conflict,
            "the session of this expire was given up by an operator; it deletes nothing more",
        )
        .object(layout::session(own)?.as_str())
        .hint("run it again: what is left over goes then"))
    }

    /// Takes away sessions whose backups stand, before any of these goes: behind that nothing would say that they are over, and a
    /// run that was cut off would leave them to protect their packs until an operator gives them up. So the backup of one that
    /// stays is kept.
    async fn remove_ended(&mut self, view: &View) -> Result<()> {
        let own = self.session.id();
        let ended = |one: &&Standing| one.id != own && self.survey.is_over(one);
        let ended: Vec<SessionId> = view
            .sessions
            .iter()
            .filter(ended)
            .map(|one| one.id)
            .collect();
        let keys = ended.iter().map(|id| layout::session(*id));
        let keys: Vec<Key> = keys.collect::<Result<_>>()?;
        if keys.is_empty() {
            return Ok(());
        }
        self.check_session().await?;
        let gone = self.remove_sessions(&keys).await?;
        for (session, is_gone) in ended.iter().zip(gone) {
            let published = self.survey.published.get(session).filter(|_| !is_gone);
            for backup in published.cloned().unwrap_or_default() {
                self.keep(backup, OtherReason::InUse).await?;
            }
        }
        Ok(())
    }

    /// Gives for each whether it is gone.
    async fn remove_sessions(&mut self, keys: &[Key]) -> Result<Vec<bool>> {
        let gone = self.delete_each(keys).await?;
        self.out.sessions_removed += gone.iter().filter(|is_gone| **is_gone).count() as u64;
        Ok(gone)
    }

    async fn delete_manifests(&mut self) -> Result<()> {
        for backup in self.doomed.clone() {
            self.shard.stop()?;
            self.check_session().await?;
            self.registration.close();
            let key = layout::backup(backup)?;
            match self.repository.store().delete(self.shard, &key).await {
                Ok(()) => {}
                // Another expire was faster.
                Err(error) if error.is_absence() => {}
                Err(error) if error.kind() == Kind::Storage => {
                    self.refused(&key, &error);
                    // It may be gone all the same; while it may be there, its packs stay.
                    let read = catalogue::load_head(self.shard, self.repository, backup).await;
                    let open = match read {
                        Err(gone) if gone.is_absence() => return Err(error),
                        read => read?,
                    };
                    self.survey.packs.add(&open.head.packs, open.origin)?;
                    self.doomed.remove(&backup);
                    self.kept_back.insert(backup);
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.out.deleted.push(backup);
            (self.progress)(0);
        }
        Ok(())
    }

    /// Deletes those of the listed packs that nobody needs.
    async fn delete_packs(&mut self, candidates: Vec<(PackId, u64)>, view: &View) -> Result<()> {
        if view.listed.is_empty() {
            if !candidates.is_empty() {
                self.out.warnings.push(NO_BACKUP.to_owned());
            }
            return Ok(());
        }
        let protecting = self.survey.protecting(&view.sessions);
        let owners: BTreeSet<SessionId> = protecting.iter().map(|one| one.id).collect();
        // What a manifest named is no pack in the making, unless its writer can only write, and so may name anything: then the
        // pack itself is asked whose it is, if there is anybody whose it could be.
        let is_past = |packs: &PackUses, id: &PackId| {
            packs.is_known(id) && (packs.is_vouched(id) || owners.is_empty())
        };
        let packs = &self.survey.packs;
        let mut candidates = candidates;
        candidates.retain(|(id, _)| !packs.is_needed(id));
        let doubtful = candidates.iter().copied();
        let doubtful = doubtful.filter(|(id, _)| packs.is_known(id) && !is_past(packs, id));
        let doubtful: Vec<(PackId, u64)> = doubtful.collect();
        let (shard, repository) = (self.shard, self.repository);
        self.survey.ask(shard, repository, &doubtful).await?;
        let mut batch = Vec::new();
        for (id, bytes) in candidates {
            let packs = &self.survey.packs;
            if !is_past(packs, &id) && !self.survey.may_delete(&id, &owners) {
                continue;
            }
            let was_named = packs.is_known(&id);
            batch.push((layout::pack(id)?, bytes, was_named));
            if batch.len() == BATCH {
                self.delete_batch(std::mem::take(&mut batch)).await?;
            }
        }
        self.delete_batch(batch).await
    }

    async fn delete_batch(&mut self, batch: Vec<(Key, u64, bool)>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.shard.stop()?;
        self.check_session().await?;
        self.registration.close();
        let keys: Vec<Key> = batch.iter().map(|(key, ..)| key.clone()).collect();
        let gone = self.delete_each(&keys).await?;
        for ((_, bytes, was_named), is_gone) in batch.into_iter().zip(gone) {
            if !is_gone {
                continue;
            }
            self.out.packs += 1;
            self.out.freed_bytes = self.out.freed_bytes.saturating_add(bytes);
            self.out.leftover_packs += u64::from(!was_named);
            (self.progress)(bytes);
        }
        Ok(())
    }

    /// Deletes the objects, whichever of them exist, and tells those that stay. Gives for each whether it is gone.
    async fn delete_each(&mut self, keys: &[Key]) -> Result<Vec<bool>> {
        let mut gone = Vec::with_capacity(keys.len());
        for keys in keys.chunks(BATCH) {
            self.shard.stop()?;
            match self.delete_together(keys).await {
                Ok(()) => gone.extend(keys.iter().map(|_| true)),
                Err(error) if matches!(error.kind(), Kind::Storage | Kind::Unreachable) => {
                    gone.extend(self.delete_apart(keys, error).await?);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }

    async fn delete_together(&mut self, keys: &[Key]) -> Result<()> {
        let store = self.repository.store();
        store.delete_all(self.shard, keys).await?;
        self.has_deleted = true;
        Ok(())
    }

    /// Deletes one by one what could not be deleted together because of `error`. An object at which the store fails again and again
    /// stays where it deletes others; a store that fails at all of them, or at too many, ends the run.
    async fn delete_apart(&mut self, keys: &[Key], error: Error) -> Result<Vec<bool>> {
        let mut failed: Vec<(&Key, Error)> = Vec::new();
        if error.kind() == Kind::Unreachable {
            // Minutes have gone by. A store that does not answer ends the run here.
            self.check_session().await?;
            // What it has failed at for as long as anything is tried is not asked for again.
            let of_one = |key: &&Key| error.object_name() == Some(key.as_str());
            if let Some(key) = keys.iter().find(of_one) {
                failed.push((key, error));
            }
        }
        let mut gone = Vec::with_capacity(keys.len());
        for key in keys {
            if failed.iter().any(|(of, _)| *of == key) {
                gone.push(false);
                continue;
            }
            self.shard.stop()?;
            let deleted = self.delete_together(std::slice::from_ref(key)).await;
            gone.push(deleted.is_ok());
            match deleted {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::Storage => self.refused(key, &error),
                Err(error) if error.kind() == Kind::Unreachable => {
                    if self.failed + failed.len() >= FAILED_MAX {
                        return Err(error);
                    }
                    self.check_session().await?;
                    failed.push((key, error));
                }
                Err(error) => return Err(error),
            }
        }
        for (key, error) in failed {
            if !self.has_deleted || self.failed >= FAILED_MAX {
                return Err(error);
            }
            self.failed += 1;
            self.refused(key, &error);
        }
        Ok(gone)
    }

    fn refused(&mut self, key: &Key, error: &Error) {
        self.out.refused += 1;
        if self.out.refusals.len() < REFUSED_NAMED_MAX {
            self.out.refusals.push(Refusal {
                object: key.as_str().to_owned(),
                problem: error.to_string(),
            });
        }
    }

    /// Takes away the records of backups that are gone, tombstones that mean nothing any more, and sessions that died.
    async fn clean(&mut self, view: &View) -> Result<()> {
        let mut keys = Vec::new();
        for (&backup, sessions) in &view.marks {
            let gone = self.is_gone(backup, view).await?;
            for &session in sessions {
                let stands = view.stands(session);
                let is_own = session == self.session.id() && !self.kept_back.contains(&backup);
                if gone || !stands || is_own {
                    keys.push(layout::tombstone(backup, session)?);
                }
            }
        }
        for (&backup, numbers) in &view.notes {
            if self.is_gone(backup, view).await? {
                for &number in numbers {
                    keys.push(layout::annotation(backup, number)?);
                }
            }
        }
        for &(backup, hold) in &view.holds {
            if self.is_gone(backup, view).await? {
                keys.push(layout::hold(backup, hold)?);
            }
        }
        let mut sessions = Vec::new();
        for session in &view.sessions {
            // A request that a dead process sent may still arrive, so what it protected goes with the next run. Those that are over
            // were taken away before.
            let died = session.life == Life::Dead && !self.survey.is_over(session);
            if died && session.id != self.session.id() {
                sessions.push(layout::session(session.id)?);
            }
        }
        self.delete_each(&keys).await?;
        self.remove_sessions(&sessions).await.map(drop)
    }

    /// Whether a backup is gone for good. Ids are used once, so what is gone does not come back.
    async fn is_gone(&self, backup: BackupId, view: &View) -> Result<bool> {
        if self.doomed.contains(&backup) {
            return Ok(true);
        }
        if view.lists(backup) {
            return Ok(false);
        }
        let was_looked_up = self.survey.gone.contains(&layout::backup(backup)?);
        Ok(was_looked_up || !catalogue::stands(self.shard, self.repository, backup).await?)
    }

    /// Unfinished uploads of jobs that died over a day ago, if nobody is at work.
    async fn remove_uploads(&mut self, view: &View) -> Result<()> {
        let own = self.session.id();
        let is_at_work =
            |one: &Standing| one.id != own && !self.survey.is_over(one) && one.life != Life::Dead;
        if view.sessions.iter().any(is_at_work) {
            return Ok(());
        }
        let store = self.repository.store();
        let stale = match self.repository.leftovers(self.shard).await {
            Ok(stale) => stale,
            // Not every store lists them, and nothing hangs on it.
            Err(error) => {
                let warning = format!("unfinished uploads cannot be listed: {error}");
                self.out.warnings.push(warning);
                return Ok(());
            }
        };
        for upload in stale {
            self.shard.stop()?;
            match store.remove_temporary(self.shard, &upload).await {
                Ok(()) => self.out.uploads_removed += 1,
                Err(error) if error.is_absence() || error.kind() == Kind::Conflict => {}
                Err(error) => {
                    let warning = format!("an unfinished upload stays: {error}");
                    self.out.warnings.push(warning);
                }
            }
        }
        Ok(())
    }
}
