//! The data sets: where they are kept, how they are made, what they hold.
//!
//! Invariants: a data set is complete if its directory exists (it is made under another name and renamed); its
//! name holds everything that its content depends on; making one twice is free.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mover_base::{BLOCK_BYTES, Error, Kind, Result};
use mover_format::frame::FRAME_PLAIN_BYTES_MAX;
use mover_io::ShardConfig;
use serde::{Deserialize, Serialize};

use crate::command::Program;
use crate::rows::Generator;
use crate::s3::packs;

/// Seed of the rows.
const ROWS_SEED: u64 = 20_261_122;
/// Written at a time while rows are made.
const CHUNK_BYTES: usize = 8 << 20;

/// What is backed up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Dataset {
    /// A PostgreSQL 15 cluster after pgbench: tables, indexes and WAL; compresses well.
    Pg,
    /// A HeliosDB Nano database filled by SQL, 0.8 GB of sorted tables that are compressed already.
    Nano,
    /// Rows of customers, orders and events, 1.3 GB; compresses 2.4 times.
    Rows,
    /// The same, 10.7 GB, to see whether memory grows with the data.
    Rows10g,
    /// Files as packs are, 1.5 GB of random bytes; for transfers to S3 only.
    Packs,
}

/// How large the data is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// For measuring.
    Full,
    /// For trying the harness.
    Smoke,
}

impl Dataset {
    /// All.
    pub const ALL: [Dataset; 5] = [
        Dataset::Pg,
        Dataset::Nano,
        Dataset::Rows,
        Dataset::Rows10g,
        Dataset::Packs,
    ];
    /// Those that the mover and its peers are compared on.
    pub const COMPARED: [Dataset; 3] = [Dataset::Pg, Dataset::Nano, Dataset::Rows];

    /// The name in file names and tables.
    pub fn name(self) -> &'static str {
        match self {
            Dataset::Pg => "pg",
            Dataset::Nano => "nano",
            Dataset::Rows => "rows",
            Dataset::Rows10g => "rows10g",
            Dataset::Packs => "packs",
        }
    }

    /// What it is, for readers of the results.
    pub fn title(self) -> &'static str {
        match self {
            Dataset::Pg => "PostgreSQL 15 cluster (pgbench)",
            Dataset::Nano => "HeliosDB Nano database",
            Dataset::Rows => "realistic rows, 1.3 GB",
            Dataset::Rows10g => "realistic rows, 10.7 GB",
            Dataset::Packs => "files like packs",
        }
    }

    fn segments(self, scale: Scale) -> (u64, usize) {
        match (self, scale) {
            (Dataset::Rows10g, Scale::Full) => (40, 256 << 20),
            (Dataset::Rows10g, Scale::Smoke) => (10, 8 << 20),
            (_, Scale::Full) => (5, 256 << 20),
            (_, Scale::Smoke) => (5, 8 << 20),
        }
    }

    /// Where it is kept below `cache`.
    pub fn path(self, cache: &Path, scale: Scale) -> PathBuf {
        let name = match self {
            Dataset::Pg => {
                let (factor, seconds) = pgbench_size(scale);
                format!("pg15-s{factor}-t{seconds}-v1")
            }
            Dataset::Nano => format!("nano4.41-b{}-v1", nano_batches(scale)),
            Dataset::Rows | Dataset::Rows10g => {
                let (count, bytes) = self.segments(scale);
                format!("rows-{count}x{}MiB-seed{ROWS_SEED}-v1", bytes >> 20)
            }
            Dataset::Packs => format!("packs-{}-v1", packs_bytes(scale)),
        };
        cache.join(name)
    }

    /// Makes it below `cache` unless it is there. `scripts` is the directory of the helper scripts.
    pub fn ensure(self, cache: &Path, scripts: &Path, scale: Scale) -> Result<PathBuf> {
        let path = self.path(cache, scale);
        if path.is_dir() {
            return Ok(path);
        }
        eprintln!("making the data set {} ...", path.display());
        std::fs::create_dir_all(cache).map_err(|e| cannot_write(cache, e))?;
        match self {
            Dataset::Pg => {
                let (factor, seconds) = pgbench_size(scale);
                Program::new(scripts.join("make-postgres-data"))
                    .path(&path)
                    .args([factor.to_string(), seconds.to_string()])
                    .output()?;
            }
            Dataset::Nano => {
                Program::new(scripts.join("make-heliosdb-data"))
                    .path(&path)
                    .args([nano_batches(scale).to_string()])
                    .output()?;
            }
            Dataset::Rows | Dataset::Rows10g => self.make_rows(&path, scale)?,
            Dataset::Packs => {
                let part = path.with_extension("part");
                let _ = std::fs::remove_dir_all(&part);
                packs::make(&part, packs_bytes(scale))
                    .and_then(|()| std::fs::rename(&part, &path))
                    .map_err(|e| cannot_write(&path, e))?;
            }
        }
        Ok(path)
    }

    fn make_rows(self, path: &Path, scale: Scale) -> Result<()> {
        let part = path.with_extension("part");
        let _ = std::fs::remove_dir_all(&part);
        std::fs::create_dir(&part).map_err(|e| cannot_write(&part, e))?;
        let (count, bytes) = self.segments(scale);
        let generator = Generator::new(ROWS_SEED);
        mover_io::run(
            &ShardConfig::default(),
            async |shard| {
                let step = shard.count() as u64;
                for index in (shard.index() as u64..count).step_by(step as usize) {
                    shard.stop()?;
                    write_segment(&generator, index, bytes, &part)?;
                }
                Ok(())
            },
            |_| {},
        )?;
        std::fs::rename(&part, path).map_err(|e| cannot_write(path, e))?;
        crate::command::sync();
        Ok(())
    }
}

fn write_segment(generator: &Generator, index: u64, bytes: usize, dir: &Path) -> Result<()> {
    let path = dir.join(Generator::segment_name(index));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        let mut segment = generator.segment(index);
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let mut left = bytes;
        while left > 0 {
            chunk.clear();
            segment.fill(&mut chunk, left.min(CHUNK_BYTES));
            file.write_all(&chunk)?;
            left = left.saturating_sub(chunk.len());
        }
        file.sync_all()
    };
    write().map_err(|e| cannot_write(&path, e))
}

/// Bytes of all packs together.
fn packs_bytes(scale: Scale) -> u64 {
    match scale {
        Scale::Full => 1_500_000_000,
        Scale::Smoke => 60_000_000,
    }
}

/// Batches of 110,000 rows that the HeliosDB Nano database is made of.
fn nano_batches(scale: Scale) -> u32 {
    match scale {
        Scale::Full => 60,
        Scale::Smoke => 1,
    }
}

/// Scale factor of pgbench and seconds of load after it.
fn pgbench_size(scale: Scale) -> (u32, u32) {
    match scale {
        Scale::Full => (200, 20),
        Scale::Smoke => (4, 2),
    }
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::new(Kind::Target, "benchmark data cannot be written")
        .object(path.display().to_string())
        .cause(error)
}

fn cannot_read(path: &Path, error: std::io::Error) -> Error {
    Error::new(Kind::Source, "benchmark data cannot be read")
        .object(path.display().to_string())
        .cause(error)
}

/// Regular files below a directory, sorted by path, and their bytes.
#[derive(Clone, Debug)]
pub struct Files(pub Vec<(PathBuf, u64)>);

impl Files {
    /// Lists `root`.
    pub fn list(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut dirs = vec![root.to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).map_err(|e| cannot_read(&dir, e))? {
                let entry = entry.map_err(|e| cannot_read(&dir, e))?;
                let meta = entry
                    .metadata()
                    .map_err(|e| cannot_read(&entry.path(), e))?;
                if meta.is_dir() {
                    dirs.push(entry.path());
                } else if meta.is_file() {
                    files.push((entry.path(), meta.len()));
                }
            }
        }
        files.sort();
        Ok(Files(files))
    }

    /// Sum of the sizes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Pieces of at most 1 MiB in file order: index of the file, offset, length.
    pub fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (file, (_, bytes)) in self.0.iter().enumerate() {
            let mut offset = 0;
            while offset < *bytes {
                let len = (bytes - offset).min(FRAME_PLAIN_BYTES_MAX as u64) as usize;
                pieces.push(Piece { file, offset, len });
                offset += len as u64;
            }
        }
        pieces
    }
}

/// Part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index in [`Files`].
    pub file: usize,
    /// First byte.
    pub offset: u64,
    /// Number of bytes, at most 1 MiB.
    pub len: usize,
}

/// Part of a data set in memory, as frames of up to 1 MiB of blocks that are not all zero.
#[derive(Debug)]
pub struct Sample {
    /// Whole blocks, up to 256 in each frame.
    pub frames: Vec<Vec<u8>>,
    /// Bytes of the source that the frames stand for, zero blocks included.
    pub source_bytes: u64,
    /// Bytes in the frames.
    pub plain_bytes: u64,
}

impl Sample {
    /// About `bytes` of the files, in pieces of 1 MiB taken at equal distances.
    pub fn load(files: &Files, bytes: u64) -> Result<Self> {
        let step = (files.bytes() / bytes.max(1)).max(1) as usize;
        let (mut frames, mut frame, mut source_bytes) = (Vec::new(), Vec::new(), 0);
        let mut piece_bytes = vec![0; FRAME_PLAIN_BYTES_MAX];
        for piece in files.pieces().into_iter().step_by(step) {
            let path = &files.0[piece.file].0;
            let whole = piece.len.next_multiple_of(BLOCK_BYTES);
            piece_bytes[piece.len..whole].fill(0);
            File::open(path)
                .and_then(|file| file.read_exact_at(&mut piece_bytes[..piece.len], piece.offset))
                .map_err(|e| cannot_read(path, e))?;
            source_bytes += piece.len as u64;
            for block in piece_bytes[..whole].chunks(BLOCK_BYTES) {
                if block.iter().any(|byte| *byte != 0) {
                    frame.extend_from_slice(block);
                }
                if frame.len() == FRAME_PLAIN_BYTES_MAX {
                    frames.push(std::mem::replace(
                        &mut frame,
                        Vec::with_capacity(FRAME_PLAIN_BYTES_MAX),
                    ));
                }
            }
        }
        if !frame.is_empty() {
            frames.push(frame);
        }
        if frames.is_empty() {
            return Err(Error::new(
                Kind::Source,
                "the data set holds nothing but zeros",
            ));
        }
        let plain_bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        Ok(Sample {
            frames,
            source_bytes,
            plain_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_files_once_and_zero_blocks_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("a"), vec![1; (1 << 20) + 5]).unwrap();
        std::fs::write(dir.path().join("sub/b"), vec![0; 8192]).unwrap();
        std::fs::write(dir.path().join("sub/empty"), []).unwrap();
        let files = Files::list(dir.path()).unwrap();
        assert_eq!(files.bytes(), (1 << 20) + 5 + 8192);
        let lens: Vec<usize> = files.pieces().iter().map(|p| p.len).collect();
        assert_eq!(lens, [1 << 20, 5, 8192]);
        let sample = Sample::load(&files, u64::MAX).unwrap();
        assert_eq!(sample.source_bytes, files.bytes());
        assert_eq!(sample.plain_bytes, (1 << 20) + 4096);
        assert_eq!(sample.frames.len(), 2);
    }
}
