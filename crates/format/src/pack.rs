//! Packs: the directory of a pack and the trailer that says where it is.
//!
//! Invariants: frames lie one after the other from the end of the preamble to the directory, the directory is
//! the last piece, the trailer ends the object; so every byte of a pack belongs to exactly one structure. In
//! a data pack block ordinals count through the frames in order; a meta pack has no blocks.

use mover_base::{BLOCK_BYTES, Error, Kind, Result, checksum, checksum::Sha256};

use crate::frame::{FRAME_HEADER_BYTES, FrameKind};
use crate::preamble::{ObjectType, PREAMBLE_BYTES_MAX, PREAMBLE_BYTES_MIN};
use crate::seal::TAG_BYTES;
use crate::wire::{Reader, corrupt};

/// Most frames in a pack.
pub const PACK_FRAMES_MAX: usize = 65_536;
/// Most blocks in a pack: 256 MiB of plain bytes.
pub const PACK_BLOCKS_MAX: usize = 65_536;
/// Length of the trailer of packs and manifests.
pub const TRAILER_BYTES: usize = 32;
/// Most bytes that a pack can take, by the caps of its parts: a reader may refuse a longer object unread.
pub const PACK_BYTES_MAX: u64 = PREAMBLE_BYTES_MAX as u64
    + (PACK_FRAMES_MAX * crate::frame::FRAME_STORED_BYTES_MAX) as u64
    + (FRAME_HEADER_BYTES + crate::frame::DIRECTORY_PLAIN_BYTES_MAX + TAG_BYTES) as u64
    + TRAILER_BYTES as u64;

const FRAME_ENTRY_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// Where a frame lies in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// First byte of the frame's header, from the beginning of the object.
    pub offset: u64,
    /// Header and payload.
    pub stored_bytes: u32,
    /// Length after opening and decoding.
    pub plain_bytes: u32,
    /// Ordinal of the frame's first block; 0 in a meta pack.
    pub first_block: u32,
}

impl FrameEntry {
    /// The offset behind the frame.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.stored_bytes)
    }

    /// How many blocks of 4 KiB the plain bytes are.
    pub fn blocks(&self) -> u32 {
        self.plain_bytes / BLOCK_BYTES as u32
    }
}

/// What a pack holds, by which any block is found and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackDirectory {
    /// The frames in order; their index is the piece index of their seal.
    pub frames: Vec<FrameEntry>,
    /// SHA-256 of each block's plain bytes by ordinal; empty in a meta pack.
    pub hashes: Vec<Sha256>,
}

impl PackDirectory {
    /// A directory to [`push`](Self::push) frames to.
    pub fn new() -> Self {
        PackDirectory {
            frames: Vec::new(),
            hashes: Vec::new(),
        }
    }

    /// Adds the frame that lies at `offset`, with the hashes of its blocks (none for nodes), and returns the
    /// ordinal of its first block. A full pack is refused with [`Kind::Limit`].
    pub fn push(
        &mut self,
        offset: u64,
        stored_bytes: usize,
        plain_bytes: usize,
        hashes: &[Sha256],
    ) -> Result<u32> {
        if self.frames.len() >= PACK_FRAMES_MAX
            || self.hashes.len() + hashes.len() > PACK_BLOCKS_MAX
        {
            return Err(Error::new(
                Kind::Limit,
                "a pack has too many frames or blocks",
            ));
        }
        let first_block = self.hashes.len() as u32;
        let misfit = |_| Error::new(Kind::Internal, "a frame is too long for a pack");
        self.frames.push(FrameEntry {
            offset,
            stored_bytes: u32::try_from(stored_bytes).map_err(misfit)?,
            plain_bytes: u32::try_from(plain_bytes).map_err(misfit)?,
            first_block,
        });
        self.hashes.extend_from_slice(hashes);
        Ok(first_block)
    }

    /// The offset behind the last frame, where the directory lies.
    pub fn end(&self) -> Option<u64> {
        self.frames.last().map(FrameEntry::end)
    }

    /// The frame that holds the block, and the block's place in it.
    pub fn frame_of(&self, ordinal: u32) -> Option<(usize, usize)> {
        if ordinal as usize >= self.hashes.len() {
            return None;
        }
        let after = self.frames.partition_point(|f| f.first_block <= ordinal);
        let frame = after.checked_sub(1)?;
        let slot = ordinal - self.frames[frame].first_block;
        Some((frame, slot as usize))
    }

    /// The plain bytes of the directory frame. A directory that [`decode`](Self::decode) would refuse is refused.
    pub fn encode(&self, object_type: ObjectType) -> Result<Vec<u8>> {
        self.check(object_type)
            .map_err(|e| Error::new(Kind::Internal, "a pack directory is inconsistent").cause(e))?;
        let mut out = Vec::with_capacity(
            8 + self.frames.len() * FRAME_ENTRY_BYTES + self.hashes.len() * HASH_BYTES,
        );
        out.extend_from_slice(&(self.frames.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.hashes.len() as u32).to_le_bytes());
        for frame in &self.frames {
            out.extend_from_slice(&frame.offset.to_le_bytes());
            out.extend_from_slice(&frame.stored_bytes.to_le_bytes());
            out.extend_from_slice(&frame.plain_bytes.to_le_bytes());
        }
        out.extend_from_slice(self.hashes.as_flattened());
        Ok(out)
    }

    /// Reads the plain bytes of a pack's directory frame.
    pub fn decode(object_type: ObjectType, bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("pack directory", bytes);
        let frame_count = reader.u32("frame count")? as usize;
        let block_count = reader.u32("block count")? as usize;
        if frame_count > PACK_FRAMES_MAX || block_count > PACK_BLOCKS_MAX {
            return Err(reader.wrong("counts", "are above their caps"));
        }
        if reader.left() != frame_count * FRAME_ENTRY_BYTES + block_count * HASH_BYTES {
            return Err(reader.wrong("length", "does not fit its counts"));
        }
        let mut frames = Vec::with_capacity(frame_count);
        let mut first_block = 0u32;
        for _ in 0..frame_count {
            let frame = FrameEntry {
                offset: reader.u64("frame offset")?,
                stored_bytes: reader.u32("stored length")?,
                plain_bytes: reader.u32("plain length")?,
                first_block,
            };
            frames.push(frame);
            if object_type == ObjectType::DataPack {
                // Bounded: 65,536 frames of less than 2^20 blocks each.
                first_block = first_block.saturating_add(frame.blocks());
            }
        }
        let (hashes, _) = reader
            .bytes("hashes", block_count * HASH_BYTES)?
            .as_chunks::<HASH_BYTES>();
        let directory = PackDirectory {
            frames,
            hashes: hashes.to_vec(),
        };
        reader.finish()?;
        directory.check(object_type)?;
        Ok(directory)
    }

    /// Checks the directory against the rest of the pack: where its preamble ends and where its trailer says
    /// that the directory begins. The trailer's piece index must be
    /// the number of frames; whoever holds both compares them.
    pub fn check_span(&self, preamble_bytes: usize, directory_offset: u64) -> Result<()> {
        if self.frames.first().map(|f| f.offset) != Some(preamble_bytes as u64) {
            return Err(corrupt(
                "pack directory: the first frame does not follow the preamble",
            ));
        }
        if self.end() != Some(directory_offset) {
            return Err(corrupt("pack directory: it does not follow the last frame"));
        }
        Ok(())
    }

    fn check(&self, object_type: ObjectType) -> Result<()> {
        let wrong = |what: &str| Err(corrupt(format!("pack directory: {what}")));
        let kind = match object_type {
            ObjectType::DataPack => FrameKind::Blocks,
            ObjectType::MetaPack => FrameKind::Nodes,
            _ => return wrong("only packs have one"),
        };
        if self.frames.is_empty() {
            return wrong("the pack has no frames");
        }
        if self.frames.len() > PACK_FRAMES_MAX || self.hashes.len() > PACK_BLOCKS_MAX {
            return wrong("the counts are above their caps");
        }
        let mut offset = self.frames[0].offset;
        if offset < PREAMBLE_BYTES_MIN as u64 || offset > PREAMBLE_BYTES_MAX as u64 {
            return wrong("the first frame does not follow a preamble");
        }
        let mut blocks = 0u64;
        for frame in &self.frames {
            let payload_bytes = (frame.stored_bytes as usize).saturating_sub(FRAME_HEADER_BYTES);
            if !kind.allows_plain_bytes(frame.plain_bytes as usize)
                || payload_bytes == 0
                || payload_bytes > frame.plain_bytes as usize + TAG_BYTES
            {
                return wrong("a frame's lengths do not fit its kind");
            }
            if frame.offset != offset {
                return wrong("a frame does not follow the one before it");
            }
            offset = frame.end();
            if kind == FrameKind::Blocks {
                if u64::from(frame.first_block) != blocks {
                    return wrong("a frame's first block is not the next one");
                }
                blocks += u64::from(frame.blocks());
            }
        }
        if blocks != self.hashes.len() as u64 {
            return wrong("the block count is not that of its frames");
        }
        Ok(())
    }
}

impl Default for PackDirectory {
    fn default() -> Self {
        Self::new()
    }
}

/// The last 32 bytes of a pack, manifest or record: where its last frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackTrailer {
    /// First byte of the frame that holds the directory (or the body of a manifest or record).
    pub directory_offset: u64,
    /// Stored length of that frame, header included.
    pub directory_bytes: u32,
    /// Piece index of that frame: how many frames lie before it (0 but in a pack). It must be known before
    /// the frame can be opened.
    pub directory_piece: u32,
}

impl PackTrailer {
    const fn magic(object_type: ObjectType) -> [u8; 8] {
        match object_type {
            ObjectType::DataPack | ObjectType::MetaPack => *b"HMVPKEND",
            ObjectType::Manifest => *b"HMVMFEND",
            ObjectType::Session
            | ObjectType::Tombstone
            | ObjectType::Hold
            | ObjectType::Annotation => *b"HMVRCEND",
        }
    }

    /// The offset behind the trailer: the length of the object.
    pub fn object_bytes(&self) -> u64 {
        self.directory_offset
            .saturating_add(u64::from(self.directory_bytes))
            .saturating_add(TRAILER_BYTES as u64)
    }

    /// The trailer's bytes.
    pub fn encode(&self, object_type: ObjectType) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[0..8].copy_from_slice(&self.directory_offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.directory_bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.directory_piece.to_le_bytes());
        out[16..24].copy_from_slice(&Self::magic(object_type));
        let crc = checksum::crc32(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the last 32 bytes of an object that is `object_bytes` long.
    pub fn decode(object_type: ObjectType, bytes: &[u8], object_bytes: u64) -> Result<Self> {
        let mut reader = Reader::new("trailer", bytes);
        let trailer = PackTrailer {
            directory_offset: reader.u64("offset")?,
            directory_bytes: reader.u32("length")?,
            directory_piece: reader.u32("piece index")?,
        };
        if reader.array::<8>("magic")? != Self::magic(object_type) {
            return Err(reader.wrong("magic", "is missing: the object was cut off or is not one"));
        }
        reader.reserved::<4>()?;
        if reader.u32("checksum")? != checksum::crc32(&bytes[..28]) {
            return Err(reader.wrong("checksum", "does not match"));
        }
        reader.finish()?;
        let kind = object_type.last_frame();
        let stored_bytes_max = FRAME_HEADER_BYTES + kind.plain_bytes_max() + TAG_BYTES;
        if trailer.directory_bytes as usize <= FRAME_HEADER_BYTES
            || trailer.directory_bytes as usize > stored_bytes_max
        {
            return Err(reader.wrong("length", "is not that of a frame"));
        }
        let piece_ok = match kind {
            FrameKind::Directory => (1..=PACK_FRAMES_MAX as u32).contains(&trailer.directory_piece),
            _ => trailer.directory_piece == 0,
        };
        if !piece_ok {
            return Err(reader.wrong("piece index", "does not fit the object"));
        }
        if trailer.directory_offset < PREAMBLE_BYTES_MIN as u64
            || trailer.object_bytes() != object_bytes
        {
            return Err(reader.wrong("offset", "does not fit the length of the object"));
        }
        Ok(trailer)
    }
}
