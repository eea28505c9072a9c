//! Reading packs: directories, frames, blocks and map nodes, each checked before it is used.
//!
//! A reader belongs to one shard. It keeps a few open packs (their directories) and a few decoded frames, each
//! under a byte budget, and reads ahead the frames that its caller is about to ask for.
//!
//! Invariants: what a reader hands out has passed the frame's CRC, its seal, and the SHA-256 of each block or
//! node; a pack is opened only if its length, preamble, trailer and directory agree with the manifest that
//! names it.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mover_base::checksum::{Sha256, sha256};
use mover_base::{BLOCK_BYTES, Error, Kind, PackId, Result};
use mover_format::frame::{
    DIRECTORY_PLAIN_BYTES_MAX, FRAME_PLAIN_BYTES_MAX, FrameDecoder, FrameKind,
};
use mover_format::manifest::PackInfo;
use mover_format::node::NodeRef;
use mover_format::pack::{PackDirectory, PackTrailer, TRAILER_BYTES};
use mover_format::preamble::{PREAMBLE_BYTES_MAX, Preamble};
use mover_format::seal::ObjectSealer;
use mover_io::Shard;
use mover_store::{Key, READ_BYTES_MAX, Reader, Slice};
use tokio::task::JoinHandle;

use crate::layout;
use crate::repository::Repository;
use crate::timing::{StageSeconds, lap};

/// Bytes of directories that a reader keeps (each at most 3 MiB; about 1 MiB for a pack of easy pages).
const DIRECTORIES_BYTES_MAX: usize = 8 << 20;
/// Longest directory with its frame, and the trailer: more is refused before memory is taken for it.
const TAIL_BYTES_MAX: u64 = (DIRECTORY_PLAIN_BYTES_MAX + 64 + TRAILER_BYTES) as u64;
/// Decoded frames that a reader keeps, at most 1 MiB each.
pub(crate) const FRAMES_MAX: usize = 4;
/// Ranged reads under way ahead of the decoder.
pub const READS_AHEAD: usize = 6;

/// The packs that a backup needs, by id.
pub(crate) type PackInfos = HashMap<PackId, PackInfo>;

/// An open pack.
pub(crate) struct OpenPack {
    pub info: PackInfo,
    pub key: Key,
    pub sealer: ObjectSealer,
    pub directory: PackDirectory,
}

impl OpenPack {
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

/// Frames that one ranged read brings.
struct ReadAhead {
    pack: PackId,
    frames: std::ops::Range<u32>,
    offset: u64,
    read: JoinHandle<Result<Span>>,
}

/// Frames that were read.
struct Held {
    pack: PackId,
    frames: std::ops::Range<u32>,
    offset: u64,
    span: Span,
}

/// Reads packs for one shard.
pub struct PackReader {
    shard: Shard,
    repository: Arc<Repository>,
    store: Rc<Reader>,
    infos: Arc<PackInfos>,
    decoder: FrameDecoder,
    /// Least recently used first.
    packs: VecDeque<Rc<OpenPack>>,
    /// Least recently used first; nodes and blocks alike.
    frames: VecDeque<(FrameNeed, Vec<u8>)>,
    ahead: VecDeque<ReadAhead>,
    needs: VecDeque<FrameNeed>,
    /// The announced read that is being used up.
    current: Option<Held>,
    /// A frame that was not announced, until it is decoded. It takes the buffer that a directory would.
    aside: Option<Held>,
    /// Where the time went.
    pub stages: StageSeconds,
    /// Bytes read from the store.
    pub read_bytes: u64,
}

impl PackReader {
    /// A reader over the packs in `infos`.
    pub(crate) fn new(shard: &Shard, repository: &Arc<Repository>, infos: &Arc<PackInfos>) -> Self {
        PackReader {
            shard: shard.clone(),
            repository: repository.clone(),
            store: Rc::new(repository.store().reader(shard)),
            infos: infos.clone(),
            decoder: FrameDecoder::new(),
            packs: VecDeque::new(),
            frames: VecDeque::new(),
            ahead: VecDeque::new(),
            needs: VecDeque::new(),
            current: None,
            aside: None,
            stages: StageSeconds::default(),
            read_bytes: 0,
        }
    }

    /// Opens a pack, or gives the one that is open.
    pub(crate) async fn open(&mut self, id: PackId) -> Result<Rc<OpenPack>> {
        let kept = self.packs.iter().rposition(|pack| pack.info.id == id);
        if let Some(pack) = kept.and_then(|at| self.packs.remove(at)) {
            self.packs.push_back(pack.clone());
            return Ok(pack);
        }
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
        let pack = Rc::new(opened.map_err(|error| missing(&key, error))?);
        self.read_bytes += u64::from(pack.info.directory_bytes);
        self.packs.push_back(pack.clone());
        let size = |pack: &Rc<OpenPack>| {
            pack.directory.hashes.len() * 32 + pack.directory.frames.len() * 24
        };
        while self.packs.len() > 1
            && self.packs.iter().map(size).sum::<usize>() > DIRECTORIES_BYTES_MAX
        {
            self.packs.pop_front();
        }
        Ok(pack)
    }

    /// The SHA-256 of a block.
    pub(crate) async fn block_hash(&mut self, pack: PackId, ordinal: u32) -> Result<Sha256> {
        let pack = self.open(pack).await?;
        pack.directory
            .hashes
            .get(ordinal as usize)
            .copied()
            .ok_or_else(|| no_block(&pack))
    }

    /// Announces frames that will be asked for, in order, behind those that were announced before. One that is kept,
    /// or was announced a moment ago, will still be at hand when it is wanted again.
    pub(crate) async fn announce(
        &mut self,
        needs: impl IntoIterator<Item = FrameNeed>,
    ) -> Result<()> {
        for need in needs {
            let is_kept = self.frames.iter().any(|(kept, _)| *kept == need);
            let is_read = self
                .ahead
                .back()
                .is_some_and(|ahead| ahead.pack == need.pack && ahead.frames.contains(&need.frame));
            let mut latest = self.needs.iter().rev().take(FRAMES_MAX);
            if !is_kept && !is_read && !latest.any(|named| *named == need) {
                self.needs.push_back(need);
            }
        }
        self.read_ahead().await
    }

    /// Keeps the ranged reads going: neighbouring frames in one read.
    async fn read_ahead(&mut self) -> Result<()> {
        while self.ahead.len() < READS_AHEAD {
            let Some(first) = self.needs.pop_front() else {
                return Ok(());
            };
            let pack = self.open(first.pack).await?;
            let entry = |frame: u32| {
                pack.directory
                    .frames
                    .get(frame as usize)
                    .copied()
                    .ok_or_else(|| no_block(&pack))
            };
            let begin = entry(first.frame)?.offset;
            let mut end = entry(first.frame)?.end();
            let mut after = first.frame + 1;
            while let Some(next) = self.needs.front() {
                if next.pack != first.pack || next.frame != after {
                    break;
                }
                let next_end = entry(next.frame)?.end();
                if next_end - begin > READ_BYTES_MAX as u64 {
                    break;
                }
                end = next_end;
                after += 1;
                self.needs.pop_front();
            }
            let read = self.start_read(&pack, first.frame..after, begin, end);
            self.ahead.push_back(read);
        }
        Ok(())
    }

    fn start_read(
        &mut self,
        pack: &Rc<OpenPack>,
        frames: std::ops::Range<u32>,
        begin: u64,
        end: u64,
    ) -> ReadAhead {
        let (store, key) = (self.store.clone(), pack.key.clone());
        let bytes = (end - begin) as usize;
        self.read_bytes += end - begin;
        let read = self
            .shard
            .spawn(async move { read_span(&store, &key, begin, bytes).await });
        ReadAhead {
            pack: pack.info.id,
            frames,
            offset: begin,
            read,
        }
    }

    /// The slice that holds a frame: from the reads ahead if it was announced, else by a read of its own.
    async fn stored_frame(&mut self, pack: &Rc<OpenPack>, frame: u32) -> Result<()> {
        let holds = |id: PackId, frames: &std::ops::Range<u32>| {
            id == pack.info.id && frames.contains(&frame)
        };
        let is_held = |held: &Held| holds(held.pack, &held.frames);
        if self.current.as_ref().is_some_and(is_held) {
            return Ok(());
        }
        let clock = Instant::now();
        // What was announced comes in order; a read that is not for this frame was announced in vain.
        let announced = self
            .ahead
            .iter()
            .position(|ahead| holds(ahead.pack, &ahead.frames));
        let ahead = match announced {
            Some(at) => {
                self.current = None;
                self.ahead.drain(..at);
                self.ahead.pop_front()
            }
            None => None,
        };
        let is_announced = ahead.is_some();
        let ahead = match ahead {
            Some(ahead) => ahead,
            None => {
                let entry = pack
                    .directory
                    .frames
                    .get(frame as usize)
                    .copied()
                    .ok_or_else(|| no_block(pack))?;
                self.start_read(pack, frame..frame + 1, entry.offset, entry.end())
            }
        };
        if is_announced {
            self.read_ahead().await?;
        }
        let slice = ahead
            .read
            .await
            .map_err(|error| {
                Error::new(Kind::Internal, "a read ended without a result").cause(error)
            })?
            .map_err(|error| missing(&pack.key, error))?;
        lap(&mut self.stages.read_wait, clock);
        let held = Held {
            pack: ahead.pack,
            frames: ahead.frames,
            offset: ahead.offset,
            span: slice,
        };
        match is_announced {
            true => self.current = Some(held),
            false => self.aside = Some(held),
        }
        Ok(())
    }

    /// Opens a frame into `plain` and returns its plain length.
    async fn frame_into(
        &mut self,
        pack: &Rc<OpenPack>,
        frame: u32,
        plain: &mut [u8],
    ) -> Result<usize> {
        self.stored_frame(pack, frame).await?;
        let entry = pack
            .directory
            .frames
            .get(frame as usize)
            .copied()
            .ok_or_else(|| no_block(pack))?;
        let aside = self.aside.take();
        let Some(held) = aside.as_ref().or(self.current.as_ref()) else {
            return Err(Error::new(Kind::Internal, "a frame was not read"));
        };
        let at = (entry.offset - held.offset) as usize;
        let stored = held
            .span
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
            if slot == 0 && count == blocks {
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
        pack: &Rc<OpenPack>,
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
        for (at, block) in (ordinal as usize..).zip(blocks.chunks_exact(BLOCK_BYTES)) {
            if pack.directory.hashes.get(at) != Some(&sha256(block)) {
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
    async fn cached_frame(&mut self, pack: &Rc<OpenPack>, frame: u32) -> Result<&[u8]> {
        let need = FrameNeed {
            pack: pack.info.id,
            frame,
        };
        let kept = self.frames.iter().position(|(kept, _)| *kept == need);
        let entry = match kept.and_then(|at| self.frames.remove(at)) {
            Some(entry) => entry,
            None => {
                let mut plain = match self.frames.len() {
                    FRAMES_MAX.. => self
                        .frames
                        .pop_front()
                        .map(|(_, plain)| plain)
                        .unwrap_or_default(),
                    _ => Vec::new(),
                };
                plain.resize(FRAME_PLAIN_BYTES_MAX, 0);
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
    if error.kind() == Kind::NotFound {
        return damaged(
            key,
            Error::new(Kind::Corrupt, "an object that the backup needs is missing"),
        );
    }
    damaged(key, error)
}

/// Stored bytes of one or more neighbouring frames.
enum Span {
    /// Where the read put them.
    Slice(Slice),
    /// A frame that did not shrink and is larger than one read.
    Joined(Vec<u8>),
}

impl std::ops::Deref for Span {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Span::Slice(slice) => slice,
            Span::Joined(bytes) => bytes,
        }
    }
}

async fn read_span(store: &Reader, key: &Key, offset: u64, bytes: usize) -> Result<Span> {
    if bytes <= READ_BYTES_MAX {
        return store.read(key, offset, bytes).await.map(Span::Slice);
    }
    read_all(store, key, offset, bytes).await.map(Span::Joined)
}

/// Opens a pack: preamble, trailer and directory, each checked against the others and against `info`.
pub(crate) async fn open_pack(
    repository: &Repository,
    store: &Reader,
    info: &PackInfo,
    key: &Key,
    decoder: &mut FrameDecoder,
) -> Result<OpenPack> {
    let head_bytes = (PREAMBLE_BYTES_MAX as u64).min(info.bytes) as usize;
    let head = store.read(key, 0, head_bytes).await?;
    let object_type = info.object_type;
    let (preamble, preamble_bytes) = Preamble::decode(&head)?;
    let (sealer, _) = repository.open_object(&preamble, object_type, info.id.0)?;
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
    let tail = read_all(store, key, info.directory_offset, tail_bytes as usize).await?;
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
    })
}

/// Reads a span of any length into memory.
pub(crate) async fn read_all(
    store: &Reader,
    key: &Key,
    offset: u64,
    bytes: usize,
) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        let now = (bytes - out.len()).min(READ_BYTES_MAX);
        let slice = store.read(key, offset + out.len() as u64, now).await?;
        out.extend_from_slice(&slice);
    }
    Ok(out)
}
