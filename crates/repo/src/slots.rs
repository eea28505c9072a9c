//! The key slots of a repository: listing, adding and removing them.
//!
//! Invariants: a slot counts as intact only if its bytes, its place and the header it was made for agree; one
//! that does not is listed with its reason and stands in nobody's way. No removal leaves a repository without
//! an intact slot: after a deletion the slots are looked at again, and if two removals took the last two, each
//! puts its own back.

use mover_base::{Error, Kind, Result, SlotId, Timestamp};
use mover_format::slot::{KeySlot, SLOT_BYTES_MAX};
use mover_io::Shard;
use mover_store::{Key, Put};
use serde::Serialize;

use crate::keys::{self, SlotInfo, SlotOwner};
use crate::layout;
use crate::repository::Repository;
use crate::secret::Secret;

/// Most key slots that a repository may have; more than any team needs, and a bound for `open`.
const SLOTS_MAX: usize = 64;
/// Most names looked at below the prefix of the slots: strays must not crowd out slots.
const NAMES_MAX: usize = 1000;

/// A key slot as it is stored.
pub(crate) struct StoredSlot {
    /// Its name.
    pub key: Key,
    /// The id in its name.
    pub id: SlotId,
    /// Its bytes, as far as they could be read: what puts it back.
    bytes: Vec<u8>,
    /// Its content, or why it cannot be used.
    pub slot: Result<KeySlot>,
}

/// Everything that stands among the key slots.
pub(crate) struct StoredSlots {
    /// The slots.
    pub slots: Vec<StoredSlot>,
    /// Names that no slot has.
    pub strays: Vec<String>,
}

/// A key slot in a listing. One that cannot be used has only its names and a problem.
#[derive(Debug, Clone, Serialize)]
pub struct ListedSlot {
    /// Its id, which names the object.
    pub slot_id: SlotId,
    /// `passphrase` or `x25519`.
    pub kind: Option<&'static str>,
    /// What the operator called it.
    pub label: Option<String>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The object.
    pub object: String,
    /// Whether it cannot be used.
    pub damaged: bool,
    /// Why.
    pub problem: Option<String>,
}

/// The key slots of a repository, as listings show them.
#[derive(Debug, Clone, Serialize)]
pub struct SlotListing {
    /// The slots, damaged ones too.
    pub slots: Vec<ListedSlot>,
    /// Names among them that no slot has.
    pub strays: Vec<String>,
}

impl StoredSlot {
    fn listed(&self) -> ListedSlot {
        let (info, problem) = match &self.slot {
            Ok(slot) => (Some(keys::slot_info(slot)), None),
            Err(error) => (None, Some(reason(error))),
        };
        ListedSlot {
            slot_id: self.id,
            kind: info.as_ref().map(|info| info.kind),
            created: info.as_ref().map(|info| info.created),
            label: info.map(|info| info.label),
            object: self.key.as_str().to_owned(),
            damaged: problem.is_some(),
            problem,
        }
    }
}

/// An error without its object, which the listing names already.
fn reason(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{}: {cause}", error.message()),
        None => error.message().to_owned(),
    }
}

impl Repository {
    /// Every key slot with its name; one that cannot be read or used carries its error.
    pub(crate) async fn read_slots(&self, shard: &Shard) -> Result<StoredSlots> {
        let page = self
            .store()
            .list(shard, layout::KEYS, None, NAMES_MAX)
            .await?;
        let mut strays = page.strays;
        let mut slots = Vec::new();
        for object in page.objects {
            let Some(id) = layout::slot_of(&object.key) else {
                strays.push(object.key.as_str().to_owned());
                continue;
            };
            if slots.len() == SLOTS_MAX {
                return Err(too_many());
            }
            let max = SLOT_BYTES_MAX as u64;
            let (bytes, slot) = match self.store().get(shard, &object.key, max).await {
                Ok(bytes) => {
                    let slot = self.decode_slot(&object.key, &bytes);
                    (bytes, slot)
                }
                // It was removed since it was listed.
                Err(error) if error.is_absence() => continue,
                Err(error) if error.kind() == Kind::Cancelled => return Err(error),
                Err(error) => (Vec::new(), Err(error)),
            };
            slots.push(StoredSlot {
                id,
                bytes,
                slot,
                key: object.key,
            });
        }
        if page.next.is_some() {
            return Err(too_many());
        }
        Ok(StoredSlots { slots, strays })
    }

    fn decode_slot(&self, key: &Key, bytes: &[u8]) -> Result<KeySlot> {
        let slot = KeySlot::decode(bytes).map_err(|error| error.object(key.as_str()))?;
        let expected = layout::slot(slot.slot_id)?;
        let wrong = |what: &str| Error::new(Kind::Corrupt, what).object(key.as_str());
        if slot.repo_id != self.id() || expected.as_str() != key.as_str() {
            return Err(wrong("the key slot does not belong at this place")
                .hint("it was copied or renamed; remove it and add the key again"));
        }
        if slot.config_sha256 != self.binding().config_sha256 {
            return Err(wrong("the key slot was made for another header")
                .hint("`config` or the slot was replaced; bring the original object back"));
        }
        Ok(slot)
    }

    /// The key slots as listings show them.
    pub async fn slots(&self, shard: &Shard) -> Result<SlotListing> {
        let found = self.read_slots(shard).await?;
        Ok(SlotListing {
            slots: found.slots.iter().map(StoredSlot::listed).collect(),
            strays: found.strays,
        })
    }

    /// Adds a slot for a passphrase. Needs the secret.
    pub async fn add_passphrase(
        &self,
        shard: &Shard,
        passphrase: &Secret,
        label: &str,
    ) -> Result<SlotInfo> {
        self.add_slot(shard, &SlotOwner::Passphrase(passphrase), label)
            .await
    }

    /// Adds a slot for whoever holds the identity of `recipient`. Needs the secret.
    pub async fn add_recipient(
        &self,
        shard: &Shard,
        recipient: &str,
        label: &str,
    ) -> Result<SlotInfo> {
        keys::check_recipient(recipient)?;
        self.add_slot(shard, &SlotOwner::Recipient(recipient), label)
            .await
    }

    pub(crate) async fn add_slot(
        &self,
        shard: &Shard,
        owner: &SlotOwner<'_>,
        label: &str,
    ) -> Result<SlotInfo> {
        let secret = self.require_secret()?;
        // One more than can be listed would lock everybody out.
        if self.read_slots(shard).await?.slots.len() >= SLOTS_MAX {
            return Err(too_many());
        }
        let slot = secret.seal_slot(self.binding(), owner, label)?;
        let info = keys::slot_info(&slot);
        match self
            .store()
            .put_if_absent(shard, &layout::slot(info.slot_id)?, &slot.encode()?)
            .await?
        {
            Put::Created => Ok(info),
            Put::Exists => Err(Error::new(Kind::Conflict, "a key slot of that id exists")
                .object(info.slot_id.to_string())),
        }
    }

    /// Removes the one slot whose id begins with `prefix`, intact or not; never the last intact one.
    pub async fn remove_slot(&self, shard: &Shard, prefix: &str) -> Result<ListedSlot> {
        self.require_secret()?;
        let chosen = self.choose_slot(shard, prefix).await?;
        self.take_slot(shard, &chosen).await?;
        Ok(chosen.listed())
    }

    /// The slot to remove, if it can be spared as far as one look tells.
    async fn choose_slot(&self, shard: &Shard, prefix: &str) -> Result<StoredSlot> {
        let (mut matching, others): (Vec<_>, Vec<_>) = self
            .read_slots(shard)
            .await?
            .slots
            .into_iter()
            .partition(|slot| slot.id.to_string().starts_with(prefix));
        let count = matching.len();
        let chosen = match matching.pop() {
            Some(slot) if count == 1 => slot,
            _ => {
                let (kind, what) = match count {
                    0 => (Kind::NotFound, "no key slot begins with this id"),
                    _ => (Kind::Usage, "several key slots begin with this id"),
                };
                return Err(Error::new(kind, what)
                    .object(prefix)
                    .hint("`helios-mover key list` shows the ids"));
            }
        };
        if others.iter().any(|other| other.slot.is_ok()) {
            return Ok(chosen);
        }
        let what = if chosen.slot.is_ok() {
            "this is the last intact key slot; without it nobody could read"
        } else {
            "no key slot is intact; what is left of this one is not thrown away"
        };
        Err(Error::new(Kind::Conflict, what)
            .object(chosen.id.to_string())
            .hint("add another key first: `helios-mover key add`"))
    }

    /// Deletes a slot, and puts it back if no intact one is left then: another removal was as fast.
    async fn take_slot(&self, shard: &Shard, chosen: &StoredSlot) -> Result<()> {
        self.store().delete(shard, &chosen.key).await?;
        // A damaged slot opens nothing, so that nothing is lost with it.
        if chosen.slot.is_err() {
            return Ok(());
        }
        let looked = self.read_slots(shard).await;
        let refused = match looked {
            Ok(left) if left.slots.iter().any(|left| left.slot.is_ok()) => return Ok(()),
            Ok(_) => Error::new(
                Kind::Conflict,
                "the other key slots were removed at the same time; this one was put back",
            )
            .object(chosen.id.to_string())
            .hint("look at `helios-mover key list`, and add another key first"),
            Err(error) => error,
        };
        // If somebody else put it back already, that is as good.
        self.store()
            .put_if_absent(shard, &chosen.key, &chosen.bytes)
            .await
            .map_err(|error| {
                error.hint("the repository may have no key slot left: put this object back from a copy of `keys/`")
            })?;
        Err(refused)
    }
}

fn too_many() -> Error {
    Error::new(
        Kind::Limit,
        format!("the repository has over {SLOTS_MAX} key slots or {NAMES_MAX} names among them"),
    )
    .object(layout::KEYS)
    .hint("remove slots that are not used, or move what is no slot out of there")
}

#[cfg(test)]
mod tests {
    use mover_io::ShardConfig;

    use super::*;
    use crate::{Credentials, InitRequest, LinkLimits, generate_identity};

    /// Runs `body` on a shard with a repository that two recipients open.
    fn with_two_slots(body: impl AsyncFn(&Shard, &Repository, &[SlotInfo]) + Sync) {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("file://{}/repo", dir.path().display());
        let link = LinkLimits::default();
        let config = ShardConfig {
            shards: 1,
            pin: false,
            ..ShardConfig::default()
        };
        let run = async |shard: Shard| {
            let (identity, first) = generate_identity();
            let (_, second) = generate_identity();
            let request = InitRequest {
                encryption: true,
                passphrase: None,
                recipients: &[first, second],
                label: "",
            };
            let (_, slots) = Repository::init(&shard, &url, &link, &request).await?;
            let opened =
                Repository::open(&shard, &url, &link, &Credentials::Identity(identity)).await?;
            body(&shard, &opened, &slots).await;
            Ok(())
        };
        mover_io::run(&config, run, |_| {}).expect("a run");
    }

    async fn ids(shard: &Shard, repository: &Repository) -> Vec<SlotId> {
        let found = repository.read_slots(shard).await.expect("a listing");
        found.slots.into_iter().map(|slot| slot.id).collect()
    }

    #[test]
    fn two_removals_at_once_do_not_take_the_last_two_slots() {
        with_two_slots(async |shard, repository, slots| {
            let before = ids(shard, repository).await;
            let choose = async |at: usize| {
                let chosen = repository
                    .choose_slot(shard, &slots[at].slot_id.to_string())
                    .await;
                chosen.expect("two slots are there")
            };
            // Both look before either deletes.
            let (one, two) = (choose(0).await, choose(1).await);
            repository
                .take_slot(shard, &one)
                .await
                .expect("one is left");
            let refused = repository.take_slot(shard, &two).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Conflict);
            assert_eq!(ids(shard, repository).await, [two.id]);

            // Both delete before either looks again.
            let put = repository
                .store()
                .put_if_absent(shard, &one.key, &one.bytes);
            put.await.expect("put back for the second round");
            assert_eq!(ids(shard, repository).await, before);
            repository
                .store()
                .delete(shard, &two.key)
                .await
                .expect("deleted");
            let refused = repository.take_slot(shard, &one).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Conflict);
            assert_eq!(ids(shard, repository).await, [one.id]);
        });
    }

    #[test]
    fn a_slot_that_was_put_back_still_opens() {
        with_two_slots(async |shard, repository, slots| {
            let chosen = repository
                .choose_slot(shard, &slots[0].slot_id.to_string())
                .await;
            let chosen = chosen.expect("two slots are there");
            let other = layout::slot(slots[1].slot_id).expect("a name");
            repository
                .store()
                .delete(shard, &other)
                .await
                .expect("deleted");
            repository.take_slot(shard, &chosen).await.unwrap_err();
            let left = repository.read_slots(shard).await.expect("a listing").slots;
            assert!(left.len() == 1 && left[0].slot.is_ok() && left[0].bytes == chosen.bytes);
        });
    }
}
