//! Properties: what is encoded decodes to itself; what decodes is the one encoding of its content; what is cut off anywhere
//! does not decode; no nonce repeats.

use std::collections::HashSet;

use mover_base::tree::{Entry, EntryKind, FileTime};
use mover_base::{
    BLOCK_BYTES, BackupId, Kind, Lsn, LsnRange, PackId, RepoId, Result, SessionId, SlotId,
    Timestamp,
};
use mover_format::entry::{EntryPageBuilder, PAGE_ENTRIES_MAX};
use mover_format::frame::FRAME_STORED_BYTES_MAX;
use mover_format::manifest::LogMark;
use mover_format::node::{LEAF_BLOCKS_MAX, level_blocks, root_level};
use mover_format::preamble::WRAPPED_KEY_BYTES_MAX;
use mover_format::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::samples::*;

fn any_run() -> impl Strategy<Value = Run> {
    let blocks = prop_oneof![4 => 1u32..20, 1 => 1u32..3000];
    prop_oneof![
        blocks.clone().prop_map(|blocks| Run::Hole { blocks }),
        blocks.clone().prop_map(|blocks| Run::Zeros { blocks }),
        // Few packs and low ordinals, so that runs often follow each other.
        (blocks, 0u8..4, 0u32..40).prop_map(|(blocks, pack, ordinal)| Run::Stored {
            blocks,
            pack: PackId([pack; 16]),
            ordinal,
        }),
    ]
}

/// What each block of the runs is: the truth that merging must not change.
fn spelled_out(runs: &[Run]) -> Vec<Run> {
    let one = |run: &Run, i: u32| match *run {
        Run::Hole { .. } => Run::Hole { blocks: 1 },
        Run::Zeros { .. } => Run::Zeros { blocks: 1 },
        Run::Stored { pack, ordinal, .. } => Run::Stored {
            blocks: 1,
            pack,
            ordinal: ordinal + i,
        },
    };
    runs.iter()
        .flat_map(|run| (0..run.blocks()).map(move |i| one(run, i)))
        .collect()
}

fn any_child() -> impl Strategy<Value = Child> {
    let place = (
        any::<[u8; 32]>(),
        any::<[u8; 16]>(),
        0u32..65_536,
        0u32..1000,
        193u32..100_000,
    );
    prop_oneof![
        Just(Child::Inline(leaf().encode())),
        place.prop_map(|(sha256, pack, frame, offset, len)| Child::Node(NodeRef {
            sha256,
            pack: PackId(pack),
            frame,
            offset,
            len,
        })),
    ]
}

fn any_entry() -> impl Strategy<Value = StoredEntry> {
    let name = vec(prop_oneof![b'a'..=b'd', Just(b'/'), Just(0xffu8)], 1..12);
    let kind = prop_oneof![
        Just(EntryKind::Dir),
        (0u64..=u64::from(LEAF_BLOCKS_MAX) * 4096).prop_map(|bytes| EntryKind::File { bytes }),
        vec(1u8.., 1..50).prop_map(|target| EntryKind::Symlink { target }),
        Just(EntryKind::Hardlink {
            first: b"a".to_vec()
        }),
        Just(EntryKind::Fifo),
    ];
    let xattrs = proptest::collection::btree_map(vec(1u8.., 1..20), vec(any::<u8>(), 0..50), 0..4);
    let numbers = (
        0u32..=0o7777,
        any::<u32>(),
        any::<u32>(),
        any::<i64>(),
        0u32..1_000_000_000,
    );
    (name, kind, xattrs, numbers, any_child()).prop_map(|(path, kind, xattrs, numbers, child)| {
        let (mode, uid, gid, seconds, nanos) = numbers;
        let entry = Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime: FileTime { seconds, nanos },
            xattrs: xattrs.into_iter().collect(),
        };
        let map = (entry.content_bytes() > 0).then_some(child);
        StoredEntry { entry, map }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn leaves_round_trip_and_merging_changes_no_block(runs in vec(any_run(), 1..60)) {
        let mut builder = LeafBuilder::new();
        let mut pushed = Vec::new();
        for run in runs {
            if run.blocks() <= builder.room() {
                builder.push(run).unwrap();
                pushed.push(run);
            }
        }
        let leaf = builder.finish().unwrap();
        prop_assert_eq!(spelled_out(leaf.runs()), spelled_out(&pushed));
        let bytes = leaf.encode();
        prop_assert_eq!(&Leaf::decode(&bytes).unwrap(), &leaf);
        prop_assert_eq!(leaf.blocks() as usize, spelled_out(&pushed).len());
    }

    #[test]
    fn equal_blocks_give_equal_leaves_however_they_were_pushed(runs in vec(any_run(), 1..20)) {
        let (mut whole, mut single) = (LeafBuilder::new(), LeafBuilder::new());
        for run in runs.into_iter().filter(|run| run.blocks() < 500) {
            whole.push(run).unwrap();
            for block in spelled_out(&[run]) {
                single.push(block).unwrap();
            }
        }
        prop_assert_eq!(whole.finish().map(|l| l.encode()), single.finish().map(|l| l.encode()));
    }

    #[test]
    fn a_leaf_joined_from_parts_is_the_leaf_made_at_once(
        runs in vec(any_run(), 1..20),
        cuts in vec(any::<bool>(), 1..100),
    ) {
        let (mut whole, mut part, mut joined) = (LeafBuilder::new(), LeafBuilder::new(), LeafBuilder::new());
        let runs: Vec<Run> = runs.into_iter().filter(|run| run.blocks() < 500).collect();
        for (block, cut) in spelled_out(&runs).into_iter().zip(cuts.into_iter().cycle()) {
            whole.push(block).unwrap();
            part.push(block).unwrap();
            if cut {
                joined.append(&part.finish().unwrap()).unwrap();
            }
        }
        if let Some(last) = part.finish() {
            joined.append(&last).unwrap();
        }
        prop_assert_eq!(whole.finish().map(|l| l.encode()), joined.finish().map(|l| l.encode()));
    }

    #[test]
    fn interior_nodes_round_trip(children in vec(any_child(), 1..40)) {
        let node = Interior { level: 1, children };
        prop_assert_eq!(Interior::decode(&node.encode().unwrap()).unwrap(), node);
    }

    #[test]
    fn entry_pages_round_trip(mut entries in vec(any_entry(), 1..30)) {
        entries.retain(|stored| {
            let entry = &stored.entry;
            let link_ok = !matches!(&entry.kind, EntryKind::Hardlink { first } if *first >= entry.path);
            mover_base::tree::is_safe_path(&entry.path) && link_ok
        });
        entries.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
        entries.dedup_by(|a, b| a.entry.path == b.entry.path);
        prop_assume!(!entries.is_empty());
        let page = EntryPage { entries };
        prop_assert_eq!(EntryPage::decode(&page.encode().unwrap()).unwrap(), page);
    }

    #[test]
    fn frames_round_trip_whatever_they_hold(
        seed in vec(any::<u8>(), 1..200),
        blocks in 1usize..=256,
        sealed in any::<bool>(),
    ) {
        let plain: Vec<u8> = seed.iter().copied().cycle().take(blocks * BLOCK_BYTES).collect();
        let cipher = if sealed { Cipher::Aes256Gcm } else { Cipher::None };
        let preamble = preamble(ObjectType::DataPack, cipher);
        prop_assert_eq!(open_pack(&preamble, &build_pack(&preamble, std::slice::from_ref(&plain))).unwrap(), vec![plain]);
    }

    #[test]
    fn noise_frames_round_trip(len in 1usize..100_000) {
        let preamble = preamble(ObjectType::MetaPack, Cipher::Aes256Gcm);
        let plain = noise(len);
        prop_assert_eq!(open_pack(&preamble, &build_pack(&preamble, std::slice::from_ref(&plain))).unwrap(), vec![plain]);
    }

    #[test]
    fn directories_find_every_block(sizes in vec(1u32..=256, 1..30)) {
        let mut directory = PackDirectory::new();
        let mut offset = 100u64;
        let mut truth = Vec::new();
        for (frame, &blocks) in sizes.iter().enumerate() {
            let hashes = vec![[frame as u8; 32]; blocks as usize];
            let first = directory.push(offset, 100, blocks as usize * BLOCK_BYTES, &hashes).unwrap();
            prop_assert_eq!(first as usize, truth.len());
            truth.extend((0..blocks as usize).map(|slot| (frame, slot)));
            offset += 100;
        }
        for (ordinal, place) in truth.iter().enumerate() {
            prop_assert_eq!(directory.frame_of(ordinal as u32), Some(*place));
        }
        prop_assert_eq!(directory.frame_of(truth.len() as u32), None);
        let bytes = directory.encode(ObjectType::DataPack).unwrap();
        prop_assert_eq!(PackDirectory::decode(ObjectType::DataPack, &bytes).unwrap(), directory);
    }

    #[test]
    fn no_piece_index_is_sealed_twice(pieces in vec(0u32..6, 1..40)) {
        let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::Aes256Gcm));
        let mut sealed = Vec::new();
        for piece in pieces {
            if sealer.seal(piece, &[0; 12], b"x", &mut [0; 17]).is_ok() {
                sealed.push(piece);
            }
        }
        let expected: Vec<u32> = (0..sealed.len() as u32).collect();
        prop_assert_eq!(sealed, expected);
    }
}

proptest! {
    #[test]
    fn annotations_decode_to_what_was_encoded(
        number in 1u32..=9999,
        set in proptest::collection::btree_map(".{0,20}", ".{0,60}", 0..6),
        remove in proptest::collection::btree_set(".{0,20}", 0..6),
        host in ".{0,30}",
        micros in 0i64..4_000_000_000_000_000,
    ) {
        let record = Record::Annotation(AnnotationRecord {
            backup_id: backup_id(),
            number,
            remove,
            set,
            host,
            created: mover_base::Timestamp::from_micros(micros),
        });
        let body = record.encode().unwrap();
        prop_assert_eq!(Record::decode(ObjectType::Annotation, &body).unwrap(), record);
        // None of the others takes it for its own.
        for object_type in [ObjectType::Session, ObjectType::Hold, ObjectType::Manifest] {
            prop_assert!(Record::decode(object_type, &body).is_err());
        }
    }
}

/// Fails unless each part of the bytes that leaves out their end is refused.
fn no_beginning_decodes<T>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T>,
) -> std::result::Result<(), TestCaseError> {
    for len in 0..bytes.len() {
        prop_assert!(
            decode(&bytes[..len]).is_err(),
            "the first {len} bytes of {}",
            bytes.len()
        );
    }
    Ok(())
}

fn any_cipher() -> impl Strategy<Value = Cipher> {
    prop_oneof![Just(Cipher::None), Just(Cipher::Aes256Gcm)]
}

fn any_object_type() -> impl Strategy<Value = ObjectType> {
    (1u8..=7).prop_map(|code| ObjectType::from_code(code).unwrap())
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    (0i64..4_000_000_000_000_000).prop_map(Timestamp::from_micros)
}

fn any_backup_id() -> impl Strategy<Value = BackupId> {
    (any_time(), any::<u32>()).prop_map(|(start, random)| BackupId::new(start, random))
}

fn any_preamble() -> impl Strategy<Value = Preamble> {
    let ids = any::<[[u8; 16]; 3]>();
    let key = vec(any::<u8>(), 1..=WRAPPED_KEY_BYTES_MAX);
    (any_object_type(), any_cipher(), ids, key).prop_map(|(object_type, cipher, ids, key)| {
        Preamble {
            object_type,
            cipher,
            repo_id: RepoId(ids[0]),
            object_id: ids[1],
            session_id: SessionId(ids[2]),
            wrapped_key: if cipher == Cipher::None {
                Vec::new()
            } else {
                key
            },
        }
    })
}

/// A trailer that may stand behind such an object.
fn any_trailer() -> impl Strategy<Value = (ObjectType, PackTrailer)> {
    let numbers = (100u64..1 << 40, any::<u32>(), any::<u32>());
    (any_object_type(), numbers).prop_map(|(object_type, (offset, bytes, piece))| {
        let kind = object_type.last_frame();
        let bytes_max = 16 + kind.plain_bytes_max() as u32 + 16;
        let trailer = PackTrailer {
            directory_offset: offset,
            directory_bytes: 17 + bytes % (bytes_max - 16),
            directory_piece: match kind {
                FrameKind::Directory => 1 + piece % 65_536,
                _ => 0,
            },
        };
        (object_type, trailer)
    })
}

fn any_pack_info() -> impl Strategy<Value = PackInfo> {
    let numbers = (100u64..1 << 35, 17u32..1 << 22, 1u32..=65_536);
    let ids = (any::<[u8; 16]>(), any::<[u8; 32]>());
    (ids, any::<bool>(), numbers).prop_map(|((id, sha256), is_data, numbers)| {
        let (directory_offset, directory_bytes, blocks) = numbers;
        PackInfo {
            id: PackId(id),
            object_type: match is_data {
                true => ObjectType::DataPack,
                false => ObjectType::MetaPack,
            },
            bytes: directory_offset + u64::from(directory_bytes) + 32,
            directory_offset,
            directory_bytes,
            blocks: if is_data { blocks } else { 0 },
            directory_sha256: sha256,
        }
    })
}

fn any_sizes() -> impl Strategy<Value = SizeInfo> {
    any::<[u64; 13]>().prop_map(|numbers| SizeInfo {
        original_bytes: numbers[0],
        data_bytes: numbers[1],
        new_bytes: numbers[2],
        compressed_bytes: numbers[3],
        encrypted_bytes: numbers[4],
        files: numbers[5],
        dirs: numbers[6],
        symlinks: numbers[7],
        hardlinks: numbers[8],
        blocks: numbers[9],
        zero_blocks: numbers[10],
        hole_blocks: numbers[11],
        deduplicated_blocks: numbers[12],
    })
}

fn any_metadata() -> impl Strategy<Value = BackupMetadata> {
    use proptest::option::of;
    let types = prop_oneof![
        Just(BackupType::Full),
        Just(BackupType::Incremental),
        Just(BackupType::Differential)
    ];
    let ids = (any_backup_id(), of(any_backup_id()), of(any_backup_id()));
    let times = (any_time(), any_time(), of(any_time()));
    let log = (of(any::<[u64; 2]>()), of(".{0,20}"), of("[0-9a-f]{64}"));
    let texts = vec(".{0,20}", 6);
    let more = (
        of(".{0,20}"),
        of(".{0,20}"),
        any::<bool>(),
        vec(".{0,9}", 0..3),
    );
    let annotations = proptest::collection::btree_map(".{0,20}", ".{0,40}", 0..4);
    (
        types,
        ids,
        times,
        log,
        texts,
        more,
        annotations,
        any_sizes(),
    )
        .prop_map(
            |(backup_type, ids, times, log, texts, more, annotations, size_info)| {
                let mut texts = texts.into_iter();
                let mut text = || texts.next().unwrap();
                let (reason, level, decoded_and_compared, names) = more;
                BackupMetadata {
                    backup_id: ids.0,
                    backup_type,
                    reason,
                    base_id: ids.1,
                    parent_id: ids.2,
                    lsn_range: log.0.map(|[start, end]| LsnRange {
                        start: Lsn(start),
                        end: Lsn(end),
                    }),
                    history: log.1,
                    log_mark: log.2.map(|sha256| LogMark {
                        blocks: log.0.map(|[start, _]| start),
                        sha256,
                    }),
                    started: times.0,
                    ended: times.1,
                    source: SourceInfo {
                        url: text(),
                        kind: text(),
                        host: text(),
                    },
                    tool_version: text(),
                    annotations,
                    storage_info: StorageInfo {
                        primary: text(),
                        pack_count: size_info.blocks,
                        replicas: names.clone(),
                    },
                    size_info,
                    verification_info: VerificationInfo {
                        decoded_and_compared,
                        level,
                        verified_at: times.2,
                    },
                    replication_info: ReplicationInfo { regions: names },
                }
            },
        )
}

fn any_manifest() -> impl Strategy<Value = Manifest> {
    let pages = prop_oneof![
        Just(Child::Inline(vec![3])),
        vec(any::<u8>(), 0..100).prop_map(|rest| Child::Inline([vec![3], rest].concat())),
        Just(Child::Node(node_ref())),
    ];
    (any_metadata(), vec(pages, 0..5), vec(any_pack_info(), 0..5)).prop_map(
        |(metadata, pages, mut packs)| {
            packs.sort_by_key(|pack| pack.id);
            packs.dedup_by_key(|pack| pack.id);
            Manifest {
                metadata,
                pages,
                packs,
            }
        },
    )
}

/// A record, with the object id that it may have.
fn any_record() -> impl Strategy<Value = (Record, [u8; 16])> {
    let process = (".{0,40}", ".{0,40}", any::<u32>(), any::<u64>());
    let process = process.prop_map(|(boot_id, namespaces, pid, start_ticks)| ProcessInfo {
        boot_id,
        namespaces,
        pid,
        start_ticks,
    });
    let parents = vec(any_backup_id(), 0..=64);
    let purpose = prop_oneof![Just(Purpose::Backup), Just(Purpose::Expire)];
    let facts = (
        ".{0,40}",
        proptest::option::of(process),
        any_time(),
        ".{0,20}",
    );
    let session = (purpose, parents, facts).prop_map(|(purpose, parents, facts)| {
        let (host, process, started, tool_version) = facts;
        let body = SessionRecord {
            purpose,
            parents,
            host,
            process,
            started,
            tool_version,
        };
        (Record::Session(body), SESSION.0)
    });
    let tombstone = any_backup_id().prop_map(|backup_id| {
        let body = TombstoneRecord { backup_id };
        (Record::Tombstone(body), backup_id.object_id())
    });
    let hold = (
        any_backup_id(),
        ".{0,200}",
        ".{0,40}",
        any_time(),
        any::<[u8; 16]>(),
    );
    let hold = hold.prop_map(|(backup_id, reason, host, created, id)| {
        let body = HoldRecord {
            backup_id,
            reason,
            host,
            created,
        };
        (Record::Hold(body), id)
    });
    prop_oneof![session, tombstone, hold]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn preambles_round_trip_and_end_nowhere_else(preamble in any_preamble(), behind in vec(any::<u8>(), 0..40)) {
        let bytes = preamble.encode().unwrap();
        prop_assert_eq!(bytes.len(), preamble.encoded_bytes());
        let decoded = Preamble::decode(&[bytes.as_slice(), &behind].concat()).unwrap();
        prop_assert_eq!(decoded, (preamble, bytes.len()));
        no_beginning_decodes(&bytes, Preamble::decode)?;
    }

    #[test]
    fn trailers_round_trip_and_fit_one_length(
        (object_type, trailer) in any_trailer(),
        other in any_object_type(),
        more in 1u64..1 << 20,
    ) {
        let bytes = trailer.encode(object_type);
        let len = trailer.object_bytes();
        prop_assert_eq!(PackTrailer::decode(object_type, &bytes, len).unwrap(), trailer);
        prop_assert!(PackTrailer::decode(object_type, &bytes, len + more).is_err());
        prop_assert!(PackTrailer::decode(object_type, &bytes, len.saturating_sub(more)).is_err());
        if other.last_frame() != object_type.last_frame() {
            prop_assert!(PackTrailer::decode(other, &bytes, len).is_err());
        }
        no_beginning_decodes(&bytes, |part| PackTrailer::decode(object_type, part, len))?;
    }

    #[test]
    fn manifest_bodies_round_trip_and_end_nowhere_else(manifest in any_manifest()) {
        let bytes = manifest.encode().unwrap();
        prop_assert_eq!(&Manifest::decode(&bytes).unwrap(), &manifest);
        prop_assert!(Manifest::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
        no_beginning_decodes(&bytes, Manifest::decode)?;
    }

    #[test]
    fn manifest_objects_round_trip_and_end_nowhere_else(manifest in any_manifest(), cipher in any_cipher()) {
        let mut preamble = preamble(ObjectType::Manifest, cipher);
        preamble.object_id = manifest.metadata.backup_id.object_id();
        let mut encoder = FrameEncoder::new(3).unwrap();
        let bytes = manifest.encode_object(&preamble, &sealer(&preamble), &mut encoder).unwrap();
        prop_assert_eq!(open_manifest(&preamble, &bytes).unwrap(), manifest);
        no_beginning_decodes(&bytes, |part| open_manifest(&preamble, part))?;
    }

    #[test]
    fn records_round_trip_and_end_nowhere_else((record, object_id) in any_record(), cipher in any_cipher()) {
        let body = record.encode().unwrap();
        let decode = |part: &[u8]| Record::decode(record.object_type(), part);
        prop_assert_eq!(&decode(&body).unwrap(), &record);
        no_beginning_decodes(&body, decode)?;

        let mut preamble = preamble(record.object_type(), cipher);
        preamble.object_id = object_id;
        let mut encoder = FrameEncoder::new(3).unwrap();
        let bytes = record.encode_object(&preamble, &sealer(&preamble), &mut encoder).unwrap();
        prop_assert_eq!(&open_record(&preamble, &bytes).unwrap(), &record);
        no_beginning_decodes(&bytes, |part| open_record(&preamble, part))?;
    }

    #[test]
    fn configs_round_trip_and_end_nowhere_else(
        repo in any::<[u8; 16]>(),
        created in any_time(),
        recipient in proptest::option::of("age1[0-9a-z]{0,60}"),
        note in proptest::option::of(".{0,200}"),
    ) {
        let mut config = RepositoryConfig::new(RepoId(repo), created, recipient);
        config.note = note;
        let bytes = config.encode().unwrap();
        let (decoded, hash) = RepositoryConfig::decode(&bytes).unwrap();
        prop_assert_eq!(decoded, config);
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap();
        prop_assert_eq!(hash, mover_base::checksum::sha256(line));
        no_beginning_decodes(&bytes, RepositoryConfig::decode)?;
    }

    #[test]
    fn key_slots_round_trip_and_end_nowhere_else(
        is_passphrase in any::<bool>(),
        ids in any::<[[u8; 16]; 2]>(),
        micros in 0..=i64::MAX,
        config_sha256 in any::<[u8; 32]>(),
        label in "\\PC{0,60}",
        age in vec(any::<u8>(), 1..2000),
    ) {
        let slot = KeySlot {
            kind: if is_passphrase { SlotKind::Passphrase } else { SlotKind::X25519 },
            repo_id: RepoId(ids[0]),
            slot_id: SlotId(ids[1]),
            created: Timestamp::from_micros(micros),
            config_sha256,
            label,
            age,
        };
        let bytes = slot.encode().unwrap();
        prop_assert_eq!(&KeySlot::decode(&bytes).unwrap(), &slot);
        prop_assert!(KeySlot::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
        no_beginning_decodes(&bytes, KeySlot::decode)?;
    }

    #[test]
    fn slot_secrets_round_trip_and_end_nowhere_else(
        repo in any::<[u8; 16]>(),
        config_sha256 in any::<[u8; 32]>(),
        identity in "AGE-SECRET-KEY-1[A-Z0-9-]{0,200}",
        master in any::<[u8; 32]>(),
    ) {
        let secret = SlotSecret {
            repo_id: RepoId(repo),
            config_sha256,
            identity: identity.clone().into(),
            master_key: MasterKey::new(master),
        };
        let bytes = secret.encode().unwrap();
        let decoded = SlotSecret::decode(&bytes).unwrap();
        prop_assert_eq!(decoded.repo_id, RepoId(repo));
        prop_assert_eq!(decoded.config_sha256, config_sha256);
        prop_assert_eq!(decoded.identity.as_str(), identity);
        prop_assert_eq!(decoded.master_key.expose(), &master);
        no_beginning_decodes(&bytes, SlotSecret::decode)?;
    }

    #[test]
    fn wrapped_payloads_round_trip_and_have_one_length(key in any::<[u8; 32]>(), tag in any::<[u8; 32]>()) {
        let payload = WrappedPayload { session_key: SessionKey::new(key), tag };
        let bytes = payload.encode();
        let decoded = WrappedPayload::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(decoded.session_key.expose(), &key);
        prop_assert_eq!(decoded.tag, tag);
        prop_assert!(WrappedPayload::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
        no_beginning_decodes(bytes.as_slice(), WrappedPayload::decode)?;
    }
}

#[test]
fn no_keystream_repeats_over_objects_and_pieces() {
    // Sealing zeros shows the keystream itself; 16 bytes of it identify a (key, nonce) pair.
    let mut seen = HashSet::new();
    let mut variants = Vec::new();
    for object_type in [
        ObjectType::DataPack,
        ObjectType::MetaPack,
        ObjectType::Manifest,
        ObjectType::Session,
        ObjectType::Tombstone,
        ObjectType::Hold,
        ObjectType::Annotation,
    ] {
        for object_id in [[1; 16], [2; 16]] {
            for repo in [1, 2] {
                for key in [1, 2] {
                    variants.push((
                        object_type,
                        object_id,
                        RepoId([repo; 16]),
                        SessionKey::new([key; 32]),
                    ));
                }
            }
        }
    }
    for (object_type, object_id, repo_id, key) in &variants {
        let mut preamble = preamble(*object_type, Cipher::Aes256Gcm);
        (preamble.object_id, preamble.repo_id) = (*object_id, *repo_id);
        let sealer = ObjectSealer::new(&preamble, Some(key)).unwrap();
        for piece in 0..50 {
            let mut sealed = [0; 32];
            sealer.seal(piece, &[0; 12], &[0; 16], &mut sealed).unwrap();
            assert!(
                seen.insert(sealed[..16].to_vec()),
                "{object_type:?} piece {piece}"
            );
        }
    }
    assert_eq!(seen.len(), variants.len() * 50);
}

#[test]
fn session_tags_depend_on_every_input() {
    let tag = |master, repo, session, key| {
        session_tag(
            &MasterKey::new([master; 32]),
            &RepoId([repo; 16]),
            &SessionId([session; 16]),
            &SessionKey::new([key; 32]),
        )
    };
    let tags = [
        tag(1, 1, 1, 1),
        tag(2, 1, 1, 1),
        tag(1, 2, 1, 1),
        tag(1, 1, 2, 1),
        tag(1, 1, 1, 2),
    ];
    assert_eq!(HashSet::from(tags).len(), tags.len());
}

#[test]
fn frame_sizes_at_their_boundaries() {
    let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::Aes256Gcm));
    let mut encoder = FrameEncoder::new(1).unwrap();
    for (kind, len, allowed) in [
        (FrameKind::Blocks, 0, false),
        (FrameKind::Blocks, 4095, false),
        (FrameKind::Blocks, 4097, false),
        (FrameKind::Blocks, (1 << 20) + 4096, false),
        (FrameKind::Nodes, 0, false),
        (FrameKind::Nodes, (1 << 20) + 1, false),
        (FrameKind::Directory, (4 << 20) + 1, false),
        (FrameKind::Blocks, 4096, true),
        (FrameKind::Blocks, 1 << 20, true),
        (FrameKind::Nodes, 1, true),
        (FrameKind::Nodes, 1 << 20, true),
    ] {
        assert_eq!(
            encoder.compress(kind, &vec![0; len]).is_ok(),
            allowed,
            "{kind:?} {len}"
        );
    }
    let plain = noise(1 << 20);
    let mut out = b"before".to_vec();
    assert_eq!(
        encoder.compress(FrameKind::Blocks, &plain).unwrap(),
        Codec::Raw
    );
    encoder.compare(&plain).unwrap();
    assert_eq!(
        encoder.seal(&sealer, 0, &plain, &mut out).unwrap(),
        FRAME_STORED_BYTES_MAX
    );
    let mut opened = vec![0; 1 << 20];
    FrameDecoder::new()
        .open(&sealer, 0, FrameKind::Blocks, &out[6..], &mut opened)
        .unwrap();
    assert!(opened == plain && out.starts_with(b"before"));
}

#[test]
fn a_frame_that_was_not_compared_is_not_sealed() {
    let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::Aes256Gcm));
    let mut encoder = FrameEncoder::new(3).unwrap();
    let plain = lines(BLOCK_BYTES);
    let mut out = Vec::new();
    assert!(encoder.seal(&sealer, 0, &plain, &mut out).is_err());
    assert!(encoder.compare(&plain).is_err());
    encoder.compress(FrameKind::Blocks, &plain).unwrap();
    let error = encoder.seal(&sealer, 0, &plain, &mut out).unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(out.is_empty());
    assert_eq!(sealer.next_piece(), 0);
}

#[test]
fn compare_finds_a_single_wrong_byte() {
    let mut encoder = FrameEncoder::new(3).unwrap();
    let plain = lines(BLOCK_BYTES);
    for at in [0, 1, 2048, 4095] {
        encoder.compress(FrameKind::Blocks, &plain).unwrap();
        let mut other = plain.clone();
        other[at] ^= 1;
        assert!(encoder.compare(&other).is_err(), "byte {at}");
        let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::None));
        assert!(encoder.seal(&sealer, 0, &other, &mut Vec::new()).is_err());
    }
}

#[test]
fn every_level_makes_frames_that_readers_accept() {
    let plain = lines(1 << 20);
    for level in [-7, -1, 0, 1, 3, 9, 19] {
        let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::None));
        let mut encoder = FrameEncoder::new(level).unwrap();
        encoder.compress(FrameKind::Blocks, &plain).unwrap();
        encoder.compare(&plain).unwrap();
        let mut out = Vec::new();
        encoder.seal(&sealer, 0, &plain, &mut out).unwrap();
        let mut opened = vec![0; 1 << 20];
        FrameDecoder::new()
            .open(&sealer, 0, FrameKind::Blocks, &out, &mut opened)
            .unwrap();
        assert!(opened == plain, "level {level}");
    }
    assert_eq!(FrameEncoder::new(20).err().unwrap().kind(), Kind::Usage);
    assert_eq!(FrameEncoder::new(-8).err().unwrap().kind(), Kind::Usage);
}

#[test]
fn frames_that_are_left_plain_untried_open_to_what_they_were() {
    let sealer = sealer(&preamble(ObjectType::DataPack, Cipher::Aes256Gcm));
    let mut encoder = FrameEncoder::new(3).unwrap();
    let mut opened = vec![0; 1 << 20];
    // The first is tried, and that it does not shrink lets a sample speak for the others.
    for piece in 0..4 {
        let plain = noise(1 << 20);
        let codec = encoder.compress(FrameKind::Blocks, &plain).unwrap();
        assert_eq!(codec, Codec::Raw);
        encoder.compare(&plain).unwrap();
        let mut out = Vec::new();
        encoder.seal(&sealer, piece, &plain, &mut out).unwrap();
        FrameDecoder::new()
            .open(&sealer, piece, FrameKind::Blocks, &out, &mut opened)
            .unwrap();
        assert!(opened == plain, "frame {piece}");
    }
}

#[test]
fn a_large_manifest_frame_needs_no_window_above_the_cap() {
    let plain = [lines(5 << 20), noise(1 << 20), lines(5 << 20)].concat();
    let sealer = sealer(&preamble(ObjectType::Manifest, Cipher::Aes256Gcm));
    let mut encoder = FrameEncoder::new(3).unwrap();
    encoder.compress(FrameKind::Manifest, &plain).unwrap();
    encoder.compare(&plain).unwrap();
    let mut out = Vec::new();
    encoder.seal(&sealer, 0, &plain, &mut out).unwrap();
    let opened = FrameDecoder::new()
        .open_vec(&sealer, 0, FrameKind::Manifest, &out, 64 << 20)
        .unwrap();
    assert!(opened == plain);
    assert!(
        FrameDecoder::new()
            .open_vec(&sealer, 0, FrameKind::Manifest, &out, plain.len() - 1)
            .is_err()
    );
}

#[test]
fn root_levels_change_at_full_nodes() {
    assert_eq!(root_level(0), None);
    for level in 0..4 {
        assert_eq!(root_level(level_blocks(level)), Some(level));
        assert_eq!(root_level(level_blocks(level) + 1), Some(level + 1));
    }
    assert_eq!(root_level(u64::MAX / 4096 + 1), Some(4));
    assert_eq!(root_level(u64::MAX), None);
}

#[test]
fn pages_end_at_their_caps() {
    let stored = |path: String, value_bytes: usize, values: usize| StoredEntry {
        entry: Entry {
            path: path.into_bytes(),
            kind: EntryKind::Fifo,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: FileTime::default(),
            xattrs: (0..values)
                .map(|i| (format!("user.{i:04}").into_bytes(), vec![0; value_bytes]))
                .collect(),
        },
        map: None,
    };
    let mut page = EntryPageBuilder::new();
    for i in 0..PAGE_ENTRIES_MAX {
        assert!(page.push(&stored(format!("{i:05}"), 0, 0)).unwrap());
    }
    assert!(!page.push(&stored("99999".into(), 0, 0)).unwrap());
    assert_eq!(
        EntryPage::decode(&page.finish().unwrap())
            .unwrap()
            .entries
            .len(),
        PAGE_ENTRIES_MAX
    );
    // Sixteen values of 64 KiB exceed a node; fifteen fit, but not twice.
    assert_eq!(
        page.push(&stored("a".into(), 65_536, 16))
            .unwrap_err()
            .kind(),
        Kind::Limit
    );
    assert!(page.push(&stored("b".into(), 65_536, 15)).unwrap());
    assert!(!page.push(&stored("c".into(), 65_536, 15)).unwrap());
    assert_eq!(
        page.push(&stored("a".into(), 0, 0)).unwrap_err().kind(),
        Kind::Internal
    );
    assert_eq!(
        EntryPage::decode(&page.finish().unwrap())
            .unwrap()
            .entries
            .len(),
        1
    );
}
