//! Files as packs are: 10 MB of bytes that no compression shrinks, each a little longer than the one before.
//!
//! Invariants: the bytes follow from the seed alone; no two files are equal.

use std::io;
use std::path::Path;

/// Seed of the bytes.
const SEED: u64 = 20_261_123;
/// Shortest file.
const PACK_BYTES: u64 = 10_000_000;
/// Each file is so much longer than the one before: lengths are odd as those of real packs are.
const STEP_BYTES: u64 = 4_099;

/// Writes files of about `bytes` in all into `dir`.
///
/// # Errors
/// What the file system says.
pub fn make(dir: &Path, bytes: u64) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for index in 0..bytes.div_ceil(PACK_BYTES) {
        let len = (PACK_BYTES + index * STEP_BYTES) as usize;
        let mut state = SEED ^ (index << 40);
        let mut pack = Vec::with_capacity(len + 8);
        while pack.len() < len {
            pack.extend_from_slice(&next(&mut state).to_le_bytes());
        }
        pack.truncate(len);
        std::fs::write(dir.join(format!("pack-{index:04}")), &pack)?;
    }
    Ok(())
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_lengths_of_packs_and_differ() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 2 * PACK_BYTES).unwrap();
        let read = |name| std::fs::read(dir.path().join(name)).unwrap();
        let (one, other) = (read("pack-0000"), read("pack-0001"));
        assert_eq!(one.len() as u64, PACK_BYTES);
        assert_eq!(other.len() as u64, PACK_BYTES + STEP_BYTES);
        assert_ne!(one[..4096], other[..4096]);
    }
}
