//! A backup from the repository's side: choose the parent, let the shards write, publish the manifest.
//!
//! Invariants: the manifest lists every pack that its maps reach, and each of them was either committed by this
//! session or its directory was read in it; the parent is one that can be read; a session that was
//! given up publishes nothing, or takes back what it published if packs of it are gone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use mover_base::tree::Entry;
use mover_base::units::blocks_of;
use mover_base::{BackupId, Error, Kind, PackId, Result, Timestamp};
use mover_format::manifest::{BackupMetadata, Manifest, PackInfo};
use mover_format::node::NodeRef;
use mover_format::preamble::ObjectType;
use mover_format::record::Purpose;
use mover_io::{RateBudget, Shard};

use crate::catalogue;
use crate::dedup::{BlockIndex, PackTable};
use crate::layout;
use crate::map::{MapNodes, OrderedNodes, TreeWriter};
use crate::parent::Parent;
use crate::parent_names::{NamesCursor, ParentNames, too_many_names};
use crate::preload::Preload;
use crate::reader::{PackInfos, PackReader};
use crate::records::at_once;
use crate::repository::{Repository, Session};
use crate::search::{NOBODY_VOUCHES, is_vouched, no_parent, too_many_packs};
use crate::sessions::{self, Registration, lost_parent};
use crate::verify::each_pack;
use crate::writer::{WriteCounts, WriteShared, WriterOutcome};

/// What a backup is begun with.
pub struct BackupRequest<'a> {
    /// The backup whose blocks this one builds on, as [`find_parent`](crate::find_parent) found it.
    pub parent: Option<&'a catalogue::OpenManifest>,
    /// The latest backup of the same source, which the new id is behind. The parent is not later, or of another source.
    pub latest: Option<BackupId>,
    /// When it began, which the backup's id says.
    pub started: Timestamp,
    /// zstd level.
    pub level: i32,
    /// Most bytes for the block index; small sources get a smaller one.
    pub index_bytes: usize,
    /// Blocks that the source may have.
    pub source_blocks: u64,
    /// Whether blocks may stand elsewhere than in the parent: then those of the parent go into the index. Pages carry
    /// their place, so one of them is like another only where it is a copy of the whole table's file.
    pub moved: bool,
}

/// A backup under way.
pub struct BackupRun {
    shared: Arc<WriteShared>,
    registration: Arc<Registration>,
    parent: ParentTree,
    preload: Arc<Preload>,
    /// Why the parent could not serve as such.
    pub warning: Option<String>,
}

/// What is asked for of the parent beside its blocks; empty where there is no parent.
#[derive(Default)]
struct ParentTree {
    id: Option<BackupId>,
    /// Blocks of each of its files, where nothing may have moved.
    blocks: HashMap<Vec<u8>, u64>,
    /// Its data packs, each with the number of its blocks.
    data_packs: Vec<(PackId, u64)>,
}

/// Bytes that the sizes of the parent's files may take, where they are asked for: of 600,000 tables.
const SIZES_BYTES_MAX: usize = 64 << 20;

/// What was published.
pub struct Committed {
    /// The manifest's metadata.
    pub metadata: BackupMetadata,
    /// What all shards did.
    pub counts: WriteCounts,
}

impl ParentTree {
    /// Reads the names of `open`. Its packs enter `packs` once all of them are read.
    async fn read(
        shard: &Shard,
        repository: &Arc<Repository>,
        open: &catalogue::OpenManifest,
        packs: &PackTable,
        moved: bool,
    ) -> Result<(ParentTree, Parent)> {
        let manifest = &open.manifest;
        let infos: PackInfos = manifest.packs.iter().map(|pack| (pack.id, *pack)).collect();
        let infos = Arc::new(infos);
        let mut reader = PackReader::new(shard, repository, &infos);
        let (mut blocks, mut room) = (HashMap::new(), SIZES_BYTES_MAX);
        let names = ParentNames::read(&mut reader, &manifest.pages, |stored| {
            if !moved && stored.map.is_some() {
                let (path, bytes) = (&stored.entry.path, stored.entry.content_bytes());
                let entry_bytes = 2 * size_of::<(Vec<u8>, u64)>() + path.len();
                room = room.checked_sub(entry_bytes).ok_or_else(too_many_names)?;
                blocks.insert(path.clone(), blocks_of(bytes));
            }
            Ok(())
        });
        let names = names.await?;
        let data = |pack: &&PackInfo| pack.object_type == ObjectType::DataPack;
        let data_packs = manifest.packs.iter().filter(data);
        let data_packs = data_packs.map(|pack| (pack.id, u64::from(pack.blocks)));
        let tree = ParentTree {
            id: Some(open.id),
            blocks,
            data_packs: data_packs.collect(),
        };
        Ok((tree, Parent::new(names, infos, packs)))
    }

    /// The packs to open first: those whose blocks the index has room for, or all if none go there.
    fn to_open(&self, into_index: bool, index: &BlockIndex) -> Vec<PackId> {
        let mut room = index.capacity_blocks();
        let fit = self.data_packs.iter().take_while(|(_, blocks)| {
            let rest = room.checked_sub(*blocks);
            room = rest.unwrap_or(0);
            !into_index || rest.is_some()
        });
        fit.map(|(id, _)| *id).collect()
    }
}

impl BackupRun {
    /// Opens a session, registers it and prepares what the shards share.
    pub async fn begin(
        shard: &Shard,
        repository: &Arc<Repository>,
        request: &BackupRequest<'_>,
        write_limit: Arc<RateBudget>,
    ) -> Result<Self> {
        let parent = request.parent.map(|open| open.id);
        let backup = catalogue::draw_id(request.started, request.latest)?;
        let session = repository.begin_session_as(sessions::id_for(backup)?)?;
        let parents = parent.into_iter().collect();
        let purpose = Purpose::Backup;
        let registration =
            Registration::begin(shard, repository, &session, purpose, parents).await?;
        let registration = Arc::new(registration);
        let prepared = Self::prepare(
            shard,
            repository,
            session,
            &registration,
            request,
            write_limit,
        )
        .await;
        if prepared.is_err() {
            registration.end(shard).await;
        }
        prepared
    }

    async fn prepare(
        shard: &Shard,
        repository: &Arc<Repository>,
        session: Session,
        registration: &Arc<Registration>,
        request: &BackupRequest<'_>,
        write_limit: Arc<RateBudget>,
    ) -> Result<Self> {
        let packs = PackTable::default();
        let mut tree = ParentTree::default();
        let mut parent = None;
        let mut warning = None;
        let lost = match request.parent {
            Some(open) if !is_vouched(repository, open) => Some(NOBODY_VOUCHES.to_owned()),
            Some(open) => {
                let lost = lost_parent(shard, repository, open.id).await?;
                let lost = lost.map(|lost| format!("it {lost}"));
                lost.or_else(|| too_many_packs(open.manifest.packs.len()))
            }
            None => None,
        };
        if let (Some(open), Some(lost)) = (request.parent, lost) {
            warning = Some(no_parent(open.id, &lost));
        } else if let Some(open) = request.parent {
            match ParentTree::read(shard, repository, open, &packs, request.moved).await {
                Ok((read, shared)) => {
                    tree = read;
                    parent = Some(shared);
                }
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Limit) => {
                    warning = Some(no_parent(open.id, &error));
                }
                Err(error) => return Err(error),
            }
        }
        let parent_blocks = parent.as_ref().map_or(0, Parent::blocks);
        let blocks = request.source_blocks.saturating_add(parent_blocks);
        let index_bytes = BlockIndex::bytes_for(blocks).min(request.index_bytes);
        let index = BlockIndex::new(index_bytes)?;
        let preload = Preload::new(tree.to_open(request.moved, &index), request.moved);
        let shared = Arc::new(WriteShared {
            session,
            repository: repository.clone(),
            index,
            packs,
            parent,
            level: request.level,
            write_limit,
        });
        Ok(BackupRun {
            shared,
            registration: registration.clone(),
            parent: tree,
            preload: Arc::new(preload),
            warning,
        })
    }

    /// The backup whose blocks this one builds on.
    pub fn parent(&self) -> Option<BackupId> {
        self.parent.id
    }

    /// What the shards share.
    pub fn shared(&self) -> &Arc<WriteShared> {
        &self.shared
    }

    /// How many blocks a file has in the parent, if it is there and not empty. None of a backup whose blocks may have moved:
    /// nobody asks for them.
    pub fn parent_blocks(&self, path: &[u8]) -> Option<u64> {
        self.parent.blocks.get(path).copied()
    }

    /// Looks at the parent's packs and, if blocks may have moved, puts theirs into the index as far as its budget goes.
    /// Every shard calls this; they share the work. Damaged packs are passed over: their blocks will be stored anew.
    pub async fn preload(&self, shard: &Shard) -> Result<()> {
        self.preload.run(shard, &self.shared).await
    }

    /// Writes the tree and publishes the manifest. `entries` come in path order, and by their numbers in that the `nodes` of
    /// their extents; `draft` is the metadata as far as the caller knows it.
    pub async fn commit(
        self,
        shard: &Shard,
        outcomes: Vec<WriterOutcome>,
        nodes: Vec<MapNodes>,
        entries: impl Iterator<Item = Entry>,
        mut draft: BackupMetadata,
    ) -> Result<Committed> {
        let mut tree = TreeWriter::new(shard, &self.shared)?;
        if let Some(parent) = &self.shared.parent {
            parent.names.stored().for_each(|page| tree.know(page));
        }
        let mut old = self.shared.parent.as_ref().map(|parent| {
            let reader = PackReader::new(shard, &self.shared.repository, &parent.infos);
            (
                parent,
                reader.with_packs(&parent.packs),
                NamesCursor::default(),
            )
        });
        let mut nodes = OrderedNodes::new(nodes);
        for (number, entry) in (0..).zip(entries) {
            let extents = nodes.take(number)?;
            if let Some((parent, reader, cursor)) = old.as_mut().filter(|_| extents.len() > 1) {
                let interiors = interiors(parent, reader, cursor, &entry.path);
                interiors.await?.iter().for_each(|name| tree.know(name));
            }
            let map = tree.join(extents).await?;
            tree.entry(entry, map).await?;
        }
        let (pages, tree_packs, tree_used) = tree.finish().await?;

        let mut counts = WriteCounts::default();
        let mut used: HashSet<PackId> = tree_used;
        let mut new_packs = tree_packs;
        counts.stored_bytes += new_packs.iter().map(|pack| pack.bytes).sum::<u64>();
        counts.packs += new_packs.len() as u64;
        for outcome in outcomes {
            counts.add(&outcome.counts);
            used.extend(outcome.used_packs);
            new_packs.extend(outcome.new_packs);
        }
        let packs = self.needed_packs(new_packs, &used)?;
        draft.size_info.new_bytes = counts.new_blocks * mover_base::BLOCK_BYTES as u64;
        draft.size_info.compressed_bytes = counts.compressed_bytes;
        draft.size_info.encrypted_bytes = counts.stored_bytes;
        draft.size_info.blocks = counts.blocks;
        draft.size_info.zero_blocks = counts.zero_blocks;
        draft.size_info.hole_blocks = counts.hole_blocks;
        draft.size_info.deduplicated_blocks = counts.known_blocks + counts.kept_blocks;
        draft.storage_info.pack_count = packs.len() as u64;
        draft.parent_id = self.parent.id;
        let manifest = Manifest {
            metadata: draft,
            pages,
            packs,
        };
        let repository = &self.shared.repository;
        self.registration.before_publishing(shard).await?;
        let session = &self.shared.session;
        let (manifest, bytes) = catalogue::publish(shard, repository, session, manifest).await?;
        self.check_published(shard, &manifest).await?;
        self.registration.end(shard).await;
        counts.stored_bytes += bytes;
        let metadata = manifest.metadata;
        Ok(Committed { metadata, counts })
    }

    /// Looks whether the session was given up between the last look at it and the manifest: an `expire` may then have
    /// deleted packs before it could know that they are needed. If so, the manifest goes again.
    async fn check_published(&self, shard: &Shard, manifest: &Manifest) -> Result<()> {
        let key = layout::backup(manifest.metadata.backup_id)?;
        let failed = |error: Error, what: &str, next: &str| {
            Error::new(error.kind(), what)
                .object(key.as_str())
                .hint(next)
                .cause(error)
        };
        let missing = self.lost_pack(shard, manifest).await.map_err(|error| {
            failed(
                error,
                "the backup is listed, but whether an expire deleted packs of it meanwhile could not be looked up",
                "`helios-mover verify` tells whether it is whole",
            )
        })?;
        let Some(pack) = missing else {
            return Ok(());
        };
        let own = std::slice::from_ref(&key);
        let taken_back = self.shared.repository.store().delete_all(shard, own).await;
        taken_back.map_err(|error| {
            failed(
                error,
                "the session was given up by an operator and packs of the backup are gone, but its manifest could not be deleted",
                "delete this object, then run the backup again",
            )
        })?;
        Err(Error::new(
            Kind::Conflict,
            "the session was given up by an operator and packs of the backup are gone; it is not listed any more",
        )
        .object(layout::pack(pack)?.as_str())
        .hint("run the backup again"))
    }

    /// A pack that the manifest names and that is gone, if the session was given up.
    async fn lost_pack(&self, shard: &Shard, manifest: &Manifest) -> Result<Option<PackId>> {
        let repository = &self.shared.repository;
        if sessions::stands(shard, repository, self.shared.session.id()).await? {
            return Ok(None);
        }
        // An `expire` that has seen the manifest takes the session away too, and then every pack is there.
        let mut missing: BTreeSet<PackId> = manifest.packs.iter().map(|pack| pack.id).collect();
        each_pack(shard, repository, |id, _| {
            missing.remove(&id);
        })
        .await?;
        // A manifest is deleted for it, and a listing may lag behind: only its name tells that a pack is gone.
        let unlisted = missing.into_iter().collect();
        let look = |id: PackId| {
            let (shard, repository) = (shard.clone(), repository.clone());
            async move {
                let found = repository.store().head(&shard, &layout::pack(id)?).await?;
                Ok(found.is_none().then_some(id))
            }
        };
        let gone = at_once(shard, unlisted, look).await?;
        Ok(gone.into_iter().flatten().next())
    }

    /// Every pack that the maps reach, sorted by id.
    fn needed_packs(&self, new: Vec<PackInfo>, used: &HashSet<PackId>) -> Result<Vec<PackInfo>> {
        let mut packs: HashMap<PackId, PackInfo> =
            new.into_iter().map(|pack| (pack.id, pack)).collect();
        for id in used {
            if packs.contains_key(id) {
                continue;
            }
            let known = self
                .shared
                .parent
                .as_ref()
                .and_then(|parent| parent.infos.get(id));
            let info = known.ok_or_else(|| {
                Error::new(Kind::Internal, "a map reaches a pack that nobody committed")
                    .object(id.to_string())
            })?;
            packs.insert(*id, *info);
        }
        let mut packs: Vec<PackInfo> = packs.into_values().collect();
        packs.sort_unstable_by_key(|pack| pack.id);
        Ok(packs)
    }

    /// How many parts of the parent were found damaged and stored anew.
    pub fn damaged_extents(&self) -> u64 {
        self.shared
            .parent
            .as_ref()
            .map_or(0, |parent| parent.damaged_extents.load(Relaxed))
    }
}

/// The nodes that the map of the file at `path` has above its leaves in the parent, so that equal ones need not be written
/// again. They are read: an equal node in a damaged pack must be.
async fn interiors(
    parent: &Parent,
    reader: &mut PackReader,
    cursor: &mut NamesCursor,
    path: &[u8],
) -> Result<Vec<NodeRef>> {
    let (names, damage) = match parent.names.map(cursor, reader, path).await {
        Ok(Some(map)) => map.interior_names(reader).await,
        Ok(None) => return Ok(Vec::new()),
        Err(error) => (Vec::new(), Some(error)),
    };
    match damage {
        Some(error) if error.kind() == Kind::Corrupt => {
            tracing::warn!(%error, "the parent backup is damaged; its nodes are written anew");
            parent.damaged_extents.fetch_add(1, Relaxed);
        }
        Some(error) => return Err(error),
        None => {}
    }
    Ok(names)
}
