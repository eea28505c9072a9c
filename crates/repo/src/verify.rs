//! Checking what is stored: every byte of every pack, every node of every map, every record.
//!
//! Invariants: a check never trusts what it has not itself read in this run; damage to one object is a finding
//! and does not end the run, a store that fails does; a pack is held to what a manifest states of it, and what is wrong then
//! concerns the backups whose manifests state just that. Memory follows the packs and not the backups that share them: whom damaged
//! ones concern is read again in the end.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mover_base::tree::display_path;
use mover_base::{BackupId, Error, HoldId, Kind, PackId, Result, SessionId};
use mover_format::manifest::PackInfo;
use mover_format::node::{Leaf, Run};
use mover_format::preamble::ObjectType;
use mover_format::record::{AnnotationRecord, Record};
use mover_format::seal::Origin;
use mover_io::{RateBudget, Shard};
use mover_store::{Key, LOST_AND_FOUND, STRAYS_MAX, TEMPORARY_PART};
use tokio::task::JoinHandle;

use crate::catalogue;
use crate::layout;
use crate::reader::{FrameNeed, OpenPack, PackInfos, PackReader, READS_AHEAD, damaged};
use crate::records::{self, at_once, each_object};
use crate::repository::Repository;
use crate::restore::BackupView;
use crate::timing::{StageSeconds, lap};
use crate::tree::{Walked, in_map};

/// Most packs that one run keeps in mind: some 125 bytes each, since the nodes of a tree are not all full, so 12 MB for a TB.
const PACKS_MAX: usize = 4_000_000;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// A pack as a manifest states it. Where manifests state different things of one pack, each is held to its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatedPack(pub PackInfo);

impl StatedPack {
    /// The first that can be stated of a pack.
    fn first_of(id: PackId) -> Self {
        StatedPack(PackInfo {
            id,
            object_type: ObjectType::DataPack,
            bytes: 0,
            directory_offset: 0,
            directory_bytes: 0,
            blocks: 0,
            directory_sha256: [0; 32],
        })
    }
}

impl Ord for StatedPack {
    fn cmp(&self, other: &Self) -> Ordering {
        let parts = |StatedPack(info): &StatedPack| {
            let lengths = (info.bytes, info.directory_offset, info.directory_bytes);
            let of = (info.blocks, info.object_type.code());
            (info.id, info.directory_sha256, lengths, of)
        };
        parts(self).cmp(&parts(other))
    }
}

impl PartialOrd for StatedPack {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Checks of one pack.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackCheck {
    /// Blocks whose SHA-256 was checked.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Where the time went.
    pub stages: StageSeconds,
}

/// What is stored among the packs and no backup needs.
#[derive(Debug, Default)]
pub struct Unreferenced {
    /// How many packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names that no pack has, and names at the top of the repository that are none of its own, at most [`STRAYS_MAX`] of either.
    pub strays: Vec<String>,
}

/// What the catalogue promises: the backups, and the packs that they need.
#[derive(Default)]
pub struct Inventory {
    /// Backups whose manifests could be read, and who wrote them.
    pub backups: BTreeMap<BackupId, Origin>,
    /// What they state of packs, each once.
    pub packs: BTreeSet<StatedPack>,
    /// What is wrong already, with the backups concerned.
    pub findings: Vec<(Damage, Vec<BackupId>)>,
    /// Names among key slots and records that none of them has; of records at most [`STRAYS_MAX`] of a kind.
    pub strays: Vec<String>,
    /// Manifests, key slots and records read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A finding from an error about content; any other error ends the run.
pub fn finding(error: Error) -> Result<Damage> {
    // An object over its cap is damaged too.
    match matches!(error.kind(), Kind::Corrupt | Kind::Limit) || error.is_absence() {
        true => Ok(Damage {
            object: error.object_name().unwrap_or("repository").to_owned(),
            what: told(&error),
        }),
        false => Err(error),
    }
}

fn told(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{}: {cause}", error.message()),
        None => error.message().to_owned(),
    }
}

impl Inventory {
    /// Reads the manifests of `ids` and lists what they need.
    pub async fn take(shard: &Shard, repository: &Repository, ids: &[BackupId]) -> Result<Self> {
        let mut inventory = Inventory::default();
        let found = repository.read_slots(shard).await?;
        inventory.strays = found.strays;
        for stored in found.slots {
            inventory.objects += 1;
            if let Err(error) = stored.slot {
                inventory.findings.push((finding(error)?, Vec::new()));
            }
        }
        for &id in ids {
            shard.stop()?;
            inventory.objects += 1;
            let open = match catalogue::load(shard, repository, id).await {
                Ok(open) => open,
                Err(error) => {
                    inventory.findings.push((finding(error)?, vec![id]));
                    continue;
                }
            };
            inventory.backups.insert(id, open.origin);
            inventory.bytes += open.bytes;
            for pack in open.manifest.packs {
                inventory.need(pack)?;
            }
        }
        Ok(inventory)
    }

    /// Reads the records: holds and annotations of one backup, or of all, and then sessions and tombstones too. No restore needs
    /// any; a hold that cannot be read holds, and a change of annotations is lost.
    pub async fn take_records(
        &mut self,
        shard: &Shard,
        repository: &Arc<Repository>,
        of: Option<BackupId>,
    ) -> Result<()> {
        let prefixes = match of {
            Some(id) => vec![layout::holds(id), layout::annotations(id)],
            None => RECORDS.map(str::to_owned).to_vec(),
        };
        for prefix in prefixes {
            let mut names = records::names(shard, repository, &prefix).await?;
            let mut known = Vec::new();
            for key in names.keys {
                match RecordName::of(&key) {
                    Some(name) => known.push((key, name)),
                    None => records::keep_stray(&mut names.strays, &key),
                }
            }
            self.strays.append(&mut names.strays);
            let ask = |(key, name): (Key, RecordName)| {
                let (shard, repository) = (shard.clone(), repository.clone());
                async move { name.check(&shard, &repository, &key).await }
            };
            for found in at_once(shard, known, ask).await? {
                self.objects += 1;
                if let Some(damage) = found {
                    self.findings.push((damage, Vec::new()));
                }
            }
        }
        Ok(())
    }

    fn need(&mut self, pack: PackInfo) -> Result<()> {
        self.packs.insert(StatedPack(pack));
        if self.packs.len() > PACKS_MAX {
            return Err(Error::new(
                Kind::Limit,
                format!("the backups need over {PACKS_MAX} packs"),
            )
            .hint("verify one backup at a time with --set"));
        }
        Ok(())
    }

    fn names(&self, id: PackId) -> bool {
        let mut behind = self.packs.range(StatedPack::first_of(id)..);
        behind.next().is_some_and(|stated| stated.0.id == id)
    }

    /// Stored packs that none of the backups needs (left by an interrupted job, or in the making now). Their
    /// names are checked, their content is not.
    pub async fn unreferenced(
        &self,
        shard: &Shard,
        repository: &Repository,
    ) -> Result<Unreferenced> {
        let (mut packs, mut bytes_all) = (0, 0u64);
        let mut strays = each_pack(shard, repository, |id, bytes| {
            if !self.names(id) {
                packs += 1;
                bytes_all = bytes_all.saturating_add(bytes);
            }
        })
        .await?;
        // In a bucket others may have theirs beside it.
        if let Some(directory) = repository.store().directory() {
            strays.extend(strays_at_top(directory)?);
        }
        Ok(Unreferenced {
            packs,
            bytes: bytes_all,
            strays,
        })
    }
}

/// Prefixes at the top of a repository's directory, where the header is.
const AT_TOP: [&str; 7] = [
    layout::KEYS,
    layout::PACKS,
    layout::BACKUPS,
    layout::SESSIONS,
    layout::EXPIRED,
    layout::HOLDS,
    layout::ANNOTATIONS,
];

/// Whether a directory of that name, which ends in `/`, belongs at the top: objects are below it, or it is the store's or its file
/// system's.
fn is_at_top(name: &str) -> bool {
    let bare = name.strip_suffix('/');
    AT_TOP.contains(&name)
        || bare.is_some_and(|bare| [TEMPORARY_PART, LOST_AND_FOUND].contains(&bare))
}

/// Other names at the top of a repository's directory. What lies below them is not looked at.
fn strays_at_top(directory: &Path) -> Result<Vec<String>> {
    let failed = |error: std::io::Error| {
        let what = "the repository's directory cannot be listed";
        let error = Error::new(Kind::Storage, what).cause(error);
        error.object(directory.display().to_string())
    };
    let mut strays = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let mut name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            name.push('/');
        }
        let is_object = Key::new(&name).is_ok_and(|key| layout::is_name(&key));
        if is_object || is_at_top(&name) {
            continue;
        }
        strays.push(name);
        if strays.len() == STRAYS_MAX {
            break;
        }
    }
    strays.sort_unstable();
    Ok(strays)
}

/// Whom damaged packs concern.
#[derive(Default)]
pub struct Charged {
    /// What is wrong, with the backups concerned.
    pub findings: Vec<(Damage, Vec<BackupId>)>,
    /// Backups whose manifests are gone.
    pub gone: BTreeSet<BackupId>,
}

/// Reads the manifests of `backups` again and charges each with what is wrong with the packs that it states. Damage to packs that
/// only backups stated which are gone concerns nobody.
pub async fn charge(
    shard: &Shard,
    repository: &Repository,
    backups: impl Iterator<Item = BackupId>,
    damaged: &[(StatedPack, Damage)],
) -> Result<Charged> {
    let mut charged = Charged::default();
    let mut users: BTreeMap<StatedPack, Vec<BackupId>> = damaged
        .iter()
        .map(|(pack, _)| (*pack, Vec::new()))
        .collect();
    for id in backups {
        shard.stop()?;
        let open = match catalogue::load(shard, repository, id).await {
            Ok(open) => open,
            Err(error) if error.is_absence() => {
                charged.gone.insert(id);
                continue;
            }
            Err(error) => {
                charged.findings.push((finding(error)?, vec![id]));
                continue;
            }
        };
        for pack in open.manifest.packs {
            if let Some(users) = users.get_mut(&StatedPack(pack)) {
                users.push(id);
            }
        }
    }
    for (pack, damage) in damaged {
        let users = users.remove(pack).unwrap_or_default();
        if !users.is_empty() {
            charged.findings.push((damage.clone(), users));
        }
    }
    Ok(charged)
}

/// Which of these backups are gone, each asked for under its own name: a listing may leave something out.
pub async fn gone(
    shard: &Shard,
    repository: &Arc<Repository>,
    backups: Vec<BackupId>,
) -> Result<BTreeSet<BackupId>> {
    let ask = |id: BackupId| {
        let (shard, repository) = (shard.clone(), repository.clone());
        async move {
            let stands = catalogue::stands(&shard, &repository, id).await?;
            Ok((!stands).then_some(id))
        }
    };
    let asked = at_once(shard, backups, ask).await?;
    Ok(asked.into_iter().flatten().collect())
}

/// Prefixes of the records.
const RECORDS: [&str; 4] = [
    layout::HOLDS,
    layout::ANNOTATIONS,
    layout::SESSIONS,
    layout::EXPIRED,
];

/// What a record's name says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordName {
    Hold(BackupId, HoldId),
    Annotation(BackupId, u32),
    Session(SessionId),
    Tombstone(BackupId),
}

impl RecordName {
    fn of(key: &Key) -> Option<Self> {
        let hold = || layout::hold_of(key).map(|(backup, id)| RecordName::Hold(backup, id));
        let annotation = || {
            let found = layout::annotation_of(key);
            found.map(|(backup, number)| RecordName::Annotation(backup, number))
        };
        let session = || layout::session_of(key).map(RecordName::Session);
        let tombstone = || layout::tombstone_of(key).map(|(id, _)| RecordName::Tombstone(id));
        hold()
            .or_else(annotation)
            .or_else(session)
            .or_else(tombstone)
    }

    /// What is wrong with the record; nothing where it was taken away meanwhile.
    async fn check(
        self,
        shard: &Shard,
        repository: &Repository,
        key: &Key,
    ) -> Result<Option<Damage>> {
        let (object_type, id) = match self {
            RecordName::Hold(_, id) => (ObjectType::Hold, id.0),
            RecordName::Annotation(backup, number) => {
                let id = AnnotationRecord::object_id(backup, number);
                (ObjectType::Annotation, id)
            }
            RecordName::Session(id) => (ObjectType::Session, id.0),
            RecordName::Tombstone(backup) => (ObjectType::Tombstone, backup.object_id()),
        };
        let damage = |what: String| Damage {
            object: key.as_str().to_owned(),
            what,
        };
        match records::get(shard, repository, key, object_type, id).await {
            Ok(open) if self.is_of(&open.record) => Ok(None),
            Ok(_) => Ok(Some(damage("the record was made for another one".into()))),
            Err(error) if error.is_absence() => Ok(None),
            Err(error) if records::is_unreadable(&error) => Ok(Some(damage(told(&error)))),
            Err(error) => Err(error),
        }
    }

    fn is_of(self, record: &Record) -> bool {
        match (self, record) {
            (RecordName::Hold(backup, _), Record::Hold(body)) => body.backup_id == backup,
            (RecordName::Annotation(backup, number), Record::Annotation(body)) => {
                (body.backup_id, body.number) == (backup, number)
            }
            (RecordName::Session(_), Record::Session(_)) => true,
            (RecordName::Tombstone(backup), Record::Tombstone(body)) => body.backup_id == backup,
            _ => false,
        }
    }
}

/// Gives the id and length of every stored pack to `each`, by their names; returns names that are none, at most
/// [`mover_store::STRAYS_MAX`].
pub async fn each_pack(
    shard: &Shard,
    repository: &Repository,
    mut each: impl FnMut(PackId, u64),
) -> Result<Vec<String>> {
    each_object(shard, repository, layout::PACKS, |object| {
        let id = layout::pack_of(&object.key);
        if let Some(id) = id {
            each(id, object.bytes);
        }
        Ok(id.is_some())
    })
    .await
}

/// What is wrong with stored packs, going by their names and lengths: the first of `packs` that is not as it is stated.
pub async fn missing_pack(
    shard: &Shard,
    repository: &Repository,
    packs: impl IntoIterator<Item = &PackInfo>,
) -> Result<Option<String>> {
    let mut wanted: HashMap<_, _> = packs
        .into_iter()
        .map(|pack| (pack.id, pack.bytes))
        .collect();
    let mut wrong = None;
    each_pack(shard, repository, |id, bytes| {
        if let Some(stated) = wanted.remove(&id)
            && stated != bytes
        {
            wrong = Some(format!("pack {id} has {bytes} bytes instead of {stated}"));
        }
    })
    .await?;
    Ok(wrong.or_else(|| {
        let gone = wanted.keys().next()?;
        Some(format!("pack {gone} is missing"))
    }))
}

/// Packs that are opened on a shard, and whose first frames are read, while another one is checked, where the repository lies
/// behind a link: opening one and reading its first frames take two requests, one after the other.
pub const PACKS_AHEAD: usize = 2;

/// How a shard divides its buffers between the pack that is checked and those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PiecesAhead {
    /// Those that the pack's frames may take while it is checked.
    checked: usize,
    /// Those that the frames of each of the next ones may take meanwhile; none where there are too few.
    next: usize,
}

impl PiecesAhead {
    /// Divides `buffers`, which are [`READS_AHEAD`] at least.
    pub fn of(buffers: usize) -> Self {
        match buffers.checked_sub(PACKS_AHEAD * READS_AHEAD) {
            Some(checked @ READS_AHEAD..) => PiecesAhead {
                checked,
                next: READS_AHEAD,
            },
            _ => PiecesAhead {
                checked: buffers,
                next: 0,
            },
        }
    }
}

/// A pack that is checked next, while it is being opened.
pub struct NextPack(JoinHandle<Result<BegunPack>>);

/// A pack that is there, with the length that the manifest states, and open.
struct BegunPack {
    reader: PackReader,
    pack: Arc<OpenPack>,
}

/// Begins to open a pack and to read its first frames, while another one is checked.
pub fn begin_pack(
    shard: &Shard,
    repository: &Arc<Repository>,
    info: &PackInfo,
    pieces: PiecesAhead,
) -> NextPack {
    let (task_shard, repository, info) = (shard.clone(), repository.clone(), *info);
    let begun = async move { open_whole(&task_shard, &repository, info, pieces).await };
    NextPack(shard.spawn(begun))
}

async fn open_whole(
    shard: &Shard,
    repository: &Arc<Repository>,
    info: PackInfo,
    pieces: PiecesAhead,
) -> Result<BegunPack> {
    let key = layout::pack(info.id)?;
    let infos = Arc::new(PackInfos::new(vec![info]));
    let mut reader = PackReader::new(shard, repository, &infos).with_pieces_ahead(pieces.next);
    let (stored, pack) = tokio::join!(repository.store().head(shard, &key), reader.open(info.id));
    let stored = stored?;
    let wrong = |what: &str| damaged(&key, Error::new(Kind::Corrupt, what));
    match stored {
        None => return Err(wrong("an object that the backup needs is missing")),
        Some(object) if object.bytes != info.bytes => {
            return Err(wrong(
                "the object has another length than the manifest states",
            ));
        }
        Some(_) => {}
    }
    let pack = pack?;
    if pieces.next > 0 {
        reader.announce(all_frames(&pack)).await?;
    }
    Ok(BegunPack { reader, pack })
}

fn all_frames(pack: &OpenPack) -> impl Iterator<Item = FrameNeed> + use<> {
    let (pack, frames) = (pack.info.id, pack.directory.frames.len() as u32);
    (0..frames).map(move |frame| FrameNeed { pack, frame })
}

/// Reads a whole pack and checks every frame, seal, block and the lengths that the manifest states.
/// What is read for it is paid for from `limit`.
pub async fn check_pack(
    shard: &Shard,
    next: NextPack,
    pieces: PiecesAhead,
    limit: &Arc<RateBudget>,
) -> Result<PackCheck> {
    let clock = Instant::now();
    let begun = next.0.await.map_err(|error| {
        Error::new(Kind::Internal, "opening a pack ended without a result").cause(error)
    })?;
    let BegunPack { reader, pack } = begun?;
    let mut reader = reader.with_pieces_ahead(pieces.checked);
    lap(&mut reader.stages.read_wait, clock);
    if pieces.next == 0 {
        reader.announce(all_frames(&pack)).await?;
    }
    let mut plain = vec![0; mover_format::frame::FRAME_PLAIN_BYTES_MAX];
    let mut paid_bytes = 0;
    for frame in 0..pack.directory.frames.len() as u32 {
        shard.stop()?;
        reader.check_frame(&pack, frame, &mut plain).await?;
        let unpaid = reader.read_bytes - std::mem::replace(&mut paid_bytes, reader.read_bytes);
        shard.throttle(limit, unpaid).await;
        shard.turn().await;
    }
    Ok(PackCheck {
        blocks: pack.directory.hashes.len() as u64,
        bytes: pack.info.bytes,
        stages: reader.stages,
    })
}

/// Reads a backup's whole map and checks that every block it names lies in a pack that it lists. Gives the
/// number of files.
pub async fn check_map(shard: &Shard, repository: &Arc<Repository>, id: BackupId) -> Result<u64> {
    let view = BackupView::open(shard, repository, id).await?;
    let mut reader = PackReader::new(shard, repository, &view.infos);
    let (mut files, mut walked, mut unknown) = (0, Walked::default(), None);
    let holds = |run: &Run| match *run {
        Run::Hole { .. } | Run::Zeros { .. } => true,
        Run::Stored {
            blocks,
            pack,
            ordinal,
        } => view.infos.get(&pack).is_some_and(|info| {
            let end = u64::from(ordinal) + u64::from(blocks);
            info.object_type == ObjectType::DataPack && end <= u64::from(info.blocks)
        }),
    };
    let entries = view.items.entries();
    for at in 0..entries.len() {
        let Some(map) = view.items.map(at)? else {
            continue;
        };
        files += 1;
        shard.stop()?;
        let mut fits = true;
        let each = |leaf: &Leaf| fits &= leaf.runs().iter().all(holds);
        let read = map.each_leaf(&mut reader, &mut walked, each).await;
        read.map_err(|error| match entries.get(at) {
            Some(entry) => in_map(id, &entry, error),
            None => error,
        })?;
        if !fits {
            unknown = unknown.or_else(|| entries.path(at));
        }
        shard.turn().await;
    }
    match unknown {
        None => Ok(files),
        Some(path) => Err(Error::new(
            Kind::Corrupt,
            format!(
                "the map names blocks that no pack of the backup holds (file {})",
                display_path(&path)
            ),
        )
        .object(layout::backup(id)?.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_packs_get_buffers_where_all_have_enough() {
        let divided = |buffers| {
            let pieces = PiecesAhead::of(buffers);
            (pieces.checked, pieces.next)
        };
        let enough = (1 + PACKS_AHEAD) * READS_AHEAD;
        assert_eq!(divided(READS_AHEAD), (READS_AHEAD, 0));
        assert_eq!(divided(enough - 1), (enough - 1, 0));
        assert_eq!(divided(enough), (READS_AHEAD, READS_AHEAD));
        assert_eq!(divided(enough + 11), (READS_AHEAD + 11, READS_AHEAD));
    }
    fn pack(id: u8, bytes: u64) -> PackInfo {
        PackInfo {
            bytes,
            ..StatedPack::first_of(PackId([id; 16])).0
        }
    }

    #[test]
    fn a_pack_is_kept_in_mind_once_for_all_who_state_the_same_of_it() {
        let mut inventory = Inventory::default();
        for _ in 0..365 {
            inventory.need(pack(1, 100)).unwrap();
            inventory.need(pack(3, 100)).unwrap();
        }
        inventory.need(pack(3, 50)).unwrap();
        let kept = [pack(1, 100), pack(3, 50), pack(3, 100)].map(StatedPack);
        assert_eq!(inventory.packs.iter().copied().collect::<Vec<_>>(), kept);
        let named = [0, 1, 2, 3, 4].map(|id| inventory.names(PackId([id; 16])));
        assert_eq!(named, [false, true, false, true, false]);
    }
}
