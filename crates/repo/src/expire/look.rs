//! A look at everything that names backups, and whether the listings leave something out.
//!
//! A store may answer a listing without an error and without all there is: from an index that lags behind, or cut off between
//! two pages. A backup that is missing there would be nobody's, and its packs left over. So whatever is named somewhere and is
//! not listed is looked up under its own name: what a manifest builds on, what a hold, a note or a tombstone is on, what a
//! session builds on, and what an earlier look has shown. [`super::makers`] does the same for those who wrote packs.
//!
//! Invariants: what names a backup is listed before the manifests, and a backup is there before anything names it; so one that is
//! not listed and is there when it is looked up afterwards shows that the listing is incomplete, whoever else is at work. Where that
//! is not certain, the next look must show it. Ids are used once: what was gone stays so and is not looked up again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mover_base::{BackupId, Error, HoldId, Kind, Result, SessionId};
use mover_io::Shard;
use mover_store::Key;

use super::{Survey, manifests};
use crate::annotations::{self, Changes};
use crate::catalogue::{self, Listing};
use crate::records::at_once;
use crate::repository::Repository;
use crate::sessions::{self, Standing, stray_name};
use crate::tombstones::{self, Marks};
use crate::{holds, layout};

/// How often a run looks again when others delete or end sessions at the same time.
pub(super) const LOOKS_MAX: usize = 5;

/// What came of a look.
pub(super) enum Looked {
    /// What there is to be seen.
    Shown(View),
    /// Others were at work: this came or went in between, and it is to be done again.
    Between(Key),
}

/// What a look showed.
pub(super) struct View {
    pub sessions: Vec<Standing>,
    /// Their ids: each is asked for by every key that stood, tombstone and pack.
    standing: BTreeSet<SessionId>,
    pub marks: Marks,
    pub holds: BTreeSet<(BackupId, HoldId)>,
    pub notes: Changes,
    /// The backups, with the lengths of their manifests.
    pub listed: BTreeMap<BackupId, u64>,
    /// What stands behind the end of the listing of manifests.
    behind: Vec<BackupId>,
}

impl View {
    /// Sessions before manifests: the reverse of the order in which a backup writes. What names backups before these.
    async fn take(shard: &Shard, repository: &Arc<Repository>) -> Result<Self> {
        let marks = tombstones::list(shard, repository).await?;
        let notes = annotations::list(shard, repository).await?;
        let sessions = sessions::list(shard, repository).await?;
        let holds = holds::ids(shard, repository).await?.into_iter().collect();
        let listed = manifests::list(shard, repository).await?;
        let last = listed.last_key_value().map(|(id, _)| *id);
        let behind = catalogue::list_behind(shard, repository, last).await?;
        Ok(View {
            standing: sessions.iter().map(|session| session.id).collect(),
            sessions,
            marks,
            holds,
            notes,
            listed,
            behind: only_ids(behind)?,
        })
    }

    /// Whether a session is listed.
    pub fn stands(&self, session: SessionId) -> bool {
        self.standing.contains(&session)
    }

    /// Whether a manifest is listed.
    pub fn lists(&self, backup: BackupId) -> bool {
        self.listed.contains_key(&backup)
    }

    /// Whether a manifest, a session or a hold is listed.
    fn shows(&self, key: &Key) -> bool {
        if let Some(id) = layout::backup_of(key) {
            return self.lists(id);
        }
        if let Some(id) = layout::session_of(key) {
            return self.stands(id);
        }
        layout::hold_of(key).is_some_and(|hold| self.holds.contains(&hold))
    }

    /// Backups that are not listed and that a record names, each with the name of one.
    fn named(&self) -> Result<BTreeMap<BackupId, Key>> {
        let mut named = BTreeMap::new();
        let mut name = |backup: BackupId, by: Result<Key>| -> Result<()> {
            if !self.lists(backup) {
                named.insert(backup, by?);
            }
            Ok(())
        };
        for session in &self.sessions {
            for &parent in &session.record.parents {
                name(parent, layout::session(session.id))?;
            }
        }
        for (&backup, sessions) in &self.marks {
            for &session in sessions {
                name(backup, layout::tombstone(backup, session))?;
            }
        }
        for (&backup, numbers) in &self.notes {
            for &number in numbers {
                name(backup, layout::annotation(backup, number))?;
            }
        }
        for &(backup, hold) in &self.holds {
            name(backup, layout::hold(backup, hold))?;
        }
        Ok(named)
    }
}

/// The ids of manifests. A name among them that none has is an error: it may be a backup that was renamed, whose packs would go.
fn only_ids(listing: Listing) -> Result<Vec<BackupId>> {
    match listing.strays.first() {
        Some(stray) => Err(stray_name(stray, "manifests")),
        None => Ok(listing.ids),
    }
}

impl Survey {
    /// Looks once, and takes in the manifests that are new.
    pub(super) async fn look(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
    ) -> Result<Looked> {
        let view = View::take(shard, repository).await?;
        self.check_shown(shard, repository, &view).await?;
        let mut between = None;
        for &id in &view.behind {
            // It may have been made in between.
            let key = layout::backup(id)?;
            self.stood.insert(key.clone());
            between = Some(key);
        }
        if between.is_none() {
            between = self.take_new(shard, repository, &view).await?;
        }
        if let Some(key) = between {
            return Ok(Looked::Between(key));
        }
        self.check_named(shard, repository, &view).await?;
        if let Some(key) = self.hidden_expire(shard, repository, &view).await? {
            // It may have begun behind the listing; the next one shows it.
            self.stood.insert(key.clone());
            return Ok(Looked::Between(key));
        }
        Ok(Looked::Shown(view))
    }

    /// A session that is not listed, whose tombstone is, and that stands: what it is about to delete must not lose its mark.
    async fn hidden_expire(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
        view: &View,
    ) -> Result<Option<Key>> {
        let mut hidden = BTreeSet::new();
        for &session in view.marks.values().flatten() {
            hidden.insert(layout::session(session)?);
        }
        hidden.retain(|key| !view.shows(key) && !self.gone.contains(key));
        let hidden = hidden.into_iter().collect();
        let standing = self.standing(shard, repository, hidden).await?;
        Ok(standing.into_iter().next())
    }

    /// What stood and is not listed must be gone: else the listing left it out.
    async fn check_shown(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
        view: &View,
    ) -> Result<()> {
        let mut hidden: Vec<Key> = self.stood.iter().cloned().collect();
        for &id in self.backups.keys() {
            hidden.push(layout::backup(id)?);
        }
        hidden.retain(|key| !view.shows(key) && !self.gone.contains(key));
        if let Some(key) = self.standing(shard, repository, hidden).await?.first() {
            return Err(incomplete(key, "an earlier look found it"));
        }
        self.stood.clear();
        for session in &view.sessions {
            self.stood.insert(layout::session(session.id)?);
        }
        for &(backup, hold) in &view.holds {
            self.stood.insert(layout::hold(backup, hold)?);
        }
        Ok(())
    }

    /// Reads the manifests that were not known. Gives one that is gone already: what it needed is not known.
    async fn take_new(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
        view: &View,
    ) -> Result<Option<Key>> {
        let listed = view.listed.iter().map(|(id, bytes)| (*id, *bytes));
        let new = listed.filter(|(id, _)| !self.backups.contains_key(id));
        let new: Vec<(BackupId, u64)> = new.collect();
        let mut between = None;
        let read = manifests::read_each(shard, repository, &new, |id, read| {
            let key = layout::backup(id)?;
            match read {
                Ok(open) => {
                    self.gone.remove(&key);
                    self.add(open)?;
                    Ok(true)
                }
                Err(error) if error.is_absence() => {
                    self.gone.insert(key.clone());
                    between = Some(key);
                    Ok(false)
                }
                Err(error) => Err(error),
            }
        });
        read.await?;
        Ok(between)
    }

    /// Backups that something names and that are not listed must be gone.
    async fn check_named(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
        view: &View,
    ) -> Result<()> {
        let mut named = view.named()?;
        for (&id, known) in &self.backups {
            for base in known.bases.into_iter().flatten() {
                if !view.lists(base) {
                    named.insert(base, layout::backup(id)?);
                }
            }
        }
        let mut hidden = Vec::new();
        for &id in named.keys() {
            hidden.push(layout::backup(id)?);
        }
        hidden.retain(|key| !self.gone.contains(key));
        let standing = self.standing(shard, repository, hidden).await?;
        let Some(key) = standing.first() else {
            return Ok(());
        };
        let by = layout::backup_of(key).and_then(|id| named.get(&id));
        let told = by.map_or_else(String::new, |by| format!("{by} names it"));
        Err(incomplete(key, &told))
    }

    /// Which of these objects are there, asked for under their own names. The others are gone from here on.
    pub(super) async fn standing(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
        keys: Vec<Key>,
    ) -> Result<Vec<Key>> {
        let ask = |key: Key| {
            let (shard, repository) = (shard.clone(), repository.clone());
            async move {
                let found = repository.store().head(&shard, &key).await?;
                Ok((key, found.is_some()))
            }
        };
        let mut standing = Vec::new();
        for (key, stands) in at_once(shard, keys, ask).await? {
            match stands {
                true => standing.push(key),
                false => drop(self.gone.insert(key)),
            }
        }
        Ok(standing)
    }
}

/// The error that a listing does not show an object that is there. `told` says how that is known.
pub(super) fn incomplete(object: &Key, told: &str) -> Error {
    Error::new(
        Kind::Storage,
        "the storage's listing leaves out an object that exists; nothing was deleted",
    )
    .object(object.as_str())
    .hint(format!(
        "{told}; the storage cannot be relied on as it is: check it, then run this again"
    ))
}
