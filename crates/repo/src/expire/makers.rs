//! Who wrote the packs that no manifest names, or none of somebody who can be believed.
//!
//! The preamble of a pack names the session that wrote it, and the id of a session leads to its object and to the manifest of its
//! backup, both by their own names. So a pack tells of its backup even where the listings show neither the backup nor anything
//! that names it, as with the newest one.
//!
//! Invariants: a pack that no manifest names is deleted only if its preamble was read and the session named there belongs to none of
//! those that stand; of such a session neither object nor manifest was there when they were looked up, in this order, unless they
//! were listed. Packs never change, so each is read once; memory is some 50 bytes for each of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use mover_base::{Kind, PackId, Result, SessionId};
use mover_format::preamble::{PREAMBLE_BYTES_MAX, Preamble};
use mover_io::Shard;
use mover_store::Key;

use super::Survey;
use super::look::View;
use crate::records::at_once;
use crate::repository::Repository;
use crate::{layout, sessions};

/// Who wrote a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    /// This session.
    Session(SessionId),
    /// Nobody can tell: the preamble cannot be read.
    Unreadable,
    /// The pack is gone.
    Gone,
}

impl Survey {
    /// Asks of the packs that no manifest names who wrote them, and looks up what the listings do not show of these: what is found
    /// stands and is not listed. Where no manifest is listed, no pack goes, and nobody is asked.
    pub(super) async fn hidden_makers(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
        packs: &[(PackId, u64)],
        view: &View,
    ) -> Result<Vec<Key>> {
        if view.listed.is_empty() {
            return Ok(Vec::new());
        }
        let unnamed = packs.iter().filter(|(id, _)| !self.packs.is_known(id));
        let unnamed: Vec<(PackId, u64)> = unnamed.copied().collect();
        self.ask(shard, repository, &unnamed).await?;
        let mut makers = BTreeSet::new();
        for (id, _) in &unnamed {
            if let Some(Maker::Session(session)) = self.makers.get(id) {
                makers.insert(*session);
            }
        }
        // Those protect what they wrote, whether or not their manifests are listed.
        makers.retain(|id| !view.stands(*id));

        let mut keys = Vec::new();
        for &maker in &makers {
            keys.push(layout::session(maker)?);
        }
        keys.retain(|key| !self.gone.contains(key));
        let standing = self.standing(shard, repository, keys).await?;
        if !standing.is_empty() {
            return Ok(standing);
        }
        // The sessions have ended: what they published was there before.
        let mut keys = Vec::new();
        for backup in makers.into_iter().flat_map(sessions::backups_of) {
            if !view.lists(backup) {
                keys.push(layout::backup(backup)?);
            }
        }
        keys.retain(|key| !self.gone.contains(key));
        self.standing(shard, repository, keys).await
    }

    /// Reads the preambles of those packs that were not read yet.
    pub(super) async fn ask(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
        packs: &[(PackId, u64)],
    ) -> Result<()> {
        let unread = packs.iter().filter(|(id, _)| !self.makers.contains_key(id));
        let read = |(id, bytes): (PackId, u64)| {
            let (shard, repository) = (shard.clone(), repository.clone());
            async move {
                let maker = maker_of(&shard, &repository, id, bytes).await?;
                Ok((id, maker))
            }
        };
        let read = at_once(shard, unread.copied().collect(), read).await?;
        self.makers.extend(read);
        Ok(())
    }

    /// Whether a pack that was asked belongs to none of the sessions `owners`. One whose maker cannot be told stays.
    pub(super) fn may_delete(&self, id: &PackId, owners: &BTreeSet<SessionId>) -> bool {
        match self.makers.get(id) {
            Some(Maker::Session(maker)) => !owners.contains(maker),
            Some(Maker::Unreadable | Maker::Gone) | None => false,
        }
    }

    /// How many of these packs cannot be read.
    pub(super) fn unreadable(&self, packs: &[(PackId, u64)]) -> usize {
        let of = |(id, _): &&(PackId, u64)| self.makers.get(id) == Some(&Maker::Unreadable);
        packs.iter().filter(of).count()
    }
}

async fn maker_of(shard: &Shard, repository: &Repository, id: PackId, bytes: u64) -> Result<Maker> {
    let key = layout::pack(id)?;
    let len = PREAMBLE_BYTES_MAX.min(usize::try_from(bytes).unwrap_or(PREAMBLE_BYTES_MAX));
    let head = match repository.store().read(shard, &key, 0, len).await {
        Ok(head) => head,
        Err(error) if error.is_absence() => return Ok(Maker::Gone),
        Err(error) if error.kind() == Kind::Corrupt => return Ok(Maker::Unreadable),
        Err(error) => return Err(error),
    };
    let preamble = Preamble::decode(&head).ok().map(|(preamble, _)| preamble);
    let own = preamble.filter(|one| one.repo_id == repository.id() && one.object_id == id.0);
    Ok(own.map_or(Maker::Unreadable, |preamble| {
        Maker::Session(preamble.session_id)
    }))
}
