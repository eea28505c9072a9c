//! Equal blocks in trees, counted independently of the tool: what its deduplication is judged by.
//!
//! Invariants: files are cut at multiples of 4 KiB, the last block filled up with zeros; blocks of zeros do not count.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

/// The unit of deduplication, as documented.
pub const BLOCK_BYTES: usize = 4096;

/// Blocks that were seen.
#[derive(Debug, Default)]
pub struct Blocks(HashSet<[u8; 32]>);

/// Blocks of a tree that are not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// All.
    pub blocks: u64,
    /// Those that were not seen before.
    pub new: u64,
}

impl Count {
    /// Share of those that were seen before.
    pub fn known_share(self) -> f64 {
        (self.blocks - self.new) as f64 / self.blocks as f64
    }
}

impl Blocks {
    /// Adds the blocks of all regular files below `root`, none of which has two names.
    pub fn add(&mut self, root: &Path) -> Count {
        let mut count = Count { blocks: 0, new: 0 };
        let mut open = vec![root.to_path_buf()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).expect("directory is readable") {
                let entry = entry.expect("directory is readable");
                let kind = entry.file_type().expect("type is readable");
                if kind.is_dir() {
                    open.push(entry.path());
                } else if kind.is_file() {
                    self.add_file(&entry.path(), &mut count);
                }
            }
        }
        count
    }

    fn add_file(&mut self, path: &Path, count: &mut Count) {
        let mut bytes = Vec::new();
        let mut file = File::open(path).expect("file opens");
        file.read_to_end(&mut bytes).expect("file is readable");
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        for block in bytes.chunks(BLOCK_BYTES) {
            if block.iter().any(|byte| *byte != 0) {
                count.blocks += 1;
                count.new += u64::from(self.0.insert(Sha256::digest(block).into()));
            }
        }
    }
}
