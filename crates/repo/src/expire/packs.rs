//! How many backups need each pack, and which stored packs none needs.
//!
//! Invariants: a pack counts as needed until every manifest that names it has released it; that a manifest names it says something
//! of who wrote it only where the manifest is vouched for; memory is some 50 bytes a pack, for [`PACKS_MAX`] packs at most.

use std::collections::HashMap;

use mover_base::{Error, Kind, PackId, Result};
use mover_format::manifest::PackInfo;
use mover_format::seal::Origin;
use mover_io::Shard;

use crate::layout;
use crate::records::each_object;
use crate::repository::Repository;

/// Most packs of one repository: 40 TB of them.
const PACKS_MAX: usize = 4_000_000;

/// How many manifests name each pack.
#[derive(Default)]
pub(super) struct PackUses(HashMap<PackId, Uses>);

#[derive(Default)]
struct Uses {
    manifests: u32,
    /// Whether one of them, also one that goes, is vouched for.
    is_vouched: bool,
}

impl PackUses {
    /// A manifest of this origin names these packs.
    pub fn add(&mut self, packs: &[PackInfo], origin: Origin) -> Result<()> {
        for pack in packs {
            let uses = self.0.entry(pack.id).or_default();
            uses.manifests += 1;
            uses.is_vouched |= origin == Origin::Vouched;
        }
        if self.0.len() > PACKS_MAX {
            let what = format!("the backups need over {PACKS_MAX} packs");
            return Err(Error::new(Kind::Limit, what).object(layout::BACKUPS).hint(
                "back up some of the hosts into another repository; to come below that here, delete manifests of the oldest backups with \
                 the storage's own tools while no backup runs, then run this again: their packs go then",
            ));
        }
        Ok(())
    }

    /// A manifest that was added shall go. Gives the bytes of the packs that no other one names.
    pub fn release(&mut self, packs: &[PackInfo]) -> u64 {
        let mut freed_bytes = 0u64;
        for pack in packs {
            if let Some(uses) = self.0.get_mut(&pack.id) {
                uses.manifests = uses.manifests.saturating_sub(1);
                if uses.manifests == 0 {
                    freed_bytes = freed_bytes.saturating_add(pack.bytes);
                }
            }
        }
        freed_bytes
    }

    /// Whether a manifest that stays names it.
    pub fn is_needed(&self, id: &PackId) -> bool {
        self.0.get(id).is_some_and(|uses| uses.manifests > 0)
    }

    /// Whether any manifest named it, also one that goes.
    pub fn is_known(&self, id: &PackId) -> bool {
        self.0.contains_key(id)
    }

    /// Whether a manifest named it whose writer could read: it is a pack of a backup that was published. Who can only write may
    /// name any pack that stands, also one of a backup in the making.
    pub fn is_vouched(&self, id: &PackId) -> bool {
        self.0.get(id).is_some_and(|uses| uses.is_vouched)
    }
}

/// Stored packs that are not needed now, with their bytes. Names that no pack has are passed over.
pub(super) async fn not_needed(
    shard: &Shard,
    repository: &Repository,
    uses: &PackUses,
) -> Result<Vec<(PackId, u64)>> {
    let mut found = Vec::new();
    each_object(shard, repository, layout::PACKS, |object| {
        let Some(id) = layout::pack_of(&object.key) else {
            return Ok(false);
        };
        if uses.is_needed(&id) {
            return Ok(true);
        }
        if found.len() == PACKS_MAX {
            let what = format!("over {PACKS_MAX} packs are needed by no backup");
            return Err(Error::new(Kind::Limit, what).object(layout::PACKS).hint(
                "let fewer backups go in one run, by rules that keep more at first; if it is so whatever is kept, begin another repository, \
                 and look whether the storage, or a proxy before it, lists what is not there",
            ));
        }
        found.push((id, object.bytes));
        Ok(true)
    })
    .await?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use mover_format::preamble::ObjectType;

    use super::*;

    fn pack(id: u8, bytes: u64) -> PackInfo {
        PackInfo {
            id: PackId([id; 16]),
            object_type: ObjectType::DataPack,
            bytes,
            directory_offset: 100,
            directory_bytes: 50,
            blocks: 1,
            directory_sha256: [0; 32],
        }
    }

    #[test]
    fn a_pack_is_free_when_its_last_manifest_goes() {
        let (a, b, c) = (pack(1, 10), pack(2, 200), pack(3, 3000));
        let mut uses = PackUses::default();
        uses.add(&[a, b], Origin::Vouched).unwrap();
        uses.add(&[b, c], Origin::WriteOnly).unwrap();
        assert_eq!(uses.release(&[a, b]), 10);
        assert!(!uses.is_needed(&a.id) && uses.is_known(&a.id));
        assert!(uses.is_needed(&b.id));
        assert!(!uses.is_known(&PackId([9; 16])) && !uses.is_vouched(&PackId([9; 16])));
        // One that is vouched for is enough, whichever else names it.
        assert!(uses.is_vouched(&a.id) && uses.is_vouched(&b.id));
        assert!(uses.is_known(&c.id) && !uses.is_vouched(&c.id));
        assert_eq!(uses.release(&[b, c]), 3200);
        // Put off: needed again.
        uses.add(&[b, c], Origin::WriteOnly).unwrap();
        assert!(uses.is_needed(&b.id) && uses.is_needed(&c.id) && !uses.is_needed(&a.id));
    }
}
