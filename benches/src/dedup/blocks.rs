//! Equal blocks, counted from files without the mover.
//!
//! Invariants: a file is cut at multiples of 4 KiB, its last block filled up with zeros; blocks of zeros do not count;
//! blocks are equal where their SHA-256 is.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use mover_base::checksum::{Sha256, sha256};
use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::data::Files;

/// Blocks that were seen, 32 bytes each.
#[derive(Debug, Default)]
pub struct BlockSet(HashSet<Sha256>);

/// Blocks of some files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Count {
    /// All that are not zero.
    pub blocks: u64,
    /// Those that were not seen before.
    pub new: u64,
}

impl Count {
    /// Blocks that were seen before.
    pub fn known(self) -> u64 {
        self.blocks - self.new
    }

    /// Their share of all.
    pub fn known_share(self) -> f64 {
        self.known() as f64 / self.blocks.max(1) as f64
    }
}

impl BlockSet {
    /// Adds the blocks of the files.
    ///
    /// # Errors
    /// [`Kind::Source`] where a file cannot be read to the length that it was listed with.
    pub fn add(&mut self, files: &Files) -> Result<Count> {
        let mut count = Count::default();
        let mut bytes = Vec::new();
        for piece in files.pieces() {
            let path = &files.0[piece.file].0;
            bytes.clear();
            bytes.resize(piece.len.next_multiple_of(BLOCK_BYTES), 0);
            File::open(path)
                .and_then(|file| file.read_exact_at(&mut bytes[..piece.len], piece.offset))
                .map_err(|error| {
                    Error::new(Kind::Source, "a file cannot be counted")
                        .object(path.display().to_string())
                        .cause(error)
                })?;
            for block in bytes.chunks(BLOCK_BYTES) {
                if block.iter().any(|byte| *byte != 0) {
                    count.blocks += 1;
                    count.new += u64::from(self.0.insert(sha256(block)));
                }
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_blocks_count_once_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let block =
            |step: usize| -> [u8; BLOCK_BYTES] { std::array::from_fn(|i| (i * step % 251) as u8) };
        let (a, b, zeros) = (block(1), block(2), block(0));
        std::fs::write(dir.path().join("first"), [a, zeros, b, a].concat()).unwrap();
        let mut set = BlockSet::default();
        let files = Files::list(dir.path()).unwrap();
        assert_eq!(set.add(&files).unwrap(), Count { blocks: 3, new: 2 });
        assert_eq!(set.add(&files).unwrap(), Count { blocks: 3, new: 0 });
        // Shifted by a byte nothing is equal; the last block ends in zeros that the file does not have.
        let shifted = [&[3][..], &b, &b, &[0; 2 * BLOCK_BYTES]].concat();
        std::fs::write(dir.path().join("second"), shifted).unwrap();
        let second = Files(vec![(dir.path().join("second"), 8193)]);
        let count = set.add(&second).unwrap();
        assert_eq!(count, Count { blocks: 3, new: 3 });
        assert_eq!((count.known(), count.known_share()), (0, 0.0));
        let tail = Files(vec![(dir.path().join("second"), 8192 + 1 + 4096)]);
        assert_eq!(set.add(&tail).unwrap(), Count { blocks: 3, new: 0 });
        let longer = Files(vec![(dir.path().join("first"), 1 << 20)]);
        assert!(set.add(&longer).is_err());
    }
}
