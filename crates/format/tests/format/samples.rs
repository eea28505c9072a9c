//! One deterministic sample of each structure: keys and ids are counted up, never random.

use std::collections::BTreeMap;

use mover_base::checksum::{Sha256, sha256};
use mover_base::tree::{Entry, EntryKind, FileTime};
use mover_base::{
    BLOCK_BYTES, BackupId, Lsn, LsnRange, PackId, RepoId, Result, SessionId, SlotId, Timestamp,
};
use mover_format::entry::{EntryPage, StoredEntry};
use mover_format::pack::TRAILER_BYTES;
use mover_format::*;

pub const REPO: RepoId = RepoId([0x11; 16]);
pub const SESSION: SessionId = SessionId([0x22; 16]);
pub const DATA_PACK: PackId = PackId([0x33; 16]);
pub const META_PACK: PackId = PackId([0x44; 16]);
/// 2026-11-22T18:14:09Z
pub const CREATED: Timestamp = Timestamp::from_micros(1_795_371_249_000_000);

/// `len` bytes first, first + 1, ...
fn counted<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|i| first.wrapping_add(i as u8))
}

pub fn session_key() -> SessionKey {
    SessionKey::new(counted(0x00))
}

pub fn master_key() -> MasterKey {
    MasterKey::new(counted(0x80))
}

pub fn backup_id() -> BackupId {
    BackupId::new(CREATED, 0x7f3a_9c2e)
}

/// Bytes that do not compress: SHA-256 in counter mode.
pub fn noise(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 32);
    for counter in 0u64.. {
        if out.len() >= len {
            break;
        }
        out.extend_from_slice(&sha256(&counter.to_le_bytes()));
    }
    out.truncate(len);
    out
}

/// Bytes that compress: numbered lines.
pub fn lines(len: usize) -> Vec<u8> {
    let mut out: Vec<u8> = (0..len / 6 + 1)
        .flat_map(|n| format!("row {n}\n").into_bytes())
        .collect();
    out.truncate(len);
    out
}

pub fn preamble(object_type: ObjectType, cipher: Cipher) -> Preamble {
    let object_id = match object_type {
        ObjectType::DataPack => DATA_PACK.0,
        ObjectType::MetaPack => META_PACK.0,
        ObjectType::Manifest | ObjectType::Tombstone => backup_id().object_id(),
        ObjectType::Session => SESSION.0,
        ObjectType::Hold => [0x77; 16],
        ObjectType::Annotation => AnnotationRecord::object_id(backup_id(), 3),
    };
    Preamble {
        object_type,
        cipher,
        repo_id: REPO,
        object_id,
        session_id: SESSION,
        wrapped_key: match cipher {
            Cipher::None => Vec::new(),
            // Stands for an age file: the format does not look inside.
            Cipher::Aes256Gcm => b"wrapped session key".to_vec(),
        },
    }
}

pub fn sealer(preamble: &Preamble) -> ObjectSealer {
    let key = session_key();
    ObjectSealer::new(preamble, (preamble.cipher != Cipher::None).then_some(&key)).unwrap()
}

/// The plain bytes of the frames of the sample pack of this type.
pub fn frames(object_type: ObjectType) -> Vec<Vec<u8>> {
    match object_type {
        ObjectType::DataPack => vec![lines(2 * BLOCK_BYTES), noise(BLOCK_BYTES)],
        ObjectType::MetaPack => vec![[leaf().encode(), interior().encode().unwrap()].concat()],
        _ => Vec::new(),
    }
}

pub fn hashes(plain: &[u8]) -> Vec<Sha256> {
    plain.chunks(BLOCK_BYTES).map(sha256).collect()
}

/// A whole pack made of these frames.
pub fn build_pack(preamble: &Preamble, plains: &[Vec<u8>]) -> Vec<u8> {
    let sealer = sealer(preamble);
    let mut encoder = FrameEncoder::new(3).unwrap();
    let mut directory = PackDirectory::new();
    let mut out = preamble.encode().unwrap();
    let kind = match preamble.object_type {
        ObjectType::DataPack => FrameKind::Blocks,
        _ => FrameKind::Nodes,
    };
    let mut append = |kind, piece: usize, plain: &[u8], out: &mut Vec<u8>| {
        encoder.compress(kind, plain).unwrap();
        encoder.compare(plain).unwrap();
        assert_eq!(
            encoder.stored_bytes(sealer.cipher()).unwrap() + out.len(),
            {
                let stored = encoder.seal(&sealer, piece as u32, plain, out).unwrap();
                assert!(stored > 16);
                out.len()
            }
        );
    };
    for (piece, plain) in plains.iter().enumerate() {
        let offset = out.len();
        append(kind, piece, plain, &mut out);
        let hashes = if kind == FrameKind::Blocks {
            hashes(plain)
        } else {
            Vec::new()
        };
        directory
            .push(offset as u64, out.len() - offset, plain.len(), &hashes)
            .unwrap();
    }
    let directory_offset = out.len();
    let plain = directory.encode(preamble.object_type).unwrap();
    append(FrameKind::Directory, plains.len(), &plain, &mut out);
    let trailer = PackTrailer {
        directory_offset: directory_offset as u64,
        directory_bytes: (out.len() - directory_offset) as u32,
        directory_piece: plains.len() as u32,
    };
    out.extend_from_slice(&trailer.encode(preamble.object_type));
    out
}

/// Opens a whole pack as a reader does, every check included; gives the plain bytes of its frames.
pub fn open_pack(expected: &Preamble, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let corrupt = || mover_base::Error::new(mover_base::Kind::Corrupt, "wrong");
    let object_type = expected.object_type;
    let (preamble, begin) = Preamble::decode(bytes)?;
    preamble.check_place(
        object_type,
        expected.cipher,
        &expected.repo_id,
        &expected.object_id,
    )?;
    // Stands for unwrapping: another wrapped key gives no key.
    if preamble.wrapped_key != expected.wrapped_key {
        return Err(corrupt());
    }
    let sealer = sealer(&preamble);
    let tail = bytes.len().checked_sub(TRAILER_BYTES).ok_or_else(corrupt)?;
    let trailer = PackTrailer::decode(object_type, &bytes[tail..], bytes.len() as u64)?;
    let mut decoder = FrameDecoder::new();
    let begin_directory = trailer.directory_offset as usize;
    let stored = bytes.get(begin_directory..tail).ok_or_else(corrupt)?;
    let piece = trailer.directory_piece;
    let plain = decoder.open_vec(&sealer, piece, FrameKind::Directory, stored, 4 << 20)?;
    let directory = PackDirectory::decode(object_type, &plain)?;
    directory.check_span(begin, trailer.directory_offset)?;
    if directory.frames.len() != piece as usize {
        return Err(corrupt());
    }
    let kind = match object_type {
        ObjectType::DataPack => FrameKind::Blocks,
        _ => FrameKind::Nodes,
    };
    let mut buffer = vec![0; 1 << 20];
    let mut frames = Vec::new();
    for (piece, frame) in directory.frames.iter().enumerate() {
        let stored = &bytes[frame.offset as usize..frame.end() as usize];
        let len = decoder.open(&sealer, piece as u32, kind, stored, &mut buffer)?;
        let plain = &buffer[..len];
        let first = frame.first_block as usize;
        if kind == FrameKind::Blocks
            && directory.hashes[first..first + len / BLOCK_BYTES] != hashes(plain)
        {
            return Err(corrupt());
        }
        frames.push(plain.to_vec());
    }
    Ok(frames)
}

pub fn leaf() -> Leaf {
    let other = PackId([0x55; 16]);
    let mut leaf = LeafBuilder::new();
    for run in [
        Run::Stored {
            blocks: 2,
            pack: DATA_PACK,
            ordinal: 0,
        },
        Run::Hole { blocks: 300 },
        Run::Zeros { blocks: 1 },
        Run::Stored {
            blocks: 5,
            pack: other,
            ordinal: 1000,
        },
        Run::Stored {
            blocks: 1,
            pack: DATA_PACK,
            ordinal: 2,
        },
        Run::Stored {
            blocks: 7,
            pack: other,
            ordinal: 12,
        },
    ] {
        leaf.push(run).unwrap();
    }
    leaf.finish().unwrap()
}

pub fn node_ref() -> NodeRef {
    NodeRef {
        sha256: counted(0xa0),
        pack: META_PACK,
        frame: 1,
        offset: 4096,
        len: 193,
    }
}

pub fn interior() -> Interior {
    Interior {
        level: 1,
        children: vec![Child::Node(node_ref()), Child::Inline(leaf().encode())],
    }
}

fn entry(path: &[u8], kind: EntryKind) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: 0o644,
        uid: 1000,
        gid: 0,
        mtime: FileTime {
            seconds: 1_795_371_249,
            nanos: 999_999_999,
        },
        xattrs: Vec::new(),
    }
}

pub fn entry_page() -> EntryPage {
    let plain = |path: &[u8], kind| StoredEntry {
        entry: entry(path, kind),
        map: None,
    };
    let mut root = plain(b"", EntryKind::Dir);
    root.entry.mode = 0o7755;
    root.entry.mtime = FileTime {
        seconds: -1,
        nanos: 0,
    };
    root.entry.xattrs = vec![
        (b"user.a".to_vec(), b"".to_vec()),
        (b"user.b".to_vec(), vec![0, 0xff]),
    ];
    let target = b"../outside".to_vec();
    EntryPage {
        entries: vec![
            root,
            StoredEntry {
                entry: entry(
                    b"big",
                    EntryKind::File {
                        bytes: (64 << 20) + 1,
                    },
                ),
                map: Some(Child::Node(node_ref())),
            },
            plain(b"empty", EntryKind::File { bytes: 0 }),
            StoredEntry {
                entry: entry(b"file", EntryKind::File { bytes: 316 * 4096 }),
                map: Some(Child::Inline(leaf().encode())),
            },
            plain(
                b"hard",
                EntryKind::Hardlink {
                    first: b"file".to_vec(),
                },
            ),
            plain(b"link", EntryKind::Symlink { target }),
            plain(b"pipe\xff", EntryKind::Fifo),
        ],
    }
}

pub fn metadata() -> BackupMetadata {
    BackupMetadata {
        backup_id: backup_id(),
        backup_type: BackupType::Incremental,
        reason: Some("asked for".into()),
        base_id: Some(BackupId::new(
            Timestamp::from_micros(1_795_000_000_000_000),
            1,
        )),
        parent_id: None,
        lsn_range: Some(LsnRange {
            start: Lsn(1),
            end: Lsn(u64::MAX),
        }),
        history: None,
        log_mark: None,
        started: CREATED,
        ended: Timestamp::from_micros(CREATED.as_micros() + 1_500_000),
        source: SourceInfo {
            url: "dir:///data".into(),
            kind: "dir".into(),
            host: "db-1".into(),
        },
        tool_version: "0.1.0".into(),
        annotations: BTreeMap::from([("label".into(), "näch\"tlich".into())]),
        size_info: SizeInfo {
            original_bytes: 12,
            blocks: 3,
            ..SizeInfo::default()
        },
        storage_info: StorageInfo {
            primary: "local directory".into(),
            pack_count: 2,
            replicas: vec![],
        },
        verification_info: VerificationInfo {
            decoded_and_compared: true,
            ..Default::default()
        },
        replication_info: ReplicationInfo::default(),
    }
}

pub fn manifest() -> Manifest {
    let info = |id, object_type, blocks| PackInfo {
        id,
        object_type,
        bytes: 10_000_000,
        directory_offset: 9_999_000,
        directory_bytes: 968,
        blocks,
        directory_sha256: [id.0[0]; 32],
    };
    Manifest {
        metadata: metadata(),
        pages: vec![Child::Node(node_ref())],
        packs: vec![
            info(DATA_PACK, ObjectType::DataPack, 3),
            info(META_PACK, ObjectType::MetaPack, 0),
        ],
    }
}

pub fn manifest_object(cipher: Cipher) -> Vec<u8> {
    let preamble = preamble(ObjectType::Manifest, cipher);
    let mut encoder = FrameEncoder::new(3).unwrap();
    manifest()
        .encode_object(&preamble, &sealer(&preamble), &mut encoder)
        .unwrap()
}

pub fn open_manifest(expected: &Preamble, bytes: &[u8]) -> Result<Manifest> {
    let (preamble, _) = Preamble::decode(bytes)?;
    preamble.check_place(
        ObjectType::Manifest,
        expected.cipher,
        &expected.repo_id,
        &expected.object_id,
    )?;
    if preamble.wrapped_key != expected.wrapped_key {
        return Err(mover_base::Error::new(
            mover_base::Kind::Key,
            "not wrapped for us",
        ));
    }
    Manifest::decode_object(
        bytes,
        &preamble,
        &sealer(&preamble),
        &mut FrameDecoder::new(),
    )
}

/// One record of each type.
pub fn records() -> [Record; 4] {
    [
        Record::Session(SessionRecord {
            purpose: Purpose::Backup,
            parents: vec![backup_id()],
            host: "db-1".into(),
            process: Some(ProcessInfo {
                boot_id: "0d9f3b1e-0000-4000-8000-000000000001".into(),
                namespaces: "pid:[4026531836] time:[4026531834]".into(),
                pid: 4711,
                start_ticks: u64::MAX,
            }),
            started: CREATED,
            tool_version: "0.1.0".into(),
        }),
        Record::Tombstone(TombstoneRecord {
            backup_id: backup_id(),
        }),
        Record::Hold(HoldRecord {
            backup_id: backup_id(),
            reason: "audit, Zürich".into(),
            host: "db-1".into(),
            created: CREATED,
        }),
        Record::Annotation(AnnotationRecord {
            backup_id: backup_id(),
            number: 3,
            remove: ["old".to_owned()].into(),
            set: BTreeMap::from([("ticket".into(), "4711".into())]),
            host: "db-1".into(),
            created: CREATED,
        }),
    ]
}

pub fn record_object(record: &Record, cipher: Cipher) -> Vec<u8> {
    let preamble = preamble(record.object_type(), cipher);
    let mut encoder = FrameEncoder::new(3).unwrap();
    record
        .encode_object(&preamble, &sealer(&preamble), &mut encoder)
        .unwrap()
}

pub fn open_record(expected: &Preamble, bytes: &[u8]) -> Result<Record> {
    let (preamble, _) = Preamble::decode(bytes)?;
    preamble.check_place(
        expected.object_type,
        expected.cipher,
        &expected.repo_id,
        &expected.object_id,
    )?;
    if preamble.wrapped_key != expected.wrapped_key {
        return Err(mover_base::Error::new(
            mover_base::Kind::Key,
            "not wrapped for us",
        ));
    }
    Record::decode_object(
        bytes,
        &preamble,
        &sealer(&preamble),
        &mut FrameDecoder::new(),
    )
}

pub fn config() -> RepositoryConfig {
    let mut config = RepositoryConfig::new(REPO, CREATED, Some("age1qqqqqqqq".into()));
    config.note = Some("sample".into());
    config
}

pub fn key_slot() -> KeySlot {
    KeySlot {
        kind: SlotKind::Passphrase,
        repo_id: REPO,
        slot_id: SlotId([0x66; 16]),
        created: CREATED,
        config_sha256: counted(0xc0),
        label: "escrow, Zürich".into(),
        age: b"age-encryption.org/v1 sample".to_vec(),
    }
}

pub fn slot_secret() -> SlotSecret {
    SlotSecret {
        repo_id: REPO,
        config_sha256: counted(0xc0),
        identity: "AGE-SECRET-KEY-1SAMPLE".to_owned().into(),
        master_key: master_key(),
    }
}

pub fn wrapped_payload() -> WrappedPayload {
    WrappedPayload {
        session_key: session_key(),
        tag: session_tag(&master_key(), &REPO, &SESSION, &session_key()),
    }
}
