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
/// Longest URL, kind and host of a source: sixteen times the longest path that can be opened.
pub const SOURCE_TEXT_BYTES_MAX: usize = 64 << 10;
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
/// What a text takes beside its bytes where others have it in a list, at most: its place in that, and what the allocator adds.
const TEXT_BYTES: usize = 96;
/// What stands before the metadata, the pages and the packs: how long or how many they are.
const COUNTS_BYTES: usize = 3 * 4;
/// What to do about a backup that no manifest can hold.
const PARTS_HINT: &str = "back up parts of the source on their own";

/// The error for a backup that needs more than `packs_max` packs.
pub fn too_many_packs(packs_max: usize) -> Error {
    let what =
        format!("the backup needs more than {packs_max} packs, and a manifest lists no more");
    Error::new(Kind::Limit, what).hint(PARTS_HINT)
}

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

impl SourceInfo {
    /// Bounds what is kept of each backup where many are looked at.
    fn check(&self) -> Result<()> {
        let texts = [&self.url, &self.kind, &self.host];
        match texts.iter().all(|text| text.len() <= SOURCE_TEXT_BYTES_MAX) {
            true => Ok(()),
            false => Err(corrupt(
                "manifest: the URL, kind or host of the source is longer than 64 KiB",
            )),
        }
    }
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
    /// The same after compression, without the frames' headers and seals.
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

impl BackupMetadata {
    /// At most so much memory do its texts take, as long as they were not changed since they were read: a few bytes of a manifest
    /// may be very many short ones.
    pub fn memory_bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let mark = self.log_mark.as_ref();
        let alone = [
            optional(&self.reason),
            optional(&self.history),
            mark.map_or(0, |mark| mark.sha256.len()),
            self.source.url.len(),
            self.source.kind.len(),
            self.source.host.len(),
            self.tool_version.len(),
            self.storage_info.primary.len(),
            optional(&self.verification_info.level),
        ];
        let notes = self.annotations.iter();
        let notes = notes.map(|(name, text)| name.len() + text.len() + 2 * TEXT_BYTES);
        let (replicas, regions) = (&self.storage_info.replicas, &self.replication_info.regions);
        let listed = replicas.iter().chain(regions);
        let listed = listed.map(|text| text.len() + TEXT_BYTES);
        alone.iter().sum::<usize>() + notes.sum::<usize>() + listed.sum::<usize>()
    }
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

/// A manifest without its entry pages: all that is needed by who reads no file of the backup. A page of one byte takes a hundred in
/// memory, and there may be a million.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// What the backup is.
    pub metadata: BackupMetadata,
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

fn check_order(packs: &[PackInfo]) -> Result<()> {
    if packs.windows(2).any(|pair| pair[0].id >= pair[1].id) {
        return Err(corrupt("manifest: the packs are not sorted by id"));
    }
    Ok(())
}

/// Reads the plain bytes of a body, and gives each page to `take` in order.
fn read_body(bytes: &[u8], mut take: impl FnMut(Child)) -> Result<ManifestHead> {
    let mut reader = Reader::new("manifest", bytes);
    let json_len = reader.u32("metadata length")? as usize;
    if json_len > METADATA_BYTES_MAX {
        return Err(reader.wrong("metadata length", "is above its cap"));
    }
    let metadata: BackupMetadata = serde_json::from_slice(reader.bytes("metadata", json_len)?)
        .map_err(|e| corrupt("manifest: the metadata is not what it should be").cause(e))?;
    metadata.source.check()?;
    let page_count = reader.u32("page count")? as usize;
    if page_count > MANIFEST_PAGES_MAX {
        return Err(reader.wrong("page count", "is above its cap"));
    }
    // The shortest child is an inline node of one byte.
    reader.check_count("page count", page_count, 3)?;
    for _ in 0..page_count {
        let page = Child::read(&mut reader)?;
        check_page(&page)?;
        take(page);
    }
    let pack_count = reader.u32("pack count")? as usize;
    if pack_count > MANIFEST_PACKS_MAX {
        return Err(reader.wrong("pack count", "is above its cap"));
    }
    reader.check_count("pack count", pack_count, PACK_INFO_BYTES)?;
    // Exactly: a vector that grows takes up to twice as much.
    let mut packs = Vec::with_capacity(pack_count);
    for _ in 0..pack_count {
        packs.push(PackInfo::read(&mut reader)?);
    }
    reader.finish()?;
    check_order(&packs)?;
    Ok(ManifestHead { metadata, packs })
}

/// The plain bytes of the body of a whole object.
fn object_body(
    bytes: &[u8],
    preamble: &Preamble,
    sealer: &ObjectSealer,
    decoder: &mut FrameDecoder,
) -> Result<Vec<u8>> {
    let body = (FrameKind::Manifest, MANIFEST_PLAIN_BYTES_MAX, "manifest");
    single::decode(bytes, preamble, sealer, decoder, body)
}

impl ManifestHead {
    /// Reads the plain bytes of a body. Its pages are checked as those of a [`Manifest`], and let go one after the other.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        read_body(bytes, drop)
    }

    /// Reads a whole object, as [`Manifest::decode_object`] does.
    pub fn decode_object(
        bytes: &[u8],
        preamble: &Preamble,
        sealer: &ObjectSealer,
        decoder: &mut FrameDecoder,
    ) -> Result<Self> {
        let head = Self::decode(&object_body(bytes, preamble, sealer, decoder)?)?;
        check_id(&head.metadata, preamble)?;
        Ok(head)
    }
}

fn check_id(metadata: &BackupMetadata, preamble: &Preamble) -> Result<()> {
    match metadata.backup_id.object_id() == preamble.object_id {
        true => Ok(()),
        false => Err(corrupt("manifest: the metadata is of another backup")),
    }
}

impl Manifest {
    fn check(&self) -> Result<()> {
        self.pages.iter().try_for_each(check_page)?;
        self.packs.iter().try_for_each(PackInfo::check)?;
        check_order(&self.packs)
    }

    /// Whether the manifest can be written: to be asked while what was done so far can be taken back.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode), which checks the same.
    pub fn check_encodable(&self) -> Result<()> {
        self.measure().map(drop)
    }

    /// The metadata as it is written and the length of the body, both within their caps.
    fn measure(&self) -> Result<(Vec<u8>, usize)> {
        let too_large =
            || Error::new(Kind::Limit, "the backup is too large for one manifest").hint(PARTS_HINT);
        if self.packs.len() > MANIFEST_PACKS_MAX {
            return Err(too_many_packs(MANIFEST_PACKS_MAX));
        }
        if self.pages.len() > MANIFEST_PAGES_MAX {
            return Err(too_large());
        }
        self.metadata.source.check().map_err(|e| {
            let what = "what names the source is too long for a manifest";
            let hint = "give a shorter path, or a shorter name of the host";
            Error::new(Kind::Limit, what).hint(hint).cause(e)
        })?;
        self.check()
            .map_err(|e| Error::new(Kind::Internal, "a manifest is inconsistent").cause(e))?;
        let json = serde_json::to_vec(&self.metadata)
            .map_err(|e| Error::new(Kind::Internal, "metadata could not be written").cause(e))?;
        if json.len() > METADATA_BYTES_MAX {
            return Err(
                Error::new(Kind::Limit, "the backup's metadata exceeds 1 MiB")
                    .hint("give fewer or shorter annotations"),
            );
        }
        let mut scratch = Vec::new();
        let page_bytes = self.pages.iter().map(|page| {
            scratch.clear();
            page.encode(&mut scratch);
            scratch.len()
        });
        let list_bytes = page_bytes.sum::<usize>() + self.packs.len() * PACK_INFO_BYTES;
        let bytes = COUNTS_BYTES + json.len() + list_bytes;
        if bytes > MANIFEST_PLAIN_BYTES_MAX {
            return Err(too_large());
        }
        Ok((json, bytes))
    }

    /// The plain bytes of the body.
    ///
    /// # Errors
    /// [`Kind::Limit`] if it is longer, or lists more, than a manifest can; [`Kind::Internal`] if it contradicts itself.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let (json, bytes) = self.measure()?;
        // Exactly: a vector that grows takes up to twice as much.
        let mut out = Vec::with_capacity(bytes);
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
        Ok(out)
    }

    /// Reads the plain bytes of a body.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut pages = Vec::new();
        let ManifestHead { metadata, packs } = read_body(bytes, |page| pages.push(page))?;
        pages.shrink_to_fit();
        Ok(Manifest {
            metadata,
            pages,
            packs,
        })
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
        let manifest = Self::decode(&object_body(bytes, preamble, sealer, decoder)?)?;
        check_id(&manifest.metadata, preamble)?;
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(packs: u32) -> Manifest {
        let pack = |number: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let directory_offset = PREAMBLE_BYTES_MIN as u64;
            PackInfo {
                id: PackId(id),
                object_type: ObjectType::MetaPack,
                bytes: directory_offset + 100 + TRAILER_BYTES as u64,
                directory_offset,
                directory_bytes: 100,
                blocks: 0,
                directory_sha256: sha256(&number.to_be_bytes()),
            }
        };
        let begun = Timestamp::from_micros(0);
        Manifest {
            metadata: BackupMetadata {
                backup_id: BackupId::new(begun, 1),
                backup_type: BackupType::Full,
                reason: None,
                base_id: None,
                parent_id: None,
                lsn_range: None,
                history: None,
                log_mark: None,
                started: begun,
                ended: begun,
                source: SourceInfo {
                    url: String::new(),
                    kind: String::new(),
                    host: String::new(),
                },
                tool_version: String::new(),
                annotations: BTreeMap::new(),
                size_info: SizeInfo::default(),
                storage_info: StorageInfo::default(),
                verification_info: VerificationInfo::default(),
                replication_info: ReplicationInfo::default(),
            },
            pages: Vec::new(),
            packs: (0..packs).map(pack).collect(),
        }
    }

    /// 1,048,576 packs: each byte here is a MiB there.
    #[test]
    fn a_pack_takes_80_bytes_encoded_and_decoded_and_no_room_beside() {
        assert_eq!(size_of::<PackInfo>(), PACK_INFO_BYTES);
        let mut manifest = manifest(10_000);
        manifest.pages = vec![Child::Inline(vec![3; 150]); 1000];
        let body = manifest.encode().unwrap();
        assert_eq!(body.len(), manifest.measure().unwrap().1);
        assert_eq!(body.capacity(), body.len());
        let decoded = Manifest::decode(&body).unwrap();
        assert_eq!(decoded.packs.capacity(), decoded.packs.len());
        assert_eq!(decoded, manifest);
    }

    #[test]
    fn the_head_of_a_manifest_is_checked_as_the_whole_of_it() {
        let mut whole = manifest(3);
        whole.pages = vec![Child::Inline(vec![3; 150]); 10];
        let body = whole.encode().unwrap();
        let head = ManifestHead::decode(&body).unwrap();
        assert_eq!(head.metadata, whole.metadata);
        assert_eq!(head.packs, whole.packs);
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            let told = |error: Error| error.to_string();
            let by_head = ManifestHead::decode(&changed).map_err(told);
            let by_whole = Manifest::decode(&changed).map_err(told);
            let by_whole = by_whole.map(
                |Manifest {
                     metadata, packs, ..
                 }| ManifestHead { metadata, packs },
            );
            assert_eq!(by_head, by_whole, "{at}");
        }
    }

    #[test]
    fn a_source_is_named_in_64_kib() {
        let named = |bytes: usize| {
            let mut manifest = manifest(1);
            manifest.metadata.source.host = "h".repeat(bytes);
            manifest
        };
        let longest = named(SOURCE_TEXT_BYTES_MAX);
        let body = longest.encode().unwrap();
        assert_eq!(Manifest::decode(&body).unwrap(), longest);
        let error = named(SOURCE_TEXT_BYTES_MAX + 1).encode().unwrap_err();
        assert_eq!(error.kind(), Kind::Limit);
        // One letter more, and a metadata that is so much longer.
        let at = body.windows(3).position(|part| part == b"hhh").unwrap();
        let json_len = u32::from_le_bytes(*body.first_chunk().unwrap()) + 1;
        let longer = [&json_len.to_le_bytes()[..], &body[4..at], b"h", &body[at..]].concat();
        let error = Manifest::decode(&longer).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.message().contains("64 KiB"), "{error}");
    }

    #[test]
    fn what_no_manifest_can_hold_is_told_before_it_is_encoded() {
        manifest(1).check_encodable().unwrap();
        let mut annotated = manifest(1);
        let text = "x".repeat(METADATA_BYTES_MAX);
        annotated.metadata.annotations.insert("a".to_owned(), text);
        let mut many = manifest(1);
        many.packs = vec![many.packs[0]; MANIFEST_PACKS_MAX + 1];
        for manifest in [annotated, many] {
            let told = manifest.check_encodable().unwrap_err();
            let error = manifest.encode().unwrap_err();
            assert_eq!(error.to_string(), told.to_string());
            assert_eq!(error.kind(), told.kind());
        }
        let error = too_many_packs(MANIFEST_PACKS_MAX);
        assert!(error.to_string().contains("1048576"), "{error}");
        assert!(error.kind() == Kind::Limit && error.hint_text().is_some());
    }
}
