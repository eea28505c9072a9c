//! Reading packs: directories, frames, blocks and map nodes, each checked before it is used.
//!
//! A reader belongs to one shard. It keeps a few open packs (their directories), which readers beside it use too, and a few
//! decoded frames, each under a byte budget, and reads ahead the frames that its caller is about to ask for.
//!
//! A pack is opened by its preamble and its tail, which the manifest says where to find: they are asked for at the same
//! time, so opening takes as long as one request does; a short pack is read whole by one. Several are opened in the time
//! of one.
//!
//! Frames ahead come in pieces, each of as many neighbouring frames as fit a buffer. Where a request costs something, one
//! brings a run of pieces.
//!
//! Invariants: pieces ahead never take more buffers than the reader was given, and a run is begun when there is room for
//! all of it, so that it is long; what a reader hands out has passed the frame's CRC, its seal, and the SHA-256 of each block or
//! node; a pack is opened only if its length, preamble, trailer and directory agree with the manifest that
//! names it.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mover_base::checksum::{Sha256, sha256, sha256_each};
use mover_base::{BLOCK_BYTES, Error, Kind, PackId, Result};
use mover_format::frame::{DIRECTORY_PLAIN_BYTES_MAX, FrameDecoder, FrameKind};
use mover_format::manifest::PackInfo;
use mover_format::node::NodeRef;
use mover_format::pack::{FrameEntry, PackDirectory, PackTrailer, TRAILER_BYTES};
use mover_format::preamble::{PREAMBLE_BYTES_MAX, Preamble};
use mover_format::seal::ObjectSealer;
use mover_io::Shard;
use mover_store::{Key, READ_BYTES_MAX, Reader, Slice};
use tokio::sync::oneshot;

use crate::layout;
use crate::open_packs::{DIRECTORIES_BYTES_MAX, DIRECTORY_BYTES_PER_BLOCK, OpenPacks};
use crate::repository::Repository;
use crate::timing::{StageSeconds, lap};

/// Packs that are opened at a time.
const OPENS_MAX: usize = 8;
/// Longest directory with its frame, and the trailer: more is refused before memory is taken for it.
const TAIL_BYTES_MAX: u64 = (DIRECTORY_PLAIN_BYTES_MAX + 64 + TRAILER_BYTES) as u64;
/// Longest pack that is opened by one request for all of it: so many bytes over a link cost less than a request.
const WHOLE_BYTES_MAX: u64 = 128 << 10;
/// Decoded frames that a reader keeps, at most 1 MiB each.
const FRAMES_MAX: usize = 4;
/// Decoded frames that the readers of a restore's files keep on all shards, but for [`FRAMES_MAX`] on each. Small files of several
/// databases share blocks, and with them some ten frames, each of which would be fetched and decoded again for every file.
pub(crate) const FRAMES_SHARED_MAX: usize = 32;
/// Fewest pieces under way ahead of the decoder, and the most where a piece is a read of its own.
pub const READS_AHEAD: usize = 6;
/// Runs into which the pieces ahead are divided: while one is used up, others are on their way.
const RUNS_AHEAD: usize = 3;

/// The packs that a backup needs, sorted by id, as its manifest lists them: 80 bytes each.
pub(crate) struct PackInfos(Vec<PackInfo>);

impl PackInfos {
    /// These packs.
    pub fn new(mut packs: Vec<PackInfo>) -> Self {
        if !packs.is_sorted_by_key(|pack| pack.id) {
            packs.sort_unstable_by_key(|pack| pack.id);
        }
        PackInfos(packs)
    }

    /// Which of them it is.
    pub fn number(&self, id: &PackId) -> Option<usize> {
        self.0.binary_search_by_key(id, |pack| pack.id).ok()
    }

    /// What is stated of a pack.
    pub fn get(&self, id: &PackId) -> Option<&PackInfo> {
        self.0.get(self.number(id)?)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them in order.
    pub fn iter(&self) -> std::slice::Iter<'_, PackInfo> {
        self.0.iter()
    }
}

/// An open pack.
pub(crate) struct OpenPack {
    pub info: PackInfo,
    pub key: Key,
    pub sealer: ObjectSealer,
    pub directory: PackDirectory,
    /// All of it, where it was read as a whole to be opened.
    whole: Option<Box<[u8]>>,
}

impl OpenPack {
    /// Memory that it takes, about.
    pub fn memory_bytes(&self) -> usize {
        let PackDirectory { hashes, frames, .. } = &self.directory;
        let whole = self.whole.as_ref().map_or(0, |whole| whole.len());
        hashes.len() * DIRECTORY_BYTES_PER_BLOCK + frames.len() * size_of::<FrameEntry>() + whole
    }

    /// A piece of it, if it was read as a whole.
    fn piece(&self, piece: &Piece) -> Option<Slice> {
        let from = piece.offset as usize;
        let bytes = self.whole.as_ref()?.get(from..from + piece.bytes)?;
        let mut slice = Slice::on_heap(bytes.len());
        slice.copy_from_slice(bytes);
        Some(slice)
    }

    fn damaged(&self, error: Error) -> Error {
        damaged(&self.key, error)
    }
}

/// Names the object and the remedy in an error about its content.
pub(crate) fn damaged(key: &Key, error: Error) -> Error {
    let error = error.object(key.as_str());
    if error.kind() == Kind::Corrupt {
        return error.hint(
            "the stored object is damaged: `helios-mover verify` lists the backups concerned; restore an older one, or copy the object back from a replica",
        );
    }
    error
}

/// One frame to come: a pack and the index of the frame in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameNeed {
    pub pack: PackId,
    pub frame: u32,
}

/// Neighbouring frames that are read into one piece of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    frames: Range<u32>,
    offset: u64,
    bytes: usize,
}

/// A piece on its way.
struct ReadAhead {
    pack: PackId,
    piece: Piece,
    slice: oneshot::Receiver<Slice>,
    /// Why it and those behind it in its run do not come; whoever asks first gets it.
    failure: Rc<RefCell<Option<Error>>>,
}

impl ReadAhead {
    fn brings(&self, need: FrameNeed) -> bool {
        self.pack == need.pack && self.piece.frames.contains(&need.frame)
    }

    async fn slice(self) -> Result<Slice> {
        self.slice.await.map_err(|_| {
            self.failure
                .borrow_mut()
                .take()
                .unwrap_or_else(|| Error::new(Kind::Internal, "a read ended without a result"))
        })
    }
}

/// A piece that was read.
struct Held {
    pack: PackId,
    piece: Piece,
    slice: Slice,
}

/// Reads packs for one shard.
pub struct PackReader {
    shard: Shard,
    repository: Arc<Repository>,
    store: Rc<Reader>,
    infos: Arc<PackInfos>,
    decoder: FrameDecoder,
    packs: Arc<OpenPacks>,
    /// Least recently used first; nodes and blocks alike.
    frames: VecDeque<(FrameNeed, Vec<u8>)>,
    frames_max: usize,
    ahead: VecDeque<ReadAhead>,
    needs: VecDeque<FrameNeed>,
    /// Pieces that may be under way where runs are worth it.
    pieces_ahead: usize,
    /// The announced piece that is being used up.
    current: Option<Held>,
    /// Where the time went.
    pub stages: StageSeconds,
    /// Bytes read from the store.
    pub read_bytes: u64,
}

impl PackReader {
    /// A reader over the packs in `infos`.
    pub(crate) fn new(shard: &Shard, repository: &Arc<Repository>, infos: &Arc<PackInfos>) -> Self {
        let store = Rc::new(repository.store().reader(shard));
        PackReader::sharing(store, shard, repository, infos)
    }

    /// The same with a reader of the store that others use too, and so with the files that it keeps open.
    pub(crate) fn sharing(
        store: Rc<Reader>,
        shard: &Shard,
        repository: &Arc<Repository>,
        infos: &Arc<PackInfos>,
    ) -> Self {
        PackReader {
            shard: shard.clone(),
            repository: repository.clone(),
            store,
            infos: infos.clone(),
            decoder: FrameDecoder::new(),
            packs: Arc::default(),
            frames: VecDeque::new(),
            frames_max: FRAMES_MAX,
            ahead: VecDeque::new(),
            needs: VecDeque::new(),
            pieces_ahead: READS_AHEAD,
            current: None,
            stages: StageSeconds::default(),
            read_bytes: 0,
        }
    }

    /// The same with so many pieces under way, which is what makes runs long.
    pub(crate) fn with_pieces_ahead(self, pieces: usize) -> Self {
        PackReader {
            pieces_ahead: pieces.max(READS_AHEAD),
            ..self
        }
    }

    /// The same with so many decoded frames kept, if it is more than usual.
    pub(crate) fn with_frames(self, frames: usize) -> Self {
        PackReader {
            frames_max: frames.max(FRAMES_MAX),
            ..self
        }
    }

    /// The same with these packs, which others have open too.
    pub(crate) fn with_packs(self, packs: &Arc<OpenPacks>) -> Self {
        PackReader {
            packs: packs.clone(),
            ..self
        }
    }

    /// A reader of the same packs on the same shard.
    pub(crate) fn beside(&self) -> Self {
        let store = self.store.clone();
        PackReader::sharing(store, &self.shard, &self.repository, &self.infos)
            .with_packs(&self.packs)
    }

    /// The shard that it belongs to.
    pub(crate) fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Opens a pack, or gives the one that is open.
    pub(crate) async fn open(&mut self, id: PackId) -> Result<Arc<OpenPack>> {
        let place = self.packs.place(id);
        if let Some(pack) = place.get() {
            return Ok(pack.clone());
        }
        let open = async || self.open_once(id).await.map(Arc::new);
        let pack = place.get_or_try_init(open).await?.clone();
        self.packs.trim();
        Ok(pack)
    }

    /// Opens those of these packs that are not open, several at a time; of many only the first, since they would not be kept.
    pub(crate) async fn open_all(&mut self, ids: &[PackId]) -> Result<()> {
        if let [id] = ids[..] {
            return self.open(id).await.map(drop);
        }
        let mut room = DIRECTORIES_BYTES_MAX / 2;
        let mut closed: Vec<PackId> = Vec::new();
        let mut seen = HashSet::new();
        for &id in ids.iter().filter(|id| seen.insert(**id)) {
            let blocks = self.infos.get(&id).map_or(0, |info| info.blocks as usize);
            match room.checked_sub(blocks * DIRECTORY_BYTES_PER_BLOCK) {
                Some(left) => room = left,
                None => break,
            }
            if !self.packs.is_open(id) {
                closed.push(id);
            }
        }
        if let [id] = closed[..] {
            return self.open(id).await.map(drop);
        }
        for some in closed.chunks(OPENS_MAX) {
            let open = |id| {
                let mut reader = self.beside();
                let opening = async move { reader.open(id).await.map(|_| reader.read_bytes) };
                self.shard.spawn(opening)
            };
            let openings: Vec<_> = some.iter().map(|&id| open(id)).collect();
            for opening in openings {
                self.read_bytes += opening.await.map_err(|error| {
                    Error::new(Kind::Internal, "opening a pack ended without a result").cause(error)
                })??;
            }
        }
        Ok(())
    }

    async fn open_once(&mut self, id: PackId) -> Result<OpenPack> {
        let info = self.infos.get(&id).copied().ok_or_else(|| {
            Error::new(
                Kind::Corrupt,
                "a map points into a pack that the manifest does not list",
            )
            .object(id.to_string())
        })?;
        let key = layout::pack(id)?;
        let opened = open_pack(
            &self.repository,
            &self.store,
            &info,
            &key,
            &mut self.decoder,
        )
        .await;
        let pack = opened.map_err(|error| missing(&key, error))?;
        self.read_bytes += match &pack.whole {
            Some(whole) => whole.len() as u64,
            None => u64::from(pack.info.directory_bytes),
        };
        Ok(pack)
    }

    /// The SHA-256 of each of `count` blocks.
    pub(crate) async fn hashes(
        &mut self,
        pack: PackId,
        ordinal: u32,
        count: usize,
    ) -> Result<Vec<Sha256>> {
        let pack = self.open(pack).await?;
        let hashes = pack.directory.hashes.get(ordinal as usize..);
        hashes
            .and_then(|hashes| hashes.get(..count))
            .map(<[Sha256]>::to_vec)
            .ok_or_else(|| no_block(&pack))
    }

    /// Announces frames that will be asked for, in order, behind those that were announced before. One that is kept, or was
    /// announced a moment ago, will still be at hand when it is wanted again, if not too many come before.
    pub(crate) async fn announce(
        &mut self,
        needs: impl IntoIterator<Item = FrameNeed>,
    ) -> Result<()> {
        let before: usize = self.ahead.iter().map(|read| read.piece.frames.len()).sum();
        for need in needs {
            let lasts = before + self.needs.len() < self.frames_max;
            let is_kept = lasts && self.is_kept(need);
            let mut reads = self.ahead.iter().rev().take(self.frames_max);
            let mut latest = self.needs.iter().rev().take(self.frames_max);
            if !is_kept
                && !reads.any(|read| read.brings(need))
                && !latest.any(|named| *named == need)
            {
                self.needs.push_back(need);
            }
        }
        self.read_ahead().await
    }

    /// Whether a decoded frame is kept.
    fn is_kept(&self, need: FrameNeed) -> bool {
        self.frames.iter().any(|(kept, _)| *kept == need)
    }

    /// Where the frame is among what was announced. Where it is the next or nearly so to get room, all that is under way was
    /// announced before it, and nobody asked for that, since it was kept: it makes room. One further behind is wanted there, too,
    /// and what comes before it is still to be asked for.
    async fn announced(&mut self, need: FrameNeed) -> Result<Option<usize>> {
        let of = |ahead: &VecDeque<ReadAhead>| ahead.iter().position(|read| read.brings(need));
        if let Some(at) = of(&self.ahead) {
            return Ok(Some(at));
        }
        let mut next = self.needs.iter().take(self.frames_max);
        let Some(at) = next.position(|named| *named == need) else {
            return Ok(None);
        };
        self.needs.drain(..at);
        self.pass_over(self.ahead.len());
        self.read_ahead().await?;
        Ok(of(&self.ahead))
    }

    /// Gives up so many pieces that were announced in vain.
    fn pass_over(&mut self, pieces: usize) {
        let vain = self.ahead.drain(..pieces);
        self.read_bytes += vain.map(|read| read.piece.bytes as u64).sum::<u64>();
    }

    /// Keeps the reads going. A run waits until there is room for all of it.
    async fn read_ahead(&mut self) -> Result<()> {
        while let Some(first) = self.needs.front() {
            let (pieces_max, pieces_ahead, bytes_max) = self.run_bounds();
            if self.ahead.len() >= pieces_ahead {
                return Ok(());
            }
            let pack = self.open(first.pack).await?;
            let of_pack = self.needs.iter();
            let of_pack = of_pack.take_while(|need| need.pack == pack.info.id);
            let wanted = of_pack.map(|need| need.frame);
            let run = next_run(&pack.directory.frames, wanted, pieces_max, bytes_max)
                .ok_or_else(|| no_block(&pack))?;
            if self.ahead.len() + run.len() > pieces_ahead {
                return Ok(());
            }
            let frames: usize = run.iter().map(|piece| piece.frames.len()).sum();
            self.needs.drain(..frames);
            self.start_read(&pack, run);
        }
        Ok(())
    }

    /// How many pieces a run may have, how many may be under way, and how many bytes a run may have.
    fn run_bounds(&self) -> (usize, usize, u64) {
        let bytes_max = self.store.run_bytes_max();
        match bytes_max > READ_BYTES_MAX as u64 {
            true => (self.pieces_ahead / RUNS_AHEAD, self.pieces_ahead, bytes_max),
            false => (1, READS_AHEAD, bytes_max),
        }
    }

    /// Begins to read a run: its pieces are ahead now.
    fn start_read(&mut self, pack: &OpenPack, run: Vec<Piece>) {
        let Some(offset) = run.first().map(|piece| piece.offset) else {
            return;
        };
        let whole: Option<Vec<Slice>> = run.iter().map(|piece| pack.piece(piece)).collect();
        let (store, key) = (self.store.clone(), pack.key.clone());
        let lens: Vec<usize> = run.iter().map(|piece| piece.bytes).collect();
        let failure = Rc::new(RefCell::new(None));
        let mut senders = VecDeque::with_capacity(run.len());
        for piece in run {
            let (sender, slice) = oneshot::channel();
            senders.push_back(sender);
            self.ahead.push_back(ReadAhead {
                pack: pack.info.id,
                piece,
                slice,
                failure: failure.clone(),
            });
        }
        if let Some(slices) = whole {
            for (sender, slice) in senders.into_iter().zip(slices) {
                // Its receiver is ahead.
                let _ = sender.send(slice);
            }
            return;
        }
        self.shard.spawn(async move {
            let mut take = |slice| {
                // Who announced a frame in vain does not wait for it.
                let _ = senders.pop_front().map(|sender| sender.send(slice));
            };
            if let Err(error) = store.read_run(&key, offset, &lens, &mut take).await {
                // Before the senders go, which tells.
                failure.replace(Some(error));
            }
        });
    }

    /// Brings the piece that holds a frame: into `current` if it was announced, else by a read of its own, and then the piece
    /// is given back. It takes the buffer that a directory would, until the frame is decoded.
    async fn stored_frame(&mut self, pack: &Arc<OpenPack>, frame: u32) -> Result<Option<Held>> {
        let holds = |id: PackId, piece: &Piece| id == pack.info.id && piece.frames.contains(&frame);
        let is_held = |held: &Held| holds(held.pack, &held.piece);
        if self.current.as_ref().is_some_and(is_held) {
            return Ok(None);
        }
        let mut aside = None;
        let clock = Instant::now();
        // What was announced comes in order; a piece that is not for this frame was announced in vain.
        let need = FrameNeed {
            pack: pack.info.id,
            frame,
        };
        match self.announced(need).await? {
            Some(at) => {
                self.current = None;
                self.pass_over(at);
                if let Some(ahead) = self.ahead.pop_front() {
                    self.read_ahead().await?;
                    self.current = Some(self.held(pack, ahead).await?);
                }
            }
            None => {
                let piece =
                    piece_of(&pack.directory.frames, frame).ok_or_else(|| no_block(pack))?;
                let slice = match pack.piece(&piece) {
                    Some(slice) => slice,
                    None => {
                        let read = read_piece(&self.store, &pack.key, piece.offset, piece.bytes);
                        let slice = read.await.map_err(|error| missing(&pack.key, error))?;
                        self.read_bytes += piece.bytes as u64;
                        slice
                    }
                };
                aside = Some(Held {
                    pack: pack.info.id,
                    piece,
                    slice,
                });
            }
        }
        lap(&mut self.stages.read_wait, clock);
        Ok(aside)
    }

    /// Waits for a piece.
    async fn held(&mut self, pack: &OpenPack, ahead: ReadAhead) -> Result<Held> {
        let (id, piece) = (ahead.pack, ahead.piece.clone());
        let slice = ahead.slice().await;
        let slice = slice.map_err(|error| missing(&pack.key, error))?;
        if pack.whole.is_none() {
            self.read_bytes += piece.bytes as u64;
        }
        Ok(Held {
            pack: id,
            piece,
            slice,
        })
    }

    /// Opens a frame into `plain` and returns its plain length.
    async fn frame_into(
        &mut self,
        pack: &Arc<OpenPack>,
        frame: u32,
        plain: &mut [u8],
    ) -> Result<usize> {
        let aside = self.stored_frame(pack, frame).await?;
        let entry = pack
            .directory
            .frames
            .get(frame as usize)
            .copied()
            .ok_or_else(|| no_block(pack))?;
        let Some(held) = aside.as_ref().or(self.current.as_ref()) else {
            return Err(Error::new(Kind::Internal, "a frame was not read"));
        };
        let at = (entry.offset - held.piece.offset) as usize;
        let stored = held
            .slice
            .get(at..at + entry.stored_bytes as usize)
            .ok_or_else(|| Error::new(Kind::Internal, "a frame lies outside what was read"))?;
        let kind = if pack.directory.hashes.is_empty() {
            FrameKind::Nodes
        } else {
            FrameKind::Blocks
        };
        let clock = Instant::now();
        let bytes = self
            .decoder
            .open(&pack.sealer, frame, kind, stored, plain)
            .map_err(|error| pack.damaged(error))?;
        lap(&mut self.stages.decode, clock);
        if bytes != entry.plain_bytes as usize {
            return Err(pack.damaged(Error::new(
                Kind::Corrupt,
                format!("frame {frame} has another length than the directory states"),
            )));
        }
        Ok(bytes)
    }

    /// Copies `out.len() / 4096` blocks from `ordinal` on into `out`, each checked against its SHA-256.
    pub(crate) async fn blocks(&mut self, id: PackId, ordinal: u32, out: &mut [u8]) -> Result<()> {
        let pack = self.open(id).await?;
        let mut ordinal = ordinal;
        let mut rest = out;
        while !rest.is_empty() {
            let (frame, slot) = pack
                .directory
                .frame_of(ordinal)
                .ok_or_else(|| no_block(&pack))?;
            let blocks = pack.directory.frames[frame].blocks() as usize;
            let count = (blocks - slot).min(rest.len() / BLOCK_BYTES);
            let (now, later) = rest.split_at_mut(count * BLOCK_BYTES);
            let need = FrameNeed {
                pack: id,
                frame: frame as u32,
            };
            if slot == 0 && count == blocks && !self.is_kept(need) {
                self.frame_into(&pack, frame as u32, now).await?;
            } else {
                let at = slot * BLOCK_BYTES;
                let plain = self.cached_frame(&pack, frame as u32).await?;
                now.copy_from_slice(&plain[at..at + count * BLOCK_BYTES]);
            }
            self.check_blocks(&pack, ordinal, now)?;
            ordinal += count as u32;
            rest = later;
        }
        Ok(())
    }

    /// Opens a frame into `plain` and checks its blocks, if it holds blocks.
    pub(crate) async fn check_frame(
        &mut self,
        pack: &Arc<OpenPack>,
        frame: u32,
        plain: &mut [u8],
    ) -> Result<()> {
        let bytes = self.frame_into(pack, frame, plain).await?;
        if pack.directory.hashes.is_empty() {
            return Ok(());
        }
        let first = pack
            .directory
            .frames
            .get(frame as usize)
            .map_or(0, |entry| entry.first_block);
        self.check_blocks(pack, first, &plain[..bytes])
    }

    fn check_blocks(&mut self, pack: &OpenPack, ordinal: u32, blocks: &[u8]) -> Result<()> {
        let clock = Instant::now();
        let blocks: Vec<&[u8]> = blocks.chunks_exact(BLOCK_BYTES).collect();
        let digests = sha256_each(&blocks)?;
        for (at, (block, digest)) in (ordinal as usize..).zip(blocks.iter().zip(&digests)) {
            let stated = pack.directory.hashes.get(at);
            // Before a block is called damaged it is looked at alone.
            if stated != Some(digest) && stated != Some(&sha256(block)) {
                return Err(pack.damaged(Error::new(
                    Kind::Corrupt,
                    format!("block {at} does not match its SHA-256"),
                )));
            }
        }
        lap(&mut self.stages.hash, clock);
        Ok(())
    }

    /// A decoded frame, kept for the next caller.
    async fn cached_frame(&mut self, pack: &Arc<OpenPack>, frame: u32) -> Result<&[u8]> {
        let need = FrameNeed {
            pack: pack.info.id,
            frame,
        };
        let kept = self.frames.iter().position(|(kept, _)| *kept == need);
        let entry = match kept.and_then(|at| self.frames.remove(at)) {
            Some(entry) => entry,
            None => {
                let mut plain = match self.frames.len() >= self.frames_max {
                    true => self.frames.pop_front().map(|(_, plain)| plain),
                    false => None,
                }
                .unwrap_or_default();
                let stated = pack.directory.frames.get(frame as usize);
                let bytes = stated.map_or(0, |entry| entry.plain_bytes as usize);
                plain.resize(bytes, 0);
                let bytes = self.frame_into(pack, frame, &mut plain).await?;
                plain.truncate(bytes);
                (need, plain)
            }
        };
        self.frames.push_back(entry);
        self.frames
            .back()
            .map(|(_, plain)| plain.as_slice())
            .ok_or_else(|| Error::new(Kind::Internal, "a decoded frame was lost"))
    }

    /// Reads a map node and checks it against the hash in its reference.
    pub(crate) async fn node(&mut self, node: &NodeRef) -> Result<Vec<u8>> {
        let pack = self.open(node.pack).await?;
        let plain = self.cached_frame(&pack, node.frame).await?;
        node.slice(plain)
            .map(<[u8]>::to_vec)
            .map_err(|error| pack.damaged(error))
    }

    /// The frames that hold `count` blocks from `ordinal` on.
    pub(crate) async fn frames_of(
        &mut self,
        id: PackId,
        ordinal: u32,
        count: u32,
    ) -> Result<std::ops::RangeInclusive<u32>> {
        let pack = self.open(id).await?;
        let first = pack
            .directory
            .frame_of(ordinal)
            .ok_or_else(|| no_block(&pack))?;
        let last = ordinal
            .checked_add(count.saturating_sub(1))
            .and_then(|last| pack.directory.frame_of(last))
            .ok_or_else(|| no_block(&pack))?;
        Ok(first.0 as u32..=last.0 as u32)
    }
}

fn no_block(pack: &OpenPack) -> Error {
    pack.damaged(Error::new(
        Kind::Corrupt,
        "a map points behind the end of a pack",
    ))
}

fn missing(key: &Key, error: Error) -> Error {
    if error.is_absence() {
        return damaged(
            key,
            Error::new(Kind::Corrupt, "an object that the backup needs is missing"),
        );
    }
    damaged(key, error)
}

/// Where a frame lies, if there is one of that number.
fn piece_of(frames: &[FrameEntry], frame: u32) -> Option<Piece> {
    let entry = frames.get(frame as usize)?;
    Some(Piece {
        frames: frame..frame + 1,
        offset: entry.offset,
        bytes: entry.stored_bytes as usize,
    })
}

/// The first of the wanted frames that are neighbours, in pieces that fit a buffer; a frame that does not fit is a piece
/// of its own. None where one is wanted that the pack does not have.
fn next_run(
    frames: &[FrameEntry],
    wanted: impl Iterator<Item = u32>,
    pieces_max: usize,
    bytes_max: u64,
) -> Option<Vec<Piece>> {
    let mut run: Vec<Piece> = Vec::new();
    let mut run_bytes = 0;
    for frame in wanted {
        let next = piece_of(frames, frame)?;
        run_bytes += next.bytes as u64;
        let is_full = run.len() >= pieces_max;
        match run.last_mut() {
            None => run.push(next),
            Some(last) if last.frames.end != frame || run_bytes > bytes_max => break,
            Some(last) if last.bytes + next.bytes <= READ_BYTES_MAX => {
                last.frames.end = next.frames.end;
                last.bytes += next.bytes;
            }
            Some(_) if is_full => break,
            Some(_) => run.push(next),
        }
    }
    Some(run)
}

/// Reads a piece by itself.
pub(crate) async fn read_piece(
    store: &Reader,
    key: &Key,
    offset: u64,
    bytes: usize,
) -> Result<Slice> {
    let mut piece = None;
    let mut take = |slice| piece = Some(slice);
    store.read_run(key, offset, &[bytes], &mut take).await?;
    piece.ok_or_else(|| Error::new(Kind::Internal, "a read ended without a result"))
}

/// What a pack is opened by.
struct Ends {
    preamble: Preamble,
    preamble_bytes: usize,
    /// Directory and trailer.
    tail: Vec<u8>,
    /// The whole pack, if it is short.
    whole: Option<Box<[u8]>>,
}

/// Reads the ends of a pack. Neither keeps a buffer while the other is waited for, so packs that are opened at the same time
/// cannot wait for each other.
async fn ends(store: &Reader, key: &Key, info: &PackInfo, tail_bytes: usize) -> Result<Ends> {
    let read = async |offset, bytes| read_piece(store, key, offset, bytes).await;
    if info.bytes <= WHOLE_BYTES_MAX {
        let whole = read(0, info.bytes as usize).await?;
        let (preamble, preamble_bytes) = Preamble::decode(&whole)?;
        let (_, tail) = whole.split_at(info.directory_offset as usize);
        return Ok(Ends {
            preamble,
            preamble_bytes,
            tail: tail.to_vec(),
            whole: Some(whole[..].into()),
        });
    }
    let head_bytes = (PREAMBLE_BYTES_MAX as u64).min(info.bytes) as usize;
    let head = async { Preamble::decode(&read(0, head_bytes).await?) };
    let tail = async { Ok(read(info.directory_offset, tail_bytes).await?.to_vec()) };
    let (head, tail) = tokio::join!(head, tail);
    let ((preamble, preamble_bytes), tail) = (head?, tail?);
    Ok(Ends {
        preamble,
        preamble_bytes,
        tail,
        whole: None,
    })
}

/// Opens a pack: preamble, trailer and directory, each checked against the others and against `info`.
pub(crate) async fn open_pack(
    repository: &Repository,
    store: &Reader,
    info: &PackInfo,
    key: &Key,
    decoder: &mut FrameDecoder,
) -> Result<OpenPack> {
    let tail_bytes = info
        .bytes
        .checked_sub(info.directory_offset)
        .filter(|bytes| *bytes == u64::from(info.directory_bytes) + TRAILER_BYTES as u64)
        .filter(|bytes| *bytes <= TAIL_BYTES_MAX)
        .ok_or_else(|| {
            Error::new(
                Kind::Corrupt,
                "the manifest states lengths of a pack that contradict each other",
            )
        })?;
    let object_type = info.object_type;
    let Ends {
        preamble,
        preamble_bytes,
        tail,
        whole,
    } = ends(store, key, info, tail_bytes as usize).await?;
    let (sealer, _) = repository.open_object(&preamble, object_type, info.id.0)?;
    let (directory, trailer) = tail.split_at(tail.len() - TRAILER_BYTES);
    let trailer = PackTrailer::decode(object_type, trailer, info.bytes)?;
    if trailer.directory_offset != info.directory_offset {
        return Err(Error::new(
            Kind::Corrupt,
            "the pack's trailer contradicts the manifest",
        ));
    }
    info.check_directory(directory)?;
    let piece = trailer.directory_piece;
    let plain = decoder.open_vec(
        &sealer,
        piece,
        FrameKind::Directory,
        directory,
        DIRECTORY_PLAIN_BYTES_MAX,
    )?;
    let directory = PackDirectory::decode(object_type, &plain)?;
    if directory.frames.len() != piece as usize {
        return Err(Error::new(
            Kind::Corrupt,
            "the pack's trailer contradicts its directory",
        ));
    }
    directory.check_span(preamble_bytes, info.directory_offset)?;
    if directory.hashes.len() as u32 != info.blocks {
        return Err(Error::new(
            Kind::Corrupt,
            "the pack's block count contradicts the manifest",
        ));
    }
    Ok(OpenPack {
        info: *info,
        key: key.clone(),
        sealer,
        directory,
        whole,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Frames of these lengths, one behind the other.
    fn frames(lens: &[u32]) -> Vec<FrameEntry> {
        let mut offset = 100;
        let entry = |&stored_bytes| {
            let entry = FrameEntry {
                offset,
                stored_bytes,
                plain_bytes: 0,
                first_block: 0,
            };
            offset = entry.end();
            entry
        };
        lens.iter().map(entry).collect()
    }

    #[test]
    fn a_pack_is_found_by_its_id_and_takes_80_bytes() {
        let info = |number: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_le_bytes());
            PackInfo {
                id: PackId(id),
                object_type: mover_format::preamble::ObjectType::DataPack,
                bytes: u64::from(number),
                directory_offset: 0,
                directory_bytes: 0,
                blocks: 0,
                directory_sha256: [0; 32],
            }
        };
        let infos = PackInfos::new((0..100_000).map(|number| info(2 * number)).collect());
        assert!(infos.0.capacity() * size_of::<PackInfo>() <= 80 * 100_000);
        for number in [0, 2, 1000, 131_072, 199_998] {
            let found = infos.get(&info(number).id);
            assert_eq!(found, Some(&info(number)));
            assert_eq!(infos.get(&info(number + 1).id), None);
        }
    }

    fn run(lens: &[u32], wanted: &[u32], pieces_max: usize, bytes_max: u64) -> Vec<(u32, u32)> {
        let wanted = wanted.iter().copied();
        let run = next_run(&frames(lens), wanted, pieces_max, bytes_max).unwrap();
        run.iter()
            .map(|piece| (piece.frames.start, piece.frames.end))
            .collect()
    }

    #[test]
    fn neighbours_share_a_piece_and_pieces_a_run() {
        const HALF: u32 = READ_BYTES_MAX as u32 / 2;
        let lens = [HALF, HALF, HALF, 3 * HALF, 10];
        let all = [0, 1, 2, 3, 4];
        let pieces = [(0, 2), (2, 3), (3, 4), (4, 5)];
        assert_eq!(run(&lens, &all, 9, u64::MAX), pieces);
        assert_eq!(run(&lens, &all, 2, u64::MAX), pieces[..2]);
        assert_eq!(run(&lens, &all, 9, u64::from(3 * HALF)), pieces[..2]);
        // What is longer than all bounds is read nevertheless.
        assert_eq!(run(&lens, &all[3..], 9, 10), [(3, 4)]);
        assert_eq!(run(&lens, &[0, 2], 9, u64::MAX), [(0, 1)]);
        assert_eq!(run(&lens, &[2, 1], 9, u64::MAX), [(2, 3)]);
        assert_eq!(
            next_run(&frames(&lens), [4, 5].into_iter(), 9, u64::MAX),
            None
        );
    }

    proptest! {
        #[test]
        fn a_run_is_what_is_wanted_next_within_its_bounds(
            lens in proptest::collection::vec(1..3 * READ_BYTES_MAX as u32 / 2, 1..40),
            wanted in proptest::collection::vec(0..40_u32, 1..40),
            from in 0..40_u32,
            pieces_max in 1..12_usize,
            bytes_max in 1..16_u64 << 20,
        ) {
            // Mostly neighbours, as restores want them.
            let count = lens.len() as u32;
            let near = (from % count..count).chain(wanted.into_iter().map(|frame| frame % count));
            let wanted: Vec<u32> = near.collect();
            let frames = frames(&lens);
            let run = next_run(&frames, wanted.iter().copied(), pieces_max, bytes_max).unwrap();
            let brought: Vec<u32> = run.iter().flat_map(|piece| piece.frames.clone()).collect();
            prop_assert!(!run.is_empty() && run.len() <= pieces_max);
            prop_assert_eq!(&brought[..], &wanted[..brought.len()]);
            let mut at = run[0].offset;
            for piece in &run {
                prop_assert_eq!(piece.offset, at);
                at += piece.bytes as u64;
                prop_assert_eq!(at, frames[piece.frames.end as usize - 1].end());
                prop_assert!(piece.bytes <= READ_BYTES_MAX || piece.frames.len() == 1);
            }
            prop_assert!(at - run[0].offset <= bytes_max || brought.len() == 1);
        }
    }
}
