//! What a directory tree holds, read independently of the tool: the truth that a restore is compared with.
//!
//! Invariants: nothing is followed (symbolic links are read, not entered); contents are compared by SHA-256
//! of all blocks that are not zero, with their offsets (so that a file of a terabyte of holes is read at once),
//! and by the map of data and holes that SEEK_DATA and SEEK_HOLE report.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// Blocks are hashed one by one; holes begin and end at their boundaries.
const BLOCK_BYTES: usize = 4096;
/// What is read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// What one name is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Size.
        bytes: u64,
        /// Of every block that is not all zeros, with its offset.
        sha256: [u8; 32],
        /// The ranges (start, end) that hold data rather than holes.
        data: Vec<(u64, u64)>,
    },
    /// A symbolic link and where it points.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket or a device, by its mode.
    Special(u32),
}

/// One name with everything that a restore puts back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is, with its content.
    pub what: What,
    /// Permission bits (0o7777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name, in byte order, of the file that this is one of several names of.
    pub linked: Option<Vec<u8>>,
}

/// A tree: relative path (empty for the root) to node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<Vec<u8>, Node>);

impl Tree {
    /// Reads the tree below `root`, the root included.
    pub fn read(root: &Path) -> Tree {
        let mut nodes = BTreeMap::new();
        let mut links: BTreeMap<(u64, u64), Vec<Vec<u8>>> = BTreeMap::new();
        let mut open = vec![Vec::new()];
        while let Some(path) = open.pop() {
            let full = if path.is_empty() {
                root.to_path_buf()
            } else {
                root.join(OsStr::from_bytes(&path))
            };
            let meta = fs::symlink_metadata(&full)
                .unwrap_or_else(|error| panic!("{}: {error}", full.display()));
            if meta.is_dir() {
                for entry in fs::read_dir(&full)
                    .unwrap_or_else(|error| panic!("{}: {error}", full.display()))
                {
                    let name = entry.expect("directory is readable").file_name();
                    let mut child = path.clone();
                    if !child.is_empty() {
                        child.push(b'/');
                    }
                    child.extend_from_slice(name.as_bytes());
                    open.push(child);
                }
            } else if meta.nlink() > 1 {
                links
                    .entry((meta.dev(), meta.ino()))
                    .or_default()
                    .push(path.clone());
            }
            nodes.insert(path, read_node(&full, &meta));
        }
        for names in links.values_mut() {
            names.sort();
            for name in names.iter() {
                if let Some(node) = nodes.get_mut(name) {
                    node.linked = Some(names[0].clone());
                }
            }
        }
        Tree(nodes)
    }

    /// Sum of the sizes of the regular files.
    pub fn bytes(&self) -> u64 {
        self.0
            .values()
            .map(|node| {
                if let What::File { bytes, .. } = node.what {
                    bytes
                } else {
                    0
                }
            })
            .sum()
    }

    /// Every difference from `self` (expected) to `other` (found), one line each.
    pub fn differences(&self, other: &Tree) -> Vec<String> {
        let mut out = Vec::new();
        for (path, node) in &self.0 {
            match other.0.get(path) {
                None => out.push(format!("{}: missing", show(path))),
                Some(found) => node.differences(found, &show(path), &mut out),
            }
        }
        for path in other.0.keys().filter(|path| !self.0.contains_key(*path)) {
            out.push(format!("{}: should not exist", show(path)));
        }
        out
    }

    /// Fails the test unless `other` is the same in everything.
    pub fn assert_same(&self, other: &Tree, context: &str) {
        let differences = self.differences(other);
        let shown = differences
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n  ");
        assert!(
            differences.is_empty(),
            "{context}: {} differences\n  {shown}",
            differences.len()
        );
    }
}

impl Node {
    fn differences(&self, found: &Node, path: &str, out: &mut Vec<String>) {
        match (&self.what, &found.what) {
            (
                What::File {
                    bytes,
                    sha256,
                    data,
                },
                What::File {
                    bytes: found_bytes,
                    sha256: found_sha256,
                    data: found_data,
                },
            ) => {
                if bytes != found_bytes {
                    out.push(format!("{path}: {found_bytes} bytes instead of {bytes}"));
                } else if sha256 != found_sha256 {
                    out.push(format!("{path}: wrong content"));
                }
                if data != found_data {
                    out.push(format!(
                        "{path}: data in {found_data:?} instead of {data:?}"
                    ));
                }
            }
            (expected, found) if expected != found => {
                out.push(format!("{path}: {found:?} instead of {expected:?}"));
            }
            _ => {}
        }
        let mut field = |name: &str, expected: String, found: String| {
            if expected != found {
                out.push(format!("{path}: {name} {found} instead of {expected}"));
            }
        };
        field(
            "mode",
            format!("{:o}", self.mode),
            format!("{:o}", found.mode),
        );
        field("uid", self.uid.to_string(), found.uid.to_string());
        field("gid", self.gid.to_string(), found.gid.to_string());
        field(
            "mtime",
            format!("{:?}", self.mtime),
            format!("{:?}", found.mtime),
        );
        field(
            "xattrs",
            show_xattrs(&self.xattrs),
            show_xattrs(&found.xattrs),
        );
        let link = |node: &Node| node.linked.as_deref().map_or("none".into(), show);
        field("hard link to", link(self), link(found));
    }
}

fn show(path: &[u8]) -> String {
    if path.is_empty() {
        ".".into()
    } else {
        path.escape_ascii().to_string()
    }
}

fn show_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let pair = |(name, value): (&Vec<u8>, &Vec<u8>)| {
        format!("{}={}", name.escape_ascii(), value.escape_ascii())
    };
    format!("{:?}", xattrs.iter().map(pair).collect::<Vec<_>>())
}

fn read_node(path: &Path, meta: &Metadata) -> Node {
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        What::Dir
    } else if kind.is_file() {
        let (sha256, data) = read_content(path, meta.size());
        What::File {
            bytes: meta.size(),
            sha256,
            data,
        }
    } else if kind.is_symlink() {
        What::Symlink(
            fs::read_link(path)
                .expect("symbolic link is readable")
                .as_os_str()
                .as_bytes()
                .to_vec(),
        )
    } else if kind.is_fifo() {
        What::Fifo
    } else {
        What::Special(meta.mode())
    };
    Node {
        what,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        xattrs: read_xattrs(path),
        linked: None,
    }
}

fn read_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let names =
        xattr::list(path).unwrap_or_else(|error| panic!("xattrs of {}: {error}", path.display()));
    names
        .filter_map(|name| {
            let value = xattr::get(path, &name).expect("xattr is readable")?;
            Some((name.as_bytes().to_vec(), value))
        })
        .collect()
}

fn read_content(path: &Path, bytes: u64) -> ([u8; 32], Vec<(u64, u64)>) {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let data = data_map(&file, bytes);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for &(start, end) in &data {
        // Pieces begin at multiples of their size, so that equal content is cut alike whatever the map is.
        let mut at = start;
        while at < end {
            let until = end.min((at / PIECE_BYTES + 1) * PIECE_BYTES);
            let piece = &mut buffer[..(until - at) as usize];
            file.read_exact_at(piece, at)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            hash_non_zeros(&mut hash, at, piece);
            at = until;
        }
    }
    (hash.finalize().into(), data)
}

/// Adds every block that is not all zeros, with its offset.
fn hash_non_zeros(hash: &mut Sha256, start: u64, piece: &[u8]) {
    for (i, block) in piece.chunks(BLOCK_BYTES).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            hash.update((start + (i * BLOCK_BYTES) as u64).to_le_bytes());
            hash.update(block);
        }
    }
}

/// The ranges of a file that hold data.
pub fn data_map(file: &File, bytes: u64) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes {
        match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            Err(error) => panic!("SEEK_DATA: {error}"),
            Ok(start) => {
                at = seek(file, SeekFrom::Hole(start)).expect("a hole or the end follows data");
                out.push((start, at.min(bytes)));
            }
        }
    }
    out
}
