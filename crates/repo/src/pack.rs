//! Writing a pack: frames go out as they are sealed, the directory and the trailer end it.
//!
//! Invariants: a pack is begun under a fresh random id and is visible only after `finish` has committed it;
//! an ordinal that was given out names exactly one block of the pack; what is held in memory is one
//! piece, the list of frames and one hash per block (at most 2 MiB).

use std::time::Instant;

use mover_base::checksum::{Sha256, sha256};
use mover_base::{Error, Kind, PackId, Result};
use mover_format::frame::{FrameEncoder, FrameKind};
use mover_format::manifest::PackInfo;
use mover_format::pack::{PACK_BLOCKS_MAX, PACK_FRAMES_MAX, PackDirectory, PackTrailer};
use mover_format::preamble::ObjectType;
use mover_format::seal::ObjectSealer;
use mover_io::{BUF_BYTES, Shard, random_bytes};
use mover_store::{Piece, Put, Store, Upload};

use crate::layout;
use crate::repository::Session;
use crate::timing::{StageSeconds, lap};

/// A pack ends with the first frame that takes it past this size; with one frame more it stays near 10 MB.
const PACK_TARGET_BYTES: u64 = 9_500_000;

/// A pack being written.
pub(crate) struct PackWriter {
    shard: Shard,
    store: Store,
    id: PackId,
    object_type: ObjectType,
    sealer: ObjectSealer,
    directory: PackDirectory,
    out: Output,
}

/// A stream of bytes into an upload, through memory that the store gives.
struct Output {
    upload: Option<Upload>,
    piece: Option<Piece>,
    filled: usize,
    bytes: u64,
}

impl PackWriter {
    /// Begins a pack of blocks or of map nodes.
    pub async fn begin(
        shard: &Shard,
        store: &Store,
        session: &Session,
        object_type: ObjectType,
    ) -> Result<Self> {
        let id = PackId(random_bytes()?);
        let (preamble, sealer) = session.begin_object(object_type, id.0)?;
        let mut writer = PackWriter {
            shard: shard.clone(),
            store: store.clone(),
            id,
            object_type,
            sealer,
            directory: PackDirectory::new(),
            out: Output {
                upload: None,
                piece: None,
                filled: 0,
                bytes: 0,
            },
        };
        writer.send(&preamble.encode()?).await?;
        Ok(writer)
    }

    /// The pack's id.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Blocks in the frames written so far.
    pub fn blocks(&self) -> u32 {
        self.directory.hashes.len() as u32
    }

    /// Frames written so far; the index of the next one.
    pub fn frames(&self) -> u32 {
        self.directory.frames.len() as u32
    }

    /// Whether `blocks` more blocks, in up to that many frames, belong into a new pack.
    pub fn is_full(&self, blocks: usize) -> bool {
        self.out.bytes >= PACK_TARGET_BYTES
            || self.directory.hashes.len() + blocks > PACK_BLOCKS_MAX
            || self.directory.frames.len() + blocks > PACK_FRAMES_MAX
    }

    /// Seals what `encoder` has compressed and compared, and sends it. `hashes` are those of the blocks in
    /// `plain`; a frame of nodes has none. Returns the stored bytes.
    pub async fn write_frame(
        &mut self,
        encoder: &mut FrameEncoder,
        plain: &[u8],
        hashes: &[Sha256],
        seconds: &mut StageSeconds,
        scratch: &mut Vec<u8>,
    ) -> Result<usize> {
        let clock = Instant::now();
        // As long as the longest frame so far: nobody fills with zeros what the seal is going to write.
        let stored_bytes = encoder.stored_bytes(self.sealer.cipher()).unwrap_or(0);
        scratch.resize(stored_bytes.max(scratch.len()), 0);
        encoder.seal_into(&self.sealer, self.frames(), plain, scratch)?;
        self.directory
            .push(self.out.bytes, stored_bytes, plain.len(), hashes)?;
        let clock = lap(&mut seconds.seal, clock);
        self.send(&scratch[..stored_bytes]).await?;
        lap(&mut seconds.write_wait, clock);
        Ok(stored_bytes)
    }

    /// Sends bytes on their way to the store.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = match &mut self.out.piece {
                Some(piece) => piece,
                none => {
                    self.out.filled = 0;
                    none.insert(self.store.piece(&self.shard).await?)
                }
            };
            let n = rest.len().min(BUF_BYTES - self.out.filled);
            piece[self.out.filled..self.out.filled + n].copy_from_slice(&rest[..n]);
            self.out.filled += n;
            rest = &rest[n..];
            if self.out.filled == BUF_BYTES {
                self.push_piece().await?;
            }
        }
        self.out.bytes += bytes.len() as u64;
        Ok(())
    }

    async fn push_piece(&mut self) -> Result<()> {
        let Some(piece) = self.out.piece.take() else {
            return Ok(());
        };
        let upload = match &mut self.out.upload {
            Some(upload) => upload,
            none => {
                let key = layout::pack(self.id)?;
                none.insert(self.store.upload_unique(&self.shard, &key).await?)
            }
        };
        upload.push(piece, self.out.filled).await
    }

    /// Writes directory and trailer and commits the pack; it is durable when this returns.
    pub async fn finish(mut self, encoder: &mut FrameEncoder) -> Result<PendingPack> {
        let directory_offset = self.out.bytes;
        let plain = self.directory.encode(self.object_type)?;
        let mut bytes = Vec::new();
        encoder.compress(FrameKind::Directory, &plain)?;
        encoder.compare(&plain)?;
        let directory_bytes = encoder.seal(&self.sealer, self.frames(), &plain, &mut bytes)?;
        let directory_sha256 = sha256(&bytes);
        let trailer = PackTrailer {
            directory_offset,
            directory_bytes: directory_bytes as u32,
            directory_piece: self.frames(),
        };
        bytes.extend_from_slice(&trailer.encode(self.object_type));
        self.send(&bytes).await?;
        self.push_piece().await?;
        let info = PackInfo {
            id: self.id,
            object_type: self.object_type,
            bytes: self.out.bytes,
            directory_offset,
            directory_bytes: directory_bytes as u32,
            blocks: self.blocks(),
            directory_sha256,
        };
        let upload = self
            .out
            .upload
            .take()
            .ok_or_else(|| Error::new(Kind::Internal, "a pack ended without an upload"))?;
        Ok(PendingPack { info, upload })
    }
}

impl PackWriter {
    /// Gives up a pack that nothing was put into.
    pub async fn discard(mut self) -> Result<()> {
        match self.out.upload.take() {
            Some(upload) => upload.abort().await,
            None => Ok(()),
        }
    }
}

/// A pack whose bytes are on their way and that is not yet committed.
pub(crate) struct PendingPack {
    pub info: PackInfo,
    upload: Upload,
}

impl PendingPack {
    /// Makes the pack durable and visible.
    pub async fn commit(self) -> Result<PackInfo> {
        match self.upload.commit().await? {
            Put::Created => Ok(self.info),
            // 128 random bits: either the random source is broken or someone replays our writes.
            Put::Exists => Err(
                Error::new(Kind::Conflict, "another writer used the same pack id")
                    .object(layout::pack(self.info.id)?.as_str())
                    .hint("run the backup again"),
            ),
        }
    }
}
