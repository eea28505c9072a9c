//! Manifests: what a backup is, which entries it has and which packs it needs.
//!
//! Invariants: a manifest is logically complete: with its packs and nothing else the backup restores. Packs
//! are sorted by id and stand once each, and each is named by the hash of its directory, so that whoever trusts
//! the manifest trusts every block through it. The manifest's object id is that of its backup id, so a manifest
//! cannot be shown under another name. Metadata is JSON, in which a reader passes over members it does not know.

use std::collections::BTreeMap;

use mover_base::checksum::{Sha256, sha256};
use mover_base::{BackupId, Error, Kind, LsnRange, PackId, Result, Timestamp};
use serde::{Deserialize, Serialize};

use crate::frame::{FrameDecoder, FrameEncoder, FrameKind, MANIFEST_PLAIN_BYTES_MAX};
use crate::node::{Child, NodeKind};
use crate::pack::{PACK_BLOCKS_MAX, PACK_BYTES_MAX, TRAILER_BYTES};
use crate::preamble::{ObjectType, PREAMBLE_BYTES_MAX, PREAMBLE_BYTES_MIN, Preamble};
use crate::seal::{ObjectSealer, TAG_BYTES};
use crate::single;
use crate::wire::{Reader, corrupt};

/// Longest metadata.
pub const METADATA_BYTES_MAX: usize = 1 << 20;
/// Most entry pages: with full pages, 4,294,967,296 entries.
pub const MANIFEST_PAGES_MAX: usize = 1 << 20;
/// Most packs.
pub const MANIFEST_PACKS_MAX: usize = 1 << 20;
/// Longest manifest object that the caps of its parts allow.
pub const MANIFEST_BYTES_MAX: usize = PREAMBLE_BYTES_MAX
    + crate::frame::FRAME_HEADER_BYTES
    + MANIFEST_PLAIN_BYTES_MAX
    + TAG_BYTES
    + TRAILER_BYTES;

const PACK_INFO_BYTES: usize = 80;

/// How a backup was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupType {
    /// All of the source was read.
    Full,
    /// What changed since the last backup was read.
    Incremental,
    /// What changed since the last full backup was read.
    Differential,
}

/// What was backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// Where it is.
    pub url: String,
    /// What kind of source it is.
    pub kind: String,
    /// The machine that read it.
    pub host: String,
}

/// How much there was and how much was stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeInfo {
    /// Sum of the files' sizes, in bytes.
    pub original_bytes: u64,
    /// The same without holes, in bytes.
    pub data_bytes: u64,
    /// Plain bytes of blocks that the repository did not have before.
    pub new_bytes: u64,
    /// The same after compression.
    pub compressed_bytes: u64,
    /// Stored length of the packs that this backup's session wrote.
    pub encrypted_bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files.
    pub hardlinks: u64,
    /// Blocks of all files.
    pub blocks: u64,
    /// Blocks that are allocated and all zeros.
    pub zero_blocks: u64,
    /// Blocks that are not allocated.
    pub hole_blocks: u64,
    /// Blocks that the repository or this backup had already.
    pub deduplicated_blocks: u64,
}

/// Where the backup is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageInfo {
    /// The repository, described without its URL: that may hold what a reader should not learn.
    pub primary: String,
    /// Packs that the backup needs.
    pub pack_count: u64,
    /// Other repositories that were to hold it.
    pub replicas: Vec<String>,
}

/// What is known of the backup's soundness.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationInfo {
    /// Whether each frame was decoded and compared before it was stored.
    pub decoded_and_compared: bool,
    /// The level of the last verification before the manifest was written.
    pub level: Option<String>,
    /// When that was.
    pub verified_at: Option<Timestamp>,
}

/// Where else the backup is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationInfo {
    /// Names of the regions.
    pub regions: Vec<String>,
}

/// A fingerprint of a log at a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// SHA-256 of the log's last blocks up to the position, as hex digits.
    pub sha256: String,
    /// How many blocks; one in manifests that do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u64>,
}

/// What a manifest says of its backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupMetadata {
    /// Names the backup and, as object id, the manifest.
    pub backup_id: BackupId,
    /// How it was made.
    pub backup_type: BackupType,
    /// Why it was made so, where that is not what was asked for.
    pub reason: Option<String>,
    /// The backup whose unchanged parts were taken over.
    pub base_id: Option<BackupId>,
    /// The backup whose packs it could take over, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<BackupId>,
    /// The part of the log that it stands on.
    pub lsn_range: Option<LsnRange>,
    /// The history (timeline) of the database that the positions belong to.
    pub history: Option<String>,
    /// By which the log that leads to the end of `lsn_range` is known again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_mark: Option<LogMark>,
    /// When reading began.
    pub started: Timestamp,
    /// When all packs were stored.
    pub ended: Timestamp,
    /// What was backed up.
    pub source: SourceInfo,
    /// Version of the program that wrote it.
    pub tool_version: String,
    /// Names and values from the operator or the source.
    pub annotations: BTreeMap<String, String>,
    /// How much there was and how much was stored.
    pub size_info: SizeInfo,
    /// Where it is stored.
    pub storage_info: StorageInfo,
    /// What is known of its soundness.
    pub verification_info: VerificationInfo,
    /// Where else it is to be.
    pub replication_info: ReplicationInfo,
}

/// A pack that a backup needs, with what a reader must know to open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackInfo {
    /// The pack.
    pub id: PackId,
    /// Data or meta.
    pub object_type: ObjectType,
    /// Length of the object.
    pub bytes: u64,
    /// Where its directory begins.
    pub directory_offset: u64,
    /// Stored length of the directory's frame.
    pub directory_bytes: u32,
    /// How many blocks it holds; 0 for a meta pack.
    pub blocks: u32,
    /// SHA-256 of the directory's frame as it is stored. The directory holds the hash of every block, so another
    /// pack cannot take this one's place, whoever sealed it.
    pub directory_sha256: Sha256,
}

impl PackInfo {
    /// Checks the stored bytes of the directory's frame. A pack that was put in the place of this one ends here.
    pub fn check_directory(&self, stored: &[u8]) -> Result<()> {
        if sha256(stored) == self.directory_sha256 {
            return Ok(());
        }
        Err(corrupt(
            "the pack's directory is not the one that the manifest names",
        ))
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(corrupt(format!("manifest: pack {}: {what}", self.id)));
        let blocks_ok = match self.object_type {
            ObjectType::DataPack => (1..=PACK_BLOCKS_MAX).contains(&(self.blocks as usize)),
            ObjectType::MetaPack => self.blocks == 0,
            _ => return wrong("it is not a pack"),
        };
        if !blocks_ok {
            return wrong("the block count does not fit its type");
        }
        let end = self
            .directory_offset
            .checked_add(u64::from(self.directory_bytes) + TRAILER_BYTES as u64);
        if self.directory_offset < PREAMBLE_BYTES_MIN as u64 || end != Some(self.bytes) {
            return wrong("the lengths do not fit");
        }
        if self.bytes > PACK_BYTES_MAX {
            return wrong("it is longer than a pack can be");
        }
        Ok(())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&[self.object_type.code(), 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.directory_offset.to_le_bytes());
        out.extend_from_slice(&self.directory_bytes.to_le_bytes());
        out.extend_from_slice(&self.blocks.to_le_bytes());
        out.extend_from_slice(&self.directory_sha256);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let id = PackId(reader.array("pack id")?);
        let object_type = ObjectType::from_code(reader.u8("pack type")?)
            .ok_or_else(|| reader.wrong("pack type", "is unknown"))?;
        reader.reserved::<7>()?;
        let info = PackInfo {
            id,
            object_type,
            bytes: reader.u64("pack length")?,
            directory_offset: reader.u64("directory offset")?,
            directory_bytes: reader.u32("directory length")?,
            blocks: reader.u32("block count")?,
            directory_sha256: reader.array("directory hash")?,
        };
        info.check()?;
        Ok(info)
    }
}

/// The body of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What the backup is.
    pub metadata: BackupMetadata,
    /// The entry pages in order.
    pub pages: Vec<Child>,
    /// Every pack that the backup needs, sorted by id.
    pub packs: Vec<PackInfo>,
}

fn check_page(page: &Child) -> Result<()> {
    page.check()?;
    match page {
        Child::Inline(bytes) if NodeKind::of(bytes)? != NodeKind::EntryPage => {
            Err(corrupt("manifest: an inline entry page is another node"))
        }
        _ => Ok(()),
    }
}

impl Manifest {
    fn check(&self) -> Result<()> {
        self.pages.iter().try_for_each(check_page)?;
        self.packs.iter().try_for_each(PackInfo::check)?;
        if self.packs.windows(2).any(|pair| pair[0].id >= pair[1].id) {
            return Err(corrupt("manifest: the packs are not sorted by id"));
        }
        Ok(())
    }

    /// The plain bytes of the body. [`Kind::Limit`] if it is longer than a manifest can be.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let limit = || {
            Error::new(Kind::Limit, "the backup is too large for one manifest")
                .hint("back up parts of the source on their own")
        };
        self.check()
            .map_err(|e| Error::new(Kind::Internal, "a manifest is inconsistent").cause(e))?;
        if self.pages.len() > MANIFEST_PAGES_MAX || self.packs.len() > MANIFEST_PACKS_MAX {
            return Err(limit());
        }
        let json = serde_json::to_vec(&self.metadata)
            .map_err(|e| Error::new(Kind::Internal, "metadata could not be written").cause(e))?;
        if json.len() > METADATA_BYTES_MAX {
            return Err(
                Error::new(Kind::Limit, "the backup's metadata exceeds 1 MiB")
                    .hint("give fewer or shorter annotations"),
            );
        }
        let mut out = Vec::with_capacity(json.len() + self.packs.len() * PACK_INFO_BYTES + 4096);
        out.extend_from_slice(&(json.len() as u32).to_le_bytes());
        out.extend_from_slice(&json);
        out.extend_from_slice(&(self.pages.len() as u32).to_le_bytes());
        for page in &self.pages {
            page.encode(&mut out);
        }
        out.extend_from_slice(&(self.packs.len() as u32).to_le_bytes());
        for pack in &self.packs {
            pack.encode(&mut out);
        }
        if out.len() > MANIFEST_PLAIN_BYTES_MAX {
            return Err(limit());
        }
        Ok(out)
    }

    /// Reads the plain bytes of a body.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("manifest", bytes);
        let json_len = reader.u32("metadata length")? as usize;
        if json_len > METADATA_BYTES_MAX {
            return Err(reader.wrong("metadata length", "is above its cap"));
        }
        let metadata = serde_json::from_slice(reader.bytes("metadata", json_len)?)
            .map_err(|e| corrupt("manifest: the metadata is not what it should be").cause(e))?;
        let page_count = reader.u32("page count")? as usize;
        if page_count > MANIFEST_PAGES_MAX {
            return Err(reader.wrong("page count", "is above its cap"));
        }
        // The shortest child is an inline node of one byte.
        reader.check_count("page count", page_count, 3)?;
        let mut pages = Vec::new();
        for _ in 0..page_count {
            let page = Child::read(&mut reader)?;
            check_page(&page)?;
            pages.push(page);
        }
        let pack_count = reader.u32("pack count")? as usize;
        if pack_count > MANIFEST_PACKS_MAX {
            return Err(reader.wrong("pack count", "is above its cap"));
        }
        reader.check_count("pack count", pack_count, PACK_INFO_BYTES)?;
        let packs = (0..pack_count)
            .map(|_| PackInfo::read(&mut reader))
            .collect::<Result<_>>()?;
        reader.finish()?;
        let manifest = Manifest {
            metadata,
            pages,
            packs,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// The whole object: preamble, body, trailer. `sealer` must be new and made from `preamble`.
    pub fn encode_object(
        &self,
        preamble: &Preamble,
        sealer: &ObjectSealer,
        encoder: &mut FrameEncoder,
    ) -> Result<Vec<u8>> {
        if preamble.object_type != ObjectType::Manifest
            || preamble.object_id != self.metadata.backup_id.object_id()
        {
            return Err(Error::new(
                Kind::Internal,
                "a manifest's preamble is not that of its backup",
            ));
        }
        let body = self.encode()?;
        single::encode(preamble, sealer, encoder, FrameKind::Manifest, &body)
    }

    /// Reads a whole object whose preamble was decoded, checked with [`Preamble::check_place`] and used to make
    /// `sealer`.
    pub fn decode_object(
        bytes: &[u8],
        preamble: &Preamble,
        sealer: &ObjectSealer,
        decoder: &mut FrameDecoder,
    ) -> Result<Self> {
        let body = (FrameKind::Manifest, MANIFEST_PLAIN_BYTES_MAX, "manifest");
        let body = single::decode(bytes, preamble, sealer, decoder, body)?;
        let manifest = Self::decode(&body)?;
        if manifest.metadata.backup_id.object_id() != preamble.object_id {
            return Err(corrupt("manifest: the metadata is of another backup"));
        }
        Ok(manifest)
    }
}
