//! The key slots of a repository: opening, listing, adding and removing them.
//!
//! Invariants: whatever else stands among the slots, be it ever so much like one, keeps nobody out as long as a slot that the
//! key opens is among the first [`NAMES_MAX`] names; a slot counts as intact only if its bytes, its place and the header it was made for agree; one
//! that does not is listed with its reason and stands in nobody's way; one that could not be read is neither, and may be good. No
//! removal leaves a repository that nobody opens: a slot goes only where the key at hand opens another one (that one looks intact proves
//! nothing: whoever may write can make one that does), before the deletion and after it; if two removals took the last two, each
//! puts its own back; and until that is settled another slot stands in for it, so that it is not lost with a process or a store
//! that ends on the way. Beside a slot that was put back it stays, since a deletion that is late may yet take that. None is removed
//! on the strength of one that stands in.

use mover_base::checksum::sha256;
use mover_base::units::counted;
use mover_base::{Error, Kind, Result, SlotId, Timestamp};
use mover_format::slot::{KeySlot, SLOT_BYTES_MAX, SLOT_LABEL_BYTES_MAX, SlotKind};
use mover_io::Shard;
use mover_store::{Key, Put};
use serde::Serialize;

use crate::keys::{self, RepoSecret, SCRYPT_LOG_N, SlotInfo, SlotKey, SlotOwner, Tried};
use crate::layout;
use crate::records;
use crate::repository::{Repository, over_cap};
use crate::secret::{Credentials, Secret};

/// Most key slots that are made; more than any team needs.
const SLOTS_MAX: usize = 64;
/// Most names looked at below the prefix of the slots, so that what is no slot crowds out none.
const NAMES_MAX: usize = 1000;
/// How the label of a slot begins that stands in for one which is being removed.
const GOING: &str = "being removed: ";

/// A key slot as it is stored.
pub(crate) struct StoredSlot {
    /// Its name.
    pub key: Key,
    /// The id in its name.
    pub id: SlotId,
    /// Its bytes, if they are intact: what puts it back.
    bytes: Vec<u8>,
    /// Its content, or why it cannot be used: it is damaged, or could not be read.
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
    /// How many were removed after they were listed.
    gone: usize,
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
    /// Whether it is damaged, so that nobody can use it.
    pub damaged: bool,
    /// Whether it could not be read, so that nothing is known of it.
    pub unreadable: bool,
    /// Why it is one of the two.
    pub problem: Option<String>,
}

/// The key slots of a repository, as listings show them.
#[derive(Debug, Clone, Serialize)]
pub struct SlotListing {
    /// Whether what the repository holds is encrypted: if it is and no slot is left, nobody can read it.
    pub encrypted: bool,
    /// The slots, damaged ones too and those that could not be read.
    pub slots: Vec<ListedSlot>,
    /// Names among them that no slot has.
    pub strays: Vec<String>,
    /// How many were removed after they were listed.
    #[serde(skip)]
    gone: usize,
}

impl ListedSlot {
    /// Whether it stands in for one whose removal is under way, was broken off or was taken back.
    pub fn is_going(&self) -> bool {
        let label = self.label.as_deref();
        label.is_some_and(|label| label.starts_with(GOING))
    }
}

impl SlotListing {
    /// What to say of an encrypted repository that no key opens any more.
    pub const LOCKED_OUT: &str = "the repository is encrypted, and no key slot is left that can be used: nobody can read what it holds, nor what is added to it";
    /// What to do about that.
    pub const LOCKED_OUT_HINT: &str =
        "copy what was below keys/ back from a copy of the repository, or back up into a new one";

    /// Whether what is encrypted has no slot left that can be used, so that no key opens it. One that could not be read may be one,
    /// and a removal meanwhile leaves one that need not have been listed.
    pub fn is_locked_out(&self) -> bool {
        self.encrypted && self.gone == 0 && self.slots.iter().all(|slot| slot.damaged)
    }
}

impl StoredSlot {
    fn is_damaged(&self) -> bool {
        self.slot.as_ref().is_err_and(is_damage)
    }

    /// Why it could not be read, if that is so.
    fn unreadable(&self) -> Option<&Error> {
        self.slot.as_ref().err().filter(|error| !is_damage(error))
    }

    /// Whether trying a passphrase on it takes longer than on those that are made here: twice as long for each step, or more.
    fn is_dear(&self) -> bool {
        let slot = self.slot.as_ref();
        slot.is_ok_and(|slot| {
            slot.kind == SlotKind::Passphrase
                && work_factor(&slot.age).is_some_and(|factor| factor > SCRYPT_LOG_N)
        })
    }

    /// Whether it stands in for one that is being removed.
    fn is_going(&self) -> bool {
        let slot = self.slot.as_ref();
        slot.is_ok_and(|slot| slot.label.starts_with(GOING))
    }

    fn listed(&self) -> ListedSlot {
        let info = self.slot.as_ref().ok().map(keys::slot_info);
        let unreadable = self.unreadable().is_some();
        let problem = self.slot.as_ref().err().map(reason);
        ListedSlot {
            slot_id: self.id,
            kind: info.as_ref().map(|info| info.kind),
            created: info.as_ref().map(|info| info.created),
            label: info.map(|info| info.label),
            object: self.key.as_str().to_owned(),
            damaged: self.is_damaged(),
            unreadable,
            problem: problem.map(|problem| match unreadable {
                true => format!("could not be read: {problem}"),
                false => problem,
            }),
        }
    }
}

/// What the slots of a repository had to say to a key that opens none of them.
#[derive(Default)]
struct Search {
    listed: usize,
    /// Those of them that were still there.
    looked_at: usize,
    /// How many are for keys of this kind and not for this one.
    refused: usize,
    damaged: usize,
    /// What is wrong with one of those.
    damage: Option<Error>,
    /// What is wrong with one that the key does open.
    foreign: Option<Error>,
    /// Why one could not be read.
    unreadable: Option<Error>,
}

impl Search {
    /// Takes down why a slot could not be tried.
    fn keep(&mut self, error: Error) {
        match is_damage(&error) {
            true => {
                self.damaged += 1;
                self.damage = Some(error);
            }
            false => self.unreadable = Some(error),
        }
    }

    /// The error for the key. Whoever may write can put damaged slots beside the others, so those are not to blame where an
    /// intact one refused the key; while one that could not be read may be the one that it opens.
    fn failed(self, url: &str) -> Error {
        const HINT: &str = "copy the slot back, or open the repository with another key: `helios-mover key list` shows the slots";
        if let Some(error) = self.foreign {
            return error.hint(HINT);
        }
        if let Some(error) = self.unreadable {
            let what =
                "the key opens none of the key slots that could be read, and one could not be read";
            return because_of(&error, what);
        }
        if self.refused == 0
            && let Some(error) = self.damage
        {
            return error.hint(HINT);
        }
        // No key would open it, so this one is not to blame.
        if self.listed == 0 {
            return Error::new(Kind::Key, SlotListing::LOCKED_OUT)
                .object(url)
                .hint(SlotListing::LOCKED_OUT_HINT);
        }
        if self.looked_at == 0 {
            let what = "the key slots changed while they were read";
            return Error::new(Kind::Conflict, what)
                .object(url)
                .hint("try again");
        }
        let damaged = match self.damaged {
            0 => String::new(),
            damaged => format!(", {damaged} of which cannot be used"),
        };
        let slots = counted(self.looked_at as u64, "key slot");
        let what = match self.looked_at {
            1 => format!("the key does not open the repository's {slots}"),
            _ => format!("the key opens none of the repository's {slots}{damaged}"),
        };
        let error = Error::new(Kind::Key, what).object(url);
        match self.refused > SLOTS_MAX {
            true => error.hint(format!(
                "check --passphrase-file or --identity-file; {TOO_MANY_SLOTS}"
            )),
            false => error.hint(
                "check --passphrase-file or --identity-file; `helios-mover key list` shows the slots",
            ),
        }
    }

    /// Takes down that a slot refused the key. Said once, while it is going on: each passphrase slot takes its time.
    fn refuse(&mut self) {
        self.refused += 1;
        if self.refused == SLOTS_MAX + 1 {
            tracing::warn!("the key opened none of {SLOTS_MAX} key slots yet: {TOO_MANY_SLOTS}");
        }
    }
}

/// What to say where more slots refused a key than are ever made.
const TOO_MANY_SLOTS: &str = "more key slots stand below keys/ than are ever made, so others have put some there, and each is tried: \
     delete those that `helios-mover key add` did not make, with the storage's own tools";

/// scrypt's work factor as the age file of a slot states it, before anything is computed.
fn work_factor(age: &[u8]) -> Option<u8> {
    let stanza = age.split(|byte| *byte == b'\n').nth(1)?;
    let arguments = std::str::from_utf8(stanza)
        .ok()?
        .strip_prefix("-> scrypt ")?;
    arguments.split(' ').nth(1)?.parse().ok()
}

/// Whether an error is about what a slot holds. Others, such as a right that is missing or a store that does not answer, say
/// nothing of that.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::Limit)
}

/// What cannot be done because a slot could not be read: the kind, the slot and the remedy are those of that.
fn because_of(error: &Error, what: &str) -> Error {
    let told = Error::new(error.kind(), what)
        .object(error.object_name().unwrap_or(layout::KEYS))
        .cause(reason(error));
    match error.hint_text() {
        Some(hint) => told.hint(hint),
        None => told,
    }
}

/// An error without its object, which is named beside it.
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
        let (mut slots, mut gone) = (Vec::new(), 0);
        for (key, id) in names.slots {
            match self.read_slot(shard, key, id).await? {
                Some(slot) => slots.push(slot),
                None => gone += 1,
            }
        }
        Ok(StoredSlots {
            slots,
            strays: names.strays,
            gone,
        })
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
            Err(error) => {
                let error = over_cap(error, |damaged| damaged);
                (Vec::new(), Err(error.object(key.as_str())))
            }
        };
        Ok(Some(StoredSlot {
            key,
            id,
            bytes,
            slot,
        }))
    }

    /// The secret, from the first slot that these credentials open. Whoever may write to the repository can put any number
    /// of objects before it, so none of those ends the search, and passphrase slots that ask for more work than usual come last.
    pub(crate) async fn unlock(
        &self,
        shard: &Shard,
        credentials: &Credentials,
    ) -> Result<RepoSecret> {
        // Before any slot is looked at, for what is wrong with the key itself is the fault of none.
        let key = SlotKey::of(credentials)?;
        let names = self.slot_names(shard).await?;
        let mut search = Search {
            listed: names.slots.len(),
            ..Search::default()
        };
        let mut dear = Vec::new();
        for (name, id) in names.slots {
            let Some(stored) = self.read_slot(shard, name, id).await? else {
                continue;
            };
            search.looked_at += 1;
            if matches!(key, SlotKey::Passphrase(_)) && stored.is_dear() {
                dear.push(stored);
            } else if let Some(secret) = self.look_into(stored, &key, &mut search) {
                return Ok(secret);
            }
        }
        for stored in dear {
            shard.stop()?;
            if let Some(secret) = self.look_into(stored, &key, &mut search) {
                return Ok(secret);
            }
        }
        if names.more {
            return Err(too_many_names());
        }
        Err(search.failed(self.url()))
    }

    /// The secret of a slot, if the key opens it; what it had to say else is taken down.
    fn look_into(
        &self,
        stored: StoredSlot,
        key: &SlotKey<'_>,
        search: &mut Search,
    ) -> Option<RepoSecret> {
        let name = stored.key;
        match stored.slot.and_then(|slot| self.try_slot(&slot, key)) {
            Ok(Tried::Opened(Ok(secret))) => return Some(secret),
            Ok(Tried::Opened(Err(error))) => {
                search.foreign = Some(error.object(name.as_str()));
            }
            Ok(Tried::Refused) => search.refuse(),
            Ok(Tried::OtherKind) => {}
            Err(error) => search.keep(error.object(name.as_str())),
        }
        None
    }

    /// Tries a key on a slot. What it opens must be the secret of the header's recipient.
    fn try_slot(&self, slot: &KeySlot, key: &SlotKey<'_>) -> Result<Tried> {
        let is_foreign =
            |secret: &RepoSecret| Some(secret.recipient().as_str()) != self.recipient();
        Ok(match RepoSecret::try_slot(slot, self.binding(), key)? {
            Tried::Opened(Ok(secret)) if is_foreign(&secret) => Tried::Opened(Err(Error::new(
                Kind::Corrupt,
                "the key slot's identity is not the header's recipient",
            ))),
            tried => tried,
        })
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
            gone: found.gone,
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
        if label.starts_with(GOING) {
            return Err(Error::new(
                Kind::Usage,
                "a label begins as those of slots that are being removed",
            )
            .object(label)
            .hint("choose another label"));
        }
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

    /// Removes the one slot whose id begins with `prefix`, intact or damaged; only where `credentials` open another one.
    pub async fn remove_slot(
        &self,
        shard: &Shard,
        prefix: &str,
        credentials: &Credentials,
    ) -> Result<ListedSlot> {
        self.require_secret()?;
        let key = SlotKey::of(credentials)?;
        let slots = self.read_slots(shard).await?.slots;
        let chosen = self.choose_slot(slots, prefix, &key)?;
        self.take_slot(shard, &chosen, &key).await?;
        Ok(chosen.listed())
    }

    /// Whether the key opens the slot, and with it the repository, and will do so tomorrow.
    fn is_spare(&self, stored: &StoredSlot, key: &SlotKey<'_>) -> bool {
        let Ok(slot) = &stored.slot else {
            return false;
        };
        !stored.is_going() && matches!(self.try_slot(slot, key), Ok(Tried::Opened(Ok(_))))
    }

    /// The slot to remove, if it can be spared as far as one look tells.
    fn choose_slot(
        &self,
        slots: Vec<StoredSlot>,
        prefix: &str,
        key: &SlotKey<'_>,
    ) -> Result<StoredSlot> {
        let (chosen, others) = the_one(slots, prefix)?;
        if let Some(error) = chosen.unreadable() {
            let what = "the key slot cannot be read, so that nothing tells whether somebody needs it: it was not removed";
            return Err(because_of(error, what));
        }
        if others.iter().any(|other| self.is_spare(other, key)) {
            return Ok(chosen);
        }
        let may_stay = |other: &StoredSlot| !other.is_damaged() && !other.is_going();
        let (what, hint) = match (others.iter().any(may_stay), &chosen.slot) {
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

    /// Deletes a slot, and puts it back if the key opens none then that stays: another removal was as fast.
    async fn take_slot(&self, shard: &Shard, chosen: &StoredSlot, key: &SlotKey<'_>) -> Result<()> {
        match &chosen.slot {
            Ok(slot) if !chosen.is_going() => {
                let stand_in = self.put_stand_in(shard, slot).await?;
                self.delete_if_there(shard, &chosen.key).await?;
                self.settle(shard, chosen, &stand_in, key).await
            }
            // A damaged slot opens nothing, and no other was removed on the strength of one that stands in.
            _ => self.store().delete(shard, &chosen.key).await,
        }
    }

    /// Stores the slot that stands in for `slot`.
    async fn put_stand_in(&self, shard: &Shard, slot: &KeySlot) -> Result<Key> {
        let stand_in = stand_in_of(slot);
        let (key, bytes) = (layout::slot(stand_in.slot_id)?, stand_in.encode()?);
        let store = self.store();
        let is_there = match store.put_if_absent(shard, &key, &bytes).await? {
            Put::Created => true,
            // A removal that was broken off left it; or whoever may write put anything there.
            Put::Exists => store.get(shard, &key, SLOT_BYTES_MAX as u64).await? == bytes,
        };
        match is_there {
            true => Ok(key),
            false => Err(Error::new(
                Kind::Conflict,
                "something else stands where a slot is to stand in for the one that is removed",
            )
            .object(key.as_str())
            .hint("remove that one first; `helios-mover key list` shows it")),
        }
    }

    /// Ends a removal: the slot is gone, and what stands in for it goes too if the key opens one that stays. Else the slot is put
    /// back, and what stands in for it stays: something on the way to the store may deliver the deletion once more, when nobody looks.
    async fn settle(
        &self,
        shard: &Shard,
        chosen: &StoredSlot,
        stand_in: &Key,
        key: &SlotKey<'_>,
    ) -> Result<()> {
        let refused = match self.has_spare(shard, key).await {
            Ok(true) => return self.delete_if_there(shard, stand_in).await,
            Ok(false) => Error::new(
                Kind::Conflict,
                "the other key slots were removed at the same time; this one was put back",
            )
            .object(chosen.id.to_string())
            .hint("look at `helios-mover key list`, which also shows what stands in for it until it is removed, and add another key first"),
            Err(error) => error.hint("the slot was put back, with another one beside it that stands in for it; look at `helios-mover key list`, then try again"),
        };
        // If somebody else put it back already, that is as good.
        self.store()
            .put_if_absent(shard, &chosen.key, &chosen.bytes)
            .await
            .map_err(|error| {
                error.hint("its key still opens the repository, by a slot of another id that `helios-mover key list` shows")
            })?;
        Err(refused)
    }

    /// Whether the key opens a slot that stays.
    async fn has_spare(&self, shard: &Shard, key: &SlotKey<'_>) -> Result<bool> {
        let slots = self.read_slots(shard).await?.slots;
        if slots.iter().any(|stored| self.is_spare(stored, key)) {
            return Ok(true);
        }
        // One that could not be read now may be that.
        let mut errors = slots.into_iter().filter_map(|stored| stored.slot.err());
        let unreadable = errors.find(|error| !is_damage(error));
        unreadable.map_or(Ok(false), Err)
    }

    /// Deletes an object that another removal of the same slot may have deleted.
    async fn delete_if_there(&self, shard: &Shard, key: &Key) -> Result<()> {
        match self.store().delete(shard, key).await {
            Err(error) if error.is_absence() => Ok(()),
            deleted => deleted,
        }
    }
}

/// The one slot whose id begins with `prefix`, and the others.
fn the_one(slots: Vec<StoredSlot>, prefix: &str) -> Result<(StoredSlot, Vec<StoredSlot>)> {
    let (mut matching, others): (Vec<_>, Vec<_>) = slots
        .into_iter()
        .partition(|slot| slot.id.to_string().starts_with(prefix));
    let count = matching.len();
    match matching.pop() {
        Some(slot) if count == 1 => Ok((slot, others)),
        last => {
            let ids = matching.iter().chain(&last).map(|slot| slot.id.to_string());
            let error = match count {
                0 => Error::new(Kind::NotFound, "no key slot begins with this id").object(prefix),
                _ => records::ambiguous(prefix, "key slot", ids),
            };
            Err(error.hint("`helios-mover key list` shows the ids"))
        }
    }
}

/// What stands in for a slot while that is removed: one that the same key opens, also for readers that know nothing of this. It is
/// the same each time, so that tries which are broken off leave one behind and not one each.
fn stand_in_of(slot: &KeySlot) -> KeySlot {
    let digest = sha256(&[GOING.as_bytes(), &slot.slot_id.0[..]].concat());
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    let mut label = format!("{GOING}{}", slot.label);
    while label.len() > SLOT_LABEL_BYTES_MAX {
        label.pop();
    }
    KeySlot {
        slot_id: SlotId(id),
        label,
        ..slot.clone()
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

    /// The keys as slots are tried with them.
    fn slot_keys(keys: &[Credentials; 2]) -> [SlotKey<'_>; 2] {
        keys.each_ref().map(|key| SlotKey::of(key).expect("a key"))
    }

    /// The slot of this id, as a removal by this key chooses it.
    async fn choose(
        shard: &Shard,
        repository: &Repository,
        id: SlotId,
        key: &SlotKey<'_>,
    ) -> StoredSlot {
        let found = repository.read_slots(shard).await.expect("a listing").slots;
        let chosen = repository.choose_slot(found, &id.to_string(), key);
        chosen.expect("another slot is there")
    }

    async fn put_back(shard: &Shard, repository: &Repository, slot: &StoredSlot) {
        let store = repository.store();
        let put = store.put_if_absent(shard, &slot.key, &slot.bytes).await;
        assert_eq!(put.expect("put back"), Put::Created);
    }

    /// The id of what stands in for a slot.
    fn stand_in_id(slot: &StoredSlot) -> SlotId {
        stand_in_of(slot.slot.as_ref().expect("intact")).slot_id
    }

    /// As a listing has them.
    fn in_order(ids: &[SlotId]) -> Vec<SlotId> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    }

    /// All that a removal does before it looks again, when its process or the store ends.
    async fn begin_removal(shard: &Shard, repository: &Repository, slot: &StoredSlot) -> Key {
        let content = slot.slot.as_ref().expect("intact");
        let stand_in = repository.put_stand_in(shard, content).await;
        let deleted = repository.store().delete(shard, &slot.key).await;
        deleted.expect("deleted");
        stand_in.expect("a slot that stands in")
    }

    #[test]
    fn two_removals_at_once_do_not_take_the_last_two_slots() {
        with_two_slots(async |shard, repository, slots, keys| {
            let by = slot_keys(keys);
            // Each by the key of the other, and both look before either deletes.
            let one = choose(shard, repository, slots[0].slot_id, &by[1]).await;
            let two = choose(shard, repository, slots[1].slot_id, &by[0]).await;
            let taken = repository.take_slot(shard, &one, &by[1]).await;
            taken.expect("one is left");
            let refused = repository.take_slot(shard, &two, &by[0]).await;
            assert_eq!(refused.unwrap_err().kind(), Kind::Conflict);
            // What stands in for a slot that was put back stays beside it.
            let stands_in = stand_in_id(&two);
            let left = ids(shard, repository).await;
            assert_eq!(left, in_order(&[two.id, stands_in]));

            // Both delete before either looks again.
            put_back(shard, repository, &one).await;
            let deleted = repository.store().delete(shard, &two.key).await;
            deleted.expect("deleted");
            let refused = repository.take_slot(shard, &one, &by[1]).await;
            assert_eq!(refused.unwrap_err().kind(), Kind::Conflict);
            let left = ids(shard, repository).await;
            assert_eq!(left, in_order(&[one.id, stand_in_id(&one), stands_in]));
        });
    }

    #[test]
    fn two_removals_that_die_on_the_way_lock_nobody_out() {
        with_two_slots(async |shard, repository, slots, keys| {
            let by = slot_keys(keys);
            let one = choose(shard, repository, slots[0].slot_id, &by[1]).await;
            let two = choose(shard, repository, slots[1].slot_id, &by[0]).await;

            // One of them lives on: what stands in for the other slot is none that stays.
            begin_removal(shard, repository, &two).await;
            let refused = repository.take_slot(shard, &one, &by[1]).await;
            assert_eq!(refused.unwrap_err().kind(), Kind::Conflict);
            assert!(ids(shard, repository).await.contains(&one.id));

            // Neither does.
            begin_removal(shard, repository, &one).await;
            let left = repository.slots(shard).await.expect("a listing");
            assert!(!left.is_locked_out() && left.slots.len() == 2, "{left:?}");
            assert!(left.slots.iter().all(ListedSlot::is_going), "{left:?}");
            for key in keys {
                let opened = repository.unlock(shard, key).await;
                opened.expect("an open repository");
            }
            let stand_ins = [0, 1].map(|at: usize| left.slots[at].slot_id.to_string());
            for (id, key) in stand_ins.iter().zip(keys) {
                let refused = repository.remove_slot(shard, id, key).await.unwrap_err();
                assert_eq!(refused.kind(), Kind::Conflict, "{refused}");
            }

            // A slot that stays makes them superfluous.
            let (third, recipient) = generate_identity();
            let added = repository.add_recipient(shard, &recipient, None).await;
            let added = added.expect("a slot").slot_id;
            let third = Credentials::Identity(third);
            for id in &stand_ins {
                let removed = repository.remove_slot(shard, id, &third).await;
                removed.expect("removed");
            }
            assert_eq!(ids(shard, repository).await, [added]);
        });
    }

    #[test]
    fn a_removal_that_was_broken_off_is_done_again() {
        with_two_slots(async |shard, repository, slots, keys| {
            let by = slot_keys(keys);
            let (id, other) = (slots[0].slot_id, slots[1].slot_id);
            let one = choose(shard, repository, id, &by[1]).await;
            begin_removal(shard, repository, &one).await;
            put_back(shard, repository, &one).await;
            let remove = async |id: SlotId| {
                let id = id.to_string();
                repository.remove_slot(shard, &id, &keys[1]).await
            };
            remove(id).await.expect("removed");
            assert_eq!(ids(shard, repository).await, [other]);

            // Whoever may write knows the name.
            put_back(shard, repository, &one).await;
            let content = one.slot.as_ref().expect("intact");
            let stand_in = stand_in_of(content).slot_id;
            let name = layout::slot(stand_in).expect("a name");
            let put = repository.store().put_if_absent(shard, &name, b"no slot");
            put.await.expect("planted");
            let refused = remove(id).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Conflict, "{refused}");
            assert_eq!(refused.object_name(), Some(name.as_str()));
            for id in [stand_in, id] {
                remove(id).await.expect("removed");
            }
            assert_eq!(ids(shard, repository).await, [other]);

            // However long a label is, there is room for what it says of the slot.
            let long = KeySlot {
                label: "\u{fc}".repeat(SLOT_LABEL_BYTES_MAX / 2),
                ..content.clone()
            };
            stand_in_of(&long).encode().expect("a slot");
        });
    }

    /// The slots, of which that of this id could not be read.
    async fn hiding(shard: &Shard, repository: &Repository, id: SlotId) -> Vec<StoredSlot> {
        let found = repository.read_slots(shard).await.expect("a listing").slots;
        let seen = found.into_iter().map(|stored| match stored.id == id {
            true => {
                let error = Error::new(Kind::Storage, "no permission to open an object");
                let error = error.object(stored.key.as_str()).hint("correct the owner");
                StoredSlot {
                    bytes: Vec::new(),
                    slot: Err(error),
                    ..stored
                }
            }
            false => stored,
        });
        seen.collect()
    }

    #[test]
    fn a_slot_that_cannot_be_read_is_neither_damaged_nor_lost_nor_removed() {
        with_two_slots(async |shard, repository, slots, keys| {
            let by = slot_keys(keys);
            let (seen, hidden) = (slots[0].slot_id, slots[1].slot_id);
            let found = hiding(shard, repository, hidden).await;
            let mut listed = found.iter().map(StoredSlot::listed);
            let listed = listed.find(|slot| slot.slot_id == hidden).expect("listed");
            assert!(listed.unreadable && !listed.damaged, "{listed:?}");
            assert_eq!(
                listed.problem.as_deref(),
                Some("could not be read: no permission to open an object")
            );
            let damaged = ListedSlot {
                damaged: true,
                unreadable: false,
                ..listed.clone()
            };
            let is_locked_out = |slots: &[&ListedSlot], gone: usize| {
                let listing = SlotListing {
                    encrypted: true,
                    slots: slots.iter().map(|slot| (*slot).clone()).collect(),
                    strays: Vec::new(),
                    gone,
                };
                listing.is_locked_out()
            };
            assert!(is_locked_out(&[], 0) && is_locked_out(&[&damaged], 0));
            assert!(!is_locked_out(&[&damaged, &listed], 0));
            // Another one was removed between the listing and the look, and that leaves one.
            assert!(!is_locked_out(&[], 1) && !is_locked_out(&[&damaged], 1));

            for (id, kind, part) in [
                (hidden, Kind::Storage, "cannot be read"),
                (seen, Kind::Conflict, "opens no other key slot"),
            ] {
                let found = hiding(shard, repository, hidden).await;
                let refused = repository.choose_slot(found, &id.to_string(), &by[0]);
                let refused = refused.map(drop).unwrap_err();
                assert_eq!(refused.kind(), kind, "{refused}");
                assert!(refused.message().contains(part), "{refused}");
            }
        });
    }

    #[test]
    fn a_key_is_told_as_wrong_only_where_it_was_refused_and_may_not_be_right() {
        let failed = |refused: usize, kinds: &[Kind]| {
            let mut search = Search {
                listed: refused + kinds.len(),
                looked_at: refused + kinds.len(),
                refused,
                ..Search::default()
            };
            for kind in kinds {
                search.keep(Error::new(*kind, "it is so").object("keys/a"));
            }
            search.failed("file:///repo")
        };
        let wrong = failed(1, &[Kind::Corrupt, Kind::Limit]);
        assert_eq!(wrong.kind(), Kind::Key);
        assert_eq!(wrong.object_name(), Some("file:///repo"));
        let told = "the key opens none of the repository's 3 key slots, 2 of which cannot be used";
        assert_eq!(wrong.message(), told);
        let only = failed(1, &[]);
        assert_eq!(only.kind(), Kind::Key);
        assert!(only.message().ends_with("'s 1 key slot"), "{only}");
        // Whichever key is given.
        let none = failed(0, &[]);
        assert_eq!(none.kind(), Kind::Key);
        assert_eq!(none.message(), SlotListing::LOCKED_OUT);
        assert_eq!(none.hint_text(), Some(SlotListing::LOCKED_OUT_HINT));
        assert_eq!(none.object_name(), Some("file:///repo"));
        // Removed between the listing and the look: others may have come.
        let changed = Search {
            listed: 1,
            ..Search::default()
        };
        let changed = changed.failed("file:///repo");
        assert_eq!(changed.kind(), Kind::Conflict, "{changed}");
        assert_eq!(changed.hint_text(), Some("try again"));
        // It may be the key of the damaged one.
        let damaged = failed(0, &[Kind::Corrupt]);
        assert_eq!(damaged.kind(), Kind::Corrupt);
        assert_eq!(damaged.object_name(), Some("keys/a"));
        for kind in [Kind::Storage, Kind::Unreachable] {
            let unreadable = failed(1, &[kind, Kind::Corrupt]);
            assert_eq!(unreadable.kind(), kind);
            assert_eq!(unreadable.object_name(), Some("keys/a"));
            assert!(unreadable.to_string().ends_with("it is so"), "{unreadable}");
        }
        // It opened one, so it is no wrong key.
        let replaced = Search {
            refused: 1,
            foreign: Some(Error::new(Kind::Corrupt, "of another repository")),
            ..Search::default()
        };
        assert_eq!(replaced.failed("file:///repo").kind(), Kind::Corrupt);
    }

    #[test]
    fn more_refusals_than_slots_are_ever_made_are_told_with_the_wrong_key() {
        let hint = |refusals: usize| {
            let mut search = Search {
                listed: refusals,
                looked_at: refusals,
                ..Search::default()
            };
            (0..refusals).for_each(|_| search.refuse());
            let error = search.failed("file:///repo");
            assert_eq!(error.kind(), Kind::Key);
            error.hint_text().expect("a hint").to_owned()
        };
        let foreign = "that `helios-mover key add` did not make";
        assert!(!hint(SLOTS_MAX).contains(foreign));
        assert!(hint(SLOTS_MAX + 1).contains(foreign));
    }

    #[test]
    fn a_slot_that_asks_for_more_work_than_those_made_here_is_known_before_it_is_tried() {
        fixture::with_place(async |shard, url| {
            let (identity, recipient) = generate_identity();
            fixture::init(shard, url, &[recipient]).await?;
            let opened = fixture::open(shard, url, &Credentials::Identity(identity)).await?;
            let passphrase = Secret::new("one two three".to_owned());
            let made = opened.add_passphrase(shard, &passphrase, "mine").await?;
            let found = opened.read_slots(shard).await?.slots;
            assert!(found.iter().all(|stored| !stored.is_dear()));
            let own = found.iter().find(|stored| stored.id == made.slot_id);
            let own = own.expect("listed").slot.as_ref().expect("intact");
            assert_eq!(work_factor(&own.age), Some(SCRYPT_LOG_N));
            let other = found.iter().find(|stored| stored.id != made.slot_id);
            let other = other.expect("listed").slot.as_ref().expect("intact");
            assert_eq!(work_factor(&other.age), None);

            // Ahead of all others by its name.
            let mut age = own.age.clone();
            let at = age.windows(4).position(|part| part == b" 16\n");
            age[at.expect("stated") + 2] = b'7';
            let planted = KeySlot {
                slot_id: SlotId([0; 16]),
                age,
                ..own.clone()
            };
            let key = layout::slot(planted.slot_id)?;
            let bytes = planted.encode()?;
            opened.store().put_if_absent(shard, &key, &bytes).await?;
            let found = opened.read_slots(shard).await?.slots;
            let dear = found.iter().filter(|stored| stored.is_dear());
            let dear: Vec<SlotId> = dear.map(|stored| stored.id).collect();
            assert_eq!(dear, [planted.slot_id]);
            let by = Credentials::Passphrase(passphrase);
            opened.unlock(shard, &by).await.map(drop)
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
            let stranger = Credentials::Identity(generate_identity().0);
            let refused = repository.unlock(shard, &stranger).await;
            let refused = refused.map(drop).unwrap_err();
            assert_eq!(refused.kind(), Kind::Key, "{refused}");
            assert!(refused.message().contains("100 of which"), "{refused}");
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

    /// A load balancer may deliver a deletion twice, the second time when the slot is back.
    #[test]
    fn a_slot_that_was_put_back_still_opens_also_when_its_deletion_comes_late() {
        with_two_slots(async |shard, repository, slots, keys| {
            let by = slot_keys(keys);
            let store = repository.store();
            let chosen = choose(shard, repository, slots[0].slot_id, &by[1]).await;
            let other = choose(shard, repository, slots[1].slot_id, &by[0]).await;
            let deleted = store.delete(shard, &other.key).await;
            deleted.expect("deleted");
            let taken = repository.take_slot(shard, &chosen, &by[1]).await;
            taken.unwrap_err();
            let left = repository.read_slots(shard).await.expect("a listing").slots;
            let back = left.iter().find(|stored| stored.id == chosen.id);
            let back = back.expect("it is back");
            assert!(back.slot.is_ok() && back.bytes == chosen.bytes);
            let going = left.iter().filter(|stored| stored.is_going());
            let going: Vec<SlotId> = going.map(|stored| stored.id).collect();
            assert_eq!((left.len(), going), (2, vec![stand_in_id(&chosen)]));

            let late = store.delete(shard, &chosen.key).await;
            late.expect("deleted");
            let opened = repository.unlock(shard, &keys[0]).await;
            opened.expect("an open repository");

            put_back(shard, repository, &chosen).await;
            put_back(shard, repository, &other).await;
            let id = chosen.id.to_string();
            let removed = repository.remove_slot(shard, &id, &keys[1]).await;
            removed.expect("removed");
            assert_eq!(ids(shard, repository).await, [other.id]);
        });
    }
}
