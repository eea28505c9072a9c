//! CPU stages alone, on data in memory, with the functions that the mover calls.
//!
//! Invariants: only the stage itself is timed; a rate is bytes that go into the stage per second, summed over the
//! cores that ran it at the same time; the cost per gigabyte is per gigabyte of the source, so that costs add up.

use std::hint::black_box;
use std::time::{Duration, Instant};

use mover_base::checksum::{crc32, sha256_each};
use mover_base::{BLOCK_BYTES, Error, Kind, RepoId, Result, SessionId};
use mover_format::frame::{
    COMPRESSION_LEVEL_DEFAULT, FRAME_STORED_BYTES_MAX, FrameDecoder, FrameEncoder, FrameKind,
};
use mover_format::preamble::{ObjectType, Preamble};
use mover_format::seal::{Cipher, ObjectSealer, SessionKey, TAG_BYTES};
use mover_io::ShardConfig;
use serde::{Deserialize, Serialize};

use crate::data::Sample;

/// Passes over the sample go on until a core has worked so long on the stage.
const MEASURED_MIN: Duration = Duration::from_millis(700);
/// The same for a stage that programs are held against: they run for seconds and meet what the host does meanwhile.
const LIMIT_MEASURED_MIN: Duration = Duration::from_secs(4);

/// The header bytes that a seal covers; their content does not matter for speed.
const SEALED_HEADER: [u8; 12] = [0; 12];

/// A step of the data path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// SHA-256 of one 4 KiB block after the other.
    Sha256,
    /// zstd 3 of frames of 1 MiB.
    Compress,
    /// Decode what was compressed, compare with the plain bytes.
    Compare,
    /// AES-256-GCM of the compressed bytes.
    Seal,
    /// The way back.
    Open,
    /// CRC-32 of the sealed bytes.
    Crc32,
    /// All that a backup does to a frame: hash, compress, compare, seal, open, CRC.
    BackupPipeline,
    /// All that a restore does to a frame: CRC, open, decode, hash.
    RestorePipeline,
}

impl Stage {
    /// All stages, in the order of the data path.
    pub const ALL: [Stage; 8] = [
        Stage::Sha256,
        Stage::Compress,
        Stage::Compare,
        Stage::Seal,
        Stage::Open,
        Stage::Crc32,
        Stage::BackupPipeline,
        Stage::RestorePipeline,
    ];

    /// What it does, for tables.
    pub fn title(self) -> &'static str {
        match self {
            Stage::Sha256 => "SHA-256 of 4 KiB blocks",
            Stage::Compress => "zstd 3 in frames of 1 MiB",
            Stage::Compare => "zstd decode and compare",
            Stage::Seal => "AES-256-GCM seal",
            Stage::Open => "AES-256-GCM open",
            Stage::Crc32 => "CRC-32",
            Stage::BackupPipeline => "whole backup pipeline",
            Stage::RestorePipeline => "whole restore pipeline (CRC, open, decode, SHA-256)",
        }
    }
}

/// How fast a stage is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageFigure {
    /// Which.
    pub stage: Stage,
    /// Bytes that go in, as a share of the source's bytes.
    pub input_share: f64,
    /// On one core, in bytes that go in per second.
    pub one_core_bytes_per_second: f64,
    /// On all cores at once, in bytes that go in per second.
    pub all_cores_bytes_per_second: f64,
    /// CPU seconds per gigabyte (10^9 bytes) of the source, from the run on one core.
    pub cpu_seconds_per_gb: f64,
    /// The rate on all cores in bytes of the source per second.
    pub source_bytes_per_second: f64,
}

/// Sizes of the sample and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleFacts {
    /// Bytes of the source in the sample.
    pub source_bytes: u64,
    /// Bytes left after zero blocks are dropped.
    pub plain_bytes: u64,
    /// Bytes after zstd and seal.
    pub stored_bytes: u64,
    /// plain / stored.
    pub compression_ratio: f64,
    /// Share of the source's bytes in blocks of zeros.
    pub zero_share: f64,
}

/// A sealed frame and where it stands in its object.
struct Sealed {
    piece: u32,
    bytes: Vec<u8>,
    plain_bytes: usize,
}

/// The sample compressed and sealed once, as input of the later stages.
pub struct Prepared {
    sealed: Vec<Sealed>,
}

fn sealer() -> Result<ObjectSealer> {
    let preamble = Preamble {
        object_type: ObjectType::DataPack,
        cipher: Cipher::Aes256Gcm,
        repo_id: RepoId([1; 16]),
        object_id: [2; 16],
        session_id: SessionId([3; 16]),
        wrapped_key: vec![4; 300],
    };
    ObjectSealer::new(&preamble, Some(&SessionKey::new([5; 32])))
}

impl Prepared {
    /// Compresses and seals the sample on all cores.
    pub fn new(sample: &Sample) -> Result<Self> {
        let parts = mover_io::run(
            &ShardConfig::default(),
            async |shard| {
                let mut encoder = FrameEncoder::new(COMPRESSION_LEVEL_DEFAULT)?;
                let sealer = sealer()?;
                let mut part = Vec::new();
                for (piece, frame) in (0..).zip(mine(&sample.frames, shard.index(), shard.count()))
                {
                    let mut bytes = Vec::with_capacity(frame.len() / 2);
                    encoder.compress(FrameKind::Blocks, frame)?;
                    encoder.compare(frame)?;
                    encoder.seal(&sealer, piece, frame, &mut bytes)?;
                    bytes.shrink_to_fit();
                    let plain_bytes = frame.len();
                    part.push(Sealed {
                        piece,
                        bytes,
                        plain_bytes,
                    });
                }
                Ok(part)
            },
            |_| {},
        )?;
        let sealed = parts.into_iter().flatten().collect();
        Ok(Prepared { sealed })
    }

    /// Bytes of all sealed frames.
    pub fn stored_bytes(&self) -> u64 {
        self.sealed
            .iter()
            .map(|frame| frame.bytes.len() as u64)
            .sum()
    }

    /// Facts of the sample.
    pub fn facts(&self, sample: &Sample) -> SampleFacts {
        let stored_bytes = self.stored_bytes();
        SampleFacts {
            source_bytes: sample.source_bytes,
            plain_bytes: sample.plain_bytes,
            stored_bytes,
            compression_ratio: sample.plain_bytes as f64 / stored_bytes as f64,
            zero_share: 1.0 - (sample.plain_bytes as f64 / sample.source_bytes as f64).min(1.0),
        }
    }

    /// Opens frame `index`, modulo their number, into `plain`, hashes its blocks and returns its length.
    pub fn open_and_hash(
        &self,
        opener: &mut Opener,
        index: usize,
        plain: &mut [u8],
    ) -> Result<usize> {
        let frame = &self.sealed[index % self.sealed.len()];
        let bytes = opener.open(frame, plain)?;
        hash(&plain[..bytes])?;
        Ok(bytes)
    }
}

/// Opens sealed frames.
pub struct Opener {
    decoder: FrameDecoder,
    sealer: ObjectSealer,
}

impl Opener {
    /// One per shard.
    pub fn new() -> Result<Self> {
        Ok(Opener {
            decoder: FrameDecoder::new(),
            sealer: sealer()?,
        })
    }

    fn open(&mut self, frame: &Sealed, plain: &mut [u8]) -> Result<usize> {
        self.decoder.open(
            &self.sealer,
            frame.piece,
            FrameKind::Blocks,
            &frame.bytes,
            plain,
        )
    }
}

/// Does to frames what a backup does to them.
pub struct Packer {
    encoder: FrameEncoder,
    sealer: ObjectSealer,
    sealed: Vec<u8>,
}

impl Packer {
    /// One per shard.
    pub fn new() -> Result<Self> {
        Ok(Packer {
            encoder: FrameEncoder::new(COMPRESSION_LEVEL_DEFAULT)?,
            sealer: sealer()?,
            sealed: vec![0; FRAME_STORED_BYTES_MAX],
        })
    }

    /// Hashes, compresses, compares and seals a frame of whole blocks.
    pub fn pack(&mut self, frame: &[u8]) -> Result<()> {
        hash(frame)?;
        self.encoder.compress(FrameKind::Blocks, frame)?;
        self.encoder.compare(frame)?;
        let piece = self.sealer.next_piece();
        self.encoder
            .seal_into(&self.sealer, piece, frame, &mut self.sealed)?;
        Ok(())
    }
}

fn hash(plain: &[u8]) -> Result<()> {
    let blocks: Vec<&[u8]> = plain.chunks(BLOCK_BYTES).collect();
    black_box(sha256_each(&blocks)?);
    Ok(())
}

/// Every `count`-th element from `index` on.
fn mine<T>(all: &[T], index: usize, count: usize) -> impl Iterator<Item = &T> {
    all.iter().skip(index).step_by(count.max(1))
}

/// Time and bytes of one core.
#[derive(Default)]
struct Clock {
    took: Duration,
    bytes: u64,
}

impl Clock {
    fn time<T>(&mut self, bytes: usize, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let out = black_box(work());
        self.took += start.elapsed();
        self.bytes += bytes as u64;
        out
    }
}

/// Scratch space and state of a core.
struct Core {
    packer: Packer,
    opener: Opener,
    sealed: Vec<u8>,
    plain: Vec<u8>,
}

impl Core {
    fn new() -> Result<Self> {
        Ok(Core {
            packer: Packer::new()?,
            opener: Opener::new()?,
            sealed: vec![0; FRAME_STORED_BYTES_MAX],
            plain: vec![0; FRAME_STORED_BYTES_MAX],
        })
    }

    /// One frame through `stage`.
    fn pass(
        &mut self,
        stage: Stage,
        clock: &mut Clock,
        frame: &[u8],
        stored: &Sealed,
        seal: &ObjectSealer,
    ) -> Result<()> {
        // A stored frame is header, ciphertext, tag: the ciphertext serves as compressed bytes of the right length.
        let payload = &stored.bytes[stored.bytes.len().min(16)..];
        let encoded = &payload[..payload.len() - TAG_BYTES];
        match stage {
            Stage::Sha256 => clock.time(frame.len(), || hash(frame))?,
            Stage::Compress => {
                clock.time(frame.len(), || {
                    self.packer.encoder.compress(FrameKind::Blocks, frame)
                })?;
            }
            Stage::Compare => {
                self.packer.encoder.compress(FrameKind::Blocks, frame)?;
                clock.time(frame.len(), || self.packer.encoder.compare(frame))?;
            }
            Stage::Seal => {
                let out = &mut self.sealed[..payload.len()];
                clock.time(encoded.len(), || {
                    seal.seal(seal.next_piece(), &SEALED_HEADER, encoded, out)
                })?;
            }
            Stage::Open => {
                let (piece, sealed) = (seal.next_piece(), &mut self.sealed[..payload.len()]);
                seal.seal(piece, &SEALED_HEADER, encoded, sealed)?;
                let out = &mut self.plain[..encoded.len()];
                clock.time(encoded.len(), || {
                    seal.open(piece, &SEALED_HEADER, sealed, out)
                })?;
            }
            Stage::Crc32 => {
                clock.time(stored.bytes.len(), || crc32(&stored.bytes));
            }
            Stage::BackupPipeline => {
                clock.time(frame.len(), || self.packer.pack(frame))?;
            }
            Stage::RestorePipeline => {
                let Core { opener, plain, .. } = self;
                clock.time(stored.plain_bytes, || {
                    let bytes = opener.open(stored, plain)?;
                    hash(&plain[..bytes])
                })?;
            }
        }
        Ok(())
    }
}

/// Bytes per second of `stage` on `cores` cores at once.
fn rate(
    sample: &Sample,
    prepared: &Prepared,
    stage: Stage,
    cores: usize,
    measured_min: Duration,
) -> Result<f64> {
    let config = ShardConfig {
        shards: cores,
        ..ShardConfig::default()
    };
    let clocks = mover_io::run(
        &config,
        async |shard| {
            let (mut core, mut clock, seal) = (Core::new()?, Clock::default(), sealer()?);
            while clock.took < measured_min {
                let frames = mine(&sample.frames, shard.index(), shard.count());
                let stored = mine(&prepared.sealed, shard.index(), shard.count());
                for (frame, stored) in frames.zip(stored) {
                    shard.stop()?;
                    core.pass(stage, &mut clock, frame, stored, &seal)?;
                }
                if clock.bytes == 0 {
                    break;
                }
            }
            Ok(clock)
        },
        |_| {},
    )?;
    let each = clocks.iter().filter(|clock| clock.bytes > 0);
    let sum: f64 = each
        .map(|clock| clock.bytes as f64 / clock.took.as_secs_f64())
        .sum();
    if sum > 0.0 {
        Ok(sum)
    } else {
        Err(Error::new(
            Kind::Internal,
            "a stage was measured without data",
        ))
    }
}

/// Bytes of the source per second of `stage` on all cores.
pub fn source_rate(sample: &Sample, prepared: &Prepared, stage: Stage) -> Result<f64> {
    let bytes_per_second = rate(sample, prepared, stage, 0, LIMIT_MEASURED_MIN)?;
    Ok(bytes_per_second / input_share(sample, prepared, stage))
}

/// Bytes that go into the stage, as a share of the source's bytes.
fn input_share(sample: &Sample, prepared: &Prepared, stage: Stage) -> f64 {
    let input_bytes = match stage {
        Stage::Seal | Stage::Open | Stage::Crc32 => prepared.stored_bytes(),
        _ => sample.plain_bytes,
    };
    input_bytes as f64 / sample.source_bytes as f64
}

/// Measures one stage on one core and on all.
pub fn measure(sample: &Sample, prepared: &Prepared, stage: Stage) -> Result<StageFigure> {
    let one = rate(sample, prepared, stage, 1, MEASURED_MIN)?;
    let all = rate(sample, prepared, stage, 0, MEASURED_MIN)?;
    let input_share = input_share(sample, prepared, stage);
    Ok(StageFigure {
        stage,
        input_share,
        one_core_bytes_per_second: one,
        all_cores_bytes_per_second: all,
        cpu_seconds_per_gb: input_share * 1e9 / one,
        source_bytes_per_second: all / input_share,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_takes_a_sample_and_gives_a_rate() {
        let frames = vec![vec![7; 1 << 20], vec![9; 4096]];
        let plain_bytes = (1 << 20) + 4096;
        let sample = Sample {
            frames,
            source_bytes: plain_bytes,
            plain_bytes,
        };
        let prepared = Prepared::new(&sample).unwrap();
        assert!(prepared.facts(&sample).compression_ratio > 10.0);
        let mut core = Core::new().unwrap();
        let (mut clock, seal) = (Clock::default(), sealer().unwrap());
        for stage in Stage::ALL {
            let before = clock.bytes;
            core.pass(
                stage,
                &mut clock,
                &sample.frames[0],
                &prepared.sealed[0],
                &seal,
            )
            .unwrap();
            assert!(clock.bytes > before, "{stage:?}");
        }
    }
}
