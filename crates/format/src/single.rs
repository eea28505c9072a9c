//! Objects of one piece: preamble, one frame, trailer. Manifests and records are such.
//!
//! Invariants: nothing stands between the parts or behind them; the body is decoded and compared before it is sealed.

use mover_base::Result;

use crate::frame::{FrameDecoder, FrameEncoder, FrameKind};
use crate::pack::{PackTrailer, TRAILER_BYTES};
use crate::preamble::Preamble;
use crate::seal::ObjectSealer;
use crate::wire::corrupt;

/// The one piece's index.
const PIECE: u32 = 0;

/// The whole object. `sealer` must be new and made from `preamble`.
pub(crate) fn encode(
    preamble: &Preamble,
    sealer: &ObjectSealer,
    encoder: &mut FrameEncoder,
    kind: FrameKind,
    body: &[u8],
) -> Result<Vec<u8>> {
    encoder.compress(kind, body)?;
    encoder.compare(body)?;
    let mut out = preamble.encode()?;
    let directory_offset = out.len() as u64;
    let stored = encoder.seal(sealer, PIECE, body, &mut out)?;
    let trailer = PackTrailer {
        directory_offset,
        directory_bytes: stored as u32,
        directory_piece: PIECE,
    };
    out.extend_from_slice(&trailer.encode(preamble.object_type));
    Ok(out)
}

/// The body of an object whose preamble was decoded, checked with [`Preamble::check_place`] and used to make `sealer`; of
/// at most `bytes_max` bytes. `name` is what errors call it.
pub(crate) fn decode(
    bytes: &[u8],
    preamble: &Preamble,
    sealer: &ObjectSealer,
    decoder: &mut FrameDecoder,
    (kind, bytes_max, name): (FrameKind, usize, &str),
) -> Result<Vec<u8>> {
    let (head, tail) = bytes
        .split_at_checked(bytes.len().saturating_sub(TRAILER_BYTES))
        .filter(|(_, tail)| tail.len() == TRAILER_BYTES)
        .ok_or_else(|| corrupt(format!("{name}: the object ends early")))?;
    let trailer = PackTrailer::decode(preamble.object_type, tail, bytes.len() as u64)?;
    let begin = preamble.encoded_bytes();
    let frame = head
        .get(begin..)
        .filter(|_| trailer.directory_offset == begin as u64)
        .ok_or_else(|| corrupt(format!("{name}: the body does not follow the preamble")))?;
    decoder.open_vec(sealer, PIECE, kind, frame, bytes_max)
}
