//! A backup from the repository's side: choose the parent, let the shards write, publish the manifest.
//!
//! Invariants: the manifest lists every pack that its maps reach, and each of them was either committed by this
//! session or its directory was read in it; the parent is one that can be read; a session that was
//! given up publishes nothing, or takes back what it published if packs of it are gone. What a manifest cannot hold is found out
//! before anything is done that cannot be taken back. When the manifest is encoded, which takes several times what it lists,
//! nothing is kept any more of the parent and of the blocks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use mover_base::tree::Entry;
use mover_base::units::blocks_of;
use mover_base::{BackupId, Error, Kind, PackId, Result, Timestamp};
use mover_format::manifest::{BackupMetadata, MANIFEST_PACKS_MAX, Manifest, PackInfo};
use mover_format::node::{Child, NodeRef};
use mover_format::preamble::ObjectType;
use mover_format::record::Purpose;
use mover_io::{RateBudget, Shard};

use crate::catalogue;
use crate::dedup::{BlockIndex, PackTable};
use crate::layout;
use crate::map::{KNOWN_NODES_MAX, MapNodes, OrderedNodes, TreeWriter};
use crate::parent::Parent;
use crate::parent_names::{NamesCursor, ParentNames, too_many_names};
use crate::preload::Preload;
use crate::reader::{PackInfos, PackReader};
use crate::records::at_once;
use crate::repository::{Repository, Session};
use crate::restore::block_bytes;
use crate::search::{NOBODY_VOUCHES, is_vouched, no_parent, too_many_packs};
use crate::sessions::{self, Registration, lost_parent};
use crate::verify::each_pack;
use crate::writer::{ListedPacks, WriteCounts, WriteShared, WriterOutcome};

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
        let infos = Arc::new(PackInfos::new(manifest.packs.clone()));
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
        let tree = ParentTree {
            id: Some(open.id),
            blocks,
        };
        Ok((tree, Parent::new(names, infos, packs)))
    }
}

/// The data packs of `parent` to open first: those whose blocks the index has room for, or all if none go there.
fn to_open(
    parent: Option<&catalogue::OpenManifest>,
    into_index: bool,
    index: &BlockIndex,
) -> Vec<PackId> {
    let mut room = index.capacity_blocks();
    let packs = parent.map(|open| open.manifest.packs.as_slice());
    let packs = packs.unwrap_or_default().iter();
    let data = packs.filter(|pack| pack.object_type == ObjectType::DataPack);
    let fit = data.take_while(|pack| {
        let rest = room.checked_sub(u64::from(pack.blocks));
        room = rest.unwrap_or(0);
        !into_index || rest.is_some()
    });
    fit.map(|pack| pack.id).collect()
}

/// Why nothing can be built on a backup, if so. To be asked after the session was registered.
async fn unfit(
    shard: &Shard,
    repository: &Repository,
    open: &catalogue::OpenManifest,
) -> Result<Option<String>> {
    if !is_vouched(repository, open.origin) {
        return Ok(Some(NOBODY_VOUCHES.to_owned()));
    }
    let lost = lost_parent(shard, repository, open.id).await?;
    let lost = lost.map(|lost| format!("it {lost}"));
    Ok(lost.or_else(|| too_many_packs(open.manifest.packs.len())))
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
        if let Some(open) = request.parent {
            if let Some(why) = unfit(shard, repository, open).await? {
                warning = Some(no_parent(open.id, &why));
            } else {
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
        }
        let parent_blocks = parent.as_ref().map_or(0, Parent::blocks);
        let blocks = request.source_blocks.saturating_add(parent_blocks);
        let index_bytes = BlockIndex::bytes_for(blocks).min(request.index_bytes);
        let index = BlockIndex::new(index_bytes)?;
        let built_on = request.parent.filter(|_| parent.is_some());
        let preload = Preload::new(to_open(built_on, request.moved, &index), request.moved);
        let shared = Arc::new(WriteShared {
            session: Arc::new(session),
            repository: repository.clone(),
            index,
            packs,
            parent,
            listed: ListedPacks::new(MANIFEST_PACKS_MAX),
            known_nodes_max: KNOWN_NODES_MAX,
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
    ///
    /// # Errors
    /// `Limit` for a backup that no manifest can hold: nothing was published then, and the session can be taken back.
    pub async fn commit(
        self,
        shard: &Shard,
        outcomes: Vec<WriterOutcome>,
        nodes: Vec<MapNodes>,
        entries: impl Iterator<Item = Entry>,
        mut draft: BackupMetadata,
    ) -> Result<Committed> {
        let (pages, mut new_packs, mut named) = self.write_tree(shard, nodes, entries).await?;
        let mut counts = WriteCounts {
            stored_bytes: new_packs.iter().map(|pack| pack.bytes).sum(),
            packs: new_packs.len() as u64,
            ..WriteCounts::default()
        };
        for outcome in outcomes {
            counts.add(&outcome.counts);
            named.extend(outcome.named_packs);
            new_packs.extend(outcome.new_packs);
        }
        let packs = self.needed_packs(new_packs, &named)?;
        drop(named);
        draft.size_info.new_bytes = counts.new_blocks * mover_base::BLOCK_BYTES as u64;
        draft.size_info.compressed_bytes = counts.compressed_bytes;
        draft.size_info.encrypted_bytes = counts.stored_bytes;
        draft.size_info.blocks = counts.blocks;
        draft.size_info.zero_blocks = counts.zero_blocks;
        draft.size_info.hole_blocks = counts.hole_blocks;
        draft.size_info.deduplicated_blocks = counts.known_blocks + counts.kept_blocks;
        // What a source has allocated may be no data: space that was never written, or that is kept behind the end of a file.
        let holes_bytes = block_bytes(counts.hole_blocks);
        let size = &mut draft.size_info;
        size.data_bytes = size
            .data_bytes
            .min(size.original_bytes.saturating_sub(holes_bytes));
        draft.storage_info.pack_count = packs.len() as u64;
        draft.parent_id = self.parent.id;
        let manifest = Manifest {
            metadata: draft,
            pages,
            packs,
        };
        let (metadata, bytes) = self.end().publish(shard, manifest).await?;
        counts.stored_bytes += bytes;
        Ok(Committed { metadata, counts })
    }

    /// Joins the extents into maps and lists the entries; gives the pages, the new packs, and those of them that were referred
    /// to again.
    async fn write_tree(
        &self,
        shard: &Shard,
        nodes: Vec<MapNodes>,
        entries: impl Iterator<Item = Entry>,
    ) -> Result<(Vec<Child>, Vec<PackInfo>, HashSet<PackId>)> {
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
        tree.finish().await
    }

    /// Every pack that the maps reach, sorted by id: all that are new, among which those `named` have to be, and those of the
    /// parent that were noted.
    fn needed_packs(&self, new: Vec<PackInfo>, named: &HashSet<PackId>) -> Result<Vec<PackInfo>> {
        let mut packs = new;
        packs.sort_unstable_by_key(|pack| pack.id);
        for id in named {
            let found = packs.binary_search_by_key(id, |pack| pack.id);
            found.map_err(|_| {
                Error::new(Kind::Internal, "a map reaches a pack that nobody committed")
                    .object(id.to_string())
            })?;
        }
        if let Some(parent) = &self.shared.parent {
            packs.extend(parent.named());
            packs.sort_unstable_by_key(|pack| pack.id);
        }
        packs.shrink_to_fit();
        Ok(packs)
    }

    /// Gives up the block index and what is known of the parent, and keeps what publishing takes.
    fn end(self) -> Publication {
        Publication {
            repository: self.shared.repository.clone(),
            session: self.shared.session.clone(),
            registration: self.registration.clone(),
        }
    }

    /// How many parts of the parent were found damaged and stored anew.
    pub fn damaged_extents(&self) -> u64 {
        self.shared
            .parent
            .as_ref()
            .map_or(0, |parent| parent.damaged_extents.load(Relaxed))
    }
}

/// What is left of a run when its manifest is made.
struct Publication {
    repository: Arc<Repository>,
    session: Arc<Session>,
    registration: Arc<Registration>,
}

impl Publication {
    /// Publishes the manifest; gives its metadata as it stands there, and the bytes written.
    async fn publish(self, shard: &Shard, manifest: Manifest) -> Result<(BackupMetadata, u64)> {
        // As long as the session can be taken back.
        manifest.check_encodable()?;
        let (repository, session) = (&self.repository, &self.session);
        let before = async || self.registration.before_publishing(shard).await;
        let published = catalogue::publish(shard, repository, session, manifest, before).await;
        let (manifest, bytes) = published?;
        self.check_published(shard, &manifest).await?;
        self.registration.end(shard).await;
        Ok((manifest.metadata, bytes))
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
        let taken_back = self.repository.store().delete_all(shard, own).await;
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
        let repository = &self.repository;
        if sessions::stands(shard, repository, self.session.id()).await? {
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
            tracing::info!(%error, "the parent backup is damaged; its nodes are written anew");
            parent.damaged_extents.fetch_add(1, Relaxed);
        }
        Some(error) => return Err(error),
        None => {}
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use mover_base::BLOCK_BYTES;
    use mover_base::checksum::sha256;
    use mover_base::tree::{EntryKind, FileTime};

    use super::*;
    use crate::tree::EXTENT_BYTES;
    use crate::writer::{MapNode, ShardWriter};
    use crate::{Credentials, fixture, generate_identity};

    /// A block that does not shrink.
    fn noise(seed: u8) -> Vec<u8> {
        (0..128u8).flat_map(|part| sha256(&[seed, part])).collect()
    }

    async fn plain_repository(shard: &Shard, url: &str) -> Result<Arc<Repository>> {
        fixture::init(shard, url, &[]).await?;
        let repository = fixture::open(shard, url, &Credentials::None).await?;
        Ok(Arc::new(repository))
    }

    async fn begin(
        shard: &Shard,
        repository: &Arc<Repository>,
        parent: Option<&catalogue::OpenManifest>,
    ) -> Result<BackupRun> {
        let request = BackupRequest {
            parent,
            latest: parent.map(|open| open.id),
            started: Timestamp::now(),
            level: 1,
            index_bytes: 0,
            source_blocks: 0,
            moved: true,
        };
        BackupRun::begin(shard, repository, &request, RateBudget::new(None)).await
    }

    fn shared(run: &mut BackupRun) -> &mut WriteShared {
        Arc::get_mut(&mut run.shared).expect("no writer yet")
    }

    /// A file of one block, by a writer of its own.
    async fn write_block(
        shard: &Shard,
        run: &BackupRun,
        block: &[u8],
    ) -> Result<(WriterOutcome, MapNode)> {
        let mut writer = ShardWriter::new(shard, run.shared())?;
        writer.begin_extent(b"a", 0).await?;
        writer.blocks(block, 0, false).await?;
        let part = writer.end_part()?;
        let node = writer.end_extent(vec![part]).await?;
        Ok((writer.finish().await?, node))
    }

    /// Holes and zeros in turn, more of them in each extent: leaves that are too long to be inline, and no block to store.
    async fn write_fragments(
        shard: &Shard,
        run: &BackupRun,
        extents: u64,
    ) -> Result<(WriterOutcome, Vec<MapNode>)> {
        let zeros = [0u8; BLOCK_BYTES];
        let mut writer = ShardWriter::new(shard, run.shared())?;
        let mut nodes = Vec::new();
        for index in 0..extents {
            writer.begin_extent(b"a", index).await?;
            let fragments = 150 + index;
            for at in 0..fragments {
                writer.hole(1)?;
                writer.blocks(&zeros, 2 * at + 1, false).await?;
            }
            writer.hole(EXTENT_BYTES / BLOCK_BYTES as u64 - 2 * fragments)?;
            let part = writer.end_part()?;
            nodes.push(writer.end_extent(vec![part]).await?);
        }
        Ok((writer.finish().await?, nodes))
    }

    fn draft() -> BackupMetadata {
        fixture::metadata(BackupId::new(Timestamp::now(), 0), "dir:///source")
    }

    /// Commits a backup of one file.
    async fn commit(
        shard: &Shard,
        run: BackupRun,
        outcome: WriterOutcome,
        nodes: &[MapNode],
        bytes: u64,
    ) -> Result<Committed> {
        let mut list = MapNodes::default();
        for (index, node) in (0..).zip(nodes) {
            list.push(0, index, node)?;
        }
        let entry = Entry {
            path: b"a".to_vec(),
            kind: EntryKind::File { bytes },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: FileTime::default(),
            xattrs: Vec::new(),
        };
        let entries = std::iter::once(entry);
        run.commit(shard, vec![outcome], vec![list], entries, draft())
            .await
    }

    #[test]
    fn compressed_bytes_are_neither_headers_nor_seals() {
        for sealed in [false, true] {
            fixture::with_place(async |shard, url| {
                let (identity, recipient) = generate_identity();
                let (recipients, credentials) = match sealed {
                    true => (vec![recipient], Credentials::Identity(identity)),
                    false => (Vec::new(), Credentials::None),
                };
                fixture::init(shard, url, &recipients).await?;
                let repository = Arc::new(fixture::open(shard, url, &credentials).await?);
                let run = begin(shard, &repository, None).await?;
                let (outcome, _) = write_block(shard, &run, &noise(1)).await?;
                let counts = outcome.counts;
                assert_eq!((counts.new_blocks, counts.compressed_bytes), (1, 4096));
                assert!(counts.stored_bytes > 4096);
                Ok(())
            });
        }
    }

    #[test]
    fn a_backup_of_more_packs_than_a_manifest_lists_ends_when_one_more_is_needed() {
        fixture::with_place(async |shard, url| {
            let repository = plain_repository(shard, url).await?;
            let mut run = begin(shard, &repository, None).await?;
            shared(&mut run).listed = ListedPacks::new(1);
            let (outcome, node) = write_block(shard, &run, &noise(1)).await?;
            let beyond = write_block(shard, &run, &noise(2)).await;
            let error = beyond.map(drop).unwrap_err();
            assert_eq!(error.kind(), Kind::Limit);
            assert!(error.hint_text().is_some(), "{error}");
            let first = commit(shard, run, outcome, &[node], 4096).await?;

            // A pack of the parent counts once, however many writers name it.
            let parent = catalogue::load(shard, &repository, first.metadata.backup_id).await?;
            let mut run = begin(shard, &repository, Some(&parent)).await?;
            shared(&mut run).listed = ListedPacks::new(1);
            for _ in 0..2 {
                let (outcome, _) = write_block(shard, &run, &noise(1)).await?;
                assert_eq!(outcome.counts.known_blocks, 1);
            }
            let mut run = begin(shard, &repository, Some(&parent)).await?;
            shared(&mut run).listed = ListedPacks::new(0);
            let beyond = write_block(shard, &run, &noise(1)).await;
            assert_eq!(beyond.map(drop).unwrap_err().kind(), Kind::Limit);
            Ok(())
        });
    }

    #[test]
    fn unchanged_leaves_are_known_however_few_nodes_are_remembered() {
        fixture::with_place(async |shard, url| {
            let repository = plain_repository(shard, url).await?;
            let extents = 10;
            let run = begin(shard, &repository, None).await?;
            let (outcome, nodes) = write_fragments(shard, &run, extents).await?;
            assert_eq!(outcome.counts.packs, 1);
            let bytes = extents * EXTENT_BYTES;
            let first = commit(shard, run, outcome, &nodes, bytes).await?;
            let parent = catalogue::load(shard, &repository, first.metadata.backup_id).await?;

            let mut run = begin(shard, &repository, Some(&parent)).await?;
            shared(&mut run).known_nodes_max = 4;
            let (outcome, nodes) = write_fragments(shard, &run, extents).await?;
            assert_eq!(outcome.counts.packs, 0);
            let second = commit(shard, run, outcome, &nodes, bytes).await?;
            assert_eq!(second.counts.packs, 0);
            let open = catalogue::load(shard, &repository, second.metadata.backup_id).await?;
            // The packs of the parent, as far as they are named: all of them.
            assert_eq!(open.manifest.packs.len(), 2);
            assert_eq!(open.manifest.packs, parent.manifest.packs);
            assert_eq!(open.manifest.pages, parent.manifest.pages);
            Ok(())
        });
    }
}
