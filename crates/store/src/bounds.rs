//! What every driver refuses in the same words: reads that are too long or lie behind an object's end, objects that
//! are too large, and what counts as left over.

use mover_base::{BLOCK_BYTES, Error, Kind, Result, Timestamp};

use crate::key::Key;
use crate::{PIECE_BYTES_MAX, READ_BYTES_MAX, STALE_AFTER_MS};

/// The byte behind the last of a read of `len` bytes at `offset`.
pub(crate) fn read_end(key: &Key, offset: u64, len: usize) -> Result<u64> {
    if len > READ_BYTES_MAX {
        return Err(too_long(key, READ_BYTES_MAX));
    }
    end_of(key, offset, len as u64)
}

/// The byte behind the last of a run of pieces at `offset`.
pub(crate) fn run_end(key: &Key, offset: u64, lens: &[usize]) -> Result<u64> {
    if lens.iter().any(|len| *len > PIECE_BYTES_MAX) {
        return Err(too_long(key, PIECE_BYTES_MAX));
    }
    let bytes = lens.iter().map(|len| *len as u64).sum();
    end_of(key, offset, bytes)
}

fn too_long(key: &Key, bytes_max: usize) -> Error {
    Error::new(
        Kind::Limit,
        format!("a read is longer than {bytes_max} bytes"),
    )
    .object(key.as_str())
}

fn end_of(key: &Key, offset: u64, bytes: u64) -> Result<u64> {
    // No file is longer than that, even with the rest of its last block.
    let longest = i64::MAX as u64 - BLOCK_BYTES as u64;
    let end = offset.checked_add(bytes).filter(|end| *end <= longest);
    end.ok_or_else(|| too_short(key))
}

/// The error for an object that ends before bytes which must be there.
pub(crate) fn too_short(key: &Key) -> Error {
    Error::new(Kind::Corrupt, "object is shorter than expected")
        .object(key.as_str())
        .hint("it was cut off after it was written; verify the repository and restore the object from a replica")
}

/// The error for an object of more bytes than whoever asks can take.
pub(crate) fn too_large(object: &str, bytes: u64, bytes_max: u64) -> Error {
    Error::new(
        Kind::Limit,
        format!("an object of {bytes} bytes is larger than the {bytes_max} allowed"),
    )
    .object(object)
}

/// Whether what was last written at `modified` counts as left over at `now`, by the same clock.
pub(crate) fn is_stale(modified: Timestamp, now: Timestamp) -> bool {
    now.as_micros().saturating_sub(modified.as_micros()) / 1000 >= STALE_AFTER_MS
}
