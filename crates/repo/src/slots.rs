//! The key slots of a repository: opening, listing, adding and removing them.
//!
//! Invariants: whatever else stands among the slots, be it ever so much like one, keeps nobody out as long as a slot that the
//! key opens is among the first [`NAMES_MAX`] names; a slot counts as intact only if its bytes, its place and the header it was made for agree; one
//! that does not is listed with its reason and stands in nobody's way. No removal leaves a repository that nobody opens: a slot goes
//! only where the key at hand opens another one (that one looks intact proves nothing: whoever may write can make one that does),
//! before the deletion and after it; if two removals took the last two, each puts its own back.

use mover_base::{Error, Kind, Result, SlotId, Timestamp};
use mover_format::slot::{KeySlot, SLOT_BYTES_MAX};
use mover_io::Shard;
use mover_store::{Key, Put};
use serde::Serialize;

use crate::keys::{self, RepoSecret, SlotInfo, SlotOwner};
use crate::layout;
use crate::records;
use crate::repository::Repository;
use crate::secret::{Credentials, Secret};

/// Most key slots that are made; more than any team needs.
const SLOTS_MAX: usize = 64;
/// Most names looked at below the prefix of the slots, so that what is no slot crowds out none.
const NAMES_MAX: usize = 1000;

/// A key slot as it is stored.
pub(crate) struct StoredSlot {
    /// Its name.
    pub key: Key,
    /// The id in its name.
    pub id: SlotId,
    /// Its bytes, if they are intact: what puts it back.
    bytes: Vec<u8>,
    /// Its content, or why it cannot be used.
    pub slot: Result<KeySlot>,
}

/// The names among the key slots.
struct SlotNames {
    slots: Vec<(Key, SlotId)>,
    /// Names that no slot has.
    strays: Vec<String>,
    /// There are more than are looked at.
    more: bool,
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
    /// Whether what the repository holds is encrypted: if it is and no slot is left, nobody can read it.
    pub encrypted: bool,
    /// The slots, damaged ones too.
    pub slots: Vec<ListedSlot>,
    /// Names among them that no slot has.
    pub strays: Vec<String>,
}

impl SlotListing {
    /// Whether what is encrypted has no slot left that can be used, so that no key opens it.
    pub fn is_locked_out(&self) -> bool {
        self.encrypted && self.slots.iter().all(|slot| slot.damaged)
    }
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
        let names = self.slot_names(shard).await?;
        if names.more {
            return Err(too_many_names());
        }
        let mut slots = Vec::new();
        for (key, id) in names.slots {
            slots.extend(self.read_slot(shard, key, id).await?);
        }
        let strays = names.strays;
        Ok(StoredSlots { slots, strays })
    }

    async fn slot_names(&self, shard: &Shard) -> Result<SlotNames> {
        let page = self
            .store()
            .list(shard, layout::KEYS, None, NAMES_MAX)
            .await?;
        let (mut slots, mut strays) = (Vec::new(), page.strays);
        for object in page.objects {
            match layout::slot_of(&object.key) {
                Some(id) => slots.push((object.key, id)),
                None => strays.push(object.key.as_str().to_owned()),
            }
        }
        Ok(SlotNames {
            slots,
            strays,
            more: page.next.is_some(),
        })
    }

    /// One slot; none if it was removed since it was listed.
    async fn read_slot(&self, shard: &Shard, key: Key, id: SlotId) -> Result<Option<StoredSlot>> {
        shard.stop()?;
        let (bytes, slot) = match self.store().get(shard, &key, SLOT_BYTES_MAX as u64).await {
            Ok(bytes) => match self.decode_slot(&key, &bytes) {
                Ok(slot) => (bytes, Ok(slot)),
                Err(error) => (Vec::new(), Err(error)),
            },
            Err(error) if error.is_absence() => return Ok(None),
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            Err(error) => (Vec::new(), Err(error)),
        };
        Ok(Some(StoredSlot {
            key,
            id,
            bytes,
            slot,
        }))
    }

    /// The secret, from the first slot that these credentials open. Whoever may write to the repository can put any number
    /// of objects before it, so none of those ends the search.
    pub(crate) async fn unlock(
        &self,
        shard: &Shard,
        credentials: &Credentials,
    ) -> Result<RepoSecret> {
        let names = self.slot_names(shard).await?;
        let mut damaged = None;
        let mut tried = 0;
        for (key, id) in names.slots {
            let Some(StoredSlot { key, slot, .. }) = self.read_slot(shard, key, id).await? else {
                continue;
            };
            tried += 1;
            let opened =
                slot.and_then(|slot| RepoSecret::open_slot(&slot, self.binding(), credentials));
            match opened {
                Ok(Some(secret)) if Some(secret.recipient().as_str()) == self.recipient() => {
                    return Ok(secret);
                }
                Ok(Some(_)) => {
                    damaged = Some(
                        Error::new(
                            Kind::Corrupt,
                            "the key slot's identity is not the header's recipient",
                        )
                        .object(key.as_str()),
                    );
                }
                Ok(None) => {}
                Err(error) => damaged = Some(error.object(key.as_str())),
            }
        }
        if names.more {
            return Err(too_many_names());
        }
        Err(self.opened_by_none(tried, damaged))
    }

    fn opened_by_none(&self, tried: usize, damaged: Option<Error>) -> Error {
        if let Some(error) = damaged {
            return match error.hint_text() {
                Some(_) => error,
                None => error.hint(
                    "copy the slot back, or open the repository with another key: `helios-mover key list` shows the slots",
                ),
            };
        }
        Error::new(
            Kind::Key,
            format!("the key opens none of the repository's {tried} key slots"),
        )
        .object(self.url())
        .hint("check --passphrase-file or --identity-file; `helios-mover key list` shows the slots")
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
            encrypted: self.is_encrypted(),
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

    /// Adds a slot for whoever holds the identity of `recipient`; without a label it is called by how that begins. Needs the
    /// secret.
    pub async fn add_recipient(
        &self,
        shard: &Shard,
        recipient: &str,
        label: Option<&str>,
    ) -> Result<SlotInfo> {
        keys::check_recipient(recipient)?;
        let label = label.map_or_else(|| keys::label_of(recipient), str::to_owned);
        self.add_slot(shard, &SlotOwner::Recipient(recipient), &label)
            .await
    }

    pub(crate) async fn add_slot(
        &self,
        shard: &Shard,
        owner: &SlotOwner<'_>,
        label: &str,
    ) -> Result<SlotInfo> {
        let secret = self.require_secret()?;
        let found = self.read_slots(shard).await?.slots;
        if found.iter().filter(|slot| slot.slot.is_ok()).count() >= SLOTS_MAX {
            return Err(Error::new(
                Kind::Limit,
                format!("the repository has {SLOTS_MAX} key slots already"),
            )
            .object(layout::KEYS)
            .hint("remove one that is not used: `helios-mover key list` shows them"));
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

    /// Removes the one slot whose id begins with `prefix`, intact or not; only where `credentials` open another one.
    pub async fn remove_slot(
        &self,
        shard: &Shard,
        prefix: &str,
        credentials: &Credentials,
    ) -> Result<ListedSlot> {
        self.require_secret()?;
        let chosen = self.choose_slot(shard, prefix, credentials).await?;
        self.take_slot(shard, &chosen, credentials).await?;
        Ok(chosen.listed())
    }

    /// Whether these credentials open the slot, and with it the repository.
    fn is_opened_by(&self, slot: &StoredSlot, credentials: &Credentials) -> bool {
        let Ok(slot) = &slot.slot else {
            return false;
        };
        match RepoSecret::open_slot(slot, self.binding(), credentials) {
            Ok(Some(secret)) => Some(secret.recipient().as_str()) == self.recipient(),
            Ok(None) | Err(_) => false,
        }
    }

    /// The slot to remove, if it can be spared as far as one look tells.
    async fn choose_slot(
        &self,
        shard: &Shard,
        prefix: &str,
        credentials: &Credentials,
    ) -> Result<StoredSlot> {
        let (mut matching, others): (Vec<_>, Vec<_>) = self
            .read_slots(shard)
            .await?
            .slots
            .into_iter()
            .partition(|slot| slot.id.to_string().starts_with(prefix));
        let count = matching.len();
        let chosen = match matching.pop() {
            Some(slot) if count == 1 => slot,
            last => {
                let ids = matching.iter().chain(&last).map(|slot| slot.id.to_string());
                let error = match count {
                    0 => {
                        Error::new(Kind::NotFound, "no key slot begins with this id").object(prefix)
                    }
                    _ => records::ambiguous(prefix, "key slot", ids),
                };
                return Err(error.hint("`helios-mover key list` shows the ids"));
            }
        };
        let is_opened = |other: &StoredSlot| self.is_opened_by(other, credentials);
        if others.iter().any(is_opened) {
            return Ok(chosen);
        }
        let is_other_intact = others.iter().any(|other| other.slot.is_ok());
        let (what, hint) = match (is_other_intact, &chosen.slot) {
            (true, _) => (
                "the key that is given opens no other key slot, so it does not show that the repository can be opened without this one",
                "give the key of a slot that stays (--passphrase-file or --identity-file), and remove this one by it",
            ),
            (false, Ok(_)) => (
                "this is the last intact key slot; without it nobody could read",
                "add another key first: `helios-mover key add`",
            ),
            (false, Err(_)) => (
                "no key slot is intact; what is left of this one is not thrown away",
                "add another key first: `helios-mover key add`",
            ),
        };
        Err(Error::new(Kind::Conflict, what)
            .object(chosen.id.to_string())
            .hint(hint))
    }

    /// Deletes a slot, and puts it back if the key opens none then: another removal was as fast.
    async fn take_slot(
        &self,
        shard: &Shard,
        chosen: &StoredSlot,
        credentials: &Credentials,
    ) -> Result<()> {
        self.store().delete(shard, &chosen.key).await?;
        // A damaged slot opens nothing, so that nothing is lost with it.
        if chosen.slot.is_err() {
            return Ok(());
        }
        let refused = match self.unlock(shard, credentials).await {
            Ok(_) => return Ok(()),
            Err(error) if matches!(error.kind(), Kind::Key | Kind::Corrupt) => Error::new(
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

fn too_many_names() -> Error {
    Error::new(
        Kind::Limit,
        format!("over {NAMES_MAX} objects stand where the key slots are"),
    )
    .object(layout::KEYS)
    .hint("with the storage's own tools, delete those that `helios-mover key add` did not make")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixture, generate_identity};

    /// Runs `body` on a shard with a repository that two recipients open, each with its slot and its key.
    fn with_two_slots(
        body: impl AsyncFn(&Shard, &Repository, &[SlotInfo], &[Credentials; 2]) + Sync,
    ) {
        fixture::with_place(async |shard, url| {
            let (one, first) = generate_identity();
            let (two, second) = generate_identity();
            let keys = [one, two].map(Credentials::Identity);
            let slots = fixture::init(shard, url, &[first, second]).await?;
            let opened = fixture::open(shard, url, &keys[0]).await?;
            body(shard, &opened, &slots, &keys).await;
            Ok(())
        });
    }

    async fn ids(shard: &Shard, repository: &Repository) -> Vec<SlotId> {
        let found = repository.read_slots(shard).await.expect("a listing");
        found.slots.into_iter().map(|slot| slot.id).collect()
    }

    #[test]
    fn two_removals_at_once_do_not_take_the_last_two_slots() {
        with_two_slots(async |shard, repository, slots, keys| {
            let before = ids(shard, repository).await;
            // Each by the key of the other.
            let choose = async |at: usize| {
                let id = slots[at].slot_id.to_string();
                let chosen = repository.choose_slot(shard, &id, &keys[1 - at]).await;
                chosen.expect("two slots are there")
            };
            // Both look before either deletes.
            let (one, two) = (choose(0).await, choose(1).await);
            repository
                .take_slot(shard, &one, &keys[1])
                .await
                .expect("one is left");
            let refused = repository.take_slot(shard, &two, &keys[0]).await;
            let refused = refused.unwrap_err();
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
            let refused = repository.take_slot(shard, &one, &keys[1]).await;
            assert_eq!(refused.unwrap_err().kind(), Kind::Conflict);
            assert_eq!(ids(shard, repository).await, [one.id]);
        });
    }

    /// The public parts of a slot around something that is no key: whoever may write can make it, and it counts as intact.
    #[test]
    fn a_slot_that_only_looks_intact_does_not_make_another_one_spare() {
        with_two_slots(async |shard, repository, slots, keys| {
            let found = repository.read_slots(shard).await.expect("a listing").slots;
            let like = found[0].slot.as_ref().expect("intact");
            let planted = KeySlot {
                slot_id: SlotId([7; 16]),
                age: vec![0x5a; like.age.len()],
                ..like.clone()
            };
            let key = layout::slot(planted.slot_id).expect("a name");
            let bytes = planted.encode().expect("a slot");
            let put = repository.store().put_if_absent(shard, &key, &bytes);
            put.await.expect("planted");
            let listed = repository.slots(shard).await.expect("a listing").slots;
            assert!(listed.iter().all(|slot| !slot.damaged), "{listed:?}");

            let [one, two] = [0, 1].map(|at: usize| slots[at].slot_id.to_string());
            let removed = repository.remove_slot(shard, &two, &keys[0]).await;
            removed.expect("its own opens");
            let refused = repository.remove_slot(shard, &one, &keys[0]).await;
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), Kind::Conflict, "{refused}");
            repository.unlock(shard, &keys[0]).await.expect("it opens");
        });
    }

    /// Whoever may write and not read can make any of these.
    #[test]
    fn what_others_put_among_the_slots_locks_nobody_out() {
        with_two_slots(async |shard, repository, slots, keys| {
            let store = repository.store();
            let genuine = ids(shard, repository).await;
            for at in 0..100u8 {
                let key = layout::slot(SlotId([at; 16])).expect("a name");
                store
                    .put_if_absent(shard, &key, b"no slot")
                    .await
                    .expect("put");
            }
            let listed = repository.slots(shard).await.expect("a listing").slots;
            let intact = listed.iter().filter(|slot| !slot.damaged);
            let intact: Vec<SlotId> = intact.map(|slot| slot.slot_id).collect();
            assert_eq!((listed.len(), &intact), (102, &genuine));

            for key in keys {
                let opened = repository.unlock(shard, key).await;
                opened.expect("an open repository");
            }
            let garbage = SlotId([7; 16]).to_string();
            let removed = repository.remove_slot(shard, &garbage, &keys[1]).await;
            assert!(removed.expect("removed").damaged);
            let one = slots[0].slot_id.to_string();
            let removed = repository.remove_slot(shard, &one, &keys[1]).await;
            removed.expect("removed");
        });
    }

    #[test]
    fn no_more_slots_are_made_than_a_team_needs() {
        with_two_slots(async |shard, repository, slots, keys| {
            for _ in slots.len()..SLOTS_MAX {
                let (_, recipient) = generate_identity();
                let added = repository.add_recipient(shard, &recipient, None).await;
                added.expect("a slot");
            }
            let (_, recipient) = generate_identity();
            let refused = repository.add_recipient(shard, &recipient, None).await;
            assert_eq!(refused.unwrap_err().kind(), Kind::Limit);
            let removed = slots[0].slot_id.to_string();
            repository
                .remove_slot(shard, &removed, &keys[1])
                .await
                .expect("removed");
            repository
                .add_recipient(shard, &recipient, None)
                .await
                .expect("a slot");
        });
    }

    #[test]
    fn a_slot_that_was_put_back_still_opens() {
        with_two_slots(async |shard, repository, slots, keys| {
            let chosen = repository
                .choose_slot(shard, &slots[0].slot_id.to_string(), &keys[1])
                .await;
            let chosen = chosen.expect("two slots are there");
            let other = layout::slot(slots[1].slot_id).expect("a name");
            repository
                .store()
                .delete(shard, &other)
                .await
                .expect("deleted");
            let taken = repository.take_slot(shard, &chosen, &keys[1]).await;
            taken.unwrap_err();
            let left = repository.read_slots(shard).await.expect("a listing").slots;
            assert!(left.len() == 1 && left[0].slot.is_ok() && left[0].bytes == chosen.bytes);
        });
    }
}
