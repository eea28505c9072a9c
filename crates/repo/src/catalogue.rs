//! The catalogue: which backups exist. A backup exists when its manifest exists.
//!
//! Invariants: a manifest is written last, create-if-absent, under an id that nobody else has; one that was
//! listed and cannot be read is reported with its reason and never passed over in silence; of manifests that are read many at a
//! time, one is decoded at a time, since a few KB of one may become 100 MiB.

use std::sync::Arc;

use mover_base::checksum::{Sha256, sha256};
use mover_base::{BackupId, Error, Kind, Result, SessionId, Timestamp};
use mover_format::frame::{COMPRESSION_LEVEL_DEFAULT, FrameDecoder, FrameEncoder};
use mover_format::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestHead};
use mover_format::preamble::{ObjectType, Preamble};
use mover_format::seal::{ObjectSealer, Origin};
use mover_io::{Shard, random_bytes};
use mover_store::{Key, Put};

use crate::layout;
use crate::reader::damaged;
use crate::records::{at_once, each_object, only_match};
use crate::repository::{Repository, Session, over_cap};
use crate::sessions;

/// Most backups whose ids are listed: 16 bytes each, up to twice that while the list grows. Who reads their manifests too keeps
/// some 400 bytes of each.
const BACKUPS_MAX: usize = 4_000_000;
/// Bytes of manifests read at a time, as they are stored, unless the first alone is longer.
const LOADS_BYTES_MAX: u64 = 16 << 20;
/// How many ids a backup may have, one behind the other, of which it takes the first that is free: 12 random bits per
/// microsecond do not collide thrice.
const ID_TRIES: u32 = 3;

/// A manifest that was read.
pub struct OpenManifest {
    /// The backup.
    pub id: BackupId,
    /// Its content.
    pub manifest: Manifest,
    /// Who wrote it, as far as its seal tells.
    pub origin: Origin,
    /// The session that wrote it.
    pub session_id: SessionId,
    /// SHA-256 of the session's wrapped key, which all of its objects carry and nobody else can use.
    pub wrapped_key_sha256: Sha256,
    /// Length of the object.
    pub bytes: u64,
}

/// A manifest that was read, without its entry pages.
pub struct OpenHead {
    /// The backup.
    pub id: BackupId,
    /// Its content.
    pub head: ManifestHead,
    /// Who wrote it, as far as its seal tells.
    pub origin: Origin,
    /// The session that wrote it.
    pub session_id: SessionId,
    /// SHA-256 of the session's wrapped key, which all of its objects carry and nobody else can use.
    pub wrapped_key_sha256: Sha256,
}

/// A manifest as it is stored, to be decoded when its turn comes.
pub(crate) struct StoredManifest {
    id: BackupId,
    key: Key,
    bytes: Vec<u8>,
}

impl StoredManifest {
    async fn fetch(shard: &Shard, repository: &Repository, id: BackupId) -> Result<Self> {
        let key = layout::backup(id)?;
        let bytes = repository
            .store()
            .get(shard, &key, MANIFEST_BYTES_MAX as u64)
            .await
            .map_err(|error| over_cap(error, |error| damaged(&key, error)))?;
        Ok(StoredManifest { id, key, bytes })
    }

    /// All of it.
    pub fn open(&self, repository: &Repository) -> Result<OpenManifest> {
        decode(repository, self.id, &self.bytes).map_err(|error| damaged(&self.key, error))
    }

    /// All of it but the entry pages.
    pub fn head(&self, repository: &Repository) -> Result<OpenHead> {
        let head = decode_head(repository, self.id, &self.bytes);
        head.map_err(|error| damaged(&self.key, error))
    }
}

/// What stands below the prefix of the manifests.
#[derive(Debug, Default)]
pub struct Listing {
    /// Ids of all backups, oldest first.
    pub ids: Vec<BackupId>,
    /// Names there that no manifest has: somebody else's, or a manifest that was renamed. At most
    /// [`mover_store::STRAYS_MAX`].
    pub strays: Vec<String>,
}

/// Ids of all backups, oldest first.
pub async fn list(shard: &Shard, repository: &Repository) -> Result<Vec<BackupId>> {
    Ok(list_all(shard, repository).await?.ids)
}

/// All backups, and the names that are none.
pub async fn list_all(shard: &Shard, repository: &Repository) -> Result<Listing> {
    let mut ids = Vec::new();
    let strays = each(shard, repository, |id, _| ids.push(id)).await?;
    ids.sort_unstable();
    Ok(Listing { ids, strays })
}

/// Ids of all backups, oldest first, with the lengths of their manifests; and the names that are none.
pub(crate) async fn list_sized(
    shard: &Shard,
    repository: &Repository,
) -> Result<(Vec<(BackupId, u64)>, Vec<String>)> {
    let mut found = Vec::new();
    let strays = each(shard, repository, |id, bytes| found.push((id, bytes))).await?;
    found.sort_unstable();
    Ok((found, strays))
}

/// Gives each backup that is listed, and the length of its manifest, to `each`; returns the names that are none.
async fn each(
    shard: &Shard,
    repository: &Repository,
    mut each: impl FnMut(BackupId, u64),
) -> Result<Vec<String>> {
    let mut backups = 0;
    each_object(shard, repository, layout::BACKUPS, |object| {
        let Some(id) = layout::backup_of(&object.key) else {
            return Ok(false);
        };
        if backups == BACKUPS_MAX {
            let what = format!("the repository lists over {BACKUPS_MAX} backups");
            return Err(Error::new(Kind::Limit, what)
                .object(repository.url())
                .hint("begin another repository; if so many were never made, its storage, or a proxy before it, lists what is not there"));
        }
        backups += 1;
        each(id, object.bytes);
        Ok(true)
    })
    .await
}

/// The first of what is listed behind the backup `last`, or of all: of a listing that was complete nothing but what was made
/// since.
pub(crate) async fn list_behind(
    shard: &Shard,
    repository: &Repository,
    last: Option<BackupId>,
) -> Result<Listing> {
    let after = last.map(layout::backup).transpose()?;
    let store = repository.store();
    let page = store
        .list(shard, layout::BACKUPS, after.as_ref(), 1)
        .await?;
    let mut found = Listing {
        ids: Vec::new(),
        strays: page.strays,
    };
    for object in page.objects {
        match layout::backup_of(&object.key) {
            Some(id) => found.ids.push(id),
            None => found.strays.push(object.key.as_str().to_owned()),
        }
    }
    Ok(found)
}

/// Whether the backup exists. Needs no key.
pub async fn stands(shard: &Shard, repository: &Repository, id: BackupId) -> Result<bool> {
    let key = layout::backup(id)?;
    Ok(repository.store().head(shard, &key).await?.is_some())
}

/// The backup that `set` names: an id, an unambiguous beginning of one, or `latest`.
pub async fn find(shard: &Shard, repository: &Repository, set: &str) -> Result<BackupId> {
    let hint = |error: Error| error.hint("`helios-mover list` shows the backups");
    // A whole id is one whatever else is there, and however much that is.
    if let Some(id) = set
        .parse()
        .ok()
        .filter(|id: &BackupId| id.to_string() == set)
    {
        return match stands(shard, repository, id).await? {
            true => Ok(id),
            false => Err(hint(
                Error::new(Kind::NotFound, "there is no such backup").object(set),
            )),
        };
    }
    let ids = list(shard, repository).await?;
    if set == "latest" {
        return ids.last().copied().ok_or_else(|| {
            Error::new(Kind::NotFound, "the repository holds no backup yet")
                .object(repository.url())
                .hint("`helios-mover backup` makes one; `helios-mover list` shows what there is")
        });
    }
    only_match(ids.into_iter(), set, "backup").map_err(hint)
}

/// Reads a manifest.
pub async fn load(shard: &Shard, repository: &Repository, id: BackupId) -> Result<OpenManifest> {
    let stored = StoredManifest::fetch(shard, repository, id).await?;
    stored.open(repository)
}

/// Reads a manifest for who needs no entry of it.
pub async fn load_head(shard: &Shard, repository: &Repository, id: BackupId) -> Result<OpenHead> {
    let stored = StoredManifest::fetch(shard, repository, id).await?;
    stored.head(repository)
}

/// The preamble of a stored manifest, what opens its seal, and who wrote it, as far as that tells.
fn unsealed(
    repository: &Repository,
    id: BackupId,
    bytes: &[u8],
) -> Result<(Preamble, ObjectSealer, Origin)> {
    let (preamble, _) = Preamble::decode(bytes)?;
    let (sealer, origin) =
        repository.open_object(&preamble, ObjectType::Manifest, id.object_id())?;
    Ok((preamble, sealer, origin))
}

fn decode(repository: &Repository, id: BackupId, bytes: &[u8]) -> Result<OpenManifest> {
    let (preamble, sealer, origin) = unsealed(repository, id, bytes)?;
    let manifest = Manifest::decode_object(bytes, &preamble, &sealer, &mut FrameDecoder::new())?;
    Ok(OpenManifest {
        id,
        manifest,
        origin,
        session_id: preamble.session_id,
        wrapped_key_sha256: sha256(&preamble.wrapped_key),
        bytes: bytes.len() as u64,
    })
}

fn decode_head(repository: &Repository, id: BackupId, bytes: &[u8]) -> Result<OpenHead> {
    let (preamble, sealer, origin) = unsealed(repository, id, bytes)?;
    let head = ManifestHead::decode_object(bytes, &preamble, &sealer, &mut FrameDecoder::new())?;
    Ok(OpenHead {
        id,
        head,
        origin,
        session_id: preamble.session_id,
        wrapped_key_sha256: sha256(&preamble.wrapped_key),
    })
}

/// Reads the first of the manifests that `rest` names with their lengths, at most `count` and as many as these allow, and leaves the
/// others there: each in its turn as it is stored, or why it cannot be read.
pub(crate) async fn fetch_next(
    shard: &Shard,
    repository: &Arc<Repository>,
    rest: &mut &[(BackupId, u64)],
    count: usize,
) -> Result<Vec<(BackupId, Result<StoredManifest>)>> {
    let (next, later) = rest.split_at(at_a_time(rest, count));
    *rest = later;
    let read = |(id, _): (BackupId, u64)| {
        let (shard, repository) = (shard.clone(), Arc::clone(repository));
        async move { Ok((id, StoredManifest::fetch(&shard, &repository, id).await)) }
    };
    at_once(shard, next.to_vec(), read).await
}

/// How many of the manifests that come next are read at a time.
fn at_a_time(next: &[(BackupId, u64)], count: usize) -> usize {
    let mut bytes_all = 0u64;
    let fits = next.iter().take(count).take_while(|(_, bytes)| {
        bytes_all = bytes_all.saturating_add(*bytes);
        bytes_all <= LOADS_BYTES_MAX
    });
    fits.count().max(1).min(next.len())
}

/// Publishes a manifest: from here on the backup exists. Fills in its id, the first that is free of those that the session's id
/// stands for; gives it back with the bytes written. `before` is asked once, when the manifest was encoded and read back and nothing
/// of it was sent yet: what fails until then can be taken back.
pub(crate) async fn publish(
    shard: &Shard,
    repository: &Repository,
    session: &Session,
    mut manifest: Manifest,
    before: impl AsyncFnOnce() -> Result<()>,
) -> Result<(Manifest, u64)> {
    let mut before = Some(before);
    for id in sessions::backups_of(session.id()) {
        manifest.metadata.backup_id = id;
        manifest.metadata.ended = Timestamp::now();
        let bytes = encode(session, &manifest)?;
        // What is published must be readable; a host that cannot read has compared the parts it could.
        if repository.can_read() {
            let read = decode(repository, id, &bytes)?;
            if read.manifest != manifest {
                return Err(Error::new(
                    Kind::Internal,
                    "the manifest does not decode to what was encoded",
                ));
            }
        }
        if let Some(before) = before.take() {
            before().await?;
        }
        if repository
            .store()
            .put_if_absent(shard, &layout::backup(id)?, &bytes)
            .await?
            == Put::Created
        {
            return Ok((manifest, bytes.len() as u64));
        }
    }
    Err(Error::new(Kind::Conflict, "no free backup id was found").object(repository.url()))
}

/// Bits of an id's second half below the microsecond.
const RANDOM_BITS: u32 = 12;

/// The id for a backup that began at `started`. It is behind `after`, whatever the clock says.
pub(crate) fn draw_id(started: Timestamp, after: Option<BackupId>) -> Result<BackupId> {
    Ok(fresh_id(started, after, random_bytes()?))
}

/// The ids that a backup may have for which `first` was drawn, in the order in which they are tried.
pub(crate) fn tried_ids(first: BackupId) -> impl Iterator<Item = BackupId> {
    let id = move |more| {
        Some(BackupId::new(
            first.started(),
            first.random().checked_add(more)?,
        ))
    };
    (0..ID_TRIES).filter_map(id)
}

/// A new id. Its second half begins with the microsecond, so that backups begun within one second sort by
/// their start too: `latest` and the choice of a parent go by the order of ids. Twelve random bits follow.
/// Where the clock went back behind the start of `after`, the id is one of the microsecond behind that.
fn fresh_id(started: Timestamp, after: Option<BackupId>, random: [u8; 2]) -> BackupId {
    // Those tried after it are of the same microsecond.
    let random = u32::from(u16::from_le_bytes(random)) % ((1 << RANDOM_BITS) - (ID_TRIES - 1));
    let id_of = |start: Timestamp| {
        let micros = start.as_micros().rem_euclid(1_000_000) as u32;
        BackupId::new(start, micros << RANDOM_BITS | random)
    };
    let id = id_of(started);
    match after {
        Some(after) if id <= after => {
            // Not every id is one of these.
            let micros = i64::from(after.random() >> RANDOM_BITS).min(999_999);
            let next = after.started().as_micros() + micros + 1;
            id_of(Timestamp::from_micros(next))
        }
        _ => id,
    }
}

fn encode(session: &Session, manifest: &Manifest) -> Result<Vec<u8>> {
    let id = manifest.metadata.backup_id.object_id();
    let (preamble, sealer) = session.begin_object(ObjectType::Manifest, id)?;
    let mut encoder = FrameEncoder::new(COMPRESSION_LEVEL_DEFAULT)?;
    manifest.encode_object(&preamble, &sealer, &mut encoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_start_and_behind_the_backup_before_whatever_the_clock_says() {
        let at = |micros: i64| Timestamp::from_micros(1_795_371_249_000_000 + micros);
        // The highest that is drawn.
        let id = |started, after| fresh_id(started, after, [0xfd, 0x0f]);
        let low = |started, after| fresh_id(started, after, [0, 0]);
        let before = id(at(0), None);
        assert_eq!(before.started(), at(0));
        for (later, id) in [
            (1, low(at(1), None)),
            (1, low(at(1), Some(before))),
            (1_000_000, low(at(1_000_000), Some(before))),
        ] {
            assert!(id > before, "{later}");
            assert_eq!(id.started(), at(later / 1_000_000 * 1_000_000));
        }
        // In the same microsecond, a second and a year before.
        for back in [0, 1_000_000, 365 * 86_400_000_000] {
            let next = low(at(-back), Some(before));
            assert!(next > before, "{back}");
            assert_eq!(next.started(), at(0));
            assert!(low(at(-back), Some(next)) > next);
        }
        // What is tried when one is taken is of the same microsecond, and behind it.
        let tried: Vec<BackupId> = tried_ids(before).collect();
        assert_eq!((tried.len(), tried[0]), (ID_TRIES as usize, before));
        assert!(tried.is_sorted() && tried[ID_TRIES as usize - 1] < low(at(1), None));
        // Behind the last microsecond of a second, and behind an id whose second half is none of ours.
        for last in [id(at(999_999), None), BackupId::new(at(0), u32::MAX)] {
            let next = low(at(0), Some(last));
            assert!(next > last);
            assert_eq!(next.started(), at(1_000_000));
        }
    }

    #[test]
    fn manifests_are_read_as_many_at_a_time_as_their_lengths_allow() {
        let id = BackupId::new(Timestamp::from_micros(0), 0);
        let of = |bytes: &[u64], count| {
            let next: Vec<(BackupId, u64)> = bytes.iter().map(|bytes| (id, *bytes)).collect();
            at_a_time(&next, count)
        };
        let max = LOADS_BYTES_MAX;
        assert_eq!(of(&[], 4), 0);
        assert_eq!(of(&[1, 1], 4), 2);
        assert_eq!(of(&[1; 9], 4), 4);
        assert_eq!(of(&[1; 9], 1), 1);
        assert_eq!(of(&[max - 2, 1, 1, 1], 4), 3);
        assert_eq!(of(&[max + 1, 1], 4), 1);
        assert_eq!(of(&[u64::MAX, u64::MAX], 4), 1);
        assert_eq!(of(&[1, u64::MAX], 4), 1);
    }
}
