//! Frames: the pieces that packs, manifests and records are made of, compressed and sealed as one.
//!
//! Invariants: a frame is zstd only where that is shorter than the plain bytes; the kind fixes the cap of
//! the plain bytes and the last flag; nothing is sealed before its compressed form was decoded and compared with
//! the plain bytes, and nothing is handed out before the seal was opened again and compared, because an encoder
//! that corrupts is the one fault that no checksum over stored bytes can show. Scratch space is reused, so
//! that a frame of at most 1 MiB costs no allocation.

use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use crate::probe::ShrinkProbe;
use crate::seal::{Cipher, ObjectSealer, TAG_BYTES};
use crate::wire::{Reader, corrupt};

/// Bytes of the header before each payload.
pub const FRAME_HEADER_BYTES: usize = 16;
/// The part of the header before its checksum: the seal's associated data holds it.
pub(crate) const HEADER_SEALED_BYTES: usize = 12;
/// Most plain bytes in a frame of blocks or nodes: one arena buffer.
pub const FRAME_PLAIN_BYTES_MAX: usize = 1 << 20;
/// Most blocks in a frame.
pub const FRAME_BLOCKS_MAX: usize = FRAME_PLAIN_BYTES_MAX / BLOCK_BYTES;
/// Most bytes that a stored frame of blocks or nodes takes: header, plain bytes that did not shrink, tag.
pub const FRAME_STORED_BYTES_MAX: usize = FRAME_HEADER_BYTES + FRAME_PLAIN_BYTES_MAX + TAG_BYTES;
/// Most plain bytes of a pack's directory; the counts' caps need a little over 3 MiB.
pub const DIRECTORY_PLAIN_BYTES_MAX: usize = 4 << 20;
/// Most plain bytes of a manifest; 1,000,000 packs (10 TB) need 77 MiB.
pub const MANIFEST_PLAIN_BYTES_MAX: usize = 96 << 20;
/// Most plain bytes of a record: a few texts.
pub const RECORD_PLAIN_BYTES_MAX: usize = 64 << 10;
/// The level that the data path uses unless it is told otherwise.
pub const COMPRESSION_LEVEL_DEFAULT: i32 = 3;
/// The levels that may be asked for. Above 19 zstd needs windows that readers may refuse.
pub const COMPRESSION_LEVELS: std::ops::RangeInclusive<i32> = -7..=19;
/// Largest zstd window that a reader must provide: what RFC 8878 recommends every decoder to support.
pub const ZSTD_WINDOW_BYTES_MAX: u64 = 8 << 20;
/// Scratch space above this is given back after use: only manifests need so much, once per session.
const SCRATCH_KEPT_BYTES_MAX: usize = 5 << 20;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Whole blocks of file content.
    Blocks = 1,
    /// Encoded map nodes and entry pages, one after the other.
    Nodes = 2,
    /// The directory of a pack.
    Directory = 3,
    /// The body of a manifest.
    Manifest = 4,
    /// The body of a record.
    Record = 5,
}

impl FrameKind {
    /// The kind with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(FrameKind::Blocks),
            2 => Some(FrameKind::Nodes),
            3 => Some(FrameKind::Directory),
            4 => Some(FrameKind::Manifest),
            5 => Some(FrameKind::Record),
            _ => None,
        }
    }

    /// The code on storage.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether a frame of this kind ends its object; its seal then proves that no piece was cut off.
    pub const fn is_last(self) -> bool {
        matches!(
            self,
            FrameKind::Directory | FrameKind::Manifest | FrameKind::Record
        )
    }

    /// Most plain bytes of such a frame.
    pub const fn plain_bytes_max(self) -> usize {
        match self {
            FrameKind::Blocks | FrameKind::Nodes => FRAME_PLAIN_BYTES_MAX,
            FrameKind::Directory => DIRECTORY_PLAIN_BYTES_MAX,
            FrameKind::Manifest => MANIFEST_PLAIN_BYTES_MAX,
            FrameKind::Record => RECORD_PLAIN_BYTES_MAX,
        }
    }

    /// Whether a frame of this kind may hold so many plain bytes.
    pub const fn allows_plain_bytes(self, bytes: usize) -> bool {
        bytes > 0
            && bytes <= self.plain_bytes_max()
            && (!matches!(self, FrameKind::Blocks) || bytes.is_multiple_of(BLOCK_BYTES))
    }
}

/// How a frame's plain bytes are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// As one zstd frame.
    Zstd = 1,
}

impl Codec {
    /// The codec with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Codec::Raw),
            1 => Some(Codec::Zstd),
            _ => None,
        }
    }

    /// The code on storage.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// The 16 bytes before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the payload, its tag included.
    pub payload_bytes: u32,
    /// Length after opening and decoding.
    pub plain_bytes: u32,
    /// What the frame holds.
    pub kind: FrameKind,
    /// How it is encoded.
    pub codec: Codec,
    /// CRC-32 over the twelve bytes before it and the payload.
    pub crc: u32,
}

impl FrameHeader {
    /// Header and payload together.
    pub fn stored_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload_bytes as usize
    }

    fn sealed_part(&self) -> [u8; HEADER_SEALED_BYTES] {
        let mut out = [0; HEADER_SEALED_BYTES];
        out[0..4].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[4..8].copy_from_slice(&self.plain_bytes.to_le_bytes());
        out[8] = self.kind.code();
        out[9] = self.codec.code();
        out[10] = u8::from(self.kind.is_last());
        out
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[..HEADER_SEALED_BYTES].copy_from_slice(&self.sealed_part());
        out[HEADER_SEALED_BYTES..].copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    /// Reads the header at the beginning of `bytes` (more may follow), as for a walk through a pack whose
    /// directory is lost. The lengths are checked against their caps; the payload is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("frame header", bytes);
        let payload_bytes = reader.u32("payload length")?;
        let plain_bytes = reader.u32("plain length")?;
        let kind = FrameKind::from_code(reader.u8("kind")?)
            .ok_or_else(|| reader.wrong("kind", "is unknown"))?;
        let codec = Codec::from_code(reader.u8("codec")?)
            .ok_or_else(|| reader.wrong("codec", "is unknown"))?;
        if reader.u8("last flag")? != u8::from(kind.is_last()) {
            return Err(reader.wrong("last flag", "does not fit the kind"));
        }
        reader.reserved::<1>()?;
        let crc = reader.u32("checksum")?;
        if !kind.allows_plain_bytes(plain_bytes as usize) {
            return Err(reader.wrong("plain length", "does not fit the kind"));
        }
        if payload_bytes == 0 || payload_bytes as usize > plain_bytes as usize + TAG_BYTES {
            return Err(reader.wrong("payload length", "does not fit the plain length"));
        }
        Ok(FrameHeader {
            payload_bytes,
            plain_bytes,
            kind,
            codec,
            crc,
        })
    }

    /// Checks the checksum over header and payload; needs no key.
    pub fn check_crc(&self, payload: &[u8]) -> Result<()> {
        if payload.len() != self.payload_bytes as usize {
            return Err(corrupt("frame: the payload has the wrong length"));
        }
        if self.crc_of(payload) == self.crc {
            Ok(())
        } else {
            Err(corrupt("frame: the checksum does not match"))
        }
    }

    fn crc_of(&self, payload: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.sealed_part());
        crc.update(payload);
        crc.finalize()
    }

    /// Length of the payload without its tag; it must be one that the codec can have.
    fn encoded_bytes(&self, overhead_bytes: usize) -> Result<usize> {
        let plain_bytes = self.plain_bytes as usize;
        let encoded = (self.payload_bytes as usize).checked_sub(overhead_bytes);
        encoded
            .filter(|&encoded| match self.codec {
                Codec::Raw => encoded == plain_bytes,
                Codec::Zstd => (1..plain_bytes).contains(&encoded),
            })
            .ok_or_else(|| corrupt("frame: the payload length does not fit codec and plain length"))
    }
}

/// Checks what zstd itself would let pass: exactly one frame, of the stated length, with no dictionary, no checksum
/// of its own and a window within the cap.
fn check_zstd(encoded: &[u8], plain_bytes: usize) -> Result<()> {
    const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
    const SINGLE_SEGMENT: u8 = 0x20;
    const RESERVED_CHECKSUM_DICTIONARY: u8 = 0x0f;
    let wrong = |what: &str| Err(corrupt(format!("frame: the zstd data {what}")));
    if encoded.len() < 6 || encoded[..4] != MAGIC {
        return wrong("has no frame header");
    }
    let descriptor = encoded[4];
    if descriptor & RESERVED_CHECKSUM_DICTIONARY != 0 {
        return wrong("uses a feature that is not allowed here");
    }
    if descriptor & SINGLE_SEGMENT == 0 {
        let (exponent, mantissa) = (encoded[5] >> 3, encoded[5] & 7);
        let base = 1u64 << (10 + u32::from(exponent));
        if base + base / 8 * u64::from(mantissa) > ZSTD_WINDOW_BYTES_MAX {
            return wrong("needs a larger window than allowed");
        }
    }
    if !matches!(zstd_safe::get_frame_content_size(encoded), Ok(Some(size)) if size == plain_bytes as u64)
    {
        return wrong("does not state the plain length");
    }
    match zstd_safe::find_frame_compressed_size(encoded) {
        Ok(size) if size == encoded.len() => Ok(()),
        Ok(_) => wrong("is followed by other bytes"),
        Err(_) => wrong("ends early"),
    }
}

/// Makes room for `len` bytes at the front of `scratch` without clearing what is there.
fn room(scratch: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if scratch.len() < len {
        scratch.resize(len, 0);
    }
    &mut scratch[..len]
}

fn give_back(scratch: &mut Vec<u8>) {
    if scratch.capacity() > SCRATCH_KEPT_BYTES_MAX {
        *scratch = Vec::new();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Compressed,
    Compared,
}

#[derive(Clone, Copy)]
struct Staged {
    kind: FrameKind,
    codec: Codec,
    plain_bytes: usize,
    stage: Stage,
}

/// Makes frames in three steps that the caller can time: [`compress`](Self::compress),
/// [`compare`](Self::compare), [`seal`](Self::seal). Keep one per shard: it owns about 4 MiB of scratch space.
pub struct FrameEncoder {
    compressor: Compressor<'static>,
    probe: ShrinkProbe,
    decompressor: Decompressor<'static>,
    compressed: Vec<u8>,
    /// Where compressed bytes are decoded to, and where sealed ones are opened to.
    check: Vec<u8>,
    staged: Option<Staged>,
}

/// zstd (since 1.5.7) looks for the best place to cut each full block of 128 KiB in two, which costs a level-3 compression of
/// database pages a tenth of its rate and gains nothing there; blocks that cannot be full are not looked at
/// (docs/decisions, 7).
const BLOCK_BYTES_MAX: u32 = (128 << 10) - 1;

impl FrameEncoder {
    /// An encoder at this zstd level (one of [`COMPRESSION_LEVELS`], 0 meaning 3).
    pub fn new(level: i32) -> Result<Self> {
        if !COMPRESSION_LEVELS.contains(&level) {
            return Err(Error::new(Kind::Usage, "not a compression level")
                .object(level.to_string())
                .hint("choose a level from -7 (fastest) to 19 (smallest); 3 is the default"));
        }
        let failed = |e| Error::new(Kind::Internal, "zstd could not be set up").cause(e);
        let mut compressor = Compressor::new(level).map_err(failed)?;
        for parameter in [
            zstd_safe::CParameter::ContentSizeFlag(true),
            zstd_safe::CParameter::ChecksumFlag(false),
            zstd_safe::CParameter::DictIdFlag(false),
            zstd_safe::CParameter::MaxBlockSize(BLOCK_BYTES_MAX),
        ] {
            compressor.set_parameter(parameter).map_err(failed)?;
        }
        Ok(FrameEncoder {
            compressor,
            probe: ShrinkProbe::new(level).map_err(failed)?,
            decompressor: Decompressor::default(),
            compressed: Vec::new(),
            check: Vec::new(),
            staged: None,
        })
    }

    /// First step: compresses `plain` into scratch space, or notes that it does not shrink. Blocks behind others that did not
    /// are tried only if a sample of them shrinks.
    pub fn compress(&mut self, kind: FrameKind, plain: &[u8]) -> Result<Codec> {
        self.staged = None;
        if !kind.allows_plain_bytes(plain.len()) {
            return Err(Error::new(
                Kind::Internal,
                format!("a {kind:?} frame cannot hold {} bytes", plain.len()),
            ));
        }
        self.compressed.clear();
        self.compressed
            .reserve(zstd_safe::compress_bound(plain.len()));
        // A directory is nearly all hashes: trying to compress it is wasted work.
        let is_tried = match kind {
            FrameKind::Directory => false,
            FrameKind::Blocks => self.probe.is_worth_trying(plain)?,
            FrameKind::Nodes | FrameKind::Manifest | FrameKind::Record => true,
        };
        let codec = if !is_tried {
            Codec::Raw
        } else {
            let bytes = self
                .compressor
                .compress_to_buffer(plain, &mut self.compressed)
                .map_err(|e| Error::new(Kind::Internal, "zstd failed to compress").cause(e))?;
            let shrank = bytes < plain.len();
            if kind == FrameKind::Blocks {
                self.probe.tried(plain.len(), shrank);
            }
            if shrank { Codec::Zstd } else { Codec::Raw }
        };
        self.staged = Some(Staged {
            kind,
            codec,
            plain_bytes: plain.len(),
            stage: Stage::Compressed,
        });
        Ok(codec)
    }

    /// Second step: decodes what was compressed and compares it with `plain`.
    pub fn compare(&mut self, plain: &[u8]) -> Result<()> {
        let differs = || {
            Error::new(
                Kind::Internal,
                "compressed data does not decode to what was compressed",
            )
            .hint("check this machine's memory and processor; nothing wrong was stored")
        };
        let staged = self.staged.as_mut().ok_or_else(out_of_order)?;
        if staged.plain_bytes != plain.len() {
            return Err(out_of_order());
        }
        if staged.codec == Codec::Zstd {
            check_zstd(&self.compressed, plain.len()).map_err(|e| differs().cause(e))?;
            self.check.clear();
            self.check.reserve(plain.len());
            self.decompressor
                .decompress_to_buffer(&self.compressed, &mut self.check)
                .map_err(|e| differs().cause(e))?;
            if self.check != plain {
                return Err(differs());
            }
        }
        staged.stage = Stage::Compared;
        Ok(())
    }

    /// What [`seal`](Self::seal) will append for the frame that was compressed last.
    pub fn stored_bytes(&self, cipher: Cipher) -> Option<usize> {
        let staged = self.staged?;
        let encoded = match staged.codec {
            Codec::Raw => staged.plain_bytes,
            Codec::Zstd => self.compressed.len(),
        };
        Some(FRAME_HEADER_BYTES + encoded + cipher.overhead_bytes())
    }

    /// Third step: appends header and sealed payload to `out`, opens what it sealed and compares it with what
    /// was compressed. Returns how many bytes it appended. `out` is as before if it fails.
    pub fn seal(
        &mut self,
        sealer: &ObjectSealer,
        piece: u32,
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize> {
        let begin = out.len();
        let stored = self
            .stored_bytes(sealer.cipher())
            .ok_or_else(out_of_order)?;
        out.resize(begin + stored, 0);
        let sealed = self.seal_into(sealer, piece, plain, &mut out[begin..]);
        if sealed.is_err() {
            out.truncate(begin);
        }
        sealed
    }

    /// [`seal`](Self::seal) into the front of a slice of at least [`stored_bytes`](Self::stored_bytes).
    pub fn seal_into(
        &mut self,
        sealer: &ObjectSealer,
        piece: u32,
        plain: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        let stored = self
            .stored_bytes(sealer.cipher())
            .ok_or_else(out_of_order)?;
        let staged = self.staged.take().ok_or_else(out_of_order)?;
        if staged.stage != Stage::Compared || staged.plain_bytes != plain.len() {
            return Err(out_of_order());
        }
        let (head, payload) = out
            .get_mut(..stored)
            .and_then(|out| out.split_first_chunk_mut::<FRAME_HEADER_BYTES>())
            .ok_or_else(|| Error::new(Kind::Internal, "a frame does not fit its buffer"))?;
        let encoded = match staged.codec {
            Codec::Raw => plain,
            Codec::Zstd => &self.compressed[..],
        };
        let mut header = FrameHeader {
            payload_bytes: payload.len() as u32,
            plain_bytes: plain.len() as u32,
            kind: staged.kind,
            codec: staged.codec,
            crc: 0,
        };
        let sealed_part = header.sealed_part();
        sealer.seal(piece, &sealed_part, encoded, payload)?;
        if sealer.overhead_bytes() > 0 {
            let opened = room(&mut self.check, encoded.len());
            let same = sealer
                .open(piece, &sealed_part, payload, opened)
                .is_ok_and(|()| opened == encoded);
            if !same {
                return Err(Error::new(
                    Kind::Internal,
                    "a sealed frame does not open to what was sealed",
                )
                .hint("check this machine's memory and processor; nothing wrong was stored"));
            }
        }
        header.crc = header.crc_of(payload);
        *head = header.encode();
        give_back(&mut self.compressed);
        give_back(&mut self.check);
        Ok(stored)
    }
}

fn out_of_order() -> Error {
    Error::new(
        Kind::Internal,
        "a frame must be compressed, compared and sealed in this order, from the same bytes",
    )
}

/// Opens frames. Keep one per shard: it owns up to 1 MiB of scratch space.
#[derive(Default)]
pub struct FrameDecoder {
    decompressor: Decompressor<'static>,
    opened: Vec<u8>,
}

impl FrameDecoder {
    /// A decoder without any state of its own but scratch space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the one frame that `bytes` hold into the front of `plain` and returns its plain length.
    ///
    /// Checks in this order: header, length, checksum, seal, zstd. On failure nothing in `plain` may be used.
    pub fn open(
        &mut self,
        sealer: &ObjectSealer,
        piece: u32,
        kind: FrameKind,
        bytes: &[u8],
        plain: &mut [u8],
    ) -> Result<usize> {
        let header = Self::check_header(kind, bytes)?;
        let plain_bytes = header.plain_bytes as usize;
        let plain = plain
            .get_mut(..plain_bytes)
            .ok_or_else(|| corrupt("frame: the plain length is above what is expected here"))?;
        let payload = &bytes[FRAME_HEADER_BYTES..];
        let encoded_bytes = header.encoded_bytes(sealer.overhead_bytes())?;
        let sealed_part = header.sealed_part();
        if header.codec == Codec::Raw {
            sealer.open(piece, &sealed_part, payload, plain)?;
            return Ok(plain_bytes);
        }
        let encoded = if sealer.overhead_bytes() == 0 {
            payload
        } else {
            let opened = room(&mut self.opened, encoded_bytes);
            sealer.open(piece, &sealed_part, payload, opened)?;
            &*opened
        };
        check_zstd(encoded, plain_bytes)?;
        let decoded = self
            .decompressor
            .decompress_to_buffer(encoded, plain)
            .map_err(|e| corrupt("frame: the zstd data does not decode").cause(e))?;
        give_back(&mut self.opened);
        if decoded != plain_bytes {
            return Err(corrupt(
                "frame: the zstd data has another length than stated",
            ));
        }
        Ok(plain_bytes)
    }

    /// Like [`open`](Self::open) into a new vector, for frames that may hold more than 1 MiB. The checksum is
    /// checked before anything is allocated, and no more than `plain_bytes_max` bytes are.
    pub fn open_vec(
        &mut self,
        sealer: &ObjectSealer,
        piece: u32,
        kind: FrameKind,
        bytes: &[u8],
        plain_bytes_max: usize,
    ) -> Result<Vec<u8>> {
        let header = Self::check_header(kind, bytes)?;
        let plain_bytes = header.plain_bytes as usize;
        if plain_bytes > plain_bytes_max {
            return Err(corrupt(
                "frame: the plain length is above what is expected here",
            ));
        }
        let mut plain = vec![0; plain_bytes];
        self.open(sealer, piece, kind, bytes, &mut plain)?;
        Ok(plain)
    }

    fn check_header(kind: FrameKind, bytes: &[u8]) -> Result<FrameHeader> {
        let header = FrameHeader::decode(bytes)?;
        if bytes.len() != header.stored_bytes() {
            return Err(corrupt("frame: the length is not that of its header"));
        }
        header.check_crc(&bytes[FRAME_HEADER_BYTES..])?;
        if header.kind != kind {
            return Err(corrupt("frame: it is of another kind than expected here"));
        }
        Ok(header)
    }
}
